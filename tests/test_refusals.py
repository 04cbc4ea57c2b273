"""The table of refusals: each call raises one line that states its facts, and its advice works."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from refusals import Refusal

SUBJECTS = sorted(path.stem for path in Path(__file__).parent.glob("refusals_*.py"))
ROWS: list[Refusal] = [row for subject in SUBJECTS for row in import_module(subject).ROWS]


def test_names_of_rows_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_refused_in_one_line(row: Refusal, tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError) as caught:
        row.call(tmp_path)
    line = str(caught.value)
    assert "\n" not in line and "Input should" not in line and len(line) < 900
    assert [fact for fact in row.facts if fact not in line] == [], line
    if row.advice is not None:
        row.advice(tmp_path)
