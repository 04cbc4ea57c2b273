"""What annotators found: counted shard by shard while the text is at hand, added up, and shown.

Counts are exact. The commonest words and spans are added up from the commonest of each shard: what is common
is counted nearly in full, what is rare may be missed.

Cost: half a microsecond per span; some kilobytes per shard.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.annotator import CharSpans, Layer
from maskwise.annotate.characters import classify, word_starts

TOP_SPANS, TOP_WORDS = 200, 20
"""Kept per shard: of a layer of spans, and of each label of another."""
SHORT = 60
"""Characters of the longest span that is counted as a text: sentences are not."""


def shard_facts(
    texts: Sequence[str], found: Sequence[Mapping[str, CharSpans]], layers: Mapping[str, Layer]
) -> dict[str, Any]:
    """Counts of one shard and annotator, as JSON.

    Returns:
        "documents", "characters", "words", and under "layers" for each: "spans", "characters" and "words" in
        them, "labels" (code → spans) or "weight" ([sum, least, greatest]), "top" (code → text → count).
    """
    begins = [np.flatnonzero(word_starts(classify(text))) for text in texts]
    total = {
        "documents": len(texts), "characters": sum(map(len, texts)), "words": sum(map(len, begins)),
    }  # fmt: skip
    return total | {
        "layers": {
            name: _layer_facts(texts, [spans[name] for spans in found], layer, begins)
            for name, layer in layers.items()
        }
    }


def _layer_facts(
    texts: Sequence[str], found: Sequence[CharSpans], layer: Layer, begins: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "spans": sum(len(spans.start) for spans in found),
        "characters": sum(int((spans.end - spans.start).sum()) for spans in found),
        "words": sum(_words_in(spans, words) for spans, words in zip(found, begins)),
    }
    if layer.kind == "weight":
        values = np.concatenate([spans.value for spans in found]).astype(np.float64)
        ends = [float(values.min()), float(values.max())] if len(values) else [0.0, 0.0]
        return facts | {"weight": [float(values.sum()), *ends]}
    seen: Counter[tuple[int, str]] = Counter()
    for text, spans in zip(texts, found):
        codes = [0] * len(spans.start) if spans.value is None else spans.value.tolist()
        cuts = map(slice, spans.start.tolist(), spans.end.tolist())
        seen.update(zip(codes, map(text.__getitem__, cuts)))  # no Python step per span: these are many
    labels: Counter[int] = Counter()
    top: dict[int, Counter[str]] = defaultdict(Counter)
    for (code, text), count in seen.items():
        labels[code] += count
        if len(text) <= SHORT:
            top[code][text] = count
    keep = TOP_SPANS if layer.kind == "spans" else TOP_WORDS
    return facts | {
        "labels": {str(code): count for code, count in sorted(labels.items())},
        "top": {str(code): _commonest(count, keep) for code, count in sorted(top.items())},
    }


def _words_in(spans: CharSpans, words: NDArray[np.int64]) -> int:
    """How many words begin in a span."""
    at = np.searchsorted(spans.start, words, side="right") - 1
    return int((words[at >= 0] < spans.end[at[at >= 0]]).sum())


def _commonest(count: Counter[str], keep: int) -> dict[str, int]:
    return dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))[:keep])


def add_up(shards: Iterable[Mapping[str, Any]], layers: Mapping[str, Layer]) -> dict[str, Any]:
    """The facts of all shards of an annotator as one, labels by name.

    Returns:
        "documents", "characters", "words", "failures" (error → texts), and "layers": for each its "kind",
        "spans", "share_of_words", and "labels" (name → count), "top" (name → [[text, count], …]) or "weight"
        ({"mean", "least", "greatest"}).
    """
    total: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    sums: dict[str, Counter[str]] = {name: Counter() for name in layers}
    labels: dict[str, Counter[str]] = {name: Counter() for name in layers}
    top: dict[str, dict[str, Counter[str]]] = {name: {} for name in layers}
    ends: dict[str, list[float]] = {}
    for facts in shards:
        total.update({key: facts[key] for key in ("documents", "characters", "words")})
        failures.update(facts["failures"])
        for name, part in facts["layers"].items():
            sums[name].update({key: part[key] for key in ("spans", "characters", "words")})
            labels[name].update(part.get("labels", {}))
            for code, texts in part.get("top", {}).items():
                top[name].setdefault(code, Counter()).update(texts)
            if part.get("weight") and part["spans"]:
                weight = ends.setdefault(name, [0.0, np.inf, -np.inf])
                some, low, high = part["weight"]
                weight[:] = weight[0] + some, min(weight[1], low), max(weight[2], high)
    found: dict[str, Any] = {}
    for name, layer in layers.items():
        named = {"0": "none", **{str(code): label for code, label in enumerate(layer.labels, 1)}}
        if not layer.labels:
            named = {"0": name}
        keep = TOP_SPANS if layer.kind == "spans" else TOP_WORDS
        found[name] = {
            "kind": layer.kind, "spans": sums[name]["spans"],
            "share_of_words": sums[name]["words"] / max(1, total["words"]),
        }  # fmt: skip
        if layer.kind == "weight":
            some, low, high = ends.get(name, [0.0, 0.0, 0.0])
            mean = some / max(1, sums[name]["spans"])
            found[name]["weight"] = {"mean": mean, "least": low, "greatest": high}
            continue
        order = sorted(labels[name], key=lambda code: (-labels[name][code], int(code)))
        found[name]["labels"] = {named[code]: labels[name][code] for code in order}
        found[name]["top"] = {
            named[code]: [[*pair] for pair in _commonest(top[name].get(code, Counter()), keep).items()]
            for code in order
        }
    return {**total, "failures": dict(failures), "layers": found}
