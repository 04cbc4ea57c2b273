"""Count what annotators found in a corpus, from the finished files of its shards.

The files have the spans of each text, and the corpus has the texts that the spans cover. Workers
that annotate count nothing, so the counts are the same for files of this run and of earlier runs,
in whatever order the shards are finished. All counts are exact: of words, of spans, of labels, and
of how often each text occurs as a span.

A shard is counted by columns, without a Python object for each span: the texts of its spans are
slices of one buffer of bytes, and pyarrow counts equal ones. Memory: 25 bytes for each different
text of a span, and for as many spans that wait to be counted; texts of more than
``SHORT_CHARACTERS`` characters are not kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from maskwise.annotate.kept import failures_in, layer_columns
from maskwise.annotate.tagger import text_parts
from maskwise.text.english import other_language
from maskwise.text.layers import Annotator, Layer
from maskwise.text.words import Ints, classify, join_texts, word_starts

TOP = {"spans": 200, "categorical": 20}
"""Number of most common texts that are listed for each label, by the kind of the layer."""
SHORT_CHARACTERS = 60
"""Maximum length of the spans whose texts are counted. Longer spans (sentences) rarely repeat."""
MERGE_SPANS = 1 << 20
"""Number of spans that are kept before equal texts are counted. It is large, because each count
goes through all different texts so far."""
TEXTS = pa.schema({"code": pa.int16(), "text": pa.binary(), "count": pa.int64()})
"""A row for each different (code, text) of the spans of a layer, texts in UTF-8."""
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
    """Counts of several annotators in a corpus, which is added shard by shard, in any order.

    Args:
        annotators: the annotators, keyed by the names that their summaries shall have.
    """

    def __init__(self, annotators: Mapping[str, Annotator]):
        self.words = 0
        # Whether the texts are in another language than English, once known.
        self._foreign: bool | None = None
        self._annotators = annotators
        self._failures = {asked: Counter[str]() for asked in annotators}
        self._layers: dict[str, list[_LayerTally]] = {}
        for asked, maker in annotators.items():
            self._layers[asked] = [_LayerTally(*item) for item in maker.layers.items()]

    def recognise(self, texts: Sequence[str]) -> None:
        """Recognise the language of the corpus by texts of its beginning."""
        if self._foreign is None:
            self._foreign = other_language(text[:LOOKED_AT] for text in texts)

    def add(self, texts: Sequence[str], tables: Mapping[str, pa.Table]) -> None:
        """Add a shard.

        Args:
            texts: the N texts of the shard.
            tables: the content of each annotator's file, a row for each text.
        """
        joined, base = join_texts(texts)
        utf8 = joined.encode("utf-8", "surrogatepass")
        byte_of = None
        if not joined.isascii():
            # The other bytes of a character begin with the bits 10.
            first = (np.frombuffer(utf8, np.uint8) & 0xC0) != 0x80
            byte_of = np.append(np.flatnonzero(first), len(utf8))
        words = []
        for text, origin in zip(texts, base.tolist(), strict=True):
            # Classifying needs 60 bytes per character, so long texts are classified in parts.
            for start, end in text_parts(text):
                begins = word_starts(classify(text[start:end]))
                words.append(np.flatnonzero(begins) + origin + start)
        shard = _Shard(base, np.concatenate(words), pa.py_buffer(utf8), byte_of)
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
            doubt = None
            if not any(layer["spans"] for layer in layers.values()):
                doubt = NOTHING_READ if maker.name in READ else NOTHING
            elif self._foreign and getattr(maker, "english", False):
                doubt = FOREIGN
            summaries[asked] = {
                # The protocol `Annotator` does not have a ``notice``.
                "notice": getattr(maker, "notice", None),
                "doubt": doubt,
                "failures": dict(sorted(self._failures[asked].items())),
                "layers": layers,
            }
        return summaries


class _Shard(NamedTuple):
    """The N texts of a shard, joined: W words in C characters.

    Attributes:
        base: (N,) where each text begins.
        words: (W,) where each word begins.
        utf8: the joined text.
        byte_of: (C + 1,) where each character begins in ``utf8``; None if all have one byte.
    """

    base: Ints
    words: Ints
    utf8: pa.Buffer
    byte_of: Ints | None

    def texts(self, start: Ints, end: Ints) -> pa.Array:
        """Return the texts (S,) of S spans, in UTF-8. Spans are sorted and do not overlap."""
        borders = np.stack([start, end], 1).ravel()
        if self.byte_of is not None:
            borders = self.byte_of[borders]
        # The borders cut the joined text into spans and, between two spans, gaps.
        kind = pa.large_binary()
        buffers = [None, pa.py_buffer(borders), self.utf8]
        parts = pa.Array.from_buffers(kind, len(borders) - 1, buffers)
        return parts.take(pa.array(np.arange(0, len(parts), 2))).cast(pa.binary())


class _LayerTally:
    """Counts of one layer."""

    def __init__(self, name: str, layer: Layer):
        self.name = name
        self.layer = layer
        self.spans = 0
        self.covered = 0
        self.sums: list[float] = []
        self.least = np.inf
        self.greatest = -np.inf
        self.texts = TEXTS.empty_table()
        self.most_texts = MERGE_SPANS

    def add(self, shard: _Shard, table: pa.Table) -> None:
        """Add the spans of a shard.

        Args:
            shard: its texts.
            table: the content of the annotator's file.
        """
        of_texts = [table[name].combine_chunks() for name in layer_columns(self.name, self.layer)]
        shift = shard.base.repeat(of_texts[0].value_lengths().to_numpy())
        start, end, *values = [each.flatten().to_numpy() for each in of_texts]
        if not len(start):
            return
        start = start + shift
        end = end + shift
        self.spans += len(start)
        # A word is in a span if its first character is before the end of the last span that begins
        # at or before the word. A word before all spans gets the index −1, which selects 0.
        last = start.searchsorted(shard.words, side="right") - 1
        self.covered += int((np.append(end, 0)[last] > shard.words).sum())
        if self.layer.kind == "weight":
            [weights] = values
            # Sums of floats depend on their order, so there is one of each shard.
            self.sums.append(float(weights.sum(dtype=np.float64)))
            self.least = min(self.least, float(weights.min()))
            self.greatest = max(self.greatest, float(weights.max()))
            return
        # No span is empty, so the empty text stands for all texts that are too long.
        end = np.where(end - start <= SHORT_CHARACTERS, end, start)
        [codes] = values or [np.zeros(len(start), np.int16)]
        columns = [codes, shard.texts(start, end), np.ones(len(start), np.int64)]
        more = pa.table(columns, schema=TEXTS)
        self.texts = pa.concat_tables([self.texts, more], promote_options="permissive")
        if len(self.texts) >= self.most_texts:
            self._merge()

    def _merge(self) -> None:
        """Count equal texts together."""
        if self.texts["text"].nbytes > LARGE_BYTES:
            large = self.texts["text"].cast(pa.large_binary())
            self.texts = self.texts.set_column(1, "text", large)
        # Other processes use the other cores.
        sums = self.texts.group_by(["code", "text"], use_threads=False).aggregate(
            [("count", "sum")]
        )
        self.texts = sums.rename_columns(TEXTS.names)
        # Every merge goes through all different texts so far. Therefore at least as many spans wait
        # for the next one.
        self.most_texts = max(MERGE_SPANS, 2 * len(sums))

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
                mean = fsum(self.sums) / self.spans
                summary["weight"] = {"mean": mean, "least": self.least, "greatest": self.greatest}
            return summary
        # Imported here because it takes a tenth of a second, and few processes count tags.
        import pyarrow.compute as pc

        self._merge()
        # Code 0 means that a word has no label.
        names = ("none", *self.layer.labels) if self.layer.labels else (self.name,)
        totals = np.bincount(self.texts["code"], self.texts["count"]).astype(int)
        order = [("count", "descending"), ("text", "ascending")]
        summary["labels"] = {}
        summary["top"] = {}
        for code in np.argsort(-totals, kind="stable").tolist():
            if not totals[code]:
                break
            own = self.texts.filter((pc.field("code") == code) & (pc.field("text") != b""))
            top = own.take(pc.select_k_unstable(own, TOP[self.layer.kind], order))
            summary["labels"][names[code]] = int(totals[code])
            summary["top"][names[code]] = [
                [row["text"].decode("utf-8", "surrogatepass"), row["count"]]
                for row in top.to_pylist()
            ]
        return summary
