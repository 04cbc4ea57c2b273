"""Forecast how long stages take, from finished stages or from steps timed on this machine.

``dry_run`` lists what a study would do. ``timing`` times steps and stores the seconds in the cache
folder (``timings.json``); delete that file to time again, for example if the machine was busy.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TypeAlias

import torch

from maskwise.constants import jobs_here
from maskwise.devices import best_device, cache_folder, cpu_name, fast_bf16
from maskwise.errors import MaskwiseError
from maskwise.folders import read_json, write_json
from maskwise.objectives import objective_class
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import check_study, shared_folder
from maskwise.study.design import Design
from maskwise.study.plan import Plan, stages_of
from maskwise.study.stages import STAGE, Stage, digest, named
from maskwise.training import TrainingSettings

CHANGE_NO_TIME = TrainingSettings.that_change("nothing") - {"workers"} | {
    *("steps", "seed", "learning_rate", "muon_learning_rate", "betas", "weight_decay"),
    *("warmup", "decay", "decay_share", "clip"),
}
"""Training settings that do not change the time of a step. All others are part of the key, so a
setting added later makes a time unknown rather than wrong."""

START_SECONDS = 8.0
"""Seconds until the workers of a study have imported torch."""

ROWS = ("length", "layout", "attention", "stream")
"""Corpus settings that decide how long a row is and how it is read."""

Size: TypeAlias = tuple[int, int]
"""The number of steps and of evaluations."""

Seconds: TypeAlias = dict[str, float | None]
"""The seconds of stages, keyed by name, in the order in which they are done; None if unknown."""

DEPENDS = {
    "pretrain": ("objective", "objectives", "sampler"),
    "learn": ("learning", "objective", "task_content", "max_length"),
    "evaluate": ("evaluation", "content"),
    "finetune": ("task_content", "finetune"),
}
"""For each kind of stage, what its time depends on besides model, tokenizer, rows and training."""


class Forecast:
    """Forecasts the seconds of stages.

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
        named: stages keyed by name, including all stages that they need.
    """

    def __init__(self, named: Mapping[str, Stage]):
        self.named = named
        self.key = cache(self._key)
        # Seconds of finished stages for each key and size.
        self.done: dict[tuple[str, Size], list[float]] = defaultdict(list)
        self.file = cache_folder() / "timings.json"
        self.timed: dict[str, dict[str, float]] = read_json(self.file) or {}

    def add(self, name: str, seconds: float) -> None:
        """Record the seconds of a finished stage."""
        self.done[self.key(name), _size(self.named[name])].append(seconds)

    def seconds(self, name: str) -> float | None:
        """Forecast the seconds of a stage; None if no similar stage is known.

        Finished stages of the same size come first, and then timed steps.
        """
        key = self.key(name)
        if not key:
            return None
        size = _size(self.named[name])
        # Nothing is scaled, so this forecast is the most reliable.
        if (key, size) in self.done:
            return median(self.done[key, size])
        if key in self.timed:
            entry = self.timed[key]
            steps, evaluations = size
            once = entry.get("seconds", entry.get("start", 0.0))
            return once + steps * entry.get("step", 0.0) + evaluations * entry.get("judge", 0.0)
        return None

    def keep(self, name: str, entry: dict[str, float]) -> None:
        """Store timed seconds in the cache file.

        Args:
            entry: the ``seconds`` of a whole stage; for a training stage, the seconds of its
                ``start``, of a ``step`` and of an evaluation (``judge``); optionally
                ``memory_gib``.
        """
        key = self.key(name)
        if not key:
            return
        self.timed[key] = entry
        # Another process may have written to the file, so it is read again before each write.
        entries = read_json(self.file) or {}
        entries[key] = entry
        # The forecast also works without its cache, for example in a read-only home.
        with suppress(MaskwiseError):
            write_json(self.file, entries)

    def memory_gib(self) -> float | None:
        """Return the peak memory of a process over the timed stages; None if it is unknown."""
        peak = 0.0
        for name in self.named:
            entry = self.timed.get(self.key(name), {})
            peak = max(peak, entry.get("memory_gib", 0.0))
        return peak or None

    def _key(self, name: str) -> str:
        """Hash everything that the time of a stage, or of a training step, depends on.

        Return "" if a stage that this stage needs is not known.
        """
        stage = self.named[name]
        try:
            return digest([stage.kind, _machine(), self._parts(stage)])
        except KeyError:
            return ""

    def _parts(self, stage: Stage) -> list[object]:
        what = stage.what
        if stage.kind not in DEPENDS:
            return [what]
        # Only the first training stage of a chain names the model, and only its first text names
        # the tokenizer.
        start = stage
        while "model" not in start.what and len(start.needs) > 1:
            start = self.named[start.needs[1]]
        text = self.named[stage.needs[0]]
        first = text
        while "tokenizer" not in first.what and first.needs:
            first = self.named[first.needs[0]]
        kind = start.what.get("kind")
        if kind is None:
            kind = objective_class(start.what.get("objective", "mlm")).kind
        settings = what.get("training", {})
        training = {name: settings[name] for name in settings.keys() - CHANGE_NO_TIME}
        parts: list[object] = [
            [kind, start.what.get("model"), start.what.get("model_content")],
            [first.what.get("tokenizer"), first.what.get("tokenizer_content")],
            [what.get(name) for name in DEPENDS[stage.kind]],
            training,
        ]
        # Fine-tuning reads the rows of its task, whatever the rows of the corpus are.
        if stage.kind != "finetune":
            corpus = text.what.get("corpus", {})
            parts.append([corpus.get(name) for name in ROWS])
        if stage.kind == "learn":
            parts.append(settings.get("steps"))
        if stage.kind == "pretrain":
            parts.append([stage.how.get("evaluation", {}).get("rows"), stage.how.get("workers")])
        return parts


def _size(stage: Stage) -> Size:
    """Return (steps, evaluations) of a training stage; any other stage counts as one step."""
    if stage.kind != "pretrain":
        return 1, 0
    steps = stage.what["training"]["steps"]
    every = stage.how.get("eval_every")
    if not every:
        return steps, 1
    return steps, 1 + steps // every


@cache
def _machine() -> Plain:
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "torch": torch.__version__, "bf16": fast_bf16()}


def total(seconds: Collection[float | None]) -> float | None:
    """Add up seconds of work; None if some of the times are unknown."""
    work: float = 0
    for part in seconds:
        if part is None:
            return None
        work += part
    return round(work, 1)


def _summary(planned: Mapping[str, Stage], seconds: Seconds, jobs: int) -> Plain:
    """Sum up the work that is left.

    Args:
        planned: all stages, keyed by name.
        seconds: the forecast for every stage that is not done.
        jobs: the number of stages that run in parallel.

    Returns:
        ``stages``: for each kind ``done``, ``to_do`` and ``seconds`` of work. ``unknown``: the
        kinds whose time is unknown. ``seconds``: the time until the end (``until_end``), None if
        the time of a kind is unknown.
    """
    kinds: dict[str, Plain] = {}
    for name, stage in planned.items():
        kind = kinds.setdefault(stage.kind, {"done": 0, "to_do": 0, "seconds": []})
        if name in seconds:
            kind["to_do"] += 1
            kind["seconds"].append(seconds[name])
        else:
            kind["done"] += 1
    for kind in kinds.values():
        kind["seconds"] = total(kind["seconds"])
    unknown = [name for name, kind in kinds.items() if kind["seconds"] is None]
    until = None
    if not unknown:
        until = round(START_SECONDS + until_end(planned, seconds, jobs), 1)
    if not seconds:
        until = 0.0
    return {"stages": kinds, "unknown": unknown, "seconds": until}


def until_end(planned: Mapping[str, Stage], seconds: Seconds, jobs: int) -> float:
    """Simulate the scheduler: a free worker takes the first stage whose needs are done.

    Args:
        planned: stages keyed by name.
        seconds: the seconds of every stage that is left; unknown times count as 0.
        jobs: the number of workers.
    """
    waiting = list(seconds)
    unfinished = set(seconds)
    running: list[tuple[float, str]] = []
    now = 0.0
    while unfinished:
        for name in list(waiting):
            if len(running) == jobs:
                break
            if unfinished.isdisjoint(planned[name].needs):
                heappush(running, (now + (seconds[name] or 0.0), name))
                waiting.remove(name)
        now, ended = heappop(running)
        unfinished.remove(ended)
    return now


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
    probe: Callable[[list[Plan], Forecast], None] | None = None,
) -> Plain:
    """List what ``run_study`` with the same arguments would do; nothing is written or trained.

    Searching and matching have not happened yet: runs after a search are counted at the first
    point of the grid, and matched runs with their steps as written.

    Args:
        probe: a function that times the stages which the forecast does not know
            (``timing.probe_of``).

    Returns:
        ``plans``: the purpose, runs and stages to do of each plan. ``phases``: the training phases
        of a run in order, with the arms that share them and their costs (``_phases``).
        ``stages``: for each kind ``done``, ``to_do`` and ``seconds`` of work (None if no similar
        stage was timed). ``seconds``: the time until the end with ``jobs`` stages at once, None if
        unknown. ``memory_gib``: the memory of one process, None if unknown. ``unknown``: the kinds
        without a time. ``contrasts``: what each contrast can decide (``prospects``). ``doubts``:
        warnings about the recipe and its files. ``notes``: these warnings, and what is not known
        yet.

    Raises:
        MaskwiseError: bad input, the same as in ``run_study``.
    """
    # Imported here because workers import this module, and importing scipy takes a second.
    from maskwise.study.statistics import prospects_of

    block, notes = check_study(recipe, out, engine=engine, seeds=seeds)
    jobs = jobs or jobs_here()
    with _view(out / "stages", shared_folder(recipe, cache)) as stages:
        design = Design(recipe, stages, seeds=block, forecast=True)
        plans = list(design.plans())
        planned = stages_of(plans)
        known = named(stages_in(stages))
        # Stages of other recipes in these folders may be similar, so they give times, too.
        forecast = Forecast(known | planned)
        results = {name: stage.result(stages) for name, stage in forecast.named.items()}
    for name, result in results.items():
        if result:
            forecast.add(name, result["seconds"])
    todo = [name for name in planned if not results[name]]
    if probe and None in map(forecast.seconds, todo):
        probe(plans, forecast)
    left = {name: forecast.seconds(name) for name in todo}
    listed = []
    new = set(left)
    # A stage that several plans share is done by the first of them.
    for plan in plans:
        own = new.intersection(named(plan.stages()))
        listed.append({"purpose": plan.purpose, "runs": len(plan.runs), "to_do": len(own)})
        new -= own
    return {
        "name": recipe.name,
        "out": str(out),
        "jobs": jobs,
        "plans": listed,
        "phases": list(_phases(design, left)),
        **_summary(planned, left, jobs),
        "memory_gib": forecast.memory_gib(),
        "contrasts": prospects_of(recipe),
        "doubts": notes,
        "notes": notes + list(_notes(recipe, design)),
    }


def _phases(design: Design, seconds: Seconds) -> Iterator[Plain]:
    """List the training phases of the full-length runs.

    Each entry has its ``phase`` (from 0) and ``arms``; for one run the ``steps``, ``batch_size``,
    ``length`` and ``tokens`` (at most); the number of ``runs``, how many of them are ``to_do``, and
    their ``seconds`` of work (None if no similar stage was timed).
    """
    arms: dict[tuple[int, Stage], dict[str, Recipe]] = defaultdict(dict)
    for run in design.runs:
        if run.compared:
            for phase, stage in enumerate(run.trainings):
                # Runs of all seeds may share a training stage.
                arms[phase, stage][run.arm] = run.recipe
    # Training stages of different seeds that the same arms share form one row of the table.
    lines = defaultdict(list)
    for (phase, stage), recipes in arms.items():
        lines[phase, tuple(recipes)].append(stage)
    for phase, names in sorted(lines, key=lambda line: line[0]):
        stages = lines[phase, names]
        link = arms[phase, stages[0]][names[0]].links()[phase]
        training = link.training
        left = [seconds[stage.name] for stage in stages if stage.name in seconds]
        yield {
            "phase": phase,
            "arms": list(names),
            "steps": training.steps,
            "batch_size": training.batch_size,
            "length": link.corpus.length,
            "tokens": training.steps * training.batch_size * link.corpus.length,
            "runs": len(stages),
            "to_do": len(left),
            "seconds": total(left),
        }


@contextmanager
def _view(own: Path, shared: Path | None) -> Iterator[Path]:
    """Link the stages of a study and the shared stages into a temporary folder."""
    folders = [own]
    if shared:
        folders.append(shared)
    with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
        for stage in chain.from_iterable(folder.glob("*-*/") for folder in folders):
            link = Path(name) / stage.name
            # If two stages have the same name, the study's own is used, as in ``link_shared``.
            if not link.is_symlink():
                link.symlink_to(stage.resolve(), target_is_directory=True)
        yield Path(name)


def stages_in(folder: Path) -> Iterator[Stage]:
    """Read the stages in a folder."""
    for path in folder.iterdir():
        # A file that is damaged, or was written by a different version, is skipped.
        with suppress(KeyError, TypeError):
            yield Stage.from_dict(read_json(path / STAGE) or {})


def _notes(recipe: Recipe, design: Design) -> Iterator[str]:
    """State what is not known before the study runs."""
    undone = [choice["chosen"] for choice in design.choices].count(None)
    if undone:
        yield (
            f"{undone} of {len(design.choices)} searches (one for each arm and seed) "
            "are not done, so the settings of the runs after them are not known yet"
        )
    if any(run.prepared.what["corpus"].get("stream") for run in design.runs):
        yield (
            "the text is a stream: it is not counted in advance, and only its beginning is prepared"
        )
    by = recipe.study.match
    if by != "steps" and design.budget is None:
        yield (
            f"steps will be matched by {by} once the texts are prepared; "
            "until then they are counted as written"
        )
