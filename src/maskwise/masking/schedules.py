"""How much to mask, at step t of T: every schedule is a pure function of (step, total steps).

All published shapes depend on the progress f = t/T alone, so a schedule is a named curve over [0, 1]; ``ratios`` has
the classes, and distributions that give each row a ratio of its own. Names are those of recipes:
``linear(0.30, 0.15)``; in Python ``schedules.linear(0.30, 0.15)``.

Sources: time-variant masking (Yang et al. 2023, arXiv 2208.10806, section 3.1 and its released code), dynamic
masking rate schedules (Ankner et al. 2023, arXiv 2305.15096).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import numpy as np

from maskwise.errors import MaskwiseError, finite_number
from maskwise.keys import Array
from maskwise.masking.ratios import (
    Distribution,
    FunctionSchedule,
    Schedule,
    bell,
    beta,
    cosine_rates,
    mixture,
    no_curve,
    straight,
    uniform,
)
from maskwise.specs import Call, build, numeric

Number = TypeVar("Number", float, Array)
Spec: TypeAlias = "Schedule | float | str | Call"


def named(name: str, curve: Callable[..., float], *args: object, varies: bool = True) -> Schedule:
    """A schedule of a curve whose first arguments are given, under the name that a recipe writes."""
    shown = ", ".join(str(a) for a in args)
    return Schedule(f"{name}({shown})" if shown else name, partial(curve, *args), varies)


def constant(p: float = 0.15) -> Schedule:
    """p throughout.

    >>> constant(0.15)(step=7)
    0.15
    """
    p = finite_number("a masking ratio", p, least=0, most=1)
    return Schedule(f"constant({float(p)})", partial(straight, p, p), False)


def _cosine(a: float, b: float, f: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * f)) / 2


def _step(a: float, b: float, at: float, f: float) -> float:
    return a if f < at else b


def _cosine_decay(p: float, f: float) -> float:
    return p * (1 + math.cos(math.pi * f)) + 0.02


def _square_above(p: float, f: float) -> float:
    return 2 * p * (1 - f**2) + 0.01


def _square_below(p: float, f: float) -> float:
    return 2 * p * (1 - f) ** 2


def _triangle(p: float, f: float) -> float:
    return 4 * p * min(f, 1 - f)


def _vee(p: float, f: float) -> float:
    return 2 * p * abs(1 - 2 * f) + 0.01


def _warm_decay(p: float, warm: float, f: float) -> float:
    return 2 * p * (f / warm if f < warm else (1 - f) / (1 - warm))


def _cosine_parabola(f: float) -> float:
    return 0.2 + 0.1 * math.cos(math.pi * f / 0.4) if f < 0.4 else 0.1 - 0.25 * (f - 0.4) ** 2


def _elliptical(p: float, f: float) -> float:
    return 2 * p * math.sqrt(1 - 3 * f**2) if f <= 0.5 else 2 * p * (1 - math.sqrt(1 - 3 * (1 - f) ** 2))


def _piecewise(at: tuple[float, ...], value: tuple[float, ...], f: float) -> float:
    return float(np.interp(f, at, value))


@numeric
def linear(start: float, end: float) -> Schedule:
    """From ``start`` to ``end`` in a straight line (Ankner et al.: 0.30 → 0.15 for BERT-base).

    >>> round(linear(0.30, 0.15)(step=500, total_steps=1000), 3)
    0.225
    """
    return named("linear", straight, start, end)


@numeric
def cosine(start: float, end: float) -> Schedule:
    """From ``start`` to ``end`` along half a cosine."""
    return named("cosine", _cosine, start, end)


@numeric
def step(start: float, end: float, at: float = 0.5) -> Schedule:
    """``start`` before the share ``at`` of training, ``end`` from there."""
    if not 0 <= at <= 1:
        raise MaskwiseError("step: at must be a share of training", got=at, allowed="0 to 1")
    return named("step", _step, start, end, at)


@numeric
def linear_decay(p: float = 0.15) -> Schedule:
    """2p (1 − f)."""
    return Schedule(f"linear-decay({p})", partial(straight, 2 * p, 0.0))


@numeric
def linear_ascend(p: float = 0.15) -> Schedule:
    """2p f."""
    return Schedule(f"linear-ascend({p})", partial(straight, 0.0, 2 * p))


@numeric
def cosine_decay(p: float = 0.15) -> Schedule:
    """p (1 + cos πf) + 0.02: from 2p + 0.02 to 0.02."""
    return named("cosine-decay", _cosine_decay, p)


@numeric
def square_above(p: float = 0.15) -> Schedule:
    """2p (1 − f²) + 0.01."""
    return named("square-above", _square_above, p)


@numeric
def square_below(p: float = 0.15) -> Schedule:
    """2p (1 − f)²."""
    return named("square-below", _square_below, p)


@numeric
def triangle(p: float = 0.15) -> Schedule:
    """Up to 2p at half-time, then down to 0."""
    return named("triangle", _triangle, p)


@numeric
def vee(p: float = 0.15) -> Schedule:
    """Down from 2p to 0 at half-time, then up again; 0.01 above that throughout."""
    return named("vee", _vee, p)


@numeric
def warm_decay(p: float = 0.15, warm: float = 0.4) -> Schedule:
    """Up from 0 to 2p over the share ``warm`` of training, then down to 0."""
    if not 0 < warm < 1:
        raise MaskwiseError("warm-decay: warm must be a share of training", got=warm, allowed="between 0 and 1")
    return named("warm-decay", _warm_decay, p, warm)


def cosine_parabola() -> Schedule:
    """The default branch of the released time-variant code: a cosine from .30 to .10 in the first 40 %, then
    a parabola."""
    return named("cosine-parabola", _cosine_parabola)


@numeric
def elliptical(p: float = 0.15) -> Schedule:
    """2p √(1 − 3f²) to half-time, then 2p (1 − √(1 − 3(1 − f)²))."""
    return named("elliptical", _elliptical, p)


@numeric
def piecewise(*points: float) -> Schedule:
    """Straight lines through points: ``piecewise(0, 0.3, 0.5, 0.2, 1, 0.15)`` is (share of training, ratio)
    in turn."""
    at, value = points[::2], points[1::2]
    if len(points) < 4 or len(points) % 2 or list(at) != sorted(at) or not all(0 <= v <= 1 for v in points):
        allowed = "shares of training, rising from 0 to 1, each with a ratio from 0 to 1"
        raise MaskwiseError("piecewise takes pairs of progress and ratio", got=points, allowed=allowed)
    inside = ", ".join(map(str, points))
    return Schedule(f"piecewise({inside})", partial(_piecewise, at, value))


def _share_up(inner: Callable[[float], Number], share: float, f: float) -> Number:
    return inner(f) * min(1.0, f / share)


def _then(first: Callable[[float], Number], at: float, second: Callable[[float], Number], f: float) -> Number:
    return first(f / at) if f < at else second((f - at) / (1 - at))


def _scaled(inner: Callable[[float], Number], factor: float, f: float) -> Number:
    return inner(f) * factor


def _clipped(inner: Callable[[float], Number], low: float, high: float, f: float) -> Number:
    ratio = inner(f)
    return ratio.clip(low, high) if isinstance(ratio, np.ndarray) else min(max(ratio, low), high)


def _drawn(combine: Callable[..., Array], args: tuple[object, ...], f: float, draw_P: Array) -> Array:
    """The quantile function of a composition: its parts, each with the row's draw filled in."""
    return combine(*(partial(_row, a, draw_P) if isinstance(a, Schedule) else a for a in args), f)


def _row(part: Schedule, draw_P: Array, f: float) -> Array:
    if isinstance(part, Distribution):
        return part.quantile(f, draw_P)
    return np.full_like(draw_P, part.curve(f))


def _mean(quantile: Callable[[float, Array], Array], f: float) -> float:
    """The mean of a distribution from its quantile function, at 256 even places."""
    return float(quantile(f, (np.arange(256) + 0.5) / 256).mean())


def _composed(name: str, combine: Callable[..., Any], *args: object, varies: bool = True) -> Schedule:
    parts = [a for a in args if isinstance(a, Schedule)]
    label = f"{name}({', '.join(map(str, args))})"
    if any(isinstance(part, FunctionSchedule) for part in parts):
        do = "do it inside the function"
        raise MaskwiseError("a function of your own cannot be part of another schedule", got=label, do=do)
    if not any(isinstance(part, Distribution) for part in parts):
        return Schedule(label, partial(combine, *(a.curve if isinstance(a, Schedule) else a for a in args)), varies)
    quantile = partial(_drawn, combine, args)
    return Distribution(label, partial(_mean, quantile), varies, quantile)


@numeric
def warm_up(inner: Spec, share: float = 0.1) -> Schedule:
    """Another schedule, scaled up from 0 over the first ``share`` of training."""
    if not 0 < share <= 1:
        raise MaskwiseError("warm-up: share must be a share of training", got=share, allowed="above 0, at most 1")
    return _composed("warm-up", _share_up, schedule(inner), share)


@numeric
def then(first: Spec, at: float, second: Spec) -> Schedule:
    """One schedule up to the share ``at`` of training, another after it; each runs over its own part."""
    if not 0 < at < 1:
        raise MaskwiseError("then: the change must lie inside training", got=at, allowed="between 0 and 1")
    return _composed("then", _then, schedule(first), at, schedule(second))


@numeric
def scaled(inner: Spec, factor: float) -> Schedule:
    """Another schedule times a factor."""
    inner = schedule(inner)
    return _composed("scaled", _scaled, inner, factor, varies=inner.varies)


@numeric
def clipped(inner: Spec, low: float = 0.0, high: float = 1.0) -> Schedule:
    """Another schedule, kept between two ratios."""
    if not low <= high:
        raise MaskwiseError("clipped: low is above high", got=(low, high))
    inner = schedule(inner)
    return _composed("clipped", _clipped, inner, low, high, varies=inner.varies)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant, "linear": linear, "cosine": cosine, "step": step,
    "linear-decay": linear_decay, "cosine-decay": cosine_decay, "linear-ascend": linear_ascend,
    "square-above": square_above, "square-below": square_below, "triangle": triangle, "vee": vee,
    "warm-decay": warm_decay, "cosine-parabola": cosine_parabola, "elliptical": elliptical,
    "piecewise": piecewise, "warm-up": warm_up, "then": then, "scaled": scaled, "clipped": clipped,
    "uniform": uniform, "beta": beta, "bell": bell, "cosine-rates": cosine_rates, "mixture": mixture,
}  # fmt: skip


def schedule(spec: Schedule | float | str | Call | Callable[[int, int], float]) -> Schedule:
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
        return FunctionSchedule(f"function {getattr(spec, '__name__', type(spec).__name__)}", no_curve, function=spec)
    allowed = "a number, a schedule, its name, or a function"
    raise MaskwiseError("not a masking ratio", got=repr(spec), allowed=allowed)
