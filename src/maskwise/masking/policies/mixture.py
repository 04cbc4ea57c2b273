"""Several policies, one for each piece; how often each is drawn may change over training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, UnitKind
from maskwise.masking.schedules import Schedule
from maskwise.masking.units import Units


@dataclass(frozen=True)
class Mixture(Policy):
    """Each document piece is masked by one member, drawn by hash.

    Selects: what the drawn member selects. Shares are schedules, divided by their sum at each step:
        ``mixture(salient, token, shares=(linear(1, 0), linear(0, 1)))`` begins with salient spans
        and ends random.
    Guarantee: that of the drawn member. A member whose share is 0 at a step is not asked for
        anything.
    Cost: the members' together, for every member cuts all pieces.
    Source: ours; mixtures of fixed shares are common (SpanBERT's baselines, UL2).
    """

    members: tuple[Policy, ...]
    shares: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2 or any(isinstance(member, Mixture) for member in self.members):
            allowed = "two or more policies, none a mixture"
            raise MaskwiseError("policy mixture", got=self.members, allowed=allowed)
        if any(member.learner() is not None for member in self.members):
            what, do = (
                "policy mixture: a member that learns from losses would learn nothing",
                "take it alone",
            )
            raise MaskwiseError(what, got=self.members, do=do)
        if len(self.shares) != len(self.members):
            got = f"{len(self.shares)} shares for {len(self.members)} policies"
            raise MaskwiseError("policy mixture: every member needs a share", got=got)

    @property
    def splits_budget(self) -> bool:
        return any(member.splits_budget for member in self.members)

    @property
    def needs_ratio(self) -> bool:
        return any(member.needs_ratio for member in self.members)

    @property
    def unit_kind(self) -> UnitKind:
        kinds = {member.unit_kind for member in self.members}
        return kinds.pop() if len(kinds) == 1 else UnitKind.MIXTURE

    def judged_on(self) -> tuple[str, ...]:
        return tuple(sorted({kind for member in self.members for kind in member.judged_on()}))

    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for member in self.members for name in member.layers()))

    def annotators(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec for member in self.members for spec in member.annotators()))

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        mixed_P, drawn_P = ratio_P, None
        for index, member in enumerate(self.members):
            own_P = member.ratios(ratio_P, keys, moment)
            if own_P is not ratio_P:
                drawn_P = self.drawn(keys, moment) if drawn_P is None else drawn_P
                mixed_P = np.where(drawn_P == index, own_P, mixed_P)
        return mixed_P

    def drawn(self, keys: Keys, moment: Moment) -> Array:
        """(P,) int64: which member each piece draws."""
        edges = np.cumsum(self.current(moment))
        return np.searchsorted(edges[:-1], keys.per_piece(Purpose.MIXTURE), side="right")

    def current(self, moment: Moment) -> list[float]:
        """The members' shares at this step; they sum to 1."""
        shares = [share(moment.step, moment.total_steps) for share in self.shares]
        if not sum(shares):
            raise MaskwiseError("policy mixture: all shares are 0", got=f"step {moment.step}")
        return [share / sum(shares) for share in shares]

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        drawn_P = self.drawn(keys, moment)
        parts = [
            _of_pieces(self.members[i].cut(batch, keys, moment), drawn_P == i)
            for i, share in enumerate(self.current(moment))
            if share > 0
        ]
        weight = None
        if any(part.weight is not None for part in parts):
            weights = [
                np.ones(len(part.piece)) if part.weight is None else part.weight for part in parts
            ]
            weight = np.concatenate(weights)
        before = np.cumsum([0, *(len(part.piece) for part in parts)])
        tokens, piece, number = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("tokens", "piece", "number")
        )
        unit = np.concatenate([part.unit + n for part, n in zip(parts, before[:-1], strict=True)])
        return Units(batch, tokens, unit, piece, number, weight)


def _of_pieces(units: Units, wanted_P: Array) -> Units:
    """The units of some pieces. Single tokens are numbered by their rank among the content, as
    other units are.
    """
    batch = units.batch
    unit, number = units.unit, units.number
    if unit is None:
        unit = np.arange(len(units.tokens))
        content = np.flatnonzero(batch.content)
        count_P = batch.count(batch.content)
        rank = np.searchsorted(content, units.tokens) - (count_P.cumsum() - count_P).take(
            units.piece
        )
        number = rank.astype(np.int32)
    every = Units(batch, units.tokens, unit, units.piece, number, units.weight)
    return every.without(np.flatnonzero(~wanted_P.take(units.piece)))
