"""Shards: the files of a stream, read in chunks from any place.

A *shard* is a file of the stream, or a shard of a `datasets.IterableDataset`. A *chunk* is a run of
whole records of a shard, of about one size. Where it ends depends only on the shard, the size and
the place where it begins, so a place is all that a resumed run needs.

Cost: seeking is free in a plain file. A compressed file is inflated up to the place (0.3 s for
100 MB); in Parquet the rows of one row group are read, and in `datasets` those of the shard.
"""

from __future__ import annotations

import glob
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from maskwise.errors import MaskwiseError, first_line
from maskwise.text.documents import Documents, bundled_path, inside
from maskwise.text.readers import (
    LINE_ENDINGS,
    LINE_READERS,
    LONGEST_LINE,
    LONGEST_TEXT,
    TEXT_ENDINGS,
    Fields,
    LineKind,
    Record,
    Skip,
    damaged,
    files_in,
    hub_parts,
    kind_of,
    known_ending,
    load_hub,
    opened,
    parquet_rows,
    read_blocks,
    refuse_unreadable,
    wanted,
    whole_name,
)

if TYPE_CHECKING:
    from datasets import IterableDataset

    StreamSource: TypeAlias = str | Path | Sequence[str | Path] | IterableDataset

ENDINGS = (*LINE_ENDINGS, *TEXT_ENDINGS, ".parquet")
MEGABYTE = 1 << 20
PROBES, PROBE_BYTES = 16, 1 << 12
"""Stretches of a large file that are hashed for its fingerprint, and the bytes of each."""


class Place(NamedTuple):
    """Where a chunk begins.

    Attributes:
        at: bytes of a file of lines (inflated), rows of a Parquet file, or the state of an
            `IterableDataset`.
        records: number of records before it in the shard.
        whole: the name of a document that began before it, if it begins inside one.
    """

    at: Any = 0
    records: int = 0
    whole: str | None = None


BEGINNING = Place()


class Chunk(NamedTuple):
    """A run of records of a shard, as it is sent to the process that makes rows of it.

    Attributes:
        name: of the shard.
        first: the number of its first record, from 1.
        kind: format of the content.
        content: bytes of whole lines, or records that were already read.
        whole: the name of a document of an earlier chunk that the content begins inside of.
        cut: whether the last document continues in the next chunk.
    """

    name: str
    first: int
    kind: LineKind | Literal["records"]
    content: Any
    whole: str | None = None
    cut: bool = False

    def records(self) -> Iterator[Record]:
        """Yield the records, named as in a prepared corpus."""
        if self.kind == "records":
            for number, value in enumerate(self.content, start=self.first):
                yield f"{self.name}#{number}", value
            return
        file = io.BytesIO(self.content)
        if self.kind == "block":
            yield from read_blocks(
                file, self.name, first=self.first, whole=self.whole, cut=self.cut
            )
        else:
            yield from LINE_READERS[self.kind](file, self.name, first=self.first)

    def documents(self, fields: Fields) -> Documents:
        """Return the documents of the records."""
        return Documents(self.records, name=self.name, fields=fields, keep_repeated=True)


class Shard(ABC):
    """One shard of a stream.

    Attributes:
        name: prefix of the names of its records.
    """

    name: str

    @abstractmethod
    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        """Yield the chunks from a place on, each with the place after it.

        Args:
            place: `BEGINNING`, or one that was yielded before.
            size: bytes of a file of lines, else characters; a chunk ends with the record that
                reaches it.

        Raises:
            MaskwiseError: a shard that cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the shard, to notice changes; large files are probed, not read."""


class FileShard(Shard):
    """A file of JSON lines, of plain text, or a Parquet file."""

    def __init__(self, path: Path, name: str, fields: Fields):
        if known_ending(path) not in ENDINGS:
            raise MaskwiseError(f"a stream cannot be read from {path}", allowed=", ".join(ENDINGS))
        self.path = path
        self.name = name
        self.fields = fields

    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        with damaged(self.path):
            if known_ending(self.path) == ".parquet":
                rows = parquet_rows(self.path, self.fields, first=place.at)
                yield from _chunks_of_records(rows, self.name, self.fields, place, size)
                return
            if place == BEGINNING:
                refuse_unreadable(self.path)
            with opened(self.path) as file:
                _seek(file, place.at)
                yield from self._chunks_of_lines(file, place, size)

    def _chunks_of_lines(
        self, file: IO[bytes], place: Place, size: int
    ) -> Iterator[tuple[Chunk, Place]]:
        kind = kind_of(self.path, self.fields)
        before, whole, cut = place.records, place.whole, False
        while content := file.read(size):
            content += _rest_of_line(file, content)
            if kind == "block":
                rest, cut = _rest_of_block(file, content)
                content += rest
            chunk = Chunk(self.name, before + 1, kind, content, whole, cut)
            if kind == "json":  # records are numbered by their lines
                before += content.count(b"\n") + (not content.endswith(b"\n"))
            else:
                names = [record[0] for record in chunk.records() if not isinstance(record, Skip)]
                before += len(names)
                whole = whole_name(names[-1]) if cut and names else None
            yield chunk, Place(file.tell(), before, whole)

    def fingerprint(self) -> str:
        with damaged(self.path), self.path.open("rb") as file:
            size = self.path.stat().st_size
            total = hashlib.blake2b(str(size).encode(), digest_size=12)
            if size <= PROBES * PROBE_BYTES:
                total.update(file.read())
            else:
                for probe in range(PROBES):
                    file.seek(probe * (size - PROBE_BYTES) // (PROBES - 1))
                    total.update(file.read(PROBE_BYTES))
        return total.hexdigest()


class DatasetShard(Shard):
    """One shard of a `datasets.IterableDataset`."""

    def __init__(self, dataset: IterableDataset, number: int, name: str, fields: Fields):
        if dataset.column_names:
            wanted(dataset.column_names, fields, name)
        self.dataset = dataset
        self.number = number
        self.fields = fields
        self.name = name if dataset.num_shards == 1 else f"{name}/{number}"

    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        part = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.number)
        if place.at:
            part.load_state_dict(place.at)
        known = (self.fields.id, self.fields.text, self.fields.text.split(".")[0])
        try:
            rows = ({key: row[key] for key in known if key in row} for row in part)
            yield from _chunks_of_records(
                rows, self.name, self.fields, place, size, state=part.state_dict
            )
        except MaskwiseError:
            raise
        except Exception as error:  # network, hub, builder and format errors have no common base
            raise MaskwiseError(f"cannot read {self.name}: {first_line(error)}") from error

    def fingerprint(self) -> str:
        return f"{self.dataset.num_shards} shards"


def _chunks_of_records(
    rows: Iterator[Mapping[str, Any]],
    name: str,
    fields: Fields,
    place: Place,
    size: int,
    *,
    state: Callable[[], object] | None = None,
) -> Iterator[tuple[Chunk, Place]]:
    """Collect records in chunks; a place is a ``state``, or else the number of records before it."""
    records: list[Mapping[str, Any]] = []
    characters, before = 0, place.records
    for row in chain(rows, [None]):  # None ends the last chunk
        if row is not None:
            records.append(row)
            characters += len(str(inside(row, fields.text) or ""))
        if records and (row is None or characters >= size):
            chunk = Chunk(name, before + 1, "records", records)
            before += len(records)
            yield chunk, Place(state() if state else before, before)
            records, characters = [], 0


def _seek(file: IO[bytes], offset: int) -> None:
    """Move to a place in the inflated bytes of a file that has just been opened."""
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        # nothing is read where the file has become shorter
        offset -= len(file.read(min(offset, MEGABYTE))) or offset


def _rest_of_line(file: IO[bytes], content: bytes) -> bytes:
    """Read what is missing of the last line; of a line that is too long only so much."""
    if content.endswith(b"\n"):
        return b""
    rest = more = file.readline(LONGEST_LINE)
    while len(more) == LONGEST_LINE and not more.endswith(b"\n"):
        more = file.readline(LONGEST_LINE)
    # a line of which a part was left out still ends, so that lines keep their numbers
    return rest if more is rest or not more.endswith(b"\n") else rest + b"\n"


def _rest_of_block(file: IO[bytes], content: bytes) -> tuple[bytes, bool]:
    """Read lines up to the next blank one, or as many as one text may have: then it is cut."""
    rest: list[bytes] = []
    size = 0
    line = content[content.rfind(b"\n", 0, -1) + 1 :]
    while line.strip() and size < LONGEST_TEXT:
        line = file.readline(LONGEST_LINE)
        line += _rest_of_line(file, line) if line else b""
        rest.append(line)
        size += len(line)
    return b"".join(rest), bool(line.strip())


def shards_of(source: StreamSource, fields: Fields | None = None) -> list[Shard]:
    """Return the shards of a stream, in order.

    Args:
        source: a file, a folder of files, a pattern such as ``"texts/*.jsonl"``, a list of these,
            ``"bundled:NAME"``, ``"hf:NAME"`` (read over the network, as ``datasets.load_dataset(…,
            streaming=True)`` does), or a `datasets.IterableDataset`.
        fields: names of the fields with the text and the name of a record.

    Raises:
        MaskwiseError: a source that does not exist, or cannot be read bit by bit.

    >>> from maskwise.text import bundled_path
    >>> [shard.name for shard in shards_of(bundled_path("wikipedia"))]
    ['wikipedia.jsonl.gz']
    """
    fields = fields or Fields()
    if isinstance(source, str | Path):
        return _shards_of_name(str(source), fields)
    if isinstance(source, Sequence):
        shards = [shard for name in source for shard in _shards_of_name(str(name), fields)]
        rename_alike(shards)
        return shards
    if not hasattr(source, "load_state_dict"):
        raise MaskwiseError(
            "a stream cannot be read from this",
            got=type(source).__name__,
            allowed="files, a folder, a pattern, a datasets.IterableDataset",
        )
    return _shards_of_dataset(source, source.info.dataset_name or "stream", fields)


def rename_alike(shards: Sequence[Shard]) -> None:
    """Name files by their whole paths if two have the same name: masks depend on names."""
    if len({shard.name for shard in shards}) < len(shards):
        for shard in shards:
            if isinstance(shard, FileShard):
                shard.name = str(shard.path)


def _shards_of_name(source: str, fields: Fields) -> list[Shard]:
    if source.startswith("hf:"):
        name, config, split = hub_parts(source)
        dataset = load_hub(source, name, config, split=split, streaming=True)
        return _shards_of_dataset(dataset, name, fields)
    path = Path(source).expanduser()
    if source.startswith("bundled:"):
        path = bundled_path(source.removeprefix("bundled:"))
    if path.is_file():
        return [FileShard(path, path.name, fields)]
    if path.is_dir():
        files = files_in(path, ENDINGS)
        if not files:
            raise MaskwiseError(
                f"no file of {source} can be read as a stream", allowed=", ".join(ENDINGS)
            )
        return [FileShard(file, name, fields) for name, file in files.items()]
    matches = sorted(glob.glob(str(path), recursive=True))
    readable = [file for file in map(Path, matches) if file.is_file() and known_ending(file)]
    if not readable:
        do = "give a file, a folder, a pattern such as 'texts/*.jsonl', or hf:NAME"
        raise MaskwiseError(f"corpus {source!r} does not exist, and no file matches it", do=do)
    shards: list[Shard] = [FileShard(file, file.name, fields) for file in readable]
    rename_alike(shards)
    return shards


def _shards_of_dataset(dataset: Any, name: str, fields: Fields) -> list[Shard]:
    return [DatasetShard(dataset, number, name, fields) for number in range(dataset.num_shards)]
