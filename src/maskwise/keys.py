"""Counter-based randomness: every draw is a pure function of (seed, epoch, example id, index, purpose).

Why: with a generator, a mask depends on everything drawn before it (batch size, workers, ranks, resumes). With a
hash it depends on nothing but its own coordinates, so masks are the same for any batch composition and on any
device, and nothing has to be saved.

How: each (row, purpose) gets two 32-bit words by two full mixes of (seed, epoch, purpose, id high, id low). The key
of index i in that row is ``mix(word0 + i · odd(word1))``. Both steps are bijections of 32-bit integers, so **keys
within a row are distinct by construction**: there are no ties. The multiplier differs from row to row, so that rows
are not shifted copies of each other, which a common multiplier makes them (``tests/test_keys.py`` searches).

Cost: 11 integer operations a draw in plain torch, 300M draws a second on one core.

The mixer is Chris Wellons' ``lowbias32`` (public domain; nullprogram.com/blog/2018/07/31).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

_A, _B = 0x7FEB352D, 0x846CA68B - (1 << 32)
_WORD = 1 << 32
_A_INVERSE, _B_INVERSE = ((pow(n % _WORD, -1, _WORD) + (1 << 31)) % _WORD - (1 << 31) for n in (_A, _B))


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the format: never renumber, only append."""

    SELECT = 1  # the order in which units are taken
    ROUND = 2  # stochastic rounding of the budget
    BORDER = 3  # whether the unit at the border is taken (budget "expected")
    SHOW = 4  # mask, random or keep
    REPLACE = 5  # which random token
    RATIO = 6  # a row's ratio, where a schedule gives a distribution
    PARTITION = 7  # random partitions, such as spans
    MIXTURE = 8  # which member of a mixture
    FILL = 9  # the order of units that fill an unused budget
    PREDICT = 10  # which corrupted tokens are predicted
    LENGTH = 11  # lengths and places of insertions and infilled spans
    PERMUTE = 12  # the order of sentences
    ACCEPT = 13  # acceptance draws (PTW)


def mix(x: Tensor) -> Tensor:
    """A bijection of int32 that looks random (lowbias32). Any shape; the input is left alone."""
    by16, low16, by15, low17 = _shifts(x.device)
    half = (x >> by16).bitwise_and_(low16)
    x = (x ^ half).mul_(_A)
    torch.bitwise_right_shift(x, by15, out=half)
    x.bitwise_xor_(half.bitwise_and_(low17)).mul_(_B)
    torch.bitwise_right_shift(x, by16, out=half)
    return x.bitwise_xor_(half.bitwise_and_(low16))


def unmix(x: Tensor) -> Tensor:
    """The inverse of ``mix``."""
    by16, low16, by15, low17 = _shifts(x.device)
    x = (x ^ (x >> by16).bitwise_and_(low16)).mul_(_B_INVERSE)
    half = (x >> by15).bitwise_and_(low17)
    x.bitwise_xor_(half).bitwise_xor_(half >> by15).mul_(_A_INVERSE)
    return x.bitwise_xor_((x >> by16).bitwise_and_(low16))


def inverse_odd(x: Tensor) -> Tensor:
    """The inverses of odd int32 numbers modulo 2³², by Newton's iteration (each step doubles the correct bits)."""
    inverse = x.clone()
    for _ in range(4):
        inverse = inverse * (2 - x * inverse)
    return inverse


@lru_cache(maxsize=8)
def _shifts(device: torch.device) -> tuple[Tensor, ...]:
    """Shifts and masks as tensors: torch converts a plain number at every bitwise operation, which costs as much again."""
    return tuple(torch.tensor(n, dtype=torch.int32, device=device) for n in (16, 0xFFFF, 15, 0x1FFFF))


def mix_int(x: int) -> int:
    """``mix`` for one Python integer, unsigned."""
    x ^= x >> 16
    x = (x * _A) % _WORD
    x ^= x >> 15
    x = (x * 0x846CA68B) % _WORD
    return x ^ (x >> 16)


def fold(*numbers: int) -> int:
    """Mix any integers (each taken as 64 bits) into one 32-bit word; the order matters."""
    word = 0x9E3779B9
    for number in numbers:
        for half in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF):
            word = mix_int((mix_int(word ^ half) + 0x6A09E667) % _WORD)
    return word


@lru_cache(maxsize=64)
def _constants(seed: int, epoch: int | None, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Additive words and odd multipliers, each (purposes, 2, 1): the part of a row key that rows share."""
    when = (0, epoch) if epoch is not None else (1, step)
    words = [[fold(seed, *when, purpose, lane) for lane in (0, 1)] for purpose in Purpose]
    odds = [[fold(word, 7) | 1 for word in pair] for pair in words]
    add, odd = (torch.tensor(x, dtype=torch.int64).to(torch.int32).unsqueeze(-1) for x in (words, odds))
    return add.to(device), odd.to(device)


class Keys:
    """The draws of one batch of rows.

    Args:
        example_id: (B,) int64, what a row is called for ever.
        seed: any integer.
        epoch: the pass over the data; None mixes the step in instead, so that masks stay dynamic.
        step: the optimiser step; only used when ``epoch`` is None.
    """

    def __init__(self, example_id: Tensor, *, seed: int, epoch: int | None, step: int = 0):
        add, odd = _constants(seed, epoch, step if epoch is None else 0, example_id.device)
        low, high = example_id.to(torch.int32), (example_id >> 32).to(torch.int32)
        self._words_P2B = mix(mix(add ^ high) + low * odd)

    def draw(self, purpose: Purpose, index: Tensor) -> Tensor:
        """int32 of the shape (B, X), uniform over all 32-bit integers; distinct for distinct indices of a row.

        Args:
            index: (X,) or (B, X) int32; which draw of the row.
        """
        word_2B = self._words_P2B[purpose - 1]
        return mix(word_2B[0].unsqueeze(1) + index * (word_2B[1] | 1).unsqueeze(1))

    def index_of(self, purpose: Purpose, draw: Tensor) -> Tensor:
        """The inverse of ``draw``: int32 (B, X) draws back to their indices."""
        word_2B = self._words_P2B[purpose - 1].unsqueeze(2)
        return (unmix(draw) - word_2B[0]) * inverse_odd(word_2B[1] | 1)

    def draw_at(self, purpose: Purpose, row: Tensor, index: Tensor) -> Tensor:
        """int32 (M,): the same draws, only at the places (row, index), both (M,)."""
        word_2M = self._words_P2B[purpose - 1].index_select(1, row)
        return mix(word_2M[0] + index * (word_2M[1] | 1))

    def uniform(self, purpose: Purpose, index: Tensor) -> Tensor:
        """float64 (B, X) in (0, 1): the centre of one of 2³² equal cells, so never 0 or 1."""
        return unit_interval(self.draw(purpose, index))

    def row_uniform(self, purpose: Purpose) -> Tensor:
        """float64 (B,) in (0, 1): one draw a row."""
        return unit_interval(mix(self._words_P2B[purpose - 1].sum(0, dtype=torch.int32)))


def within(draw: Tensor, share: float) -> Tensor:
    """bool of the shape of the int32 draws, True with probability ``share``; never at 0, always at 1."""
    edge = round(share * _WORD) - (1 << 31)
    # torch wraps a number outside int32 silently, so the two ends are not left to the comparison.
    if edge >= 1 << 31:
        return torch.ones_like(draw, dtype=torch.bool)
    return draw < max(edge, -(1 << 31))


def unit_interval(draw: Tensor) -> Tensor:
    """int32 draws to float64 in (0, 1), exactly, in the order of the signed integers."""
    return (draw.to(torch.float64) + (2.0**31 + 0.5)) / _WORD


def below(draw: Tensor, count: int) -> Tensor:
    """int32 draws to int64 in [0, count): by multiplication, so with a bias below count / 2³²."""
    return ((draw.to(torch.int64) + (1 << 31)) * count) >> 32


def content_ids(input_ids: Tensor, content: Tensor) -> Tensor:
    """(B,) int64 ids made from what a row says, for rows that have no example id.

    Args:
        input_ids: (B, L). content: (B, L) bool; padding and special tokens do not count, nor does where they stand.
    """
    rank = content.cumsum(1, dtype=torch.int32)
    token = input_ids.to(torch.int32)
    words = [mix(mix(token + rank * odd) + rank).long() * content for odd in (0x2545F491, 0x1B873593)]
    low, high = (word.sum(1) for word in words)
    return (mix(high.to(torch.int32)).long() << 32) ^ mix(low.to(torch.int32)).long()
