"""Worker processes that outlive their tasks but not their parent.

Importing torch and transformers takes seconds, so workers are kept. Each has one thread, for two runs side by side
beat one on two threads. A task that raises is a failure with one line; a worker that dies is a failure too, and is
replaced. When the parent is gone, however it went, workers end within a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

Run = Callable[[Any], Any]


class Pool:
    """``jobs`` processes that each run ``run(task)``.

    Args:
        run: a function at the top of a module; tasks and results go through a pipe.
        jobs: how many processes.
        threads: of torch, in each.
    """

    def __init__(self, run: Run, *, jobs: int, threads: int = 1):
        self.run, self.threads = run, threads
        self.workers = [_Worker(run, threads) for _ in range(jobs)]

    @property
    def idle(self) -> int:
        """How many workers wait for work."""
        return sum(worker.task is None for worker in self.workers)

    def start(self, task: Any) -> None:
        """Give a task to an idle worker."""
        next(worker for worker in self.workers if worker.task is None).give(task)

    def finished(self, timeout: float) -> Iterator[tuple[Any, Any, str | None]]:
        """Wait at most ``timeout`` seconds; yield (task, result, error) for each that ended."""
        busy = {worker.pipe: worker for worker in self.workers if worker.task is not None}
        for pipe in wait(list(busy), timeout):
            worker = busy[pipe]  # type: ignore[index]
            task, worker.task = worker.task, None
            try:
                result, error = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                result, error = None, f"the worker process died (exit code {worker.process.exitcode})"
                self.workers[self.workers.index(worker)] = _Worker(self.run, self.threads)
            yield task, result, error

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()


class _Worker:
    def __init__(self, run: Run, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.task: Any = None
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, so it must be there at birth
        try:
            arguments = (run, theirs, os.getpid(), threads)
            self.process = context.Process(target=_work, args=arguments, daemon=True)
            self.process.start()
        finally:
            os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
        theirs.close()

    def give(self, task: Any) -> None:
        self.task = task
        self.pipe.send(task)


def _work(run: Run, pipe: Connection, parent: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((run(task), None))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if type(error).__name__.endswith("MaskwiseError") else f" ({last.filename}:{last.lineno})"
            name = "" if not where else f"{type(error).__name__}: "
            pipe.send((None, " ".join(f"{name}{error}".split()) + where))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
