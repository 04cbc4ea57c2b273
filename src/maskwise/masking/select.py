"""Select units by weighted sampling without replacement, up to a budget of tokens.

In each piece, units are sorted by their keys and taken from the front. A key is
``−log(u) / weight`` for a uniform draw u (an exponential race); if all weights are equal, the key
is the draw. The budget mode decides which units are taken:

``exact``
    Selects at most the budget. A unit that does not fit is skipped, and later units are tried. With
    a small budget this favours short units: at 64 tokens and 15 %, words of one token are selected
    with probability .200, and the longest words with .105.
``expected``
    Selects the budget on average. The first unit that does not fit is taken with probability
    (tokens left) / (length of the unit), and selection ends. At most this one unit exceeds the
    budget, and all units are selected with nearly equal probability.
``bernoulli``
    Selects each unit independently with probability min(1, ratio × weight), without a budget. If
    units are single tokens, more tokens are added in the order of their keys until ``min_targets``
    is reached. Only ``fill: random`` adds tokens of weight 0.

Cost: one sort of all units of the batch, and about twenty passes over the units. On text, ``exact``
makes two or three more passes over the units after the first that does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskwise.keys import Array, Keys, Purpose, unit_interval
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.units import FILLING, Units, budgets, floors
from maskwise.segments import (
    counts_within,
    first_of,
    first_within,
    offsets,
    order_within,
    sums_within,
)

BUDGETS = ("exact", "expected", "bernoulli")
FILLS = ("none", "random", "skip-row")

# The low 20 bits of a weighted key hold the number of the unit, so a piece has at most 2²⁰ units.
_NUMBER_MASK = (1 << 20) - 1
# Larger weights are clipped; a key would otherwise underflow to 0.
_HEAVIEST = 2.0**900


@dataclass(eq=False)
class Selection:
    """The selected units of a batch.

    Attributes:
        units: all candidate units.
        chosen: (U,) bool, whether each unit was selected.
        ratio_P: (P,) float64, the requested ratio of each piece.
        budget: (P,) int64, the budget of each piece in tokens; None if there is no budget (budget
            mode ``bernoulli``, ``visits`` other than ``random``, masked diffusion).
        weight_T: (T,) float64, the factor for each token's loss in masked diffusion; otherwise
            None.
    """

    units: Units
    chosen: Array
    ratio_P: Array
    budget: Array | None = None
    weight_T: Array | None = None

    @property
    def batch(self) -> AnnotatedBatch:
        """The batch from which the units were selected."""
        return self.units.batch

    @cached_property
    def tokens(self) -> Array:
        """(T,) bool: the selected tokens."""
        return self.units.spread(self.chosen)

    @cached_property
    def starts(self) -> Array:
        """(T,) bool: the first token of each run of selected tokens in a piece."""
        chosen = self.tokens
        start = chosen.copy()
        start[1:] &= ~chosen[:-1]
        if len(start):
            start[self.batch.begin] = chosen[self.batch.begin]
        return start

    @property
    def masked_pieces(self) -> Array:
        """(T,) bool: all tokens, except padding, of pieces with a selected token."""
        batch = self.batch
        return (batch.count(self.tokens) > 0).take(batch.piece) & batch.present


def select(
    units: Units,
    ratio_P: Array,
    keys: Keys,
    *,
    budget: str = "expected",
    fill: str = "none",
    min_targets: int = 1,
) -> Selection:
    """Select units up to a budget in each piece.

    Args:
        units: the candidates, with their weights.
        ratio_P: (P,) float64 in [0, 1], the share of eligible tokens to select.
        keys: the random draws for these pieces.
        budget: one of ``BUDGETS``.
        fill: one of ``FILLS``: what to do if units of positive weight cannot use the budget.
            ``none`` leaves the rest of the budget unused. ``random`` takes units of weight 0 with
            equal probability; call ``Units.filled`` first. ``skip-row`` leaves the piece unmasked.
        min_targets: the minimum budget of a piece, in tokens, where eligible × ratio ≥ 0.5. With
            ``bernoulli``, the minimum holds only if units are single tokens, because adding whole
            units would distort their probabilities.
    """
    if budget == "bernoulli":
        floor_P = floors(units.tokens_P, ratio_P, min_targets)
        return Selection(units, _independently(units, ratio_P, keys, floor_P), ratio_P)
    budget_P = budgets(units.tokens_P, ratio_P, keys, min_targets)
    if fill == "skip-row" and units.weight is not None:
        usable = units.length * (units.weight > 0)
        usable_P = np.bincount(units.piece, usable, len(budget_P))
        budget_P *= usable_P >= budget_P
    chosen = up_to(units, budget_P, keys, exact=budget == "exact")
    return Selection(units, chosen, ratio_P, budget_P)


def unit_keys(units: Units, keys: Keys) -> Array:
    """(U,) int32, or int64 with weights: the sort keys of the units of each piece."""
    draw = units.draw(keys, Purpose.SELECT)
    if units.weight is None:
        return draw
    weight = units.weight.clip(FILLING, _HEAVIEST)
    # Positive floats sort like their bits. The low bits, in which the logarithms of two machines
    # may differ, are replaced by the unit's number, which also prevents ties.
    race = (-np.log(unit_interval(draw)) / weight).view(np.int64)
    return (race & ~_NUMBER_MASK) + units.number


def in_order(units: Units, keys: Keys, *, budget_P: Array | None = None) -> Array:
    """(A,) int64: the indices of units of positive weight, sorted by piece, then by key.

    If ``budget_P`` is given, units after the first unit that exceeds the budget may be left out.
    """
    key = unit_keys(units, keys)
    pieces = units.batch.pieces
    near = None
    if units.weight is None and budget_P is not None:
        near = _likely_first(units, key, budget_P)
    if near is not None:
        return near[order_within(units.piece[near], key[near], pieces=pieces)]
    order = order_within(units.piece, key, pieces=pieces)
    if units.weight is not None:
        order = order[units.weight.take(order) > 0]
    return order


def _likely_first(units: Units, key: Array, budget_P: Array) -> Array | None:
    """Indices of the units with the smallest keys in each piece, enough to exceed the budget.

    Returns None if sorting all units is cheaper. Keys are uniform, so units below a threshold
    nearly always use the whole budget, and other units need no sorting. The threshold adds three
    standard deviations and two units to the expected number. A piece with too few units below the
    threshold keeps all its units.
    """
    count_P = units.count
    wanted_P = count_P * budget_P / np.maximum(units.tokens_P, 1)
    most_P = np.minimum(wanted_P + 3 * np.sqrt(wanted_P) + 2, count_P)
    if most_P.sum() >= 0.7 * len(key):
        return None
    # Avoid a division by 0 in pieces without units.
    share_P = most_P / np.maximum(count_P, 1)
    edge_P = (np.maximum(share_P * 2.0**32, 1) - 2.0**31 - 1).astype(np.int32)
    first = key <= units.repeated(edge_P)
    near = np.flatnonzero(first)
    length = None if units.by_token else units.length[near]
    short_P = np.bincount(units.piece[near], length, len(budget_P)) <= budget_P
    if (short_P & (most_P < count_P)).any():
        near = np.flatnonzero(first | short_P[units.piece])
    return near


def up_to(units: Units, budget_P: Array, keys: Keys, *, exact: bool = True) -> Array:
    """(U,) bool: take units in the order of their keys until the budget of the piece is used.

    If ``exact``, units that do not fit are skipped; otherwise the first of them may be taken.
    """
    needed_P: Array | None = budget_P
    if exact and not units.by_token:
        # Units after the border unit are tried too, so all units must be sorted.
        needed_P = None
    order = in_order(units, keys, budget_P=needed_P)
    piece = units.piece[order]
    chosen = np.zeros(len(units.piece), bool)
    counts_P = counts_within(piece, len(budget_P))
    if units.by_token:
        # Single tokens use the budget completely, so there is no border unit.
        chosen[order[first_of(counts_P, budget_P)]] = True
        return chosen
    length = units.length[order]
    fits = sums_within(length, counts_P) <= np.repeat(budget_P, counts_P)
    chosen[order[fits]] = True
    fitting = piece[fits]
    left_P = budget_P - np.bincount(fitting, length[fits], len(budget_P)).astype(np.int64)
    taken_P = np.bincount(fitting, minlength=len(budget_P))
    # The border unit is the first unit that does not fit. A piece has no border unit if all of its
    # units fit, or if the units before it use the whole budget.
    border_P = np.flatnonzero((taken_P < counts_P) & (left_P > 0))
    border = (offsets(counts_P) + taken_P)[border_P]
    if not exact:
        taken = keys.per_piece(Purpose.BORDER)[border_P] * length[border] <= left_P[border_P]
        chosen[order[border[taken]]] = True
        return chosen
    # Each pass over the remaining units takes the longest prefix that fits into the rest of the
    # budget. The first unit after the prefix is longer than the new rest, so it is dropped. The
    # number of units thus falls in every pass, and few passes are needed.
    behind = np.flatnonzero(~fits & (length <= left_P[piece]))
    while len(behind):
        here = piece.take(behind)
        size = length.take(behind)
        counts_P = np.bincount(here, minlength=len(left_P))
        fits = sums_within(size, counts_P) <= left_P.take(here)
        chosen[order[behind[fits]]] = True
        left_P -= np.bincount(here[fits], size[fits], len(left_P)).astype(np.int64)
        behind = behind[~fits & (size <= left_P.take(here))]
    return chosen


def _independently(units: Units, ratio_P: Array, keys: Keys, floor_P: Array) -> Array:
    """(U,) bool: select each unit independently, then add single tokens up to ``floor_P``."""
    probability = ratio_P.take(units.piece)
    available = np.ones(len(probability), bool)
    if units.weight is not None:
        probability *= units.weight
        available = units.weight > 0
    draw = unit_interval(units.draw(keys, Purpose.BERNOULLI))
    chosen = (draw < probability) & available
    if not units.by_token:
        return chosen
    missing_P = floor_P - np.bincount(units.piece[chosen], minlength=len(floor_P))
    if (missing_P > 0).any():
        rest = np.flatnonzero(available & ~chosen)
        key = unit_keys(units, keys).take(rest)
        added = first_within(units.piece.take(rest), key, missing_P)
        chosen[rest[added]] = True
    return chosen


def stretch(units: Units, keys: Keys, low_P: Array, high_P: Array) -> Selection:
    """Sort units at random, and select the units between two shares of the tokens.

    A unit is selected if its middle lies in [low, high), as a share of the tokens of its piece.
    """
    order = in_order(units, keys)
    piece = units.piece[order]
    length = units.length[order]
    total_P = np.bincount(piece, length, len(low_P))
    counts_P = counts_within(piece, len(low_P))
    middle = (sums_within(length, counts_P) - length / 2) / np.maximum(total_P, 1)[piece]
    # Shifting both edges by the same tolerance assigns a middle on an edge, whatever its rounding
    # error, to exactly one of two adjacent parts.
    inside = (middle >= low_P[piece] - 1e-12) & (middle < high_P[piece] - 1e-12)
    chosen = np.zeros(len(units.piece), bool)
    chosen[order[inside]] = True
    return Selection(units, chosen, high_P - low_P)
