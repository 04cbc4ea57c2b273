"""The one selection routine: weighted sampling of units without replacement, up to a budget of tokens.

Units are put in the order of their keys (an exponential race: ``−log(u) / weight``, which for equal weights
is any order that the hash gives) and taken from the front. Three budgets say where to stop:

``exact``
    Never more tokens than the budget. A unit that does not fit is skipped and later ones are tried. This
    favours short units where units are long for the budget (methods: at 64 tokens and 15 %, words of one
    piece .200, the longest .105).
``expected``
    The unit at the border is taken with probability (tokens left) / (its length). Whole units, at most one
    unit over, expectation equal to the budget, inclusion nearly even.
``bernoulli``
    Every unit by its own probability, min(1, ratio × weight), independently. Where units are single tokens, the
    first by key fill up to ``min_targets``; whole units are never forced in. There is no budget that could be left
    over, so ``fill`` only says who may fill up.

All tokens of a unit carry its key, and keys are sorted *by value*: then the token at place n of the sorted
row says where a budget of n tokens ends, and which unit stands at the border; no indices are sorted along.
Cost: one sort of (B, L) integers and a handful of passes over (B, L). No loop over tokens; ``exact`` loops
once per unit that it finds for what is left over, one or two times on text, and only over the rows that have
something left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import (
    Array,
    count_below,
    integers,
    numbers,
    places,
    raw,
    sort_rows,
    sorted_around,
    tensor,
    where,
)
from maskwise.errors import unknown_name
from maskwise.keys import Keys, Purpose, unit_interval
from maskwise.masking.units import Units

BUDGETS = ("exact", "expected", "bernoulli")
FILLS = ("none", "random", "skip-row")

_NUMBER_BITS = 20  # weighted keys end in the number of their unit: a row has at most 2²⁰ units
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
_WINDOW = 32  # how many tokens behind the border are looked at for units that still fit
_LIGHTEST, _HEAVIEST = 2.0**-900, 2.0**900  # races of such weights fit a float64, with room behind them for …
_FILLING = 2.0**-1000  # … the weight of units that only fill what is left, so that they come last


@dataclass
class Selection:
    """Which tokens were chosen.

    Attributes:
        tokens: (B, L) bool.
        filled: (B, L) bool, the chosen tokens of weight 0 that only filled the budget; None where nothing may
            fill.
        budget: (B,) int64 tokens; None for ``bernoulli``.
    """

    tokens: Tensor
    filled: Tensor | None
    budget: Tensor | None


def select(
    units: Units,
    ratio_B: Tensor,
    keys: Keys,
    *,
    budget: str = "exact",
    fill: str = "none",
    min_targets: int = 1,
) -> Selection:
    """Choose units.

    Args:
        units: the partition and its weights.
        ratio_B: (B,) float64 in [0, 1], the share of eligible tokens to choose.
        keys: the draws of these rows.
        budget: one of ``BUDGETS``.
        fill: what becomes of a budget that units of positive weight cannot use: ``none`` (left unused),
            ``random`` (units of weight 0, evenly), ``skip-row`` (the row is not masked at all).
        min_targets: the least budget of a row, while eligible × ratio ≥ 0.5. ``bernoulli`` keeps to it where units are
            single tokens only: forcing whole units in would make each likelier than its own probability by far.
    """
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    eligible_B, ratio_B = raw(units.eligible_tokens), raw(ratio_B)
    wanted_B = ratio_B * eligible_B
    floor_B = eligible_B.clip(max=min_targets) * (wanted_B >= 0.5)
    if budget == "bernoulli":
        budget_B, floor_B = None, floor_B if units.of_token is None else floor_B * 0
        if units.settled is None:
            chosen = units.spread(_independently(units, ratio_B, keys, floor_B, fill=fill))
    else:
        budget_B = integers(wanted_B + raw(keys.row_uniform(Purpose.ROUND))).clip(floor_B, eligible_B)
        if fill == "skip-row" and units.weight is not None:
            usable_B = (raw(units.length) * (raw(units.weight) > 0)).sum(1)
            budget_B = budget_B * (usable_B >= budget_B)
        if units.settled is None:
            chosen = tensor(_in_order(units, budget_B, keys, fill=fill, exact=budget == "exact"))
        budget_B = tensor(budget_B)
    if units.settled is not None:
        chosen = units.settled
    filled = None
    if fill == "random" and units.weight is not None:
        filled = chosen & units.spread(units.weight == 0)
    return Selection(chosen, filled, budget_B)


def unit_keys(units: Units, keys: Keys, *, fill: str = "none") -> Array:
    """(B, U) integers: units are taken in ascending order; the largest integer (``_never``) is never taken.

    Distinct within a row, but that a draw that would be ``_never`` takes its neighbour's place (two units of one
    row then go together once in 10¹⁴ rows), so that ``key < bound`` alone says what is taken.
    """
    key, available = raw(keys.draw(Purpose.SELECT, units.number)), raw(units.available)
    if units.weight is not None:
        weight, positive = raw(units.weight).clip(_LIGHTEST, _HEAVIEST), raw(units.weight) > 0
        if fill == "random":
            weight = where(positive, weight, _FILLING)
        else:
            available = available & positive
        # Positive floats are in the order of their bits. The low bits, where two devices' logarithms may differ,
        # give way to the unit's number, which forbids ties.
        race = tensor(unit_interval(key)).log_().neg_().div_(tensor(weight)).view(torch.int64)
        key = (raw(race) & ~_NUMBER_MASK) + raw(units.number)
    return _closed(key, available)


def token_keys(units: Units, keys: Keys, *, fill: str = "none") -> Array:
    """(B, L) integers: every token carries the key of its unit."""
    if units.of_token is None:
        return unit_keys(units, keys, fill=fill)
    if units.weight is None:
        return _closed(raw(keys.draw(Purpose.SELECT, units.of_token.int())), raw(units.inside))
    key = raw(tensor(unit_keys(units, keys, fill=fill)).gather(1, units.index))
    return where(raw(units.inside), key, _never(key))


def _closed(key: Array, available: Array) -> Array:
    # One number is left free at each end, so that there is one below and one above any key.
    return where(available, key.clip(-_never(key), _never(key) - 1), _never(key))


def _never(key: Array) -> int:
    return (1 << (8 * key.itemsize - 1)) - 1


def _in_order(units: Units, budget_B: Array, keys: Keys, *, fill: str, exact: bool) -> Array:
    """(B, L) bool: the tokens of units by key, until the budget is used."""
    key = token_keys(units, keys, fill=fill)
    if not key.shape[1]:
        return key < 0
    # Tokens of a unit stand together in the sorted row; the border is in the unit that has the budget's last token.
    never, place_B = _never(key), (budget_B - 1).clip(min=0)
    near, first_B, bound_B = sorted_around(key, place_B, _WINDOW if exact else 0)
    border_B = near[numbers(len(near), near), place_B - first_B]
    if units.of_token is None:
        fits_B, left_B = budget_B > 0, None
    else:
        begin_B, behind_B = count_below(near, border_B), count_below(near, border_B, equal=True)
        left_B, size_B = budget_B - first_B - begin_B, behind_B - begin_B
        # A unit that does not fit is not taken (exact), or with probability left / size (expected).
        fits_B = size_B <= left_B if exact else raw(keys.row_uniform(Purpose.BORDER)) * size_B <= left_B
    chosen = key <= (border_B - 1 + fits_B).clip(max=never - 1)[:, None]
    if exact and left_B is not None:
        left_B = left_B * ~fits_B * (border_B < never)
        if bool(left_B.any()):
            chosen |= _later(key, border_B, left_B, near, bound_B)
    return chosen


def _later(
    key: Array, border_B: Array, left_B: Array, near: Array, bound_B: Array, *,
    window: int = _WINDOW,
) -> Array:  # fmt: skip
    """(B, L) bool: units behind the border that fit into what is left, in order, each leaving less to the next.

    Args:
        key: (B, L), one for each token, so that a unit is a run of equal ones in the sorted row.
        border_B: the key of the unit at the border; left_B: tokens left of the budget.
        near: (B, W), the sorted rows around the border, all that there is up to the bounds ``bound_B``.
        window: how many tokens behind the border to look at; all of them where these are not enough.
    """
    never, width, rows = _never(key), near.shape[1], places(left_B > 0)  # from here on R rows, X tokens
    place = numbers(min(window, width), near)
    column = count_below(near, border_B, equal=True)[rows][:, None] + place
    some, bound_R1 = near.take(rows[:, None] * width + column.clip(max=width - 1)), bound_B[rows][:, None]
    some = where((column < width) & (some < bound_R1), some, never)
    more_R1 = (some[:, -1:] < never) | (bound_R1 < never)
    length = raw(torch.searchsorted(tensor(some), tensor(some), right=True)) - place
    start = some < never
    start[:, 1:] &= some[:, 1:] != some[:, :-1]
    start &= (place + length < len(place)) | (
        some[:, -1:] == never
    )  # not a unit that the window may have cut
    taken, left_R1 = start & False, left_B[rows][:, None]
    # Each pass takes, among the units that could fit what is left, the longest prefix that does. The unit that ended
    # the prefix is longer than what is then left, so leftovers fall strictly and few passes are needed.
    while True:
        fits = start & (length <= left_R1)
        new = fits & ((length * fits).cumsum(1) <= left_R1)
        if not bool(new.any()):
            break
        taken |= new
        start ^= new
        left_R1 = left_R1 - (length * new).sum(1)[:, None]
    if window < key.shape[1] and bool((more_R1 & (left_R1 > 0)).any()):
        everything = sort_rows(key)
        return _later(key, border_B, left_B, everything, bound_B * 0 + never, window=key.shape[1])
    # As many passes as a row has found units, each row's n-th in the n-th; they cost less than to undo the hash.
    count_R = taken.sum(1)
    taken_RN = sort_rows(where(taken, some, never))[:, : int(count_R.max())]
    chosen = key < -never
    for n in range(taken_RN.shape[1]):
        wanted_B = border_B * 0 - never - 1  # no key, where a row has found fewer
        wanted_B[rows] = where(count_R > n, taken_RN[:, n], -never - 1)
        chosen |= key == wanted_B[:, None]
    return chosen


def _independently(units: Units, ratio_B: Array, keys: Keys, floor_B: Array, *, fill: str) -> Tensor:
    """(B, U) bool: each unit by its own probability min(1, ratio × weight); then the first by key, up to the floor."""
    key = unit_keys(units, keys, fill=fill)
    probability = ratio_B[:, None] if units.weight is None else ratio_B[:, None] * raw(units.weight)
    chosen = (raw(keys.uniform(Purpose.BERNOULLI, units.number)) < probability) & (key < _never(key))
    missing_B = (floor_B - chosen.sum(1)).clip(min=0)
    if bool(missing_B.any()):
        key = where(chosen, _never(key), key)
        last_B = sort_rows(key)[numbers(len(key), key), (missing_B - 1).clip(min=0)]
        chosen |= key <= (last_B - 1 + (missing_B > 0)).clip(max=_never(key) - 1)[:, None]
    return tensor(chosen)
