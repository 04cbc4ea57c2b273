"""Random numbers without state: a hash of (seed, epoch, example id, index, purpose).

Such a random 32-bit number is called a *draw*. A *purpose* says what the draw is used for, such as
the order in which words are masked, or the choice of a random token. An *example* is a piece of a
document.

Why: a number from a random generator depends on all numbers drawn before, and thus on batch size,
workers, ranks and resumes. A hash depends only on its arguments. Masks are therefore the same for
any composition of batches, and there is no state to save.

How: seed, epoch and purpose select a bijection on 64 bits. It maps an example id to two 32-bit
words, ``start`` and ``odd``. The draw with index i of this example is ``mix(start + i · odd)``. All
steps are bijections. Therefore, **draws of one example are distinct** (no ties), and two examples
have different words, unless the words differ only in the lowest bit of ``odd``, which is set to 1.
Examples have different factors ``odd``, because with the same factor, the draws of two examples
could be shifted copies of each other (``tests/test_draws.py`` searches for such copies).

A draw takes ten integer operations in numpy, so one core makes about 300M draws per second.

The mixers are Chris Wellons' ``lowbias32`` (public domain; nullprogram.com/blog/2018/07/31) and the
finaliser of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA, figure 17).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

_WORD = 1 << 32
# Rounds of (shift, factor). The last round only shifts.
_MIX_32 = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))
_MIX_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class Purpose(IntEnum):
    """What a draw is used for. Masks depend on these numbers: append new ones, but change none.

    A policy of a plug-in uses ``ACCEPT`` and ``PARTITION``, and a corruption ``SHOW``, ``REPLACE``,
    ``LENGTH`` and ``PERMUTE``.
    """

    SELECT = 1  # the order in which units (tokens, words, spans) are selected
    ROUND = 2  # stochastic rounding of the number of tokens to mask
    BORDER = 3  # whether the unit that would exceed the number is selected (budget "expected")
    SHOW = 4  # whether a token is masked, replaced or kept
    REPLACE = 5  # which random token replaces a token
    RATIO = 6  # the masking ratio of a piece, if the ratio is a distribution
    PARTITION = 7  # random partitions of a piece, such as spans
    MIXTURE = 8  # which policy of a mixture is used
    FILL = 9  # no longer used
    PREDICT = 10  # which corrupted tokens are predicted
    LENGTH = 11  # lengths and places of insertions and infilled spans
    PERMUTE = 12  # the order of sentences
    ACCEPT = 13  # which units a policy accepts or draws (PTW, learned policies)
    BERNOULLI = 14  # independent selection of units (budget "bernoulli")


def mix(x: Array) -> Array:
    """Return a pseudo-random bijection (lowbias32) of int32 numbers, in an array of any shape."""
    return _mix_(x.copy(), _MIX_32)


def _mix_(x: Array, rounds: tuple[tuple[int, int], ...]) -> Array:
    """Apply bijective rounds to 32-bit or 64-bit integers in place."""
    # The view is unsigned, because a shift of signed integers would copy the sign bit.
    bits: Array = x.view(f"u{x.itemsize}")
    for shift, factor in rounds:
        bits ^= bits >> shift
        if factor != 1:
            bits *= factor
    return x


def mix_int(x: int) -> int:
    """Return ``mix`` of the low 32 bits of a Python integer, as an unsigned integer."""
    x %= _WORD
    for shift, factor in _MIX_32:
        x ^= x >> shift
        x = x * factor % _WORD
    return x


def fold(*numbers: int, word: int = 0x9E3779B9) -> int:
    """Hash 64-bit integers to one unsigned 32-bit word. The order of the integers matters.

    >>> fold(1, 2) == fold(2, 1), 0 <= fold(-1) < 2**32, fold(1, 2) == fold(2, word=fold(1))
    (False, True, True)
    """
    for number in numbers:
        for half in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF):
            word = mix_int(mix_int(word ^ half) + 0x6A09E667)
    return word


@lru_cache(maxsize=64)
def _shared(seed: int, epoch: int | None, step: int) -> tuple[Array, Array]:
    """Return a summand and an odd factor for each purpose, both (len(Purpose), 1) int64."""
    common = fold(seed, 1, step) if epoch is None else fold(seed, 0, epoch)
    lanes = np.array([fold(lane, word=common) for lane in range(4)]).astype(np.int32)
    purposes = np.arange(1, len(Purpose) + 1, dtype=np.int32)[:, None]
    words = mix(mix(lanes ^ purposes) + purposes)
    # The four 32-bit words of each purpose are two 64-bit words.
    add, odd = np.hsplit(words.view(np.int64), 2)
    return add, odd | 1


class Draws:
    """The random draws for a batch of P document pieces.

    Args:
        example_id: (P,) int64, the permanent id of each piece.
        seed: any integer.
        epoch: the pass over the data. If None, draws depend on the step instead.
        step: the optimiser step; used only if ``epoch`` is None.
    """

    def __init__(self, example_id: Array, *, seed: int, epoch: int | None, step: int = 0):
        if epoch is not None:
            # ``_shared`` caches its result for equal arguments, so it runs once in an epoch.
            step = 0
        self._example_id = example_id
        self._shared = _shared(seed, epoch, step)
        self._halves: dict[int, Array] = {}

    def _words(self, purpose: Purpose) -> tuple[Array, Array]:
        """Return ``start`` and ``odd`` of each piece, both (P,) int32."""
        # Seven purposes are computed at once, because for a small batch, a numpy call costs more
        # than its arithmetic. Most batches need only the first seven purposes.
        half, row = divmod(purpose - 1, 7)
        if half not in self._halves:
            add, odd = self._shared
            part = slice(7 * half, 7 * half + 7)
            mixed = _mix_(self._example_id * odd[part] + add[part], _MIX_64).view(np.int32)
            # Multiplication by an odd factor is a bijection modulo 2³², so draws are distinct.
            mixed[:, 1::2] |= 1
            self._halves[half] = mixed
        words = self._halves[half][row]
        return words[0::2], words[1::2]

    def draw(self, purpose: Purpose, piece: Array, index: Array | int) -> Array:
        """(N,) int32: draws, uniform over all 32-bit integers and distinct within a piece.

        Args:
            purpose: what the draws are used for. Draws for different purposes are independent.
            piece: (N,) the piece of each draw.
            index: the index of each draw within its piece, (N,) or one number for all draws.
        """
        start_P, odd_P = self._words(purpose)
        key = odd_P[piece]
        key *= np.asarray(index, np.int32)
        key += start_P[piece]
        return _mix_(key, _MIX_32)

    def draw_each(self, purpose: Purpose, counts_P: Array, index: Array) -> Array:
        """(N,) int32: ``draw`` for ``counts_P[p]`` indices of each piece p, in order of pieces."""
        start_P, odd_P = self._words(purpose)
        key = odd_P.repeat(counts_P)
        key *= np.asarray(index, np.int32)
        key += start_P.repeat(counts_P)
        return _mix_(key, _MIX_32)

    def uniform(self, purpose: Purpose, piece: Array, index: Array | int) -> Array:
        """(N,) float64: the same as ``draw``, but uniform in (0, 1) and never 0 or 1."""
        return unit_interval(self.draw(purpose, piece, index))

    def per_piece(self, purpose: Purpose) -> Array:
        """(P,) float64: one draw in (0, 1) for each piece."""
        return unit_interval(self._words(purpose)[1])


def in_lowest_share(draw: Array, share: float) -> Array:
    """Return whether each int32 draw is in the lowest ``share`` (0 to 1) of all int32 numbers."""
    return draw < _edge(share)


def _edge(share: float) -> int:
    """Return the number below which a ``share`` (0 to 1) of all int32 numbers lies."""
    return round(min(max(share, 0.0), 1.0) * _WORD) - (1 << 31)


def index_within(draw: Array, low: float, high: float, count: int) -> Array:
    """Map int32 draws from a part of the int32 range to int64 numbers, uniform in [0, count).

    The part is between the shares ``low`` and ``high`` (0 to 1; see ``in_lowest_share``). The bias
    is below count / (2³² (high − low)).
    """
    first = _edge(low)
    cells = _edge(high) - first
    return (draw.astype(np.int64) - first) * count // cells


def unit_interval(draw: Array) -> Array:
    """Map int32 draws to float64 in (0, 1), in the same order: the centres of 2³² equal cells."""
    u = draw.astype(np.float64)
    u += 2.0**31 + 0.5
    u *= 2.0**-32
    return u


def below(draw: Array, count: int) -> Array:
    """Map int32 draws to int64 numbers in [0, count); the bias is below count / 2³²."""
    return ((draw.astype(np.int64) + (1 << 31)) * count) >> 32


def content_ids(input_ids: Array, content: Array, begin: Array) -> Array:
    """(P,) int64: a hash of the content of each piece, for pieces without an example id.

    Args:
        input_ids: (T,) the tokens of all pieces.
        content: (T,) bool, False for padding and special tokens, which do not affect the hash.
        begin: (P,) the first token of each piece.
    """
    if not len(input_ids):
        return np.zeros(len(begin), np.int64)
    content_so_far = content.cumsum(dtype=np.int32)
    before_P = content_so_far[begin] - content[begin]
    lengths_P = np.diff(begin, append=len(content))
    rank = content_so_far - np.repeat(before_P, lengths_P)
    token = input_ids.astype(np.int32)

    def hashed(odd: int) -> Array:
        # Each token is hashed with its rank, so the sum depends on the order. Padding adds 0.
        words = mix(mix(token + rank * np.int32(odd)) + rank) * content
        return mix(np.add.reduceat(words, begin, dtype=np.int32)).astype(np.int64)

    return (hashed(0x1B873593) << 32) ^ hashed(0x2545F491)


def permutation(size: int, *, seed: int, epoch: int) -> torch.Tensor:
    """Return a random order of rows, (size,) int64, which depends only on the arguments."""
    # Torch is imported here, because reading and masking texts should not wait for the import.
    import torch

    generator = torch.Generator().manual_seed(fold(seed, epoch, 0x0DA7A))
    return torch.randperm(size, generator=generator)
