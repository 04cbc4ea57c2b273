"""Annotators that look up the weights of words: frequency, informativeness and difference.

A fit writes a Parquet file with the columns "word" and "weight", which users may edit. Words are
looked up in lower case. Cost: 0.5 µs per word.
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
    """An annotator with one layer of weights. The layer has the name of the annotator.

    Args:
        table: the folder written by a fit. Without a table, the annotator must be fitted.

    Raises:
        MaskwiseError: a setting is out of range, or the table cannot be read.
    """

    table: str | None = None

    name: ClassVar[str]
    unseen: ClassVar[float] = 0.0
    """Weight of words that are not in the table."""
    punctuation: ClassVar[bool] = False
    """Whether punctuation marks and the parts of words after an apostrophe have weights, too."""

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
        # ``find`` returns −1 for missing words, which selects the last weight.
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
            # Settings may name files, and the fit depends on the contents of these files.
            for value in self.settings.values():
                if isinstance(value, str):
                    path = Path(value)
                    content += sorted(filter(Path.is_file, (path, *path.rglob("*"))))
        return digest(self.name, RULES, VERSION, sorted(self.settings.items()), *content)

    @abstractmethod
    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read a corpus, and save a table in ``folder``; return a spec that reads the table."""

    def _save(self, folder: Path, columns: Mapping[str, object], **needed: object) -> str:
        """Write the table; return a spec that reads the table, with ``needed`` as arguments."""
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
        """Return the weight of each word, (W,)."""
        return self._weights[find(self._keys, words.key)]


@dataclass(kw_only=True)
class Frequency(WordWeights):
    """The layer ``frequency``: how often each word or punctuation mark occurs in the corpus."""

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
    """The layer ``informativeness``: a word's summed PMI with its neighbours.

    Sums below 0 become 0, and weights are scaled to a mean of 1.

    Args:
        per: "text" sums over the neighbours of the word in the text; "word" gives a word the same
            weight everywhere, its mean over the corpus.
        window: the maximum number of neighbours on each side.
        words: the maximum number of words in the table, most frequent first.
        min_count: the minimum number of occurrences of a word in the table.
        min_pairs: the minimum number of occurrences of a pair; rarer pairs have PMI 0.
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
        # Word ids exist only after the first pass, so a temporary file keeps the hashes.
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
        # ``find`` needs ascending keys. The id of a word is its index in these keys.
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
        # Weights are divided by their mean over the corpus, or by 1 if this mean is 0.
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
        """The pairs (P,) and their PMI (P + 1,). The last PMI, 0, is for all other pairs."""
        assert self.table, "fit first"
        columns = read_table(Path(self.table) / PAIRS, "pair", "pmi")
        pairs = columns["pair"].to_numpy()
        pmi = columns["pmi"].to_numpy()
        return pairs, np.append(pmi, 0.0)


def pmi_of(pairs: Keys, counts: Ints, *, words: int) -> Floats:
    """Return the PMI (P,) of pairs of word ids, smaller id first, from their counts (P,)."""
    first, second = halves(pairs)
    marginal = np.bincount(first, counts, words) + np.bincount(second, counts, words)
    # The marginals count every pair twice, so a pair of equal words must be counted twice, too.
    ordered = counts * np.where(first == second, 2, 1)
    expected = marginal[first] * marginal[second]
    return np.log(ordered * marginal.sum() / expected)


def summed_pmi(
    ids: Ints, sentence: Ints | Keys, pairs: Keys, pmi: Floats, *, window: int
) -> Floats:
    """Return the sum of each word's PMI with its neighbours, (W,).

    Args:
        ids: (W,) the ids of the words; −1 for words that are not in the table.
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
    """Yield each distance, and the indices of known words with a known word at this distance."""
    for distance in range(1, min(window, len(ids) - 1) + 1):
        near = sentence[distance:] == sentence[:-distance]
        known = (ids[distance:] >= 0) & (ids[:-distance] >= 0)
        yield distance, np.flatnonzero(near & known)


def _pairs(ids: Ints, at: Ints, distance: int) -> Keys:
    left = ids[at]
    right = ids[at + distance]
    return pair_keys(np.minimum(left, right), np.maximum(left, right))


def sentences_of(words: Words) -> Ints:
    """Return the number of each word's sentence, (W,), ascending over all texts.

    A sentence ends at the end of a text or line, or at final punctuation before a space.
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

    The TF-ICF score is high for words that are frequent here but rare in a general corpus:

        score(w) = max(0, log(1 + c(w)) · log(p(w) / q(w)))

    where c and p are the count and share of w in the target corpus, and q is the share of w in the
    general corpus, with 1 added to each count. The words with the highest scores are anchors. With
    ``vectors``, the weight of a word is its cosine similarity to the nearest anchor. Otherwise, the
    weight is the score, which favours the best words much more; the policy's ``power`` can flatten
    the weights. Weights have a mean of 1 over the target corpus; other words have weight 0.

    Source: Wilf et al. 2023 (Difference-Masking, arXiv 2305.14577), section 3. The 20 anchors and
        the cosine are as in github.com/abwilf/Difference-Masking. Log-counts follow Reed et al.
        2006 (TF-ICF): with p(w) instead, the anchors for novels against Wikipedia were "i", "you",
        "her". The log-ratio, the minimum of 0 and the scale are maskwise's.

    Args:
        general: the general corpus, as for `read_documents`.
        anchors: the number of anchors.
        min_documents: the minimum number of target texts with an anchor, which excludes names from
            a single text.
        vectors: a checkpoint folder with input embeddings.
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
            # A stable sort keeps texts in order, so `changes` finds each word once per text.
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
        # In a corpus of few texts, a word cannot occur in ``min_documents`` texts.
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
    """Return the TF-ICF score of each word of the target corpus, (W,).

    Args:
        counts: (W,) the counts of all words in the target corpus.
        others: (W,) the counts of the same words in the general corpus, which may be 0.
        total_others: the number of words in the general corpus.
    """
    share = counts / max(counts.sum(), 1)
    general = (others + 1) / (total_others + len(counts))
    return np.log1p(counts) * np.log(share / general).clip(min=0)


def nearest(vectors: Matrix, anchors: Ints) -> Floats:
    """Return each word's cosine similarity to the nearest anchor, (W,), at least 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / norms.clip(min=1e-12)
    cosines = unit @ unit[anchors].T
    return cosines.max(1).clip(min=0).astype(np.float64)


def vectors_of(words: Sequence[str], folder: Path) -> Matrix:
    """Return the input embeddings of words, (W, d), averaged over the tokens of a word."""
    from maskwise.models import load_model

    tokenizer = load_tokenizer(str(folder), needs_mask=False)
    # Some tokenizers split a word differently without a space before it.
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)
    # ``reduceat`` needs at least one token per word; token 0 stands in for words without tokens.
    tokens = [ids or [0] for ids in encoded["input_ids"]]
    lengths = np.array(list(map(len, tokens)))
    model = load_model(folder, kind=None, seed=0)
    vectors = model.get_input_embeddings().state_dict()["weight"].numpy()
    sums = np.add.reduceat(vectors[np.concatenate(tokens)], offsets(lengths), axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)
