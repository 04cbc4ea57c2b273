"""Counter-based randomness: every draw is a pure function of (seed, epoch, example id, index, purpose).

Why: with a generator, a mask depends on everything drawn before it (batch size, workers, ranks, resumes).
With a hash it depends on nothing but its own coordinates, so masks are the same for any batch composition and
on any device, and nothing has to be saved.

How: per purpose, the 64 bits of an example id are mixed into 64 other bits by a bijection that (seed, epoch,
purpose) choose; they make two words, ``start`` and ``odd``. The key of index i in that row is ``mix(start + i
· odd)``. All steps are bijections, so **keys within a row are distinct by construction** (there are no ties),
and no two examples have the same words but for the lowest bit of ``odd``. The multiplier differs from row to
row, so that rows are not shifted copies of each other, which a common multiplier makes them
(``tests/test_keys.py`` searches).

Cost: 13 integer operations a draw, 600M draws a second on one core.

The mixers are Chris Wellons' ``lowbias32`` (public domain; nullprogram.com/blog/2018/07/31) and the finaliser
of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA, figure 17).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from maskwise.arrays import Array, floats, halves, integers, raw, tensor

_WORD = 1 << 32
_A, _B = 0x7FEB352D, 0x846CA68B - _WORD
_A_INVERSE, _B_INVERSE = ((pow(n % _WORD, -1, _WORD) + (1 << 31)) % _WORD - (1 << 31) for n in (_A, _B))
_C, _D = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
# Rounds of (shift, mask of the bits that it leaves, for shifts take signs in from the left, factor).
_MIX_32 = ((16, 0xFFFF, _A), (15, 0x1FFFF, _B), (16, 0xFFFF, 1))
_MIX_64 = ((30, (1 << 34) - 1, _C), (27, (1 << 37) - 1, _D), (31, (1 << 33) - 1, 1))


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
    BERNOULLI = 14  # each unit by itself (budget "bernoulli")


def mix(x: Tensor) -> Tensor:
    """A bijection of int32 that looks random (lowbias32). Any shape; the input is left alone."""
    return tensor(_mix_(raw(x.clone()), _MIX_32))


def _mix_(x: Any, rounds: tuple[tuple[int, int, int], ...]) -> Any:
    """Bijective rounds in place, on raw arrays of 32 or 64 bits."""
    for shift, low, factor in rounds:
        half = x >> shift
        half &= low
        x ^= half
        if factor != 1:
            x *= factor
    return x


def unmix(x: Tensor) -> Tensor:
    """The inverse of ``mix``."""
    return tensor(_unmix(raw(x)))


def _unmix(x: Any) -> Any:
    x = x ^ ((x >> 16) & 0xFFFF)
    x *= _B_INVERSE
    half = (x >> 15) & 0x1FFFF
    x ^= half ^ (half >> 15)
    x *= _A_INVERSE
    return x ^ ((x >> 16) & 0xFFFF)


def inverse_odd(x: Any) -> Any:
    """The inverses of odd int32 numbers modulo 2³², by Newton's iteration (bits double)."""
    inverse = x + 0
    for _ in range(4):
        inverse = inverse * (2 - x * inverse)
    return inverse


def mix_int(x: int) -> int:
    """``mix`` for one Python integer, unsigned; of more than 32 bits the lower ones count."""
    x %= _WORD
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
            word = mix_int(mix_int(word ^ half) + 0x6A09E667)
    return word


@lru_cache(maxsize=64)
def _shared(seed: int, epoch: int | None, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An additive word and an odd multiplier for each purpose, both (purposes, 1) int64: what rows share."""
    when = (0, epoch) if epoch is not None else (1, step)
    lanes = torch.tensor([fold(seed, *when, lane) for lane in range(4)])
    purposes = torch.arange(1, len(Purpose) + 1, dtype=torch.int32).unsqueeze(1)
    add, odd = mix(mix(lanes.to(torch.int32) ^ purposes) + purposes).view(torch.int64).split(1, dim=1)
    return add.to(device), (odd | 1).to(device)


class Keys:
    """The draws of one batch of rows.

    Args:
        example_id: (B,) int64, what a row is called for ever.
        seed: any integer.
        epoch: the pass over the data; None mixes the step in instead, so that masks stay dynamic.
        step: the optimiser step; only used when ``epoch`` is None.
    """

    def __init__(self, example_id: Tensor, *, seed: int, epoch: int | None, step: int = 0):
        add_P1, odd_P1 = _shared(seed, epoch, step if epoch is None else 0, example_id.device)
        # All purposes at once: for a batch of rows an operation costs its call, not its numbers.
        self._start_PB, odd_PB = halves(_mix_(raw(example_id) * raw(odd_P1) + raw(add_P1), _MIX_64))
        self._odd_PB = odd_PB | 1

    def draw(self, purpose: Purpose, index: Tensor) -> Tensor:
        """int32 of the shape (B, X), uniform over all 32-bit integers; distinct for the indices of a row.

        Args:
            index: (X,) or (B, X) int32; which draw of the row.
        """
        key = raw(index) * self._odd_PB[purpose - 1][:, None]
        key += self._start_PB[purpose - 1][:, None]
        return tensor(_mix_(key, _MIX_32))

    def index_of(self, purpose: Purpose, draw: Tensor, rows: Array = slice(None)) -> Tensor:
        """The inverse of ``draw``: int32 (B, X) draws of all rows, or of ``rows`` alone, back to their indices."""
        start_B1, odd_B1 = (words[purpose - 1][rows][:, None] for words in (self._start_PB, self._odd_PB))
        return tensor((_unmix(raw(draw)) - start_B1) * inverse_odd(odd_B1))

    def draw_at(self, purpose: Purpose, row: Tensor, index: Tensor) -> Tensor:
        """int32 (M,): the same draws, only at the places (row, index), both (M,)."""
        row = raw(row)
        key = self._odd_PB[purpose - 1].take(row) * raw(index)
        key += self._start_PB[purpose - 1].take(row)
        return tensor(_mix_(key, _MIX_32))

    def uniform(self, purpose: Purpose, index: Tensor) -> Tensor:
        """float64 (B, X) in (0, 1): the centre of one of 2³² equal cells, so never 0 or 1."""
        return tensor(unit_interval(raw(self.draw(purpose, index))))

    def row_uniform(self, purpose: Purpose) -> Tensor:
        """float64 (B,) in (0, 1): one draw a row."""
        return tensor(unit_interval(self._odd_PB[purpose - 1]))


def within(draw: Array, share: float) -> Array:
    """bool of the shape of the int32 draws, True with probability ``share``; never at 0, always at 1."""
    edge = _edge(share)
    # torch wraps a number outside int32 silently, so the upper end is not left to the comparison.
    return draw == draw if edge >= 1 << 31 else draw < edge


def _edge(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * _WORD) - (1 << 31)


def split(draw: Array, low: float, high: float, count: int) -> Array:
    """int32 draws ``within`` the share ``high`` but not ``low`` to int64 in [0, count): what else they say.

    With a bias below count / (2³² (high − low)), as ``below`` has for all draws.
    """
    first, last = _edge(low), _edge(high)
    return (integers(draw) - first) * count // (last - first)


def unit_interval(draw: Array) -> Array:
    """int32 draws to float64 in (0, 1), exactly, in the order of the signed integers."""
    u = floats(draw)
    u += 2.0**31 + 0.5
    u *= 2.0**-32
    return u


def below(draw: Array, count: int) -> Array:
    """int32 draws to int64 in [0, count): by multiplication, so with a bias below count / 2³²."""
    return ((integers(draw) + (1 << 31)) * count) >> 32


def content_ids(input_ids: Tensor, content: Tensor) -> Tensor:
    """(B,) int64 ids made from what a row says, for rows that have no example id.

    Args:
        input_ids: (B, L). content: (B, L) bool; padding and special tokens do not count, nor does where they
            stand.
    """
    rank = content.cumsum(1, dtype=torch.int32)
    token = input_ids.to(torch.int32)
    words = [mix(mix(token + rank * odd) + rank) * content for odd in (0x2545F491, 0x1B873593)]
    low, high = (mix(word.sum(1, dtype=torch.int32)).long() for word in words)
    return (high << 32) ^ low
