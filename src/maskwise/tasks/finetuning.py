"""The settings of fine-tuning, learning rates by the size of the model, and records of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from maskwise.tasks.task import Task
from maskwise.training import TrainingSettings


class FinetuneSettings(BaseModel):
    """The settings with which every checkpoint of a study is fine-tuned.

    None means a default by the size of the model.

    >>> FinetuneSettings(epochs=2, learning_rate=5e-5).max_length
    64
    >>> FinetuneSettings(epochs=2).fitting(110_000_000).learning_rate
    5e-05
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows, unless ``steps`` is given. None: 5, and up to 20 if a large
    model would have fewer than 250 steps."""

    steps: int | None = Field(None, ge=1)
    """Optimiser updates, whatever the size of the task."""

    batch_size: int = Field(16, ge=1)
    """Rows per update."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of AdamW. None: by model size, from 3e-3 (a million weights) to 5e-5 (110 million).
    """

    search_rate: bool = False
    """First try a third, one and three times the learning rate with a separate seed, and use the
    best one on dev. Costs three more fine-tunings for each checkpoint and task; meant for unknown
    models and tasks.
    """

    muon_learning_rate: float = Field(0.003, gt=0)
    """Peak rate of Muon; used with ``optimizer: muon`` only."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon for the matrices of the blocks, AdamW for the other parameters."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""

    eval_every: int = Field(0, ge=0)
    """Steps between scores on dev. The state with the best score is used, or the first of equals.
    0: no scores, and the last state is used.
    """

    patience: int | None = Field(None, ge=1)
    """Scores on dev without an improvement after which training stops; needs ``eval_every``."""

    weight_decay: float = Field(0.01, ge=0)
    """Decoupled; not applied to biases, norms and other vectors."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """As ``training.precision``."""
    max_length: int = Field(64, ge=3)
    """Tokens. Longer rows are cut, and words cut off count as wrong; contexts of questions are read
    in windows.
    """

    seeds: int = Field(3, ge=1)
    """Fine-tunings of each checkpoint on each task; the score is their mean."""

    def fitting(self, weights: int) -> FinetuneSettings:
        """Add a learning rate for a model of this size, if none is given."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": interpolated(weights, RATES)})

    def training(self, task: Task, *, seed: int) -> TrainingSettings:
        """Return the settings of one fine-tuning, by default with a small model's learning rate."""
        rows = len(task.splits["train"])
        given = self.fitting(0)
        shared = given.model_dump(
            exclude={"epochs", "steps", "max_length", "seeds", "patience", "search_rate"}
        )
        epochs = self.epochs
        if epochs is None:
            assert given.learning_rate is not None
            epochs = 5.0
            if given.learning_rate < SMALL_RATE:
                enough = FEWEST_STEPS * self.batch_size / rows
                epochs = min(20.0, max(epochs, enough))
        steps = self.steps or max(1, round(epochs * rows / self.batch_size))
        return TrainingSettings(
            steps=steps,
            seed=seed,
            log_every=max(1, steps // 20),
            **shared,
        )


# Peak rates of AdamW by the number of weights: the model of the quick start, the shipped encoder,
# MiniLM, and those published for BERT's two sizes (Devlin et al. 2019, appendix A.3).
RATES = {1.5e6: 3e-3, 4e6: 1e-3, 22e6: 5e-4, 110e6: 5e-5, 340e6: 2e-5}
# Models with a lower rate count as large. Their fine-tuning is unstable with few steps, so by
# default they get more (Mosbach et al. 2021).
SMALL_RATE, FEWEST_STEPS = 1e-3, 250


def interpolated(weights: int, rates: Mapping[float, float]) -> float:
    """Return the rate for a number of weights, interpolated linearly between logarithms.

    >>> [interpolated(weights, RATES) for weights in (600_000, 22_000_000, 340_000_000)]
    [0.003, 0.0005, 2e-05]
    """
    size = math.log(max(1, weights))
    log_sizes = np.log(list(rates))
    log_rates = np.log(list(rates.values()))
    rate = math.exp(np.interp(size, log_sizes, log_rates))
    return float(f"{rate:.2g}")


# Records


class Judged(TypedDict):
    """The scores of one checkpoint on one task, in one run or in several.

    ``others`` are further metrics on test, ``lost_words`` test items that cannot be answered.
    """

    task: str
    metric: str
    score: float
    others: dict[str, float]
    majority: float | None
    test_items: int
    lost_words: int
    notes: list[str]


class Score(Judged):
    """One run."""

    dev: float | None
    steps: int
    seconds: float
    seed: int
    counts: list[list[float]] | None
    """See ``Task.row_counts``."""


class TaskRecord(Judged):
    """All seeds: a line of ``records.jsonl``."""

    task_kind: str
    fine_tuning: list[float]
    dev: list[float | None]
    interval: NotRequired[list[float]]
    """A 95 % bootstrap interval of the score over test items."""
    item_error: NotRequired[float]
    """The standard error of the score over test items, by resampling sentences and documents."""
    item_sd: NotRequired[float]
    """The standard deviation of the scores of test items (means over seeds)."""
    tried: NotRequired[dict[str, float]]
    """Dev scores of the learning rates that were tried."""
    model: NotRequired[str]
    made_of: NotRequired[str]
    """A hash of checkpoint, task, settings and seeds: an equal record is not made again."""
