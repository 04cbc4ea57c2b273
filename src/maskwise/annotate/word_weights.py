"""Annotators that look up a number (weight) for each word: frequency, informativeness, difference.

A fit reads a corpus and writes a Parquet file with the columns "word" and "weight". You may edit
this file. Words are looked up in lower case. Cost: 0.5 µs per word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskwise.annotate.counts import (
    RULES,
    CountTable,
    Floats,
    Hashes,
    Ints,
    Spill,
    WordCounts,
    Words,
    blocks,
    halves,
    keys_of,
    pair_keys,
    places_of_keys,
    read_parquet,
    texts_in,
)
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import Call, user_path
from maskwise.masking.line import Names
from maskwise.masking.segments import changes, offsets
from maskwise.text import load_tokenizer, read_documents
from maskwise.text.layers import Found, Layer, digest
from maskwise.text.words import VERSION

FILE = "words.parquet"
Matrix = NDArray[np.float32]


@dataclass(kw_only=True)
class WordWeights(ABC):
    """An annotator with one layer of weights, which has the name of the annotator.

    Args:
        table: the folder that a fit wrote. Without it, the annotator must be fitted to a corpus.

    Raises:
        MaskwiseError: a setting is out of range, or the table cannot be read.
    """

    table: str | None = None

    name: ClassVar[str]
    unseen: ClassVar[float] = 0.0
    """Weight of words that are not in the table."""
    sources: ClassVar[Names] = ()
    """The settings that are texts or checkpoints, which a fit reads."""
    punctuation: ClassVar[bool] = False
    """Whether punctuation marks and suffixes, as "ll" in "we'll", get weights, too."""

    def __post_init__(self) -> None:
        for value in self.settings.values():
            if isinstance(value, int) and value < 1:
                raise MaskwiseError(f"{self.name}: settings must be at least 1", got=self.settings)
        self._content: list[object] = []
        if self.table is None:
            return
        path = user_path(self.table) / FILE
        columns = read_parquet(path, "word", "weight")
        words = texts_in(path, columns["word"], what="word")
        weights = columns["weight"].to_numpy()
        numbers = weights.dtype.kind in "iuf"
        if not numbers or not (np.isfinite(weights) & (weights >= 0)).all():
            raise MaskwiseError(
                f"{path}: weights must be numbers, finite and ≥ 0",
                got=None if numbers else str(columns["weight"].type),
            )
        weights = weights.astype(np.float64)
        self._content = ["\n".join(words), weights.tobytes()]
        keys = keys_of(words)
        order = keys.argsort(kind="stable")
        self._keys = keys[order]
        # ``places_of_keys`` returns −1 for words that are not in the table, which selects the last
        # weight.
        self._weights = np.append(weights[order], self.unseen)

    @property
    def settings(self) -> dict[str, object]:
        """All arguments except the table, keyed by name. They are part of the version."""
        return {name: value for name, value in asdict(self).items() if name != "table"}

    @property
    def layers(self) -> dict[str, Layer]:
        return {self.name: Layer("weight")}

    @property
    def fitted(self) -> bool:
        return self.table is not None

    @cached_property
    def version(self) -> str:
        content = list(self._content)
        if not self.fitted:
            # If a source is a file or a folder, the fit depends on its contents.
            for name in self.sources:
                if value := getattr(self, name):
                    path = user_path(value)
                    content += sorted(filter(Path.is_file, (path, *path.rglob("*"))))
        return digest(self.name, RULES, VERSION, sorted(self.settings.items()), *content)

    @abstractmethod
    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read a corpus, write a table to ``folder``, and return a spec: ``NAME(table=…)``."""

    def _save(self, folder: Path, columns: Mapping[str, object], **needed: object) -> str:
        """Write the table. Return the annotator as a string; ``needed`` are its other arguments."""
        pq.write_table(pa.table(columns), folder / FILE)
        return str(Call(self.name, kwargs={"table": str(folder), **needed}))

    def annotate(self, texts: list[str]) -> list[Found]:
        assert self.fitted, "fit first"
        found = []
        for words in blocks(texts):
            keep = np.flatnonzero(words.plain | self.punctuation)
            weights = self.weigh(words)[keep].astype(np.float32)
            for spans in words.spans(keep, keep, weights):
                found.append({self.name: spans})
        return found

    def weigh(self, words: Words) -> Floats:
        """Return the weight of each word, (W,)."""
        return self._weights[places_of_keys(self._keys, words.key)]


@dataclass(kw_only=True)
class FrequencyWeights(WordWeights):
    """The layer ``frequency``: the count of each word or punctuation mark in a corpus."""

    name = "frequency"
    punctuation = True

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count all words, and write words.parquet (word, weight), most frequent word first."""
        seen = WordCounts()
        for words in blocks(texts):
            seen.count(words, np.ones(len(words.key), dtype=bool))
        order = np.argsort(-seen.counts, kind="stable")
        keys = seen.keys[order]
        weights = seen.counts[order].astype(np.float64)
        return self._save(folder, {"word": seen.names(keys), "weight": weights})


PAIRS = "pairs.parquet"
_STOPS = list(map(ord, ".!?…"))
_UNSPACED_STOPS = list(map(ord, "。！？"))


@dataclass(kw_only=True)
class Informativeness(WordWeights):
    """The layer ``informativeness``: the sum of a word's PMI with each of its neighbours.

    PMI is pointwise mutual information. Sums below 0 become 0, and the mean weight is 1.

    Args:
        per: "text" sums over the neighbours in the text, so each occurrence has its own weight.
            "word" gives each word one weight, the mean over its occurrences in the corpus.
        window: the maximum number of neighbours on each side.
        words: the maximum number of words in the table. The most frequent words are used.
        min_count: the minimum number of occurrences of a word in the table.
        min_pairs: the minimum number of occurrences of a pair. Rarer pairs have PMI 0.
    """

    name = "informativeness"
    unseen = 1.0

    per: str = "text"
    window: int = 5
    words: int = 100_000
    min_count: int = 10
    min_pairs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("text", "word"):
            raise MaskwiseError("informativeness: unknown per", got=self.per, allowed="text, word")

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count words and pairs; write words.parquet (word, weight, count) and pairs.parquet.

        Raises:
            MaskwiseError: no word is frequent enough.
        """
        seen = WordCounts()
        # The ids of words exist only when all words are counted. A temporary file keeps the hashes.
        corpus = Spill(folder)
        for words in blocks(texts):
            plain = words.plain
            seen.count(words, plain)
            sentences = sentences_of(words)[plain].astype(np.uint64)
            corpus.write(np.stack([words.key[plain], sentences]))
        most_frequent = np.argsort(-seen.counts, kind="stable")[: self.words]
        frequent = most_frequent[seen.counts[most_frequent] >= self.min_count]
        if not len(frequent):
            raise MaskwiseError(
                f"no word of the corpus occurs {self.min_count} times",
                do="give more text, or lower min_count",
            )
        # The id of a word is its index in ``known``, which must ascend for ``places_of_keys``.
        frequent = np.sort(frequent)
        known = seen.keys[frequent]
        counts = seen.counts[frequent]

        met = CountTable()
        for keys, sentence in corpus:
            ids = places_of_keys(known, keys)
            for distance, at in _neighbours(ids, sentence, self.window):
                met.add(_pairs(ids, at, distance))
        keep = met.counts >= self.min_pairs
        pairs = met.keys[keep]
        pmi = pmi_of(met.keys, met.counts, words=len(known))[keep]

        total = np.zeros(len(known))
        positive = 0.0
        number = 0
        for keys, sentence in corpus:
            ids = places_of_keys(known, keys)
            sums = summed_pmi(ids, sentence, pairs, np.append(pmi, 0.0), window=self.window)
            in_table = ids >= 0
            sums = sums[in_table]
            total += np.bincount(ids[in_table], sums, len(known))
            positive += float(sums.clip(min=0).sum())
            number += len(sums)
        rate = (total / counts).clip(min=0)
        # Weights are divided by their mean over the corpus, or by 1 if this mean is 0.
        by_word = float((rate * counts).sum() / counts.sum()) or 1.0
        by_text = positive / number or 1.0
        scaled = (pmi / by_text).astype(np.float32)
        pq.write_table(pa.table({"pair": pairs, "pmi": scaled}), folder / PAIRS)
        return self._save(
            folder,
            {"word": seen.names(known), "weight": rate / by_word, "count": counts},
            per=self.per,
            window=self.window,
        )

    def weigh(self, words: Words) -> Floats:
        if self.per == "word":
            return super().weigh(words)
        ids = places_of_keys(self._keys, words.key)
        plain = words.plain
        sentence = sentences_of(words)[plain]
        sums = np.zeros(len(ids))
        sums[plain] = summed_pmi(ids[plain], sentence, *self._pmi, window=self.window)
        return np.where(ids >= 0, sums.clip(min=0), self.unseen)

    @cached_property
    def version(self) -> str:
        if not self.fitted:
            return super().version
        pairs, pmi = self._pmi
        return digest(super().version, pairs.tobytes(), pmi.tobytes())

    @cached_property
    def _pmi(self) -> tuple[Hashes, Floats]:
        """The keys of P pairs, and their PMI (P + 1,). The last PMI, 0, is that of other pairs."""
        assert self.table, "fit first"
        columns = read_parquet(user_path(self.table) / PAIRS, "pair", "pmi")
        pairs = columns["pair"].to_numpy()
        pmi = columns["pmi"].to_numpy()
        return pairs, np.append(pmi, 0.0)


def pmi_of(pairs: Hashes, counts: Ints, *, words: int) -> Floats:
    """Return (P,) the PMI of pairs of word ids (smaller id first), from their counts (P,)."""
    first, second = halves(pairs)
    marginal = np.bincount(first, counts, words) + np.bincount(second, counts, words)
    # The marginals count every pair twice, so a pair of equal words must be counted twice, too.
    ordered = counts * np.where(first == second, 2, 1)
    expected = marginal[first] * marginal[second]
    return np.log(ordered * marginal.sum() / expected)


def summed_pmi(
    ids: Ints, sentence: Ints | Hashes, pairs: Hashes, pmi: Floats, *, window: int
) -> Floats:
    """Return (W,) the sum of each word's PMI with its neighbours in the same sentence.

    Args:
        ids: (W,) the ids of the words; −1 for words that are not in the table.
        sentence: (W,) the number of each word's sentence, ascending.
        pairs: (P,) the keys of the pairs, ascending.
        pmi: (P + 1,) the PMI of the pairs. The last value is the PMI of all other pairs.
    """
    total = np.zeros(len(ids))
    for distance, at in _neighbours(ids, sentence, window):
        found = pmi[places_of_keys(pairs, _pairs(ids, at, distance))]
        total[at] += found
        total[at + distance] += found
    return total


def _neighbours(ids: Ints, sentence: Ints | Hashes, window: int) -> Iterator[tuple[int, Ints]]:
    """Yield each distance, and the first words of the pairs of known words at this distance."""
    for distance in range(1, min(window, len(ids) - 1) + 1):
        near = sentence[distance:] == sentence[:-distance]
        known = (ids[distance:] >= 0) & (ids[:-distance] >= 0)
        yield distance, np.flatnonzero(near & known)


def _pairs(ids: Ints, at: Ints, distance: int) -> Hashes:
    left = ids[at]
    right = ids[at + distance]
    return pair_keys(np.minimum(left, right), np.maximum(left, right))


def sentences_of(words: Words) -> Ints:
    """Return (W,) the number of each word's sentence, ascending over all texts.

    A sentence ends at the end of a text or line, or at final punctuation before a space.
    """
    opens = words.fresh.copy()
    # A stop in "3.5" or "U.S.A" ends no sentence. Chinese and Japanese stops need no space.
    blank_before = words.start[1:] > words.end[:-1]
    before = words.letter[:-1]
    opens[1:] |= np.isin(before, _STOPS) & blank_before
    opens[1:] |= np.isin(before, _UNSPACED_STOPS)
    return opens.cumsum()


@dataclass(kw_only=True)
class Difference(WordWeights):
    """The layer ``difference``: high weights for words typical of the annotated (target) corpus.

    The TF-ICF score is high for words that are frequent in the target corpus and rare elsewhere:

        score(w) = max(0, log(1 + c(w)) · log(p(w) / q(w)))

    where c(w) is the count and p(w) the share of the word w in the target corpus, and q(w) is its
    share in a general corpus, with 1 added to each count. Without ``vectors``, the weight of a word
    is its score. With ``vectors``, the words with the highest scores are anchors, and the weight of
    a word is its cosine similarity to the nearest anchor. Scores favour the best words much more,
    but the setting ``power`` of a masking policy can flatten them. The mean weight is 1 over the
    words of the target corpus. All other words have weight 0.

    Source: Wilf et al. 2023 (Difference-Masking, arXiv 2305.14577), section 3. The 20 anchors and
        the cosine are as in github.com/abwilf/Difference-Masking. The log-counts are as in Reed et
        al. 2006 (TF-ICF): with p(w), the anchors of novels against Wikipedia were "i", "you" and
        "her". The log-ratio, the minimum of 0 and the scale are our own.

    Args:
        general: the general corpus, as for `read_documents`.
        anchors: the number of anchors.
        min_documents: the minimum number of target texts with an anchor (no names of one text).
        vectors: the folder of a checkpoint whose input embeddings are used.
    """

    name = "difference"
    sources = ("general", "vectors")

    general: str = "bundled:wikipedia"
    anchors: int = 20
    min_documents: int = 5
    vectors: str | None = None

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count both corpora; write words.parquet (word, weight, score, count), best score first.

        Raises:
            MaskwiseError: no word sets the corpora apart, or no anchor has a vector.
        """
        target = WordCounts()
        documents = CountTable()
        seen = 0
        for words in blocks(texts):
            target.count(words, words.plain)
            # A stable sort by word keeps texts in order, so `changes` finds a word once per text.
            order = words.key.argsort(kind="stable")
            keys = words.key[order]
            documents.add(keys[changes(keys, words.text[order])])
            seen += len(words.base)
        general = CountTable()
        for words in blocks(document.text for document in read_documents(self.general)):
            general.add(words.key[words.plain])

        scores = tf_icf(target.counts, general.of(target.keys), general.total)
        order = np.argsort(-scores, kind="stable")
        keys = target.keys[order]
        counts = target.counts[order]
        scores = scores[order]
        names = target.names(keys)
        # A corpus may have fewer than ``min_documents`` texts.
        spread = documents.of(keys) >= min(self.min_documents, seen)
        chosen = np.flatnonzero((scores > 0) & spread)[: self.anchors]
        if not len(chosen):
            raise MaskwiseError(
                f"no word sets this corpus apart from {self.general}",
                do="give a different general corpus, or lower min_documents",
            )
        weights = scores
        if self.vectors is not None:
            weights = nearest(vectors_of(names, user_path(self.vectors)), chosen)
        mean = float((weights * counts).sum() / counts.sum())
        if not mean > 0:
            raise MaskwiseError(
                f"no anchor has a vector in {self.vectors}",
                got=[names[place] for place in chosen],
            )
        return self._save(
            folder,
            {
                "word": names,
                "weight": weights / mean,
                "score": scores,
                "count": counts,
            },
        )


def tf_icf(counts: Ints, others: Ints, total_others: int) -> Floats:
    """Return (W,) the TF-ICF score of each word of the target corpus.

    Args:
        counts: (W,) the counts of the words in the target corpus.
        others: (W,) the counts of the same words in the general corpus, which may be 0.
        total_others: the number of words in the general corpus, including repeated words.
    """
    share = counts / max(counts.sum(), 1)
    general = (others + 1) / (total_others + len(counts))
    return np.log1p(counts) * np.log(share / general).clip(min=0)


def nearest(vectors: Matrix, anchors: Ints) -> Floats:
    """Return (W,) each word's cosine similarity to the nearest anchor; 0 in place of less."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / norms.clip(min=1e-12)
    cosines = unit @ unit[anchors].T
    return cosines.max(1).clip(min=0).astype(np.float64)


def vectors_of(words: Sequence[str], folder: Path) -> Matrix:
    """Return (W, d) for each word the mean of the input embeddings of its tokens."""
    from maskwise.models.loading import load_model

    tokenizer = load_tokenizer(str(folder), needs_mask=False)
    # In a text, a space precedes a word. Some tokenizers split a word differently without it.
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    # ``reduceat`` needs at least one token per word, so words without tokens get the token 0.
    tokens = [ids or [0] for ids in encoded["input_ids"]]
    lengths = np.array(list(map(len, tokens)))
    model = load_model(folder, kind=None, seed=0)
    vectors = model.get_input_embeddings().state_dict()["weight"].numpy()
    sums = np.add.reduceat(vectors[np.concatenate(tokens)], offsets(lengths), axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)
