"""Shards: the files of a stream, read chunk by chunk from any place.

A stream is not prepared: it is read while a model is trained on it. A *shard* is one of its files,
or one shard of a `datasets.IterableDataset`. A *chunk* is a stretch of whole records of about one
size. Where a chunk ends is a function of the shard, the size and the place where it begins, so a
place is all that a run needs to go on exactly.

Cost: a place in a plain file is found at once. In a compressed file everything before it is
    inflated (some 0.3 s for
100 MB), in Parquet the rows of its row group that stand before it are read, and in `datasets` those
of its shard.
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
from maskwise.text.documents import bundled_path, inside
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
    refuse_unreadable,
    wanted,
)

if TYPE_CHECKING:
    from datasets import IterableDataset

    StreamSource: TypeAlias = str | Path | Sequence[str | Path] | IterableDataset

ENDINGS = (*LINE_ENDINGS, *TEXT_ENDINGS, ".parquet")
PROBES, PROBE_BYTES = 16, 1 << 12
"""Stretches of a large file, evenly over it, that go into its fingerprint; and the bytes of each.
"""


class Place(NamedTuple):
    """Where a chunk begins.

    Attributes:
        at: bytes of a file of lines (inflated), rows of a Parquet file, or the state of an
            `IterableDataset`.
        records: how many stand before it in the shard.
    """

    at: Any = 0
    records: int = 0


BEGINNING = Place()


class Chunk(NamedTuple):
    """A stretch of a shard, as it is sent to whoever makes rows of it.

    Attributes:
        name: of the shard. first: the number of its first record, which counts from 1.
        kind: what is in it: JSON lines, plain text with a document on each line or in each block
            between blank lines, or records that are read already.
        content: bytes of whole lines, or the records.
    """

    name: str
    first: int
    kind: LineKind | Literal["records"]
    content: Any

    def records(self) -> Iterator[Record]:
        """The records, with the names that they have in a prepared corpus too."""
        if self.kind == "records":
            yield from (
                (f"{self.name}#{self.first + n}", value) for n, value in enumerate(self.content)
            )
            return
        yield from LINE_READERS[self.kind](io.BytesIO(self.content), self.name, first=self.first)


class Shard(ABC):
    """One shard of a stream.

    Attributes:
        name: what its records are called after.
    """

    name: str

    @abstractmethod
    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        """The chunks from a place on, each with the place behind it.

        Args:
            size: bytes of a file of lines, else characters; a chunk ends with the record that
                reaches it.

        Raises:
            MaskwiseError: a shard that cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that is another one when the shard has changed; large files are probed, not read."""


class FileShard(Shard):
    """A file of JSON lines, of plain text, or a Parquet file."""

    def __init__(self, path: Path, name: str, fields: Fields):
        if known_ending(path) not in ENDINGS:
            raise MaskwiseError(f"a stream cannot be read from {path}", allowed=", ".join(ENDINGS))
        self.path, self.name, self.fields = path, name, fields

    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        with damaged(self.path):
            if known_ending(self.path) == ".parquet":
                rows = parquet_rows(self.path, self._wanted, first=place.at)
                yield from _gathered(rows, self.name, self.fields, place, size)
                return
            if place == BEGINNING:
                refuse_unreadable(self.path)
            with opened(self.path) as file:
                _go_to(file, place.at)
                yield from self._stretches(file, place, size)

    def _stretches(self, file: IO[bytes], place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        kind = kind_of(self.path, self.fields)
        while content := file.read(size):
            content += _rest_of_line(file, content)
            if kind == "block":
                content += _rest_of_block(file, content)
            chunk = Chunk(self.name, place.records + 1, kind, content)
            if kind == "json":  # records are called after their lines
                records = content.count(b"\n") + (not content.endswith(b"\n"))
            else:
                records = sum(not isinstance(record, Skip) for record in chunk.records())
            place = Place(file.tell(), place.records + records)
            yield chunk, place

    def _wanted(self, columns: list[str]) -> list[str]:
        return wanted(columns, self.fields, str(self.path))

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
        self.dataset, self.number, self.fields = dataset, number, fields
        self.name = name if dataset.num_shards == 1 else f"{name}/{number}"

    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        part = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.number)
        if place.at:
            part.load_state_dict(place.at)
        known = (self.fields.id, self.fields.text, self.fields.text.split(".")[0])
        try:
            rows = ({key: row[key] for key in known if key in row} for row in part)
            yield from _gathered(rows, self.name, self.fields, place, size, state=part.state_dict)
        except MaskwiseError:
            raise
        except Exception as error:  # network, hub, builder and format errors have no common base
            raise MaskwiseError(f"cannot read {self.name}: {first_line(error)}") from error

    def fingerprint(self) -> str:
        return f"{self.dataset.num_shards} shards"


def _gathered(
    rows: Iterator[Mapping[str, Any]],
    name: str,
    fields: Fields,
    place: Place,
    size: int,
    *,
    state: Callable[[], object] | None = None,
) -> Iterator[tuple[Chunk, Place]]:
    """Records in chunks. A place is the number of the records before it, or what ``state`` says of
    it.
    """
    records: list[Mapping[str, Any]] = []
    total = 0
    for row in chain(rows, [None]):  # None ends the last chunk
        if row is not None:
            records.append(row)
            total += len(str(inside(row, fields.text) or ""))
        if records and (row is None or total >= size):
            chunk = Chunk(name, place.records + 1, "records", records)
            behind = place.records + len(records)
            place = Place(state() if state else behind, behind)
            yield chunk, place
            records, total = [], 0


def _go_to(file: IO[bytes], offset: int) -> None:
    """Move to a place in the inflated bytes of a file that has just been opened."""
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        offset -= len(file.read(min(offset, 1 << 20))) or offset


def _rest_of_line(file: IO[bytes], content: bytes) -> bytes:
    """What is missing of the last line; a line that is too long to be held is passed over."""
    if content.endswith(b"\n"):
        return b""
    rest = file.readline(LONGEST_LINE)
    more = rest
    while len(more) == LONGEST_LINE and not more.endswith(b"\n"):
        more = file.readline(LONGEST_LINE)
    # As long as it was, or with its end: either way it stays one line.
    return rest if more is rest or not more.endswith(b"\n") else rest + b"\n"


def _rest_of_block(file: IO[bytes], content: bytes) -> bytes:
    """Lines up to the next blank one, or as many as one text may have."""
    rest: list[bytes] = []
    size = 0
    line = content[content.rfind(b"\n", 0, -1) + 1 :]
    while line.strip() and size < LONGEST_TEXT:
        line = file.readline(LONGEST_LINE)
        line += _rest_of_line(file, line) if line else b""
        rest.append(line)
        size += len(line)
    return b"".join(rest)


def shards_of(source: StreamSource, fields: Fields | None = None) -> list[Shard]:
    """The shards of a stream, in order.

    Args:
        source: a file, a folder of files, a pattern such as ``"texts/*.jsonl"``, a list of these,
            ``"bundled:NAME"``, ``"hf:NAME"`` (read over the network, as ``datasets.load_dataset(…,
            streaming=True)`` does), or a `datasets.IterableDataset`.
        fields: under which names a record holds its text and its own name.

    Raises:
        MaskwiseError: no such source, or one that cannot be read bit by bit.

    >>> from maskwise.text import bundled_path
    >>> [shard.name for shard in shards_of(bundled_path("wikipedia"))]
    ['wikipedia.jsonl.gz']
    """
    fields = fields or Fields()
    if isinstance(source, str | Path):
        return _shards_of_name(str(source), fields)
    if not isinstance(source, Sequence):
        if not hasattr(source, "load_state_dict"):
            allowed = "files, a folder, a pattern, a datasets.IterableDataset"
            raise MaskwiseError(
                "a stream cannot be read from this", got=type(source).__name__, allowed=allowed
            )
        return _shards_of_dataset(source, source.info.dataset_name or "stream", fields)
    shards = [shard for each in source for shard in _shards_of_name(str(each), fields)]
    rename_alike(shards)
    return shards


def rename_alike(shards: Sequence[Shard]) -> None:
    """Call files by their whole paths where two have the same name: names are keys of masks."""
    if len({shard.name for shard in shards}) < len(shards):
        for shard in shards:
            shard.name = str(shard.path) if isinstance(shard, FileShard) else shard.name


def _shards_of_name(source: str, fields: Fields) -> list[Shard]:
    if source.startswith("hf:"):
        return _shards_on_the_hub(source, fields)
    if source.startswith("bundled:"):
        path = bundled_path(source.removeprefix("bundled:"))
        return [FileShard(path, path.name, fields)]
    path = Path(source).expanduser()
    if path.is_file():
        return [FileShard(path, path.name, fields)]
    if path.is_dir():
        files = files_in(path, ENDINGS)
    else:
        matches = [
            Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()
        ]
        if not matches:
            do = "give a file, a folder, a pattern such as 'texts/*.jsonl', or hf:NAME"
            raise MaskwiseError(
                f"corpus {source!r} does not exist, and no file is called so", do=do
            )
        alike = len({file.name for file in matches}) < len(matches)
        readable = [file for file in matches if known_ending(file) in ENDINGS]
        files = dict(sorted((str(file) if alike else file.name, file) for file in readable))
    if not files:
        raise MaskwiseError(
            f"no file of {source} can be read as a stream", allowed=", ".join(ENDINGS)
        )
    return [FileShard(file, name, fields) for name, file in files.items()]


def _shards_on_the_hub(source: str, fields: Fields) -> list[Shard]:
    name, config, split = hub_parts(source)
    return _shards_of_dataset(
        load_hub(source, name, config, split=split, streaming=True), name, fields
    )


def _shards_of_dataset(dataset: Any, name: str, fields: Fields) -> list[Shard]:
    return [DatasetShard(dataset, number, name, fields) for number in range(dataset.num_shards)]
