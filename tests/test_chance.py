"""Chance of a task: the best guess that ignores the text, per relation and per class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from maskwise.tasks import load_task
from maskwise.tasks.metrics import accuracy, any_class, macro_f1


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", ["cloze-qa", "generation"])
def test_guessing_one_of_forty_jobs_is_a_fortieth(kind: str) -> None:
    # Jobs are dealt out evenly, so that the commonest of train are the rarest of test.
    assert load_task(f"factworld(people=400,kind='{kind}')").majority == pytest.approx(
        1 / 40, abs=0.002
    )


def test_several_attributes_are_guessed_each_among_its_own_answers() -> None:
    one = [
        load_task(f"factworld(people=400,asked='{asked}')").majority for asked in ("job", "city")
    ]
    both = load_task("factworld(people=400,asked=('job','city'))").majority
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
    plain = load_task(write(tmp_path / "plain.jsonl", facts(None)), kind=kind)
    named = load_task(write(tmp_path / "named.jsonl", facts(column)), kind=kind)
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
    assert load_task(write(tmp_path / "t.jsonl", rows), kind="cloze-qa").majority == 0


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
    task = load_task(write(tmp_path / "t.jsonl", rows), metric=metric)
    assert task.majority == pytest.approx(1 / classes, rel=0.05)


def test_a_common_class_is_the_better_guess(tmp_path: Path) -> None:
    labels = ["common" if n % 5 else "rare" for n in range(400)]
    rows = [{"text": f"a text, number {n}", "label": label} for n, label in enumerate(labels)]
    task = load_task(write(tmp_path / "t.jsonl", rows))
    assert task.majority == task.score("test", [task.labels.index("common")] * task.test_items)


def test_any_class_is_the_mean_over_guesses() -> None:
    gold = [0, 0, 0, 1, 1, 2, -1]
    each = [(g, answer) for g in gold for answer in range(3)]
    pairs = [pair[0] for pair in each], [pair[1] for pair in each]
    assert any_class(gold, 3, "accuracy") == pytest.approx(accuracy(*pairs))
    # The class that train lacks counts as in macro_f1.
    assert any_class(gold, 3, "macro-f1") == pytest.approx(macro_f1(*pairs))
    known = [pair for pair in each if pair[0] >= 0]
    expected = macro_f1([pair[0] for pair in known], [pair[1] for pair in known])
    assert any_class(gold[:-1], 3, "macro-f1") == pytest.approx(expected)
    assert any_class(gold, 3, "matthews") == 0
