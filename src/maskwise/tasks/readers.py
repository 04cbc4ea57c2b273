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


def read_records(path: Path, *, header: bool = True) -> list[Record]:
    """The records of one file, by its ending (``.gz`` allowed for all but Parquet).

    Args:
        header: whether tables (.csv, .tsv) begin with the names of their columns; if not, these are "1", "2", ….

    Raises:
        MaskwiseError: an unknown ending, a file that is not UTF-8, damaged, or not what its ending says.
    """
    ending = ending_of(path)
    if ending is None:
        raise MaskwiseError(f"unknown ending of task file {path}", allowed=", ".join(READERS))
    if not header and ending in TABLES:
        return TABLES[ending](path, header=False)
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


def read_text(path: Path, *, or_latin1: bool = False) -> str:
    """The text of a file; ``or_latin1``: one that is not UTF-8 is Latin-1, as SentEval's older files are."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            if not or_latin1:
                raise
            return data.decode("latin-1")
    except UnicodeDecodeError as error:
        do = "convert it, for example with iconv -f LATIN1 -t UTF-8"
        raise MaskwiseError(f"{path} is not UTF-8 text (byte {error.start})", do=do) from None
    except (OSError, EOFError, zlib.error) as error:
        raise MaskwiseError(f"cannot read {path}: {error}", do="is it complete and readable?") from error


def _read_json_lines(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
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


def _read_json(path: Path) -> list[Record]:
    """One JSON value, SQuAD's tree or a list of objects; else JSON lines."""
    try:
        whole = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return _read_json_lines(path)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        return _squad(whole["data"], path)
    if isinstance(whole, list) and all(isinstance(record, dict) for record in whole):
        return whole
    return _read_json_lines(path)


def _squad(articles: list[Any], path: Path) -> list[Record]:
    """data > paragraphs > context, qas > question, answers."""
    try:
        return [
            {"id": qa.get("id"), "context": paragraph["context"], "question": qa["question"], "answers": qa["answers"]}
            for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        allowed = "data > paragraphs > context, qas > question, answers"
        raise MaskwiseError(f"{path} is not SQuAD's JSON", got=f"no {error}", allowed=allowed) from None


def _read_csv(path: Path, *, header: bool = True) -> list[Record]:
    return _table(path, csv.reader(io.StringIO(read_text(path), newline=""), strict=True), header=header)


def read_tsv(path: Path, *, header: bool = True) -> list[Record]:
    """No quoting: GLUE's files have lone quotation marks in them."""
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return _table(path, iter([line.split("\t") for line in lines]), header=header)


def _table(path: Path, lines: Any, *, header: bool) -> list[Record]:
    """Rows by the names of columns. Without a header, rows may differ in length: STS-B's do, behind the texts."""
    records: list[Record] = []
    names: list[str] | None = None
    try:
        for number, cells in enumerate(lines, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                records.append({str(place): cell for place, cell in enumerate(cells, start=1)})
            elif names is None:
                names = [cell.strip() for cell in cells]
            elif len(cells) != len(names):
                allowed = f"{len(names)} columns, as in the header"
                raise MaskwiseError(f"row {number} of {path} has {len(cells)} columns", allowed=allowed)
            else:
                records.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise MaskwiseError(f"{path} is not a table: {error}") from error
    return records


def _read_conllu(path: Path) -> list[Record]:
    """FORM and UPOS, or of three columns the last; ranges (``3-4``) and empty nodes (``3.1``) are no words."""
    return _sentences(path, lambda c: (c[1], c[min(3, len(c) - 1)]) if c[0].isdigit() else None, least=3)


def _read_conll(path: Path) -> list[Record]:
    """Token first, tag last; in the five columns of Universal NER: number, token, tag, and two more."""
    numbered = ending_of(path) == ".iob2"
    return _sentences(path, lambda c: (c[1], c[2]) if numbered and len(c) == 5 else (c[0], c[-1]))


def _sentences(
    path: Path, pick: Callable[[list[str]], tuple[str, str] | None], *, least: int = 2
) -> list[Record]:
    records: list[Record] = []
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
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
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": read_tsv,
    ".conllu": _read_conllu,
    ".conll": _read_conll,
    ".conll.txt": _read_conll,
    ".iob2": _read_conll,
    ".parquet": _read_parquet,
}
TABLES: dict[str, Callable[..., list[Record]]] = {".csv": _read_csv, ".tsv": read_tsv}
