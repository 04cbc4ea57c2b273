"""What all corruptions share: their base class, their result, and edits of the text.

A corruption replaces, removes or inserts tokens, all tokens of a batch at once, as flat arrays
without a loop over pieces. ``masking.line`` explains pieces and shapes such as (T,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from maskwise.base.errors import PlugInError, require_known
from maskwise.base.plugins import is_foreign
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.draws import Array, Draws
from maskwise.masking.line import Columns, Line, Names
from maskwise.masking.segments import offsets, rank_within
from maskwise.masking.select import Choice
from maskwise.masking.vocabulary import Vocabulary

Tail: TypeAlias = "Array | int | None"
"""The id to append to every piece, or (P,) ids, one per piece; None to append nothing."""


@dataclass
class Masked:
    """The corrupted inputs and the labels of a line, as flat arrays.

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

    def batch(self, choice: Choice, pad: int) -> MaskedBatch:
        """Turn the arrays into rows of tensors.

        Args:
            choice: the choice that was corrupted.
            pad: the id of padding.
        """
        import torch

        line = choice.line
        columns = {"input_ids": self.input_ids, "labels": self.labels, **line.extras}
        cut = 0
        if self.lengths is None:
            if line.attention_mask is not None:
                columns["attention_mask"] = line.attention_mask
            columns = {name: values.reshape(line.shape) for name, values in columns.items()}
        else:
            columns, cut = self._in_new_rows(line, pad)
            columns["attention_mask"] = (columns["piece"] >= 0).astype(np.int64)
        piece_BL = columns.pop("piece", None)
        written_BL = columns.pop("piece of label", None)
        targets = int(np.count_nonzero(columns["labels"] != IGNORE))
        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        masked = MaskedBatch(
            tensors.pop("input_ids"),
            tensors.pop("labels"),
            tensors.pop("attention_mask", None),
            line,
            targets,
            # The remaining tensors are inputs that only some models read.
            extras=tensors,
            choice=choice,
            piece_BL=piece_BL,
            written_BL=written_BL,
            cut=cut,
        )
        if choice.loss_weight is not None:
            masked.loss_weight = torch.from_numpy(choice.loss_weight.reshape(line.shape))
            masked.counted = len(line.eligible_at)
        return masked

    def _in_new_rows(self, line: Line, pad: int) -> tuple[Columns, int]:
        """Arrange pieces of new lengths as (B, L') columns; return the number of cut tokens too."""
        assert self.lengths is not None
        pieces = np.arange(line.pieces)
        fills = {"input_ids": pad, "labels": IGNORE, "piece": -1, "piece of label": -1}

        def in_rows(columns: Columns, length_B: Array) -> Columns:
            """Split values into rows of ``length_B`` items, and pad them to one column or more."""
            inside = np.arange(length_B.max(initial=1)) < length_B[:, None]
            rows = {}
            for name, values in columns.items():
                rows[name] = np.full(inside.shape, fills.get(name, 0), values.dtype)
                rows[name][inside] = values
            return rows

        def tokens_of_rows(lengths_P: Array) -> Array:
            return np.bincount(line.row, lengths_P, line.shape[0]).astype(np.int64)

        length_B = tokens_of_rows(self.lengths)
        columns = {
            "input_ids": self.input_ids,
            "piece": pieces.repeat(self.lengths),
            **self.extras,
        }
        if self.label_lengths is None:
            columns["labels"] = self.labels
        cut = 0
        if line.plan is not None and (length_B > line.plan).any():
            # Cut off the end of the text. If the row ends with a special token, keep it, because
            # models expect [SEP] or [EOS] at the end.
            rank = rank_within(length_B)
            last_B = length_B - 1
            closed_B = ~self.text.take(offsets(length_B) + last_B)
            kept = rank < np.repeat(line.plan - closed_B, length_B)
            kept |= rank == np.repeat(np.where(closed_B, last_B, -1), length_B)
            cut = int(np.count_nonzero(~kept))
            columns = {name: values[kept] for name, values in columns.items()}
            length_B = np.minimum(length_B, line.plan)
        rows = in_rows(columns, length_B)
        if self.label_lengths is not None:
            written = {"labels": self.labels, "piece of label": pieces.repeat(self.label_lengths)}
            rows |= in_rows(written, tokens_of_rows(self.label_lengths))
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

    def layers(self) -> Names:
        """The names of the annotation layers that rows must have."""
        return ()

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
    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        """Corrupt the selected tokens.

        Args:
            line: the pieces. Do not change its arrays in place.
            choice: the selected tokens (``choice.tokens``, (T,) bool) and their units.
            draws: the random draws for these pieces.
            vocabulary: the special tokens, and the tokens that may replace others.
        """

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise ``MaskwiseError`` if the tokenizer lacks a token that this corruption needs."""
        if self.shows_mask:
            vocabulary.require_mask()


def corrupt_by(
    corruption: Corruption, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary
) -> Masked:
    """Corrupt a line.

    Raises:
        PlugInError: a corruption of another package does not return what fits the line.
    """
    shown = corruption.corrupt(line, choice, draws, vocabulary)
    if is_foreign(corruption):
        _require_masked(shown, line, corruption, vocabulary)
    return shown


def _require_masked(
    shown: object, line: Line, corruption: Corruption, vocabulary: Vocabulary
) -> None:
    """Raise ``PlugInError`` unless a corruption returned ids and labels that fit the line.

    Arrays that are read-only, such as the line's own, are replaced by copies.
    """
    if not isinstance(shown, Masked):
        raise PlugInError(
            f"corruption {corruption} does not return masked rows",
            got=type(shown).__name__,
            do="return a maskwise.masking.corruptions.base.Masked",
        )
    tokens = len(line.input_ids)
    _require_lengths("lengths", shown.lengths, line, corruption)
    _require_lengths("label_lengths", shown.label_lengths, line, corruption)
    if shown.lengths is not None:
        tokens = int(shown.lengths.sum())
        _require_moved(shown, tokens, line, corruption)
    elif shown.label_lengths is not None:
        raise PlugInError(
            f"corruption {corruption}: label_lengths are given without lengths",
            do="extend Moving, and return Masked with lengths too",
        )
    labels = tokens if shown.label_lengths is None else int(shown.label_lengths.sum())
    for name, size in (("input_ids", tokens), ("labels", labels)):
        values = getattr(shown, name)
        found = getattr(values, "dtype", None), np.shape(values)
        if not isinstance(values, np.ndarray) or found != (np.int64, (size,)):
            raise PlugInError(
                f"corruption {corruption}: {name} do not fit the line",
                got=f"{type(values).__name__} of type {found[0]} and shape {found[1]}",
                allowed=f"ndarray of type int64 and shape ({size},)",
                do="lengths must be given if the number of tokens changes",
            )
        if not values.flags.writeable:
            setattr(shown, name, values.copy())
    # One pass finds both bounds: read without signs, a negative id is a large number.
    if shown.input_ids.view(np.uint64).max(initial=0) >= vocabulary.size:
        ids = shown.input_ids
        raise PlugInError(
            f"corruption {corruption}: an id in input_ids is outside the vocabulary",
            got=int(ids[(ids < 0) | (ids >= vocabulary.size)][0]),
            allowed=f"0 to {vocabulary.size - 1}",
        )


def _require_lengths(name: str, lengths: Any, line: Line, corruption: Corruption) -> None:
    """Raise ``PlugInError`` unless lengths are None, or a whole number ≥ 0 for each piece."""
    if lengths is None:
        return
    if not isinstance(lengths, np.ndarray) or (lengths.dtype.kind, lengths.shape) != (
        "i",
        line.begin.shape,
    ):
        kind = getattr(lengths, "dtype", None)
        raise PlugInError(
            f"corruption {corruption}: {name} must have one whole number for each piece",
            got=f"{type(lengths).__name__} of type {kind} and shape {np.shape(lengths)}",
            allowed=f"ndarray of type int64 and shape {line.begin.shape}",
        )
    if lengths.min(initial=0) < 0:
        raise PlugInError(
            f"corruption {corruption}: {name} are negative", got=int(lengths.min()), allowed="≥ 0"
        )


def _require_moved(shown: Masked, tokens: int, line: Line, corruption: Corruption) -> None:
    """Raise ``PlugInError`` unless columns beside the ids have a value for each new token."""
    do = "return edit.shown(ids, labels) of an Edit, which moves all columns"
    wanted = line.extras.keys() - {"position_ids"}
    if not isinstance(shown.extras, dict) or shown.extras.keys() != wanted:
        raise PlugInError(
            f"corruption {corruption}: extras are not those of the line, without position_ids",
            got=f"{', '.join(map(str, shown.extras)) or 'none'}",
            allowed=", ".join(sorted(wanted)) or "none",
            do=do,
        )
    for name, values in (("text", shown.text), *shown.extras.items()):
        kind = np.dtype(bool) if name == "text" else line.extras[name].dtype
        found = getattr(values, "dtype", None), np.shape(values)
        if not isinstance(values, np.ndarray) or found != (kind, (tokens,)):
            raise PlugInError(
                f"corruption {corruption}: {name} must have one value for each new token",
                got=f"{type(values).__name__} of type {found[0]} and shape {found[1]}",
                allowed=f"ndarray of type {kind} and shape ({tokens},)",
                do=do,
            )


class Moving(Corruption):
    """Base class of corruptions that change the lengths of pieces."""

    keeps_length = False


class Edit:
    """The positions of tokens after some tokens were removed and others were inserted.

    Args:
        line: the line before these changes.
        stay: (T,) bool, the tokens to keep.
        leads: (T,) bool, the tokens before which a new token is inserted. These tokens may be kept
            or removed.
    """

    def __init__(self, line: Line, stay: Array, leads: Array | None = None):
        if leads is None:
            leads = np.zeros_like(stay)
        self.line = line
        self.at = np.flatnonzero(interleaved(leads, stay))
        self.lengths = line.count(stay) + line.count(leads)

    def __call__(self, values: Array, new: Array | int | None = None) -> Array:
        """Return the values, (T',), of the new tokens, given ``values``, (T,), of the old tokens.

        Inserted tokens get the value ``new``. By default, an inserted token gets the value of the
        token that it precedes.
        """
        if new is None:
            new = values
        return interleaved(new, values).take(self.at)

    def shown(self, input_ids: Array, labels: Array, label_lengths: Array | None = None) -> Masked:
        """Combine ids and labels with the other inputs of the model, moved to the new positions."""
        extras = moved_extras(self.line, self)
        text = self(self.line.content, True)
        return Masked(input_ids, labels, self.lengths, label_lengths, text, extras)


def moved_extras(line: Line, move: Callable[[Array], Array]) -> Columns:
    """Apply ``move`` to further model inputs, such as token types, as to the tokens."""
    # ``position_ids`` are left out, so that the model numbers the new positions itself.
    return {name: move(values) for name, values in line.extras.items() if name != "position_ids"}


def interleaved(before: Array | int, values: Array) -> Array:
    """(2T,) array: before each item of ``values`` (T,), the item of ``before`` (T,)."""
    both = np.empty((len(values), 2), values.dtype)
    both[:, 0] = before
    both[:, 1] = values
    return both.reshape(-1)


def last_content(line: Line) -> Array:
    """(P,) int64: the position of the last content token of each piece.

    If a piece has no content tokens, this is the position of its first token.
    """
    at = line.content_at
    last_P = at.searchsorted(line.edges[1:]) - 1
    # If the first pieces have no content, their index is −1, which reads the appended 0.
    at = np.append(at, 0)
    return np.where(line.lengths > 0, at[last_P], line.begin)


def labels_in_place(choice: Choice, target: str) -> Array:
    """(T,) int64: the labels for a target of ``spans``, ``full`` or ``detect``."""
    line = choice.line
    if target == "detect":
        return np.where(line.content, choice.tokens.astype(np.int64), IGNORE)
    asked = choice.tokens
    if target == "full":
        asked = choice.masked_pieces
        if line.packed:
            # Special tokens between two documents belong to neither document.
            at = np.arange(len(asked))
            asked &= at >= line.first.take(line.piece)
            asked &= at <= last_content(line).take(line.piece)
    return np.where(asked, line.input_ids, IGNORE)


def whole_text(choice: Choice, eos: int | None) -> tuple[Array, Array]:
    """Return the text and ``eos`` of each masked piece as labels, and (P,) numbers of labels."""
    edit = Edit(choice.line, choice.masked_pieces)
    labels = edit(choice.line.input_ids)
    if eos is None:
        return labels, edit.lengths
    # If the text already ends with ``eos``, a second ``eos`` would teach the model to repeat it.
    last_P = np.append(labels, eos)[edit.lengths.cumsum() - 1]
    open_P = (edit.lengths > 0) & (last_P != eos)
    return ended(labels, edit.lengths, open_P, eos)


def removed_text(
    choice: Choice, leads: Array | None, lead: Array | int, *tails: Tail
) -> tuple[Array, Array]:
    """Return the selected tokens of each piece as labels, and the numbers of labels, (P,).

    Args:
        choice: the selected tokens.
        leads: (T,) bool, the tokens before which ``lead`` is inserted; None to insert nothing.
        lead: the id to insert, or (T,) ids, one per token.
        tails: ids to append to each piece with labels.
    """
    edit = Edit(choice.line, choice.tokens, leads)
    labels = edit(choice.line.input_ids, lead)
    return ended(labels, edit.lengths, edit.lengths > 0, *tails)


def ended(labels: Array, lengths: Array, closes_P: Array, *tails: Tail) -> tuple[Array, Array]:
    """Append each tail to the labels of the pieces where ``closes_P`` is True."""
    for tail in tails:
        if tail is not None:
            ids = np.broadcast_to(tail, closes_P.shape)[closes_P]
            labels = np.insert(labels, lengths.cumsum()[closes_P], ids)
            lengths = lengths + closes_P
    return labels, lengths
