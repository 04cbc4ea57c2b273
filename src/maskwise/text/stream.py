"""Streams: text that is tokenised and packed during training.

A *shard* is a file, or a shard of a data set. A *chunk* is a sequence of consecutive records in a
shard. Chunks have about the same size, and the end of a chunk depends only on the shard, this size
and the start of the chunk. The documents of a chunk are tokenised, cut and packed into a *block* of
thousands of rows, without documents of other chunks. Therefore, any process can make a block, and a
run can resume at a row of a block without making earlier blocks. The price is one partly filled row
in each block.

Copies of a text are not dropped, because a stream does not remember earlier texts. All of them are
held out or none, unless they are in several groups.

One core makes rows from 1 to 2 MB of text per second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import filterfalse
from typing import TYPE_CHECKING

import numpy as np

from maskwise.base.errors import MaskwiseError
from maskwise.text.documents import Document, Documents
from maskwise.text.layers import Layered
from maskwise.text.pieces import Ints, read_pieces, tokenise
from maskwise.text.rows import Rows, holds_out, require_in_vocabulary
from maskwise.text.source import FieldNames, Shard
from maskwise.text.words import WordRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MEGABYTE = 1 << 20


@dataclass(frozen=True, eq=False)
class BlockMaker:
    """Makes rows from chunks. A maker can be pickled and sent to another process.

    Attributes:
        tokenizer: a fast tokenizer.
        length: L, the number of tokens in a row.
        layout: the layout of the rows, as for ``Rows.of``.
        held_out: the share of the documents that is held out.
        fields: the fields that hold the text and the name of a record.
        layers: an annotator whose annotation layers are added to the rows; None for no layers.
        words: the word rule, as for `tokenise`.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int
    layout: str = "packed"
    held_out: float = 0.0
    fields: FieldNames = field(default_factory=FieldNames)
    layers: Layered | None = None
    words: WordRule = "auto"

    def __call__(self, chunk: Shard) -> Rows | None:
        """Return the rows of a chunk, or None if the chunk has no text to train on."""
        # Held-out documents are dropped before the tokenizer runs, because it is the slowest step.
        kept = filterfalse(self.holds_out, self.documents([chunk], chunk.name))
        tokens = list(tokenise(kept, self.tokenizer, layers=self.layers, words=self.words))
        if not any(batch.lengths.any() for batch in tokens):
            return None
        pieces = read_pieces(tokens, tokenizer=self.tokenizer, length=self.length)
        return Rows.of(pieces, self.layout)

    def documents(self, shards: Sequence[Shard], name: str) -> Documents:
        """Return the documents of shards or chunks, which may be repeated."""
        return Documents(shards, name=name, fields=self.fields, keep_repeated=True)

    def holds_out(self, document: Document) -> bool:
        """Return whether a document is held out."""
        return holds_out(document, self.held_out)


@dataclass(frozen=True, eq=False)
class Stream:
    """Training text that is read on demand.

    Attributes:
        sources: the shards of each source, keyed by the name of the source.
        maker: a callable that makes rows from chunks of the shards.
        shuffle: the megabytes of text in a chunk. Rows are shuffled within a chunk, and the order
            of shards is random, too. With 0, rows and shards keep their order.
        repeat: whether the text is read again if it ends before training does.
        counts: (V,) the count of each token in the beginning of the stream; None if not counted.

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
        """L, the number of tokens in a row."""
        return self.maker.length

    @property
    def layout(self) -> str:
        """The layout of the rows, as for ``Rows.of``."""
        return self.maker.layout

    @property
    def chunk_size(self) -> int:
        """Size of a chunk, in bytes of text."""
        return max(1, round((self.shuffle or 1) * MEGABYTE))

    def laid(self, layout: str) -> Stream:
        """Return the same text in a different layout. The ids and masks of pieces stay the same."""
        return replace(self, maker=replace(self.maker, layout=layout))

    def unigram_counts(self, vocab_size: int) -> Ints:
        """Return the count of each token in the beginning of the stream, (V,); all 0 if unknown.

        Raises:
            MaskwiseError: a token is outside the vocabulary.
        """
        total = np.zeros(vocab_size, np.int64)
        if self.counts is not None:
            counts = np.trim_zeros(self.counts, "b")
            require_in_vocabulary(len(counts) - 1, vocab_size)
            total[: len(counts)] = counts
        return total


MOST_CHARACTERS = 1 << 26
"""Maximum number of characters read before training, divided equally among the sources."""
COUNTED_CHARACTERS = 1 << 22
"""Number of training characters from which token frequencies are estimated."""


def read_beginning(
    sources: Mapping[str, Sequence[Shard]], maker: BlockMaker, counted: int = COUNTED_CHARACTERS
) -> tuple[list[Document], list[Document], dict[str, object]]:
    """Read the beginning of each source, until there is enough training and held-out text.

    Args:
        counted: how many characters of training text are enough; of held-out text, a quarter is.

    Returns:
        The training documents, the held-out documents, and a dict with the number of characters
        read and the numbers of records skipped, by reason.

    Raises:
        MaskwiseError: there are no training documents or no held-out documents, or no document
            has a group.
    """
    sides: dict[bool, list[Document]] = {False: [], True: []}
    read = 0
    skipped = Counter[str]()
    grouped = 0
    field = maker.fields.group
    most = {True: counted // 4 / len(sources), False: counted / len(sources)}
    for name, shards in sources.items():
        kept = {False: 0, True: 0}
        characters = 0
        documents = maker.documents(shards, name)
        for document in documents:
            size = len(document.text)
            characters += size
            grouped += bool(document.group)
            held_out = maker.holds_out(document)
            # Documents are dropped once there is enough training or held-out text, respectively.
            if kept[held_out] < most[held_out]:
                sides[held_out].append(document)
                kept[held_out] += size
            both_full = all(kept[side] >= most[side] for side in most)
            if both_full or characters >= MOST_CHARACTERS / len(sources):
                break
        read += characters
        skipped.update(documents.skipped)
    if field and not grouped:
        raise MaskwiseError(
            f"corpus.group_field={field}: no document in the beginning of the stream has this "
            "field",
            got=f"{read:,} characters",
            do="name the field with the group of each document",
        )
    for side, documents_of_side in (("training", sides[False]), ("held-out", sides[True])):
        if not documents_of_side:
            raise MaskwiseError(
                f"corpus.held_out={maker.held_out} leaves no {side} documents in the beginning of "
                "the stream",
                got=f"{read:,} characters",
                do="give more text, or use a different share",
            )
    return sides[False], sides[True], {"read_characters": read, "skipped": dict(skipped)}
