"""Runs of words in a row, by which texts are compared: for overlaps, and for near copies.

A word begins with a letter or a digit, and its case does not matter. Punctuation and white space
make no difference, and each ideograph is a word. Runs are compared as 64-bit hashes. With a billion
words and a thousand texts to find, the probability of a false match is about 10⁻⁷.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import Hashes, rehashed

# The base of a polynomial hash: 2⁶⁴ / φ, an odd number whose bits have no pattern.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def runs_in(
    values: NDArray[np.generic], sizes: Sequence[int] | NDArray[np.int64], lengths: Collection[int]
) -> Iterator[tuple[int, Hashes, NDArray[np.int64]]]:
    """Yield each length, in ascending order, with the runs of this length.

    Args:
        values: (W,) whole numbers, text after text, such as the hashes of words or tokens.
        sizes: (T,) the number of values of each text. No run extends beyond the end of its text.

    Yields:
        The length; the hashes (R,) of the runs; and the index of the first value of each.
    """
    text_W = np.repeat(np.arange(len(sizes)), sizes)
    terms = rehashed(values.astype(np.uint64))
    total = np.zeros_like(terms)
    # A polynomial modulo 2⁶⁴: the hash for length n + 1 extends the hash for length n.
    for length in range(1, min(max(lengths, default=0), len(terms)) + 1):
        total = total[: len(terms) - length + 1] * _BASE + terms[length - 1 :]
        if length in lengths:
            whole = text_W[: len(total)] == text_W[length - 1 :]
            yield length, total[whole], np.flatnonzero(whole)


def runs_or_whole(
    values: NDArray[np.generic], sizes: NDArray[np.int64], length: int
) -> tuple[Hashes, NDArray[np.int64]]:
    """Find the runs of one length in each text. A shorter text is one run.

    Returns:
        For each value (W,), the hash of the run that begins with it, and the length of this run,
        which is 0 if no run begins there.
    """
    hash_W = np.zeros(len(values), dtype=np.uint64)
    length_W = np.zeros(len(values), dtype=np.int64)
    needed_T = np.minimum(sizes, length)
    needed_W = needed_T.repeat(sizes)
    for some, hashes, place in runs_in(values, sizes, set(needed_T.tolist())):
        own = needed_W[place] == some
        hash_W[place[own]] = hashes[own]
        length_W[place[own]] = some
    return hash_W, length_W


class HashFilter:
    """A Bloom filter with one hash function: rejects nearly all hashes that are not wanted.

    ``bits[b]`` is true if the upper 22 bits of any wanted hash are b. Without a look at this table,
    nearly all runs of a corpus would be searched in vain.
    """

    def __init__(self, wanted: Hashes):
        self.bits = np.zeros(1 << 22, dtype=bool)
        self.bits[wanted >> np.uint64(42)] = True

    def likely(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return a flag for each hash: false if it is certainly not wanted."""
        return self.bits[hashes >> np.uint64(42)]
