"""Corruptions that leave every token in its place: BERT's, masks alone, and random replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose, below, split, within
from maskwise.masking.batch import IGNORE, AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption, labels_in_place, require_target
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Bert(Corruption):
    """[MASK] with the share ``mask``, a random token with ``random``, else unchanged; the target is the token itself.

    One draw per token, or per unit (SpanBERT). Random tokens are drawn evenly from the tokenizer's real, non-special
    tokens. Only chosen positions are touched.
    Source: Devlin et al. 2019, section 3.1; per unit: Joshi et al. 2020 (SpanBERT), section 3.1.
    """

    mask: float = 0.8
    random: float = 0.1
    per: str = "token"

    def __post_init__(self) -> None:
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            got = (self.mask, self.random)
            raise MaskwiseError("corruption bert: shares must be ≥ 0 and sum to at most 1", got=got)
        if self.per not in ("token", "unit"):
            raise MaskwiseError("corruption bert: per", got=self.per, allowed="token, unit")

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        at = np.flatnonzero(chosen)
        if by_unit := self.per == "unit" and not units.by_token:
            number = np.zeros(len(batch.input_ids), np.int32)
            number[units.tokens] = units.number[units.unit]
            draw = keys.draw_each(Purpose.SHOW, batch.count_at(at), number[at])
        else:
            draw = batch.draw(keys, Purpose.SHOW, at)
        original = batch.input_ids[at]
        input_ids, labels = batch.input_ids.copy(), np.full_like(batch.input_ids, IGNORE)
        labels[at], input_ids[at] = original, vocabulary.require_mask()
        # Most are masked now; the others get their token back, or a random one.
        other = np.flatnonzero(~within(draw, self.mask))
        shown, draw = original[other], draw[other]
        if self.random:
            ordinary, drawn = vocabulary.ordinary, np.flatnonzero(within(draw, self.mask + self.random))
            if by_unit:
                number = below(batch.draw(keys, Purpose.REPLACE, at[other[drawn]]), len(ordinary))
            else:  # what is left of the draw is as good as another
                number = split(draw[drawn], self.mask, self.mask + self.random, len(ordinary))
            shown[drawn] = ordinary[number]
        input_ids[at[other]] = shown
        return Corrupted(input_ids, labels)


def mask_only() -> Bert:
    """Every chosen token becomes [MASK] (Wettig et al. 2023: at 40 % better than 80/10/10 at 15 %)."""
    return Bert(mask=1.0, random=0.0)


@dataclass(frozen=True)
class Replace(Corruption):
    """A random ordinary token, never the same one, for every chosen token; no mask token is needed.

    Targets: ``spans``: the original at chosen positions; ``full``: the whole piece; ``detect``: 1 where
        replaced, 0 at the rest of the text (replaced-token detection without a generator).
    Source: the "random" part of BERT's 80/10/10; Clark et al. 2020 (ELECTRA) for detection.
    """

    target: str = "spans"

    shows_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_target("replace", self.target, "spans", "full", "detect")

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        at = np.flatnonzero(chosen)
        original, ordinary = batch.input_ids[at], vocabulary.ordinary
        # A number among all ordinary tokens but the original: those from it on move up by one.
        number = below(batch.draw(keys, Purpose.REPLACE, at), max(1, len(ordinary) - 1))
        number += number >= np.searchsorted(ordinary, original)
        input_ids = batch.input_ids.copy()
        input_ids[at] = ordinary.take(number, mode="clip")
        return Corrupted(input_ids, labels_in_place(batch, chosen, self.target))
