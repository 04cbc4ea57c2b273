"""Layers: annotations as spans of the characters of a text, and their alignment with tokens.

Annotations (parts of speech, names, phrases, informativeness) are layers over *characters*. An
annotator maps texts to spans once for each corpus, without a tokenizer. Its output is stored under
the hash of the text and the annotator's ``version``, which covers everything that the output
depends on. Workers rebuild an annotator from a string such as ``pos(model="en_core_web_sm")``, so
the annotator is never pickled. An annotator that must read the whole corpus first (phrases,
frequency, …) is `Fitted`.

`align` maps spans to tokens with the tokenizer's offsets, without tokenising the text again, so the
tags are the same with every tokenizer. The rules for the tokens of a text:

- a **span** gets the tokens whose first visible character it covers (a lone space or "▁" belongs to
  the word right after it, other white space to the span that covers it, so no span has gaps);
- a **tag** or **weight** belongs to words: all tokens of a word (words.py) get the tag or weight
  that covers the word's first visible character, even if the annotator split the word ("gim|me").

A span that begins inside a token therefore loses that token, but a span that ends inside a token
keeps it. In layers over tokens, −1 stands for no label, so the stored code of a label is one more
than its number over tokens. The types of layers over tokens:

- ``spans``: int32, the number of the span in its document; labels, if there are any, are in a
  second layer NAME_label, int16, like tags;
- ``categorical``: int16, the index of the label in ``Layer.labels``;
- ``weight``: float32, 0 if missing.

A piece that ends inside a span cuts the span in two. Masking only one half reveals nothing, because
the other half is in a different piece, which the model does not see.

Cost of `align`: one binary search for each token and layer, 0.1 µs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.segments import Array, changes, owners, rank_within
from maskwise.text.words import Flags, Ints, Ints32, Placed, number_words, place_tokens

Kind = Literal["categorical", "spans", "weight"]


@dataclass(frozen=True)
class Layer:
    """The kind of a layer and its labels.

    - ``categorical``: one of ``labels`` per word, such as a part of speech. Values are int16 codes.
    - ``spans``: stretches of text that belong together, such as names; each span has a code if the
      layer has ``labels``, otherwise no value.
    - ``weight``: a float32 per word or span.

    In every layer, code 0 means "none" and code i + 1 means ``labels[i]``.
    """

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def dtype(self) -> type[np.generic] | None:
        """The type of the values; None for a layer without values."""
        if self.kind == "weight":
            return np.float32
        if self.kind == "categorical" or self.labels:
            return np.int16
        return None


class CharSpans(NamedTuple):
    """S spans over the characters of one text: sorted, not overlapping, none empty.

    Attributes:
        start, end: (S,) the characters where each span begins and ends; the end is exclusive.
        value: (S,) int16 codes or float32 weights; None if the layer has no values.
    """

    start: Ints32
    end: Ints32
    value: Array | None = None

    @classmethod
    def of(cls, spans: Iterable[Sequence[object]], layer: Layer) -> CharSpans:
        """Sort spans that are given as (start, end) or (start, end, value)."""
        found = sorted(spans, key=itemgetter(0))
        start = np.array(list(map(itemgetter(0), found)), dtype=np.int32)
        end = np.array(list(map(itemgetter(1), found)), dtype=np.int32)
        value = None
        if layer.dtype is not None:
            value = np.array(list(map(itemgetter(2), found)), dtype=layer.dtype)
        return cls(start, end, value)


Found: TypeAlias = dict[str, CharSpans]
"""A text's spans in each layer, keyed by the layer's name."""
Layers: TypeAlias = Mapping[str, Layer]
"""Layers, keyed by name."""
Columns: TypeAlias = dict[str, Array]
"""The values of T tokens in each column, (T,), keyed by the column's name."""


class Layered(Protocol):
    """An annotator, or a store of its output."""

    @property
    def layers(self) -> Layers:
        """The layers, keyed by the names that policies use: "pos", "salient", "phrase", …."""
        ...

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return each text's spans, keyed by layer. Empty texts and noise must not raise an error.

        Long texts are passed in parts, except to a class with ``whole_texts = True``.
        """
        ...


class Annotator(Layered, Protocol):
    """Makes layers for texts. Its output for a text depends on that text alone."""

    @property
    def name(self) -> str:
        """The annotator's name in the registry, such as "pos"."""
        ...

    @property
    def version(self) -> str:
        """A hash (`digest`) of all inputs but the texts: settings, rules, weights, vocabulary."""
        ...


@runtime_checkable
class Fitted(Annotator, Protocol):
    """An annotator that counts over the whole corpus before it can annotate.

    If the annotator finds nothing in the corpus, it may set ``notice``, a line for the user, and
    return empty layers, or `fit` may raise an error, which ends the run.
    """

    @property
    def fitted(self) -> bool:
        """Whether the annotator was built from a saved fit.

        If not, its ``version`` covers only its settings, and `annotate` is never called.
        """
        ...

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read all texts once, in bounded memory, and save the fit into the empty ``folder``.

        Returns:
            The spec of the fitted annotator that reads the folder, such as
            ``phrases(vocabulary="/out/fitted/phrases")``. The fitted annotator's ``version`` is a
            hash of the *contents* of the folder, not of its path.
        """
        ...


def digest(*parts: object) -> str:
    """Hash parts to 16 hex digits: bytes, the contents of files, and other objects as strings."""
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
    """Refuse spans that do not fit a text of ``size`` characters.

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
            f"{name}: a {layer.kind} layer needs a finite value of its type for each span",
            got=value,
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


def given_spans(
    spans: Iterable[Sequence[object]], layer: Layer, *, name: str = "given spans"
) -> CharSpans:
    """Check spans from a file or a user's function, and replace labels with their codes.

    Args:
        spans: (start, end) or (start, end, value) in characters, in any order. Spans have values
            only if the layer has labels or weights.
        layer: the layer that the spans belong to.
        name: the origin of the spans, for error messages.

    Raises:
        MaskwiseError: a span has a different form, or a label is unknown.
    """
    # Code 0 stands for no label.
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
        # isinstance would accept a bool, and larger numbers do not fit in int32.
        if not fits or not all(type(at) is int and abs(at) < 2**31 for at in span[:2]):
            raise MaskwiseError(f"{name}: a malformed span", got=repr(span), allowed=form)
        start, end, *value = span
        if layer.labels:
            # A list is not hashable and could not be looked up.
            if not isinstance(value[0], str | None) or value[0] not in codes:
                raise MaskwiseError(
                    f"{name}: an unknown label",
                    got=value[0],
                    allowed=", ".join(layer.labels),
                )
            value = [codes[value[0]]]
        rows.append((start, end, *value))
    return CharSpans.of(rows, layer)


def no_spans(layers: Layers) -> Found:
    """Return the layers of a text in which nothing was found."""
    return {name: CharSpans.of([], layer) for name, layer in layers.items()}


LABEL = "_label"
"""The suffix that names the second layer, which holds the labels of spans."""


def token_layers(layers: Layers) -> tuple[str, ...]:
    """Return the names of the layers over tokens."""
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
    """Map the spans of N texts to layers over their T tokens.

    Args:
        found: each text's spans, keyed by layer, as `Layered.annotate` returns them.
        layers: the layers, keyed by name.
        placed: the result of `place_tokens`.
        word_ids: (T,) the result of `number_words`.

    Returns:
        Name → (T,) values, for each name that `token_layers` returns.
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
            # In layers over tokens, code 0, "none", becomes −1.
            result[label_layer] = _scattered(values - 1, covered, missing=-1)
    return result


def annotated(
    makers: Iterable[Layered],
    texts: list[str],
    offsets: Ints,
    lengths: Ints,
    *,
    special: Flags,
) -> Columns:
    """Return "word_ids" and the annotators' layers, (T,) each, for the T tokens of N texts.

    Args:
        makers: the annotators.
        offsets, lengths, special: as for `place_tokens`.
    """
    placed = place_tokens(texts, offsets, lengths, special=special)
    words = number_words(placed)
    columns: Columns = {"word_ids": words}
    for maker in makers:
        columns |= align(maker.annotate(texts), maker.layers, placed, words)
    return columns


def _scattered(values: Array, covered: Flags, *, missing: int) -> Array:
    """(T,) the values at the covered tokens, and ``missing`` elsewhere."""
    full = np.full(len(covered), missing, dtype=values.dtype)
    full[covered] = values
    return full


def joined_spans(parts: Sequence[CharSpans], base: Ints) -> tuple[Ints, Ints, Array | None]:
    """Concatenate the starts, ends and values of N texts' spans, shifted by ``base`` (N,)."""
    starts, ends, values = zip(*parts)
    shift = base.repeat(list(map(len, starts)))
    start = np.concatenate(starts) + shift
    end = np.concatenate(ends) + shift
    # In a layer, either all spans have values or none do.
    value = None
    if values[0] is not None:
        value = np.concatenate(values)
    return start, end, value
