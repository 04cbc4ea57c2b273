"""The span-boundary objective: predict a masked span from the tokens at its two borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import prediction_head, width_of
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.policies import UnitKind, policy
from maskwise.objectives.base import (
    Masking,
    Objective,
    Outcome,
    Work,
    check_all_asked,
    encoded,
    target_places,
)
from maskwise.weights import head_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 20
"""Positions in a span with their own embedding; later ones share the last."""


class SpanBoundary(Objective):
    """Masked language modelling plus the span-boundary loss of every masked token.

    Formula: sum over targets x_i of a span s…e of −log p(x_i | h_i) − log p(x_i | f(h_{s−1},
        h_{e+1}, place i − s)), f two layers with GELU and LayerNorm; both use the model's own
        prediction head.
    Inputs: a ``MaskedBatch``; a span is a run of targets, so every masked token must be one. Where
        a span begins or ends its row, the row's first or last token is its border.
    Requirements: a model with an MLM head that ``families.ENCODERS`` knows.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.2.
    """

    masking: ClassVar[Masking] = {"policy": "span", "budget": "expected"}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        predict = prediction_head(model)
        if predict is None:
            what = "objective sbo needs a model whose prediction head is known"
            raise MaskwiseError(what, got=type(model).__name__)
        wide = width_of(model)
        self.model = model
        self.predict = predict
        self.place = nn.Embedding(LONGEST, wide)
        # The scale of transformers' own embeddings; torch's default of 1 would drown the borders.
        nn.init.normal_(self.place.weight, std=0.02)
        layers = [nn.Linear(3 * wide, wide), nn.GELU(), nn.LayerNorm(wide)]
        self.head = nn.Sequential(*layers, nn.Linear(wide, wide), nn.GELU(), nn.LayerNorm(wide))

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        check_all_asked("sbo", masking)
        if policy(masking["policy"]).unit_kind != UnitKind.TOKEN:
            return None
        what = f"objective sbo with policy {masking['policy']} has hardly any spans"
        return f"{what}: each token is predicted from its two neighbours"

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        where = target_places(batch)
        at = where.unbind(1)
        truth = labels[at]
        hidden = encoded(self.model, batch)
        before, after, place = (each[at] for each in borders(labels != IGNORE))
        row = at[0]
        around = [hidden[row, before], hidden[row, after], self.place(place.clamp(max=LONGEST - 1))]
        from_borders = self.head(torch.cat(around, 1))
        plain = self._losses(hidden[at], truth)
        # Both losses count, but policies learn from the plain one, as with other objectives.
        losses = plain + self._losses(from_borders, truth)
        return Outcome.of(losses, where)._replace(losses=plain.detach())

    def _losses(self, states_MH: Tensor, truth: Tensor) -> Tensor:
        logits = self.predict(self.model, states_MH)
        return cross_entropy(logits.float(), truth, reduction="none")

    def chance(self, vocabulary: int, rows: int) -> float:
        return 2 * super().chance(vocabulary, rows)

    def work(self, tokens: float, targets: float) -> Work:
        """The prediction head runs twice for each target."""
        body, head, _ = super().work(tokens, targets)
        own, tied = head_weights(self.model)
        return Work(body, head + 2 * own * targets, 2 * tied * targets)


def borders(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each target of a (B, L) mask: the columns before and after its run, its place in it."""
    length = target.shape[1]
    column = torch.arange(length, device=target.device).expand(target.shape)
    last_free = torch.where(target, -1, column).cummax(1).values
    next_free = torch.where(target, length, column).flip(1).cummin(1).values.flip(1)
    return last_free.clamp(min=0), next_free.clamp(max=length - 1), column - last_free - 1
