"""Running losses of groups of tokens, and the weights that follow from them: what POS-weighted masking learns.

A group is a value of a categorical layer (a part of speech, an entity type, a frequency bucket). State is a few
numbers per group on the training device; an update costs microseconds and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weigh = Callable[[Tensor, Tensor], Tensor]

UNKNOWN = 0.5
"""The weight of a group of which nothing is known, and of tokens of no group."""


def standardised(loss_C: Tensor, seen_C: Tensor) -> Tensor:
    """(C,) weights: sigmoid(2 (s − mean) / SD) over the seen groups, SD with n − 1; unseen ones ``UNKNOWN``.

    Fewer than two seen groups, or no spread between them: ``UNKNOWN`` for all. Source: Yang et al. 2023, section 3.
    """
    count = seen_C.sum()
    centred = torch.where(seen_C, loss_C - (loss_C * seen_C).sum() / count.clamp(min=1), 0.0)
    spread = ((centred**2).sum() / (count - 1).clamp(min=1)).sqrt()
    # Equal losses may leave a spread of rounding errors, which would make weights of 0 and 1 out of nothing.
    told = spread > 1e-12 * loss_C.abs().max()
    weight = torch.sigmoid(2 * centred / torch.where(told, spread, 1.0))
    return torch.where(seen_C & told, weight, UNKNOWN)


class GroupLosses:
    """Mean losses of C groups, exponentially averaged over updates.

    Args:
        groups: C.
        momentum: what is kept of the average at every update of a group; None: by ``half_life_steps``.
        half_life_steps: updates after which half of the average is new; None: a twentieth of the run.
        corrected: divide by what the average has seen so far, and leave groups out that were never seen. False:
            as published, where averages start at 0 and every group counts from the start.
        weigh: from (losses (C,), seen (C,) bool) to weights (C,).
    """

    def __init__(
        self, groups: int, *, momentum: float | None = None, half_life_steps: float | None = None,
        corrected: bool = True, weigh: Weigh = standardised,
    ):  # fmt: skip
        self.momentum, self.half_life_steps = momentum, half_life_steps
        self.corrected, self.weigh = corrected, weigh
        self.average_C = torch.zeros(groups, dtype=torch.float64)
        self.unseen_C = torch.ones(groups, dtype=torch.float64)  # m to the power of the updates of each group
        self.weight_C = torch.full((groups,), UNKNOWN, dtype=torch.float64)

    def update(self, sums_2C: Tensor, total_steps: int) -> None:
        """Learn from (2, C) float64: sums of the losses of each group and numbers of targets, of all ranks."""
        self._to(sums_2C.device)
        total_C, count_C = sums_2C
        m, present_C = self.kept(total_steps), count_C > 0
        new_C = m * self.average_C + (1 - m) * total_C / count_C.clamp(min=1)
        self.average_C = torch.where(present_C, new_C, self.average_C)
        self.unseen_C = torch.where(present_C, m * self.unseen_C, self.unseen_C)
        self.weight_C = self.weigh(self.losses(), self.seen())

    def kept(self, total_steps: int) -> float:
        """m: what an update keeps of the average."""
        if self.momentum is not None:
            return self.momentum
        return 0.5 ** (1 / (self.half_life_steps or max(1.0, total_steps / 20)))

    def losses(self) -> Tensor:
        """(C,) float64, nats."""
        if not self.corrected:
            return self.average_C
        return self.average_C / torch.where(self.unseen_C < 1, 1 - self.unseen_C, 1.0)

    def seen(self) -> Tensor:
        """(C,) bool: groups whose losses count."""
        return self.unseen_C < 1 if self.corrected else torch.ones_like(self.unseen_C, dtype=torch.bool)

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average_C, "unseen": self.unseen_C, "weight": self.weight_C}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average_C, self.unseen_C, self.weight_C = (state[k] for k in ("average", "unseen", "weight"))

    def _to(self, device: torch.device) -> None:
        self.average_C, self.unseen_C = self.average_C.to(device), self.unseen_C.to(device)
