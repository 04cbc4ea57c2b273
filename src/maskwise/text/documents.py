"""Read documents from files, folders, lists, `datasets` and the bundled samples.

A study reads its corpus several times: to train a tokenizer, to annotate the text, and to pack
rows. `Documents` therefore can be iterated several times, and stores only a function that opens the
source. Malformed lines are skipped and counted by reason, because one bad line must neither stop a
long job nor vanish silently.

A document is known by its content: its id is the hash of its text, or of its tokens where a corpus
has token ids. The id decides whether it is held out and how it is masked. Names, such as those of
files, lines and records, are for people only. A repeated text is therefore skipped, because it is
the same document; to detect it, eight bytes per document are kept in memory.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from maskwise.base.errors import (
    MaskwiseError,
    counted,
    plural,
    require_known,
    whole_number,
)
from maskwise.base.folders import in_utf8
from maskwise.base.specs import user_path
from maskwise.text.opening import Skip, is_utf8, text_per
from maskwise.text.source import (
    BINARY,
    IDS,
    LONGEST_TEXT,
    NOT_UTF8,
    PLAIN,
    TEXTS,
    TOKENS,
    UNNAMED,
    FieldNames,
    Part,
    RowReader,
    RowTokens,
    Shard,
    ending_of,
    fields_and_values,
    inside,
    is_saved,
    look_in,
    most_frequent,
    name_it,
    paths,
    shards_of,
)
from maskwise.text.tables import refuse_rows_as_names
from maskwise.text.words import text_id, tokens_id

Item = TypeVar("Item")

# The size of a batch is limited in characters and not in documents, whose lengths differ too much.
BATCH_CHARACTERS = 1 << 20
HEAD_RECORDS = 200
"""Number of records from which the text field is chosen, if no field is called "text"."""
USUAL = (FieldNames().text, "input_ids")
"""The usual fields of texts and of token ids."""
EMPTY = "empty"
NO_TEXT = "no text field"
REPEATED = "repeated text"


@dataclass
class Document:
    """A text, or a row of token ids.

    Attributes:
        name: what people call it. Nothing is computed from the name.
        text: the text; of token ids, the decoded text.
        source: the index of its corpus in a mix of corpora.
        group: the group that decides whether it is held out; "" for none.
        first: the id of the first part, for a part of a text that is too long for one document.
        tokens: the tokens of a row of token ids; None for a text.

    >>> Document("a", "The cat sat.").id == Document("b", "The cat sat.").id
    True
    """

    name: str
    text: str
    source: int = 0
    group: str = ""
    first: int | None = None
    tokens: RowTokens | None = None

    @cached_property
    def id(self) -> int:
        """The hash of its content, by which it is known (63 bits)."""
        return text_id(self.text) if self.tokens is None else tokens_id(self.tokens.ids)

    @property
    def place(self) -> int:
        """The hash, uniform below 2⁶³, that decides whether it is held out: that of its group, or
        else of the first part of its text.
        """
        if self.group:
            return text_id(self.group)
        return self.id if self.first is None else self.first


@dataclass(eq=False)
class Documents:
    """The documents of a corpus, made by `read_documents`. Each iteration reads the source again.

    Attributes:
        shards: the shards of the source.
        name: the name of the source, for messages and reports.
        fields: the names of the record fields that hold the text and the document's name. If the
            text may be in another field, its name is known from the first iteration on.
        limit: the maximum number of documents; None for no limit.
        most: the number of characters after which no document follows; None for no limit.
        keep_repeated: whether to yield a text that equals an earlier text.
        read: the number of documents that the latest iteration yielded.
        skipped: the number of records that the latest iteration skipped, keyed by reason.
        whole: whether the latest iteration ended with the text, and not with ``most``.
        regrouped: the ids of the texts that the latest iteration met in several groups. They count
            for the first of these groups.
        longest: the characters and the name of the longest document that the latest iteration met.
    """

    shards: Sequence[Shard]
    _: KW_ONLY
    name: str
    fields: FieldNames
    limit: int | None = None
    most: int | None = None
    keep_repeated: bool = False
    read: int = field(default=0, init=False)
    skipped: Counter[str] = field(default_factory=Counter, init=False)
    whole: bool = field(default=True, init=False)
    regrouped: set[int] = field(default_factory=set, init=False)
    longest: tuple[int, str] = field(default=(0, ""), init=False)

    def __iter__(self) -> Iterator[Document]:
        self.read = 0
        self.skipped = Counter()
        self.regrouped = set()
        self.longest = (0, "")
        self.whole = True
        documents = islice(self._counted(), self.limit)
        return documents if self.most is None else self._first(documents, self.most)

    def beginning(self, most: int) -> Documents:
        """Return the first documents, which have at least ``most`` characters in total."""
        first = copy(self)
        first.most = most
        return first

    def _first(self, documents: Iterable[Document], most: int) -> Iterator[Document]:
        size = 0
        for document in first_characters(documents, most):
            yield document
            size += len(document.text)
        self.whole = size < most

    def _counted(self) -> Iterator[Document]:
        """Yield and count the documents; skip repeated texts."""
        seen = _Seen()
        seen_in_groups = _Seen()
        for document in self._documents():
            repeated = not self.keep_repeated and seen.before(document.id)
            if self.fields.group:
                in_group = hash((document.id, document.group))
                if not seen_in_groups.before(in_group) and repeated:
                    self.regrouped.add(document.id)
            if repeated:
                self.skipped[REPEATED] += 1
                continue
            self.read += 1
            self.longest = max(self.longest, (len(document.text), document.name))
            yield document

    def _documents(self) -> Iterator[Document]:
        """Yield the documents of all records, in parts if a text is long; count skipped records."""
        records = self._records()
        if self.fields.may_differ:
            head = list(islice(records, HEAD_RECORDS))
            field = _longest_field([record for *_, record in head], self.name)
            self.fields = self.fields._replace(text=field)
            records = chain(head, records)
        for shard, number, record in records:
            found = self._document(shard, number, record)
            if isinstance(found, Skip):
                self.skipped[found.reason] += 1
            elif len(found.text) <= LONGEST_TEXT or found.tokens is not None:
                yield found
            else:
                yield from _parts(found)

    def _records(self) -> Iterator[tuple[Shard, int, Any]]:
        for shard in self.shards:
            for number, record in shard.records():
                yield shard, number, record

    def _document(self, shard: Shard, number: int, record: Any) -> Document | Skip:
        text = record
        name = group = ""
        first = None
        tokens = None
        if isinstance(record, Mapping):
            own_name = inside(record, self.fields.id)
            if not _is_empty(own_name):
                name = in_utf8(str(own_name)).decode()
            if self.fields.group:
                group = group_key(record, self.fields.group)
            text = inside(record, self.fields.text)
        if isinstance(text, Part):
            text, first = text
        elif isinstance(text, Skip):
            return text
        name = name or shard.name_of(number)
        if self.fields.rows is not None:
            row = self.fields.rows.read(shard.name_of(number), text)
            if isinstance(row, Skip):
                return row
            text, tokens = row
        if not isinstance(text, str):
            return Skip(NO_TEXT)
        if not text.strip():
            return Skip(EMPTY)
        # NUL characters are a sign of a binary file.
        if "\0" in text:
            return Skip(BINARY)
        if not is_utf8(text):
            return Skip(NOT_UTF8)
        return Document(name, text, group=group, first=first, tokens=tokens)


def _parts(document: Document) -> Iterator[Document]:
    """Yield the parts of a document whose text is too long."""
    text = document.text
    first = document.first
    while text:
        end = len(text)
        if end > LONGEST_TEXT:
            # Cut before the last space or line break in the second half of the allowed length.
            # If there is none, cut at the allowed length.
            end = max(text.rfind(blank, LONGEST_TEXT // 2, LONGEST_TEXT) for blank in " \n")
            if end <= 0:
                end = LONGEST_TEXT
        if text.strip():
            part = replace(document, text=text[:end], first=first)
            first = part.id if first is None else first
            yield part
        text = text[end:]


def _is_empty(cell: object) -> bool:
    # In tables, an empty cell is "" or NaN.
    return str(cell).strip() in ("", "nan", "None")


def group_key(record: Mapping[str, object], field: str) -> str:
    """Return the text that decides the side of all records of a group; "" for one without a group.

    A group is the same whatever surrounds its name, whichever way its letters are composed, and
    whether a reader gives its number as 3 or as 3.0.

    Raises:
        MaskwiseError: the record is in several groups, whose members would be on both sides.

    >>> group_key({"author": " Ada "}, "author"), group_key({"author": 3.0}, "author")
    ('author=Ada', 'author=3')
    >>> group_key({"author": None}, "author")
    ''
    """
    group = inside(record, field)
    # Readers of Parquet give lists as arrays.
    if isinstance(group, list | tuple | set | np.ndarray):
        members = [*group]
        if len(members) > 1:
            raise MaskwiseError(
                f"a record is in several groups by {field}",
                got=members,
                allowed="one text or number in each record",
                do="make a field with one group for all records that share a member",
            )
        group = members[0] if members else None
    if isinstance(group, float) and group.is_integer():
        group = int(group)
    if _is_empty(group):
        return ""
    return f"{field}={unicodedata.normalize('NFC', str(group)).strip()}"


class Joined(Documents):
    """Several corpora, read one after the other, without repeated texts.

    >>> parts = [read_documents(["The cat sat.", "A dog ran."]), read_documents(["The cat sat."])]
    >>> [(document.text, document.source) for document in Joined(parts)]
    [('The cat sat.', 0), ('A dog ran.', 0)]
    """

    def __init__(self, parts: Sequence[Documents]):
        if not parts:
            raise MaskwiseError("there is no corpus to join", allowed="one or more")
        self.parts = parts
        name = " + ".join(part.name for part in parts)
        super().__init__((), name=name, fields=parts[0].fields)

    def beginning(self, most: int) -> Joined:
        """Return the beginning of every corpus, with the same number of characters each."""
        return Joined([part.beginning(most // len(self.parts)) for part in self.parts])

    def _documents(self) -> Iterator[Document]:
        for number, part in enumerate(self.parts):
            for document in part:
                document.source = number
                yield document
            self.skipped += part.skipped
            self.regrouped |= part.regrouped
            self.whole = self.whole and part.whole


def first_characters(documents: Iterable[Document], most: int) -> Iterator[Document]:
    """Yield documents until they have at least ``most`` characters in total."""
    total = 0
    for document in documents:
        yield document
        total += len(document.text)
        if total >= most:
            return


def longest_field(source: str) -> str:
    """Return the field of a corpus that ``read_documents`` takes for the text.

    Raises:
        MaskwiseError: the source cannot be read, or is a table whose first row is data.
    """
    documents = read_documents(source)
    next(iter(documents), None)
    return documents.fields.text


def _longest_field(records: Iterable[object], source: str) -> str:
    """Return "text" if records have a field "text", have token ids, or have no fields with texts;
    otherwise the field whose texts have the most characters in total.

    Raises:
        MaskwiseError: the records are of a table whose first row is data.
    """
    head = [record for record in records if isinstance(record, Mapping)]
    sizes = Counter[str]()
    for record in head:
        for path in paths(record):
            # The conventional name wins, even if a different field has longer texts. If it has no
            # text, or there are token ids, the user is told so: no other field is meant.
            if path in USUAL:
                return USUAL[0]
            text = inside(record, path)
            if isinstance(text, str):
                sizes[path] += len(text)
    if not sizes:
        return USUAL[0]
    longest = max(sizes, key=sizes.__getitem__)
    refuse_rows_as_names(head, longest, source)
    return longest


def _objects(shards: Iterable[Shard]) -> Iterator[Mapping[str, object]]:
    """Yield the records that have fields."""
    for shard in shards:
        for _, record in shard.records():
            if isinstance(record, Mapping):
                yield record


def field_note(documents: Documents, given: str) -> Iterator[str]:
    """Yield a note for the user if documents, of which one was read, are in another field than the
    given one.
    """
    found = documents.fields.text
    if documents.fields.may_differ and found != given:
        yield f"{documents.name}: the text is its field {found!r}, which has the longest texts"


def lines_note(source: str) -> str | None:
    """Return a note for the user if a file without blank lines is read line by line, else None."""
    path = user_path(source)
    if not path.is_file() or ending_of(path) not in PLAIN or text_per(path) != "line":
        return None
    return (
        f"{source} has no blank lines, so each line is read as one text; corpus.text_per=block "
        f"reads the whole file as one text"
    )


def is_source_code(source: str) -> bool:
    """Return whether a corpus is source code: a file of it, or a folder that mostly has it."""
    path = user_path(source)
    return path.exists() and look_in(path, TEXTS).source


def folder_note(source: str, *, tokens: bool = False) -> str | None:
    """Return a note for the user about a folder with files that are not read, or with source code.

    Args:
        source: the corpus.
        tokens: whether it holds token ids.
    """
    path = user_path(source)
    if not path.is_dir() or is_saved(path):
        return None
    found = look_in(path, IDS if tokens else TEXTS)
    if not found.source and not found.left_out:
        return None
    kind = "source code" if found.source else "token ids" if tokens else "texts"
    note = f"{source}: {plural(len(found.read), 'file')} of {kind}"
    if found.left_out:
        note += f"; not read: {most_frequent(found.left_out)}"
    if not found.source and found.left_out[".json"]:
        note += " (.json files are read only if there are no others)"
    return note


class _Seen:
    """A set of integers that takes about eight bytes per integer."""

    def __init__(self) -> None:
        # A set needs ten times the memory of an array, so the set has only the newest numbers.
        self.recent = set[int]()
        self.sorted = np.zeros(0, dtype=np.int64)

    def before(self, number: int) -> bool:
        """Return whether a number is in the set, and add the number."""
        place = self.sorted.searchsorted(number)
        if number in self.recent or (place < len(self.sorted) and self.sorted[place] == number):
            return True
        self.recent.add(number)
        # Merges are rare, because each copies the whole array.
        if len(self.recent) >= 1 << 16:
            self.sorted = np.union1d(self.sorted, list(self.recent))
            self.recent.clear()
        return False


def read_documents(
    source: str | Path | Sequence[str | Mapping[str, object]],
    *,
    text_field: str = "text",
    id_field: str = "id",
    text_per: str = "auto",
    group_field: str = "",
    limit: int | None = None,
    keep_repeated: bool = False,
    rows: RowReader | None = None,
) -> Documents:
    """Open a corpus: a file, a folder, a list or a data set.

    Args:
        source: one of

            - ``"bundled:wikipedia"``, a sample that comes with maskwise, or ``"bundled:world-0"``,
              texts about invented people;
            - a ``.txt`` (or ``.txt.gz``, ``.txt.zst``) file: documents are the blocks between blank
              lines, or usually a line if a file has no blank lines (``text_per``);
            - a ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.json`` or ``.json.gz`` file: one
              object (or string) per line; ``.json`` and ``.json.gz`` may also be one array;
            - a ``.csv``, ``.tsv``, ``.parquet`` or FASTA file;
            - a file of source code (``.py``, ``.c``, ``.js``, …), which is one document;
            - a folder of such files, read in the order of their names, or a folder written by
              ``save_to_disk``;
            - a list of strings or mappings;
            - ``"hf:NAME"``, ``"hf:NAME:CONFIG"`` or ``"hf:NAME:CONFIG:SPLIT"`` for
              ``datasets.load_dataset`` (CONFIG may be empty; SPLIT is "train" by default).

            A text of more than four million characters is split into several documents. Either
            all of them or none are held out.
        text_field: the field that holds the text; "article.body" is the field "body" of the object
            in the field "article". If it is "text" and no record has this field, it is the field
            with the longest texts.
        id_field: the field, or path, that holds the document's name, for people. Documents without
            a name are called "FILE#NUMBER", or "0", "1", … in a list.
        text_per: what one document of a plain text file is: "line", "block" (between blank lines),
            or "auto", which guesses from the beginning of the file.
        group_field: a field with the group of each document, such as its author. Either all
            documents of a group are held out or none. A document without a group decides alone. A
            text of several groups counts for the group that comes first.
        limit: the maximum number of documents.
        keep_repeated: whether to yield a text that equals an earlier text.
        rows: for a corpus of token ids, what reads its rows: ``TokenRows(TOKENIZER)``. The field
            ``text_field`` then holds the ids, and ``.npy`` and ``.npz`` files can be read, too.

    Raises:
        MaskwiseError: the source does not exist or has an unknown file extension. Later, when
            documents are read: a file is binary, mostly not UTF-8 or damaged, or a table has no
            text field.

    >>> documents = read_documents(["The cat sat.", "", {"id": "b", "text": "A dog ran."}])
    >>> [document.name for document in documents], dict(documents.skipped)
    (['0', 'b'], {'empty': 1})
    """
    if limit is not None:
        limit = whole_number("limit (the number of documents)", limit, least=1)
    require_known("text_per", text_per, ("auto", "line", "block"))
    may_differ = rows is None and text_field == USUAL[0]
    fields = FieldNames(text_field, id_field, text_per, group_field, rows, may_differ)
    shards = shards_of(source, fields, stream=False)
    name = str(source) if isinstance(source, str | Path) else UNNAMED
    return Documents(shards, name=name, fields=fields, limit=limit, keep_repeated=keep_repeated)


def require_documents(documents: Documents) -> Documents:
    """Return `documents`; raise a `MaskwiseError` with the reason if the corpus is empty."""
    if next(iter(documents), None) is not None:  # reads one document only
        return documents
    why = counted(documents.skipped) or "no text at all"
    if NO_TEXT not in documents.skipped:
        raise MaskwiseError(f"there is no document in {documents.name}", got=why)
    first = next(_objects(documents.shards), {})
    what = f"no document in {documents.name} has a text in its field {documents.fields.text!r}"
    texts = [path for path, value in fields_and_values(first) if isinstance(value, str)]
    numbered = [
        path for path, value in fields_and_values(first) if isinstance(value, list) and value
    ]
    if not texts and numbered:
        raise MaskwiseError(
            what,
            got=f"lists in {', '.join(numbered)}, and no field with a text",
            do=f"{TOKENS}; in Python, Masker and MaskingTrainer read token ids",
        )
    raise MaskwiseError(what, got=why, allowed=", ".join(texts) or None, do=name_it())


def batches(
    items: Iterable[Item],
    size: int,
    *,
    measure: Callable[[Item], int] = len,  # type: ignore[assignment]  # texts
    most: int | None = None,
) -> Iterator[list[Item]]:
    """Group items into lists of about equal total size.

    Args:
        items: items of any kind.
        size: the total size of the items at which a list is complete.
        measure: a function that returns the size of an item; by default its length.
        most: the maximum number of items in a list.

    >>> list(batches(["one", "two", "four", "six"], 6))
    [['one', 'two'], ['four', 'six']]
    """
    batch = []
    total = 0
    for item in items:
        batch.append(item)
        total += measure(item)
        if total >= size or len(batch) == most:
            yield batch
            batch = []
            total = 0
    if batch:
        yield batch
