"""The policy ``mixture``: each document is masked by one of several policies, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maskwise.base.errors import MaskwiseError
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.line import Line, Names
from maskwise.masking.policies.base import Policy, UnitKind, When, cut_by, ratios_by
from maskwise.masking.schedules import Schedule, require_some_share
from maskwise.masking.units import Units


@dataclass(frozen=True)
class Mixture(Policy):
    """A mixture of policies: each piece (document) is masked by one of them, drawn at random.

    Selects: the units that the drawn policy selects. The shares of the policies may change over
        training; at each step they are divided by their sum. For example, ``mixture(salient, token,
        shares=(linear(1, 0), linear(0, 1)))`` begins with salient spans and ends with random
        tokens.
    Guarantee: the guarantee of the drawn policy. A policy with a share of 0 is not drawn.
    Cost: the sum of the policies' costs, because every policy cuts all pieces.
    Source: this library; mixtures with fixed shares are common (SpanBERT's baselines).
    """

    members: tuple[Policy, ...]
    shares: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2 or any(isinstance(member, Mixture) for member in self.members):
            raise MaskwiseError(
                "policy mixture cannot mix these policies",
                got=self.members,
                allowed="two or more policies, none of them a mixture",
            )
        if any(member.learns for member in self.members):
            raise MaskwiseError(
                "policy mixture cannot contain a policy that learns its weights from losses",
                got=self.members,
                do="use this policy alone",
            )
        if len(self.shares) != len(self.members):
            raise MaskwiseError(
                "policy mixture: every policy needs a share",
                got=f"{len(self.shares)} shares for {len(self.members)} policies",
            )
        require_some_share("policy mixture", self.shares)

    # Any member may be drawn, so the mixture has these properties if one of its members has them.
    @property
    def splits_budget(self) -> bool:
        return any(member.splits_budget for member in self.members)

    @property
    def needs_ratio(self) -> bool:
        return any(member.needs_ratio for member in self.members)

    @property
    def has_ratio(self) -> bool:
        return all(member.has_ratio for member in self.members)

    @property
    def has_zero_weights(self) -> bool:
        return any(member.has_zero_weights for member in self.members)

    @property
    def scales_ratio(self) -> bool:
        return any(member.scales_ratio for member in self.members)

    @property
    def needs_total(self) -> bool:
        changing = any(share.needs_total for share in self.shares)
        return changing or any(member.needs_total for member in self.members)

    @property
    def varies(self) -> bool:
        changing = any(share.varies for share in self.shares)
        return changing or any(member.varies for member in self.members)

    @property
    def unlearned(self) -> bool:
        return any(member.unlearned for member in self.members)

    @property
    def unit_kind(self) -> UnitKind:
        kinds = {member.unit_kind for member in self.members}
        return kinds.pop() if len(kinds) == 1 else UnitKind.MIXTURE

    def judged_on(self) -> Names:
        return tuple(sorted(self._union("judged_on")))

    def layers(self) -> Names:
        return self._union("layers")

    def annotators(self) -> Names:
        return self._union("annotators")

    def _union(self, method: str) -> Names:
        """Call ``method`` of all members and join the returned names, without repetitions."""
        names: dict[str, object] = {}
        for member in self.members:
            names |= dict.fromkeys(getattr(member, method)())
        return tuple(names)

    def ratios(self, ratio_P: Array, draws: Draws, when: When) -> Array:
        ratios = [ratios_by(member, ratio_P, draws, when) for member in self.members]
        return np.stack(ratios)[self.drawn(draws, when), np.arange(len(ratio_P))]

    def drawn(self, draws: Draws, when: When) -> Array:
        """(P,) int64: the index of the member that is drawn for each piece."""
        edges = np.cumsum(self.current(when))
        return np.searchsorted(
            edges[:-1],
            draws.per_piece(Purpose.MIXTURE),
            side="right",
        )

    def current(self, when: When) -> Array:
        """(members,) float64: the share of each member at this step. The shares sum to 1."""
        shares = [share(when.step, when.total_steps) for share in self.shares]
        total = sum(shares)
        if not total:
            raise MaskwiseError("policy mixture: all shares are 0", got=f"step {when.step}")
        return np.array(shares) / total

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        drawn_P = self.drawn(draws, when)
        columns = []
        before = 0
        weighted = False
        # Whether units are single tokens must not depend on the shares of the step.
        by_token = self.unit_kind is UnitKind.TOKEN
        for i, share in enumerate(self.current(when)):
            if share == 0:
                continue
            units = cut_by(self.members[i], line, draws, when)
            by_token = by_token and units.by_token
            units = _numbered(units).kept((drawn_P == i).take(units.piece))
            weight = units.weight
            if weight is None:
                weight = np.ones(len(units.piece))
            else:
                weighted = True
            unit = units.unit + before
            before += len(units.piece)
            columns.append((units.tokens, unit, units.piece, units.number, weight))
        tokens, unit, piece, number, weight = map(np.concatenate, zip(*columns))
        units = Units.of_tokens(line, tokens, unit, piece, number)
        units.by_token = by_token
        if weighted:
            units.weight = weight
        return units


def _numbered(units: Units) -> Units:
    """Number units of one token by the tokens' ranks among the content tokens of the piece.

    The draws of a unit are computed from its number. Policies over words and spans number their
    units by rank, too.
    """
    if not units.by_token:
        return units
    line = units.line
    content = line.content_at
    before_P = content.searchsorted(line.begin)
    rank = content.searchsorted(units.tokens) - before_P.take(units.piece)
    return replace(units, number=rank)
