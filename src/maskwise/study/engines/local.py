"""The local engine: worker processes that outlive their tasks but not their parent.

Importing torch and transformers takes seconds, so workers are kept. Each has one thread, for two runs side by
side beat one on two threads. A task that raises is a failure with one line; a worker that dies is a failure
too, and is replaced. When the parent is gone, however it went, workers end within two seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from maskwise.study.engines.base import Failure, Probe, Run, answer

PATIENCE_SECONDS = 5.0
"""How long a worker may take to end before it is killed: it may still be importing."""


class LocalEngine:
    """``jobs`` processes on this machine, as many as cores if not said; see ``Engine``.

    Args:
        run: a function at the top of a module; tasks and results go through a pipe.
        threads: of torch, in each.
    """

    def __init__(self, run: Run, *, jobs: int | None = None, probe: Probe | None = None, threads: int = 1):
        self.run, self.threads = run, threads
        self.jobs = jobs or os.cpu_count() or 1
        self.workers: list[_Worker] = []

    @property
    def idle(self) -> int:
        return self.jobs - sum(worker.task is not None for worker in self.workers)

    def start(self, task: Any) -> None:
        idle = (worker for worker in self.workers if worker.task is None and worker.process.is_alive())
        worker = next(idle, None)
        if worker is None:
            worker = _Worker(self.run, self.threads)
            self.workers.append(worker)
        worker.give(task)

    def finished(self, timeout: float) -> Iterator[tuple[Any, Any, Failure | None]]:
        busy = {worker.pipe: worker for worker in self.workers if worker.task is not None}
        for pipe in wait(list(busy), timeout):
            worker = busy[pipe]  # type: ignore[index]
            task, worker.task = worker.task, None
            try:
                result, failure = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode
                result, failure = None, Failure(f"the worker process died (exit code {code})", passing=True)
                self.workers.remove(worker)
            yield task, result, failure

    def close(self) -> None:
        """End all workers: idle ones by closing their pipes, busy ones by a signal that lets them tidy up."""
        for worker in self.workers:
            worker.pipe.close()
            if worker.task is not None:
                worker.process.terminate()
        end = time.monotonic() + PATIENCE_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.join()


class _Worker:
    def __init__(self, run: Run, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.task: Any = None
        with _inherited(threads):
            arguments = (run, theirs, os.getpid(), threads)
            self.process = context.Process(target=_work, args=arguments, daemon=True)
            self.process.start()
        theirs.close()

    def give(self, task: Any) -> None:
        self.task = task
        with suppress(OSError):  # it has just died; whoever waits for it will find that out
            self.pipe.send(task)


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a worker needs from birth: torch reads its threads when imported; Ctrl-C is the parent's."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _work(run: Run, pipe: Connection, parent: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    try:
        while True:
            task = pipe.recv()
            pipe.send(answer(run, task))
    except (EOFError, OSError):  # the parent has closed the pipe, or is gone
        return
    except SystemExit as end:
        os._exit(int(end.code or 0))  # at once: taking torch down takes seconds


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that half-written folders are removed


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.0)
    os._exit(1)
