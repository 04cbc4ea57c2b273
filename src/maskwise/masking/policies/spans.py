"""Policies of random spans: SpanBERT's, T5's, the end of a text, and UL2's mixture of spans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, require_known, whole_number
from maskwise.keys import Array, Keys, Purpose, below
from maskwise.masking.batch import AnnotatedBatch, Names
from maskwise.masking.policies.base import Moment, Policy, UnitKind, layer_of
from maskwise.masking.units import Units, budgets, find_runs
from maskwise.segments import (
    changes,
    first_within,
    listed,
    offsets,
    owners,
    rank_within,
    sums_within,
)

MOST_WORDS = 1000
"""The limit on ``max_words``. Time grows with ``max_words``: each draw is compared with all edges
between lengths."""

_SURE = 1e6
"""The weight of noise spans: so large that ``bernoulli`` always selects them."""


@dataclass(frozen=True)
class Span(Policy):
    """Random spans of words or tokens (``over``), with truncated geometric lengths.

    The words of a piece form a ring. Consecutive spans fill the ring, the last span is cut to fit,
    and the ring is opened at a random position. Every position in a piece is therefore masked
    equally often with every budget. (Without a ring, spans at the ends of a piece would be shorter,
    and selection favours short units.) The first and the last words of a piece may share a unit.
    Special tokens, and words with an [UNK], stay visible inside a span.

    Selects: spans of equal weight. With p = .2 and max_words = 10, spans have 3.80 words on average
        before selection. ``poisson=3.0`` draws Poisson lengths of at least one word instead (BART;
        the corruption ``infill`` adds the empty spans).
    Guarantee: words stay whole. ``exact`` never exceeds the budget, and so favours short spans in
        short rows: at 64 words and 15 %, a span of 1 word is selected with probability .364, and a
        span of 10 words with .038. ``expected`` meets the budget on average and selects all spans
        with nearly equal probability. ``bernoulli`` selects each span independently. Adjacent
        selected spans look like one span.
    Cost: the cost of ``whole-word``, plus one draw per word and ``max_words`` comparisons.
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
                "p of policy span is not valid", got=self.p, allowed="between 0 and 1"
            )
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

    def layers(self) -> Names:
        return layer_of(self.over)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        if self.over == "token":
            start = batch.content_at
            length = np.ones_like(start)
            barred = np.flatnonzero(~batch.eligible.take(start))
        else:
            start, length, barred = find_runs(batch, batch.layer("word_ids"))
        counts_P = batch.count_at(start)
        # ``place`` is the position of each word around the rings, laid end to end: word n of a
        # piece has the position (n + opening) mod (words in the piece).
        opening = keys.per_piece(Purpose.PARTITION) * np.maximum(counts_P, 1)
        place = rank_within(counts_P) + np.repeat(opening.astype(np.int64), counts_P)
        around = np.repeat(counts_P, counts_P)
        place -= around * (place >= around)
        place += np.repeat(offsets(counts_P), counts_P)
        span_W = self._ring(keys, counts_P).take(place)
        # Span numbers of all pieces are consecutive.
        piece = np.zeros(span_W.max(initial=-1) + 1, np.int64)
        piece[span_W] = owners(counts_P)
        spans_P = np.bincount(piece, minlength=len(counts_P))
        number = rank_within(spans_P)
        if len(barred):
            start = np.delete(start, barred)
            length = np.delete(length, barred)
            span_W = np.delete(span_W, barred)
        unit = np.repeat(span_W, length)
        units = Units.of_tokens(batch, listed(start, length), unit, piece, number)
        if len(barred):
            # A span may have lost all of its words.
            units = units.kept(units.length > 0)
        return units

    def lengths(self) -> Array:
        """(max_words,) float64: the probabilities of 1, 2, … words, before any span is cut."""
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

    def _ring(self, keys: Keys, counts_P: Array) -> Array:
        """(W,) int64: the span number of each of the W words around the rings of all pieces."""
        number = rank_within(counts_P)
        draw = keys.draw_each(Purpose.PARTITION, counts_P, number)
        length = np.ones(len(draw), np.int64)
        # One pass per edge takes a third of the time of searchsorted.
        for edge in _edges(self):
            length += draw >= edge
        # Drawing one length per word gives more lengths than a piece needs. Span n ends after the
        # sum of the first n lengths, and the last span ends with the piece.
        end = sums_within(length, counts_P)
        inner = end < np.repeat(counts_P, counts_P)
        next_begin = end + np.repeat(offsets(counts_P), counts_P)
        begins = number == 0
        begins[next_begin[inner]] = True
        return begins.cumsum() - 1


@lru_cache(maxsize=32)
def _edges(policy: Span) -> list[int]:
    """The (max_words − 1) edges between lengths: a draw at or above edge n has a length above n."""
    share = np.minimum(policy.lengths().cumsum()[:-1], 1 - 2.0**-32)
    cells = (share * 2.0**32).round().astype(np.int64)
    return (cells - (1 << 31)).tolist()


class _Noise(Policy):
    """Base class of policies that cut the whole budget as noise spans, with gaps between them."""

    ratio: float | None

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return ratio_P if self.ratio is None else np.full_like(ratio_P, self.ratio)


@dataclass(frozen=True)
class T5Span(_Noise):
    """T5's noise spans: a piece is split into alternating spans of noise and gaps.

    A piece with n noise tokens has s = round(n / mean_span) noise spans and s gaps. The n noise
    tokens are split uniformly at random into s spans of at least one token, and the other tokens
    into s gaps. Spans and gaps alternate around a ring, which is opened at a random position. The
    published code always opens the ring before a gap, so rows begin unmasked and end masked. Here
    every position is masked equally often, but the opening may split a span in two. Gaps are units
    of weight 0, so selection takes exactly the noise.

    Selects: spans of ``mean_span`` tokens on average. The number n comes from ``ratio``, or from
        the masker's ratio if ``ratio`` is None.
    Guarantee: exactly the budget in all three budget modes; a gap between any two spans, except at
        the opening of the ring.
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
        return noise_units(batch, keys, moment, self.mean_span)


@dataclass(frozen=True)
class Suffix(_Noise):
    """The end of each piece as one unit with the length of the budget (prefix LM).

    Selects: the same tokens of a piece whenever the ratio is the same. Use a ratio such as
        ``uniform(0.1, 0.9)`` to vary the length of the unit.
    Guarantee: exactly the budget in all three budget modes.
    Cost: the same as for ``t5-span``.
    Source: the prefix LM of Raffel et al. 2020, section 3.2.3; the S-denoiser of UL2 (arXiv
        2205.05131), section 3.1.
    """

    ratio: float | None = None

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return noise_units(batch, keys, moment, 0)


REGULAR = ((3, 0.15), (8, 0.15))
SEQUENTIAL = ((0, 0.25),)
EXTREME = ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))
DENOISERS = np.array([*REGULAR, *SEQUENTIAL, *EXTREME])
"""(7, 2) float64: the mean span length, in tokens, and the ratio of each UL2 denoiser. A mean of 0
stands for one span at the end of the piece."""


@dataclass(frozen=True)
class Ul2(Policy):
    """UL2: each piece draws one of seven denoisers.

    A denoiser is a pair (mean span length, ratio), and its ratio replaces the masker's ratio. The
    corruption ``ul2`` inserts the mode tokens.

    Selects: T5 spans, either regular (3 or 8 tokens, 15 %) or extreme (50 %, or 64 tokens), or the
        last quarter of the piece.
    Guarantee: exactly the piece's budget in all three budget modes.
    Cost: the same as for ``t5-span``: one call cuts the pieces of all denoisers.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), section 3.1.2 and its table of seven denoisers.
    """

    unit_kind = UnitKind.TOKEN_SPAN
    needs_ratio = True

    def _drawn(self, keys: Keys, pieces: int) -> tuple[Array, Array]:
        """The mean span length and the ratio of each piece, both (P,) float64."""
        # A mixture uses the draw of ``per_piece``, so an independent draw needs another index.
        draw = keys.draw(Purpose.MIXTURE, np.arange(pieces), -1)
        mean_P, ratio_P = DENOISERS.take(below(draw, len(DENOISERS)), axis=0).T
        return mean_P, ratio_P

    def ratios(self, ratio_P: Array, keys: Keys, moment: Moment) -> Array:
        return self._drawn(keys, len(ratio_P))[1].copy()

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        mean_P, _ = self._drawn(keys, batch.pieces)
        return noise_units(batch, keys, moment, mean_P)


def noise_units(batch: AnnotatedBatch, keys: Keys, moment: Moment, mean_P: Array | float) -> Units:
    """Cut pieces into noise spans, which use the whole budget, and gaps, which have weight 0.

    Args:
        batch: the batch to cut.
        keys: the random draws for the pieces.
        moment: the point in training; ``moment.ratio`` must be set.
        mean_P: the mean span length in each piece; 0 for one span at the end of the piece.
    """
    assert moment.ratio is not None, "the masker gives ratios"
    total_P = batch.eligible_P
    # The same budget as in ``select``, so that the noise uses all of it.
    noise_P = budgets(total_P, moment.ratio, keys, moment.min_targets)
    # One span per ``mean_P`` noise tokens. A span and a gap each need at least one token.
    spans_P = np.round(np.where(mean_P, noise_P / np.maximum(mean_P, 1), 1.0))
    gaps_P = total_P - noise_P
    most_P = np.minimum(noise_P, gaps_P)
    spans_P = np.maximum(np.minimum(spans_P, most_P), 1).astype(np.int64)
    noise_end = _ends(keys, noise_P, spans_P, np.zeros_like(noise_P))
    # The noise uses draws 0 to noise − 2, so the draws for the gaps begin at index noise − 1.
    gap_end = _ends(keys, gaps_P, spans_P, np.maximum(noise_P - 1, 0))
    # The order around the ring is gap 0, noise 0, gap 1, noise 1, …. Row s of ``ends`` has the
    # ends of gap s and of noise s, in tokens from the start of the ring.
    piece_S = owners(spans_P)
    noise_before = np.where(rank_within(spans_P) > 0, np.append(0, noise_end[:-1]), 0)
    ends = np.stack((gap_end + noise_before, gap_end + noise_end), 1)
    # Pieces with a mean of 0 need their noise at the end, so their ring is opened before gap 0.
    opening_P = keys.per_piece(Purpose.PARTITION) * (mean_P != 0)
    start_P = (opening_P * total_P).astype(np.int64)
    start_S1 = start_P.take(piece_S)[:, None]
    # Shift every border so that the opening is 0. A border at the opening itself wraps to
    # ``total``, so each piece reserves total + 1 slots.
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
    # The borders say nothing about a piece that is all noise or all gap.
    noisy &= np.repeat(noise_P > 0, total_P)
    noisy |= np.repeat(gaps_P == 0, total_P)
    piece = owners(total_P)
    opens = changes(number, piece)
    first = np.flatnonzero(opens)
    return Units.of_tokens(
        batch,
        batch.eligible_at,
        opens.cumsum() - 1,
        piece.take(first),
        number.take(first),
        noisy.take(first) * _SURE,
    )


def _ends(keys: Keys, total_P: Array, parts_P: Array, before_P: Array) -> Array:
    """(Σ parts,) int64: the ends of parts, if each piece is split uniformly at random into parts.

    Each of the positions 1 … total − 1 of a piece gets a draw; the first draw has the index
    ``before_P``. The positions of the parts − 1 smallest draws end a part, so all splits are
    equally likely. The last part ends at ``total_P``.
    """
    inner_P = np.maximum(total_P - 1, 0)
    piece = owners(inner_P)
    place = rank_within(inner_P)
    index = place + np.repeat(before_P, inner_P)
    draw = keys.draw(Purpose.PARTITION, piece, index)
    ending = first_within(piece, draw, parts_P - 1)
    end = np.repeat(total_P, parts_P)
    inner = np.ones(len(end), bool)
    inner[parts_P.cumsum() - 1] = False
    end[inner] = place[ending] + 1
    return end
