"""The base of layers that give every word a weight by a table: frequency, informativeness,
difference.

A fit makes the table, a Parquet file with the columns "word" and "weight" (and what else is known
of the words), so it can be read and mended; annotating looks words up, in lower case. Cost: 0.5 µs
a word.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import (
    RULES,
    Flags,
    Ints,
    Keys,
    Spill,
    Table,
    Vocabulary,
    Words,
    blocks,
    find,
    halves,
    joined,
    keys_of,
    read_table,
    write_table,
)
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
        content: list[object] = []
        if self.fitted:
            content = ["\n".join(self._words), self._weights.tobytes()]
        else:  # the files and folders that a fit will read
            for path in (
                Path(value) for value in self._settings.values() if isinstance(value, str)
            ):
                content += sorted(file for file in (path, *path.rglob("*")) if file.is_file())
        return digest(self.name, RULES, VERSION, sorted(self._settings.items()), *content)

    @abstractmethod
    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read a corpus once, save what was learnt in ``folder``, and return the string that reads
        it.
        """

    def _save(
        self,
        folder: Path,
        columns: Mapping[str, object],
        facts: Mapping[str, object],
        **needed: object,
    ) -> str:
        """The table and facts about it; the string of the annotator that reads them, with settings
        it needs.
        """
        write_table(folder / FILE, columns)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return str(Call(self.name, kwargs={"table": str(folder), **needed}))

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        assert self.fitted, "fit first"
        found: list[CharSpans] = []
        for words in blocks(texts):
            found += self._spans(words)
        return [{self.name: spans} for spans in found]

    def _spans(self, words: Words) -> list[CharSpans]:
        keep = np.flatnonzero(self.kept(words))
        return words.spans(keep, keep, self.weigh(words)[keep].astype(np.float32))

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


class Frequency(WordWeights):
    """The layer ``frequency``: the count of every word, in lower case, punctuation too. Unseen
    words have 0.

    Args:
        table: the folder that an earlier fit has filled. Without it the annotator is to be fitted.
    """

    name = "frequency"

    def __init__(self, *, table: str | None = None):
        super().__init__(table)

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count all words: words.parquet with word and weight (the count), by falling count."""
        seen = Vocabulary()
        for words in blocks(texts):
            seen.add(words, np.ones(len(words.key), dtype=bool))
        order = np.argsort(-seen.table.counts, kind="stable")
        keys, counts = seen.table.keys[order], seen.table.counts[order]
        facts = {
            "words": seen.table.total,
            "distinct": len(keys),
            "counts_too_low_by_at_most": seen.table.lost,
        }
        return self._save(
            folder, {"word": seen.names(keys), "weight": counts.astype(np.float64)}, facts
        )

    def kept(self, words: Words) -> Flags:
        return np.ones(len(words.key), dtype=bool)


PAIRS = "pairs.parquet"
_STOPS = [ord(mark) for mark in ".!?…"]
_UNSPACED_STOPS = [ord(mark) for mark in "。！？"]


class Pmi:
    """PMI of pairs of words that are known by their ids; 0 for pairs it does not have.

    Args:
        pairs: (P,) ascending, the smaller id in the upper 32 bits.
        pmi: (P,).
    """

    def __init__(self, pairs: Keys, pmi: Floats):
        self.pairs, self.pmi = pairs, np.append(pmi, 0.0)  # what is not found is at −1: the last

    @classmethod
    def counted(cls, pairs: Keys, counts: Ints, *, words: int, least: int = 1) -> Pmi:
        """From the (P,) counts of pairs in either order."""
        first, second = halves(pairs)
        marginal = np.bincount(first, counts, words) + np.bincount(second, counts, words)
        ordered = counts * np.where(first == second, 2, 1)
        keep = counts >= least
        pmi = np.log(ordered * marginal.sum() / (marginal[first] * marginal[second]))
        return cls(pairs[keep], pmi[keep])

    def sums(self, ids: Ints, sentence: Ints, *, window: int) -> Floats:
        """(W,) each word's summed PMI with the words around it.

        Args:
            ids: (W,) −1 for words that are not known.
            sentence: (W,) rising numbers.
        """
        total = np.zeros(len(ids))
        for distance, at in _neighbours(ids, sentence, window):
            pmi = self.pmi[find(self.pairs, _pairs(ids, at, distance))]
            total[at] += pmi
            total[at + distance] += pmi
        return total


def _neighbours(ids: Ints, sentence: Ints, window: int) -> Iterable[tuple[int, Ints]]:
    """For each distance the places of words whose neighbour there is in the same sentence, both
    known.
    """
    for distance in range(1, min(window, len(ids) - 1) + 1):
        near = (
            (sentence[distance:] == sentence[:-distance])
            & (ids[distance:] >= 0)
            & (ids[:-distance] >= 0)
        )
        yield distance, np.flatnonzero(near)


def _pairs(ids: Ints, at: Ints, distance: int) -> Keys:
    left, right = ids[at], ids[at + distance]
    return joined(np.minimum(left, right), np.maximum(left, right))


class Informativeness(WordWeights):
    """The layer ``informativeness``.

    Args:
        table: the folder that an earlier fit has filled. Without it the annotator is to be fitted.
        per: "text", a word's weight depends on its neighbours, or "word", it is the same
            everywhere.
        window: neighbours on each side, at most.
        words: the table has so many of the most frequent words …
        min_count: … of those that are there at least so often.
        min_pairs: pairs that are met more rarely do not count.

    Raises:
        MaskwiseError: settings out of range; a table that cannot be read.
    """

    name = "informativeness"
    unseen = 1.0

    def __init__(
        self,
        *,
        table: str | None = None,
        per: str = "text",
        window: int = 5,
        words: int = 100_000,
        min_count: int = 10,
        min_pairs: int = 3,
    ):
        if per not in ("text", "word"):
            raise MaskwiseError("informativeness: per", got=per, allowed="text, word")
        if min(window, words, min_count, min_pairs) < 1:
            got = f"window={window}, words={words}, min_count={min_count}, min_pairs={min_pairs}"
            raise MaskwiseError("informativeness: settings must be at least 1", got=got)
        super().__init__(
            table, per=per, window=window, words=words, min_count=min_count, min_pairs=min_pairs
        )
        self._per = per
        self._window = window
        self._most = words
        self._min_count = min_count
        self._min_pairs = min_pairs

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count words and pairs, and save words.parquet (word, weight, count) and pairs.parquet
        (PMI over the scale).

        Raises:
            MaskwiseError: no word is frequent enough.
        """
        seen, keys, sentences = Vocabulary(), Spill(folder, np.uint64), Spill(folder, np.int64)
        for words in blocks(texts):
            seen.add(words, words.plain)
            keys.write(words.key[words.plain])
            sentences.write(sentences_of(words)[words.plain])
        order = np.argsort(-seen.table.counts, kind="stable")[: self._most]
        order = np.sort(order[seen.table.counts[order] >= self._min_count])  # ids by ascending key
        if not len(order):
            raise MaskwiseError(
                f"no word occurs {self._min_count} times", do="give more text, or a lower min_count"
            )
        known, counts = seen.table.keys[order], seen.table.counts[order]

        pairs = Table()
        for block, sentence in zip(keys, sentences, strict=True):
            ids = find(known, block)
            for distance, at in _neighbours(ids, sentence, self._window):
                pairs.add(_pairs(ids, at, distance))
        pmi = Pmi.counted(pairs.keys, pairs.counts, words=len(known), least=self._min_pairs)

        total = np.zeros(len(known))
        positive = 0.0
        number = 0
        for block, sentence in zip(keys, sentences, strict=True):
            ids = find(known, block)
            sums = pmi.sums(ids, sentence, window=self._window)
            in_table = ids >= 0
            total += np.bincount(ids[in_table], sums[in_table], len(known))
            positive += float(sums[in_table].clip(min=0).sum())
            number += int(in_table.sum())
        rate = (total / counts).clip(min=0)
        by_word = float((rate * counts).sum() / counts.sum()) or 1.0
        by_text = positive / number or 1.0
        write_table(
            folder / PAIRS, {"pair": pmi.pairs, "pmi": (pmi.pmi[:-1] / by_text).astype(np.float32)}
        )
        facts = {
            "words": seen.table.total,
            "distinct": len(known),
            "pairs": len(pmi.pairs),
            "distinct_pairs": len(pairs.keys),
            "counts_too_low_by_at_most": pairs.lost,
            "mean_of_sums": by_text,
            "mean_of_rates": by_word,
        }
        columns = {"word": seen.names(known), "weight": rate / by_word, "count": counts}
        return self._save(folder, columns, facts, per=self._per, window=self._window)

    def weigh(self, words: Words) -> Floats:
        if self._per == "word":
            return super().weigh(words)
        place, plain = self.places(words.key), words.plain
        sums = np.zeros(len(place))
        sums[plain] = self._pmi.sums(place[plain], sentences_of(words)[plain], window=self._window)
        return np.where(place >= 0, sums.clip(min=0), self.unseen)

    @cached_property
    def version(self) -> str:
        if not self.fitted:
            return super().version
        return digest(super().version, self._pmi.pairs.tobytes(), self._pmi.pmi.tobytes())

    @cached_property
    def _pmi(self) -> Pmi:
        assert self._folder is not None
        columns = read_table(self._folder / PAIRS, "pair", "pmi")
        return Pmi(columns["pair"], columns["pmi"])


def sentences_of(words: Words) -> Ints:
    """(W,) the sentence of every word: rising numbers over all texts; a sentence ends with its
    text, its line, or final punctuation before a space."""
    opens = words.fresh.copy()
    opens[1:] |= np.isin(words.letter[:-1], _STOPS) & (words.start[1:] > words.end[:-1])
    opens[1:] |= np.isin(words.letter[:-1], _UNSPACED_STOPS)
    return np.cumsum(opens)
