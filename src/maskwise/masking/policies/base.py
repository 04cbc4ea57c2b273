"""The base class of masking policies, and of the learners that set a policy's weights in training.

A masking policy cuts each piece (a document in a row) into units: groups of tokens that are masked
together. A unit may have a weight; a larger weight makes masking more likely. The policy does not
choose which units are masked; that is done by ``masking.select``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from maskwise.devices import TensorDict, Tensors
from maskwise.draws import Array, Draws
from maskwise.masking.line import Line, Names
from maskwise.masking.units import Units, check_weights, runs

if TYPE_CHECKING:
    from torch import Tensor

    from maskwise.masking.vocabulary import Vocabulary


class UnitKind(StrEnum):
    """The kind of units that a policy cuts.

    If two models were trained with different kinds of units, their losses on the same held-out
    masks are no fair comparison. ``study.json`` records these values, so add new values but never
    change an old value.
    """

    TOKEN = "token"
    WORD = "whole-word"
    SPAN = "span"  # several words together
    TOKEN_SPAN = "token span"  # several tokens together, which may cut words
    LAYER = "span-layer"  # the runs of a layer, such as entities, phrases or sentences
    MIXTURE = "mixture"  # several of these kinds


@dataclass(frozen=True)
class When:
    """The point in training at which a batch is masked.

    Attributes:
        step: the number of the optimiser step.
        total_steps: the number of steps in the run; None if unknown.
        epoch: the number of the pass over the data; None if unknown.
        ratio: (P,) float64, the masking ratio of each piece; None until the masker has computed it.
        min_targets: the minimum number of tokens to mask in a piece.
        place: (B,) int64, the position of each row in the order of the epoch, from which masked
            diffusion computes the rows' masking rates; None if unknown.
    """

    step: int = 0
    total_steps: int | None = None
    epoch: int | None = None
    ratio: Array | None = None
    min_targets: int = 1
    place: Array | None = None


Facts: TypeAlias = Mapping[str, object]
Numbers: TypeAlias = Mapping[str, float]

Agree: TypeAlias = "Callable[[Tensor], Tensor]"
"""A function that sums a tensor over all ranks (processes). Every rank must call this function, and
every rank gets the same result."""


class Point(NamedTuple):
    """The progress of training when ``Learner.after`` is called.

    Attributes:
        done: the number of completed updates; 0 before the first update of a new run.
        total_steps: the number of updates in the whole run.
        agree: a function that sums a tensor over all ranks on the host. The call waits for the
            device.
        sums: the tensor that the learner returned from ``Learner.offer``, summed over all ranks;
            None if there is none yet. If learners are called a step late, the sums are one update
            old.
    """

    done: int
    total_steps: int
    agree: Agree
    sums: Tensor | None = None


class Learner:
    """Base class of objects that learn during training, from the losses of the run.

    A learner sets the weights of a masking policy, or the probabilities with which a sampler draws
    objectives. A learner reads every micro-batch in ``observe`` and updates itself once per step in
    ``after``. All ranks must draw the same masks, so all ranks must learn the same weights.
    Therefore learners use sums over all ranks, rounded and added in float64 on the host.

    There are two ways to get such sums. If sums are needed at every step, return the numbers from
    ``offer``: all learners of a run then share one exchange between ranks. If sums are needed only
    at some steps, call ``Point.agree``, which waits for the device.

    A checkpoint contains the states of all learners, so a resumed run continues bit for bit. The
    methods of this base class do nothing.

    A policy can also learn from its effect on the loss (REINFORCE):

        def observe(self, batch, loss):             # the batch has the log-probability of its mask
            self.log_probability += batch.log_probability

        def after(self, now):                       # the model has just been updated
            after = self.objective(self.probe)      # ``probe``: a batch that is always the same
            reward = self.before − after.total
            self.gradient = now.agree(reward · ∇ log_probability)

    The batches of such a policy cannot be made ahead (``Source.ahead``), because the masks of step
    t + 1 depend on the losses of step t.
    """

    objective: str = ""
    """The name of the objective whose batches the learner observes; empty for all objectives."""

    def start(self, vocabulary: Vocabulary) -> None:
        """Prepare for the first batch, with the vocabulary of the masker."""

    def meet(self, objective: Any) -> None:
        """Configure the objective before training."""

    def observe(self, batch: Any, loss: Any) -> None:
        """Read a micro-batch and its ``Loss``, before the update."""

    def offer(self, now: Point) -> Tensor | None:
        """Return a tensor on the device that shall be summed over all ranks, or None.

        ``after`` receives the sums as ``now.sums``. At each update, the tensors of all ranks must
        have the same size.
        """
        return None

    def after(self, now: Point) -> None:
        """Learn after an update of the model. This method is called on every rank."""

    def facts(self) -> Facts:
        """Return values to log: numbers, or dicts of named numbers."""
        return {}

    def state_dict(self) -> TensorDict:
        """Return the tensors that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Restore the state from the tensors of a checkpoint."""


Learners: TypeAlias = dict[str, Learner]


class Policy(ABC):
    """Base class of all policies. A policy is a small frozen dataclass."""

    @property
    def splits_budget(self) -> bool:
        """Whether weights depend on the budget. Then ``budget="bernoulli"`` is not allowed."""
        return False

    @property
    def needs_ratio(self) -> bool:
        """Whether units or weights depend on the ratio."""
        return self.splits_budget

    @property
    def has_ratio(self) -> bool:
        """Whether the policy has its own ratios, and the masker's ratio has no effect."""
        return False

    @property
    def has_zero_weights(self) -> bool:
        """Whether units may have weight 0. If not, the masker's ``fill`` has no effect."""
        return True

    @property
    def needs_total(self) -> bool:
        """Whether the policy changes over training, and so needs the number of steps."""
        return False

    @property
    def reads_text(self) -> bool:
        """Whether units or weights depend on the text that masks hide.

        If True, the loss of masked diffusion with this policy does not bound the likelihood.
        """
        return True

    @property
    @abstractmethod
    def unit_kind(self) -> UnitKind:
        """The kind of units. A subclass may set a class attribute instead."""

    @abstractmethod
    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        """Cut the pieces of a batch into units.

        Args:
            line: the pieces.
            draws: the random draws for these pieces, for policies that cut at random.
            when: the step, total steps and epoch, and the ratios of the pieces.
        """

    def ratios(self, ratio_P: Array, draws: Draws, when: When) -> Array:
        """Return the ratio of each piece, (P,). Policies such as UL2 replace the given ratios."""
        return ratio_P

    def judged_on(self) -> Names:
        """The policies that mask held-out text to evaluate models trained with this policy."""
        layers = self.layers()
        if "word_ids" in layers:
            return ("whole-word",)
        if layers:
            return ("token", "whole-word")
        return ("token",)

    def layers(self) -> Names:
        """The names of the annotation layers that rows must have."""
        return ()

    def annotators(self) -> Names:
        """The annotators that write this policy's layers, to run even if no recipe names them."""
        return ()

    def learner(self) -> Learner | None:
        """Make the object that learns this policy's weights; None if weights are not learned."""
        return None


class CutPolicy(Policy):
    """Base class of policies with a field ``units``: ``token``, ``word`` or the name of a layer.

    With the name of a layer, a unit is a run of tokens with the same number in this layer.
    """

    units: str

    @property
    def unit_kind(self) -> UnitKind:
        return {"token": UnitKind.TOKEN, "word": UnitKind.WORD}.get(self.units, UnitKind.LAYER)

    def layers(self) -> Names:
        return layer_of(self.units)


def units_by(line: Line, name: str) -> Units:
    """Cut a batch into tokens (``token``), words (``word``), or the runs of the layer ``name``."""
    if name == "token":
        return Units.single(line)
    return runs(line, line.layer(*layer_of(name)))


def layer_of(name: str) -> Names:
    """The names of the layers that ``units_by`` reads."""
    if name == "token":
        return ()
    if name == "word":
        return ("word_ids",)
    return (name,)


def weigh(units: Units, weight_T: Array) -> Units:
    """Give each unit the mean of its tokens' weights, ``weight_T`` (T,).

    Raises:
        MaskwiseError: the weight of a token in a unit is negative, NaN or infinite.
    """
    weight = weight_T[units.tokens].astype(np.float64)
    # Check before computing the mean, because a negative weight may have a positive mean.
    check_weights(weight)
    if not units.by_token:
        total = np.bincount(
            units.unit,
            weights=weight,
            minlength=len(units.piece),
        )
        weight = total / units.length
    return units.weighted(weight)
