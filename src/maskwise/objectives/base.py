"""The base of objectives, and the objectives of downstream tasks.

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

from maskwise.errors import MaskwiseError
from maskwise.families import Kind, adapter_of, encoder_of
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.gather import Pieces, Rows
from maskwise.masking.policies.base import TensorDict, Tensors
from maskwise.masking.schedules import schedule
from maskwise.weights import encoder_weights, multiplied_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Work(NamedTuple):
    """Multiplications of a forward pass: weights, times the tokens that each is applied to.

    Embeddings, attention scores, activations and norms are left out.

    Attributes:
        body: of the encoder.
        head: of heads, which are trained even if the encoder is frozen.
        tied: of a vocabulary matrix shared with the encoder's embeddings.
    """

    body: float
    head: float = 0
    tied: float = 0

    @property
    def all(self) -> float:
        return sum(self)


def trained(work: Work, *, frozen: bool = False, held: float = 0.0) -> int:
    """FLOPs of a forward and a backward pass.

    Args:
        frozen: whether gradients end at the encoder, which is not trained.
        held: the share of the encoder's weights that gradients pass through but do not change.
    """
    if frozen:
        return int(2 * work.body + 6 * work.head + 4 * work.tied)
    # Weights that are not trained need no gradient of their own.
    spared = held * work.body
    if held:
        spared += work.tied
    return int(6 * work.all - 2 * spared)


NO_DOCUMENTS = "its attention cannot keep documents apart"
"""Why packed rows are not read document by document."""

Precision: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a model computes at some precision."""

Masking: TypeAlias = Mapping[str, Any]
"""Arguments of a ``Masker``, by name."""

Inputs: TypeAlias = dict[str, Any]
"""Arguments of a model, by name."""

Batch: TypeAlias = "MaskedBatch | Tensors"
"""A masked batch, or a plain dict of model inputs with ``labels``."""


class Maker(Protocol):
    """Makes a batch of rows; see ``Masker.__call__``. If it has ``places``, it also takes the
    ``place`` of each row.
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
        loss: sum of the losses of all targets, a scalar in nats, with its gradient.
        targets: divisor of the sum, a scalar: targets (diffusion: eligible tokens).
        losses: (M,) float32, the loss of each target, detached; None if targets have no places.
        where: (M, 2) int64, row and column of each target.
        right: (M,) bool, whether the likeliest token is correct; None unless asked for.
    """

    loss: Tensor
    targets: Tensor
    losses: Tensor | None = None
    where: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, losses: Tensor, where: Tensor | None = None) -> Outcome:
        """The outcome of (M,) losses at places ``where``, if they have any."""
        # Losses without places are of no use to policies that learn.
        each = None if where is None else losses.detach()
        return cls(losses.sum(), counted(losses.numel(), losses), each, where)


class Objective(nn.Module, ABC):
    """A model with its head and its loss: ``objective(batch)`` returns an ``Outcome``.

    It is called as a module, so that DDP and FSDP see one forward pass. Sums and counts, not means:
    every target then has the same weight over gradient accumulation and ranks.
    """

    model: PreTrainedModel

    kind: Kind = "encoder"
    """The kind of model that it trains (``families.Adapter``)."""

    masking: Masking = {}
    """Its default masking."""

    inherits = True
    """Whether a recipe's common masking applies to it."""

    in_place = True
    """Whether a label belongs to the token at its place, so that a corruption must keep lengths."""

    detects = False
    """Whether its labels are 0 and 1 for unchanged and changed tokens."""

    twins = False
    """Whether a batch has every other row twice: an even number ≥ 4 on every rank."""

    batches: Callable[..., Maker] = Masker
    """The class that makes its batches, built from a tokenizer, the masking and ``seed``."""

    layout: str = "any"
    """The rows it needs: "any", or "document": one text a row, with [CLS] before it."""

    precision: Precision = nullcontext
    """The precision of evaluation; a training sets its own while it runs."""

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        """The layout in which it reads rows prepared in ``layout``, with a model of ``config``.

        Families whose attention cannot keep documents apart read packed rows one document a row.
        """
        if cls.layout != "any":
            return cls.layout
        if layout == "packed" and not adapter_of(config).separates:
            return "document"
        return layout

    @classmethod
    def settings(cls, common: Masking, own: Masking) -> dict[str, Any]:
        """The masking of an arm: its own, then this objective's, then the recipe's."""
        return {**(common if cls.inherits else {}), **cls.masking, **own}

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        """Check that this objective can learn from such a masking (see ``settings``).

        Returns:
            A warning, or None.

        Raises:
            MaskwiseError: it would learn nonsense.
        """
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        """Raise if it cannot train models of this configuration."""

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        **masking: object,
    ) -> Maker:
        """Build what makes its batches. ``length`` is the number of positions of the model."""
        return cls.batches(
            tokenizer,
            **cls.settings({}, masking),
            seed=seed,
        )

    def chance(self, vocabulary: int, rows: int) -> float:
        """The loss of a uniform guess in nats per target, for batches of ``rows``."""
        return math.log(vocabulary)

    def work(self, tokens: float, targets: float) -> Work:
        """The work of a batch: the encoder for each token, this objective's head for each target.

        Args:
            tokens: of the text before its corruption; texts that are read twice count twice.
            targets: labels other than −100.
        """
        # Everything outside the model belongs to the head.
        heads = multiplied_weights(self) - multiplied_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, heads * targets)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Evaluation mode without gradients, at the precision of training."""
        # Training resumes in its own mode, because evaluations interrupt it.
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), self.precision():
                yield
        finally:
            self.train(training)

    def without_dropout(self) -> AbstractContextManager[None]:
        """Evaluation without dropout, also for objectives that need it (``cse``)."""
        return nullcontext()

    @abstractmethod
    def forward(self, batch: Any) -> Outcome:
        """The losses of a batch."""


def check_all_asked(objective: str, masking: Masking) -> None:
    """Raise if ``predict`` leaves out masked tokens, which the objective would treat as text."""
    if not schedule(masking.get("predict", 1.0)).always(1):
        raise MaskwiseError(
            f"objective {objective} needs a target at every masked token",
            got=f"predict {masking['predict']}",
            do="give its arm masking: {predict: 1.0}",
        )


def weighted(losses: Tensor, weight: Tensor | None, row: Tensor, column: Tensor) -> Tensor:
    """Losses (M,) of the targets at (row, column), times the weights (B, L) of the tokens."""
    # Weights have double precision on the host.
    return losses if weight is None else losses * weight[row, column].to(losses.dtype)


def unrounded(logits: Tensor) -> Tensor:
    """Logits in at least single precision, to keep the small terms of a softmax."""
    return logits if logits.dtype == torch.float64 else logits.float()


def counted(number: int, beside: Tensor) -> Tensor:
    """A number of the host as a scalar on a tensor's device; unlike a copy it needs no sync."""
    return torch.full((), number, device=beside.device)


def target_places(batch: Batch) -> Tensor:
    """(M, 2) int64: row and column of each target."""
    return batch.where if isinstance(batch, MaskedBatch) else (batch["labels"] != IGNORE).nonzero()


def model_inputs(model: PreTrainedModel, batch: Batch) -> Inputs:
    """The model's inputs by name; documents of packed rows are kept apart."""
    inputs: Inputs = dict(batch)
    inputs.pop("labels", None)
    if not isinstance(batch, MaskedBatch) or batch.documents is None:
        return inputs
    family = adapter_of(model.config)
    if not family.separates:  # only rows that a user packed; ours have another layout
        what = f"{model.config.model_type} reads packed rows as one text: {NO_DOCUMENTS}"
        warnings.warn(what, stacklevel=2)
        return inputs
    apart = family.apart(model, inputs, batch.documents)
    # Found on the host when the batch was made: on the device it would cost a sync.
    apart["documents"].ends = batch.ends[0]
    return apart


def encoded(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(B, L, H): the encoder's hidden states of a batch, without a head."""
    return encoder_of(model)(**model_inputs(model, batch)).last_hidden_state


# Downstream tasks: classes of rows or tokens, numbers, choices, answer spans


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
        logits = unrounded(self.logits(batch)).flatten(0, -2)
        labels = batch["labels"]
        loss = cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Outcome(loss, torch.count_nonzero(labels != IGNORE))

    def logits(self, batch: Tensors) -> Tensor:
        """Scores of the classes in the last dimension, such as (B, classes) or (B, L, classes)."""
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

    def logits(self, batch: Tensors) -> Tensor:
        """(B, 2, L) of start and end: two classifications over the tokens of a window.

        −∞ at padding, so that a row does not depend on its batch.
        """
        out = self.model(**self.inputs(batch))
        both = torch.stack([out.start_logits, out.end_logits], dim=1)
        return both.masked_fill(batch["attention_mask"].unsqueeze(1) == 0, -math.inf)
