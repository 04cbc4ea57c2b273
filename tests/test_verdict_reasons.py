"""Every reason on a constructed case: what it does to the verdict, and that it is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from maskwise.errors import MaskwiseError
from maskwise.study.verdict import summarise
from maskwise.study.verdict.words import advice_of
from report_fixture import COST, cost_record, heldout_record, make_study, run_facts, score_record

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
    found = make_study(runs=len(next(iter(scores.values()))), arms=dict.fromkeys(scores, 0), tasks=1)
    found |= study
    lines = [score_record(arm, s, "task-0", x) for arm, runs in scores.items() for s, x in enumerate(runs)]
    summary = summarise([*lines, *(run_facts(found) if records is None else records), *more], found)
    json.dumps(summary, allow_nan=False)
    (row,) = (row for row in summary["contrasts"] if row["primary"])
    return row | {"summary": summary}


def codes(row: dict) -> list[str]:
    return [reason["code"] for reason in row["reasons"]]


def reason(row: dict, code: str) -> dict:
    return next(reason for reason in row["reasons"] if reason["code"] == code)


def advice_in(row: dict) -> list[str]:
    """The codes of what to do next."""
    return [code for code, _ in advice_of([row], {})]


def test_a_clear_case_is_decided_and_names_what_was_matched():
    row = judged()
    assert (row["verdict"], row["reason"], codes(row)) == ("decided", "significant", ["significant"])
    assert row["n"] == 8 and (row["compute"]["by"], row["compute"]["matched"]) == ("steps", True)
    assert advice_in(row) == ["use"] and len(row["summary"]["advice"]) == 1


def test_losses_per_token_do_not_compare_tokenizers():
    study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=0)
    lines = [
        *(heldout_record(arm, s, "token", 3.0 + (arm == "token-15")) for arm in CLEAR for s in range(8)),
        *({"kind": "evaluation", "name": "facts", "metric": metric, "arm": arm, "seed": s, "items": 500, "chance": 0.05,
           "value": 0.4 + 0.001 * s + 0.1 * (arm == "token-30"), "higher_is_better": True}
          for metric in ("hits@1", "open-hits@1") for arm in CLEAR for s in range(8)),
    ]  # fmt: skip
    for cuts, primary in ((("a", "a"), "heldout:token"), (("a", "b"), "evaluation:facts:hits@1")):
        for arm, cut in zip(study["arms"].values(), cuts, strict=True):
            arm["tokenizer"] = cut
        rows = {row["outcome"]: row for row in summarise([*lines, *run_facts(study)], study)["contrasts"]}
        assert [name for name, row in rows.items() if row["primary"]] == [primary]
        void = {name for name, row in rows.items() if row["reason"] == "different-tokenizers"}
        assert void == (set() if cuts == ("a", "a") else {"heldout:token", "evaluation:facts:open-hits@1"})


def test_nats_of_tasks_and_bounds_per_token_do_not_compare_tokenizers():
    for cuts, void in ((("a", "a"), set()), (("a", "b"), {"tasks", "task-0", "evaluation:bound:nats per token"})):
        study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=1)
        study["tasks"]["task-0"]["metric"] = "nats"
        for arm, cut in zip(study["arms"].values(), cuts, strict=True):
            arm["tokenizer"] = cut
        lines = [
            score_record(arm, s, "task-0", x, metric="nats") for arm, x_s in CLEAR.items() for s, x in enumerate(x_s)
        ]
        lines += [
            {"kind": "evaluation", "name": "bound", "metric": metric, "arm": arm, "seed": s, "items": 9, "chance": None,
             "value": x, "higher_is_better": False}
            for metric in ("nats per token", "bits per byte") for arm, x_s in CLEAR.items() for s, x in enumerate(x_s)
        ]  # fmt: skip
        rows = summarise([*lines, *run_facts(study)], study)["contrasts"]
        assert {row["outcome"] for row in rows if row["reason"] == "different-tokenizers"} == void


def test_formats_that_decoders_learnt_are_not_compared_in_one_of_them():
    """Each arm was decided to beat the other, by the order of their names."""
    study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=0)
    written = dict(zip(CLEAR, ("full", "spans")))
    for arm, facts in study["arms"].items():
        facts |= {"units": "token", "judged_on": [f"token {written[arm]}"]}
    lines = [
        heldout_record(arm, s, f"token {kind}", 3.0 + 2 * (kind != written[arm]) + 0.01 * (s % 3) * (arm == "token-15"))
        for arm in CLEAR for s in range(8) for kind in ("full", "spans")
    ]  # fmt: skip
    for pair in (("token-15", "token-30"), ("token-30", "token-15")):
        rows = summarise([*lines, *run_facts(study)], study | {"contrasts": [pair]})["contrasts"]
        assert {(row["verdict"], row["reason"]) for row in rows} == {("void", "different-formats")}
    for facts in study["arms"].values():
        facts["judged_on"] = ["token full"]
    rows = summarise([*lines, *run_facts(study)], study)["contrasts"]
    assert "different-formats" not in {row["reason"] for row in rows}


def test_no_share_is_told_of_what_cannot_be_compared():
    arms = {"token-15": 0.0, "token-30": 0.0, "words": 0.0}
    study = make_study(runs=8, arms=arms, tasks=0, share=("token-30", "token-15"))
    study["arms"]["words"]["units"] = "whole-word"
    level = {"token-15": 5.0, "token-30": 4.0, "words": 4.4}
    lines = [heldout_record(arm, s, "token", level[arm] + 0.01 * (s % 3)) for arm in arms for s in range(8)]
    [share] = summarise([*lines, *run_facts(study)], study)["shares"]
    assert share["share"] is None and share["sentence"].startswith("No share of ") and "units" in share["sentence"]
    study["arms"]["words"]["units"] = "token"
    [share] = summarise([*lines, *run_facts(study)], study)["shares"]
    assert share["share"] == pytest.approx(0.6)


def test_few_runs():
    row = judged({arm: runs[:3] for arm, runs in CLEAR.items()})
    assert (row["verdict"], row["reason"]) == ("suggests", "few-runs") and row["p"] is None
    assert reason(row, "few-runs")["runs"] == 3 and row["more_runs"] == 3


def test_plateau_at_the_arms_own_masks_and_any_ratio():
    def losses(at_15: float, at_40: float) -> list[dict]:
        both = [(arm, seed) for arm in CLEAR for seed in range(8)]
        return [
            heldout_record(arm, seed, "token", loss) | {"ratio": ratio}
            for arm, seed in both
            for ratio, loss in ((0.15, at_15), (0.4, at_40))
        ]

    stuck = judged(more=losses(6.1, 6.2))
    assert (stuck["verdict"], stuck["reason"]) == ("void", "plateau")
    assert reason(stuck, "plateau")["arms"] == ["token-30", "token-15"] and advice_in(stuck)[0] == "plateau"
    learnt_by_heart = judged(more=losses(7.1, 6.9))  # prices of 1,200 small ads, read 34 times
    assert (learnt_by_heart["verdict"], learnt_by_heart["reason"]) == ("void", "by-heart")
    assert advice_in(learnt_by_heart)[0] == "by-heart"
    start = [heldout_record("no-pretraining", s, "token", 5.5) | {"ratio": r} for s in range(8) for r in (0.15, 0.4)]
    forgotten = judged(more=[*losses(6.1, 6.2), *start])  # a stage of salient spans alone, judged by random words
    assert (forgotten["verdict"], forgotten["reason"]) == ("void", "forgotten")
    assert advice_in(forgotten)[0] == "forgotten" and "train longer" not in reason(forgotten, "forgotten")["sentence"]
    assert judged(more=[*losses(7.1, 6.9), *start])["reason"] == "by-heart"
    learnt = judged(more=losses(6.1, 5.5))  # context was learnt, as the harder ratio shows
    assert learnt["verdict"] == "decided"
    facts = learnt["summary"]["arms"]["token-15"]
    assert facts["gap_nats"] == pytest.approx(6.28 - 5.5) and not facts["plateau"]
    assert facts["scores"]["heldout:token"][0] == pytest.approx(5.8)  # the mean over ratios, inside the run
    assert set(facts["scores"]) >= {"heldout:token@0.15", "heldout:token@0.4"}


def test_chance_level():
    row = judged({"token-15": [0.05] * 8, "token-30": [0.06, 0.05] * 4})
    assert (row["verdict"], row["reason"]) == ("void", "chance-level")
    assert advice_in(row)[0] == "chance-level"


def test_different_units():
    row = judged(more=[heldout_record(a, s, "token", 4.0) for a in CLEAR for s in range(8)])
    assert row["verdict"] == "decided"
    study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=0)
    study["arms"]["token-30"]["units"] = "whole-word"
    records = [heldout_record(a, s, m, 4.0) for a in CLEAR for s in range(8) for m in ("token", "whole-word")]
    rows = summarise(records, study)["contrasts"]
    assert {(row["verdict"], row["reason"]) for row in rows} == {("void", "different-units")}


@pytest.mark.parametrize(
    ("units", "comparable"),
    [
        (("whole-word", "whole-word"), True),  # whole-word against pos-weighted
        (("span", "token span"), False),  # span against span(over="token")
        (("whole-word", "token"), False),  # weighted against weighted(units="token")
    ],
)
def test_comparability_follows_from_units_and_not_from_the_name_of_the_policy(units, comparable):
    """Rule 7: two policies of one name may mask different units, two of different names the same."""
    study = make_study(runs=3, arms=dict.fromkeys(CLEAR, 0), tasks=0)
    for (name, facts), unit in zip(study["arms"].items(), units, strict=True):
        facts |= {"units": unit, "policy": "weighted" if not comparable else f"policy of {name}"}
    records = [heldout_record(a, s, "token", 4.0 + 0.1 * s * (a == "token-15")) for a in CLEAR for s in range(3)]
    (row,) = summarise([*records, *run_facts(study)], study)["contrasts"]
    assert (row["reason"] != "different-units") is comparable


def test_unmatched_compute_is_said_by_quantity_and_the_verdict_stands():
    double = {"steps": 400, "tokens": 819_200, "targets": 2 * COST["targets"], "flops": 1.2 * COST["flops"]}
    facts = [r for r in run_facts(make_study(runs=8)) if (r["kind"], r["arm"]) != ("cost", "token-30")]
    facts += [cost_record("token-30", seed, **double) for seed in range(8)]
    row = judged(records=facts)
    assert row["verdict"] == "decided" and codes(row) == ["significant", "unmatched-compute"]
    assert row["compute"]["matched"] and row["reasons"][1]["ratios"] == pytest.approx({"targets": 2, "flops": 1.2})
    row = judged(records=facts, match={"by": "targets", "arms": {}})
    assert reason(row, "unmatched-compute")["ratios"]["targets"] == 2 and not row["compute"]["matched"]
    within = [r | {"targets": 1.04 * r["targets"]} if r["kind"] == "cost" else r for r in facts]
    assert "unmatched-compute" in codes(judged(records=within))
    unknown = judged(records=[r for r in facts if r["kind"] == "selection"], match=None)
    assert reason(unknown, "unmatched-compute")["ratios"] == {} and unknown["verdict"] == "decided"
    assert "unmatched-compute" not in advice_in(unknown)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"search": None}, "no-search"),
        ({"search": {"grid": {}, "seeds": [3, 1001]}}, "shared-seeds"),
        ({"records": []}, "no-choice"),
        ({"records": "other grid"}, "different-grids"),
    ],
)
def test_no_dev_selection_is_at_most_suggests(change, why):
    if change.get("records") == "other grid":
        change = {"records": run_facts(make_study(runs=8))}
        line = next(r for r in change["records"] if (r["kind"], r["arm"]) == ("selection", "token-30"))
        line["candidates"] = [*line["candidates"], {"setting": {"training.learning_rate": 1.0}}]
    row = judged(**change)
    assert (row["verdict"], row["reason"]) == ("suggests", "no-dev-selection")
    assert reason(row, "no-dev-selection")["why"] == why and row["p_adjusted"] < 0.05
    assert row["more_runs"] is None and advice_in(row)[0] == "no-dev-selection"


def test_a_best_setting_at_the_border_of_the_grid_is_at_most_a_suggestion():
    facts = [r | {"border": True} if r["kind"] == "selection" else r for r in run_facts(make_study(runs=8))]
    row = judged(records=facts)
    assert row["verdict"] == "suggests" and codes(row) == ["grid-border", "significant"]
    failed = [r | {"chosen": None} if r["kind"] == "selection" else r for r in facts]
    assert judged(records=failed)["reason"] == "no-dev-selection"


def test_missing_runs():
    failure = {"kind": "failure", "arm": "token-30", "seed": 7, "stage": "pretrain-x", "error": "disk full"}
    seven = {"token-15": CLEAR["token-15"], "token-30": CLEAR["token-30"][:7]}
    row = judged(seven, more=[failure])
    assert row["verdict"] == "decided" and codes(row) == ["significant", "missing-runs"]
    assert reason(row, "missing-runs")["missing"] == 1 and reason(row, "missing-runs")["planned"] == 8
    none = judged({"token-15": CLEAR["token-15"], "token-30": []}, more=[failure | {"seed": s} for s in range(8)])
    assert (none["verdict"], none["reason"]) == ("void", "missing-runs")


def test_seeds_that_only_one_side_has_are_refused():
    six = {"token-15": CLEAR["token-15"], "token-30": [x - 0.4 for x in CLEAR["token-30"][:6]]}
    with pytest.raises(MaskwiseError, match="lacks seeds"):
        judged(six)


def test_item_noise_is_another_interval_and_is_said():
    """Two points on 400 items: one share at .5 is uncertain by 1.96 · sqrt(.25 / 400) = 4.9 points."""
    close = {
        "token-15": CLEAR["token-15"],
        "token-30": [x + 0.02 + 1e-4 * i for i, x in enumerate(CLEAR["token-15"])],
    }
    row = judged(close)
    assert row["verdict"] == "decided" and codes(row) == ["significant", "item-noise"]
    assert row["items"]["high"] - row["items"]["low"] == pytest.approx(2 * 0.049, abs=0.001)
    assert reason(row, "item-noise")["points"] == pytest.approx(4.9, abs=0.05)
    facts = {"metric": "accuracy", "classes": 20, "majority": 0.05, "test_items": 10_000}
    assert "item-noise" not in codes(judged(close, tasks={"task-0": facts}))
    assert judged(close, tasks={"task-0": facts | {"metric": "macro-f1"}})["items"] is None


def test_the_noise_of_items_is_that_of_resampled_sentences_and_of_shared_ones_twice():
    """Two tasks on the same sentences are lucky together: half the independent tasks' gain in certainty is gone."""

    def half(**facts: Any) -> float:
        study = make_study(runs=8, tasks=2)
        study["tasks"] = {task: {"metric": "entity-f1", "test_items": 9, **facts} for task in study["tasks"]}
        lines = [score_record(arm, s, task, x, metric="entity-f1", item_error=0.03)
                 for arm, runs in CLEAR.items() for s, x in enumerate(runs) for task in study["tasks"]]  # fmt: skip
        rows = {row["outcome"]: row for row in summarise([*lines, *run_facts(study)], study)["contrasts"]}
        assert rows["task-0"]["items"]["high"] - rows["task-0"]["mean"] == pytest.approx(1.96 * 0.03)
        return rows["tasks"]["items"]["high"] - rows["tasks"]["natural"]["mean"]

    assert half() == pytest.approx(1.96 * 0.03 / 2**0.5)
    assert half(test_texts="ab12") == pytest.approx(1.96 * 0.03)


def test_overlap_is_said():
    line = {"kind": "overlap", "task": "task-0", "corpus": "wiki", "items": 400, "overlapping": 12}
    row = judged(more=[line])
    assert row["verdict"] == "decided" and reason(row, "overlap")["overlapping"] == 12
    assert row["summary"]["overlap"] == [{k: v for k, v in line.items() if k != "kind"}]
    assert "overlap" not in codes(judged(more=[line | {"overlapping": 0}]))
    few = judged(more=[line | {"overlapping": 3}])  # below a hundredth: said, but nothing need be done
    assert "overlap" in codes(few)
    assert ["Remove" in " ".join(each["summary"]["advice"]) for each in (row, few)] == [True, False]


def test_an_interval_with_zero_is_not_decided_by_the_test():
    """Six differences of one sign give p = .031, and Student's interval of one large and five tiny ones holds zero."""
    d = [0.30, 0.001, 0.001, 0.002, 0.001, 0.001]
    row = judged({"token-15": [0.5] * 6, "token-30": [0.5 + x for x in d]})
    assert row["p"] == 1 / 32 and row["low"] < 0
    assert (row["verdict"], row["reason"]) == ("undecided", "interval-holds-zero")


def test_advice_names_no_useless_number_of_runs():
    """Today's mean asks for thousands of runs: the sentence says what could be seen instead."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.02, 10)
    d = rng.normal(0, 0.02, 10)
    row = judged({"token-15": base.tolist(), "token-30": (base + d - d.mean() + 2e-4).tolist()})
    assert (row["verdict"], row["more_runs"]) == ("undecided", None)
    assert row["detectable"]["runs"] == 10
    assert row["detectable"]["natural"] == pytest.approx(d.std(ddof=1), rel=0.05)  # 10 runs, one SD: power .8
    assert advice_in(row)[0] == "no-more-seeds"


def test_advice_against_runs_says_which_comparison_where_there_are_several_baselines():
    row = {
        "verdict": "undecided",
        "n": 8,
        "more_runs": None,
        "detectable": {"runs": 8},
        "mean": 0.1,
        "reasons": [],
    }
    rows = [row | {"arm": "a", "baseline": base, "outcome": "tasks"} for base in ("b", "c")]
    (code, several), (_, single) = advice_of(rows, {})[0], advice_of(rows[:1], {})[0]
    assert code == "no-more-seeds" and "a against b, a against c" in several
    assert " a:" in single and "against" not in single


def test_evaluations_are_outcomes_with_their_own_chance_and_direction():
    study = make_study(runs=8, arms=dict.fromkeys(CLEAR, 0), tasks=0)
    study["arms"]["token-30"]["units"] = "whole-word"  # no held-out loss can compare them: the facts do

    def line(arm: str, seed: int, name: str, metric: str, value: float, **more: Any) -> dict:
        facts = {"items": 500, "chance": None, "higher_is_better": False}
        return {
            "kind": "evaluation",
            "arm": arm,
            "seed": seed,
            "name": name,
            "metric": metric,
            "value": value,
        } | (facts | more)

    rng = np.random.default_rng(0)
    records = run_facts(study)
    for arm, gain in (("token-15", 0.0), ("token-30", 0.2)):
        for seed in range(8):
            up = {"chance": 0.1, "higher_is_better": True}
            records.append(line(arm, seed, "facts", "hits@1", 0.4 + gain + rng.normal(0, 0.01), **up))
            records.append(line(arm, seed, "pairs", "accuracy", 0.5, chance=0.5, higher_is_better=True))
            records.append(line(arm, seed, "pseudo-perplexity", "token", 90 - 50 * gain + rng.normal(0, 1)))
    rows = {row["outcome"]: row for row in summarise(records, study)["contrasts"]}
    facts, pairs, text = (
        rows[f"evaluation:{x}"] for x in ("facts:hits@1", "pairs:accuracy", "pseudo-perplexity:token")
    )
    assert facts["primary"] and (facts["verdict"], facts["better"]) == ("decided", "arm")
    assert facts["unit"] == "score" and facts["metric"] == "hits@1"
    assert (pairs["verdict"], pairs["reason"]) == ("void", "chance-level")
    assert (text["verdict"], text["reason"], text["unit"]) == ("void", "different-units", "perplexity")
    study["arms"]["token-30"]["units"] = "token"
    rows = {row["outcome"]: row for row in summarise(records, study)["contrasts"]}
    text = rows["evaluation:pseudo-perplexity:token"]
    assert (text["verdict"], text["better"]) == ("suggests", "arm")
    assert text["mean"] == pytest.approx(-9.68, abs=0.005)


def test_seeds_and_ratios_must_be_whole():
    with pytest.raises(MaskwiseError, match=r"seed.*; got 9"):
        judged(more=[score_record("token-15", 9, "task-0", 0.5)])
    part = [heldout_record("token-15", s, "token", 4.0) | {"ratio": r} for s, r in ((0, 0.15), (0, 0.4), (1, 0.15))]
    with pytest.raises(MaskwiseError, match=r"held-out ratio was measured in some runs only.*seed 1"):
        judged(more=part)
