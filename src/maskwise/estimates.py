"""The estimate of a row of summary.json in the unit that people read."""

from __future__ import annotations

from typing import NamedTuple

from maskwise.constants import NATS
from maskwise.files import Contrast, Estimate


class Shown(NamedTuple):
    """The estimate of a row, arm − baseline, in points, nats, spreads between seeds, or the unit of
    an evaluation.
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

    def ends(self) -> str:
        """The interval as seen from the side that is ahead: "−0.4 to 4.6"."""
        sign = -1 if (self.mean or 0.0) < 0 else 1
        low, high = sorted((sign * (self.low or 0.0), sign * (self.high or 0.0)))
        return f"{low:.{self.digits}f} to {high:.{self.digits}f}".replace("-", "−")


def shown(row: Contrast) -> Shown:
    """The estimate of a row in the unit that people read; spreads only where tasks have no common
    unit.
    """
    estimate: Estimate = {"mean": row["mean"], "low": row["low"], "high": row["high"]}
    scale, digits, unit = 1.0, 3, row["unit"]
    natural = row.get("natural")
    if unit == "SDs":
        # Tasks of different scale: the plain mean may point elsewhere than the standardised one.
        agrees = natural is not None and (natural["mean"] or 0.0) * (row["mean"] or 0.0) >= 0
        if natural is not None and agrees:
            estimate, unit = natural, "score"
        else:
            unit, digits = "spreads between seeds", 1
    if unit == "score" and row["metric"] != NATS:
        scale, digits = 100.0, 1
        unit = f"{row['metric']} points" if row["metric"] else "points"
    elif unit in ("score", NATS):
        unit, digits = NATS, 3
    mean, low, high = (
        None if x is None else scale * x
        for x in (estimate["mean"], estimate["low"], estimate["high"])
    )
    return Shown(mean, low, high, scale, unit, digits)
