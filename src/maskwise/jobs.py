"""Pools that call one function on many tasks, in processes on this machine or on a Ray cluster.

    with open_pool(function, engine="local", jobs=2) as pool:
        future = pool.submit(task)

Each task runs in one process with one thread, because two tasks in parallel are faster than one
task on two threads. A failed task raises ``Failure``, and a worker that dies is replaced.
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
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NoReturn, TypeVar

from maskwise.constants import cards_here, share_of_card
from maskwise.errors import MaskwiseError, first_line, require_known, require_library
from maskwise.signals import Asked, leave_when_asked, leave_with

Task = TypeVar("Task")
Result = TypeVar("Result")

# Libraries read these variables on import, so the variables are set before a worker starts.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PATIENCE_SECONDS = 20.0
"""The time that a worker gets to finish a step and save its state before it is killed."""
STORE_BYTES = 100 * 2**20
"""The size of Ray's object store in a cluster that maskwise starts; tasks are small."""
# Prefixes of the variables that Ray workers inherit: where models are, and how numbers are rounded.
CARRIED = (
    *("HF_", "HUGGING", "TRANSFORMERS_", "TOKENIZERS_", "MASKWISE_"),
    *("ATEN_", "MKL_", "CUBLAS_", "TORCH_"),
)


class Failure(Exception):
    """Raised if a task has no result.

    Attributes:
        error: the reason, in one line.
        passing: whether a retry may succeed because the fault was the machine's: a dead worker, a
            lost node, or a file that could not be read or written.
    """

    def __init__(self, error: str, passing: bool):
        # Pickle restores an exception from these arguments.
        super().__init__(error, passing)
        self.error = error
        self.passing = passing

    def __str__(self) -> str:
        return self.error


class Pool(ABC, Generic[Task, Result]):
    """Runs tasks in other processes, each task in one process with one thread.

    Args:
        function: a function that can be pickled, such as a function at the top of a module.
        jobs: the number of tasks at once; if None, as many as there are cores (or GPUs).
        gpu: whether each task gets one GPU, if there are GPUs; with more jobs than GPUs, tasks
            share GPUs.
    """

    @property
    @abstractmethod
    def places(self) -> int:
        """The number of tasks that can run at once."""

    @abstractmethod
    def submit(self, task: Task) -> Future[Result]:
        """Start a task, or queue it if all places are taken; if it fails, its future raises
        ``Failure``.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop all workers, including those with running tasks."""

    def warm(self, count: int) -> None:
        """Start ``count`` workers, which import the function; this does not wait for them."""
        return

    def results(
        self, tasks: Iterable[Task], *, at_once: int | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Yield every task with its result, in the order in which the tasks finish.

        Args:
            tasks: the tasks. A task is drawn only when a worker is free, because there may be many
                large tasks.
            at_once: a limit on running tasks that is lower than ``places``.

        Raises:
            MaskwiseError: a task failed. Nothing is retried.
        """
        waiting = iter(tasks)
        running: dict[Future[Result], Task] = {}
        while True:
            room = min(self.places, at_once or self.places) - len(running)
            for task in islice(waiting, max(0, room)):
                running[self.submit(task)] = task
            if not running:
                return
            # The time limit lets the loop notice that a cluster has grown.
            ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ended:
                task = running.pop(future)
                failure = future.exception()
                if isinstance(failure, Failure):
                    do = "did memory run out? Use fewer --jobs; the same command resumes"
                    raise MaskwiseError(failure.error, do=do if failure.passing else None)
                yield task, future.result()

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pool(
    function: Callable[[Task], Result],
    *,
    engine: str = "local",
    jobs: int | None = None,
    gpu: bool = False,
) -> Pool[Task, Result]:
    """Open a pool of an engine ("local" or "ray"); for the other arguments see ``Pool``.

    >>> with open_pool(len, jobs=1) as pool:
    ...     print(list(pool.results(["one", "seven"])))
    [('one', 3), ('seven', 5)]

    Raises:
        MaskwiseError: the engine is unknown, or there is no cluster.
    """
    require_engine(engine)
    return ENGINES[engine](function, jobs=jobs, gpu=gpu)


def require_engine(name: str) -> None:
    """Refuse an unknown engine."""
    require_known("engine", name, ENGINES)


def one_line(error: Exception) -> str:
    """Format an error as one line, with its position in the code unless it is a user's mistake."""
    if isinstance(error, MaskwiseError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return " ".join(f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})".split())


def call(function: bytes, task: Any) -> tuple[Any, Failure | None]:
    """Run a task in a worker; returns its result, or its failure."""
    try:
        return _load(function)(task), None
    # Not every exception can be pickled, so only the text of an exception is returned.
    except Exception as error:
        return None, Failure(one_line(error), passing=isinstance(error, OSError))


_load = cache(pickle.loads)


# Processes on this machine


class LocalPool(Pool[Task, Result]):
    """Up to ``jobs`` processes on this machine, each served by a thread of this process.

    Workers are new interpreters, so scripts need no ``if __name__ == "__main__":``, and are reused.
    """

    def __init__(self, function: Callable[[Task], Result], *, jobs: int | None, gpu: bool = False):
        # The function is pickled once: every worker gets the same bytes.
        self.function = pickle.dumps(function)
        self.cards: list[str] = []
        if gpu:
            self.cards = cards_here()
        self.jobs = jobs or len(self.cards) or os.cpu_count() or 1
        self.hiring = threading.Lock()
        self.workers: list[_Worker] = []
        self.idle: list[_Worker] = []
        self.closed = False
        # Workers inherit the blocked signal from their thread, so Ctrl-C reaches the parent alone.
        block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGINT])
        # Each worker has a thread that waits for it, so a dead worker fails only its own task.
        self.threads = ThreadPoolExecutor(self.jobs, "maskwise", initializer=block)

    @property
    def places(self) -> int:
        return self.jobs

    def warm(self, count: int) -> None:
        for _ in range(min(count, self.jobs)):
            self.threads.submit(lambda: self.idle.append(self._hire()))

    def submit(self, task: Task) -> Future[Result]:
        return self.threads.submit(self._run, task)

    def _run(self, task: Task) -> Result:
        worker = self._worker()
        try:
            worker.pipe.send(task)
            result, failure = worker.pipe.recv()
        except (EOFError, OSError):
            code = worker.process.wait()
            self.workers.remove(worker)
            raise Failure(f"the worker process died (exit code {code})", passing=True) from None
        self.idle.append(worker)
        if failure:
            raise failure
        found: Result = result
        return found

    def _worker(self) -> _Worker:
        # Other threads also take idle workers, so the list may be empty by the time of the pop.
        with suppress(IndexError):
            while True:
                worker = self.idle.pop()
                # An idle worker may have been killed, for example because memory ran out.
                if worker.process.poll() is None:
                    return worker
        return self._hire()

    def _hire(self) -> _Worker:
        with self.hiring:
            # Several workers may share a card, but each worker has only one card.
            taken = [worker.card for worker in self.workers]
            card = min(self.cards, key=taken.count, default=None)
            worker = _Worker(self.function, card)
            self.workers.append(worker)
        # The pool may have been closed while the worker started.
        if self.closed:
            worker.process.terminate()
        return worker

    def close(self) -> None:
        """Stop idle workers by closing their pipes, and busy workers with a signal."""
        # Set before the list is copied, because a thread may be starting a worker right now.
        self.closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        workers = list(self.workers)
        for worker in workers:
            if worker in self.idle:
                worker.pipe.close()
            else:
                worker.process.terminate()
        # All workers have been asked to end, so they share the time limit.
        end = time.monotonic() + PATIENCE_SECONDS
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.wait()


class _Worker:
    """A process that calls the pool's function on every task that it receives through ``pipe``."""

    def __init__(self, function: bytes, card: str | None):
        self.card = card
        environment = os.environ | ONE_THREAD
        if card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = card
        self.pipe, theirs = multiprocessing.Pipe()
        serve = f"from maskwise.jobs import _serve; _serve({theirs.fileno()}, {os.getpid()})"
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            # -P keeps files of the working folder from shadowing modules of the library.
            [sys.executable, "-P", "-c", serve],
            pass_fds=[theirs.fileno()],
            # Otherwise a worker would read input that is meant for the study.
            stdin=subprocess.DEVNULL,
            env=environment | {"PYTHONPATH": modules},
        )
        theirs.close()
        # If the worker has died already, the first task reports it.
        with suppress(OSError):
            self.pipe.send(function)


def _serve(descriptor: int, parent: int) -> NoReturn:
    """Run the main loop of a local worker."""
    leave_when_asked()
    Asked.said = False
    # The watch starts first, because the function's imports take seconds.
    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    code = 0
    try:
        function = pipe.recv()
        # If an import fails here, the first task will raise the same error.
        with suppress(Exception):
            _load(function)
        while True:
            pipe.send(call(function, pipe.recv()))
    except SystemExit as end:
        code = int(end.code or 0)
    except (EOFError, OSError):  # The parent has closed the pipe, or has died.
        pass
    sys.stdout.flush()
    # With torch, a normal exit would take seconds.
    os._exit(code)


# A Ray cluster


class RayPool(Pool[Task, Result]):
    """A pool on a Ray cluster; see ``Pool``.

    Each task gets one core and, if there are GPUs, a GPU or a share of a GPU. The pool joins the
    cluster at RAY_ADDRESS or a cluster that runs on this machine, or else starts a cluster here
    (with RAY_ADDRESS "local", always). A task may run twice at once, because a node that was given
    up as lost may still be alive.

    Raises:
        MaskwiseError: Ray is not installed, or there is no cluster at RAY_ADDRESS.
    """

    def __init__(self, function: Callable[[Task], Result], *, jobs: int | None, gpu: bool = False):
        self.ray = _quiet_ray()
        self.jobs = jobs
        self.references: dict[Future[Any], Any] = {}
        if not self.ray.is_initialized():
            _join(self.ray, jobs)
        cards = 0.0
        if gpu:
            cards = self.ray.cluster_resources().get("GPU", 0.0)
        self.unit = "GPU" if cards else "CPU"
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        remote = self.ray.remote(
            num_cpus=1,
            num_gpus=share_of_card(jobs, cards),
            # The study retries stages itself.
            max_retries=0,
            runtime_env={"env_vars": carried | ONE_THREAD},
        )(_call_there)
        self.remote = partial(remote.remote, pickle.dumps(function), str(Path.cwd()))

    @property
    def places(self) -> int:
        # Not cached, because nodes may join and leave the cluster.
        return self.jobs or max(1, int(self.ray.cluster_resources().get(self.unit, 1)))

    def submit(self, task: Task) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        self.references[future] = reference = self.remote(task)
        # Ray's future would not distinguish Ray's own errors from a failure of the task.
        reference.future().add_done_callback(partial(self._end, future))
        return future

    def close(self) -> None:
        """Cancel running tasks; the connection stays open for the next plan of a study."""
        for future, reference in self.references.items():
            if not future.done():
                self.ray.cancel(reference, force=True)
        self.references.clear()

    def _end(self, future: Future[Any], answer: Future[Any]) -> None:
        """Pass a task's result or failure to our future; Ray calls this when the task ends."""
        result = None
        try:
            result, failure = answer.result()
        # Raised, for example, if maskwise cannot be imported on the node.
        except self.ray.exceptions.RayTaskError as error:
            failure = Failure(_first_sentence(error), passing=False)
        except self.ray.exceptions.RayError as error:
            lost = f"a worker or its machine was lost: {_first_sentence(error)}"
            failure = Failure(lost, passing=True)
        if failure:
            future.set_exception(failure)
        else:
            future.set_result(result)


ENGINES: dict[str, Callable[..., Pool[Any, Any]]] = {"local": LocalPool, "ray": RayPool}


def _quiet_ray() -> ModuleType:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    require_library("ray", use="--engine ray")
    import ray

    # Otherwise Ray prints lost nodes on stdout, which must contain nothing but JSON with --json.
    ray._private.worker._worker_logs_enabled = False
    module: ModuleType = ray
    return module


def _join(ray: ModuleType, jobs: int | None) -> None:
    given = os.environ.get("RAY_ADDRESS", "auto")
    settings = {"log_to_driver": False, "logging_level": "critical"}
    if given not in ("auto", "local"):
        _require_answer(given)
    if given != "local":
        # If no cluster runs on this machine, one is started below.
        with suppress(ConnectionError):
            ray.init(address=given, **settings)
            return
    settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    ray.init(address="local", num_cpus=jobs or os.cpu_count(), **settings)


def _require_answer(address: str) -> None:
    """Refuse an address where no cluster answers; Ray would retry and print for minutes."""
    host, _, port = address.rpartition("://")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, ValueError) as error:
        raise MaskwiseError(
            "there is no Ray cluster at RAY_ADDRESS",
            got=f"{address}: {error}",
            do="start it with `ray start`, or unset RAY_ADDRESS",
        ) from None


def _call_there(function: bytes, folder: str, task: Any) -> tuple[Any, Failure | None]:
    """Run a task on a node of the cluster."""
    # Paths in recipes are relative to the folder in which the command was started.
    if Path(folder).is_dir():
        os.chdir(folder)
    return call(function, task)


def _first_sentence(error: Exception) -> str:
    """Shorten a Ray error to its first sentence; the rest is meant for Ray's developers."""
    return first_line(error).split(". ")[0]
