"""For tests that start, interrupt or kill processes: they wait for events, never for a time.

``MASKWISE_TEST_PATIENCE`` is how many seconds an event may take before the test fails. It only says
when to give up, so it is generous: a busy machine makes these tests slower and not red.
"""

from __future__ import annotations

import gc
import io
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from maskwise.base.errors import Truncated
from maskwise.base.folders import write_folder
from maskwise.jobs.pools import Failure, Pool, answer, message

PATIENCE = float(os.environ.get("MASKWISE_TEST_PATIENCE", "240"))


def wait_for(event: Callable[[], object]) -> None:
    """Return as soon as ``event()`` is true."""
    end = time.monotonic() + PATIENCE
    while not event():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain"
        time.sleep(0.01)


def processor_seconds(work: Callable[[], object], *, times: int = 3) -> float:
    """Processor time of a call, the shortest of several: a busy machine makes some longer."""
    fastest = math.inf
    for _ in range(times):
        # Otherwise garbage is collected in between, also that of other tests.
        gc.collect()
        gc.disable()
        try:
            began = time.process_time()
            work()
            fastest = min(fastest, time.process_time() - began)
        finally:
            gc.enable()
    return fastest


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    # Each thread has a list of the processes that it started itself.
    lists = [_read(str(path)) for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in b" ".join(lists).split()]


def workers(pid: int) -> list[int]:
    """The workers of ``maskwise.jobs.pools`` that a process has started."""
    return [
        child
        for child in children(pid)
        if b"maskwise.jobs.pools" in _read(f"/proc/{child}/cmdline")
    ]


def marked(marker: str) -> list[int]:
    """Processes that have MARKER=marker in the environment that they were started with."""
    setting = f"MARKER={marker}".encode()
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if setting in _read(f"/proc/{pid}/environ").split(b"\0")]


def in_group(group: int) -> list[int]:
    """Processes of a group that still run; zombies do not."""
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if runs(pid) and _status(pid)[2:3] == [str(group).encode()]]


def runs(pid: int) -> bool:
    """Whether a process still runs. Zombies do not; one just killed may, for a moment."""
    return _status(pid)[:1] not in ([], [b"Z"])


def _status(pid: int) -> list[bytes]:
    """What Linux says of a process after its name: its state, parent, group, ...; [] of none."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


class SamePool(Pool):
    """An engine that does tasks in this process: what they give is the same, and no worker imports
    torch first.
    """

    places = 1

    def __init__(self, **ignored: Any):
        super().__init__()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(self.result_of(answer(message(function, arguments))))
        except Failure as failure:
            future.set_exception(failure)
        return future

    def close(self) -> None: ...


def worker_task(what: Any) -> Any:
    """Run by a worker. This file and its imports are light, so workers start quickly."""
    if what == "die":
        os._exit(7)
    if what == "raise":
        raise KeyError("two\nlines")
    if what == "lock":  # which cannot be sent back
        return threading.Lock()
    if what == "warn":
        with warnings.catch_warnings():  # after which Python would print a warning again
            warnings.simplefilter("error")
        warnings.warn("rows are truncated", Truncated, stacklevel=2)
    if what == "threads":  # the only task that needs torch, whose import takes seconds
        import torch

        return torch.get_num_threads()
    return what, os.getpid(), [os.environ["OMP_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]]


def worker_tokenises(*, many: bool) -> int:
    """Return how many threads a tokenizer starts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from maskwise.jobs.pools import many_threads

    before = len(os.listdir("/proc/self/task"))
    with many_threads() if many else nullcontext():
        Tokenizer(WordLevel({"a": 0}, "a")).encode_batch(["a"] * 100)
    return len(os.listdir("/proc/self/task")) - before


def worker_waits(path: Any, *, stubborn: bool = False) -> None:
    """Write the number of the process, and wait for an hour; the stubborn do not listen."""
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(f"{path}.partial").write_text(str(os.getpid()))
    Path(f"{path}.partial").rename(path)
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        time.sleep(0.01)


class Loaded:
    """A task that counts how often it was loaded in its process."""

    times = 0

    def __setstate__(self, state: object) -> None:
        Loaded.times += 1

    def __getstate__(self) -> object:
        return "not empty"

    def __call__(self, number: int) -> tuple[int, int]:
        return number, Loaded.times


def worker_card(_: Any) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def worker_length(text: Any) -> int:
    return len(text)


def worker_letters(stage: Any, store: Any) -> dict[str, Any]:
    """Do a stage: put its word behind the letters that the stages before it have written."""
    before = "".join((store.output(need) / "all.txt").read_text() for need in stage.needs)
    letters = before + stage.what["word"]
    write_folder(store.output(stage), lambda folder: (folder / "all.txt").write_text(letters))
    return {"letters": letters}


def forked(function: Callable[..., Any], *arguments: Any, **variables: str) -> Callable[[], Any]:
    """Call a function in a copy of this process, with more environment variables; the answer waits
    for its result.

    A copy has imported everything already, which a new process does for seconds. What the function
    raises fails the test, with its traceback; what it prints is lost.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        # A copy has no threads. To collect a store that waits for its thread would take for ever.
        gc.freeze()
        os.environ.update(variables)
        sys.stdout = sys.stderr = io.StringIO()
        try:
            theirs.send((function(*arguments), None))
        except BaseException:
            theirs.send((None, traceback.format_exc()))
        finally:
            os._exit(0)

    process = context.Process(target=child)
    process.start()
    theirs.close()

    def end() -> Any:
        assert ours.poll(PATIENCE), f"waited {PATIENCE:.0f} s in vain"
        try:
            result, failure = ours.recv()
        except EOFError:
            process.join()
            result, failure = None, f"the process died (exit code {process.exitcode})"
        process.join(PATIENCE)
        assert failure is None, failure
        return result

    return end


def worker_of_ranks(folder: Path, what: str) -> tuple[str, int]:
    """Say which of two processes this is; wait, die or fail in the second one."""
    rank = os.environ["RANK"]
    (folder / f"{what}-{rank}-port").write_text(os.environ.get("MASTER_PORT", ""))
    (folder / f"{what}-{rank}").write_text(os.environ.get("WORLD_SIZE", ""))
    if rank == "1" and what in ("dies", "fails"):
        # The other process would be stopped, perhaps before it began.
        wait_for((folder / f"{what}-0").exists)
    if rank == "1" and what == "dies":
        os._exit(7)
    if rank == "1" and what == "fails":
        raise KeyError("only here")
    if what == "warns":
        warnings.warn("rows are truncated", Truncated, stacklevel=2)
    if rank == "0" or what == "waits":
        # Both processes can reach the store by which they shall find each other.
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(place, timeout=PATIENCE).close()
        # Once a process has failed, the other is stopped.
        wait_for((folder / f"{what}-1").exists)
        if what in ("dies", "fails", "waits"):
            worker_waits(folder / f"{what}-{rank}-begun")
    return rank, os.getpid()


def two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in two processes with the variables that torchrun gives its ranks."""
    as_ranks(2, function, *arguments)


def as_ranks(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in ``count`` processes with the variables that torchrun gives its ranks.

    They must have joined one process group at the end.
    """
    launched(count, _as_rank, function, *arguments)


def launched(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in ``count`` processes with the variables that torchrun gives its ranks.

    As with torchrun, this process has the store by which the ranks find each other. If the first
    rank opened it, another process could take the port until then.

    Returns:
        The result of each rank.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count),
    }
    ranks = [
        forked(
            function,
            *arguments,
            **shared,
            LOCAL_WORLD_SIZE=str(count),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(count)
    ]
    return [end() for end in ranks]


def _as_rank(function: Callable[..., None], *arguments: Any) -> None:
    import torch.distributed as dist
    from accelerate.state import AcceleratorState

    from maskwise.training import leave

    AcceleratorState._reset_state(reset_partial_state=True)  # the copied process was alone
    function(*arguments)
    assert dist.get_world_size() == int(os.environ["WORLD_SIZE"])
    leave()
    # A thread may end between the listing and the reading.
    threads = [_read(str(task)) for task in Path("/proc/self/task").glob("*/comm")]
    of_gloo = [name for name in threads if b"gloo" in name]
    assert not of_gloo, "what races with the interpreter's end"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has just ended
        return b""
