"""Processes that train one model together: the ranks of torchrun, or those that a stage starts.

    result = launch(2, train, model)    # in two processes, with the variables of torchrun

Each process has a core or a GPU of its own. Why maskwise starts them itself where torchrun has not:
docs/decisions/0024-torchrun.md.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, TypeVar

from maskwise.base.constants import cores_here, rank_here, ranks_here, variables_of_rank
from maskwise.base.errors import MaskwiseError
from maskwise.base.signals import Asked, AskedToLeave
from maskwise.jobs.pools import (
    POLL_SECONDS,
    TaskAnswer,
    Worker,
    end_workers,
    environment_of,
    message,
    read_answer,
    require_cards,
)

Result = TypeVar("Result")

AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""The variable by which ranks know that another process has the store by which they meet."""


def launch(count: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in several new processes of this machine, which may train one model.

    They meet at a port that the system chooses, so two calls at the same time do not meet each
    other. After a signal, the processes have 20 seconds to save their state.

    Args:
        count: the number of processes.
        function: a function that can be pickled.
        arguments: values that can be pickled.

    Returns:
        What the function returns in the first process.

    Raises:
        MaskwiseError: this machine has GPUs, but fewer than processes.
        Failure: the function failed in a process, or a process died. All others are ended.
        AskedToLeave: a signal asks this process to end.
    """
    # Importing torch takes seconds.
    import torch
    from torch.distributed import TCPStore

    require_cards(count)
    # What earlier work keeps in the memory of the GPUs is free for the processes.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers: list[Worker] = []
    with Asked() as asked:
        asked.hold()
        try:
            for rank in range(count):
                workers.append(Worker(_environment(rank, count, store.port)))
                workers[rank].send(message(function, arguments))
            first = _first_answer(workers, asked)
        finally:
            end_workers(workers)
    for text, category in first.warned:
        warnings.warn(text, category, stacklevel=2)
    result: Result = first.result
    return result


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables of a process. Numbers of threads that are set here stand."""
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), AGENT: "True"}
    usual = environment_of((), max(1, cores_here() // count))
    return usual | os.environ | own | variables_of_rank(rank, count)


def _first_answer(workers: Sequence[Worker], asked: Asked) -> TaskAnswer:
    """Wait until all processes have answered. Return the answer of the first one.

    Raises:
        Failure: one of them failed or died, or others failed because it died.
        AskedToLeave: a signal asks this process to end.
    """
    waiting: dict[Any, Worker] = {worker.pipe: worker for worker in workers}
    answers: dict[Any, TaskAnswer] = {}
    while waiting:
        if asked.number:
            asked.served = True
            raise AskedToLeave(128 + asked.number)
        for pipe in wait([*waiting], POLL_SECONDS):
            worker = waiting.pop(pipe)
            answers[pipe] = read_answer(worker.receive())
            failure = answers[pipe].failure
            if failure:
                # If another process died, that is the cause, and reading its answer raises it.
                for other in waiting.values():
                    if other.process.poll() is not None:
                        other.receive()
                raise failure
    return answers[workers[0].pipe]


# Processes of torchrun
# ------------------------------------------------------------------------------------------------


def not_connected(facts: str) -> MaskwiseError:
    """Return the error of processes that know of each other and cannot reach each other."""
    return MaskwiseError(
        "the processes are not connected to each other",
        got=f"WORLD_SIZE={ranks_here()}, {facts}",
        do="start the processes with torchrun",
    )


def fails_first(*, quotes: bool) -> bool:
    """Return whether this process, which fails, is the one of its ranks that tells the user why.

    The first that fails is the cause: others may fail alike, or because it has gone. If the store
    is not that of torchrun itself, it may have gone, too, and then rank 0 tells.

    Args:
        quotes: whether the error is that of another rank, which tells it itself.
    """
    if ranks_here() > 1 and os.environ.get(AGENT) == "True":
        if quotes:
            return False
        from torch import distributed

        with suppress(ValueError, RuntimeError):
            store, _, _ = next(distributed.rendezvous("env://"))
            # After a failure, torchrun may start all processes again.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            return int(store.add(f"maskwise-{attempt}-failed", 1)) == 1
    return rank_here() == 0
