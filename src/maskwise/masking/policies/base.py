"""What a policy is: it cuts pieces into units and gives each a weight. Budgets are not its affair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.units import Units, runs
from maskwise.masking.vocabulary import Vocabulary


class UnitKind(StrEnum):
    """What a policy's units are. It follows from the policy's arguments.

    Arms whose units are of different kinds are not compared by one held-out loss. The values are
    written to
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
    """When a mask is made, and of how much of each piece: what schedules and changing policies
    depend on.

    Attributes:
        ratio: (P,) float64, the ratios in force; filled in by the masker, for policies whose
            partition depends on the budget (T5's).
        place: (B,) int64, where each row stands in the order of its epoch, for rates of low
            discrepancy.
    """

    step: int = 0
    total_steps: int | None = None
    epoch: int | None = None
    ratio: Array | None = None
    min_targets: int = 1
    place: Array | None = None


class Learner:
    """Something that learns while the model trains (see ``training.learners``). What a member does
    not define, does nothing."""

    asks_model: ClassVar[bool] = False
    """Whether it asks the objective that is trained itself (``meet``)."""

    arm: str = ""
    """The arm whose batches it observes, in a training on several objectives; empty: all."""

    def start(self, vocabulary: Vocabulary) -> None:
        """Called before the first batch, with the vocabulary of the masker."""

    def meet(self, objective: Any) -> None:
        """Called once before the training, with what is trained."""

    def observe(self, batch: Any, outcome: Any) -> None:
        """Look at a micro-batch and at its ``Outcome``; called before the update."""

    def after(self, now: Any) -> None:
        """Learn, after an update, at a ``training.learners.Point``; every rank calls this."""

    def facts(self) -> Mapping[str, object]:
        """What to log: numbers, or dicts of numbers by name, such as ``{"weights": {"NOUN":
        0.7}}``.
        """
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a run needs to go on from here."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state_dict``."""


class Policy(ABC):
    """Base of all policies. Members are small frozen dataclasses, so that they can be compared and
    shown.
    """

    @property
    def splits_budget(self) -> bool:
        """Whether weights depend on how much is masked, so that no unit can be drawn by itself."""
        return False

    @property
    def needs_ratio(self) -> bool:
        """Whether units or weights depend on how much is masked."""
        return self.splits_budget

    @property
    def reads_text(self) -> bool:
        """Whether units or weights depend on the text that is hidden: masked diffusion then has no
        likelihood.
        """
        return True

    @property
    @abstractmethod
    def unit_kind(self) -> UnitKind:
        """What the units are; a plain class attribute where the policy's arguments do not matter."""

    @abstractmethod
    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        """Cut the pieces of a batch into units.

        Args:
            batch: a line of pieces.
            keys: the draws of these pieces, for policies that are random themselves.
            moment: step, total steps and epoch; the ratios of the pieces.
        """

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        """(P,) float64: the ratios of these pieces, for policies that bring their own (UL2's
        denoisers).
        """
        return ratio_P

    def judged_on(self) -> tuple[str, ...]:
        """The kinds of held-out masks by which a model that learned from this policy can be judged."""
        if "word_ids" in self.layers():
            return ("whole-word",)
        return ("token", "whole-word") if self.layers() else ("token",)

    def layers(self) -> tuple[str, ...]:
        """The layers that rows must bring."""
        return ()

    def annotators(self) -> tuple[str, ...]:
        """The annotators that make its layers, for layers that a corpus need not be told to have."""
        return ()

    def learner(self) -> Learner | None:
        """What learns from the losses while the model trains; None: nothing."""
        return None


class CutPolicy(Policy):
    """Base of the policies that weigh the units called ``units`` (see ``units_by``), which is a
    field of theirs.
    """

    units: str

    @property
    def unit_kind(self) -> UnitKind:
        return {"token": UnitKind.TOKEN, "word": UnitKind.WORD}.get(self.units, UnitKind.LAYER)

    def layers(self) -> tuple[str, ...]:
        return layer_of(self.units)


def units_by(batch: AnnotatedBatch, name: str, *, policy: str) -> Units:
    """The units called ``token``, ``word``, or by the name of a layer, of whose runs they are."""
    if name == "token":
        return Units.single(batch)
    return runs(batch, batch.layer(layer_of(name)[0], policy=policy))


def layer_of(name: str) -> tuple[str, ...]:
    """The layers that ``units_by`` needs for units of this name."""
    return () if name == "token" else ("word_ids",) if name == "word" else (name,)


def weigh(units: Units, weight_T: Array, *, policy: str) -> Units:
    """The units with weights from a (T,) layer: a unit has the mean weight of its tokens.

    Raises:
        MaskwiseError: a weight of an eligible token that is negative, NaN or infinite.
    """
    weight = weight_T[units.tokens].astype(np.float64)
    valid = (weight >= 0) & (weight < np.inf)
    if not valid.all():
        got = float(weight[~valid][0])
        raise MaskwiseError(f"policy {policy!r}: a weight is not a finite number ≥ 0", got=got)
    if units.unit is not None:
        weight = np.bincount(units.unit, weights=weight, minlength=len(units.piece)) / units.length
    return units.weighted(weight)
