"""How long stages take: from whole stages that are done, or from a few steps that were timed on
this machine. ``dry_run`` tells from them what a study would do.

``Forecast.key`` holds everything that the time of a stage depends on. What ``timing`` measures is
kept in the cache folder (``timings.json``); delete the file to time again, for instance where the
machine was busy.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from statistics import median

import torch

from maskwise.errors import MaskwiseError
from maskwise.folders import read_json, write_json
from maskwise.models import empty_model
from maskwise.objectives import objective_class
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import check_study, shared_folder, start_of
from maskwise.study.costs import expected
from maskwise.study.design import Design
from maskwise.study.plan import stages_of
from maskwise.study.stages import STAGE, Stage
from maskwise.training import TrainingSettings
from maskwise.training.engine import best_device, fast_bf16
from maskwise.training.speed import cache_folder, cpu_name

CHANGE_NO_TIME = TrainingSettings.that_change("nothing") - {"workers"} | {
    *("steps", "seed", "learning_rate", "muon_learning_rate", "betas", "weight_decay"),
    *("warmup", "decay", "decay_share", "clip"),
}
"""Settings of a training that leave the time of a step as it is. Every other one is part of the
key, so that a new setting makes a time unknown rather than wrong."""

ROWS = ("length", "layout", "attention", "stream")
"""Settings of a corpus that decide what a row is, and how it is read."""

DEPENDS = {
    "pretrain": ("objective", "objectives", "sampler"),
    "learn": ("learning", "objective", "task_content", "max_length"),
    "evaluate": ("evaluation", "content"),
    "finetune": ("task_content", "finetune"),
}
"""What the time of a stage depends on besides its model, tokenizer, rows and training."""


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
        named: by name, all stages that will be asked for, and the stages that they need.
    """

    def __init__(self, named: Mapping[str, Stage]):
        self.named = named
        self.key = cache(self._key)
        self.done: dict[str | None, list[tuple[tuple[int, int], float]]] = {}
        self.paces: dict[str | None, float] = {}
        self.file = cache_folder() / "timings.json"
        cached = (read_json(self.file) or {}).items()
        self.timed: dict[str | None, Mapping[str, float]] = {
            key: entry for key, entry in cached if isinstance(entry, dict)
        }

    def add(self, name: str, seconds: float) -> None:
        """Learn from a whole stage."""
        self.done.setdefault(self.key(name), []).append((_size(self.named[name]), seconds))

    def running(self, name: str, step_seconds: float) -> None:
        """Learn from a training that still runs."""
        self.paces.setdefault(self.key(name), step_seconds)

    def seconds(self, name: str) -> float | None:
        """Seconds that a stage will take; None where nothing like it is known.

        Whole stages of the same size count first, then steps that were timed, then whole stages of
        another size, and at last trainings that still run.
        """
        key = self.key(name)
        if key is None:
            return None
        steps, evaluations = size = _size(self.named[name])
        done = self.done.get(key, [])
        alike = [seconds for other, seconds in done if other == size]
        # Nothing is scaled, so this is the safest answer.
        if alike:
            return median(alike)
        if key in self.timed:
            entry = self.timed[key]
            once = entry.get("seconds", entry.get("start", 0.0))
            return once + steps * entry.get("step", 0.0) + evaluations * entry.get("judge", 0.0)
        # Start-up and evaluations do not scale with the steps: an answer of last resort.
        if done:
            return steps * median(seconds / other for (other, _), seconds in done)
        return steps * self.paces[key] if key in self.paces else None

    def keep(self, name: str, entry: Mapping[str, float]) -> None:
        """Keep what was timed, next to what other processes wrote meanwhile.

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
        entries = [self.timed.get(self.key(name), {}) for name in self.named]
        return max((entry.get("memory_gib", 0.0) for entry in entries), default=0.0) or None

    def summary(
        self, planned: Mapping[str, Stage], to_do: Iterable[str], jobs: int
    ) -> tuple[dict[str, Plain], list[str], float | None]:
        """Sum up what is left to do.

        Returns:
            By kind of stage ``done``, ``to_do`` and ``seconds`` of work; the kinds whose time is
            unknown; and the seconds until the end with ``jobs`` at once, at best: all jobs are
            busy, but nothing is faster than the longest chain of stages.
        """
        seconds = {name: self.seconds(name) for name in to_do}
        kinds: dict[str, Plain] = {}
        for kind in dict.fromkeys(stage.kind for stage in planned.values()):
            names = [name for name, stage in planned.items() if stage.kind == kind]
            left = [seconds[name] for name in names if name in seconds]
            done = len(names) - len(left)
            kinds[kind] = {"done": done, "to_do": len(left), "seconds": total(left)}
        unknown = [kind for kind, facts in kinds.items() if facts["seconds"] is None]
        work = total(seconds.values())
        if work is None:
            return kinds, unknown, None
        # When each stage ends if nothing but its needs holds it up.
        ends: dict[str, float] = {}
        for name in to_do:  # stages that others need come first
            before = [ends.get(need, 0.0) for need in planned[name].needs]
            ends[name] = (seconds[name] or 0.0) + max(before, default=0.0)
        return kinds, unknown, round(max([work / jobs, *ends.values()]), 1)

    def _key(self, name: str) -> str | None:
        """A hash of all that the time of a stage, or of one step of a training, depends on.

        None where a stage that it needs is not known.
        """
        stage = self.named[name]
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
        text = first = self.named[stage.needs[0]]
        while "tokenizer" not in first.what and first.needs:  # the first text names the tokenizer
            first = self.named[first.needs[0]]
        kind = start.what.get("kind") or objective_class(start.what.get("objective", "mlm")).kind
        training = dict(what.get("training", {}))
        steps = training.get("steps")
        # Every other setting may change the time of a step, also one that is new here.
        for setting in CHANGE_NO_TIME:
            training.pop(setting, None)
        parts: list[object] = [
            [kind, start.what.get("model"), start.what.get("model_content")],
            [first.what.get("tokenizer"), first.what.get("tokenizer_content")],
            [what.get(name) for name in DEPENDS[stage.kind]],
            training,
        ]
        if stage.kind != "finetune":  # which has rows of its task
            corpus = text.what.get("corpus", {})
            parts.append([corpus.get(name) for name in ROWS])
        if stage.kind == "learn":
            parts.append(steps)
        if stage.kind == "pretrain":
            evaluation = stage.how.get("evaluation", {})
            parts.append([evaluation.get("rows"), stage.how.get("workers")])
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


def total(seconds: Iterable[float | None]) -> float | None:
    """Their sum; None where one of them is None."""
    work = 0.0
    for each in seconds:
        if each is None:
            return None
        work += each
    return round(work, 1)


# A dry run
# ---------------------------------------------------------------------------------------------


def dry_run(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    engine: str = "local",
    cache: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> Plain:
    """What ``run_study`` with the same arguments would do; nothing is written or trained.

    Decisions of a search or a matching are not known yet: runs that follow a search are counted at
    the first point of the grid, and matched runs at the steps as written.

    Returns:
        ``plans``: of each, its purpose, runs, and stages to do. ``phases``: the trainings of a run
        in order, with the arms that share them, and what each costs (``_phases``). ``stages``: by
        kind ``done``, ``to_do`` and ``seconds`` (of work, None where no like stage was timed).
        ``seconds``: until the end with ``jobs`` at once, None if not known. ``unknown``: kinds
        without a time. ``contrasts``: what each can tell (``prospects``). ``notes``: what may still
        change.

    Raises:
        MaskwiseError: bad input, as ``run_study`` itself raises it.
    """
    # Imported here because workers import this module and need no scipy.
    from maskwise.study.prospects import prospects_of

    block, notes = check_study(recipe, out, engine=engine, seeds=seeds)
    jobs = jobs or os.cpu_count() or 1
    with _view(out / "stages", shared_folder(recipe, cache)) as stages:
        design = Design(recipe, stages, seeds=block, forecast=True)
        plans = list(design.plans())
        planned = stages_of(plans)
        known = {stage.name: stage for stage in stages_in(stages)}
        # Stages of other recipes are known, too: what is like one of them has a time.
        forecast = Forecast(known | planned)
        results = {name: stage.result(stages) for name, stage in forecast.named.items()}
    for name, result in results.items():
        if result:
            forecast.add(name, result["seconds"])
    to_do = [name for name in planned if not results[name]]
    kinds, unknown, seconds = forecast.summary(planned, to_do, jobs)
    listed = []
    new = set(to_do)
    for plan in plans:
        stages_of_plan = {stage.name for stage in plan.stages()}
        count = len(new & stages_of_plan)
        listed.append({"purpose": plan.purpose, "runs": len(plan.runs), "to_do": count})
        new -= stages_of_plan
    return {
        "name": recipe.name,
        "out": str(out),
        "jobs": jobs,
        "plans": listed,
        "phases": list(_phases(design, {name: forecast.seconds(name) for name in to_do})),
        "stages": kinds,
        "seconds": seconds,
        "unknown": unknown,
        "contrasts": prospects_of(recipe, out),
        "notes": notes + list(_notes(recipe, design)),
    }


def _phases(design: Design, seconds: Mapping[str, float | None]) -> Iterator[Plain]:
    """Every training of the whole runs.

    Its ``phase`` (from 0) and ``arms``; then for one run its ``steps``, ``batch_size``, ``length``,
    ``tokens`` at most and ``flops``; at last its ``runs``, how many of them are ``to_do``, and
    their ``seconds`` of work (None where no like stage was timed).
    """
    arms: dict[tuple[int, Stage], list[str]] = {}
    recipes: dict[Stage, Recipe] = {}
    for run in design.runs:
        for phase, stage in enumerate(run.trainings if run.compared else ()):
            arms.setdefault((phase, stage), []).append(run.arm)
            recipes[stage] = run.recipe
    # Trainings of different seeds that the same arms share are one line of the table.
    alike: dict[tuple[int, tuple[str, ...]], list[Stage]] = {}
    for (phase, stage), names in arms.items():
        alike.setdefault((phase, tuple(names)), []).append(stage)
    for (phase, arms_alike), stages in sorted(alike.items(), key=lambda entry: entry[0][0]):
        recipe = recipes[stages[0]]
        how = stages[0].what["training"]
        link = recipe.links()[phase]
        matched = link.training.model_copy(update={"steps": how["steps"]})
        link = link.model_copy(update={"training": matched})
        left = [seconds[stage.name] for stage in stages if stage.name in seconds]
        yield {
            "phase": phase,
            "arms": list(arms_alike),
            "steps": how["steps"],
            "batch_size": how["batch_size"],
            "length": link.corpus.length,
            **expected(link, empty_model(start_of(recipe)[1])),
            "runs": len(stages),
            "to_do": len(left),
            "seconds": total(left),
        }


@contextmanager
def _view(own: Path, shared: Path | None) -> Iterator[Path]:
    """A temporary folder that shows the stages of both."""
    with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
        # The study's own stages win, as in ``link_shared``.
        for source in (shared, own):
            for stage in source.glob("*-*/") if source else ():
                link = Path(name) / stage.name
                link.unlink(missing_ok=True)
                link.symlink_to(stage.resolve(), target_is_directory=True)
        yield Path(name)


def stages_in(folder: Path) -> Iterator[Stage]:
    """The stages in a folder whose files can be read."""
    for path in folder.iterdir():
        # Damaged, or written by another version.
        with suppress(KeyError, TypeError):
            yield Stage.from_dict(read_json(path / STAGE) or {})


def _notes(recipe: Recipe, design: Design) -> Iterator[str]:
    """What is not known before the study runs."""
    undone = sum(choice["chosen"] is None for choice in design.choices)
    if undone:
        yield (
            f"{undone} of {len(design.choices)} searches (one for each arm and seed) "
            "are not done: the settings of the runs that follow are not known yet"
        )
    if any(run.prepared.what["corpus"].get("stream") for run in design.runs):
        yield (
            "the text is a stream: nothing of it is counted beforehand, "
            "and no more than its beginning is prepared"
        )
    by = recipe.study.match
    if by != "steps" and design.budget is None:
        yield f"steps will be matched by {by} when the texts are prepared; counted as written"
