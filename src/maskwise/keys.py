"""Counter-based randomness: every draw is a function of (seed, epoch, example id, index, purpose).

Why: with a generator, a mask depends on everything drawn before it (batch size, workers, ranks,
resumes). With a hash it depends on its own coordinates only, so masks are the same for any batch
composition, and there is no state to save.

How: per purpose, the 64 bits of an example id are mixed into 64 other bits by a bijection that
(seed, epoch, purpose) choose; they make two words, ``start`` and ``odd``. The key of index i of
that example is ``mix(start + i · odd)``. All steps are bijections, so **keys of one example are
distinct by construction** (no ties), and no two examples have the same words, except for the lowest
bit
of ``odd``. The multiplier differs between examples: with a common multiplier their draws would be
shifted copies of each other (``tests/test_keys.py`` searches for them).

Cost: ten integer operations per draw, in numpy; some 300M draws a second on one core.

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
_A, _B = 0x7FEB352D, 0x846CA68B
# Rounds of (shift, factor); a last one has the factor 1.
_MIX_32 = ((16, _A), (15, _B), (16, 1))
_MIX_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the format: never renumber, only append."""

    SELECT = 1  # the order in which units are taken
    ROUND = 2  # stochastic rounding of the budget
    BORDER = 3  # whether the unit at the border is taken (budget "expected")
    SHOW = 4  # mask, random or keep
    REPLACE = 5  # which random token
    RATIO = 6  # a piece's ratio, where a schedule gives a distribution
    PARTITION = 7  # random partitions, such as spans
    MIXTURE = 8  # which member of a mixture
    FILL = 9  # the order of units that fill an unused budget
    PREDICT = 10  # which corrupted tokens are predicted
    LENGTH = 11  # lengths and places of insertions and infilled spans
    PERMUTE = 12  # the order of sentences
    ACCEPT = 13  # acceptance draws (PTW)
    BERNOULLI = 14  # each unit by itself (budget "bernoulli")


def mix(x: Array) -> Array:
    """A bijection of int32 that looks random (lowbias32). Any shape; the input is left alone."""
    return _mix_(x.copy(), _MIX_32)


def _mix_(x: Array, rounds: tuple[tuple[int, int], ...]) -> Array:
    """Bijective rounds, in place, on 32 or 64 bits."""
    # shifts take no signs in from the left
    bits: Array = x.view(np.uint32 if x.itemsize == 4 else np.uint64)
    for shift, factor in rounds:
        bits ^= bits >> shift
        if factor != 1:
            bits *= factor
    return x


def mix_int(x: int) -> int:
    """``mix`` for one Python integer, unsigned; of more than 32 bits the lower ones count."""
    x %= _WORD
    x ^= x >> 16
    x = (x * _A) % _WORD
    x ^= x >> 15
    x = (x * _B) % _WORD
    return x ^ (x >> 16)


def fold(*numbers: int, word: int = 0x9E3779B9) -> int:
    """Mix any integers (each taken as 64 bits) into one 32-bit word; the order matters.

    >>> fold(1, 2) == fold(2, 1), 0 <= fold(-1) < 2**32, fold(1, 2) == fold(2, word=fold(1))
    (False, True, True)
    """
    for number in numbers:
        for half in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF):
            word = mix_int(mix_int(word ^ half) + 0x6A09E667)
    return word


@lru_cache(maxsize=64)
def _shared(seed: int, epoch: int | None, step: int) -> tuple[Array, Array]:
    """An additive word and an odd multiplier for each purpose, both (purposes, 1) int64: the same
    for all examples.
    """
    common = fold(seed, 0, epoch) if epoch is not None else fold(seed, 1, step)
    lanes = np.array([fold(lane, word=common) for lane in range(4)]).astype(np.int32)
    purposes = np.arange(1, len(Purpose) + 1, dtype=np.int32)[:, None]
    add, odd = np.hsplit(mix(mix(lanes ^ purposes) + purposes).view(np.int64), 2)
    return add, odd | 1


class Keys:
    """The draws of one batch of document pieces.

    Args:
        example_id: (P,) int64, the permanent name of each piece.
        seed: any integer.
        epoch: the pass over the data; None mixes the step in instead, so that masks stay dynamic.
        step: the optimiser step; only used when ``epoch`` is None.
    """

    def __init__(self, example_id: Array, *, seed: int, epoch: int | None, step: int = 0):
        self._example_id, self._shared = (
            example_id,
            _shared(seed, epoch, step if epoch is None else 0),
        )
        self._halves: dict[int, Array] = {}

    def _words(self, purpose: Purpose) -> tuple[Array, Array]:
        """``start`` and ``odd`` of each piece, both (P,) int32.

        Half of the purposes are made at once: for a small batch an operation costs its call, not
        its numbers; and most batches ask for none of the second half.
        """
        half, row = divmod(purpose - 1, 7)
        if half not in self._halves:
            add_C1, odd_C1 = (words[7 * half : 7 * half + 7] for words in self._shared)
            self._halves[half] = _mix_(self._example_id * odd_C1 + add_C1, _MIX_64).view(np.int32)
            self._halves[half][:, 1::2] |= 1
        words = self._halves[half][row]
        return words[0::2], words[1::2]

    def draw(self, purpose: Purpose, piece: Array, index: Array) -> Array:
        """(N,) int32, uniform over all 32-bit integers; distinct for the indices of a piece.

        Args:
            piece: (N,) which piece of the batch each draw is for.
            index: (N,) int32, which draw of that piece.
        """
        start_P, odd_P = self._words(purpose)
        key = odd_P[piece]
        key *= index
        key += start_P[piece]
        return _mix_(key, _MIX_32)

    def draw_each(self, purpose: Purpose, counts_P: Array, index: Array) -> Array:
        """The same (N,) draws for the first ``counts_P[0]`` indices of piece 0, the next of piece
        1, and so on.
        """
        start_P, odd_P = self._words(purpose)
        key = np.repeat(odd_P, counts_P)
        key *= index
        key += np.repeat(start_P, counts_P)
        return _mix_(key, _MIX_32)

    def uniform(self, purpose: Purpose, piece: Array, index: Array) -> Array:
        """The same draws as (N,) float64 in (0, 1): the centre of one of 2³² equal cells, so never
        0 or 1.
        """
        return unit_interval(self.draw(purpose, piece, index))

    def per_piece(self, purpose: Purpose) -> Array:
        """(P,) float64 in (0, 1): one draw for each piece."""
        return unit_interval(self._words(purpose)[1])


def within(draw: Array, share: float) -> Array:
    """bool of the shape of the int32 draws, True with probability ``share``; never at 0, always at
    1.
    """
    return draw < _edge(share)


def _edge(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * _WORD) - (1 << 31)


def split(draw: Array, low: float, high: float, count: int) -> Array:
    """int32 draws ``within`` the share ``high`` but not ``low``, to int64 in [0, count): what else
    they say.

    With a bias below count / (2³² (high − low)), as ``below`` has for all draws.
    """
    first, last = _edge(low), _edge(high)
    return (draw.astype(np.int64) - first) * count // (last - first)


def unit_interval(draw: Array) -> Array:
    """int32 draws to float64 in (0, 1), exactly, in the order of the signed integers."""
    u = draw.astype(np.float64)
    u += 2.0**31 + 0.5
    u *= 2.0**-32
    return u


def below(draw: Array, count: int) -> Array:
    """int32 draws to int64 in [0, count): by multiplication, so with a bias below count / 2³²."""
    return ((draw.astype(np.int64) + (1 << 31)) * count) >> 32


def content_ids(input_ids: Array, content: Array, begin: Array) -> Array:
    """(P,) int64 ids made from what a piece says, for pieces that have no example id.

    Args:
        input_ids: (T,) the tokens of all pieces.
        content: (T,) bool; padding and special tokens do not count, nor does where they stand.
        begin: (P,) where each piece begins.
    """
    if not len(input_ids):
        return np.zeros(len(begin), np.int64)
    before = content.cumsum(dtype=np.int32)
    start = np.repeat(before[begin] - content[begin], np.diff(begin, append=len(content)))
    rank, token = before - start, input_ids.astype(np.int32)
    sums = [
        np.add.reduceat(mix(mix(token + rank * odd) + rank) * content, begin, dtype=np.int32)
        for odd in (np.int32(0x2545F491), np.int32(0x1B873593))
    ]
    low, high = (mix(word).astype(np.int64) for word in sums)
    return (high << 32) ^ low


def permutation(size: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order of an epoch: (size,) int64, a function of (size, seed, epoch)."""
    import torch  # reading texts and masking them does not wait for it

    generator = torch.Generator().manual_seed(fold(seed, epoch, 0x0DA7A))
    return torch.randperm(size, generator=generator)
