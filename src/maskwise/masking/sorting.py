"""Sorts, ranks, sums and runs within the pieces of a line: one pass over plain integers serves all pieces at once."""

from __future__ import annotations

import numpy as np

from maskwise.keys import Array
from maskwise.masking.batch import AnnotatedBatch


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


def counts_within(piece: Array, pieces: int) -> Array:
    """(P,) int64: the members of each piece, where ``piece`` (N,) ascends."""
    before = piece.searchsorted(np.arange(pieces + 1))
    return before[1:] - before[:-1]


def first_of(counts_P: Array, wanted_P: Array) -> Array:
    """(M,) int64: where the first ``wanted_P`` members of each piece stand (all of them where there are fewer)."""
    taken_P = np.maximum(np.minimum(counts_P, wanted_P), 0)
    return rank_within(taken_P) + np.repeat(counts_P.cumsum() - counts_P, taken_P)


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


def find_runs(batch: AnnotatedBatch, ids: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Runs of equal ids ≥ 0 among the content tokens of each piece.

    Returns:
        tokens (M,): where the tokens of runs stand, in order. run (M,): the run of each. length (R,): tokens of each
        run. count (P,): runs of each piece. barred: the runs with a token that may not be masked.
    """
    inside = ids >= 0
    inside &= batch.content
    # A run ends where its id changes, where a token outside stands between, and with its piece.
    begins = inside.copy()
    begins[1:] &= (ids[1:] != ids[:-1]) | ~inside[:-1]
    if len(begins):
        begins[batch.begin] = inside[batch.begin]
    tokens = np.flatnonzero(inside)
    opens = begins.take(tokens)
    run = opens.cumsum()
    run -= 1
    first = np.flatnonzero(opens)
    length = np.append(first[1:], len(tokens)) - first
    starts = tokens.take(first)
    barred = np.flatnonzero(inside > batch.eligible)
    if len(barred):
        barred = np.unique(np.searchsorted(starts, barred, side="right") - 1)
    return tokens, run, length, batch.count_at(starts), barred
