"""What a corruption is: it says how chosen units are shown, and what must be produced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from maskwise.errors import unknown_name
from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass
class Corrupted:
    """Inputs (b, l') and targets (b, l''), padded at the end; ``attention_mask`` None: nothing is padded."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    extras: dict[str, Tensor] = field(default_factory=dict)


class Corruption(ABC):
    """Base of all corruptions. Members are small frozen dataclasses.

    Rules for all: nothing but chosen tokens is corrupted; special tokens stay where they are; a row where
    nothing was chosen comes back as it was and has no target; but its labels are 0 for ``detect``, where "nothing
    was done" is an answer.
    """

    #: whether it shows mask tokens, which the tokenizer must then have
    shows_mask = True

    @property
    def keeps_length(self) -> bool:
        """True where inputs and labels stay (B, L), so that packed rows keep their layout."""
        return True

    @property
    def detects(self) -> bool:
        """True where labels are 0 and 1, for what was done, and not tokens."""
        return getattr(self, "target", None) == "detect"

    @abstractmethod
    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        """Show the chosen tokens.

        Args:
            batch: (B, L) rows of one document each; never changed.
            chosen: (B, L) bool, whole units.
            units: the partition that was chosen from.
            keys: the draws of these rows.
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
