"""What may be masked together, and how likely. One file a policy; the table below is the only registry.

A policy turns an annotated batch into units (a partition) with weights; ``masking.select`` does the rest.
To add one, write a file like ``whole_word.py`` and a line here; the contract suite tests it like the others.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.policies.frequency import Frequency, frequency
from maskwise.masking.policies.group_weighted import GroupWeighted, group_weighted, pos_weighted
from maskwise.masking.policies.mixture import Mixture, mixture
from maskwise.masking.policies.span import Span
from maskwise.masking.policies.span_layer import Guided, SpanLayer, phrase, salient, sentence
from maskwise.masking.policies.suffix import Suffix
from maskwise.masking.policies.t5_span import T5Span
from maskwise.masking.policies.token import Token
from maskwise.masking.policies.ul2 import Ul2
from maskwise.masking.policies.weighted import Weighted, difference, informative, weighted
from maskwise.masking.policies.whole_word import WholeWord
from maskwise.specs import Call, build

POLICIES: dict[str, Callable[..., Policy]] = {
    "token": Token, "whole-word": WholeWord, "span": Span, "t5-span": T5Span, "suffix": Suffix, "ul2": Ul2,
    "span-layer": SpanLayer, "guided": Guided, "salient": salient, "phrase": phrase, "sentence": sentence,
    "weighted": weighted, "frequency": frequency, "group-weighted": group_weighted,
    "pos-weighted": pos_weighted, "informative": informative, "difference": difference, "mixture": mixture,
}  # fmt: skip


def policy(spec: Policy | str | Call) -> Policy:
    """Anything that names a policy, as a policy."""
    return spec if isinstance(spec, Policy) else build("policy", spec, POLICIES)


__all__ = [
    "POLICIES", "Frequency", "GroupWeighted", "Guided", "Mixture", "Moment", "Policy", "Span", "SpanLayer", "Suffix",
    "T5Span", "Token", "Ul2", "Weighted", "WholeWord", "policy",
]  # fmt: skip
