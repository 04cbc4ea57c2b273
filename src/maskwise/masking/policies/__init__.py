"""Masking policies: which tokens are masked together, and how likely they are masked.

A policy cuts each piece (a document in a row) into units. A unit is a group of tokens that are
masked together, such as a word. A unit may have a weight; units with larger weights are more likely
to be masked. Then ``masking.select`` selects some of the units.

Policies in ``given`` read units from the text or its annotation layers. Policies in ``spans`` draw
units at random. Policies in ``online`` learn weights from the losses of the run. The docstring of a
policy says what it guarantees with each ``budget`` of the masker: ``exact``, ``expected`` and
``bernoulli``. To add a policy, write a class like ``WholeWord`` and add a line to ``POLICIES``, the
only registry. The contract tests then run on the new policy too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch, Names
from maskwise.masking.policies.base import Moment, Policy, UnitKind
from maskwise.masking.policies.given import (
    Frequency,
    Guided,
    Learned,
    SpanLayer,
    Token,
    Weighted,
    WholeWord,
    difference,
    informative,
    phrase,
    salient,
    sentence,
)
from maskwise.masking.policies.online import (
    GroupWeighted,
    TypeWeighted,
    pos_weighted,
)
from maskwise.masking.policies.spans import Span, Suffix, T5Span, Ul2
from maskwise.masking.schedules import Schedule, Spec, schedule
from maskwise.masking.units import Units
from maskwise.specs import Call, build


def mixture(*members: Policy | str | Call, shares: tuple[Spec, ...] = ()) -> Mixture:
    """Each document is masked by one of several policies, drawn at random.

    Args:
        members: two or more policies, given as names, calls or ``Policy`` objects.
        shares: for each member, the share of pieces that it masks, as a number or a schedule;
            default: equal shares.
    """
    if not shares:
        shares = (1.0,) * len(members)
    for share in shares:
        # ``schedule`` would refuse the number too, but its message would call the share a masking
        # ratio.
        if isinstance(share, int | float) and not 0 <= share <= 1:
            raise MaskwiseError(
                "policy mixture: a share is not valid",
                got=share,
                allowed="a number from 0 to 1, or a schedule",
            )
    return Mixture(tuple(map(policy, members)), tuple(map(schedule, shares)))


POLICIES: dict[str, Callable[..., Policy]] = {
    "token": Token,
    "whole-word": WholeWord,
    "span": Span,
    "t5-span": T5Span,
    "suffix": Suffix,
    "ul2": Ul2,
    "span-layer": SpanLayer,
    "guided": Guided,
    "salient": salient,
    "phrase": phrase,
    "sentence": sentence,
    "weighted": Weighted,
    "frequency": Frequency,
    "group-weighted": GroupWeighted,
    "pos-weighted": pos_weighted,
    "informative": informative,
    "difference": difference,
    "learned": Learned,
    "type-weighted": TypeWeighted,
    "mixture": mixture,
}


def policy(spec: Policy | str | Call) -> Policy:
    """Build a policy from its name, with or without arguments.

    >>> policy("weighted(units='token')")
    Weighted(layer='weight', units='token', power=1.0)
    """
    if isinstance(spec, Policy):
        return spec
    return build("policy", spec, POLICIES)


@dataclass(frozen=True)
class Mixture(Policy):
    """A mixture of policies: each piece (document) is masked by one of them, drawn at random.

    Selects: the units that the drawn policy selects. The shares of the policies may change over
        training; at each step they are divided by their sum. For example, ``mixture(salient, token,
        shares=(linear(1, 0), linear(0, 1)))`` begins with salient spans and ends with random
        tokens.
    Guarantee: the guarantee of the drawn policy. A policy with a share of 0 is not drawn.
    Cost: the sum of the policies' costs, because every policy cuts all pieces.
    Source: this library; mixtures with fixed shares are common (SpanBERT's baselines, UL2).
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
        if any(member.learner() is not None for member in self.members):
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
    def needs_total(self) -> bool:
        changing = any(share.needs_total for share in self.shares)
        return changing or any(member.needs_total for member in self.members)

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

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        ratios = [member.ratios(ratio_P, keys, moment) for member in self.members]
        return np.stack(ratios)[self.drawn(keys, moment), np.arange(len(ratio_P))]

    def drawn(self, keys: Keys, moment: Moment) -> Array:
        """(P,) int64: the index of the member that is drawn for each piece."""
        edges = np.cumsum(self.current(moment))
        return np.searchsorted(
            edges[:-1],
            keys.per_piece(Purpose.MIXTURE),
            side="right",
        )

    def current(self, moment: Moment) -> Array:
        """(members,) float64: the share of each member at this step. The shares sum to 1."""
        shares = [share(moment.step, moment.total_steps) for share in self.shares]
        total = sum(shares)
        if not total:
            raise MaskwiseError("policy mixture: all shares are 0", got=f"step {moment.step}")
        return np.array(shares) / total

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        drawn_P = self.drawn(keys, moment)
        columns = []
        before = 0
        weighted = False
        for i, share in enumerate(self.current(moment)):
            if share == 0:
                continue
            units = _numbered(self.members[i].cut(batch, keys, moment))
            units = units.kept((drawn_P == i).take(units.piece))
            weight = units.weight
            if weight is None:
                weight = np.ones(len(units.piece))
            else:
                weighted = True
            unit = units.unit + before
            before += len(units.piece)
            columns.append((units.tokens, unit, units.piece, units.number, weight))
        tokens, unit, piece, number, weight = map(np.concatenate, zip(*columns))
        units = Units.of_tokens(batch, tokens, unit, piece, number)
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
    batch = units.batch
    content = batch.content_at
    before_P = content.searchsorted(batch.begin)
    rank = content.searchsorted(units.tokens) - before_P.take(units.piece)
    return replace(units, number=rank)


__all__ = [
    "POLICIES",
    "Frequency",
    "GroupWeighted",
    "Guided",
    "Learned",
    "Mixture",
    "Moment",
    "Policy",
    "Span",
    "SpanLayer",
    "Suffix",
    "T5Span",
    "Token",
    "TypeWeighted",
    "Ul2",
    "UnitKind",
    "Weighted",
    "WholeWord",
    "policy",
]
