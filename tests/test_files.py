"""Files as people have them: lines, any separator and quoting, nested fields, numbers, several
labels, missing ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.tasks import load_task
from maskwise.text import read_documents
from maskwise.text.documents import lines_note, longest_field
from maskwise.text.settings import CorpusSettings
from maskwise.text.tables import FieldValues, read_table
from tiny import write_lines

SENTENCES = [f"Sentence number {n} says something of its own." for n in range(12)]
MANY = [f"{sentence} {n}" for n in range(4) for sentence in SENTENCES]


WRAPPED = ["It is one text that", "was wrapped at some", "width, so that its", "lines begin with"]


@pytest.mark.parametrize(
    ("text", "documents", "blocks", "lines"),
    [
        ("\n".join(SENTENCES), 12, 1, 12),
        ("\n\n".join(SENTENCES), 12, 12, 12),
        ("\n".join([*SENTENCES[:5], "", *SENTENCES[5:]]), 2, 2, 12),
        ("\n".join(SENTENCES[:4]), 1, 1, 4),  # too few lines to tell
        ("\n".join(WRAPPED * 3), 1, 1, 4),
    ],
)
def test_what_a_text_is_in_a_plain_file(
    text: str, documents: int, blocks: int, lines: int, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(text, encoding="utf-8")
    for per, count in (("auto", documents), ("block", blocks), ("line", lines)):
        found = CorpusSettings(source=str(path), text_per=per).documents()
        assert len(list(found)) == count
    assert (lines_note(str(path)) is not None) == (documents > blocks)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_any_separator(separator: str, ending: str, tmp_path: Path) -> None:
    rows = ["text,label".replace(",", separator)]
    for number, sentence in enumerate(MANY):
        text = sentence if separator == "\t" else f'"{sentence} It has, marks; and | bars"'
        rows.append(f"{text}{separator}{'ab'[number % 2]}")
    path = tmp_path / f"table{ending}"
    path.write_text("\n".join(rows), encoding="utf-8")
    task = load_task(path)
    assert sum(map(len, task.splits.values())) == 48 and task.labels == ("a", "b")
    assert len(list(read_documents(path))) == 48


def rows_of(path: Path, table: str) -> list[FieldValues]:
    path.write_text(table, encoding="utf-8", newline="")
    return list(read_table(path))


@pytest.mark.parametrize(
    "line",
    ['"He said ""no"", twice",1', '"He said \\"no\\", twice",1'],
)
def test_any_quoting(line: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "t.csv", "\n".join(["text,label", line, line]) + "\n")
    assert rows == 2 * [{"text": 'He said "no", twice', "label": "1"}]


def test_a_cell_may_hold_a_long_document(tmp_path: Path) -> None:
    long = "A long document. " * 9000
    table = f'text,label\n"He said ""yes"", then left.",1\n"{long}",2\n'
    rows = rows_of(tmp_path / "t.csv", table)
    assert [row["label"] for row in rows] == ["1", "2"] and rows[1]["text"] == long


def test_tabs_may_be_quoted_or_hold_lone_marks(tmp_path: Path) -> None:
    path = tmp_path / "t"
    quoted = rows_of(path, 'text\tlabel\n"a ""b"""\t1\n"c"\t2\n')
    assert [row["text"] for row in quoted] == ['a "b"', "c"]
    lone = rows_of(path, 'text\tlabel\n"a lone mark\t1\nand " here\t2\n')
    assert [row["text"] for row in lone] == ['"a lone mark', 'and " here']


def test_nested_fields(tmp_path: Path) -> None:
    lines = [{"article": {"body": {"text": s}}, "id": str(n)} for n, s in enumerate(SENTENCES)]
    write_lines(tmp_path / "nested.jsonl", lines)
    documents = list(read_documents(tmp_path / "nested.jsonl", text_field="article.body.text"))
    assert [document.text for document in documents] == SENTENCES and documents[3].name == "3"
    task_lines = [{"review": {"text": s}, "meta": {"stars": n % 3}} for n, s in enumerate(MANY)]
    write_lines(tmp_path / "task.jsonl", task_lines)
    task = load_task(f"{tmp_path}/task.jsonl", text="review.text", label="meta.stars")
    assert task.labels == ("0", "1", "2")


def _numbers(path: Path) -> Path:
    lines = [f"{s} {'very ' * (n % 9)}good;{n % 9},5" for n, s in enumerate(MANY + MANY)]
    path.write_text("Kommentar;Note\n" + "\n".join(lines), encoding="utf-8")
    return path


def test_numbers_to_predict_from_one_text(tmp_path: Path) -> None:
    """A semicolon file with decimal commas and columns of its own: read, said, learned from."""
    path = _numbers(tmp_path / "noten.csv")
    task = load_task(path)
    assert task.kind.name == "regression" and task.metric == "spearman" and task.majority == 0.0
    assert {row.score % 1 for row in task.splits["train"]} == {0.5}
    assert "'Kommentar'" in task.remarks[0] and "'Note'" in task.remarks[0]


PROTEINS = ["MKT" + "ACDEFGHIKL"[n % 10] * 30 + "ACDEFG"[n // 10] for n in range(60)]
PASSAGES = [f"{text} {n}" for n, text in enumerate(MANY + MANY)]


@pytest.mark.parametrize(
    ("table", "kind", "columns"),
    [
        (
            [{"passage": s, "speech": ("yes", "no")[n % 2]} for n, s in enumerate(PASSAGES)],
            # a passage is also what questions are about
            "sequence-classification",
            ("passage", "speech"),
        ),
        (
            [{"sequence": s, "family": "ab"[n % 2]} for n, s in enumerate(PROTEINS)],
            "sequence-classification",
            ("sequence", "family"),
        ),
        (
            [{"Anzeige": s, "Preis": f"{n % 37},50"} for n, s in enumerate(PASSAGES)],
            "regression",
            ("Anzeige", "Preis"),
        ),
    ],
    ids=["passages", "proteins", "prices"],
)
def test_columns_with_names_of_their_own(
    table: list[dict[str, str]], kind: str, columns: tuple[str, str], tmp_path: Path
) -> None:
    write_lines(tmp_path / "mine.jsonl", table)
    task = load_task(tmp_path / "mine.jsonl")
    assert task.kind.name == kind
    assert (task.suggested["text"], task.suggested["label"]) == columns


@pytest.mark.parametrize("other", ["colour", "question"])
def test_columns_that_can_be_read_in_two_ways_are_refused(other: str, tmp_path: Path) -> None:
    """Two columns that may be labels; and a question, which asks for an answer, beside its text."""
    rows = []
    for n, passage in enumerate(PASSAGES):
        value = ("red" if n % 3 else "blue") if other == "colour" else f"is {n} more than it was?"
        rows.append({"passage": passage, other: value, "taste": "ab"[n % 2]})
    write_lines(tmp_path / "mine.jsonl", rows)
    with pytest.raises(MaskwiseError, match=r"has no (text|label) column"):
        load_task(tmp_path / "mine.jsonl")


@pytest.mark.parametrize("listed", [True, False])
def test_several_labels_a_row(listed: bool, tmp_path: Path) -> None:
    every = [["fun"], ["fun", "sad"], ["sad"], [], ["fun", "long"]]
    lines = [{"text": f"{s} {n}", "labels": every[n % 5]} for n, s in enumerate(MANY + MANY)]
    if not listed:
        lines = [{**line, "labels": "|".join(line["labels"])} for line in lines]
    write_lines(tmp_path / "several.jsonl", lines)
    task = load_task(tmp_path / "several.jsonl")
    assert task.kind.name == "multi-label" and task.labels == ("fun", "long", "sad")
    assert sum(map(len, task.splits.values())) == 96 and 0 < task.majority < 1


def test_a_first_row_of_data_is_not_taken_for_names(tmp_path: Path) -> None:
    lines = [f"it rained on day {number}\t{('good', 'bad')[number % 2]}" for number in range(60)]
    path = tmp_path / "reviews.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    says = (
        "the first row of .*reviews.tsv.* looks like data.*'good', which is also a "
        "value.*text=1,label=2"
    )
    for read in (load_task, longest_field):
        with pytest.raises(MaskwiseError, match=says):
            read(str(path))
    assert sum(map(len, load_task(f"{path}(text=1,label=2)").splits.values())) == 60
    # may be the name of a column, too
    path.write_text("\n".join(["comment\tgood", *lines]), encoding="utf-8")
    assert load_task(path).labels == ("bad", "good") and longest_field(str(path)) == "comment"


def test_labels_that_are_said_to_be_missing_are_no_class(tmp_path: Path) -> None:
    labels = ["a", "b", "NA", "", "n/a", "NaN", "a", "b", "null", "-1"]
    lines = [f"{s} {n},{labels[n % 10]}" for n, s in enumerate(SENTENCES * 5)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    task = load_task(tmp_path / "t.csv", missing=("NA", "n/a", "NaN", "null", -1))
    assert task.labels == ("a", "b") and sum(task.skipped.values()) == 36


def test_a_label_that_other_kinds_know_by_another_meaning(tmp_path: Path) -> None:
    lines = "\n".join(f"{s}\t{'yes' if n % 2 else 'no'}" for n, s in enumerate(MANY))
    (tmp_path / "answers.tsv").write_text("sentence\tanswer\n" + lines, encoding="utf-8")
    task = load_task(tmp_path / "answers.tsv")
    assert task.kind.name == "sequence-classification" and task.labels == ("no", "yes")
    assert task.suggested["label"] == "answer"
