"""Which arm next. One rule or learner a class; the table below is the only registry.

Imports ``masking`` (for schedules) and below. Nothing here sees a model: probing is ``training``'s
affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from maskwise.samplers.base import Losses, Sampler
from maskwise.samplers.mometas import Mometas, MometasPlus
from maskwise.samplers.rules import (
    LossProportional,
    Sequential,
    Shares,
    Single,
    Temperature,
    Uniform,
)
from maskwise.specs import Call, build

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "single": Single,
    "uniform": Uniform,
    "sequential": Sequential,
    "shares": Shares,
    "temperature": Temperature,
    "loss-proportional": LossProportional,
    "mometas": Mometas,
    "mometas-plus": MometasPlus,
}


LEARNING = ("loss-proportional", "mometas", "mometas-plus")
"""Those that probe the arms, and are told how long the run is."""


def sampler(
    spec: str | Call,
    arms: Sequence[str],
    *,
    seed: int = 0,
    chance: Losses | None = None,
    steps: int | None = None,
) -> Sampler:
    """A sampler from its name with arguments, such as ``mometas(entropy=1.0)``, over these arms.

    Args:
        chance: the chance level of each arm, for samplers that divide by it.
        steps: of the run; what is not said of a sampler that learns is scaled to it.
    """
    table = {name: partial(made, arms, seed=seed) for name, made in SAMPLERS.items()}
    table |= {name: partial(table[name], steps=steps) for name in LEARNING}
    table["loss-proportional"] = partial(table["loss-proportional"], chance=chance)
    return build("sampler", spec, table)


__all__ = [
    "SAMPLERS",
    "LossProportional",
    "Mometas",
    "MometasPlus",
    "Sampler",
    "Sequential",
    "Shares",
    "Single",
    "Temperature",
    "Uniform",
    "sampler",
]
