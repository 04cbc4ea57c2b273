"""Statistics against scipy and published examples; verdicts against the rules of methods, section 5."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from maskwise.errors import MaskwiseError
from maskwise.study.statistics import (
    almost_stochastic_order,
    average_ranks,
    bca_interval,
    detectable_difference,
    holm,
    interquartile_mean,
    interval_by_rule,
    nemenyi_critical_difference,
    paired_differences,
    paired_t_interval,
    power_of,
    probability_of_superiority,
    runs_needed,
    sign_flip_test,
    standardised_effect,
)
from maskwise.study.verdict import primary_contrasts, summarise
from report_fixture import heldout_record, make_records, make_study, score_record

# Darwin's maize, crossed minus self-fertilised, in eighths of an inch (Fisher 1935, sections 17 and 21)
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


# Statistics ---------------------------------------------------------------------------------------


def test_sign_flip_on_darwins_maize():
    assert sign_flip_test(MAIZE) == 1726 / 2**15  # Fisher counted 863 on one side


@pytest.mark.parametrize("runs, smallest", [(3, 0.25), (5, 0.0625), (8, 0.0078125), (10, 0.001953125)])
def test_the_smallest_p(runs, smallest):
    assert sign_flip_test(np.arange(1, runs + 1) / 7) == smallest


def test_sign_flip_is_scipys():
    rng = np.random.default_rng(3)
    for n in (4, 7, 11):
        d = rng.normal(0.4, 1, n)
        ours = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip_test(d) == pytest.approx(ours, abs=1e-12)


def test_sign_flip_counts_ties_in_spite_of_rounding():
    assert sign_flip_test([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1.0  # the sum is 0 but for rounding
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_sign_flip_beyond_sixteen_is_sampled_seeded_and_never_zero():
    d = np.random.default_rng(0).normal(0.5, 1, 20)
    exact = stats.ttest_1samp(d, 0).pvalue
    assert sign_flip_test(d) == sign_flip_test(d, seed=0) != sign_flip_test(d, seed=1)
    assert sign_flip_test(d) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test(np.ones(30), draws=999) == 1 / 1000


def test_paired_t_on_darwins_maize():
    low, high, method = paired_t_interval(MAIZE)
    assert (round(low, 2), round(high, 2), method) == (0.03, 41.84, "paired t")
    ours = stats.ttest_1samp(MAIZE, 0).confidence_interval(0.9)
    assert paired_t_interval(MAIZE, confidence=0.9)[:2] == pytest.approx((ours.low, ours.high))


def test_bca_is_scipys():
    d = np.random.default_rng(5).exponential(1, 25) - 0.5
    theirs = stats.bootstrap((d,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1))
    ours = bca_interval(d, resamples=40_000)
    assert ours[:2] == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert bca_interval([2.0] * 20)[:2] == (2, 2)


def test_the_interval_changes_its_method_at_twenty_runs():
    d = np.random.default_rng(0).normal(size=20)
    assert [interval_by_rule(d[:n]).method for n in (2, 19, 20)] == ["paired t", "paired t", "BCa"]


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_standardised_effect_has_hedges_correction():
    d = np.array([1.0, 2.0, 4.0])
    assert standardised_effect(d) == pytest.approx(1 / math.sqrt(math.pi) * d.mean() / d.std(ddof=1))
    d = np.random.default_rng(0).normal(1, 1, 30)
    assert standardised_effect(d) == pytest.approx(
        (1 - 3 / (4 * 29 - 1)) * d.mean() / d.std(ddof=1), rel=1e-4
    )
    assert math.isnan(standardised_effect([1.0, 2.0]))


def test_effects_are_scipys():
    a, b = [1.0, 3.0, 3.0, 7.0], [2.0, 3.0, 5.0]
    assert probability_of_superiority(a, b) == stats.mannwhitneyu(a, b).statistic / 12
    x = np.random.default_rng(0).normal(size=23)
    assert interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25))


def test_ranks_and_nemenyi():
    assert average_ranks([[0.9, 0.8, 0.7], [0.5, 0.5, 0.1]]).tolist() == [1.25, 1.75, 3.0]
    assert nemenyi_critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)  # Demšar (2006), 3.2.2
    table_5a = {2: 1.960, 3: 2.343, 5: 2.728, 10: 3.164}
    for arms, q in table_5a.items():
        found = nemenyi_critical_difference(arms, 1) / math.sqrt(arms * (arms + 1) / 6)
        assert found == pytest.approx(q, abs=1e-3)


def test_almost_stochastic_order():
    low, high = np.arange(10.0), np.arange(10.0) + 20
    assert almost_stochastic_order(high, low) == (0, 0)
    assert almost_stochastic_order(low, high) == (1, 1)
    assert almost_stochastic_order(low, low).epsilon == 0.5
    # quantiles 1, 4 against 2, 3: lost by 1 on one half, won by 1 on the other
    assert almost_stochastic_order([1, 4], [2, 3]).epsilon == pytest.approx(0.5)
    # quantiles on sixths: 0 0 3 3 6 6 against 1 1 1 4 4 4: lost 1, 1, 1 and won 2, 2, 2 over sixths
    assert almost_stochastic_order([0, 3, 6], [1, 4]).epsilon == pytest.approx(3 / 15)


@pytest.mark.parametrize("effect, runs", [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_runs_needed_is_gpowers(effect, runs):
    assert runs_needed(1.0, effect) == runs
    assert detectable_difference(1.0, runs) <= effect < detectable_difference(1.0, runs - 1)


def test_power_is_the_noncentral_t_and_has_no_holes():
    for n, shift in [(3, 1.0), (10, 0.7), (50, 0.3)]:
        critical, nc = stats.t.ppf(0.975, n - 1), shift * math.sqrt(n)
        theirs = stats.nct.sf(critical, n - 1, nc) + stats.nct.cdf(-critical, n - 1, nc)
        assert power_of(1.0, shift, n) == pytest.approx(theirs, abs=1e-5)
    assert power_of(1.0, 1e4, 2) == pytest.approx(1.0)  # scipy: nan
    assert runs_needed(1.0, 0.0) is None and runs_needed(0.0, 1.0) == 2 and runs_needed(1.0, 1e-5) is None


def test_numbers_are_checked():
    with pytest.raises(MaskwiseError, match=r"finite numbers.*nan"):
        sign_flip_test([1.0, math.nan])
    with pytest.raises(MaskwiseError, match=r"same seeds.*0, 1.*0, 2"):
        paired_differences({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0})
    assert paired_differences({1: 5.0, 0: 1.0}, {0: 0.5, 1: 2.0}).tolist() == [0.5, 3.0]


def test_the_test_keeps_its_level(runs=8, studies=600):
    """Without any effect, p < .05 comes up in at most 5 % of studies (exactly 12/256 at 8 runs)."""
    rng = np.random.default_rng(0)
    rate = np.mean([sign_flip_test(rng.standard_t(3, runs)) < 0.05 for _ in range(studies)])
    assert 0.02 < rate < 0.075


@pytest.mark.slow
def test_intervals_cover_as_methods_say():
    rng = np.random.default_rng(0)
    samples = {n: rng.normal(size=(2000, n)) for n in (3, 10)}
    for n, rows in samples.items():
        t = np.mean([(i := paired_t_interval(d)).low < 0 < i.high for d in rows])
        assert t == pytest.approx(0.95, abs=0.015)
        bca = np.mean([(i := bca_interval(d, resamples=1000)).low < 0 < i.high for d in rows])
        assert bca == pytest.approx({3: 0.71, 10: 0.90}[n], abs=0.03)


# Verdicts -----------------------------------------------------------------------------------------


def rows_of(summary: dict, outcome: str = "tasks") -> list[dict]:
    return [row for row in summary["contrasts"] if row["outcome"] == outcome]


def study_of(scores: dict[str, list[float]], **changes) -> tuple[dict, list[dict]]:
    """One task, one line per run."""
    study = make_study(runs=max(map(len, scores.values())), arms=dict.fromkeys(scores, 0), tasks=1, **changes)
    records = [score_record(arm, s, "task-0", x) for arm, row in scores.items() for s, x in enumerate(row)]
    return study, records


def test_ten_clear_runs_decide():
    arms = {"token-15": 0.0, "token-30": 0.03, "decay": 0.0}
    study = make_study(runs=10, arms=arms)
    summary = summarise(make_records(study, arms), study)
    clear, null = rows_of(summary)
    assert (clear["verdict"], clear["reason"], clear["better"]) == ("decided", "significant", "arm")
    assert clear["p"] == 2 / 1024 and clear["p_adjusted"] == 4 / 1024  # Holm over two
    assert clear["natural"]["mean"] == pytest.approx(0.03, abs=0.006) and clear["unit"] == "SDs"
    assert (null["verdict"], null["better"]) == ("undecided", None) and null["more_runs"] > 0
    assert summary["headline"].startswith("Masking 30 % of the tokens beats masking 15 % of the tokens")
    json.dumps(summary, allow_nan=False)


def test_below_six_runs_at_most_suggests_and_no_p():
    for runs in (2, 3, 5):
        study, records = study_of(
            {"token-15": [0.5 + 0.001 * i for i in range(runs)], "token-30": [0.9] * runs}
        )
        (row,) = rows_of(summarise(records, study))
        assert (row["verdict"], row["reason"], row["p"]) == ("suggests", "few-runs", None)
        assert row["low"] > 0 and "suggests, not proof" in row["sentence"] and "p =" not in row["sentence"]


def test_one_run_says_nothing():
    study, records = study_of({"token-15": [0.5], "token-30": [0.9]})
    (row,) = rows_of(summarise(records, study))
    assert (row["verdict"], row["low"], row["unit"]) == ("undecided", None, "score")
    assert "three seeds" in row["sentence"]


def test_undecided_says_how_many_more_runs():
    d = np.array([0.03, -0.01, 0.02, 0.04, -0.02, 0.01])
    study, records = study_of({"token-15": [0.5] * 6, "token-30": (0.5 + d).tolist()})
    (row,) = rows_of(summarise(records, study))
    assert row["verdict"] == "undecided" and row["reason"] == "not-significant"
    assert row["more_runs"] == runs_needed(d.std(ddof=1), d.mean()) - 6
    assert f"About {row['more_runs']} more runs of each would decide" in row["sentence"]


def test_seeds_times_tasks_are_never_pooled():
    """Eight tasks that are the same task eight times are still four runs: nothing gets surer."""
    scores = {"token-15": [0.50, 0.52, 0.55, 0.51], "token-30": [0.53, 0.52, 0.60, 0.52]}
    found = []
    for tasks in (1, 8):
        study = make_study(runs=4, arms=scores, tasks=tasks)
        records = [
            score_record(arm, s, task, x)
            for arm, row in scores.items()
            for s, x in enumerate(row)
            for task in study["tasks"]
        ]
        found.append(rows_of(summarise(records, study))[0])
    assert found[0]["n"] == found[1]["n"] == 4
    for key in ("mean", "low", "high", "standardised"):
        assert found[0][key] == pytest.approx(found[1][key])
    assert found[0]["verdict"] == found[1]["verdict"] == "undecided"


def test_a_task_of_wide_scores_does_not_outweigh_one_of_narrow_scores():
    """The arm wins by 2 SDs on a narrow task and loses by 1 SD on a task ten times as wide: it is ahead."""
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
    assert "points" not in row["sentence"] and "spread between seeds" in row["sentence"]


def test_equal_scores_do_not_divide_by_zero():
    study, records = study_of({"token-15": [0.5] * 3, "token-30": [0.5] * 3})
    summary = summarise(records, study)
    (row,) = rows_of(summary)
    assert (row["verdict"], row["mean"], row["more_runs"]) == ("undecided", 0, None)
    assert "came out equal" in row["sentence"]
    json.dumps(summary, allow_nan=False)


def test_the_plateau_is_judged_on_the_arms_own_kind_of_mask():
    arms = {"token-15": 0.0, "whole-word-15": 0.0}
    study = make_study(runs=3, arms=arms)
    records = [r for r in make_records(study, arms) if r["kind"] == "score"]
    for seed in range(3):
        records += [
            heldout_record("token-15", seed, "token", 4.0),
            heldout_record("token-15", seed, "whole-word", 6.2),  # foreign to it: no plateau
            heldout_record("whole-word-15", seed, "token", 7.3),
            heldout_record("whole-word-15", seed, "whole-word", 4.8 if seed else 5.0),
        ]
    summary = summarise(records, study)
    assert not any(arm["plateau"] for arm in summary["arms"].values())
    assert summary["arms"]["whole-word-15"]["gap_nats"] == pytest.approx(6.28 - (5.0 + 4.8 + 4.8) / 3)
    for outcome in ("heldout:token", "heldout:whole-word"):
        assert rows_of(summary, outcome)[0]["reason"] == "different-units"
    assert rows_of(summary)[0]["verdict"] != "void"

    stuck = [
        r | {"loss": 6.0} if r.get("masks") == "whole-word" and "whole" in r["arm"] else r for r in records
    ]
    summary = summarise(stuck, study)
    assert summary["arms"]["whole-word-15"]["plateau"]
    assert {(row["verdict"], row["better"]) for row in summary["contrasts"]} == {("void", None)}
    assert rows_of(summary)[0]["reason"] == "plateau" and "plateau" in summary["headline"]


@pytest.mark.parametrize("gap, plateau", [(0.29, True), (0.31, False)])
def test_the_plateau_begins_three_tenths_of_a_nat_below_unigram(gap, plateau):
    study, records = study_of({"token-15": [0.5], "token-30": [0.6]})
    records += [heldout_record(arm, 0, "token", 6.28 - gap) for arm in study["arms"]]
    assert summarise(records, study)["arms"]["token-15"]["plateau"] is plateau


def test_chance_is_void_only_where_both_are_at_chance():
    # majority .05 on 400 items: chance reaches to .05 + 2 · sqrt(.05 · .95 / 400) = .0718
    for scores, void in (([0.07, 0.07], True), ([0.07, 0.075], False), ([0.075, 0.03], False)):
        study, records = study_of({"token-15": [scores[0]] * 3, "token-30": [scores[1]] * 3})
        (row,) = rows_of(summarise(records, study))
        assert (row["reason"] == "chance-level") is void and (row["verdict"] == "void") is void


def test_a_failed_run_costs_its_pair_only():
    arms = {"token-15": 0.0, "token-30": 0.03}
    study = make_study(runs=7, arms=arms)
    records = [r for r in make_records(study, arms) if (r["arm"], r["seed"]) != ("token-30", 2)]
    failure = {"kind": "failure", "arm": "token-30", "seed": 2, "stage": "pretrain-x", "error": "disk full"}
    summary = summarise([*records, failure], study)
    assert rows_of(summary)[0]["n"] == 6 and summary["arms"]["token-30"]["failures"] == 1
    assert [i for i, x in enumerate(summary["arms"]["token-30"]["scores"]["task-0"]) if x is None] == [2]
    all_failed = [r for r in records if r["arm"] != "token-30"] + [failure | {"seed": s} for s in range(7)]
    (row,) = rows_of(summarise(all_failed, study))
    assert (row["verdict"], row["reason"], row["n"]) == ("void", "missing-runs", 0)


def test_a_half_fine_tuned_failed_run_is_left_out_whole():
    study = make_study(runs=3)
    records = [r for r in make_records(study, {}) if r["kind"] == "score"]
    cut = [r for r in records if not (r["arm"] == "token-30" and r["seed"] == 1 and r["task"] == "task-1")]
    failure = {"kind": "failure", "arm": "token-30", "seed": 1, "stage": "finetune-x", "error": "diverged"}
    assert rows_of(summarise([*cut, failure], study), "task-0")[0]["n"] == 2
    with pytest.raises(MaskwiseError, match=r"some runs only; got no task-1 for arm 'token-30', seed 1"):
        summarise(cut, study)


def test_bad_records_are_told_in_one_line():
    study = make_study(runs=3)
    good = make_records(study, {})

    def told(records, **options) -> str:
        with pytest.raises(MaskwiseError) as error:
            summarise(records, study, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "lacks seeds" in told([r for r in good if (r["arm"], r["seed"]) != ("token-30", 2)])
    assert "no runs; got token-30" in told([r for r in good if r["arm"] != "token-30"])
    assert "not a finite number" in told([good[0] | {"score": math.nan}, *good[1:]])
    assert "not a finite number" in told([good[0] | {"score": None}, *good[1:]])
    assert "measured twice" in told([*good, good[0]])
    assert "did you mean 'token-30'" in told(good, contrasts=[("token-3", "token-15")])
    assert "two different arms" in told(good, contrasts=[("token-15", "token-15")])
    assert "unknown arm in records 'x'" in told([good[0] | {"arm": "x"}, *good])


def test_at_most_six_primary_contrasts():
    study = make_study(arms={f"token-{i}": 0 for i in range(10, 18)})
    with pytest.raises(MaskwiseError, match=r"too many primary contrasts.*got 7; allowed: at most 6"):
        primary_contrasts(study)
    assert len(primary_contrasts(study, [{"arm": "token-11"}, ("token-12", "token-11")])) == 2


def test_pre_training_itself_can_be_a_contrast():
    study = make_study(runs=3)
    summary = summarise(make_records(study, {}), study, contrasts=[("token-15", "no-pretraining")])
    assert {row["outcome"] for row in summary["contrasts"]} == {"tasks", "task-0", "task-1"}
    assert (
        rows_of(summary)[0]["better"] == "arm" and len(summary["references"]["task-0"]["no-pretraining"]) == 3
    )


def test_secondary_outcomes_never_decide_but_a_single_task_is_the_primary_one():
    arms = {"token-15": 0.0, "token-30": 0.05}
    for tasks, verdict in ((2, "suggests"), (1, "decided")):
        study = make_study(runs=10, arms=arms, tasks=tasks)
        summary = summarise(make_records(study, arms), study)
        assert rows_of(summary)[0]["verdict"] == "decided"
        assert rows_of(summary, "task-0")[0]["verdict"] == verdict
        assert rows_of(summary, "heldout:token")[0]["reason"] == "secondary"


def test_without_tasks_the_held_out_loss_is_primary_and_lower_is_better():
    arms = {"token-15": 0.0, "token-30": 0.2}
    study = make_study(runs=6, arms=arms, tasks=0)
    summary = summarise(make_records(study, arms), study)
    (row,) = rows_of(summary, "heldout:token")
    assert row["primary"] and row["mean"] < 0 and (row["verdict"], row["better"]) == ("decided", "arm")
    assert "nats" in summary["headline"] and "on the tasks" not in summary["headline"]


def test_the_headline_keeps_a_baseline_that_nothing_beats():
    study, records = study_of({"token-15": [0.80, 0.81, 0.82], "token-30": [0.50, 0.50, 0.51]})
    headline = summarise(records, study)["headline"]
    assert headline.startswith("Keep masking 15 % of the tokens: nothing that was tried did better.")
    study, records = study_of({"token-15": [0.5, 0.6]})
    assert "nothing to compare" in summarise(records, study)["headline"]


def test_arms_are_told_apart_by_words_only_where_words_suffice():
    study, records = study_of({"token-15": [0.5], "a": [0.5], "b": [0.5], "c": [0.5]})
    study["arms"]["a"] |= {"ratio": "linear(0.30, 0.15)"}
    study["arms"]["b"] |= {"ratio": "constant(0.15)"}  # as the baseline
    study["arms"]["c"] |= {"ratio": "constant(0.4)", "overrides": {"model": {"layers": 4}}}
    words = {arm: facts["words"] for arm, facts in summarise(records, study)["arms"].items()}
    assert words == {
        "token-15": "token-15",
        "a": "masking 30 % falling to 15 % of the tokens",
        "b": "b",
        "c": "c",
    }
