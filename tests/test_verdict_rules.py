"""The rules that are laid down before a study runs: its gate, its search, its looks, and the tasks that count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from maskwise.errors import MaskwiseError
from maskwise.recipe import Recipe
from maskwise.recipe.recipe import validate
from maskwise.study.description import so_far
from maskwise.study.power import attainable_level, detectable_difference, look_weights, runs_to_decide
from maskwise.study.prospects import prospect_lines, prospects_of
from maskwise.study.statistics import benjamini_hochberg, paired_t_interval, paired_t_test, sign_flip_test
from maskwise.study.verdict import summarise
from maskwise.study.verdict.words import advice_of
from maskwise.tasks.judge import TRIAL_SEED
from report_fixture import (
    heldout_record,
    make_records,
    make_study,
    run_facts,
    score_record,
    write_json,
    write_lines,
)

BASE = [0.50, 0.52, 0.51, 0.53, 0.50, 0.52, 0.51, 0.52]
BETTER = [x + 0.2 + 0.001 * i for i, x in enumerate(BASE)]
ALIKE = [0.51, 0.51, 0.52, 0.52, 0.51, 0.51, 0.52, 0.51]
GATED = {"random": BASE, "oracle": BETTER, "method": [x - 0.02 for x in BETTER]}


def study_of(scores: dict[str, list[float]], *, facts: bool = True, **changes: Any) -> tuple[dict, list[dict]]:
    """One task, one line per run."""
    study = make_study(runs=max(map(len, scores.values())), arms=dict.fromkeys(scores, 0), tasks=1, **changes)
    records = [score_record(arm, s, "task-0", x) for arm, runs in scores.items() for s, x in enumerate(runs)]
    return study, records + (run_facts(study) if facts else [])


def primaries(summary: dict) -> dict[tuple[str, str], dict]:
    return {(row["arm"], row["baseline"]): row for row in summary["contrasts"] if row["primary"]}


# The gate ------------------------------------------------------------------------------------------------------


def gated(scores: dict[str, list[float]], **changes: Any) -> tuple[dict, dict[tuple[str, str], dict]]:
    pairs = [["oracle", "random"], ["method", "random"]]
    study, records = study_of(scores, gate=["oracle", "random"], contrasts=pairs, **changes)
    return (summary := summarise(records, study)), primaries(summary)


def test_an_open_gate_lets_the_others_be_judged_at_the_full_level():
    summary, rows = gated(GATED)
    assert {row["verdict"] for row in rows.values()} == {"decided"}
    assert [row["p_adjusted"] for row in rows.values()] == [
        2 / 256
    ] * 2  # not 4/256: the gate is no part of Holm's family
    assert "method" in summary["headline"] and "oracle" not in summary["headline"]
    assert not any("oracle" in line for line in summary["advice"])


def test_behind_a_closed_gate_nothing_is_judged():
    summary, rows = gated(GATED | {"oracle": ALIKE})
    assert rows["oracle", "random"]["verdict"] == "undecided"
    assert (rows["method", "random"]["verdict"], rows["method", "random"]["reason"]) == (
        "void",
        "gate-closed",
    )
    assert {row["verdict"] for row in summary["contrasts"] if row["arm"] == "method"} == {"void"}
    assert summary["verdict"] == "void" and "positive control failed" in summary["headline"]


def test_an_oracle_that_is_decided_to_be_worse_opens_no_gate():
    _, rows = gated(GATED | {"oracle": [x - 0.2 for x in BASE]})
    assert (rows["oracle", "random"]["verdict"], rows["oracle", "random"]["better"]) == (
        "decided",
        "baseline",
    )
    assert rows["method", "random"]["reason"] == "gate-closed"


def test_a_gate_is_not_opened_by_runs_that_were_added():
    _, rows = gated(GATED, looked=[{"runs": 6, "looks": None}])
    assert {row["reason"] for row in rows.values()} == {"runs-added", "gate-closed"}


def test_a_gate_needs_six_runs_but_no_search():
    _, rows = gated({arm: runs[:5] for arm, runs in GATED.items()})
    assert rows["oracle", "random"]["reason"] == "few-runs" and rows["method", "random"]["verdict"] == "void"
    _, rows = gated(GATED, search=None)
    assert rows["oracle", "random"]["verdict"] == "decided"  # it asks whether the study, as set, can see
    assert rows["method", "random"]["reason"] == "no-dev-selection"


ARMS = {"oracle": {}, "random": {"masking.ratio": 0.3}}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"arms": ARMS}, "sampler-control is a positive control by its name, and has no gate"),
        ({"arms": ARMS, "gate": ["oracel", "random"]}, "unknown arm in study.gate 'oracel'"),
        ({"arms": ARMS, "gate": ["oracle", "oracle"]}, "study.gate names two different arms"),
    ],
)
def test_a_control_without_its_gate_is_refused(study, message):
    with pytest.raises(MaskwiseError, match=message) as error:
        validate({"name": "sampler-control", "study": study}, origin="")
    assert "\n" not in str(error.value)


def test_the_gate_is_the_first_contrast_and_none_of_the_six():
    arms = {name: {} for name in ("random", "oracle", *"abcdef")}
    contrasts = [[name, "random"] for name in "abcdef"]
    settings = {"arms": arms, "baseline": "random", "gate": ["oracle", "random"], "contrasts": contrasts}
    recipe = validate({"name": "a-control", "study": settings}, origin="")
    assert recipe.study.pairs == [("oracle", "random"), *((name, "random") for name in "abcdef")]
    assert recipe.arm("oracle", seed=0).study.gate is None  # the recipe of a run compares nothing


# The search ----------------------------------------------------------------------------------------------------


def test_what_one_dev_seed_chose_is_at_most_a_suggestion():
    study, records = study_of({"token-15": BASE, "token-30": BETTER})
    (row,) = primaries(summarise(records, study)).values()
    assert row["verdict"] == "decided"
    study["search"]["seeds"] = [1000]
    (row,) = primaries(summarise(records, study)).values()
    assert row["verdict"] == "suggests"
    assert (row["verdict"], row["reason"], row["reasons"][0]["why"]) == (
        "suggests",
        "no-dev-selection",
        "one-dev-seed",
    )


# Rows beside the primary ones ----------------------------------------------------------------------------------


def test_false_discovery_rates_are_those_of_scipy():
    p = np.random.default_rng(0).uniform(0, 1, 40) ** 2
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p).tolist())
    d = np.random.default_rng(1).normal(0.4, 1, 9)
    assert paired_t_test(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert (paired_t_test([0.0, 0.0]), paired_t_test([0.1, 0.1]), benjamini_hochberg([])) == (1.0, 0.0, [])


def test_of_many_secondary_rows_only_those_are_shown_that_chance_does_not_explain(tasks=30, runs=8):
    """29 tasks of pure noise, of which one or two have an interval without zero, and one on which the arm is better."""
    rng = np.random.default_rng(3)
    study = make_study(runs=runs, tasks=tasks)
    records = [
        score_record(arm, s, task, 0.6 + rng.normal(0, 0.01) + 0.1 * (task == "task-0" and arm == "token-30"))
        for task in study["tasks"]
        for arm in study["arms"]
        for s in range(runs)
    ]
    rows = [row for row in summarise(records + run_facts(study), study)["contrasts"] if not row["primary"]]
    apart = {row["outcome"]: row["reason"] for row in rows if row["low"] > 0 or row["high"] < 0}
    assert len(apart) > 1 and {row["outcome"] for row in rows if row["verdict"] == "suggests"} == {"task-0"}
    assert {reason for task, reason in apart.items() if task != "task-0"} == {"false-discovery"}
    assert all(row["better"] is None for row in rows if row["outcome"] != "task-0")


# Looks ---------------------------------------------------------------------------------------------------------


def test_the_weights_of_looks_are_spent_once():
    assert sum(look_weights([6, 12, 18])) == pytest.approx(1)
    assert look_weights([10, 20])[0] == pytest.approx(0.1115, abs=1e-4)  # 2 − 2 Φ(1.96 / √.5) = .00557, of .05


def test_planned_looks_share_one_error_whichever_of_them_decides():
    early = [0.1 + 0.001 * i for i in range(10)]  # clear at the first look, noise at the second
    late = [(-1) ** i * 0.2 + 0.003 * i for i in range(10)]
    study, records = study_of({"token-15": [0.5] * 20, "token-30": [0.5 + x for x in early + late]}, looks=[10, 20])
    (row,) = primaries(summarise(records, study)).values()
    first, last = sign_flip_test(early), sign_flip_test(early + late)
    weights = look_weights([10, 20])
    assert row["p"] == pytest.approx(min(first / weights[0], last / weights[1]))
    assert first / weights[0] < last / weights[1]


def test_a_look_whose_runs_all_failed_decides_nothing():
    study, records = study_of({"token-15": [0.5] * 8, "token-30": [0.6 + 0.001 * i for i in range(8)]}, looks=[2, 8])
    lost = [{"kind": "failure", "arm": "token-30", "seed": s, "stage": "x", "error": "x"} for s in (0, 1)]
    kept = [r for r in records if r["kind"] != "score" or r["arm"] != "token-30" or r["seed"] > 1]
    (row,) = primaries(summarise([*kept, *lost], study)).values()
    assert row["n"] == 6 and row["p"] is not None


def test_a_verdict_is_remembered_with_the_contrasts_that_it_had():
    """Six runs could decide one contrast; that they could not decide two was taken for no look at all."""
    scores = {"token-15": BASE, "token-30": BETTER, "token-45": BASE}
    pairs = [("token-30", "token-15"), ("token-45", "token-15")]
    for contrasts, capped in ((1, True), (2, False)):
        looked = [{"runs": 6, "seeds": [*range(6)], "contrasts": contrasts, "looks": None}]
        study, records = study_of(scores, looked=looked)
        study["contrasts"] = pairs
        row = primaries(summarise(records, study))[pairs[0]]
        assert any(reason["code"] == "runs-added" for reason in row["reasons"]) == capped


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"seeds": 8, "looks": [10, 20]}, "study.seeds is not one of .*got 8; allowed: 10, 20"),
        ({"seeds": 10, "looks": [10]}, "study.looks: rising numbers of runs"),
        ({"seeds": 10, "looks": [20, 10]}, "study.looks: rising numbers of runs"),
        ({"margin": 0}, "study.margin; got 0; allowed: > 0"),
        ({"margin": -0.1}, "study.margin; got -0.1; allowed: > 0"),
        ({"noise": 0.0}, "study.noise: a standard deviation"),
        ({"helps": 2}, "study.helps; got 2; allowed: ≤ 1"),
    ],
)
def test_bad_rules_are_refused_in_one_line(study, message):
    with pytest.raises(MaskwiseError, match=message) as error:
        validate({"study": {"arms": {"a": {}, "b": {}}, **study}}, origin="")
    assert "\n" not in str(error.value)


CLEAR = {"token-15": BASE, "token-30": BETTER}


@pytest.mark.parametrize(
    ("looked", "looks", "verdict"),
    [
        ([], None, "decided"),
        ([{"runs": 5, "looks": None}], None, "decided"),  # five runs could not decide: no error was spent
        ([{"runs": 6, "looks": None}], None, "suggests"),
        ([{"runs": 8, "looks": None}], None, "decided"),  # the same runs once more
        ([{"runs": 6, "looks": [6, 8]}], [6, 8], "decided"),
        ([{"runs": 6, "looks": None}], [6, 8], "suggests"),  # planned afterwards
        ([{"runs": 10, "looks": None}], None, "suggests"),  # fewer than before
        ([{"runs": 8, "seeds": [*range(8)], "looks": None}], None, "decided"),
        ([{"runs": 8, "seeds": [*range(10, 18)], "looks": None}], None, "suggests"),  # as many others
        ([{"runs": 6, "seeds": [*range(10, 16)], "looks": [6, 8]}], [6, 8], "suggests"),  # others than were planned
    ],
)
def test_runs_that_are_added_without_a_plan_are_no_proof(looked, looks, verdict):
    study, records = study_of(CLEAR, looked=looked, looks=looks)
    (row,) = primaries(summarise(records, study)).values()
    assert row["verdict"] == verdict and (row["reason"] == "runs-added") == (verdict == "suggests")


def test_a_folder_remembers_at_how_many_runs_it_had_a_verdict(tmp_path):
    study = make_study(runs=8) | {"recipe": {"training": {"steps": 10}, "study": {"arms": {"a": {}}, "seeds": 8}}}
    before = make_study(runs=6) | {"recipe": {"training": {"steps": 10}, "study": {"arms": {"a": {}}, "seeds": 6}}}
    write_json(tmp_path / "study.json", before)
    assert "looked" not in so_far(tmp_path, study)  # it had no verdict yet
    write_json(tmp_path / "summary.json", {})
    memory = so_far(tmp_path, study)
    look = {"runs": 6, "seeds": [*range(6)], "contrasts": len(before["contrasts"]), "looks": None}
    assert memory["looked"] == [look] and not (tmp_path / "summary.json").exists()
    write_json(tmp_path / "study.json", study | memory)  # stopped, and begun again
    assert so_far(tmp_path, study)["looked"] == [look]
    again = study | {"seeds": [*range(10, 18)]}
    assert [each["seeds"][0] for each in so_far(tmp_path, again)["looked"]] == [0]  # nothing was judged on 0 to 7 yet
    write_json(tmp_path / "summary.json", {})
    write_json(tmp_path / "study.json", study | memory)
    assert [each["runs"] for each in so_far(tmp_path, again)["looked"]] == [6, 8]
    other = study | {"recipe": {"training": {"steps": 20}, "study": {"arms": {"a": {}}, "seeds": 8}}}
    assert "looked" not in so_far(tmp_path, other)


@pytest.mark.parametrize(
    ("runs", "looks", "code"), [(4, None, "add-seeds"), (8, None, "new-study"), (8, [8, 16], "next-look")]
)
def test_the_advice_on_runs_spends_no_error_twice(runs, looks, code):
    row = {"verdict": "undecided", "n": runs, "more_runs": 4, "detectable": None, "mean": 0.1, "reasons": [],
           "arm": "a", "baseline": "b", "outcome": "tasks"}  # fmt: skip
    assert advice_of([row], {}, looks)[0][0] == code


# Tasks that can tell -------------------------------------------------------------------------------------------


def helped(gains: dict[str, list[float]], *, apart: float = 0.0, **changes: Any) -> dict:
    """Tasks whose dev score is so much above the start's, by seed; on test token-30 is better on all of them.

    On dev token-30 is so far ``apart`` above the mean of both arms.
    """
    study = make_study(runs=8, tasks=len(gains), **changes)
    records = []
    for task, by_seed in zip(study["tasks"], gains.values(), strict=True):
        for s, gain in enumerate(by_seed):
            records.append(score_record("no-pretraining", s, task, 0.3 + 0.001 * s, dev=[0.3]))
            for arm, more, side in (("token-15", 0.0, -1), ("token-30", 0.02, 1)):
                dev = [0.3 + gain + side * apart, None]
                records.append(score_record(arm, s, task, 0.5 + more + 0.001 * s, dev=dev))
    return summarise(records + run_facts(study), study)


def test_a_task_that_ignores_pre_training_is_left_out_of_the_primary_outcome():
    gains = {"sees": [0.1] * 8, "punishes": [-0.1] * 7 + [0.1]}
    summary = helped(gains, helps=0.75)
    assert summary["tasks"] == {
        "task-0": {"helped": 1.0, "counted": True},
        "task-1": {"helped": 0.125, "counted": False},
    }
    rows = {row["outcome"]: row for row in summary["contrasts"]}
    told = {name: [reason["code"] for reason in row["reasons"]] for name, row in rows.items()}
    assert "no-help" in told["tasks"] and "no-help" in told["task-1"] and "no-help" not in told["task-0"]
    assert rows["tasks"]["natural"]["mean"] == pytest.approx(rows["task-0"]["mean"])
    assert helped(gains, helps=0.0)["tasks"]["task-1"]["counted"]
    assert helped(gains)["tasks"]["task-1"]["counted"]  # a study.json without the rule
    # By the mean of all arms and not by the best one, so that the rule is the same if two arms are exchanged.
    assert helped(gains, helps=0.75, apart=0.15)["tasks"] == summary["tasks"]


def test_against_the_start_every_task_counts():
    """Otherwise tasks would be chosen by the very difference that is tested."""
    gains = {"sees": [0.1] * 8, "punishes": [-0.1] * 8}
    summary = helped(gains, helps=0.75, contrasts=[["token-30", "no-pretraining"], ["token-30", "token-15"]])
    start, other = (row for row in summary["contrasts"] if row["outcome"] == "tasks")
    codes = [[reason["code"] for reason in row["reasons"]] for row in (start, other)]
    assert "no-help" not in codes[0] and "no-help" in codes[1]


def test_where_no_task_can_tell_nothing_is_said():
    summary = helped({"a": [-0.1] * 8, "b": [0.1, -0.1] * 4}, helps=0.75)
    (row,) = primaries(summary).values()
    assert (row["verdict"], row["reason"], row["n"]) == ("void", "no-task-tells", 8)


# The margin ----------------------------------------------------------------------------------------------------


def test_a_margin_is_tested_at_a_level_that_the_contrasts_share():
    """A 95 % interval suffices for one and two contrasts; for four the tests are at 1.25 % each."""
    tie = [0.50, 0.53, 0.50, 0.52, 0.52, 0.51, 0.50, 0.52]
    for arms, word in ((2, "95 %"), (3, "95 %"), (5, "97.5 %")):
        scores = {"token-15": BASE} | {f"arm-{i}": tie for i in range(arms - 1)}
        study, records = study_of(scores, margin=0.05)
        row = next(iter(primaries(summarise(records, study)).values()))
        assert row["verdict"] == "equal" and f"the {word} interval" in row["sentence"]


def test_a_margin_has_a_wider_interval_where_more_contrasts_share_it():
    """Of one contrast the interval just fits; with three others it would have to be wider than the margin."""
    d = np.array([0.01, -0.02, 0.015, -0.01, 0.02, -0.015, 0.005, 0.0])
    margin = paired_t_interval(d).high * 1.05
    for others, verdict in ((0, "equal"), (3, "undecided")):
        scores = {"token-15": BASE, "token-30": [x + y for x, y in zip(BASE, d)]}
        scores |= {f"arm-{i}": [x + (-1) ** s * 0.2 for s, x in enumerate(BASE)] for i in range(others)}
        study, records = study_of(scores, margin=margin)
        assert primaries(summarise(records, study))["token-30", "token-15"]["verdict"] == verdict


def test_a_margin_in_nats_compares_losses():
    study = make_study(runs=8, tasks=0, margin=0.05)
    records = [heldout_record(arm, s, "token", loss) for arm, runs in (("token-15", BASE), ("token-30", ALIKE))
               for s, loss in enumerate(runs)]  # fmt: skip
    (row,) = primaries(summarise(records + run_facts(study), study)).values()
    assert (row["verdict"], row["reason"]) == ("equal", "within-margin") and "±0.05 nats" in row["sentence"]


# What can be told, beforehand ----------------------------------------------------------------------------------


def recipe_of(**study: Any) -> Recipe:
    return validate({"tasks": ["ud-pos"], "study": {"arms": {"a": {}, "b": {}, "c": {}}, **study}}, origin="")


def test_a_study_that_can_never_decide_is_told_so_at_once():
    first, _ = prospects = prospects_of(recipe_of(seeds=6))
    assert (first["decidable"], first["fewest_runs"], first["smallest_p"]) == (False, 7, 2 / 32)
    assert first["limits"] == ["no settings are searched for each arm: add study.search"]
    lines = prospect_lines(prospects)
    assert lines[0].startswith("every contrast: 6 runs can never decide (their p is never below 0.062")
    assert prospects_of(recipe_of(seeds=7))[0]["decidable"]
    assert prospects_of(recipe_of(seeds=6, contrasts=[["b", "a"]], gate=["c", "a"]))[1]["decidable"]
    assert prospects_of(recipe_of(seeds=3))[0]["smallest_p"] is None


def test_with_noise_the_smallest_effect_and_the_runs_are_named():
    (one, _) = prospects_of(recipe_of(seeds=10, noise=0.02, margin=0.01))
    alpha = attainable_level(10, 0.025)
    assert one["unit"] == "points" and one["detectable"] == pytest.approx(detectable_difference(2.0, 10, 0.8, alpha))
    assert one["margin_runs"] == runs_to_decide(0.02, 0.01, alpha=0.025) > 30
    assert any("takes" in line for line in prospect_lines([one]))


def test_an_earlier_study_tells_the_noise(tmp_path):
    arms = {"a": 0.0, "b": 0.03, "c": 0.0}
    study = make_study(runs=5, arms=arms)
    write_json(tmp_path / "study.json", study)
    write_lines(tmp_path / "records.jsonl", make_records(study, arms))
    for recipe, folder in ((recipe_of(seeds=8), tmp_path), (recipe_of(seeds=8, noise=str(tmp_path)), None)):
        first, second = prospects_of(recipe, folder)
        assert 0 < first["noise"] < 2 and first["noise"] != second["noise"] and "5 runs" in first["noise_from"]
    assert prospects_of(recipe_of(seeds=8), tmp_path / "nowhere")[0]["noise"] is None
    with pytest.raises(MaskwiseError, match="names a folder without a study"):
        prospects_of(recipe_of(seeds=8, noise=str(tmp_path / "nowhere")))


def test_planned_looks_are_in_the_prospects():
    (one,) = prospects_of(recipe_of(seeds=8, looks=[8, 16], contrasts=[["b", "a"]]))
    assert not one["decidable"]  # .0078 is more than the first look may spend, .0056
    (one,) = prospects_of(recipe_of(seeds=16, looks=[8, 16], contrasts=[["b", "a"]]))
    assert one["decidable"]


def test_one_arm_against_the_start_is_told_what_limits_it():
    """A search was not asked for beforehand, and its lack capped the verdict afterwards."""
    recipe = validate({"study": {"arms": {"a": {}}, "contrasts": [["a", "no-pretraining"]], "seeds": 8}}, origin="")
    [prospect] = prospects_of(recipe)
    assert prospect["decidable"] and prospect["limits"]


def test_no_reported_fine_tuning_has_the_seed_by_which_rates_are_searched():
    assert TRIAL_SEED > 1000 * 2**20  # the reported ones begin at 1,000 times the seed of the run
