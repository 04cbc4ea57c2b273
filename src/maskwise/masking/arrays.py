"""The entrance for arrays: every array that a user passes is checked and converted here.

Users pass token ids, example ids, places, layers, masks and losses as lists, as numpy arrays, or as
torch tensors on any device. ``numbers``, ``whole_numbers`` and ``flags`` return numpy arrays whose
type, shape and range the callers can rely on. Anything else raises a ``MaskwiseError`` of one line.
This module does not import torch: if torch has not been imported, no value can be a tensor.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from maskwise.base.errors import MaskwiseError
from maskwise.masking.draws import Array

if TYPE_CHECKING:
    import torch

_NUMERIC = "bifu"
"""numpy's letters for the types that numbers may have: bools, integers and floats."""
_LISTS = frozenset({list, tuple})

Shape: TypeAlias = tuple[int | None, ...]
"""The length of each dimension; None if any length is allowed."""


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether a value is a torch tensor."""
    # Importing torch would be slow.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def numbers(
    name: str, value: object, *, shape: Shape | None = None, missing: int | None = None
) -> Array:
    """Read numbers: a numpy array of bools, integers or floats.

    Args:
        name: the name of the argument or column, for the error message.
        value: a list (also nested), a numpy array or a tensor.
        shape: the shape that the array must have; default: any.
        missing: the number that replaces None in lists; default: None is an error.

    Raises:
        MaskwiseError: the value is ragged, is not numeric, has the wrong shape, is a masked array,
            or is a tensor that numpy cannot read (sparse, bfloat16, or on the device "meta").

    >>> numbers("place", [3, 5]).tolist(), numbers("word_ids", [None, 0], missing=-1).tolist()
    ([3, 5], [-1, 0])
    """
    if type(value) is np.ndarray and value.dtype.kind in _NUMERIC:
        array = value
    else:
        array = _converted(name, value, missing)
    if shape is not None:
        _require_shape(name, array, shape)
    return array


def _converted(name: str, value: object, missing: int | None) -> Array:
    """Convert lists, tensors and other values to an array of numbers; see ``numbers``."""
    # As for tensors, only the first item of a list is looked at.
    first = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(first, np.ma.MaskedArray):
        raise MaskwiseError(
            f"{name!r} is a masked array, whose mask would be lost",
            got=type(first).__name__,
            do="fill its gaps: array.filled(…)",
        )
    if isinstance(value, list | tuple):
        flat = joined(value, missing=missing)
        if flat is not None and len({*map(len, value)}) == 1:
            return flat.reshape(len(value), -1)
    try:
        if is_tensor(value):
            # ``force`` copies from any device, with or without a gradient.
            value = value.numpy(force=True)
        elif isinstance(value, list | tuple) and value and is_tensor(value[0]):
            # numpy cannot read a list of tensors that are on an accelerator. Only the first item is
            # looked at, because a row may have thousands of items.
            value = [part.numpy(force=True) if is_tensor(part) else part for part in value]
        array = np.asarray(value)
        if array.dtype.kind == "O" and missing is not None:
            items = [missing if item is None else item for item in array.ravel()]
            array = np.array(items).reshape(array.shape)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        # Causes: ragged lists, and tensors that are bfloat16, sparse or on the device "meta".
        got = type(value).__name__
        if is_tensor(value):
            got = f"{value.dtype}, {value.layout}, {value.device}"
        raise MaskwiseError(
            f"{name!r} cannot be read as an array of numbers",
            got=got,
            do="use a dense array of int64 or float32, whose rows have equal lengths, or remove "
            "the column from the rows",
        ) from None
    if array.dtype.kind not in _NUMERIC:
        raise MaskwiseError(
            f"{name!r} must be numbers of 64 bits",
            got=f"{array.dtype} ({type(value).__name__})",
            do="convert the values, or remove the column from the rows",
        )
    return array


def joined(rows: Sequence[Any], *, missing: int | None = None) -> Array | None:
    """Join rows to one array; None if only ``numbers``, row by row, can read them.

    Lists of Python's whole numbers are joined, and arrays or tensors of one type. This takes a
    third of the time of ``numbers`` and copies tensors from an accelerator at once.

    Args:
        rows: a list, an array or a tensor for each row.
        missing: as in ``numbers``.

    Returns:
        The array that ``numbers`` would make of the rows, joined.

    >>> joined([[3, 5], [], [8]]).tolist(), joined([[3, 5], [8.5]])
    ([3, 5, 8], None)
    >>> joined([np.array([0.5]), np.array([1.5, 2.0])]).tolist()
    [0.5, 1.5, 2.0]
    """
    types = {*map(type, rows)}
    if types <= _LISTS:
        return _joined_lists(rows, missing)
    torch = sys.modules.get("torch")
    try:
        if types == {np.ndarray}:
            # Arrays of different types would be converted, so they are refused.
            array = np.concatenate(rows, casting="no")
        elif (
            torch is not None and types == {torch.Tensor} and len({row.dtype for row in rows}) == 1
        ):
            array = torch.cat(rows).numpy(force=True)
        else:
            return None
    except (TypeError, ValueError, RuntimeError):
        # Some rows have no length, or other dimensions, or they are on different devices.
        return None
    plain = array.ndim == 1 and array.size and array.dtype.kind in _NUMERIC
    return array if plain else None


def _joined_lists(rows: Sequence[Any], missing: int | None) -> Array | None:
    """Join lists of Python's whole numbers to one array of int64; see ``joined``."""
    # A row that begins with a bool may be an array of bools.
    firsts = {type(row[0]) for row in rows if row}
    gaps = missing is not None and type(None) in firsts
    if gaps:
        firsts.remove(type(None))
    if firsts != {int}:
        return None
    items: list[Any] = [*chain.from_iterable(rows)]
    if gaps:
        items = [missing if item is None else item for item in items]
    try:
        # The sum is an int only if all items are whole numbers.
        if type(sum(items)) is int:
            return np.frombuffer(struct.pack(f"{len(items)}q", *items), np.int64).copy()
    except (TypeError, ValueError, RuntimeError, OverflowError, struct.error):
        # Some items cannot be added, or have more than 64 bits.
        pass
    return None


def whole_numbers(
    name: str,
    value: object,
    *,
    shape: Shape | None = None,
    least: int | None = None,
    bools: bool = False,
    wraps: bool = False,
    do: str | None = None,
) -> Array:
    """Read whole numbers: a numpy array of int64.

    Args:
        name, value, shape: as in ``numbers``.
        least: the smallest allowed number; default: any.
        bools: whether bools are allowed. In Python True is a number, but an id is never a bool.
        wraps: whether numbers from 2⁶³ to 2⁶⁴ − 1 are allowed. They keep their bits, and become
            negative. Only example ids wrap, because they are hashed.
        do: what to do about a number that is too small.

    Raises:
        MaskwiseError: as for ``numbers``; also for floats, and for numbers out of range.

    >>> whole_numbers("example_id", [1, 2**64 - 1], wraps=True).tolist()
    [1, -1]
    """
    array = value if type(value) is np.ndarray else numbers(name, value)
    if wraps and array.dtype.kind == "f" and isinstance(value, list | tuple):
        # numpy makes a list of both very large and negative integers a list of floats.
        array = numbers(name, _wrapped(value))
    kinds = "iub" if bools else "iu"
    # numpy makes an empty list an array of floats, so the type of an empty array is not checked.
    if array.size and array.dtype.kind not in kinds:
        if array.dtype.kind not in "bf":
            array = numbers(name, array)
        raise MaskwiseError(f"{name!r} must be whole numbers", got=str(array.dtype))
    if shape is not None:
        _require_shape(name, array, shape)
    found = array.astype(np.int64, copy=False)
    if array.dtype == np.uint64 and not wraps and found.min(initial=0) < 0:
        raise MaskwiseError(f"{name!r}: a number is too large", allowed="below 2⁶³")
    if least is not None and found.size and found.min() < least:
        raise MaskwiseError(
            f"{name!r}: a number is too small",
            got=int(found.min()),
            allowed=f"whole numbers ≥ {least}",
            do=do,
        )
    return found


def flags(name: str, value: object, *, shape: Shape | None = None) -> Array:
    """Read flags: a numpy array of bools, from bools or from the numbers 0 and 1.

    Raises:
        MaskwiseError: as for ``numbers``; also for numbers other than 0 and 1, such as NaN.

    >>> flags("loss_mask", [0, 1.0, True]).tolist()
    [False, True, True]
    """
    array = numbers(name, value, shape=shape)
    chosen = array != 0
    if array.dtype.kind != "b":
        odd = chosen & (array != 1)
        if odd.any():
            raise MaskwiseError(
                f"{name!r} must say yes or no for each token",
                got=array[odd][0].item(),
                allowed="0 and 1, or False and True",
            )
    return chosen


def _wrapped(value: list[object] | tuple[object, ...]) -> list[object]:
    """Map integers from 2⁶³ to 2⁶⁴ − 1 to the int64 of the same bits; leave other items alone."""
    items: list[object] = []
    for item in value:
        if isinstance(item, Integral) and not isinstance(item, bool):
            item = int(item)
            if 2**63 <= item < 2**64:
                item -= 2**64
        items.append(item)
    return items


def _require_shape(name: str, array: Array, shape: Shape) -> None:
    """Raise unless an array has this shape."""
    fits = array.ndim == len(shape) and all(
        length in (None, found) for length, found in zip(shape, array.shape, strict=True)
    )
    if not fits:
        written = tuple("any" if length is None else length for length in shape)
        raise MaskwiseError(
            f"{name!r} has the wrong shape",
            got=array.shape,
            allowed=str(written).replace("'", ""),
        )
