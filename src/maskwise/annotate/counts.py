"""Hash words to 64 bits, count words, and count the frequent n-grams of a corpus.

Words are found by the rules in words.py and converted to lower case. The hash of a word is its key
in tables of counts. It is computed from the sum of the hashes of the word's (letter, position)
pairs. The probability that any two of a million words have the same hash is 3 in 10⁸. The strings
of words are stored, too, but only for display.
Cost: 0.5 µs per word, because numpy processes thousands of words at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import refuse_damaged
from maskwise.masking.segments import Array, changes, rank_within
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

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

BLOCK_CHARACTERS = 1 << 21
"""Number of characters in a block of texts, which is processed at once. Processing needs about 60
bytes per character, which is 130 MB per block."""
RULES = "counts-2"
"""The version of the rules in this file, a part of the version of each annotator with counts."""
LAST = np.uint64(2**64 - 3)
"""The largest hash of a word. The two larger numbers are markers (_BORDER and _DOCUMENT)."""

_HALF = np.uint64(32)
_LOW = np.uint64(2**32 - 1)
_APOSTROPHES = np.array([0x27, 0x2019], dtype=np.uint32)
_LONGEST_SUFFIX = 2  # in characters; in "d'or", the rule is wrong
_LINE_ENDS = np.array([10, 11, 12, 13, 0x85, 0x2028, 0x2029], dtype=np.uint32)


class Words(NamedTuple):
    """The W words of N texts, in text order.

    Attributes:
        text: (W,) the index of each word's text.
        start, end: (W,) the character offsets of each word in its text.
        letter: (W,) the code point of each word's first character, in lower case.
        key: (W,) the hash of each word in lower case, at most ``LAST``.
        plain: (W,) whether it begins with a letter or digit and is no suffix, as "t" in "don't".
        fresh: (W,) whether a word is the first word of a text or of a line.
        folded: the texts in lower case, joined.
        base: (N,) the offset of each text in ``folded``.
    """

    text: Ints
    start: Ints
    end: Ints
    letter: CodePoints
    key: Hashes
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
        """Build S spans, and return the spans of each text.

        Args:
            first, last: (S,) the indices of the first and the last word of each span.
            values: at most one array (S,), the value of each span.
        """
        start = self.start[first].astype(np.int32)
        end = self.end[last].astype(np.int32)
        first_of_text = np.searchsorted(self.text[first], np.arange(1, len(self.base)))
        columns = [np.split(column, first_of_text) for column in (start, end, *values)]
        # ``split`` returns one part even if there are no texts, so this part is dropped.
        return list(map(CharSpans, *columns))[: len(self.base)]


def words_of(texts: Sequence[str]) -> Words:
    """Find and hash all words of one or more texts."""
    joined, base = join_texts(texts)
    kinds = classify(joined)
    start, end = words_in(kinds)
    folded = lower_case(joined)
    codes = codes_of(folded)
    text = base.searchsorted(start, side="right") - 1
    white = np.flatnonzero(is_white(kinds))
    line_ends = white[np.isin(codes[white], _LINE_ENDS)]
    lines = line_ends.searchsorted(start)
    # The "ll" in "we'll" cannot be a word of a phrase, but "intelligence" in "l'intelligence" can.
    after_apostrophe = np.isin(codes[start - 1], _APOSTROPHES) & (start > 1)
    suffix = after_apostrophe & ~is_white(kinds)[start - 2] & (end - start <= _LONGEST_SUFFIX)
    return Words(
        text=text,
        start=start - base[text],
        end=end - base[text],
        letter=codes[start],
        key=_hashes(codes, start, end),
        plain=_are_alphanumeric(codes[start]) & ~suffix,
        fresh=changes(lines),
        folded=folded,
        base=base,
    )


class Hashed(NamedTuple):
    """The W words of N texts that begin with a letter or a digit, in text order.

    Attributes:
        key: (W,) the hash of each word, as ``Words.key``.
        sizes: (N,) the number of these words in each text.
        start, end: (W,) the character offsets of each word in the joined texts (`join_texts`).
    """

    key: Hashes
    sizes: Ints
    start: Ints
    end: Ints


def hashes_of(texts: Sequence[str]) -> Hashed:
    """Hash all words of one or more texts, in a third less time than `words_of`."""
    joined, base = join_texts(texts)
    start, end = words_in(classify(joined))
    codes = codes_of(lower_case(joined))
    written = _are_alphanumeric(codes[start])
    text = base.searchsorted(start[written], side="right") - 1
    return Hashed(
        _hashes(codes, start, end)[written],
        np.bincount(text, minlength=len(texts)),
        start[written],
        end[written],
    )


def _are_alphanumeric(codes: CodePoints) -> Flags:
    """Return a flag for each code point: whether it is a letter or a digit."""
    # Thousands of words have few distinct first letters, so Python checks each letter only once.
    distinct, which = np.unique(codes, return_inverse=True)
    return np.fromiter(map(str.isalnum, map(chr, distinct)), dtype=bool)[which]


def lower_case(text: str) -> str:
    """Convert a text to lower case without changing the number of characters."""
    # `str.lower` turns İ into two characters. It turns Σ into ς only at the end of a word.
    return text.replace("İ", "i").lower().replace("ς", "σ")


def keys_of(words: Sequence[str]) -> Hashes:
    """Return the hashes (W,) of words, from their strings."""
    joined, start = join_texts(list(map(lower_case, words)))
    # Each word ends at a line break, right before the next word.
    end = np.append(start[1:], len(joined)) - 1
    return _hashes(codes_of(joined), start, end)


def _hashes(codes: CodePoints, start: Ints, end: Ints) -> Hashes:
    """Return the hashes (W,) of words, from the code points of a text and the words' offsets."""
    if not len(start):
        return np.zeros(0, dtype=np.uint64)
    lengths = np.diff(start, prepend=0, append=len(codes))
    position = rank_within(lengths).view(np.uint64)
    # Code points have 21 bits, so a letter and its position do not overlap.
    position <<= np.uint64(21)
    position += codes
    letters = rehashed(position)
    # Every second sum is over the characters between two words, which do not matter.
    borders = np.stack([start, end], 1).ravel()
    sums = np.add.reduceat(letters, borders)[::2]
    return np.minimum(rehashed(sums), LAST)


def rehashed(x: Hashes) -> Hashes:
    """Hash 64-bit numbers (SplitMix64's finaliser). Each bit of x affects all bits of the hash."""
    # Later steps overwrite the array of the first, because new memory takes as long as the sums.
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def blocks(texts: Iterable[str]) -> Iterator[Words]:
    """Yield the words of texts, one block of texts at a time."""
    return map(words_of, batches(texts, BLOCK_CHARACTERS))


# Tables of counts
# -------------------------------------------------------------------------------------------


class CountTable:
    """Counts of at most ``limit`` distinct 64-bit keys. Above this limit, the rarest are dropped.

    Attributes:
        lost: an upper bound on the occurrences of any key that are missing in its count.
        total: the number of keys that were added, including repeated keys.
    """

    def __init__(self, *, limit: int = 15_000_000):
        self._keys = np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[Hashes] = []
        self.limit = limit
        self.lost = 0
        self.total = 0

    def add(self, keys: Hashes) -> None:
        """Count each of these keys, as often as it is repeated."""
        self.total += len(keys)
        self._waiting.append(keys)
        # Every merge copies the table, so new keys are collected before a merge.
        waiting = sum(map(len, self._waiting))
        if waiting > max(1 << 21, len(self._keys) // 2):
            self._merge()

    @property
    def keys(self) -> Hashes:
        """The distinct keys (K,), ascending."""
        self._merge()
        return self._keys

    @property
    def counts(self) -> Ints:
        """The count of each key, (K,)."""
        self._merge()
        return self._counts

    def of(self, wanted: Hashes) -> Ints:
        """Return the counts of the wanted keys, (W,). The count of an unknown key is 0."""
        return np.append(self.counts, 0)[places_of_keys(self.keys, wanted)]

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
            # Dropping half of the limit at once means that this happens rarely.
            place = len(keys) - self.limit // 2
            least = int(np.partition(counts, place)[place])
            keep = counts > least
            keys = keys[keep]
            counts = counts[keep]
            self.lost += least
        self._keys = keys
        self._counts = counts


class WordCounts(CountTable):
    """The counts of the words in a corpus, and the string of each word."""

    def __init__(self) -> None:
        super().__init__(limit=4_000_000)
        self._names: dict[int, str] = {}

    def count(self, words: Words, keep: Flags) -> None:
        """Count the words for which ``keep`` (W,) is true, and store their strings."""
        places = np.flatnonzero(keep)
        distinct, first = np.unique(words.key[places], return_index=True)
        for key, place in zip(distinct.tolist(), places[first].tolist()):
            if key not in self._names:
                self._names[key] = words.name(place)
        self.add(words.key[places])
        # The table has dropped rare keys. Without dropping their strings, memory would grow.
        if len(self._names) > 2 * self.limit:
            kept = self.keys
            self._names = dict(zip(kept.tolist(), self.names(kept)))

    def names(self, keys: Hashes) -> list[str]:
        """Return the words with these hashes."""
        return list(map(self._names.__getitem__, keys.tolist()))


def places_of_keys(keys: Array, wanted: Array) -> Ints:
    """Return (W,) the index of each wanted key in ``keys``, which ascend; −1 for an unknown key."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = keys.searchsorted(wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def pair_keys(left: Ints, right: Ints) -> Hashes:
    """Pack pairs of numbers below 2³² into keys. The left number is in the upper 32 bits."""
    upper = left.astype(np.uint64) << _HALF
    return upper | right.astype(np.uint64)


def halves(keys: Hashes) -> tuple[Ints, Ints]:
    """Return the left and the right numbers that ``pair_keys`` packed into keys."""
    left = (keys >> _HALF).astype(np.int64)
    right = (keys & _LOW).astype(np.int64)
    return left, right


class Spill:
    """A temporary file of arrays, for arrays that do not fit in memory. They are read in order."""

    def __init__(self, folder: Path):
        # The file must stay open after this method, so ``with`` cannot be used.
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
# N-grams are counted by ascending length. An n-gram consists of two overlapping (n−1)-grams. An
# n-gram is never more frequent than these parts. Therefore only pairs of frequent (n−1)-grams are
# counted, which limits the number of rare n-grams in memory. The corpus is read only once. The ids
# of its words are stored in a temporary file, which needs 16 bytes per word. An n-gram never
# crosses punctuation or the end of a line or document.
#
# Counts are exact as long as the candidates of one length fit in a table of 15 million (9 million
# words of Wikipedia have 1.4 million candidates). In larger corpora, a count is too low by at most
# ``Counted.lost``. With a table of only 300,000, ``lost`` was 7 for these words of Wikipedia, and
# 98 % of the phrases stayed the same.

# Markers between the keys in a temporary file: _DOCUMENT before a text, and _BORDER at other places
# that n-grams do not cross. They are larger than any pair of ids. Their ids are −2 and −1.
_BORDER = np.uint64(2**64 - 1)
_DOCUMENT = np.uint64(2**64 - 2)


class Level(NamedTuple):
    """The G frequent n-grams of one length, by ascending key. The id of an n-gram is its index.

    Attributes:
        keys: (G,) for n = 1, the hashes of the words. For n > 1, pairs of ids (``pair_keys``): of
            the first n − 1 words of the n-gram, and of its last n − 1 words.
        counts: (G,) the number of times that each n-gram occurs.
        documents: (G,) the number of texts in which each n-gram occurs.
    """

    keys: Hashes
    counts: Ints
    documents: Ints

    def parts(self, ids: Ints) -> tuple[Ints, Ints]:
        """Return the ids of the (n − 1)-grams at the start and at the end of n-grams."""
        return halves(self.keys[ids])


class Counted(NamedTuple):
    """The frequent n-grams in a corpus.

    Attributes:
        levels: for each length 1, 2, …, the n-grams of this length.
        total: the number of words in the corpus.
        lost: an upper bound on the occurrences of an n-gram that were not counted.
        names: the strings of the words.
    """

    levels: list[Level]
    total: int
    lost: int
    names: WordCounts

    def texts(self, length: int, ids: Ints) -> list[str]:
        """Return the n-grams with these ids as strings, with a space between words."""
        level = self.levels[length - 1]
        if length == 1:
            return self.names.names(level.keys[ids])
        heads, tails = level.parts(ids)
        texts = []
        openings = self.texts(length - 1, heads)
        endings = self.texts(length - 1, tails)
        # The opening (n − 1)-gram lacks only the last word of the n-gram.
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
        min_count: n-grams are counted only if they occur more than this many times.
        min_documents: n-grams are counted only if they occur in at least this many documents.
        longest: the maximum number of words in an n-gram.
    """
    names = WordCounts()
    corpus = Spill(folder)
    for words in blocks(texts):
        names.count(words, words.plain)
        corpus.write(_bordered(words))
    ids, level = _identify(corpus, names, folder, min_count, min_documents)
    levels = [level]
    lost = names.lost
    for _ in range(2, longest + 1):
        table = CountTable()
        pairs = Spill(folder)
        for block in ids:
            keys = _pairs(block)
            table.add(keys[keys < _DOCUMENT])
            pairs.write(keys)
        ids, level = _identify(pairs, table, folder, min_count, min_documents)
        levels.append(level)
        lost = max(lost, table.lost)
    return Counted(levels, names.total, lost, names)


def _bordered(words: Words) -> Hashes:
    """Return the keys of words, with a marker for punctuation, and before each line and text."""
    keys = np.where(words.plain, words.key, _BORDER)
    at = np.flatnonzero(words.fresh)
    marks = np.where(changes(words.text[at]), _DOCUMENT, _BORDER)
    return np.insert(keys, at, marks)


def _pairs(ids: Ints) -> Hashes:
    """Return the key of the n-gram that begins with each (n − 1)-gram; a marker if it is rare."""
    following = np.append(ids[1:], -1)
    border = np.where(ids == -2, _DOCUMENT, _BORDER)
    both_frequent = (ids >= 0) & (following >= 0)
    return np.where(both_frequent, pair_keys(ids, following), border)


def _identify(
    corpus: Spill,
    table: CountTable,
    folder: Path,
    min_count: int,
    min_documents: int,
) -> tuple[Spill, Level]:
    """Replace the keys in a corpus by the ids of frequent n-grams; return both."""
    frequent = table.counts > min_count
    keys = table.keys[frequent]
    documents = np.zeros(len(keys), dtype=np.int64)
    for block in corpus:
        # A document is never split over two blocks, so a block counts an n-gram once per document.
        number = np.cumsum(block == _DOCUMENT)
        place = places_of_keys(keys, block)
        here = place >= 0
        pairs = np.unique(pair_keys(number[here], place[here]))
        _, of_pair = halves(pairs)
        documents += np.bincount(of_pair, minlength=len(keys))
    kept = documents >= min_documents
    keys = keys[kept]
    ids = Spill(folder)
    for block in corpus:
        ids.write(np.where(block == _DOCUMENT, -2, places_of_keys(keys, block)))
    counts = table.counts[frequent]
    return ids, Level(keys, counts[kept], documents[kept])


# Tables of a fit
# -------------------------------------------------------------------------------------------


def read_parquet(path: Path, *columns: str) -> pa.Table:
    """Read columns from a Parquet file.

    Raises:
        MaskwiseError: the file is missing, is damaged or lacks a column.
    """
    refuse_damaged(path.parent)
    try:
        return pq.read_table(path).select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise MaskwiseError(
            f"cannot read {path}: {error}",
            do="give a folder OUT/fitted/NAME-… that maskwise annotate wrote",
        ) from None


def texts_in(path: Path, column: pa.ChunkedArray, *, what: str) -> list[str]:
    """Return the texts of a column that a user may have edited; ``what`` they are, such as "word".

    Raises:
        MaskwiseError: a row has no text.
    """
    texts = column.to_pylist()
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise MaskwiseError(f"{path}: row {number} has no {what}", got=text, allowed="a text")
    return texts
