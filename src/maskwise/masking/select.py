"""The one selection routine: weighted sampling of units without replacement, up to a budget.

Units of a piece are sorted by their keys (an exponential race, ``−log(u) / weight``; for equal
weights the draws themselves) and taken from the front. The budget decides where to stop:

``exact``
    Never more tokens than the budget. A unit that does not fit is skipped, and later units are
    tried. Skipping favours short units if the budget is small (at 64 tokens and 15 %, words of one
    token are selected with probability .200, the longest with .105).
``expected``
    The unit at the border is taken with probability (tokens left) / (its length). Units stay whole,
    the budget is exceeded by at most one unit and met on average, and inclusion is nearly even.
``bernoulli``
    Each unit is selected independently with probability min(1, ratio × weight); there is no fixed
    budget. Single tokens are added in the order of their keys until ``min_targets`` is reached, and
    ``fill`` decides only whether tokens of weight 0 may be added.

Cost: one sort of all units of the batch and about twenty passes over them; on text, ``exact`` makes
two or three more passes over the units after the border.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose, unit_interval
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies import Moment, Policy
from maskwise.masking.schedules import Schedule
from maskwise.masking.units import Units, budgets
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
VISITS = ("random", "complement", "coverage")

# The low bits of a weighted key are the number of its unit, so a piece has at most 2²⁰ units.
_NUMBER_MASK = (1 << 20) - 1
# Weights are clipped, so that no key overflows a float64.
_LIGHTEST = 2.0**-900
_HEAVIEST = 2.0**900
# Units of weight 0 that may fill the budget get this weight, so they come after all other units.
_FILLING = 2.0**-1000


@dataclass(eq=False)
class Selection:
    """Which units were selected, and how.

    Attributes:
        units: the units to choose from.
        chosen: (U,) bool, the selected units.
        ratio_P: (P,) float64, the requested ratio of each piece.
        budget: (P,) int64, the budget of each piece in tokens; None for ``bernoulli``, ``visits``
            and diffusion, which have no budget.
        weight_T: (T,) float64, the factor for each token's loss in masked diffusion; else None.
    """

    units: Units
    chosen: Array
    ratio_P: Array
    budget: Array | None = None
    weight_T: Array | None = None

    @cached_property
    def tokens(self) -> Array:
        """(T,) bool: the selected tokens."""
        return self.units.spread(self.chosen)


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
        units: the candidates, with their weights.
        ratio_P: (P,) float64 in [0, 1], the share of eligible tokens to select.
        keys: the random draws for these pieces.
        budget: one of ``BUDGETS``.
        fill: one of ``FILLS``, for the part of the budget that units of positive weight cannot use:
            ``none`` (leave it unused), ``random`` (take units of weight 0, evenly), ``skip-row``
            (do not mask the piece).
        min_targets: the minimum budget of a piece while eligible × ratio ≥ 0.5. With ``bernoulli``,
            the minimum only holds for single tokens: adding whole units would distort their
            probabilities.

    """
    floor_P, budget_P = budgets(units.tokens_P, ratio_P, keys, min_targets)
    may_fill = fill == "random"
    if budget == "bernoulli":
        chosen = _independently(units, ratio_P, keys, floor_P, may_fill=may_fill)
        return Selection(units, chosen, ratio_P)
    if fill == "skip-row" and units.weight is not None:
        usable = units.length * (units.weight > 0)
        usable_P = np.bincount(units.piece, usable, len(budget_P))
        budget_P *= usable_P >= budget_P
    chosen = up_to(
        units,
        budget_P,
        keys,
        may_fill=may_fill,
        exact=budget == "exact",
    )
    return Selection(units, chosen, ratio_P, budget_P)


def unit_keys(units: Units, keys: Keys, *, may_fill: bool = False) -> Array:
    """(U,) int32, or int64 with weights: the sort keys of the units of each piece."""
    draw = units.draw(keys, Purpose.SELECT)
    if units.weight is None:
        return draw
    weight = units.weight.clip(_LIGHTEST, _HEAVIEST)
    if may_fill:
        weight = np.where(units.weight > 0, weight, _FILLING)
    # Positive floats sort like their bits. The unit's number, which prevents ties, replaces the
    # low bits, where the logarithms of two machines may differ.
    race = (-np.log(unit_interval(draw)) / weight).view(np.int64)
    return (race & ~_NUMBER_MASK) + units.number


def in_order(
    units: Units, keys: Keys, *, may_fill: bool = False, budget_P: Array | None = None
) -> Array:
    """(A,) int64: the candidates, sorted by piece and, within it, by key.

    With ``budget_P``, the units of a piece after the unit that exceeds its budget may be missing.
    """
    key = unit_keys(units, keys, may_fill=may_fill)
    pieces = units.batch.pieces
    near = None
    if units.weight is None and budget_P is not None:
        near = _likely_first(units, key, budget_P)
    if near is not None:
        return near[order_within(units.piece[near], key[near], pieces=pieces)]
    order = order_within(units.piece, key, pieces=pieces)
    if units.weight is not None and not may_fill:
        order = order[units.weight.take(order) > 0]
    return order


def _likely_first(units: Units, key: Array, budget_P: Array) -> Array | None:
    """The units with the smallest keys in each piece, enough to exceed its budget; None for all.

    Keys are uniform, so the first units nearly always have keys below a share of all keys, and the
    rest need not be sorted. The share leaves three standard deviations and two units to spare;
    where even that is not enough, all units of the piece are taken.
    """
    count_P = units.count
    wanted_P = count_P * budget_P / np.maximum(units.tokens_P, 1)
    most_P = np.minimum(wanted_P + 3 * np.sqrt(wanted_P) + 2, count_P)
    if most_P.sum() >= 0.7 * len(key):
        # Sorting all units is cheaper than finding the few that need no sorting.
        return None
    # A piece may have no units.
    share_P = most_P / np.maximum(count_P, 1)
    edge_P = (np.maximum(share_P * 2.0**32, 1) - 2.0**31 - 1).astype(np.int32)
    first = key <= units.repeated(edge_P)
    near = np.flatnonzero(first)
    length = None if units.by_token else units.length[near]
    short_P = np.bincount(units.piece[near], length, len(budget_P)) <= budget_P
    if (short_P & (most_P < count_P)).any():
        near = np.flatnonzero(first | short_P[units.piece])
    return near


def up_to(
    units: Units, budget_P: Array, keys: Keys, *, may_fill: bool = False, exact: bool = True
) -> Array:
    """(U,) bool: take units in their order until the budget of their piece is used."""
    needed_P: Array | None = budget_P
    if exact and not units.by_token:
        # Units after the border are tried too, so all of them must be sorted.
        needed_P = None
    order = in_order(units, keys, may_fill=may_fill, budget_P=needed_P)
    piece = units.piece[order]
    chosen = np.zeros(len(units.piece), bool)
    counts_P = counts_within(piece, len(budget_P))
    if units.by_token:
        # Single tokens use the budget completely, so there is no unit at the border.
        chosen[order[first_of(counts_P, budget_P)]] = True
        return chosen
    length = units.length[order]
    fits = sums_within(length, counts_P) <= np.repeat(budget_P, counts_P)
    chosen[order[fits]] = True
    fitting = piece[fits]
    left_P = budget_P - np.bincount(fitting, length[fits], len(budget_P)).astype(np.int64)
    taken_P = np.bincount(fitting, minlength=len(budget_P))
    # The border unit is the first unit that does not fit. A piece whose units all fit, or whose
    # budget is used completely, has no border unit.
    border_P = np.flatnonzero((taken_P < counts_P) & (left_P > 0))
    border = (offsets(counts_P) + taken_P)[border_P]
    if not exact:
        taken = keys.per_piece(Purpose.BORDER)[border_P] * length[border] <= left_P[border_P]
        chosen[order[border[taken]]] = True
        return chosen
    # Each pass over the units after the border takes the longest prefix that fits into the rest
    # of the budget. The unit that ends the prefix is longer than the new rest, so it is dropped:
    # the number of units falls in every pass, and few passes are needed.
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


def _independently(
    units: Units, ratio_P: Array, keys: Keys, floor_P: Array, *, may_fill: bool
) -> Array:
    """(U,) bool: select each unit independently, then add single tokens up to the floor."""
    probability = ratio_P.take(units.piece)
    available = np.ones(len(probability), bool)
    if units.weight is not None:
        probability *= units.weight
        available = (units.weight > 0) | may_fill
    draw = unit_interval(units.draw(keys, Purpose.BERNOULLI))
    chosen = (draw < probability) & available
    if not units.by_token:
        return chosen
    missing_P = floor_P - np.bincount(units.piece[chosen], minlength=len(floor_P))
    if (missing_P > 0).any():
        rest = np.flatnonzero(available & ~chosen)
        key = unit_keys(units, keys, may_fill=may_fill).take(rest)
        added = first_within(units.piece.take(rest), key, missing_P)
        chosen[rest[added]] = True
    return chosen


# Visits: how the masks of a row in different epochs depend on each other
# -------------------------------------------------------------------------------------------

# ``random``: each epoch draws a new mask.
# ``complement``: epochs form pairs: the second visit masks what the first left. Its ratio is 1 − r.
# ``coverage``: over 1/r epochs, a round, every unit is masked once: the units of a piece are sorted
# at random, and epoch e takes the part from e·r to (e + 1)·r. Each round has a new order.
#
# All visits are functions of (seed, epoch, example): ``complement`` keys draws by pair of epochs,
# ``coverage`` by the round. Units are whole, so a visit may mask one unit more or less than its
# ratio asks for, and no unit in a short piece. If a learning policy changes weights between epochs,
# the order changes too.
#
# Source: complementary masks are from masked diffusion models of 2025; ``coverage`` is new here.


def check_visits(visits: str, policy: Policy, **settings: object) -> None:
    """Check that the other settings work with visits that couple epochs.

    Raises:
        MaskwiseError: a policy whose units depend on the ratio; a budget, fill or minimum number of
            targets that would add units to a visit or drop units from it.
    """
    if visits == "random":
        return
    if policy.needs_ratio:
        raise MaskwiseError(
            f"visits: {visits} needs units and weights that do not depend on the ratio",
            got=f"policy {policy}",
            do="use visits: random",
        )
    possible = {"budget": ("expected",), "fill": ("none", "random"), "min_targets": (0, 1)}
    for setting, values in possible.items():
        if settings[setting] not in values:
            raise MaskwiseError(
                f"visits: {visits} does not allow this {setting}",
                got=settings[setting],
                allowed=values,
            )


def known_epoch(epoch: int | None, visits: str) -> int:
    """Return the epoch, which must be known.

    Raises:
        MaskwiseError: the epoch is unknown.
    """
    if epoch is None:
        raise MaskwiseError(
            f"visits: {visits} needs the epoch",
            do="give epoch=…; in a mix of sources, which have separate epochs, use visits: random",
        )
    return epoch


def coverage(
    batch: AnnotatedBatch,
    moment: Moment,
    policy: Policy,
    ratio: Schedule,
    seed: int,
    *,
    may_fill: bool,
) -> Selection:
    """Select the part of a round that belongs to this epoch.

    Raises:
        MaskwiseError: no epoch, or a ratio that changes.
    """
    epoch = known_epoch(moment.epoch, "coverage")
    share = ratio(moment.step, moment.total_steps)
    if ratio.varies or ratio.random or not share > 0:
        raise MaskwiseError(
            "visits: coverage needs one ratio above 0 for all steps and rows",
            got=ratio,
            do="use a number, such as 0.25",
        )
    ratio_P = np.full(batch.pieces, share)
    # With fractions, the parts of a round meet exactly; floats would leave gaps or overlaps.
    exact_share = Fraction(share).limit_denominator(1 << 20)
    selections = []
    for number, low, high in _stretches(exact_share, epoch):
        keys = Keys(batch.example_id, seed=seed, epoch=number)
        units = policy.cut(batch, keys, moment)
        low_P = np.full_like(ratio_P, low)
        high_P = np.full_like(ratio_P, high)
        selections.append(stretch(units, keys, low_P, high_P, may_fill=may_fill))
    if len(selections) == 1:
        return replace(selections[0], ratio_P=ratio_P)
    # Two rounds may have different units, so the selected tokens become the units.
    tokens = np.flatnonzero(selections[0].tokens | selections[1].tokens)
    return Selection(Units.single(batch, tokens), np.ones(len(tokens), bool), ratio_P)


def _stretches(share: Fraction, epoch: int) -> list[tuple[int, Fraction, Fraction]]:
    """The parts (round, from, to) that an epoch takes: two if a round ends inside the epoch.

    >>> [(n, str(low), str(high)) for n, low, high in _stretches(Fraction(2, 5), 2)]
    [(0, '4/5', '1'), (1, '0', '1/5')]
    """
    start = share * epoch
    end = start + share
    first = int(start)
    if end <= first + 1:
        return [(first, start - first, end - first)]
    return [(first, start - first, Fraction(1)), (first + 1, Fraction(0), end - first - 1)]


def stretch(units: Units, keys: Keys, low_P: Array, high_P: Array, *, may_fill: bool) -> Selection:
    """Sort units at random; select the units whose middle lies between two shares of the tokens."""
    order = in_order(units, keys, may_fill=may_fill)
    piece = units.piece[order]
    length = units.length[order]
    total_P = np.bincount(piece, length, len(low_P))
    counts_P = counts_within(piece, len(low_P))
    middle = (sums_within(length, counts_P) - length / 2) / np.maximum(total_P, 1)[piece]
    # Both edges are shifted by the same tolerance: a middle on an edge, whatever its rounding
    # error, belongs to exactly one of the two parts that meet there.
    inside = (middle >= low_P[piece] - 1e-12) & (middle < high_P[piece] - 1e-12)
    chosen = np.zeros(len(units.piece), bool)
    chosen[order[inside]] = True
    return Selection(units, chosen, high_P - low_P)
