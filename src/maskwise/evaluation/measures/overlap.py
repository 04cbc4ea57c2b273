"""Count test items that occur in a corpus.

Texts are compared by runs of words (word_runs.py): case, punctuation and line breaks do not matter.
An item overlaps with a document if the document contains 13 consecutive words of the item (as for
GPT-3; Brown et al. 2020, appendix C). An item with fewer than 13 words overlaps if the document
contains all its words in sequence. Items with fewer than ``LEAST`` words ("set an alarm") are
counted separately, because they occur almost everywhere.

Formulas of a field, such as those of laws or of documentation, have 13 words, too. So an item is
*covered* only if such runs have half of its words, or more. In scripts without spaces, 13 words are
less than elsewhere, because each ideograph and each letter of Thai is one.

The search takes about 1 s per million words. Some test sets split words ("do n't"). If a corpus has
the same text with whole words, the overlap may be missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import hashes_of
from maskwise.base.errors import MaskwiseError, shortened
from maskwise.evaluation.measures.word_runs import HashFilter, runs_in, runs_or_whole
from maskwise.masking.segments import changes
from maskwise.text import Document
from maskwise.text.documents import batches

N = 13
# Items with fewer words are not compared.
LEAST = 4
# The share of an item's words from which the item itself, and no formula in it, is in the corpus.
COVERED = 0.5
# The maximum number of characters of the longest run in a record.
LONGEST_RUN = 200
# The maximum number of overlapping items that a record shows as examples.
EXAMPLES = 5
BATCH_CHARACTERS = 1 << 20


class HasTexts(Protocol):
    """A task or a test set: any object with a name and the texts of each item."""

    @property
    def name(self) -> str: ...
    def texts(self) -> list[tuple[str, ...]]: ...


class OverlapRecord(TypedDict):
    """The number of items of a test set that share words in a row with a corpus.

    ``n`` is the number of consecutive words that must match, and ``covered`` the number of items of
    which such runs have half of the words. ``short`` is the number of items with too few words for
    a comparison. ``run`` is the longest part of an item that such runs cover, and ``run_words`` its
    number of words. ``examples`` are the items with the largest shares of such words.
    """

    kind: Literal["overlap"]
    task: str
    corpus: str
    items: int
    overlapping: int
    covered: int
    short: int
    documents: int
    n: int
    run: str
    run_words: int
    examples: list[str]


def overlap_record(
    documents: Iterable[str | Document], task: HasTexts, *, corpus: str
) -> OverlapRecord:
    """Count the test items that share ``N`` consecutive words with a document.

    Args:
        documents: the corpus, such as ``text.read_documents(source)``; it is read once.
        task: a ``tasks.Task`` with a test split, or a measure. An item with several
            texts, such as a question and a context, overlaps if one of its texts overlaps.
        corpus: the name of the corpus for the record.

    Raises:
        MaskwiseError: the task has no test items.

    >>> from types import SimpleNamespace
    >>> texts = [("the cat sat on the mat",), ("set an alarm",)]
    >>> task = SimpleNamespace(name="mine", texts=lambda: texts)
    >>> record = overlap_record(["Yesterday the cat sat on the mat."], task, corpus="notes")
    >>> record["items"], record["overlapping"], record["covered"], record["short"]
    (2, 1, 1, 1)
    >>> record["run"], record["run_words"]
    ('the cat sat on the mat', 6)
    """
    items = task.texts()
    if not items:
        raise MaskwiseError("there are no test items to look for")
    finder, count = _searched(documents, items, least=LEAST)
    share, text, first, size = finder.shares()
    examples = []
    for place in np.argsort(-share, kind="stable")[: min(EXAMPLES, int(finder.hits.sum()))]:
        examples.append(" / ".join(items[place]))
    run = ""
    if size:
        whole = [*chain.from_iterable(items)][text]
        words = hashes_of([whole])
        run = shortened(whole[words.start[first] : words.end[first + size - 1]], LONGEST_RUN)
    return {
        "kind": "overlap",
        "task": task.name,
        "corpus": corpus,
        "items": len(items),
        "overlapping": int(finder.hits.sum()),
        "covered": int((share >= COVERED).sum()),
        "short": int((finder.longest < LEAST).sum()),
        "documents": count,
        "n": N,
        "run": run,
        "run_words": size,
        "examples": examples,
    }


def occurring(
    documents: Iterable[str | Document], items: Sequence[Sequence[str]], *, least: int
) -> tuple[NDArray[np.bool_], int, NDArray[np.int64]]:
    """Find the items that occur in a document, by ``N`` consecutive words or a whole shorter text.

    Args:
        least: the minimum number of words. Shorter texts are ignored.

    Returns:
        For each item, whether it occurs in a document; the number of documents; and for each item,
        the number of words in its longest text.
    """
    finder, count = _searched(documents, items, least=least)
    return finder.hits, count, finder.longest


def _searched(
    documents: Iterable[str | Document], items: Sequence[Sequence[str]], *, least: int
) -> tuple[Finder, int]:
    """Return what finds items, after it has read all documents, and their number."""
    finder = Finder(items, least=least)
    count = 0
    texts = (document if isinstance(document, str) else document.text for document in documents)
    for batch in batches(texts, BATCH_CHARACTERS):
        count += len(batch)
        finder.found_in(batch)
    return finder, count


class Finder:
    """Finds items in texts, by ``N`` consecutive words or a whole shorter text.

    Args:
        items: the texts of each item.
        least: the minimum number of words. Shorter texts are ignored.

    Attributes:
        longest: for each item, the number of words in its longest text.
        hits: for each item, whether it occurs in one of the texts that were read.
    """

    def __init__(self, items: Sequence[Sequence[str]], *, least: int):
        owner_T = np.repeat(np.arange(len(items)), list(map(len, items)))
        words = hashes_of([*chain.from_iterable(items)])
        self.longest = np.zeros(len(items), dtype=np.int64)
        np.maximum.at(self.longest, owner_T, words.sizes)
        self.hits = np.zeros(len(items), dtype=bool)
        self._text_W = np.repeat(np.arange(len(owner_T)), words.sizes)
        self._owner_W = owner_T[self._text_W]
        self._compared_W = words.sizes[self._text_W] >= least
        # One more than there are words, because runs end before a word.
        self._starts_W = np.zeros(len(words.key) + 1, dtype=np.int64)
        self._runs_W, length_W = runs_or_whole(words.key, words.sizes, N)
        # For each length of runs, their first words, and what rejects other runs.
        self._wanted = {}
        for length in np.unique(length_W[length_W >= least]).tolist():
            place = np.flatnonzero(length_W == length)
            self._wanted[length] = (place, HashFilter(self._runs_W[place]))

    def found_in(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each item whether it occurs in one of these texts."""
        hits = np.zeros(len(self.longest), dtype=bool)
        words = hashes_of(texts)
        for length, runs, _ in runs_in(words.key, words.sizes, self._wanted):
            place, wanted = self._wanted[length]
            place = place[np.isin(self._runs_W[place], runs[wanted.likely(runs)])]
            hits[self._owner_W[place]] = True
            self._starts_W[place] = length
        self.hits |= hits
        return hits

    def shares(self) -> tuple[NDArray[np.float64], int, int, int]:
        """Return what the texts that were read cover of the items, by runs of ``N`` words.

        Returns:
            For each item, the share of its words. Of the longest part of a text that is covered,
            the number of this text among the texts of all items, its first word, and its number of
            words.
        """
        place = np.flatnonzero(self._starts_W)
        change = np.zeros_like(self._starts_W)
        np.add.at(change, place, 1)
        np.add.at(change, place + self._starts_W[place], -1)
        covered_W = change.cumsum()[:-1] > 0
        words, found = (
            np.bincount(self._owner_W[chosen], minlength=len(self.hits))
            for chosen in (self._compared_W, covered_W)
        )
        share = found / np.maximum(words, 1)
        if not covered_W.any():
            return share, 0, 0, 0
        part_W = np.cumsum(changes(self._text_W, covered_W))
        sizes = np.bincount(part_W, covered_W)
        longest = int(sizes.argmax())
        first = int(part_W.searchsorted(longest))
        text = int(self._text_W[first])
        return share, text, first - int(self._text_W.searchsorted(text)), int(sizes[longest])
