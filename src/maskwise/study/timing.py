"""Times the stages of a study before any of them has run: a few real steps of each kind.

``maskwise check`` times what ``forecast`` does not know yet, on a sample of the text, and keeps it
there.

Cost: some seconds for each kind of training and each task; ``SECONDS`` in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from maskwise.errors import MaskwiseError
from maskwise.evaluation import evaluate
from maskwise.recipe import Recipe
from maskwise.study.forecast import Forecast
from maskwise.study.plan import Run
from maskwise.study.stages import Stage
from maskwise.study.work import learning
from maskwise.tasks import Task, load_task
from maskwise.tasks.judge import answer, load_network
from maskwise.tasks.task import Frozen, Tuned
from maskwise.tasks.tensors import TaskSource, embed, encode
from maskwise.text import Prepared
from maskwise.text.worlds import of_run
from maskwise.training import train
from maskwise.training.engine import best_device
from maskwise.training.speed import peak_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECONDS = 25.0
"""After so long nothing more is timed; what is left is unknown."""
STEPS, STEP_SECONDS = 12, 6.0
"""Steps of a training that are timed, or as many as fit into so many seconds (at least 2)."""
ITEMS = 48
"""Rows of a task that are answered."""
TRIED_RATES = 3
"""Fine-tunings more that ``finetune.search_rate`` takes."""
START_SECONDS = 8.0
"""What a study takes beside its stages: workers that import torch."""


class Work(NamedTuple):
    """A stage that is to be timed.

    Attributes:
        link: the recipe of the training; of what comes after it, the recipe of the checkpoint's
            last training.
    """

    stage: Stage
    link: Recipe


def works_of(runs: Iterable[Run]) -> dict[str, Work]:
    """The stages of runs by name, each with the recipe of its training."""
    works: dict[str, Work] = {}
    for run in runs:
        links = run.recipe.links()
        for stage, link in zip(run.trainings, links):
            works[stage.name] = Work(stage, link)
        for stage in run.stages:
            works.setdefault(stage.name, Work(stage, links[-1]))
    return works


def time_stages(
    works: Mapping[str, Work],
    sample: Callable[[Recipe], Prepared],
    forecast: Forecast,
    *,
    characters: int,
    prepared: float,
    seconds: float = SECONDS,
) -> None:
    """Time what a forecast does not know yet, the trainings first.

    Args:
        sample: a sample of the text as the recipe of a training cuts it into rows.
        characters: of the whole text.
        prepared: seconds that preparing took, for each character of the sample.
        seconds: after so many nothing more is timed.
    """
    end = time.perf_counter() + seconds
    for kind in ("pretrain", "finetune", "evaluate", "prepare", "overlap"):
        for name, work in works.items():
            if work.stage.kind != kind or forecast.seconds(name) is not None:
                continue
            if kind == "prepare":
                forecast.keep(name, {"seconds": characters * prepared})
            elif kind == "overlap":  # words are counted, not tokenised
                forecast.keep(name, {"seconds": characters * prepared / 2})
            elif time.perf_counter() < end:
                # Such as a sample with too few rows: the time stays unknown.
                with _one_thread(), suppress(MaskwiseError):
                    forecast.keep(name, _TIMERS[kind](work, sample(work.link)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the workers of a study have it, unless there is an accelerator."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if best_device().type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> float:
    """Seconds of this process: other work on the machine does not count, but an accelerator is
    waited for.
    """
    return time.process_time() if best_device().type == "cpu" else time.perf_counter()


class _Clock:
    """Called after every step; says ``enough`` when enough of them were timed.

    Attributes:
        ticks: when it was made, and when each step ended.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ticks = [_now()]

    def __call__(self, step: int) -> list[dict[str, Any]]:
        self.ticks.append(_now())
        return [
            {
                "enough": len(self.ticks) > STEPS
                or (len(self.ticks) > 2 and time.perf_counter() - self.began > STEP_SECONDS)
            }
        ]

    @property
    def step(self) -> float:
        """Seconds of a step: the middle of all but the first, which warms up."""
        each = [b - a for a, b in zip(self.ticks, self.ticks[1:])]
        return median(each[1:] or each)

    @property
    def warm_up(self) -> float:
        """Seconds by which the first step took longer, such as those of a compilation."""
        return max(0.0, self.ticks[1] - self.ticks[0] - self.step)


def _network(link: Recipe, data: Prepared) -> PreTrainedModel:
    """The model of a training, as it begins."""
    unigram = torch.zeros(len(data.tokenizer))
    return link.model.model(
        data.tokenizer,
        data.training.length,
        kind=link.kind,
        seed=link.training.seed,
        log_unigram=unigram,
    )


def _time_training(work: Work, data: Prepared) -> dict[str, float]:
    began = _now()
    link = work.link
    network = _network(link, data)
    made, clock = learning(network, data, link), _Clock()
    start = _now() - began
    few = {
        "steps": STEPS,
        "eval_every": 1,
        "log_every": 1,
        "save_every": 0,
        "keep_best": False,
        "on_nan": "skip",
    }
    settings = link.training.model_copy(update={**few, "trackers": ()})
    train(made.objective, made.source, settings, learners=made.learners, evaluate=clock, quiet=True)
    return {
        "start": start + clock.warm_up,
        "step": clock.step,
        "judge": _time_judging(work, data, network, rows=link.evaluation.rows),
        "memory_gib": peak_memory(best_device()) / 2**30,
    }


def _time_judging(work: Work, data: Prepared, network: Any, *, rows: int | None) -> float:
    """Seconds of one evaluation, from one on a few rows."""
    few = min(48, len(data.held_out), rows or 48)
    settings = work.link.evaluation.model_copy(
        update={"rows": few, "ratios": work.link.evaluation.ratios[:1]}
    )
    settings = settings.model_copy(update={"pairs": (), "cloze": (), "pseudo_perplexity": 0})
    began = _now()
    evaluate(network, data, settings)
    return (_now() - began) * (rows or len(data.held_out)) / few


def _time_evaluation(work: Work, data: Prepared) -> dict[str, float]:
    link = work.link
    network = _network(link, data)
    torch.nn.Module.to(network, best_device())
    each = _time_judging(work, data, network, rows=link.evaluation.rows)
    return {"seconds": 1.0 + len(link.evaluation.ratios) * each}


def _time_task(work: Work, data: Prepared) -> dict[str, float]:
    settings = work.link.finetune
    task = load_task(of_run(work.stage.what["task"], 0))
    model, tokenizer = work.link.model, data.tokenizer
    config = (
        None
        if model.pretrained
        else model.config(tokenizer, data.training.length, kind=work.link.kind)
    )
    small = _part(task)
    began = _now()
    network = load_network(
        model.pretrained, small, tokenizer, config=config, max_length=settings.max_length, seed=0
    )
    start = _now() - began
    if isinstance(task.kind, Frozen):
        torch.nn.Module.to(network, best_device())
        texts = [text for row in small.splits["test"] for text in row.texts]
        began = _now()
        for pooling in task.poolings:
            embed(network, texts, tokenizer, max_length=settings.max_length, pooling=pooling)
        each = (_now() - began) / max(1, len(small.splits["test"]))
        return {"seconds": start + each * sum(map(len, task.splits.values()))}
    assert isinstance(task.kind, Tuned)
    tensors, clock = encode(small, tokenizer, max_length=settings.max_length), _Clock()
    how = settings.fitting(network.num_parameters()).training(task, seed=0)
    objective = task.kind.objective(network)
    few = how.model_copy(update={"steps": STEPS, "eval_every": 1, "log_every": 1})
    train(objective, TaskSource(tensors["train"], few), few, evaluate=clock, quiet=True)
    began = _now()
    answer(objective, tensors["test"])
    each = (_now() - began) / len(small.splits["test"])
    items = each * (len(task.splits["dev"]) + len(task.splits["test"]))
    once = (
        start
        + how.steps * clock.step
        + items * (1 + (how.steps // how.eval_every if how.eval_every else 0))
    )
    fine_tunings = settings.seeds + (TRIED_RATES if settings.search_rate else 0)
    return {"seconds": fine_tunings * once, "memory_gib": peak_memory(best_device()) / 2**30}


def _part(task: Task[Any]) -> Task[Any]:
    """The task with few rows; all classes stay known."""
    splits = {
        name: rows[: ITEMS * (4 if name == "train" else 1)] for name, rows in task.splits.items()
    }
    return replace(task, splits=splits)


_TIMERS = {"pretrain": _time_training, "finetune": _time_task, "evaluate": _time_evaluation}
