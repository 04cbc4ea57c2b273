"""Corruptions that change lengths or move tokens, and the targets of encoder–decoder models.

Every token of a piece, and perhaps something new before it, is a candidate; a bool says which
candidates stand; what stands is taken from the line in order. So pieces need no padding, and no
routine loops over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.keys import Array, Keys, Purpose, below, unit_interval, within
from maskwise.masking.batch import IGNORE, AnnotatedBatch
from maskwise.masking.corruptions.base import (
    Corrupted,
    Corruption,
    Line,
    labels_in_place,
    last_content,
    masked_pieces,
)
from maskwise.masking.select import require_one_of
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary
from maskwise.segments import changes, rank_within, sums_within


class Moving(Corruption):
    """Base of those that change lengths: packed rows are laid anew."""

    keeps_length = False


def run_starts(batch: AnnotatedBatch, chosen: Array) -> Array:
    """(T,) bool: the first token of each run of chosen tokens in a piece. So touching spans are
    one.
    """
    start = chosen.copy()
    start[1:] &= ~chosen[:-1]
    if len(start):
        start[batch.begin] = chosen[batch.begin]
    return start


def whole_text(batch: AnnotatedBatch, chosen: Array, eos: int | None) -> tuple[Array, Array]:
    """Targets and their lengths (P,): pieces with a chosen token as they were, and ``eos`` if they
    do not end so.
    """
    line = Line(batch, masked_pieces(batch, chosen))
    labels, lengths = line(batch.input_ids), line.lengths
    if eos is None:
        return labels, lengths
    open_P = np.flatnonzero(lengths > 0)
    open_P = open_P[labels.take(lengths.cumsum()[open_P] - 1) != eos]
    return ended(labels, lengths, open_P, [np.full(len(open_P), eos)])


def removed_text(
    batch: AnnotatedBatch,
    chosen: Array,
    leads: Array | None,
    lead: Array | int,
    tails: Sequence[Array],
) -> tuple[Array, Array]:
    """Targets and their lengths (P,): the chosen tokens, a lead before each run of them, and
    ``tails`` at the end.

    Args:
        leads: (T,) bool, before which tokens a lead stands; None for nowhere.
        lead: (T,) the leads at their places, or one for all.
        tails: (P,) ids each; pieces without a target have none.
    """
    line = Line(batch, chosen, leads)
    masked_P = np.flatnonzero(line.lengths > 0)
    return ended(
        line(batch.input_ids, lead), line.lengths, masked_P, [tail[masked_P] for tail in tails]
    )


def ended(
    labels: Array, lengths: Array, pieces: Array, tails: Sequence[Array]
) -> tuple[Array, Array]:
    """Targets with more of them at the ends of some ``pieces`` (N,); ``tails`` are (N,) each."""
    if not tails:
        return labels, lengths
    ends = lengths.cumsum()[pieces]
    labels = np.insert(labels, np.repeat(ends, len(tails)), np.ravel(tails, order="F"))
    lengths = lengths.copy()
    lengths[pieces] += len(tails)
    return labels, lengths


@dataclass(frozen=True)
class Delete(Moving):
    """Every chosen token disappears; nothing tells where it stood.

    Targets: ``full``: the whole piece; ``spans``: the deleted tokens in order, then [eos];
        ``detect``: at every token of the text that is left, and at the special token behind it, 1
            if something was deleted just
        before it, else 0 (a run of deletions gives one 1).
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2; detection: Wu et al. 2022
        (MOMETAS, dtd).
    """

    target: str = "full"

    shows_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_one_of("target of corruption delete", self.target, ("full", "spans", "detect"))

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        line = Line(batch, batch.present & ~chosen)
        inputs, eos = line(batch.input_ids), vocabulary.eos
        if self.target == "full":
            return line.shown(inputs, *whole_text(batch, chosen, eos))
        if self.target == "spans":
            tails = [] if eos is None else [np.full(len(batch.begin), eos)]
            return line.shown(inputs, *removed_text(batch, chosen, None, 0, tails))
        asked, gap = (np.concatenate(([False], x[:-1]))[: len(x)] for x in (batch.content, chosen))
        if len(asked):
            asked[batch.begin] = gap[batch.begin] = False
        return line.shown(
            inputs, line(np.where(asked | batch.content, gap.astype(np.int64), IGNORE)), None
        )


@dataclass(frozen=True)
class Insert(Moving):
    """Random ordinary tokens are inserted before each chosen token, which stays: one, or with
    ``again`` a run of them.

    ``again`` is the chance that one more token follows an inserted one. At 0, and with tokens that
    are chosen with probability p, a share p / (1 + p) of the shown tokens is new (at .15: .130;
    .129 measured on text), and no two new ones stand together. With ``again=p`` every place of the
    *output* is an insertion with probability p, as in the published code: a share p is new (.149
    measured), and the token behind a new one is new with probability p (.151).

    Pieces grow; ``cut`` is the most tokens that one may then have, as many as the model has
    positions: text (never a special token) is cut off at its end. A number, not the width of the
        batch, so that a piece does not
    depend on those beside it. Packed rows have a plan besides, see ``Masker``.

    Targets: ``full``: the whole piece; ``detect``: 1 at inserted tokens, 0 at the others of the
        text.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), added-token detection; ``again``: its
        released code.
    """

    target: str = "full"
    cut: int | None = None
    again: float = 0.0

    shows_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_one_of("target of corruption insert", self.target, ("full", "detect"))
        if self.cut is not None:
            whole_number("cut of corruption insert", self.cut, least=1)
        finite_number("again of corruption insert", self.again, least=0, most=0.9)

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        new_T = self._new(batch, chosen, keys)
        shown_T = new_T + batch.present
        # One entry for each shown token: its place in the line, or that of the token before which
        # it is new.
        source = np.repeat(np.arange(len(shown_T)), shown_T)
        rank = rank_within(shown_T)
        is_new = rank < new_T.take(source)
        text = is_new | batch.content.take(source)
        if self.cut is not None:
            lengths = batch.count(shown_T)
            room_P = self.cut - batch.count(batch.present & ~batch.content)
            fits = ~text | (sums_within(text, lengths) <= np.repeat(room_P, lengths))
            source, rank, is_new, text = source[fits], rank[fits], is_new[fits], text[fits]
        piece = batch.piece.take(source)
        before = source[is_new]
        # a piece has fewer tokens
        place = before - batch.first.take(piece[is_new]) + (rank[is_new] << 20)
        draw = keys.draw(Purpose.REPLACE, piece[is_new], place.astype(np.int32))
        inputs = batch.input_ids.take(source)
        inputs[is_new] = vocabulary.ordinary[below(draw, len(vocabulary.ordinary))]
        extras = {
            name: value.take(source)
            for name, value in batch.extras.items()
            if name != "position_ids"
        }
        lengths = np.bincount(piece, minlength=len(batch.begin))
        if self.target == "full":
            labels, label_lengths = whole_text(batch, chosen, vocabulary.eos)
            return Corrupted(inputs, labels, lengths, label_lengths, text, extras)
        labels = np.where(text, is_new.astype(np.int64), IGNORE)
        return Corrupted(inputs, labels, lengths, None, text, extras)

    def _new(self, batch: AnnotatedBatch, chosen: Array, keys: Keys) -> Array:
        """(T,) int64: how many tokens are inserted before each token."""
        new_T = chosen.astype(np.int64)
        if self.again:
            at = np.flatnonzero(chosen)
            draw = unit_interval(batch.draw(keys, Purpose.LENGTH, at))
            new_T[at] += (np.log(draw) / math.log(self.again)).astype(np.int64)  # geometric
        return new_T


@dataclass(frozen=True)
class Infill(Moving):
    """BART's infilling: one [MASK] for each run of chosen tokens, and [MASK]s that stand for
    nothing.

    The policy chooses the spans that have a length (BART's: ``span(poisson=3.0)``). A Poisson
    length is 0 with probability q = exp(−mean), so every span brings an *empty* one with
    probability q / (1 − q), put between two random tokens of the text; it costs no budget.
    ``mean=None``: no empty ones.

    Touching spans become one [MASK], and so does an empty span that touches another span: it is not
    seen then.
    Pieces with many empty spans and short others can grow; ``cut`` is the most tokens a piece may
    have then, as many as the model has positions: empty spans for which there is no room are left
    out.

    Targets: ``full``: the whole piece; ``spans``: for each [MASK] in order a [MASK] and what it
        stands for, then [eos].
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461), section 2.2.
    """

    mean: float | None = 3.0
    target: str = "full"
    cut: int | None = None

    def __post_init__(self) -> None:
        require_one_of("target of corruption infill", self.target, ("full", "spans"))
        if self.mean is not None and self.mean <= 0:
            got, allowed = self.mean, "above 0, or None"
            raise MaskwiseError(
                "corruption infill: mean is a span length", got=got, allowed=allowed
            )

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        starts, stay, eos = run_starts(batch, chosen), batch.present & ~chosen, vocabulary.eos
        empty = self._empty(batch, chosen, starts, keys)
        if self.cut is not None:
            room_P = self.cut - batch.count(stay) - batch.count(starts)
            empty &= sums_within(empty, batch.lengths) <= room_P.take(batch.piece)
        leads, mask = starts | empty, vocabulary.require_mask()
        line = Line(batch, stay, leads)
        inputs = line(batch.input_ids, mask)
        if self.target == "full":
            return line.shown(inputs, *whole_text(batch, chosen, eos))
        tails = [] if eos is None else [np.full(len(batch.begin), eos)]
        return line.shown(inputs, *removed_text(batch, chosen, leads, mask, tails))

    def _empty(self, batch: AnnotatedBatch, chosen: Array, starts: Array, keys: Keys) -> Array:
        """(T,) bool: tokens before which an empty span stands, and no other."""
        empty = np.zeros(len(chosen), bool)
        if self.mean is None:
            return empty
        q, count_P = math.exp(-self.mean), batch.count(batch.content)
        piece = batch.piece.take(np.flatnonzero(starts))
        # Each run has two draws: whether it brings an empty span, and where in the text that
        # stands.
        index = (2 * rank_within(batch.count(starts))).astype(np.int32)
        brings = within(keys.draw(Purpose.LENGTH, piece, index), q / (1 - q)) & (
            count_P.take(piece) > 1
        )
        piece, index = piece[brings], index[brings]
        draw = unit_interval(keys.draw(Purpose.LENGTH, piece, index + np.int32(1)))
        slot = (draw * (count_P - 1).take(piece)).astype(np.int64) + 1
        before = np.flatnonzero(batch.content).take((count_P.cumsum() - count_P).take(piece) + slot)
        free = batch.content & ~chosen
        empty[before[free.take(before) & free.take(before - 1)]] = True
        return empty


@dataclass(frozen=True)
class T5(Moving):
    """The k-th run of chosen tokens becomes the k-th sentinel; touching spans are one run.

        inputs:  Thank you <extra_id_0> me to your party <extra_id_1> week.
        targets: <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

    Targets: ``spans``: as above, then [eos] where the tokenizer has one and ``eos`` is True;
        ``full``: the whole piece. Every piece of a packed row begins with the first sentinel.
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), figure 2 and section 3.1.4.

    Raises:
        MaskwiseError: a piece with more spans than the tokenizer has sentinels (the last one only
            closes the target).
    """

    target: str = "spans"
    eos: bool = True

    def __post_init__(self) -> None:
        require_one_of("target of corruption t5", self.target, ("spans", "full"))

    @property
    def writes(self) -> str | None:
        return "sentinels" if self.target == "spans" else "full"

    def check(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.sentinels:
            added = "{'additional_special_tokens': [f'<extra_id_{i}>' for i in range(100)]}"
            raise MaskwiseError(
                "the tokenizer has no sentinel tokens",
                allowed="tokens named <extra_id_0>, <extra_id_1>, …",
                do=f"use a T5 tokenizer, or tokenizer.add_special_tokens({added})",
            )

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        starts, sentinel = run_starts(batch, chosen), vocabulary.sentinel
        runs_P = batch.count(starts)
        if len(runs_P) and int(runs_P.max()) >= len(sentinel):
            raise MaskwiseError(
                "a row has more masked spans than the tokenizer has sentinels",
                got=int(runs_P.max()),
                allowed=f"at most {len(sentinel) - 1}",
                do="use longer spans (policy t5-span), a lower ratio or shorter rows",
            )
        lead = batch.input_ids.copy()
        lead[starts] = sentinel.take(rank_within(runs_P))
        # A sentinel takes the place of the first token of its run; what is new, if anything, is the
        # token of the mode.
        stay = batch.present & ~chosen | starts
        mode_P = self._modes(batch, chosen, vocabulary)
        if mode_P is None:
            line = Line(batch, stay)
            inputs = line(lead)
        else:
            tells = np.zeros(len(stay), bool)
            tells[batch.first[runs_P > 0]] = True
            line = Line(batch, stay, tells)
            inputs = line(lead, mode_P.take(batch.piece))
        eos = vocabulary.eos if self.eos else None
        if self.target == "full":
            return line.shown(inputs, *whole_text(batch, chosen, eos))
        tails = [sentinel.take(runs_P), *([] if eos is None else [np.full(len(runs_P), eos)])]
        return line.shown(inputs, *removed_text(batch, chosen, starts, lead, tails))

    def _modes(self, batch: AnnotatedBatch, chosen: Array, vocabulary: Vocabulary) -> Array | None:
        """(P,) ids that go before the text of pieces where something was chosen; None: nothing
        does.
        """
        return None


@dataclass(frozen=True)
class Ul2(T5):
    """A mode token before the text of each masked piece; the rest as ``t5``. Use it with the policy
    ``ul2``.

    The mode is read from the mask itself, so that it is true for any policy: S where the one masked
    span ends the text; else X (extreme) where spans are at least 12 tokens long on average or at
    least 30 % of the text is masked, the paper's own definition; else R (regular). A piece where
    nothing was chosen gets none.

    Targets: as ``t5``.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), sections 3.1.2 and 3.1.3.
    """

    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")

    def check(self, vocabulary: Vocabulary) -> None:
        super().check(vocabulary)
        missing = [name for name in self.modes if name not in vocabulary.by_name]
        if missing or len(self.modes) != 3:
            added = "{'additional_special_tokens': ['[R]', '[S]', '[X]']}"
            raise MaskwiseError(
                "corruption ul2 needs three mode tokens that the tokenizer knows",
                got=f"{self.modes}, missing {missing}",
                do=f"tokenizer.add_special_tokens({added}), beside the sentinels, or name its own: "
                "modes=('[NLU]', '[S2S]', '[NLG]')",
            )

    def _modes(self, batch: AnnotatedBatch, chosen: Array, vocabulary: Vocabulary) -> Array:
        return np.array([vocabulary.by_name[name] for name in self.modes]).take(
            mode_of(batch, chosen)
        )


def mode_of(batch: AnnotatedBatch, chosen: Array) -> Array:
    """(P,) int64: 0 for R, 1 for S, 2 for X."""
    runs_P, masked_P, text_P = (
        batch.count(x) for x in (run_starts(batch, chosen), chosen, batch.content)
    )
    last_P = chosen.take(last_content(batch)) if len(chosen) else runs_P > 0
    extreme_P = (masked_P >= 12 * runs_P) | (masked_P >= 0.3 * text_P)
    return np.where((runs_P == 1) & last_P, 1, extreme_P * 2)


@dataclass(frozen=True)
class PermuteSentences(Corruption):
    """The sentences that hold a chosen token change places among each other; the others stay in
    theirs.

    So ``policy="sentence", ratio=1`` moves all (BART's), a smaller ratio some. ``inner`` is another
    corruption, which shows the chosen tokens of the permuted piece (BART-large: ``infill``);
    without it they are shown as they are. Sentences are runs of one number ≥ 0 in ``layer``. The
    order is drawn by hash, evenly; it may be the old one.

    Targets: the whole piece.
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
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        source = self._sources(
            batch, batch.layer(self.layer, policy="permute-sentences"), chosen, keys
        )
        ids = batch.input_ids.take(source)
        if self.inner is None:
            return Corrupted(ids, labels_in_place(batch, chosen, "full"))
        layers = {name: layer.take(source) for name, layer in batch.layers.items()}
        permuted = replace(
            batch, input_ids=ids, eligible=batch.eligible.take(source), layers=layers
        )
        place = np.empty_like(source)  # where each token went
        place[source] = np.arange(len(source))
        moved = Units(
            permuted,
            place[units.tokens],
            units.unit,
            units.piece,
            units.number,
            units.weight,
            units.in_order,
        )
        shown = self.inner.corrupt(permuted, chosen.take(source), moved, keys, vocabulary)
        if shown.lengths is None:
            return replace(shown, labels=labels_in_place(batch, chosen, "full"))
        labels, label_lengths = whole_text(batch, chosen, vocabulary.eos)
        return replace(shown, labels=labels, label_lengths=label_lengths)

    def _sources(self, batch: AnnotatedBatch, marked: Array, chosen: Array, keys: Keys) -> Array:
        """(T,) int64: the place in the line whose token each place gets.

        All sentences of the batch are one list (S,), all content tokens another (N,).
        """
        at = np.flatnonzero(batch.content)
        piece, name = batch.piece.take(at), marked.take(at).clip(min=-1)
        opens = changes(name, piece, at - np.arange(len(at)))  # in a run places rise by one
        begin, sentence = np.flatnonzero(opens), opens.cumsum() - 1
        length, moves = np.diff(begin, append=len(at)), np.zeros(len(begin), bool)
        # Stretches between sentences are sentences that never move.
        moves[sentence.take(np.flatnonzero(chosen.take(at) & (name >= 0)))] = True
        piece = piece.take(begin)
        number = rank_within(np.bincount(piece, minlength=len(batch.begin)))
        # Moving sentences, in the order of their pieces: as they stand (slot), and as they are
        # drawn.
        slot = np.flatnonzero(moves)
        draw = keys.draw(Purpose.PERMUTE, piece.take(slot), number.take(slot).astype(np.int32))
        order = np.arange(len(length))
        order[slot] = slot.take(((piece.take(slot) << 32) + draw).argsort())
        moved, shift = length.take(order), np.empty_like(begin)
        shift[order] = moved.cumsum() - moved  # where each sentence begins now
        shift -= begin
        source = np.arange(len(marked))
        source[at.take(np.arange(len(at)) + shift.take(sentence))] = at
        return source
