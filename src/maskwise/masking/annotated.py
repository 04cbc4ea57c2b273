"""The first noun: the annotated batch. Tokens, what may be masked, who the rows are, and layers over the text.

Rows come as a list of dicts or as one dict of tensors; both become the same thing here, once, and everything after
works on tensors. Shapes: B rows, L positions, V vocabulary. No policy needs to know about padding or packing:
``segments`` turns packed rows into rows of one document piece each before anything is drawn.
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

from maskwise.errors import MaskwiseError
from maskwise.keys import content_ids
from maskwise.masking.vocabulary import ORDINARY, SPECIAL, Vocabulary

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Carried by rows for the drop-ins, or for the model alone: never layers.
_NOT_LAYERS = {"input_ids", "attention_mask", "special_tokens_mask", "example_id", "step", "epoch", "labels"}
_FILL = {"token_type_ids": 0, "position_ids": 0}


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
    def place(self) -> Tensor:
        """(B, L) int32: how many content tokens stand before; so padding, specials and packing do not move draws."""
        return self.content.cumsum(1, dtype=torch.int32) - 1

    @property
    def packed(self) -> bool:
        return self.example_id.dim() == 2

    def layer(self, name: str, *, policy: str) -> Tensor:
        """The (B, L) layer of that name, or an error that says which there are."""
        if name not in self.layers:
            raise MaskwiseError(
                f"policy {policy!r} needs the layer {name!r}",
                got=f"layers {sorted(self.layers)}" if self.layers else "rows without layers",
                do="make it with maskwise.encode(tokenizer, texts), or add the column to the rows",
            )
        return self.layers[name]

    @classmethod
    def of(cls, rows: Rows, vocabulary: Vocabulary) -> AnnotatedBatch:
        """Check and gather rows.

        Args:
            rows: a list of dicts with ``input_ids`` and, where known, ``example_id`` and layers; or one dict of
                (B, L) tensors (``example_id``: (B,), or (B, L) for packed rows).

        Raises:
            MaskwiseError: no rows, layers of the wrong length, ids outside the vocabulary.
        """
        columns = _columns(rows) if not isinstance(rows, Mapping) else _tensors(rows)
        ids = columns.pop("input_ids")
        special = columns.pop("special_tokens_mask", None)
        attention = columns.pop("attention_mask", None)
        example_id = columns.pop("example_id", None)
        try:
            kind = vocabulary.kind.index_select(0, ids.reshape(-1)).view(ids.shape)
        except (IndexError, RuntimeError):
            raise _outside(ids, vocabulary.size) from None
        content, eligible = kind != SPECIAL, kind == ORDINARY
        for hidden in (None if attention is None else attention == 0, None if special is None else special != 0):
            if hidden is not None:
                content.masked_fill_(hidden, False)
                eligible.masked_fill_(hidden, False)
        if example_id is None:
            warnings.warn("rows have no example_id: masks are keyed by a hash of their content", stacklevel=4)
            example_id = content_ids(ids, content)
        columns = {name: value for name, value in columns.items() if name not in _NOT_LAYERS}
        extras = {name: columns.pop(name) for name in list(columns) if name in _FILL}
        return cls(ids, attention, content, eligible, example_id, columns, extras)

    def segments(self) -> Iterator[tuple[AnnotatedBatch, Tensor, Tensor]]:
        """Cut packed rows into one-document rows: yields (batch, positions, inside).

        ``positions`` (b, l) int64 say where in the flattened (B·L) packed batch each token of the small batch
        stands; ``inside`` (b, l) bool tells tokens from padding. Segments of like length come together, in
        power-of-two buckets, so that memory stays below twice that of the batch.
        """
        width = self.input_ids.shape[1]
        ids = self.example_id
        fresh = self.content.clone()
        if width > 1:
            fresh[:, 1:] &= ~self.content[:, :-1] | (ids[:, 1:] != ids[:, :-1])
        where = self.content.flatten().nonzero().flatten()
        starts = fresh.flatten().index_select(0, where)
        number = starts.cumsum(0) - 1
        lengths = torch.bincount(number)
        first = starts.nonzero().flatten()
        bucket = (lengths - 1).clamp(min=1).to(torch.float64).log2().floor()
        for size in bucket.unique().tolist():
            chosen = (bucket == size).nonzero().flatten()
            span = torch.arange(int(lengths[chosen].max()), device=ids.device)
            inside = span < lengths[chosen].unsqueeze(1)
            positions = where[(first[chosen].unsqueeze(1) + span).clamp(max=len(where) - 1)]
            take = {"input_ids": self.input_ids, "eligible": self.eligible, **self.layers}
            parts = {name: tensor.flatten()[positions] for name, tensor in take.items()}
            small = AnnotatedBatch(
                parts.pop("input_ids"), inside.long(), inside, parts.pop("eligible") & inside,
                ids.flatten()[positions[:, 0]], {name: part.masked_fill(~inside, -1) for name, part in parts.items()},
            )  # fmt: skip
            yield small, positions, inside


def _outside(ids: Tensor, size: int) -> MaskwiseError:
    worst = int(ids.min()) if ids.numel() and int(ids.min()) < 0 else int(ids.max())
    return MaskwiseError(
        "input_ids outside the vocabulary", got=worst, allowed=f"0 to {size - 1}",
        do="use the tokenizer that made these rows",
    )  # fmt: skip


def _tensors(rows: Mapping[str, Any]) -> dict[str, Tensor]:
    """Check a dict of tensors; shapes must agree."""
    if "input_ids" not in rows:
        raise MaskwiseError("rows have no input_ids", got=f"columns {sorted(rows)}")
    columns = {name: torch.as_tensor(value) for name, value in rows.items() if value is not None}
    ids = columns["input_ids"]
    if ids.dim() != 2 or ids.dtype.is_floating_point:
        raise MaskwiseError("input_ids must be whole numbers of the shape (B, L)", got=f"{ids.dtype} {tuple(ids.shape)}")
    for name, value in columns.items():
        rowwise = name == "example_id" and value.shape == ids.shape[:1]
        if name not in ("step", "epoch") and value.shape != ids.shape and not rowwise:
            raise MaskwiseError(
                f"column {name!r} does not fit input_ids", got=tuple(value.shape), allowed=tuple(ids.shape)
            )
    columns["input_ids"] = ids.long()
    if "example_id" in columns:
        columns["example_id"] = columns["example_id"].long()
    return columns


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A list of dicts to padded tensors. Padding is 0 in ids and masks, which ``attention_mask`` hides, −1 in layers."""
    if not len(rows):
        raise MaskwiseError("no rows to mask", got="an empty list")
    if "input_ids" not in rows[0]:
        raise MaskwiseError("rows have no input_ids", got=f"columns {sorted(rows[0])}")
    lengths = [len(row["input_ids"]) for row in rows]
    width = max(lengths)
    columns: dict[str, Tensor] = {}
    for name, value in rows[0].items():
        if name in ("step", "epoch") or isinstance(value, str) or value is None:
            continue
        values = [row.get(name) for row in rows]
        if any(v is None for v in values):
            raise MaskwiseError(f"column {name!r} is missing in some rows", got=f"row {[v is None for v in values].index(True)}")
        if np.ndim(value) == 0:
            if name == "example_id":
                columns[name] = torch.tensor([int(v) for v in values])
            continue
        fill = 0 if name in ("input_ids", "attention_mask") else _FILL.get(name, 1 if name.startswith("special") else -1)
        columns[name] = _pad(name, values, lengths, width, fill)
    if min(lengths) < width:
        inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
        given = columns.get("attention_mask")
        columns["attention_mask"] = inside.long() if given is None else given * inside
    return columns


def _pad(name: str, values: list[Any], lengths: list[int], width: int, fill: int) -> Tensor:
    got = [len(v) for v in values]
    if got != lengths:
        row = next(i for i, (a, b) in enumerate(zip(got, lengths)) if a != b)
        raise MaskwiseError(f"layer {name!r} of row {row} has the wrong length", got=got[row], allowed=lengths[row])
    first = values[0]
    if isinstance(first, Tensor | np.ndarray):
        flat = torch.cat([torch.as_tensor(v) for v in values])
    else:
        # None (as in a tokenizer's word_ids) means "belongs to nothing".
        try:
            flat = torch.from_numpy(np.fromiter(chain.from_iterable(values), np.int64, count=sum(lengths)))
        except TypeError:
            clean = [-1 if x is None else x for v in values for x in v]
            flat = torch.tensor(clean)
    if not flat.dtype.is_floating_point:
        flat = flat.long()
    if lengths.count(width) == len(lengths):
        return flat.view(len(values), width)
    out = torch.full((len(values), width), fill, dtype=flat.dtype)
    out[torch.arange(width) < torch.tensor(lengths).unsqueeze(1)] = flat
    return out
