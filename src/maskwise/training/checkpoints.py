"""Folders that are either whole or not there: written under another name, hashed in a manifest, renamed at the end.

States to resume from hold the model and optimisers as safetensors and the rest as JSON. Nothing is pickled. Random
state is not saved, for there is none: masks, order and dropout are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MANIFEST = "manifest.json"


def write_folder(folder: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill`` write into a new folder, add the manifest, and only then give it its name.

    A folder of that name is replaced; an interruption leaves the old one, or a ``.partial`` one that is ignored.
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


def save_state(folder: Path, step: int, module: torch.nn.Module, optimizers: Any, facts: dict[str, Any]) -> None:
    """Write ``folder/step-N`` and drop older states.

    Args:
        step: the number of updates done.
        facts: what must be alike on resuming (threads, attention, ranks) and whatever else is JSON.
    """

    def fill(target: Path) -> None:
        # Tied weights are one tensor under two names; safetensors wants each once.
        save_file(_distinct(module.state_dict()), target / "model.safetensors")
        save_file({k: v.contiguous() for k, v in optimizers.state().items()}, target / "optimizers.safetensors")
        (target / "state.json").write_text(json.dumps({"step": step, **facts}))

    write_folder(folder / f"step-{step:08d}", fill)
    for old in sorted(folder.glob("step-*"))[:-2]:
        shutil.rmtree(old, ignore_errors=True)


def load_state(
    folder: Path, module: torch.nn.Module, optimizers: Any, say: Callable[[str], Any]
) -> tuple[int, dict[str, Any]]:
    """Load the newest whole state; (0, {}) when there is none. Damaged ones are skipped with a message."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        wrong = damage(path)
        if wrong:
            say(f"skipping {path}: {wrong}")
            continue
        module.load_state_dict(load_file(path / "model.safetensors"), strict=False)
        optimizers.load_state(load_file(path / "optimizers.safetensors"))
        facts = json.loads((path / "state.json").read_text())
        return facts.pop("step"), facts
    return 0, {}


def _distinct(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    kept = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach().cpu().contiguous()
    return kept


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
