"""Which rows come next: the order of an epoch, and the mix of several sources; functions of (seed,
place) alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold, permutation
from maskwise.training.settings import TrainingSettings

WINDOW = 16
"""Batches whose rows are sorted by length together: most of the padding goes, and batches stay
mixed.
"""

WHOLE = 1 << 40
"""Shares of a mix are kept as whole numbers of this many parts, so that counting never rounds."""

SHUFFLE = 0x5A6E


class Order:
    """The order of ``size`` rows in an epoch, kept while the epoch lasts: drawing it takes .14 s
    for ten million rows.

    Args:
        lengths: (size,) of the rows, where batches of ``batch_size`` shall be of rows of similar
            length.

    >>> sorted(Order(4, seed=0)(epoch=2).tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, size: int, *, seed: int, lengths: Tensor | None = None, batch_size: int = 1):
        self.size, self.seed, self.lengths, self.batch_size = size, seed, lengths, batch_size
        self._kept: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, epoch: int) -> Tensor:
        """(size,) int64, a function of (size, seed, epoch)."""
        if self._kept[0] != epoch:
            order = permutation(self.size, seed=self.seed, epoch=epoch)
            self._kept = epoch, order if self.lengths is None else self._grouped(order, epoch)
        return self._kept[1]

    def _grouped(self, order: Tensor, epoch: int) -> Tensor:
        """Rows of similar length share a batch: within windows of ``WINDOW`` batches, whose order
        is random again.
        """
        assert self.lengths is not None
        batches = len(order) // self.batch_size
        rows, rest = order[: batches * self.batch_size], order[batches * self.batch_size :]
        window = torch.arange(len(rows)) // (WINDOW * self.batch_size)
        sorted_rows = rows[
            (window * (int(self.lengths.max()) + 1) + self.lengths[rows]).argsort(stable=True)
        ]
        if not batches:
            return order
        places = permutation(batches, seed=fold(self.seed, WINDOW), epoch=epoch)
        places = places[(places // WINDOW).argsort(stable=True)]
        return torch.cat([sorted_rows.view(batches, -1)[places].flatten(), rest])


class Epochs:
    """The rows of one source, epoch by epoch; the last ones of an epoch, which fill no batch, are
    left out.

    Args:
        size: how many rows there are.
        lengths: (size,) of the rows, where batches shall be of rows of similar length.

    Raises:
        MaskwiseError: fewer rows than one batch.
    """

    names: Sequence[str] = ()

    def __init__(self, size: int, settings: TrainingSettings, *, lengths: Tensor | None = None):
        require_batch(size, settings)
        self.batch_size, self.per_epoch = settings.batch_size, size // settings.batch_size
        self.order = Order(
            size, seed=settings.seed, lengths=lengths, batch_size=settings.batch_size
        )

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """(batch size,) int64: the rows of a step; and their epoch."""
        epoch, place = divmod(step, self.per_epoch)
        return self.order(epoch)[place * self.batch_size :][: self.batch_size], epoch

    def place(self, step: int) -> int:
        """The place of the step's first row in the order of its epoch."""
        return step % self.per_epoch * self.batch_size

    def counts(self, rows: Tensor) -> dict[str, int]:
        """No counts: all rows are of one source."""
        return {}


def require_batch(size: int, settings: TrainingSettings) -> None:
    """
    Raises:
        MaskwiseError: fewer rows than one batch.
    """
    if size < settings.batch_size:
        raise MaskwiseError(
            "the corpus is smaller than one batch",
            got=f"{size} rows",
            allowed=f"at least batch_size = {settings.batch_size}",
            do="use more text, or a smaller batch_size",
        )


class Mix:
    """The rows of several sources in given shares, each source in an order and with epochs of its
    own.

    Which sources the first n rows of a training are from is a function of n. So a run that resumes
    finds its place at once, and every beginning of a run has the shares as nearly as whole rows
    can: within half a row for two sources, within one row for three, and within 1.6 rows, as
        measured, for a hundred.

    Args:
        shares: by name; they sum to 1.
        sizes: rows of each source, which stand one behind the other.
        settings: batch size and seed.

    Raises:
        MaskwiseError: a source with fewer rows than its share of a batch.
    """

    def __init__(
        self, shares: Mapping[str, float], sizes: Sequence[int], settings: TrainingSettings
    ):
        self.names, self.batch_size, self.seed = tuple(shares), settings.batch_size, settings.seed
        self.parts = parts_of(shares)
        for (name, share), size in zip(shares.items(), sizes, strict=True):
            if size < share * settings.batch_size:
                do = "use more text of it, a lower weight, or a smaller batch_size"
                what = f"{name} has fewer rows than its share of a batch"
                raise MaskwiseError(
                    what, got=size, allowed=f"≥ {share * settings.batch_size:.1f}", do=do
                )
        self.sizes = torch.tensor(sizes)
        self.begins = self.sizes.cumsum(0) - self.sizes
        self.orders = [
            Order(size, seed=fold(settings.seed, number)) for number, size in enumerate(sizes)
        ]

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """(batch size,) int64: the rows of a step, which have no common epoch."""
        first = step * self.batch_size
        before, after = (
            apportioned(first, self.parts),
            apportioned(first + self.batch_size, self.parts),
        )
        rows = []
        for number, order in enumerate(self.orders):
            place = torch.arange(before[number], after[number])
            for epoch in (place // max(1, order.size)).unique().tolist():
                inside = place[place // order.size == epoch] % order.size
                rows.append(self.begins[number] + order(epoch)[inside])
        return torch.cat(rows)[mixed(self.batch_size, seed=self.seed, step=step)], None

    def place(self, step: int) -> int:
        """The place of the step's first row in the order of the run."""
        return step * self.batch_size

    def counts(self, rows: Tensor) -> dict[str, int]:
        """How many of some rows are of each source."""
        owner = torch.bucketize(rows, self.begins + self.sizes, right=True)
        return dict(zip(self.names, torch.bincount(owner, minlength=len(self.names)).tolist()))


def mixed(size: int, *, seed: int, step: int) -> Tensor:
    """The order of the rows in the batch of a mix: ranks and micro-batches take their parts of it
    in order.
    """
    return permutation(size, seed=fold(seed, SHUFFLE), epoch=step)


def parts_of(shares: Mapping[str, float]) -> list[int]:
    """Shares as whole numbers, for `apportioned`."""
    return [round(share * WHOLE) for share in shares.values()]


def apportioned(rows: int, weights: Sequence[int]) -> list[int]:
    """How many of the first ``rows`` rows are of each source; with every further row one of the
    numbers grows by one.

    The sources are divided into two halves of about the same weight, and these again: at each fork
    the rounding is that of one number.

    >>> [apportioned(rows, [2, 1]) for rows in range(5)]
    [[0, 0], [1, 0], [1, 1], [2, 1], [3, 1]]
    """
    whole = sum(weights)
    if len(weights) == 1 or not whole:
        return [rows, *[0] * (len(weights) - 1)]
    fork = min(range(1, len(weights)), key=lambda place: abs(2 * sum(weights[:place]) - whole))
    left = (2 * rows * sum(weights[:fork]) + whole) // (2 * whole)
    return apportioned(left, weights[:fork]) + apportioned(rows - left, weights[fork:])
