"""The first noun: the annotated batch. Tokens, what may be masked, who the rows are, layers over the text.

Rows come as a list of dicts or as one dict of tensors; both become the same thing here, once, and everything
after works on tensors. Shapes: B rows, L positions, V vocabulary. No policy needs to know about padding or
packing: ``segments`` turns packed rows into rows of one document piece each before anything is drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwise.arrays import Array, first_true, int32, raw, tensor
from maskwise.errors import MaskwiseError
from maskwise.keys import content_ids
from maskwise.masking.vocabulary import Vocabulary

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# What rows may carry for others: the collator reads step and epoch; labels are made here.
_IGNORED = {"step", "epoch", "labels", "label", "label_ids", "offset_mapping"}
# Columns that only the model reads.
_EXTRAS = {"token_type_ids", "position_ids"}
# What padding is; −1 in layers.
_FILL = {
    "input_ids": 0,
    "attention_mask": 0,
    "special_tokens_mask": 1,
    "token_type_ids": 0,
    "position_ids": 0,
}


@dataclass
class AnnotatedBatch:
    """B rows of L tokens with their layers.

    Attributes:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64, or None when no row is padded.
        content: (B, L) bool, neither padding nor special.
        eligible: (B, L) bool, content that may be masked (content but for [UNK]).
        example_id: (B,) int64, or (B, L) int64 where rows are packed: a segment is a run of one id.
        layers: (B, L) tensors by name, such as ``word_ids``; negative where a token belongs to nothing.
        extras: (B, L) tensors that only the model reads, such as ``token_type_ids``.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    content: Tensor
    eligible: Tensor
    example_id: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def first(self) -> Tensor:
        """(B,) int64: the column of the first content token; 0 where there is none."""
        return tensor(first_true(raw(self.content))) if self.content.numel() else self.content.sum(1)

    @cached_property
    def place(self) -> Tensor:
        """(B, L) int32: how far behind its row's first content token; so padding and packing do not move draws."""
        column = raw(torch.arange(self.content.shape[1], dtype=torch.int32, device=self.content.device))
        return tensor(column - raw(self.first.int())[:, None])

    def rows_and_places(self, at: Array) -> tuple[Array, Array]:
        """Rows (M,) and ``place`` (M,) of tokens, given by where they stand in the flattened batch."""
        width = self.content.shape[1]
        row = at // max(width, 1)
        return row, int32(at - row * width - raw(self.first).take(row))

    @cached_property
    def rank(self) -> Tensor:
        """(B, L) int64: how many content tokens stand before."""
        return tensor(raw(self.content).cumsum(1) - 1)

    @property
    def packed(self) -> bool:
        return self.example_id.dim() == 2

    def layer(self, name: str, *, policy: str) -> Tensor:
        """The (B, L) layer of that name, or an error that says which there are."""
        if name not in self.layers:
            raise MaskwiseError(
                f"policy {policy!r} needs the layer {name!r}",
                got=f"layers {sorted(self.layers)}" if self.layers else "rows without layers",
                do=_how_to_make(name),
            )
        return self.layers[name]

    @classmethod
    def of(cls, rows: Rows, vocabulary: Vocabulary) -> AnnotatedBatch:
        """Check and gather rows.

        Args:
            rows: a list of dicts with ``input_ids`` and, where known, ``example_id`` and layers; or one dict
                of (B, L) tensors (``example_id``: (B,), or (B, L) for packed rows).

        Raises:
            MaskwiseError: no rows, layers of the wrong length, ids outside the vocabulary.
        """
        columns = _stacked(rows) if isinstance(rows, Mapping) else _gathered(rows)
        ids = columns.pop("input_ids")
        vocabulary, flat = vocabulary.to(ids.device), ids.view(-1)
        # On an accelerator a bad index would take the whole process down, so there it is looked for first.
        if ids.device.type != "cpu" and bool((flat != flat.clamp(0, vocabulary.size - 1)).any()):
            raise _outside(ids, vocabulary.size)
        try:
            kind = raw(vocabulary.kind.index_select(0, flat).view(ids.shape))
        except (IndexError, RuntimeError):
            raise _outside(ids, vocabulary.size) from None
        content, eligible = tensor(kind > 0), tensor(kind > 1)
        attention, special = columns.pop("attention_mask", None), columns.pop("special_tokens_mask", None)
        for column, shown in ((attention, 1), (special, 0)):
            if column is not None:
                content &= column.bool() == shown
                eligible &= content
        example_id = columns.pop("example_id", None)
        if example_id is None:
            warnings.warn("rows have no example_id: masks are keyed by a hash of their content", stacklevel=4)
            example_id = content_ids(ids, content)
        extras = {name: columns.pop(name) for name in _EXTRAS & columns.keys()}
        return cls(ids, attention, content, eligible, example_id, columns, extras)

    def segments(self) -> Iterator[tuple[AnnotatedBatch, Tensor, Tensor]]:
        """Cut packed rows into one-document rows: yields (batch, positions, inside).

        ``positions`` (b, l) int64 say where in the flattened (B·L) packed batch each token of the small batch
        stands; ``inside`` (b, l) bool tells tokens from padding. Segments of like length come together, in
        power-of-two buckets, so that memory stays below twice that of the batch.
        """
        width, ids = self.input_ids.shape[1], self.example_id.reshape(-1)
        where = self.content.view(-1).nonzero().view(-1)
        name, row = ids[where], where // width
        # A segment reaches from its first to its last content token, special tokens between them included.
        fresh = torch.ones_like(where, dtype=torch.bool)
        fresh[1:] = (name[1:] != name[:-1]) | (row[1:] != row[:-1])
        first = where[fresh]
        lengths = where[fresh.roll(-1)] - first + 1
        bucket = lengths.to(torch.float64).log2().floor()
        columns = {
            "input_ids": self.input_ids,
            "content": self.content,
            "eligible": self.eligible,
            **self.layers,
        }
        for size in bucket.unique().tolist():
            start, length = first[bucket == size].unsqueeze(1), lengths[bucket == size].unsqueeze(1)
            span = torch.arange(int(length.max()), device=ids.device)
            inside = span < length
            positions = torch.where(inside, start + span, start)
            part = {name: column.reshape(-1)[positions] for name, column in columns.items()}
            small = AnnotatedBatch(
                part.pop("input_ids"),
                inside.long(),
                part.pop("content") & inside,
                part.pop("eligible") & inside,
                ids[start[:, 0]],
                {name: layer.masked_fill(~inside, -1) for name, layer in part.items()},
            )
            yield small, positions, inside


def _how_to_make(layer: str) -> str:
    if layer == "word_ids":
        return "make it with maskwise.encode(tokenizer, texts), or add the column to the rows"
    return "name its annotator in corpus.layers, or add the column to the rows"


def _outside(ids: Tensor, size: int) -> MaskwiseError:
    worst = int(ids.min()) if ids.numel() and int(ids.min()) < 0 else int(ids.max())
    return MaskwiseError(
        "input_ids outside the vocabulary",
        got=worst,
        allowed=f"0 to {size - 1}",
        do="use the tokenizer that made these rows",
    )


def _stacked(rows: Mapping[str, Any]) -> dict[str, Tensor]:
    """Check a dict of tensors; shapes must agree. Columns of strings are left out, as in lists of dicts."""
    if "input_ids" not in rows:
        raise MaskwiseError("rows have no input_ids", got=f"columns {sorted(rows)}")
    columns = {
        name: _numbers(name, value)
        for name, value in rows.items()
        if value is not None and name not in _IGNORED and not _is_text(value)
    }
    ids = columns["input_ids"]
    if ids.dim() != 2 or ids.dtype.is_floating_point:
        raise MaskwiseError(
            "input_ids must be whole numbers of the shape (B, L)", got=f"{ids.dtype} {tuple(ids.shape)}"
        )
    for name, value in columns.items():
        if value.shape != ids.shape and not (name == "example_id" and value.shape == ids.shape[:1]):
            got = tuple(value.shape)
            raise MaskwiseError(f"column {name!r} does not fit input_ids", got=got, allowed=tuple(ids.shape))
    for name in {"input_ids", "example_id"} & columns.keys():
        columns[name] = columns[name].long()
    return {name: value.contiguous() for name, value in columns.items()}


def _gathered(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A list of dicts to padded tensors: 0 in ids, which ``attention_mask`` hides, −1 in layers."""
    if not len(rows):
        raise MaskwiseError("no rows to mask", got="an empty list")
    if "input_ids" not in rows[0]:
        raise MaskwiseError("rows have no input_ids", got=f"columns {sorted(rows[0])}")
    lengths = [len(row["input_ids"]) for row in rows]
    width = max(lengths)
    columns: dict[str, Tensor] = {}
    for name, value in rows[0].items():
        if name == "example_id" and _is_text(value):
            do = "number the rows, or leave the column out (masks are then keyed by content)"
            raise MaskwiseError("example_id must be a whole number", got=value, do=do)
        if name in _IGNORED or value is None or _is_text(value):
            continue
        values = [row.get(name) for row in rows]
        if any(v is None for v in values):
            row = [v is None for v in values].index(True)
            raise MaskwiseError(f"column {name!r} is missing in some rows", got=f"none in row {row}")
        if hasattr(value, "__len__") and np.ndim(value):
            columns[name] = _padded(name, values, lengths, width)
        elif name == "example_id":
            columns[name] = _numbers(name, [int(row[name]) for row in rows])
    if min(lengths) < width:
        inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
        given = columns.get("attention_mask")
        columns["attention_mask"] = inside.long() if given is None else given * inside
    return columns


def _padded(name: str, values: list[Any], lengths: list[int], width: int) -> Tensor:
    got = [len(v) for v in values]
    if got != lengths:
        row = next(i for i, (a, b) in enumerate(zip(got, lengths)) if a != b)
        raise MaskwiseError(
            f"layer {name!r} of row {row} has the wrong length", got=got[row], allowed=lengths[row]
        )
    if isinstance(values[0], Tensor | np.ndarray):
        flat = torch.cat([torch.as_tensor(v) for v in values])
    else:
        flat = _numbers(name, list(chain.from_iterable(values)))
    if flat.dim() != 1:
        do = "leave it out of the rows"
        raise MaskwiseError(
            f"column {name!r} does not have one number a token", got=f"{flat.dim()} dimensions", do=do
        )
    if not flat.dtype.is_floating_point:
        flat = flat.long()
    if min(lengths) == width:
        return flat.view(len(values), width)
    out = torch.full((len(values), width), _FILL.get(name, -1), dtype=flat.dtype)
    out[torch.arange(width) < torch.tensor(lengths).unsqueeze(1)] = flat
    return out


def _is_text(value: Any) -> bool:
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    return isinstance(value, str)


def _numbers(name: str, value: Any) -> Tensor:
    """A column as a tensor, whatever holds it; None (as in ``word_ids``) is −1: belongs to nothing."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        array = np.array([-1 if x is None else x for x in array.ravel()]).reshape(array.shape)
    if array.dtype.kind not in "bifu":
        raise MaskwiseError(
            f"column {name!r} is not made of numbers", got=str(array.dtype), do="leave it out of the rows"
        )
    return torch.as_tensor(array)
