"""What a policy is: it cuts rows into units and gives each a weight. Selection, budgets and keys are not its business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.units import Units


@dataclass(frozen=True)
class Moment:
    """When a mask is made: what policies that change over time, and schedules, depend on."""

    step: int = 0
    total_steps: int | None = None
    epoch: int | None = None


class Policy(ABC):
    """Base of all policies. Members are small frozen dataclasses, so that they can be compared and shown."""

    #: what the units are, for reports: arms with different units are not compared by one held-out loss
    units_name: str = "token"

    @abstractmethod
    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        """Cut (B, L) rows, one document each, into units.

        Args:
            batch: never packed; padding at the end.
            keys: the draws of these rows, for policies that are random themselves.
            moment: step, total steps and epoch.
        """

    def layers(self) -> tuple[str, ...]:
        """The layers that rows must bring."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """What a policy has learned; empty for those that learn nothing."""
        return {}
