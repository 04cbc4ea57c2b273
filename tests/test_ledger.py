"""Every primary contrast of a recorded study stands in the ledger, as the rules judge it."""

from __future__ import annotations

import re

import figure
import pytest
from ledger import RESULTS, key_of, lines_of, read_ledger, recorded

from maskwise.results.files import RULES


@pytest.mark.parametrize("folder", recorded(), ids=lambda folder: folder.name)
def test_a_record_has_its_lines(folder) -> None:
    ledger = read_ledger()
    for line in lines_of(folder):
        written = ledger[key_of(line)]
        if written["rules"] == RULES:
            assert {name: written[name] for name in line} == line


def test_results_report_every_recorded_study() -> None:
    """README says so; studies that decide nothing were left out."""
    text = (RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8")
    named = {*re.findall(r"[\w-]+", text)}
    assert [folder.name for folder in recorded() if folder.name not in named] == []


@pytest.mark.parametrize("paper", figure.OPENING)
def test_the_page_opens_with_the_main_claims_of_each_paper(paper: str) -> None:
    text = (RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8")
    opening, _, _ = text.partition("### The same in words")
    assert f"(results/opening-{paper}.svg)" in opening
    assert [row for row in figure.rows_of(figure.OPENING[paper]) if row not in opening] == []


@pytest.mark.parametrize(
    "paper",
    [
        pytest.param(paper, marks=[pytest.mark.slow] * (paper != "policies"))
        for paper in figure.CLAIMS
    ],
)
def test_the_figure_has_an_interval_for_each_claim(paper: str) -> None:
    claims = figure.CLAIMS[paper]
    table = figure.leads(claims)
    assert [*table.claim] == [name for name, *_ in claims]
    assert not table[["low", "mean", "high", "verdict"]].isna().any(axis=None)
    assert ((table.low <= table["mean"]) & (table["mean"] <= table.high)).all()
    assert set(table.unit) <= {"points", "nats"}
    verdicts = {}
    for line in read_ledger().values():
        verdicts.setdefault((line["record"], line["arm"], line["baseline"]), set()).add(
            line["verdict"]
        )
    for row in table.itertuples():
        assert row.verdict in verdicts[row.record, row.arm, row.baseline]
