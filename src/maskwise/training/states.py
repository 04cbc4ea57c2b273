"""Checkpoints of a training: states to resume from, and the best model so far.

States are copied at a step, written by a thread, hashed, and found again.

A state is a folder ``resume/step-N`` with a manifest (``folders.write_folder``): weights and
optimisers as safetensors, the rest as JSON; nothing is pickled. The step waits for the copies
(memory to memory), not for the disk. One state is written at a time: the next one waits for it, and
so does the end of the training.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from maskwise.constants import rank_here
from maskwise.folders import damage, read_json, write_folder, write_json


class Totals(BaseModel):
    """What a run has done so far, over all ranks.

    Attributes:
        tokens, targets: trained on.
        loss: mean of the last window that had targets; None before the first.
        seconds: spent, those before a stop included.
        lines: of ``metrics.jsonl``; None in states that were written before this was counted.
        skipped: updates that were left out, because they were not finite.
        losses, sums: what was summed up since the last line, where a run was stopped between two
            lines.
    """

    tokens: int = 0
    targets: int = 0
    loss: float | None = None
    seconds: float = 0.0
    lines: int | None = None
    skipped: int = 0
    losses: list[float] = []
    sums: dict[str, float] = {}


class State(Totals):
    """``state.json`` of a state to resume from, after ``step`` updates.

    Attributes:
        settings: those that the run's result depends on.
        bits: what its last bits depend on, such as the number of threads.
    """

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=1)
    settings: dict[str, Any]
    bits: dict[str, Any]


class States:
    """The states of one run.

    Args:
        folder: where they lie.
        keep: how many of the newest stay; the newest may turn out damaged.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy tensors, and let the thread write them.

        Args:
            files: by the name of a file, its tensors.

        Raises:
            MaskwiseError: the state before could not be written.
        """
        self.wait()
        copies = {
            name: {
                key: tensor.detach().to("cpu", copy=True).contiguous()
                for key, tensor in tensors.items()
            }
            for name, tensors in files.items()
        }
        self._writing = self._thread.submit(self._write, state, copies)

    def check(self) -> None:
        """Raise what the thread has met, without waiting for it.

        Raises:
            MaskwiseError: what it wrote last could not be written.
        """
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            MaskwiseError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Let the thread finish what it writes, and end; its errors are not raised."""
        self._thread.shutdown(wait=True)

    def _write(self, state: State, files: Mapping[str, dict[str, Tensor]]) -> None:
        def fill(target: Path) -> None:
            for name, tensors in files.items():
                save_file(tensors, target / name)
            (target / "state.json").write_text(json.dumps(state.model_dump()))

        newest = self.path(state.step)
        write_folder(newest, fill)
        written = sorted(self.folder.glob("step-*"), reverse=True)
        # Later ones are damaged: they must not crowd out what is whole.
        whole = written[written.index(newest) :][: self.keep]
        for other in set(written) - set(whole):
            shutil.rmtree(other, ignore_errors=True)

    def newest(self, say: Callable[[str], None]) -> State | None:
        """The newest state that is whole; None where there is none.

        Args:
            say: is told of those that are damaged.
        """
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            wrong = damage(path)
            if wrong is None:
                try:
                    return State.model_validate_json((path / "state.json").read_bytes())
                except (OSError, ValidationError):
                    wrong = "state.json is damaged"
            say(f"skipping {path}: {wrong}")
        return None


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The settings that differ, each with what it was; empty if none does."""
    return ", ".join(f"{k} {v} (was {before.get(k)})" for k, v in now.items() if before.get(k) != v)


class Best:
    """Keeps ``best/``, the checkpoint with the lowest held-out loss, and ``best.json``, its step
    and its loss.

    The loss is the mean over the kinds of masks that are evaluated (in nats a target, with fixed
    masks); of two equal ones the earlier stays. A run that was stopped goes on with what is there:
    an evaluation that is made again gives the same loss, and changes nothing.

    Args:
        folder: of the run.
        save: writes a checkpoint into a folder, whole or not at all; every rank calls it, and the
            first one writes.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None]):
        self.folder = folder / "best"
        self.facts = folder / "best.json"
        self.save = save
        self.loss = math.inf
        known = (read_json(self.facts) or {}).get("loss")
        if isinstance(known, float) and damage(self.folder) is None:
            self.loss = known

    def offer(self, step: int, lines: Sequence[Mapping[str, object]]) -> None:
        """Save the model as it is now, if it is the best so far.

        Args:
            lines: of its evaluation; those with a ``loss`` count.

        Raises:
            MaskwiseError: it cannot be written; the one before is still there.
        """
        losses = [loss for line in lines if isinstance(loss := line.get("loss"), float)]
        loss = fmean(losses) if losses else math.nan
        if loss < self.loss:
            self.save(self.folder)
            if not rank_here():
                write_json(self.facts, {"step": step, "loss": loss})
            self.loss = loss
