"""The base of policies: a policy cuts pieces into units and weighs them; it knows no budgets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.keys import Array, Keys
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.units import Units, check_weights, runs

if TYPE_CHECKING:
    from torch import Tensor

    from maskwise.masking.vocabulary import Vocabulary


class UnitKind(StrEnum):
    """What the units of a policy are.

    One held-out loss does not compare arms with different kinds of units. The values are written to
    study.json: never change them, only append.
    """

    TOKEN = "token"
    WORD = "whole-word"
    SPAN = "span"  # several words together
    TOKEN_SPAN = "token span"  # several tokens together, which may cut words
    LAYER = "span-layer"  # the runs of a layer, such as entities, phrases or sentences
    MIXTURE = "mixture"  # several of these


@dataclass(frozen=True)
class Moment:
    """When a mask is made, for schedules and policies that change.

    Attributes:
        ratio: (P,) float64, the ratios in force, for policies whose units depend on them.
        place: (B,) int64, the place of each row in the order of its epoch, for rates of low
            discrepancy.
    """

    step: int = 0
    total_steps: int | None = None
    epoch: int | None = None
    ratio: Array | None = None
    min_targets: int = 1
    place: Array | None = None


class Learner:
    """Something that learns while the model trains (see ``training.learners``).

    Methods that a subclass does not define do nothing.
    """

    arm: str = ""
    """The arm whose batches it observes, in a training on several objectives; empty: all."""

    def start(self, vocabulary: Vocabulary) -> None:
        """Called before the first batch, with the vocabulary of the masker."""

    def meet(self, objective: Any) -> None:
        """Called once before training, with the objective."""

    def observe(self, batch: Any, outcome: Any) -> None:
        """See a micro-batch and its ``Outcome``, before the update."""

    def after(self, now: Any) -> None:
        """Learn, after an update, at a ``training.learners.Point``; every rank calls this."""

    def facts(self) -> Mapping[str, object]:
        """Return what to log: numbers, or dicts of numbers by name."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a run needs to resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a ``state_dict``."""


class Policy(ABC):
    """Base of all policies, small frozen dataclasses that can be compared and printed."""

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
        """Whether units or weights depend on hidden text: no likelihood in masked diffusion."""
        return True

    @property
    @abstractmethod
    def unit_kind(self) -> UnitKind:
        """What the units are; often a plain class attribute."""

    @abstractmethod
    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        """Cut the pieces of a batch into units.

        Args:
            batch: a line of pieces.
            keys: the draws of these pieces, for policies that are random themselves.
            moment: step, total steps, epoch, and the ratios of the pieces.
        """

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        """Return the ratios (P,) of these pieces; policies such as UL2's bring their own."""
        return ratio_P

    def judged_on(self) -> tuple[str, ...]:
        """The kinds of held-out masks by which a model trained with this policy is evaluated."""
        if "word_ids" in self.layers():
            return ("whole-word",)
        return ("token", "whole-word") if self.layers() else ("token",)

    def layers(self) -> tuple[str, ...]:
        """The layers that rows must have."""
        return ()

    def annotators(self) -> tuple[str, ...]:
        """The annotators that make its layers, for layers that the corpus need not name."""
        return ()

    def learner(self) -> Learner | None:
        """What learns from the losses while the model trains; None: nothing."""
        return None


class CutPolicy(Policy):
    """Base of policies with a field ``units``: ``token``, ``word``, or the runs of a layer."""

    units: str

    @property
    def unit_kind(self) -> UnitKind:
        return {"token": UnitKind.TOKEN, "word": UnitKind.WORD}.get(self.units, UnitKind.LAYER)

    def layers(self) -> tuple[str, ...]:
        return layer_of(self.units)


def units_by(batch: AnnotatedBatch, name: str) -> Units:
    """The units called ``token`` or ``word``, or the runs of a layer."""
    if name == "token":
        return Units.single(batch)
    return runs(batch, batch.layer(*layer_of(name)))


def layer_of(name: str) -> tuple[str, ...]:
    """The layers that ``units_by`` needs."""
    if name == "token":
        return ()
    return ("word_ids",) if name == "word" else (name,)


def weigh(units: Units, weight_T: Array) -> Units:
    """Weigh each unit with the mean of its tokens' weights (T,).

    Raises:
        MaskwiseError: a weight of an eligible token that is negative, NaN or infinite.
    """
    weight = weight_T[units.tokens].astype(np.float64)
    check_weights(weight)
    if not units.by_token:
        weight = np.bincount(units.unit, weights=weight, minlength=len(units.piece)) / units.length
    return units.weighted(weight)
