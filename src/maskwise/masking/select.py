"""The one selection routine: weighted sampling of units without replacement, up to a budget of tokens.

Units are put in the order of their keys (an exponential race: ``−log(u) / weight``, which for equal weights is any
order that the hash gives) and taken from the front. Three budgets say where to stop:

``exact``
    Never more tokens than the budget. A unit that does not fit is skipped and later ones are tried. This favours
    short units where units are long for the budget (methods: at 64 tokens and 15 %, words of one piece .200, the
    longest .105).
``expected``
    The unit at the border is taken with probability (tokens left) / (its length). Whole units, at most one unit over,
    expectation equal to the budget, inclusion nearly even.
``bernoulli``
    Every unit by its own probability, min(1, ratio × weight), independently; the first units by key fill up to the
    floor. There is no budget that could be left over, so ``fill`` only says who may fill up to the floor.

Keys are sorted *by value*: the number of a unit is read back from its key (the hash is invertible; weighted keys
carry the number in their low bits), so no indices are sorted along. Cost: one sort of (B, U) integers, then a handful
of operations on (B, budget). No loop over tokens; the loop of ``exact`` runs once per distinct leftover, two or three
times on text.
"""

from __future__ import annotations

from copy import copy
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
        filled: (B, L) bool, the chosen tokens of weight 0 that only filled the budget; None where nothing may fill.
        budget: (B,) int64 tokens; None for ``bernoulli``.
    """

    tokens: Tensor
    filled: Tensor | None
    budget: Tensor | None


def select(
    units: Units, ratio_B: Tensor, keys: Keys, *, budget: str = "exact", fill: str = "none", min_targets: int = 1
) -> Selection:
    """Choose units.

    Args:
        units: the partition and its weights.
        ratio_B: (B,) float64 in [0, 1], the share of eligible tokens to choose.
        keys: the draws of these rows.
        budget: one of ``BUDGETS``.
        fill: what becomes of a budget that units of positive weight cannot use: ``none`` (left unused), ``random``
            (units of weight 0, evenly), ``skip-row`` (the row is not masked at all).
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
        chosen = _independently(units, ratio_B, keys, queue, floor_B)
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
        filled = units.spread(chosen & (units.weight == 0))
    return Selection(units.spread(chosen), filled, budget_B)


class _Queue:
    """The units of each row in the order in which they are taken.

    Attributes:
        key: (B, U) integers, distinct within a row; the largest number for units that are never taken.
        available: (B, U) bool, the others.
        ready: (B,) int64, how many units of each row may be taken.
    """

    def __init__(self, units: Units, keys: Keys, *, fill: bool):
        self.units, self.keys = units, keys
        self.available = units.available
        self.key = keys.draw(Purpose.SELECT, units.number)
        if units.weight is not None:
            weight = units.weight.clamp(_LIGHTEST, _HEAVIEST)
            positive = units.weight > 0
            if fill:
                weight = torch.where(positive, weight, _FILLING)
            else:
                self.available = self.available & positive
            # Positive floats are in the order of their bits. The low bits, where two devices' logarithms may differ,
            # give way to the unit's number, which forbids ties.
            race = unit_interval(self.key).log_().neg_().div_(weight).view(torch.int64)
            self.key = (race >> _NUMBER_BITS << _NUMBER_BITS) + units.number
        self.key = self.key.masked_fill_(~self.available, torch.iinfo(self.key.dtype).max)
        self.ready = self.available.sum(1)

    def sorted(self) -> Tensor:
        """(B, U) keys in ascending order; the first ``ready`` of each row count."""
        return sort_rows(self.key)

    def numbers(self, key: Tensor) -> Tensor:
        """Read the unit numbers back from keys: int64 of the same shape; nonsense for keys that do not count."""
        if self.units.weight is not None:
            return key & ((1 << _NUMBER_BITS) - 1)
        return self.keys.index_of(Purpose.SELECT, key).long()

    def first(self, count_B: Tensor) -> Tensor:
        """(B, U) bool: the first ``count_B`` (B,) units of each row."""
        if not self.key.shape[1]:
            return self.available
        count_B1 = torch.minimum(count_B, self.ready).unsqueeze(1)
        last_B1 = self.sorted().gather(1, (count_B1 - 1).clamp_(min=0))
        chosen = (self.key <= last_B1).bitwise_and_(self.available)
        return chosen.masked_fill_(none, False) if bool((none := count_B1 < 1).any()) else chosen

    def without(self, chosen: Tensor) -> _Queue:
        """The queue without units (B, U) bool that are taken already."""
        rest = copy(self)
        rest.key = self.key.masked_fill(chosen, torch.iinfo(self.key.dtype).max)
        rest.available = self.available & ~chosen
        rest.ready = rest.available.sum(1)
        return rest


def sort_rows(x: Tensor) -> Tensor:
    """Sort (B, U) integers along rows. On the CPU numpy's vectorised sort, 20 times torch's speed for int32."""
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(1).values


def flat_nonzero(x: Tensor) -> Tensor:
    """(M,) int64 places in the flattened bool ``x``, in order. On the CPU numpy's, 5 times torch's speed."""
    return torch.from_numpy(np.flatnonzero(x.numpy())) if x.device.type == "cpu" else x.reshape(-1).nonzero().view(-1)


def _whole_units(units: Units, budget_B: Tensor, keys: Keys, queue: _Queue, *, exact: bool) -> Tensor:
    """(B, U) bool: units by key until the budget of tokens is used."""
    order = queue.sorted()
    left_B1, ready_B1, width = budget_B.unsqueeze(1), queue.ready.unsqueeze(1), order.shape[1]
    # A unit has at least one token, so a budget of n tokens is used up within the first n units, if they fit.
    most = min(int(budget_B.max()), width) if width else 0
    while True:
        alive = torch.arange(most, device=order.device) < ready_B1
        number = queue.numbers(order[:, :most]).masked_fill_(~alive, 0)
        length = units.length.gather(1, number) * alive
        if not exact:
            total = length.cumsum(1)
            left_before = (left_B1 - total).add_(length)
            border = keys.row_uniform(Purpose.BORDER).unsqueeze(1) * length < left_before
            taken = alive & ((total <= left_B1) | border)
            break
        taken, unused_B1 = _fitting(length, left_B1)
        # Leftovers may fit a unit further back: then, and only then, look at all of them.
        if most == width or not bool(((unused_B1 > 0) & (ready_B1 > most)).any()):
            break
        most = width
    # What is not taken is written to a column of its own, which is cut off.
    chosen = torch.zeros(len(order), width + 1, dtype=torch.bool, device=order.device)
    return chosen.scatter_(1, number.masked_fill_(~taken, width), True)[:, :width]


def _fitting(length: Tensor, left_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy with skips over units in order: each is taken if it still fits. Returns (taken, what is left).

    Each pass takes, among the units that could fit what is left, the longest prefix that does; the unit that ended
    the prefix is longer than what is then left, so leftovers fall strictly and few passes are needed.
    """
    taken = torch.zeros_like(length, dtype=torch.bool)
    free = length > 0
    while True:
        fits = free & (length <= left_B1)
        used = (length * fits).cumsum(1)
        new = fits & (used <= left_B1)
        gained = (length * new).sum(1, keepdim=True)
        if not bool(gained.any()):
            return taken, left_B1
        taken |= new
        free &= ~new
        left_B1 = left_B1 - gained


def _independently(units: Units, ratio_B: Tensor, keys: Keys, queue: _Queue, floor_B: Tensor) -> Tensor:
    """Each unit by its own probability min(1, ratio × weight); then the first by key, up to the floor."""
    probability = ratio_B.unsqueeze(1) if units.weight is None else ratio_B.unsqueeze(1) * units.weight
    chosen = (keys.uniform(Purpose.BERNOULLI, units.number) < probability) & queue.available
    missing_B = floor_B - chosen.sum(1)
    if bool((missing_B > 0).any()):
        chosen |= queue.without(chosen).first(missing_B.clamp(min=0))
    return chosen
