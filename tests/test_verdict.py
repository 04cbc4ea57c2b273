"""Verdicts on constructed cases, against the rules of methods, section 5."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from maskwise.errors import MaskwiseError
from maskwise.study.statistics import runs_to_decide
from maskwise.study.verdict import primary_pairs, summarise
from report_fixture import (
    advice_codes,
    codes,
    failure_record,
    judged,
    make_records,
    make_study,
    primary_rows,
    rows_of,
    score_record,
    study_of,
)


def test_ten_clear_runs_decide():
    arms = {"token-15": 0.0, "token-30": 0.03, "decay": 0.0}
    study = make_study(runs=10, arms=arms)
    summary = summarise(make_records(study, arms), study)
    clear, null = rows_of(summary)
    assert (clear["verdict"], clear["scope"], clear["better"]) == (
        "decided",
        "each arm tuned",
        "arm",
    )
    assert clear["p"] == 2 / 1024 and clear["p_adjusted"] == 4 / 1024  # Holm over two
    assert clear["natural"]["mean"] == pytest.approx(0.03, abs=0.006) and clear["unit"] == "SDs"
    assert (null["verdict"], null["better"]) == ("open", None)
    assert null["runs_to_decide"] is None or null["runs_to_decide"] > 10
    assert "token-30" in summary["headline"] and summary["verdict"] == "decided"
    assert advice_codes(primary_rows(summary))[0] == "use"
    json.dumps(summary, allow_nan=False)


TIE = {
    "token-15": [0.70, 0.71, 0.69, 0.70, 0.72, 0.68],
    "token-30": [0.71, 0.70, 0.70, 0.69, 0.72, 0.69],
}


def test_arms_whose_interval_lies_within_the_margin_do_not_differ_in_what_matters():
    study, records = study_of(TIE)
    (row,) = rows_of(summarise(records, study))
    assert row["verdict"] == "open"  # without a margin nothing is called equal
    (row,) = rows_of(summary := summarise(records, study | {"margin": 0.05}))
    assert (row["verdict"], row["better"], row["runs_to_decide"]) == (
        "no difference that matters",
        None,
        None,
    )
    assert row["equivalence"] == pytest.approx(
        {"margin": 0.05, "confidence": 0.95, "low": -0.01, "high": 0.01}
    )
    assert summary["verdict"] == "no difference that matters"
    (row,) = rows_of(summarise(records, study | {"margin": 0.009}))
    assert row["verdict"] == "open"


@pytest.mark.parametrize(("runs", "most"), [(5, 0), (6, 1), (7, 3), (8, 6)])
def test_so_many_contrasts_can_so_few_runs_call_equal(runs, most):
    """With too few runs for an interval at 1 − .05/k there is none, and everything stays open."""
    base = [0.70, 0.71, 0.69, 0.70, 0.72, 0.68, 0.70, 0.71]
    for contrasts in range(1, 7):
        tie = {
            f"token-{20 + i}": [x + 0.001 * (-1) ** s for s, x in enumerate(base[:runs])]
            for i in range(contrasts)
        }
        study, records = study_of({"token-15": base[:runs]} | tie, margin=0.05)
        verdicts = {row["verdict"] for row in rows_of(summarise(records, study))}
        assert verdicts == {"no difference that matters" if contrasts <= most else "open"}


def test_a_margin_leaves_a_look_to_come_its_share_of_the_error():
    study, records = study_of({arm: [*runs, *runs] for arm, runs in TIE.items()}, margin=0.05)
    found = [rows_of(summarise(records, study | {"looks": looks}))[0] for looks in (None, [12, 24])]
    assert found[0]["equivalence"]["confidence"] == 0.95 < found[1]["equivalence"]["confidence"]
    study, records = study_of(TIE, margin=0.05, looks=[6, 12])
    # six runs have no interval at that level
    assert rows_of(summarise(records, study))[0]["verdict"] == "open"


SHARED = {
    "random": [0.10, 0.06, 0.08, 0.12],
    "oracle": [0.80, 0.70, 0.76, 0.78],
    "meta": [0.70, 0.71, 0.66, 0.72],
    "none": [0.0, 0.01, 0.0, 0.02],
}


def test_the_share_of_a_gain_is_that_of_the_mean_gains_over_pairs():
    study, records = study_of(SHARED)
    meta, none = summarise(records, study | {"share": ("oracle", "random")})["shares"]
    gains = {arm: np.mean(SHARED[arm]) - np.mean(SHARED["random"]) for arm in SHARED}
    assert (meta["arm"], meta["task"], meta["n"], meta["failed"]) == ("meta", "task-0", 4, 0)
    assert meta["share"] == pytest.approx(gains["meta"] / gains["oracle"])
    assert meta["low"] < meta["share"] < meta["high"] and none["high"] < 0
    assert "shares" not in summarise(records, study)


def test_runs_that_failed_outright_are_counted_and_not_averaged():
    """One learning in ten fails: the interval is of the others, and the failures have their own."""
    whole = [0.70, 0.66, 0.68, 0.72, 0.69, 0.71, 0.67, 0.70, 0.73, 0.68]
    gains = [0.60, 0.55, 0.02, 0.62, 0.57, 0.61, 0.56, 0.59, 0.63, 0.58]
    scores = {
        "random": [0.1] * 10,
        "oracle": [0.1 + x for x in whole],
        "meta": [0.1 + x for x in gains],
    }
    study, records = study_of(scores, share=("oracle", "random"))
    (meta,) = summarise(records, study)["shares"]
    learned = [i for i, gain in enumerate(gains) if gain > 0.1]
    expected = np.mean([gains[i] for i in learned]) / np.mean([whole[i] for i in learned])
    assert (meta["n"], meta["failed"], meta["share"]) == (10, 1, pytest.approx(expected))
    assert (meta["failed_low"], meta["failed_high"]) == pytest.approx((0.0025, 0.445), abs=1e-3)
    assert 0.8 < meta["low"] < expected < meta["high"] < 0.9
    # An arm that gains a little in every run has not failed in any of them.
    weak = [0.02, 0.20, 0.05, 0.15, 0.09, 0.12, 0.03, 0.18, 0.11, 0.07]
    study, records = study_of(
        scores | {"meta": [0.1 + x for x in weak]}, share=("oracle", "random")
    )
    (meta,) = summarise(records, study)["shares"]
    assert meta["failed"] == 0 and meta["share"] == pytest.approx(np.mean(weak) / np.mean(whole))


def test_shares_stay_within_one_output_format():
    study, records = study_of(SHARED, share=("oracle", "random"))
    for arm, masks in (
        ("random", "token full"),
        ("oracle", "token full"),
        ("meta", "token sentinels"),
    ):
        study["arms"][arm]["judged_on"] = [masks]
    meta, none = summarise(records, study)["shares"]
    assert meta["share"] is None and "format" in meta["sentence"] and none["share"] is not None


def test_there_is_no_share_of_nothing():
    study, records = study_of(SHARED)
    for row in summarise(records, study | {"share": ("none", "random")})["shares"]:
        assert (row["share"], row["low"], row["high"]) == (None, None, None)
    study, records = study_of({arm: scores[:1] for arm, scores in SHARED.items()})
    meta, _ = summarise(records, study | {"share": ("oracle", "random")})["shares"]
    assert meta["share"] == pytest.approx(0.6 / 0.7) and meta["low"] is None


def test_a_difference_that_is_decided_is_not_equal_however_small():
    better = [x + 0.02 for x in TIE["token-15"]]
    row = judged({"token-15": TIE["token-15"], "token-30": better}, margin=0.05)
    assert (row["verdict"], row["better"]) == ("decided", "arm")


def test_below_six_runs_there_is_no_p_no_interval_and_no_decision():
    for runs in (2, 3, 5):
        study, records = study_of(
            {"token-15": [0.5 + 0.001 * i for i in range(runs)], "token-30": [0.9] * runs}
        )
        summary = summarise(records, study)
        (row,) = rows_of(summary)
        assert (row["verdict"], row["p"], row["low"], row["runs_to_decide"]) == (
            "open",
            None,
            None,
            6,
        )
        assert advice_codes(primary_rows(summary)) == ["add-seeds"]


def test_open_says_how_many_runs_would_decide():
    d = np.array([0.03, -0.01, 0.02, 0.04, -0.02, 0.01])
    row = judged({"token-15": [0.5] * 6, "token-30": (0.5 + d).tolist()})
    assert row["verdict"] == "open"
    assert row["runs_to_decide"] == runs_to_decide(d.std(ddof=1), d.mean())
    assert f"{row['runs_to_decide']} runs" in row["sentence"]


def test_seeds_times_tasks_are_never_pooled():
    """Eight tasks that are the same task eight times are still six runs: nothing gets surer."""
    scores = {
        "token-15": [0.50, 0.52, 0.55, 0.51, 0.50, 0.5],
        "token-30": [0.53, 0.52, 0.60, 0.52, 0.51, 0.48],
    }
    found = []
    for tasks in (1, 8):
        study = make_study(runs=6, arms=scores, tasks=tasks)
        records = [
            score_record(arm, s, task, x)
            for arm, row in scores.items()
            for s, x in enumerate(row)
            for task in study["tasks"]
        ]
        found.append(rows_of(summarise(records, study))[0])
    assert found[0]["n"] == found[1]["n"] == 6
    for key in ("mean", "low", "high", "p"):
        assert found[0][key] == pytest.approx(found[1][key])
    assert found[0]["verdict"] == found[1]["verdict"] == "open"


def test_a_task_of_wide_scores_does_not_outweigh_one_of_narrow_scores():
    """The arm wins by 2 SDs on a narrow task and loses by 1 SD on a task ten times as wide: it is
    ahead.
    """
    base = np.array([-1.0, 0, 1, 0])
    study = make_study(runs=4, tasks=2)
    records = []
    for arm, gains in (("token-15", (0, 0)), ("token-30", (2, -1))):
        for s in range(4):
            records.append(score_record(arm, s, "task-0", 0.5 + 0.01 * (base[s] + gains[0])))
            records.append(score_record(arm, s, "task-1", 0.5 + 0.10 * (base[s] + gains[1])))
    (row,) = rows_of(summarise(records, study))
    sd = math.sqrt(2 / 3)
    assert row["mean"] == pytest.approx((2 - 1) / 2 / sd)
    assert row["natural"]["mean"] < 0  # and the sentence must not sell these points
    assert "points" not in row["sentence"]


def test_equal_scores_do_not_divide_by_zero():
    study, records = study_of({"token-15": [0.5] * 3, "token-30": [0.5] * 3})
    summary = summarise(records, study)
    (row,) = rows_of(summary)
    assert (row["verdict"], row["mean"], row["runs_to_decide"]) == ("open", 0, None)
    json.dumps(summary, allow_nan=False)


SPEARMAN = {"metric": "spearman", "majority": 0.0, "classes": 0}


@pytest.mark.parametrize(
    ("facts", "first", "second", "void"),
    [
        # Majority .05 on 400 items: chance reaches to .05 + 2 · sqrt(.05 · .95 / 400) = .0718.
        ({}, 0.07, 0.07, True),
        ({}, 0.07, 0.075, False),
        ({}, 0.075, 0.03, False),
        # A correlation on 400 items: 2 · sqrt(1 / 400) = .1.
        (SPEARMAN, 0.09, 0.02, True),
        (SPEARMAN, 0.11, 0.02, False),
    ],
)
def test_chance_is_void_only_where_both_are_within_two_standard_errors(facts, first, second, void):
    study, records = study_of({"token-15": [first] * 3, "token-30": [second] * 3})
    study["tasks"]["task-0"] |= facts
    (row,) = rows_of(summarise(records, study))
    assert ("chance" in codes(row)) is void and (row["verdict"] == "not comparable") is void


def test_a_failed_run_costs_its_pair_only():
    arms = {"token-15": 0.0, "token-30": 0.03}
    study = make_study(runs=7, arms=arms)
    records = [r for r in make_records(study, arms) if (r["arm"], r.get("seed")) != ("token-30", 2)]
    failure = failure_record("token-30", 2)
    summary = summarise([*records, failure], study)
    assert rows_of(summary)[0]["n"] == 6 and summary["arms"]["token-30"]["failures"] == 1
    scores = summary["arms"]["token-30"]["scores"]["task-0"]
    assert [score is None for score in scores] == [False, False, True, False, False, False, False]
    others = [r for r in records if r["arm"] != "token-30"]
    failures = [failure | {"seed": s} for s in range(7)]
    (row,) = rows_of(summarise(others + failures, study))
    assert (row["verdict"], codes(row)[0], row["n"]) == ("not comparable", "no-pairs", 0)


def test_a_half_fine_tuned_failed_run_is_left_out_whole():
    study = make_study(runs=3)
    records = [r for r in make_records(study, {}) if r["kind"] == "score"]
    lost = ("token-30", 1, "task-1")
    cut = [r for r in records if (r["arm"], r["seed"], r["task"]) != lost]
    failure = failure_record("token-30", 1)
    assert rows_of(summarise([*cut, failure], study), "task-0")[0]["n"] == 2
    with pytest.raises(
        MaskwiseError, match=r"some runs only; got no task-1 for arm 'token-30', seed 1"
    ):
        summarise(cut, study)


def test_bad_records_are_told_in_one_line():
    study = make_study(runs=3)
    good = make_records(study, {})

    def told(records) -> str:
        with pytest.raises(MaskwiseError) as error:
            summarise(records, study)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "lacks seeds" in told([r for r in good if (r["arm"], r.get("seed")) != ("token-30", 2)])
    assert "no runs; got token-30" in told([r for r in good if r["arm"] != "token-30"])
    assert "not a finite number" in told([good[0] | {"score": math.nan}, *good[1:]])
    assert "not a finite number" in told([good[0] | {"score": None}, *good[1:]])
    assert "measured twice" in told([*good, good[0]])
    assert "unknown arm in records 'x'" in told([good[0] | {"arm": "x"}, *good])
    assert "allowed: [0, 1, 2]" in told([*good, good[0] | {"seed": 9}])


def test_the_reference_is_a_contrast_only_where_something_is_measured_of_it():
    study = make_study(
        runs=3, contrasts=[["token-30", "no-pretraining"], ["token-30", "no-pretraining"]]
    )
    assert primary_pairs(study) == [("token-30", "no-pretraining")]
    with pytest.raises(MaskwiseError, match=r"no-pretraining.*allowed: token-15, token-30"):
        primary_pairs(study | {"tasks": {}})
    assert primary_pairs(study | {"tasks": {}, "reference": "the unchanged model"})


def test_rows_that_are_not_primary_have_an_interval_and_no_verdict():
    arms = {"token-15": 0.0, "token-30": 0.05}
    for tasks in (2, 1):
        study = make_study(runs=10, arms=arms, tasks=tasks)
        summary = summarise(make_records(study, arms), study)
        assert rows_of(summary)[0]["verdict"] == "decided"
        for outcome in ("task-0", "heldout:token"):
            (row,) = rows_of(summary, outcome)
            assert row["low"] < row["mean"] < row["high"]
            assert (row["verdict"], row["better"], row["p"], row["p_adjusted"]) == (
                None,
                None,
                None,
                None,
            )


def test_without_tasks_the_held_out_loss_is_primary_and_lower_is_better():
    arms = {"token-15": 0.0, "token-30": 0.2}
    study = make_study(runs=6, arms=arms, tasks=0)
    summary = summarise(make_records(study, arms), study)
    (row,) = rows_of(summary, "heldout:token")
    assert (
        row["primary"] and row["mean"] < 0 and (row["verdict"], row["better"]) == ("decided", "arm")
    )
    assert "nats" in summary["headline"]


def test_the_headline_keeps_a_baseline_that_nothing_beats():
    study, records = study_of(
        {"token-15": [0.80 + 0.001 * i for i in range(6)], "token-30": [0.50] * 6}
    )
    summary = summarise(records, study)
    (row,) = rows_of(summary)
    assert (row["verdict"], row["better"]) == ("decided", "baseline")
    assert summary["headline"].startswith("Keep token-15")
    assert len(summary["headline"].split()) <= 20 and advice_codes(primary_rows(summary)) == [
        "keep"
    ]
    study, records = study_of({"token-15": [0.5, 0.6]})
    assert summarise(records, study)["contrasts"] == []


def test_of_several_gains_the_headline_names_the_arm_that_is_behind_no_other():
    # As in decay-claim: the largest gain is that over the worst constant ratio, by an arm that
    # another leaves behind.
    noise = [0.002, -0.001, 0.001, 0.0, -0.002, 0.001, -0.001, 0.002, 0.0, -0.002]
    means = {"c30": 0.619, "c15": 0.599, "d30": 0.618, "d45": 0.627}
    scores = {
        arm: [mean + 0.5 * noise[(i + j) % 10] for i in range(10)]
        for j, (arm, mean) in enumerate(means.items())
    }
    study, records = study_of(scores)
    study["contrasts"] = [("d30", "c15"), ("d30", "c30"), ("d45", "c15"), ("d45", "c30")]
    headline = summarise(records, study)["headline"]
    assert headline.startswith("d45 is 0.8") and "than c30" in headline
    study["contrasts"] = [("d30", "c15"), ("c15", "c30"), ("d30", "c30")]
    assert summarise(records, study)["headline"].startswith("c30 is 2")
