"""Units: a partition of each row into pieces that are masked together, with a weight each.

Every policy ends here. Units are runs of tokens; they are numbered along the row, so a row of L tokens has at
most L of them and everything about units is a dense (B, U) tensor: no ragged lists, memory O(B·L).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

from maskwise.arrays import copy, floats, places, raw, running_count, tensor, where
from maskwise.errors import MaskwiseError
from maskwise.masking.annotated import AnnotatedBatch


class UnitKind(StrEnum):
    """What a policy's units are. It follows from the policy's arguments.

    Arms whose units are of different kinds are not compared by one held-out loss. The values are written to
    study.json: never change them, only append.
    """

    TOKEN = "token"
    WORD = "whole-word"
    SPAN = "span"  # several words together
    TOKEN_SPAN = "token span"  # several tokens together, which may cut words
    LAYER = "span-layer"  # the runs of a layer, such as entities, phrases or sentences
    MIXTURE = "mixture"  # several of these


@dataclass
class Units:
    """The partition and its weights.

    Attributes:
        inside: (B, L) bool, tokens that are in a unit that may be chosen.
        of_token: (B, L) int32 or int64, the number of the unit that each token is in (anything where ``inside`` is
            False); None when every token inside is a unit by itself, and U = L.
        sizes: (B, U) int64, see ``length``; None: counted when they are asked for.
        place: (B, L) int32, where ``of_token`` is None: the index of each token's draws, so that padding does not
            move them.
        weight: (B, U) float64, or None for equal weights. 0: never chosen, but for ``fill="random"``.
        settled: (B, L) bool, the tokens of units of positive weight where these are just what the budget has, so
            that nothing is left to draw; else None.
    """

    inside: Tensor
    of_token: Tensor | None
    sizes: Tensor | None = None
    place: Tensor | None = None
    weight: Tensor | None = None
    settled: Tensor | None = None

    @cached_property
    def length(self) -> Tensor:
        """(B, U) int64: tokens in each unit; 0 where a unit may not be chosen or does not exist."""
        if self.sizes is not None:
            return self.sizes
        if self.of_token is None:
            return self.inside.long()
        if self.weight is not None:
            count = self.weight.shape[1]
        else:
            count = int(raw(self.of_token).max()) + 1 if self.of_token.numel() else 0
        length = torch.zeros(len(self.inside), count, dtype=torch.int64, device=self.inside.device)
        return length.scatter_add_(1, self.index, self.inside.long())

    @cached_property
    def index(self) -> Tensor:
        """(B, L) int64: ``of_token`` as torch takes indices; by itself where every token is a unit."""
        column = torch.arange(self.inside.shape[1], device=self.inside.device).expand_as(self.inside)
        return column if self.of_token is None else self.of_token.long()

    @property
    def number(self) -> Tensor:
        """(U,) or (B, U) int32: the index of each unit's draws."""
        if self.place is not None:
            return self.place
        return torch.arange(self.length.shape[1], dtype=torch.int32, device=self.inside.device)

    @property
    def available(self) -> Tensor:
        """(B, U) bool: units that may be chosen, if their weight allows."""
        return self.inside if self.of_token is None else tensor(raw(self.length) > 0)

    @property
    def eligible_tokens(self) -> Tensor:
        """(B,) int64: tokens that could be chosen, those of weight 0 too: what a ratio is a share of."""
        return self.inside.sum(1)

    @classmethod
    def tokens(cls, batch: AnnotatedBatch) -> Units:
        """Each eligible token is a unit."""
        return cls(batch.eligible, None, place=batch.place)

    @classmethod
    def runs(cls, batch: AnnotatedBatch, ids: Tensor) -> Units:
        """Units are runs of equal ``ids`` (B, L) among the content tokens; a negative id belongs to no unit.

        A run with a token that may not be masked ([UNK] inside a word) is never chosen: no half units.
        """
        ids, content = raw(ids), raw(batch.content)
        inside = ids >= 0
        inside &= content
        start, flat, member = copy(inside).reshape(-1), ids.reshape(-1), inside.reshape(-1)
        start[1:] &= (flat[1:] != flat[:-1]) | ~member[:-1]
        start = start.reshape(inside.shape)
        start[:, :1] = inside[:, :1]
        of_token = running_count(start)
        of_token -= 1
        of_token = of_token.clip(0, ids.shape[1])  # both bounds: numpy is twice as fast then
        barred = inside > raw(batch.eligible)
        if bool(barred.any()):
            rows = places(barred.any(1))
            unit, here = tensor(of_token[rows]).long(), tensor(barred[rows]).long()
            halved = torch.zeros_like(unit).scatter_add_(1, unit, here).gather(1, unit)
            inside[rows] &= raw(halved) == 0
        return cls(tensor(inside), tensor(of_token))

    def weighted(self, weight_BL: Tensor, *, policy: str) -> Units:
        """These units with weights from a (B, L) layer: a unit has the mean weight of its tokens.

        Raises:
            MaskwiseError: a weight of an eligible token that is negative, NaN or infinite.
        """
        weight = where(raw(self.inside), floats(raw(weight_BL)), 0.0)
        fine = (weight >= 0) & (weight < float("inf"))
        if not bool(fine.all()):
            raise MaskwiseError(
                f"policy {policy!r}: a weight is not a finite number ≥ 0", got=float(weight[~fine][0])
            )
        if self.of_token is None:
            return replace(self, weight=tensor(weight))
        total = torch.zeros(self.length.shape, dtype=torch.float64, device=self.length.device)
        total.scatter_add_(1, self.index, tensor(weight)).div_(self.length.clamp(min=1))
        return replace(self, weight=total, sizes=self.length)

    def spread(self, chosen_BU: Tensor) -> Tensor:
        """From chosen units to chosen tokens: (B, U) bool to (B, L) bool, whole units only."""
        if self.of_token is None:
            return chosen_BU & self.inside
        return (chosen_BU & self.available).gather(1, self.index).bitwise_and_(self.inside)
