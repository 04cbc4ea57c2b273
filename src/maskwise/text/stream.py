"""Streams: text that becomes rows while a model is trained on it.

A *shard* is a file of the stream, or a shard of a `datasets.IterableDataset`. A *chunk* is a run of
records of a shard, of about one size. Where it ends depends only on the shard, the size and the
place where it begins. The documents of a chunk are tokenised, cut and packed by themselves, and
become a *block*. So any process can make it, and a resumed run needs no more than the place of a
chunk and a number of rows. The price is one partly filled row among the thousands of a block.

The hash of its text, not of its name, decides whether a document is held out: a text that comes
again stays on its side. Repeated texts are not left out, since nothing remembers them.

Cost: some 2 MB of text a second and process. Seeking is free in a plain file; a compressed file is
inflated up to the place (0.3 s for 100 MB).
"""

from __future__ import annotations

import glob
import hashlib
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, first_line
from maskwise.text.documents import Document, Documents, bundled_path, inside
from maskwise.text.hub import hub_parts, load_hub
from maskwise.text.layers import Layered
from maskwise.text.pieces import Ints, PieceBatch, read_pieces
from maskwise.text.readers import (
    LINE_ENDINGS,
    TEXT_ENDINGS,
    Fields,
    LineReader,
    PartName,
    Record,
    damaged,
    files_in,
    kind_of,
    known_ending,
    opened,
    parquet_rows,
    read_lines,
    refuse_unreadable,
    wanted,
)
from maskwise.text.rows import Rows, is_held_out, require_in_vocabulary
from maskwise.text.tokenizers import tokenise
from maskwise.text.words import text_id

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerFast

    StreamSource: TypeAlias = str | Path | Sequence[str | Path] | IterableDataset

ENDINGS = (*LINE_ENDINGS, *TEXT_ENDINGS, ".parquet")
MEGABYTE = 1 << 20
PROBES = 16
PROBE_BYTES = 1 << 12
"""Bytes of each of the stretches of a large file that are hashed for its fingerprint."""


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
        while content := read_lines(file, size):
            chunk = Chunk(self.name, content, lines)
            lines += content.count(b"\n")
            # The last line of a file may lack its line feed.
            if not content.endswith(b"\n"):
                lines += 1
            # Blank lines at the end of a file would be a block without documents.
            if content.strip():
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
            if end - begin >= size:
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
                # evenly over the file, its beginning and end included
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
        # other columns may be large, and chunks are sent to other processes
        known = (self.fields.id, self.fields.text, self.fields.text.split(".")[0])
        try:
            rows = ({key: row[key] for key in known if key in row} for row in part)
            yield from _chunks_of_rows(
                rows, self.name, self.fields, place, size, state=part.state_dict
            )
        except MaskwiseError:
            raise
        except Exception as error:
            # network, hub, builder and format errors have no common base
            raise MaskwiseError(f"cannot read {self.name}: {first_line(error)}") from error

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
    # None ends the last chunk
    for row in chain(rows, [None]):
        if row is not None:
            number += 1
            records.append((f"{name}#{number}", row))
            characters += len(str(inside(row, fields.text) or ""))
        if records and (row is None or characters >= size):
            yield Chunk(name, records), Place(state() if state else number, number)
            records = []
            characters = 0


def _seek(file: IO[bytes], offset: int) -> None:
    """Move to a place in the inflated bytes of a file that has just been opened."""
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        # nothing is read where the file has become shorter
        offset -= len(file.read(min(offset, MEGABYTE))) or offset


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
        shards = [shard for name in source for shard in _shards_of_name(str(name), fields)]
        rename_alike(shards)
        return shards
    if not hasattr(source, "load_state_dict"):
        what = "a stream cannot be read from this"
        allowed = "files, a folder, a pattern, a datasets.IterableDataset"
        raise MaskwiseError(what, got=type(source).__name__, allowed=allowed)
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
    else:
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
        named = {str(file): file for file in matches if file.is_file()}
        if not named:
            do = "give a file, a folder, a pattern such as 'texts/*.jsonl', or hf:NAME"
            raise MaskwiseError(f"corpus {source!r} does not exist, and no file matches it", do=do)
        if len({file.name for file in named.values()}) == len(named):
            # masks depend on names, and rows on the order of names
            named = {file.name: file for file in named.values()}
        files = {
            name: named[name] for name in sorted(named) if known_ending(named[name]) in ENDINGS
        }
    if not files:
        allowed = ", ".join(ENDINGS)
        raise MaskwiseError(f"no file of {source} can be read as a stream", allowed=allowed)
    return [FileShard(file, name, fields) for name, file in files.items()]


def _shards_of_dataset(dataset: Any, name: str, fields: Fields) -> list[Shard]:
    return [DatasetShard(dataset, number, name, fields) for number in range(dataset.num_shards)]


class Block(NamedTuple):
    """The rows of a chunk, or None; its documents, and those that were left out by reason."""

    rows: Rows | None
    documents: int
    skipped: Counter[str]


@dataclass(frozen=True, eq=False)
class BlockMaker:
    """Make blocks of chunks, in any process; it can be pickled.

    Attributes:
        tokenizer: a fast tokenizer.
        length: L, tokens of a row.
        layout: as for ``Rows.of``.
        held_out: share of the documents that are left out.
        fields: names of the fields with the text and the name of a record.
        layers: an annotator that makes layers besides words.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int
    layout: str = "packed"
    held_out: float = 0.0
    fields: Fields = field(default_factory=Fields)
    layers: Layered | None = None

    def __call__(self, chunk: Chunk) -> Block:
        """Make the block of a chunk."""
        documents = chunk.documents(self.fields)
        # held out before tokenising, which is the costly part
        kept = [document for document in documents if not self.holds_out(document)]
        every = tokenise(kept, self.tokenizer, layers=self.layers)
        tokens = [document for document in every if len(document.input_ids)]
        if not tokens:
            return Block(None, 0, documents.skipped)
        pieces = read_pieces(tokens, tokenizer=self.tokenizer, length=self.length)
        return Block(Rows.of(pieces, self.layout), len(kept), documents.skipped)

    def holds_out(self, document: Document) -> bool:
        """Tell whether a document is held out: by its text, or by its name if it has parts."""
        # repeated texts must be on one side, though nothing remembers them
        if not self.held_out:
            return False
        key = document.text
        if isinstance(document.id, PartName):
            key = document.id.whole
        return bool(is_held_out(text_id(key), self.held_out))


@dataclass(frozen=True, eq=False)
class Stream:
    """Text to train on that is read as it is needed.

    Attributes:
        sources: the shards of each source of a mix, by name; one source if there is no mix.
        maker: makes blocks of their chunks.
        shuffle: megabytes of text whose rows are shuffled together (the order of shards is random
            too); 0: rows and shards come in their order.
        repeat: whether the text is read again if it ends before the training does.
        counts: (V,) count of each token in the beginning of the stream.

    >>> from maskwise.text import bundled_path, shards_of, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> maker = BlockMaker(tokenizer, length=32)
    >>> stream = Stream({"trivia": shards_of(bundled_path("trivia"))}, maker)
    >>> stream.length, stream.layout
    (32, 'packed')
    """

    sources: Mapping[str, Sequence[Shard]]
    maker: BlockMaker
    shuffle: float = 1.0
    repeat: bool = True
    counts: Ints | None = None

    @property
    def length(self) -> int:
        """L, tokens of a row."""
        return self.maker.length

    @property
    def layout(self) -> str:
        """Layout of the rows, as for ``Rows.of``."""
        return self.maker.layout

    @property
    def chunk_size(self) -> int:
        """Bytes of text in a block."""
        return max(1, round((self.shuffle or 1) * MEGABYTE))

    def laid(self, layout: str) -> Stream:
        """Return the same text in another layout; its pieces keep their names and masks."""
        return replace(self, maker=replace(self.maker, layout=layout))

    def unigram_counts(self, vocab_size: int) -> Ints:
        """(V,) count every token in the beginning of the stream.

        Raises:
            MaskwiseError: a token outside the vocabulary.
        """
        total = np.zeros(vocab_size, np.int64)
        if self.counts is not None:
            counts = np.trim_zeros(self.counts, "b")
            require_in_vocabulary(len(counts) - 1, vocab_size)
            total[: len(counts)] = counts
        return total


def read_shards(shards: Sequence[Shard], fields: Fields, *, name: str) -> Documents:
    """Return the documents of all shards, re-iterable."""

    def records() -> Iterator[Record]:
        for shard in shards:
            for chunk, _ in shard.chunks(BEGINNING, MEGABYTE):
                yield from chunk.records()

    return Documents(records, name=name, fields=fields, keep_repeated=True)


def joined(batches: Sequence[PieceBatch]) -> PieceBatch:
    """Concatenate the rows of several batches."""
    if len(batches) == 1:
        return batches[0]
    counts = [int(batch.rows[-1]) + 1 for batch in batches]
    before = np.cumsum([0, *counts[:-1]])
    columns = {}
    for name in batches[0].columns:
        columns[name] = np.concatenate([batch.columns[name] for batch in batches])
    return batches[0]._replace(
        columns=columns,
        lengths=np.concatenate([batch.lengths for batch in batches]),
        example_ids=np.concatenate([batch.example_ids for batch in batches]),
        rows=np.concatenate([batch.rows + shift for batch, shift in zip(batches, before)]),
    )
