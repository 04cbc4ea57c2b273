"""Handle SIGTERM and SIGUSR1, which clusters send before they kill a job.

By default, these signals end Python at once and leave half-written files. Slurm sends SIGTERM a few
seconds before it kills a job (KillWait). With ``--signal=USR1@120``, Slurm also sends SIGUSR1 120
seconds before the time limit. After a signal, maskwise exits with the code 128 + signal number.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

ASKED = [signal.SIGTERM]
# Windows has no SIGUSR1.
if hasattr(signal, "SIGUSR1"):
    ASKED.append(signal.SIGUSR1)
WATCH_SECONDS = 0.2
CODES = {128 + number: number.name for number in ASKED}
"""The name of the signal for each exit code."""


class AskedToLeave(SystemExit):
    """Raised if a signal ends the program.

    Code of users may call ``sys.exit``, too, which must not look like a success.
    """


def leave_when_asked() -> None:
    """Make the signals raise ``AskedToLeave``, which closes files and removes temporary files."""
    for number in ASKED:
        signal.signal(number, _leave)


def leave_with(parent: int) -> None:
    """Wait until the parent process ends, then end this process within two seconds."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    # Python handles the signal between training steps, but not while it imports a library.
    time.sleep(1.0)
    os._exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    raise AskedToLeave(128 + number)


class Asked:
    """A context that records signals, so that work can stop where it can later be resumed.

    Work that stops because of a signal sets ``served`` to True. Otherwise, the signal is raised
    again at the end of the context. Python delivers signals only to the main thread. In any other
    thread, this context does nothing.

    Attributes:
        number: the number of the last signal; 0 if there was none.
        served: whether the work has stopped because of the signal.
        said: whether training prints that a signal stopped it. Worker processes set False, because
            their parent process prints it.

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
            # A handler that was not set from Python is None here and cannot be restored.
            signal.signal(number, handler or signal.SIG_DFL)
        # If there is an exception, the program ends anyway.
        if self.number and not self.served and kind is None:
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
