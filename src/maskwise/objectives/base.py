"""The base class of objectives, and the objectives of downstream tasks.

An objective computes the sum of the losses of a batch and the number of targets. The training loop
adds up both over all micro-batches of a step and over all ranks, and then divides the sum of losses
by the number of targets.
"""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from maskwise.base.constants import Kind
from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.effects import within
from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.base.plugins import is_foreign
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.batch import Lengths
from maskwise.masking.gather import UserRows
from maskwise.masking.line import Line
from maskwise.masking.settings import Masking, MaskingSettings
from maskwise.models.attention import reads_ragged_rows
from maskwise.models.decoders import is_causal
from maskwise.models.families import Decoder, Inputs, adapter_of, encoder_of
from maskwise.models.flops import Work, encoder_attention, encoder_weights, multiplied_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


NO_DOCUMENTS = "its attention cannot keep documents apart"
"""The last words of warnings about models that cannot keep the documents of a packed row apart."""

Precision: TypeAlias = Callable[[], AbstractContextManager[object]]
"""A function that returns a context in which a model computes, such as autocast to bf16."""

MaskingTexts: TypeAlias = Mapping[str, Any]
"""Masking settings as a recipe has them, by name."""

Batch: TypeAlias = "MaskedBatch | Tensors"
"""A masked batch, or a plain dict of model inputs with ``labels``."""


class Maker(Protocol):
    """A function that makes a batch from rows, such as a ``Masker``.

    If the function has an attribute ``places`` that is True, it reads one more argument, ``place``:
    the position of each row in the order of the epoch.
    """

    def __call__(
        self,
        rows: UserRows | Line,
        *,
        step: int = 0,
        total_steps: int | None = None,
        epoch: int | None = None,
    ) -> MaskedBatch: ...


class Batches(Protocol):
    """A class whose objects make batches, such as ``Masker``."""

    values: ClassVar[type[Masking]]

    @classmethod
    def of(cls, tokenizer: Any, masking: Masking, *, seed: int = 0) -> Maker: ...


class Loss(NamedTuple):
    """The losses of a batch with M targets.

    Attributes:
        total: the summed loss of all targets, a scalar in nats, with gradient.
        divisor: the number by which the sum is divided, a scalar: the number of targets, or in
            masked diffusion the number of eligible tokens.
        each: (M,) float32, the loss of each target, detached; None if targets are not tokens.
        where: (M, 2) int64, the row and the column of each target; None if targets are not tokens.
        right: (M,) bool, whether the most probable token is the target; None unless the attribute
            ``tells_right`` of the objective is True.
    """

    total: Tensor
    divisor: Tensor
    each: Tensor | None = None
    where: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, losses: Tensor, where: Tensor | None = None) -> Loss:
        """Sum the losses (M,) of targets; ``where`` is their positions if they are tokens."""
        # Single losses are only used by masking policies that learn, which need losses of tokens.
        each = None if where is None else losses.detach()
        return cls(losses.sum(), as_scalar(losses.numel(), losses), each, where)


class Objective(nn.Module, ABC):
    """Base class of objectives: a model with a head and a loss. Calls return a ``Loss``.

    An objective is a module, because DDP and FSDP need one forward pass that includes the loss. It
    returns sums and counts, not means. All targets of a step therefore have the same weight, in all
    micro-batches and on all ranks.
    """

    model: PreTrainedModel

    kind: Kind = "encoder"
    """The kind of model that this objective trains (``families.Adapter``)."""

    masking: MaskingTexts = {}
    """The default masking settings of this objective."""

    inherits = True
    """Whether the masking settings of the recipe are used with this objective."""

    in_place = True
    """Whether every label belongs to the input token at its position. If True, the corruption must
    not change the length of a text."""

    detects = False
    """Whether labels are 0 for unchanged tokens and 1 for changed tokens."""

    twins = False
    """Whether half of the rows are read twice and the other half are not read. If True, every rank
    needs an even number of rows, at least 4."""

    alone = False
    """Whether the objective trains a language model, so that a recipe may have no other."""

    causal = False
    """Whether each token is predicted from earlier tokens alone, so that a decoder is trained as it
    is (``models.decoders.is_decoder``)."""

    predicts_next = False
    """Whether the objective trains a decoder that sees later tokens (``families.Decoder``)."""

    diffuses = False
    """Whether the objective is masked diffusion, whose defaults replace no setting of the user."""

    masks = True
    """Whether batches are masked. If False, the objective has no masking settings."""

    batches: type[Batches] = Masker
    """The class of the makers of batches: a ``Masker``, or a class with the same ``of`` and
    ``values``."""

    layout: str = "any"
    """The layout that rows must have: "any", or "document" for rows with one text after [CLS]."""

    starts: tuple[str, ...] = ()
    """The arguments that name models that exist, with the tokens of the model that is trained. If
    their files change, the stages of a study do not use what was made before."""

    foreign: ClassVar[bool] = False
    """Whether the class is of another package. Only then, its losses are checked."""

    precision: Precision = nullcontext
    """The context of evaluations. A training run sets it to the precision of training."""

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        # It is read in every call.
        cls.foreign = is_foreign(cls)

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        """Return the layout in which the rows of a corpus with this ``layout`` are read.

        A model that cannot keep the documents of packed rows apart reads one document per row.
        """
        if cls.layout != "any":
            return cls.layout
        if layout == "packed" and not adapter_of(config).separates:
            return "document"
        return layout

    @classmethod
    def settings(cls, common: MaskingSettings, own: MaskingSettings) -> MaskingSettings:
        """Return the masking settings to use with this objective.

        Args:
            common: the recipe's settings. The defaults of this objective replace them. They are
                ignored if ``inherits`` is False.
            own: the settings for this objective. Those that are set replace all others.

        Raises:
            MaskwiseError: the objective does not mask, and has settings of its own.
        """
        cls._require_masks(own.model_dump(exclude_unset=True))
        first = common if cls.inherits else MaskingSettings()
        return first.replaced(cls.defaults()).replaced(own)

    @classmethod
    def _require_masks(cls, own: MaskingTexts) -> None:
        changed = [name for name, value in own.items() if cls.masking.get(name) != value]
        if changed and not cls.masks:
            raise MaskwiseError(
                "this objective does not mask, so it has no masking settings",
                got=", ".join(changed),
                do="remove masking from this objective",
            )

    @classmethod
    @cache
    def defaults(cls) -> MaskingSettings:
        """Return ``masking`` as settings."""
        with within(f"masking of objective {cls.__name__}", cls.masking):
            return MaskingSettings(**cls.masking)

    @classmethod
    def value_of(cls, settings: MaskingSettings) -> Masking:
        """Return settings as one value, without those that have no effect beside the others.

        Raises:
            MaskwiseError: settings do not fit each other.
        """
        policy = settings.values["policy"].fresh()
        return cls.batches.values.shared({**settings.values, "policy": policy})

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        """Check masking settings. Return a warning or None.

        Raises:
            MaskwiseError: the objective cannot learn from batches with these settings.
        """
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        """Raise ``MaskwiseError`` if this objective cannot train models of this configuration."""

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        masking: Masking | None = None,
        **own: Any,
    ) -> Maker:
        """Build the maker of batches.

        Args:
            tokenizer: the tokenizer of the rows.
            seed: the seed of the masks.
            length: the number of positions of the model; None for no limit.
            masking: the masking settings; default: those of the objective.
            own: settings that replace the objective's, if ``masking`` is not given.
        """
        if masking is None:
            masking = cls.own_masking(own)
        return cls.batches.of(tokenizer, masking, seed=seed)

    @classmethod
    def own_masking(cls, own: MaskingTexts) -> Masking:
        """Return the masking with settings of the objective's own."""
        cls._require_masks(own)
        return cls.batches.values.shared({**cls.defaults().values, **own})

    def chance(self, vocabulary: int, rows: int) -> float:
        """Return the loss of a uniform guess, in nats per target.

        Args:
            vocabulary: the number of tokens in the vocabulary.
            rows: the number of rows in a batch.
        """
        return math.log(vocabulary)

    def work(self, tokens: float, targets: float) -> Work:
        """Return the multiplications by weights for a batch: the encoder on all tokens, the head on
        all targets.

        Args:
            tokens: the number of tokens before corruption. If a text is read twice, its tokens
                count twice.
            targets: the number of labels other than −100.
        """
        # The head is all weights outside the model.
        heads = multiplied_weights(self) - multiplied_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, heads * targets)

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications that attention needs for texts of these lengths."""
        return Work(scores=encoder_attention(self.model.config, lengths.read))

    @contextmanager
    def judging(self) -> Iterator[None]:
        """A context for evaluation: without dropout and gradients, at the precision of training."""
        # An evaluation may interrupt training, so restore the mode afterwards.
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), self.precision():
                yield
        finally:
            self.train(training)

    def without_dropout(self) -> AbstractContextManager[None]:
        """A context without dropout, even for objectives that need dropout (``cse``)."""
        return nullcontext()

    @abstractmethod
    def forward(self, batch: Any) -> Loss:
        """Return the losses of a batch."""

    def __call__(self, *batch: Any, **named: Any) -> Loss:
        loss = super().__call__(*batch, **named)
        if self.foreign:
            require_loss(loss, type(self).__name__)
        return loss


def require_fitting_head(kind: type[Objective], config: PreTrainedConfig) -> None:
    """Raise ``MaskwiseError`` if an objective cannot train models of a configuration."""
    decodes = isinstance(adapter_of(config), Decoder)
    if is_causal(config) and not kind.causal:
        raise MaskwiseError(
            "a decoder reads earlier tokens only",
            got=f"{config.model_type}, with {kind.__name__}",
            do="set objective: clm; or model.changes: bidirectional() and objective: mntp",
        )
    if decodes and kind.causal:
        raise MaskwiseError(
            "predicting the next token needs a decoder that reads earlier tokens only",
            got=f"{config.model_type} with is_causal: false, and {kind.__name__}",
            do="start from the decoder without bidirectional(), or set objective: mntp",
        )
    if decodes and not kind.predicts_next:
        raise MaskwiseError(
            "the head of a decoder predicts the token after a position",
            got=f"{kind.__name__}, which predicts the token at a position",
            do="set objective: mntp",
        )
    if kind.predicts_next and not decodes:
        raise MaskwiseError(
            f"{kind.__name__} needs a decoder that sees later tokens",
            got=config.model_type,
            do="add bidirectional() to model.changes for a decoder; use objective: mlm for an "
            "encoder",
        )
    kind.check_model(config)


def require_loss(loss: object, objective: str) -> None:
    """Raise ``PlugInError`` unless an objective returned a ``Loss`` of two scalars."""
    who = f"objective {objective}"
    if not isinstance(loss, Loss):
        raise PlugInError(
            f"{who} does not return a Loss",
            got=type(loss).__name__,
            do="return maskwise.objectives.Loss.of(losses), with the loss of each target",
        )
    for name in ("total", "divisor"):
        value = getattr(loss, name)
        if not isinstance(value, Tensor) or value.ndim:
            raise PlugInError(
                f"{who}: {name} of its Loss must be a tensor with one number",
                got=f"shape {(*value.shape,)}" if isinstance(value, Tensor) else repr(value),
                do="use Loss.of(losses), which adds up the losses and counts them",
            )


def require_gradient(loss: Loss, objective: str) -> None:
    """Raise ``PlugInError`` if a loss has no gradient."""
    if not loss.total.requires_grad:
        raise PlugInError(
            f"objective {objective}: its loss has no gradient, so it trains nothing",
            do="compute the loss with torch from the output of the model, and do not detach it",
        )


def require_finite(total: float, objective: str) -> None:
    """Raise ``PlugInError`` if the first losses of an objective are NaN or infinite."""
    if not math.isfinite(total):
        raise PlugInError(
            f"objective {objective}: its loss is not finite in its first step",
            got=total,
            do="look for a division by 0, a logarithm of 0 or a mean of nothing",
        )


def require_counted(divisor: float, counted: float, objective: str) -> None:
    """Raise ``PlugInError`` if losses are not divided by the targets of their batches.

    Training divides the losses of all micro-batches and ranks by the targets of their batches,
    which are known before any loss.
    """
    if divisor != counted:
        raise PlugInError(
            f"objective {objective}: training divides its losses by the number of targets of the "
            "batch, which is not the divisor of its Loss",
            got=f"divisor {divisor:g} for {counted:g} targets",
            do="return the loss of each target (a label other than −100)",
        )


def check_all_asked(objective: str, masking: Masking) -> None:
    """Raise ``MaskwiseError`` if ``predict`` would leave masked tokens without a target.

    The objective would treat masked tokens without a target as original text.
    """
    if not masking.predict.always(1):
        raise MaskwiseError(
            f"objective {objective} needs a target at every masked token",
            got=f"predict {masking.predict}",
            do="set masking: {predict: 1.0} for this objective",
        )


def weighted(losses: Tensor, weight: Tensor | None, row: Tensor, column: Tensor) -> Tensor:
    """Multiply losses (M,) by the weights (B, L) at (row, column), if there are weights."""
    # On a CPU, the weights are in double precision.
    return losses if weight is None else losses * weight[row, column].to(losses.dtype)


def unrounded(logits: Tensor) -> Tensor:
    """Convert logits to at least single precision, because bf16 loses small terms of a softmax."""
    return logits if logits.dtype == torch.float64 else logits.float()


def precise(device: str) -> AbstractContextManager[object]:
    """A context that turns autocast off."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def as_scalar(number: int, beside: Tensor) -> Tensor:
    """Return a number as a scalar on the device of ``beside``."""
    # ``full`` does not make the host wait, but copying a tensor from the host would.
    return torch.full((), number, device=beside.device)


def target_places(batch: Batch) -> Tensor:
    """(M, 2) int64: the row and the column of each target."""
    return batch.where if isinstance(batch, MaskedBatch) else (batch["labels"] != IGNORE).nonzero()


def model_inputs(model: PreTrainedModel, batch: Batch) -> Inputs:
    """Return a model's inputs by name. In packed rows, tokens attend only within documents."""
    inputs: Inputs = dict(batch)
    inputs.pop("labels", None)
    if not isinstance(batch, MaskedBatch):
        return inputs
    family = adapter_of(model.config)
    documents = batch.documents
    if documents is None:
        padded = batch.attention_mask is not None
        if not (padded and reads_ragged_rows(model, batch.input_ids.device)):
            return inputs
        # A decoder would need the mask of the text that it reads.
        if batch.ends[0] is None or not family.separates or family.kind != "encoder":
            return inputs
        documents = batch.rows_as_documents()
    # ``Objective.reads`` prevents this case in training runs. Here a user passed packed rows.
    if not family.separates:
        what = f"{model.config.model_type} reads packed rows as one text: {NO_DOCUMENTS}"
        warnings.warn(what, stacklevel=2)
        return inputs
    apart = family.apart(model, inputs, documents)
    # Use the offsets that were computed on the host. Computing them here would make the host wait.
    apart["documents"].ends = batch.ends[0]
    return apart


def encoded(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(B, L, H): the encoder's hidden states for a batch, without a head."""
    return encoder_of(model)(**model_inputs(model, batch)).last_hidden_state


def pooled(states_BLH: Tensor, attention_BL: Tensor, pooling: str) -> Tensor:
    """(B, H): one vector for each text, of the states of its tokens.

    Args:
        pooling: "mean" for the mean over all tokens, including special tokens, as in
            sentence-transformers; "cls" for the first token; "last" for the last one, the only one
            that sees a whole text in a decoder.
    """
    if pooling == "cls":
        return states_BLH[:, 0]
    if pooling == "last":
        rows = torch.arange(len(states_BLH), device=states_BLH.device)
        return states_BLH[rows, attention_BL.sum(1) - 1]
    real = attention_BL.unsqueeze(-1)
    return (states_BLH * real).sum(1) / real.sum(1)


# Objectives of downstream tasks


class Classification(Objective):
    """Cross-entropy of the class of every row or every labelled token.

    Formula: sum over all labelled rows, or all labelled tokens, of −log p(class | row).
    Inputs: a mapping with the model's inputs and ``labels``, (B,) or (B, L); −100 means no label.
    Requirements: ``models.load_task_model`` with a head for sequences or tokens.
    Source: Devlin et al. 2019, section 4.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # Tokenizers return token types even for models whose ``forward`` does not accept them.
        taken = inspect.signature(model.forward).parameters
        self._unused = {"labels", "choices"} | {"token_type_ids"}.difference(taken)

    def forward(self, batch: Tensors) -> Loss:
        logits = unrounded(self.logits(batch)).flatten(0, -2)
        labels = batch["labels"]
        loss = cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return Loss(loss, torch.count_nonzero(labels != IGNORE))

    def logits(self, batch: Tensors) -> Tensor:
        """Return the class scores, (B, classes) or (B, L, classes)."""
        return self.model(**self.inputs(batch)).logits

    def inputs(self, batch: Tensors) -> TensorDict:
        """Return the model's inputs from a batch."""
        return {name: value for name, value in batch.items() if name not in self._unused}


class Regression(Classification):
    """Squared error of one number per row.

    Formula: sum over rows of (answer − label)². Labels are standardised over the train split.
        Therefore a new head begins near the mean label, and one learning rate suits all scales.
    Inputs: a mapping with the model's inputs and ``labels``, (B,) float.
    Requirements: ``models.load_task_model`` with a head for sequences and one label.
    Source: Devlin et al. 2019, appendix B.1 (STS-B).
    """

    def forward(self, batch: Tensors) -> Loss:
        error = unrounded(self.logits(batch)).squeeze(-1) - batch["labels"]
        return Loss.of(error.square())


class MultiLabel(Classification):
    """Binary cross-entropy of each label of every row.

    Formula: sum over rows and over K labels of −log p(label | row).
    Inputs: a mapping with the model's inputs and ``labels``, (B, K), 1 or 0.
    Requirements: ``models.load_task_model`` with a head for sequences and K labels.
    Source: Goodfellow et al. 2016, section 6.2.2.2.
    """

    def forward(self, batch: Tensors) -> Loss:
        logits = unrounded(self.logits(batch))
        labels = batch["labels"].to(logits.dtype)
        return Loss.of(binary_cross_entropy_with_logits(logits, labels, reduction="none"))


class MultipleChoice(Classification):
    """Cross-entropy of the correct choice. Questions may differ in their number of choices.

    Formula: sum over questions of −log softmax(scores of the choices)[correct choice].
    Inputs: a mapping with the model's inputs for S sequences, one per choice; ``choices`` (B, C),
        the indices of the sequences of each question, padded with −1; and ``labels`` (B,), the
        column of the correct choice.
    Requirements: ``models.load_task_model`` with the head ``multiple-choice``.
    Source: Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4 (SWAG).
    """

    def logits(self, batch: Tensors) -> Tensor:
        """(B, C): the score of each choice; −∞ in columns without a choice."""
        choices = batch["choices"]
        # Pass all sequences as choices of one question, because the number of choices may differ
        # between questions.
        inputs = {name: value.unsqueeze(0) for name, value in self.inputs(batch).items()}
        scores = self.model(**inputs).logits.squeeze(0)
        return scores[choices.clamp(min=0)].masked_fill(choices < 0, -math.inf)


class SpanQuestionAnswering(Classification):
    """Cross-entropy of the first and the last token of the answer.

    Formula: sum over windows of −log p(start) − log p(end). Both distributions are a softmax over
        the tokens of the window, without padding.
    Inputs: a mapping with the model's inputs and ``labels``, (B, 2): the positions of the two
        tokens. A window that does not contain the answer has the label (0, 0), which is the
        position of [CLS].
    Requirements: ``models.load_task_model`` with the head ``question-answering``.
    Source: Devlin et al. 2019, section 4.2.
    """

    def logits(self, batch: Tensors) -> Tensor:
        """(B, 2, L): the scores of start and end at each token of a window.

        Scores are −∞ at padding, so the loss of a row does not depend on other rows.
        """
        out = self.model(**self.inputs(batch))
        both = torch.stack([out.start_logits, out.end_logits], dim=1)
        return both.masked_fill(batch["attention_mask"].unsqueeze(1) == 0, -math.inf)


class InBatchNegatives(Classification):
    """Cross-entropy of the text that belongs to a query, among the texts of the batch.

    Formula: sum over queries i of −log(exp(cos(q_i, p_i) / T) / Σ over j of
        exp(cos(q_i, p_j) / T)), where j is i, or a row whose text is a wrong answer to query i.
    Inputs: a mapping with the model's inputs for B texts; the same for B queries, in names that
        begin with ``query_``; ``wrong`` (B, B), whether text j is a wrong answer to query i; and
        ``labels`` (B,), the number of the text of each query.
    Requirements: ``models.load_task_model`` with the head ``embedding``, and two rows or more, as
        every other text is a negative one. Micro-batches and ranks have negatives of their own.
    Source: Henderson et al. 2017 (arXiv 1705.00652), section 4.4, with cosines and a temperature
        (``MultipleNegativesRankingLoss`` of sentence-transformers, whose scale is 1 / T).
    """

    def __init__(self, model: PreTrainedModel, *, pooling: str = "mean", temperature: float = 0.05):
        super().__init__(model)
        self.pooling = pooling
        self.temperature = temperature

    def forward(self, batch: Tensors) -> Loss:
        own = batch["labels"]
        if len(own) < 2:
            raise MaskwiseError(
                "a query needs the texts of other rows as wrong answers",
                got="batches of one row",
                do="set finetune.batch_size to 2 or more",
            )
        queries, passages = (self.vectors(batch, prefix) for prefix in ("query_", ""))
        rivals = batch["wrong"].scatter(1, own.unsqueeze(1), True)
        # In bf16, cosines near 1 would all be equal.
        with precise(queries.device.type):
            scores = queries @ passages.T / self.temperature
        scores = scores.masked_fill(~rivals, -math.inf)
        return Loss.of(cross_entropy(scores, own, reduction="none"))

    def vectors(self, batch: Tensors, prefix: str) -> Tensor:
        """(B, H): the vectors of queries or of texts, of length 1."""
        attention = batch[f"{prefix}attention_mask"]
        out = self.model(input_ids=batch[f"{prefix}input_ids"], attention_mask=attention)
        return normalize(pooled(unrounded(out.last_hidden_state), attention, self.pooling), dim=1)
