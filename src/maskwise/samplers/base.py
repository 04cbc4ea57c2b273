"""What a sampler is: at every step, which arm trains now. An arm is an objective with its masking.

A draw is a function of (seed, step) and of the probabilities in force, so every rank draws the same arm and a
resumed run goes on with the same ones. Samplers that learn are told, every ``every`` steps, the losses of all
arms on probe data, before and after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.keys import fold

Losses = Mapping[str, float] | Sequence[float] | Tensor


class Sampler(ABC):
    """Base of all samplers.

    Args:
        arms: their names.
        seed: any integer.

    Raises:
        MaskwiseError: no arms, or two of one name.
    """

    every: int = 0
    """Steps between two probes; 0 for samplers that need none."""

    def __init__(self, arms: Sequence[str], *, seed: int = 0):
        self.arms, self.seed = tuple(arms), seed
        self.notes: list[str] = []
        """What somebody should know of the last update, in sentences; mostly nothing."""
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise MaskwiseError("a sampler needs arms with different names", got=list(self.arms))

    @abstractmethod
    def probabilities(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        """(K,) float64: the probability of each arm at a step; they sum to 1."""

    def draw(self, step: int, total_steps: int | None = None) -> str:
        """The arm of a step."""
        edges = self.probabilities(step, total_steps).cumsum(0)
        place = (fold(self.seed, step, 0xA6) + 0.5) / 2**32 * float(edges[-1])
        return self.arms[int(torch.searchsorted(edges, torch.tensor(place, dtype=torch.float64), right=True))]

    def update(self, before: Losses, after: Losses) -> Tensor:
        """Learn from the losses of the arms on the probe data before and after the last ``every`` steps.

        Returns:
            (K,) what the probabilities follow from now: logits, or for rules the probabilities themselves.
        """
        return self.probabilities()

    def state_dict(self) -> dict[str, Tensor]:
        """What it has learned; empty for rules."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """The inverse of ``state_dict``; rules have nothing to load."""

    def vector(self, losses: Losses) -> Tensor:
        """(K,) float64 from losses by name or in the order of the arms.

        Raises:
            MaskwiseError: an arm without a loss, or a loss without an arm.
        """
        if isinstance(losses, Mapping):
            for name in losses:
                if name not in self.arms:
                    raise unknown_name("arm", name, self.arms)
            losses = [losses.get(name, torch.nan) for name in self.arms]
        if len(losses) != len(self.arms):
            raise MaskwiseError("one loss for each arm", got=len(losses), allowed=f"{len(self.arms)}")
        return torch.as_tensor(losses, dtype=torch.float64)


def check_interval(every: int) -> int:
    """The steps between two probes.

    Raises:
        MaskwiseError: anything but a whole number from 1 on.
    """
    if not isinstance(every, int) or every < 1:
        raise MaskwiseError("steps between probes", got=every, allowed="1, 2, 3, …")
    return every
