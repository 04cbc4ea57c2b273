"""Columns of a corpus in a folder: a file of raw values for each, and an index.

Raw files can be written in parts and mapped into memory, whatever their size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise import folders
from maskwise.errors import MaskwiseError

if TYPE_CHECKING:
    from maskwise.keys import Array

# Formats 1 and 2 were Arrow files.
FORMAT = 3
INDEX = "columns.json"


def write_columns(
    folder: Path, parts: Iterable[Mapping[str, Array]], about: Mapping[str, object]
) -> None:
    """Write columns that come in parts: a file of raw values for each, and last their index."""
    types: dict[str, str] = {}
    with ExitStack() as stack:
        files = []
        for part in parts:
            for place, (name, values) in enumerate(part.items()):
                if name not in types:
                    types[name] = values.dtype.str
                    # Files are numbered, because a layer may have any name.
                    files.append(stack.enter_context((folder / f"{place}.bin").open("wb")))
                # Not by `tofile`, which reports no error if the disk is full.
                files[place].write(np.ascontiguousarray(values).data)
    # The index is written last, because a folder without it counts as missing.
    index = {"format": FORMAT, "columns": types, **about}
    (folder / INDEX).write_text(json.dumps(index))


def read_columns(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Open what `write_columns` wrote, memory-mapped.

    Raises:
        MaskwiseError: the folder is missing, damaged or of another format.
    """
    about = folders.read_json(folder / INDEX) or {}
    if about.get("format") != FORMAT:
        what = f"{folder} does not hold pieces of this version"
        do = "prepare the corpus again"
        raise MaskwiseError(what, got=about.get("format"), allowed=FORMAT, do=do)
    columns = {}
    with undamaged(folder / INDEX):
        types = list(about.pop("columns").items())
    for place, (name, dtype) in enumerate(types):
        path = folder / f"{place}.bin"
        with undamaged(path):
            # As a plain array, because a memmap is slower to index.
            columns[name] = np.asarray(np.memmap(path, dtype, "r"))
    return columns, about


def require_length(folder: Path, column: Array, length: int) -> None:
    """Raise if a column of a folder has another length than it was written with."""
    if len(column) != length:
        what = f"{folder} is damaged: a column is not whole"
        raise MaskwiseError(what, got=len(column), allowed=length, do="prepare the corpus again")


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Turn errors of a missing or incomplete file into one line."""
    try:
        yield
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        what = f"{path} is damaged"
        raise MaskwiseError(what, got=str(error), do="prepare the corpus again") from error
