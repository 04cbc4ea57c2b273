"""Corruptions: how selected tokens are replaced, and which labels the model must predict.

Corruptions in ``in_place`` replace tokens. Those in ``moving`` remove, insert or move tokens, and
``t5`` replaces spans by one token each. To add a corruption, write a class like
``Bert`` or ``Delete`` and add a line to the table, or name the class in an entry point of your
package (``plugins``). The contract tests run on every line of the table.
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.base.plugins import Table
from maskwise.base.specs import Call, build
from maskwise.masking.corruptions.base import Corruption, Masked
from maskwise.masking.corruptions.in_place import Bert, Replace, mask_only
from maskwise.masking.corruptions.moving import Delete, Infill, Insert, PermuteSentences
from maskwise.masking.corruptions.sentinels import T5


def permute_sentences(
    layer: str = "sentence", inner: Corruption | str | Call | None = None
) -> PermuteSentences:
    """Permute the sentences that contain a selected token (BART).

    ``inner``, a corruption or its name, then corrupts the selected tokens.
    """
    return PermuteSentences(layer, None if inner is None else corruption(inner))


_BUILT_IN: dict[str, Callable[..., Corruption]] = {
    "bert": Bert,
    "mask-only": mask_only,
    "replace": Replace,
    "delete": Delete,
    "insert": Insert,
    "infill": Infill,
    "t5": T5,
    "permute-sentences": permute_sentences,
}
CORRUPTIONS = Table("corruption", "maskwise.corruptions", _BUILT_IN)
"""The corruptions by their names in recipes."""


def corruption(spec: Corruption | str | Call) -> Corruption:
    """Build a corruption from its name, with or without arguments.

    >>> corruption("bert(mask=1.0, random=0.0)")
    Bert(mask=1.0, random=0.0, per='token')
    """
    if isinstance(spec, Corruption):
        return spec
    return build("corruption", spec, CORRUPTIONS, makes=Corruption)


__all__ = [
    "CORRUPTIONS",
    "T5",
    "Bert",
    "Corruption",
    "Delete",
    "Infill",
    "Insert",
    "Masked",
    "PermuteSentences",
    "Replace",
    "corruption",
    "mask_only",
]
