"""Layers that need no model: words and sentences by their characters, what files say about texts,
spans that are marked in a text, and functions of the user's.

A function takes a list of texts and gives for each a list of spans: (start, end) or (start, end,
value), by characters, a value being a label or a weight. The same text must always get the same
spans. A function runs code, so no recipe and no ``--with`` can name it: only ``--function`` and the
Python interface do.

Marks are for looking at policies without an annotator: ``born in [[Warsaw]] in [[1867|3]]`` marks
two spans, the second of weight 3.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from maskwise.errors import MaskwiseError, first_line
from maskwise.specs import Call, parse_call
from maskwise.text.layers import CharSpans, Kind, Layer, digest
from maskwise.text.readers import TEXT_ENDINGS, Fields, Skip, known_ending, read_file
from maskwise.text.words import VERSION, classify, text_id, words_in


class Words:
    """Words, by their characters."""

    name = "words"
    layers: ClassVar = {"words": Layer("spans")}
    version = digest("words", VERSION)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        found = []
        for text in texts:
            start, end = words_in(classify(text))
            found.append({"words": CharSpans(start.astype(np.int32), end.astype(np.int32))})
        return found


class Sentences:
    """Sentences, by their final punctuation."""

    name = "sentences"
    layers: ClassVar = {"sentence": Layer("spans")}
    version = digest("sentences", 1)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        layer = self.layers["sentence"]
        return [{"sentence": CharSpans.of(sentence_spans(text), layer)} for text in texts]


class Prompt:
    """What stands before the answer in texts that are pairs: everything up to the end of ``until``,
    which may come several times (``last``: up to the last one). A text without it has no prompt.

    ``masking.keep: prompt`` never masks it.
    """

    name = "prompt"
    layers: ClassVar = {"prompt": Layer("spans")}
    whole_texts = True  # a part of a long text has no prompt of its own

    def __init__(self, until: str = "\n", *, last: bool = False):
        if not until:
            raise MaskwiseError(
                "annotator prompt: until is a text", got=repr(until), do="say prompt(until='?')"
            )
        self.until = until
        self.last = last
        self.version = digest("prompt", 2, until, last)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        found = []
        for text in texts:
            end = text.rfind(self.until) if self.last else text.find(self.until)
            spans = [(0, end + len(self.until))] if end >= 0 else []
            found.append({"prompt": CharSpans.of(spans, self.layers["prompt"])})
        return found


class Known:
    """Layers that a file brings along, found again by their texts; a text that it does not have
    gets none.

    Args:
        name: of the annotator.
        layers: what the layers are.
        known: (text, its spans by layer) pairs; kept in memory.
        version: hash of the file and of how it was read.
    """

    whole_texts = True

    def __init__(
        self,
        name: str,
        layers: Mapping[str, Layer],
        known: Iterable[tuple[str, dict[str, CharSpans]]],
        version: str,
    ):
        self.name = name
        self.layers = layers
        self.version = version
        self._known = {text_id(text): spans for text, spans in known}
        self._none = {layer: CharSpans.of([], kind) for layer, kind in layers.items()}

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        return [self._known.get(text_id(text), self._none) for text in texts]


def gold(file: str) -> Known:
    """Parts of speech from a CoNLL-U file (``.gz`` allowed), for the texts of its documents."""
    from maskwise.text.labelled import POS, read_conllu

    path = _existing(file)
    known = ((document.text, document.layers) for document in read_conllu(path))
    return Known("gold", {"pos": POS}, known, digest("gold", 2, path))


def spans(
    file: str,
    *,
    field: str = "spans",
    text_field: str = "text",
    labels: tuple[str, ...] = (),
    layer: str = "spans",
) -> Known:
    """Spans that stand beside the texts in a JSON lines or Parquet file.

    Lists of [start, end], or with ``labels`` of [start, end, label], in characters, in the field
    ``field``.
    """
    path = _existing(file)
    if not known_ending(path) or path.name.lower().endswith(TEXT_ENDINGS):
        raise MaskwiseError(
            f"spans are not read from {path}", allowed="JSON lines or Parquet, with fields"
        )
    known = []
    for record in read_file(path, path.name, Fields(text_field, field)):
        if isinstance(record, Skip) or not isinstance(record[1], Mapping):
            continue
        name, row = record
        text, marked = row.get(text_field), row.get(field)
        if isinstance(text, str) and marked is not None:
            known.append((text, {layer: _given(marked, text, labels, where=f"{name} of {path}")}))
    if not known:
        do = "name the field of the spans and that of the text"
        raise MaskwiseError(f"no record of {path} has {text_field!r} and {field!r}", do=do)
    settings = digest("spans", 2, path, field, text_field, labels, layer)
    return Known("spans", {layer: Layer("spans", tuple(labels))}, known, settings)


def _given(marked: Spans, text: str, labels: tuple[str, ...], *, where: str) -> CharSpans:
    from maskwise.text.labelled import given_spans

    try:
        return given_spans(marked, text=text, labels=labels)
    except (MaskwiseError, TypeError) as error:
        raise MaskwiseError(f"{where}: {error}") from None


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MaskwiseError("no such file of annotations", got=file)
    return path


# Functions of the user's
# -----------------------------------------------------------------------------------


Spans = Sequence[Sequence[object]]


class Function:
    """The layer that a function makes.

    Args:
        place: "module:function"; the module is looked for in the current folder too.
        kind: "spans", "categorical" or "weight".
        labels: what values may be, for the first two; spans may do without.
        layer: its name; that of the function if not said.

    Raises:
        MaskwiseError: no such function; a kind that does not exist, or lacks its labels.
    """

    name = "function"

    def __init__(
        self,
        place: str,
        *,
        kind: Kind = "spans",
        labels: tuple[str, ...] = (),
        layer: str | None = None,
    ):
        if kind not in ("spans", "categorical", "weight") or (kind == "categorical") > bool(labels):
            allowed = "spans, categorical (with labels) or weight"
            raise MaskwiseError(
                f"function {place}: kind", got=f"{kind}, labels {labels}", allowed=allowed
            )
        self._call, self._source = _load(place)
        name = layer or place.rpartition(":")[2].rpartition(".")[2]
        self.layers = {name: Layer(kind, tuple(labels))}
        self.version = digest("function", place, kind, labels, name, self._source)
        self._place = place
        self._codes: dict[object, int] = {label: code for code, label in enumerate(labels, 1)}

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        ((name, layer),) = self.layers.items()
        results = self._call(texts)
        what = f"function {self._place}: one list of spans per text"
        if not isinstance(results, Sequence):
            raise MaskwiseError(what, got=type(results).__name__)
        if len(results) != len(texts):
            raise MaskwiseError(what, got=f"{len(results)} for {len(texts)} texts")
        return [{name: self._spans(spans, layer)} for spans in results]

    def _spans(self, spans: Spans, layer: Layer) -> CharSpans:
        width = 2 if layer.dtype is None else 3
        for span in spans:
            if len(span) != width or not all(isinstance(place, int) for place in span[:2]):
                allowed = "(start, end)" if width == 2 else "(start, end, value)"
                raise MaskwiseError(
                    f"function {self._place}: a span", got=repr(span), allowed=allowed
                )
            if layer.labels and span[2] is not None and span[2] not in self._codes:
                allowed = ", ".join(layer.labels)
                raise MaskwiseError(
                    f"function {self._place}: a label", got=span[2], allowed=allowed
                )
        if layer.labels:
            spans = [(start, end, self._codes.get(label, 0)) for start, end, label in spans]
        return CharSpans.of(spans, layer)


def spec_of(function: str | Callable[..., object]) -> Call:
    """``module:function``, ``module:function(kind="weight")``, or a function that can be imported,
    as a call.

    Raises:
        MaskwiseError: neither; a function inside of another cannot be found again by worker
            processes.
    """
    if callable(function):
        module, name = (
            getattr(function, "__module__", None),
            getattr(function, "__qualname__", "<locals>"),
        )
        if not module or "<" in name or module == "__main__":
            do = "put it at the top of a module that can be imported"
            raise MaskwiseError(
                "worker processes cannot import this function", got=repr(function), do=do
            )
        return Call("function", (f"{module}:{name}",))

    place, bracket, rest = function.partition("(")
    settings = parse_call(f"function({rest}" if bracket else "function")
    return Call("function", (place.strip(), *settings.args), settings.kwargs)


def _load(place: str) -> tuple[Callable[[list[str]], object], str]:
    """The function, and the source of its module: whatever changes there makes another version."""
    module, _, name = place.partition(":")
    if not module or not name:
        raise MaskwiseError("a function is given as module:function", got=place)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        home = importlib.import_module(module)
        member: object = home
        for part in name.split("."):
            member = getattr(member, part)
        source = inspect.getsource(home)
    except (Exception, SystemExit) as error:  # the module is the user's: it may raise anything
        got = f"{type(error).__name__}: {first_line(error)}"
        raise MaskwiseError(f"cannot load the function {place}", got=got) from error
    if not callable(member):
        raise MaskwiseError(f"{place} is not a function", got=type(member).__name__)
    return member, source


# Spans marked in a text
# ------------------------------------------------------------------------------------


_MARKED = re.compile(r"\[\[(.+?)(?:\|(\d+(?:\.\d+)?))?\]\]", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]|$)", re.DOTALL)


class Span(NamedTuple):
    """Characters ``start`` to ``stop`` (exclusive) of a text, and how likely they should be masked."""

    start: int
    stop: int
    weight: float = 1.0


def read_marks(text: str) -> tuple[str, list[Span]]:
    """The text without its ``[[…]]`` marks, and the spans that they marked.

    >>> read_marks("born in [[Warsaw]]")
    ('born in Warsaw', [Span(start=8, stop=14, weight=1.0)])
    """
    spans, parts, end = [], [], 0
    for mark in _MARKED.finditer(text):
        parts += [text[end : mark.start()], mark[1]]
        stop = sum(map(len, parts))
        spans.append(Span(stop - len(mark[1]), stop, float(mark[2] or 1)))
        end = mark.end()
    return "".join([*parts, text[end:]]), spans


def sentence_spans(text: str) -> list[Span]:
    """Sentences by their final punctuation: good enough to look at, not an annotator."""
    return [Span(*match.span()) for match in _SENTENCE.finditer(text) if match[0].strip()]


def span_layer(text: str, spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """(L,) the number of the span that each token begins in; −1 outside and for empty tokens."""
    numbers = [-1] * (len(text) + 1)
    for number, span in enumerate(spans):
        numbers[span.start : span.stop] = [number] * (span.stop - span.start)
    found = []
    for start, stop in offsets:
        blanks = len(text[start:stop]) - len(text[start:stop].lstrip())
        found.append(numbers[start + blanks] if stop > start else -1)
    return found
