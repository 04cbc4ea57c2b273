"""One pool of workers: processes on this machine, or a Ray cluster. It knows a function and tasks,
and nothing else.

    with open_pool(function, engine="local", jobs=2) as pool:
        for task, result in pool.results(tasks):
            …

Every worker has one thread, because two tasks side by side beat one on two threads. An error that a
task raises comes back as one line; a worker that dies is a failure too, and is replaced. Ctrl-C
belongs to the parent. When the parent is gone, however it went, its workers end within two seconds:
they start to watch it before they import anything heavy. Local workers are new interpreters and not
forks, so scripts need no ``if __name__ == "__main__":``; they are kept, because importing torch
takes seconds.

Ray: each task gets one core (and one GPU where asked) of whatever machine is free. The pool joins
    the cluster of
RAY_ADDRESS, else one that runs on this machine, else it starts one here (at once where RAY_ADDRESS
is "local"). Ray retries nothing itself. A task may run twice at once, for a node that was given up
may still be alive. Connecting takes about three seconds; every machine needs maskwise in the same
versions.
"""

from __future__ import annotations

import importlib
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from maskwise.errors import MaskwiseError, first_line, unknown_name
from maskwise.signals import leave_when_asked

Task = TypeVar("Task")
Result = TypeVar("Result")
Probe = Callable[[], str | None]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Libraries read these when they are imported, so they are set before a worker is born."""
PATIENCE_SECONDS = 20.0
"""How long a worker may take to end before it is killed: it may finish a step and save its state,
or still import.
"""
WATCH_SECONDS = 0.2
PROBE_SECONDS = 120.0
STORE_BYTES = 100 * 2**20
"""Ray's object store in a cluster that we start: tasks are small."""
CARRIED = (
    "HF_",
    "HUGGING",
    "TRANSFORMERS_",
    "TOKENIZERS_",
    "ATEN_",
    "MKL_",
    "CUBLAS_",
    "TORCH_",
    "MASKWISE_",
)
"""Beginnings of the variables that Ray workers get from here: where models lie, and what moves the
last bit.
"""


class Failure(NamedTuple):
    """Why a task has no result.

    Attributes:
        error: one line.
        passing: whether it may go better the next time. Yes where the machine failed: a worker that
            died, a node that was lost, a file that could not be read or written. No where the same
            must follow from the same: bad input, a loss that is not finite, a mistake of ours.
    """

    error: str
    passing: bool


class Outcome(NamedTuple, Generic[Task, Result]):
    """A task that ended: its result, or why it has none."""

    task: Task
    result: Result
    failure: Failure | None


class Pool(ABC, Generic[Task, Result]):
    """Runs tasks somewhere else, each in one process with one thread; it knows nothing of what they
    depend on.

    Args:
        function: can be pickled: a function at the top of a module, or a partial of one.
        jobs: how many tasks run at once; None: as many as there are cores (or GPUs).
        probe: called first in every place that shares no disk with us; it answers why tasks cannot
            run there.
        gpu: reserve a GPU for each task where the cluster has any.

    Raises:
        MaskwiseError: a place where tasks cannot run.
    """

    @property
    @abstractmethod
    def idle(self) -> int:
        """How many tasks can be started now."""

    @abstractmethod
    def start(self, task: Task) -> None:
        """Start a task; only while ``idle``."""

    @abstractmethod
    def finished(self, timeout: float) -> Iterator[Outcome[Task, Result]]:
        """Wait at most ``timeout`` seconds for tasks that end."""

    @abstractmethod
    def close(self) -> None:
        """End everything, also what still runs."""

    def warm(self, count: int, *, imports: Iterable[str] = ()) -> None:
        """Let ``count`` workers import the function, and modules, while this process does something
        else.
        """
        return

    def results(
        self, tasks: Iterable[Task], *, at_once: int | None = None
    ) -> Iterator[tuple[Task, Result]]:
        """Every task with its result, as they finish; only tasks that run are in memory.

        Args:
            tasks: made as there is room for them.
            at_once: run at most so many.

        Raises:
            MaskwiseError: a task failed. Nothing is tried again.
        """
        waiting, running, more = iter(tasks), 0, True
        while more or running:
            room = self.idle if at_once is None else min(self.idle, at_once - running)
            started = sum(self.start(task) is None for task in islice(waiting, room))
            # a cluster may have no room at the moment
            running, more = running + started, started == room
            for task, result, failure in self.finished(timeout=1.0) if running or more else ():
                running -= 1
                if failure:
                    do = "was there enough memory? Fewer --jobs need less; the same command goes on"
                    raise MaskwiseError(failure.error, do=do if failure.passing else None)
                yield task, result

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pool(
    function: Callable[[Task], Result],
    *,
    engine: str = "local",
    jobs: int | None = None,
    probe: Probe | None = None,
    gpu: bool = False,
) -> Pool[Task, Result]:
    """A pool of the engine with that name; for the arguments see ``Pool``.

    >>> with open_pool(len, jobs=1) as pool:
    ...     print(list(pool.results(["one", "seven"])))
    [('one', 3), ('seven', 5)]

    Raises:
        MaskwiseError: an unknown engine, or a place where tasks cannot run.
    """
    require_engine(engine)
    return ENGINES[engine](function, jobs=jobs, probe=probe, gpu=gpu)


def require_engine(name: str) -> None:
    """Refuse the name of an engine that does not exist."""
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)


def one_line(error: Exception) -> str:
    """An error in one line; with its place in the code, unless the mistake is the user's."""
    if isinstance(error, MaskwiseError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return " ".join(f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})".split())


def _answer(function: bytes, task: Any) -> tuple[Any, Failure | None]:
    """Called where the task runs: an error travels as a line, because not every exception can be
    pickled.
    """
    try:
        return _load(function)(task), None
    except Exception as error:
        return None, Failure(one_line(error), passing=isinstance(error, OSError))


_load = cache(pickle.loads)


# Processes on this machine
# ---------------------------------------------------------------------------------


class LocalPool(Pool[Task, Result]):
    """``jobs`` processes on this machine; see ``Pool``. They share our disk, so nothing is probed."""

    def __init__(
        self,
        function: Callable[[Task], Result],
        *,
        jobs: int | None = None,
        probe: Probe | None = None,
        gpu: bool = False,
    ):
        self.function = pickle.dumps(function)
        self.jobs = jobs or os.cpu_count() or 1
        self.workers: list[_Worker[Task]] = []

    @property
    def idle(self) -> int:
        return self.jobs - sum(worker.busy for worker in self.workers)

    def warm(self, count: int, *, imports: Iterable[str] = ()) -> None:
        while len(self.workers) < min(count, self.jobs):
            self._hire(*imports)

    def start(self, task: Task) -> None:
        free = (
            worker for worker in self.workers if not worker.busy and worker.process.poll() is None
        )
        (next(free, None) or self._hire()).give(task)

    def _hire(self, *imports: str) -> _Worker[Task]:
        """Start a worker. SIGINT is blocked meanwhile: the worker inherits the block, and we hear
        Ctrl-C after.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.workers.append(_Worker(self.function, imports))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self.workers[-1]

    def finished(self, timeout: float) -> Iterator[Outcome[Task, Result]]:
        busy = {worker.pipe: worker for worker in self.workers if worker.busy}
        for pipe in wait(list(busy), timeout):
            worker = busy[pipe]  # type: ignore[index]
            task, worker.tasks = worker.tasks[0], []
            try:
                result, failure = worker.pipe.recv()
            except (EOFError, OSError):
                code = worker.process.wait()
                result, failure = (
                    None,
                    Failure(f"the worker process died (exit code {code})", passing=True),
                )
                self.workers.remove(worker)
            yield Outcome(task, result, failure)

    def close(self) -> None:
        """End all workers: idle ones by closing their pipes, busy ones by a signal that lets them
        tidy up.
        """
        for worker in self.workers:
            worker.pipe.close()
            if worker.busy:
                worker.process.terminate()
        end = time.monotonic() + PATIENCE_SECONDS
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.wait()


class _Worker(Generic[Task]):
    def __init__(self, function: bytes, imports: Sequence[str]):
        self.pipe, theirs = multiprocessing.Pipe()
        self.tasks: list[Task] = []
        serve = f"from maskwise.jobs import _serve; _serve({theirs.fileno()}, {os.getpid()})"
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", serve],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": modules},
        )
        theirs.close()
        self._send((function, imports))

    @property
    def busy(self) -> bool:
        return bool(self.tasks)

    def give(self, task: Task) -> None:
        self.tasks = [task]
        self._send(task)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # the worker has just died; whoever waits for it will find that out
            self.pipe.send(message)


def _serve(descriptor: int, parent: int) -> NoReturn:
    """What a local worker does, all its life. The watch comes first: the function's imports take
    seconds.
    """
    leave_when_asked()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    pipe, code = Connection(descriptor), 0
    try:
        function, imports = pipe.recv()
        with suppress(Exception):  # the first task will say it
            _load(function)
            for name in imports:
                importlib.import_module(name)
        while True:
            pipe.send(_answer(function, pipe.recv()))
    except SystemExit as end:
        code = int(end.code or 0)
    except (EOFError, OSError):  # the parent has closed the pipe, or is gone
        pass
    sys.stdout.flush()
    os._exit(code)  # at once: taking torch down takes seconds


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.0)  # to tidy up; an import does not listen to signals
    os._exit(1)


# A Ray cluster
# ---------------------------------------------------------------------------------------------


class RayPool(Pool[Task, Result]):
    """Tasks on a Ray cluster; see ``Pool``.

    Raises:
        MaskwiseError: no Ray; no cluster at RAY_ADDRESS; a node whose probe finds something.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        *,
        jobs: int | None = None,
        probe: Probe | None = None,
        gpu: bool = False,
    ):
        self.ray = _quiet_ray()
        self.jobs = jobs
        self.tasks: dict[Any, Task] = {}
        if not self.ray.is_initialized():
            _join(self.ray, jobs)
        self.unit = "GPU" if gpu and self.ray.cluster_resources().get("GPU") else "CPU"
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        environment = {"env_vars": carried | ONE_THREAD}
        self.remote = self.ray.remote(
            num_cpus=1, num_gpus=int(self.unit == "GPU"), max_retries=0, runtime_env=environment
        )
        self.constant = pickle.dumps(function), str(Path.cwd())
        if probe:
            self._probe(probe, environment)

    @property
    def idle(self) -> int:
        # nodes come and go
        places = self.jobs or int(self.ray.cluster_resources().get(self.unit, 1))
        return max(0, places - len(self.tasks))

    def start(self, task: Task) -> None:
        self.tasks[self.remote(_answer_there).remote(*self.constant, task)] = task

    def finished(self, timeout: float) -> Iterator[Outcome[Task, Result]]:
        if not self.tasks:
            time.sleep(timeout)
            return
        ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=timeout)
        for reference in ready:
            yield Outcome(self.tasks.pop(reference), *self._outcome(reference))

    def close(self) -> None:
        """End what runs. The connection stays until this process ends: the next phase of a study
        needs it.
        """
        for reference in self.tasks:
            self.ray.cancel(reference, force=True)
        self.tasks.clear()

    def _outcome(self, reference: object) -> tuple[Any, Failure | None]:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # maskwise could not even be loaded there
            return None, Failure(_first_sentence(error), passing=False)
        except self.ray.exceptions.RayError as error:
            return None, Failure(
                f"a worker or its machine was lost: {_first_sentence(error)}", passing=True
            )

    def _probe(self, probe: Probe, environment: dict[str, dict[str, str]]) -> None:
        """Ask every node, before any work, whether it can do it. Lost or busy ones do not count, if
        any answers.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        task = self.ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(_answer_probe)
        asked = {
            task.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(probe): node
            for node in self.ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        ready, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
        failures = [
            (asked[reference]["NodeManagerAddress"], self._outcome(reference)[1])
            for reference in ready
        ]
        for node, failure in failures:
            if failure and not failure.passing:
                raise MaskwiseError(f"the Ray node {node} cannot do the work: {failure.error}")
        if all(failure for _, failure in failures):
            do = "look at `ray status`; RAY_ADDRESS=local starts a cluster here"
            got = next((failure.error for _, failure in failures if failure), None)
            raise MaskwiseError(f"no Ray node answers within {PROBE_SECONDS:.0f} s", got=got, do=do)


ENGINES: dict[str, Callable[..., Pool[Any, Any]]] = {"local": LocalPool, "ray": RayPool}


def _quiet_ray() -> ModuleType:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    try:
        import ray
    except ImportError:
        raise MaskwiseError("--engine ray needs Ray", do="pip install 'maskwise[ray]'") from None
    # Even when it is asked to be quiet, Ray prints the fate of its nodes on stdout, where --json
    # goes.
    ray._private.worker._worker_logs_enabled = False
    module: ModuleType = ray
    return module


def _join(ray: ModuleType, jobs: int | None) -> None:
    given = os.environ.get("RAY_ADDRESS", "auto")
    settings = {"log_to_driver": False, "logging_level": "critical"}
    if given not in ("auto", "local"):
        _require_answer(given)
    with suppress(ConnectionError):  # there is none
        if given != "local":
            ray.init(address=given, **settings)
            return
    ray.init(
        address="local",
        num_cpus=jobs or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        **settings,
    )


def _require_answer(address: str) -> None:
    """Try the port first: Ray would try for minutes, and print about it."""
    host, _, port = address.rpartition("://")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, ValueError) as error:
        do = "start it with `ray start`, or unset RAY_ADDRESS"
        raise MaskwiseError(
            "no Ray cluster at RAY_ADDRESS", got=f"{address}: {error}", do=do
        ) from None


def _answer_there(function: bytes, folder: str, task: Any) -> tuple[Any, Failure | None]:
    """Runs on a node, in the folder where we were started, because recipes name files as seen from
    there.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    return _answer(function, task)


def _answer_probe(probe: Probe) -> tuple[None, Failure | None]:
    problem = probe()
    return None, Failure(problem, passing=False) if problem else None


def _first_sentence(error: Exception) -> str:
    """What Ray says, without what is for its developers."""
    return first_line(error).split(". ")[0]
