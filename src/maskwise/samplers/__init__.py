"""Samplers choose the objective of each training step, if a run has several objectives.

Some samplers learn from losses, but they never get a model: ``training`` measures the losses.
``SAMPLERS`` is the only registry. This package may import from ``masking`` (for schedules) and from
the layers below ``masking``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from maskwise.base.plugins import Table
from maskwise.base.specs import Call, build, find
from maskwise.samplers.base import (
    Losses,
    LossProportional,
    Sampler,
    Sequential,
    Shares,
    Single,
    Uniform,
)
from maskwise.samplers.mometas import Mometas, MometasPlus

_BUILT_IN: dict[str, type[Sampler]] = {
    "single": Single,
    "uniform": Uniform,
    "sequential": Sequential,
    "shares": Shares,
    "loss-proportional": LossProportional,
    "mometas": Mometas,
    "mometas-plus": MometasPlus,
}
SAMPLERS = Table("sampler", "maskwise.samplers", _BUILT_IN)
"""The samplers by their names in recipes."""


def sampler(
    spec: str | Call,
    objectives: Sequence[str],
    *,
    seed: int = 0,
    chance: Losses | None = None,
    steps: int | None = None,
) -> Sampler:
    """Build a sampler from its name with arguments, such as ``mometas(entropy=1.0)``.

    Args:
        spec: the name and its arguments.
        objectives: the names of the objectives.
        seed: any integer.
        chance: the loss of random guessing for each objective. The sampler ``loss-proportional``
            divides losses by it.
        steps: the number of steps in the run, from which samplers that learn compute their default
            settings.

    Raises:
        MaskwiseError: the name is unknown, or an argument is not valid.
    """
    further: dict[str, dict[str, object]] = {
        "loss-proportional": {"steps": steps, "chance": chance},
        "mometas": {"steps": steps},
        "mometas-plus": {"steps": steps},
    }
    call, kind = find("sampler", spec, SAMPLERS)
    made = partial(kind, objectives, seed=seed, **further.get(call.name, {}))
    return build("sampler", call, {call.name: made}, makes=Sampler)


__all__ = [
    "SAMPLERS",
    "LossProportional",
    "Mometas",
    "MometasPlus",
    "Sampler",
    "Sequential",
    "Shares",
    "Single",
    "Uniform",
    "sampler",
]
