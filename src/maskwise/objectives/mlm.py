"""Masked language modelling, with the vocabulary head run only where there is a target.

Each family keeps that head under another name (``families.ENCODERS``). Any other falls back to the model's own logits,
which is slower and gives the same loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from maskwise.families import encoder_weights, head_weights, masked_logits
from maskwise.masking.batch import MaskedBatch
from maskwise.objectives.base import (
    Masking,
    Objective,
    Outcome,
    Work,
    model_inputs,
    target_places,
    unrounded,
    weighted,
)


class MaskedLanguageModelling(Objective):
    """Cross-entropy of the original token at every position with a label.

    Formula: sum over targets of −log p(original token | corrupted row).
    Inputs: a ``MaskedBatch`` (or a dict of model inputs with ``labels``).
    Requirements: a model with an MLM head.
    Source: Devlin et al. 2019, section 3.1.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: MaskedBatch | dict[str, Tensor]) -> Outcome:
        losses, where = self.token_losses(batch)
        total = weighted(losses, getattr(batch, "loss_weight", None), *where.unbind(1)).sum()
        return Outcome(total, torch.tensor(losses.numel(), device=losses.device), losses.detach(), where)

    def token_losses(self, batch: MaskedBatch | dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss (M,) float32 and place (M, 2) of every target, in the order of the rows."""
        where = target_places(batch)
        row, column = where.unbind(1)
        logits = masked_logits(self.model, self.inputs(batch), row, column)
        return cross_entropy(unrounded(logits), batch["labels"][row, column], reduction="none"), where

    def inputs(self, batch: MaskedBatch | dict[str, Tensor]) -> dict[str, Any]:
        """What of a batch the model reads."""
        return model_inputs(self.model, batch)

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = head_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, own * targets, tied * targets)


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling of *guided* tokens alone: each token of a salient span with probability 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. How their guide was built is not public; any
    span layer will do: ``policy: guided(layer="phrase")``.
    """

    masking: ClassVar[Masking] = {
        "policy": "guided", "ratio": 0.5, "budget": "bernoulli", "min_targets": 0,
    }  # fmt: skip
