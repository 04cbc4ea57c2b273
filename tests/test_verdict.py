"""The rows of a summary on constructed cases: estimates, tests and flags.

``test_sentences.py`` pins verdicts, figures and flags of further studies by their sentences.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.masking.policies import policy
from maskwise.results.estimates import loss_table, shown, shown_in
from maskwise.results.files import Contrast
from maskwise.verdict import primary_pairs, summarise
from maskwise.verdict.outcomes import Outcomes, is_loss
from report_fixture import (
    CLEAR,
    COST,
    HIGH,
    LOW,
    codes,
    cost_record,
    evaluation_record,
    facts_of,
    failure_record,
    heldout_record,
    losses,
    make_records,
    make_study,
    primary_rows,
    row_of,
    rows_of,
    run_facts,
    score_record,
    selection_record,
    shared_selection,
    study_of,
    summary_of,
    with_unigram,
)

TIE = {
    "token-15": [0.70, 0.71, 0.69, 0.70, 0.72, 0.68],
    "token-30": [0.71, 0.70, 0.70, 0.69, 0.72, 0.69],
}
START = "no-pretraining"


def by_outcome(summary: dict) -> dict[str, dict]:
    return {row["outcome"]: row for row in summary["contrasts"]}


def test_a_lead_in_units_of_one_test_item_is_not_called_one_in_sds():
    """Runs that vary by less than a test item are standardised by its value."""
    words = " times the SD of runs within an arm"
    for items, least in ((29, True), (400, False)):
        row = row_of(TIE, tasks={"task-0": {"metric": "accuracy", "test_items": items}})
        assert row.get("least_sd", False) is least
        assert (f"{words} (or one test item, if that is more);" in row["sentence"]) is least
        assert (f"{words};" in row["sentence"]) is not least


# Margins
# ----------------------------------------------------------------------------


def row_of_losses(losses: list[float]) -> Contrast:
    """The row of two arms with held-out losses, the second arm's given, and a margin in nats."""
    study = make_study(runs=8, tasks=0, margin=0.05)
    records = [
        line
        for arm, runs in (("token-15", LOW), ("token-30", losses))
        for seed, loss in enumerate(runs)
        for line in with_unigram(heldout_record(arm, seed, "token", loss))
    ]
    (row,) = primary_rows(summarise(records + run_facts(study), study))
    return row


def test_arms_whose_interval_lies_within_the_margin_do_not_differ_in_what_matters():
    # Without a margin nothing is called equal, nor with one that the interval exceeds.
    assert [row_of(TIE, margin=margin)["verdict"] for margin in (None, 0.009)] == ["open"] * 2
    row = row_of(TIE, margin=0.05)
    assert (row["verdict"], row["better"]) == ("no difference that matters", None)
    assert row["equivalence"] == pytest.approx(
        {"margin": 0.05, "confidence": 0.95, "low": -0.01, "high": 0.01}
    )
    better = [x + 0.02 for x in TIE["token-15"]]
    assert row_of(TIE | {"token-30": better}, margin=0.05)["verdict"] == "decided"
    row = row_of_losses([0.51, 0.51, 0.52, 0.52] * 2)
    assert row["verdict"] == "no difference that matters"  # a margin in nats


@pytest.mark.parametrize("gain", [0.003, -0.003])
def test_a_difference_that_is_too_small_to_matter_is_no_reason_to_use_an_arm(gain):
    """The page said that such differences do not matter, and advised the arm all the same."""
    close = [x + gain + 1e-4 * i for i, x in enumerate(LOW)]
    for margin, matters in ((0.001, True), (0.01, False)):
        summary = summary_of({"token-15": LOW, "token-30": close}, margin=margin)
        (row,) = primary_rows(summary)
        assert row["verdict"] == summary["verdict"] == "decided"
        assert ("equivalence" in row) != matters
        advised = {"use", "weigh", "keep"} & set(summary["advice_codes"])
        assert advised == ({"use" if gain > 0 else "keep"} if matters else set())
        for said in (summary["headline"], row["sentence"], row["brief"]):
            assert ("too small to matter" in said) != matters or said.startswith("Keep ")
        assert ("every other arm is worse" in summary["headline"]) == (matters and gain < 0)


@pytest.mark.parametrize("base", [0.3, 0.6, 0.71, 0.8, 0.9])
def test_an_interval_that_ends_at_the_margin_lies_within_it(base):
    """.81 − .8 is .010000000000000009, which was more than a margin of .01."""
    firsts = [round(base + gain, 2) for gain in (0.01, 0, 0, -0.01, 0, 0)]
    row = row_of({"token-15": [base] * 6, "token-30": firsts}, margin=0.01)
    assert row["verdict"] == "no difference that matters"
    narrower = row_of({"token-15": [base] * 6, "token-30": firsts}, margin=0.00999)
    assert narrower["verdict"] == "open"


def test_the_interval_within_the_margin_is_of_the_lead_like_the_other_one():
    """A lower loss is better, so the ends had the wrong signs."""
    row = row_of_losses([0.505, 0.515, 0.505, 0.51] * 2)
    said = row["sentence"]
    assert "95 % interval, −0.002 to 0.013 nats, lies within" in said
    assert "95 % interval of token-30's lead: −0.002 to 0.013;" in said


@pytest.mark.parametrize(("runs", "most"), [(5, 0), (6, 1), (7, 3), (8, 6)])
def test_so_many_contrasts_can_so_few_runs_call_equal(runs, most):
    """With too few runs for an interval at 1 − .05/k there is none, and everything stays open."""
    base = [0.70, 0.71, 0.69, 0.70, 0.72, 0.68, 0.70, 0.71][:runs]
    tie = [x + 0.001 * (-1) ** s for s, x in enumerate(base)]
    for contrasts in range(1, 7):
        arms = {f"token-{20 + i}": tie for i in range(contrasts)}
        summary = summary_of({"token-15": base} | arms, margin=0.05)
        verdicts = {row["verdict"] for row in rows_of(summary)}
        assert verdicts == {"no difference that matters" if contrasts <= most else "open"}


def test_a_margin_leaves_a_look_to_come_its_share_of_the_error():
    twice = {arm: [*runs, *runs] for arm, runs in TIE.items()}
    found = [row_of(twice, margin=0.05, looks=looks)["equivalence"] for looks in (None, [12, 24])]
    assert found[0]["confidence"] == 0.95 < found[1]["confidence"]
    # six runs have no interval at that level
    assert row_of(TIE, margin=0.05, looks=[6, 12])["verdict"] == "open"


# Tasks
# ----------------------------------------------------------------------------


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
            score_record(arm, seed, task, x)
            for arm, row in scores.items()
            for seed, x in enumerate(row)
            for task in study["tasks"]
        ]
        found.append(rows_of(summarise(records, study))[0])
    for key in ("n", "mean", "low", "high", "p"):
        assert found[0][key] == pytest.approx(found[1][key])


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


def test_chance_is_that_of_each_task_and_voids_the_task_alone():
    """Of the answers that were asked, as the records have it."""
    scores = {"token-15": 0.12, "token-30": 0.10}
    told = [
        score_record(arm, seed, "task-0", x, chance=0.11)
        for arm, x in scores.items()
        for seed in range(8)
    ]
    facts = {"metric": "exact-match", "test_items": 400, "majority": None}
    study = make_study(runs=8, arms=scores) | {"tasks": {"task-0": facts}}
    summary = summarise(told + run_facts(study), study)
    (row,) = primary_rows(summary)
    assert "chance" in codes(row) and summary["advice_codes"][0] == "chance"


@pytest.mark.parametrize(
    ("score", "start", "told"),
    [(0.05, 0.05, ["extra"]), (0.3, 0.05, []), (0.05, 0.3, []), (0.05, None, ["extra"])],
)
@pytest.mark.parametrize("secondary", [["extra"], []])
def test_a_task_that_nobody_learns_is_named_once_in_the_headline(score, start, told, secondary):
    """A task that does not count, or one of several."""
    study, records = study_of(CLEAR, secondary=secondary)
    study["tasks"]["extra"] = {"metric": "accuracy", "majority": 0.05, "test_items": 400}
    scores = {"token-15": 0.05, "token-30": score}
    records += [score_record(arm, s, "extra", x) for arm, x in scores.items() for s in range(8)]
    if start is not None:
        levels = {"extra": start, "task-0": 0.4}.items()
        records += [score_record(START, s, task, x) for task, x in levels for s in range(8)]
    summary = summarise(records, study)
    assert summary["guessed"] == told
    said = [summary["headline"], *summary["advice"], *map(str, summary["contrasts"])]
    assert sum("guessing on extra" in text for text in said) == len(told)
    assert ("guessing on extra" in summary["headline"]) == bool(told)


def test_a_task_that_voids_the_verdict_is_not_named_again():
    scores = {"token-15": [0.05] * 8, "token-30": [0.051] * 8}
    summary = summary_of(scores)
    assert "chance" in codes(rows_of(summary)[0]) and summary["guessed"] == []


def in_nats(values: dict[str, float], **more: Any) -> dict[str, Any]:
    """The summary of a study with one task in nats per token, where lower is better."""
    study = make_study(runs=10, arms=values, tasks=1)
    study["tasks"]["task-0"] |= {"metric": "nats", "majority": None}
    records = []
    for arm, seed in product(values, range(10)):
        luck = 0.01 * (seed % 3) + 0.003 * (seed % 2) * (arm == "arm")
        facts = {"metric": "nats", "chance": 5.0, **more}
        records.append(score_record(arm, seed, "task-0", values[arm] + luck, **facts))
    return summarise(records, study)


def test_fewer_nats_are_better() -> None:
    tasks, alone = in_nats({"base": 4.0, "arm": 3.5}, item_sd=2.0)["contrasts"]
    assert (tasks["outcome"], tasks["better"], tasks["higher_is_better"]) == ("tasks", "arm", True)
    assert tasks["mean"] > 0 and tasks["natural"]["mean"] == pytest.approx(0.4985)
    assert (alone["unit"], alone["verdict"], alone["higher_is_better"]) == ("nats", None, False)
    assert alone["mean"] == pytest.approx(-0.4985)
    assert shown(tasks).unit == shown(alone).unit == "nats"
    # The spread of 400 items: 1.96 · 2 / √400.
    assert alone["items"]["alone"] == pytest.approx(1.96 * 2 / 20)
    void = in_nats({"base": 5.1, "arm": 5.0})["contrasts"]
    assert [row["flags"][0]["code"] for row in void] == ["chance"] * 2


def test_the_interval_shown_agrees_with_the_test() -> None:
    """The test is about standardised scores. Plain means, in which a noisy task outweighs the
    others, are shown only if they lead to the same conclusion.
    """
    draw = np.random.default_rng(0)
    records = []
    for arm, seed in product(("base", "arm"), range(8)):
        exact = 0.6 + 0.02 * (arm == "arm") + 0.01 * draw.normal()
        records.append(score_record(arm, seed, "task-0", exact))
        records.append(score_record(arm, seed, "task-1", 0.6 + 0.05 * draw.normal()))
    row = summarise(records, make_study(runs=8, arms={"base": 0.0, "arm": 0.0}))["contrasts"][0]
    assert row["verdict"] == "decided" and row["low"] > 0 > row["natural"]["low"]
    assert shown(row).unit == "SDs of runs within an arm" and shown(row).low > 0
    # An end at 0 counts as the other side of 0, whichever arm is ahead.
    for sign in (1, -1):
        ends = sorted((sign * 0.1, sign * 0.9))
        row |= {"mean": sign * 0.5, "low": ends[0], "high": ends[1]}
        ends = sorted((0.0, sign * 0.02))
        row["natural"] = {"mean": sign * 0.01, "low": ends[0], "high": ends[1]}
        assert shown(row).unit == "SDs of runs within an arm"


def test_a_study_of_points_and_nats_has_no_mean_in_either() -> None:
    study = make_study(runs=3, arms={"base": 0.0, "arm": 0.1})
    study["tasks"]["task-1"] |= {"metric": "nats", "majority": None}
    records = []
    for arm, seed in product(("base", "arm"), range(3)):
        gain = 0.1 * (arm == "arm")
        luck = 0.01 * (seed + (arm == "arm") * seed % 2)
        records.append(score_record(arm, seed, "task-0", 0.5 + gain + luck))
        records.append(score_record(arm, seed, "task-1", 4.0 - gain + luck, metric="nats"))
    row = summarise(records, study)["contrasts"][0]
    assert row["mean"] > 0 and "natural" not in row
    assert row["metric"] is None and row["items"] is None
    assert shown(row).unit == "SDs of runs within an arm"
    # The difference that is detected has no unit either: it was NaN, which is no JSON.
    assert row["verdict"] == "open" and row["detectable"]["difference"] is None
    json.dumps(row, allow_nan=False)
    assert "no-margin" not in codes(row)
    # A margin was ignored.
    row = summarise(records, study | {"margin": 0.5})["contrasts"][0]
    [facts] = [flag["facts"] for flag in row["flags"] if flag["code"] == "no-margin"]
    assert facts["margin"] == 0.5


@pytest.mark.parametrize("task", ["tasks", "heldout:token@0.15", "evaluation:a:b"])
def test_a_task_has_not_the_name_of_another_outcome(task: str) -> None:
    """A task called tasks was judged twice, with twice the contrasts for Holm's correction."""
    study, records = study_of(CLEAR, tasks={task: {"metric": "accuracy"}})
    records = [line | {"measure": task} if line["kind"] == "task" else line for line in records]
    with pytest.raises(MaskwiseError, match=f"task cannot be called '{task}'"):
        summarise(records, study)


def test_a_task_may_be_called_like_a_measure_of_tokens() -> None:
    arms = {n: facts | {"tokenizer": n} for n, facts in make_study(runs=8)["arms"].items()}
    task = "labels per token"
    study, records = study_of(CLEAR, tasks={task: {"metric": "accuracy"}}, arms=arms)
    records = [line | {"measure": task} if line["kind"] == "task" else line for line in records]
    assert "different-tokenizers" not in codes(by_outcome(summarise(records, study))[task])


def test_a_margin_of_a_perplexity_is_said_to_have_no_effect() -> None:
    study = make_study(runs=3, arms={"base": 0.0, "arm": 0.1}, tasks=0, margin=0.5)
    lines = [
        evaluation_record(arm, seed, "pseudo-perplexity", "token", 9 + seed, higher_is_better=False)
        for arm, seed in product(("base", "arm"), range(3))
    ]
    study["outcome"] = "evaluation:pseudo-perplexity:token"
    [row] = primary_rows(summarise(lines, study))
    assert facts_of(row, "no-margin")["margin"] == 0.5


def test_the_noise_of_items_is_that_of_resampled_sentences_and_of_shared_ones_twice():
    """Two tasks on the same sentences are lucky together: half the independent tasks' gain in
    certainty is gone.
    """

    def half(**facts: Any) -> float:
        study = make_study(runs=8, tasks=2)
        task_facts = {"metric": "entity-f1", "test_items": 9, **facts}
        study["tasks"] = dict.fromkeys(study["tasks"], task_facts)
        lines = [
            score_record(arm, seed, task, x, metric="entity-f1", item_error=0.03)
            for arm, runs in CLEAR.items()
            for seed, x in enumerate(runs)
            for task in study["tasks"]
        ]
        rows = by_outcome(summarise([*lines, *run_facts(study)], study))
        one = rows["task-0"]
        assert one["items"]["alone"] == pytest.approx(1.96 * 0.03)
        return rows["tasks"]["items"]["alone"]

    assert half() == pytest.approx(1.96 * 0.03 / 2**0.5)
    assert half(test_texts="ab12") == pytest.approx(1.96 * 0.03)


def test_a_half_is_rounded_away_from_0_whatever_the_rounding_errors():
    """The mean of 39 right answers of 400 is 9.75 points, and as a float slightly less."""
    for halves in range(1, 2000, 2):
        nearly = halves / 2000 * (1 - 1e-15)
        tenths = (halves + 1) // 2
        points = f"{tenths // 10}.{tenths % 10}"
        estimate = {"mean": -nearly, "low": -nearly, "high": -nearly}
        amount = shown_in("score", "accuracy", estimate, None, higher=True)
        assert (amount.figure(), amount.size()) == (f"−{points}", f"{points} accuracy points")
        assert amount.ends(ahead=True) == f"{points} to {points}"


def test_the_noise_of_items_falls_with_their_number_and_needs_a_share():
    close = CLEAR | {"token-30": [x + 0.02 + 1e-4 * i for i, x in enumerate(LOW)]}
    facts = {"metric": "accuracy", "classes": 20, "majority": 0.05, "test_items": 10_000}
    assert "items" not in codes(row_of(close, tasks={"task-0": facts}))
    assert row_of(close, tasks={"task-0": facts | {"metric": "macro-f1"}})["items"] is None


def test_overlap_below_a_hundredth_needs_no_advice():
    line = {"kind": "overlap", "task": "task-0", "corpus": "wiki", "items": 400, "overlapping": 3}
    summary = summary_of(more=[line])
    assert "overlap" in codes(primary_rows(summary)[0]) and summary["overlap"] == [line]
    assert "corpus" not in " ".join(summary["advice"])
    assert "overlap" not in codes(row_of(more=[line | {"overlapping": 0}]))


@pytest.mark.parametrize(("covered", "matters"), [(0, False), (3, False), (4, True), (None, True)])
def test_shared_formulas_are_named_and_need_no_advice(covered, matters):
    """Older records do not say of how many items the corpus has half of the words."""
    line = {"kind": "overlap", "task": "task-0", "corpus": "wiki", "items": 400, "overlapping": 80}
    if covered is not None:
        line |= {"covered": covered, "run": "x: array-like", "run_words": 14, "n": 13}
    summary = summary_of(more=[line])
    (flag,) = [each for each in primary_rows(summary)[0]["flags"] if each["code"] == "overlap"]
    assert flag["facts"]["minor"] == (not matters)
    assert ("memorisation" in " ".join(summary["advice"])) == matters
    assert "13 words in a row" in flag["sentence"] and "80 of 400" in flag["sentence"]
    assert ("x: array-like" in flag["sentence"]) == (covered is not None)


# Floors
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "start", "flag", "arms"),
    [
        # On a text that is learned by heart, held-out text is worse than unigrams.
        ((7.5, 7.49), None, "floor", ["token-30", "token-15"]),
        ((6.2, 6.19), None, "floor", ["token-30", "token-15"]),
        ((6.276 - 0.29, 6.276 - 0.29), None, "floor", ["token-30", "token-15"]),
        ((6.276 - 0.31, 6.276 - 0.31), None, None, []),
        # One side above the floor and one at it is an answer, unless it fell back from its start.
        ((6.2, 4.0), None, "near-floor", ["token-15"]),
        ((4.0, 6.2), 5.5, "floor", ["token-30"]),
        ((4.0, 6.2), 6.25, "near-floor", ["token-30"]),
    ],
)
def test_sides_at_the_floor_of_word_frequencies(levels, start, flag, arms):
    lines = losses(dict(zip(CLEAR, levels, strict=True)))
    if start is not None:
        lines += losses({START: start})
    rows = by_outcome(summary_of(more=lines))
    loss = rows["heldout:token"]
    assert [code for code in codes(loss) if "floor" in code] == [flag] * (flag is not None)
    assert (loss["verdict"] == "not comparable") is (flag == "floor")
    assert flag is None or facts_of(loss, flag)["arms"] == arms
    # The loss is void, and tasks still count.
    assert rows["tasks"]["verdict"] == "decided" and codes(rows["tasks"]) == []


def test_a_gap_next_to_the_floor_does_not_read_as_the_floor():
    rows = by_outcome(summary_of(more=losses(dict.fromkeys(CLEAR, 6.276 - 0.298))))
    assert facts_of(rows["heldout:token"], "floor")["words"] == "+0.299 and +0.299"


@pytest.mark.parametrize(
    ("steps", "when"),
    [({"token-15": 300, "token-30": 450}, "after 300 steps"), ({}, "at this length")],
)
def test_a_named_outcome_decides_and_says_how_far_a_side_at_the_floor_carries(steps, when):
    costs = [cost_record(arm, seed, steps=steps[arm]) for arm, seed in product(steps, range(8))]
    more = losses({"token-15": 6.2, "token-30": 4.0})
    summary = summary_of(more=more, facts=costs, outcome="heldout:token")
    (row,) = primary_rows(summary)
    assert (row["outcome"], row["verdict"], row["better"]) == ("heldout:token", "decided", "arm")
    assert facts_of(row, "near-floor")["when"] == when
    assert when.split()[-2] in summary["headline"] and "token-15" in summary["headline"]
    assert {"use", "near-floor"} <= set(summary["advice_codes"])


def test_a_single_ratio_decides_by_its_mean_or_by_its_name():
    lines = losses(dict.fromkeys(CLEAR, 4.0))
    for outcome in ("heldout:token", "heldout:token@0.15"):
        assert row_of(more=lines, outcome=outcome)["outcome"] == "heldout:token"


def test_an_outcome_that_one_side_lacks_leaves_a_contrast_to_the_tasks():
    more = [score_record(START, seed, "task-0", 0.3) for seed in range(8)]
    more += losses(dict.fromkeys(CLEAR, 4.0))
    gate = {"contrast": ["token-30", START], "closes": [["token-30", "token-15"]]}
    untrained = {START: "the untrained model"}
    changes = {"outcome": "heldout:token", "gate": gate, "untrained": untrained}
    rows = primary_rows(summary_of(more=more, **changes))
    found = {row["baseline"]: row["outcome"] for row in rows}
    assert found == {START: "tasks", "token-15": "heldout:token"}


def test_the_floor_is_judged_at_the_arms_own_masks_and_any_ratio():
    lines = losses(dict.fromkeys(CLEAR, 6.1))
    lines += losses(dict.fromkeys(CLEAR, 5.5), ratio=0.4)
    # context was learned, as the harder ratio shows
    summary = summary_of(more=lines)
    assert summary["arms"]["token-15"]["gap_nats"] == pytest.approx(6.28 - 5.5, abs=0.01)
    # the mean over ratios is taken inside the run
    assert summary["arms"]["token-15"]["scores"]["heldout:token"][0] == pytest.approx(5.8)
    foreign = losses(dict.fromkeys(CLEAR, 6.5), "whole-word")
    for found in (summary, summary_of(more=[*lines, *foreign])):
        assert not any("floor" in codes(row) for row in found["contrasts"])


# What was tuned, and what is missing
# ----------------------------------------------------------------------------

FACTS = run_facts(make_study(runs=8))
COSTS = [line for line in FACTS if line["kind"] == "cost"]
OLD = [*COSTS, shared_selection("token-30")]
OWN_CHOICE = {"chosen": {"training.learning_rate": 0.002}}


@pytest.mark.parametrize(
    ("facts", "verdict", "scope", "flags"),
    [
        (FACTS, "decided", "each arm tuned", []),
        (COSTS, "decided", "at these settings", ["untuned"]),
        # Every replicate may choose settings of its own.
        (
            [*COSTS, *(selection_record("token-15", seed) for seed in range(8))]
            + [selection_record("token-30", seed, **OWN_CHOICE) for seed in range(8)],
            "decided",
            "each arm tuned",
            [],
        ),
        # One arm has no grid.
        (
            [*COSTS, *(selection_record("token-30", seed) for seed in range(8))],
            "decided",
            "each arm tuned",
            [],
        ),
        # One search for all seeds decides only where both sides kept the same setting.
        ([*OLD, shared_selection("token-15")], "decided", "at these settings", []),
        (
            [*OLD, shared_selection("token-15", 0.002)],
            "open",
            "at these settings",
            ["settings-differ"],
        ),
        (OLD, "decided", "at these settings", []),
    ],
)
def test_what_was_tuned(facts, verdict, scope, flags):
    row = row_of(facts=facts)
    assert (row["verdict"], row["scope"], codes(row)) == (verdict, scope, flags)
    assert row["p_adjusted"] < 0.05 and (row["better"] == "arm") is (verdict == "decided")


def test_the_model_as_it_is_has_nothing_to_tune():
    start = [score_record(START, seed, "task-0", 0.1) for seed in range(8)]
    row = row_of(more=start, contrasts=[("token-30", START)])
    assert (row["scope"], codes(row)) == ("each arm tuned", [])


@pytest.mark.parametrize("left", [0, 1])
def test_no_pair_is_no_comparison_where_runs_failed(left):
    lost = [failure_record("token-30", seed) for seed in range(left, 8)]
    summary = summary_of(CLEAR | {"token-30": HIGH[:left]}, more=lost)
    (row,) = primary_rows(summary)
    assert (row["verdict"], codes(row)[0]) == ("not comparable", "no-pairs")
    assert summary["arms"]["token-30"]["failures"] == 8 - left


def test_missing_runs_are_noted_where_those_of_the_start_failed():
    lines = [score_record(START, seed, "task-0", 0.4) for seed in range(7)]
    lost = [failure_record(START, 7)]
    row = row_of(more=[*lines, *lost], contrasts=[["token-30", START]], untrained={START: START})
    assert facts_of(row, "missing-runs") == {"missing": 1, "planned": 8}


def test_a_half_fine_tuned_failed_run_is_left_out_whole():
    study = make_study(runs=3)
    records = [r for r in make_records(study, {}) if r["kind"] == "task"]
    lost = ("token-30", 1, "task-1")
    cut = [r for r in records if (r["arm"], r["seed"], r["measure"]) != lost]
    summary = summarise([*cut, failure_record("token-30", 1)], study)
    assert rows_of(summary, "task-0")[0]["n"] == 2
    scores = summary["arms"]["token-30"]["scores"]["task-0"]
    assert [score is None for score in scores] == [False, True, False]
    with pytest.raises(
        MaskwiseError, match=r"other runs have; got no task-1 for arm 'token-30', seed 1"
    ):
        summarise(cut, study)


@pytest.mark.parametrize("reference", [False, True])
def test_a_failure_on_a_secondary_task_is_one_of_this_task_alone(reference):
    """The run was left out of the primary outcome, which then had a pair too few to decide."""
    arms = {"token-15": 0.0, "token-30": 0.1}
    study = make_study(runs=6, arms=arms, secondary=["task-1"])
    study["tasks"] |= {name: facts | {"test_items": 9999} for name, facts in study["tasks"].items()}
    records = [r for r in make_records(study, arms, noise=0.001) if r["kind"] == "task"]
    if reference:
        study |= {"untrained": {START: START}, "contrasts": [["token-30", START]]}
    lost = study["contrasts"][0][1]
    failed = failure_record(lost, 1, stage="finetune-0123456789abcdef")
    cut = [r for r in records if (r["arm"], r["seed"], r["measure"]) != (lost, 1, "task-1")]
    rows = by_outcome(summarise([*cut, failed], study))
    [expected] = primary_rows(summarise(records, study))
    assert expected["verdict"] == "decided"
    assert rows["tasks"] == expected and rows["task-0"]["n"] == 6
    assert rows["task-1"]["n"] == 5 and "missing-runs" in codes(rows["task-1"])
    assert rows["task-1"]["failures"]["baseline"]["failed"] == 1
    # Where another stage failed, too, the run has failed for all outcomes.
    other = failure_record(lost, 1, stage="evaluate-0123456789abcdef")
    rows = by_outcome(summarise([*cut, failed, other], study))
    assert rows["tasks"]["failures"]["baseline"]["failed"] == 1
    with pytest.raises(MaskwiseError, match="lacks an outcome that other runs have; got no task-1"):
        summarise(cut, study)


# Measures that differ
# ----------------------------------------------------------------------------


def without_tasks(*lines: dict, arms: dict[str, dict], **changes: Any) -> dict[str, dict]:
    """The rows by outcome of a study without tasks, whose arms have these facts."""
    study = make_study(runs=8, arms=dict.fromkeys(arms, 0), tasks=0, **changes)
    for arm, facts in arms.items():
        study["arms"][arm] |= facts
    return by_outcome(summarise([*lines, *run_facts(study)], study))


def evaluated(name: str, metric: str, **more: Any) -> list[dict]:
    return [
        evaluation_record(arm, seed, name, metric, x, **more)
        for arm, runs in CLEAR.items()
        for seed, x in enumerate(runs)
    ]


LEVELS = {"token-15": 4.0, "token-30": 3.0}


@pytest.mark.parametrize("other", ["a", "b"])
def test_numbers_per_token_do_not_compare_tokenizers(other):
    arms = {"token-15": {"tokenizer": "a"}, "token-30": {"tokenizer": other}}
    lines = losses(LEVELS) + evaluated("facts", "hits@1", chance=0.05)
    lines += evaluated("facts", "open-hits@1", chance=0.05) + evaluated("bound", "nats per token")
    rows = without_tasks(*lines, *evaluated("bound", "bits per byte"), arms=arms)
    apart = {name for name, row in rows.items() if "different-tokenizers" in codes(row)}
    per_token = ["facts:open-hits@1", "bound:nats per token"]
    per_token = {"heldout:token", *(f"evaluation:{name}" for name in per_token)}
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


def test_the_reference_has_none_of_the_new_tokens_of_an_arm():
    study, lines = study_of(CLEAR)
    for facts in study["arms"].values():
        facts["tokenizer"] = "a"
    assert Outcomes(lines, study).tokenizers("token-30", "no-pretraining") == {"a"}
    study["arms"]["token-30"]["extended"] = True
    assert len(Outcomes(lines, study).tokenizers("token-30", "no-pretraining")) == 2


@pytest.mark.parametrize("pair", [("token-15", "token-30"), ("token-30", "token-15")])
def test_formats_that_decoders_learned_are_not_compared_in_one_of_them(pair):
    """Each arm was decided to beat the other, by the order of their names."""
    lines = losses(LEVELS, "token full") + losses({"token-15": 6.0, "token-30": 5.0}, "token spans")
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
    row = without_tasks(*losses(LEVELS), arms=arms)["heldout:token"]
    assert ("different-units" not in codes(row)) is comparable
    assert (row["verdict"] == "not comparable") is not comparable


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        ("token", ("token",)),
        ("whole-word", ("whole-word",)),
        ("span", ("whole-word",)),
        ("span(over='token')", ("token",)),
        ("t5-span", ("token",)),
        ("weighted(units='word')", ("whole-word",)),
        ("weighted(units='token')", ("token", "whole-word")),
        ("mixture(whole-word, span)", ("whole-word",)),
        ("mixture(whole-word, token)", ("token", "whole-word")),
    ],
)
def test_a_policy_is_judged_by_its_own_kind_of_mask(spec: str, kinds: tuple[str, ...]) -> None:
    assert policy(spec).judged_on() == kinds


def test_a_mixture_of_words_is_not_on_the_plateau_for_its_token_masks() -> None:
    facts = {"units": "mixture", "judged_on": ["whole-word"]}
    lines = losses(dict.fromkeys(CLEAR, 6.8)) + losses(dict.fromkeys(CLEAR, 4.3), "whole-word")
    rows = without_tasks(*lines, arms=dict.fromkeys(CLEAR, facts))
    assert not any("floor" in codes(row) for row in rows.values())
    assert [name for name, row in rows.items() if row["primary"]] == ["heldout:whole-word"]


def test_a_loss_is_known_by_its_measure():
    """A set of texts may be called anything."""
    assert not is_loss("evaluation:perplexity-quiz:accuracy")
    assert is_loss("evaluation:pseudo-perplexity:token") and is_loss("heldout:token@0.15")


def test_compute_counts_as_equal_within_a_twentieth_and_is_written_without_exponents():
    facts = [r for r in FACTS if (r["kind"], r["arm"]) != ("cost", "token-30")]

    def compute(**spent: float) -> dict:
        mine = [cost_record("token-30", seed, **spent) for seed in range(8)]
        return facts_of(row_of(facts=facts + mine), "compute")

    within = {"targets": 1.04 * COST["targets"], "flops": 1.2 * COST["flops"]}
    assert compute(**within)["ratios"] == pytest.approx({"flops": 1.2})
    told = compute(targets=120 * COST["targets"])["told"]
    assert "used 120 times the targets (tokens to predict)" in told
    summary = summary_of(facts=facts)  # it was not recorded of one side
    (unknown,) = primary_rows(summary)
    assert facts_of(unknown, "compute")["minor"] and "compute" not in summary["advice_codes"]


def test_nobody_is_told_to_match_compute_where_a_contrast_has_done_it():
    """The recipe quick-start compares a decaying ratio with 30 %, which has as many targets."""
    scores = {"token-15": LOW, "token-30": LOW, "linear": HIGH}
    twice = {"targets": 2 * COST["targets"]}
    costs = [cost_record("token-15", seed) for seed in range(8)]
    costs += [cost_record("linear", seed, **twice) for seed in range(8)]

    def advised(**spent: float) -> bool:
        facts = [*costs, *(cost_record("token-30", seed, **spent) for seed in range(8))]
        pairs = [["linear", "token-30"], ["linear", "token-15"]]
        summary = summary_of(scores, facts=facts, contrasts=pairs)
        assert "compute" in codes(primary_rows(summary)[1])
        return "compute" in summary["advice_codes"]

    assert not advised(**twice)
    assert advised(targets=1.5 * COST["targets"])


def test_the_advice_to_use_an_arm_says_for_how_long_and_at_what_cost():
    costs = [cost_record("token-15", seed) for seed in range(8)]
    costs += [cost_record("token-30", seed, targets=245_760) for seed in range(8)]
    (use,) = (line for line in summary_of(facts=costs)["advice"] if line.startswith("Use token-30"))
    assert "400 steps" in use and "2 times the targets" in use


def test_advice_does_not_say_both_to_add_runs_and_that_runs_do_not_help():
    """The terminal said "add runs", and the page "more runs cannot make up for few test items"."""
    close = [x + 0.003 + 0.003 * (i % 3 - 1) for i, x in enumerate(LOW)]
    summary = summary_of({"token-15": LOW, "token-30": close}, margin=0.0045)
    (row,) = primary_rows(summary)
    assert row["verdict"] == "open" and row["runs_to_decide"] and "items" in codes(row)
    advice = " ".join(summary["advice"])
    assert "cannot make up" not in advice and "larger test set" in advice


@pytest.mark.parametrize("gain", [-0.1, 0.1])
def test_the_headline_of_losses_says_if_no_arm_gained_on_the_tasks(gain):
    more = losses({"token-15": 4.5, "token-30": 4.3})
    more += [score_record("no-pretraining", seed, "task-0", 0.5) for seed in range(8)]
    scores = {arm: [0.5 + gain + 0.001 * i for i in range(8)] for arm in CLEAR}
    summary = summary_of(
        scores, more=more, outcome="heldout:token", untrained={START: "the old model"}
    )
    said = "No arm has gained on the tasks over the old model." in summary["headline"]
    assert said == (gain < 0)


def test_the_summary_has_the_losses_of_all_arms_and_of_a_start_that_was_trained_before():
    means = {"token-15": 4.5, "token-30": 4.3, START: 5.0}
    summary = summary_of(more=losses(means))
    (one,) = summary["losses"]
    assert one["outcome"] == "heldout:token@0.15" and one["frequencies"] == pytest.approx(6.28)
    assert one["means"] == pytest.approx({arm: mean + 0.0035 for arm, mean in means.items()})
    assert loss_table(summary["losses"])[1:] == [
        ["token-15", "4.503"],
        ["token-30", "4.303"],
        [START, "5.003"],
        ["word frequencies alone", "6.280"],
    ]
    # Nothing is estimated while runs are missing.
    assert summary_of(more=losses(means), pending=[7])["losses"] == []
    assert summary_of()["losses"] == []


# Headline and primary rows
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "worse"), [(0.3, False), (0.6, False), (0.9, True)])
def test_a_winner_that_is_worse_than_the_start_is_told(start: float, worse: bool):
    more = [score_record(START, seed, "task-0", start) for seed in range(8)]
    told = "All arms have a worse mean than the untrained model on the tasks."
    for study in ({}, {"contrasts": [["token-15", START]]}):
        headline = summary_of(more=more, **study)["headline"]
        assert headline.endswith(told) == ("worse mean" in headline) == worse


def test_the_headline_keeps_a_baseline_that_nothing_beats():
    summary = summary_of({"token-15": HIGH, "token-30": LOW})
    (row,) = primary_rows(summary)
    assert (row["verdict"], row["better"]) == ("decided", "baseline")
    assert summary["headline"].startswith("Keep token-15") and summary["advice_codes"] == ["keep"]


def test_of_several_gains_the_headline_names_the_arm_that_is_behind_no_other():
    # As in decay-claim: the largest gain is that over the worst constant ratio, by an arm that
    # another leaves behind.
    noise = [0.002, -0.001, 0.001, 0.0, -0.002, 0.001, -0.001, 0.002, 0.0, -0.002]
    means = {"c30": 0.619, "c15": 0.599, "d30": 0.618, "d45": 0.627}
    scores = {
        arm: [mean + 0.5 * noise[(i + j) % 10] for i in range(10)]
        for j, (arm, mean) in enumerate(means.items())
    }
    pairs = [("d30", "c15"), ("d30", "c30"), ("d45", "c15"), ("d45", "c30")]
    headline = summary_of(scores, contrasts=pairs)["headline"]
    assert headline.startswith("d45 is 0.8") and "than c30" in headline
    pairs = [("d30", "c15"), ("c15", "c30"), ("d30", "c30")]
    assert summary_of(scores, contrasts=pairs)["headline"].startswith("c30 is 2")


def test_the_reference_is_a_contrast_only_where_something_is_measured_of_it():
    study = make_study(runs=3, contrasts=[["token-30", START], ["token-30", START]])
    assert primary_pairs(study) == [("token-30", START)]
    with pytest.raises(MaskwiseError, match=r"no-pretraining.*allowed: token-15, token-30"):
        primary_pairs(study | {"untrained": {}})
    assert primary_pairs(study | {"tasks": {}})


# Rounding errors
# ----------------------------------------------------------------------------


def test_equal_means_are_equal_in_spite_of_rounding():
    """The arm was "0.0 SDs ahead", with advice to add runs for a mean that was a rounding error."""
    firsts = [0.8, 0.79, 0.79, 0.83, 0.79, 0.8, 0.83, 0.79]
    seconds = [0.82, 0.77, 0.79, 0.81, 0.8, 0.81, 0.81, 0.81]
    row = row_of({"token-15": firsts, "token-30": seconds})
    assert (row["mean"], row["natural"]["mean"], row["p"]) == (0.0, 0.0, 1.0)
    assert (shown(row).unit, row["runs_to_decide"]) == ("accuracy points", None)
    assert "are equal" in row["sentence"]


def test_two_tasks_that_cancel_need_no_more_runs():
    arms = {"token-15": 0.0, "token-30": 0.01}
    study = make_study(runs=6, arms=arms, tasks=2)
    records = run_facts(study)
    for seed, shared in enumerate((0.31, 0.32, 0.33, 0.31, 0.35, 0.32)):
        for arm, gain in arms.items():
            scores = {"task-0": shared + gain, "task-1": shared + 0.4 - gain}
            for task, score in scores.items():
                records.append(score_record(arm, seed, task, round(score, 2)))
    (row,) = primary_rows(summarise(records, study))
    assert (row["mean"], row["natural"]["mean"], row["runs_to_decide"]) == (0.0, 0.0, None)
    assert row["verdict"] == "open"


def test_an_end_that_is_zero_in_points_is_zero_in_sds():
    """One task is shown in its own unit, also where the test just does not reject 0."""
    seconds = [0.80, 0.81, 0.82, 0.56, 0.64, 0.71, 0.8, 0.8]
    gains = [-0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.03, 0.03]
    firsts = [round(score + gain, 2) for score, gain in zip(seconds, gains)]
    row = row_of({"token-15": seconds, "token-30": firsts})
    assert (row["low"], row["natural"]["low"], row["verdict"]) == (0.0, 0.0, "open")
    assert shown(row).unit == "accuracy points"


def test_a_gain_over_the_start_is_no_rounding_error():
    """Arms and a start with equal means: no arm is worse, and none has gained."""
    firsts = [0.79, 0.82, 0.83, 0.81, 0.82, 0.83]
    start = [0.80, 0.82, 0.82, 0.80, 0.82, 0.84]
    for runs, others in ((firsts, start), (start, firsts)):
        study, records = study_of({"token-15": runs, "token-30": runs})
        records += [score_record(START, seed, "task-0", score) for seed, score in enumerate(others)]
        table = Outcomes(records, study)
        assert table.mean_gain("tasks", "token-15", START) == 0.0
        assert "worse mean" not in summarise(records, study)["headline"]


# Digits
# ----------------------------------------------------------------------------


def test_an_interval_that_excludes_zero_is_not_written_as_zero():
    """A decided difference of .04 points was "0.0 score points", and its interval "0.0 to 0.0"."""
    seconds = [0.9993, 0.9994, 0.9993, 0.9993, 0.9992, 0.9993, 0.9995]
    gains = [0.0003, 0.0002, 0.0003, 0.0004, 0.0004, 0.0003, 0.0003]
    firsts = [round(score + gain, 4) for score, gain in zip(seconds, gains)]
    row = row_of({"token-15": seconds, "token-30": firsts})
    amount = shown(row)
    assert row["verdict"] == "decided"
    assert (amount.figure(), amount.ends()) == ("+0.03", "0.03 to 0.04")
    assert "by 0.03 accuracy points" in row["sentence"]
    # An open interval keeps its digits, unless both ends would be 0.
    bounds = {"mean": 0.0, "low": -0.0003, "high": 0.02}
    wide, narrow = (
        shown_in("score", None, {**bounds, "high": high}, None, higher=True)
        for high in (0.02, 2e-4)
    )
    assert (wide.ends(), narrow.ends()) == ("0.0 to 2.0", "−0.03 to 0.02")
