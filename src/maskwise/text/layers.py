"""Annotation layers: labelled or weighted spans of a text, and their alignment with tokens.

A layer holds one kind of annotation (parts of speech, names, phrases, weights) as spans of the
*characters* of a text. An annotator finds these spans without a tokenizer, once for each corpus.
The spans are stored under the hash of the text and the annotator's ``version``, which is a hash of
everything else that the spans depend on. Worker processes build an annotator from a string such as
``pos(model="en_core_web_sm")``, so annotators are never pickled. An annotator that must read the
whole corpus first (phrases, frequency, …) is `Fitted`.

`align` maps spans to the tokens of any tokenizer, by the tokens' character offsets:

- A **span** covers a token if the span covers the token's first visible character. A lone space or
  "▁" counts as part of the next word. Other white space belongs to the span around it, so that no
  span has gaps.
- A **tag** or **weight** applies to a whole word (words.py). All tokens of a word get the value at
  the word's first visible character, even if the annotator split the word ("gim|me"). Therefore, a
  word has the same tag with every tokenizer.

A span that begins inside a token does not include this token, and a span that ends inside a token
includes it. In spans of characters, code 0 is no label and code i + 1 is label i. In the aligned
layers, which have one value per token, −1 is no label and i is label i. Their types are:

- ``spans``: int32, the number of the span in its document. If spans have labels, a second layer,
  NAME_label, holds them as int16.
- ``categorical``: int16, the index of the label in ``Layer.labels``.
- ``weight``: float32, 0 if missing.

If a document is cut into rows inside a span, each part of the span becomes a span. Masking only one
part does not reveal the other part, because the model sees the parts in different rows.

Cost of `align`: one binary search for each token and layer, 0.1 µs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.masking.line import Columns
from maskwise.masking.segments import Array, changes, owners, rank_within
from maskwise.text.words import Flags, Ints, Ints32, Placed

Kind = Literal["categorical", "spans", "weight"]


@dataclass(frozen=True)
class Layer:
    """The kind of an annotation layer, and its labels.

    - ``categorical``: each word has one of ``labels``, such as a part of speech, as an int16 code.
    - ``spans``: stretches of text that belong together, such as names. Each span has an int16 code
      if the layer has ``labels``, and no value otherwise.
    - ``weight``: each word or span has a float32, such as a masking weight.

    Code 0 means "none", and code i + 1 means ``labels[i]``.
    """

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def dtype(self) -> type[np.generic] | None:
        """The numpy type of the values; None for a layer without values."""
        if self.kind == "weight":
            return np.float32
        if self.kind == "categorical" or self.labels:
            return np.int16
        return None


class CharSpans(NamedTuple):
    """S spans of the characters of one text: sorted, without overlaps, none empty.

    Attributes:
        start, end: (S,) where each span begins and ends, in characters; the end is exclusive.
        value: (S,) int16 codes or float32 weights; None if the layer has no values.
    """

    start: Ints32
    end: Ints32
    value: Array | None = None

    @classmethod
    def of(cls, spans: Iterable[Sequence[object]], layer: Layer) -> CharSpans:
        """Build and sort spans from tuples (start, end) or (start, end, value)."""
        found = sorted(spans, key=itemgetter(0))
        start = np.array(list(map(itemgetter(0), found)), dtype=np.int32)
        end = np.array(list(map(itemgetter(1), found)), dtype=np.int32)
        value = None
        if layer.dtype is not None:
            value = np.array(list(map(itemgetter(2), found)), dtype=layer.dtype)
        return cls(start, end, value)


Found: TypeAlias = dict[str, CharSpans]
"""The spans of one text, keyed by layer name."""
Layers: TypeAlias = Mapping[str, Layer]
"""Layers, keyed by name."""


@runtime_checkable
class Layered(Protocol):
    """An annotator, or a store of its output."""

    @property
    def layers(self) -> Layers:
        """The layers, keyed by the names that policies use: "pos", "salient", "phrase", …."""
        ...

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of each text, keyed by layer. No text, however odd, may raise an error.

        Long texts are passed in parts, except to a class with ``whole_texts = True``.
        """
        ...


class Annotator(Layered, Protocol):
    """An annotator, which makes the layers of a text from that text alone."""

    @property
    def name(self) -> str:
        """The annotator's name in the registry, such as "pos"."""
        ...

    @property
    def version(self) -> str:
        """A hash (`digest`) of all that the spans depend on, except the texts: settings, rules,
        model weights, vocabulary.
        """
        ...


@runtime_checkable
class Fitted(Annotator, Protocol):
    """An annotator that must read the whole corpus before it can annotate, for example to count.

    If there is nothing to find in a corpus, `fit` may raise an error, which ends the run. Instead,
    the fitted annotator may have an attribute ``notice``, a line for the user, and return empty
    layers.
    """

    @property
    def fitted(self) -> bool:
        """Whether the annotator was built from a folder that `fit` saved.

        If not, ``version`` is a hash of only the settings, and `annotate` is never called.
        """
        ...

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read all texts once, in bounded memory, and save what was learned in an empty folder.

        Returns:
            The spec of the fitted annotator that reads the folder, such as
            ``phrases(vocabulary="/out/fitted/phrases")``. The fitted annotator's ``version`` is a
            hash of the *contents* of the folder and not of its path.
        """
        ...


def digest(*parts: object) -> str:
    """Return a hash of 16 hex digits over the parts: bytes, file contents (`Path`) or strings."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        elif isinstance(part, bytes):
            content = part
        else:
            content = str(part).encode("utf-8", "surrogatepass")
        # Lengths are hashed too: ("ab", "c") and ("a", "bc") must have different hashes.
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def check_spans(spans: CharSpans, layer: Layer, size: int, *, name: str = "layer") -> None:
    """Raise an error if the spans do not fit the layer or a text of ``size`` characters.

    Raises:
        MaskwiseError: spans are out of order, overlapping, empty or outside the text; the number or
            type of the values is wrong; or a code has no label.
    """
    start, end, value = spans
    fits = len(start) == len(end) and (start < end).all()
    # Spans must be sorted and apart: each begins at or after the end of the previous span.
    fits = fits and (start[1:] >= end[:-1]).all()
    if not fits or start.min(initial=0) < 0 or end.max(initial=0) > size:
        raise MaskwiseError(
            f"{name}: spans must be sorted, not overlap and lie in the text of {size} characters",
        )
    if value is None or layer.dtype is None:
        valid = value is layer.dtype
    elif value.dtype != layer.dtype or len(value) != len(start):
        valid = False
    else:
        valid = bool(np.isfinite(value).all())
    if not valid:
        raise MaskwiseError(
            f"{name}: the values of the spans do not fit a {layer.kind} layer",
            got=value,
            allowed="one finite float32 weight or int16 code per span; no values without labels",
        )
    if layer.kind == "weight" or value is None or not len(value):
        return
    low = int(value.min())
    high = int(value.max())
    most = len(layer.labels)
    if low < 0 or high > most:
        raise MaskwiseError(
            f"{name}: a code has no label",
            got=f"{low}…{high}",
            allowed=f"0…{most}",
        )


def spans_found(maker: Layered, texts: Sequence[str]) -> list[Found]:
    """Return what an annotator finds in texts, if it is spans of each text in all its layers.

    Raises:
        PlugInError: it is something else.
        MaskwiseError: see ``check_spans``.
    """
    own = getattr(maker, "name", type(maker).__name__)
    who = f"annotator {own}"
    found: object = maker.annotate([*texts])
    count = len(texts)
    if not isinstance(found, Iterable) or isinstance(found, Mapping | str):
        raise PlugInError(
            f"{who} must return a list with the spans of every text", got=type(found).__name__
        )
    of_texts = list(found)
    if len(of_texts) != count:
        raise PlugInError(
            f"{who} must return the spans of every text",
            got=f"{len(of_texts)} results for {count} texts",
        )
    names = set(maker.layers)
    for text, layers in zip(texts, of_texts):
        if not isinstance(layers, Mapping) or not names <= set(layers):
            returned = sorted(layers) if isinstance(layers, Mapping) else type(layers).__name__
            raise PlugInError(
                f"{who} must return all its layers of every text",
                got=returned,
                allowed=f"a dict with the keys {', '.join(sorted(names))}",
            )
        for name, layer in maker.layers.items():
            _require_spans(f"{who}: {name}", layers[name])
            where = f"{own}: {name} of {text[:40]!r}…"
            check_spans(layers[name], layer, len(text), name=where)
    return of_texts


def _require_spans(what: str, spans: object) -> None:
    """Raise a `PlugInError` unless these are arrays of spans."""
    if not isinstance(spans, CharSpans):
        raise PlugInError(
            f"{what} must be CharSpans",
            got=repr(spans),
            do="make them with CharSpans.of(places, layer)",
        )
    for side in ("start", "end"):
        places = getattr(spans, side)
        if not isinstance(places, np.ndarray) or places.dtype.kind not in "iu" or places.ndim != 1:
            kind = getattr(places, "dtype", "no type")
            raise PlugInError(
                f"{what}: {side} must be an array of whole numbers",
                got=f"{type(places).__name__} of {kind}",
                do="make spans with CharSpans.of(places, layer)",
            )
    if spans.value is not None and not isinstance(spans.value, np.ndarray):
        raise PlugInError(f"{what}: value must be an array", got=type(spans.value).__name__)


def given_spans(
    spans: Iterable[Sequence[object]], layer: Layer, *, name: str = "given spans"
) -> CharSpans:
    """Check spans from a file or from a user's function, and replace labels with codes.

    Args:
        spans: (start, end) or (start, end, value) in characters, in any order. Spans have values
            only if the layer has labels or weights.
        layer: the layer that the spans belong to.
        name: where the spans come from, for error messages.

    Raises:
        MaskwiseError: a span is malformed, or a label is unknown.
    """
    # Code 0 means that a span has no label.
    codes: dict[object, int] = {None: 0}
    codes |= {label: code for code, label in enumerate(layer.labels, 1)}
    size = 3
    form = "(start, end, value) in characters"
    if layer.dtype is None:
        size = 2
        form = "(start, end) in characters"
    rows = []
    for span in spans:
        fits = isinstance(span, list | tuple) and len(span) == size
        if not fits or not all(map(_is_offset, span[:2])):
            raise MaskwiseError(f"{name}: a malformed span", got=repr(span), allowed=form)
        start, end, *value = span
        if layer.labels:
            # The type is checked first, because a list cannot be looked up in a dict.
            if not isinstance(value[0], str | None) or value[0] not in codes:
                raise MaskwiseError(
                    f"{name}: an unknown label",
                    got=value[0],
                    allowed=", ".join(layer.labels),
                )
            value = [codes[value[0]]]
        rows.append((start, end, *value))
    return CharSpans.of(rows, layer)


def _is_offset(at: object) -> bool:
    # A bool is an integer, too, and larger numbers do not fit in int32.
    return isinstance(at, Integral) and not isinstance(at, bool) and abs(int(at)) < 2**31


def no_spans(layers: Layers) -> Found:
    """Return empty layers, for a text in which nothing was found."""
    return {name: CharSpans.of([], layer) for name, layer in layers.items()}


LABEL = "_label"
"""Suffix of the token layer that holds the labels of spans."""


def token_layers(layers: Layers) -> tuple[str, ...]:
    """Return the names of the token layers: spans with labels have two, NAME and NAME_label."""
    names = []
    for name, layer in layers.items():
        names.append(name)
        if layer.kind == "spans" and layer.labels:
            names.append(name + LABEL)
    return tuple(names)


def align(
    found: Sequence[Mapping[str, CharSpans]],
    layers: Layers,
    placed: Placed,
    word_ids: Ints32,
) -> Columns:
    """Map the spans of N texts to token layers over the T tokens of these texts.

    Args:
        found: the spans of each text, keyed by layer, as `Layered.annotate` returns them.
        layers: the layers, keyed by name.
        placed: the positions of the tokens in the texts, from `place_tokens`.
        word_ids: (T,) the word number of each token, from `number_words`.

    Returns:
        Arrays (T,) keyed by the names that `token_layers` returns.
    """
    # All tokens of a word get the tag of the word's first token.
    opens = changes(word_ids, owners(placed.lengths)) | (word_ids < 0)
    first_of_word = np.maximum.accumulate(np.where(opens, np.arange(len(word_ids)), 0))
    result = {}
    for name, layer in layers.items():
        parts = [spans[name] for spans in found]
        start, end, values = joined_spans(parts, placed.base)
        if layer.kind == "spans":
            place = placed.first
            eligible = place >= 0
        else:
            place = placed.first[first_of_word]
            eligible = word_ids >= 0
        # Spans are sorted, so only the last one that begins before a token can cover it.
        span = start.searchsorted(place, side="right") - 1
        covered = eligible & (span >= 0)
        covered[covered] = place[covered] < end[span[covered]]
        span = span[covered]
        label_layer = name
        if layer.kind == "spans":
            counts = np.array([len(part.start) for part in parts])
            number = rank_within(counts).astype(np.int32)
            result[name] = _scattered(number[span], covered, missing=-1)
            label_layer = name + LABEL
        if values is None:
            continue
        values = values[span]
        if layer.kind == "weight":
            result[name] = _scattered(values, covered, missing=0)
        else:
            # In token layers, code 0, "none", becomes −1.
            result[label_layer] = _scattered(values - 1, covered, missing=-1)
    return result


class Together:
    """Several annotators, or stores of their output, as one."""

    find = staticmethod(spans_found)

    def __init__(self, makers: Sequence[Layered]):
        self.makers = makers

    @property
    def layers(self) -> Layers:
        """The layers of all annotators, keyed by name."""
        return {name: layer for maker in self.makers for name, layer in maker.layers.items()}

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of each text, keyed by layer.

        Raises:
            MaskwiseError: see ``spans_found``.
        """
        found: list[Found] = [{} for _ in texts]
        for maker in self.makers:
            for all_layers, own in zip(found, self.find(maker, texts), strict=True):
                all_layers |= {name: own[name] for name in maker.layers}
        return found


def _scattered(values: Array, covered: Flags, *, missing: int) -> Array:
    """Return an array (T,) with the values at the covered tokens and ``missing`` elsewhere."""
    full = np.full(len(covered), missing, dtype=values.dtype)
    full[covered] = values
    return full


def joined_spans(parts: Sequence[CharSpans], base: Ints) -> tuple[Ints, Ints, Array | None]:
    """Concatenate the starts, ends and values of the spans of N texts.

    ``base`` (N,) is added to the starts and ends.
    """
    starts, ends, values = zip(*parts)
    shift = base.repeat(list(map(len, starts)))
    start = np.concatenate(starts) + shift
    end = np.concatenate(ends) + shift
    # In a layer, either all spans have values or none do.
    value = None
    if values[0] is not None:
        value = np.concatenate(values)
    return start, end, value
