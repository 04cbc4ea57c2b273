"""The folders of stages: the study's own folder first, then a folder that several studies share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import damage, is_locked, locked, read_json, refuse_below_file, writing
from maskwise.base.specs import user_path
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.studies.stages import DONE, KINDS, STAGE, Stage, kind_of

UNMAKE_SECONDS = 0.1
"""The pause before a stage that another process looks at is looked at again."""

TAIL_BYTES = 1 << 18
"""Number of bytes read from the end of metrics.jsonl; large, because a single line may be long."""


@dataclass(frozen=True)
class StageStore:
    """Finds the folders and the results of stages.

    >>> stage = Stage("overlap", {"task": "trec"})
    >>> store = StageStore(Path("runs/mine/stages"), shared=Path("all"))
    >>> store.folder(stage).parent, store.result(stage)
    (PosixPath('all'), None)

    Args:
        own: the study's own folder of stages.
        shared: a folder of stages that several studies share, if there is one. Stages that have no
            folder in ``own`` are read and written there.
        places: the folders of stages that are elsewhere, keyed by name. A command for a single run
            puts its last stage into its output folder.
    """

    own: Path
    shared: Path | None = None
    places: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of_study(cls, recipe: Recipe, out: Path, cache: Path | None) -> StageStore:
        """Return the stages of a study.

        The shared folder is set by an option (``cache``), by ``study.cache`` in the recipe, or by
        the environment variable MASKWISE_STAGES, in this order. Without them, it is that of the
        last call with this folder.

        Raises:
            MaskwiseError: the path of the shared folder, or a folder above it, is a file.
        """
        name = cache or recipe.study.cache or os.environ.get("MASKWISE_STAGES")
        if not name:
            return cls.of_last_call(out)
        folder = user_path(name).resolve()
        if folder.exists() and not folder.is_dir():
            raise MaskwiseError(
                "the folder of shared stages is a file", got=str(folder), do="set it to a folder"
            )
        refuse_below_file(folder, what="the folder of shared stages")
        return cls(out / "stages", folder)

    @classmethod
    def of_last_call(cls, out: Path) -> StageStore:
        """Return the stages of the study in a folder."""
        shared = (read_json(out / "study.json") or {}).get("shared_stages")
        return cls(out / "stages", Path(shared) if shared else None)

    def folder(self, stage: Stage | str) -> Path:
        """Return the folder of a stage, which may be given by its name. It may not exist yet."""
        name = stage if isinstance(stage, str) else stage.name
        own = self.own / name
        if name in self.places:
            return self.places[name]
        if self.shared is None or own.is_dir():
            return own
        return self.shared / name

    def output(self, stage: Stage | str) -> Path:
        """Return the folder of a stage that later stages read, such as its checkpoint."""
        name = stage if isinstance(stage, str) else stage.name
        output = kind_of(name).output
        assert output is not None, "a stage needs stages that have an output"
        return self.folder(stage) / output

    def result(self, stage: Stage | str) -> Plain | None:
        """Read the result of a finished stage; None if its file is missing or damaged."""
        result = read_json(self.folder(stage) / DONE)
        # Every complete file contains the seconds.
        if result is None or not isinstance(result.get("seconds"), int | float):
            return None
        return result

    def last_line(self, stage: Stage | str) -> Plain:
        """Return the last training line in metrics.jsonl of a stage; empty if there is none yet."""
        try:
            with (self.folder(stage) / "metrics.jsonl").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return {}
        # Search from the end, because the last lines may belong to evaluations.
        for line in reversed(lines):
            # Skip incomplete lines: the first line may be cut, and the last half written.
            with suppress(ValueError, TypeError, KeyError):
                found: Plain = json.loads(line)
                if found["kind"] == "train" and found["step"] >= 0:
                    return found
        return {}

    def damage(self, stage: Stage) -> str | None:
        """Describe damage to the files that later stages read; None if the files are intact.

        To check the files, all of them are read, which takes about one second per gigabyte.
        """
        if KINDS[stage.kind].output is None:
            return None
        return damage(self.output(stage))

    def lock(self, stage: Stage | str) -> FileLock | None:
        """Lock a stage, and return the lock. Return None if another process runs the stage."""
        folder = self.folder(stage)
        with writing(folder):
            try:
                return locked(folder / ".lock", wait=0)
            except Timeout:
                return None

    def is_run(self, stage: Stage | str) -> bool:
        """Return whether a process runs a stage now."""
        return is_locked(self.folder(stage) / ".lock")

    def closed_lock(self, stage: Stage | str) -> Path | None:
        """Return the lock file of a stage if this user may not open it, such as another user's.

        Nobody can then tell whether a process holds it, and ``is_run`` says that one does.
        """
        lock = self.folder(stage) / ".lock"
        return lock if lock.exists() and not os.access(lock, os.W_OK) else None

    def unmake(self, stage: Stage) -> None:
        """Remove the result of a finished stage whose files are damaged."""
        # Another process may look for damage now, too. While it makes the files anew, which then
        # look damaged, there is no result.
        while self.result(stage) is not None:
            held = self.lock(stage)
            if held:
                if self.damage(stage):
                    (self.folder(stage) / DONE).unlink(missing_ok=True)
                held.release()
                return
            time.sleep(UNMAKE_SECONDS)

    def stages(self) -> Iterator[Stage]:
        """Read all stages in the folders, also those of other recipes."""
        found = set()
        for folder in (self.own, self.shared):
            if folder is None or not folder.is_dir():
                continue
            for path in folder.iterdir():
                # Skip files that are damaged, or were written by another version of maskwise.
                with suppress(KeyError, TypeError, MaskwiseError):
                    stage = Stage.from_dict(read_json(path / STAGE) or {})
                    if stage.kind in KINDS and path.name not in found:
                        found.add(path.name)
                        yield stage

    def resolved(self) -> StageStore:
        """Return the same store with absolute paths, for processes with other working folders."""
        places = {name: path.resolve() for name, path in self.places.items()}
        return StageStore(self.own.resolve(), self.shared and self.shared.resolve(), places)
