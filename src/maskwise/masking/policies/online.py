"""Policies that learn from the losses of the run that they mask for: by groups, by types of tokens,
by doubts.

A group is a value of a categorical layer (a part of speech, an entity type, a frequency bucket).
All begin evenly, and stay even in a collator, which sees no losses; before the next masks are made,
the host waits for the losses of this step. They look at the text, so masked diffusion under them
has no likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwise.constants import UPOS
from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch, MaskedBatch, moved, widest
from maskwise.masking.policies.base import CutPolicy, Learner, Moment, units_by, weigh
from maskwise.masking.select import require_one_of
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary

Weigh = Callable[[Tensor, Tensor], Tensor]

UNKNOWN = 0.5
"""The weight of a group of which nothing is known, and of tokens of no group."""


def standardised(loss_C: Tensor, seen_C: Tensor) -> Tensor:
    """(C,) weights: sigmoid(2 (s − mean) / SD) over the seen groups, SD with n − 1; unseen ones
    ``UNKNOWN``.

    Fewer than two seen groups, or no spread between them: ``UNKNOWN`` for all. Source: Yang et al.
    2023, section 3.
    """
    count = seen_C.sum()
    centred = torch.where(seen_C, loss_C - (loss_C * seen_C).sum() / count.clamp(min=1), 0.0)
    spread = ((centred**2).sum() / (count - 1).clamp(min=1)).sqrt()
    # Equal losses may leave a spread of rounding errors, which would make weights of 0 and 1 out of
    # nothing.
    differ = spread > 1e-12 * loss_C.abs().max()
    weight = torch.sigmoid(2 * centred / torch.where(differ, spread, 1.0))
    return torch.where(seen_C & differ, weight, UNKNOWN)


class GroupLosses:
    """Mean losses of C groups, exponentially averaged over updates.

    Args:
        groups: C.
        momentum: what is kept of the average at every update of a group; None: by
            ``half_life_steps``.
        half_life_steps: updates after which half of the average is new; None: a twentieth of the
            run.
        corrected: divide by what the average has seen so far, and leave groups out that were never
            seen. False: as published, where averages start at 0 and every group counts from the
            start.
        weigh: from (losses (C,), seen (C,) bool) to weights (C,).
    """

    def __init__(
        self,
        groups: int,
        *,
        momentum: float | None = None,
        half_life_steps: float | None = None,
        corrected: bool = True,
        weigh: Weigh = standardised,
    ):
        self.momentum, self.half_life_steps = momentum, half_life_steps
        self.corrected, self.weigh = corrected, weigh
        self.average_C = torch.zeros(groups, dtype=torch.float64)
        # m to the power of the updates of each group
        self.unseen_C = torch.ones(groups, dtype=torch.float64)
        self.weight_C = torch.full((groups,), UNKNOWN, dtype=torch.float64)

    def update(self, sums_2C: Tensor, total_steps: int) -> None:
        """Learn from (2, C) float64: sums of the losses of each group and numbers of targets, of
        all ranks.
        """
        total_C, count_C = sums_2C
        m, present_C = self.kept(total_steps), (count_C > 0) & total_C.isfinite()
        new_C = m * self.average_C + (1 - m) * total_C / count_C.clamp(min=1)
        self.average_C = torch.where(present_C, new_C, self.average_C)
        self.unseen_C = torch.where(present_C, m * self.unseen_C, self.unseen_C)
        self.weight_C = self.weigh(self.losses(), self.seen())

    def kept(self, total_steps: int) -> float:
        """m: what an update keeps of the average."""
        if self.momentum is not None:
            return self.momentum
        return 0.5 ** (1 / (self.half_life_steps or max(1.0, total_steps / 20)))

    def losses(self) -> Tensor:
        """(C,) float64, nats."""
        if not self.corrected:
            return self.average_C
        return self.average_C / torch.where(self.unseen_C < 1, 1 - self.unseen_C, 1.0)

    def seen(self) -> Tensor:
        """(C,) bool: groups whose losses count."""
        return (
            self.unseen_C < 1
            if self.corrected
            else torch.ones_like(self.unseen_C, dtype=torch.bool)
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average_C, "unseen": self.unseen_C, "weight": self.weight_C}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average_C, self.unseen_C, self.weight_C = (
            state[k] for k in ("average", "unseen", "weight")
        )


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
    names: tuple[str, ...]
    units: str = "word"
    faithful: bool = False
    running: GroupLosses = field(default_factory=lambda: GroupLosses(0), repr=False)

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        weight_G = np.append(self.running.weight_C.numpy(), UNKNOWN)  # −1: the last one
        units = units_by(batch, self.units, policy=self.layer)
        units = weigh(units, weight_G[self._groups(batch)], policy=self.layer)
        if not self.faithful or units.weight is None:
            return units
        accepted = keys.uniform(Purpose.ACCEPT, units.piece, units.number) < units.weight
        return units.weighted(accepted.astype(np.float64))

    def learner(self) -> GroupLearner:
        return GroupLearner(self)

    def take(self, weights: Mapping[str, float]) -> None:
        """Weigh groups as a run did, by their names, as its metrics say; the others are not known."""
        known = [weights.get(name, UNKNOWN) for name in self.names]
        self.running.weight_C = torch.tensor(known, dtype=torch.float64)

    def _groups(self, batch: AnnotatedBatch) -> Array:
        """(T,) int64 in −1 … C − 1."""
        group_T = batch.layer(self.layer, policy=f"weighted by {self.layer}").astype(np.int64)
        if (largest := int(group_T.max(initial=-1))) >= len(self.names):
            allowed = f"below {len(self.names)}"
            raise MaskwiseError(
                f"layer {self.layer!r}: no such group", got=largest, allowed=allowed
            )
        return np.maximum(group_T, -1)


class GroupLearner(Learner):
    """Sums the losses of each group over a step, and lets the averages take them in
    (``training.learners``).
    """

    def __init__(self, policy: GroupWeighted):
        self.policy = policy
        self.sums_2C: Tensor | None = None  # of a step, on the device; None: no losses yet

    def observe(self, batch: MaskedBatch, outcome: Any) -> None:
        loss_M, groups = widest(outcome.losses), len(self.policy.names)
        group_BL = moved(batch.source.tensor(self.policy.layer), loss_M.device)
        group_M = group_BL[outcome.where.unbind(1)].long()
        # Losses of tokens of no group go into one more column, which is dropped.
        group_M = torch.where(group_M < 0, groups, group_M)
        sums = loss_M.new_zeros(2, groups + 1)
        sums.index_add_(1, group_M, torch.stack([loss_M, torch.ones_like(loss_M)]))
        self.sums_2C = sums[:, :-1] if self.sums_2C is None else self.sums_2C + sums[:, :-1]

    def after(self, now: Any) -> None:
        none = torch.zeros(2, len(self.policy.names))
        self.policy.running.update(
            now.agree(none if self.sums_2C is None else self.sums_2C), now.total_steps
        )
        self.sums_2C = None

    def facts(self) -> Mapping[str, object]:
        """``weights`` and ``losses`` (nats) by the name of the group, of those seen."""
        running, facts = self.policy.running, {}
        for name, values in (("weights", running.weight_C), ("group_losses", running.losses())):
            kept = zip(
                self.policy.names, values.tolist(), (running.unseen_C < 1).tolist(), strict=True
            )
            facts[name] = {group: round(value, 6) for group, value, seen in kept if seen}
        return facts

    def state_dict(self) -> dict[str, Tensor]:
        return self.policy.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.policy.running.load_state_dict(state)


def pos_weighted(
    units: str = "word", half_life_steps: float | None = None, faithful: bool = False
) -> GroupWeighted:
    """Part-of-speech weighted masking (PTW). ``faithful``: one acceptance draw a word and momentum
    .999.
    """
    return group_weighted(
        "pos", UPOS, units=units, half_life_steps=half_life_steps, faithful=faithful
    )


def group_weighted(
    layer: str,
    groups: int | tuple[str, ...] = 2,
    *,
    units: str = "word",
    half_life_steps: float | None = None,
    faithful: bool = False,
    weigh: Callable[[Tensor, Tensor], Tensor] = standardised,
) -> GroupWeighted:
    """The same for any categorical layer: ``groups`` is how many it has, or their names.

    Raises:
        MaskwiseError: fewer than two groups; a half-life that is not above 0; a half-life beside
            ``faithful``.
    """
    layer, names = str(layer), tuple(map(str, range(groups) if isinstance(groups, int) else groups))
    if len(names) < 2:
        raise MaskwiseError(
            f"policy weighted by {layer}: groups", got=len(names), allowed="2 or more"
        )
    if half_life_steps is not None and (faithful or not half_life_steps > 0):
        got = f"{half_life_steps}{', faithful' if faithful else ''}"
        allowed = "above 0, and not beside faithful, which keeps .999"
        raise MaskwiseError(
            f"policy weighted by {layer}: half_life_steps", got=got, allowed=allowed
        )
    momentum = 0.999 if faithful else None
    running = GroupLosses(
        len(names),
        momentum=momentum,
        half_life_steps=half_life_steps,
        corrected=not faithful,
        weigh=weigh,
    )
    return GroupWeighted(layer, names, units, faithful, running)


LEAST = 0.01
"""The least weight of a type: none is ever given up."""


@dataclass
class Types:
    """What is known of the types of tokens: a weight (V,) for each; None before a training begins."""

    weight_V: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TypeWeighted(CutPolicy):
    """Tokens of the types that the model gets wrong are masked more often (AMLM).

    Every ``every`` steps w ← λ·w + (1 − λ)·(1 − score) for the types that were targets since, from
    w = 1; the score is the share of right answers (``by="accuracy"``, smoothed as (right + 1) /
    (asked + 2)) or the loss turned round (``by="loss"``: 1 − mean loss / the highest mean loss of a
    type).

    Selects: tokens (or words, which weigh the mean of their tokens), by weighted sampling without
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
    types: Types = field(init=False, default_factory=Types, repr=False)

    def __post_init__(self) -> None:
        require_one_of("by of policy type-weighted", self.by, ("accuracy", "loss"))
        if self.every < 1 or not 0 <= self.kept < 1:
            got = f"every {self.every}, kept {self.kept}"
            raise MaskwiseError("policy type-weighted", got=got, allowed="every ≥ 1, 0 ≤ kept < 1")

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = units_by(batch, self.units, policy="type-weighted")
        if self.types.weight_V is None:
            return units
        return weigh(units, self.types.weight_V.numpy()[batch.input_ids], policy="type-weighted")

    def learner(self) -> TypeLearner:
        return TypeLearner(self)


class TypeLearner(Learner):
    """Counts right answers and losses by type of token, over all ranks, and sets the policy's
    weights.
    """

    def __init__(self, policy: TypeWeighted):
        self.policy = policy
        # Right answers, losses, targets since the weights were set: of all ranks, and what this one
        # has to add.
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
        self.sums_3V.index_add_(
            1, kind, torch.stack([right.to(losses.dtype), losses, torch.ones_like(losses)])
        )

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
        """``total_3V`` with what the ranks had to add; every rank calls this, and waits for its
        device.
        """
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
        self.policy.types.weight_V, self.total_3V, self.sums_3V = (
            state["weight"],
            state["sums"],
            None,
        )


Measure = Callable[[AnnotatedBatch, Array], Array]
"""From a batch, and the places of half of its eligible tokens, to the entropy (T,) in nats of the
model at each.
"""


@dataclass
class Doubts:
    """How the model's entropy is measured; None where there is no training."""

    measure: Measure | None = None


@dataclass(frozen=True, eq=False)
class EntropyWeighted(CutPolicy):
    """Tokens of which the model is least sure are masked more often.

    At every ``every``-th step the model says, without a gradient, what it expects at each place of
    the very batch: half of the tokens are hidden, then the other half. A unit weighs the mean
    entropy of its tokens to the power ``power``; at the other steps all weigh alike. A negative
    power prefers what is nearly learned.

    Selects: tokens (or words), by weighted sampling without replacement.
    Guarantee: that of its units.
    Cost: two forward passes with the head at every token, at every ``every``-th step: with
        ``every=4`` up to a third of a step more on average. Parameters that are sharded (FSDP) are
        out of its reach.
    Source: ours; after the use of a model's entropy in masked diffusion samplers and in curricula
        of 2025.
    """

    every: int = 4
    power: float = 1.0
    units: str = "token"
    doubts: Doubts = field(init=False, default_factory=Doubts, repr=False)

    def __post_init__(self) -> None:
        if self.every < 1 or not math.isfinite(self.power):
            got = f"every {self.every}, power {self.power}"
            raise MaskwiseError(
                "policy entropy-weighted", got=got, allowed="every ≥ 1, a finite power"
            )

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = units_by(batch, self.units, policy="entropy-weighted")
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
