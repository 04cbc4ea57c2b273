"""The ``evaluation`` section of a recipe. What it names is loaded by ``evaluate``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from pydantic import (
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from maskwise.constants import DIFFUSION
from maskwise.effects import (
    Count,
    Judgement,
    OrOff,
    Settings,
    Several,
    Whole,
    within,
    without_unset,
)
from maskwise.errors import MaskwiseError
from maskwise.masking.policies import Policy, policy

ROWS = 256
"""The default of the maximum number of held-out rows."""


class EvaluationSettings(Settings):
    """Measures of a checkpoint besides its tasks. All arms of a study have the same measures.

    ``ratio: 0.15`` is accepted for ``ratios: [0.15]``.

    >>> EvaluationSettings(ratios=0.15, pairs="bundled:pairs").pairs
    ('bundled:pairs',)
    """

    ratios: Judgement[Several[float]] = (0.15, 0.40)
    """Masking ratios of the fixed masks. The loss curve during training uses the first ratio."""
    masks: Judgement[Several[str]] = ("token", "whole-word")
    """Kinds of fixed masks: names of policies, and ``diffusion`` for the masked-diffusion bound."""
    rows: Judgement[Count] = ROWS
    """Maximum number of held-out rows for the loss."""
    pseudo_perplexity: Judgement[OrOff[Whole]] = 0
    """Number of held-out rows for the pseudo-perplexity; 0 for none. Each token of these rows costs
    a forward pass."""
    bound: Judgement[OrOff[Whole]] = 0
    """Number of times each held-out row is masked for the masked-diffusion bound in nats and bits
    per token. With 0, this bound is not measured."""
    word_loss: Judgement[OrOff[Whole]] = 0
    """Number of held-out documents for the loss of words in nats per byte, which compares models
    with different vocabularies; 0 for none."""
    cloze: Judgement[Several[str]] = ()
    """Cloze sets: files in LAMA's format, optionally with arguments: ``facts.jsonl(items=500)``."""
    pairs: Judgement[Several[str]] = ()
    """Sets of minimal pairs: ``bundled:pairs``, or files in BLiMP's format."""
    measures: Judgement[Several[str]] = ()
    """Further measures, optionally with arguments: ``text-loss('general.txt')``, the loss on a text
    that the arms do not train on, or those of other packages, such as ``reading-times(items=500)``.
    """

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, dump, "measures", "word_loss")

    _policies: dict[str, Policy] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_ratio(cls, raw: object) -> object:
        if isinstance(raw, dict) and "ratio" in raw:
            if "ratios" in raw:
                raise MaskwiseError(
                    "evaluation has both ratio and ratios", do="remove evaluation.ratio"
                )
            raw = {**raw, "ratios": raw["ratio"]}
            del raw["ratio"]
        return raw

    @field_validator("ratios")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return checked_ratios("evaluation.ratios", value)

    @model_validator(mode="after")
    def _parse(self) -> Self:
        with within("masks", self.masks):
            self._policies.update(fixed_policies(self.masks))
        return self

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies of the fixed masks by name. Masked diffusion has none."""
        return {name: self._policies[name] for name in self.masks if name != DIFFUSION}


def checked_ratios(setting: str, ratios: object) -> tuple[float, ...]:
    """Return masking ratios of fixed masks as a tuple. One number is read as one ratio.

    Raises:
        MaskwiseError: they are not different numbers above 0 and below 1, or there are none.
    """
    found = tuple(ratios) if isinstance(ratios, tuple | list) else (ratios,)
    in_range = all(isinstance(ratio, int | float) and 0 < ratio < 1 for ratio in found)
    if not found or not in_range or len(set(found)) < len(found):
        raise MaskwiseError(
            f"{setting} are invalid",
            got=[*found],
            allowed="one or more different numbers above 0 and below 1",
        )
    return found


def fixed_policies(masks: Iterable[str]) -> dict[str, Policy]:
    """Return the policies of fixed masks by name. Masked diffusion has none.

    Raises:
        MaskwiseError: a name is unknown, or a policy has a ratio of its own.
    """
    found = {}
    for name in masks:
        if name == DIFFUSION:
            continue
        made = policy(name)
        if made.has_ratio:
            raise MaskwiseError(
                "fixed masks need a policy without a ratio of its own",
                got=name,
                do="choose another kind of masks, such as token",
            )
        found[name] = made
    return found
