"""``benchmarks/oracle_shares.py``: the share of an oracle's gain that an arm reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle_shares
import pytest
from oracle_shares import ratio_interval, share_of
from pandas import DataFrame
from scipy import stats

pytestmark = pytest.mark.script

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
WHOLE = np.array([0.70, 0.66, 0.68, 0.72, 0.69, 0.71, 0.67, 0.70, 0.73, 0.68])


def row_of(gains: np.ndarray, whole: np.ndarray = WHOLE) -> dict[str, object]:
    scores = {"random": 0.1, "oracle": 0.1 + whole, "meta": 0.1 + gains}
    return share_of(DataFrame(scores), "meta", "oracle", "random")


def test_runs_that_failed_outright_are_counted_and_not_averaged() -> None:
    """One learning in ten fails: the interval is of the others, and the failures have their own."""
    gains = np.array([0.60, 0.55, 0.02, 0.62, 0.57, 0.61, 0.56, 0.59, 0.63, 0.58])
    row = row_of(gains)
    expected = gains[gains > 0.1].mean() / WHOLE[gains > 0.1].mean()
    assert (row["n"], row["failed"], row["share"]) == (10, 1, pytest.approx(expected))
    assert (row["failed_low"], row["failed_high"]) == pytest.approx((0.0025, 0.445), abs=1e-3)
    assert 0.8 < row["low"] < expected < row["high"] < 0.9
    # An arm that gains a little in every run has not failed in any of them.
    weak = np.array([0.02, 0.20, 0.05, 0.15, 0.09, 0.12, 0.03, 0.18, 0.11, 0.07])
    row = row_of(weak)
    assert row["failed"] == 0 and row["share"] == pytest.approx(weak.mean() / WHOLE.mean())


def test_there_is_no_share_of_nothing_and_no_interval_of_one_run() -> None:
    assert "share" not in row_of(WHOLE, -WHOLE)
    one = row_of(WHOLE[:1] / 2, WHOLE[:1])
    assert one["share"] == pytest.approx(0.5) and one["low"] is None
    missing = row_of(np.where(np.arange(10) < 4, np.nan, WHOLE / 2))
    assert missing["n"] == 6


def test_a_ratio_is_tested_at_the_ends_of_its_interval() -> None:
    rng = np.random.default_rng(5)
    whole = rng.normal(0.7, 0.15, 10)
    gain = 0.9 * whole + rng.normal(0, 0.05, 10)
    ends = ratio_interval(gain, whole)
    assert ends is not None
    for end in ends:  # Student's interval of what is left there ends at 0
        left = stats.ttest_1samp(gain - end * whole, 0).confidence_interval()
        assert min(abs(left.low), abs(left.high)) == pytest.approx(0, abs=1e-12)
    assert ends[0] < gain.mean() / whole.mean() < ends[1]
    assert ratio_interval(-gain, whole) == pytest.approx((-ends[1], -ends[0]))


def test_a_ratio_to_what_may_be_zero_has_no_interval() -> None:
    assert ratio_interval([0.2, 0.3, 0.1], [0.5, -0.4, 0.1]) is None


def test_recorded_shares() -> None:
    """Figures of RESULTS.md: 30 % of the oracle's gain (24 to 35), and 16 % (9 to 25)."""
    found = oracle_shares.main(RESULTS / "ptw-control-2026-11-21", "oracle", "words")
    ends = {
        row["arm"]: [round(row[key], 2) for key in ("share", "low", "high")]
        for row in found["shares"]
    }
    assert ends == {"ptw": [0.30, 0.24, 0.35], "ptw-faithful": [0.16, 0.09, 0.25]}
    # Without tasks, shares are of the gain in held-out losses.
    found = oracle_shares.main(RESULTS / "sampler-control-2026-11-21", "oracle", "uniform")
    (plus,) = [row for row in found["shares"] if row["arm"] == "mometas-plus"]
    assert (plus["task"], round(plus["share"], 3)) == ("token", 0.652)
