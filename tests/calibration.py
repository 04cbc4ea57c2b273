"""How often the rules of evidence are right, by simulation, for tests/test_calibration.py.

Everything goes through the functions that judge real studies: no second implementation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from maskwise.study.statistics import (
    fewest_runs,
    sign_flip_interval,
    sign_flip_test,
)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DIFFERENCES: dict[str, Draw] = {  # all of mean zero
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails (t, 3 df)": lambda rng, size: rng.standard_t(3, size=size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1,
    "very skewed (lognormal)": lambda rng, size: rng.lognormal(size=size) - np.exp(0.5),
}


def rejections(runs: int, draw: Draw, *, draws: int = 10_000, seed: int = 0) -> float:
    """The share of studies with p < .05 where there is no difference."""
    rows = draw(np.random.default_rng([seed, runs]), (draws, runs))
    return float(np.mean([sign_flip_test(row) < 0.05 for row in rows]))


def coverage(runs: int, draw: Draw, *, draws: int = 10_000, seed: int = 0) -> float:
    """How often the 95 % interval holds the true mean, 0."""
    rows = draw(np.random.default_rng([seed, runs]), (draws, runs))
    ends = [sign_flip_interval(row) for row in rows]
    return float(np.mean([low <= 0 <= high for low, high in ends]))


def called_equal(runs: int, contrasts: int, *, draws: int = 4000, seed: int = 0) -> float:
    """The share of studies that call a contrast equal whose true difference is the margin, of two
    spreads.
    """
    rows = np.random.default_rng([seed, runs]).normal(2.0, 1, (draws, runs))
    ends = [sign_flip_interval(row, confidence=1 - 0.05 / contrasts) for row in rows]
    return float(
        np.mean([each is not None and each[0] >= -2.0 and each[1] <= 2.0 for each in ends])
    )


def simulated_runs(effect: float, alpha: float, *, draws: int = 4000, seed: int = 0) -> int:
    """The fewest runs with which a normal difference of `effect` SDs is decided in at least 80 % of
    studies.
    """
    for runs in itertools.count(fewest_runs(alpha)):
        rows = np.random.default_rng([seed, runs]).normal(effect, 1, (draws, runs))
        if np.mean([sign_flip_test(row) < alpha for row in rows]) >= 0.8:
            return runs
    raise AssertionError
