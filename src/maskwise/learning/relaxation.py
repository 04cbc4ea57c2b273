"""Masks that gradients can pass: from scores to a choice of units, its probabilities, and a loss.

The hard choice is made by ``masking.select``: an exponential race, in which a unit of weight w
arrives at rate w and units are taken until the budget is used. Stopped at time τ, the race has
taken a unit with probability p = 1 − exp(−τ·w). The relaxation solves τ for each piece, so that the
expected number of tokens is the budget, and lets the gradient of p stand for that of the choice. A
score that rises makes τ fall, and with it the other units' probabilities.

Source: methods of Ye et al. 2021 (arXiv 2104.08840), with the race in place of their softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of, decoder_inputs, encoder_of
from maskwise.keys import Keys
from maskwise.masking import AnnotatedBatch
from maskwise.masking.policies.base import units_by
from maskwise.masking.select import Selection, select

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPREAD = 60.0
"""Logits are at most this far below the highest of their piece; e⁻⁶⁰ is never chosen anyway."""


def inclusion(logit_U: Tensor, length_U: Tensor, piece_U: Tensor, budget_P: Tensor) -> Tensor:
    """The probability of each unit if the expected number of chosen tokens is the piece's budget.

    p = 1 − exp(−τ·w) with w = exp(logit), and τ such that Σ length·p = budget. If the budget is
    that of all units or more, p is 1; if it is 0, p is 0. Both have a gradient of 0.

    Args:
        logit_U: (U,) of any float type; only differences within a piece matter.
        length_U: (U,) tokens of each unit.
        piece_U: (U,) the piece of each unit.
        budget_P: (P,) tokens.

    Returns:
        (U,) of the type and device of the logits, computed in float64 on the host. First and second
        derivatives are those of the exact solution: τ is found without a graph, and two Newton
        steps with one, which change no digit of it, carry the derivatives of the implicit function.

    >>> logit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    >>> length, piece = torch.tensor([1, 2, 1, 2]), torch.zeros(4, dtype=torch.long)
    >>> p = inclusion(logit, length, piece, torch.tensor([2.0]))
    >>> [round(x, 3) for x in p.tolist()], round(float((p * length).sum()), 12)
    ([0.204, 0.204, 0.462, 0.462], 2.0)
    """
    # Apple's GPUs have no float64
    logit, length, piece, budget = (x.cpu() for x in (logit_U, length_U, piece_U, budget_P))
    length = length.double()
    budget = budget.double()
    weight = _below_top(logit.double(), piece, len(budget)).clamp(min=-SPREAD).exp()

    def total(values_U: Tensor) -> Tensor:
        return values_U.new_zeros(len(budget)).index_add(0, piece, values_U)

    whole = total(length)
    solvable = (budget > 0) & (budget < whole)
    aim = torch.where(solvable, budget, 0.5 * whole)  # any aim that has a solution

    def newton(tau: Tensor) -> Tensor:
        rest = length * torch.exp(-tau[piece] * weight)
        return tau + (aim - whole + total(rest)) / total(rest * weight)

    with torch.no_grad():
        # The expected number of tokens rises with τ and is concave in it, so Newton's steps from
        # the left never pass the solution; they end where rounding stops their rise.
        tau = aim / total(length * weight)
        for _ in range(200):
            rising = newton(tau)
            if not (rising > tau * (1 + 1e-15)).any():
                break
            tau = torch.maximum(tau, rising)
    for _ in range(2):
        tau = newton(tau)
    p = -torch.expm1(-tau[piece] * weight)
    p = torch.where(solvable[piece], p, (budget > 0).double()[piece])
    return p.to(logit_U.dtype).to(logit_U.device)


def _below_top(logit_U: Tensor, piece_U: Tensor, pieces: int) -> Tensor:
    """(U,) the logits, less the highest of their piece, which is not differentiated."""
    top_P = logit_U.new_full((pieces,), -torch.inf)
    top_P = top_P.scatter_reduce(0, piece_U, logit_U.detach(), "amax")
    return logit_U - top_P[piece_U]


class Overflow(MaskwiseError):
    """A score that is not finite."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A selection of units as tensors.

    Attributes:
        selection: of P pieces, in (B, L) rows.
        token_M: (M,) the places of the tokens in units, in the line of B·L tokens.
        unit_M: (M,) the unit of each of them.
        piece_U: (U,) the piece of each unit.
        length_U: (U,) tokens of each unit.
        budget_P: (P,) tokens.
        chosen_U: (U,) bool.
    """

    selection: Selection
    token_M: Tensor
    unit_M: Tensor
    piece_U: Tensor
    length_U: Tensor
    budget_P: Tensor
    chosen_U: Tensor

    @cached_property
    def budget(self) -> Tensor:
        """The budget of all pieces: the constant that inner losses are divided by."""
        return self.budget_P.sum().clamp(min=1)

    def unit_logits(self, logit_BL: Tensor) -> Tensor:
        """(U,) the mean of the logits of each unit's tokens."""
        total_U = logit_BL.new_zeros(len(self.piece_U))
        total_U = total_U.index_add(0, self.unit_M, logit_BL.reshape(-1)[self.token_M])
        return total_U / self.length_U

    def spread(self, value_U: Tensor) -> Tensor:
        """(B, L) the value of its unit at every token, 0 at tokens that are in none."""
        rows, length = self.selection.units.batch.shape
        line = value_U.new_zeros(rows * length)
        return line.index_copy(0, self.token_M, value_U[self.unit_M]).view(rows, length)

    def mask(self, logit_U: Tensor, *, smooth: bool = False) -> Tensor:
        """(B, L) how much of each token is masked, with a gradient for every unit.

        Straight-through: the values are the choice, 0 and 1, and the gradient is that of the
        inclusion probabilities, also of units that were not chosen. ``smooth``: the values are the
        probabilities themselves.
        """
        p_U = inclusion(logit_U, self.length_U, self.piece_U, self.budget_P)
        return self.spread(p_U if smooth else self.chosen_U.to(p_U.dtype) + p_U - p_U.detach())

    def hard(self) -> Tensor:
        """(B, L) 1.0 where a token was chosen, else 0.0."""
        return self.spread(self.chosen_U.float())

    def shares(self, logit_U: Tensor) -> Tensor:
        """(U,) the share of each unit in the weight of its piece."""
        weight_U = _below_top(logit_U, self.piece_U, len(self.budget_P)).exp()
        total_P = weight_U.new_zeros(len(self.budget_P)).index_add(0, self.piece_U, weight_U)
        return weight_U / total_P[self.piece_U]

    def entropy(self, logit_U: Tensor) -> Tensor:
        """The entropy of the shares in nats, a mean over pieces."""
        share_U = self.shares(logit_U)
        return -(share_U * share_U.clamp(min=1e-30).log()).sum() / len(self.budget_P)


def choose(
    batch: AnnotatedBatch, logit_BL: Tensor, ratio: float, keys: Keys, *, units: str = "word"
) -> Choice:
    """Choose units of a batch by the weights exp(logit), exactly up to the budget.

    Args:
        logit_BL: (B, L), of any device; a unit's logit is the mean over its tokens.
        ratio: share of the eligible tokens.
        units: ``token``, ``word``, or the layer whose runs are the units.

    Raises:
        Overflow: a logit that is not finite.
    """
    parts = units_by(batch, units)
    logit_U = logit_BL.detach().cpu().double().numpy().reshape(-1)[parts.tokens]
    logit_U = np.bincount(parts.unit, logit_U, len(parts.piece)) / parts.length
    if not np.isfinite(logit_U).all():
        got = float(logit_U[~np.isfinite(logit_U)][0])
        do = "lower learning.meta.learning_rate"
        raise Overflow("a score of the policy is not finite", got=got, do=do)
    top_P = np.full(len(batch.begin), -np.inf)
    np.maximum.at(top_P, parts.piece, logit_U)
    weight_U = np.exp(np.maximum(logit_U - top_P[parts.piece], -SPREAD))
    ratio_P = np.full(len(batch.begin), ratio)
    selection = select(parts.weighted(weight_U), ratio_P, keys, budget="exact")
    chosen = (selection.budget, selection.chosen)
    columns = (parts.tokens, parts.unit, parts.piece, parts.length, *chosen)
    return Choice(selection, *(torch.as_tensor(part).to(logit_BL.device) for part in columns))


class RelaxedDenoising(nn.Module):
    """The loss of predicting the tokens under a relaxed mask.

    Formula: Σ m·CE / budget, over all tokens that are in units. The model reads m·e(mask) +
        (1 − m)·e(token). If m is 0 or 1 this is the loss of the corruption ``mask-only``. Tokens
        with m = 0 are kept, because their loss is part of the gradient of m.
    Encoder–decoders: the encoder reads one mask for each masked token, and the decoder writes the
        full text.
    Requirements: a model that takes ``inputs_embeds``.

    Args:
        model: with its prediction head.
        mask_id: the token whose embedding hides a token: [MASK], or a sentinel of T5.
    """

    def __init__(self, model: PreTrainedModel, mask_id: int):
        super().__init__()
        self.model = model
        self.mask_id = mask_id

    def forward(self, inputs: Mapping[str, Tensor], mask_BL: Tensor, budget: Tensor) -> Tensor:
        """A scalar, in nats for each token of the budget.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` (B, L) of the text without masks.
            mask_BL: (B, L) from ``Choice.mask``.
            budget: tokens, of all rows (and ranks) together.
        """
        ids = inputs["input_ids"]
        embed: nn.Module = encoder_of(self.model).get_input_embeddings()  # type: ignore[operator]
        hidden = embed(ids.new_tensor(self.mask_id))
        share = mask_BL.unsqueeze(-1).to(hidden.dtype)
        shown = {
            "inputs_embeds": share * hidden + (1 - share) * embed(ids),
            "attention_mask": inputs["attention_mask"],
        }
        config = self.model.config
        if adapter_of(config).kind == "encoder-decoder":
            labels = ids.masked_fill(inputs["attention_mask"] == 0, -100)
            shown |= {"decoder_input_ids": decoder_inputs(config, labels), "use_cache": False}
        logits = self.model(**shown).logits
        losses = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        return (mask_BL * losses).sum() / budget
