"""Quality against compute: companions are never pooled, and what was never reached stays in."""

from __future__ import annotations

import pytest

from maskwise.study.verdict import crossing, summarise
from report_fixture import (
    COST,
    cost_record,
    failure_record,
    heldout_record,
    make_study,
    run_facts,
    score_record,
)

LENGTHS = (0.25, 0.5, 0.75, 1.0)
EVEN = {"token-15": [0.3, 0.32, 0.28, 0.3], "token-30": [0.6, 0.64, 0.56, 0.6]}


@pytest.mark.parametrize(
    ("goal", "at"), [(0.5, 2.0), (0.45, 1.5), (0.3, 1), (0.6, 4.0), (0.61, None), (0.55, 3.5)]
)
def test_the_first_crossing(goal, at):
    assert crossing([(1, 0.4), (2, 0.5), (3, 0.5), (4, 0.6)], goal) == pytest.approx(at)


def summary_of(
    rates: dict[str, list[float]],
    *,
    lengths: tuple[float, ...] = LENGTHS,
    lost: tuple[str, int, float] | None = None,
) -> dict:
    """A run with a share f of the steps scores .2 + rate · f; ``lost`` is a run that failed."""
    study = make_study(runs=4, arms=dict.fromkeys(rates, 0), tasks=1)
    records = run_facts(study)
    runs = [(arm, seed, part) for arm in rates for seed in range(4) for part in lengths]
    for arm, seed, part in runs:
        more = {} if part == 1 else {"fraction": part}
        if (arm, seed, part) == lost:
            records.append(failure_record(arm, seed, **more))
            continue
        records.append(score_record(arm, seed, "task-0", 0.2 + rates[arm][seed] * part, **more))
        if more:
            cost = {key: value * part for key, value in COST.items()}
            records.append(cost_record(arm, seed, **more, **cost))
    return summarise(records, study)


def by_steps(summary: dict) -> dict[str, float | None]:
    """The first crossings by seed."""
    rows = [row for row in summary["efficiency"]["crossings"] if row["outcome"] == "tasks"]
    assert [row["by"] for row in rows] == ["steps", "tokens", "targets", "flops"]
    return rows[0]["shares"]


def test_crossings_are_interpolated_per_seed():
    assert by_steps(summary_of(EVEN)) == pytest.approx({"0": 0.5, "1": 0.5, "2": 0.5, "3": 0.5})
    uneven = by_steps(summary_of({"token-15": [0.3] * 4, "token-30": [0.6, 0.4, 0.5, 0.6]}))
    assert uneven == pytest.approx({"0": 0.5, "1": 0.75, "2": 0.6, "3": 0.5})


def test_seeds_that_never_get_there_stay_in():
    shares = by_steps(summary_of({"token-15": [0.3] * 4, "token-30": [0.6, 0.4, 0.2, 0.1]}))
    assert shares == {"0": pytest.approx(0.5), "1": pytest.approx(0.75), "2": None, "3": None}
    soon = by_steps(summary_of({"token-15": [0.1] * 4, "token-30": [0.9] * 4}))
    assert set(soon.values()) == {0.25}  # there in the shortest run


def test_a_seed_whose_companion_failed_is_left_out():
    summary = summary_of(EVEN, lost=("token-30", 2, 0.5))
    assert list(by_steps(summary)) == ["0", "1", "3"]
    assert summary["contrasts"][0]["n"] == 4 and summary["arms"]["token-30"]["failures"] == 0


def test_companions_are_never_pooled_with_full_runs():
    both, whole = summary_of(EVEN), summary_of(EVEN, lengths=(1.0,))
    assert both["contrasts"] == whole["contrasts"]
    assert whole["efficiency"]["crossings"] == []
    points = both["efficiency"]["points"]
    assert len(points) == 2 * 4 * 4 and {point["fraction"] for point in points} == set(LENGTHS)
    assert points[0]["values"]["task-0"] == pytest.approx(0.2 + 0.3 * 0.25)
    assert points[0]["steps"] == 100


def test_the_bound_of_masked_diffusion_has_crossings_whatever_arms_mask_together():
    """A loss falls towards the quality."""
    study = make_study(runs=6, arms={"token-15": 0.0, "token-30": 0.0}, tasks=0)
    study["arms"]["token-30"]["units"] = "whole-word"
    records = run_facts(study)
    for arm, gain in (("token-15", 1.5), ("token-30", 2.0)):
        study["arms"][arm]["judged_on"] = ["diffusion"]
        for seed in range(6):
            short = heldout_record(arm, seed, "diffusion", 6.0 - gain / 2) | {"fraction": 0.5}
            records += [short, heldout_record(arm, seed, "diffusion", 6.0 - gain)]
            records.append(cost_record(arm, seed, fraction=0.5, steps=200))
    crossings = summarise(records, study)["efficiency"]["crossings"]
    assert {row["outcome"] for row in crossings} == {"heldout:diffusion"}
    assert set(crossings[0]["shares"].values()) == {0.75}
