"""What selected tokens become, and what the model must predict. The table is the only registry.

``base`` has the corruptions that leave every token in its place, ``moving`` the others. To add a
corruption, write a class like ``Bert`` or ``Delete`` and a line here; the contract suite tests it
like the others.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.masking.corruptions.base import Bert, Corrupted, Corruption, Replace, mask_only
from maskwise.masking.corruptions.moving import (
    T5,
    Delete,
    Infill,
    Insert,
    PermuteSentences,
    Ul2,
)
from maskwise.specs import Call, build


def permute_sentences(
    layer: str = "sentence", inner: Corruption | str | Call | None = None
) -> PermuteSentences:
    """Permute sentences; ``inner`` (a corruption, or its name) corrupts the selected tokens."""
    return PermuteSentences(layer, None if inner is None else corruption(inner))


CORRUPTIONS: dict[str, Callable[..., Corruption]] = {
    "bert": Bert,
    "mask-only": mask_only,
    "replace": Replace,
    "delete": Delete,
    "insert": Insert,
    "infill": Infill,
    "t5": T5,
    "ul2": Ul2,
    "permute-sentences": permute_sentences,
}


def corruption(spec: Corruption | str | Call) -> Corruption:
    """Build a corruption from its name, with or without arguments.

    >>> corruption("bert(mask=1.0, random=0.0)")
    Bert(mask=1.0, random=0.0, per='token')
    """
    return spec if isinstance(spec, Corruption) else build("corruption", spec, CORRUPTIONS)


__all__ = [
    "CORRUPTIONS",
    "T5",
    "Bert",
    "Corrupted",
    "Corruption",
    "Delete",
    "Infill",
    "Insert",
    "PermuteSentences",
    "Replace",
    "Ul2",
    "corruption",
    "mask_only",
]
