"""Count test items that occur in a corpus.

Texts are compared as sequences of lower-case words of letters and digits. Case, punctuation and
line breaks therefore do not matter. An item overlaps with a document if the document contains 13
consecutive words of the item (as for GPT-3; Brown et al. 2020, appendix C). An item with fewer than
13 words overlaps if the document contains all its words in sequence. Items with fewer than
``LEAST`` words ("set an alarm") are counted separately, because they occur almost everywhere.

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
from maskwise.errors import MaskwiseError
from maskwise.text import Document
from maskwise.text.documents import batches

N = 13
# Items with fewer words are not compared.
LEAST = 4
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
    """The number of items of a test set that occur in a corpus, with a few examples.

    ``short`` is the number of items with too few words for a comparison. ``n`` is the number of
    consecutive words that must match.
    """

    kind: Literal["overlap"]
    task: str
    corpus: str
    items: int
    overlapping: int
    short: int
    documents: int
    n: int
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
    >>> record["items"], record["overlapping"], record["short"], record["examples"]
    (2, 1, 1, ['the cat sat on the mat'])
    """
    items = task.texts()
    if not items:
        raise MaskwiseError("there are no test items to look for")
    hits, count, longest = occurring(documents, items, least=LEAST)
    examples = []
    for place in np.flatnonzero(hits)[:EXAMPLES]:
        examples.append(" / ".join(items[place]))
    return {
        "kind": "overlap",
        "task": task.name,
        "corpus": corpus,
        "items": len(items),
        "overlapping": int(hits.sum()),
        "short": int((longest < LEAST).sum()),
        "documents": count,
        "n": N,
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
    finder = Finder(items, least=least)
    hits = np.zeros(len(items), dtype=bool)
    count = 0
    texts = (document if isinstance(document, str) else document.text for document in documents)
    for batch in batches(texts, BATCH_CHARACTERS):
        count += len(batch)
        hits |= finder.found_in(batch)
    return hits, count, finder.longest


class Finder:
    """Finds items in texts, by ``N`` consecutive words or a whole shorter text.

    Args:
        items: the texts of each item.
        least: the minimum number of words. Shorter texts are ignored.

    Attributes:
        longest: for each item, the number of words in its longest text.
    """

    def __init__(self, items: Sequence[Sequence[str]], *, least: int):
        texts_per_item = list(map(len, items))
        owner_T = np.repeat(np.arange(len(items)), texts_per_item)
        words, size_T = _words(chain.from_iterable(items))
        self.longest = np.zeros(len(items), dtype=np.int64)
        np.maximum.at(self.longest, owner_T, size_T)
        needed_T = np.minimum(size_T, N)
        self._lengths = np.unique(needed_T[needed_T >= least]).tolist()
        self._wanted = {}
        for length, grams, text in _grams(words, size_T, self._lengths):
            of_length = needed_T[text] == length
            self._wanted[length] = _Wanted(grams[of_length], owner_T[text[of_length]])

    def found_in(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each item whether it occurs in one of these texts."""
        hits = np.zeros(len(self.longest), dtype=bool)
        words, sizes = _words(texts)
        for length, grams, _ in _grams(words, sizes, self._lengths):
            hits[self._wanted[length].owners_of(grams)] = True
        return hits


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
    """Yield each length, the hashes of its n-grams, and the text of each n-gram."""
    text = np.repeat(np.arange(len(sizes)), sizes)
    for length, grams in in_a_row(words, lengths):
        first_text = text[: len(grams)]
        last_text = text[length - 1 :]
        # An n-gram must not extend beyond the end of its text.
        whole = first_text == last_text
        yield length, grams[whole], first_text[whole]


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
    """N-grams to find, all of one length, and the item of each n-gram (``owner``)."""

    def __init__(self, grams: Hashes, owner: NDArray[np.int64]):
        self.grams = grams
        self.owner = owner
        self.filter = HashFilter(grams)

    def owners_of(self, grams: Hashes) -> NDArray[np.int64]:
        """Return the indices of the items that contain any of these n-grams."""
        likely = grams[self.filter.likely(grams)]
        return self.owner[np.isin(self.grams, likely)]
