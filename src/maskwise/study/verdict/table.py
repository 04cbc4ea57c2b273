"""The full runs of a study, checked; and what is known of every arm, task and measure.

Companion runs (a "fraction" below 1) are kept apart, by fraction: they are never pooled with full ones.

Standardising: a task's scores are divided by its pooled SD, over the runs of all arms about their own arm's
mean ("how much do runs differ that differ in nothing but the seed"), never less than one test item. With one
run per arm there is no such SD and scores stay as they are (unit "score").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.study.verdict.measures import ByArm, Measures, evaluation_name

REFERENCE = "no-pretraining"
PLATEAU_NATS = 0.3  # a mean held-out loss less than this below unigram: the model has learnt word frequencies
WORD_UNITS = {
    *("whole-word", "word", "words", "span", "spans", "salient", "salient-span", "phrase", "phrases", "pmi"),
}
TOLERANCE = 0.05  # two arms count as matched in a quantity if they differ by no more
QUANTITIES = ("steps", "tokens", "targets", "flops", "seconds")


class Table(Measures):
    """The full runs, checked; `companions` by fraction; and what else the records and study.json say."""

    def __init__(self, records: list[Mapping[str, Any]], study: Mapping[str, Any]):
        self.study = study
        self.failed: dict[str, set[int]] = defaultdict(set)
        self.stopped: dict[str, Mapping[str, Any]] = {}
        self.selection: dict[str, Mapping[str, Any]] = {}
        self.overlap: list[dict[str, Any]] = []
        self.evaluation_facts: dict[str, Mapping[str, Any]] = {}
        for record in records:
            self._note(record)
        full = [record for record in records if record.get("fraction", 1.0) == 1.0]
        super().__init__(full, study)
        self.arms = {arm for by_arm in self.outcomes.values() for arm in by_arm}
        for arm in study["arms"]:
            if arm not in self.arms and arm not in self.failed and arm not in self.stopped:
                raise MaskwiseError(
                    "an arm has no runs", got=arm, do="run the study to its end, or drop the arm"
                )
        for names in (self.tasks, *self.parts.values()):
            self._check_whole(names)
        self.heldout = sorted(name for name in self.outcomes if name.startswith("heldout:"))
        self.scale = {task: self._pooled_sd(task) for task in self.tasks}
        self.unit = "SDs" if all(self.scale.values()) else "score"
        self.natural: ByArm = {}
        if self.tasks:
            self.add_tasks({})
            self.natural = self.outcomes.pop("tasks")
            self.add_tasks(self.scale if self.unit == "SDs" else {})
        self.companions: dict[float, Measures] = {}
        for fraction in sorted({r["fraction"] for r in records if r.get("fraction", 1.0) < 1.0}):
            found = Measures([r for r in records if r.get("fraction") == fraction], study)
            if self.tasks and set(found.tasks) == set(self.tasks):
                found.add_tasks(self.scale if self.unit == "SDs" else {})
            self.companions[fraction] = found

    def _note(self, record: Mapping[str, Any]) -> None:
        kind, arm = record["kind"], record.get("arm")
        known = [*self.study["arms"], REFERENCE]
        if arm is not None and arm not in known:
            raise unknown_name("arm in records", arm, known)
        if kind == "failure" and record.get("fraction", 1.0) == 1.0:
            self.failed[record["arm"]].add(record["seed"])
        elif kind == "stopped":
            self.stopped[record["arm"]] = record
        elif kind == "selection":
            self.selection[record["arm"]] = record
        elif kind == "overlap":
            self.overlap.append({key: value for key, value in record.items() if key != "kind"})
        elif kind == "evaluation":
            self.evaluation_facts.setdefault(evaluation_name(record), record)

    def _check_whole(self, names: Sequence[str]) -> None:
        """Every run has every task and ratio. A run that failed half-way is left out of them, whole."""
        for arm in self.arms:
            for seed in {seed for name in names for seed in self.outcomes[name].get(arm, {})}:
                missing = [name for name in names if seed not in self.outcomes[name].get(arm, {})]
                if missing and not self.excused(arm, seed):
                    what = "a held-out ratio" if missing[0].startswith("heldout:") else "a task"
                    raise MaskwiseError(
                        f"{what} was measured in some runs only",
                        got=f"no {', '.join(missing)} for arm {arm!r}, seed {seed}",
                        do="run the study to its end",
                    )
                for name in names if missing else []:
                    self.outcomes[name].get(arm, {}).pop(seed, None)

    def excused(self, arm: str, seed: int) -> bool:
        """Only a recorded failure, or an arm that was stopped, excuses a number that is missing."""
        return seed in self.failed.get(arm, ()) or arm in self.stopped

    def _pooled_sd(self, task: str) -> float | None:
        """SD over runs about their arm's mean, at least one test item; None without two runs of an arm."""
        runs = [
            np.array(list(s.values())) for arm, s in self.outcomes[task].items() if arm != REFERENCE and s
        ]
        freedom = sum(len(x) - 1 for x in runs)
        if freedom == 0:
            return None
        items = self.task_facts(task).get("test_items")
        sd = math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in runs) / freedom)
        return max(sd, 1 / items if items else 1e-3)

    # What is known of arms and measures ---------------------------------------------------------------

    @property
    def matched_by(self) -> str | None:
        return (self.study.get("match") or {}).get("by")

    def task_facts(self, task: str) -> Mapping[str, Any]:
        return self.study.get("tasks", {}).get(task, {})

    def higher_is_better(self, outcome: str) -> bool:
        if outcome.startswith("heldout:"):
            return False
        return bool(self.evaluation_facts.get(outcome, {}).get("higher_is_better", True))

    def units(self, arm: str) -> str:
        facts = self.study["arms"].get(arm, {})
        return str(facts.get("units") or facts.get("policy") or "token")

    def incomparable(self, arm: str, other: str) -> str | None:
        """Why a masked loss cannot compare two arms: "different-tokenizers", "different-units", or nothing."""
        cut = [self.study["arms"].get(name, {}).get("tokenizer") for name in (arm, other)]
        if None not in cut and cut[0] != cut[1]:
            return "different-tokenizers"
        return "different-units" if self.units(arm) != self.units(other) else None

    def own_heldout(self, arm: str) -> list[str]:
        """A loss on the other kind of mask may lie above unigram for a good model (methods, section 3.3)."""
        facts = self.study["arms"].get(arm, {})
        default = ["whole-word" if self.units(arm) in WORD_UNITS else "token"]
        return [f"heldout:{kind}" for kind in facts.get("judged_on") or default]

    def gap_nats(self, arm: str) -> float | None:
        """Mean of unigram − loss on the arm's own kind of mask, at the ratio (and kind) where it is largest."""
        gaps = []
        for name in (part for own in self.own_heldout(arm) for part in self.parts.get(own, [])):
            losses, unigram = self.outcomes[name].get(arm, {}), self.unigram[name].get(arm, {})
            known = [unigram[seed] - losses[seed] for seed in losses if seed in unigram]
            gaps += [float(np.mean(known))] if known else []
        return max(gaps, default=None)

    def on_plateau(self, arm: str) -> bool:
        gap = self.gap_nats(arm)
        return gap is not None and gap < PLATEAU_NATS

    def chance(self, outcome: str) -> tuple[float | None, int | None]:
        """(the score of who knows nothing, number of items); None where it is not known."""
        if outcome in self.evaluation_facts:
            facts = self.evaluation_facts[outcome]
            return facts.get("chance"), facts.get("items")
        facts = self.task_facts(outcome)
        guess = 1 / facts["classes"] if facts.get("classes") else None
        return facts.get("majority", guess), facts.get("test_items")

    def at_chance(self, outcome: str, arm: str) -> bool:
        """Mean score ≤ chance + 2 standard errors of that share on the items.

        Without items the margin is .02; where chance is not known nothing is called chance.
        """
        chance, items = self.chance(outcome)
        scores = self.outcomes[outcome].get(arm, {})
        if chance is None or not scores:
            return False
        mean = float(np.mean(list(scores.values())))
        if not self.higher_is_better(outcome):
            return mean >= chance
        margin = 2 * math.sqrt(max(chance * (1 - chance), 0) / items) if items else 0.02
        return mean <= chance + margin

    def compute(self, arm: str) -> dict[str, float]:
        """Steps, tokens, targets, FLOPs (and seconds, if planned) of a full run: measured, else as planned."""
        planned = ((self.study.get("match") or {}).get("arms") or {}).get(arm) or {}
        measured = [cost for (name, _), cost in self.cost.items() if name == arm]
        found = {}
        for key in QUANTITIES:
            values = [float(cost[key]) for cost in measured if cost.get(key)]
            value = float(np.mean(values)) if values else planned.get(key)
            if value:
                found[key] = float(value)
        return found

    def describe(self, arm: str) -> dict[str, Any]:
        stopped, selection = self.stopped.get(arm), self.selection.get(arm)
        return {
            "units": self.units(arm),
            "plateau": self.on_plateau(arm),
            "gap_nats": self.gap_nats(arm),
            "failures": len(self.failed.get(arm, ())),
            "stopped": {k: v for k, v in stopped.items() if k not in ("kind", "arm")} if stopped else None,
            "chosen": selection.get("chosen") if selection else None,
            "compute": self.compute(arm),
            "scores": {  # by seed, in the order of study["seeds"]; null where the run failed
                name: [self.outcomes[name][arm].get(seed) for seed in self.study["seeds"]]
                for name in [*self.tasks, *self.heldout, *self.evaluations]
                if self.outcomes[name].get(arm)
            },
        }

    def references(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in self.tasks:
            facts, scores = self.task_facts(task), self.outcomes[task].get(REFERENCE, {})
            found[task] = {REFERENCE: [scores[seed] for seed in sorted(scores)]}
            if facts.get("majority") is not None:
                found[task]["majority"] = facts["majority"]
        for name in self.heldout:
            values = [x for by_seed in self.unigram[name].values() for x in by_seed.values()]
            found[name] = {"unigram": float(np.mean(values)) if values else None}
            if losses := self.outcomes[name].get(REFERENCE):
                found[name][REFERENCE] = [losses[seed] for seed in sorted(losses)]
        for name in self.evaluations:
            keys = ("metric", "items", "chance", "higher_is_better")
            found[name] = {key: self.evaluation_facts[name].get(key) for key in keys}
        return found
