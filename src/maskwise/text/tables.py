"""Tables as people have them: separated by commas, semicolons, tabs or bars, with any usual
quoting.

The separator is not asked for: it is the one that cuts the first rows into equally many cells, more
than one of them.
Cost: the first rows are read once for each separator.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD_CHARACTERS, HEAD_ROWS = 1 << 16, 50
QUOTED_SHARE = 0.9
"""Share of rows with a quoted cell from which a table of tabs is taken to be quoted; GLUE's have
lone marks in them.
"""

Record = dict[str, Any]


def read_table(text: str, path: Path, *, usual: str, header: bool = True) -> list[Record]:
    """The rows of a table by the names of its columns; without a header these are "1", "2", ….

    Without a header rows may differ in length: STS-B's do, behind the texts.

    Args:
        text: the whole table.
        path: what messages call it.
        usual: the separator that its ending promises; it is taken where it fits.

    Raises:
        MaskwiseError: rows that do not have a cell for each column, or quotation marks that do not
            close.

    >>> read_table('text;score\\n"rain; wind";3,5\\n', Path("a.csv"), usual=",")
    [{'text': 'rain; wind', 'score': '3,5'}]
    """
    separator = separator_of(text, usual=usual)
    if separator == "\t" and not _is_quoted(text):
        rows = iter([line.split("\t") for line in _lines(text)])
        return list(_records(path, rows, separator, header=header))
    try:
        return list(_records(path, _cells(text, separator), separator, header=header))
    except csv.Error as error:
        try:  # marks inside a cell that are escaped, not doubled
            escaped = _cells(text, separator, doublequote=False, escapechar="\\")
            return list(_records(path, escaped, separator, header=header))
        except csv.Error:
            raise MaskwiseError(f"{path} is not a table: {error}") from error


def refuse_rows_as_names(records: Sequence[Mapping[str, Any]], text: str, where: str) -> None:
    """Refuse a table without a header, whose first row was taken for the names of its columns.

    Raises:
        MaskwiseError: the column of texts has a name of several words, and that of another is one
            of its values.
    """
    for name in records[0] if len(text.split()) > 1 else ():
        if name != text and any(str(record.get(name)) == name for record in records):
            what = f"the first row of {where} looks like data, not like names of columns"
            do = (
                "put a row of names above it; labels can also be given by place: "
                "FILE(text=1,label=2)"
            )
            raise MaskwiseError(what, got=f"{name!r}, which is also a value in its column", do=do)


def separator_of(text: str, *, usual: str) -> str:
    """The separator that cuts the first rows into equally many cells; the usual one where several
    do, or none.
    """
    head = text[:HEAD_CHARACTERS]
    head = head[: head.rfind("\n") + 1] if len(text) > len(head) else head
    widths: dict[str, int] = {}
    for separator in (usual, *SEPARATORS):
        try:
            rows = [
                row for row in islice(_cells(head, separator, strict=False), HEAD_ROWS) if any(row)
            ]
        except csv.Error:
            continue
        lengths = {len(row) for row in rows}
        if len(lengths) == 1 and max(lengths) > 1:
            widths.setdefault(separator, max(lengths))
    if usual in widths or not widths:
        return usual
    return max(widths, key=widths.__getitem__)


def _cells(text: str, separator: str, *, strict: bool = True, **how: Any) -> Iterator[list[str]]:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a cell may hold a long document
    quote = "'" if _begins_with(text, "'") else '"'
    return csv.reader(
        io.StringIO(text, newline=""), strict=strict, delimiter=separator, quotechar=quote, **how
    )


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n")


def _head(text: str) -> list[str]:
    """The first lines of a table."""
    return _lines(text[:HEAD_CHARACTERS])[:HEAD_ROWS]


def _begins_with(text: str, mark: str) -> bool:
    """Whether nearly all of the first rows begin with a mark."""
    lines = [line for line in _head(text) if line.strip()]
    return len(lines) > 1 and sum(line.startswith(mark) for line in lines) >= QUOTED_SHARE * len(
        lines
    )


def _is_quoted(text: str) -> bool:
    """Whether nearly every row of a table of tabs has a cell in quotation marks."""
    lines = [line for line in _head(text)[1:] if line.strip()]
    quoted = sum(
        any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in line.split("\t"))
        for line in lines
    )
    return bool(lines) and quoted >= QUOTED_SHARE * len(lines)


def _records(
    path: Path, rows: Iterator[list[str]], separator: str, *, header: bool
) -> Iterator[Record]:
    names: list[str] | None = None
    for number, cells in enumerate(rows, start=1):
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            yield {str(place): cell for place, cell in enumerate(cells, start=1)}
        elif names is None:
            names = [name.strip() for name in cells]
            names = [
                f"{name}.{n}" if (n := names[:i].count(name)) else name
                for i, name in enumerate(names)
            ]
        elif len(cells) != len(names):
            allowed = f"{len(names)} columns, as in the header"
            do = f"put cells that hold {SEPARATORS[separator]} into quotation marks"
            raise MaskwiseError(
                f"row {number} of {path} has {len(cells)} columns", allowed=allowed, do=do
            )
        else:
            yield dict(zip(names, cells, strict=True))
