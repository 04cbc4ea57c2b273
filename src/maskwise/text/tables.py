"""Read tables, whose cells are separated by commas, semicolons, tabs or bars.

How a table is written shows in its first rows. The separator is the one that splits each of them
into the same number of cells, at least two. Before the first quotation mark, all ways of quoting
read the same. The rows that follow this mark show which way it is: quotation marks inside a quoted
cell are doubled or escaped by a backslash, and in a tab-separated table they may be ordinary
characters. A later row that is written in another way is an error.

The rows are read one by one, so the size of a table is not limited. The module `csv` reads the
cells, and not pandas, which reads one table in eight of odd ones differently
(docs/decisions/0021-one-reader.md).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from maskwise.base.errors import MaskwiseError
from maskwise.text.opening import opened, refuse_unreadable

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD_CHARACTERS = 1 << 16
HEAD_ROWS = 50
ESCAPES = (None, "\\")
"""What is before a quotation mark inside a quoted cell; None if the mark is doubled."""
QUOTED_SHARE = 0.9
"""In a tab-separated table, quotation marks surround cells if at least this share of the rows has
a quoted cell. GLUE's tables have no quoted cells, but contain lone quotation marks."""
LONGEST_CELL = 1 << 28
"""The most characters of a cell. A quotation mark that is never closed begins a cell that would
hold the rest of the file."""

FieldValues = dict[str, Any]
"""An object with fields: a row of a table, or an object of JSON."""


def read_table(
    path: Path, *, header: bool = True, usual: str | None = None
) -> Iterator[FieldValues]:
    """Yield the rows of a table, keyed by column names, or by "1", "2", … without a header.

    Bytes that are not UTF-8 become halves of surrogate pairs, so that a row can be used if its text
    has none of them.

    Args:
        path: the file. Without a header, rows may differ in length, as in STS-B.
        header: whether the first row has the names of the columns.
        usual: the separator to use if several fit or none fits. By default, commas in .csv files
            and tabs in other files.

    Raises:
        MaskwiseError: a row has more or fewer cells than the header, or a quotation mark is never
            closed; or the file cannot be read.
    """
    if usual is None:
        usual = "," if ".csv" in path.name.lower() else "\t"
    refuse_unreadable(path)
    with opened(path) as file:
        # A character has at most four bytes. The last one may be incomplete, and is dropped.
        head = file.read(4 * HEAD_CHARACTERS).decode("utf-8-sig", "ignore")
    if head.startswith("sep="):
        raise MaskwiseError(
            f"{path} begins with a line for Excel, not with column names",
            got=head[:5],
            do="remove this line",
        )
    separator = separator_of(head, usual=usual)
    names: list[str] = []
    number = 0
    with opened(path) as file:
        try:
            for number, cells in enumerate(_cells(file, separator), start=1):
                if not any(map(str.strip, cells)):
                    continue
                if not header:
                    yield {str(place): cell for place, cell in enumerate(cells, start=1)}
                elif not names:
                    names = _distinct(map(str.strip, cells))
                elif len(cells) == len(names):
                    yield dict(zip(names, cells))
                else:
                    raise MaskwiseError(
                        f"row {number} of {path} has {len(cells)} columns",
                        allowed=f"{len(names)} columns, as in the header",
                        do=_advice(separator, too_few=len(cells) < len(names)),
                    )
        except csv.Error as error:
            why = str(error)
            if why == "unexpected end of data":
                why = "a quotation mark is never closed"
            raise MaskwiseError(
                f"{path} is not a table: row {number + 1}: {why}",
                do="put quotation marks around whole cells only, and double those inside a cell",
            ) from error


def _advice(separator: str, *, too_few: bool) -> str:
    """Return what to do about a row of a wrong length."""
    name = SEPARATORS[separator]
    if too_few:
        return f"complete the row; {name} separate cells, and line breaks separate rows"
    if separator == "\t":
        # Quotation marks in it are ordinary characters, unless nearly all rows have them.
        return "replace tabs inside cells by spaces, or put quotation marks around all cells"
    return f"put quotation marks around cells that contain {name}"


def refuse_rows_as_names(records: Sequence[Mapping[str, object]], text: str, where: str) -> None:
    """Raise an error if the column names of a table look like a row of data.

    Raises:
        MaskwiseError: the name of the text column (``text``) has several words, and the name of
            another column also occurs as a value in this other column.
    """
    names = list(records[0]) if records else []
    if len(text.split()) == 1 or text not in names:
        return
    for name in names:
        if name != text and any(str(record.get(name)) == name for record in records):
            text_number, label_number = names.index(text) + 1, names.index(name) + 1
            raise MaskwiseError(
                f"the first row of {where} looks like data, not like column names",
                got=f"the column name {name!r}, which is also a value in its column",
                do="insert a first row with column names, or give the columns by number, "
                f"such as FILE(text={text_number},label={label_number})",
            )


# How a table is written
# -------------------------------------------------------------------------------------------


def separator_of(text: str, *, usual: str) -> str:
    """Return the separator that splits all first rows into equally many cells, or ``usual``.

    >>> separator_of('text;score\\n"rain; wind";3,5\\n', usual=",")
    ';'
    """
    head = text[:HEAD_CHARACTERS]
    for escape in ESCAPES:
        widths = {}
        for separator in SEPARATORS:
            try:
                lines = io.StringIO(head, newline="")
                found = _quoted_cells(lines, separator, escape, strict=False)
                rows = list(islice(found, HEAD_ROWS + 1))
            except csv.Error:
                continue
            # The last row of the head may be incomplete, also inside a quoted cell, so it is
            # dropped.
            if len(rows) > HEAD_ROWS or len(text) > len(head):
                del rows[-1]
            lengths = {len(row) for row in rows if any(row)}
            if len(lengths) == 1 and max(lengths) > 1:
                widths[separator] = max(lengths)
        # If several separators fit, the usual one is the most likely.
        if usual in widths:
            return usual
        if widths:
            return max(widths, key=widths.__getitem__)
    return usual


def _cells(file: Any, separator: str) -> Iterator[list[str]]:
    """Yield the cells of each row of an open file."""
    # Where marks are ordinary characters, a lone carriage return is one, too.
    ends = "\n" if separator == "\t" else ""
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=ends)
    # A line that is too long is cut, so that its memory is limited, and then refused.
    lines = iter(partial(text.readline, LONGEST_CELL + 1), "")
    before = 0
    width = 0
    for line in lines:
        if '"' in line:
            break
        cells = _split(line, separator)
        if not width and line.strip():
            width = len(cells)
        before += 1
        yield cells
    else:
        return
    ahead = [line]
    size = len(line)
    while size < HEAD_CHARACTERS and (line := next(lines, "")):
        ahead.append(line)
        size += len(line)
    whole = size < HEAD_CHARACTERS
    rows = chain(ahead, lines)
    if separator == "\t" and not _are_quotes(ahead, before, width, whole):
        for line in rows:
            yield _split(line, separator)
    else:
        yield from _quoted_cells(rows, separator, _escape(ahead, separator, width, whole))


def _split(line: str, separator: str) -> list[str]:
    """Return the cells of a line in which quotation marks are ordinary characters."""
    if len(line) > LONGEST_CELL:
        raise csv.Error(f"a line has more than {LONGEST_CELL:,} characters")
    return line.removesuffix("\n").removesuffix("\r").split(separator)


def _quoted_cells(
    lines: Iterable[str], separator: str, escape: str | None, *, strict: bool = True
) -> Iterator[list[str]]:
    # By default, csv refuses cells of more than 131,072 characters, but documents may be longer.
    csv.field_size_limit(max(LONGEST_CELL, csv.field_size_limit()))
    return csv.reader(
        lines,
        strict=strict,
        delimiter=separator,
        doublequote=escape is None,
        escapechar=escape,
    )


def _escape(ahead: Sequence[str], separator: str, width: int, whole: bool) -> str | None:
    """Return what is before a quotation mark inside a cell: the first of `ESCAPES` by which all
    rows have the same number of cells, or else the first by which they can be read.

    Args:
        ahead: the lines from the first quotation mark on.
        width: the number of cells in the rows before; 0 if there are none.
        whole: whether no line follows.
    """
    readable = []
    for escape in ESCAPES:
        rows: list[list[str]] = []
        try:
            rows.extend(_quoted_cells(ahead, separator, escape))
        except csv.Error as error:
            # The last cell may go on behind these lines.
            if whole or str(error) != "unexpected end of data":
                continue
        widths = {len(cells) for cells in rows if any(map(str.strip, cells))}
        if len(widths | {width} - {0}) <= 1:
            return escape
        readable.append(escape)
    return readable[0] if readable else None


def _are_quotes(ahead: Sequence[str], before: int, width: int, whole: bool) -> bool:
    """Return whether quotation marks in a tab-separated table surround cells.

    They do if nearly every row has a quoted cell. They also do if each quoted cell needs its marks,
    because a mark inside is doubled, or because all rows have the same length only with them.

    Args:
        ahead: the lines from the first quotation mark on.
        before: the number of rows before them, of which the first has the names of the columns.
        width: as for ``_escape``.
        whole: whether no line follows. Otherwise, the last cell may go on behind these lines.
    """
    # A quoted cell begins and ends at the edge of a cell; a mark inside is doubled. ``*+`` gives
    # nothing back, so that a doubled mark never ends a cell.
    end = r'"(?=[\t\n]|\r\n|\Z)' if whole else r'(?:"(?=[\t\n]|\r\n)|\Z)'
    cell = re.compile(rf'(?:(?<=[\t\n])|\A)"((?:[^"]|"")*+){end}')
    text = "".join(ahead)
    quoted = cell.findall(text)
    # A NUL, which no table has, stands for each quoted cell, so that line breaks in it are gone.
    rest = cell.sub("\0", text)
    rows = [row for row in rest.split("\n") if row.strip()]
    with_quotes = sum("\0" in row for row in rows)
    if with_quotes >= QUOTED_SHARE * (len(rows) + max(before - 1, 0)):
        return True
    if '"' in rest:
        return False
    widths = {line.count("\t") + 1 for line in ahead if line.strip()} | {width} - {0}
    has_doubled = any('""' in inside for inside in quoted)
    # Marks around a cell without tabs, line breaks or marks could as well belong to its text.
    each_needs_them = all(re.search(r'[\t\n"]', inside) for inside in quoted)
    return (has_doubled or len(widths) > 1) and each_needs_them


def _distinct(names: Iterable[str]) -> list[str]:
    """Make column names distinct by a number: a, a.1, a.2. Names that are distinct are kept."""
    given = list(names)
    known = set(given)
    seen = Counter[str]()
    # The keys of a dict keep their order.
    distinct: dict[str, None] = {}
    for name in given:
        new = name
        # A table may have a column a.1 beside two columns a.
        while new in distinct or (new != name and new in known):
            seen[name] += 1
            new = f"{name}.{seen[name]}"
        distinct[new] = None
    return [*distinct]
