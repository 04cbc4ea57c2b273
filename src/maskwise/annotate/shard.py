"""The work on one shard: texts and the strings of annotators in, the bytes of files out.

Long documents go to annotators in parts of at most `PART_CHARACTERS`, cut at line breaks or blanks,
to bound memory; annotators that look texts up (``whole_texts``) get them whole. A text on which an
annotator fails gets no spans and is counted. If it fails on all texts, or a file, the network or
the memory fails, the run ends.

Spans are counted here too, while the text is at hand. Counts are exact, but the commonest words and
spans are added up from those of each shard, so rare ones may be missed.

`Live` does the same to texts of a stream, for which nothing is stored. A process loads an annotator
once; counting takes 0.4 µs a span.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from maskwise.annotate.counts import Ints
from maskwise.annotate.registry import annotator
from maskwise.annotate.store import Facts, to_parquet
from maskwise.annotate.tagger import cut_text
from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document
from maskwise.text.layers import Annotator, CharSpans, Fitted, Layer, check_spans
from maskwise.text.words import classify, word_starts

PART_CHARACTERS = 100_000
SURE_FAILURES = 8
"""If this many texts of a shard fail, and none succeeds, the texts are not the reason."""
TOP_SPANS, TOP_WORDS = 200, 20
"""How many of the commonest are kept per shard: of a layer of spans, and of each label of another.
"""
SHORT_CHARACTERS = 60
"""Longer spans, such as sentences, are not counted as texts."""


class ShardTask(NamedTuple):
    """A shard, its place in the corpus, and the strings of the annotators whose layers it lacks."""

    number: int
    documents: list[tuple[str, str]]
    annotators: tuple[str, ...]


class LayerSummary(TypedDict):
    """The counts of a layer in the corpus; labels are names."""

    kind: str
    spans: int
    share_of_words: float
    labels: NotRequired[dict[str, int]]
    top: NotRequired[dict[str, list[list[str | int]]]]
    weight: NotRequired[dict[str, float]]  # mean, least, greatest


class AnnotatorSummary(TypedDict):
    """A line for the user (or None), failures (error → texts), and the layers of an annotator."""

    notice: str | None
    failures: dict[str, int]
    layers: dict[str, LayerSummary]


# run.py has checked whether functions of the user's are allowed
_annotator = cache(partial(annotator, functions=True))


def forget() -> None:
    """Build annotators anew: a file that they read may have changed, and their strings do not."""
    _annotator.cache_clear()


def annotate_shard(task: ShardTask) -> list[bytes]:
    """Annotate a shard; returns one file for each annotator.

    Raises:
        MaskwiseError: spans that do not fit their text; an annotator that fails on everything.
    """
    shard = [Document(*document) for document in task.documents]
    texts = [document.text for document in shard]
    files = []
    for spec in task.annotators:
        maker = _annotator(spec)
        failures: dict[str, int] = {}
        spans = spans_of(maker, texts, failures)
        facts = shard_facts(texts, spans, maker.layers) | {"failures": failures}
        files.append(to_parquet(shard, spans, maker.layers, facts))
    return files


class Live:
    """The layers of several annotators for any texts.

    It is pickled as the strings of the annotators; each process builds them once.

    Args:
        specs: names of annotators, with arguments.

    Raises:
        MaskwiseError: an unknown annotator, or one that has to read the whole corpus first.

    >>> live = Live(["words"])
    >>> live.annotate(["Owls fly."])[0]["words"].start.tolist()
    [0, 5, 8]
    """

    def __init__(self, specs: Sequence[str]):
        self.specs = tuple(specs)
        for spec, maker in zip(self.specs, self._makers, strict=True):
            require_live(spec, maker)

    def __getstate__(self) -> dict[str, tuple[str, ...]]:
        return {"specs": self.specs}

    @cached_property
    def _makers(self) -> list[Annotator]:
        return [annotator(spec) for spec in self.specs]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name → layer, of all annotators."""
        layers: dict[str, Layer] = {}
        for maker in self._makers:
            layers |= maker.layers
        return layers

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """The spans of every text, by layer; a text on which an annotator fails has none.

        Raises:
            MaskwiseError: an annotator that fails on everything.
        """
        spans: list[dict[str, CharSpans]] = [{} for _ in texts]
        for maker in self._makers:
            for all_layers, found in zip(spans, spans_of(maker, texts, {}), strict=True):
                all_layers |= found
        return spans


def require_live(spec: str, maker: Annotator) -> None:
    """
    Raises:
        MaskwiseError: an annotator that has to read the whole corpus first.
    """
    if isinstance(maker, Fitted) and not maker.fitted:
        option = "vocabulary" if maker.name == "phrases" else "table"
        raise MaskwiseError(
            f"layers of {spec} need the whole corpus, and a stream is not read beforehand",
            do=f"count in a part of it (maskwise annotate PART --with {maker.name} --out DIR) and "
            f'name the result: {maker.name}({option}="DIR/fitted/{maker.name}-…"); or leave out '
            f"corpus.stream",
        )


# Annotating texts
# -------------------------------------------------------------------------------------------


def spans_of(
    maker: Annotator, texts: Sequence[str], failures: dict[str, int]
) -> list[dict[str, CharSpans]]:
    """The spans of each text by layer; failures are counted by their error.

    Raises:
        MaskwiseError: spans that do not fit their text; an annotator that fails on everything.
    """
    most = sys.maxsize if getattr(maker, "whole_texts", False) else PART_CHARACTERS
    cuts = [list(cut_text(text, 0, len(text), most=most, borders=("\n", " "))) for text in texts]
    parts: list[str] = []
    for text, own in zip(texts, cuts, strict=True):
        parts += [text[start:end] for start, end in own]
    found = _annotate(maker, parts, failures)
    for part, spans in zip(parts, found, strict=True):
        for name, layer in maker.layers.items():
            what = f"{maker.name}: {name} of {part[:40]!r}…"
            check_spans(spans[name], layer, len(part), name=what)
    rest = iter(found)
    return [_join([next(rest) for _ in own], own, maker) for own in cuts]


def _annotate(
    maker: Annotator, texts: list[str], failures: dict[str, int]
) -> list[dict[str, CharSpans]]:
    # One text must not end the work on a million others, so a library's own errors are counted.
    try:
        return maker.annotate(texts)
    except MaskwiseError:
        raise
    except Exception:
        spans = [_annotate_one(maker, text, failures) for text in texts]
    if sum(failures.values()) == len(texts) >= SURE_FAILURES:
        what = f"{maker.name} failed on all {len(texts)} texts of a shard"
        do = "mend it; what was finished is kept"
        raise MaskwiseError(what, got=next(iter(failures)), do=do)
    return spans


def _annotate_one(maker: Annotator, text: str, failures: dict[str, int]) -> dict[str, CharSpans]:
    try:
        return maker.annotate([text])[0]
    except MaskwiseError:
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        # not the text's fault: the shard must not be stored as finished
        if isinstance(error, OSError | MemoryError):
            do = "the same command resumes"
            raise MaskwiseError(f"{maker.name} failed", got=line, do=do) from error
        failures[line] = failures.get(line, 0) + 1
        return {name: CharSpans.of([], layer) for name, layer in maker.layers.items()}


def _join(
    parts: Sequence[dict[str, CharSpans]], cuts: Sequence[tuple[int, int]], maker: Annotator
) -> dict[str, CharSpans]:
    """The spans of a text from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    whole = {}
    for name in maker.layers:
        moved = []
        for part, (origin, _) in zip(parts, cuts, strict=True):
            start, end, value = part[name]
            moved.append([start + origin, end + origin] + ([] if value is None else [value]))
        whole[name] = CharSpans(*map(np.concatenate, zip(*moved)))
    return whole


# Counting spans
# -------------------------------------------------------------------------------------------


def shard_facts(
    texts: Sequence[str], found: Sequence[Mapping[str, CharSpans]], layers: Mapping[str, Layer]
) -> Facts:
    """The counts of one shard and annotator, as JSON.

    ``documents``, ``characters``, ``words``, ``failures`` (error → texts) and ``layers``: for each
    ``spans``, ``characters``, ``words``, and either ``weight`` (sum, least, greatest) or ``labels``
    and ``top``, whose keys are codes as strings.

    Args:
        texts: N texts.
        found: for each its spans by layer.
    """
    sizes = np.array([len(text) + 1 for text in texts], dtype=np.int64)
    base = np.cumsum(sizes) - sizes
    joined = "".join(text + "\n" for text in texts)
    begins = []
    for text, origin in zip(texts, base):
        # in parts: classifying takes 60 bytes a character
        for start, end in cut_text(text, 0, len(text), most=PART_CHARACTERS, borders=("\n", " ")):
            begins.append(np.flatnonzero(word_starts(classify(text[start:end]))) + origin + start)
    words = np.concatenate(begins)
    counted = {}
    for name, layer in layers.items():
        counted[name] = _layer_facts(joined, base, [spans[name] for spans in found], layer, words)
    return {
        "documents": len(texts),
        "characters": len(joined) - len(texts),
        "words": len(words),
        "failures": {},
        "layers": counted,
    }


def _layer_facts(
    joined: str, base: Ints, found: Sequence[CharSpans], layer: Layer, words: Ints
) -> Facts:
    """Count spans of texts at offsets ``base`` (N,) of ``joined``, with words at ``words`` (W,)."""
    origin = np.repeat(base, [len(spans.start) for spans in found])
    start = origin + np.concatenate([spans.start for spans in found])
    end = origin + np.concatenate([spans.end for spans in found])
    # A word counts if the last span that opens at or before its first character covers it.
    last = np.searchsorted(start, words, side="right") - 1
    facts = {
        "spans": len(start),
        "characters": int((end - start).sum()),
        "words": int((np.append(end, 0)[last] > words).sum()),
    }
    codes = np.zeros_like(start)
    if layer.dtype:
        codes = np.concatenate([spans.value for spans in found if spans.value is not None])
    if layer.kind == "weight":
        weights = codes.astype(np.float64)
        ends = [float(weights.min()), float(weights.max())] if len(weights) else [0.0, 0.0]
        return {**facts, "weight": [float(weights.sum()), *ends]}
    distinct, times = np.unique(codes, return_counts=True)
    labels = dict(zip(map(str, distinct.tolist()), times.tolist()))
    short = end - start <= SHORT_CHARACTERS
    cuts = map(slice, start[short].tolist(), end[short].tolist())
    # pairs are cut and counted at the speed of C
    pairs = Counter(zip(map(str, codes[short].tolist()), map(joined.__getitem__, cuts)))
    texts = {str(code): Counter[str]() for code in np.unique(codes[short])}
    for (code, text), number in pairs.items():
        texts[code][text] = number
    top = {code: dict(_commonest(counted, layer)) for code, counted in texts.items()}
    return {**facts, "labels": labels, "top": top}


def _commonest(count: Counter[str], layer: Layer) -> list[tuple[str, int]]:
    most = TOP_SPANS if layer.kind == "spans" else TOP_WORDS
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))[:most]


def add_up(shards: Sequence[Facts], maker: Annotator) -> AnnotatorSummary:
    """The facts of all shards of an annotator as one."""
    words = sum(facts["words"] for facts in shards)
    failures: Counter[str] = Counter()
    for facts in shards:
        failures.update(facts["failures"])
    layers = {}
    for name, layer in maker.layers.items():
        layers[name] = _summary([facts["layers"][name] for facts in shards], name, layer, words)
    return {"notice": getattr(maker, "notice", None), "failures": dict(failures), "layers": layers}


def _summary(parts: Sequence[Facts], name: str, layer: Layer, words: int) -> LayerSummary:
    spans = sum(part["spans"] for part in parts)
    share = sum(part["words"] for part in parts) / max(1, words)
    summary: LayerSummary = {"kind": layer.kind, "spans": spans, "share_of_words": share}
    if layer.kind == "weight":
        weights = [part["weight"] for part in parts if part["spans"]] or [[0.0, 0.0, 0.0]]
        total, least, greatest = zip(*weights)
        mean = sum(total) / max(1, spans)
        return {**summary, "weight": {"mean": mean, "least": min(least), "greatest": max(greatest)}}

    labels: Counter[str] = Counter()
    texts: dict[str, Counter[str]] = {}
    for part in parts:
        labels.update(part["labels"])
        for code, times in part["top"].items():
            texts.setdefault(code, Counter()).update(times)
    names = ("none", *layer.labels) if layer.labels else (name,)
    summary["labels"] = {}
    summary["top"] = {}
    for code, number in sorted(labels.items(), key=lambda item: (-item[1], int(item[0]))):
        label = names[int(code)]
        commonest = _commonest(texts.get(code, Counter()), layer)
        summary["labels"][label] = number
        summary["top"][label] = [list(pair) for pair in commonest]
    return summary
