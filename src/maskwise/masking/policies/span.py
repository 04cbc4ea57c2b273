"""Random spans of whole words: a random partition of the row, drawn anew every epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, layer_of
from maskwise.masking.units import Units


@dataclass(frozen=True)
class Span(Policy):
    """Units are spans of words (or tokens, by ``over``), lengths Geometric(p), truncated and renormalised.

    Selects: spans, all alike. The partition is a renewal process that began long before the row (the first
        span is what is left of one), so no position is favoured; spans end at the row's ends and at words
        with an [UNK]. p = .2 and max_words = 10 *offer* a mean of 3.80 words away from these ends.
        ``poisson=3.0`` takes Poisson lengths of at least one word instead (BART; the corruption ``infill``
        adds the empty ones).
    Guarantee: never half a word. ``exact``: at most the budget, which favours short spans in short rows (at
        64 tokens and 15 %: length 1 .371, length 10 .039); ``expected``: the budget on average and spans
        nearly even, so *chosen* lengths are as offered; ``bernoulli``: each by itself. Chosen neighbours make
        one longer mask.
    Cost: that of whole words twice, and one draw for each word.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.1.
    """

    p: float = 0.2
    max_words: int = 10
    min_words: int = 1
    over: str = "word"
    poisson: float | None = None

    units_name = "span"

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
            word, allowed = batch.place.long().clamp_(min=0), batch.eligible
            count = int(word.max()) + 1 if word.numel() else 0
        else:
            words = Units.runs(batch, batch.layer("word_ids", policy="span"))
            assert words.of_token is not None
            word, allowed, count = words.of_token, words.spread(words.length > 0), words.length.shape[1]
        if not count:
            return Units.tokens(batch)
        number = torch.arange(count, dtype=torch.int32, device=word.device)
        span = self._span_of_word(keys, number).gather(1, word)
        return Units.runs(batch, span.masked_fill_(~allowed, -1))

    def lengths(self) -> Tensor:
        """(max_words,) float64: how often spans of 1, 2, … words are offered, those cut by an end apart."""
        size = torch.arange(1, self.max_words + 1, dtype=torch.float64)
        if self.poisson is None:
            share = (1 - self.p) ** (size - 1)
        else:
            share = (size * math.log(self.poisson) - torch.lgamma(size + 1)).exp()
        share = torch.where(size < self.min_words, 0.0, share)
        return share / share.sum()

    def _span_of_word(self, keys: Keys, number_W: Tensor) -> Tensor:
        """(B, W) int64: the number of the span that each word is in; rises from 0."""
        first, later = _edges(self)
        draw, count = keys.draw(Purpose.PARTITION, number_W), len(number_W)
        length = torch.bucketize(draw, later.to(draw.device), right=True).add_(1)
        length[:, 0] = torch.bucketize(draw[:, 0].contiguous(), first.to(draw.device), right=True) + 1
        ends = length.cumsum(1).clamp_(max=count)
        border = torch.zeros(len(draw), count + 1, dtype=torch.int64, device=draw.device)
        return border.scatter_(1, ends, 1).cumsum(1)


@lru_cache(maxsize=32)
def _edges(policy: Span) -> tuple[Tensor, Tensor]:
    """Where int32 draws change from one length to the next: (max_words − 1,), for the first span and others.

    The first word of a row is a random word of a long text: what is left of its span has r words with a
    probability proportional to P(length ≥ r).
    """
    share = policy.lengths()
    left = share.flip(0).cumsum(0).flip(0)
    return _as_edges(left / left.sum()), _as_edges(share)


def _as_edges(share: Tensor) -> Tensor:
    below = share.cumsum(0)[:-1].clamp(max=1 - 2.0**-32)
    return ((below * 2.0**32).round().long() - (1 << 31)).to(torch.int32)
