"""The words of texts as numbers: found, put in lower case and hashed without a loop over words, so
that a corpus can be counted at the speed at which it is read.

A word is what words.py calls one, in lower case, and is known by a 64-bit hash of its letters: the
hash of a word is the sum of a hash of each letter with its place, for all words of a block at once.
Among a million different words two share a hash with a chance of 3 in 10⁸. Strings are kept for
display only.

Cost: 0.5 µs a word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.folders import refuse_damaged
from maskwise.text.documents import batches
from maskwise.text.layers import CharSpans
from maskwise.text.words import classify, is_white, words_in

if TYPE_CHECKING:
    from maskwise.keys import Array

Flags = NDArray[np.bool_]

BLOCK_CHARACTERS = 1 << 21
"""Texts are taken together up to this size: 60 bytes a character, so about 130 MB (more for one
longer text).
"""
RULES = "counts-1"
"""Part of the version of whatever depends on hashes and borders."""

LAST = np.uint64(2**64 - 3)
"""The largest hash: the two above it are free for marks."""

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
    plain: Flags  # (W,) begins with a letter or digit, and is not what follows an apostrophe
    fresh: Flags  # (W,) first word of a text or a line
    folded: str  # the texts in lower case, one after the other, …
    base: Ints  # (N,) … and where each begins there

    def name(self, place: int) -> str:
        """The word itself, in lower case."""
        base = int(self.base[self.text[place]])
        return self.folded[base + int(self.start[place]) : base + int(self.end[place])]

    def spans(self, first: Ints, last: Ints, value: Array | None = None) -> list[CharSpans]:
        """The spans of each of the N texts from words to words (S,), in order, with their values
        (S,).
        """
        start = self.start[first].astype(np.int32)
        end = self.end[last].astype(np.int32)
        cuts = np.searchsorted(self.text[first], np.arange(len(self.base) + 1))
        parts = [slice(low, high) for low, high in pairwise(cuts.tolist())]
        return [
            CharSpans(start[own], end[own], None if value is None else value[own]) for own in parts
        ]


def words_of(texts: Sequence[str]) -> Words:
    """Find and hash all words."""
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
    base = np.cumsum(sizes) - sizes
    joined = "".join(text + "\n" for text in texts)
    kinds = classify(joined)
    start, end = words_in(kinds)
    folded = fold(joined)
    codes = _codes(folded)
    text = np.searchsorted(base, start, side="right") - 1
    lines = np.append(0, np.cumsum(np.isin(codes, _LINE_ENDS)))[start]
    fresh = np.ones(len(start), dtype=bool)
    fresh[1:] = lines[1:] != lines[:-1]
    # What follows an apostrophe inside a word is no word of a phrase: don't, women's.
    suffix = np.isin(codes[start - 1], _APOSTROPHES) & ~is_white(kinds)[start - 2] & (start > 1)
    plain = _plain(codes[start]) & ~suffix
    return Words(
        text=text,
        start=start - base[text],
        end=end - base[text],
        letter=codes[start],
        key=_hashes(codes, start, end),
        plain=plain,
        fresh=fresh,
        folded=folded,
        base=base,
    )


def fold(text: str) -> str:
    """Lower case, a character for a character (only "İ" would become two), whatever stands beside
    it (as with "Σ").
    """
    return text.replace("İ", "i").lower().replace("ς", "σ")


def keys_of(words: Sequence[str]) -> Keys:
    """(W,) the hashes of words that are given as strings."""
    codes = _codes("".join(fold(word) + "\n" for word in words))
    end = np.cumsum(np.fromiter(map(len, words), dtype=np.int64, count=len(words)) + 1) - 1
    return _hashes(codes, np.append(0, end[:-1] + 1)[: len(words)], end)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _hashes(codes: NDArray[np.uint32], start: Ints, end: Ints) -> Keys:
    """(W,) the sum of a hash of each letter with its place in the word, mixed once more."""
    if not len(start):
        return np.zeros(0, dtype=np.uint64)
    origin = np.repeat(np.append(0, start), np.diff(start, prepend=0, append=len(codes)))
    place = (np.arange(len(codes)) - origin).astype(np.uint64)
    letters = mixed(codes + (place << np.uint64(21)))
    return np.minimum(mixed(np.add.reduceat(letters, np.stack([start, end], 1).ravel())[::2]), LAST)


def mixed(x: Keys) -> Keys:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _plain(codes: NDArray[np.uint32]) -> Flags:
    distinct, which = np.unique(codes, return_inverse=True)
    return np.array([chr(code).isalnum() for code in distinct], dtype=bool)[which]


def blocks(texts: Iterable[str]) -> Iterator[Words]:
    """The words of a stream, some thousand texts at a time."""
    return map(words_of, batches(texts, BLOCK_CHARACTERS))


class Vocabulary:
    """The words of a corpus with their counts, and a string for each."""

    def __init__(self, *, limit: int = 4_000_000):
        self.table = Table(limit=limit)
        self._names: dict[int, str] = {}

    def add(self, words: Words, keep: Flags) -> None:
        """Count the words where ``keep`` (W,) is true."""
        places = np.flatnonzero(keep)
        distinct, first = np.unique(words.key[places], return_index=True)
        for key, place in zip(distinct.tolist(), places[first].tolist()):
            if key not in self._names:
                self._names[key] = words.name(place)
        self.table.add(words.key[places])
        if len(self._names) > 2 * self.table.limit:
            self._names = {key: self._names[key] for key in self.table.keys.tolist()}

    def names(self, keys: Keys) -> list[str]:
        return [self._names[key] for key in keys.tolist()]


# Tables of counts
# ------------------------------------------------------------------------------------------


Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]


class Table:
    """Counts of 64-bit keys, at most ``limit`` of them.

    Attributes:
        keys: (K,) ascending.
        counts: (K,) int64, of each key.
        lost: how much any count may be too low; a key that is missing has at most this many.
        total: all that was counted.
    """

    def __init__(self, *, limit: int = 15_000_000):
        self._keys = np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[tuple[Keys, Ints]] = []
        self.limit = limit
        self.lost = 0
        self.total = 0

    def add(self, keys: Keys, counts: Ints | None = None) -> None:
        """Count keys, each once or ``counts`` times."""
        distinct, number = summed(keys, counts)
        self.total += int(number.sum())
        self._waiting.append((distinct, number))
        # Merged only when there is much to merge, so that the table is not copied for every block.
        if sum(len(new) for new, _ in self._waiting) > max(1 << 21, len(self._keys) // 2):
            self._merge()

    @property
    def keys(self) -> Keys:
        self._merge()
        return self._keys

    @property
    def counts(self) -> Ints:
        self._merge()
        return self._counts

    def _merge(self) -> None:
        if not self._waiting:
            return
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._waiting)])
        self._waiting = []
        keys, counts = summed(keys, counts)
        if len(keys) > self.limit:
            place = len(keys) - self.limit // 2  # half of the room, so that pruning is rare
            least = int(np.partition(counts, place)[place])
            keep = counts > least
            keys = keys[keep]
            counts = counts[keep]
            self.lost += least
        self._keys = keys
        self._counts = counts


def summed(keys: Keys, counts: Ints | None = None) -> tuple[Keys, Ints]:
    """Distinct keys, ascending, and how often each is there (or the sum of its counts)."""
    if counts is None:
        return np.unique(keys, return_counts=True)
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")  # merges runs that are sorted already
    ordered = keys[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return ordered[first], np.add.reduceat(counts[order], first)


def find(keys: Array, wanted: Array) -> Ints:
    """(W,) where each wanted key stands among the ascending ``keys`` (K,); −1 where it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


class Spill:
    """Blocks of numbers written to a temporary file and read back in order: a corpus as ids, 4 to 8
    bytes a word.
    """

    def __init__(self, folder: Path, dtype: type[np.generic]):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with its last reference)
        self._dtype = dtype
        self._sizes: list[int] = []

    def write(self, block: Array) -> None:
        self._file.write(block.astype(self._dtype, copy=False).tobytes())
        self._sizes.append(len(block))

    def __iter__(self) -> Iterator[Array]:
        self._file.seek(0)
        for size in self._sizes:
            yield np.frombuffer(
                self._file.read(size * np.dtype(self._dtype).itemsize), dtype=self._dtype
            )


def write_table(path: Path, columns: Mapping[str, object]) -> None:
    """Columns of one length as a Parquet file."""
    pq.write_table(pa.table(dict(columns)), path)


def read_table(path: Path, *columns: str) -> dict[str, Any]:
    """Columns of a Parquet file: strings as lists, numbers as arrays.

    Raises:
        MaskwiseError: a file that is not there, is damaged or lacks a column.
    """
    refuse_damaged(path.parent)
    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        do = "give the folder that maskwise annotate has filled (OUT/fitted/NAME-…)"
        raise MaskwiseError(f"cannot read {path}: {error}", do=do) from None
    missing = set(columns) - set(table.column_names)
    if missing:
        raise MaskwiseError(
            f"{path} lacks columns", got=", ".join(table.column_names), allowed=", ".join(missing)
        )
    read: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns):
        read[name] = column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()
    return read


def joined(left: Ints, right: Ints) -> Keys:
    """Pairs of numbers below 2³² as keys: the left ones in the upper 32 bits."""
    return (left.astype(np.uint64) << _HALF) | right.astype(np.uint64)


def halves(keys: Keys) -> tuple[Ints, Ints]:
    """The numbers of which ``joined`` made keys."""
    return (keys >> _HALF).astype(np.int64), (keys & _LOW).astype(np.int64)
