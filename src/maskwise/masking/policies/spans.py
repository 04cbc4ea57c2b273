"""Random spans: SpanBERT's, T5's, the end of a text, and UL2's mixture of these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.keys import Array, Keys, Purpose, below
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, UnitKind, layer_of
from maskwise.masking.select import require_known
from maskwise.masking.units import Units, find_runs
from maskwise.segments import changes, first_within, listed, rank_within, sums_within

MOST_WORDS = 1000
"""The longest span that may be asked for: a table of all lengths is gone through for each draw."""

_SURE = 1e6  # the weight of noise, so that ``bernoulli`` takes it all


@dataclass(frozen=True)
class Span(Policy):
    """Random spans of words (or tokens, by ``over``), lengths Geometric(p), truncated and
    renormalised.

    Spans are drawn one after the other around a ring of the piece's words, the last one cut to fit,
    and the ring is opened at a random place. So every place in a piece is masked equally often in
    every budget mode (spans that begin or end at the ends of the piece would be shorter, and short
    units are favoured), and the first and the last words may be one unit. A special token or a word
    with an [UNK] inside a span stays as it is.

    Selects: spans, all alike; p = .2 and max_words = 10 *offer* a mean of 3.80 words.
        ``poisson=3.0`` takes Poisson lengths of at least one word instead (BART; the corruption
        ``infill`` adds the empty ones).
    Guarantee: never half a word. ``exact``: at most the budget, which favours short spans in short
        rows (at 64 words and 15 %: length 1 .364, length 10 .038); ``expected``: the budget on
        average, spans nearly even, so that *chosen* lengths are nearly those offered;
        ``bernoulli``: each by itself. Chosen neighbours make one longer mask.
    Cost: that of whole words, one draw for each word and ``max_words`` comparisons of it.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.1.
    """

    p: float = 0.2
    max_words: int = 10
    min_words: int = 1
    over: str = "word"
    poisson: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise MaskwiseError("p of policy span", got=self.p, allowed="between 0 and 1")
        whole_number("max_words of policy span", self.max_words, least=1, most=MOST_WORDS)
        whole_number("min_words of policy span", self.min_words, least=1, most=self.max_words)
        require_known("over of policy span", self.over, ("word", "token"))
        if self.poisson is not None:
            finite_number("poisson of policy span", self.poisson, least=1e-9)

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.SPAN if self.over == "word" else UnitKind.TOKEN_SPAN

    @property
    def reads_text(self) -> bool:
        return self.over == "word"

    def layers(self) -> tuple[str, ...]:
        return layer_of(self.over)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        pieces = np.arange(len(batch.begin))
        if self.over == "token":
            start = np.flatnonzero(batch.content)
            length = np.ones_like(start)
            barred = np.flatnonzero(~batch.eligible.take(start))
        else:
            start, length, barred = find_runs(batch, batch.layer("word_ids"))
        counts_P = batch.count_at(start)
        # The word of number n is number n + opening around the ring.
        opening_P = (keys.per_piece(Purpose.PARTITION) * np.maximum(counts_P, 1)).astype(np.int64)
        place = rank_within(counts_P) + np.repeat(opening_P, counts_P)
        around = np.repeat(counts_P, counts_P)
        place -= around * (place >= around)
        place += np.repeat(counts_P.cumsum() - counts_P, counts_P)
        span_W = self._ring(keys, counts_P).take(place)
        # Spans of all pieces are numbered consecutively.
        of_span = np.zeros(span_W.max(initial=-1) + 1, np.int64)
        of_span[span_W] = np.repeat(pieces, counts_P)
        number = rank_within(np.bincount(of_span, minlength=len(pieces))).astype(np.int32)
        # A word with an [UNK] is in no span; a span may lose all of its words.
        kept = np.ones(len(start), bool)
        kept[barred] = False
        start, length, span_W = start[kept], length[kept], span_W[kept]
        units = Units.of_tokens(
            batch, listed(start, length), np.repeat(span_W, length), of_span, number
        )
        return units.kept(units.length > 0) if len(barred) else units

    def lengths(self) -> Array:
        """(max_words,) float64: how often spans of 1, 2, … words are drawn, uncut."""
        size = np.arange(1, self.max_words + 1, dtype=np.float64)
        if self.poisson is None:
            share = (1 - self.p) ** (size - 1)
        else:
            factorials = np.array([math.lgamma(n + 1) for n in size])
            share = np.exp(size * math.log(self.poisson) - factorials)
        share[size < self.min_words] = 0.0
        return share / share.sum()

    def _ring(self, keys: Keys, counts_P: Array) -> Array:
        """(W,) int64: the span of each of the W words around the rings of all pieces."""
        number = rank_within(counts_P)
        draw = keys.draw_each(Purpose.PARTITION, counts_P, number.astype(np.int32))
        length = np.ones(len(draw), np.int64)
        for edge in _edges(self):  # one pass per edge: a third of the time of a search
            length += draw >= edge
        # Span n of a piece ends after this many words, at the latest with the piece.
        end = sums_within(length, counts_P)
        begins = number == 0
        inner = end < np.repeat(counts_P, counts_P)
        begins[(end + np.repeat(counts_P.cumsum() - counts_P, counts_P))[inner]] = True
        return begins.cumsum() - 1


@lru_cache(maxsize=32)
def _edges(policy: Span) -> list[int]:
    """(max_words − 1) edges, where int32 draws change from one length to the next."""
    share = np.minimum(policy.lengths().cumsum()[:-1], 1 - 2.0**-32)
    return ((share * 2.0**32).round().astype(np.int64) - (1 << 31)).tolist()


class _Noise(Policy):
    """Base of policies that cut noise and gaps by the budget."""

    ratio: float | None

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return ratio_P if self.ratio is None else np.full_like(ratio_P, self.ratio)


@dataclass(frozen=True)
class T5Span(_Noise):
    """T5's noise spans: how many and how long is settled first, then where; two of them never
    touch.

    n noise tokens make round(n / mean_span) spans; the n tokens, and the rest of the piece, are cut
    evenly at random into that many parts of at least one token, which alternate around a ring; the
    ring is opened at a random place. The published code always opens it before a gap, so that rows
    begin unmasked and end masked; here every position is masked equally often, at the price of one
    span in two parts in some pieces. Gaps are units of weight 0: partition and selection are one
    joint draw.

    Selects: spans of ``mean_span`` tokens on average. n comes from the ratio in force, or from
        ``ratio`` if given.
    Guarantee: the budget to the token in all three modes; gaps between spans (but where the ring is
        opened).
    Cost: two sorts; O(B·L).
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), section 3.1.4; ``random_spans_noise_mask`` in
        its code.
    """

    mean_span: float = 3.0
    ratio: float | None = None

    def __post_init__(self) -> None:
        finite_number("mean_span of policy t5-span", self.mean_span, least=1)
        if self.ratio is not None:
            finite_number("ratio of policy t5-span", self.ratio, least=0, most=1)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_P = noise_tokens(batch, keys, moment)
        return noise_units(batch, keys, noise_P, np.round(noise_P / self.mean_span))


@dataclass(frozen=True)
class Suffix(_Noise):
    """A prefix language model's task: one unit, as many tokens as the budget has, at the end of the
    piece.

    Selects: always the same tokens of a piece, given the ratio; a ratio such as ``uniform(0.1,
        0.9)`` varies it.
    Guarantee: the budget to the token in all three modes.
    Cost: that of ``t5-span``.
    Source: the prefix LM of Raffel et al. 2020, section 3.2.3; the S-denoiser of UL2 (arXiv
        2205.05131), section 3.1.
    """

    ratio: float | None = None

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_P = noise_tokens(batch, keys, moment)
        return noise_units(batch, keys, noise_P, np.ones_like(noise_P), at_end_P=noise_P >= 0)


R, S, X = ((3, 0.15), (8, 0.15)), ((0, 0.25),), ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))


@dataclass(frozen=True)
class Ul2(Policy):
    """Each piece draws a denoiser (mean span, ratio) evenly by hash; mean span 0 is the end of the
    text (S-denoiser).

    It brings its own ratios, which replace the masker's. The corruption ``ul2`` puts the mode
    tokens.

    Selects: T5 spans: regular (3 or 8 tokens, 15 %), the last quarter, extreme (50 %, or 64
        tokens).
    Guarantee: the piece's budget to the token in all three modes.
    Cost: that of ``t5-span``: all denoisers are one draw.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), section 3.1.2 and its table of seven denoisers.
    """

    denoisers: tuple[tuple[float, float], ...] = R + S + X

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def __post_init__(self) -> None:
        table = np.array(self.denoisers, np.float64)
        mean, ratio = table.reshape(-1, 2).T
        if not table.size or (mean < (mean > 0)).any() or ((ratio < 0) | (ratio > 1)).any():
            allowed = "pairs of mean span (≥ 1, or 0 for the end of the row) and ratio"
            raise MaskwiseError("policy ul2: denoisers", got=self.denoisers, allowed=allowed)

    def _drawn(self, keys: Keys, pieces: int) -> tuple[Array, Array]:
        """Mean spans and ratios of the pieces, both (P,) float64."""
        # Not the piece's draw for ``mixture``, of which this policy may be a member.
        draw = keys.draw(Purpose.MIXTURE, np.arange(pieces), np.full(pieces, -1, np.int32))
        table = np.array(self.denoisers, np.float64)
        mean_P, ratio_P = table.take(below(draw, len(table)), axis=0).T
        return mean_P, ratio_P

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return self._drawn(keys, len(ratio_P))[1].copy()

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        mean_P, _ = self._drawn(keys, len(batch.begin))
        noise_P = noise_tokens(batch, keys, moment)
        spans_P = np.round(np.where(mean_P > 0, noise_P / np.maximum(mean_P, 1), 1.0))
        return noise_units(batch, keys, noise_P, spans_P, at_end_P=mean_P == 0)


def noise_tokens(batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Array:
    """(P,) int64: the budget as ``select`` rounds it, so that the noise uses it to the token."""
    assert moment.ratio is not None, "the masker gives ratios"
    wanted_P = batch.eligible_P * moment.ratio
    rounded_P = (wanted_P + keys.per_piece(Purpose.ROUND)).astype(np.int64)
    least_P = np.minimum(batch.eligible_P, moment.min_targets) * (wanted_P >= 0.5)
    return np.maximum(np.minimum(rounded_P, batch.eligible_P), least_P)


def noise_units(
    batch: AnnotatedBatch,
    keys: Keys,
    noise_P: Array,
    spans_P: Array,
    *,
    at_end_P: Array | None = None,
) -> Units:
    """Units with ``noise_P`` tokens in ``spans_P`` spans, and the gaps between them with weight 0.

    Args:
        noise_P, spans_P: (P,); spans are limited to 1 … what noise and gaps allow.
        at_end_P: (P,) bool, pieces that end with noise: their ring is opened before its first gap.
    """
    total_P = batch.eligible_P
    gaps_P = total_P - noise_P
    spans_P = np.maximum(np.minimum(np.minimum(spans_P, noise_P), gaps_P), 1).astype(np.int64)
    inner_P = np.maximum(noise_P - 1, 0)  # the gaps' draws follow those of the noise
    noise_end = _ends(keys, noise_P, spans_P, 0 * noise_P)
    gap_end = _ends(keys, gaps_P, spans_P, inner_P)
    # Around the ring: gap 0, noise 0, gap 1, noise 1, …; each part ends where the next begins. All
    # parts of a piece are adjacent in one list, a gap and its noise in turn.
    of_span = np.repeat(np.arange(len(spans_P)), spans_P)
    noise_before = np.where(rank_within(spans_P) > 0, np.append(0, noise_end[:-1]), 0)
    ends = np.stack((gap_end + noise_before, gap_end + noise_end), 1)
    opening_P = keys.per_piece(Purpose.PARTITION)
    if at_end_P is not None:
        opening_P = opening_P * ~at_end_P
    start_P = (opening_P * total_P).astype(np.int64)
    # From the opening on, parts begin at these positions of the piece; none is at ``total``.
    border = ends - start_P.take(of_span)[:, None]
    border += total_P.take(of_span)[:, None] * (border <= 0)
    places_P = total_P + 1
    base_P = places_P.cumsum() - places_P
    begins = np.zeros(int(places_P.sum()), bool)
    begins[border + base_P.take(of_span)[:, None]] = True
    part = begins.cumsum()
    token = rank_within(total_P) + np.repeat(base_P, total_P)
    number = part.take(token) - np.repeat(part.take(base_P), total_P)
    # Parts alternate: the ring is opened in a gap or in noise, and every border changes sides.
    passed = (ends <= start_P.take(of_span)[:, None]).sum(1)
    noisy_P = np.bincount(of_span, passed, len(spans_P)).astype(np.int64)
    noisy = (np.repeat(noisy_P, total_P) + number) & 1 > 0
    noisy &= np.repeat(noise_P > 0, total_P)
    noisy |= np.repeat(gaps_P == 0, total_P)
    piece = np.repeat(np.arange(len(total_P)), total_P)
    opens = changes(number, piece)
    first = np.flatnonzero(opens)
    return Units.of_tokens(
        batch,
        batch.eligible_at,
        opens.cumsum() - 1,
        piece.take(first),
        number.take(first).astype(np.int32),
        noisy.take(first) * _SURE,
    )


def _ends(keys: Keys, total_P: Array, parts_P: Array, before_P: Array) -> Array:
    """(Σ parts,): where parts end, if ``total_P`` tokens are cut into ``parts_P`` parts evenly.

    The positions 1 … total − 1 of a piece have a draw each, after ``before_P`` others; the smallest
    parts − 1 of them end parts, so all choices are equally likely. The last ends with the total.
    """
    inner_P = np.maximum(total_P - 1, 0)
    piece, place = np.repeat(np.arange(len(inner_P)), inner_P), rank_within(inner_P)
    index = (place + np.repeat(before_P, inner_P)).astype(np.int32)
    ending = first_within(piece, keys.draw(Purpose.PARTITION, piece, index), parts_P - 1)
    end = np.repeat(total_P, parts_P)
    inner = np.ones(len(end), bool)
    inner[parts_P.cumsum() - 1] = False
    end[inner] = place[ending] + 1
    return end
