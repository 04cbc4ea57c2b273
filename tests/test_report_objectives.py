"""The section about several objectives: shares, probe losses, cost, notes; and the table of
tasks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskwise.report.charts import MOST_POINTS, MOST_SMALL, objectives_view
from maskwise.report.drawing import powers
from maskwise.report.page import write_report
from maskwise.report.reading import NO_STUDY, Folder, read_folder
from maskwise.report.tables import task_table
from report_fixture import make_records, make_study, write_lines, write_study

COLOURS = {"uniform": "#111111", "plus": "#222222", "turns": "#333333"}
EVIL = "<b>cse</b>"
STARVED = f"{EVIL} is starved: never drawn, it gets worse; better: mlm"


def line(arm: str, seed: int, step: int, **more: Any) -> dict[str, Any]:
    turn = {"mlm": float(step % 20 == 0), EVIL: float(step % 20 != 0)}
    shares = {
        "uniform": {"mlm": 0.5, EVIL: 0.5},
        "plus": {"mlm": 0.5 + step / 100, EVIL: 0.5 - step / 100},
        "turns": turn,
    }
    plain = {"kind": "train", "step": step, "arm": arm, "seed": seed, "seconds": 2.0 * step}
    return {
        **plain,
        "probabilities": shares[arm],
        "arm_steps": {"mlm": 6, EVIL: 4},
        "probe_step": step // 20 * 20,
        "probe_losses": {"mlm": 5 - step / 20 + seed, EVIL: 1.0},
        **more,
    }


@pytest.fixture
def view() -> dict[str, Any]:
    lines = [
        line(arm, seed, step) for arm in COLOURS for seed in (0, 1) for step in (10, 20, 30, 40)
    ]
    for one in lines:
        if one["arm"] == "plus":
            one |= {
                "probe_seconds": one["step"] / 10,
                "reliability": 0.1 * one["seed"] + one["step"] / 100,
                "notes": [STARVED],
                "arm_steps": {"mlm": 9, EVIL: 1},
            }
    records = [
        {"kind": "cost", "arm": "plus", "seed": s, "flops": 100 + s, "probe_flops": 2}
        for s in (0, 1)
    ]
    study = NO_STUDY | {
        "arms": {
            "plus": {"overrides": {"sampler": "mometas-plus(every=20)"}},
            "turns": {"overrides": {"phases.2.sampler": "sequential"}, "sampler": "sequential"},
        },
        "recipe": {"sampler": "uniform"},
    }
    found = objectives_view(
        Folder("study", "x", study=study, curves=lines, records=records), COLOURS
    )
    assert found
    return found


def test_shares_are_drawn_of_samplers_that_move_them(view: dict[str, Any]) -> None:
    [chart] = view["shares"]
    assert chart["name"] == "plus"
    inner, rule, _ = chart["spec"]["layer"]
    means = inner["layer"][1]
    assert rule["data"]["values"][0]["at"] == 0.5 and means["encoding"]["y"]["aggregate"] == "mean"
    rows = inner["data"]["values"]  # once for both layers
    assert {(r["arm"], r["step"], r["value"]) for r in rows} >= {("mlm", 40, 0.9), (EVIL, 10, 0.4)}


def test_the_table_adds_up_what_objectives_were_given_and_what_it_cost(
    view: dict[str, Any],
) -> None:
    uniform, plus, turns = view["table"]
    assert plus["shares"] == {"mlm": 0.9, EVIL: 0.1} and plus["steps"] == 40
    assert uniform["shares"] == {"mlm": 0.6, EVIL: 0.4}
    assert (plus["seconds"], plus["probing"]) == (80, 0.05) and uniform["probing"] is None
    # at the ends of both runs
    assert plus["reliability"] == pytest.approx(0.45) and uniform["reliability"] is None
    assert plus["flops"] == 100.5
    assert plus["sampler"] == "mometas-plus(every=20)" and uniform["sampler"] == "uniform"
    assert turns["sampler"] == "sequential"  # of a phase, and not the recipe's


def test_notes_that_say_the_same_are_one_and_chance_is_no_note() -> None:
    zero = "mlm: the probe loss is 0 already; it counts as no gain"
    lines = [line("plus", 0, 10 * step, notes=[STARVED, zero]) for step in (1, 2)]
    found = objectives_view(Folder("study", "x", curves=lines), {"plus": "#000"})
    assert found and found["notes"] == {
        "plus": ["mlm: the probe loss is 0 already; it counts as no gain (2 times)"]
    }


def test_a_folder_without_objectives_has_no_such_section() -> None:
    assert (
        objectives_view(
            Folder("study", "x", curves=[{"arm": "a", "seed": 0, "step": 1, "loss": 2.0}]),
            {"a": "#000"},
        )
        is None
    )


def test_long_runs_are_thinned_in_charts_and_counted_whole() -> None:
    lines = [line("plus", 0, step) for step in range(1, 3 * MOST_POINTS)]
    found = objectives_view(Folder("run", "plus", curves=lines), {"plus": "#000"})
    assert found and found["table"][0]["steps"] == 10 * len(lines)
    assert len(json.dumps(found["shares"][0]["spec"])) < 80 * 2 * MOST_SMALL + 5000


@pytest.mark.parametrize(("reliability", "said"), [(0.2, True), (0.6, False)])
def test_the_page_of_a_study_over_objectives(
    reliability: float, said: bool, tmp_path: Path
) -> None:
    study = make_study(runs=2, arms={"token-15": 0, "token-30": 0.01})
    folder = write_study(tmp_path / "s", study, make_records(study, {}), summary=None, samples=None)
    for facts in study["arms"].values():
        for seed, stage in facts["runs"].items():
            given = {"mlm": 9, EVIL: 1}
            more = {"notes": [STARVED], "arm_steps": given, "reliability": reliability}
            lines = [line("plus", int(seed), step, **more) for step in (10, 20)]
            write_lines(folder / stage / "metrics.jsonl", lines)
    page = write_report(folder).read_text()
    assert "&lt;b&gt;cse&lt;/b&gt;" in page and EVIL not in page
    assert ("sampler is noise (reliability 0.20; at least 0.5 is needed)" in page) == said


def test_task_scores_are_means_with_their_spread_and_references(tmp_path: Path) -> None:
    study = make_study(
        runs=2, arms={"token-15": 0, "token-30": 0.01}, reference="the unchanged model"
    )
    records = [r for r in make_records(study, {}) if r["kind"] != "score"]
    for arm, scores in {
        "token-15": (0.5, 0.6),
        "token-30": (0.7, 0.7),
        "no-pretraining": (0.2, 0.2),
    }.items():
        records += [
            {"kind": "score", "arm": arm, "seed": s, "task": "task-0", "score": x}
            for s, x in enumerate(scores)
        ]
    table = task_table(
        read_folder(write_study(tmp_path / "s", study, records, summary=None, samples=None))
    )
    assert table and table["tasks"] == {"task-0": "accuracy"}
    rows = {row["arm"]: row["cells"]["task-0"] for row in table["rows"]}
    assert rows["token-15"] == {"mean": "55.0", "sd": "7.1"}
    assert rows["the unchanged model"] == {"mean": "20.0", "sd": "0.0"}
    assert rows["commonest answer"] == {"mean": "5.0", "sd": ""}


def test_powers() -> None:
    assert [powers(x) for x in (5.634e7, 2.1e12, None)] == [
        "5.63 × 10⁷",
        "2.10 × 10¹²",
        "–",
    ]
