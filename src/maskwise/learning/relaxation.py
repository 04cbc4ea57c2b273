"""Differentiable masks: a hard choice of units, their inclusion probabilities, and a relaxed loss.

A unit is masked as a whole: a token, a word or a span. A piece is a document, or the part of a
document that fits into a row. Its budget is the number of tokens that may be masked. The weight of
a unit is exp(score).

``masking.select`` chooses units by an exponential race. A unit with weight w has a random arrival
time with an exponential distribution of rate w. Units are chosen in order of arrival until the
budget is used up. At time τ, a unit has arrived with probability p = 1 − exp(−τ·w). For each piece,
the relaxation solves for the τ at which the expected number of arrived tokens equals the budget.
The forward pass uses the hard choice, which has no gradient. The backward pass uses the gradient of
p instead (a straight-through estimator). If the score of one unit rises, τ falls, and therefore the
probabilities of all other units fall.

Source: Ye et al. 2021 (arXiv 2104.08840), who use a softmax instead of the race.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.base.devices import Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Line
from maskwise.masking.batch import IGNORE
from maskwise.masking.draws import Array, Draws
from maskwise.masking.policies.base import units_by
from maskwise.masking.segments import LEAST_LOGIT, weights_within
from maskwise.masking.select import Choice, select
from maskwise.models.families import adapter_of, decoder_inputs, encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def inclusion(logit_U: Tensor, length_U: Tensor, piece_U: Tensor, budget_P: Tensor) -> Tensor:
    """Return the probability that each unit is chosen, given the budget of its piece.

    p = 1 − exp(−τ·w) with w = exp(logit), where τ solves Σ length·p = budget. If the budget is at
    least the number of tokens, p = 1. If the budget is 0, p = 0. In both cases the gradient is 0.

    Args:
        logit_U: (U,) the logits of the units. Only differences within a piece matter.
        length_U: (U,) the number of tokens in each unit.
        piece_U: (U,) the index of each unit's piece.
        budget_P: (P,) the budget of each piece, in tokens.

    Returns:
        (U,) the probabilities, with the data type and device of the logits. They are computed in
        float64 on the CPU. Their first and second derivatives are exact.

    >>> logit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    >>> length, piece = torch.tensor([1, 2, 1, 2]), torch.zeros(4, dtype=torch.long)
    >>> p = inclusion(logit, length, piece, torch.tensor([2.0]))
    >>> [round(x, 3) for x in p.tolist()], round(float((p * length).sum()), 12)
    ([0.204, 0.204, 0.462, 0.462], 2.0)
    """
    # The CPU is used because Apple's GPUs have no float64.
    logit = logit_U.cpu().double()
    length = length_U.cpu().double()
    piece = piece_U.cpu()
    budget = budget_P.cpu().double()
    weight = _below_top(logit, piece, len(budget)).clamp(min=LEAST_LOGIT).exp()

    def total(values_U: Tensor) -> Tensor:
        return values_U.new_zeros(len(budget)).index_add(0, piece, values_U)

    whole = total(length)
    solvable = (budget > 0) & (budget < whole)
    # Pieces without a solution get a dummy target. Their p is overwritten at the end.
    target = torch.where(solvable, budget, 0.5 * whole)

    def newton(tau: Tensor) -> Tensor:
        rest = length * torch.exp(-tau[piece] * weight)
        return tau + (target - whole + total(rest)) / total(rest * weight)

    with torch.no_grad():
        # The expected number of tokens is an increasing and concave function of τ. Newton steps
        # from below therefore never exceed the solution. The loop ends when no τ grows any more,
        # except by rounding.
        tau = target / total(length * weight)
        for _ in range(200):
            larger = newton(tau)
            if not (larger > tau * (1 + 1e-15)).any():
                break
            tau = torch.maximum(tau, larger)
    # τ is the solution now, but it was computed without a graph. Newton steps at the solution do
    # not change τ. One step with a graph makes the first derivatives of τ exact, and another step
    # makes the second derivatives exact.
    for _ in range(2):
        tau = newton(tau)
    p = -torch.expm1(-tau[piece] * weight)
    all_or_none = (budget > 0).double()
    p = torch.where(solvable[piece], p, all_or_none[piece])
    return p.to(logit_U.dtype).to(logit_U.device)


def _below_top(logit_U: Tensor, piece_U: Tensor, pieces: int) -> Tensor:
    """Return (U,) the logits minus the maximum of their piece. No gradient flows to the maximum."""
    top_P = logit_U.new_full((pieces,), -torch.inf)
    top_P = top_P.scatter_reduce(0, piece_U, logit_U.detach(), "amax")
    return logit_U - top_P[piece_U]


class Overflow(MaskwiseError):
    """Raised if a score of the policy is not finite."""


@dataclass(frozen=True, eq=False)
class RelaxedChoice:
    """The units that were chosen to be masked in P pieces, as tensors.

    Attributes:
        choice: the same choice as numpy arrays. Its line has the shape (B, L).
        token_M: (M,) the flat positions, in [0, B·L), of the tokens that belong to units.
        unit_M: (M,) the index of each token's unit.
        piece_U: (U,) the index of each unit's piece.
        length_U: (U,) the number of tokens in each unit.
        budget_P: (P,) the budget of each piece, in tokens.
        chosen_U: (U,) bool, whether each unit was chosen.
    """

    choice: Choice
    token_M: Tensor
    unit_M: Tensor
    piece_U: Tensor
    length_U: Tensor
    budget_P: Tensor
    chosen_U: Tensor

    @cached_property
    def budget(self) -> Tensor:
        """The sum of all budgets in tokens, a scalar. The pre-training loss is divided by it."""
        return self.budget_P.sum().clamp(min=1)

    def unit_logits(self, logit_BL: Tensor) -> Tensor:
        """Return (U,) the mean logit over the tokens of each unit."""
        logit_M = logit_BL.reshape(-1)[self.token_M]
        total_U = logit_BL.new_zeros(len(self.piece_U)).index_add(0, self.unit_M, logit_M)
        return total_U / self.length_U

    def spread(self, value_U: Tensor) -> Tensor:
        """Return (B, L) for each token the value of its unit; 0 for tokens that are in no unit."""
        rows, length = self.choice.units.line.shape
        line = value_U.new_zeros(rows * length)
        return line.index_copy(0, self.token_M, value_U[self.unit_M]).view(rows, length)

    def mask(self, logit_U: Tensor) -> Tensor:
        """Return the straight-through mask (B, L): 1.0 at chosen tokens, and 0.0 at other tokens.

        Its gradients are the gradients of ``inclusion``, both for chosen units and for units that
        were not chosen.
        """
        p_U = inclusion(logit_U, self.length_U, self.piece_U, self.budget_P)
        hard_U = self.chosen_U.to(p_U.dtype)
        return self.spread(hard_U + p_U - p_U.detach())

    def hard(self) -> Tensor:
        """Return the mask (B, L) without a gradient."""
        return self.spread(self.chosen_U.float())

    def shares(self, logit_U: Tensor) -> Tensor:
        """Return (U,) the share of each unit in the weight of its piece (a softmax per piece)."""
        weight_U = _below_top(logit_U, self.piece_U, len(self.budget_P)).exp()
        total_P = weight_U.new_zeros(len(self.budget_P)).index_add(0, self.piece_U, weight_U)
        return weight_U / total_P[self.piece_U]

    def entropy(self, logit_U: Tensor) -> Tensor:
        """Return the entropy of the shares in nats, averaged over pieces."""
        share_U = self.shares(logit_U)
        # For a share of 0, 0·log 0 would be NaN.
        log_share_U = share_U.clamp(min=1e-30).log()
        return -(share_U * log_share_U).sum() / len(self.budget_P)


def choose(
    line: Line, logit_BL: Tensor, ratio: float, draws: Draws, *, units: str = "word"
) -> RelaxedChoice:
    """Choose units of a batch at random, with weights exp(logit), under an exact budget.

    Args:
        line: the pieces.
        logit_BL: (B, L) the logits of the tokens. The logit of a unit is the mean of the logits of
            its tokens.
        ratio: the share of the eligible tokens (those that may be masked) to choose.
        draws: the random draws of each piece.
        units: ``token``, ``word``, or the name of a layer in which a run of equal values is a unit.

    Raises:
        Overflow: a logit is not finite.
    """
    parts = units_by(line, units)
    # The computation uses float64 on the CPU, so that the choice does not depend on the device.
    logits = logit_BL.detach().cpu().double().numpy().reshape(-1)
    total_U = np.bincount(parts.unit, logits[parts.tokens], len(parts.piece))
    logit_U = total_U / parts.length
    finite = np.isfinite(logit_U)
    if not finite.all():
        raise Overflow(
            "a score of the policy is not finite",
            got=float(logit_U[~finite][0]),
            do="lower learning.meta.learning_rate",
        )
    weight_U = weights_within(logit_U, parts.piece, pieces=len(line.begin))
    ratio_P = np.full(len(line.begin), ratio)
    choice = select(parts.weighted(weight_U), ratio_P, draws, budget="exact")

    # Exact choices always have budgets, but the type also allows None.
    assert choice.budget is not None

    def tensor(column: Array) -> Tensor:
        return torch.as_tensor(column).to(logit_BL.device)

    return RelaxedChoice(
        choice=choice,
        token_M=tensor(parts.tokens),
        unit_M=tensor(parts.unit),
        piece_U=tensor(parts.piece),
        length_U=tensor(parts.length),
        budget_P=tensor(choice.budget),
        chosen_U=tensor(choice.chosen),
    )


class RelaxedDenoising(nn.Module):
    """The loss of masked tokens as a differentiable function of the mask m.

    Formula: Σ m·CE / budget, summed over all tokens. CE is the cross-entropy of a token. The input
        embedding of a token is m·e(mask) + (1 − m)·e(token). If all values of m are 0 or 1, this
        equals the corruption ``mask-only``.
    Encoder–decoders: the encoder reads a mask in place of each masked token, and the decoder
        predicts the full text.
    Requirements: a model that accepts ``inputs_embeds``.

    Args:
        model: a model with its prediction head.
        mask_id: the id of [MASK], or of one of T5's sentinels.
    """

    def __init__(self, model: PreTrainedModel, mask_id: int):
        super().__init__()
        self.model = model
        self.mask_id = mask_id

    def forward(self, inputs: Tensors, mask_BL: Tensor, budget: Tensor) -> Tensor:
        """Return the loss in nats per token of the budget; a scalar.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` (B, L) of the unmasked text.
            mask_BL: (B, L) the mask, from ``RelaxedChoice.mask``.
            budget: the budget of all rows on all ranks, in tokens.
        """
        ids = inputs["input_ids"]
        embed: nn.Module = encoder_of(self.model).get_input_embeddings()  # type: ignore[operator]
        mask_embedding = embed(ids.new_tensor(self.mask_id))
        share = mask_BL.unsqueeze(-1).to(mask_embedding.dtype)
        shown = {
            "inputs_embeds": share * mask_embedding + (1 - share) * embed(ids),
            "attention_mask": inputs["attention_mask"],
        }
        config = self.model.config
        if adapter_of(config).kind == "encoder-decoder":
            labels = ids.masked_fill(inputs["attention_mask"] == 0, IGNORE)
            shown["decoder_input_ids"] = decoder_inputs(config, labels)
            shown["use_cache"] = False
        logits_BLV = self.model(**shown).logits
        losses = cross_entropy(logits_BLV.flatten(0, 1), ids.flatten(), reduction="none")
        # The loss of an unmasked token is multiplied by 0 but is still needed, because it is part
        # of the gradient with respect to the mask.
        return (mask_BL * losses.view_as(ids)).sum() / budget
