"""SIGTERM and SIGUSR1, which clusters send before they kill: leave tidily, with the exit code 128 +
the number.

By default Python dies of them at once, without removing what is half-written. Slurm sends SIGTERM
some seconds before it kills (KillWait), and SIGUSR1 earlier where a job asks for it
(``--signal=USR1@120``).
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

# Windows has one
ASKED = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1"))
CODES = {128 + number: number.name for number in ASKED}
"""Exit codes, and the signals that they stand for."""


def leave_when_asked() -> None:
    """From now on these signals end the program as an exception does, so that files are closed and
    removed.
    """
    for number in ASKED:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


class Asked:
    """While this context lasts, the signals are only noted: work that asks for ``number`` ends
    where it can go on.

    A signal that was not ``served`` comes again at the end of the context. Only the main thread
    hears signals; in any other this does nothing.

    >>> with Asked() as asked:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     asked.served = True
    >>> asked.number == signal.SIGUSR1
    True
    """

    def __init__(self) -> None:
        self.number, self.served = 0, False

    def __enter__(self) -> Asked:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in ASKED}
        else:
            self.before = {}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        # An exception already ends the program.
        if self.number and not self.served and kind is None:
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
