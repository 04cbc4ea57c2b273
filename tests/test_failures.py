"""Runs that fail: who is at the floor, and how many failures would cancel a lead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskwise.verdict.failures import at_floor, collapses_of, failures_of, floor_of
from maskwise.verdict.statistics import binomial_upper_bound
from verdict_tools import Runs, table_of


def of(runs: Runs, *, leads: bool = True, **study: Any) -> tuple[dict[str, Any], float | None]:
    table = table_of(runs, metric="accuracy", **study)
    found, break_even = failures_of(table, "t0", "a", "b", leads=leads)
    return found, break_even


def at(level: float, runs: int = 6) -> list[float]:
    return [level + 0.001 * (run % 3 - 1) for run in range(runs)]


@pytest.mark.parametrize(
    ("arm", "baseline", "start", "leads", "expected"),
    [
        # lead / distance of the leading side to the floor
        (0.8, 0.7, 0.5, True, 1 / 3),
        (0.7, 0.8, 0.5, False, 1 / 3),
        (0.6, 0.7, 0.5, False, 1 / 2),
        # The other side is at the floor, or below it: any lead outlasts all failures but the last.
        (0.8, 0.5, 0.5, True, 1.0),
        (0.8, 0.4, 0.5, True, 1.0),
        # Failures of a side at or below the floor do not lower its mean.
        (0.45, 0.4, 0.5, True, 1.0),
        (0.5, 0.4, 0.5, True, 1.0),
        (0.4, 0.45, 0.5, False, 1.0),
        # Without a lead, no failure is needed to cancel it.
        (0.7, 0.7, 0.5, True, 0.0),
    ],
)
def test_the_break_even_rate_is_the_lead_in_distances_to_the_floor(
    arm: float, baseline: float, start: float, leads: bool, expected: float
) -> None:
    runs = {"b": [baseline] * 6, "a": [arm] * 6, "start": [start] * 6}
    _, break_even = of(runs, leads=leads)
    assert break_even == pytest.approx(expected, abs=1e-9)


def test_without_a_floor_or_a_pair_there_is_no_break_even_rate() -> None:
    assert of({"b": at(0.5), "a": at(0.7)})[1] is None
    failed = [
        {"kind": "failure", "arm": "b", "seed": seed, "stage": "pretrain-1", "error": ""}
        for seed in range(6)
    ]
    runs = {"b": [], "a": at(0.7), "start": at(0.5)}
    found, break_even = of(runs, more=failed)
    assert break_even is None and found["baseline"]["failed"] == 6


def test_if_all_runs_of_the_leading_side_failed_nothing_is_left_of_its_lead() -> None:
    failed = [
        {"kind": "failure", "arm": "a", "seed": seed, "stage": "evaluate-1", "error": ""}
        for seed in range(6)
    ]
    found, break_even = of({"b": at(0.6), "a": at(0.7), "start": at(0.5)}, more=failed)
    assert (found["arm"]["failed"], break_even) == (6, 0.0)
    # Five of six leave a pair, so that there is a rate.
    found, break_even = of({"b": at(0.6), "a": at(0.7), "start": at(0.5)}, more=failed[:5])
    assert found["arm"]["failed"] == 5 and break_even == pytest.approx(0.5, abs=0.01)


def test_failures_are_counted_with_their_bound_and_leave_the_lead() -> None:
    """One run of the arm is at the floor; the lead of the others is .2 of a distance of .3."""
    runs = {"b": [0.6] * 6, "a": [0.5, *[0.8] * 5], "start": [0.5] * 6}
    found, break_even = of(runs)
    assert [(side["runs"], side["failed"]) for side in found.values()] == [(6, 1), (6, 0)]
    assert found["arm"]["high"] == binomial_upper_bound(1, 6)
    assert found["baseline"]["high"] == binomial_upper_bound(0, 6)
    assert break_even == pytest.approx(2 / 3)
    lead = collapses_of(table_of(runs, metric="accuracy"), "t0", "b", "a")
    assert lead[0] == 1 and lead[1] == pytest.approx(-0.2)


def test_an_arm_that_learns_its_masks_or_shares_may_fail() -> None:
    runs = {"b": at(0.6), "a": at(0.7), "start": at(0.5)}
    table = table_of(runs, metric="accuracy")
    table.study["arms"]["a"]["policy"] = "learned"
    found, _ = failures_of(table, "t0", "a", "b", leads=True)
    assert (found["arm"]["learned"], found["baseline"]["learned"]) == (True, False)


@pytest.mark.parametrize(
    ("low", "better", "failed"),
    [
        # A tenth of the mean of the better half, which is .60, or more.
        (0.06, [0.59, 0.6, 0.61], True),
        (0.0601, [0.59, 0.6, 0.61], False),
        # Below the better half by more than three times its range, and the floor as well.
        (0.24, [3.25, 3.75, 4.25], True),
        (0.25, [3.25, 3.75, 4.25], False),
        (-1.0, [3.01, 3.5, 4.0], True),
        (-1.0, [3.0, 3.5, 4.0], False),
    ],
)
def test_a_run_at_the_floor(low: float, better: list[float], failed: bool) -> None:
    """The better half has three of the six runs."""
    others = [better[0] - 0.01, better[0] - 0.02]
    assert at_floor(np.array([low, *others, *better])).tolist() == [failed, *[False] * 5]


def test_the_better_half_of_an_odd_number_has_the_middle() -> None:
    assert at_floor(np.array([0.0, 0.1, 1.0])).tolist() == [False] * 3
    assert at_floor(np.array([0.0, 0.9, 1.0])).tolist() == [True, False, False]


gains = st.lists(st.integers(-100, 1000), min_size=2, max_size=9)


@given(gains, st.integers(1, 5), st.randoms())
def test_the_floor_needs_no_order_and_no_unit(values: list[int], unit: int, order: Any) -> None:
    found = at_floor(np.array(values, dtype=float))
    assert at_floor(unit * np.array(values, dtype=float)).tolist() == found.tolist()
    places = [*range(len(values))]
    order.shuffle(places)
    mixed = at_floor(np.array(values, dtype=float)[places])
    assert mixed.tolist() == found[places].tolist()
    # The better half has learned, and a missing run is no failed one.
    assert found.sum() <= len(values) // 2
    missing = at_floor(np.array([*values, np.nan], dtype=float))
    assert missing.tolist() == [*found.tolist(), False]


def test_the_floor_of_a_mean_is_the_mean_of_the_floors() -> None:
    tasks = [{"b": at(0.6), "a": at(0.7), "start": at(start)} for start in (0.3, 0.5)]
    table = table_of(*tasks)
    expected = (0.3 / table.sds["t0"] + 0.5 / table.sds["t1"]) / 2
    floor = floor_of(table, "tasks")
    assert floor is not None and floor[1] == pytest.approx(expected)


def test_the_floor_of_a_loss_is_that_of_word_frequencies() -> None:
    lines = [
        {"kind": "heldout", "arm": arm, "seed": seed, "measure": "token", "ratio": ratio}
        | {"metric": "nats", "unit": "nats", "higher_is_better": False, "split": split}
        | {"value": value + seed / 100}
        for arm, loss in (("a", 3.0), ("b", 4.0))
        for seed in range(6)
        for ratio, more in ((0.15, 0.0), (0.4, 1.0))
        for split, value in (("test", loss + more), ("unigram", 6.0 + more))
    ]
    table = table_of({"b": at(0.6), "a": at(0.7)}, more=lines)
    floor = floor_of(table, "heldout:token")
    assert floor is not None
    assert floor.tolist() == pytest.approx([6.5 + seed / 100 for seed in range(6)])
    _, break_even = failures_of(table, "heldout:token", "a", "b", leads=True)
    assert break_even == pytest.approx(1 / 3)
