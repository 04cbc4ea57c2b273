"""The annotated batch that a masker reads, and the masked batch that it returns.

A batch has B rows of L tokens. Masking joins the rows to the *line*, one flat array of T = B·L
tokens. The line is cut into P *pieces*. A piece is one document in a row; a packed row has several
pieces. U is the number of *units*, the groups of tokens that are masked together. Masking does not
pack, unpack or pad rows.

The last letters of a name show the shape of an array: ``ratio_P`` has one number per piece.
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
"""The label of positions without a target."""
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
"""The attributes that ``MaskedBatch.to`` copies to a device."""


@dataclass(eq=False)
class AnnotatedBatch:
    """A batch of token ids, cut into pieces, with annotation layers, as flat numpy arrays.

    Attributes:
        shape: (B, L), the number of rows and the number of tokens in each row.
        input_ids: (T,) int64, the token ids.
        attention_mask: (T,) int64, 0 for padding and 1 for other tokens; None if no row is padded.
        content: (T,) bool, the tokens that are neither padding nor special.
        eligible: (T,) bool, the tokens that may be masked: all content tokens except [UNK].
        begin: (P,) int64, the position of the first token of each piece in the line. A piece
            includes its special tokens and never crosses rows.
        example_id: (P,) int64, the permanent id of each piece. The random draws for the mask of a
            piece are computed from this id.
        layers: the annotation layers by name, such as ``word_ids``. A layer has one number per
            token, (T,), and the number is negative where a token has no value.
        extras: (T,) arrays by name, such as ``token_type_ids``, that only the model reads.
        plan: the maximum number of tokens in a packed row; None for no limit.
        apart: whether tokens may attend only to tokens of their own piece.
        silent: (T,) bool, the tokens that the user's own labels or loss_mask exclude from all
            targets; None if the rows have neither.
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
    silent: Array | None = None

    @property
    def pieces(self) -> int:
        """P, the number of pieces."""
        return len(self.begin)

    @cached_property
    def edges(self) -> Array:
        """(P + 1,) int64: the position of the first token of each piece, and T as last item."""
        return np.append(self.begin, len(self.input_ids))

    @cached_property
    def lengths(self) -> Array:
        """(P,) int64: the number of tokens in each piece, including special tokens and padding."""
        return np.diff(self.edges)

    @cached_property
    def piece(self) -> Array:
        """(T,) int64: the index of each token's piece."""
        return owners(self.lengths)

    @cached_property
    def row(self) -> Array:
        """(P,) int64: the index of each piece's row."""
        if not self.shape[1]:
            return np.arange(self.pieces)
        return self.begin // self.shape[1]

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one piece."""
        return self.pieces > self.shape[0]

    @cached_property
    def present(self) -> Array:
        """(T,) bool: the tokens that are not padding."""
        if self.attention_mask is None:
            return np.ones(len(self.input_ids), bool)
        return self.attention_mask != 0

    @cached_property
    def predicted(self) -> Array:
        """(T,) bool: the content tokens about which a model may be asked."""
        return self.content if self.silent is None else self.content & ~self.silent

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
        """(P,) int64: the number of tokens of each piece that may be masked."""
        return self.count(self.eligible)

    @cached_property
    def first(self) -> Array:
        """(P,) int64: the position of the first content token of each piece.

        If a piece has no content tokens, this is the position of its first token.
        """
        content = self.content
        if len(content):
            # A shortcut for the common case: every piece begins with content, or with one special
            # token and then content.
            first_P = self.begin + ~content[self.begin]
            if (first_P < self.edges[1:]).all() and content[first_P].all():
                return first_P
        at = self.content_at
        before = at.searchsorted(self.edges)
        # If the last pieces have no content, their index is the length of ``at``. The appended 0
        # prevents an IndexError.
        first_P = np.append(at, 0)[before[:-1]]
        return np.where(before[1:] > before[:-1], first_P, self.begin)

    def draw(self, keys: Keys, purpose: Purpose, at: Array) -> Array:
        """(N,) int32: a random draw for each token at the ascending positions ``at``."""
        count_P = self.count_at(at)
        return keys.draw_each(purpose, count_P, self.place(at, count_P))

    def place(self, at: Array, count_P: Array) -> Array:
        """(N,) int64: positions of tokens, counted from the first content token of their piece.

        Args:
            at: (N,) int64, ascending positions of the tokens in the line.
            count_P: (P,) int64, the number of these tokens in each piece.
        """
        return at - np.repeat(self.first, count_P)

    def count(self, values: Array) -> Array:
        """(P,) int64: the sum of ``values`` (T,) in each piece."""
        # numpy's reduceat fails on an empty line.
        if not len(values):
            return np.zeros(self.pieces, np.int64)
        return np.add.reduceat(
            values,
            self.begin,
            dtype=np.int64,
        )

    def count_at(self, at: Array) -> Array:
        """(P,) int64: how many of the ascending positions ``at`` are in each piece."""
        before = at.searchsorted(self.edges)
        return before[1:] - before[:-1]

    def layer(self, name: str, *, scores: bool = False) -> Array:
        """Return the layer ``name``, (T,).

        Raises:
            MaskwiseError: the layer is missing, or ``scores`` is False and the layer holds floats.
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
                "in a recipe, name the annotators in corpus.layers",
            )
        # Rounding floats to ids could merge units. With bools, False would count as a value.
        if values.dtype.kind in "fb" and len(values) and not scores:
            raise MaskwiseError(
                f"the layer {name!r} must be whole numbers",
                got=str(values.dtype),
                do="use integers, with −1 for tokens that have no value",
            )
        return values

    def tensor(self, name: str) -> Tensor:
        """Return a layer, an extra array or an attribute as a (B, L) tensor.

        The tensor shares its memory with the array.
        """
        import torch

        values = self.layers.get(name, self.extras.get(name))
        if values is None:
            values = getattr(self, name)
        return torch.from_numpy(values.reshape(self.shape))


@dataclass(frozen=True, eq=False)
class Spans:
    """The piece of each token after a corruption that inserted or removed tokens.

    Attributes:
        tokens: (B, L') int64, the index of the piece of each input token; −1 for padding.
        labels: (B, L'') int64, the index of the piece of each label, if the labels are a text that
            a decoder generates. None if every label belongs to the input token at its position.
    """

    tokens: Array
    labels: Array | None = None


@dataclass(eq=False)
class MaskedBatch:
    """A batch of corrupted inputs and labels, to be used as ``model(**batch)``.

    >>> from maskwise import Masker
    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Masker(tokenizer, ratio=0.5, seed=0)(encode(tokenizer, ["the cat sat on"]))
    >>> batch.targets, list(batch.keys()), batch.input_ids.shape == batch.labels.shape
    (2, ['input_ids', 'labels', 'attention_mask'], True)

    Attributes:
        input_ids: (B, L') int64, the corrupted tokens.
        labels: (B, L'') int64, the targets; −100 at positions without a target.
        attention_mask: (B, L') int64, or None if no row is padded.
        source: the annotated batch that was masked.
        targets: the number of targets. The number is known without waiting for the device.
        extras: further model inputs by name, such as ``token_type_ids``.
        choice: the selected units and the ratios; None if nothing was selected to make the batch.
        spans: the piece of each token; None if tokens have the same positions as in ``source``.
        loss_weight: (B, L) float64 (float32 on an accelerator), the factor by which each loss is
            multiplied in masked diffusion; otherwise None.
        counted: the number by which the summed losses are divided; None means ``targets``. Masked
            diffusion divides by the number of eligible tokens.
        cut: the number of tokens cut off because a packed row grew beyond its planned length.
        sources: the number of rows from each source of a mixed corpus, by name; otherwise empty.
        arm: the name of the objective that reads this batch, if a run alternates between several
            objectives; otherwise empty.
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
        """Make a batch with uncorrupted inputs and the given labels."""
        attention = None
        if source.attention_mask is not None:
            attention = source.tensor("attention_mask")
        extras = {name: source.tensor(name) for name in source.extras}
        return cls(source.tensor("input_ids"), labels, attention, source, targets, extras)

    @cached_property
    def ratio(self) -> Tensor:
        """(P,) float64, on the host: the requested masking ratio of each piece."""
        import torch

        if self.choice is None:
            return torch.zeros(len(self.source.begin), dtype=torch.float64)
        return torch.from_numpy(self.choice.ratio_P)

    @property
    def writes(self) -> bool:
        """Whether the labels are a text that a decoder must generate."""
        return self.spans is not None and self.spans.labels is not None

    @cached_property
    def tokens(self) -> int:
        """The number of content tokens. If ``writes``, the number of input tokens that are not
        padding."""
        if self.spans is not None and self.writes:
            return int((self.spans.tokens >= 0).sum())
        return int(self.source.content.sum())

    @cached_property
    def selected(self) -> Tensor:
        """(B, L) bool, on the host: the tokens of ``source`` that the policy selected."""
        import torch

        shape = self.source.shape
        if self.choice is None:
            return torch.zeros(shape, dtype=torch.bool)
        return torch.from_numpy(self.choice.tokens.reshape(shape))

    @cached_property
    def segment_ids(self) -> Tensor:
        """(B, L') int64, on the host: the number of each token's piece in its row.

        The first piece of a row has the number 0. Padding has −1.
        """
        source = self.source
        if self.spans is not None:
            return self._in_rows(self.spans.tokens)
        piece = np.where(source.present, source.piece, -1)
        return self._in_rows(piece.reshape(source.shape))

    def _in_rows(self, piece: Array) -> Tensor:
        """Return (B, W) numbers of pieces that begin at 0 in every row, from indices of pieces."""
        import torch

        opening_B = np.searchsorted(self.source.row, np.arange(self.source.shape[0]))
        return torch.from_numpy(np.where(piece < 0, -1, piece - opening_B[:, None]))

    @cached_property
    def documents(self) -> Tensor | None:
        """``segment_ids`` if tokens may attend only to tokens of their own piece; otherwise None.

        Also None if each row has one piece, because attention never crosses rows.
        """
        if self.source.apart and self.source.packed:
            return self.segment_ids
        return None

    @cached_property
    def written(self) -> Tensor | None:
        """(B, L'') int64: as ``documents``, but for the labels of a decoder; otherwise None."""
        if self.documents is None or self.spans is None or self.spans.labels is None:
            return None
        return self._in_rows(self.spans.labels)

    def rows_as_documents(self) -> Tensor:
        """(B, L') int64: each row as one document, which is 0 for tokens and −1 for padding."""
        import torch

        if self.attention_mask is None:
            return torch.zeros_like(self.input_ids)
        return (self.attention_mask != 0).long() - 1

    @cached_property
    def ends(self) -> tuple[Tensor | None, Tensor | None]:
        """The offsets (``ends_of``) of the documents that a model reads, and of ``written``.

        The first item is for ``documents``, or else for ``rows_as_documents``. It is None for rows
        of one document if there is padding before or between tokens.
        """
        documents = self.documents
        if documents is None:
            rows = self.rows_as_documents()
            # With other padding, a row would be several runs, and its positions would not begin at
            # its first column.
            if bool((rows[:, 1:] <= rows[:, :-1]).all()):
                documents = rows
        return ends_of(documents), ends_of(self.written)

    @cached_property
    def where(self) -> Tensor:
        """(M, 2) int64: the row and the column of every target, row by row."""
        return (self.labels != IGNORE).nonzero()

    def to(self, device: torch.device | str) -> MaskedBatch:
        """Copy the tensors to a device without waiting for the copy.

        ``source`` and ``choice`` stay on the host.
        """
        import torch

        if torch.device(device) == self.labels.device:
            return self
        there = replace(self)
        if self.loss_weight is not None:
            there.loss_weight = moved(self.loss_weight.float(), device)
        # Compute the cached properties on the host: on the device, each would make the host wait.
        for name in COPIED:
            setattr(there, name, moved(getattr(self, name), device))
        return there

    # This class has the methods of a mapping but is no ``Mapping``: the Trainer and data loaders
    # replace every Mapping by a dict, which would lose the attributes.
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
        # All attributes can be read in this way, so ``batch["attention_mask"]`` is None if no row
        # is padded.
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
    """(D + 1,) int32: the first position of each of D runs of equal ids, and B·L as last item.

    Positions are counted over all rows, row by row. A run never crosses rows. Variable-length
    attention kernels call this array ``cu_seqlens``.

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
