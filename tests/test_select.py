"""Selection against enumeration, in every budget mode.

The randomness is a hash, so frequencies over many example ids are compared with exact
probabilities, at 4.5 standard errors; all is deterministic, so what passes once passes always.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import permutations
from math import factorial

import numpy as np
import pytest
import torch
from torch import Tensor

from masking_tools import line, padded, row, vocabulary
from maskwise.masking import gather
from maskwise.masking.draws import Draws
from maskwise.masking.select import in_order, select, up_to
from maskwise.masking.units import Units, runs

MANY = 40_000


def units_of(lengths: list[int], *, count: int = MANY, weight: list[float] | None = None) -> Units:
    """``count`` rows, all cut into units of these lengths."""
    batch = line(count, sum(lengths))
    if set(lengths) == {1}:
        made = Units.single(batch)
    else:
        piece, number = np.divmod(np.arange(count * len(lengths)), len(lengths))
        unit = np.repeat(np.arange(len(piece)), lengths * count)
        made = Units.of_tokens(batch, np.arange(len(unit)), unit, piece, number)
    return made if weight is None else made.weighted(np.tile(weight, count))


def choose(units: Units, ratio: float, *, fill: str = "none", **how: object) -> Tensor:
    """(B, L) bool: the selected tokens."""
    count = units.line.shape[0]
    draws = Draws(np.arange(count), seed=0, epoch=0)
    offered = units.filled() if fill == "random" else units
    made = select(offered, np.full(count, ratio), draws, fill=fill, **how)  # type: ignore[arg-type]
    return torch.from_numpy(made.tokens.reshape(units.line.shape))


def frequencies(units: Units, chosen: Tensor) -> Tensor:
    """(U,) how often each unit was chosen."""
    length = units.length[units.piece == 0]
    return chosen[:, torch.from_numpy(length.cumsum() - length)].double().mean(0)


def assert_close(found: Tensor, expected: list[float], count: int = MANY) -> None:
    p = torch.tensor(expected, dtype=torch.float64).clamp(0, 1)
    error = (p * (1 - p) / count).sqrt().clamp(min=1e-9)
    assert ((found - p).abs() < 4.5 * error + 1e-9).all(), f"{found.tolist()} instead of {expected}"


def budgets(total: int, ratio: float, floor: int = 1) -> dict[int, float]:
    """Budgets and their probabilities after stochastic rounding."""
    low, part = int(total * ratio), total * ratio - int(total * ratio)
    least = min(floor, total) if total * ratio >= 0.5 else 0
    out: dict[int, float] = {}
    for budget, probability in ((low, 1 - part), (low + 1, part)):
        if probability > 0:
            out[max(least, min(budget, total))] = (
                out.get(max(least, min(budget, total)), 0) + probability
            )
    return out


def enumerate_orders(
    lengths: list[int], ratio: float, rule: Callable[[list[int], int], dict[int, float]]
) -> list[float]:
    """Inclusion probabilities where all orders of the units are alike."""
    found = [0.0] * len(lengths)
    for budget, probability in budgets(sum(lengths), ratio).items():
        for order in permutations(range(len(lengths))):
            for place, included in rule([lengths[i] for i in order], budget).items():
                found[order[place]] += included * probability / factorial(len(lengths))
    return found


def skip_rule(lengths: list[int], budget: int) -> dict[int, float]:
    taken = {}
    for place, length in enumerate(lengths):
        if length <= budget:
            taken[place], budget = 1.0, budget - length
    return taken


def border_rule(lengths: list[int], budget: int) -> dict[int, float]:
    taken = {}
    for place, length in enumerate(lengths):
        if budget > 0:
            taken[place] = min(1.0, budget / length)
        budget -= length
    return taken


@pytest.mark.parametrize(
    "lengths", [[1, 1, 1, 1, 1], [1, 2, 3, 1, 2], [4, 1, 1], [5, 5, 5], [3, 1, 2, 2, 6, 1], [7]]
)
@pytest.mark.parametrize("ratio", [0.15, 0.4, 0.77])
def test_exact_and_expected_match_enumeration(lengths: list[int], ratio: float) -> None:
    units = units_of(lengths)
    exact, expected = choose(units, ratio, budget="exact"), choose(units, ratio, budget="expected")
    assert_close(frequencies(units, exact), enumerate_orders(lengths, ratio, skip_rule))
    assert_close(frequencies(units, expected), enumerate_orders(lengths, ratio, border_rule))
    mean = expected.sum(1).double()
    target = sum(b * p for b, p in budgets(sum(lengths), ratio).items())
    assert abs(float(mean.mean()) - target) < 4.5 * float(mean.std()) / MANY**0.5 + 1e-9


def test_expected_is_even_to_the_stated_bound() -> None:
    """Words of 1 to 4 pieces, 64 tokens, 15 %: the docs say .159 … .135."""
    lengths = ([1] * 6 + [2] * 2 + [4]) * 4  # 56 tokens
    units = units_of(lengths, count=20_000)
    every = torch.tensor(lengths)
    expected, exact = (
        frequencies(units, choose(units, 0.15, budget=budget)) for budget in ("expected", "exact")
    )
    one, two, four = (float(expected[every == n].mean()) for n in (1, 2, 4))
    assert 0.13 < four < two < one < 0.165
    assert float(exact[every == 4].mean()) < four, "the skip rule favours short words"


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_bernoulli_matches_its_law(ratio: float) -> None:
    lengths, weight = [1, 2, 3, 1], [1.0, 0.5, 2.0, 0.0]
    plain, weighted = units_of(lengths), units_of(lengths, weight=weight)
    law = [min(1.0, ratio * w) for w in weight]
    chosen = choose(weighted, ratio, budget="bernoulli", min_targets=0)
    assert_close(frequencies(weighted, chosen), law)
    tokens = choose(plain, ratio, budget="bernoulli", min_targets=0)
    together = frequencies(plain, tokens[:, :1] & tokens)
    assert_close(frequencies(plain, tokens), [ratio] * 4)
    assert_close(together[1:], [ratio**2] * 3)
    # whole units are never forced in: one marked name a row would be masked in every row
    assert_close(frequencies(plain, choose(plain, ratio, budget="bernoulli")), [ratio] * 4)
    # at least one token while eligible × ratio ≥ 0.5: the empty outcome is shared out evenly
    single = units_of([1] * 4)
    floored = choose(single, ratio, budget="bernoulli")
    assert floored.any(1).all()
    assert_close(frequencies(single, floored), [ratio + (1 - ratio) ** 4 / 4] * 4)


def successive(weight: list[float], count: int) -> list[float]:
    """Inclusion probabilities of weighted sampling without replacement, ``count`` units."""

    @cache
    def go(left: frozenset[int], more: int) -> tuple[float, ...]:
        found = [0.0] * len(weight)
        total = sum(weight[i] for i in left)
        for i in left if more else ():
            if weight[i]:
                rest = go(left - {i}, more - 1)
                for j in range(len(weight)):
                    found[j] += weight[i] / total * ((j == i) + rest[j])
        return tuple(found)

    return list(go(frozenset(range(len(weight))), count))


@pytest.mark.parametrize(
    "weight",
    [
        [1.0, 2.0, 3.0, 4.0],
        [0.88] * 3 + [0.12] * 3,
        [5.0, 0.0, 1.0, 1.0],
        [1e-200, 3e-200, 1e-200, 2e-200],
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_weighted_is_sampling_without_replacement(weight: list[float], size: int) -> None:
    units = units_of([size] * len(weight), weight=weight)
    for budget in ("exact", "expected"):
        found = frequencies(units, choose(units, 0.5, budget=budget))
        assert_close(found, successive(weight, len(weight) // 2))
    if size == 1:  # single tokens have a path of their own
        one_by_one = Units.of_tokens(
            units.line, units.tokens, units.unit, units.piece, units.number, units.weight
        )
        assert torch.equal(choose(one_by_one, 0.5), choose(units, 0.5))


@pytest.mark.parametrize("weight", [[1e300, 1e-300, 1.0, 0.0], [1e-308, 1e308, 5e-324, 1.0]])
def test_weights_of_any_size_keep_their_order(weight: list[float]) -> None:
    units = units_of([1] * 4, weight=weight, count=2000)
    heaviest = frequencies(units, choose(units, 0.25))
    assert heaviest[weight.index(max(weight))] == 1
    assert choose(units, 1.0, fill="random").all()


def test_fill_says_what_becomes_of_an_unused_budget() -> None:
    weight = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    units = units_of([1, 2, 1, 1, 1, 2], weight=weight)  # 8 tokens, 2 of positive weight
    none = choose(units, 0.5, fill="none")
    assert_close(frequencies(units, none), [1, 0, 1, 0, 0, 0])
    assert not choose(units, 0.5, fill="skip-row").any()
    assert choose(units, 0.25, fill="skip-row").sum(1).eq(2).all()
    for budget, rule in (("exact", skip_rule), ("expected", border_rule)):
        filled = choose(units, 0.5, fill="random", budget=budget)
        # what is left: 2 of the 6 tokens of weight 0
        law = enumerate_orders([2, 1, 1, 2], 2 / 6, rule)
        assert_close(frequencies(units, filled), [1, law[0], 1, *law[1:]])


@pytest.mark.parametrize(
    ("tokens", "ratio", "floor", "least"),
    [(10, 0.049, 1, 0), (10, 0.05, 1, 1), (10, 0.05, 3, 3), (2, 0.4, 5, 2), (10, 0.05, 0, 0)],
)
def test_min_targets_applies_only_from_half_a_token(
    tokens: int, ratio: float, floor: int, least: int
) -> None:
    for budget in ("exact", "expected", "bernoulli"):
        chosen = choose(
            units_of([1] * tokens, count=2000), ratio, budget=budget, min_targets=floor
        ).sum(1)
        assert chosen.min() == least


def test_runs_are_words_and_words_with_unknown_pieces_are_never_chosen() -> None:
    one = row([2, 3, 0, 1, 2], unknown=[3])
    # [CLS] a a b [UNK] b [SEP] c: the number of the first word again, behind a special token
    one["word_ids"][7] = 0
    units = runs(batch := gather(padded([one]), vocabulary()), batch.layers["word_ids"])
    assert units.length.tolist() == [2, 1, 2] and units.number.tolist() == [0, 2, 3]
    assert units.tokens_P.tolist() == [5]
    chosen = units.spread(np.ones(3, bool))
    assert np.flatnonzero(chosen).tolist() == [1, 2, 7, 8, 9]


@pytest.mark.parametrize("lengths", [[1] * 60, [2, 1, 3] * 20])
def test_units_that_are_not_sorted_stand_behind_the_border(lengths: list[int]) -> None:
    """Of many pieces some have so few small keys that they must be sorted whole."""
    units, size = units_of(lengths, count=3000), len(lengths)
    keys, budget_P = (
        Draws(np.arange(3000), seed=0, epoch=0),
        np.full(3000, round(0.15 * sum(lengths))),
    )
    every = in_order(units, keys).reshape(3000, size)
    some = in_order(units, keys, budget_P=budget_P)
    sizes = np.bincount(units.piece[some])
    assert len(some) < 0.5 * every.size and (sizes == size).any() and (sizes < size).any()
    for whole, part in zip(every, np.split(some, sizes.cumsum()[:-1]), strict=True):
        assert (whole[: len(part)] == part).all()
        assert len(part) == size or units.length[part].sum() > budget_P[0]


@pytest.mark.parametrize("rows", [1, 40, 2000])
@pytest.mark.parametrize("lengths", [[2, 1, 3] * 20, [1] * 5 + [7, 3, 40] * 6, [3, 5] * 40])
def test_exact_tries_every_unit_in_the_order_of_its_key(lengths: list[int], rows: int) -> None:
    """It sorts only the units that a budget may reach, and selects as if it had sorted all."""
    units = units_of(lengths, count=rows)
    draws = Draws(np.arange(rows), seed=1, epoch=0)
    # Budgets from nothing to the whole text, so that pieces need few, many or all of the units.
    budget_P = np.arange(rows) * 7 % (sum(lengths) + 1)
    expected = np.zeros(len(units.piece), bool)
    left = budget_P.tolist()
    for unit in in_order(units, draws).tolist():
        piece, length = int(units.piece[unit]), int(units.length[unit])
        if length <= left[piece]:
            expected[unit] = True
            left[piece] -= length
    assert (up_to(units, budget_P, draws) == expected).all()
