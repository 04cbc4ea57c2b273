"""The two nouns: the annotated batch, which a masker reads, and the masked batch, which it makes.

Shapes: B rows of L tokens, T = B·L; P document pieces; U units. **Masking works on one line of T
    tokens that is cut
into P pieces**, in numpy: whether a row holds one document or twenty, nothing is packed, unpacked
or padded for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose

if TYPE_CHECKING:  # made from batches, and kept in them
    from maskwise.masking.select import Selection
    from maskwise.masking.vocabulary import Vocabulary

IGNORE = -100
"""The label of a position where there is nothing to predict."""


@dataclass(eq=False)
class AnnotatedBatch:
    """B rows of L tokens as one line of T = B·L tokens, with its pieces and layers; all numpy.

    Attributes:
        shape: (B, L).
        input_ids: (T,) int64.
        attention_mask: (T,) int64, or None when no row is padded.
        content: (T,) bool, neither padding nor special.
        eligible: (T,) bool, content that may be masked (content but for [UNK]).
        begin: (P,) int64, where each piece begins. Every row begins one; the special tokens around
            a piece are in it.
        example_id: (P,) int64, the permanent name of each piece.
        layers: (T,) arrays by name, such as ``word_ids``; negative where a token belongs to
            nothing.
        extras: (T,) arrays that only the model reads, such as ``token_type_ids``.
        plan: the most tokens that a row may have, where rows hold several pieces; None: as many as
            it gets.
        apart: whether each piece is a text of its own, which a model is to read by itself.
    """

    shape: tuple[int, int]
    input_ids: Array
    attention_mask: Array | None
    content: Array
    eligible: Array
    begin: Array
    example_id: Array
    layers: dict[str, Array] = field(default_factory=dict)
    extras: dict[str, Array] = field(default_factory=dict)
    plan: int | None = None
    apart: bool = False

    @cached_property
    def edges(self) -> Array:
        """(P + 1,) int64: where each piece begins, and where the line ends."""
        return np.concatenate((self.begin, [len(self.input_ids)]))

    @cached_property
    def lengths(self) -> Array:
        """(P,) int64: tokens of each piece, special tokens and padding included."""
        return self.edges[1:] - self.edges[:-1]

    @cached_property
    def piece(self) -> Array:
        """(T,) int64: which piece each token is in."""
        return np.repeat(np.arange(len(self.begin)), self.lengths)

    @cached_property
    def row(self) -> Array:
        """(P,) int64: which row each piece is in."""
        return self.begin // self.shape[1] if self.shape[1] else np.arange(len(self.begin))

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one piece."""
        return len(self.begin) > self.shape[0]

    @cached_property
    def present(self) -> Array:
        """(T,) bool: everything but padding."""
        return (
            np.ones(len(self.input_ids), bool)
            if self.attention_mask is None
            else self.attention_mask != 0
        )

    @cached_property
    def eligible_at(self) -> Array:
        """(E,) int64: where the tokens stand that may be masked."""
        return np.flatnonzero(self.eligible)

    @cached_property
    def eligible_P(self) -> Array:
        """(P,) int64: how many tokens of each piece may be masked."""
        return self.count(self.eligible)

    @cached_property
    def first(self) -> Array:
        """(P,) int64: where the first content token of each piece stands; its beginning where there
        is none.
        """
        begin, content = self.begin, self.content
        if len(content):  # most pieces begin with text, or one special token: a fifth of the time
            place = begin + ~content[begin]
            if (place < self.edges[1:]).all() and content[place].all():
                return place
        at = np.flatnonzero(content)
        before, place = at.searchsorted(self.edges), self.begin.copy()
        some = before[1:] > before[:-1]
        place[some] = at[before[:-1][some]]
        return place

    def place(self, at: Array, count_P: Array) -> Array:
        """(N,) int32: how far tokens are from the first content token of their piece, the index of
        their draws.

        Args:
            at: ascending places in the line.
            count_P: how many of them are in each piece.
        """
        return (at - np.repeat(self.first, count_P)).astype(np.int32)

    def draw(self, keys: Keys, purpose: Purpose, at: Array) -> Array:
        """(N,) int32: a draw for each token at the ascending places ``at``."""
        count_P = self.count_at(at)
        return keys.draw_each(purpose, count_P, self.place(at, count_P))

    def count(self, values: Array) -> Array:
        """(P,) int64: the sum of (T,) bools or numbers over each piece."""
        if not len(values):
            return np.zeros(len(self.begin), np.int64)
        return np.add.reduceat(values, self.begin, dtype=np.int64)

    def count_at(self, at: Array) -> Array:
        """(P,) int64: how many of the tokens at ascending places ``at`` are in each piece."""
        before = at.searchsorted(self.edges)
        return before[1:] - before[:-1]

    def layer(self, name: str, *, policy: str, scores: bool = False) -> Array:
        """The (T,) layer of that name: whole numbers, or with ``scores`` any numbers.

        Raises:
            MaskwiseError: no such layer (it says which there are), or numbers that are not whole.
        """
        values = self.layers.get(name)
        if values is not None:
            # cut off, units would merge
            if values.dtype.kind == "f" and len(values) and not scores:
                what = f"policy {policy!r} needs whole numbers in the layer {name!r}"
                do = "make them integers, −1 where a token belongs to nothing"
                raise MaskwiseError(what, got=str(values.dtype), do=do)
            return values
        words = "make it with maskwise.encode(tokenizer, texts)"
        do = words if name == "word_ids" else "name its annotator in corpus.layers"
        got = f"layers {sorted(self.layers)}" if self.layers else "rows without layers"
        what = f"policy {policy!r} needs the layer {name!r}"
        raise MaskwiseError(what, got=got, do=f"{do}, or add the column to the rows")

    def tensor(self, name: str) -> Tensor:
        """An attribute, a layer or an extra of all tokens, by its name, as a (B, L) tensor; no
        copy.
        """
        values = self.layers.get(name, self.extras.get(name))
        return torch.from_numpy(
            (getattr(self, name) if values is None else values).reshape(self.shape)
        )


@dataclass(eq=False)
class MaskedBatch:
    """Inputs and targets. As a mapping it holds just what the model reads: ``model(**batch)``,
    ``dict(batch)``.

    >>> from maskwise import Masker
    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Masker(tokenizer, ratio=0.5, seed=0)(encode(tokenizer, ["the cat sat on"]))
    >>> batch.targets, list(batch.keys()), batch.input_ids.shape == batch.labels.shape
    (2, ['input_ids', 'labels', 'attention_mask'], True)

    Attributes:
        input_ids: (B, L') int64, corrupted.
        labels: (B, L'') int64, −100 where there is nothing to predict.
        attention_mask: (B, L') int64, or None when no row is padded.
        source: the annotated batch that this was made from.
        ratio: (P,) float64, the ratio asked for, piece by piece.
        extras: further model inputs, such as ``token_type_ids``.
        loss_weight: (B, L) float64 (float32 on an accelerator), or None: what the loss of each
            token is multiplied by (masked diffusion).
        choice: units, weights and order of the selection, for policies that learn; None where
            nothing was chosen.
        laid: (B, L') int64, the piece of each token, −1 for padding; None: where the source has it.
        laid_labels: (B, L'') int64, the piece of each target that a decoder writes; None: targets
            stand at tokens.
        cut: how many tokens were cut off because a packed row had grown past its plan.
        writes: whether the labels are a text of their own, which a decoder writes.
        sources: how many of its rows are of each source, where a corpus is a mix of several.
        targets: how many positions are to be predicted; counted on the host when the batch is made.
        counted: what the sum of its losses is divided by, where that is not ``targets`` (diffusion:
            eligible tokens).
        vocabulary: what ids mean, for those who look at it.
        arm: the name of the objective that it was made for, where there are several.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    source: AnnotatedBatch
    ratio: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    loss_weight: Tensor | None = None
    choice: Selection | None = None
    laid: Array | None = field(default=None, repr=False)
    cut: int = 0
    writes: bool = False
    laid_labels: Array | None = field(default=None, repr=False)
    sources: dict[str, int] = field(default_factory=dict)
    targets: int = field(kw_only=True)
    counted: int | None = field(default=None, kw_only=True)
    vocabulary: Vocabulary | None = field(default=None, repr=False, kw_only=True)
    arm: str = field(default="", kw_only=True)

    @classmethod
    def unmasked(cls, source: AnnotatedBatch, labels: Tensor, targets: int) -> MaskedBatch:
        """The text as it is, with labels of one's own."""
        extras = {name: source.tensor(name) for name in source.extras}
        attention = None if source.attention_mask is None else source.tensor("attention_mask")
        ratio = torch.zeros(len(source.begin), dtype=torch.float64)
        return cls(
            source.tensor("input_ids"), labels, attention, source, ratio, extras, targets=targets
        )

    @cached_property
    def tokens(self) -> int:
        """Tokens that a model reads: of the text, or of what is shown where that is all that an
        encoder is given.
        """
        return int(
            (self.source.content if self.laid is None or not self.writes else self.laid >= 0).sum()
        )

    @cached_property
    def selected(self) -> Tensor:
        """(B, L) bool over the *source* tokens, on the host: what the policy chose."""
        chosen = (
            np.zeros(len(self.source.input_ids), bool)
            if self.choice is None
            else self.choice.tokens
        )
        return torch.from_numpy(chosen.reshape(self.source.shape))

    @cached_property
    def segment_ids(self) -> Tensor:
        """(B, L') int64, on the host: which piece of its row each token belongs to, −1 for padding."""
        source, laid = self.source, self.laid
        if laid is None:
            laid = np.where(source.present, source.piece, -1).reshape(source.shape)
        return self._in_rows(laid)

    def _in_rows(self, piece: Array) -> Tensor:
        """Numbers of pieces (B, W), −1 for none, counted from 0 in every row."""
        opening_B = np.searchsorted(self.source.row, np.arange(self.source.shape[0]))
        return torch.from_numpy(np.where(piece < 0, -1, piece - opening_B[:, None]))

    @cached_property
    def documents(self) -> Tensor | None:
        """(B, L') int64: ``segment_ids`` where a row holds several texts, each to be read by
        itself; else None.
        """
        return self.segment_ids if self.source.apart and self.source.packed else None

    @cached_property
    def written(self) -> Tensor | None:
        """(B, L'') int64: as ``documents``, of the targets that a decoder writes."""
        if self.documents is None or self.laid_labels is None:
            return None
        return self._in_rows(self.laid_labels)

    @cached_property
    def ends(self) -> tuple[Tensor | None, Tensor | None]:
        """The ``ends_of`` ``documents`` and ``written``."""
        return ends_of(self.documents), ends_of(self.written)

    @cached_property
    def where(self) -> Tensor:
        """(M, 2) int64: row and column of every target, in the order of the rows."""
        return (self.labels != IGNORE).nonzero()

    @property
    def realised_ratio(self) -> float:
        """Chosen share of the tokens that could be chosen."""
        return int(self.selected.sum()) / max(1, len(self.source.eligible_at))

    def to(self, device: torch.device | str) -> MaskedBatch:
        """The same batch on a device, copied without blocking; its source and its choice stay on
        the host.
        """
        if torch.device(device) == self.labels.device:
            return self
        names = ("input_ids", "labels", "attention_mask", "extras")
        there = replace(self, **{name: moved(getattr(self, name), device) for name in names})
        if self.loss_weight is not None:
            there.loss_weight = moved(self.loss_weight.float(), device)
        for name in ("where", "documents", "written", "ends"):  # found on the host: no waiting
            setattr(there, name, moved(getattr(self, name), device))
        return there

    def keys(self) -> Iterator[str]:
        yield from ("input_ids", "labels")
        if self.attention_mask is not None:
            yield "attention_mask"
        yield from self.extras

    def __getitem__(self, name: str) -> Tensor:
        return self.extras[name] if name in self.extras else getattr(self, name)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.input_ids.shape))
        return f"MaskedBatch({shape} on {self.input_ids.device}, {self.targets} targets)"

    def _repr_html_(self) -> str:
        from maskwise.masking.notebook import html_of

        return html_of(self)


PINNING = ("cuda",)
"""Kinds of device to which memory is copied without waiting if it is pinned."""


def widest(values: Tensor) -> Tensor:
    """Values in double precision on a processor and in single precision elsewhere: Apple's GPUs
    have no other.
    """
    return values.double() if values.is_cpu else values.float()


def moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a tuple or dict of them, on a device; None stays None.

    To a CUDA device it goes from pinned memory: the host need not wait until it is there.
    """
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if value is None:
        return None
    pinned = value.pin_memory() if torch.device(device).type in PINNING and value.is_cpu else value
    return pinned.to(device, non_blocking=True)


def ends_of(ids_BL: Tensor | None) -> Tensor | None:
    """(D + 1,) int32: where runs of equal numbers begin in the line of all rows, and where the last
    one ends.

    >>> ends_of(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [0, 2, 3, 4, 8]
    """
    if ids_BL is None:
        return None
    starts = torch.ones_like(ids_BL, dtype=torch.bool)
    starts[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
    at = starts.flatten().nonzero().flatten()
    return torch.cat((at, at.new_tensor([ids_BL.numel()]))).int()
