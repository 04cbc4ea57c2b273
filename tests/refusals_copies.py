"""Files that a copy of a model would need, and leaves out."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from maskwise.models.cards import push_to_hub
from maskwise.models.convert import convert
from maskwise.models.starts import find_start, resolve_start
from refusals import Refusal

ENCODER = Path(resolve_start("bundled:encoder"))


def old_model(folder: Path) -> Path:
    """A checkpoint with pickled weights."""
    old = folder / "old"
    old.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ENCODER / name, old / name)
    weights = AutoModelForMaskedLM.from_pretrained(ENCODER).state_dict()
    torch.save(weights, old / "pytorch_model.bin")
    return old


def with_link(name: str, folder: Path) -> None:
    """Convert a checkpoint of which one file is a link to a file beside its folder."""
    old = old_model(folder)
    (old / name).rename(folder / "outside")
    (old / name).symlink_to(folder / "outside")
    convert(old, folder / "new")


def with_the_file_itself(folder: Path) -> None:
    [link] = [path for path in (folder / "old").iterdir() if path.is_symlink()]
    link.unlink()
    (folder / "outside").rename(link)
    convert(folder / "old", folder / "new")


def with_device(folder: Path) -> None:
    (folder / "config.json").symlink_to("/dev/zero")
    find_start(folder)


def without_device(folder: Path) -> None:
    (folder / "config.json").unlink()
    find_start(folder)


def with_card_elsewhere(folder: Path) -> None:
    """Share a model whose card is a link to a private file."""
    model = folder / "model"
    shutil.copytree(ENCODER, model)
    (model / "README.md").unlink(missing_ok=True)
    (model / "README.md").symlink_to("/etc/passwd")
    push_to_hub(model, "ada/encoder", token="hf_of_nobody")


ROWS = [
    Refusal(
        "convert a linked config.json",
        lambda folder: with_link("config.json", folder),
        ("config.json", "outside"),
        with_the_file_itself,
    ),
    Refusal(
        "convert a linked tokenizer.json",
        lambda folder: with_link("tokenizer.json", folder),
        ("tokenizer.json", "outside"),
        with_the_file_itself,
    ),
    Refusal("load a device", with_device, ("config.json",), without_device),
    Refusal("share a linked card", with_card_elsewhere, ("/etc/passwd",)),
]
