"""Quality against compute: companions are never pooled, and what was never reached stays in."""

from __future__ import annotations

import pytest

from maskwise.study.verdict import summarise
from maskwise.study.verdict.gains import crossing
from report_fixture import COST, cost_record, heldout_record, make_study, run_facts, score_record

LENGTHS = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("goal", "at"), [(0.5, 2.0), (0.45, 1.5), (0.3, 1), (0.6, 4.0), (0.61, None), (0.55, 3.5)]
)
def test_the_first_crossing(goal, at):
    assert crossing([(1, 0.4), (2, 0.5), (3, 0.5), (4, 0.6)], goal) == (
        at if at is None else pytest.approx(at)
    )


def summary_of(
    rates: dict[str, list[float]], *, runs: int = 4, lost: tuple[str, int, float] | None = None
) -> dict:
    """A run with a share f of the steps scores .2 + rate · f; `rates` by arm and seed; `lost` is a
    failed one.
    """
    study = make_study(runs=runs, arms=dict.fromkeys(rates, 0), tasks=1)
    records = run_facts(study)
    for arm, by_seed in rates.items():
        for seed, rate in enumerate(by_seed):
            for f in LENGTHS:
                more = {} if f == 1 else {"fraction": f}
                if (arm, seed, f) == lost:
                    records.append(
                        {
                            "kind": "failure",
                            "arm": arm,
                            "seed": seed,
                            "stage": "x",
                            "error": "x",
                            **more,
                        }
                    )
                    continue
                records.append(score_record(arm, seed, "task-0", 0.2 + rate * f, **more))
                cost = {key: value * f for key, value in COST.items()}
                records += [] if f == 1 else [cost_record(arm, seed, **more, **cost)]
    return summarise(records, study)


def by_steps(summary: dict) -> dict[str, float | None]:
    """The first crossings by seed."""
    (row,) = (
        r
        for r in summary["efficiency"]["crossings"]
        if r["by"] == "steps" and r["outcome"] == "tasks"
    )
    return row["shares"]


def test_crossings_are_interpolated_per_seed():
    summary = summary_of({"token-15": [0.3, 0.32, 0.28, 0.3], "token-30": [0.6, 0.64, 0.56, 0.6]})
    assert by_steps(summary) == pytest.approx({"0": 0.5, "1": 0.5, "2": 0.5, "3": 0.5})
    assert {r["by"] for r in summary["efficiency"]["crossings"]} == {
        "steps",
        "tokens",
        "targets",
        "flops",
    }
    uneven = by_steps(summary_of({"token-15": [0.3] * 4, "token-30": [0.6, 0.4, 0.5, 0.6]}))
    assert uneven == pytest.approx({"0": 0.5, "1": 0.75, "2": 0.6, "3": 0.5})


def test_seeds_that_never_get_there_stay_in():
    shares = by_steps(summary_of({"token-15": [0.3] * 4, "token-30": [0.6, 0.4, 0.2, 0.1]}))
    assert shares == {"0": pytest.approx(0.5), "1": pytest.approx(0.75), "2": None, "3": None}
    soon = by_steps(summary_of({"token-15": [0.1] * 4, "token-30": [0.9] * 4}))
    assert set(soon.values()) == {0.25}  # there in the shortest run


def test_a_seed_whose_companion_failed_is_left_out():
    rates = {"token-15": [0.3] * 4, "token-30": [0.6] * 4}
    summary = summary_of(rates, lost=("token-30", 2, 0.5))
    assert list(by_steps(summary)) == ["0", "1", "3"]
    assert summary["contrasts"][0]["n"] == 4 and summary["arms"]["token-30"]["failures"] == 0


def test_companions_are_never_pooled_with_full_runs():
    rates = {"token-15": [0.3, 0.32, 0.28, 0.3], "token-30": [0.4, 0.43, 0.38, 0.39]}
    with_companions = summary_of(rates)
    study = make_study(runs=4, arms=dict.fromkeys(rates, 0), tasks=1)
    full = [
        score_record(a, s, "task-0", 0.2 + r)
        for a, by_seed in rates.items()
        for s, r in enumerate(by_seed)
    ]
    without = summarise(full + run_facts(study), study)
    assert with_companions["contrasts"] == without["contrasts"]
    assert without["efficiency"]["crossings"] == []
    points = with_companions["efficiency"]["points"]
    assert len(points) == 2 * 4 * 4 and {p["fraction"] for p in points} == set(LENGTHS)
    assert (
        points[0]["values"]["task-0"] == pytest.approx(0.2 + 0.3 * 0.25)
        and points[0]["steps"] == 100
    )


def test_losses_fall_towards_quality():
    assert crossing([(1, -5.0), (2, -4.0)], -4.5) == 1.5


def test_the_bound_of_masked_diffusion_has_crossings_whatever_arms_mask_together():
    arms = {"token-15": 0.0, "token-30": 0.0}
    study = make_study(runs=6, arms=arms, tasks=0)
    study["arms"]["token-30"]["units"] = "whole-word"
    for facts in study["arms"].values():
        facts["judged_on"] = ["diffusion"]
    records = run_facts(study)
    for arm in arms:
        for seed in range(6):
            for f in LENGTHS:
                more = {} if f == 1 else {"fraction": f}
                loss = 6.0 - (2.0 if arm == "token-30" else 1.5) * f + 0.01 * seed
                records.append(heldout_record(arm, seed, "diffusion", loss) | more)
                cost = {key: value * f for key, value in COST.items()}
                records += [] if f == 1 else [cost_record(arm, seed, **more, **cost)]
    times = summarise(records, study)["efficiency"]["crossings"]
    assert {row["outcome"] for row in times} == {"heldout:diffusion"}
