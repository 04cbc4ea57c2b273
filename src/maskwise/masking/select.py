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

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import unknown_name
from maskwise.keys import Keys, Purpose, unit_interval
from maskwise.masking.units import Units

BUDGETS = ("exact", "expected", "bernoulli")
FILLS = ("none", "random", "skip-row")

_NUMBER_BITS = 20  # weighted keys end in the number of their unit: a row has at most 2²⁰ units
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
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
    eligible_B = units.eligible_tokens
    wanted_B = ratio_B * eligible_B
    floor_B = eligible_B.clamp(max=min_targets).masked_fill_(wanted_B < 0.5, 0)
    if budget == "bernoulli":
        floor_B = floor_B if units.of_token is None else torch.zeros_like(floor_B)
        budget_B, chosen = None, units.spread(_independently(units, ratio_B, keys, floor_B, fill=fill))
    else:
        budget_B = wanted_B.add_(keys.row_uniform(Purpose.ROUND)).long().clamp_(floor_B, eligible_B)
        if fill == "skip-row" and units.weight is not None:
            usable_B = torch.where(units.weight > 0, units.length, 0).sum(1)
            budget_B = torch.where(usable_B < budget_B, 0, budget_B)
        chosen = _in_order(units, budget_B, keys, fill=fill, exact=budget == "exact")
    filled = None
    if fill == "random" and units.weight is not None:
        filled = chosen & units.spread(units.weight == 0)
    return Selection(chosen, filled, budget_B)


def unit_keys(units: Units, keys: Keys, *, fill: str = "none") -> Tensor:
    """(B, U) integers: units are taken in ascending order; the largest integer (``_never``) is never taken.

    Distinct within a row, but that a draw that would be ``_never`` takes its neighbour's place (two units of one
    row then go together once in 10¹⁴ rows), so that ``key < bound`` alone says what is taken.
    """
    key, available = keys.draw(Purpose.SELECT, units.number), units.available
    if units.weight is not None:
        weight = units.weight.clamp(_LIGHTEST, _HEAVIEST)
        positive = units.weight > 0
        if fill == "random":
            weight = torch.where(positive, weight, _FILLING)
        else:
            available = available & positive
        # Positive floats are in the order of their bits. The low bits, where two devices' logarithms may differ,
        # give way to the unit's number, which forbids ties.
        race = unit_interval(key).log_().neg_().div_(weight).view(torch.int64)
        key = (race >> _NUMBER_BITS << _NUMBER_BITS) + units.number
    return _closed(key, available)


def token_keys(units: Units, keys: Keys, *, fill: str = "none") -> Tensor:
    """(B, L) integers: every token carries the key of its unit."""
    if units.of_token is None:
        return unit_keys(units, keys, fill=fill)
    if units.weight is None:
        return _closed(keys.draw(Purpose.SELECT, units.of_token.int()), units.inside)
    key = unit_keys(units, keys, fill=fill).gather(1, units.of_token)
    return key.masked_fill_(~units.inside, _never(key))


def _closed(key: Tensor, available: Tensor) -> Tensor:
    never = _never(key)
    return key.clamp_(max=never - 1).masked_fill_(~available, never)


def _never(key: Tensor) -> int:
    return torch.iinfo(key.dtype).max


def sort_rows(x: Tensor) -> Tensor:
    """Sort (B, U) integers along rows. On the CPU numpy's sort: 20 times torch's speed for int32."""
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(1).values


def flat_nonzero(x: Tensor) -> Tensor:
    """(M,) int64 places in the flattened bool ``x``, in order. On the CPU numpy's, 5 times torch's speed."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(x.numpy()))
    return x.reshape(-1).nonzero().view(-1)


def _at(order: Tensor, place_B1: Tensor) -> Tensor:
    """(B, 1): the key at a place of the sorted rows; ``_never`` behind their end."""
    width = order.shape[1]
    if not width:
        return torch.full_like(place_B1, _never(order))
    return order.gather(1, place_B1.clamp(max=width - 1)).masked_fill_(place_B1 >= width, _never(order))


def _in_order(units: Units, budget_B: Tensor, keys: Keys, *, fill: str, exact: bool) -> Tensor:
    """(B, L) bool: the tokens of units by key, until the budget is used."""
    key, budget_B1 = token_keys(units, keys, fill=fill), budget_B.unsqueeze(1)
    order = sort_rows(key)
    if units.of_token is None:
        return key < _at(order, budget_B1)
    # Tokens of a unit stand together in the sorted row; the border is in the unit that has the budget's last token.
    border_B1 = _at(order, (budget_B1 - 1).clamp_(min=0))
    begin_B1 = torch.searchsorted(order, border_B1)
    end_B1 = torch.searchsorted(order, border_B1, right=True)
    left_B1, size_B1 = budget_B1 - begin_B1, end_B1 - begin_B1
    # A unit that does not fit is not taken (exact), or with probability left / size (expected).
    luck_B1 = torch.ones_like(left_B1) if exact else keys.row_uniform(Purpose.BORDER).unsqueeze(1)
    fits_B1 = luck_B1 * size_B1 <= left_B1
    chosen = key < torch.where(fits_B1, _at(order, end_B1), border_B1)
    if exact:
        left_B1 = left_B1.masked_fill_(fits_B1, 0)
        if bool(left_B1.any()):
            chosen |= _later(units, keys, order, end_B1, left_B1)
    return chosen


def _later(
    units: Units, keys: Keys, order: Tensor, begin_B1: Tensor, left_B1: Tensor, *, window: int = 32
) -> Tensor:
    """(B, L) bool: units behind the border that fit into what is left, in order, each leaving less to the next.

    Args:
        order: (B, L) sorted keys, one for each token, so that a unit is a run of equal ones.
        begin_B1: where the units behind the border begin.
        left_B1: tokens left of the budget.
        window: how many tokens to look at; all of them where these are not enough.
    """
    never, width = _never(order), order.shape[1]
    window = min(window, width)
    place = torch.arange(window, device=order.device)
    there = begin_B1 + place
    near = order.gather(1, there.clamp(max=width - 1)).masked_fill_(there >= width, never)
    end = torch.searchsorted(near, near, right=True)
    start = near < never
    start[:, 1:] &= near[:, 1:] != near[:, :-1]
    if window < width:
        start &= end < window  # a unit that the window may have cut is not looked at
    length, taken = (end - place) * start, torch.zeros_like(start)
    # Each pass takes, among the units that could fit what is left, the longest prefix that does. The unit that ended
    # the prefix is longer than what is then left, so leftovers fall strictly and few passes are needed.
    while True:
        fits = start & (length <= left_B1)
        new = fits & ((length * fits).cumsum(1) <= left_B1)
        if not bool(new.any()):
            break
        taken |= new
        start ^= new
        left_B1 = left_B1 - (length * new).sum(1, keepdim=True)
    if window < width and bool(((left_B1 > 0) & (near[:, -1:] < never)).any()):
        again = left_B1 + (length * taken).sum(1, keepdim=True)
        return _later(units, keys, order, begin_B1, again, window=width)
    number = near & _NUMBER_MASK if units.weight is not None else keys.index_of(Purpose.SELECT, near).long()
    assert units.of_token is not None
    # What was not taken points behind the last unit.
    chosen = torch.zeros(len(order), width + 1, dtype=torch.bool, device=order.device)
    chosen.scatter_(1, number.masked_fill_(~taken, width), True)
    return chosen.gather(1, units.of_token).logical_and_(units.inside)


def _independently(units: Units, ratio_B: Tensor, keys: Keys, floor_B: Tensor, *, fill: str) -> Tensor:
    """(B, U) bool: each unit by its own probability min(1, ratio × weight); then the first by key, up to the floor."""
    key = unit_keys(units, keys, fill=fill)
    probability = ratio_B.unsqueeze(1) if units.weight is None else ratio_B.unsqueeze(1) * units.weight
    chosen = (keys.uniform(Purpose.BERNOULLI, units.number) < probability) & (key < _never(key))
    missing_B1 = (floor_B - chosen.sum(1)).clamp_(min=0).unsqueeze(1)
    if bool(missing_B1.any()):
        key.masked_fill_(chosen, _never(key))
        chosen |= key < _at(sort_rows(key), missing_B1)
    return chosen
