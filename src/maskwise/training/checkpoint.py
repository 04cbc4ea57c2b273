"""The files of a training run: training states, metrics and folders of models.

A training state is a folder ``resume/step-N`` from which a run can be resumed. It contains
safetensors files and JSON, no pickles, and a manifest with the hashes of the files
(``folders.write_folder``). Training waits only while tensors are copied in memory. A thread then
writes the copies to disk, one state after another.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import save_file

from maskwise.base.constants import rank_here
from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import (
    MANIFEST,
    appears,
    damage,
    in_utf8,
    read_json,
    read_lines,
    write_folder,
    write_json,
    write_lines,
    writing,
)
from maskwise.models.families import UNLIMITED, most_tokens
from maskwise.models.loading import without_advice
from maskwise.models.lora import merged_state
from maskwise.samplers import Sampler
from maskwise.training.learners import Facts, Learner
from maskwise.training.ranks import copied, gathered, is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEARNED = "learners.safetensors"
STATE_FILE = "state.json"
SAVE_SECONDS, SAVE_SHARE = 600.0, 0.01
"""Seconds between states, and the largest share of the time that they may take, without
``save_every``."""
RESUME = "resume"
"""The subfolder of a run for its training states."""


class Totals(BaseModel):
    """The progress of a run, over all ranks.

    Attributes:
        tokens: the number of tokens in training so far.
        targets: the number of targets in training so far.
        flops: the FLOPs of the steps so far; 0 for objectives whose work cannot be counted.
        loss: the loss in the last line of metrics whose steps had targets; None if there is none.
        seconds: the duration of training, including the time before the run was resumed.
        skipped: the number of updates that were skipped because they were not finite.
        losses: the summed losses of the micro-batches since the last line of metrics.
        sums: the sums of the statistics of batches since the last line of metrics, by name.
    """

    tokens: int = 0
    targets: int = 0
    flops: int = 0
    loss: float | None = None
    seconds: float = 0.0
    skipped: int = 0
    losses: list[float] = []
    sums: dict[str, float] = {}


class State(Totals, strict=True):
    """The file ``state.json`` in a training state.

    Attributes:
        step: the number of completed updates.
        flops: as in ``Totals``.
        settings: the settings that change the result of the run.
        bits: the conditions that change the result only by rounding, such as the number of threads.
        streams: the positions in streams, by name (``StreamedRows.position``).
        judged: whether an evaluation after this step, if there is one, was finished.
    """

    step: int = Field(ge=1)
    flops: int
    settings: dict[str, object]
    bits: dict[str, object]
    streams: dict[str, dict[str, Any]] = {}
    judged: bool = True


class States:
    """The training states of one run.

    Args:
        folder: the parent folder of the states.
        keep: the number of states to keep. Older states are used if the newest is damaged.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._writing: Future[None] | None = None
        self._due_since = time.monotonic()
        self._seconds = 0.0

    def is_due(self) -> bool:
        """Return whether it is time for a state, and wait from now on for the next time.

        The seconds that the last state took until it was on the disk are ``SAVE_SHARE`` of the time
        at most.
        """
        now = time.monotonic()
        if now - self._due_since < max(SAVE_SECONDS, self._seconds / SAVE_SHARE):
            return False
        self._due_since = now
        return True

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, files: Mapping[str, Tensors]) -> None:
        """Copy the tensors of each file, and start to write the copies in the thread.

        Raises:
            MaskwiseError: the previous state could not be written.
        """
        # Wait for the previous state, because copies of two states may not fit into the memory.
        self.wait()
        began = time.monotonic()
        copies = {}
        for name, tensors in files.items():
            copies[name] = copied(tensors)
        self._writing = self._thread.submit(self._write, state, copies, began)

    def check(self) -> None:
        """Raise the error of the thread if it has failed, without waiting for the thread."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the state is written, or raise the error of the thread."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Wait until the thread has finished, and ignore its errors."""
        self._thread.shutdown(wait=True)

    def _write(self, state: State, files: Mapping[str, TensorDict], began: float) -> None:
        def fill(target: Path) -> None:
            for name, tensors in files.items():
                save_file(tensors, target / name)
            write_json(target / STATE_FILE, state.model_dump())

        newest = self.path(state.step)
        write_folder(newest, fill)
        # If there are states of later steps, they are damaged, because otherwise the run would have
        # been resumed from them. Remove them.
        older = [path for path in self._paths() if path <= newest]
        for path in self._paths():
            if path not in older[: self.keep]:
                shutil.rmtree(path, ignore_errors=True)
        self._seconds = time.monotonic() - began

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def read(self, step: int) -> State:
        """Read the state that another rank has chosen. Wait for its files, which may appear late.

        Raises:
            MaskwiseError: this machine does not see the state.
        """
        path = self.path(step)
        appears(path / MANIFEST)
        manifest = read_json(path / MANIFEST) or {}
        files = manifest.get("sha256", [STATE_FILE])
        if not all(appears(path / name) for name in files):
            raise MaskwiseError(
                f"{path} is not visible to process {rank_here()}",
                do="use a folder that all machines share",
            )
        return State.model_validate(read_json(path / STATE_FILE))

    def newest(self, say: Callable[[str], None]) -> State | None:
        """Return the newest undamaged state, or None.

        Args:
            say: a function that prints a line. It is called for each damaged state.

        Raises:
            MaskwiseError: a newer maskwise has written a state, which would be lost.
        """
        for path in self._paths():
            # The manifest has a hash of every file. A file is damaged if the process was killed
            # while writing, or if the disk failed.
            wrong = damage(path)
            if wrong is None:
                try:
                    return State.model_validate(read_json(path / STATE_FILE))
                except ValidationError:
                    wrong = f"{STATE_FILE} is damaged"
            say(f"skipping {path}: {wrong}")
        return None


class Metrics:
    """The file of metrics, with one line of JSON per entry.

    Args:
        path: the file; if None, lines are not written.
        keep_until: the step of the training state from which the run is resumed; 0 for a new run.
            Lines of later steps are removed, because the resumed run writes them again.
        judged: whether the lines of an evaluation after this step are kept, too.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0, judged: bool = True):
        self.path = path
        if path is None:
            return
        kept = read_lines(path) if keep_until else []
        kept = [line for line in kept if line["step"] <= keep_until]
        if not judged:
            again = ("eval", keep_until)
            kept = [line for line in kept if (line["kind"], line["step"]) != again]
        write_lines(path, kept)
        # Use no buffer. If the disk is full, ``close`` would try to write the buffer again, and
        # fail again.
        with writing(path):
            self.file = path.open("ab", buffering=0)

    def write(self, line: Facts) -> None:
        if self.path is None:
            return
        rest = in_utf8(json.dumps(line, ensure_ascii=False) + "\n")
        with writing(self.path):
            # A nearly full disk may accept only a part of the line, so write the rest.
            while rest:
                rest = rest[self.file.write(rest) :]

    def close(self) -> None:
        if self.path:
            self.file.close()


def saved_step(folder: Path) -> int:
    """Return the step of the newest training state of a run, from which it resumes; 0 if none."""
    names = (path.name.removeprefix("step-") for path in (folder / RESUME).glob("step-*"))
    return max(map(int, filter(str.isdecimal, names)), default=0)


def forget_states(folder: Path) -> None:
    """Remove the training states of a finished run, and of the parts in its subfolders.

    Call this function only after the result of the run is written. Otherwise, a run that is killed
    in between would start from the beginning.
    """
    for states in (folder / RESUME, *folder.glob(f"*/{RESUME}")):
        shutil.rmtree(states, ignore_errors=True)


def states(learners: Mapping[str, Learner | Sampler]) -> TensorDict:
    """Return the states of all learners as one flat dict."""
    flat = {}
    for name, learner in learners.items():
        for key, value in learner.state_dict().items():
            flat[f"{name}.{key}"] = value
    return flat


def restore(learners: Mapping[str, Learner | Sampler], flat: Tensors) -> None:
    """Load the states of learners from a dict made by ``states``."""
    for name, learner in learners.items():
        state = {}
        # Do not split at the first dot, because the names of objectives may contain dots.
        prefix = f"{name}."
        for key, value in flat.items():
            if key.startswith(prefix):
                state[key.removeprefix(prefix)] = value
        learner.load_state_dict(state)


def changed_settings(before: Facts, now: Facts) -> str:
    """Return a text that lists the settings that differ, with their new and old values."""
    changed = []
    for name, value in now.items():
        if before.get(name) != value:
            changed.append(f"{name} {value} (was {before.get(name)})")
    return ", ".join(changed)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    card: str | None = None,
    heads: Tensors | None = None,
) -> None:
    """Write a model and a tokenizer as a transformers folder with a manifest, atomically.

    Only the first rank writes. If weights are sharded, every rank must call this function.

    Args:
        folder: the folder to write.
        model: the model.
        tokenizer: the tokenizer.
        card: the text of README.md.
        heads: the tensors of ``heads.safetensors``.
    """
    weights = model.state_dict()
    if any(map(is_sharded, model.parameters())):
        weights = gathered(weights, keep=not rank_here())
    if rank_here():
        return
    weights = merged_state(model, weights)

    def fill(target: Path) -> None:
        with without_advice():
            model.save_pretrained(target, state_dict=weights)
        # These arguments record whether the tokenizer was loaded offline. Remove them, so that
        # equal tokenizers have equal files.
        for name in ("local_files_only", "is_local"):
            tokenizer.init_kwargs.pop(name, None)
        shared = copy.copy(tokenizer)
        room = most_tokens(model.config)
        # If a user calls the tokenizer with ``truncation=True``, it cuts texts at this limit.
        if room < UNLIMITED:
            shared.model_max_length = room
        shared.save_pretrained(target)
        if card:
            (target / "README.md").write_bytes(in_utf8(card))
        if heads:
            save_file(copied(heads), target / "heads.safetensors")

    write_folder(folder, fill)
