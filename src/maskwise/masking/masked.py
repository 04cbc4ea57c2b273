"""The second noun: the masked batch. What the model reads and what it must produce."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from maskwise.masking.annotated import AnnotatedBatch

IGNORE = -100
"""The label of a position where there is nothing to predict."""


@dataclass
class MaskedBatch:
    """Inputs and targets. ``model(**batch)`` works: as a mapping it holds just what the model reads.

    Attributes:
        input_ids: (B, L') int64, corrupted.
        labels: (B, L'') int64, −100 where there is nothing to predict.
        attention_mask: (B, L') int64, or None when no row is padded.
        extras: further model inputs, such as ``token_type_ids``.
        loss_weight: (B,) float64, (B, L) in packed rows, or None: what each loss is multiplied by (masked
            diffusion: 1/ratio).
        ratio: (B,) float64, the ratio asked for, row by row (segment by segment in packed rows: their mean).
        selected: (B, L) bool over the *source* tokens: what the policy chose.
        filled: (B, L) bool, chosen tokens that only filled an unused budget; None where nothing may fill.
        source: the annotated batch this was made from.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    source: AnnotatedBatch
    selected: Tensor
    ratio: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    filled: Tensor | None = None
    loss_weight: Tensor | None = None

    @property
    def targets(self) -> int:
        """How many positions are to be predicted."""
        return int((self.labels != IGNORE).sum())

    @property
    def realised_ratio(self) -> float:
        """Chosen share of the tokens that could be chosen."""
        return int(self.selected.sum()) / max(1, int(self.source.eligible.sum()))

    def keys(self) -> Iterator[str]:
        yield from ("input_ids", "labels")
        if self.attention_mask is not None:
            yield "attention_mask"
        yield from self.extras

    def __getitem__(self, name: str) -> Any:
        return self.extras[name] if name in self.extras else getattr(self, name)

    def model_inputs(self) -> dict[str, Tensor]:
        """A plain dict of the tensors that the model reads, ``labels`` among them."""
        return {name: self[name] for name in self.keys()}
