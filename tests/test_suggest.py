"""What a labelled file is, is found once: with more rows it stays a task of the same kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import split_options
from maskwise.recipe import read_recipe
from maskwise.studies.adapt import Adaptation, Request
from maskwise.studies.forecast import check
from maskwise.studies.from_files import new_recipe
from maskwise.studies.inputs import settled, task_specs, with_settled_tasks
from maskwise.studies.single import run_finetune
from maskwise.tasks import finetuning, load_task, loading, reading
from maskwise.text.source import read_records
from maskwise.text.tables import FieldValues
from test_finetune_again import Tuner

WORDS = ["rain", "sun", "snow", "wind", "cloud", "storm", "fog", "ice", "heat", "dust"]


def rows_of(labels: list[str]) -> list[dict[str, str]]:
    draw = random.Random(1)
    return [
        {"text": " ".join(draw.choices(WORDS, k=8)) + f" {number}", "label": label}
        for number, label in enumerate(labels)
    ]


def written(folder: Path, labels: list[str], name: str = "mine.csv") -> str:
    pd.DataFrame(rows_of(labels)).to_csv(folder / name, index=False)
    return str(folder / name)


TWENTY = [str(1 + number % 20) for number in range(400)]
GROWN = {
    # labels; a label that would have changed the kind, and fits or not
    "classes": (TWENTY, "25", False),
    "a class that is known": (TWENTY, "7", True),
    "quantities": ([f"{n % 90}.5" for n in range(200)], "7", True),
    "no number": ([str(n % 90) for n in range(200)], "cheap", False),
}


@pytest.mark.parametrize("case", GROWN)
def test_a_file_with_one_more_row_stays_the_same_task_or_is_refused(
    case: str, tmp_path: Path
) -> None:
    labels, more, fits = GROWN[case]
    (spec,) = settled([written(tmp_path, labels)])
    before = load_task(spec)
    assert (before.suggested, load_task(spec).notes) == ({}, before.notes)
    written(tmp_path, [*labels, more])
    if fits:
        after = load_task(spec)
        assert (after.kind.name, after.metric) == (before.kind.name, before.metric)
        assert after.columns == before.columns
        return
    with pytest.raises(MaskwiseError) as caught:
        load_task(spec)
    assert more in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_found_in_a_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path, **how: Any) -> list[FieldValues]:
        read.append(path)
        return read_records(path, **how)

    monkeypatch.setattr(reading, "read_records", counted)
    (spec,) = settled([written(tmp_path, TWENTY) + "(train_rows=60)"])
    task = load_task(spec)
    assert len(read) == 1 and not task.suggested

    # The same task is read in another process.
    monkeypatch.setattr(loading, "_LOADED", {})
    again = load_task(spec)
    assert len(read) == 2 and vars(again) == vars(task)


def test_the_advice_of_the_refusal_works(tmp_path: Path) -> None:
    (spec,) = settled([written(tmp_path, TWENTY)])
    written(tmp_path, [*TWENTY, "25"])
    with pytest.raises(MaskwiseError, match=r"classes=20.*classes=21"):
        load_task(spec)
    task = load_task(spec, classes=21)
    assert task.kind.name == "sequence-classification" and not task.suggested


def test_what_was_found_says_itself_and_stays_with_fewer_rows(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, TWENTY), train_rows=40, test_rows=20)
    kind = "sequence-classification"
    assert task.suggested == {
        "kind": kind,
        "text": "text",
        "label": "label",
        "metric": "accuracy",
        "classes": 20,
    }
    assert kind in task.remarks[0] and "classes=20" in task.remarks[0]


def test_tags_that_are_no_entities_do_not_change_the_metric(tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    rows = [{"tokens": ["a", f"b{n}"], "tags": ["O", "B-x"]} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (spec,) = settled([str(path)])
    assert load_task(spec).metric == "entity-f1"
    rows += [{"tokens": ["c", f"d{n}"], "tags": ["NN", "O"]} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_task(str(path)).metric == "accuracy"
    with pytest.raises(MaskwiseError, match="NN"):
        load_task(spec)


def test_columns_that_differ_between_splits_are_all_written(tmp_path: Path) -> None:
    for split, column in (("train", "text"), ("test", "sentence")):
        table = pd.DataFrame(rows_of(["a", "b"] * 40)).rename(columns={"text": column})
        table.assign(text_id=1).to_csv(tmp_path / f"{split}.csv", index=False)
    (spec,) = settled([str(tmp_path)])
    assert load_task(spec) == load_task(tmp_path)
    assert load_task(spec).columns["text"] == "text|sentence"


def test_what_names_its_kind_or_never_changes_stays_as_it_is(tmp_path: Path) -> None:
    named = f"{written(tmp_path, TWENTY)}(kind='regression')"
    specs = ("banking77(train_rows=100)", "bundled:world-{seed}-questions(kind='cloze-qa')", named)
    assert settled(specs) == specs


def test_a_file_for_each_seed_has_no_number_of_classes(tmp_path: Path) -> None:
    written(tmp_path, TWENTY, "rows-0.csv")
    written(tmp_path, TWENTY + ["21"] * 9, "rows-1.csv")
    (spec,) = settled([f"{tmp_path}/rows-{{seed}}.csv"])
    assert "{seed}" in spec and "classes" not in spec and "sequence-classification" in spec


def test_a_resumed_study_reads_its_tasks_as_before(tmp_path: Path) -> None:
    recipe = read_recipe("quick-start", [f"tasks=[{written(tmp_path, TWENTY)}]"])
    out = tmp_path / "study"
    out.mkdir()
    first = with_settled_tasks(recipe, out)
    (out / "study.json").write_text(json.dumps({"recipe": first.model_dump(mode="json")}))
    written(tmp_path, [*TWENTY, "25"])
    again = with_settled_tasks(recipe, out)
    assert again.tasks == first.tasks != recipe.tasks
    with pytest.raises(MaskwiseError, match=r"'25'.*classes=20"):
        load_task(again.tasks[0])
    assert "regression" in settled(recipe.tasks)[0]
    named = f"{recipe.tasks[0]}(kind='regression')"
    assert settled([named], out) == (named,)


def test_a_new_recipe_and_its_check_say_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(row["text"] for row in rows_of(TWENTY)))
    labels = written(tmp_path, TWENTY)
    target = tmp_path / "mine.yaml"
    new_recipe(str(tmp_path / "texts.txt"), [labels], target=target)
    (spec,) = yaml.safe_load(target.read_text())["tasks"]
    written(tmp_path, [*TWENTY, "7"])
    task = load_task(spec)
    assert task.kind.name == "sequence-classification" and task.suggested == {}
    record = check(read_recipe(target), timing=False)
    assert "classes=20" in record["recipe"] and "kind='sequence-classification'" in record["recipe"]


def test_an_adaptation_keeps_what_its_folder_says(tmp_path: Path) -> None:
    labels = written(tmp_path, TWENTY)
    request = Request(
        model="bundled:encoder", texts="bundled:wikipedia", out=tmp_path / "out", tasks=(labels,)
    )
    with Adaptation(request) as adaptation:
        (spec,) = adaptation.draft.recipe.tasks
        assert spec in adaptation.draft.text
    assert load_task(spec).suggested == {}


def test_rows_of_python_have_their_kind_in_the_recipe(tmp_path: Path) -> None:
    specs = task_specs({"mine": pd.DataFrame(rows_of(TWENTY))}, tmp_path)
    (spec,) = settled(specs)
    assert split_options(spec)[0] == split_options(specs[0])[0] and "classes=20" in spec


def test_fine_tuning_with_one_more_row_is_refused_by_what_it_read_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "finetune", Tuner())
    path, out = written(tmp_path, TWENTY), tmp_path / "out"

    def tuned(*tasks: str) -> list[Any]:
        return run_finetune("bundled:encoder", [*tasks], ["steps=2"], seeds=1, out=out)

    first = tuned(path)
    assert "classes=20" in (out / "finetune.json").read_text()
    written(tmp_path, [*TWENTY, "25"])
    with pytest.raises(MaskwiseError, match=r"21 labels, of which '25'.*classes=20"):
        tuned(path)
    written(tmp_path, TWENTY)
    tuned("banking77")
    assert tuned(path) == first and first[0]["task_kind"] == "sequence-classification"


def test_what_a_user_wrote_is_not_taken_for_what_was_found(tmp_path: Path) -> None:
    """A spec that was asked before with a kind of its own is another task of the same file."""
    file = tmp_path / "few.csv"
    rows = "\n".join(f"a text about {n},{n % 5}" for n in range(100))
    file.write_text(f"text,label\n{rows}\n")
    (own,) = settled([f"{file}(train_rows=20)"])
    named = f"{file}(train_rows=20, kind='regression', name='r')"
    (tmp_path / "finetune.json").write_text(json.dumps({"recipe": {"tasks": [named, own]}}))
    assert settled([f"{file}(train_rows=20)", named], tmp_path) == (own, named)
    # A text that says "kind=" is no kind.
    spec = f"{file}(where='text != kind=x')"
    try:
        (found,) = settled([spec])
    except MaskwiseError:
        return
    assert "kind='sequence-classification'" in found
