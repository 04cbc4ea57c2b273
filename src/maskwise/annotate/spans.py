"""Span layers from spans of characters: given by hand in the text itself, or sentences by their punctuation.

For looking at policies that need more than words, without an annotator: ``born in [[Warsaw]] in [[1867|3]]`` marks two
spans, the second of weight 3. A token belongs to the span in which its first visible character lies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_MARKED = re.compile(r"\[\[(.+?)(?:\|(\d+(?:\.\d+)?))?\]\]", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]|$)", re.DOTALL)


class Span(NamedTuple):
    """Characters ``start`` to ``stop`` (exclusive) of a text, and how likely they should be masked."""

    start: int
    stop: int
    weight: float = 1.0


def read_marks(text: str) -> tuple[str, list[Span]]:
    """The text without its ``[[…]]`` marks, and the spans that they marked."""
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
    firsts = (start + len(text[start:stop]) - len(text[start:stop].lstrip()) for start, stop in offsets)
    return [numbers[first] if stop > start else -1 for first, (start, stop) in zip(firsts, offsets)]
