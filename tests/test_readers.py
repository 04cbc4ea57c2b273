"""One reader for texts and labels: what is written is read, in every format and dialect."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskwise.errors import MaskwiseError
from maskwise.text.labelled import read_records
from maskwise.text.readers import LONG_LINE, NOT_JSON, FieldNames, Skip, records
from maskwise.text.tables import HEAD_CHARACTERS, read_table

BITS = [
    "rain",
    "né",
    "Straße",
    "日本語",
    "😀",
    "3,5",
    "a;b",
    "x|y",
    "NA",
    "nan",
    "#",
    "'",
    "\u2028",
]
MARKS = ['"', '""', " ", "\n", "\r\n", "\r", "\\", "\t", ""]
NAMES = ("id", "text", "label")
SEEDS = range(60)


def cell_of(draws: random.Random) -> str:
    bits = draws.choices(BITS + MARKS, k=draws.choice([1, 3, 9]))
    return f"{draws.choice(BITS)} {''.join(bits)}"


def written(rows: Sequence[Sequence[str]], **how: Any) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, **how).writerows(rows)
    return file.getvalue()


def doubled(rows: list[list[str]], draws: random.Random) -> str:
    lines = [",".join(NAMES)]
    for row in rows:
        cells = []
        for cell in row:
            if set(cell) & set(',"\n\r') or draws.random() < 0.2:
                cell = '"' + cell.replace('"', '""') + '"'
            cells.append(cell)
        lines.append(",".join(cells))
    return draws.choice(["\n", "\r\n", "\r"]).join(lines)


def escaped(rows: list[list[str]], draws: random.Random) -> str:
    """The first row shows that a backslash escapes a quotation mark."""
    rows.insert(0, ["0", 'He said "no", twice', "a"])
    how: dict[str, Any] = {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL}
    return written([NAMES, *rows], lineterminator=draws.choice(["\n", "\r\n"]), **how)


def with_tabs(rows: list[list[str]], draws: random.Random) -> str:
    """Each line has a quoted cell, which shows that quotation marks are not a part of the text."""
    for row in rows:
        row[1] = " ".join(row[1].splitlines())
    return written([NAMES, *rows], delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")


WRITERS = {"a.csv": doubled, "b.csv": escaped, "c.tsv": with_tabs}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WRITERS)
def test_cells_are_read_as_they_were_written(name: str, seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    count = draws.choice([1, 2, 12, 60])
    rows = [[str(n), cell_of(draws), draws.choice("ab")] for n in range(1, count + 1)]
    content = WRITERS[name](rows, draws).encode(draws.choice(["utf-8", "utf-8-sig"]))
    path = tmp_path / name
    path.write_bytes(content)
    expected = [dict(zip(NAMES, row)) for row in rows]
    assert list(read_table(path)) == expected == read_records(path)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content))
    assert list(records(packed)) == [
        (f"{name}.gz#{number}", row) for number, row in enumerate(expected, start=1)
    ]


@pytest.mark.parametrize("before", [0, 1, 3 * HEAD_CHARACTERS])
def test_one_bad_mark_in_a_long_table_changes_how_all_of_it_is_read(
    before: int, tmp_path: Path
) -> None:
    """What a backslash means shows only in the whole table."""
    path = tmp_path / "a.csv"
    plain = 'C:\\\\d "good",1\n' * (before // 10)
    path.write_text(f'text,label\n{plain}"He said \\"no\\".",2\n')
    rows = list(read_table(path))
    assert rows == read_records(path) and rows[-1] == {"text": 'He said "no".', "label": "2"}
    assert {row["text"] for row in rows[:-1]} <= {'C:\\d "good"'}


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("a,a,a", ["a", "a.1", "a.2"]),
        ("a,a.1,a", ["a", "a.1", "a.2"]),
        ("a,a,a.1", ["a", "a.2", "a.1"]),
    ],
)
def test_columns_of_one_name_all_keep_their_cells(
    header: str, names: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n1,2,3\n")
    assert [*read_table(path)] == [dict(zip(names, "123"))]


def test_a_row_of_a_wrong_length_is_the_first_error(tmp_path: Path) -> None:
    """Before a quotation mark that shows that the table is written differently."""
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,b,c\n"d"e,f\n')
    for bad in ("skip", "raise"):
        with pytest.raises(MaskwiseError, match=r"row 2 of .* has 3 columns"):
            list(read_table(path, bad=bad))  # type: ignore[arg-type]


def test_an_open_quotation_mark_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,b\n"c,d\n')
    with pytest.raises(MaskwiseError, match=r"a\.csv is not a table: row 3\b"):
        next(read_table(path))


@pytest.mark.parametrize("bad", ["skip", "raise"])
def test_the_row_of_an_open_quotation_mark_is_named(bad: Any, tmp_path: Path) -> None:
    """Rows count, and not lines: the second has a line break in a cell."""
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a\nb",c\n' + "d,e\n" * 40 + '"f,g\n' + "h,i\n" * 40)
    with pytest.raises(MaskwiseError, match=r"a\.csv is not a table: row 43\b.*never closed"):
        list(read_table(path, bad=bad))


ROWS = [{"id": "a", "text": "The first."}, {"id": "b", "text": ""}, {"id": "c", "text": "é\u2028"}]


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def as_lines(path: Path) -> None:
    path.write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")


def as_table(path: Path) -> None:
    path.write_text(written([("id", "text"), *(row.values() for row in ROWS)]), encoding="utf-8")


FORMATS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": as_lines,
    "a.jsonlines": as_lines,
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.csv": as_table,
    "a.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_records_for_texts_and_labels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FORMATS[name](path)
    assert [record for _, record in records(path, bad="raise")] == ROWS == read_records(path)
    assert list(records(path)) == list(records(path, bad="raise"))
    first, *_ = records(path, FieldNames("text"), name="other")
    assert first[0] == "other#1"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_line_is_skipped_or_raised_with_its_number(seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    lines = []
    expected: list[Any] = []
    for number in range(1, 40):
        value = draws.choice([{"text": draws.choice(BITS)}, {"text": None}, {"a": {"b": [1]}}])
        line = json.dumps(value, ensure_ascii=draws.random() < 0.5)
        kind = draws.choice(["good"] * 9 + ["cut", "blank"])
        if kind == "blank":
            line = draws.choice(["", "  ", "\r"])
        elif kind == "cut":
            line = line[:-1]
            expected.append(number)
        else:
            expected.append((f"a.jsonl#{number}", value))
        lines.append(line)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding=draws.choice(["utf-8", "utf-8-sig"]), newline="")
    found = list(records(path))
    skipped = [entry for entry in found if isinstance(entry, Skip)]
    assert {skip.reason for skip in skipped} <= {NOT_JSON}
    places = [entry.place if isinstance(entry, Skip) else entry for entry in found]
    assert places == [f"line {each}" if isinstance(each, int) else each for each in expected]
    if not skipped:
        assert read_records(path) == [value for _, value in expected]
        return
    with pytest.raises(MaskwiseError) as caught:
        read_records(path)
    assert f"{skipped[0].place} of {path}" in str(caught.value)
    assert caught.value.got == skipped[0].content


def test_a_long_line_is_skipped_in_a_corpus_and_read_in_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.text.readers.LONGEST_LINE", 50)
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a"}, {"text": "b" * 100}, {"text": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(records(path)) == [
        ("a.jsonl#1", rows[0]),
        Skip(LONG_LINE, "line 2"),
        ("a.jsonl#3", rows[2]),
    ]
    assert read_records(path) == rows


def test_an_extension_that_no_reader_knows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_text("a text")
    with pytest.raises(MaskwiseError, match=r"unknown file extension of .*\.jsonl"):
        list(records(path))


def test_a_separator_is_found_beside_long_cells_with_line_breaks(tmp_path: Path) -> None:
    """The beginning of a table may end inside a quoted cell."""
    path = tmp_path / "long.csv"
    cell = "He came, saw; and left.\n" * 120
    path.write_text("text;label\n" + "".join(f'"{cell}{n}";c\n' for n in range(60)))
    found = list(read_table(path))
    assert len(found) == 60 and found[7] == {"text": f"{cell}7", "label": "c"}


@pytest.mark.parametrize("bad", ["skip", "raise"])
def test_quotation_marks_are_read_in_the_way_that_fits_all_rows(bad: Any, tmp_path: Path) -> None:
    """Doubled, the first row has three cells; escaped by a backslash, all rows have two."""
    path = tmp_path / "escaped.csv"
    rows = ['"He wrote \\", then\\" and left",a'] + ['"He said \\"yes\\" twice",b'] * 5
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    found = list(read_table(path, bad=bad))
    assert found[0] == {"text": 'He wrote ", then" and left', "label": "a"} and len(found) == 6


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("tabs.tsv", "a\tb\n" + "x\t1\n" * 9 + "x\ty\t1\n", "replace tabs"),
        ("few.csv", "a,b\n1,2\n3\n", "complete the row"),
        ("many.csv", "a,b\n1,2\n3,4,5\n", "quotation marks"),
    ],
)
def test_the_advice_on_a_row_of_another_length_helps(
    name: str, text: str, advice: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(MaskwiseError) as caught:
        list(read_table(path))
    assert advice in str(caught.value.do)
