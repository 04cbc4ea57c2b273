"""For tests that start, interrupt or kill processes: they wait for events, never for a time.

``MASKWISE_TEST_PATIENCE`` is how many seconds an event may take before the test fails. It only says when to give up, so
it is generous: a busy machine makes these tests slower and not red.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = float(os.environ.get("MASKWISE_TEST_PATIENCE", "240"))


def wait_for(event: Callable[[], object]) -> None:
    """Return as soon as ``event()`` is true."""
    end = time.monotonic() + PATIENCE
    while not event():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(pid: int) -> list[int]:
    """The workers of ``maskwise.jobs`` that a process has started."""
    return [child for child in children(pid) if b"maskwise.jobs" in _read(f"/proc/{child}/cmdline")]


def marked(marker: str) -> list[int]:
    """Processes that have MARKER=marker in the environment that they were started with."""
    setting = f"MARKER={marker}".encode()
    pids = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if setting in _read(f"/proc/{pid}/environ").split(b"\0")]


def in_group(group: int) -> list[int]:
    """Processes of a group that still run; zombies do not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        state, _, of_group = _read(f"{folder}/stat").rpartition(b")")[2].split()[:3] or (b"Z", b"", b"0")
        if int(of_group) == group and state != b"Z":
            found.append(int(folder.name))
    return found


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has just ended
        return b""
