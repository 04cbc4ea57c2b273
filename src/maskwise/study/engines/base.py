"""What an engine is, and what becomes of a task that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from maskwise.errors import MaskwiseError

Run = Callable[[Any], Any]
Probe = Callable[[], str | None]


class Failure(NamedTuple):
    """Why a task has no result.

    Attributes:
        error: one line.
        passing: may it go better the next time? Yes where the machine failed: a worker that died, a node that
            was lost, a file that could not be read or written. No where the same must follow from the same: bad
            input, a loss that is not finite, a mistake of ours.
    """

    error: str
    passing: bool


class Engine(Protocol):
    """Runs tasks somewhere else, each in one process with one thread; it knows nothing of what they depend on."""

    def __init__(self, run: Run, *, jobs: int | None, probe: Probe | None):
        """Be ready to call ``run`` on tasks.

        Args:
            run: a function at the top of a module, or a partial of one.
            jobs: how many tasks at once; None: as many as there are cores (or GPUs).
            probe: called first in every place that shares no disk with us; its answer is why tasks cannot run there.

        Raises:
            MaskwiseError: a place where tasks cannot run.
        """

    @property
    def idle(self) -> int:
        """How many tasks can be started now."""

    def start(self, task: Any) -> None:
        """Start a task; only while ``idle``."""

    def finished(self, timeout: float) -> Iterator[tuple[Any, Any, Failure | None]]:
        """Wait at most ``timeout`` seconds; yield (task, result, failure) for each that ended."""

    def close(self) -> None:
        """End everything, also what still runs."""


def answer(run: Run, task: Any) -> tuple[Any, Failure | None]:
    """Called where the task runs: an error travels as a line, for not every exception can be sent."""
    try:
        return run(task), None
    except Exception as error:
        return None, Failure(one_line(error), passing=isinstance(error, OSError))


def one_line(error: Exception) -> str:
    """An error in one line; with its place, where it is not the user's."""
    if isinstance(error, MaskwiseError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return " ".join(f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})".split())
