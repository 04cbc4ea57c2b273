"""Read the records of files, and of data sets from `datasets`.

``records`` reads every file of a user: texts of a corpus and rows of a task. A corpus may have a
few bad lines, which are skipped and counted, because one of them must not stop a long job. A task
may have none, because a score on a part of a test set would be wrong. Therefore the caller says
whether a bad line is an error, and one reader per format serves both. A bad file (binary, mostly
not UTF-8, damaged, without the text column) always is.

Lines, tables and Parquet files are read in parts; an array of JSON is read at once. Readers never
unpickle, and never run code that comes with a data set.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import (
    IO,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    cast,
    overload,
)
from zipfile import BadZipFile

import numpy as np

from maskwise.errors import MaskwiseError, first_line, option, unknown_name
from maskwise.folders import in_utf8
from maskwise.text.opening import (
    HEAD_BYTES,
    LARGEST_FILE,
    LineKind,
    WhenBad,
    damaged,
    open_text,
    opened,
    read_whole,
    refuse_unreadable,
    split_lines,
    text_per,
)
from maskwise.text.tables import FieldValues, read_table
from maskwise.text.words import Ints, text_id

NOT_JSON = "not JSON"
NOT_UTF8 = "not valid UTF-8"
BINARY = "binary (NUL characters)"
NO_LETTERS = "sequence with characters that are not letters"


def name_it() -> str:
    """Say how the field of the texts is named."""
    others = f"in annotate, evaluate and export: {option('text_field')}"
    return f"set corpus.text_field to one of them ({others})"


# ``json.loads`` for strings, without its checks of types, which are slow for short lines.
_parse = json.JSONDecoder().decode
# In bytes. Longer lines, as in a file without line breaks, are skipped to save memory.
LONGEST_LINE = 1 << 24
LONG_LINE = "line of more than 16 MB"
# In characters: about a million tokens, which need about 300 MB of memory in processing.
LONGEST_TEXT = 1 << 22


class Skip(NamedTuple):
    """Yielded instead of a record that has no usable text.

    Attributes:
        reason: why the record is skipped. Skipped records are counted by reason.
        place: where in the file it is, such as "line 3"; "" if unknown.
        content: the beginning of the record, as far as it could be read.
    """

    reason: str
    place: str = ""
    content: str = ""


class RowReader(Protocol):
    """Reads rows of token ids (``token_rows.TokenRows``)."""

    def read(self, name: str, value: object) -> tuple[str, RowTokens] | Skip:
        """Return the text and the tokens of a row, whose record is called ``name`` in errors."""
        ...


class RowTokens(NamedTuple):
    """The tokens of a row of token ids, whose text is decoded (``token_rows``).

    Attributes:
        ids: (L,) int64, the tokens.
        offsets: (L, 2) int64, the offsets of the tokens in the text.
        tokenizer: the hash of their tokenizer (``pieces.tokenizer_key``).
    """

    ids: Ints
    offsets: Ints
    tokenizer: str


class FieldNames(NamedTuple):
    """Where the text of a record is, and what one document of a plain text file is.

    Attributes:
        text: the field that holds the text, or a path into nested objects, such as "article.body".
            If "", all fields are read.
        id: the field, or path, that holds the document's name, for people.
        per: "line", "block" (between blank lines) or "auto" (see ``text_per``).
        group: the field, or path, whose value all documents of a group have, such as their author;
            "" for none. Either all documents of a group are held out or none.
        rows: what reads the records of a corpus of token ids; None for texts.
    """

    text: str = "text"
    id: str = "id"
    per: str = "auto"
    group: str = ""
    rows: RowReader | None = None


ALL_FIELDS = FieldNames("")
FIELDS = ("text_field", "group_field")
"""Settings of a corpus that name fields of its records."""

Entry: TypeAlias = Skip | tuple[str, Any]
"""The name and the content of a record. The content is a string, a `Part` or, usually,
`FieldValues`; JSON may also hold other values."""


Opener: TypeAlias = Callable[[], Iterable[Entry]]
"""A function that opens the records of a source."""


class Part(NamedTuple):
    """A part of a text that is too long to be read at once.

    Attributes:
        text: the part.
        first: the id of the first part. Either all parts of a text are held out or none.
    """

    text: str
    first: int


@overload
def records(
    path: Path, fields: FieldNames = ..., *, name: str | None = ..., bad: Literal["skip"] = ...
) -> Iterator[Entry]: ...
@overload
def records(
    path: Path, fields: FieldNames = ..., *, name: str | None = ..., bad: Literal["raise"]
) -> Iterator[tuple[str, Any]]: ...
def records(
    path: Path,
    fields: FieldNames = ALL_FIELDS,
    *,
    name: str | None = None,
    bad: WhenBad = "skip",
) -> Iterator[Entry]:
    """Yield the records of a file in the format of its extension, in order.

    Args:
        path: the file; `READERS` lists the extensions.
        fields: the fields to read, and what one record of a plain text file is.
        name: records are called "NAME#NUMBER"; by default, the name of the file. In JSON lines,
            the number is the number of the line.
        bad: with "skip", a `Skip` is yielded instead of a line that cannot be read. With "raise",
            it is an error, as is a byte that is not UTF-8; text files are then read at once.

    Raises:
        MaskwiseError: the file cannot be read or has no text column; or a line, with "raise".
    """
    # Names of documents are in UTF-8, but names of files may contain other bytes.
    name = in_utf8(path.name if name is None else name).decode()
    ending = known_ending(path, READERS)
    if ending is None:
        raise MaskwiseError(f"unknown file extension of {path}", allowed=", ".join(READERS))
    with damaged(path):
        entries = READERS[ending](path, name, fields, bad)
        if bad == "skip":
            yield from entries
            return
        for entry in entries:
            if isinstance(entry, Skip):
                raise MaskwiseError(
                    f"{entry.place or 'a line'} of {path} cannot be read: {entry.reason}",
                    got=entry.content or None,
                    allowed="JSON lines" if entry.reason == NOT_JSON else None,
                )
            yield entry


def known_ending(path: Path, endings: Iterable[str] | None = None) -> str | None:
    """Return the extension if it is in ``endings`` (default: `CORPUS_ENDINGS`), else None."""
    for ending in endings or CORPUS_ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    return None


class FolderFiles(NamedTuple):
    """The files of a folder that are read as texts, and what is left out.

    Attributes:
        read: the files, keyed and sorted by relative path.
        source: whether these files are source code.
        left_out: the numbers of files that are not read, by reason, such as their extension.
    """

    read: dict[str, Path]
    source: bool
    left_out: Counter[str]


def look_in(folder: Path, endings: Sequence[str]) -> FolderFiles:
    """Choose the files of a folder, or a single file, that are read as texts.

    Hidden files are not read. A folder of source code often has a few tables, and a folder of texts
    a few scripts, so only those that have more bytes are read. ``.json`` files usually describe the
    other files, so they are read only if there are no others. Links to files are read. Links to
    folders are not followed, because they may lead back into the folder.
    """
    if folder.is_file():
        ending = known_ending(folder, endings)
        files = {folder.name: folder} if ending else {}
        return FolderFiles(files, ending in SOURCE_ENDINGS, Counter())
    kinds: dict[str, dict[str, Path]] = {"source": {}, "json": {}, "text": {}}
    left_out = Counter[str]()
    for path in folder.rglob("*"):
        ending = known_ending(path, endings)
        name = path.relative_to(folder).as_posix()
        if "/." in f"/{name}":
            # A folder .git has thousands of files that are no texts.
            if ending and path.is_file():
                left_out["hidden"] += 1
        elif not path.is_file():
            if path.is_symlink():
                left_out["linked folder" if path.is_dir() else "broken link"] += 1
        elif ending is None:
            # Python writes bytecode beside every module.
            if path.suffix != ".pyc":
                left_out[_extension(path)] += 1
        elif ending in SOURCE_ENDINGS:
            kinds["source"][name] = path
        else:
            kinds["json" if ending == ".json" else "text"][name] = path
    texts = kinds["text"] or kinds["json"]
    source = _bytes_of(kinds["source"]) > _bytes_of(texts)
    read = kinds["source"] if source else texts
    for files in kinds.values():
        if files is not read:
            left_out.update(str(known_ending(path, endings)) for path in files.values())
    return FolderFiles(dict(sorted(read.items())), source, left_out)


def _extension(path: Path) -> str:
    """Return a file's extension, together with that before a compression, such as ".jsonl.bz2"."""
    packed = path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip")
    return "".join(path.suffixes[-2 if packed else -1 :]).lower() or "no extension"


def _bytes_of(files: dict[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def unread_fields(source: str) -> dict[str, str]:
    """Return the fields of ``CorpusSettings`` that this source does not read, and why.

    >>> [[*unread_fields(name)] for name in ("texts.txt", "texts.jsonl", "folder")]
    [['text_field', 'group_field'], ['text_per'], []]
    """
    ending = known_ending(Path(source), (*CORPUS_ENDINGS, *ARRAY_ENDINGS, ".conllu", ".conllu.gz"))
    if ending in TEXT_ENDINGS:
        return dict.fromkeys(FIELDS, f"has no effect, because {source} has no fields")
    found = {}
    if ending or source.startswith(("bundled:", "hf:")):
        found["text_per"] = f"has no effect, because {source} is not plain text (.txt)"
    if ending in (*FASTA_ENDINGS, *SOURCE_ENDINGS, ".conllu", ".conllu.gz"):
        found |= dict.fromkeys(FIELDS, f"has no effect, because {source} has no fields")
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


def _lines(file: IO[bytes], longest: int) -> Iterator[tuple[str | Skip, int]]:
    """Yield each line of a file, and the offset in bytes after the line.

    Instead of a line that is too long or not UTF-8, a `Skip` is yielded. After the last line, an
    empty line is yielded, which ends the last block.
    """
    # A byte-order mark may only be at the beginning of a file.
    encoding = "utf-8-sig"
    at = 0
    text: str | Skip
    while line := file.readline(longest):
        at += len(line)
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            text = Skip(NOT_UTF8)
        if len(line) == longest and not line.endswith(b"\n"):
            text = Skip(LONG_LINE)
            # The rest of a long line is dropped.
            while line and not line.endswith(b"\n"):
                line = file.readline(longest)
                at += len(line)
        yield text, at
        encoding = "utf-8"
    yield "", at


def line_records(
    file: IO[bytes],
    name: str,
    kind: LineKind,
    *,
    longest: int | None = None,
) -> Iterator[tuple[Entry, int | None]]:
    """Yield each record of a file of lines, and the offset in bytes after the record.

    The names of records begin with ``name``. Lines of JSON are not parsed. Lines of more than
    ``longest`` bytes (default: `LONGEST_LINE`) are skipped. After a bad line inside a block, the
    offset is None, because the block continues.
    """
    lines = _lines(file, longest or LONGEST_LINE)
    if kind == "block":
        yield from _blocks(lines, name)
        return
    number = 0
    for line, at in lines:
        if isinstance(line, Skip):
            # JSON records are numbered by line, so blank and bad lines count.
            if kind == "json":
                number += 1
                line = line._replace(place=f"line {number}")
            yield line, at
            continue
        text = line.strip()
        if text:
            number += 1
            yield (f"{name}#{number}", text), at
        elif kind == "json":
            number += 1


def _blocks(
    lines: Iterator[tuple[str | Skip, int]], name: str
) -> Iterator[tuple[Entry, int | None]]:
    number = 0
    first: int | None = None
    block: list[str] = []
    size = 0
    for line, at in lines:
        if isinstance(line, Skip):
            yield line, None if block else at
            continue
        ends = not line.strip()
        if not ends:
            block.append(line.rstrip("\r\n"))
            size += len(block[-1])
        if block and (ends or size >= LONGEST_TEXT):
            number += 1
            text = "\n".join(block)
            # A block that is too long is yielded in parts.
            if not ends and first is None:
                first = text_id(text)
            yield (f"{name}#{number}", text if first is None else Part(text, first)), at
            block = []
            size = 0
        if ends:
            first = None


def _read_lines(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    kind = kind_of(path, fields)
    # With "raise", the whole file is in memory, so a long line does no harm.
    longest = LONGEST_LINE if bad == "skip" else LARGEST_FILE
    with open_text(path, bad) as file:
        entries = map(itemgetter(0), line_records(file, name, kind, longest=longest))
        yield from map(parsed, entries) if kind == "json" else entries


def parsed(entry: Entry) -> Entry:
    """Parse a record that is a line of JSON; return a `Skip` if the line is not JSON."""
    if isinstance(entry, Skip):
        return entry
    name, line = entry
    try:
        return name, _parse(line)
    except (ValueError, RecursionError):
        return Skip(NOT_JSON, f"line {name.rpartition('#')[2]}", line[:60])


def is_json_array(path: Path) -> bool:
    """Return whether a file of JSON is one array, and not JSON lines."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _read_json(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    """Read a JSON array of texts or objects, which is read at once, or JSON lines."""
    if not is_json_array(path):
        yield from _read_lines(path, name, fields, bad)
        return
    refuse_unreadable(path)
    # Its error is a ``ValueError``, too, but says more than that this is not JSON.
    content = read_whole(path)
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MaskwiseError(
            f"{path} is not JSON: {first_line(error)}",
            allowed="an array of texts or objects, or JSON lines",
        ) from None
    yield from numbered_rows(rows, name)


# ---- other files


def _read_table(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    rows = read_table(path, bad=bad)
    first = next(rows, None)
    if first is not None:
        wanted([*first], fields, str(path))
        yield from numbered_rows(chain([first], rows), name)


def _read_fasta(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    """Yield the sequences of a FASTA file in capitals, without gaps (- and .) or the final *.

    Lower case only marks repeats or unaligned regions, so letters are changed to capitals. Long
    sequences are yielded in parts. A sequence is named by its header.
    """
    number = 0
    first: int | None = None
    size = 0
    title = ""
    dropped = False
    letters: list[str] = []
    with open_text(path, bad) as file:
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
                    yield Skip(NO_LETTERS, f"sequence {title}")
                else:
                    if not header and first is None:
                        first = text_id(sequence)
                    yield title, sequence if first is None else Part(sequence, first)
                letters = []
                size = 0
            if header:
                number += 1
                first = None
                title = text[1:].strip() or f"{name}#{number}"
            else:
                letters.append(text)
                size += len(text)


def _read_source(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    """Yield a file of source code as one text, whose name is that of the file."""
    content = read_whole(path)
    if b"\0" in content:
        yield Skip(BINARY)
        return
    encoding = "utf-8-sig"
    try:
        if known_ending(path) in PYTHON_ENDINGS:
            # The first lines of a Python file may name another encoding.
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    # Python also knows encodings that are no text, such as rot13, and one that always fails.
    except (SyntaxError, LookupError, UnicodeError):
        yield Skip(NOT_UTF8)
        return
    yield name, "\n".join(split_lines(text))


def _read_arrays(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    """Yield the rows of an array of token ids; of several arrays in a file, of ``input_ids``."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            names = found.files
            key = names[0] if len(names) == 1 else fields.text
            if key not in names:
                raise unknown_name(f"array of {path}:", key, names, do=name_it())
            found = found[key]
    except MaskwiseError:
        raise
    except (ValueError, BadZipFile) as error:
        raise MaskwiseError(f"{path} is no file of arrays: {first_line(error)}") from error
    if found.ndim != 2:
        raise MaskwiseError(
            f"{path} must have rows of token ids",
            got=f"an array of {found.ndim} dimensions",
            allowed="2 dimensions, rows × tokens",
        )
    yield from numbered_rows(found, name)


def _parts_of_lines(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of a file, very long lines in parts, and whether a part continues a line."""
    continues = False
    while part := file.readline(LONGEST_LINE):
        yield part, continues
        continues = not part.endswith(b"\n")


def _read_parquet(path: Path, name: str, fields: FieldNames, bad: WhenBad) -> Iterator[Entry]:
    return numbered_rows(parquet_rows(path, fields), name)


def parquet_rows(path: Path, fields: FieldNames) -> Iterator[FieldValues]:
    """Yield the rows of a Parquet file, with the columns that hold the text and the name.

    Raises:
        MaskwiseError: the file is not Parquet, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        columns = wanted(table.schema_arrow.names, fields, str(path))
        for batch in table.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise MaskwiseError(
            f"{path} is not a Parquet file, or is damaged: {first_line(error)}",
        ) from error


def wanted(columns: list[str], fields: FieldNames, where: str) -> list[str]:
    """Return the columns to read. Others are not read, because images, say, are slow to decode.

    Raises:
        MaskwiseError: there is no text column, or no column that was named for the groups of
            documents.
    """
    # Without a text field, all columns are read to find the one with the text.
    if not fields.text:
        return columns
    text = fields.text
    if text not in columns:
        # The field may be a path into the objects of a column.
        text = text.split(".")[0]
    if text not in columns:
        raise unknown_name(f"text field of {where}:", fields.text, columns, do=name_it())
    group = fields.group
    if group not in columns:
        group = group.split(".")[0]
    if group and group not in columns:
        raise unknown_name(f"group field of {where}:", fields.group, columns)
    name = fields.id
    if name not in columns:
        name = name.split(".")[0]
    return [column for column in dict.fromkeys((name, text, group)) if column in columns]


def numbered_rows(rows: Iterable[object], name: str) -> Iterator[Entry]:
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
    return lambda: _rows_of(loaded, fields, str(path), path.name)


def _rows_of(loaded: Any, fields: FieldNames, where: str, name: str) -> Iterator[Entry]:
    columns = wanted(loaded.column_names, fields, where)
    return numbered_rows(loaded.select_columns(columns), name)


def hub_dataset(source: str, fields: FieldNames) -> Opener:
    """Return a function that loads "hf:NAME[:CONFIG[:SPLIT]]" and yields the records."""
    name, config, split = hub_parts(source)

    def read() -> Iterator[Entry]:
        return _rows_of(load_hub(source, name, config, split=split), fields, source, name)

    return read


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
ARRAY_ENDINGS = (".npy", ".npz")
TOKEN_ENDINGS = (*ARRAY_ENDINGS, *LINE_ENDINGS, ".json", ".parquet")
"""Extensions of files with token ids."""
PYTHON_ENDINGS = (".py", ".pyi", ".pyx", ".pxd")
SOURCE_ENDINGS = (
    *PYTHON_ENDINGS,
    *(".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".m", ".mm"),
    *(".java", ".kt", ".scala", ".groovy", ".cs", ".fs", ".vb", ".swift", ".dart"),
    *(".js", ".jsx", ".mjs", ".ts", ".tsx", ".vue", ".php", ".rb", ".lua", ".pl", ".pm"),
    *(".go", ".rs", ".zig", ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el"),
    *(".r", ".jl", ".f", ".f90", ".sql", ".sh", ".bash", ".ps1", ".sol", ".v", ".sv", ".vhd"),
)
"""Extensions of source code; a file is one text."""
READERS: dict[str, Callable[[Path, str, FieldNames, WhenBad], Iterator[Entry]]] = {
    **dict.fromkeys(TEXT_ENDINGS, _read_lines),
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _read_table),
    **dict.fromkeys(LINE_ENDINGS, _read_lines),
    **dict.fromkeys(JSON_ENDINGS, _read_json),
    ".parquet": _read_parquet,
    **dict.fromkeys(FASTA_ENDINGS, _read_fasta),
    **dict.fromkeys(SOURCE_ENDINGS, _read_source),
    **dict.fromkeys(ARRAY_ENDINGS, _read_arrays),
    **dict.fromkeys((".jsonlines", ".jsonlines.gz"), _read_lines),
}
"""Readers by file extension."""
CORPUS_ENDINGS = tuple(
    ending for ending in READERS if not ending.startswith((".jsonlines", *ARRAY_ENDINGS))
)
"""Extensions of corpora of texts. Arrays have none. Tasks have other names for JSON lines, which a
folder of texts ignores."""
