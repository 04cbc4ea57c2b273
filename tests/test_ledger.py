"""Every primary contrast of a recorded study stands in the ledger, as the rules judge it."""

from __future__ import annotations

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
