"""BART's sentence permutation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption
from maskwise.masking.corruptions.lengths import whole_text
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class PermuteSentences(Corruption):
    """The sentences that hold a chosen token change places among each other; the others stay in theirs.

    So ``policy="sentence", ratio=1`` moves all (BART's), a smaller ratio some. ``inner`` is another
    corruption, which shows the chosen tokens of the permuted row (BART-large: ``infill``); without it they
    are shown as they are. Sentences are runs of one number ≥ 0 in ``layer``. The order is drawn by hash,
    evenly; it may be the old one.

    Targets: the whole row.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2.
    """

    layer: str = "sentence"
    inner: Corruption | None = None

    @property
    def keeps_length(self) -> bool:
        return self.inner is None or self.inner.keeps_length

    def check(self, vocabulary: Vocabulary) -> None:
        if self.inner is not None:
            self.inner.check(vocabulary)

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        marked = batch.layer(self.layer, policy="permute-sentences")
        source = self._sources(batch, marked, chosen, keys)
        take = {"input_ids": batch.input_ids, "eligible": batch.eligible, **batch.layers}
        moved = {name: value.gather(1, source) for name, value in take.items()}
        ids, eligible = moved.pop("input_ids"), moved.pop("eligible")
        permuted = replace(batch, input_ids=ids, eligible=eligible, layers=moved)
        eos = None if self.keeps_length else vocabulary.eos
        labels = whole_text(batch, chosen, eos)
        if self.inner is None:
            return Corrupted(permuted.input_ids, labels, batch.attention_mask, dict(batch.extras))
        of_token = None if units.of_token is None else units.of_token.gather(1, source)
        there = replace(units, inside=units.inside.gather(1, source), of_token=of_token)
        shown = self.inner.corrupt(permuted, chosen.gather(1, source), there, keys, vocabulary)
        return replace(shown, labels=labels)

    def _sources(self, batch: AnnotatedBatch, marked: Tensor, chosen: Tensor, keys: Keys) -> Tensor:
        """(B, L) int64: the column whose token each column gets."""
        content, device = batch.content, marked.device
        # Stretches between sentences are sentences that never move.
        runs = Units.runs(batch, marked.long() + 1)
        sentence, length = runs.index, torch.zeros_like(runs.length)
        length.scatter_add_(1, sentence, content.long())
        moves = torch.zeros_like(length).scatter_add_(1, sentence, (chosen & (marked >= 0)).long()) > 0
        draw = keys.draw(Purpose.PERMUTE, runs.number)
        number = runs.number.long()
        # Slots that may change, in order, then the others; moving sentences as drawn, then the others.
        slot = torch.where(moves, number, number + (1 << 33)).argsort(1)
        order = torch.where(moves, draw.long(), number + (1 << 33)).argsort(1)
        taken = torch.empty_like(slot).scatter_(1, slot, order)
        moved = length.gather(1, taken)
        start = torch.empty_like(length).scatter_(1, taken, moved.cumsum(1) - moved)
        old = length.cumsum(1) - length
        place = batch.rank
        new = place + (start - old).gather(1, sentence)
        column = torch.arange(content.shape[1], device=device).expand_as(content)
        # By new place, the column a token comes from; what is no content goes to a place behind the row.
        width = content.shape[1]
        by_place = column.new_zeros(len(content), width + 1)
        by_place.scatter_(1, torch.where(content, new, width), column)
        return torch.where(content, by_place.gather(1, place.clamp(min=0)), column)


def permute_sentences(layer: str = "sentence", inner: Corruption | str | None = None) -> PermuteSentences:
    """Permute sentences; ``inner`` (a corruption, or its name) shows the chosen tokens."""
    from maskwise.masking.corruptions import corruption

    return PermuteSentences(layer, None if inner is None else corruption(inner))
