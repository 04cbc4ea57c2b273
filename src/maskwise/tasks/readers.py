"""Labelled rows out of files: the part of loading a task that knows formats.

Every reader gives plain records (dicts of columns). Unlike a corpus, where a bad line is skipped and counted,
a damaged labelled file is refused with the place of the damage: a score on half of a test set is a wrong
score. Nothing is unpickled and no code that comes with a data set is run.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError

Record = dict[str, Any]
# A comment stands before a sentence and has no tab; "# O" is a sentence that begins with a hash.
_COMMENT = re.compile(r"#(?!\S* (O|[BIES]-\S+)$)[^\t]*$")


def read_records(path: Path) -> list[Record]:
    """The records of one file, by its ending (``.gz`` allowed for all but Parquet).

    Raises:
        MaskwiseError: an unknown ending, a file that is not UTF-8, damaged, or not what its ending says.
    """
    ending = ending_of(path)
    if ending is None:
        raise MaskwiseError(f"unknown ending of task file {path}", allowed=", ".join(READERS))
    return READERS[ending](path)


def ending_of(path: Path) -> str | None:
    """The ending by which a file is read; None where there is no reader."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in READERS if name.endswith(ending)), None)


def read_hub(spec: str) -> dict[str, list[Record]]:
    """All splits of "hf:ID[:config]"; class numbers become class names where the data set knows them."""
    import datasets

    name, _, config = spec.removeprefix("hf:").partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # network, hub, builder and format errors have no common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MaskwiseError(f"cannot load data set {spec!r}: {first}") from error
    return {str(split): _with_class_names(rows) for split, rows in loaded.items()}


def _with_class_names(rows: Any) -> list[Record]:
    names = {}
    for column, feature in rows.features.items():
        inner = getattr(feature, "feature", feature)  # a list of classes, as in tagging
        if hasattr(inner, "int2str"):
            names[column] = inner.names
    return [{k: _named(v, names[k]) if k in names else v for k, v in row.items()} for row in rows]


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        do = "convert it, for example with iconv -f LATIN1 -t UTF-8"
        raise MaskwiseError(f"{path} is not UTF-8 text (byte {error.start})", do=do) from None
    except (OSError, EOFError, zlib.error) as error:
        raise MaskwiseError(f"cannot read {path}: {error}", do="is it complete and readable?") from error


def _read_json_lines(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise MaskwiseError(
                f"line {number} of {path} is not a JSON object", got=line[:60], allowed="JSON lines"
            )
        records.append(record)
    return records


def _read_csv(path: Path) -> list[Record]:
    return _table(path, csv.reader(io.StringIO(_read_text(path), newline=""), strict=True))


def _read_tsv(path: Path) -> list[Record]:
    """No quoting: GLUE's files have lone quotation marks in them."""
    lines = _read_text(path).replace("\r\n", "\n").split("\n")
    return _table(path, iter([line.split("\t") for line in lines]))


def _table(path: Path, lines: Any) -> list[Record]:
    records: list[Record] = []
    header: list[str] | None = None
    try:
        for number, cells in enumerate(lines, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                allowed = f"{len(header)} columns, as in the header"
                raise MaskwiseError(f"row {number} of {path} has {len(cells)} columns", allowed=allowed)
            else:
                records.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise MaskwiseError(f"{path} is not a table: {error}") from error
    return records


def _read_conllu(path: Path) -> list[Record]:
    """FORM and UPOS; ranges (``3-4``) and empty nodes (``3.1``) are no words."""
    return _sentences(path, lambda cells: (cells[1], cells[3]) if cells[0].isdigit() else None, least=4)


def _read_conll(path: Path) -> list[Record]:
    """Token first, tag last; in the five columns of Universal NER: number, token, tag, and two more."""
    numbered = ending_of(path) == ".iob2"
    return _sentences(path, lambda c: (c[1], c[2]) if numbered and len(c) == 5 else (c[0], c[-1]))


def _sentences(
    path: Path, pick: Callable[[list[str]], tuple[str, str] | None], *, least: int = 2
) -> list[Record]:
    records: list[Record] = []
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate([*_read_text(path).split("\n"), ""], start=1):
        line = line.rstrip("\r")
        if not line.strip():
            if pairs:
                tokens, tags = zip(*pairs, strict=True)
                records.append({"tokens": list(tokens), "tags": list(tags)})
                pairs = []
            continue
        if line.startswith("-DOCSTART-") or (_COMMENT.match(line) and not pairs):
            continue
        cells = line.split("\t") if "\t" in line else line.split(" ")
        if len(cells) < least:
            raise MaskwiseError(f"line {number} of {path} has no tag", got=line[:60], allowed="token<TAB>tag")
        pair = pick(cells)
        if pair:
            pairs.append(pair)
    return records


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise MaskwiseError(
            f"{path} is not a Parquet file, or damaged: {str(error).splitlines()[0]}"
        ) from error


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".conllu": _read_conllu,
    ".conll": _read_conll,
    ".conll.txt": _read_conll,
    ".iob2": _read_conll,
    ".parquet": _read_parquet,
}
