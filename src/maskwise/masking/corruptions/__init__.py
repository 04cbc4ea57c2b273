"""Corruptions: how selected tokens are replaced, and which labels the model must predict.

``base`` contains the corruptions that insert no tokens. The corruptions in this file insert or move
tokens. A corruption works on all tokens of a batch at once, as one flat array, without a loop over
pieces (the documents of a row). To add a corruption, write a class like ``Bert`` or ``Delete`` and
add a line to ``CORRUPTIONS``, the only registry. The contract tests then run on the new corruption
too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.keys import Array, Keys, Purpose, below, unit_interval, within
from maskwise.masking.batch import IGNORE, AnnotatedBatch
from maskwise.masking.corruptions.base import (
    Bert,
    Corrupted,
    Corruption,
    Delete,
    Line,
    Moving,
    Replace,
    labels_in_place,
    last_content,
    mask_only,
    moved_extras,
    removed_text,
    whole_text,
)
from maskwise.masking.select import Selection
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary
from maskwise.segments import changes, offsets, owners, rank_within, sums_within
from maskwise.specs import Call, build


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

    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        new_T = choice.tokens.astype(np.int64)
        if self.again:
            at = np.flatnonzero(choice.tokens)
            draw = unit_interval(batch.draw(keys, Purpose.LENGTH, at))
            # The number of further tokens has a geometric distribution. This is the inverse of its
            # distribution function.
            new_T[at] += (np.log(draw) / math.log(self.again)).astype(np.int64)
        shown_T = new_T + batch.present
        # ``source`` is the old position of each output token. An inserted token has the old
        # position of the selected token that it precedes.
        source = owners(shown_T)
        rank = rank_within(shown_T)
        is_new = rank < new_T.take(source)
        text = is_new | batch.content.take(source)
        if self.cut is not None:
            lengths = batch.count(shown_T)
            room_P = self.cut - batch.count(batch.present & ~batch.content)
            fits = ~text | (sums_within(text, lengths) <= np.repeat(room_P, lengths))
            source = source[fits]
            rank = rank[fits]
            is_new = is_new[fits]
            text = text[fits]
        piece = batch.piece.take(source)
        # The indices are distinct, because a piece has fewer than 2²⁰ tokens.
        index = source - batch.first.take(piece) + (rank << 20)
        draw = keys.draw(Purpose.REPLACE, piece[is_new], index[is_new])
        inputs = batch.input_ids.take(source)
        inputs[is_new] = vocabulary.ordinary[below(draw, len(vocabulary.ordinary))]
        extras = moved_extras(batch, lambda values: values.take(source))
        lengths = np.bincount(piece, minlength=batch.pieces)
        if self.target == "full":
            labels, label_lengths = whole_text(choice, vocabulary.eos)
            return Corrupted(inputs, labels, lengths, label_lengths, text, extras)
        labels = np.where(text, is_new.astype(np.int64), IGNORE)
        return Corrupted(inputs, labels, lengths, None, text, extras)


@dataclass(frozen=True)
class Infill(Moving):
    """Replace each run of selected tokens by one [MASK], and insert a [MASK] per empty span (BART).

    BART draws span lengths from a Poisson distribution, which contains the length 0. A span of
    length 0 is *empty*: a [MASK] is inserted between two tokens. Masking policies select only spans
    of at least one token (for BART, use ``span(poisson=3.0)``). This corruption adds the empty
    spans. A Poisson length is 0 with probability q = exp(−mean), so for each selected span, an
    empty span is added with probability q / (1 − q), at a random place that no span touches. With
    ``mean=None`` there are no empty spans.

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
        if self.mean is not None and self.mean <= 0:
            raise MaskwiseError(
                "argument mean of corruption infill is not valid",
                got=self.mean,
                allowed="above 0, or None",
            )

    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        chosen = choice.tokens
        eos = vocabulary.eos
        mask = vocabulary.require_mask()
        starts = choice.starts
        stay = batch.present & ~chosen
        empty = np.zeros_like(chosen)
        if self.mean is not None:
            empty[self._empty(choice, keys, self.mean)] = True
        leads = starts | empty
        line = Line(batch, stay, leads)
        inputs = line(batch.input_ids, mask)
        if self.target == "full":
            return line.shown(inputs, *whole_text(choice, eos))
        return line.shown(inputs, *removed_text(choice, leads, mask, eos))

    def _empty(self, choice: Selection, keys: Keys, mean: float) -> Array:
        """(N,) int64: the positions of the tokens before which an empty span is inserted."""
        batch = choice.batch
        q = math.exp(-mean)
        # An empty span lies between two tokens of a piece that are both not selected.
        free = batch.content & ~choice.tokens
        gap = free.copy()
        gap[1:] &= free[:-1]
        # An empty batch has pieces, but no tokens.
        gap[batch.begin[batch.begin < len(gap)]] = False
        count_P = batch.count(gap)
        # The units of a mixture are not sorted by piece, so pieces are listed anew.
        spans_P = np.bincount(choice.units.piece[choice.chosen], minlength=batch.pieces)
        piece = owners(spans_P)
        # Each span has two draws. The first decides whether an empty span is added, and the second
        # decides where.
        index = 2 * rank_within(spans_P)
        adds = within(keys.draw(Purpose.LENGTH, piece, index), q / (1 - q))
        adds &= count_P.take(piece) > 0
        piece = piece[adds]
        draw = keys.uniform(Purpose.LENGTH, piece, index[adds] + 1)
        slot = (draw * count_P.take(piece)).astype(np.int64)
        return np.flatnonzero(gap).take(offsets(count_P).take(piece) + slot)


@dataclass(frozen=True)
class T5(Moving):
    """Replace the k-th run of selected tokens by the k-th sentinel. Adjacent spans form one run.

        inputs:  Thank you <extra_id_0> me to your party <extra_id_1> week.
        targets: <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

    Each piece of a packed row begins with the first sentinel.

    Targets: with ``spans``, each sentinel and the tokens that it replaced, a last sentinel, and the
        end-of-sequence token if ``eos`` is True and the tokenizer has this token. With ``full``,
        the whole piece.
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), figure 2 and section 3.1.4.

    Raises:
        MaskwiseError: a piece has too many spans for the tokenizer's sentinels. A tokenizer with n
            sentinels allows n − 1 spans, because the target ends with one more sentinel.
    """

    target: str = "spans"
    eos: bool = True

    targets = ("spans", "full")

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
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        chosen = choice.tokens
        sentinel = vocabulary.sentinel
        starts = choice.starts
        runs_P = batch.count(starts)
        if runs_P.max(initial=0) >= len(sentinel):
            raise MaskwiseError(
                "a text has more masked spans than the tokenizer has sentinels",
                got=int(runs_P.max()),
                allowed=f"at most {len(sentinel) - 1}",
                do="use longer spans (policy t5-span), a lower ratio or shorter texts",
            )
        lead = batch.input_ids.copy()
        lead[starts] = sentinel.take(rank_within(runs_P))
        # A sentinel takes the place of the first token of its run, so it is not inserted. Only mode
        # tokens are inserted.
        stay = batch.present & ~chosen | starts
        mode_P = self._modes(choice, vocabulary)
        if mode_P is None:
            line = Line(batch, stay)
            inputs = line(lead)
        else:
            opens = np.zeros(len(stay), bool)
            opens[batch.first[runs_P > 0]] = True
            line = Line(batch, stay, opens)
            inputs = line(lead, mode_P.take(batch.piece))
        eos = vocabulary.eos if self.eos else None
        if self.target == "full":
            return line.shown(inputs, *whole_text(choice, eos))
        labels = removed_text(choice, starts, lead, sentinel.take(runs_P), eos)
        return line.shown(inputs, *labels)

    def _modes(self, choice: Selection, vocabulary: Vocabulary) -> Array | None:
        """(P,) int64: ids to insert before the text of masked pieces; None to insert nothing."""
        return None


@dataclass(frozen=True)
class Ul2(T5):
    """Corrupt as ``t5``, and insert a mode token before each masked text (UL2).

    The mode token tells the model how the piece was masked. The mode is computed from the mask, so
    any masking policy may be used. The mode is S (sequential) if the only masked span is at the end
    of the text. Otherwise the mode is X (extreme) if spans have at least 12 tokens on average or if
    at least 30 % of the text is masked, as in the paper. Otherwise the mode is R (regular). A piece
    without selected tokens gets no mode token.

    Targets: the same as for ``t5``.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), sections 3.1.2 and 3.1.3.
    """

    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")

    def check(self, vocabulary: Vocabulary) -> None:
        super().check(vocabulary)
        missing = set(self.modes) - vocabulary.by_name.keys()
        if missing or len(self.modes) != 3:
            added = "{'additional_special_tokens': ['[R]', '[S]', '[X]']}"
            raise MaskwiseError(
                "corruption ul2 needs three mode tokens that the tokenizer knows",
                got=f"{self.modes}, missing {sorted(missing)}",
                do=f"call tokenizer.add_special_tokens({added}), or name three tokens of the "
                "tokenizer: modes=('[NLU]', '[S2S]', '[NLG]')",
            )

    def _modes(self, choice: Selection, vocabulary: Vocabulary) -> Array:
        modes = np.array([*map(vocabulary.by_name.get, self.modes)])
        return modes.take(mode_of(choice))


def mode_of(choice: Selection) -> Array:
    """(P,) int64: the UL2 mode of each piece: 0 for R, 1 for S, 2 for X."""
    batch = choice.batch
    runs_P = batch.count(choice.starts)
    masked_P = batch.count(choice.tokens)
    last_P = np.append(choice.tokens, False)[last_content(batch)]
    extreme_P = (masked_P >= 12 * runs_P) | (masked_P >= 0.3 * batch.count(batch.content))
    return np.where((runs_P == 1) & last_P, 1, extreme_P * 2)


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

    def check(self, vocabulary: Vocabulary) -> None:
        if self.inner is not None:
            self.inner.check(vocabulary)

    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        units = choice.units
        source = self._sources(batch, batch.layer(self.layer), choice.tokens, keys)
        ids = batch.input_ids.take(source)
        if self.inner is None:
            return Corrupted(ids, labels_in_place(choice, "full"))
        permuted = replace(
            batch,
            input_ids=ids,
            eligible=batch.eligible.take(source),
            layers={name: layer.take(source) for name, layer in batch.layers.items()},
        )
        # Invert the permutation: ``place`` is the new position of each token.
        place = np.empty_like(source)
        place[source] = np.arange(len(source))
        moved = Units.of_tokens(
            permuted, place[units.tokens], units.unit, units.piece, units.number, units.weight
        )
        moved.by_token = units.by_token
        shown = self.inner.corrupt(permuted, replace(choice, units=moved), keys, vocabulary)
        if shown.lengths is None:
            return replace(shown, labels=labels_in_place(choice, "full"))
        labels, label_lengths = whole_text(choice, vocabulary.eos)
        return replace(shown, labels=labels, label_lengths=label_lengths)

    def _sources(self, batch: AnnotatedBatch, marked: Array, chosen: Array, keys: Keys) -> Array:
        """(T,) int64: the old position of the token at each new position."""
        at = batch.content_at
        name = marked.take(at).clip(min=-1)
        piece = batch.piece.take(at)
        # The last argument is constant while content tokens are adjacent, and changes where special
        # tokens interrupt a sentence.
        opens = changes(name, piece, at - np.arange(len(at)))
        # Number the sentences of the batch consecutively. Text between sentences is treated as a
        # sentence that never moves.
        begin = np.flatnonzero(opens)
        sentence = opens.cumsum() - 1
        length = np.diff(begin, append=len(at))
        moves = np.zeros(len(begin), bool)
        moves[sentence[chosen.take(at) & (name >= 0)]] = True
        piece = piece.take(begin)
        number = rank_within(np.bincount(piece, minlength=batch.pieces))
        # Sentences that move change places only with other moving sentences of the piece.
        slot = np.flatnonzero(moves)
        piece = piece.take(slot)
        draw = keys.draw(Purpose.PERMUTE, piece, number.take(slot))
        order = np.arange(len(length))
        order[slot] = slot.take(((piece << 32) + draw).argsort())
        new_begin = np.empty_like(begin)
        new_begin[order] = offsets(length.take(order))
        shift = new_begin - begin
        source = np.arange(len(marked))
        source[at.take(np.arange(len(at)) + shift.take(sentence))] = at
        return source


def permute_sentences(
    layer: str = "sentence", inner: Corruption | str | Call | None = None
) -> PermuteSentences:
    """Permute the sentences that contain a selected token (BART).

    ``inner``, a corruption or its name, then corrupts the selected tokens.
    """
    return PermuteSentences(layer, None if inner is None else corruption(inner))


CORRUPTIONS: dict[str, Callable[..., Corruption]] = {
    "bert": Bert,
    "mask-only": mask_only,
    "replace": Replace,
    "delete": Delete,
    "insert": Insert,
    "infill": Infill,
    "t5": T5,
    "ul2": Ul2,
    "permute-sentences": permute_sentences,
}


def corruption(spec: Corruption | str | Call) -> Corruption:
    """Build a corruption from its name, with or without arguments.

    >>> corruption("bert(mask=1.0, random=0.0)")
    Bert(mask=1.0, random=0.0, per='token')
    """
    return spec if isinstance(spec, Corruption) else build("corruption", spec, CORRUPTIONS)


__all__ = [
    "CORRUPTIONS",
    "T5",
    "Bert",
    "Corrupted",
    "Corruption",
    "Delete",
    "Infill",
    "Insert",
    "PermuteSentences",
    "Replace",
    "Ul2",
    "corruption",
    "mask_only",
]
