"""How long the stages of a study take here, before any of them has run: a few real steps of each kind are timed.

What is timed once is kept in the cache folder (``timings.json``), by everything that the time depends on: machine,
torch, model, rows, objective, optimiser, task. ``maskwise check`` times what is not known yet, on a sample of the text;
``--dry-run`` reads what is there. Delete the file to time anew, for instance where the machine was busy.

Cost: some seconds for each kind of training and each task; ``SECONDS`` in all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.evaluation import evaluate
from maskwise.folders import read_json, write_json
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
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
from maskwise.training.engine import best_device, fast_bf16
from maskwise.training.speed import cache_folder, cpu_name, peak_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECONDS = 25.0
"""After so long nothing more is timed; what is left is unknown."""
STEPS, STEP_SECONDS = 12, 6.0
"""Steps of a training that are timed, or as many as fit into so many seconds (at least 2)."""
ITEMS = 48
"""Rows of a task that are answered."""
START_SECONDS = 8.0
"""What a study takes beside its stages: workers that import torch."""


@dataclass(frozen=True)
class Work:
    """A stage, with the recipe of its training and what its time depends on.

    Attributes:
        link: the recipe of the training; of a fine-tuning, that of the checkpoint's last training.
    """

    stage: Stage
    link: Recipe

    @property
    def key(self) -> str:
        """A hash of all that the time depends on."""
        link, what = self.link, self.stage.what
        model = [link.model.model_dump(mode="json"), link.tokenizer.model_dump(mode="json")]
        rows = [link.corpus.length, link.corpus.row_layout]
        how = link.training.model_dump(
            include={"batch_size", "accumulate", "optimizer", "precision", "freeze", "group_by_length"}
        )
        objectives = [
            link.objective,
            {name: arm.objective for name, arm in link.objectives.items()},
            link.sampler,
        ]
        parts: dict[str, object] = {
            "prepare": what, "overlap": what, "learn": what,
            "pretrain": [model, rows, how, objectives, link.evaluation.rows],
            "evaluate": [model, rows, what.get("evaluation")],
            "finetune": [model, what.get("task_content"), what.get("finetune")],
        }  # fmt: skip
        text = json.dumps([self.stage.kind, _machine(), parts[self.stage.kind]], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def works_of(recipe: Recipe, runs: Iterable[Run]) -> dict[str, Work]:
    """The stages of runs by name, each with the recipe of its training."""
    works: dict[str, Work] = {}
    for run in runs:
        own = (recipe.baseline or run.arm) if run.arm == REFERENCE else run.arm
        links = recipe.arm(own, seed=run.seed, more=run.setting).links()
        for stage, link in zip(run.trainings, links):
            works[stage.name] = Work(stage, link)
        for stage in run.stages:
            works.setdefault(stage.name, Work(stage, links[-1]))
    return works


class Timings:
    """What is known of the time of stages, from the cache."""

    def __init__(self) -> None:
        self.file = cache_folder() / "timings.json"
        self.known: dict[str, dict[str, float]] = {
            key: entry for key, entry in (read_json(self.file) or {}).items() if isinstance(entry, dict)
        }

    def seconds(self, work: Work) -> float | None:
        """Seconds of work that a stage will take; None where nothing like it was timed."""
        entry = self.known.get(work.key)
        if entry is None:
            return None
        if work.stage.kind != "pretrain":
            return entry["seconds"]
        how = work.stage.what["training"]
        every = work.stage.how.get("eval_every") or 0
        judged = 1 + (how["steps"] // every if every else 0)
        return entry["start"] + how["steps"] * entry["step"] + judged * entry["judge"]

    def memory_gib(self, works: Iterable[Work]) -> float | None:
        """The most memory that a process took in what was timed."""
        known = [self.known[work.key].get("memory_gib", 0.0) for work in works if work.key in self.known]
        return max(known, default=0.0) or None

    def keep(self, key: str, entry: Mapping[str, float]) -> None:
        """Write what was timed, beside what others wrote meanwhile."""
        self.known[key] = dict(entry)
        with suppress(MaskwiseError):  # a home that cannot be written is no reason to stop
            write_json(self.file, {**(read_json(self.file) or {}), key: dict(entry)})


def time_stages(
    works: Sequence[Work], data: Prepared, timings: Timings, *, characters: int, prepared: float,
    seconds: float = SECONDS,
) -> None:  # fmt: skip
    """Time what is not known yet of some stages, the trainings first.

    Args:
        data: a sample of the text, prepared.
        characters: of the whole text.
        prepared: seconds that preparing took, for each character of the sample.
        seconds: after so many nothing more is timed.
    """
    end = time.perf_counter() + seconds
    kinds = ("pretrain", "finetune", "evaluate", "prepare", "overlap")
    todo: dict[str, Work] = {}
    for work in sorted((w for w in works if w.stage.kind in kinds), key=lambda w: kinds.index(w.stage.kind)):
        if work.key not in timings.known:
            todo.setdefault(work.key, work)
    for key, work in todo.items():
        if work.stage.kind in ("prepare", "overlap"):
            share = prepared if work.stage.kind == "prepare" else prepared / 2  # words are counted, not tokenised
            timings.keep(key, {"seconds": characters * share})
        elif time.perf_counter() < end:
            with _one_thread():
                timings.keep(key, _TIMERS[work.stage.kind](work, data))


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
    """Seconds of this process: other work on the machine does not count, but an accelerator is waited for."""
    return time.process_time() if best_device().type == "cpu" else time.perf_counter()


class _Clock:
    """Called after every step; says ``enough`` when enough of them were timed."""

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


def _network(link: Recipe, data: Prepared) -> PreTrainedModel:
    """The model of a training, as it begins."""
    unigram = torch.zeros(len(data.tokenizer))
    return link.model.model(
        data.tokenizer, data.training.length, kind=link.kind, seed=link.training.seed, log_unigram=unigram
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
        "start": start, "step": clock.step, "judge": _time_judging(work, data, network, rows=link.evaluation.rows),
        "memory_gib": peak_memory(best_device()) / 2**30,
    }  # fmt: skip


def _time_judging(work: Work, data: Prepared, network: Any, *, rows: int | None) -> float:
    """Seconds of one evaluation, from one on a few rows."""
    few = min(48, len(data.held_out), rows or 48)
    settings = work.link.evaluation.model_copy(update={"rows": few, "ratios": work.link.evaluation.ratios[:1]})
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
    config = None if model.pretrained else model.config(tokenizer, data.training.length, kind=work.link.kind)
    small = _part(task)
    began = _now()
    network = load_network(model.pretrained, small, tokenizer, config=config, max_length=settings.max_length, seed=0)
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
    once = start + how.steps * clock.step + items * (1 + (how.steps // how.eval_every if how.eval_every else 0))
    return {"seconds": settings.seeds * once, "memory_gib": peak_memory(best_device()) / 2**30}


def _part(task: Task[Any]) -> Task[Any]:
    """The task with few rows; all classes stay known."""
    splits = {name: rows[: ITEMS * (4 if name == "train" else 1)] for name, rows in task.splits.items()}
    return replace(task, splits=splits)


_TIMERS = {"pretrain": _time_training, "finetune": _time_task, "evaluate": _time_evaluation}


def _machine() -> Plain:
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "torch": torch.__version__, "bf16": fast_bf16()}
