"""Flags at the borders of their rules."""

from __future__ import annotations

from typing import Any

import pytest

from maskwise.verdict import Verdict, judge
from maskwise.verdict.statistics import best_guess, binomial_upper_bound
from verdict_tools import Runs, differing, table_of


def primary(*tasks: Runs, **study: Any) -> Verdict:
    table = table_of(*tasks, **study)
    (verdict,) = (one for one in judge(table, table) if one.primary)
    return verdict


def facts(verdict: Verdict, code: str) -> dict[str, Any] | None:
    return next((flag.facts for flag in verdict.flags if flag.code == code), None)


@pytest.mark.parametrize(("loss", "disagrees"), [(9, False), (10, True), (11, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_tasks_disagree_unless_the_plain_mean_is_on_the_side_of_the_test(
    loss: int, disagrees: bool, sign: int
) -> None:
    """A steady gain of ten thousandths on one task, and an uneven loss on the other."""
    steady = [10 * sign] * 8
    uneven = [-sign * (loss + 60 * (-1) ** seed) for seed in range(8)]
    verdict = primary(differing(steady), differing(uneven))
    assert verdict.p is not None and verdict.p < 0.05
    found = facts(verdict, "tasks-disagree")
    assert (found is not None) == disagrees
    assert verdict.decision == ("open" if disagrees else "decided")
    if found:
        assert found["plain"] == pytest.approx(sign * (10 - loss) / 2000, abs=1e-9)
        assert (found["ahead"], found["behind"]) == (("a", "b") if sign > 0 else ("b", "a"))


def levels(arm: float, baseline: float, start: float, runs: int = 8) -> Runs:
    """Both arms vary alike, so every pair of runs has the same difference."""
    noise = [1e-6 * run for run in range(runs)]
    arms = {"b": baseline, "a": arm, "start": start}
    return {name: [level + each for each in noise] for name, level in arms.items()}


def test_copies_of_a_run_are_no_evidence() -> None:
    """A model that is not trained, on a task that does not train it, has one score."""
    runs = {"b": [0.6] * 8, "a": [0.7] * 8, "start": [0.2] * 8}
    found = primary(runs)
    assert facts(found, "copies") == {"arms": ["a", "b"], "runs": 8}
    assert found.p is not None and found.p < 0.05 and found.decision == "open"
    assert facts(primary({**runs, "a": [0.7] * 7 + [0.71]}), "copies") is None


@pytest.mark.parametrize("more", [-0.001, 0.001])
@pytest.mark.parametrize("leading", ["a", "b"])
def test_an_arm_may_fail_if_its_lead_bears_fewer_failures_than_are_allowed(
    more: float, leading: str
) -> None:
    """The lead is the bound of the rate (none of eight failed) times the distance to the floor."""
    lead = 0.5 * (binomial_upper_bound(0, 8) + more)
    runs = levels(0.7, 0.7 - lead, 0.2)
    if leading == "b":
        runs = {"a": runs["b"], "b": runs["a"], "start": runs["start"]}
    table = table_of(runs, metric="accuracy")
    for learns in "ab":
        table.study["arms"]["a"]["policy"] = "token"
        table.study["arms"]["b"]["policy"] = "token"
        table.study["arms"][learns]["policy"] = "learned"
        (verdict,) = (one for one in judge(table, table) if one.primary)
        found = facts(verdict, "may-fail")
        assert (found is not None) == (more < 0 and learns == leading)
        assert verdict.decision == ("open" if found else "decided")
        if found:
            assert found["arms"] == [leading] and (found["failed"], found["runs"]) == (0, 8)


@pytest.mark.parametrize(("arm", "baseline"), [(0.0, 0.0), (0.001, 0.0), (0.0, 0.001), (0.1, 0.1)])
def test_arms_are_at_chance_unless_one_is_above_two_standard_errors(
    arm: float, baseline: float
) -> None:
    tasks = {"t0": {"metric": "accuracy", "majority": 0.5, "test_items": 400}}
    most = best_guess(0.5, 400, share=True)
    # The mean of eight equal numbers is exact.
    runs = {"b": [most + baseline] * 8, "a": [most + arm] * 8}
    verdict = primary(runs, metric="accuracy", tasks=tasks)
    at_chance = arm == baseline == 0.0
    assert verdict.raises("chance") == at_chance
    assert (verdict.decision == "not comparable") == at_chance


@pytest.mark.parametrize(
    ("arm", "baseline", "flagged"),
    [(1.0, 0.991, True), (0.991, 0.991, True), (1.0, 0.99, False), (0.99, 1.0, False)],
)
def test_a_task_is_full_if_both_arms_miss_less_than_one_item(
    arm: float, baseline: float, flagged: bool
) -> None:
    tasks = {"t0": {"metric": "accuracy", "test_items": 100}}
    runs = {"b": [baseline] * 6, "a": [arm] * 6}
    assert primary(runs, metric="accuracy", tasks=tasks).raises("ceiling") == flagged


@pytest.mark.parametrize(
    ("ratio", "flagged"),
    [(1.0, False), (1.0499, False), (0.9501, False), (1.051, True), (0.949, True)],
)
def test_compute_differs_from_five_per_cent_on(ratio: float, flagged: bool) -> None:
    costs = [
        {"kind": "cost", "arm": arm, "seed": seed, "steps": steps}
        for arm, steps in (("b", 100_000), ("a", round(100_000 * ratio)))
        for seed in range(6)
    ]
    verdict = primary(differing([5] * 6), more=costs)
    assert verdict.raises("compute") == flagged
    assert verdict.compute["ratios"] == {"steps": pytest.approx(ratio)}


def test_equal_results_are_noted_unless_the_scores_never_vary() -> None:
    varied = [0.5, 0.6, 0.55, 0.5, 0.7, 0.6]
    assert primary({"b": varied, "a": varied}).raises("identical")
    assert not primary({"b": [0.5] * 6, "a": [0.5] * 6}).raises("identical")
    assert not primary({"b": varied, "a": [0.51, *varied[1:]]}).raises("identical")
    # One run of each arm shows nothing, and no more do two tasks of which one differs.
    assert not primary({"b": [0.5], "a": [0.5]}).raises("identical")
    both = {"b": varied, "a": varied}, {"b": varied, "a": [0.51, *varied[1:]]}
    assert not primary(*both).raises("identical")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_missing_pairs_are_counted(lost: int) -> None:
    failed = [
        {"kind": "failure", "arm": "a", "seed": 6 + seed, "stage": "pretrain-1", "error": ""}
        for seed in range(lost)
    ]
    runs = differing([20 + seed for seed in range(6 + lost)])
    verdict = primary({"b": runs["b"], "a": runs["a"][:6]}, more=failed)
    found = facts(verdict, "missing-runs")
    assert (found or {}).get("missing", 0) == lost and verdict.n == 6


@pytest.mark.parametrize(("seen", "capped"), [((0, 5), False), ((0, 6), True), ((0, 8), False)])
def test_an_earlier_verdict_counts_if_it_could_decide_and_runs_changed(
    seen: tuple[int, int], capped: bool
) -> None:
    look = {"runs": seen[1], "seeds": [*range(*seen)], "contrasts": 1, "looks": None}
    verdict = primary(differing([20 + seed for seed in range(8)]), looked=[look])
    assert verdict.raises("looked-before") == capped
    assert verdict.decision == ("open" if capped else "decided")
