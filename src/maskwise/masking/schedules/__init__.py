"""How much to mask, at step t of T: every schedule is a pure function of (step, total steps).

All published shapes depend on the progress f = t/T alone, so a schedule is a named curve over [0, 1]. A
*distribution* is a schedule that gives each row a ratio of its own, drawn by the hash. Names are those of
recipes: ``linear(0.30, 0.15)``; in Python ``schedules.linear(0.30, 0.15)``.

Sources: time-variant masking (Yang et al. 2023, arXiv 2208.10806, section 3.1 and its released code), dynamic
masking rate schedules (Ankner et al. 2023, arXiv 2305.15096).
"""

from __future__ import annotations

from collections.abc import Callable

from maskwise.errors import MaskwiseError
from maskwise.masking.schedules.base import (
    Distribution,
    FunctionSchedule,
    Schedule,
    Spec,
    constant,
    no_curve,
)
from maskwise.masking.schedules.compose import clipped, scaled, then, warm_up
from maskwise.masking.schedules.distributions import beta, mixture, uniform
from maskwise.masking.schedules.shapes import (
    cosine,
    cosine_decay,
    cosine_parabola,
    elliptical,
    linear,
    linear_ascend,
    linear_decay,
    piecewise,
    square_above,
    square_below,
    step,
    triangle,
    vee,
    warm_decay,
)  # fmt: skip
from maskwise.specs import Call, build

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant, "linear": linear, "cosine": cosine, "step": step,
    "linear-decay": linear_decay, "cosine-decay": cosine_decay, "linear-ascend": linear_ascend,
    "square-above": square_above, "square-below": square_below, "triangle": triangle, "vee": vee,
    "warm-decay": warm_decay, "cosine-parabola": cosine_parabola, "elliptical": elliptical,
    "piecewise": piecewise, "warm-up": warm_up, "then": then, "scaled": scaled, "clipped": clipped,
    "uniform": uniform, "beta": beta, "mixture": mixture,
}  # fmt: skip


def schedule(spec: Schedule | float | str | Call | Callable[[int, int], float]) -> Schedule:
    """Anything that says how much to mask, as a schedule.

    Args:
        spec: a ratio, a schedule, its name in a recipe, or any function of (step, total steps).
    """
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, bool):
        raise MaskwiseError("a ratio is a number", got=spec)
    if isinstance(spec, int | float):
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
        return FunctionSchedule(
            f"function {getattr(spec, '__name__', type(spec).__name__)}", no_curve, function=spec
        )
    raise MaskwiseError(
        "not a masking ratio", got=spec, allowed="a number, a schedule, its name, or a function"
    )


__all__ = [
    "SCHEDULES", "Distribution", "FunctionSchedule", "Schedule", "Spec", "beta", "clipped", "constant", "cosine",
    "cosine_decay", "cosine_parabola", "elliptical", "linear", "linear_ascend", "linear_decay", "mixture", "piecewise",
    "scaled", "schedule", "square_above", "square_below", "step", "then", "triangle", "uniform", "vee", "warm_decay",
    "warm_up",
]  # fmt: skip
