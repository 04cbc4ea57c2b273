"""What a corruption is: it says how chosen units are shown, and what must be produced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from maskwise.errors import unknown_name
from maskwise.keys import Array, Keys
from maskwise.masking.batch import IGNORE, AnnotatedBatch
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass
class Corrupted:
    """Inputs and targets of all pieces, one behind the other.

    Attributes:
        input_ids: (T,), or (T',) where lengths have changed: then padding is left out.
        labels: one for each token of ``input_ids``, or targets of their own, see ``label_lengths``.
        lengths: (P,) the tokens that each piece has now; None: every token stands where it stood.
        label_lengths: (P,) the targets of each piece, where they are a text of their own; else None.
        text: (T',) bool where lengths have changed: tokens that may be cut off (not the special ones).
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

    Rules for all: nothing but chosen tokens is corrupted; special tokens stay where they are; a piece where
    nothing was chosen comes back as it was and has no target; but its labels are 0 for ``detect``, where "nothing
    was done" is an answer.
    """

    shows_mask: ClassVar[bool] = True
    """Whether it shows mask tokens, which the tokenizer must then have."""

    @property
    def keeps_length(self) -> bool:
        """True where inputs and labels stay where the tokens were."""
        return True

    @property
    def detects(self) -> bool:
        """True where labels are 0 and 1, for what was done, and not tokens."""
        return getattr(self, "target", None) == "detect"

    @property
    def writes(self) -> str | None:
        """The text that a row's labels are, read from left to right: ``full``, ``spans`` (masked spans, behind
        separators) or ``sentinels`` (behind numbered ones); None where they are no text that a decoder can write."""
        target = getattr(self, "target", None)
        return target if target == "full" or (target == "spans" and not self.keeps_length) else None

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


def require_target(corruption: str, target: str, *known: str) -> None:
    """Refuse a target that a corruption does not have."""
    if target not in known:
        raise unknown_name(f"target of corruption {corruption}", target, known)


def masked_pieces(batch: AnnotatedBatch, chosen: Array) -> Array:
    """(T,) bool: the tokens, padding left out, of pieces where something was chosen."""
    return (batch.count(chosen) > 0).take(batch.piece) & batch.present


def last_content(batch: AnnotatedBatch) -> Array:
    """(P,) int64: where the last content token of each piece stands; its beginning where there is none."""
    count_P, place = batch.count(batch.content), batch.begin.copy()
    some = count_P > 0
    place[some] = np.flatnonzero(batch.content)[count_P.cumsum()[some] - 1]
    return place


def labels_in_place(batch: AnnotatedBatch, chosen: Array, target: str) -> Array:
    """(T,) labels at the places of the tokens: ``spans`` (chosen tokens), ``full`` (all), ``detect`` (0 and 1)."""
    if target == "detect":
        return np.where(batch.content, chosen.astype(np.int64), IGNORE)
    if target == "full":
        asked = masked_pieces(batch, chosen)
        if batch.packed:  # special tokens between documents are nobody's
            line = np.arange(len(asked))
            asked &= (line >= batch.first.take(batch.piece)) & (line <= last_content(batch).take(batch.piece))
    else:
        asked = chosen
    return np.where(asked, batch.input_ids, IGNORE)
