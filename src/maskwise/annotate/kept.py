"""Annotations in a folder: each is of a text, by an annotator, and is computed once.

    OUT/
      NAME-VERSION/KEY.parquet   spans of one annotator in one shard: a row per text
      fitted/NAME-…/             what an annotator learned from a whole corpus
      layers.json                the annotators, with their layers; written last
      summary.json               counts of the layers in the latest corpus

A shard is a group of neighbouring texts, and KEY is the hash of these texts. VERSION is a hash of
everything else that the spans depend on. So the name of a file says what is in it, and a file is
never out of date: a folder may have the annotations of any number of corpora, a second run makes
only what is missing, and nothing is compared or removed. Files are written atomically, so a killed
run resumes.

A shard ends after a text whose hash is divisible by 128 (about 1 in 128), or when the shard is
full. A new or changed text therefore changes only the shard with this text. Texts in another order
have other neighbours, so they are annotated anew.

Columns: ``text`` (int64, the hash `text_id` of the text); and, for each layer,
``NAME.start`` and ``NAME.end`` (list<int32>, character offsets) and ``NAME.value`` (list<int16>
codes of labels, or list<float> weights). If the annotator failed on texts of the shard, which then
have no spans, the footer of the file has the errors. Everything else that is known of a layer is
counted from these columns (tally.py).

Cost: 3 to 6 bytes on disk per word and layer; to read layers, 16 bytes of memory per text and
annotator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from maskwise.base.errors import MaskwiseError, items_of, require_known
from maskwise.base.folders import LAYERS, MANIFEST, read_json
from maskwise.base.specs import Call, user_path
from maskwise.masking.segments import Array, owners, rank_within
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Found, Layer, Layers, digest
from maskwise.text.words import Ints, text_id

SHARD_DOCUMENTS = 128
"""Average number of documents per shard; the maximum is four times as large."""
SHARD_CHARACTERS = 1 << 19
"""Number of characters at which a shard is full. It may be exceeded by the last document. Tagging
so many characters takes a second or two. Therefore a killed run loses little work, and processes
wait little for each other at the end."""
FOOTER = b"maskwise"
"""Key of the JSON object in the footer of a file."""


class TextShard(NamedTuple):
    """Neighbouring documents of a corpus.

    Attributes:
        number: the index of the shard in the corpus.
        documents: the documents.
        key: the hash of their texts.
        annotators: the annotators to run, as strings.
    """

    number: int
    documents: list[Document]
    key: str
    annotators: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of the files with their annotations."""
        return f"{self.key}.parquet"

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))

    def __str__(self) -> str:
        first = self.documents[0].name
        last = self.documents[-1].name
        return f"shard {self.number} (documents {first!r} to {last!r})"


def cut_shards(documents: Iterable[Document]) -> Iterator[TextShard]:
    """Group neighbouring documents into shards. Where a shard ends depends on the texts only."""
    for number, part in enumerate(_parts(documents)):
        keys = [text_id(document.text) for document in part]
        yield TextShard(number, part, digest(2, *keys))


def _parts(documents: Iterable[Document]) -> Iterator[list[Document]]:
    part = []
    characters = 0
    for document in documents:
        part.append(document)
        characters += len(document.text)
        full = characters >= SHARD_CHARACTERS or len(part) >= 4 * SHARD_DOCUMENTS
        if full or text_id(document.text) % SHARD_DOCUMENTS == 0:
            yield part
            part = []
            characters = 0
    if part:
        yield part


# Files
# -------------------------------------------------------------------------------------------


def layer_columns(name: str, layer: Layer) -> dict[str, pa.DataType]:
    """Return the columns of a layer in a file, and the types of what their lists hold."""
    columns = {f"{name}.start": pa.int32(), f"{name}.end": pa.int32()}
    if layer.dtype is not None:
        columns[f"{name}.value"] = pa.from_numpy_dtype(layer.dtype)
    return columns


def to_parquet(
    texts: Sequence[str],
    spans: Sequence[Mapping[str, CharSpans]],
    layers: Layers,
    failures: Mapping[str, int],
) -> bytes:
    """Encode one annotator's spans in a shard as a Parquet file. Equal arguments give equal bytes.

    Args:
        texts: the texts of the shard.
        spans: the spans of each text, keyed by layer.
        layers: the layers to write.
        failures: the number of texts on which the annotator failed, keyed by error.
    """
    columns = {"text": pa.array(list(map(text_id, texts)), pa.int64())}
    for name, layer in layers.items():
        of_texts = zip(*[found[name] for found in spans])
        for (column, kind), values in zip(layer_columns(name, layer).items(), of_texts):
            columns[column] = pa.array(values, pa.list_(kind))
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
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        failures_in(table)
        return table
    # A damaged footer is not JSON.
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise MaskwiseError(
            f"{path} is missing or damaged",
            do="run the same maskwise annotate command again to write the file anew",
        ) from error


def is_whole(path: Path) -> bool:
    """Return whether a file of a shard exists and is not damaged."""
    with suppress(MaskwiseError):
        read_shard(path)
        return True
    return False


def failures_in(table: pa.Table) -> dict[str, int]:
    """Return the number of texts of a shard on which the annotator failed, keyed by error."""
    footer = json.loads((table.schema.metadata or {}).get(FOOTER, b"{}"))
    return footer.get("failures", {})


@dataclass(frozen=True)
class KeptAnnotator:
    """An annotator whose annotations are in a folder.

    Attributes:
        folder: the folder of its files, which is named after it and its version.
        spec: the annotator as the user wrote it, with arguments.
        settings: its version before it was fitted to a corpus.
        layers: its layers, keyed by name.
    """

    folder: str
    spec: str
    settings: str
    layers: dict[str, Layer]

    def place(self, layer: str) -> str:
        """Return the name of a layer of this annotator, and no other."""
        return f"{self.folder}/{layer}"


def kept_annotators(folder: Path) -> list[KeptAnnotator]:
    """Return the annotators in a folder of annotations, those of the latest call first.

    There are none if no call has finished, or if ``layers.json`` is damaged.

    Raises:
        MaskwiseError: another version wrote the folder.
    """
    # An older one wrote annotations of one corpus. Its files do not say of which texts they are.
    if (folder / MANIFEST).exists():
        raise MaskwiseError(
            f"an older maskwise wrote {folder}, which has annotations of one corpus",
            do="give a new folder",
        )
    content = read_json(folder / LAYERS) or {}
    try:
        return TypeAdapter(list[KeptAnnotator]).validate_python(content.get("annotators"))
    except ValueError:
        return []


# Reading
# -------------------------------------------------------------------------------------------


class _Index(NamedTuple):
    """Where the annotations of N texts are.

    Attributes:
        files: the files.
        keys: (N,) the hashes of the texts, ascending.
        file, row: (N,) the index of the file of each text, and its row there.
    """

    files: list[Path]
    keys: Ints
    file: Array
    row: Array


class Store:
    """The annotations in a folder that ``maskwise annotate`` wrote, as an annotator.

    A layer may have been annotated several times: by fits of an annotator to several corpora, such
    as the frequencies of words, or by several versions of it. Then the latest annotations are read
    that have all texts; of several fits, that with the fewest texts, which is the fit to just these
    texts if there is one.

    Args:
        folder: the folder.
        only: the names of the layers to read; None reads all layers. "frequency-0f6a…/frequency"
            is the layer ``frequency`` as it is in this folder of the folder.

    Raises:
        MaskwiseError: there are no annotations, or no such layer.
    """

    name = "stored"
    whole_texts = True

    def __init__(self, folder: str | Path, only: Iterable[str] | None = None):
        self.folder = user_path(folder)
        kept = kept_annotators(self.folder)
        if not kept:
            raise MaskwiseError(
                f"{self.folder} holds no finished annotations",
                got=f"{LAYERS} is missing or damaged",
                do="run maskwise annotate; the same command resumes an interrupted run",
            )
        found = [(name, part) for part in kept for name in part.layers]
        known = {*dict(found), *(part.place(name) for name, part in found)}
        wanted = known if only is None else {*items_of("only", only, of="layers", single=True)}
        for name in wanted:
            require_known(f"layer in {folder}:", name, known)
        self._choices: dict[str, list[KeptAnnotator]] = {}
        for name, part in found:
            if wanted & {name, part.place(name)}:
                parts = self._choices.setdefault(name, [])
                # The latest call says what a layer is.
                if not parts or parts[0].layers[name] == part.layers[name]:
                    parts.append(part)
        self.layers = {name: parts[0].layers[name] for name, parts in self._choices.items()}
        self._indexes: dict[str, _Index] = {}
        # Texts mostly come in the order of the corpus. Therefore only the last shard that was read
        # is cached, for each annotator.
        self._held: dict[str, tuple[Path, dict[str, pa.Array]]] = {}

    @property
    def fitted(self) -> bool:
        """Whether it is known which annotations are read, whatever the texts are."""
        return all(len(parts) == 1 for parts in self._choices.values())

    @property
    def _places(self) -> tuple[str, ...]:
        return tuple(parts[0].place(name) for name, parts in self._choices.items())

    @property
    def version(self) -> str:
        """A hash of the annotators of these layers."""
        return digest(self._places)

    @property
    def choices(self) -> str:
        """A hash of all annotations among which the texts choose."""
        places = {
            name: [part.place(name) for part in parts] for name, parts in self._choices.items()
        }
        return digest(places)

    def latest(self) -> Store:
        """Return the annotations of the latest call, whatever else has made these layers."""
        return Store(self.folder, self._places)

    def of(self, texts: Iterable[str]) -> Store:
        """Return the annotations that have all these texts, if there is a choice; if none have
        them, those of the latest call.
        """
        if self.fitted:
            return self
        keys = np.fromiter(map(text_id, texts), np.int64)
        places = []
        for name, parts in self._choices.items():
            whole = [part for part in parts if np.isin(keys, self._index(part).keys).all()]
            # If there are none, reading those of the latest call says which text they lack.
            whole = whole or parts[:1]
            fits = [part for part in whole if part.settings == whole[0].settings]
            best = min(fits, key=lambda part: len(self._index(part).keys))
            places.append(best.place(name))
        return Store(self.folder, places)

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Return the spec of the annotations that have all these texts. Nothing is written."""
        return self.of(texts).spec

    @property
    def spec(self) -> str:
        """The string that names the annotations of the latest call."""
        return str(Call(self.name, (str(self.folder),), {"only": self._places}))

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of each text, keyed by layer.

        Raises:
            MaskwiseError: no annotations have all these texts, or a file is damaged.
        """
        if not self.fitted:
            return self.of(texts).annotate(texts)
        keys = np.array(list(map(text_id, texts)), dtype=np.int64)
        spans: list[Found] = [{} for _ in texts]
        for name, (part,) in self._choices.items():
            index = self._index(part)
            columns = layer_columns(name, self.layers[name])
            places = self._places_of(part, keys, texts)
            files, rows = index.file[places].tolist(), index.row[places].tolist()
            for found, file, row in zip(spans, files, rows):
                table = self._table(part, index.files[file])
                found[name] = CharSpans(*[table[each][row].values.to_numpy() for each in columns])
        return spans

    def _places_of(self, part: KeptAnnotator, keys: Ints, texts: Sequence[str]) -> Ints:
        """Return the places (N,) of N texts, whose hashes are ``keys``, in the index of a part.

        Raises:
            MaskwiseError: a text has no annotations.
        """
        known = self._index(part).keys
        # Corpora that share texts may have them in several files; the last one is the latest.
        places = known.searchsorted(keys, side="right") - 1
        # The place of a text before all others is -1, which selects the key of no text.
        lacking = np.append(known, -1)[places] != keys
        if lacking.any():
            first = int(lacking.argmax())
            raise MaskwiseError(
                f"the layers in {self.folder} were made from different texts",
                got=f"{texts[first][:40]!r}…, text key {keys[first]}",
                allowed=f"the {len(np.unique(known)):,} texts that {part.spec} has annotated",
                do=f"run maskwise annotate on the whole corpus, all of its sources together, "
                f"into {self.folder}",
            )
        return places

    def _index(self, part: KeptAnnotator) -> _Index:
        if part.folder not in self._indexes:
            files = (self.folder / part.folder).glob("*.parquet")
            ordered = sorted(files, key=lambda path: path.stat().st_mtime_ns)
            texts = [read_shard(path, ["text"])["text"].to_numpy() for path in ordered]
            sizes = np.array(list(map(len, texts)), dtype=np.int64)
            keys = np.concatenate([np.zeros(0, np.int64), *texts])
            order = keys.argsort(kind="stable")
            places = (owners(sizes), rank_within(sizes))
            file, row = (each.astype(np.int32)[order] for each in places)
            self._indexes[part.folder] = _Index(ordered, keys[order], file, row)
        return self._indexes[part.folder]

    def _table(self, part: KeptAnnotator, path: Path) -> dict[str, pa.Array]:
        held, columns = self._held.get(part.folder, (None, {}))
        if held != path:
            table = read_shard(path)
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            self._held[part.folder] = (path, columns)
        return columns
