"""The one selection routine: weighted sampling of units without replacement, up to a budget.

Units of a piece are ordered by their keys (an exponential race: ``−log(u) / weight``, or any order
the hash gives for equal weights) and taken from the front. Three budgets say where to stop:

``exact``
    Never more tokens than the budget. A unit that does not fit is skipped and later ones are tried.
    This favours short units where units are long for the budget (at 64 tokens and 15 %: words of
    one piece .200, the longest .105).
``expected``
    The unit at the border is taken with probability (tokens left) / (its length). Whole units, at
    most one unit over, expectation equal to the budget, inclusion nearly even.
``bernoulli``
    Every unit independently with probability min(1, ratio × weight). If units are single tokens,
    the first by key fill up to ``min_targets``. There is no fixed budget; ``fill`` only decides
    whether zero-weight units may be used to reach ``min_targets``.

Cost: one sort of all units of the batch and some twenty passes over them; on text, ``exact`` makes
two or three more passes over the units after the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskwise.errors import unknown_name
from maskwise.keys import Array, Keys, Purpose, unit_interval
from maskwise.masking.units import Units
from maskwise.segments import counts_within, first_of, first_within, order_within, sums_within

BUDGETS = ("exact", "expected", "bernoulli")
FILLS = ("none", "random", "skip-row")
VISITS = ("random", "complement", "coverage")

# Weighted keys end in the number of their unit: a piece has at most 2²⁰ units.
_NUMBER_MASK = (1 << 20) - 1
# Races of such weights fit a float64; units that only fill what is left must come after them.
_LIGHTEST, _HEAVIEST, _FILLING = 2.0**-900, 2.0**900, 2.0**-1000


@dataclass(eq=False)
class Selection:
    """Which units were selected, and how.

    Attributes:
        units: the units to choose from.
        chosen: (U,) bool.
        ratio_P: (P,) float64, the ratio asked for in each piece.
        budget: (P,) int64 tokens; None where units have no order of trial (``bernoulli``,
            ``visits``, diffusion).
        keys: the draws that order the units.
        may_fill: whether units of weight 0 may fill the budget.
        weight_T: (T,) float64, the factor of each token's loss in masked diffusion; else None.
    """

    units: Units
    chosen: Array
    ratio_P: Array
    budget: Array | None = None
    keys: Keys | None = None
    may_fill: bool = False
    weight_T: Array | None = None

    @cached_property
    def tokens(self) -> Array:
        """(T,) bool: the selected tokens."""
        return self.units.spread(self.chosen)

    @cached_property
    def order(self) -> Array | None:
        """(A,) the units that may be selected, piece by piece in the order of trial; else None."""
        if self.budget is None or self.keys is None:
            return None
        return in_order(self.units, self.keys, may_fill=self.may_fill)


def select(
    units: Units,
    ratio_P: Array,
    keys: Keys,
    *,
    budget: str = "expected",
    fill: str = "none",
    min_targets: int = 1,
) -> Selection:
    """Select units.

    Args:
        ratio_P: (P,) float64 in [0, 1], the share of eligible tokens to select.
        budget: one of ``BUDGETS``.
        fill: what happens to budget that units of positive weight cannot use: ``none`` (unused),
            ``random`` (units of weight 0, evenly), ``skip-row`` (the piece is not masked at all).
        min_targets: the least budget of a piece while eligible × ratio ≥ 0.5. With ``bernoulli``
            it only holds for single tokens: forcing whole units in would distort their
            probabilities.
    """
    require_known("budget", budget, BUDGETS)
    require_known("fill", fill, FILLS)
    wanted_P = ratio_P * units.tokens_P
    floor_P = np.minimum(units.tokens_P, min_targets) * (wanted_P >= 0.5)
    may_fill = fill == "random"
    if budget == "bernoulli":
        chosen = _independently(units, ratio_P, keys, floor_P, may_fill=may_fill)
        return Selection(units, chosen, ratio_P)
    rounded_P = (wanted_P + keys.per_piece(Purpose.ROUND)).astype(np.int64)
    budget_P = np.minimum(np.maximum(rounded_P, floor_P), units.tokens_P)
    if fill == "skip-row" and units.weight is not None:
        usable_P = np.bincount(units.piece, units.length * (units.weight > 0), len(budget_P))
        budget_P *= usable_P >= budget_P
    chosen = up_to(units, budget_P, keys, may_fill=may_fill, exact=budget == "exact")
    return Selection(units, chosen, ratio_P, budget_P, keys, may_fill)


def require_known(setting: str, name: str, known: tuple[str, ...]) -> None:
    """Raise if a name is not in a list."""
    if name not in known:
        raise unknown_name(setting, name, known)


def unit_keys(units: Units, keys: Keys, *, may_fill: bool = False) -> Array:
    """(U,) int32, or int64 with weights: the units of a piece are taken in ascending order."""
    draw = units.draw(keys, Purpose.SELECT)
    if units.weight is None:
        return draw
    weight = units.weight.clip(_LIGHTEST, _HEAVIEST)
    if may_fill:
        weight = np.where(units.weight > 0, weight, _FILLING)
    # Positive floats are in the order of their bits. The low bits, where two machines' logarithms
    # may differ, give way to the unit's number, which forbids ties.
    race = (-np.log(unit_interval(draw)) / weight).view(np.int64)
    return (race & ~_NUMBER_MASK) + units.number


def in_order(
    units: Units, keys: Keys, *, may_fill: bool = False, budget_P: Array | None = None
) -> Array:
    """(A,) int64: the units that may be chosen, by piece and, within it, by key.

    With ``budget_P``, units after the one that exceeds the budget of their piece may be left out.
    """
    key = unit_keys(units, keys, may_fill=may_fill)
    pieces = len(units.batch.begin)
    if units.weight is not None:
        order = order_within(units.piece, key, pieces=pieces)
        return order if may_fill else order[units.weight.take(order) > 0]
    near = None if budget_P is None else _likely_first(units, key, budget_P)
    if near is None:
        return order_within(units.piece, key, pieces=pieces)
    return near[order_within(units.piece[near], key[near], pieces=pieces)]


def _likely_first(units: Units, key: Array, budget_P: Array) -> Array | None:
    """The units that nearly always include those up to the budget; None: no use, sort them all.

    Keys are uniform, so those that come first are nearly always below this share of all keys, and
    the others need no sorting. The share is that of the budget with three standard deviations and
    two units to spare; where that is not enough, the whole piece is sorted.
    """
    wanted_P = units.count * budget_P / np.maximum(units.tokens_P, 1)
    most_P = np.minimum(wanted_P + 3 * np.sqrt(wanted_P) + 2, units.count)
    if most_P.sum() >= 0.7 * len(key):
        return None
    share_P = most_P / np.maximum(units.count, 1)  # a piece may have no units
    edge_P = (np.maximum(share_P * 2.0**32, 1) - 2.0**31 - 1).astype(np.int32)
    ordered = units.start is not None
    first = key <= (np.repeat(edge_P, units.count) if ordered else edge_P[units.piece])
    near = np.flatnonzero(first)
    length = None if units.by_token else units.length[near]
    short_P = np.bincount(units.piece[near], length, len(budget_P)) <= budget_P
    if (short_P & (most_P < units.count)).any():
        near = np.flatnonzero(first | short_P[units.piece])
    return near


def up_to(
    units: Units, budget_P: Array, keys: Keys, *, may_fill: bool = False, exact: bool = True
) -> Array:
    """(U,) bool: units in their order, until the budget of their piece is used."""
    later = exact and not units.by_token  # units after the border are tried, too
    order = in_order(units, keys, may_fill=may_fill, budget_P=None if later else budget_P)
    piece = units.piece[order]
    chosen = np.zeros(len(units.piece), bool)
    counts_P = counts_within(piece, len(budget_P))
    if units.by_token:  # units of one token leave nothing over
        chosen[order[first_of(counts_P, budget_P)]] = True
        return chosen
    length = units.length[order]
    fits = sums_within(length, counts_P) <= np.repeat(budget_P, counts_P)
    chosen[order[fits]] = True
    fitting = piece[fits]
    left_P = budget_P - np.bincount(fitting, length[fits], len(budget_P)).astype(np.int64)
    taken_P = np.bincount(fitting, minlength=len(budget_P))
    # The unit at the border is the first one that does not fit; a piece whose units all fit has
    # none.
    border_P = np.flatnonzero((taken_P < counts_P) & (left_P > 0))
    border = (counts_P.cumsum() - counts_P + taken_P)[border_P]
    if not exact:
        taken = keys.per_piece(Purpose.BORDER)[border_P] * length[border] <= left_P[border_P]
        chosen[order[border[taken]]] = True
        return chosen
    # Units after the border that still fit, in their order. Each pass takes the longest stretch of
    # them that fits into what its piece has left. The unit that ended the stretch is longer than
    # what is then left, so the leftovers fall strictly, and few passes are needed.
    behind = np.flatnonzero(~fits & (length <= left_P[piece]))
    while len(behind):
        here, size = piece.take(behind), length.take(behind)
        counts_P = np.bincount(here, minlength=len(left_P))
        fits = sums_within(size, counts_P) <= left_P.take(here)
        chosen[order[behind[fits]]] = True
        left_P -= np.bincount(here[fits], size[fits], len(left_P)).astype(np.int64)
        behind = behind[~fits & (size <= left_P.take(here))]
    return chosen


def _independently(
    units: Units, ratio_P: Array, keys: Keys, floor_P: Array, *, may_fill: bool
) -> Array:
    """(U,) bool: select each unit by its own probability; fill up to the floor with tokens."""
    probability = ratio_P.take(units.piece)
    available = np.ones(len(probability), bool)
    if units.weight is not None:
        probability *= units.weight
        available = (units.weight > 0) | may_fill
    chosen = (unit_interval(units.draw(keys, Purpose.BERNOULLI)) < probability) & available
    if units.by_token:
        missing_P = floor_P - np.bincount(units.piece[chosen], minlength=len(floor_P))
        if (missing_P > 0).any():
            rest = np.flatnonzero(available & ~chosen)
            key = unit_keys(units, keys, may_fill=may_fill).take(rest)
            chosen[rest[first_within(units.piece.take(rest), key, missing_P)]] = True
    return chosen
