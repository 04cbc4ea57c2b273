"""Masking policies that learn weights from the losses of the run, for groups or types of tokens.

A group is a set of tokens with the same value in a layer, such as a part of speech, an entity type
or a frequency range. A type is an id of the vocabulary. Tokens with a larger weight are more likely
to be masked. At the start, all weights are equal. In a collator, the weights stay equal, because a
collator gets no losses. In training, the host must wait for the losses of a step before it can mask
the next batch. The weights depend on the text, so with these policies the loss of masked diffusion
does not bound the likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.constants import UPOS
from maskwise.devices import TensorDict, Tensors, moved, widest
from maskwise.draws import Array, Draws, Purpose
from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.masking.batch import MaskedBatch
from maskwise.masking.line import Line, Names
from maskwise.masking.policies.base import (
    CutPolicy,
    Facts,
    Learner,
    Numbers,
    Point,
    When,
    units_by,
    weigh,
)
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = 0.5
"""The weight of a group without losses, and of tokens without a group."""
LEAST = 0.01
"""The smallest weight of a type. With a weight of 0, a type would never be masked again."""


@dataclass
class Weights:
    """The current weights of a policy. The policy's learner sets them.

    Policies are frozen dataclasses, so the weights are an attribute of this mutable object.

    Attributes:
        current: (C,) float64 for C groups, or (V,) for V types; None before the first losses.
    """

    current: Array | None = None


def standardised(loss_C: Tensor, seen_C: Tensor) -> Tensor:
    """(C,) float64: the weights of C groups, sigmoid(2 (loss − mean) / SD).

    The mean and the SD (with n − 1) are computed from the losses of the groups that were seen.
    Groups that were not seen have the weight ``UNKNOWN``. If fewer than two groups were seen, or if
    all losses are equal, all groups have this weight.

    Args:
        loss_C: (C,) float64, the average loss of each group.
        seen_C: (C,) bool, whether a token of the group was a target.

    Source: Yang et al. 2023, section 3.
    """
    count = seen_C.sum()
    mean = (loss_C * seen_C).sum() / count.clamp(min=1)
    centred = (loss_C - mean).where(seen_C, 0.0)
    variance = (centred**2).sum() / (count - 1).clamp(min=1)
    spread = variance.sqrt()
    # If losses are equal, rounding can make the SD slightly above 0. Dividing by it would turn
    # rounding errors into weights.
    differ = spread > 1e-12 * loss_C.abs().max()
    weight = (2 * centred / spread.where(differ, 1.0)).sigmoid()
    return weight.where(seen_C & differ, UNKNOWN)


@dataclass(frozen=True, eq=False)
class GroupWeighted(CutPolicy):
    """One weight per group of tokens: groups with a higher average loss are masked more often.

    Selects: units, by weighted sampling without replacement, so every piece uses its budget. With
        ``faithful=True``, as in the paper, each word is first *accepted* or not, with the weight of
        its group as the probability. Only accepted words are selected, so a piece with few accepted
        words stays below its budget. (The paper rounds the budget to the nearest number; here the
        budget is rounded at random.) All weights are 0.5 until the first losses. Words without a
        group always have the weight 0.5.
    Guarantee: units stay whole. For example, let the ratio be .30, and let half of the words have
        the weight .88 and half .12. The words are then selected with probabilities of .509 and
        .091, or of .530 and .070 if ``faithful``.
    Cost: the cost of ``weighted``, plus a few sums over the targets of a step. Several ranks
        exchange 2C numbers per step for C groups.
    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3. ``faithful=False`` differs
        from the paper: averages are corrected for their start at 0, the half-life is set in steps,
        only groups that were seen are standardised, and sums, not means, are added over ranks.
    """

    layer: str
    groups: int | tuple[str, ...] = 2
    units: str = "word"
    half_life_steps: float | None = None
    faithful: bool = False
    weights: Weights = field(init=False, default_factory=Weights, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise MaskwiseError(
                "policy group-weighted has too few groups",
                got=self.groups,
                allowed="2 or more, or two or more names",
            )
        if self.half_life_steps is not None:
            finite_number("half_life_steps", self.half_life_steps, least=1e-9)
            if self.faithful:
                raise MaskwiseError(
                    "half_life_steps needs faithful=False",
                    do="remove half_life_steps, or set faithful=False",
                )

    @property
    def names(self) -> Names:
        groups = range(self.groups) if isinstance(self.groups, int) else self.groups
        return tuple(map(str, groups))

    def layers(self) -> Names:
        return (self.layer, *super().layers())

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        # Tokens without a group have the number −1, which is the index of the last weight.
        weight_G = np.full(len(self.names) + 1, UNKNOWN)
        if self.weights.current is not None:
            weight_G[:-1] = self.weights.current
        group_T = np.maximum(line.layer(self.layer).astype(np.int64), -1)
        largest = int(group_T.max(initial=-1))
        if largest >= len(self.names):
            raise MaskwiseError(
                f"a group number is too large in layer {self.layer!r}",
                got=largest,
                allowed=f"below {len(self.names)}",
            )
        units = weigh(units_by(line, self.units), weight_G[group_T])
        if not self.faithful or units.weight is None:
            return units
        accepted = draws.uniform(Purpose.ACCEPT, units.piece, units.number) < units.weight
        return units.weighted(accepted.astype(np.float64))

    def learner(self) -> GroupLearner:
        return GroupLearner(self)

    def take(self, weights: Numbers) -> None:
        """Set the weights from a dict of group names and weights, as the metrics of a run have."""
        self.weights.current = np.array([weights.get(name, UNKNOWN) for name in self.names])


class GroupLearner(Learner):
    """Sets the policy's weights from exponential moving averages of the losses of C groups.

    The averages start at 0 and are corrected for this start, as in Adam. Groups whose tokens were
    never targets are left out. With ``faithful``, as in the paper, the decay is .999 per update,
    the averages are not corrected, and all groups are included.
    """

    def __init__(self, policy: GroupWeighted):
        import torch

        self.policy = policy
        self.average_C = torch.zeros(len(policy.names), dtype=torch.float64)
        # How much of each average is still the start value 0; 1 for a group that was never seen.
        self.unseen_C = torch.ones_like(self.average_C)
        self.weight_C = torch.full_like(self.average_C, UNKNOWN)
        # The sum of losses and the number of targets since the last update, on the device.
        self.sums_2C: Tensor | None = None

    def observe(self, batch: MaskedBatch, loss: Any) -> None:
        loss_M = widest(loss.each)
        group_BL = moved(batch.line.tensor(self.policy.layer), loss_M.device)
        # Losses of tokens without a group go to an extra column, which is dropped below.
        groups = len(self.policy.names)
        group_M = group_BL[loss.where.unbind(1)].long()
        group_M = group_M.where(group_M >= 0, groups)
        sums_2C = loss_M.new_zeros(2, groups + 1)
        sums_2C[0].index_add_(0, group_M, loss_M)
        sums_2C[1].index_add_(0, group_M, loss_M.new_ones(loss_M.shape))
        sums_2C = sums_2C[:, :-1]
        self.sums_2C = sums_2C if self.sums_2C is None else self.sums_2C + sums_2C

    def offer(self, now: Point) -> Tensor | None:
        sums_2C, self.sums_2C = self.sums_2C, None
        return sums_2C

    def after(self, now: Point) -> None:
        # There are no sums if this step trained another objective. All ranks train the same one.
        if now.sums is not None:
            self.update(now.sums, now.total_steps)

    def update(self, sums_2C: Tensor, total_steps: int) -> None:
        """Update averages and weights.

        Args:
            sums_2C: (2, C) float64, the summed losses and the number of targets of each group, over
                all ranks.
            total_steps: the number of updates in the run, which sets the default half-life.
        """
        total_C, count_C = sums_2C
        kept = self.kept(total_steps)
        present_C = (count_C > 0) & total_C.isfinite()
        new_C = kept * self.average_C + (1 - kept) * total_C / count_C.clamp(min=1)
        self.average_C = new_C.where(present_C, self.average_C)
        self.unseen_C = (kept * self.unseen_C).where(present_C, self.unseen_C)
        seen_C = (self.unseen_C < 1) | self.policy.faithful
        self._use(standardised(self.losses(), seen_C))

    def kept(self, total_steps: int) -> float:
        """Return the factor by which an update multiplies the old average.

        The default half-life is a 20th of the run.
        """
        if self.policy.faithful:
            return 0.999
        half_life = self.policy.half_life_steps or max(1.0, total_steps / 20)
        return 0.5 ** (1 / half_life)

    def losses(self) -> Tensor:
        """(C,) float64: the average loss of each group, in nats."""
        if self.policy.faithful:
            return self.average_C
        seen_C = (1 - self.unseen_C).where(self.unseen_C < 1, 1.0)
        return self.average_C / seen_C

    def facts(self) -> Facts:
        """``weights`` and ``group_losses`` (nats): dicts over the groups that were seen so far."""
        weights = {}
        losses = {}
        loss_C = self.losses()
        for number, group in enumerate(self.policy.names):
            if self.unseen_C[number] < 1:
                weights[group] = round(float(self.weight_C[number]), 6)
                losses[group] = round(float(loss_C[number]), 6)
        return {"weights": weights, "group_losses": losses}

    def _use(self, weight_C: Tensor) -> None:
        self.weight_C = weight_C
        self.policy.weights.current = weight_C.numpy()

    def state_dict(self) -> TensorDict:
        return {"average": self.average_C, "unseen": self.unseen_C, "weight": self.weight_C}

    def load_state_dict(self, state: Tensors) -> None:
        self.average_C = state["average"]
        self.unseen_C = state["unseen"]
        self._use(state["weight"])


def pos_weighted(
    units: str = "word", half_life_steps: float | None = None, faithful: bool = False
) -> GroupWeighted:
    """Words of parts of speech with a higher average loss are masked more often (PTW).

    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3.
    """
    return GroupWeighted("pos", UPOS, units, half_life_steps, faithful)


@dataclass(frozen=True, eq=False)
class TypeWeighted(CutPolicy):
    """One weight per token type: types that the model predicts badly are masked more often (AMLM).

    A type is an id of the vocabulary. Weights start at 1. After every ``every`` steps,
    w ← λ·w + (1 − λ)·(1 − score) for all types that were targets in these steps, with λ = ``kept``.
    The score of a type is (correct + 1) / (targets + 2).

    Selects: tokens, or units with the mean weight of their tokens, by weighted sampling without
        replacement.
    Guarantee: units stay whole. Types that the model cannot learn are masked more and more often.
    Cost: the cost of ``weighted``, a table of V numbers for V types, and a pass over the logits to
        find the most probable token at every target. Several ranks exchange 2V numbers every
        ``every`` steps.
    Source: Edman and Fraser 2025 (Mask and You Shall Receive, arXiv 2510.20475), section 3: λ = .2,
        200 batches.
    """

    every: int = 200
    kept: float = 0.2
    units: str = "token"
    weights: Weights = field(init=False, default_factory=Weights, repr=False)

    # See ``LEAST``.
    has_zero_weights = False

    def __post_init__(self) -> None:
        whole_number("argument every of policy type-weighted", self.every, least=1)
        finite_number("argument kept of policy type-weighted", self.kept, least=0, most=1)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        units = units_by(line, self.units)
        if self.weights.current is None:
            return units
        return weigh(units, self.weights.current[line.input_ids])

    def learner(self) -> TypeLearner:
        return TypeLearner(self)


class TypeLearner(Learner):
    """Sets the policy's weights from the accuracy of each token type, on all ranks."""

    def __init__(self, policy: TypeWeighted):
        self.policy = policy
        # (2, V): the sums of this rank that were not yet added to ``total_2V``.
        self.sums_2V: Tensor | None = None

    def start(self, vocabulary: Vocabulary) -> None:
        """Allocate the table of sums, and set all weights to 1 if there are no weights yet."""
        import torch

        # The rows are correct answers and targets, summed over all ranks since the last change of
        # weights.
        self.total_2V = torch.zeros(2, vocabulary.size, dtype=torch.float64)
        if self.policy.weights.current is None:
            self.policy.weights.current = np.ones(vocabulary.size)

    def meet(self, objective: Any) -> None:
        """Make the objective report which answers are correct."""
        objective.tells_right = True

    def observe(self, batch: Any, loss: Any) -> None:
        losses = widest(loss.each)
        right = loss.right
        if right is None:
            # The objective does not report which answers are correct. A target with a probability
            # above 1/2 is certainly the most probable token, so count these targets.
            right = losses < math.log(2)
        kind = batch.labels.to(losses.device)[loss.where.unbind(1)]
        if self.sums_2V is None:
            self.sums_2V = losses.new_zeros(self.total_2V.shape)
        self.sums_2V[0].index_add_(0, kind, right.to(losses.dtype))
        self.sums_2V[1].index_add_(0, kind, losses.new_ones(kind.shape))

    def after(self, now: Point) -> None:
        self.agree = now.agree
        if not now.done or now.done % self.policy.every:
            return
        right_V, count_V = self._total()
        self.total_2V = self.total_2V.new_zeros(self.total_2V.shape)
        score_V = (right_V + 1) / (count_V + 2)
        before_V = self._weights()
        kept = self.policy.kept
        new_V = (kept * before_V + (1 - kept) * (1 - score_V)).clamp(min=LEAST)
        self.policy.weights.current = new_V.where(count_V > 0, before_V).numpy()

    def _total(self) -> Tensor:
        """Add this rank's sums to the totals over all ranks, and return the totals.

        Every rank must call this method, which waits for the device.
        """
        if self.sums_2V is not None:
            self.total_2V = self.total_2V + self.agree(self.sums_2V)
            self.sums_2V = None
        return self.total_2V

    def _weights(self) -> Tensor:
        return self.total_2V.new_tensor(self.policy.weights.current)

    def facts(self) -> Facts:
        """``type_weights``: the smallest, the mean and the largest weight of all types."""
        weight_V = self._weights()
        weights = {
            "least": round(float(weight_V.min()), 6),
            "mean": round(float(weight_V.mean()), 6),
            "greatest": round(float(weight_V.max()), 6),
        }
        return {"type_weights": weights}

    def state_dict(self) -> TensorDict:
        return {"weight": self._weights(), "sums": self._total()}

    def load_state_dict(self, state: Tensors) -> None:
        self.total_2V = state["sums"]
        self.sums_2V = None
        self.policy.weights.current = state["weight"].numpy()
