"""Sorting within pieces, against loops over the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from maskwise.masking.segments import (
    first_within,
    order_within,
    rank_within,
    sums_within,
    totals_within,
)


def line(pieces: int, count: int, dtype: type, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N,) pieces in any order (some have no member) and keys, distinct within a piece."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    key = np.unique(rng.integers(info.min, info.max, count + 2, dtype=dtype, endpoint=True))
    key[:2] = info.min, info.max
    rng.shuffle(key)
    return rng.integers(0, pieces, len(key)), key


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("pieces", "count"), [(1, 0), (1, 300), (40, 1000), (70_000, 3000), (3, 9)]
)
def test_order_is_by_piece_and_then_by_key(dtype: type, pieces: int, count: int) -> None:
    piece, key = line(pieces, count, dtype)
    expected = sorted(range(len(key)), key=lambda i: (piece[i], key[i]))
    assert order_within(piece, key, pieces=pieces).tolist() == expected


def test_order_of_so_many_pieces_that_their_numbers_do_not_fit_beside_the_keys() -> None:
    piece, key = line(1 << 25, 500, np.int32)
    expected = sorted(range(len(key)), key=lambda i: (piece[i], key[i]))
    assert order_within(piece, key, pieces=1 << 25).tolist() == expected


def test_first_ranks_and_sums_begin_anew_in_each_piece() -> None:
    counts = np.array([3, 0, 1, 4, 0])
    piece = np.repeat(np.arange(5), counts)
    assert rank_within(counts).tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    sums = sums_within(np.array([5, 1, 2, 7, 1, 1, 1, 1]), counts)
    assert sums.tolist() == [5, 6, 8, 7, 1, 2, 3, 4]
    totals = totals_within(np.array([5, 1, 2, 7, 1, 1, 1, 1]), counts)
    assert totals.tolist() == [8, 0, 7, 4, 0]
    assert totals_within(np.zeros(0, int), counts * 0).tolist() == [0] * 5
    assert (
        rank_within(counts * 0).tolist() == [] == sums_within(np.zeros(0, int), counts * 0).tolist()
    )
    key = np.array([3, 1, 2, 9, 4, -4, 0, 8], dtype=np.int32)
    wanted = np.array([2, 5, -1, 3, 0])
    assert np.flatnonzero(first_within(piece, key, wanted)).tolist() == [1, 2, 4, 5, 6]


def test_sums_of_floats_are_floats() -> None:
    values, counts_P = np.array([0.5, 0.25, 0.5, 0.125]), np.array([2, 0, 2])
    assert sums_within(values, counts_P).tolist() == [0.5, 0.75, 0.5, 0.625]
    assert sums_within(values > 0.3, counts_P).tolist() == [1, 1, 1, 1]
    assert totals_within(values, counts_P).tolist() == [0.75, 0, 0.625]
