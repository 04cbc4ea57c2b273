"""Streams: text that becomes rows while a model is trained on it.

A *shard* is a file of the stream, or a shard of a `datasets.IterableDataset`. A *chunk* is a run of
records of a shard, of about one size. Its end depends only on the shard, the size and its
beginning. The documents of a chunk are tokenised, cut and packed without those of other chunks, and
become a *block*. So any process can make it, and a resumed run needs only the place of a chunk and
a number of rows. The price is one partly filled row among the thousands of a block.

The hash of its text, not of its name, decides whether a document is held out, so that repeated
texts stay on one side. They are not dropped, since nothing remembers them.

Cost: some 2 MB of text a second and process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskwise.text.documents import Document, Documents
from maskwise.text.layers import Layered
from maskwise.text.pieces import Ints, PieceBatch, read_pieces
from maskwise.text.readers import (
    Fields,
    PartName,
    Record,
)
from maskwise.text.rows import Rows, held_out_below, require_in_vocabulary
from maskwise.text.shards import BEGINNING, MEGABYTE, Chunk, Shard
from maskwise.text.tokenizers import tokenise
from maskwise.text.words import text_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Block(NamedTuple):
    """The rows of a chunk.

    Attributes:
        rows: the rows; None if the chunk has no text to train on.
        documents: number of documents in the rows.
        skipped: number of documents that were dropped, by reason.
    """

    rows: Rows | None
    documents: int
    skipped: Counter[str]


@dataclass(frozen=True, eq=False)
class BlockMaker:
    """Make blocks of chunks, in any process; it can be pickled.

    Attributes:
        tokenizer: a fast tokenizer.
        length: L, tokens of a row.
        layout: as for ``Rows.of``.
        held_out: share of the documents that are left out.
        fields: names of the fields with the text and the name of a record.
        layers: an annotator that makes layers besides words.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int
    layout: str = "packed"
    held_out: float = 0.0
    fields: Fields = field(default_factory=Fields)
    layers: Layered | None = None

    def __call__(self, chunk: Chunk) -> Block:
        """Make the block of a chunk."""
        documents = chunk.documents(self.fields)
        # Held-out documents are dropped before tokenising, which takes most of the time.
        kept = [document for document in documents if not self.holds_out(document)]
        tokens = []
        for tokenised in tokenise(kept, self.tokenizer, layers=self.layers):
            if len(tokenised.input_ids):
                tokens.append(tokenised)
        if not tokens:
            return Block(None, 0, documents.skipped)
        pieces = read_pieces(tokens, tokenizer=self.tokenizer, length=self.length)
        return Block(Rows.of(pieces, self.layout), len(kept), documents.skipped)

    def holds_out(self, document: Document) -> bool:
        """Tell whether a document is held out: by its text, or by its name if it has parts."""
        # Repeated texts must be on one side, though nothing remembers them.
        if not self.held_out:
            return False
        key = document.text
        if isinstance(document.id, PartName):
            key = document.id.whole
        return text_id(key) < held_out_below(self.held_out)


@dataclass(frozen=True, eq=False)
class Stream:
    """Text to train on that is read as it is needed.

    Attributes:
        sources: the shards of each source of a mix, by name; one source if there is no mix.
        maker: makes blocks of their chunks.
        shuffle: megabytes of text whose rows are shuffled together (the order of shards is random,
            too); 0: rows and shards stay in their order.
        repeat: whether the text is read again if it ends before the training does.
        counts: (V,) count of each token in the beginning of the stream.

    >>> from maskwise.text import bundled_path, shards_of, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> maker = BlockMaker(tokenizer, length=32)
    >>> stream = Stream({"trivia": shards_of(bundled_path("trivia"))}, maker)
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
        """Layout of the rows, as for ``Rows.of``."""
        return self.maker.layout

    @property
    def chunk_size(self) -> int:
        """Bytes of text in a block."""
        return max(1, round((self.shuffle or 1) * MEGABYTE))

    def laid(self, layout: str) -> Stream:
        """Return the same text in another layout; its pieces keep their names and masks."""
        return replace(self, maker=replace(self.maker, layout=layout))

    def unigram_counts(self, vocab_size: int) -> Ints:
        """(V,) count every token in the beginning of the stream.

        Raises:
            MaskwiseError: a token outside the vocabulary.
        """
        total = np.zeros(vocab_size, np.int64)
        if self.counts is not None:
            counts = np.trim_zeros(self.counts, "b")
            require_in_vocabulary(len(counts) - 1, vocab_size)
            total[: len(counts)] = counts
        return total


def read_shards(shards: Sequence[Shard], fields: Fields, *, name: str) -> Documents:
    """Return the documents of all shards, re-iterable."""

    def records() -> Iterator[Record]:
        for shard in shards:
            for chunk, _ in shard.chunks(BEGINNING, MEGABYTE):
                yield from chunk.records()

    return Documents(records, name=name, fields=fields, keep_repeated=True)


def joined(batches: Sequence[PieceBatch]) -> PieceBatch:
    """Concatenate the rows of several batches."""
    if len(batches) == 1:
        return batches[0]
    counts = [int(batch.rows[-1]) + 1 for batch in batches]
    before = np.cumsum([0, *counts[:-1]])
    columns = {}
    for name in batches[0].columns:
        columns[name] = np.concatenate([batch.columns[name] for batch in batches])
    return batches[0]._replace(
        columns=columns,
        lengths=np.concatenate([batch.lengths for batch in batches]),
        example_ids=np.concatenate([batch.example_ids for batch in batches]),
        rows=np.concatenate([batch.rows + shift for batch, shift in zip(batches, before)]),
    )
