"""The table of annotators, and annotators without a model: words, sentences, prompts, spans from
files, users' functions.

An annotator finds spans in texts and returns them in named layers. A user's function maps a list of
texts to one list of spans per text. A span is (start, end) or (start, end, value). The start and
the end are character offsets, and the value is a label or a weight. Equal texts must get equal
spans. A function runs a user's code. Therefore functions can be named only with ``--function`` and
in Python, but not in recipes or with ``--with``.

To inspect a masking policy without an annotator, mark the spans in the text itself:
``born in [[Warsaw]] in [[1867|3]]`` marks two spans, the second with weight 3. Heavy libraries
(spaCy, torch) are imported when they are first used.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from maskwise.annotate.kept import Store
from maskwise.annotate.phrases import Phrases
from maskwise.annotate.tagger import pos, salient
from maskwise.annotate.word_weights import Difference, FrequencyWeights, Informativeness
from maskwise.base.errors import MaskwiseError, PlugInError, first_line, items_of
from maskwise.base.plugins import Table, code_of_module, is_foreign, require_call
from maskwise.base.specs import Call, build, find, parse_call
from maskwise.text.conll import POS, read_conllu
from maskwise.text.layers import (
    Annotator,
    CharSpans,
    Found,
    Kind,
    Layer,
    Layered,
    Layers,
    check_spans,
    digest,
    given_spans,
    no_spans,
)
from maskwise.text.source import (
    PLAIN,
    SOURCE,
    FieldNames,
    Shard,
    ending_of,
    inside,
    source_path,
)
from maskwise.text.words import VERSION, classify, text_id, words_in

SPANS = Layer("spans")
SpanFunction: TypeAlias = Callable[[list[str]], Iterable[Iterable[Sequence[object]]]]
"""A user's function, which maps texts to a list of spans for each text."""


@dataclass(eq=False)
class ByText:
    """An annotator that applies a function to each text.

    Args:
        name: the name of the annotator.
        layers: the layers, keyed by name.
        find: a function that maps a text to the spans of the text, keyed by layer.
        version: a hash of the rules and files that the spans depend on; see `Annotator`.
        whole_texts: whether ``find`` needs every text as a whole. If false, a long text is passed
            in parts.
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
    """Annotate words, which are runs of letters and digits, or single symbols."""

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
    """Annotate the prompt of a text: everything up to and including the string ``until``.

    With ``masking.keep: prompt`` in a recipe, prompts are never masked.

    Args:
        until: the string that ends a prompt. A text without this string has no prompt.
        last: whether the prompt ends with the last occurrence of ``until`` instead of the first.

    Raises:
        MaskwiseError: ``until`` is empty.
    """
    if not until:
        raise MaskwiseError(
            "prompt: `until` must not be empty",
            got=repr(until),
            do="give the string that ends a prompt, such as prompt(until='?')",
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
    """Annotate the texts of a CoNLL-U file (also ``.gz``) with the parts of speech in the file."""
    path = _existing(file)
    known = {text_id(document.text): document.layers for document in read_conllu(path)}
    return _known("gold", {"pos": POS}, lambda: known, digest("gold", 2, path))


def spans(
    file: str,
    *,
    field: str = "spans",
    text_field: str = "text",
    labels: tuple[str, ...] = (),
    layer: str = "spans",
) -> ByText:
    """Annotate the texts of a JSON lines or Parquet file with the spans that the file contains.

    Args:
        file: the file, or a bundled one such as ``bundled:world-0``. Each record has a text and a
            list of spans. A span is [start, end] or, with ``labels``, [start, end, label]. The
            start and the end are character offsets.
        field: the field or column of the spans, or a path into nested objects.
        text_field: the field, column or path of the text, such as "article.body".
        labels: the allowed labels. If empty, labels in the file are ignored.
        layer: the name of the layer.

    Raises:
        MaskwiseError: the file cannot be read or has no spans, or the spans of a record are not
            valid.
    """
    path = _existing(file)
    if ending_of(path) in (None, *PLAIN, *SOURCE):
        raise MaskwiseError(
            f"spans cannot be read from {path}",
            allowed="a JSON lines or Parquet file whose records have a text and a list of spans",
        )
    kind = Layer("spans", tuple(items_of("labels", labels, of="names", single=True)))
    fields = FieldNames(text_field, field)
    state = path.stat()
    _require_spans_in_file(path, fields, kind, state.st_size, state.st_mtime_ns)

    # A study makes an annotator many times, and reads its spans in few of them.
    @cache
    def known() -> Mapping[int, Found]:
        return {text: {layer: found} for text, found in _marked(path, fields, kind)}

    version = digest("spans", 2, path, field, text_field, labels, layer)
    return _known("spans", {layer: kind}, known, version)


@cache
def _require_spans_in_file(
    path: Path, fields: FieldNames, kind: Layer, size: int, changed: int
) -> None:
    """Raise a `MaskwiseError` if a file has no spans, or spans that are not valid.

    A file is read again if its size or modification time changes.
    """
    number = sum(1 for _ in _marked(path, fields, kind))
    if not number:
        raise MaskwiseError(
            f"no record of {path} has {fields.text!r} and {fields.id!r}",
            do="set field and text_field to the field names in the file",
        )


def _marked(path: Path, fields: FieldNames, kind: Layer) -> Iterator[tuple[int, CharSpans]]:
    """Yield the hash of each text of a file (`text_id`), and its spans."""
    shard = Shard.of_file(path, fields)
    for number, record in shard.records():
        # A line that cannot be read is reported by the reader of the corpus.
        if not isinstance(record, Mapping):
            continue
        text = inside(record, fields.text)
        marked = inside(record, fields.id)
        if not isinstance(text, str) or marked is None:
            continue
        try:
            if not isinstance(marked, list):
                raise MaskwiseError("the spans are not a list", got=marked, allowed="a list")
            if not kind.labels:
                # ``given_spans`` refuses a third value if the layer has no labels.
                for span in marked:
                    if isinstance(span, list) and len(span) == 3:
                        del span[2]
            found = given_spans(marked, kind)
            if kind.labels and not np.all(found.value):
                raise MaskwiseError("a span has no label", got=marked, allowed=kind.labels)
            check_spans(found, kind, len(text), name="given spans")
        except MaskwiseError as error:
            raise MaskwiseError(f"{shard.name_of(number)} of {path}: {error}") from None
        yield text_id(text), found


def _known(
    name: str,
    layers: Layers,
    known: Callable[[], Mapping[int, Found]],
    version: str,
) -> ByText:
    """Build an annotator from spans that are known beforehand. Other texts get no spans.

    Args:
        known: returns the spans of each text, keyed by the hash of the text (`text_id`).
    """
    empty = no_spans(layers)

    def find(text: str) -> Found:
        return known().get(text_id(text), empty)

    return ByText(name, layers, find, version, whole_texts=True)


def _existing(file: str) -> Path:
    path = source_path(file)
    if not path.is_file():
        raise MaskwiseError("there is no such annotation file", got=file)
    return path


# Users' functions
# -------------------------------------------------------------------------------------------


class Function:
    """An annotator that calls a user's function.

    Args:
        place: the function as "module:function". The module may be in the current folder.
        kind: the kind of the layer: "categorical" (words with labels), "spans" (stretches of text,
            which may have labels) or "weight" (words or spans with a number).
        labels: the allowed labels. They are required for "categorical" and optional for "spans".
        layer: the name of the layer. The default is the name of the function.

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
        names = tuple(items_of("labels", labels, of="names", single=True))
        known = kind in ("spans", "categorical", "weight")
        if not known or (kind == "categorical" and not names):
            raise MaskwiseError(
                f"function {place}: the kind is unknown, or a categorical layer has no labels",
                got=f"kind={kind}, labels={labels}",
                allowed="kind spans, categorical (with labels) or weight",
            )
        self._call, source = _load(place)
        self._place = place
        self._layer = Layer(kind, names)
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
    """Return the annotator call for a user's function, such as ``function("module:function")``.

    Args:
        function: a string such as ``module:function`` or ``module:function(kind="weight")``.
    """
    place, bracket, rest = function.partition("(")
    settings = parse_call(f"function{bracket}{rest}")
    return Call("function", (place.strip(), *settings.args), settings.kwargs)


def _load(place: str) -> tuple[SpanFunction, str]:
    """Import a function. Return the function and the source code of its module.

    The source code is part of the annotator's version. Files are therefore written again after the
    module is edited, and a module that was imported before that is loaded again.
    """
    module_name, _, name = place.partition(":")
    # For ``python script.py``, Python adds the folder of the script to sys.path. For the command
    # ``maskwise``, Python does not add the current folder, so this function adds it.
    folder = str(Path.cwd())
    if "" not in sys.path and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
        # It may have been edited after another call had imported it, as in a notebook.
        if code_of_module(module) != inspect.getsource(module):
            module = importlib.reload(module)
        member: object = module
        for part in name.split("."):
            member = getattr(member, part)
        source = code_of_module(module)
        if not callable(member):
            raise TypeError(f"{name} is not a function")
    # Importing a user's module may raise any exception.
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
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？]++[\"'”’)\]]*(?=\s|$)|[。！？]|$)", re.DOTALL)


class MarkedSpan(NamedTuple):
    """The characters from ``start`` up to, but not including, ``stop``, with a masking weight."""

    start: int
    stop: int
    weight: float = 1.0


def read_marks(text: str) -> tuple[str, list[MarkedSpan]]:
    """Remove the ``[[…]]`` marks from a text. Return the plain text and the marked spans.

    >>> read_marks("born in [[Warsaw]]")
    ('born in Warsaw', [MarkedSpan(start=8, stop=14, weight=1.0)])
    """
    spans = []
    plain = ""
    end = 0
    for mark in _MARKED.finditer(text):
        content, weight = mark.groups(default="1")
        plain += text[end : mark.start()]
        start = len(plain)
        plain += content
        spans.append(MarkedSpan(start, len(plain), float(weight)))
        end = mark.end()
    return plain + text[end:], spans


def sentence_spans(text: str) -> list[MarkedSpan]:
    """Find sentences by a rough rule: a sentence ends at a full stop, ``!``, ``?`` or ``…``."""
    return [MarkedSpan(*match.span()) for match in _SENTENCE.finditer(text)]


# The table of annotators; add a new annotator here
# -------------------------------------------------------------------------------------------


_BUILT_IN: dict[str, Callable[..., Annotator]] = {
    "words": words,
    "sentences": sentences,
    "prompt": prompt,
    "pos": pos,
    "salient": salient,
    "phrases": Phrases,
    "frequency": FrequencyWeights,
    "informativeness": Informativeness,
    "difference": Difference,
    "gold": gold,
    "spans": spans,
    "stored": Store,
}
ANNOTATORS = Table("annotator", "maskwise.annotators", _BUILT_IN)
"""The annotators by their names in recipes. ``maskwise.learning`` registers ``learned``."""


def register(name: str, factory: Callable[..., Annotator]) -> None:
    """Add an annotator in this process; a package that others install has an entry point instead.

    Args:
        name: the name of the annotator: letters, digits and hyphens.
        factory: a function that makes the annotator from the arguments of the name. Several
            processes can use it only if it is a function of a module that they can import.

    Raises:
        MaskwiseError: the name is taken, or is no name.
    """
    ANNOTATORS.register(name, factory)


def annotator(spec: str | Call, *, functions: bool = False) -> Annotator:
    """Build an annotator from a string such as ``pos(model="en_core_web_sm")``.

    >>> spans = annotator("words").annotate(["Owls fly."])[0]["words"]
    >>> spans.start.tolist(), spans.end.tolist()
    ([0, 5, 8], [4, 8, 9])

    Args:
        spec: a name from `ANNOTATORS`, with arguments.
        functions: whether ``function("module:name")`` is also allowed, which runs a user's code.

    Raises:
        MaskwiseError: the name is unknown, or the annotator has no such argument.
    """
    if functions and isinstance(spec, str):
        spec = parse_call(spec)
    if functions and isinstance(spec, Call) and spec.name == Function.name:
        return build("annotator", spec, {Function.name: Function})
    call, make = find("annotator", spec, ANNOTATORS)
    made = build("annotator", call, {call.name: make})
    # Functions of other packages often make an object of the class ``ByText``.
    if is_foreign(make):
        _require_annotator(made, call)
    return made


def _require_annotator(made: Annotator, call: Call) -> None:
    """Raise a `PlugInError` unless this is an annotator, so that no text is read in vain."""
    who = f"annotator {call.written or call}"
    missing = [
        name for name in ("name", "version", "layers", "annotate") if not hasattr(made, name)
    ]
    if missing:
        raise PlugInError(
            f"{who} is not an annotator",
            got=f"{type(made).__name__} without {', '.join(missing)}",
            allowed="an object with name, version, layers and annotate(texts), such as a ByText",
        )
    for name in ("name", "version"):
        value = getattr(made, name)
        if not isinstance(value, str) or not value:
            raise PlugInError(f"{who}: its {name} must be a text", got=repr(value))
    layers = made.layers
    if not isinstance(layers, Mapping) or not all(isinstance(x, Layer) for x in layers.values()):
        raise PlugInError(
            f"{who}: layers must be a dict",
            got=repr(layers),
            allowed="{name: Layer}, such as {'number': SPANS}",
        )
    require_call(f"{who}: annotate", made.annotate, "texts")


def annotators(specs: Iterable[str | Layered]) -> list[Layered]:
    """Build the annotators that are given by name; return others unchanged.

    Raises:
        MaskwiseError: a name is unknown, ``specs`` is no list, or two make the same layer.
    """
    given = items_of("layers", specs, of="annotators, such as ['salient']", single=True)
    found = [spec if isinstance(spec, Layered) else annotator(spec) for spec in given]
    check_layer_names(found)
    return found


def check_layer_names(annotators: Sequence[Layered]) -> None:
    """Raise a `MaskwiseError` if two annotators make the same layer."""
    owner: dict[str, str] = {}
    for each in annotators:
        own = getattr(each, "name", type(each).__name__)
        for name in each.layers:
            if name in owner:
                raise MaskwiseError(
                    f"two annotators make the layer {name!r}",
                    got=f"{owner[name]} and {own}",
                    do="keep one of them",
                )
            owner[name] = own
