"""Held-out loss on fixed masks: the measure that needs no task and has no noise of its own.

The masks are a function of the held-out rows alone, so all arms, seeds and steps are judged on the same
targets; beside the loss stands that of a model that knows only how frequent each token is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from maskwise.masking import Masker
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training.data import Rows, load_rows

EVALUATION_SEED = 0xE7A1
"""Of the fixed masks of held-out rows: the same in every study, so that losses can be compared."""


def fixed_maskers(tokenizer: Any, *, masks: Iterable[str], ratio: float) -> dict[str, Masker]:
    """Fixed masks: [MASK] only, and whole units on average at the budget, so that long words count too."""
    fixed: dict[str, Any] = {
        "ratio": ratio,
        "budget": "expected",
        "corruption": "mask-only",
        "seed": EVALUATION_SEED,
    }
    return {kind: Masker(tokenizer, policy=kind, **fixed) for kind in masks}


def spread(count: int, *, of: int) -> Tensor:
    """(min(count, of),) the numbers of rows, evenly spread."""
    count = min(count, of)
    return torch.arange(count) * of // max(1, count)


class HeldOut:
    """Loss on *fixed* masks of held-out rows: the same for every arm, seed and step.

    Args:
        held_out: rows that are never trained on.
        maskers: by kind of mask ("token", "whole-word"); called with epoch 0, so its masks never change.
        log_unigram: (V,) log-probabilities of tokens in the training text: what knows only frequencies.
            None where the training text is not known.
        rows: at most this many, evenly spread.
        batch_size: rows at once.
    """

    def __init__(
        self, held_out: Rows, maskers: Mapping[str, Masker], log_unigram: Tensor | None, *, rows: int | None = None,
        batch_size: int = 64,
    ):  # fmt: skip
        self.log_unigram = log_unigram
        chosen = spread(rows or len(held_out), of=len(held_out))
        self.batches = {
            kind: [masker(load_rows(held_out, part), epoch=0) for part in chosen.split(batch_size)]
            for kind, masker in maskers.items()
        }
        self.ratios = {kind: masker.ratio(0) for kind, masker in maskers.items()}

    def __call__(self, objective: MaskedLanguageModelling) -> list[dict[str, Any]]:
        """A dict per kind of mask: ``masks``, ``ratio``, ``loss`` and ``unigram`` (nats), ``targets``."""
        device = next(objective.parameters()).device
        lines = []
        for kind, batches in self.batches.items():
            loss, unigram, count = 0.0, 0.0, 0
            for batch in batches:
                losses, where = objective.token_losses(
                    {k: v.to(device) for k, v in batch.model_inputs().items()}
                )
                loss += float(losses.double().sum())
                count += losses.numel()
                truth = batch.labels[where[:, 0].cpu(), where[:, 1].cpu()]
                if self.log_unigram is not None:
                    unigram -= float(self.log_unigram[truth].double().sum())
            if count:
                known = None if self.log_unigram is None else unigram / count
                facts = {"loss": loss / count, "unigram": known, "targets": count}
                lines.append({"masks": kind, "ratio": self.ratios[kind], **facts})
        return lines
