"""Calls under torchrun: its processes, the ranks, run the tasks of one call together.

    @led
    def work(): ...     # the first rank runs it; the tasks of its `RankPool` run on all ranks

The other ranks wait for the end of the call, and return what the first rank returns. A task has a
process of its own beside its rank (``jobs.Worker``), and the ranks send each other messages through
the store by which torchrun lets them find each other. No rank joins a process group itself, so no
time-out of gloo or NCCL can end a rank that waits, and a task that fails on one rank is ended on
all ranks without harm to the next task. Why: docs/decisions/0024-torchrun.md.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial, wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from maskwise.constants import cards_here, cores_here, of_torchrun, rank_here, ranks_here
from maskwise.errors import MaskwiseError, first_line
from maskwise.jobs import (
    PATIENCE_SECONDS,
    POLL_SECONDS,
    Failure,
    Pool,
    Where,
    Worker,
    end_workers,
    environment_of,
    failed,
    message,
    one_line,
    read_answer,
)
from maskwise.signals import held, leave_if_asked

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

GOODBYE_SECONDS = 10.0
"""How long the first rank waits until the others know that a call has ended."""


def cores_of_rank(ranks: int) -> int:
    """Return the number of cores for one of several ranks on this machine.

    Ranks share the cores of torchrun, their parent. Each may be bound to cores of its own, or some
    of them to the same cores.
    """
    own = shared = cores_here()
    with suppress(AttributeError, OSError):
        shared = len(os.sched_getaffinity(os.getppid()))
    return min(own, max(1, shared // ranks))


@contextmanager
def _alone() -> Iterator[None]:
    """A context in which this process seems to be started without torchrun."""
    hidden = of_torchrun()
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def not_connected(facts: str) -> MaskwiseError:
    """Return the error of processes that know of each other and cannot reach each other."""
    return MaskwiseError(
        "the processes are not connected to each other",
        got=f"WORLD_SIZE={ranks_here()}, {facts}",
        do="start the processes with torchrun",
    )


# Ranks
# ------------------------------------------------------------------------------------------------


class Rank:
    """This process, as one of those that torchrun has started.

    Attributes:
        number: its rank.
        count: the number of ranks.
        variables: the environment variables that torchrun has set for it.
        store: what all ranks write and read.
        calls: the number of calls that have begun.
        sent: the number of tasks that the first rank has sent to each rank.
        taken: the number of tasks that this rank has begun.

    Raises:
        MaskwiseError: the processes were not started by a launcher.
    """

    def __init__(self) -> None:
        # Importing torch takes seconds.
        from torch import distributed

        self.number = rank_here()
        self.count = ranks_here()
        self.variables = of_torchrun()
        try:
            store, _, _ = next(distributed.rendezvous("env://"))
        except (ValueError, RuntimeError) as error:
            raise not_connected(first_line(error)) from None
        # After a failure, torchrun may start all processes again.
        attempt = self.variables.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store: Any = distributed.PrefixStore(f"maskwise-{attempt}", store)
        self.calls = 0
        self.sent = [0] * self.count
        self.taken = 0

    def has(self, key: str) -> bool:
        """Return whether a rank has written a key."""
        with _connected():
            return bool(self.store.check([key]))

    def read(self, key: str) -> Any:
        """Return the value that a rank has written."""
        with _connected():
            content = self.store.get(key)
        return pickle.loads(content)

    def write(self, key: str, value: object) -> None:
        """Write a value for other ranks."""
        content = pickle.dumps(value)
        with _connected():
            self.store.set(key, content)

    def forget(self, key: str) -> None:
        """Remove a key, if a rank has written it."""
        with _connected():
            self.store.delete_key(key)

    def lead(self, work: Callable[[], Result]) -> Result:
        """Call a function on the first rank, and tell the others how it has ended."""
        said: tuple[Result | None, BaseException | None] = None, None
        try:
            result = work()
            said = _carried((result, None))
            return result
        except BaseException as error:
            said = _carried((None, error))
            raise
        finally:
            # If the store is lost, the other ranks have noticed it, too.
            with suppress(MaskwiseError, RuntimeError):
                self.write(f"end-{self.calls}", said)
                # The first rank may own the store. After a signal, the others do not wait.
                if said[1] is None or isinstance(said[1], Exception):
                    others = [f"left-{self.calls}-{rank}" for rank in range(1, self.count)]
                    self.store.wait(others, timedelta(seconds=GOODBYE_SECONDS))

    def follow(self, runner: Runner) -> Any:
        """Wait on another rank for the end of the call. Return or raise what the first rank did."""
        end = f"end-{self.calls}"
        while not self.has(end):
            leave_if_asked()
            if runner.error:
                raise runner.error
            time.sleep(POLL_SECONDS)
        result, error = self.read(end)
        self.write(f"left-{self.calls}-{self.number}", None)
        if error is not None:
            raise error
        return result


@contextmanager
def _connected() -> Iterator[None]:
    """A context in which a lost connection is an error in one line."""
    try:
        yield
    # The errors of torch for connections are of this type.
    except RuntimeError as error:
        raise MaskwiseError(
            "the connection between the processes of torchrun was lost", got=first_line(error)
        ) from None


this_rank = cache(Rank)
"""Return the rank of this process. All calls of a process use one connection."""


Said = TypeVar("Said", bound=tuple[object, BaseException | None])


def _carried(said: Said) -> Said | tuple[None, MaskwiseError]:
    """Return what a call has returned or raised; what cannot be pickled is an error in one line."""
    try:
        pickle.loads(pickle.dumps(said))
        return said
    except Exception as unknown:
        error = said[1] if isinstance(said[1], Exception) else unknown
        return None, MaskwiseError("the first process failed", got=one_line(error))


class Runner:
    """Runs the tasks of a rank during a call, one after the other, in a process beside the rank.

    Attributes:
        error: why it runs no tasks any more, such as that the store was lost.
    """

    def __init__(self, rank: Rank):
        self.rank = rank
        self.worker: Worker | None = None
        self.error: Exception | None = None
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="maskwise", daemon=True)

    def __enter__(self) -> Runner:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.thread.join()

    def _run(self) -> None:
        # Ctrl-C must reach only the rank. Its worker inherits this.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            while not self.closing.is_set():
                key = f"{self.rank.number}-{self.rank.taken}"
                if self.rank.has(f"task-{key}"):
                    self.rank.taken += 1
                    self._do(key)
                else:
                    self.closing.wait(POLL_SECONDS)
        except Exception as error:
            self.error = error
        finally:
            self._end_worker()

    def _do(self, key: str) -> None:
        """Run a task, and send its answer."""
        port, task = self.rank.read(f"task-{key}")
        watch = partial(self._watch, key)
        try:
            watch()
            answered = self._worker(port).answer(task, watch)
        except Failure as failure:
            answered = failed(failure)
            self._end_worker()
        # The first of several failures is the cause of the others.
        order = self.rank.store.add("order", 1)
        self.rank.write(f"answer-{key}", (order, answered))
        # The next task needs the memory of the GPU, and other ranks notice that this one has ended.
        if port is not None:
            self._end_worker()

    def _watch(self, key: str) -> None:
        """Raise a ``Failure`` if a task shall be ended."""
        if self.closing.is_set() or self.rank.has(f"stop-{key}"):
            raise Failure(f"process {self.rank.number} ended it", passing=True)

    def _worker(self, port: int | None) -> Worker:
        """Return a process for a task of this rank alone, or of all ranks (with ``port``)."""
        environment = self._environment(port)
        worker = self.worker
        if worker and (worker.process.poll() is not None or worker.environment != environment):
            self._end_worker()
        if self.worker is None:
            self.worker = Worker(environment)
        return self.worker

    def _environment(self, port: int | None) -> dict[str, str]:
        own = self.rank.variables
        threads = cores_of_rank(int(own.get("LOCAL_WORLD_SIZE", self.rank.count)))
        card = None
        cards = cards_here()
        # Ranks that train together choose their GPUs by LOCAL_RANK.
        if cards and port is None:
            card = cards[int(own.get("LOCAL_RANK", self.rank.number)) % len(cards)]
        environment = environment_of(card, threads)
        if port is not None:
            # Numbers of threads that the user has set for torchrun stand, as in `pretrain`.
            environment |= os.environ
        for name in own:
            environment.pop(name, None)
        if port is not None:
            found = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            environment |= own | found
        return environment

    def _end_worker(self) -> None:
        if self.worker:
            end_workers([self.worker])
        self.worker = None


# Calls
# ------------------------------------------------------------------------------------------------

_led: tuple[Rank, Runner] | None = None
"""The first rank, during a call."""


def led(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let the first rank call a function, whose stages all ranks run. All ranks get its result.

    Without torchrun, the function is just called.
    """

    @wraps(work)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        global _led
        # The first rank has no variables of torchrun in here, so calls within calls are plain.
        if ranks_here() == 1:
            return work(*arguments, **options)
        rank = this_rank()
        rank.calls += 1
        # On the first rank, the pool keeps a signal from ending the process before its worker.
        with held() if rank.number else nullcontext(), Runner(rank) as runner:
            if rank.number:
                followed: Result = rank.follow(runner)
                return followed
            _led = rank, runner
            try:
                with _alone():
                    return rank.lead(partial(work, *arguments, **options))
            finally:
                _led = None

    return call


def ranks_together() -> int:
    """Return the number of processes that train one model: the ranks, also on the first of them."""
    return _led[0].count if _led else ranks_here()


def rank_pool(*, engine: Where = "local", jobs: int | None = None) -> RankPool | None:
    """Open the pool of all ranks; None outside of a call under torchrun.

    Raises:
        MaskwiseError: the user has asked for another pool, or for more tasks than ranks.
    """
    if _led is None:
        return None
    rank, runner = _led
    if engine != "local":
        raise MaskwiseError(
            "the processes of torchrun run the stages, so there is no other engine or executor",
            got=engine if isinstance(engine, str) else type(engine).__name__,
            do="leave it out, or run the command without torchrun",
        )
    if jobs is not None and jobs > rank.count:
        raise MaskwiseError(
            "each process of torchrun runs one stage at a time",
            got=f"{jobs} jobs, {rank.count} processes",
            do="start more processes, or run the command without torchrun",
        )
    return RankPool(rank, runner, jobs=jobs or rank.count)


def fails_first(*, quotes: bool) -> bool:
    """Return whether this process, which fails, is the one of its ranks that tells the user why.

    The first that fails is the cause: others may fail alike, or because it has gone. If the store
    is not that of torchrun itself, it may have gone, too, and then rank 0 tells.

    Args:
        quotes: whether the error is that of another rank, which tells it itself.
    """
    if ranks_here() > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        if quotes:
            return False
        with suppress(MaskwiseError, RuntimeError):
            return int(this_rank().store.add("failed", 1)) == 1
    return rank_here() == 0


# The pool
# ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Task:
    """A task of the pool.

    Attributes:
        task: the message to the worker.
        together: whether all ranks run it.
        keys: the key of the task on each rank that runs it; empty before it has begun.
        meeting: the store by which its processes find each other.
        failed_at: when the failure of a rank was noticed.
    """

    task: bytes
    together: bool
    future: Future[Any] = field(default_factory=Future)
    keys: dict[int, str] = field(default_factory=dict)
    meeting: object = None
    failed_at: float | None = None


class RankPool(Pool):
    """A pool in which each rank runs a task, or all ranks run one task together.

    A task of all ranks begins when all other tasks have ended. Its result is that of the first
    rank.
    """

    gathers = True

    def __init__(self, rank: Rank, runner: Runner, *, jobs: int):
        super().__init__()
        self.rank = rank
        self.runner = runner
        self.jobs = jobs
        self.waiting = deque[_Task]()
        self.running: list[_Task] = []

    @property
    def places(self) -> int:
        if any(task.together for task in (*self.waiting, *self.running)):
            return 0
        return self.jobs

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        return self._add(_Task(message(function, arguments), together=False))

    def submit_together(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        return self._add(_Task(message(function, arguments), together=True))

    def ended(self, futures: Iterable[Future[Any]], *, timeout: float) -> set[Future[Any]]:
        futures = list(futures)
        end = time.monotonic() + timeout
        while True:
            self._look()
            left = max(0.0, end - time.monotonic())
            done = super().ended(futures, timeout=min(left, POLL_SECONDS))
            if done or time.monotonic() >= end:
                return done

    def close(self) -> None:
        """Stop all tasks, and wait until they have saved their states."""
        self.waiting.clear()
        end = time.monotonic() + 1.5 * PATIENCE_SECONDS
        # If the store is lost, every rank ends its own task.
        with suppress(MaskwiseError):
            for task in self.running:
                self._stop(task)
            while self.running and time.monotonic() < end:
                self._look()
                time.sleep(POLL_SECONDS)

    def _add(self, task: _Task) -> Future[Any]:
        self.waiting.append(task)
        self._begin()
        return task.future

    def _begin(self) -> None:
        """Begin the tasks for which ranks are free, in order."""
        while self.waiting:
            busy = {rank for task in self.running for rank in task.keys}
            free = [rank for rank in range(self.rank.count) if rank not in busy]
            together = self.waiting[0].together
            if (together and busy) or not free:
                return
            task = self.waiting.popleft()
            self.running.append(task)
            port = None
            if together:
                port = self._meet(task)
            for rank in free if together else free[:1]:
                key = task.keys[rank] = f"{rank}-{self.rank.sent[rank]}"
                self.rank.sent[rank] += 1
                self.rank.write(f"task-{key}", (port, task.task))

    def _meet(self, task: _Task) -> int:
        """Open a store by which the processes of a task find each other. Return its port."""
        from torch.distributed import TCPStore

        # The system chooses the port, so no other process can take it before.
        host = self.rank.variables["MASTER_ADDR"]
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        task.meeting = store
        return store.port

    def _look(self) -> None:
        """Look for tasks that have ended, and begin others."""
        if self.runner.error:
            raise self.runner.error
        for task in [*self.running]:
            if self._has_ended(task):
                self.running.remove(task)
                task.meeting = None
        self._begin()

    def _has_ended(self, task: _Task) -> bool:
        """Set the result of a task if there is one. Return whether its ranks are free."""
        answers = {}
        for rank, key in task.keys.items():
            if self.rank.has(f"answer-{key}"):
                answers[rank] = self.rank.read(f"answer-{key}")
        failures = {}
        for order, answered in answers.values():
            failure = read_answer(answered).failure
            if failure:
                failures[order] = failure
        now = time.monotonic()
        if failures and task.failed_at is None:
            task.failed_at = now
        # Ranks that can go on notice the failure of another rank, and others wait for it in vain.
        late = task.failed_at is not None and now - task.failed_at > PATIENCE_SECONDS
        first = min(task.keys)
        if len(answers) < len(task.keys):
            if first in answers or late:
                self._stop(task)
            return False
        _, answered = answers[first]
        try:
            task.future.set_result(self.result_of(answered))
        except Failure:
            task.future.set_exception(failures[min(failures)])
        for key in task.keys.values():
            for kind in ("task", "answer", "stop"):
                self.rank.forget(f"{kind}-{key}")
        return True

    def _stop(self, task: _Task) -> None:
        for key in task.keys.values():
            self.rank.write(f"stop-{key}", None)
