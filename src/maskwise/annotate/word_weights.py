"""The base of layers that give every word a weight by a table: frequency, informativeness, difference.

A fit makes the table, a Parquet file with the columns "word" and "weight" (and what else is known of the words), so
it can be read and mended; annotating looks words up, in lower case. Cost: 0.5 µs a word.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import RULES, Flags, Words, blocks, keys_of
from maskwise.annotate.tables import Ints, Keys, find, read_table, write_table
from maskwise.errors import MaskwiseError
from maskwise.specs import Call
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.words import VERSION

Floats = NDArray[np.float64]
FILE = "words.parquet"


class WordWeights(ABC):
    """One weight layer, called like its annotator.

    Members say how to `fit`, and may overrule `weigh` and `kept`.

    Args:
        table: the folder that an earlier fit has filled; None before that.
        settings: all other arguments, for the version and for the string that reads the table.
    """

    name: ClassVar[str]
    unseen: ClassVar[float] = 0.0
    """The weight of words that the table does not have."""

    def __init__(self, table: str | None, **settings: Any):
        self._settings = settings
        self._folder = None if table is None else Path(table)
        self._words: list[str] = []
        self._weights: Floats = np.zeros(0)
        if self._folder is not None:
            columns = read_table(self._folder / FILE, "word", "weight")
            self._words, self._weights = columns["word"], columns["weight"].astype(np.float64)
            if not (np.isfinite(self._weights) & (self._weights >= 0)).all():
                raise MaskwiseError(f"{self._folder / FILE}: weights must be finite and ≥ 0")

    @property
    def layers(self) -> dict[str, Layer]:
        return {self.name: Layer("weight")}

    @property
    def fitted(self) -> bool:
        return self._folder is not None

    @cached_property
    def version(self) -> str:
        content = ("\n".join(self._words), self._weights.tobytes()) if self.fitted else ()
        return digest(self.name, RULES, VERSION, sorted(self._settings.items()), *content)

    @abstractmethod
    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read a corpus once, save what was learnt in ``folder``, and return the string that reads it."""

    def _save(self, folder: Path, columns: dict[str, Any], facts: dict[str, Any], **needed: Any) -> str:
        """The table and facts about it; the string of the annotator that reads them, with settings it needs."""
        write_table(folder / FILE, columns)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return str(Call(self.name, kwargs={"table": str(folder), **needed}))

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        assert self.fitted, "fit first"
        return [{self.name: spans} for words in blocks(texts) for spans in self._spans(words)]

    def _spans(self, words: Words) -> list[CharSpans]:
        keep = np.flatnonzero(self.kept(words))
        weights = self.weigh(words)[keep].astype(np.float32)
        found = words._replace(text=words.text[keep])
        starts, ends = words.start[keep].astype(np.int32), words.end[keep].astype(np.int32)
        return [CharSpans(*spans) for spans in found.split(starts, ends, weights)]

    def kept(self, words: Words) -> Flags:
        """(W,) the words that get a weight; to the others 0 is given."""
        return words.plain

    def weigh(self, words: Words) -> Floats:
        """(W,) the weight of every word of some texts."""
        place = self.places(words.key)
        return np.where(place >= 0, np.append(self._weights, 0.0)[place], self.unseen)

    def places(self, keys: Keys) -> Ints:
        """(W,) where words stand in the table; −1 for those it does not have."""
        ordered, order = self._index
        place = find(ordered, keys)
        return np.where(place >= 0, np.append(order, -1)[place], -1)

    @cached_property
    def _index(self) -> tuple[Keys, Ints]:
        keys = keys_of(self._words)
        order = np.argsort(keys, kind="stable")
        return keys[order], order
