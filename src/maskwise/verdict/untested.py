"""Results that are reported but not tested: quality by compute."""

from __future__ import annotations

import math
from typing import cast

from maskwise.base.constants import MEAN_OVER_TASKS
from maskwise.results.files import Point
from maskwise.verdict.outcomes import QUANTITIES, Outcomes


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
