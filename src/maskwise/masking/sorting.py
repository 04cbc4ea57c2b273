"""Sorting within the pieces of a line: one sort of plain integers orders the units of all pieces at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def order_within(piece: Array, key: Array, *, pieces: int) -> Array:
    """(N,) int64: the indices that sort by (piece, key). Keys of one piece are distinct.

    numpy sorts values three times as fast as it sorts indices, so 32-bit keys are packed into 64 bits together with
    their piece above them and their index below them.
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
    """(N,) int64: 0, 1, 2, … for the members of each piece, where piece p has ``counts_P[p]`` of them in a row."""
    return np.arange(int(counts_P.sum())) - np.repeat(counts_P.cumsum() - counts_P, counts_P)


def first_within(piece: Array, key: Array, wanted_P: Array) -> Array:
    """(N,) bool: the ``wanted_P`` members of each piece with the smallest keys."""
    order = order_within(piece, key, pieces=len(wanted_P))
    counts_P = np.bincount(piece, minlength=len(wanted_P))
    first = np.zeros(len(key), bool)
    first[order[rank_within(counts_P) < np.repeat(wanted_P, counts_P)]] = True
    return first


def sums_within(values: Array, counts_P: Array) -> Array:
    """(N,) int64: running sums of ``values``, which begin anew in each piece."""
    total = values.cumsum()
    before_P = np.concatenate(([0], total)).take(counts_P.cumsum() - counts_P)
    total -= np.repeat(before_P, counts_P)
    return total
