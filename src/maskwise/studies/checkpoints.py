"""Find the checkpoint of a study's arm, and save it as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import CARD, fill_folder, read_json, write_whole
from maskwise.models.loading import load_model, without_advice
from maskwise.studies.stages import DONE
from maskwise.text import load_tokenizer

HEAD = "| choice | value |\n|---|---|\n"
"""The beginning of the table of a model card (``pretraining.model_card``)."""


def origin_of(study: str, arm: str, seed: int) -> dict[str, object]:
    """Return what the card of a saved model says about the run that it comes from."""
    return {"study": study, "arm": arm, "seed of the run": seed}


def card_of(checkpoint: Path, of: Mapping[str, object]) -> str:
    """Return the model card of a checkpoint, with further rows in its table (``origin_of``)."""
    card = (checkpoint / CARD).read_text(encoding="utf-8")
    rows = "".join(f"| {name} | `{value}` |\n" for name, value in of.items())
    return card.replace(HEAD, f"{HEAD}{rows}", 1)


def save_model(checkpoint: Path, folder: Path, *, of: Mapping[str, object]) -> None:
    """Save a checkpoint with its tokenizer and card in a folder for transformers.

    The files of an earlier model are replaced, and other files stay.

    Args:
        of: what the card says about the run of the checkpoint.
    """
    tokenizer = load_tokenizer(str(checkpoint), needs_mask=False, needs_words=False)
    card = card_of(checkpoint, of)

    def fill(part: Path) -> None:
        load_model(checkpoint, kind=None, causal=True).save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_whole(part / CARD, card)

    with without_advice():
        fill_folder(folder, fill)


def needed_run(out: Path, arm: str) -> tuple[int, Path]:
    """Return the seed and the checkpoint of the first finished run of an arm.

    Raises:
        MaskwiseError: no finished run of the arm has a checkpoint.
    """
    found = trained_run(out, arm)
    if found is not None:
        return found
    study = read_json(out / "study.json") or {}
    if "compared" in study:
        raise MaskwiseError(
            "scores from elsewhere have no checkpoints to save",
            got=f"{out}, a folder of maskwise compare",
            do="give the folder of a study",
        )
    runs = study["arms"][arm].get("runs", {})
    do = "run the study to its end"
    if runs:
        first = runs[min(runs, key=int)]
        do = f"remove {out / first} and run the same command again, which trains this run again"
    raise MaskwiseError(
        f"no run of {arm} has a checkpoint to save",
        got=f"{len(runs)} runs, unfinished or deleted",
        do=do,
    )


def trained_run(out: Path, arm: str) -> tuple[int, Path] | None:
    """Return the seed and the checkpoint of the first finished run of an arm that still has one."""
    study = read_json(out / "study.json") or {}
    runs = study["arms"][arm].get("runs", {})
    for seed in sorted(runs, key=int):
        checkpoint = out / runs[seed] / "checkpoint"
        # Users may delete checkpoints to free disk space.
        if checkpoint.is_dir() and (out / runs[seed] / DONE).is_file():
            return int(seed), checkpoint
    return None
