"""Open files: decompress, check for UTF-8, guess what one text of a file is, and read tables.

The cells of a table are separated by commas, semicolons, tabs or bars, and may be in double
quotation marks. The separator is the one that splits each of the first rows into the same number of
cells, at least two.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

from maskwise.errors import MaskwiseError

# A few bad lines are skipped. If more than this share is bad, the file is not in UTF-8.
_MAX_BAD_SHARE = 0.35
HEAD_BYTES = 1 << 16

LARGEST_FILE = 1 << 30
"""The most bytes, after decompression, of a file that is read at once, such as a table. A small
file may decompress to a huge one."""
PART_BYTES = 1 << 24

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD_CHARACTERS = 1 << 16
HEAD_ROWS = 50
_QUOTED_CELL = re.compile(r'(^|\t)"[^\t]*"(\t|$)')
QUOTED_SHARE = 0.9
"""In a tab-separated table, cells can be quoted only if at least this share of the rows has a
quoted cell. GLUE's tables have no quoted cells, but contain lone quotation marks."""

# In a file with fewer lines, it cannot be guessed whether each line is a text.
LEAST_LINES = 8
# A file with more lines and without blank lines would be a single text if its lines were one
# wrapped text, which is too little for a study.
MANY_LINES = 100

Record = dict[str, Any]
LineKind: TypeAlias = Literal["json", "line", "block"]
"""JSON lines ("json"), or plain text: one document per line, or per block between blank lines."""


def opened(path: Path, at: int = 0) -> IO[bytes]:
    """Open a file at the byte ``at`` of its content; ``.gz`` and ``.zst`` are decompressed."""
    name = path.name.lower()
    if name.endswith(".zst"):
        import pyarrow as pa

        stream = io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        # This stream cannot seek, so the bytes before ``at`` are read and dropped.
        for start in range(0, at, HEAD_BYTES):
            stream.read(min(HEAD_BYTES, at - start))
        return stream
    if name.endswith(".gz"):
        unpacked = gzip.open(path)  # noqa: SIM115
        unpacked.seek(at)
        return cast("IO[bytes]", unpacked)
    file = path.open("rb")
    file.seek(at)
    return file


def read_whole(path: Path) -> bytes:
    """Return the content of a file that is read at once, decompressed.

    Raises:
        MaskwiseError: the content has more than ``LARGEST_FILE`` bytes. Then not more than these
            are in memory, however small the compressed file is.
    """
    parts = []
    size = 0
    with opened(path) as file:
        while part := file.read(PART_BYTES):
            size += len(part)
            if size > LARGEST_FILE:
                raise MaskwiseError(
                    f"{path} has more than {LARGEST_FILE >> 20:,} MiB of content, and this format "
                    "is read at once",
                    do="divide it, or give JSON lines or Parquet, which are read in parts",
                )
            parts.append(part)
    return b"".join(parts)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn operating system and gzip errors into a one-line error that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise MaskwiseError(
            f"cannot read {path}: {error}",
            do="check that it is complete and readable",
        ) from error


def is_utf8(text: str) -> bool:
    """Return whether a string can be written in UTF-8. A string from JSON, for example, cannot if
    it contains half a surrogate pair.
    """
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeError:
        return False


def require_utf8(text: str) -> None:
    """Raise an error if a text, for example from the command line, cannot be written in UTF-8."""
    if not isinstance(text, str):
        raise MaskwiseError("a text must be a string", got=type(text).__name__)
    if not is_utf8(text):
        raise MaskwiseError("the text is not valid UTF-8", got=ascii(text))


def refuse_unreadable(path: Path) -> None:
    """Raise a `MaskwiseError` if the first 64 KiB of a file are binary or mostly not UTF-8."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        raise MaskwiseError(
            f"{path} has NUL bytes, so it is a binary file or UTF-16 text",
            do="give UTF-8 text (convert UTF-16 first)",
        )
    # A bad byte becomes a lone surrogate, which `is_utf8` notices.
    text = head.decode("utf-8", "surrogateescape")
    lines = list(filter(str.strip, text.split("\n")))
    if len(head) == HEAD_BYTES:
        # The last line is cut, perhaps inside a character.
        lines = lines[:-1]
    bad = sum(not is_utf8(line) for line in lines)
    if bad > _MAX_BAD_SHARE * len(lines):
        raise MaskwiseError(
            f"{path} is not UTF-8 text",
            got=f"{bad} lines that are not UTF-8 among the first {len(lines)}",
            do="convert it, for example with iconv -f LATIN1 -t UTF-8",
        )


def text_per(path: Path) -> LineKind:
    """Guess from the head of a plain text file whether a text is a "line" or a "block".

    The guess is "line" if there are at least ``LEAST_LINES`` lines, none is blank, and the lines do
    not look like one wrapped text. In a wrapped text, many lines begin in lower case, and few end
    like a sentence. Of queries, logs and posts, the same is true, so ``MANY_LINES`` or more lines
    without a blank line are not taken for a wrapped text.
    """
    with damaged(path), opened(path) as file:
        head = file.read(HEAD_BYTES)
    # Blank lines separate blocks, except at the beginning and at the end of a file.
    lines = lines_of(head.decode("utf-8-sig", "ignore").strip())
    if len(head) == HEAD_BYTES:
        lines = lines[:-1]
    if len(lines) < LEAST_LINES or not all(map(str.strip, lines)):
        return "block"
    if len(lines) >= MANY_LINES:
        return "line"
    small = sum(line.lstrip()[0].islower() for line in lines)
    ends = sum(line.rstrip()[-1] in '.!?…。»”"' for line in lines)
    if small > len(lines) / 4 and ends < len(lines) / 2:
        return "block"
    return "line"


def lines_of(text: str) -> list[str]:
    """Split a text at line feeds, but not at form feeds or U+2028."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


# Tables
# -------------------------------------------------------------------------------------------


def read_table(
    text: str, path: Path, *, header: bool = True, usual: str | None = None
) -> list[Record]:
    """Read a table as records keyed by column names, or by "1", "2", … without a header.

    Args:
        text: the whole table. Without a header, rows may differ in length, as in STS-B.
        path: the file of the table, for error messages and the usual separator.
        header: whether the first row has the names of the columns.
        usual: the separator to use if several fit or none fits. By default, commas in .csv files
            and tabs in other files.

    Raises:
        MaskwiseError: a row has more or fewer cells than the header, or a quotation mark is never
            closed.

    >>> read_table('text;score\\n"rain; wind";3,5\\n', Path("a.csv"))
    [{'text': 'rain; wind', 'score': '3,5'}]
    """
    if usual is None:
        usual = "," if ".csv" in path.name.lower() else "\t"
    separator = separator_of(text, usual=usual)
    if separator == "\t" and not _is_quoted(text):
        rows = [line.split("\t") for line in lines_of(text)]
        return list(_records(path, rows, separator, header=header))
    failures = []
    # Quotation marks inside a cell are usually doubled (None), but may be escaped by a backslash.
    for escape in (None, "\\"):
        try:
            cells = _cells(text, separator, escape=escape)
            return list(_records(path, cells, separator, header=header))
        except csv.Error as error:
            failures.append(error)
    raise MaskwiseError(f"{path} is not a table: {failures[0]}") from failures[0]


def refuse_rows_as_names(records: Sequence[Mapping[str, object]], text: str, where: str) -> None:
    """Raise an error if the column names of a table look like a row of data.

    Raises:
        MaskwiseError: the name of the text column (``text``) has several words, and the name of
            another column also occurs as a value in this other column.
    """
    if len(text.split()) == 1:
        return
    for name in records[0]:
        if name != text and any(str(record.get(name)) == name for record in records):
            raise MaskwiseError(
                f"the first row of {where} looks like data, not like column names",
                got=f"the column name {name!r}, which is also a value in its column",
                do="insert a first row with column names, or give the columns by number: "
                "FILE(text=1,label=2)",
            )


def separator_of(text: str, *, usual: str) -> str:
    """Return the separator that splits all first rows into equally many cells, or ``usual``."""
    # The last row of the head may be incomplete, so it is dropped.
    head = text[:HEAD_CHARACTERS]
    if len(text) > len(head):
        head = head[: head.rfind("\n") + 1]
    widths = {}
    for separator in SEPARATORS:
        try:
            rows = list(islice(_cells(head, separator, strict=False), HEAD_ROWS))
        except csv.Error:
            continue
        lengths = {len(row) for row in rows if any(row)}
        if len(lengths) == 1 and max(lengths) > 1:
            widths[separator] = max(lengths)
    # If several separators fit, the usual one is the most likely.
    if usual in widths or not widths:
        return usual
    return max(widths, key=widths.__getitem__)


def _cells(
    text: str, separator: str, *, strict: bool = True, escape: str | None = None
) -> Iterator[list[str]]:
    # By default, csv refuses cells of more than 131,072 characters, but documents may be longer.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    file = io.StringIO(text, newline="")
    return csv.reader(
        file,
        strict=strict,
        delimiter=separator,
        doublequote=escape is None,
        escapechar=escape,
    )


def _is_quoted(text: str) -> bool:
    """Return whether nearly every row of a tab-separated table has a quoted cell."""
    head = lines_of(text[:HEAD_CHARACTERS])[1:HEAD_ROWS]
    lines = list(filter(str.strip, head))
    quoted = len(list(filter(_QUOTED_CELL.search, lines)))
    return bool(lines) and quoted >= QUOTED_SHARE * len(lines)


def _records(
    path: Path, rows: Iterable[list[str]], separator: str, *, header: bool
) -> Iterator[Record]:
    names: list[str] = []
    for number, cells in enumerate(rows, start=1):
        if not any(map(str.strip, cells)):
            continue
        if not header:
            yield {str(place): cell for place, cell in enumerate(cells, start=1)}
        elif not names:
            names = _distinct(map(str.strip, cells))
        elif len(cells) != len(names):
            raise MaskwiseError(
                f"row {number} of {path} has {len(cells)} columns",
                allowed=f"{len(names)} columns, as in the header",
                do=f"put quotation marks around cells that contain {SEPARATORS[separator]}",
            )
        else:
            yield dict(zip(names, cells))


def _distinct(names: Iterable[str]) -> list[str]:
    """Make column names distinct by a number: a, a.1, a.2."""
    seen = Counter[str]()
    distinct = []
    for name in names:
        before = seen[name]
        seen[name] += 1
        if before:
            name = f"{name}.{before}"
        distinct.append(name)
    return distinct
