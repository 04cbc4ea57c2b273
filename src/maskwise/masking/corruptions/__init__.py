"""How chosen units are shown, and what must be produced. One file each; the table is the registry."""

from __future__ import annotations

from collections.abc import Callable

from maskwise.masking.corruptions.base import Corrupted, Corruption
from maskwise.masking.corruptions.bert import Bert, mask_only
from maskwise.masking.corruptions.delete import Delete
from maskwise.masking.corruptions.infill import Infill
from maskwise.masking.corruptions.insert import Insert
from maskwise.masking.corruptions.permute_sentences import PermuteSentences, permute_sentences
from maskwise.masking.corruptions.replace import Replace
from maskwise.masking.corruptions.t5 import T5
from maskwise.masking.corruptions.ul2 import Ul2
from maskwise.specs import Call, build

CORRUPTIONS: dict[str, Callable[..., Corruption]] = {
    "bert": Bert, "mask-only": mask_only, "replace": Replace, "delete": Delete, "insert": Insert,
    "infill": Infill, "t5": T5, "ul2": Ul2, "permute-sentences": permute_sentences,
}  # fmt: skip


def corruption(spec: Corruption | str | Call) -> Corruption:
    """Anything that names a corruption, as a corruption."""
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
]  # fmt: skip
