"""Counts of 64-bit keys in bounded memory, corpora kept as numbers on disk, and small tables as Parquet files.

Everything is sorted arrays: counting is sorting, merging is sorting runs, looking up is a binary search. Where more
distinct keys are met than a `Table` may hold, the rarest are thrown away, and it says by how much any count may be
too low (as in lossy counting, Manku & Motwani 2002).

Cost: 0.1 µs per key counted; 16 bytes per distinct key, and some 100 while tables are merged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError

Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]


class Table:
    """Counts of 64-bit keys, at most ``limit`` of them.

    Attributes:
        keys: (K,) ascending.
        counts: (K,) int64, of each key.
        lost: how much any count may be too low; a key that is missing has at most this many.
        total: all that was counted.
    """

    def __init__(self, *, limit: int = 15_000_000):
        self._keys, self._counts = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        self._waiting: list[tuple[Keys, Ints]] = []
        self.limit, self.lost, self.total = limit, 0, 0

    def add(self, keys: Keys, counts: Ints | None = None) -> None:
        """Count keys, each once or ``counts`` times."""
        distinct, number = summed(keys, counts)
        self.total += int(number.sum())
        self._waiting.append((distinct, number))
        # Merged only when there is much to merge, so that the table is not copied for every block.
        if sum(len(new) for new, _ in self._waiting) > max(1 << 21, len(self._keys) // 2):
            self._merge()

    @property
    def keys(self) -> Keys:
        self._merge()
        return self._keys

    @property
    def counts(self) -> Ints:
        self._merge()
        return self._counts

    def _merge(self) -> None:
        if not self._waiting:
            return
        new, self._waiting = [(self._keys, self._counts), *self._waiting], []
        self._keys, self._counts = summed(
            np.concatenate([k for k, _ in new]), np.concatenate([n for _, n in new])
        )
        if len(self._keys) > self.limit:
            half = self.limit // 2  # so that pruning is rare
            least = int(np.partition(self._counts, len(self._counts) - half)[len(self._counts) - half])
            keep = self._counts > least
            self._keys, self._counts, self.lost = self._keys[keep], self._counts[keep], self.lost + least


def summed(keys: Keys, counts: Ints | None = None) -> tuple[Keys, Ints]:
    """Distinct keys, ascending, and how often each is there (or the sum of its counts)."""
    if counts is None:
        ordered = np.sort(keys)
        first = _firsts(ordered)
        return ordered[first], np.diff(np.append(first, len(ordered)))
    order = np.argsort(keys, kind="stable")  # merges runs that are sorted already
    ordered = keys[order]
    first = _firsts(ordered)
    return ordered[first], np.add.reduceat(counts[order], first) if len(first) else counts[:0]


def _firsts(ordered: Keys) -> Ints:
    return (
        np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        if len(ordered)
        else np.zeros(0, dtype=np.int64)
    )


def find(keys: Keys, wanted: Keys) -> Ints:
    """(W,) where each wanted key stands among the ascending ``keys`` (K,); −1 where it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


class Spill:
    """Blocks of numbers written to a temporary file and read back in order: a corpus as ids, 4 to 8 bytes a word."""

    def __init__(self, folder: Path, dtype: type[np.generic]):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with its last reference)
        self._dtype, self._sizes = dtype, list[int]()

    def write(self, block: NDArray[Any]) -> None:
        self._file.write(block.astype(self._dtype, copy=False).tobytes())
        self._sizes.append(len(block))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        self._file.seek(0)
        for size in self._sizes:
            yield np.frombuffer(self._file.read(size * np.dtype(self._dtype).itemsize), dtype=self._dtype)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Columns of one length as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def read_table(path: Path, *columns: str) -> dict[str, Any]:
    """Columns of a Parquet file: strings as lists, numbers as arrays.

    Raises:
        MaskwiseError: a file that is not there, is damaged or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        do = "give the folder that maskwise annotate has filled (OUT/fitted/NAME-…)"
        raise MaskwiseError(f"cannot read {path}: {error}", do=do) from None
    if missing := set(columns) - set(table.column_names):
        raise MaskwiseError(
            f"{path} lacks columns", got=", ".join(table.column_names), allowed=", ".join(missing)
        )
    return {
        name: column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()
        for name, column in zip(table.column_names, table.columns)
    }
