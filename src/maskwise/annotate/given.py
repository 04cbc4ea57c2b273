"""Layers that need no model: words and sentences by their characters."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from maskwise.annotate.annotator import CharSpans, Layer, digest
from maskwise.annotate.characters import VERSION, classify, is_white, word_starts
from maskwise.annotate.spans import sentence_spans


class Words:
    """Every word (characters.py has the rule), as a span without a value."""

    name = "words"
    layers: ClassVar = {"words": Layer("spans")}
    version = digest("words", VERSION)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        return [{"words": _words(text)} for text in texts]


def _words(text: str) -> CharSpans:
    kinds = classify(text)
    start = np.flatnonzero(word_starts(kinds))
    # A word ends before the first white space behind it, or where the next word begins.
    white = np.flatnonzero(is_white(kinds))
    space = np.append(white, len(text))[np.searchsorted(white, start)]
    end = np.minimum(np.append(start[1:], len(text)), space)
    return CharSpans(start.astype(np.int32), end.astype(np.int32))


class Sentences:
    """Every sentence, by its final punctuation (spans.py)."""

    name = "sentences"
    layers: ClassVar = {"sentence": Layer("spans")}
    version = digest("sentences", 1)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        layer = self.layers["sentence"]
        return [{"sentence": CharSpans.of(sentence_spans(text), layer)} for text in texts]
