"""Masking policies of random spans, as in SpanBERT and T5.

A span is a group of consecutive words or tokens that are masked together. A piece is a document in
a row; its *budget* is the number of tokens to mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maskwise.base.errors import MaskwiseError, finite_number, require_known, whole_number
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.line import Line, Names
from maskwise.masking.policies.base import Policy, UnitKind, When, layer_of
from maskwise.masking.segments import (
    changes,
    first_within,
    listed,
    offsets,
    owners,
    rank_within,
    sums_within,
)
from maskwise.masking.units import Units, budgets, find_runs

MOST_WORDS = 1000
"""The largest ``max_words``. Masking needs more time with a larger ``max_words``, because each draw
is compared with all possible lengths."""

_SURE = 1e6
"""The weight of noise spans. It is so large that ``bernoulli`` always selects them."""


@dataclass(frozen=True)
class Span(Policy):
    """Random spans of words or tokens, with truncated geometric lengths, as in SpanBERT.

    The words of a piece are arranged as a ring, and the ring is cut into spans of random lengths.
    The last span is shortened to fit. The beginning of the text is at a random position of the
    ring. Every position in a piece is therefore masked equally often with every budget. (Without a
    ring, spans at the ends of a piece would be shorter, and short units are selected more often.)
    One span may contain both the last and the first words of a piece. Special tokens, and words
    with an [UNK], stay visible inside a span.

    Selects: spans of equal weight. With p = .2 and max_words = 10, spans have 3.80 words on average
        before selection. With ``poisson=3.0``, lengths are drawn from a Poisson distribution
        from ``min_words`` to ``max_words``, as in BART. The corruption ``infill`` adds spans of
        length 0.
    Guarantee: words stay whole. ``exact`` never exceeds the budget. Therefore it favours short
        spans in short rows: in a text of 64 words with a ratio of 15 %, a span of 1 word is
        selected with probability .364, and a span of 10 words with probability .038. ``expected``
        meets the budget on average and selects all spans with nearly equal probability.
        ``bernoulli`` selects each span independently. Adjacent selected spans look like one span.
    Cost: the cost of ``whole-word``, plus one draw and ``max_words`` comparisons per word.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.1.
    """

    p: float = 0.2
    max_words: int = 10
    min_words: int = 1
    over: str = "word"
    poisson: float | None = None

    def __post_init__(self) -> None:
        finite_number("p of policy span", self.p)
        if not 0 < self.p < 1:
            raise MaskwiseError(
                "p of policy span is not valid", got=self.p, allowed="above 0 and below 1"
            )
        whole_number("max_words of policy span", self.max_words, least=1, most=MOST_WORDS)
        whole_number("min_words of policy span", self.min_words, least=1, most=self.max_words)
        require_known("value of over in policy span", self.over, ("word", "token"))
        if self.poisson is not None:
            name = f"poisson of policy span with max_words={self.max_words}"
            # With a larger mean, most lengths would be cut off.
            finite_number(name, self.poisson, least=1e-9, most=self.max_words)

    has_zero_weights = False

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.SPAN if self.over == "word" else UnitKind.TOKEN_SPAN

    @property
    def reads_text(self) -> bool:
        return self.over == "word"

    def layers(self) -> Names:
        return layer_of(self.over)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        if self.over == "token":
            start = line.content_at
            length = np.ones_like(start)
            barred = np.flatnonzero(~line.eligible.take(start))
        else:
            start, length, barred = find_runs(line, line.layer("word_ids"))
        counts_P = line.count_at(start)
        # ``place`` is the position of each word in the rings of all pieces, laid end to end. Word n
        # of a piece has the position (n + opening) mod (words in the piece) in its ring.
        opening = draws.per_piece(Purpose.PARTITION) * np.maximum(counts_P, 1)
        place = rank_within(counts_P) + np.repeat(opening.astype(np.int64), counts_P)
        around = np.repeat(counts_P, counts_P)
        place -= around * (place >= around)
        place += np.repeat(offsets(counts_P), counts_P)
        span_W = self._ring(draws, counts_P).take(place)
        # The spans of all pieces are numbered consecutively, so ``piece`` has one item per span.
        piece = np.zeros(span_W.max(initial=-1) + 1, np.int64)
        piece[span_W] = owners(counts_P)
        spans_P = np.bincount(piece, minlength=len(counts_P))
        number = rank_within(spans_P)
        if len(barred):
            start = np.delete(start, barred)
            length = np.delete(length, barred)
            span_W = np.delete(span_W, barred)
        unit = np.repeat(span_W, length)
        units = Units.of_tokens(line, listed(start, length), unit, piece, number)
        if len(barred):
            # All words of a span may have an [UNK]. Such a span is empty now.
            units = units.kept(units.length > 0)
        return units

    def lengths(self) -> Array:
        """(max_words,) float64: the probabilities that a span has 1, 2, … words."""
        size = np.arange(
            1,
            self.max_words + 1,
            dtype=np.float64,
        )
        if self.poisson is None:
            share = (1 - self.p) ** (size - 1)
        else:
            factorials = np.array([math.lgamma(n + 1) for n in size])
            share = np.exp(size * math.log(self.poisson) - factorials)
        share[size < self.min_words] = 0.0
        return share / share.sum()

    def _ring(self, draws: Draws, counts_P: Array) -> Array:
        """(W,) int64: the number of the span at each of the W positions in the rings."""
        number = rank_within(counts_P)
        draw = draws.draw_each(Purpose.PARTITION, counts_P, number)
        length = np.ones(len(draw), np.int64)
        # One comparison per length takes a third of the time of ``searchsorted``.
        for edge in _edges(self):
            length += draw >= edge
        # One length per word is drawn, which is more than a piece needs. Span n ends at the sum of
        # the first n lengths. The last span ends at the end of the ring.
        end = sums_within(length, counts_P)
        inner = end < np.repeat(counts_P, counts_P)
        next_begin = end + np.repeat(offsets(counts_P), counts_P)
        begins = number == 0
        begins[next_begin[inner]] = True
        return begins.cumsum() - 1


@lru_cache(maxsize=32)
def _edges(policy: Span) -> list[int]:
    """The max_words − 1 thresholds between lengths, as int32 draws.

    If a draw is at or above threshold n, the span has more than n words.
    """
    share = np.minimum(policy.lengths().cumsum()[:-1], 1 - 2.0**-32)
    cells = (share * 2.0**32).round().astype(np.int64)
    return (cells - (1 << 31)).tolist()


@dataclass(frozen=True)
class T5Span(Policy):
    """T5's noise spans: random spans of tokens, with gaps between them.

    If n tokens of a piece shall be masked, the piece has s = round(n / mean_span) noise spans and s
    gaps. The n tokens are split uniformly at random into s spans of at least one token, and the
    other tokens into s gaps. Spans and gaps alternate in a ring, and the beginning of the text is
    at a random position of the ring. In the published code, the text always begins with a gap and
    ends with a noise span. Here, every position is masked equally often, but one span may be split
    into a span at the beginning and a span at the end of the text. Gaps are units of weight 0, so
    exactly the noise spans are selected.

    Selects: spans of ``mean_span`` tokens on average. The number n is computed from ``ratio``, or
        from the masker's ratio if ``ratio`` is None.
    Guarantee: exactly the budget in all three budget modes. There is a gap between any two spans.
    Cost: two sorts; O(B·L).
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), section 3.1.4; ``random_spans_noise_mask`` in
        its code.
    """

    mean_span: float = 3.0
    ratio: float | None = None

    unit_kind = UnitKind.TOKEN_SPAN
    has_zero_weights = False
    needs_ratio = True
    scales_ratio = True

    def __post_init__(self) -> None:
        finite_number("mean_span of policy t5-span", self.mean_span, least=1)
        if self.ratio is not None:
            finite_number("ratio of policy t5-span", self.ratio, least=0, most=1)

    @property
    def has_ratio(self) -> bool:
        return self.ratio is not None

    def ratios(self, ratio_P: Array, draws: Draws, when: When) -> Array:
        return ratio_P if self.ratio is None else np.full_like(ratio_P, self.ratio)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        return noise_units(line, draws, when, self.mean_span)


def noise_units(line: Line, draws: Draws, when: When, mean_span: float) -> Units:
    """Cut pieces into noise spans, which use the whole budget, and gaps, which have weight 0.

    Args:
        line: the line to cut.
        draws: the random draws for the pieces.
        when: the point in training; ``when.ratio`` must be set.
        mean_span: the mean length of the noise spans, in tokens.
    """
    assert when.ratio is not None, "the masker sets the ratio"
    total_P = line.eligible_P
    # ``select`` computes the same budget, so the noise spans use it completely.
    noise_P = budgets(total_P, when.ratio, draws, when.min_targets)
    # Each span and each gap need at least one token.
    spans_P = np.round(noise_P / mean_span)
    gaps_P = total_P - noise_P
    most_P = np.minimum(noise_P, gaps_P)
    spans_P = np.maximum(np.minimum(spans_P, most_P), 1).astype(np.int64)
    noise_end = _ends(draws, noise_P, spans_P, np.zeros_like(noise_P))
    # The noise uses the draws 0 to noise − 2, so the gaps use draws from noise − 1 on.
    gap_end = _ends(draws, gaps_P, spans_P, np.maximum(noise_P - 1, 0))
    # The order in the ring is gap 0, noise 0, gap 1, noise 1, and so on. Row s of ``ends`` has the
    # ends of gap s and of noise s, in tokens from the start of the ring.
    piece_S = owners(spans_P)
    noise_before = np.where(rank_within(spans_P) > 0, np.append(0, noise_end[:-1]), 0)
    ends = np.stack((gap_end + noise_before, gap_end + noise_end), 1)
    opening_P = draws.per_piece(Purpose.PARTITION)
    start_P = (opening_P * total_P).astype(np.int64)
    start_S1 = start_P.take(piece_S)[:, None]
    # Shift every border so that the text begins at 0. A border at this beginning gets the position
    # ``total``, so each piece needs total + 1 positions.
    border = ends - start_S1
    border += total_P.take(piece_S)[:, None] * (border <= 0)
    places_P = total_P + 1
    base_P = offsets(places_P)
    begins = np.zeros(int(places_P.sum()), bool)
    begins[border + base_P.take(piece_S)[:, None]] = True
    part = begins.cumsum()
    token = rank_within(total_P) + np.repeat(base_P, total_P)
    number = part.take(token) - np.repeat(part.take(base_P), total_P)
    # Gaps and noise alternate, so a token is noise if an odd number of borders precedes it.
    passed = (ends <= start_S1).sum(1)
    passed_P = np.bincount(piece_S, passed, len(spans_P)).astype(np.int64)
    noisy = (np.repeat(passed_P, total_P) + number) & 1 > 0
    # Borders do not show whether a piece is all noise or all gap.
    noisy &= np.repeat(noise_P > 0, total_P)
    noisy |= np.repeat(gaps_P == 0, total_P)
    piece = owners(total_P)
    opens = changes(number, piece)
    first = np.flatnonzero(opens)
    return Units.of_tokens(
        line,
        line.eligible_at,
        opens.cumsum() - 1,
        piece.take(first),
        number.take(first),
        noisy.take(first) * _SURE,
    )


def _ends(draws: Draws, total_P: Array, parts_P: Array, before_P: Array) -> Array:
    """Split each piece into parts, uniformly at random, and return the ends of the parts.

    Each of the positions 1 to total − 1 of a piece gets a draw. At the positions of the parts − 1
    smallest draws, a part ends. All splits are therefore equally likely. The last part ends at
    ``total_P``.

    Args:
        draws: the random draws for the pieces.
        total_P: (P,) int64, the number of tokens to split in each piece.
        parts_P: (P,) int64, the number of parts of each piece.
        before_P: (P,) int64, the index of the first draw of each piece.

    Returns:
        (Σ parts,) int64, the ends of the parts of all pieces.
    """
    inner_P = np.maximum(total_P - 1, 0)
    piece = owners(inner_P)
    place = rank_within(inner_P)
    index = place + np.repeat(before_P, inner_P)
    draw = draws.draw(Purpose.PARTITION, piece, index)
    ending = first_within(piece, draw, parts_P - 1)
    end = np.repeat(total_P, parts_P)
    inner = np.ones(len(end), bool)
    inner[parts_P.cumsum() - 1] = False
    end[inner] = place[ending] + 1
    return end
