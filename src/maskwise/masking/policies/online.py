"""Policies that learn from the losses of the run: weights by groups or by types of tokens.

A group is a value of a categorical layer (a part of speech, an entity type, a frequency bucket).
All weights start equal, and stay equal in a collator, which sees no losses. The host waits for the
losses of a step before it makes the next masks. Weights depend on the text, so masked diffusion
with these policies has no likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.constants import UPOS
from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch, MaskedBatch, moved, widest
from maskwise.masking.policies.base import CutPolicy, Learner, Moment, units_by, weigh
from maskwise.masking.select import require_known
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = 0.5
"""The weight of a group without losses, and of tokens of no group."""
LEAST = 0.01
"""The least weight of a type: none is ever given up."""


@dataclass
class Weights:
    """The current weights, which a learner sets; None before the first losses."""

    current: Array | None = None


def standardised(loss_C: Tensor, seen_C: Tensor) -> Tensor:
    """Weights (C,): sigmoid(2 (s − mean) / SD) over the seen groups, SD with n − 1.

    ``UNKNOWN`` for unseen groups, and for all with fewer than two seen groups or no spread.
    Source: Yang et al. 2023, section 3.
    """
    count = seen_C.sum()
    mean = (loss_C * seen_C).sum() / count.clamp(min=1)
    centred = (loss_C - mean).where(seen_C, 0.0)
    spread = ((centred**2).sum() / (count - 1).clamp(min=1)).sqrt()
    # The spread of equal losses may be a rounding error, which must not decide weights.
    differ = spread > 1e-12 * loss_C.abs().max()
    weight = (2 * centred / spread.where(differ, 1.0)).sigmoid()
    return weight.where(seen_C & differ, UNKNOWN)


@dataclass(frozen=True, eq=False)
class GroupWeighted(CutPolicy):
    """A unit weighs what its group weighs now; groups whose running loss is high weigh more.

    Selects: by weighted sampling without replacement, so that no row ends short. ``faithful``: as
        published, each word, in random order, is *accepted* once with the probability of its tag,
        and a row whose accepted words are too few stays short (the budget is rounded by hash, as
        everywhere here; theirs to the nearest). Weights are 0.5 for all until losses come in, and
        for words of no group.
    Guarantee: as for its units. With half of the words at .88 and half at .12 and a ratio of .30,
        words are chosen with probability .509 / .091, and .530 / .070 when faithful.
    Cost: as ``weighted``; learning costs a few sums over the targets of a step and, on several
        ranks, one exchange of 2C numbers.
    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3. Mended here: averages
        corrected for their start, a half-life in steps, only seen groups standardised, sums (not
        means) added over ranks.
    """

    layer: str
    groups: int | tuple[str, ...] = 2
    units: str = "word"
    half_life_steps: float | None = None
    faithful: bool = False
    weights: Weights = field(init=False, default_factory=Weights, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise MaskwiseError("groups to weigh", got=self.groups, allowed="2 or more, or names")
        if self.half_life_steps is not None:
            finite_number("half_life_steps", self.half_life_steps, least=1e-9)
            if self.faithful:
                raise MaskwiseError("half_life_steps: faithful keeps .999", do="leave one out")

    @property
    def names(self) -> tuple[str, ...]:
        groups = range(self.groups) if isinstance(self.groups, int) else self.groups
        return tuple(map(str, groups))

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        weight_G = np.full(len(self.names) + 1, UNKNOWN)  # the last: no group, −1
        if self.weights.current is not None:
            weight_G[:-1] = self.weights.current
        group_T = np.maximum(batch.layer(self.layer).astype(np.int64), -1)
        largest = int(group_T.max(initial=-1))
        if largest >= len(self.names):
            allowed = f"below {len(self.names)}"
            raise MaskwiseError(f"group in layer {self.layer!r}", got=largest, allowed=allowed)
        units = weigh(units_by(batch, self.units), weight_G[group_T])
        if not self.faithful or units.weight is None:
            return units
        accepted = keys.uniform(Purpose.ACCEPT, units.piece, units.number) < units.weight
        return units.weighted(accepted.astype(np.float64))

    def learner(self) -> GroupLearner:
        return GroupLearner(self)

    def take(self, weights: Mapping[str, float]) -> None:
        """Use weights by group name, as the metrics of a run record them."""
        self.weights.current = np.array([weights.get(name, UNKNOWN) for name in self.names])


class GroupLearner(Learner):
    """Mean losses of C groups, exponentially averaged over updates, for the policy's weights.

    Averages are corrected for their start at 0, and unseen groups are left out. ``faithful``, as
    published, keeps .999 of an average, does not correct it, and counts every group.
    """

    def __init__(self, policy: GroupWeighted):
        import torch

        self.policy = policy
        self.average_C = torch.zeros(len(policy.names), dtype=torch.float64)
        self.unseen_C = torch.ones_like(self.average_C)  # m to the power of the group's updates
        self.weight_C = torch.full_like(self.average_C, UNKNOWN)
        self.sums_2C: Tensor | None = None  # of a step, on the device; None: no losses yet

    def observe(self, batch: MaskedBatch, outcome: Any) -> None:
        loss_M = widest(outcome.losses)
        group_BL = moved(batch.source.tensor(self.policy.layer), loss_M.device)
        # Losses of tokens of no group go into one more column, which is dropped.
        groups = len(self.policy.names)
        group_M = group_BL[outcome.where.unbind(1)].long()
        group_M = group_M.where(group_M >= 0, groups)
        sums_2C = loss_M.new_zeros(2, groups + 1)
        sums_2C[0].index_add_(0, group_M, loss_M)
        sums_2C[1].index_add_(0, group_M, loss_M.new_ones(loss_M.shape))
        before = 0 if self.sums_2C is None else self.sums_2C
        self.sums_2C = before + sums_2C[:, :-1]

    def after(self, now: Any) -> None:
        none = self.average_C.new_zeros(2, len(self.average_C)).float()
        self.update(now.agree(none if self.sums_2C is None else self.sums_2C), now.total_steps)
        self.sums_2C = None

    def update(self, sums_2C: Tensor, total_steps: int) -> None:
        """Learn from (2, C) float64: sums of losses, and numbers of targets, of all ranks."""
        total_C, count_C = sums_2C
        kept = self.kept(total_steps)
        present_C = (count_C > 0) & total_C.isfinite()
        new_C = kept * self.average_C + (1 - kept) * total_C / count_C.clamp(min=1)
        self.average_C = new_C.where(present_C, self.average_C)
        self.unseen_C = (kept * self.unseen_C).where(present_C, self.unseen_C)
        seen_C = (self.unseen_C < 1) | self.policy.faithful
        self._use(standardised(self.losses(), seen_C))

    def kept(self, total_steps: int) -> float:
        """What an update keeps of an average; by default half of it in a twentieth of the run."""
        if self.policy.faithful:
            return 0.999
        return 0.5 ** (1 / (self.policy.half_life_steps or max(1.0, total_steps / 20)))

    def losses(self) -> Tensor:
        """(C,) float64, nats."""
        if self.policy.faithful:
            return self.average_C
        return self.average_C / (1 - self.unseen_C).where(self.unseen_C < 1, 1.0)

    def facts(self) -> Mapping[str, object]:
        """``weights`` and ``group_losses`` (nats) of the groups seen, by name."""
        facts = {}
        for name, values in (("weights", self.weight_C), ("group_losses", self.losses())):
            by_group = zip(self.policy.names, values.tolist(), self.unseen_C.tolist(), strict=True)
            facts[name] = {group: round(v, 6) for group, v, unseen in by_group if unseen < 1}
        return facts

    def _use(self, weight_C: Tensor) -> None:
        self.weight_C = weight_C
        self.policy.weights.current = weight_C.numpy()

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average_C, "unseen": self.unseen_C, "weight": self.weight_C}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average_C, self.unseen_C = state["average"], state["unseen"]
        self._use(state["weight"])


def pos_weighted(
    units: str = "word", half_life_steps: float | None = None, faithful: bool = False
) -> GroupWeighted:
    """Weigh words by the loss of their part of speech (PTW)."""
    return GroupWeighted("pos", UPOS, units, half_life_steps, faithful)


@dataclass(frozen=True, eq=False)
class TypeWeighted(CutPolicy):
    """Mask tokens more often if the model gets their type wrong (AMLM).

    Every ``every`` steps w ← λ·w + (1 − λ)·(1 − score) for the types that were targets since, from
    w = 1. The score is the share of right answers (``by="accuracy"``, smoothed as (right + 1) /
    (asked + 2)) or 1 − mean loss / the highest mean loss of a type (``by="loss"``).

    Selects: tokens (or words, with the mean weight of their tokens), by weighted sampling without
        replacement.
    Guarantee: that of its units; types that cannot be learned are masked ever more often.
    Cost: as ``weighted``; one table of V numbers; with ``accuracy`` the likeliest token of every
        target (a pass over the logits); on several ranks one exchange of 3V numbers every ``every``
        steps.
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
            allowed = "at least 0, below 1"
            raise MaskwiseError("kept of policy type-weighted", got=self.kept, allowed=allowed)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = units_by(batch, self.units)
        if self.weights.current is None:
            return units
        return weigh(units, self.weights.current[batch.input_ids])

    def learner(self) -> TypeLearner:
        return TypeLearner(self)


class TypeLearner(Learner):
    """Right answers and losses by type of token, over all ranks, for the policy's weights."""

    def __init__(self, policy: TypeWeighted):
        self.policy = policy
        self.sums_3V: Tensor | None = None  # of this rank, since ranks last agreed

    def start(self, vocabulary: Vocabulary) -> None:
        """Allocate the tables; weights that were learned before stay."""
        import torch

        # Right answers, losses and targets of all ranks, since the weights were set.
        self.total_3V = torch.zeros(3, vocabulary.size, dtype=torch.float64)
        if self.policy.weights.current is None:
            self.policy.weights.current = np.ones(vocabulary.size)

    def meet(self, objective: Any) -> None:
        """Make the objective report which answers are right."""
        objective.tells_right = self.policy.by == "accuracy"

    def observe(self, batch: Any, outcome: Any) -> None:
        losses = widest(outcome.losses)
        right = losses < math.log(2) if outcome.right is None else outcome.right
        kind = batch.labels.to(losses.device)[outcome.where.unbind(1)]
        if self.sums_3V is None:
            self.sums_3V = losses.new_zeros(self.total_3V.shape)
        for row, values in enumerate((right.to(losses.dtype), losses, losses.new_ones(kind.shape))):
            self.sums_3V[row].index_add_(0, kind, values)

    def after(self, now: Any) -> None:
        self.agree = now.agree
        if not now.done or now.done % self.policy.every:
            return
        right_V, loss_V, count_V = self._total()
        self.total_3V = self.total_3V.new_zeros(self.total_3V.shape)
        mean_V = loss_V / count_V.clamp(min=1)
        if self.policy.by == "accuracy":
            score_V = (right_V + 1) / (count_V + 2)
        else:
            score_V = 1 - mean_V / mean_V.nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-9)
        before_V, kept = self._weights(), self.policy.kept
        new_V = (kept * before_V + (1 - kept) * (1 - score_V)).clamp(min=LEAST)
        new_V = new_V.where((count_V > 0) & mean_V.isfinite(), before_V)
        self.policy.weights.current = new_V.numpy()

    def _total(self) -> Tensor:
        """Add up the sums of the ranks; every rank calls this, and waits for its device."""
        if self.sums_3V is not None:
            self.total_3V = self.total_3V + self.agree(self.sums_3V)
            self.sums_3V = None
        return self.total_3V

    def _weights(self) -> Tensor:
        return self.total_3V.new_tensor(self.policy.weights.current)

    def facts(self) -> Mapping[str, object]:
        """``type_weights``: the least, the mean and the greatest."""
        weight_V = self._weights()
        names = {"least": weight_V.min(), "mean": weight_V.mean(), "greatest": weight_V.max()}
        return {"type_weights": {name: round(float(value), 6) for name, value in names.items()}}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self._weights(), "sums": self._total()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.total_3V, self.sums_3V = state["sums"], None
        self.policy.weights.current = state["weight"].numpy()
