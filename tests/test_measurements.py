"""Every measured number of a run is a row of one table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from maskwise.folders import read_lines
from maskwise.measurements import COLUMNS, Measurement, measurements, table_of
from maskwise.report.reading import Folder
from maskwise.report.tables import evaluation_table
from maskwise.verdict.outcomes import Outcomes

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
RUN = {"arm": "a", "seed": 3}
SCORE = {
    "kind": "score",
    **RUN,
    "task": "topics",
    "metric": "accuracy",
    "score": 0.8,
    "dev": [0.7, None, 0.9],
    "others": {"macro-f1": 0.75},
    "item_error": 0.01,
}
LOSS = {"kind": "heldout", **RUN, "masks": "token", "ratio": 0.15, "loss": 2.5, "unigram": 6.0}
PAIRS = {
    "kind": "evaluation",
    **RUN,
    "name": "pairs",
    "metric": "accuracy",
    "value": 0.6,
    "chance": 0.5,
    "higher_is_better": True,
    "items": 100,
}
COST = {"kind": "cost", **RUN, "steps": 10, "tokens": 640, "targets": 0, "flops": None}


def outcomes(*lines: dict[str, Any], tasks: Any = None) -> dict[str, Measurement]:
    return {row.outcome: row for row in measurements(lines, tasks)}


def test_a_score_has_rows_for_test_development_and_further_metrics() -> None:
    found = measurements([SCORE], {"topics": {"majority": 0.3, "test_items": 200}})
    assert [(row.outcome, row.metric, row.value) for row in found] == [
        ("topics", "accuracy", 0.8),
        ("dev:topics", "accuracy", pytest.approx(0.8)),
        ("further:topics", "macro-f1", 0.75),
    ]
    assert [(row.chance, row.items) for row in found] == [(0.3, 200)] * 3
    assert [row.item_error for row in found] == [0.01, None, None]


def test_the_facts_of_a_study_come_before_those_of_a_line() -> None:
    line = {**SCORE, "majority": 0.4}
    assert outcomes(line)["topics"].chance == 0.4
    assert outcomes(line, tasks={"topics": {"majority": 0.3}})["topics"].chance == 0.3


def test_losses_evaluations_and_costs_are_rows_too() -> None:
    found = outcomes(LOSS, PAIRS, COST, {"kind": "overlap", "task": "topics"})
    assert {name: row.value for name, row in found.items()} == {
        "heldout:token@0.15": 2.5,
        "unigram:token@0.15": 6.0,
        "evaluation:pairs:accuracy": 0.6,
        # What could not be measured is 0 or null in the record, and has no row.
        "cost:steps": 10,
        "cost:tokens": 640,
    }
    assert not found["heldout:token@0.15"].higher_is_better
    assert (found["evaluation:pairs:accuracy"].unit, found["heldout:token@0.15"].unit) == (
        "score",
        "nats",
    )


def test_runs_of_other_lengths_and_of_gates_are_columns() -> None:
    short, gate = {**LOSS, "fraction": 0.25}, {**LOSS, "role": "gate"}
    assert [(row.length, row.role) for row in measurements([LOSS, short, gate])][::2] == [
        (1.0, ""),
        (0.25, ""),
        (1.0, "gate"),
    ]


def test_the_table_has_a_row_for_every_number() -> None:
    table = table_of(measurements([SCORE, LOSS, PAIRS, COST]))
    assert len(table) == 8 and {*COLUMNS} == {*vars(measurements([LOSS])[0]), "outcome"}
    runs = table.pivot(index=["arm", "seed"], columns="outcome", values="value")
    assert runs.loc[("a", 3), "heldout:token@0.15"] == 2.5
    assert table_of([]).empty


@pytest.mark.parametrize("study", sorted(path.parent.name for path in RESULTS.glob("*/study.json")))
def test_the_table_has_the_numbers_of_recorded_studies(study: str) -> None:
    """The arrays of verdicts hold the values of the table, and nothing else."""
    records = list(read_lines(RESULTS / study / "records.jsonl"))
    compared = [line for line in records if not {"role", "fraction"} & line.keys()]
    facts = json.loads((RESULTS / study / "study.json").read_text())
    arrays = Outcomes(compared, facts)
    rows = [row for row in measurements(compared, facts["tasks"]) if row.split != "further"]
    known = 0
    for row in rows:
        value = arrays.values[row.outcome][arrays.place(row.arm, row.seed)]
        # Runs that lack one of several outcomes are left out.
        assert value == row.value or (math.isnan(value) and arrays.failed)
        known += 1
    assert known and {row.outcome for row in rows} <= arrays.values.keys()


def test_records_that_were_edited_by_hand_may_lack_lists() -> None:
    found = measurements([{**SCORE, "dev": None, "others": None}])
    assert [row.outcome for row in found] == ["topics"]


def test_an_evaluation_and_a_task_may_have_the_same_name() -> None:
    task = {**SCORE, "task": "pairs", "majority": 0.11}
    folder = Folder(kind="study", name="s", records=[PAIRS, task])
    folder.study = {**folder.study, "arms": {"a": {}}}  # type: ignore[typeddict-item]
    (row,) = evaluation_table(folder)["rows"]
    assert (row["chance"], row["items"], row["means"]) == (0.5, 100, {"a": 0.6})
