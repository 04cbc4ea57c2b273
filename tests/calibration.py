"""How often the rules of evidence are right, by simulation. ``python tests/calibration.py`` prints
the tables of docs/evidence.md (about two minutes on one core); tests/test_calibration.py asserts
what they promise.

Everything goes through the functions that judge real studies: no second implementation.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np

from maskwise.study.statistics import (
    fewest_runs,
    runs_to_decide,
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


def main() -> None:
    say = sys.stdout.write
    say("| runs | p < .05, normal | p < .05, skewed |\n|---|---|---|\n")
    for runs in range(6, 13):
        shares = [
            rejections(runs, DIFFERENCES[name]) for name in ("normal", "skewed (exponential)")
        ]
        say(f"| {runs} | {' | '.join(f'{share:.3f}' for share in shares)} |\n")
    say(f"\n| runs | {' | '.join(DIFFERENCES)} |\n|---|{'---|' * len(DIFFERENCES)}\n")
    for runs in (6, 7, 8, 10, 12, 15):
        cells = [f"{100 * coverage(runs, draw, draws=5000):.1f} %" for draw in DIFFERENCES.values()]
        say(f"| {runs} | {' | '.join(cells)} |\n")
    say("\n| runs | contrasts | called equal at the margin |\n|---|---|---|\n")
    for runs, contrasts in ((6, 1), (7, 3), (8, 1), (8, 6), (12, 1), (12, 6)):
        say(f"| {runs} | {contrasts} | {100 * called_equal(runs, contrasts):.1f} % |\n")
    say("\n| level | difference in SDs | advised | simulated |\n|---|---|---|---|\n")
    for alpha in (0.05, 0.05 / 6):
        for effect in (2.5, 2.0, 1.75, 1.5, 1.25, 1.0):
            advised, found = runs_to_decide(1.0, effect, alpha=alpha), simulated_runs(effect, alpha)
            say(f"| {alpha:.4f} | {effect} | {advised} | {found} |\n")


if __name__ == "__main__":
    main()
