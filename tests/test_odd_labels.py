"""Labelled files that people have: which rows are read, or the facts in the one line that says why
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.tasks import load_task
from tiny import write_lines

ROWS = 60


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Rows with a text; a column is a value, or a list of which each row gets the next value."""
    found = []
    for number in range(ROWS):
        row: dict[str, Any] = {"text": f"a text with the number {number}"}
        for name, value in columns.items():
            row[name] = value[number % len(value)] if isinstance(value, list) else value
        found.append(row)
    return found


def table(*lines: str, ending: str = "\n") -> str:
    return "".join(line + ending for line in lines)


def written(folder: Path, name: str, content: str | bytes | Sequence[Any]) -> Path:
    path = folder / name
    if not isinstance(content, str | bytes):
        return write_lines(path, list(content))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


NAMED = table("text,label", *(f"a text with the number {n},{'ab'[n % 2]}" for n in range(60)))


@pytest.mark.parametrize("how", [{"text": 1, "label": 2}, {"label": 2}])
def test_a_header_is_no_row_of_a_table_whose_columns_are_numbered(
    how: dict[str, Any], tmp_path: Path
) -> None:
    """Its label was a class of its own."""
    path = written(tmp_path, "rows.csv", NAMED)
    with pytest.raises(MaskwiseError, match=r"got text, label; .*FILE\(text=text,label=label\)"):
        load_task(path, **how)
    # Without a header, "label" may be a class.
    rows = table(*(f"a text with the number {n},{('label', 'b')[n % 2]}" for n in range(60)))
    assert load_task(written(tmp_path, "rows.csv", rows), **how).labels == ("b", "label")


def test_a_test_split_with_other_columns_is_noted(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(NAMED)
    (tmp_path / "test.csv").write_text(NAMED.replace("text,label", "review,stars"))
    task = load_task(tmp_path)
    assert "test has no column 'label', so this split counts as unlabelled" in task.notes


READ: dict[str, tuple[str | Sequence[Any], Sequence[str], int, Sequence[str]]] = {
    # content; classes; number of rows; facts in the notes
    "line feeds of Windows.csv": (
        table("text,label", *(f"text {n},{'ab'[n % 2]}" for n in range(60)), ending="\r\n"),
        ("a", "b"),
        60,
        (),
    ),
    "byte-order mark.csv": (
        "\ufeff" + table("text,label", *(f"text {n},{'ab'[n % 2]}" for n in range(60))),
        ("a", "b"),
        60,
        (),
    ),
    "numbers as texts.jsonl": (rows(label=["0", "1.0", 1, 0.0]), ("0", "1"), 60, ()),
    "null as a text.jsonl": (
        [*rows(label=["a", "b"]), {"text": None, "label": "a"}],
        ("a", "b"),
        60,
        ("1 × no text",),
    ),
    "two columns of one name.csv": (
        table("text,label,label", *(f"text {n},{'ab'[n % 2]},x" for n in range(60))),
        ("a", "b"),
        60,
        ("label='label'",),
    ),
    "a class of one row.jsonl": (
        [
            *rows(label=["a", "b"], split=["train", "train", "dev", "dev", "test", "test"]),
            {"text": "more", "label": "rare", "split": "test"},
        ],
        ("a", "b"),
        61,
        ("1 class of test", "'rare'"),
    ),
    "classes that differ in case.csv": (
        table("text,label", *(f"text {n},{('a', 'b', 'A')[n % 3]}" for n in range(60))),
        ("A", "a", "b"),
        60,
        ("'A' and 'a'",),
    ),
    "joined labels.csv": (
        table("text,label", *(f"text {n},{('a|b', 'c')[n % 2]}" for n in range(60))),
        ("a|b", "c"),
        60,
        ("kind='sequence-classification'", "classes=2"),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_labelled_file_in_an_odd_form_is_read_and_notes_say_how(
    name: str, tmp_path: Path
) -> None:
    content, classes, count, facts = READ[name]
    task = load_task(written(tmp_path, name, content))
    assert task.labels == tuple(classes) and sum(map(len, task.splits.values())) == count
    notes = "; ".join(task.remarks)
    assert all(fact in notes for fact in facts), notes


def test_a_missing_text_of_a_parquet_file_is_left_out(tmp_path: Path) -> None:
    data = pd.DataFrame(rows(label=["a", "b"]))
    data.loc[::6, "text"] = None
    data.to_parquet(tmp_path / "rows.parquet")
    task = load_task(tmp_path / "rows.parquet")
    assert task.skipped == {"all: no text": 10} and sum(map(len, task.splits.values())) == 50
