"""Spans that are drawn: SpanBERT's, T5's, the end of a text, and UL2's mixture of these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose, below
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, UnitKind, layer_of
from maskwise.masking.select import require_one_of
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
            raise MaskwiseError(
                "policy span: p, the chance to end", got=self.p, allowed="between 0 and 1"
            )
        if not 1 <= self.min_words <= self.max_words <= MOST_WORDS:
            got, allowed = (
                (self.min_words, self.max_words),
                f"1 ≤ min_words ≤ max_words ≤ {MOST_WORDS}",
            )
            raise MaskwiseError("policy span: lengths", got=got, allowed=allowed)
        require_one_of("over of policy span", self.over, ("word", "token"))
        if self.poisson is not None and self.poisson <= 0:
            raise MaskwiseError(
                "policy span: poisson is a mean length", got=self.poisson, allowed="above 0"
            )

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.SPAN if self.over == "word" else UnitKind.TOKEN_SPAN

    @property
    def reads_text(self) -> bool:
        return self.over == "word"

    def layers(self) -> tuple[str, ...]:
        return layer_of(self.over)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        pieces = len(batch.begin)
        if self.over == "token":
            tokens = np.flatnonzero(batch.content)
            word, counts_P = np.arange(len(tokens)), batch.count_at(tokens)
            barred = np.flatnonzero(~batch.eligible.take(tokens))
        else:
            start, length, barred = find_runs(batch, batch.layer("word_ids", policy="span"))
            tokens, word = listed(start, length), np.repeat(np.arange(len(start)), length)
            counts_P = batch.count_at(start)
        span = self._ring(keys, counts_P)
        # The word of number n is number n + opening of the ring, around it.
        opening_P = (keys.per_piece(Purpose.PARTITION) * np.maximum(counts_P, 1)).astype(np.int64)
        place, around = (
            rank_within(counts_P) + np.repeat(opening_P, counts_P),
            np.repeat(counts_P, counts_P),
        )
        place -= around * (place >= around)
        span = span.take(place + np.repeat(counts_P.cumsum() - counts_P, counts_P))
        # Spans of all pieces are numbered through; some may have lost all of their words.
        if len(barred):
            kept = np.ones(len(span), bool)
            kept[barred] = False
            inside = kept.take(word)
            tokens, word = tokens[inside], word[inside]
        unit, piece = span.take(word), np.repeat(np.arange(pieces), counts_P)
        offered = int(span.max()) + 1 if len(span) else 0
        of_span = np.zeros(offered, np.int64)
        of_span[span] = piece
        number = rank_within(np.bincount(of_span, minlength=pieces)).astype(np.int32)
        units = Units(batch, tokens, unit, of_span, number)
        return units.without(np.flatnonzero(units.length == 0)) if len(barred) else units

    def lengths(self) -> Array:
        """(max_words,) float64: how often spans of 1, 2, … words are offered, the one cut to fit
        apart.
        """
        size = np.arange(1, self.max_words + 1, dtype=np.float64)
        if self.poisson is None:
            share = (1 - self.p) ** (size - 1)
        else:
            share = np.exp(
                size * math.log(self.poisson) - np.array([math.lgamma(n + 1) for n in size])
            )
        share = np.where(size < self.min_words, 0.0, share)
        return share / share.sum()

    def _ring(self, keys: Keys, counts_P: Array) -> Array:
        """(W,) int64: the span that each of the W words around the rings of all pieces is in;
        numbered through.
        """
        number = rank_within(counts_P)
        draw = keys.draw_each(Purpose.PARTITION, counts_P, number.astype(np.int32))
        length = np.ones(len(draw), np.int64)
        for edge in _edges(self):  # one pass an edge: a third of the time of a search
            length += draw >= edge
        # Span n of a piece ends behind this many words; what ends behind the last word is cut
        # there.
        end = sums_within(length, counts_P)
        begins = np.zeros(len(draw), bool)
        begins[number == 0] = True
        inner = end < np.repeat(counts_P, counts_P)
        begins[(end + np.repeat(counts_P.cumsum() - counts_P, counts_P))[inner]] = True
        return begins.cumsum() - 1


@lru_cache(maxsize=32)
def _edges(policy: Span) -> list[int]:
    """(max_words − 1) edges, where int32 draws change from one length to the next."""
    share = np.minimum(policy.lengths().cumsum()[:-1], 1 - 2.0**-32)
    return ((share * 2.0**32).round().astype(np.int64) - (1 << 31)).tolist()


@dataclass(frozen=True)
class T5Span(Policy):
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
        if self.mean_span < 1:
            raise MaskwiseError(
                "policy t5-span: mean_span, in tokens", got=self.mean_span, allowed="≥ 1"
            )
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise MaskwiseError("policy t5-span: ratio", got=self.ratio, allowed="0 to 1")

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return ratio_P if self.ratio is None else np.full_like(ratio_P, self.ratio)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_P = noise_tokens(batch, keys, moment)
        return noise_units(
            batch, keys, noise_P, np.round(noise_P / self.mean_span), rotate_P=np.ones_like(noise_P)
        )


@dataclass(frozen=True)
class Suffix(Policy):
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

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return ratio_P if self.ratio is None else np.full_like(ratio_P, self.ratio)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_P = noise_tokens(batch, keys, moment)
        return noise_units(
            batch, keys, noise_P, np.ones_like(noise_P), rotate_P=np.zeros_like(noise_P)
        )


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

    def __post_init__(self) -> None:
        valid = all(
            len(d) == 2 and (d[0] == 0 or d[0] >= 1) and 0 <= d[1] <= 1 for d in self.denoisers
        )
        if not self.denoisers or not valid:
            allowed = "pairs of mean span (≥ 1, or 0 for the end of the row) and ratio"
            raise MaskwiseError("policy ul2: denoisers", got=self.denoisers, allowed=allowed)

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def _drawn(self, keys: Keys, pieces: int) -> tuple[Array, Array]:
        """Mean spans and ratios of the pieces, both (P,) float64."""
        # Not the piece's draw that ``mixture`` uses, of which this policy may be a member.
        draw = keys.draw(Purpose.MIXTURE, np.arange(pieces), np.full(pieces, -1, np.int32))
        mean, ratio = (
            np.array(self.denoisers, np.float64).take(below(draw, len(self.denoisers)), axis=0).T
        )
        return mean, ratio.copy()

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return self._drawn(keys, len(ratio_P))[1]

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        mean_P, _ = self._drawn(keys, len(batch.begin))
        noise_P = noise_tokens(batch, keys, moment)
        spans_P = np.round(np.where(mean_P > 0, noise_P / np.maximum(mean_P, 1), 1.0))
        return noise_units(batch, keys, noise_P, spans_P, rotate_P=mean_P)


def noise_tokens(batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Array:
    """(P,) int64: the budget as ``select`` rounds it, so that the noise uses it up to the token."""
    assert moment.ratio is not None, "the masker says the ratios"
    wanted_P = batch.eligible_P * moment.ratio
    rounded_P = np.minimum(
        (wanted_P + keys.per_piece(Purpose.ROUND)).astype(np.int64), batch.eligible_P
    )
    return np.maximum(
        rounded_P, np.minimum(batch.eligible_P, moment.min_targets) * (wanted_P >= 0.5)
    )


def noise_units(
    batch: AnnotatedBatch, keys: Keys, noise_P: Array, spans_P: Array, *, rotate_P: Array
) -> Units:
    """Weighted units with ``noise_P`` tokens in ``spans_P`` spans, and the gaps between them with
    weight 0.

    Args:
        noise_P, spans_P: (P,); spans are kept between 1 and what noise and gaps allow.
        rotate_P: (P,); where 0 the ring is opened before its first gap, so that the piece ends with
            noise.
    """
    total_P = batch.eligible_P
    gaps_P = total_P - noise_P
    spans_P = np.maximum(np.minimum(np.minimum(spans_P, noise_P), gaps_P), 1).astype(np.int64)
    noise_end, gap_end = _cut(keys, noise_P, gaps_P, spans_P)
    # Around the ring: gap 0, noise 0, gap 1, noise 1, …; each part ends where the next begins. All
    # parts of a piece follow each other in one list, a gap and its noise in turn.
    of_span = np.repeat(np.arange(len(spans_P)), spans_P)
    noise_before = np.where(rank_within(spans_P) > 0, np.concatenate(([0], noise_end[:-1])), 0)
    ends = np.stack((gap_end + noise_before, gap_end + noise_end), 1)
    opening_P = keys.per_piece(Purpose.PARTITION) * (rotate_P > 0)
    start_P = (opening_P * total_P).astype(np.int64)
    # Seen from where the ring is opened, parts begin at these places of the piece; at ``total``
    # there is no token.
    border = ends - start_P.take(of_span)[:, None]
    border += total_P.take(of_span)[:, None] * (border <= 0)
    base_P = (total_P + 1).cumsum() - (total_P + 1)  # one place more for each piece
    begins = np.zeros(int((total_P + 1).sum()), bool)
    begins[border + base_P.take(of_span)[:, None]] = True
    part = begins.cumsum()
    token = rank_within(total_P) + np.repeat(base_P, total_P)
    number = part.take(token) - np.repeat(part.take(base_P) if len(part) else base_P, total_P)
    # Parts alternate: the ring is opened in a gap or in noise, and every border changes sides.
    passed = (ends <= start_P.take(of_span)[:, None]).sum(1)
    noisy_P = np.bincount(of_span, passed, len(spans_P)).astype(np.int64)
    noisy = ((np.repeat(noisy_P, total_P) + number) & 1 > 0) & np.repeat(noise_P > 0, total_P)
    noisy |= np.repeat(gaps_P == 0, total_P)
    opens = changes(number, np.repeat(np.arange(len(total_P)), total_P))
    first = np.flatnonzero(opens)
    piece = batch.piece.take(batch.eligible_at).take(first)
    weight = noisy.take(first) * _SURE
    return Units(
        batch,
        batch.eligible_at,
        opens.cumsum() - 1,
        piece,
        number.take(first).astype(np.int32),
        weight,
    )


def _cut(keys: Keys, noise_P: Array, gaps_P: Array, spans_P: Array) -> tuple[Array, Array]:
    """Where parts end, both (Σ spans,): ``noise_P`` and ``gaps_P`` tokens cut into ``spans_P``
    parts each.

    The places 1 … noise − 1 and 1 … gaps − 1 of a piece have a draw each; the spans − 1 smallest of
    both are the ends of parts, so that all choices are alike. The last part ends with the total.
    """
    inner_P = np.maximum(noise_P - 1, 0), np.maximum(gaps_P - 1, 0)
    ends = []
    for count_P, before_P, total_P in (
        (inner_P[0], 0 * noise_P, noise_P),
        (inner_P[1], inner_P[0], gaps_P),
    ):
        piece, place = np.repeat(np.arange(len(count_P)), count_P), rank_within(count_P)
        # Noise has the first draws of its piece, gaps the next ones.
        draw = keys.draw(
            Purpose.PARTITION, piece, (place + np.repeat(before_P, count_P)).astype(np.int32)
        )
        ending = first_within(piece, draw, spans_P - 1)
        end = np.repeat(total_P, spans_P)
        inner = np.ones(len(end), bool)
        inner[spans_P.cumsum() - 1] = False
        end[inner] = place[ending] + 1
        ends.append(end)
    return ends[0], ends[1]
