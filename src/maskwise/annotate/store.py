"""A store: the layers of a corpus on disk. A layer is one annotation, such as parts of speech.

    OUT/
      manifest.json              texts, annotators and shards; written last
      shards/NAME-KEY.parquet    spans of one annotator in one shard: a row per document, in order
      fitted/NAME-KEY/           what an annotator learned from the whole corpus
      summary.json               counts of all layers

A shard is a group of consecutive documents. KEY is a hash of everything that the file depends on:
the documents of the shard and the version of the annotator. Files are written atomically, so a file
that exists is complete. Therefore a second run of the same annotators writes no file, and a killed
run resumes. After a new version of an annotator or a change of a text, only some files are written.

A shard ends after a document whose hash is divisible by 128 (about 1 in 128), or when the shard is
full. A new or changed document therefore changes only the shard with this document.

Columns: ``text`` (int64, the hash `text_id` of the text); and, for each layer,
``NAME.start`` and ``NAME.end`` (list<int32>, character offsets) and ``NAME.value`` (list<int16>
codes of labels, or list<float> weights). If the annotator failed on texts of the shard, which then
have no spans, the footer of the file has the errors. Everything else that is known of a layer is
counted from these columns (tally.py).

Cost: 3 to 6 bytes on disk per word and layer; 16 bytes of memory per document, for an index of the
documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from maskwise.annotate.counts import places_of_keys
from maskwise.errors import MaskwiseError, first_line, items_of, require_known
from maskwise.folders import read_json, refuse_damaged
from maskwise.segments import Array, owners, rank_within
from maskwise.specs import user_path
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Found, Layer, digest
from maskwise.text.words import Ints, text_id

MANIFEST = "manifest.json"
SHARD_DOCUMENTS = 128
"""Average number of documents per shard; the maximum is four times as large."""
SHARD_CHARACTERS = 1 << 19
"""Number of characters at which a shard is full. It may be exceeded by the last document. Tagging
so many characters takes a second or two. Therefore a killed run loses little work, and processes
wait little for each other at the end."""
FOOTER = b"maskwise"
"""Key of the JSON object in the footer of a file. Files of earlier versions have counts there, too,
which are not read."""


def cut_shards(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group consecutive documents into shards, and yield each shard."""
    shard = []
    characters = 0
    for document in documents:
        shard.append(document)
        characters += len(document.text)
        full = characters >= SHARD_CHARACTERS or len(shard) >= 4 * SHARD_DOCUMENTS
        if full or text_id(document.text) % SHARD_DOCUMENTS == 0:
            yield shard
            shard = []
            characters = 0
    if shard:
        yield shard


def shard_key(shard: Sequence[Document]) -> str:
    """Return a hash of the texts of a shard."""
    return digest(2, *(text_id(document.text) for document in shard))


def to_parquet(
    shard: Sequence[Document],
    spans: Sequence[Mapping[str, CharSpans]],
    layers: Mapping[str, Layer],
    failures: Mapping[str, int],
) -> bytes:
    """Encode one annotator's spans in a shard as a Parquet file. Equal arguments give equal bytes.

    Args:
        shard: the documents.
        spans: the spans of each document, keyed by layer.
        layers: the layers to write.
        failures: the number of texts on which the annotator failed, keyed by error.
    """
    keys = [text_id(document.text) for document in shard]
    columns = {"text": pa.array(keys, pa.int64())}
    for name, layer in layers.items():
        sides = {"start": pa.int32(), "end": pa.int32()}
        if layer.dtype is not None:
            sides["value"] = pa.from_numpy_dtype(layer.dtype)
        of_texts = zip(*[found[name] for found in spans])
        for (side, kind), values in zip(sides.items(), of_texts):
            columns[f"{name}.{side}"] = pa.array(values, pa.list_(kind))
    table = pa.table(columns)
    if failures:
        table = table.replace_schema_metadata({FOOTER: json.dumps({"failures": failures})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the file of one annotator and one shard, and verify its checksums.

    Raises:
        MaskwiseError: the file is missing or damaged.
    """
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise MaskwiseError(
            f"{path} is missing or damaged",
            do="run the same maskwise annotate command again to write the file anew",
        ) from error


def is_whole(path: Path) -> bool:
    """Return whether a file of a shard exists and is not damaged."""
    try:
        failures_in(read_shard(path))
        return True
    # A damaged footer is not JSON.
    except (MaskwiseError, ValueError):
        return False


def failures_in(table: pa.Table) -> dict[str, int]:
    """Return the number of texts of a shard on which the annotator failed, keyed by error."""
    footer = json.loads((table.schema.metadata or {}).get(FOOTER, b"{}"))
    return footer.get("failures", {})


@dataclass(frozen=True)
class StoredAnnotator:
    """An annotator in a store.

    Attributes:
        name: the name of the annotator, such as "pos".
        spec: the annotator as the user wrote it, with arguments.
        version: a hash of everything that its spans depend on, except the texts.
        layers: its layers, keyed by name.
    """

    name: str
    spec: str
    version: str
    layers: dict[str, Layer]

    def file(self, shard: str) -> str:
        """Return the name of the file with the annotator's spans in the shard of key ``shard``."""
        return f"{self.name}-{digest(self.version, shard)}.parquet"


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``: what a store contains.

    Attributes:
        source: the name of the corpus.
        corpus: the hash of all documents, in order.
        documents: the number of documents.
        characters: the number of characters in all documents.
        annotators: the annotators with layers in the store.
        shards: the keys of the shards (hashes of their documents), in order.
    """

    source: str
    corpus: str
    documents: int
    characters: int
    annotators: tuple[StoredAnnotator, ...]
    shards: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Load and validate a manifest.

        Raises:
            MaskwiseError: there is no manifest, it is damaged, or another version wrote it.
        """
        if not (folder / MANIFEST).exists():
            raise MaskwiseError(
                f"{folder} holds no finished annotations",
                do="run maskwise annotate; the same command resumes an interrupted run",
            )
        # A manifest of another version is an error of its own.
        content = read_json(folder / MANIFEST, usable=True)
        try:
            return TypeAdapter(Manifest).validate_python(content)
        except ValueError as error:
            raise MaskwiseError(
                f"{folder / MANIFEST} is damaged: {first_line(error)}",
                do="annotate again",
            ) from error


class Store:
    """Layers that ``maskwise annotate`` wrote to a folder (a store).

    Args:
        folder: the folder that ``maskwise annotate`` wrote.
        only: the names of the layers to read; None reads all layers.

    Raises:
        MaskwiseError: there is no store, or no such layer.
    """

    name = "stored"
    whole_texts = True

    def __init__(self, folder: str | Path, only: Iterable[str] | None = None):
        self.folder = user_path(folder)
        self.manifest = Manifest.load(self.folder)
        self._makers: dict[str, StoredAnnotator] = {}
        stored = {}
        for part in self.manifest.annotators:
            for name, layer in part.layers.items():
                self._makers[name] = part
                stored[name] = layer
        if only is None:
            only = [*stored]
        wanted = set(items_of("only", only, of="layers", single=True))
        for name in wanted:
            require_known(f"layer in {folder}:", name, stored)
        self.layers = {name: layer for name, layer in stored.items() if name in wanted}
        # Texts mostly come in the order of the corpus. Therefore only the last shard that was read
        # is cached, for each annotator.
        self._held: dict[str, tuple[int, dict[str, pa.Array]]] = {}

    @property
    def version(self) -> str:
        """A hash of the texts and of the annotators of these layers."""
        makers = []
        for part in self.manifest.annotators:
            if part.layers.keys() & self.layers:
                makers.append((part.name, part.version))
        return digest(self.manifest.corpus, makers, [*self.layers])

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of each text, keyed by layer.

        Raises:
            MaskwiseError: a text differs from all annotated texts, or a file is damaged.
        """
        known, shard, row = self._index
        keys = np.array(list(map(text_id, texts)), dtype=np.int64)
        places = places_of_keys(known, keys)
        if (places < 0).any():
            missing = int(places.argmin())
            raise MaskwiseError(
                f"the layers in {self.folder} were made from different texts",
                got=f"{texts[missing][:40]!r}…, text key {keys[missing]}",
                allowed=f"the {self.manifest.documents} documents of corpus {self.manifest.corpus}",
                do="annotate the corpus with this text",
            )
        found = []
        for shard_of_text, row_of_text in zip(shard[places].tolist(), row[places].tolist()):
            spans = {}
            for name in self.layers:
                spans[name] = self._spans(name, shard_of_text, row_of_text)
            found.append(spans)
        return found

    @cached_property
    def _index(self) -> tuple[Ints, Array, Array]:
        """Where each of the D texts is stored.

        The sorted hashes of the texts, the number of the shard of each text, and its row in this
        shard, (D,) each.
        """
        # The files of all annotators list the same texts, so one annotator is enough.
        part = self.manifest.annotators[0]
        columns = []
        for key in self.manifest.shards:
            columns.append(self._read(part, key, ["text"])["text"].to_numpy())
        sizes = np.array(list(map(len, columns)))
        shard = owners(sizes).astype(np.int32)
        row = rank_within(sizes).astype(np.int32)
        keys = np.concatenate(columns)
        order = keys.argsort(kind="stable")
        return keys[order], shard[order], row[order]

    def _spans(self, name: str, shard: int, row: int) -> CharSpans:
        part = self._makers[name]
        held, columns = self._held.get(part.spec, (-1, {}))
        if held != shard:
            table = self._read(part, self.manifest.shards[shard])
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            self._held[part.spec] = (shard, columns)
        sides = ["start", "end"]
        if self.layers[name].dtype is not None:
            sides.append("value")
        return CharSpans(*[columns[f"{name}.{side}"][row].values.to_numpy() for side in sides])

    def _read(self, part: StoredAnnotator, key: str, columns: list[str] | None = None) -> pa.Table:
        return read_shard(self.folder / "shards" / part.file(key), columns)


# Tables that annotators compute from a whole corpus
# -------------------------------------------------------------------------------------------


def write_table(path: Path, columns: Mapping[str, object]) -> None:
    """Write columns of equal length to a Parquet file."""
    pq.write_table(pa.table(dict(columns)), path)


def read_parquet(path: Path, *columns: str) -> pa.Table:
    """Read columns from a Parquet file.

    Raises:
        MaskwiseError: the file is missing, is damaged or lacks a column.
    """
    refuse_damaged(path.parent)
    try:
        return pq.read_table(path).select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise MaskwiseError(
            f"cannot read {path}: {error}",
            do="give a folder OUT/fitted/NAME-… that maskwise annotate wrote",
        ) from None


def texts_in(path: Path, column: pa.ChunkedArray, *, what: str) -> list[str]:
    """Return the texts of a column that a user may have edited; ``what`` they are, such as "word".

    Raises:
        MaskwiseError: a row has no text.
    """
    texts = column.to_pylist()
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise MaskwiseError(f"{path}: row {number} has no {what}", got=text, allowed="a text")
    return texts
