"""Small studies for tests of verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskwise.verdict.outcomes import Outcomes

Runs = Mapping[str, Sequence[float]]
"""The scores of each arm, in the order of its seeds."""


def table_of(*tasks: Runs, metric: str = "f1", **study: Any) -> Outcomes:
    """A study in which arm "b" is the baseline; scores are keyed by arm, one dict for each task."""
    arms = [arm for arm in tasks[0] if arm != "start"]
    seeds = range(max(len(runs) for task in tasks for runs in task.values()))
    lines = [
        {"kind": "task", "arm": arm, "seed": seed, "measure": f"t{number}", "metric": metric}
        | {"value": value}
        for number, task in enumerate(tasks)
        for arm, runs in task.items()
        for seed, value in enumerate(runs)
    ]
    lines += study.pop("more", [])
    facts = {"policy": "token", "ratio": "", "overrides": {}}
    described = {
        "baseline": "b",
        "seeds": [*seeds],
        "arms": {arm: dict(facts) for arm in arms},
        "untrained": {"start": "the start"} if "start" in tasks[0] else {},
        "contrasts": [[arm, "b"] for arm in arms if arm != "b"],
        "tasks": {f"t{number}": {"metric": metric} for number in range(len(tasks))},
    }
    return Outcomes(lines, {**described, **study})  # type: ignore[arg-type,typeddict-item]


def differing(differences: Sequence[int], *, base: int = 500) -> Runs:
    """Two arms whose scores differ by so many thousandths."""
    runs = [base + 7 * (seed % 3) for seed in range(len(differences))]
    return {
        "b": [run / 1000 for run in runs],
        "a": [(run + more) / 1000 for run, more in zip(runs, differences)],
    }
