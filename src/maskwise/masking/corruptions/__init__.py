"""How chosen units are shown, and what must be produced. One file a corruption; the table below is the registry."""

from __future__ import annotations

from collections.abc import Callable

from maskwise.masking.corruptions.base import Corrupted, Corruption
from maskwise.masking.corruptions.bert import Bert, mask_only
from maskwise.specs import Call, build

CORRUPTIONS: dict[str, Callable[..., Corruption]] = {"bert": Bert, "mask-only": mask_only}


def corruption(spec: Corruption | str | Call) -> Corruption:
    """Anything that names a corruption, as a corruption."""
    return spec if isinstance(spec, Corruption) else build("corruption", spec, CORRUPTIONS)


__all__ = ["CORRUPTIONS", "Bert", "Corrupted", "Corruption", "corruption", "mask_only"]
