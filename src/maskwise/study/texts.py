"""The text of a training: prepared whole, or begun as a stream; and opened again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.shard import Live
from maskwise.annotate.store import Store
from maskwise.errors import MaskwiseError
from maskwise.masking.policies.given import Learned
from maskwise.recipe.overrides import Plain
from maskwise.specs import Call
from maskwise.study.checks import require_known_tokens
from maskwise.study.stages import Stage
from maskwise.text import Document, Prepared, Stream, load_tokenizer, require_documents, tokenise
from maskwise.text.prepared import first_characters
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.text.tokenizers import SAMPLE_CHARACTERS


def prepare(stage: Stage, stages: Path, quiet: bool) -> Plain:
    """Do the work of a stage that prepares a text.

    Raises:
        MaskwiseError: a corpus that cannot be read, or in which there is nothing to train on.
    """
    corpus, tokenizer = CorpusSettings(**stage.what["corpus"]), None
    if stage.needs:  # the tokenizer of an earlier text
        tokenizer = load_tokenizer(
            str(stages / stage.needs[0] / "data" / "tokenizer"), needs_words=False
        )
    if len(stage.needs) > 1:
        corpus = scored_by(stages / stage.needs[1] / "policy", corpus)
    documents, folder = corpus.documents(), stage.folder(stages)
    require_documents(documents)
    if tokenizer is None:
        read = beginning(corpus) if corpus.stream else documents
        tokenizer = TokenizerSettings(**stage.what["tokenizer"]).tokenizer(read)
    if corpus.stream:
        layers = Live(corpus.annotators) if corpus.annotators else None
        facts = Prepared.begin(folder / "data", corpus, tokenizer, layers=layers)
        return {**facts, "stream": True, "vocabulary": len(tokenizer)}
    stored = _layers(corpus, folder / "layers")
    tokens = tokenise(documents, tokenizer, layers=stored, words=corpus.words)
    data = Prepared.make(
        folder / "data",
        tokens,
        tokenizer,
        length=corpus.length,
        layout=corpus.row_layout,
        held_out=corpus.held_out,
    )
    assert not isinstance(data.training, Stream)
    require_known_tokens(data.training.pieces.counts, corpus.title)
    return {
        "documents": documents.read,
        "skipped": dict(documents.skipped),
        "rows": len(data.training),
        "tokens": data.training.tokens,
        "held_out_rows": len(data.held_out),
        "vocabulary": len(tokenizer),
        "counts": dict(data.training.pieces.counts),
    }


def open_text(stage: Path) -> Prepared:
    """The text that a stage has prepared, in its folder.

    Raises:
        MaskwiseError: it is damaged, or the files of a stream are gone.
    """
    return Prepared.open(stage / "data", live=Live)


def beginning(corpus: CorpusSettings) -> Iterator[Document]:
    """The first documents of a stream, on which its tokenizer is trained: of each source of a mix
    as many.
    """
    parts = corpus.parts()
    for part in parts:
        yield from first_characters(part, SAMPLE_CHARACTERS // len(parts))


def scored_by(policy: Path, corpus: CorpusSettings) -> CorpusSettings:
    """The corpus with its layers of the run's own policy made by the policy in a folder."""
    own = str(Call("learned", (str(policy),), {"layer": Learned().layer}))
    layers = tuple(own if spec in Learned().annotators() else spec for spec in corpus.layers)
    return corpus.model_copy(update={"layers": layers})


def _layers(corpus: CorpusSettings, folder: Path) -> Store | None:
    """The corpus annotated, as far as that is not done yet; in this process, which is one of
    several.
    """
    if not corpus.annotators:
        return None
    made = annotate_corpus(
        corpus.documents(),
        corpus.annotators,
        folder,
        text_field=corpus.text_field,
        limit=corpus.limit,
        jobs=1,
    )
    for spec, entry in made["annotators"].items():
        if entry["notice"]:  # an arm on an empty layer would be another policy under its name
            raise MaskwiseError(f"corpus.layers: {spec}: {entry['notice']}")
    return Store(folder)
