"""Counter-based randomness: every draw is a function of (seed, epoch, example id, index, purpose).

Why: with a generator, a mask would depend on everything drawn before it (batch size, workers,
ranks, resumes). With a hash, it depends only on these coordinates, so masks are the same for any
composition of batches, and there is no state to save.

How: (seed, epoch, purpose) choose a bijection on 64 bits. It maps an example id to two words of 32
bits, ``start`` and ``odd``. The key for index i of that example is ``mix(start + i · odd)``. All
steps are bijections, so **keys of one example are distinct by construction** (no ties), and no two
examples have the same words, except for the lowest bit of ``odd``. The multiplier differs between
examples: with a common multiplier, the draws of two examples could be shifted copies of each other
(``tests/test_keys.py`` searches for such copies).

Cost: ten integer operations per draw, in numpy; about 300M draws per second on one core.

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
    """What a draw is for. Masks depend on these numbers: never renumber, only append."""

    SELECT = 1  # the order in which units are selected
    ROUND = 2  # stochastic rounding of the budget
    BORDER = 3  # whether the unit at the border is selected (budget "expected")
    SHOW = 4  # whether a token is masked, replaced or kept
    REPLACE = 5  # which random token replaces a token
    RATIO = 6  # a piece's ratio, if the schedule gives a distribution
    PARTITION = 7  # random partitions, such as spans
    MIXTURE = 8  # which member of a mixture is used
    FILL = 9  # the order of the units that fill an unused budget
    PREDICT = 10  # which corrupted tokens are predicted
    LENGTH = 11  # lengths and places of insertions and infilled spans
    PERMUTE = 12  # the order of sentences
    ACCEPT = 13  # acceptance draws (PTW)
    BERNOULLI = 14  # independent selection of units (budget "bernoulli")


def mix(x: Array) -> Array:
    """Apply a bijection on int32 that looks random (lowbias32); any shape. Returns a copy."""
    return _mix_(x.copy(), _MIX_32)


def _mix_(x: Array, rounds: tuple[tuple[int, int], ...]) -> Array:
    """Apply bijective rounds in place, on 32 or 64 bits."""
    # Unsigned views, because a shift of signed integers copies the sign bit.
    bits: Array = x.view(f"u{x.itemsize}")
    for shift, factor in rounds:
        bits ^= bits >> shift
        if factor != 1:
            bits *= factor
    return x


def mix_int(x: int) -> int:
    """Apply ``mix`` to one Python integer, as unsigned; only its low 32 bits count."""
    x %= _WORD
    for shift, factor in _MIX_32:
        x ^= x >> shift
        x = x * factor % _WORD
    return x


def fold(*numbers: int, word: int = 0x9E3779B9) -> int:
    """Mix integers (each as 64 bits) into one 32-bit word; their order matters.

    >>> fold(1, 2) == fold(2, 1), 0 <= fold(-1) < 2**32, fold(1, 2) == fold(2, word=fold(1))
    (False, True, True)
    """
    for number in numbers:
        for half in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF):
            word = mix_int(mix_int(word ^ half) + 0x6A09E667)
    return word


@lru_cache(maxsize=64)
def _shared(seed: int, epoch: int | None, step: int) -> tuple[Array, Array]:
    """Return an additive word and an odd factor for each purpose, both (purposes, 1) int64."""
    common = fold(seed, 1, step) if epoch is None else fold(seed, 0, epoch)
    lanes = np.array([fold(lane, word=common) for lane in range(4)]).astype(np.int32)
    purposes = np.arange(1, len(Purpose) + 1, dtype=np.int32)[:, None]
    words = mix(mix(lanes ^ purposes) + purposes)
    # The four words of 32 bits for each purpose are read as two words of 64 bits.
    add, odd = np.hsplit(words.view(np.int64), 2)
    return add, odd | 1


class Keys:
    """The draws of one batch of document pieces.

    Args:
        example_id: (P,) int64, the permanent id of each piece.
        seed: any integer.
        epoch: the number of the pass over the data. If None, the step is used instead, so masks
            still change.
        step: the optimiser step; used only if ``epoch`` is None.
    """

    def __init__(self, example_id: Array, *, seed: int, epoch: int | None, step: int = 0):
        if epoch is not None:
            # All steps of an epoch share their words, so the cache computes the words only once.
            step = 0
        self._example_id = example_id
        self._shared = _shared(seed, epoch, step)
        self._halves: dict[int, Array] = {}

    def _words(self, purpose: Purpose) -> tuple[Array, Array]:
        """Return ``start`` and ``odd`` of each piece, both (P,) int32."""
        # Seven purposes are computed at once: for a small batch, a numpy call costs more than its
        # arithmetic. Most batches need only the first seven purposes.
        half, row = divmod(purpose - 1, 7)
        if half not in self._halves:
            add, odd = self._shared
            part = slice(7 * half, 7 * half + 7)
            mixed = _mix_(self._example_id * odd[part] + add[part], _MIX_64).view(np.int32)
            # Multiplying by an odd factor is a bijection modulo 2³²: keys of a piece never collide.
            mixed[:, 1::2] |= 1
            self._halves[half] = mixed
        words = self._halves[half][row]
        return words[0::2], words[1::2]

    def draw(self, purpose: Purpose, piece: Array, index: Array | int) -> Array:
        """(N,) int32, uniform over all 32-bit integers; distinct for the indices of a piece.

        Args:
            piece: (N,) the piece of each draw.
            index: (N,) or a single number for all draws: the number of each draw within its piece.
        """
        start_P, odd_P = self._words(purpose)
        key = odd_P[piece]
        key *= np.asarray(index, np.int32)
        key += start_P[piece]
        return _mix_(key, _MIX_32)

    def draw_each(self, purpose: Purpose, counts_P: Array, index: Array) -> Array:
        """(N,) int32: ``draw`` for ``counts_P[0]`` indices of piece 0, then for piece 1, …"""
        start_P, odd_P = self._words(purpose)
        key = np.repeat(odd_P, counts_P)
        key *= np.asarray(index, np.int32)
        key += np.repeat(start_P, counts_P)
        return _mix_(key, _MIX_32)

    def uniform(self, purpose: Purpose, piece: Array, index: Array | int) -> Array:
        """(N,) float64: the same draws as the centres of 2³² equal cells, so never 0 or 1."""
        return unit_interval(self.draw(purpose, piece, index))

    def per_piece(self, purpose: Purpose) -> Array:
        """(P,) float64 in (0, 1): one draw for each piece."""
        return unit_interval(self._words(purpose)[1])


def within(draw: Array, share: float) -> Array:
    """Return whether each int32 draw falls into a share: never for share 0, always for share 1."""
    return draw < _edge(share)


def _edge(share: float) -> int:
    """Return the int32 value below which this share of all draws lies."""
    return round(min(max(share, 0.0), 1.0) * _WORD) - (1 << 31)


def split(draw: Array, low: float, high: float, count: int) -> Array:
    """Reuse int32 draws between two shares as int64 numbers in [0, count).

    The draws are ``within`` the share ``high`` but not within ``low``. The bias is below
    count / (2³² (high − low)).
    """
    first = _edge(low)
    cells = _edge(high) - first
    return (draw.astype(np.int64) - first) * count // cells


def unit_interval(draw: Array) -> Array:
    """Map int32 draws to float64 in (0, 1), exactly; this keeps their order."""
    u = draw.astype(np.float64)
    u += 2.0**31 + 0.5
    u *= 2.0**-32
    return u


def below(draw: Array, count: int) -> Array:
    """Map int32 draws to int64 in [0, count), by multiplication: the bias is below count / 2³²."""
    return ((draw.astype(np.int64) + (1 << 31)) * count) >> 32


def content_ids(input_ids: Array, content: Array, begin: Array) -> Array:
    """(P,) int64: hash the content of pieces that have no example id.

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
        # A sum over tokens hashed with their rank depends on the tokens' order, not on padding.
        words = mix(mix(token + rank * np.int32(odd)) + rank) * content
        return mix(np.add.reduceat(words, begin, dtype=np.int32)).astype(np.int64)

    return (hashed(0x1B873593) << 32) ^ hashed(0x2545F491)


def permutation(size: int, *, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of rows in an epoch: (size,) int64, a function of (size, seed, epoch)."""
    # Imported here because reading and masking texts should not wait for torch.
    import torch

    generator = torch.Generator().manual_seed(fold(seed, epoch, 0x0DA7A))
    return torch.randperm(size, generator=generator)
