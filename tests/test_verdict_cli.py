"""What the command line says of verdicts: short words, and everything with --json."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from maskwise.cli import main, runs
from maskwise.study.verdict import summarise
from report_fixture import make_metrics, make_records, make_study, write_run, write_study

ARMS = {"token-15": 0.0, "token-30": 0.1, "token-45": 0.0}


@pytest.fixture
def folder(tmp_path):
    study = make_study(runs=3, arms=ARMS, search=None)
    records = make_records(study, ARMS)
    return write_study(tmp_path / "study", study, records, summary=summarise(records, study), samples=None)


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_report_json_prints_the_verdicts_with_all_reasons(folder, capsys):
    assert run("report", folder, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    primary = [row for row in summary["contrasts"] if row["primary"]]
    assert [row["arm"] for row in primary] == ["token-30", "token-45"]
    assert {r["code"] for r in primary[0]["reasons"]} == {"few-runs", "no-dev-selection"}
    assert all(set(reason) >= {"code", "effect", "sentence"} for row in primary for reason in row["reasons"])
    assert not (folder / "report.html").exists()


def test_report_json_and_html_are_both_written(folder, tmp_path, capsys):
    assert run("report", folder, "--json", "--html", tmp_path / "page.html") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["contrasts"] and f"wrote {tmp_path / 'page.html'}" in err
    assert "token-45" in (tmp_path / "page.html").read_text() and not (folder / "report.html").exists()


def test_report_json_of_a_single_run_is_one_line_of_error(tmp_path, capfd):
    assert run("report", write_run(tmp_path / "run", make_metrics("constant(0.3)")), "--json") == 2
    error = capfd.readouterr().err
    assert "a single run has no verdicts" in error and error.count("\n") == 1


def test_the_terminal_names_an_arm_once_beside_a_reason(folder, monkeypatch, capsys):
    monkeypatch.setattr(runs, "out_console", Console(width=160))
    found = json.loads((folder / "summary.json").read_text())
    row, other = [row for row in found["contrasts"] if row["primary"]][:2]
    told = {"effect": "caps", "code": "x", "sentence": "the text is short"}
    own = {"effect": "caps", "code": "x", "sentence": f"{row['arm']} read less"}
    rows = [
        row | {"reasons": [told, own]},
        row | {"baseline": "else", "reasons": [told]},
        other | {"reasons": []},
    ]
    runs.print_verdicts(found | {"contrasts": rows})
    lines = capsys.readouterr().out.splitlines()
    assert f"  · {row['arm']}: the text is short" in lines and f"  · {row['arm']} read less" in lines


def test_the_terminal_says_verdicts_why_and_what_to_do(folder, monkeypatch, capsys):
    monkeypatch.setattr(runs, "out_console", Console(width=160))
    summary = json.loads((folder / "summary.json").read_text())
    runs.print_verdicts(summary)
    told = capsys.readouterr().out
    assert "suggests better (few runs)" in told and "undecided (few runs)" in told
    reasons = summary["contrasts"][0]["reasons"]
    [common] = [reason["sentence"] for reason in reasons if reason["code"] == "no-dev-selection"]
    assert told.count(common) == 1  # common to both, so said once
    assert all(f"→ {sentence}" in told for sentence in summary["advice"])
    assert len(told.splitlines()) <= 14


def test_an_evaluation_is_not_called_held_out_loss():
    row = {"outcome": "evaluation:pairs:accuracy", "unit": "score", "metric": "accuracy", "arm": "b", "baseline": "a",
           "primary": True, "mean": 0.023, "low": 0.01, "high": 0.04, "verdict": "suggests", "better": "arm",
           "reason": "few-runs"}  # fmt: skip
    heads = [str(column.header) for column in runs._contrasts({"contrasts": [row]}).columns]
    assert heads[1] == "pairs (accuracy), against a"
    task = {**row, "outcome": "in house"}
    heads = [str(column.header) for column in runs._contrasts({"contrasts": [task]}).columns]
    assert heads[1] == "in house, against a"
