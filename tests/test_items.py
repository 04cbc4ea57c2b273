"""The error of a difference over test items, computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Any

import pytest

from maskwise.verdict.items import contributions, item_differences, paired_item_errors
from maskwise.verdict.outcomes import Outcomes
from verdict_tools import table_of

Sums = dict[str, list[Sequence[float]]]
"""The right answers in each group of test rows, for each run of each arm."""


def recorded(*tasks: Sums, sizes: Sequence[float] = (1,), same_texts: bool = False) -> Outcomes:
    lines: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        for arm, runs in task.items():
            for seed, sums in enumerate(runs):
                value = sum(sums) / (sum(sizes) if len(sizes) > 1 else sizes[0] * len(sums))
                line = {"kind": "task", "arm": arm, "seed": seed, "measure": f"t{number}"}
                line |= {"metric": "f1", "value": value}
                lines.append(line | {"item_sums": [*sums], "item_sizes": [*sizes]})
    described = {f"t{number}": {"metric": "f1"} for number in range(len(tasks))}
    if same_texts:
        described = {name: {**facts, "test_texts": "x"} for name, facts in described.items()}
    return table_of({"b": [], "a": []}, more=lines, tasks=described, seeds=[0, 1])


ONE: Sums = {
    "b": [[1, 0, 0, 1, 0], [1, 0, 1, 1, 0]],
    "a": [[1, 1, 0, 1, 0], [1, 1, 1, 0, 0]],
}
DIFFERENCES = [[0, 1, 0, 0, 0], [0, 1, 0, -1, 0]]


def error_of(runs: Sequence[Sequence[float]]) -> float:
    """The standard error over items of the mean over runs, which have the same items."""
    means = [sum(run[item] for run in runs) / len(runs) for item in range(len(runs[0]))]
    return stdev(means) / math.sqrt(len(means))


def measured(table: Outcomes, tasks: Sequence[str], pair: tuple[str, str]) -> float:
    found = paired_item_errors(table, tasks, pair)
    assert found is not None
    return found[0]


def test_the_error_is_that_of_the_mean_difference_of_each_item() -> None:
    table = recorded(ONE)
    found = item_differences(table, "t0", ("a", "b"))
    assert found is not None
    assert {seed: values.tolist() for seed, values in found.items()} == dict(enumerate(DIFFERENCES))
    error = error_of(DIFFERENCES)
    assert measured(table, ["t0"], ("a", "b")) == pytest.approx(error)
    assert measured(table, ["t0"], ("b", "a")) == pytest.approx(error)
    # Two tasks on other rows are independent; on the same rows, their differences are added.
    assert measured(recorded(ONE, ONE), ["t0", "t1"], ("a", "b")) == pytest.approx(
        error / math.sqrt(2)
    )
    same = recorded(ONE, ONE, same_texts=True)
    assert measured(same, ["t0", "t1"], ("a", "b")) == pytest.approx(error)


def test_contributions_have_the_score_as_their_mean() -> None:
    """3 of 8 right: group by group, score + (right − score · size) / mean size."""
    found = contributions({"item_sums": [2, 0, 1], "item_sizes": [2, 4, 2]})
    expected = [3 / 8 + (right - 3 / 8 * size) * 3 / 8 for right, size in ((2, 2), (0, 4), (1, 2))]
    assert found == pytest.approx(expected) and found.mean() == pytest.approx(3 / 8)
    assert contributions({"item_sums": [0, 0], "item_sizes": [0]}).tolist() == [0.0, 0.0]


def test_runs_with_their_own_items_are_independent() -> None:
    """The second run has four groups of rows, and the first has five."""
    own: Sums = {"b": [ONE["b"][0], [1, 0, 0, 0]], "a": [ONE["a"][0], [1, 1, 0, 1]]}
    first = stdev(DIFFERENCES[0]) / math.sqrt(5)
    second = stdev([0, 1, 0, 1]) / math.sqrt(4)
    error = measured(recorded(own), ["t0"], ("a", "b"))
    assert error == pytest.approx(math.hypot(first, second) / 2)


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_without_the_sums_of_a_run_there_is_no_error(lacking: str) -> None:
    table = recorded(ONE)
    (row,) = (row for row in table.scores["t0"] if (row.arm, row.seed) == (lacking, 1))
    del row.facts["item_sums"]  # type: ignore[attr-defined]
    assert item_differences(table, "t0", ("a", "b")) is None
    assert paired_item_errors(table, ["t0"], ("a", "b")) is None


def test_errors_on_other_groups_of_the_same_rows_are_added() -> None:
    """The jackknife of a task may have other groups."""
    few: Sums = {"b": [[1, 0, 0], [1, 0, 0]], "a": [[1, 1, 0], [1, 0, 1]]}
    table = recorded(ONE, few, same_texts=True)
    errors = error_of(DIFFERENCES), error_of([[0, 1, 0], [0, 0, 1]])
    found = measured(table, ["t0", "t1"], ("a", "b"))
    assert found == pytest.approx(sum(errors) / 2)


def test_one_group_of_rows_has_no_error() -> None:
    for sums, known in (([1], False), ([1, 0], True)):
        table = recorded({"b": [sums, sums], "a": [sums, sums]})
        assert (paired_item_errors(table, ["t0"], ("a", "b")) is not None) == known
