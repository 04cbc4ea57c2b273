"""Masked language modelling and its variants: entity masking, diffusion, and span boundaries.

The prediction head is applied only to the hidden states of targets. If the head of a model cannot
be called alone (``families.prediction_head``), logits are computed at all positions. The loss is
the same, but slower to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from maskwise.masking import MaskedBatch
from maskwise.masking.diffusion import Noising, Rates
from maskwise.masking.settings import Masking
from maskwise.models.families import Head, adapter_of, masked_logits, picked, prediction_head
from maskwise.models.flops import Work, encoder_weights, head_weights
from maskwise.objectives.base import (
    Batch,
    Inputs,
    Loss,
    Objective,
    as_scalar,
    model_inputs,
    target_places,
    unrounded,
    weighted,
)
from maskwise.objectives.chunks import in_chunks, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Read: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""A function of logits (M, V) and correct tokens (M,), which returns tensors (M,)."""
ReadHead: TypeAlias = Callable[..., tuple[Tensor, ...]]


class MaskedLanguageModelling(Objective):
    """Cross-entropy of the original token at every position with a label.

    Formula: sum over targets of −log p(original token | corrupted row).
    Inputs: a ``MaskedBatch``, or a dict of model inputs with ``labels``.
    Requirements: a model with an MLM head.
    Source: Devlin et al. 2019, section 3.1.
    """

    alone = True

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # ``compile_head`` replaces the function by its compiled version.
        self.read_head: ReadHead = read_head

    tells_right = False
    """Whether losses include ``right``."""

    smoothing = 0.0
    """The share of each target that is spread evenly over the vocabulary (label smoothing)."""

    def forward(self, batch: Batch) -> Loss:
        return self.loss(batch, *self.answers(batch))

    def loss(self, batch: Batch, losses: Tensor, where: Tensor, right: Tensor | None) -> Loss:
        """Sum what ``answers`` returns, with the weights of masked diffusion if there are any."""
        loss = Loss.of(losses, where)._replace(right=right)
        if isinstance(batch, MaskedBatch) and batch.loss_weight is not None:
            total = weighted(losses, batch.loss_weight, *where.unbind(1)).sum()
            loss = loss._replace(total=total, divisor=as_scalar(batch.counted or 0, losses))
        return loss

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses (M,) float32 and the positions (M, 2) of all targets, row by row."""
        return self.answers(batch)[:2]

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the losses and positions of all targets, and ``right`` as in ``Loss``."""
        where = target_places(batch)
        inputs = self.inputs(batch)
        found = read_at(self.model, where, batch["labels"], inputs, self.read, head=self.read_head)
        losses, *more = found
        return losses, where, more[0] if more else None

    @property
    def read(self) -> Read:
        """The function that reads the losses, and ``right`` if it is wanted, from logits."""
        read = losses_and_right if self.tells_right else losses_alone
        return partial(read, smoothing=self.smoothing) if self.smoothing else read

    def compile_head(self) -> None:
        """Compile the head and the loss, if the head is known."""
        if prediction_head(self.model) is not None:
            # Shapes are dynamic, because the number of targets varies from step to step.
            self.read_head = torch.compile(read_head, dynamic=True)

    def inputs(self, batch: Batch) -> Inputs:
        """Return the model's inputs from a batch."""
        return model_inputs(self.model, batch)

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = head_weights(self.model)
        # A head that is not known runs on all tokens.
        places = tokens if prediction_head(self.model) is None else targets
        return Work(encoder_weights(self.model) * tokens, own * places, tied * places)


def read_head(head: Head, read: Read, states_MH: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
    """Apply the prediction head to hidden states at targets, and read the logits."""
    return read(head(states_MH), truth)


def read_at(
    model: PreTrainedModel,
    where: Tensor,
    labels: Tensor,
    inputs: Inputs,
    read: Read,
    *,
    head: ReadHead = read_head,
) -> tuple[Tensor, ...]:
    """Return what a function reads from the logits at targets, as tensors (M,).

    Args:
        model: a model with a prediction head.
        where: (M, 2) int64, the row and the column of each target.
        labels: (B, L) int64, the correct tokens.
        inputs: the model's inputs.
        read: a function of the logits (M, V) and the correct tokens (M,).
        head: the function ``read_head``, or its compiled version.
    """
    at = where.unbind(1)
    truth = labels[at]
    if prediction_head(model) is None:
        return read(masked_logits(model, inputs, *at), truth)
    states = adapter_of(model.config).states(model, inputs)
    return read_states(model, picked(states, *at), truth, read, head=head)


def read_states(
    model: PreTrainedModel,
    states_MH: Tensor,
    truth: Tensor,
    read: Read,
    *,
    head: ReadHead = read_head,
) -> tuple[Tensor, ...]:
    """The same as ``read_at``, from the inputs of the head at the targets."""
    compute = partial(head, prediction_head(model), read)
    return in_chunks(compute, states_MH, truth, vocabulary=model.config.vocab_size)


def losses_alone(logits: Tensor, truth: Tensor, smoothing: float = 0.0) -> tuple[Tensor]:
    """(M,) float32: the loss of each target."""
    logits = unrounded(logits)
    if smoothing:
        return (cross_entropy(logits, truth, reduction="none", label_smoothing=smoothing),)
    return (token_losses(logits, truth),)


def losses_and_right(
    logits: Tensor, truth: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss of each target, and whether the most probable token is the target, both (M,)."""
    # Losses may overwrite the logits, so they are computed last.
    right = logits.argmax(-1) == truth
    (losses,) = losses_alone(logits, truth, smoothing)
    return losses, right


class MaskedNextTokenPrediction(MaskedLanguageModelling):
    """Cross-entropy of masked tokens, each predicted from the position before it.

    The head of a decoder predicts the next token, so it is used as it was trained; attention sees
    both sides.

    Formula: sum over targets i of −log p(original token i | corrupted row), read at position i − 1;
        at position 0 for a target that is the first token of a row.
    Inputs: a ``MaskedBatch``, or a dict of model inputs with ``labels``.
    Requirements: a decoder with ``model.changes: bidirectional()``.
    Source: BehnamGhader et al. 2024 (LLM2Vec, arXiv 2404.05961), section 2.2.
    """

    predicts_next = True


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling on salient spans. Each token of a span is masked with p = 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. Their spans are not public. Any
        layer of spans can be used, as in ``policy: guided(layer="phrase")``.
    """

    alone = False
    masking = {
        "policy": "guided",
        "ratio": 0.5,
        "budget": "bernoulli",
        "min_targets": 0,
    }


# Masked diffusion
# -------------------------------------------------------------------------------------------

# The sum of weighted losses is divided by the number of *eligible* tokens, so the loss estimates
# the bound on −log p(text) in nats per token. ``masking.diffusion`` computes the loss weights.


class MaskedDiffusion(MaskedLanguageModelling):
    """Weighted cross-entropy of masked tokens: a bound on −log p(text), in nats per eligible token.

    Formula: Σ weight · −log p(token | visible tokens) / number of eligible tokens. The weight is
        1 / (t · p(t)) if rates t are drawn with density p, and 1 / (n · P(n)) if the number n of
        masked tokens is drawn with probability P.
    Inputs: a ``MaskedBatch`` from ``masking.Noising``, which includes the loss weights.
    Requirements: a model with an MLM head, and a tokenizer with a mask token.
    Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Nie et al. 2025 (LLaDA, arXiv 2502.09992).
    """

    diffuses = True
    batches = Noising
    masking = {
        "ratio": "uniform(0, 1)",
        "budget": "exact",
        "corruption": "mask-only",
        "min_targets": 0,
    }

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        no_bound = "its loss is not a bound on the likelihood"
        # Schedules may change during the run, so check the beginning, the middle and the end.
        if not all(Rates(masking.ratio, step, 100).complete for step in (0, 50, 99)):
            return f"with ratio {masking.ratio}, the masking rates are fixed: {no_bound}"
        if masking.policy.reads_text:
            return f"the masking policy depends on the text that it hides: {no_bound}"
        return None
