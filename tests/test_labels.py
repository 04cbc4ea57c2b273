"""Labels as files hold them: what is a class, what is missing, and when whole numbers are classes.
The chance of a task: the best guess that ignores the text, for each relation and each class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from invented import world
from maskwise.base.errors import MaskwiseError
from maskwise.tasks import Task, load_task
from maskwise.tasks.metrics import accuracy, any_class, macro_f1
from tiny import load_rows, write_lines


def table(path: Path, labels: Sequence[object]) -> Path:
    """A table with a text of its own for each label."""
    rows = [f'"a text of some words, number {n}","{label}"' for n, label in enumerate(labels)]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return path


def lines(path: Path, column: str, values: Sequence[object]) -> Path:
    text = "a text of some words, number"
    return write_lines(path, [{"text": f"{text} {n}", column: v} for n, v in enumerate(values)])


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
    task = load_task(path, missing=missing)
    assert task.labels == left and task.skipped == {"all: no label": 160 - 40 * len(left)}
    assert load_task(f"{path}(missing={missing!r})") == task
    unused = load_task(path, missing=(missing, "ZZ"))
    assert said(unused, "missing='ZZ' does not occur among the labels") and unused == task
    with pytest.raises(MaskwiseError, match="cannot read missing of"):
        load_task(path, missing={"NA": -1})


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


def test_words_under_a_score_may_be_classes(tmp_path: Path) -> None:
    """The error advised only to leave out every row of a class, as a missing score."""
    rows = [
        {"premise": f"a {n}", "hypothesis": "b", "score": ["high", "low"][n % 2]} for n in range(60)
    ]
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(MaskwiseError, match=r"not a number.*kind='sequence-classification'"):
        load_task(path)
    task = load_task(path, kind="sequence-classification", label="score")
    assert task.labels == ("high", "low")


@pytest.mark.parametrize("column", ["labels", "tags"])
def test_lists_of_labels_go_by_the_same_rule(tmp_path: Path, column: str) -> None:
    cells: list[object] = [["a", "NA"], ["b", "a"], ["-1", "a"], ["b", "b"]]
    if column == "labels":
        cells[3] = ""  # a row without any label
    rows = []
    for n in range(80):
        text = {"text": f"text {n}"} if column == "labels" else {"tokens": ["two", f"words{n}"]}
        rows.append({**text, column: cells[n % 4]})
    task = load_rows(tmp_path, rows)
    assert task.labels == ("-1", "NA", "a", "b") and rows_of(task) == 80
    assert load_rows(tmp_path, rows, missing=["NA", "-1"]).labels == ("a", "b")


def test_a_written_answer_may_be_minus_one(tmp_path: Path) -> None:
    rows = [
        {"question": f"what is {n} less {n + 1}?", "answer": -1 if n % 2 else "NA"}
        for n in range(60)
    ]
    assert rows_of(load_rows(tmp_path, rows)) == 60
    assert rows_of(load_rows(tmp_path, rows, missing=-1)) == 30


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
    assert load_task(tmp_path).skipped == {}
    assert load_task(tmp_path, missing=-1).skipped == {"test: no label": 10}


def test_hidden_scores_and_tags_are_not_labelled_either(tmp_path: Path) -> None:
    cells = {"train": [0.5, 1.5], "dev": [0.5, 1.5], "test": [-1.0]}
    rows = [
        {"text": f"text {n} of {split}", "score": scores[n % len(scores)], "split": split}
        for split, scores in cells.items()
        for n in range(30)
    ]
    assert load_rows(tmp_path, rows).skipped == {"test: no label": 30}
    rows = [
        {"tokens": [row["text"], "end"], "tags": [row["score"], -1], "split": row["split"]}
        for row in rows
    ]
    assert load_rows(tmp_path, rows).skipped == {"test: no label": 30}


@pytest.mark.parametrize(
    ("name", "labels", "kind"),
    [
        ("few", [1990 + n % 20 for n in range(100)], "sequence-classification"),
        ("numbered from 0", [n % 40 for n in range(1200)], "sequence-classification"),
        ("as texts", [f"{n % 40}.0" for n in range(1200)], "sequence-classification"),
        ("too few rows each", [n % 40 for n in range(240)], "regression"),
        ("gaps", [2 * (n % 40) for n in range(1200)], "regression"),
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
    assert f"kind='{kind}'" in task.remarks[0]
    named = load_task(path, kind="regression")
    assert named.kind.name == "regression" and "kind=" not in " ".join(named.remarks)
    assert task.kind.name == "regression" or set(task.labels) == {
        str(label).removesuffix(".0") for label in labels
    }


def test_numbered_classes_of_pairs(tmp_path: Path) -> None:
    rows = [{"sentence1": f"text {n}", "sentence2": "another", "label": n % 30} for n in range(900)]
    task = load_rows(tmp_path, rows)
    assert len(task.labels) == 30 and "kind='sequence-classification'" in task.remarks[0]
    assert task.splits["train"][0].pair == "another"
    gaps = [{**row, "label": 3 * (n % 30)} for n, row in enumerate(rows)]
    assert load_rows(tmp_path, gaps).kind.name == "similarity"


def test_what_is_left_out_stands_in_the_facts_and_the_remarks(tmp_path: Path) -> None:
    task = load_task(table(tmp_path / "t.csv", ["a", "b", ""] * 40))
    assert task.facts()["skipped"] == {"all: no label": 40}
    found, *others = task.remarks
    assert "kind='sequence-classification'" in found
    assert others == [*task.notes, "left out: 40 × no label"]


def test_a_task_is_read_once_and_again_when_its_file_has_changed(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", ["a", "b"] * 40)
    first = load_task(path)
    assert load_task(path) is first and load_task(str(path)) is first
    assert load_task(path, train_rows=10) is not first
    table(path, ["a", "b", "c"] * 40)
    assert load_task(path).labels == ("a", "b", "c")
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        table(folder / f"{split}.csv", ["a", "b"] * 40)
    before = load_task(folder)
    table(folder / "dev.csv", ["a", "b"] * 10)
    assert load_task(folder) is not before and len(load_task(folder).splits["dev"]) == 20


# Chance


@pytest.mark.parametrize("kind", ["cloze-qa", "generation"])
def test_guessing_one_of_forty_jobs_is_a_fortieth(kind: str) -> None:
    # Jobs are dealt out evenly, so that the commonest of train are the rarest of test.
    majority = load_task(world("factworld(people=400)").task(kind)).majority
    assert majority == pytest.approx(1 / 40, abs=0.002)


def test_several_attributes_are_guessed_each_among_its_own_answers() -> None:
    one = []
    for asked in ("job", "city"):
        one.append(load_task(world(f"factworld(people=400, asked={asked})").task()).majority)
    both = load_task(world("factworld(people=400, asked=('job', 'city'))").task()).majority
    assert both == pytest.approx(sum(value or 0 for value in one) / 2, abs=0.002)


def facts(relation: str | None) -> list[dict[str, object]]:
    """Questions about jobs and seats; half of the jobs are one job, and so are three of four
    seats.
    """
    rows: list[dict[str, object]] = []
    for n in range(400):
        split = "test" if n % 8 > 4 else "train"
        answers = {
            "job": "actor" if n % 2 else f"job {n % 30}",
            "seat": "king" if n % 4 else f"seat {n % 20}",
        }
        for name, answer in answers.items():
            row = {"question": f"{name} of person {n}?", "answers": [answer], "split": split}
            rows.append({**row, relation: name} if relation else row)
    return rows


@pytest.mark.parametrize("column", ["relation", "predicate_id"])
@pytest.mark.parametrize("kind", ["cloze-qa", "generation"])
def test_the_commonest_answer_is_that_to_the_relation(
    tmp_path: Path, kind: str, column: str
) -> None:
    plain = load_rows(tmp_path, facts(None), kind=kind)
    named = load_rows(tmp_path, facts(column), kind=kind)
    answers = {name: Counter[str]() for name in ("job", "seat")}
    for row in named.splits["test"]:
        answers[row.relation][row.rights[0]] += 1
    right = answers["job"]["actor"] + answers["seat"]["king"]
    assert named.majority == pytest.approx(right / named.test_items)
    assert plain.majority == pytest.approx(answers["seat"]["king"] / plain.test_items)
    # Scores do not depend on relations, and so neither do the names of stages.
    assert named.fingerprint == plain.fingerprint


def test_an_answer_that_no_relation_of_train_has_cannot_be_guessed(tmp_path: Path) -> None:
    rows = [{"question": f"who is {n}?", "answers": [f"name {n}"]} for n in range(100)]
    assert load_rows(tmp_path, rows, kind="cloze-qa").majority == 0


@pytest.mark.parametrize(
    ("metric", "classes"), [("accuracy", 2), ("macro-f1", 2), ("accuracy", 10), ("macro-f1", 10)]
)
def test_balanced_classes_are_guessed_one_in_so_many(
    tmp_path: Path, metric: str, classes: int
) -> None:
    rows = [
        {"text": f"a text, number {n}", "label": f"class {n % classes}"}
        for n in range(40 * classes)
    ]
    task = load_rows(tmp_path, rows, metric=metric)
    assert task.majority == pytest.approx(1 / classes, rel=0.05)


def test_a_common_class_is_the_better_guess(tmp_path: Path) -> None:
    task = load_task(table(tmp_path / "t.csv", ["rare", *["common"] * 4] * 80))
    assert task.majority == task.score("test", [task.labels.index("common")] * task.test_items)


def test_any_class_is_the_mean_over_guesses() -> None:
    gold = [0, 0, 0, 1, 1, 2, -1]
    pairs = np.repeat(gold, 3), np.tile(range(3), len(gold))
    assert any_class(gold, 3, "accuracy") == pytest.approx(accuracy(*pairs))
    # The class that train lacks counts as in macro_f1.
    assert any_class(gold, 3, "macro-f1") == pytest.approx(macro_f1(*pairs))
    assert any_class(gold, 3, "matthews") == 0
