"""The base class of policies. A policy cuts pieces into weighted units, but does not select any."""

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
    """What the units of a policy are.

    A single held-out loss cannot compare arms with different kinds of units. study.json records
    these values: never change a value, only append new values.
    """

    TOKEN = "token"
    WORD = "whole-word"
    SPAN = "span"  # several words together
    TOKEN_SPAN = "token span"  # several tokens together, which may cut words
    LAYER = "span-layer"  # the runs of a layer, such as entities, phrases or sentences
    MIXTURE = "mixture"  # several of these kinds


@dataclass(frozen=True)
class Moment:
    """When a mask is made, for schedules and policies that change over training.

    Attributes:
        ratio: (P,) float64, the current ratios, for policies whose units depend on ratios.
        place: (B,) int64, the position of each row in the order of its epoch, for low-discrepancy
            rates.
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
"""A function that adds up all ranks' sums. All ranks must call it, and all get the same result."""


class Point(NamedTuple):
    """The progress of training at the moment when learners learn.

    Attributes:
        done: the number of completed updates; 0 before the first update of a new run.
        total_steps: the number of updates in the whole run.
        agree: a function that sums a tensor over all ranks, on the host; it waits for the device.
        sums: the sums over all ranks of what the learner offered (``Learner.offer``) at this
            update, or at the previous update if learners are a step late; None before the first
            offer.
    """

    done: int
    total_steps: int
    agree: Agree
    sums: Tensor | None = None


class Learner:
    """Learns a policy's weights or a sampler's logits during training. The base class does nothing.

    A learner reads every micro-batch (``observe``) and updates itself once per step (``after``).
    Ranks must agree on masks and arms, so learners use rounded sums over all ranks, in float64 on
    the host. Sums that are needed at every step are offered (``offer``): one exchange serves all
    learners, at once or a step late. ``Point.agree`` is for rare sums, because it waits for the
    device. States are saved with the run, so a resumed run continues bit for bit.

    This protocol is enough for a policy that learns from its effect (REINFORCE):

        def observe(self, batch, outcome):          # the batch has the log-probability of its mask
            self.log_probability += batch.log_probability

        def after(self, now):                       # the weights have just changed
            loss = self.objective(self.probe)       # ``meet`` set both; the probe is masked once
            reward = self.loss_before − loss
            self.gradient = now.agree(reward · ∇ log_probability)

    Such a policy needs a batch source with ``ahead = 0``, because step t + 1 depends on the losses
    of step t.
    """

    arm: str = ""
    """With several objectives, the arm whose batches the learner observes; empty for all arms."""

    def start(self, vocabulary: Vocabulary) -> None:
        """Prepare before the first batch, with the masker's vocabulary."""

    def meet(self, objective: Any) -> None:
        """Configure the objective before training."""

    def observe(self, batch: Any, outcome: Any) -> None:
        """Read a micro-batch and its ``Outcome``, before the update."""

    def offer(self, now: Point) -> Tensor | None:
        """Return this rank's numbers, on the device, to be summed over all ranks, or None.

        ``after`` is called next, with the sums as ``now.sums``. At each update, every rank must
        offer the same number of values.
        """
        return None

    def after(self, now: Point) -> None:
        """Learn after an update, at the point ``now``; every rank calls this method."""

    def facts(self) -> Facts:
        """Return what to log: numbers, or dicts of named numbers."""
        return {}

    def state_dict(self) -> TensorDict:
        """Return what a run needs to resume."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Resume from a ``state_dict``."""


Learners: TypeAlias = dict[str, Learner]


class Policy(ABC):
    """The base class of all policies, which are small frozen dataclasses."""

    @property
    def splits_budget(self) -> bool:
        """Whether weights depend on the budget, so that units cannot be drawn independently."""
        return False

    @property
    def needs_ratio(self) -> bool:
        """Whether units or weights depend on the ratio."""
        return self.splits_budget

    @property
    def reads_text(self) -> bool:
        """Whether units or weights depend on the text that masks hide.

        Masked diffusion with such a policy has no likelihood.
        """
        return True

    @property
    @abstractmethod
    def unit_kind(self) -> UnitKind:
        """What the units are; a subclass may set a class attribute instead."""

    @abstractmethod
    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        """Cut the pieces of a batch into units.

        Args:
            batch: the pieces, as one line of tokens.
            keys: the random draws for these pieces, for policies that are random themselves.
            moment: the step, total steps and epoch, and the ratios of the pieces.
        """

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        """Return the ratios (P,) of these pieces; policies such as UL2 replace the masker's."""
        return ratio_P

    def judged_on(self) -> Names:
        """The held-out masks on which a model trained with this policy is evaluated."""
        layers = self.layers()
        if "word_ids" in layers:
            return ("whole-word",)
        if layers:
            return ("token", "whole-word")
        return ("token",)

    def layers(self) -> Names:
        """The layers that rows must have."""
        return ()

    def annotators(self) -> Names:
        """The annotators that are added to a corpus although the recipe does not name them."""
        return ()

    def learner(self) -> Learner | None:
        """Make the policy's learner; None if the policy's weights do not follow the losses."""
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
    """The layers that ``units_by`` reads."""
    if name == "token":
        return ()
    if name == "word":
        return ("word_ids",)
    return (name,)


def weigh(units: Units, weight_T: Array) -> Units:
    """Give each unit the mean of its tokens' weights (T,).

    Raises:
        MaskwiseError: a weight of an eligible token that is negative, NaN or infinite.
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
