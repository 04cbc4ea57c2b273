"""The estimate of a row of summary.json in the unit that people read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maskwise.constants import NATS
from maskwise.files import Contrast, Estimate

SPREADS = "spreads between seeds"


@dataclass(frozen=True)
class Shown:
    """The estimate of a row, above 0 where the arm is better than the baseline.

    ``unit`` is points, nats, spreads between seeds, or that of an evaluation.
    """

    mean: float | None
    low: float | None
    high: float | None
    scale: float
    unit: str
    digits: int

    def size(self) -> str:
        """The mean without its sign: "2.1 accuracy points"."""
        return f"{abs(self.mean or 0.0):.{self.digits}f} {self.unit}"

    def ends(self, *, ahead: bool = False) -> str:
        """The interval, "−0.4 to 4.6"; ``ahead``: as seen from the side that is ahead."""
        low = self.low or 0.0
        high = self.high or 0.0
        if ahead and (self.mean or 0.0) < 0:
            low, high = -high, -low
        return with_minus(f"{low:.{self.digits}f} to {high:.{self.digits}f}")


def shown(row: Contrast) -> Shown:
    """The estimate of a row in the unit that people read.

    Spreads are shown only where tasks have no common unit, or where the plain mean points elsewhere
    than the standardised one.
    """
    estimate: Estimate = {"mean": row["mean"], "low": row["low"], "high": row["high"]}
    scale = 1.0
    digits = 3
    unit = row["unit"]
    if unit == "SDs":
        unit = SPREADS
        digits = 1
        natural = row.get("natural")
        if natural is not None and (natural["mean"] or 0.0) * (row["mean"] or 0.0) >= 0:
            estimate = natural
            unit = "score"
            digits = 3
    if unit == "score" and row["metric"] == NATS:
        unit = NATS
    elif unit == "score":
        scale = 100.0
        digits = 1
        unit = f"{row['metric'] or ''} points".lstrip()
    ends = estimate["low"], estimate["high"]
    factor = scale
    if not row["higher_is_better"]:
        ends = estimate["high"], estimate["low"]
        factor = -scale
    # Adding 0 turns −0 into 0.
    mean, low, high = (
        None if end is None else factor * end + 0.0 for end in (estimate["mean"], *ends)
    )
    return Shown(mean, low, high, scale, unit, digits)


def with_minus(text: str) -> str:
    """With the sign of minus in place of the hyphen before a number."""
    return re.sub(r"-(?=[\d.])", "−", text)
