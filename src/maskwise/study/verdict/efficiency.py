"""Quality against compute: every run as a point, and where an arm first reaches the baseline's
final quality.

Companion runs are whole runs with a share of the steps (ratio and learning rate run over their own
length; a run cut short is not a short run). For each seed the arm's qualities at its fractions are
joined by straight lines over the compute. Where they first reach what the baseline has at its end,
with the same seed, is the first crossing, as a share of the baseline's whole compute. Crossings are
described and not tested: the first crossing of a noisy curve comes early, and straight lines under
a concave curve come late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import numpy as np

from maskwise.constants import REFERENCE
from maskwise.files import Crossing, Efficiency, Point
from maskwise.study.outcomes import QUANTITIES, Outcomes
from maskwise.study.verdict.table import Table

Lengths = Mapping[float, Outcomes]
"""The companion runs and the whole ones, by fraction."""


def efficiency(table: Table, pairs: Sequence[tuple[str, str]]) -> Efficiency:
    """Every run's quality and compute; and the first crossings of every pair, outcome and quantity."""
    lengths = {**table.companions, 1.0: table}
    rows: list[Crossing] = []
    for arm, baseline in pairs if table.companions else ():
        for outcome in _outcomes(table, arm, baseline):
            for by in QUANTITIES:
                sign = 1 if table.higher_is_better(outcome) else -1
                shares = first_crossings(lengths, arm, baseline, outcome, by=by, sign=sign)
                if shares:
                    rows.append(
                        {
                            "arm": arm,
                            "baseline": baseline,
                            "outcome": outcome,
                            "by": by,
                            "shares": shares,
                        }
                    )
    return {"points": _points(lengths, table), "crossings": rows}


def first_crossings(
    lengths: Lengths, arm: str, baseline: str, outcome: str, *, by: str, sign: int
) -> dict[str, float | None]:
    """By seed, the share of the baseline's compute at which the arm reaches its final quality; None
    if it never does.

    An arm that is there in its shortest run has the share of that run. A seed without one of its
    lengths is left out.
    """
    whole = lengths[1.0]
    shares: dict[str, float | None] = {}
    for seed, goal in whole.values(outcome, baseline).items():
        points = []
        for measures in lengths.values():
            quality = measures.values(outcome, arm).get(seed)
            compute = measures.cost.get((arm, seed), {}).get(by)
            if quality is not None and compute:
                points.append((compute, sign * quality))
        spent = whole.cost.get((baseline, seed), {}).get(by)
        if spent and len(points) == len(lengths):
            at = crossing(sorted(points), sign * goal)
            shares[str(seed)] = None if at is None else at / spent
    return shares


def crossing(points: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Where the line through (compute, quality) points first reaches goal; None if it stays below.

    >>> crossing([(1, 0.4), (2, 0.5)], 0.45)
    1.5
    """
    if points[0][1] >= goal:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 >= goal:
            return float(x0 + (goal - y0) / (y1 - y0) * (x1 - x0))
    return None


def _outcomes(table: Table, arm: str, baseline: str) -> list[str]:
    """What a pair may be compared by: the tasks, and the arm's own held-out loss where that is
    comparable.
    """
    outcomes = ["tasks"] if table.tasks else []
    if REFERENCE not in (arm, baseline):
        own = [name for name in table.own_heldout(arm) if name in table.outcomes]
        outcomes += [name for name in own if not table.incomparable(arm, baseline, name)]
    return outcomes


def _points(lengths: Lengths, table: Table) -> list[Point]:
    """Every run of every length: its plain qualities (scores, their mean, losses) and its compute."""
    points: list[Point] = []
    for fraction, measures in lengths.items():
        for (arm, seed), cost in measures.cost.items():
            values = {
                name: measures.values(name, arm)[seed]
                for name in [*table.tasks, *table.heldout, *table.evaluations]
                if seed in measures.values(name, arm)
            }
            scores = [values[task] for task in table.tasks if task in values]
            if len(scores) > 1 and len(scores) == len(table.tasks):
                values = {"mean over tasks": float(np.mean(scores)), **values}
            if values and cost:
                point = {"arm": arm, "seed": seed, "fraction": fraction, **cost, "values": values}
                points.append(cast(Point, point))
    return points
