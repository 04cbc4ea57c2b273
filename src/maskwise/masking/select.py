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
    Every unit by its own probability, min(1, ratio × weight), independently; the first units by key fill up
    to the floor. There is no budget that could be left over, so ``fill`` only says who may fill up to the
    floor.

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
        min_targets: the least budget of a row (in units for ``bernoulli``), while eligible × ratio ≥ 0.5.
    """
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    eligible_B = units.eligible_tokens
    wanted_B = ratio_B * eligible_B
    floor_B = eligible_B.clamp(max=min_targets).masked_fill_(wanted_B < 0.5, 0)
    queue, budget_B = _Queue(units, keys, fill=fill == "random"), None
    if budget == "bernoulli":
        chosen = units.spread(_independently(units, ratio_B, keys, queue, floor_B))
    else:
        budget_B = wanted_B.add_(keys.row_uniform(Purpose.ROUND)).long().clamp_(floor_B, eligible_B)
        if fill == "skip-row" and units.weight is not None:
            usable_B = torch.where(units.weight > 0, units.length, 0).sum(1)
            budget_B = torch.where(usable_B < budget_B, 0, budget_B)
        if units.of_token is None:
            chosen = queue.first(budget_B)
        else:
            chosen = _whole_units(units, budget_B, keys, queue, exact=budget == "exact")
    filled = None
    if fill == "random" and units.weight is not None:
        filled = chosen & units.spread(units.weight == 0)
    return Selection(chosen, filled, budget_B)


class _Queue:
    """The units of each row in the order in which they are taken.

    Attributes:
        key: (B, U) integers; ``never``, the largest, for units that are never taken. Distinct within a row,
            but that a draw that would be ``never`` takes its neighbour's place (two units of one row then go
            together once in 10¹⁴ rows), so that ``key < bound`` alone says what is taken.
    """

    def __init__(self, units: Units, keys: Keys, *, fill: bool):
        available = units.available
        self.key = keys.draw(Purpose.SELECT, units.number)
        if units.weight is not None:
            weight = units.weight.clamp(_LIGHTEST, _HEAVIEST)
            positive = units.weight > 0
            if fill:
                weight = torch.where(positive, weight, _FILLING)
            else:
                available = available & positive
            # Positive floats are in the order of their bits. The low bits, where two devices' logarithms may
            # differ, give way to the unit's number, which forbids ties.
            race = unit_interval(self.key).log_().neg_().div_(weight).view(torch.int64)
            self.key = (race >> _NUMBER_BITS << _NUMBER_BITS) + units.number
        self.never = torch.iinfo(self.key.dtype).max
        self.key = self.key.clamp_(max=self.never - 1).masked_fill_(~available, self.never)

    def first(self, count_B: Tensor) -> Tensor:
        """(B, U) bool: the first ``count_B`` (B,) units of each row, or as many as there are."""
        return self.key < self.at(sort_rows(self.key), count_B.unsqueeze(1))

    def at(self, order: Tensor, place_B1: Tensor) -> Tensor:
        """(B, 1): the key at a place of the sorted row; ``never`` behind its end."""
        width = order.shape[1]
        if not width:
            return torch.full_like(place_B1, self.never)
        return order.gather(1, place_B1.clamp(max=width - 1)).masked_fill_(place_B1 >= width, self.never)


def sort_rows(x: Tensor) -> Tensor:
    """Sort (B, U) integers along rows. On the CPU numpy's sort: 20 times torch's speed for int32."""
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(1).values


def flat_nonzero(x: Tensor) -> Tensor:
    """(M,) int64 places in the flattened bool ``x``, in order. On the CPU numpy's, 5 times torch's speed."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(x.numpy()))
    return x.reshape(-1).nonzero().view(-1)


def _whole_units(units: Units, budget_B: Tensor, keys: Keys, queue: _Queue, *, exact: bool) -> Tensor:
    """(B, L) bool: the tokens of units by key, until the budget of tokens is used."""
    assert units.of_token is not None
    key = queue.key.gather(1, units.of_token).masked_fill_(~units.inside, queue.never)
    order, budget_B1 = sort_rows(key), budget_B.unsqueeze(1)
    border_B1 = queue.at(order, (budget_B1 - 1).clamp_(min=0))
    begin_B1 = torch.searchsorted(order, border_B1)
    end_B1 = torch.searchsorted(order, border_B1, right=True)
    left_B1, size_B1 = budget_B1 - begin_B1, end_B1 - begin_B1
    if exact:
        fits_B1 = size_B1 <= left_B1
    else:
        fits_B1 = keys.row_uniform(Purpose.BORDER).unsqueeze(1) * size_B1 < left_B1
    chosen = key < torch.where(fits_B1, queue.at(order, end_B1), border_B1)
    if exact and len(rows := (~fits_B1 & (left_B1 > 0)).view(-1).nonzero().view(-1)):
        key = key[rows]
        later = _later(order[rows], end_B1[rows], left_B1[rows], queue.never)
        chosen[rows] |= torch.stack([key == unit for unit in later]).any(0) & (key < queue.never)
    return chosen


def _later(
    order_RL: Tensor, begin_R1: Tensor, left_R1: Tensor, never: int, *, window: int = 64
) -> list[Tensor]:
    """Units behind the border that fit into what is left, in order, each making less room for the next.

    Args:
        order_RL: sorted keys, one for each token, so that a unit is a run of equal ones.
        begin_R1: where the units behind the border begin.
        left_R1: tokens left of the budget.
        never: the key of tokens that may not be taken.
        window: how many tokens to look at; all of them where these are not enough.

    Returns:
        The keys of these units, (R, 1) each; ``never`` where a row has fewer than others.
    """
    width, room_R1, found = order_RL.shape[1], left_R1, [torch.full_like(order_RL[:, :1], never)]
    place = torch.arange(min(window, width), device=order_RL.device)
    near = order_RL.gather(1, (begin_R1 + place).clamp_(max=width - 1))
    near.masked_fill_(begin_R1 + place >= width, never)
    start = near < never
    start[:, 1:] &= near[:, 1:] != near[:, :-1]
    while bool((room_R1 > 0).any()):
        end = place + room_R1
        behind = near.gather(1, end.clamp(max=len(place) - 1)).masked_fill_(end >= width, never)
        fits = start & (behind != near)
        some_R1 = fits.any(1, keepdim=True)
        if not bool(some_R1.any()):
            break
        first = fits.byte().argmax(1, keepdim=True)
        unit = near.gather(1, first).masked_fill_(~some_R1, never)
        room_R1 = room_R1 - ((near == unit) & some_R1).sum(1, keepdim=True)
        start &= place > first
        found.append(unit)
    if len(place) < width and bool(((room_R1 > 0) & (near[:, -1:] < never)).any()):
        return _later(order_RL, begin_R1, left_R1, never, window=width)
    return found


def _independently(units: Units, ratio_B: Tensor, keys: Keys, queue: _Queue, floor_B: Tensor) -> Tensor:
    """Each unit by its own probability min(1, ratio × weight); then the first by key, up to the floor."""
    probability = ratio_B.unsqueeze(1) if units.weight is None else ratio_B.unsqueeze(1) * units.weight
    chosen = (keys.uniform(Purpose.BERNOULLI, units.number) < probability) & (queue.key < queue.never)
    missing_B = floor_B - chosen.sum(1)
    if bool((missing_B > 0).any()):
        queue.key.masked_fill_(chosen, queue.never)
        chosen |= queue.first(missing_B.clamp(min=0))
    return chosen
