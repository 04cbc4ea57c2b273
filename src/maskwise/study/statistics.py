"""Statistics for few, expensive runs: pure functions of plain numbers.

Everything works on the paired differences d_1 … d_n of one number per run; nothing assumes large
samples, and nothing knows about arms, tasks or verdicts (see ``maskwise.study.verdict``).

Test and interval are two views of one thing. Splitting the runs in two, {S, rest}, and flipping the
signs of S gives an absolute sum of differences from r that is at least the observed one exactly
when r lies between mean(S) and mean(rest). So the p value of "the true mean is r" is the share of
splits whose two means have r between them (the split that flips nothing counts always), and the
ends of an interval are order statistics of those means: no search.

The p values of n runs come in steps of 2^(1 - n). So power is that of the paired t test at the
level that the sign-flip test can attain; it is exact where that level is a single step, which needs
the same sign in all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from maskwise.errors import MaskwiseError
from maskwise.files import Estimate

EXACT_RUNS = 20
"""Up to here all 2^(n - 1) splits are enumerated: at most half a million, in 20 ms."""
DRAWS = 100_000
"""Random splits of more runs, drawn with a fixed seed."""
P_FROM_RUNS = 6
"""With fewer runs no p is printed: the smallest one at 5 runs is .0625."""
MOST_RUNS = 300
"""No larger number of runs is looked for."""
# Nodes of an integral over [-1, 1]; they take 20 ms, so they are made once.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


# The sign-flip test


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p value of the sign-flip (paired permutation) test of mean zero.

    If the mean is zero, each difference is as likely to be −d as d. Exact up to 20 differences;
    above, 100,000 random splits with the +1 correction, so that p is never 0. The smallest exact p
    is 2^(1 − n).

    >>> sign_flip_test([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    0.03125

    Source: Fisher, The Design of Experiments (1935), section 21; the correction: Phipson and Smyth
        (2010).
    """
    d = _finite(differences)
    flipped, _ = _splits(d)
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # ties must count in spite of rounding
    as_large = np.abs(d.sum() - 2 * flipped) >= observed
    return float((1 + as_large.sum()) / (1 + len(flipped)))


def sign_flip_interval(
    differences: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """All values of the mean that the sign-flip test does not reject at 1 − ``confidence``.

    None where so few differences reject nothing at this level: below 6 for 95 %. With 6 the ends
    are the smallest and the largest difference, which cover 96.9 %.

    >>> sign_flip_interval([1, 2, 3, 4, 5, 6])
    (1.0, 6.0)
    """
    d = _finite(differences)
    flipped, sizes = _splits(d)
    splits = 1 + len(flipped)
    # A mean is rejected if its p value, (1 + splits around it) / splits, is below 1 − confidence.
    around = math.ceil((1 - confidence) * splits * (1 - 1e-12)) - 1
    if around < 1:
        return None
    means = flipped / sizes
    others = (d.sum() - flipped) / (len(d) - sizes)
    lower = np.minimum(means, others)
    upper = np.maximum(means, others)
    low = np.partition(lower, around - 1)[around - 1]
    high = np.partition(upper, len(upper) - around)[len(upper) - around]
    return float(low), float(high)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=float)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise MaskwiseError("a test needs finite numbers", got=numbers.tolist())
    return numbers


def _splits(d: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For every split of the runs in two, the sum and size of the part without the first run."""
    if len(d) > EXACT_RUNS:
        inside = _drawn(len(d))
        return inside @ d, inside.sum(axis=1)
    sums = np.zeros(1)
    sizes = np.zeros(1)
    for value in d[1:]:
        sums = np.concatenate([sums, sums + value])
        sizes = np.concatenate([sizes, sizes + 1])
    # The first split is the one that flips nothing.
    return sums[1:], sizes[1:]


@cache
def _drawn(runs: int) -> NDArray[np.float64]:
    """Random splits, 1 for runs that are flipped; the first is not: both parts are one split."""
    inside = np.random.default_rng(0).integers(0, 2, size=(DRAWS, runs)).astype(float)
    inside[:, 0] = 0
    return inside[inside.any(axis=1)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given. Source: Holm (1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def estimated(differences: NDArray[np.float64]) -> Estimate:
    """A mean difference with its 95 % interval; None where there are too few runs."""
    if not len(differences):
        return {"mean": None, "low": None, "high": None}
    low, high = sign_flip_interval(differences) or (None, None)
    return {"mean": float(differences.mean()), "low": low, "high": high}


# Shares of a gain


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float] | None:
    """Fieller's 95 % interval for mean(numerators) / mean(denominators), of pairs.

    It holds every r for which Student's test of numerators − r · denominators does not reject a
    mean of 0. None where it has no two ends: the mean of the denominators does not differ from 0 by
    the same test. Source: Fieller (1954), section 2.

    >>> [round(end, 3) for end in ratio_interval([2.0, 2.0, 2.0], [3.9, 4.0, 4.1])]
    [0.471, 0.533]
    """
    a = _finite(numerators)
    b = _finite(denominators)
    t = stats.t.ppf(0.975, len(a) - 1)
    (var_a, cov), (_, var_b) = np.cov(a, b) / len(a)
    square = b.mean() ** 2 - t**2 * var_b
    if square <= 0:
        return None
    middle = a.mean() * b.mean() - t**2 * cov
    half = math.sqrt(max(middle**2 - square * (a.mean() ** 2 - t**2 * var_a), 0.0))
    return float((middle - half) / square), float((middle + half) / square)


def binomial_interval(count: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share, count / of. Source: Clopper and Pearson (1934).

    >>> [round(end, 3) for end in binomial_interval(1, 10)]
    [0.003, 0.445]
    """
    interval = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


# Power


def attainable_level(runs: int, alpha: float = 0.05) -> float:
    """The largest p below alpha that the sign-flip test can give; 0 if there is none."""
    if runs > EXACT_RUNS:
        return alpha
    splits = 2 ** (runs - 1)
    return (math.ceil(alpha * splits) - 1) / splits


def fewest_runs(alpha: float = 0.05) -> int:
    """The fewest runs that can decide anything at this level."""
    runs = P_FROM_RUNS
    while attainable_level(runs, alpha) == 0:
        runs += 1
    return runs


def can_decide(runs: int, contrasts: int) -> bool:
    """Whether so many runs can give a p below .05 after Holm's correction over the contrasts."""
    return runs >= fewest_runs(0.05 / contrasts)


def look_weights(looks: Sequence[int], alpha: float = 0.05) -> list[float]:
    """The shares of the error that planned looks at the runs may spend.

    They sum to 1, and the last has the most. A p value at a look is divided by its weight, and the
    smallest over the looks so far is a p value of the whole plan (Bonferroni with weights): that
    holds for the exact test, however the looks depend on each other.

    >>> [round(weight, 3) for weight in look_weights([10, 20])]
    [0.111, 0.889]

    Args:
        looks: numbers of runs, rising.

    Source: Lan and DeMets (1983), the spending function like O'Brien and Fleming's: 2 − 2 Φ(z /
        √t).
    """
    z = stats.norm.ppf(1 - alpha / 2)
    spent = [2 * stats.norm.sf(z / math.sqrt(runs / looks[-1])) for runs in looks]
    return (np.diff(spent, prepend=0.0) / alpha).tolist()


def look_weight(looks: Sequence[int] | None, runs: int) -> float:
    """The share of the error that may be spent at this number of runs."""
    return look_weights(looks)[looks.index(runs)] if looks else 1.0


def power_of(sd: float, difference: float, runs: int, *, alpha: float = 0.05) -> float:
    """The probability of deciding a true difference, if the paired differences are normal.

    >>> [round(power_of(1, effect, runs), 2) for runs in (6, 8) for effect in (1, 1.5)]
    [0.35, 0.66, 0.67, 0.95]

    Args:
        sd: the standard deviation of the paired differences.
        difference: the true one, in the same unit.
        alpha: the level that is left after Holm's correction.
    """
    level = attainable_level(runs, alpha)
    if level == 0:
        return 0.0
    if runs <= EXACT_RUNS and level == 2.0 ** (1 - runs):
        return float(special.ndtr(difference / sd) ** runs + special.ndtr(-difference / sd) ** runs)
    # Integrated over the quantiles of the sample SD: scipy's noncentral t is nan at few runs and
    # large shifts.
    shift = abs(difference) / sd * math.sqrt(runs)
    critical = stats.t.ppf(1 - level / 2, runs - 1) * _sample_sds(runs)
    return float(WEIGHTS @ (special.ndtr(shift - critical) + special.ndtr(-shift - critical)) / 2)


@cache
def _sample_sds(runs: int) -> NDArray[np.float64]:
    """Quantiles of the sample SD where the true one is 1."""
    quantiles = stats.chi2.ppf((NODES + 1) / 2, runs - 1)
    return np.sqrt(quantiles / (runs - 1))


def detectable_difference(sd: float, runs: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that is decided with this power, in the unit of ``sd``."""
    return sd * _detectable_effect(runs, power, alpha)


@cache
def _detectable_effect(runs: int, power: float, alpha: float) -> float:
    return float(optimize.brentq(lambda x: power_of(1.0, x, runs, alpha=alpha) - power, 1e-9, 1000))


def runs_to_decide(
    sd: float, difference: float, *, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The fewest runs that would decide ``difference`` with this power; None if more than 300.

    The true ``sd`` and ``difference`` are taken as known; with those of three runs the answer is
    itself a guess.

    Args:
        alpha: the level that is left after Holm's correction.
    """
    if sd == 0 and difference:
        return fewest_runs(alpha)
    if not difference or power_of(sd, difference, MOST_RUNS, alpha=alpha) < power:
        return None
    runs = fewest_runs(alpha)
    while power_of(sd, difference, runs, alpha=alpha) < power:
        runs += 1
    return runs
