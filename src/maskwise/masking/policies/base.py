"""The base class of policies. A policy cuts pieces into weighted units and selects none of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from maskwise.devices import TensorDict, Tensors
from maskwise.keys import Array, Keys
from maskwise.masking.batch import AnnotatedBatch, Names
from maskwise.masking.units import Units, check_weights, runs

if TYPE_CHECKING:
    from torch import Tensor

    from maskwise.masking.vocabulary import Vocabulary


class UnitKind(StrEnum):
    """The kind of units that a policy cuts.

    One held-out loss cannot compare arms with different kinds of units. ``study.json`` records
    these values, so add new values but never change an old value.
    """

    TOKEN = "token"
    WORD = "whole-word"
    SPAN = "span"  # several words together
    TOKEN_SPAN = "token span"  # several tokens together, which may cut words
    LAYER = "span-layer"  # the runs of a layer, such as entities, phrases or sentences
    MIXTURE = "mixture"  # several of these kinds


@dataclass(frozen=True)
class Moment:
    """The point in training at which a batch is masked.

    Attributes:
        step: the optimiser step.
        total_steps: the number of steps in the run, or None if unknown.
        epoch: the pass over the data, or None if unknown.
        ratio: (P,) float64, the masking ratio of each piece; None until the masker has set it.
        min_targets: the minimum budget of a piece, in tokens.
        place: (B,) int64, the position of each row in the order of its epoch; masked diffusion
            needs it for low-discrepancy rates.
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
"""A function that adds a tensor over all ranks. Every rank must call this function, and every rank
gets the same result."""


class Point(NamedTuple):
    """The progress of training when ``Learner.after`` is called.

    Attributes:
        done: the number of completed updates; 0 before the first update of a new run.
        total_steps: the number of updates in the whole run.
        agree: a function that sums a tensor over all ranks on the host. Calling this function waits
            for the device.
        sums: the tensor that the learner returned from ``Learner.offer``, summed over all ranks;
            None before the first offer. If learners are a step late, the sums are one update old.
    """

    done: int
    total_steps: int
    agree: Agree
    sums: Tensor | None = None


class Learner:
    """Base class of objects that learn a policy's weights or a sampler's logits during training.

    A learner reads every micro-batch in ``observe`` and updates itself once per step in ``after``.
    All ranks must draw the same masks and arms, so learners add up rounded sums over all ranks, in
    float64 on the host. For sums at every step, return the numbers from ``offer``: the learners of
    a run then share one exchange between ranks. For rare sums, call ``Point.agree``, which waits
    for the device. A checkpoint holds the states of all learners, so a resumed run continues
    bit for bit. The methods of this base class do nothing.

    With this protocol a policy can learn from its effect on the loss (REINFORCE):

        def observe(self, batch, outcome):          # the batch has the log-probability of its mask
            self.log_probability += batch.log_probability

        def after(self, now):                       # the model has just been updated
            loss = self.objective(self.probe)       # ``meet`` set both; the probe is masked once
            reward = self.loss_before − loss
            self.gradient = now.agree(reward · ∇ log_probability)

    Such a policy needs a batch source with ``ahead = 0``, because the masks of step t + 1 depend on
    the losses of step t.
    """

    arm: str = ""
    """The arm whose batches the learner observes; empty for all arms."""

    def start(self, vocabulary: Vocabulary) -> None:
        """Prepare for the first batch. ``vocabulary`` is the masker's vocabulary."""

    def meet(self, objective: Any) -> None:
        """Configure the objective before training."""

    def observe(self, batch: Any, outcome: Any) -> None:
        """Read a micro-batch and its ``Outcome``, before the update."""

    def offer(self, now: Point) -> Tensor | None:
        """Return a tensor on the device to sum over all ranks, or None.

        ``after`` receives the sums as ``now.sums``. At each update, every rank must return the same
        number of values.
        """
        return None

    def after(self, now: Point) -> None:
        """Learn after an update of the model; called on every rank."""

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
        """Whether weights depend on the budget. If True, ``budget="bernoulli"`` is refused."""
        return False

    @property
    def needs_ratio(self) -> bool:
        """Whether units or weights depend on the ratio."""
        return self.splits_budget

    @property
    def reads_text(self) -> bool:
        """Whether units or weights depend on the text that masks hide.

        If True, a masked-diffusion loss with this policy is not a bound on the likelihood.
        """
        return True

    @property
    @abstractmethod
    def unit_kind(self) -> UnitKind:
        """The kind of units. A subclass may set a class attribute instead."""

    @abstractmethod
    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        """Cut the pieces of a batch into units.

        Args:
            batch: the pieces, as one line of tokens.
            keys: the random draws for these pieces, for policies that cut at random.
            moment: the step, total steps and epoch, and the ratios of the pieces.
        """

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        """Return the ratio (P,) of each piece; policies such as UL2 replace the masker's ratios."""
        return ratio_P

    def judged_on(self) -> Names:
        """The names of the held-out masks on which models of this policy are evaluated."""
        layers = self.layers()
        if "word_ids" in layers:
            return ("whole-word",)
        if layers:
            return ("token", "whole-word")
        return ("token",)

    def layers(self) -> Names:
        """The names of the layers that rows must have."""
        return ()

    def annotators(self) -> Names:
        """The annotators to run on a corpus even if the recipe does not name them."""
        return ()

    def learner(self) -> Learner | None:
        """Make the policy's learner; None if losses do not change the policy's weights."""
        return None


class CutPolicy(Policy):
    """Base class of policies with a field ``units``: ``token``, ``word`` or the name of a layer."""

    units: str

    @property
    def unit_kind(self) -> UnitKind:
        return {"token": UnitKind.TOKEN, "word": UnitKind.WORD}.get(self.units, UnitKind.LAYER)

    def layers(self) -> Names:
        return layer_of(self.units)


def units_by(batch: AnnotatedBatch, name: str) -> Units:
    """Cut a batch into tokens (``token``), words (``word``), or the runs of the layer ``name``."""
    if name == "token":
        return Units.single(batch)
    return runs(batch, batch.layer(*layer_of(name)))


def layer_of(name: str) -> Names:
    """The names of the layers that ``units_by`` reads."""
    if name == "token":
        return ()
    if name == "word":
        return ("word_ids",)
    return (name,)


def weigh(units: Units, weight_T: Array) -> Units:
    """Give each unit the mean of its tokens' weights (T,).

    Raises:
        MaskwiseError: the weight of a token in a unit is negative, NaN or infinite.
    """
    weight = weight_T[units.tokens].astype(np.float64)
    # Check before taking the mean, in which a negative weight could disappear.
    check_weights(weight)
    if not units.by_token:
        total = np.bincount(
            units.unit,
            weights=weight,
            minlength=len(units.piece),
        )
        weight = total / units.length
    return units.weighted(weight)
