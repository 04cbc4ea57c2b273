"""Count test items that occur in a corpus.

Texts are compared as sequences of lower-case words of letters and digits. Case, punctuation and
line breaks therefore do not matter. An item overlaps with a document if the document contains 13
consecutive words of the item (as for GPT-3; Brown et al. 2020, appendix C). An item with fewer than
13 words overlaps if the document contains all its words in sequence. Items with fewer than
``LEAST`` words ("set an alarm") are counted separately, because they occur almost everywhere.

Formulas of a field, such as those of laws or of documentation, have 13 words, too. So an item is
*covered* only if such runs have half of its words, or more.

N-grams are compared as 64-bit hashes, which takes about 1 s per million words. With a billion words
and a thousand items, the probability of a false match is about 10⁻⁷. Some test sets split words
("do n't"). If a corpus has the same text with whole words, the overlap may be missed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import rehashed
from maskwise.base.errors import MaskwiseError, shortened
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
_WORD = re.compile(r"[^\W_]+")
BATCH_CHARACTERS = 1 << 20
# The base of a polynomial hash: 2⁶⁴ / φ, an odd number whose bits have no pattern.
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


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
        words = [*_WORD.finditer([*chain.from_iterable(items)][text])][first : first + size]
        run = shortened(words[0].string[words[0].start() : words[-1].end()], LONGEST_RUN)
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
        texts_per_item = list(map(len, items))
        owner_T = np.repeat(np.arange(len(items)), texts_per_item)
        words, size_T = _words(chain.from_iterable(items))
        self.longest = np.zeros(len(items), dtype=np.int64)
        np.maximum.at(self.longest, owner_T, size_T)
        self.hits = np.zeros(len(items), dtype=bool)
        needed_T = np.minimum(size_T, N)
        self._lengths = np.unique(needed_T[needed_T >= least]).tolist()
        self._text_W = np.repeat(np.arange(len(size_T)), size_T)
        self._owner_W = owner_T[self._text_W]
        self._compared_W = needed_T[self._text_W] >= least
        # One more than there are words, because runs end before a word.
        self._starts_W = np.zeros(len(words) + 1, dtype=np.int64)
        self._wanted = {}
        for length, grams, place in _grams(words, size_T, self._lengths):
            of_length = needed_T[self._text_W[place]] == length
            self._wanted[length] = _Wanted(grams[of_length], place[of_length])

    def found_in(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each item whether it occurs in one of these texts."""
        hits = np.zeros(len(self.longest), dtype=bool)
        words, sizes = _words(texts)
        for length, grams, _ in _grams(words, sizes, self._lengths):
            place = self._wanted[length].places_of(grams)
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


def _words(texts: Iterable[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of all words (W,), and the number of words in each text (T,)."""
    by_text = [_WORD.findall(text.lower()) for text in texts]
    sizes = np.array(list(map(len, by_text)), dtype=np.int64)
    # Python's string hashes differ between processes, but they are compared only within a process.
    hashes = map(hash, chain.from_iterable(by_text))
    return np.fromiter(hashes, dtype=np.int64).view(np.uint64), sizes


def _grams(
    words: Hashes, sizes: NDArray[np.int64], lengths: Collection[int]
) -> Iterator[tuple[int, Hashes, NDArray[np.int64]]]:
    """Yield each length, the hashes of its n-grams, and the place (first word) of each n-gram."""
    text = np.repeat(np.arange(len(sizes)), sizes)
    for length, grams in in_a_row(words, lengths):
        first_text = text[: len(grams)]
        last_text = text[length - 1 :]
        # An n-gram must not extend beyond the end of its text.
        whole = first_text == last_text
        yield length, grams[whole], np.flatnonzero(whole)


def in_a_row(values: NDArray[np.generic], lengths: Collection[int]) -> Iterator[tuple[int, Hashes]]:
    """Yield each length, and the hashes (T − length + 1,) of all n-grams of this length.

    The lengths are yielded in ascending order. The n-grams may cross from one text to the next.
    """
    terms = rehashed(values.astype(np.uint64))
    total = np.zeros_like(terms)
    longest = max(lengths, default=0)
    # A polynomial modulo 2⁶⁴: the hash for length n + 1 extends the hash for length n.
    for length in range(1, min(longest, len(terms)) + 1):
        total = total[: len(terms) - length + 1] * _BASE + terms[length - 1 :]
        if length in lengths:
            yield length, total


class HashFilter:
    """A Bloom filter with one hash function: rejects nearly all hashes that are not wanted.

    ``bits[b]`` is true if the upper 22 bits of any wanted hash are b. Without a look at this table,
    nearly all n-grams of a corpus would be searched in vain.
    """

    def __init__(self, wanted: Hashes):
        self.bits = np.zeros(1 << 22, dtype=bool)
        self.bits[wanted >> np.uint64(42)] = True

    def likely(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return a flag for each hash: false if it is certainly not wanted."""
        return self.bits[hashes >> np.uint64(42)]


class _Wanted:
    """N-grams to find, all of one length, and the first word of each (``place``)."""

    def __init__(self, grams: Hashes, place: NDArray[np.int64]):
        self.grams = grams
        self.place = place
        self.filter = HashFilter(grams)

    def places_of(self, grams: Hashes) -> NDArray[np.int64]:
        """Return the first words of those n-grams that are among these."""
        likely = grams[self.filter.likely(grams)]
        return self.place[np.isin(self.grams, likely)]
