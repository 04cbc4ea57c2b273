"""Folders that are whole or not there: written under another name, hashed in a manifest, renamed at the end.

States to resume from hold the model and optimisers as safetensors and the rest as JSON. Nothing is pickled.
Random state is not saved, for there is none: masks, order and dropout are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskwise.errors import MaskwiseError

MANIFEST = "manifest.json"
LEARNED = "learners.safetensors"


def write_folder(folder: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill`` write into a new folder, add the manifest, and only then give it its name.

    A folder of that name is replaced: removed, and the new one renamed. An interruption in between leaves neither whole
    (``damage`` tells), at any other time the old one or the new one.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        hashes = {str(p.relative_to(partial)): _sha256(p) for p in files}
        (partial / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder, in a few words; None if every file is there and as it was written."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError):
        return "no readable manifest"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} is damaged"
    return None


def save_state(
    folder: Path, step: int, module: torch.nn.Module, optimizers: Any, facts: dict[str, Any],
    learned: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write ``folder/step-N`` and drop all but the two newest states, for the newest may turn out damaged.

    Args:
        step: the number of updates done.
        facts: whatever else is JSON; handed back by ``load_state``.
        learned: tensors of what learns beside the model; handed back too.
    """

    def fill(target: Path) -> None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in _distinct(module).items()}
        save_file(weights, target / "model.safetensors")
        state = {name: tensor.contiguous() for name, tensor in optimizers.state().items()}
        save_file(state, target / "optimizers.safetensors")
        if learned:
            save_file({name: t.cpu().contiguous() for name, t in learned.items()}, target / LEARNED)
        (target / "state.json").write_text(json.dumps({"step": step, **facts}))

    write_folder(folder / f"step-{step:08d}", fill)
    for old in [*sorted(folder.glob("step-*"))[:-2], *folder.glob(".step-*.partial")]:
        shutil.rmtree(old, ignore_errors=True)


def load_state(
    folder: Path,
    module: torch.nn.Module,
    optimizers: Any,
    *,
    say: Callable[[str], Any],
    check: Callable[[Path, dict[str, Any]], Any] = lambda path, facts: None,
) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Load the newest whole state into module and optimisers.

    Args:
        say: told of damaged states, which are skipped.
        check: called with the folder and facts of the state before it is loaded; may refuse it.

    Returns:
        The step, the facts and what was learned; (0, {}, {}) when there is no whole state.

    Raises:
        MaskwiseError: weights that do not fit the module.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        wrong = damage(path)
        if wrong:
            say(f"skipping {path}: {wrong}")
            continue
        facts = json.loads((path / "state.json").read_text())
        check(path, facts)
        weights = load_file(path / "model.safetensors")
        if _shapes(weights) != _shapes(_distinct(module)):
            raise MaskwiseError(f"{path} is of another model", do="give a new folder")
        module.load_state_dict(weights, strict=False)  # the second names of tied weights are not there
        optimizers.load_state(load_file(path / "optimizers.safetensors"))
        learned = load_file(path / LEARNED) if (path / LEARNED).is_file() else {}
        return facts.pop("step"), facts, learned
    return 0, {}, {}


def _distinct(module: torch.nn.Module) -> dict[str, Tensor]:
    """The state by name, tied weights once: safetensors stores no tensor under two names."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach()
    return kept


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
