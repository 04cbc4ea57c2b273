"""Layers that need no model: words, sentences and prompts, spans in files, functions of the user's.

A function takes a list of texts and gives for each a list of spans: (start, end) or (start, end,
value), in characters, a value being a label or a weight. The same text must always get the same
spans. A function runs code, so no recipe and no ``--with`` can name it: only ``--function`` and the
Python interface do.

Marks show policies without an annotator: ``born in [[Warsaw]] in [[1867|3]]`` marks two spans, the
second of weight 3.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, first_line
from maskwise.specs import Call, parse_call
from maskwise.text.layers import CharSpans, Kind, Layer, digest
from maskwise.text.readers import TEXT_ENDINGS, Fields, Skip, known_ending, read_file
from maskwise.text.words import VERSION, classify, text_id, words_in

SPANS = Layer("spans")
Found: TypeAlias = dict[str, CharSpans]
"""The spans of a text by layer."""
Finder: TypeAlias = Callable[[list[str]], Iterable[Iterable[Sequence[object]]]]
"""From texts to a list of spans for each: a function of the user's."""


class ByText:
    """An annotator that finds the layers of each text with a function.

    Args:
        find: from a text to its spans by layer.
        whole_texts: whether long texts come whole and not in parts.
    """

    def __init__(
        self,
        name: str,
        layers: Mapping[str, Layer],
        find: Callable[[str], Found],
        version: str,
        *,
        whole_texts: bool = False,
    ):
        self.name = name
        self.layers = layers
        self.find = find
        self.version = version
        self.whole_texts = whole_texts

    def annotate(self, texts: list[str]) -> list[Found]:
        return [self.find(text) for text in texts]


def words() -> ByText:
    """Words, by their characters."""

    def find(text: str) -> Found:
        start, end = words_in(classify(text))
        return {"words": CharSpans(start.astype(np.int32), end.astype(np.int32))}

    return ByText("words", {"words": SPANS}, find, digest("words", VERSION))


def sentences() -> ByText:
    """Sentences, by their final punctuation."""

    def find(text: str) -> Found:
        return {"sentence": CharSpans.of(sentence_spans(text), SPANS)}

    return ByText("sentences", {"sentence": SPANS}, find, digest("sentences", 1))


def prompt(until: str = "\n", *, last: bool = False) -> ByText:
    """The part of a text up to the end of ``until``, its first occurrence or the ``last``.

    ``masking.keep: prompt`` never masks it. A text without ``until`` has no prompt.
    """
    if not until:
        do = "say prompt(until='?')"
        raise MaskwiseError("annotator prompt: until is a text", got=repr(until), do=do)

    def find(text: str) -> Found:
        end = text.rfind(until) if last else text.find(until)
        spans = [(0, end + len(until))] if end >= 0 else []
        return {"prompt": CharSpans.of(spans, SPANS)}

    version = digest("prompt", 2, until, last)
    return ByText("prompt", {"prompt": SPANS}, find, version, whole_texts=True)


def gold(file: str) -> ByText:
    """Parts of speech from a CoNLL-U file (``.gz`` allowed), for the texts of its documents."""
    from maskwise.text.labelled import POS, read_conllu

    path = _existing(file)
    known = {text_id(document.text): document.layers for document in read_conllu(path)}
    return _known("gold", {"pos": POS}, known, digest("gold", 2, path))


def spans(
    file: str,
    *,
    field: str = "spans",
    text_field: str = "text",
    labels: tuple[str, ...] = (),
    layer: str = "spans",
) -> ByText:
    """Spans next to the texts of a JSON lines or Parquet file.

    Lists of [start, end], or with ``labels`` of [start, end, label], in characters, in the field
    ``field``.
    """
    from maskwise.text.labelled import given_spans

    path = _existing(file)
    if not known_ending(path) or path.name.lower().endswith(TEXT_ENDINGS):
        allowed = "JSON lines or Parquet, with fields"
        raise MaskwiseError(f"spans are not read from {path}", allowed=allowed)
    known: dict[int, Found] = {}
    for record in read_file(path, path.name, Fields(text_field, field)):
        if isinstance(record, Skip) or not isinstance(record[1], Mapping):
            continue
        text = record[1].get(text_field)
        marked = record[1].get(field)
        if not isinstance(text, str) or marked is None:
            continue
        try:
            known[text_id(text)] = {layer: given_spans(marked, text=text, labels=labels)}
        except (MaskwiseError, TypeError) as error:
            raise MaskwiseError(f"{record[0]} of {path}: {error}") from None
    if not known:
        do = "name the field of the spans and that of the text"
        raise MaskwiseError(f"no record of {path} has {text_field!r} and {field!r}", do=do)
    version = digest("spans", 2, path, field, text_field, labels, layer)
    return _known("spans", {layer: Layer("spans", tuple(labels))}, known, version)


def _known(
    name: str, layers: Mapping[str, Layer], known: Mapping[int, Found], version: str
) -> ByText:
    """Layers of a file, looked up by the hash of the text; other texts have none."""
    empty = {layer: CharSpans.of([], kind) for layer, kind in layers.items()}

    def find(text: str) -> Found:
        return known.get(text_id(text), empty)

    return ByText(name, layers, find, version, whole_texts=True)


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MaskwiseError("no such file of annotations", got=file)
    return path


# Functions of the user's
# -------------------------------------------------------------------------------------------


class Function:
    """The layer that a function makes.

    Args:
        place: "module:function"; the current folder is searched too.
        kind: "spans", "categorical" or "weight".
        labels: allowed values of the first two; spans may do without.
        layer: its name, by default the function's.

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
            got = f"{kind}, labels {labels}"
            allowed = "spans, categorical (with labels) or weight"
            raise MaskwiseError(f"function {place}: kind", got=got, allowed=allowed)
        self._call, source = _load(place)
        self._place = place
        self._layer = Layer(kind, tuple(labels))
        self._name = layer or place.rpartition(":")[2].rpartition(".")[2]
        self._codes: dict[object, int] = {None: 0}
        self._codes |= {label: code for code, label in enumerate(labels, 1)}
        self.layers = {self._name: self._layer}
        self.version = digest("function", place, kind, labels, self._name, source)

    def annotate(self, texts: list[str]) -> list[Found]:
        results = list(self._call(texts))
        if len(results) != len(texts):
            what = f"function {self._place}: one list of spans per text"
            raise MaskwiseError(what, got=f"{len(results)} for {len(texts)} texts")
        found = []
        for marked in results:
            checked = [self._checked(span) for span in marked]
            found.append({self._name: CharSpans.of(checked, self._layer)})
        return found

    def _checked(self, span: Sequence[object]) -> Sequence[object]:
        """A span, with the code of its label."""
        parts = ("start", "end", "value")[: 2 if self._layer.dtype is None else 3]
        if len(span) != len(parts) or not all(isinstance(place, int) for place in span[:2]):
            allowed = f"({', '.join(parts)})"
            raise MaskwiseError(f"function {self._place}: a span", got=repr(span), allowed=allowed)
        if not self._layer.labels:
            return span
        if span[2] not in self._codes:
            allowed = ", ".join(self._layer.labels)
            raise MaskwiseError(f"function {self._place}: a label", got=span[2], allowed=allowed)
        return (*span[:2], self._codes[span[2]])


def spec_of(function: str | Callable[..., object]) -> Call:
    """The call of a function that can be imported, or of ``module:function(kind="weight")``.

    Raises:
        MaskwiseError: neither; workers cannot import a function inside of another.
    """
    if callable(function):
        name = function.__qualname__ if inspect.isfunction(function) else "<no function>"
        if "<" in name or function.__module__ == "__main__":
            what = "worker processes cannot import this function"
            do = "put it at the top of a module that can be imported"
            raise MaskwiseError(what, got=repr(function), do=do)
        return Call("function", (f"{function.__module__}:{name}",))
    place, bracket, rest = function.partition("(")
    settings = parse_call(f"function{bracket}{rest}")
    return Call("function", (place.strip(), *settings.args), settings.kwargs)


def _load(place: str) -> tuple[Finder, str]:
    """The function, and the source of its module, which is part of its version."""
    module, _, name = place.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        home = importlib.import_module(module)
        member: object = home
        for part in name.split("."):
            member = getattr(member, part)
        source = inspect.getsource(home)
        if not callable(member):
            raise TypeError(f"{name} is not a function")
    except (Exception, SystemExit) as error:  # the module is the user's: it may raise anything
        got = f"{type(error).__name__}: {first_line(error)}"
        allowed = "module:function"
        raise MaskwiseError(
            f"cannot load the function {place}", got=got, allowed=allowed
        ) from error
    return member, source


# Spans marked in a text
# -------------------------------------------------------------------------------------------


_MARKED = re.compile(r"\[\[(.+?)(?:\|(\d+(?:\.\d+)?))?\]\]", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]|$)", re.DOTALL)


class Span(NamedTuple):
    """Characters ``start`` to ``stop`` (exclusive) of a text, and their weight."""

    start: int
    stop: int
    weight: float = 1.0


def read_marks(text: str) -> tuple[str, list[Span]]:
    """The text without its ``[[…]]`` marks, and the spans that they marked.

    >>> read_marks("born in [[Warsaw]]")
    ('born in Warsaw', [Span(start=8, stop=14, weight=1.0)])
    """
    spans = []
    plain = ""
    end = 0
    for mark in _MARKED.finditer(text):
        plain += text[end : mark.start()] + mark[1]
        spans.append(Span(len(plain) - len(mark[1]), len(plain), float(mark[2] or 1)))
        end = mark.end()
    return plain + text[end:], spans


def sentence_spans(text: str) -> list[Span]:
    """Sentences by their final punctuation: a rough rule."""
    return [Span(*match.span()) for match in _SENTENCE.finditer(text)]


def span_layer(text: str, spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """(L,) the number of the span that each token begins in; −1 outside and for empty tokens."""
    number_at = [-1] * (len(text) + 1)
    for number, span in enumerate(spans):
        number_at[span.start : span.stop] = [number] * (span.stop - span.start)
    found = []
    for start, stop in offsets:
        ink = text[start:stop].lstrip()
        found.append(number_at[stop - len(ink)] if stop > start else -1)
    return found
