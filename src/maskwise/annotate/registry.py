"""The table of annotators, and annotators without a model: words, sentences, prompts, spans from
files, users' functions.

A user's function maps a list of texts to a list of spans for each text. A span is (start, end) or
(start, end, value), in characters; the value is a label or a weight. Equal texts must get equal
spans. A function runs code, so only ``--function`` and Python may name a function; recipes and
``--with`` may not. When users inspect a policy, marks in the text replace an annotator:
``born in [[Warsaw]] in [[1867|3]]`` marks two spans, the second with weight 3. Heavy libraries
(spaCy, torch) are imported at their first use.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from maskwise.annotate.phrases import Phrases
from maskwise.annotate.store import Store
from maskwise.annotate.tagger import pos, salient
from maskwise.annotate.weights import Difference, Frequency, Informativeness
from maskwise.errors import MaskwiseError, first_line
from maskwise.specs import Call, build, parse_call
from maskwise.text.labelled import POS, read_conllu
from maskwise.text.layers import (
    Annotator,
    CharSpans,
    Found,
    Kind,
    Layer,
    Layers,
    check_spans,
    digest,
    given_spans,
    no_spans,
)
from maskwise.text.readers import TEXT_ENDINGS, Fields, Skip, known_ending, read_file
from maskwise.text.words import VERSION, classify, text_id, words_in
from maskwise.text.worlds import WORLDS

SPANS = Layer("spans")
Finder: TypeAlias = Callable[[list[str]], Iterable[Iterable[Sequence[object]]]]
"""A user's function, which maps texts to a list of spans for each text."""


@dataclass(eq=False)
class ByText:
    """An annotator that applies a function to each text.

    Args:
        name: the name of the annotator.
        layers: the layers, keyed by name.
        find: a function from a text to the spans of the text, keyed by layer.
        version: the annotator's version; see `Annotator`.
        whole_texts: whether ``find`` gets long texts whole instead of in parts.
    """

    name: str
    layers: Layers
    find: Callable[[str], Found]
    version: str
    _: KW_ONLY
    whole_texts: bool = False

    def annotate(self, texts: list[str]) -> list[Found]:
        return list(map(self.find, texts))


def words() -> ByText:
    """Annotate words, by the rules in words.py: runs of letters and digits, and single symbols."""

    def find(text: str) -> Found:
        start, end = words_in(classify(text))
        return {"words": CharSpans(start.astype(np.int32), end.astype(np.int32))}

    return ByText("words", {"words": SPANS}, find, digest("words", VERSION))


def sentences() -> ByText:
    """Annotate sentences, which end at final punctuation."""

    def find(text: str) -> Found:
        return {"sentence": CharSpans.of(sentence_spans(text), SPANS)}

    return ByText("sentences", {"sentence": SPANS}, find, digest("sentences", 1))


def prompt(until: str = "\n", *, last: bool = False) -> ByText:
    """Annotate the prompt of a text, which ends with the first (or ``last``) ``until``.

    With ``masking.keep: prompt``, prompts are never masked. A text without ``until`` has no prompt.

    Raises:
        MaskwiseError: ``until`` is empty.
    """
    if not until:
        raise MaskwiseError(
            "prompt: `until` must not be empty",
            got=repr(until),
            do="write prompt(until='?')",
        )

    def find(text: str) -> Found:
        end = text.rfind(until) if last else text.find(until)
        spans = []
        if end >= 0:
            spans = [(0, end + len(until))]
        return {"prompt": CharSpans.of(spans, SPANS)}

    version = digest("prompt", 2, until, last)
    return ByText("prompt", {"prompt": SPANS}, find, version, whole_texts=True)


def gold(file: str) -> ByText:
    """Annotate the texts of a CoNLL-U file (``.gz`` allowed) with the file's parts of speech."""
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
    """Annotate the texts of a JSON lines or Parquet file with the spans in its field ``field``.

    Spans are lists [start, end] or, with ``labels``, [start, end, label], in characters.

    Raises:
        MaskwiseError: the file cannot be read or has no spans, or a record's spans are not valid.
    """
    path = _existing(file)
    if not known_ending(path) or path.name.lower().endswith(TEXT_ENDINGS):
        raise MaskwiseError(
            f"spans cannot be read from {path}",
            allowed="JSON lines or Parquet, with fields",
        )
    kind = Layer("spans", tuple(labels))
    known = {}
    for record in read_file(path, path.name, Fields(text_field, field)):
        # The reader of the corpus reports skipped lines, so they are ignored here.
        if isinstance(record, Skip):
            continue
        place, fields = record
        if not isinstance(fields, Mapping):
            continue
        text = fields.get(text_field)
        marked = fields.get(field)
        if not isinstance(text, str) or marked is None:
            continue
        try:
            if not isinstance(marked, list):
                raise MaskwiseError("the spans are not a list", got=marked, allowed="a list")
            if not labels:
                # Labels in the file are ignored if the layer has none.
                for span in marked:
                    if isinstance(span, list) and len(span) == 3:
                        del span[2]
            found = given_spans(marked, kind)
            if labels and not np.all(found.value):
                raise MaskwiseError("a span has no label", got=marked, allowed=labels)
            check_spans(found, kind, len(text), name="given spans")
            known[text_id(text)] = {layer: found}
        except MaskwiseError as error:
            raise MaskwiseError(f"{place} of {path}: {error}") from None
    if not known:
        raise MaskwiseError(
            f"no record of {path} has {text_field!r} and {field!r}",
            do="set field and text_field to fields of the records",
        )
    version = digest("spans", 2, path, field, text_field, labels, layer)
    return _known("spans", {layer: kind}, known, version)


def _known(
    name: str,
    layers: Layers,
    known: Mapping[int, Found],
    version: str,
) -> ByText:
    """Build an annotator that looks texts up by hash in ``known``; other texts get no spans."""
    empty = no_spans(layers)

    def find(text: str) -> Found:
        return known.get(text_id(text), empty)

    return ByText(name, layers, find, version, whole_texts=True)


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MaskwiseError("there is no such annotation file", got=file)
    return path


# Users' functions
# -------------------------------------------------------------------------------------------


class Function:
    """An annotator that calls a user's function.

    Args:
        place: "module:function"; the module may be in the current folder.
        kind: the kind of layer: "spans", "categorical" or "weight".
        labels: the allowed values: required for "categorical", optional for "spans".
        layer: the name of the layer; by default the name of the function.

    Raises:
        MaskwiseError: there is no such function, the kind is unknown, or labels are missing.
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
        known = kind in ("spans", "categorical", "weight")
        if not known or (kind == "categorical" and not labels):
            raise MaskwiseError(
                f"function {place}: unknown kind, or no labels",
                got=f"{kind}, labels {labels}",
                allowed="spans, categorical (with labels) or weight",
            )
        self._call, source = _load(place)
        self._place = place
        self._layer = Layer(kind, tuple(labels))
        self._name = layer or re.split("[:.]", place)[-1]
        self.layers = {self._name: self._layer}
        self.version = digest("function", place, kind, labels, self._name, source)

    def annotate(self, texts: list[str]) -> list[Found]:
        results = list(self._call(texts))
        if len(results) != len(texts):
            raise MaskwiseError(
                f"function {self._place} must return one list of spans per text",
                got=f"{len(results)} for {len(texts)} texts",
            )
        found = []
        for marked in results:
            spans_of_text = given_spans(marked, self._layer, name=f"function {self._place}")
            found.append({self._name: spans_of_text})
        return found


def spec_of(function: str) -> Call:
    """Return the call that builds an annotator from a user's function.

    Args:
        function: a string such as ``module:function`` or ``module:function(kind="weight")``.
    """
    place, bracket, rest = function.partition("(")
    settings = parse_call(f"function{bracket}{rest}")
    return Call("function", (place.strip(), *settings.args), settings.kwargs)


def _load(place: str) -> tuple[Finder, str]:
    """Import a function; return the function and the source of its module, for the version."""
    module_name, _, name = place.partition(":")
    # ``python script.py`` puts the folder of the script on sys.path. The command ``maskwise`` does
    # not put the current folder on sys.path, so this function does.
    folder = str(Path.cwd())
    if "" not in sys.path and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
        member: object = module
        for part in name.split("."):
            member = getattr(member, part)
        source = inspect.getsource(module)
        if not callable(member):
            raise TypeError(f"{name} is not a function")
    # Importing a user's module may raise anything.
    except (Exception, SystemExit) as error:
        raise MaskwiseError(
            f"cannot load the function {place}",
            got=f"{type(error).__name__}: {first_line(error)}",
            allowed="module:function",
        ) from error
    return member, source


# Spans marked in a text
# -------------------------------------------------------------------------------------------


_MARKED = re.compile(r"\[\[(.+?)(?:\|(\d+(?:\.\d+)?))?\]\]", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]|$)", re.DOTALL)


class Span(NamedTuple):
    """Characters ``start`` to ``stop`` (exclusive) of a text, with a weight."""

    start: int
    stop: int
    weight: float = 1.0


def read_marks(text: str) -> tuple[str, list[Span]]:
    """Remove the ``[[…]]`` marks from a text; return the plain text and the marked spans.

    >>> read_marks("born in [[Warsaw]]")
    ('born in Warsaw', [Span(start=8, stop=14, weight=1.0)])
    """
    spans = []
    plain = ""
    end = 0
    for mark in _MARKED.finditer(text):
        content, weight = mark.groups(default="1")
        plain += text[end : mark.start()]
        start = len(plain)
        plain += content
        spans.append(Span(start, len(plain), float(weight)))
        end = mark.end()
    return plain + text[end:], spans


def sentence_spans(text: str) -> list[Span]:
    """Find sentences by a rough rule: a sentence ends at final punctuation."""
    return [Span(*match.span()) for match in _SENTENCE.finditer(text)]


# The table of annotators; add a new annotator here
# -------------------------------------------------------------------------------------------


def learned(folder: str = "", *, layer: str = "learned", spans: int = 5) -> Annotator:
    """Annotate with a learned policy; see ``maskwise.learning.annotator.Learned``."""
    module = importlib.import_module("maskwise.learning.annotator")
    made: Annotator = module.Learned(folder, layer=layer, spans=spans)
    return made


ANNOTATORS: dict[str, Callable[..., Annotator]] = {
    "words": words,
    "sentences": sentences,
    "prompt": prompt,
    "pos": pos,
    "salient": salient,
    "phrases": Phrases,
    "frequency": Frequency,
    "informativeness": Informativeness,
    "difference": Difference,
    "learned": learned,
    "gold": gold,
    "spans": spans,
    "stored": Store,
    **WORLDS,
}


def annotator(spec: str | Call, *, functions: bool = False) -> Annotator:
    """Build an annotator from a string such as ``pos(model="en_core_web_sm")``.

    >>> spans = annotator("words").annotate(["Owls fly."])[0]["words"]
    >>> spans.start.tolist(), spans.end.tolist()
    ([0, 5, 8], [4, 8, 9])

    Args:
        spec: a name from `ANNOTATORS`, with arguments.
        functions: whether to also allow ``function("module:name")``, which runs the user's code.

    Raises:
        MaskwiseError: the name is unknown, or the annotator has no such argument.
    """
    table = dict(ANNOTATORS)
    if functions:
        table["function"] = Function
    built: Annotator = build("annotator", spec, table)
    return built


def check_names(annotators: Sequence[Annotator]) -> None:
    """Raise a `MaskwiseError` if two annotators make the same layer."""
    owner: dict[str, str] = {}
    for each in annotators:
        for name in each.layers:
            if name in owner:
                raise MaskwiseError(
                    f"two annotators make the layer {name!r}",
                    got=f"{owner[name]} and {each.name}",
                    do="keep one of them",
                )
            owner[name] = each.name
