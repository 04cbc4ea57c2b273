"""How many runs a study needs, and what a given number of runs can see: pure functions of plain numbers.

The test that decides is the exact sign-flip test, whose p values come in steps of 2^(1 − n): with 8 runs and a
level of .0083 the level that is really used is .0078, with 9 still .0078. So power is that of the paired t test
at the level which the sign-flip test can attain. Against simulations of the whole rule (sign-flip p and an
interval without zero) the runs it asks for are right to one run in nine (docs/evidence.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from maskwise.errors import MaskwiseError
from maskwise.study.statistics import EXACT_RUNS, t_quantile

NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # of an integral over [−1, 1]; 20 ms, so made once
P_FROM_RUNS = 6  # fewer, and no p is printed: the smallest one at 5 runs is .0625


def attainable_level(runs: int, alpha: float = 0.05) -> float:
    """The largest p below alpha that the sign-flip test of so many runs can give; 0 if there is none."""
    if runs > EXACT_RUNS:
        return alpha
    patterns = 2 ** (runs - 1)
    return (math.ceil(alpha * patterns) - 1) / patterns


def fewest_runs(alpha: float = 0.05) -> int:
    """The fewest runs that can decide anything at this level."""
    return next(n for n in range(P_FROM_RUNS, 60) if attainable_level(n, alpha) > 0)


def can_decide(runs: int, contrasts: int = 1, alpha: float = 0.05) -> bool:
    """Whether so many runs can give a p below alpha after Holm's correction over so many contrasts."""
    return runs >= P_FROM_RUNS and attainable_level(runs, alpha / max(contrasts, 1)) > 0


def look_weights(looks: Sequence[int], alpha: float = 0.05) -> list[float]:
    """The shares of the error that planned looks at the runs may spend; they sum to 1, and the last has the most.

    A p value at a look is divided by its weight, and the smallest over the looks so far is a p value of the whole plan
    (Bonferroni with weights): that holds for the exact test, however the looks depend on each other. What it gives away
    is little, because the early weights are small.

    >>> [round(weight, 3) for weight in look_weights([10, 20])]
    [0.111, 0.889]

    Args:
        looks: numbers of runs, rising.

    Source: Lan and DeMets (1983), the spending function like O'Brien and Fleming's: 2 − 2 Φ(z / √t).
    """
    z = stats.norm.ppf(1 - alpha / 2)
    spent = [0.0, *(2 * float(stats.norm.sf(z / math.sqrt(runs / looks[-1]))) for runs in looks)]
    return [(after - before) / alpha for before, after in pairwise(spent)]


def look_weight(looks: Sequence[int] | None, runs: int) -> float:
    """The share of the error that may be spent at this number of runs: all of it where no looks are planned."""
    return look_weights(looks)[looks.index(runs)] if looks else 1.0


def power_of(sd: float, difference: float, runs: int, *, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test (noncentral t); `sd` is that of the paired differences.

    Integrated over the quantiles of the sample sd: scipy's noncentral t is nan at few runs and large shifts.
    """
    shift = abs(difference) / sd * math.sqrt(runs)
    critical = t_quantile(1 - alpha / 2, runs - 1) * _sample_sds(runs)
    return float(WEIGHTS @ (special.ndtr(shift - critical) + special.ndtr(-shift - critical)) / 2)


@cache
def _sample_sds(runs: int) -> NDArray[np.float64]:
    """Quantiles of the sample SD where the true one is 1."""
    quantiles = stats.chi2.ppf((NODES + 1) / 2, runs - 1)
    return np.sqrt(quantiles / (runs - 1))


def runs_needed(
    sd: float, difference: float, power: float = 0.8, alpha: float = 0.05, *, most: int = 100_000
) -> int | None:
    """The fewest paired runs whose t test finds `difference` with this power; None if more than `most`."""
    if sd < 0 or not math.isfinite(sd) or not math.isfinite(difference):
        raise MaskwiseError("runs_needed wants finite numbers, sd ≥ 0", got=f"sd {sd}, difference {difference}")
    if sd == 0:
        return 2 if difference else None
    if difference == 0 or power_of(sd, difference, most, alpha=alpha) < power:
        return None
    low, high = 1, 2  # power rises with runs: double, then halve
    while power_of(sd, difference, high, alpha=alpha) < power:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(sd, difference, middle, alpha=alpha) >= power else (middle, high)
    return high


def detectable_difference(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that n paired runs find with this power, in the unit of `sd`."""
    if n < 2 or sd < 0:
        raise MaskwiseError("detectable_difference wants n ≥ 2 and sd ≥ 0", got=f"n {n}, sd {sd}")
    return sd * _detectable_effect(n, power, alpha)


@cache
def _detectable_effect(n: int, power: float, alpha: float) -> float:
    """In SDs, of which there are few: a page asks for the same one in every row."""
    highest = 100 * stats.t.ppf(1 - alpha / 2, n - 1) / math.sqrt(n)  # power is 1 there
    return float(optimize.brentq(lambda x: power_of(1.0, x, n, alpha=alpha) - power, 1e-9, highest))


def runs_to_decide(
    sd: float, difference: float, *, power: float = 0.8, alpha: float = 0.05, most: int = 10_000
) -> int | None:
    """The fewest runs with which a verdict would be "decided" with this power; None if more than `most`.

    `alpha` is the level left after Holm's correction. The true `sd` and `difference` are taken as known; with
    those of three runs the answer is itself a guess.
    """
    needed = runs_needed(sd, difference, power, alpha, most=most)
    if needed is None:
        return None
    runs = max(needed, fewest_runs(alpha))
    while sd > 0 and runs <= EXACT_RUNS:
        if power_of(sd, difference, runs, alpha=attainable_level(runs, alpha)) >= power:
            break
        runs += 1
    return runs
