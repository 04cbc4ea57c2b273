"""Cutting documents into pieces, and laying pieces out in rows.

A *piece* is as much of a document as fits a row, cut between words. Pieces are cut in the same way whatever
the layout, and never cut again: a packed row holds whole pieces. So a piece has the same name, and therefore
the same masks, packed or padded, before and after a split. The price is some padding in packed rows, a few
per cent, because the pieces of a row must fit; best fit over many pieces at once keeps it low.

Cost: numpy over tokens, and one short Python step (about 1 µs) per piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.text.words import text_id

Array = NDArray[Any]
Ints = NDArray[np.int64]
WINDOW_TOKENS = 1 << 20  # so many are worked on together
LONG_WORDS = "words longer than a row"


class Frame(NamedTuple):
    """Special tokens around pieces: `first` opens a row, `last` closes every piece; −1 for none."""

    first: int
    last: int
    pad: int

    def room(self, length: int) -> int:
        """Tokens of the longest piece that fits a row."""
        return length - (self.first >= 0) - (self.last >= 0)

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """[CLS] … [SEP] or what the tokenizer has in their place."""
        known = [tokenizer.sep_token_id, tokenizer.eos_token_id, -1]
        last = next(number for number in known if number is not None)
        first, pad = tokenizer.cls_token_id, tokenizer.pad_token_id
        return cls(-1 if first is None else first, last, max(last, 0) if pad is None else pad)


@dataclass
class Pieces:
    """P pieces with T tokens together.

    Attributes:
        columns: name → (T,): "input_ids", "word_ids" and other layers, the pieces one after the other.
        lengths: (P,) tokens per piece.
        example_ids: (P,) int64, the name of a piece for ever.
        documents: (P,) int64, hash of the name of its document.
    """

    columns: dict[str, Array]
    lengths: Ints
    example_ids: Ints
    documents: Ints

    def where(self, chosen: NDArray[np.bool_]) -> Pieces:
        """The pieces for which `chosen` (P,) is true."""
        tokens = np.repeat(chosen, self.lengths)
        columns = {name: column[tokens] for name, column in self.columns.items()}
        return Pieces(columns, self.lengths[chosen], self.example_ids[chosen], self.documents[chosen])


def cut(
    names: Sequence[str], columns: dict[str, Array], lengths: Ints, *, room: int
) -> tuple[Pieces, Counter[str]]:
    """Documents → pieces of at most `room` tokens, cut between words.

    Half a word must not be masked: a word that is longer than a row gets −1 and is cut anywhere. (So may be
    tokens that had −1 before.)

    Args:
        names: D names of documents.
        columns: name → (T,), the tokens and layers of all documents, one after the other.
        lengths: (D,) tokens per document.
        room: tokens per piece at most.

    Returns:
        The pieces, and how many words were longer than a row.
    """
    words = columns["word_ids"]
    ends = np.cumsum(lengths)
    opens = np.ones(len(words), dtype=bool)
    opens[1:] = words[1:] != words[:-1]
    opens[(ends - lengths)[lengths > 0]] = True
    run = np.cumsum(opens) - 1
    long = (np.bincount(run)[run] > room) & (words >= 0) if len(words) else np.zeros(0, dtype=bool)
    counts = Counter({LONG_WORDS: int((long & opens).sum())})
    words = np.where(long, -1, words).astype(words.dtype)

    # Where a piece may begin, and for every token the last such place up to it.
    may_begin = opens | (words < 0)
    last_border = np.maximum.accumulate(np.where(may_begin, np.arange(len(words)), 0))
    begins: list[int] = []
    owners: list[int] = []
    firsts: list[int] = []
    for owner, (start, end) in enumerate(zip((ends - lengths).tolist(), ends.tolist())):
        begin = start
        while begin < end:
            begins.append(begin)
            owners.append(owner)
            firsts.append(begin - start)
            begin = int(last_border[begin + room]) if end - begin > room else end
    sizes = np.diff([*begins, len(words)])
    example_ids = [text_id(f"{names[owner]}\0{first}") for owner, first in zip(owners, firsts)]
    documents = np.array([text_id(name) for name in names], dtype=np.int64)[owners]
    columns = {**columns, "word_ids": words}
    return Pieces(columns, sizes, np.array(example_ids, dtype=np.int64), documents), counts


def lay_out(pieces: Pieces, frame: Frame, *, length: int, layout: str) -> dict[str, Array]:
    """Pieces → N rows of `length` tokens.

    Returns:
        Name → array. (N, L): "input_ids", "word_ids" and layers, and "segment" (int16; which piece of the
        row; −1, as in all layers, on special tokens and padding). (N,): "sizes" (tokens that are not padding)
        and "segments" (how many pieces). (P,): "example_ids" and "documents", in the order of rows and
        segments.
    """
    cost = pieces.lengths + (frame.last >= 0)
    row = _best_fit(cost, length - (frame.first >= 0)) if layout == "packed" else np.arange(len(cost))
    order = np.argsort(row, kind="stable")  # by row, in a row as in the corpus
    total = int(row.max()) + 1 if len(row) else 0
    segments = np.bincount(row, minlength=total)
    before = np.zeros(len(order), dtype=np.int64)  # where in its row a piece begins
    stop = np.cumsum(cost[order])
    row_start = np.concatenate(([0], stop[np.cumsum(segments)[:-1] - 1])) if total else np.zeros(0, np.int64)
    before[order] = stop - cost[order] - np.repeat(row_start, segments) + (frame.first >= 0)
    segment = np.empty(len(order), dtype=np.int64)
    segment[order] = np.arange(len(order)) - np.repeat(np.cumsum(segments) - segments, segments)

    shift = row * length + before - (np.cumsum(pieces.lengths) - pieces.lengths)
    target = np.arange(int(pieces.lengths.sum())) + np.repeat(shift, pieces.lengths)
    columns: dict[str, Array] = {}
    for name, values in pieces.columns.items():
        values = values.astype(np.int8) if values.dtype == bool else values  # Arrow's bits cannot be mapped
        empty = (
            frame.pad if name == "input_ids" else -1 if np.issubdtype(values.dtype, np.signedinteger) else 0
        )
        columns[name] = np.full(total * length, empty, dtype=values.dtype)
        columns[name][target] = values
    columns["segment"] = np.full(total * length, -1, dtype=np.int16)
    columns["segment"][target] = np.repeat(segment, pieces.lengths)
    if frame.first >= 0:
        columns["input_ids"][::length] = frame.first
    if frame.last >= 0:
        columns["input_ids"][row * length + before + pieces.lengths] = frame.last
    columns = {name: column.reshape(total, length) for name, column in columns.items()}
    columns["word_ids"] = _number_words(columns["word_ids"], columns["segment"])
    sizes = np.bincount(row, weights=cost, minlength=total).astype(np.int32) + np.int32(frame.first >= 0)
    whole = {"sizes": sizes, "segments": segments.astype(np.int32)}
    names = {"example_ids": pieces.example_ids[order], "documents": pieces.documents[order]}
    return {**columns, **whole, **names}


def _number_words(words: Array, segment: Array) -> NDArray[np.int32]:
    """Words counted from 0 in every row, on across its segments."""
    opens = words >= 0
    opens[:, 1:] &= (words[:, 1:] != words[:, :-1]) | (segment[:, 1:] != segment[:, :-1])
    return np.where(words >= 0, np.cumsum(opens, axis=1) - 1, -1).astype(np.int32)


def _best_fit(cost: Ints, space: int) -> Ints:
    """(P,) the row of every piece: longest first, each into the fullest row that still takes it.

    Rows with room are kept in stacks by what is left; the set of non-empty stacks is the bits of one integer,
    so the tightest fit is its lowest bit from the cost up.
    """
    if len(cost) and int(cost.max()) > space:
        raise MaskwiseError("a piece is longer than a row", got=int(cost.max()), allowed=f"≤ {space}")
    row = np.empty(len(cost), dtype=np.int64)
    order = np.argsort(-cost, kind="stable")
    stacks: list[list[int]] = [[] for _ in range(space + 1)]
    filled, rows = 0, 0
    for piece, need in zip(order.tolist(), cost[order].tolist()):
        fitting = filled >> need
        if fitting:
            left = need + (fitting & -fitting).bit_length() - 1
            number = stacks[left].pop()
            filled ^= 0 if stacks[left] else 1 << left
        else:
            left, number = space, rows
            rows += 1
        row[piece] = number
        stacks[left - need].append(number)
        filled |= 1 << (left - need)
    # Number the rows by their first piece, so that they stay in the order of the corpus.
    first = np.full(rows, len(cost))
    np.minimum.at(first, row, np.arange(len(cost)))
    rank = np.empty(rows, dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(rows)
    return rank[row]
