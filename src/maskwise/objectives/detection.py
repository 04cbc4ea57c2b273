"""Was a token added here, or taken away before it? Two objectives with one head: a binary decision
a token.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from torch.nn.functional import cross_entropy

from maskwise.families import width_of
from maskwise.masking import MaskedBatch
from maskwise.masking.corruptions import Insert, corruption
from maskwise.objectives.base import (
    Maker,
    Masking,
    Objective,
    Outcome,
    Work,
    counted,
    encoded,
    target_places,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Detection(Objective):
    """Two classes for every token with a label.

    Formula: sum over labelled tokens of −log p(label | row), p from Linear(H → 2) on the hidden
        state.
    Inputs: a ``MaskedBatch`` with labels 0 and 1 at the tokens of the text, changed or not; −100 at
        special tokens and padding, which do not count. The attention mask is that of the changed
        row. (The published code counts padding and keeps the old mask.)
    Requirements: an encoder.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layout, inherits, in_place, detects = "document", False, False, True

    masking: ClassVar[Masking] = {"ratio": 0.15, "budget": "bernoulli", "min_targets": 0}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.head = model, nn.Linear(width_of(model), 2)

    def chance(self, vocabulary: int, rows: int) -> float:
        """ln 2, as the paper divides; who knows how rare changes are has less: .42 at 15 %."""
        return math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """Every token of the changed text is read, and asked."""
        return super().work(targets, targets)

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        where = target_places(batch)
        logits = self.head(encoded(self.model, batch)[where[:, 0], where[:, 1]])
        losses = cross_entropy(logits.float(), labels[where[:, 0], where[:, 1]], reduction="none")
        return Outcome(losses.sum(), counted(len(where), labels), losses.detach(), where)


class AddedTokenDetection(Detection):
    """Before each token of the text a random one is inserted with probability 0.15: which are the
    new ones?

    By default one token at most is inserted before each: 12.9 % of the shown tokens are new, and
    never two together. The published code goes over the places of the output instead, so that runs
    are possible: 14.9 % are new, and 15 % of those behind a new one. That is the corruption
    ``insert(target='detect', again=0.15)``.
    """

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        **masking: Any,
    ) -> Maker:
        """A masker; rows that have grown beyond ``length`` are cut, their [SEP] stays."""
        shown = corruption(masking.get("corruption", Insert("detect")))
        if isinstance(shown, Insert) and shown.cut is None:
            shown = replace(shown, cut=length)
        return super().maker(tokenizer, seed=seed, **{**masking, "corruption": shown})


class DeletedTokenDetection(Detection):
    """Each token of the text is deleted with probability 0.15: before which of those left was
    something?

    The [SEP] behind the text is asked too: what stood last can only be missed there.
    """

    masking: ClassVar[Masking] = {**Detection.masking, "corruption": "delete(target='detect')"}
