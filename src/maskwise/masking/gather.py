"""What people give becomes an annotated batch: lists of dicts, dicts of (B, L) tensors, packed
rows, flat pieces.

Rows are checked here, once; everything behind works on arrays that fit. Torch tensors, on any
device, are taken here and given back by the masker; in between there is numpy alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, content_ids
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.vocabulary import Vocabulary
from maskwise.segments import changes, framed

Rows: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# What rows may carry for others: the collator reads step and epoch; labels are made by the masker.
_IGNORED = {"step", "epoch", "labels", "label", "label_ids", "offset_mapping"}
# Columns that only the model reads.
_EXTRAS = ("position_ids", "token_type_ids")
# Columns that are always whole numbers, and what padding is in them; −1 in layers.
_FILL = {
    "input_ids": 0,
    "attention_mask": 0,
    "special_tokens_mask": 1,
    "token_type_ids": 0,
    "position_ids": 0,
    "example_id": -1,
}


@runtime_checkable
class Pieces(Protocol):
    """Document pieces one behind the other, and the rows that they go into (``maskwise.text`` makes
    them).

    Attributes:
        columns: (T,) arrays by name: ``input_ids``, ``word_ids`` and other layers, without special
            tokens.
        lengths: (P,) tokens of each piece.
        example_ids: (P,) int64, the permanent name of each piece.
        rows: (P,) ascending from 0: the row of the batch that each piece goes into.
        length: tokens of a row.
        frame: (first, last, pad) ids: ``first`` opens a text, ``last`` closes every piece; −1 for
            none.
        apart: whether each piece is a text of its own, opened by ``first``, or a row is one text.
    """

    @property
    def columns(self) -> Mapping[str, Array]: ...
    @property
    def lengths(self) -> Array: ...
    @property
    def example_ids(self) -> Array: ...
    @property
    def rows(self) -> Array: ...
    @property
    def length(self) -> int: ...
    @property
    def frame(self) -> tuple[int, int, int]: ...
    @property
    def apart(self) -> bool: ...


def gather(rows: Rows | Pieces | AnnotatedBatch, vocabulary: Vocabulary) -> AnnotatedBatch:
    """Check rows and read them as one line of pieces.

    Args:
        rows: a list of dicts with ``input_ids`` and, where known, ``example_id`` and layers; one
            dict of (B, L) tensors or arrays, where ``example_id`` is (B,), or (B, L) in packed
            rows: a piece is a run of one id; or ``Pieces``.

    Raises:
        MaskwiseError: no rows, layers of the wrong length, ids outside the vocabulary.
    """
    if isinstance(rows, AnnotatedBatch):
        return rows
    if isinstance(rows, Mapping):
        return _annotated(_stacked(rows), vocabulary)
    if isinstance(rows, Pieces):
        return _laid(rows, vocabulary)
    require_rows(rows)
    return _annotated(_padded(rows), vocabulary)


def require_rows(rows: object) -> None:
    """Refuse what is neither a list of dicts nor one dict of columns."""
    if isinstance(rows, Mapping):
        return
    allowed = "a list of dicts with input_ids, or one dict of (B, L) tensors"
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise MaskwiseError("these are no rows", got=type(rows).__name__, allowed=allowed)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            got = f"{type(row).__name__} in row {number}"
            raise MaskwiseError("these are no rows", got=got, allowed=allowed)


def device_of(rows: Rows | Pieces | AnnotatedBatch) -> torch.device | None:
    """The accelerator that rows lie on; None for the host."""
    ids = rows.get("input_ids") if isinstance(rows, Mapping) else None
    return ids.device if isinstance(ids, Tensor) and ids.device.type != "cpu" else None


def _annotated(columns: dict[str, Array], vocabulary: Vocabulary) -> AnnotatedBatch:
    """(B, L) columns as a batch."""
    for name in _FILL:
        if name in columns:
            columns[name] = _whole(name, columns[name])
    shape = columns["input_ids"].shape
    example_id = columns.pop("example_id", None)
    line = {name: column.reshape(-1) for name, column in columns.items()}
    ids = line.pop("input_ids")
    kind = _kinds(ids, vocabulary)
    content, eligible = kind > 0, kind > 1
    attention, special = line.pop("attention_mask", None), line.pop("special_tokens_mask", None)
    for column, meaning in ((attention, 1), (special, 0)):
        if column is not None:
            content &= (column != 0) == meaning
            eligible &= content
    begin = np.arange(shape[0]) * shape[1]
    plan = None
    if example_id is None:
        warnings.warn(
            "rows have no example_id: masks are keyed by a hash of their content", stacklevel=5
        )
        example_id = content_ids(ids, content, begin)
    elif example_id.ndim == 2:
        begin, example_id = _pieces(example_id.reshape(-1), content, shape)
        plan = shape[1]
    extras = {name: line.pop(name) for name in _EXTRAS if name in line}
    return AnnotatedBatch(
        shape,
        ids,
        attention,
        content,
        eligible,
        begin,
        example_id,
        line,
        extras,
        plan,
        apart=plan is not None,
    )


def _kinds(ids: Array, vocabulary: Vocabulary) -> Array:
    """(T,) uint8, see ``Vocabulary.kind``."""
    low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if low < 0 or high >= vocabulary.size:
        raise MaskwiseError(
            "input_ids outside the vocabulary",
            got=low if low < 0 else high,
            allowed=f"0 to {vocabulary.size - 1}",
            do="use the tokenizer that made these rows",
        )
    return vocabulary.kind.take(ids)


def _pieces(name: Array, content: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Where the pieces of packed rows begin, and their names, both (P,).

    A piece is a run of one name among the content tokens of a row. Special tokens behind it are its
    own, but for those before the next piece that bear the next one's name ([CLS]).
    """
    width = max(shape[1], 1)
    opens = changes(name)
    opens[::width] = True
    start = np.flatnonzero(opens)  # from here on stretches of one name, few of them
    if not len(start):
        return np.arange(shape[0]) * shape[1], np.zeros(shape[0], np.int64)
    with_text = np.logical_or.reduceat(content, start)
    if with_text.all():
        return start, name[start]
    of_text = start[with_text]
    row, names = of_text // width, name[of_text]
    opens_row = changes(row)
    opens = changes(row, names)
    begin, names = np.where(opens_row, row * width, of_text)[opens], names[opens]
    # rows without any text
    bare = np.flatnonzero(np.bincount(row, minlength=shape[0]) == 0) * width
    if not len(bare):
        return begin, names
    begin, names = np.concatenate((begin, bare)), np.concatenate((names, name[bare]))
    order = begin.argsort()
    return begin[order], names[order]


def _laid(pieces: Pieces, vocabulary: Vocabulary) -> AnnotatedBatch:
    """Pieces in their rows, as one line."""
    lengths, row = np.asarray(pieces.lengths, np.int64), np.asarray(pieces.rows, np.int64)
    if not len(row):
        raise MaskwiseError("no rows to mask", got="no pieces")
    length = pieces.length
    laid = framed(lengths, row, length=length, frame=pieces.frame, apart=pieces.apart)
    if (laid.end > (row + 1) * length).any():
        raise MaskwiseError("pieces do not fit into their rows", allowed=f"{length} tokens a row")
    layers = dict(pieces.columns)
    tokens = np.asarray(layers.pop("input_ids"))
    layers = {name: laid.column(values) for name, values in layers.items()}
    ids = laid.ids(tokens)
    kind = np.zeros(len(ids), np.uint8)
    kind[laid.at] = _kinds(tokens, vocabulary)
    present = laid.present()
    return AnnotatedBatch(
        shape=laid.shape,
        input_ids=ids,
        attention_mask=None if present.all() else present,
        content=kind > 0,
        eligible=kind > 1,
        begin=laid.begin,
        example_id=np.asarray(pieces.example_ids, np.int64),
        layers=layers,
        plan=length,
        apart=pieces.apart,
    )


def _stacked(rows: Mapping[str, Any]) -> dict[str, Array]:
    """Check a dict of tensors; shapes must agree. Columns of strings are left out, as in lists of
    dicts.
    """
    if rows.get("input_ids") is None:
        raise _no_ids(rows)
    columns: dict[str, Array] = {}
    for name, value in rows.items():
        kind = _kind_of(value)
        if kind == TEXT:
            _refuse_text(name)
        elif kind != MISSING and name not in _IGNORED:
            columns[name] = read_numbers(name, value)
    ids = columns["input_ids"]
    if ids.ndim != 2:
        raise MaskwiseError("input_ids must have the shape (B, L)", got=ids.shape)
    for name, column in columns.items():
        a_row = name == "example_id" and column.shape == ids.shape[:1]
        if column.shape != ids.shape and not a_row:
            what = f"column {name!r} does not fit input_ids"
            raise MaskwiseError(what, got=column.shape, allowed=ids.shape)
    return columns


# What a row holds under the name of a column.
MISSING = "nothing"
TEXT = "text"
SINGLE = "a single value"
TOKENS = "a list"
EMPTY = "an empty list"


def _padded(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """A list of dicts to (B, L) columns: padding is 0 in ids, which ``attention_mask`` hides, and
    −1 in layers.
    """
    if not len(rows):
        raise MaskwiseError("no rows to mask", got="an empty list")
    for number, row in enumerate(rows):
        kind = _kind_of(row.get("input_ids"))
        if kind == MISSING:
            raise _no_ids(row, number)
        if kind == TEXT:
            _refuse_text("input_ids")
        if kind == SINGLE:
            got = f"{type(row['input_ids']).__name__} in row {number}"
            raise MaskwiseError("input_ids must be a list of token ids", got=got)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    inside = np.arange(lengths.max()) < lengths[:, None]
    columns: dict[str, Array] = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):  # what any row has
        if name in _IGNORED:
            continue
        values = [row.get(name) for row in rows]
        kind = _common_kind(name, [_kind_of(value) for value in values])
        if kind == TOKENS:
            columns[name] = _column(name, values, lengths, inside)
        elif kind == SINGLE and name == "example_id":
            columns[name] = read_numbers(name, values)
    if not inside.all():
        columns["attention_mask"] = columns.get("attention_mask", 1) * inside.astype(np.int64)
    return columns


def _kind_of(value: object) -> str:
    """What one value is; lists are judged by what they begin with."""
    if value is None:
        return MISSING
    first = value
    while isinstance(first, list | tuple):
        if not len(first):
            return EMPTY if first is value else TOKENS
        first = first[0]
    if isinstance(first, str):
        return TEXT
    if first is not value:
        return TOKENS
    # Sets and dicts have a length, too; numpy counts them as single things.
    return TOKENS if hasattr(value, "__len__") and np.ndim(value) else SINGLE  # type: ignore[arg-type]


def _common_kind(name: str, kinds: Sequence[str]) -> str:
    """What all rows hold in a column. Rows may only differ in columns that masking does not read."""
    found = set(kinds) - {EMPTY}
    if not found:
        return TOKENS
    one_a_row = name == "example_id" and TOKENS not in found
    if one_a_row and TEXT in found:
        _refuse_text(name)
    if len(found) > 1 and (one_a_row or TOKENS in found):
        wanted = SINGLE if one_a_row else TOKENS
        other = next(row for row, kind in enumerate(kinds) if kind not in (wanted, EMPTY))
        what = f"column {name!r} must be in every row, or in none"
        raise MaskwiseError(what, got=f"{kinds[other]} in row {other}", allowed=wanted)
    return found.pop()


def _column(name: str, values: list[Any], lengths: Array, inside: Array) -> Array:
    """(B, L), padded."""
    got = np.array([len(value) for value in values])
    if (got != lengths).any():
        row = int((got != lengths).argmax())
        message = f"layer {name!r} of row {row} has the wrong length"
        raise MaskwiseError(message, got=int(got[row]), allowed=int(lengths[row]))
    if isinstance(values[0], Tensor | np.ndarray):
        flat = np.concatenate([read_numbers(name, value) for value in values])
    else:
        flat = read_numbers(name, list(chain.from_iterable(values)))
    if flat.ndim != 1:
        do = "give input_ids[0]" if name == "input_ids" else "leave it out of the rows"
        what = f"column {name!r} does not have one number a token"
        raise MaskwiseError(what, got=f"{flat.ndim} dimensions in one row", do=do)
    if flat.dtype.kind != "f":
        flat = _whole(name, flat)
    column = np.full(inside.shape, _FILL.get(name, -1), flat.dtype)
    column[inside] = flat
    return column


def _no_ids(row: Mapping[str, Any], number: int = 0) -> MaskwiseError:
    """The error for a row, or a dict of columns, without tokens."""
    names = ", ".join(map(str, row)) or "none"
    where = f"row {number} with " if number else ""
    return MaskwiseError("rows have no input_ids", got=f"{where}columns {names}")


def _refuse_text(name: str) -> None:
    """Refuse text where numbers are read; other columns of text are nobody's business here."""
    do = {
        "input_ids": "tokenize the rows first",
        "example_id": "number the rows, or leave the column out (masks are then keyed by content)",
    }
    if name in do:
        raise MaskwiseError(f"{name} must be whole numbers", got="text", do=do[name])


def read_numbers(name: str, value: object) -> Array:
    """A column as an array, whatever holds it; None (as in ``word_ids``) is −1: belongs to nothing."""
    try:
        # From any device, with or without a gradient.
        array = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype == object and name not in _FILL:
            array = np.array([-1 if x is None else x for x in array.ravel()]).reshape(array.shape)
    except ValueError:  # rows of different lengths
        raise MaskwiseError(
            f"column {name!r} does not have one number a token", got="ragged rows"
        ) from None
    except (TypeError, RuntimeError):  # what numpy does not have: bfloat16, sparse and meta tensors
        kind = (
            f"{value.dtype}, {value.layout}, {value.device}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        do = "give a dense tensor of int64 or float32, or leave it out of the rows"
        raise MaskwiseError(f"column {name!r} cannot be read", got=kind, do=do) from None
    if array.dtype.kind not in "bifu":
        what = f"column {name!r} is not made of numbers of 64 bits"
        raise MaskwiseError(what, got=str(array.dtype), do="leave it out of the rows")
    return array


def _whole(name: str, values: Array) -> Array:
    """As int64."""
    names_something = name in ("input_ids", "example_id")
    # Columns without any token are floats wherever they were made of an empty list.
    if values.size and values.dtype.kind not in ("iu" if names_something else "iub"):
        raise MaskwiseError(f"column {name!r} must be whole numbers", got=str(values.dtype))
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        if name != "example_id":
            raise MaskwiseError(
                f"column {name!r}: a number is too large",
                got=int(values.max()),
                allowed="below 2⁶³",
            )
        values = values.view(np.int64)  # a name of 64 bits, whatever its sign
    return values.astype(np.int64, copy=False)
