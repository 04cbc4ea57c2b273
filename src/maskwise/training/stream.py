"""The rows of a stream: text that worker processes tokenise during training.

    shards in random order → chunks of text → blocks of rows, in random order → batches

A shard is a part of the stream, such as a file. A chunk is some consecutive records of a shard. A
block is all rows made from a chunk. The orders depend only on the seed and the epoch, so the rows
of a step do not depend on the number of workers or ranks. The position of a step in the text is
known only after all earlier text was read, so training states contain it. Without it, a resumed run
reads the stream from the beginning, which is slow but gives the same rows. Every rank tokenises the
whole stream and uses its part of each batch. If this is too slow, prepare the corpus.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.devices import TensorDict, Tensors
from maskwise.draws import fold, permutation
from maskwise.errors import MaskwiseError
from maskwise.jobs import Failure, LocalPool, Once
from maskwise.masking.line import Line
from maskwise.segments import owners
from maskwise.text.pieces import Ints
from maskwise.text.readers import BEGINNING, ReadPosition
from maskwise.text.rows import Rows
from maskwise.text.stream import Chunk, Shard, Stream
from maskwise.training.learners import Facts, Learner, Numbers, Progress
from maskwise.training.settings import TrainingSettings

KEPT_MARKS = 8
"""The number of recent steps whose positions are kept, because batches are made ahead."""
SHARDS, ROWS = 0x54A2, 0x2035


class Position(NamedTuple):
    """A position in the rows of a text source.

    Attributes:
        epoch: the number of the pass over the source.
        shard: the index of the shard in the order of the epoch.
        place: the position of the chunk in the shard.
        block: the index of the block in the epoch.
        row: the number of rows of the block that were already used.
    """

    epoch: int = 0
    shard: int = 0
    place: ReadPosition = BEGINNING
    block: int = 0
    row: int = 0


PositionedChunk: TypeAlias = tuple[Position, Chunk | None]
"""A position and the chunk at this position. The chunk is None at the end of an epoch."""
PositionedRows: TypeAlias = tuple[Position, Rows | None, bool]
"""A position, the rows of the chunk, and whether the epoch ends at this position."""


class Ended(Exception):
    """A source has no more rows and does not begin again."""


class Ahead:
    """Makes blocks of rows from chunks of text in worker processes, a few chunks ahead.

    This process makes the first block, while the workers start. If a worker dies, this process
    makes the worker's block.

    Args:
        make: a picklable function that makes a block from a chunk.
        workers: the number of worker processes; with 0, this process makes all blocks.
    """

    def __init__(self, make: Callable[[Chunk], Rows | None], workers: int):
        self.make = make
        self.workers = workers
        self.pool = LocalPool(jobs=workers) if workers else None
        # It has a tokenizer and annotators, which a worker must load only once.
        self.once = Once(make) if workers else make

    def blocks(self, chunks: Iterator[PositionedChunk]) -> Iterator[PositionedRows]:
        """Yield the blocks of the chunks, in order."""
        waiting = deque[tuple[Position, Chunk | None, Future[Rows | None] | None]]()
        for number, (at, chunk) in enumerate(chunks):
            # Make the first block in this process, because workers take seconds to start.
            future = None
            if chunk and number and self.pool:
                future = self.pool.submit(self.once, chunk)
            waiting.append((at, chunk, future))
            if len(waiting) > self.workers:
                yield self._made(*waiting.popleft())
        for each in waiting:
            yield self._made(*each)

    def _made(
        self, at: Position, chunk: Chunk | None, future: Future[Rows | None] | None
    ) -> PositionedRows:
        if chunk is None:
            return at, None, True
        try:
            return at, future.result() if future else self.make(chunk), False
        except Failure as failure:
            # If the text was bad, it would fail here too. If the worker died, it would not.
            if not failure.passing:
                raise MaskwiseError(failure.error) from None
            return at, self.make(chunk), False

    def close(self) -> None:
        """End the workers."""
        if self.pool:
            self.pool.close()


class Flow:
    """The rows of one text source, from any position on.

    Args:
        shards: the shards of the source.
        stream: the stream, for its settings ``shuffle``, ``repeat`` and ``chunk_size``.
        seed: the seed of the orders of shards and rows.
        ahead: the object that makes blocks.
    """

    def __init__(self, shards: Sequence[Shard], stream: Stream, *, seed: int, ahead: Ahead):
        self.shards = shards
        self.stream = stream
        self.seed = seed
        self.ahead = ahead
        self.go_to(Position())

    def go_to(self, position: Position) -> None:
        """Continue from a different position."""
        self.position = position
        self._blocks = self.ahead.blocks(self._read(position))
        self._rows: Rows | None = None
        self._order = np.zeros(0, np.int64)

    def take(self, count: int, *, together: bool) -> list[tuple[Rows, Ints]]:
        """Return the next rows, as pairs (block, indices of rows in the block).

        Args:
            count: the number of rows.
            together: whether all rows must be from the same epoch. If the epoch has too few rows
                left, these rows are skipped.

        Raises:
            MaskwiseError: an epoch has fewer rows than ``count``.
            Ended: the source has too few rows left and does not begin again.
        """
        parts = []
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
            if self._next_block():
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

    def _next_block(self) -> bool:
        """Go to the next block. Return False if the epoch has no more blocks."""
        made = next(self._blocks, None)
        if made is None:
            raise Ended
        position, self._rows, ends = made
        self.position = position
        size = len(self._rows) if self._rows else 0
        self._order = self._shuffled(size, fold(self.seed, ROWS, position.block), position.epoch)
        return not ends

    def _shuffled(self, size: int, seed: int, epoch: int) -> Ints:
        if not self.stream.shuffle:
            return np.arange(size)
        return permutation(size, seed=seed, epoch=epoch).numpy()

    def _shards(self, epoch: int) -> list[Shard]:
        """Return the shards in the order of an epoch."""
        order = self._shuffled(len(self.shards), fold(self.seed, SHARDS), epoch)
        return [self.shards[number] for number in order]

    def _read(self, at: Position) -> Iterator[PositionedChunk]:
        """Yield the chunks from a position on. If the stream repeats, this never ends."""
        while True:
            for number, shard in enumerate(self._shards(at.epoch)):
                if number < at.shard:
                    continue
                for chunk, after in shard.chunks(at.place, self.stream.chunk_size):
                    yield at, chunk
                    at = at._replace(
                        place=after,
                        block=at.block + 1,
                        row=0,
                    )
                at = at._replace(
                    shard=number + 1,
                    place=BEGINNING,
                    row=0,
                )
            at = Position(epoch=at.epoch + 1)
            yield at, None
            if not self.stream.repeat:
                return

    def facts(self, position: Position) -> dict[str, object]:
        """Return the epoch and the name of the shard at a position."""
        shards = self._shards(position.epoch)
        last = min(position.shard, len(shards) - 1)
        return {"epoch": position.epoch, "shard": shards[last].name}


class StreamedRows(Learner):
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
        shares: Numbers = MappingProxyType({}),
    ):
        self.settings = settings
        self.names = tuple(shares)
        self.length = stream.length
        self.layout = stream.layout
        self.parts = parts_of(shares) if shares else [1]
        self.ahead = Ahead(stream.maker, settings.workers)
        if shares:
            sources = [stream.sources[name] for name in shares]
        else:
            sources = [list(chain.from_iterable(stream.sources.values()))]
        self.flows = [
            Flow(shards, stream, seed=fold(settings.seed, number), ahead=self.ahead)
            for number, shards in enumerate(sources)
        ]
        self.marks = {0: self._positions()}
        self.next = self.done = 0
        self._drawn: list[tuple[Rows, Ints]] = []
        # For each row of the batch: the source, the index in ``_drawn``, and the row in that block.
        self._owner = self._part = self._row = np.zeros(0, np.int64)

    def _positions(self) -> tuple[Position, ...]:
        return tuple(flow.position for flow in self.flows)

    # Rows

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """Return the order of the rows in a step's batch, and their epoch (None in a mix).

        Raises:
            MaskwiseError: a shard cannot be read, or the stream ends early or has too few rows.
        """
        if step < self.next - 1 or not self._drawn:
            self._go_to(max(mark for mark in self.marks if mark <= step))
        while self.next <= step:
            self._draw_next()
        size = self.settings.batch_size
        if self.names:
            return mixed(size, seed=self.settings.seed, step=step), None
        return torch.arange(size), self.flows[0].position.epoch

    def place(self, step: int) -> int:
        """Return the number of rows of the run before a step. (An epoch has no known length.)"""
        return step * self.settings.batch_size

    def _draw_next(self) -> None:
        ends = taken(self.next, self.settings.batch_size, self.parts)
        counts = np.diff(ends).ravel().tolist()
        self._drawn = []
        try:
            for flow, count in zip(self.flows, counts):
                self._drawn += flow.take(count, together=not self.names)
        except Ended:
            raise MaskwiseError(
                f"the stream ends after {self.next} of {self.settings.steps} steps",
                do=f"set corpus.repeat: true to begin again, or training.steps={self.next}"
                if self.next
                else "use more text",
            ) from None
        self._owner = owners(np.array(counts))
        _, numbers = zip(*self._drawn)
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
        for flow, position in zip(self.flows, self.marks[mark]):
            flow.go_to(position)
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
        self.ahead.close()

    # State

    def after(self, now: Progress) -> None:
        """Record the number of completed updates."""
        self.done = now.done

    def facts(self) -> Facts:
        """Return the epoch and the shard of the stream, or in a mix those of each source."""
        positions = self.marks.get(self.done)
        if positions is None:
            return {}
        facts = list(map(Flow.facts, self.flows, positions))
        return {"stream": dict(zip(self.names, facts)) if self.names else facts[0]}

    def state_dict(self) -> TensorDict:
        """Return the position after the last update, and hashes of the shards, as JSON bytes."""
        if self.done not in self.marks:
            return {}
        state = {"step": self.done, "at": self.marks[self.done], "shards": self._fingerprints}
        return {"place": torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: Tensors) -> None:
        """Continue from a saved position.

        Raises:
            MaskwiseError: a shard has changed since the position was saved.
        """
        if "place" not in state:
            return
        saved = json.loads(state["place"].numpy().tobytes())
        changed = sorted(dict(saved["shards"].items() ^ self._fingerprints.items()))
        if changed:
            raise MaskwiseError(
                "a shard of the stream has changed since the state was saved",
                got=", ".join(changed),
                do="restore the shard, or start a new run in a new folder",
            )
        positions = []
        for epoch, shard, place, block, row in saved["at"]:
            positions.append(Position(epoch, shard, ReadPosition(*place), block, row))
        self.done = saved["step"]
        self.marks = {self.done: tuple(positions)}
        self._go_to(self.done)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        found = {}
        for flow in self.flows:
            for shard in flow.shards:
                found[shard.name] = shard.fingerprint()
        return found


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


def parts_of(shares: Numbers) -> list[int]:
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
