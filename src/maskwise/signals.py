"""Handle SIGTERM and SIGUSR1, which clusters send before they kill a job.

By default, these signals end Python at once, without removing half-written files. Slurm sends
SIGTERM a few seconds before it kills a job (KillWait), and sends SIGUSR1 earlier if the job asks
for this (``--signal=USR1@120``). The program exits with the code 128 + the number of the signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

ASKED = [signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # Windows has none
    ASKED.append(signal.SIGUSR1)
WATCH_SECONDS = 0.2
CODES = {128 + number: number.name for number in ASKED}
"""For each exit code, the name of its signal."""


def leave_when_asked() -> None:
    """Make these signals raise SystemExit, so that files are closed and temporary files removed."""
    for number in ASKED:
        signal.signal(number, _leave)


def leave_with(parent: int) -> None:
    """End this process within two seconds of its parent's end."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    # Python handles the signal between training steps, but not while it imports a library.
    time.sleep(1.0)
    os._exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


class Asked:
    """A context that records the signals, so that work can stop at a point where it can resume.

    A signal that was not ``served`` is raised again at the end of the context. Python delivers
    signals only to the main thread; in any other thread, this context does nothing.

    Attributes:
        said: whether training reports that it was stopped; workers leave the report to their
            parent.

    >>> with Asked() as asked:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     asked.served = True
    >>> asked.number == signal.SIGUSR1
    True
    """

    said = True

    def __init__(self) -> None:
        self.number = 0
        self.served = False

    def __enter__(self) -> Asked:
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            for number in ASKED:
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self.before.items():
            # A handler that was not set from Python is None, and cannot be restored.
            signal.signal(number, handler or signal.SIG_DFL)
        # With an exception, the program ends anyway.
        if self.number and not self.served and kind is None:
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
