"""One checkpoint in, records out: everything that can be measured without fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from maskwise.corpus import Blocks, unigram_counts
from maskwise.evaluation.heldout import HeldOut, fixed_maskers
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training import load_model, log_frequencies


class Data(Protocol):
    """What a prepare stage leaves (``study.work.Prepared``)."""

    tokenizer: Any
    training: Blocks | None
    held_out: Blocks


@torch.inference_mode()
def evaluate(
    checkpoint: str | Path | nn.Module, data: Data, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Measure one checkpoint.

    Args:
        checkpoint: a folder, a hub id, or a masked language model.
        data: its tokenizer, the training rows (None: not known; then ``unigram`` is None), held-out rows.
        settings: what to measure.

    Returns:
        For every ratio and kind of mask ``{"kind": "heldout", "masks", "ratio", "loss", "unigram",
        "targets"}``; for everything else ``{"kind": "evaluation", "name", "metric", "value", "items",
        "chance", "higher_is_better", …}``, where (name, metric) is unique.

    Raises:
        MaskwiseError: a checkpoint or file that cannot be read, or a file of which no item can be scored.
    """
    model: Any = checkpoint if isinstance(checkpoint, nn.Module) else load_model(checkpoint)
    model.eval()
    log_unigram = None
    if data.training is not None:
        counts = torch.from_numpy(unigram_counts(data.training, len(data.tokenizer)))
        log_unigram = log_frequencies(counts)
    objective = MaskedLanguageModelling(model)
    records = []
    for ratio in settings.ratios:
        maskers = fixed_maskers(data.tokenizer, masks=settings.masks, ratio=ratio)
        held_out = HeldOut(data.held_out, maskers, log_unigram, rows=settings.rows)
        records += [{"kind": "heldout", **line} for line in held_out(objective)]
    return records
