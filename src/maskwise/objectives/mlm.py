"""Masked language modelling, with the vocabulary head run only where there is a target.

The head is the widest layer: at 15 % masking seven eighths of its work is thrown away by the usual loss. Each
architecture keeps its head under another name; the table says where. Anything else falls back to the model's
own logits, which is slower and gives the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.masking.masked import IGNORE, MaskedBatch
from maskwise.objectives.base import Objective, Outcome, weighted
from maskwise.objectives.work import Work, encoder_weights, vocabulary_head

Head = Callable[[Any, Tensor], Tensor]

HEADS: dict[str, Head] = {
    "bert": lambda m, h: m.cls(h),
    "deberta-v2": lambda m, h: m.cls(h),
    "roberta": lambda m, h: m.lm_head(h),
    "xlm-roberta": lambda m, h: m.lm_head(h),
    "mpnet": lambda m, h: m.lm_head(h),
    "albert": lambda m, h: m.predictions(h),
    "distilbert": lambda m, h: m.vocab_projector(m.vocab_layer_norm(m.activation(m.vocab_transform(h)))),
    "electra": lambda m, h: m.generator_lm_head(m.generator_predictions(h)),
    "modernbert": lambda m, h: m.decoder(m.head(h)),
}
"""From (model, hidden states (M, H)) to logits (M, V), by ``config.model_type``."""


class MaskedLanguageModelling(Objective):
    """Cross-entropy of the original token at every position with a label.

    Formula: sum over targets of −log p(original token | corrupted row).
    Inputs: a ``MaskedBatch`` (or a dict of model inputs with ``labels``).
    Requirements: a model with an MLM head (``AutoModelForMaskedLM``).
    Source: Devlin et al. 2019, section 3.1.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: MaskedBatch | dict[str, Tensor]) -> Outcome:
        losses, where = self.token_losses(batch)
        total = weighted(losses, getattr(batch, "loss_weight", None), *where.unbind(1)).sum()
        return Outcome(total, torch.tensor(losses.numel(), device=losses.device), losses.detach(), where)

    def token_losses(self, batch: MaskedBatch | dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss (M,) float32 and place (M, 2) of every target, in the order of the rows."""
        inputs = {name: batch[name] for name in batch.keys()}  # noqa: SIM118 (a MaskedBatch is no dict)
        labels = inputs.pop("labels")
        where = (labels != IGNORE).nonzero()
        row, column = where.unbind(1)
        logits = masked_logits(self.model, inputs, row, column)
        return cross_entropy(logits.float(), labels[row, column], reduction="none"), where

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = vocabulary_head(self.model)
        return Work(encoder_weights(self.model) * tokens, own * targets, tied * targets)


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling of *guided* tokens alone: each token of a salient span with probability 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. How their guide was built is not public; any
    span layer will do: ``policy: guided(layer="phrase")``.
    """

    masking: ClassVar[Mapping[str, Any]] = {
        "policy": "guided", "ratio": 0.5, "budget": "bernoulli", "min_targets": 0,
    }  # fmt: skip


def head_of(model: Any) -> Head | None:
    """The adapter of a model's prediction head, or None."""
    if model.config.model_type == "deberta-v2" and not hasattr(model, "cls"):  # its newer, unfactored head
        return None
    return HEADS.get(model.config.model_type)


def masked_logits(model: Any, inputs: dict[str, Tensor], row: Tensor, column: Tensor) -> Tensor:
    """Logits (M, V) at the places (row, column), both (M,)."""
    head = head_of(model)
    if head is None:
        return model(**inputs).logits[row, column]
    hidden = model.base_model(**inputs).last_hidden_state
    return head(model, hidden[row, column])
