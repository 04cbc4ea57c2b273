"""Pools: run functions in other processes: on this machine, on a Ray cluster, or by an executor of
the user's, such as one of concurrent.futures or of submitit.

    with open_pool(engine="local", jobs=2) as pool:
        future = pool.submit(function, argument)

A task is a call of a function. Each task runs in one process with one thread: two tasks in
parallel, with one thread each, finish earlier than one after the other with two threads. The future
of a task that fails raises a `Failure`, which has the error in one line. If a worker process dies,
only its task fails, and the next task starts another process.

A pool on this machine is a pool of threads that each wait for one process. Why it is not a
``ProcessPoolExecutor`` is in docs/decisions/0020-workers.md.

Cost: a process starts in .06 seconds, before the imports of its first task; a task costs .1 ms.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, PriorityQueue
from types import ModuleType
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

from maskwise.base import plugins
from maskwise.base.constants import cards_here, cores_here, ranks_here, share_of_card
from maskwise.base.errors import (
    MaskwiseError,
    first_line,
    located,
    option,
    plural,
    require_known,
    require_library,
    tidy_warnings,
)
from maskwise.base.printing import flush, open_streams
from maskwise.base.signals import (
    ASKED,
    Asked,
    AskedToLeave,
    SignalWatch,
    leave_if_asked,
    leave_with,
)

Task = TypeVar("Task")
Result = TypeVar("Result")

# Libraries read these variables when they are imported, so a worker must be started with them.
# Tokenizers are written in Rust and use the threads of Rayon.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
# Tokenizers read this variable in each call. Without it, their first call starts Rayon's threads.
PARALLEL = "TOKENIZERS_PARALLELISM"
SERIAL = {PARALLEL: "false"}
# Rayon's threads do not survive a fork, and a child that waits for them never ends.
_FORKED = threading.Event()
os.register_at_fork(after_in_child=_FORKED.set)
_WORKER = threading.Event()
"""Whether this process is a worker of a pool on this machine, whose environment is ``SERIAL``."""
POLL_SECONDS = 0.2
"""How often to ask futures that announce no end, such as those of submitit, whether they ended."""
UNBOUNDED = 10_000
"""Number of parallel tasks if an executor does not say how many workers it has."""
PATIENCE_SECONDS = 20.0
"""How long a worker may take to finish a step and save its state before it is killed."""
STORE_BYTES = 100 * 2**20
"""Size of Ray's object store in a cluster that maskwise starts. A small one suffices for tasks."""
# Prefixes of variables that are copied to Ray workers: locations of models, and numerical settings.
CARRIED = (
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "TOKENIZERS_",
    "MASKWISE_",
    "ATEN_",
    "MKL_",
    "CUBLAS_",
    "TORCH_",
)


class Failure(Exception):
    """Raised if a task has no result.

    Attributes:
        error: the reason, in one line.
        passing: whether a retry may succeed. It may if a worker died, a node was lost, or a file
            could not be read or written.
    """

    def __init__(self, error: str, passing: bool):
        # Pickle calls the class with the arguments of `Exception` to restore an exception.
        super().__init__(error, passing)
        self.error = error
        self.passing = passing

    def __str__(self) -> str:
        return self.error


class Executor(Protocol):
    """What a user may give to run tasks: a pool of ``concurrent.futures``, an executor of submitit,
    or any object with this method.
    """

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Start a task. Return its future, which has the methods ``done()`` and ``result()``."""


class Pool(ABC):
    """Runs tasks in other processes.

    Attributes:
        here: whether tasks run in this process, one after the other, and show their own progress.
    """

    here = False

    def __init__(self) -> None:
        # Several threads may read answers.
        self._issuing = threading.Lock()
        self._issued = set[tuple[str, type[Warning]]]()

    @property
    @abstractmethod
    def places(self) -> int:
        """Maximum number of parallel tasks. In a cluster, it may change at any time."""

    @abstractmethod
    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Start a task, or queue it until a worker is free.

        If the task fails, the future raises a `Failure`.

        Args:
            function: a function that can be pickled, such as one at the top of a module.
            arguments: values that can be pickled.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop all workers, including those with running tasks."""

    def ended(self, futures: Iterable[Future[Any]], *, timeout: float) -> set[Future[Any]]:
        """Wait at most ``timeout`` seconds until a future has ended. Return all that have ended.

        Raises:
            AskedToLeave: a signal asks this process to end. It may have ended workers, too.
        """
        done = wait(futures, timeout=timeout, return_when=FIRST_COMPLETED).done
        leave_if_asked()
        return done

    def results(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
    ) -> Iterator[tuple[Task, Result]]:
        """Call a function on each task. Yield each task and its result as soon as it ends.

        Args:
            function: the function.
            tasks: the tasks. The next task is read only when a worker is free, because all tasks
                together may not fit in memory.

        Raises:
            MaskwiseError: a task failed. Nothing is retried. If the worker died, the error names
                the task.
        """
        waiting = iter(tasks)
        running: dict[Future[Result], Task] = {}
        while True:
            room = self.places - len(running)
            for task in islice(waiting, max(0, room)):
                running[self.submit(function, task)] = task
            if not running:
                return
            # The loop looks every second whether the cluster has grown.
            for future in self.ended(running, timeout=1.0):
                task = running.pop(future)
                try:
                    result = future.result()
                except Failure as failure:
                    if not failure.passing:
                        raise MaskwiseError(failure.error) from None
                    raise MaskwiseError(
                        f"{task}: {failure.error}",
                        do=f"if memory ran out, use fewer {option('jobs')}; the same call resumes "
                        "the work",
                    ) from None
                yield task, result

    def result_of(self, answered: bytes) -> Any:
        """Return the result in an answer, and issue the warnings that are new in this pool.

        Raises:
            Failure: the task failed.
        """
        read = read_answer(answered)
        with self._issuing:
            new = [each for each in read.warned if each not in self._issued]
            self._issued.update(new)
        for text, category in new:
            warnings.warn(text, category, stacklevel=1)
        if read.failure:
            raise read.failure
        return read.result

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ThisProcess(Pool):
    """Runs each task in this process when it is submitted. What the task raises ends the call.

    A task uses all threads of the process, so a command for one model is not slower than its parts.
    """

    here = True

    @property
    def places(self) -> int:
        return 1

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        future = Future[Result]()
        try:
            future.set_result(function(*arguments))
        # A task may start processes of its own.
        except Failure as failure:
            again = "the same call resumes the work" if failure.passing else None
            raise MaskwiseError(failure.error, do=again) from None
        return future

    def close(self) -> None:
        """Do nothing, because no task is running."""


Where: TypeAlias = str | Executor | ThisProcess
"""A name in ``ENGINES``, an executor, or this process."""


def open_pool(
    *, engine: Where = "local", jobs: int | None = None, gpu: bool = False, processes: int = 1
) -> Pool:
    """Open a pool.

    >>> with open_pool(jobs=1) as pool:
    ...     pool.submit(len, "seven").result()
    5

    Args:
        engine: where tasks run: "local", "ray", an executor, or this process.
        jobs: the maximum number of parallel tasks; by default, the number of cores (or GPUs), of
            which each task has ``processes``, or of the workers of the executor.
        gpu: whether each task runs on a GPU, if there are any. With more jobs than GPUs, tasks
            share GPUs. An executor decides this itself.
        processes: the number of processes that a task may start, each on a core or a GPU.

    Raises:
        MaskwiseError: the engine is unknown, there is no cluster, or no machine has as many GPUs
            or cores as a task has processes.
    """
    if isinstance(engine, ThisProcess):
        return engine
    require_engine(engine)
    if isinstance(engine, str):
        return ENGINES[engine](jobs=jobs, gpu=gpu, processes=processes)
    return ExecutorPool(engine, jobs=jobs)


def require_engine(engine: object) -> None:
    """Raise an error unless this is the name of an engine, or an executor."""
    if isinstance(engine, str):
        require_known("engine", engine, ENGINES)
    elif not callable(getattr(engine, "submit", None)) or isinstance(engine, type):
        raise MaskwiseError(
            "an executor is an object with a method submit(function, *arguments)",
            got=engine.__name__ if isinstance(engine, type) else type(engine).__name__,
            allowed="a pool of concurrent.futures, an executor of submitit, and the like",
        )


def require_one_process() -> None:
    """Raise an error if torchrun has started several processes for work that starts its own."""
    if ranks_here() > 1:
        raise MaskwiseError(
            "torchrun has started several processes, and this call starts its processes itself",
            got=f"WORLD_SIZE={ranks_here()}",
            allowed="maskwise pretrain and learn",
            do=f"run it without torchrun; {option('processes', ranks_here())} trains each model of "
            "study and adapt on so many devices, and in finetune so many runs at once",
        )


def require_cards(processes: int) -> None:
    """Raise an error if this machine has GPUs, and fewer than ``processes`` train together on."""
    cards = cards_here()
    if 0 < len(cards) < processes:
        raise MaskwiseError(
            "each process that trains needs a GPU of its own",
            got=f"{option('processes', processes)}, {plural(len(cards), 'GPU')}",
            do=f"use at most {option('processes', len(cards))}",
        )


def engine_of(engine: str, executor: Executor | None) -> Where:
    """Return where tasks run. Raise an error if both an engine and an executor are given."""
    if executor is None:
        return engine
    if engine != "local":
        raise MaskwiseError("give an engine or an executor", got=f"both, engine={engine!r}")
    return executor


class Once:
    """A function that is pickled once, and loaded once in each process that calls it.

    Use it for a function that is slow to load, such as one with a tokenizer, and runs many tasks.
    Its bytes still travel with every task, which takes a millisecond for each megabyte.
    """

    def __init__(self, function: Callable[..., Any]):
        self.content = pickle.dumps(function)

    def __call__(self, *arguments: Any) -> Any:
        return _load(self.content)(*arguments)


_load = lru_cache(4)(pickle.loads)


# Messages between a pool and its workers


def message(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """Return a task as a message to a worker, with the names that this process registered."""
    # Reading the task may need these names, so they are read before it.
    return pickle.dumps((plugins.registered(), pickle.dumps((function, arguments))))


def answer(task: bytes) -> bytes:
    """Run a task in a worker, and return its result or its `Failure`, and its warnings."""
    with _warnings_kept() as said:
        try:
            places, call = pickle.loads(task)
            plugins.adopt(places)
            function, arguments = pickle.loads(call)
            done = pickle.dumps((function(*arguments), None))
        # A task may start processes of its own.
        except Failure as failure:
            done = _done(failure)
        except SystemExit as end:
            # Executors end their workers in this way, too.
            if isinstance(end, AskedToLeave) or not _WORKER.is_set():
                raise
            done = _done(Failure(str(ended_by(end)), passing=False))
        # Not every exception can be pickled, so only the text of an exception is returned.
        except Exception as error:
            done = _done(Failure(one_line(error), passing=isinstance(error, OSError)))
    return pickle.dumps((done, [(str(each.message), _known_here(each.category)) for each in said]))


def _known_here(category: type[Warning]) -> type[Warning]:
    """Return the category, or its first base that the process of the pool can import, too."""
    known = ("builtins", __name__.split(".")[0])
    return next(base for base in category.__mro__ if base.__module__.split(".")[0] in known)


def _done(failure: Failure) -> bytes:
    return pickle.dumps((None, failure))


def _warnings_kept() -> AbstractContextManager[list[warnings.WarningMessage]]:
    """A context that keeps warnings in place of printing them, for the process of the pool.

    Each worker would print the same warning. Threads of that process share its warnings already.
    """
    if threading.current_thread() is not threading.main_thread():
        return nullcontext([])
    return warnings.catch_warnings(record=True)


@dataclass(frozen=True)
class TaskAnswer:
    """What a worker answered to a task.

    Attributes:
        result: what the task returned; None if it failed.
        failure: why the task failed; None if it did not.
        warned: the text and the category of each warning of the task.
    """

    result: Any
    failure: Failure | None
    warned: tuple[tuple[str, type[Warning]], ...] = ()


def read_answer(answered: bytes) -> TaskAnswer:
    """Read the message that `answer` returned. A result that cannot be read is a failure."""
    try:
        done, warned = pickle.loads(answered)
        result, failure = pickle.loads(done)
        return TaskAnswer(result, failure, tuple(dict.fromkeys(warned)))
    # What a task returned may need a module that only its worker can import.
    except Exception as error:
        unread = Failure(f"its result cannot be read: {one_line(error)}", passing=False)
        unread.__cause__ = error
        return TaskAnswer(None, unread)


def ended_by(end: SystemExit) -> MaskwiseError:
    """Return the error for code, such as that of a plug-in, that has called ``sys.exit``."""
    return MaskwiseError(
        "code that maskwise called ended the program", got=one_line(end), do="raise an error there"
    )


def one_line(error: Exception | SystemExit) -> str:
    """Format an error as one line. Unless it is a `MaskwiseError`, add the line of code."""
    if isinstance(error, MaskwiseError):
        return str(error)
    return located(error)


# Processes on this machine


class LocalPool(Pool):
    """A pool of up to ``jobs`` processes on this machine; see `open_pool`.

    Workers are new interpreters, so scripts need no ``if __name__ == "__main__":``. A worker runs
    many tasks, one after the other. It ends with this process, even if this process is killed.
    """

    def __init__(self, *, jobs: int | None, gpu: bool = False, processes: int = 1):
        super().__init__()
        self.cards: list[str] = []
        if gpu:
            require_cards(processes)
            self.cards = cards_here()
        self.processes = processes
        self.threads_of_tokenizers = jobs or cores_here()
        if os.environ.get(PARALLEL, "true").lower() in ("", "off", "false", "f", "no", "n", "0"):
            self.threads_of_tokenizers = 1
        self.jobs = jobs or max(1, (len(self.cards) or cores_here()) // processes)
        # Workers have numbers from 0. A task gets the free worker with the lowest number, or a new
        # one if none is free.
        self.workers: dict[int, Worker] = {}
        self.free = PriorityQueue[int]()
        self.numbers = count()
        self.opening = threading.Lock()
        self.closed = False
        # A thread waits for each busy worker. If a worker dies, only one task fails.
        self.threads = ThreadPoolExecutor(self.jobs, "maskwise")

    @property
    def places(self) -> int:
        return self.jobs

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        return self.threads.submit(self._run, message(function, arguments))

    def _run(self, task: bytes) -> Any:
        try:
            number = self.free.get_nowait()
        except Empty:
            number = next(self.numbers)
        try:
            worker = self._worker(number)
            worker.send(task)
            return self.result_of(worker.receive())
        finally:
            self.free.put(number)

    def _worker(self, number: int) -> Worker:
        """Return a worker. Start a process if there is none, or if it has died."""
        # After ``close`` had the lock, no worker starts.
        with self.opening:
            if self.closed:
                raise Failure("the pool was closed", passing=False)
            worker = self.workers.get(number)
            # An idle worker may have been killed, for example because memory ran out.
            if worker is None or worker.process.poll() is not None:
                first = number * self.processes
                numbers = range(first, first + self.processes) if self.cards else ()
                cards = [self.cards[each % len(self.cards)] for each in numbers]
                environment = environment_of(cards, self.threads_of_tokenizers)
                worker = self.workers[number] = Worker(environment)
            return worker

    def close(self) -> None:
        with self.opening:
            self.closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        end_workers(self.workers.values())


def environment_of(cards: Sequence[str], threads: int) -> dict[str, str]:
    """Return the environment variables of a worker.

    Args:
        cards: the GPUs that the worker may use; empty for no restriction.
        threads: the number of threads of tokenizers within ``many_threads``.
    """
    # These threads only start within ``many_threads``.
    rayon = {"RAYON_NUM_THREADS": str(threads)}
    environment = os.environ | ONE_THREAD | SERIAL | rayon
    if cards:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(cards)
    return environment


def end_workers(workers: Iterable[Worker]) -> None:
    """End workers, also in the middle of a task, after they have saved their state."""
    processes = [worker.process for worker in workers]
    for process in processes:
        process.terminate()
    # One time limit for all workers, because all were asked to end at the same time.
    end = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        process.kill()
        process.wait()


class Worker:
    """A process that receives tasks through a pipe and sends its answers back.

    Args:
        environment: its environment variables (``environment_of``).

    Raises:
        Failure: the process could not start.
    """

    def __init__(self, environment: Mapping[str, str]):
        self.environment = environment
        self.pipe, theirs = multiprocessing.Pipe()
        serve = f"from maskwise.jobs.pools import _serve; _serve({theirs.fileno()}, {os.getpid()})"
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # Ctrl-C must reach only the parent. Its workers inherit what it blocks.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process = subprocess.Popen(
                # With -P, files in the working folder cannot shadow modules.
                [sys.executable, "-P", "-c", serve],
                pass_fds=[theirs.fileno()],
                # Workers must not read input that is meant for the study.
                stdin=subprocess.DEVNULL,
                # What plug-ins print must not get between the results of the command.
                stdout=2,
                env={**environment, "PYTHONPATH": modules},
            )
        except OSError as error:
            lost = f"no worker process could start: {first_line(error)}"
            raise Failure(lost, passing=True) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def send(self, task: bytes) -> None:
        """Start a task, which is a message. If the process has died, ``receive`` says so."""
        with suppress(OSError):
            self.pipe.send_bytes(task)

    def receive(self) -> bytes:
        """Return the answer to the last task.

        Raises:
            Failure: the process died.
        """
        try:
            return self.pipe.recv_bytes()
        except (EOFError, OSError):
            code = self.process.wait()
            raise Failure(f"the worker process died (exit code {code})", passing=True) from None


def _serve(descriptor: int, parent: int) -> NoReturn:
    """Run the main loop of a local worker."""
    _WORKER.set()
    # The process of the pool repeats a signal that all processes got. A worker saves its state.
    SignalWatch(ASKED, lambda _: flush(), again=False)
    open_streams()
    tidy_warnings()
    Asked.said = False
    # This thread ends the worker if the parent dies. It is started before the slow imports.
    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    # The parent may die.
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(answer(pipe.recv_bytes()))
    flush()
    # A normal exit takes seconds if torch is loaded.
    os._exit(0)


# Executors


class ExecutorPool(Pool):
    """A pool whose tasks are run by an executor, which whoever opened it closes; see `open_pool`.

    A task is retried if the executor lost it. In threads, one task runs at a time, because the
    random state of torch belongs to the process.
    """

    def __init__(self, executor: Executor, *, jobs: int | None):
        super().__init__()
        self.executor = executor
        self.jobs = jobs
        # The futures of the executor, keyed by those of the pool.
        self.theirs: dict[Future[Any], Any] = {}

    @property
    def places(self) -> int:
        return self.jobs or getattr(self.executor, "_max_workers", None) or UNBOUNDED

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        future = Future[Result]()
        future.set_running_or_notify_cancel()
        task = message(function, arguments)
        try:
            theirs = self.executor.submit(_answer_there, str(Path.cwd()), task)
        # A pool of processes that lost a process, for example, takes no further tasks.
        except Exception as error:
            future.set_exception(self.failure_of(error))
            return future
        self.theirs[future] = theirs
        if hasattr(theirs, "add_done_callback"):
            theirs.add_done_callback(partial(self._end, future))
        return future

    def ended(self, futures: Iterable[Future[Any]], *, timeout: float) -> set[Future[Any]]:
        futures = list(futures)
        end = time.monotonic() + timeout
        while True:
            asked = False
            for future, theirs in list(self.theirs.items()):
                if hasattr(theirs, "add_done_callback"):
                    continue
                asked = True
                if theirs.done():
                    self._end(future, theirs)
            left = max(0.0, end - time.monotonic())
            done = super().ended(futures, timeout=min(left, POLL_SECONDS) if asked else left)
            if done or time.monotonic() >= end:
                return done

    def close(self) -> None:
        """Cancel tasks that have not ended. Tasks that run in threads or processes go on."""
        for theirs in list(self.theirs.values()):
            if hasattr(theirs, "cancel"):
                theirs.cancel()
        self.theirs.clear()

    def failure_of(self, error: Exception | SystemExit) -> Failure:
        """Return the failure of a task from an error of the executor itself."""
        lost = f"the executor lost a task: {type(error).__name__}: {first_line(error)}"
        return Failure(lost, passing=not isinstance(error, ImportError | TypeError))

    def _end(self, future: Future[Any], theirs: Any) -> None:
        """Copy the result or failure from the future of the executor."""
        # After the pool was closed, nobody waits for the future.
        if self.theirs.pop(future, None) is None:
            return
        try:
            future.set_result(self.result_of(theirs.result()))
        except Failure as failure:
            future.set_exception(failure)
        # A worker that got SIGTERM ends its task by SystemExit.
        except (Exception, SystemExit) as error:
            future.set_exception(self.failure_of(error))


_ALONE = threading.Lock()


def _answer_there(folder: str, task: bytes) -> bytes:
    """Run a task in a worker of an executor, perhaps on another machine."""
    with _ALONE, _one_thread(), _tokenizers_parallel("false"):
        # Paths in recipes are relative to the folder in which the user started the command.
        if Path(folder).is_dir():
            os.chdir(folder)
        return answer(task)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as in the workers of a local pool, so that sums are equal."""
    torch = sys.modules.get("torch")
    if torch is None:
        os.environ.update(ONE_THREAD)
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def many_threads() -> AbstractContextManager[None]:
    """A context in which tokenizers use all cores, in a pool at most as many as it has ``jobs``.

    Nothing else of a study can run before its text is prepared, so the cores are free. A process
    that was forked keeps its one thread, and so does an executor's; what the user has set in
    ``TOKENIZERS_PARALLELISM`` stands.
    """
    told = PARALLEL in os.environ and not _WORKER.is_set()
    return nullcontext() if told or _FORKED.is_set() else _tokenizers_parallel("true")


@contextmanager
def _tokenizers_parallel(value: str) -> Iterator[None]:
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before


# A Ray cluster


class RayPool(ExecutorPool):
    """A pool on a Ray cluster; see `open_pool`.

    Each task uses one core and, with ``gpu``, a GPU or a share of a GPU; with several
    ``processes``, it uses as many cores, and whole GPUs, of one node. The pool joins the cluster
    at RAY_ADDRESS, or a cluster that already runs on this machine. If there is no cluster, or if
    RAY_ADDRESS is "local", the pool starts one on this machine. A task may run twice at the same
    time, because a node that seemed to be lost may still be alive. After ``close``, the connection
    to the cluster stays open for another pool.

    Raises:
        MaskwiseError: Ray is not installed, there is no cluster at RAY_ADDRESS, or no node of it
            has as many cores or GPUs as a task needs.
    """

    def __init__(self, *, jobs: int | None, gpu: bool = False, processes: int = 1):
        self.ray = _quiet_ray()
        if not self.ray.is_initialized():
            _join(self.ray, jobs and jobs * processes, least=processes)
        cards = 0.0
        if gpu:
            cards = self.ray.cluster_resources().get("GPU", 0.0)
        self.unit = "GPU" if cards else "CPU"
        self.processes = processes
        card = share_of_card(jobs, cards)
        if processes > 1:
            self._require_node()
            card = processes if cards else 0
        super().__init__(_RayTasks(self.ray, processes, card), jobs=jobs)

    @property
    def places(self) -> int:
        # Nodes may join and leave the cluster, so its size is read again each time.
        units = int(self.ray.cluster_resources().get(self.unit, 1))
        return self.jobs or max(1, units // self.processes)

    def _require_node(self) -> None:
        """Raise an error if a task would wait for ever, because no node is large enough."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        most = int(max(resources.get(self.unit, 0) for resources in alive))
        if most < self.processes:
            raise MaskwiseError(
                "no node of the Ray cluster is large enough for the processes of a stage",
                got=f"{option('processes', self.processes)}, at most {most} {self.unit}",
                do=f"use at most {option('processes', most)}, or add a larger node",
            )

    def failure_of(self, error: Exception | SystemExit) -> Failure:
        # This error is raised, for example, if the node cannot import maskwise.
        if isinstance(error, self.ray.exceptions.RayTaskError):
            return Failure(_first_sentence(error), passing=False)
        lost = f"a worker or its machine was lost: {_first_sentence(error)}"
        return Failure(lost, passing=True)


class _RayTasks:
    """An executor whose tasks run on a Ray cluster.

    Args:
        ray: the module.
        cores: the number of cores that each task needs.
        card: the number of GPUs that each task needs, or the share of one.
    """

    def __init__(self, ray: ModuleType, cores: int, card: float):
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        self.ray = ray
        self.remote = ray.remote(
            num_cpus=cores,
            num_gpus=card,
            # The study itself retries stages.
            max_retries=0,
            runtime_env={"env_vars": carried | ONE_THREAD | SERIAL},
        )(_answer_there).remote

    def submit(self, function: Callable[..., bytes], /, *arguments: Any) -> _RayTask:
        assert function is _answer_there, "Ray's options belong to one function"
        return _RayTask(self.ray, self.remote(*arguments))


class _RayTask:
    """The future of a task of Ray. The cluster keeps a result as long as there is a reference."""

    def __init__(self, ray: ModuleType, reference: Any):
        self.ray = ray
        self.reference = reference
        self.future: Future[bytes] = reference.future()

    def done(self) -> bool:
        return self.future.done()

    def result(self) -> bytes:
        return self.future.result()

    def add_done_callback(self, function: Callable[[_RayTask], object]) -> None:
        self.future.add_done_callback(lambda _: function(self))

    def cancel(self) -> None:
        if not self.done():
            self.ray.cancel(self.reference, force=True)


ENGINES: dict[str, Callable[..., Pool]] = {"local": LocalPool, "ray": RayPool}


def _quiet_ray() -> ModuleType:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    require_library("ray", use=option("engine", "ray"))
    import ray

    # By default, Ray prints lost nodes on stdout, where --json allows only JSON.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _join(ray: ModuleType, cores: int | None, *, least: int = 1) -> None:
    given = os.environ.get("RAY_ADDRESS", "auto")
    settings = {"log_to_driver": False, "logging_level": "critical"}
    if given not in ("auto", "local"):
        # Ray would retry for minutes if no cluster answers at this address.
        host, _, port = given.rpartition("://")[2].partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except (OSError, ValueError) as error:
            raise _no_cluster(given, error) from None
        try:
            ray.init(address=given, **settings)
        # Something else than a cluster may listen there.
        except ConnectionError as error:
            raise _no_cluster(given, error) from None
        return
    if given == "auto":
        # If there is no cluster on this machine, the code below starts one.
        with suppress(ConnectionError):
            ray.init(address=given, **settings)
            return
    settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    ray.init(address="local", num_cpus=cores or max(cores_here(), least), **settings)


def _no_cluster(address: str, error: Exception) -> MaskwiseError:
    return MaskwiseError(
        "there is no Ray cluster at RAY_ADDRESS",
        got=f"{address}: {first_line(error)}",
        do="start it with `ray start`, or unset RAY_ADDRESS",
    )


def _first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error of Ray, because the rest is for developers of Ray."""
    return first_line(error).split(". ")[0]
