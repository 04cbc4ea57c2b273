"""The published shapes; p is the base ratio, f the progress, in [0, 1]."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.masking.schedules.base import Schedule, named, straight


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


def linear(start: float, end: float) -> Schedule:
    """From ``start`` to ``end`` in a straight line (Ankner et al.: 0.30 → 0.15 for BERT-base)."""
    return named("linear", straight, start, end)


def cosine(start: float, end: float) -> Schedule:
    """From ``start`` to ``end`` along half a cosine."""
    return named("cosine", _cosine, start, end)


def step(start: float, end: float, at: float = 0.5) -> Schedule:
    """``start`` before the share ``at`` of training, ``end`` from there."""
    return named("step", _step, start, end, at)


def linear_decay(p: float = 0.15) -> Schedule:
    """2p (1 − f)."""
    return Schedule(f"linear-decay({p})", partial(straight, 2 * p, 0.0))


def linear_ascend(p: float = 0.15) -> Schedule:
    """2p f."""
    return Schedule(f"linear-ascend({p})", partial(straight, 0.0, 2 * p))


def cosine_decay(p: float = 0.15) -> Schedule:
    """p (1 + cos πf) + 0.02: from 2p + 0.02 to 0.02."""
    return named("cosine-decay", _cosine_decay, p)


def square_above(p: float = 0.15) -> Schedule:
    """2p (1 − f²) + 0.01."""
    return named("square-above", _square_above, p)


def square_below(p: float = 0.15) -> Schedule:
    """2p (1 − f)²."""
    return named("square-below", _square_below, p)


def triangle(p: float = 0.15) -> Schedule:
    """Up to 2p at half-time, then down to 0."""
    return named("triangle", _triangle, p)


def vee(p: float = 0.15) -> Schedule:
    """Down from 2p to 0 at half-time, then up again; 0.01 above that throughout."""
    return named("vee", _vee, p)


def warm_decay(p: float = 0.15, warm: float = 0.4) -> Schedule:
    """Up from 0 to 2p over the share ``warm`` of training, then down to 0."""
    if not 0 < warm < 1:
        raise MaskwiseError(
            "warm-decay: warm must be a share of training", got=warm, allowed="between 0 and 1"
        )
    return named("warm-decay", _warm_decay, p, warm)


def cosine_parabola() -> Schedule:
    """The default branch of the released time-variant code: a cosine from .30 to .10 in the first 40 %, then
    a parabola."""
    return named("cosine-parabola", _cosine_parabola)


def elliptical(p: float = 0.15) -> Schedule:
    """2p √(1 − 3f²) to half-time, then 2p (1 − √(1 − 3(1 − f)²))."""
    return named("elliptical", _elliptical, p)


def piecewise(*points: float) -> Schedule:
    """Straight lines through points: ``piecewise(0, 0.3, 0.5, 0.2, 1, 0.15)`` is (share of training, ratio)
    in turn."""
    at, value = points[::2], points[1::2]
    if len(points) < 4 or len(points) % 2 or list(at) != sorted(at) or not all(0 <= v <= 1 for v in value):
        raise MaskwiseError("piecewise takes pairs of progress (rising) and ratio (0 to 1)", got=points)
    inside = ", ".join(map(str, points))
    return Schedule(f"piecewise({inside})", partial(_piecewise, at, value))
