"""The rules that are laid down before a study runs: its gate, its search, its looks, and the tasks
that count.
"""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskwise.base.constants import FRESH_RUN
from maskwise.base.errors import MaskwiseError
from maskwise.masking.policies import POLICIES, policy
from maskwise.recipe import Recipe
from maskwise.recipe.recipe import validate
from maskwise.results.estimates import shown
from maskwise.samplers import SAMPLERS
from maskwise.samplers.base import Sampler
from maskwise.studies import records as study_records
from maskwise.studies.prospects import prospect_lines, prospects_of
from maskwise.tasks.finetuning import TRIAL_SEED
from maskwise.verdict import judge, primary_pairs, summarise
from maskwise.verdict.failures import ADAPTIVE, at_floor, learned_in_run
from maskwise.verdict.outcomes import Outcomes
from maskwise.verdict.statistics import (
    detectable_difference,
    look_weights,
    sign_flip_test,
)
from report_fixture import (
    CLEAR,
    HIGH,
    LOW,
    codes,
    dev_record,
    facts_of,
    failure_record,
    losses,
    make_study,
    primary_rows,
    row_of,
    run_facts,
    score_record,
    shared_selection,
    study_of,
    summary_of,
    write_json,
)

ALIKE = [0.51, 0.51, 0.52, 0.52, 0.51, 0.51, 0.52, 0.51]
METHOD = [x - 0.02 for x in HIGH]
GATED = {"random": LOW, "oracle": HIGH, "method": METHOD}
PAIRS = [["oracle", "random"], ["method", "random"]]
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
START = "no-pretraining"
GATE = {"contrast": ["oracle", "random"], "closes": [["method", "random"]]}


def primaries(summary: dict) -> dict[tuple[str, str], dict]:
    return {(row["arm"], row["baseline"]): row for row in primary_rows(summary)}


# The gate
# ----------------------------------------------------------------------------


def gated(
    scores: dict[str, list[float]] = GATED, **changes: Any
) -> tuple[dict, dict[tuple[str, str], dict]]:
    """The summary and the primary rows of a study with a gate that closes everything."""
    settings = {"gate": GATE, "contrasts": [["method", "random"]]} | changes
    summary = summary_of(scores, **settings)
    return summary, primaries(summary)


def test_judging_changes_nothing_and_verdicts_are_frozen():
    """The gate was stored in the table, and the dicts of rows were filled in five passes."""
    study, records = study_of(
        GATED | {"oracle": ALIKE}, gate=GATE, contrasts=[["method", "random"]]
    )
    table = Outcomes(records, study)
    before = {name: runs.copy() for name, runs in table.values.items()}
    first, second = (judge(table, table) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert (one.flags, one.p, one.decision) == (other.flags, other.p, other.decision)
    assert all(np.array_equal(before[name], table.values[name], equal_nan=True) for name in before)
    assert {one.decision for one in first if one.closed_by} == {"not comparable"}
    with pytest.raises(FrozenInstanceError):
        first[0].decision = "decided"


def test_an_open_gate_lets_the_others_be_judged_at_the_full_level():
    summary, rows = gated()
    assert {row["verdict"] for row in rows.values()} == {"decided"}
    # not 4/256: the gate is no part of Holm's family
    assert [row["p_adjusted"] for row in rows.values()] == [2 / 256] * 2
    assert "method" in summary["headline"] and "oracle" not in summary["headline"]
    assert not any("oracle" in line for line in summary["advice"])


def test_behind_a_gate_whose_oracle_is_decided_to_be_worse_nothing_is_judged():
    summary, rows = gated(GATED | {"oracle": [x - 0.2 for x in LOW]})
    assert rows["oracle", "random"]["verdict"] == "decided"
    method = [row for row in summary["contrasts"] if row["arm"] == "method"]
    assert {(row["verdict"], row["p"], codes(row)[0]) for row in method} == {
        ("not comparable", None, "gate-closed")
    }
    assert summary["verdict"] == "not comparable"


@pytest.mark.parametrize(
    ("scores", "verdict"), [(LOW, "open"), ([x - 0.2 for x in LOW], "decided")]
)
def test_the_first_of_two_questions_has_the_headline_if_the_second_is_not_asked(scores, verdict):
    """``adapt --control`` called its own question a positive control that had to be fixed."""
    gate = {"contrast": ["method", "random"], "closes": [["method", "oracle"]]}
    contrasts = [["method", "random"], ["method", "oracle"]]
    summary, rows = gated(GATED | {"method": scores}, gate=gate, contrasts=contrasts, search=None)
    assert rows["method", "random"]["verdict"] == summary["verdict"] == verdict
    assert rows["method", "oracle"]["verdict"] == "not comparable"
    assert codes(rows["method", "oracle"]) == ["not-asked"]
    assert "oracle" not in summary["headline"]
    assert not {"gate-closed", "not-asked"} & {*summary["advice_codes"]}


@pytest.mark.parametrize("search", [None, {"by": "dev"}])
def test_a_gate_among_the_default_contrasts_is_a_control_of_other_arms(search):
    """Without study.contrasts, every arm is compared with the baseline, the oracle too."""
    contrasts = [["oracle", "random"], ["method", "random"]]
    summary, rows = gated(GATED | {"oracle": LOW}, contrasts=contrasts, search=search)
    assert codes(rows["method", "random"])[0] == "gate-closed"
    assert "gate-closed" in summary["advice_codes"]


def test_a_gate_that_is_no_contrast_is_a_control_even_of_its_own_arm():
    """The quick start first asks whether its decay beats no training at all."""
    gate = {"contrast": ["method", "random"], "closes": [["method", "oracle"]]}
    scores = GATED | {"method": LOW}
    _, rows = gated(scores, gate=gate, contrasts=[["method", "oracle"]], search=None)
    assert codes(rows["method", "oracle"])[0] == "gate-closed"


def test_other_contrasts_keep_the_headline_if_a_second_question_is_not_asked():
    gate = {"contrast": ["method", "random"], "closes": [["method", "oracle"]]}
    contrasts = [["method", "random"], ["method", "oracle"], ["other", "random"]]
    scores = GATED | {"method": [x - 0.2 for x in LOW], "other": HIGH}
    summary, _ = gated(scores, gate=gate, contrasts=contrasts, search=None)
    assert "other" in summary["headline"] and "method" not in summary["headline"]


def test_a_gate_closes_the_contrasts_that_it_names_and_no_others():
    scores = GATED | {"oracle": ALIKE, "other": HIGH}
    contrasts = [["method", "random"], ["other", "random"]]
    _, rows = gated(scores, gate=GATE, contrasts=contrasts)
    assert list(rows) == [("oracle", "random"), ("method", "random"), ("other", "random")]
    assert rows["method", "random"]["verdict"] == "not comparable"
    other = rows["other", "random"]
    assert (other["verdict"], other["p"]) == ("decided", 2 / 256)


def test_a_gate_has_runs_of_its_own_at_default_settings():
    """Its records have another role and other seeds, and are never pooled with the judged runs."""
    own = [
        score_record(arm, seed - FRESH_RUN, "task-0", x, role="gate")
        for arm, scores in (("oracle", ALIKE), ("random", LOW))
        for seed, x in enumerate(scores)
    ]
    settings = {"gate": GATE, "contrasts": [["method", "random"]]}
    _, rows = gated(**settings, more=own)
    gate = rows["oracle", "random"]
    found = gate["n"], gate["verdict"], gate["scope"], gate["gate"]
    assert found == (8, "open", "at these settings", True)
    assert rows["method", "random"]["n"] == 8 and "gate-closed" in codes(rows["method", "random"])
    # no runs of its own
    assert gated(**settings)[1]["oracle", "random"]["verdict"] == "decided"
    # It is judged by the looks and the tasks of the study.
    looked = [{"runs": 6, "seeds": [*range(6)], "contrasts": 1, "looks": None}]
    _, rows = gated(**settings, more=own, looked=looked)
    assert "looked-before" in codes(rows["oracle", "random"])


def test_a_gate_has_a_headline_where_every_compared_run_failed():
    study, _ = study_of(GATED, contrasts=[["method", "random"]], gate=GATE)
    records = [failure_record(arm, seed) for arm in GATED for seed in study["seeds"]]
    for arm, scores in (("oracle", HIGH), ("random", LOW)):
        for seed, score in enumerate(scores):
            records.append(score_record(arm, seed - FRESH_RUN, "task-0", score, role="gate"))
    assert summarise(records, study)["headline"].startswith("oracle is")


def test_the_pairs_of_a_study_with_a_gate():
    study = make_study(runs=8, arms=dict.fromkeys(GATED, 0), tasks=1)
    study["gate"] = {"contrast": ("oracle", "random"), "closes": []}
    # With a search, the pair of the gate is compared at its best settings too.
    study["contrasts"] = [("oracle", "random"), ("oracle", "random")]
    assert primary_pairs(study) == [("oracle", "random")] * 2
    assert primary_pairs(study | {"search": None}) == [("oracle", "random")]
    study |= {"contrasts": [("method", "no-pretraining")], "tasks": {}, "untrained": {}}
    with pytest.raises(MaskwiseError, match=r"^a contrast names no-pretraining, .* this contrast$"):
        primary_pairs(study)
    study["gate"] = {"contrast": ("method", "no-pretraining"), "closes": []}
    with pytest.raises(
        MaskwiseError, match=r"^study\.gate names no-pretraining, .* study\.gate=null$"
    ):
        primary_pairs(study)


def test_a_gate_is_not_opened_by_runs_that_were_added():
    looked = [{"runs": 6, "seeds": [*range(6)], "contrasts": 1, "looks": None}]
    _, rows = gated(looked=looked)
    assert "looked-before" in codes(rows["oracle", "random"])
    assert "gate-closed" in codes(rows["method", "random"])


def test_settings_of_a_gate_that_one_search_chose_leave_it_open_and_do_not_close_it():
    chosen = {"oracle": 0.002, "random": 0.004, "method": 0.004}
    _, rows = gated(facts=[shared_selection(arm, rate) for arm, rate in chosen.items()])
    assert rows["oracle", "random"]["verdict"] == "open"
    assert facts_of(rows["oracle", "random"], "settings-differ")["arms"] == ["oracle", "random"]
    assert rows["method", "random"]["verdict"] == "decided"


def test_the_gate_is_the_first_contrast_and_none_of_the_six():
    arms = {name: {} for name in ("random", "oracle", *"abcdef")}
    contrasts = [[name, "random"] for name in "abcdef"]
    settings = {"arms": arms, "gate": ["oracle", "random"], "contrasts": contrasts}
    recipe = validate({"name": "a-control", "study": settings}, origin="")
    assert recipe.study.pairs == [("oracle", "random"), *((name, "random") for name in "abcdef")]
    assert recipe.arm("oracle", seed=0).study.gate is None  # the recipe of a run compares nothing


# Blocks
# ----------------------------------------------------------------------------


def test_before_every_planned_replicate_is_there_nothing_is_tested():
    scores = {arm: runs[:6] for arm, runs in CLEAR.items()}
    blocks = {"seeds": [*range(8)], "pending": [6, 7]}
    summary = summary_of(scores, **blocks)
    assert (summary["contrasts"], summary["verdict"], summary["advice"]) == ([], None, [])
    assert summary["pending"] == {"planned": 8, "done": 6}
    assert not re.search(r"p = |95 %", json.dumps(summary))
    assert summary_of(pending=[])["verdict"] == "decided"


# Settings
# ----------------------------------------------------------------------------


def test_a_gate_with_runs_of_its_own_may_be_the_reverse_of_a_contrast():
    grid = {"training.learning_rate": [1e-3, 2e-3]}
    study = {"arms": {"a": {}, "b": {"masking.ratio": 0.3}}, "gate": ["a", "b"]}
    found = validate({"study": {**study, "search": {"grid": grid}}}, origin="").study
    assert found.pairs == [("a", "b"), ("b", "a")]


# Looks
# ----------------------------------------------------------------------------


def test_before_a_later_look_no_other_advice_is_given() -> None:
    """Not even that a difference is too small, or that the gate must be mended first."""
    summary = summary_of({"token-15": LOW, "token-30": ALIKE}, looks=[8, 16])
    assert summary["advice_codes"] == ["next-look"]
    [row] = primary_rows(summary)
    alone = row_of({"token-15": LOW, "token-30": ALIKE})
    # The runs detect less, because a look spends a part of the error rate only.
    assert row["detectable"]["difference"] > alone["detectable"]["difference"]
    weak = {"random": LOW, "oracle": ALIKE, "method": METHOD}
    summary, rows = gated(weak, looks=[8, 16])
    assert "next-look" in summary["advice_codes"] and "gate-closed" not in summary["advice_codes"]
    assert "at this look" in rows["method", "random"]["sentence"]
    summary, rows = gated(weak)
    assert "gate-closed" in summary["advice_codes"]
    assert "control failed" in rows["method", "random"]["sentence"]


def test_planned_looks_share_one_error_whichever_of_them_decides():
    early = [0.1 + 0.001 * i for i in range(10)]  # clear at the first look, noise at the second
    late = [(-1) ** i * 0.2 + 0.003 * i for i in range(10)]
    scores = {"token-15": [0.5] * 20, "token-30": [0.5 + x for x in early + late]}
    row = row_of(scores, looks=[10, 20])
    first, last = sign_flip_test(early), sign_flip_test(early + late)
    weights = look_weights([10, 20])
    assert row["p"] == pytest.approx(min(first / weights[0], last / weights[1]))
    assert first / weights[0] < last / weights[1]


def test_a_look_whose_runs_all_failed_decides_nothing():
    study, records = study_of(CLEAR, looks=[2, 8])
    kept = [r for r in records if r["kind"] != "task" or r["arm"] != "token-30" or r["seed"] > 1]
    lost = [failure_record("token-30", seed) for seed in (0, 1)]
    (row,) = primary_rows(summarise([*kept, *lost], study))
    assert row["n"] == 6 and row["p"] is not None


def test_a_verdict_is_remembered_with_the_contrasts_that_it_had():
    """Six runs could decide one contrast; that they could not decide two was taken for no look at
    all.
    """
    scores = CLEAR | {"token-45": LOW}
    # A first look at a gate alone has no contrasts.
    for contrasts, capped in ((0, True), (1, True), (2, False)):
        looked = [{"runs": 6, "seeds": [*range(6)], "contrasts": contrasts, "looks": None}]
        row = primary_rows(summary_of(scores, looked=looked))[0]
        assert ("looked-before" in codes(row)) == capped


@pytest.mark.parametrize(
    ("looked", "looks", "verdict"),
    [
        ([], None, "decided"),
        # five runs could not decide: no error was spent
        ([{"runs": 5, "looks": None}], None, "decided"),
        ([{"runs": 6, "looks": None}], None, "open"),
        ([{"runs": 8, "looks": None}], None, "decided"),  # the same runs once more
        ([{"runs": 6, "looks": [6, 8]}], [6, 8], "decided"),
        ([{"runs": 6, "looks": None}], [6, 8], "open"),  # planned afterwards
        ([{"runs": 10, "seeds": [*range(10)], "looks": None}], None, "open"),  # fewer than before
        ([{"runs": 8, "seeds": [*range(8)], "looks": None}], None, "decided"),
        ([{"runs": 8, "seeds": [*range(10, 18)], "looks": None}], None, "open"),  # as many others
        # others than were planned
        ([{"runs": 6, "seeds": [*range(10, 16)], "looks": [6, 8]}], [6, 8], "open"),
    ],
)
def test_runs_that_are_added_without_a_plan_are_no_proof(looked, looks, verdict):
    for look in looked:
        look.setdefault("seeds", [*range(look["runs"])])
        look["contrasts"] = 1
    row = row_of(looked=looked, looks=looks)
    assert row["verdict"] == verdict and ("looked-before" in codes(row)) == (verdict == "open")


@pytest.mark.parametrize("looks", [None, [4, 8]])
def test_a_verdict_under_other_settings_counts_on_the_same_runs_and_in_a_plan(looks):
    look = {"runs": 8, "seeds": [*range(8)], "contrasts": 1, "looks": looks}
    for more, verdict in (({}, "decided"), ({"settings_changed": True}, "open")):
        row = row_of(looked=[look | more], looks=looks)
        assert row["verdict"] == verdict and ("looked-before" in codes(row)) == bool(more)


def with_recipe(study: dict, *, steps: int = 10, **rules: Any) -> dict:
    rules = {"arms": {"a": {}}, "seeds": len(study["seeds"]), **rules}
    return study | {"recipe": {"training": {"steps": steps}, "study": rules}, "inputs": "a"}


def test_a_folder_remembers_at_how_many_runs_it_had_a_verdict(tmp_path):
    def looks(before: dict, study: dict) -> list[dict]:
        return study_records.so_far(tmp_path, before, study).get("looked", [])

    six = with_recipe(make_study(runs=6))
    eight = with_recipe(make_study(runs=8))
    assert looks(six, eight) == []  # it had no verdict yet
    write_json(tmp_path / "summary.json", {})
    look = {"runs": 6, "seeds": [*range(6)], "contrasts": 1, "looks": None}
    assert looks(six, eight) == [look] and not (tmp_path / "summary.json").exists()
    stopped = eight | {"looked": [look]}  # and begun again
    assert looks(stopped, eight) == [look]
    # nothing was judged on 0 to 7 yet
    other_seeds = eight | {"seeds": [*range(10, 18)]}
    assert looks(stopped, other_seeds) == [look]
    write_json(tmp_path / "summary.json", {})
    assert [each["runs"] for each in looks(stopped, other_seeds)] == [6, 8]
    assert looks(eight, eight) == []
    write_json(tmp_path / "summary.json", {})
    changed = look | {"runs": 8, "seeds": [*range(8)], "settings_changed": True}
    assert looks(eight, with_recipe(eight, margin=0.01)) == [changed]
    assert looks(eight, with_recipe(eight, steps=20)) == []


def test_a_study_remembers_the_other_machines_that_added_seeds(tmp_path):
    """The hardware of the last call used to replace that of all earlier calls."""
    amd, intel, gpu = ({"cpu": name} for name in ("EPYC", "Xeon", "H100"))
    before = with_recipe(make_study(runs=6)) | {"hardware": amd}
    for now, others in ((amd, []), (intel, [amd]), (gpu, [amd, intel]), (amd, [intel, gpu])):
        call = before | {"hardware": now}
        before = call | study_records.so_far(tmp_path, before, call)
        assert before.get("earlier_hardware", []) == others


@pytest.mark.parametrize(
    ("change", "caps"),
    [
        ({"contrasts": [("token-45", "token-15")]}, True),
        ({"contrasts": [("token-30", "token-15"), ("token-45", "token-15")]}, True),
        ({"contrasts": [("token-15", "token-30")]}, False),
        ({"baseline": "token-30"}, True),
        ({}, False),
    ],
)
def test_a_verdict_by_other_contrasts_or_rules_counts_as_a_look(tmp_path, change, caps):
    """Only margin, gate, search and matching were compared, and the number of contrasts."""
    before = with_recipe(make_study(runs=8)) | {"baseline": "token-15"}
    before["contrasts"] = [("token-30", "token-15")]
    write_json(tmp_path / "summary.json", {})
    found = study_records.so_far(tmp_path, json.loads(json.dumps(before)), before | change)
    assert [look["settings_changed"] for look in found.get("looked", [])] == [True] * caps


# Tasks that can tell
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.3, 0.9])
def test_all_tasks_count_whether_or_not_pre_training_helps_on_them(start: float) -> None:
    """A choice by the runs that are tested would favour an arm, or rest on one at the floor."""
    study = make_study(runs=8, tasks=2, helps=0.75)
    study["contrasts"] = [["token-30", "token-15"], ["token-30", "no-pretraining"]]
    records = []
    for number, s in product(range(2), range(8)):
        for arm, score in (("no-pretraining", start), ("token-15", 0.5), ("token-30", 0.52)):
            test = score_record(arm, s, f"task-{number}", score + 0.001 * s * (1 + number))
            records += [test, dev_record(test, score)]
    summary = summarise(records + run_facts(study), study)
    for row in primary_rows(summary):
        alone = [
            each["mean"]
            for each in summary["contrasts"]
            if each["baseline"] == row["baseline"] and each["outcome"].startswith("task-")
        ]
        assert row["natural"]["mean"] == pytest.approx(np.mean(alone)) and len(alone) == 2


@pytest.mark.parametrize(
    ("scores", "identical"),
    [
        ({"token-15": LOW, "token-30": LOW}, True),
        ({"token-15": LOW, "token-30": [*LOW[:-1], 0.55]}, False),
        # A floor or a ceiling is the same for all runs.
        ({"token-15": [1.0] * 8, "token-30": [1.0] * 8}, False),
    ],
)
def test_arms_whose_runs_are_all_equal_are_said_to_be_perhaps_the_same(
    scores: dict[str, list[float]], identical: bool
) -> None:
    """Such as two settings of which one has no effect on this text."""
    row = row_of(scores, margin=0.01)
    assert ("identical" in codes(row)) == identical
    # Nothing was tested, so it is no evidence of "no difference that matters" either.
    assert not identical or row["verdict"] == "open"


@pytest.mark.parametrize(
    ("scores", "full"),
    [
        ([[1.0] * 8, [1.0] * 8], True),
        # There are 400 test items: half an item is missed in a run, and then one.
        ([[1.0] * 8, [1 - 0.5 / 400] * 8], True),
        ([[1.0] * 8, [1 - 1 / 400] * 8], False),
        ([LOW, [1.0] * 8], False),
        # A metric without a best value of 1.
        ([[1.2] * 8, [1.2] * 8], False),
    ],
)
def test_a_task_that_both_arms_answer_entirely_is_said_to_show_no_gain(
    scores: list[list[float]], full: bool
) -> None:
    assert ("ceiling" in codes(row_of(dict(zip(("token-15", "token-30"), scores))))) == full


def test_a_named_outcome_that_an_arm_lacks_is_not_replaced_by_the_tasks() -> None:
    """All evaluations of token-30 failed, and it would win on the task."""
    study, records = study_of(CLEAR, outcome="heldout:token")
    failures = [failure_record("token-30", s, stage="evaluate-x") for s in range(8)]
    for outcome, n in (("heldout:token", 0), ("tasks", 8)):
        study["outcome"] = outcome
        more = losses({"token-15": 4.0})
        [row] = primary_rows(summarise([*records, *more, *failures], study))
        assert (row["outcome"], row["n"]) == (outcome, n)
        # On the tasks, too, an arm of which each run failed somewhere wins nothing.
        assert row["verdict"] == ("not comparable" if outcome != "tasks" else "open")
        assert codes(row)[0] == ("no-pairs" if outcome != "tasks" else "may-fail")


def test_if_all_runs_failed_the_headline_says_so() -> None:
    study = make_study(runs=3)
    failures = [failure_record(arm, s) for arm in ("token-15", "token-30") for s in range(3)]
    assert "6 runs failed" in summarise(failures, study)["headline"]
    assert "failed" not in summarise(run_facts(study), study)["headline"]


def test_one_run_has_no_mean_of_points_and_nats() -> None:
    study = make_study(runs=1, tasks=2)
    study["tasks"]["task-1"]["metric"] = "nats"
    records = []
    for arm, score, loss in (("token-15", 0.5, 3.0), ("token-30", 0.6, 2.0)):
        records.append(score_record(arm, 0, "task-0", score))
        records.append(score_record(arm, 0, "task-1", loss) | {"metric": "nats", "unit": "nats"})
    records = [line | {"higher_is_better": line["metric"] != "nats"} for line in records]
    [row] = primary_rows(summarise(records + run_facts(study), study))
    assert row["outcome"] == "task-0" and row["mean"] == pytest.approx(0.1)


def test_a_loss_has_no_ceiling() -> None:
    study = make_study(runs=8)
    summary = summarise(losses({"token-15": 1.0, "token-30": 0.992}) + run_facts(study), study)
    assert all("ceiling" not in codes(row) for row in summary["contrasts"])


def test_of_several_tasks_those_at_their_ceiling_are_named_without_advice() -> None:
    """The other tasks can still show a gain."""
    study = make_study(runs=8, tasks=2)
    records = []
    for s in range(8):
        for arm, score in (("no-pretraining", 0.3), ("token-15", 0.5), ("token-30", 0.52)):
            records.append(score_record(arm, s, "task-0", score + 0.001 * s))
            records.append(score_record(arm, s, "task-1", 1.0))
    summary = summarise(records + run_facts(study), study)
    rows = {row["outcome"]: row for row in summary["contrasts"]}
    assert facts_of(rows["tasks"], "ceiling")["tasks"] == ["task-1"]
    assert "ceiling" in codes(rows["task-1"]) and "ceiling" not in codes(rows["task-0"])
    assert "ceiling" not in summary["advice_codes"]


# Tasks that disagree
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "said"), [(-0.02, True), (0.0, False), (0.02, False)])
def test_a_task_on_which_the_favoured_side_is_behind_is_named(loss: float, said: bool) -> None:
    """Three tasks decide by small, steady gains, and one has a loss by its own interval."""
    study = make_study(runs=8, tasks=4)
    records = []
    for number, s in product(range(4), range(8)):
        gain = loss + 0.002 * (s % 3 - 1) if number == 3 else 0.03 + 0.0005 * (s % 3)
        for arm, score in (("no-pretraining", 0.3), ("token-15", 0.5), ("token-30", 0.5 + gain)):
            records.append(score_record(arm, s, f"task-{number}", score + 0.001 * s))
    (row,) = primary_rows(summarise(records + run_facts(study), study))
    assert row["verdict"] == "decided" and row["better"] == "arm"
    assert ("task-against" in codes(row)) == said
    if said:
        assert facts_of(row, "task-against")["tasks"] == ["task-3"]


# What an open headline says, and when an arm is advised
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_an_open_headline_has_the_interval_and_no_lead(sign: int):
    """A reader of one line took a lead away, such as 1.9 points, whose interval includes 0."""
    gains = [0.06, -0.03, 0.05, 0.03, -0.02, 0.02, 0, 0.01]
    apart = [low + sign * gain for low, gain in zip(LOW, gains)]
    for runs in (8, 4):
        summary = summary_of({"token-15": LOW[:runs], "token-30": apart[:runs]})
        (row,) = primary_rows(summary)
        amount = shown(row)
        headline = summary["headline"]
        assert summary["verdict"] == "open" and "ahead" not in headline
        for said in (headline, row["brief"]):
            assert amount.size() not in said and amount.size() in row["sentence"]
        assert (amount.low is None) == (runs < 6)
        for said in (headline, row["brief"], row["sentence"]):
            assert ("no interval" in said) == (runs < 6)
            assert runs < 6 or amount.ends(ahead=said == row["sentence"]) in said


def test_an_open_headline_of_a_doubt_says_the_doubt():
    row = opposed(loss=0.05)
    flag = next(flag for flag in row["flags"] if flag["effect"] == "caps")
    assert flag["sentence"] in row["headline"] and row["brief"] not in row["headline"]


@pytest.mark.parametrize("runs", [[0.5, 0.52, 0.49, 0.51, 0.5, 0.53], [0.5] * 6])
def test_only_arms_with_equal_runs_have_the_same_result(runs: list[float]):
    """Runs whose differences have the mean 0 were "equal" without an interval."""
    mirrored = [runs[place] for place in (1, 0, 3, 2, 5, 4)]
    summary = summary_of({"token-15": runs, "token-30": mirrored})
    (row,) = primary_rows(summary)
    assert row["mean"] == 0 and summary["verdict"] == "open"
    assert (shown(row).ends() in summary["headline"]) == (len({*runs}) > 1)


@pytest.mark.parametrize(
    ("gain", "margin", "advised", "assumed"),
    [
        (0.004, None, "weigh", True),
        (0.006, None, "use", True),
        (0.006, 0.01, None, False),
        (0.006, 0.0061, "weigh", False),
        (0.012, 0.01, "use", False),
        (0.0045, 0.004, "use", False),
    ],
)
def test_an_arm_is_advised_if_the_near_end_of_its_lead_is_above_the_margin(
    gain: float, margin: float | None, advised: str | None, assumed: bool
):
    """ "Use it" rested on an interval from .001 nats. Without a margin, half a point is assumed."""
    scores = [x + gain + 1e-4 * (i % 4) for i, x in enumerate(LOW)]
    summary = summary_of({"token-15": LOW, "token-30": scores}, margin=margin)
    (row,) = primary_rows(summary)
    assert row["verdict"] == "decided" and row["worth"]["assumed"] == assumed
    assert row["worth"]["margin"] == (0.005 if margin is None else margin)
    found = [code for code in summary["advice_codes"] if code in ("use", "weigh")]
    assert found == ([advised] if advised else [])
    if advised:
        limit = f"{100 * row['worth']['margin']:g} accuracy points"
        assert limit in row["reason"] and row["reason"] in summary["advice"][0]
        assert ("assumed" in row["reason"]) == assumed


@pytest.mark.parametrize(("lead", "advised"), [(0.04, "weigh"), (0.06, "use")])
def test_the_assumed_margin_of_a_loss_is_in_nats(lead: float, advised: str):
    arms = {"token-15": 0, "token-30": 0}
    study = make_study(runs=8, arms=arms, tasks=0)
    summary = summarise(losses({"token-15": 4.0, "token-30": 4.0 - lead}) + run_facts(study), study)
    (row,) = primary_rows(summary)
    assert (row["verdict"], row["worth"]["margin"]) == ("decided", 0.05)
    assert advised in summary["advice_codes"] and "0.05 nats" in row["reason"]


@pytest.mark.parametrize(("loss", "against"), [(0.004, False), (0.006, True)])
@pytest.mark.parametrize("outcome", ["heldout:token@0.15", None])
def test_an_arm_is_not_advised_against_a_task(loss: float, against: bool, outcome: str | None):
    """Also if the task does not decide: an arm had a lower loss, and no better scores."""
    study = make_study(runs=8, tasks=3, outcome=outcome)
    records = [*losses({"token-15": 4.0, "token-30": 3.8})] if outcome else []
    for number, s in product(range(3), range(8)):
        gain = -loss if number == 2 else 0.04
        for arm, lead in (("token-15", 0.0), ("token-30", gain + 0.0005 * (s % 3))):
            records.append(score_record(arm, s, f"task-{number}", 0.5 + lead + 0.02 * (s % 4)))
    summary = summarise(records + run_facts(study), study)
    (row,) = primary_rows(summary)
    assert row["verdict"] == "decided" and row["worth"]["above"]
    assert row["worth"]["against"] == (["task-2"] if against else [])
    assert ("use" in summary["advice_codes"]) != against
    assert ("weigh" in summary["advice_codes"]) == ("task-2" in row["reason"]) == against


def opposed(loss: float) -> dict:
    """The primary row of two tasks: all runs gain 2 points on the one, and lose on the other, where
    scores vary much.
    """
    study = make_study(runs=10, tasks=2)
    draw = np.random.default_rng(0)
    records = []
    for seed in range(10):
        for arm, lead in (("token-15", 0.0), ("token-30", 1.0)):
            steady = 0.5 + 0.02 * lead + draw.normal(0, 0.001)
            uneven = 0.6 - loss * lead + draw.normal(0, 0.03)
            records.append(score_record(arm, seed, "task-0", steady))
            records.append(score_record(arm, seed, "task-1", uneven))
    summary = summarise(records, study)
    (row,) = primary_rows(summary)
    return {**row, "headline": summary["headline"]}


def test_a_lead_against_the_plain_mean_of_the_tasks_is_open():
    """The test weighs tasks by their precision, so that a steady gain may exceed a larger loss."""
    row = opposed(loss=0.05)
    assert row["p"] < 0.05 and row["mean"] > 0 > row["natural"]["mean"]
    assert row["verdict"] == "open" and codes(row)[0] == "tasks-disagree" and not row["better"]
    assert "task" in row["sentence"]
    agreed = opposed(loss=0.0)
    assert agreed["verdict"] == "decided" and "tasks-disagree" not in codes(agreed)


# Arms that may fail
# ----------------------------------------------------------------------------

UNTRAINED = [score_record(START, seed, "task-0", 0.3 + 0.001 * seed) for seed in range(8)]
SMALL = [x + 0.02 + 0.001 * i for i, x in enumerate(LOW)]


def with_policy(policy: str, scores: list[float], **changes: Any) -> dict:
    """The primary row of an arm with this policy against LOW, with the untrained model's scores."""
    study, records = study_of({"base": LOW, "arm": scores}, **changes)
    study["arms"]["arm"]["policy"] = policy
    (row,) = primary_rows(summarise([*records, *UNTRAINED], study))
    return row


def test_a_lead_that_unseen_failures_would_cancel_is_open_if_the_arm_may_fail():
    fixed = with_policy("token", SMALL)
    assert fixed["verdict"] == "decided"
    assert fixed["failures"]["arm"] == {
        "runs": 8,
        "failed": 0,
        "high": pytest.approx(1 - 0.05 ** (1 / 8)),
        "learned": False,
    }
    # A lead of 2.35 points, and 24 points above the floor.
    assert fixed["break_even"] == pytest.approx(0.0235 / 0.236, rel=0.01)
    learned = with_policy("mixture(learned(take='spans'), span)", SMALL)
    assert learned["p"] == fixed["p"] and learned["verdict"] == "open"
    assert "may-fail" in codes(learned) and learned["better"] is None
    # The policy was learned once, before the study.
    assert with_policy("learned('runs/policy')", SMALL)["verdict"] == "decided"
    # A lead that only half of the runs could cancel.
    large = with_policy("learned", HIGH)
    assert large["break_even"] > large["failures"]["arm"]["high"]
    assert large["verdict"] == "decided" and "may-fail" not in codes(large)


def test_a_verdict_against_an_arm_that_may_fail_stands():
    row = with_policy("pos-weighted", [x - 0.02 - 0.001 * i for i, x in enumerate(LOW)])
    assert (row["verdict"], row["better"]) == ("decided", "baseline")
    assert row["failures"]["arm"]["learned"] and not row["failures"]["baseline"]["learned"]


def test_a_run_that_ended_at_the_floor_is_a_failure_and_makes_its_arm_one_that_may_fail():
    collapsed = [0.301, *HIGH[1:]]
    row = with_policy("token", collapsed)
    assert row["failures"]["arm"]["failed"] == 1
    # The break-even rate is that of the runs that did not fail.
    high = row["failures"]["arm"]["high"]
    assert high == pytest.approx(0.471, abs=0.001) and 0.48 < row["break_even"] < 0.5
    # Failed stages are failures as well.
    study, records = study_of({"base": LOW[:7], "arm": SMALL[:7]})
    study["seeds"] = list(range(8))
    records.append(score_record("base", 7, "task-0", 0.5))
    records.append(failure_record("arm", 7))
    (row,) = primary_rows(summarise([*records, *UNTRAINED], study))
    assert (row["n"], row["failures"]["arm"]["failed"], row["failures"]["arm"]["runs"]) == (7, 1, 8)
    assert row["p"] < 0.05 and row["verdict"] == "open" and "may-fail" in codes(row)


def test_arms_that_gain_little_have_no_failed_runs():
    draw = np.random.default_rng(0)
    for runs in (8, 24):
        flagged = [at_floor(draw.normal(0.5, 1, runs)).any() for _ in range(1000)]
        assert np.mean(flagged) < 0.05


def test_without_a_known_floor_nothing_is_told_about_failures_that_would_cancel_a_lead():
    study, records = study_of({"base": LOW, "arm": SMALL})
    study["arms"]["arm"]["policy"] = "learned"
    study["tasks"]["task-0"]["majority"] = None
    (row,) = primary_rows(summarise(records, study))
    assert row["break_even"] is None and row["verdict"] == "decided"


def test_a_gate_passes_although_its_arm_may_fail():
    study, records = study_of({"random": LOW, "oracle": SMALL, "method": METHOD})
    study["arms"]["oracle"]["policy"] = "learned"
    study |= {"contrasts": PAIRS, "gate": GATE, "search": None}
    gate, method = primary_rows(summarise([*records, *UNTRAINED], study))
    assert (gate["verdict"], codes(gate)[0]) == ("open", "may-fail")
    assert method["verdict"] == "decided"


SPECS = {name: name for name in POLICIES if name not in ("learned", "mixture")}
SPECS["group-weighted"] = "group-weighted(pos)"


def test_policies_and_samplers_that_learn_within_a_run_are_known_by_name():
    """The names are those whose class learns from losses, and the policy of a recipe's learning."""
    made = {name: policy(spec) for name, spec in SPECS.items()}
    known = {name for name, one in made.items() if one.learns}
    for name, kind in SAMPLERS.items():
        if kind.update is not Sampler.update:
            known.add(name)
    assert known | {"learned", "entropy-weighted"} == ADAPTIVE


@pytest.mark.parametrize(
    ("facts", "learns"),
    [
        ({"policy": "learned(take='spans')"}, True),
        ({"policy": "learned(take='spans', folder='p')"}, False),
        ({"policy": "learned(folder='p', take='spans')"}, False),
        ({"policy": "learned('p')"}, False),
        ({"policy": "learned or learned('p')"}, True),
        ({"policy": "mixture(learned('p'), span, shares=(0.7, 0.3))"}, False),
        ({"policy": "own-mixture(token, other=type-weighted)"}, True),
        ({"policy": "own-mixture(members=(token, learned))"}, True),
        ({"policy": "span-layer(layer='mometas')"}, False),
        ({"policy": "token", "sampler": "mometas(faithful=True)"}, True),
        # A policy of another package: study.json says that it learns.
        ({"policy": "my-own-policy", "learns": True}, True),
        ({"policy": "my-own-policy"}, False),
    ],
)
def test_arms_that_learn_in_each_run_are_known(facts: dict[str, Any], learns: bool) -> None:
    assert learned_in_run(facts) == learns


@pytest.mark.parametrize("metric", ["entity-f1", "matthews", "accuracy"])
def test_the_floor_of_some_metrics_is_the_untrained_model(metric):
    """A constant answer has no entities and no correlation, but an untrained model does better."""
    near = {"base": [0.31, 0.33] * 4, "arm": [0.32, 0.32] * 4}
    study, records = study_of(near)
    study["tasks"]["task-0"] |= {"metric": metric, "majority": 0.0}
    for record in records:
        if record["kind"] == "task":
            record["metric"] = metric
    starts = [line | {"metric": metric} for line in UNTRAINED]
    (row,) = primary_rows(summarise([*records, *starts], study))
    assert ("chance" in codes(row)) == (metric != "accuracy")
    # An unchanged pre-trained model is no floor.
    study["recipe"] = {"model": {"pretrained": "bundled:encoder"}}
    (row,) = primary_rows(summarise([*records, *starts], study))
    assert "chance" not in codes(row)


# What can be told, beforehand
# ----------------------------------------------------------------------------


def recipe_of(**study: Any) -> Recipe:
    return validate(
        {"tasks": ["ud-pos"], "study": {"arms": {"a": {}, "b": {}, "c": {}}, **study}}, origin=""
    )


def test_a_study_that_can_never_decide_is_told_so_at_once():
    first, _ = prospects = prospects_of(recipe_of(seeds=6))
    assert (first["decidable"], first["fewest_runs"]) == (False, 7)
    assert first["power"] == {"1": 0.0, "1.5": 0.0}
    assert (
        prospect_lines(prospects)[0]
        == "each of the 2 contrasts (b against a, c against a): 6 runs are too few for a verdict, "
        "which needs at least 7"
    )
    assert prospects_of(recipe_of(seeds=7))[0]["decidable"]
    assert prospects_of(recipe_of(seeds=6, contrasts=[["b", "a"]], gate=["c", "a"]))[1]["decidable"]


@pytest.mark.parametrize(("runs", "power"), [(6, (0.36, 0.66)), (8, (0.65, 0.94))])
def test_the_power_of_a_plan_is_said_beforehand(runs, power):
    (one,) = prospects_of(recipe_of(seeds=runs, contrasts=[["b", "a"]]))
    assert tuple(one["power"].values()) == pytest.approx(power, abs=0.021)
    assert one["detectable"] == pytest.approx(detectable_difference(1.0, runs))
    (line,) = prospect_lines([one])
    detected = "a difference of {:.1f} standard deviations (of the paired differences) is detected"
    assert line == (
        f"b against a: with {runs} pairs of runs, {detected.format(one['detectable'])} "
        "with probability 0.8, a smaller one less often"
    )


def test_planned_looks_are_in_the_prospects():
    (one,) = prospects_of(recipe_of(seeds=8, interim_looks=[8, 16], contrasts=[["b", "a"]]))
    assert not one["decidable"]  # .0078 is more than the first look may spend, .0056
    (one,) = prospects_of(recipe_of(seeds=16, interim_looks=[8, 16], contrasts=[["b", "a"]]))
    assert one["decidable"]


def test_no_reported_fine_tuning_has_the_seed_by_which_rates_are_searched():
    assert TRIAL_SEED > 1000 * 2**20  # the reported ones begin at 1,000 times the seed of the run


# Runs that failed
# ----------------------------------------------------------------------------


def without_tasks(arms: dict[str, float], failed: tuple[str, ...], **changes: Any) -> dict:
    """The summary of a study of held-out losses, in which all runs of some arms failed."""
    study = make_study(runs=8, arms=dict.fromkeys([*arms, *failed], 0), tasks=0) | changes
    records = losses(arms)
    for arm in failed:
        records += [failure_record(arm, seed) for seed in range(8)]
    return summarise(records, study)


def test_a_gate_whose_runs_all_failed_closes_its_contrasts():
    changes = {"gate": GATE, "contrasts": [["method", "random"]]}
    gate, row = primary_rows(without_tasks({"random": 3.0, "method": 2.5}, ("oracle",), **changes))
    assert (gate["n"], codes(gate)[0]) == (0, "no-pairs")
    assert (row["verdict"], row["p"], codes(row)[0]) == ("not comparable", None, "gate-closed")


def test_a_gate_closes_its_contrasts_if_all_of_its_own_runs_failed():
    study = make_study(runs=8, arms=dict.fromkeys(("random", "oracle", "method"), 0), tasks=0)
    study |= {"gate": GATE, "contrasts": [["method", "random"]]}
    records = losses({"random": 3.0, "oracle": 2.0, "method": 2.5})
    for arm, seed in product(("random", "oracle"), range(8)):
        records.append(failure_record(arm, seed - FRESH_RUN, role="gate"))
    (row,) = primary_rows(summarise(records, study))
    assert (row["verdict"], codes(row)[0]) == ("not comparable", "gate-closed")


def test_a_contrast_whose_runs_all_failed_stays_in_the_family():
    summary = without_tasks({"a": 3.0, "b": 2.5}, ("c",))
    found = {row["arm"]: (row["n"], row["p_adjusted"]) for row in primary_rows(summary)}
    assert found == {"b": (8, 2 * 2 / 2**8), "c": (0, None)}
    assert without_tasks({"a": 3.0}, ("b",))["headline"] == "Not comparable: too few runs finished."
    assert without_tasks({}, ("a", "b"))["headline"].startswith("The arms cannot be compared")


def test_the_headline_keeps_an_arm_only_if_it_beat_all_others():
    levels = {"a": 2.5, "b": 3.0, "c": 3.5}
    kept = "Keep a: every other arm is worse (decided)."
    assert without_tasks(levels, ())["headline"] == kept
    better = levels | {"c": 1.0}
    assert kept not in without_tasks(better, (), contrasts=[["b", "a"]])["headline"]
    assert kept not in without_tasks({"a": 2.5, "b": 3.0}, ("c",))["headline"]


# Advice
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapt-novels", "ratios-2026-11-20", "trex-transfer"])
def test_the_arm_that_is_not_trained_may_have_any_name(name: str) -> None:
    """Verdicts read which arm is not trained, and never compare its name."""
    folder = RESULTS / name
    texts = [(folder / file).read_text("utf-8") for file in ("study.json", "records.jsonl")]
    summaries = []
    for study, records in (texts, [text.replace(START, "begun") for text in texts]):
        lines = [json.loads(line) for line in records.splitlines()]
        summaries.append(json.dumps(summarise(lines, json.loads(study)), sort_keys=True))
    assert START in texts[1] and summaries[0].replace(START, "begun") == summaries[1]


def test_one_arm_was_not_kept_apart_from_others():
    contrasts = [["token-30", START]]
    scores = {"token-30": HIGH, START: LOW}
    study, records = study_of(scores, facts=False, contrasts=contrasts)
    del study["arms"][START]
    study |= {"baseline": "token-30", "untrained": {START: "the untrained model"}}
    advice = summarise(records, study)["advice"][0]
    assert advice.startswith("Use token-30 rather than the untrained model: ")


def test_no_look_is_advised_after_the_last_one():
    scores = {"token-15": LOW, "token-30": [x + (0.03, -0.01)[i % 2] for i, x in enumerate(LOW)]}
    del scores["token-30"][-1]
    failed = [failure_record("token-30", 7)]
    for looks, said in (([4, 8], False), ([8, 12], True)):
        advice = " ".join(summary_of(scores, looks=looks, more=failed)["advice"])
        assert ("Continue to the next planned look: 12 runs" in advice) == said


def recorded_summary(record: str) -> dict:
    lines = (RESULTS / record / "records.jsonl").read_text("utf-8").splitlines()
    study = json.loads((RESULTS / record / "study.json").read_text("utf-8"))
    return summarise(map(json.loads, lines), study)


def test_advice_to_keep_an_arm_names_the_one_that_is_worse() -> None:
    """Two lines said that one arm is worse, and to keep each of two others."""
    kept = [line for line in recorded_summary("new-words-minilm")["advice"] if "Keep" in line]
    assert [line.split()[1] for line in kept] == ["words-30:", "random-words:"]
    assert all(" new-words " in line for line in kept)


def test_a_detectable_difference_has_two_digits() -> None:
    """It was "1 points"."""
    sizes = []
    for step in range(10, 60):
        apart = [
            x + step * 1e-4 * side * (1 + s) for s, (x, side) in enumerate(zip(LOW, [1, -1] * 4))
        ]
        said = row_of({"token-15": LOW, "token-30": apart})["sentence"]
        sizes += re.findall(r"differences of at least (\S+) accuracy points", said)
    assert "1.0" in sizes and all(re.fullmatch(r"0?\.\d\d|\d\.\d|\d{2,}", size) for size in sizes)
