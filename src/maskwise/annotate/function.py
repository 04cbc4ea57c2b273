"""A Python function of the user's as an annotator. It runs code, so no recipe and no ``--with`` can name it: only
``--function`` and the Python API do.

A function takes a list of texts and gives for each a list of spans: (start, end) or (start, end, value), by
characters, a value being a label or a weight. The same text must always get the same spans.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.specs import Call
from maskwise.text.layers import CharSpans, Kind, Layer, digest

Spans = Sequence[Sequence[Any]]


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
        self, place: str, *, kind: Kind = "spans", labels: tuple[str, ...] = (), layer: str | None = None
    ):
        if kind not in ("spans", "categorical", "weight") or (kind == "categorical") > bool(labels):
            allowed = "spans, categorical (with labels) or weight"
            raise MaskwiseError(f"function {place}: kind", got=f"{kind}, labels {labels}", allowed=allowed)
        self._call, self._source = _load(place)
        name = layer or place.rpartition(":")[2].rpartition(".")[2]
        self.layers = {name: Layer(kind, tuple(labels))}
        self.version = digest("function", place, kind, labels, name, self._source)
        self._place, self._codes = place, {label: code for code, label in enumerate(labels, 1)}

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        ((name, layer),) = self.layers.items()
        found = self._call(texts)
        if not isinstance(found, Sequence) or len(found) != len(texts):
            got = (
                f"{len(found)} for {len(texts)} texts"
                if isinstance(found, Sequence)
                else type(found).__name__
            )
            raise MaskwiseError(f"function {self._place}: one list of spans per text", got=got)
        return [{name: self._spans(spans, layer)} for spans in found]

    def _spans(self, spans: Spans, layer: Layer) -> CharSpans:
        width = 2 if layer.dtype is None else 3
        for span in spans:
            if len(span) != width or not all(isinstance(place, int) for place in span[:2]):
                allowed = "(start, end)" if width == 2 else "(start, end, value)"
                raise MaskwiseError(f"function {self._place}: a span", got=repr(span), allowed=allowed)
            if layer.labels and span[2] is not None and span[2] not in self._codes:
                allowed = ", ".join(layer.labels)
                raise MaskwiseError(f"function {self._place}: a label", got=span[2], allowed=allowed)
        if layer.labels:
            spans = [(start, end, self._codes.get(label, 0)) for start, end, label in spans]
        return CharSpans.of(spans, layer)


def spec_of(function: str | Callable[..., Any]) -> Call:
    """``module:function``, ``module:function(kind="weight")``, or a function that can be imported, as a call.

    Raises:
        MaskwiseError: neither; a function inside of another cannot be found again by worker processes.
    """
    if callable(function):
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<locals>")
        if not module or "<" in name or module == "__main__":
            do = "put it at the top of a module that can be imported"
            raise MaskwiseError("worker processes cannot import this function", got=repr(function), do=do)
        return Call("function", (f"{module}:{name}",))
    from maskwise.specs import parse_call

    place, bracket, rest = function.partition("(")
    settings = parse_call(f"function({rest}" if bracket else "function")
    return Call("function", (place.strip(), *settings.args), settings.kwargs)


def _load(place: str) -> tuple[Callable[[list[str]], Any], str]:
    """The function, and the source of its module: whatever changes there makes another version."""
    module, colon, name = place.partition(":")
    if not colon or not name:
        raise MaskwiseError("a function is given as module:function", got=place)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        home = importlib.import_module(module)
        found: Any = home
        for part in name.split("."):
            found = getattr(found, part)
        source = inspect.getsource(home)
    except (ImportError, AttributeError, OSError, TypeError) as error:
        raise MaskwiseError(f"cannot load the function {place}", got=str(error)) from error
    if not callable(found):
        raise MaskwiseError(f"{place} is not a function", got=type(found).__name__)
    return found, source
