"""Objectives of downstream tasks: classes of rows or tokens, numbers, choices, answer spans."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from maskwise.masking.batch import IGNORE
from maskwise.masking.policies.base import TensorDict, Tensors
from maskwise.objectives.base import Objective, Outcome, counted, unrounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Classification(Objective):
    """Cross-entropy of the class of every row, or of every token with a label.

    Formula: sum over labelled rows (tokens) of −log p(class | row).
    Inputs: a mapping of model inputs with ``labels``, (B,) or (B, L), −100 where there is nothing
        to predict.
    Requirements: ``models.load_task_model`` with a head for sequences or tokens.
    Source: Devlin et al. 2019, section 4.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # Tokenizers also return token types for models that take none.
        taken = inspect.signature(model.forward).parameters
        self._unused = {"labels", "choices"} | {"token_type_ids"}.difference(taken)

    def forward(self, batch: Tensors) -> Outcome:
        logits, labels = unrounded(self.logits(batch)), batch["labels"]
        losses = cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return Outcome(losses, torch.count_nonzero(labels != IGNORE))

    def logits(self, batch: Tensors) -> Tensor:
        """(B, classes) or (B, L, classes)."""
        return self.model(**self.inputs(batch)).logits

    def inputs(self, batch: Tensors) -> TensorDict:
        """The model's inputs of a batch."""
        return {name: value for name, value in batch.items() if name not in self._unused}


class Regression(Classification):
    """Squared error of a number for every row.

    Formula: sum over rows of (answer − label)². Labels are standardised over train, so that a new
        head begins at their mean and one learning rate serves all scales.
    Inputs: a mapping of model inputs with ``labels``, (B,) float.
    Requirements: ``models.load_task_model`` with a head for sequences and one label.
    Source: Devlin et al. 2019, appendix B.1 (STS-B).
    """

    def forward(self, batch: Tensors) -> Outcome:
        error = unrounded(self.logits(batch)).squeeze(-1) - batch["labels"]
        return Outcome.of(error.square())


class MultiLabel(Classification):
    """Binary cross-entropy of each label of every row.

    Formula: sum over rows and their K labels, all targets, of −log p(label | row).
    Inputs: a mapping of model inputs with ``labels``, (B, K) ones and zeros.
    Requirements: ``models.load_task_model`` with a head for sequences and K labels.
    Source: Goodfellow et al. 2016, section 6.2.2.2.
    """

    def forward(self, batch: Tensors) -> Outcome:
        logits = unrounded(self.logits(batch))
        labels = batch["labels"].to(logits.dtype)
        return Outcome.of(binary_cross_entropy_with_logits(logits, labels, reduction="none"))


class MultipleChoice(Classification):
    """Cross-entropy of the right choice among any number of choices of a question.

    Formula: sum over questions of −log softmax(scores of its choices)[right].
    Inputs: a mapping of model inputs of S sequences, ``choices`` (B, C): the sequences of each
        question, padded with −1, and ``labels`` (B,), the right column.
    Requirements: ``models.load_task_model`` with the head ``multiple-choice``.
    Source: Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4 (SWAG).
    """

    def forward(self, batch: Tensors) -> Outcome:
        labels = batch["labels"]
        losses = cross_entropy(
            unrounded(self.logits(batch)),
            labels,
            reduction="sum",
        )
        return Outcome(losses, counted(len(labels), losses))

    def logits(self, batch: Tensors) -> Tensor:
        """(B, C), −∞ where a question has no such choice."""
        choices = batch["choices"]
        # The model sees all sequences as choices of one question, so that questions may have
        # different numbers of choices.
        inputs = {name: value.unsqueeze(0) for name, value in self.inputs(batch).items()}
        scores = self.model(**inputs).logits.squeeze(0)
        return scores[choices.clamp(min=0)].masked_fill(choices < 0, -math.inf)


class SpanQuestionAnswering(Classification):
    """Cross-entropy of the first and of the last token of the answer.

    Formula: sum over windows of −log p(start) − log p(end), each a softmax over the window's real
        tokens.
    Inputs: a mapping of model inputs with ``labels``, (B, 2): places; (0, 0), [CLS], for windows
        without the answer.
    Requirements: ``models.load_task_model`` with the head ``question-answering``.
    Source: Devlin et al. 2019, section 4.2.
    """

    def forward(self, batch: Tensors) -> Outcome:
        logits, labels = unrounded(self.logits(batch)), batch["labels"]
        # Start and end are two classifications over the tokens of the window.
        losses = cross_entropy(
            logits.transpose(1, 2).flatten(0, 1), labels.flatten(), reduction="sum"
        )
        return Outcome(losses, counted(labels.numel(), losses))

    def logits(self, batch: Tensors) -> Tensor:
        """(B, L, 2) of start and end; −∞ at padding, so that a row does not depend on its batch."""
        out = self.model(**self.inputs(batch))
        both = torch.stack([out.start_logits, out.end_logits], dim=-1)
        return both.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, -math.inf)
