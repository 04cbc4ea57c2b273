"""Tables beside the contrasts, described and not tested: shares of an oracle's gain, transfer
between tasks, and quality against compute.

A policy that is learned fails outright in some runs, and the mean over failed and other runs has no
interval that covers: with one failure in ten, Fieller's covers 67 % at ten runs. So a share and its
interval are those of the runs that learned something, and beside them stands how many failed, with
the exact binomial interval. A run fails where it gains no more than ``FAILED`` of the oracle's mean
gain, in arms whose better half gains more than ``LEARNS``. The rule looks at each run alone: with
gaps between runs, failures pass for weak runs in every third study of 20 runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import REFERENCE
from maskwise.estimates import with_minus
from maskwise.files import Crossing, Efficiency, GainShare, Point, TransferCell
from maskwise.study.outcomes import QUANTITIES, Numbers, Outcomes
from maskwise.study.statistics import binomial_interval, estimated, ratio_interval
from maskwise.study.verdict.words import Names, outcome_words

LEARNS = 0.25
FAILED = 0.1
"""As parts of the oracle's mean gain."""


# Shares of a gain


def gain_shares(table: Outcomes, best: str, baseline: str, names: Names) -> list[GainShare]:
    """For every other arm and task, the share of what ``best`` adds to ``baseline`` that it adds.

    Without tasks the shares are those of held-out losses.
    """
    arms = [arm for arm in table.study["arms"] if arm not in (best, baseline)]
    outcomes = table.tasks or table.heldout
    return [
        _gain_share(table, arm, best, baseline, outcome, names)
        for outcome in outcomes
        for arm in arms
    ]


def _gain_share(
    table: Outcomes, arm: str, best: str, baseline: str, outcome: str, names: Names
) -> GainShare:
    gains = _gains(table, outcome, arm, baseline)
    whole = _gains(table, outcome, best, baseline)
    paired = np.isfinite(gains + whole)
    gains = gains[paired]
    whole = whole[paired]
    where = outcome_words(outcome)
    base = names.get(baseline, baseline)
    line: GainShare = {
        "arm": arm,
        "best": best,
        "baseline": baseline,
        "n": len(gains),
        "failed": 0,
        "failed_low": None,
        "failed_high": None,
        "task": outcome if outcome in table.tasks else where.removeprefix("in "),
        "share": None,
        "low": None,
        "high": None,
        "sentence": "",
    }
    why = _why_none(table, arm, best, baseline, outcome)
    if why is not None:
        line["sentence"] = f"No share of {arm} {where}: {why}."
        return line
    if not len(gains) or whole.mean() <= 0:
        line["sentence"] = f"{best} does not improve on {base} {where}: there is no gain to share."
        return line
    learned = learned_something(gains, whole)
    line["failed"] = int((~learned).sum())
    failing = binomial_interval(line["failed"], line["n"])
    line["failed_low"], line["failed_high"] = failing
    share = float(gains[learned].mean() / whole[learned].mean())
    line["share"] = share
    interval = "no interval"
    ends = ratio_interval(gains[learned], whole[learned]) if learned.sum() > 1 else None
    if ends:
        line["low"], line["high"] = ends
        interval = f"95 % interval {_percent(*ends)}"
    failed = ""
    if line["failed"]:
        runs = f"{line['failed']} of {line['n']} runs failed"
        failed = f"; {runs} (95 % interval {_percent(*failing)})"
    gained = f"{_percent(share)} of what {best} adds to {base} {where}"
    runs = f"in the {learned.sum()} runs that learned something ({interval})"
    line["sentence"] = f"{arm} has {gained} {runs}{failed}."
    return line


def learned_something(gains: Numbers, whole: Numbers) -> NDArray[np.bool_]:
    """Which runs did not fail outright, as an array of truth values.

    >>> whole = np.full(6, 0.7)
    >>> learned_something(np.array([0.01, 0.6, 0.62, 0.58, 0.61, 0.6]), whole).tolist()
    [False, True, True, True, True, True]

    Args:
        gains: what an arm adds to the baseline, by pair of runs.
        whole: what the oracle adds, in the same pairs.
    """
    shares = gains / whole.mean()
    better_half = np.sort(shares)[len(shares) // 2 :]
    # An arm that gains little in all its runs has no failed ones.
    return (shares > FAILED) | (better_half.mean() <= LEARNS)


def _gains(table: Outcomes, outcome: str, arm: str, baseline: str) -> Numbers:
    """What an arm adds to the baseline by seed: above 0 is better."""
    differences = table.runs(outcome, arm) - table.runs(outcome, baseline)
    return differences if table.measures[outcome].higher_is_better else -differences


def _why_none(table: Outcomes, arm: str, best: str, baseline: str, outcome: str) -> str | None:
    """Why there is no share; None where there is one."""
    gate = table.gate
    failed = [(gate["arm"], gate["baseline"]), *table.closed] if gate else []
    if (best, baseline) in failed or (arm, baseline) in table.closed:
        return "the positive control failed"
    if len(table.formats(arm) | table.formats(best)) > 1:
        return "the arms write different output formats"
    why = table.incomparable(arm, baseline, outcome) or table.incomparable(best, baseline, outcome)
    return f"its losses are not comparable ({why.replace('-', ' ')})" if why else None


def _percent(*shares: float) -> str:
    return with_minus(" to ".join(f"{100 * share:.0f} %" for share in shares))


# Transfer


def transfer_cells(
    table: Outcomes, learned: Mapping[str, str], baseline: str
) -> list[TransferCell]:
    """What every learned policy adds to the baseline on every task, with its 95 % interval.

    Args:
        learned: by arm, the task that its policy was learned from.
    """
    cells: list[TransferCell] = []
    for arm, source in learned.items():
        for task in table.tasks:
            gains = _gains(table, task, arm, baseline)
            gains = gains[np.isfinite(gains)]
            cells.append(
                {
                    "arm": arm,
                    "learned_from": source,
                    "task": task,
                    "n": len(gains),
                    **estimated(gains),
                }
            )
    return cells


# Quality against compute


def efficiency(table: Outcomes, pairs: Sequence[tuple[str, str]]) -> Efficiency:
    """Every run's quality and compute; and where arms first reach the baseline's final quality.

    Companion runs are whole runs with a share of the steps. For each seed the arm's qualities at
    its lengths are joined by straight lines over the compute. A first crossing is the share of the
    baseline's whole compute at which they reach what the baseline has at its end. The first
    crossing of a noisy curve comes early, and straight lines under a concave curve come late.
    """
    crossings: list[Crossing] = []
    for arm, baseline in pairs if len(table.lengths) > 1 else ():
        outcomes = ["tasks"] if table.tasks else []
        if REFERENCE not in (arm, baseline):
            own = [name for name in table.own_heldout(arm) if name in table.measures]
            outcomes += [name for name in own if not table.incomparable(arm, baseline, name)]
        for outcome in outcomes:
            for by in QUANTITIES:
                shares = _first_crossings(table, arm, baseline, outcome, f"cost:{by}")
                row = {"arm": arm, "baseline": baseline, "outcome": outcome, "by": by}
                crossings += [cast(Crossing, {**row, "shares": shares})] if shares else []
    return {"points": _points(table), "crossings": crossings}


def _first_crossings(
    table: Outcomes, arm: str, baseline: str, outcome: str, cost: str
) -> dict[str, float | None]:
    """By seed; None where the quality is never reached. A seed that lacks a length is left out."""
    if cost not in table.values:
        return {}
    sign = 1 if table.measures[outcome].higher_is_better else -1
    quality = sign * table.values[outcome][:, table.arms.index(arm)]
    compute = table.values[cost][:, table.arms.index(arm)]
    goals = sign * table.runs(outcome, baseline)
    spent = table.runs(cost, baseline)
    shares: dict[str, float | None] = {}
    for place, seed in enumerate(table.study["seeds"]):
        points = sorted(zip(compute[:, place].tolist(), quality[:, place].tolist()))
        if np.isfinite([*np.ravel(points), goals[place], spent[place]]).all():
            at = crossing(points, float(goals[place]))
            shares[str(seed)] = None if at is None else at / float(spent[place])
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


def _points(table: Outcomes) -> list[Point]:
    """Every run of every length: its plain scores, their mean, its losses, and its compute."""
    points: list[Point] = []
    for line in sorted(table.lines["cost"], key=lambda line: line.get("fraction", 1.0)):
        place = table.place(line)
        known = {
            name: float(table.values[name][place])
            for name in (*table.tasks, *table.heldout, *table.evaluations)
        }
        values = {name: value for name, value in known.items() if math.isfinite(value)}
        scores = [values[task] for task in table.tasks if task in values]
        if len(scores) > 1 and len(scores) == len(table.tasks):
            values = {"mean over tasks": float(np.mean(scores)), **values}
        spent = {key: value for key, value in line.items() if key in QUANTITIES and value}
        if values and spent:
            run = {"arm": line["arm"], "seed": line["seed"], "fraction": table.lengths[place[0]]}
            points.append(cast(Point, {**run, **spent, "values": values}))
    return points
