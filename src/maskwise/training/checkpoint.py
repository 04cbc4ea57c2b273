"""The files of a training run: states to resume from, metrics, and transformers folders.

A state is a folder ``resume/step-N`` with a manifest (``folders.write_folder``). It stores weights
and optimiser states as safetensors, everything else as JSON, and no pickles. Training waits until
the tensors have been copied in memory; a thread then writes them to disk, one state at a time.
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
        tokens, targets: how many tokens and targets the model has been trained on.
        loss: the loss in the last line of metrics that had targets; None if there is no such line.
        seconds: the duration, including the time before an interruption.
        skipped: the number of updates that were skipped because they were not finite.
        losses, sums: the losses and sums that were accumulated since the last line of metrics.
    """

    tokens: int = 0
    targets: int = 0
    loss: float | None = None
    seconds: float = 0.0
    skipped: int = 0
    losses: list[float] = []
    sums: dict[str, float] = {}


class State(Totals):
    """The file ``state.json`` in a state to resume from, after ``step`` updates.

    Attributes:
        settings: the settings that the result depends on.
        bits: the conditions that rounding depends on, such as the number of threads.
    """

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=1)
    settings: dict[str, object]
    bits: dict[str, object]


class States:
    """The states of one run.

    Args:
        folder: the parent folder of the states.
        keep: how many states are kept, in case the newest state is damaged.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, state: State, files: Mapping[str, Tensors]) -> None:
        """Copy the tensors for each file, and let the thread write them.

        Raises:
            MaskwiseError: the previous state could not be written.
        """
        # One state at a time, which limits the memory for copies.
        self.wait()
        copies = {}
        for name, tensors in files.items():
            copies[name] = copied(tensors)
        self._writing = self._thread.submit(self._write, state, copies)

    def check(self) -> None:
        """Raise the thread's error if it has failed, without waiting for the thread."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written, or raise the thread's error."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Let the thread finish; its errors are not raised."""
        self._thread.shutdown(wait=True)

    def _write(self, state: State, files: Mapping[str, TensorDict]) -> None:
        def fill(target: Path) -> None:
            for name, tensors in files.items():
                save_file(tensors, target / name)
            (target / "state.json").write_text(json.dumps(state.model_dump()))

        newest = self.path(state.step)
        write_folder(newest, fill)
        # States of later steps are damaged, and must not displace intact states.
        older = [path for path in self._paths() if path <= newest]
        for path in self._paths():
            if path not in older[: self.keep]:
                shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def newest(self, say: Callable[[str], None]) -> State | None:
        """The newest undamaged state, or None; ``say`` prints which states are skipped."""
        for path in self._paths():
            # The manifest has a hash of every file, to detect damage by a kill or by the disk.
            wrong = damage(path)
            if wrong is None:
                try:
                    return State.model_validate_json((path / "state.json").read_bytes())
                except (OSError, ValidationError):
                    wrong = "state.json is damaged"
            say(f"skipping {path}: {wrong}")
        return None


class Metrics:
    """Lines of JSON in a file.

    Args:
        path: the file; if None, nothing is written.
        keep_until: the last step whose lines are kept. Lines for later steps are dropped, because a
            resumed run writes them again; a new run (0) starts with an empty file.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.path = path
        if path is None:
            return
        kept = read_lines(path) if keep_until else []
        kept = [line for line in kept if line["step"] <= keep_until]
        write_lines(path, kept)
        # Unbuffered: after a failed write on a full disk, closing would flush the buffer again.
        with writing(path):
            self.file = path.open("ab", buffering=0)

    def write(self, line: Facts) -> None:
        if self.path is None:
            return
        rest = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with writing(self.path):
            # A nearly full disk accepts part of the line before the error is raised.
            while rest:
                rest = rest[self.file.write(rest) :]

    def close(self) -> None:
        if self.path:
            self.file.close()


def states(learners: Mapping[str, Learner | Sampler]) -> TensorDict:
    """The states of all learners as one flat dict."""
    flat = {}
    for name, learner in learners.items():
        for key, value in learner.state_dict().items():
            flat[f"{name}.{key}"] = value
    return flat


def restore(learners: Mapping[str, Learner | Sampler], flat: Tensors) -> None:
    """Load the result of ``states``."""
    for name, learner in learners.items():
        state = {}
        # Names of arms may contain dots, so keys cannot be split at the first dot.
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
    """List the settings that differ, each with its old value."""
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
    """Write a transformers folder with a manifest, atomically.

    The first rank writes; if the weights are sharded, every rank calls this.

    Args:
        card: the text for README.md.
        heads: the tensors for ``heads.safetensors``.
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
        # These arguments record whether the tokenizer was loaded offline, but the file must not
        # depend on that.
        for name in ("local_files_only", "is_local"):
            tokenizer.init_kwargs.pop(name, None)
        shared = copy.copy(tokenizer)
        room = most_tokens(model.config)
        # With this limit, truncation=True cuts at the model's last position.
        if room < UNLIMITED:
            shared.model_max_length = room
        shared.save_pretrained(target)
        if card:
            (target / "README.md").write_text(card, encoding="utf-8")
        if heads:
            save_file(copied(heads), target / "heads.safetensors")

    write_folder(folder, fill)
