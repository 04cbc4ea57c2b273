"""Statistics against scipy and published worked examples. Calibration by simulation:
test_calibration.py.
"""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import pytest
from scipy import stats

from maskwise.verdict.statistics import (
    EXACT_RUNS,
    MOST_RUNS,
    NODES,
    _critical_means,
    attainable_level,
    binomial_upper_bound,
    can_decide,
    detectable_difference,
    estimated,
    fewest_runs,
    holm,
    power_of,
    runs_to_decide,
    sign_flip_estimate,
    sign_flip_interval,
    sign_flip_test,
)

# Darwin's maize, crossed minus self-fertilised, in eighths of an inch (Fisher 1935, sections 17 and
# 21)
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_sign_flip_on_darwins_maize():
    assert sign_flip_test(MAIZE) == 1726 / 2**15  # Fisher counted 863 on one side


def test_sign_flip_is_scipys():
    rng = np.random.default_rng(3)
    for n in (4, 7, 11):
        d = rng.normal(0.4, 1, n)
        ours = stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert sign_flip_test(d) == pytest.approx(ours, abs=1e-12)


def test_sign_flip_counts_ties_in_spite_of_rounding():
    assert sign_flip_test([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1.0  # the sum is 0 but for rounding
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_one_pair_of_runs_decides_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sign_flip_test([0.5]) == sign_flip_test([[0.5], [-2.0], [1e9]]) == 1.0
        assert sign_flip_test([[0.5], [2.0]], least_sds=[0.1, 0.2]) == 1.0
        assert sign_flip_interval([[0.5], [2.0]]) is None


def test_beyond_twenty_runs_splits_are_sampled_seeded_and_p_is_never_zero():
    d = np.random.default_rng(0).normal(0.4, 1, EXACT_RUNS + 4)
    assert sign_flip_test(d) == sign_flip_test(d)
    assert sign_flip_test(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert 0 < sign_flip_test(np.ones(30)) < 2e-5


def test_the_interval_of_six_runs_goes_from_the_smallest_to_the_largest_difference():
    d = [0.3, -0.1, 0.2, 0.5, 0.25, 0.05]
    assert sign_flip_interval(d) == (-0.1, 0.5)
    assert sign_flip_interval(d[:5]) is None  # 1/16 is more than 5 %
    assert sign_flip_interval(d[:5], confidence=0.9) == (-0.1, 0.5)


@pytest.mark.parametrize("runs", [6, 7, 9, 12, 15])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 1 - 0.05 / 3])
def test_an_interval_holds_what_the_test_does_not_reject(runs, confidence):
    d = np.random.default_rng([runs, 1]).normal(0.2, 1, runs)
    ends = sign_flip_interval(d, confidence=confidence)
    if ends is None:
        assert 2.0 ** (1 - runs) >= 1 - confidence
        return
    low, high = ends
    for end, outwards in ((low, -1e-9), (high, 1e-9)):
        assert sign_flip_test(d - end + outwards) >= 1 - confidence - 1e-12
        assert sign_flip_test(d - end - outwards) < 1 - confidence


def test_interval_and_test_agree_beyond_twenty_runs_too():
    d = np.random.default_rng(4).normal(0.45, 1, 24)
    low, high = sign_flip_interval(d)
    assert (low > 0) == (sign_flip_test(d) < 0.05)
    theirs = stats.ttest_1samp(d, 0).confidence_interval()
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_an_estimate_of_few_runs_has_no_interval():
    assert estimated(np.array([])) == {"mean": None, "low": None, "high": None}
    assert estimated(np.array([0.5, 0.25])) == {"mean": 0.375, "low": None, "high": None}
    assert estimated(np.full(6, 0.5)) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # Demšar (2006), 3.2.2: C4.5 against three variants; at .05 the first two are told apart, the
    # third is not
    assert holm([0.016, 0.019, 0.607]) == pytest.approx([0.048, 0.048, 0.607])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# Several tasks
# ----------------------------------------------------------------------------


def tasks_of(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Differences of shape (tasks, runs): few or many, with ties, equal or without any."""
    runs, tasks = int(rng.integers(2, 12)), int(rng.integers(2, 9))
    d = rng.normal(rng.normal(0, 0.7), 1, (tasks, runs)) * rng.gamma(1, 1, (tasks, 1))
    if kind == 1:
        return np.round(d)  # many ties, and often a task of zeros
    if kind == 2:
        d[0] = d[0, 0]  # all differences of a task are equal
    if kind == 3:
        d[0] = 0
        d[1] *= 1000
    return d


def sum_of_t(d: np.ndarray) -> float:
    return float((d.mean(axis=1) / d.std(axis=1, ddof=1)).sum() * math.sqrt(d.shape[1]))


def test_several_tasks_are_tested_by_the_sum_of_t_after_each_flip():
    rng = np.random.default_rng(0)
    for runs, tasks in ((2, 3), (5, 2), (7, 4)):
        d = rng.normal(0.5, 1, (tasks, runs)) * rng.gamma(1, 1, (tasks, 1))
        observed = abs(sum_of_t(d)) * (1 - 1e-9)
        flips = [abs(sum_of_t(d * signs)) for signs in product((1, -1), repeat=runs)]
        assert sign_flip_test(d) == np.mean([flip >= observed for flip in flips])


def test_one_task_or_the_same_one_twice_is_the_test_of_its_sum():
    rng = np.random.default_rng(1)
    for runs in (3, 8, 11, 24):
        d = rng.normal(0.4, 1, runs)
        p = sign_flip_test(d)
        assert sign_flip_test([d]) == sign_flip_test([d, 3 * d]) == p
        assert sign_flip_test([d], least_sds=0.1) == p
        assert sign_flip_interval([d]) == sign_flip_interval(d)
        assert estimated(d) == estimated(d[None])
        ends = sign_flip_interval(d)
        if ends:
            assert sign_flip_interval([d, d]) == pytest.approx(ends)


@pytest.mark.parametrize("kind", range(4))
def test_the_interval_of_several_tasks_excludes_zero_exactly_if_the_test_does(kind):
    rng = np.random.default_rng([7, kind])
    decided = 0
    for _ in range(150):
        d = tasks_of(rng, kind)
        p = sign_flip_test(d, least_sds=0.05)
        ends = sign_flip_interval(d, least_sds=0.05)
        if ends is None:
            assert d.shape[1] < 6 and p > 0.05
            continue
        low, high = ends
        decided += p < 0.05
        assert (p < 0.05) == (not low <= 0 <= high)
        assert low <= sign_flip_estimate(d, least_sds=0.05) <= high
    assert decided > 20


def test_the_ends_for_several_tasks_are_the_last_shifts_that_are_not_rejected():
    rng = np.random.default_rng(8)
    for confidence in (0.8, 0.95, 1 - 0.05 / 3):
        d = rng.normal(0.3, 1, (4, 9)) * [[1], [2], [1], [3]]
        low, high = sign_flip_interval(d, confidence=confidence)
        for end, outwards in ((low, -1e-6), (high, 1e-6)):
            assert sign_flip_test(d - end + outwards) >= 1 - confidence
            assert sign_flip_test(d - end - outwards) < 1 - confidence


def test_beyond_twenty_runs_several_tasks_use_the_same_splits():
    d = np.random.default_rng(9).normal(0.25, 1, (3, 24))
    low, high = sign_flip_interval(d)
    assert sign_flip_test(d) == sign_flip_test(d)
    assert (low > 0) == (sign_flip_test(d) < 0.05)
    assert low < sign_flip_estimate(d) < high


def test_the_estimate_is_where_the_statistic_is_zero():
    d = np.random.default_rng(10).normal(0.5, 1, (3, 8)) * [[1], [5], [0.2]]
    assert sum_of_t(d - sign_flip_estimate(d)) == pytest.approx(0)
    assert sign_flip_test(d - sign_flip_estimate(d)) == 1.0
    assert sign_flip_estimate([[1.0], [3.0]]) == 2.0  # one pair of runs


def test_a_task_whose_differences_are_equal_has_no_infinite_weight():
    noise = [3.0, 4.0, 2.0, 5.0, 3.5, 4.5]
    # By chance, one task differs by one item, of 100, in all runs.
    equal = np.full(6, -0.01)
    assert sign_flip_estimate([equal, noise], least_sds=[0.01, 0.01]) > 0
    low, high = sign_flip_interval([equal, noise], least_sds=[0.01, 0.01])
    assert 0 < low < high
    # A task without differences adds nothing.
    assert sign_flip_test([np.zeros(6), noise]) == sign_flip_test(noise) == 1 / 32
    assert sign_flip_test(np.zeros((2, 6))) == 1.0
    assert sign_flip_interval(np.zeros((2, 6))) == pytest.approx((0, 0), abs=1e-100)
    # Without a smallest SD, t is large but finite.
    assert sign_flip_test([equal, noise]) == 1 / 32


def test_an_sd_counts_as_at_least_a_millionth_of_the_root_mean_square():
    """One task differs by 2 in all six runs. The other has mean 0 and SD √1.2, so that the estimate
    is 2 / (1 + the ratio of their SDs).
    """
    estimate = sign_flip_estimate([[2.0] * 6, [1.0, -1.0] * 3])
    assert 2 / estimate - 1 == pytest.approx(2e-6 / math.sqrt(1.2), rel=1e-6)
    # A larger SD than the least is its own.
    estimate = sign_flip_estimate([[2.0, 2.1] * 3, [1.0, -1.0] * 3])
    assert 2.05 / estimate - 1 == pytest.approx(0.05)
    estimate = sign_flip_estimate([[2.0] * 6, [1.0, -1.0] * 3], least_sds=[0.3, 0.1])
    assert 2 / estimate - 1 == pytest.approx(0.3 / math.sqrt(1.2))


# Power
# ----------------------------------------------------------------------------


def test_power_is_the_noncentral_t_at_the_attainable_level_and_has_no_holes():
    for n, shift in [(24, 0.7), (50, 0.3)]:
        critical, nc = stats.t.ppf(0.975, n - 1), shift * math.sqrt(n)
        theirs = stats.nct.sf(critical, n - 1, nc) + stats.nct.cdf(-critical, n - 1, nc)
        assert power_of(1.0, shift, n) == pytest.approx(theirs, abs=1e-5)
    assert power_of(1.0, 1e4, 30) == pytest.approx(1.0)  # scipy: nan
    assert power_of(1.0, 5.0, 5) == 0.0  # five runs decide nothing


def test_power_of_a_single_step_is_that_of_one_sign_in_all_runs():
    share = stats.norm.cdf(1.5)
    assert power_of(2.0, 3.0, 6) == pytest.approx(share**6 + (1 - share) ** 6)
    assert power_of(1.0, 1.0, 8, alpha=0.05 / 6) == pytest.approx(stats.norm.cdf(1) ** 8, abs=1e-4)


def test_the_level_that_can_be_attained():
    assert [attainable_level(n) for n in (5, 6, 7, 8)] == [0, 1 / 32, 3 / 64, 6 / 128]
    # below, not at
    assert attainable_level(5, 0.0626) == 0.0625 and attainable_level(5, 0.0625) == 0
    assert (fewest_runs(), fewest_runs(0.05 / 6), attainable_level(EXACT_RUNS + 1)) == (6, 8, 0.05)
    most = [sum(can_decide(runs, contrasts) for contrasts in range(1, 7)) for runs in (5, 6, 7, 8)]
    assert most == [0, 1, 3, 6]


def test_runs_to_decide():
    assert runs_to_decide(1.0, 0.5) == 34  # as G*Power has it
    assert runs_to_decide(1.0, 5.0) == 6 and runs_to_decide(1.0, 5.0, alpha=0.05 / 6) == 8
    assert runs_to_decide(1.0, 1.5) == 7  # 6 runs decide only if all agree
    assert (
        runs_to_decide(1.0, 1e-6) is None
        and runs_to_decide(0.0, 1.0) == 6
        and runs_to_decide(1.0, 0.0) is None
    )
    assert runs_to_decide(1.0, 0.17) < MOST_RUNS


def test_the_detectable_difference_has_the_power():
    for runs in (6, 9, 34):
        assert power_of(2.0, detectable_difference(2.0, runs), runs) == pytest.approx(0.8)
    assert detectable_difference(1.0, 5) == math.inf  # with 5 runs, p is never below .05


# Failures
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("count, of", [(0, 4), (1, 10), (3, 7), (5, 5), (40, 200)])
def test_binomial_bounds_are_those_of_scipy(count, of):
    bound = stats.binomtest(count, of, alternative="less").proportion_ci(0.95, method="exact").high
    assert binomial_upper_bound(count, of) == pytest.approx(bound, abs=1e-12)


@pytest.mark.parametrize("runs, level", [(6, 0.03), (12, 0.05), (24, 0.0125)])
def test_critical_means_are_quantiles_of_scipy(runs, level):
    quantiles = stats.chi2.ppf((NODES + 1) / 2, runs - 1)
    expected = stats.t.ppf(1 - level / 2, runs - 1) * np.sqrt(quantiles / (runs - 1))
    assert _critical_means(runs, level) == pytest.approx(expected, rel=1e-12)


# Rounding errors
# ----------------------------------------------------------------------------

TIED = [6, -1, 2, -1, 2, 2, 1, 4, 1]
"""Differences in the last digit of scores, of which several splits have equal sums."""


@pytest.mark.parametrize("base", [0.91035, 3.2104, 91.035, 910350.0])
def test_equal_sums_are_ties_whatever_the_size_of_the_scores(base):
    """The tolerance once was that of the differences, which are a thousand times smaller."""
    unit = base * 1e-5
    seconds = [base + unit * k for k in (52, 129, 28, -17, 12, 23, 22, 54, 0)]
    firsts = [second + unit * k for second, k in zip(seconds, TIED)]
    d = np.subtract(firsts, seconds)
    p = sign_flip_test(TIED)
    assert sign_flip_test(d, scores=max(firsts)) == p
    # Twice the same task is the test of one, also where it is standardised.
    twice = np.array([d, d]) / 0.3
    assert sign_flip_test(twice, least_sds=1e-9, scores=max(firsts) / 0.3) == p


def test_an_end_or_a_mean_that_is_zero_but_for_rounding_is_zero():
    firsts = np.array([0.81, 0.82, 0.83, 0.81, 0.82, 0.80])
    seconds = np.array([0.80, 0.82, 0.82, 0.80, 0.82, 0.83])
    d = firsts - seconds
    assert d.mean() != 0  # the exact mean is 0
    assert estimated(d, scores=0.83)["mean"] == 0.0
    assert sign_flip_test(d, scores=0.83) == 1.0
    # The gain of one task is the loss of the other, but other numbers are subtracted.
    opposite = np.array([0.31, 0.32, 0.33]) - np.array([0.3, 0.3, 0.3])
    tasks = np.array([opposite, np.array([0.8, 0.8, 0.8]) - np.array([0.81, 0.82, 0.83])])
    assert sign_flip_estimate(tasks, least_sds=0.001, scores=0.83) == 0.0
    assert sign_flip_test(tasks, least_sds=0.001, scores=0.83) == 1.0
    # With eight differences, the lower end is the sixth smallest mean: −.01, and five times 0.
    firsts = [0.79, 0.82, 0.83, 0.57, 0.65, 0.72, 0.83, 0.83]
    d = np.array(firsts) - np.array([0.80, 0.81, 0.82, 0.56, 0.64, 0.71, 0.8, 0.8])
    for tasks in (d, np.array([d, d])):
        low, high = sign_flip_interval(tasks, least_sds=0.001, scores=0.83)
        assert low == 0.0 < high
        assert sign_flip_test(tasks, least_sds=0.001, scores=0.83) >= 0.05
    assert sign_flip_interval(np.zeros((2, 6)), scores=0.9) == (0.0, 0.0)
