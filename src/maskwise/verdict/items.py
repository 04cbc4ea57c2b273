"""Uncertainty from the choice of test items, computed from the scores of single items.

Another test set of the same kind has other items. How much the difference of two arms would change
depends on the differences between their scores of the *same* items: arms that are right and wrong
on the same items differ by an amount that hardly depends on the choice of items. A record of a task
therefore contains sums over groups of test rows (``item_sums`` and ``item_sizes`` in
``maskwise.files.Record``). Rows with the same text are one group.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def paired_item_error(table: Outcomes, tasks: Sequence[str], pair: Pair) -> float | None:
    """Return the standard error, over test items, of a difference between two arms.

    Noise of training is part of it, as far as it differs between items.

    Args:
        table: the outcomes of the compared runs.
        tasks: the tasks whose differences are averaged. If two tasks have the same test rows, the
            differences of a row are added. Other tasks are independent.
        pair: the names of the two arms.

    Returns:
        The standard error in natural units; None if the records do not have the sums of items.
    """
    tasks_on = defaultdict[str, list[dict[int, Numbers]]](list)
    for task in tasks:
        differences = item_differences(table, task, pair)
        if differences is None:
            return None
        rows = table.study["tasks"].get(task, {}).get("test_texts", task)
        tasks_on[rows].append(differences)
    return math.hypot(*map(_error_on_rows, tasks_on.values())) / len(tasks)


def _error_on_rows(tasks: Sequence[dict[int, Numbers]]) -> float:
    """Return the standard error of the sum over tasks, which have the same test rows in a run.

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
        sums = {size: np.zeros(size) for size in sizes}
        for size, differences in zip(sizes, tasks):
            sums[size] += sum(differences[seed] for seed in seeds) / len(tasks[0])
        # Groups of different numbers cannot be added one by one. Such errors count as correlated.
        errors.append(sum(map(_standard_error, sums.values())))
    return math.hypot(*errors)


def _standard_error(values: Numbers) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
