"""Annotators that look up word weights in a table: frequency and informativeness.

A fit writes the table, a Parquet file with the columns "word" and "weight" that users may edit;
annotating looks words up in lower case. Cost: 0.5 µs per word. ``difference.py`` has one more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from maskwise.annotate.counts import (
    RULES,
    Floats,
    Ints,
    Keys,
    Spill,
    Table,
    Vocabulary,
    Words,
    blocks,
    find,
    halves,
    keys_of,
    pair_keys,
    read_table,
    write_table,
)
from maskwise.errors import MaskwiseError
from maskwise.folders import write_json
from maskwise.specs import Call
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.words import VERSION

FILE = "words.parquet"


class WordWeights(ABC):
    """An annotator with one layer of weights, which has its name.

    Args:
        table: the folder written by a fit; None before the fit.
    """

    name: ClassVar[str]
    unseen: ClassVar[float] = 0.0
    """Weight of words that are missing from the table."""
    punctuation: ClassVar[bool] = False
    """Whether punctuation and parts after an apostrophe have weights too."""
    settings: Mapping[str, object] = {}
    """All other arguments; part of the version."""

    def __init__(self, *, table: str | None = None):
        self.folder = None if table is None else Path(table)
        self._content: list[object] = []
        if self.folder is None:
            return
        columns = read_table(self.folder / FILE, "word", "weight")
        words = columns["word"].to_pylist()
        weights = columns["weight"].to_numpy().astype(np.float64)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise MaskwiseError(f"{self.folder / FILE}: weights must be finite and ≥ 0")
        self._content = ["\n".join(words), weights.tobytes()]
        keys = keys_of(words)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        # ``find`` gives missing words the index −1: the last weight.
        self._weights = np.append(weights[order], self.unseen)

    @property
    def layers(self) -> dict[str, Layer]:
        return {self.name: Layer("weight")}

    @property
    def fitted(self) -> bool:
        return self.folder is not None

    @cached_property
    def version(self) -> str:
        content = list(self._content)
        if not self.fitted:
            # The result of a fit depends on the files that are named in the settings.
            for value in self.settings.values():
                if isinstance(value, str):
                    path = Path(value)
                    content += sorted(file for file in (path, *path.rglob("*")) if file.is_file())
        return digest(self.name, RULES, VERSION, sorted(self.settings.items()), *content)

    @abstractmethod
    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read a corpus once and save a table in ``folder``; returns the spec that reads it."""

    def _save(
        self,
        folder: Path,
        columns: Mapping[str, object],
        facts: Mapping[str, object],
        **needed: object,
    ) -> str:
        """Write the table and its facts; ``needed`` are arguments of the spec that reads it."""
        write_table(folder / FILE, columns)
        write_json(folder / "facts.json", facts)
        return str(Call(self.name, kwargs={"table": str(folder), **needed}))

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        assert self.fitted, "fit first"
        found = []
        for words in blocks(texts):
            keep = np.flatnonzero(words.plain | self.punctuation)
            weights = self.weigh(words)[keep].astype(np.float32)
            found += [{self.name: spans} for spans in words.spans(keep, keep, weights)]
        return found

    def weigh(self, words: Words) -> Floats:
        """(W,) the weights of the words of some texts."""
        return self._weights[find(self._keys, words.key)]


class Frequency(WordWeights):
    """The layer ``frequency``: the corpus count of every word in lower case, punctuation included.

    Args:
        table: the folder written by a fit; without it the annotator has to be fitted.
    """

    name = "frequency"
    punctuation = True

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count all words; save words.parquet (word, weight = count), most frequent first."""
        seen = Vocabulary()
        for words in blocks(texts):
            seen.count(words, np.ones(len(words.key), dtype=bool))
        order = np.argsort(-seen.counts, kind="stable")
        keys = seen.keys[order]
        weights = seen.counts[order].astype(np.float64)
        facts = {
            "words": seen.total,
            "distinct": len(keys),
            "counts_too_low_by_at_most": seen.lost,
        }
        return self._save(folder, {"word": seen.names(keys), "weight": weights}, facts)


PAIRS = "pairs.parquet"
_STOPS = [ord(mark) for mark in ".!?…"]
_UNSPACED_STOPS = [ord(mark) for mark in "。！？"]


class Informativeness(WordWeights):
    """The layer ``informativeness``: a word's PMI with its neighbours, clipped at 0, with mean 1.

    Args:
        table: the folder written by a fit; without it the annotator has to be fitted.
        per: "text": the weight depends on the neighbours of the word; "word": it is the same
            everywhere.
        window: maximum number of neighbours on each side.
        words: size of the table, which has the most frequent words.
        min_count: words that occur less often are left out.
        min_pairs: pairs that occur less often have a PMI of 0.

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
        self.settings = {
            "per": per,
            "window": window,
            "words": words,
            "min_count": min_count,
            "min_pairs": min_pairs,
        }
        if per not in ("text", "word"):
            raise MaskwiseError("informativeness: per", got=per, allowed="text, word")
        if min(window, words, min_count, min_pairs) < 1:
            raise MaskwiseError("informativeness: settings must be at least 1", got=self.settings)
        super().__init__(table=table)
        self._per = per
        self._window = window
        self._most = words
        self._min_count = min_count
        self._min_pairs = min_pairs

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count words and pairs; save words.parquet (word, weight, count) and pairs.parquet.

        Raises:
            MaskwiseError: no word is frequent enough.
        """
        seen = Vocabulary()
        # The ids of words are known only after the first pass, so the corpus is kept as hashes.
        corpus = Spill(folder)
        for words in blocks(texts):
            plain = words.plain
            seen.count(words, plain)
            sentences = sentences_of(words)[plain].astype(np.uint64)
            corpus.write(np.stack([words.key[plain], sentences]))
        most_frequent = np.argsort(-seen.counts, kind="stable")[: self._most]
        frequent = most_frequent[seen.counts[most_frequent] >= self._min_count]
        if not len(frequent):
            do = "give more text, or a lower min_count"
            raise MaskwiseError(f"no word occurs {self._min_count} times", do=do)
        # Sorted, because ``find`` searches ascending keys; a word's id is its index there.
        frequent = np.sort(frequent)
        known = seen.keys[frequent]
        counts = seen.counts[frequent]

        met = Table()
        for keys, sentence in corpus:
            ids = find(known, keys)
            for distance, at in _neighbours(ids, sentence, self._window):
                met.add(_pairs(ids, at, distance))
        keep = met.counts >= self._min_pairs
        pairs = met.keys[keep]
        pmi = pmi_of(met.keys, met.counts, words=len(known))[keep]

        total = np.zeros(len(known))
        positive = 0.0
        number = 0
        for keys, sentence in corpus:
            ids = find(known, keys)
            sums = summed_pmi(ids, sentence, pairs, np.append(pmi, 0.0), window=self._window)
            in_table = ids >= 0
            total += np.bincount(ids[in_table], sums[in_table], len(known))
            positive += float(sums[in_table].clip(min=0).sum())
            number += int(in_table.sum())
        rate = (total / counts).clip(min=0)
        # Divided by its mean over the corpus, a weight averages 1. A mean of 0 divides nothing.
        by_word = float((rate * counts).sum() / counts.sum()) or 1.0
        by_text = positive / number or 1.0
        scaled = (pmi / by_text).astype(np.float32)
        write_table(folder / PAIRS, {"pair": pairs, "pmi": scaled})
        columns = {"word": seen.names(known), "weight": rate / by_word, "count": counts}
        facts = {
            "words": seen.total,
            "distinct": len(known),
            "pairs": len(pairs),
            "distinct_pairs": len(met.keys),
            "counts_too_low_by_at_most": met.lost,
            "mean_of_sums": by_text,
            "mean_of_rates": by_word,
        }
        return self._save(folder, columns, facts, per=self._per, window=self._window)

    def weigh(self, words: Words) -> Floats:
        if self._per == "word":
            return super().weigh(words)
        ids = find(self._keys, words.key)
        plain = words.plain
        sentence = sentences_of(words)[plain]
        sums = np.zeros(len(ids))
        sums[plain] = summed_pmi(ids[plain], sentence, *self._pmi, window=self._window)
        return np.where(ids >= 0, sums.clip(min=0), self.unseen)

    @cached_property
    def version(self) -> str:
        if not self.fitted:
            return super().version
        return digest(super().version, *(column.tobytes() for column in self._pmi))

    @cached_property
    def _pmi(self) -> tuple[Keys, Floats]:
        """(P,) pairs and (P + 1,) their PMI; the last value, 0, is for all other pairs."""
        assert self.folder is not None
        columns = read_table(self.folder / PAIRS, "pair", "pmi")
        return columns["pair"].to_numpy(), np.append(columns["pmi"].to_numpy(), 0.0)


def pmi_of(pairs: Keys, counts: Ints, *, words: int) -> Floats:
    """(P,) the PMI of pairs of word ids, smaller id first, from their counts in either order."""
    first, second = halves(pairs)
    marginal = np.bincount(first, counts, words) + np.bincount(second, counts, words)
    # The marginals count each pair from both sides, so a word beside itself counts twice too.
    ordered = counts * np.where(first == second, 2, 1)
    return np.log(ordered * marginal.sum() / (marginal[first] * marginal[second]))


def summed_pmi(
    ids: Ints, sentence: Ints | Keys, pairs: Keys, pmi: Floats, *, window: int
) -> Floats:
    """(W,) each word's summed PMI with its neighbours.

    Args:
        ids: (W,) −1 for words that are missing from the table.
        sentence: (W,) ascending numbers.
        pairs: (P,) ascending keys.
        pmi: (P + 1,) PMI of the pairs; the last value is for all other pairs.
    """
    total = np.zeros(len(ids))
    for distance, at in _neighbours(ids, sentence, window):
        found = pmi[find(pairs, _pairs(ids, at, distance))]
        total[at] += found
        total[at + distance] += found
    return total


def _neighbours(ids: Ints, sentence: Ints | Keys, window: int) -> Iterator[tuple[int, Ints]]:
    """Yield for each distance the known words with a known neighbour in the same sentence."""
    for distance in range(1, min(window, len(ids) - 1) + 1):
        near = sentence[distance:] == sentence[:-distance]
        known = (ids[distance:] >= 0) & (ids[:-distance] >= 0)
        yield distance, np.flatnonzero(near & known)


def _pairs(ids: Ints, at: Ints, distance: int) -> Keys:
    left = ids[at]
    right = ids[at + distance]
    return pair_keys(np.minimum(left, right), np.maximum(left, right))


def sentences_of(words: Words) -> Ints:
    """(W,) the sentence of every word: ascending numbers over all texts.

    A sentence ends with its text, its line, or final punctuation before a space.
    """
    opens = words.fresh.copy()
    # "3.5" and "U.S.A" go on after the stop; Chinese and Japanese have no spaces to ask for.
    blank_before = words.start[1:] > words.end[:-1]
    opens[1:] |= np.isin(words.letter[:-1], _STOPS) & blank_before
    opens[1:] |= np.isin(words.letter[:-1], _UNSPACED_STOPS)
    return np.cumsum(opens)
