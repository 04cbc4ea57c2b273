"""Labels as files hold them: what is a class, what is missing, and when whole numbers are
classes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from maskwise.errors import MaskwiseError
from maskwise.tasks import Task, load_task


def table(path: Path, labels: Sequence[object]) -> Path:
    """A table with a text of its own for each label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(
            (f"a text of some words, number {n}", label) for n, label in enumerate(labels)
        )
    return path


def lines(path: Path, column: str, values: Sequence[object]) -> Path:
    rows = [
        {"text": f"a text of some words, number {n}", column: value}
        for n, value in enumerate(values)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rows_of(task: Task) -> int:
    return sum(map(len, task.splits.values()))


def said(task: Task, word: str) -> bool:
    return any(word in note for note in task.notes)


@pytest.mark.parametrize(
    "labels",
    [
        (-1, 0, 1),
        ("NA", "DE", "US"),
        ("null", "pointer"),
        ("nan", "roti"),
        ("n/a", "a"),
        ("a", "<NA>", "None"),
    ],
)
def test_only_an_empty_cell_is_a_missing_label(tmp_path: Path, labels: tuple[object, ...]) -> None:
    task = load_task(table(tmp_path / "t.csv", [*labels, ""] * 50))
    assert task.labels == tuple(sorted(map(str, labels)))
    assert rows_of(task) == 50 * len(labels) and task.skipped == {"all: no label": 50}
    assert said(task, "missing=")


@pytest.mark.parametrize(
    ("missing", "left"),
    [("NA", ("-1", "a", "b")), ((-1, "NA"), ("a", "b")), (-1.0, ("NA", "a", "b"))],
)
def test_what_else_is_missing_is_said_by_the_user(
    tmp_path: Path, missing: object, left: tuple[str, ...]
) -> None:
    path = table(tmp_path / "t.csv", ["a", "b", "NA", "-1"] * 40)
    by_argument, by_spec = (
        load_task(path, missing=missing),
        load_task(f"{path}(missing={missing!r})"),
    )
    assert by_argument.labels == by_spec.labels == left
    assert by_argument.skipped == {"all: no label": 160 - 40 * len(left)}


def test_the_lowest_score_is_a_score(tmp_path: Path) -> None:
    task = load_task(lines(tmp_path / "t.jsonl", "score", [-1.0, -0.5, 0.0, 0.5, 1.0] * 40))
    assert task.kind.name == "regression" and rows_of(task) == 200
    assert min(row.score for row in task.splits["train"]) == -1


def test_a_mark_among_scores_is_refused_until_it_is_said(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", "score", [0.5, 1.5, 2.5, "NA"] * 40)
    with pytest.raises(MaskwiseError) as caught:
        load_task(path, kind="regression")
    assert caught.value.got == "NA" and "missing=" in str(caught.value.do)
    assert rows_of(load_task(path, missing="NA")) == 120


@pytest.mark.parametrize("column", ["labels", "tags"])
def test_lists_of_labels_go_by_the_same_rule(tmp_path: Path, column: str) -> None:
    cells: list[object] = [["a", "NA"], ["b", "a"], ["-1", "a"], ["b", "b"]]
    if column == "labels":
        cells[3] = ""  # a row without any label
    rows: list[dict[str, object]] = []
    for n in range(80):
        text: object = ["two", f"words{n}"] if column == "tags" else f"text {n}"
        name = "tokens" if column == "tags" else "text"
        rows.append({name: text, column: cells[n % 4]})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task(tmp_path / "t.jsonl")
    assert task.labels == ("-1", "NA", "a", "b") and rows_of(task) == 80
    assert load_task(tmp_path / "t.jsonl", missing=["NA", "-1"]).labels == ("a", "b")


def test_a_written_answer_may_be_minus_one(tmp_path: Path) -> None:
    rows = [
        {"question": f"what is {n} less {n + 1}?", "answer": -1 if n % 2 else "NA"}
        for n in range(60)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert rows_of(load_task(tmp_path / "t.jsonl")) == 60
    assert rows_of(load_task(tmp_path / "t.jsonl", missing=-1)) == 30


@pytest.mark.parametrize("hidden", [-1, "-1", -1.0])
def test_a_split_whose_only_label_is_minus_one_is_not_labelled(
    tmp_path: Path, hidden: object
) -> None:
    for split, labels in (("train", [0, 1] * 40), ("dev", [0, 1] * 10), ("test", [hidden] * 30)):
        lines(tmp_path / f"{split}.jsonl", "label", labels)
    task = load_task(tmp_path)
    assert task.labels == ("0", "1") and task.skipped == {"test: no label": 30}
    assert said(task, "−1") and said(task, "dev is test")
    lines(tmp_path / "test.jsonl", "label", [0, 1, hidden] * 10)
    assert load_task(tmp_path).skipped == {} and load_task(tmp_path, missing=-1).skipped == {
        "test: no label": 10
    }


def test_hidden_scores_and_tags_are_not_labelled_either(tmp_path: Path) -> None:
    for split, scores in (
        ("train", [0.5, 1.5, 2.5] * 40),
        ("dev", [0.5, 1.5] * 10),
        ("test", [-1.0] * 30),
    ):
        lines(tmp_path / f"{split}.jsonl", "score", scores)
    assert load_task(tmp_path).skipped == {"test: no label": 30}
    for split, tags in (("train", ["N", "V"]), ("dev", ["V", "N"]), ("test", [-1, -1])):
        rows = [{"tokens": [f"word{n}", split], "tags": tags} for n in range(30)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_task(tmp_path).skipped == {"test: no label": 30}


@pytest.mark.parametrize(
    ("name", "labels", "kind"),
    [
        ("few", [1990 + n % 20 for n in range(100)], "sequence-classification"),
        ("numbered from 0", [n % 40 for n in range(1200)], "sequence-classification"),
        ("numbered from 1", [1 + n % 40 for n in range(1200)], "sequence-classification"),
        ("as texts", [f"{n % 40}.0" for n in range(1200)], "sequence-classification"),
        ("too few rows each", [n % 40 for n in range(240)], "regression"),
        ("gaps", [2 * (n % 40) for n in range(1200)], "regression"),
        ("years", [1990 + n % 30 for n in range(1200)], "regression"),
        ("fractions", [n % 40 / 2 for n in range(1200)], "regression"),
        ("too many", [n % 1001 for n in range(8000)], "regression"),
    ],
)
def test_when_whole_numbers_are_classes(
    tmp_path: Path, name: str, labels: list[object], kind: str
) -> None:
    path = table(tmp_path / "t.csv", labels)
    task = load_task(path)
    assert task.kind.name == kind, name
    other = "regression" if kind == "sequence-classification" else "sequence-classification"
    if name != "fractions":
        assert said(task, f"kind='{other}'")
    named = load_task(path, kind="regression")
    assert named.kind.name == "regression" and not said(named, "kind=")
    assert task.kind.name == "regression" or set(task.labels) == set(map(str, labels))


def test_numbered_classes_of_pairs(tmp_path: Path) -> None:
    rows = [{"sentence1": f"text {n}", "sentence2": "another", "label": n % 30} for n in range(900)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task(tmp_path / "t.jsonl")
    assert (
        len(task.labels) == 30
        and task.splits["train"][0].pair == "another"
        and said(task, "kind='similarity'")
    )
    (tmp_path / "t.jsonl").write_text(
        "\n".join(map(json.dumps, [{**row, "label": 3 * row["label"]} for row in rows]))
    )
    assert load_task(tmp_path / "t.jsonl").kind.name == "similarity"


def test_what_is_left_out_stands_in_the_facts_and_the_remarks(tmp_path: Path) -> None:
    task = load_task(table(tmp_path / "t.csv", ["a", "b", ""] * 40))
    assert task.facts()["skipped"] == {"all: no label": 40}
    assert (
        task.remarks[-1] == "left out: 40 × all: no label" and list(task.notes) == task.remarks[:-1]
    )


def test_a_task_is_read_once_and_again_when_its_file_has_changed(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", ["a", "b"] * 40)
    first = load_task(path)
    assert load_task(path) is first and load_task(str(path)) is first
    assert load_task(path, train_rows=10) is not first
    table(path, ["a", "b", "c"] * 40)
    assert load_task(path).labels == ("a", "b", "c")
    assert all(isinstance(rows, tuple) for rows in first.splits.values())
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        table(folder / f"{split}.csv", ["a", "b"] * 40)
    before = load_task(folder)
    table(folder / "dev.csv", ["a", "b"] * 10)
    assert load_task(folder) is not before and len(load_task(folder).splits["dev"]) == 20


def test_a_missing_label_that_no_row_has_is_noted(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", ["a", "b", "NA"] * 40)
    assert not said(load_task(path, missing="NA"), "not among the labels")
    assert said(load_task(path, missing=("NA", "ZZ")), "missing='ZZ' is not among the labels")
