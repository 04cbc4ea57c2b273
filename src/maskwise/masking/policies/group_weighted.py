"""Words of groups that are still hard more often: POS-weighted masking, for any categorical layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, kind_of, layer_of, pieces
from maskwise.masking.running import UNKNOWN, GroupLosses, standardised
from maskwise.masking.units import UnitKind, Units

UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ",
    "SYM", "VERB", "X",
)  # fmt: skip
"""The 17 universal parts of speech, in the order of the layer ``pos``."""


@dataclass(frozen=True, eq=False)
class GroupWeighted(Policy):
    """A unit weighs what its group weighs now; groups whose running loss is high weigh more.

    Selects: by weighted sampling without replacement, so that no row ends short. ``faithful``: as published,
        each word, in random order, is *accepted* once with the probability of its tag, and a row whose accepted
        words are too few stays short (the budget is rounded by hash, as everywhere here; theirs to the nearest).
        Weights are 0.5 for all until losses come in, and for words of no group.
    Guarantee: as for its units. With half of the words at .88 and half at .12 and a ratio of .30, words are chosen
        with probability .509 / .091, and .530 / .070 when faithful.
    Cost: as ``weighted``; learning costs a few sums over the targets of a step and, on several ranks, one exchange
        of 2C numbers.
    Source: Yang, Zhang and Zhao 2023 (ACL, arXiv 2208.10806), section 3. Mended here: averages corrected for their
        start, a half-life in steps, only seen groups standardised, sums (not means) added over ranks.
    """

    layer: str
    names: tuple[str, ...]
    units_of: str = "word"
    faithful: bool = False
    running: GroupLosses = field(default_factory=lambda: GroupLosses(0), repr=False)

    @property
    def unit_kind(self) -> UnitKind:
        return kind_of(self.units_of)

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *layer_of(self.units_of))

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        group_BL = self._groups(batch)
        weight_G = pad(self.running.weight_C.to(group_BL.device), (0, 1), value=UNKNOWN)  # −1: the last one
        units = pieces(batch, self.units_of, policy=self.layer).weighted(
            weight_G[group_BL], policy=self.layer
        )
        if not self.faithful or units.weight is None:
            return units
        accepted = keys.uniform(Purpose.ACCEPT, units.number) < units.weight
        return replace(units, weight=accepted.double())

    def learner(self) -> Learner:
        return Learner(self)

    def take(self, weights: Mapping[str, float]) -> None:
        """Weigh groups as a run did, by their names, as its metrics say; the others are not known."""
        known = [weights.get(name, UNKNOWN) for name in self.names]
        self.running.weight_C = torch.tensor(known, dtype=torch.float64)

    def _groups(self, batch: AnnotatedBatch) -> Tensor:
        """(B, L) int64 in −1 … C − 1."""
        group_BL = batch.layer(self.layer, policy=f"weighted by {self.layer}").long()
        if group_BL.numel() and int(group_BL.max()) >= len(self.names):
            got, allowed = int(group_BL.max()), f"below {len(self.names)}"
            raise MaskwiseError(f"layer {self.layer!r}: no such group", got=got, allowed=allowed)
        return group_BL.clamp(min=-1)


class Learner:
    """Sums the losses of each group over a step, and lets the averages take them in (``training.learners``)."""

    def __init__(self, policy: GroupWeighted):
        self.policy, self.sums_2C = policy, torch.zeros(2, len(policy.names), dtype=torch.float64)

    def observe(self, batch: Any, outcome: Any) -> None:
        loss_M, groups = outcome.losses.double(), len(self.policy.names)
        group_M = batch.source.layers[self.policy.layer][outcome.where.unbind(1)].long()
        # Losses of tokens of no group go into one more column, which is dropped.
        group_M = torch.where(group_M < 0, groups, group_M)
        sums = loss_M.new_zeros(2, groups + 1)
        sums.index_add_(1, group_M, torch.stack([loss_M, torch.ones_like(loss_M)]))
        self.sums_2C = self.sums_2C.to(sums.device) + sums[:, :-1]

    def after(self, done: int, total_steps: int, agree: Callable[[Tensor], Tensor]) -> None:
        self.policy.running.update(agree(self.sums_2C), total_steps)
        self.sums_2C = torch.zeros_like(self.sums_2C)

    def facts(self) -> dict[str, Any]:
        """``weights`` and ``losses`` (nats) by the name of the group, of those seen."""
        running, found = self.policy.running, {}
        for name, values in (("weights", running.weight_C), ("group_losses", running.losses())):
            kept = zip(self.policy.names, values.tolist(), (running.unseen_C < 1).tolist(), strict=True)
            found[name] = {group: round(value, 6) for group, value, seen in kept if seen}
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return self.policy.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.policy.running.load_state_dict(state)


def pos_weighted(
    units: str = "word", half_life_steps: float | None = None, faithful: bool = False
) -> GroupWeighted:
    """Part-of-speech weighted masking (PTW). ``faithful``: one acceptance draw a word and momentum .999."""
    return group_weighted("pos", UPOS, units=units, half_life_steps=half_life_steps, faithful=faithful)


def group_weighted(
    layer: str, groups: int | tuple[str, ...] = 2, *, units: str = "word", half_life_steps: float | None = None,
    faithful: bool = False, weigh: Callable[[Tensor, Tensor], Tensor] = standardised,
) -> GroupWeighted:  # fmt: skip
    """The same for any categorical layer: ``groups`` is how many it has, or their names.

    Raises:
        MaskwiseError: fewer than two groups; a half-life that is not above 0; a half-life beside ``faithful``.
    """
    layer, names = str(layer), tuple(map(str, range(groups) if isinstance(groups, int) else groups))
    if len(names) < 2:
        raise MaskwiseError(f"policy weighted by {layer}: groups", got=len(names), allowed="2 or more")
    if half_life_steps is not None and (faithful or not half_life_steps > 0):
        got = f"{half_life_steps}{', faithful' if faithful else ''}"
        allowed = "above 0, and not beside faithful, which keeps .999"
        raise MaskwiseError(f"policy weighted by {layer}: half_life_steps", got=got, allowed=allowed)
    momentum = 0.999 if faithful else None
    running = GroupLosses(
        len(names), momentum=momentum, half_life_steps=half_life_steps, corrected=not faithful, weigh=weigh
    )
    return GroupWeighted(layer, names, units, faithful, running)
