"""Estimate the seconds of stages of which none alike was run or rehearsed, as ranges.

No model is built, and nothing is trained. On a CPU, the time of a batch grows with its tokens and
with the weights of the model by one formula, whether a stage trains, fine-tunes or measures. Within
the range are 80 to 95 % of the recorded stages that were not used to make it
(benchmarks/results/estimates-2026-12-01.json).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from maskwise.base.constants import cards_here
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.models.loading import weights_of
from maskwise.studies.checks import tokenizer_and_config
from maskwise.studies.plan import Plan
from maskwise.studies.rehearsal import TextCounts
from maskwise.studies.stages import KINDS, Stage, recipe_of
from maskwise.tasks.finetuning import TRIAL_FACTORS
from maskwise.tasks.loading import load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.text.settings import CorpusSettings

POWER = 0.75
"""The seconds of a batch grow with (weights × tokens) ** ``POWER``: large products are faster."""
LEAST, MOST = 1.35e-8, 7.2e-8
"""The seconds of a step of training with one weight and one token."""
FORWARD = 1 / 3
"""The share of a step that is its forward pass."""
MEASURED_ROWS = 16
"""The rows of a batch that is only read."""
FILLED = 0.5
"""The seconds of a batch of a task's rows, as a share of those of rows of ``max_length``."""
PER_CHARACTER = {"prepare": (1.2e-6, 6.4e-6), "overlap": (0.09e-6, 0.48e-6)}
"""The least and the most seconds of each character, by the kind of the stage."""
RECORDED_TASKS = {"sequence-classification", "token-classification"}
"""The kinds of tasks of the recorded stages, besides frozen ones. Others take at least this time:
they read a row several times, or write answers.
"""


class Range(NamedTuple):
    """The least and the most seconds of a stage. The most are infinite where nothing is known."""

    least: float
    most: float


UNKNOWN = Range(0.0, math.inf)


def estimates(
    plans: Iterable[Plan], counts_of: Callable[[CorpusSettings], TextCounts]
) -> dict[str, Range]:
    """Estimate the seconds of all stages of plans, keyed by the name of the stage.

    Args:
        counts_of: counts the characters of a text.
    """
    found: dict[str, Range] = {}
    sizes: dict[object, int] = {}
    for plan in plans:
        for run in plan.runs:
            # The runs of an arm differ in their seeds.
            model = run.arm, repr(run.setting)
            if model not in sizes:
                _, config = tokenizer_and_config(run.recipe)
                sizes[model] = weights_of(config)
            by_name = {stage.name: stage for stage in run.stages}
            for stage in run.stages:
                if stage.name not in found:
                    text = by_name.get(stage.needs[0]) if stage.needs else stage
                    found[stage.name] = _estimate(stage, text or stage, sizes[model], counts_of)
    return found


def _estimate(
    stage: Stage, text: Stage, weights: int, counts_of: Callable[[CorpusSettings], TextCounts]
) -> Range:
    if stage.kind in PER_CHARACTER:
        corpus = CorpusSettings(**stage.what["corpus"])
        counts = counts_of(corpus)
        least, most = (counts.characters * each for each in PER_CHARACTER[stage.kind])
        # Annotators may take much longer than all else.
        return Range(least, most if counts.whole and not corpus.layers else math.inf)
    if stage.kind not in BATCHES or cards_here():
        return UNKNOWN
    count, tokens, bounded = BATCHES[stage.kind](stage, text, weights)
    size = count * (weights * tokens) ** POWER
    return Range(LEAST * size, MOST * size if bounded else math.inf)


def _training(stage: Stage, text: Stage, weights: int) -> tuple[float, float, bool]:
    """Return the number of steps, the tokens of each, and whether nothing else takes time."""
    steps = KINDS["pretrain"].steps(stage) or 0
    recipe = recipe_of(stage)
    # A teacher may be larger than what it teaches, and evaluations may take longer than the steps.
    taught = any(each.starts for each in recipe.trained_by.values())
    every, batch = recipe.training.eval_every, recipe.training.batch_size
    judged = FORWARD * _rows(recipe.evaluation) / (every * batch) if every else 0.0
    return steps, batch * text.setting("corpus.length"), judged < 1 and not taught


def _rows(settings: EvaluationSettings) -> int:
    return settings.rows * len(settings.masks) * len(settings.ratios)


def _measures(stage: Stage, text: Stage, weights: int) -> tuple[float, float, bool]:
    settings = EvaluationSettings(**stage.what["evaluation"])
    rows = _rows(settings)
    tokens = MEASURED_ROWS * text.setting("corpus.length")
    return FORWARD * rows / MEASURED_ROWS, tokens, not settings.measures


def _task(stage: Stage, text: Stage, weights: int) -> tuple[float, float, bool]:
    task = load_task(stage.what["task"])
    settings = FinetuneSettings(**stage.what["finetune"])
    splits = {name: len(rows) for name, rows in task.splits.items()}
    if task.frozen:
        steps, read, times = 0, sum(splits.values()), 1
    else:
        if settings.learning_rate is None:
            settings = settings.fitting(weights)
        steps = settings.training(task, seed=0).steps
        read = splits["dev"] + splits["test"]
        times = settings.seeds + (len(TRIAL_FACTORS) if settings.search_rate else 0)
    count = FILLED * times * (steps + FORWARD * read / settings.batch_size)
    tokens = settings.batch_size * settings.max_length
    return count, tokens, task.frozen or task.kind.name in RECORDED_TASKS


BATCHES = {"pretrain": _training, "evaluate": _measures, "finetune": _task}
