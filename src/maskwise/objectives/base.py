"""What an objective is: a masked batch in, a sum of losses and a count out. The loop divides once."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.families import Kind, adapter_of, encoder_of, encoder_weights, multiplied_weights
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.gather import Rows
from maskwise.masking.schedules import schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Work:
    """How often the weights of a model are used in a forward pass: weights, times the tokens that
    each works for.

    ``study.costs`` makes FLOPs of it. Left out is what is looked up and not multiplied
    (embeddings), attention scores, activations and norms.

    Attributes:
        body: of the encoder.
        head: of heads, which are trained also where the encoder is frozen.
        tied: of a vocabulary matrix that is the encoder's embeddings, used as a head.
    """

    body: float
    head: float = 0
    tied: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.body + other.body, self.head + other.head, self.tied + other.tied)

    @property
    def all(self) -> float:
        return self.body + self.head + self.tied


NO_DOCUMENTS = "its attention cannot keep documents apart"
"""What is said of a family that ``attention`` does not reach."""


def trained(work: Work, *, frozen: bool = False) -> int:
    """FLOPs of a forward and a backward pass; ``frozen``: of the heads alone, on an encoder that
    stays as it is.
    """
    return int(2 * work.body + 6 * work.head + 4 * work.tied) if frozen else int(6 * work.all)


Precision: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a model computes at some precision."""

Masking: TypeAlias = Mapping[str, Any]
"""How batches are masked: arguments of a ``Masker``, by name."""


class Maker(Protocol):
    """Makes a batch of rows; see ``Masker.__call__``. One that has ``places`` is also told the
    place of each row.
    """

    def __call__(
        self, rows: Rows, *, step: int = 0, total_steps: int | None = None, epoch: int | None = None
    ) -> MaskedBatch: ...


class Outcome(NamedTuple):
    """What a batch cost.

    Attributes:
        loss: sum of the losses of all targets, a scalar in nats, with its gradient.
        targets: what the sum is divided by, a scalar: the number of targets (diffusion: of eligible
            tokens).
        losses: (M,) float32, the loss of every target, detached; None where an objective has no
            targets at places.
        where: (M, 2) int64, row and column of every target.
        right: (M,) bool, whether the likeliest token is the right one; None unless somebody asked
            for it.
    """

    loss: Tensor
    targets: Tensor
    losses: Tensor | None = None
    where: Tensor | None = None
    right: Tensor | None = None


class Objective(nn.Module, ABC):
    """A model with its head and its loss.

    It is called as a module, so that DDP and FSDP see one forward pass: ``objective(batch)``
    returns an ``Outcome``. Sums and counts, not means: gradient accumulation and several ranks then
    weigh every target alike, whatever batch it was in.
    """

    model: PreTrainedModel

    kind: ClassVar[Kind] = "encoder"
    """The kind of model that it trains (``families.Adapter``)."""

    masking: ClassVar[Masking] = {}
    """How its batches are masked, where nobody says otherwise: arguments of a ``Masker``."""

    inherits: ClassVar[bool] = True
    """Whether a recipe's masking is this objective's too, as far as neither says anything else."""

    in_place: ClassVar[bool] = True
    """Whether a label belongs to the token of the same place, so that a corruption must keep
    lengths.
    """

    detects: ClassVar[bool] = False
    """Whether its labels are 0 and 1, for what was done to the text, and not tokens."""

    twins: ClassVar[bool] = False
    """Whether half of the rows make its batch, each of them twice: an even number ≥ 4, on every
    rank.
    """

    batches: ClassVar[Callable[..., Maker]] = Masker
    """What makes its batches: called with a tokenizer, the masking and ``seed``."""

    layout: ClassVar[str] = "any"
    """The rows it wants: "any", or "document": one text a row, with [CLS] before it."""

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        """The layout in which it reads rows that were prepared in another, with a model of this
        configuration.

        Packed rows are read one document a row by families whose attention cannot keep documents
        apart.
        """
        if cls.layout != "any":
            return cls.layout
        return "document" if layout == "packed" and not adapter_of(config).separates else layout

    @classmethod
    def settings(cls, common: Masking, own: Masking) -> dict[str, Any]:
        """The masking of an arm: its own, before what the objective wants, before what is common to
        all.
        """
        return {**(common if cls.inherits else {}), **cls.masking, **own}

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        """Whether this objective can learn from batches that are masked so; known before there is
        any text.

        Args:
            masking: as ``settings`` gives it.

        Returns:
            What is no mistake and should be known.

        Raises:
            MaskwiseError: it would train, and on nonsense.
        """
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        """Refuse a model that it cannot train; known before there are weights.

        Raises:
            MaskwiseError: what it needs of the model.
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
        """What makes its batches of rows: a masker. ``length``: the positions that the model has."""
        return cls.batches(tokenizer, **cls.settings({}, masking), seed=seed)

    def chance(self, vocabulary: int, rows: int) -> float:
        """The loss of knowing nothing, in nats a target, for a vocabulary and batches of ``rows``."""
        return math.log(vocabulary)

    def work(self, tokens: float, targets: float) -> Work:
        """What a batch costs forward: the encoder for each token that it reads, this objective's
        head for each target.

        Args:
            tokens: of the text, before a corruption changes their number; texts that are read twice
                count twice.
            targets: labels that are not −100.
        """
        return Work(
            encoder_weights(self.model) * tokens,
            (multiplied_weights(self) - multiplied_weights(self.model)) * targets,
        )

    precision: Precision = nullcontext
    """That in which it is trained; a training sets it for as long as it lasts."""

    @contextmanager
    def judging(self) -> Iterator[None]:
        """In this context it is evaluated: without gradients and in evaluation mode, at the
        precision of training.
        """
        training = self.training
        self.eval()
        with torch.no_grad(), self.precision():
            yield
        self.train(training)

    def without_dropout(self) -> AbstractContextManager[None]:
        """Evaluation as the model's authors have it, also where ours drops out in evaluation
        (``cse``).
        """
        return nullcontext()

    @abstractmethod
    def forward(self, batch: Any) -> Outcome:
        """The losses of a batch."""


def check_all_asked(objective: str, masking: Masking) -> None:
    """
    Raises:
        MaskwiseError: ``predict`` leaves out some of what is masked, which the objective would take
            for text.
    """
    predict = schedule(masking.get("predict", 1.0))
    if predict.varies or predict(0) < 1:
        what = f"objective {objective} needs a target at every masked token"
        raise MaskwiseError(
            what, got=f"predict {masking['predict']}", do="give its arm masking: {predict: 1.0}"
        )


def weighted(losses: Tensor, weight: Tensor | None, row: Tensor, column: Tensor) -> Tensor:
    """Losses (M,) of the targets at (row, column), times the weights (B, L) of the tokens."""
    return losses if weight is None else losses * weight[row, column].to(losses.dtype)


def unrounded(logits: Tensor) -> Tensor:
    """Logits in single precision at least, in which a softmax over a vocabulary does not lose its
    small terms.
    """
    return logits if logits.dtype == torch.float64 else logits.float()


def counted(number: int, beside: Tensor) -> Tensor:
    """A number that the host knows, as a scalar on a tensor's device; for a copy the host would
    have to wait.
    """
    return torch.full((), number, device=beside.device)


def target_places(batch: MaskedBatch | Mapping[str, Tensor]) -> Tensor:
    """(M, 2) int64: row and column of every target, also of a plain dict of model inputs."""
    return batch.where if isinstance(batch, MaskedBatch) else (batch["labels"] != IGNORE).nonzero()


def model_inputs(
    model: PreTrainedModel, batch: MaskedBatch | Mapping[str, Tensor]
) -> dict[str, Any]:
    """What of a batch the model reads, by the names of its forward pass; documents of packed rows
    are kept apart.
    """
    inputs = {name: batch[name] for name in batch.keys() if name != "labels"}  # noqa: SIM118 (no dict)
    documents = getattr(batch, "documents", None)
    if documents is None or "documents" in inputs:
        return inputs
    family = adapter_of(model.config)
    if not family.separates:  # only rows that a user has packed: others are laid out anew
        warnings.warn(
            f"{model.config.model_type} reads packed rows as one text: {NO_DOCUMENTS}", stacklevel=2
        )
        return inputs
    apart = family.apart(model, inputs, documents)
    apart["documents"].ends = getattr(batch, "ends", (None, None))[0]
    return apart


def encoded(model: PreTrainedModel, batch: MaskedBatch | Mapping[str, Tensor]) -> Tensor:
    """(B, L, H): the encoder's hidden states of a batch, without any head."""
    return encoder_of(model)(**model_inputs(model, batch)).last_hidden_state
