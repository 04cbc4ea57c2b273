"""What a schedule is: a named curve over the progress of training, or a distribution for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.specs import Call

Curve = Callable[[float], float]
Spec: TypeAlias = "Schedule | float | str | Call"


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
            raise MaskwiseError(
                f"schedule {self.name} leaves the range", got=round(worst, 4), allowed="0 to 1"
            )

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
        return min(max(step / total_steps, 0.0), 1.0)

    def rows(self, draw_B: Tensor, step: int, total_steps: int | None) -> tuple[Tensor, Tensor | None]:
        """Ratios (B,) float64 and loss weights (B,) or None, from one uniform draw in (0, 1) a row."""
        return torch.full_like(draw_B, self(step, total_steps)), None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Distribution(Schedule):
    """A ratio for each row, drawn from a distribution, which may change over time; as a plain schedule it is
    the mean.

    Attributes:
        quantile: (progress, (B,) float64 draws in (0, 1)) to (B,) ratios.
        inverse_weight: weigh each row's loss by 1/ratio, as masked diffusion does.
    """

    quantile: Callable[[float, Tensor], Tensor] = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    inverse_weight: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = torch.tensor([2.0**-33, 0.5, 1 - 2.0**-33], dtype=torch.float64)
        self._check([r for i in range(21) for r in self.quantile(i / 20, ends).tolist()])

    def rows(self, draw_B: Tensor, step: int, total_steps: int | None) -> tuple[Tensor, Tensor | None]:
        ratio = self.quantile(self.progress(step, total_steps), draw_B).clamp(0, 1)
        return ratio, 1 / ratio.clamp(min=1e-3) if self.inverse_weight else None


@dataclass(frozen=True)
class FunctionSchedule(Schedule):
    """A user's own function of (step, total steps); it is given 0 where nobody said how many steps there will
    be."""

    function: Callable[[int, int], float] = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        pass  # nothing to check: a function is asked at whole steps only

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        ratio = float(self.function(step, total_steps or 0))
        if not 0 <= ratio <= 1:
            raise MaskwiseError(f"{self.name} gave no ratio at step {step}", got=ratio, allowed="0 to 1")
        return ratio


def no_curve(f: float) -> float:
    raise AssertionError("a function schedule has no curve")


def named(name: str, curve: Any, *args: Any, varies: bool = True) -> Schedule:
    """A schedule of a curve whose first arguments are given, under the name that a recipe writes."""
    shown = ", ".join(str(a) for a in args)
    return Schedule(f"{name}({shown})" if shown else name, partial(curve, *args), varies)


def straight(a: float, b: float, f: float) -> float:
    """The curve from a to b in a straight line."""
    return a + f * (b - a)


def constant(p: float = 0.15) -> Schedule:
    """p throughout."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise MaskwiseError("a masking ratio is a share", got=p, allowed="0 to 1")
    return Schedule(f"constant({float(p)})", partial(straight, p, p), False)
