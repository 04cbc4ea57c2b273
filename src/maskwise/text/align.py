"""From spans of characters to layers over tokens: by the offsets that the tokenizer gave, never by tokenising
the text again. Every tokenizer gets the same tags this way.

The rule, for each token of a text:

- a **span** holds the tokens whose first visible character it covers (a lone blank or "▁" goes with the word
  right behind it, other white space with the span that covers it, so that no span has a hole);
- a **tag** or **weight** belongs to words: a word (words.py) has the one that covers its first visible
  character, and all its tokens carry it, also where the annotator saw two words in it ("gim|me").

So a span that begins inside a token loses that token, and one that ends inside keeps it. Layers over tokens are
negative where there is nothing, as all layers of rows are; so the stored code of a label is one more than here.

- ``spans``: int32, the number of the span in its document; labels, where there are, in a second layer
  NAME_label, int16, as tags;
- ``categorical``: int16, the place of the label in ``Layer.labels``;
- ``weight``: float32, 0 where there is nothing.

A row that ends inside a span cuts it in two. That gives nothing away: each half stands in a row of its own,
and none sees the other.

Cost: one binary search per token and layer, 0.1 µs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskwise.text.layers import CharSpans, Layer
from maskwise.text.words import Placed

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
) -> dict[str, NDArray[Any]]:
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
    name: str, layer: Layer, texts: list[CharSpans], placed: Placed, word_ids: NDArray[np.int32],
    opens: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:  # fmt: skip
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
    laid: dict[str, NDArray[Any]] = {}
    if layer.kind == "spans":
        within = np.arange(len(start)) - np.repeat(np.cumsum(counts) - counts, counts)
        laid[name] = _scattered(within[at].astype(np.int32), covered, empty=-1)
    if layer.dtype is not None:
        values = _joined([spans.value for spans in texts], layer.dtype)[at]
        if layer.kind == "weight":
            laid[name] = _scattered(values, covered, empty=0)
        else:
            laid[name + LABEL * (layer.kind == "spans")] = _scattered(values - 1, covered, empty=-1)
    return laid


def _scattered(values: NDArray[Any], covered: NDArray[np.bool_], *, empty: int) -> NDArray[Any]:
    """(T,) the values where tokens are covered, else ``empty``."""
    full = np.full(len(covered), empty, dtype=values.dtype)
    full[covered] = values
    return full


def _opens_word(word_ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(T,) the first token of each token's word; of tokens in no word, themselves."""
    fresh = np.ones(len(word_ids), dtype=bool)
    fresh[1:] = (word_ids[1:] != word_ids[:-1]) | (word_ids[1:] < 0)
    fresh[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    return np.maximum.accumulate(np.where(fresh, np.arange(len(word_ids)), 0))


def _joined(parts: Sequence[Any], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype, copy=False)
