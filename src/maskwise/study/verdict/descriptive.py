"""Figures that describe and decide nothing: ranks over tasks, interquartile means, superiority, stochastic order.

Other papers report them, so a reader may want them beside ours. None is tested: the replicate is the run, and
ranks over three tasks, or quantiles of five runs, carry little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskwise.study.statistics import (
    almost_stochastic_order,
    average_ranks,
    interquartile_mean,
    nemenyi_critical_difference,
    probability_of_superiority,
)
from maskwise.study.verdict.table import Table


def descriptive(table: Table, primary: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"ranks", "interquartile_means", "pairs"}; empty where there is too little to describe."""
    arms = [arm for arm in table.study["arms"] if table.outcomes.get("tasks", {}).get(arm)]
    return {
        "ranks": _ranks(table, arms),
        "interquartile_means": {arm: _interquartile(table, arm) for arm in arms},
        "pairs": [pair for row in primary if (pair := _pair(table, row))],
    }


def _ranks(table: Table, arms: list[str]) -> dict[str, Any] | None:
    """Mean rank over tasks (1 is best) of the arms' mean scores, with Nemenyi's critical difference."""
    if len(arms) < 2 or len(table.tasks) < 2:
        return None
    means = [
        [float(np.mean(list(table.outcomes[task][arm].values()))) for arm in arms] for task in table.tasks
    ]
    return {
        "arms": dict(zip(arms, average_ranks(means).tolist())),
        "rows": len(table.tasks),
        "critical_difference": nemenyi_critical_difference(len(arms), len(table.tasks)),
    }


def _interquartile(table: Table, arm: str) -> float:
    """The mean over runs of the interquartile mean over tasks *inside* the run: tasks are no replicates."""
    runs = table.outcomes["tasks"][arm]
    inside = [interquartile_mean([table.outcomes[task][arm][seed] for task in table.tasks]) for seed in runs]
    return float(np.mean(inside))


def _pair(table: Table, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The runs of both arms as two samples, pairing given up; higher is better after the sign."""
    sign = 1 if row["higher_is_better"] else -1
    both = [
        sign * np.array(list(table.outcomes[row["outcome"]].get(row[side], {}).values()))
        for side in ("arm", "baseline")
    ]
    if min(map(len, both)) < 2:
        return None
    order = almost_stochastic_order(*both)
    return {
        "arm": row["arm"],
        "baseline": row["baseline"],
        "outcome": row["outcome"],
        "superiority": probability_of_superiority(*both),
        "violation": order.epsilon,
        "violation_upper": order.upper,
    }
