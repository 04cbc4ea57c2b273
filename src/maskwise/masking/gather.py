"""Read a user's rows and turn them into a ``Line``.

Rows may be dicts, (B, L) tensors or packed rows. This module checks the rows, so later code can
rely on arrays of equal lengths. The module reads torch tensors on any device, but does not import
torch itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.masking.arrays import flags, is_tensor, joined, numbers, whole_numbers
from maskwise.masking.batch import IGNORE
from maskwise.masking.draws import Array, content_ids
from maskwise.masking.line import Columns, Line, kinds
from maskwise.masking.segments import changes
from maskwise.masking.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

UserRow: TypeAlias = Mapping[str, Any]
UserRows: TypeAlias = Sequence[UserRow] | UserRow

# Columns that are not read here. The masker and the collator read step and epoch. A single label
# is the class of a row.
_IGNORED = {"step", "epoch", "label", "offset_mapping"}
# Labels of the user. Only −100 is read, because the masker makes new labels.
_LABELS = ("labels", "label_ids")
# Columns that only the model reads.
_EXTRAS = ("position_ids", "token_type_ids", "global_attention_mask", "langs")
_SHOWN = ("attention_mask", *_EXTRAS)
# Columns that must be whole numbers, and the value that pads each of them. ``_padded`` pads layers.
_FILL = {
    "input_ids": 0,
    "attention_mask": 0,
    "special_tokens_mask": 1,
    "token_type_ids": 0,
    "position_ids": 0,
    "global_attention_mask": 0,
    "langs": 0,
    "example_id": -1,
    "labels": IGNORE,
    "label_ids": IGNORE,
    "loss_mask": 0,
}
# Columns of 0 and 1.
_MASKS = ("attention_mask", "special_tokens_mask", "loss_mask", "global_attention_mask")
_NAMES = ("input_ids", "example_id")
_LARGEST = 2**63 - 1

# The kinds of values in a column. Error messages show these words.
MISSING = "nothing"
TEXT = "text"
SINGLE = "a single value"
TOKENS = "a list"
EMPTY = "an empty list"
_KINDS = {type(None): MISSING, str: TEXT, bool: SINGLE, int: SINGLE, float: SINGLE}
"""The kinds of values of the most common types."""
_UNREAD = frozenset((MISSING, TEXT))
"""The kinds of values in columns that are not read."""


def gather(rows: UserRows | Line, vocabulary: Vocabulary) -> Line:
    """Check rows and turn them into a line.

    Args:
        rows: a list of dicts with ``input_ids`` and, if available, ``example_id`` and layers; or
            one dict of (B, L) tensors or arrays, in which ``example_id`` is (B,); or a line. In
            packed rows, ``example_id`` is (B, L), and consecutive tokens with the same id form a
            piece. Where the rows have ``labels`` of −100 or a ``loss_mask`` of 0, nothing is masked
            or predicted; other labels must be the tokens themselves. Other columns with a number
            per token are layers. Columns of text and other columns with a single value per row are
            not read.
        vocabulary: the vocabulary of the tokenizer that made the rows.

    Raises:
        MaskwiseError: there are no rows, they are masked already, a layer has the wrong length, an
            id is outside the vocabulary, or a column is misspelt.
    """
    if isinstance(rows, Line):
        return rows.read_with(vocabulary)
    if isinstance(rows, Mapping):
        ragged = _unstacked(rows)
        if ragged is None:
            return _line_of(_stacked(rows), vocabulary)
        return _line_of(_padded(ragged, vocabulary), vocabulary)
    require_rows(rows)
    return _line_of(_padded(rows, vocabulary), vocabulary)


def require_rows(rows: object) -> None:
    """Raise unless rows are a list of dicts or one dict of columns."""
    allowed = "a list of dicts with input_ids, or one dict of (B, L) tensors"
    if isinstance(rows, Mapping):
        return
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise MaskwiseError("cannot read rows", got=type(rows).__name__, allowed=allowed)
    if not len(rows):
        raise MaskwiseError("there are no rows to mask", got="an empty list")
    for number, row in enumerate(rows):
        # A check against ``Mapping`` is slow, and nearly all rows are dicts.
        if type(row) is not dict and not isinstance(row, Mapping):
            raise MaskwiseError(
                "cannot read rows",
                got=f"{type(row).__name__} in row {number}",
                allowed=allowed,
            )


def device_of(rows: UserRows | Line) -> torch.device | str:
    """Return the device of the rows if they are tensors; otherwise ``"cpu"``."""
    first = rows[0] if isinstance(rows, Sequence) else rows
    ids = first.get("input_ids") if isinstance(first, Mapping) else None
    return ids.device if is_tensor(ids) else "cpu"


def _line_of(columns: Columns, vocabulary: Vocabulary) -> Line:
    """Turn (B, L) columns into a line."""
    shape = columns["input_ids"].shape
    example_id = columns.pop("example_id", None)
    flat = {name: column.reshape(-1) for name, column in columns.items()}
    ids = flat.pop("input_ids")
    kind = kinds(ids, vocabulary)
    attention = flat.pop("attention_mask", None)
    if attention is None:
        present = _present(ids, vocabulary)
        if not present.all():
            attention = present.astype(np.int64)
    special = flat.pop("special_tokens_mask", None)
    silent = None
    for name in _LABELS:
        labels = flat.pop(name, None)
        if labels is not None:
            unread = labels == IGNORE
            # Labels that repeat the tokens, as scripts for causal models write them, hide nothing.
            answers = ~unread & (labels != ids)
            if attention is not None:
                answers &= attention != 0
            if answers.any():
                raise MaskwiseError(
                    f"the rows are masked already: {name!r} has other tokens than input_ids",
                    got=f"{np.count_nonzero(answers):,} such labels",
                    allowed=f"{IGNORE}, or the token itself",
                    do=f"give the rows from before they were masked; or, if {name!r} are classes, "
                    "remove the column",
                )
            silent = unread | (False if silent is None else silent)
    allowed = flat.pop("loss_mask", None)
    if allowed is not None:
        silent = (allowed == 0) | (False if silent is None else silent)
    content = kind > 0
    eligible = kind > 1
    if attention is not None:
        content &= attention != 0
    if special is not None:
        content &= special == 0
    if silent is not None:
        eligible &= ~silent
    begin = np.arange(shape[0]) * shape[1]
    packed = False
    if example_id is None:
        warnings.warn(
            "rows have no example_id, so a hash of their tokens is used instead, and rows with the "
            "same tokens get the same mask",
            stacklevel=4,
        )
        example_id = content_ids(ids, content, begin)
    elif example_id.ndim == 2:
        packed = True
        begin, example_id = _pieces(example_id.reshape(-1), content, shape)
    return Line(
        shape,
        ids,
        attention,
        content,
        eligible & content,
        begin,
        example_id,
        extras={name: flat.pop(name) for name in _EXTRAS if name in flat},
        layers=flat,
        plan=shape[1] if packed else None,
        apart=packed,
        silent=silent,
    )


def _present(ids: Array, vocabulary: Vocabulary) -> Array:
    """bool, in the shape of ``ids``: the tokens that are not padding, in rows without a mask."""
    # In some tokenizers, the padding token also ends each text, or stands for unknown words.
    if vocabulary.pad_has_role:
        return np.ones(ids.shape, bool)
    return ids != vocabulary.pad


def _pieces(name: Array, content: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return the first position and the example id of each piece of packed rows, both (P,).

    A piece is a run of content tokens with the same example id (``name``, (T,)) in one row. Special
    tokens behind the run belong to the same piece, except if they have the id of the next piece
    (such as the [CLS] of the next piece).
    """
    height, width = shape
    if not name.size:
        return np.zeros(height, np.int64), np.zeros(height, np.int64)
    opens = changes(name)
    opens[::width] = True
    # The arrays below have one item per run of equal ids, so they are short.
    start = np.flatnonzero(opens)
    with_text = np.logical_or.reduceat(content, start)
    # A row without text is one piece: its first run counts as text.
    begin_B = np.arange(height) * width
    text_B = np.logical_or.reduceat(content, begin_B)
    with_text[start.searchsorted(begin_B[~text_B])] = True
    start = start[with_text]
    names = name[start]
    # The first piece of a row includes the special tokens before it.
    row = start // width
    first = changes(row)
    begin = np.where(first, row * width, start)
    opens = first | changes(names)
    return begin[opens], names[opens]


def _unstacked(columns: Mapping[str, Any]) -> Sequence[UserRow] | None:
    """Turn columns of rows of different lengths into a list of rows; None if lengths are equal."""
    ids = columns.get("input_ids")
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "O":
        # Some libraries store rows of different lengths as an array of arrays.
        ids = list(ids)
    if not isinstance(ids, list | tuple):
        return None
    sizes = [len(row) if _kind_of(row) in (TOKENS, EMPTY) else -1 for row in ids]
    if len(set(sizes)) < 2:
        return None
    rows: list[dict[str, object]] = [{} for _ in ids]
    for name, values in _given(columns, len(ids)):
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def _given(columns: Mapping[str, Any], height: int) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a dict of rows, each with an item for each of its ``height`` rows."""
    for name, values in columns.items():
        if values is None or name in _IGNORED:
            continue
        found = getattr(values, "shape", None)
        if found is None:
            found = (len(values),) if hasattr(values, "__len__") else ()
        if not found or found[0] != height:
            # A single text beside the rows is not read, like a column of texts.
            if isinstance(values, str) and name != "example_id":
                continue
            raise MaskwiseError(
                f"column {name!r} does not fit input_ids",
                got=f"{type(values).__name__} of shape {tuple(found)}",
                allowed=f"{height} rows",
            )
        yield name, _items(values)


def _items(values: Any) -> Any:
    """Return the rows of an array of lists or other objects as a list; other values unchanged."""
    return list(values) if isinstance(values, np.ndarray) and values.dtype.kind == "O" else values


def _stacked(rows: Mapping[str, Any]) -> Columns:
    """Read a dict of (B, L) columns. The same columns are read as in a list of rows."""
    _require_ids(rows)
    ids = _read("input_ids", _items(rows["input_ids"]))
    if ids.ndim != 2:
        raise MaskwiseError("input_ids must have the shape (B, L)", got=ids.shape)
    columns = {}
    shape = ids.shape
    for name, values in _given(rows, len(ids)):
        if name == "input_ids":
            columns[name] = ids
            continue
        # Nearly all columns are arrays with a number for each token.
        if getattr(values, "shape", None) == shape:
            _require_spelling(name, rows)
        elif _common_kind(name, values, rows) == MISSING:
            continue
        column = _read(name, values)
        # A batch has these columns as they are, and must not share memory with the user's rows.
        columns[name] = column.copy() if name in _SHOWN else column
    for name, column in columns.items():
        one_per_row = name == "example_id" and column.shape == shape[:1]
        if column.shape != shape and not one_per_row:
            raise MaskwiseError(
                f"column {name!r} does not fit input_ids",
                got=column.shape,
                allowed=shape,
            )
    return columns


def _padded(rows: Sequence[UserRow], vocabulary: Vocabulary) -> Columns:
    """Turn a list of dicts into (B, L) columns.

    Ids are padded with [PAD], and layers with −1, or 0 if they are floats or bools.
    """
    for number, row in enumerate(rows):
        _require_ids(row, number)
    sizes = [len(row["input_ids"]) for row in rows]
    lengths = np.array(sizes)
    # Models cannot read rows without any column.
    inside = np.arange(lengths.max(initial=1)) < lengths[:, None]
    columns: Columns = {}
    # A dict keeps the order of the rows' keys, but a set would not.
    names = dict.fromkeys(chain.from_iterable(rows))
    for name in names:
        if name in _IGNORED:
            continue
        values = [row.get(name) for row in rows]
        missing = None if name in _FILL else -1
        flat = joined(values, missing=missing)
        if flat is None:
            kind = _common_kind(name, values, names)
        else:
            kind = TOKENS
            _require_spelling(name, names)
        if kind == TOKENS:
            _require_sizes(name, values, sizes)
            if flat is None:
                flat = _concatenated(name, values, missing)
            flat = _read(name, flat)
            fill = _FILL.get(name, 0 if flat.dtype.kind in "fb" else -1)
            column = np.full(inside.shape, fill, flat.dtype)
            column[inside] = flat
            columns[name] = column
        elif kind == SINGLE:
            columns[name] = _read(name, values)
    if not inside.all():
        columns["input_ids"][~inside] = vocabulary.pad
        attention = columns.get("attention_mask")
        if attention is None:
            # Rows may hold [PAD] already. What is padding must not depend on the other rows.
            attention = _present(columns["input_ids"], vocabulary)
        columns["attention_mask"] = attention * inside.astype(np.int64)
    return columns


def common_number(rows: UserRows, name: str) -> int | None:
    """Return the whole number that all rows have in a column; None if there is no column."""
    if not isinstance(rows, Mapping):
        values = [row.get(name) for row in rows]
    elif rows.get(name) is None:
        return None
    else:
        values = numbers(name, rows[name]).ravel().tolist()
    if {*map(type, values)} <= {int, type(None)}:
        # Check equal numbers once.
        values = [*dict.fromkeys(values)]
    found = set[int | None]()
    for value in values:
        if value is not None:
            value = whole_number(f"{name} of a row", value, least=0)
        found.add(value)
    if len(found) > 1:
        raise MaskwiseError(
            f"rows of one batch differ in {name!r}",
            got=", ".join(sorted(map(str, found))),
            do="use StepBatchSampler: all rows of its batches have the same step and epoch",
        )
    return found.pop() if found else None


@cache
def _plain_name(name: object) -> str:
    """Return a name without capitals, separators and plural: ``Word-IDs`` becomes ``wordid``.

    Columns of tables may be numbers.
    """
    return re.sub(r"[^a-z0-9]", "", str(name).lower()).removesuffix("s")


# A column ``lang`` is often the language of the row, and not misspelt.
_UNCHECKED = (*_LABELS, "langs")
_SPELT = {_plain_name(name): name for name in (*_FILL, "word_ids") if name not in _UNCHECKED}
"""The columns that have a meaning, keyed by their plain names."""


def _require_spelling(name: str, others: Container[str]) -> None:
    """Raise ``MaskwiseError`` if a column looks like a misspelt column that has a meaning.

    It would otherwise be a layer that no policy reads, or it would not be read at all.
    """
    meant = _SPELT.get(_plain_name(name), name)
    if meant != name and meant not in others:
        raise MaskwiseError(
            f"rows have a column {name!r}, which is not read",
            do=f"call it {meant!r}, or remove it",
        )


def _kind_of(value: object) -> str:
    """Return the kind of a value in a column. A list has the kind of its first item."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        return kind
    if isinstance(value, str):
        return TEXT
    if isinstance(value, list | tuple):
        if not value:
            return EMPTY
        return TEXT if _kind_of(value[0]) == TEXT else TOKENS
    dimensions = getattr(value, "ndim", None)
    if dimensions is None and hasattr(value, "__len__"):
        dimensions = np.ndim(value)  # type: ignore[arg-type]
    return TOKENS if dimensions else SINGLE


def _common_kind(name: str, values: Any, others: Container[str]) -> str:
    """Return the kind of a column in all rows; ``MISSING`` if masking does not read the column.

    Args:
        name: the name of the column.
        values: a list of its values, one per row, or an array or a tensor of all rows.
        others: the names of all columns.

    Raises:
        MaskwiseError: the rows have values of different kinds, the name looks misspelt, or the
            column must have a value per token but has one per row.
    """
    dimensions = getattr(values, "ndim", None)
    if dimensions is None:
        kinds = [*map(_kind_of, values)]
    else:
        # All rows of an array are of one kind.
        kinds = [SINGLE if dimensions == 1 else TOKENS]
    found = set(kinds)
    if not found <= _UNREAD:
        _require_spelling(name, others)
    found.discard(EMPTY)
    if TEXT in found and name == "example_id":
        raise MaskwiseError("example_id must be whole numbers", got=TEXT)
    if TOKENS in found or not found:
        wanted = TOKENS
    elif SINGLE in found and name == "example_id":
        wanted = SINGLE
    elif found != {MISSING} and name in _SPELT.values():
        wanted = TOKENS
    else:
        return MISSING
    odd = found - {wanted}
    if odd:
        row = next(row for row, kind in enumerate(kinds) if kind in odd)
        raise MaskwiseError(
            f"column {name!r} must be in every row, or in none",
            got=f"{kinds[row]} in row {row}",
            allowed=wanted,
        )
    return wanted


def _require_sizes(name: str, values: list[Any], sizes: list[int]) -> None:
    """Raise ``MaskwiseError`` unless the rows of a column have these lengths."""
    found = [*map(len, values)]
    if found != sizes:
        row = next(row for row, size in enumerate(sizes) if found[row] != size)
        raise MaskwiseError(
            f"column {name!r} of row {row} has the wrong length",
            got=found[row],
            allowed=sizes[row],
        )


def _concatenated(name: str, values: list[Any], missing: int | None) -> Array:
    """Read one column row by row, whatever its rows are, and concatenate the rows."""
    # numpy turns an empty list into floats. One empty part would make the whole column floats.
    filled = [value for value in values if len(value)]
    if name == "example_id":
        parts = [_read(name, value) for value in filled]
    else:
        # Reading a part takes time, so the other checks are made once for the whole column.
        parts = [numbers(name, value, missing=missing) for value in filled]
    types = {part.dtype for part in parts}
    if len(types) > 1:
        # numpy would turn bools beside integers into numbers, and integers beside very large
        # integers into floats.
        if len({each.kind == "b" for each in types}) > 1:
            raise MaskwiseError(f"column {name!r} has bools in some rows and numbers in others")
        parts = [_read(name, part) for part in parts]
    deepest = max((part.ndim for part in parts), default=1)
    if deepest != 1:
        raise MaskwiseError(
            f"column {name!r} must have one number per token",
            got=f"{deepest} dimensions in one row",
        )
    return np.concatenate(parts or [np.zeros(0, np.int64)])


def _require_ids(row: Mapping[str, object], number: int = 0) -> None:
    """Raise ``MaskwiseError`` unless a row has a list or an array of ids."""
    ids = row.get("input_ids")
    kind = _kind_of(ids)
    if kind not in (TOKENS, EMPTY):
        names = ", ".join(map(str, row)) or "none"
        raise MaskwiseError(
            "input_ids must be token ids",
            got=f"{kind} ({type(ids).__name__} in row {number}; columns {names})",
            do="tokenize the rows first",
        )


def _read(name: str, value: object) -> Array:
    """Read a column, or a part of it, as an array of bools, int64 or floats.

    Only layers may be floats, and only the masks and layers may be bools. In layers, None becomes
    −1, as transformers' ``word_ids`` need.
    """
    if name in _LABELS:
        return whole_numbers(name, value)
    if name not in _FILL:
        array = numbers(name, value, missing=-1)
        return array if array.dtype.kind in "fb" else whole_numbers(name, array)
    is_id = name in _NAMES
    column = whole_numbers(name, value, bools=not is_id, wraps=name == "example_id")
    # The ids of tokens are checked together with the size of the vocabulary.
    if not is_id:
        # One pass finds both bounds: read without signs, a negative number is a large number.
        most = column.view(np.uint64).max(initial=0)
        if most > (1 if name in _MASKS else _LARGEST):
            # One of these raises an error about the number.
            whole_numbers(name, column, least=0)
            flags(name, column)
    return column
