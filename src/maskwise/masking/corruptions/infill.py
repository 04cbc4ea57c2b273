"""BART's text infilling: each chosen span becomes one [MASK], whatever its length, zero included."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import int32, integers, numbers, places, raw, tensor
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose, unit_interval, within
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption, require_target
from maskwise.masking.corruptions.lengths import (
    Compaction,
    carried,
    interleaved,
    present,
    removed_text,
    run_starts,
    whole_text,
)  # fmt: skip
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Infill(Corruption):
    """One [MASK] for each run of chosen tokens, and [MASK]s that stand for nothing.

    The policy chooses the spans that have a length (BART's: ``span(poisson=3.0)``). A Poisson length is 0
    with probability q = exp(−mean), so every span brings an *empty* one with probability q / (1 − q), put
    between two random tokens of the text; it costs no budget. ``mean=None``: no empty ones.

    Touching spans become one [MASK], and so does an empty span that touches another span: it is not seen
    then.
    Rows with many empty spans and short others can grow; ``cut`` is the most tokens a row may have then, as many
    as the model has positions: empty spans for which there is no room are left out.

    Targets: ``full``: the whole row; ``spans``: for each [MASK] in order a [MASK] and what it stands for,
        then [eos].
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2.
    """

    mean: float | None = 3.0
    target: str = "full"
    cut: int | None = None

    def __post_init__(self) -> None:
        require_target("infill", self.target, "full", "spans")
        if self.mean is not None and self.mean <= 0:
            raise MaskwiseError(
                "corruption infill: mean is a span length", got=self.mean, allowed="above 0, or None"
            )

    @property
    def keeps_length(self) -> bool:
        return False

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        starts, here = run_starts(chosen), present(batch)
        mask = torch.full_like(batch.input_ids, vocabulary.require_mask())
        leads = starts | self._empty(batch, chosen, starts, keys)
        keep = interleaved(leads, here & ~chosen)
        if self.cut is not None and bool(((spare_B1 := self.cut - keep.sum(1, keepdim=True)) < 0).any()):
            room_B1 = spare_B1 + (leads & ~starts).sum(1, keepdim=True)
            leads &= starts | ((leads & ~starts).cumsum(1) <= room_B1)
            keep = interleaved(leads, here & ~chosen)
        move = Compaction(keep)
        if self.target == "full":
            labels = whole_text(batch, chosen, vocabulary.eos)
        else:
            tail = [] if vocabulary.eos is None else [torch.full_like(mask[:, :1], vocabulary.eos)]
            labels = removed_text(batch.input_ids, chosen, leads, mask[0, 0], tail)
        input_ids = move(interleaved(mask, batch.input_ids), vocabulary.pad)
        return Corrupted(input_ids, labels, move.attention_mask, carried(batch, move, twice=True))

    def _empty(self, batch: AnnotatedBatch, chosen: Tensor, starts: Tensor, keys: Keys) -> Tensor:
        """(B, L) bool: tokens before which an empty span stands."""
        runs_B = raw(starts).sum(1)
        most = int(runs_B.max()) if len(runs_B) else 0
        here = torch.zeros_like(chosen)
        if self.mean is None or not most:
            return here
        q, content = math.exp(-self.mean), raw(batch.content)
        index = numbers(2 * most, runs_B)
        draw = raw(keys.draw(Purpose.LENGTH, tensor(int32(index))))
        count_B = content.sum(1)
        brings = (
            within(draw[:, 0::2], q / (1 - q)) & (index[:most] < runs_B[:, None]) & (count_B > 1)[:, None]
        )
        at = places(brings)
        row = at // most
        slot = integers(unit_interval(draw[:, 1::2].reshape(-1).take(at)) * (count_B - 1).take(row)) + 1
        # Where in the flattened batch the token stands that is number ``slot`` of its row's content.
        before = places(content).take((count_B.cumsum(0) - count_B).take(row) + slot)
        free = (content & ~raw(chosen)).reshape(-1)
        raw(here.view(-1))[before[free.take(before) & free.take(before - 1)]] = True
        return here
