"""Counting n-grams of words, and scoring how much more than their parts they are.

Counting goes up one length at a time: an n-gram is a pair of overlapping (n−1)-grams, and only pairs of frequent
ones are counted, as no n-gram is more frequent than its parts. So nothing rare is kept beyond one length. The text is
read once and kept as ids in a temporary file, 16 bytes a word.

Counts are exact as long as the candidates of one length fit the table: 15 million, of which 9 million words of
Wikipedia have 1.4. Beyond that ``Counted.lost`` says by how much any may be too low; with a table of 300,000 for these
it was 7, and 98 % of the phrases were the same.

N-grams never cross punctuation, the end of a line or of a document.

Cost: 9 million words, all n-grams of up to 5, in 20 to 30 s and 310 MB on one core.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import Vocabulary, Words, blocks
from maskwise.annotate.tables import Ints, Keys, Spill, Table, find, summed

# In the spilled keys, where no word is; no pair of ids is as large. As ids they are −1 and −2.
_BORDER, _DOCUMENT = np.uint64(2**64 - 1), np.uint64(2**64 - 2)
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)


class Level(NamedTuple):
    """The G frequent n-grams of one length, by ascending key; an n-gram's place here is its id."""

    keys: Keys  # a word's hash; of longer ones, the ids of its first and its last n−1 words, 32 bits each
    counts: Ints
    documents: Ints  # in how many texts it stands

    def part(self, ids: Ints, *, last: bool) -> Ints:
        """The ids of the first (or last) n−1 words of these n-grams, one level below."""
        keys = self.keys[ids]
        return (keys & _LOW if last else keys >> _HALF).astype(np.int64)


class Counted(NamedTuple):
    """What a corpus has: its frequent n-grams by length (1 first), the number of its words, the error bound."""

    levels: list[Level]
    total: int
    lost: int
    names: Vocabulary

    def words(self, length: int, ids: Ints) -> list[Ints]:
        """The places of the first, second, … word of these n-grams among the words (level 1)."""
        places = []
        for skip in range(length):
            part = ids
            for level in range(length, 1, -1):
                part = self.levels[level - 1].part(part, last=length - level < skip)
            places.append(part)
        return places

    def texts(self, length: int, ids: Ints) -> list[str]:
        """The n-grams themselves, words with a space between them."""
        columns = [self.names.names(self.levels[0].keys[part]) for part in self.words(length, ids)]
        return [" ".join(words) for words in zip(*columns)]


def count_ngrams(
    texts: Iterable[str], folder: Path, *, min_count: int = 10, min_documents: int = 1, longest: int = 5,
    limit: int = 15_000_000,
) -> Counted:  # fmt: skip
    """Count n-grams of up to ``longest`` words that occur more than ``min_count`` times, in enough documents.

    Args:
        texts: one document each; read once.
        folder: where the corpus is kept as ids meanwhile; nothing stays there.
        limit: most distinct n-grams of one length in memory, some 100 bytes each while tables are merged.
    """
    names, corpus = Vocabulary(), Spill(folder, np.uint64)
    for words in blocks(texts):
        names.add(words, words.plain)
        corpus.write(_bordered(words))
    ids, level = _identify(corpus, names.table, folder, min_count, min_documents)
    levels, lost = [level], names.table.lost
    for _ in range(2, longest + 1):
        table, pairs = Table(limit=limit), Spill(folder, np.uint64)
        for block in ids:
            found = _pairs(block)
            table.add(found[found < _DOCUMENT])
            pairs.write(found)
        ids, level = _identify(pairs, table, folder, min_count, min_documents)
        levels.append(level)
        lost = max(lost, table.lost)
    return Counted(levels, names.table.total, lost, names)


def _bordered(words: Words) -> Keys:
    """Keys of words in order, with a border for each punctuation mark and before each line and document."""
    keys = np.where(words.plain, words.key, _BORDER)
    at = np.flatnonzero(words.fresh)
    opens = np.append(True, words.text[at[1:]] != words.text[at[:-1]])[: len(at)]
    return np.insert(keys, at, np.where(opens, _DOCUMENT, _BORDER))


def _pairs(ids: Ints) -> Keys:
    """The keys of the n-grams that begin at each place, from the ids of (n−1)-grams."""
    behind = np.append(ids[1:], -1)
    keys = (ids.astype(np.uint64) << _HALF) | behind.astype(np.uint64)
    return np.where((ids >= 0) & (behind >= 0), keys, np.where(ids == -2, _DOCUMENT, _BORDER))


def _identify(
    corpus: Spill, table: Table, folder: Path, min_count: int, min_documents: int
) -> tuple[Spill, Level]:
    """The n-grams that are frequent, and the corpus with their ids in place of their keys."""
    frequent = table.counts > min_count
    keys, counts = table.keys[frequent], table.counts[frequent]
    documents = np.zeros(len(keys), dtype=np.int64)
    for block in corpus:
        # A document lies in one block, so distinct pairs of document and n-gram can be counted block by block.
        number, found = np.cumsum(block == _DOCUMENT), find(keys, block)
        there = found >= 0
        pairs, _ = summed((number[there].astype(np.uint64) << _HALF) | found[there].astype(np.uint64))
        documents += np.bincount((pairs & _LOW).astype(np.int64), minlength=len(keys))
    kept = documents >= min_documents
    keys = keys[kept]
    ids = Spill(folder, np.int64)
    for block in corpus:
        ids.write(np.where(block == _DOCUMENT, -2, find(keys, block)))
    return ids, Level(keys, counts[kept], documents[kept])


def score_ngrams(counted: Counted, *, paper: bool = False) -> dict[int, NDArray[np.float64]]:
    """The score of every n-gram by its id, for every length from 2: higher is more of a phrase.

        score(w) = min over segmentations σ of w into ≥ 2 parts of  2·log p(w) − Σ_{s∈σ} log p(s)

    With one log p(w) it is equation 3 of the paper (``paper=True``); the second one favours frequent n-grams and
    made the published lists. p = count / words of the corpus.

    Source: Levine et al. 2021 (PMI-Masking, arXiv 2010.01825), section 3; README of AI21Labs/pmi-masking.
    """
    # best[n − 1]: the largest Σ log p over all ways to cut an n-gram, not at all included. An n-gram cut behind its
    # first k words is worth log p of those and the best of the rest.
    log_p = [np.log(level.counts / counted.total) for level in counted.levels]
    best, scores = [log_p[0]], {}
    for n in range(2, len(counted.levels) + 1):
        heads, tails = [np.arange(len(log_p[n - 1]))], [np.arange(len(log_p[n - 1]))]
        for length in range(n, 1, -1):  # heads[k], tails[k]: the first and the last n − k words
            heads.append(counted.levels[length - 1].part(heads[-1], last=False))
            tails.append(counted.levels[length - 1].part(tails[-1], last=True))
        cuts = [log_p[k - 1][heads[n - k]] + best[n - k - 1][tails[k]] for k in range(1, n)]
        cut = np.max(cuts, axis=0)
        scores[n] = (1 if paper else 2) * log_p[n - 1] - cut
        best.append(np.maximum(log_p[n - 1], cut))
    return scores
