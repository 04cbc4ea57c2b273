"""The rules by which a contrast is judged, on cases that are computed by hand or by other means."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from maskwise.verdict import Verdict, judge
from maskwise.verdict.judge import gained_nothing, worse_than_reference
from maskwise.verdict.statistics import look_weights, power_of, runs_to_decide
from verdict_tools import Runs, differing, table_of


def verdicts_on(*tasks: Runs, **study: Any) -> list[Verdict]:
    table = table_of(*tasks, **study)
    return [verdict for verdict in judge(table, table) if verdict.primary]


def verdict_on(*tasks: Runs, **study: Any) -> Verdict:
    (verdict,) = verdicts_on(*tasks, **study)
    return verdict


def share_of_flips(differences: Sequence[int]) -> Fraction:
    """The share of all 2^n choices of signs whose sum is at least as far from 0."""
    sums = [
        abs(sum(sign * one for sign, one in zip(signs, differences)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return Fraction(sum(each >= abs(sum(differences)) for each in sums), len(sums))


integers = st.lists(st.integers(-40, 40), min_size=6, max_size=9)


@given(integers)
@example([1, 2, 3, 4, 5, 6])  # few draws are decided
@example([-1, -2, -3, -4, -5, -6])
@settings(max_examples=60, deadline=None)
def test_p_is_the_share_of_all_flips(differences: list[int]) -> None:
    verdict = verdict_on(differing(differences))
    assert verdict.p == pytest.approx(float(share_of_flips(differences)), abs=1e-12)
    decided = share_of_flips(differences) < Fraction(1, 20)
    assert (verdict.decision == "decided") == decided
    assert (verdict.better is not None) == decided
    if decided:
        assert verdict.better == ("arm" if sum(differences) > 0 else "baseline")
    plain = verdict.natural
    assert plain and plain["mean"] == pytest.approx(sum(differences) / len(differences) / 1000)


@given(integers, st.booleans())
@settings(max_examples=40, deadline=None)
def test_swapped_arms_have_the_opposite_difference_and_the_same_p(
    differences: list[int], several: bool
) -> None:
    runs = differing(differences)
    tasks = [runs, {"a": runs["a"][::-1], "b": [0.5 + 0.003 * n for n in range(len(differences))]}]
    tasks = tasks if several else tasks[:1]
    verdict = verdict_on(*tasks)
    swapped = verdict_on(*({"a": task["b"], "b": task["a"]} for task in tasks))
    assert (swapped.p, swapped.decision) == (verdict.p, verdict.decision)
    assert verdict.mean == pytest.approx(-(swapped.mean or 0.0), abs=1e-9)
    low, high = verdict.estimate["low"], verdict.estimate["high"]
    assert low is not None and high is not None
    assert swapped.estimate["low"] == pytest.approx(-high, abs=1e-9)
    assert swapped.estimate["high"] == pytest.approx(-low, abs=1e-9)
    sides = {"arm": "baseline", "baseline": "arm", None: None}
    assert swapped.better == sides[verdict.better]


@given(integers, st.integers(-200, 200), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_constant_in_both_arms_and_the_order_of_seeds_change_nothing(
    differences: list[int], constant: int, order: Any
) -> None:
    verdict = verdict_on(differing(differences))
    moved = verdict_on(differing(differences, base=500 + constant))
    places = [*range(len(differences))]
    order.shuffle(places)
    runs = differing(differences)
    mixed = verdict_on({arm: [values[place] for place in places] for arm, values in runs.items()})
    for other in (moved, mixed):
        assert (other.p, other.decision, other.better) == (
            verdict.p,
            verdict.decision,
            verdict.better,
        )
        for end in ("mean", "low", "high"):
            assert (other.natural or {})[end] == pytest.approx((verdict.natural or {})[end])


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 5, 6])
def test_a_p_value_needs_six_pairs(pairs: int) -> None:
    verdict = verdict_on(differing([20 + pair for pair in range(pairs)]))
    assert (verdict.p is not None, verdict.p_adjusted is not None) == (pairs == 6, pairs == 6)
    assert verdict.decision == ("decided" if pairs == 6 else "open")


def test_each_of_several_contrasts_has_its_step_of_holms() -> None:
    """p of 2/128, 4/128 and 1: times 3, 2 and 1."""
    b = [0.5 + 0.01 * (seed % 3) for seed in range(7)]
    steps = {"all": [30, 31, 32, 33, 34, 35, 36], "most": [-1, 30, 31, 32, 33, 34, 35]}
    runs = {"b": b, "none": b}
    runs |= {arm: [x + step / 1000 for x, step in zip(b, own)] for arm, own in steps.items()}
    found = {verdict.arm: verdict for verdict in verdicts_on(runs)}
    raw = {arm: float(share_of_flips(own)) for arm, own in steps.items()} | {"none": 1.0}
    assert {arm: verdict.p for arm, verdict in found.items()} == pytest.approx(raw)
    assert raw["all"] == 2 / 128 and raw["most"] == 4 / 128
    adjusted = {"all": 3 * raw["all"], "most": 2 * raw["most"], "none": 1.0}
    assert {arm: verdict.p_adjusted for arm, verdict in found.items()} == pytest.approx(adjusted)
    decisions = {arm: verdict.decision for arm, verdict in found.items()}
    assert decisions == {"all": "decided", "most": "open", "none": "open"}


def test_a_look_counts_the_looks_so_far_and_no_later_ones() -> None:
    differences = [20, 21, 22, 23, 24, 25, -60, 40, -50, 30, -20, 10]
    looks = [6, 12]
    first, last = look_weights(looks)
    early = verdict_on(differing(differences[:6]), looks=looks)
    assert early.p == pytest.approx(2 / 64 / first) and 2 / 64 / last < early.p
    late = verdict_on(differing(differences), looks=looks)
    whole = float(share_of_flips(differences))
    assert late.p == pytest.approx(min(1.0, 2 / 64 / first, whole / last))
    # The runs of the first look decide at the last one, too.
    looks = [8, 12]
    first, last = look_weights(looks)
    strong = [20 + n for n in range(8)] + [-60, -80, -70, -90]
    assert 2 / 256 / first < float(share_of_flips(strong)) / last
    assert verdict_on(differing(strong), looks=looks).p == pytest.approx(2 / 256 / first)


# Numbers of runs, and the margin
# --------------------------------------------------------------------------------------------

OPEN = (-30, 25, -20, 40, 10, -5, 15, 30)
"""Differences in thousandths, with mean 8.1 and SD 25.1."""


def upper(differences: Sequence[int]) -> float:
    """The upper 80 % limit of their SD."""
    n = len(differences)
    mean = sum(differences) / n
    squares = sum((one - mean) ** 2 for one in differences)
    return (squares / float(chi2.ppf(0.2, n - 1))) ** 0.5


def test_no_number_of_runs_follows_from_the_measured_difference() -> None:
    for differences in (OPEN, OPEN[:4], OPEN[:2], [1, 2, 3, 4, 5]):
        verdict = verdict_on(differing(differences))
        assert verdict.decision == "open" and verdict.runs_to_decide is None
        # The difference that these runs find, or the fewest that can decide.
        found = verdict.detectable
        assert found is not None and found["runs"] == max(6, len(differences))
        assert found["difference"] is not None
        detects = 1000 * found["difference"] / upper(differences)
        assert power_of(1.0, detects, found["runs"]) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("margin", [12, 16, 20])
@pytest.mark.parametrize("more", [0, 1])
def test_the_number_of_runs_is_that_of_the_margin_and_of_the_upper_limit_of_the_sd(
    margin: int, more: int
) -> None:
    arms = {f"c{number}": differing(OPEN)["a"] for number in range(more)}
    found = verdicts_on({**differing(OPEN), **arms}, margin=margin / 1000)
    alpha = 0.05 / (1 + more)
    needed = next(
        runs for runs in range(6, 300) if power_of(upper(OPEN), margin, runs, alpha=alpha) >= 0.8
    )
    assert [verdict.runs_to_decide for verdict in found] == [max(needed, 9)] * (1 + more)


def test_at_least_one_run_more_is_needed_than_those_that_did_not_decide() -> None:
    differences = (0, 3, 6, 0, 3, 6, 0, 3)
    needed = runs_to_decide(upper(differences), 4.5)
    assert needed is not None and needed <= 8
    verdict = verdict_on(differing(differences), margin=0.0045)
    assert verdict.decision == "open" and verdict.runs_to_decide == 9


def test_what_no_number_of_runs_finds_has_none() -> None:
    verdict = verdict_on(differing(OPEN), margin=1e-6)
    assert verdict.decision == "open" and verdict.runs_to_decide is None
    # Nor is there one if all differences are equal, as their SD is unknown.
    verdict = verdict_on(differing([10] * 5), margin=0.005)
    assert (verdict.runs_to_decide, verdict.detectable) == (None, None)


def test_a_decided_difference_within_the_margin_is_too_small_to_matter() -> None:
    differences = [2, 3, 4, 3, 2, 3, 4, 3]
    for sign, better in ((1, "arm"), (-1, "baseline")):
        for margin, inside in ((0.003, False), (0.004, True), (None, False)):
            verdict = verdict_on(differing([sign * one for one in differences]), margin=margin)
            assert (verdict.decision, verdict.better) == ("decided", better)
            assert (verdict.equivalence is not None) == inside


def test_a_cap_leaves_nothing_but_an_open_verdict() -> None:
    before = [{"runs": 6, "seeds": [*range(6)], "contrasts": 1, "looks": None}]
    for differences in ([2, 3, 4, 3, 2, 3, 4, 3], [1, -1, 2, -2, 1, -1, 2, -2]):
        free = verdict_on(differing(differences), margin=0.01)
        assert free.equivalence is not None and free.decision != "open"
        capped = verdict_on(differing(differences), margin=0.01, looked=before)
        assert (capped.decision, capped.better, capped.equivalence) == ("open", None, None)
        assert capped.runs_to_decide is None and capped.p == free.p


# The start
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "worse"), [(0.49, []), (0.5, []), (0.51, ["b"]), (0.6, ["b", "a"])]
)
def test_an_arm_is_worse_than_the_start_if_its_mean_is_below(
    start: float, worse: list[str]
) -> None:
    table = table_of({"b": [0.5] * 6, "a": [0.55] * 6, "start": [start] * 6}, metric="accuracy")
    verdict = next(one for one in judge(table, table) if one.primary)
    assert worse_than_reference(verdict, table) == worse


@pytest.mark.parametrize(("start", "nothing"), [(0.54, False), (0.55, True), (0.6, True)])
def test_arms_have_gained_nothing_if_none_is_above_the_start(start: float, nothing: bool) -> None:
    """This is asked where a held-out loss decides."""
    losses = [
        {"kind": "heldout", "arm": arm, "seed": seed, "measure": "token", "ratio": 0.15}
        | {"metric": "nats", "unit": "nats", "higher_is_better": False, "value": value}
        for arm, value in (("b", 4.0), ("a", 3.9))
        for seed in range(6)
    ]
    table = table_of(
        {"b": [0.5] * 6, "a": [0.55] * 6, "start": [start] * 6},
        outcome="heldout:token@0.15",
        more=losses,
    )
    verdict = next(one for one in judge(table, table) if one.primary)
    assert verdict.outcome == "heldout:token" and gained_nothing(verdict, table) == nothing
