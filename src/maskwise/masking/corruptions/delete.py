"""Chosen tokens are taken out; nothing tells where they stood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption, require_target
from maskwise.masking.corruptions.lengths import Compaction, carried, present, removed_text, whole_text
from maskwise.masking.masked import IGNORE
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Delete(Corruption):
    """Every chosen token disappears.

    Targets: ``full``: the whole row; ``spans``: the deleted tokens in order, then [eos]; ``detect``: at every
        token of the text that is left, and at the special token behind it, 1 if something was deleted just
        before it, else 0 (a run of deletions gives one 1).
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2; detection: Wu et al. 2022 (MOMETAS, dtd).
    """

    target: str = "full"

    shows_mask = False

    def __post_init__(self) -> None:
        require_target("delete", self.target, "full", "spans", "detect")

    @property
    def keeps_length(self) -> bool:
        return False

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        move = Compaction(present(batch) & ~chosen)
        if self.target == "full":
            labels = whole_text(batch, chosen, vocabulary.eos)
        elif self.target == "spans":
            tail = [] if vocabulary.eos is None else [torch.full_like(batch.input_ids[:, :1], vocabulary.eos)]
            labels = removed_text(batch.input_ids, chosen, None, batch.input_ids, tail)
        else:
            told, gap = batch.content.clone(), torch.zeros_like(chosen)
            told[:, 1:] |= batch.content[:, :-1]
            gap[:, 1:] = chosen[:, :-1]
            labels = move(torch.where(told, gap.long(), IGNORE), IGNORE)
        input_ids = move(batch.input_ids, vocabulary.pad)
        return Corrupted(input_ids, labels, move.attention_mask, carried(batch, move))
