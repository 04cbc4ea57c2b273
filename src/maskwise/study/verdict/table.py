"""The outcomes of a study, checked; and what is known of every arm, task and outcome.

Companion runs (a "fraction" below 1) are kept apart, by fraction: they are never pooled with whole
runs. Records with ``"role": "gate"`` are of runs that only the gate compares; ``summarise`` makes a
table of their own of them.

Standardising: a task's scores are divided by its pooled SD, over the runs of all arms about their
    own arm's mean ("how
much do runs differ that differ in nothing but the seed"), and never by less than one test item.
With one run of each arm there is no such SD, and scores stay as they are (unit "score"). A task
that is better when it is lower counts with the other sign in "tasks", which is always better when
it is higher.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from maskwise.constants import (
    CORRELATIONS,
    DIFFUSION,
    NATS,
    OTHER_TASKS,
    OWN_TASK,
    PLATEAU_NATS,
    REFERENCE,
)
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.files import ArmSummary, Contrast, Record, Study, TaskFacts
from maskwise.study.outcomes import QUANTITIES, Outcomes, evaluation_name
from maskwise.study.verdict.transfer import diagonal

ALL_TASKS = "all tasks"  # as "tasks", also of those that cannot tell
TOLERANCE = 0.05  # two arms count as matched in a quantity if they differ by no more
SHARES = ("accuracy", "exact-match", "exact_match")  # of items, with binomial noise
# how far above chance a score may lie that says nothing, where the number of items is not known
CHANCE_MARGIN = 0.02


class Table(Outcomes):
    """The whole runs, checked for gaps; ``companions`` by fraction; and what else records and
    study.json say.

    Attributes:
        selection: by arm, what a search chose for it; one record for each replicate, one for all in
            older studies.
        closed: by pair, the primary row of the gate that closes it.
        failed_gate: the primary row of the gate, if it did not pass.
        counted: the tasks that count in the primary outcome; by ``study.helps`` where they are not
            given.

    Raises:
        MaskwiseError: an arm without runs, a name that is no arm, or a task that was measured in
            some runs only.
    """

    def __init__(
        self, records: Sequence[Record], study: Study, *, counted: Sequence[str] | None = None
    ):
        self.study = study
        self.failed: dict[str, set[int]] = defaultdict(set)
        self.selection: dict[str, list[Record]] = defaultdict(list)
        self.closed: dict[tuple[str, str], Contrast] = {}
        self.failed_gate: Contrast | None = None
        self.overlap: list[Record] = []
        self.evaluation_facts: dict[str, Record] = {}
        self.scores: dict[str, list[Record]] = defaultdict(list)
        whole = []
        for record in records:
            self._note(record)
            if record.get("fraction", 1.0) == 1:
                whole.append(record)
        super().__init__(whole, study["seeds"])
        arms = {arm for by_arm in self.outcomes.values() for arm in by_arm}
        for arm in study["arms"]:
            if arm not in arms and arm not in self.failed:
                raise MaskwiseError(
                    "an arm has no runs", got=arm, do="run the study to its end, or drop the arm"
                )
        for names in (self.tasks, *self.parts.values()):
            self._check_whole(names, arms)
        self.heldout = sorted(name for name in self.outcomes if name.startswith("heldout:"))
        pooled = {task: self._pooled_sd(task) for task in self.tasks}
        learned = study.get("learned")
        if learned:
            lost = set().union(*(self.failed[arm] for arm in learned))
            self.failed |= {OWN_TASK: lost, OTHER_TASKS: lost}
            for task in self.tasks:
                self.outcomes[task].update(diagonal(self.outcomes[task], task, learned))
        self.unit = "SDs" if all(pooled.values()) else "score"
        scale = pooled if self.unit == "SDs" else {}
        self.helped = {task: self._helped(task) for task in self.tasks}
        least = study.get("helps", 0.0)
        if counted is None:
            counted = [
                task for task, share in self.helped.items() if share is None or share >= least
            ]
        self.counted = [task for task in self.tasks if task in counted]
        primary = self.counted or self.tasks
        for name, tasks in (("tasks", primary), (ALL_TASKS, self.tasks)):
            self.average(name, tasks, scale)
            self.average(f"plain:{name}", tasks)
        self.companions: dict[float, Outcomes] = {}
        for fraction in sorted({r["fraction"] for r in records if r.get("fraction", 1.0) < 1}):
            shorter = Outcomes(
                [r for r in records if r.get("fraction") == fraction], study["seeds"]
            )
            if set(shorter.tasks) == set(self.tasks):
                shorter.average("tasks", primary, scale)
            self.companions[fraction] = shorter

    def _note(self, record: Record) -> None:
        """Keep what a record says beside its numbers; what it says of test items holds for runs of
        every length.
        """
        kind, arm = record["kind"], record.get("arm")
        known = [*self.study["arms"], REFERENCE]
        if arm is not None and arm not in known:
            raise unknown_name("arm in records", arm, known)
        if kind == "failure" and record.get("fraction", 1.0) == 1:
            self.failed[record["arm"]].add(record["seed"])
        elif kind == "selection":
            self.selection[record["arm"]].append(record)
        elif kind == "overlap":
            self.overlap.append(record.copy())
            self.overlap[-1].pop("kind")
        elif kind == "score":
            self.scores[record["task"]].append(record)
        elif kind == "evaluation":
            self.evaluation_facts.setdefault(evaluation_name(record), record)

    def _check_whole(self, names: Sequence[str], arms: set[str]) -> None:
        """Every run has every task and ratio. A run that failed half-way is left out of them,
        whole.
        """
        for arm in arms:
            for seed in {seed for name in names for seed in self.values(name, arm)}:
                missing = [name for name in names if seed not in self.values(name, arm)]
                if missing and seed not in self.failed.get(arm, ()):  # a recorded failure excuses
                    what = "a held-out ratio" if missing[0].startswith("heldout:") else "a task"
                    raise MaskwiseError(
                        f"{what} was measured in some runs only",
                        got=f"no {', '.join(missing)} for arm {arm!r}, seed {seed}",
                        do="run the study to its end",
                    )
                for name in names if missing else []:
                    self.values(name, arm).pop(seed, None)

    def _pooled_sd(self, task: str) -> float | None:
        """The SD over runs about their arm's mean, at least one test item; None without two runs of
        an arm.
        """
        runs = [
            np.array(list(s.values()))
            for arm, s in self.outcomes[task].items()
            if arm != REFERENCE and s
        ]
        freedom = sum(len(x) - 1 for x in runs)
        if freedom == 0:
            return None
        items = self.task_facts(task).get("test_items")
        sd = math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in runs) / freedom)
        return max(sd, 1 / items if items else 1e-3)

    # What is known of arms and outcomes
    # -----------------------------------------------------------------

    @property
    def matched_by(self) -> str | None:
        match = self.study.get("match")
        return match["by"] if match else None

    def task_facts(self, task: str) -> TaskFacts:
        return self.study["tasks"].get(task, {})

    def _helped(self, task: str) -> float | None:
        """The share of the runs in which pre-training helps on a task: the mean of all arms on dev
        is above the start.

        The mean of all arms, so that it stays the same if two of them are exchanged: leaving tasks
        out by it takes nothing from a test of their difference. None where dev rows or the start
        were not measured.
        """
        dev = self.outcomes.get(f"dev:{task}", {})
        helped = []
        for seed, start in dev.get(REFERENCE, {}).items():
            scores = [
                dev[arm][seed] for arm in dev if arm in self.study["arms"] and seed in dev[arm]
            ]
            if scores:
                helped.append(self.sign[task] * (np.mean(scores) - start) > 0)
        return float(np.mean(helped)) if helped else None

    def judged_by(self, outcome: str, *pair: str) -> str:
        """The outcome that compares two arms: against the start all tasks count, whether or not
        pre-training helps.
        """
        return ALL_TASKS if outcome == "tasks" and REFERENCE in pair else outcome

    def measured(self, outcome: str, *pair: str) -> list[str]:
        """The outcomes that were measured for this one: for "tasks", those that count, or all where
        none does.
        """
        if outcome != "tasks":
            return [outcome]
        return self.tasks if REFERENCE in pair else self.counted or self.tasks

    def higher_is_better(self, outcome: str) -> bool:
        if outcome.startswith("heldout:"):
            return False
        if outcome in self.sign:
            return self.sign[outcome] > 0
        return (
            outcome not in self.evaluation_facts
            or self.evaluation_facts[outcome]["higher_is_better"]
        )

    def units(self, arm: str) -> str:
        """What the arm masks together: the value of a ``maskwise.masking.UnitKind``."""
        if arm == REFERENCE:
            return "token"
        facts = self.study["arms"].get(arm)
        # not an arm of its own: see ``transfer``
        return facts.get("units", facts["policy"]) if facts else "token"

    def behind(self, name: str) -> list[str]:
        """The arms that were trained behind a name: those that learned their policies where it is
        made of arms.
        """
        return (
            [*self.study["learned"]]
            if name in (OWN_TASK, OTHER_TASKS)
            else []
            if name == REFERENCE
            else [name]
        )

    def formats(self, *names: str) -> set[str]:
        """What the encoder–decoders behind these names write; nothing of other models."""
        facts = [
            self.study["arms"][arm]
            for name in names
            for arm in self.behind(name)
            if arm in self.study["arms"]
        ]
        # The format stands behind the units of the masks: "token sentinels", "token full".
        written = {masks.partition(" ")[2] for each in facts for masks in each.get("judged_on", ())}
        return written - {""}

    def incomparable(self, arm: str, other: str, outcome: str) -> str | None:
        """Why an outcome measures different things in two arms: "different-tokenizers",
        "different-formats", "different-units", or nothing. Only losses do.

        The order in which the bound of masked diffusion uncovers tokens is random, whatever the
        arms mask together.
        """
        names = [name for side in (arm, other) for name in self.behind(side) or [side]]
        facts = [self.study["arms"][name] for name in names if name in self.study["arms"]]
        tokenizers = {each["tokenizer"] for each in facts if "tokenizer" in each}
        nats = any(
            self.task_facts(task).get("metric") == NATS
            for task in self.measured(outcome, arm, other)
        )
        masked = is_loss(outcome)
        per_token = masked or nats or ":open-" in outcome or "per token" in outcome
        if per_token and len(tokenizers) > 1:
            return "different-tokenizers"
        if not masked or outcome == f"heldout:{DIFFUSION}":
            return None
        if outcome.startswith("heldout:") and len(self.formats(arm, other)) > 1:
            return "different-formats"
        return "different-units" if len({self.units(name) for name in names}) > 1 else None

    def own_heldout(self, arm: str) -> list[str]:
        """The held-out losses on the arm's own kind of mask: on the other kind, a good model may
        lie above unigram.
        """
        facts = self.study["arms"].get(arm)
        own = facts.get("judged_on") if facts else None
        if own is None:
            # The reference, and arms of a study.json that was made by hand, are judged by what
            # their units are.
            own = ["token" if self.units(arm).startswith("token") else "whole-word"]
        return [f"heldout:{masks}" for masks in own]

    def gap_nats(self, arm: str, *, of: str | None = None) -> float | None:
        """Mean of unigram − loss (``of`` another arm) on the arm's own kind of mask, at the ratio
        of the largest.
        """
        gaps = []
        for name in (part for own in self.own_heldout(arm) for part in self.parts.get(own, [])):
            losses = self.values(name, of or arm)
            unigram = self.values(name.replace("heldout:", "unigram:", 1), of or arm)
            known = [unigram[seed] - losses[seed] for seed in losses if seed in unigram]
            if known:
                gaps.append(float(np.mean(known)))
        return max(gaps, default=None)

    def at_floor(self, arm: str) -> bool:
        """Whether the arm predicts its own masks hardly better than word frequencies do, or worse."""
        gap = self.gap_nats(arm)
        return gap is not None and gap < PLATEAU_NATS

    def fell_back(self, arm: str) -> bool:
        """Whether the arm is at the floor, and its start was above it on the same masks."""
        start = self.gap_nats(arm, of=REFERENCE)
        return self.at_floor(arm) and start is not None and start >= PLATEAU_NATS

    def chance(self, outcome: str) -> tuple[float | None, int | None]:
        """The score of a model that knows nothing, and the number of items; None where it is not
        known.
        """
        if outcome in self.evaluation_facts:
            record = self.evaluation_facts[outcome]
            return record["chance"], record["items"]
        facts = self.task_facts(outcome)
        majority = facts.get("majority")
        if majority is None:  # it depends on the tokenizer, and so stands in the records
            known = (line.get("majority") for line in self.scores[outcome])
            majority = next((value for value in known if value is not None), None)
        if majority is None and "majority" not in facts and facts.get("classes"):
            majority = 1 / facts["classes"]
        return majority, facts.get("test_items")

    def at_chance(self, outcome: str, arm: str) -> bool:
        """Whether the mean score is at most chance + 2 standard errors of such a share, or
        correlation, of the items.

        Where chance is not known, nothing is called chance.
        """
        chance, items = self.chance(outcome)
        scores = self.values(outcome, arm)
        if chance is None or not scores:
            return False
        mean = float(np.mean(list(scores.values())))
        if not self.higher_is_better(outcome):
            return mean >= chance
        if not items:
            return mean <= chance + CHANCE_MARGIN
        # Of n pairs that have nothing to do with each other, a correlation has a variance of about
        # 1/n.
        correlation = self.task_facts(outcome).get("metric") in CORRELATIONS
        variance = 1.0 if correlation else max(chance * (1 - chance), 0)
        return mean <= chance + 2 * math.sqrt(variance / items)

    def noise_of_items(self, task: str, arms: Sequence[str]) -> float | None:
        """The variance of a mean score over the test items, from resampled sentences and documents
        where records have that; None where neither their spread is known nor the score a share of
        them.
        """
        errors = [
            line["item_error"] ** 2
            for line in self.scores[task]
            if line.get("item_error") is not None
        ]
        if errors:
            return float(np.mean(errors))
        items = self.chance(task)[1]
        scores = [score for arm in arms for score in self.values(task, arm).values()]
        if not items or not scores:
            return None
        spreads = [
            line["item_sd"] ** 2 for line in self.scores[task] if line.get("item_sd") is not None
        ]
        if spreads:
            return float(np.mean(spreads)) / items
        facts = self.evaluation_facts.get(task) or self.task_facts(task)
        share = min(max(float(np.mean(scores)), 0.0), 1.0)
        return share * (1 - share) / items if facts.get("metric") in SHARES else None

    def compute(self, arm: str) -> dict[str, float]:
        """What a whole run of the arm cost, by quantity: the mean of what was measured, else what
        was planned.
        """
        match = self.study.get("match")
        planned = match["arms"].get(arm, {}) if match else {}
        measured = [cost for (name, _), cost in self.cost.items() if name == arm]
        compute = {}
        for key in QUANTITIES:
            values = [cost[key] for cost in measured if key in cost]
            value = float(np.mean(values)) if values else planned.get(key)
            if value:
                compute[key] = float(value)
        return compute

    def describe(self, arm: str, words: str) -> ArmSummary:
        outcomes = [*self.tasks, *self.heldout, *self.evaluations]
        measured = {name: self.values(name, arm) for name in outcomes if self.values(name, arm)}
        seeds = self.study["seeds"]
        return {
            "units": self.units(arm),
            "gap_nats": self.gap_nats(arm),
            "failures": len(self.failed.get(arm, ())),
            "compute": self.compute(arm),
            "scores": {
                name: [by_seed.get(seed) for seed in seeds] for name, by_seed in measured.items()
            },
            "words": words,
        }


def is_loss(outcome: str) -> bool:
    """Whether an outcome is a loss on masked text that was held out."""
    return outcome.startswith("heldout:") or "perplexity" in outcome
