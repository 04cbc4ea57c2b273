"""Classification of rows or of tokens: a downstream task is an objective like any other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.masking.batch import IGNORE
from maskwise.models import takes_token_types
from maskwise.objectives.base import Objective, Outcome


class Classification(Objective):
    """Cross-entropy of the class of every row, or of every token with a label.

    Formula: sum over labelled rows (tokens) of −log p(class | row).
    Inputs: a mapping of model inputs with ``labels``, (B,) or (B, L), −100 where there is nothing to predict.
    Requirements: ``models.load_task_model`` with a head for sequences or tokens.
    Source: Devlin et al. 2019, section 4.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._takes_types = takes_token_types(model)

    def forward(self, batch: Mapping[str, Tensor]) -> Outcome:
        logits, labels = self.logits(batch).float(), batch["labels"]
        losses = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Outcome(losses, torch.count_nonzero(labels != IGNORE))

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, classes) or (B, L, classes)."""
        return self.model(**self.inputs(batch)).logits

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a batch the model takes."""
        unused = {"labels"} if self._takes_types else {"labels", "token_type_ids"}
        return {name: value for name, value in batch.items() if name not in unused}
