"""Multiple choice: every choice is read with its question, and the best-scored one is the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import cross_entropy

from maskwise.objectives.base import Outcome
from maskwise.objectives.classification import Classification


class MultipleChoice(Classification):
    """Cross-entropy of the right choice among a question's choices, of which there may be any number.

    Formula: sum over questions of −log softmax(scores of its choices)[right].
    Inputs: a mapping of model inputs of S sequences, ``choices`` (B, C): which of them belong to a question, −1 where
    it has fewer than C, and ``labels`` (B,), the right column.
    Requirements: ``models.load_task_model`` with the head ``multiple-choice``.
    Source: Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4 (SWAG).
    """

    def forward(self, batch: Mapping[str, Tensor]) -> Outcome:
        labels = batch["labels"]
        losses = cross_entropy(self.logits(batch).float(), labels, reduction="sum")
        return Outcome(losses, losses.new_tensor(len(labels)))

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, C), −∞ where a question has no such choice."""
        choices = batch["choices"]
        # To the model all sequences are choices of one question, so that questions may differ in their number.
        inputs = {name: value.unsqueeze(0) for name, value in self.inputs(batch).items() if name != "choices"}
        scores = self.model(**inputs).logits.squeeze(0)
        return scores[choices.clamp(min=0)].masked_fill(choices < 0, -math.inf)
