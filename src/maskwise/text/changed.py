"""The tokens of a changed tokenizer, and from which rows of a model theirs are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Origins(NamedTuple):
    """From which rows of the embeddings and of the output layer those of each token are made.

    Attributes:
        kept: for each id, the id of before; None if all tokens keep their ids.
        pieces: for each new id, which follows them, the ids (after ``kept``) whose mean it is.
    """

    kept: tuple[int, ...] | None = None
    pieces: Mapping[int, tuple[int, ...]] = {}

    def plain(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {"kept": self.kept, "pieces": dict(self.pieces)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Origins:
        """Restore what ``plain`` returned, also after JSON, whose keys are texts."""
        pieces = {int(number): tuple(ids) for number, ids in plain["pieces"].items()}
        return cls(None if plain["kept"] is None else tuple(plain["kept"]), pieces)


@dataclass(frozen=True)
class ChangedTokens:
    """A changed tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        rows: from which rows those of its tokens are made.
        facts: what the change did, as JSON; ``what`` says it in words.
    """

    tokenizer: PreTrainedTokenizerFast
    rows: Origins = field(default_factory=Origins)
    facts: dict[str, Any] = field(default_factory=dict)


def new_ids(rows: Iterable[Origins]) -> list[int]:
    """Return the ids of the tokens that changes, in their order, have added.

    >>> new_ids([Origins(None, {3: (0, 1)}), Origins((1, 3))])
    [1]
    """
    found = set[int]()
    for each in rows:
        if each.kept is not None:
            found = {after for after, before in enumerate(each.kept) if before in found}
        found |= {*each.pieces}
    return sorted(found)
