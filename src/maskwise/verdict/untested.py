"""Results that are reported but not tested: transfer between tasks, and quality by compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import cast

from maskwise.constants import MEAN_OVER_TASKS
from maskwise.files import Point, TransferCell
from maskwise.verdict.outcomes import QUANTITIES, Outcomes, finite_runs
from maskwise.verdict.statistics import estimated

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
            run = {"arm": line["arm"], "seed": line["seed"]}
            points.append(cast(Point, {**run, **spent, "values": values}))
    return points
