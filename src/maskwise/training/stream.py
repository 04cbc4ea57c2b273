"""The rows of a stream, step by step: tokenised ahead by worker processes, shuffled, and found
again after a stop.

    epoch → shards in a random order → chunks → blocks of rows, each in a random order → batches

Both orders are functions of (seed, epoch). Which rows a step trains on is therefore a function of
the step, whatever the number of workers or ranks; only where they are is not known without reading.
So a position (epoch, shard, place of the chunk, rows of its block that were used) is kept for each
step and saved with the states of a run, and a run that goes on begins with making one block anew.
Without a saved position the stream is read from its beginning: slow, and the same.

Every rank reads and tokenises the whole stream and takes its own rows of each batch. That is
simple, and enough while ranks × tokens per second of each are less than what the workers of one
rank tokenise; beyond that prepare the corpus.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.jobs import LocalPool
from maskwise.keys import Array, fold, permutation
from maskwise.text.pieces import Ints, PieceBatch
from maskwise.text.rows import Rows
from maskwise.text.shards import BEGINNING, Chunk, Place, Shard
from maskwise.text.stream import Block, Stream, joined
from maskwise.training.learners import Learner, Point
from maskwise.training.order import apportioned, mixed, parts_of
from maskwise.training.settings import TrainingSettings

KEPT_MARKS = 8
"""Positions of so many last steps are kept; batches are made one step ahead of what was trained on.
"""
SHARDS, ROWS = 0x54A2, 0x2035


class Position(NamedTuple):
    """Where the rows of a source stand.

    Attributes:
        epoch: of the source. shard: its place in the order of that epoch. place: in the shard,
            where the chunk begins.
        block: the number of the chunk's block in the epoch. row: how many rows of the block were
            used.
    """

    epoch: int = 0
    shard: int = 0
    place: Place = BEGINNING
    block: int = 0
    row: int = 0


Marked: TypeAlias = tuple[Position, Chunk | None]
"""A chunk and where it begins; None where an epoch ends."""


class Ended(Exception):
    """A source has no more rows, and shall not begin again."""


class Ahead:
    """Makes blocks of chunks: in worker processes, some chunks ahead, or in this process as they
    are asked for.

    The first block is made here in any case, while the workers start. So is that of a worker that
    died.

    Args:
        make: makes a block; it can be pickled.
        workers: processes; none: everything is done here.
    """

    def __init__(self, make: Callable[[Chunk], Block], workers: int):
        self.make, self.workers = make, workers
        self._threads: ThreadPoolExecutor | None = None
        self._pools: list[LocalPool[Chunk, Block]] = []
        self._own, self._closed = threading.local(), False

    def blocks(self, chunks: Iterator[Marked]) -> Iterator[tuple[Position, Block | None]]:
        """The blocks of chunks, in their order; None where an epoch ends."""
        if not self.workers:
            for at, chunk in chunks:
                yield at, self.make(chunk) if chunk else None
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="tokenising")
        waiting: deque[tuple[Position, Future[Block] | None]] = deque()
        first = next(chunks, None)
        if first is None:
            return
        self._submit(islice(chunks, self.workers), waiting)
        yield first[0], self.make(first[1]) if first[1] else None
        while waiting:
            self._submit(islice(chunks, 1), waiting)
            at, future = waiting.popleft()
            yield at, future.result() if future else None

    def _submit(
        self, chunks: Iterator[Marked], waiting: deque[tuple[Position, Future[Block] | None]]
    ) -> None:
        assert self._threads
        for at, chunk in chunks:
            waiting.append((at, self._threads.submit(self._made, chunk) if chunk else None))

    def _made(self, chunk: Chunk) -> Block:
        """The block of a chunk, made by the worker of this thread."""
        pool: LocalPool[Chunk, Block] | None = getattr(self._own, "pool", None)
        if pool is None:
            pool = self._own.pool = LocalPool(self.make, jobs=1)
            self._pools.append(pool)
        pool.start(chunk)
        while not self._closed:
            for _, block, failure in pool.finished(timeout=0.2):
                if failure and not failure.passing:
                    raise MaskwiseError(failure.error)
                return self.make(chunk) if failure else block
        raise CancelledError

    def close(self) -> None:
        """End the workers."""
        self._closed = True
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for pool in self._pools:
            pool.close()


class Flow:
    """The rows of one source, one after the other, from any position.

    Args:
        shards: of the source.
        stream: how they are shuffled, and whether they begin again.
        seed: of the order. ahead: makes their blocks.
    """

    def __init__(self, shards: Sequence[Shard], stream: Stream, *, seed: int, ahead: Ahead):
        self.shards, self.stream, self.seed, self.ahead = shards, stream, seed, ahead
        self.go_to(Position())

    def go_to(self, position: Position) -> None:
        """Go on from another position."""
        self.position = position
        self._chunks = self._read(position)
        self._blocks = self.ahead.blocks(self._chunks)
        self._rows: Rows | None = None
        self._order = np.zeros(0, np.int64)

    def take(self, count: int, *, together: bool) -> list[tuple[Rows, Ints]]:
        """The next rows, as numbers of rows of blocks.

        Args:
            together: of one epoch: what is left of an epoch that ends before is left out.

        Raises:
            MaskwiseError: an epoch has fewer rows, or none.
            Ended: the source ends, and shall not begin again.
        """
        parts: list[tuple[Rows, Ints]] = []
        missing, ends = count, 0
        while missing:
            left = self._order[self.position.row :][:missing]
            if len(left):
                assert self._rows
                parts.append((self._rows, left))
                missing -= len(left)
                ends = ends if together else 0
                self.position = self.position._replace(row=self.position.row + len(left))
            elif not self._next_block():
                ends += 1
                if ends > 1:
                    name = " + ".join(shard.name for shard in self.shards[:3])
                    raise MaskwiseError(
                        "the stream is smaller than one batch",
                        got=f"{count - missing} rows in {name}",
                        allowed=f"at least {count} rows",
                        do="give more text, or a smaller training.batch_size",
                    )
                if together:
                    parts, missing = [], count
        return parts

    def _next_block(self) -> bool:
        """Move on to the next block; False where an epoch has ended."""
        position, block = next(self._blocks, (None, None))
        if position is None:
            raise Ended
        self.position, self._rows = position, block.rows if block else None
        self._order = (
            self._shuffled(len(self._rows), position) if self._rows else np.zeros(0, np.int64)
        )
        return block is not None

    def _shuffled(self, size: int, at: Position) -> Ints:
        if not self.stream.shuffle:
            return np.arange(size)
        return permutation(size, seed=fold(self.seed, ROWS, at.block), epoch=at.epoch).numpy()

    def _shards(self, epoch: int) -> Ints:
        """The order of the shards in an epoch."""
        if not self.stream.shuffle:
            return np.arange(len(self.shards))
        return permutation(len(self.shards), seed=fold(self.seed, SHARDS), epoch=epoch).numpy()

    def _read(self, at: Position) -> Iterator[Marked]:
        """The chunks from a position on: epoch after epoch, if the stream is to begin again."""
        while True:
            order = self._shards(at.epoch)
            for number in range(at.shard, len(order)):
                for chunk, behind in self.shards[order[number]].chunks(
                    at.place, self.stream.chunk_size
                ):
                    yield at, chunk
                    at = at._replace(place=behind, block=at.block + 1, row=0)
                at = at._replace(shard=number + 1, place=BEGINNING, row=0)
            at = Position(epoch=at.epoch + 1)
            yield at, None
            if not self.stream.repeat:
                return

    def shard_of(self, position: Position) -> str:
        """The name of the shard in which a position is."""
        order = self._shards(position.epoch)
        return self.shards[order[min(position.shard, len(order) - 1)]].name


class StreamedRows(Learner):
    """The rows of a stream, as a `MaskedSource` draws them; it is saved as a learner is.

    Args:
        stream: the text.
        settings: batch size, steps, seed, and how many workers tokenise ahead.
        shares: of the sources of a mix, by name; none where there is one source.

    Attributes:
        names: the sources of a mix. length, layout: of the rows.
    """

    def __init__(
        self,
        stream: Stream,
        settings: TrainingSettings,
        *,
        shares: Mapping[str, float] = MappingProxyType({}),
    ):
        self.stream, self.settings, self.names = stream, settings, tuple(shares)
        self.length, self.layout = stream.length, stream.layout
        self.parts = parts_of(shares) if shares else [1]
        self.ahead = Ahead(stream.maker, settings.workers)
        chosen = [stream.sources[name] for name in self.names or stream.sources]
        if not shares:
            chosen = [[shard for shards in chosen for shard in shards]]
        self.flows = [
            Flow(shards, stream, seed=fold(settings.seed, number), ahead=self.ahead)
            for number, shards in enumerate(chosen)
        ]
        self.marks = {0: tuple(flow.position for flow in self.flows)}
        self.next, self.done = 0, 0
        self._drawn: list[tuple[Rows, Ints]] = []
        self._owner = np.zeros(0, np.int64)
        self._lock = threading.Lock()

    @property
    def documents(self) -> Array:
        """None that could be held out too: such documents are left out when the stream is read."""
        return np.zeros(0, np.int64)

    # Rows
    # -------------------------------------------------------------------------------------------------------

    def draw(self, step: int) -> tuple[Tensor, int | None]:
        """The rows of a step, as their places in its batch; and their epoch, None in a mix.

        Raises:
            MaskwiseError: a shard that cannot be read; a stream that ends before the training, or
                has too few rows.
        """
        with self._lock:
            if step != self.next - 1 or not self._drawn:
                if step < self.next:
                    self._go_to(max(mark for mark in self.marks if mark <= step))
                while self.next <= step:
                    self._draw_next()
        size = self.settings.batch_size
        if self.names:
            return mixed(size, seed=self.settings.seed, step=step), None
        return torch.arange(size), self.flows[0].position.epoch

    def place(self, step: int) -> int:
        """The place of the step's first row in the order of the run: nobody knows at which step an
        epoch began.
        """
        return step * self.settings.batch_size

    def _draw_next(self) -> None:
        first, size = self.next * self.settings.batch_size, self.settings.batch_size
        counts = [
            after - before
            for before, after in zip(
                apportioned(first, self.parts), apportioned(first + size, self.parts)
            )
        ]
        try:
            drawn = [flow.take(n, together=not self.names) for flow, n in zip(self.flows, counts)]
        except Ended:
            total = self.settings.steps
            do = f"set corpus.repeat: true to begin again, or training.steps={self.next}"
            what = f"the stream ends after {self.next} of {total} steps"
            raise MaskwiseError(what, do=do if self.next else "give more text") from None
        self._drawn = [part for parts in drawn for part in parts]
        self._owner = np.repeat(np.arange(len(counts)), counts)
        self.next += 1
        kept = {mark: at for mark, at in self.marks.items() if mark >= self.next - KEPT_MARKS}
        base = min(self.marks)
        self.marks = {
            base: self.marks[base],
            **kept,
            self.next: tuple(flow.position for flow in self.flows),
        }

    def _go_to(self, mark: int) -> None:
        for flow, position in zip(self.flows, self.marks[mark]):
            flow.go_to(position)
        self.next, self._drawn = mark, []

    def batch(self, rows: Tensor) -> PieceBatch:
        """The pieces of some rows of the step that was drawn last."""
        at = np.asarray(rows, dtype=np.int64)
        ends = np.cumsum([len(numbers) for _, numbers in self._drawn])
        part = np.searchsorted(ends, at, side="right")
        borders = np.flatnonzero(np.diff(part)) + 1
        return joined(
            [
                self._drawn[of[0]][0].batch(
                    self._drawn[of[0]][1][some - (ends[of[0]] - len(self._drawn[of[0]][1]))]
                )
                for some, of in zip(np.split(at, borders), np.split(part, borders))
            ]
        )

    def counts(self, rows: Tensor) -> dict[str, int]:
        """How many of some rows are of each source of a mix."""
        counts = np.bincount(self._owner[np.asarray(rows)], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist()))

    def close(self) -> None:
        """End the workers."""
        self.ahead.close()

    # What is saved
    # ----------------------------------------------------------------------------------------------

    def after(self, now: Point) -> None:
        """Take note of how many updates were done."""
        self.done = now.done

    def facts(self) -> Mapping[str, object]:
        """Where the stream stands: its epoch and shard, by source where it is a mix."""
        at = self.marks.get(self.done)
        if at is None:
            return {}
        facts = [
            {"epoch": position.epoch, "shard": flow.shard_of(position)}
            for flow, position in zip(self.flows, at)
        ]
        return {"stream": dict(zip(self.names, facts)) if self.names else facts[0]}

    def state_dict(self) -> dict[str, Tensor]:
        """The position behind the last update, and the fingerprints of the shards, as bytes of
        JSON.
        """
        if self.done not in self.marks:
            return {}
        state = {"step": self.done, "at": self.marks[self.done], "shards": self._fingerprints}
        return {"place": torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a position.

        Raises:
            MaskwiseError: a shard has changed since.
        """
        if "place" not in state:
            return
        saved = json.loads(state["place"].numpy().tobytes())
        names = {**saved["shards"], **self._fingerprints}
        changed = [
            name for name in names if saved["shards"].get(name) != self._fingerprints.get(name)
        ]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            do = "put back what it was, or begin a new run in a new folder"
            what = "a shard of the stream changed since the state was saved"
            raise MaskwiseError(what, got=f"{changed[0]}{more}", do=do)
        with self._lock:
            at = [
                Position(e, s, Place(*place), block, row) for e, s, place, block, row in saved["at"]
            ]
            self.done = saved["step"]
            self.marks = {self.done: tuple(at)}
            self._go_to(self.done)

    @property
    def _fingerprints(self) -> dict[str, str]:
        if not hasattr(self, "_known"):
            self._known = {
                shard.name: shard.fingerprint() for flow in self.flows for shard in flow.shards
            }
        return self._known
