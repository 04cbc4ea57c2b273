"""The masked batch: inputs and labels as tensors, with the line and the choice they were made from.

``line`` explains pieces and shapes such as ``ratio_P``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskwise.base.devices import moved
from maskwise.masking.draws import Array
from maskwise.masking.line import Line
from maskwise.masking.segments import best_fit, listed, offsets
from maskwise.masking.select import Choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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


class Lengths(NamedTuple):
    """The lengths of the texts of a batch, in tokens, without padding.

    A text is a piece or, if the pieces of a row attend to each other, a row.

    Attributes:
        read: (P,) int64, the tokens of each text that a model reads, with special tokens.
        written: (P,) int64, the tokens of each text that a decoder writes; empty if there are none.
    """

    read: Array
    written: Array


@dataclass(eq=False)
class MaskedBatch:
    """A batch of corrupted inputs and labels, to be used as ``model(**batch)``.

    >>> from maskwise import Masker
    >>> from maskwise import encode
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = Masker(tokenizer, ratio=0.5, seed=0)(encode(tokenizer, ["the cat sat on"]))
    >>> batch.targets, list(batch.keys()), batch.input_ids.shape == batch.labels.shape
    (2, ['input_ids', 'labels', 'attention_mask'], True)

    Attributes:
        input_ids: (B, L') int64, the corrupted tokens.
        labels: (B, L'') int64, the targets; −100 at positions without a target.
        attention_mask: (B, L') int64, or None if no row is padded.
        line: the rows before masking, with their pieces and layers, as the masker read them: tokens
            that it keeps or excludes are not eligible.
        targets: the number of targets. The number is known without waiting for the device.
        extras: further model inputs by name, such as ``token_type_ids``.
        choice: the selected units and the ratios; None if nothing was selected to make the batch.
        piece_BL: (B, L') int64, on the host: the index of each input token's piece, and −1 for
            padding; None if tokens have the same positions as in ``line``.
        written_BL: (B, L'') int64, on the host: the same for labels that a decoder generates; None
            if every label belongs to the input token at its position.
        loss_weight: (B, L) float64 (float32 on an accelerator), the factor by which each loss is
            multiplied in masked diffusion; otherwise None.
        counted: the number by which the summed losses are divided; None means ``targets``. Masked
            diffusion divides by the number of eligible tokens.
        cut: the number of tokens cut off because a packed row grew beyond its planned length.
        sources: the number of rows from each source of a mixed corpus, by name; otherwise empty.
        objective: the name of the objective that reads this batch, if a run has several; otherwise
            empty.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    line: Line
    targets: int
    extras: dict[str, Tensor] = field(default_factory=dict)
    choice: Choice | None = None
    piece_BL: Array | None = field(default=None, repr=False)
    written_BL: Array | None = field(default=None, repr=False)
    loss_weight: Tensor | None = None
    counted: int | None = None
    cut: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    objective: str = ""

    @classmethod
    def unmasked(cls, line: Line, labels: Tensor, targets: int) -> MaskedBatch:
        """Make a batch with uncorrupted inputs and the given labels."""
        attention = None
        if line.attention_mask is not None:
            attention = line.tensor(line.attention_mask)
        extras = {name: line.tensor(values) for name, values in line.extras.items()}
        return cls(line.tensor(line.input_ids), labels, attention, line, targets, extras)

    @cached_property
    def ratio(self) -> Tensor:
        """(P,) float64, on the host: the requested masking ratio of each piece."""
        import torch

        if self.choice is None:
            return torch.zeros(self.line.pieces, dtype=torch.float64)
        return torch.from_numpy(self.choice.ratio_P)

    @property
    def writes(self) -> bool:
        """Whether the labels are a text that a decoder must generate."""
        return self.written_BL is not None

    @cached_property
    def tokens(self) -> int:
        """The number of content tokens. If ``writes``, the number of input tokens that are not
        padding."""
        if self.piece_BL is not None and self.writes:
            return int((self.piece_BL >= 0).sum())
        return int(self.line.content.sum())

    @cached_property
    def lengths(self) -> Lengths:
        """The lengths of the texts that a model reads and writes."""
        written = np.zeros(0, np.int64)
        if self.written_BL is not None:
            written = self._lengths(self.written_BL)
        return Lengths(self._lengths(self.piece_ids), written)

    def _lengths(self, piece_BL: Array) -> Array:
        """Return the number of tokens of each text, from the index of each token's piece."""
        if not self.line.apart:
            return (piece_BL >= 0).sum(1)
        return np.bincount(piece_BL[piece_BL >= 0], minlength=self.line.pieces)

    @cached_property
    def selected(self) -> Tensor:
        """(B, L) bool, on the host: the tokens of ``line`` that the policy selected."""
        import torch

        shape = self.line.shape
        if self.choice is None:
            return torch.zeros(shape, dtype=torch.bool)
        return torch.from_numpy(self.choice.tokens.reshape(shape))

    @cached_property
    def piece_ids(self) -> Array:
        """(B, L') int64: the number of each token's piece in the batch, and −1 for padding."""
        if self.piece_BL is not None:
            return self.piece_BL
        line = self.line
        return np.where(line.present, line.piece, -1).reshape(line.shape)

    @cached_property
    def segment_ids(self) -> Tensor:
        """(B, L') int64, on the host: the number of each token's piece in its row.

        The first piece of a row has the number 0. Padding has −1.
        """
        return self._in_rows(self.piece_ids)

    def _in_rows(self, piece_BL: Array) -> Tensor:
        """Return (B, W) numbers of pieces that begin at 0 in every row, from indices of pieces."""
        import torch

        opening_B = np.searchsorted(self.line.row, np.arange(self.line.shape[0]))
        return torch.from_numpy(np.where(piece_BL < 0, -1, piece_BL - opening_B[:, None]))

    @cached_property
    def documents(self) -> Tensor | None:
        """``segment_ids`` if tokens may attend only to tokens of their own piece; otherwise None.

        Also None if each row has one piece, because attention never crosses rows.
        """
        if self.line.apart and self.line.packed:
            return self.segment_ids
        return None

    @cached_property
    def written(self) -> Tensor | None:
        """(B, L'') int64: as ``documents``, but for the labels of a decoder; otherwise None."""
        if self.documents is None or self.written_BL is None:
            return None
        return self._in_rows(self.written_BL)

    def rows_as_documents(self) -> Tensor:
        """(B, L') int64: each row as one document, which is 0 for tokens and −1 for padding."""
        import torch

        if self.attention_mask is None:
            return torch.zeros_like(self.input_ids)
        return (self.attention_mask != 0).long() - 1

    @cached_property
    def ends(self) -> tuple[Tensor | None, Tensor | None]:
        """The offsets (``offsets_of``) of the documents that a model reads, and of ``written``.

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
        return offsets_of(documents), offsets_of(self.written)

    def with_all_masks(self, *, packed: bool) -> MaskedBatch:
        """Return this batch with the masks that other batches of its layout have.

        ``attention_mask`` is never None then, and neither are the ``documents`` of packed rows.
        They say the same, but code that is compiled for a batch with masks needs another version
        for a batch without them.

        Args:
            packed: whether other batches of this layout have rows of several pieces.
        """
        import torch

        whole = replace(self)
        if whole.attention_mask is None:
            whole.attention_mask = torch.ones_like(self.input_ids)
        if packed:
            whole.documents = whole.segment_ids
        return whole

    def in_fewer_rows(self) -> MaskedBatch:
        """Return the texts of this batch in fewer rows of several documents, with less padding.

        Rows are as long as the longest text. ``where`` has the targets in the order of this batch,
        but not row by row. The batch is for a model to read: ``line`` and ``choice`` are those of
        this batch.

        >>> from maskwise import Masker, encode
        >>> from maskwise.text import train_tokenizer
        >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
        >>> rows = encode(tokenizer, ["the cat", "the cat sat on the mat", "mat"])
        >>> packed = Masker(tokenizer)(rows).in_fewer_rows()
        >>> packed.documents.tolist()
        [[0, 0, 0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0, 0, 0]]
        """
        import torch

        height, width = self.piece_ids.shape
        present = self.piece_ids >= 0
        lengths_B = present.sum(1)
        room = int(lengths_B.max(initial=0))
        row_B = best_fit(lengths_B, room)
        # Rows stay in their order, so that the numbers of documents ascend along a row.
        order_B = row_B.argsort(kind="stable")
        tokens_B = lengths_B[order_B]
        read = np.flatnonzero(present)[listed(offsets(lengths_B)[order_B], tokens_B)]
        in_row_R = np.bincount(row_B, lengths_B).astype(np.int64)
        inside = np.arange(room) < in_row_R[:, None]
        # The place of each token in this batch. Any token will do for padding.
        source = np.zeros(inside.shape, np.int64)
        source[inside] = read
        place = np.zeros(height * width, np.int64)
        place[read] = np.flatnonzero(inside)
        # The documents of a new row are numbered from 0, as in any packed row.
        number_RL = self.piece_ids.ravel()[source]
        opens = np.zeros(inside.shape, np.int64)
        opens[:, 1:] = number_RL[:, 1:] != number_RL[:, :-1]
        documents = torch.from_numpy(np.where(inside, opens.cumsum(1), -1))

        device = self.labels.device
        from_RL = moved(torch.from_numpy(source), device)
        inside_RL = moved(torch.from_numpy(inside), device)
        to = moved(torch.from_numpy(place), device)

        def laid(values: Tensor) -> Tensor:
            return values.flatten()[from_RL]

        packed = replace(
            self,
            input_ids=laid(self.input_ids),
            labels=laid(self.labels).masked_fill(~inside_RL, IGNORE),
            attention_mask=inside_RL.long(),
            extras={name: laid(values) for name, values in self.extras.items()},
        )
        row, column = self.where.unbind(1)
        target = to[row * width + column]
        packed.where = torch.stack((target // max(1, room), target % max(1, room)), 1)
        packed.documents = moved(documents, device)
        # The offsets are computed on the host, as in ``to``.
        packed.ends = (moved(offsets_of(documents), device), None)
        return packed

    @cached_property
    def where(self) -> Tensor:
        """(M, 2) int64: the row and the column of every target, row by row."""
        return (self.labels != IGNORE).nonzero()

    def to(self, device: torch.device | str) -> MaskedBatch:
        """Copy the tensors to a device without waiting for the copy.

        ``line`` and ``choice`` stay on the host.
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


def offsets_of(ids_BL: Tensor | None) -> Tensor | None:
    """(D + 1,) int32: the first position of each of D runs of equal ids, and B·L as last item.

    Positions are counted over all rows, row by row. A run never crosses rows. Variable-length
    attention kernels call this array ``cu_seqlens``.

    >>> import torch
    >>> offsets_of(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [0, 2, 3, 4, 8]
    """
    if ids_BL is None:
        return None
    starts = ids_BL.new_ones(ids_BL.shape).bool()
    starts[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
    at = starts.flatten().nonzero().flatten()
    return at.new_tensor([*at.tolist(), ids_BL.numel()]).int()
