"""Files as new users have them: what they are taken for is right, and is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.cli import main
from maskwise.recipe import read_recipe
from maskwise.studies.from_files import draft_of_files, recipe_for
from maskwise.studies.single import run_finetune
from maskwise.text import read_documents
from maskwise.text.documents import lines_note
from maskwise.text.opening import text_per

QUERIES = [f"cheap flights to place number {n}" for n in range(400)]


def test_many_lines_without_full_stops_are_lines_and_this_is_said(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(QUERIES))
    assert text_per(path) == "line"
    assert len([*read_documents(str(path))]) == 400
    assert "each line is read as one text" in str(lines_note(str(path)))
    # A page of a book remains one text.
    page = tmp_path / "page.txt"
    page.write_text(
        "\n".join(f"and so it went on and on, until the day number {n}" for n in range(40))
    )
    assert text_per(page) == "block"


@pytest.mark.parametrize("size", [9_000, 70_000])
def test_long_documents_on_a_line_each_are_lines(size: int, tmp_path: Path) -> None:
    """The head of the file has fewer than eight lines, or the beginning of one."""
    path = tmp_path / "articles.txt"
    texts = [f"Article {n}. {'It is about the sea. ' * (size // 21)}".strip() for n in range(12)]
    path.write_text("\n".join(texts))
    assert [document.text for document in read_documents(str(path))] == texts
    # Blocks of such lines remain blocks, and a short file remains one text.
    path.write_text("\n\n".join(map("\n".join, (texts[:2], texts[2:]))))
    assert len([*read_documents(str(path))]) == 2
    path.write_text("\n".join(text[:1_000] for text in texts[:7]))
    assert len([*read_documents(str(path))]) == 1


def test_one_document_is_not_blamed_on_a_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.txt"
    path.write_text("The cat sat on the mat. The dog ran to the house, for it was cold. " * 50)
    for command in (["check", str(path), "--no-timing"], ["adapt", "bundled:encoder", str(path)]):
        with pytest.raises(SystemExit):
            main([*command])
        line = capsys.readouterr().err
        assert "0.45" not in line and "corpus.held_out=" not in line
    with pytest.raises(SystemExit):
        main(["pretrain", "quick-start", f"corpus.source={path}", "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert "1 document" in line and "corpus.held_out=" not in line


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("rows", [[{"text": "The cat sat."}, {"text": "A dog."}], ["One.", "Two."]])
def test_a_json_array_is_text(name: str, rows: list[object], tmp_path: Path) -> None:
    path = tmp_path / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    lines = "\n".join(map(json.dumps, rows))
    texts = [row["text"] if isinstance(row, dict) else row for row in rows]
    for content in (json.dumps(rows, indent=1), f"\ufeff {json.dumps(rows)}\n", lines):
        path.write_bytes(pack(content.encode()))
        documents = [*read_documents(str(path))]
        assert [document.text for document in documents] == texts
        assert [document.name for document in documents] == [f"{name}#1", f"{name}#2"]
    path.write_bytes(pack(b'[{"text": "cut'))
    with pytest.raises(MaskwiseError, match="is not JSON"):
        [*read_documents(str(path))]


def test_json_in_a_folder_of_texts_describes_them(tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('["not a text"]')
    (tmp_path / "a.txt").write_text("A text.")
    assert [document.text for document in read_documents(str(tmp_path))] == ["A text."]
    (tmp_path / "a.txt").unlink()
    assert [document.text for document in read_documents(str(tmp_path))] == ["not a text"]


def test_a_new_recipe_names_the_columns_that_it_takes(tmp_path: Path) -> None:
    labels = tmp_path / "grades.csv"
    rows = "".join(f"text number {n} here,{n % 7 + 0.5},{n % 2}\n" for n in range(90))
    labels.write_text("sentence,score,spam\n" + rows)
    for draft in (draft_of_files(str(labels)), draft_of_files("bundled:wikipedia", [str(labels)])):
        [line] = [line for line in draft.text.splitlines() if line.startswith("tasks:")]
        assert "'sentence'" in line and "'score'" in line and "spam" not in line


def test_compressed_labels_are_labels(tmp_path: Path) -> None:
    rows = "".join(f"row {n} is {word},{word}\n" for n in range(60) for word in ("good", "bad"))
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(gzip.compress(("text,label\n" + rows).encode()))
    recipe = recipe_for(str(path))
    assert recipe.corpus.source == "bundled:wikipedia" and str(path) in recipe.tasks[0]


def test_the_key_of_a_recipe_is_accepted_by_finetune(tmp_path: Path) -> None:
    """And a key without its section is answered with the whole key."""
    for key in ("max_length", "finetune.max_length"):
        with pytest.raises(MaskwiseError, match=r"max_length; got 1\b"):
            run_finetune("bundled:encoder", ["trivia"], [f"{key}=1"], seeds=1, out=tmp_path / "out")
    for key, places in {
        "max_length": ["finetune.max_length"],
        "learning_rate": ["training.learning_rate", "finetune.learning_rate"],
    }.items():
        with pytest.raises(MaskwiseError) as error:
            read_recipe("quick-start", [f"{key}=3"])
        for place in places:
            assert place in str(error.value.do)


def test_blank_lines_after_a_long_line_separate_blocks(tmp_path: Path) -> None:
    """Of a title and one long line, the first 64 KiB have few lines, and no blank one."""
    text = "Chapter {}\n" + "word " * 20_000 + "\nend of it.\n\n"
    path = tmp_path / "book.txt"
    path.write_text("".join(text.format(n) for n in range(3)))
    assert text_per(path) == "block"
    path.write_text("".join(f"Text {n}. " + "A word. " * 9_000 + "\n" for n in range(30)))
    assert text_per(path) == "line"
