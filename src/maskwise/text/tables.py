"""Read tables, whose cells are separated by commas, semicolons, tabs or bars.

How a table is written is found first. The separator is the one that splits each of the first rows
into the same number of cells, at least two. Quotation marks inside a quoted cell are doubled or
escaped by a backslash, whichever reads the whole table with rows of one length. In a tab-separated
table whose first rows have few quoted cells, quotation marks are ordinary characters.

The rows are then read one by one, so the size of a table is not limited. The cost is that a table
with quotation marks is read twice, because only the whole table shows how they are written. The
module `csv` reads the cells, and not pandas, which reads one table in eight of odd ones differently
(docs/decisions/0021-one-reader.md).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from maskwise.errors import MaskwiseError
from maskwise.text.opening import PART_BYTES, WhenBad, damaged, open_text, split_lines

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD_CHARACTERS = 1 << 16
HEAD_ROWS = 50
_QUOTED_CELL = re.compile(r'(^|\t)"[^\t]*"(\t|$)')
QUOTED_SHARE = 0.9
"""In a tab-separated table, cells can be quoted only if at least this share of the rows has a
quoted cell. GLUE's tables have no quoted cells, but contain lone quotation marks."""
LONGEST_CELL = 1 << 28
"""The most characters of a cell, and bytes of a line. A quotation mark that is never closed begins
a cell that would hold the rest of the file."""

FieldValues = dict[str, Any]
"""An object with fields: a row of a table, or an object of JSON."""


def read_table(
    path: Path, *, header: bool = True, usual: str | None = None, bad: WhenBad = "skip"
) -> Iterator[FieldValues]:
    """Yield the rows of a table, keyed by column names, or by "1", "2", … without a header.

    Args:
        path: the file. Without a header, rows may differ in length, as in STS-B.
        header: whether the first row has the names of the columns.
        usual: the separator to use if several fit or none fits. By default, commas in .csv files
            and tabs in other files.
        bad: with "skip", bytes that are not UTF-8 become halves of surrogate pairs, so that a row
            can be used if its text has none of them.

    Raises:
        MaskwiseError: a row has more or fewer cells than the header, or a quotation mark is never
            closed; or the file cannot be read (``open_text``).
    """
    if usual is None:
        usual = "," if ".csv" in path.name.lower() else "\t"
    with damaged(path), open_text(path, bad) as file:
        head = _head(file)
        if head.startswith("sep="):
            raise MaskwiseError(
                f"{path} begins with a line for Excel, not with column names",
                got=head[:5],
                do="remove this line",
            )
        table = _Table(path, file, separator_of(head, usual=usual), header)
        try:
            if table.separator == "\t" and not _is_quoted(head):
                yield from table.records(table.split())
            else:
                yield from table.quoted(keep=bad == "raise")
        except csv.Error as error:
            raise MaskwiseError(
                f"{path} is not a table: {error}",
                do="put quotation marks around whole cells only, and double those inside a cell",
            ) from error


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
    widths = {}
    for separator in SEPARATORS:
        try:
            lines = io.StringIO(head, newline="")
            rows = list(islice(_cells(lines, separator, strict=False), HEAD_ROWS + 1))
        except csv.Error:
            continue
        # The last row of the head may be incomplete, also inside a quoted cell, so it is dropped.
        if len(rows) > HEAD_ROWS or len(text) > len(head):
            del rows[-1]
        lengths = {len(row) for row in rows if any(row)}
        if len(lengths) == 1 and max(lengths) > 1:
            widths[separator] = max(lengths)
    # If several separators fit, the usual one is the most likely.
    if usual in widths or not widths:
        return usual
    return max(widths, key=widths.__getitem__)


def _is_quoted(text: str) -> bool:
    """Return whether nearly every row of a tab-separated table has a quoted cell."""
    head = split_lines(text[:HEAD_CHARACTERS])[1:HEAD_ROWS]
    lines = list(filter(str.strip, head))
    quoted = len(list(filter(_QUOTED_CELL.search, lines)))
    return bool(lines) and quoted >= QUOTED_SHARE * len(lines)


def _head(file: IO[bytes]) -> str:
    """Return the beginning of a table: more than ``HEAD_CHARACTERS``, or the whole table."""
    # A character has at most four bytes, and the file may begin with a byte-order mark.
    most = 4 * HEAD_CHARACTERS + 16
    head = file.read(most)
    # Unless the head is the whole table, its last character may be incomplete, and is dropped.
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    return decoder.decode(head, final=len(head) < most)


def _cells(
    lines: Iterable[str], separator: str, *, strict: bool = True, escape: str | None = None
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


# Rows
# -------------------------------------------------------------------------------------------


class _ShortLines(io.BufferedIOBase):
    """The bytes of a file from its position on, in which a line that is too long is an error.

    The file stays open when this object is closed, so it can be read again.
    """

    def __init__(self, file: IO[bytes]):
        self.file = cast(io.BufferedIOBase, file)
        self.length = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        part = self.file.read1(size)
        ends = b"\n" in part or b"\r" in part
        self.length = 0 if ends else self.length + len(part)
        if self.length > LONGEST_CELL:
            raise csv.Error(f"a line has more than {LONGEST_CELL >> 20} MiB")
        return part


class _Table(NamedTuple):
    """An open table, which can be read several times."""

    path: Path
    file: IO[bytes]
    separator: str
    header: bool

    def text(self, *, ends: str) -> io.TextIOWrapper:
        """Return the lines from the beginning; ``ends`` is as ``newline`` of `open`."""
        self.file.seek(0)
        lines = cast("IO[bytes]", _ShortLines(self.file))
        # Bad bytes become surrogates, so that only the rows with bad bytes are skipped later.
        return io.TextIOWrapper(lines, "utf-8-sig", errors="surrogateescape", newline=ends)

    def split(self) -> Iterator[list[str]]:
        """Yield the cells of each row, in which quotation marks are ordinary characters."""
        for line in self.text(ends="\n"):
            yield line.removesuffix("\n").removesuffix("\r").split("\t")

    def cells(self, escape: str | None) -> Iterator[list[str]]:
        """Yield the cells of each row; ``escape`` is the mark before a quotation mark in one.

        Raises:
            csv.Error: a row cannot be read. The error names the row.
        """
        number = 0
        try:
            for cells in _cells(self.text(ends=""), self.separator, escape=escape):
                number += 1
                yield cells
        except csv.Error as error:
            what = str(error)
            if what == "unexpected end of data":
                what = "a quotation mark is never closed"
            raise csv.Error(f"row {number + 1}: {what}") from error

    def quoted(self, *, keep: bool) -> Iterable[FieldValues]:
        """Return the records of a table whose cells may be quoted.

        Quotation marks inside a cell are usually doubled (None), but may be escaped by a backslash.
        Only the whole table shows which, so it is read, and read again unless rows are kept. The
        first way that gives all rows the same length is taken. Errors are therefore found before
        the first record, except a row of a wrong length.

        Raises:
            csv.Error: the table cannot be read with either.
        """
        if not self.has_quotes():
            return self.records(self.cells(None))
        failures = []
        readable = []
        for escape in (None, "\\"):
            rows: Iterable[list[str]] = self.cells(escape)
            try:
                if keep:
                    rows = list(rows)
                if self.is_even(rows):
                    return self.records(rows if keep else self.cells(escape))
                readable.append(escape)
            except csv.Error as error:
                failures.append(error)
        if not readable:
            raise failures[0]
        # A row has the wrong length either way, which ``records`` says when it is reached.
        return self.records(self.cells(readable[0]))

    def is_even(self, rows: Iterable[list[str]]) -> bool:
        """Return whether all rows have as many cells as the header."""
        if not self.header:
            deque(rows, maxlen=0)
            return True
        lengths = {len(cells) for cells in rows if any(map(str.strip, cells))}
        return len(lengths) <= 1

    def has_quotes(self) -> bool:
        """Return whether there is a quotation mark."""
        self.file.seek(0)
        return any(b'"' in part for part in iter(partial(self.file.read, PART_BYTES), b""))

    def records(self, rows: Iterable[list[str]]) -> Iterator[FieldValues]:
        """Yield the records of the rows, except blank rows."""
        names: list[str] = []
        for number, cells in enumerate(rows, start=1):
            if not any(map(str.strip, cells)):
                continue
            if not self.header:
                yield {str(place): cell for place, cell in enumerate(cells, start=1)}
            elif not names:
                names = _distinct(map(str.strip, cells))
            elif len(cells) != len(names):
                raise MaskwiseError(
                    f"row {number} of {self.path} has {len(cells)} columns",
                    allowed=f"{len(names)} columns, as in the header",
                    do=self.advice(len(cells) < len(names)),
                )
            else:
                yield dict(zip(names, cells))

    def advice(self, too_few: bool) -> str:
        """Return what to do about a row of a wrong length."""
        separators = SEPARATORS[self.separator]
        if too_few:
            return f"complete the row; {separators} separate cells, and line breaks separate rows"
        if self.separator == "\t":
            # Quotation marks in it are ordinary characters, unless nearly all rows have them.
            return "replace tabs inside cells by spaces"
        return f"put quotation marks around cells that contain {separators}"


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
