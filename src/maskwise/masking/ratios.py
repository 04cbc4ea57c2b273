"""What a ratio is: a function of (step, total steps), or a distribution from which each row draws its own.

All published shapes of schedules depend on the progress f = t/T alone, so a schedule is a named curve over [0, 1]. A
*distribution* is a schedule that gives each row a ratio of its own, drawn by the hash. The curves are in ``schedules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, first_line
from maskwise.keys import Array
from maskwise.specs import numeric

Curve: TypeAlias = Callable[[float], float]


@dataclass(frozen=True)
class Schedule:
    """A masking ratio over training: ``schedule(step, total_steps)`` in [0, 1].

    Attributes:
        name: how a recipe writes it; equal names are equal schedules.
        curve: progress in [0, 1] to ratio.
        varies: False for a constant, which needs no total number of steps.

    Raises:
        MaskwiseError: a ratio outside 0 to 1 (NaN included) anywhere along the way, or arguments that are no
            numbers.
    """

    name: str
    curve: Curve = field(compare=False, repr=False)
    varies: bool = field(default=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        try:
            ratios = [float(self.curve(i / 200)) for i in range(201)]
        except (TypeError, ValueError, ArithmeticError) as error:
            raise MaskwiseError(f"schedule {self.name} gives no ratio: {error}", allowed="numbers") from None
        self._check(ratios)

    def _check(self, ratios: list[float]) -> None:
        # Sums such as 0.02 + 2 · 0.49 may pass 1 by a rounding error.
        outside = [r for r in ratios if not -1e-9 <= r <= 1 + 1e-9]
        if outside:
            worst = max(outside, key=lambda r: abs(r - 0.5))
            raise MaskwiseError(f"schedule {self.name} leaves the range", got=round(worst, 4), allowed="0 to 1")

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """The ratio at ``step`` of ``total_steps``; steps past the end keep the last value."""
        return min(max(self.curve(self.progress(step, total_steps)), 0.0), 1.0)

    def progress(self, step: int, total_steps: int | None) -> float:
        """The share of training that is over at ``step``, in [0, 1]."""
        if not self.varies:
            return 0.0
        if not total_steps or total_steps < 0:
            raise MaskwiseError(
                f"schedule {self.name} changes over time", do="say total_steps (how many there will be)"
            )
        return min(max(finite_number("step", step) / total_steps, 0.0), 1.0)

    def rows(self, draw_P: Array, step: int, total_steps: int | None) -> Array:
        """Ratios (P,) float64, from one uniform draw in (0, 1) a document piece."""
        return np.full_like(draw_P, self(step, total_steps))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Distribution(Schedule):
    """A ratio for each row, drawn from a distribution, which may change over time; as a plain schedule it is
    the mean.

    Attributes:
        quantile: (progress, (B,) float64 draws in (0, 1)) to (B,) ratios.
    """

    quantile: Callable[[float, Array], Array] = field(default=None, compare=False, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = np.array([2.0**-33, 0.5, 1 - 2.0**-33])
        self._check([r for i in range(21) for r in self.quantile(i / 20, ends).tolist()])

    def rows(self, draw_P: Array, step: int, total_steps: int | None) -> Array:
        return self.quantile(self.progress(step, total_steps), draw_P).clip(0, 1)


@dataclass(frozen=True)
class FunctionSchedule(Schedule):
    """A user's own function of (step, total steps); it is given 0 where nobody said how many steps there will
    be."""

    function: Callable[[int, int], float] = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        pass  # nothing to check: a function is asked at whole steps only

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        try:
            ratio = float(self.function(step, total_steps or 0))
        except Exception as error:  # whatever a function of the user's raises
            what = f"the ratio's {self.name} failed at step {step}"
            got = f"{type(error).__name__}: {first_line(error)}"
            raise MaskwiseError(what, got=got, do="return a number for (step, total steps)") from error
        return finite_number(f"the ratio of {self.name} at step {step}", ratio, least=0, most=1)


def no_curve(f: float) -> float:
    raise AssertionError("a function schedule has no curve")


def straight(a: float, b: float, f: float) -> float:
    """The curve from a to b in a straight line."""
    return a + f * (b - a)


@numeric
def uniform(low: float = 0.0, high: float = 1.0) -> Distribution:
    """Each row's ratio is uniform; over (0, 1) with ``objective: diffusion`` this is masked diffusion."""
    mean = (low + high) / 2
    quantile = partial(_between, low, high)
    return Distribution(f"uniform({low}, {high})", partial(straight, mean, mean), False, quantile)


@numeric
def beta(a: float, b: float) -> Distribution:
    """Each row's ratio is Beta(a, b)."""
    from scipy.special import betaincinv

    if not (a > 0 and b > 0):
        raise MaskwiseError("beta: both parameters must be positive", got=(a, b))
    grid, mean = betaincinv(a, b, np.linspace(0, 1, 4097)), a / (a + b)
    return Distribution(f"beta({a}, {b})", partial(straight, mean, mean), False, partial(_on_grid, grid))


@numeric
def bell(centre: float = 0.5, width: float = 0.15) -> Distribution:
    """Each row's ratio is normal around ``centre`` with the standard deviation ``width``, kept inside (0, 1).

    After Hong et al. 2026 (arXiv 2605.13026), who draw the rates of masked diffusion from a bell around the middle.
    """
    from scipy.special import ndtr, ndtri

    if not (0 <= centre <= 1 and 0.01 <= width <= 10):
        allowed = "0 ≤ centre ≤ 1, 0.01 ≤ width ≤ 10"
        raise MaskwiseError("bell", got=f"centre {centre}, width {width}", allowed=allowed)
    low, high = ndtr((0 - centre) / width), ndtr((1 - centre) / width)
    grid = (centre + width * ndtri(low + (high - low) * np.linspace(0, 1, 4097))).clip(0, 1)
    grid[0], grid[-1] = 0.0, 1.0
    mean = float((grid[:-1] + grid[1:]).mean() / 2)
    return Distribution(f"bell({centre}, {width})", partial(straight, mean, mean), False, partial(_on_grid, grid))


def cosine_rates() -> Distribution:
    """Each row's ratio is cos(π u / 2) for a uniform u, so that high ratios come more often.

    Chang et al. 2022 (MaskGIT, arXiv 2202.04200), section 3.3; the cosine schedule of masked diffusion.
    """
    mean = 2 / math.pi
    return Distribution("cosine-rates", partial(straight, mean, mean), False, _quarter_cosine)


@numeric
def mixture(*parts: float) -> Distribution:
    """Each row's ratio is one of several: ``mixture(0.15, 0.5, 0.5, 0.5)`` is (ratio, share) in turn."""
    ratios, shares = parts[::2], parts[1::2]
    if len(parts) % 2 or not parts or not all(0 <= r <= 1 for r in ratios):
        raise MaskwiseError("mixture takes pairs of ratio (0 to 1) and share", got=parts)
    if not min(shares) >= 0 or not 0 < sum(shares) < math.inf:
        raise MaskwiseError("mixture: shares are numbers ≥ 0, one of them above", got=shares)
    mean = sum(r * s for r, s in zip(ratios, shares)) / sum(shares)
    edges = np.cumsum(shares) / sum(shares)
    quantile = partial(_choice, np.array(ratios, np.float64), edges[:-1])
    return Distribution(f"mixture({', '.join(map(str, parts))})", partial(straight, mean, mean), False, quantile)


def _between(low: float, high: float, f: float, draw_P: Array) -> Array:
    return low + (high - low) * draw_P


def _quarter_cosine(f: float, draw_P: Array) -> Array:
    return np.cos(math.pi / 2 * (1 - draw_P))


def _on_grid(grid: Array, f: float, draw_P: Array) -> Array:
    return np.interp(draw_P * (len(grid) - 1), np.arange(len(grid)), grid)


def _choice(ratios: Array, edges: Array, f: float, draw_P: Array) -> Array:
    return ratios.take(np.searchsorted(edges, draw_P, side="right"))
