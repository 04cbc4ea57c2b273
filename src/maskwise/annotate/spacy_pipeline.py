"""Parts of speech and salient spans by a spaCy pipeline: the one that maskwise ships, or any that is installed.

One pass over the text gives both layers. The shipped pipeline (data/tagger-en, with its card) is small: a tagger
and an entity recogniser on one encoder of two convolutions. ``pos`` alone leaves the recogniser out.

Nothing in a text stops it: halves of surrogate pairs, which spaCy cannot hash, are shown to it as U+FFFD, and
long texts are cut at the end of a paragraph, a line, a sentence or a word, whichever comes first within
reach, for spaCy's arrays are as large as the longest texts (4.5 GB for one of 10 MB); so are words of a thousand
characters and more, over which its tokenizer may take minutes. White space has no part of speech.

Cost: nearly all is spaCy's own; ``maskwise bench annotate`` says how much. Matrix products, half of that, go
through numpy's BLAS instead of the BLIS that comes with spaCy, which takes nearly three times as long here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.gold import POS, UPOS
from maskwise.annotate.salient import DATE, NAME, NUMBER, SALIENT, VERSION, salient_spans
from maskwise.errors import MaskwiseError
from maskwise.specs import Call, parse_call
from maskwise.text.layers import CharSpans, Layer, digest

SHIPPED = Path(__file__).parent.parent / "data" / "tagger-en"
PIECE_CHARACTERS = 5_000
WORD_CHARACTERS = 1_000
BATCH = 32
"""Texts at once; with 64 and more the arrays outgrow the processor's cache, and tagging takes a third longer."""
MAX_NEW_WORDS = 200_000
"""spaCy remembers every word that it has met, which is why it is fast on text; behind so many new ones (about 100 MB)
it is loaded again. Its memory zones, made for this, keep no cache: annotating took a third longer with them."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_WORD = re.compile(rf"\S{{{WORD_CHARACTERS}}}")
_BORDERS = ("\n\n", "\n", ". ", " ")
_CODES = {tag: code for code, tag in enumerate(UPOS, 1)} | {"CONJ": UPOS.index("CCONJ") + 1}  # before 2017
# Entity types of OntoNotes that are no names.
_KINDS = {
    **dict.fromkeys(("DATE", "TIME"), DATE),
    **dict.fromkeys(("CARDINAL", "ORDINAL", "QUANTITY", "PERCENT", "MONEY"), NUMBER),
}
_UNUSED = ["parser", "senter", "lemmatizer", "trainable_lemmatizer", "textcat", "textcat_multilabel"]
_ENTITIES = ["ner", "entity_ruler"]
_PREDICT = {"tok2vec", "morphologizer", "ner"}
"""Factories of components of which none changes what another has found."""
_COLUMNS = ["IDX", "LENGTH", "IS_SPACE", "IS_TITLE", "IS_UPPER", "IS_LOWER", "LOWER", "ENT_TYPE"]


NO_MODEL = (".md", ".pyc")
"""Files of a pipeline's folder that no tag depends on."""


class SpacyPipeline:
    """The layers "pos" (17 universal tags) and "salient" (names, dates, numbers), or one of them.

    Args:
        layers: which of the two. Tags alone come faster; both come in one pass.
        model: a spaCy pipeline by the name under which it is installed, or its folder; None: the shipped one.

    Raises:
        MaskwiseError: a pipeline that is not installed, cannot be loaded, or gives no universal tags.
    """

    imports: ClassVar = ("spacy",)
    """What its workers take two seconds to import."""

    def __init__(self, layers: Sequence[str] = ("pos", "salient"), *, model: str | None = None):
        self.name = layers[0]
        self.layers: Mapping[str, Layer] = {name: {"pos": POS, "salient": SALIENT}[name] for name in layers}
        self.folder = _folder(model)

    @cached_property
    def version(self) -> str:
        """Changes with any file of the pipeline (but its card), with spaCy, and with the rules for salient spans."""
        files = sorted(
            path for path in self.folder.rglob("*") if path.is_file() and path.suffix not in NO_MODEL
        )
        named = [part for path in files for part in (path.relative_to(self.folder).as_posix(), path)]
        return digest("spacy", 2, version("spacy"), VERSION, sorted(self.layers), *named)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its layers; see `Annotator`."""
        cuts = [list(_pieces(text)) for text in texts]
        pieces = (_SURROGATE.sub("\ufffd", text[a:b]) for text, cut in zip(texts, cuts) for a, b in cut)
        if len(self.nlp.vocab) > self._words_at_load + MAX_NEW_WORDS:
            del self.nlp  # and load it again
            self.__dict__.pop("_direct", None)  # holds a component of the old one
        tables = self._tables(pieces)
        return [self._read(text, cut, [next(tables) for _ in cut]) for text, cut in zip(texts, cuts)]

    def _tables(self, pieces: Iterable[str]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int16]]]:
        """For each piece of text what spaCy says of its T tokens: (T, `_COLUMNS`), and (T,) codes of tags."""
        column, direct = self._column, self._direct
        docs = self.nlp.pipe(pieces, batch_size=BATCH, disable=[direct[0].name] if direct else [])
        if direct is None:
            for doc in docs:
                yield doc.to_array(_COLUMNS), self._coded(doc.to_array(column), _CODES)
            return
        from spacy.util import minibatch

        tagger, codes = direct
        for batch in minibatch(docs, BATCH):
            for doc, found in zip(batch, tagger.predict(batch)):
                yield doc.to_array(_COLUMNS), codes[found] if len(doc) else codes[:0]

    def _read(
        self,
        text: str,
        cut: list[tuple[int, int]],
        tables: list[tuple[NDArray[np.uint64], NDArray[np.int16]]],
    ) -> dict[str, CharSpans]:
        """The layers of a text, from the tokens of its pieces."""
        for (begin, _), (table, _) in zip(cut, tables):
            table[:, 0] += np.uint64(begin)
        tokens, code = (np.concatenate(parts) for parts in zip(*tables))
        inked = tokens[:, 2] == 0  # white space has no tag
        place, length, _, title, upper, lower, form, entity = tokens[inked].T
        start, code = place.astype(np.int32), code[inked]
        end = start + length.astype(np.int32)
        found = {}
        if "pos" in self.layers:
            found["pos"] = CharSpans(start[code > 0], end[code > 0], code[code > 0])
        if "salient" in self.layers:
            found["salient"] = salient_spans(
                text, start, end,
                proper=code == _CODES["PROPN"],
                numeral=(code == _CODES["NUM"]) & (form != self.nlp.vocab.strings["one"]),
                content=np.isin(code, [_CODES[name] for name in ("ADJ", "NOUN", "VERB")]),
                title=(title | upper) > 0, lower=lower > 0, entity=self._coded(entity, _KINDS, other=NAME),
            )  # fmt: skip
        return found

    def _coded(
        self, symbols: NDArray[np.uint64], codes: Mapping[str, int], *, other: int = 0
    ) -> NDArray[np.int16]:
        """spaCy's numbers of names → codes of ours; 0 for the empty name."""
        numbers, place = np.unique(symbols, return_inverse=True)
        names = [self.nlp.vocab.strings[int(number)] for number in numbers]
        return np.array([codes.get(name, other) if name else 0 for name in names], dtype=np.int16)[place]

    @cached_property
    def nlp(self) -> Any:
        """The spaCy pipeline, loaded when it is first needed."""
        import spacy

        try:
            nlp = spacy.load(self.folder, exclude=_UNUSED + _ENTITIES * ("salient" not in self.layers))
        except Exception as error:  # whatever its components raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MaskwiseError(f"cannot load the spaCy pipeline in {self.folder}: {first}") from error
        self._words_at_load = len(nlp.vocab)
        _multiply_by_numpy(nlp)
        return nlp

    @cached_property
    def _direct(self) -> tuple[Any, NDArray[np.int16]] | None:
        """The component whose predictions are the tags, and the code of each, where nothing else has a say in them:
        read from its output, tags need not be written into every token, which is a tenth of spaCy's time."""
        factories = self.nlp.pipe_factories
        tagger = next((name for name, factory in factories.items() if factory == "morphologizer"), None)
        if tagger is None or not set(factories.values()) <= _PREDICT:
            return None
        component = self.nlp.get_pipe(tagger)
        tags = np.array([component.cfg["labels_pos"][label] for label in component.labels], dtype=np.uint64)
        return component, self._coded(tags, _CODES)

    @cached_property
    def _column(self) -> str:
        """Where the pipeline has its universal tags: in POS, or in TAG, as some that were trained on UD do."""
        probe = self.nlp("The old house stands in Paris.")
        if any(token.pos_ for token in probe):
            return "POS"
        tags = {token.tag_ for token in probe}
        if tags & {"DET", "NOUN", "PROPN", "PUNCT"}:
            return "TAG"
        what = f"spaCy pipeline {self.folder.name} gives no universal parts of speech"
        do = "take one with a tagger and an attribute ruler, such as en_core_web_sm"
        raise MaskwiseError(what, got=f"tags {sorted(tags)[:5]}", do=do)


def pos(*, model: str | None = None, salient: bool = False) -> SpacyPipeline:
    """Parts of speech; with ``salient`` the salient spans too, in the same pass."""
    return SpacyPipeline(("pos", "salient") if salient else ("pos",), model=model)


def salient(*, model: str | None = None) -> SpacyPipeline:
    """Salient spans: names, dates, numbers."""
    return SpacyPipeline(("salient",), model=model)


def one_pass(specs: Sequence[str]) -> list[str]:
    """The same annotators, but "pos" and "salient" of one pipeline as one: ``pos(salient=True)``."""
    calls = [parse_call(spec) for spec in specs]
    both = [call for call in calls if call.name == "pos" and Call("salient", kwargs=call.kwargs) in calls]
    joined = [Call("salient", kwargs=call.kwargs) for call in both]
    return [
        str(Call("pos", kwargs=call.kwargs | {"salient": True})) if call in both else call.written
        for call in calls
        if call not in joined
    ]


def _multiply_by_numpy(nlp: Any) -> None:
    """Take numpy's matrix product where thinc would take that of BLIS: not on a GPU, nor where it has Apple's."""
    from thinc.api import Model, NumpyOps

    ops = NumpyOps(use_blis=False)
    models = (getattr(component, "model", None) for _, component in nlp.pipeline)
    for node in (node for model in models if isinstance(model, Model) for node in model.walk()):
        if type(node.ops) is NumpyOps:
            node.ops = ops


def _folder(model: str | None) -> Path:
    """Where the files of a pipeline are.

    Raises:
        MaskwiseError: it is not installed.
    """
    if model is None:
        return SHIPPED
    path = Path(model).expanduser()
    if model.isidentifier() and (package := find_spec(model)) and package.origin:
        # A package of spaCy's holds a folder NAME-VERSION with the pipeline in it.
        path = next((file.parent for file in Path(package.origin).parent.glob("*/config.cfg")), path)
    if not (path / "config.cfg").is_file():
        do = f"install it with: python -m spacy download {model}; or give the folder of a pipeline"
        raise MaskwiseError(f"no spaCy pipeline {model!r} is installed", do=do)
    return path


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where to cut a text so that no piece is longer than `PIECE_CHARACTERS`, and no word than `WORD_CHARACTERS`."""
    long = len(max(text.split(), key=len, default="")) >= WORD_CHARACTERS
    stops = [match.end() for match in _LONG_WORD.finditer(text)] if long else []
    start = 0
    for stop in [*stops, len(text)]:
        while stop - start > PIECE_CHARACTERS:
            end, least = start + PIECE_CHARACTERS, start + PIECE_CHARACTERS // 2
            found = ((text.rfind(border, least, end), len(border)) for border in _BORDERS)
            end = next((at + size for at, size in found if at >= 0), end)
            yield start, end
            start = end
        yield start, stop
        start = stop
