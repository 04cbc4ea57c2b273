"""Uncertainty from the choice of test items, computed from the scores of single items.

Another test set of the same kind has other items. How much the difference of two arms would change
depends on the differences between their scores of the *same* items: arms that are right and wrong
on the same items differ by an amount that hardly depends on the choice of items. A record of a task
therefore contains sums over groups of test rows (``item_sums`` and ``item_sizes`` in
``maskwise.results.files.Record``). Rows with the same text are one group.

Other runs and other items are both drawn anew if somebody repeats a study, so the interval that
says whether a difference would stand varies both (``together``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from maskwise.results.files import Estimate
from maskwise.verdict.outcomes import Numbers, Outcomes, Pair


def contributions(facts: Mapping[str, Any]) -> Numbers:
    """Return (G,) the contribution of each group of test rows to the score of a run.

    Their mean is the score. If the score is a ratio of sums, their standard error is that of the
    ratio (the delta method; Cochran, Sampling Techniques, 1977, chapter 6).

    >>> contributions({"item_sums": [2, 0, 1], "item_sizes": [2]}).tolist()
    [1.0, 0.0, 0.5]
    """
    sums = np.array(facts["item_sums"], dtype=float)
    sizes = np.broadcast_to(np.array(facts["item_sizes"], dtype=float), sums.shape)
    total = sizes.sum()
    # A test set without any entity has a score of 0.
    if not total:
        return np.zeros(len(sums))
    score = sums.sum() / total
    values: Numbers = score + (sums - score * sizes) / sizes.mean()
    return values


def item_differences(table: Outcomes, task: str, pair: Pair) -> dict[int, Numbers] | None:
    """Return (G,) the differences of the contributions of two arms for each pair, keyed by seed.

    None if a run that is compared has no sums of items.
    """
    known = {}
    for row in table.scores.get(task, ()):
        if row.arm in pair and "item_sums" in row.facts:
            known[row.arm, row.seed] = row.facts
    arm, baseline = pair
    differences = {}
    for seed in table.paired_seeds(task, *pair):
        if (arm, seed) not in known or (baseline, seed) not in known:
            return None
        ours = contributions(known[arm, seed])
        theirs = contributions(known[baseline, seed])
        if len(ours) != len(theirs) or len(ours) < 2:
            return None
        differences[seed] = ours - theirs
    return differences or None


def paired_item_errors(
    table: Outcomes, tasks: Sequence[str], pair: Pair
) -> tuple[float, float] | None:
    """Return the standard error, over test items, of a difference between two arms.

    Args:
        table: the outcomes of the compared runs.
        tasks: the tasks whose differences are averaged. If two tasks have the same test rows, the
            differences of a row are added. Other tasks are independent.
        pair: the names of the two arms.

    Returns:
        error: the standard error in natural units.
        single: the part of it that is noise of single runs on single items, which is also in the
            error over runs.
        None if the records do not have the sums of items.
    """
    tasks_on = defaultdict[str, list[dict[int, Numbers]]](list)
    for task in tasks:
        differences = item_differences(table, task, pair)
        if differences is None:
            return None
        rows = table.study["tasks"].get(task, {}).get("test_texts", task)
        tasks_on[rows].append(differences)
    errors = np.array([errors_on_rows(on_rows) for on_rows in tasks_on.values()])
    error, single = np.sqrt(np.square(errors).sum(axis=0)) / len(tasks)
    return float(error), float(single)


def errors_on_rows(tasks: Sequence[dict[int, Numbers]]) -> tuple[float, float]:
    """Return both errors of the sum over tasks, which have the same test rows in a run.

    Args:
        tasks: the differences of each task, keyed by seed. All tasks have the same seeds.
    """
    # The error of the mean over K runs is the SD over items of the runs' mean difference on each
    # item, if all runs have the same items. Runs with other numbers of groups have other items.
    # These are drawn independently, so the variance of the mean is the sum of the runs' variances,
    # each from the run's own items, divided by K². If some runs share a test set, the mean is taken
    # over these runs first. Equal numbers of groups do not show whether the items are the same, and
    # they need not: the items in one place of two independent sets have a covariance of 0, so the
    # SD of the means over places has the expectation of the sum above, with fewer degrees of
    # freedom.
    alike = defaultdict[tuple[int, ...], list[int]](list)
    for seed in tasks[0]:
        alike[tuple(len(differences[seed]) for differences in tasks)].append(seed)
    errors = []
    for sizes, seeds in alike.items():
        sums = {size: np.zeros((len(seeds), size)) for size in sizes}
        for size, differences in zip(sizes, tasks):
            sums[size] += np.array([differences[seed] for seed in seeds]) / len(tasks[0])
        # Groups of different numbers cannot be added one by one. Such errors count as correlated.
        errors.append(np.sum([_errors(runs) for runs in sums.values()], axis=0))
    error, single = np.sqrt(np.square(errors).sum(axis=0))
    return float(error), float(single)


def _errors(runs: Numbers) -> tuple[float, float]:
    """Return both errors of the sum over runs of their means: (runs, items)."""
    items = runs.shape[1]
    error = float(runs.sum(axis=0).std(ddof=1)) / math.sqrt(items)
    # The items of one run are its own, so all of their noise is in that run.
    if len(runs) == 1:
        return error, error
    # What is left without the mean of each run and of each item (two-way analysis of variance).
    left = runs - runs.mean(axis=0) - runs.mean(axis=1, keepdims=True) + runs.mean()
    variance = np.square(left).sum() / (len(runs) - 1) / (items - 1)
    return error, math.sqrt(variance * len(runs) / items)


def together(
    estimate: Estimate, differences: Numbers, *, error: float, single: float
) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean difference if runs and test items vary together.

    Its variance is that over runs plus that over items, minus what both contain, with
    Satterthwaite's degrees of freedom; the variance over items, of which there are many, counts as
    known. The interval is never narrower than that of the test over runs.

    >>> runs = np.array([0.01, 0.03, 0.02, 0.04, 0.02, 0.03])
    >>> test: Estimate = {"mean": 0.025, "low": 0.01, "high": 0.04}
    >>> low, high = together(test, runs, error=0.01, single=0.0)
    >>> round(low, 4), round(high, 4)
    (0.0036, 0.0464)

    Args:
        estimate: the mean difference, and the interval of the test over runs.
        differences: (n,) the paired differences of runs.
        error, single: as in ``paired_item_errors``.

    Returns:
        The ends; None with too few runs for an interval of the test.
    """
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    if mean is None or low is None or high is None:
        return None
    over_runs = float(differences.var(ddof=1)) / len(differences)
    # An estimate may be negative, and neither source is less uncertain for the other one.
    variance = max(over_runs + error**2 - single**2, over_runs, error**2)
    share = over_runs / variance if variance else 1.0
    freedom = (len(differences) - 1) / share**2 if share else math.inf
    reach = float(special.stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return min(low, mean - reach), max(high, mean + reach)
