"""Policies that the model itself teaches while it trains: by the types of tokens that it gets wrong, or by its doubts.

Both learn from the run that they mask for, so nothing is masked ahead. They begin evenly, and stay even in a collator,
which sees no losses. They look at the text, so masked diffusion under them has no likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.devices import widest
from maskwise.masking.policies.base import CutPolicy, Learner, Moment, cut, weigh
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary

LEAST = 0.01
"""The least weight of a type: none is ever given up."""


@dataclass
class Types:
    """What is known of the types of tokens: a weight (V,) for each; None before a training begins."""

    weight_V: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TypeWeighted(CutPolicy):
    """Tokens of the types that the model gets wrong are masked more often (AMLM).

    Every ``every`` steps w ← λ·w + (1 − λ)·(1 − score) for the types that were targets since, from w = 1; the score is
    the share of right answers (``by="accuracy"``, smoothed as (right + 1) / (asked + 2)) or the loss turned round
    (``by="loss"``: 1 − mean loss / the highest mean loss of a type).

    Selects: tokens (or words, which weigh the mean of their tokens), by weighted sampling without replacement.
    Guarantee: that of its units; types that cannot be learned are masked ever more often.
    Cost: as ``weighted``; one table of V numbers; with ``accuracy`` the likeliest token of every target (a pass over
        the logits); on several ranks one exchange of 3V numbers every ``every`` steps.
    Source: Edman and Fraser 2025 (Mask and You Shall Receive, arXiv 2510.20475), section 3: λ = .2, 200 batches.
    """

    by: str = "accuracy"
    every: int = 200
    kept: float = 0.2
    units_of: str = "token"
    types: Types = field(default_factory=Types, repr=False)

    def __post_init__(self) -> None:
        if self.by not in ("accuracy", "loss"):
            raise MaskwiseError("policy type-weighted: by", got=self.by, allowed="accuracy, loss")
        if self.every < 1 or not 0 <= self.kept < 1:
            got = f"every {self.every}, kept {self.kept}"
            raise MaskwiseError("policy type-weighted", got=got, allowed="every ≥ 1, 0 ≤ kept < 1")

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = cut(batch, self.units_of, policy="type-weighted")
        if self.types.weight_V is None:
            return units
        return weigh(units, self.types.weight_V.numpy()[batch.input_ids], policy="type-weighted")

    def learner(self) -> TypeLearner:
        return TypeLearner(self)


class TypeLearner(Learner):
    """Counts right answers and losses by type of token, over all ranks, and sets the policy's weights."""

    def __init__(self, policy: TypeWeighted):
        self.policy = policy
        # Right answers, losses, targets since the weights were set: of all ranks, and what this one has to add.
        self.total_3V = torch.zeros(3, 0, dtype=torch.float64)
        self.sums_3V: Tensor | None = None

    def start(self, vocabulary: Vocabulary) -> None:
        """Know the types; what was learned before stays."""
        if self.policy.types.weight_V is None:
            self.policy.types.weight_V = torch.ones(vocabulary.size, dtype=torch.float64)
        self.total_3V = torch.zeros(3, vocabulary.size, dtype=torch.float64)

    def meet(self, objective: Any) -> None:
        """Ask the objective which answers are right."""
        objective.tells_right = self.policy.by == "accuracy"

    def observe(self, batch: Any, outcome: Any) -> None:
        losses = widest(outcome.losses)
        right = losses < math.log(2) if outcome.right is None else outcome.right
        kind = batch.labels.to(losses.device)[outcome.where.unbind(1)]
        if self.sums_3V is None:
            self.sums_3V = losses.new_zeros(self.total_3V.shape)
        self.sums_3V.index_add_(1, kind, torch.stack([right.to(losses.dtype), losses, torch.ones_like(losses)]))

    def after(self, now: Any) -> None:
        self.agree = now.agree
        if not now.done or now.done % self.policy.every:
            return
        right_V, loss_V, count_V = self._taken_in()
        self.total_3V = torch.zeros_like(self.total_3V)
        mean_V = loss_V / count_V.clamp(min=1)
        if self.policy.by == "accuracy":
            score_V = (right_V + 1) / (count_V + 2)
        else:
            score_V = 1 - mean_V / mean_V.nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-9)
        before_V = self.policy.types.weight_V
        assert before_V is not None
        kept = self.policy.kept
        new_V = (kept * before_V + (1 - kept) * (1 - score_V)).clamp(min=LEAST)
        self.policy.types.weight_V = torch.where((count_V > 0) & mean_V.isfinite(), new_V, before_V)

    def _taken_in(self) -> Tensor:
        """``total_3V`` with what the ranks had to add; every rank calls this, and waits for its device."""
        if self.sums_3V is not None:
            self.total_3V, self.sums_3V = self.total_3V + self.agree(self.sums_3V), None
        return self.total_3V

    def facts(self) -> Mapping[str, object]:
        """``type_weights``: the least, the mean and the greatest."""
        weight_V = self.policy.types.weight_V
        if weight_V is None:
            return {}
        names = {"least": weight_V.min(), "mean": weight_V.mean(), "greatest": weight_V.max()}
        return {"type_weights": {name: round(float(value), 6) for name, value in names.items()}}

    def state_dict(self) -> dict[str, Tensor]:
        assert self.policy.types.weight_V is not None
        return {"weight": self.policy.types.weight_V, "sums": self._taken_in()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.policy.types.weight_V, self.total_3V, self.sums_3V = state["weight"], state["sums"], None


def type_weighted(by: str = "accuracy", every: int = 200, kept: float = 0.2, units: str = "token") -> TypeWeighted:
    """Tokens whose type the model gets wrong, by ``accuracy`` or ``loss`` (AMLM), learned every so many steps."""
    return TypeWeighted(by, every, kept, units)


Measure = Callable[[AnnotatedBatch, Array], Array]
"""From a batch, and the places of half of its eligible tokens, to the entropy (T,) in nats of the model at each."""


@dataclass
class Doubts:
    """How the model's entropy is measured; None where there is no training."""

    measure: Measure | None = None


@dataclass(frozen=True, eq=False)
class EntropyWeighted(CutPolicy):
    """Tokens of which the model is least sure are masked more often.

    At every ``every``-th step the model says, without a gradient, what it expects at each place of the very batch: half
    of the tokens are hidden, then the other half. A unit weighs the mean entropy of its tokens to the power ``power``;
    at the other steps all weigh alike. A negative power prefers what is nearly learned.

    Selects: tokens (or words), by weighted sampling without replacement.
    Guarantee: that of its units.
    Cost: two forward passes with the head at every token, at every ``every``-th step: with ``every=4`` up to a third of
        a step more on average. Parameters that are sharded (FSDP) are out of its reach.
    Source: ours; after the use of a model's entropy in masked diffusion samplers and in curricula of 2025.
    """

    every: int = 4
    power: float = 1.0
    units_of: str = "token"
    doubts: Doubts = field(default_factory=Doubts, repr=False)

    def __post_init__(self) -> None:
        if self.every < 1 or not math.isfinite(self.power):
            got = f"every {self.every}, power {self.power}"
            raise MaskwiseError("policy entropy-weighted", got=got, allowed="every ≥ 1, a finite power")

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = cut(batch, self.units_of, policy="entropy-weighted")
        if self.doubts.measure is None or moment.step % self.every:
            return units
        at = batch.eligible_at
        half = at[batch.draw(keys, Purpose.ACCEPT, at) < 0]
        entropy_T = np.maximum(self.doubts.measure(batch, half), 1e-4) ** self.power
        return weigh(units, entropy_T, policy="entropy-weighted")

    def learner(self) -> EntropyLearner:
        return EntropyLearner(self)


class EntropyLearner(Learner):
    """Brings the policy together with the model; it remembers nothing."""

    asks_model = True

    def __init__(self, policy: EntropyWeighted):
        self.policy, self.mask = policy, -1

    def start(self, vocabulary: Vocabulary) -> None:
        self.mask = vocabulary.require_mask()

    def meet(self, objective: Any) -> None:
        """Let the policy ask the model of this objective."""

        def measure(batch: AnnotatedBatch, half: Array) -> Array:
            entropy_T = np.zeros(len(batch.input_ids))
            hidden = np.zeros(len(batch.input_ids), bool)
            hidden[half] = True
            for some in (hidden, batch.eligible & ~hidden):
                at = np.flatnonzero(some)
                if len(at):
                    entropy_T[at] = objective.entropies(batch, at, self.mask)
            return entropy_T

        self.policy.doubts.measure = measure


def entropy_weighted(every: int = 4, power: float = 1.0, units: str = "token") -> EntropyWeighted:
    """Tokens of which the model is least sure, by a pass without gradient at every so many steps."""
    return EntropyWeighted(every, power, units)
