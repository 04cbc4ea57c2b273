"""Annotations on disk, made once per corpus.

    OUT/
      manifest.json              of which texts, by which annotators, in which shards; written last
      shards/NAME-KEY.parquet    what one annotator found in one shard: a row per document, in their order
      fitted/NAME-KEY/           what an annotator learnt from the whole corpus
      summary.json               counts of all layers

The name of a shard's file is a hash of all that it depends on: its documents and the annotator's
version. So a file that is there is done: a second run is instant, one that was killed goes on,
another tagger or one changed character makes a new file, and nothing else. Files appear whole,
under their final name.

Shards end behind a document whose hash says so (about 1 in 128) or when they are full. So a
document more, or a longer one, moves the borders of its own shard only.

Columns: ``id``, ``text`` (int64, `text_id` of the text), and per layer ``NAME.start``, ``NAME.end``
(list<int32>, characters) and ``NAME.value`` (list<int16> codes or list<float>).

Cost: 3 to 6 bytes per word and layer on disk; 16 bytes of memory per document to find it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskwise.annotate.counts import find
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.segments import rank_within
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.words import text_id

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_DOCUMENTS = 128
"""On average; four times as many at most."""
SHARD_CHARACTERS = 1 << 19
"""A second or two of a tagger's work: what a kill may cost, and how evenly two processes finish."""
SpansOfTexts = Sequence[Mapping[str, CharSpans]]


class LayerFacts(TypedDict):
    """What is counted of a layer in one shard; labels are codes, as strings."""

    spans: int
    characters: int
    words: int
    labels: NotRequired[dict[str, int]]
    top: NotRequired[dict[str, dict[str, int]]]
    weight: NotRequired[list[float]]  # sum, least, greatest


class ShardFacts(TypedDict):
    """What is counted of one annotator in one shard; it stands in the footer of the shard's file."""

    documents: int
    characters: int
    words: int
    failures: dict[str, int]
    layers: dict[str, LayerFacts]


def cut_shards(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents, a shard at a time."""
    shard: list[Document] = []
    characters = 0
    for document in documents:
        shard.append(document)
        characters += len(document.text)
        full = characters >= SHARD_CHARACTERS or len(shard) >= 4 * SHARD_DOCUMENTS
        if full or text_id(document.text) % SHARD_DOCUMENTS == 0:
            yield shard
            shard, characters = [], 0
    if shard:
        yield shard


def shard_key(shard: Sequence[Document]) -> str:
    """Hash of the names and texts of a shard."""
    parts: list[object] = []
    for document in shard:
        parts += [document.id, text_id(document.text)]
    return digest(FORMAT, *parts)


def file_name(annotator: str, version: str, shard: str) -> str:
    """Where the layers of an annotator for the shard with that key stand, inside of ``shards/``."""
    return f"{annotator}-{digest(version, shard)}.parquet"


def to_parquet(
    shard: Sequence[Document], spans: SpansOfTexts, layers: Mapping[str, Layer], facts: ShardFacts
) -> bytes:
    """A shard's file. The same input gives the same bytes.

    Args:
        shard: D documents.
        spans: for each its spans by layer.
        layers: what the layers are.
        facts: JSON to go with it (`shard.shard_facts`).
    """
    columns: dict[str, pa.Array] = {
        "id": pa.array([document.id for document in shard], pa.string()),
        "text": pa.array([text_id(document.text) for document in shard], pa.int64()),
    }
    for name, layer in layers.items():
        of_texts = [by_layer[name] for by_layer in spans]
        offsets = pa.array(np.cumsum([0, *(len(own.start) for own in of_texts)]), pa.int32())
        sides = {"start": np.int32, "end": np.int32, "value": layer.dtype}
        for side, dtype in sides.items():
            if dtype is not None:
                flat = np.concatenate([getattr(own, side) for own in of_texts]).astype(dtype)
                columns[f"{name}.{side}"] = pa.ListArray.from_arrays(offsets, pa.array(flat))
    table = pa.table(columns).replace_schema_metadata({"maskwise": json.dumps(facts)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def stored_facts(path: Path) -> ShardFacts | None:
    """What `to_parquet` was given as ``facts``; None where there is no whole file, all of which can
    be read.
    """
    try:
        content = path.read_bytes()
        pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        return facts_in(content)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None


def facts_in(content: bytes) -> ShardFacts:
    """The facts in the footer of a shard's file."""
    schema = pq.read_schema(pa.BufferReader(content))
    facts: ShardFacts = json.loads((schema.metadata or {})[b"maskwise"])
    return facts


@dataclass(frozen=True)
class Part:
    """One annotator's part of a store: its name, the string that asked for it, its version, and its
    layers.
    """

    name: str
    spec: str
    version: str
    layers: dict[str, Layer]


@dataclass(frozen=True)
class Manifest:
    """What is in a store.

    Attributes:
        source: where the texts came from.
        corpus: hash of all documents, in their order.
        documents, characters: how many there are.
        annotators: who made layers. shards: the keys of the shards, in their order.
    """

    source: str
    corpus: str
    documents: int
    characters: int
    annotators: tuple[Part, ...]
    shards: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """
        Raises:
            MaskwiseError: no manifest, or a damaged one.
        """
        try:
            plain = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if plain.pop("format") != FORMAT:
                raise ValueError("of another format")
            parts = tuple(
                Part(**part | {"layers": _layers(part["layers"])}) for part in plain["annotators"]
            )
            return cls(**plain | {"annotators": parts, "shards": tuple(plain["shards"])})
        except FileNotFoundError:
            do = (
                "make them with maskwise annotate; an interrupted run goes on with the same command"
            )
            raise MaskwiseError(f"{folder} holds no finished annotations", do=do) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MaskwiseError(
                f"{folder / MANIFEST} is damaged: {error}", do="annotate again"
            ) from error


def _layers(plain: Mapping[str, Any]) -> dict[str, Layer]:
    return {name: Layer(layer["kind"], tuple(layer["labels"])) for name, layer in plain.items()}


class Store:
    """Layers that maskwise annotate has made of the same texts: whatever takes an annotator takes a
    store.

    Args:
        folder: what ``maskwise annotate`` wrote.
        only: some of its layers, by name; all of them if not said.

    Raises:
        MaskwiseError: nothing there, or no such layer.
    """

    name = "stored"
    whole_texts = True

    def __init__(self, folder: str | Path, only: Iterable[str] | None = None):
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self._makers: dict[str, Part] = {}
        for part in self.manifest.annotators:
            self._makers.update(dict.fromkeys(part.layers, part))
        wanted = set(self._makers if only is None else only)
        for name in wanted - self._makers.keys():
            raise unknown_name(f"layer in {folder}:", name, self._makers)
        self.layers = {
            name: part.layers[name] for name, part in self._makers.items() if name in wanted
        }
        self._held: dict[str, tuple[int, dict[str, pa.Array]]] = {}

    @property
    def version(self) -> str:
        """Hash of the texts and of who annotated them."""
        makers = [
            (m.name, m.version)
            for m in self.manifest.annotators
            if m.layers.keys() & self.layers.keys()
        ]
        return digest(self.manifest.corpus, makers, [*self.layers])

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its spans by layer, as they were found.

        Raises:
            MaskwiseError: a text that was not annotated (one other character makes another text),
                or a damaged file.
        """
        known, shard, row = self._index
        names = np.array([text_id(text) for text in texts], dtype=np.int64)
        places = find(known, names)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            text = texts[missing[0]]
            raise MaskwiseError(
                f"the layers in {self.folder} were made from another text",
                got=f"{text[:40]!r}…, text key {names[missing[0]]}",
                allowed=f"the {self.manifest.documents} documents of corpus {self.manifest.corpus}",
                do="annotate this corpus",
            )
        found = []
        for place in places.tolist():
            found.append(
                {
                    name: self._spans(name, int(shard[place]), int(row[place]))
                    for name in self.layers
                }
            )
        return found

    @cached_property
    def _index(self) -> tuple[Any, Any, Any]:
        """(D,) sorted text keys, and the shard and row of each."""
        part = self.manifest.annotators[0]
        names = [self._read(part, key, ["text"])["text"].to_numpy() for key in self.manifest.shards]
        sizes = np.array([len(own) for own in names])
        shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        row = rank_within(sizes).astype(np.int32)
        every = np.concatenate(names)
        order = np.argsort(every, kind="stable")
        return every[order], shard[order], row[order]

    def _spans(self, name: str, shard: int, row: int) -> CharSpans:
        table = self._table(self._makers[name], shard)
        sides = ("start", "end", "value") if self.layers[name].dtype else ("start", "end")
        return CharSpans(*(table[f"{name}.{side}"][row].values.to_numpy() for side in sides))

    def _table(self, part: Part, shard: int) -> dict[str, pa.Array]:
        """The columns of a shard; the last shard read is kept, because texts mostly come in their
        order.
        """
        held, columns = self._held.get(part.spec, (-1, {}))
        if held != shard:
            table = self._read(part, self.manifest.shards[shard])
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            self._held[part.spec] = shard, columns
        return columns

    def _read(self, part: Part, key: str, columns: list[str] | None = None) -> pa.Table:
        path = self.folder / "shards" / file_name(part.name, part.version, key)
        try:
            return pq.read_table(path, columns=columns, page_checksum_verification=True)
        except (OSError, pa.ArrowInvalid) as error:
            do = "give the same maskwise annotate command again: it mends what is missing"
            raise MaskwiseError(f"{path} is missing or damaged", do=do) from error
