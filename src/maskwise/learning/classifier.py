"""A classifier whose doubts tell which words a class hangs on: trained on a task as fine-tuning does it, then asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskwise.keys import Array
from maskwise.learning.labels import Confidence
from maskwise.objectives import Classification
from maskwise.tasks import FinetuneSettings
from maskwise.tasks.judge import load_network
from maskwise.tasks.task import Task, Tuned
from maskwise.tasks.tensors import Cutter, TaskSource, batches, encode, padding_id, tokenizer_state
from maskwise.training import train

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def train_classifier(
    task: Task,
    checkpoint: str | Path | None,
    *,
    config: PreTrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneSettings,
    seed: int,
    quiet: bool = True,
) -> Confidence:
    """A classifier of the task's train rows.

    Args:
        checkpoint, config: of the encoder, as for ``finetune``: one of the two.

    Returns:
        What gives, for texts and their classes (places in ``task.labels``), the probabilities of these classes.
    """
    kind, length = task.kind, settings.max_length
    assert isinstance(kind, Tuned)
    network = load_network(checkpoint, task, tokenizer, config=config, max_length=length, seed=seed)
    objective, data = Classification(network), encode(task, tokenizer, max_length=length)
    training = settings.fitting(network.num_parameters()).training(task, seed=seed)
    train(
        objective,
        TaskSource(data["train"], training),
        training,
        title=f"classifier of {task.name}",
        quiet=quiet,
    )
    objective.eval()
    cutter = Cutter.of(tokenizer_state(tokenizer), padding_id(tokenizer), length)

    @torch.inference_mode()
    def confidence(texts: Sequence[str], classes: Sequence[int]) -> Array:
        flat, sure = cutter.flat(list(texts)), np.zeros(len(texts))
        for rows, batch in batches(flat, next(objective.parameters()).device):
            chance = objective.logits(batch).float().softmax(-1).cpu()
            own = torch.tensor([classes[row] for row in rows.tolist()])
            sure[rows.numpy()] = chance[torch.arange(len(rows)), own].numpy()
        return sure

    return confidence
