"""``benchmarks/decision_transfer.py``: does a small study order arms as a larger one does?"""

from __future__ import annotations

from pathlib import Path

import decision_transfer
import numpy as np
import pytest

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def test_orders_of_equal_arms_are_rarely_seen() -> None:
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(400):
        luck = rng.normal(size=(1, 4))
        signs = decision_transfer.ordered(luck + rng.normal(size=(10, 4)))
        seen.append(np.abs(signs[np.triu_indices(10, 1)]).mean())
    assert np.mean(seen) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("sign", "share"), [(1, 1.0), (-1, 0.0)])
def test_the_share_of_kept_orders(sign: int, share: float) -> None:
    rng = np.random.default_rng(2)
    large = np.arange(6.0)[:, None] + rng.normal(scale=0.1, size=(6, 4))
    signs = decision_transfer.ordered(large)
    small = sign * large + rng.normal(scale=0.1, size=(6, 4))
    assert decision_transfer.agreement(small, signs) == (share, 15)
    assert decision_transfer.interval(small, signs) == [share, share]


def test_noise_keeps_about_half_of_the_orders() -> None:
    rng = np.random.default_rng(3)
    signs = decision_transfer.ordered(np.arange(10.0)[:, None] + rng.normal(size=(10, 4)) / 10)
    noise = rng.normal(size=(10, 4))
    low, high = decision_transfer.interval(noise, signs)
    assert low < 0.5 < high and high - low > 0.2


def test_three_ordered_pairs_of_a_recorded_study_cannot_tell() -> None:
    [line] = decision_transfer.main([RESULTS / "decay-replication"])
    assert (line["arms"], line["ordered_pairs"]) == (4, 3)
    assert {line[proxy] for proxy in decision_transfer.PROXIES} == {"cannot tell"}
