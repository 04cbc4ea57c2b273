"""Corruptions that remove, insert or move tokens: ``delete``, ``insert``, ``infill`` and
``permute-sentences``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from maskwise.base.errors import MaskwiseError, finite_number, whole_number
from maskwise.masking.batch import IGNORE
from maskwise.masking.corruptions.base import (
    Corruption,
    Edit,
    Masked,
    Moving,
    corrupt_by,
    labels_in_place,
    moved_extras,
    removed_text,
    whole_text,
)
from maskwise.masking.draws import Array, Draws, Purpose, below, in_lowest_share, unit_interval
from maskwise.masking.line import Line, Names
from maskwise.masking.segments import changes, offsets, owners, rank_within, sums_within
from maskwise.masking.select import Choice
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary

LEAST_MEAN = math.log(2)
"""The smallest mean length of spans in ``infill``."""


@dataclass(frozen=True)
class Delete(Moving):
    """Delete every selected token.

    Targets: with ``full``, the whole piece. With ``spans``, the deleted tokens in order, then the
        end-of-sequence token. With ``detect``, 1 at each remaining token whose previous token was
        deleted, and 0 at other tokens. The special token after the text has a label too.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2; Wu et al. 2022 (MOMETAS) for
        deleted-token detection.
    """

    target: str = "full"

    shows_mask = False
    targets = ("full", "spans", "detect")

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        chosen = choice.tokens
        edit = Edit(line, line.present & ~chosen)
        inputs = edit(line.input_ids)
        if self.target == "full":
            return edit.shown(inputs, *whole_text(choice, vocabulary.eos))
        if self.target == "spans":
            return edit.shown(inputs, *removed_text(choice, None, 0, vocabulary.eos))
        # ``gap``: whether the previous token of the same piece was deleted.
        inside = np.ones(len(chosen), bool)
        inside[line.begin[: len(inside)]] = False
        gap = inside & np.roll(chosen, 1)
        asked = line.content | (inside & np.roll(line.content, 1))
        labels = np.where(asked, gap.astype(np.int64), IGNORE)
        return edit.shown(inputs, edit(labels))


@dataclass(frozen=True)
class Insert(Moving):
    """Insert one or more random ordinary tokens before each selected token.

    ``again`` is the probability that an inserted token is followed by another inserted token. With
    ``again=0``, no two inserted tokens are adjacent. If tokens are selected with probability p, a
    share p / (1 + p) of the output tokens is inserted. For p = .15, the share is .130 (measured on
    text: .129). With ``again=p``, as in the published code, every token of the *output* is an
    inserted token with probability p (measured: .149), also the token after an inserted token
    (measured: .151).

    Insertion makes pieces longer. ``cut`` is the maximum length of a piece, in tokens, such as the
    model's number of positions. If a piece is longer, the end of its text is cut off, but no
    special token. ``Masker`` describes how packed rows are cut.

    Targets: with ``full``, the whole piece. With ``detect``, 1 at inserted tokens and 0 at other
        tokens of the text.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), added-token detection. ``again`` is from the
        code released with this paper.
    """

    target: str = "full"
    cut: int | None = None
    again: float = 0.0

    shows_mask = False
    targets = ("full", "detect")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut is not None:
            whole_number("argument cut of corruption insert", self.cut, least=1)
        finite_number("argument again of corruption insert", self.again, least=0, most=0.9)

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        new_T = choice.tokens.astype(np.int64)
        if self.again:
            at = np.flatnonzero(choice.tokens)
            draw = unit_interval(line.draw(draws, Purpose.LENGTH, at))
            # The number of further tokens has a geometric distribution. This is the inverse of its
            # distribution function.
            new_T[at] += (np.log(draw) / math.log(self.again)).astype(np.int64)
        shown_T = new_T + line.present
        # ``source`` is the old position of each output token. An inserted token has the old
        # position of the selected token that it precedes.
        source = owners(shown_T)
        rank = rank_within(shown_T)
        is_new = rank < new_T.take(source)
        text = is_new | line.content.take(source)
        if self.cut is not None:
            lengths = line.count(shown_T)
            room_P = self.cut - line.count(line.present & ~line.content)
            fits = ~text | (sums_within(text, lengths) <= np.repeat(room_P, lengths))
            source = source[fits]
            rank = rank[fits]
            is_new = is_new[fits]
            text = text[fits]
        piece = line.piece.take(source)
        # The indices are distinct, because a piece has fewer than 2²⁰ tokens.
        index = source - line.first.take(piece) + (rank << 20)
        draw = draws.draw(Purpose.REPLACE, piece[is_new], index[is_new])
        inputs = line.input_ids.take(source)
        inputs[is_new] = vocabulary.ordinary[below(draw, len(vocabulary.ordinary))]
        extras = moved_extras(line, lambda values: values.take(source))
        lengths = np.bincount(piece, minlength=line.pieces)
        if self.target == "full":
            labels, label_lengths = whole_text(choice, vocabulary.eos)
            return Masked(inputs, labels, lengths, label_lengths, text, extras)
        labels = np.where(text, is_new.astype(np.int64), IGNORE)
        return Masked(inputs, labels, lengths, None, text, extras)


@dataclass(frozen=True)
class Infill(Moving):
    """Replace each run of selected tokens by one [MASK], and insert a [MASK] per empty span (BART).

    BART draws span lengths from a Poisson distribution, which contains the length 0. A span of
    length 0 is *empty*: a [MASK] is inserted between two tokens. Masking policies select only spans
    of at least one token (for BART, use ``span(poisson=3.0)``). This corruption adds the empty
    spans. A Poisson length is 0 with probability q = exp(−mean), so for each selected span, an
    empty span is added with probability q / (1 − q), at a random place that no span touches. The
    mean is thus at least ln 2, where half of all spans are empty. With ``mean=None`` there are no
    empty spans.

    Adjacent spans become one [MASK], and so do two empty spans at the same place. Pieces with many
    short or empty spans can become longer.

    Targets: with ``full``, the whole piece. With ``spans``, for each [MASK] in order, a [MASK] and
        the tokens that it replaced; then the end-of-sequence token.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2.
    """

    mean: float | None = 3.0
    target: str = "full"

    targets = ("full", "spans")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean is None:
            return
        finite_number("argument mean of corruption infill", self.mean)
        if self.mean < LEAST_MEAN:
            raise MaskwiseError(
                "argument mean of corruption infill is not valid",
                got=self.mean,
                allowed=f"at least ln 2 = {LEAST_MEAN:.4f}, or None",
                do="with a smaller mean, more than half of all spans would be empty",
            )

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        chosen = choice.tokens
        eos = vocabulary.eos
        mask = vocabulary.require_mask()
        starts = choice.starts
        stay = line.present & ~chosen
        empty = np.zeros_like(chosen)
        if self.mean is not None:
            empty[self._empty(choice, draws, self.mean)] = True
        leads = starts | empty
        edit = Edit(line, stay, leads)
        inputs = edit(line.input_ids, mask)
        if self.target == "full":
            return edit.shown(inputs, *whole_text(choice, eos))
        return edit.shown(inputs, *removed_text(choice, leads, mask, eos))

    def _empty(self, choice: Choice, draws: Draws, mean: float) -> Array:
        """(N,) int64: the positions of the tokens before which an empty span is inserted."""
        line = choice.line
        q = math.exp(-mean)
        # An empty span lies between two tokens of a piece that are both not selected, and that
        # corruptions need not leave as they are.
        free = line.movable & ~choice.tokens
        gap = free.copy()
        gap[1:] &= free[:-1]
        # An empty batch has pieces, but no tokens.
        gap[line.begin[line.begin < len(gap)]] = False
        count_P = line.count(gap)
        # The units of a mixture are not sorted by piece, so pieces are listed anew.
        spans_P = np.bincount(choice.units.piece[choice.chosen], minlength=line.pieces)
        piece = owners(spans_P)
        # Each span has two draws. The first decides whether an empty span is added, and the second
        # decides where.
        index = 2 * rank_within(spans_P)
        adds = in_lowest_share(draws.draw(Purpose.LENGTH, piece, index), q / (1 - q))
        adds &= count_P.take(piece) > 0
        piece = piece[adds]
        draw = draws.uniform(Purpose.LENGTH, piece, index[adds] + 1)
        slot = (draw * count_P.take(piece)).astype(np.int64)
        return np.flatnonzero(gap).take(offsets(count_P).take(piece) + slot)


@dataclass(frozen=True)
class PermuteSentences(Corruption):
    """Permute the sentences that contain a selected token. Other sentences do not move.

    With ``policy="sentence", ratio=1``, all sentences are permuted, as in BART. With a smaller
    ratio, fewer sentences are permuted. All orders, including the old order, are equally likely.
    ``inner`` is a second corruption, which is applied to the selected tokens after the permutation
    (in BART-large: ``infill``). Without ``inner``, the selected tokens are unchanged. A sentence is
    a run of equal numbers ≥ 0 in ``layer``.

    Targets: the whole piece.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2.
    """

    layer: str = "sentence"
    inner: Corruption | None = None

    target = "full"

    @property
    def keeps_length(self) -> bool:
        return self.inner is None or self.inner.keeps_length

    @property
    def shows_mask(self) -> bool:  # type: ignore[override]
        return self.inner is not None and self.inner.shows_mask

    def check(self, vocabulary: Vocabulary) -> None:
        if self.inner is not None:
            self.inner.check(vocabulary)

    def layers(self) -> Names:
        return (self.layer, *(self.inner.layers() if self.inner else ()))

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        units = choice.units
        source = self._sources(line, line.layer(self.layer), choice.tokens, draws)
        ids = line.input_ids.take(source)
        if self.inner is None:
            return Masked(ids, labels_in_place(choice, "full"))
        permuted = replace(
            line,
            input_ids=ids,
            eligible=line.eligible.take(source),
            kept=None if line.kept is None else line.kept.take(source),
            layers={name: layer.take(source) for name, layer in line.layers.items()},
        )
        # Invert the permutation: ``place`` is the new position of each token.
        place = np.empty_like(source)
        place[source] = np.arange(len(source))
        moved = Units.of_tokens(
            permuted, place[units.tokens], units.unit, units.piece, units.number, units.weight
        )
        moved.by_token = units.by_token
        inside = replace(choice, units=moved)
        shown = corrupt_by(self.inner, permuted, inside, draws, vocabulary)
        if shown.lengths is None:
            return replace(shown, labels=labels_in_place(choice, "full"))
        labels, label_lengths = whole_text(choice, vocabulary.eos)
        return replace(shown, labels=labels, label_lengths=label_lengths)

    def _sources(self, line: Line, marked: Array, chosen: Array, draws: Draws) -> Array:
        """(T,) int64: the old position of the token at each new position."""
        at = line.content_at
        name = marked.take(at).clip(min=-1)
        piece = line.piece.take(at)
        # The last argument is constant while content tokens are adjacent, and changes where special
        # tokens interrupt a sentence.
        opens = changes(name, piece, at - np.arange(len(at)))
        # Number the sentences of the line consecutively. Text between sentences is treated as a
        # sentence that never moves.
        begin = np.flatnonzero(opens)
        sentence = opens.cumsum() - 1
        length = np.diff(begin, append=len(at))
        moves = np.zeros(len(begin), bool)
        moves[sentence[chosen.take(at) & (name >= 0)]] = True
        piece = piece.take(begin)
        number = rank_within(np.bincount(piece, minlength=line.pieces))
        # Sentences that move change places only with other moving sentences of the piece.
        slot = np.flatnonzero(moves)
        piece = piece.take(slot)
        draw = draws.draw(Purpose.PERMUTE, piece, number.take(slot))
        order = np.arange(len(length))
        order[slot] = slot.take(((piece << 32) + draw).argsort())
        new_begin = np.empty_like(begin)
        new_begin[order] = offsets(length.take(order))
        shift = new_begin - begin
        source = np.arange(len(marked))
        source[at.take(np.arange(len(at)) + shift.take(sentence))] = at
        return source
