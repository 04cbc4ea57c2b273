"""The learning rate at a step.

It is a function of the step and the number of steps, so checkpoints do not save a scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

COOLDOWN = 0.1
"""The default share of the steps in which the rate falls with ``wsd`` (warm-up, stable, decay)."""

CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda fallen: 1 - fallen,
    "cosine": lambda fallen: (1 - math.cos(math.pi * (1 - fallen))) / 2,
    "1-sqrt": lambda fallen: 1 - math.sqrt(fallen),
    "wsd": lambda fallen: 1 - math.sqrt(fallen),
    "constant": lambda fallen: 1.0,
}
"""Functions from the completed share of the decay, 0 to 1, to the learning rate as a share of the
highest rate. A new curve is a line here: ``training.decay`` allows all of them."""

if TYPE_CHECKING:
    Curve: TypeAlias = str
else:
    Curve = Literal[tuple(CURVES)]


def falling_share(decay: str, decay_share: float | None) -> float:
    """Return the share of the steps, at the end, in which the learning rate falls.

    Args:
        decay: a key of ``CURVES``. With ``constant``, the rate never falls.
        decay_share: the share; if None, all steps, or a tenth of them for ``wsd``.
    """
    if decay == "constant":
        return 0.0
    if decay_share is not None:
        return decay_share
    return COOLDOWN if decay == "wsd" else 1.0


def rate_factor(
    step: int,
    steps: int,
    *,
    warmup: float,
    decay: str,
    decay_share: float | None = None,
    end: int | None = None,
) -> float:
    """Return the learning rate at a step as a share of the highest rate; always above 0.

    Args:
        step: the step, counted from 0.
        steps: the number of steps in the run.
        warmup: the share of the steps, at the beginning, in which the rate rises.
        decay: a key of ``CURVES``; ``wsd`` is 1-sqrt in the last tenth of the steps (Hägele et al.
            2024, arXiv 2405.18392).
        decay_share: as for ``falling_share``.
        end: the number of steps after which the rate has fallen, if not all. The warm-up is that of
            all steps, and the decay is the share of these.

    >>> how = {"warmup": 0.2, "decay": "linear", "decay_share": 0.5}
    >>> [round(rate_factor(step, 10, **how), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    rise = warmup * steps
    risen = min(1.0, (step + 1) / rise) if rise else 1.0
    share = falling_share(decay, decay_share)
    fallen = max(0.0, (step / (end or steps) - (1 - share)) / share) if share else 0.0
    return risen * CURVES[decay](fallen)
