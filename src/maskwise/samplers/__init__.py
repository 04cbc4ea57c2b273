"""Samplers over the arms of a training run. ``SAMPLERS`` is the only registry.

May import from ``masking`` (for schedules) and the layers below it. Samplers never see a model:
``training`` probes it for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from maskwise.samplers.base import (
    Losses,
    LossProportional,
    Sampler,
    Sequential,
    Shares,
    Single,
    Temperature,
    Uniform,
)
from maskwise.samplers.mometas import Mometas, MometasPlus
from maskwise.specs import Call, build

SAMPLERS: dict[str, type[Sampler]] = {
    "single": Single,
    "uniform": Uniform,
    "sequential": Sequential,
    "shares": Shares,
    "temperature": Temperature,
    "loss-proportional": LossProportional,
    "mometas": Mometas,
    "mometas-plus": MometasPlus,
}


def sampler(
    spec: str | Call,
    arms: Sequence[str],
    *,
    seed: int = 0,
    chance: Losses | None = None,
    steps: int | None = None,
) -> Sampler:
    """Build a sampler over arms from its name with arguments, such as ``mometas(entropy=1.0)``.

    Args:
        spec: the name and its arguments.
        arms: names of the arms.
        seed: any integer.
        chance: the chance level of each arm, for samplers that divide by it.
        steps: the steps in the run. Samplers that learn scale their defaults to this number.
    """
    further: dict[str, dict[str, object]] = {
        "loss-proportional": {"steps": steps, "chance": chance},
        "mometas": {"steps": steps},
        "mometas-plus": {"steps": steps},
    }
    table = {}
    for name, made in SAMPLERS.items():
        table[name] = partial(
            made,
            arms,
            seed=seed,
            **further.get(name, {}),
        )
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
