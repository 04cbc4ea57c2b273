"""What a study measured: one array of lengths x arms x seeds per outcome, NaN where no run is.

Outcomes have the names of summary.json: a task's name; "tasks" (standardised and averaged inside
the run); "heldout:token" (the mean over ratios) and, with several ratios, "heldout:token@0.15", …;
"evaluation:NAME:METRIC". Others are for internal use: "unigram:token" (the loss of word frequencies
on the same masks), "dev:NAME", "cost:steps", and "plain:tasks" (the mean without standardising).

Standardising divides a task's scores by their pooled SD: over the runs of all arms about their own
arm's mean, and at least one test item. One run of each arm has no such SD, and scores stay as they
are. Tasks where lower is better count with the other sign in "tasks".
"""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import DIFFUSION, LOWER_IS_BETTER, NATS, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.files import ArmSummary, Contrast, Record, Study
from maskwise.folders import finite

Numbers: TypeAlias = NDArray[np.float64]

QUANTITIES = ("steps", "tokens", "targets", "flops")
TOLERANCE = 0.05
"""Two arms are matched in a quantity if they differ by no more."""
ALL_TASKS = "all tasks"
"""Like "tasks", including tasks that pre-training does not help."""


@dataclass(frozen=True)
class Measure:
    """What is known of an outcome; ``chance`` is the score of guessing."""

    unit: str
    metric: str | None = None
    higher_is_better: bool = True
    chance: float | None = None
    items: int | None = None


class Outcomes:
    """The numbers of a study's runs, and what is known of its arms and outcomes.

    Attributes:
        lines: the records by kind.
        values: by outcome, the numbers by ``lengths`` (shares of the steps; whole runs are the
            last), ``arms`` and the study's seeds.
        parts: by held-out outcome, the outcomes of its ratios.
        failed: (arm, seed) of the whole runs that failed.
        counted: the tasks of the primary outcome (``study.helps``).
        gate: the primary row of a gate that did not pass; ``closed`` are the pairs it closes.

    Raises:
        MaskwiseError: a number that is not finite or measured twice, an unknown arm or seed, an arm
            without runs, or a task that was measured in some runs only.
    """

    def __init__(
        self, records: Iterable[Record], study: Study, *, counted: Sequence[str] | None = None
    ):
        self.study = study
        self.arms = [*study["arms"], REFERENCE, OWN_TASK, OTHER_TASKS]
        self.lines: dict[str, list[Record]] = defaultdict(list)
        fractions = {1.0}
        known = [*study["arms"], REFERENCE]
        for record in records:
            arm = record.get("arm")
            if arm is not None and arm not in known:
                raise unknown_name("arm in records", arm, known)
            self.lines[record["kind"]].append(record)
            fractions.add(record.get("fraction", 1.0))
        self.lengths = sorted(fractions)
        self.values: dict[str, Numbers] = {}
        self.measures: dict[str, Measure] = {}
        self.parts: dict[str, list[str]] = {}
        self.gate: Contrast | None = None
        self.closed: list[tuple[str, str]] = []
        self.failed = {
            (line["arm"], line["seed"])
            for line in self.lines["failure"]
            if line.get("fraction", 1.0) == 1
        }
        self.tasks = self._read_scores()
        self.heldout = self._read_heldout()
        self.evaluations = self._read_evaluations()
        for line in self.lines["cost"]:
            for key, value in line.items():
                if key in QUANTITIES and value:
                    self._put(f"cost:{key}", line, value)
        for parts in (self.tasks, *self.parts.values()):
            self._leave_out_partial_runs(parts)
        for name, parts in self.parts.items():
            self.values[name] = np.mean([self.values[part] for part in parts], axis=0)
        for arm in study["arms"]:
            failed = any(name == arm for name, _ in self.failed)
            means = [self.mean(outcome, arm) for outcome in self.measures]
            if not failed and set(means) <= {None}:
                raise MaskwiseError("an arm has no runs", got=arm, do="run the study to its end")
        self.plain = [*self.tasks, *self.heldout, *self.evaluations]
        self._add_sides_of_transfer()
        self.helped = {task: self._helped(task) for task in self.tasks}
        if counted is None:
            least = study.get("helps", 0.0)
            shares = self.helped.items()
            counted = [task for task, share in shares if share is None or share >= least]
        self.counted = [task for task in self.tasks if task in counted]
        self._average_tasks()

    def _put(self, outcome: str, record: Record, value: object) -> None:
        """Write a number into its place."""
        arm = record["arm"]
        seed = record["seed"]
        seeds = self.study["seeds"]
        where = f"{outcome} of arm {arm!r} with seed {seed}"
        if seed not in seeds:
            raise MaskwiseError("unknown seed in records", got=where, allowed=seeds)
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise MaskwiseError(f"{where} is not a finite number", got=value, do="rerun that stage")
        if outcome not in self.values:
            self.values[outcome] = np.full((len(self.lengths), len(self.arms), len(seeds)), np.nan)
        place = self.place(record)
        if not np.isnan(self.values[outcome][place]):
            raise MaskwiseError(f"{where} is measured twice", do="keep one line of records.jsonl")
        self.values[outcome][place] = value

    def place(self, record: Record) -> tuple[int, int, int]:
        """The position of a record's run in the arrays."""
        return (
            self.lengths.index(record.get("fraction", 1.0)),
            self.arms.index(record["arm"]),
            self.study["seeds"].index(record["seed"]),
        )

    def _read_scores(self) -> list[str]:
        for line in self.lines["score"]:
            task = line["task"]
            self._put(task, line, line["score"])
            dev = [score for score in line.get("dev", ()) if score is not None]
            if dev:
                self._put(f"dev:{task}", line, np.mean(dev))
            if task in self.measures:
                continue
            facts = self.study["tasks"].get(task, {})
            metric = facts.get("metric")
            chance = facts.get("majority")
            self.measures[task] = Measure(
                unit=NATS if metric == NATS else "score",
                metric=metric,
                higher_is_better=line.get("metric") not in LOWER_IS_BETTER,
                # A majority that depends on the tokenizer stands in the records.
                chance=line.get("majority") if chance is None else chance,
                items=facts.get("test_items"),
            )
        return list(self.measures)

    def _read_heldout(self) -> list[str]:
        ratios: dict[str, set[float]] = defaultdict(set)
        for line in self.lines["heldout"]:
            ratios[line["masks"]].add(line["ratio"])
            name = f"{line['masks']}@{line['ratio']:g}"
            self._put(f"heldout:{name}", line, line["loss"])
            if line.get("unigram") is not None:
                self._put(f"unigram:{name}", line, line["unigram"])
        for masks, known in ratios.items():
            self.parts[f"heldout:{masks}"] = [f"heldout:{masks}@{x:g}" for x in sorted(known)]
        names = [*self.parts]
        for parts in self.parts.values():  # a single ratio is the outcome itself
            names += parts if len(parts) > 1 else []
        self.measures |= dict.fromkeys(names, Measure(NATS, higher_is_better=False))
        return sorted(names)

    def _read_evaluations(self) -> list[str]:
        names = []
        for line in self.lines["evaluation"]:
            name = f"evaluation:{line['name']}:{line['metric']}"
            self._put(name, line, line["value"])
            if name in self.measures:
                continue
            names.append(name)
            unit = "perplexity" if "perplexity" in name else line["metric"]
            if line["chance"] is not None and line["higher_is_better"]:
                unit = "score"
            self.measures[name] = Measure(
                unit, line["metric"], line["higher_is_better"], line["chance"], line["items"]
            )
        return names

    def _leave_out_partial_runs(self, outcomes: Sequence[str]) -> None:
        """Leave a run that failed half-way out of all of these; others must have them all."""
        if not outcomes:
            return
        missing = np.isnan([self.values[outcome][-1] for outcome in outcomes])
        partial = missing.any(axis=0) & ~missing.all(axis=0)
        for arm, seed in np.argwhere(partial):
            run = self.arms[arm], self.study["seeds"][seed]
            if run not in self.failed:
                lacking = np.array(outcomes)[missing[:, arm, seed]]
                raise MaskwiseError(
                    "an outcome was measured in some runs only",
                    got=f"no {', '.join(lacking)} for arm {run[0]!r}, seed {run[1]}",
                    do="run the study to its end",
                )
        for outcome in outcomes:
            self.values[outcome][-1, partial] = np.nan

    def _add_sides_of_transfer(self) -> None:
        """Add the two arms that are means of arms, for each task by what they learned from."""
        learned = self.study.get("learned", {})
        for task in self.tasks if learned else ():
            own = [self.arms.index(arm) for arm, source in learned.items() if source == task]
            others = [self.arms.index(arm) for arm, source in learned.items() if source != task]
            runs = self.values[task]
            runs[:, self.arms.index(OWN_TASK)] = runs[:, own].mean(axis=1)
            runs[:, self.arms.index(OTHER_TASKS)] = runs[:, others].mean(axis=1)

    def _average_tasks(self) -> None:
        pooled = {task: self._pooled_sd(task) for task in self.tasks}
        for name in ("tasks", ALL_TASKS) if self.tasks else ():
            tasks = self.measured(name)
            metrics = {self.measures[task].metric for task in tasks}
            metric = metrics.pop() if len(metrics) == 1 else None
            unit = NATS if metric == NATS else "score"
            self.values[name] = self.values[f"plain:{name}"] = self._mean(tasks)
            if len({self.measures[task].unit for task in tasks}) == 1:  # nats and points do not mix
                self.measures[f"plain:{name}"] = Measure(unit, metric)
            if all(pooled.values()):
                unit = "SDs"
                self.values[name] = self._mean(tasks, [pooled[task] or 1.0 for task in tasks])
            self.measures[name] = Measure(unit, metric)

    def _mean(self, outcomes: Sequence[str], scales: Sequence[float] = ()) -> Numbers:
        """The mean over outcomes inside each run that has all of them; higher tasks are better."""
        signs = [1 if self.measures[name].higher_is_better else -1 for name in outcomes]
        scaled = [
            self.values[name] * sign / scale
            for name, sign, scale in zip(outcomes, signs, scales or [1.0] * len(outcomes))
        ]
        mean: Numbers = np.mean(scaled, axis=0)
        return mean

    def _pooled_sd(self, task: str) -> float | None:
        """The SD of whole runs about their arm's mean; None without two runs of an arm."""
        runs = self.values[task][-1, : len(self.study["arms"])]
        runs = runs[np.isfinite(runs).any(axis=1)]
        freedom = np.isfinite(runs).sum() - len(runs)
        if freedom == 0:
            return None
        deviations = runs - np.nanmean(runs, axis=1, keepdims=True)
        items = self.measures[task].items
        return max(math.sqrt(np.nansum(deviations**2) / freedom), 1 / items if items else 1e-3)

    def _helped(self, task: str) -> float | None:
        """The share of seeds in which the mean of all arms on dev is above the start.

        The mean of all arms does not change if two of them are exchanged, so leaving tasks out by
        it favours none. None where dev rows or the start were not measured.
        """
        start = self.runs(f"dev:{task}", REFERENCE)
        arms = np.array([self.runs(f"dev:{task}", arm) for arm in self.study["arms"]])
        known = np.isfinite(arms).any(axis=0) & np.isfinite(start)
        if not known.any():
            return None
        gains = np.nanmean(arms[:, known], axis=0) - start[known]
        return float(np.mean(gains > 0 if self.measures[task].higher_is_better else gains < 0))

    # What is known of arms and outcomes

    def runs(self, outcome: str, arm: str) -> Numbers:
        """The whole runs of an arm by seed; NaN where one is missing."""
        if outcome not in self.values:
            return np.full(len(self.study["seeds"]), np.nan)
        runs: Numbers = self.values[outcome][-1, self.arms.index(arm)]
        return runs

    def mean(self, outcome: str, arm: str) -> float | None:
        """The mean over whole runs; None without one."""
        runs = self.runs(outcome, arm)
        return float(np.nanmean(runs)) if np.isfinite(runs).any() else None

    def measured(self, outcome: str, *pair: str) -> list[str]:
        """What an outcome consists of: for "tasks", those that count, or all where none does."""
        if outcome == "tasks" and REFERENCE not in pair:
            return self.counted or self.tasks
        return self.tasks if outcome in ("tasks", ALL_TASKS) else [outcome]

    def compute(self, arm: str) -> dict[str, float]:
        """The mean cost of a whole run by quantity, where it was measured."""
        spent = {quantity: self.mean(f"cost:{quantity}", arm) for quantity in QUANTITIES}
        return {quantity: cost for quantity, cost in spent.items() if cost}

    def gap_nats(self, arm: str, *, of: str | None = None) -> float | None:
        """How far the loss on the arm's own masks is below that of word frequencies.

        The ratio with the largest gap counts.

        Args:
            of: the arm whose loss is taken; ``arm`` if not given.
        """
        gaps = []
        for outcome in self.own_heldout(arm):
            for part in self.parts.get(outcome, ()):
                unigram = self.runs(part.replace("heldout:", "unigram:", 1), of or arm)
                known = unigram - self.runs(part, of or arm)
                gaps += [float(np.nanmean(known))] if np.isfinite(known).any() else []
        return max(gaps, default=None)

    def describe(self, arm: str) -> ArmSummary:
        outcomes = [*self.tasks, *self.heldout, *self.evaluations]
        scores = {
            name: self.runs(name, arm).tolist()
            for name in outcomes
            if self.mean(name, arm) is not None
        }
        return {
            "units": self.units(arm),
            "gap_nats": self.gap_nats(arm),
            "failures": sum(name == arm for name, _ in self.failed),
            "compute": self.compute(arm),
            "scores": finite(scores),
        }

    def trained(self, name: str) -> list[str]:
        """The arms that were trained for one side of a contrast; several for sides of transfer."""
        if name in (OWN_TASK, OTHER_TASKS):
            return list(self.study["learned"])
        return [] if name == REFERENCE else [name]

    def is_lost(self, name: str, seed: int) -> bool:
        """Whether a run of this side and seed failed."""
        return any((arm, seed) in self.failed for arm in self.trained(name))

    def units(self, arm: str) -> str:
        """What the arm masks together: the value of a ``maskwise.masking.UnitKind``."""
        facts = self.study["arms"].get(arm)
        return facts.get("units", facts["policy"]) if facts else "token"

    def own_heldout(self, arm: str) -> list[str]:
        """The held-out losses on the arm's own kind of mask.

        On another kind a good model may be worse than word frequencies.
        """
        facts = self.study["arms"].get(arm)
        masks = facts.get("judged_on") if facts else None
        return [f"heldout:{kind}" for kind in masks or ["token"]]

    def formats(self, *names: str) -> set[str]:
        """The output formats of encoder-decoders; empty for other models."""
        masks = list[str]()
        for name in names:
            for arm in self.trained(name):
                masks += self.own_heldout(arm)
        # A format follows the units of the masks: "token sentinels", "token full".
        return {own.partition(" ")[2] for own in masks} - {""}

    def incomparable(self, arm: str, other: str, outcome: str) -> str | None:
        """The code of the flag on losses that measure different things in two arms; None if none.

        The bound of masked diffusion uncovers tokens in random order whatever arms mask together,
        so units do not matter to it.
        """
        names = (self.trained(arm) or [arm]) + (self.trained(other) or [other])
        facts = [self.study["arms"][name] for name in names if name in self.study["arms"]]
        tokenizers = {line["tokenizer"] for line in facts if "tokenizer" in line}
        measured = self.measured(outcome, arm, other)
        nats = any(self.measures[name].metric == NATS for name in measured)
        loss = is_loss(outcome)
        per_token = loss or nats or ":open-" in outcome or "per token" in outcome
        if per_token and len(tokenizers) > 1:
            return "different-tokenizers"
        if not loss or outcome == f"heldout:{DIFFUSION}":
            return None
        if outcome.startswith("heldout:") and len(self.formats(arm, other)) > 1:
            return "different-formats"
        return "different-units" if len({self.units(name) for name in names}) > 1 else None


def is_loss(outcome: str) -> bool:
    """Whether an outcome is a loss on masked text that was held out."""
    return outcome.startswith("heldout:") or "perplexity" in outcome
