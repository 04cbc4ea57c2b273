"""The objectives part of a recipe: one arm of a training that chooses among several objectives."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.masking.corruptions import corruption
from maskwise.masking.settings import MaskingSettings
from maskwise.objectives import Objective, objective_class


class ObjectiveSettings(BaseModel):
    """One arm: an objective, and what its masks have of their own.

    >>> ObjectiveSettings(objective="cse(temperature=0.1)").kind.__name__
    'ContrastiveSentences'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: str
    """Its name, with arguments: mlm, emlm, atd, dtd, cse(temperature=0.05), rtd, sbo, clm,
    diffusion, tsdae.
    """
    masking: dict[str, Any] = {}
    """Changes of the recipe's masking, for objectives that mask."""

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str) -> str:
        objective_class(value)
        return value

    @field_validator("masking")
    @classmethod
    def _masking_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key not in MaskingSettings.model_fields:
                raise unknown_name("setting of masking", key, MaskingSettings.model_fields)
        MaskingSettings(**value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> ObjectiveSettings:
        if shown := self.masking.get("corruption"):
            require_fit(shown, self.kind, who=f"objective {self.objective}")
        return self

    @property
    def kind(self) -> type[Objective]:
        """The class of the objective."""
        return objective_class(self.objective)


def require_fit(shown: str, kind: type[Objective], *, who: str) -> None:
    """Refuse a corruption whose labels are not those that an objective's loss reads.

    Args:
        shown: the corruption, with its arguments.
        who: what the error calls the objective.

    Raises:
        MaskwiseError: labels of another kind, or at other places.
    """
    corrupts = corruption(shown)
    if kind.kind == "encoder-decoder":
        kind.check({"corruption": shown})
    if kind.in_place and not corrupts.keeps_length:
        do = f"for {who} take one that keeps lengths, such as bert"
        raise MaskwiseError(f"corruption {shown} changes lengths", do=do)
    if corrupts.detects and not kind.detects:
        do = f"for {who} take another target, or bert"
        raise MaskwiseError(f"corruption {shown} has labels 0 and 1, not tokens", do=do)
    if kind.detects and not corrupts.detects:
        do = f"for {who} take one with target='detect', such as replace(target='detect')"
        raise MaskwiseError(f"corruption {shown} has tokens as labels, not 0 and 1", do=do)
