"""What may be masked together, and how likely. The table below is the only registry.

A policy turns an annotated batch into units (a partition) with weights; ``masking.select`` does the rest. ``given``
holds units that the text gives, ``spans`` those that are drawn, ``groups`` and ``online`` those whose weights follow
the losses, ``learned`` those that were learned from a task before. To add one, write a class like ``WholeWord`` and a
line here; the contract suite tests it like the others.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.masking.policies.base import Moment, Policy, UnitKind
from maskwise.masking.policies.given import (
    Frequency,
    Guided,
    SpanLayer,
    Token,
    Weighted,
    WholeWord,
    difference,
    frequency,
    informative,
    phrase,
    salient,
    sentence,
    weighted,
)  # fmt: skip
from maskwise.masking.policies.groups import GroupWeighted, group_weighted, pos_weighted
from maskwise.masking.policies.learned import Learned
from maskwise.masking.policies.mixture import Mixture, mixture
from maskwise.masking.policies.online import EntropyWeighted, TypeWeighted, entropy_weighted, type_weighted
from maskwise.masking.policies.spans import Span, Suffix, T5Span, Ul2
from maskwise.specs import Call, build

POLICIES: dict[str, Callable[..., Policy]] = {
    "token": Token, "whole-word": WholeWord, "span": Span, "t5-span": T5Span, "suffix": Suffix, "ul2": Ul2,
    "span-layer": SpanLayer, "guided": Guided, "salient": salient, "phrase": phrase, "sentence": sentence,
    "weighted": weighted, "frequency": frequency, "group-weighted": group_weighted,
    "pos-weighted": pos_weighted, "informative": informative, "difference": difference, "learned": Learned,
    "type-weighted": type_weighted, "entropy-weighted": entropy_weighted, "mixture": mixture,
}  # fmt: skip


def policy(spec: Policy | str | Call) -> Policy:
    """Anything that names a policy, as a policy.

    >>> policy("weighted(units='token')")
    Weighted(layer='weight', units_of='token', power=1.0)
    """
    return spec if isinstance(spec, Policy) else build("policy", spec, POLICIES)


__all__ = [
    "POLICIES", "EntropyWeighted", "Frequency", "GroupWeighted", "Guided", "Learned", "Mixture", "Moment", "Policy",
    "Span", "SpanLayer", "Suffix", "T5Span", "Token", "TypeWeighted", "Ul2", "UnitKind", "Weighted", "WholeWord",
    "policy",
]  # fmt: skip
