"""What is measured of a checkpoint beside its tasks. The same for every arm of a study."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from maskwise.errors import MaskwiseError
from maskwise.masking.policies import policy


class EvaluationSettings(BaseModel):
    """Held-out loss on fixed masks, and what else is asked for.

    ``ratio: 0.15`` is accepted for ``ratios: [0.15]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratios: tuple[float, ...] = (0.15, 0.40)
    """Of the fixed masks. The first one is also that of the curve during training."""
    masks: tuple[str, ...] = ("token", "whole-word")
    """Kinds of fixed masks: names of policies."""
    rows: int = Field(256, ge=1)
    """At most this many held-out rows for the loss."""
    pseudo_perplexity: int = Field(0, ge=0)
    """Held-out rows for the pseudo-perplexity, which costs a forward pass per token; 0: none."""
    cloze: tuple[str, ...] = ()
    """Cloze sets: files in LAMA's format, with options behind: ``facts.jsonl(items=500)``."""
    pairs: tuple[str, ...] = ()
    """Sets of minimal pairs: ``bundled:pairs``, or files in BLiMP's format."""

    @model_validator(mode="before")
    @classmethod
    def _one_ratio(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "ratio" not in raw:
            return raw
        if "ratios" in raw:
            raise MaskwiseError("evaluation has both ratio and ratios", do="keep ratios")
        rest = {key: value for key, value in raw.items() if key != "ratio"}
        return {**rest, "ratios": raw["ratio"]}

    @field_validator("ratios", "cloze", "pairs", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("ratios")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or len(set(value)) < len(value) or not all(0 < ratio < 1 for ratio in value):
            raise MaskwiseError(
                "evaluation.ratios", got=list(value), allowed="different numbers in 0 < r < 1"
            )
        return value

    @field_validator("masks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            policy(name)
        return value
