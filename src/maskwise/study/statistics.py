"""Statistics for few, expensive runs: pure functions of plain numbers.

A study has three to thirty pre-training runs per arm, paired by seed. So everything here works on
the *paired differences* d_1 … d_n of one number per run, and nothing assumes large samples. Nothing
here knows about arms, tasks or verdicts; those rules are in ``maskwise.study.verdict``.
``maskwise.study.power`` says how many runs a study needs.

Test and interval are two views of one thing. Splitting the runs in two, {S, rest}, and flipping the
signs of S gives an absolute sum of differences from r that is at least the observed one exactly
when r lies between mean(S) and mean(rest). So the p value of "the true mean is r" is the share of
splits whose two means have r between them (the split that flips nothing counts always), and the
ends of an interval are order statistics of those means: no search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from maskwise.errors import MaskwiseError
from maskwise.files import Estimate

EXACT_RUNS = 20
"""Up to here all 2^(n − 1) splits are enumerated: at most half a million, in 20 ms."""
DRAWS = 100_000
"""Random splits of more runs, drawn with a fixed seed."""


def paired_differences(
    arm: Mapping[int, float], baseline: Mapping[int, float]
) -> NDArray[np.float64]:
    """arm − baseline for every seed, in the order of the seeds. Raises MaskwiseError if the seeds
    differ.
    """
    if arm.keys() != baseline.keys():
        raise MaskwiseError(
            "the two arms were not run with the same seeds",
            got=f"{sorted(arm)} and {sorted(baseline)}",
            do="run both arms with every seed",
        )
    return np.array([arm[seed] - baseline[seed] for seed in sorted(arm)], dtype=float)


# The sign-flip test
# ----------------------------------------------------------------------------------


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
    d = _numbers(differences, at_least=1)
    flipped, _ = _splits(d)
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # ties must count in spite of rounding
    as_large = np.abs(d.sum() - 2 * flipped) >= observed
    return float((1 + as_large.sum()) / (1 + len(flipped)))


def sign_flip_interval(
    differences: ArrayLike, *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """All values of the mean that the sign-flip test does not reject at 1 − ``confidence``: the
    inverted test.

    None where so few differences reject nothing at this level: below 6 for 95 %. With 6 the ends
    are the smallest and the largest difference, which cover 96.9 %.

    >>> sign_flip_interval([1, 2, 3, 4, 5, 6])
    (1.0, 6.0)
    """
    d = _numbers(differences, at_least=1)
    flipped, sizes = _splits(d)
    splits = 1 + len(flipped)
    # A mean is rejected if its p value, (1 + splits around it) / splits, is below 1 − confidence.
    around = math.ceil((1 - confidence) * splits * (1 - 1e-12)) - 1
    if around < 1:
        return None
    means = flipped / sizes
    others = (d.sum() - flipped) / (len(d) - sizes)
    lower, upper = np.minimum(means, others), np.maximum(means, others)
    low = np.partition(lower, around - 1)[around - 1]
    high = np.partition(upper, len(upper) - around)[len(upper) - around]
    return float(low), float(high)


def _splits(d: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For every split of the runs in two, the sum and the size of the part without the first run,
    if not empty.
    """
    if len(d) > EXACT_RUNS:
        inside = _drawn(len(d))
        return inside @ d, inside.sum(axis=1)
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in d[1:]:
        sums = np.concatenate([sums, sums + value])
        sizes = np.concatenate([sizes, sizes + 1])
    return sums[1:], sizes[1:]


@cache
def _drawn(runs: int) -> NDArray[np.float64]:
    """Random splits: 1 for runs that are flipped. The first run never is, since both parts stand
    for one split.
    """
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
    """A mean difference with its 95 % interval; None without differences, or with too few for an
    interval.
    """
    if not len(differences):
        return {"mean": None, "low": None, "high": None}
    low, high = sign_flip_interval(differences) or (None, None)
    return {"mean": float(differences.mean()), "low": low, "high": high}


# Shares of a gain
# ------------------------------------------------------------------------------------


@cache
def t_quantile(level: float, freedom: int) -> float:
    """A quantile of Student's t."""
    return float(stats.t.ppf(level, freedom))


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float] | None:
    """Fieller's 95 % interval for mean(numerators) / mean(denominators), of pairs; None where it
    has no two ends.

    It holds every r for which Student's test of numerators − r · denominators does not reject a
    mean of 0. It has two ends only where the mean of the denominators differs from 0 by the same
    test. Source: Fieller (1954), section 2.

    >>> [round(end, 3) for end in ratio_interval([2.0, 2.0, 2.0], [3.9, 4.0, 4.1])]
    [0.471, 0.533]
    """
    a, b = _numbers(numerators, at_least=2), _numbers(denominators, at_least=2)
    t = t_quantile(0.975, len(a) - 1)
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


def _numbers(values: ArrayLike, *, at_least: int) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float).ravel()
    if len(x) < at_least or not np.isfinite(x).all():
        raise MaskwiseError(
            "this wants finite numbers", got=x.tolist(), allowed=f"{at_least} or more"
        )
    return x
