"""Draws: uniform, independent, without ties, and never one row's draws shifted along another's.

All draws are deterministic, so a test that passes once passes always; thresholds are those of a
fair generator (z-scores of 5 over a few dozen statistics).
"""

from __future__ import annotations

import numpy as np
import pytest

from maskwise.masking.draws import (
    Draws,
    Purpose,
    below,
    content_ids,
    fold,
    in_lowest_share,
    mix,
    mix_int,
    permutation,
    unit_interval,
)

INDEX = np.arange(512, dtype=np.int32)


def keys(ids: np.ndarray, *, seed: int = 0, epoch: int | None = 0, step: int = 0) -> Draws:
    return Draws(np.asarray(ids, dtype=np.int64), seed=seed, epoch=epoch, step=step)


def draws(k: Draws, purpose: Purpose, index: np.ndarray) -> np.ndarray:
    """(P, X) int32: the draws of all pieces at the same indices."""
    pieces = len(k.per_piece(purpose))
    piece, every = np.repeat(np.arange(pieces), len(index)), np.tile(index, pieces)
    return k.draw(purpose, piece, every).reshape(pieces, len(index))


def uniform(
    ids: np.ndarray, *, purpose: Purpose = Purpose.SELECT, index: np.ndarray = INDEX, **when: int
) -> np.ndarray:
    return unit_interval(draws(keys(ids, **when), purpose, index))


def inverse_odd(x: np.ndarray) -> np.ndarray:
    """The inverses of odd 32-bit numbers modulo 2³², by Newton's iteration (bits double)."""
    inverse = x.copy()
    for _ in range(4):
        inverse = inverse * (2 - x * inverse)
    return inverse


def unmixed(x: np.ndarray) -> np.ndarray:
    """The int32 numbers of which ``mix`` makes ``x``: its rounds backwards."""
    bits = x.view(np.uint32)
    bits = bits ^ bits >> 16
    bits = bits * inverse_odd(np.array([0x846CA68B], np.uint32))
    bits = bits ^ bits >> 15 ^ bits >> 30
    bits = bits * inverse_odd(np.array([0x7FEB352D], np.uint32))
    return (bits ^ bits >> 16).view(np.int32)


def words(k: Draws, purpose: Purpose) -> tuple[np.ndarray, np.ndarray]:
    """``start`` and ``odd`` of each row, found from its draws with the indices 0 and 1."""
    draw = unmixed(draws(k, purpose, INDEX[:2]))
    return draw[:, 0], draw[:, 1] - draw[:, 0]


def z_of_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two uniform samples, in standard errors."""
    return float(np.mean((a - 0.5) * (b - 0.5)) * 12 * np.sqrt(a.size))


def z_of_chi_square(u: np.ndarray, cells: int) -> float:
    counts = np.bincount((u * cells).astype(np.int64).ravel(), minlength=cells)
    expected = u.size / cells
    return float(
        (((counts - expected) ** 2 / expected).sum() - (cells - 1)) / np.sqrt(2 * (cells - 1))
    )


def test_mix_never_ties_and_agrees_with_plain_integers() -> None:
    x = np.array([0, 1, -1, 2**31 - 1, -(2**31), 12345, -98765], dtype=np.int32)
    before = x.copy()
    assert [v % 2**32 for v in mix(x).tolist()] == [mix_int(v % 2**32) for v in x.tolist()]
    assert (x == before).all()
    many = np.arange(1 << 20, dtype=np.int32)
    assert len(np.unique(mix(many))) == len(many)
    assert (unmixed(mix(many)) == many).all() and (unmixed(mix(x)) == x).all()


def test_draws_of_one_piece_never_tie() -> None:
    k = keys(np.arange(200))
    draw = draws(k, Purpose.SELECT, INDEX)
    assert (np.diff(np.sort(draw, axis=1), axis=1) != 0).all()
    piece, index = np.array([0, 7, 199]), np.array([3, 500, 0], dtype=np.int32)
    assert (k.draw(Purpose.SELECT, piece, index) == draw[piece, index]).all()


def test_draws_depend_on_nothing_but_their_coordinates() -> None:
    ids = np.array([5, 1 << 40, -3, 0])
    whole = draws(keys(ids, seed=3, epoch=1), Purpose.SHOW, INDEX)
    for i in range(4):
        alone = draws(keys(ids[i : i + 1], seed=3, epoch=1), Purpose.SHOW, INDEX[:9])
        assert (alone[0] == whole[i, :9]).all()
    for other in (
        {"seed": 4, "epoch": 1},
        {"seed": 3, "epoch": 2},
        {"seed": 3 + 2**32, "epoch": 1},
        {"seed": 3, "epoch": None},
    ):
        assert (draws(keys(ids, **other), Purpose.SHOW, INDEX) == whole).mean() < 1e-3
    dynamic = [draws(keys(ids, epoch=None, step=step), Purpose.SHOW, INDEX) for step in (0, 1)]
    assert (dynamic[0] != dynamic[1]).any()
    fixed = [draws(keys(ids, epoch=1, step=step), Purpose.SHOW, INDEX) for step in (0, 7)]
    assert (fixed[0] == fixed[1]).all()


LOW_ENTROPY = {
    "small numbers": np.arange(4000),
    "multiples of 2^20": np.arange(4000) << 20,
    "multiples of 2^40": np.arange(4000) << 40,
    "one bit or two": np.array([(1 << a) | (1 << b) for a in range(63) for b in range(a + 1)]),
    "negative": -np.arange(4000),
}


@pytest.mark.parametrize("ids", LOW_ENTROPY.values(), ids=LOW_ENTROPY)
def test_uniform_and_independent(ids: np.ndarray) -> None:
    u = uniform(ids, index=INDEX[:256])
    scores = {
        "mean": float((u.mean() - 0.5) * np.sqrt(12 * u.size)),
        "chi-square": z_of_chi_square(u, 256),
    }
    scores["column means"] = float(np.abs((u.mean(0) - 0.5) * np.sqrt(12 * len(u))).max()) - 1
    for lag in (1, 2, 3, 16, 64):
        scores[f"neighbours {lag}"] = z_of_correlation(u[:, :-lag], u[:, lag:])
        scores[f"examples {lag}"] = z_of_correlation(u[:-lag], u[lag:])
        scores[f"diagonal {lag}"] = z_of_correlation(u[:-1, :-lag], u[1:, lag:])
    scores["epochs"] = z_of_correlation(u, uniform(ids, index=INDEX[:256], epoch=1))
    scores["seeds"] = z_of_correlation(u, uniform(ids, index=INDEX[:256], seed=1))
    for purpose in Purpose:
        if purpose != Purpose.SELECT:
            scores[purpose.name] = z_of_correlation(
                u, uniform(ids, purpose=purpose, index=INDEX[:256])
            )
    pairs = np.floor(u[:, ::2] * 16) * 16 + np.floor(u[:, 1::2] * 16)
    scores["pairs"] = z_of_chi_square((pairs + 0.5) / 256, 256)
    bad = {name: round(z, 1) for name, z in scores.items() if abs(z) > 5}
    assert not bad


def test_row_draws_are_uniform_and_unrelated_to_the_others() -> None:
    k = keys(np.arange(200_000))
    u = {p: k.per_piece(p) for p in Purpose}
    first = unit_interval(draws(k, Purpose.MIXTURE, INDEX[:2]))
    scores = [z_of_chi_square(v, 256) for v in u.values()]
    scores += [z_of_correlation(u[Purpose.ROUND], v) for p, v in u.items() if p != Purpose.ROUND]
    scores += [z_of_correlation(u[Purpose.MIXTURE], first[:, i]) for i in (0, 1)]
    assert max(map(abs, scores)) < 5
    assert all(v.min() > 0 and v.max() < 1 for v in u.values())


def shifted_words(start: np.ndarray, stride: np.ndarray, reach: int = 512) -> int:
    """How many pairs of rows are shifted copies of each other by up to ``reach`` places, from their
    words.

    Row (a, b) is row (a', b) shifted by d where a − a' = d·b, so a/b − a'/b = d; and backwards for
    −b.
    """
    origin = start * inverse_odd(stride)
    backwards = stride < 0
    stride, origin = np.where(backwards, -stride, stride), np.where(backwards, -origin, origin)
    word = np.sort(stride.astype(np.int64) << 32 | origin.view(np.uint32).astype(np.int64))
    near = np.diff(word) < reach
    return int(near.sum())


def test_the_search_finds_shifted_copies() -> None:
    """The search itself: rows with one multiplier, as a linear mix of example and position makes
    them, are found."""
    _, odd = words(keys(np.arange(1)), Purpose.SELECT)
    start = np.arange(1000, dtype=np.int32) * 3 * odd
    draw = mix(start[:, None] + INDEX * odd)
    assert (draw[0, 3:] == draw[1, :-3]).all()
    assert shifted_words(start, odd.repeat(1000)) == 999


def test_no_shifted_copies_among_a_million_keys() -> None:
    for ids in (np.arange(1_000_000), np.arange(1, 1_000_000) << 32):
        for seed, purpose in ((0, Purpose.SELECT), (1, Purpose.SHOW)):
            assert shifted_words(*words(keys(ids, seed=seed), purpose)) == 0


def test_within_and_below_at_their_ends() -> None:
    draw = np.array([-(2**31), -1, 0, 2**31 - 1], dtype=np.int32)
    assert in_lowest_share(draw, 0.0).tolist() == [False] * 4
    assert in_lowest_share(draw, 1.0).tolist() == [True] * 4
    assert in_lowest_share(draw, 0.5).tolist() == [True, True, False, False]
    assert not in_lowest_share(draw, 1e-12).any()
    assert in_lowest_share(draw, 1 - 2**-32).tolist() == [True] * 3 + [False]
    assert below(draw, 10).tolist() == [0, 4, 5, 9] and below(draw, 1).tolist() == [0] * 4
    u = unit_interval(draw)
    assert (u > 0).all() and (u < 1).all() and (np.diff(u) > 0).all()


def test_fold_takes_any_integers_and_their_order() -> None:
    values = {
        fold(1, 2),
        fold(2, 1),
        fold(1, 2, 0),
        fold(-1),
        fold(1 << 40),
        fold(1 << 63),
        fold(0),
        fold(),
    }
    assert len(values) == 8 and all(0 <= v < 2**32 for v in values)


def test_content_ids_follow_the_text_and_nothing_else() -> None:
    text = np.random.default_rng(0).integers(5, 3000, (40, 20))
    text[20:] = text[:20]
    text[20:, 7] += 1  # one token apart
    text[39] = text[0, ::-1]

    def ids_of(rows: np.ndarray, content: np.ndarray) -> np.ndarray:
        begin = np.arange(len(rows)) * rows.shape[1]
        return content_ids(rows.reshape(-1), content.reshape(-1), begin)

    full = np.ones_like(text, dtype=bool)
    ids = ids_of(text, full)
    assert len(set(ids.tolist())) == 40
    for sides in ((0, 5), (5, 0), (3, 2)):
        assert (ids_of(*(np.pad(x, ((0, 0), sides)) for x in (text, full))) == ids).all()
    spread = np.zeros((40, 40), np.int64)
    spread[:, ::2] = text
    assert (ids_of(spread, spread > 0) == ids).all()


def test_the_order_of_rows_depends_on_the_seed_and_on_the_epoch() -> None:
    orders = {
        tuple(permutation(50, seed=seed, epoch=epoch).tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert permutation(50, seed=3, epoch=2).equal(permutation(50, seed=3, epoch=2))
