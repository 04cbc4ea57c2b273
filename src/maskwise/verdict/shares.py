"""Results that are reported but not tested: shares of an oracle's gain, transfer between tasks, and
quality by compute.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import MEAN_OVER_TASKS
from maskwise.estimates import outcome_words, with_minus
from maskwise.files import GainShare, Point, TransferCell
from maskwise.verdict.outcomes import QUANTITIES, Numbers, Outcomes, Pair, finite_runs
from maskwise.verdict.statistics import binomial_interval, estimated, ratio_interval
from maskwise.verdict.words import names_of

LEARNS = 0.25
FAILED = 0.1
"""Thresholds of ``learned_something``, as fractions of the oracle's mean gain."""


# Shares of a gain


def gain_shares(
    table: Outcomes, best: str, baseline: str, unproven: Collection[Pair] = ()
) -> list[GainShare]:
    """Return the share of the oracle's gain that every other arm reaches, on every task.

    Without tasks, gains in held-out losses are used.

    Args:
        table: the outcomes of the compared runs.
        best: the name of the oracle, the arm with the largest gain.
        baseline: the arm over which gains are computed.
        unproven: the pairs of a control that failed, and those that it closes.
    """
    shares = []
    for outcome, arm in product(table.tasks or table.heldout, table.study["arms"]):
        if arm not in (best, baseline):
            shares.append(_gain_share(table, arm, best, baseline, outcome, unproven))
    return shares


def _gain_share(
    table: Outcomes,
    arm: str,
    best: str,
    baseline: str,
    outcome: str,
    unproven: Collection[Pair],
) -> GainShare:
    pairs = np.array([table.gains(outcome, name, baseline) for name in (arm, best)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    where = outcome_words(outcome)
    row: GainShare = {
        "arm": arm,
        "best": best,
        "baseline": baseline,
        "n": pairs.shape[1],
        "failed": 0,
        "failed_low": None,
        "failed_high": None,
        "task": outcome if outcome in table.tasks else where.removeprefix("in "),
        "share": None,
        "low": None,
        "high": None,
        "sentence": "",
    }
    base = names_of(table.study)[baseline]
    reason = _why_none(table, arm, best, baseline, outcome, unproven)
    if reason is None and not row["n"]:
        reason = "no seed has finished runs of all three arms"
    if reason is not None:
        row["sentence"] = f"No share is given for {arm} {where}: {reason}."
        return row
    if pairs[1].mean() <= 0:
        row["sentence"] = (
            f"{best} does not improve on {base} {where}, so there is no gain to share."
        )
        return row
    pairs = pairs[:, learned_something(*pairs)]
    count = pairs.shape[1]
    row["failed"] = row["n"] - count
    failed_ends = binomial_interval(row["failed"], row["n"])
    row["failed_low"], row["failed_high"] = failed_ends
    share = float(pairs[0].mean() / pairs[1].mean())
    row["share"] = share
    interval = "no interval"
    # One pair has no variance.
    ends = ratio_interval(*pairs) if count > 1 else None
    if ends:
        row["low"], row["high"] = ends
        interval = f"95 % interval {_percent(*ends)}"
    gained = f"{_percent(share)} of the gain of {best} over {base} {where}"
    sentence = f"{arm} reaches {gained} in {count} runs ({interval})"
    if row["failed"]:
        runs = f"{row['failed']} of {row['n']} runs failed"
        sentence += f"; {runs} (95 % interval {_percent(*failed_ends)})"
    row["sentence"] = f"{sentence}."
    return row


def learned_something(gains: Numbers, best_gains: Numbers) -> NDArray[np.bool_]:
    """Return a boolean array of shape (runs,) that is False for runs that failed to learn.

    Learning a policy fails completely in some runs. For a mean over failed and other runs, no
    interval has the right coverage: with one failure in ten runs, Fieller's interval covers 67 %.
    Shares and their intervals therefore use only the runs that learned something, and the number of
    failed runs gets an exact binomial interval.

    A run failed if it gains at most ``FAILED`` of the oracle's mean gain, and the better half of
    the arm's runs gains more than ``LEARNS``. A rule that searches for gaps between runs would miss
    failures in one of three studies with 20 runs.

    >>> best_gains = np.full(6, 0.7)
    >>> learned_something(np.array([0.01, 0.6, 0.62, 0.58, 0.61, 0.6]), best_gains).tolist()
    [False, True, True, True, True, True]

    Args:
        gains: (runs,) the gains of an arm over the baseline.
        best_gains: (runs,) the gains of the oracle over the baseline, with the same seeds.
    """
    shares = gains / best_gains.mean()
    better_half = np.sort(shares)[len(shares) // 2 :]
    # An arm that gains little in all its runs has no failed runs.
    return (shares > FAILED) | (better_half.mean() <= LEARNS)


def _why_none(
    table: Outcomes,
    arm: str,
    best: str,
    baseline: str,
    outcome: str,
    unproven: Collection[Pair],
) -> str | None:
    """Return the reason why a share cannot be computed; None if it can."""
    if (best, baseline) in unproven or (arm, baseline) in unproven:
        return "the positive control failed"
    if len(table.formats(arm, best)) > 1:
        return "the arms write different output formats"
    for name in (arm, best):
        code = table.incomparable(name, baseline, outcome)
        if code:
            return f"the losses are not comparable ({code.replace('-', ' ')})"
    return None


def _percent(*shares: float) -> str:
    return with_minus(" to ".join(f"{100 * share:.0f} %" for share in shares))


# Transfer


def transfer_cells(
    table: Outcomes, learned: Mapping[str, str], baseline: str
) -> list[TransferCell]:
    """Return the gain of every learned policy over the baseline on every task.

    Args:
        table: the outcomes of the compared runs.
        learned: the task that an arm's policy was learned from, keyed by arm.
        baseline: the arm over which gains are computed.
    """
    cells = []
    for (arm, source), task in product(learned.items(), table.tasks):
        gains = finite_runs(table.gains(task, arm, baseline))
        cell: TransferCell = {
            "arm": arm,
            "learned_from": source,
            "task": task,
            "n": len(gains),
            **estimated(gains),
        }
        cells.append(cell)
    return cells


# Quality by compute


def _mean_over_tasks(table: Outcomes, place: tuple[int, int]) -> float | None:
    """Return a run's mean score on the tasks of the verdict, in their unit and direction.

    None for a single task, and for tasks without a common unit, such as points and nats: their mean
    would say nothing, and the worse of two arms could have the better mean.
    """
    tasks = table.measured("tasks")
    plain = "plain:tasks"
    if len(tasks) < 2 or plain not in table.scales:
        return None
    # Signed scores, for which higher is better. Tasks with a common unit have a common sign.
    mean = float(table.values[plain][place]) * table.scales[tasks[0]].sign
    return mean if math.isfinite(mean) else None


def efficiency_points(table: Outcomes) -> list[Point]:
    """Return the unscaled scores, their mean, the losses and the compute of every run."""
    outcomes = [*table.tasks, *table.heldout, *table.evaluations]
    points = []
    for line in table.lines["cost"]:
        place = table.place(line["arm"], line["seed"])
        values = {}
        for name in outcomes:
            value = float(table.values[name][place])
            if math.isfinite(value):
                values[name] = value
        mean = _mean_over_tasks(table, place)
        if mean is not None:
            values = {MEAN_OVER_TASKS: mean, **values}
        spent = {}
        for key in QUANTITIES:
            amount = line.get(key)
            if amount:
                spent[key] = amount
        if values and spent:
            run = {"arm": line["arm"], "seed": line["seed"], "fraction": table.length}
            points.append(cast(Point, {**run, **spent, "values": values}))
    return points
