"""Statistics for few, expensive runs.

All functions are pure. They use paired differences d_1, …, d_n, one per pair of runs, and need no
large samples. Arms, tasks and verdicts are handled in ``maskwise.verdict``, and the power
of a planned study in ``maskwise.studies.prospects``.

The confidence interval inverts the sign-flip test in closed form. Consider the hypothesis that the
true mean is r. Split the runs into a part S and the rest, and flip the signs of d − r in S. The
absolute sum is then at least as large as the observed one if and only if r is between mean(S) and
mean(rest). Therefore the p value of r is the share of splits whose two means enclose r. (The split
that flips nothing is always included.) The ends of the interval are order statistics of the means.

The null hypothesis is exchangeability: the two arms of a pair are the same in distribution, with
their failures, so that a pair's difference is as likely as its negative. Equal means alone are not
enough. If one arm seldom fails completely and the other never does, few runs often show no failure,
and then every test of means decides too often.

Several tasks of the same runs are tested together. The statistic is the sum over tasks of
t = mean / standard error of the task's paired differences. A flip changes the signs of a run's
differences in all tasks, and every t is computed anew, with the standard error after the flip. The
p value is the share of flips whose statistic is at least as large. It is exact for any spreads and
any dependence between tasks. (Dividing the differences by SDs within arms and keeping these SDs
fixed would not be a sign-flip test, because those SDs depend on which run belongs to which arm.)
With one task, t increases with the sum, so the p value is that of the sum. The interval inverts
this test for a shift of r in every task, and the estimate is the shift at which the statistic is 0.
If the differences of a task are nearly equal, t grows without bound. A task's SD is therefore never
smaller than a constant, the value of one test item, which no flip changes.

Scores such as .81 have no exact binary form, so sums and means that are equal in exact arithmetic
may differ. How far depends on the scores, and not on their differences, which are often a thousand
times smaller: .81 − .8 is .010000000000000009. All functions therefore take the size of the scores
(``scores``), and whatever is not larger than ``rounding_of(scores)`` counts as 0.

With n runs, p values are multiples of 2^(1 − n), so the test cannot use the error rate of 5 %
exactly. Power is computed for the paired t test at the largest p value that the sign-flip test can
attain below its error rate. If this p value requires equal signs in all runs, the power is exact.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from maskwise.base.errors import MaskwiseError
from maskwise.results.files import Estimate

ALPHA = 0.05
"""Error rate of a study."""
POWER = 0.8
"""The power for which numbers of runs are planned."""
UPPER = 0.8
"""The confidence of the upper limit of an SD from which numbers of runs are planned."""
EXACT_RUNS = 20
"""Maximum number of runs n for which all 2^(n − 1) splits are enumerated. For 20 runs, half a
million splits take 20 ms."""
DRAWS = 100_000
"""Number of random splits if there are more runs. They are drawn with a fixed seed."""
BLOCK = 30_000
"""Maximum number of sums in a block of tasks, unless a single task has more."""
DRAWN_BLOCK = 1024
"""Number of random splits in a block. No result depends on it."""
P_FROM_RUNS = 6
"""Minimum number of runs for a p value. With 5 runs, the smallest possible p is .0625."""
CHANCE_MARGIN = 0.02
"""If the number of test items is unknown, scores up to this far above chance are guessing."""
MOST_RUNS = 300
"""Maximum number of runs that ``runs_to_decide`` considers."""
ROUNDING = 1e-13
"""The largest error of a difference between two scores, or of a mean of such differences, as a
fraction of the largest score. It is about 2e-16 for a difference of decimal scores, and at most
1e-14 for a mean over 40 pairs. Real differences are larger: one item of a million changes the mean
over 40 pairs by 2.5e-8."""
EFFECT_STEPS = 1_000_000
"""Number of steps of one SD in which the smallest detectable difference is searched."""
# Nodes and weights of an integral over [-1, 1]. They take 20 ms, so they are computed only once.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


# Rounding errors


def rounding_of(scores: ArrayLike) -> NDArray[np.float64]:
    """Return how large a difference of scores may be that is only a rounding error."""
    return ROUNDING * np.abs(np.asarray(scores, dtype=float))


def without_rounding(values: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Return differences of scores with 0 in place of rounding errors.

    >>> without_rounding([0.3 - 0.1 - 0.2, 0.01], 0.3).tolist()
    [0.0, 0.01]
    """
    numbers = np.asarray(values, dtype=float)
    return np.where(np.abs(numbers) <= rounding_of(scores), 0.0, numbers)


def sample_sd(differences: NDArray[np.float64], *, scores: float) -> float:
    """Return the SD of two or more differences; 0 if they are equal but for rounding errors."""
    return float(without_rounding(differences.std(ddof=1), scores))


def upper_sd(sd: float, runs: int) -> float:
    """Return the upper 80 % confidence limit of the SD of normal values.

    A number of runs that is planned with this limit has at least the power that it is planned for
    in four of five cases; with the SD itself, in about half of them.

    >>> [round(upper_sd(1.0, runs), 2) for runs in (2, 4, 6, 10, 20)]
    [3.95, 1.73, 1.46, 1.29, 1.18]

    Args:
        sd: the SD of a sample.
        runs: the size of the sample, at least 2.
    """
    # The quantile of the chi-squared distribution.
    quantile = 2 * special.gammaincinv((runs - 1) / 2, 1 - UPPER)
    return sd * math.sqrt((runs - 1) / quantile)


# The sign-flip test


def sign_flip_test(
    differences: ArrayLike, *, least_sds: ArrayLike = 0.0, scores: ArrayLike = 0.0
) -> float:
    """Return the two-sided p value of the sign-flip (paired permutation) test.

    The null hypothesis is exchangeability: a pair of runs with swapped arms is as likely, so −d is
    as likely as d. The test is exact for up to n = 20 pairs, and the smallest possible p value is
    then 2^(1 − n). For more pairs, it draws 100,000 random splits, and adds 1 to both counts of the
    p value, so that p is never 0.

    >>> sign_flip_test([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    0.03125
    >>> sign_flip_test([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [3, -1, 2, 4, -2, 1]])
    0.03125

    Args:
        differences: (n,) paired differences, or (tasks, n) for several tasks of the same n pairs of
            runs, whose statistic is the sum of t over tasks.
        least_sds: a number or (tasks,) numbers: the SD of a task's differences counts as at least
            this large. It has no effect with one task.
        scores: a number or (tasks,) numbers: the largest absolute score, in the unit of the
            differences, which says how large rounding errors are. It counts as at least as large as
            the largest difference.

    Raises:
        MaskwiseError: a difference is not finite, or there are none.

    Source: Fisher, The Design of Experiments (1935), section 21; the correction: Phipson and Smyth
        (2010); the sum of recomputed statistics: Pesarin, Multivariate Permutation Tests (2001).
    """
    d = _by_task(differences)
    # One pair of runs has one split, and no spread to divide by.
    if d.shape[1] == 1:
        return 1.0
    if len(d) > 1:
        as_large = _Flips(d, least_sds, scores).as_large(0.0)
    else:
        # |rest − flipped| is at least |rest + flipped| if the two have no common sign.
        flipped, rest, _ = _parts(d, scores)
        as_large = np.sign(flipped) * np.sign(rest) <= 0
    return float((1 + as_large.sum()) / (1 + len(as_large)))


def sign_flip_interval(
    differences: ArrayLike,
    *,
    confidence: float = 0.95,
    least_sds: ArrayLike = 0.0,
    scores: ArrayLike = 0.0,
) -> tuple[float, float] | None:
    """Return the confidence interval: all shifts that the sign-flip test does not reject.

    The interval excludes 0 if and only if the p value is below 1 − confidence. The result is None
    if there are too few differences to reject any shift (less than 6 for 95 %). With 6 differences
    of one task, the interval reaches from the smallest to the largest difference, and its
    confidence is 96.9 %.

    >>> sign_flip_interval([1, 2, 3, 4, 5, 6])
    (1.0, 6.0)

    Args:
        differences: (n,) paired differences, or (tasks, n) for several tasks of the same n pairs.
            A shift is then subtracted from the differences of every task, so their units must be
            comparable.
        confidence: the confidence level, below 1.
        least_sds, scores: as in ``sign_flip_test``.
    """
    d = _by_task(differences)
    splits = _number_of_splits(d.shape[1])
    # A shift is rejected if p = (1 + splits that are as large) / splits is below 1 − confidence. A
    # product that should be a whole number may be slightly too large. The last factor prevents
    # ``ceil`` from rounding it up.
    around = math.ceil((1 - confidence) * splits * (1 - 1e-12)) - 1
    if around < 1:
        return None
    if not d.any():
        return 0.0, 0.0
    if len(d) > 1:
        flips = _Flips(d, least_sds, scores)
        return flips.end(around, towards=-1), flips.end(around, towards=1)
    flipped, rest, sizes = _parts(d, scores)
    means = flipped / sizes
    others = rest / (d.size - sizes)
    # ``partition`` finds order statistics in linear time, which is faster than sorting.
    first = around - 1
    last = len(means) - around
    low = np.partition(np.minimum(means, others), first)[first]
    high = np.partition(np.maximum(means, others), last)[last]
    return float(low), float(high)


def sign_flip_estimate(
    differences: ArrayLike, *, least_sds: ArrayLike = 0.0, scores: ArrayLike = 0.0
) -> float:
    """Return the shift at which the statistic of the sign-flip test is 0.

    With one task, this is the mean difference. With several, it is the mean over tasks of their
    mean differences, weighted by 1 / standard error. It lies in the interval of the test, and has
    the sign of its statistic. (One pair has no standard error, so its tasks have equal weights.)

    >>> sign_flip_estimate([1, 2, 3])
    2.0
    >>> round(sign_flip_estimate([[1, 2, 3], [10, 20, 30]]), 3)
    3.636

    Args:
        differences: (n,) or (tasks, n) paired differences.
        least_sds, scores: as in ``sign_flip_test``.
    """
    d = _by_task(differences)
    if len(d) == 1 or d.shape[1] == 1:
        is_zero = abs(d.sum()) <= d.shape[1] * _rounding(d, scores).sum()
        return 0.0 if is_zero else float(d.mean())
    return _Flips(d, least_sds, scores).estimate


class _Flips:
    """The statistic of several tasks, for every split that flips some runs.

    Args:
        d: (tasks, n) paired differences, n > 1.
        least_sds, scores: as in ``sign_flip_test``.
    """

    def __init__(self, d: NDArray[np.float64], least_sds: ArrayLike, scores: ArrayLike):
        self.d = d
        self.runs = d.shape[1]
        self.rounding = _rounding(d, scores)
        self.least = np.broadcast_to(np.square(np.asarray(least_sds, dtype=float)), len(d))
        self.sums = d.sum(axis=1)
        errors = np.sqrt(self._variances(0.0, self.sums)) / math.sqrt(self.runs)
        weights = errors.min() / errors
        statistic, rounding = self._observed(0.0)
        self.estimate = 0.0
        if abs(statistic) > rounding:
            self.estimate = float((weights * self.sums).sum() / weights.sum() / self.runs)
        self.near = float(self.runs * rounding * errors.min() / weights.sum())
        """How far beyond 0 an end of the interval may be that is 0 but for rounding errors."""
        self.error = float(errors.min() * math.sqrt(len(d)) / weights.sum())
        """Standard error of the estimate, if tasks are independent."""

    @cached_property
    def splits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The (tasks, splits) sums and the (splits,) sizes of the flipped part (``_splits``)."""
        return _splits(self.d)

    def _least(self, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the smallest variance that counts, for tasks with these sums of squares.

        An SD is at least a millionth of the root mean square, so that t is finite. The last bound
        prevents a division by 0 for a task without differences, whose t is 0.
        """
        least = np.maximum(self.least, 1e-12 * squares / self.runs)
        return np.maximum(least, np.finfo(float).tiny)

    def _variances(self, shift: float, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the variance of every task's differences, whose sums are given."""
        squares = np.square(self.d - shift).sum(axis=1)
        variances = (squares - sums**2 / self.runs) / (self.runs - 1)
        return np.maximum(variances, self._least(squares))

    def _observed(self, shift: float) -> tuple[float, float]:
        """Return the observed statistic, and how far rounding errors may change it.

        A rounding error e of every difference changes t by up to n · e / (SD · √n), and the SD, if
        it is not the smallest that counts, by about e. The sums of squares add errors of their own.
        """
        observed = self.sums - self.runs * shift
        variances = self._variances(shift, observed)
        squares = np.square(self.d - shift).sum(axis=1)
        root = math.sqrt(self.runs)
        t = observed / np.sqrt(variances) / root
        is_free = variances > self._least(squares)
        changes = root / np.sqrt(variances) * self.rounding
        changes *= 1 + np.where(is_free, np.abs(t) / math.sqrt(self.runs - 1), 0.0)
        # A task without differences has none after any flip.
        changes[squares == 0] = 0
        return float(t.sum()), float(changes.sum() + 1e-9 * np.abs(t).sum())

    def as_large(self, shift: float, splits: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Return for every split whether its statistic is at least as large as the observed one.

        Flips change the sum of a task's differences, but not their sum of squares. So the variance
        after a flip follows from the two sums.

        Args:
            shift: the hypothesis: the true difference in every task.
            splits: the splits to compute; None for all.
        """
        flipped, sizes = self.splits
        if splits is not None:
            sizes = sizes[splits]
        moved = 2 * shift * sizes
        observed = self.sums - self.runs * shift
        squares = np.square(self.d - shift).sum(axis=1)
        least = self._least(squares)
        seen, rounding = self._observed(shift)
        t = np.zeros(len(sizes))
        # With few splits, many tasks are one block. The arrays of one task can have half a million
        # elements, so most operations are in place.
        tasks = max(1, BLOCK // max(len(sizes), 1))
        for first in range(0, len(flipped), tasks):
            block = slice(first, first + tasks)
            sums = -2.0 * (flipped[block] if splits is None else flipped[block, splits])
            sums += observed[block, None]
            if shift:
                sums += moved
            variances = sums * sums
            variances /= -self.runs
            variances += squares[block, None]
            variances /= self.runs - 1
            np.maximum(variances, least[block, None], out=variances)
            np.sqrt(variances, out=variances)
            sums /= variances
            # Sums of rounded numbers depend on their order: one task after the other.
            for task in sums:
                t += task
        t /= math.sqrt(self.runs)
        np.abs(t, out=t)
        # A split whose statistic equals the observed one is counted in spite of rounding.
        as_large: NDArray[np.bool_] = t >= abs(seen) - rounding
        return as_large

    def end(self, around: int, *, towards: int) -> float:
        """Return the end of the interval below (``towards`` = −1) or above the estimate (1).

        Shifts are accepted if at least ``around`` splits are as large. The estimate is accepted. A
        rejected shift is found beyond it, and the end between them by bisection. If 0 lies on this
        side, it is one of the first two ends, so the interval contains 0 exactly if the test
        accepts it. An end that is 0 but for rounding errors is 0.
        """
        inner = self.estimate
        holds_zero = inner == 0
        held = np.ones(len(self.splits[1]), dtype=bool)
        outer = inner
        step = max(self.error, 1e-9 * abs(inner), np.finfo(float).tiny)
        beyond = held
        if towards * inner < 0:
            beyond = self.as_large(0.0)
            outer = 0.0
            if beyond.sum() >= around:
                inner, held = outer, beyond
                holds_zero = True
        while beyond.sum() >= around:
            outer = inner + towards * step
            step *= 2
            beyond = self.as_large(outer)
            if beyond.sum() >= around:
                inner, held = outer, beyond
        # A split that is counted at both shifts, or at neither, is not computed again.
        common = 0
        splits = np.arange(len(held))
        precision = 1e-12 * max(abs(inner), abs(outer))
        while True:
            common += int((held & beyond).sum())
            changing = held != beyond
            splits, held, beyond = splits[changing], held[changing], beyond[changing]
            middle = (inner + outer) / 2
            if abs(inner - outer) <= precision or middle in (inner, outer):
                return 0.0 if holds_zero and abs(inner) <= self.near else float(inner)
            there = self.as_large(middle, splits)
            if common + there.sum() >= around:
                inner, held = middle, there
            else:
                outer, beyond = middle, there


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=float)
    if not numbers.size or not np.isfinite(numbers).all():
        raise MaskwiseError("a test needs finite numbers", got=numbers.tolist())
    return numbers


def _by_task(differences: ArrayLike) -> NDArray[np.float64]:
    """Return finite differences as an array of shape (tasks, n)."""
    return np.atleast_2d(_finite(differences))


def _rounding(d: NDArray[np.float64], scores: ArrayLike) -> NDArray[np.float64]:
    """Return (tasks,) the rounding errors of differences of scores, (tasks, n)."""
    return rounding_of(np.maximum(scores, np.abs(d).max(axis=1)))


def _parts(
    d: NDArray[np.float64], scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of the two parts of every split, for (1, n) differences, with 0 in place of
    rounding errors; and the sizes of the first part (``_splits``)."""
    [flipped], sizes = _splits(d)
    rest = d.sum() - flipped
    [rounding] = d.shape[1] * _rounding(d, scores)
    for sums in (flipped, rest):
        sums[np.abs(sums) <= rounding] = 0
    return flipped, rest, sizes


def _splits(d: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the size of the flipped part, for every split except "nothing flipped".

    The first run is never flipped, because a split and its complement are equivalent.

    Args:
        d: (tasks, n) differences.

    Returns:
        sums: (tasks, splits) the sums of the flipped differences.
        sizes: (splits,) the numbers of flipped runs.
    """
    tasks, runs = d.shape
    if runs > EXACT_RUNS:
        inside, sizes = _drawn(runs)
        sums = np.empty((tasks, len(inside)))
        # A block of splits stays in the cache of the processor while all tasks use it.
        for first in range(0, len(inside), DRAWN_BLOCK):
            block = slice(first, first + DRAWN_BLOCK)
            for task, differences in enumerate(d):
                np.dot(inside[block], differences, out=sums[task, block])
        return sums, sizes
    # Every further run doubles the number of splits, because it is either flipped or not.
    sums = np.zeros((tasks, 1))
    sizes = np.zeros(1)
    for run in range(1, runs):
        sums = np.concatenate([sums, sums + d[:, run, None]], axis=1)
        sizes = np.concatenate([sizes, sizes + 1])
    # Leave out the first split, which flips nothing. The callers count it separately.
    return sums[:, 1:], sizes[1:]


def _number_of_splits(runs: int) -> int:
    """Return the number of splits of n runs, with the one that flips nothing."""
    return 1 + len(_drawn(runs)[1]) if runs > EXACT_RUNS else 2 ** (runs - 1)


@cache
def _drawn(runs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw random splits.

    Returns:
        inside: (splits, runs) where 1 marks a flipped run.
        sizes: (splits,) the numbers of flipped runs.
    """
    generator = np.random.default_rng(0)
    inside = generator.integers(0, 2, size=(DRAWS, runs)).astype(float)
    # A split and its complement are equivalent, so the first run is never flipped.
    inside[:, 0] = 0
    sizes = inside.sum(axis=1)
    flips_any = sizes > 0
    return inside[flips_any], sizes[flips_any]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values, in the given order. Source: Holm (1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    # The running maximum keeps the order of the p values, because Holm's procedure rejects a
    # hypothesis only if it rejects all hypotheses with smaller p values.
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def estimated(
    differences: NDArray[np.float64], *, least_sds: ArrayLike = 0.0, scores: ArrayLike = 0.0
) -> Estimate:
    """Return ``sign_flip_estimate`` (with one task, the mean difference) and its 95 % interval.

    Without runs, both are None. With too few runs for an interval, the interval is None.

    Args:
        differences: (n,) or (tasks, n) paired differences.
        least_sds, scores: as in ``sign_flip_test``.
    """
    if not differences.size:
        return {"mean": None, "low": None, "high": None}
    ends = sign_flip_interval(differences, least_sds=least_sds, scores=scores)
    low, high = ends or (None, None)
    mean = sign_flip_estimate(differences, least_sds=least_sds, scores=scores)
    return {"mean": mean, "low": low, "high": high}


def binomial_upper_bound(count: int, of: int) -> float:
    """Return the exact upper bound of a proportion with confidence 95 %; 1 without observations.

    Source: Clopper and Pearson (1934), one-sided.

    >>> round(binomial_upper_bound(0, 10), 3)
    0.259
    """
    if count >= of:
        return 1.0
    return float(special.betaincinv(count + 1, of - count, 1 - ALPHA))


def attainable_level(runs: int, alpha: float = ALPHA) -> float:
    """Return the largest p value below alpha that the sign-flip test can attain; 0 if none can."""
    # With 100,000 random splits, p values can be so close to any level that it is attained.
    if runs > EXACT_RUNS:
        return alpha
    splits = 2 ** (runs - 1)
    return (math.ceil(alpha * splits) - 1) / splits


def fewest_runs(alpha: float = ALPHA) -> int:
    """Return the minimum number of runs with which a decision at this level is possible."""
    runs = P_FROM_RUNS
    while attainable_level(runs, alpha) == 0:
        runs += 1
    return runs


def can_decide(runs: int, contrasts: int) -> bool:
    """Return whether p < .05 is possible after Holm's correction for this number of contrasts."""
    return runs >= fewest_runs(ALPHA / contrasts)


def look_weights(looks: Sequence[int]) -> list[float]:
    """Return the share of the error rate that every planned look at the results may spend.

    A look is a test at a planned number of runs. The shares sum to 1, and the last look has the
    largest share. Divide the p value at a look by its share. The minimum of these quotients over
    the looks so far is a valid p value of the whole plan (weighted Bonferroni), although a later
    look tests the runs of earlier looks again.

    >>> [round(weight, 3) for weight in look_weights([10, 20])]
    [0.111, 0.889]

    Args:
        looks: the numbers of runs at the looks, increasing.

    Source: Lan and DeMets (1983), the spending function 2 − 2 Φ(z / √t), which resembles O'Brien
        and Fleming's boundary.
    """
    z = special.ndtri(1 - ALPHA / 2)
    fractions = np.array(looks) / looks[-1]
    spent = 2 * special.ndtr(-z / np.sqrt(fractions))
    return (np.diff(spent, prepend=0.0) / ALPHA).tolist()


def look_weight(looks: Sequence[int] | None, runs: int) -> float:
    """Return the share of the error rate for a look at this number of runs; 1 without looks."""
    if not looks:
        return 1.0
    return look_weights(looks)[looks.index(runs)]


def power_of(sd: float, difference: float, runs: int, *, alpha: float = ALPHA) -> float:
    """Return the probability to decide a true difference, if paired differences are normal.

    >>> [round(power_of(1, effect, runs), 2) for runs in (6, 8) for effect in (1, 1.5)]
    [0.35, 0.66, 0.67, 0.95]

    Args:
        sd: the standard deviation of the paired differences.
        difference: the true difference, in the unit of ``sd``.
        runs: the number of pairs of runs.
        alpha: the significance level of the test after Holm's correction.
    """
    level = attainable_level(runs, alpha)
    if level == 0:
        return 0.0
    effect = difference / sd
    if runs <= EXACT_RUNS and level == 2.0 ** (1 - runs):
        all_positive = special.ndtr(effect) ** runs
        all_negative = special.ndtr(-effect) ** runs
        return float(all_positive + all_negative)
    # Integrate over the sample SD. scipy's noncentral t distribution would be simpler, but is NaN
    # for few runs and large shifts.
    shift = abs(difference) / sd * math.sqrt(runs)
    critical = _critical_means(runs, level)
    power = special.ndtr(shift - critical) + special.ndtr(-shift - critical)
    return float(WEIGHTS @ power / 2)


def powers(runs: int, *, alpha: float) -> dict[str, float]:
    """Return the power for true differences of 1 and 1.5 SDs of the paired differences."""
    return {f"{size:g}": round(power_of(1.0, size, runs, alpha=alpha), 2) for size in (1, 1.5)}


@cache
def _critical_means(runs: int, level: float) -> NDArray[np.float64]:
    """Return the means that the t test just rejects, one for each quantile of the sample SD.

    Their unit is the true standard error of the mean.
    """
    quantiles = 2 * special.gammaincinv((runs - 1) / 2, (NODES + 1) / 2)
    sample_sds = np.sqrt(quantiles / (runs - 1))
    return special.stdtrit(runs - 1, 1 - level / 2) * sample_sds


@cache
def _detectable_effect(runs: int, alpha: float) -> float:
    if attainable_level(runs, alpha) == 0:
        return math.inf
    # Power grows with the effect. scipy's root finders would do, but their import takes .2 s.
    steps = bisect_left(
        range(1000 * EFFECT_STEPS),
        POWER,
        lo=1,
        key=lambda steps: power_of(1.0, steps / EFFECT_STEPS, runs, alpha=alpha),
    )
    return steps / EFFECT_STEPS


def detectable_difference(sd: float, runs: int, *, alpha: float = ALPHA) -> float:
    """Return the smallest true difference that has power .8, in the unit of ``sd``.

    The result is infinite if there are too few runs for any decision.
    """
    return sd * _detectable_effect(runs, alpha)


def detectable_sds(runs: int, *, alpha: float) -> float:
    """Return the smallest true difference, in SDs, that has power .8.

    If there are too few runs for any decision, the result is that of the fewest runs that can
    decide.
    """
    return _detectable_effect(max(runs, fewest_runs(alpha)), alpha)


def best_guess(chance: float, items: int | None, *, share: bool) -> float:
    """Return the highest score that may be due to guessing: chance plus two standard errors.

    >>> round(best_guess(0.5, 100, share=True), 3)
    0.6
    """
    if not items:
        return chance + CHANCE_MARGIN
    # The correlation of n independent pairs has variance 1 / n, approximately.
    variance = 1.0
    if share:
        # A metric that is not a share may have a chance level below 0 or above 1.
        variance = max(chance * (1 - chance), 0.0)
    return chance + 2 * math.sqrt(variance / items)


def runs_to_decide(sd: float, difference: float, *, alpha: float = ALPHA) -> int | None:
    """Return the number of runs that decide a difference with power .8; None if more than 300.

    Args:
        sd: the standard deviation of the paired differences, taken as exact; for one that is
            estimated from runs, give its upper limit (``upper_sd``).
        difference: the true difference, in the unit of ``sd``.
        alpha: the significance level of the test after Holm's correction.
    """
    if not difference or (sd and power_of(sd, difference, MOST_RUNS, alpha=alpha) < POWER):
        return None
    runs = fewest_runs(alpha)
    while sd and power_of(sd, difference, runs, alpha=alpha) < POWER:
        runs += 1
    return runs
