"""Phrases: n-grams of 2 to 5 words that occur together more often than by chance. A phrase can be
masked as a whole.

A fit builds a vocabulary of phrases from a corpus. The annotator then finds these phrases in any
text by their hashes. The vocabulary is a Parquet file of phrases as plain text, best phrase first.
You may edit it. A text file with one phrase per line works, too.

- A phrase occurs more than 10 times, and in at least 5 documents. The paper has only the first
  threshold. Without the second, names from single articles ("stavely makepeace") get the best
  scores. Wording that many articles share ("mollusk in the family conidae") passes both.
- Of the phrases, 50 % have 2 words, 25 % have 3, 12.5 % have 4 and 12.5 % have 5, as in the
  published list. If the corpus has too few phrases of one length, the vocabulary is smaller.
- The number of phrases is 800,000 × √(words / 2.6 billion), because the published list has 800,000
  phrases from 16 GB of text. About half of the words of a text are then in phrases (.495 on 9
  million words of Wikipedia, with 47,000 phrases). The paper chose its number of phrases to reach
  the same share. The published score favours frequent n-grams: "of the" is among the best phrases,
  and "via the" is among the last. With a third of the phrases, a third of the words are in
  phrases, and few phrases are like "via the".
- Fragments are dropped, which the paper does not do. An n-gram ("seri begawan") is a fragment if
  at least 9 in 10 of its occurrences are inside one (n+1)-gram, and if this (n+1)-gram is in the
  vocabulary or is itself a fragment. In a text, the longer phrase would be used anyway. Dropping
  the fragment therefore makes space for another phrase. If "p q" occurs 100 times, "p q r" 90 times
  and "p q r s" 81 times, only "p q r s" is kept.
- If phrases overlap in a text, the longest is used. Of equally long phrases, the leftmost is used.
  The paper chooses at random, but a layer must depend only on the text.

Cost: counting 9 million words takes 20 to 30 s and 310 MB; finding phrases takes 0.6 µs per word.
Source: Levine et al. 2021 (PMI-Masking, arXiv 2010.01825), section 3; README of
    github.com/AI21Labs/pmi-masking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskwise.annotate.counts import (
    RULES,
    Counted,
    Floats,
    Hashes,
    Ints,
    Words,
    blocks,
    count_ngrams,
    places_of_keys,
    read_parquet,
    rehashed,
    texts_in,
    words_of,
)
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_json, write_json
from maskwise.base.specs import Call, user_path
from maskwise.masking.segments import offsets
from maskwise.text.layers import CharSpans, Found, Layer, digest
from maskwise.text.opening import split_lines
from maskwise.text.words import VERSION

SHARES = {
    2: 0.5,
    3: 0.25,
    4: 0.125,
    5: 0.125,
}
"""The share of the phrases that have 2, 3, 4 and 5 words."""
FRAGMENT = 0.9
FEW = 0.2
"""If the vocabulary has less than this share of the wanted phrases, the user gets a notice. In this
case, so few n-grams passed the thresholds that nearly all are in the vocabulary, whatever their
scores. A corpus of 100,000 words reaches a share of .09, with "is a" among the best phrases. A
corpus of 300,000 words reaches .26."""
FILE = "phrases.parquet"
FACTS = "facts.json"


@dataclass(kw_only=True)
class Phrases:
    """The layer ``phrase``: groups of 2 to 5 words that belong together, found by a vocabulary.

    Args:
        vocabulary: the folder that a fit wrote, or a text file with one phrase per line. Without a
            vocabulary, the annotator must be fitted to a corpus. The other settings are for the
            fit.
        size: the maximum number of phrases. None computes it from the number of words.
        min_count: a phrase must occur more than this many times.
        min_documents: a phrase must occur in at least this many documents (1 in the paper).
        paper: whether to score as in the paper's equation, with log p(w). Otherwise the score has
            2·log p(w), with which the published lists were made (see ``score_ngrams``).

    Raises:
        MaskwiseError: a setting is out of range, or the vocabulary cannot be read.
    """

    vocabulary: str | None = None
    size: int | None = None
    min_count: int = 10
    min_documents: int = 5
    paper: bool = False

    name: ClassVar = "phrases"
    layers: ClassVar = {"phrase": Layer("spans")}

    def __post_init__(self) -> None:
        too_small = self.size is not None and self.size < 2
        if too_small or self.min_count < 0 or self.min_documents < 1:
            raise MaskwiseError(
                "phrases: a setting is out of range",
                got=f"size={self.size}, min_count={self.min_count}, "
                f"min_documents={self.min_documents}",
                allowed="size ≥ 2, min_count ≥ 0, min_documents ≥ 1",
            )
        if self.vocabulary == "":
            raise MaskwiseError("phrases: vocabulary is empty", do="give a folder or a file")
        self._path = user_path(self.vocabulary or "")
        self._phrases: list[str] = []
        if self.fitted:
            self._phrases = read_phrases(self._path)

    @property
    def fitted(self) -> bool:
        return self.vocabulary is not None

    @cached_property
    def version(self) -> str:
        settings = (self.size, self.min_count, self.min_documents, self.paper)
        content = self._phrases if self.fitted else settings
        return digest(self.name, RULES, VERSION, *content)

    @property
    def notice(self) -> str | None:
        """A message for the user if the vocabulary is empty or small; otherwise None."""
        if not self.fitted:
            return None
        # A fit writes the file FACTS. Without this file, the vocabulary is a user's text file.
        if not (self._path / FACTS).is_file():
            if self._phrases:
                return None
            return f"{self._path} has no phrase, so the layer is empty; write a phrase on each line"
        facts = read_json(self._path / FACTS)
        if facts is None:
            return f"{self._path / FACTS} is damaged; fit the phrases again"
        if self._phrases and facts["phrases"] >= FEW * facts["size"]:
            return None
        number = "no"
        effect = "so the layer is empty"
        if self._phrases:
            number = f"only {len(self._phrases):,}"
            effect = "and they are often pairs such as 'of the'"
        count = facts["min_count"]
        return (
            f"{number} phrases among these {facts['words']:,} words (min_count={count}, "
            f"min_documents={facts['min_documents']}), {effect}; give more text, or use "
            f"phrases(min_count={min(count, 2)}, min_documents=1)"
        )

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Build a vocabulary from a corpus, and write phrases.parquet and facts.json to ``folder``.

        If no phrase is frequent enough, the vocabulary is empty, and the fitted annotator has a
        `notice`. An error would end the run, with all its other annotators.
        """
        floors = {"min_count": self.min_count, "min_documents": self.min_documents}
        counted = count_ngrams(texts, folder, **floors)
        size = self.size
        if size is None:
            size = vocabulary_size(counted.total)
        chosen = choose_phrases(counted, size=size, paper=self.paper)
        pq.write_table(chosen, folder / FILE)
        write_json(
            folder / FACTS,
            {
                "words": counted.total,
                "phrases": len(chosen),
                "size": size,
                "counts_too_low_by_at_most": counted.lost,
                **floors,
                "paper": self.paper,
            },
        )
        return str(Call(self.name, kwargs={"vocabulary": str(folder)}))

    def annotate(self, texts: list[str]) -> list[Found]:
        assert self.fitted, "fit first"
        found = []
        for words in blocks(texts):
            for spans in find_phrases(words, self._keys):
                found.append({"phrase": spans})
        return found

    @cached_property
    def _keys(self) -> dict[int, Hashes]:
        return phrase_keys(self._phrases)


def vocabulary_size(words: int) -> int:
    """Return the usual number of phrases for a corpus of ``words`` words."""
    return round(800_000 * (words / 2.6e9) ** 0.5)


def read_phrases(path: Path) -> list[str]:
    """Return the phrases of a saved vocabulary, or of a text file with one phrase per line."""
    if path.is_dir():
        file = path / FILE
        return texts_in(file, read_parquet(file, "phrase")["phrase"], what="phrase")
    try:
        lines = split_lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MaskwiseError(
            f"cannot read the phrases {path}: {error}",
            do="give the folder of a fit, or a UTF-8 text file with a phrase on each line",
        ) from None
    return list(filter(None, map(str.strip, lines)))


def choose_phrases(
    counted: Counted,
    *,
    size: int,
    paper: bool = False,
) -> pa.Table:
    """Choose the best n-grams of each length n, up to ``SHARES[n]`` of ``size``.

    Args:
        counted: the frequent n-grams of the corpus.
        size: the maximum number of phrases.
        paper: as in ``score_ngrams``.

    Returns:
        A table with the columns phrase, length (number of words), count, documents (number of
        documents with the phrase) and score. The rows are sorted by rank / share, where the rank is
        that among the phrases of the same length. For any k, the first k rows then have the lengths
        in the proportions of ``SHARES``.
    """
    tables = []
    scores = score_ngrams(counted, paper=paper)
    # Ids of the (n + 1)-grams that are phrases or fragments.
    inside = np.zeros(0, dtype=np.int64)
    for n in sorted(scores, reverse=True):
        level = counted.levels[n - 1]
        # For each n-gram, the largest count of an (n + 1)-gram that contains the n-gram.
        longer = np.zeros(len(level.keys), dtype=np.int64)
        if len(inside):
            above = counted.levels[n]
            for part in above.parts(inside):
                np.maximum.at(longer, part, above.counts[inside])
        fragment = longer >= FRAGMENT * level.counts
        # With an infinite cost, fragments are sorted last, where they are cut off.
        cost = np.where(fragment, np.inf, -scores[n])
        most = min(round(size * SHARES[n]), np.count_nonzero(~fragment))
        best = cost.argsort(kind="stable")[:most]
        inside = np.union1d(best, np.flatnonzero(fragment))
        table = pa.table(
            {
                "phrase": pa.array(counted.texts(n, best), pa.string()),
                "length": np.full(len(best), n),
                "count": level.counts[best],
                "documents": level.documents[best],
                "score": scores[n][best],
                "order": np.arange(len(best)) / SHARES[n],
            }
        )
        tables.append(table)
    ranked = pa.concat_tables(tables).sort_by([("order", "ascending"), ("length", "ascending")])
    return ranked.drop_columns("order")


# Finding phrases in texts
# -------------------------------------------------------------------------------------------


def phrase_keys(phrases: list[str]) -> dict[int, Hashes]:
    """Return the hashes of phrases of two or more words, keyed by the number of words.

    Raises:
        MaskwiseError: a phrase has punctuation.
    """
    if not phrases:
        return {}
    words = words_of(phrases)
    if not words.plain.all():
        raise MaskwiseError(
            "phrases must not have punctuation",
            got=phrases[words.text[np.argmin(words.plain)]],
        )
    lengths = np.bincount(words.text, minlength=len(phrases))
    first = offsets(lengths)
    keys = {}
    for n in np.unique(lengths[lengths > 1]).tolist():
        grams = _gram_keys(words.key, n)
        keys[n] = np.unique(grams[first[lengths == n]])
    return keys


def find_phrases(words: Words, keys: Mapping[int, Hashes]) -> list[CharSpans]:
    """Find the phrases of each text. If phrases overlap, see the rules at the top of this file.

    Args:
        words: the words of the texts.
        keys: the result of ``phrase_keys``.
    """
    size = len(words.key)
    # Words without punctuation between them get the same number. A phrase must have one number, so
    # it never crosses punctuation.
    border = words.fresh | ~words.plain
    border[1:] |= ~words.plain[:-1]
    stretch = border.cumsum()
    taken = np.zeros(size, dtype=bool)
    length_at = np.zeros(size, dtype=np.int64)
    for n in sorted(keys, reverse=True):
        if n > size:
            continue
        used = np.append(0, taken.cumsum())
        places = size - n + 1
        unbroken = stretch[n - 1 :] == stretch[:places]
        free = used[n:] == used[:places]
        at = np.flatnonzero(unbroken & free)
        grams = _gram_keys(words.key, n)[at]
        is_phrase = places_of_keys(keys[n], grams) >= 0
        at = leftmost(at[is_phrase], n)
        length_at[at] = n
        taken[(at[:, None] + np.arange(n)).ravel()] = True
    at = np.flatnonzero(length_at)
    return words.spans(at, at + length_at[at] - 1)


def leftmost(at: Ints, width: int) -> Ints:
    """Select positions from the left that are at least ``width`` apart. ``at`` must ascend."""
    taken = []
    free = 0
    for place in at.tolist():
        if place >= free:
            taken.append(place)
            free = place + width
    return np.array(taken, dtype=np.int64)


def _gram_keys(keys: Hashes, n: int) -> Hashes:
    """Return (W,) the hash of the n-gram that begins at each word.

    The last n − 1 hashes are meaningless, because fewer than n words remain.
    """
    total = keys
    for skip in range(1, n):
        total = rehashed(total)
        total[:-skip] += keys[skip:]
    return total


# Scoring n-grams
# -------------------------------------------------------------------------------------------


def score_ngrams(counted: Counted, *, paper: bool) -> dict[int, Floats]:
    """Score the n-grams of each length n ≥ 2. A better phrase has a higher score.

        score(w) = min over segmentations σ of w into ≥ 2 parts of  2·log p(w) − Σ_{s∈σ} log p(s)

    where p is the count divided by the number of words in the corpus. The published lists were made
    with the factor 2, which favours frequent n-grams. Equation 3 of the paper does not have this
    factor.

    Args:
        counted: the frequent n-grams of the corpus.
        paper: whether to leave out the factor 2.

    Returns:
        The scores of the n-grams in the order of their ids, keyed by length.
    """
    # best[n − 1] has, for each n-gram, the largest Σ log p over all its segmentations, including
    # the n-gram itself. If an n-gram is cut after k words, Σ log p is log p of these k words plus
    # the best value of the other words.
    log_p = [np.log(level.counts / counted.total) for level in counted.levels]
    best = [log_p[0]]
    scores = {}
    for n in range(2, len(counted.levels) + 1):
        every = np.arange(len(log_p[n - 1]))
        # heads[k] and tails[k] are the ids of the first and the last n − k words.
        heads = [every]
        tails = [every]
        for length in range(n, 1, -1):
            level = counted.levels[length - 1]
            heads.append(level.parts(heads[-1])[0])
            tails.append(level.parts(tails[-1])[1])
        cuts = []
        for k in range(1, n):
            first_words = log_p[k - 1][heads[n - k]]
            other_words = best[n - k - 1][tails[k]]
            cuts.append(first_words + other_words)
        cut = np.max(cuts, axis=0)
        factor = 1 if paper else 2
        scores[n] = factor * log_p[n - 1] - cut
        best.append(np.maximum(log_p[n - 1], cut))
    return scores
