"""Statistics against scipy and published worked examples. Calibration by simulation: test_calibration.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from maskwise.errors import MaskwiseError
from maskwise.study.power import (
    attainable_level,
    detectable_difference,
    fewest_runs,
    power_of,
    runs_needed,
    runs_to_decide,
)
from maskwise.study.statistics import (
    bca_interval,
    holm,
    interval_by_rule,
    median_interval,
    paired_differences,
    paired_t_interval,
    ratio_interval,
    sign_flip_test,
    standardised_effect,
)

# Darwin's maize, crossed minus self-fertilised, in eighths of an inch (Fisher 1935, sections 17 and 21)
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_sign_flip_on_darwins_maize():
    assert sign_flip_test(MAIZE) == 1726 / 2**15  # Fisher counted 863 on one side


@pytest.mark.parametrize("runs, smallest", [(3, 0.25), (5, 0.0625), (8, 0.0078125), (10, 0.001953125)])
def test_the_smallest_p(runs, smallest):
    assert sign_flip_test(np.arange(1, runs + 1) / 7) == smallest


def test_sign_flip_is_scipys():
    rng = np.random.default_rng(3)
    for n in (4, 7, 11):
        d = rng.normal(0.4, 1, n)
        ours = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip_test(d) == pytest.approx(ours, abs=1e-12)


def test_sign_flip_counts_ties_in_spite_of_rounding():
    assert sign_flip_test([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip_test([0.1, 0.2, -0.3]) == 1.0  # the sum is 0 but for rounding
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_sign_flip_beyond_sixteen_is_sampled_seeded_and_never_zero():
    d = np.random.default_rng(0).normal(0.5, 1, 20)
    exact = stats.ttest_1samp(d, 0).pvalue
    assert sign_flip_test(d) == sign_flip_test(d, seed=0) != sign_flip_test(d, seed=1)
    assert sign_flip_test(d) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test(np.ones(30), draws=999) == 1 / 1000


def test_paired_t_on_darwins_maize():
    low, high, method = paired_t_interval(MAIZE)
    assert (round(low, 2), round(high, 2), method) == (0.03, 41.84, "paired t")
    ours = stats.ttest_1samp(MAIZE, 0).confidence_interval(0.9)
    assert paired_t_interval(MAIZE, confidence=0.9)[:2] == pytest.approx((ours.low, ours.high))


def test_bca_is_scipys():
    d = np.random.default_rng(5).exponential(1, 25) - 0.5
    theirs = stats.bootstrap((d,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1))
    ours = bca_interval(d, resamples=40_000)
    assert ours[:2] == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert bca_interval([2.0] * 20)[:2] == (2, 2)


def test_the_interval_changes_its_method_at_twenty_runs():
    d = np.random.default_rng(0).normal(size=20)
    assert [interval_by_rule(d[:n]).method for n in (2, 19, 20)] == ["paired t", "paired t", "BCa"]


def test_from_twenty_runs_the_quantiles_are_widened():
    """Hesterberg (2015), table 5: for 95 % a bootstrap of 20 is asked for its .0161 and .9839 quantiles."""
    level = stats.norm.cdf(-math.sqrt(20 / 19) * stats.t.ppf(0.975, 19))
    assert level == pytest.approx(0.0159, abs=3e-4)
    d = np.random.default_rng(2).normal(size=20)
    assert interval_by_rule(d)[:2] == bca_interval(d, confidence=1 - 2 * level)[:2]
    wide, narrow = np.ptp(interval_by_rule(d)[:2]), np.ptp(bca_interval(d)[:2])
    assert 1.05 < wide / narrow < 1.15


def test_the_interval_of_a_median_holds_what_was_censored():
    # Ranks 2 and 9 of 10 cover .9785, ranks 3 and 8 only .891 (Conover, table A3)
    assert median_interval(np.arange(1.0, 11))[:2] == (2, 9)
    assert median_interval(np.arange(1.0, 11)).method == "order statistics, 97.9 %"
    assert median_interval([1.0, 2, 3])[:2] == (1, 3) and "75 %" in median_interval([1.0, 2, 3]).method
    never = [1.0, 2, 3, 4, 5, math.inf, math.inf, math.inf, -math.inf]
    assert median_interval(never)[:2] == (1, math.inf)
    with pytest.raises(MaskwiseError, match="none nan"):
        median_interval([1.0, math.nan])


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # Demšar (2006), 3.2.2: C4.5 against three variants; at .05 the first two are told apart, the third is not
    assert holm([0.016, 0.019, 0.607]) == pytest.approx([0.048, 0.048, 0.607])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_standardised_effect_has_hedges_correction():
    d = np.array([1.0, 2.0, 4.0])
    assert standardised_effect(d) == pytest.approx(1 / math.sqrt(math.pi) * d.mean() / d.std(ddof=1))
    d = np.random.default_rng(0).normal(1, 1, 30)
    assert standardised_effect(d) == pytest.approx((1 - 3 / (4 * 29 - 1)) * d.mean() / d.std(ddof=1), rel=1e-4)
    assert math.isnan(standardised_effect([1.0, 2.0]))
    table = {2: 0.5642, 3: 0.7236, 4: 0.7979, 5: 0.8408, 6: 0.8686, 9: 0.9139}  # Hedges (1981), table 1: c(m)
    for m, c in table.items():
        d = np.arange(m + 1.0)
        assert standardised_effect(d) * d.std(ddof=1) / d.mean() == pytest.approx(c, abs=1e-4)


@pytest.mark.parametrize("effect, runs", [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_runs_needed_is_gpowers(effect, runs):
    assert runs_needed(1.0, effect) == runs
    assert detectable_difference(1.0, runs) <= effect < detectable_difference(1.0, runs - 1)


def test_power_is_the_noncentral_t_and_has_no_holes():
    for n, shift in [(3, 1.0), (10, 0.7), (50, 0.3)]:
        critical, nc = stats.t.ppf(0.975, n - 1), shift * math.sqrt(n)
        theirs = stats.nct.sf(critical, n - 1, nc) + stats.nct.cdf(-critical, n - 1, nc)
        assert power_of(1.0, shift, n) == pytest.approx(theirs, abs=1e-5)
    assert power_of(1.0, 1e4, 2) == pytest.approx(1.0)  # scipy: nan
    assert runs_needed(1.0, 0.0) is None and runs_needed(0.0, 1.0) == 2 and runs_needed(1.0, 1e-5) is None


def test_the_level_that_can_be_attained():
    assert [attainable_level(n) for n in (5, 6, 7, 8)] == [0, 1 / 32, 3 / 64, 6 / 128]
    assert attainable_level(5, 0.0626) == 0.0625 and attainable_level(5, 0.0625) == 0  # below, not at
    assert (fewest_runs(), fewest_runs(0.05 / 6), attainable_level(20)) == (6, 8, 0.05)


def test_runs_to_decide():
    assert runs_to_decide(1.0, 0.5) == runs_needed(1.0, 0.5) == 34
    assert runs_to_decide(1.0, 5.0) == 6 and runs_to_decide(1.0, 5.0, alpha=0.05 / 6) == 8
    assert runs_to_decide(1.0, 1.5) == 7 > runs_needed(1.0, 1.5)  # 6 runs decide only if all agree
    assert runs_to_decide(1.0, 1e-6) is None and runs_to_decide(0.0, 1.0) == 6


def test_numbers_are_checked():
    with pytest.raises(MaskwiseError, match=r"finite numbers.*nan"):
        sign_flip_test([1.0, math.nan])
    with pytest.raises(MaskwiseError, match=r"same seeds.*0, 1.*0, 2"):
        paired_differences({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0})
    assert paired_differences({1: 5.0, 0: 1.0}, {0: 0.5, 1: 2.0}).tolist() == [0.5, 3.0]


@pytest.mark.slow
def test_plain_bca_covers_too_rarely_at_few_runs():
    rng = np.random.default_rng(0)
    samples = {n: rng.normal(size=(2000, n)) for n in (3, 10)}
    for n, rows in samples.items():
        bca = np.mean([(i := bca_interval(d, resamples=1000)).low < 0 < i.high for d in rows])
        assert bca == pytest.approx({3: 0.71, 10: 0.90}[n], abs=0.03)


def test_a_ratio_is_tested_at_the_ends_of_its_interval():
    rng = np.random.default_rng(5)
    whole = rng.normal(0.7, 0.15, 10)
    gain = 0.9 * whole + rng.normal(0, 0.05, 10)
    ends = ratio_interval(gain, whole)
    for end in ends:  # Student's interval of what is left there ends at 0
        assert min(map(abs, paired_t_interval(gain - end * whole)[:2])) == pytest.approx(0, abs=1e-12)
    assert ends[0] < gain.mean() / whole.mean() < ends[1]
    assert ratio_interval(-gain, whole) == pytest.approx((-ends[1], -ends[0]))


def test_a_ratio_to_what_may_be_zero_has_no_interval():
    assert ratio_interval([0.2, 0.3, 0.1], [0.5, -0.4, 0.1]) == (None, None)


def test_the_interval_of_a_ratio_covers():
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(400):
        whole = rng.normal(0.7, 0.15, 10)
        low, high = ratio_interval(0.8 * whole + rng.normal(0, 0.1, 10), whole)
        held += low <= 0.8 <= high
    assert 0.92 <= held / 400 <= 0.98
