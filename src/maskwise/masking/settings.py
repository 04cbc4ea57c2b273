"""The masking part of a recipe: which policy, ratio, budget and corruption, as plain values that
build a masker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from maskwise.masking.corruptions import corruption
from maskwise.masking.masker import MOST_TARGETS, Masker
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masking.select import require_known

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MaskingSettings(BaseModel):
    """What is masked, how much, and how it is shown; every name is looked up when the settings are
    read.

    >>> MaskingSettings(policy="whole-word", ratio="linear(0.30, 0.15)").corruption
    'bert'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str = "token"
    ratio: str | float = 0.15
    budget: str = "expected"
    fill: str = "none"
    corruption: str = "bert"
    min_targets: int = Field(1, ge=0, le=MOST_TARGETS)
    predict: str | float = 1.0
    """The loss is taken on at most this share of each row's tokens."""
    keep: str | None = None
    """A layer whose tokens are never masked, such as ``prompt``."""
    visits: str = "random"
    """How a row's masks in different epochs hang together: random, complement (each second visit
    masks what the one before it left) or coverage (over 1/ratio epochs every unit is masked
    once)."""

    @field_validator("policy", "ratio", "predict", "corruption")
    @classmethod
    def _known(cls, value: str | float, info: ValidationInfo) -> str | float:
        if info.field_name in ("ratio", "predict"):
            schedule(value)
        else:
            (policy if info.field_name == "policy" else corruption)(str(value))
        return value

    @field_validator("budget", "fill", "visits")
    @classmethod
    def _listed(cls, value: str, info: ValidationInfo) -> str:
        require_known(str(info.field_name), value)
        return value

    def masker(self, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Masker:
        """The masker that these settings describe."""
        return Masker(tokenizer, **self.model_dump(), seed=seed)
