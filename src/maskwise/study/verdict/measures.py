"""Numbers by outcome, arm and seed: of the full runs, or of the companions of one length. Checked on the way in.

Outcomes are named as in summary.json: a task's name; "tasks" (all of them, standardised and averaged inside the
run); "heldout:token" (the mean over the ratios that were evaluated) and, where there are several,
"heldout:token@0.15", …; "evaluation:NAME:METRIC" for what needs no fine-tuning.
"""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError

BySeed: TypeAlias = dict[int, float]
ByArm: TypeAlias = dict[str, BySeed]


class Measures:
    """Outcome → arm → seed → number, of the full runs or of the companions of one fraction."""

    def __init__(self, records: Sequence[Mapping[str, Any]], known: Mapping[str, Any]):
        self.outcomes: dict[str, ByArm] = defaultdict(lambda: defaultdict(dict))
        self.unigram: dict[str, ByArm] = defaultdict(lambda: defaultdict(dict))
        self.cost: dict[tuple[str, int], Mapping[str, Any]] = {}
        kinds: dict[str, set[float]] = defaultdict(set)
        for record in records:
            if record["kind"] == "heldout":
                kinds[record["masks"]].add(record.get("ratio", 0.15))
        self.parts = {
            f"heldout:{masks}": [f"heldout:{masks}@{ratio:g}" for ratio in sorted(ratios)]
            if len(ratios) > 1
            else [f"heldout:{masks}"]
            for masks, ratios in kinds.items()
        }
        for record in records:
            kind = record["kind"]
            if kind not in ("score", "heldout", "evaluation", "cost"):
                continue
            arm, seed = record["arm"], record["seed"]
            if seed not in known["seeds"]:
                raise MaskwiseError(
                    f"a record of arm {arm!r} has a seed that the study has not",
                    got=seed,
                    allowed=known["seeds"],
                )
            if kind == "cost":
                self.cost[arm, seed] = record
            elif kind == "score":
                self._put(record["task"], record, record["score"])
            elif kind == "evaluation":
                self._put(evaluation_name(record), record, record["value"])
            else:
                name = f"heldout:{record['masks']}"
                name += f"@{record.get('ratio', 0.15):g}" if len(self.parts[name]) > 1 else ""
                self._put(name, record, record["loss"])
                if record.get("unigram") is not None:
                    self.unigram[name][arm][seed] = float(record["unigram"])
        self.tasks = list(dict.fromkeys(r["task"] for r in records if r["kind"] == "score"))
        self.evaluations = list(
            dict.fromkeys(evaluation_name(r) for r in records if r["kind"] == "evaluation")
        )
        for name, parts in self.parts.items():
            if len(parts) > 1:
                self._mean_over(parts, name)

    def _put(self, name: str, record: Mapping[str, Any], value: Any) -> None:
        place, seed = self.outcomes[name][record["arm"]], record["seed"]
        where = f"arm {record['arm']!r}, seed {seed}, {name}"
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise MaskwiseError(
                f"a record is not a finite number ({where})", got=repr(value), do="rerun that stage"
            )
        if seed in place:
            raise MaskwiseError(f"measured twice ({where})", do="keep one line of records.jsonl")
        place[seed] = float(value)

    def _mean_over(self, parts: list[str], name: str) -> None:
        """The mean over ratios, inside each run that has all of them."""
        for store in (self.outcomes, self.unigram):
            for arm in {arm for part in parts for arm in store[part]}:
                shared = set.intersection(*(set(store[part].get(arm, {})) for part in parts))
                store[name][arm] = {
                    s: float(np.mean([store[p][arm][s] for p in parts])) for s in sorted(shared)
                }

    def add_tasks(self, scale: Mapping[str, float | None]) -> None:
        """The outcome "tasks": standardised and averaged inside the run."""
        for arm in {arm for task in self.tasks for arm in self.outcomes[task]}:
            seeds = set.intersection(*(set(self.outcomes[task].get(arm, {})) for task in self.tasks))
            self.outcomes["tasks"][arm] = {
                s: float(np.mean([self.outcomes[t][arm][s] / (scale.get(t) or 1) for t in self.tasks]))
                for s in sorted(seeds)
            }


def evaluation_name(record: Mapping[str, Any]) -> str:
    """The name and the metric: a set of cloze facts has several."""
    return f"evaluation:{record['name']}:{record['metric']}"
