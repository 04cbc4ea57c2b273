"""The annotated batch that a masker reads, and the masked batch that it returns.

Shapes: B rows of L tokens, T = B·L; P document pieces; U units. Masking works on the line, one flat
array of T tokens that is cut into P pieces. A row may hold one piece or many pieces; masking does
not pack, unpack or pad rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from maskwise.devices import moved
from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.segments import owners

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from maskwise.masking.select import Selection

Columns: TypeAlias = dict[str, Array]
Names: TypeAlias = tuple[str, ...]

IGNORE = -100
"""The label of a position where there is nothing to predict."""
COPIED = (
    "input_ids",
    "labels",
    "attention_mask",
    "extras",
    "where",
    "documents",
    "written",
    "ends",
)
"""The attributes of a batch that are copied to a device."""


@dataclass(eq=False)
class AnnotatedBatch:
    """B rows of L tokens as one line of T = B·L tokens, with its pieces and layers, in numpy.

    Attributes:
        shape: (B, L).
        input_ids: (T,) int64.
        attention_mask: (T,) int64, or None when no row is padded.
        content: (T,) bool, the tokens that are neither padding nor special.
        eligible: (T,) bool, the content tokens that may be masked (all except [UNK]).
        begin: (P,) int64, the first token of each piece. A piece includes its special tokens and
            never crosses rows.
        example_id: (P,) int64, the permanent name of each piece.
        layers: (T,) named arrays, such as ``word_ids``; negative where a token has no value.
        extras: (T,) arrays that only the model reads, such as ``token_type_ids``.
        plan: the maximum number of tokens in a row, if rows hold several pieces; None for no limit.
        apart: whether attention must not cross pieces.
    """

    shape: tuple[int, int]
    input_ids: Array
    attention_mask: Array | None
    content: Array
    eligible: Array
    begin: Array
    example_id: Array
    layers: Columns = field(default_factory=dict)
    extras: Columns = field(default_factory=dict)
    plan: int | None = None
    apart: bool = False

    @property
    def pieces(self) -> int:
        """P, the number of pieces."""
        return len(self.begin)

    @cached_property
    def edges(self) -> Array:
        """(P + 1,) int64: the first token of each piece, and the end of the line."""
        return np.append(self.begin, len(self.input_ids))

    @cached_property
    def lengths(self) -> Array:
        """(P,) int64: the number of tokens in each piece, including special tokens and padding."""
        return np.diff(self.edges)

    @cached_property
    def piece(self) -> Array:
        """(T,) int64: the piece of each token."""
        return owners(self.lengths)

    @cached_property
    def row(self) -> Array:
        """(P,) int64: the row of each piece."""
        if not self.shape[1]:
            return np.arange(self.pieces)
        return self.begin // self.shape[1]

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one piece."""
        return self.pieces > self.shape[0]

    @cached_property
    def present(self) -> Array:
        """(T,) bool: everything but padding."""
        if self.attention_mask is None:
            return np.ones(len(self.input_ids), bool)
        return self.attention_mask != 0

    @cached_property
    def content_at(self) -> Array:
        """(C,) int64: the positions of the content tokens."""
        return np.flatnonzero(self.content)

    @cached_property
    def eligible_at(self) -> Array:
        """(E,) int64: the positions of the tokens that may be masked."""
        return np.flatnonzero(self.eligible)

    @cached_property
    def eligible_P(self) -> Array:
        """(P,) int64: how many tokens of each piece may be masked."""
        return self.count(self.eligible)

    @cached_property
    def first(self) -> Array:
        """(P,) int64: each piece's first content token, or first token if it has no content."""
        content = self.content
        if len(content):
            # A shortcut for the common case: pieces begin with text, or with one special token.
            first_P = self.begin + ~content[self.begin]
            if (first_P < self.edges[1:]).all() and content[first_P].all():
                return first_P
        at = self.content_at
        before = at.searchsorted(self.edges)
        # The extra item is for pieces at the end of the line that have no content.
        first_P = np.append(at, 0)[before[:-1]]
        return np.where(before[1:] > before[:-1], first_P, self.begin)

    def draw(self, keys: Keys, purpose: Purpose, at: Array) -> Array:
        """(N,) int32: a draw for each token at the ascending positions ``at``."""
        count_P = self.count_at(at)
        return keys.draw_each(purpose, count_P, self.place(at, count_P))

    def place(self, at: Array, count_P: Array) -> Array:
        """(N,) int64: the distance of tokens from the first content token of their piece.

        Args:
            at: ascending positions in the line.
            count_P: the number of these positions in each piece.
        """
        return at - np.repeat(self.first, count_P)

    def count(self, values: Array) -> Array:
        """(P,) int64: the sum of (T,) bools or numbers over each piece."""
        # numpy's reduceat fails on an empty line.
        if not len(values):
            return np.zeros(self.pieces, np.int64)
        return np.add.reduceat(
            values,
            self.begin,
            dtype=np.int64,
        )

    def count_at(self, at: Array) -> Array:
        """(P,) int64: how many of the positions ``at`` (ascending) are in each piece."""
        before = at.searchsorted(self.edges)
        return before[1:] - before[:-1]

    def layer(self, name: str, *, scores: bool = False) -> Array:
        """The (T,) layer with this name: whole numbers, or any numbers if ``scores`` is True.

        Raises:
            MaskwiseError: no such layer, or numbers that are not whole.
        """
        values = self.layers.get(name)
        if values is None:
            call = "maskwise.encode(tokenizer, texts)"
            if name != "word_ids":
                maker = {"phrase": "phrases", "sentence": "sentences"}.get(name, name)
                call = f"maskwise.encode(tokenizer, texts, layers=[{maker!r}])"
            raise MaskwiseError(
                f"the layer {name!r} is missing",
                got=f"layers {sorted(self.layers)}",
                do=f"make the rows with {call}, or map maskwise.annotate_rows over a data set; "
                "transformers' Trainer keeps the column only with remove_unused_columns=False; "
                "a recipe names annotators in corpus.layers",
            )
        # Floats are refused, because rounding them would merge units.
        if values.dtype.kind == "f" and len(values) and not scores:
            raise MaskwiseError(
                f"the layer {name!r} must be whole numbers",
                got=str(values.dtype),
                do="make it integers, −1 where a token belongs to nothing",
            )
        return values

    def tensor(self, name: str) -> Tensor:
        """The layer, extra or attribute with this name, as a (B, L) tensor that is not copied."""
        import torch

        values = self.layers.get(name, self.extras.get(name))
        if values is None:
            values = getattr(self, name)
        return torch.from_numpy(values.reshape(self.shape))


@dataclass(frozen=True, eq=False)
class Spans:
    """The piece of each token, for a batch whose corruption inserted or removed tokens.

    Attributes:
        tokens: (B, L') int64, the piece of each input token, −1 for padding.
        labels: (B, L'') int64, the piece of each label, if a decoder writes the labels; None if
            labels are aligned with the inputs.
    """

    tokens: Array
    labels: Array | None = None


@dataclass(eq=False)
class MaskedBatch:
    """Inputs and targets. As a mapping it holds what the model reads: ``model(**batch)``.

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
        source: the annotated batch that was masked.
        targets: the number of positions to predict, counted on the host.
        extras: further model inputs, such as ``token_type_ids``.
        choice: the selected units with their ratios; None if nothing was selected.
        spans: the piece of each token, if tokens were moved; None if pieces are as in ``source``.
        loss_weight: (B, L) float64 (float32 on an accelerator), the factors by which losses are
            multiplied in masked diffusion; else None.
        counted: the divisor of the summed losses, if it is not ``targets`` (in masked diffusion,
            the number of eligible tokens).
        cut: the number of tokens cut off because a packed row grew beyond its planned length.
        sources: the number of rows from each source, if a corpus mixes several sources.
        arm: the objective that the batch was made for, if there are several objectives.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    source: AnnotatedBatch
    targets: int
    extras: dict[str, Tensor] = field(default_factory=dict)
    choice: Selection | None = None
    spans: Spans | None = field(default=None, repr=False)
    loss_weight: Tensor | None = None
    counted: int | None = None
    cut: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    arm: str = ""

    @classmethod
    def unmasked(cls, source: AnnotatedBatch, labels: Tensor, targets: int) -> MaskedBatch:
        """Make a batch of the unchanged text with the given labels."""
        attention = None
        if source.attention_mask is not None:
            attention = source.tensor("attention_mask")
        extras = {name: source.tensor(name) for name in source.extras}
        return cls(source.tensor("input_ids"), labels, attention, source, targets, extras)

    @cached_property
    def ratio(self) -> Tensor:
        """(P,) float64, on the host: the requested ratio of each piece."""
        import torch

        if self.choice is None:
            return torch.zeros(len(self.source.begin), dtype=torch.float64)
        return torch.from_numpy(self.choice.ratio_P)

    @property
    def writes(self) -> bool:
        """Whether the labels are a separate text that a decoder writes."""
        return self.spans is not None and self.spans.labels is not None

    @cached_property
    def tokens(self) -> int:
        """The number of content tokens, or of all tokens read if a decoder writes the labels."""
        if self.spans is not None and self.writes:
            return int((self.spans.tokens >= 0).sum())
        return int(self.source.content.sum())

    @cached_property
    def selected(self) -> Tensor:
        """(B, L) bool, on the host: which of the *source* tokens the policy selected."""
        import torch

        shape = self.source.shape
        if self.choice is None:
            return torch.zeros(shape, dtype=torch.bool)
        return torch.from_numpy(self.choice.tokens.reshape(shape))

    @cached_property
    def segment_ids(self) -> Tensor:
        """(B, L') int64, on the host: the number of each token's piece in its row; padding: −1."""
        source = self.source
        if self.spans is not None:
            return self._in_rows(self.spans.tokens)
        piece = np.where(source.present, source.piece, -1)
        return self._in_rows(piece.reshape(source.shape))

    def _in_rows(self, piece: Array) -> Tensor:
        """Renumber the pieces (B, W) from 0 in every row."""
        import torch

        opening_B = np.searchsorted(self.source.row, np.arange(self.source.shape[0]))
        return torch.from_numpy(np.where(piece < 0, -1, piece - opening_B[:, None]))

    @cached_property
    def documents(self) -> Tensor | None:
        """``segment_ids`` if attention must not cross the pieces of a row; else None."""
        if self.source.apart and self.source.packed:
            return self.segment_ids
        return None

    @cached_property
    def written(self) -> Tensor | None:
        """(B, L'') int64: ``documents`` for the labels that a decoder writes; else None."""
        if self.documents is None or self.spans is None or self.spans.labels is None:
            return None
        return self._in_rows(self.spans.labels)

    @cached_property
    def ends(self) -> tuple[Tensor | None, Tensor | None]:
        """The results of ``ends_of`` for ``documents`` and for ``written``."""
        return ends_of(self.documents), ends_of(self.written)

    @cached_property
    def where(self) -> Tensor:
        """(M, 2) int64: row and column of every target, row by row."""
        return (self.labels != IGNORE).nonzero()

    def to(self, device: torch.device | str) -> MaskedBatch:
        """Copy the tensors to a device without blocking; source and choice stay on the host."""
        import torch

        if torch.device(device) == self.labels.device:
            return self
        there = replace(self)
        if self.loss_weight is not None:
            there.loss_weight = moved(self.loss_weight.float(), device)
        # Properties are computed here, on the host, because the device would make the step wait.
        for name in COPIED:
            setattr(there, name, moved(getattr(self, name), device))
        return there

    # Not a subclass of Mapping: the Trainer and data loaders would rebuild a Mapping as a dict.
    def __iter__(self) -> Iterator[str]:
        yield from ("input_ids", "labels")
        if self.attention_mask is not None:
            yield "attention_mask"
        yield from self.extras

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.extras:
            return self.extras[name]
        # Any attribute is allowed: ``batch["attention_mask"]`` is None without padding.
        if not hasattr(self, name):
            raise KeyError(name)
        return getattr(self, name)

    keys = __iter__

    def items(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self, map(self.__getitem__, self))

    def get(self, name: str, default: Tensor | None = None) -> Tensor | None:
        return dict(self.items()).get(name, default)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.input_ids.shape))
        return f"MaskedBatch({shape} on {self.input_ids.device}, {self.targets} targets)"


def ends_of(ids_BL: Tensor | None) -> Tensor | None:
    """(D + 1,) int32: where each run of equal ids starts in the line of all rows, and the end.

    >>> import torch
    >>> ends_of(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [0, 2, 3, 4, 8]
    """
    if ids_BL is None:
        return None
    starts = ids_BL.new_ones(ids_BL.shape).bool()
    starts[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
    at = starts.flatten().nonzero().flatten()
    return at.new_tensor([*at.tolist(), ids_BL.numel()]).int()
