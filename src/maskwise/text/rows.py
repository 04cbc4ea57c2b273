"""Rows: plans which pieces lie together.

A plan is two small columns of numbers over pieces that are stored once (pieces.py). So another
layout is another plan, the two sides of a held-out split are two plans, and neither copies a token.

Cost: a Python step of about 1 µs for each piece when a plan is made; a batch is one look-up for
    each column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.segments import listed
from maskwise.text.pieces import (
    WINDOW_TOKENS,
    Array,
    Ints,
    PieceBatch,
    Pieces,
    read_arrow,
    write_arrow,
)

if TYPE_CHECKING:  # torch takes two seconds: reading documents does not wait for it
    from torch import Tensor

LAYOUTS = ("packed", "joined", "document")


@dataclass(eq=False)
class Rows:
    """N rows of `length` tokens: pieces, and a plan which of them form which row.

    Attributes:
        pieces: those that may be in the rows.
        order: numbers of pieces, row by row.
        first: (N + 1,) int64; row r holds the pieces ``order[first[r]:first[r + 1]]``.
        layout: "packed", "joined" or "document" (one piece in each row).
    """

    pieces: Pieces
    order: Ints
    first: Ints
    layout: str

    @classmethod
    def of(cls, pieces: Pieces, layout: str = "packed", *, chosen: Ints | None = None) -> Rows:
        """Plan rows of all pieces, or of those whose numbers are ``chosen``.

        Args:
            layout: "packed" fills rows with several pieces, each of them framed and read by itself;
                "joined" fills them with pieces that are read as one text; "document" puts one piece
                in each row.
            chosen: (P',) ascending.

        Raises:
            MaskwiseError: an unknown layout.
        """
        if layout not in LAYOUTS:
            raise unknown_name("layout", layout, LAYOUTS)
        chosen = np.arange(len(pieces)) if chosen is None else chosen
        if layout == "document":
            return cls(pieces, chosen, np.arange(len(chosen) + 1), layout)
        opened, closed = pieces.frame.first >= 0, pieces.frame.last >= 0
        each, once = (opened + closed, 0) if layout == "packed" else (closed, int(opened))
        cost = pieces.offsets[chosen + 1] - pieces.offsets[chosen] + each
        borders = np.flatnonzero(np.diff(np.cumsum(cost) // WINDOW_TOKENS)) + 1
        # a row is of one source, so that shares of sources are shares of rows
        if pieces.sources is not None:
            borders = np.union1d(borders, np.flatnonzero(np.diff(pieces.sources[chosen])) + 1)
        order, counts = [chosen[:0]], [np.zeros(1, np.int64)]
        for some, costs in zip(np.split(chosen, borders), np.split(cost, borders)):
            row = _best_fit(costs, pieces.length - once)
            order.append(some[np.argsort(row, kind="stable")])  # in a row as in the corpus
            counts.append(np.bincount(row))
        return cls(pieces, np.concatenate(order), np.cumsum(np.concatenate(counts)), layout)

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def length(self) -> int:
        """L, tokens of a row."""
        return self.pieces.length

    @property
    def tokens(self) -> int:
        """Tokens that are not padding, special ones included."""
        frame, offsets = self.pieces.frame, self.pieces.offsets
        total = int(sum((offsets[part + 1] - offsets[part]).sum() for part in self._windows()))
        opened = len(self) if self.layout == "joined" else len(self.order)
        return total + len(self.order) * (frame.last >= 0) + opened * (frame.first >= 0)

    @property
    def lengths(self) -> Ints:
        """(N,) int64: the tokens of each row, without special ones."""
        costs = np.diff(self.pieces.offsets)[self.order]
        return np.diff(np.append(0, np.cumsum(costs))[self.first])

    def by_source(self, count: int) -> list[int]:
        """The number of rows of each of ``count`` sources; those of a source stand together, in
        their order.
        """
        if self.pieces.sources is None:
            return [len(self), *[0] * (count - 1)]
        sources = self.pieces.sources[self.order[self.first[:-1]]]
        return [int(number) for number in np.bincount(sources, minlength=count)]

    @property
    def documents(self) -> Ints:
        """(D,) the hashes of the names of all documents in the rows, sorted."""
        return np.unique(self.pieces.documents[self.order])

    def batch(self, rows: Sequence[int] | Array | Tensor) -> PieceBatch:
        """The pieces of B rows.

        Raises:
            MaskwiseError: a number of a row that is not there.
        """
        at = np.asarray(rows, dtype=np.int64).reshape(-1)
        outside = at[(at < 0) | (at >= len(self))]
        if len(outside):
            raise MaskwiseError("no such row", got=int(outside[0]), allowed=f"0 to {len(self) - 1}")
        first, source = self.first[at], self.pieces
        count = self.first[at + 1] - first
        piece = self.order[listed(first, count)]
        begin = source.offsets[piece]
        lengths = source.offsets[piece + 1] - begin
        tokens = listed(begin, lengths)
        columns = {name: column[tokens] for name, column in source.columns.items()}
        owner = np.repeat(np.arange(len(at)), count)
        apart = self.layout != "joined"
        return PieceBatch(
            columns, lengths, source.example_ids[piece], owner, source.length, source.frame, apart
        )

    def tensors(self, rows: Sequence[int] | Array | Tensor) -> dict[str, Tensor]:
        """B rows as (B, L) tensors; see `PieceBatch.tensors`."""
        return self.batch(rows).tensors()

    def laid(self, layout: str) -> Rows:
        """The same pieces in another layout: another plan. Their names, and so their masks, stay."""
        return (
            self
            if layout == self.layout
            else Rows.of(self.pieces, layout, chosen=np.sort(self.order))
        )

    def holding(self, example_ids: Ints) -> Ints:
        """The numbers of the rows that hold one of some pieces, ascending."""
        inside = np.flatnonzero(np.isin(self.pieces.example_ids[self.order], example_ids))
        return np.unique(np.searchsorted(self.first, inside, side="right") - 1)

    def unigram_counts(self, vocab_size: int) -> Ints:
        """(V,) how often every token stands in the text; special tokens and padding are not
        counted.

        Raises:
            MaskwiseError: a token outside the vocabulary.
        """
        total = np.zeros(vocab_size, dtype=np.int64)
        offsets, ids = self.pieces.offsets, self.pieces.columns["input_ids"]
        for part in self._windows():
            tokens = ids[listed(offsets[part], offsets[part + 1] - offsets[part])]
            if len(tokens) and (worst := int(tokens.max())) >= vocab_size:
                do = "use the tokenizer that made the tokens"
                what = "token id outside the vocabulary"
                raise MaskwiseError(what, got=worst, allowed=f"< {vocab_size}", do=do)
            total += np.bincount(tokens, minlength=vocab_size)
        return total

    def save(self, path: Path) -> None:
        """Write the plan (not the pieces) as one Arrow IPC file, a list of pieces for each row."""
        plan = pa.LargeListArray.from_arrays(pa.array(self.first), pa.array(self.order))
        write_arrow(path, {"pieces": plan}, {"layout": self.layout})

    @classmethod
    def load(cls, path: Path, pieces: Pieces) -> Rows:
        """Open a plan that `save` wrote, memory-mapped."""
        columns, about = read_arrow(path)
        plan = columns["pieces"]
        return cls(pieces, plan.values.to_numpy(), plan.offsets.to_numpy(), about["layout"])

    def _windows(self) -> Iterator[Ints]:
        """The numbers of the pieces, for about `WINDOW_TOKENS` tokens at a time."""
        step = max(1, WINDOW_TOKENS // self.length)
        return (self.order[start : start + step] for start in range(0, len(self.order), step))


def split(pieces: Pieces, *, held_out: float, layout: str = "packed") -> tuple[Rows, Rows]:
    """(training, held out): a document goes, whole, to the side that the hash of its name says.

    Raises:
        MaskwiseError: a share outside 0 … 1, or one that leaves a side empty.
    """
    if not 0 < held_out < 1:
        allowed = "0 < held_out < 1"
        raise MaskwiseError(
            "held_out must be a share of the documents", got=held_out, allowed=allowed
        )
    out = is_held_out(pieces.documents, held_out)
    sides = np.flatnonzero(~out), np.flatnonzero(out)
    if not all(map(len, sides)):
        hashes = np.unique(pieces.documents)
        do = (
            "give more documents (blank lines separate those of a .txt file): each goes, whole, "
            "to one side"
        )
        if len(hashes) > 1:
            between = (float(hashes[0]) + float(hashes[-1])) / 2**64  # a document on either side
            do += f"; or take another share, such as {between:.3f}"
        what = (
            f"corpus.held_out={held_out} leaves the "
            f"{'held-out' if len(sides[0]) else 'training'} side empty"
        )
        raise MaskwiseError(what, got=f"{len(hashes)} document{'s' * (len(hashes) > 1)}", do=do)
    training, held = (Rows.of(pieces, layout, chosen=side) for side in sides)
    return training, held


def is_held_out(names: Any, share: float) -> Any:
    """Which documents go to the held-out side: by their names' hashes (`text_id`), an int or an
    array of them.
    """
    return names < int(share * 2**63)


def _best_fit(cost: Ints, space: int) -> Ints:
    """(P,) the row of every piece: longest first, each into the fullest row that still takes it.

    Rows with room are kept in stacks by what is left of them. The set of non-empty stacks is the
    bits of one integer, so the tightest fit is its lowest bit from the cost up.
    """
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
