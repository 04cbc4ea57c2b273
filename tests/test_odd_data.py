"""Files that people have, in which a reader went wrong without a word."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from maskwise.annotate.kept import Store
from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.word_weights import Difference
from maskwise.base.errors import MaskwiseError, Truncated
from maskwise.evaluation.measures.cloze import Cloze, questions_of
from maskwise.tasks import FinetuneSettings, evaluate_tasks, finetuning, load_task
from maskwise.tasks.columns import number_of
from maskwise.tasks.metrics import LOST, error_of_items, macro_f1
from maskwise.text import read_documents, source, train_tokenizer
from maskwise.text.opening import text_per
from maskwise.text.source import NOT_UTF8
from tiny import load_rows, write_lines


def test_an_empty_name_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the working folder."""
    (tmp_path / "a.txt").write_text("A text of some words.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaskwiseError) as caught:
        read_documents("")
    assert caught.value.got == "''"


@pytest.mark.parametrize("more", ["{}\n", "\n{}", "\ufeff\n{}   \n"])
def test_blank_lines_around_a_text_separate_nothing(more: str, tmp_path: Path) -> None:
    path = tmp_path / "reviews.txt"
    lines = "".join(f"Review number {n} says that it was good.\n" for n in range(20))
    path.write_text(more.format(lines), encoding="utf-8")
    assert len(list(read_documents(str(path)))) == 20
    with pytest.raises(MaskwiseError, match=r"text_per.*'lines'"):
        read_documents(str(path), text_per="lines")


def test_empty_cells_are_no_names(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,text\n,one text\n,another text\n3,a third text\n")
    assert [document.name for document in read_documents(str(table))] == ["t.csv#1", "t.csv#2", "3"]
    columns = {"id": [1.0, math.nan], "text": ["one text", "another text"]}
    pd.DataFrame(columns).to_parquet(tmp_path / "t.parquet")
    names = [document.name for document in read_documents(str(tmp_path / "t.parquet"))]
    assert names == ["1.0", "t.parquet#2"]


@pytest.mark.parametrize("mark", ["\u2028", "\x0c", "\x85"])
def test_only_line_feeds_end_a_line(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "reviews.txt"
    lines = [f"Review number {n} says that it was good." for n in range(20)]
    lines[7] += mark
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert text_per(path) == "line" and len(list(read_documents(str(path)))) == 20


def test_bad_bytes_of_a_table_are_rows_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    rows = ["text", *(f"good row {n}" for n in range(9)), "café du matin"]
    path.write_bytes("\n".join(rows).encode("latin-1"))
    found = list(read_documents(str(path)))
    assert len(found) == 9 and all("\ufffd" not in document.text for document in found)


def test_a_long_sequence_is_several_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "LONGEST_TEXT", 100)
    path = tmp_path / "chromosome.fasta"
    path.write_text(">one\n" + "".join("ACGTNKM"[n] * 40 + "\n" for n in range(7)) + ">two\nACGT\n")
    found = [(document.name, len(document.text)) for document in read_documents(str(path))]
    assert found == [("one", 120), ("one", 120), ("one", 40), ("two", 4)]


def test_a_number_has_no_currency_and_no_thousands() -> None:
    assert [number_of(text) for text in ("1200", "-3.5", "12,50", " 7 ")] == [1200, -3.5, 12.5, 7]
    assert not any(map(number_of, ("$950", "5 %", "1,234,567", "12,500", "inf", "v1")))


@pytest.mark.parametrize("label", ["{},500", "${}", "{},200.50 €", "{}.5 %"])
@pytest.mark.parametrize("header", ["text,label", "text,price", "sentence1,sentence2,label"])
def test_numbers_that_are_written_for_people_are_refused(
    header: str, label: str, tmp_path: Path
) -> None:
    path = tmp_path / "prices.csv"
    texts = "".join('"a nice old house {}",' for _ in range(header.count(",")))
    lines = [texts.replace("{}", str(n)) + '"' + label.format(n % 6 + 1) + '"' for n in range(60)]
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    with pytest.raises(MaskwiseError) as refused:
        load_task(path)
    assert refused.value.got == label.format(1) and "1200.50" in str(refused.value.do)
    assert load_task(path, kind="sequence-classification", label=header.rpartition(",")[2])


@pytest.mark.parametrize("labels", ["1.2.{}", "{}-3", "v{}"])
def test_versions_and_scores_of_games_are_classes(labels: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    rows = [f'"text {n}","{labels.format(n % 3)}"' for n in range(60)]
    path.write_text("\n".join(["text,label", *rows]))
    assert load_task(path).kind.name == "sequence-classification"


def test_pairs_with_fractions_are_similarity_in_a_table_too(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {n}", "sentence2": "b", "label": n % 10 / 2} for n in range(60)]
    table = "".join(f"a {n},b,{n % 10 / 2}\n" for n in range(60))
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,label\n" + table)
    for task in (load_rows(tmp_path, rows), load_task(tmp_path / "pairs.csv")):
        assert (task.kind.name, task.metric) == ("similarity", "spearman")


def test_rates_that_are_tried_get_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[float, int]] = []
    score = {"score": 0.5, "others": {}, "majority": 0.1, "lost_words": 0, "notes": []}

    def counted(_: Any, task: Any, *, settings: Any, seed: int, **__: Any) -> dict[str, Any]:
        training = settings.training(task, seed=seed)
        steps.append((training.learning_rate, training.steps))
        return {**score, "dev": training.learning_rate, "counts": None, "items": [[0.5, 1.0]]}

    monkeypatch.setattr(finetuning, "finetune", counted)
    settings = FinetuneSettings(learning_rate=1e-3, search_rate=True, seeds=1)
    task = load_task("banking77(train_rows=200)")
    nothing: Any = None
    finetuning.task_record("nowhere", task, tokenizer=nothing, settings=settings, seeds=[0])
    assert len(steps) == 4 and len({count for _, count in steps}) == 1 and steps[-1][0] == 3e-3


def test_weights_of_words_follow_the_files_that_they_compare_with(tmp_path: Path) -> None:
    general = tmp_path / "general.txt"
    general.write_text("one text")
    before = Difference(general=str(general)).version
    general.write_text("another text")
    assert Difference(general=str(general)).version != before


def test_missing_labels_of_several_are_left_out_and_a_file_without_any_is_one_line(
    tmp_path: Path,
) -> None:
    names = ["a|b", "b", "NA", "a", "-1", "a|b|c"]
    rows: list[dict[str, Any]] = [{"text": f"text {n}", "labels": names[n % 6]} for n in range(90)]
    task = load_rows(tmp_path, rows, missing=("NA", -1))
    assert task.kind.name == "multi-label" and sum(map(len, task.splits.values())) == 60
    said = r"unknown argument of multi-label task .* 'mising'.*did you mean 'missing'"
    with pytest.raises(MaskwiseError, match=said):
        load_rows(tmp_path, rows, mising="NA")
    with pytest.raises(MaskwiseError, match="needs at least two labels; got only empty cells"):
        load_rows(tmp_path, [{**row, "labels": []} for row in rows])


def test_no_label_applies_to_an_empty_cell_of_several_labels_unless_it_is_missing(
    tmp_path: Path,
) -> None:
    cells = ["", "x;y", ";", "x", " "]
    table = tmp_path / "t.csv"
    lines = [f"text {n},{cells[n % 5]}\n" for n in range(200)]
    table.write_text("text,labels\n" + "".join(lines))
    every = {1: ("x", "y"), 2: (), 3: ("x",)}
    for options, empty in (({}, {0: (), 4: ()}), ({"missing": ("NA", "")}, {})):
        task = load_task(table, **options)
        rows = [row for part in task.splits.values() for row in part]
        names = {int(row.text.split()[1]) % 5: row.names for row in rows}
        assert task.kind.name == "multi-label" and names == every | empty
        assert task.skipped == ({} if empty else {"all: no label": 80})
        noted = [note for note in task.notes if "no label applies to 80 rows" in note]
        assert bool(noted) == bool(empty)
    # The same in objects.
    values: list[Any] = [None, ["x", "y"], [], "x", ["NA"]]
    objects = [{"text": f"text {n}", "labels": values[n % 5]} for n in range(200)]
    other = load_rows(tmp_path, objects, missing="NA")
    assert other.skipped == task.skipped and other.fingerprint == task.fingerprint


def test_a_word_that_is_cut_off_costs_a_hit_and_no_class() -> None:
    gold = np.repeat(np.arange(17), 100)
    lost, wrong = gold.copy(), gold.copy()
    lost[0], wrong[0] = LOST, 1
    assert macro_f1(gold, gold) == 1 and macro_f1(gold, wrong) < macro_f1(gold, lost) < 1
    assert macro_f1(gold, lost) == pytest.approx((2 * 99 / 199 + 16) / 17)


def test_the_error_of_items_takes_no_memory_for_a_long_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("maskwise.tasks.metrics.RESAMPLES", 2)
    clusters = [str(n) for n in range(200)] + ["x" * 200_000]
    tracemalloc.start()
    error_of_items([[1, 1]] * 201, clusters)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_answers_that_were_not_sampled_are_right_all_the_same(tmp_path: Path) -> None:
    said = ["belgium", "dutch", "belgium", "french", "france", "french", "japan", "japanese"]
    rows = [
        {"masked_sentences": [f"{who} speaks [MASK]"], "obj_label": what, "sub_label": who}
        for who, what in zip(said[::2], said[1::2])
    ]
    few = Cloze.read(write_lines(tmp_path / "languages.jsonl", rows), items=2)
    facts = [(fact.subject, fact.others) for fact in few.facts]
    assert facts == [("belgium", ("french",)), ("france", ())]
    tokenizer = train_tokenizer([" ".join(said) + " speaks [MASK]"] * 3, vocab_size=200)
    [questions] = questions_of(few.facts, 20, tokenizer, 64, Counter())
    assert [question.right for question in questions] == [{0, 1}, {questions[1].gold}]


def test_columns_of_one_name_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f"a text {n},{'yn'[n % 2]},x\n" for n in range(40))
    path.write_text("text,label,text\n" + rows)
    assert {row.text for row in load_task(path).splits["test"]} != {"x"}


def test_rows_of_generation_may_lack_a_group_and_have_choices_of_any_type(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": f"say {n}", "output": f"{n}"} for n in range(40)]
    rows[0]["topic"] = "one"
    columns = {"text": "input", "label": "output", "pair": "topic"}
    task = load_rows(tmp_path, rows, kind="generation", **columns)
    assert sum(map(len, task.splits.values())) == 40
    rows = [{"question": f"how many {n}", "choices": [1, 2, 3], "answer": "2"} for n in range(40)]
    assert load_rows(tmp_path, rows, kind="generation", text="question", label="answer")


def test_where_may_name_a_column_that_the_first_row_lacks(tmp_path: Path) -> None:
    first, *rows = ({"text": f"text {n}", "label": "ab"[n % 2], "year": 2014} for n in range(40))
    del first["year"]
    task = load_rows(tmp_path, [first, *rows], where="year=2014")
    assert sum(map(len, task.splits.values())) == 39


def test_a_long_text_has_one_prompt(tmp_path: Path) -> None:
    text = "who?\n" + "an answer. " * 12_000 + "\n" + "more. " * 100
    write_lines(tmp_path / "pairs.jsonl", [{"text": text}])
    annotate_corpus(str(tmp_path / "pairs.jsonl"), ["prompt"], out=tmp_path / "layers")
    [layers] = Store(tmp_path / "layers").annotate([text])
    assert layers["prompt"].start.tolist() == [0] and layers["prompt"].end.tolist() == [5]


def test_a_folder_with_train_alone_is_cut_as_one_file_is(tmp_path: Path) -> None:
    rows = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(200)]
    write_lines(tmp_path / "train.jsonl", rows)
    task = load_task(tmp_path)
    assert task.notes == ("only train has labels, split 70/15/15",)
    sizes = list(map(len, task.splits.values()))
    assert min(sizes) >= 20 and sum(sizes) == 200
    # as benchmarks publish it
    write_lines(tmp_path / "test.jsonl", [{"text": row["text"]} for row in rows[:9]])
    assert load_task(tmp_path).splits == task.splits


def test_labels_that_train_lacks_count_as_missed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"text {n}", "labels": ["ab"[n % 2]], "split": "train"} for n in range(40)
    ]
    rare = {"labels": ["a", "rare"], "split": "test"}
    rows += [{"text": f"other {n}", **rare} for n in range(10)]
    task = load_rows(tmp_path, rows)
    assert task.labels == ("a", "b", "rare") and task.kind.name == "multi-label"
    # 10 hits, 10 missed
    assert task.score("test", np.tile([1, 0, 0], (10, 1))) == pytest.approx(2 / 3)


@pytest.mark.parametrize("text", ["text number {n};{label}", "text number {n}|{label}"])
def test_a_table_by_place_is_cut_by_what_cuts_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("".join(text.format(n=n, label="ab"[n % 2]) + "\n" for n in range(60)))
    task = load_task(f"{path}(text=1,label=2)")
    assert task.labels == ("a", "b") and sum(map(len, task.splits.values())) == 60


def test_a_sequence_with_a_damaged_line_is_left_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "chains.fasta"
    path.write_bytes(b">caf\xe9\nACGT\n>two\nACGT\nAC\xe9GT\nACGT\n>three\nTTTT\n")
    assert [document.text for document in read_documents(str(path))] == ["ACGT", "TTTT"]


def test_a_mark_of_byte_order_before_a_header_is_no_letter(tmp_path: Path) -> None:
    path = tmp_path / "chains.fasta"
    path.write_text(">one\nACGT\n>two\nTTTT\n", encoding="utf-8-sig")
    found = [(document.name, document.text) for document in read_documents(str(path))]
    assert found == [("one", "ACGT"), ("two", "TTTT")]


LONG = ["word " * (3 if n % 4 else 60) + str(n) for n in range(200)]
LONG_ROWS = {
    "sequence-classification": lambda text, n: {"text": text, "label": "ab"[n % 2]},
    "token-classification": lambda text, n: {
        "tokens": text.split(),
        "tags": ["ab"[n % 2]] * len(text.split()),
    },
    "multiple-choice": lambda text, n: {"question": text, "choices": ["a", "b"], "label": n % 2},
    "sentence-embedding": lambda text, n: {"text": text, "label": "ab"[n % 2]},
    "question-answering": lambda text, n: {
        "question": " ".join(text.split()[:20]),
        "context": f"the word {n} is red",
        "answers": ["red"],
    },
}


@pytest.mark.parametrize(
    "kind",
    [
        "sequence-classification",
        pytest.param("token-classification", marks=pytest.mark.slow),
        "question-answering",
        pytest.param("multiple-choice", marks=pytest.mark.slow),
        pytest.param("sentence-embedding", marks=pytest.mark.slow),
    ],
)
def test_rows_that_are_cut_are_said_where_they_are_many(kind: str, tmp_path: Path) -> None:
    """Tagged words, embedded texts and questions of windows were cut without a word."""
    rows = [LONG_ROWS[kind](text, n) for n, text in enumerate(LONG)]
    task = load_rows(tmp_path, rows, kind=kind)
    for length in (32, 128):
        settings = FinetuneSettings(steps=1, seeds=1, max_length=length, precision="no")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            (record,) = evaluate_tasks("bundled:encoder", [task], settings=settings)
        cut = [note for note in record["notes"] if re.search(r"(rows|texts|questions) cut", note)]
        assert len(cut) == (3 if length == 32 else 0)
        warned = [str(line.message) for line in said if line.category is Truncated]
        assert any(note in text for note in cut for text in warned) == bool(cut)


def write_splits(folder: Path, **labels: list[Any]) -> Path:
    folder.mkdir()
    for split, values in labels.items():
        rows = [f"some words number {n},{value}" for n, value in enumerate(values)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    return folder


def test_whole_numbers_with_a_decimal_point_are_the_same_classes(tmp_path: Path) -> None:
    """pandas writes a column of whole numbers as 1.0 if a cell of it is empty."""
    folder = write_splits(tmp_path / "t", train=["0.0", "1.0"] * 9, dev=[0, 1] * 9, test=[0, 1] * 9)
    task = load_task(folder)
    assert task.labels == ("0", "1") and task.majority == 0.5


def test_classes_that_only_test_has_are_noted(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "t", train=["a", "b"] * 9, dev=["a"], test=["a", "c", "c"])
    note = "train lacks 1 class of test, whose items always count as wrong, such as 'c'"
    assert note in load_task(folder).notes


def test_an_entity_of_an_unseen_type_is_one_entity(tmp_path: Path) -> None:
    known = "EU B-ORG\nrejects O\n\n" * 9
    for split in ("train", "dev"):
        (tmp_path / f"{split}.conll").write_text(known)
    (tmp_path / "test.conll").write_text(
        "New B-ORG\nYork I-ORG\nwins O\n\nLos B-LOC\nAngeles I-LOC\n"
    )
    task = load_task(tmp_path)
    organisation = task.numbers["B-ORG"]
    assert task.score("test", [organisation] + 4 * [task.numbers["O"]]) == 0
    counts = task.row_counts("test", [organisation] + 4 * [task.numbers["O"]])
    assert counts is not None and counts.sum(axis=0).tolist() == [0, 3]


def test_an_empty_cell_adds_nothing_to_a_template(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "c": None, "s": ["x", None], "label": "ab"[n % 2]} for n in range(40)]
    file = write_lines(tmp_path / "t.jsonl", rows)
    task = load_task(file, text="{q} {c} {s}", label="label")
    found = {row.texts[0] for part in task.splits.values() for row in part}
    assert found == {f"q{n}  x" for n in range(40)}


def test_questions_about_one_passage_stay_in_one_split(tmp_path: Path) -> None:
    rows = []
    for passage, number in product(range(40), range(4)):
        text = {"question": f"question {number}?", "passage": f"The passage {passage}."}
        rows.append(text | {"label": "yn"[number % 2]})
    task = load_task(write_lines(tmp_path / "t.jsonl", rows), text="question", pair="passage")
    sides = [{row.texts[1] for row in rows} for rows in task.splits.values()]
    assert min(map(len, sides)) > 0 and sum(map(len, sides)) == 40


def test_white_space_does_not_put_a_text_in_another_split(tmp_path: Path) -> None:
    rows = []
    for number, end in product(range(60), ("", " ", "\n")):
        row = {"text": f"text {number}{end}", "label": "ab"[number % 2]}
        rows.append(row | {"question": row["text"], "answer": "yes", "passage": row["text"]})
    file = write_lines(tmp_path / "t.jsonl", rows)
    kinds = [{"text": "text", "label": "label"}, {"kind": "cloze-qa"}, {"kind": "generation"}]
    for given in kinds:
        task = load_task(file, **given)
        assert {len(part) % 3 for part in task.splits.values()} == {0}


@pytest.mark.parametrize(
    "made",
    [
        lambda text, n: {"text": text, "label": "ab"[n % 2]},
        lambda text, n: {"tokens": ["a", text], "tags": ["A", "B"]},
        lambda text, n: {"question": f"who {n}?", "choices": ["a", text], "answer": n % 2},
        lambda text, n: {"question": f"who {n}?", "answer": text},
    ],
)
def test_rows_that_no_tokenizer_reads_are_skipped_and_counted(
    made: Callable[[str, int], dict[str, Any]], tmp_path: Path
) -> None:
    """JSON may have half of an emoji."""
    rows = [made(f"word {n}" if n != 3 else "half \ud83d", n) for n in range(40)]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(file)
    assert sum(map(len, task.splits.values())) == 39
    assert sum(task.skipped.values()) == 1 and NOT_UTF8 in next(iter(task.skipped))


def test_spaces_at_the_end_of_a_line_are_no_tag(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("".join(f"EU{n} B-ORG \nsaid O \n\n" for n in range(40)))
    task = load_task(tmp_path / "t.conll")
    assert task.labels == ("B-ORG", "O") and not task.skipped


def test_a_condition_finds_whole_numbers_in_a_column_of_floats(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "year": 2014.0} for n in range(40)]
    file = write_lines(tmp_path / "t.jsonl", rows)
    for value in ("2014", "2014.0"):
        task = load_task(file, where=f"year={value}")
        assert sum(map(len, task.splits.values())) == 40
