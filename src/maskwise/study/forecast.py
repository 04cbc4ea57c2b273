"""How long stages take: from whole stages that are done, or from a few steps that were timed on
this machine.

What the time of a stage depends on is said in one place, ``Forecast.key``. The table of a running
study, a dry run and ``maskwise check`` all ask the same ``Forecast``. What ``timing`` measures is
kept in the cache folder (``timings.json``); delete the file to time again, for instance where the
machine was busy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from statistics import median

import torch

from maskwise.errors import MaskwiseError
from maskwise.folders import read_json, write_json
from maskwise.objectives import objective_class
from maskwise.recipe.overrides import Plain
from maskwise.study.stages import Stage
from maskwise.training.engine import best_device, fast_bf16
from maskwise.training.speed import cache_folder, cpu_name

CHANGE_NO_TIME = frozenset(
    (
        "steps",
        "seed",
        "learning_rate",
        "muon_learning_rate",
        "betas",
        "weight_decay",
        "warmup",
        "decay",
        "decay_share",
        "clip",
        "log_every",
        "eval_every",
        "save_every",
        "keep",
        "keep_best",
        "on_nan",
        "trackers",
    )
)
"""Settings of a training that leave the time of a step as it is. Every other one is part of the
key, so that a setting which is new here makes a time unknown rather than wrong."""

ROWS = ("length", "layout", "attention", "stream")
"""Settings of a corpus that decide what a row is, and how it is read."""

DEPENDS = {
    "pretrain": ("objective", "objectives", "sampler"),
    "learn": ("learning", "objective", "task_content", "max_length"),
    "evaluate": ("evaluation", "content"),
    "finetune": ("task_content", "finetune"),
}
"""What the time of a stage depends on beside its model, tokenizer, rows and training."""


class Forecast:
    """How long stages take.

    >>> from maskwise.recipe import read_recipe
    >>> from maskwise.study.plan import make_plan
    >>> plan = make_plan(read_recipe("quick-start", ["study.seeds=2"]))
    >>> named = {stage.name: stage for stage in plan.stages()}
    >>> first, second = [name for name in named if name.startswith("pretrain")][:2]
    >>> forecast = Forecast(named)
    >>> forecast.add(first, 5.0)
    >>> forecast.seconds(second)
    5.0

    Args:
        named: by name, all stages that will be asked for, and what they need.
    """

    def __init__(self, named: Mapping[str, Stage]):
        self.named = named
        self.keys: dict[str, str | None] = {}
        self.done: dict[str, list[tuple[tuple[int, int], float]]] = {}
        self.file = cache_folder() / "timings.json"
        cached = (read_json(self.file) or {}).items()
        self.timed: dict[str, Mapping[str, float]] = {
            key: entry for key, entry in cached if isinstance(entry, dict)
        }

    def add(self, name: str, seconds: float) -> None:
        """Learn from a whole stage that took so many seconds."""
        key = self.key(name)
        if key is not None:
            self.done.setdefault(key, []).append((_size(self.named[name]), seconds))

    def seconds(self, name: str) -> float | None:
        """Seconds that a stage will take; None where nothing like it is known.

        Whole stages of the same size count first, then steps that were timed, then whole stages of
        another size.
        """
        key = self.key(name) or ""
        size = _size(self.named[name])
        done = self.done.get(key, [])
        alike = [seconds for other, seconds in done if other == size]
        if alike:
            return median(alike)
        steps, evaluations = size
        entry = self.timed.get(key)
        if entry is not None:
            once = entry.get("seconds", entry.get("start", 0.0))
            return once + steps * entry.get("step", 0.0) + evaluations * entry.get("judge", 0.0)
        rates = [seconds / other[0] for other, seconds in done]
        return median(rates) * steps if rates else None

    def keep(self, name: str, entry: Mapping[str, float]) -> None:
        """Keep what was timed, beside what others wrote meanwhile.

        Args:
            entry: ``seconds`` of a whole stage; of a training, those of its ``start``, of a
                ``step`` and of an evaluation (``judge``); and perhaps ``memory_gib``.
        """
        key = self.key(name)
        if key is None:
            return
        self.timed[key] = entry
        with suppress(MaskwiseError):  # a home that cannot be written is no reason to stop
            write_json(self.file, {**(read_json(self.file) or {}), key: dict(entry)})

    def memory_gib(self) -> float | None:
        """The most memory that a process took in what was timed of these stages."""
        entries = [self.timed.get(self.key(name) or "", {}) for name in self.named]
        return max((entry.get("memory_gib", 0.0) for entry in entries), default=0.0) or None

    def key(self, name: str) -> str | None:
        """A hash of all that the time of a stage, or of one step of a training, depends on.

        None where a stage that it needs is not known, so that its model or rows are not.
        """
        if name not in self.keys:
            self.keys[name] = self._hash(self.named[name])
        return self.keys[name]

    def _hash(self, stage: Stage) -> str | None:
        try:
            parts = [stage.kind, _machine(), self._parts(stage)]
        except KeyError:
            return None
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _parts(self, stage: Stage) -> list[object]:
        what = stage.what
        if stage.kind not in DEPENDS:
            return [what]
        start = stage  # the first training of the chain names the model
        while "model" not in start.what and len(start.needs) > 1:
            start = self.named[start.needs[1]]
        text = self.named[stage.needs[0]]
        first = text  # the first text names the tokenizer
        while "tokenizer" not in first.what and first.needs:
            first = self.named[first.needs[0]]
        kind = start.what.get("kind") or objective_class(start.what.get("objective", "mlm")).kind
        model = [kind, start.what.get("model"), start.what.get("model_content")]
        tokenizer = [first.what.get("tokenizer"), first.what.get("tokenizer_content")]
        parts = [model, tokenizer, *(what.get(name) for name in DEPENDS[stage.kind])]
        if stage.kind != "finetune":  # which has rows of its task
            corpus = text.what.get("corpus", {})
            parts.append([corpus.get(name) for name in ROWS])
        training = what.get("training", {})
        parts.append(
            {name: value for name, value in training.items() if name not in CHANGE_NO_TIME}
        )
        if stage.kind == "learn":
            parts.append(training.get("steps"))
        if stage.kind == "pretrain":
            judged = stage.how.get("evaluation", {})
            parts.append([judged.get("rows"), stage.how.get("workers")])
        return parts


def _size(stage: Stage) -> tuple[int, int]:
    """(steps, evaluations) of a training; every other stage counts as one step."""
    if stage.kind != "pretrain":
        return 1, 0
    steps = stage.what["training"]["steps"]
    every = stage.how.get("eval_every") or steps + 1
    return steps, 1 + steps // every


@cache
def _machine() -> Plain:
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "torch": torch.__version__, "bf16": fast_bf16()}


def wall(to_do: Mapping[str, Stage], seconds: Mapping[str, float | None], jobs: int) -> float:
    """Seconds at best: all jobs are busy all the time, but never less than the longest chain of
    stages.

    Args:
        to_do: stages by name, those that others need first.
        seconds: of each; None counts as nothing.
    """
    ends: dict[str, float] = {}
    for name, stage in to_do.items():
        before = [ends.get(need, 0.0) for need in stage.needs]
        ends[name] = (seconds[name] or 0.0) + max(before, default=0.0)
    work = sum(each or 0.0 for each in seconds.values())
    return round(max([work / jobs, *ends.values()]), 1)
