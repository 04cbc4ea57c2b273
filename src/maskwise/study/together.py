"""Several processes may work on one study at the same time, also on several machines.

They need a folder on a file system that all of them see. Each process takes stages that no other
process runs (``StageStore.lock``), and all of them write the files of the study, such as
records.jsonl, when no stage is left. Locks end with their process, even if it is killed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from maskwise.errors import MaskwiseError
from maskwise.folders import (
    RELEASE_SECONDS,
    holding,
    is_locked,
    is_new,
    locked,
    remove_new,
    sweep,
)
from maskwise.study.stages import DONE
from maskwise.tasks.finetuning import PREDICTIONS

Result = TypeVar("Result")

LOCK = ".lock"
"""The lock file in ``stages/``. A folder with this file belongs to a study."""
USED = ".use.lock"
"""The ending of the lock files that processes hold in ``stages/`` while they work."""
NOTHING_DONE = (MaskwiseError, OSError)
"""Errors after which the folder of a new study is removed. An OSError names a file that cannot be
written, such as in a folder of shared stages."""
RESULTS = (
    "records.jsonl",
    "samples.json",
    "timings.jsonl",
    "summary.json",
    PREDICTIONS,
    "report.html",
)
"""The result files of a study. They are written anew if the study gets other seeds or arms."""


def has_results(out: Path) -> bool:
    """Return whether the folder of a study has results, or finished stages from which they come."""
    return any((out / name).exists() for name in RESULTS) or any(out.glob(f"stages/*/{DONE}"))


class StudyFolder:
    """The folder of a study, which several processes may use.

    Args:
        out: the folder.

    Attributes:
        own: the lock file that this process holds while it uses the folder.
    """

    def __init__(self, out: Path):
        self.out = out
        self.stages = out / "stages"
        self.own = self.stages / f".{socket.gethostname()}-{os.getpid()}{USED}"

    @contextmanager
    def used(self, begin: Callable[[], Result]) -> Iterator[Result]:
        """Tell other processes that this process uses the folder.

        If the folder is new and the study fails before any work, remove it.

        Args:
            begin: checks the folder, and writes what processes that join later compare their study
                with. No other process joins or writes meanwhile: otherwise it would compare its
                study with the files of an earlier one.

        Yields:
            The result of ``begin``.
        """
        new = is_new(self.out)
        existed = self.out.exists()

        def leave(*, failed: bool = False) -> None:
            self.own.unlink(missing_ok=True)
            held.release()
            if failed and new and not has_results(self.out) and not self.users():
                remove_new(self.out, existed=existed, lock=self.stages / LOCK)

        with self.alone():
            self._tidy()
            held = self._join()
            try:
                # Files of stages in progress are removed when these stages are run again.
                for folder in (self.out, self.stages):
                    sweep(folder, below=False)
                begun = begin()
            except BaseException as error:
                # Others that wait would take this process for one that runs another study.
                leave(failed=isinstance(error, NOTHING_DONE))
                raise
        try:
            yield begun
        except NOTHING_DONE:
            with self.alone():
                leave(failed=True)
            raise
        finally:
            # After a failure, there is nothing left to release.
            leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing the files of the study. Wait while they write.

        Raises:
            MaskwiseError: the folder cannot be written.
        """
        with holding(self.stages / LOCK):
            yield

    def users(self) -> list[str]:
        """List the other processes that use the folder, as HOST-NUMBER."""
        found = []
        for path in sorted(self.stages.glob(f".*{USED}")):
            if path != self.own and is_locked(path):
                found.append(path.name[1:].removesuffix(USED))
        return found

    def _join(self) -> FileLock:
        try:
            # ``users`` of another process may hold it for a moment.
            return locked(self.own, wait=RELEASE_SECONDS)
        except Timeout:
            raise MaskwiseError(
                "another machine with the same name runs a process with the same number in "
                f"{self.out}",
                got=self.own.name,
                do="give each container a host name of its own",
            ) from None

    def _tidy(self) -> None:
        """Remove the lock files of processes that were killed."""
        for path in self.stages.glob(f".*{USED}"):
            if not is_locked(path):
                path.unlink(missing_ok=True)
