"""The rules that are laid down before a study runs: its gate, its search, its looks, and the tasks that count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskwise.errors import MaskwiseError
from maskwise.recipe.recipe import validate
from maskwise.study.verdict import summarise
from report_fixture import make_study, run_facts, score_record

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
    assert [row["p_adjusted"] for row in rows.values()] == [2 / 256] * 2  # not 4/256: the gate is no part of Holm's family
    assert "method" in summary["headline"] and "oracle" not in summary["headline"]
    assert not any("oracle" in line for line in summary["advice"])


def test_behind_a_closed_gate_nothing_is_judged():
    summary, rows = gated(GATED | {"oracle": ALIKE})
    assert rows["oracle", "random"]["verdict"] == "undecided"
    assert (rows["method", "random"]["verdict"], rows["method", "random"]["reason"]) == ("void", "gate-closed")
    assert {row["verdict"] for row in summary["contrasts"] if row["arm"] == "method"} == {"void"}
    assert summary["verdict"] == "void" and "positive control failed" in summary["headline"]


def test_an_oracle_that_is_decided_to_be_worse_opens_no_gate():
    _, rows = gated(GATED | {"oracle": [x - 0.2 for x in BASE]})
    assert (rows["oracle", "random"]["verdict"], rows["oracle", "random"]["better"]) == ("decided", "baseline")
    assert rows["method", "random"]["reason"] == "gate-closed"


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
