"""Every flag on a constructed case: what it does to the verdict, and the facts beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from maskwise.errors import MaskwiseError
from maskwise.study.verdict import summarise
from report_fixture import (
    COST,
    advice_codes,
    codes,
    cost_record,
    evaluation_record,
    failure_record,
    heldout_record,
    make_records,
    make_study,
    old_selection,
    primary_rows,
    run_facts,
    score_record,
    selection_record,
    study_of,
)

CLEAR = {"token-15": [0.50, 0.52, 0.51, 0.53, 0.50, 0.52, 0.51, 0.52]}
CLEAR["token-30"] = [x + 0.2 + 0.001 * i for i, x in enumerate(CLEAR["token-15"])]


def judged(
    scores: dict[str, list[float]] = CLEAR,
    *,
    more: Sequence[dict] = (),
    records: list[dict] | None = None,
    **study: Any,
) -> dict:
    """The primary row of one task, one line per run."""
    found, lines = study_of(scores, facts=False)
    found |= study
    summary = summarise([*lines, *(run_facts(found) if records is None else records), *more], found)
    json.dumps(summary, allow_nan=False)
    (row,) = primary_rows(summary)
    return row | {"summary": summary}


def facts_of(row: dict, code: str) -> dict:
    return next(flag["facts"] for flag in row["flags"] if flag["code"] == code)


# Floors and chance
# ----------------------------------------------------------------------------


def at_levels(
    levels: dict[str, float], start: float | None = None, **study: Any
) -> dict[str, dict]:
    """The rows of one task, and of held-out losses at these levels, by outcome; the unigram loss is
    6.28.
    """
    lines = [
        heldout_record(arm, s, "token", level + 0.001 * s)
        for arm, level in levels.items()
        for s in range(8)
    ]
    if start is not None:
        lines += [heldout_record("no-pretraining", s, "token", start) for s in range(8)]
    summary = judged(more=lines, **study)["summary"]
    return {row["outcome"]: row for row in summary["contrasts"]}


def test_two_sides_at_the_floor_of_word_frequencies_void_the_loss_and_not_the_task():
    """On a text that is learned by heart on purpose, held-out text is worse than unigrams, and
    tasks still count.
    """
    for level in (6.2, 7.5):
        rows = at_levels({"token-15": level, "token-30": level - 0.01})
        assert (rows["heldout:token"]["verdict"], codes(rows["heldout:token"])) == (
            "not comparable",
            ["floor"],
        )
        assert rows["tasks"]["verdict"] == "decided" and "floor" not in codes(rows["tasks"])
    assert facts_of(rows["heldout:token"], "floor")["gaps"] == pytest.approx(
        [-1.21, -1.22], abs=0.01
    )


def test_one_side_above_the_floor_and_one_at_it_is_an_answer():
    rows = at_levels({"token-15": 6.2, "token-30": 4.0})
    assert rows["heldout:token"]["verdict"] is None and rows["heldout:token"]["low"] is not None
    rows = at_levels({"token-15": 4.0, "token-30": 6.2}, start=5.5)  # it fell back from its start
    assert codes(rows["heldout:token"]) == ["floor"]
    assert facts_of(rows["heldout:token"], "floor")["arms"] == ["token-30"]
    # the start knew nothing either
    rows = at_levels({"token-15": 4.0, "token-30": 6.2}, start=6.25)
    assert "floor" not in codes(rows["heldout:token"])


def near_the_floor(*, steps: dict[str, float], **study: Any) -> dict:
    """The summary of a study that is decided by a loss with token-15 at the floor."""
    levels = {"token-15": 6.2, "token-30": 4.0}
    more = [
        heldout_record(arm, s, "token", level + 0.001 * s)
        for arm, level in levels.items()
        for s in range(8)
    ]
    records = [cost_record(arm, s, steps=count) for arm, count in steps.items() for s in range(8)]
    return judged(more=more, records=records, outcome="heldout:token", **study)["summary"]


def test_a_named_outcome_decides_and_says_how_far_a_side_at_the_floor_carries():
    summary = near_the_floor(steps={"token-15": 450, "token-30": 450})
    (row,) = primary_rows(summary)
    assert (row["outcome"], row["verdict"], row["better"]) == ("heldout:token", "decided", "arm")
    facts = facts_of(row, "near-floor")
    assert (facts["arms"], facts["when"]) == (["token-15"], "after 450 steps")
    assert "450 steps" in summary["headline"] and "token-15" in summary["headline"]
    assert "tasks" in {other["outcome"] for other in summary["contrasts"] if other["p"] is None}
    assert {"use", "near-floor"} <= set(advice_codes([row]))
    # The steps are those of the arm at the floor, or unknown.
    summary = near_the_floor(steps={"token-15": 300, "token-30": 450})
    assert facts_of(primary_rows(summary)[0], "near-floor")["when"] == "after 300 steps"
    summary = near_the_floor(steps={})
    assert facts_of(primary_rows(summary)[0], "near-floor")["when"] == "at this length"


def test_a_single_ratio_decides_by_its_mean_or_by_its_name():
    for outcome in ("heldout:token", "heldout:token@0.15"):
        lines = [heldout_record(arm, s, "token", 4.0) for arm in CLEAR for s in range(8)]
        assert judged(more=lines, outcome=outcome)["outcome"] == "heldout:token"


def test_a_loss_above_the_floor_or_void_has_no_note_on_its_reach():
    for levels in ({"token-15": 4.1, "token-30": 4.0}, {"token-15": 6.2, "token-30": 6.1}):
        assert "near-floor" not in codes(at_levels(levels)["heldout:token"])


def test_an_outcome_that_one_side_lacks_leaves_a_contrast_to_the_tasks():
    more = [score_record("no-pretraining", s, "task-0", 0.3) for s in range(8)]
    gate = {"contrast": ["token-30", "no-pretraining"], "closes": [["token-30", "token-15"]]}
    lines = [heldout_record(arm, s, "token", 4.0) for arm in CLEAR for s in range(8)]
    found, scores = study_of(CLEAR, facts=False)
    found |= {"outcome": "heldout:token", "gate": gate, "reference": "the untrained model"}
    summary = summarise([*scores, *run_facts(found), *more, *lines], found)
    rows = {row["baseline"]: row["outcome"] for row in primary_rows(summary)}
    assert rows == {"no-pretraining": "tasks", "token-15": "heldout:token"}


@pytest.mark.parametrize(("start", "worse"), [(0.3, False), (0.6, False), (0.9, True)])
def test_a_winner_that_is_worse_than_the_start_is_told(start: float, worse: bool):
    more = [score_record("no-pretraining", s, "task-0", start) for s in range(8)]
    told = "All arms have a worse mean than the untrained model on the tasks."
    pair = ["token-15", "no-pretraining"]
    for study in ({}, {"contrasts": [pair]}):
        summary = judged(more=more, reference="the untrained model", **study)["summary"]
        assert summary["headline"].endswith(told) == worse
        assert ("worse mean" in summary["headline"]) == worse


@pytest.mark.parametrize(("gap", "floor"), [(0.29, True), (0.31, False)])
def test_the_floor_is_three_tenths_of_a_nat_below_unigram(gap, floor):
    rows = at_levels({"token-15": 6.276 - gap, "token-30": 6.276 - gap})
    assert ("floor" in codes(rows["heldout:token"])) is floor


def test_a_gap_next_to_the_floor_does_not_read_as_the_floor():
    rows = at_levels({"token-15": 6.276 - 0.298, "token-30": 6.276 - 0.298})
    assert facts_of(rows["heldout:token"], "floor")["words"] == "+0.299 and +0.299"


def test_the_floor_is_judged_at_the_arms_own_masks_and_any_ratio():
    def losses(at_15: float, at_40: float) -> list[dict]:
        return [
            heldout_record(arm, seed, "token", loss) | {"ratio": ratio}
            for arm in CLEAR
            for seed in range(8)
            for ratio, loss in ((0.15, at_15), (0.4, at_40))
        ]

    # context was learned, as the harder ratio shows
    facts = judged(more=losses(6.1, 5.5))["summary"]
    assert facts["arms"]["token-15"]["gap_nats"] == pytest.approx(6.28 - 5.5)
    assert not any("floor" in codes(row) for row in facts["contrasts"])
    # inside the run
    assert facts["arms"]["token-15"]["scores"]["heldout:token"][0] == pytest.approx(5.8)
    foreign = [heldout_record(arm, seed, "whole-word", 6.5) for arm in CLEAR for seed in range(8)]
    rows = judged(more=[*losses(6.1, 5.5), *foreign])["summary"]["contrasts"]
    assert not any("floor" in codes(row) for row in rows)


def test_chance_is_that_of_each_task_and_voids_the_task_alone():
    row = judged({"token-15": [0.05] * 8, "token-30": [0.06, 0.05] * 4})
    assert (row["verdict"], codes(row)[0]) == ("not comparable", "chance") and advice_codes([row])[
        0
    ] == "chance"
    facts = {"metric": "exact-match", "test_items": 400, "majority": None}
    told = [
        score_record(arm, s, "task-0", x) | {"majority": 0.11}
        for arm, xs in {"token-15": [0.12] * 8, "token-30": [0.10] * 8}.items()
        for s, x in enumerate(xs)
    ]
    study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=1) | {"tasks": {"task-0": facts}}
    (row,) = primary_rows(summarise(told + run_facts(study), study))
    assert "chance" in codes(row)  # of the answers that were asked, as the records have it


# Measures that differ
# ----------------------------------------------------------------------------


def test_item_noise_is_another_interval_and_is_said():
    """Two points on 400 items: one share at .5 is uncertain by 1.96 · sqrt(.25 / 400) = 4.9
    points.
    """
    close = {
        "token-15": CLEAR["token-15"],
        "token-30": [x + 0.02 + 1e-4 * i for i, x in enumerate(CLEAR["token-15"])],
    }
    row = judged(close)
    assert row["verdict"] == "decided" and codes(row) == ["items"]
    assert row["items"]["high"] - row["items"]["low"] == pytest.approx(2 * 0.049, abs=0.001)
    assert facts_of(row, "items")["half"] == pytest.approx(0.049, abs=0.0005)
    facts = {"metric": "accuracy", "classes": 20, "majority": 0.05, "test_items": 10_000}
    assert "items" not in codes(judged(close, tasks={"task-0": facts}))
    assert judged(close, tasks={"task-0": facts | {"metric": "macro-f1"}})["items"] is None


def test_the_noise_of_items_is_that_of_resampled_sentences_and_of_shared_ones_twice():
    """Two tasks on the same sentences are lucky together: half the independent tasks' gain in
    certainty is gone.
    """

    def half(**facts: Any) -> float:
        study = make_study(runs=8, tasks=2)
        study["tasks"] = {
            task: {"metric": "entity-f1", "test_items": 9, **facts} for task in study["tasks"]
        }
        lines = [
            score_record(arm, s, task, x, metric="entity-f1", item_error=0.03)
            for arm, runs in CLEAR.items()
            for s, x in enumerate(runs)
            for task in study["tasks"]
        ]
        rows = {
            row["outcome"]: row
            for row in summarise([*lines, *run_facts(study)], study)["contrasts"]
        }
        assert rows["task-0"]["items"]["high"] - rows["task-0"]["mean"] == pytest.approx(
            1.96 * 0.03
        )
        return rows["tasks"]["items"]["high"] - rows["tasks"]["natural"]["mean"]

    assert half() == pytest.approx(1.96 * 0.03 / 2**0.5)
    assert half(test_texts="ab12") == pytest.approx(1.96 * 0.03)


def test_overlap_is_said():
    line = {"kind": "overlap", "task": "task-0", "corpus": "wiki", "items": 400, "overlapping": 12}
    row = judged(more=[line])
    assert row["verdict"] == "decided" and facts_of(row, "overlap")["tasks"] == ["task-0"]
    assert row["summary"]["overlap"] == [line]
    assert "overlap" not in codes(judged(more=[line | {"overlapping": 0}]))
    # below a hundredth: said, but nothing need be done
    few = judged(more=[line | {"overlapping": 3}])
    assert "overlap" in codes(few)
    assert ["Remove" in " ".join(each["summary"]["advice"]) for each in (row, few)] == [True, False]


def test_advice_names_no_useless_number_of_runs():
    """Today's mean asks for thousands of runs: the sentence says what could be seen instead."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.02, 10)
    d = rng.normal(0, 0.02, 10)
    row = judged({"token-15": base.tolist(), "token-30": (base + d - d.mean() + 2e-4).tolist()})
    assert (row["verdict"], row["runs_to_decide"]) == ("open", None)
    assert row["detectable"]["runs"] == 10
    # 10 runs, one SD: power .8
    assert row["detectable"]["difference"] == pytest.approx(d.std(ddof=1), rel=0.05)
    assert advice_codes([row])[0] == "no-more-seeds"


def test_seeds_and_ratios_must_be_whole():
    with pytest.raises(MaskwiseError, match=r"unknown seed in records; got .* with seed 9"):
        judged(more=[score_record("token-15", 9, "task-0", 0.5)])
    part = [
        heldout_record("token-15", s, "token", 4.0) | {"ratio": r}
        for s, r in ((0, 0.15), (0, 0.4), (1, 0.15))
    ]
    with pytest.raises(MaskwiseError, match=r"measured in some runs only.*seed 1"):
        judged(more=part)


# What was tuned, and how
# ----------------------------------------------------------------------------


def test_without_a_search_a_study_decides_at_its_settings_and_says_so():
    costs = [line for line in run_facts(make_study(runs=8)) if line["kind"] == "cost"]
    row = judged(search=None, records=costs)
    assert (row["verdict"], row["scope"], codes(row)) == (
        "decided",
        "at these settings",
        ["untuned"],
    )
    assert facts_of(row, "untuned")["arms"] == ["token-30", "token-15"]


def test_one_search_for_all_seeds_decides_only_where_both_sides_kept_the_same_setting():
    costs = [line for line in run_facts(make_study(runs=8)) if line["kind"] == "cost"]
    same = judged(records=[*costs, old_selection("token-15"), old_selection("token-30")])
    assert (same["verdict"], same["scope"]) == ("decided", "at these settings")
    differ = judged(records=[*costs, old_selection("token-15"), old_selection("token-30", 0.002)])
    assert (differ["verdict"], differ["better"], codes(differ)) == (
        "open",
        None,
        ["settings-differ"],
    )
    assert differ["p_adjusted"] < 0.05 and differ["runs_to_decide"] is None
    assert advice_codes([differ]) == ["settings-differ"]
    one = judged(records=[*costs, old_selection("token-30")])  # the other side has nothing to tune
    assert one["verdict"] == "decided" and "settings-differ" not in codes(one)


def test_settings_that_every_replicate_chose_may_differ():
    facts = [
        selection_record(line["arm"], line["seed"], chosen={"training.learning_rate": 0.002})
        if line["kind"] == "selection" and line["arm"] == "token-30"
        else line
        for line in run_facts(make_study(runs=8))
    ]
    row = judged(records=facts)
    assert (row["verdict"], row["scope"], codes(row)) == ("decided", "each arm tuned", [])


def test_an_arm_without_a_grid_is_compared_with_a_tuned_one_under_a_note():
    facts = [
        r
        for r in run_facts(make_study(runs=8))
        if (r["kind"], r["arm"]) != ("selection", "token-15")
    ]
    row = judged(records=facts)
    assert (row["verdict"], row["scope"], codes(row)) == (
        "decided",
        "each arm tuned",
        ["grids-differ"],
    )
    start = [score_record("no-pretraining", s, "task-0", 0.1) for s in range(8)]
    row = judged(records=facts, more=start, contrasts=[("token-30", "no-pretraining")])
    # the model as it is has nothing to tune
    assert (row["scope"], codes(row)) == ("each arm tuned", [])


def test_a_tie_of_a_whole_grid_is_noted():
    facts = [
        line | {"tied": line["seed"] < 3}
        if line["kind"] == "selection" and line["arm"] == "token-15"
        else line
        for line in run_facts(make_study(runs=8))
    ]
    row = judged(records=facts)
    assert row["verdict"] == "decided" and facts_of(row, "tied-grid") == {
        "arms": ["token-15"],
        "searches": 3,
        "all": 16,
    }


# Runs that are missing
# ----------------------------------------------------------------------------


def test_missing_runs_are_noted_and_no_pair_is_no_comparison():
    seven = {"token-15": CLEAR["token-15"], "token-30": CLEAR["token-30"][:7]}
    row = judged(seven, more=[failure_record("token-30", 7)])
    assert row["verdict"] == "decided" and facts_of(row, "missing-runs") == {
        "missing": 1,
        "planned": 8,
    }
    lost = [failure_record("token-30", s) for s in range(8)]
    row = judged({"token-15": CLEAR["token-15"], "token-30": []}, more=lost)
    assert (row["verdict"], codes(row)[0]) == ("not comparable", "no-pairs")

    one = {"token-15": CLEAR["token-15"], "token-30": CLEAR["token-30"][:1]}
    row = judged(one, more=lost[1:])
    assert (row["verdict"], codes(row)[0]) == ("not comparable", "no-pairs")


@pytest.mark.parametrize("kind", ["failure", "selection"])
def test_an_unknown_arm_is_refused_in_every_record(kind):
    with pytest.raises(MaskwiseError, match="arm in records"):
        judged(more=[failure_record("token-99", 0) | {"kind": kind}])


def test_missing_runs_are_noted_where_those_of_the_start_failed():
    start = "no-pretraining"
    lines = [score_record(start, seed, "task-0", 0.4) for seed in range(7)]
    lost = [failure_record(start, 7)]
    row = judged(more=[*lines, *lost], contrasts=[["token-30", start]], reference=start)
    assert facts_of(row, "missing-runs") == {"missing": 1, "planned": 8}


# Measures that differ


def without_tasks(*lines: dict, arms: dict[str, dict], **changes: Any) -> dict[str, dict]:
    """The rows by outcome of a study without tasks, whose arms have these facts."""
    study = make_study(runs=8, arms=dict.fromkeys(arms, 0), tasks=0, **changes)
    for arm, facts in arms.items():
        study["arms"][arm] |= facts
    rows = summarise([*lines, *run_facts(study)], study)["contrasts"]
    return {row["outcome"]: row for row in rows}


def evaluated(name: str, metric: str, gain: float = 0.1, **more: Any) -> list[dict]:
    return [
        evaluation_record(arm, seed, name, metric, x + gain * (arm == "token-30"), **more)
        for arm in CLEAR
        for seed, x in enumerate(CLEAR["token-15"])
    ]


def losses(masks: str = "token", **by_arm: float) -> list[dict]:
    levels = {"token-15": 4.0, "token-30": 3.0} | by_arm
    return [
        heldout_record(arm, seed, masks, level + 0.01 * (seed % 3) * (arm == "token-30"))
        for arm, level in levels.items()
        for seed in range(8)
    ]


@pytest.mark.parametrize("other", ["a", "b"])
def test_numbers_per_token_do_not_compare_tokenizers(other):
    arms = {"token-15": {"tokenizer": "a"}, "token-30": {"tokenizer": other}}
    lines = losses() + evaluated("facts", "hits@1", chance=0.05)
    lines += evaluated("facts", "open-hits@1", chance=0.05) + evaluated("bound", "nats per token")
    rows = without_tasks(*lines, *evaluated("bound", "bits per byte"), arms=arms)
    apart = {name for name, row in rows.items() if "different-tokenizers" in codes(row)}
    per_token = {
        "heldout:token",
        "evaluation:facts:open-hits@1",
        "evaluation:bound:nats per token",
    }
    assert apart == (per_token if other == "b" else set())
    (primary,) = (name for name, row in rows.items() if row["primary"])
    assert primary == ("evaluation:facts:hits@1" if other == "b" else "heldout:token")
    study, lines = study_of(CLEAR)
    study["tasks"]["task-0"]["metric"] = "nats"
    study["arms"]["token-15"]["tokenizer"] = "a"
    study["arms"]["token-30"]["tokenizer"] = other
    nats = [line | {"metric": "nats"} for line in lines]
    for row in summarise(nats, study)["contrasts"]:
        assert ("different-tokenizers" in codes(row)) is (other == "b")


@pytest.mark.parametrize("pair", [("token-15", "token-30"), ("token-30", "token-15")])
def test_formats_that_decoders_learned_are_not_compared_in_one_of_them(pair):
    """Each arm was decided to beat the other, by the order of their names."""
    lines = losses("token full") + losses("token spans", **{"token-15": 6.0, "token-30": 5.0})
    arms = {"token-15": {"judged_on": ["token full"]}, "token-30": {"judged_on": ["token spans"]}}
    rows = without_tasks(*lines, arms=arms, contrasts=[pair]).values()
    assert {(row["verdict"], *codes(row)) for row in rows} == {
        ("not comparable", "different-formats")
    }
    same = {arm: {"judged_on": ["token full"]} for arm in arms}
    rows = without_tasks(*lines, arms=same).values()
    assert not any("different-formats" in codes(row) for row in rows)


@pytest.mark.parametrize(
    ("units", "comparable"),
    [
        (("whole-word", "whole-word"), True),  # whole-word against pos-weighted
        (("span", "token span"), False),  # span against span(over="token")
        (("whole-word", "token"), False),  # weighted against weighted(units="token")
    ],
)
def test_comparability_follows_from_units_and_not_from_the_name_of_the_policy(units, comparable):
    arms = {arm: {"units": unit, "policy": "x"} for arm, unit in zip(CLEAR, units, strict=True)}
    row = without_tasks(*losses(), arms=arms)["heldout:token"]
    assert ("different-units" not in codes(row)) is comparable
    assert (row["verdict"] == "not comparable") is not comparable


def test_evaluations_are_outcomes_with_their_own_chance_and_direction():
    lines = evaluated("facts", "hits@1", chance=0.1)
    lines += evaluated("pairs", "accuracy", 0.0, chance=0.52)
    lines += evaluated("pseudo-perplexity", "token", -10.0, higher_is_better=False)
    arms = {"token-15": {}, "token-30": {"units": "whole-word"}}
    facts, pairs, text = without_tasks(*lines, arms=arms).values()
    # No held-out loss can compare them: the facts do.
    assert facts["primary"] and (facts["verdict"], facts["better"]) == ("decided", "arm")
    assert (facts["unit"], facts["metric"]) == ("score", "hits@1")
    assert (pairs["verdict"], codes(pairs)) == ("not comparable", ["chance"])
    assert (codes(text), text["unit"]) == (["different-units"], "perplexity")
    alike = {"token-15": {}, "token-30": {}}
    text = without_tasks(*lines, arms=alike)["evaluation:pseudo-perplexity:token"]
    assert text["verdict"] is None and text["mean"] == pytest.approx(-10) and text["high"] < 0


def test_there_is_no_share_of_what_cannot_be_compared():
    arms = {"token-15": 0.0, "token-30": 0.0, "words": 0.0}
    study = make_study(runs=8, arms=arms, tasks=0, share=("token-30", "token-15"))
    lines = losses(**{"token-15": 5.0, "token-30": 4.0, "words": 4.4})
    for units, share in (("whole-word", None), ("token", pytest.approx(0.6, abs=0.01))):
        study["arms"]["words"]["units"] = units
        [line] = summarise([*lines, *run_facts(study)], study)["shares"]
        assert line["share"] == share and ("units" in line["sentence"]) is (share is None)


def test_unmatched_compute_is_said_by_quantity_and_the_verdict_stands():
    double = COST | {"targets": 2 * COST["targets"], "flops": 1.2 * COST["flops"]}
    facts = [r for r in run_facts(make_study(runs=8)) if r["kind"] != "cost"]
    facts += [cost_record("token-15", seed) for seed in range(8)]
    mine = [cost_record("token-30", seed, **double) for seed in range(8)]
    row = judged(records=facts + mine)
    assert row["verdict"] == "decided" and row["compute"]["matched"]
    assert facts_of(row, "compute")["ratios"] == pytest.approx({"targets": 2, "flops": 1.2})
    many = [line | {"targets": 120 * COST["targets"]} for line in mine]
    told = facts_of(judged(records=facts + many), "compute")["told"]
    assert "used 120 times the targets (tokens to predict), 1.2 times the FLOPs" in told
    by_targets = judged(records=facts + mine, match={"by": "targets", "arms": {}})
    assert not by_targets["compute"]["matched"]
    within = [line | {"targets": 1.04 * COST["targets"]} for line in mine]
    ratios = facts_of(judged(records=facts + within), "compute")["ratios"]
    assert ratios == pytest.approx({"flops": 1.2})
    unknown = judged(records=facts)  # it was not recorded of one side
    assert facts_of(unknown, "compute")["minor"] and "compute" not in advice_codes([unknown])


def test_looks_of_older_studies_name_numbers_of_runs_alone():
    study = make_study(runs=8, tasks=1)
    study["looked"] = [{"runs": 5, "looks": None}, {"runs": 6, "looks": None}]
    records = make_records(study, dict.fromkeys(study["arms"], 0.0))
    flags = summarise(records, study)["contrasts"][0]["flags"]
    assert "looked-before" in [flag["code"] for flag in flags]
