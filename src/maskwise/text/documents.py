"""Documents in: from files, folders, lists, `datasets` and the bundled samples, one at a time.

A corpus is read again and again (to train a tokenizer, to annotate, to pack), so `Documents` is
re-iterable and holds nothing but the way to its source. A bad line must not end an hour's work and
must not vanish
either: it is skipped and counted under a reason.

Cost: that of decompressing and parsing, and eight bytes of memory for each document to know
    repeated texts, which would
otherwise stand on both sides of a held-out split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from maskwise.errors import MaskwiseError, counted, unknown_name
from maskwise.folders import looked_in
from maskwise.text.readers import (
    ENDINGS,
    LONGEST_TEXT,
    NAME_IT,
    NOT_UTF8,
    Fields,
    PartName,
    Record,
    Skip,
    files_in,
    hub_dataset,
    is_utf8,
    kind_of,
    known_ending,
    read_file,
    saved_dataset,
)
from maskwise.text.tables import refuse_rows_as_names
from maskwise.text.words import text_id
from maskwise.text.worlds import read_world

Item = TypeVar("Item")

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
)
UNNAMED = "the list of documents"
"""The name of a corpus that is given as a list."""
HEAD_RECORDS = 200
"""Records that tell where the text is."""
EMPTY, BINARY, NO_TEXT, REPEATED = (
    "empty",
    "binary (NUL characters)",
    "no text field",
    "repeated text",
)


class Document(NamedTuple):
    """A text and its name. Held-out splits and masks hang on the name, so it should be unique and
    stable.
    """

    id: str
    text: str


class JoinedDocument(Document):
    """A document of one of several corpora; ``source`` is the number of its corpus."""

    source: int


class Documents:
    """A re-iterable stream of `Document`s, made by `read_documents`.

    Attributes:
        name: what is read, for messages and reports.
        read: how many documents the latest iteration has yielded.
        skipped: reason → count of what the latest iteration has left out.
    """

    def __init__(
        self,
        open_records: Callable[[], Iterable[Record]],
        *,
        name: str,
        fields: Fields,
        limit: int | None = None,
        keep_repeated: bool = False,
    ):
        self._open_records, self._limit, self._keep_repeated = open_records, limit, keep_repeated
        self.name, self.fields = name, fields
        self.read, self.skipped = 0, Counter[str]()

    def __iter__(self) -> Iterator[Document]:
        self.read, self.skipped = 0, Counter()
        return islice(self._documents(), self._limit)

    def _documents(self) -> Iterator[Document]:
        seen = _Seen()
        for record in self._open_records():
            document = self._document(record)
            if isinstance(document, Skip):
                self.skipped[document.reason] += 1
                continue
            for part in _parts(document):
                if not self._keep_repeated and seen.before(text_id(part.text)):
                    self.skipped[REPEATED] += 1
                else:
                    self.read += 1
                    yield part

    def _document(self, record: Record) -> Document | Skip:
        if isinstance(record, Skip):
            return record
        name, value = record
        if isinstance(value, Mapping):
            own = value.get(self.fields.id)
            name, value = name if own is None else str(own), inside(value, self.fields.text)
        if not isinstance(value, str):
            return Skip(NO_TEXT)
        if not value.strip():
            return Skip(EMPTY)
        if "\0" in value:
            return Skip(BINARY)
        return Document(name, value) if is_utf8(value) and is_utf8(name) else Skip(NOT_UTF8)


class Joined(Documents):
    """Several corpora one after the other; a text that an earlier one holds is left out of a later
    one.

    A document keeps its name, so that it stays on the same side of a held-out split as in its
    corpus alone.

    >>> parts = [read_documents(["The cat sat.", "A dog ran."]), read_documents(["The cat sat.", "It rained."])]
    >>> [(document.text, source_of(document)) for document in Joined(parts)]
    [('The cat sat.', 0), ('A dog ran.', 0), ('It rained.', 1)]
    """

    def __init__(self, parts: Sequence[Documents]):
        self.parts = parts
        super().__init__(
            tuple, name=" + ".join(part.name for part in parts), fields=parts[0].fields
        )

    def __iter__(self) -> Iterator[Document]:
        self.read, self.skipped = 0, Counter()
        seen = _Seen()
        for number, part in enumerate(self.parts):
            for document in part:
                if seen.before(text_id(document.text)):
                    self.skipped[REPEATED] += 1
                else:
                    self.read += 1
                    joined = JoinedDocument(*document)
                    joined.source = number
                    yield joined
            self.skipped += part.skipped


def inside(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or of a path into nested objects.

    >>> inside({"article": {"body": "It rained."}}, "article.body")
    'It rained.'
    """
    if field in record or "." not in field:
        return record.get(field)
    first, _, rest = field.partition(".")
    value = record.get(first)
    return inside(value, rest) if isinstance(value, Mapping) else None


def paths(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of a record's fields, each followed by the paths to the fields in it.

    >>> [*paths({"id": 1, "article": {"body": "It rained."}})]
    ['id', 'article', 'article.body']
    """
    for name, value in record.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from (f"{name}.{path}" for path in paths(value))


def longest_field(source: str) -> str:
    """The field with the longest texts, also one in an object; "text" where that is one, or where
    nothing has fields.

    Raises:
        MaskwiseError: a source that cannot be read, or a table whose first row is data.
    """
    values = (
        record[1] for record in _resolve(source, Fields(""))[0]() if not isinstance(record, Skip)
    )
    records = [value for value in islice(values, HEAD_RECORDS) if isinstance(value, Mapping)]
    sizes = Counter[str]()
    for record in records:
        sizes += Counter(
            {
                path: len(text)
                for path in paths(record)
                if isinstance(text := inside(record, path), str)
            }
        )
    if "text" in sizes or not sizes:
        return "text"
    refuse_rows_as_names(records, longest := max(sizes, key=sizes.__getitem__), source)
    return longest


def lines_note(source: str) -> str | None:
    """What to tell of a plain text file whose lines are taken for texts, because it has no blank
    lines; else None.
    """
    path = Path(source).expanduser()
    if not path.is_file() or kind_of(path, Fields()) != "line":
        return None
    return (
        f"{source} has no blank lines, so each line is a text; corpus.text_per=block reads it "
        f"as blocks"
    )


def source_of(document: Document) -> int:
    """The number of the corpus that a document is from, where several are joined; 0 where there is
    one.
    """
    return getattr(document, "source", 0)


class _Seen:
    """The numbers that were seen: recent ones in a set, the others in a sorted array, ten times
    smaller.
    """

    def __init__(self) -> None:
        self.recent: set[int] = set()
        self.sorted = np.zeros(0, dtype=np.int64)

    def before(self, number: int) -> bool:
        """Whether a number was seen before; now it is."""
        place = int(self.sorted.searchsorted(number))
        if number in self.recent or (
            place < len(self.sorted) and int(self.sorted[place]) == number
        ):
            return True
        self.recent.add(number)
        if len(self.recent) >= 1 << 16:
            self.sorted = np.union1d(self.sorted, np.fromiter(self.recent, dtype=np.int64))
            self.recent = set()
        return False


def _parts(document: Document) -> Iterator[Document]:
    """The document, or the parts of one that is too long to be worked on whole, each cut before a
    blank.
    """
    name, text = document
    number = 0
    while len(text) > LONGEST_TEXT:
        number += 1
        end = max(text.rfind(blank, LONGEST_TEXT // 2, LONGEST_TEXT) for blank in " \n")
        end = end if end > 0 else LONGEST_TEXT
        yield Document(PartName.of(f"{name}~{number}", name), text[:end])
        text = text[end:]
    if text.strip():
        yield Document(PartName.of(f"{name}~{number + 1}", name) if number else name, text)


def read_documents(
    source: str | Path | Sequence[str | Mapping[str, object]],
    *,
    text_field: str = "text",
    id_field: str = "id",
    text_per: str = "auto",
    limit: int | None = None,
    keep_repeated: bool = False,
) -> Documents:
    """A corpus from almost anything.

    Args:
        source: one of

            - ``"bundled:wikipedia"``, a sample that comes with maskwise;
            - ``"factworld(people=300)"`` or ``"causalworld"``, texts of an invented world
              (worlds.py);
            - a ``.txt`` (or ``.txt.gz``, ``.txt.zst``) file: documents are the blocks between blank
              lines, or the lines of a file without blank lines (``text_per``);
            - a ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst`` or ``.json.gz`` file: one object (or
              string) per line;
            - a ``.parquet`` file;
            - a folder of such files, read in the order of their names, or one written by
              ``save_to_disk``;
            - a list of strings or mappings;
            - ``"hf:NAME"``, ``"hf:NAME:CONFIG"`` or ``"hf:NAME:CONFIG:SPLIT"`` for
              ``datasets.load_dataset`` (CONFIG may be empty; SPLIT is "train" unless given).

            A text of more than four million characters comes in parts, NAME~1, NAME~2, …, which
            stay on one side of a held-out split.
        text_field: where the text is, in sources with fields; "article.body" is a field of an
            object in a field.
        text_per: what a document is in plain text: "line", "block", or "auto": the beginning of the
            file tells.
        id_field: where the name is. A document without one is called "FILE#PLACE", in a list by its
            place.
        limit: at most so many documents.
        keep_repeated: also yield a text that was yielded before, word for word.

    Raises:
        MaskwiseError: at once for a source that does not exist or has an unknown ending; when it is
            read, for a file that is binary, mostly not UTF-8 or damaged, and for a table without
            the text field.

    >>> documents = read_documents(["The cat sat.", "", {"id": "b", "text": "A dog ran."}])
    >>> [document.id for document in documents], dict(documents.skipped)
    (['0', 'b'], {'empty': 1})
    """
    if limit is not None and limit < 1:
        raise MaskwiseError("limit must be a positive number of documents", got=limit)
    fields = Fields(text_field, id_field, text_per)
    opener, name = _resolve(source, fields)
    return Documents(opener, name=name, fields=fields, limit=limit, keep_repeated=keep_repeated)


def require_documents(documents: Documents) -> Documents:
    """The same documents, once it is sure that there is at least one; else a `MaskwiseError` that
    says why not."""
    if next(iter(documents), None) is None:
        why, named = counted(documents.skipped) or "nothing at all", documents.fields.text
        if NO_TEXT not in documents.skipped:
            raise MaskwiseError(f"no document in {documents.name}", got=why)
        records = (
            record[1] for record in documents._open_records() if not isinstance(record, Skip)
        )
        names = ", ".join(
            paths(next((value for value in records if isinstance(value, Mapping)), {}))
        )
        what = f"no document in {documents.name} has a text in its field {named!r}"
        raise MaskwiseError(what, got=why, allowed=names or None, do=NAME_IT)
    return documents


def batches(
    items: Iterable[Item],
    size: int,
    *,
    measure: Callable[[Item], int] = len,  # type: ignore[assignment]  # texts
    most: int | None = None,
) -> Iterator[list[Item]]:
    """Items in lists, because work on many at once costs less: each but the last measures ``size``
    or a little more.

    Args:
        size: a list ends with the item that brings the sum of ``measure`` to it.
        measure: of an item, its characters unless said otherwise.
        most: items of a list at most.

    >>> list(batches(["one", "two", "four", "six"], 6))
    [['one', 'two'], ['four', 'six']]
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += measure(item)
        if total >= size or len(batch) == most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def bundled_path(name: str) -> Path:
    """The file of a sample that comes with maskwise, gzipped JSON lines. docs/data.md says what is
    in it.

    Raises:
        MaskwiseError: for a name that is not in `BUNDLED`.
    """
    if name not in BUNDLED:
        raise unknown_name("bundled data", name, BUNDLED)
    return Path(__file__).parent.parent / "data" / f"{name}.jsonl.gz"


def _resolve(source: Any, fields: Fields) -> tuple[Callable[[], Iterable[Record]], str]:
    """How to open a source, and what to call it."""
    if world := read_world(source):
        return world.documents, str(world)
    if isinstance(source, str) and source.startswith("bundled:"):
        path = bundled_path(source.removeprefix("bundled:"))
        return lambda: read_file(path, path.name, fields), source
    if isinstance(source, str) and source.startswith("hf:"):
        return hub_dataset(source, fields), source
    if isinstance(source, str | Path):
        return _resolve_path(Path(source).expanduser(), fields), str(source)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Sequence):
        allowed = "a path, a name such as bundled:wikipedia, a list of texts"
        raise MaskwiseError(
            "a corpus cannot be read from this", got=type(source).__name__, allowed=allowed
        )
    return lambda: ((str(place), value) for place, value in enumerate(source)), UNNAMED


def _resolve_path(path: Path, fields: Fields) -> Callable[[], Iterable[Record]]:
    if not path.exists():
        do = "give a file, a folder, bundled:wikipedia or hf:NAME"
        raise MaskwiseError(f"corpus {str(path)!r} does not exist", got=looked_in(path), do=do)
    if path.is_file():
        if not known_ending(path):
            raise MaskwiseError(f"unknown ending of corpus file {path}", allowed=", ".join(ENDINGS))
        return lambda: read_file(path, path.name, fields)
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return saved_dataset(path, fields)
    files = files_in(path, ENDINGS)
    if not files:
        raise MaskwiseError(f"no corpus file in folder {path}", allowed=", ".join(ENDINGS))
    return lambda: (
        record for name, file in files.items() for record in read_file(file, name, fields)
    )
