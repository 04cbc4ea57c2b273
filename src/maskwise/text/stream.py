"""Streams: text that is tokenised and packed during training.

A *shard* is a file, or a shard of a `datasets.IterableDataset`. A *chunk* is a sequence of
consecutive records in a shard. Chunks have about the same size, and the end of a chunk depends only
on the shard, this size and the start of the chunk. The documents of a chunk are tokenised, cut and
packed into a *block* of thousands of rows, without documents of other chunks. Therefore, any
process can make a block, and a run can resume at a row of a block without making earlier blocks.
The price is one partly filled row in each block.

Copies of a text are not dropped, because a stream does not remember earlier texts. All of them are
held out or none, unless they are in several groups.

One core makes rows from 1 to 2 MB of text per second.
"""

from __future__ import annotations

import glob
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskwise.errors import MaskwiseError, first_line
from maskwise.folders import in_utf8
from maskwise.text.documents import Document, Documents, inside, source_path
from maskwise.text.layers import Layered
from maskwise.text.opening import damaged, opened, refuse_unreadable
from maskwise.text.pieces import Ints, read_pieces, tokenise
from maskwise.text.readers import (
    CORPUS_ENDINGS,
    JSON_ENDINGS,
    LINE_ENDINGS,
    TEXT_ENDINGS,
    Entry,
    FieldNames,
    hub_parts,
    is_json_array,
    kind_of,
    known_ending,
    line_records,
    load_hub,
    look_in,
    parquet_rows,
    parsed,
    wanted,
)
from maskwise.text.rows import Rows, holds_out, require_in_vocabulary
from maskwise.text.words import WordRule

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerFast

ENDINGS = (*LINE_ENDINGS, *TEXT_ENDINGS, ".parquet")
MEGABYTE = 1 << 20
PROBES = 16
PROBE_BYTES = 1 << 12
"""A large file is recognised by a hash of `PROBES` parts of `PROBE_BYTES` bytes each."""


class Chunk(NamedTuple):
    """Consecutive records of a shard, from which one process makes rows.

    Attributes:
        name: the name of the shard.
        content: the records.
        is_json: whether the records are JSON that has not been parsed yet.
    """

    name: str
    content: list[Entry]
    is_json: bool = False

    def records(self) -> Iterable[Entry]:
        """Return the records, parsed."""
        if self.is_json:
            return map(parsed, self.content)
        return self.content

    def documents(self, fields: FieldNames) -> Documents:
        """Return the documents in the records."""
        return Documents(self.records, name=self.name, fields=fields, keep_repeated=True)


class Shard(ABC):
    """One shard of a stream.

    Attributes:
        name: the beginning of the names of the shard's records.
    """

    name: str

    @abstractmethod
    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield the chunks, in order.

        Args:
            size: the size of a chunk, in bytes for a file of lines, else in characters. A chunk
                ends with the record that reaches this size.

        Raises:
            MaskwiseError: the shard cannot be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash that changes with the shard. In a large file, only parts are hashed."""


@dataclass(eq=False)
class FileShard(Shard):
    """A JSON lines file, a plain text file or a Parquet file."""

    path: Path
    name: str
    fields: FieldNames

    def chunks(self, size: int) -> Iterator[Chunk]:
        with damaged(self.path):
            if known_ending(self.path) == ".parquet":
                rows = parquet_rows(self.path, self.fields)
                yield from _chunks_of_rows(rows, self.name, self.fields, size)
                return
            refuse_unreadable(self.path)
            if known_ending(self.path) in JSON_ENDINGS and is_json_array(self.path):
                raise MaskwiseError(
                    f"{self.path} is a JSON array, which cannot be read as a stream",
                    do="write JSON lines, or set corpus.stream: false",
                )
            kind = kind_of(self.path, self.fields)
            with opened(self.path) as file:
                begin = 0
                records = []
                for record, end in line_records(file, self.name, kind):
                    records.append(record)
                    # ``end`` is None inside a block of lines, where a chunk does not end.
                    if end is not None and end - begin >= size:
                        yield Chunk(self.name, records, kind == "json")
                        begin = end
                        records = []
                if records:
                    yield Chunk(self.name, records, kind == "json")

    def fingerprint(self) -> str:
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


class DatasetShard(Shard):
    """One shard of a `datasets.IterableDataset`."""

    def __init__(self, dataset: IterableDataset, number: int, name: str, fields: FieldNames):
        if dataset.column_names:
            wanted(dataset.column_names, fields, name)
        self.dataset = dataset
        self.number = number
        self.fields = fields
        self.name = name
        if dataset.num_shards > 1:
            self.name = f"{name}/{number}"

    def chunks(self, size: int) -> Iterator[Chunk]:
        part = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.number)
        try:
            yield from _chunks_of_rows(map(self._needed, part), self.name, self.fields, size)
        except MaskwiseError:
            raise
        except Exception as error:
            # Network, hub, builder and format errors have no common base class.
            raise MaskwiseError(f"cannot read {self.name}: {first_line(error)}") from error

    def _needed(self, row: Mapping[str, object]) -> dict[str, object]:
        """Return only the text and the name, because chunks are sent to other processes."""
        paths = (self.fields.id, self.fields.text, self.fields.group)
        names = {*paths, *(path.split(".")[0] for path in paths)}
        return {name: row[name] for name in names & row.keys()}

    def fingerprint(self) -> str:
        return f"{self.dataset.num_shards} shards"


def _chunks_of_rows(
    rows: Iterable[Mapping[str, object]], name: str, fields: FieldNames, size: int
) -> Iterator[Chunk]:
    """Group rows into chunks of ``size`` characters."""
    records: list[Entry] = []
    characters = 0
    for number, row in enumerate(rows, start=1):
        records.append((f"{name}#{number}", row))
        characters += len(str(inside(row, fields.text) or ""))
        if characters >= size:
            yield Chunk(name, records)
            records = []
            characters = 0
    if records:
        yield Chunk(name, records)


def shards_of(source: str | Path, fields: FieldNames | None = None) -> list[Shard]:
    """Return the shards of a stream, in order.

    Args:
        source: a file, a folder of files, a pattern such as ``"texts/*.jsonl"``,
            ``"bundled:NAME"``, or ``"hf:NAME"`` (read over the network, as with
            ``datasets.load_dataset(…, streaming=True)``).
        fields: the fields that hold the text and the name of a record.

    Raises:
        MaskwiseError: the source does not exist, or cannot be read as a stream.

    >>> from maskwise.text import bundled_path
    >>> [shard.name for shard in shards_of(bundled_path("wikipedia"))]
    ['wikipedia.jsonl.gz']
    """
    fields = fields or FieldNames()
    source = str(source)
    shards: list[Shard] = []
    if source.startswith("hf:"):
        name, config, split = hub_parts(source)
        dataset = load_hub(source, name, config, split=split, streaming=True)
        for number in range(dataset.num_shards):
            shards.append(DatasetShard(dataset, number, name, fields))
        return shards
    path = source_path(source)
    if path.exists():
        for name, file in look_in(path, CORPUS_ENDINGS).read.items():
            if known_ending(file) not in ENDINGS:
                raise MaskwiseError(f"{file} cannot be a stream", do="give a pattern: 'a/*.txt'")
            shards.append(FileShard(file, name, fields))
    else:
        # A pattern with several ** may match a file twice; a dict removes duplicates.
        matches = dict.fromkeys(glob.glob(str(path), recursive=True))
        found = list(filter(Path.is_file, map(Path, matches)))
        if not found:
            what = f"corpus {source!r} does not exist, and no file matches it"
            do = "give a file, a folder, a pattern such as 'texts/*.jsonl', or hf:NAME"
            raise MaskwiseError(what, do=do)
        # The order of the shards must not depend on the file system, because rows depend on it.
        for file in sorted(found, key=lambda file: (file.name, file)):
            if known_ending(file) in ENDINGS:
                shards.append(FileShard(file, file.name, fields))
    # Names of documents are in UTF-8, but names of files may contain other bytes.
    for shard in shards:
        shard.name = in_utf8(shard.name).decode()
    if not shards:
        what = f"no file of {source} can be read as a stream"
        raise MaskwiseError(what, allowed=", ".join(ENDINGS))
    return shards


@dataclass(frozen=True, eq=False)
class BlockMaker:
    """Makes rows from chunks. A maker can be pickled and sent to another process.

    Attributes:
        tokenizer: a fast tokenizer.
        length: L, the number of tokens in a row.
        layout: the layout of the rows, as for ``Rows.of``.
        held_out: the share of the documents that is held out.
        fields: the fields that hold the text and the name of a record.
        layers: an annotator whose annotation layers are added to the rows; None for no layers.
        words: the word rule, as for `tokenise`.
    """

    tokenizer: PreTrainedTokenizerFast
    length: int
    layout: str = "packed"
    held_out: float = 0.0
    fields: FieldNames = field(default_factory=FieldNames)
    layers: Layered | None = None
    words: WordRule = "auto"

    def __call__(self, chunk: Chunk) -> Rows | None:
        """Return the rows of a chunk, or None if the chunk has no text to train on."""
        # Held-out documents are dropped before the tokenizer runs, because it is the slowest step.
        kept = filterfalse(self.holds_out, chunk.documents(self.fields))
        tokens = list(tokenise(kept, self.tokenizer, layers=self.layers, words=self.words))
        if not any(batch.lengths.any() for batch in tokens):
            return None
        pieces = read_pieces(tokens, tokenizer=self.tokenizer, length=self.length)
        return Rows.of(pieces, self.layout)

    def holds_out(self, document: Document) -> bool:
        """Return whether a document is held out."""
        return holds_out(document, self.held_out)


@dataclass(frozen=True, eq=False)
class Stream:
    """Training text that is read on demand.

    Attributes:
        sources: the shards of each source, keyed by the name of the source.
        maker: a callable that makes rows from chunks of the shards.
        shuffle: the megabytes of text in a chunk. Rows are shuffled within a chunk, and the order
            of shards is random, too. With 0, rows and shards keep their order.
        repeat: whether the text is read again if it ends before training does.
        counts: (V,) the count of each token in the beginning of the stream; None if not counted.

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
        """L, the number of tokens in a row."""
        return self.maker.length

    @property
    def layout(self) -> str:
        """The layout of the rows, as for ``Rows.of``."""
        return self.maker.layout

    @property
    def chunk_size(self) -> int:
        """Size of a chunk, in bytes of text."""
        return max(1, round((self.shuffle or 1) * MEGABYTE))

    def laid(self, layout: str) -> Stream:
        """Return the same text in a different layout. The ids and masks of pieces stay the same."""
        return replace(self, maker=replace(self.maker, layout=layout))

    def unigram_counts(self, vocab_size: int) -> Ints:
        """Return the count of each token in the beginning of the stream, (V,); all 0 if unknown.

        Raises:
            MaskwiseError: a token is outside the vocabulary.
        """
        total = np.zeros(vocab_size, np.int64)
        if self.counts is not None:
            counts = np.trim_zeros(self.counts, "b")
            require_in_vocabulary(len(counts) - 1, vocab_size)
            total[: len(counts)] = counts
        return total


def read_shards(shards: Sequence[Shard], fields: FieldNames, *, name: str) -> Documents:
    """Return the documents of all shards, which can be read several times."""

    def records() -> Iterator[Entry]:
        for shard in shards:
            for chunk in shard.chunks(MEGABYTE):
                yield from chunk.records()

    return Documents(records, name=name, fields=fields, keep_repeated=True)


MOST_CHARACTERS = 1 << 26
"""Maximum number of characters read before training, divided equally among the sources."""
HELD_OUT_CHARACTERS = 1 << 20
"""Number of held-out characters to evaluate on. Further held-out text of a stream is not used."""
# Number of training characters from which token frequencies are estimated.
COUNTED_CHARACTERS = 1 << 22


def read_beginning(
    sources: Mapping[str, Sequence[Shard]], maker: BlockMaker
) -> tuple[list[Document], list[Document], dict[str, object]]:
    """Read the beginning of each source, until there is enough training and held-out text.

    Returns:
        The training documents, the held-out documents, and a dict with the number of characters
        read and the numbers of records skipped, by reason.

    Raises:
        MaskwiseError: there are no training documents or no held-out documents, or no document
            has a group.
    """
    sides: dict[bool, list[Document]] = {False: [], True: []}
    read = 0
    skipped = Counter[str]()
    grouped = 0
    field = maker.fields.group
    most = {True: HELD_OUT_CHARACTERS / len(sources), False: COUNTED_CHARACTERS / len(sources)}
    for name, shards in sources.items():
        kept = {False: 0, True: 0}
        characters = 0
        documents = read_shards(shards, maker.fields, name=name)
        for document in documents:
            size = len(document.text)
            characters += size
            grouped += bool(document.group)
            held_out = maker.holds_out(document)
            # Documents are dropped once there is enough training or held-out text, respectively.
            if kept[held_out] < most[held_out]:
                sides[held_out].append(document)
                kept[held_out] += size
            both_full = all(kept[side] >= most[side] for side in most)
            if both_full or characters >= MOST_CHARACTERS / len(sources):
                break
        read += characters
        skipped.update(documents.skipped)
    if field and not grouped:
        raise MaskwiseError(
            f"corpus.group_field={field}: no document in the beginning of the stream has this "
            "field",
            got=f"{read:,} characters",
            do="name the field with the group of each document",
        )
    for side, documents_of_side in (("training", sides[False]), ("held-out", sides[True])):
        if not documents_of_side:
            raise MaskwiseError(
                f"corpus.held_out={maker.held_out} leaves no {side} documents in the beginning of "
                "the stream",
                got=f"{read:,} characters",
                do="give more text, or use a different share",
            )
    return sides[False], sides[True], {"read_characters": read, "skipped": dict(skipped)}
