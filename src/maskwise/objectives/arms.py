"""Several objectives over one encoder: each batch says which of them it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from maskwise.masking import MaskedBatch
from maskwise.masking.batch import AnnotatedBatch
from maskwise.objectives.base import Objective, Outcome


@dataclass
class ArmBatch:
    """A batch, and the arm it was made for. As a mapping it is the batch."""

    arm: str
    batch: MaskedBatch

    def keys(self) -> Iterator[str]:
        return self.batch.keys()

    def __getitem__(self, name: str) -> Tensor:
        return self.batch[name]

    @property
    def source(self) -> AnnotatedBatch:
        return self.batch.source

    @property
    def tokens(self) -> int:
        return self.batch.tokens


class Arms(Objective):
    """The losses of whichever arm a batch is for.

    Args:
        arms: by name; all have the same ``model``. Their heads are theirs, so an arm may stand here twice, with
            another policy or ratio, and share or not share its head as it was built.
    """

    def __init__(self, arms: Mapping[str, Objective]):
        super().__init__()
        self.model = next(iter(arms.values())).model
        assert all(arm.model is self.model for arm in arms.values())
        self.names = tuple(arms)
        self.members = nn.ModuleList(arms.values())

    def arm(self, name: str) -> Objective:
        """The objective of that name."""
        return self.members[self.names.index(name)]  # type: ignore[return-value]

    def forward(self, batch: ArmBatch) -> Outcome:
        return self.arm(batch.arm)(batch.batch)

    def heads(self) -> dict[str, Tensor]:
        """What is not the model's, by arm: what drops out when a checkpoint becomes an ordinary encoder."""
        own = {id(p) for p in self.model.parameters()}
        return {
            f"{name}.{key}": value.detach()
            for name, member in zip(self.names, self.members, strict=True)
            for key, value in member.named_parameters()
            if id(value) not in own
        }
