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
from typing import Any

import numpy as np

from maskwise.study.statistics import median_interval, paired_t_interval
from maskwise.study.verdict.measures import Measures
from maskwise.study.verdict.table import REFERENCE, Table
from maskwise.study.verdict.words import outcome_words

MEASURED = ("steps", "tokens", "targets", "flops")


def efficiency(table: Table, pairs: Sequence[tuple[str, str]], names: Mapping[str, str]) -> dict[str, Any]:
    """{"points": every run's quality and compute, "time_to_quality": a row per pair, outcome and quantity}."""
    lengths = {**table.companions, 1.0: table}
    rows = []
    for arm, baseline in pairs if table.companions else ():
        for outcome in _outcomes(table, arm, baseline):
            for by in MEASURED:
                row = time_to_quality(
                    lengths, arm, baseline, outcome, by=by, higher=table.higher_is_better(outcome)
                )
                if row:
                    rows.append(row | {"sentence": _told(row, names)})
    return {"points": _points(lengths, table), "time_to_quality": rows}


def time_to_quality(
    lengths: Mapping[float, Measures], arm: str, baseline: str, outcome: str, *, by: str, higher: bool = True
) -> dict[str, Any] | None:
    """The arm's compute to the baseline's final quality, as a share of the baseline's; None without companions."""
    shares = _shares(lengths, arm, baseline, outcome, by=by, higher=higher)
    if not shares:
        return None
    own = _shares(lengths, baseline, baseline, outcome, by=by, higher=higher)
    values = list(shares.values())
    return {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "by": by,
        "n": len(values),
        "left_out": len(lengths[1.0].outcomes[outcome][baseline]) - len(values),
        "not_reached": sum(x == math.inf for x in values),
        "reached_before": sum(x == -math.inf for x in values),
        **_summed(values),
        "by_itself": _summed(list(own.values()))["share"] if own else None,
        "shares": {str(seed): _plain(x) for seed, x in shares.items()},
    }


def crossing(compute: Sequence[float], quality: Sequence[float], goal: float) -> float:
    """Where the line through (compute, quality), higher better, first reaches goal; ±inf outside of it."""
    if quality[0] >= goal:
        return -math.inf
    for (x0, y0), (x1, y1) in zip(zip(compute, quality), zip(compute[1:], quality[1:])):
        if y1 >= goal:
            return float(x0 + (goal - y0) / (y1 - y0) * (x1 - x0))
    return math.inf


def _shares(
    lengths: Mapping[float, Measures], arm: str, baseline: str, outcome: str, *, by: str, higher: bool
) -> dict[int, float]:
    full, sign, found = lengths[1.0], 1 if higher else -1, {}
    for seed, goal in full.outcomes.get(outcome, {}).get(baseline, {}).items():
        whole = full.cost.get((baseline, seed), {}).get(by)
        line = []
        for measures in lengths.values():
            quality = measures.outcomes.get(outcome, {}).get(arm, {}).get(seed)
            compute = measures.cost.get((arm, seed), {}).get(by)
            if quality is not None and compute:
                line.append((compute, sign * quality))
        if whole and len(line) == len(lengths) > 1:  # a seed without one of its lengths is no curve
            compute_line, quality_line = zip(*sorted(line))
            found[seed] = crossing(compute_line, quality_line, sign * goal) / whole
    return found


def _summed(values: list[float]) -> dict[str, Any]:
    """share, low, high, method; ends that are not finite are None and told by not_reached and reached_before."""
    if all(math.isfinite(x) for x in values):
        logs = np.log(values)
        interval = paired_t_interval(logs) if len(values) > 1 else None
        ends = [math.exp(x) for x in interval[:2]] if interval else [None, None]
        method = "paired t of logarithms" if interval else None
        return {"share": math.exp(float(logs.mean())), "low": ends[0], "high": ends[1], "method": method}
    middle = float(np.median(values)) if len(set(values)) > 1 or len(values) == 1 else values[0]
    if math.isnan(middle):  # half of the seeds at each end
        middle = math.inf
    if len(values) < 2:
        return {"share": _plain(middle), "low": None, "high": None, "method": None}
    interval = median_interval(values)
    return {
        "share": _plain(middle),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "method": f"median, {interval.method}",
    }


def _plain(x: float) -> float | str:
    """JSON has no infinity, and a null would read as "not measured"."""
    return x if math.isfinite(x) else "not reached" if x > 0 else "before the shortest run"


def _outcomes(table: Table, arm: str, baseline: str) -> list[str]:
    """What a pair may be compared by: the tasks, and the arm's own held-out loss where that is comparable."""
    found = ["tasks"] if table.tasks else []
    if REFERENCE not in (arm, baseline) and not table.incomparable(arm, baseline):
        found += [name for name in table.own_heldout(arm) if name in table.outcomes]
    return found


def _points(lengths: Mapping[float, Measures], table: Table) -> list[dict[str, Any]]:
    """Every run of every length: its plain qualities (scores, their mean, losses) and its compute."""
    points = []
    for fraction, measures in lengths.items():
        for (arm, seed), cost in measures.cost.items():
            values = {
                name: measures.outcomes[name][arm][seed]
                for name in [*table.tasks, *table.heldout, *table.evaluations]
                if seed in measures.outcomes.get(name, {}).get(arm, {})
            }
            scores = [values[task] for task in table.tasks if task in values]
            if len(scores) > 1 and len(scores) == len(table.tasks):
                values = {"mean over tasks": float(np.mean(scores)), **values}
            compute = {key: cost[key] for key in MEASURED if cost.get(key)}
            if values and compute:
                points.append({"arm": arm, "seed": seed, "fraction": fraction, **compute, "values": values})
    return points


def _told(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    arm, baseline = (names.get(row[side], row[side]) for side in ("arm", "baseline"))
    where, by = outcome_words(row["outcome"]), row["by"]
    if row["share"] == "not reached":
        told = f"{arm} did not reach, with all its {by}, what {baseline} has at its end {where}"
    elif isinstance(row["share"], str):
        told = f"{arm} is better than {baseline} at its end {where} before its shortest companion has ended"
    else:
        told = f"{arm} needs {100 * row['share']:.0f} % of the {by} of {baseline} to be as good {where}"
    ends = [f"{100 * x:.0f} %" if isinstance(x, float) else x for x in (row["low"], row["high"])]
    facts = [f"{row['n']} seed{'s' if row['n'] > 1 else ''}"]
    facts += [f"95 % interval {ends[0]} to {ends[1]}"] if ends[0] != ends[1] else []
    for key, words in (
        ("left_out", "left out: a run of theirs is missing"),
        ("not_reached", "never got there"),
        ("reached_before", "were there before the shortest run"),
    ):
        facts += [f"{row[key]} {words}"] if row[key] else []
    told = f"{told} ({'; '.join(facts)})."
    return told[0].upper() + told[1:]
