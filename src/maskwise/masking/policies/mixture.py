"""Several policies, one for each row; how often each is drawn may change over training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.schedules import Schedule, schedule
from maskwise.masking.units import Units


@dataclass(frozen=True)
class Mixture(Policy):
    """Each row (in packed rows, each document piece) is masked by one member, drawn by hash.

    Selects: what the drawn member selects. Shares are schedules, divided by their sum at each step:
        ``mixture(salient, token, shares=(linear(1, 0), linear(0, 1)))`` begins with salient spans and ends
        random.
    Guarantee: that of the drawn member. A member whose share is 0 at a step is not asked for anything.
    Cost: the members' together, for every member is computed for all rows.
    Source: ours; mixtures of fixed shares are common (SpanBERT's baselines, UL2).
    """

    members: tuple[Policy, ...]
    shares: tuple[Schedule, ...]

    units_name = "mixture"

    def judged_on(self) -> tuple[str, ...]:
        return tuple(sorted({kind for member in self.members for kind in member.judged_on()}))

    def __post_init__(self) -> None:
        if len(self.members) < 2 or any(isinstance(member, Mixture) for member in self.members):
            raise MaskwiseError(
                "policy mixture", got=self.members, allowed="two or more policies, none a mixture"
            )
        if len(self.shares) != len(self.members):
            got = f"{len(self.shares)} shares for {len(self.members)} policies"
            raise MaskwiseError("policy mixture: every member needs a share", got=got)

    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for member in self.members for name in member.layers()))

    def ratios(self, ratio_B: Tensor, keys: Keys, moment: Moment) -> Tensor:
        own, drawn_B = ratio_B, None
        for index, member in enumerate(self.members):
            theirs = member.ratios(ratio_B, keys, moment)
            if theirs is not ratio_B:
                drawn_B = self.drawn(keys, moment) if drawn_B is None else drawn_B
                own = torch.where(drawn_B == index, theirs, own)
        return own

    def drawn(self, keys: Keys, moment: Moment) -> Tensor:
        """(B,) int64: which member each row draws."""
        draw_B = keys.row_uniform(Purpose.MIXTURE)
        edges = torch.tensor(self.current(moment), dtype=torch.float64, device=draw_B.device).cumsum(0)
        return torch.bucketize(draw_B, edges[:-1], right=True)

    def current(self, moment: Moment) -> list[float]:
        """The members' shares at this step; they sum to 1."""
        shares = [share(moment.step, moment.total_steps) for share in self.shares]
        if not sum(shares):
            raise MaskwiseError("policy mixture: all shares are 0", got=f"step {moment.step}")
        return [share / sum(shares) for share in shares]

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        drawn_B = self.drawn(keys, moment)
        live = [i for i, share in enumerate(self.current(moment)) if share > 0]
        parts = [_dense(batch, self.members[i].units(batch, keys, moment)) for i in live]
        width = max(part.length.shape[1] for part in parts)
        even = all(part.weight is None for part in parts)
        mixed = _widened(parts[0], width, even)
        for index, part in zip(live[1:], parts[1:]):
            part, mine = _widened(part, width, even), (drawn_B == index).unsqueeze(1)
            both = ((getattr(part, f), getattr(mixed, f)) for f in ("inside", "of_token", "length", "weight"))
            merged: Any = (None if a is None else torch.where(mine, a, b) for a, b in both)
            inside, of_token, length, weight = merged
            mixed = Units(inside, of_token, length, weight=weight)
        return mixed


def _dense(batch: AnnotatedBatch, units: Units) -> Units:
    """Single tokens numbered by their place among the content: as other units are, not by column."""
    if units.of_token is not None:
        return units
    of_token = batch.rank.clamp(min=0)
    blank = units.length.new_zeros(len(of_token), int(of_token[:, -1:].max()) + 1 if of_token.numel() else 0)
    weight = None if units.weight is None else blank.double().scatter_add_(1, of_token, units.weight)
    return Units(units.inside, of_token, blank.scatter_add_(1, of_token, units.length), weight=weight)


def _widened(units: Units, width: int, even: bool) -> Units:
    """U made ``width``, and weights made explicit unless all members go without."""
    more = (0, width - units.length.shape[1])
    weight = units.weight
    if weight is None and not even:
        weight = torch.ones(units.length.shape, dtype=torch.float64, device=units.length.device)
    padded = None if weight is None else pad(weight, more)
    return Units(units.inside, units.of_token, pad(units.length, more), weight=padded)


def mixture(*members: Any, shares: tuple[Any, ...] = ()) -> Mixture:
    """A mixture of policies (names, calls or policies); ``shares``: numbers or schedules, else equal."""
    from maskwise.masking.policies import policy

    return Mixture(
        tuple(policy(m) for m in members), tuple(schedule(s) for s in shares or (1.0,) * len(members))
    )
