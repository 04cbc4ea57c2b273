"""Choices made from data, as pure functions of scores: which setting an arm takes, and which arm is hopeless.

Both look at dev rows only, and a setting is chosen on seeds that are never reported (methods, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskwise.study.statistics import interval_by_rule

Scores = dict[str, list[float]]
"""By outcome, one number per seed; more is better."""


def choose(points: Sequence[Mapping[str, Any]], scores: Sequence[Scores | None]) -> dict[str, Any]:
    """The best point of a grid: the highest mean over outcomes, each standardised over all points and seeds.

    Args:
        points: settings by dotted name, in the order in which ties are settled.
        scores: of every point; None for one that failed with any seed, which is never taken.

    Returns:
        ``means`` (None for a failed point), ``chosen`` (a place, None if all failed), ``border``: whether any chosen
        number is the smallest or largest that was tried, so that a better one may lie outside.
    """
    known = [one for one in scores if one is not None]
    spread = {
        outcome: (float(np.mean(values)), float(np.std(values)) or 1.0)
        for outcome in (known[0] if known else ())
        for values in [[value for one in known for value in one[outcome]]]
    }
    means = [
        None if one is None
        else float(np.mean([(np.mean(one[o]) - centre) / sd for o, (centre, sd) in spread.items()]))
        for one in scores
    ]  # fmt: skip
    best = max((mean for mean in means if mean is not None), default=None)
    if best is None:
        return {"means": means, "chosen": None, "border": False}
    # Means that differ by rounding only are a tie, which the first wins.
    chosen = next(i for i, mean in enumerate(means) if mean is not None and mean >= best - 1e-9)
    return {"means": means, "chosen": chosen, "border": _on_border(points, chosen)}


def _on_border(points: Sequence[Mapping[str, Any]], chosen: int) -> bool:
    for key, value in points[chosen].items():
        tried = {point[key] for point in points if isinstance(point.get(key), int | float)}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            return True
    return False


def hopeless(scores: Mapping[str, Scores], *, margin: float) -> list[dict[str, Any]]:
    """Arms whose paired interval against the best arm lies wholly below −margin.

    Args:
        scores: by arm, on the same seeds. An outcome is divided by its spread between runs about their arm's mean.
        margin: in these spreads.

    Returns:
        ``arm``, ``best``, ``runs``, ``mean``, ``low``, ``high`` of each.
    """
    outcomes = list(next(iter(scores.values()), {}))
    quality: dict[str, Any] = dict.fromkeys(scores, 0.0)
    for outcome in outcomes:
        runs = {arm: np.array(one[outcome], float) for arm, one in scores.items()}
        freedom = sum(len(x) - 1 for x in runs.values())
        sd = math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in runs.values()) / max(1, freedom)) or 1.0
        for arm, x in runs.items():
            quality[arm] = quality[arm] + x / sd / len(outcomes)
    if len(quality) < 2:
        return []
    best = max(quality, key=lambda arm: quality[arm].mean())
    found = []
    for arm, values in quality.items():
        if arm == best:
            continue
        difference = values - quality[best]
        interval = interval_by_rule(difference)
        if interval.high < -margin:
            facts = {"mean": float(difference.mean()), "low": interval.low, "high": interval.high}
            found.append({"arm": arm, "best": best, "runs": len(difference), **facts})
    return found
