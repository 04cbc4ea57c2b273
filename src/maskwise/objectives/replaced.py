"""Replaced-token detection: a small generator fills the masks, and the model says which tokens are
not the text's.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import encoder_weights, masked_logits, width_of
from maskwise.masking import MaskedBatch
from maskwise.masking.batch import moved
from maskwise.models import build_model
from maskwise.objectives.base import (
    Masking,
    Objective,
    Outcome,
    Work,
    check_all_asked,
    counted,
    encoded,
    model_inputs,
    target_places,
)
from maskwise.objectives.mlm import MaskedLanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class ReplacedTokenDetection(Objective):
    """ELECTRA: the generator's MLM loss plus ``weight`` times the binary loss of the model at every
    token.

    Formula: Σ masked −log p_G(x_i) + weight · (masked / content) · Σ content binary loss: divided
        by the number of masked tokens, both are means over their own tokens, as published.
    Inputs: a ``MaskedBatch`` in which all that was masked has a label: the generator's words stand
        there, however it was shown, so 80/10/10 is sound (the released code keeps 15 %). What
        ``predict`` left out would reach the model as [MASK], and count as the text's: refused.
    Requirements: an encoder with embeddings. The generator has the same architecture, its layers
        ``share`` as wide (as few heads as fit); it is saved with the heads and is no part of the
        checkpoint. Replacements are sampled from it, without gradient.
    Source: Clark et al. 2020 (ELECTRA, arXiv 2003.10555), section 2.
    """

    masking: ClassVar[Masking] = {"corruption": "mask-only"}

    def __init__(self, model: PreTrainedModel, *, share: float = 0.25, weight: float = 50.0):
        super().__init__()
        if not 0 < share <= 1 or not weight > 0:
            got = f"share {share}, weight {weight}"
            raise MaskwiseError("objective rtd", got=got, allowed="0 < share ≤ 1, weight > 0")
        self.model, self.weight = model, weight
        wide = width_of(model)
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, 1))
        self.generator = build_model(smaller(model.config, share))

    @classmethod
    def check(cls, masking: Masking) -> None:
        """All that is masked is asked."""
        check_all_asked("rtd", masking)

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(vocabulary) + self.weight * math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """The model and its head for every token of the text, and the generator before it."""
        body, head = encoder_weights(self.model), sum(p.numel() for p in self.head.parameters())
        made = MaskedLanguageModelling(self.generator).work(tokens, targets)
        return Work(body * tokens, head * tokens + made.all)

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        where = target_places(batch)
        row, column = where.unbind(1)
        logits = masked_logits(
            self.generator, model_inputs(self.generator, batch), row, column
        ).float()
        truth = labels[row, column]
        losses = cross_entropy(logits, truth, reduction="none")
        ids, text = (
            batch["input_ids"].clone(),
            torch.from_numpy(np.flatnonzero(batch.source.content)),
        )
        at = moved(text, labels.device)
        with torch.no_grad():
            ids[row, column] = sampled(logits)
        replaced = torch.zeros_like(ids, dtype=torch.bool)
        replaced[row, column] = ids[row, column] != truth
        shown = {**model_inputs(self.model, batch), "input_ids": ids}
        score = self.head(encoded(self.model, shown).flatten(0, 1)[at]).float().squeeze(-1)
        told = binary_cross_entropy_with_logits(
            score, replaced.flatten()[at].float(), reduction="sum"
        )
        share = len(where) / max(1, len(text))
        count = counted(len(where), labels)
        return Outcome(losses.sum() + self.weight * share * told, count, losses.detach(), where)


def sampled(logits: Tensor) -> Tensor:
    """(M,) int64 ids drawn from (M, V) logits."""
    # The largest of p / e is that of token i with probability p_i, where all e are exponential (the
    # Gumbel trick). torch's own draws look at the values first, and the host would wait for an
    # accelerator.
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


def smaller(config: PreTrainedConfig, share: float) -> PreTrainedConfig:
    """The same architecture, ``share`` as wide: hidden and intermediate sizes, and as many heads as
    divide them.
    """
    config = copy.deepcopy(config)
    names = {"hidden_size", "intermediate_size", "dim", "hidden_dim"} & set(vars(config))
    width = config.hidden_size  # read once: it is one of those that change
    head = width // config.num_attention_heads
    heads = max(1, round(config.num_attention_heads * share))
    for name in sorted(names):
        value = getattr(config, name)
        setattr(config, name, heads * head if value == width else max(head, round(value * share)))
    config.num_attention_heads = heads
    return config
