"""The best checkpoint of a run, by the loss on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from maskwise.constants import rank_here
from maskwise.folders import damage, read_json, write_json


class Best:
    """Keeps ``best/``, the checkpoint with the lowest held-out loss, and ``best.json``, its step and its loss.

    The loss is the mean over the kinds of masks that are evaluated (in nats a target, with fixed masks); of two equal
    ones the earlier stays. A run that was stopped goes on with what is there: an evaluation that is made again gives
    the same loss, and changes nothing.

    Args:
        folder: of the run.
        save: writes a checkpoint into a folder, whole or not at all; every rank calls it, and the first one writes.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None]):
        self.folder, self.facts, self.save = folder / "best", folder / "best.json", save
        known = read_json(self.facts) or {}
        loss = known.get("loss")
        whole = isinstance(loss, float) and damage(self.folder) is None
        self.loss = loss if whole and isinstance(loss, float) else math.inf

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
