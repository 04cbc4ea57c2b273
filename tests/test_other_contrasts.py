"""``benchmarks/other_contrasts.py``: contrasts of a record that were not its primary ones."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from other_contrasts import estimates

from maskwise.base.folders import read_lines

pytestmark = pytest.mark.script

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def scores_of(study: str, arm: str, task: str) -> np.ndarray:
    """Return the test scores of an arm, in the order of the seeds."""
    lines = read_lines(RESULTS / study / "records.jsonl")
    found = [
        (line["seed"], line["value"])
        for line in lines
        if line["kind"] == "task"
        and (line["arm"], line["measure"], line["split"]) == (arm, task, "test")
    ]
    return np.array([value for _, value in sorted(found)])


def exact_p(differences: np.ndarray) -> float:
    """Return the p value of the sign-flip test, by listing all splits."""
    signs = np.array(list(product([1, -1], repeat=len(differences))))
    sums = np.abs(signs @ differences)
    return float((sums >= sums[0] - 1e-12).mean())


def test_contrasts_between_any_arms_replace_the_planned_ones() -> None:
    """The difference is that of the records; the gate of the study closes nothing."""
    rows = estimates(RESULTS / "trex-nouns", [("supervised", "random"), ("random", "salient")])
    assert [(row["arm"], row["baseline"], row["outcome"]) for row in rows] == [
        ("supervised", "random", "tasks"),
        ("random", "salient", "tasks"),
    ]
    p_values: list[float] = []
    for row in rows:
        arm, baseline = (
            scores_of("trex-nouns", str(row[side]), "nouns") for side in ("arm", "baseline")
        )
        differences = arm - baseline
        assert row["n"] == len(differences) == 10
        assert row["mean"] == pytest.approx(differences.mean())
        assert differences.min() < row["low"] < row["mean"] < row["high"] < differences.max()
        p_values.append(exact_p(differences))
    # Holm's correction for the two contrasts of this call.
    smaller, larger = sorted(p_values)
    expected = {smaller: 2 * smaller, larger: max(2 * smaller, larger)}
    assert [row["p"] for row in rows] == [expected[p] for p in p_values]


def test_single_tasks_are_shown_on_demand() -> None:
    study, task = "samplers-replication", "ud-relations"
    rows = estimates(RESULTS / study, [("uniform", "mlm")], (task,))
    assert [row["outcome"] for row in rows] == ["tasks", task]
    expected = scores_of(study, "uniform", task) - scores_of(study, "mlm", task)
    assert rows[1]["mean"] == pytest.approx(expected.mean()) and rows[1]["p"] is None
