"""Annotators that look up word weights in a table: frequency, informativeness and difference.

A fit writes the table, a Parquet file with the columns "word" and "weight", which users may edit.
Words are looked up in lower case. Cost: 0.5 µs per word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

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
)
from maskwise.annotate.store import read_table, write_table
from maskwise.errors import MaskwiseError
from maskwise.segments import changes, offsets
from maskwise.specs import Call
from maskwise.text import load_tokenizer, read_documents
from maskwise.text.layers import Found, Layer, digest
from maskwise.text.words import VERSION

FILE = "words.parquet"
Matrix = NDArray[np.float32]


@dataclass(kw_only=True)
class WordWeights(ABC):
    """An annotator with one layer of weights, which has the annotator's name.

    Args:
        table: the folder written by a fit. Without a table, the annotator must be fitted, with the
            other settings.

    Raises:
        MaskwiseError: a setting is out of range, or the table cannot be read.
    """

    table: str | None = None

    name: ClassVar[str]
    unseen: ClassVar[float] = 0.0
    """The weight of words that are missing from the table."""
    punctuation: ClassVar[bool] = False
    """Whether punctuation and parts after an apostrophe have weights too."""

    def __post_init__(self) -> None:
        for value in self.settings.values():
            if isinstance(value, int) and value < 1:
                raise MaskwiseError(f"{self.name}: settings must be at least 1", got=self.settings)
        self._content: list[object] = []
        if not self.table:
            return
        path = Path(self.table) / FILE
        columns = read_table(path, "word", "weight")
        words = columns["word"].to_pylist()
        weights = columns["weight"].to_numpy().astype(np.float64)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise MaskwiseError(f"{path}: weights must be finite and ≥ 0")
        self._content = ["\n".join(words), weights.tobytes()]
        keys = keys_of(words)
        order = keys.argsort(kind="stable")
        self._keys = keys[order]
        # ``find`` gives missing words the index −1, which is the last weight.
        self._weights = np.append(weights[order], self.unseen)

    @property
    def settings(self) -> dict[str, object]:
        """All arguments except the table; they are part of the version."""
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
            # The result of a fit depends on the files that the settings name.
            for value in self.settings.values():
                if isinstance(value, str):
                    path = Path(value)
                    content += sorted(filter(Path.is_file, (path, *path.rglob("*"))))
        return digest(self.name, RULES, VERSION, sorted(self.settings.items()), *content)

    @abstractmethod
    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read a corpus once and save a table in ``folder``; return a spec that reads the table."""

    def _save(self, folder: Path, columns: Mapping[str, object], **needed: object) -> str:
        """Write the table; ``needed`` are further arguments for the spec that reads the table."""
        write_table(folder / FILE, columns)
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
        """(W,) the weight of each word."""
        return self._weights[find(self._keys, words.key)]


@dataclass(kw_only=True)
class Frequency(WordWeights):
    """The layer ``frequency``: the counts of words, in lower case, and of punctuation marks."""

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
        return self._save(folder, {"word": seen.names(keys), "weight": weights})


PAIRS = "pairs.parquet"
_STOPS = list(map(ord, ".!?…"))
_UNSPACED_STOPS = list(map(ord, "。！？"))


@dataclass(kw_only=True)
class Informativeness(WordWeights):
    """The layer ``informativeness``: a word's PMI with its neighbours, clipped at 0, with mean 1.

    Args:
        per: with "text", a word's weight depends on its neighbours in the text; with "word", a
            word's weight is the same everywhere.
        window: maximum number of neighbours on each side.
        words: size of the table, which has the most frequent words.
        min_count: the minimum number of times that a word must occur to be in the table.
        min_pairs: the number of occurrences below which a pair's PMI is set to 0.
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
            raise MaskwiseError("informativeness: invalid per", got=self.per, allowed="text, word")

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count words and pairs; save words.parquet (word, weight, count) and pairs.parquet.

        Raises:
            MaskwiseError: no word is frequent enough.
        """
        seen = Vocabulary()
        # Word ids are known only after the first pass, so the corpus is kept as hashes.
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
                f"no word occurs {self.min_count} times",
                do="give more text, or lower min_count",
            )
        # Sorted, because ``find`` searches ascending keys; a word's id is its index there.
        frequent = np.sort(frequent)
        known = seen.keys[frequent]
        counts = seen.counts[frequent]

        met = Table()
        for keys, sentence in corpus:
            ids = find(known, keys)
            for distance, at in _neighbours(ids, sentence, self.window):
                met.add(_pairs(ids, at, distance))
        keep = met.counts >= self.min_pairs
        pairs = met.keys[keep]
        pmi = pmi_of(met.keys, met.counts, words=len(known))[keep]

        total = np.zeros(len(known))
        positive = 0.0
        number = 0
        for keys, sentence in corpus:
            ids = find(known, keys)
            sums = summed_pmi(ids, sentence, pairs, np.append(pmi, 0.0), window=self.window)
            in_table = ids >= 0
            sums = sums[in_table]
            total += np.bincount(ids[in_table], sums, len(known))
            positive += float(sums.clip(min=0).sum())
            number += len(sums)
        rate = (total / counts).clip(min=0)
        # Weights are divided by their mean over the corpus, so their new mean is 1; a mean of 0 is
        # replaced with 1.
        by_word = float((rate * counts).sum() / counts.sum()) or 1.0
        by_text = positive / number or 1.0
        scaled = (pmi / by_text).astype(np.float32)
        write_table(folder / PAIRS, {"pair": pairs, "pmi": scaled})
        return self._save(
            folder,
            {"word": seen.names(known), "weight": rate / by_word, "count": counts},
            per=self.per,
            window=self.window,
        )

    def weigh(self, words: Words) -> Floats:
        if self.per == "word":
            return super().weigh(words)
        ids = find(self._keys, words.key)
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
    def _pmi(self) -> tuple[Keys, Floats]:
        """(P,) the pairs and (P + 1,) their PMI; the last value, 0, is for all other pairs."""
        assert self.table, "fit first"
        columns = read_table(Path(self.table) / PAIRS, "pair", "pmi")
        pairs = columns["pair"].to_numpy()
        pmi = columns["pmi"].to_numpy()
        return pairs, np.append(pmi, 0.0)


def pmi_of(pairs: Keys, counts: Ints, *, words: int) -> Floats:
    """(P,) the PMI of pairs of word ids, smaller id first, from their counts in both orders."""
    first, second = halves(pairs)
    marginal = np.bincount(first, counts, words) + np.bincount(second, counts, words)
    # The marginals count each pair from both sides, so a pair of equal words also counts twice.
    ordered = counts * np.where(first == second, 2, 1)
    expected = marginal[first] * marginal[second]
    return np.log(ordered * marginal.sum() / expected)


def summed_pmi(
    ids: Ints, sentence: Ints | Keys, pairs: Keys, pmi: Floats, *, window: int
) -> Floats:
    """(W,) each word's summed PMI with its neighbours.

    Args:
        ids: (W,) the ids of the words; −1 for words that are missing from the table.
        sentence: (W,) the number of each word's sentence, ascending.
        pairs: (P,) the keys of the pairs, ascending.
        pmi: (P + 1,) the PMI of the pairs; the last value is for all other pairs.
    """
    total = np.zeros(len(ids))
    for distance, at in _neighbours(ids, sentence, window):
        found = pmi[find(pairs, _pairs(ids, at, distance))]
        total[at] += found
        total[at + distance] += found
    return total


def _neighbours(ids: Ints, sentence: Ints | Keys, window: int) -> Iterator[tuple[int, Ints]]:
    """Yield, for each distance, the known words with a known neighbour in the same sentence."""
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
    # A stop inside "3.5" or "U.S.A" ends no sentence. Chinese and Japanese stops need no space.
    blank_before = words.start[1:] > words.end[:-1]
    before = words.letter[:-1]
    opens[1:] |= np.isin(before, _STOPS) & blank_before
    opens[1:] |= np.isin(before, _UNSPACED_STOPS)
    return opens.cumsum()


@dataclass(kw_only=True)
class Difference(WordWeights):
    """The layer ``difference``: high weights for words that distinguish the target corpus.

    Words get TF-ICF scores, high if frequent in the target corpus but rare in the general corpus:

        score(w) = max(0, log(1 + c(w)) · log(p(w) / q(w)))

    where c and p are the count and share of w in the target corpus, and q is the share of w in the
    general corpus, with 1 added to each count. The words with the highest scores are anchors, and a
    word's weight is its cosine to the nearest anchor. Without ``vectors``, the weight is the score,
    which favours the best words much more; the policy's ``power`` can flatten the weights. Weights
    average 1 over the target corpus; words that are not in this corpus have weight 0.

    Source: Wilf et al. 2023 (Difference-Masking, arXiv 2305.14577), section 3; 20 anchors and the
        cosine to the nearest as in github.com/abwilf/Difference-Masking. Log-counts follow Reed et
        al. 2006 (TF-ICF): with p(w), the anchors for novels against Wikipedia were "i", "you",
        "her". The log-ratio, the floor under the cosine and the scale are ours.

    Args:
        general: the general corpus, as for `read_documents`.
        anchors: number of anchors.
        min_documents: minimum number of target texts in which an anchor must occur; this excludes
            names from a single text.
        vectors: a checkpoint folder, whose input embeddings are used.
    """

    name = "difference"

    general: str = "bundled:wikipedia"
    anchors: int = 20
    min_documents: int = 5
    vectors: str | None = None

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count both corpora; save words.parquet (word, weight, score, count), best score first.

        Raises:
            MaskwiseError: no word sets the corpora apart, or no anchor has a vector.
        """
        target = Vocabulary()
        documents = Table()
        seen = 0
        for words in blocks(texts):
            target.count(words, words.plain)
            # A stable sort keeps the texts in order, so each word is counted once per text.
            order = words.key.argsort(kind="stable")
            keys = words.key[order]
            documents.add(keys[changes(keys, words.text[order])])
            seen += len(words.base)
        general = Table()
        for words in blocks(document.text for document in read_documents(self.general)):
            general.add(words.key[words.plain])

        scores = tf_icf(target.counts, general.of(target.keys), general.total)
        order = np.argsort(-scores, kind="stable")
        keys = target.keys[order]
        counts = target.counts[order]
        scores = scores[order]
        names = target.names(keys)
        # If a corpus has few texts, no word can occur in many texts.
        spread = documents.of(keys) >= min(self.min_documents, seen)
        chosen = np.flatnonzero((scores > 0) & spread)[: self.anchors]
        if not len(chosen):
            raise MaskwiseError(
                f"no word sets this corpus apart from {self.general}",
                do="give a different general corpus, or lower min_documents",
            )
        weights = scores
        if self.vectors is not None:
            weights = nearest(vectors_of(names, Path(self.vectors)), chosen)
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
    """(W,) the TF-ICF score of each word of the target corpus.

    Args:
        counts: (W,) the counts of all words in the target corpus.
        others: (W,) the counts of the same words in the general corpus, which may be 0.
        total_others: the number of words in the general corpus.
    """
    share = counts / max(counts.sum(), 1)
    general = (others + 1) / (total_others + len(counts))
    return np.log1p(counts) * np.log(share / general).clip(min=0)


def nearest(vectors: Matrix, anchors: Ints) -> Floats:
    """(W,) each word's cosine to the nearest anchor, at least 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / norms.clip(min=1e-12)
    cosines = unit @ unit[anchors].T
    return cosines.max(1).clip(min=0).astype(np.float64)


def vectors_of(words: Sequence[str], folder: Path) -> Matrix:
    """(W, d) the input embeddings of words in a checkpoint, averaged over each word's tokens."""
    from maskwise.models import load_model

    tokenizer = load_tokenizer(str(folder), needs_mask=False)
    # Words follow a space, as inside a text: some tokenizers split a text's first word differently.
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    # ``reduceat`` needs at least one token per word.
    tokens = [ids or [0] for ids in encoded["input_ids"]]
    lengths = np.array(list(map(len, tokens)))
    model = load_model(folder, kind=None, seed=0)
    vectors = model.get_input_embeddings().state_dict()["weight"].numpy()
    sums = np.add.reduceat(vectors[np.concatenate(tokens)], offsets(lengths), axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)
