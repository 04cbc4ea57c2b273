"""Count what annotators found: one pass over the finished files of a store, beside their texts.

The files have the spans of each document, and the corpus has the texts that the spans cover.
Workers that annotate count nothing, so a count needs nothing but the folder and the corpus, and is
the same for files of this run and of earlier runs. All counts are exact: of words, of spans, of
labels, and of how often each text occurs as a span.

A shard is counted by columns, without a Python object for each span: the texts of its spans are
slices of one buffer of bytes, and pyarrow counts equal ones.

Cost: 50 ns per character, .1 µs per span, and reading the corpus and the files once more. A million
documents with 441 million characters and 124 million spans take 69 s, of which 38 s are for
reading; words, sentences and their weights are annotated in 405 s by one process. Memory: 25 bytes
for each different text of a span, and 150 while equal texts are counted; texts of more than
``SHORT_CHARACTERS`` characters are not kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from maskwise.annotate.shard import BORDERS, PART_CHARACTERS
from maskwise.annotate.store import failures_in
from maskwise.annotate.tagger import cut_text
from maskwise.segments import Array
from maskwise.text.english import other_language
from maskwise.text.layers import Annotator, Layer
from maskwise.text.words import Ints, classify, codes_of, join_texts, word_starts

TOP_SPANS = 200
"""Number of most common texts that are listed for each label, in a layer of spans."""
TOP_WORDS = 20
"""Number of most common texts that are listed for each label, in a layer of word labels."""
SHORT_CHARACTERS = 60
"""Maximum length of the spans whose texts are counted. Longer spans (sentences) rarely repeat."""
MERGE_SPANS = 1 << 20
"""Number of spans that are kept before equal texts are counted. It is large, because each count
goes through all different texts so far."""
LARGE_BYTES = 1 << 30
"""From this size on, texts get offsets of 64 bits, and pyarrow counts them more slowly."""

READ = ("gold", "spans", "stored")
"""Annotators that read the spans of known texts."""
LOOKED_AT = 2000
"""Number of characters of a text by which its language is recognised."""
NOTHING = "it found nothing in these texts"
NOTHING_READ = (
    "none of these texts has spans in its file; a text must be the same there, letter by letter"
)
FOREIGN = (
    "the bundled tagger is for English, and these texts seem not to be; name a spaCy pipeline of "
    "their language: pos(model='de_core_news_sm')"
)


class LayerSummary(TypedDict):
    """Counts of a layer in the corpus.

    Attributes:
        kind: the kind of the layer; see `Layer`.
        spans: the number of spans.
        share_of_words: the share of the words of the corpus that are in spans.
        labels: the number of spans with each label, most frequent label first.
        top: for each label, the most common texts of its spans, as [text, count].
        weight: the ``mean``, ``least`` and ``greatest`` weight.
    """

    kind: str
    spans: int
    share_of_words: float
    labels: NotRequired[dict[str, int]]
    top: NotRequired[dict[str, list[list[str | int]]]]
    weight: NotRequired[dict[str, float]]


class AnnotatorSummary(TypedDict):
    """Counts of an annotator in the corpus, and messages for the user.

    ``notice`` is the annotator's own: its layers are empty or nearly useless, and a study ends.
    ``doubt`` says that they are perhaps not what the user wants. ``failures`` has the number of
    texts on which the annotator failed, keyed by error.
    """

    notice: str | None
    doubt: str | None
    failures: dict[str, int]
    layers: dict[str, LayerSummary]


class Tally:
    """Counts of several annotators in a corpus, which is added shard by shard.

    Args:
        annotators: the annotators, keyed by the names that their summaries shall have.
    """

    def __init__(self, annotators: Mapping[str, Annotator]):
        self.words = 0
        # The annotators for English, and whether the texts are in another language, once known.
        self._english = {key for key, each in annotators.items() if getattr(each, "english", False)}
        self._foreign: bool | None = None
        self._annotators = annotators
        self._failures = {asked: Counter[str]() for asked in annotators}
        self._layers: dict[str, list[_LayerTally]] = {}
        for asked, maker in annotators.items():
            self._layers[asked] = [_LayerTally(*item) for item in maker.layers.items()]

    def add(self, texts: Sequence[str], tables: Mapping[str, pa.Table]) -> None:
        """Add a shard.

        Args:
            texts: the N texts of the shard.
            tables: the content of each annotator's file, a row for each text.
        """
        # The first texts are enough to recognise the language.
        if self._english and self._foreign is None:
            self._foreign = other_language(text[:LOOKED_AT] for text in texts)
        shard = _Shard.of(texts)
        self.words += len(shard.words)
        for asked, table in tables.items():
            self._failures[asked].update(failures_in(table))
            for layer in self._layers[asked]:
                layer.add(shard, table)

    def summaries(self) -> dict[str, AnnotatorSummary]:
        """Return the counts of each annotator in all shards so far."""
        summaries: dict[str, AnnotatorSummary] = {}
        for asked, maker in self._annotators.items():
            layers = {each.name: each.summary(self.words) for each in self._layers[asked]}
            # The protocol `Annotator` does not have a ``notice``.
            notice = maker.notice if hasattr(maker, "notice") else None
            doubt = None
            if not any(layer["spans"] for layer in layers.values()):
                doubt = NOTHING_READ if maker.name in READ else NOTHING
            elif self._foreign and asked in self._english:
                doubt = FOREIGN
            summaries[asked] = {
                "notice": notice,
                "doubt": doubt,
                "failures": dict(self._failures[asked]),
                "layers": layers,
            }
        return summaries


class _Shard(NamedTuple):
    """The N texts of a shard, joined: W words in C characters.

    Attributes:
        base: (N,) the position of each text in the joined text.
        words: (W,) the position of each word.
        utf8: the joined text, as bytes.
        byte_of: (C + 1,) the position in ``utf8`` of each character; None if all have one byte.
    """

    base: Ints
    words: Ints
    utf8: bytes
    byte_of: Ints | None

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Shard:
        """Join the texts, and find their words."""
        joined, base = join_texts(texts)
        words = []
        for text, origin in zip(texts, base.tolist(), strict=True):
            parts = cut_text(text, 0, len(text), most=PART_CHARACTERS, borders=BORDERS)
            for start, end in parts:
                # Classifying needs 60 bytes per character, so long texts are classified in parts.
                kinds = classify(text[start:end])
                words.append(np.flatnonzero(word_starts(kinds)) + origin + start)
        byte_of = None
        if not joined.isascii():
            codes = codes_of(joined)
            # In UTF-8, larger code points have more bytes.
            sizes = 1 + (codes > 0x7F) + (codes > 0x7FF).astype(np.int64) + (codes > 0xFFFF)
            byte_of = np.append(0, sizes.cumsum())
        return cls(base, np.concatenate(words), joined.encode("utf-8", "surrogatepass"), byte_of)

    def spans(self, table: pa.Table, name: str, layer: Layer) -> tuple[Ints, Ints, Array]:
        """Return the starts, ends and values (S,) of a layer's spans in the joined text.

        Spans without values have zeros.
        """
        starts = table[f"{name}.start"].combine_chunks()
        shift = self.base.repeat(starts.value_lengths().to_numpy())
        start = starts.flatten().to_numpy() + shift
        end = table[f"{name}.end"].combine_chunks().flatten().to_numpy() + shift
        if layer.dtype is None:
            return start, end, np.zeros(len(start), np.int16)
        return start, end, table[f"{name}.value"].combine_chunks().flatten().to_numpy()

    def texts(self, start: Ints, end: Ints) -> pa.Array:
        """Return the texts (S,) of S spans, as bytes. Spans are sorted and do not overlap."""
        borders = np.stack([start, end], 1).ravel()
        if self.byte_of is not None:
            borders = self.byte_of[borders]
        # The borders cut the joined text into spans and, between two spans, gaps.
        parts = pa.Array.from_buffers(
            pa.large_binary(),
            len(borders) - 1,
            [None, pa.py_buffer(borders), pa.py_buffer(self.utf8)],
        )
        return parts.take(pa.array(np.arange(0, len(parts), 2))).cast(pa.binary())


class _LayerTally:
    """Counts of one layer."""

    def __init__(self, name: str, layer: Layer):
        self.name = name
        self.layer = layer
        self.spans = 0
        self.covered = 0
        self.total = 0.0
        self.least = np.inf
        self.greatest = -np.inf
        self.texts = _TextTally()

    def add(self, shard: _Shard, table: pa.Table) -> None:
        """Add the spans of a shard."""
        start, end, values = shard.spans(table, self.name, self.layer)
        if not len(start):
            return
        self.spans += len(start)
        # A word is in a span if its first character is before the end of the last span that begins
        # at or before the word. A word before all spans gets the index −1, which selects 0.
        last = start.searchsorted(shard.words, side="right") - 1
        self.covered += int((np.append(end, 0)[last] > shard.words).sum())
        if self.layer.kind == "weight":
            self.total += float(values.sum(dtype=np.float64))
            self.least = min(self.least, float(values.min()))
            self.greatest = max(self.greatest, float(values.max()))
            return
        # No span is empty, so the empty text stands for all texts that are too long.
        end = np.where(end - start <= SHORT_CHARACTERS, end, start)
        self.texts.add(values, shard.texts(start, end))

    def summary(self, words: int) -> LayerSummary:
        """Return the counts.

        Args:
            words: the number of words in the corpus.
        """
        summary: LayerSummary = {
            "kind": self.layer.kind,
            "spans": self.spans,
            "share_of_words": self.covered / max(1, words),
        }
        if self.layer.kind == "weight":
            summary["weight"] = {"mean": 0.0, "least": 0.0, "greatest": 0.0}
            if self.spans:
                mean = self.total / self.spans
                summary["weight"] = {"mean": mean, "least": self.least, "greatest": self.greatest}
            return summary
        names: tuple[str, ...] = (self.name,)
        if self.layer.labels:
            # Code 0 means that a word has no label.
            names = ("none", *self.layer.labels)
        most = TOP_SPANS if self.layer.kind == "spans" else TOP_WORDS
        summary["labels"] = {}
        summary["top"] = {}
        for code, number in self.texts.codes():
            summary["labels"][names[code]] = number
            summary["top"][names[code]] = self.texts.commonest(code, most)
        return summary


class _TextTally:
    """How often each text occurs with each code: a table of distinct (code, text), with counts."""

    def __init__(self) -> None:
        self.counted = _rows(np.zeros(0, np.int16), pa.array([], pa.binary()))
        self.waiting: list[pa.Table] = []
        self.spans_waiting = 0

    def add(self, codes: Array, texts: pa.Array) -> None:
        """Add S spans by their codes and texts, (S,) each."""
        self.waiting.append(_rows(codes, texts))
        self.spans_waiting += len(codes)
        # Every count of the waiting spans goes through all different texts so far. Therefore at
        # least as many spans wait as there are texts.
        if self.spans_waiting >= max(MERGE_SPANS, len(self.counted)):
            self._count()

    def codes(self) -> list[tuple[int, int]]:
        """Return each code with the number of its spans, the most frequent code first."""
        self._count()
        sums = self.counted.group_by("code", use_threads=False).aggregate([("count", "sum")])
        rows = sums.sort_by([("count_sum", "descending"), ("code", "ascending")])
        return list(zip(rows["code"].to_pylist(), rows["count_sum"].to_pylist()))

    def commonest(self, code: int, most: int) -> list[list[str | int]]:
        """Return the ``most`` most common texts with a code, as [text, count], commonest first.

        The empty text is left out.
        """
        # Imported here because it takes a tenth of a second, and few processes count tags.
        import pyarrow.compute as pc

        self._count()
        rows = self.counted.filter((pc.field("code") == code) & (pc.field("text") != b""))
        counts = rows["count"].to_numpy()
        if len(counts) > most:
            # Sorting only the most common texts is faster than sorting all.
            least = np.partition(counts, -most)[-most]
            rows = rows.filter(pc.field("count") >= int(least))
        # The text breaks ties. Bytes in UTF-8 sort as the characters do.
        rows = rows.sort_by([("count", "descending"), ("text", "ascending")]).slice(0, most)
        texts = [text.decode("utf-8", "surrogatepass") for text in rows["text"].to_pylist()]
        return list(map(list, zip(texts, rows["count"].to_pylist())))

    def _count(self) -> None:
        """Count the waiting spans."""
        if not self.waiting:
            return
        rows = pa.concat_tables([self.counted, *self.waiting], promote_options="permissive")
        if rows["text"].nbytes > LARGE_BYTES:
            rows = rows.set_column(1, "text", rows["text"].cast(pa.large_binary()))
        # Other processes use the other cores.
        sums = rows.group_by(["code", "text"], use_threads=False).aggregate([("count", "sum")])
        self.counted = sums.rename_columns(["code", "text", "count"])
        self.waiting = []
        self.spans_waiting = 0


def _rows(codes: Array, texts: pa.Array) -> pa.Table:
    """Return a row for each span, which counts once."""
    return pa.table({"code": codes, "text": texts, "count": np.ones(len(codes), np.int64)})
