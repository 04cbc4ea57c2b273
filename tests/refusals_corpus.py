"""Refusals of a corpus, and of a model where one is expected."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.models.starts import find_start
from maskwise.text.documents import read_documents
from refusals import Refusal


def _table(folder: Path) -> Path:
    """A table with its texts in a column of any name."""
    file = folder / "holdings.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("Ref No", "Full Entry", "Shelf"))
        for number in range(40):
            rows.writerow((number, f"a text about thing {number}", ("a", "b")[number % 2]))
    return file


def _named_as_of_a_task(folder: Path) -> object:
    return [*read_documents(f"{_table(folder)}(text='Full Entry')")]


def _follow(folder: Path) -> None:
    with pytest.raises(MaskwiseError) as caught:
        _named_as_of_a_task(folder)
    said = str(caught.value)
    file = said.partition("give '")[2].partition("'")[0]
    field = said.partition("corpus.text_field='")[2].partition("'")[0]
    assert len([*read_documents(file, text_field=field)]) == 40


def _unknown_format(folder: Path) -> object:
    (folder / "film.srt").write_text("1\n00:01 --> 00:02\nIt rained.\n", encoding="utf-8")
    return read_documents(folder / "film.srt")


def _as_lines(folder: Path) -> None:
    with pytest.raises(MaskwiseError) as caught:
        _unknown_format(folder)
    line = re.search(r"\{.*?\}", str(caught.value))
    assert line is not None
    (folder / "film.jsonl").write_text(line[0], encoding="utf-8")
    assert len([*read_documents(folder / "film.jsonl")]) == 1


ROWS = [
    Refusal(
        "a format of files that is not read",
        _unknown_format,
        ("film.srt", ".parquet", ".jsonl"),
        _as_lines,
    ),
    Refusal(
        "the column of a text, named as that of a task",
        _named_as_of_a_task,
        ("holdings.csv(text='Full Entry')", "corpus.text_field='Full Entry'"),
        _follow,
    ),
    Refusal(
        "a text before the model",
        lambda folder: find_start(str(_table(folder))),
        ("holdings.csv", "after the model"),
    ),
]
