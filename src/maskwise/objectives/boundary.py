"""The span-boundary objective: say a masked span by the tokens at its two borders alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import head_weights, prediction_head, width_of
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.policies import UnitKind, policy
from maskwise.objectives.base import (
    Masking,
    Objective,
    Outcome,
    Work,
    check_all_asked,
    counted,
    encoded,
    target_places,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 20
"""Places in a span that are told apart; later ones share the last."""


class SpanBoundary(Objective):
    """Masked language modelling plus the span-boundary loss, of every masked token.

    Formula: sum over targets x_i of a span s…e of −log p(x_i | h_i) − log p(x_i | f(h_{s−1},
        h_{e+1}, place i − s)), f two layers with GELU and LayerNorm; both go through the model's
        own prediction head.
    Inputs: a ``MaskedBatch``; a span is a run of targets, so all that is masked must be one. (A
        policy of single tokens makes hardly any: a control, and said.) One that begins or ends its
        row has no border there: the place outside is taken as the row's first or last token (with
        [CLS] and [SEP] around the text, never).
    Requirements: a model with an MLM head that ``families.ENCODERS`` knows.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.2.
    """

    masking: ClassVar[Masking] = {"policy": "span", "budget": "expected"}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        head = prediction_head(model)
        if head is None:
            got = type(model).__name__
            raise MaskwiseError(
                "objective sbo needs a model whose prediction head is known", got=got
            )
        self.spoken, wide = head, width_of(model)
        self.model, self.place = model, nn.Embedding(LONGEST, wide)
        nn.init.normal_(self.place.weight, std=0.02)
        layers = [nn.Linear(3 * wide, wide), nn.GELU(), nn.LayerNorm(wide)]
        self.head = nn.Sequential(*layers, nn.Linear(wide, wide), nn.GELU(), nn.LayerNorm(wide))

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        """All that is masked is asked; single tokens are no spans, and no mistake."""
        check_all_asked("sbo", masking)
        if policy(masking["policy"]).unit_kind == UnitKind.TOKEN:
            what = f"objective sbo with policy {masking['policy']} has hardly any spans"
            return f"{what}: each token is said by its two neighbours"
        return None

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        where = target_places(batch)
        row, column = where.unbind(1)
        hidden = encoded(self.model, batch)
        before, after, place = borders(labels != IGNORE)
        before, after, place = (x[row, column] for x in (before, after, place))
        around = [hidden[row, before], hidden[row, after], self.place(place.clamp(max=LONGEST - 1))]
        truth = labels[row, column]
        spoken = self.spoken(self.model, self.head(torch.cat(around, 1)))
        plain = cross_entropy(
            self.spoken(self.model, hidden[row, column]).float(), truth, reduction="none"
        )
        losses = plain + cross_entropy(spoken.float(), truth, reduction="none")
        return Outcome(losses.sum(), counted(len(where), labels), plain.detach(), where)

    def chance(self, vocabulary: int, rows: int) -> float:
        return 2 * super().chance(vocabulary, rows)

    def work(self, tokens: float, targets: float) -> Work:
        """The prediction head runs twice for each target."""
        own, tied = head_weights(self.model)
        return super().work(tokens, targets) + Work(0, 2 * own * targets, 2 * tied * targets)


def borders(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From (B, L) bool to (B, L) int64 each: the column before each target's run, that behind it,
    its place in it.
    """
    length = target.shape[1]
    column = torch.arange(length, device=target.device).expand(target.shape)
    last_free = torch.where(target, -1, column).cummax(1).values
    next_free = torch.where(target, length, column).flip(1).cummin(1).values.flip(1)
    return last_free.clamp(min=0), next_free.clamp(max=length - 1), column - last_free - 1
