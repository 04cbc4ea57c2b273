"""A random token before each chosen one, which stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose, below
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption, require_target
from maskwise.masking.corruptions.lengths import Compaction, carried, interleaved, present, whole_text
from maskwise.masking.masked import IGNORE
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Insert(Corruption):
    """Random ordinary tokens are inserted, one before each chosen token.

    Rows grow; ``cut`` is the most tokens that a row may then have, as many as the model has positions: text
    (never a special token) is cut off at its end. A number, not the width of the batch, so that a row does not
    depend on the rows beside it.

    Targets: ``full``: the whole row; ``detect``: 1 at inserted tokens, 0 at the others of the text.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), added-token detection.
    """

    target: str = "full"
    cut: int | None = None

    shows_mask = False

    def __post_init__(self) -> None:
        require_target("insert", self.target, "full", "detect")
        if self.cut is not None and self.cut < 1:
            raise MaskwiseError(
                "corruption insert: cut is a number of tokens", got=self.cut, allowed="≥ 1, or None"
            )

    @property
    def keeps_length(self) -> bool:
        return False

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        row, column = chosen.nonzero(as_tuple=True)
        ordinary, added = vocabulary.ordinary, batch.input_ids.clone()
        number = below(keys.draw_at(Purpose.REPLACE, row, batch.place[row, column]), len(ordinary))
        added[row, column] = ordinary[number]
        here = present(batch)
        keep = interleaved(chosen, here)
        if self.cut is not None:
            text = interleaved(chosen, batch.content)
            room_B1 = self.cut - (here & ~batch.content).sum(1, keepdim=True)
            keep &= ~text | (text.cumsum(1) <= room_B1)
        move = Compaction(keep)
        if self.target == "full":
            labels = whole_text(batch, chosen, vocabulary.eos)
        else:
            labels = move(interleaved(torch.ones_like(added), torch.where(batch.content, 0, IGNORE)), IGNORE)
        input_ids = move(interleaved(added, batch.input_ids), vocabulary.pad)
        return Corrupted(input_ids, labels, move.attention_mask, carried(batch, move, twice=True))
