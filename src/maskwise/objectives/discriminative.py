"""Discriminative objectives: detecting changed tokens, and telling sentences apart.

``Detection`` and ``ReplacedTokenDetection`` predict which tokens were added or replaced, or before
which tokens a deletion took place. ``ContrastiveSentences`` reads each text twice, with different
dropout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from maskwise.devices import moved
from maskwise.errors import MaskwiseError
from maskwise.families import encoder_of, masked_logits, width_of
from maskwise.keys import Array
from maskwise.masking import MaskedBatch, Vocabulary
from maskwise.masking.corruptions import Insert, corruption
from maskwise.masking.gather import Pieces, Rows, device_of, gather
from maskwise.masking.vocabulary import Tokenizer
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
from maskwise.weights import encoder_weights, parts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Detection(Objective):
    """Binary cross-entropy of every token with a label.

    Formula: sum over labelled tokens of −log p(label | row), where p comes from Linear(H → 2) on
        the hidden state.
    Inputs: a ``MaskedBatch`` with label 0 at unchanged tokens of the text, 1 at changed tokens, and
        −100 at special tokens and padding. The attention mask is that of the changed row. (The
        published code counts padding and keeps the old mask.)
    Requirements: an encoder.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layout = "document"
    inherits = False
    in_place = False
    detects = True
    masking = {"ratio": 0.15, "budget": "bernoulli", "min_targets": 0}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(width_of(model), 2)

    def chance(self, vocabulary: int, rows: int) -> float:
        """ln 2, as published. A constant guess at the class frequencies scores 0.42 nats when 15 %
        of the tokens are changed."""
        return math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """All tokens of the changed text are targets."""
        return super().work(targets, targets)

    def forward(self, batch: MaskedBatch) -> Outcome:
        where = target_places(batch)
        at = where.unbind(1)
        logits = self.head(encoded(self.model, batch)[at])
        losses = cross_entropy(
            logits.float(),
            batch["labels"][at],
            reduction="none",
        )
        return Outcome.of(losses, where)


class AddedTokenDetection(Detection):
    """Detect random tokens; one is inserted before each token with probability 0.15.

    At most one token is inserted before each token of the text. Therefore 12.9 % of the shown
    tokens are new, and two new tokens are never adjacent. The published code iterates over the
    places of the output, so new tokens can be adjacent and 14.9 % of the tokens are new; this is
    the corruption ``insert(target='detect', again=0.15)``.
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
        """Build a masker; rows that grow beyond ``length`` are cut before their [SEP]."""
        shown = corruption(masking.get("corruption", Insert("detect")))
        if isinstance(shown, Insert) and shown.cut is None:
            shown = replace(shown, cut=length)
        return super().maker(
            tokenizer,
            seed=seed,
            **{**masking, "corruption": shown},
        )


class DeletedTokenDetection(Detection):
    """Detect the places of deletions; each token is deleted with probability 0.15.

    A token is labelled 1 if tokens before it were deleted. The [SEP] after the text is also a
    target, for deletions at the end of the text.
    """

    masking = {**Detection.masking, "corruption": "delete(target='detect')"}


class ReplacedTokenDetection(Objective):
    """ELECTRA: a small generator fills the masks, and the model detects which tokens it replaced.

    Formula: Σ masked −log p_G(x_i) + weight · (masked / content) · Σ content binary loss. Divided
        by the number of masked tokens, each of the two terms is a mean over its own tokens, as
        published.
    Inputs: a ``MaskedBatch`` in which every masked token has a label. The generator's samples
        replace every masked token, even with 80/10/10 (the released code keeps 15 %). Tokens
        without a label would reach the model as [MASK] and count as original, so ``predict`` below
        1 is refused.
    Requirements: an encoder with embeddings. The generator has the same architecture, with layers
        that are ``share`` times as wide; it is saved with the heads and is not part of the
        checkpoint. Replacements are sampled from the generator without gradient.
    Source: Clark et al. 2020 (ELECTRA, arXiv 2003.10555), section 2.
    """

    masking = {"corruption": "mask-only"}

    def __init__(self, model: PreTrainedModel, *, share: float = 0.25, weight: float = 50.0):
        super().__init__()
        if not 0 < share <= 1 or weight <= 0:
            raise MaskwiseError(
                "objective rtd has an invalid argument",
                got=f"share {share}, weight {weight}",
                allowed="0 < share ≤ 1, weight > 0",
            )
        wide = width_of(model)
        self.model = model
        self.weight = weight
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, 1))
        # Built after the head: both draw from torch's random state, so the order is fixed.
        self.generator = build_model(smaller(model.config, share))

    @classmethod
    def check(cls, masking: Masking) -> None:
        check_all_asked("rtd", masking)

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(vocabulary) + self.weight * math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """The model and its head for every token of the text, plus the generator's work."""
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
        # The loop divides by the number of masked tokens; this factor makes the second term a mean
        # over the text.
        share = len(where) / max(1, len(text))
        total = losses.sum() + self.weight * share * detected
        return Outcome.of(losses, where)._replace(loss=total)


def sampled(logits: Tensor) -> Tensor:
    """(M,) int64 ids drawn from (M, V) logits."""
    # The Gumbel trick: with exponential e, p / e is largest at token i with probability p_i.
    # torch.multinomial would check its input, which syncs the host with the device.
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


def smaller(config: PreTrainedConfig, share: float) -> PreTrainedConfig:
    """The same architecture, ``share`` times as wide: fewer heads, each as wide as before."""
    config = copy.deepcopy(config)
    width = config.hidden_size
    before = config.num_attention_heads
    head = width // before
    heads = max(1, round(before * share))
    for name in ("dim", "hidden_dim", "hidden_size", "intermediate_size"):
        value = vars(config).get(name)
        if value is not None:
            # The hidden size must remain a multiple of the number of heads.
            narrow = heads * head if value == width else max(head, round(value * share))
            setattr(config, name, narrow)
    config.num_attention_heads = heads
    groups = vars(config).get("num_key_value_heads")
    if groups is not None:
        # The same number of queries must share each key. If no keys are shared (ESMC), it stays so.
        config.num_key_value_heads = heads if groups == before else math.gcd(heads, groups)
    return config


# Sentences
# -------------------------------------------------------------------------------------------


class Twins:
    """Make batches with every other row twice, unmasked; a row's label is the index of its twin.

    Every other row is used rather than the first half, so the texts do not depend on the number of
    ranks.
    """

    def __init__(self, tokenizer: Tokenizer, **masking: object):
        del masking["seed"]
        ContrastiveSentences.check(masking)
        self.vocabulary = Vocabulary.of(tokenizer)

    def __call__(self, rows: Rows | Pieces, **when: object) -> MaskedBatch:
        """Make a batch of twins from every other row of ``rows``.

        Raises:
            MaskwiseError: the number of rows is odd or below four, or the rows are packed.
        """
        every = gather(rows, self.vocabulary)
        size = every.shape[0]
        if size % 2 or size < 4:
            raise MaskwiseError(
                "cse reads half of the rows twice",
                got=f"{size} rows",
                allowed="an even number ≥ 4",
            )
        if every.packed:
            raise MaskwiseError(
                "cse needs one text per row",
                got="packed rows",
                do="use the layout 'document'",
            )
        # Rows 0, 2, 4, …, and then the same rows again.
        pair = 2 * (np.arange(size) % (size // 2))

        def twice(line: Array) -> Array:
            return line.reshape(every.shape)[pair].reshape(-1)

        batch = replace(
            every,
            input_ids=twice(every.input_ids),
            content=twice(every.content),
            eligible=twice(every.eligible),
            attention_mask=None if every.attention_mask is None else twice(every.attention_mask),
            example_id=every.example_id[pair],
            # No policy learns from these losses, and nothing else uses the layers.
            layers={},
            extras={name: twice(extra) for name, extra in every.extras.items()},
        )
        twin = (torch.arange(size) + size // 2) % size
        return MaskedBatch.unmasked(batch, twin, size).to(device_of(rows))


class ContrastiveSentences(Objective):
    """Cross-entropy of finding a row's twin among the texts of the batch.

    Formula: sum over rows i of −log softmax_j≠i(cos(z_i, z_j) / temperature) at j = the twin of i,
        where z = tanh(Linear(H → H)([CLS])).
    Inputs: a batch from ``Twins``; labels (B,).
    Requirements: an encoder with dropout layers. If all their rates are 0 (ModernBERT), this
        objective's passes use ``dropout`` instead. With several ranks, the embeddings of all ranks
        are gathered, with gradient.
    Source: Gao et al. 2021 (SimCSE, arXiv 2104.08821), as in Wu et al. 2022.
    """

    layout = "document"
    inherits = False
    twins = True
    batches = Twins

    def __init__(self, model: PreTrainedModel, *, temperature: float = 0.05, dropout: float = 0.1):
        super().__init__()
        size = width_of(model)
        self.model = model
        self.head = nn.Linear(size, size)
        self.temperature = temperature
        self.dropout = dropout
        self.drops = True
        if temperature <= 0 or not 0 < dropout < 1:
            raise MaskwiseError(
                "objective cse has an invalid argument",
                got=f"temperature {temperature}, dropout {dropout}",
                allowed="temperature > 0, 0 < dropout < 1",
            )
        if not self._dropouts():
            raise MaskwiseError(
                "objective cse needs dropout, because twins do not differ in anything else",
                got=type(model).__name__,
                do="use an encoder with dropout layers",
            )

    def _dropouts(self) -> list[nn.Dropout]:
        return parts(encoder_of(self.model), nn.Dropout)

    @classmethod
    def check(cls, masking: Masking) -> None:
        if masking:
            raise MaskwiseError(
                "objective cse does not mask",
                got=", ".join(masking),
                do="leave masking out",
            )

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(max(2, rows - 1))

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        with self.some_dropout():
            first_BH = encoded(self.model, batch)[:, 0]
        mine = normalize(torch.tanh(self.head(first_BH)).float(), dim=1)
        every, offset = gathered(mine)
        # Computed without autocast, because the rounding of bf16 would hide how similar twins are.
        with torch.autocast(mine.device.type, enabled=False):
            similar = mine @ every.T / self.temperature
        place = torch.arange(len(mine), device=mine.device)
        # A row is not compared with itself: that similarity is always 1.
        itself = torch.zeros_like(similar, dtype=torch.bool)
        itself[place, place + offset] = True
        others = similar.masked_fill(itself, -torch.inf)
        return Outcome.of(cross_entropy(others, labels + offset, reduction="none"))

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Evaluation without dropout: twins are then equal, as in the released code's probes."""
        self.drops = False
        yield
        self.drops = True

    @contextmanager
    def some_dropout(self) -> Iterator[None]:
        """Dropout at the encoder's rates, or at ``dropout`` if these are all 0; it is active even
        in evaluation mode, for probes."""
        if not self.drops:
            yield
            return
        encoder = encoder_of(self.model)
        training = encoder.training
        rates = {layer: layer.p for layer in self._dropouts()}
        # The whole encoder, not only its dropout layers, because attention modules also use
        # dropout.
        encoder.train()
        if not any(rates.values()):
            for layer in rates:
                layer.p = self.dropout
        try:
            yield
        finally:
            encoder.train(training)
            for layer, rate in rates.items():
                layer.p = rate


def gathered(mine: Tensor) -> tuple[Tensor, int]:
    """The rows (B, H) of all ranks, with gradient, and the index of this rank's first row."""
    if not dist.is_initialized():
        return mine, 0
    return torch.cat(all_gather(mine)), dist.get_rank() * len(mine)
