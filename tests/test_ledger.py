"""Every primary contrast of a recorded study stands in the ledger, as the rules judge it."""

from __future__ import annotations

import figure
import pytest
from ledger import key_of, lines_of, read_ledger, recorded

from maskwise.files import RULES


@pytest.mark.parametrize("folder", recorded(), ids=lambda folder: folder.name)
def test_a_record_has_its_lines(folder) -> None:
    ledger = read_ledger()
    for line in lines_of(folder):
        written = ledger[key_of(line)]
        if written["rules"] == RULES:
            assert {name: written[name] for name in line} == line


def test_the_figure_has_an_interval_for_each_claim() -> None:
    table = figure.rows()
    assert len(table) == len(figure.CLAIMS)
    assert not table[["low", "difference", "high", "verdict"]].isna().any(axis=None)
    assert set(table.verdict) <= set(figure.COLOURS)
