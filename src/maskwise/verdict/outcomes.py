"""Measured outcomes of a study, as arrays of shape (arms, seeds).

An arm is one way to pre-train, and a run is one arm with one seed. The reference arm is the model
before this pre-training. A missing run is NaN. Outcomes have the names of summary.json:

    TASK                    score on a task
    tasks                   standardised scores, averaged over the tasks of a run
    heldout:token           held-out loss on token masks, averaged over masking ratios
    heldout:token@0.15      held-out loss at one masking ratio, if several ratios are measured
    evaluation:NAME:METRIC  an evaluation without fine-tuning

Four kinds of outcomes are internal: "unigram:token" (the loss of a model that knows only word
frequencies, on the same masks), "dev:TASK", "cost:steps" and "plain:tasks" (not standardised).

To standardise the scores of a task, divide them by their pooled SD within arms. The divisor is at
least 1/n for n test items. With one run per arm there is no SD, so scores are not divided. In the
outcome "tasks", the sign of a score is flipped if lower scores are better. These SDs are units of
display: the test of several tasks uses the differences of every task (``differences``), and its
result does not depend on their units.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from maskwise.base.constants import (
    FRESH_RUN,
    MEAN_OVER_TASKS,
    NATS,
    WITHOUT_RATIO,
)
from maskwise.base.errors import MaskwiseError, require_known
from maskwise.results.files import Record, Study
from maskwise.results.measurements import QUANTITIES, Measurement, Scale, measurements, unit_of
from maskwise.verdict.statistics import sign_flip_estimate, without_rounding

Numbers: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = tuple[str, str]
"""The names of an arm and its baseline."""

TOLERANCE = 0.05
"""Maximum relative difference of a quantity between two matched arms."""
ABOVE_CHANCE = ("entity-f1", "matthews")
"""Metrics whose floor is the score of the untrained model, if it is recorded."""
OF_A_TASK = ("finetune-", "tune-")
"""Beginnings of the names of stages that serve a single task."""
GATE = "gate"
"""The role of runs that only a gate compares."""
RESERVED = ("tasks", MEAN_OVER_TASKS)
"""Outcomes that are no single task, by names that a task could have."""
PREFIXES = ("heldout", "unigram", "evaluation", "dev", "further", "cost", "plain")
"""What is before the colon in the names of other outcomes."""


def require_task_name(task: str, *, do: str) -> None:
    """Raise an error if another outcome has, or may have, the name of a task.

    >>> require_task_name("tasks.csv", do="")
    """
    prefix, colon, _ = task.partition(":")
    if task in RESERVED or (colon and prefix in PREFIXES):
        others = ", ".join((*RESERVED, *(f"{each}:…" for each in PREFIXES)))
        raise MaskwiseError(
            f"a task cannot be called {task!r}: another outcome has this name",
            allowed=f"other names than {others}",
            do=do,
        )


class Outcomes:
    """The outcomes of the compared runs, or those of the runs of a gate.

    Args:
        records: the lines of records.jsonl, also of other runs, which are left out.
        study: the content of study.json.
        role: "gate" for runs that only a gate compares; "" for all others.

    Attributes:
        start: the arm that is not trained, the reference; None if the study has none.
        arms: the names of the arms, including the reference.
        lines: the records, keyed by kind.
        scores: the scores on test, keyed by task.
        values: arrays of shape (arms, seeds), keyed by outcome.
        scales: what the values of outcomes mean, keyed by outcome.
        parts: for each mean held-out outcome, the names of its outcomes at single ratios.
        failed: the (arm, seed) pairs of failed runs; ``failures`` counts them by arm.
            ``failed_for`` lists those that bear on an outcome.
        tasks, heldout, evaluations: the names of the outcomes of these kinds.
        secondary: the tasks that are only reported (``study.secondary``).
        averaged: the other tasks, which the outcome "tasks" averages.
        sds: for each task, the pooled SD of runs within arms, the unit of standardised scores.

    Raises:
        MaskwiseError: an invalid or repeated value, an unknown arm or seed, or an incomplete run.
    """

    def __init__(self, records: Iterable[Record], study: Study, *, role: str = ""):
        self.study = study
        self.start = start_of(study)
        self.arms = [*study["arms"], *study.get("untrained", {})]
        self.lines = defaultdict[str, list[Record]](list)
        for record in records:
            # The overlap of a text and a task has no arm.
            if "arm" in record:
                require_known("arm in records", record["arm"], self.arms)
            if record.get("role", "") == role or "arm" not in record:
                self.lines[record["kind"]].append(record)
        self.values: dict[str, Numbers] = {}
        self.scales: dict[str, Scale] = {}
        self.parts: dict[str, list[str]] = {}
        self.failed = {(line["arm"], line["seed"]) for line in self.lines["failure"]}
        self.failures = Counter(arm for arm, _ in self.failed)
        found = measurements(chain.from_iterable(self.lines.values()), study["tasks"])
        self.scores = defaultdict[str, list[Measurement]](list)
        for row in found:
            if row.kind == "task" and row.split == "test":
                self.scores[row.measure].append(row)
        self.tasks = self._read_tasks(row for row in found if row.kind == "task")
        self.heldout = self._read_heldout(row for row in found if row.kind == "heldout")
        self.evaluations = self._read_evaluations(row for row in found if row.kind == "evaluation")
        for row in found:
            if row.kind == "cost":
                self._put(row)
        self.secondary = [task for task in self.tasks if task in (study.get("secondary") or ())]
        self.averaged = [task for task in self.tasks if task not in self.secondary]
        # Incomplete runs are removed first, so every mean over tasks or ratios has the same parts.
        for parts in (self.tasks, *self.parts.values()):
            self._require_measured(parts)
        for parts in (self.averaged, *self.parts.values()):
            self._leave_out_partial_runs(parts)
        self.lacks_secondary = self._lacking_only_secondary()
        for name, parts in self.parts.items():
            self.values[name] = np.mean([self.values[part] for part in parts], axis=0)
        if self.averaged:
            self._average_tasks()

    def _put(self, row: Measurement) -> None:
        """Check a value and store it in the array of its outcome."""
        seeds = self.study["seeds"]
        outcome = row.outcome
        if row.seed not in seeds:
            raise MaskwiseError("unknown seed in records", got=_where(row), allowed=seeds)
        if not isinstance(row.value, numbers.Real) or not math.isfinite(row.value):
            raise MaskwiseError(
                f"{_where(row)} is not a finite number", got=row.value, do="rerun that stage"
            )
        if outcome not in self.values:
            self.values[outcome] = np.full((len(self.arms), len(seeds)), np.nan)
        values = self.values[outcome]
        place = self.place(row.arm, row.seed)
        if not math.isnan(values[place]):
            raise MaskwiseError(
                f"{_where(row)} is measured twice", do="keep one line of records.jsonl"
            )
        values[place] = row.value

    def place(self, arm: str, seed: int) -> tuple[int, int]:
        """Return the index of a run in the arrays."""
        return self.arms.index(arm), self.study["seeds"].index(seed)

    def _read_tasks(self, found: Iterable[Measurement]) -> list[str]:
        for row in found:
            if row.split != "further":
                self._put(row)
            if row.split == "test":
                self.scales.setdefault(row.outcome, row)
        tasks = list(self.scales)
        for task in tasks:
            require_task_name(task, do="give the task another name, and repeat the study")
        # A constant answer scores little in these metrics, and an untrained model may score more.
        for task in tasks:
            floor = self.floor(task)
            if self.scales[task].metric in ABOVE_CHANCE and floor is not None:
                self.scales[task] = replace(self.scales[task], chance=float(floor.mean()))
        return tasks

    def _read_heldout(self, found: Iterable[Measurement]) -> list[str]:
        ratios = defaultdict[str, dict[float, str]](dict)
        frequencies: dict[tuple[str, int], Measurement] = {}
        for row in found:
            self._put(row)
            if row.split == "unigram":
                frequencies.setdefault((row.outcome, row.seed), row)
            if row.split == "test":
                assert row.ratio is not None
                ratios[f"heldout:{row.measure}"][row.ratio] = row.outcome
        if self.start and self.starts_at_frequencies:
            for row in frequencies.values():
                self._put(replace(row, arm=self.start, split="test"))
        names = []
        for mean, measured in ratios.items():
            self.parts[mean] = [measured[ratio] for ratio in sorted(measured)]
            names.append(mean)
            # With a single ratio, the mean is the loss at this ratio, so one name is enough.
            if len(measured) > 1:
                names += self.parts[mean]
        self.scales |= dict.fromkeys(names, Scale(unit=NATS, higher_is_better=False))
        return sorted(names)

    def _read_evaluations(self, found: Iterable[Measurement]) -> list[str]:
        names = {}
        for row in found:
            self._put(row)
            names[row.outcome] = row
        self.scales |= names
        return list(names)

    def _partial_runs(self, outcomes: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which values are missing, and which runs measured some of the outcomes only."""
        missing = np.isnan([self.values[outcome] for outcome in outcomes])
        return missing, np.logical_and(missing.any(axis=0), ~missing.all(axis=0))

    def _require_measured(self, outcomes: Sequence[str]) -> None:
        """Raise an error if a run lacks an outcome and has not failed."""
        if not outcomes:
            return
        missing, partial = self._partial_runs(outcomes)
        for arm, seed in np.argwhere(partial):
            run = self.arms[arm], self.study["seeds"][seed]
            if run not in self.failed:
                lacking = np.array(outcomes)[missing[:, arm, seed]]
                raise MaskwiseError(
                    "a run lacks an outcome that other runs have",
                    got=f"no {', '.join(lacking)} for arm {run[0]!r}, seed {run[1]}",
                    do="run the study to its end",
                )

    def _leave_out_partial_runs(self, outcomes: Sequence[str]) -> None:
        """Set all outcomes of a run to NaN if the run measured only some of them.

        Only runs that failed may lack outcomes (``_require_measured``).
        """
        if outcomes:
            _, partial = self._partial_runs(outcomes)
            for outcome in outcomes:
                self.values[outcome][partial] = np.nan

    def _lacking_only_secondary(self) -> set[tuple[str, int]]:
        """Return the failed runs of which only fine-tunings on secondary tasks failed."""
        stages = defaultdict[tuple[str, int], list[str]](list)
        for line in self.lines["failure"]:
            stages[line["arm"], line["seed"]].append(line["stage"])
        found = set()
        for run, names in stages.items():
            place = self.place(*run) if run[1] in self.study["seeds"] else None
            if place is None or not all(name.startswith(OF_A_TASK) for name in names):
                continue
            lacking = {task for task in self.tasks if math.isnan(self.values[task][place])}
            if lacking and lacking.isdisjoint(self.averaged):
                found.add(run)
        return found

    def failed_for(self, outcome: str) -> set[tuple[str, int]]:
        """Return the (arm, seed) pairs of failed runs without those that bear on other outcomes.

        A fine-tuning on a secondary task that failed bears on this task only.
        """
        return self.failed if outcome in self.secondary else self.failed - self.lacks_secondary

    def _average_tasks(self) -> None:
        """Average the signed scores of a run's tasks, both as measured and standardised."""
        self.sds = {task: self._pooled_sd(task) for task in self.tasks}
        tasks = self.averaged
        signed = [self.values[task] * self.scales[task].sign for task in tasks]
        metrics = {self.scales[task].metric for task in tasks}
        metric = metrics.pop() if len(metrics) == 1 else None
        # Scores in different units are reported only as the mean of standardised scores.
        if len({self.scales[task].unit for task in tasks}) == 1:
            for name in ("tasks", "plain:tasks"):
                self.values[name] = np.mean(signed, axis=0)
                self.scales[name] = Scale(unit=unit_of(metric), metric=metric)
        # With one run per arm there is no SD.
        if not np.isnan([self.sds[task] for task in tasks]).any():
            scaled = [runs / self.sds[task] for task, runs in zip(tasks, signed)]
            self.values["tasks"] = np.mean(scaled, axis=0)
            self.scales["tasks"] = Scale(unit="SDs", metric=metric)

    def _pooled_sd(self, task: str) -> float:
        """Return the pooled SD of runs within arms; NaN with one run per arm."""
        runs = self.values[task][: len(self.study["arms"])]
        runs = runs[np.isfinite(runs).any(axis=1)]
        freedom = np.isfinite(runs).sum() - len(runs)
        if freedom == 0:
            return math.nan
        deviations = runs - np.nanmean(runs, axis=1, keepdims=True)
        sd = math.sqrt(np.nansum(deviations**2) / freedom)
        return max(sd, self.one_item(task))

    def one_item(self, task: str) -> float:
        """Return the value of one test item, the smallest SD of a task that counts.

        Scores may be equal by chance, and an SD near 0 would give a task all the weight.
        """
        return 1 / (self.scales[task].items or 1000)

    def has_least_sd(self, task: str) -> bool:
        """Return whether the runs of a task vary by less than the value of one test item."""
        return self.sds[task] == self.one_item(task)

    # Queries about arms and outcomes

    def runs(self, outcome: str, arm: str | None) -> Numbers:
        """Return the outcome of an arm for every seed; NaN for missing runs, and without an arm."""
        if arm is None or outcome not in self.values:
            return np.full(len(self.study["seeds"]), np.nan)
        return self.values[outcome][self.arms.index(arm)]

    def gains(self, outcome: str, arm: str, baseline: str) -> Numbers:
        """Return the gain of an arm over a baseline for every seed; positive is better."""
        differences = subtracted(self.runs(outcome, arm), self.runs(outcome, baseline))
        return self.scales[outcome].sign * differences

    def paired_seeds(self, outcome: str, arm: str, baseline: str) -> list[int]:
        """List the seeds for which both arms have an outcome."""
        known = np.isfinite(self.runs(outcome, arm) - self.runs(outcome, baseline))
        return [seed for seed, both in zip(self.study["seeds"], known) if both]

    def has_items_per_run(self, task: str) -> bool:
        """Return whether each run has its own test items: the task's file depends on its seed."""
        specs = self.study.get("recipe", {}).get("tasks")
        if not isinstance(specs, list) or len(specs) != len(self.study["tasks"]):
            return False
        spec = str(dict(zip(self.study["tasks"], specs)).get(task))
        # Recorded studies write the second.
        return "{seed}" in spec or "seed='run'" in spec

    def mean_gain(self, outcome: str, arm: str, baseline: str) -> float | None:
        """Return the mean gain of an arm over a baseline; None without pairs of runs."""
        gains = finite_runs(self.gains(outcome, arm, baseline))
        if not len(gains):
            return None
        return sign_flip_estimate(gains, scores=self.largest(outcome, arm, baseline))

    def largest(self, outcome: str, arm: str, baseline: str) -> float:
        """Return the largest absolute score of two arms; 0 without runs.

        With its size, rounding errors are told from differences (``statistics.ROUNDING``). For a
        mean over tasks, the scores are those of its tasks, in the unit of the mean.
        """
        parts = self.measured(outcome.removeprefix("plain:"))
        return float(max(self._largest_scores(outcome, parts, arm, baseline)))

    def _largest_scores(self, outcome: str, tasks: Sequence[str], *pair: str) -> Numbers:
        """Return (tasks,) the largest absolute score of a pair, in the unit of an outcome."""
        runs = np.array([[self.runs(task, arm) for arm in pair] for task in tasks])
        scores = np.abs(np.where(np.isfinite(runs), runs, 0.0)).max(axis=(1, 2), initial=0.0)
        if outcome in self.scales and self.scales[outcome].unit == "SDs":
            scores = scores / np.array([self.sds[task] for task in tasks])
        return scores

    def differences(
        self, outcome: str, arm: str, baseline: str
    ) -> tuple[Numbers, Numbers, Numbers]:
        """Return the paired differences of every task that an outcome averages.

        Returns:
            differences: (tasks, seeds) arm minus baseline, in SDs, positive if the arm is better.
                NaN for a seed without a pair of runs, which lacks all tasks. An outcome that is not
                a mean over several tasks has one row, in its own unit and direction.
            least_sds: (tasks,) the smallest SDs that count, in the same units.
            scores: (tasks,) the largest absolute scores of the two arms, in the same units.
        """
        tasks = self.measured(outcome)
        scores = self._largest_scores(outcome, tasks, arm, baseline)
        if len(tasks) == 1 or self.scales[outcome].unit != "SDs":
            differences = subtracted(self.runs(outcome, arm), self.runs(outcome, baseline))
            return differences[None], np.zeros(1), scores.max(keepdims=True)
        sds = np.array([self.sds[task] for task in tasks])
        gains = np.array([self.gains(task, arm, baseline) for task in tasks])
        least_sds = np.array([self.one_item(task) for task in tasks])
        return gains / sds[:, None], least_sds / sds, scores

    def means(self, outcome: str, *, over: str | None = None) -> dict[str, float]:
        """Return the mean of each trained arm that has the most runs, positive if it is better.

        Other arms lack runs, which may be the worst ones.

        Args:
            outcome: the outcome.
            over: an arm whose runs are subtracted.

        Returns:
            The means over the seeds for which the runs of all these arms are finished; {} without
            such seeds.
        """
        arms = [*self.study["arms"]]
        runs = np.array([self.runs(outcome, arm) for arm in arms])
        finished = np.isfinite(runs).sum(axis=1)
        complete = np.flatnonzero(finished == finished.max())
        runs = self.scales[outcome].sign * runs[complete]
        if over is not None:
            runs -= self.scales[outcome].sign * self.runs(outcome, over)
        shared = np.isfinite(runs).all(axis=0)
        if not shared.any():
            return {}
        means = runs[:, shared].mean(axis=1)
        return {arms[place]: float(mean) for place, mean in zip(complete, means)}

    def mean(self, outcome: str, arm: str) -> float | None:
        """Return the mean outcome of an arm over its runs; None without runs."""
        return _mean_of_finite(self.runs(outcome, arm))

    def measured(self, outcome: str) -> list[str]:
        """List the outcomes that an outcome averages, or the outcome itself."""
        return self.averaged if outcome == "tasks" else [outcome]

    @property
    def starts_untrained(self) -> bool:
        """Whether the reference arm is an untrained model, and not a pre-trained one."""
        model = self.study.get("recipe", {}).get("model")
        return not (isinstance(model, Mapping) and model.get("pretrained"))

    @cached_property
    def starts_at_frequencies(self) -> bool:
        """Whether the reference is what word frequencies predict, and not a model.

        Nothing is measured of an untrained model without tasks.
        """
        measured = any(line["arm"] == self.start for line in self.lines["heldout"])
        return self.starts_untrained and not self.study["tasks"] and not measured

    def floor(self, outcome: str) -> Numbers | None:
        """Return the outcome of a model that learned nothing, for every seed; None if unknown.

        It is that of the untrained model (for a seed without it, its mean over seeds). If the start
        is a pre-trained model, it is the score of guessing.
        """
        untrained = self.runs(outcome, self.start)
        mean = _mean_of_finite(untrained)
        if self.starts_untrained and mean is not None:
            return np.where(np.isfinite(untrained), untrained, mean)
        chance = self.scales[outcome].chance
        return None if chance is None else np.full(len(untrained), chance)

    def compute(self, arm: str) -> dict[str, float]:
        """Return the mean cost of an arm's runs for every quantity that was measured."""
        costs = {}
        for quantity in QUANTITIES:
            cost = self.mean(f"cost:{quantity}", arm)
            if cost is not None:
                costs[quantity] = cost
        return costs

    def gap_nats(self, arm: str, *, of: str | None = None) -> float | None:
        """Return by how many nats a model's held-out loss is below that of word frequencies.

        If several masking ratios are measured, return the largest gap. The result is None if
        held-out losses are not measured. ``of`` is the arm whose loss is used (default: ``arm``);
        the masks are always of the kind that ``arm`` trains with.
        """
        of = of or arm
        gaps = []
        for outcome in self.own_heldout(arm):
            for part in self.parts.get(outcome, ()):
                unigram = self.runs(part.replace("heldout:", "unigram:", 1), of)
                gap = _mean_of_finite(unigram - self.runs(part, of))
                if gap is not None:
                    gaps.append(gap)
        return max(gaps, default=None)

    def trained(self, *names: str) -> list[str]:
        """List those of these arms that are trained, without duplicates."""
        return [name for name in dict.fromkeys(names) if name != self.start]

    def searches(self, *names: str) -> list[Record]:
        """List the searches for settings of arms: one for each seed, or one for all seeds."""
        trained = self.trained(*names)
        return [line for line in self.lines["selection"] if line["arm"] in trained]

    def units(self, arm: str) -> str:
        """Return what an arm masks as one unit: "token", "span" or another ``UnitKind``."""
        facts = self.study["arms"].get(arm)
        if facts is None:
            return "token"
        return facts.get("units", facts["policy"])

    def own_heldout(self, arm: str) -> list[str]:
        """List the held-out outcomes on the kinds of masks that an arm trains with.

        On other kinds of masks, even a good model may be worse than word frequencies.
        """
        facts = self.study["arms"].get(arm)
        masks = facts.get("judged_on") if facts else None
        return [f"heldout:{kind}" for kind in masks or ["token"]]

    def formats(self, *names: str) -> set[str]:
        """Return the output formats of the arms that train an encoder-decoder."""
        formats = set[str]()
        for name in names:
            for arm in self.trained(name):
                for outcome in self.own_heldout(arm):
                    # The format is written after the units: "token sentinels", "token full".
                    formats.add(outcome.partition(" ")[2])
        return formats - {""}

    def tokenizers(self, arm: str, other: str) -> set[str]:
        """Return the hashes of the tokenizers of two arms, as far as they are known."""
        found = set()
        names = (self.trained(arm) or [arm]) + (self.trained(other) or [other])
        if self.starts_at_frequencies and self.start in names:
            # Each tokenizer has frequencies of its own.
            names = [*self.study["arms"]]
        for name in names:
            facts = self.study["arms"].get(name)
            if facts and "tokenizer" in facts:
                found.add(facts["tokenizer"])
                # The reference has the vocabulary of the model, without new tokens.
                if facts.get("extended") and self.start in (arm, other):
                    found.add("")
        return found

    def incomparable(self, arm: str, other: str, outcome: str) -> str | None:
        """Return a flag code if an outcome cannot compare two arms; None if it can.

        Losses on masked text compare only arms that mask the same units. Those of masked diffusion
        and of next tokens are exceptions, because their targets do not depend on what arms mask.
        """
        units = set()
        for name in (self.trained(arm) or [arm]) + (self.trained(other) or [other]):
            units.add(self.units(name))
        loss = is_loss(outcome)
        if len(self.tokenizers(arm, other)) > 1:
            if loss:
                return "different-tokenizers"
            metrics = [self.scales[name].metric for name in self.measured(outcome)]
            # These metrics depend on how a tokenizer splits the text.
            by_token = ":open-" in outcome or "per token" in outcome
            if NATS in metrics or (by_token and outcome not in self.tasks):
                return "different-tokenizers"
        if not loss or outcome.removeprefix("heldout:") in WITHOUT_RATIO:
            return None
        if outcome.startswith("heldout:") and len(self.formats(arm, other)) > 1:
            return "different-formats"
        return "different-units" if len(units) > 1 else None


def _where(row: Measurement) -> str:
    return f"{row.outcome} of arm {row.arm!r} with seed {row.seed}"


def start_of(study: Study) -> str | None:
    """Return the arm that is not trained: the model from which the baseline starts."""
    return next(iter(study.get("untrained", {})), None)


def gate_outcomes(records: Iterable[Record], table: Outcomes) -> Outcomes:
    """Return the outcomes that a gate compares.

    With a search, they come from runs at default settings that only the gate compares. Without a
    search, there are no such runs, and the gate compares the runs of all contrasts.

    The gate's runs have the seeds of the search runs. Here they get the seeds of the compared runs,
    because the study's looks and seeds refer to those.

    Args:
        records: the lines of records.jsonl.
        table: the outcomes of the compared runs.
    """
    runs: list[Record] = []
    for line in records:
        if line.get("role") == GATE:
            runs.append({**line, "seed": line["seed"] + FRESH_RUN})
    if not runs:
        return table
    compared = {line["arm"] for line in runs}
    arms = {arm: facts for arm, facts in table.study["arms"].items() if arm in compared}
    study: Study = {**table.study, "arms": arms}
    lines = [*runs, *table.lines["overlap"]]
    return Outcomes(lines, study, role=GATE)


def is_loss(outcome: str) -> bool:
    """Return whether an outcome is a loss on masked held-out text."""
    return outcome.startswith(("heldout:", "evaluation:pseudo-perplexity:"))


def subtracted(runs: Numbers, others: Numbers) -> Numbers:
    """Return differences of paired runs with 0 in place of rounding errors."""
    return without_rounding(runs - others, np.maximum(np.abs(runs), np.abs(others)))


def finite_runs(runs: Numbers) -> Numbers:
    """Return the values without missing runs."""
    return runs[np.isfinite(runs)]


def finite_pairs(differences: Numbers) -> Numbers:
    """Return differences of shape (tasks, seeds) without the seeds that lack a pair of runs."""
    return differences[:, np.isfinite(differences).all(axis=0)]


def _mean_of_finite(runs: Numbers) -> float | None:
    # A summary computes thousands of means, and np.nanmean is five times slower.
    known = finite_runs(runs)
    return float(known.mean()) if len(known) else None
