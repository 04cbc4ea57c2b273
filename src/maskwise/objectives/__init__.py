"""Objectives: classes that compute the loss of a model on a batch, in pre-training and on tasks.

This package may import from ``masking`` and from the layers below ``masking``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, field_validator, model_validator

from maskwise.effects import Weights
from maskwise.errors import MaskwiseError, require_known
from maskwise.masking.corruptions import corruption
from maskwise.masking.settings import Masking, MaskingSettings
from maskwise.objectives.base import (
    Classification,
    Loss,
    MultiLabel,
    MultipleChoice,
    Objective,
    Regression,
    SpanQuestionAnswering,
)
from maskwise.objectives.denoising import (
    CausalLanguageModelling,
    Denoising,
    DenoisingAutoencoder,
    predicting,
)
from maskwise.objectives.discriminative import (
    AddedTokenDetection,
    ContrastiveSentences,
    DeletedTokenDetection,
    ReplacedTokenDetection,
)
from maskwise.objectives.mlm import (
    EntityMaskedLanguageModelling,
    MaskedDiffusion,
    MaskedLanguageModelling,
)
from maskwise.plugins import Table
from maskwise.specs import Call, build, find

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BUILT_IN: dict[str, type[Objective]] = {
    "mlm": MaskedLanguageModelling,
    "emlm": EntityMaskedLanguageModelling,
    "atd": AddedTokenDetection,
    "dtd": DeletedTokenDetection,
    "cse": ContrastiveSentences,
    "rtd": ReplacedTokenDetection,
    "clm": CausalLanguageModelling,
    "diffusion": MaskedDiffusion,
    "tsdae": DenoisingAutoencoder,
    "denoise": Denoising,
}
_GONE = {"sbo": "add the objective as a plug-in, as docs/plug-ins.md shows"}
OBJECTIVES = Table("objective", "maskwise.objectives", _BUILT_IN, gone=_GONE)
"""The objectives by their names in recipes."""


def objective_class(spec: str | Call) -> type[Objective]:
    """Return the class of an objective such as ``cse(temperature=0.1)``.

    Raises:
        MaskwiseError: the name is unknown.
    """
    _, kind = find("objective", spec, OBJECTIVES)
    return kind


def objective(spec: str | Call, model: PreTrainedModel) -> Objective:
    """Build an objective for a model from the name and the arguments of the objective."""
    call, kind = find("objective", spec, OBJECTIVES)
    return build("objective", call, {call.name: partial(kind, model)})


class ObjectiveSettings(BaseModel, extra="forbid", frozen=True):
    """The settings of one objective in a training run with several objectives.

    >>> ObjectiveSettings(objective="cse(temperature=0.1)").kind.__name__
    'ContrastiveSentences'
    """

    objective: Weights[str]
    """The name of the objective, with or without arguments: mlm, emlm, atd, dtd,
    cse(temperature=0.05), rtd, clm, diffusion, tsdae, denoise.
    """
    masking: Weights[dict[str, Any]] = {}
    """Masking settings of this objective. They replace the settings ``masking`` of the recipe."""

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str) -> str:
        objective_class(value)
        return value

    @field_validator("masking")
    @classmethod
    def _masking_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            require_known("masking setting", key, MaskingSettings.model_fields)
        MaskingSettings(**value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> ObjectiveSettings:
        if shown := self.masking.get("corruption"):
            require_fit(
                shown,
                self.kind,
                who=f"objective {self.objective}",
            )
        return self

    @property
    def kind(self) -> type[Objective]:
        """The class of the objective."""
        return objective_class(self.objective)


def require_fit(shown: str, kind: type[Objective], *, who: str) -> None:
    """Raise ``MaskwiseError`` if an objective cannot use the labels of a corruption.

    Args:
        shown: the corruption, with its arguments.
        kind: the class of the objective.
        who: words for the objective in the error message, such as "objective mlm".
    """
    corrupts = corruption(shown)
    if kind.kind == "encoder-decoder":
        kind.check(Masking(corruption=corrupts))
    if kind.in_place and not corrupts.keeps_length:
        raise MaskwiseError(
            f"corruption {shown} changes the length of a text",
            do=f"for {who}, choose a corruption that keeps the length, such as mask-only",
        )
    if corrupts.detects != kind.detects:
        has = "labels 0 and 1, not tokens" if corrupts.detects else "tokens as labels, not 0 and 1"
        other = "target='detect'" if kind.detects else "another target, or the corruption bert"
        raise MaskwiseError(f"corruption {shown} has {has}", do=f"for {who}, choose {other}")


__all__ = [
    "OBJECTIVES",
    "CausalLanguageModelling",
    "Classification",
    "ContrastiveSentences",
    "Denoising",
    "DenoisingAutoencoder",
    "Loss",
    "MaskedDiffusion",
    "MaskedLanguageModelling",
    "MultiLabel",
    "MultipleChoice",
    "Objective",
    "ObjectiveSettings",
    "Regression",
    "SpanQuestionAnswering",
    "objective",
    "objective_class",
    "predicting",
    "require_fit",
]
