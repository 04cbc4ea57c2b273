"""A stream: rows that are made of text while a model is trained on it.

A chunk of a shard (shards.py) becomes a *block*: its documents are tokenised, cut into pieces and
packed into rows by themselves. So a block is a function of its chunk alone: any process may make
it, nothing is carried over to the next one, and a run that goes on needs no more than the place of
a chunk and a number of rows. The price is one row that may be partly filled, in the thousands of a
block.

Held-out text is told by the hash of what a document says, not of its name: a text that comes again,
under whatever name, stays on its side, though nothing remembers it. And as nothing does, repeated
texts are not left out of a stream.

Cost: that of reading, tokenising and packing, some 2 MB of text a second and process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document, Documents
from maskwise.text.layers import Layered
from maskwise.text.pieces import Ints, PieceBatch, read_pieces
from maskwise.text.readers import Fields, PartName, Record
from maskwise.text.rows import Rows, is_held_out
from maskwise.text.shards import BEGINNING, Chunk, Shard
from maskwise.text.tokenizers import tokenise
from maskwise.text.words import text_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MEGABYTE = 1 << 20


class Block(NamedTuple):
    """What was made of a chunk.

    Attributes:
        rows: None where there is no text to be trained on.
        documents: how many are in the rows. skipped: how many were left out, by the reason.
    """

    rows: Rows | None
    documents: int
    skipped: Counter[str]


@dataclass(frozen=True, eq=False)
class BlockMaker:
    """Makes blocks of chunks, in whatever process; it can be pickled.

    Attributes:
        length: of a row, in tokens. layout: as for ``Rows.of``.
        held_out: share of the documents that are left out.
        layers: what makes layers of a text besides its words.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int
    layout: str = "packed"
    held_out: float = 0.0
    fields: Fields = field(default_factory=Fields)
    layers: Layered | None = None

    def __call__(self, chunk: Chunk) -> Block:
        """The block of a chunk.

        Raises:
            MaskwiseError: what `tokenise` and `read_pieces` refuse.
        """
        documents = documents_of(chunk, self.fields)
        kept = [each for each in documents if not self.holds_out(each)]
        tokens = [
            each
            for each in tokenise(kept, self.tokenizer, layers=self.layers)
            if len(each.input_ids)
        ]
        if not tokens:
            return Block(None, 0, documents.skipped)
        pieces = read_pieces(tokens, tokenizer=self.tokenizer, length=self.length)
        return Block(Rows.of(pieces, self.layout), len(kept), documents.skipped)

    def holds_out(self, document: Document) -> bool:
        """Whether a document is on the held-out side: by its text, so that repeated ones go
        together.

        Parts of a long document go by its name."""
        key = document.id.whole if isinstance(document.id, PartName) else document.text
        return bool(self.held_out) and bool(is_held_out(text_id(key), self.held_out))


@dataclass(frozen=True, eq=False)
class Stream:
    """Text to be trained on that is read as it is needed.

    Attributes:
        sources: by name, the shards of each source of a mix; one source where there is no mix.
        maker: makes blocks of their chunks.
        shuffle: megabytes of text whose rows are shuffled together (the order of shards is random
            too); 0: rows and shards come in their order.
        repeat: whether the text begins again where it ends before the training does.
        counts: (V,) how often each token stands in the first text of the stream.

    >>> from maskwise.text import bundled_path, train_tokenizer
    >>> from maskwise.text.shards import shards_of
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> stream = Stream({"trivia": shards_of(bundled_path("trivia"))}, BlockMaker(tokenizer, length=32))
    >>> stream.length, stream.layout
    (32, 'packed')
    """

    sources: Mapping[str, Sequence[Shard]]
    maker: BlockMaker
    shuffle: float = 1.0
    repeat: bool = True
    counts: Ints | None = None

    @property
    def length(self) -> int:
        """L, tokens of a row."""
        return self.maker.length

    @property
    def layout(self) -> str:
        """The layout of the rows, as for ``Rows.of``."""
        return self.maker.layout

    @property
    def chunk_size(self) -> int:
        """Bytes of text that make a block."""
        return max(1, round((self.shuffle or 1) * MEGABYTE))

    def laid(self, layout: str) -> Stream:
        """The same text in another layout. The names of its pieces, and so their masks, stay."""
        return (
            self
            if layout == self.layout
            else replace(self, maker=replace(self.maker, layout=layout))
        )

    def unigram_counts(self, vocab_size: int) -> Ints:
        """(V,) how often every token stands in the first text of the stream; the rest is not
        counted.

        Raises:
            MaskwiseError: a token outside the vocabulary.
        """
        counts = np.zeros(0, np.int64) if self.counts is None else self.counts
        if len(counts) > vocab_size and counts[vocab_size:].any():
            what, worst = "token id outside the vocabulary", int(np.flatnonzero(counts)[-1])
            do = "use the tokenizer that made the tokens"
            raise MaskwiseError(what, got=worst, allowed=f"< {vocab_size}", do=do)
        return np.pad(counts[:vocab_size], (0, max(0, vocab_size - len(counts))))


def documents_of(chunk: Chunk, fields: Fields) -> Documents:
    """The documents of a chunk."""
    return Documents(chunk.records, name=chunk.name, fields=fields, keep_repeated=True)


def read_shards(shards: Sequence[Shard], fields: Fields, *, name: str) -> Documents:
    """The documents of all shards, one after the other, to be read anew with each iteration."""

    def records() -> Iterator[Record]:
        for shard in shards:
            for chunk, _ in shard.chunks(BEGINNING, MEGABYTE):
                yield from chunk.records()

    return Documents(records, name=name, fields=fields, keep_repeated=True)


def joined(batches: Sequence[PieceBatch]) -> PieceBatch:
    """The rows of several batches as those of one."""
    if len(batches) == 1:
        return batches[0]
    counts = [int(batch.rows[-1]) + 1 for batch in batches]
    before = np.cumsum([0, *counts[:-1]])
    return batches[0]._replace(
        columns={
            name: np.concatenate([batch.columns[name] for batch in batches])
            for name in batches[0].columns
        },
        lengths=np.concatenate([batch.lengths for batch in batches]),
        example_ids=np.concatenate([batch.example_ids for batch in batches]),
        rows=np.concatenate([batch.rows + n for batch, n in zip(batches, before)]),
    )
