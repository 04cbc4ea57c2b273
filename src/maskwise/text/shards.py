"""Shards of a stream: files or data sets, read in chunks from any place.

Cost: seeking is free in a plain file; a compressed file is inflated up to the place (0.3 s for
100 MB).
"""

from __future__ import annotations

import glob
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from maskwise.errors import MaskwiseError, first_line
from maskwise.text.documents import Documents, bundled_path, inside
from maskwise.text.hub import hub_parts, load_hub
from maskwise.text.opening import damaged, opened, refuse_unreadable
from maskwise.text.readers import (
    LINE_ENDINGS,
    TEXT_ENDINGS,
    Fields,
    LineReader,
    Record,
    files_in,
    kind_of,
    known_ending,
    parquet_rows,
    read_lines,
    wanted,
)

if TYPE_CHECKING:
    from datasets import IterableDataset

    StreamSource: TypeAlias = str | Path | Sequence[str | Path] | IterableDataset

ENDINGS = (*LINE_ENDINGS, *TEXT_ENDINGS, ".parquet")
MEGABYTE = 1 << 20
PROBES = 16
PROBE_BYTES = 1 << 12
"""The fingerprint of a large file covers this many stretches, of this many bytes each."""


class Place(NamedTuple):
    """The beginning of a chunk.

    Attributes:
        at: offset in bytes in a file of lines (inflated), in rows in a Parquet file, or the state
            of an `IterableDataset`.
        records: number of records before it in the shard.
        whole: name of the document that it continues, if it begins inside one.
    """

    at: Any = 0
    records: int = 0
    whole: str | None = None


BEGINNING = Place()


class Chunk(NamedTuple):
    """A run of records of a shard, as it is sent to the process that makes rows of it.

    Attributes:
        name: name of the shard.
        content: bytes of JSON lines, or records that had to be read to be counted.
        lines: number of lines of the file before the bytes.
    """

    name: str
    content: bytes | list[Record]
    lines: int = 0

    def records(self) -> Iterable[Record]:
        """Return the records; bytes are decoded and parsed while they are iterated over."""
        if isinstance(self.content, bytes):
            reader = LineReader(self.name, "json", number=self.lines)
            return reader.records(io.BytesIO(self.content))
        return self.content

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
        """Yield the chunks after a place, each with its end.

        Args:
            place: `BEGINNING`, or the end of a chunk.
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
        self.path = path
        self.name = name
        self.fields = fields

    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        with damaged(self.path):
            if known_ending(self.path) == ".parquet":
                rows = parquet_rows(self.path, self.fields, first=place.at)
                yield from _chunks_of_rows(rows, self.name, self.fields, place, size)
                return
            if place == BEGINNING:
                refuse_unreadable(self.path)
            kind = kind_of(self.path, self.fields)
            with opened(self.path) as file:
                _seek(file, place.at)
                if kind == "json":
                    yield from self._json_chunks(file, place, size)
                else:
                    reader = LineReader(self.name, kind, place.records, place.whole)
                    yield from self._text_chunks(file, reader, size)

    def _json_chunks(
        self, file: IO[bytes], place: Place, size: int
    ) -> Iterator[tuple[Chunk, Place]]:
        # This runs in the process that trains, so lines are cut here and parsed by the workers.
        lines = place.records
        while content := read_lines(file, size, begins=lines == 0):
            chunk = Chunk(self.name, content, lines)
            lines += content.count(b"\n")
            # The last line of a file may lack its line feed.
            if not content.endswith(b"\n"):
                lines += 1
            yield chunk, Place(file.tell(), lines)

    def _text_chunks(
        self, file: IO[bytes], reader: LineReader, size: int
    ) -> Iterator[tuple[Chunk, Place]]:
        # Texts are numbered without blank and bad lines, so they must be decoded to be counted.
        begin = file.tell()
        records: list[Record] = []
        for record in reader.records(file):
            records.append(record)
            end = file.tell()
            # The lines of an open block have been read, and would be lost at the next place.
            if end - begin >= size and not reader.inside:
                yield Chunk(self.name, records), Place(end, reader.number, reader.whole)
                begin = end
                records = []
        if records:
            yield Chunk(self.name, records), Place(file.tell(), reader.number)

    def fingerprint(self) -> str:
        with damaged(self.path), self.path.open("rb") as file:
            size = self.path.stat().st_size
            total = hashlib.blake2b(str(size).encode(), digest_size=12)
            if size <= PROBES * PROBE_BYTES:
                total.update(file.read())
            else:
                # The stretches are spread evenly, from the beginning to the end of the file.
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
        self.name = name
        if dataset.num_shards > 1:
            self.name = f"{name}/{number}"

    def chunks(self, place: Place, size: int) -> Iterator[tuple[Chunk, Place]]:
        part = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.number)
        if place.at:
            part.load_state_dict(place.at)
        try:
            yield from _chunks_of_rows(
                map(self._needed, part), self.name, self.fields, place, size, state=part.state_dict
            )
        except MaskwiseError:
            raise
        except Exception as error:
            # Errors of the network, the hub, builders and formats have no common base.
            raise MaskwiseError(f"cannot read {self.name}: {first_line(error)}") from error

    def _needed(self, row: Mapping[str, object]) -> dict[str, object]:
        """Drop other columns, which may be large: chunks are sent to other processes."""
        names = {self.fields.id, self.fields.text, self.fields.text.split(".")[0]}
        return {name: row[name] for name in names & row.keys()}

    def fingerprint(self) -> str:
        return f"{self.dataset.num_shards} shards"


def _chunks_of_rows(
    rows: Iterable[Mapping[str, object]],
    name: str,
    fields: Fields,
    place: Place,
    size: int,
    *,
    state: Callable[[], object] | None = None,
) -> Iterator[tuple[Chunk, Place]]:
    """Collect rows in chunks; a place is a ``state``, or else the number of rows before it."""
    records: list[Record] = []
    characters = 0
    number = place.records
    # None closes the last chunk.
    for row in chain(rows, [None]):
        if row is not None:
            number += 1
            records.append((f"{name}#{number}", row))
            characters += len(str(inside(row, fields.text) or ""))
        if records and (row is None or characters >= size):
            at: object = number
            if state:
                at = state()
            yield Chunk(name, records), Place(at, number)
            records = []
            characters = 0


def _seek(file: IO[bytes], offset: int) -> None:
    """Move to a place in the inflated bytes of a file that has just been opened."""
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        skipped = len(file.read(min(offset, MEGABYTE)))
        # A file that has become shorter ends before the place.
        if not skipped:
            return
        offset -= skipped


def shards_of(source: StreamSource, fields: Fields | None = None) -> list[Shard]:
    """Return the shards of a stream, in order.

    Args:
        source: a file, a folder of files, a pattern such as ``"texts/*.jsonl"``, a list of these,
            ``"bundled:NAME"``, ``"hf:NAME"`` (read over the network, as with
            ``datasets.load_dataset(…, streaming=True)``), or a `datasets.IterableDataset`.
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
        shards: list[Shard] = []
        for name in source:
            shards += _shards_of_name(str(name), fields)
        rename_alike(shards)
        return shards
    if not hasattr(source, "load_state_dict"):
        what = "a stream cannot be read from this"
        allowed = "files, a folder, a pattern, a datasets.IterableDataset"
        raise MaskwiseError(what, got=type(source).__name__, allowed=allowed)
    return _shards_of_dataset(source, source.info.dataset_name or "stream", fields)


def rename_alike(shards: Sequence[Shard]) -> None:
    """Name files by their whole paths if two have the same name, because masks depend on names."""
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
    if path.exists():
        files = files_in(path, ENDINGS)
    else:
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
        named = {str(file): file for file in matches if file.is_file()}
        if not named:
            do = "give a file, a folder, a pattern such as 'texts/*.jsonl', or hf:NAME"
            raise MaskwiseError(f"corpus {source!r} does not exist, and no file matches it", do=do)
        # Masks depend on names, and rows on the order of names.
        if len({file.name for file in named.values()}) == len(named):
            named = {file.name: file for file in named.values()}
        files = {}
        for name, file in sorted(named.items()):
            if known_ending(file) in ENDINGS:
                files[name] = file
    if not files:
        allowed = ", ".join(ENDINGS)
        raise MaskwiseError(f"no file of {source} can be read as a stream", allowed=allowed)
    return [FileShard(file, name, fields) for name, file in files.items()]


def _shards_of_dataset(dataset: IterableDataset, name: str, fields: Fields) -> list[Shard]:
    return [DatasetShard(dataset, number, name, fields) for number in range(dataset.num_shards)]
