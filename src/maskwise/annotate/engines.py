"""Where shards are annotated: here, in other processes, or on a Ray cluster. Every engine gives the same bytes.

Files come back to the process that asked, which alone writes: so a cluster needs no shared disk (but for what
an annotator reads itself: a fitted vocabulary, a file of given spans).

The processes of the local engine are forks of a server that has imported what they need, once, while the corpus
is read. They end with their parent, also if that is killed.

Cost: texts and files go through a pipe, a few per cent of the tagger's time; Ray starts in about 5 s.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from typing import Any

from threadpoolctl import threadpool_limits

from maskwise.annotate.work import Task, annotate_shard, forget
from maskwise.errors import MaskwiseError, unknown_name

ENGINES = ("local", "ray")
RAY_SHARDS = 64
"""In one Ray data set: its texts come from this process and are in the object store together."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Done = tuple[Task, list[bytes]]


def run_tasks(
    tasks: Iterable[Task], *, engine: str, jobs: int, imports: Iterable[str] = ()
) -> Iterator[Done]:
    """Every task with its files, as they are finished; only a few tasks are in memory at once.

    Args:
        tasks: made as they are asked for.
        engine: "local" or "ray".
        jobs: processes of the local engine; 1 works in this one. Ray takes what the cluster has.
        imports: as for `start_server`.

    Raises:
        MaskwiseError: an unknown engine, a worker that died, no Ray, and what `annotate_shard` raises.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "ray":
        return _on_ray(tasks)
    return _in_processes(tasks, jobs, imports) if jobs > 1 else _here(tasks)


def start_server(imports: Iterable[str] = ()) -> None:
    """Start the server that workers are forks of, if it does not run yet: early, beside other work.

    Args:
        imports: modules that it imports, beside `work`; what they take is most of the time to a first shard.

    Raises:
        MaskwiseError: the system refuses.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["maskwise.annotate.work", *imports])
    # Ctrl-C is the parent's, also while the server imports: what is blocked here is blocked in it and its forks.
    resource_tracker.ensure_running()  # else the server starts it, and unblocks
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _environment(**ONE_THREAD):
            forkserver.ensure_running()
    except OSError as error:
        do = "its socket is in TMPDIR, whose name must be short; or take --jobs 1"
        raise MaskwiseError("cannot start worker processes", got=error, do=do) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _here(tasks: Iterable[Task]) -> Iterator[Done]:
    forget()  # this process may have worked before, and files that annotators read may have changed since
    # As in the workers: a job is a core, whatever libraries think.
    with threadpool_limits(1, user_api="blas"):
        for task in tasks:
            yield task, annotate_shard(task)


def _in_processes(tasks: Iterable[Task], jobs: int, imports: Iterable[str]) -> Iterator[Done]:
    start_server(imports)
    waiting, others = iter(tasks), multiprocessing.active_children()
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_leave_with_parent)
    running: dict[Future[list[bytes]], Task] = {}
    try:
        while True:
            for task in islice(waiting, 2 * jobs - len(running)):  # one in hand, one behind it
                with _ctrl_c_later():
                    running[pool.submit(annotate_shard, task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        do = (
            "was there enough memory? Fewer --jobs need less; the same command goes on. (A script of yours "
            'needs: if __name__ == "__main__":)'
        )
        raise MaskwiseError("a worker process died", do=do) from error
    except BaseException:  # Ctrl-C, a full disk: nobody waits for what is in hand
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Ctrl-C while a worker is born comes when it is there: one that is not known yet could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _environment(**settings: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _leave_with_parent() -> None:
    """In a worker: Ctrl-C is the parent's; when that is gone, however it went, leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1, user_api="blas")  # should the server be older than ours, and have other variables
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(tasks: Iterable[Task]) -> Iterator[Done]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MaskwiseError("Ray is not installed", do='pip install "maskwise[ray]"') from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=30, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    waiting = iter(tasks)
    while window := {task.number: task for task in islice(waiting, RAY_SHARDS)}:
        rows = ray.data.from_items(
            [_to_row(task) for task in window.values()], override_num_blocks=len(window)
        )
        for row in rows.map_batches(_annotate_rows, batch_size=1, batch_format="pyarrow").iter_rows():
            if row["error"]:
                raise MaskwiseError(row["error"])
            yield window[row["number"]], row["files"]


def _to_row(task: Task) -> dict[str, Any]:
    ids, texts = zip(*task.documents)
    return {"number": task.number, "ids": [*ids], "texts": [*texts], "annotators": [*task.annotators]}


def _annotate_rows(rows: Any) -> Any:
    """On a Ray worker. An error of the user's goes home as a line: an exception would lose its kind."""
    import pyarrow as pa

    done = []
    for row in rows.to_pylist():
        task = Task(row["number"], [*zip(row["ids"], row["texts"])], tuple(row["annotators"]))
        try:
            done.append({"number": task.number, "files": annotate_shard(task), "error": ""})
        except MaskwiseError as error:
            done.append({"number": task.number, "files": [], "error": str(error)})
    schema = {"number": pa.int64(), "files": pa.list_(pa.large_binary()), "error": pa.string()}
    return pa.Table.from_pylist(done, schema=pa.schema(schema))
