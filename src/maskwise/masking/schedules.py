"""Schedules of masking ratios: constants, curves over training, distributions and functions.

A curve is a function whose first argument is the progress f = step / total steps. A distribution is
a function whose first argument has one uniform random number per document piece, (P,), so each
piece gets its own ratio. The decorator ``published`` turns such a function into a factory of
``Schedule``, with the other arguments as parameters. In a recipe, write ``linear(0.30, 0.15)``, and
in Python call ``schedules.linear(0.30, 0.15)``.

Sources: time-variant masking (Yang et al. 2023, arXiv 2208.10806, section 3.1 and released code);
dynamic masking rates (Ankner et al. 2023, arXiv 2305.15096).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from maskwise.base.errors import MaskwiseError, finite_number, first_line
from maskwise.base.plugins import Table
from maskwise.base.specs import Call, build
from maskwise.masking.draws import Array

Ratio: TypeAlias = "float | Array"
Spec: TypeAlias = "Schedule | float | str | Call"
Inner: TypeAlias = Callable[[float], Ratio]
"""The type of a parameter that is a schedule: a function from progress to ratio."""

# Evenly spaced draws. The mean ratio of a distribution is computed from these draws.
_EVEN = (np.arange(10_000) + 0.5) / 10_000
# The smallest, a middle and the largest draw, at which the range of a distribution is checked.
_EXTREMES = np.array([2.0**-33, 0.5, 1 - 2.0**-33])
# Sums such as 0.02 + 2 · 0.49 may exceed 1 by a rounding error. Ratios so near are clipped.
_ROUNDING = 1e-9
# These curves change over training only if the schedule that they modify changes.
_STEADY = ("scaled", "clipped")


POINTS = 200
"""The number of evenly spaced intervals of training at whose ends schedules are checked."""


@dataclass(frozen=True)
class Schedule:
    """A masking ratio over training: ``schedule(step, total_steps)`` in [0, 1].

    Attributes:
        name: the text in a recipe. Schedules with equal names are equal.
        curve: a function of (progress, draws (P,)) that returns one ratio, or (P,) if ``random``.
        varies: whether the ratio depends on the progress. If True, calls need ``total_steps``.
        random: whether each piece draws its own ratio.

    Raises:
        MaskwiseError: the ratio is NaN or outside 0 to 1 at one of 201 evenly spaced points of
            training. Elsewhere, ratios outside 0 to 1 are clipped.
    """

    name: str
    curve: Callable[[float, Array], Ratio] = field(compare=False, repr=False)
    varies: bool = field(default=True, compare=False, repr=False)
    random: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # One point is enough for a curve that does not vary with the step.
        points = POINTS + 1 if self.varies else 1
        for i in range(points):
            ratios = np.atleast_1d(self.curve(i / POINTS, _EXTREMES))
            inside = (ratios >= -_ROUNDING) & (ratios <= 1 + _ROUNDING)
            if not inside.all():
                raise MaskwiseError(
                    f"schedule {self.name} has a ratio that is not allowed",
                    got=round(float(ratios[~inside][0]), 4),
                    allowed="0 to 1",
                )

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """Return the ratio at ``step``; the mean ratio if each piece draws its own ratio."""
        ratio = self.curve(self.progress(step, total_steps), _EVEN)
        if self.random:
            ratio = float(np.mean(ratio))
        return min(max(float(ratio), 0.0), 1.0)

    @property
    def needs_total(self) -> bool:
        """Whether ``total_steps`` must be given."""
        return self.varies

    def progress(self, step: int, total_steps: int | None) -> float:
        """Return the completed share of training, 0 to 1; always 0 if the ratio does not vary.

        Raises:
            MaskwiseError: a number is negative or no number, or ``total_steps`` is needed.
        """
        step, total_steps = _checked_time(step, total_steps)
        if not self.varies:
            return 0.0
        if not total_steps:
            raise MaskwiseError(f"schedule {self.name} changes over time", do="pass total_steps")
        return min(step / total_steps, 1.0)

    def always(self, ratio: float) -> bool:
        """Whether the schedule has this ratio at every step."""
        return not self.varies and self(0) == ratio

    def rows(self, draw_P: Array, step: int, total_steps: int | None) -> Array:
        """Return ratios, (P,) float64, for ``draw_P``: a uniform draw in (0, 1) for each piece."""
        ratio = self.curve(self.progress(step, total_steps), draw_P)
        return np.full_like(draw_P, ratio).clip(0, 1)

    def __reduce__(self) -> tuple[object, ...]:
        # Curves are closures, which cannot be pickled, but the name is enough to rebuild them.
        return schedule, (self.name,)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FunctionSchedule(Schedule):
    """A user's function of (step, total steps).

    If the total is unknown, the function gets 0, and the masker warns once.
    """

    function: Callable[[int, int], float] = field(kw_only=True, repr=False)

    def __post_init__(self) -> None:
        """Skip the range check of the base class, because the function expects steps of a run."""

    @property
    def needs_total(self) -> bool:
        return False

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        step, total_steps = _checked_time(step, total_steps)
        try:
            ratio = float(self.function(step, total_steps or 0))
        except Exception as error:
            # A user's function may raise anything.
            raise MaskwiseError(
                f"the ratio's {self.name} failed at step {step}",
                got=f"{type(error).__name__}: {first_line(error)}",
                do="return a number for (step, total steps)" if total_steps else "pass total_steps",
            ) from error
        if -_ROUNDING <= ratio <= 1 + _ROUNDING:
            return min(max(ratio, 0.0), 1.0)
        return finite_number(f"the ratio of {self.name} at step {step}", ratio, least=0, most=1)

    def rows(self, draw_P: Array, step: int, total_steps: int | None) -> Array:
        return np.full_like(draw_P, self(step, total_steps))

    def __reduce__(self) -> tuple[object, ...]:
        return schedule, (self.function,)


def _checked_time(step: Any, total_steps: Any) -> tuple[Any, Any]:
    """Return a step and the number of steps in the run; raise unless both are numbers ≥ 0."""
    # Steps may be fractions, to draw a curve.
    step = finite_number("step", step, least=0)
    if total_steps is not None:
        total_steps = finite_number("total_steps", total_steps, least=0)
    return step, total_steps


def _no_curve(f: float, draw_P: Array) -> Ratio:
    raise MaskwiseError(
        "a function cannot be part of another schedule",
        do="compute the whole ratio inside the function",
    )


def constant(p: float = 0.15) -> Schedule:
    """Use the ratio p at all steps.

    >>> constant(0.15)(step=7)
    0.15
    """
    p = float(finite_number("a masking ratio", p, least=0, most=1))
    return Schedule(f"constant({p})", lambda f, draw_P: p, varies=False)


_BUILT_IN: dict[str, Callable[..., Schedule]] = {"constant": constant}
SCHEDULES = Table("schedule", "maskwise.schedules", _BUILT_IN)
"""Factories of schedules by their names in recipes."""


def published(curve: Callable[..., Ratio]) -> Callable[..., Schedule]:
    """Turn a curve or a distribution into a factory of schedules, and register the factory under
    the name of the function. An entry point must have the same name.

    The first argument of a curve is named ``f``, and that of a distribution ``draw_P``. Arguments
    annotated as ``Inner`` are schedules, and all other arguments are finite numbers.
    """
    name = curve.__name__.replace("_", "-")
    first, *parameters = inspect.signature(curve).parameters.values()
    signature = inspect.Signature(parameters)
    distribution = first.name == "draw_P"
    changes = not distribution and name not in _STEADY

    @wraps(curve)
    def make(*args: Any, **kwargs: Any) -> Schedule:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = []
        parts = []
        # Only the last parameter may take several values.
        for parameter, value in zip(parameters + parameters[-1:] * len(args), bound.args):
            if parameter.annotation in ("Inner", Inner):
                value = schedule(value)
                parts.append(value)
            else:
                value = finite_number(f"{parameter.name} of {name}", value)
            values.append(value)

        def ratio(f: float, draw_P: Array) -> Ratio:
            inputs = []
            for value in values:
                if value in parts:
                    # The inner schedule gets the same draws. The curve calls it with a progress.
                    value = partial(value.curve, draw_P=draw_P)
                inputs.append(value)
            return curve(draw_P if distribution else f, *inputs)

        return Schedule(
            f"{name}({', '.join(map(str, values))})" if values else name,
            ratio,
            varies=changes or any(part.varies for part in parts),
            random=distribution or any(part.random for part in parts),
        )

    make.__signature__ = signature  # type: ignore[attr-defined]
    SCHEDULES.register(name, make)
    return make


def _share(name: str, value: float, *, ends: bool = False) -> float:
    """Check that a share of training is above 0 and below 1, or also 0 or 1 if ``ends``."""
    inside = 0 <= value <= 1 if ends else 0 < value < 1
    if not inside:
        allowed = "0 to 1" if ends else "above 0 and below 1"
        raise MaskwiseError(f"{name} must be a share of training", got=value, allowed=allowed)
    return value


@published
def linear(f: float, start: float, end: float) -> float:
    """Move from ``start`` to ``end`` in a straight line (Ankner et al.: 0.30 → 0.15 for BERT).

    >>> round(linear(0.30, 0.15)(step=500, total_steps=1000), 3)
    0.225
    """
    return start + f * (end - start)


@published
def cosine(f: float, start: float, end: float) -> float:
    """Move from ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * f)) / 2


@published
def step(f: float, start: float, end: float, at: float = 0.5) -> float:
    """Use ``start`` until the share ``at`` of training, then ``end``."""
    return start if f < _share("argument at", at, ends=True) else end


@published
def linear_decay(f: float, p: float = 0.15) -> float:
    """Fall from 2p to 0. At the share f of training, the ratio is 2p (1 − f)."""
    return 2 * p - f * (2 * p)


@published
def cosine_decay(f: float, p: float = 0.15) -> float:
    """Fall from 2p + 0.02 to 0.02 along half a cosine. At the share f: p (1 + cos πf) + 0.02."""
    return p * (1 + math.cos(math.pi * f)) + 0.02


@published
def linear_ascend(f: float, p: float = 0.15) -> float:
    """Rise from 0 to 2p. At the share f of training, the ratio is 2p f."""
    return f * (2 * p)


@published
def square_above(f: float, p: float = 0.15) -> float:
    """Fall from 2p + 0.01 to 0.01, slowly at first. At the share f: 2p (1 − f²) + 0.01."""
    return 2 * p * (1 - f**2) + 0.01


@published
def square_below(f: float, p: float = 0.15) -> float:
    """Fall from 2p to 0, fast at first. At the share f of training: 2p (1 − f)²."""
    return 2 * p * (1 - f) ** 2


@published
def triangle(f: float, p: float = 0.15) -> float:
    """Rise to 2p at half-time, then fall to 0."""
    return 4 * p * min(f, 1 - f)


@published
def vee(f: float, p: float = 0.15) -> float:
    """Fall from 2p + 0.01 to 0.01 at half-time, then rise. At the share f: 2p |1 − 2f| + 0.01."""
    return 2 * p * abs(1 - 2 * f) + 0.01


@published
def warm_decay(f: float, p: float = 0.15, warm: float = 0.4) -> float:
    """Rise from 0 to 2p over the share ``warm`` of training, then fall to 0."""
    if f < _share("argument warm", warm):
        return 2 * p * (f / warm)
    return 2 * p * ((1 - f) / (1 - warm))


@published
def cosine_parabola(f: float) -> float:
    """Fall from .30 to .10 (at 40 %) by a cosine, then to .01 by a parabola (Yang et al.)."""
    if f < 0.4:
        return 0.2 + 0.1 * math.cos(math.pi * f / 0.4)
    return 0.1 - 0.25 * (f - 0.4) ** 2


@published
def elliptical(f: float, p: float = 0.15) -> float:
    """Fall from 2p to 0 along two elliptical arcs that meet at half-time."""
    if f <= 0.5:
        return 2 * p * math.sqrt(1 - 3 * f**2)
    return 2 * p * (1 - math.sqrt(1 - 3 * (1 - f) ** 2))


@published
def piecewise(f: float, *points: float) -> float:
    """Interpolate between points, which are pairs of a share of training and a ratio.

    ``piecewise(0, 0.3, 0.5, 0.2, 1, 0.15)`` falls from .3 to .2 at half-time, then to .15. The
    ratio is constant before the first point and after the last point.
    """
    at = points[::2]
    ratios = points[1::2]
    paired = len(points) >= 4 and len(points) % 2 == 0
    if not paired or list(at) != sorted(at) or not 0 <= min(points) <= max(points) <= 1:
        raise MaskwiseError(
            "piecewise needs pairs of a share of training and a ratio",
            got=points,
            allowed="two or more rising shares of training (0 to 1), each with a ratio (0 to 1)",
        )
    return float(np.interp(f, at, ratios))


@published
def warm_up(f: float, inner: Inner, share: float = 0.1) -> Ratio:
    """Multiply a schedule by a factor that rises from 0 to 1 in the first ``share`` of training."""
    finite_number("argument share of warm-up", share, least=1e-9, most=1)
    return inner(f) * min(1.0, f / share)


@published
def then(f: float, first: Inner, at: float, second: Inner) -> Ratio:
    """Run the whole ``first`` schedule until the share ``at`` of training, then the ``second``."""
    if f < _share("argument at", at):
        return first(f / at)
    return second((f - at) / (1 - at))


@published
def scaled(f: float, inner: Inner, factor: float) -> Ratio:
    """Multiply a schedule by a factor."""
    return inner(f) * factor


@published
def clipped(f: float, inner: Inner, low: float = 0.0, high: float = 1.0) -> Ratio:
    """Replace ratios below ``low`` by ``low``, and ratios above ``high`` by ``high``."""
    finite_number("argument low of clipped", low, most=high)
    return np.clip(inner(f), low, high)


@published
def uniform(draw_P: Array, low: float = 0.0, high: float = 1.0) -> Array:
    """Draw ratios uniformly from (low, high); masked diffusion usually uses (0, 1)."""
    return low + (high - low) * draw_P


@published
def beta(draw_P: Array, a: float, b: float) -> Array:
    """Draw ratios from Beta(a, b)."""
    return _on_grid(_beta_quantiles(a, b), draw_P)


@published
def bell(draw_P: Array, centre: float = 0.5, width: float = 0.15) -> Array:
    """Draw ratios from a normal distribution with mean ``centre`` and SD ``width``, cut to (0, 1).

    Source: Hong et al. 2026 (arXiv 2605.13026), for the rates of masked diffusion.
    """
    return _on_grid(_bell_quantiles(centre, width), draw_P)


@published
def cosine_rates(draw_P: Array) -> Array:
    """Draw ratios as cos(π u / 2) with a uniform u, so high ratios are more frequent.

    Source: Chang et al. 2022 (MaskGIT, arXiv 2202.04200), section 3.3 (cosine schedule).
    """
    return np.cos(math.pi / 2 * (1 - draw_P))


@published
def mixture(draw_P: Array, *parts: float) -> Array:
    """Draw one of several ratios. In (0.15, 0.7, 0.5, 0.3), 0.15 has p = 0.7, and 0.5 p = 0.3."""
    ratios = parts[::2]
    shares = parts[1::2]
    if len(parts) % 2 or not parts or not 0 <= min(ratios) <= max(ratios) <= 1:
        raise MaskwiseError("mixture needs pairs of a ratio (0 to 1) and a share", got=parts)
    if not min(shares) >= 0 or not 0 < sum(shares) < math.inf:
        raise MaskwiseError("invalid shares of a mixture", got=shares, allowed="≥ 0, one above 0")
    edges = (np.cumsum(shares) / sum(shares))[:-1]
    return np.array(ratios, np.float64).take(np.searchsorted(edges, draw_P, side="right"))


@lru_cache
def _beta_quantiles(a: float, b: float) -> Array:
    from scipy.special import betaincinv

    if not (a > 0 and b > 0):
        raise MaskwiseError("beta: both parameters must be positive", got=(a, b))
    return betaincinv(a, b, np.linspace(0, 1, 4097))


@lru_cache
def _bell_quantiles(centre: float, width: float) -> Array:
    from scipy.special import ndtr, ndtri

    finite_number("argument centre of bell", centre, least=0, most=1)
    finite_number("argument width of bell", width, least=0.01, most=10)
    low = ndtr(-centre / width)
    high = ndtr((1 - centre) / width)
    grid = centre + width * ndtri(low + (high - low) * np.linspace(0, 1, 4097))
    grid = grid.clip(0, 1)
    # Far from the centre, the inverse is inexact, so set both ends.
    grid[0] = 0.0
    grid[-1] = 1.0
    return grid


def _on_grid(quantiles: Array, draw_P: Array) -> Array:
    places = np.arange(len(quantiles))
    return np.interp(draw_P * (len(quantiles) - 1), places, quantiles)


def _meant_by(spec: str) -> str | None:
    """Return what two numbers with a comma mean: a decimal comma, or the ends of a line.

    >>> _meant_by("0,15"), _meant_by("0.3,0.15"), _meant_by("30,15")
    ('0.15', 'linear(0.3, 0.15)', None)
    """
    found = re.fullmatch(r"\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*", spec)
    if not found:
        return None
    first, last = found.groups()
    if first == "0" and last.isdecimal():
        return f"0.{last}"
    return f"linear({first}, {last})" if max(float(first), float(last)) <= 1 else None


def schedule(spec: Spec | Callable[[int, int], float]) -> Schedule:
    """Build a schedule.

    Args:
        spec: a ratio, a schedule, the name of a schedule with its arguments, or a function of
            (step, total steps).

    >>> schedule("cosine-decay(0.15)")(0, 1000)
    0.32
    """
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, str):
        # Text that is not a number is the name of a schedule.
        with suppress(ValueError):
            spec = float(spec)
    if isinstance(spec, Real):
        return constant(spec)
    if isinstance(spec, str) and spec.strip().endswith("%"):
        do = None
        with suppress(ValueError):
            do = f"write {float(spec.strip()[:-1]) / 100:g}"
        raise MaskwiseError("a masking ratio is a share", got=spec, allowed="0 to 1", do=do)
    if isinstance(spec, str) and (meant := _meant_by(spec)):
        raise MaskwiseError(
            "this is not a masking ratio",
            got=repr(spec),
            allowed="a number from 0 to 1, or a schedule",
            do=f"did you mean {meant}?",
        )
    if isinstance(spec, str | Call):
        return build("schedule", spec, SCHEDULES, makes=Schedule)
    if callable(spec) and not isinstance(spec, type):
        # Callable objects may have no ``__name__``.
        name = spec.__name__ if hasattr(spec, "__name__") else type(spec).__name__
        return FunctionSchedule(f"function {name}", _no_curve, function=spec)
    raise MaskwiseError(
        "this is not a masking ratio",
        got=repr(spec),
        allowed="a number, a schedule, its name, or a function",
    )


def require_some_share(what: str, shares: Sequence[Schedule]) -> None:
    """Raise ``MaskwiseError`` if all shares are 0 at one of the points of training before its end.

    Functions of the user are not called, because they may need the real number of steps.

    >>> require_some_share("policy mixture", [schedule("step(1, 0)"), schedule(0.2)])
    """
    if any(isinstance(share, FunctionSchedule) for share in shares):
        return
    for point in range(POINTS):
        if not any(share(point, POINTS) for share in shares):
            when = f"when {point / POINTS:.3g} of the training is done" if point else "at its start"
            raise MaskwiseError(
                f"{what}: all shares are 0",
                got=[share.name for share in shares],
                do=f"give one a share above 0 {when}",
            )
