"""How often the rules of evidence are right, by simulation. ``python tests/calibration.py`` prints the tables of
docs/evidence.md (about four minutes on one core); tests/test_calibration.py asserts what they promise.

Everything goes through the functions that judge real studies: no second implementation.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np

from maskwise.study.power import fewest_runs, runs_to_decide
from maskwise.study.statistics import interval_by_rule, sign_flip_test

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DIFFERENCES: dict[str, Draw] = {  # all of mean zero
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails (t, 3 df)": lambda rng, size: rng.standard_t(3, size=size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1,
    "very skewed (lognormal)": lambda rng, size: rng.lognormal(size=size) - np.exp(0.5),
}


def rejections(runs: int, draw: Draw, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """(share of p < .05, share that is also "decided") where there is no difference."""
    p, apart = _judged(draw(np.random.default_rng([seed, runs]), (draws, runs)))
    return float(np.mean(p < 0.05)), float(np.mean((p < 0.05) & apart))


def coverage(runs: int, draw: Draw, *, draws: int = 10_000, seed: int = 0) -> float:
    """How often the interval by the rule holds the true mean, 0."""
    rows = draw(np.random.default_rng([seed, runs]), (draws, runs))
    return float(np.mean([low <= 0 <= high for low, high, _ in map(interval_by_rule, rows)]))


def simulated_runs(effect: float, alpha: float, *, draws: int = 4000, seed: int = 0) -> int:
    """The fewest runs with which a normal difference of `effect` SDs is decided in at least 80 % of studies."""
    for runs in itertools.count(fewest_runs(alpha)):
        rows = np.random.default_rng([seed, runs]).normal(effect, 1, (draws, runs))
        p, apart = _judged(rows)
        if np.mean((p < alpha) & apart) >= 0.8:
            return runs
    raise AssertionError


def _judged(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.array([sign_flip_test(d) for d in rows])
    ends = np.array([interval_by_rule(d)[:2] for d in rows])
    return p, (ends[:, 0] > 0) | (ends[:, 1] < 0)


def main() -> None:
    say = sys.stdout.write
    normal, skewed = DIFFERENCES["normal"], DIFFERENCES["skewed (exponential)"]
    say("| runs | p < .05, normal | and decided | p < .05, skewed |\n|---|---|---|---|\n")
    for runs in range(3, 13):
        (test, decided), (other, _) = rejections(runs, normal), rejections(runs, skewed)
        say(f"| {runs} | {test:.3f} | {decided:.3f} | {other:.3f} |\n")
    say("\n| runs | " + " | ".join(DIFFERENCES) + " |\n|---" + "|---" * len(DIFFERENCES) + "|\n")
    for runs in (2, 3, 4, 5, 6, 8, 10, 12, 15, 19, 20, 25, 30):
        draws = 10_000 if runs < 20 else 2_000
        cells = [f"{100 * coverage(runs, draw, draws=draws):.1f} %" for draw in DIFFERENCES.values()]
        say(f"| {runs} | {' | '.join(cells)} |\n")
    say("\n| level | difference in SDs | advised | simulated |\n|---|---|---|---|\n")
    for alpha in (0.05, 0.05 / 6):
        for effect in (2.5, 2.0, 1.75, 1.5, 1.25, 1.1, 1.0):
            advised, found = runs_to_decide(1.0, effect, alpha=alpha), simulated_runs(effect, alpha)
            say(f"| {alpha:.4f} | {effect} | {advised} | {found} |\n")


if __name__ == "__main__":
    main()
