"""Units that are runs of one number in a layer, such as words: each is a stretch of the line.

Most of them are never chosen, so their tokens are listed only for those who ask: a fifth less time for whole words.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from maskwise.keys import Array
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.units import Units
from maskwise.segments import listed, rank_within


def runs(batch: AnnotatedBatch, ids: Array) -> Units:
    """Units are runs of equal ``ids`` (T,) among the content tokens; a negative id belongs to no unit.

    A run with a token that may not be masked ([UNK] inside a word) is never chosen: no half units.
    """
    start, length, barred = find_runs(batch, ids)
    count_P = batch.count_at(start)
    piece, number = np.repeat(np.arange(len(count_P)), count_P), rank_within(count_P).astype(np.int32)
    if not len(barred):
        return Runs(batch, start, length, piece, number)
    kept = np.ones(len(start), bool)
    kept[barred] = False
    return Runs(batch, start[kept], length[kept], piece[kept], number[kept])


def find_runs(batch: AnnotatedBatch, ids: Array) -> tuple[Array, Array, Array]:
    """Runs of equal ids ≥ 0 among the content tokens of each piece.

    Returns:
        start (R,): where each run begins in the line. length (R,): its tokens. barred: the runs with a token that may
        not be masked.
    """
    inside = ids >= 0
    inside &= batch.content
    # A run ends where its id changes, where a token outside stands between, and with its piece.
    goes_on = inside.copy()
    goes_on[1:] &= inside[:-1] & (ids[1:] == ids[:-1])
    goes_on[batch.begin[: len(ids)]] = False
    last = inside.copy()
    last[:-1] &= ~goes_on[1:]
    start = np.flatnonzero(inside & ~goes_on)
    length = np.flatnonzero(last) - start + 1
    barred = np.flatnonzero(inside & ~batch.eligible)
    if len(barred):
        barred = np.unique(start.searchsorted(barred, side="right") - 1)
    return start, length, barred


class Runs(Units):
    """Units whose tokens stand side by side, in the order of the line; the tokens are listed for those who ask.

    Args:
        start: (U,) int64, where each unit begins.
        length: (U,) int64, its tokens.
    """

    in_order, by_token = True, False

    def __init__(self, batch: AnnotatedBatch, start: Array, length: Array, piece: Array, number: Array):
        self.batch, self.start, self.length, self.piece, self.number = batch, start, length, piece, number
        self.weight = None

    @cached_property
    def count(self) -> Array:
        return self.batch.count_at(self.start)

    @cached_property
    def tokens_P(self) -> Array:
        before = np.concatenate(([0], self.length.cumsum()))[self.start.searchsorted(self.batch.edges)]
        return before[1:] - before[:-1]

    @cached_property
    def unit(self) -> Array:  # type: ignore[override]  # listed when asked
        return np.repeat(np.arange(len(self.start)), self.length)

    @cached_property
    def tokens(self) -> Array:  # type: ignore[override]
        return listed(self.start, self.length)

    def spread(self, chosen_U: Array) -> Array:
        at = np.flatnonzero(chosen_U)
        chosen = np.zeros(len(self.batch.input_ids), bool)
        chosen[listed(self.start[at], self.length[at])] = True
        return chosen
