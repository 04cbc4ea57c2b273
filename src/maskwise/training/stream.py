"""The rows of a stream: text that worker processes tokenise during training.

    shards in random order → chunks of text → blocks of rows, in random order → batches

A shard is a part of the stream, such as a file. A chunk is some consecutive records of a shard. A
block is all rows made from a chunk. The orders depend only on the seed and the epoch, so the rows
of a step do not depend on the number of workers or ranks. The position of a step in the text is
known only after all earlier text was read, so training states contain it (``position``). A resumed
run reads the current shard again from its beginning, but makes no earlier block.

Every rank reads the whole text, but tokenises only every R-th chunk and gets the other blocks from
the other ranks. A block of 1 MB of text is a message of about 1 MB. One core makes rows from 1.4 MB
of text per second, and reads 440 MB of lines per second, or 106 MB if they are compressed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.base.errors import MaskwiseError
from maskwise.jobs.pools import Failure, LocalPool, Once
from maskwise.masking.draws import fold, permutation
from maskwise.masking.line import Line
from maskwise.masking.segments import owners
from maskwise.text.pieces import Ints
from maskwise.text.rows import Rows
from maskwise.text.source import Shard
from maskwise.text.stream import Stream
from maskwise.training.learners import Facts, NumbersByName
from maskwise.training.ranks import ALONE, Ranks
from maskwise.training.settings import TrainingSettings

KEPT_MARKS = 8
"""The number of recent steps whose positions are kept, because batches are made ahead."""
SHARDS, ROWS = 0x54A2, 0x2035


class Position(NamedTuple):
    """A position in the rows of a text source.

    Attributes:
        epoch: the number of the pass over the source.
        shard: the index of the shard in the order of the epoch.
        chunk: the index of the chunk in the shard.
        block: the index of the chunk's block in the epoch, which sets the order of its rows.
        row: the number of rows of the block that were already used.
    """

    epoch: int = 0
    shard: int = 0
    chunk: int = 0
    block: int = 0
    row: int = 0


MakeRows: TypeAlias = Callable[[], Rows | None]
"""A function that makes a block on one rank, and returns None on all others. A block without rows
is None, too."""


def no_rows() -> None:
    """Return None, as the work of a rank that does not make a block."""


class BlockPool:
    """Makes blocks of rows from chunks of text, some chunks ahead, in workers on all ranks.

    This process makes the first block, while the workers start. If a worker dies, this process
    makes the worker's block.

    Args:
        make: a picklable function that makes a block from a chunk.
        workers: the number of worker processes of each rank. With 0, there are none, and blocks are
            made when they are needed.

    Attributes:
        ranks: the ranks that share the work. Each of them has a pool, and reads the same chunks.
    """

    def __init__(self, make: Callable[[Shard], Rows | None], workers: int):
        self.make = make
        self.workers = workers
        self.ranks = ALONE
        self.pool = LocalPool(jobs=workers) if workers else None
        # It has a tokenizer and annotators, which a worker must load only once.
        self.once = Once(make) if workers else make

    def blocks(
        self, chunks: Iterator[tuple[Position, Shard | None]], *, first: int
    ) -> Iterator[tuple[Position, Rows | None]]:
        """Yield the block of each chunk, in order. All ranks must read the blocks at the same time.

        Args:
            chunks: chunks and their positions; None for the end of an epoch, which has no rows.
            first: the number of the source. The ranks take turns, beginning with this one.

        Raises:
            MaskwiseError: a chunk could not be read, or its block not made, on any rank. The error
                is raised when this block is reached.
        """
        waiting = deque[tuple[Position, int, MakeRows]]()
        ahead = self.workers * self.ranks.count
        for work in self._works(chunks, first):
            waiting.append(work)
            if len(waiting) > ahead:
                yield self._made(*waiting.popleft())
        for work in waiting:
            yield self._made(*work)

    def _works(
        self, chunks: Iterator[tuple[Position, Shard | None]], first: int
    ) -> Iterator[tuple[Position, int, MakeRows]]:
        """Yield the position of each chunk, the rank that makes its block, and this rank's work."""
        ranks = self.ranks
        number = 0
        try:
            for at, chunk in chunks:
                owner = (first + number) % ranks.count
                work: MakeRows = no_rows
                if chunk and owner == ranks.rank:
                    work = partial(self.make, chunk)
                    # Workers take seconds to start, so they do not make the first block.
                    if number and self.pool:
                        future = self.pool.submit(self.once, chunk)
                        work = partial(self._result, future, chunk)
                yield at, owner, work
                if chunk:
                    number += 1
        except Exception as error:
            # Other ranks may not have this error, and wait for this rank.
            yield Position(), 0, partial(raise_it, error)

    def _result(self, future: Future[Rows | None], chunk: Shard) -> Rows | None:
        try:
            return future.result()
        except Failure as failure:
            # If the text was bad, it would fail here too. If the worker died, it would not.
            if not failure.passing:
                raise MaskwiseError(failure.error) from None
            return self.make(chunk)

    def _made(self, at: Position, owner: int, work: MakeRows) -> tuple[Position, Rows | None]:
        return at, self.ranks.made_by(owner, work)

    def close(self) -> None:
        """End the workers."""
        if self.pool:
            self.pool.close()


def raise_it(error: Exception) -> None:
    """Raise an error."""
    raise error


class SourceReader:
    """Reads the rows of one text source, from any position on.

    Args:
        shards: the shards of the source.
        stream: the stream, for its settings ``shuffle``, ``repeat`` and ``chunk_size``.
        number: the number of the source.
        seed: the seed of the run.
        pool: the pool that makes blocks.
    """

    def __init__(
        self, shards: Sequence[Shard], stream: Stream, number: int, *, seed: int, pool: BlockPool
    ):
        self.shards = shards
        self.stream = stream
        self.number = number
        self.seed = fold(seed, number)
        self.pool = pool
        self.go_to(Position())

    def go_to(self, position: Position) -> None:
        """Continue from a different position."""
        self.position = position
        self._blocks = self.pool.blocks(self._chunks(position), first=self.number)
        self._rows: Rows | None = None
        self._order = np.zeros(0, np.int64)

    def take(self, count: int, *, together: bool) -> list[tuple[Rows, Ints]]:
        """Return the next rows, as pairs (block, indices of rows in the block).

        There are fewer than ``count`` rows if the source ends and does not begin again.

        Args:
            count: the number of rows.
            together: whether all rows must be from the same epoch. If the epoch has too few rows
                left, these rows are skipped.

        Raises:
            MaskwiseError: an epoch has fewer rows than ``count``.
        """
        parts: list[tuple[Rows, Ints]] = []
        missing = count
        ends = 0
        while missing:
            left = self._order[self.position.row :][:missing]
            if self._rows is not None and len(left):
                parts.append((self._rows, left))
                missing -= len(left)
                self.position = self.position._replace(row=self.position.row + len(left))
                if not together:
                    ends = 0
                continue
            block = next(self._blocks, None)
            if block is None:
                return parts
            epoch = self.position.epoch
            self._begin(*block)
            if self.position.epoch == epoch:
                continue
            ends += 1
            if ends > 1:
                names = " + ".join(shard.name for shard in self.shards[:3])
                raise MaskwiseError(
                    "the stream is smaller than one batch",
                    got=f"{count - missing} rows in {names}",
                    allowed=f"at least {count} rows",
                    do="use more text, or a smaller training.batch_size",
                )
            if together:
                parts = []
                missing = count
        return parts

    def _begin(self, position: Position, rows: Rows | None) -> None:
        """Go to the beginning of a block, or to the row of the block where a run is resumed."""
        self.position = position
        self._rows = rows
        size = len(rows) if rows else 0
        self._order = self._shuffled(size, fold(self.seed, ROWS, position.block), position.epoch)

    def _shuffled(self, size: int, seed: int, epoch: int) -> Ints:
        if not self.stream.shuffle:
            return np.arange(size)
        return permutation(size, seed=seed, epoch=epoch).numpy()

    def _shards(self, epoch: int) -> list[Shard]:
        """Return the shards in the order of an epoch."""
        order = self._shuffled(len(self.shards), fold(self.seed, SHARDS), epoch)
        return [self.shards[number] for number in order]

    def _chunks(self, at: Position) -> Iterator[tuple[Position, Shard | None]]:
        """Yield chunks and their positions, from ``at`` on; at the end of an epoch, None.

        If the stream repeats, this never ends.
        """
        while True:
            for number, shard in enumerate(self._shards(at.epoch)):
                if number < at.shard:
                    continue
                for chunk in islice(shard.chunks(self.stream.chunk_size), at.chunk, None):
                    yield at, chunk
                    at = at._replace(chunk=at.chunk + 1, block=at.block + 1, row=0)
                at = at._replace(shard=number + 1, chunk=0, row=0)
            at = Position(epoch=at.epoch + 1)
            yield at, None
            if not self.stream.repeat:
                return

    def facts(self, position: Position) -> dict[str, object]:
        """Return the epoch and the name of the shard at a position."""
        shards = self._shards(position.epoch)
        last = min(position.shard, len(shards) - 1)
        return {"epoch": position.epoch, "shard": shards[last].name}


class StreamedRows:
    """The rows of a stream, for a ``MaskedSource``.

    Args:
        stream: the stream of text.
        settings: the training settings.
        shares: the share of each text source in a mix, by name; empty for a single source.

    Attributes:
        names: the names of the text sources in a mix; empty for a single source.
        length, layout: the number of tokens in a row, and the layout of the rows.
    """

    documents = np.zeros(0, np.int64)
    """Empty, because held-out documents are skipped when the stream is read."""

    def __init__(
        self,
        stream: Stream,
        settings: TrainingSettings,
        *,
        shares: NumbersByName = MappingProxyType({}),
    ):
        self.settings = settings
        self.names = tuple(shares)
        self.length = stream.length
        self.layout = stream.layout
        self.parts = whole_shares(shares) if shares else [1]
        self.pool = BlockPool(stream.maker, settings.workers)
        if shares:
            sources = [stream.sources[name] for name in shares]
        else:
            sources = [list(chain.from_iterable(stream.sources.values()))]
        self.readers = [
            SourceReader(shards, stream, number, seed=settings.seed, pool=self.pool)
            for number, shards in enumerate(sources)
        ]
        # The positions of all readers before a step, by step.
        self.marks = {0: self._positions()}
        self.next = 0
        self._drawn: list[tuple[Rows, Ints]] = []
        # For each row of the batch: the source, the index in ``_drawn``, and the row in that block.
        self._owner = self._part = self._row = np.zeros(0, np.int64)

    def _positions(self) -> tuple[Position, ...]:
        return tuple(reader.position for reader in self.readers)

    def share(self, ranks: Ranks) -> None:
        """Share the work with other ranks. From now on, every rank must draw the same steps."""
        self.pool.ranks = ranks
        self._go_to(self.next)

    # Rows

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """Return the order of the rows in a step's batch, and their epoch (None in a mix).

        Raises:
            MaskwiseError: a shard cannot be read, or the stream ends early or has too few rows.
        """
        if step < self.next - 1 or not self._drawn:
            self._go_to(last_mark(self.marks, step))
        while self.next <= step:
            self._draw_next()
        size = self.settings.batch_size
        if self.names:
            return mixed(size, seed=self.settings.seed, step=step), None
        return torch.arange(size), self.readers[0].position.epoch

    def place(self, step: int) -> int:
        """Return the number of rows of the run before a step. (An epoch has no known length.)"""
        return step * self.settings.batch_size

    def _draw_next(self) -> None:
        ends = taken(self.next, self.settings.batch_size, self.parts)
        counts = np.diff(ends).ravel().tolist()
        drawn: list[tuple[Rows, Ints]] = []
        for reader, count in zip(self.readers, counts):
            drawn += reader.take(count, together=not self.names)
        numbers = [rows for _, rows in drawn]
        if sum(map(len, numbers)) < self.settings.batch_size:
            self._drawn = []
            raise MaskwiseError(
                f"the stream ends after {self.next} of {self.settings.steps} steps",
                do=f"set corpus.repeat: true to begin again, or training.steps={self.next}"
                if self.next
                else "use more text",
            )
        self._drawn = drawn
        self._owner = owners(np.array(counts))
        self._part = owners(np.array([*map(len, numbers)]))
        self._row = np.concatenate(numbers)
        self.next += 1
        # Keep the oldest position too, because a caller may go back to an earlier step.
        first = min(self.marks)
        for mark in list(self.marks):
            if first < mark < self.next - KEPT_MARKS:
                del self.marks[mark]
        self.marks[self.next] = self._positions()

    def _go_to(self, mark: int) -> None:
        for reader, position in zip(self.readers, self.marks[mark]):
            reader.go_to(position)
        self.next = mark
        self._drawn = []

    def line(self, rows: Tensor) -> Line:
        """Return some rows of the step that was drawn last as a line."""
        at = np.asarray(rows)
        # Get consecutive rows of the same block in one call.
        part = self._part[at]
        borders = np.flatnonzero(np.diff(part)) + 1
        lines = []
        for some in np.split(at, borders):
            block, _ = self._drawn[self._part[some[0]]]
            lines.append(block.line(self._row[some]))
        return Line.joined(lines)

    def counts(self, rows: Tensor) -> dict[str, int]:
        """Return the number of rows from each source in a mix."""
        counts = np.bincount(self._owner[np.asarray(rows)], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist()))

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    # Positions

    def facts(self, step: int) -> Facts:
        """Return the epoch and the shard before a step, or in a mix those of each source."""
        _, positions = self._before(step)
        facts = list(map(SourceReader.facts, self.readers, positions))
        return dict(zip(self.names, facts)) if self.names else facts[0]

    def position(self, step: int) -> dict[str, Any]:
        """Return the position before a step as plain data, for ``resume``.

        ``step`` in the data is an earlier one if the stream has not been read since then. ``at``
        has a ``Position`` for each source, and ``shards`` the fingerprints of all shards.
        """
        mark, positions = self._before(step)
        at = [position._asdict() for position in positions]
        return {"step": mark, "at": at, "shards": self._fingerprints}

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continue from a position.

        Raises:
            MaskwiseError: a shard has changed since the position was saved.
        """
        changed = {name for name, _ in {*map(tuple, saved["shards"])} ^ {*self._fingerprints}}
        if changed:
            raise MaskwiseError(
                "a shard of the stream has changed since the state was saved",
                got=", ".join(sorted(changed)),
                do="restore the shard, or start a new run in a new folder",
            )
        self.marks = {saved["step"]: tuple(Position(**each) for each in saved["at"])}
        self._go_to(saved["step"])

    def _before(self, step: int) -> tuple[int, tuple[Position, ...]]:
        """Return the last known step up to ``step``, and the positions before it."""
        # Another thread may draw the next step at the same time, and change the marks.
        marks = dict(self.marks)
        mark = last_mark(marks, step)
        return mark, marks[mark]

    @cached_property
    def _fingerprints(self) -> list[tuple[str, str]]:
        """The name and the fingerprint of each shard; files of several folders may share a name."""
        shards = chain.from_iterable(reader.shards for reader in self.readers)
        return [(shard.name, shard.fingerprint()) for shard in shards]


def last_mark(marks: Mapping[int, object], step: int) -> int:
    """Return the last step, up to ``step``, whose position is known."""
    return max(mark for mark in marks if mark <= step)


# The shares in a mix
# -------------------------------------------------------------------------------------------

WHOLE = 1 << 40
"""The integer that means a share of 1. Computing with integers has no rounding errors."""

SHUFFLE = 0x5A6E


def mixed(size: int, *, seed: int, step: int) -> Tensor:
    """Return a random order of the rows of a batch. It spreads every source over the ranks."""
    return permutation(
        size,
        seed=fold(seed, SHUFFLE),
        epoch=step,
    )


def whole_shares(shares: NumbersByName) -> list[int]:
    """Return the shares as integers, where ``WHOLE`` means 1."""
    return [round(share * WHOLE) for share in shares.values()]


def taken(step: int, size: int, parts: Sequence[int]) -> list[tuple[int, int]]:
    """Return, for each source, how many of its rows are used before a step and after it."""
    first = apportioned(step * size, parts)
    end = apportioned((step + 1) * size, parts)
    return list(zip(first, end, strict=True))


def apportioned(rows: int, weights: Sequence[int]) -> list[int]:
    """Return the number of rows from each source among the first ``rows`` rows of a run.

    The sources are split into two parts of similar weight, again and again. Each split rounds once.

    >>> [apportioned(rows, [2, 1]) for rows in range(5)]
    [[0, 0], [1, 0], [1, 1], [2, 1], [3, 1]]
    """
    whole = sum(weights)
    if len(weights) == 1 or not whole:
        return [rows, *[0] * (len(weights) - 1)]
    # Balanced halves keep the recursion shallow and the rounding errors small.
    fork = min(range(1, len(weights)), key=lambda place: abs(2 * sum(weights[:place]) - whole))
    left = (2 * rows * sum(weights[:fork]) + whole) // (2 * whole)
    return apportioned(left, weights[:fork]) + apportioned(rows - left, weights[fork:])
