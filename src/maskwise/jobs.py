"""Pools of processes that call one function on many tasks, on this machine or a Ray cluster.

    with open_pool(function, engine="local", jobs=2) as pool:
        future = pool.submit(task)

Each task runs in one process with one thread. Two tasks in parallel, with one thread each, finish
earlier than one after the other with two threads. A failed task raises ``Failure``. A worker
process that dies is replaced.
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
from maskwise.errors import MaskwiseError, first_line, require_known, require_library, tidy_warnings
from maskwise.printing import flush, open_streams
from maskwise.signals import Asked, leave_when_asked, leave_with

Task = TypeVar("Task")
Result = TypeVar("Result")

# Libraries read these variables when they are imported, so a worker must be started with them.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
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


class Pool(ABC, Generic[Task, Result]):
    """Runs tasks in other processes, each task in one process with one thread.

    Args:
        function: a function that can be pickled, such as a function at the top of a module.
        jobs: the maximum number of parallel tasks; by default, the number of cores (or GPUs).
        gpu: whether each task runs on a GPU, if there are any. With more jobs than GPUs, tasks
            share GPUs.
    """

    @property
    @abstractmethod
    def places(self) -> int:
        """Maximum number of parallel tasks."""

    @abstractmethod
    def submit(self, task: Task) -> Future[Result]:
        """Start or queue a task. If the task fails, the future raises ``Failure``."""

    @abstractmethod
    def close(self) -> None:
        """Stop all workers, including those with running tasks."""

    def warm(self, count: int) -> None:
        """Start ``count`` workers, which import the function. Do not wait for them."""
        return

    def results(
        self, tasks: Iterable[Task], *, at_once: int | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Yield each task and its result, in the order in which tasks finish.

        Args:
            tasks: the tasks. The next task is read only when a worker is free, because all tasks
                together may not fit in memory.
            at_once: a further limit on parallel tasks, below ``places``.

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
            # The loop looks every second whether the cluster has grown.
            ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ended:
                task = running.pop(future)
                failure = future.exception()
                if isinstance(failure, Failure):
                    do = "if memory ran out, use fewer --jobs; the same command resumes the work"
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
    """Open a pool. The engine is "local" or "ray". The other arguments are those of ``Pool``.

    >>> with open_pool(len, jobs=1) as pool:
    ...     print(list(pool.results(["one", "seven"])))
    [('one', 3), ('seven', 5)]

    Raises:
        MaskwiseError: the engine is unknown, or there is no cluster.
    """
    require_known("engine", engine, ENGINES)
    return ENGINES[engine](function, jobs=jobs, gpu=gpu)


def one_line(error: Exception) -> str:
    """Format an error as one line. Unless it is a `MaskwiseError`, add the line of code."""
    if isinstance(error, MaskwiseError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return " ".join(f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})".split())


def call(function: bytes, task: Any) -> tuple[Any, Failure | None]:
    """Run a task in a worker; return the result and None, or None and the failure."""
    try:
        return _load(function)(task), None
    # Not every exception can be pickled, so only the text of an exception is returned.
    except Exception as error:
        return None, Failure(one_line(error), passing=isinstance(error, OSError))


_load = cache(pickle.loads)


# Processes on this machine


class LocalPool(Pool[Task, Result]):
    """A pool of up to ``jobs`` processes on this machine.

    Workers are new interpreters, so scripts need no ``if __name__ == "__main__":``. A worker runs
    many tasks, one after the other.
    """

    def __init__(self, function: Callable[[Task], Result], *, jobs: int | None, gpu: bool = False):
        # All workers get the same bytes, so the function is pickled only once.
        self.function = pickle.dumps(function)
        self.cards: list[str] = []
        if gpu:
            self.cards = cards_here()
        self.jobs = jobs or len(self.cards) or os.cpu_count() or 1
        self.hiring = threading.Lock()
        self.workers: list[_Worker] = []
        self.idle: list[_Worker] = []
        self.closed = False
        # Ctrl-C must reach only the parent. Threads block SIGINT, and their workers inherit this.
        block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGINT])
        # Each worker has its own thread that waits for it. If a worker dies, only one task fails.
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
        return result

    def _worker(self) -> _Worker:
        # `pop` raises an IndexError if another thread has taken the last idle worker.
        with suppress(IndexError):
            while True:
                worker = self.idle.pop()
                # An idle worker may have been killed, for example because memory ran out.
                if worker.process.poll() is None:
                    return worker
        return self._hire()

    def _hire(self) -> _Worker:
        with self.hiring:
            # A worker uses the GPU with the fewest workers.
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
        # The flag is set before the list is copied, because a thread may be starting a worker now.
        self.closed = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        workers = list(self.workers)
        for worker in workers:
            if worker in self.idle:
                worker.pipe.close()
            else:
                worker.process.terminate()
        # One time limit for all workers, because all were asked to end at the same time.
        end = time.monotonic() + PATIENCE_SECONDS
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.wait()


class _Worker:
    """A process that receives tasks through ``pipe`` and calls the function of the pool on them."""

    def __init__(self, function: bytes, card: str | None):
        self.card = card
        environment = os.environ | ONE_THREAD
        if card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = card
        self.pipe, theirs = multiprocessing.Pipe()
        serve = f"from maskwise.jobs import _serve; _serve({theirs.fileno()}, {os.getpid()})"
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            # With -P, files in the working folder cannot shadow modules.
            [sys.executable, "-P", "-c", serve],
            pass_fds=[theirs.fileno()],
            # Workers must not read input that is meant for the study.
            stdin=subprocess.DEVNULL,
            env=environment | {"PYTHONPATH": modules},
        )
        theirs.close()
        # If the worker is already dead, its first task fails and reports this.
        with suppress(OSError):
            self.pipe.send(function)


def _serve(descriptor: int, parent: int) -> NoReturn:
    """Run the main loop of a local worker."""
    leave_when_asked()
    open_streams()
    tidy_warnings()
    Asked.said = False
    # This thread ends the worker if the parent dies. It is started before the slow imports.
    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    code = 0
    try:
        function = pipe.recv()
        # If an import fails here, the first task raises the same error.
        with suppress(Exception):
            _load(function)
        while True:
            pipe.send(call(function, pipe.recv()))
    except SystemExit as end:
        code = int(end.code or 0)
    except (EOFError, OSError):  # The parent closed the pipe or died.
        pass
    flush()
    # A normal exit takes seconds if torch is loaded.
    os._exit(code)


# A Ray cluster


class RayPool(Pool[Task, Result]):
    """A pool on a Ray cluster; see ``Pool``.

    Each task uses one core and, with ``gpu``, a GPU or a share of a GPU. The pool joins the cluster
    at RAY_ADDRESS, or a cluster that already runs on this machine. If there is no cluster, or if
    RAY_ADDRESS is "local", the pool starts one on this machine. A task may run twice at the same
    time, because a node that seemed to be lost may still be alive.

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
            # The study itself retries stages.
            max_retries=0,
            runtime_env={"env_vars": carried | ONE_THREAD},
        )(_call_there)
        self.remote = partial(remote.remote, pickle.dumps(function), str(Path.cwd()))

    @property
    def places(self) -> int:
        # Nodes may join and leave the cluster, so its size is read again each time.
        return self.jobs or max(1, int(self.ray.cluster_resources().get(self.unit, 1)))

    def submit(self, task: Task) -> Future[Result]:
        future = Future[Result]()
        future.set_running_or_notify_cancel()
        self.references[future] = reference = self.remote(task)
        # `_end` distinguishes errors of Ray from failures of the task, which Ray's future does not.
        reference.future().add_done_callback(partial(self._end, future))
        return future

    def close(self) -> None:
        """Cancel running tasks. The connection to the cluster stays open for another pool."""
        for future, reference in self.references.items():
            if not future.done():
                self.ray.cancel(reference, force=True)
        self.references.clear()

    def _end(self, future: Future[Any], answer: Future[Any]) -> None:
        """Copy the result or failure from Ray's future. Ray calls this when the task ends."""
        try:
            result, failure = answer.result()
        # This error is raised, for example, if the node cannot import maskwise.
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

    # By default, Ray prints lost nodes on stdout, where --json allows only JSON.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _join(ray: ModuleType, jobs: int | None) -> None:
    given = os.environ.get("RAY_ADDRESS", "auto")
    settings = {"log_to_driver": False, "logging_level": "critical"}
    if given not in ("auto", "local"):
        # Ray would retry for minutes if no cluster answers at this address.
        host, _, port = given.rpartition("://")[2].partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except (OSError, ValueError) as error:
            raise MaskwiseError(
                "there is no Ray cluster at RAY_ADDRESS",
                got=f"{given}: {error}",
                do="start it with `ray start`, or unset RAY_ADDRESS",
            ) from None
    if given != "local":
        # If there is no cluster on this machine, the code below starts one.
        with suppress(ConnectionError):
            ray.init(address=given, **settings)
            return
    settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    ray.init(address="local", num_cpus=jobs or os.cpu_count(), **settings)


def _call_there(function: bytes, folder: str, task: Any) -> tuple[Any, Failure | None]:
    """Run a task on a node of the cluster."""
    # Paths in recipes are relative to the folder in which the user started the command.
    if Path(folder).is_dir():
        os.chdir(folder)
    return call(function, task)


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error of Ray, because the rest is for developers of Ray."""
    return first_line(error).split(". ")[0]
