"""What a corruption is, and those that leave every token in its place: BERT's, masks alone, random
replacement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose, below, split, within
from maskwise.masking.batch import IGNORE, AnnotatedBatch
from maskwise.masking.select import require_one_of
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass
class Corrupted:
    """Inputs and targets of all pieces, one behind the other.

    Attributes:
        input_ids: (T,), or (T',) where lengths have changed: then padding is left out.
        labels: one for each token of ``input_ids``, or targets of their own, see ``label_lengths``.
        lengths: (P,) the tokens that each piece has now; None: every token stands where it stood.
        label_lengths: (P,) the targets of each piece, where they are a text of their own; else
            None.
        text: (T',) bool where lengths have changed: tokens that may be cut off (not the special
            ones).
        extras: (T',) model inputs of the tokens that were moved.
    """

    input_ids: Array
    labels: Array
    lengths: Array | None = None
    label_lengths: Array | None = None
    text: Array = field(default_factory=lambda: np.zeros(0, bool))
    extras: dict[str, Array] = field(default_factory=dict)


class Corruption(ABC):
    """Base of all corruptions. Members are small frozen dataclasses.

    Rules for all: nothing but chosen tokens is corrupted; special tokens stay where they are; a
    piece where nothing was chosen comes back as it was and has no target; but its labels are 0 for
    ``detect``, where "nothing was done" is an answer.
    """

    shows_mask: ClassVar[bool] = True
    """Whether it shows mask tokens, which the tokenizer must then have."""

    target: str | None = None
    """What must be produced, where there is a choice."""

    @property
    def keeps_length(self) -> bool:
        """True where inputs and labels stay where the tokens were."""
        return True

    @property
    def detects(self) -> bool:
        """True where labels are 0 and 1, for what was done, and not tokens."""
        return self.target == "detect"

    @property
    def writes(self) -> str | None:
        """The text that a row's labels are, read from left to right: ``full``, ``spans`` (masked
        spans, behind separators) or ``sentinels`` (behind numbered ones); None where they are no
        text that a decoder can write.
        """
        read = self.target == "full" or (self.target == "spans" and not self.keeps_length)
        return self.target if read else None

    @abstractmethod
    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        """Show the chosen tokens.

        Args:
            batch: a line of pieces; never changed.
            chosen: (T,) bool, whole units.
            units: the partition that was chosen from.
            keys: the draws of these pieces.
            vocabulary: tables over ids.
        """

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a tokenizer that lacks what this corruption shows."""
        if self.shows_mask:
            vocabulary.require_mask()


class Line:
    """Which tokens stand, and before which of them something new stands.

    Args:
        batch: the pieces.
        stay: (T,) bool, the tokens that stand.
        leads: (T,) bool, the tokens before which something new stands, whether they stand
            themselves or not.
    """

    def __init__(self, batch: AnnotatedBatch, stay: Array, leads: Array | None = None):
        self.batch, self.leads = batch, leads
        candidates = stay if leads is None else interleaved(leads, stay)
        self.at = np.flatnonzero(candidates)
        self.lengths = (
            batch.count(stay) if leads is None else batch.count(stay) + batch.count(leads)
        )

    def __call__(self, values: Array, new: Array | int | None = None) -> Array:
        """What stands of (T,) values; ``new`` (T,), or one for all, stands in the leads: without
        it, the values.
        """
        if self.leads is None:
            return values.take(self.at)
        return interleaved(values if new is None else new, values).take(self.at)

    def shown(self, input_ids: Array, labels: Array, label_lengths: Array | None) -> Corrupted:
        """These inputs, with the extras of the tokens; what is new has those of the token behind
        it.
        """
        extras = {
            name: self(value) for name, value in self.batch.extras.items() if name != "position_ids"
        }
        text = self(self.batch.content, True)
        return Corrupted(input_ids, labels, self.lengths, label_lengths, text, extras)


def interleaved(before: Array | int, values: Array) -> Array:
    """(T,) and (T,) to (2T,): what stands before each token, and the token."""
    both = np.empty((len(values), 2), values.dtype)
    both[:, 0], both[:, 1] = before, values
    return both.reshape(-1)


def masked_pieces(batch: AnnotatedBatch, chosen: Array) -> Array:
    """(T,) bool: the tokens, padding left out, of pieces where something was chosen."""
    return (batch.count(chosen) > 0).take(batch.piece) & batch.present


def last_content(batch: AnnotatedBatch) -> Array:
    """(P,) int64: where the last content token of each piece stands; its beginning where there is
    none.
    """
    count_P, place = batch.count(batch.content), batch.begin.copy()
    some = count_P > 0
    place[some] = np.flatnonzero(batch.content)[count_P.cumsum()[some] - 1]
    return place


def labels_in_place(batch: AnnotatedBatch, chosen: Array, target: str) -> Array:
    """(T,) labels at the places of the tokens: ``spans`` (chosen tokens), ``full`` (all),
    ``detect`` (0 and 1).
    """
    if target == "detect":
        return np.where(batch.content, chosen.astype(np.int64), IGNORE)
    if target == "full":
        asked = masked_pieces(batch, chosen)
        if batch.packed:  # special tokens between documents are nobody's
            line = np.arange(len(asked))
            asked &= (line >= batch.first.take(batch.piece)) & (
                line <= last_content(batch).take(batch.piece)
            )
    else:
        asked = chosen
    return np.where(asked, batch.input_ids, IGNORE)


@dataclass(frozen=True)
class Bert(Corruption):
    """[MASK] with the share ``mask``, a random token with ``random``, else unchanged; the target is
    the token itself.

    One draw per token, or per unit (SpanBERT). Random tokens are drawn evenly from the tokenizer's
    real, non-special tokens. Only chosen positions are touched.
    Source: Devlin et al. 2019, section 3.1; per unit: Joshi et al. 2020 (SpanBERT), section 3.1.
    """

    mask: float = 0.8
    random: float = 0.1
    per: str = "token"

    def __post_init__(self) -> None:
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            got = (self.mask, self.random)
            raise MaskwiseError("corruption bert: shares must be ≥ 0 and sum to at most 1", got=got)
        require_one_of("per of corruption bert", self.per, ("token", "unit"))

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        at = np.flatnonzero(chosen)
        if by_unit := self.per == "unit" and not units.by_token:
            number = np.zeros(len(batch.input_ids), np.int32)
            number[units.tokens] = units.number[units.unit]
            draw = keys.draw_each(Purpose.SHOW, batch.count_at(at), number[at])
        else:
            draw = batch.draw(keys, Purpose.SHOW, at)
        original = batch.input_ids[at]
        input_ids, labels = batch.input_ids.copy(), np.full_like(batch.input_ids, IGNORE)
        labels[at], input_ids[at] = original, vocabulary.require_mask()
        # Most are masked now; the others get their token back, or a random one.
        other = np.flatnonzero(~within(draw, self.mask))
        shown, draw = original[other], draw[other]
        if self.random:
            ordinary, drawn = (
                vocabulary.ordinary,
                np.flatnonzero(within(draw, self.mask + self.random)),
            )
            if by_unit:
                number = below(batch.draw(keys, Purpose.REPLACE, at[other[drawn]]), len(ordinary))
            else:  # what is left of the draw is as good as another
                number = split(draw[drawn], self.mask, self.mask + self.random, len(ordinary))
            shown[drawn] = ordinary[number]
        input_ids[at[other]] = shown
        return Corrupted(input_ids, labels)


def mask_only() -> Bert:
    """Every chosen token becomes [MASK] (Wettig et al. 2023: at 40 % better than 80/10/10 at 15 %)."""
    return Bert(mask=1.0, random=0.0)


@dataclass(frozen=True)
class Replace(Corruption):
    """A random ordinary token, never the same one, for every chosen token; no mask token is needed.

    Targets: ``spans``: the original at chosen positions; ``full``: the whole piece; ``detect``: 1
        where replaced, 0 at the rest of the text (replaced-token detection without a generator).
    Source: the "random" part of BERT's 80/10/10; Clark et al. 2020 (ELECTRA) for detection.
    """

    target: str = "spans"

    shows_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_one_of("target of corruption replace", self.target, ("spans", "full", "detect"))

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Array, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        at = np.flatnonzero(chosen)
        original, ordinary = batch.input_ids[at], vocabulary.ordinary
        # A number among all ordinary tokens but the original: those from it on move up by one.
        number = below(batch.draw(keys, Purpose.REPLACE, at), max(1, len(ordinary) - 1))
        number += number >= np.searchsorted(ordinary, original)
        input_ids = batch.input_ids.copy()
        input_ids[at] = ordinary.take(number, mode="clip")
        return Corrupted(input_ids, labels_in_place(batch, chosen, self.target))
