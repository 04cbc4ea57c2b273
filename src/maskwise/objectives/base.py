"""What an objective is: a masked batch in, a sum of losses and a count out. The loop divides once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """A model with its head and its loss.

    It is called as a module, so that DDP and FSDP see one forward pass: ``objective(batch)`` returns
    (sum of the losses of all targets, number of targets). Sums and counts, not means: gradient accumulation
    and several ranks then weigh every target alike, whatever batch it was in.
    """

    model: nn.Module

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum of losses, a scalar in nats, and number of targets, a scalar."""


def weighted(losses: Tensor, weight: Tensor | None, row: Tensor, column: Tensor) -> Tensor:
    """Losses (M,) of the targets at (row, column), times the weights of their rows (B,) or tokens (B, L)."""
    if weight is None:
        return losses
    return losses * (weight[row] if weight.dim() == 1 else weight[row, column]).to(losses.dtype)
