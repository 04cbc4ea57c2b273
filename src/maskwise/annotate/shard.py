"""The work on one shard: texts and the strings of annotators in, the bytes of files out, wherever
it is done.

Long documents go to annotators in parts of at most `PART_CHARACTERS`, cut at line breaks or blanks,
so that a text of 10 MB takes no more memory than ten documents. Only annotators that look texts up
(``whole_texts``) get them whole. A text on which an annotator fails gets no spans and is counted.
Where it fails on all texts, or a file, the network or the memory fails, the run ends.

What was found is counted here too, while the text is at hand. Counts are exact; the commonest words
and spans are added up from the commonest of each shard, so what is rare may be missed.

`Live` does the same to texts for which nothing is stored: those of a stream.

Cost: a process loads an annotator once; counting takes 0.4 µs per span and some kilobytes per
    shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.registry import annotator
from maskwise.annotate.store import LayerFacts, ShardFacts, to_parquet
from maskwise.annotate.tagger import cut_text
from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document
from maskwise.text.layers import Annotator, CharSpans, Fitted, Layer, check_spans
from maskwise.text.words import classify, word_starts

if TYPE_CHECKING:
    from maskwise.keys import Array

Ints = NDArray[np.int64]

PART_CHARACTERS = 100_000
SURE_FAILURES = 8
"""Where so many texts of a shard fail, and no text of it does not, the texts are not the reason."""
TOP_SPANS, TOP_WORDS = 200, 20
"""How many of the commonest are kept per shard: of a layer of spans, and of each label of another.
"""
SHORT_CHARACTERS = 60
"""Longer spans are not counted as texts: sentences are not."""


class ShardTask(NamedTuple):
    """A shard, its place in the corpus, and the annotators (as strings) whose layers it lacks."""

    number: int
    documents: list[tuple[str, str]]
    annotators: tuple[str, ...]


class LayerSummary(TypedDict):
    """What is counted of a layer in the corpus; labels are names."""

    kind: str
    spans: int
    share_of_words: float
    labels: NotRequired[dict[str, int]]
    top: NotRequired[dict[str, list[list[str | int]]]]
    weight: NotRequired[dict[str, float]]  # mean, least, greatest


class AnnotatorSummary(TypedDict):
    """What one annotator found: a line to tell the user (or None), failures (error → texts), and
    its layers.
    """

    notice: str | None
    failures: dict[str, int]
    layers: dict[str, LayerSummary]


def annotate_shard(task: ShardTask) -> list[bytes]:
    """Annotate a shard; returns one file for each annotator.

    Raises:
        MaskwiseError: an annotator whose spans do not fit the text, or one that fails on
            everything.
    """
    shard = [Document(*document) for document in task.documents]
    texts = [document.text for document in shard]
    files = []
    for spec in task.annotators:
        maker = _annotator(spec)
        cuts, parts = _cut(maker, texts)
        failures: dict[str, int] = {}
        spans_of_parts = _annotate(maker, parts, failures)
        for text, spans in zip(parts, spans_of_parts, strict=True):
            for name, layer in maker.layers.items():
                check_spans(spans[name], layer, len(text), name=f"{spec}: {name} of {text[:40]!r}…")
        facts = shard_facts(parts, spans_of_parts, maker.layers)
        facts["documents"], facts["failures"] = len(shard), failures
        files.append(to_parquet(shard, _whole(maker, spans_of_parts, cuts), maker.layers, facts))
    return files


Cuts = list[list[tuple[int, int]]]
"""For each text, the characters of its parts."""


def _cut(maker: Annotator, texts: Sequence[str]) -> tuple[Cuts, list[str]]:
    """Where each text is cut for an annotator, and the parts of all of them."""
    whole = getattr(maker, "whole_texts", False)
    cuts = [[(0, len(text))] if whole else _parts(text) for text in texts]
    parts: list[str] = []
    for text, own in zip(texts, cuts, strict=True):
        parts += [text[start:end] for start, end in own]
    return cuts, parts


def _whole(
    maker: Annotator, spans_of_parts: Iterable[dict[str, CharSpans]], cuts: Cuts
) -> list[dict[str, CharSpans]]:
    """The spans of whole texts."""
    rest = iter(spans_of_parts)
    return [_join([next(rest) for _ in own], own, maker) for own in cuts]


# whoever asked has said whether functions may run
_annotator = cache(partial(annotator, functions=True))


def forget() -> None:
    """Build annotators anew: their strings do not show that a file which they read has changed."""
    _annotator.cache_clear()


def _annotate(
    maker: Annotator, texts: list[str], failures: dict[str, int]
) -> list[dict[str, CharSpans]]:
    """Spans of every text; texts that fail are counted by their error."""
    try:
        return maker.annotate(texts)
    except MaskwiseError:
        raise
    except Exception:  # a library's own: one text must not end the work on a million others
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
    # not the text's fault: the shard must not be kept as done
    except (OSError, MemoryError) as error:
        line = f"{type(error).__name__}: {error}"
        raise MaskwiseError(
            f"{maker.name} failed", got=line, do="the same command resumes"
        ) from error
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        failures[line] = failures.get(line, 0) + 1
        return {name: CharSpans.of([], layer) for name, layer in maker.layers.items()}


def _parts(text: str) -> list[tuple[int, int]]:
    """Where to cut a text: after the last line break, else blank, of each stretch; else anywhere."""
    return list(cut_text(text, 0, len(text), most=PART_CHARACTERS, borders=("\n", " ")))


def _join(
    parts: Sequence[dict[str, CharSpans]], cuts: Sequence[tuple[int, int]], maker: Annotator
) -> dict[str, CharSpans]:
    """The spans of a text from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    whole = {}
    for name, layer in maker.layers.items():
        of_parts = [part[name] for part in parts]
        origins = [np.int32(begin) for begin, _ in cuts]
        start = [spans.start + origin for spans, origin in zip(of_parts, origins)]
        end = [spans.end + origin for spans, origin in zip(of_parts, origins)]
        value = None
        if layer.dtype:
            value = _concatenate([spans.value for spans in of_parts], layer.dtype)
        whole[name] = CharSpans(np.concatenate(start), np.concatenate(end), value)
    return whole


class Live:
    """The layers of several annotators, made of any texts.

    It is sent to other processes as the names of the annotators; each process builds them once.

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
        for spec, maker in zip(self.specs, self.makers, strict=True):
            require_live(spec, maker)

    def __getstate__(self) -> dict[str, tuple[str, ...]]:
        return {"specs": self.specs}

    @cached_property
    def makers(self) -> list[Annotator]:
        """The annotators."""
        return [annotator(spec) for spec in self.specs]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name → layer, of all annotators."""
        layers: dict[str, Layer] = {}
        for maker in self.makers:
            layers.update(maker.layers)
        return layers

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """The spans of every text, by layer; a text on which an annotator fails has none.

        Raises:
            MaskwiseError: an annotator that fails on everything.
        """
        spans: list[dict[str, CharSpans]] = [{} for _ in texts]
        for maker in self.makers:
            cuts, parts = _cut(maker, texts)
            found = _whole(maker, _annotate(maker, parts, {}), cuts)
            for mine, own in zip(spans, found, strict=True):
                mine.update(own)
        return spans


def require_live(spec: str, maker: Annotator) -> None:
    """
    Raises:
        MaskwiseError: an annotator that has to read the whole corpus first.
    """
    if isinstance(maker, Fitted) and not maker.fitted:
        name = maker.name
        option = "vocabulary" if name == "phrases" else "table"
        do = (
            f"count in a part of it (maskwise annotate PART --with {name} --out DIR) and name "
            f"what was counted: "
        )
        do += f'{name}({option}="DIR/fitted/{name}-…"); or leave out corpus.stream'
        raise MaskwiseError(
            f"layers of {spec} need the whole corpus, and a stream is not read beforehand", do=do
        )


# Counting what was found
# -----------------------------------------------------------------------------------


def shard_facts(
    texts: Sequence[str], found: Sequence[Mapping[str, CharSpans]], layers: Mapping[str, Layer]
) -> ShardFacts:
    """The counts of one shard and annotator, without failures.

    Args:
        texts: N texts, or parts of texts.
        found: for each its spans by layer.
    """
    sizes = np.array([len(text) + 1 for text in texts], dtype=np.int64)
    base = np.cumsum(sizes) - sizes
    joined = "".join(text + "\n" for text in texts)
    # Text by text: a dozen passes over the whole of a long document would take memory.
    begins = _concatenate(
        [np.flatnonzero(word_starts(classify(text))) + at for text, at in zip(texts, base)],
        np.int64,
    )
    counted = {}
    for name, layer in layers.items():
        counted[name] = _layer_facts(joined, base, [spans[name] for spans in found], layer, begins)
    return {
        "documents": len(texts),
        "characters": len(joined) - len(texts),
        "words": len(begins),
        "failures": {},
        "layers": counted,
    }


def _layer_facts(
    joined: str, base: Ints, found: Sequence[CharSpans], layer: Layer, begins: Ints
) -> LayerFacts:
    """Count spans in N texts that stand in ``joined`` from ``base`` (N,) on, where words begin at
    ``begins`` (W,).
    """
    origin = np.repeat(base, [len(spans.start) for spans in found])
    start = origin + _concatenate([spans.start for spans in found], np.int64)
    end = origin + _concatenate([spans.end for spans in found], np.int64)
    # A word counts if the last span that opens at or before its first character covers that
    # character.
    last = np.searchsorted(start, begins, side="right") - 1
    covered = np.append(end, 0)[last] > begins
    facts: LayerFacts = {
        "spans": len(start),
        "characters": int((end - start).sum()),
        "words": int(covered.sum()),
    }
    values = [spans.value for spans in found]
    if layer.kind == "weight":
        weights = _concatenate(values, np.float64)
        ends = [float(weights.min()), float(weights.max())] if len(weights) else [0.0, 0.0]
        return {**facts, "weight": [float(weights.sum()), *ends]}
    codes = _concatenate(values, np.int64) if layer.dtype else np.zeros_like(start)
    distinct, times = np.unique(codes, return_counts=True)
    labels = dict(zip(map(str, distinct.tolist()), times.tolist()))

    short = end - start <= SHORT_CHARACTERS
    cuts = map(slice, start[short].tolist(), end[short].tolist())
    short_codes = codes[short]
    by_code = {str(code): Counter[str]() for code in np.unique(short_codes)}
    # Pairs are counted and cut at the speed of C.
    pairs = Counter(zip(short_codes.tolist(), map(joined.__getitem__, cuts)))
    for (code, text), number in pairs.items():
        by_code[str(code)][text] = number
    top = {code: dict(_commonest(counted, layer)) for code, counted in by_code.items()}
    return {**facts, "labels": labels, "top": top}


def _concatenate(parts: Sequence[Array | None], dtype: type[np.generic]) -> Array:
    arrays = [part for part in parts if part is not None]
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _commonest(count: Counter[str], layer: Layer) -> list[tuple[str, int]]:
    keep = TOP_SPANS if layer.kind == "spans" else TOP_WORDS
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))[:keep]


def add_up(shards: Sequence[ShardFacts], maker: Annotator) -> AnnotatorSummary:
    """The facts of all shards of an annotator as one."""
    words = sum(facts["words"] for facts in shards)
    failures: Counter[str] = Counter()
    for facts in shards:
        failures.update(facts["failures"])
    layers = {}
    for name, layer in maker.layers.items():
        layers[name] = _add_up_layer(
            [facts["layers"][name] for facts in shards], name, layer, words
        )
    return {"notice": getattr(maker, "notice", None), "failures": dict(failures), "layers": layers}


def _add_up_layer(parts: Sequence[LayerFacts], name: str, layer: Layer, words: int) -> LayerSummary:
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
    for code in sorted(labels, key=lambda code: (-labels[code], int(code))):
        label = names[int(code)]
        summary["labels"][label] = labels[code]
        summary["top"][label] = [[*pair] for pair in _commonest(texts.get(code, Counter()), layer)]
    return summary
