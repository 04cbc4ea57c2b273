"""Fine-tuning settings, learning rates by model size, and records of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired, TypedDict

import numpy as np
from pydantic import Field

from maskwise.base.effects import (
    Count,
    NotNegative,
    Only,
    OrOff,
    Positive,
    Rounding,
    Settings,
    Share,
    Weights,
    Whole,
)
from maskwise.tasks.task import Task
from maskwise.training.settings import TrainingSettings

MAX_LENGTH = 64
"""The default maximum number of tokens in a row of a task."""


class FinetuneSettings(Settings):
    """The settings with which every checkpoint of a study is fine-tuned.

    If ``epochs`` or ``learning_rate`` is None, its value depends on the size of the model.

    >>> FinetuneSettings(epochs=2, learning_rate=5e-5).max_length
    64
    >>> FinetuneSettings(epochs=2).fitting(110_000_000).learning_rate
    5e-05
    """

    epochs: Annotated[Weights[float | None], Only("steps", (None,))] = Field(None, gt=0)
    """Passes over the training rows; ignored if ``steps`` is given. The default is 5. For a large
    model (with a learning rate below 1e-3), it is at least 5 and at most 20: enough for 250 steps.
    Of a question-answering task, rows are questions; a long context has several windows.
    """

    steps: Weights[int | None] = Field(None, ge=1)
    """Optimiser updates. If it is None, ``epochs`` and the number of rows decide."""

    batch_size: Weights[Count] = 16
    """Rows per update."""
    learning_rate: Weights[float | None] = Field(None, gt=0)
    """AdamW's peak learning rate. The default depends on the model size: 3e-3 for a million
    weights, 5e-5 for 110 million weights.
    """

    search_rate: Weights[bool] = False
    """Whether to search for the learning rate. The candidates are 1/3, 1 and 3 times
    ``learning_rate``. The candidate with the best dev score is used. The search has its own seed,
    and costs three more fine-tuning runs for each checkpoint and task.
    """

    muon_learning_rate: Annotated[Weights[Positive], Only("optimizer", ("muon",))] = 0.003
    """Muon's peak learning rate; used only with ``optimizer: muon``."""

    optimizer: Weights[Literal["adamw", "muon"]] = "adamw"
    """``muon`` trains the weight matrices of the transformer layers with Muon, and all other
    parameters with AdamW."""
    warmup: Weights[OrOff[Share]] = 0.1
    """Share of the steps over which the learning rate rises from 0."""

    eval_every: Weights[OrOff[Whole]] = 0
    """Steps between evaluations on dev. The weights with the best dev score are used; if scores are
    equal, the earliest. With 0, dev is scored only at the end, and the last weights are used.
    """

    weight_decay: Weights[OrOff[NotNegative]] = 0.01
    """Decoupled weight decay of matrices. Biases, norms and other vectors have no weight decay."""
    precision: Rounding[Literal["auto", "no", "bf16"]] = "auto"
    """The number format of the computation: see ``training.precision``."""
    max_length: Weights[int] = Field(MAX_LENGTH, ge=3)
    """Maximum number of tokens in a row. Longer rows are cut, and a tagged word that is cut off
    counts as wrong. The long context of a question is split into several windows instead.
    """

    seeds: Weights[Count] = 3
    """Fine-tuning runs for each checkpoint and task. The score is the mean over these runs."""

    def fitting(self, weights: int) -> FinetuneSettings:
        """Fill in a missing learning rate, which depends on the model's number of weights."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": interpolated(weights, RATES)})

    def training(self, task: Task, *, seed: int) -> TrainingSettings:
        """Return the training settings of one run.

        Without a learning rate, the run gets the default of the smallest models: see ``fitting``.
        """
        rows = len(task.splits["train"])
        given = self.fitting(0)
        shared = given.model_dump(exclude={"epochs", "steps", "max_length", "seeds", "search_rate"})
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


# AdamW's peak learning rate, keyed by the number of weights. The five models are the quick start's
# model, the bundled encoder, MiniLM, BERT base and BERT large (Devlin et al. 2019, appendix A.3).
RATES = {1.5e6: 3e-3, 4e6: 1e-3, 22e6: 5e-4, 110e6: 5e-5, 340e6: 2e-5}
# A model with a rate below SMALL_RATE counts as large. Fine-tuning large models is unstable in few
# steps (Mosbach et al. 2021), so their default is at least FEWEST_STEPS.
SMALL_RATE, FEWEST_STEPS = 1e-3, 250


def interpolated(weights: int, rates: Mapping[float, float]) -> float:
    """Interpolate the rate for a number of weights, linearly on logarithmic scales.

    >>> [interpolated(weights, RATES) for weights in (600_000, 22_000_000, 340_000_000)]
    [0.003, 0.0005, 2e-05]
    """
    size = math.log(max(1, weights))
    log_sizes = np.log(list(rates))
    log_rates = np.log(list(rates.values()))
    rate = math.exp(np.interp(size, log_sizes, log_rates))
    return float(f"{rate:.2g}")


# Records


class TaskScores(TypedDict):
    """The scores of one checkpoint on one task, in one or several runs.

    ``others`` holds further metrics on test, keyed by name. ``lost_words`` is the number of test
    items that count as wrong because their tokens were cut off or are missing.
    """

    task: str
    metric: str
    score: float
    others: dict[str, float]
    majority: float | None
    test_items: int
    lost_words: int
    notes: list[str]


class Score(TaskScores):
    """The scores of one run."""

    dev: float | None
    steps: int
    seconds: float
    seed: int
    counts: list[list[float]] | None
    """See ``Task.row_counts``."""
    items: list[list[float]]
    """See ``Task.item_sums``."""


class TaskRecord(TaskScores):
    """The scores of all seeds together: a line in ``records.jsonl``.

    ``fine_tuning`` and ``dev`` are the scores of each seed on test and dev.
    """

    task_kind: str
    fine_tuning: list[float]
    dev: list[float | None]
    interval: NotRequired[list[float]]
    """A 95 % bootstrap interval of the score over test items."""
    item_error: NotRequired[float]
    """The standard error of the score over test items, from a bootstrap of sentences or texts."""
    item_sd: NotRequired[float]
    """The standard deviation, over test items, of an item's mean score over seeds."""
    item_sums: NotRequired[list[float]]
    """Contributions of groups of test rows to the numerator of the score, summed over seeds. Rows
    with the same text are one group. See ``Task.item_sums``."""
    item_sizes: NotRequired[list[float]]
    """Contributions to the denominator, such as the number of answers; one number if all are
    equal. The score is the sum of ``item_sums`` divided by the sum of ``item_sizes``."""
    tried: NotRequired[dict[str, float]]
    """The dev score of each learning rate in the search."""
    model: NotRequired[str]
    made_of: NotRequired[str]
    """A hash of checkpoint, rows and settings. Records with an equal hash differ only in seeds."""
