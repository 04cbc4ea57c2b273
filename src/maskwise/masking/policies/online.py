"""Masking policies that learn weights from the losses of the run, for groups or types of tokens.

A group is a set of tokens with the same value in a layer, such as a part of speech, an entity type
or a frequency range. A type is an id of the vocabulary. Tokens with a larger weight are more likely
to be masked. At the start, all weights are equal. In a collator, the weights stay equal, because a
collator gets no losses. In training, the host must wait for the losses of a step before it can mask
the next batch. The weights depend on the text, so with these policies the loss of masked diffusion
does not bound the likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from maskwise.base.constants import UPOS
from maskwise.base.errors import MaskwiseError, finite_number, whole_number
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.line import Line, Names
from maskwise.masking.policies.base import (
    CutPolicy,
    When,
    units_by,
    weigh,
)
from maskwise.masking.units import Units

UNKNOWN = 0.5
"""The weight of a group without losses, and of tokens without a group."""
LEAST = 0.01
"""The smallest weight of a type. With a weight of 0, a type would never be masked again."""


@dataclass
class Weights:
    """The current weights of a policy. The policy's learner (``training.learners``) sets them.

    Policies are frozen dataclasses, so the weights are an attribute of this mutable object.

    Attributes:
        current: (C,) float64 for C groups, or (V,) for V types; None before the first losses.
    """

    current: Array | None = None


@dataclass(frozen=True)
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
    weights: Weights = field(init=False, default_factory=Weights, repr=False, compare=False)

    learns = True
    scales_ratio = True

    def __post_init__(self) -> None:
        if not isinstance(self.groups, tuple):
            whole_number("groups of policy group-weighted", self.groups)
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

    def take(self, weights: Mapping[str, float]) -> None:
        """Set the weights from a dict of group names and weights, as the metrics of a run have."""
        self.weights.current = np.array([weights.get(name, UNKNOWN) for name in self.names])


def pos_weighted(
    units: str = "word", half_life_steps: float | None = None, faithful: bool = False
) -> GroupWeighted:
    """Words of parts of speech with a higher average loss are masked more often (PTW).

    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3.
    """
    return GroupWeighted("pos", UPOS, units, half_life_steps, faithful)


@dataclass(frozen=True)
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
    weights: Weights = field(init=False, default_factory=Weights, repr=False, compare=False)

    learns = True
    scales_ratio = True
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
