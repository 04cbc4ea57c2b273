"""What the stages of a study cost: FLOPs, seconds and memory.

FLOPs are counted by one formula (``maskwise.models.flops``).

Seconds and memory depend on the machine, so they are measured. A ``Forecast`` uses the seconds of
finished stages, or the seconds per step of a rehearsal. The cache file ``timings.json``
stores the measured seconds. Delete it to measure again, for example if the machine was busy.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from heapq import heappop, heappush
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from maskwise import __version__
from maskwise.base.constants import cards_here, cores_here
from maskwise.base.devices import cache_folder, hardware, versions
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import LATE_SECONDS, holding, read_json, write_json
from maskwise.masking import MaskedBatch
from maskwise.models.flops import Flops
from maskwise.objectives import objective, objective_class
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.studies.plan import Run
from maskwise.studies.stages import KINDS, Stage, json_hash
from maskwise.studies.store import StageStore
from maskwise.training.data import MaskedSource
from maskwise.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED_STEPS = 32
"""To estimate the mean cost of a step, the batches of this many steps are masked and counted."""

PLATEAU_TARGETS, PLATEAU_POWER, PLATEAU_VOCABULARY = 72_000, 0.17, 1024
"""A new model first stays at the unigram loss (the loss of word frequencies); this is the plateau.
With ``PLATEAU_VOCABULARY`` tokens, a small model with the quick-start settings predicts
``PLATEAU_TARGETS`` targets until its loss is 0.3 nats lower. The number of targets grows with
vocabulary ** ``PLATEAU_POWER``. Fitted on the bundled Wikipedia with vocabularies of 512 to 2,048
tokens (benchmarks/first_contact.py plateau); accurate within a factor of 2. Not valid for
vocabularies of letters: for some protein families, more than twice as many targets were needed."""
LEAST_VOCABULARY = 256  # for smaller vocabularies, the plateau is not predicted

StageRates: TypeAlias = dict[str, float]
"""The measured seconds of a stage. A training stage has the seconds of its ``start``, of one
``step`` and of one evaluation (``judge``); other stages have the ``seconds`` of the whole stage.
Rates may also contain the peak memory in GiB (``memory_gib``)."""

WorkKey: TypeAlias = tuple[tuple[str, int], ...]
"""The work of a stage as pairs of a rate and a count, such as ("step", 600) for 600 steps."""

Seconds: TypeAlias = dict[str, float | None]
"""The seconds of stages, keyed by name, in the order in which they run; None if unknown."""

CHANGE_NO_TIME = TrainingSettings.that_change("nothing") | {
    *("steps", "seed", "learning_rate", "muon_learning_rate", "betas", "weight_decay"),
    *("warmup", "decay", "decay_share", "clip", "patience", "lengths"),
}
"""Training settings that do not change the time of a step. All other training settings are part of
the key of a stored time. A new setting thus changes the key, and the time is measured again."""

START_SECONDS = 8.0
"""Seconds until the workers of a study have imported torch."""

ROWS = ("length", "layout", "attention", "stream")
"""Corpus settings that decide how long a row is and how it is read."""
READ = ("limit", "held_out", "text_field", "text_per", "group_field", "tokens")
"""Corpus settings that decide, with the content of its files, how many rows there are."""


def over_a_run(steps: int, most: int) -> list[int]:
    """Return the indices of at most ``most`` evenly spaced steps of a run."""
    count = min(steps, most)
    return [(2 * number + 1) * steps // (2 * count) for number in range(count)]


class Counts(NamedTuple):
    """Sums over batches. A piece is a row's part of one document; a unit is masked as a whole.

    ``eligible`` is the number of tokens in units, which are the tokens that may be masked.
    """

    steps: int = 0
    tokens: int = 0
    targets: int = 0
    pieces: int = 0
    units: int = 0
    eligible: int = 0


def counts_of(steps: Iterable[Iterable[MaskedBatch]]) -> Counts:
    """Count tokens, targets, pieces and units in all batches of the given steps."""
    sums = Counter[str]()
    for batches in steps:
        sums["steps"] += 1
        for batch in batches:
            sums.update(tokens=batch.tokens, targets=batch.targets, pieces=len(batch.ratio))
            # Without a masking policy, as in next-token prediction, no units are chosen.
            if batch.choice:
                lengths = batch.choice.units.length
                sums.update(units=len(lengths), eligible=int(lengths.sum()))
    return Counts(**sums)


def counts_over(source: MaskedSource, most: int) -> Counts:
    """Count the batches of at most ``most`` steps, spread over the run as ratios may change."""
    steps = over_a_run(source.settings.steps, most)
    return counts_of(source.batches(step, rank=0, ranks=1) for step in steps)


def per_step(source: MaskedSource, spec: str, network: PreTrainedModel) -> dict[str, float]:
    """Measure the mean numbers of ``targets`` and ``flops`` of a step.

    Args:
        source: the masked batches of the training run.
        spec: the objective.
        network: the model, of which only the sizes are used.
    """
    # Only the sizes of the heads are needed. On the device "meta" they use no memory.
    with torch.device("meta"):
        one = objective(spec, network)
    work = Flops(one, frozen=source.settings.freeze == "encoder")
    steps = over_a_run(source.settings.steps, SAMPLED_STEPS)
    targets = flops = 0
    for step in steps:
        for batch in source.batches(step, rank=0, ranks=1):
            targets += batch.targets
            flops += work.trained(batch.tokens, batch.targets, batch.lengths)
    return {"targets": targets / len(steps), "flops": flops / len(steps)}


def plateau_targets(vocabulary: int) -> float:
    """Estimate how many targets a small new model predicts before it leaves the plateau."""
    return PLATEAU_TARGETS * (vocabulary / PLATEAU_VOCABULARY) ** PLATEAU_POWER


# Seconds and memory
# ------------------------------------------------------------------------------------------------


class Forecast:
    """Forecasts the seconds of a stage from finished stages or from measured rates.

    >>> from pathlib import Path
    >>> from maskwise.recipe import read_recipe
    >>> from maskwise.studies.plan import make_plan
    >>> plan = make_plan(read_recipe("quick-start", ["study.seeds=2"]))
    >>> named = {stage.name: stage for stage in plan.stages()}
    >>> first, second = [name for name in named if name.startswith("pretrain")][:2]
    >>> forecast = Forecast(named, StageStore(Path("stages")))
    >>> forecast.add(first, 5.0)
    >>> forecast.seconds(second)
    5.0

    Args:
        named: all stages keyed by name, including the stages whose results they read.
        store: the folders of the stages.
        here: whether to forecast for this machine, so that the seconds of stages that ran
            elsewhere, or in several processes together, do not count.

    Attributes:
        finished: the seconds of the finished stages, keyed by name.
        rates: the measured rates, keyed by a hash of all settings that change them (``key``).
    """

    def __init__(self, named: Mapping[str, Stage], store: StageStore, *, here: bool = False):
        self.named = named
        self.store = store
        self.here = here
        self._keys = cache(self._key)
        self.finished: dict[str, float] = {}
        # The seconds of all finished stages that are alike.
        self.alike = defaultdict[object, list[float]](list)
        folder = cache_folder()
        self.file = folder / "timings.json" if folder else None
        self.rates: dict[str, StageRates] = self._kept()
        for name in named:
            self.look(name)

    def _kept(self) -> dict[str, StageRates]:
        """Return the rates in the cache file. What is damaged is measured again."""
        kept = read_json(self.file) or {} if self.file else {}
        return {key: rates for key, rates in kept.items() if _are_rates(rates)}

    def look(self, name: str) -> None:
        """Record the seconds of a stage if it is finished."""
        # By the planned name: on another machine, the settings of a stage give another name.
        result = self.store.result(name)
        if not result:
            return
        self.finished[name] = result["seconds"]
        if not self.here or _ran_here(result):
            self.add(name, result["seconds"])

    def add(self, name: str, seconds: float) -> None:
        """Record the seconds of a finished stage."""
        self.finished[name] = seconds
        for content in (True, False):
            self.alike[self._likeness(name, content=content)].append(seconds)

    def _likeness(self, name: str, *, content: bool) -> object:
        """Return what finished stages that take the same time have in common.

        Args:
            name: the name of the stage.
            content: whether the content of its text counts.
        """
        stage = self.named[name]
        # With patience, a training may have ended before its last step.
        key = self.key(name, content=content)
        return content, key, work_of(stage), stage.setting("training.patience")

    def known(self, name: str) -> float | None:
        """Forecast the seconds of a stage from stages with the same settings and text.

        Finished stages with the same work are preferred to rates, which must be scaled to the work.
        """
        key = self.key(name)
        if not key:
            return None
        likeness = self._likeness(name, content=True)
        if likeness in self.alike:
            return median(self.alike[likeness])
        if key in self.rates:
            rates = self.rates[key]
            return sum(amount * rates.get(rate, 0.0) for rate, amount in work_of(self.named[name]))
        return None

    def seconds(self, name: str) -> float | None:
        """Forecast the seconds of a stage; None if no stage like it was measured.

        If no stage with its text was, finished stages with another text count: the runs of an arm
        may have a text for each seed.
        """
        seconds = self.known(name)
        if seconds is not None or not self.key(name):
            return seconds
        others = self.alike.get(self._likeness(name, content=False))
        return median(others) if others else None

    def left(self, name: str, line: Plain, *, step: int | None = None) -> float | None:
        """Forecast the seconds that an unfinished stage still takes.

        Args:
            name: the name of the stage.
            line: the last training line of the stage; empty if there is none yet.
            step: the step from which an interrupted stage resumes; None if the stage is running.
        """
        share = share_of(self.named[name], line if step is None else line and {"step": step})
        if share <= 0:
            return self.seconds(name)
        # Steps and seconds include earlier, interrupted calls, and earlier parts of a training.
        done: int = line["step"]
        left = (1 - share) * (KINDS[self.named[name].kind].steps(self.named[name]) or 0)
        return float(line["seconds"]) * left / done

    def keep(self, name: str, rates: StageRates) -> None:
        """Store the measured rates of a stage in the cache file."""
        key = self.key(name)
        if not key:
            return
        self.rates[key] = rates
        if self.file is None:
            return
        # The forecast also works without this file, for example if the home folder is read-only.
        lock = self.file.with_name(".timings.lock")
        with suppress(MaskwiseError), holding(lock, wait=LATE_SECONDS):
            # Another process may have changed the file.
            self.rates |= self._kept() | {key: rates}
            write_json(self.file, self.rates)

    def memory_gib(self, names: Iterable[str]) -> float | None:
        """Return the peak memory of a process over timed stages; None if it is unknown."""
        peak = 0.0
        for key in map(self.key, names):
            peak = max(peak, self.rates.get(key, {}).get("memory_gib", 0.0))
        return peak or None

    def key(self, name: str, *, content: bool = True) -> str:
        """Return the hash of all that changes the rates of a stage: settings, text, code, machine.

        Args:
            name: the name of the stage.
            content: whether the content of its text counts.

        Returns:
            The hash; "" if ``named`` lacks a stage with some of the settings.
        """
        return self._keys(name, content)

    def _key(self, name: str, content: bool) -> str:
        stage = self.named[name]
        try:
            parts = self._parts(stage, content=content)
        # A shared folder has stages of other studies, and may lack stages that they need.
        except (KeyError, IndexError):
            return ""
        return json_hash([stage.kind, hardware(), _code(), parts])

    def _parts(self, stage: Stage, *, content: bool) -> list[object]:
        what = stage.what
        kind = KINDS[stage.kind]
        first = self._first("tokenizer", stage, 0)
        tokenizer = [first.what.get("tokenizer"), first.what.get("tokenizer_content")]
        if kind.depends is None:
            # A policy that is learned scores a text, which takes most of the time.
            policies = [self.named[need].what.get("learning") for need in stage.needs[1:]]
            return [what, tokenizer, policies]
        text = self.named[stage.needs[0]]
        # The later phases of a run do not repeat the settings of the model. Of the model, they have
        # at most the adapter.
        start = self._first("model_content", stage, 1)
        architecture = start.what.get("kind")
        if architecture is None:
            architecture = objective_class(start.what.get("objective", "mlm")).kind
        settings = what.get("training", {})
        parts: list[object] = [
            [architecture, start.what.get("model"), start.what.get("model_content")],
            stage.setting("model.adapter"),
            tokenizer,
            [stage.setting(key) for key in kind.depends],
            {name: settings[name] for name in settings.keys() - CHANGE_NO_TIME},
            what.get("plug_ins"),
        ]
        if kind.reads_rows:
            corpus = text.what.get("corpus", {})
            parts.append([corpus.get(name) for name in (*ROWS, *READ)])
            if content:
                parts.append(text.what.get("corpus_content"))
        return parts

    def _first(self, key: str, stage: Stage, need: int) -> Stage:
        """Go from stage to stage by ``needs[need]`` until a stage has the setting ``key``."""
        while key not in stage.what and len(stage.needs) > need:
            stage = self.named[stage.needs[need]]
        return stage


def _are_rates(value: object) -> bool:
    """Return whether a value of the cache file is the rates of a stage."""
    if not isinstance(value, dict) or not {"seconds", "step"} & value.keys():
        return False
    return all(isinstance(rate, int | float) and math.isfinite(rate) for rate in value.values())


def _ran_here(result: Plain) -> bool:
    """Return whether a stage ran on a machine like this one, in one process."""
    here = hardware()
    there = result.get("hardware", here)
    # The memory of a machine differs a little between its kernels.
    same = isinstance(there, dict) and there | {"memory_gib": here["memory_gib"]} == here
    return same and result.get("processes", 1) == 1


def at_once(jobs: int) -> int:
    """Return how many of the stages that run in parallel have a core each.

    More stages end no earlier. With GPUs, all count, because stages that share a GPU may leave each
    other enough of it.

    Args:
        jobs: the number of stages that run in parallel, each with one thread.
    """
    return jobs if cards_here() else min(jobs, cores_here())


def _code() -> list[str]:
    """List the versions of the code that is timed."""
    return [__version__, torch.__version__, versions()["transformers"]]


def work_of(stage: Stage) -> WorkKey:
    """Return the work of a stage. Only some kinds of stages have steps and evaluations."""
    steps = KINDS[stage.kind].steps(stage)
    if steps is None:
        return (("seconds", 1),)
    judged = KINDS[stage.kind].evaluations(stage)
    return ("start", 1), ("step", steps), ("judge", judged)


def total(seconds: Collection[float | None]) -> float | None:
    """Add up seconds of work; None if some of them are unknown."""
    if None in seconds:
        return None
    return round(sum(filter(None, seconds)), 1)


def summary(
    planned: Mapping[str, Stage],
    seconds: Seconds,
    jobs: int,
    parts: Iterable[Collection[str]],
    ranges: Mapping[str, tuple[float, float]],
) -> Plain:
    """Sum up the work of the unfinished stages.

    Args:
        planned: all stages, keyed by name.
        seconds: the forecast for every unfinished stage.
        jobs: the number of stages that run in parallel.
        parts: the unfinished stages of every plan. A plan begins when the one before it has ended.
        ranges: the least and the most seconds of each stage whose time is unknown, keyed by name.

    Returns:
        ``stages``: for each kind of stage, the number of finished stages (``done``) and unfinished
        stages (``to_do``), and the ``seconds`` that the unfinished stages take. ``unknown``: the
        kinds whose time is only estimated. ``least_seconds`` and ``most_seconds``: the range of the
        time until the study ends; the latter is None if nothing bounds it. ``seconds``: that time;
        None if the time of a stage is only estimated.
    """
    kinds: dict[str, Plain] = {}
    for name, stage in planned.items():
        counts = kinds.setdefault(stage.kind, {"done": 0, "to_do": 0, "seconds": []})
        if name in seconds:
            counts["to_do"] += 1
            counts["seconds"].append(seconds[name])
        else:
            counts["done"] += 1
    for counts in kinds.values():
        counts["seconds"] = total(counts["seconds"])
    unknown = [kind for kind, counts in kinds.items() if counts["seconds"] is None]
    parts = [*parts]
    ends = []
    for end in (0, 1):
        until = START_SECONDS if seconds else 0.0
        for part in parts:
            of_plan: Seconds = {}
            for name in filter(part.__contains__, seconds):
                of_plan[name] = ranges[name][end] if name in ranges else seconds[name]
            until += until_end(planned, of_plan, jobs)
        ends.append(round(until, 1))
    least, most = ends
    return {
        "stages": kinds,
        "unknown": unknown,
        "least_seconds": least,
        "most_seconds": most if math.isfinite(most) else None,
        "seconds": None if unknown else least,
    }


def phases_of(runs: Iterable[Run], seconds: Seconds) -> Iterator[Plain]:
    """Yield the cost of every training phase of the full-length runs.

    An entry contains the number of the ``phase`` (from 0) and the names of its ``arms``. ``steps``,
    ``batch_size`` and ``length`` are those of one run, and ``tokens`` is their product. ``runs`` is
    the number of runs, ``to_do`` the number of unfinished runs, and ``seconds`` the time of the
    unfinished runs (None if unknown).
    """
    phases: dict[tuple[Stage, ...], tuple[int, Recipe]] = {}
    arms = defaultdict[tuple[Stage, ...], dict[str, None]](dict)
    for run in runs:
        if run.compared:
            for stages, phase in zip(run.phases, enumerate(run.recipe.links())):
                phases[stages] = phase
                # Runs of several arms may share a training stage.
                arms[stages][run.arm] = None
    # Stages with the same phase and arms differ only in the seed, so they are one entry.
    lines = defaultdict(list)
    for stages, (number, _) in phases.items():
        lines[number, tuple(arms[stages])].append(stages)
    for (number, names), runs_of in sorted(lines.items(), key=lambda line: line[0][0]):
        _, link = phases[runs_of[0]]
        training = link.training
        steps = sum(KINDS[stage.kind].steps(stage) or 0 for stage in runs_of[0])
        to_do = [stages for stages in runs_of if any(stage.name in seconds for stage in stages)]
        left = [seconds[stage.name] for stage in chain(*to_do) if stage.name in seconds]
        yield {
            "phase": number,
            "arms": list(names),
            "steps": steps,
            "batch_size": training.batch_size,
            "length": link.corpus.length,
            "tokens": steps * training.batch_size * link.corpus.length,
            "runs": len(runs_of),
            "to_do": len(to_do),
            "seconds": total(left),
        }


def until_end(planned: Mapping[str, Stage], seconds: Seconds, jobs: int) -> float:
    """Estimate the seconds until all stages are finished, as ``scheduler.execute`` runs them.

    A free worker takes the first stage in the order of ``seconds`` whose needs are finished.

    Args:
        planned: stages keyed by name.
        seconds: the forecast for every unfinished stage; an unknown time counts as 0.
        jobs: the number of workers.
    """
    names = [*seconds]
    missing: dict[str, int] = {}
    after = defaultdict[str, list[int]](list)
    for place, name in enumerate(names):
        needs = [need for need in planned[name].needs if need in seconds]
        missing[name] = len(needs)
        for need in needs:
            after[need].append(place)
    # Both lists are heaps. The places of a list in ascending order are one already.
    ready = [place for place, name in enumerate(names) if not missing[name]]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < jobs:
            place = heappop(ready)
            heappush(running, (now + (seconds[names[place]] or 0.0), place))
        now, place = heappop(running)
        for later in after[names[place]]:
            missing[names[later]] -= 1
            if not missing[names[later]]:
                heappush(ready, later)
    return now


def share_of(stage: Stage, line: Plain) -> float:
    """Return the share of the steps of a stage that are finished.

    Args:
        line: its last training line; empty if there is none yet.
    """
    return KINDS[stage.kind].share(stage, line["step"]) if line else 0.0
