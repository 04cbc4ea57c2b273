"""Schedules of schedules: warmed up, one after the other, scaled, clipped.

Of curves, or of what one row drew from a distribution, which is why values may be tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking.schedules.base import Curve, Distribution, FunctionSchedule, Schedule, Spec


def _share_up(inner: Curve, share: float, f: float) -> Any:
    return inner(f) * min(1.0, f / share)


def _then(first: Curve, at: float, second: Curve, f: float) -> Any:
    return first(f / at) if f < at else second((f - at) / (1 - at))


def _scaled(inner: Curve, factor: float, f: float) -> Any:
    return inner(f) * factor


def _clipped(inner: Curve, low: float, high: float, f: float) -> Any:
    ratio = inner(f)
    return ratio.clamp(low, high) if isinstance(ratio, Tensor) else min(max(ratio, low), high)


def _drawn(combine: Callable[..., Tensor], args: tuple[Any, ...], f: float, draw_B: Tensor) -> Tensor:
    """The quantile function of a composition: its parts, each with the row's draw filled in."""
    return combine(*(partial(_row, a, draw_B) if isinstance(a, Schedule) else a for a in args), f)


def _row(part: Schedule, draw_B: Tensor, f: float) -> Tensor:
    return (
        part.quantile(f, draw_B) if isinstance(part, Distribution) else torch.full_like(draw_B, part.curve(f))
    )


def _mean(quantile: Callable[[float, Tensor], Tensor], f: float) -> float:
    """The mean of a distribution from its quantile function, at 256 even places."""
    return float(quantile(f, (torch.arange(256, dtype=torch.float64) + 0.5) / 256).mean())


def _composed(name: str, combine: Callable[..., Any], *args: Any, varies: bool = True) -> Schedule:
    parts = [a for a in args if isinstance(a, Schedule)]
    label = f"{name}({', '.join(map(str, args))})"
    if any(isinstance(part, FunctionSchedule) for part in parts):
        do = "do it inside the function"
        raise MaskwiseError("a function of your own cannot be part of another schedule", got=label, do=do)
    if not any(isinstance(part, Distribution) for part in parts):
        return Schedule(
            label, partial(combine, *(a.curve if isinstance(a, Schedule) else a for a in args)), varies
        )
    quantile = partial(_drawn, combine, args)
    inverse = any(isinstance(part, Distribution) and part.inverse_weight for part in parts)
    return Distribution(label, partial(_mean, quantile), varies, quantile, inverse)


def _read(spec: Spec) -> Schedule:
    from maskwise.masking.schedules import schedule  # its table holds these functions

    return schedule(spec)


def warm_up(inner: Spec, share: float = 0.1) -> Schedule:
    """Another schedule, scaled up from 0 over the first ``share`` of training."""
    if not 0 < share <= 1:
        raise MaskwiseError(
            "warm-up: share must be a share of training", got=share, allowed="above 0, at most 1"
        )
    return _composed("warm-up", _share_up, _read(inner), share)


def then(first: Spec, at: float, second: Spec) -> Schedule:
    """One schedule up to the share ``at`` of training, another after it; each runs over its own part."""
    if not 0 < at < 1:
        raise MaskwiseError("then: the change must lie inside training", got=at, allowed="between 0 and 1")
    return _composed("then", _then, _read(first), at, _read(second))


def scaled(inner: Spec, factor: float) -> Schedule:
    """Another schedule times a factor."""
    inner = _read(inner)
    return _composed("scaled", _scaled, inner, factor, varies=inner.varies)


def clipped(inner: Spec, low: float = 0.0, high: float = 1.0) -> Schedule:
    """Another schedule, kept between two ratios."""
    if not low <= high:
        raise MaskwiseError("clipped: low is above high", got=(low, high))
    inner = _read(inner)
    return _composed("clipped", _clipped, inner, low, high, varies=inner.varies)
