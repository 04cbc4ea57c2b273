"""Masks that let gradients through: from scores to a selection, to how likely each unit was in it,
to a loss.

The hard choice is made by the one routine of ``masking.select``: an exponential race, in which a
unit of weight w arrives at rate w and units are taken until the budget is used. Stopped at time τ,
the race has taken a unit with probability p = 1 − exp(−τ·w). The relaxation solves τ for each
piece, so that the expected number of tokens is the budget, and lets the gradient of p stand for
that of the choice. Units compete, as they do in the race: a score that rises makes τ fall, and with
it the other units' probabilities.

Source: methods of Ye et al. 2021 (arXiv 2104.08840), with the race in place of their softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

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
"""Logits further than this below the highest of their piece count as this: e⁻⁶⁰ is never chosen
anyway.
"""


def inclusion(logit_U: Tensor, length_U: Tensor, piece_U: Tensor, budget_P: Tensor) -> Tensor:
    """How likely each unit is to be chosen, so that the expected number of chosen tokens is the
    budget of its piece.

    p = 1 − exp(−τ·w) with w = exp(logit), and τ such that Σ length·p = budget. Where the budget is
    no less than all units together, p is 1; where it is 0, p is 0. Both have a gradient of 0.

    Args:
        logit_U: (U,) of any float type; only differences within a piece matter.
        length_U: (U,) tokens of each unit.
        piece_U: (U,) the piece of each unit.
        budget_P: (P,) tokens.

    Returns:
        (U,) of the type of the logits, computed in float64. First and second derivatives are those
        of the exact
        solution: τ is found without a graph, and two Newton steps with one, which change no digit
            of it, carry the
        derivatives of the implicit function.

    >>> logit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    >>> p = inclusion(logit, torch.tensor([1, 2, 1, 2]), torch.zeros(4, dtype=torch.long), torch.tensor([2.0]))
    >>> [round(x, 3) for x in p.tolist()], round(float(p[0] + 2 * p[1] + p[2] + 2 * p[3]), 12)
    ([0.204, 0.204, 0.462, 0.462], 2.0)
    """
    logit, length, budget = logit_U.double(), length_U.double(), budget_P.double()
    pieces = len(budget)
    weight = _below_top(logit, piece_U, pieces).clamp(min=-SPREAD).exp()

    def total(values_U: Tensor) -> Tensor:
        return values_U.new_zeros(pieces).index_add(0, piece_U, values_U)

    whole_P = total(length)
    solvable_P = (budget > 0) & (budget < whole_P)
    aim_P = torch.where(solvable_P, budget, 0.5 * whole_P)  # any aim that has a solution

    def newton(tau_P: Tensor, weight_U: Tensor) -> Tensor:
        rest_U = length * torch.exp(-tau_P[piece_U] * weight_U)
        return tau_P + (aim_P - whole_P + total(rest_U)) / total(rest_U * weight_U)

    with torch.no_grad():
        # The expected number of tokens rises with τ and is concave in it, so that Newton's steps
        # from the left never pass the solution: they need no bracket, and they end where rounding
        # makes them stop rising.
        tau_P = aim_P / total(length * weight)
        for _ in range(200):
            rising = newton(tau_P, weight)
            if not (rising > tau_P * (1 + 1e-15)).any():
                break
            tau_P = torch.maximum(tau_P, rising)
    for _ in range(2):
        tau_P = newton(tau_P, weight)
    p_U = -torch.expm1(-tau_P[piece_U] * weight)
    fixed_U = (budget > 0).double()[piece_U]
    return torch.where(solvable_P[piece_U], p_U, fixed_U).to(logit_U.dtype)


def _below_top(logit_U: Tensor, piece_U: Tensor, pieces: int) -> Tensor:
    """(U,) the logits, less the highest of their piece, which is not differentiated."""
    top_P = logit_U.new_full((pieces,), -torch.inf).scatter_reduce(
        0, piece_U, logit_U.detach(), "amax"
    )
    return logit_U - top_P[piece_U]


class Overflow(MaskwiseError):
    """A score that is not finite."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A selection as tensors: what the relaxation needs to know of it.

    Attributes:
        shape: (B, L) of the rows.
        token_M: (M,) where the tokens that are in units stand in the line of B·L tokens.
        unit_M: (M,) the unit of each of them.
        piece_U: (U,) the piece of each unit.
        length_U: (U,) tokens of each unit.
        budget_P: (P,) tokens.
        chosen_U: (U,) bool.
        order_A: (A,) the units in the order of trial, piece by piece.
    """

    shape: tuple[int, int]
    token_M: Tensor
    unit_M: Tensor
    piece_U: Tensor
    length_U: Tensor
    budget_P: Tensor
    chosen_U: Tensor
    order_A: Tensor

    @classmethod
    def of(cls, selection: Selection, device: torch.device | str = "cpu") -> Self:
        """The tensors of a selection.

        Raises:
            ValueError: budget ``bernoulli``, which has no race.
        """
        if selection.budget is None or selection.order is None:
            raise ValueError("budget bernoulli tries units in no order")
        units = selection.units

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(values).to(device)

        return cls(
            units.batch.shape,
            tensor(units.tokens),
            tensor(units.unit),
            tensor(units.piece),
            tensor(units.length),
            tensor(selection.budget),
            tensor(selection.chosen),
            tensor(selection.order),
        )

    @property
    def budget(self) -> Tensor:
        """The budgets of all pieces together: the constant that inner losses are divided by."""
        return self.budget_P.sum().clamp(min=1)

    def unit_logits(self, logit_BL: Tensor) -> Tensor:
        """(U,) the mean of the logits of each unit's tokens."""
        total_U = logit_BL.new_zeros(len(self.piece_U))
        total_U = total_U.index_add(0, self.unit_M, logit_BL.reshape(-1)[self.token_M])
        return total_U / self.length_U

    def spread(self, value_U: Tensor) -> Tensor:
        """(B, L) the value of its unit at every token, 0 at tokens that are in none."""
        line = value_U.new_zeros(self.shape[0] * self.shape[1])
        return line.index_copy(0, self.token_M, value_U[self.unit_M]).view(self.shape)

    def mask(self, logit_U: Tensor, *, smooth: bool = False) -> Tensor:
        """(B, L) how much of each token is masked, with a gradient for every unit.

        Straight-through: the values are the choice, 0 and 1, and the gradient is that of the
        inclusion probabilities, of units that were not chosen too. ``smooth``: the values are the
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
        """Nats, the mean over pieces: how evenly weight is spread over the units of a piece."""
        share_U = self.shares(logit_U)
        return -(share_U * share_U.clamp(min=1e-30).log()).sum() / len(self.budget_P)


def choose(
    batch: AnnotatedBatch,
    logit_BL: Tensor,
    ratio: float,
    keys: Keys,
    *,
    units: str = "word",
    budget: str = "exact",
) -> Choice:
    """Choose units of a batch by the weights exp(logit).

    Args:
        logit_BL: (B, L), of any device; a unit's logit is the mean over its tokens.
        ratio: share of the eligible tokens.
        units: ``token``, ``word``, or the layer whose runs are the units.
        budget: ``exact`` or ``expected``.

    Raises:
        Overflow: a logit that is not finite.
    """
    parts = units_by(batch, units)
    logit_U = logit_BL.detach().double().cpu().numpy().reshape(-1)[parts.tokens]
    logit_U = np.bincount(parts.unit, logit_U, len(parts.piece)) / parts.length
    if not np.isfinite(logit_U).all():
        got = float(logit_U[~np.isfinite(logit_U)][0])
        raise Overflow(
            "a score of the policy is not finite", got=got, do="lower learning.meta.learning_rate"
        )
    top_P = np.full(len(batch.begin), -np.inf)
    np.maximum.at(top_P, parts.piece, logit_U)
    weight_U = np.exp(np.maximum(logit_U - top_P[parts.piece], -SPREAD))
    ratio_P = np.full(len(batch.begin), ratio)
    return Choice.of(
        select(parts.weighted(weight_U), ratio_P, keys, budget=budget), logit_BL.device
    )


class RelaxedDenoising(nn.Module):
    """The loss of predicting what a relaxed mask hides, by an encoder or by an encoder–decoder.

    Formula: Σ m·CE / budget, over all tokens that are in units. The model reads m·e(mask) + (1 −
        m)·e(token). Where
    m is 0 or 1 this is the loss of the corruption ``mask-only``. Tokens with m = 0 are kept,
    because their loss is part of the gradient of m.
    Encoder–decoders: the encoder reads one mask for each masked token, and the decoder writes the
    full text.
    Requirements: a model that takes ``inputs_embeds``.

    Args:
        model: with its prediction head.
        mask_id: the token whose embedding hides a token: [MASK], or a sentinel of T5.
    """

    def __init__(self, model: PreTrainedModel, mask_id: int):
        super().__init__()
        self.model, self.mask_id = model, mask_id

    def forward(self, inputs: Mapping[str, Tensor], mask_BL: Tensor, budget: Tensor) -> Tensor:
        """A scalar, in nats for each token of the budget.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` (B, L) of the text, nothing of it masked.
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
