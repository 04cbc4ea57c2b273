"""Numpy on the CPU, torch elsewhere: one text of code for both, and the same bits from both (``tests/test_arrays.py``).

Masking is a hundred small operations, and on some thousand numbers an operation costs its call: 1 to 3 µs in torch,
half or a third of that in numpy, which shares the memory of CPU tensors. So hot code takes the ``raw`` array of a
tensor, keeps to what both libraries spell alike (operators, slices, ``take``, ``sum(1)``, ``cumsum(1)``, ``clip``),
and gives a ``tensor`` back. What they spell differently and is hot has a function here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Any
"""A numpy array or a tensor on an accelerator: what ``raw`` gives."""

USE_NUMPY = True
"""False: torch on the CPU too, so that a machine without an accelerator can compare the two."""


def raw(x: Array) -> Array:
    """A numpy view of a CPU tensor (to write to it is to write to the tensor); anything else as it is."""
    return x.numpy() if isinstance(x, Tensor) and USE_NUMPY and x.device.type == "cpu" else x


def tensor(x: Array) -> Tensor:
    """A raw array as a tensor; no copy."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def copy(x: Array) -> Array:
    return x.copy() if isinstance(x, np.ndarray) else x.clone()


def integers(x: Array) -> Array:
    """To int64, towards zero."""
    return x.astype(np.int64) if isinstance(x, np.ndarray) else x.long()


def int32(x: Array) -> Array:
    return x.astype(np.int32) if isinstance(x, np.ndarray) else x.int()


def floats(x: Array) -> Array:
    """To float64."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double()


def halves(x: Array) -> tuple[Array, Array]:
    """int64 (P, B) as the two int32 (P, B) that it is made of; no copy."""
    words = x.view(np.int32 if isinstance(x, np.ndarray) else torch.int32)
    return words[:, 0::2], words[:, 1::2]


def where(condition: Array, yes: Array, no: Array) -> Array:
    return (
        np.where(condition, yes, no) if isinstance(condition, np.ndarray) else torch.where(condition, yes, no)
    )


def minimum(x: Array, y: Array) -> Array:
    return np.minimum(x, y) if isinstance(x, np.ndarray) else torch.minimum(x, y)


def beside(x: Array, y: Array) -> Array:
    """(B, X) and (B, Y) to (B, X + Y)."""
    return np.concatenate((x, y), 1) if isinstance(x, np.ndarray) else torch.cat((x, y), 1)


def running_count(x: Array) -> Array:
    """(B, X) int32: how many are True up to each place of the rows of a bool."""
    return x.cumsum(1, dtype=np.int32 if isinstance(x, np.ndarray) else torch.int32)


def first_true(x: Array) -> Array:
    """(B,) int64: the column of the first True in each row of the bool (B, X); 0 where there is none."""
    return x.argmax(1) if isinstance(x, np.ndarray) else x.byte().argmax(1)


def last_true(x: Array) -> Array:
    """(B,) int64: the column of the last True in each row of the bool (B, X); the last where there is none."""
    return (
        x.shape[1] - 1 - (x[:, ::-1].argmax(1) if isinstance(x, np.ndarray) else x.byte().flip(1).argmax(1))
    )


def places(x: Array) -> Array:
    """(M,) int64: where the bool ``x``, flattened, is True, in order."""
    return np.flatnonzero(x) if isinstance(x, np.ndarray) else x.reshape(-1).nonzero().view(-1)


@lru_cache(maxsize=64)
def _numbers(count: int, device: Any, numpy: bool) -> Array:
    return np.arange(count) if numpy else torch.arange(count, device=device)


def numbers(count: int, like: Array) -> Array:
    """(count,) int64: 0, 1, 2, …, kept for the next call: not to be written to."""
    return _numbers(count, like.device, isinstance(like, np.ndarray))


def sort_rows(x: Array) -> Array:
    """Integers (B, X), sorted along rows."""
    return np.sort(x, axis=1) if isinstance(x, np.ndarray) else x.sort(1).values


_NETWORK_BYTES = 2048
"""Up to this size numpy sorts a row without a branch, 1 ns a number; longer rows cost 5 to 10 times that on some."""


def count_below(rows: Array, bound_B: Array, *, equal: bool = False) -> Array:
    """(B,) int64: how many integers of each row of (B, X) are below its bound, or equal to it."""
    return ((rows <= bound_B[:, None]) if equal else (rows < bound_B[:, None])).sum(1)


def sorted_around(x: Array, place_B: Array, behind: int) -> tuple[Array, Array, Array]:
    """The sorted rows of (B, X) integers around a place of each, with at least ``behind`` places behind it.

    Long rows are dealt out into parts that are short enough for numpy's network. Each of C parts has about a C-th of
    what stands before ``place_B``, so only the middles of the sorted parts are sorted once more. That is a guess; where
    it fails, rows are sorted whole.

    Returns:
        near (B, W): sorted integers, among them all from the given place up to the bounds. begin_B: the place in the
        whole sorted row at which they begin. bound_B: the bounds; the largest integer where nothing is missing.
    """
    largest, (rows, width) = (1 << (8 * x.itemsize - 1)) - 1, x.shape
    size = _NETWORK_BYTES // x.itemsize
    parts = -(-width // size)
    if isinstance(x, np.ndarray) and parts > 1:
        share = place_B.max(initial=0) / width
        # 3.5 standard deviations of how many of a part's numbers stand before the place.
        guard = int(3.5 * (size * share * (1 - share)) ** 0.5) + 1
        wide = min(2 * guard + behind // parts + 1, size)
        if width < parts * size:
            x, given = np.full((rows, parts * size), largest, x.dtype), x
            x[:, :width] = given
        dealt = np.sort(np.ascontiguousarray(x.reshape(rows, size, parts).transpose(0, 2, 1)), axis=2)
        first_B = np.minimum(np.maximum(place_B // parts - guard, 0), size - wide)
        at = size * np.arange(rows * parts).reshape(rows, parts) + first_B[:, None]
        near = np.sort(dealt.take(at[:, :, None] + np.arange(wide)).reshape(rows, -1), axis=1)
        before_B = np.where(first_B > 0, dealt.take(at - 1, mode="clip").max(1), -largest - 1)
        bound_B = np.where(first_B + wide < size, dealt.take(at + wide, mode="clip").min(1), largest)
        row, here_B = np.arange(rows), place_B - first_B * parts
        last_B = near[row, np.minimum(here_B + behind, near.shape[1] - 1)]
        if ((near[row, here_B] > before_B) & ((last_B < bound_B) | (bound_B == largest))).all():
            return near, first_B * parts, bound_B
        x = x[:, :width]
    return sort_rows(x), place_B * 0, place_B * 0 + largest
