"""Masked language modelling, with the vocabulary head applied at targets only.

Families without a known head (``families.ENCODERS``) use the model's own logits, which is slower
and gives the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from maskwise.families import adapter_of, masked_logits, prediction_head
from maskwise.objectives.base import (
    Batch,
    Masking,
    Objective,
    Outcome,
    Work,
    model_inputs,
    target_places,
    unrounded,
)
from maskwise.objectives.chunks import Chunks, output_of, too_many
from maskwise.weights import encoder_weights, head_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    compiled: Callable[[PreTrainedModel, Tensor, Tensor], Tensor] | None = None
    """``head_losses`` after ``torch.compile``, or None."""

    chunks: Chunks = Chunks()
    """Computes the losses where logits would be too many for memory."""

    tells_right: bool = False
    """Whether outcomes have ``right``; the head is then not compiled."""

    def forward(self, batch: Batch) -> Outcome:
        losses, where, right = self.answers(batch)
        return Outcome.of(losses, where)._replace(right=right)

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (M,) float32 and place (M, 2) of every target, in the order of the rows."""
        return self.answers(batch)[:2]

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses and places as in ``token_losses``, and (M,) bool whether the likeliest token is
        correct, or None unless ``tells_right``."""
        where = target_places(batch)
        row, column = where.unbind(1)
        truth = batch["labels"][row, column]
        inputs = self.inputs(batch)
        if self.tells_right or prediction_head(self.model) is None:
            logits = masked_logits(self.model, inputs, row, column)
            right = logits.argmax(-1) == truth if self.tells_right else None
            return cross_entropy(unrounded(logits), truth, reduction="none"), where, right
        states_MH = adapter_of(self.model.config).states(self.model, inputs)[row, column]
        return self.losses_of(states_MH, truth), where, None

    def losses_of(self, states_MH: Tensor, truth: Tensor) -> Tensor:
        """(M,) float32: losses of targets from the encoder's states at their places."""
        family = adapter_of(self.model.config)
        if family.ends_in_output and too_many(len(truth), self.model.config.vocab_size):
            return self.chunks(*output_of(self.model, states_MH), truth)
        compute = self.compiled or head_losses
        return compute(self.model, states_MH, truth)

    def compile_head(self) -> None:
        """Compile the head and the loss, if the head is known."""
        if prediction_head(self.model) is not None:
            # The number of targets is another one at every step.
            self.compiled = torch.compile(head_losses, dynamic=True)
            self.chunks = Chunks(compiled=True)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's inputs of a batch."""
        return model_inputs(self.model, batch)

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = head_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, own * targets, tied * targets)


def head_losses(model: PreTrainedModel, states_MH: Tensor, truth: Tensor) -> Tensor:
    """(M,) float32: losses of targets from the encoder's states at their places."""
    head = prediction_head(model)
    assert head is not None
    return cross_entropy(unrounded(head(model, states_MH)), truth, reduction="none")


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling of tokens in salient spans only, each with probability 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. Their spans are not public; any
        span layer will do: ``policy: guided(layer="phrase")``.
    """

    masking: ClassVar[Masking] = {
        "policy": "guided",
        "ratio": 0.5,
        "budget": "bernoulli",
        "min_targets": 0,
    }
