"""Annotate one shard (a group of documents), and return the bytes of one file for each annotator.

To bound memory, annotators get long documents in parts of at most `PART_CHARACTERS` characters, cut
at line breaks or spaces. Annotators with ``whole_texts`` get whole documents. If an annotator fails
on a text, the text gets no spans from this annotator and is counted as a failure. The run ends if
an annotator fails on all texts of a shard, or if a file, the network or memory is the cause.

The spans are also counted here, while the text is in memory. Totals are exact. For the most common
words and spans, each shard stores only its own most common ones. Therefore the list for the corpus
may lack a word that is common in the corpus but not among the most common of any shard. Counting
costs 0.4 µs per span.

`Live` annotates the texts of a stream, without a store on disk.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from maskwise.annotate.counts import Ints
from maskwise.annotate.registry import annotator, register, registered
from maskwise.annotate.store import Facts, to_parquet
from maskwise.annotate.tagger import cut_text
from maskwise.errors import MaskwiseError
from maskwise.segments import offsets
from maskwise.text.documents import Document
from maskwise.text.layers import (
    Annotator,
    CharSpans,
    Fitted,
    Found,
    Layer,
    Layers,
    check_spans,
    joined_spans,
    no_spans,
)
from maskwise.text.words import classify, join_texts, word_starts

PART_CHARACTERS = 100_000
_BORDERS = ("\n", " ")
SURE_FAILURES = 8
"""If an annotator fails on all texts of a shard, the run ends only if the shard has at least this
many texts."""
TOP_SPANS = 200
"""Number of most common texts of spans that a shard stores for each label, in a layer of spans."""
TOP_WORDS = 20
"""Number of most common texts that a shard stores for each label, in a layer of word labels."""
SHORT_CHARACTERS = 60
"""Maximum length of the spans whose texts are counted. Longer spans (sentences) rarely repeat."""


class ShardTask(NamedTuple):
    """A shard to annotate: its index in the corpus, its documents, and the annotators to run.

    ``registered`` has the factories of those annotators that were registered (``register``). A
    worker imports their modules when it reads the task.
    """

    number: int
    documents: list[Document]
    annotators: tuple[str, ...]
    registered: Mapping[str, Callable[..., Annotator]]


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
    """Counts of an annotator in the corpus, and its message for the user (``notice``).

    ``failures`` has the number of texts on which the annotator failed, keyed by error.
    """

    notice: str | None
    failures: dict[str, int]
    layers: dict[str, LayerSummary]


# Users' functions are allowed here, because run.py has already checked that the user named them.
# Each process builds an annotator only once, because an annotator may load a model.
_annotator = cache(partial(annotator, functions=True))


def forget() -> None:
    """Clear the cache of annotators, because a file that an annotator reads may have changed."""
    _annotator.cache_clear()


def _register(factories: Mapping[str, Callable[..., Annotator]]) -> None:
    for name, factory in factories.items():
        register(name, factory)


def annotate_shard(task: ShardTask) -> list[bytes]:
    """Annotate a shard, and return the bytes of one file for each annotator.

    Raises:
        MaskwiseError: spans do not fit the text, or an annotator fails on all texts.
    """
    _register(task.registered)
    texts = [document.text for document in task.documents]
    files = []
    for spec in task.annotators:
        maker = _annotator(spec)
        failures = Counter[str]()
        spans = spans_of(maker, texts, failures)
        facts = shard_facts(texts, spans, maker.layers) | {"failures": dict(failures)}
        files.append(to_parquet(task.documents, spans, maker.layers, facts))
    return files


class Live:
    """Annotate any texts with several annotators, without a store.

    Only ``specs`` is pickled, with registered factories. Each process builds the annotators itself,
    once.

    Args:
        specs: the annotators, as strings such as ``pos(model="en_core_web_sm")``.

    Raises:
        MaskwiseError: an annotator is unknown, or must read the whole corpus first.

    >>> live = Live(["words"])
    >>> live.annotate(["Owls fly."])[0]["words"].start.tolist()
    [0, 5, 8]
    """

    def __init__(self, specs: Sequence[str]):
        self.specs = tuple(specs)
        for spec, maker in zip(self.specs, self._makers, strict=True):
            require_live(spec, maker)

    def __getstate__(self) -> dict[str, Any]:
        return {"specs": self.specs, "registered": registered(self.specs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.specs = state["specs"]
        _register(state["registered"])

    @cached_property
    def _makers(self) -> list[Annotator]:
        return list(map(annotator, self.specs))

    @property
    def layers(self) -> Layers:
        """The layers of all annotators, keyed by name."""
        layers: dict[str, Layer] = {}
        for maker in self._makers:
            layers |= maker.layers
        return layers

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of each text, keyed by layer.

        If an annotator fails on a text, its layers have no spans in this text.

        Raises:
            MaskwiseError: an annotator fails on all texts.
        """
        spans: list[Found] = [{} for _ in texts]
        for maker in self._makers:
            found = spans_of(maker, texts, Counter())
            for all_layers, new_layers in zip(spans, found, strict=True):
                all_layers |= new_layers
        return spans


def require_live(spec: str, maker: Annotator) -> None:
    """Check that an annotator can annotate a stream.

    Raises:
        MaskwiseError: the annotator must be fitted to the whole corpus first.
    """
    if not isinstance(maker, Fitted) or maker.fitted:
        return
    option = "table"
    if maker.name == "phrases":
        option = "vocabulary"
    raise MaskwiseError(
        f"the annotator {spec} must read the whole corpus first, but the corpus is a stream",
        do=f"count in a part of the corpus (maskwise annotate PART --with {maker.name} --out DIR) "
        f'and name the result: {maker.name}({option}="DIR/fitted/{maker.name}-…"); or leave out '
        f"corpus.stream",
    )


# Annotating texts
# -------------------------------------------------------------------------------------------


def spans_of(
    maker: Annotator,
    texts: Sequence[str],
    failures: Counter[str],
) -> list[Found]:
    """Return the spans of each text, keyed by layer.

    Args:
        failures: a counter of failed texts, keyed by error. New failures are added.

    Raises:
        MaskwiseError: spans do not fit the text, or the annotator fails on all texts.
    """
    try:
        return _annotate(maker, texts)
    except MaskwiseError:
        raise
    except Exception:
        # One bad text must not stop the run, so the texts are annotated one by one.
        found = []
        for text in texts:
            found += _try_alone(maker, text, failures)
    if failures.total() == len(texts) >= SURE_FAILURES:
        raise MaskwiseError(
            f"{maker.name} failed on all {len(texts)} texts of a shard",
            got=next(iter(failures)),
            do="fix the annotator and run the same command again; finished files are kept",
        )
    return found


def _try_alone(maker: Annotator, text: str, failures: Counter[str]) -> list[Found]:
    """Annotate one text. If the annotator fails, count the failure and return no spans."""
    try:
        return _annotate(maker, [text])
    except MaskwiseError:
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        # A text does not cause such an error. Therefore the shard must not be stored as finished.
        if isinstance(error, OSError | MemoryError):
            raise MaskwiseError(
                f"the annotator {maker.name} failed",
                got=line,
                do="run the same command again, which resumes",
            ) from error
        failures[line] += 1
        return [no_spans(maker.layers)]


def _annotate(maker: Annotator, texts: Sequence[str]) -> list[Found]:
    """Annotate texts in parts, check the spans, and join the spans of all parts of a text."""
    most = PART_CHARACTERS
    # Annotators need not have ``whole_texts``, because the protocol `Annotator` does not have it.
    if hasattr(maker, "whole_texts") and maker.whole_texts:
        most = sys.maxsize
    parts = []
    counts = []
    for text in texts:
        cuts = list(cut_text(text, 0, len(text), most=most, borders=_BORDERS))
        parts += [text[start:end] for start, end in cuts]
        counts.append(len(cuts))
    found = maker.annotate(parts)
    names = set(maker.layers)
    if len(found) != len(parts) or not all(names <= set(layers) for layers in found):
        raise MaskwiseError(
            f"{maker.name} must return all its layers of every text",
            got=f"{len(found)} results for {len(parts)} texts",
            allowed=sorted(names),
        )
    for part, layers in zip(parts, found):
        for name, layer in maker.layers.items():
            where = f"{maker.name}: {name} of {part[:40]!r}…"
            check_spans(layers[name], layer, len(part), name=where)
    joined = []
    end = 0
    for count in counts:
        own = slice(end, end + count)
        end = own.stop
        begins = offsets(np.array(list(map(len, parts[own]))))
        whole = {}
        for name in maker.layers:
            spans = [layers[name] for layers in found[own]]
            starts, ends, values = joined_spans(spans, begins)
            whole[name] = CharSpans(starts.astype(np.int32), ends.astype(np.int32), values)
        joined.append(whole)
    return joined


# Counting spans
# -------------------------------------------------------------------------------------------


def shard_facts(
    texts: Sequence[str],
    found: Sequence[Mapping[str, CharSpans]],
    layers: Layers,
) -> Facts:
    """Count the spans of one annotator in one shard.

    Args:
        texts: the N texts of the shard.
        found: the spans of each text, keyed by layer.
        layers: the annotator's layers.

    Returns:
        JSON values. ``words``: the number of words. ``failures``: empty. ``layers``: for each
        layer, a record with ``spans`` (the number of spans), ``words`` (the number of words in
        spans), and either ``weight`` (the sum, smallest and largest weight) or ``labels`` (the
        number of spans) and ``top`` (the most common texts), both keyed by the code of the label.
    """
    joined, base = join_texts(texts)
    begins = []
    for text, origin in zip(texts, base, strict=True):
        # Classifying needs 60 bytes per character, so long texts are classified in parts.
        for start, end in cut_text(text, 0, len(text), most=PART_CHARACTERS, borders=_BORDERS):
            kinds = classify(text[start:end])
            begins.append(np.flatnonzero(word_starts(kinds)) + origin + start)
    words = np.concatenate(begins)
    counted = {}
    for name, layer in layers.items():
        spans_of_layer = [spans[name] for spans in found]
        counted[name] = _layer_facts(joined, base, spans_of_layer, layer, words)
    return {
        "words": len(words),
        "failures": {},
        "layers": counted,
    }


def _layer_facts(
    joined: str,
    base: Ints,
    found: Sequence[CharSpans],
    layer: Layer,
    words: Ints,
) -> Facts:
    """Count the spans of one layer.

    Args:
        joined: the N texts, joined.
        base: (N,) the position of each text in ``joined``.
        words: the positions of all words in ``joined``.
    """
    start, end, codes = joined_spans(found, base)
    # A word is in a span if its first character is before the end of the last span that begins at
    # or before the word. A word before all spans gets the index −1, which selects the appended 0.
    last = start.searchsorted(words, side="right") - 1
    covered = np.append(end, 0)[last] > words
    facts = {"spans": len(start), "words": int(covered.sum())}
    if codes is None:
        codes = np.zeros_like(start)
    if layer.kind == "weight":
        # Without spans, there is no smallest or largest weight.
        weight = [0.0, 0.0, 0.0]
        if len(codes):
            weights = codes.astype(np.float64)
            weight = [float(weights.sum()), float(weights.min()), float(weights.max())]
        return {**facts, "weight": weight}
    distinct, times = np.unique(codes, return_counts=True)
    labels = dict(zip(map(str, distinct.tolist()), times.tolist()))
    short = end - start <= SHORT_CHARACTERS
    cuts = map(slice, start[short].tolist(), end[short].tolist())
    # `map` and `Counter` are written in C. A Python loop would be slower than the annotators.
    pairs = Counter(zip(codes[short].tolist(), map(joined.__getitem__, cuts)))
    texts: dict[str, dict[str, int]] = {}
    for (code, text), number in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        texts.setdefault(str(code), {})[text] = number
    top = {code: _commonest(counts, layer) for code, counts in texts.items()}
    return {**facts, "labels": labels, "top": top}


def _commonest(counts: Mapping[str, int], layer: Layer) -> dict[str, int]:
    """Return the most common texts with their counts, most common first."""
    most = TOP_SPANS if layer.kind == "spans" else TOP_WORDS
    # The text breaks ties, so the result does not depend on the order of ``counts``.
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:most])


def add_up(shards: Sequence[Facts], maker: Annotator) -> AnnotatorSummary:
    """Merge the counts of all shards for one annotator."""
    words = 0
    failures = Counter[str]()
    for facts in shards:
        words += facts["words"]
        failures.update(facts["failures"])
    layers = {}
    for name, layer in maker.layers.items():
        parts = [facts["layers"][name] for facts in shards]
        layers[name] = _summary(parts, name, layer, words)
    # Annotators need not have a ``notice``, because the protocol `Annotator` does not have it.
    notice = maker.notice if hasattr(maker, "notice") else None
    return {
        "notice": notice,
        "failures": dict(failures),
        "layers": layers,
    }


def _summary(
    parts: Sequence[Facts],
    name: str,
    layer: Layer,
    words: int,
) -> LayerSummary:
    spans = 0
    covered = 0
    for part in parts:
        spans += part["spans"]
        covered += part["words"]
    summary: LayerSummary = {
        "kind": layer.kind,
        "spans": spans,
        "share_of_words": covered / max(1, words),
    }
    if layer.kind == "weight":
        # A shard without spans has zeros here, which must not become the smallest weight.
        weights = [part["weight"] for part in parts if part["spans"]] or [[0.0, 0.0, 0.0]]
        total, least, greatest = zip(*weights)
        mean = sum(total) / max(1, spans)
        summary["weight"] = {
            "mean": mean,
            "least": min(least),
            "greatest": max(greatest),
        }
        return summary

    labels = Counter[str]()
    texts: dict[str, Counter[str]] = {}
    for part in parts:
        labels.update(part["labels"])
        for code, common in part["top"].items():
            texts.setdefault(code, Counter()).update(common)
    names: tuple[str, ...] = (name,)
    if layer.labels:
        # Code 0 means that a word has no label.
        names = ("none", *layer.labels)
    summary["labels"] = {}
    summary["top"] = {}
    for code, number in sorted(labels.items(), key=lambda item: (-item[1], int(item[0]))):
        label = names[int(code)]
        summary["labels"][label] = number
        # The texts of long spans are not counted. A label that has only long spans has no texts.
        top = _commonest(texts.get(code, {}), layer)
        summary["top"][label] = list(map(list, top.items()))
    return summary
