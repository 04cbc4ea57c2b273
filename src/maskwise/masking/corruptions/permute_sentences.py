"""BART's sentence permutation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from maskwise.arrays import int32, numbers, places, raw, tensor
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
        ids = tensor(raw(batch.input_ids).take(raw(source)))
        labels = whole_text(batch, chosen, None if self.keeps_length else vocabulary.eos)
        if self.inner is None:
            return Corrupted(ids, labels, batch.attention_mask, dict(batch.extras))
        source = source % max(ids.shape[1], 1)
        layers = {name: layer.gather(1, source) for name, layer in batch.layers.items()}
        permuted = replace(batch, input_ids=ids, eligible=batch.eligible.gather(1, source), layers=layers)
        of_token = None if units.of_token is None else units.of_token.gather(1, source)
        there = replace(units, inside=units.inside.gather(1, source), of_token=of_token, settled=None)
        shown = self.inner.corrupt(permuted, chosen.gather(1, source), there, keys, vocabulary)
        return replace(shown, labels=labels)

    def _sources(self, batch: AnnotatedBatch, marked: Tensor, chosen: Tensor, keys: Keys) -> Tensor:
        """(B, L) int64: the place in the flattened batch whose token each place gets.

        All sentences of the batch are one list (S,), all content tokens another (N,): no row is longer than it is.
        """
        content, width = raw(batch.content), max(marked.shape[1], 1)
        at = places(content)
        # Stretches between sentences are sentences that never move.
        row, name = at // width, raw(marked).take(at).clip(min=-1)
        fresh = at >= 0
        fresh[1:] = (name[1:] != name[:-1]) | (at[1:] != at[:-1] + 1) | (row[1:] != row[:-1])
        begin, sentence = places(fresh), fresh.cumsum(0) - 1
        end = begin + 0
        end[:-1], end[-1:] = begin[1:], len(at)
        length, moves = end - begin, begin < 0
        moves[sentence.take(places(raw(chosen).take(at) & (name >= 0)))] = True
        # Moving sentences, in the order of their rows: as they stand, and as they are drawn.
        slot, row = places(moves), row.take(begin)
        new_row = fresh[: len(row)] | True
        new_row[1:] = row[1:] != row[:-1]
        number = numbers(len(row), row) - places(new_row).take(new_row.cumsum(0) - 1)
        row = row.take(slot)
        draw = raw(keys.draw_at(Purpose.PERMUTE, row, int32(number.take(slot))))
        order = numbers(len(length), length) + 0
        order[slot] = slot.take(((row << 32) + draw).argsort())
        moved, shift = length.take(order), begin * 0
        shift[order] = moved.cumsum(0) - moved
        shift -= begin
        source = numbers(marked.numel(), at) + 0
        source[at.take(numbers(len(at), at) + shift.take(sentence))] = at
        return tensor(source).view(marked.shape)


def permute_sentences(layer: str = "sentence", inner: Corruption | str | None = None) -> PermuteSentences:
    """Permute sentences; ``inner`` (a corruption, or its name) shows the chosen tokens."""
    from maskwise.masking.corruptions import corruption

    return PermuteSentences(layer, None if inner is None else corruption(inner))
