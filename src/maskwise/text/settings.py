"""The corpus and tokenizer parts of a recipe: plain values that open the documents and make the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from tokenizers import AddedToken

from maskwise.text.documents import Document, Documents, read_documents
from maskwise.text.tokenizers import load_tokenizer, train_tokenizer
from maskwise.text.worlds import read_world


class CorpusSettings(BaseModel):
    """Where the text comes from and how it is cut into rows.

    >>> CorpusSettings(source="./texts/a.txt", length=128).source
    'texts/a.txt'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = "bundled:wikipedia"
    """A file or folder (.txt, .jsonl, .gz, .parquet), ``hf:NAME`` for a datasets id, the bundled sample, or an
    invented world such as ``factworld(people=300)``."""
    text_field: str = "text"
    limit: int | None = Field(None, ge=1)
    """At most this many documents."""
    length: int = Field(64, ge=4)
    """Positions in a row."""
    layout: Literal["packed", "document"] = "packed"
    """Rows filled with one document after another, or one piece of a document in each row."""
    attention: Literal["document", "row"] = "document"
    """In packed rows, whether each document is read by itself or all of a row as one text."""
    held_out: float = Field(0.02, gt=0, lt=0.5)
    """Share of the documents that is never trained on."""
    layers: tuple[str, ...] = ()
    """Annotators whose layers the rows carry, such as pos and salient; stored("FOLDER") takes finished ones."""

    @field_validator("source")
    @classmethod
    def _one_spelling(cls, value: str) -> str:
        """``./a.txt`` is ``a.txt``, and so the same stage."""
        if world := read_world(value):
            return str(world)
        return value if value.startswith(("hf:", "bundled:")) else os.path.normpath(value)

    @property
    def annotators(self) -> tuple[str, ...]:
        """What makes the layers: those of ``layers``, and a world, which brings its own."""
        return (*self.layers, self.source) if read_world(self.source) else self.layers

    @property
    def row_layout(self) -> str:
        """The layout in the words of ``text.Rows``."""
        return "joined" if (self.layout, self.attention) == ("packed", "row") else self.layout

    @property
    def title(self) -> str:
        """What records call the text."""
        return self.source if self.limit is None else f"{self.source}, first {self.limit}"

    def documents(self) -> Documents:
        """The documents, to be read anew with each iteration.

        Raises:
            MaskwiseError: no such source, or none that can be read.
        """
        return read_documents(self.source, text_field=self.text_field, limit=self.limit)


class TokenizerSettings(BaseModel):
    """A tokenizer by name, or one that is trained on the corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME``. None: the pre-trained model's own, or a new one."""
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    vocab_size: int = Field(2048, ge=64)
    lowercase: bool = True
    sentinels: int = Field(0, ge=0)
    """Tokens <extra_id_0>, <extra_id_1>, … beside the vocabulary of a new tokenizer, for the corruption t5."""

    def tokenizer(self, documents: Iterable[Document]) -> Any:
        """The tokenizer: loaded where these settings name one, and otherwise trained on the documents."""
        if self.name:
            return load_tokenizer(self.name, needs_mask=False)  # whoever shows masks asks for them
        texts = (document.text for document in documents)
        tokenizer = train_tokenizer(
            texts, kind=self.kind, vocab_size=self.vocab_size, lowercase=self.lowercase
        )
        tokenizer.add_tokens([AddedToken(f"<extra_id_{i}>", special=True) for i in range(self.sentinels)])
        return tokenizer
