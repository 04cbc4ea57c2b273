"""The corpus and tokenizer sections of a recipe, and folders of text prepared for training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from tokenizers import AddedToken

from maskwise.base import folders
from maskwise.base.effects import (
    Nothing,
    Only,
    OrOff,
    Settings,
    Several,
    Weights,
    Whole,
    without_unset,
)
from maskwise.base.errors import MaskwiseError, finite_number
from maskwise.text.changed import Origins
from maskwise.text.documents import USUAL, Document, Documents, Joined
from maskwise.text.layers import Layered
from maskwise.text.pieces import LONGEST_ROW, Pieces, Tokens, read_pieces, tokenise
from maskwise.text.rows import Rows, holds_out, split
from maskwise.text.source import FieldNames, Shard, shards_of
from maskwise.text.stream import COUNTED_CHARACTERS, BlockMaker, Stream, read_beginning
from maskwise.text.token_rows import TokenRows
from maskwise.text.tokenizers import MOST_TOKENS, load_tokenizer, train_tokenizer
from maskwise.text.words import word_rule

# Importing transformers takes two seconds, and reading documents does not need it.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


class CorpusSettings(Settings):
    """The source of the text, and how the text is cut into rows.

    >>> CorpusSettings(source="./texts/a.txt", length=128).source
    'texts/a.txt'
    >>> CorpusSettings(source={"a.txt": 2, "b.txt": 1}).shares([500, 500])
    {'a.txt': 0.6666666666666666, 'b.txt': 0.3333333333333333}
    >>> CorpusSettings(source=["a.txt", "b.txt"], temperature=2).shares([400, 100])
    {'a.txt': 0.6666666666666666, 'b.txt': 0.3333333333333333}
    """

    source: Weights[str | dict[str, float] | tuple[str, ...]] = "bundled:wikipedia"
    """A file or folder (.txt, .jsonl, .gz, .parquet), ``hf:NAME`` for a data set on the hub, the
    bundled sample. Several sources are mixed by weights, ``{FILE: 2, OTHER: 1}``, or by their
    sizes, ``[FILE, OTHER]``. ``{seed}`` in a name is the seed of a run."""
    temperature: Weights[float | None] = Field(None, ge=0.1)
    """T, for a list of sources: the share of a source is proportional to size ** (1/T). None is the
    same as 1."""
    tokens: Weights[str | None] = Field(None, min_length=1)
    """For a corpus of token ids instead of texts, the tokenizer that made them: a folder, hub id,
    ``bundled:encoder`` or ``package:NAME``. The ids are in the field ``input_ids``, or in .npy and
    .npz files."""
    text_field: Weights[str] = "text"
    """The field that holds the text, in files with fields; ``article.body`` is a nested field. If
    no field is called ``text``, that with the longest texts is read, except by a stream."""
    text_per: Weights[Literal["auto", "line", "block"]] = "auto"
    """How plain text is cut into documents: at each line break, or at blank lines (blocks).
    ``auto`` chooses by the beginning of the file."""
    limit: Weights[int | None] = Field(None, ge=1)
    """Maximum number of documents from each source."""
    length: Weights[int] = Field(64, ge=4, le=LONGEST_ROW)
    """Number of positions in a row."""
    layout: Weights[Literal["packed", "document"]] = "packed"
    """``packed`` puts several documents in a row; ``document`` puts only a part of one document."""
    attention: Annotated[Weights[Literal["document", "row"]], Only("layout", ("packed",))] = (
        "document"
    )
    """Whether attention in packed rows stays within each document or spans the whole row."""
    held_out: Weights[float] = Field(0.02, gt=0, lt=0.5)
    """Share of the documents that is held out from training."""
    group_field: Weights[str | None] = Field(None, min_length=1)
    """A field with the group of each document, such as its author, patient or cluster. Either all
    documents of a group are held out or none."""
    stream: Weights[bool] = False
    """Whether to read the text during training, for text that is too large to prepare. The source
    is a file, a folder, a pattern such as ``texts/*.parquet``, or ``hf:NAME``.
    """
    shuffle: Weights[OrOff[float]] = Field(1.0, ge=0, le=1024)
    """Megabytes of text in a chunk of a stream. Rows are shuffled within a chunk, and the files are
    read in random order. With 0, rows and files keep their order."""
    repeat: Weights[bool] = True
    """Whether to read a stream again if it ends before training does. If false, raise an error."""
    words: Weights[Annotated[str, AfterValidator(word_rule)]] = "auto"
    """What a word is: ``auto`` (as in BERT), ``spaces`` (between white space), ``token`` (each
    token), ``regex:PATTERN`` (each match), or a segmenter: ``jieba`` (Chinese), ``fugashi``
    (Japanese), ``pythainlp`` (Thai), or one of your own."""
    layers: Weights[Several[str]] = ()
    """Annotators, such as pos (parts of speech). Their values for tokens are kept with the rows as
    "layers". stored("FOLDER") reads saved annotations."""

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, dump, "group_field", "tokens")

    @field_validator("source", mode="before")
    @classmethod
    def _normalised(cls, source: object) -> object:
        """Normalise source names. A mix of one source becomes this source."""
        if isinstance(source, str):
            if not source.strip():
                raise MaskwiseError(
                    "corpus.source names no text",
                    got=repr(source),
                    allowed="a file, a folder, bundled:wikipedia, …",
                    do="for the current folder, write corpus.source=.",
                )
            return _one_spelling(source)
        if not isinstance(source, dict | list | tuple):
            return source
        if not source:
            raise MaskwiseError(
                "the mix names no source",
                got=source,
                allowed="{FILE: 2, OTHER: 1}",
            )
        for name in source:
            if not isinstance(name, str) or not name.strip():
                raise MaskwiseError(
                    "a source name must be text",
                    got=repr(name),
                    allowed="a file, bundled:wikipedia, …",
                )
        # Names are compared after normalisation, because ./a.txt and a.txt are the same source.
        names = tuple(map(_one_spelling, source))
        if len(set(names)) < len(names):
            raise MaskwiseError("a mix names a source twice", got=", ".join(names))
        if isinstance(source, dict):
            for name, weight in source.items():
                finite_number(f"the weight of {name} in a mix", weight, least=0)
            if not any(source.values()):
                raise MaskwiseError("the weights of a mix are all 0", got=[*source.values()])
        if len(names) == 1:
            return names[0]
        if isinstance(source, dict):
            return dict(zip(names, source.values()))
        return names

    @model_validator(mode="after")
    def _consistent(self) -> CorpusSettings:
        if self.temperature is not None and not isinstance(self.source, tuple):
            raise MaskwiseError(
                "temperature needs a list of sources",
                got=self.source,
                do="list the sources without weights: corpus.source: [FILE, OTHER]",
            )
        if self.stream:
            self._refuse("a stream cannot use {}", "limit", "temperature")
        else:
            self._refuse("{} is only for streams", "shuffle", "repeat")
        return self

    def _refuse(self, what: str, *names: str) -> None:
        """Raise an error if any of these settings differs from its default."""
        for name in names:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise MaskwiseError(
                    what.format(name),
                    got=value,
                    do=f"leave out corpus.{name}, or change corpus.stream",
                )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources, in order."""
        if isinstance(self.source, str):
            return (self.source,)
        return tuple(self.source)

    def shares(self, sizes: Sequence[int]) -> dict[str, float]:
        """Return the share of each source among the training rows, keyed by name.

        Args:
            sizes: the number of rows from each source.
        """
        if isinstance(self.source, dict):
            weights = list(self.source.values())
        else:
            weights = [size ** (1 / (self.temperature or 1)) for size in sizes]
        return {name: weight / sum(weights) for name, weight in zip(self.sources, weights)}

    @property
    def text(self) -> CorpusSettings:
        """The settings without the weights of a mix, which do not affect the rows."""
        if isinstance(self.source, str):
            return self
        return self.model_copy(update={"source": self.sources, "temperature": None})

    @property
    def row_layout(self) -> str:
        """The layout for ``text.Rows``: packed, document, or joined (attention to whole rows)."""
        if self.layout == "packed" and self.attention == "row":
            return "joined"
        return self.layout

    @property
    def title(self) -> str:
        """The name of the text in records."""
        title = " + ".join(self.sources)
        if self.limit is None:
            return title
        return f"{title}, first {self.limit}"

    @property
    def record_fields(self) -> FieldNames:
        """The names of a record's fields. Token ids are in ``input_ids``, if no field is named."""
        text = "input_ids" if self.tokens and self.text_field == "text" else self.text_field
        rows = TokenRows(self.tokens) if self.tokens else None
        # The processes that read a stream must all read the same field.
        may_differ = text == USUAL[0] and not self.stream
        return FieldNames(text, "id", self.text_per, self.group_field or "", rows, may_differ)

    def shards(self) -> dict[str, list[Shard]]:
        """Return a stream's shards, keyed by source.

        Raises:
            MaskwiseError: a source does not exist, or cannot be read as a stream.
        """
        return {name: shards_of(name, self.record_fields) for name in self.sources}

    def block_maker(self, tokenizer: PreTrainedTokenizerFast, layers: Layered | None) -> BlockMaker:
        """Return the callable that makes rows from the chunks of a stream."""
        fields = self.record_fields
        return BlockMaker(
            tokenizer, self.length, self.row_layout, self.held_out, fields, layers, self.words
        )

    def parts(self) -> list[Documents]:
        """Return the documents of each source.

        Raises:
            MaskwiseError: a source does not exist, or cannot be read.
        """
        fields = self.record_fields
        parts = []
        for source in self.sources:
            shards = shards_of(source, fields, stream=self.stream)
            part = Documents(
                shards, name=source, fields=fields, limit=self.limit, keep_repeated=self.stream
            )
            parts.append(part)
        return parts

    def training_documents(self) -> Iterator[Document]:
        """Yield the documents that are not held out from training, with the rule of the rows."""
        for document in self.documents():
            if not holds_out(document, self.held_out):
                yield document

    def held_out_documents(self) -> Iterator[Document]:
        """Yield the documents that are held out from training."""
        for document in self.documents():
            if holds_out(document, self.held_out):
                yield document

    def documents(self) -> Documents:
        """Return the documents of all ``parts``, which can be read several times."""
        parts = self.parts()
        if len(parts) == 1:
            return parts[0]
        return Joined(parts)


def _one_spelling(source: str) -> str:
    """Return the normalised name of a source: ``./a.txt`` becomes ``a.txt``."""
    if source.startswith(("hf:", "bundled:")):
        return source
    return os.path.normpath(source)


Value = TypeVar("Value")
New = Annotated[
    Weights[Value],
    Only("name", (None,)),
    Only("/model.pretrained", (None,)),
    Only("/corpus.tokens", (None,)),
]
"""A setting of a new tokenizer."""


class TokenizerSettings(Settings):
    """A tokenizer that is loaded by name, or a new tokenizer that is trained on the corpus."""

    name: Weights[str | None] = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME``. If None, the tokenizer of the
    pre-trained model is used, or a new tokenizer if training starts from random weights."""
    kind: New[Literal["wordpiece", "bpe", "letter", "k-mer"]] = "wordpiece"
    """Tokens of a new tokenizer: word pieces, byte pairs, single letters, or ``k`` letters."""
    k: Annotated[New[int], Only("kind", ("k-mer",))] = Field(3, ge=1, le=12)
    """Letters per token, for the kind ``k-mer``."""
    vocab_size: New[int] = Field(2048, ge=64, le=MOST_TOKENS)
    """Maximum number of tokens in a new tokenizer."""
    lowercase: New[bool] = True
    """Whether a new tokenizer lowercases text and, with ``wordpiece``, removes accents."""
    sentinels: New[Whole] = 0
    """Number of extra tokens ``<extra_id_0>``, … in a new tokenizer, for the corruption t5."""
    replaces: Annotated[
        Nothing[bool], Only("name", but=(None,)), Only("/model.pretrained", but=(None,))
    ] = False
    """Whether ``name`` may be another tokenizer than that of the pre-trained model, whose
    embeddings then belong to other tokens until they are trained. Otherwise it is refused."""

    def tokenizer(self, documents: Iterable[Document]) -> PreTrainedTokenizerFast:
        """Load the tokenizer if it has a name, or train it on the documents."""
        if self.name:
            # Mask tokens and word boundaries are checked later, by the code that needs them.
            return load_tokenizer(self.name, needs_mask=False, needs_words=False)
        texts = (document.text for document in documents)
        tokenizer = train_tokenizer(
            texts, kind=self.kind, vocab_size=self.vocab_size, lowercase=self.lowercase, k=self.k
        )
        sentinels = []
        for number in range(self.sentinels):
            sentinels.append(AddedToken(f"<extra_id_{number}>", special=True))
        tokenizer.add_tokens(sentinels)
        return tokenizer


# A folder of prepared text has all that is made before training: the tokenizer, the tokenised
# documents ("pieces"), and the training and held-out rows. The folder of a stream has the
# tokenizer, the held-out rows and token counts, because training rows are made during training.
# -------------------------------------------------------------------------------------------

TRAINING = "training"
HELD_OUT = "held_out"
PIECES = "pieces"
TOKENIZER = "tokenizer"
STREAM = "stream.json"
ORIGINS = "origins.json"
"""The file that says from which rows of the model those of a changed tokenizer are made."""

LiveLayers = Callable[[Sequence[str]], Layered]
"""A function that builds, from names of annotators, one annotator that computes all their layers.
"""


@dataclass(eq=False)
class Prepared:
    """A tokenizer, and training and held-out text in rows of the same length and layout."""

    tokenizer: PreTrainedTokenizerFast
    training: Rows | Stream
    held_out: Rows
    origins: tuple[Origins, ...] = ()
    """For each change of the model, the rows of its tokens."""

    @classmethod
    def make(
        cls,
        folder: Path,
        tokens: Iterable[Tokens],
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        layout: str,
        held_out: float,
        origins: Sequence[Origins] = (),
    ) -> Prepared:
        """Write the folder of a corpus batch by batch and open it. An old folder is replaced.

        Raises:
            MaskwiseError: the corpus is not valid (see `read_pieces` and `split`), or the folder
                cannot be written.
        """

        def fill(partial: Path) -> None:
            pieces = read_pieces(tokens, tokenizer=tokenizer, length=length, out=partial / PIECES)
            training, held = split(pieces, held_out=held_out, layout=layout)
            training.save(partial / TRAINING)
            held.save(partial / HELD_OUT)
            folders.write_folder(partial / TOKENIZER, tokenizer.save_pretrained)
            _write_origins(partial, origins)

        folders.write_folder(folder, fill)
        return cls.open(folder)

    @classmethod
    def begin(
        cls,
        folder: Path,
        corpus: CorpusSettings,
        tokenizer: PreTrainedTokenizerFast,
        *,
        layers: Layered | None = None,
        origins: Sequence[Origins] = (),
        counted: int = COUNTED_CHARACTERS,
    ) -> dict[str, object]:
        """Write the folder of a stream; read only the beginning of the stream.

        Args:
            counted: the number of training characters from which token frequencies are estimated.

        Returns:
            A dict with the numbers ``read_characters`` and ``held_out_rows``, and with
            ``skipped``, the numbers of skipped records by reason.

        Raises:
            MaskwiseError: the beginning has no training text or no held-out text, or the folder
                cannot be written.
        """
        maker = corpus.block_maker(tokenizer, layers)
        training, held_out, facts = read_beginning(corpus.shards(), maker, counted)

        def fill(partial: Path) -> None:
            held = tokenise(held_out, tokenizer, layers=layers, words=corpus.words)
            pieces = read_pieces(
                held, tokenizer=tokenizer, length=corpus.length, out=partial / PIECES
            )
            Rows.of(pieces, corpus.row_layout).save(partial / HELD_OUT)
            # The output bias is initialised from the token frequencies.
            # Ids may have gaps, so that the largest is not the number of tokens.
            largest = max(tokenizer.get_vocab().values())
            counts = np.zeros(largest + 1, np.int64)
            for tokens in tokenise(training, tokenizer, words=corpus.words):
                counts += np.bincount(tokens.columns["input_ids"], minlength=len(counts))
            stream = {"corpus": corpus.model_dump(mode="json"), "counts": counts.tolist()}
            folders.write_json(partial / STREAM, stream)
            folders.write_folder(partial / TOKENIZER, tokenizer.save_pretrained)
            _write_origins(partial, origins)

        folders.write_folder(folder, fill)
        return {**facts, "held_out_rows": len(cls.open(folder).held_out)}

    @classmethod
    def open(cls, folder: Path, *, live: LiveLayers | None = None) -> Prepared:
        """Open a folder. Its arrays are memory-mapped.

        A process compares the files of a folder with the checksums in its manifest only once.

        Args:
            folder: the folder that `make` or `begin` wrote.
            live: for a stream with layers, a function that builds the annotator.

        Raises:
            MaskwiseError: the folder is damaged, or a stream's files are missing.
        """
        # A folder that was written again is checked again, so the time of writing is an argument.
        manifest = folder / folders.MANIFEST
        wrong = _damage(folder, manifest.stat().st_mtime_ns if manifest.exists() else 0)
        if wrong:
            raise MaskwiseError(
                f"the prepared text in {folder} is damaged",
                got=wrong,
                do="run the same command again to prepare the text again",
            )
        # Maskers check whether their corruption needs a mask token: that of T5 does not.
        tokenizer = load_tokenizer(str(folder / TOKENIZER), needs_mask=False, needs_words=False)
        pieces = Pieces.load(folder / PIECES, tokenizer=tokenizer)
        held_out = Rows.load(folder / HELD_OUT, pieces)
        # Instead of training rows, a stream's folder has the settings for reading the stream.
        stream = folders.read_json(folder / STREAM)
        origins = read_origins(folder)
        if stream is None:
            training = Rows.load(folder / TRAINING, pieces)
            return cls(tokenizer, training, held_out, origins)
        corpus = CorpusSettings(**stream["corpus"])
        layers = live(corpus.layers) if live and corpus.layers else None
        streamed = Stream(
            corpus.shards(),
            corpus.block_maker(tokenizer, layers),
            corpus.shuffle,
            corpus.repeat,
            np.array(stream["counts"]),
        )
        return cls(tokenizer, streamed, held_out, origins)


def _write_origins(folder: Path, rows: Sequence[Origins]) -> None:
    if rows:
        folders.write_json(folder / ORIGINS, {"changes": [each.plain() for each in rows]})


def read_origins(folder: Path) -> tuple[Origins, ...]:
    """Return the rows of the tokens of a prepared text, for each change of the model."""
    plain = folders.read_json(folder / ORIGINS) or {}
    return tuple(map(Origins.from_plain, plain.get("changes", ())))


@cache
def _damage(folder: Path, _written: int) -> str | None:
    return folders.damage(folder)
