"""The settings of fine-tuning, and the learning rates that suit models of known sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from maskwise.tasks.task import Task
from maskwise.training import TrainingSettings


class FinetuneSettings(BaseModel):
    """How every checkpoint of a study is fine-tuned. What is None is chosen by the size of the
    model (``fitting``).

    >>> FinetuneSettings(epochs=2, learning_rate=5e-5).max_length
    64
    >>> FinetuneSettings(epochs=2).fitting(110_000_000).learning_rate
    5e-05
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows; not used when ``steps`` is given. None: 5, and up to 20 where
    a large model would have fewer than 250 steps."""

    steps: int | None = Field(None, ge=1)
    """Optimiser updates, whatever the size of the task."""

    batch_size: int = Field(16, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of AdamW. None: what suits models of this size, from 3e-3 (a million weights) to
    5e-5 (110 million).
    """

    search_rate: bool = False
    """Try a third, once and three times the learning rate on dev first, with a seed of its own, and
    take the best. Each fine-tuned checkpoint pays for three more fine-tunings a task; for models
    and tasks of which nothing is known.
    """

    muon_learning_rate: float = Field(0.003, gt=0)
    """Peak rate of Muon; used with ``optimizer: muon`` only."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""

    eval_every: int = Field(0, ge=0)
    """Steps between scores on dev. The best state is kept, the first of equals; 0: the last state
    is taken.
    """

    patience: int | None = Field(None, ge=1)
    """So many scores on dev without a better one end the training; without ``eval_every`` it says
    nothing.
    """

    weight_decay: float = Field(0.01, ge=0)
    precision: Literal["auto", "no", "bf16"] = "auto"
    max_length: int = Field(64, ge=3)
    """Tokens; longer rows are cut, and words cut off count as wrong. Contexts of questions are read
    in windows.
    """

    seeds: int = Field(3, ge=1)
    """Fine-tunings for each checkpoint and task; their mean is one score."""

    def fitting(self, weights: int) -> FinetuneSettings:
        """The same settings with a learning rate for a model of so many weights, where none is
        given.
        """
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": fitting_rate(weights)})

    def training(self, task: Task, *, seed: int) -> TrainingSettings:
        """Settings of one fine-tuning; a rate that is not known yet is that of a small model."""
        rows, given = len(task.splits["train"]), self.fitting(0)
        shared = given.model_dump(
            exclude={"epochs", "steps", "max_length", "seeds", "patience", "search_rate"}
        )
        epochs = self.epochs
        if epochs is None:
            assert given.learning_rate is not None
            large = given.learning_rate < SMALL_RATE
            epochs = min(20.0, max(5.0, FEWEST_STEPS * self.batch_size / rows)) if large else 5.0
        steps = self.steps or max(1, round(epochs * rows / self.batch_size))
        return TrainingSettings(steps=steps, seed=seed, log_every=max(1, steps // 20), **shared)


RATES = {1.5e6: 3e-3, 4e6: 1e-3, 22e6: 5e-4, 110e6: 5e-5, 340e6: 2e-5}
"""Peak rates of AdamW that suited models of so many weights: the quick start's, the shipped
encoder, MiniLM, and the published ones of BERT's two sizes (Devlin et al. 2019, appendix A.3)."""
SMALL_RATE, FEWEST_STEPS = 1e-3, 250
"""Below this rate a model is large, and gets so many steps at least if epochs are not given
(Mosbach et al. 2021).
"""


def fitting_rate(weights: int) -> float:
    """A learning rate for fine-tuning a model of so many weights, between those that are known of
    other sizes.

    >>> [fitting_rate(weights) for weights in (600_000, 22_000_000, 340_000_000)]
    [0.003, 0.0005, 2e-05]
    """
    return interpolated(weights, RATES)


def interpolated(weights: int, rates: Mapping[float, float]) -> float:
    """The rate for so many weights on the line between the next ones that are known, all of them in
    logarithms.
    """
    sizes, known = [math.log(size) for size in rates], [math.log(rate) for rate in rates.values()]
    return float(f"{math.exp(np.interp(math.log(max(1, weights)), sizes, known)):.2g}")
