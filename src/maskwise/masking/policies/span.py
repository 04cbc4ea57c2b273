"""Random spans of whole words: a random partition of the row, drawn anew every epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from maskwise.arrays import Array, int32, integers, minimum, numbers, raw, running_count, tensor
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, layer_of
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class Span(Policy):
    """Units are spans of words (or tokens, by ``over``), lengths Geometric(p), truncated and renormalised.

    Spans are drawn one after the other around a ring of the row's words, the last one cut to fit, and the
    ring is opened at a random place. So every place in a row is masked equally often in every budget mode
    (spans that begin or end at the ends of the row would be shorter, and short units are favoured), and the
    first and the last words may be one unit. A special token or a word with an [UNK] inside a span stays as
    it is.

    Selects: spans, all alike; p = .2 and max_words = 10 *offer* a mean of 3.80 words. ``poisson=3.0`` takes
        Poisson lengths of at least one word instead (BART; the corruption ``infill`` adds the empty ones).
    Guarantee: never half a word. ``exact``: at most the budget, which favours short spans in short rows (at
        64 words and 15 %: length 1 .364, length 10 .038); ``expected``: the budget on average, spans nearly
        even, so that *chosen* lengths are nearly those offered; ``bernoulli``: each by itself. Chosen
        neighbours make one longer mask.
    Cost: that of whole words, one draw for each word and two gathers.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.1.
    """

    p: float = 0.2
    max_words: int = 10
    min_words: int = 1
    over: str = "word"
    poisson: float | None = None

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.SPAN if self.over == "word" else UnitKind.TOKEN_SPAN

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise MaskwiseError("policy span: p, the chance to end", got=self.p, allowed="between 0 and 1")
        if not 1 <= self.min_words <= self.max_words:
            got = (self.min_words, self.max_words)
            raise MaskwiseError("policy span: lengths", got=got, allowed="1 ≤ min_words ≤ max_words")
        if self.over not in ("word", "token"):
            raise MaskwiseError("policy span: over", got=self.over, allowed="word, token")
        if self.poisson is not None and self.poisson <= 0:
            raise MaskwiseError("policy span: poisson is a mean length", got=self.poisson, allowed="above 0")

    def layers(self) -> tuple[str, ...]:
        return layer_of(self.over)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        if self.over == "token":
            word, allowed = batch.rank.clamp(min=0), batch.eligible
        else:
            words = Units.runs(batch, batch.layer("word_ids", policy="span"))
            assert words.of_token is not None
            word, allowed = words.of_token, words.inside
        if not word.numel():
            return Units.tokens(batch)
        number = raw(word)
        count_B1 = integers(number[:, -1:]) + 1
        ring = self._ring(keys, count_B1)
        opening_B1 = integers(raw(keys.row_uniform(Purpose.PARTITION))[:, None] * count_B1)
        number = number + opening_B1
        number -= count_B1 * (number >= count_B1)
        number += numbers(len(ring), ring)[:, None] * ring.shape[1]
        return Units(allowed, tensor(ring.reshape(-1).take(number)))

    def lengths(self) -> Tensor:
        """(max_words,) float64: how often spans of 1, 2, … words are offered, the one cut to fit apart."""
        size = torch.arange(1, self.max_words + 1, dtype=torch.float64)
        if self.poisson is None:
            share = (1 - self.p) ** (size - 1)
        else:
            share = (size * math.log(self.poisson) - torch.lgamma(size + 1)).exp()
        share = torch.where(size < self.min_words, 0.0, share)
        return share / share.sum()

    def _ring(self, keys: Keys, count_B1: Array) -> Array:
        """(B, W) int32: the number of the span that each of a ring's ``count_B1`` words is in; rises from 0."""
        most, (edges, mean) = int(count_B1.max()), _edges(self)
        for spans in (min(int(1.3 * most / mean) + 16, most), most):  # mostly a third of the words are enough
            draw = raw(keys.draw(Purpose.PARTITION, tensor(int32(numbers(spans, count_B1)))))
            length = draw * 0 + 1
            for edge in edges:  # one pass an edge: a third of the time of a search
                length += draw >= edge
            end = length.cumsum(1)
            if bool((end[:, -1:] >= count_B1).all()):
                break
        row = numbers(len(end), end)[:, None] * (most + 1)
        border = torch.zeros(len(end), most + 1, dtype=torch.bool, device=tensor(end).device)
        raw(border.view(-1))[minimum(end, count_B1) + row] = True
        return running_count(raw(border)[:, :most])


@lru_cache(maxsize=32)
def _edges(policy: Span) -> tuple[list[int], float]:
    """(max_words − 1) edges, where int32 draws change from one length to the next; and the mean length."""
    mean = float((policy.lengths() * torch.arange(1, policy.max_words + 1)).sum())
    below = policy.lengths().cumsum(0)[:-1].clamp(max=1 - 2.0**-32)
    return ((below * 2.0**32).round().long() - (1 << 31)).tolist(), mean
