"""The order of rows: in an epoch, and in a mix of several sources.

All orders are functions of (seed, step), so a resumed run need not read the rows before its step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold, permutation
from maskwise.training.settings import TrainingSettings

WINDOW = 16
"""Batches whose rows are sorted by length together; this removes most padding."""

WHOLE = 1 << 40
"""The denominator of shares, which are integers so that counts have no rounding errors."""

SHUFFLE = 0x5A6E


def order_of(
    size: int, epoch: int, *, seed: int, lengths: Tensor | None = None, batch_size: int = 1
) -> Tensor:
    """(size,) int64: the order of ``size`` rows in an epoch.

    Args:
        lengths: (size,) the lengths of rows, if batches are to have rows of similar length.
        batch_size: rows in a batch.

    >>> sorted(order_of(4, 2, seed=0).tolist())
    [0, 1, 2, 3]
    """
    order = permutation(size, seed=seed, epoch=epoch)
    batches = size // batch_size
    if lengths is None or not batches:
        return order
    # Sort within windows of WINDOW batches, then shuffle the batches of each window.
    rows = order[: batches * batch_size]
    window = torch.arange(len(rows)) // (WINDOW * batch_size)
    by_length = (window * (int(lengths.max()) + 1) + lengths[rows]).argsort(stable=True)
    shuffled = permutation(batches, seed=fold(seed, WINDOW), epoch=epoch)
    shuffled = shuffled[(shuffled // WINDOW).argsort(stable=True)]
    grouped = rows[by_length].view(batches, -1)[shuffled]
    return torch.cat([grouped.flatten(), order[len(rows) :]])


class Epochs:
    """The rows of one source, epoch by epoch; an incomplete last batch of an epoch is dropped.

    Args:
        size: the number of rows.
        settings: batch size and seed.
        lengths: (size,) the lengths of rows, if batches are to have rows of similar length.

    Raises:
        MaskwiseError: fewer rows than one batch.
    """

    names: Sequence[str] = ()

    def __init__(self, size: int, settings: TrainingSettings, *, lengths: Tensor | None = None):
        if size < settings.batch_size:
            raise MaskwiseError(
                "the corpus is smaller than one batch",
                got=f"{size} rows",
                allowed=f"at least batch_size = {settings.batch_size}",
                do="use more text, or a smaller batch_size",
            )
        self.batch_size = settings.batch_size
        self.per_epoch = size // settings.batch_size
        order = partial(
            order_of, size, seed=settings.seed, lengths=lengths, batch_size=self.batch_size
        )
        # Drawing the order of ten million rows takes .14 s, so the last one is cached.
        self.order = lru_cache(1)(order)

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """The rows of a step, (batch size,) int64, and their epoch."""
        epoch, place = divmod(step, self.per_epoch)
        return self.order(epoch)[place * self.batch_size :][: self.batch_size], epoch

    def place(self, step: int) -> int:
        """The index of the step's first row in the order of its epoch."""
        return step % self.per_epoch * self.batch_size

    def counts(self, rows: Tensor) -> dict[str, int]:
        """An empty dict, because all rows have the same source."""
        return {}


class Mix:
    """The rows of several sources in fixed shares; each source has its own order and epochs.

    The number of rows from each source among the first n rows is a function of n. In every prefix
    of a run it differs from the exact share by at most half a row for two sources, one row for
    three, and 1.6 rows (measured) for a hundred.

    Args:
        shares: by name; they sum to 1.
        sizes: the number of rows of each source. The rows of all sources are concatenated.
        settings: batch size and seed.

    Raises:
        MaskwiseError: a source with fewer rows than its share of a batch.
    """

    def __init__(
        self, shares: Mapping[str, float], sizes: Sequence[int], settings: TrainingSettings
    ):
        self.names = tuple(shares)
        self.batch_size = settings.batch_size
        self.seed = settings.seed
        self.parts = parts_of(shares)
        for (name, share), size in zip(shares.items(), sizes, strict=True):
            least = share * settings.batch_size
            if size < least:
                what = f"{name} has fewer rows than its share of a batch"
                do = "use more text of it, a lower weight, or a smaller batch_size"
                raise MaskwiseError(what, got=size, allowed=f"≥ {least:.1f}", do=do)
        self.sizes = sizes
        self.ends = torch.tensor(sizes).cumsum(0)
        self.order = lru_cache(2 * len(sizes))(self._order)

    def _order(self, number: int, epoch: int) -> Tensor:
        size = self.sizes[number]
        begin = self.ends[number] - size
        return begin + order_of(size, epoch, seed=fold(self.seed, number))

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """The rows of a step, (batch size,) int64, and None: sources have no common epoch."""
        rows = []
        for number, (before, after) in enumerate(taken(step, self.batch_size, self.parts)):
            place = torch.arange(before, after)
            size = max(1, self.sizes[number])
            for epoch in (place // size).unique().tolist():
                # A batch may span the end of an epoch of a small source.
                inside = place[place // size == epoch] % size
                rows.append(self.order(number, epoch)[inside])
        return torch.cat(rows)[mixed(self.batch_size, seed=self.seed, step=step)], None

    def place(self, step: int) -> int:
        """The index of the step's first row in the order of the run."""
        return step * self.batch_size

    def counts(self, rows: Tensor) -> dict[str, int]:
        """The number of rows from each source."""
        owner = torch.bucketize(rows, self.ends, right=True)
        return dict(zip(self.names, owner.bincount(minlength=len(self.names)).tolist()))


def mixed(size: int, *, seed: int, step: int) -> Tensor:
    """The order of the rows in a batch of a mix, which gives each rank rows of every source."""
    return permutation(size, seed=fold(seed, SHUFFLE), epoch=step)


def parts_of(shares: Mapping[str, float]) -> list[int]:
    """Shares as integers, for ``apportioned``."""
    return [round(share * WHOLE) for share in shares.values()]


def taken(step: int, size: int, parts: Sequence[int]) -> list[tuple[int, int]]:
    """For each source, its first row in a step and the first row after the step."""
    first = apportioned(step * size, parts)
    end = apportioned((step + 1) * size, parts)
    return list(zip(first, end, strict=True))


def apportioned(rows: int, weights: Sequence[int]) -> list[int]:
    """The number of rows from each source among the first ``rows`` rows; none ever falls.

    Sources are split recursively into two parts of similar weight, and each split rounds once.

    >>> [apportioned(rows, [2, 1]) for rows in range(5)]
    [[0, 0], [1, 0], [1, 1], [2, 1], [3, 1]]
    """
    whole = sum(weights)
    if len(weights) == 1 or not whole:
        return [rows, *[0] * (len(weights) - 1)]
    # Balanced halves keep the recursion shallow and the rounding small.
    fork = min(range(1, len(weights)), key=lambda place: abs(2 * sum(weights[:place]) - whole))
    left = (2 * rows * sum(weights[:fork]) + whole) // (2 * whole)
    return apportioned(left, weights[:fork]) + apportioned(rows - left, weights[fork:])
