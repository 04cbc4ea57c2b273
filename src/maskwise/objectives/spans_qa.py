"""Extractive question answering: where in a window of the context the answer begins and ends."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from maskwise.objectives.base import Outcome
from maskwise.objectives.classification import Classification


class SpanQuestionAnswering(Classification):
    """Cross-entropy of the first and of the last token of the answer.

    Formula: sum over windows of −log p(start) − log p(end), each a softmax over the window's real tokens.
    Inputs: a mapping of model inputs with ``labels``, (B, 2): places; (0, 0), [CLS], for windows without the answer.
    Requirements: ``models.load_task_model`` with the head ``question-answering``.
    Source: Devlin et al. 2019, section 4.2.
    """

    def forward(self, batch: Mapping[str, Tensor]) -> Outcome:
        logits, labels = self.logits(batch).float(), batch["labels"]
        losses = cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten(), reduction="sum")
        return Outcome(losses, losses.new_tensor(labels.numel()))

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, L, 2) of start and end; −∞ at padding, so that a row does not depend on its batch."""
        out = self.model(**self.inputs(batch))
        both = torch.stack([out.start_logits, out.end_logits], dim=-1)
        return both.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, -math.inf)
