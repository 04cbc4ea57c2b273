"""Token blocks to masked batches: order, masking at the exact step, and what to log of it.

Masking happens here, in the main process, on the device of the model: a schedule acts at the very step, and
nothing is hidden in a worker's copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking import MaskedBatch
from maskwise.masking.collator import permutation
from maskwise.objectives.base import Maker
from maskwise.training.learners import Learner, learners_of
from maskwise.training.settings import TrainingSettings


class Blocks(Protocol):
    """Rows of tokens with their layers (``corpus.Blocks``)."""

    def __len__(self) -> int: ...
    def batch(self, rows: Tensor) -> dict[str, Tensor]: ...


class MaskedSource:
    """Masked batches from blocks.

    Args:
        blocks: the rows.
        masker: what masks them, or makes batches of them in another way.
        settings: batch size, steps, seed.

    Raises:
        MaskwiseError: fewer rows than one batch.
    """

    def __init__(self, blocks: Blocks, masker: Maker, settings: TrainingSettings):
        if len(blocks) < settings.batch_size:
            raise MaskwiseError(
                "the corpus is smaller than one batch", got=f"{len(blocks)} rows",
                allowed=f"at least batch_size = {settings.batch_size}",
                do="use more text, or a smaller batch_size",
            )  # fmt: skip
        self.blocks, self.masker, self.settings = blocks, masker, settings
        self.per_epoch = len(blocks) // settings.batch_size

    def batches(self, step: int, *, rank: int, ranks: int, device: torch.device) -> list[MaskedBatch]:
        """The micro-batches of ``step`` for ``rank``: a function of (seed, step) and of nothing before."""
        epoch, place = divmod(step, self.per_epoch)
        order = permutation(len(self.blocks), seed=self.settings.seed, epoch=epoch)
        rows = order[place * self.settings.batch_size :][: self.settings.batch_size]
        mine = rows.view(self.settings.accumulate, ranks, -1)[:, rank]
        total = self.settings.steps
        return [
            self.masker(load_rows(self.blocks, part, device), step=step, total_steps=total, epoch=epoch)
            for part in mine
        ]

    def learners(self) -> dict[str, Learner]:
        """What of the masking learns from the losses; see ``learners_of``."""
        return learners_of(self.masker)

    def facts(self, batches: list[MaskedBatch]) -> dict[str, float]:
        """Sums to log: tokens read, tokens that could be chosen, that were, and the ratio asked for."""
        return {
            "tokens": float(sum(int(b.source.content.sum()) for b in batches)),
            "eligible": float(sum(int(b.source.eligible.sum()) for b in batches)),
            "chosen": float(sum(int(b.selected.sum()) for b in batches)),
            "asked": float(sum(float(b.ratio.sum()) for b in batches)),
            "rows": float(sum(len(b.ratio) for b in batches)),
        }

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        return {
            "tokens": int(sums["tokens"]),
            "ratio": sums["chosen"] / max(1.0, sums["eligible"]),
            "scheduled_ratio": sums["asked"] / max(1.0, sums["rows"]),
        }


def load_rows(blocks: Blocks, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
    """The columns of some rows, on the device."""
    return {name: value.to(device, non_blocking=True) for name, value in blocks.batch(rows).items()}


def log_frequencies(counts: Tensor) -> Tensor:
    """Log-probabilities (V,) float32 from counts (V,), each count plus one."""
    smooth = counts.double() + 1
    return (smooth / smooth.sum()).log().float()
