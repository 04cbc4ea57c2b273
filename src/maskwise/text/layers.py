"""Layers: what is known about a text, as spans of its characters, and how they are laid over
tokens.

Everything that is known about a text (parts of speech, names, phrases, how informative a word is)
comes as layers over its *characters*, made by an annotator: texts in, spans of characters out, and
a version that names all it depends on. An annotator never sees a tokenizer, is run once for each
corpus, and its output is stored under the hash of the text and its ``version``. Workers rebuild an
annotator from a plain string such as ``pos(model="en_core_web_sm")``: nothing is pickled. Some
annotators need to see the whole corpus first (phrases, frequency, …): they are `Fitted`.

`align` turns spans into layers over tokens, by the offsets that the tokenizer gave and never by
tokenising the text again, so that every tokenizer gets the same tags. The rule for each token of a
text:

- a **span** holds the tokens whose first visible character it covers (a lone blank or "▁" goes with
  the word right behind it, other white space with the span that covers it, so that no span has a
  hole);
- a **tag** or **weight** belongs to words: a word (words.py) has the one that covers its first
  visible character, and all its tokens carry it, also where the annotator saw two words in it
  ("gim|me").

So a span that begins inside a token loses that token, and a span that ends inside a token keeps it.
Layers over tokens are negative where there is nothing; therefore the stored code of a label is one
more than its number over tokens.

- ``spans``: int32, the number of the span in its document; its label, where there are labels, in a
  second layer NAME_label, int16, as tags;
- ``categorical``: int16, the place of the label in ``Layer.labels``;
- ``weight``: float32, 0 where there is nothing.

A piece that ends inside a span cuts the span in two. That gives nothing away: each half stands in a
piece of its own, and none sees the other.

Cost of `align`: one binary search for each token and layer, 0.1 µs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.segments import changes, rank_within
from maskwise.text.words import Placed

if TYPE_CHECKING:
    from maskwise.keys import Array

Kind = Literal["categorical", "spans", "weight"]


@dataclass(frozen=True)
class Layer:
    """What a layer says.

    - ``categorical``: one of ``labels`` per word, as a part of speech. Values are int16 codes.
    - ``spans``: pieces of text that belong together, as a name; with ``labels`` each has a code,
      else no value.
    - ``weight``: a float32 per word or span.

    Code 0 is "none" everywhere; code i + 1 is ``labels[i]``.
    """

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def dtype(self) -> type[np.generic] | None:
        """The type of the values; None for a layer that has none."""
        if self.kind == "weight":
            return np.float32
        return np.int16 if self.kind == "categorical" or self.labels else None


class CharSpans(NamedTuple):
    """S spans over one text: sorted, without overlap, none empty; by characters of the original
    text.
    """

    start: NDArray[np.int32]  # (S,)
    end: NDArray[np.int32]  # (S,), exclusive
    value: Array | None = None  # (S,) int16 codes or float32; None where the layer has no values

    @classmethod
    def of(cls, spans: Iterable[Sequence[Any]], layer: Layer) -> CharSpans:
        """From (start, end) or (start, end, value) in any order; a value is a label's code or a
        weight.
        """
        found = sorted(spans, key=lambda span: span[0])
        start = np.array([span[0] for span in found], dtype=np.int32)
        end = np.array([span[1] for span in found], dtype=np.int32)
        if layer.dtype is None:
            return cls(start, end)
        return cls(start, end, np.array([span[2] for span in found], dtype=layer.dtype))


class Annotator(Protocol):
    """Makes one or more layers. Its output for a text depends on that text alone, never on its
    neighbours.
    """

    @property
    def name(self) -> str:
        """Under which it stands in the table, such as "pos"."""
        ...

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name → layer, under the names that policies read: "pos", "salient", "phrase", "sentence",
        …
        """
        ...

    @property
    def version(self) -> str:
        """Hash (`digest`) of everything that its output depends on: settings, rules, weights,
        vocabulary.
        """
        ...

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its spans by layer. An empty text, and one that is all noise, is no error.

        A long text comes in parts, unless the class says ``whole_texts = True``: it looks texts up.
        """
        ...


@runtime_checkable
class Fitted(Annotator, Protocol):
    """An annotator that counts over the whole corpus before it can annotate.

    If the corpus has nothing for it, it may say so in a line under ``notice`` (None: nothing to
    say), and give empty layers; or refuse in `fit`, which ends the run.
    """

    @property
    def fitted(self) -> bool:
        """Whether it has what it needs, as it was built from what a fit had saved. If not, its
        ``version`` covers its settings, and `annotate` is not to be called."""
        ...

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read all texts once (in bounded memory), save what was learnt into the empty ``folder``.

        Returns:
            The string of the annotator that reads the folder, as
            ``phrases(vocabulary="/out/fitted/phrases")``. That one is fitted, and its ``version``
            is the hash of the *contents* of the folder, not its path.
        """
        ...


def digest(*parts: object) -> str:
    """16 hex digits over the parts: bytes as they are, paths by their content, else by ``str``."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        else:
            content = (
                part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            )
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def check_spans(spans: CharSpans, layer: Layer, size: int, *, name: str = "layer") -> None:
    """Refuse what cannot be laid on a text of ``size`` characters.

    Raises:
        MaskwiseError: spans out of order, overlapping, empty or outside the text; values of another
            number or type than the layer has, or codes without a label.
    """
    start, end, value = spans
    ordered = (start < end).all() and (start[1:] >= end[:-1]).all()
    if len(start) != len(end) or (
        len(start) and not (ordered and start[0] >= 0 and end[-1] <= size)
    ):
        raise MaskwiseError(
            f"{name}: spans must be sorted, not overlap and lie in the text of {size} characters"
        )
    if (value is None) != (layer.dtype is None) or (value is not None and len(value) != len(start)):
        raise MaskwiseError(
            f"{name}: a {layer.kind} layer needs one value per span", got=f"{len(start)} spans"
        )
    if value is not None and (
        value.dtype != layer.dtype or (layer.kind == "weight" and not np.isfinite(value).all())
    ):
        raise MaskwiseError(
            f"{name}: values must be finite and {np.dtype(layer.dtype)}", got=value.dtype
        )
    if value is not None and layer.kind != "weight" and len(value):
        low, high = int(value.min()), int(value.max())
        if low < 0 or high > len(layer.labels):
            raise MaskwiseError(
                f"{name}: a code without a label",
                got=f"{low}…{high}",
                allowed=f"0…{len(layer.labels)}",
            )


LABEL = "_label"
"""Behind the name of a layer of spans: the layer of their labels."""


class Layered(Protocol):
    """Whatever knows layers of texts: an annotator, or a store of what one has made."""

    @property
    def layers(self) -> Mapping[str, Layer]: ...

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]: ...


def token_layers(layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The names of the layers over tokens that ``layers`` give."""
    return tuple(
        part
        for name, layer in layers.items()
        for part in ((name, name + LABEL) if layer.kind == "spans" and layer.labels else (name,))
    )


def align(
    found: Sequence[Mapping[str, CharSpans]],
    layers: Mapping[str, Layer],
    placed: Placed,
    word_ids: NDArray[np.int32],
) -> dict[str, Array]:
    """Spans of N texts → layers over their T tokens.

    Args:
        found: for each text its spans by layer, as `Layered.annotate` gives them.
        layers: what the layers are.
        placed, word_ids: (T,) of `place_tokens` and `number_words`.

    Returns:
        Name → (T,), for each of `token_layers`.
    """
    opens = _opens_word(word_ids, placed.lengths)
    return {
        part: values
        for name, layer in layers.items()
        for part, values in _lay(
            name, layer, [spans[name] for spans in found], placed, word_ids, opens
        ).items()
    }


def _lay(
    name: str,
    layer: Layer,
    texts: list[CharSpans],
    placed: Placed,
    word_ids: NDArray[np.int32],
    opens: NDArray[np.int64],
) -> dict[str, Array]:
    counts = np.fromiter((len(spans.start) for spans in texts), dtype=np.int64, count=len(texts))
    base = np.repeat(placed.base, counts)
    start, end = (_joined([spans[side] for spans in texts], np.int64) + base for side in (0, 1))
    if layer.kind == "spans":
        place, inside = placed.first, placed.first >= 0
    else:
        place, inside = placed.first[opens], word_ids >= 0
    at = np.searchsorted(start, place, side="right") - 1
    covered = inside & (at >= 0)
    covered[covered] = place[covered] < end[at[covered]]
    at = at[covered]
    laid: dict[str, Array] = {}
    if layer.kind == "spans":
        within = rank_within(counts)
        laid[name] = _scattered(within[at].astype(np.int32), covered, empty=-1)
    if layer.dtype is not None:
        values = _joined([spans.value for spans in texts], layer.dtype)[at]
        if layer.kind == "weight":
            laid[name] = _scattered(values, covered, empty=0)
        else:
            laid[name + LABEL * (layer.kind == "spans")] = _scattered(values - 1, covered, empty=-1)
    return laid


def _scattered(values: Array, covered: NDArray[np.bool_], *, empty: int) -> Array:
    """(T,) the values where tokens are covered, else ``empty``."""
    full = np.full(len(covered), empty, dtype=values.dtype)
    full[covered] = values
    return full


def _opens_word(word_ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) the first token of each token's word; of tokens in no word, themselves."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    fresh = changes(word_ids, text) | (word_ids < 0)
    return np.maximum.accumulate(np.where(fresh, np.arange(len(word_ids)), 0))


def _joined(parts: Sequence[Any], dtype: Any) -> Array:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype, copy=False)
