"""What an objective is: a masked batch in, a sum of losses and a count out. The loop divides once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn


class Outcome(NamedTuple):
    """What a batch cost.

    Attributes:
        loss: sum of the losses of all targets, a scalar in nats, with its gradient.
        targets: number of targets, a scalar.
        losses: (M,) float32, the loss of every target, detached; None where an objective has no targets at places.
        where: (M, 2) int64, row and column of every target.
    """

    loss: Tensor
    targets: Tensor
    losses: Tensor | None = None
    where: Tensor | None = None


class Objective(nn.Module, ABC):
    """A model with its head and its loss.

    It is called as a module, so that DDP and FSDP see one forward pass: ``objective(batch)`` returns an
    ``Outcome``. Sums and counts, not means: gradient accumulation and several ranks then weigh every target
    alike, whatever batch it was in.
    """

    model: nn.Module

    @abstractmethod
    def forward(self, batch: Any) -> Outcome:
        """The losses of a batch."""


def weighted(losses: Tensor, weight: Tensor | None, row: Tensor, column: Tensor) -> Tensor:
    """Losses (M,) of the targets at (row, column), times the weights of their rows (B,) or tokens (B, L)."""
    if weight is None:
        return losses
    return losses * (weight[row] if weight.dim() == 1 else weight[row, column]).to(losses.dtype)
