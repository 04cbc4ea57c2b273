"""The files of a training run: training states, metrics and transformers folders.

A training state is a folder ``resume/step-N`` with a manifest (``folders.write_folder``), from
which a run can resume. It contains safetensors files and JSON, but no pickles. Training waits while
tensors are copied in memory. A thread then writes the copies to disk, one state at a time.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from maskwise.constants import rank_here
from maskwise.devices import TensorDict, Tensors
from maskwise.families import UNLIMITED, most_tokens
from maskwise.folders import damage, read_lines, write_folder, write_lines, writing
from maskwise.masking.policies.base import Facts, Learner
from maskwise.models import without_advice
from maskwise.samplers import Sampler
from maskwise.training import wrapping
from maskwise.weights import merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEARNED = "learners.safetensors"


class Totals(BaseModel):
    """The progress of a run, over all ranks.

    Attributes:
        tokens, targets: the numbers of tokens and targets in training so far.
        loss: the loss in the last line of metrics with targets; None if there is no such line.
        seconds: the duration of training, including the time before a resume.
        skipped: the number of updates that were skipped because they were not finite.
        losses, sums: the losses and sums since the last line of metrics.
    """

    tokens: int = 0
    targets: int = 0
    loss: float | None = None
    seconds: float = 0.0
    skipped: int = 0
    losses: list[float] = []
    sums: dict[str, float] = {}


class State(Totals):
    """The file ``state.json`` in a training state.

    Attributes:
        step: the number of completed updates.
        settings: the settings that the result depends on.
        bits: the conditions that rounding depends on, such as the number of threads.
    """

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=1)
    settings: dict[str, object]
    bits: dict[str, object]


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

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, files: Mapping[str, Tensors]) -> None:
        """Copy the tensors of each file, and start to write the copies in the thread.

        Raises:
            MaskwiseError: the previous state could not be written.
        """
        # Wait for the previous state, because copies of two states may not fit into memory.
        self.wait()
        copies = {}
        for name, tensors in files.items():
            copies[name] = copied(tensors)
        self._writing = self._thread.submit(self._write, state, copies)

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

    def _write(self, state: State, files: Mapping[str, TensorDict]) -> None:
        def fill(target: Path) -> None:
            for name, tensors in files.items():
                save_file(tensors, target / name)
            (target / "state.json").write_text(json.dumps(state.model_dump()))

        newest = self.path(state.step)
        write_folder(newest, fill)
        # States of later steps are damaged (the run resumed before them), so they do not count.
        older = [path for path in self._paths() if path <= newest]
        for path in self._paths():
            if path not in older[: self.keep]:
                shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def newest(self, say: Callable[[str], None]) -> State | None:
        """Return the newest undamaged state, or None. ``say`` prints a line per damaged state."""
        for path in self._paths():
            # The manifest has a hash of every file, which detects damage by a kill or by the disk.
            wrong = damage(path)
            if wrong is None:
                try:
                    return State.model_validate_json((path / "state.json").read_bytes())
                except (OSError, ValidationError):
                    wrong = "state.json is damaged"
            say(f"skipping {path}: {wrong}")
        return None


class Metrics:
    """A file with one line of JSON per entry.

    Args:
        path: the file; if None, lines are not written.
        keep_until: the step of the training state from which the run resumes; 0 for a new run.
            Lines of later steps are removed, because the resumed run writes them again.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.path = path
        if path is None:
            return
        kept = read_lines(path) if keep_until else []
        kept = [line for line in kept if line["step"] <= keep_until]
        write_lines(path, kept)
        # Use no buffer: after a failed write on a full disk, ``close`` would flush it again.
        with writing(path):
            self.file = path.open("ab", buffering=0)

    def write(self, line: Facts) -> None:
        if self.path is None:
            return
        rest = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with writing(self.path):
            # Repeat, because a nearly full disk may accept only a part of the line.
            while rest:
                rest = rest[self.file.write(rest) :]

    def close(self) -> None:
        if self.path:
            self.file.close()


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
        # Match the prefix instead of splitting at a dot: names of arms may contain dots.
        prefix = f"{name}."
        for key, value in flat.items():
            if key.startswith(prefix):
                state[key.removeprefix(prefix)] = value
        learner.load_state_dict(state)


def copied(tensors: Tensors) -> TensorDict:
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return copies


def changes(before: Facts, now: Facts) -> str:
    """Return the settings that differ, with new and old values, as text."""
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
    if any(map(wrapping.is_sharded, model.parameters())):
        weights = wrapping.gathered(weights, keep=not rank_here())
    if rank_here():
        return
    weights = merged(model, weights)

    def fill(target: Path) -> None:
        with without_advice():
            model.save_pretrained(target, state_dict=weights)
        # These arguments record whether the tokenizer was loaded offline; equal tokenizers should
        # have equal files.
        for name in ("local_files_only", "is_local"):
            tokenizer.init_kwargs.pop(name, None)
        shared = copy.copy(tokenizer)
        room = most_tokens(model.config)
        # ``truncation=True`` cuts texts at this limit.
        if room < UNLIMITED:
            shared.model_max_length = room
        shared.save_pretrained(target)
        if card:
            (target / "README.md").write_text(card, encoding="utf-8")
        if heads:
            save_file(copied(heads), target / "heads.safetensors")

    write_folder(folder, fill)
