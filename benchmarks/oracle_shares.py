"""What share of an oracle's gain does each arm of a study reach?

    python benchmarks/oracle_shares.py FOLDER ORACLE BASELINE > shares.json

FOLDER is a finished or recorded study. The gain of an arm on a task is its score minus that of the
baseline with the same seed, and the gain of the oracle counts as 1. ``verdict`` is that on the
oracle and the baseline: if it is "not comparable", a share says nothing.

Learning a policy fails completely in some runs. For a mean over failed and other runs, no interval
has the right coverage: with one failure in ten runs, Fieller's interval covers 67 %. Shares and
their intervals therefore use only the runs that learned something, and the number of failed runs
has an exact binomial interval. ``false_positives.py`` computes the coverage.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from command import run
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame
from scipy import stats

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError, require_known
from maskwise.studies.result import StudyResult

LEARNS = 0.25
FAILED = 0.1
"""Thresholds of ``learned_something``, as fractions of the oracle's mean gain."""

Row = dict[str, object]


def learned_something(
    gains: NDArray[np.float64], best_gains: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return a boolean array of shape (runs,) that is False for runs that failed to learn.

    A run failed if it gains at most ``FAILED`` of the oracle's mean gain, and the better half of
    the arm's runs gains more than ``LEARNS``. A rule that searches for gaps between runs would miss
    failures in one of three studies with 20 runs.

    >>> best_gains = np.full(6, 0.7)
    >>> learned_something(np.array([0.01, 0.6, 0.62, 0.58, 0.61, 0.6]), best_gains).tolist()
    [False, True, True, True, True, True]
    """
    shares = gains / best_gains.mean()
    better_half = np.sort(shares)[len(shares) // 2 :]
    # An arm that gains little in all its runs has no failed runs.
    return (shares > FAILED) | (better_half.mean() <= LEARNS)


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float] | None:
    """Return Fieller's 95 % interval of mean(numerators) / mean(denominators).

    The interval contains every ratio r for which Student's t test does not reject a mean of 0 of
    numerators − r · denominators. The result is None if the interval is unbounded, because the mean
    of the denominators does not differ significantly from 0. Source: Fieller (1954), section 2.
    """
    a = np.asarray(numerators, dtype=float)
    b = np.asarray(denominators, dtype=float)
    t2 = stats.t.ppf(0.975, len(a) - 1) ** 2
    (var_a, cov), (_, var_b) = np.cov(a, b) / len(a)
    # The ends are the roots of square · r² − 2 · middle · r + constant.
    square = b.mean() ** 2 - t2 * var_b
    middle = a.mean() * b.mean() - t2 * cov
    constant = a.mean() ** 2 - t2 * var_a
    if square <= 0:
        return None
    # Rounding can make the discriminant of a double root slightly negative.
    half = math.sqrt(max(middle**2 - square * constant, 0.0))
    return float((middle - half) / square), float((middle + half) / square)


def share_of(scores: DataFrame, arm: str, oracle: str, baseline: str) -> Row:
    """Return the share that an arm reaches of the oracle's gain.

    Args:
        scores: (seeds, arms) scores of a task, higher is better; missing runs are NaN.
        arm, oracle, baseline: names of columns.
    """
    found = scores[[arm, oracle, baseline]].dropna()
    gains = (found[arm] - found[baseline]).to_numpy()
    whole = (found[oracle] - found[baseline]).to_numpy()
    row: Row = {"arm": arm, "n": len(found)}
    if not len(found) or whole.mean() <= 0:
        return row
    learned = learned_something(gains, whole)
    failed = int((~learned).sum())
    ends = stats.binomtest(failed, len(found)).proportion_ci(0.95, method="exact")
    row |= {"failed": failed, "failed_low": float(ends.low), "failed_high": float(ends.high)}
    row["share"] = float(gains[learned].mean() / whole[learned].mean())
    # One pair has no variance.
    interval = ratio_interval(gains[learned], whole[learned]) if learned.sum() > 1 else None
    row["low"], row["high"] = interval or (None, None)
    return row


def shares(table: DataFrame, oracle: str, baseline: str) -> list[Row]:
    """Return the shares of all arms on all tasks of ``StudyResult.to_dataframe()``.

    Without tasks, gains in held-out losses are used, as means over the masking ratios.
    """
    compared = table[(table.role == "") & (table.split == "test")]
    rows = []
    kind = "task" if (compared.kind == "task").any() else "heldout"
    for task, of_task in compared[compared.kind == kind].groupby("measure"):
        sign = 1 if of_task.higher_is_better.all() else -1
        scores = sign * of_task.pivot_table("value", "seed", "arm")
        for arm in scores.columns.difference([oracle, baseline, REFERENCE]):
            rows.append({"task": task, **share_of(scores, arm, oracle, baseline)})
    return rows


def main(folder: Path, oracle: str, baseline: str) -> Row:
    """Print the share of the oracle's gain that each arm reaches on each task."""
    result = StudyResult.read(folder)
    for arm in (oracle, baseline):
        require_known("arm", arm, [*result.study["arms"], *result.study.get("untrained", {})])
    if oracle == baseline:
        raise MaskwiseError("the oracle and the baseline are two arms", got=f"{oracle} for both")
    return {
        "folder": str(folder),
        "verdict": result.verdicts.get((oracle, baseline)),
        "shares": shares(result.to_dataframe(), oracle, baseline),
    }


if __name__ == "__main__":
    run(main, __doc__)
