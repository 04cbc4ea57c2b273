"""The base class of masking policies.

A masking policy cuts each piece (a document in a row) into units: groups of tokens that are masked
together. A unit may have a weight; a larger weight makes masking more likely. The policy does not
choose which units are masked; that is done by ``masking.select``. If weights are learned from the
losses of a run, a learner (``training.learners``) sets them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np

from maskwise.base.errors import MaskwiseError, PlugInError, whole_number
from maskwise.base.plugins import is_foreign, require_call
from maskwise.masking.draws import Array, Draws
from maskwise.masking.line import Line, Names
from maskwise.masking.units import Units, check_weights, require_units, runs


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


def checked_moment(
    step: int | None, total_steps: int | None, epoch: int | None
) -> tuple[int | None, int | None, int | None]:
    """Return the numbers of a moment; raise unless each is a whole number ≥ 0, or None."""
    given = {"step": step, "total_steps": total_steps, "epoch": epoch}
    for name, number in given.items():
        if number is not None:
            given[name] = whole_number(name, number, least=0)
    return given["step"], given["total_steps"], given["epoch"]


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
    def scales_ratio(self) -> bool:
        """Whether weights change the ratio by design, with ``budget="bernoulli"``.

        This budget masks a unit with probability min(1, ratio × weight). If False, the masker warns
        of weights whose mean is far from 1, so that another share of the tokens is masked.
        """
        return False

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

        The budget of a piece is the ratio × the number of tokens in its units, whatever their
        weights. Tokens outside units are never masked, and make the budget smaller.

        Args:
            line: the pieces.
            draws: the random draws for these pieces, for policies that cut at random.
            when: the step, total steps and epoch, and the ratios of the pieces.
        """

    def ratios(self, ratio_P: Array, draws: Draws, when: When) -> Array:
        """Return the ratio of each piece, (P,). ``t5-span(ratio=…)`` replaces the given ratios."""
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

    @property
    def varies(self) -> bool:
        """Whether units or weights change over training, also by a function of the user."""
        return self.needs_total

    def annotators(self) -> Names:
        """The annotators that write this policy's layers, to run even if no recipe names them."""
        return ()

    @property
    def learns(self) -> bool:
        """Whether the weights are learned from the losses of the run.

        ``training.learners.learner_of`` makes the learner. A policy of another package has a method
        ``learner`` that makes it.
        """
        return hasattr(self, "learner")

    def fresh(self) -> Self:
        """Return this policy, or a copy if it learns: what it learns belongs to one masker."""
        return copy.deepcopy(self) if self.learns else self

    @property
    def unlearned(self) -> bool:
        """Whether a study must learn the policy before it can mask."""
        return False


@contextmanager
def naming(who: str) -> Iterator[None]:
    """Name the policy or the corruption in an error of a function of maskwise that it called."""
    try:
        yield
    except MaskwiseError as error:
        if error.what.startswith(who):
            raise
        what = f"{who}: {error.what}"
        raise PlugInError(what, got=error.got, allowed=error.allowed, do=error.do) from error


def cut_by(policy: Policy, line: Line, draws: Draws, when: When) -> Units:
    """Cut a line into the units of a policy.

    Raises:
        PlugInError: a policy of another package does not cut the line as it must.
    """
    if not is_foreign(policy):
        return policy.cut(line, draws, when)
    who = f"policy {policy}"
    with naming(who):
        units = policy.cut(line, draws, when)
    require_units(units, line, who)
    return units


def ratios_by(policy: Policy, ratio_P: Array, draws: Draws, when: When) -> Array:
    """Return the ratio that a policy wants for each piece, (P,).

    Raises:
        PlugInError: a policy of another package returns something else.
    """
    wanted_P = policy.ratios(ratio_P, draws, when)
    if is_foreign(policy):
        require_shares(policy, wanted_P, len(ratio_P))
    return wanted_P


def require_declared(policy: Policy) -> None:
    """Raise ``PlugInError`` unless a policy has methods with the arguments of ``Policy``, and the
    names that it declares are names.
    """
    who = f"policy {policy}"
    require_call(f"{who}: cut", policy.cut, "line", "draws", "when")
    require_call(f"{who}: ratios", policy.ratios, "ratio_P", "draws", "when")
    if not isinstance(policy.unit_kind, UnitKind):
        raise PlugInError(
            f"{who}: unit_kind is no kind of units",
            got=repr(policy.unit_kind),
            allowed=", ".join(f"UnitKind.{kind.name}" for kind in UnitKind),
        )
    for method in ("layers", "annotators", "judged_on"):
        names = getattr(policy, method)()
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise PlugInError(f"{who}: {method}() must return a tuple of names", got=repr(names))


def require_shares(policy: Policy, ratio_P: Any, pieces: int) -> None:
    """Raise ``PlugInError`` unless a policy returned the ratio of each piece, (P,) from 0 to 1."""
    fits = isinstance(ratio_P, np.ndarray) and ratio_P.shape == (pieces,)
    # NaN is not within the bounds either.
    if not fits or not ((ratio_P >= 0) & (ratio_P <= 1)).all():
        raise PlugInError(
            f"policy {policy}: ratios() must return a share for each document",
            got=repr(ratio_P),
            allowed=f"an array of {pieces} numbers from 0 to 1",
        )


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
