"""The corpus and tokenizer parts of a recipe: plain values that open the documents and make the
tokenizer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from tokenizers import AddedToken

from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document, Documents, Joined, read_documents
from maskwise.text.readers import Fields
from maskwise.text.shards import Shard, rename_alike, shards_of
from maskwise.text.stream import read_shards
from maskwise.text.tokenizers import load_tokenizer, train_tokenizer
from maskwise.text.words import word_rule
from maskwise.text.worlds import read_world


class CorpusSettings(BaseModel):
    """Where the text comes from and how it is cut into rows.

    >>> CorpusSettings(source="./texts/a.txt", length=128).source
    'texts/a.txt'
    >>> CorpusSettings(source={"a.txt": 2, "b.txt": 1}).shares([500, 500])
    {'a.txt': 0.6666666666666666, 'b.txt': 0.3333333333333333}
    >>> CorpusSettings(source=["a.txt", "b.txt"], temperature=2).shares([400, 100])
    {'a.txt': 0.6666666666666666, 'b.txt': 0.3333333333333333}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | dict[str, float] | tuple[str, ...] = "bundled:wikipedia"
    """A file or folder (.txt, .jsonl, .gz, .parquet), ``hf:NAME`` for a datasets id, the bundled
    sample, or an invented world such as ``factworld(people=300)``. Several are mixed: ``{FILE: 2,
    OTHER: 1}`` by weights, or ``[FILE, OTHER]`` in proportion to their sizes."""
    temperature: float | None = Field(None, gt=0)
    """For a list of sources: shares in proportion to their sizes to the power 1/T. None: 1."""
    text_field: str = "text"
    """Where the text is, in files with fields; ``article.body`` is a field in an object."""
    text_per: Literal["auto", "line", "block"] = "auto"
    """What a document is in plain text: a line, or a block between blank lines. ``auto``: its
    beginning tells.
    """
    limit: int | None = Field(None, ge=1)
    """At most this many documents, of each source."""
    length: int = Field(64, ge=4)
    """Positions in a row."""
    layout: Literal["packed", "document"] = "packed"
    """Rows filled with one document after another, or one piece of a document in each row."""
    attention: Literal["document", "row"] = "document"
    """In packed rows, whether each document is read by itself or all of a row as one text."""
    held_out: float = Field(0.02, gt=0, lt=0.5)
    """Share of the documents that is never trained on."""
    stream: bool = False
    """Read the text while it is trained on, and prepare no more of it than its beginning: for text
    that is too large to be prepared, in files (a folder, or a pattern such as ``texts/*.parquet``)
    or behind ``hf:NAME``.
    """
    shuffle: float = Field(1.0, ge=0, le=1024)
    """In a stream, megabytes of text whose rows are shuffled together; the order of the files is
    random too. 0: rows and files come in their order."""
    repeat: bool = True
    """Whether a stream begins again where it ends before the training does; false: that is an
    error.
    """
    words: str = "auto"
    """How words are found: ``auto`` (as BERT does), ``spaces``, ``token`` (each token is one) or
    ``regex:PATTERN``.
    """
    layers: tuple[str, ...] = ()
    """Annotators whose layers the rows carry, such as pos and salient; stored("FOLDER") takes
    finished ones.
    """

    @field_validator("source", mode="before")
    @classmethod
    def _checked(cls, value: Any) -> Any:
        """``./a.txt`` is ``a.txt``, and so the same stage; a mix of one source is that source."""
        if isinstance(value, str):
            return _one_spelling(value)
        if not isinstance(value, Mapping | list | tuple):
            return value
        names = [_one_spelling(name) if isinstance(name, str) else name for name in value]
        if not names:
            raise MaskwiseError(
                "a mix that names no source", got=value, allowed="{FILE: 2, OTHER: 1}"
            )
        if wrong := [name for name in names if not isinstance(name, str) or name == "."]:
            raise MaskwiseError(
                "a source is named by text",
                got=repr(wrong[0]),
                allowed="a file, bundled:wikipedia, …",
            )
        if len(set(names)) < len(names):
            raise MaskwiseError("a mix names a source twice", got=", ".join(names))
        weights = [*value.values()] if isinstance(value, Mapping) else [1.0]
        for name, weight in zip(names, weights):
            if (
                isinstance(weight, bool)
                or not isinstance(weight, int | float)
                or not 0 <= weight < math.inf
            ):
                raise MaskwiseError(
                    f"the weight of {name} in a mix", got=repr(weight), allowed="a number ≥ 0"
                )
        if not sum(weights):
            raise MaskwiseError(
                "the weights of a mix sum to nothing", got=weights, allowed="at least one above 0"
            )
        if len(names) == 1:
            return names[0]
        return dict(zip(names, weights)) if isinstance(value, Mapping) else tuple(names)

    @field_validator("words")
    @classmethod
    def _word_rule(cls, value: str) -> str:
        return word_rule(value)

    @model_validator(mode="after")
    def _weighed_once(self) -> CorpusSettings:
        if self.temperature is not None and not isinstance(self.source, tuple):
            do = "list the sources without weights: corpus.source: [FILE, OTHER]"
            raise MaskwiseError("temperature is for a list of sources", got=self.source, do=do)
        return self

    @model_validator(mode="after")
    def _streamed(self) -> CorpusSettings:
        if not self.stream:
            for name in ("shuffle", "repeat"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    do = f"set corpus.stream: true, or leave out corpus.{name}"
                    raise MaskwiseError(f"{name} is for streams", got=getattr(self, name), do=do)
            return self
        if self.words != "auto":
            do = "leave out corpus.words, or corpus.stream"
            raise MaskwiseError(
                "a stream finds its words as auto does", got=f"words {self.words}", do=do
            )
        if self.limit is not None:
            do = "leave out corpus.limit: training.steps says how much is read"
            raise MaskwiseError(
                "a stream is not counted, so it has no limit", got=self.limit, do=do
            )
        if self.temperature is not None:
            what = "the sources of a stream are not counted, so they have no temperature"
            raise MaskwiseError(
                what, got=self.temperature, do="give weights: corpus.source: {FILE: 2, OTHER: 1}"
            )
        for source in self.sources:
            if read_world(source):
                do = "leave out corpus.stream: its texts are few"
                raise MaskwiseError("an invented world is no stream", got=source, do=do)
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the corpora, in order."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    def shares(self, sizes: Sequence[int]) -> dict[str, float]:
        """The share of each source among the rows that are trained on, by name.

        Args:
            sizes: of the sources, in rows.
        """
        if isinstance(self.source, dict):
            weights = [*self.source.values()]
        else:
            weights = [size ** (1 / (self.temperature or 1)) for size in sizes]
        return {name: weight / sum(weights) for name, weight in zip(self.sources, weights)}

    @property
    def text(self) -> CorpusSettings:
        """The settings without the weights of a mix: all that the rows depend on."""
        mixed = not isinstance(self.source, str)
        return (
            self.model_copy(update={"source": self.sources, "temperature": None}) if mixed else self
        )

    @property
    def annotators(self) -> tuple[str, ...]:
        """What makes the layers: those of ``layers``, and a world, which brings its own unless it
        is in a mix.
        """
        world = read_world(self.source) if isinstance(self.source, str) else None
        return (*self.layers, str(world)) if world else self.layers

    @property
    def row_layout(self) -> str:
        """The layout in the words of ``text.Rows``."""
        return "joined" if (self.layout, self.attention) == ("packed", "row") else self.layout

    @property
    def title(self) -> str:
        """What records call the text."""
        title = " + ".join(self.sources)
        return title if self.limit is None else f"{title}, first {self.limit}"

    @property
    def record_fields(self) -> Fields:
        """Under which names a record holds its text and its own name."""
        return Fields(self.text_field, per=self.text_per)

    def shards(self) -> dict[str, list[Shard]]:
        """The shards of a stream, by source.

        Raises:
            MaskwiseError: no such source, or one that cannot be read bit by bit.
        """
        shards = {name: shards_of(name, self.record_fields) for name in self.sources}
        rename_alike([shard for part in shards.values() for shard in part])
        return shards

    def parts(self) -> list[Documents]:
        """The documents of each source.

        Raises:
            MaskwiseError: no such source, or none that can be read.
        """
        if self.stream:
            return [
                read_shards(shards, self.record_fields, name=name)
                for name, shards in self.shards().items()
            ]
        return [
            read_documents(
                source, text_field=self.text_field, text_per=self.text_per, limit=self.limit
            )
            for source in self.sources
        ]

    def documents(self) -> Documents:
        """The documents of all sources, to be read anew with each iteration.

        Raises:
            MaskwiseError: no such source, or none that can be read.
        """
        parts = self.parts()
        return Joined(parts) if len(parts) > 1 else parts[0]


def _one_spelling(source: str) -> str:
    """A source as it is written everywhere."""
    if world := read_world(source):
        return str(world)
    return source if source.startswith(("hf:", "bundled:")) else os.path.normpath(source)


class TokenizerSettings(BaseModel):
    """A tokenizer by name, or one that is trained on the corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME``. None: the pre-trained model's own,
    or a new one.
    """
    kind: Literal["wordpiece", "bpe", "letter", "k-mer"] = "wordpiece"
    """The tokens of a new tokenizer: pieces of words, bytes, letters, or parts of ``k`` letters."""
    k: int = Field(3, ge=1, le=12)
    vocab_size: int = Field(2048, ge=64)
    lowercase: bool = True
    sentinels: int = Field(0, ge=0)
    """Tokens <extra_id_0>, <extra_id_1>, … beside the vocabulary of a new tokenizer, for the
    corruption t5.
    """

    def tokenizer(self, documents: Iterable[Document]) -> Any:
        """The tokenizer: loaded where these settings name one, and otherwise trained on the
        documents.
        """
        if self.name:
            # Whoever shows masks asks for them, and whoever masks words asks for words.
            return load_tokenizer(self.name, needs_mask=False, needs_words=False)
        texts = (document.text for document in documents)
        tokenizer = train_tokenizer(
            texts, kind=self.kind, vocab_size=self.vocab_size, lowercase=self.lowercase, k=self.k
        )
        tokenizer.add_tokens(
            [AddedToken(f"<extra_id_{i}>", special=True) for i in range(self.sentinels)]
        )
        return tokenizer
