"""Hash words to 64 bits, count words, and count the frequent n-grams of a corpus.

Words are found by the rules in words.py and converted to lower case. The hash of a word is based on
the sum of the hashes of its (letter, position) pairs. The probability of any collision among a
million words is 3 in 10⁸. Strings are stored only for display.
Cost: 0.5 µs per word, because numpy processes thousands of words at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.segments import Array, changes, rank_within
from maskwise.text.documents import batches
from maskwise.text.layers import CharSpans
from maskwise.text.words import (
    CodePoints,
    Flags,
    Ints,
    classify,
    codes_of,
    is_white,
    join_texts,
    words_in,
)

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]

BLOCK_CHARACTERS = 1 << 21
"""Number of characters in a block. Processing takes about 60 bytes per character, so 130 MB."""
RULES = "counts-1"
"""Part of the version of each annotator that depends on hashes or word boundaries."""
LAST = np.uint64(2**64 - 3)
"""Largest hash; the two larger numbers are markers."""

_HALF = np.uint64(32)
_LOW = np.uint64(2**32 - 1)
_APOSTROPHES = np.array([0x27, 0x2019], dtype=np.uint32)
_LINE_ENDS = np.array([10, 11, 12, 13, 0x85, 0x2028, 0x2029], dtype=np.uint32)


class Words(NamedTuple):
    """The W words of N texts, in text order.

    Attributes:
        text: (W,) the index of each word's text.
        start, end: (W,) the word's character offsets in that text.
        letter: (W,) the code point of the word's first character, in lower case.
        key: (W,) the hash of the word in lower case, at most ``LAST``.
        plain: (W,) whether the word begins with a letter or digit and follows no apostrophe.
        fresh: (W,) whether the word is the first word of a text or line.
        folded: the concatenated texts in lower case.
        base: (N,) the offset of each text in ``folded``.
    """

    text: Ints
    start: Ints
    end: Ints
    letter: CodePoints
    key: Keys
    plain: Flags
    fresh: Flags
    folded: str
    base: Ints

    def name(self, place: int) -> str:
        """Return the word with the index ``place``, in lower case."""
        base = int(self.base[self.text[place]])
        start = base + int(self.start[place])
        end = base + int(self.end[place])
        return self.folded[start:end]

    def spans(self, first: Ints, last: Ints, *values: Array) -> list[CharSpans]:
        """Return the spans of each text, from indices of first and last words, and values (S,)."""
        start = self.start[first].astype(np.int32)
        end = self.end[last].astype(np.int32)
        first_of_text = np.searchsorted(self.text[first], np.arange(1, len(self.base)))
        columns = [np.split(column, first_of_text) for column in (start, end, *values)]
        # ``split`` returns a part even if there are no texts.
        return list(map(CharSpans, *columns))[: len(self.base)]


def words_of(texts: Sequence[str]) -> Words:
    """Find and hash all words of one or more texts."""
    joined, base = join_texts(texts)
    kinds = classify(joined)
    start, end = words_in(kinds)
    folded = fold(joined)
    codes = codes_of(folded)
    text = base.searchsorted(start, side="right") - 1
    line_ends = np.isin(codes, _LINE_ENDS)
    lines = np.append(0, line_ends.cumsum())[start]
    # The part after an apostrophe (don't, women's) cannot be a word in a phrase.
    after_apostrophe = np.isin(codes[start - 1], _APOSTROPHES) & (start > 1)
    suffix = after_apostrophe & ~is_white(kinds)[start - 2]
    # A block has thousands of words but few first letters, so Python checks each letter only once.
    distinct, which = np.unique(codes[start], return_inverse=True)
    alphanumeric = np.fromiter(map(str.isalnum, map(chr, distinct)), dtype=bool)
    return Words(
        text=text,
        start=start - base[text],
        end=end - base[text],
        letter=codes[start],
        key=_hashes(codes, start, end),
        plain=alphanumeric[which] & ~suffix,
        fresh=changes(lines),
        folded=folded,
        base=base,
    )


def fold(text: str) -> str:
    """Convert a text to lower case without changing the number of characters."""
    # `str.lower` turns İ into two characters, and Σ into ς or σ, depending on the next letter.
    return text.replace("İ", "i").lower().replace("ς", "σ")


def keys_of(words: Sequence[str]) -> Keys:
    """Return the hashes (W,) of words that are given as strings."""
    joined, start = join_texts(list(map(fold, words)))
    # Each word ends at a line break, right before the next word.
    end = np.append(start[1:], len(joined)) - 1
    return _hashes(codes_of(joined), start, end)


def _hashes(codes: CodePoints, start: Ints, end: Ints) -> Keys:
    """Return the hashes (W,) of words: the sum of their (letter, position) hashes, hashed again."""
    if not len(start):
        return np.zeros(0, dtype=np.uint64)
    lengths = np.diff(start, prepend=0, append=len(codes))
    position = rank_within(lengths).astype(np.uint64)
    # Code points have 21 bits, so a letter and its position do not overlap.
    letters = mixed(codes + (position << np.uint64(21)))
    # Every second sum is over the characters between two words, and is dropped.
    borders = np.stack([start, end], 1).ravel()
    sums = np.add.reduceat(letters, borders)[::2]
    return np.minimum(mixed(sums), LAST)


def mixed(x: Keys) -> Keys:
    """Apply SplitMix64's finaliser: each bit of the result depends on all bits of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def blocks(texts: Iterable[str]) -> Iterator[Words]:
    """Yield the words of texts, one block of texts at a time."""
    return map(words_of, batches(texts, BLOCK_CHARACTERS))


# Tables of counts
# -------------------------------------------------------------------------------------------


class Table:
    """Counts of at most ``limit`` distinct 64-bit keys; rare keys are pruned.

    Attributes:
        lost: an upper bound on the error of any count, and on the count of a pruned key.
        total: the number of keys added, including repeated keys.
    """

    def __init__(self, *, limit: int = 15_000_000):
        self._keys = np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[Keys] = []
        self.limit = limit
        self.lost = 0
        self.total = 0

    def add(self, keys: Keys) -> None:
        """Count keys, including repeated keys."""
        self.total += len(keys)
        self._waiting.append(keys)
        # Every merge copies the table, so new keys are collected before a merge.
        waiting = sum(map(len, self._waiting))
        if waiting > max(1 << 21, len(self._keys) // 2):
            self._merge()

    @property
    def keys(self) -> Keys:
        """The keys (K,), ascending."""
        self._merge()
        return self._keys

    @property
    def counts(self) -> Ints:
        """The count of each key, (K,)."""
        self._merge()
        return self._counts

    def of(self, wanted: Keys) -> Ints:
        """Return the counts of the wanted keys, (W,); 0 for missing keys."""
        return np.append(self.counts, 0)[find(self.keys, wanted)]

    def _merge(self) -> None:
        if not self._waiting:
            return
        new, times = np.unique(np.concatenate(self._waiting), return_counts=True)
        self._waiting = []
        keys = np.concatenate([self._keys, new])
        # A stable sort merges two sorted runs in linear time.
        order = keys.argsort(kind="stable")
        keys = keys[order]
        counts = np.concatenate([self._counts, times])[order]
        first = np.flatnonzero(changes(keys))
        keys = keys[first]
        counts = np.add.reduceat(counts, first)
        if len(keys) > self.limit:
            # Pruning to half of the limit makes pruning rare.
            place = len(keys) - self.limit // 2
            least = int(np.partition(counts, place)[place])
            keep = counts > least
            keys = keys[keep]
            counts = counts[keep]
            self.lost += least
        self._keys = keys
        self._counts = counts


class Vocabulary(Table):
    """The counts of the words in a corpus, and the string of each word."""

    def __init__(self) -> None:
        super().__init__(limit=4_000_000)
        self._names: dict[int, str] = {}

    def count(self, words: Words, keep: Flags) -> None:
        """Count the words for which ``keep`` (W,) is true."""
        places = np.flatnonzero(keep)
        distinct, first = np.unique(words.key[places], return_index=True)
        for key, place in zip(distinct.tolist(), places[first].tolist()):
            if key not in self._names:
                self._names[key] = words.name(place)
        self.add(words.key[places])
        # The strings of pruned keys are dropped too; otherwise memory would grow with the corpus.
        if len(self._names) > 2 * self.limit:
            kept = self.keys
            self._names = dict(zip(kept.tolist(), self.names(kept)))

    def names(self, keys: Keys) -> list[str]:
        """Return the words with these hashes."""
        return list(map(self._names.__getitem__, keys.tolist()))


def find(keys: Array, wanted: Array) -> Ints:
    """Return the index of each wanted key, (W,), in ascending ``keys``; −1 for a missing key."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = keys.searchsorted(wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def pair_keys(left: Ints, right: Ints) -> Keys:
    """Pack pairs of numbers below 2³² into keys; the left number is in the upper 32 bits."""
    upper = left.astype(np.uint64) << _HALF
    return upper | right.astype(np.uint64)


def halves(keys: Keys) -> tuple[Ints, Ints]:
    """Return the left and the right numbers of keys from ``pair_keys``."""
    left = (keys >> _HALF).astype(np.int64)
    right = (keys & _LOW).astype(np.int64)
    return left, right


class Spill:
    """A temporary file of arrays, which can be read back in order."""

    def __init__(self, folder: Path):
        # The file stays open for the lifetime of this object, so ``with`` cannot be used.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._blocks = 0

    def write(self, block: Array) -> None:
        np.save(self._file, block)
        self._blocks += 1

    def __iter__(self) -> Iterator[Array]:
        self._file.seek(0)
        for _ in range(self._blocks):
            yield np.load(self._file)


# Counting n-grams
# -------------------------------------------------------------------------------------------
#
# N-grams are counted by ascending length. An n-gram is a pair of overlapping (n−1)-grams. Only
# pairs of frequent (n−1)-grams are counted, because no n-gram is more frequent than its parts. This
# limits the number of rare n-grams in memory. The corpus is read once; its ids are in a temporary
# file, 16 bytes per word. N-grams never cross punctuation or the end of a line or document.
#
# Counts are exact as long as the candidates of one length fit in the table of 15 million (9 million
# words of Wikipedia have 1.4 million candidates). In larger corpora, counts are too low by at most
# ``Counted.lost``. With a table of 300,000, this bound was 7 for the words of Wikipedia, and 98 %
# of the phrases were the same.

# Markers between the keys in a spill file. They are larger than any pair of ids, and have the ids
# −1 and −2.
_BORDER = np.uint64(2**64 - 1)
_DOCUMENT = np.uint64(2**64 - 2)


class Level(NamedTuple):
    """The G frequent n-grams of one length, by ascending key. The id of an n-gram is its index.

    Attributes:
        keys: (G,) the hashes of words (n = 1), or pairs of ids of (n − 1)-grams: the first n − 1
            words of the n-gram in the upper 32 bits, the last n − 1 in the lower 32 bits.
        counts: (G,) the number of times that each n-gram occurs.
        documents: (G,) the number of texts in which each n-gram occurs.
    """

    keys: Keys
    counts: Ints
    documents: Ints

    def parts(self, ids: Ints) -> tuple[Ints, Ints]:
        """Return the ids of the (n − 1)-grams at the start and at the end of n-grams."""
        return halves(self.keys[ids])


class Counted(NamedTuple):
    """The frequent n-grams in a corpus.

    Attributes:
        levels: the n-grams of length 1, 2, ….
        total: the number of words in the corpus.
        lost: an upper bound on the error of any count.
        names: the words as strings.
    """

    levels: list[Level]
    total: int
    lost: int
    names: Vocabulary

    def texts(self, length: int, ids: Ints) -> list[str]:
        """Return the n-grams with these ids as strings, with a space between words."""
        level = self.levels[length - 1]
        if length == 1:
            return self.names.names(level.keys[ids])
        heads, tails = level.parts(ids)
        texts = []
        openings = self.texts(length - 1, heads)
        endings = self.texts(length - 1, tails)
        # The head lacks only the last word of the n-gram.
        for opening, ending in zip(openings, endings, strict=True):
            last_word = ending.rpartition(" ")[2]
            texts.append(f"{opening} {last_word}")
        return texts


def count_ngrams(
    texts: Iterable[str],
    folder: Path,
    *,
    min_count: int = 10,
    min_documents: int = 1,
    longest: int = 5,
) -> Counted:
    """Count n-grams of up to ``longest`` words that occur more than ``min_count`` times.

    Args:
        texts: the documents, which are read once.
        folder: the folder for temporary files.
        min_count: the number of occurrences that an n-gram must exceed.
        min_documents: the minimum number of documents in which an n-gram occurs.
        longest: the maximum number of words in an n-gram.
    """
    names = Vocabulary()
    corpus = Spill(folder)
    for words in blocks(texts):
        names.count(words, words.plain)
        corpus.write(_bordered(words))
    ids, level = _identify(corpus, names, folder, min_count, min_documents)
    levels = [level]
    lost = names.lost
    for _ in range(2, longest + 1):
        table = Table()
        pairs = Spill(folder)
        for block in ids:
            keys = _pairs(block)
            table.add(keys[keys < _DOCUMENT])
            pairs.write(keys)
        ids, level = _identify(pairs, table, folder, min_count, min_documents)
        levels.append(level)
        lost = max(lost, table.lost)
    return Counted(levels, names.total, lost, names)


def _bordered(words: Words) -> Keys:
    """Return the keys of words, with markers in place of punctuation and before lines and texts."""
    keys = np.where(words.plain, words.key, _BORDER)
    at = np.flatnonzero(words.fresh)
    marks = np.where(changes(words.text[at]), _DOCUMENT, _BORDER)
    return np.insert(keys, at, marks)


def _pairs(ids: Ints) -> Keys:
    """Return the key of the n-gram that begins at each index, from the ids of (n − 1)-grams."""
    following = np.append(ids[1:], -1)
    border = np.where(ids == -2, _DOCUMENT, _BORDER)
    both_frequent = (ids >= 0) & (following >= 0)
    return np.where(both_frequent, pair_keys(ids, following), border)


def _identify(
    corpus: Spill,
    table: Table,
    folder: Path,
    min_count: int,
    min_documents: int,
) -> tuple[Spill, Level]:
    """Return the corpus with ids in place of keys, and the frequent n-grams with these ids."""
    frequent = table.counts > min_count
    keys = table.keys[frequent]
    documents = np.zeros(len(keys), dtype=np.int64)
    for block in corpus:
        # A document is never split over blocks, so its n-grams can be deduplicated within a block.
        number = np.cumsum(block == _DOCUMENT)
        place = find(keys, block)
        here = place >= 0
        pairs = np.unique(pair_keys(number[here], place[here]))
        _, of_pair = halves(pairs)
        documents += np.bincount(of_pair, minlength=len(keys))
    kept = documents >= min_documents
    keys = keys[kept]
    ids = Spill(folder)
    for block in corpus:
        ids.write(np.where(block == _DOCUMENT, -2, find(keys, block)))
    counts = table.counts[frequent]
    return ids, Level(keys, counts[kept], documents[kept])
