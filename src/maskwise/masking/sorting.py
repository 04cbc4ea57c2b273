"""Sorts, ranks and sums within the pieces of a line: one pass over plain integers serves all pieces at once."""

from __future__ import annotations

import numpy as np

from maskwise.keys import Array


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
    return listed(np.zeros_like(counts_P), counts_P)


def listed(start: Array, length: Array) -> Array:
    """(N,) int64: the numbers of stretches, one after the other: start, start + 1, … of each."""
    shift = start - length.cumsum() + length
    return np.arange(int(length.sum())) + np.repeat(shift, length)


def counts_within(piece: Array, pieces: int) -> Array:
    """(P,) int64: the members of each piece, where ``piece`` (N,) ascends."""
    before = piece.searchsorted(np.arange(pieces + 1))
    return before[1:] - before[:-1]


def first_of(counts_P: Array, wanted_P: Array) -> Array:
    """(M,) int64: where the first ``wanted_P`` members of each piece stand (all of them where there are fewer)."""
    taken_P = np.maximum(np.minimum(counts_P, wanted_P), 0)
    return listed(counts_P.cumsum() - counts_P, taken_P)


def first_within(piece: Array, key: Array, wanted_P: Array) -> Array:
    """(N,) bool: the ``wanted_P`` members of each piece with the smallest keys."""
    order = order_within(piece, key, pieces=len(wanted_P))
    first = np.zeros(len(key), bool)
    first[order[first_of(counts_within(piece[order], len(wanted_P)), wanted_P)]] = True
    return first


def sums_within(values: Array, counts_P: Array) -> Array:
    """(N,) int64, or float64 of floats: running sums of ``values``, which begin anew in each piece."""
    total = np.zeros(len(values) + 1, np.result_type(values, np.int64))
    values.cumsum(out=total[1:])
    return total[1:] - np.repeat(total.take(counts_P.cumsum() - counts_P), counts_P)
