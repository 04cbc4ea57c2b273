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

Cost: 12 integer operations a draw in plain torch, 400M draws a second on one core.

The mixers are Chris Wellons' ``lowbias32`` (public domain; nullprogram.com/blog/2018/07/31) and the finaliser
of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA, figure 17).
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property, lru_cache

import torch
from torch import Tensor

_WORD = 1 << 32
_A, _B = 0x7FEB352D, 0x846CA68B - _WORD
_A_INVERSE, _B_INVERSE = ((pow(n % _WORD, -1, _WORD) + (1 << 31)) % _WORD - (1 << 31) for n in (_A, _B))
_C, _D = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
# Shifts, each with the mask of the bits that it leaves (torch shifts signs in from the left), then factors.
_NUMBERS_32 = (16, 0xFFFF, 15, 0x1FFFF, _A, _B, _A_INVERSE, _B_INVERSE)
_NUMBERS_64 = (30, (1 << 34) - 1, 27, (1 << 37) - 1, 31, (1 << 33) - 1, _C, _D)


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
    return _mix_(x.clone())


def _mix_(x: Tensor) -> Tensor:
    """``mix`` in place."""
    by16, low16, by15, low17, a, b, _, _ = _constants_of(x.device)
    half = x >> by16
    x.bitwise_xor_(half.bitwise_and_(low16)).mul_(a)
    torch.bitwise_right_shift(x, by15, out=half)
    x.bitwise_xor_(half.bitwise_and_(low17)).mul_(b)
    torch.bitwise_right_shift(x, by16, out=half)
    return x.bitwise_xor_(half.bitwise_and_(low16))


def _mix64_(x: Tensor) -> Tensor:
    """A bijection of int64 that looks random, in place (SplitMix64's finaliser)."""
    by30, low34, by27, low37, by31, low33, c, d = _constants_of(x.device, torch.int64)
    x.bitwise_xor_((x >> by30).bitwise_and_(low34)).mul_(c)
    x.bitwise_xor_((x >> by27).bitwise_and_(low37)).mul_(d)
    return x.bitwise_xor_((x >> by31).bitwise_and_(low33))


def unmix(x: Tensor) -> Tensor:
    """The inverse of ``mix``."""
    by16, low16, by15, low17, _, _, a_inverse, b_inverse = _constants_of(x.device)
    x = (x ^ (x >> by16).bitwise_and_(low16)).mul_(b_inverse)
    half = (x >> by15).bitwise_and_(low17)
    x.bitwise_xor_(half).bitwise_xor_(half >> by15).mul_(a_inverse)
    return x.bitwise_xor_((x >> by16).bitwise_and_(low16))


def inverse_odd(x: Tensor) -> Tensor:
    """The inverses of odd int32 numbers modulo 2³², by Newton's iteration (bits double)."""
    inverse = x.clone()
    for _ in range(4):
        inverse = inverse * (2 - x * inverse)
    return inverse


@lru_cache(maxsize=16)
def _constants_of(device: torch.device, dtype: torch.dtype = torch.int32) -> tuple[Tensor, ...]:
    """As tensors: torch converts a plain number at every bitwise operation, at as much cost again."""
    numbers = _NUMBERS_32 if dtype == torch.int32 else _NUMBERS_64
    return tuple(torch.tensor(n, dtype=dtype, device=device) for n in numbers)


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
        words = _mix64_(torch.addcmul(add_P1, example_id, odd_P1)).view(torch.int32)
        self._start_PB, self._odd_PB = words[:, 0::2].contiguous(), words[:, 1::2] | 1

    def draw(self, purpose: Purpose, index: Tensor) -> Tensor:
        """int32 of the shape (B, X), uniform over all 32-bit integers; distinct for the indices of a row.

        Args:
            index: (X,) or (B, X) int32; which draw of the row.
        """
        start_B1, odd_B1 = self._start_PB[purpose - 1].unsqueeze(1), self._odd_PB[purpose - 1].unsqueeze(1)
        return _mix_(torch.addcmul(start_B1, index, odd_B1))

    def index_of(self, purpose: Purpose, draw: Tensor) -> Tensor:
        """The inverse of ``draw``: int32 (B, X) draws back to their indices."""
        start_B1, odd_B1 = self._start_PB[purpose - 1].unsqueeze(1), self._odd_PB[purpose - 1].unsqueeze(1)
        return unmix(draw).sub_(start_B1).mul_(inverse_odd(odd_B1))

    def draw_at(self, purpose: Purpose, row: Tensor, index: Tensor) -> Tensor:
        """int32 (M,): the same draws, only at the places (row, index), both (M,)."""
        start_M = self._start_PB[purpose - 1].index_select(0, row)
        return _mix_(start_M.addcmul_(index, self._odd_PB[purpose - 1].index_select(0, row)))

    def uniform(self, purpose: Purpose, index: Tensor) -> Tensor:
        """float64 (B, X) in (0, 1): the centre of one of 2³² equal cells, so never 0 or 1."""
        return unit_interval(self.draw(purpose, index))

    def row_uniform(self, purpose: Purpose) -> Tensor:
        """float64 (B,) in (0, 1): one draw a row."""
        return self._row_uniform_PB[purpose - 1]

    @cached_property
    def _row_uniform_PB(self) -> Tensor:
        return unit_interval(self._odd_PB)


def within(draw: Tensor, share: float) -> Tensor:
    """bool of the shape of the int32 draws, True with probability ``share``; never at 0, always at 1."""
    edge = _edge(share)
    # torch wraps a number outside int32 silently, so the upper end is not left to the comparison.
    return torch.ones_like(draw, dtype=torch.bool) if edge >= 1 << 31 else draw < edge


def _edge(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * _WORD) - (1 << 31)


def split(draw: Tensor, low: float, high: float, count: int) -> Tensor:
    """int32 draws ``within`` the share ``high`` but not ``low`` to int64 in [0, count): what else they say.

    With a bias below count / (2³² (high − low)), as ``below`` has for all draws.
    """
    first, last = _edge(low), _edge(high)
    return (draw.to(torch.int64) - first).mul_(count).div_(last - first, rounding_mode="floor")


def unit_interval(draw: Tensor) -> Tensor:
    """int32 draws to float64 in (0, 1), exactly, in the order of the signed integers."""
    return draw.to(torch.float64).add_(2.0**31 + 0.5).mul_(2.0**-32)


def below(draw: Tensor, count: int) -> Tensor:
    """int32 draws to int64 in [0, count): by multiplication, so with a bias below count / 2³²."""
    return ((draw.to(torch.int64) + (1 << 31)) * count) >> 32


def content_ids(input_ids: Tensor, content: Tensor) -> Tensor:
    """(B,) int64 ids made from what a row says, for rows that have no example id.

    Args:
        input_ids: (B, L). content: (B, L) bool; padding and special tokens do not count, nor does where they
            stand.
    """
    rank = content.cumsum(1, dtype=torch.int32)
    token = input_ids.to(torch.int32)
    words = [_mix_(_mix_(token + rank * odd).add_(rank)) * content for odd in (0x2545F491, 0x1B873593)]
    low, high = (mix(word.sum(1, dtype=torch.int32)).long() for word in words)
    return (high << 32) ^ low
