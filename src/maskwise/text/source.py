"""Read records: one way for texts, labels and streams, from files, folders, lists and data sets.

A `Shard` is a file, a list, or a part of a data set, and its records are read in order. A corpus
may have a few bad lines: a `Skip` takes the place of each and is counted, because one of them must
not stop a long job. A task may have none, because a score on a part of a test set would be wrong:
``read_records`` raises an error instead. A bad file (binary, mostly not UTF-8, damaged, without the
text column) always is an error.

Lines, tables and Parquet files are read in parts; other JSON and .npz files are read at once.
Readers never unpickle, and never run code that comes with a data set.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias
from zipfile import BadZipFile

import numpy as np

from maskwise.base.errors import (
    MaskwiseError,
    counted,
    first_line,
    option,
    require_known,
    unknown_name,
)
from maskwise.base.folders import (
    ARRAYS,
    FASTA,
    OBJECTS,
    PLAIN,
    SENTENCES,
    TABLES,
    bundled_file,
    in_utf8,
)
from maskwise.base.specs import user_path
from maskwise.text.conll import tagged_sentences
from maskwise.text.opening import (
    HEAD_BYTES,
    LONGEST_LINE,
    Skip,
    damaged,
    lines,
    opened,
    packing_of,
    read_text,
    read_whole,
    refuse_unreadable,
    split_lines,
    text_per,
)
from maskwise.text.tables import FieldValues, read_table
from maskwise.text.words import Ints, text_id

WORLDS = tuple(f"world-{seed}" for seed in range(12))
"""The bundled worlds of scripts/worlds.py: texts about invented people, for whom the best masking
policy is known. NAME-questions has the questions about a world's people."""
BUNDLED = (
    "banking77",
    "clinc150",
    "echoes",
    "families",
    "trivia",
    "ud_ewt_pos",
    "wikigold",
    "wikipedia",
    "wnut17",
    *WORLDS,
    *(f"{world}-questions" for world in WORLDS),
)
MORE_WORLDS = "write files by scripts/worlds.py and name them, such as worlds/{seed}/corpus.jsonl"
UNNAMED = "the list of documents"
"""Name of a corpus that is given as a list."""
TOKENS = "for token ids, set corpus.tokens to the tokenizer that made them (docs/data.md)"

AS_LINES = """write the texts as JSON lines, such as {"text": "It rained."}, into a file .jsonl"""

NOT_JSON = "not JSON"
NOT_UTF8 = "not valid UTF-8"
BINARY = "binary (NUL characters)"
NO_LETTERS = "sequence with characters that are not letters"
# In characters: about a million tokens, which need about 300 MB of memory in processing.
LONGEST_TEXT = 1 << 22
PROBES = 16
PROBE_BYTES = 1 << 12
"""A large file is recognised by a hash of `PROBES` parts of `PROBE_BYTES` bytes each."""

# ``json.loads`` for strings, without its checks of types, which are slow for short lines.
_parse = json.JSONDecoder().decode


def name_it(field: str | None = None) -> str:
    """Say how the field of the texts is named: this one, or one of those that the message lists."""
    others = f"in annotate, evaluate and export: {option('text_field')}"
    return (
        f"set corpus.text_field{' to one of them' if field is None else f'={field!r}'} ({others})"
    )


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
        may_differ: whether the text is looked for if no field is called ``text``.
    """

    text: str = "text"
    id: str = "id"
    per: str = "auto"
    group: str = ""
    rows: RowReader | None = None
    may_differ: bool = False


ALL_FIELDS = FieldNames("")
FIELDS = ("text_field", "group_field")
"""Settings of a corpus that name fields of its records."""


class Part(NamedTuple):
    """A part of a text that is too long to be read at once.

    Attributes:
        text: the part.
        first: the id of the first part. Either all parts of a text are held out or none.
    """

    text: str
    first: int


Entry: TypeAlias = tuple[int, Any, int | None]
"""A record: its number in the source, its content, and the number of bytes up to its end.

In JSON lines, the number is that of the line; a file that is one text has the number 0. The content
is a string, a `Part`, a `Skip`, the bytes of a line of JSON that is parsed later (``parsed``) or,
usually, `FieldValues`; JSON may also hold other values. The number of bytes is None if no file of
lines is read, or if the record is in the middle of a line.
"""
Reader: TypeAlias = Callable[[Path, FieldNames], Iterator[Entry]]


# Fields of records
# -------------------------------------------------------------------------------------------


def inside(record: Mapping[str, object], field: str) -> Any:
    """Return the value of a field, or of a path into nested objects; None if it is missing.

    >>> inside({"article": {"body": "It rained."}}, "article.body")
    'It rained.'
    """
    if field in record or "." not in field:
        return record.get(field)
    first, _, rest = field.partition(".")
    inner = record.get(first)
    if not isinstance(inner, Mapping):
        return None
    return inside(inner, rest)


def paths(record: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of a record's fields, each followed by the paths to its nested fields.

    >>> [*paths({"id": 1, "article": {"body": "It rained."}})]
    ['id', 'article', 'article.body']
    """
    for path, _ in fields_and_values(record):
        yield path


def fields_and_values(record: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the paths of a record's fields, as ``paths`` does, and their values."""
    for name, value in record.items():
        yield str(name), value
        if isinstance(value, Mapping):
            for path, inner in fields_and_values(value):
                yield f"{name}.{path}", inner


def wanted(columns: list[str], fields: FieldNames, where: str) -> list[str]:
    """Return the columns to read. Others are not read, because images, say, are slow to decode.

    Raises:
        MaskwiseError: there is no text column, or no column that was named for the groups of
            documents.
    """
    # Without a text field, all columns are read to find the one with the text.
    if not fields.text or (fields.may_differ and fields.text not in columns):
        return columns
    # A field may be a path into the objects of a column.
    name, text, group = (
        field if field in columns else field.split(".")[0]
        for field in (fields.id, fields.text, fields.group)
    )
    if text not in columns:
        raise unknown_name(f"text field of {where}:", fields.text, columns, do=name_it())
    if group and group not in columns:
        raise unknown_name(f"group field of {where}:", fields.group, columns)
    return [column for column in dict.fromkeys((name, text, group)) if column in columns]


# Formats
# -------------------------------------------------------------------------------------------


def _numbered(rows: Iterable[object]) -> Iterator[Entry]:
    return ((number, row, None) for number, row in enumerate(rows, start=1))


def _plain(path: Path, fields: FieldNames) -> Iterator[Entry]:
    """Yield the lines of plain text, or its blocks between blank lines."""
    per = text_per(path) if fields.per == "auto" else fields.per
    if per == "block":
        yield from _blocks(path)
        return
    number = 0
    for line, at in lines(path):
        text = _decoded(line)
        if isinstance(text, Skip):
            yield number, text, at
        elif text := text.strip():
            number += 1
            yield number, text, at


def _decoded(line: bytes | Skip) -> str | Skip:
    if isinstance(line, Skip):
        return line
    try:
        return line.decode()
    except UnicodeDecodeError:
        return Skip(NOT_UTF8)


def _blocks(path: Path) -> Iterator[Entry]:
    number = 0
    first: int | None = None
    block: list[str] = []
    size = 0
    # The end of the last record that is complete. A bad line does not end a block.
    end: int | None = 0
    at: int | None
    for line, at in chain(lines(path), [(b"", None)]):
        text = _decoded(line)
        if isinstance(text, Skip):
            end = end if block else at
            yield number, text, end
            continue
        ends = not text.strip()
        if not ends:
            block.append(text.rstrip("\r\n"))
            size += len(block[-1])
        if block and (ends or size >= LONGEST_TEXT):
            number += 1
            end = at
            whole = "\n".join(block)
            # A block that is too long is yielded in parts.
            if not ends and first is None:
                first = text_id(whole)
            yield number, whole if first is None else Part(whole, first), end
            block = []
            size = 0
        if ends:
            first = None


def _json_lines(path: Path, fields: FieldNames) -> Iterator[Entry]:
    # Blank and bad lines count.
    for number, (line, at) in enumerate(lines(path), start=1):
        if isinstance(line, Skip):
            yield number, line._replace(place=f"line {number}"), at
        elif line and not line.isspace():
            yield number, line, at


def parsed(line: bytes, number: int) -> Any:
    """Return the value of a line of JSON, or a `Skip` if there is none."""
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        return Skip(NOT_UTF8, f"line {number}")
    try:
        return _parse(text)
    except (ValueError, RecursionError):
        return Skip(NOT_JSON, f"line {number}", text[:60])


def _json(path: Path, fields: FieldNames) -> Iterator[Entry]:
    """Yield the items of an array, the records in an object such as SQuAD's, or JSON lines.

    An array and an object are read at once.
    """
    refuse_unreadable(path)
    with opened(path) as file:
        every = iter(partial(file.readline, LONGEST_LINE), b"")
        line = next(filter(bytes.strip, every), b"").removeprefix(codecs.BOM_UTF8)
        more = file.read(HEAD_BYTES).strip()
    first = line.strip()
    is_array = first.startswith(b"[")
    # A line that is cut at the limit ends anywhere.
    is_object = first.endswith(b"}") and line.endswith(b"\n")
    if not is_array and (not first.startswith(b"{") or (more and is_object)):
        return _json_lines(path, fields)
    # Its error is a ``ValueError``, too, but says more than that this is not JSON.
    content = read_whole(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        if not is_array:
            return _json_lines(path, fields)
        raise MaskwiseError(
            f"{path} is not JSON: {first_line(error)}",
            allowed="an array of texts or objects, or JSON lines",
        ) from None
    return _numbered(value if is_array else _records_in(value, path, fields, bool(more)))


def _records_in(
    whole: FieldValues, path: Path, fields: FieldNames, several_lines: bool
) -> list[FieldValues]:
    """Return the records in an object: those of SQuAD's or TriviaQA's JSON, or its values."""
    if fields.text and inside(whole, fields.text) is not None:
        return [whole]
    if isinstance(whole.get("data"), list):
        return _squad(whole["data"], path)
    # TriviaQA's key is "Data", with a capital letter.
    values = whole.get("Data")
    if not isinstance(values, list) and len(whole) > 1:
        values = list(whole.values())
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        if values and all(key.isdecimal() for value in values for key in value):
            raise MaskwiseError(
                f"{path} has an object for each column, and none for each row",
                got=", ".join(whole),
                do="write it again, such as with pandas' to_json(orient='records')",
            )
        return values
    # JSON lines with one record have one line.
    if several_lines:
        raise MaskwiseError(
            f"{path} is one JSON object",
            got=f"an object with {', '.join(whole)}",
            allowed="a list of objects, JSON lines, or the JSON of SQuAD or TriviaQA",
        )
    return [whole]


def _squad(articles: list[Any], path: Path) -> list[FieldValues]:
    """Return one record per question of SQuAD's nested JSON, or of ROPES's."""
    records = []
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                # SQuAD has one text for each question ("context"), and ROPES has two.
                texts = ("background", "situation") if "situation" in paragraph else ("context",)
                given = {name: paragraph[name] for name in texts}
                for qa in paragraph["qas"]:
                    record = {"id": qa.get("id"), **given}
                    record["question"] = qa["question"]
                    record["answers"] = qa["answers"]
                    if article.get("title"):
                        record["article_title"] = article["title"]
                    records.append(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise MaskwiseError(
            f"{path} is not SQuAD's JSON",
            got=f"an object without {error}",
            allowed="data > paragraphs > context, qas > question, answers",
        ) from None
    return records


def _table(path: Path, fields: FieldNames) -> Iterator[Entry]:
    rows = read_table(path)
    first = next(rows, None)
    if first is None:
        return iter(())
    wanted([*first], fields, str(path))
    return _numbered(chain([first], rows))


def _parquet(path: Path, fields: FieldNames) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(path)
        columns = wanted(table.schema_arrow.names, fields, str(path))
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row, None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise MaskwiseError(
            f"{path} is not a Parquet file, or is damaged: {first_line(error)}",
        ) from error


def _fasta(path: Path, fields: FieldNames) -> Iterator[Entry]:
    """Yield the sequences of a FASTA file in capitals, without blanks, gaps (- and .) or the final
    *, and their headers as names.

    Lower case only marks repeats or unaligned regions, so letters are changed to capitals. Long
    sequences are yielded in parts.
    """
    refuse_unreadable(path)
    number = 0
    first: int | None = None
    size = 0
    title = ""
    letters: list[str] = []
    # A sequence is yielded at the next header, so an extra header is added after the last one.
    for text, is_header in chain(_fasta_lines(path), [(">", True)]):
        if not is_header and not number:
            raise MaskwiseError(
                f"{path} is not a FASTA file: it has no header",
                got=text[:40],
                do="begin every sequence with a line >NAME, or rename the file to .txt",
            )
        if number and (is_header or size >= LONGEST_TEXT):
            sequence = re.sub(r"[-.\s]", "", "".join(letters)).rstrip("*").upper()
            if re.search("[^A-Za-z]", sequence):
                yield number, Skip(NO_LETTERS, f"sequence {title}"), None
            else:
                if not is_header and first is None:
                    first = text_id(sequence)
                content = sequence if first is None else Part(sequence, first)
                yield number, {fields.id: title, fields.text: content}, None
            letters = []
            size = 0
        if is_header:
            number += 1
            first = None
            title = text[1:].strip()
        else:
            letters.append(text)
            size += len(text)


def _fasta_lines(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a FASTA file but for blank ones and comments, and whether each is a
    header. Very long lines are yielded in parts, but of a header only the first.
    """
    continues = dropped = False
    with opened(path) as file:
        for line in iter(partial(file.readline, LONGEST_LINE), b""):
            # Bad bytes become characters that are not letters, so that the sequence is skipped.
            text = line.decode(errors="replace").strip().lstrip("\ufeff")
            begins = not continues
            continues = not line.endswith(b"\n")
            is_header = begins and text.startswith(">")
            if begins:
                # The rest of a very long header or comment is dropped.
                dropped = is_header or text.startswith(";")
            if text and not text.startswith(";") and (begins or not dropped):
                yield text, is_header


def _source_code(path: Path, fields: FieldNames) -> Iterator[Entry]:
    """Yield a file of source code as one text."""
    content = read_whole(path)
    encoding = "utf-8-sig"
    text: str | Skip
    try:
        if ending_of(path) in PYTHON_ENDINGS:
            # The first lines of a Python file may name another encoding.
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = "\n".join(split_lines(content.decode(encoding)))
    # Python also knows encodings that are no text, such as rot13, and one that always fails.
    except (SyntaxError, LookupError, UnicodeError):
        text = Skip(NOT_UTF8)
    yield 0, Skip(BINARY) if b"\0" in content else text, None


def _arrays(path: Path, fields: FieldNames) -> Iterator[Entry]:
    """Return the rows of an array of token ids; of several arrays in a file, of ``input_ids``."""
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
    except OSError as error:
        raise MaskwiseError(f"cannot read {path}: {error}") from error
    except (ValueError, BadZipFile) as error:
        raise MaskwiseError(f"{path} is no file of arrays: {first_line(error)}") from error
    if found.ndim != 2:
        raise MaskwiseError(
            f"{path} must have rows of token ids",
            got=f"an array of {found.ndim} dimensions",
            allowed="2 dimensions, rows × tokens",
        )
    return _numbered(found)


def _sentences(path: Path, fields: FieldNames) -> Iterator[Entry]:
    return _numbered(tagged_sentences(path, str(ending_of(path, LABELS))))


PYTHON_ENDINGS = (".py", ".pyi", ".pyx", ".pxd")
SOURCE = (
    *PYTHON_ENDINGS,
    *(".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".m", ".mm"),
    *(".java", ".kt", ".scala", ".groovy", ".cs", ".fs", ".vb", ".swift", ".dart"),
    *(".js", ".jsx", ".mjs", ".ts", ".tsx", ".vue", ".php", ".rb", ".lua", ".pl", ".pm"),
    *(".go", ".rs", ".zig", ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el"),
    *(".r", ".jl", ".f", ".f90", ".sql", ".sh", ".bash", ".ps1", ".sol", ".v", ".sv", ".vhd"),
)
"""Extensions of source code; a file is one text."""
TEXTS = (*PLAIN, *TABLES, *OBJECTS, *FASTA, *SOURCE)
"""Extensions of files with texts."""
IDS = (*ARRAYS, *OBJECTS)
"""Extensions of files with token ids."""
LABELS = (*OBJECTS, *TABLES, *SENTENCES)
"""Extensions of labelled files."""
NOT_TEXT = (".parquet", *ARRAYS)
"""Extensions of files that are no text. They are packed inside and never have a second one."""
READERS: dict[str, Reader] = {
    **dict.fromkeys(PLAIN, _plain),
    **dict.fromkeys(TABLES, _table),
    **dict.fromkeys(OBJECTS, _json_lines),
    ".json": _json,
    ".parquet": _parquet,
    **dict.fromkeys(FASTA, _fasta),
    **dict.fromkeys(ARRAYS, _arrays),
    **dict.fromkeys(SENTENCES, _sentences),
    **dict.fromkeys(SOURCE, _source_code),
}
"""Readers by extension; .gz or .zst may follow those of files of text."""


def ending_of(path: Path, among: Iterable[str] = TEXTS) -> str | None:
    """Return the extension that says how a file is read, without that of its packing, if it is
    among these, else None.

    >>> ending_of(Path("a.JSONL.gz")), ending_of(Path("a.npy")), ending_of(Path("a.npy"), IDS)
    ('.jsonl', None, '.npy')
    """
    packed = packing_of(path)
    name = path.name.lower().removesuffix(packed)
    found = next((ending for ending in among if name.endswith(ending)), None)
    return None if packed and found in NOT_TEXT else found


# Shards
# -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shard:
    """A file, a list, or a part of a data set. A chunk of a shard is a shard, too.

    Attributes:
        name: what it is called. Its records are called "NAME#NUMBER", or "0", "1", … without a
            name.
        read: opens the records. A chunk has them in memory, and can be sent to another process.
        fields: the fields to read.
        path: the file; None if it is no file.
        of: the number of shards of its data set.
    """

    name: str
    read: Callable[[], Iterable[Entry]]
    fields: FieldNames = ALL_FIELDS
    path: Path | None = None
    of: int = 1

    @classmethod
    def of_file(cls, path: Path, fields: FieldNames = ALL_FIELDS, *, name: str = "") -> Shard:
        """Return the shard of a file, called by default as the file."""
        ending = ending_of(path, IDS if fields.rows else TEXTS)
        if ending is None:
            raise MaskwiseError(f"unknown file extension of {path}", allowed=", ".join(READERS))
        # Names of documents are in UTF-8, but names of files may contain other bytes.
        shown = in_utf8(name or path.name).decode()
        return cls(shown, partial(READERS[ending], path, fields), fields, path)

    def name_of(self, number: int) -> str:
        """Return the name of a record."""
        if not self.name:
            return str(number)
        return f"{self.name}#{number}" if number else self.name

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yield the number and the content of each record, as for `Entry`, but parsed.

        Raises:
            MaskwiseError: the shard cannot be read, or has no text column.
        """
        for number, record, _ in self.read():
            if isinstance(record, bytes):
                record = parsed(record, number)
            yield number, record

    def chunks(self, size: int) -> Iterator[Shard]:
        """Yield consecutive records, in order, from each of which one process makes rows.

        Args:
            size: the size of a chunk, in bytes for a file of lines, else in characters. A chunk
                ends with the record that reaches this size.
        """
        part: list[Entry] = []
        begin = end = 0
        for entry in self.read():
            part.append(entry)
            _, record, at = entry
            end = end + self._size(record) if at is None else at
            if end - begin >= size:
                yield replace(self, read=partial(iter, part))
                begin = end
                part = []
        if part:
            yield replace(self, read=partial(iter, part))

    def _size(self, record: Any) -> int:
        text = inside(record, self.fields.text) if isinstance(record, Mapping) else record
        if isinstance(text, Part):
            text = text.text
        return 0 if text is None else len(str(text))

    def fingerprint(self) -> str:
        """Return a hash that changes with the shard. In a large file, only parts are hashed."""
        if self.path is None:
            return f"{self.of} shards"
        with damaged(self.path), self.path.open("rb") as file:
            size = self.path.stat().st_size
            total = hashlib.blake2b(str(size).encode(), digest_size=12)
            if size <= PROBES * PROBE_BYTES:
                total.update(file.read())
            else:
                # The parts are spread evenly from the beginning to the end of the file.
                for probe in range(PROBES):
                    file.seek(probe * (size - PROBE_BYTES) // (PROBES - 1))
                    total.update(file.read(PROBE_BYTES))
        return total.hexdigest()


def shards_of(
    source: object, fields: FieldNames | None = None, *, stream: bool = True
) -> list[Shard]:
    """Return the shards of a source, in order.

    Args:
        source: a file, a folder of files or one that ``save_to_disk`` wrote, ``"bundled:NAME"``,
            ``"hf:NAME"``, or a list of texts or mappings.
        fields: the fields that hold the text and the name of a record.
        stream: whether a source may also be a pattern such as ``"texts/*.jsonl"``, and a data set
            of the hub is read over the network, as with
            ``datasets.load_dataset(…, streaming=True)``.

    Raises:
        MaskwiseError: the source does not exist, or has no file that can be read.

    >>> from maskwise.text import bundled_path
    >>> [shard.name for shard in shards_of(bundled_path("wikipedia"))]
    ['wikipedia.jsonl.gz']
    """
    fields = fields or FieldNames()
    if isinstance(source, str) and not source:
        raise MaskwiseError("a corpus has no name", got="''", do="give a file or a folder")
    if isinstance(source, str) and source.startswith("hf:"):
        return _hub_shards(source, fields, stream)
    if isinstance(source, str | Path):
        path = source_path(source)
        if stream and not path.exists():
            return [Shard.of_file(file, fields) for file in _matches(source, path, fields)]
        return _path_shards(path, fields)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return [Shard("", partial(_listed, source), fields)]
    what = "a corpus cannot be read from this object"
    allowed = "a path, a name such as bundled:wikipedia, a list of texts"
    raise MaskwiseError(what, got=type(source).__name__, allowed=allowed)


def _listed(source: Iterable[object]) -> Iterator[Entry]:
    return ((place, value, None) for place, value in enumerate(source))


def _matches(source: str | Path, pattern: Path, fields: FieldNames) -> list[Path]:
    """Return the files of a pattern, in an order that does not depend on the file system, because
    rows depend on it.
    """
    # A pattern with several ** may match a file twice; a dict removes duplicates.
    found = dict.fromkeys(map(Path, glob.glob(str(pattern), recursive=True)))
    files = sorted(filter(Path.is_file, found), key=lambda file: (file.name, file))
    if not files:
        what = f"corpus {str(source)!r} does not exist, and no file matches it"
        do = "give a file, a folder, a pattern such as 'texts/*.jsonl', or hf:NAME"
        raise MaskwiseError(what, do=_column_apart(source) or do)
    endings = IDS if fields.rows else TEXTS
    read = [file for file in files if ending_of(file, endings)]
    if not read:
        raise MaskwiseError(f"no file of {source} can be read", allowed=_listing(endings))
    return read


def _column_apart(source: str | Path) -> str | None:
    """Say where the column of a text is named, if it was named with the file, as that of a task."""
    named = re.fullmatch(r"(.+)\((?:.*\b)?text=(['\"]?)(.+?)\2[,)].*", str(source))
    if named is None or not user_path(named[1]).exists():
        return None
    return f"give {named[1]!r}, and {name_it(named[3])}"


def _path_shards(path: Path, fields: FieldNames) -> list[Shard]:
    if not path.exists():
        raise MaskwiseError(
            f"corpus {str(path)!r} does not exist",
            got=str(path.absolute()),
            do=_column_apart(path) or "give a file, a folder, bundled:wikipedia or hf:NAME",
        )
    if is_saved(path):
        return [Shard(path.name, _rows_of(_saved(path), fields, str(path)), fields)]
    endings = IDS if fields.rows else TEXTS
    found = look_in(path, endings)
    if found.read:
        return [Shard.of_file(file, fields, name=name) for name, file in found.read.items()]
    if path.suffix.lower() in (".yaml", ".yml"):
        raise MaskwiseError(
            f"{path} is a recipe and not a text",
            do="give a text or a file of texts; `maskwise check` and `maskwise study` read "
            "recipes, and `maskwise inspect` takes the name of a policy, such as --policy span",
        )
    what = f"{path}: no corpus file, or unknown file extension"
    do = TOKENS if ending_of(path, IDS) else AS_LINES
    if fields.rows:
        what = f"{path} has no file with token ids"
    raise MaskwiseError(
        what,
        got=most_frequent(found.left_out) or None,
        allowed=_listing(endings),
        do=None if fields.rows else do,
    )


def _listing(endings: Iterable[str]) -> str:
    """List extensions for a message."""
    named = ", ".join(ending for ending in endings if ending not in SOURCE)
    code = ", or source code (.py, .c, …)" if ".py" in endings else ""
    return f"{named}{code}; also packed as .gz or .zst"


def bundled_path(name: str) -> Path:
    """Return the path of a bundled sample, a file of gzipped JSON lines; see docs/data.md.

    Raises:
        MaskwiseError: the name is not in `BUNDLED`, or the package maskwise-data with the sample is
            not installed.
    """
    if name not in BUNDLED and re.fullmatch(r"world-\d+(-questions)?", name):
        raise MaskwiseError(
            f"no {name} is bundled",
            allowed=f"{WORLDS[0]} to {WORLDS[-1]}",
            do=f"{MORE_WORLDS}, or use smaller seeds",
        )
    require_known("bundled data", name, BUNDLED)
    return bundled_file(f"{name}.jsonl.gz")


def source_path(source: str | Path) -> Path:
    """Return the path of a source: a bundled sample ``bundled:NAME``, a file or a folder.

    Raises:
        MaskwiseError: as for `bundled_path`.
    """
    if isinstance(source, str) and source.startswith("bundled:"):
        return bundled_path(source.removeprefix("bundled:"))
    return user_path(source)


# Labelled files
# -------------------------------------------------------------------------------------------


def read_records(path: Path, *, header: bool = True, usual: str | None = None) -> list[FieldValues]:
    """Return the records of a labelled file.

    Args:
        path: the file.
        header, usual: how a table (.csv, .tsv) is written, as for `read_table`. A file of another
            extension is read as a table if ``usual`` is given.

    Raises:
        MaskwiseError: the extension is unknown; the file is not UTF-8 or is damaged, or a record is
            not in the format of its extension or is no object.
    """
    ending = ending_of(path, LABELS)
    if ending is None and usual is None:
        raise MaskwiseError(f"unknown extension of task file {path}", allowed=_listing(LABELS))
    if ending not in NOT_TEXT:
        read_text(path)
    if ending is None or ending in TABLES:
        return list(read_table(path, header=header, usual=usual))
    found = []
    for number, record in Shard("", partial(READERS[ending], path, ALL_FIELDS)).records():
        if isinstance(record, Skip):
            raise MaskwiseError(
                f"{record.place or 'a line'} of {path} cannot be read: {record.reason}",
                got=record.content or None,
                allowed="JSON lines" if record.reason == NOT_JSON else None,
            )
        if not isinstance(record, dict):
            raise MaskwiseError(
                f"record {number} of {path} is not a JSON object",
                got=repr(record)[:60],
                allowed="objects whose fields hold the text and the label",
            )
        found.append(record)
    return found


# Folders
# -------------------------------------------------------------------------------------------


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
        ending = ending_of(folder, endings)
        files = {folder.name: folder} if ending else {}
        return FolderFiles(files, ending in SOURCE, Counter())
    kinds: dict[str, dict[str, Path]] = {"source": {}, "json": {}, "text": {}}
    left_out = Counter[str]()
    for path in folder.rglob("*"):
        ending = ending_of(path, endings)
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
        elif ending in SOURCE:
            kinds["source"][name] = path
        else:
            kinds["json" if path.suffix.lower() == ".json" else "text"][name] = path
    texts = kinds["text"] or kinds["json"]
    source = _bytes_of(kinds["source"]) > _bytes_of(texts)
    read = kinds["source"] if source else texts
    for files in kinds.values():
        if files is not read:
            left_out.update(map(_extension, files.values()))
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
    ending = ending_of(Path(source), (*TEXTS, *ARRAYS, ".conllu"))
    if ending in PLAIN:
        return dict.fromkeys(FIELDS, f"has no effect, because {source} has no fields")
    found = {}
    if ending or source.startswith(("bundled:", "hf:")):
        found["text_per"] = f"has no effect, because {source} is not plain text (.txt)"
    if ending in (*FASTA, *SOURCE, ".conllu"):
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


MOST_EXTENSIONS = 5
"""The most extensions without a reader of which a note says how many files there are."""


def most_frequent(left_out: Counter[str]) -> str:
    """Format the reasons for which files of a folder are not read, and the number of other files.

    The order does not depend on the file system.
    """
    unknown = {
        reason
        for reason in left_out
        if reason.startswith(".") and not ending_of(Path(reason), READERS)
    }
    ordered = sorted(left_out, key=lambda reason: (-left_out[reason], reason))
    rare = [reason for reason in ordered if reason in unknown][MOST_EXTENSIONS:]
    named = {reason: left_out[reason] for reason in ordered if reason not in rare}
    others = sum(map(left_out.__getitem__, rare))
    return counted(named) + (f", {others} × other" if others else "")


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``."""
    return any((folder / f"dataset_{what}.json").exists() for what in ("info", "dict"))


# Data sets for the library `datasets`, saved in a folder or on the hub
# -------------------------------------------------------------------------------------------


def _saved(path: Path) -> Any:
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
    return loaded


def _rows_of(
    loaded: Any, fields: FieldNames, where: str, index: int = 0, of: int = 1
) -> Callable[[], Iterator[Entry]]:
    """Return a function that reads a part of a data set, with the columns that are needed."""
    if loaded.column_names:
        loaded = loaded.select_columns(wanted(loaded.column_names, fields, where))

    def read() -> Iterator[Entry]:
        part = loaded.shard(num_shards=of, index=index) if of > 1 else loaded
        try:
            if loaded.column_names:
                yield from _numbered(part)
                return
            # Its columns are known only from its rows, and chunks are sent to other processes.
            names = {fields.id, fields.text, fields.group}
            names |= {name.split(".")[0] for name in names}
            rows = ({name: row[name] for name in names & row.keys()} for row in part)
            yield from _numbered(rows)
        except Exception as error:
            # Network, hub, builder and format errors have no common base class.
            raise MaskwiseError(f"cannot read {where}: {first_line(error)}") from error

    return read


def _hub_shards(source: str, fields: FieldNames, stream: bool) -> list[Shard]:
    """Return the shards of "hf:NAME[:CONFIG[:SPLIT]]"."""
    name, config, split, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    if not name or any(rest):
        raise MaskwiseError(
            "malformed data set name", got=source, allowed="hf:NAME, hf:NAME:CONFIG:SPLIT"
        )
    load = partial(load_hub, source, name, config, split=split or "train")
    if not stream:
        # It is downloaded when it is read.
        return [Shard(name, lambda: _rows_of(load(), fields, source)(), fields)]
    loaded = load(streaming=True)
    shards = []
    for number in range(loaded.num_shards):
        shown = f"{name}/{number}" if loaded.num_shards > 1 else name
        read = _rows_of(loaded, fields, shown, number, loaded.num_shards)
        shards.append(Shard(in_utf8(shown).decode(), read, fields, of=loaded.num_shards))
    return shards


def load_hub(source: str, name: str, config: str, **how: object) -> Any:
    """Load a data set from the hub, or raise a one-line error."""
    import datasets

    try:
        return datasets.load_dataset(name, config or None, **how)
    except Exception as error:
        # Network, hub, builder and format errors have no common base class.
        raise MaskwiseError(f"cannot load data set {source!r}: {first_line(error)}") from error


def read_hub(spec: str) -> dict[str, list[FieldValues]]:
    """Return the records of the data set "hf:ID[:config]", keyed by split.

    Class numbers are replaced by class names.
    """
    name, _, config = spec.removeprefix("hf:").partition(":")
    splits = {}
    for split, rows in load_hub(spec, name, config).items():
        splits[str(split)] = list(with_class_names(rows, rows.features))
    return splits


def with_class_names(rows: Iterable[Any], features: Mapping[str, Any]) -> Iterable[Any]:
    """Return the rows of a data set with class names in place of class numbers.

    Args:
        rows: dicts.
        features: the features of the data set, keyed by column; {} for rows as they are.
    """
    names = {}
    for column, feature in features.items():
        # In tagging tasks, the feature is a list, and its items' feature has the class names.
        if hasattr(feature, "feature"):
            feature = feature.feature
        if hasattr(feature, "int2str"):
            names[column] = feature.names
    if not names:
        return rows
    return ({**row, **{key: _named(row[key], names[key]) for key in names}} for row in rows)


def _named(value: object, names: list[str]) -> object:
    """Replace class numbers with class names; return other values unchanged."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value
