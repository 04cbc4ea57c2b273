"""Units: a partition of each piece into parts that are masked together, with a weight each. Every
policy ends here.

Units that are runs of one number in a layer, such as words, are stretches of the line. Most of them
are never chosen, so their tokens are listed only for those who ask: a fifth less time for whole
words.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch
from maskwise.segments import listed, rank_within


@dataclass
class Units:
    """U units of the P pieces of a batch, as flat lists; M tokens are in units.

    Attributes:
        batch: the batch that they are units of.
        tokens: (M,) int64, where the tokens that are in units stand in the line of T tokens.
        unit: (M,) int64, the unit of each of them; None when every token is a unit by itself, and U
            = M.
        piece: (U,) int64, the piece that each unit is in.
        number: (U,) int32, the index of each unit's draws, distinct within a piece.
        weight: (U,) float64, or None for equal weights. 0: never chosen, but for ``fill="random"``.
        in_order: whether units, and tokens, stand in the order of the line (spans and mixtures are
            not).
    """

    batch: AnnotatedBatch
    tokens: Array
    unit: Array | None
    piece: Array
    number: Array
    weight: Array | None = None
    in_order: bool = False

    @property
    def by_token(self) -> bool:
        """Whether each token is a unit by itself."""
        return self.unit is None

    @cached_property
    def length(self) -> Array:
        """(U,) int64: tokens in each unit."""
        if self.unit is None:
            return np.ones(len(self.piece), np.int64)
        return np.bincount(self.unit, minlength=len(self.piece))

    @cached_property
    def count(self) -> Array:
        """(P,) int64: units in each piece."""
        return np.bincount(self.piece, minlength=len(self.batch.begin))

    def draw(self, keys: Keys, purpose: Purpose) -> Array:
        """(U,) int32: a draw for each unit."""
        if self.in_order:  # to repeat is five times as fast as to look up
            return keys.draw_each(purpose, self.count, self.number)
        return keys.draw(purpose, self.piece, self.number)

    @cached_property
    def tokens_P(self) -> Array:
        """(P,) int64: tokens that could be chosen, those of weight 0 too: what a ratio is a share
        of.
        """
        if self.in_order:
            return self.batch.count_at(self.tokens)
        return np.bincount(self.batch.piece.take(self.tokens), minlength=len(self.batch.begin))

    @classmethod
    def single(cls, batch: AnnotatedBatch, tokens: Array | None = None) -> Units:
        """Each eligible token (or each of ``tokens``) is a unit. Its draws go by its place in the
        piece.
        """
        tokens = batch.eligible_at if tokens is None else tokens
        count_P = batch.count_at(tokens)
        number, piece = batch.place(tokens, count_P), np.repeat(np.arange(len(count_P)), count_P)
        units = cls(batch, tokens, None, piece, number, in_order=True)
        units.count = units.tokens_P = count_P
        return units

    def weighted(self, weight: Array) -> Self:
        """The same units with these weights (U,): finite numbers ≥ 0, else a MaskwiseError."""
        valid = (weight >= 0) & (weight < np.inf)
        if not valid.all():  # nothing would be masked, in silence
            raise MaskwiseError(
                "a policy gives a weight that is not a finite number ≥ 0",
                got=float(weight[~valid][0]),
            )
        other = copy(self)
        other.weight = weight
        return other

    def without(self, units: Array) -> Units:
        """The other units, with the numbers that they had."""
        assert self.unit is not None
        kept = np.ones(len(self.piece), bool)
        kept[units] = False
        inside = kept.take(self.unit)
        unit = (kept.cumsum() - 1)[self.unit[inside]]
        weight = None if self.weight is None else self.weight[kept]
        return Units(
            self.batch, self.tokens[inside], unit, self.piece[kept], self.number[kept], weight
        )

    def spread(self, chosen_U: Array) -> Array:
        """From chosen units to chosen tokens: (U,) bool to (T,) bool."""
        chosen = np.zeros(len(self.batch.input_ids), bool)
        inside = chosen_U if self.unit is None else chosen_U.take(self.unit)
        # numbers are looked up faster than bools
        chosen[self.tokens[np.flatnonzero(inside)]] = True
        return chosen


def runs(batch: AnnotatedBatch, ids: Array) -> Units:
    """Units are runs of equal ``ids`` (T,) among the content tokens; a negative id belongs to no
    unit.

    A run with a token that may not be masked ([UNK] inside a word) is never chosen: no half units.
    """
    start, length, barred = find_runs(batch, ids)
    count_P = batch.count_at(start)
    piece, number = (
        np.repeat(np.arange(len(count_P)), count_P),
        rank_within(count_P).astype(np.int32),
    )
    if not len(barred):
        return Runs(batch, start, length, piece, number)
    kept = np.ones(len(start), bool)
    kept[barred] = False
    return Runs(batch, start[kept], length[kept], piece[kept], number[kept])


def find_runs(batch: AnnotatedBatch, ids: Array) -> tuple[Array, Array, Array]:
    """Runs of equal ids ≥ 0 among the content tokens of each piece.

    Returns:
        start (R,): where each run begins in the line. length (R,): its tokens. barred: the runs
            with a token that may
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
    """Units whose tokens stand side by side, in the order of the line; the tokens are listed for
    those who ask.

    Args:
        start: (U,) int64, where each unit begins.
        length: (U,) int64, its tokens.
    """

    in_order, by_token = True, False

    def __init__(
        self, batch: AnnotatedBatch, start: Array, length: Array, piece: Array, number: Array
    ):
        self.batch, self.start, self.length, self.piece, self.number = (
            batch,
            start,
            length,
            piece,
            number,
        )
        self.weight = None

    @cached_property
    def count(self) -> Array:
        return self.batch.count_at(self.start)

    @cached_property
    def tokens_P(self) -> Array:
        before = np.concatenate(([0], self.length.cumsum()))[
            self.start.searchsorted(self.batch.edges)
        ]
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
