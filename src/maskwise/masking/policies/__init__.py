"""Masking policies: which tokens are masked together, and how likely they are masked.

A policy cuts each piece (a document in a row) into units. A unit is a group of tokens that are
masked together, such as a word. A unit may have a weight; units with larger weights are more likely
to be masked. Then ``masking.select`` selects some of the units.

Policies in ``given`` read units from the text or its annotation layers. Policies in ``spans`` draw
units at random. Policies in ``online`` learn weights from the losses of the run, and ``mixture``
mixes policies. The docstring of a policy says what it guarantees with each ``budget`` of the
masker: ``exact``, ``expected`` and ``bernoulli``. To add a policy, write a class like ``WholeWord``
and add a line to the table, or name the class in an entry point of your package (``plugins``). The
contract tests run on every line of the table.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.base.errors import MaskwiseError
from maskwise.base.plugins import Table, is_foreign
from maskwise.base.specs import Call, build
from maskwise.masking.policies.base import (
    Policy,
    UnitKind,
    When,
    require_declared,
)
from maskwise.masking.policies.given import (
    Frequency,
    Guided,
    LearnedPolicy,
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
from maskwise.masking.policies.mixture import Mixture
from maskwise.masking.policies.online import (
    GroupWeighted,
    TypeWeighted,
    pos_weighted,
)
from maskwise.masking.policies.spans import Span, T5Span
from maskwise.masking.schedules import Spec, schedule


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


_BUILT_IN: dict[str, Callable[..., Policy]] = {
    "token": Token,
    "whole-word": WholeWord,
    "span": Span,
    "t5-span": T5Span,
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
    "learned": LearnedPolicy,
    "type-weighted": TypeWeighted,
    "mixture": mixture,
}
POLICIES = Table("policy", "maskwise.policies", _BUILT_IN)
"""The policies by their names in recipes."""


def policy(spec: Policy | str | Call) -> Policy:
    """Build a policy from its name, with or without arguments.

    >>> policy("weighted(units='token')")
    Weighted(layer='weight', units='token', power=1.0)
    """
    made = spec if isinstance(spec, Policy) else build("policy", spec, POLICIES, makes=Policy)
    if is_foreign(made):
        require_declared(made)
    return made


__all__ = [
    "POLICIES",
    "Frequency",
    "GroupWeighted",
    "Guided",
    "LearnedPolicy",
    "Mixture",
    "Policy",
    "Span",
    "SpanLayer",
    "T5Span",
    "Token",
    "TypeWeighted",
    "UnitKind",
    "Weighted",
    "When",
    "WholeWord",
    "policy",
]
