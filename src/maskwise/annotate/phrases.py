"""Phrases: n-grams of 2 to 5 words that come together more often than chance, masked as one unit.

A vocabulary is made once from a corpus (the second half of this file counts and
scores), and found again in any text by hashing. It is a Parquet file with the phrases as plain
text, best first, so it can be read, cut and mended; a text file with one phrase a line serves as
well.

- Phrases occur more than 10 times in at least 5 documents. The floor of documents is ours: without
  it the best scores are names of heroes of single articles ("stavely makepeace", 17 times in one).
  Templates that stand in many articles ("mollusk in the family conidae") pass it.
- Shares of lengths 2, 3, 4, 5 as published: 50, 25, 12.5 and 12.5 %; a length that a corpus has too
  few of is not made up for by others.
- Size: 800,000 × √(words / 2.6 billion), the published list being for 16 GB of text. That keeps
  about half of all words in phrases, by which the published size was chosen (.495 on 9 million
  words of Wikipedia, 47,000 phrases). Expect phrases such as "of the" among the best and "via the"
  among the last: the published score favours frequent n-grams. A third of the size has few of the
  latter and covers a third of the words.
- Fragments are left out: n-grams of which 9 in 10 stand inside one longer phrase of the vocabulary
  ("seri begawan"). The longer one wins there anyway, so this makes room and changes little else. It
  is ours, too.
- Of overlapping phrases in a text the longer ones win, among equally long ones the leftmost (the
  paper draws one of them): a layer is a function of its text. What is left are whole words, which
  is the policy's affair.

Cost: 9 million words are counted in 20 to 30 s and 310 MB on one core; phrases are found at 0.6 µs
    a word.
Source: Levine et al. 2021 (PMI-Masking, arXiv 2010.01825), section 3; README of
    github.com/AI21Labs/pmi-masking.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import (
    RULES,
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
    mixed,
    read_table,
    words_of,
    write_table,
)
from maskwise.errors import MaskwiseError
from maskwise.specs import Call
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.readers import lines_of
from maskwise.text.words import VERSION

SHARES = {2: 0.5, 3: 0.25, 4: 0.125, 5: 0.125}
FRAGMENT = 0.9
FEW = 0.2
"""A share of the size that goes with the corpus: below it the floors, not the scores, choose.
100,000 words have .09 of it, and "is a" is among the best; 300,000 have .26."""
FILE, FACTS = "phrases.parquet", "facts.json"


@dataclass(frozen=True)
class Phrase:
    """A phrase of a vocabulary: its words, how often and in how many documents it stands, and its
    score.
    """

    phrase: str
    length: int
    count: int
    documents: int
    score: float


COLUMNS = tuple(Phrase.__annotations__)


class Phrases:
    """The layer ``phrase``: every phrase of a vocabulary that stands in a text.

    Args:
        vocabulary: the folder that an earlier fit has filled, or a text file with one phrase a
            line. Without it the annotator is to be fitted, with the settings that follow.
        size: most phrases; without it by the size of the corpus.
        min_count: phrases occur more often than this, …
        min_documents: … and in at least so many documents (1: as published).
        paper: score with one log p(w), as in the paper's equation, not two, as in its lists.

    Raises:
        MaskwiseError: settings out of range; a vocabulary that is not there or cannot be read.
    """

    name = "phrases"
    layers: ClassVar = {"phrase": Layer("spans")}

    def __init__(
        self,
        *,
        vocabulary: str | None = None,
        size: int | None = None,
        min_count: int = 10,
        min_documents: int = 5,
        paper: bool = False,
    ):
        if (size is not None and size < 2) or min_count < 0 or min_documents < 1:
            got = f"size={size}, min_count={min_count}, min_documents={min_documents}"
            raise MaskwiseError(
                "phrases: settings out of range",
                got=got,
                allowed="size ≥ 2, min_count ≥ 0, min_documents ≥ 1",
            )
        self._size = size
        self._min_count = min_count
        self._min_documents = min_documents
        self._paper = paper
        self._vocabulary = None if vocabulary is None else Path(vocabulary)
        self._phrases = None if self._vocabulary is None else read_phrases(self._vocabulary)

    @property
    def fitted(self) -> bool:
        return self._phrases is not None

    @cached_property
    def version(self) -> str:
        settings = (self._size, self._min_count, self._min_documents, self._paper)
        return digest(
            self.name, RULES, VERSION, *(settings if self._phrases is None else self._phrases)
        )

    @property
    def notice(self) -> str | None:
        """If the vocabulary is empty or small, why, and what to do: one line."""
        if self._vocabulary is None:
            return None
        try:
            facts = json.loads((self._vocabulary / FACTS).read_text(encoding="utf-8"))
        except OSError:  # a file of the user's
            what = f"no phrase in {self._vocabulary}, so the layer is empty; write one on each line"
            return None if self._phrases else what
        if self._phrases and facts["phrases"] >= FEW * facts["size"]:
            return None
        floors = (
            f"more than {facts['min_count']} times in at least {facts['min_documents']} documents"
        )
        do = "give more text, or lower these, as in phrases(min_count=2, min_documents=1)"
        words = f"among these {facts['words']:,} words"
        if not self._phrases:
            return f"no phrase {words} stands {floors}, so the layer is empty; {do}"
        found = f"only {len(self._phrases):,} phrases {words} stand {floors}"
        return f"{found}, mostly frequent pairs such as 'of the'; {do}"

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Make a vocabulary of the corpus and save it in ``folder``: phrases.parquet and
        facts.json.

        A corpus without a phrase that is frequent enough has an empty one, and `notice` says so:
        with other layers asked for beside this one, that must not be the end of them.
        """
        counted = count_ngrams(
            texts, folder, min_count=self._min_count, min_documents=self._min_documents
        )
        size = vocabulary_size(counted.total) if self._size is None else self._size
        chosen = choose_phrases(counted, size=size, paper=self._paper)
        write_table(
            folder / FILE, {name: [getattr(record, name) for record in chosen] for name in COLUMNS}
        )
        facts = {
            "words": counted.total,
            "phrases": len(chosen),
            "size": size,
            "counts_too_low_by_at_most": counted.lost,
            "min_count": self._min_count,
            "min_documents": self._min_documents,
            "paper": self._paper,
        }
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return str(Call(self.name, kwargs={"vocabulary": str(folder)}))

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        assert self._phrases is not None, "fit first"
        return [{"phrase": spans} for spans in self._matcher.find(texts)]

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self._phrases or [])


def vocabulary_size(words: int) -> int:
    """Phrases for a corpus of so many words: 800,000 for 16 GB of text (2.6 billion words), by the
    square root.
    """
    return round(800_000 * (words / 2.6e9) ** 0.5)


def read_phrases(path: Path) -> list[str]:
    """The phrases of a saved vocabulary, or of a text file with one a line."""
    if path.is_dir():
        return list(read_table(path / FILE, "phrase")["phrase"])
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        do = "give the folder of a fit, or a UTF-8 text file with one phrase a line"
        raise MaskwiseError(f"cannot read the phrases {path}: {error}", do=do) from None
    return [line.strip() for line in lines if line.strip()]


def choose_phrases(counted: Counted, *, size: int, paper: bool = False) -> list[Phrase]:
    """The vocabulary: of every length the best, ``SHARES`` of ``size`` (fewer where a corpus has
    fewer).

    Returns:
        In the order of rank ÷ share, so that any beginning of the list has about the published
        shares: scores of different lengths do not compare.
    """
    ranked: list[tuple[float, int, Phrase]] = []
    scores = score_ngrams(counted, paper=paper)
    # (n+1)-grams in the vocabulary, or almost always inside of such
    inside = np.zeros(0, dtype=np.int64)
    for n in sorted(scores, reverse=True):
        level = counted.levels[n - 1]
        # the count of the commonest of these around an n-gram
        longer = np.zeros(len(level.keys), dtype=np.int64)
        if len(inside):
            above = counted.levels[n]
            for part in above.parts(inside):
                np.maximum.at(longer, part, above.counts[inside])
        fragment = longer >= FRAGMENT * level.counts
        best = np.argsort(np.where(fragment, np.inf, -scores[n]), kind="stable")
        best = best[: min(round(size * SHARES[n]), int((~fragment).sum()))]
        inside = np.union1d(best, np.flatnonzero(fragment))
        for rank, (at, text) in enumerate(zip(best.tolist(), counted.texts(n, best), strict=True)):
            phrase = Phrase(
                text, n, int(level.counts[at]), int(level.documents[at]), float(scores[n][at])
            )
            ranked.append((rank / SHARES[n], n, phrase))
    ranked.sort(key=lambda entry: entry[:2])
    return [phrase for _, _, phrase in ranked]


class Matcher:
    """Finds phrases in texts: the longest first, among equally long ones the leftmost."""

    def __init__(self, phrases: list[str]):
        words = words_of(phrases)
        if not words.plain.all():
            raise MaskwiseError(
                "a phrase has no punctuation", got=words.name(int(np.argmin(words.plain)))
            )
        lengths = np.bincount(words.text, minlength=len(phrases))
        first = np.cumsum(lengths) - lengths
        self._keys: dict[int, Keys] = {}
        for n in np.unique(lengths[lengths > 1]).tolist():
            self._keys[n] = np.unique(_gram_keys(words.key, n)[first[lengths == n]])

    def find(self, texts: list[str]) -> list[CharSpans]:
        """The phrases of each text."""
        found: list[CharSpans] = []
        for words in blocks(texts):
            found += self._spans(words)
        return found

    def _spans(self, words: Words) -> list[CharSpans]:
        size = len(words.key)
        # Words between two borders have one number; a punctuation mark has its own.
        border = words.fresh | ~words.plain
        border[1:] |= ~words.plain[:-1]
        stretch = np.cumsum(border)
        taken = np.zeros(size, dtype=bool)
        length_at = np.zeros(size, dtype=np.int64)
        for n in sorted(self._keys, reverse=True):
            if n > size:
                continue
            used = np.append(0, np.cumsum(taken))
            whole = (stretch[n - 1 :] == stretch[: size - n + 1]) & (
                used[n:] == used[: size - n + 1]
            )
            at = np.flatnonzero(whole)
            at = at[find(self._keys[n], _gram_keys(words.key, n)[at]) >= 0]
            at = leftmost(at, n)
            length_at[at] = n
            taken[(at[:, None] + np.arange(n)).ravel()] = True
        at = np.flatnonzero(length_at)
        return words.spans(at, at + length_at[at] - 1)


def leftmost(at: Ints, width: int) -> Ints:
    """From ascending places, those that going from left to right do not overlap: each at least
    ``width`` apart.

    Every place points to the first one that it leaves free; taken is what can be reached from the
    heads of clusters. Jumps double in each pass, so the passes are the logarithm of the longest
    cluster, not its length.
    """
    size = len(at)
    jump = np.append(np.searchsorted(at, at + width), size)
    head = np.append(np.append(True, np.diff(at) >= width)[:size], True)
    taken = head.copy()
    jump[head[jump]] = size  # what is a head is taken anyway
    while (jump < size).any():
        taken[jump[taken]] = True
        jump = jump[jump]
    return at[taken[:size]]


def _gram_keys(keys: Keys, n: int) -> Keys:
    """(W,) hashes of the n words from each place on; meaningless at the last n − 1."""
    total = keys
    for skip in range(1, n):
        total = mixed(total) + np.append(
            keys[skip:], np.zeros(min(skip, len(keys)), dtype=np.uint64)
        )
    return total


# Counting and scoring n-grams
# ------------------------------------------------------------------------------
#
# Counting goes up one length at a time: an n-gram is a pair of overlapping (n−1)-grams, and only
# pairs of frequent ones are counted, because no n-gram is more frequent than its parts. So nothing
# rare is kept beyond one length. The text is read once and kept as ids in a temporary file, 16
# bytes a word. N-grams never cross punctuation, the end of a line or of a document.
#
# Counts are exact as long as the candidates of one length fit the table of 15 million (9 million
# words of Wikipedia have 1.4 million). Beyond that ``Counted.lost`` says by how much any count may
# be too low; with a table of 300,000 for these words it was 7, and 98 % of the phrases were the
# same.

# In the spilled keys, where no word is; no pair of ids is as large. As ids they are −1 and −2.
_BORDER, _DOCUMENT = np.uint64(2**64 - 1), np.uint64(2**64 - 2)


class Level(NamedTuple):
    """The G frequent n-grams of one length, by ascending key; an n-gram's place here is its id."""

    # a word's hash; of longer ones, the ids of its first and its last n−1 words, 32 bits each
    keys: Keys
    counts: Ints
    documents: Ints  # in how many texts it stands

    def parts(self, ids: Ints) -> tuple[Ints, Ints]:
        """The ids of the first and of the last n−1 words of these n-grams, one level below."""
        return halves(self.keys[ids])


class Counted(NamedTuple):
    """What a corpus has: its frequent n-grams by length (1 first), the number of its words, the
    error bound.
    """

    levels: list[Level]
    total: int
    lost: int
    names: Vocabulary

    def texts(self, length: int, ids: Ints) -> list[str]:
        """The n-grams themselves, words with a space between them."""
        level = self.levels[length - 1]
        if length == 1:
            return self.names.names(level.keys[ids])
        heads, tails = level.parts(ids)
        last_words = [text.rpartition(" ")[2] for text in self.texts(length - 1, tails)]
        return [f"{head} {word}" for head, word in zip(self.texts(length - 1, heads), last_words)]


def count_ngrams(
    texts: Iterable[str],
    folder: Path,
    *,
    min_count: int = 10,
    min_documents: int = 1,
    longest: int = 5,
    limit: int = 15_000_000,
) -> Counted:
    """Count n-grams of up to ``longest`` words that occur more than ``min_count`` times, in enough
    documents.

    Args:
        texts: one document each; read once.
        folder: where the corpus is kept as ids meanwhile; nothing stays there.
        limit: most distinct n-grams of one length in memory, some 100 bytes each while tables are
            merged.
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
            keys = _pairs(block)
            table.add(keys[keys < _DOCUMENT])
            pairs.write(keys)
        ids, level = _identify(pairs, table, folder, min_count, min_documents)
        levels.append(level)
        lost = max(lost, table.lost)
    return Counted(levels, names.table.total, lost, names)


def _bordered(words: Words) -> Keys:
    """Keys of words in order, with a border for each punctuation mark and before each line and
    document.
    """
    keys = np.where(words.plain, words.key, _BORDER)
    at = np.flatnonzero(words.fresh)
    opens = np.append(True, words.text[at[1:]] != words.text[at[:-1]])[: len(at)]
    return np.insert(keys, at, np.where(opens, _DOCUMENT, _BORDER))


def _pairs(ids: Ints) -> Keys:
    """The keys of the n-grams that begin at each place, from the ids of (n−1)-grams."""
    behind = np.append(ids[1:], -1)
    border = np.where(ids == -2, _DOCUMENT, _BORDER)
    return np.where((ids >= 0) & (behind >= 0), joined(ids, behind), border)


def _identify(
    corpus: Spill, table: Table, folder: Path, min_count: int, min_documents: int
) -> tuple[Spill, Level]:
    """The n-grams that are frequent, and the corpus with their ids in place of their keys."""
    frequent = table.counts > min_count
    keys, counts = table.keys[frequent], table.counts[frequent]
    documents = np.zeros(len(keys), dtype=np.int64)
    for block in corpus:
        # A document lies in one block, so distinct pairs of document and n-gram can be counted
        # block by block.
        number = np.cumsum(block == _DOCUMENT)
        place = find(keys, block)
        here = place >= 0
        pairs = np.unique(joined(number[here], place[here]))
        documents += np.bincount(halves(pairs)[1], minlength=len(keys))
    kept = documents >= min_documents
    keys = keys[kept]
    ids = Spill(folder, np.int64)
    for block in corpus:
        ids.write(np.where(block == _DOCUMENT, -2, find(keys, block)))
    return ids, Level(keys, counts[kept], documents[kept])


def score_ngrams(counted: Counted, *, paper: bool = False) -> dict[int, NDArray[np.float64]]:
    """The score of every n-gram by its id, for every length from 2: higher is more of a phrase.

        score(w) = min over segmentations σ of w into ≥ 2 parts of  2·log p(w) − Σ_{s∈σ} log p(s)

    With one log p(w) it is equation 3 of the paper (``paper=True``); the second one favours
    frequent n-grams and made the published lists. p = count / words of the corpus.

    Source: Levine et al. 2021 (PMI-Masking, arXiv 2010.01825), section 3; README of
        AI21Labs/pmi-masking.
    """
    # best[n − 1]: the largest Σ log p over all ways to cut an n-gram, not at all included. An
    # n-gram cut behind its first k words is worth log p of those and the best of the rest.
    log_p = [np.log(level.counts / counted.total) for level in counted.levels]
    best, scores = [log_p[0]], {}
    for n in range(2, len(counted.levels) + 1):
        every = np.arange(len(log_p[n - 1]))
        heads, tails = [every], [every]
        for length in range(n, 1, -1):  # heads[k], tails[k]: the first and the last n − k words
            level = counted.levels[length - 1]
            heads.append(level.parts(heads[-1])[0])
            tails.append(level.parts(tails[-1])[1])
        cuts = [log_p[k - 1][heads[n - k]] + best[n - k - 1][tails[k]] for k in range(1, n)]
        cut = np.max(cuts, axis=0)
        scores[n] = (1 if paper else 2) * log_p[n - 1] - cut
        best.append(np.maximum(log_p[n - 1], cut))
    return scores
