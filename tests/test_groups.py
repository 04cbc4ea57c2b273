"""Hold out by group: no author, patient or cluster is on both sides of a split."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.recipe import read_recipe
from maskwise.studies.checks import check_inputs, groups_note
from maskwise.studies.stages import overlap_stage, prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.tasks import load_task
from maskwise.text import Prepared, read_documents, train_tokenizer
from maskwise.text.groups import share_that_fits
from maskwise.text.rows import holds_out
from maskwise.text.settings import CorpusSettings
from maskwise.text.stream import read_beginning
from tiny import WORDS, maskwise, write_inputs, write_lines


def lines(groups: int = 60, each: int = 4) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"id": f"{n}", "author": f"a{n % groups}", "text": " ".join(draw.choices(WORDS, k=30))}
        for n in range(groups * each)
    ]


def written(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"texts{ending}"
    if ending == ".jsonl":
        return write_lines(path, rows)
    table = pd.DataFrame(rows)
    if ending == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("ending", "stream"),
    [(".jsonl", False), (".csv", False), (".parquet", False), (".jsonl", True), (".parquet", True)],
)
def test_no_group_is_on_both_sides(ending, stream, tmp_path):
    rows = lines()
    source = str(written(tmp_path, ending, rows))
    corpus = CorpusSettings(source=source, held_out=0.2, group_field="author", stream=stream)
    author = {row["text"]: row["author"] for row in rows}
    training = {author[document.text] for document in corpus.training_documents()}
    held_out = {author[document.text] for document in corpus.held_out_documents()}
    assert training and held_out and not training & held_out
    assert len(training | held_out) == 60
    # Masks are as without groups.
    plain = [
        document.id for document in corpus.model_copy(update={"group_field": None}).documents()
    ]
    assert [document.id for document in corpus.documents()] == plain


def test_a_group_may_be_a_nested_field_and_long_documents_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("maskwise.text.documents.LONGEST_TEXT", 40)
    rows = [{"about": {"patient": n % 9}, "text": "word " * 30 + str(n)} for n in range(27)]
    found = read_documents(rows, group_field="about.patient")
    places: dict[int, set[int]] = {}
    for document in found:
        places.setdefault(int(document.name) % 9, set()).add(document.place)
    assert len(places) == 9 and all(len(found) == 1 for found in places.values())
    assert len(set.union(*places.values())) == 9


def test_documents_without_a_group_decide_alone():
    rows = [{"author": None, "text": f"text {n}"} for n in range(9)]
    plain = [document.place for document in read_documents(rows)]
    assert [document.place for document in read_documents(rows, group_field="author")] == plain


def test_one_group_in_several_spellings_is_one_group():
    spellings = ["Zoë", " Zoë", "Zoe\u0308 ", ["Zoë"]]
    rows = [{"author": author, "text": f"text {n}"} for n, author in enumerate(spellings)]
    assert len({document.place for document in read_documents(rows, group_field="author")}) == 1
    numbers = [{"author": author, "text": f"text {n}"} for n, author in enumerate((3, 3.0, "3"))]
    found = read_documents(numbers, group_field="author")
    assert len({document.place for document in found}) == 1


def test_a_document_of_two_groups_is_one_line(tmp_path):
    rows = [{**row, "author": ["a", row["author"]]} for row in lines()]
    for ending in (".jsonl", ".parquet"):
        with pytest.raises(MaskwiseError, match="several groups by author"):
            [*read_documents(written(tmp_path, ending, rows), group_field="author")]


def test_what_has_no_group_is_counted_and_is_no_group(tmp_path):
    rows = [{**row, "author": None if n % 2 else row["author"]} for n, row in enumerate(lines())]
    source = str(write_lines(tmp_path / "texts.jsonl", rows))
    corpus = CorpusSettings(source=source, group_field="author", held_out=0.2)
    note = groups_note(corpus, "author")
    assert "of 30 groups" in note and "120 documents without a value in author" in note
    labels = [
        {**row, "author": None if n % 2 else row["author"]} for n, row in enumerate(labelled())
    ]
    task = load_task(f"{write_lines(tmp_path / 'rows.jsonl', labels)}(split_by=author)")
    (note,) = (note for note in task.notes if "groups" in note)
    assert "30 groups" in note and "120 rows without a value in author" in note


@pytest.fixture
def source(tmp_path):
    recipe = write_inputs(tmp_path / "inputs")
    write_lines(tmp_path / "inputs" / "corpus.jsonl", lines())
    return recipe


def test_the_rows_of_a_run_keep_groups_apart_and_the_share_is_said(source, tmp_path):
    recipe = read_recipe(source, ["corpus.group_field=author"])
    notes = check_inputs(recipe)
    (note,) = (note for note in notes if "author" in note)
    held = {row["author"] for row in lines() if row["author"] in _held_out(recipe.corpus)}
    assert f"{len(held)} of 60 groups" in note and "%" in note
    stage = prepare_stage(recipe)
    store = StageStore(tmp_path / "stages")
    run_stage(stage, store)
    data = Prepared.open(store.output(stage))
    sides = [
        set(rows.pieces.documents[rows.order].tolist()) for rows in (data.training, data.held_out)
    ]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 60
    assert len(sides[1]) == len(held)


def _held_out(corpus: CorpusSettings) -> set[str]:
    author = {row["text"]: row["author"] for row in lines()}
    return {
        author[document.text]
        for document in corpus.documents()
        if holds_out(document, corpus.held_out)
    }


def test_names_of_stages_without_groups_do_not_have_the_key(source):
    plain = read_recipe(source)
    grouped = read_recipe(source, ["corpus.group_field=author"])
    for make in (prepare_stage, lambda recipe: overlap_stage(recipe, "task", "content")):
        assert "group_field" not in json.dumps(make(plain).as_dict())
        assert make(plain).name != make(grouped).name
    assert CorpusSettings(**grouped.corpus.model_dump()) == grouped.corpus


@pytest.mark.parametrize(
    ("rows", "settings", "facts"),
    [
        (lines(9), {"held_out": 0.3}, ("9 groups", "20")),
        (lines(), {"group_field": "patient"}, ("patient", "no document")),
        # One author has half of the text.
        (
            [{**row, "author": "a0" if n % 2 else row["author"]} for n, row in enumerate(lines())],
            {"held_out": 0.02},
            ("0.0% of the text", "30 groups", "1.0% to 4.0%"),
        ),
    ],
)
def test_a_split_that_is_not_what_was_asked_is_refused(rows, settings, facts, tmp_path):
    source = str(write_lines(tmp_path / "texts.jsonl", rows))
    corpus = CorpusSettings(source=source, **{"group_field": "author", **settings})
    with pytest.raises(MaskwiseError) as caught:
        groups_note(corpus, corpus.group_field or "")
    said = str(caught.value)
    assert all(fact in said for fact in facts) and "\n" not in said


def test_a_stream_without_groups_is_refused(tmp_path):
    source = str(write_lines(tmp_path / "texts.jsonl", lines()))
    corpus = CorpusSettings(source=source, held_out=0.2, stream=True, group_field="author")
    tokenizer = train_tokenizer(["a b"], vocab_size=64)
    assert read_beginning(corpus.shards(), corpus.block_maker(tokenizer, None))[1]
    wrong = corpus.model_copy(update={"group_field": "auther"})
    with pytest.raises(MaskwiseError, match=r"group_field=auther: no document .* this field"):
        read_beginning(wrong.shards(), wrong.block_maker(tokenizer, None))


def test_the_error_of_a_share_that_does_not_fit_names_one_that_does(tmp_path):
    source = str(write_lines(tmp_path / "texts.jsonl", lines()))
    corpus = CorpusSettings(source=source, group_field="author", held_out=0.001)
    with pytest.raises(MaskwiseError) as caught:
        groups_note(corpus, "author")
    assert caught.value.do is not None
    (share,) = re.findall(r"corpus\.held_out=([\d.]+)", caught.value.do)
    assert groups_note(corpus.model_copy(update={"held_out": float(share)}), "author")
    # No share fits where one group has nearly all of the text.
    assert share_that_fits([1, 2**62], [1, 999], 0.1) is None


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_unknown_column_is_one_line(ending, tmp_path):
    path = written(tmp_path, ending, lines())
    with pytest.raises(MaskwiseError) as caught:
        list(read_documents(path, group_field="autor"))
    assert "autor" in str(caught.value) and "author" in str(caught.value)


@pytest.mark.parametrize("name", ["texts.txt", "texts.fasta"])
def test_a_file_without_fields_has_no_groups(name, source, tmp_path, capfd):
    (tmp_path / name).write_text(">a\nACDE\n")
    override = [f"corpus.source={tmp_path / name}", "corpus.group_field=author"]
    assert maskwise("study", source, *override, "--out", tmp_path / "out") == 2
    assert "group_field" in capfd.readouterr().err


# Labelled rows
# -------------------------------------------------------------------------------------------


def labelled(groups: int = 60, each: int = 4) -> list[dict[str, Any]]:
    return [
        {"text": f"text {n} of it", "label": "ab"[n % 2], "author": f"a{n % groups}"}
        for n in range(groups * each)
    ]


def test_no_group_of_labelled_rows_is_in_two_splits(tmp_path):
    rows = labelled()
    path = write_lines(tmp_path / "rows.jsonl", rows)
    task = load_task(f"{path}(split_by=author)")
    author = {row["text"]: row["author"] for row in rows}
    found = {name: {author[row.text] for row in part} for name, part in task.splits.items()}
    assert all(found.values()) and len(set.union(*found.values())) == 60
    assert sum(map(len, found.values())) == 60
    (note,) = (note for note in task.notes if "groups" in note)
    share = len(task.splits["test"]) / len(rows)
    assert "60 groups" in note and f"{share:.0%}" in note
    plain = load_task(str(path))
    torn = {name: {author[row.text] for row in part} for name, part in plain.splits.items()}
    assert torn["train"] & torn["test"]


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        (labelled(9, 20), ("9 groups", "20")),
        (
            [
                {**row, "author": "a0" if n % 2 else row["author"]}
                for n, row in enumerate(labelled())
            ],
            ("55.0% of the rows", "30 groups", "7.5% to 30.0%"),
        ),
        (
            [{**row, "split": ("train", "test")[n // 80]} for n, row in enumerate(labelled(40))],
            ("groups", "train", "test"),
        ),
        ([{key: row[key] for key in ("text", "label")} for row in labelled()], ("author", "text")),
    ],
)
def test_labelled_rows_that_cannot_be_split_by_groups_are_refused(rows, facts, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(MaskwiseError) as caught:
        load_task(f"{path}(split_by=author)")
    assert all(fact in str(caught.value) for fact in facts) and "\n" not in str(caught.value)


def test_an_unlabelled_test_split_leaves_the_share_of_the_test_rows_checked(tmp_path):
    rows = [{**row, "author": "a0" if n % 2 else row["author"]} for n, row in enumerate(labelled())]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", [{"text": "one more", "author": "z"}])
    with pytest.raises(MaskwiseError, match=r"55\.0% of the rows"):
        load_task(f"{tmp_path}(split_by=author)")


def test_few_groups_in_the_splits_of_files_and_a_repeated_text_without_a_group_are_read(tmp_path):
    rows = labelled(12, 20)
    same = {"text": "same", "label": "a", "author": None}
    write_lines(tmp_path / "train.jsonl", [row for row in rows if row["author"] < "a5"] + [same])
    write_lines(tmp_path / "test.jsonl", [row for row in rows if row["author"] >= "a5"] + [same])
    assert len(load_task(f"{tmp_path}(split_by=author)").splits["test"]) == 101


def test_splits_of_files_that_keep_groups_apart_are_used(tmp_path):
    rows = [
        {**row, "split": "test" if int(row["author"][1:]) < 20 else "train"} for row in labelled()
    ]
    task = load_task(f"{write_lines(tmp_path / 'rows.jsonl', rows)}(split_by=author)")
    assert len(task.splits["test"]) == 80
