"""Sorts, ranks and sums within the pieces of a line, and the places of pieces in rows.

One pass over plain integers serves all pieces at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def order_within(piece: Array, key: Array, *, pieces: int) -> Array:
    """(N,) int64: the indices that sort by (piece, key). Keys of one piece are distinct.

    numpy sorts values three times as fast as it sorts indices, so 32-bit keys are packed into 64
    bits together with their piece above them and their index below them.
    """
    bits = max(1, len(key) - 1).bit_length()
    if key.itemsize == 4 and pieces.bit_length() + 32 + bits <= 63:
        line = piece << 32
        line += key
        line <<= bits
        line |= np.arange(len(key))
        line.sort()
        line &= (1 << bits) - 1
        return line
    order = key.argsort()
    narrow = np.uint16 if pieces <= 1 << 16 else np.int64  # 16 bits are sorted by radix
    return order.take(piece.take(order).astype(narrow).argsort(kind="stable"))


def rank_within(counts_P: Array) -> Array:
    """(N,) int64: 0, 1, 2, … for the members of each piece, where piece p has ``counts_P[p]`` of
    them in a row.
    """
    return listed(np.zeros_like(counts_P), counts_P)


def listed(start: Array, length: Array) -> Array:
    """(N,) int64: the numbers of stretches, one after the other: start, start + 1, … of each.

    >>> listed(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    shift = start - length.cumsum() + length
    return np.arange(int(length.sum())) + np.repeat(shift, length)


def changes(*columns: Array) -> Array:
    """(N,) bool: the first place, and each where a column has another value than at the place
    before.

    >>> changes(np.array([3, 3, 5, 5]), np.array([0, 1, 1, 1])).tolist()
    [True, True, True, False]
    """
    opens = np.ones(len(columns[0]), bool)
    opens[1:] = False
    for column in columns:
        opens[1:] |= column[1:] != column[:-1]
    return opens


def counts_within(piece: Array, pieces: int) -> Array:
    """(P,) int64: the members of each piece, where ``piece`` (N,) ascends."""
    before = piece.searchsorted(np.arange(pieces + 1))
    return before[1:] - before[:-1]


def first_of(counts_P: Array, wanted_P: Array) -> Array:
    """(M,) int64: where the first ``wanted_P`` members of each piece stand (all of them where there
    are fewer).
    """
    taken_P = np.maximum(np.minimum(counts_P, wanted_P), 0)
    return listed(counts_P.cumsum() - counts_P, taken_P)


def first_within(piece: Array, key: Array, wanted_P: Array) -> Array:
    """(N,) bool: the ``wanted_P`` members of each piece with the smallest keys."""
    order = order_within(piece, key, pieces=len(wanted_P))
    first = np.zeros(len(key), bool)
    first[order[first_of(counts_within(piece[order], len(wanted_P)), wanted_P)]] = True
    return first


def sums_within(values: Array, counts_P: Array) -> Array:
    """(N,) int64, or float64 of floats: running sums of ``values``, which begin anew in each
    piece.
    """
    total = np.zeros(len(values) + 1, np.result_type(values, np.int64))
    values.cumsum(out=total[1:])
    return total[1:] - np.repeat(total.take(counts_P.cumsum() - counts_P), counts_P)


class Framed(NamedTuple):
    """The places of P framed pieces in the line of the B·L tokens of their rows.

    Attributes:
        shape: (B, L).
        frame: (first, last, pad) ids; −1 for none.
        opened: (P,) bool, whether ``first`` stands before the piece.
        begin, end: (P,) int64, the place of its first token and the place after its last, frame
            included.
        at: (T,) int64, the place of each token without its frame.
    """

    shape: tuple[int, int]
    frame: tuple[int, int, int]
    opened: Array
    begin: Array
    end: Array
    at: Array

    def column(self, values: Array, fill: int | None = None) -> Array:
        """(B·L,) the values (T,) in their places, ``fill`` elsewhere (by default −1 among whole
        numbers, else 0).

        Whole numbers come as int64.
        """
        whole = values.dtype.kind not in "fb"
        if fill is None:
            fill = -1 if whole else 0
        line = np.full(self.shape[0] * self.shape[1], fill, np.int64 if whole else values.dtype)
        line[self.at] = values
        return line

    def ids(self, values: Array) -> Array:
        """(B·L,) int64, the ids (T,) in their places, with their frames and padding."""
        first, last, pad = self.frame
        line = self.column(values, pad)
        if first >= 0:
            line[self.begin[self.opened]] = first
        if last >= 0:
            line[self.end - 1] = last
        return line

    def present(self) -> Array:
        """(B·L,) int64: 1 on tokens and their frames, 0 on padding."""
        line = np.zeros(self.shape[0] * self.shape[1], np.int64)
        line[listed(self.begin, self.end - self.begin)] = 1
        return line


def framed(
    lengths_P: Array, row_P: Array, *, length: int, frame: tuple[int, int, int], apart: bool = True
) -> Framed:
    """Lay pieces out in rows: [first] piece [last] [first] piece [last] … padding.

    Args:
        lengths_P: (P,) int64, tokens of each piece.
        row_P: (P,) int64, ascending: the row that it goes into.
        length: L, tokens of a row; whoever plans the rows sees to it that the pieces fit.
        frame: (first, last, pad) ids; −1 for none.
        apart: whether ``first`` opens every piece, or only each row.
    """
    first, last, _ = frame
    rows = int(row_P[-1]) + 1 if len(row_P) else 0
    pieces_B = counts_within(row_P, rows)
    opened = np.full(len(row_P), first >= 0)
    if not apart:
        opened &= rank_within(pieces_B) == 0
    cost = lengths_P + opened + (last >= 0)
    end = row_P * length + sums_within(cost, pieces_B)
    begin = end - cost
    at = listed(begin + opened, lengths_P)
    return Framed((rows, length), frame, opened, begin, end, at)
