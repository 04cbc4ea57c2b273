"""Another token in place of each chosen one; no mask token is needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maskwise.keys import Keys, Purpose, below
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption, require_target
from maskwise.masking.corruptions.lengths import whole_text
from maskwise.masking.masked import IGNORE
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Replace(Corruption):
    """A random ordinary token, never the same one, for every chosen token.

    Targets: ``spans``: the original at chosen positions; ``full``: the whole row; ``detect``: 1 where
        replaced, 0 at the rest of the text (replaced-token detection without a generator).
    Source: the "random" part of BERT's 80/10/10; Clark et al. 2020 (ELECTRA) for detection.
    """

    target: str = "spans"

    shows_mask = False

    def __post_init__(self) -> None:
        require_target("replace", self.target, "spans", "full", "detect")

    def corrupt(
        self, batch: AnnotatedBatch, chosen: torch.Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        row, column = chosen.nonzero(as_tuple=True)
        original, ordinary = batch.input_ids[row, column], vocabulary.ordinary
        # A number among all ordinary tokens but the original: those from it on move up by one.
        draw = keys.draw_at(Purpose.REPLACE, row, batch.place[row, column])
        number = below(draw, max(1, len(ordinary) - 1))
        number += (number >= torch.searchsorted(ordinary, original)).long()
        input_ids = batch.input_ids.clone()
        input_ids[row, column] = ordinary[number.clamp_(max=len(ordinary) - 1)]
        if self.target == "full":
            labels = whole_text(batch, chosen, None)
        elif self.target == "detect":
            labels = torch.where(batch.content, chosen.long(), IGNORE)
        else:
            labels = torch.where(chosen, batch.input_ids, IGNORE)
        return Corrupted(input_ids, labels, batch.attention_mask, dict(batch.extras))
