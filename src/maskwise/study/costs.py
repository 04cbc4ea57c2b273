"""What the stages of a study cost: FLOPs, seconds and memory.

FLOPs are counted by one formula, so that arms with different ratios, lengths, models or objectives
can be compared:

    FLOPs = 6 · body · tokens + 6 · head · targets

Each weight takes 2 FLOPs per token in the forward pass and 4 in the backward pass: 2 for the
gradient of its input and 2 for the gradient of the weight. A frozen encoder runs forward only.
Weights that are not updated but pass gradients on cost 4 instead of 6: a vocabulary matrix tied to
a frozen encoder, and the weights that LoRA leaves unchanged. ``body`` counts the weights of the
encoder without its embeddings, which are looked up. ``head`` counts the prediction head with its
vocabulary matrix, even if it is tied to the embeddings; the head runs on gathered targets only, so
a higher ratio costs more. ``Objective.work`` defines which weights are applied to which tokens
(sentence contrast reads a text twice, replaced-token detection also runs a generator), and each
step is counted for the objective that was drawn. A sampler's probes cost 2 instead of 6. Not
counted: attention scores (2·L·H per token and layer, a few per cent at the lengths used here),
padding, the optimiser, evaluation.

Seconds and memory depend on the machine, so they are measured. A ``Forecast`` uses the seconds of
finished stages, or the seconds per step that ``timing`` measured. The cache file ``timings.json``
stores the measured seconds. Delete it to measure again, for example if the machine was busy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from maskwise.devices import best_device, cache_folder, cpu_name, fast_bf16
from maskwise.errors import MaskwiseError
from maskwise.folders import read_json, write_json
from maskwise.masking import MaskedBatch
from maskwise.objectives import Objective, objective, objective_class
from maskwise.objectives.base import trained
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.plan import Run
from maskwise.study.stages import Stage, digest
from maskwise.training import MaskedSource, TrainingSettings
from maskwise.training.arms import Arms
from maskwise.weights import held_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED_STEPS = 32
"""The number of steps of a run whose batches are masked to estimate the costs of a step."""

PLATEAU_TARGETS, PLATEAU_POWER = 72_000, 0.17
"""The number of targets until a small new model with the quick-start settings beats the unigram
loss by 0.3 nats, for a vocabulary of ``PLATEAU_VOCABULARY``, and the exponent of its growth with
the vocabulary. Fitted on the bundled Wikipedia with 512 to 2,048 words (benchmarks/first_contact.py
plateau); accurate within a factor of 2. Not valid for letters: some protein families took 1,000
steps, others more than twice the prediction."""
PLATEAU_VOCABULARY = 1024
LEAST_VOCABULARY = 256

Rates: TypeAlias = dict[str, float]
"""The measured seconds of a stage. A training stage has the seconds of its ``start``, of one
``step`` and of one evaluation (``judge``); other stages have the ``seconds`` of the whole stage.
Rates may also have the peak memory, ``memory_gib``."""

Work: TypeAlias = tuple[tuple[str, int], ...]
"""The work of a stage: for each of its rates, how often it is done."""

Seconds: TypeAlias = dict[str, float | None]
"""The seconds of stages, keyed by name, in the order in which they are done; None if unknown."""

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

DEPENDS = {
    "pretrain": ("objective", "objectives", "sampler"),
    "learn": ("learning", "objective", "task_content", "max_length"),
    "evaluate": ("evaluation", "content"),
    "finetune": ("task_content", "finetune"),
}
"""For each kind of stage, what its time depends on besides model, tokenizer, rows and training."""


def flops(tokens: float, targets: float, one: Objective, *, frozen: bool = False) -> int:
    """Count the FLOPs of training an objective.

    Args:
        tokens: the number of tokens that the objective reads.
        targets: the number of tokens that the objective predicts.
        frozen: whether only the heads are trained.
    """
    return trained(one.work(tokens, targets), frozen=frozen, held=held_share(one.model))


def flops_of_arms(
    arms: Arms, spent: Mapping[str, Mapping[str, float]], *, frozen: bool
) -> tuple[int, int]:
    """Return (FLOPs of the steps, FLOPs of the probes), summed over arms.

    Args:
        spent: the counts that ``SamplerLearner.spent`` returns.
        frozen: whether only the heads are trained.
    """
    steps = probes = 0
    held = held_share(arms.model)
    for name, counts in spent.items():
        work = arms.arm(name).work
        steps += trained(work(counts["tokens"], counts["targets"]), frozen=frozen, held=held)
        # Probes run forward only.
        probes += int(2 * work(counts["probe_tokens"], counts["probe_targets"]).all)
    return steps, probes


def over_a_run(steps: int, most: int) -> list[int]:
    """Choose at most ``most`` steps of a run, evenly spaced."""
    count = min(steps, most)
    return [(2 * number + 1) * steps // (2 * count) for number in range(count)]


class Counts(NamedTuple):
    """Sums over batches: steps, tokens read, targets, pieces, units and the tokens in units."""

    steps: int = 0
    tokens: int = 0
    targets: int = 0
    pieces: int = 0
    units: int = 0
    eligible: int = 0


def counts_of(steps: Iterable[Iterable[MaskedBatch]]) -> Counts:
    """Count tokens, targets, pieces and units in the batches of each of the given steps."""
    sums: Counter[str] = Counter()
    for batches in steps:
        sums["steps"] += 1
        for batch in batches:
            sums.update(tokens=batch.tokens, targets=batch.targets, pieces=len(batch.ratio))
            # A corruption without a policy, such as next-token prediction, chooses no units.
            if batch.choice:
                lengths = batch.choice.units.length
                sums.update(units=len(lengths), eligible=int(lengths.sum()))
    return Counts(**sums)


def counts_over(source: MaskedSource, most: int) -> Counts:
    """Count the batches of at most ``most`` steps.

    The steps are spread evenly over the run, because ratios and row lengths may change.
    """
    steps = over_a_run(source.settings.steps, most)
    return counts_of(source.batches(step, rank=0, ranks=1) for step in steps)


def per_step(source: MaskedSource, spec: str, network: PreTrainedModel) -> dict[str, float]:
    """Measure the mean costs of a step, ``targets`` and ``flops``.

    Args:
        source: the masked batches of the training run.
        spec: the objective.
        network: the model; its weights are not used.
    """
    # Only the sizes of the heads matter here, so they take no memory.
    with torch.device("meta"):
        one = objective(spec, network)
    counts = counts_over(source, SAMPLED_STEPS)
    tokens = counts.tokens / counts.steps
    targets = counts.targets / counts.steps
    spent = flops(tokens, targets, one, frozen=source.settings.freeze == "encoder")
    return {"targets": targets, "flops": spent}


def plateau_targets(vocabulary: int) -> float:
    """Estimate the targets until a small new model beats the unigram loss by 0.3 nats."""
    return PLATEAU_TARGETS * (vocabulary / PLATEAU_VOCABULARY) ** PLATEAU_POWER


# Seconds and memory
# ------------------------------------------------------------------------------------------------


class Forecast:
    """Forecasts the seconds of stages from finished stages or from measured rates.

    >>> from maskwise.recipe import read_recipe
    >>> from maskwise.study.plan import make_plan
    >>> plan = make_plan(read_recipe("quick-start", ["study.seeds=2"]))
    >>> named = {stage.name: stage for stage in plan.stages()}
    >>> first, second = [name for name in named if name.startswith("pretrain")][:2]
    >>> forecast = Forecast(named, Path("stages"))
    >>> forecast.add(first, 5.0)
    >>> forecast.seconds(second)
    5.0

    Args:
        named: stages keyed by name, including all stages that they need.
        stages: the folder that contains the stages.

    Attributes:
        finished: the seconds of the finished stages, keyed by name.
        rates: the measured rates, keyed by ``key``.
    """

    def __init__(self, named: Mapping[str, Stage], stages: Path):
        self.named = named
        self.stages = stages
        self.key = cache(self._key)
        self.finished: dict[str, float] = {}
        # The seconds of all finished stages with the same key and the same work.
        self.alike: dict[tuple[str, Work], list[float]] = defaultdict(list)
        self.file = cache_folder() / "timings.json"
        self.rates: dict[str, Rates] = read_json(self.file) or {}
        for name in named:
            self.look(name)

    def look(self, name: str) -> None:
        """Record the seconds of a stage if it is finished."""
        result = self.named[name].result(self.stages)
        if result:
            self.add(name, result["seconds"])

    def add(self, name: str, seconds: float) -> None:
        """Record the seconds of a finished stage."""
        self.finished[name] = seconds
        self.alike[self.key(name), work_of(self.named[name])].append(seconds)

    def seconds(self, name: str) -> float | None:
        """Forecast the seconds of a stage; None if no similar stage is known.

        Finished stages with the same work are preferred to rates, because rates must be scaled.
        """
        key = self.key(name)
        work = work_of(self.named[name])
        if not key:
            return None
        if (key, work) in self.alike:
            return median(self.alike[key, work])
        if key in self.rates:
            rates = self.rates[key]
            return sum(amount * rates.get(rate, 0.0) for rate, amount in work)
        return None

    def keep(self, name: str, rates: Rates) -> None:
        """Store the measured rates of a stage in the cache file."""
        key = self.key(name)
        if not key:
            return
        # Another process may have written to the file, so it is read again before each write.
        self.rates |= read_json(self.file) or {}
        self.rates[key] = rates
        # The forecast also works without its cache, for example in a read-only home.
        with suppress(MaskwiseError):
            write_json(self.file, self.rates)

    def memory_gib(self) -> float | None:
        """Return the peak memory of a process over the timed stages; None if it is unknown."""
        peak = 0.0
        for key in map(self.key, self.named):
            peak = max(peak, self.rates.get(key, {}).get("memory_gib", 0.0))
        return peak or None

    def _key(self, name: str) -> str:
        """Hash all settings that change the rates of a stage.

        Returns "" if a stage that it needs is not in ``named``.
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
        text = self.named[stage.needs[0]]
        # Only the first training stage of a run names the model, and only the first text names the
        # tokenizer.
        start = self._first("model", stage, 1)
        first = self._first("tokenizer", text, 0)
        kind = start.what.get("kind")
        if kind is None:
            kind = objective_class(start.what.get("objective", "mlm")).kind
        settings = what.get("training", {})
        parts: list[object] = [
            [kind, start.what.get("model"), start.what.get("model_content")],
            [first.what.get("tokenizer"), first.what.get("tokenizer_content")],
            [what.get(name) for name in DEPENDS[stage.kind]],
            {name: settings[name] for name in settings.keys() - CHANGE_NO_TIME},
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

    def _first(self, key: str, stage: Stage, need: int) -> Stage:
        """Follow ``needs[need]`` from stage to stage until a stage has ``key`` in ``what``."""
        while key not in stage.what and len(stage.needs) > need:
            stage = self.named[stage.needs[need]]
        return stage


def work_of(stage: Stage) -> Work:
    """Return the work of a stage. Only pre-training is split into steps and evaluations."""
    if stage.kind != "pretrain":
        return (("seconds", 1),)
    steps = stage.what["training"]["steps"]
    judged = evaluations(steps, stage.how.get("eval_every"))
    return ("start", 1), ("step", steps), ("judge", judged)


def evaluations(steps: int, every: int | None) -> int:
    """Count the evaluations of a training: one after every ``every`` steps, and one at the end."""
    count = 1
    if every:
        count += steps // every
    return count


@cache
def _machine() -> Plain:
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "torch": torch.__version__, "bf16": fast_bf16()}


def total(seconds: Collection[float | None]) -> float | None:
    """Add up seconds of work; None if some of them are unknown."""
    if None in seconds:
        return None
    return round(sum(filter(None, seconds)), 1)


def summary(planned: Mapping[str, Stage], seconds: Seconds, jobs: int) -> Plain:
    """Sum up the work that is left.

    Args:
        planned: all stages, keyed by name.
        seconds: the forecast for every stage that is not done.
        jobs: the number of stages that run in parallel.

    Returns:
        ``stages``: for each kind of stage, the number of stages that are ``done`` and ``to_do``,
        and the ``seconds`` of work that are left. ``unknown``: the kinds whose time is unknown.
        ``seconds``: the time until the study ends (``until_end``), or None if it is unknown.
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
    until = None
    if not seconds:
        until = 0.0
    elif not unknown:
        until = round(START_SECONDS + until_end(planned, seconds, jobs), 1)
    return {"stages": kinds, "unknown": unknown, "seconds": until}


def phases_of(runs: Iterable[Run], seconds: Seconds) -> Iterator[Plain]:
    """Yield the cost of every training phase of the full-length runs.

    An entry has the number of the ``phase`` (from 0) and the names of its ``arms``. ``steps``,
    ``batch_size``, ``length`` and the maximum of ``tokens`` are for one run. ``runs`` and ``to_do``
    count all runs and the unfinished runs. ``seconds`` is the work of the unfinished runs, or None
    if it is unknown.
    """
    phases: dict[Stage, tuple[int, Recipe]] = {}
    arms: dict[Stage, dict[str, None]] = defaultdict(dict)
    for run in runs:
        if run.compared:
            for stage, phase in zip(run.trainings, enumerate(run.recipe.links())):
                phases[stage] = phase
                # Runs of several arms may share a training stage.
                arms[stage][run.arm] = None
    # Stages of the same phase and arms differ only in their seeds, so they share one entry.
    lines = defaultdict(list)
    for stage, (number, _) in phases.items():
        lines[number, tuple(arms[stage])].append(stage)
    for (number, names), stages in sorted(lines.items(), key=lambda line: line[0][0]):
        _, link = phases[stages[0]]
        training = link.training
        left = [seconds[stage.name] for stage in stages if stage.name in seconds]
        yield {
            "phase": number,
            "arms": list(names),
            "steps": training.steps,
            "batch_size": training.batch_size,
            "length": link.corpus.length,
            "tokens": training.steps * training.batch_size * link.corpus.length,
            "runs": len(stages),
            "to_do": len(left),
            "seconds": total(left),
        }


def until_end(planned: Mapping[str, Stage], seconds: Seconds, jobs: int) -> float:
    """Return the seconds until all stages are finished.

    The scheduler is simulated: a free worker takes the first stage whose needs are finished.

    Args:
        planned: stages keyed by name.
        seconds: the forecast for every unfinished stage; an unknown time counts as 0.
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
