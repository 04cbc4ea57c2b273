"""Quality against compute: every run as a point, and how much of the baseline's compute an arm needs.

Companion runs are whole runs with a share of the steps (ratio and learning rate run over their own length; a run
cut short is not a short run). For each seed the arm's qualities at its fractions are joined by straight lines over
the compute; where they first reach what the baseline has at its end, with the same seed, is that seed's time to
quality, as a share of the baseline's whole compute.

A seed that never gets there counts as +∞ and one that is there at its shortest run as −∞: both stay in. Without
them the interval is a paired t on logarithms; with them the median's by order statistics, which may end in
"not reached". Two things bias a share, and `by_itself` (the baseline against itself) shows them: the first
crossing of a noisy curve comes early, and straight lines under a concave curve come late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from maskwise.constants import REFERENCE
from maskwise.files import Efficiency, Point, TimeToQuality
from maskwise.study.statistics import median_interval, paired_t_interval
from maskwise.study.verdict.table import Measures, Table
from maskwise.study.verdict.words import outcome_words

MEASURED = ("steps", "tokens", "targets", "flops")
Lengths = Mapping[float, Measures]
"""The companion runs and the whole ones, by fraction."""


def efficiency(table: Table, pairs: Sequence[tuple[str, str]], names: Mapping[str, str]) -> Efficiency:
    """Every run's quality and compute; and the time to quality of every pair, outcome and quantity."""
    lengths = {**table.companions, 1.0: table}
    rows = []
    for arm, baseline in pairs if table.companions else ():
        for outcome in _outcomes(table, arm, baseline):
            for by in MEASURED:
                higher = table.higher_is_better(outcome)
                row = time_to_quality(lengths, arm, baseline, outcome, by=by, higher=higher)
                if row:
                    row["sentence"] = _sentence(row, names)
                    rows.append(row)
    return {"points": _points(lengths, table), "time_to_quality": rows}


def time_to_quality(
    lengths: Lengths, arm: str, baseline: str, outcome: str, *, by: str, higher: bool = True
) -> TimeToQuality | None:
    """The arm's compute to the baseline's final quality, as a share of the baseline's; None without companions."""
    shares = _shares(lengths, arm, baseline, outcome, by=by, higher=higher)
    if not shares:
        return None
    own = _shares(lengths, baseline, baseline, outcome, by=by, higher=higher)
    values = list(shares.values())
    share, low, high, method = _combined(values)
    return {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "by": by,
        "n": len(values),
        "left_out": len(lengths[1.0].values(outcome, baseline)) - len(values),
        "not_reached": sum(x == math.inf for x in values),
        "reached_before": sum(x == -math.inf for x in values),
        "share": share,
        "low": low,
        "high": high,
        "method": method,
        "by_itself": _combined(list(own.values()))[0] if own else None,
        "shares": {str(seed): _plain(x) for seed, x in shares.items()},
        "sentence": "",
    }


def crossing(compute: Sequence[float], quality: Sequence[float], goal: float) -> float:
    """Where the line through (compute, quality), higher better, first reaches goal; ±inf outside of it."""
    if quality[0] >= goal:
        return -math.inf
    for (x0, y0), (x1, y1) in zip(zip(compute, quality), zip(compute[1:], quality[1:])):
        if y1 >= goal:
            return float(x0 + (goal - y0) / (y1 - y0) * (x1 - x0))
    return math.inf


def _shares(lengths: Lengths, arm: str, baseline: str, outcome: str, *, by: str, higher: bool) -> dict[int, float]:
    """By seed, the share of the baseline's compute at which the arm reaches the baseline's final quality."""
    whole, sign, shares = lengths[1.0], 1 if higher else -1, {}
    for seed, goal in whole.values(outcome, baseline).items():
        points = []
        for measures in lengths.values():
            quality = measures.values(outcome, arm).get(seed)
            compute = measures.cost.get((arm, seed), {}).get(by)
            if quality is not None and compute:
                points.append((compute, sign * quality))
        spent = whole.cost.get((baseline, seed), {}).get(by)
        if spent and len(points) == len(lengths) > 1:  # a seed without one of its lengths is no curve
            compute_line, quality_line = zip(*sorted(points))
            shares[seed] = crossing(compute_line, quality_line, sign * goal) / spent
    return shares


Combined = tuple[float | str, float | str | None, float | str | None, str | None]


def _combined(values: list[float]) -> Combined:
    """(share, low, high, method) over seeds; ends that are not finite are written in words."""
    if all(math.isfinite(x) for x in values):
        logs = np.log(values)
        share = math.exp(float(logs.mean()))
        if len(values) < 2:
            return share, None, None, None
        ends = paired_t_interval(logs)
        return share, math.exp(ends.low), math.exp(ends.high), "paired t of logarithms"
    middle = float(np.median(values)) if len(set(values)) > 1 else values[0]
    if math.isnan(middle):  # half of the seeds at each end
        middle = math.inf
    if len(values) < 2:
        return _plain(middle), None, None, None
    interval = median_interval(values)
    return _plain(middle), _plain(interval.low), _plain(interval.high), f"median, {interval.method}"


def _plain(x: float) -> float | str:
    """JSON has no infinity, and a null would read as "not measured"."""
    return x if math.isfinite(x) else "not reached" if x > 0 else "before the shortest run"


def _outcomes(table: Table, arm: str, baseline: str) -> list[str]:
    """What a pair may be compared by: the tasks, and the arm's own held-out loss where that is comparable."""
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
            compute = {key: cost[key] for key in MEASURED if key in cost}
            if values and compute:
                point = {"arm": arm, "seed": seed, "fraction": fraction, **compute, "values": values}
                points.append(cast(Point, point))
    return points


def _sentence(row: TimeToQuality, names: Mapping[str, str]) -> str:
    arm, baseline = (names.get(name, name) for name in (row["arm"], row["baseline"]))
    where, by = outcome_words(row["outcome"]), row["by"]
    if not isinstance(row["share"], str):
        sentence = f"{arm} needs {100 * row['share']:.0f} % of the {by} of {baseline} to be as good {where}"
    elif row["share"] == "not reached":
        sentence = f"with all its {by}, {arm} did not become as good {where} as {baseline} at its end"
    else:
        sentence = f"{arm} was better {where} than {baseline} at its end even in its shortest companion run"
    low, high = (f"{100 * end:.0f} %" if isinstance(end, float) else end for end in (row["low"], row["high"]))
    facts = [f"{row['n']} seed{'s' if row['n'] > 1 else ''}"]
    facts += [f"95 % interval {low} to {high}"] if low != high else []
    facts += [f"{row['left_out']} left out because a run is missing"] if row["left_out"] else []
    facts += [f"{row['not_reached']} never as good"] if row["not_reached"] else []
    facts += [f"{row['reached_before']} as good even in the shortest run"] if row["reached_before"] else []
    return f"{sentence[0].upper()}{sentence[1:]} ({'; '.join(facts)})."
