"""Golden documents and tasks: what is read from odd files.

Names of documents decide masks and the split, so a changed decision about one malformed line would
change both without an error. The contents of the files are written out here, and the golden values
are readable: names, beginnings of texts, and the reasons for which records were skipped.

``python tests/test_golden.py texts labelled`` writes the values anew.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.tasks import load_task
from maskwise.text import read_documents
from test_golden import hash_of, read_golden

QUOTED = 'id,text,year\na,"It rained, and\nsnowed.",1867\nb,"He said ""no"".",1868\nc,,1869\n'
LINES = [
    {"id": "a", "text": "The first text."},
    {"id": "a", "text": "The same name again."},
    {"text": "The first text."},
    {"id": 7, "text": "A number is a name."},
    {"id": None, "text": "No name at all."},
    {"text": None},
    {"text": 5},
    {"txt": "the wrong field"},
    "a bare string",
    ["a", "list"],
    {"id": "z", "text": "  white space around \u2029 and within\t"},
    {"id": "e", "text": "emoji \U0001f600 and e\u0301 combined"},
]
LONG = " ".join(f"word{number}" for number in range(600_000))
"""More than the four million characters of a part."""

FILES: dict[str, bytes] = {
    "commas.csv": QUOTED.encode(),
    "semicolons.csv": b'text;id\nOne, two;x\n"a;b";y\nlast one;z\n',
    "ragged semicolons.csv": b"text;id\nOne, two; three;x\nlast one;z\n",
    "bars.csv": b"id|text\n1|The cat sat.\n2|A dog ran.\n3|Birds sing, too.\n",
    "tabs.tsv": b'id\ttext\n1\t"open quote\n2\tsecond\n3\t"both"\n4\tend"\n',
    "glue.tsv": b'sentence\tlabel\nit \'s a charming film\t1\n"unflinching" , it is\t0\n',
    "mark.csv": "\ufefftext,id\nÜber Straßen,ü\n".encode(),
    "repeated names.csv": b"text,text,id\nfirst,second,1\nthird,fourth,2\n",
    "ragged.csv": b"id,text\n1,one\n2\n3,three,and more\n4,four\n",
    "one column.csv": b"text\nalpha\nbeta\n\ngamma\n",
    "crlf.csv": b'id,text\r\n1,one\r\n2,"two\r\nlines"\r\n',
    "lines.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in LINES),
    "broken.jsonl": b'{"text": "good"}\n{"text": "cut off\n\n  \n{"text": "after"}\nnot json\n'
    b'{"text": "\xff not utf-8"}\n{"text": "last, without a line break"}',
    "array.json": json.dumps([{"text": "one"}, {"text": ""}, "three"]).encode(),
    "object.json": b'{"text": "one object"}\n{"text": "and another"}\n',
    "packed.jsonl.gz": gzip.compress(b'{"text": "from gzip"}\n{"text": "again"}\n', mtime=0),
    "blocks.txt": b"One block\nof two lines.\n\n\nThe second.\n  \nThe third, \r\nwith CR LF.\r\n",
    "lines.txt": b"every line\nis a text\nEvery line\nis one\n",
    "cr.txt": b"old\rline\rends\n",
    "mixed.txt": b"good line\n" + b"\xff\xfe bad\n" + "ünïcode\x0bline\x0cfeed\u2028sep\n".encode(),
    "proteins.fasta": b">sp|P1 one\nMKTAYIAKQR\nQISFVKSHFS\n>P2\n\n>P3 three\nmktay*\n",
    "long.jsonl": json.dumps({"id": "long", "text": LONG}).encode() + b"\n",
}


def many(*lines: str, times: int = 12) -> bytes:
    """The lines again and again, with another number in the place of ``#``."""
    return "".join(line.replace("#", str(n)) for n in range(times) for line in lines).encode()


PAIR = '{"premise": "p #", "hypothesis": "h #", "label": "yes"}\n'
LABELLED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "commas.csv": (
        b"text,label\n" + many('"good #, really",pos\n', "bad #,neg\n", '"so\n#",pos\n', ",neg\n"),
        {},
    ),
    "unlabelled.csv": (b"text,label\n" + many("fine #,\n", "good #,pos\n", "bad #,neg\n"), {}),
    "header.tsv": (b"sentence\tlabel\n" + many("a fine film #\t1\n", "a dull film #\t0\n"), {}),
    "no header.tsv": (
        many("#\t0\ta sentence #\n", "#\t1\tanother sentence #\n"),
        {"text": 3, "label": 2},
    ),
    "quotes.tsv": (b"text\tlabel\n" + many('"open #\ta\n', '#" close\tb\n', '"both #"\tb\n'), {}),
    "semicolons.csv": (b"text;label\n" + many("one, two #;a\n", "three #;b\n"), {}),
    "split.csv": (
        b"text,label,split\n"
        + many("a #,a,train\n", "b #,b,train\n", "c #,a,dev\n", "d #,b,test\n"),
        {},
    ),
    "numbers.csv": (b"text,score\n" + many("t #,#.5\n", "u #,-#\n"), {}),
    "pairs.jsonl": (many(PAIR, PAIR.replace("yes", "no").replace("p #", "q #")), {}),
    "missing.csv": (
        b"text,label\n" + many("a #,-1\n", "b #,1\n", "c #,0\n", "d #,NA\n"),
        {"missing": ("-1", "NA")},
    ),
    "where.csv": (
        b"text,label,year\n" + many("a #,1,2014\n", "b #,0,2015\n", "c #,0,2014\n"),
        {"where": "year=2014"},
    ),
    "tokens.conll": (many("Word# B-PER\nsaid O\n\n", "Paris B-LOC\n# O\n\n"), {}),
}


def written(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if name == "table.parquet":
        columns = {
            "id": pa.array(["a", None, "c", "d"]),
            "text": pa.array(["One.", "Two.", None, "Four."]),
            "n": pa.array([1, 2, 3, 4]),
        }
        pq.write_table(pa.table(columns), path)
    else:
        path.write_bytes(FILES[name])
    return path


def documents(folder: Path, name: str, **how: Any) -> dict[str, Any]:
    """What is read from a file: names, beginnings of texts, a hash of all, and what was skipped."""
    found = read_documents(str(written(folder, name)), **how)
    try:
        read = list(found)
    except MaskwiseError:
        return {"refused": True}
    return {
        "documents": [[document.name, document.text[:30]] for document in read],
        "hash": hash_of([[document.name, document.text] for document in read]),
        "skipped": dict(sorted(found.skipped.items())),
    }


HOW: dict[str, dict[str, Any]] = {
    **{name: {} for name in (*FILES, "table.parquet")},
    "blocks.txt by line": {"text_per": "line"},
    "lines.txt by line": {"text_per": "line"},
    "lines.txt by block": {"text_per": "block"},
    "glue.tsv, its sentences": {"text_field": "sentence"},
    "lines.jsonl with repeated texts": {"keep_repeated": True},
    "commas.csv, the field year": {"text_field": "year"},
    "commas.csv, no such field": {"text_field": "body"},
    "lines.jsonl, three documents": {"limit": 3},
}


def read_case(folder: Path, case: str) -> dict[str, Any]:
    name = next(name for name in (*FILES, "table.parquet") if case.startswith(name))
    return documents(folder, name, **HOW[case])


def all_documents(folder: Path) -> dict[str, Any]:
    return {case: read_case(folder / str(number), case) for number, case in enumerate(HOW)}


def task_rows(folder: Path, name: str) -> dict[str, Any]:
    """The kind, the labels and the rows of each split of a labelled file."""
    content, how = LABELLED[name]
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    task = load_task(path, **how)
    rows = {split: [repr(row) for row in found] for split, found in task.splits.items()}
    return {
        "kind": task.kind.name,
        "columns": {role: str(column) for role, column in task.columns.items()},
        "labels": [str(label) for label in task.labels],
        "sizes": {split: len(found) for split, found in rows.items()},
        "skipped": dict(sorted(task.skipped.items())),
        "hash": hash_of(rows),
    }


def all_tasks(folder: Path) -> dict[str, Any]:
    return {name: task_rows(folder / str(number), name) for number, name in enumerate(LABELLED)}


MAKERS: dict[str, Callable[[Path], Any]] = {"texts": all_documents, "labelled": all_tasks}


@pytest.mark.parametrize("case", HOW)
def test_documents_of_odd_files(case: str, tmp_path: Path) -> None:
    assert read_case(tmp_path / "texts", case) == read_golden()["texts"][case]


@pytest.mark.parametrize("name", LABELLED)
def test_tasks_of_odd_files(name: str, tmp_path: Path) -> None:
    assert task_rows(tmp_path / "task", name) == read_golden()["labelled"][name]


def test_every_odd_file_is_recorded() -> None:
    golden = read_golden()
    assert set(golden["texts"]) == set(HOW) and set(golden["labelled"]) == set(LABELLED)
