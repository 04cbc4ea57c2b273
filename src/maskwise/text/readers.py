"""Read the records of corpus files, and of data sets from `datasets`.

A reader yields the name and content of each record, or a `Skip` for a bad line. A bad file (binary,
mostly not UTF-8, damaged, without the text column) raises a `MaskwiseError`. Readers never
unpickle, and never run code that comes with a data set.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias, cast

from maskwise.errors import MaskwiseError, first_line, unknown_name
from maskwise.folders import in_utf8
from maskwise.text.opening import (
    HEAD_BYTES,
    LineKind,
    damaged,
    opened,
    read_table,
    read_whole,
    refuse_unreadable,
    text_per,
)

NOT_JSON = "not JSON"
NOT_UTF8 = "not valid UTF-8"
NO_LETTERS = "sequence with characters that are not letters"
NAME_IT = "set corpus.text_field to one of them (in annotate and evaluate: --text-field)"
# In bytes. Longer lines, as in a file without line breaks, are skipped to save memory.
LONGEST_LINE = 1 << 24
LONG_LINE = "line of more than 16 MB"
# In characters: about a million tokens, which need about 300 MB of memory in processing.
LONGEST_TEXT = 1 << 22


class Skip(NamedTuple):
    """Yielded instead of a record that has no usable text, with the reason."""

    reason: str


class FieldNames(NamedTuple):
    """Where the text of a record is, and what one document of a plain text file is.

    Attributes:
        text: the field that holds the text, or a path into nested objects, such as "article.body".
            If "", all fields are read.
        id: the field that holds the document's name.
        per: "line", "block" (between blank lines) or "auto" (see ``text_per``).
    """

    text: str = "text"
    id: str = "id"
    per: str = "auto"


Record = Skip | tuple[str, Any]
"""The name and the content of a record; the content is a string or an object with fields."""


class ReadPosition(NamedTuple):
    """A position between two records of a source, from which reading can resume.

    Attributes:
        at: for a file of lines, the offset in decompressed bytes; for a Parquet file, the number of
            the row; for an `IterableDataset`, its state.
        records: the number of records before this place.
        whole: the name of the document that continues here; None if a new document begins.
    """

    at: Any = 0
    records: int = 0
    whole: str | None = None


BEGINNING = ReadPosition()


Opener: TypeAlias = Callable[[], Iterable[Record]]
"""A function that opens the records of a source."""


class PartName(str):
    """The name of one part of a document that was too long and therefore split.

    Attributes:
        whole: the name of the document. Either all of its parts are held out or none.
    """

    whole: str

    @classmethod
    def of(cls, name: str, whole: str) -> PartName:
        """Name a part of a document. ``whole`` is the document's name or another part's name."""
        part = cls(name)
        part.whole = whole_name(whole)
        return part


def whole_name(name: str) -> str:
    """Return the name of the whole document, from its name or the name of one of its parts.

    >>> whole_name(PartName.of("novel~2", "novel")), whole_name("novel")
    ('novel', 'novel')
    """
    return name.whole if isinstance(name, PartName) else name


def read_file(path: Path, name: str, fields: FieldNames) -> Iterator[Record]:
    """Yield the records of one file; records without a name are called "NAME#NUMBER"."""
    # Names of documents are in UTF-8, but names of files may contain other bytes.
    name = in_utf8(name).decode()
    with damaged(path):
        yield from READERS[known_ending(path) or ""](path, name, fields)


def known_ending(path: Path, endings: Iterable[str] | None = None) -> str | None:
    """Return the file extension if it is in ``endings`` (default: in `READERS`), else None."""
    for ending in endings or READERS:
        if path.name.lower().endswith(ending):
            return ending
    return None


def files_in(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Return the visible files of a folder, or a single file, keyed and sorted by relative path.

    In a folder, ``.json`` files usually describe the other files, so they are returned only if
    there are no others.
    """
    files = {}
    if folder.is_file():
        if known_ending(folder) in endings:
            files[folder.name] = folder
        return files
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and known_ending(path) in endings and "/." not in f"/{name}":
            files[name] = path
    texts = {name: path for name, path in files.items() if known_ending(path) != ".json"}
    return dict(sorted((texts or files).items()))


def unread_fields(source: str) -> dict[str, str]:
    """Return the fields of ``CorpusSettings`` that this source does not read, and why.

    >>> unread_fields("texts.txt"), [*unread_fields("texts.jsonl")], unread_fields("folder")
    ({'text_field': 'has no effect, because texts.txt has no fields'}, ['text_per'], {})
    """
    ending = known_ending(Path(source), (*READERS, ".conllu", ".conllu.gz"))
    if ending in TEXT_ENDINGS:
        return {"text_field": f"has no effect, because {source} has no fields"}
    found = {}
    if ending or source.startswith(("bundled:", "hf:")):
        found["text_per"] = f"has no effect, because {source} is not plain text (.txt)"
    if ending in (*FASTA_ENDINGS, ".conllu", ".conllu.gz"):
        found["text_field"] = f"has no effect, because {source} has no fields"
    return found


def refuse_fields(source: object, **given: str) -> None:
    """Raise ``MaskwiseError`` if somebody gives a field that this source does not read."""
    if not isinstance(source, str | Path):
        return
    unread = unread_fields(str(source))
    usual = {"text_field": FieldNames().text, "text_per": FieldNames().per}
    for name, value in given.items():
        if name in unread and value != usual[name]:
            option = f"--{name.replace('_', '-')}"
            raise MaskwiseError(f"{name} {unread[name]}", got=value, do=f"leave {option} out")


# ---- files of lines


def kind_of(path: Path, fields: FieldNames) -> LineKind:
    """Return the format of a file that consists of lines."""
    if known_ending(path) not in TEXT_ENDINGS:
        return "json"
    if fields.per == "auto":
        return text_per(path)
    return cast(LineKind, fields.per)


def _lines(file: IO[bytes], at: int) -> Iterator[tuple[str | Skip, int]]:
    """Yield each line of a file, and the offset after the line; ``at`` is the current offset.

    Instead of a line that is too long or not UTF-8, a `Skip` is yielded. After the last line, an
    empty line is yielded, which ends the last block.
    """
    # A byte-order mark may only be at the beginning of a file.
    encoding = "utf-8" if at else "utf-8-sig"
    while line := file.readline(LONGEST_LINE):
        at += len(line)
        text: str | Skip = Skip(LONG_LINE)
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError:
                text = Skip(NOT_UTF8)
        # The rest of a long line is dropped.
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
            at += len(line)
        yield text, at
        encoding = "utf-8"
    yield "", at


def line_records(
    file: IO[bytes], name: str, kind: LineKind, place: ReadPosition = BEGINNING
) -> Iterator[tuple[Record, ReadPosition | None]]:
    """Yield each record of a file of lines, and the place after the record.

    The file is open at ``place``, and the names of records begin with ``name``. Lines of JSON are
    not parsed. After a bad line inside a block, the place is None, because reading cannot resume
    there.
    """
    lines = _lines(file, place.at)
    if kind == "block":
        yield from _blocks(lines, name, place)
        return
    number = place.records
    for line, at in lines:
        text = "" if isinstance(line, Skip) else line.strip()
        # JSON records are numbered by line, so blank and bad lines count.
        if text or kind == "json":
            number += 1
        if isinstance(line, Skip):
            yield line, ReadPosition(at, number)
        elif text:
            yield (f"{name}#{number}", text), ReadPosition(at, number)


def _blocks(
    lines: Iterator[tuple[str | Skip, int]], name: str, place: ReadPosition
) -> Iterator[tuple[Record, ReadPosition | None]]:
    _, number, whole = place
    block: list[str] = []
    size = 0
    for line, at in lines:
        if isinstance(line, Skip):
            after = None
            # Resuming inside a block would lose the lines that have already been read.
            if not block:
                after = ReadPosition(at, number, whole)
            yield line, after
            continue
        ends = not line.strip()
        if not ends:
            block.append(line.rstrip("\r\n"))
            size += len(block[-1])
        if block and (ends or size >= LONGEST_TEXT):
            number += 1
            title = f"{name}#{number}"
            # A block that is too long is yielded in parts. The name of the first part is ``whole``.
            if not ends:
                whole = whole or title
            if whole:
                title = PartName.of(title, whole)
            if ends:
                whole = None
            yield (title, "\n".join(block)), ReadPosition(at, number, whole)
            block = []
            size = 0
        elif ends:
            whole = None


def _read_lines(path: Path, name: str, fields: FieldNames) -> Iterator[Record]:
    refuse_unreadable(path)
    kind = kind_of(path, fields)
    with opened(path) as file:
        for record, _ in line_records(file, name, kind):
            if kind == "json":
                record = parsed(record)
            yield record


def is_json_array(path: Path) -> bool:
    """Return whether a file of JSON is one array, and not JSON lines."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _read_json(path: Path, name: str, fields: FieldNames) -> Iterator[Record]:
    """Read a JSON array of texts or objects, which is read at once, or JSON lines."""
    refuse_unreadable(path)
    if not is_json_array(path):
        yield from _read_lines(path, name, fields)
        return
    try:
        rows = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise MaskwiseError(
            f"{path} is not JSON: {first_line(error)}",
            allowed="an array of texts or objects, or JSON lines",
        ) from None
    yield from numbered_rows(rows, name)


def parsed(record: Record) -> Record:
    """Parse a record that is a line of JSON; return a `Skip` if the line is not JSON."""
    if isinstance(record, Skip):
        return record
    name, line = record
    try:
        return name, json.loads(line)
    except (ValueError, RecursionError):
        return Skip(NOT_JSON)


# ---- other files


def _read_table(path: Path, name: str, fields: FieldNames) -> Iterator[Record]:
    refuse_unreadable(path)
    # Bad bytes become surrogates, so that only the rows with bad bytes are skipped later.
    text = read_whole(path).decode("utf-8-sig", "surrogateescape")
    rows = read_table(text, path)
    if rows:
        wanted([*rows[0]], fields, str(path))
    return numbered_rows(rows, name)


def _read_fasta(path: Path, name: str, fields: FieldNames) -> Iterator[Record]:
    """Yield the sequences of a FASTA file in capitals, without gaps (- and .) or the final *.

    Lower case only marks repeats or unaligned regions, so letters are changed to capitals. Long
    sequences are split. A sequence is named by its header and not by its file. Masks and the
    held-out split are computed from names, so they stay the same in another file.
    """
    refuse_unreadable(path)
    number = 0
    part = 0
    size = 0
    title = ""
    dropped = False
    letters: list[str] = []
    with opened(path) as file:
        # A sequence is yielded at the next header, so an extra header is added after the last one.
        for line, continues in chain(_parts_of_lines(file), [(b">", False)]):
            # Bad bytes become characters that are not letters, so that the sequence is skipped.
            text = line.decode(errors="replace").strip().lstrip("\ufeff")
            header = text.startswith(">") and not continues
            if not continues:
                # The rest of a very long header or comment is dropped.
                dropped = header or text.startswith(";")
            if not text or text.startswith(";") or (continues and dropped):
                continue
            if not header and not number:
                raise MaskwiseError(
                    f"{path} is not a FASTA file: it has no header",
                    got=text[:40],
                    do="begin every sequence with a line >NAME, or rename the file to .txt",
                )
            if number and (header or size >= LONGEST_TEXT):
                sequence = re.sub("[-.]", "", "".join(letters)).rstrip("*").upper()
                if re.search("[^A-Za-z]", sequence):
                    yield Skip(NO_LETTERS)
                else:
                    yield title, sequence
                letters = []
                size = 0
                part += 1
                title = PartName.of(f"{whole_name(title)}.{part}", title)
            if header:
                number += 1
                part = 1
                title = text[1:].strip() or f"{name}#{number}"
            else:
                letters.append(text)
                size += len(text)


def _parts_of_lines(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of a file, very long lines in parts, and whether a part continues a line."""
    continues = False
    while part := file.readline(LONGEST_LINE):
        yield part, continues
        continues = not part.endswith(b"\n")


def _read_parquet(path: Path, name: str, fields: FieldNames) -> Iterator[Record]:
    return numbered_rows(parquet_rows(path, fields), name)


def parquet_rows(
    path: Path, fields: FieldNames | None = None, *, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, with all columns or only those of ``fields``.

    Args:
        path: the file.
        fields: the columns that hold the text and the name.
        first: the number of the row to begin with. Row groups before this row are not read.

    Raises:
        MaskwiseError: the file is not Parquet, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        columns = None
        if fields:
            columns = wanted(table.schema_arrow.names, fields, str(path))
        # Row groups are read one by one, so the groups before the first row can be skipped.
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if rows <= first:
                first -= rows
                continue
            for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                yield from batch.slice(min(first, len(batch))).to_pylist()
                first = max(0, first - len(batch))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise MaskwiseError(
            f"{path} is not a Parquet file, or is damaged: {first_line(error)}",
        ) from error


def wanted(columns: list[str], fields: FieldNames, where: str) -> list[str]:
    """Return the columns to read. Others are not read, because images, say, are slow to decode.

    Raises:
        MaskwiseError: there is no text column.
    """
    # Without a text field, all columns are read to find the one with the text.
    if not fields.text:
        return columns
    text = fields.text
    if text not in columns:
        # The field may be a path into the objects of a column.
        text = text.split(".")[0]
    if text not in columns:
        raise unknown_name(f"text field of {where}:", fields.text, columns, do=NAME_IT)
    return [column for column in (fields.id, text) if column in columns]


def numbered_rows(rows: Iterable[object], name: str) -> Iterator[Record]:
    """Yield rows under the names "NAME#1", "NAME#2", …."""
    for number, row in enumerate(rows, start=1):
        yield f"{name}#{number}", row


# ---- data sets for the library `datasets`, saved in a folder or on the hub


def saved_dataset(path: Path, fields: FieldNames) -> Opener:
    """Open a folder that `save_to_disk` wrote; if it has several splits, open "train"."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        # Arrow, JSON and version errors have no common base class.
        raise MaskwiseError(f"cannot load the data set saved in {path}: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise MaskwiseError(
                f"{path} has several splits, but none is called train",
                allowed=", ".join(str(path / split) for split in loaded),
            )
        loaded = loaded["train"]
    rows = loaded.select_columns(wanted(loaded.column_names, fields, str(path)))
    return lambda: numbered_rows(rows, path.name)


def hub_dataset(source: str, fields: FieldNames) -> Opener:
    """Return a function that loads "hf:NAME[:CONFIG[:SPLIT]]" and yields the records."""
    name, config, split = hub_parts(source)

    def records() -> Iterator[Record]:
        loaded = load_hub(source, name, config, split=split)
        columns = wanted(loaded.column_names, fields, source)
        return numbered_rows(loaded.select_columns(columns), name)

    return records


def hub_parts(source: str) -> tuple[str, str, str]:
    """Split "hf:NAME:CONFIG:SPLIT"; the split is "train" by default."""
    name, config, split, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    if not name or any(rest):
        raise MaskwiseError(
            "malformed data set name", got=source, allowed="hf:NAME, hf:NAME:CONFIG:SPLIT"
        )
    return name, config, split or "train"


def load_hub(source: str, name: str, config: str, **how: object) -> Any:
    """Load a data set from the hub, or raise a one-line error."""
    import datasets

    try:
        return datasets.load_dataset(name, config or None, **how)
    except Exception as error:
        # Network, hub, builder and format errors have no common base class.
        raise MaskwiseError(f"cannot load data set {source!r}: {first_line(error)}") from error


TEXT_ENDINGS = (".txt", ".txt.gz", ".txt.zst")
FASTA_ENDINGS = (".fasta", ".fa", ".faa", ".fna", ".fasta.gz", ".fa.gz", ".faa.gz", ".fna.gz")
LINE_ENDINGS = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst")
JSON_ENDINGS = (".json", ".json.gz")
READERS: dict[str, Callable[[Path, str, FieldNames], Iterator[Record]]] = {
    **dict.fromkeys(TEXT_ENDINGS, _read_lines),
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _read_table),
    **dict.fromkeys(LINE_ENDINGS, _read_lines),
    **dict.fromkeys(JSON_ENDINGS, _read_json),
    ".parquet": _read_parquet,
    **dict.fromkeys(FASTA_ENDINGS, _read_fasta),
}
"""Readers by file extension."""
