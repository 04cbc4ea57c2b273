"""Do masking policies that were learned from one task help on this task, and on the others?

    python benchmarks/own_and_other_tasks.py FOLDER BASELINE ARM=TASK ARM=TASK ... > table.json

FOLDER is a finished or recorded study whose arms learned their policies from its tasks
(``learning.task``), and ARM=TASK says from which. On every task, the side "own task" is the mean of
the arms that learned from this task, and the side "other tasks" is the mean of those that learned
from another. Both sides are compared with the baseline, in pairs of runs with the same seed, by the
test of maskwise's verdicts, with Holm's correction for two. ``cells`` has the gain of every policy
on every task, with an interval and without a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from command import run
from numpy.typing import NDArray
from pandas import DataFrame

from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError, require_known
from maskwise.studies.result import StudyResult
from maskwise.verdict.statistics import estimated, holm, sign_flip_test

Row = dict[str, Any]


def parse(pairs: list[str], arms: list[str], tasks: list[str]) -> dict[str, str]:
    """Return the task from which each arm learned, keyed by arm, from texts of the form ARM=TASK.

    Raises:
        MaskwiseError: an arm or a task is unknown, or a task lacks an arm that learned from it.

    >>> parse(["a=x", "b=y"], ["a", "b", "random"], ["x", "y"])
    {'a': 'x', 'b': 'y'}
    """
    learned = {}
    for pair in pairs:
        arm, _, task = pair.partition("=")
        require_known("arm", arm, arms)
        require_known("task", task, tasks)
        learned[arm] = task
    missing = [task for task in tasks if task not in learned.values()]
    if missing or len(tasks) < 2:
        raise MaskwiseError(
            "every task needs an arm that learned from it, and there must be at least two tasks",
            got=", ".join(pairs) or "no arms",
            allowed=", ".join(tasks),
        )
    return learned


def scores_of(table: DataFrame) -> dict[str, DataFrame]:
    """Return the test scores of compared runs, (seeds, arms), higher is better, keyed by task."""
    found = table[(table.kind == "task") & (table.split == "test") & (table.role == "")]
    scores = {}
    for task, rows in found.groupby("measure", sort=False):
        sign = 1 if rows.higher_is_better.all() else -1
        scores[str(task)] = sign * rows.pivot_table("value", "seed", "arm")
    return scores


def pooled_sd(scores: DataFrame, one_item: float) -> float:
    """Return the SD of runs within trained arms, at least the value of one test item."""
    trained = scores.drop(columns=REFERENCE, errors="ignore")
    squares = ((trained - trained.mean()) ** 2).to_numpy()
    freedom = trained.count().sum() - (trained.count() > 0).sum()
    return max(math.sqrt(np.nansum(squares) / freedom), one_item) if freedom else math.nan


def sides(
    scores: Mapping[str, DataFrame],
    learned: Mapping[str, str],
    baseline: str,
    *,
    sds: Mapping[str, float],
    items: Mapping[str, float],
) -> list[Row]:
    """Compare both sides with the baseline on the mean over tasks, in SDs and as measured.

    Args:
        scores: the scores of each task.
        learned: the task from which each arm learned.
        baseline: the arm over which gains are computed.
        sds: the SD of runs within an arm, by task.
        items: the value of one test item, by task.
    """
    rows: list[Row] = []
    for side in ("own task", "other tasks"):
        gains = []
        for task, of_task in scores.items():
            arms = [arm for arm, source in learned.items() if (source == task) == (side[1] == "w")]
            # A seed without a run of one of these arms has no mean.
            mean = of_task.reindex(columns=arms).mean(axis=1, skipna=False)
            gains.append(mean - of_task[baseline])
        complete = DataFrame(dict(zip(scores, gains))).dropna()
        natural: NDArray[np.float64] = complete.to_numpy().T
        scale = np.array([sds[task] for task in scores])
        least = np.array([items[task] for task in scores]) / scale
        differences = natural / scale[:, None]
        rows.append(
            {
                "side": side,
                "n": len(complete),
                **estimated(differences, least_sds=least),
                "natural": estimated(natural.mean(axis=0)),
                "p": sign_flip_test(differences, least_sds=least),
            }
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows])):
        row["p_adjusted"] = adjusted
    return rows


def cells(scores: Mapping[str, DataFrame], learned: Mapping[str, str], baseline: str) -> list[Row]:
    """Return the gain of every policy over the baseline on every task, with its interval."""
    found = []
    for (arm, source), (task, of_task) in product(learned.items(), scores.items()):
        gains = (of_task[arm] - of_task[baseline]).dropna().to_numpy()
        about = {"arm": arm, "learned_from": source, "task": task, "n": len(gains)}
        found.append({**about, **estimated(gains)})
    return found


def main(folder: Path, baseline: str, learned: list[str]) -> Row:
    """Print both sides, and the gain of every policy on every task."""
    result = StudyResult.read(folder)
    table = result.to_dataframe()
    scores = scores_of(table)
    arms = [*result.study["arms"]]
    require_known("arm", baseline, arms)
    sources = parse(learned, [arm for arm in arms if arm != baseline], [*scores])
    counts = table[table.measure.isin([*scores])].groupby("measure")["items"].max()
    items = {task: 1 / (counts[task] if counts[task] > 0 else 1000) for task in scores}
    sds = {task: pooled_sd(of_task, items[task]) for task, of_task in scores.items()}
    return {
        "folder": str(folder),
        "counted": [*scores],
        "sides": sides(scores, sources, baseline, sds=sds, items=items),
        "cells": cells(scores, sources, baseline),
    }


if __name__ == "__main__":
    run(main, __doc__)
