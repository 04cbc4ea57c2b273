"""Records out of files and `datasets`: the part of loading that knows formats.

A reader yields, for every place in a source, either a name with what stood there or a `Skip` with
the reason. A bad line is a `Skip`; a bad file (binary, mostly not UTF-8, damaged, without the text
column) is a `MaskwiseError`. Nothing is unpickled and no code that comes with a data set is run.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias, cast

from maskwise.errors import MaskwiseError, first_line, unknown_name
from maskwise.text.tables import read_table

TEXT_ENDINGS = (".txt", ".txt.gz", ".txt.zst")
LINE_ENDINGS = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst")
TABLE_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
FASTA = (".fasta", ".fa", ".faa", ".fna", ".fasta.gz", ".fa.gz", ".faa.gz", ".fna.gz")
ENDINGS = (*TEXT_ENDINGS, *TABLE_ENDINGS, *LINE_ENDINGS, ".parquet", *FASTA)
NOT_JSON, NOT_UTF8 = "not JSON", "not valid UTF-8"
NAME_IT = "set corpus.text_field (annotate, evaluate: --text-field) to one of them"
_HEAD_BYTES = 1 << 16
# Bad lines in the head of a file: a few are skipped; more than this share mean another encoding.
_MAX_BAD_SHARE = 0.35
# Bytes: a longer line (a file without line breaks, an inflated archive) is not held in memory.
LONGEST_LINE = 1 << 24
LONG_LINE = "line of more than 16 MB"
LEAST_LINES = 8  # of fewer lines nobody can tell whether each is a text
# characters: about a million tokens, which take some 300 MB while they are read
LONGEST_TEXT = 1 << 22
NO_LETTERS = "sequence with characters that are no letters"
_LETTERS = re.compile(r"[A-Za-z]+")
_ASCII_BLANKS = " \t\n\r\v\f"

LineKind: TypeAlias = Literal["json", "line", "block"]
"""JSON lines, or plain text with a document on each line or in each block between blank lines."""


class Skip(NamedTuple):
    """A place in a source that gave no document, and why."""

    reason: str


class Fields(NamedTuple):
    """Under which names a record holds its text and its own name, and what a text is in files
    without records.

    Attributes:
        text: may be a path into nested objects, such as "article.body"; "" keeps every column.
        per: "line" or "block" (between blank lines), or "auto": see ``text_per``.
    """

    text: str = "text"
    id: str = "id"
    per: str = "auto"


Record = Skip | tuple[str, Any]
"""A name and whatever stood there: a string, or an object with fields."""


def known_ending(path: Path) -> str | None:
    """The ending by which a file is read, if it has one of `ENDINGS`."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def read_file(path: Path, name: str, fields: Fields) -> Iterator[Record]:
    """The records of one file; those without a name of their own are called "NAME#place"."""
    ending = known_ending(path) or ""
    with damaged(path):
        if ending == ".parquet":
            yield from _rows(
                parquet_rows(path, lambda columns: wanted(columns, fields, str(path))), name
            )
            return
        refuse_unreadable(path)
        with opened(path) as file:
            if ending in TABLE_ENDINGS:
                # so that its row is skipped
                text = file.read().decode("utf-8-sig", "surrogateescape")
                usual = "," if ending.startswith(".csv") else "\t"
                rows = read_table(text, path, usual=usual)
                wanted([*rows[0]] if rows else [fields.text], fields, str(path))
                yield from _rows(rows, name)
            elif ending in FASTA:
                yield from read_fasta(file, path, name)
            else:
                yield from LINE_READERS[kind_of(path, fields)](file, name)


def kind_of(path: Path, fields: Fields) -> LineKind:
    """What stands in a file of lines; of a plain text with ``fields.per`` "auto" its beginning
    tells.
    """
    if known_ending(path) not in TEXT_ENDINGS:
        return "json"
    per = text_per(path) if fields.per == "auto" else fields.per
    return "line" if per == "line" else "block"


def files_in(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that have one of the endings and are not hidden, by their names inside
    it, in order.
    """
    files = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and known_ending(path) in endings and "/." not in f"/{name}":
            files[name] = path
    return dict(sorted(files.items()))


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, inflated if its name says ``.gz`` or ``.zst``."""
    name = path.name.lower()
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstd(path))
    return cast(IO[bytes], gzip.open(path)) if name.endswith(".gz") else path.open("rb")


class _Zstd(io.RawIOBase):
    """The inflated bytes of a zstd file, which Python's own library does not read yet."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self.file, self.place = pa.input_stream(str(path), compression="zstd"), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: int = self.file.readinto(buffer)
        self.place += read
        return read

    def tell(self) -> int:
        return self.place

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn what the operating system and gzip say against reading a file into one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise MaskwiseError(
            f"cannot read {path}: {error}", do="is it complete and readable?"
        ) from error


def saved_dataset(path: Path, fields: Fields) -> Callable[[], Iterable[Record]]:
    """Opens a folder that `Dataset.save_to_disk` wrote (of several splits: train)."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # Arrow, JSON and version errors have no common base
        raise MaskwiseError(f"cannot load the data set saved in {path}: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            allowed = ", ".join(str(path / split) for split in loaded)
            raise MaskwiseError(f"{path} holds several splits, none called train", allowed=allowed)
        loaded = loaded["train"]
    rows = _with_columns(loaded, fields, str(path))
    return lambda: _rows(rows, path.name)


def hub_dataset(source: str, fields: Fields) -> Callable[[], Iterable[Record]]:
    """Opens "hf:NAME[:CONFIG[:SPLIT]]", when it is first read."""
    name, config, split = hub_parts(source)
    return lambda: _rows(
        _with_columns(load_hub(source, name, config, split=split), fields, source), name
    )


def hub_parts(source: str) -> tuple[str, str, str]:
    """NAME, CONFIG and SPLIT of a data set on the hub."""
    name, *rest = source.removeprefix("hf:").split(":")
    if not name or len(rest) > 2:
        raise MaskwiseError(
            "malformed data set name", got=source, allowed="hf:NAME, hf:NAME:CONFIG:SPLIT"
        )
    config, split = [*rest, "", ""][:2]
    return name, config, split or "train"


def load_hub(source: str, name: str, config: str, **how: Any) -> Any:
    """A data set of the hub, or one line that says why not."""
    import datasets

    try:
        return datasets.load_dataset(name, config or None, **how)
    except Exception as error:  # network, hub, builder and format errors have no common base
        raise MaskwiseError(f"cannot load data set {source!r}: {first_line(error)}") from error


def refuse_unreadable(path: Path) -> None:
    """Looks at the first 64 KiB: another encoding is no reason to skip a whole file line by line."""
    with opened(path) as file:
        head = file.read(_HEAD_BYTES)
    if b"\0" in head:
        do = "give UTF-8 text (convert UTF-16 first)"
        raise MaskwiseError(f"{path} is a binary file, or UTF-16: it has NUL bytes", do=do)
    lines = [line for line in head.split(b"\n") if line.strip()]
    if len(head) == _HEAD_BYTES:
        lines = lines[:-1]  # cut off in the middle
    bad = sum(not is_utf8(line) for line in lines)
    if bad > _MAX_BAD_SHARE * len(lines):
        do = "convert it, for example with iconv -f LATIN1 -t UTF-8"
        raise MaskwiseError(
            f"{path} is not UTF-8 text", got=f"{bad} bad of its first {len(lines)} lines", do=do
        )


def read_lines(file: IO[bytes], name: str, *, first: int = 1) -> Iterator[Record]:
    """JSON lines; ``first``: the number of the first one."""
    for number, line in _numbered(file, first):
        if isinstance(line, Skip):
            yield line
        elif line.strip(_ASCII_BLANKS):
            try:
                yield f"{name}#{number}", json.loads(line)
            except (ValueError, RecursionError):
                yield Skip(NOT_JSON)


def _numbered(file: IO[bytes], first: int = 1) -> Iterator[tuple[int, str | Skip]]:
    """The lines of a file, counted from ``first``; a `Skip` for one that is too long to be held, or
    not UTF-8.
    """
    number = first - 1
    while line := file.readline(LONGEST_LINE):
        number += 1
        text: str | Skip = Skip(LONG_LINE)
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                text = Skip(NOT_UTF8)
        while line and not line.endswith(b"\n"):  # the rest of a long line
            line = file.readline(LONGEST_LINE)
        yield number, text


def lines_of(text: str) -> list[str]:
    """The lines of a text, as they are read from files: only line feeds end one, and no form feed
    or U+2028.
    """
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def text_per(path: Path) -> str:
    """What a text is in a plain text file: a "line", or a "block" between blank lines. The head of
    the file tells.

    Lines are texts where there are at least ``LEAST_LINES`` and not one is blank, unless they look
    like one text that was wrapped: many of them begin with a small letter.
    """
    with damaged(path), opened(path) as file:
        head = file.read(_HEAD_BYTES)
    lines = lines_of(head.decode("utf-8", "ignore"))
    lines = lines[:-1] if len(head) == _HEAD_BYTES else lines
    if len(lines) < LEAST_LINES or not all(line.strip() for line in lines):
        return "block"
    small = sum(line.lstrip()[0].islower() for line in lines)
    ends = sum(line.rstrip()[-1] in '.!?…。»”"' for line in lines)
    return "block" if small > len(lines) / 4 and ends < len(lines) / 2 else "line"


def read_plain_lines(file: IO[bytes], name: str, *, first: int = 1) -> Iterator[Record]:
    """Plain text with a document on every line; ``first``: the number of the first document."""
    count = first - 1
    for _, line in _numbered(file):
        if isinstance(line, Skip):
            yield line
        elif text := line.strip():
            count += 1
            yield f"{name}#{count}", text


class PartName(str):
    """The name of one part of a document that is too long to be worked on whole.

    Attributes:
        whole: the name of the document. All parts go to the same side of a held-out split.
    """

    whole: str

    @classmethod
    def of(cls, name: str, whole: str) -> PartName:
        """The name of a part of the document ``whole``, which may be a part itself."""
        part = cls(name)
        part.whole = whole_name(whole)
        return part


def whole_name(name: str) -> str:
    """The name of the document that a document, or a part of one, belongs to.

    >>> whole_name(PartName.of("novel~2", "novel")), whole_name("novel")
    ('novel', 'novel')
    """
    return name.whole if isinstance(name, PartName) else name


def read_blocks(file: IO[bytes], name: str, *, first: int = 1) -> Iterator[Record]:
    """Plain text: a document is what stands between blank lines, or as much of it as one text may
    have.

    Args:
        first: the number of the first document.
    """
    block: list[str] = []
    count, size = first - 1, 0
    whole: str | None = None  # the name of the first part of a block that is too long
    for _, line in chain(_numbered(file), [(0, "")]):  # a blank line ends the last block
        if isinstance(line, Skip):
            yield line
            continue
        ends = not line.strip()
        if not ends:
            block.append(line.rstrip("\r\n"))
            size += len(block[-1])
        if block and (ends or size >= LONGEST_TEXT):
            count += 1
            title = f"{name}#{count}"
            if not ends:
                whole = whole or title
            yield (PartName.of(title, whole) if whole else title), "\n".join(block)
            block, size = [], 0
        if ends:
            whole = None


LINE_READERS: dict[LineKind, Callable[..., Iterator[Record]]] = {
    "json": read_lines,
    "line": read_plain_lines,
    "block": read_blocks,
}


def read_fasta(file: IO[bytes], path: Path, name: str) -> Iterator[Record]:
    """The sequences of a FASTA file, each a document (a very long one several). Gaps (-) and a
    closing * are left out.

    Raises:
        MaskwiseError: the file does not begin with a header.
    """
    number, title = 0, ""
    parts: list[str] = []
    for line in chain(file, [b">"]):  # a header ends the last sequence
        # a damaged line is no letters: its whole sequence is left out
        text = line.decode(errors="replace").strip()
        if text.startswith(">"):
            if number:
                yield _sequence(title, parts)
            number, part, size = number + 1, 1, 0
            title, parts = f"{name}#{number}", []
        elif text and not text.startswith(";"):
            if not number:
                do = "begin every sequence with a line >NAME, or call the file .txt"
                raise MaskwiseError(
                    f"{path} is no FASTA file: it has no header", got=text[:40], do=do
                )
            if size >= LONGEST_TEXT:
                yield _sequence(title, parts)
                part, size = part + 1, 0
                title, parts = PartName.of(f"{name}#{number}.{part}", title), []
            parts.append(text)
            size += len(text)


def _sequence(name: str, parts: list[str]) -> Record:
    letters = "".join(parts).replace("-", "").rstrip("*")
    return (name, letters) if not letters or _LETTERS.fullmatch(letters) else Skip(NO_LETTERS)


def parquet_rows(
    path: Path, choose: Callable[[list[str]], list[str]] | None = None, *, first: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, with all its columns or those that ``choose`` picks of their
    names.

    Args:
        first: rows to pass over; row groups that end before the first row are not read.

    Raises:
        MaskwiseError: another file, or a damaged one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        columns = choose(table.schema_arrow.names) if choose else None
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if rows <= first:
                first -= rows
                continue
            for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                yield from batch.slice(min(first, len(batch))).to_pylist()
                first = max(0, first - len(batch))
    except pa.ArrowException as error:
        what = f"{path} is not a Parquet file, or damaged: {str(error).splitlines()[0]}"
        raise MaskwiseError(what) from error


def _with_columns(rows: Any, fields: Fields, where: str) -> Any:
    """Only the columns that are read: others may be images that are slow to decode."""
    return rows.select_columns(wanted(rows.column_names, fields, where))


def wanted(columns: list[str], fields: Fields, where: str) -> list[str]:
    """The columns to be read.

    Raises:
        MaskwiseError: the text is not among them.
    """
    if not fields.text:
        return columns
    text = fields.text if fields.text in columns else fields.text.split(".")[0]
    if text not in columns:
        raise unknown_name(f"text field of {where}:", fields.text, columns, do=NAME_IT)
    return [column for column in (fields.id, text) if column in columns]


def _rows(rows: Iterable[Any], name: str) -> Iterator[Record]:
    return ((f"{name}#{number}", row) for number, row in enumerate(rows, start=1))


def is_utf8(text: str | bytes) -> bool:
    """False for bytes that do not decode, and for strings with half a surrogate pair (JSON lets
    them through)."""
    try:
        return text.isascii() or bool(text.encode() if isinstance(text, str) else text.decode())
    except UnicodeError:
        return False
