"""The notebooks of docs/ run from the first cell to the last, and hold what they printed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"\d+\.\d+")
"""Losses and scores differ a little between machines."""


def code_of(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    return "".join(line for output in cell["outputs"] for line in output["text"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_its_outputs(notebook: Path) -> None:
    cells = code_of(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert bool(printed(cell)) == ("print(" in "".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells print what stands below them, numbers with decimals apart."""
    monkeypatch.chdir(tmp_path)
    # Classes of a notebook can be pickled, as those of a module can.
    module = ModuleType("maskwise_notebook")
    monkeypatch.setitem(sys.modules, "maskwise_notebook", module)
    for cell in code_of(notebook):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(compile("".join(cell["source"]), notebook.name, "exec"), vars(module))
        assert NUMBER.sub("#", shown.getvalue()) == NUMBER.sub("#", printed(cell))
