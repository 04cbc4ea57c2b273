"""What may be masked together, and how likely. One file a policy; the table below is the only registry.

A policy turns an annotated batch into units (a partition) with weights; ``masking.select`` does the rest. To add one:
write a file like ``whole_word.py``, add a line here; the contract suite then tests it like all others.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.policies.token import Token
from maskwise.masking.policies.whole_word import WholeWord
from maskwise.specs import Call, build

POLICIES: dict[str, Callable[..., Policy]] = {"token": Token, "whole-word": WholeWord}


def policy(spec: Policy | str | Call) -> Policy:
    """Anything that names a policy, as a policy."""
    return spec if isinstance(spec, Policy) else build("policy", spec, POLICIES)


__all__ = ["POLICIES", "Moment", "Policy", "Token", "WholeWord", "policy"]
