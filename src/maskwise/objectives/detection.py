"""Detection objectives: which tokens were added, deleted before, or replaced?"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import masked_logits, width_of
from maskwise.masking import MaskedBatch
from maskwise.masking.batch import moved
from maskwise.masking.corruptions import Insert, corruption
from maskwise.models import build_model
from maskwise.objectives.base import (
    Maker,
    Masking,
    Objective,
    Outcome,
    Work,
    check_all_asked,
    encoded,
    model_inputs,
    target_places,
)
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.weights import encoder_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Detection(Objective):
    """Binary cross-entropy of every token with a label.

    Formula: sum over labelled tokens of −log p(label | row), p from Linear(H → 2) on the hidden
        state.
    Inputs: a ``MaskedBatch`` with labels 0 and 1 at the tokens of the text, changed or not; −100 at
        special tokens and padding. The attention mask is that of the changed row. (The published
        code counts padding and keeps the old mask.)
    Requirements: an encoder.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layout = "document"
    inherits = False
    in_place = False
    detects = True
    masking: ClassVar[Masking] = {"ratio": 0.15, "budget": "bernoulli", "min_targets": 0}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(width_of(model), 2)

    def chance(self, vocabulary: int, rows: int) -> float:
        """ln 2, as published; always guessing the class frequencies scores 0.42 nats at 15 %."""
        return math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """All tokens of the changed text are targets."""
        return super().work(targets, targets)

    def forward(self, batch: MaskedBatch) -> Outcome:
        where = target_places(batch)
        at = where.unbind(1)
        logits = self.head(encoded(self.model, batch)[at])
        losses = cross_entropy(logits.float(), batch["labels"][at], reduction="none")
        return Outcome.of(losses, where)


class AddedTokenDetection(Detection):
    """Before each token a random one is inserted with probability 0.15: which are new?

    At most one token is inserted before each: 12.9 % of the shown tokens are new, never two in
    a row. The published code iterates over the places of the output, so that runs are possible
    and 14.9 % are new; that is the corruption ``insert(target='detect', again=0.15)``.
    """

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        **masking: Any,
    ) -> Maker:
        """A masker; rows that grow beyond ``length`` are cut before their [SEP]."""
        shown = corruption(masking.get("corruption", Insert("detect")))
        if isinstance(shown, Insert) and shown.cut is None:
            shown = replace(shown, cut=length)
        return super().maker(tokenizer, seed=seed, **{**masking, "corruption": shown})


class DeletedTokenDetection(Detection):
    """Each token is deleted with probability 0.15: before which remaining ones was a token?

    The [SEP] after the text is a target too, for deletions at the end.
    """

    masking: ClassVar[Masking] = {**Detection.masking, "corruption": "delete(target='detect')"}


class ReplacedTokenDetection(Objective):
    """ELECTRA: a small generator fills the masks, and the model detects its replacements.

    Formula: Σ masked −log p_G(x_i) + weight · (masked / content) · Σ content binary loss: divided
        by the number of masked tokens, both are means over their own tokens, as published.
    Inputs: a ``MaskedBatch`` in which every masked token has a label; the generator's samples
        replace it, also with 80/10/10 (the released code keeps 15 %). Tokens without a label would
        reach the model as [MASK] and count as original, so ``predict`` below 1 is refused.
    Requirements: an encoder with embeddings. The generator has the same architecture with layers
        ``share`` as wide; it is saved with the heads and not part of the checkpoint. Replacements
        are sampled from it without gradient.
    Source: Clark et al. 2020 (ELECTRA, arXiv 2003.10555), section 2.
    """

    masking: ClassVar[Masking] = {"corruption": "mask-only"}

    def __init__(self, model: PreTrainedModel, *, share: float = 0.25, weight: float = 50.0):
        super().__init__()
        if not 0 < share <= 1 or weight <= 0:
            got = f"share {share}, weight {weight}"
            raise MaskwiseError("objective rtd", got=got, allowed="0 < share ≤ 1, weight > 0")
        wide = width_of(model)
        self.model = model
        self.weight = weight
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, 1))
        # After the head, because both draw from the same generator.
        self.generator = build_model(smaller(model.config, share))

    @classmethod
    def check(cls, masking: Masking) -> None:
        check_all_asked("rtd", masking)

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(vocabulary) + self.weight * math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """The model and its head for every token of the text, and the generator."""
        head = sum(p.numel() for p in self.head.parameters())
        generator = MaskedLanguageModelling(self.generator).work(tokens, targets)
        return Work(encoder_weights(self.model) * tokens, head * tokens + generator.all)

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        where = target_places(batch)
        at = where.unbind(1)
        truth = labels[at]
        inputs = model_inputs(self.generator, batch)
        logits = masked_logits(self.generator, inputs, *at).float()
        losses = cross_entropy(logits, truth, reduction="none")
        ids = batch["input_ids"].clone()
        # No gradient flows through the sampling, as published.
        with torch.no_grad():
            ids[at] = sampled(logits)
        replaced = torch.zeros_like(ids, dtype=torch.bool)
        replaced[at] = ids[at] != truth
        text = torch.from_numpy(np.flatnonzero(batch.source.content))
        on_device = moved(text, labels.device)
        shown = {**model_inputs(self.model, batch), "input_ids": ids}
        score = self.head(encoded(self.model, shown).flatten(0, 1)[on_device]).float().squeeze(-1)
        detected = binary_cross_entropy_with_logits(
            score, replaced.flatten()[on_device].float(), reduction="sum"
        )
        # The loop divides by masked tokens; this makes the second term a mean over the text.
        share = len(where) / max(1, len(text))
        total = losses.sum() + self.weight * share * detected
        return Outcome.of(losses, where)._replace(loss=total)


def sampled(logits: Tensor) -> Tensor:
    """(M,) int64 ids drawn from (M, V) logits."""
    # The Gumbel trick: with exponential e, p / e is largest at token i with probability p_i.
    # torch.multinomial checks its input, which syncs the host with the device.
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


def smaller(config: PreTrainedConfig, share: float) -> PreTrainedConfig:
    """The same architecture, ``share`` as wide: fewer heads, each as wide as before."""
    config = copy.deepcopy(config)
    width = config.hidden_size
    before = config.num_attention_heads
    head = width // before
    heads = max(1, round(before * share))
    for name in ("dim", "hidden_dim", "hidden_size", "intermediate_size"):
        value = vars(config).get(name)
        if value is not None:
            # The hidden size must stay a multiple of the heads.
            narrow = heads * head if value == width else max(head, round(value * share))
            setattr(config, name, narrow)
    config.num_attention_heads = heads
    groups = vars(config).get("num_key_value_heads")
    if groups is not None:
        # Queries share keys evenly, and ESMC's do not share them.
        config.num_key_value_heads = heads if groups == before else math.gcd(heads, groups)
    return config
