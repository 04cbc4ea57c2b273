"""What is masked together, and how likely. The table below is the only registry.

A policy turns an annotated batch into weighted units; ``masking.select`` selects among them. Units
come from the text or its layers (``given``), are drawn (``spans``), or get weights from the losses
of the run (``online``). To add a policy, write a class like ``WholeWord`` and a line here; the
contract suite tests it like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maskwise.errors import MaskwiseError
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
from maskwise.masking.policies.mixture import Mixture
from maskwise.masking.policies.online import (
    GroupWeighted,
    TypeWeighted,
    pos_weighted,
)
from maskwise.masking.policies.spans import Span, Suffix, T5Span, Ul2
from maskwise.masking.schedules import schedule
from maskwise.specs import Call, build


def mixture(*members: Any, shares: tuple[Any, ...] = ()) -> Mixture:
    """Mix policies (names, calls or policies) with shares (numbers or schedules; default equal)."""
    if not shares:
        shares = (1.0,) * len(members)
    for share in shares:
        # A schedule would refuse the number too, but as a masking ratio.
        if isinstance(share, int | float) and not 0 <= share <= 1:
            raise MaskwiseError("policy mixture: shares", got=share, allowed="0 to 1, or schedules")
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
    if str(spec).startswith("entropy-weighted"):
        raise MaskwiseError("policy entropy-weighted is gone", do="take type-weighted(by=loss)")
    return build("policy", spec, POLICIES)


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
