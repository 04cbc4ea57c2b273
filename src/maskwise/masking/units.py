"""Units: groups of tokens of a piece that are masked together. Every token is in at most one unit.

A unit may have a weight: a unit with a larger weight is more likely to be masked. Units such as
words are ranges of consecutive tokens. Of such units, only the start and the length are stored.
Most units are not selected, so the positions of their tokens are computed only when they are
needed, which saves a fifth of the time of whole-word masking. Of the shapes, ``line`` explains (T,)
and (P,), and ``Units`` (U,) and (M,).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.line import Line
from maskwise.masking.segments import listed, offsets, owners, rank_within, totals_within

STEPS = 80
"""The maximum number of Newton steps to find τ in ``reached``. About five steps are needed."""
EMPTY = 2.0**-43
"""The smallest visible share of a piece in ``reached``. With a share of 0, τ would be infinite."""
LIGHTEST = 2.0**-900
"""``Units.filled`` raises smaller positive weights to this value."""
FILLING = 2.0**-1000
"""``Units.filled`` replaces weights of 0 by this value. It is so far below ``LIGHTEST`` that these
units are selected last."""
NUMBERS = 1 << 20
"""Numbers of units are below this value, or below the length of a longer row. Sort keys of units
with weights have room for so many numbers, and draws for 2³² numbers."""
LATE = 2.0**-20
"""In masked diffusion, ``FILLING`` is replaced by ``LATE`` × the smallest other weight of the
piece."""


@dataclass(eq=False)
class Units:
    """The U units of the P pieces of a line, as flat arrays. M is the number of their tokens.

    Attributes:
        line: the line whose tokens form the units.
        piece: (U,) int64, the index of each unit's piece.
        number: (U,) int64, a number for each unit, distinct within a piece, from 0 to 2²⁰ − 1 (in
            longer rows, to L − 1). The random draws of the unit are computed from this number.
        start: (U,) int64, the position of the first token of each unit, if units are ranges of
            consecutive tokens, sorted by position. Otherwise None, and ``of_tokens`` sets the
            tokens.
        length: (U,) int64, the number of tokens in each unit.
        weight: (U,) float64, the weight of each unit; None if all weights are equal. A unit of
            weight 0 is never selected, but see ``filled``.
        by_token: whether every unit is one token.
    """

    line: Line
    piece: Array
    number: Array
    start: Array | None
    length: Array
    weight: Array | None = None
    by_token: bool = False

    @classmethod
    def single(cls, line: Line, tokens: Array | None = None) -> Units:
        """Make one unit of each token.

        Args:
            line: the line whose tokens form the units.
            tokens: ascending positions of tokens; default: all eligible tokens.
        """
        if tokens is None:
            tokens = line.eligible_at
        count_P = line.count_at(tokens)
        piece = owners(count_P)
        number = line.place(tokens, count_P)
        units = cls(
            line,
            piece,
            number,
            tokens,
            np.ones_like(tokens),
            by_token=True,
        )
        units.count = units.tokens_P = count_P
        return units

    @classmethod
    def of_tokens(
        cls,
        line: Line,
        tokens: Array,
        unit: Array,
        piece: Array,
        number: Array,
        weight: Array | None = None,
    ) -> Units:
        """Make units of any tokens.

        Args:
            line: the line whose tokens form the units.
            tokens: (M,) int64, the positions of the tokens, in any order.
            unit: (M,) int64, the index of the unit to which each of these tokens belongs.
            piece: (U,) int64, as the attribute.
            number: (U,) int64, as the attribute.
            weight: (U,) float64, as the attribute.
        """
        length = np.bincount(unit, minlength=len(piece))
        units = cls(line, piece, number, None, length, weight)
        # Set these cached properties here, because their code needs ``start``, which is None.
        units.tokens = tokens
        units.unit = unit
        return units

    @cached_property
    def tokens(self) -> Array:
        """(M,) int64: the positions of the tokens of all units, unit by unit."""
        assert self.start is not None
        return self.start if self.by_token else listed(self.start, self.length)

    @cached_property
    def unit(self) -> Array:
        """(M,) int64: for each of ``tokens``, the index of its unit."""
        return owners(self.length)

    @cached_property
    def count(self) -> Array:
        """(P,) int64: the number of units in each piece."""
        if self.start is not None:
            # Searching the edges of the pieces is faster than counting every unit.
            return self.line.count_at(self.start)
        return np.bincount(self.piece, minlength=self.line.pieces)

    @cached_property
    def tokens_P(self) -> Array:
        """(P,) int64: the number of tokens in the units of each piece, whatever their weights.

        The budget is the ratio × this number.
        """
        if self.start is not None:
            return totals_within(self.length, self.count)
        return np.bincount(self.piece, self.length, self.line.pieces).astype(np.int64)

    def draw(self, draws: Draws, purpose: Purpose) -> Array:
        """(U,) int32: a random draw for each unit."""
        if self.start is not None:
            return draws.draw_each(purpose, self.count, self.number)
        return draws.draw(purpose, self.piece, self.number)

    def repeated(self, values_P: Array) -> Array:
        """(U,) array: for each unit, the value of its piece in ``values_P``."""
        # If units have a start, they are sorted by piece. ``repeat`` then works, and is five times
        # as fast as indexing.
        if self.start is not None:
            return np.repeat(values_P, self.count)
        return values_P[self.piece]

    def weighted(self, weight: Array) -> Self:
        """Copy the units with new weights (U,).

        Raises:
            MaskwiseError: there is not one weight for each unit, or a weight is not a finite number
                ≥ 0.
        """
        if np.shape(weight) != self.piece.shape:
            raise MaskwiseError(
                "each unit needs one weight",
                got=f"weights of shape {np.shape(weight)} for {len(self.piece)} units",
            )
        weight = np.asarray(weight, np.float64)
        check_weights(weight)
        other = copy(self)
        other.weight = weight
        return other

    def filled(self) -> Units:
        """Copy the units, with tiny weights instead of 0.

        Units of weight 0 can then be selected, but only after all other units.
        """
        if self.weight is None:
            return self
        return self.weighted(np.where(self.weight > 0, self.weight.clip(LIGHTEST), FILLING))

    def kept(self, kept: Array) -> Units:
        """Return the units where ``kept``, (U,) bool, is True. Units keep their numbers."""
        inside = kept.take(self.unit)
        unit = (kept.cumsum() - 1)[self.unit[inside]]
        weight = None if self.weight is None else self.weight[kept]
        return Units.of_tokens(
            self.line, self.tokens[inside], unit, self.piece[kept], self.number[kept], weight
        )

    def spread(self, chosen_U: Array) -> Array:
        """(T,) bool: the tokens of the units where ``chosen_U``, (U,) bool, is True."""
        chosen = np.zeros(len(self.line.input_ids), bool)
        at = np.flatnonzero(chosen_U)
        if self.by_token:
            chosen[self.tokens[at]] = True
        elif self.start is not None:
            chosen[listed(self.start[at], self.length[at])] = True
        else:
            chosen[self.tokens[chosen_U.take(self.unit)]] = True
        return chosen


def check_weights(weight: Array) -> None:
    """Raise ``MaskwiseError`` unless all weights are finite and ≥ 0.

    Without this check, a unit with a negative or NaN weight would never be masked, and no error
    would say so.
    """
    valid = (weight >= 0) & (weight < np.inf)
    if not valid.all():
        raise MaskwiseError("a weight is not a finite number ≥ 0", got=float(weight[~valid][0]))


def require_units(units: object, line: Line, who: str) -> None:
    """Raise ``PlugInError`` unless a policy of another package cut the line as it must.

    The units must be disjoint, of tokens that may be masked and of one piece each, with arrays of
    the types that ``select`` reads.

    Args:
        units: what the policy returned.
        line: the line that it cut.
        who: words for the policy in the error message, such as "policy Verse()".
    """
    if not isinstance(units, Units):
        raise PlugInError(
            f"{who}: cut() does not return units",
            got=type(units).__name__,
            do="return units from cut(), such as those of maskwise.masking.units.runs",
        )
    count = np.shape(units.piece)[:1]
    for name in ("piece", "number", "length", "start", "weight"):
        values = getattr(units, name)
        if values is None and name in ("start", "weight"):
            continue
        wanted = np.float64 if name == "weight" else np.int64
        shape = np.shape(values)
        if not isinstance(values, np.ndarray) or (values.dtype, shape) != (wanted, count):
            kind = getattr(values, "dtype", "no type")
            raise PlugInError(
                f"{who}: {name} must have one {wanted.__name__} for each unit",
                got=f"{type(values).__name__} of {kind} and shape {shape}, for {count} units",
                allowed=f"ndarray of {wanted.__name__} and shape {count}",
                do="change weights with units.weighted(weight)" if name == "weight" else None,
            )

    def require(holds: bool | np.bool_, what: str, **details: Any) -> None:
        if not holds:
            raise PlugInError(f"{who}: {what}", **details)

    if units.weight is not None:
        # This also finds weights that were set without ``weighted``.
        sound = (units.weight >= 0) & (units.weight < np.inf)
        wrong = units.weight[~sound][:1]
        require(sound.all(), "a weight is not a finite number ≥ 0", got=f"{wrong}")
    require((units.length > 0).all(), "a unit has no tokens")
    if units.start is not None:
        require(
            (np.diff(units.start) > 0).all(),
            "units with a start must be in the order of the text, and not overlap",
            do="sort the units by start, or make them with Units.of_tokens",
        )
    tokens = units.tokens
    fits = len(tokens) == units.length.sum() and ((tokens >= 0) & (tokens < len(line.piece))).all()
    require(
        fits,
        "the tokens of units do not fit the line",
        got=f"{len(tokens)} tokens, units of {units.length.sum()} tokens",
    )
    wrong = tokens[~line.eligible[tokens]]
    require(
        not len(wrong),
        "a unit has a token that must not be masked",
        got=f"id {line.input_ids[wrong[:1]]}",
        do="cut only tokens where line.eligible is True, as units_by and runs do",
    )
    taken = np.bincount(tokens, minlength=1)
    require(taken.max() <= 1, "a token is in two units", got=f"token {taken.argmax()} of the line")
    require(
        np.array_equal(line.piece[tokens], units.piece[units.unit]),
        "a unit has tokens of another document than its piece",
        do="end units at line.begin",
    )
    most = max(NUMBERS, line.shape[1]) - 1
    outside = units.number[(units.number < 0) | (units.number > most)][:1]
    require(
        not len(outside),
        "the number of a unit is outside the allowed range, so draws would not be independent",
        got=f"{outside}",
        allowed=f"0 to {most}",
        do="number the units of each document from 0, as runs does",
    )
    order = np.lexsort((units.number, units.piece))
    same = np.diff(units.piece[order]) == 0
    same &= np.diff(units.number[order]) == 0
    require(not same.any(), "two units of a document have the same number")


def runs(line: Line, ids: Array) -> Units:
    """Make a unit of each run of consecutive content tokens with the same id ≥ 0.

    A run with a token that may not be masked is left out, such as a word with an [UNK].

    Args:
        line: the line whose tokens form the units.
        ids: (T,) int64, the id of each token; negative for tokens outside units.
    """
    start, length, barred = find_runs(line, ids)
    count_P = line.count_at(start)
    piece = owners(count_P)
    number = rank_within(count_P)
    if not len(barred):
        return Units(line, piece, number, start, length)
    kept = np.ones(len(start), bool)
    kept[barred] = False
    return Units(line, piece[kept], number[kept], start[kept], length[kept])


def find_runs(line: Line, ids: Array) -> tuple[Array, Array, Array]:
    """Find runs of consecutive content tokens with the same id ≥ 0 in each piece.

    Returns:
        The position of the first token of each run, (R,); the length of each run, (R,); and the
        index of the run of each token in runs that may not be masked, ascending.
    """
    inside = (ids >= 0) & line.content
    # A run ends where the id changes, before a token without an id, and at the end of the piece.
    continues = inside.copy()
    continues[1:] &= inside[:-1] & (ids[1:] == ids[:-1])
    continues[line.begin[: len(ids)]] = False
    last = inside.copy()
    last[:-1] &= ~continues[1:]
    start = np.flatnonzero(inside & ~continues)
    length = np.flatnonzero(last) - start + 1
    barred = np.flatnonzero(inside & ~line.eligible)
    return start, length, start.searchsorted(barred, side="right") - 1


def floors(tokens_P: Array, ratio_P: Array, min_targets: int) -> Array:
    """(P,) int64: the minimum budget, in tokens, of each piece.

    The minimum is ``min_targets`` if tokens × ratio ≥ 0.5, and otherwise 0. The minimum never
    exceeds the number of tokens.
    """
    wanted_P = ratio_P * tokens_P
    return np.minimum(tokens_P, min_targets) * (wanted_P >= 0.5)


def budgets(tokens_P: Array, ratio_P: Array, draws: Draws, min_targets: int) -> Array:
    """(P,) int64: the budget, in tokens, of each piece."""
    # With random rounding, the mean is exactly ratio × tokens, except where the minimum raises it.
    # With rounding to the nearest number, short pieces would get too many or too few masks.
    rounded_P = (ratio_P * tokens_P + draws.per_piece(Purpose.ROUND)).astype(np.int64)
    return np.minimum(np.maximum(rounded_P, floors(tokens_P, ratio_P, min_targets)), tokens_P)


def reached(units: Units, rate_P: Array) -> tuple[Array, Array]:
    """Return the probability of masking each unit, (U,), and its derivative by the rate, (U,).

    A unit is masked with probability 1 − exp(−τ · weight). For each piece, this function finds the
    number τ for which a share ``rate_P`` of the tokens in units of positive weight is masked on
    average: Σ length · probability = rate · Σ length.
    """
    assert units.weight is not None
    piece = units.piece
    count_P = units.count
    weight = units.weight.astype(np.float64)
    # ``reduceat`` needs a third of the time of ``bincount``, but works only if units are sorted by
    # piece and no piece is without units.
    tidy = units.start is not None and count_P.all()

    def total(values: Array) -> Array:
        if tidy:
            return np.add.reduceat(values, offsets(count_P))
        return np.bincount(piece, values, len(rate_P))

    filling = weight == FILLING
    if filling.any():
        least_P = np.full(len(rate_P), np.inf)
        np.minimum.at(least_P, piece, np.where(filling, np.inf, weight))
        least_P[~np.isfinite(least_P)] = 1 / LATE
        weight = np.where(filling, LATE * units.repeated(least_P), weight)
    length = units.length * (weight > 0.0)
    whole_P = np.maximum(total(length), 1)
    weight /= units.repeated(np.maximum(total(length * weight) / whole_P, 1e-300))
    # The logarithm of the visible share is a convex function of τ. Therefore Newton's method
    # approaches the root from the left and never passes it. For equal weights, the function is a
    # straight line; for unequal weights it is nearly straight. Therefore few steps are needed.
    left_P = np.maximum(1 - rate_P, EMPTY)
    wanted_P = np.log(left_P)
    tau_P = -wanted_P
    for _ in range(STEPS):
        left = np.exp(-units.repeated(tau_P) * weight)
        slope = weight * left
        rest_P = np.maximum(total(length * left), 1e-300)
        speed_P = np.maximum(total(length * slope), 1e-300)
        if (np.abs(rest_P - left_P * whole_P) <= 1e-12 * whole_P).all():
            break
        tau_P += (np.log(rest_P / whole_P) - wanted_P) * rest_P / speed_P
    return np.where(weight > 0, 1 - left, 0.0), slope * units.repeated(whole_P / speed_P)
