"""End commands and workers after SIGTERM, SIGUSR1 and Ctrl-C, without an exception in the middle.

Slurm sends SIGTERM a few seconds before it kills a job (KillWait). With ``--signal=USR1@120``,
Slurm also sends SIGUSR1 120 seconds before the time limit. After a signal, maskwise exits with the
code 128 + signal number.

A handler of Python runs between two steps of the main thread: also within a callback of a library
that swallows exceptions, and never while the main thread computes in C. Handlers here therefore
raise nothing. A thread reads the signals as soon as they arrive, and ends the process. As after a
kill, no file is half-written, because files are renamed when they are complete. What needs time
before the end, such as to save a state, holds the process (``held``).

Why: docs/decisions/0028-signals.md.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

ASKED = [signal.SIGTERM]
# Windows has no SIGUSR1.
if hasattr(signal, "SIGUSR1"):
    ASKED.append(signal.SIGUSR1)
WATCH_SECONDS = 0.2
AGAIN_SECONDS = 2.0
"""How long after a signal another one of its kind means that the user does not want to wait. Shells
and launchers send the same signal twice within less."""
GOODBYE_SECONDS = 1.0
"""How long the last words may take, because nobody may read what is printed."""
KEPT = "finished stages and saved states are kept, and the same {work} resumes the work"
"""What is said of work that a signal ends."""
CODES = {128 + number: number.name for number in (*ASKED, signal.SIGINT)}
"""The name of the signal for each exit code."""
LEFT: set[Path] = set()
"""Temporary files and folders, which are removed when a signal ends the process."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A context with a new folder, which is removed at its end, or when a signal ends the
    process.
    """
    with TemporaryDirectory(prefix="maskwise-") as name:
        folder = Path(name)
        LEFT.add(folder)
        try:
            yield folder
        finally:
            LEFT.discard(folder)


class AskedToLeave(SystemExit):
    """Raised where work stops because of a signal.

    Code of users may call ``sys.exit``, too, which must not look like a success.
    """


class SignalWatch:
    """Ends the process after a signal, as soon as nothing holds it.

    Only the main thread can make a watch.

    Args:
        numbers: the signals.
        goodbye: called with the exit code before the end, in another thread than the main one.
        again: whether the second signal of a kind ends the process at once (``AGAIN_SECONDS``).

    Attributes:
        number: the number of the first signal; 0 if there was none.
    """

    def __init__(
        self, numbers: Sequence[int], goodbye: Callable[[int], object], *, again: bool = True
    ):
        global _watch
        self.numbers = numbers
        self.goodbye = goodbye
        self.again = again
        self.number = 0
        self.holds = 0
        self.ends = False
        self.lock = threading.Lock()
        # Python writes the number of a signal to a socket at once, while the main thread computes.
        self.signals, self.sender = socket.socketpair()
        self.sender.setblocking(False)
        self.descriptor = signal.set_wakeup_fd(self.sender.fileno(), warn_on_full_buffer=False)
        self.before = {}
        for number in numbers:
            # A shell starts commands in the background with SIGINT ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._note)
        _watch = self
        threading.Thread(target=self._run, name="maskwise signals", daemon=True).start()

    def close(self) -> None:
        """Handle signals as before."""
        global _watch
        _watch = None
        signal.set_wakeup_fd(self.descriptor)
        for number, handler in self.before.items():
            # A handler that was not set from Python is None here and cannot be restored.
            signal.signal(number, handler or signal.SIG_DFL)
        self.sender.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        # Another library may have taken over what Python writes.
        self._wake()

    def _wake(self) -> None:
        # If the socket is full, the thread is awake.
        with suppress(BlockingIOError):
            self.sender.send(b"\0")

    def _run(self) -> None:
        noted: dict[int, float] = {}
        while received := self.signals.recv(100):
            now = time.monotonic()
            for number in filter(self.before.__contains__, received):
                self.number = self.number or number
                if now - noted.setdefault(number, now) >= AGAIN_SECONDS and self.again:
                    self._end()
            with self.lock:
                self.ends = self.number > 0 and not self.holds
            if self.ends:
                self._end()
        self.signals.close()

    def _end(self) -> None:
        code = 128 + self.number
        try:
            last_words = threading.Thread(target=self.goodbye, args=(code,), daemon=True)
            # An interpreter that already ends starts no threads.
            last_words.start()
            last_words.join(GOODBYE_SECONDS)
            # Workers notice the end of this process by themselves. Elsewhere than on Linux, others
            # go on to their end.
            for listed in Path("/proc/self/task").glob("*/children"):
                for child in listed.read_text().split():
                    with suppress(OSError):
                        os.kill(int(child), signal.SIGTERM)
            for path in list(LEFT):
                with suppress(OSError):
                    remove(path)
        finally:
            os._exit(code)

    def hold(self) -> None:
        """Keep signals from ending the process, until ``release``."""
        with self.lock:
            self.holds += 1
        if self.ends:
            self.stay()

    def release(self) -> None:
        """Let signals end the process, if nothing else holds it. After a signal, wait for it."""
        with self.lock:
            self.holds -= 1
        if self.number and not self.holds:
            self._wake()
            self.stay()

    def stay(self) -> None:
        """After a signal, wait for the end of the process."""
        while self.number:
            time.sleep(WATCH_SECONDS)


_watch: SignalWatch | None = None
"""The watch of a command, of a worker, or of a call in Python that can be resumed."""


@contextmanager
def resumable(say: Callable[[list[str]], object]) -> Iterator[None]:
    """A context, or a decorator, for calls in Python that the same call resumes.

    Ctrl-C stays KeyboardInterrupt, with a note that says so. A signal that would kill the process
    ends it as in a command, if this is the main thread.

    Args:
        say: called with a line before a signal ends the process.
    """
    kept = KEPT.format(work="call")
    numbers = []
    if _watch is None and threading.current_thread() is threading.main_thread():
        # A handler of the user's, or of a notebook, stays.
        numbers = [each for each in ASKED if signal.getsignal(each) is signal.SIG_DFL]
    watch = None
    if numbers:
        watch = SignalWatch(numbers, lambda code: say([f"ended by {CODES[code]}; {kept}"]))
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(kept)
        raise
    finally:
        if watch is not None:
            # What fails after a signal may fail because of it.
            watch.stay()
            watch.close()


_masks = threading.local()


def _before_fork() -> None:
    # A signal to the fork would be written to the socket, which belongs to both processes.
    if _watch is not None:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _watch.numbers)


def _after_in_parent() -> None:
    if _watch is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_in_child() -> None:
    # What is run there handles signals itself.
    if _watch is not None:
        _watch.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)


@contextmanager
def held() -> Iterator[None]:
    """A context that must end before a signal may end the process.

    Work that takes long in it has to look for signals by itself (``leave_if_asked``).
    """
    watch = _watch
    if watch is None:
        yield
        return
    watch.hold()
    try:
        yield
    finally:
        watch.release()


def leave_if_asked() -> None:
    """Raise ``AskedToLeave`` if there was a signal."""
    if _watch is not None and _watch.number:
        raise AskedToLeave(128 + _watch.number)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that can be removed in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def leave_with(parent: int) -> None:
    """Wait until the parent process ends, then end this process within two seconds."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    # A training may need longer for its step.
    time.sleep(1.0)
    os._exit(1)


class Asked:
    """A context that records signals, so that work can stop where it can later be resumed.

    In a command or a worker, a signal ends the process at once, unless the work holds it. In
    Python, work that stops because of a signal sets ``served`` to True; otherwise the signal is
    raised again at the end of the context. Python delivers signals only to the main thread. In any
    other thread, this context does nothing.

    Attributes:
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
        self.watch = _watch
        self.noted = 0
        self.served = False
        self.holds = False

    @property
    def number(self) -> int:
        """The number of the first signal; 0 if there was none."""
        return self.watch.number if self.watch else self.noted

    def hold(self) -> None:
        """Let the process go on after a signal, because from now on there is work to be saved."""
        if self.watch and not self.holds:
            self.holds = True
            self.watch.hold()

    def __enter__(self) -> Asked:
        self.before = {}
        if not self.watch and threading.current_thread() is threading.main_thread():
            for number in ASKED:
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.watch and self.holds:
            self.watch.release()
        for number, handler in self.before.items():
            # A handler that was not set from Python is None here and cannot be restored.
            signal.signal(number, handler or signal.SIG_DFL)
        # If there is an exception, the program ends anyway.
        if self.noted and not self.served and kind is None:
            signal.raise_signal(self.noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = self.noted or number
