"""What the command line says of verdicts: short words, and everything with --json."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from maskwise.cli import main
from maskwise.cli import terminal as printing
from maskwise.study.verdict import summarise
from maskwise.study.verdict.words import advice_of
from report_fixture import (
    make_metrics,
    make_records,
    make_study,
    primary_rows,
    write_run,
    write_study,
)

ARMS = {"token-15": 0.0, "token-30": 0.1, "token-45": 0.0}


@pytest.fixture
def folder(tmp_path):
    study = make_study(runs=6, arms=ARMS, search=None)
    records = [line for line in make_records(study, ARMS) if line["kind"] != "selection"]
    return write_study(
        tmp_path / "study", study, records, summary=summarise(records, study), samples=None
    )


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_report_json_prints_the_verdicts_with_all_flags(folder, capsys):
    assert run("report", folder, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    primary = primary_rows(summary)
    assert [row["arm"] for row in primary] == ["token-30", "token-45"]
    # six runs can decide one contrast, not two
    assert [row["verdict"] for row in primary] == ["open", "open"]
    assert {flag["code"] for flag in primary[0]["flags"]} == {"untuned"}
    assert all(
        set(flag) == {"code", "effect", "sentence", "facts"}
        for row in primary
        for flag in row["flags"]
    )
    assert not (folder / "report.html").exists()


def test_report_json_and_html_are_both_written(folder, tmp_path, capsys):
    assert run("report", folder, "--json", "--html", tmp_path / "page.html") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["contrasts"] and f"wrote {tmp_path / 'page.html'}" in err
    assert (
        "token-45" in (tmp_path / "page.html").read_text() and not (folder / "report.html").exists()
    )


def test_report_json_of_a_single_run_is_one_line_of_error(tmp_path, capfd):
    assert run("report", write_run(tmp_path / "run", make_metrics("constant(0.3)")), "--json") == 2
    error = capfd.readouterr().err
    assert "a single run has no verdicts" in error and error.count("\n") == 1


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What ``print_verdicts`` prints, by line."""
    monkeypatch.setattr(printing, "out_console", Console(width=160))

    def printed(summary: dict) -> list[str]:
        printing.print_verdicts(summary)
        return capsys.readouterr().out.splitlines()

    return printed


def test_the_terminal_names_an_arm_once_beside_a_flag(folder, terminal):
    found = json.loads((folder / "summary.json").read_text())
    row, other = primary_rows(found)[:2]
    common = {"effect": "caps", "code": "x", "sentence": "the text is short", "facts": {}}
    own = {"effect": "caps", "code": "x", "sentence": f"{row['arm']} read less", "facts": {}}
    rows = [
        row | {"flags": [common, own]},
        row | {"baseline": "else", "flags": [common]},
        other | {"flags": []},
    ]
    lines = terminal(found | {"contrasts": rows})
    assert (
        f"  · {row['arm']}: the text is short" in lines and f"  · {row['arm']} read less" in lines
    )


def test_the_terminal_says_verdicts_flags_and_what_to_do(folder, terminal):
    summary = json.loads((folder / "summary.json").read_text())
    lines = terminal(summary)
    rows = primary_rows(summary)
    (common,) = {
        flag["sentence"] for row in rows for flag in row["flags"] if flag["code"] == "untuned"
    }
    assert sum(common in line for line in lines) == 1  # common to both, so said once
    assert all(f"  → {sentence}" in lines for sentence in summary["advice"])
    assert lines[0].split()[-1] == "verdict" and len(lines) <= 12
    assert all(line.rstrip().endswith("open, at these settings") for line in lines[1:3])


def test_points_stand_first_and_a_decided_side_is_named(terminal):
    study = make_study(runs=8, arms={"token-15": 0.0, "token-30": 0.1})
    lines = terminal(summarise(make_records(study, {"token-30": 0.1}), study))
    assert "points" in lines[1] and "better (decided)" in lines[1] and "SD" not in lines[1]
    assert "each arm tuned" in lines[1]


def test_a_study_with_replicates_to_come_prints_one_sentence(terminal):
    study = make_study(runs=4, arms=ARMS)
    records = make_records(study, ARMS)
    summary = summarise(records, study | {"seeds": [*range(8)], "pending": [4, 5, 6, 7]})
    assert [line for line in terminal(summary) if line] == [summary["headline"]]


def test_an_evaluation_is_not_called_held_out_loss(terminal):
    row = {
        "outcome": "evaluation:pairs:accuracy",
        "unit": "score",
        "metric": "accuracy",
        "arm": "b",
        "baseline": "a",
        "primary": True,
        "higher_is_better": True,
        "mean": 0.023,
        "low": 0.01,
        "high": 0.04,
        "verdict": "open",
        "better": None,
        "p_adjusted": 0.2,
        "scope": "at these settings",
    }
    lines = terminal({"contrasts": [row | {"flags": []}], "headline": "", "advice": []})
    assert "pairs (accuracy)" in lines[1] and "+2.3 points" in lines[1]


def test_a_table_in_a_pipe_is_not_cut(capfd: pytest.CaptureFixture[str]) -> None:
    cell = "x" * 300
    printing.print_table(("a long head", "another"), [(cell, cell)])
    out = capfd.readouterr().out
    assert "…" not in out and f"{cell}  {cell}" in out


def test_the_row_of_a_gate_is_marked_and_arms_with_one_name_are_named_once(monkeypatch) -> None:
    study = make_study(runs=6, arms=ARMS, search=None)
    records = [line for line in make_records(study, ARMS) if line["kind"] != "selection"]
    row = primary_rows(summarise(records, study))[0]
    assert "gate" not in str(printing._cells(row)[-1])
    assert str(printing._cells({**row, "gate": True})[-1]).endswith(", gate")
    hopeless = {**row, "detectable": {"runs": 6, "difference": 1.0}, "runs_to_decide": None}
    both = [{**hopeless, "arm": arm} for arm in ("a", "b")]
    names = {"a": "masking 45 %", "b": "masking 45 %", row["baseline"]: "the baseline"}
    advice = advice_of(both, names)
    assert advice["no-more-seeds"].count("masking 45 %") == 1
