"""Words of texts as 64-bit hashes, and tables that count them, without a Python loop over words.

Words follow words.py, in lower case. The hash of a word is the sum of a hash of each letter with
its place. Among a million different words two share a hash with a chance of 3 in 10⁸. Strings are
kept for display only. Cost: 0.5 µs a word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.folders import refuse_damaged
from maskwise.segments import Array, changes
from maskwise.text.documents import batches
from maskwise.text.layers import CharSpans
from maskwise.text.words import classify, is_white, words_in

Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

BLOCK_CHARACTERS = 1 << 21
"""Texts are processed together up to this size: at 60 bytes a character, about 130 MB."""
RULES = "counts-1"
"""Part of the version of every annotator that depends on hashes and borders."""
LAST = np.uint64(2**64 - 3)
"""The largest hash; the two numbers above it are free for marks."""

_HALF = np.uint64(32)
_LOW = np.uint64(2**32 - 1)
_APOSTROPHES = np.array([0x27, 0x2019], dtype=np.uint32)
_LINE_ENDS = np.array([10, 11, 12, 13, 0x85, 0x2028, 0x2029], dtype=np.uint32)


class Words(NamedTuple):
    """The W words of N texts, in order."""

    text: Ints  # (W,) the number of the text
    start: Ints  # (W,) characters in that text …
    end: Ints  # … exclusive
    letter: NDArray[np.uint32]  # (W,) the code of its first character, in lower case
    key: Keys  # (W,) hash of the word in lower case, at most `LAST`
    plain: Flags  # (W,) begins with a letter or digit and does not follow an apostrophe
    fresh: Flags  # (W,) first word of a text or a line
    folded: str  # the texts in lower case, one after the other, …
    base: Ints  # (N,) … and the offset of each

    def name(self, place: int) -> str:
        """The word itself, in lower case."""
        base = int(self.base[self.text[place]])
        return self.folded[base + int(self.start[place]) : base + int(self.end[place])]

    def spans(self, first: Ints, last: Ints, *values: Array) -> list[CharSpans]:
        """Spans of each text, from word ``first`` to word ``last`` (S,), with ``values`` (S,)."""
        start = self.start[first].astype(np.int32)
        end = self.end[last].astype(np.int32)
        cuts = np.searchsorted(self.text[first], np.arange(1, len(self.base)))
        columns = [np.split(column, cuts) for column in (start, end, *values)]
        return [CharSpans(*parts) for parts in zip(*columns)]


def words_of(texts: Sequence[str]) -> Words:
    """Find and hash all words of one or more texts."""
    # A line end after every text keeps words of two texts apart.
    sizes = _sizes(texts) + 1
    base = np.cumsum(sizes) - sizes
    joined = "".join(text + "\n" for text in texts)
    kinds = classify(joined)
    start, end = words_in(kinds)
    folded = fold(joined)
    codes = _codes(folded)
    text = np.searchsorted(base, start, side="right") - 1
    lines = np.append(0, np.cumsum(np.isin(codes, _LINE_ENDS)))[start]
    # What follows an apostrophe inside a word is not a word of a phrase: don't, women's.
    suffix = np.isin(codes[start - 1], _APOSTROPHES) & ~is_white(kinds)[start - 2] & (start > 1)
    distinct, which = np.unique(codes[start], return_inverse=True)
    alphanumeric = np.array([chr(code).isalnum() for code in distinct], dtype=bool)
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
    """Lower case with the same number of characters, whatever the context ("İ", "Σ")."""
    return text.replace("İ", "i").lower().replace("ς", "σ")


def keys_of(words: Sequence[str]) -> Keys:
    """(W,) the hashes of words that are given as strings."""
    codes = _codes("".join(fold(word) + "\n" for word in words))
    sizes = _sizes(words)
    end = np.cumsum(sizes + 1) - 1
    return _hashes(codes, end - sizes, end)


def _sizes(texts: Sequence[str]) -> Ints:
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _hashes(codes: NDArray[np.uint32], start: Ints, end: Ints) -> Keys:
    """(W,) the sum of a hash of each letter with its place in the word, mixed once more."""
    if not len(start):
        return np.zeros(0, dtype=np.uint64)
    origin = np.repeat(np.append(0, start), np.diff(start, prepend=0, append=len(codes)))
    place = (np.arange(len(codes)) - origin).astype(np.uint64)
    letters = mixed(codes + (place << np.uint64(21)))
    borders = np.stack([start, end], 1).ravel()
    sums = np.add.reduceat(letters, borders)[::2]
    return np.minimum(mixed(sums), LAST)


def mixed(x: Keys) -> Keys:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def blocks(texts: Iterable[str]) -> Iterator[Words]:
    """The words of a stream, some thousand texts at a time."""
    return map(words_of, batches(texts, BLOCK_CHARACTERS))


# Tables of counts
# -------------------------------------------------------------------------------------------


class Table:
    """Counts of 64-bit keys, at most ``limit`` of them.

    Attributes:
        lost: how much any count may be too low; a missing key has at most this count.
        total: all that was counted.
    """

    def __init__(self, *, limit: int = 15_000_000):
        self._keys = np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[Keys] = []
        self.limit = limit
        self.lost = 0
        self.total = 0

    def add(self, keys: Keys) -> None:
        """Count keys, each once."""
        self.total += len(keys)
        self._waiting.append(keys)
        # Merge only when there is much to merge: every merge copies the table.
        if sum(map(len, self._waiting)) > max(1 << 21, len(self._keys) // 2):
            self._merge()

    @property
    def keys(self) -> Keys:
        """(K,) the keys, ascending."""
        self._merge()
        return self._keys

    @property
    def counts(self) -> Ints:
        """(K,) the count of each key."""
        self._merge()
        return self._counts

    def of(self, wanted: Keys) -> Ints:
        """(W,) the counts of some keys; 0 for keys that the table does not have."""
        return np.append(self.counts, 0)[find(self.keys, wanted)]

    def _merge(self) -> None:
        if not self._waiting:
            return
        new, times = np.unique(np.concatenate(self._waiting), return_counts=True)
        self._waiting = []
        keys = np.concatenate([self._keys, new])
        # a stable sort merges two sorted runs in linear time
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        counts = np.concatenate([self._counts, times])[order]
        if len(keys):
            first = np.flatnonzero(changes(keys))
            keys = keys[first]
            counts = np.add.reduceat(counts, first)
        if len(keys) > self.limit:
            # prune to half of the limit, so that pruning is rare
            place = len(keys) - self.limit // 2
            least = int(np.partition(counts, place)[place])
            keep = counts > least
            keys = keys[keep]
            counts = counts[keep]
            self.lost += least
        self._keys = keys
        self._counts = counts


class Vocabulary(Table):
    """The words of a corpus with their counts, and a string for each."""

    def __init__(self) -> None:
        super().__init__(limit=4_000_000)
        self._names: dict[int, str] = {}

    def count(self, words: Words, keep: Flags) -> None:
        """Count the words where ``keep`` (W,) is true."""
        places = np.flatnonzero(keep)
        distinct, first = np.unique(words.key[places], return_index=True)
        for key, place in zip(distinct.tolist(), places[first].tolist()):
            if key not in self._names:
                self._names[key] = words.name(place)
        self.add(words.key[places])
        if len(self._names) > 2 * self.limit:
            self._names = {key: self._names[key] for key in self.keys.tolist()}

    def names(self, keys: Keys) -> list[str]:
        """The words with these hashes."""
        return [self._names[key] for key in keys.tolist()]


def find(keys: Array, wanted: Array) -> Ints:
    """(W,) the place of each wanted key among the ascending ``keys`` (K,); −1 if it is missing."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def joined(left: Ints, right: Ints) -> Keys:
    """Pairs of numbers below 2³² as keys: the left ones in the upper 32 bits."""
    return (left.astype(np.uint64) << _HALF) | right.astype(np.uint64)


def halves(keys: Keys) -> tuple[Ints, Ints]:
    """The left and the right numbers of keys that ``joined`` made."""
    return (keys >> _HALF).astype(np.int64), (keys & _LOW).astype(np.int64)


class Spill:
    """Blocks of numbers in a temporary file, read back in order: 8 bytes a word of the corpus."""

    def __init__(self, folder: Path):
        # closed with its last reference
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._blocks = 0

    def write(self, block: Array) -> None:
        np.save(self._file, block)
        self._blocks += 1

    def __iter__(self) -> Iterator[Array]:
        self._file.seek(0)
        for _ in range(self._blocks):
            yield np.load(self._file)


def write_table(path: Path, columns: Mapping[str, object]) -> None:
    """Write columns of one length as a Parquet file."""
    pq.write_table(pa.table(dict(columns)), path)


def read_table(path: Path, *columns: str) -> pa.Table:
    """Read columns of a Parquet file.

    Raises:
        MaskwiseError: a file that is missing, damaged or lacks a column.
    """
    refuse_damaged(path.parent)
    try:
        return pq.read_table(path).select(columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        do = "give the folder that maskwise annotate has filled (OUT/fitted/NAME-…)"
        raise MaskwiseError(f"cannot read {path}: {error}", do=do) from None
