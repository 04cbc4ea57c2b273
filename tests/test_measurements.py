"""Every measured number of a run is a row of one table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskwise.base.folders import read_lines
from maskwise.report.reading import Folder
from maskwise.report.tables import evaluation_table
from maskwise.results.measurements import (
    COLUMNS,
    Measurement,
    measurements,
    table_of,
)
from maskwise.tasks.finetuning import rows_of
from maskwise.verdict.outcomes import Outcomes

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
RUN: Any = {"arm": "a", "seed": 3}
SCORE: Any = {
    "task": "topics",
    "metric": "accuracy",
    "score": 0.8,
    "fine_tuning": [0.7, 0.9],
    "dev": [0.7, None, 0.9],
    "others": {"macro-f1": 0.75, "nats": 1.5},
    "majority": 0.4,
    "test_items": 200,
    "item_error": 0.01,
    "item_sums": [3, 1],
}
LOSS = Measurement(
    **RUN,
    kind="heldout",
    measure="token",
    value=2.5,
    metric="nats",
    unit="nats",
    higher_is_better=False,
    ratio=0.15,
    items=90,
    facts={"per_byte": 0.2},
)
UNIGRAM = replace(LOSS, split="unigram", value=6.0, facts={})
PAIRS = Measurement(
    **RUN,
    measure="pairs",
    metric="accuracy",
    value=0.6,
    chance=0.5,
    items=100,
    item_error=0.05,
    facts={"ties": 2},
)
COST = {"kind": "cost", **RUN, "steps": 10, "tokens": 640, "targets": 0, "flops": None}


def lines(**more: Any) -> list[dict[str, Any]]:
    """The lines of records.jsonl of a run."""
    run = RUN | more
    rows = (*rows_of(SCORE), LOSS, UNIGRAM, PAIRS)
    return [*[replace(row, **run).line() for row in rows], COST]


def outcomes(*lines: dict[str, Any], tasks: Any = None) -> dict[str, Measurement]:
    return {row.outcome: row for row in measurements(lines, tasks)}


def test_a_score_has_rows_for_test_development_and_further_metrics() -> None:
    found = list(rows_of(SCORE))
    assert [(row.outcome, row.metric, row.value) for row in found] == [
        ("topics", "accuracy", 0.8),
        ("dev:topics", "accuracy", pytest.approx(0.8)),
        ("further:topics:macro-f1", "macro-f1", 0.75),
        ("further:topics:nats", "nats", 1.5),
    ]
    assert [row.item_error for row in found] == [0.01, None, None, None]
    # The scale is that of the metric.
    assert [row.chance for row in found] == [0.4, 0.4, None, None]
    assert [row.higher_is_better for row in found] == [True, True, True, False]
    assert found[0].facts == {"fine_tuning": [0.7, 0.9], "item_sums": [3, 1]}


def test_the_facts_of_a_study_come_before_those_of_a_line() -> None:
    assert outcomes(*lines())["topics"].chance == 0.4
    tasks = {"topics": {"metric": "accuracy", "majority": 0.3, "test_items": 200}}
    found = outcomes(*lines(), tasks=tasks)["topics"]
    assert (found.chance, found.items) == (0.3, 200)


def test_development_scores_do_not_have_the_number_of_test_items() -> None:
    found = outcomes(*lines(), tasks={"topics": {"metric": "accuracy", "test_items": 200}})
    assert (found["topics"].items, found["dev:topics"].items) == (200, None)


def test_a_metric_that_a_study_does_not_say_is_that_of_the_line() -> None:
    found = outcomes(*lines(), tasks={"topics": {"metric": None}})["topics"]
    assert (found.metric, found.unit) == ("accuracy", "score")


def test_losses_evaluations_and_costs_are_rows_too() -> None:
    found = outcomes(*lines()[4:], {"kind": "overlap", "task": "topics"})
    assert {name: row.value for name, row in found.items()} == {
        "heldout:token@0.15": 2.5,
        "unigram:token@0.15": 6.0,
        "evaluation:pairs:accuracy": 0.6,
        # What could not be measured is 0 or null in the record, and has no row.
        "cost:steps": 10,
        "cost:tokens": 640,
    }
    loss, pairs = found["heldout:token@0.15"], found["evaluation:pairs:accuracy"]
    assert not loss.higher_is_better and (loss.items, loss.facts) == (90, {"per_byte": 0.2})
    assert (pairs.unit, loss.unit, pairs.item_error) == ("score", "nats", 0.05)
    assert pairs.facts == {"ties": 2}


def test_a_line_is_its_row() -> None:
    for more in ({}, {"role": "gate"}):
        for line in lines(**more)[:-1]:
            assert Measurement.of(line).line() == line == json.loads(json.dumps(line))
            assert {"length", "role"} & line.keys() == more.keys() and None not in line.values()


def test_a_row_without_a_run_has_no_columns_of_a_run() -> None:
    row = Measurement(measure="weights", metric="millions", unit="millions", value=4.0)
    assert not {"arm", "seed", "role"} & row.line().keys()
    assert Measurement.of({**row.line(), **RUN}) == replace(row, **RUN)


def test_the_table_has_a_row_for_every_number() -> None:
    table = table_of(measurements(lines()))
    assert len(table) == 9
    attributes = {*vars(measurements(lines())[0])} - {"facts"}
    assert {*COLUMNS} == {*attributes, "outcome"}
    tested = table[table.split != "further"]
    runs = tested.pivot(index=["arm", "seed"], columns="outcome", values="value")
    assert runs.loc[("a", 3), "heldout:token@0.15"] == 2.5
    assert table_of([]).empty


@pytest.mark.parametrize("study", sorted(path.parent.name for path in RESULTS.glob("*/study.json")))
def test_the_table_has_the_numbers_of_recorded_studies(study: str) -> None:
    """The arrays of verdicts hold the values of the table, and nothing else."""
    records = list(read_lines(RESULTS / study / "records.jsonl"))
    compared = [line for line in records if "role" not in line]
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


def test_an_evaluation_and_a_task_may_have_the_same_name() -> None:
    task = {**RUN, "kind": "task", "measure": "pairs", "metric": "accuracy", "value": 0.8}
    folder = Folder(kind="study", name="s", records=[PAIRS.line(), task | {"chance": 0.11}])
    folder.study = {**folder.study, "arms": {"a": {}}}  # type: ignore[typeddict-item]
    (row,) = evaluation_table(folder)["rows"]
    assert (row["chance"], row["items"], row["means"]) == (0.5, 100, {"a": 0.6})
