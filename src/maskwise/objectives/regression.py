"""Regression of one number a row, such as how similar two sentences are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskwise.objectives.base import Outcome
from maskwise.objectives.classification import Classification


class Regression(Classification):
    """Squared error of a number for every row.

    Formula: sum over rows of (answer − label)², with labels in standard deviations from the mean of train: a new
    head begins at 0, the mean, and one learning rate serves every scale.
    Inputs: a mapping of model inputs with ``labels``, (B,) float.
    Requirements: ``models.load_task_model`` with a head for sequences and one label.
    Source: Devlin et al. 2019, appendix B.1 (STS-B).
    """

    def forward(self, batch: Mapping[str, Tensor]) -> Outcome:
        error = self.logits(batch).float().squeeze(-1) - batch["labels"]
        return Outcome(error.square().sum(), error.new_tensor(len(error)))
