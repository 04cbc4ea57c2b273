"""Refusals of labelled files."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError, command_line
from maskwise.tasks import load_task
from refusals import Refusal


def _table(folder: Path) -> Path:
    """A table whose labels are in a column that nobody could guess."""
    file = folder / "docs.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("Description", "Doc ID", "Library"))
        for number in range(40):
            rows.writerow((f"a text about thing {number}", number, ("numpy", "scipy")[number % 2]))
    return file


def _follow(folder: Path) -> None:
    """Give the argument that the error names."""
    with command_line(), pytest.raises(MaskwiseError) as caught:
        load_task(str(_table(folder)), text="Description")
    argument = shlex.split(str(caught.value).partition("--task ")[2].partition(";")[0])[0]
    assert load_task(argument).labels == ("numpy", "scipy")


ROWS = [
    Refusal(
        "labels in a column of any name",
        lambda folder: load_task(str(_table(folder)), text="Description"),
        ("docs.csv", "Doc ID", "Library", "label='Library'", "text='Description'"),
        _follow,
    ),
]
