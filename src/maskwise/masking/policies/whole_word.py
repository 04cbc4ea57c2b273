"""Whole words: all pieces of a word, or none."""

from __future__ import annotations

from dataclasses import dataclass

from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class WholeWord(Policy):
    """A unit is a run of tokens with one number in the layer ``word_ids``.

    Selects: words, all alike, whatever their number of pieces.
    Guarantee: never half a word. ``exact``: at most the budget, which favours short words in short rows;
        ``expected``: the budget on average, words nearly even; a word with an [UNK] piece is never chosen.
    Cost: a cumulative sum and two scatters a row; O(B·L), where the usual collator is O(B·L²).
    Source: the whole-word checkpoints of google-research/bert (May 2019).
    """

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.WORD

    def layers(self) -> tuple[str, ...]:
        return ("word_ids",)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return Units.runs(batch, batch.layer("word_ids", policy="whole-word"))
