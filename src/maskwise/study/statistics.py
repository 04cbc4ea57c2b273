"""Small statistics for few, expensive runs: pure functions of plain numbers.

A study has three to thirty pre-training runs per arm, paired by seed. So everything here works on the *paired
differences* d_1 … d_n of one number per run, makes no use of large samples, and says so where it cannot help.
Nothing here knows about arms, tasks or verdicts; those rules live in ``maskwise.study.verdict``. How many runs
a study needs is asked in ``maskwise.study.power``.

Not statsmodels or rliable: the functions are short, are read by people who doubt a verdict, and are tested
against scipy and published examples. Cost: the exact test enumerates at most 2^15 sign patterns (about 5 ms).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from maskwise.errors import MaskwiseError
from maskwise.files import Estimate

EXACT_RUNS = 16  # up to here all 2^n sign patterns are enumerated
BCA_FROM_RUNS = 20  # below, BCa covers too rarely (.71 at 3 runs, .90 at 10, nominal .95)


class Interval(NamedTuple):
    """A confidence interval for a mean, with the name of its method."""

    low: float
    high: float
    method: str


def paired_differences(arm: Mapping[int, float], baseline: Mapping[int, float]) -> NDArray[np.float64]:
    """arm − baseline for every seed, in the order of the seeds. Raises MaskwiseError if the seeds differ."""
    if arm.keys() != baseline.keys():
        raise MaskwiseError(
            "the two arms were not run with the same seeds",
            got=f"{sorted(arm)} and {sorted(baseline)}",
            do="run both arms with every seed",
        )
    return np.array([arm[seed] - baseline[seed] for seed in sorted(arm)], dtype=float)


# Tests -----------------------------------------------------------------------------------------------


def sign_flip_test(differences: ArrayLike, *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p value of the sign-flip (paired permutation) test of mean zero.

    Under the null hypothesis each difference is as likely to be −d as d. Exact up to 16 differences; above,
    `draws` random patterns with the +1 correction, so that p is never 0. The smallest exact p is 2^(1 − n).
    Source: Fisher, The Design of Experiments (1935), section 21; the correction: Phipson and Smyth (2010).
    """
    d = _numbers(differences, at_least=1)
    observed = abs(d.sum()) * (1 - 1e-12) - 1e-300  # ties must count in spite of rounding
    if len(d) <= EXACT_RUNS:
        patterns = np.arange(2 ** (len(d) - 1))  # the mirror image of a pattern has the same |sum|
        signs = 1.0 - 2.0 * (patterns[:, None] >> np.arange(len(d)) & 1)
        return float(np.mean(np.abs(signs @ d) >= observed))
    generator = np.random.default_rng(seed)
    extreme, left = 0, draws
    while left:
        rows = min(left, 10_000)  # in blocks, so that memory stays flat
        signs = 1.0 - 2.0 * generator.integers(0, 2, size=(rows, len(d)))
        extreme += int(np.sum(np.abs(signs @ d) >= observed))
        left -= rows
    return (extreme + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given. Source: Holm (1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """False discovery rates: the share of chance finds to expect among all rows whose p is at most this one's.

    >>> [round(q, 3) for q in benjamini_hochberg([0.01, 0.04, 0.03, 0.5])]
    [0.04, 0.053, 0.053, 0.5]

    Source: Benjamini and Hochberg (1995); valid for tests that are independent or rise together.
    """
    return stats.false_discovery_control(p_values).tolist()


def paired_t_test(differences: ArrayLike) -> float:
    """Two-sided p value of Student's test of mean zero, which agrees with ``paired_t_interval``. Needs 2 differences.

    >>> round(paired_t_test([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    d = _numbers(differences, at_least=2)
    if np.ptp(d) == 0:
        return float(d[0] == 0)
    t = d.mean() / d.std(ddof=1) * math.sqrt(len(d))
    return float(2 * special.stdtr(len(d) - 1, -abs(t)))


# Intervals -------------------------------------------------------------------------------------------


@cache
def t_quantile(level: float, freedom: int) -> float:
    """A quantile of Student's t; a page asks for few of them, hundreds of times."""
    return float(stats.t.ppf(level, freedom))


def paired_t_interval(differences: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean difference: mean ± t · sd / √n. Needs 2 differences."""
    d = _numbers(differences, at_least=2)
    half = t_quantile(0.5 + confidence / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return Interval(float(d.mean() - half), float(d.mean() + half), "paired t")


def bca_interval(
    differences: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval for the mean. Needs 2 differences.

    Source: Efron (1987), Better Bootstrap Confidence Intervals; ties count one half, as in scipy.
    """
    d = _numbers(differences, at_least=2)
    mean, n = d.mean(), len(d)
    if np.ptp(d) == 0:
        return Interval(float(mean), float(mean), "BCa")
    rows = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    boot = d[rows].mean(axis=1)
    share = (np.mean(boot < mean) + np.mean(boot <= mean)) / 2
    bias = special.ndtri(np.clip(share, 0.5 / resamples, 1 - 0.5 / resamples))
    jackknife = (d.sum() - d) / (n - 1)
    pull = jackknife.mean() - jackknife
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    z = special.ndtri([0.5 - confidence / 2, 0.5 + confidence / 2]) + bias
    low, high = np.quantile(boot, special.ndtr(bias + z / (1 - acceleration * z)))
    return Interval(float(low), float(high), "BCa")


def interval_by_rule(differences: ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Paired t below 20 runs; from 20 BCa, with quantiles widened for small samples.

    Plain BCa covers .92 at 20 runs where .95 is meant: a bootstrap's variance is (n − 1)/n too small and its
    quantiles are normal ones. Hesterberg's expanded percentiles ask it for the level at which both are mended.
    Source: Hesterberg (2015), What Teachers Should Know About the Bootstrap, 4.2.
    """
    n = np.size(differences)
    if n < BCA_FROM_RUNS:
        return paired_t_interval(differences, confidence=confidence)
    z = math.sqrt(n / (n - 1)) * t_quantile(0.5 + confidence / 2, n - 1)
    return bca_interval(differences, confidence=float(1 - 2 * special.ndtr(-z)), seed=seed)


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """Fieller's interval for mean(numerators) / mean(denominators), of pairs; Nones where it has no two ends.

    It holds every r for which Student's test of numerators − r · denominators does not reject a mean of 0. It has two
    ends only where the mean of the denominators differs from 0 by the same test. Source: Fieller (1954), section 2.

    >>> [round(end, 3) for end in ratio_interval([2.0, 2.0, 2.0], [3.9, 4.0, 4.1])]
    [0.471, 0.533]
    """
    a, b = _numbers(numerators, at_least=2), _numbers(denominators, at_least=2)
    t = t_quantile(0.5 + confidence / 2, len(a) - 1)
    (var_a, cov), (_, var_b) = np.cov(a, b) / len(a)
    square = b.mean() ** 2 - t**2 * var_b
    if square <= 0:
        return None, None
    middle = a.mean() * b.mean() - t**2 * cov
    half = math.sqrt(max(middle**2 - square * (a.mean() ** 2 - t**2 * var_a), 0.0))
    return float((middle - half) / square), float((middle + half) / square)


def estimated(differences: NDArray[np.float64]) -> Estimate:
    """A mean difference with its 95 % interval; None without differences, or with too few for an interval."""
    low, high = interval_by_rule(differences)[:2] if len(differences) > 1 else (None, None)
    return {"mean": float(differences.mean()) if len(differences) else None, "low": low, "high": high}


def median_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Distribution-free interval for the median: the narrowest pair of order statistics that covers.

    Values may be ±inf (never reached, or reached before the first look), so that nothing censored is dropped.
    Below 6 values no pair reaches .95, and the ends are the smallest and the largest one: the method names the
    level that this has, 1 − 2^(1 − n). Source: Conover, Practical Nonparametric Statistics, section 3.2.
    """
    x = np.sort(np.asarray(values, dtype=float))
    if len(x) < 2 or np.isnan(x).any():
        raise MaskwiseError("a median's interval wants numbers", got=x.tolist(), allowed="2 or more, none nan")
    n = len(x)
    ranks = np.arange(1, n // 2 + 1)
    level = 1 - 2 * stats.binom.cdf(ranks - 1, n, 0.5)  # of the pair (rank, n + 1 − rank)
    rank = int(ranks[level >= confidence].max(initial=1))
    return Interval(float(x[rank - 1]), float(x[n - rank]), f"order statistics, {100 * level[rank - 1]:.3g} %")


# Effects ---------------------------------------------------------------------------------------------


def standardised_effect(differences: ArrayLike) -> float:
    """Mean / sd of the differences, with Hedges' exact small-sample correction; nan below 3 runs or at sd 0.

    Source: Hedges (1981), J(m) = Γ(m/2) / (√(m/2) Γ((m−1)/2)), m = n − 1. J(1) = 0: two runs say nothing.
    """
    d = _numbers(differences, at_least=1)
    if len(d) < 3 or np.ptp(d) == 0:
        return math.nan
    m = len(d) - 1
    correction = math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2)) / math.sqrt(m / 2)
    return float(correction * d.mean() / d.std(ddof=1))


def _numbers(values: ArrayLike, *, at_least: int) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float).ravel()
    if len(x) < at_least or not np.isfinite(x).all():
        raise MaskwiseError("this wants finite numbers", got=x.tolist(), allowed=f"{at_least} or more")
    return x
