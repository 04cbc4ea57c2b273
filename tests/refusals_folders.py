"""A folder belongs to one call: every other one is refused, and told whose it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import maskwise as mw
from maskwise.annotate.run import annotate_corpus
from maskwise.base.folders import OutputFolder, require_page, write_whole
from maskwise.masking.settings import Masking
from maskwise.masks.export import export_masks
from maskwise.models.convert import convert
from maskwise.recipe import read_recipe
from maskwise.studies.single import run_pretrain
from refusals import Refusal

MASKS = partial(export_masks, "bundled:wikipedia", tokenizer="bundled:tokenizer", limit=3)
CALLS: dict[str, Callable[[Path], object]] = {
    "study": lambda out: mw.study("quick-start", out=out),
    "adapt": lambda out: mw.adapt("bundled:encoder", ["a text"] * 9, out=out),
    "learn": lambda out: mw.learn("learn-supervised", out=out),
    "finetune": lambda out: mw.finetune("bundled:encoder", ["trivia"], out=out),
    "pretrain": lambda out: run_pretrain(read_recipe("quick-start"), out),
    "convert": lambda out: convert("bundled:encoder", out),
    "change": lambda out: mw.change("bundled:encoder", out, "trim-tokens('bundled:wikipedia')"),
    "export": lambda out: MASKS(out, masking=Masking.of(ratio=0.3), max_length=32),
    "annotate": lambda out: annotate_corpus(["a text"], ["words"], out),
}


def belongs(call: Callable[[Path], object], folder: Path) -> None:
    """Call a command with the folder of an interrupted one of another kind."""
    out = folder / "out"
    with (
        suppress(KeyboardInterrupt),
        OutputFolder(out, "other", "maskwise other --thing").used({"a": 1}),
    ):
        raise KeyboardInterrupt
    call(out)


def holds(call: Callable[[Path], object], folder: Path) -> None:
    """Call a command with a folder that is nobody's."""
    (folder / "thesis.tex").touch()
    call(folder)


def in_place_of_a_pipe(folder: Path) -> None:
    """A device such as /dev/null would be replaced, too, if the user may do so."""
    os.mkfifo(folder / "pipe")
    try:
        write_whole(folder / "pipe", "a page")
    finally:
        assert (folder / "pipe").is_fifo()


def other_masks(folder: Path) -> None:
    for ratio in (0.2, 0.3):
        MASKS(folder, masking=Masking.of(ratio=ratio), max_length=32, epochs=(int(10 * ratio),))


ROWS = [
    *(
        Refusal(
            f"{name}: the folder of another command", partial(belongs, call), ("other --thing",)
        )
        for name, call in CALLS.items()
    ),
    *(
        Refusal(f"{name}: somebody's folder", partial(holds, call), ("thesis.tex", "new folder"))
        for name, call in CALLS.items()
    ),
    Refusal(
        "a file in place of a pipe",
        in_place_of_a_pipe,
        ("pipe", "would be replaced"),
        lambda folder: write_whole(folder / "file", "a page"),
    ),
    Refusal(
        "a page in place of a folder",
        lambda folder: require_page(folder),
        ("no page", "page.html"),
        lambda folder: require_page(folder / "page.html"),
    ),
    Refusal("export: other masks", other_masks, ("maskwise export bundled:wikipedia", "ratio")),
]
