"""Layers that need no model: words and sentences by their characters; what files say about texts; and what was
found before and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from maskwise.annotate.spans import sentence_spans
from maskwise.errors import MaskwiseError
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.readers import Fields, Skip, known_ending, read_file
from maskwise.text.words import VERSION, classify, is_white, text_id, word_starts


class Words:
    """Words, by their characters."""

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
    """Sentences, by their final punctuation."""

    name = "sentences"
    layers: ClassVar = {"sentence": Layer("spans")}
    version = digest("sentences", 1)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        layer = self.layers["sentence"]
        return [{"sentence": CharSpans.of(sentence_spans(text), layer)} for text in texts]


class Known:
    """Layers that a file brings along, found again by their texts; a text that it does not have gets none.

    Args:
        name: of the annotator.
        layers: what the layers are.
        known: (text, its spans by layer) pairs; kept in memory.
        version: hash of the file and of how it was read.
    """

    whole_texts = True

    def __init__(
        self, name: str, layers: Mapping[str, Layer], known: Iterable[tuple[str, dict[str, CharSpans]]],
        version: str,
    ):  # fmt: skip
        self.name, self.layers, self.version = name, layers, version
        self._known = {text_id(text): spans for text, spans in known}
        self._none = {layer: CharSpans.of([], kind) for layer, kind in layers.items()}

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        return [self._known.get(text_id(text), self._none) for text in texts]


def gold(file: str) -> Known:
    """Parts of speech from a CoNLL-U file (``.gz`` allowed), for the texts of its documents."""
    from maskwise.annotate.gold import POS, read_conllu

    path = _existing(file)
    known = ((document.text, document.layers) for document in read_conllu(path))
    return Known("gold", {"pos": POS}, known, digest("gold", 2, path))


def spans(
    file: str, *, field: str = "spans", text_field: str = "text", labels: tuple[str, ...] = (),
    layer: str = "spans",
) -> Known:  # fmt: skip
    """Spans that stand beside the texts in a JSON lines or Parquet file.

    Lists of [start, end], or with ``labels`` of [start, end, label], in characters, in the field ``field``.
    """
    path = _existing(file)
    if not known_ending(path) or path.name.lower().endswith((".txt", ".txt.gz")):
        raise MaskwiseError(f"spans are not read from {path}", allowed="JSON lines or Parquet, with fields")
    known = []
    for record in read_file(path, path.name, Fields(text_field, field)):
        if isinstance(record, Skip) or not isinstance(record[1], Mapping):
            continue
        name, row = record
        text, marked = row.get(text_field), row.get(field)
        if isinstance(text, str) and marked is not None:
            known.append((text, {layer: _given(marked, text, labels, where=f"{name} of {path}")}))
    if not known:
        do = "name the field of the spans and that of the text"
        raise MaskwiseError(f"no record of {path} has {text_field!r} and {field!r}", do=do)
    settings = digest("spans", 2, path, field, text_field, labels, layer)
    return Known("spans", {layer: Layer("spans", tuple(labels))}, known, settings)


def _given(marked: Any, text: str, labels: tuple[str, ...], *, where: str) -> CharSpans:
    from maskwise.annotate.gold import given_spans

    try:
        return given_spans(marked, text=text, labels=labels)
    except (MaskwiseError, TypeError) as error:
        raise MaskwiseError(f"{where}: {error}") from None


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MaskwiseError("no such file of annotations", got=file)
    return path
