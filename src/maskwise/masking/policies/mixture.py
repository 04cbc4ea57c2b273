"""Several policies, one for each row; how often each is drawn may change over training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskwise.arrays import raw, tensor, where
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.schedules import Schedule, schedule
from maskwise.masking.units import UnitKind, Units


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

    @property
    def unit_kind(self) -> UnitKind:
        kinds = {member.unit_kind for member in self.members}
        return kinds.pop() if len(kinds) == 1 else UnitKind.MIXTURE

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
        parts = [_numbered(batch, self.members[i].units(batch, keys, moment)) for i in live]
        even = all(part.weight is None for part in parts)
        width = 0 if even else max(part.length.shape[1] for part in parts)
        inside, of_token = raw(parts[0].inside), raw(parts[0].of_token)
        weight = None if even else _weights(parts[0], width)
        for index, part in zip(live[1:], parts[1:]):
            mine = raw(drawn_B == index)[:, None]
            inside, of_token = (
                where(mine, raw(part.inside), inside),
                where(mine, raw(part.of_token), of_token),
            )
            weight = None if weight is None else torch.where(tensor(mine), _weights(part, width), weight)
        return Units(tensor(inside), tensor(of_token), weight=weight)


def _numbered(batch: AnnotatedBatch, units: Units) -> Units:
    """Single tokens numbered by their place among the content: as other units are, not by column."""
    if units.of_token is not None:
        return units
    of_token = batch.rank.clamp(min=0)
    if units.weight is None:
        return Units(units.inside, of_token)
    width = int(of_token.max()) + 1 if of_token.numel() else 0
    blank = torch.zeros(len(of_token), width, dtype=torch.float64, device=of_token.device)
    return Units(units.inside, of_token, weight=blank.scatter_add_(1, of_token, units.weight))


def _weights(units: Units, width: int) -> Tensor:
    """(B, ``width``) weights, made explicit where there are none."""
    weight = units.weight
    if weight is None:
        weight = torch.ones(units.length.shape, dtype=torch.float64, device=units.inside.device)
    return pad(weight, (0, width - weight.shape[1]))


def mixture(*members: Any, shares: tuple[Any, ...] = ()) -> Mixture:
    """A mixture of policies (names, calls or policies); ``shares``: numbers or schedules, else equal."""
    from maskwise.masking.policies import policy

    for share in shares:
        if isinstance(share, int | float) and not 0 <= share <= 1:
            raise MaskwiseError("policy mixture: shares", got=share, allowed="0 to 1, or schedules")
    return Mixture(
        tuple(policy(m) for m in members), tuple(schedule(s) for s in shares or (1.0,) * len(members))
    )
