"""What a sampler is: at every step, which arm trains now. An arm is an objective with its masking.

A draw is a function of (seed, step) and of the probabilities in force, so every rank draws the same
arm and a resumed run goes on with the same ones. Samplers that learn are told, every ``every``
steps, the losses of all arms on probe data, before and after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError, unknown_name, whole_number
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

    rows: int = 64
    """Held-out rows on which a probe measures an arm."""

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
        place = self.place(step) * float(edges[-1])
        return self.arms[
            int(torch.searchsorted(edges, torch.tensor(place, dtype=torch.float64), right=True))
        ]

    def place(self, step: int) -> float:
        """Between 0 and 1: where a step's draw falls among the probabilities."""
        return (fold(self.seed, step, 0xA6) + 0.5) / 2**32

    def update(self, before: Losses, after: Losses) -> Tensor:
        """Learn from the losses of the arms on the probe data before and after the last ``every``
        steps.

        Returns:
            (K,) what the probabilities follow from now: logits, or for rules the probabilities
            themselves.
        """
        return self.probabilities()

    def reward(self, before: Losses, after: Losses) -> float | None:
        """What it makes of the losses before and after a rollout, as one number; None for rules."""
        return None

    def probed_rows(self, *, twins: bool) -> int:
        """Rows of a probe of an arm. One that reads half of them twice (cse) gets half again as
        many: 48 pairs.
        """
        return self.rows * 3 // 2 if twins else self.rows

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
            raise MaskwiseError(
                "one loss for each arm", got=len(losses), allowed=f"{len(self.arms)}"
            )
        return torch.as_tensor(losses, dtype=torch.float64)


ROLLOUTS, PUBLISHED_EVERY = 60, 100
"""Into how many rollouts a short run is cut, and the steps of a published one, which is the
longest.
"""


def interval(every: int | None, steps: int | None) -> int:
    """The steps between two probes: those that are given, or a sixtieth of the run, or 100.

    >>> interval(None, 600), interval(None, 50_000), interval(25, 600)
    (10, 100, 25)

    Raises:
        MaskwiseError: anything but a whole number from 1 on.
    """
    if every is None:
        return PUBLISHED_EVERY if steps is None else min(PUBLISHED_EVERY, max(1, steps // ROLLOUTS))
    return whole_number("steps between probes", every, least=1)


def probe_size(rows: int) -> int:
    """The rows of a probe.

    Raises:
        MaskwiseError: anything but a whole number from 4 on.
    """
    return whole_number("rows of a sampler's probe", rows, least=4)


def reliability(halves: Tensor) -> float | None:
    """The share of the variance of a reward that is no accident of the probe's rows.

    The reward is measured on two halves of the probe. Where the halves agree, it is the model that
    changed; where they do not, it is chance: 1 − var(A − B) / var(A + B) (Rulon 1939). The first
    quarter of the rollouts is left out, in which every loss falls, so that any two halves agree.
    Chance alone gives 0, on average, and sometimes less.

    Args:
        halves: (T, 2), the rewards of T rollouts on either half.

    Returns:
        None where fewer than six rollouts are left, or the reward never changes.

    >>> reliability(torch.tensor([[0.0, 0.0], [1.0, 1.2], [0.2, 0.0], [0.9, 1.0]] * 3).double())
    0.9...
    """
    late = halves[len(halves) // 4 :].double()
    if len(late) < 6 or not float(late.sum(1).var()) > 0:
        return None
    return float(1 - late.diff(dim=1).var() / late.sum(1).var())
