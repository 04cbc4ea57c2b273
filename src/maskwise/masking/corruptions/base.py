"""The base class of corruptions, and the corruptions that insert no token.

``masking.batch`` explains pieces and shapes such as (T,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, require_known
from maskwise.keys import Array, Keys, Purpose, below, split, within
from maskwise.masking.batch import IGNORE, AnnotatedBatch, Columns, MaskedBatch, Names, Spans
from maskwise.masking.select import Selection
from maskwise.masking.vocabulary import Vocabulary
from maskwise.segments import offsets, rank_within

Tail: TypeAlias = "Array | int | None"
"""The id to append to every piece, or (P,) ids, one per piece; None to append nothing."""


@dataclass
class Corrupted:
    """The inputs and labels of all pieces, concatenated.

    T' is the number of tokens, without padding, after a corruption that changes lengths.

    Attributes:
        input_ids: (T,) int64; (T',) if lengths have changed.
        labels: one label per token of ``input_ids``; or, for a decoder, the concatenated texts that
            the decoder must generate.
        lengths: (P,) the new number of tokens in each piece; None if all tokens keep their places.
        label_lengths: (P,) the number of labels of each piece, if a decoder generates the labels;
            otherwise None.
        text: (T',) bool, the tokens that may be cut off: all but special tokens. Empty if all
            tokens keep their places.
        extras: (T',) further model inputs by name; empty if all tokens keep their places.
    """

    input_ids: Array
    labels: Array
    lengths: Array | None = None
    label_lengths: Array | None = None
    text: Array = field(default_factory=lambda: np.zeros(0, bool))
    extras: Columns = field(default_factory=dict)


def lay_out(shown: Corrupted, choice: Selection, pad: int) -> MaskedBatch:
    """Turn the corrupted tokens into a batch of rows, as tensors. ``pad`` is the padding id."""
    import torch

    batch = choice.batch
    columns = {"input_ids": shown.input_ids, "labels": shown.labels, **batch.extras}
    spans = None
    cut = 0
    if shown.lengths is None:
        if batch.attention_mask is not None:
            columns["attention_mask"] = batch.attention_mask
        columns = {name: line.reshape(batch.shape) for name, line in columns.items()}
    else:
        columns, cut = _new_rows(shown, batch, pad)
        spans = Spans(columns.pop("piece"), columns.pop("label piece", None))
        columns["attention_mask"] = (spans.tokens >= 0).astype(np.int64)
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    masked = MaskedBatch(
        tensors.pop("input_ids"),
        tensors.pop("labels"),
        tensors.pop("attention_mask", None),
        batch,
        targets=int(np.count_nonzero(columns["labels"] != IGNORE)),
        # The remaining tensors are inputs that only some models read.
        extras=tensors,
        choice=choice,
        spans=spans,
        cut=cut,
    )
    if choice.weight_T is not None:
        masked.loss_weight = torch.from_numpy(choice.weight_T.reshape(batch.shape))
        masked.counted = len(batch.eligible_at)
    return masked


def _new_rows(shown: Corrupted, batch: AnnotatedBatch, pad: int) -> tuple[Columns, int]:
    """Arrange pieces of new lengths as (B, L') columns, and return the number of cut tokens too."""
    assert shown.lengths is not None
    pieces = np.arange(batch.pieces)
    fills = {"input_ids": pad, "labels": IGNORE, "piece": -1, "label piece": -1}

    def in_rows(columns: Columns, length_B: Array) -> Columns:
        """Split each line into rows of ``length_B`` items, and pad them to one column or more."""
        inside = np.arange(length_B.max(initial=1)) < length_B[:, None]
        rows = {}
        for name, line in columns.items():
            rows[name] = np.full(inside.shape, fills.get(name, 0), line.dtype)
            rows[name][inside] = line
        return rows

    def tokens_of_rows(lengths_P: Array) -> Array:
        return np.bincount(batch.row, lengths_P, batch.shape[0]).astype(np.int64)

    length_B = tokens_of_rows(shown.lengths)
    columns = {"input_ids": shown.input_ids, "piece": pieces.repeat(shown.lengths), **shown.extras}
    if shown.label_lengths is None:
        columns["labels"] = shown.labels
    cut = 0
    if batch.plan is not None and (length_B > batch.plan).any():
        # Cut off the end of the text. If the row ends with a special token, keep it, because models
        # expect [SEP] or [EOS] at the end.
        rank = rank_within(length_B)
        last_B = length_B - 1
        closed_B = ~shown.text.take(offsets(length_B) + last_B)
        kept = rank < np.repeat(batch.plan - closed_B, length_B)
        kept |= rank == np.repeat(np.where(closed_B, last_B, -1), length_B)
        cut = int(np.count_nonzero(~kept))
        columns = {name: values[kept] for name, values in columns.items()}
        length_B = np.minimum(length_B, batch.plan)
    rows = in_rows(columns, length_B)
    if shown.label_lengths is not None:
        written = {"labels": shown.labels, "label piece": pieces.repeat(shown.label_lengths)}
        rows |= in_rows(written, tokens_of_rows(shown.label_lengths))
    return rows, cut


class Corruption(ABC):
    """Base class of all corruptions. A corruption is a small frozen dataclass.

    Corruptions change only selected tokens, never special tokens. A piece without a selected token
    is unchanged. It has no targets, except if the target is ``detect``: then its labels are 0.
    """

    shows_mask = True
    """Whether the tokenizer must have a mask token."""

    targets: Names = ()
    """The allowed values of ``target``; empty if the target is fixed."""

    target: str | None = None
    """What the model predicts: ``spans`` (the selected tokens), ``full`` (all tokens of the piece)
    or ``detect`` (whether each token was corrupted)."""

    def __post_init__(self) -> None:
        if self.targets:
            name = type(self).__name__.lower()
            require_known(f"target of corruption {name}", str(self.target), self.targets)

    @property
    def keeps_length(self) -> bool:
        """Whether all tokens keep their positions."""
        return True

    @property
    def detects(self) -> bool:
        """Whether labels are 1 for corrupted tokens and 0 for other tokens."""
        return self.target == "detect"

    @property
    def writes(self) -> str | None:
        """The kind of text that a decoder must generate: ``full``, ``spans`` or ``sentinels``.

        None if every label belongs to the input token at its position.
        """
        if self.target == "full":
            return self.target
        # If lengths are kept, the labels have −100 between the spans, so they are not a text.
        if self.target == "spans" and not self.keeps_length:
            return self.target
        return None

    @abstractmethod
    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        """Corrupt the selected tokens.

        Args:
            batch: the pieces. Do not change this batch in place.
            choice: the selected tokens (``choice.tokens``, (T,) bool) and their units.
            keys: the random draws for these pieces.
            vocabulary: the special tokens, and the tokens that may replace others.
        """

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise ``MaskwiseError`` if the tokenizer lacks a token that this corruption needs."""
        if self.shows_mask:
            vocabulary.require_mask()


class Line:
    """The positions of tokens after some tokens were removed and others were inserted.

    Args:
        batch: the batch before these changes.
        stay: (T,) bool, the tokens to keep.
        leads: (T,) bool, the tokens before which a new token is inserted. These tokens may be kept
            or removed.
    """

    def __init__(self, batch: AnnotatedBatch, stay: Array, leads: Array | None = None):
        if leads is None:
            leads = np.zeros_like(stay)
        self.batch = batch
        self.at = np.flatnonzero(interleaved(leads, stay))
        self.lengths = batch.count(stay) + batch.count(leads)

    def __call__(self, values: Array, new: Array | int | None = None) -> Array:
        """Return the values, (T',), of the new tokens, given ``values``, (T,), of the old tokens.

        Inserted tokens get the value ``new``. By default, an inserted token gets the value of the
        token that it precedes.
        """
        if new is None:
            new = values
        return interleaved(new, values).take(self.at)

    def shown(
        self, input_ids: Array, labels: Array, label_lengths: Array | None = None
    ) -> Corrupted:
        """Combine ids and labels with the other inputs of the model, moved to the new positions."""
        extras = moved_extras(self.batch, self)
        text = self(self.batch.content, True)
        return Corrupted(input_ids, labels, self.lengths, label_lengths, text, extras)


def moved_extras(batch: AnnotatedBatch, move: Callable[[Array], Array]) -> Columns:
    """Apply ``move`` to further model inputs, such as token types, as to the tokens."""
    # ``position_ids`` are left out, so that the model numbers the new positions itself.
    return {name: move(line) for name, line in batch.extras.items() if name != "position_ids"}


def interleaved(before: Array | int, values: Array) -> Array:
    """(2T,) array: before each item of ``values`` (T,), the item of ``before`` (T,)."""
    both = np.empty((len(values), 2), values.dtype)
    both[:, 0] = before
    both[:, 1] = values
    return both.reshape(-1)


def last_content(batch: AnnotatedBatch) -> Array:
    """(P,) int64: the position of the last content token of each piece.

    If a piece has no content tokens, this is the position of its first token.
    """
    at = batch.content_at
    last_P = at.searchsorted(batch.edges[1:]) - 1
    # If the first pieces have no content, their index is −1, which reads the appended 0.
    at = np.append(at, 0)
    return np.where(batch.count(batch.content) > 0, at[last_P], batch.begin)


def labels_in_place(choice: Selection, target: str) -> Array:
    """(T,) int64: the labels for a target of ``spans``, ``full`` or ``detect``."""
    batch = choice.batch
    if target == "detect":
        return np.where(batch.content, choice.tokens.astype(np.int64), IGNORE)
    asked = choice.tokens
    if target == "full":
        asked = choice.masked_pieces
        if batch.packed:
            # Special tokens between two documents belong to neither document.
            line = np.arange(len(asked))
            asked &= line >= batch.first.take(batch.piece)
            asked &= line <= last_content(batch).take(batch.piece)
    return np.where(asked, batch.input_ids, IGNORE)


def whole_text(choice: Selection, eos: int | None) -> tuple[Array, Array]:
    """Return the text and ``eos`` of each masked piece as labels, and (P,) numbers of labels."""
    line = Line(choice.batch, choice.masked_pieces)
    labels = line(choice.batch.input_ids)
    if eos is None:
        return labels, line.lengths
    # If the text already ends with ``eos``, a second ``eos`` would teach the model to repeat it.
    last_P = np.append(labels, eos)[line.lengths.cumsum() - 1]
    open_P = (line.lengths > 0) & (last_P != eos)
    return ended(labels, line.lengths, open_P, eos)


def removed_text(
    choice: Selection, leads: Array | None, lead: Array | int, *tails: Tail
) -> tuple[Array, Array]:
    """Return the selected tokens of each piece as labels, and the numbers of labels, (P,).

    Args:
        choice: the selected tokens.
        leads: (T,) bool, the tokens before which ``lead`` is inserted; None to insert nothing.
        lead: the id to insert, or (T,) ids, one per token.
        tails: ids to append to each piece with labels.
    """
    line = Line(choice.batch, choice.tokens, leads)
    labels = line(choice.batch.input_ids, lead)
    return ended(labels, line.lengths, line.lengths > 0, *tails)


def ended(labels: Array, lengths: Array, closes_P: Array, *tails: Tail) -> tuple[Array, Array]:
    """Append each tail to the labels of the pieces where ``closes_P`` is True."""
    for tail in tails:
        if tail is not None:
            ids = np.broadcast_to(tail, closes_P.shape)[closes_P]
            labels = np.insert(labels, lengths.cumsum()[closes_P], ids)
            lengths = lengths + closes_P
    return labels, lengths


@dataclass(frozen=True)
class Bert(Corruption):
    """Replace a share ``mask`` of the selected tokens by [MASK] and a share ``random`` by a random
    token. Other selected tokens are unchanged.

    All selected tokens are targets. Whether a token is masked, replaced or unchanged is decided for
    each token independently, or with ``per="unit"`` for all tokens of a unit together (SpanBERT).
    Random tokens are drawn uniformly from the ordinary tokens of the tokenizer.

    Source: Devlin et al. 2019, section 3.1; per unit: Joshi et al. 2020 (SpanBERT), section 3.1.
    """

    mask: float = 0.8
    random: float = 0.1
    per: str = "token"

    def __post_init__(self) -> None:
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            raise MaskwiseError(
                "corruption bert: shares must be ≥ 0 and sum to at most 1",
                got=(self.mask, self.random),
            )
        require_known("value of per in corruption bert", self.per, ("token", "unit"))

    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        at = np.flatnonzero(choice.tokens)
        original = batch.input_ids[at]
        units = choice.units
        by_unit = self.per == "unit" and not units.by_token
        if by_unit:
            number_T = np.zeros_like(batch.input_ids)
            number_T[units.tokens] = units.number[units.unit]
            draw = keys.draw_each(Purpose.SHOW, batch.count_at(at), number_T[at])
        else:
            draw = batch.draw(keys, Purpose.SHOW, at)
        labels = np.full_like(batch.input_ids, IGNORE)
        labels[at] = original
        input_ids = batch.input_ids.copy()
        input_ids[at] = vocabulary.require_mask()
        # First mask all selected tokens, then restore or replace the few others.
        other = np.flatnonzero(~within(draw, self.mask))
        shown = original[other]
        if self.random:
            draw = draw[other]
            low = self.mask
            high = low + self.random
            random = np.flatnonzero(within(draw, high))
            ordinary = vocabulary.ordinary
            if by_unit:
                # All tokens of a unit have the same draw, but each needs its own random token.
                again = batch.draw(keys, Purpose.REPLACE, at[other[random]])
                number = below(again, len(ordinary))
            else:
                # Between ``low`` and ``high`` the draw is uniform, so it also selects the token.
                number = split(draw[random], low, high, len(ordinary))
            shown[random] = ordinary[number]
        input_ids[at[other]] = shown
        return Corrupted(input_ids, labels)


def mask_only() -> Bert:
    """Replace every selected token by [MASK].

    Source: Wettig et al. 2023, who found that [MASK] alone with a ratio of 40 % was better than
    BERT's mix (80 % [MASK], 10 % random, 10 % unchanged) with a ratio of 15 %.
    """
    return Bert(mask=1.0, random=0.0)


@dataclass(frozen=True)
class Replace(Corruption):
    """Replace every selected token by a different random ordinary token.

    The tokenizer needs no mask token.

    Targets: with ``spans``, the original tokens at the selected positions. With ``full``, the whole
        piece. With ``detect``, 1 at replaced tokens and 0 at other tokens of the text
        (replaced-token detection without a generator).
    Source: BERT, which replaces 10 % of the selected tokens in this way; Clark et al. 2020
        (ELECTRA) for detection.
    """

    target: str = "spans"

    shows_mask = False
    targets = ("spans", "full", "detect")

    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        at = np.flatnonzero(choice.tokens)
        original = batch.input_ids[at]
        ordinary = vocabulary.ordinary
        # The original token must not be drawn, so add one to all numbers from its index on.
        draw = batch.draw(keys, Purpose.REPLACE, at)
        number = below(draw, max(1, len(ordinary) - 1))
        number += number >= np.searchsorted(ordinary, original)
        input_ids = batch.input_ids.copy()
        input_ids[at] = ordinary.take(number, mode="clip")
        return Corrupted(input_ids, labels_in_place(choice, self.target))


class Moving(Corruption):
    """Base class of corruptions that change the lengths of pieces."""

    keeps_length = False


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

    def corrupt(
        self, batch: AnnotatedBatch, choice: Selection, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        chosen = choice.tokens
        line = Line(batch, batch.present & ~chosen)
        inputs = line(batch.input_ids)
        if self.target == "full":
            return line.shown(inputs, *whole_text(choice, vocabulary.eos))
        if self.target == "spans":
            return line.shown(inputs, *removed_text(choice, None, 0, vocabulary.eos))
        # ``gap``: whether the previous token of the same piece was deleted.
        inside = np.ones(len(chosen), bool)
        inside[batch.begin[: len(inside)]] = False
        gap = inside & np.roll(chosen, 1)
        asked = batch.content | (inside & np.roll(batch.content, 1))
        labels = np.where(asked, gap.astype(np.int64), IGNORE)
        return line.shown(inputs, line(labels))
