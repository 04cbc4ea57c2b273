"""What annotators found: counted shard by shard while the text is at hand, added up, and shown.

Counts are exact. The commonest words and spans are added up from the commonest of each shard: what is common
is counted nearly in full, what is rare may be missed.

Cost: 0.4 µs per span; some kilobytes per shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskwise.text.layers import CharSpans, Layer
from maskwise.text.words import classify, word_starts

Ints = NDArray[np.int64]

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
    sizes = np.array([len(text) + 1 for text in texts], dtype=np.int64)
    base = np.cumsum(sizes) - sizes
    joined = "".join(text + "\n" for text in texts)
    # Text by text: a dozen passes over the whole of a long document would take memory.
    begins = _joined([np.flatnonzero(word_starts(classify(t))) + at for t, at in zip(texts, base)], np.int64)
    total = {"documents": len(texts), "characters": len(joined) - len(texts), "words": len(begins)}
    return total | {
        "layers": {
            name: _layer_facts(joined, base, [spans[name] for spans in found], layer, begins)
            for name, layer in layers.items()
        }
    }


def _layer_facts(
    joined: str, base: Ints, found: Sequence[CharSpans], layer: Layer, begins: Ints
) -> dict[str, Any]:
    """Of spans in N texts that stand in ``joined`` from ``base`` (N,) on, where words begin at ``begins`` (W,)."""
    counts = np.fromiter((len(spans.start) for spans in found), dtype=np.int64, count=len(found))
    origin = np.repeat(base, counts)
    start, end = (origin + _joined([spans[side] for spans in found], np.int64) for side in (0, 1))
    inside = np.searchsorted(start, begins, side="right") - 1
    facts: dict[str, Any] = {
        "spans": len(start), "characters": int((end - start).sum()),
        "words": int((begins[inside >= 0] < end[inside[inside >= 0]]).sum()),
    }  # fmt: skip
    if layer.kind == "weight":
        values = _joined([spans.value for spans in found], np.float64)
        ends = [float(values.min()), float(values.max())] if len(values) else [0.0, 0.0]
        return facts | {"weight": [float(values.sum()), *ends]}
    codes = _joined([spans.value for spans in found], np.int64) if layer.dtype else np.zeros_like(start)
    labels = np.bincount(codes)
    keep = TOP_SPANS if layer.kind == "spans" else TOP_WORDS
    short, top = end - start <= SHORT, {}
    for code in np.unique(codes[short]).tolist():
        at = short & (codes == code)
        cuts = map(slice, start[at].tolist(), end[at].tolist())
        top[str(code)] = _commonest(Counter(map(joined.__getitem__, cuts)), keep)  # C speed: these are many
    return facts | {
        "labels": {str(code): int(labels[code]) for code in np.flatnonzero(labels)},
        "top": top,
    }


def _joined(parts: Sequence[Any], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def _commonest(count: Counter[str], keep: int) -> dict[str, int]:
    if len(count) > keep:  # sort no more than is kept, and its ties
        times = np.fromiter(count.values(), dtype=np.int64, count=len(count))
        least = int(np.partition(times, len(times) - keep)[len(times) - keep])
        count = Counter({text: number for text, number in count.items() if number >= least})
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
