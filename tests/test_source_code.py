"""Source code as a corpus: a file is a text, and a folder of code has other files, too."""

from __future__ import annotations

from pathlib import Path

import pytest

import maskwise
from maskwise.annotate.registry import spans
from maskwise.base.errors import MaskwiseError
from maskwise.studies.checks import check_inputs
from maskwise.studies.from_files import draft_of_files
from maskwise.studies.stages import fingerprint
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.text.documents import folder_note

OWN = Path(maskwise.__file__).parent
LONG = "def add(left, right):\n    return left + right\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of code with a hidden environment, a table, a binary file and two encodings."""
    files = {
        "main.c": b"int main(void) {\r\n  return 0;\r\n}\r\n",
        "lib/add.py": LONG.encode(),
        "lib/latin.py": "# -*- coding: latin-1 -*-\nname = 'Zoë'\n".encode("latin-1"),
        "lib/wrong.js": "let café = 1;".encode("latin-1"),
        "lib/unknown.py": b"# coding: no-such-code\n",
        "lib/rotated.py": b"# coding: rot13\nprint(1)\n",
        "lib/undefined.py": b"# coding: undefined\nprint(1)\n",
        "lib/bom.go": b"\xef\xbb\xbfpackage main\n",
        "lib/__init__.py": b"\n",
        "lib/copy.py": LONG.encode(),
        "object.m": b"\xfe\xed\0\0",
        "data.csv": b"a,b\n1,2\n",
        ".venv/hidden.py": b"import secret\n",
        "lib/add.cpython-311.pyc": b"\0" * 9999,
    }
    for name, content in files.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "code"


def names_in(folder) -> list[str]:
    return [document.name for document in read_documents(folder)]


def test_a_file_of_code_is_one_text_and_unusable_files_are_counted(folder):
    documents = read_documents(folder)
    assert {document.name: document.text for document in documents} == {
        "lib/add.py": LONG.rstrip("\n"),
        "lib/bom.go": "package main",
        "lib/latin.py": "# -*- coding: latin-1 -*-\nname = 'Zoë'",
        "main.c": "int main(void) {\n  return 0;\n}",
    }
    skipped = {"not valid UTF-8": 4, "empty": 1, "repeated text": 1}
    assert documents.skipped == skipped | {"binary (NUL characters)": 1}
    [document] = read_documents(folder / "main.c")
    assert (document.name, document.text) == ("main.c", "int main(void) {\n  return 0;\n}")
    note = str(folder_note(str(folder)))
    assert "11 files of source code" in note and "1 × hidden" in note and "1 × .csv" in note
    assert ".pyc" not in note


def test_of_code_and_texts_in_a_folder_the_larger_kind_is_read(folder):
    (folder / "notes.txt").write_text("A note.")
    assert "notes.txt#1" not in names_in(folder)
    (folder / "notes.txt").write_text("Nothing but text. " * 200)
    (folder / "data.csv").unlink()
    assert names_in(folder) == ["notes.txt#1"]
    assert "1 file of texts" in str(folder_note(str(folder)))
    (folder / "notes.txt").rename(folder / "data.json")
    (folder / "data.json").write_text('["Nothing but text."]')
    assert "lib/add.py" in names_in(folder)
    # A folder without code gets no note.
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("A text.")
    assert folder_note(str(folder / "texts")) is None


def test_files_that_are_not_read_do_not_change_the_name_of_a_folder_of_code(folder):
    before = fingerprint(str(folder))
    (folder / "lib" / "add.cpython-311.pyc").write_bytes(b"\0" * 5)
    (folder / ".venv" / "hidden.py").unlink()
    assert fingerprint(str(folder)) == before
    (folder / "main.c").write_text("int main(void) { return 1; }\n")
    assert fingerprint(str(folder)) != before


def test_rows_of_real_code_keep_its_lines_and_its_words_are_identifiers():
    documents = [*read_documents(OWN / "text")]
    names = [document.name for document in documents]
    assert "words.py" in names and names == sorted(names)
    texts = (document.text for document in documents)
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=1024, lowercase=False)
    tokens = tokenise(documents, tokenizer)
    pieces = read_pieces(tokens, tokenizer=tokenizer, length=64)
    ids = pieces.columns["input_ids"]
    decoded = tokenizer.decode(ids[: pieces.offsets[9]])
    assert documents[0].text.startswith(decoded[:300]) and "\n" in decoded[:300]
    # White space at the beginning of a line belongs to no word.
    some = Rows.of(pieces).line([0, 1])
    assert (some.layers["word_ids"][some.content] < 0).any()


def test_code_is_refused_where_it_cannot_be_used(folder):
    with pytest.raises(MaskwiseError, match="spans cannot be read"):
        spans(str(folder / "main.c"))
    with pytest.raises(MaskwiseError, match="unknown file extension") as caught:
        read_documents(folder / "lib" / "add.cpython-311.pyc")
    assert "source code" in str(caught.value)


def test_a_recipe_for_code_trains_a_tokenizer_that_keeps_lines(folder):
    draft = draft_of_files(str(OWN / "text"))
    assert draft.settings["tokenizer"]["kind"] == "bpe"
    assert any("files of source code" in note for note in check_inputs(draft.recipe))
