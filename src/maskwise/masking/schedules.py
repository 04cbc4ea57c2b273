"""How much to mask, at step t of T: a number, a published schedule, a distribution over rows, or a
function of yours.

All published shapes depend on the progress f = t/T alone, so a schedule is a named curve over [0,
1]. A *distribution* also gives each row a ratio of its own, drawn by the hash. Names are those of
recipes: ``linear(0.30, 0.15)``; in Python ``schedules.linear(0.30, 0.15)``. To add one, write a
    function that returns its curve, and decorate it ``published``.

Sources: time-variant masking (Yang et al. 2023, arXiv 2208.10806, section 3.1 and its released
    code), dynamic
masking rate schedules (Ankner et al. 2023, arXiv 2305.15096).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from numbers import Real
from typing import NamedTuple, ParamSpec, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, first_line
from maskwise.keys import Array
from maskwise.specs import Call, build

P = ParamSpec("P")
Curve: TypeAlias = Callable[[float], float]
"""From progress in [0, 1] to a ratio."""
Quantile: TypeAlias = Callable[[float, Array], Array]
"""From progress and (P,) draws in (0, 1) to (P,) ratios."""


class Shape(NamedTuple):
    """What a published schedule is, but for its name; the fields are those of ``Schedule``."""

    curve: Curve
    varies: bool = True
    quantile: Quantile | None = None


@dataclass(frozen=True)
class Schedule:
    """A masking ratio over training: ``schedule(step, total_steps)`` in [0, 1].

    Attributes:
        name: how a recipe writes it; equal names are equal schedules, and the name makes it again.
        curve: progress in [0, 1] to ratio; the mean where each row draws its own.
        varies: False for a constant, which needs no total number of steps.
        quantile: (progress, (P,) float64 draws in (0, 1)) to (P,) ratios, where each row draws its
            own; else None.

    Raises:
        MaskwiseError: a ratio outside 0 to 1 (NaN included) anywhere along the way.
    """

    name: str
    curve: Curve = field(compare=False, repr=False)
    varies: bool = field(default=True, compare=False, repr=False)
    quantile: Quantile | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        ratios = [float(self.curve(i / 200)) for i in range(201)]
        if self.quantile is not None:
            draws = np.array([2.0**-33, 0.5, 1 - 2.0**-33])
            for i in range(21):
                ratios += self.quantile(i / 20, draws).tolist()
        # Sums such as 0.02 + 2 · 0.49 may pass 1 by a rounding error.
        outside = [r for r in ratios if not -1e-9 <= r <= 1 + 1e-9]
        if outside:
            worst = max(outside, key=lambda r: abs(r - 0.5))
            raise MaskwiseError(
                f"schedule {self.name} leaves the range", got=round(worst, 4), allowed="0 to 1"
            )

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """The ratio at ``step`` of ``total_steps``; steps past the end keep the last value."""
        return min(max(float(self.curve(self.progress(step, total_steps))), 0.0), 1.0)

    def progress(self, step: int, total_steps: int | None) -> float:
        """The share of training that is over at ``step``, in [0, 1]."""
        if not self.varies:
            return 0.0
        if not total_steps or total_steps < 0:
            do = "say total_steps (how many there will be)"
            raise MaskwiseError(f"schedule {self.name} changes over time", do=do)
        return min(max(finite_number("step", step) / total_steps, 0.0), 1.0)

    def rows(self, draw_P: Array, step: int, total_steps: int | None) -> Array:
        """Ratios (P,) float64, from one uniform draw in (0, 1) a document piece."""
        return self.drawn(self.progress(step, total_steps), draw_P).clip(0, 1)

    def drawn(self, f: float, draw_P: Array) -> Array:
        """(P,) ratios at the progress f."""
        if self.quantile is None:
            return np.full_like(draw_P, self.curve(f))
        return self.quantile(f, draw_P)

    def __reduce__(self) -> tuple[object, ...]:
        return schedule, (self.name,)  # curves are closures, which cannot be pickled

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FunctionSchedule(Schedule):
    """A user's own function of (step, total steps); it is given 0 where nobody said how many steps
    there will be."""

    function: Callable[[int, int], float] = field(kw_only=True, repr=False)

    def __post_init__(self) -> None:
        pass  # nothing to check: a function is asked at whole steps only

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        try:
            ratio = float(self.function(step, total_steps or 0))
        except Exception as error:  # whatever a function of the user's raises
            what = f"the ratio's {self.name} failed at step {step}"
            got = f"{type(error).__name__}: {first_line(error)}"
            raise MaskwiseError(
                what, got=got, do="return a number for (step, total steps)"
            ) from error
        return finite_number(f"the ratio of {self.name} at step {step}", ratio, least=0, most=1)

    def rows(self, draw_P: Array, step: int, total_steps: int | None) -> Array:
        return np.full_like(draw_P, self(step, total_steps))

    def __reduce__(self) -> tuple[object, ...]:
        return schedule, (self.function,)


def constant(p: float = 0.15) -> Schedule:
    """p throughout.

    >>> constant(0.15)(step=7)
    0.15
    """
    p = float(finite_number("a masking ratio", p, least=0, most=1))
    return Schedule(f"constant({p})", lambda f: p, varies=False)


SCHEDULES: dict[str, Callable[..., Schedule]] = {"constant": constant}
"""All schedules by the names that recipes write."""


def published(shape_of: Callable[P, Curve | Shape]) -> Callable[P, Schedule]:
    """Make a function that returns a curve the maker of a schedule, and enter it in ``SCHEDULES``.

    Its arguments are finite numbers (numpy's become Python's), or schedules where they are
    annotated ``Spec``.
    """
    signature = inspect.signature(shape_of)
    name = shape_of.__name__.replace("_", "-")

    @wraps(shape_of)
    def maker(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for argument, value in bound.arguments.items():
            parameter, what = signature.parameters[argument], f"{argument} of {name}"
            if parameter.kind is parameter.VAR_POSITIONAL:
                bound.arguments[argument] = tuple(finite_number(what, each) for each in value)
            elif parameter.annotation == "Spec":
                bound.arguments[argument] = schedule(value)
            else:
                bound.arguments[argument] = finite_number(what, value)
        shown = ", ".join(map(str, bound.args))
        shape = shape_of(*bound.args, **bound.kwargs)
        if not isinstance(shape, Shape):
            shape = Shape(shape)
        return Schedule(f"{name}({shown})" if shown else name, *shape)

    SCHEDULES[name] = maker
    return maker


@published
def linear(start: float, end: float) -> Curve:
    """From ``start`` to ``end`` in a straight line (Ankner et al.: 0.30 → 0.15 for BERT-base).

    >>> round(linear(0.30, 0.15)(step=500, total_steps=1000), 3)
    0.225
    """
    return lambda f: start + f * (end - start)


@published
def cosine(start: float, end: float) -> Curve:
    """From ``start`` to ``end`` along half a cosine."""
    return lambda f: end + (start - end) * (1 + math.cos(math.pi * f)) / 2


@published
def step(start: float, end: float, at: float = 0.5) -> Curve:
    """``start`` before the share ``at`` of training, ``end`` from there."""
    if not 0 <= at <= 1:
        raise MaskwiseError("step: at must be a share of training", got=at, allowed="0 to 1")
    return lambda f: start if f < at else end


@published
def linear_decay(p: float = 0.15) -> Curve:
    """2p (1 − f)."""
    return lambda f: 2 * p - f * (2 * p)


@published
def cosine_decay(p: float = 0.15) -> Curve:
    """p (1 + cos πf) + 0.02: from 2p + 0.02 to 0.02."""
    return lambda f: p * (1 + math.cos(math.pi * f)) + 0.02


@published
def linear_ascend(p: float = 0.15) -> Curve:
    """2p f."""
    return lambda f: f * (2 * p)


@published
def square_above(p: float = 0.15) -> Curve:
    """2p (1 − f²) + 0.01."""
    return lambda f: 2 * p * (1 - f**2) + 0.01


@published
def square_below(p: float = 0.15) -> Curve:
    """2p (1 − f)²."""
    return lambda f: 2 * p * (1 - f) ** 2


@published
def triangle(p: float = 0.15) -> Curve:
    """Up to 2p at half-time, then down to 0."""
    return lambda f: 4 * p * min(f, 1 - f)


@published
def vee(p: float = 0.15) -> Curve:
    """Down from 2p to 0 at half-time, then up again; 0.01 above that throughout."""
    return lambda f: 2 * p * abs(1 - 2 * f) + 0.01


@published
def warm_decay(p: float = 0.15, warm: float = 0.4) -> Curve:
    """Up from 0 to 2p over the share ``warm`` of training, then down to 0."""
    if not 0 < warm < 1:
        raise MaskwiseError(
            "warm-decay: warm must be a share of training", got=warm, allowed="between 0 and 1"
        )
    return lambda f: 2 * p * (f / warm if f < warm else (1 - f) / (1 - warm))


@published
def cosine_parabola() -> Curve:
    """The default branch of the released time-variant code: a cosine from .30 to .10 in the first
    40 %, then a parabola."""
    return lambda f: (
        0.2 + 0.1 * math.cos(math.pi * f / 0.4) if f < 0.4 else 0.1 - 0.25 * (f - 0.4) ** 2
    )


@published
def elliptical(p: float = 0.15) -> Curve:
    """2p √(1 − 3f²) to half-time, then 2p (1 − √(1 − 3(1 − f)²))."""
    return lambda f: (
        2 * p * math.sqrt(1 - 3 * f**2)
        if f <= 0.5
        else 2 * p * (1 - math.sqrt(1 - 3 * (1 - f) ** 2))
    )


@published
def piecewise(*points: float) -> Curve:
    """Straight lines through points: ``piecewise(0, 0.3, 0.5, 0.2, 1, 0.15)`` is (share of
    training, ratio) in turn."""
    at, value = points[::2], points[1::2]
    if (
        len(points) < 4
        or len(points) % 2
        or list(at) != sorted(at)
        or not all(0 <= v <= 1 for v in points)
    ):
        allowed = "shares of training, rising from 0 to 1, each with a ratio from 0 to 1"
        raise MaskwiseError(
            "piecewise takes pairs of progress and ratio", got=points, allowed=allowed
        )
    return lambda f: float(np.interp(f, at, value))


Spec: TypeAlias = "Schedule | float | str | Call"


def _composed(combine: Callable[..., Curve], *parts: Schedule, varies: bool = True) -> Shape:
    """A schedule made of others: ``combine`` takes their curves, or what their rows draw, and gives
    a curve of both.
    """
    if any(isinstance(part, FunctionSchedule) for part in parts):
        got, do = ", ".join(map(str, parts)), "do it inside the function"
        raise MaskwiseError(
            "a function of your own cannot be part of another schedule", got=got, do=do
        )
    if all(part.quantile is None for part in parts):
        return Shape(combine(*(part.curve for part in parts)), varies)

    def quantile(f: float, draw_P: Array) -> Array:
        return np.asarray(combine(*(partial(part.drawn, draw_P=draw_P) for part in parts))(f))

    even = (np.arange(256) + 0.5) / 256
    return Shape(lambda f: float(quantile(f, even).mean()), varies, quantile)


@published
def warm_up(inner: Spec, share: float = 0.1) -> Shape:
    """Another schedule, scaled up from 0 over the first ``share`` of training."""
    if not 0 < share <= 1:
        raise MaskwiseError(
            "warm-up: share must be a share of training", got=share, allowed="above 0, at most 1"
        )
    return _composed(lambda ratio: lambda f: ratio(f) * min(1.0, f / share), schedule(inner))


@published
def then(first: Spec, at: float, second: Spec) -> Shape:
    """One schedule up to the share ``at`` of training, another after it; each runs over its own
    part.
    """
    if not 0 < at < 1:
        raise MaskwiseError(
            "then: the change must lie inside training", got=at, allowed="between 0 and 1"
        )

    def combine(before: Curve, after: Curve) -> Curve:
        return lambda f: before(f / at) if f < at else after((f - at) / (1 - at))

    return _composed(combine, schedule(first), schedule(second))


@published
def scaled(inner: Spec, factor: float) -> Shape:
    """Another schedule times a factor."""
    inner = schedule(inner)
    return _composed(lambda ratio: lambda f: ratio(f) * factor, inner, varies=inner.varies)


@published
def clipped(inner: Spec, low: float = 0.0, high: float = 1.0) -> Shape:
    """Another schedule, kept between two ratios."""
    if not low <= high:
        raise MaskwiseError("clipped: low is above high", got=(low, high))
    inner = schedule(inner)
    return _composed(
        lambda ratio: lambda f: np.clip(ratio(f), low, high), inner, varies=inner.varies
    )


@published
def uniform(low: float = 0.0, high: float = 1.0) -> Shape:
    """Each row's ratio is uniform; over (0, 1) with ``objective: diffusion`` this is masked
    diffusion.
    """
    return _distribution((low + high) / 2, lambda draw_P: low + (high - low) * draw_P)


@published
def beta(a: float, b: float) -> Shape:
    """Each row's ratio is Beta(a, b)."""
    from scipy.special import betaincinv

    if not (a > 0 and b > 0):
        raise MaskwiseError("beta: both parameters must be positive", got=(a, b))
    grid = betaincinv(a, b, np.linspace(0, 1, 4097))
    return _distribution(a / (a + b), partial(_on_grid, grid))


@published
def bell(centre: float = 0.5, width: float = 0.15) -> Shape:
    """Each row's ratio is normal around ``centre`` with the standard deviation ``width``, kept
    inside (0, 1).

    After Hong et al. 2026 (arXiv 2605.13026), who draw the rates of masked diffusion from a bell
    around the middle.
    """
    from scipy.special import ndtr, ndtri

    if not (0 <= centre <= 1 and 0.01 <= width <= 10):
        allowed = "0 ≤ centre ≤ 1, 0.01 ≤ width ≤ 10"
        raise MaskwiseError("bell", got=f"centre {centre}, width {width}", allowed=allowed)
    low, high = ndtr((0 - centre) / width), ndtr((1 - centre) / width)
    grid = (centre + width * ndtri(low + (high - low) * np.linspace(0, 1, 4097))).clip(0, 1)
    grid[0], grid[-1] = 0.0, 1.0
    mean = float((grid[:-1] + grid[1:]).mean() / 2)
    return _distribution(mean, partial(_on_grid, grid))


@published
def cosine_rates() -> Shape:
    """Each row's ratio is cos(π u / 2) for a uniform u, so that high ratios come more often.

    Chang et al. 2022 (MaskGIT, arXiv 2202.04200), section 3.3; the cosine schedule of masked
    diffusion.
    """
    return _distribution(2 / math.pi, lambda draw_P: np.cos(math.pi / 2 * (1 - draw_P)))


@published
def mixture(*parts: float) -> Shape:
    """Each row's ratio is one of several: ``mixture(0.15, 0.5, 0.5, 0.5)`` is (ratio, share) in
    turn.
    """
    ratios, shares = parts[::2], parts[1::2]
    if len(parts) % 2 or not parts or not all(0 <= r <= 1 for r in ratios):
        raise MaskwiseError("mixture takes pairs of ratio (0 to 1) and share", got=parts)
    if not min(shares) >= 0 or not 0 < sum(shares) < math.inf:
        raise MaskwiseError("mixture: shares are numbers ≥ 0, one of them above", got=shares)
    mean = sum(r * s for r, s in zip(ratios, shares)) / sum(shares)
    edges = (np.cumsum(shares) / sum(shares))[:-1]
    ratio_of = np.array(ratios, np.float64)
    return _distribution(
        mean, lambda draw_P: ratio_of.take(np.searchsorted(edges, draw_P, side="right"))
    )


def _distribution(mean: float, quantile: Callable[[Array], Array]) -> Shape:
    """A distribution that does not change over training."""
    return Shape(lambda f: mean, False, lambda f, draw_P: quantile(draw_P))


def _on_grid(grid: Array, draw_P: Array) -> Array:
    return np.interp(draw_P * (len(grid) - 1), np.arange(len(grid)), grid)


def schedule(spec: Spec | Callable[[int, int], float]) -> Schedule:
    """Anything that says how much to mask, as a schedule.

    Args:
        spec: a ratio, a schedule, its name in a recipe, or any function of (step, total steps).

    >>> schedule("cosine-decay(0.15)")(0, 1000)
    0.32
    """
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, Real):
        return constant(spec)
    if isinstance(spec, str):
        try:
            number = float(spec)
        except ValueError:
            return build("schedule", spec, SCHEDULES)
        return constant(number)
    if isinstance(spec, Call):
        return build("schedule", spec, SCHEDULES)
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return FunctionSchedule(f"function {name}", _no_curve, function=spec)
    allowed = "a number, a schedule, its name, or a function"
    raise MaskwiseError("not a masking ratio", got=repr(spec), allowed=allowed)


def _no_curve(f: float) -> float:
    raise AssertionError("a function schedule has no curve")
