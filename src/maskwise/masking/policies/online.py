"""Policies that learn the weights of token groups or token types from the losses of the run.

A group is a value of a categorical layer (a part of speech, an entity type, a frequency bucket).
All weights are equal at the start. In a collator they stay equal, because a collator gets no
losses. In training, the host waits for the losses of a step before it masks the next batch. Weights
depend on the text, so a masked-diffusion loss with these policies is no bound on the likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.constants import UPOS
from maskwise.devices import TensorDict, Tensors, moved, widest
from maskwise.errors import MaskwiseError, finite_number, require_known, whole_number
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch, MaskedBatch, Names
from maskwise.masking.policies.base import (
    CutPolicy,
    Facts,
    Learner,
    Moment,
    Numbers,
    Point,
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
"""The smallest weight of a type, so that every type is still masked sometimes."""


@dataclass
class Weights:
    """The current weights of a policy, set by its learner; None before the first losses.

    Policies are frozen dataclasses, so a mutable object holds the weights.
    """

    current: Array | None = None


def standardised(loss_C: Tensor, seen_C: Tensor) -> Tensor:
    """(C,) float64 weights of C groups: sigmoid(2 (loss − mean) / SD), where SD divides by n − 1.

    The mean and the SD are over the seen groups. Unseen groups get ``UNKNOWN``. All groups get
    ``UNKNOWN`` if fewer than two groups were seen or if all losses are equal.

    Source: Yang et al. 2023, section 3.
    """
    count = seen_C.sum()
    mean = (loss_C * seen_C).sum() / count.clamp(min=1)
    centred = (loss_C - mean).where(seen_C, 0.0)
    variance = (centred**2).sum() / (count - 1).clamp(min=1)
    spread = variance.sqrt()
    # Rounding can give equal losses an SD slightly above 0; such an SD must not set the weights.
    differ = spread > 1e-12 * loss_C.abs().max()
    weight = (2 * centred / spread.where(differ, 1.0)).sigmoid()
    return weight.where(seen_C & differ, UNKNOWN)


@dataclass(frozen=True, eq=False)
class GroupWeighted(CutPolicy):
    """One weight per group: a group with a higher average loss has a larger weight.

    Selects: units, by weighted sampling without replacement, so every row uses its budget. With
        ``faithful=True``, as in the paper, each word is *accepted* once, with the weight of its
        group as the probability. Only accepted words are selected, so a row with few accepted words
        stays below its budget. (The paper rounds the budget to the nearest number; here a hash
        rounds up or down.) All weights are 0.5 until the first losses, and words without a group
        always have 0.5.
    Guarantee: units stay whole. For example, with a ratio of .30, half of the words at weight .88
        and half at .12, words are selected with probability .509 and .091, or with .530 and .070 if
        ``faithful``.
    Cost: the cost of ``weighted``, plus a few sums over the targets of a step and, on several
        ranks, one exchange of 2C numbers for C groups.
    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3. Unlike the paper,
        ``faithful=False`` corrects averages for their start at 0, sets the half-life in steps,
        standardises only seen groups, and adds sums, not means, over ranks.
    """

    layer: str
    groups: int | tuple[str, ...] = 2
    units: str = "word"
    half_life_steps: float | None = None
    faithful: bool = False
    weights: Weights = field(init=False, default_factory=Weights, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise MaskwiseError("too few groups", got=self.groups, allowed="2 or more, or names")
        if self.half_life_steps is not None:
            finite_number("half_life_steps", self.half_life_steps, least=1e-9)
            if self.faithful:
                raise MaskwiseError("half_life_steps needs faithful=False", do="set only one")

    @property
    def names(self) -> Names:
        groups = range(self.groups) if isinstance(self.groups, int) else self.groups
        return tuple(map(str, groups))

    def layers(self) -> Names:
        return (self.layer, *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        # Tokens without a group have the number −1, so they read the extra weight at the end.
        weight_G = np.full(len(self.names) + 1, UNKNOWN)
        if self.weights.current is not None:
            weight_G[:-1] = self.weights.current
        group_T = np.maximum(batch.layer(self.layer).astype(np.int64), -1)
        largest = int(group_T.max(initial=-1))
        if largest >= len(self.names):
            raise MaskwiseError(
                f"a group number is too large in layer {self.layer!r}",
                got=largest,
                allowed=f"below {len(self.names)}",
            )
        units = weigh(units_by(batch, self.units), weight_G[group_T])
        if not self.faithful or units.weight is None:
            return units
        accepted = keys.uniform(Purpose.ACCEPT, units.piece, units.number) < units.weight
        return units.weighted(accepted.astype(np.float64))

    def learner(self) -> GroupLearner:
        return GroupLearner(self)

    def take(self, weights: Numbers) -> None:
        """Set the weights from a dict of weights by group name, as recorded in a run's metrics."""
        self.weights.current = np.array([weights.get(name, UNKNOWN) for name in self.names])


class GroupLearner(Learner):
    """Sets the policy's weights from exponential moving averages of the losses of C groups.

    Averages start at 0 and are corrected for this start, as in Adam, and unseen groups are left
    out. With ``faithful``, as in the paper, the decay is .999 per update, averages are not
    corrected, and unseen groups are included.
    """

    def __init__(self, policy: GroupWeighted):
        import torch

        self.policy = policy
        self.average_C = torch.zeros(len(policy.names), dtype=torch.float64)
        # The weight of the start value 0 in each average; 1 for a group that was never seen.
        self.unseen_C = torch.ones_like(self.average_C)
        self.weight_C = torch.full_like(self.average_C, UNKNOWN)
        # Sums of losses and of targets since the last update, on the device.
        self.sums_2C: Tensor | None = None

    def observe(self, batch: MaskedBatch, outcome: Any) -> None:
        loss_M = widest(outcome.losses)
        group_BL = moved(batch.source.tensor(self.policy.layer), loss_M.device)
        # Losses of tokens without a group go to an extra column, which is dropped below.
        groups = len(self.policy.names)
        group_M = group_BL[outcome.where.unbind(1)].long()
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
        # Sums are None if a sampler drew another arm; all ranks draw the same arm.
        if now.sums is not None:
            self.update(now.sums, now.total_steps)

    def update(self, sums_2C: Tensor, total_steps: int) -> None:
        """Update averages and weights.

        Args:
            sums_2C: (2, C) float64, the summed losses and the numbers of targets over all ranks.
            total_steps: the number of updates in the run, for the default half-life.
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
        """The decay of the averages per update. The default half-life is a 20th of the run."""
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
        """``weights`` and ``group_losses`` (nats) of the groups seen so far, keyed by name."""
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
    """Weight words by the average loss of their part of speech (PTW): ``group-weighted(pos)``.

    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3.
    """
    return GroupWeighted("pos", UPOS, units, half_life_steps, faithful)


@dataclass(frozen=True, eq=False)
class TypeWeighted(CutPolicy):
    """One weight per token type: types that the model predicts badly are masked more often (AMLM).

    Weights start at 1. After every ``every`` steps, w ← λ·w + (1 − λ)·(1 − score) for all types
    that were targets in these steps, with λ = ``kept``. With ``by="accuracy"`` the score of a type
    is (correct + 1) / (targets + 2). With ``by="loss"`` the score is 1 − (mean loss of the type) /
    (highest mean loss of any type).

    Selects: tokens, or units with the mean weight of their tokens, by weighted sampling without
        replacement.
    Guarantee: units stay whole. Types that the model cannot learn are masked more and more often.
    Cost: the cost of ``weighted``, plus a table of V numbers. ``accuracy`` also needs a pass over
        the logits to find the likeliest token at every target. Several ranks exchange 3V numbers
        every ``every`` steps.
    Source: Edman and Fraser 2025 (Mask and You Shall Receive, arXiv 2510.20475), section 3: λ = .2,
        200 batches.
    """

    by: str = "accuracy"
    every: int = 200
    kept: float = 0.2
    units: str = "token"
    weights: Weights = field(init=False, default_factory=Weights, repr=False)

    def __post_init__(self) -> None:
        require_known("by of policy type-weighted", self.by, ("accuracy", "loss"))
        whole_number("every of policy type-weighted", self.every, least=1)
        if not 0 <= self.kept < 1:
            raise MaskwiseError(
                "kept of policy type-weighted is not valid",
                got=self.kept,
                allowed="at least 0, below 1",
            )

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = units_by(batch, self.units)
        if self.weights.current is None:
            return units
        return weigh(units, self.weights.current[batch.input_ids])

    def learner(self) -> TypeLearner:
        return TypeLearner(self)


class TypeLearner(Learner):
    """Sets the policy's weights from the correct answers and losses of each type on all ranks."""

    def __init__(self, policy: TypeWeighted):
        self.policy = policy
        # The sums of this rank since the last exchange between ranks.
        self.sums_3V: Tensor | None = None

    def start(self, vocabulary: Vocabulary) -> None:
        """Allocate the table of sums, and set all weights to 1 if there are no weights yet."""
        import torch

        # Rows: correct answers, losses, targets; on all ranks, since the last change of weights.
        self.total_3V = torch.zeros(3, vocabulary.size, dtype=torch.float64)
        if self.policy.weights.current is None:
            self.policy.weights.current = np.ones(vocabulary.size)

    def meet(self, objective: Any) -> None:
        """Make the objective report which answers are correct."""
        objective.tells_right = self.policy.by == "accuracy"

    def observe(self, batch: Any, outcome: Any) -> None:
        losses = widest(outcome.losses)
        right = outcome.right
        if right is None:
            # Without ``right``, count targets with a probability above 1/2: they are surely right.
            right = losses < math.log(2)
        kind = batch.labels.to(losses.device)[outcome.where.unbind(1)]
        if self.sums_3V is None:
            self.sums_3V = losses.new_zeros(self.total_3V.shape)
        self.sums_3V[0].index_add_(0, kind, right.to(losses.dtype))
        self.sums_3V[1].index_add_(0, kind, losses)
        self.sums_3V[2].index_add_(0, kind, losses.new_ones(kind.shape))

    def after(self, now: Point) -> None:
        self.agree = now.agree
        if not now.done or now.done % self.policy.every:
            return
        right_V, loss_V, count_V = self._total()
        self.total_3V = self.total_3V.new_zeros(self.total_3V.shape)
        mean_V = loss_V / count_V.clamp(min=1)
        if self.policy.by == "accuracy":
            score_V = (right_V + 1) / (count_V + 2)
        else:
            # One infinite loss would otherwise set the scores of all other types to 1.
            highest = mean_V.nan_to_num(0.0, 0.0, 0.0).max()
            score_V = 1 - mean_V / highest.clamp(min=1e-9)
        before_V = self._weights()
        kept = self.policy.kept
        new_V = (kept * before_V + (1 - kept) * (1 - score_V)).clamp(min=LEAST)
        new_V = new_V.where((count_V > 0) & mean_V.isfinite(), before_V)
        self.policy.weights.current = new_V.numpy()

    def _total(self) -> Tensor:
        """Add this rank's sums to the totals over all ranks, and return the totals.

        Every rank must call this method, which waits for the device.
        """
        if self.sums_3V is not None:
            self.total_3V = self.total_3V + self.agree(self.sums_3V)
            self.sums_3V = None
        return self.total_3V

    def _weights(self) -> Tensor:
        return self.total_3V.new_tensor(self.policy.weights.current)

    def facts(self) -> Facts:
        """``type_weights``: the smallest, mean and largest weight of a type."""
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
        self.total_3V = state["sums"]
        self.sums_3V = None
        self.policy.weights.current = state["weight"].numpy()
