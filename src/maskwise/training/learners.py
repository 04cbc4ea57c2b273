"""Learners: objects that learn during training, from the losses of the run.

A learner sets the weights of a masking policy, or the probabilities with which a sampler draws
objectives. ``learner_of`` finds the learner of a policy. The policies themselves are numpy, in
``masking.policies.online``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.base.devices import TensorDict, Tensors, moved, widest
from maskwise.base.errors import MaskwiseError
from maskwise.masking.batch import MaskedBatch
from maskwise.masking.policies.base import Policy
from maskwise.masking.policies.online import LEAST, UNKNOWN, GroupWeighted, TypeWeighted
from maskwise.masking.vocabulary import Vocabulary

Facts: TypeAlias = Mapping[str, object]
NumbersByName: TypeAlias = Mapping[str, float]


class Progress(NamedTuple):
    """The progress of training when ``Learner.offer`` and ``Learner.after`` are called.

    Attributes:
        done: the number of completed updates; 0 before the first update of a new run.
        total_steps: the number of updates in the whole run.
        closing: whether a line of metrics or a training state may be written after this update.
            Learners then offer what they have collected, because ``facts`` and ``state_dict`` must
            not exchange anything.
        sums: the tensor that the learner returned from ``Learner.offer``, summed over all ranks;
            None if it returned None, or in ``offer``. If sums come late, they are one update old.
    """

    done: int
    total_steps: int
    closing: bool = False
    sums: Tensor | None = None


class Learner:
    """Base class of objects that learn during training, from the losses of the run.

    A learner sets the weights of a masking policy, or the probabilities with which a sampler draws
    objectives. A learner reads every micro-batch in ``observe`` and updates itself once per step in
    ``after``. All ranks must draw the same masks, so all ranks must learn the same weights.
    Therefore learners use sums over all ranks, rounded and added in float64 on the host.

    The only way to get such sums is to return the numbers from ``offer``. All learners of a run
    share one exchange between ranks in each update, and none if nothing is offered.

    A checkpoint contains the states of all learners, so a resumed run continues bit for bit. The
    methods of this base class do nothing.

    A policy can also learn from its effect on the loss (REINFORCE):

        def observe(self, batch, loss):             # the batch has the log-probability of its mask
            self.log_probability += batch.log_probability

        def offer(self, now):                       # the model has just been updated
            after = self.objective(self.probe)      # ``probe``: a batch that is always the same
            reward = self.before − after.total
            return reward · ∇ log_probability

        def after(self, now):
            self.weights += self.rate · now.sums

    The batches of such a policy cannot be made ahead (``Source.ahead``), because the masks of step
    t + 1 depend on the losses of step t.
    """

    objective: str = ""
    """The name of the objective whose batches the learner observes; empty for all objectives."""

    may_wait: bool = True
    """Whether the learner may get its sums one update late (``training.lag``)."""

    def start(self, vocabulary: Vocabulary) -> None:
        """Prepare for the first batch, with the vocabulary of the masker."""

    def configure(self, objective: Any) -> None:
        """Configure the objective before training."""

    def observe(self, batch: Any, loss: Any) -> None:
        """Read a micro-batch and its ``Loss``, before the update."""

    def gradients(self) -> None:
        """Read the gradients before the update: over all micro-batches and ranks, and clipped."""

    def offer(self, now: Progress) -> Tensor | None:
        """Return a tensor on the device that shall be summed over all ranks, or None.

        ``after`` receives the sums as ``now.sums``. At each update, the tensors of all ranks must
        have the same size.
        """
        return None

    def after(self, now: Progress) -> None:
        """Learn after an update of the model. This method is called on every rank."""

    def evaluated(self) -> None:
        """Read the model after an evaluation. This method is called on every rank."""

    def facts(self) -> Facts:
        """Return values to log: numbers, or dicts of named numbers."""
        return {}

    def state_dict(self) -> TensorDict:
        """Return the tensors that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Restore the state from the tensors of a checkpoint."""


Learners: TypeAlias = dict[str, Learner]


def learner_of(policy: Policy) -> Learner | None:
    """Make the learner of a policy; None if the policy does not learn.

    A policy of another package makes it in a method ``learner``.

    Raises:
        MaskwiseError: the policy learns, but has no such method.
    """
    if hasattr(policy, "learner"):
        made: Learner = policy.learner()
        return made
    if isinstance(policy, GroupWeighted):
        return GroupLearner(policy)
    if isinstance(policy, TypeWeighted):
        return TypeLearner(policy)
    if policy.learns:
        raise MaskwiseError(f"policy {policy} learns, but has no learner", do="add learner()")
    return None


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


class GroupLearner(Learner):
    """Sets the policy's weights from exponential moving averages of the losses of C groups.

    The averages start at 0 and are corrected for this start, as in Adam. Groups whose tokens were
    never targets are left out. With ``faithful``, as in the paper, the decay is .999 per update,
    the averages are not corrected, and all groups are included.
    """

    def __init__(self, policy: GroupWeighted):
        self.policy = policy
        self.average_C = torch.zeros(len(policy.names), dtype=torch.float64)
        # How much of each average is still the start value 0; 1 for a group that was never seen.
        self.unseen_C = torch.ones_like(self.average_C)
        self.weight_C = torch.full_like(self.average_C, UNKNOWN)
        # The sum of losses and the number of targets since the last update, on the device.
        self.sums_2C: Tensor | None = None

    def observe(self, batch: MaskedBatch, loss: Any) -> None:
        loss_M = widest(loss.each)
        group_BL = moved(batch.line.tensor(batch.line.layer(self.policy.layer)), loss_M.device)
        # Losses of tokens without a group go to an extra column, which is dropped below.
        groups = len(self.policy.names)
        group_M = group_BL[loss.where.unbind(1)].long()
        group_M = group_M.where(group_M >= 0, groups)
        sums_2C = loss_M.new_zeros(2, groups + 1)
        sums_2C[0].index_add_(0, group_M, loss_M)
        sums_2C[1].index_add_(0, group_M, loss_M.new_ones(loss_M.shape))
        sums_2C = sums_2C[:, :-1]
        self.sums_2C = sums_2C if self.sums_2C is None else self.sums_2C + sums_2C

    def offer(self, now: Progress) -> Tensor | None:
        sums_2C, self.sums_2C = self.sums_2C, None
        return sums_2C

    def after(self, now: Progress) -> None:
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


class TypeLearner(Learner):
    """Sets the policy's weights from the accuracy of each token type, on all ranks."""

    may_wait = False

    def __init__(self, policy: TypeWeighted):
        self.policy = policy
        # (2, V): the sums of this rank that were not yet added to ``total_2V``.
        self.sums_2V: Tensor | None = None

    def start(self, vocabulary: Vocabulary) -> None:
        """Allocate the table of sums, and set all weights to 1 if there are no weights yet."""
        # The rows are correct answers and targets, summed over all ranks since the last change of
        # weights.
        self.total_2V = torch.zeros(2, vocabulary.size, dtype=torch.float64)
        if self.policy.weights.current is None:
            self.policy.weights.current = np.ones(vocabulary.size)

    def configure(self, objective: Any) -> None:
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

    def offer(self, now: Progress) -> Tensor | None:
        if not now.closing and not self._due(now):
            return None
        sums_2V, self.sums_2V = self.sums_2V, None
        return sums_2V

    def after(self, now: Progress) -> None:
        if now.sums is not None:
            self.total_2V = self.total_2V + now.sums
        if not self._due(now):
            return
        right_V, count_V = self.total_2V
        self.total_2V = self.total_2V.new_zeros(self.total_2V.shape)
        score_V = (right_V + 1) / (count_V + 2)
        before_V = self._weights()
        kept = self.policy.kept
        new_V = (kept * before_V + (1 - kept) * (1 - score_V)).clamp(min=LEAST)
        self.policy.weights.current = new_V.where(count_V > 0, before_V).numpy()

    def _due(self, now: Progress) -> bool:
        return now.done > 0 and now.done % self.policy.every == 0

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
        return {"weight": self._weights(), "sums": self.total_2V}

    def load_state_dict(self, state: Tensors) -> None:
        self.total_2V = state["sums"]
        self.sums_2V = None
        self.policy.weights.current = state["weight"].numpy()
