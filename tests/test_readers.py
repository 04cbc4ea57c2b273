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

from maskwise.base.errors import MaskwiseError
from maskwise.text import read_documents
from maskwise.text.opening import LONG_LINE, Skip
from maskwise.text.source import NOT_JSON, Shard, read_records, shards_of
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
    assert list(Shard.of_file(packed).records()) == [*enumerate(expected, start=1)]


@pytest.mark.parametrize("before", [0, 1, 3 * HEAD_CHARACTERS])
@pytest.mark.parametrize("cell", ['"He said \\"no\\"."', '"He said ""no""."'])
def test_the_rows_behind_the_first_mark_show_how_marks_are_written(
    cell: str, before: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "plain,1\n" * (before // 8) + f"{cell},2\n")
    rows = list(read_table(path))
    assert rows == read_records(path) and rows[-1] == {"text": 'He said "no".', "label": "2"}
    assert len(rows) == before // 8 + 1


def test_a_mark_that_is_written_in_another_way_later_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    doubled = '"He said ""no"".",1\n' * HEAD_CHARACTERS
    path.write_text(f'text,label\n{doubled}"He said \\"no\\".",2\n')
    with pytest.raises(MaskwiseError, match=rf"a\.csv is not a table: row {HEAD_CHARACTERS + 2}\b"):
        read_records(path)


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
    shard = Shard.of_file(path, name="other")
    assert [record for _, record in shard.records()] == ROWS == read_records(path)
    number, _ = next(shard.records())
    assert shard.name_of(number) == "other#1"


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
            expected.append((number, value))
        lines.append(line)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding=draws.choice(["utf-8", "utf-8-sig"]), newline="")
    found = list(Shard.of_file(path).records())
    skipped = [record for _, record in found if isinstance(record, Skip)]
    assert {skip.reason for skip in skipped} <= {NOT_JSON}
    read = [number if isinstance(record, Skip) else (number, record) for number, record in found]
    assert read == expected
    assert all(record.place == f"line {n}" for n, record in found if isinstance(record, Skip))
    if not skipped:
        assert read_records(path) == [value for _, value in expected]
        return
    with pytest.raises(MaskwiseError) as caught:
        read_records(path)
    assert f"{skipped[0].place} of {path}" in str(caught.value)
    assert caught.value.got == skipped[0].content


def test_a_long_line_is_skipped_in_a_corpus_and_refused_in_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.text.opening.LONGEST_LINE", 50)
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a"}, {"text": "b" * 100}, {"text": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    long = Skip(LONG_LINE, "line 2")
    assert list(Shard.of_file(path).records()) == [(1, rows[0]), (2, long), (3, rows[2])]
    with pytest.raises(MaskwiseError, match=r"line 2 of .*a\.jsonl cannot be read: line of more"):
        read_records(path)


def test_a_separator_is_found_beside_long_cells_with_line_breaks(tmp_path: Path) -> None:
    """The beginning of a table may end inside a quoted cell."""
    path = tmp_path / "long.csv"
    cell = "He came, saw; and left.\n" * 120
    path.write_text("text;label\n" + "".join(f'"{cell}{n}";c\n' for n in range(60)))
    found = list(read_table(path))
    assert len(found) == 60 and found[7] == {"text": f"{cell}7", "label": "c"}


def test_quotation_marks_are_read_in_the_way_that_fits_all_rows(tmp_path: Path) -> None:
    """Doubled, the first row has three cells; escaped by a backslash, all rows have two."""
    path = tmp_path / "escaped.csv"
    rows = ['"He wrote \\", then\\" and left",a'] + ['"He said \\"yes\\" twice",b'] * 5
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    found = list(read_table(path))
    assert found[0] == {"text": 'He wrote ", then" and left', "label": "a"} and len(found) == 6


RAW = [
    "it 's a charming film\t1",
    '"unflinching" , it is\t0',
    '"a whole sentence"\t1',
    'an end"\t0',
]


@pytest.mark.parametrize("before", [0, 1, 3 * HEAD_CHARACTERS])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_a_quoted_cell_may_hold_a_tab_or_a_line_break(
    line: str, before: int, tmp_path: Path
) -> None:
    """pandas quotes only the cells that need it."""
    rows = [["plain", "1"]] * (before // 8) + [["a\tb", "2"], ['he said "no"', "3"], ["c\nd", "4"]]
    path = tmp_path / "a.tsv"
    content = written([("text", "label"), *rows], delimiter="\t", lineterminator=line)
    path.write_bytes(content.encode())
    assert [[*row.values()] for row in read_table(path)] == rows
    path.write_bytes(
        written([("text", "label"), *rows], delimiter="\t", quoting=csv.QUOTE_ALL).encode()
    )
    assert [[*row.values()] for row in read_table(path)] == rows


@pytest.mark.parametrize("before", [8, 3 * HEAD_CHARACTERS])
def test_marks_of_a_table_with_tabs_are_kept_if_one_is_no_quotation(
    before: int, tmp_path: Path
) -> None:
    """As in the tables of GLUE; also a sentence in marks, or one that goes on in the next row."""
    path = tmp_path / "a.tsv"
    for raw in (RAW, RAW[2:3], ['"it begins\t1', 'and ends"\t0']):
        lines = ["plain\t1"] * (before // 8) + raw
        path.write_text("\n".join(["text\tlabel", *lines]))
        found = ["\t".join(row.values()) for row in read_table(path)]
        assert found == lines


def test_every_text_format_may_be_packed(tmp_path: Path) -> None:
    table = written([("id", "text"), *(row.values() for row in ROWS)]).encode()
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    for name, content in {
        "a.csv": table,
        "a.jsonl": lines,
        "a.json": json.dumps(ROWS).encode(),
    }.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        with pa.CompressedOutputStream(str(tmp_path / f"{name}.zst"), "zstd") as file:
            file.write(content)
        for packed in (".gz", ".zst"):
            assert read_records(tmp_path / f"{name}{packed}") == ROWS
            [shard] = shards_of(tmp_path / f"{name}{packed}")
            assert [record for _, record in shard.records()] == ROWS


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "It rained.",
                    "qas": [{"id": "1", "question": "Did it?", "answers": []}],
                }
            ]
        }
    ]
}


@pytest.mark.parametrize("indent", [None, 2])
def test_the_objects_of_one_json_object_are_its_records(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(SQUAD, indent=indent))
    [record] = read_records(path)
    assert record["context"] == "It rained."
    [(_, same)] = Shard.of_file(path).records()
    assert same == record
    path.write_text(json.dumps({"x": ROWS[0], "y": ROWS[1]}, indent=indent))
    assert read_records(path) == ROWS[:2]


def test_a_json_line_of_nested_objects_is_one_text(tmp_path: Path) -> None:
    """And not a record for each of its objects."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"article": {"body": "It rained."}, "meta": {"year": 1}}))
    [document] = read_documents(path, text_field="article.body")
    assert document.text == "It rained."
