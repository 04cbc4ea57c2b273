"""The long table of a study: for every outcome, arm and seed one number; and means of outcomes
inside a run.

What runs are compared by is named as in summary.json: a task's name; "tasks" (all of them,
standardised and averaged inside the run); "heldout:token" (the mean over the ratios that were
evaluated) and, where there are several, "heldout:token@0.15", …; "evaluation:NAME:METRIC" for what
needs no fine-tuning. Beside these, "unigram:token" is the loss of word frequencies on the same
masks, "dev:NAME" the score of a task on its dev rows, and "plain:tasks" the mean over tasks that
are not standardised.
"""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from maskwise.constants import LOWER_IS_BETTER
from maskwise.errors import MaskwiseError
from maskwise.files import Record

BySeed: TypeAlias = dict[int, float]

QUANTITIES = ("steps", "tokens", "targets", "flops")


class Outcomes:
    """The numbers of the whole runs, or of the companion runs of one length.

    Attributes:
        outcomes: outcome → arm → seed → number.
        sign: by task, −1 where lower is better.
        parts: by held-out outcome, the outcomes of its ratios.
        cost: by arm and seed, what a run spent.

    Raises:
        MaskwiseError: a number that is not finite, is there twice, or has a seed that the study
            does not have.
    """

    def __init__(self, records: Sequence[Record], seeds: Sequence[int]):
        self.outcomes: dict[str, dict[str, BySeed]] = defaultdict(lambda: defaultdict(dict))
        self.sign: dict[str, int] = {}
        self.cost: dict[tuple[str, int], dict[str, float]] = {}
        measured = [r for r in records if r["kind"] in ("score", "heldout", "evaluation", "cost")]
        ratios: dict[str, set[float]] = defaultdict(set)
        for record in measured:
            if record["kind"] == "heldout":
                ratios[record["masks"]].add(record["ratio"])
        for record in measured:
            arm, seed = record["arm"], record["seed"]
            if seed not in seeds:
                what = f"a record of arm {arm!r} has a seed that the study does not have"
                raise MaskwiseError(what, got=seed, allowed=seeds)
            if record["kind"] == "cost":
                self.cost[arm, seed] = quantities(record)
            elif record["kind"] == "score":
                task = record["task"]
                self.sign[task] = -1 if record.get("metric") in LOWER_IS_BETTER else 1
                self._put(task, record, record["score"])
                dev = [value for value in record.get("dev", ()) if value is not None]
                if dev:
                    self.outcomes[f"dev:{task}"][arm][seed] = sum(dev) / len(dev)
            elif record["kind"] == "evaluation":
                self._put(evaluation_name(record), record, record["value"])
            else:
                masks = record["masks"]
                name = f"{masks}@{record['ratio']:g}" if len(ratios[masks]) > 1 else masks
                self._put(f"heldout:{name}", record, record["loss"])
                unigram = record.get("unigram")
                if unigram is not None:
                    self.outcomes[f"unigram:{name}"][arm][seed] = float(unigram)
        self.tasks = list(self.sign)
        self.evaluations = [name for name in self.outcomes if name.startswith("evaluation:")]
        self.parts: dict[str, list[str]] = {}
        for masks, several in ratios.items():
            name = f"heldout:{masks}"
            self.parts[name] = [name]
            if len(several) > 1:
                self.parts[name] = [f"{name}@{ratio:g}" for ratio in sorted(several)]
                self.average(name, self.parts[name])

    def values(self, outcome: str, arm: str) -> BySeed:
        """The numbers of one outcome and arm by seed; empty where nothing was measured."""
        return self.outcomes.get(outcome, {}).get(arm, {})

    def average(
        self, name: str, parts: Sequence[str], scale: Mapping[str, float | None] | None = None
    ) -> None:
        """Add an outcome: the mean over others inside each run that has all of them.

        Args:
            scale: what a part is divided by; 1 where it is None. Tasks that are better when they
                are lower count with the other sign.
        """
        for arm in dict.fromkeys(arm for part in parts for arm in self.outcomes[part]):
            seeds = sorted(set.intersection(*(set(self.values(part, arm)) for part in parts)))
            rows = []
            for part in parts:
                divisor = (scale or {}).get(part) or 1
                by_seed = self.values(part, arm)
                rows.append([self.sign.get(part, 1) * by_seed[seed] / divisor for seed in seeds])
            self.outcomes[name][arm] = dict(zip(seeds, np.mean(rows, axis=0).tolist()))

    def _put(self, name: str, record: Record, value: object) -> None:
        by_seed, seed = self.outcomes[name][record["arm"]], record["seed"]
        where = f"arm {record['arm']!r}, seed {seed}, {name}"
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise MaskwiseError(
                f"a record is not a finite number ({where})", got=repr(value), do="rerun that stage"
            )
        if seed in by_seed:
            raise MaskwiseError(f"measured twice ({where})", do="keep one line of records.jsonl")
        by_seed[seed] = float(value)


def quantities(record: Mapping[str, object]) -> dict[str, float]:
    """What a cost record says of steps, tokens, targets and FLOPs."""
    return {
        key: value
        for key in QUANTITIES
        if isinstance(value := record.get(key), int | float) and value
    }


def evaluation_name(record: Record) -> str:
    """The outcome of an evaluation's record: by name and metric, for a set of cloze facts has
    several.
    """
    return f"evaluation:{record['name']}:{record['metric']}"
