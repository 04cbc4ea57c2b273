"""Checkpoints: states to resume from, the best model so far, and folders for transformers.

A state is a folder ``resume/step-N`` with a manifest (``folders.write_folder``): weights and
optimiser states as safetensors, everything else as JSON, and no pickle. Training waits until the
tensors are copied in memory; a thread writes them to disk, one state at a time.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from maskwise.constants import rank_here
from maskwise.families import UNLIMITED, most_tokens
from maskwise.folders import damage, read_json, write_folder, write_json
from maskwise.models import without_advice
from maskwise.training import wrapping
from maskwise.weights import merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEARNED = "learners.safetensors"


class Totals(BaseModel):
    """The progress of a run, over all ranks.

    Attributes:
        tokens, targets: how many the model was trained on.
        loss: the loss in the last line of metrics that had targets; None if there is none.
        seconds: the duration, including the time before a stop.
        lines: the number of lines in ``metrics.jsonl``; None in old states, which lack it.
        skipped: updates that were skipped because they were not finite.
        losses, sums: those since the last line of metrics.
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
        settings: the settings on which the result depends.
        bits: the conditions on which rounding depends, such as the number of threads.
    """

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=1)
    settings: dict[str, object]
    bits: dict[str, object]


class States:
    """The states of one run.

    Args:
        folder: the parent of the states.
        keep: how many states are kept, in case the newest is damaged.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy the tensors of each file, and let the thread write them.

        Raises:
            MaskwiseError: the previous state could not be written.
        """
        # One state at a time, which bounds the memory of copies.
        self.wait()
        copies = {}
        for name, tensors in files.items():
            copies[name] = {key: copied(tensor) for key, tensor in tensors.items()}
        self._writing = self._thread.submit(self._write, state, copies)

    def check(self) -> None:
        """Raise the thread's error if it failed, without waiting for it."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written, or raise the error of the thread."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Let the thread finish; its errors are not raised."""
        self._thread.shutdown(wait=True)

    def _write(self, state: State, files: Mapping[str, dict[str, Tensor]]) -> None:
        def fill(target: Path) -> None:
            for name, tensors in files.items():
                save_file(tensors, target / name)
            (target / "state.json").write_text(json.dumps(state.model_dump()))

        newest = self.path(state.step)
        write_folder(newest, fill)
        # States of later steps are damaged, and must not displace intact ones.
        older = [path for path in self._paths() if path <= newest]
        for path in self._paths():
            if path not in older[: self.keep]:
                shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def newest(self, say: Callable[[str], None]) -> State | None:
        """The newest undamaged state, or None; ``say`` prints which ones are skipped."""
        for path in self._paths():
            # The manifest has a hash of every file, so that damage by a kill or the disk is found.
            wrong = damage(path)
            if wrong is None:
                try:
                    return State.model_validate_json((path / "state.json").read_bytes())
                except (OSError, ValidationError):
                    wrong = "state.json is damaged"
            say(f"skipping {path}: {wrong}")
        return None


def copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """List the settings that differ, each with its old value."""
    changed = []
    for name, value in now.items():
        if before.get(name) != value:
            changed.append(f"{name} {value} (was {before.get(name)})")
    return ", ".join(changed)


class Best:
    """Keeps ``best/``, the checkpoint with the lowest held-out loss, and ``best.json``.

    The loss is the mean over the kinds of masks that are evaluated (in nats a target, with fixed
    masks); of two equal ones the earlier is kept.

    Args:
        folder: of the run.
        save: writes a checkpoint into a folder, atomically; every rank calls it.
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
        """Save the model if it is the best so far.

        Args:
            lines: of its evaluation; those with a ``loss`` count.
        """
        losses = []
        for line in lines:
            loss = line.get("loss")
            if isinstance(loss, float):
                losses.append(loss)
        loss = fmean(losses) if losses else math.nan
        if loss < self.loss:
            self.save(self.folder)
            if not rank_here():
                write_json(self.facts, {"step": step, "loss": loss})
            self.loss = loss


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    card: str | None = None,
    heads: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a transformers folder with a manifest, atomically.

    The first rank writes; if the weights are sharded, every rank calls this.

    Args:
        card: the text of its README.md.
        heads: tensors for ``heads.safetensors``.
    """
    weights = model.state_dict()
    if any(map(wrapping.is_sharded, model.parameters())):
        weights = wrapping.gathered(weights, keep=not rank_here())
    if rank_here():
        return
    weights = merged(model, weights)

    def fill(target: Path) -> None:
        with without_advice():
            model.save_pretrained(target, state_dict=weights)
        # These say whether the tokenizer was loaded offline, which must not change the file.
        for name in ("local_files_only", "is_local"):
            tokenizer.init_kwargs.pop(name, None)
        shared = copy.copy(tokenizer)
        room = most_tokens(model.config)
        # With this, truncation=True cuts at the last position of the model.
        if room < UNLIMITED:
            shared.model_max_length = room
        shared.save_pretrained(target)
        if card:
            (target / "README.md").write_text(card, encoding="utf-8")
        if heads:
            save_file({k: copied(t) for k, t in heads.items()}, target / "heads.safetensors")

    write_folder(folder, fill)
