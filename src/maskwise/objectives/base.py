"""The base class of objectives, and the objectives of downstream tasks.

An objective turns a batch into a sum of losses and a count of targets. The training loop divides
the sum by the count once, after all micro-batches and ranks.
"""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from maskwise.devices import TensorDict, Tensors
from maskwise.errors import MaskwiseError
from maskwise.families import Inputs, Kind, adapter_of, encoder_of
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.gather import Pieces, Rows
from maskwise.masking.schedules import schedule
from maskwise.weights import encoder_weights, multiplied_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Work(NamedTuple):
    """Multiplications in a forward pass: each weight times the number of tokens it is applied to.

    Embeddings, attention scores, activations and norms are left out.

    Attributes:
        body: multiplications in the encoder.
        head: multiplications in heads, which are trained even if the encoder is frozen.
        tied: multiplications with a vocabulary matrix that is shared with the encoder's embeddings.
    """

    body: float
    head: float = 0
    tied: float = 0

    @property
    def all(self) -> float:
        return sum(self)


def trained(work: Work, *, frozen: bool = False, held: float = 0.0) -> int:
    """FLOPs for a forward and a backward pass.

    Args:
        work: the multiplications in the forward pass.
        frozen: whether gradients end at the encoder, which is not trained.
        held: the share of the encoder's weights that gradients pass through but do not change.
    """
    if frozen:
        return int(2 * work.body + 6 * work.head + 4 * work.tied)
    # Weights that are not trained do not need their own gradient.
    spared = held * work.body
    if held:
        spared += work.tied
    return int(6 * work.all - 2 * spared)


NO_DOCUMENTS = "its attention cannot keep documents apart"
"""The reason, in warnings, why packed rows are not read document by document."""

Precision: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Makes a context in which the model computes at a certain precision."""

Masking: TypeAlias = Mapping[str, Any]
"""Arguments for a ``Masker``, keyed by name."""

"""Arguments for a model, keyed by name."""

Batch: TypeAlias = "MaskedBatch | Tensors"
"""A masked batch, or a plain dict of model inputs with ``labels``."""


class Maker(Protocol):
    """Makes a batch from rows; see ``Masker.__call__``. A maker with the attribute ``places`` also
    takes an argument ``place``, the place of each row.
    """

    def __call__(
        self,
        rows: Rows | Pieces,
        *,
        step: int = 0,
        total_steps: int | None = None,
        epoch: int | None = None,
    ) -> MaskedBatch: ...


class Outcome(NamedTuple):
    """The losses of a batch.

    Attributes:
        loss: the summed loss of all targets, a scalar in nats, with its gradient.
        targets: a scalar that divides the sum: the number of targets (for diffusion, the number of
            eligible tokens).
        losses: (M,) float32, the loss of each target, detached; None if targets have no places.
        where: (M, 2) int64, the row and the column of each target.
        right: (M,) bool, whether the likeliest token is correct; None unless requested.
    """

    loss: Tensor
    targets: Tensor
    losses: Tensor | None = None
    where: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, losses: Tensor, where: Tensor | None = None) -> Outcome:
        """Make the outcome from (M,) losses and, if they have places, their places ``where``."""
        # Policies that learn cannot use losses without places.
        each = None if where is None else losses.detach()
        return cls(losses.sum(), counted(losses.numel(), losses), each, where)


class Objective(nn.Module, ABC):
    """A model with its head and its loss: ``objective(batch)`` returns an ``Outcome``.

    It is called as a module, so that DDP and FSDP see one forward pass. It returns sums and counts
    rather than means, so every target has the same weight across micro-batches and ranks.
    """

    model: PreTrainedModel

    kind: Kind = "encoder"
    """The kind of model that this objective trains (``families.Adapter``)."""

    masking: Masking = {}
    """This objective's default masking."""

    inherits = True
    """Whether a recipe's common masking applies to this objective."""

    in_place = True
    """Whether each label belongs to the token at its place; a corruption must then keep lengths."""

    detects = False
    """Whether the labels are 0 for unchanged tokens and 1 for changed tokens."""

    twins = False
    """Whether a batch contains every other row twice; every rank then needs an even number of rows,
    at least 4."""

    batches: Callable[..., Maker] = Masker
    """The class that makes the batches; it is built from a tokenizer, the masking and ``seed``."""

    layout: str = "any"
    """The layout that this objective needs: "any", or "document", one text per row after [CLS]."""

    precision: Precision = nullcontext
    """The precision of evaluation; during a training run, that run's own precision."""

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        """The layout in which a model of ``config`` reads rows that were prepared in ``layout``.

        If the model's attention cannot keep documents apart, packed rows are read one document per
        row.
        """
        if cls.layout != "any":
            return cls.layout
        if layout == "packed" and not adapter_of(config).separates:
            return "document"
        return layout

    @classmethod
    def settings(cls, common: Masking, own: Masking) -> dict[str, Any]:
        """The masking of an arm: its own settings override this objective's, which override the
        recipe's."""
        return {**(common if cls.inherits else {}), **cls.masking, **own}

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        """Check that this objective can learn from a masking (see ``settings``).

        Returns:
            A warning, or None.

        Raises:
            MaskwiseError: the objective would learn nonsense.
        """
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        """Raise if this objective cannot train models of this configuration."""

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        **masking: object,
    ) -> Maker:
        """Build the maker of the batches. ``length`` is the model's number of positions."""
        return cls.batches(
            tokenizer,
            **cls.settings({}, masking),
            seed=seed,
        )

    def chance(self, vocabulary: int, rows: int) -> float:
        """The loss of a uniform guess in nats per target, for batches of ``rows``."""
        return math.log(vocabulary)

    def work(self, tokens: float, targets: float) -> Work:
        """The work for a batch: the encoder for each token, this objective's head for each target.

        Args:
            tokens: the number of tokens in the text before corruption; texts that are read twice
                count twice.
            targets: the number of labels other than −100.
        """
        # Everything outside the model belongs to the head.
        heads = multiplied_weights(self) - multiplied_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, heads * targets)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Evaluation mode without gradients, at the precision of training."""
        # Evaluations interrupt training, which then resumes in the mode that it had.
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), self.precision():
                yield
        finally:
            self.train(training)

    def without_dropout(self) -> AbstractContextManager[None]:
        """Evaluation without dropout, even for objectives that need dropout (``cse``)."""
        return nullcontext()

    @abstractmethod
    def forward(self, batch: Any) -> Outcome:
        """The losses of a batch."""


def check_all_asked(objective: str, masking: Masking) -> None:
    """Raise if ``predict`` leaves out some masked tokens; the objective would treat them as
    text."""
    if not schedule(masking.get("predict", 1.0)).always(1):
        raise MaskwiseError(
            f"objective {objective} needs a target at every masked token",
            got=f"predict {masking['predict']}",
            do="give its arm masking: {predict: 1.0}",
        )


def weighted(losses: Tensor, weight: Tensor | None, row: Tensor, column: Tensor) -> Tensor:
    """Multiply the losses (M,) of the targets at (row, column) by the token weights (B, L)."""
    # On the host, the weights are in double precision.
    return losses if weight is None else losses * weight[row, column].to(losses.dtype)


def unrounded(logits: Tensor) -> Tensor:
    """Logits in at least single precision, so that small terms of a softmax are kept."""
    return logits if logits.dtype == torch.float64 else logits.float()


def counted(number: int, beside: Tensor) -> Tensor:
    """Put a host number on the device of ``beside``, as a scalar; unlike a copy this needs no
    sync."""
    return torch.full((), number, device=beside.device)


def target_places(batch: Batch) -> Tensor:
    """(M, 2) int64: the row and the column of each target."""
    return batch.where if isinstance(batch, MaskedBatch) else (batch["labels"] != IGNORE).nonzero()


def model_inputs(model: PreTrainedModel, batch: Batch) -> Inputs:
    """The model's inputs, keyed by name; the documents in packed rows are kept apart."""
    inputs: Inputs = dict(batch)
    inputs.pop("labels", None)
    if not isinstance(batch, MaskedBatch) or batch.documents is None:
        return inputs
    family = adapter_of(model.config)
    if not family.separates:  # happens only with rows that a user packed; see ``Objective.reads``
        what = f"{model.config.model_type} reads packed rows as one text: {NO_DOCUMENTS}"
        warnings.warn(what, stacklevel=2)
        return inputs
    apart = family.apart(model, inputs, batch.documents)
    # The ends were found on the host when the batch was made; on the device this would cost a sync.
    apart["documents"].ends = batch.ends[0]
    return apart


def encoded(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(B, L, H): the encoder's hidden states for a batch, without a head."""
    return encoder_of(model)(**model_inputs(model, batch)).last_hidden_state


# Downstream tasks: classes of rows or tokens, numbers, choices, answer spans


class Classification(Objective):
    """Cross-entropy of the class of every row, or of the class of every labelled token.

    Formula: sum over labelled rows (tokens) of −log p(class | row).
    Inputs: a mapping with the model's inputs and ``labels``, (B,) or (B, L), which are −100 where
        there is nothing to predict.
    Requirements: ``models.load_task_model`` with a head for sequences or tokens.
    Source: Devlin et al. 2019, section 4.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # Tokenizers also return token types for models that do not take them.
        taken = inspect.signature(model.forward).parameters
        self._unused = {"labels", "choices"} | {"token_type_ids"}.difference(taken)

    def forward(self, batch: Tensors) -> Outcome:
        logits = unrounded(self.logits(batch)).flatten(0, -2)
        labels = batch["labels"]
        loss = cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Outcome(loss, torch.count_nonzero(labels != IGNORE))

    def logits(self, batch: Tensors) -> Tensor:
        """Class scores, in the last dimension, such as (B, classes) or (B, L, classes)."""
        return self.model(**self.inputs(batch)).logits

    def inputs(self, batch: Tensors) -> TensorDict:
        """The model's inputs from a batch."""
        return {name: value for name, value in batch.items() if name not in self._unused}


class Regression(Classification):
    """Squared error of a number for every row.

    Formula: sum over rows of (answer − label)². Labels are standardised over the train split: a new
        head thus begins at their mean, and one learning rate suits all scales.
    Inputs: a mapping with the model's inputs and ``labels``, (B,) float.
    Requirements: ``models.load_task_model`` with a head for sequences and one label.
    Source: Devlin et al. 2019, appendix B.1 (STS-B).
    """

    def forward(self, batch: Tensors) -> Outcome:
        error = unrounded(self.logits(batch)).squeeze(-1) - batch["labels"]
        return Outcome.of(error.square())


class MultiLabel(Classification):
    """Binary cross-entropy of each label of every row.

    Formula: sum over rows and their K labels (all are targets) of −log p(label | row).
    Inputs: a mapping with the model's inputs and ``labels``, (B, K), 1 or 0.
    Requirements: ``models.load_task_model`` with a head for sequences and K labels.
    Source: Goodfellow et al. 2016, section 6.2.2.2.
    """

    def forward(self, batch: Tensors) -> Outcome:
        logits = unrounded(self.logits(batch))
        labels = batch["labels"].to(logits.dtype)
        return Outcome.of(binary_cross_entropy_with_logits(logits, labels, reduction="none"))


class MultipleChoice(Classification):
    """Cross-entropy of the correct choice for a question with any number of choices.

    Formula: sum over questions of −log softmax(scores of its choices)[right].
    Inputs: a mapping with the model's inputs for S sequences; ``choices`` (B, C), the indices of
        each question's sequences, padded with −1; and ``labels`` (B,), the correct column.
    Requirements: ``models.load_task_model`` with the head ``multiple-choice``.
    Source: Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4 (SWAG).
    """

    def logits(self, batch: Tensors) -> Tensor:
        """(B, C) scores, −∞ where a question has no such choice."""
        choices = batch["choices"]
        # The model sees all sequences as choices for one question, because questions may differ in
        # their number of choices.
        inputs = {name: value.unsqueeze(0) for name, value in self.inputs(batch).items()}
        scores = self.model(**inputs).logits.squeeze(0)
        return scores[choices.clamp(min=0)].masked_fill(choices < 0, -math.inf)


class SpanQuestionAnswering(Classification):
    """Cross-entropy of the answer's first token and of its last token.

    Formula: sum over windows of −log p(start) − log p(end), each a softmax over the window's real
        tokens.
    Inputs: a mapping with the model's inputs and ``labels``, (B, 2): the places of the two tokens,
        or (0, 0), the place of [CLS], for windows without the answer.
    Requirements: ``models.load_task_model`` with the head ``question-answering``.
    Source: Devlin et al. 2019, section 4.2.
    """

    def logits(self, batch: Tensors) -> Tensor:
        """(B, 2, L) scores for start and end: two classifications over the tokens of a window.

        Scores are −∞ at padding, so a row's loss does not depend on the rest of its batch.
        """
        out = self.model(**self.inputs(batch))
        both = torch.stack([out.start_logits, out.end_logits], dim=1)
        return both.masked_fill(batch["attention_mask"].unsqueeze(1) == 0, -math.inf)
