"""BERT's corruption: [MASK] 80 %, a random token 10 %, unchanged 10 %; the target is the token itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import places, raw
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose, below, split, within
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption
from maskwise.masking.masked import IGNORE
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Bert(Corruption):
    """Shares ``mask``, ``random`` and the rest kept; one draw per token, or per unit (SpanBERT).

    Random tokens are drawn evenly from the tokenizer's real, non-special tokens. Only chosen positions are
    touched.
    Source: Devlin et al. 2019, section 3.1; per unit: Joshi et al. 2020 (SpanBERT), section 3.1.
    """

    mask: float = 0.8
    random: float = 0.1
    per: str = "token"

    def __post_init__(self) -> None:
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            raise MaskwiseError(
                "corruption bert: shares must be ≥ 0 and sum to at most 1", got=(self.mask, self.random)
            )
        if self.per not in ("token", "unit"):
            raise MaskwiseError("corruption bert: per", got=self.per, allowed="token, unit")

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        ids, at = raw(batch.input_ids), places(raw(chosen))
        original, (row, place) = ids.take(at), batch.rows_and_places(at)
        of_token = units.of_token if self.per == "unit" else None
        unit = place if of_token is None else raw(of_token.int()).take(at)
        draw = raw(keys.draw_at(Purpose.SHOW, row, unit))
        input_ids, labels = batch.input_ids.clone(), torch.full_like(batch.input_ids, IGNORE)
        raw(labels.view(-1))[at], raw(input_ids.view(-1))[at] = original, vocabulary.require_mask()
        # Most are masked now; the others get their token back, or a random one.
        other = places(~within(draw, self.mask))
        shown, draw = original.take(other), draw.take(other)
        if self.random:
            ordinary, some = raw(vocabulary.ordinary), places(within(draw, self.mask + self.random))
            if of_token is not None:
                here = other.take(some)
                number = below(
                    raw(keys.draw_at(Purpose.REPLACE, row.take(here), place.take(here))), len(ordinary)
                )
            else:  # what is left of the draw is as good as another
                number = split(draw.take(some), self.mask, self.mask + self.random, len(ordinary))
            shown[some] = ordinary.take(number)
        raw(input_ids.view(-1))[at.take(other)] = shown
        return Corrupted(input_ids, labels, batch.attention_mask, dict(batch.extras))


def mask_only() -> Bert:
    """Every chosen token becomes [MASK] (Wettig et al. 2023: at 40 % better than 80/10/10 at 15 %)."""
    return Bert(mask=1.0, random=0.0)
