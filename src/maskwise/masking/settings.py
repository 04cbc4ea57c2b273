"""The masking section of a recipe: plain values, checked on reading, that build a masker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from maskwise.masking.corruptions import corruption
from maskwise.masking.masker import MOST_TARGETS, Masker
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masking.select import BUDGETS, FILLS, VISITS, require_known

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHECKS: dict[str, Callable[..., object]] = {
    "policy": policy,
    "ratio": schedule,
    "predict": schedule,
    "corruption": corruption,
    "budget": partial(require_known, "budget", known=BUDGETS),
    "fill": partial(require_known, "fill", known=FILLS),
    "visits": partial(require_known, "visits", known=VISITS),
}


class MaskingSettings(BaseModel):
    """The settings of a masker.

    >>> MaskingSettings(policy="whole-word", ratio="linear(0.30, 0.15)").corruption
    'bert'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str = "token"
    """Which tokens are masked together, and how likely each unit is: a name of ``list policies``.
    """
    ratio: str | float = 0.15
    """Share of the eligible tokens that is masked: a number, or a schedule such as ``linear(0.30,
    0.15)``."""
    budget: str = "expected"
    """How strictly the ratio is met. ``expected``: at most one unit over the budget, the budget on
    average. ``exact``: never over it; a unit that does not fit is skipped. ``bernoulli``: each unit
    by itself, with probability ratio × weight."""
    fill: str = "none"
    """What becomes of budget that units of positive weight cannot use. ``none``: it is left.
    ``random``: it goes to other units. ``skip-row``: the whole row stays unmasked."""
    corruption: str = "bert"
    """What the model sees instead, and what it predicts: a name of ``list corruptions``."""
    min_targets: int = Field(1, ge=0, le=MOST_TARGETS)
    """The fewest masked tokens of a piece of text whose budget is at least half a token."""
    predict: str | float = 1.0
    """The largest share of each row's tokens on which the loss is taken."""
    keep: str | None = None
    """A layer whose tokens are never masked, such as ``prompt``."""
    visits: str = "random"
    """How a row's masks in different epochs depend on each other: random, complement (each second
    visit masks what the first left) or coverage (over 1/ratio epochs every unit is masked once)."""

    @field_validator(*_CHECKS)
    @classmethod
    def _known(cls, value: str | float, info: ValidationInfo) -> str | float:
        _CHECKS[str(info.field_name)](value)
        return value

    def masker(self, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Masker:
        """Build the masker."""
        return Masker(tokenizer, **self.model_dump(), seed=seed)
