"""What the arms of an adaptation forgot of general text: estimates, which are not tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from maskwise.base.constants import ASSUMED_MARGINS, NATS
from maskwise.report.reading import read_outcomes
from maskwise.results.estimates import with_minus
from maskwise.results.files import Estimate
from maskwise.studies.adapt.request import GENERAL_MASKS, PASSAGES
from maskwise.verdict import statistics
from maskwise.verdict.outcomes import finite_runs


class Forgotten(TypedDict):
    """What an arm forgot of general text, against the start (not tested).

    ``mean``, ``low`` and ``high`` are the paired difference in ``unit`` and its 95 % interval: nats
    of the loss, or points of the mean reciprocal rank. The interval is None below six runs.
    ``finding`` compares the interval with ``margin``: "more", "less" (between ± the margin),
    "better" or "open". ``masks`` are those with which a loss is measured, "token" or "whole-word":
    an arm that trains with other masks than the start becomes worse at the masks of the start on
    any text. They are None for retrieval.
    """

    arm: str
    outcome: str
    masks: str | None
    unit: str
    mean: float
    low: float | None
    high: float | None
    runs: int
    margin: float
    finding: str


MASKS = {"token": "with masks of single tokens", "whole-word": "with masks of whole words"}
MARGINS = {NATS: ASSUMED_MARGINS[NATS], "points": 2.0}
"""Changes on general text that are small."""
FINDINGS = {
    "more": "more than {margin} forgotten",
    "less": "less than {margin} either way",
    "better": "more than {margin} gained",
    "open": "more or less than {margin} is open",
}


def forgotten_of(out: Path) -> list[Forgotten]:
    """Return what each arm forgot of general text; [] if it was not measured."""
    table = read_outcomes(out)
    start = table.start if table else None
    if table is None or start is None:
        return []
    found: list[Forgotten] = []
    measured: dict[str, str | None] = {
        f"evaluation:{name}:{NATS}": masks for name, masks in GENERAL_MASKS.items()
    }
    for outcome, masks in (measured | {PASSAGES: None}).items():
        if outcome not in table.scales:
            continue
        scale = table.scales[outcome]
        unit, factor = (NATS, 1.0) if scale.unit == NATS else ("points", 100.0)
        for arm in table.study["arms"]:
            runs = table.runs(outcome, arm) - table.runs(outcome, start)
            differences = factor * finite_runs(runs)
            if not len(differences) or table.incomparable(arm, start, outcome):
                continue
            largest = factor * table.largest(outcome, arm, start)
            estimate = statistics.estimated(differences, scores=largest)
            found.append(
                {
                    "arm": arm,
                    "outcome": outcome,
                    "masks": masks,
                    "unit": unit,
                    "mean": statistics.sign_flip_estimate(differences, scores=largest),
                    "low": estimate["low"],
                    "high": estimate["high"],
                    "runs": len(differences),
                    "margin": MARGINS[unit],
                    "finding": _finding(estimate, MARGINS[unit], largest, sign=scale.sign),
                }
            )
    return found


def _finding(estimate: Estimate, margin: float, largest: float, *, sign: int) -> str:
    """Compare an interval with a margin.

    Args:
        estimate, margin: the interval and the margin, in one unit.
        largest: the largest absolute value that was subtracted.
        sign: −1 if lower is better.
    """
    if estimate["low"] is None or estimate["high"] is None:
        return "open"
    low, high = sorted([sign * estimate["low"], sign * estimate["high"]])
    # An end that is equal to the margin but for rounding errors is neither inside nor outside.
    rounding = float(statistics.rounding_of(largest))
    if high < -margin - rounding:
        return "more"
    if low > margin + rounding:
        return "better"
    inside = max(-low, high) < margin - rounding
    return "less" if inside else "open"


def forgotten_words(found: Sequence[Forgotten]) -> str:
    """Return a sentence about general text; "" if it was not measured."""
    if not found:
        return ""
    changes: dict[str | None, list[str]] = {}
    for each in found:
        changes.setdefault(each["masks"], []).append(_change_words(each))
    parts = []
    for masks, changed in changes.items():
        said = "; ".join(changed)
        parts.append(said if masks is None or len(changes) == 1 else f"{MASKS[masks]}, {said}")
    what = "loss" if found[0]["unit"] == NATS else "retrieval"
    said = "; ".join(parts)
    return f"General text, {what} against the start (an estimate, not tested): {said}."


def _change_words(each: Forgotten) -> str:
    """Return the change of one arm, its interval and what that says."""
    unit = each["unit"]
    digits = 3 if unit == NATS else 1
    interval = "too few runs for an interval"
    if each["low"] is not None:
        ends = f"{each['low']:+.{digits}f} to {each['high']:+.{digits}f}"
        said = FINDINGS[each["finding"]].format(margin=f"{each['margin']:g} {unit}")
        interval = f"95 % interval {ends}: {said}"
    change = with_minus(f"{each['mean']:+.{digits}f} {unit} ({interval})")
    return f"{each['arm']} {change}"
