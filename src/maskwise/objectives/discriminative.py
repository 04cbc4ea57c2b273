"""Discriminative objectives: detect changed tokens, and recognise equal sentences.

The subclasses of ``Detection`` predict which tokens were added, and where tokens were deleted.
``ReplacedTokenDetection`` predicts which tokens were replaced. ``ContrastiveSentences`` reads each
text twice, with different dropout, and trains the model to give both readings similar embeddings.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from maskwise.base.devices import moved
from maskwise.base.errors import MaskwiseError
from maskwise.masking import MaskedBatch, Vocabulary
from maskwise.masking.batch import Lengths
from maskwise.masking.corruptions import Insert
from maskwise.masking.draws import Array
from maskwise.masking.gather import UserRows, device_of, gather
from maskwise.masking.line import Line
from maskwise.masking.vocabulary import Tokenizer
from maskwise.models.families import encoder_of, patched, picked, width_of
from maskwise.models.flops import Work, encoder_attention, encoder_weights, multiplied_weights
from maskwise.models.loading import build_model
from maskwise.objectives.base import (
    Loss,
    Maker,
    Masking,
    Objective,
    check_all_asked,
    encoded,
    model_inputs,
    precise,
    target_places,
)
from maskwise.objectives.chunks import token_losses
from maskwise.objectives.mlm import MaskedLanguageModelling, read_at

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Detection(Objective):
    """Binary cross-entropy of every token with a label.

    Formula: sum over labelled tokens of −log p(label | row), where p is the softmax of
        Linear(H → 2) of the hidden state.
    Inputs: a ``MaskedBatch`` with label 0 at unchanged tokens of the text, 1 at changed tokens, and
        −100 at special tokens and padding. The attention mask is that of the changed row. (The
        published code uses the mask of the unchanged row and includes padding in the loss.)
    Requirements: an encoder.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    inherits = False
    in_place = False
    detects = True
    masking = {"ratio": 0.15, "budget": "bernoulli", "min_targets": 0}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(width_of(model), 2)

    def chance(self, vocabulary: int, rows: int) -> float:
        """Return ln 2, as in the paper.

        If 15 % of the tokens are changed, predicting p = .15 for every token has a loss of 0.42
        nats.
        """
        return math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch. The model reads the changed text, whose tokens are all
        targets."""
        return super().work(targets, targets)

    def forward(self, batch: MaskedBatch) -> Loss:
        where = target_places(batch)
        at = where.unbind(1)
        logits = self.head(picked(encoded(self.model, batch), *at))
        losses = cross_entropy(
            logits.float(),
            batch["labels"][at],
            reduction="none",
        )
        return Loss.of(losses, where)


class AddedTokenDetection(Detection):
    """Detect random tokens that were inserted into the text.

    Before each token of the text, one random token is inserted with probability 0.15. As a result,
    12.9 % of the tokens of the changed text are inserted tokens, which are never adjacent. In the
    published code, inserted tokens can be adjacent, and 14.9 % of the tokens are inserted. The
    corruption ``insert(target='detect', again=0.15)`` inserts tokens in this way.
    """

    masking = {**Detection.masking, "corruption": "insert(target='detect')"}

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        masking: Masking | None = None,
        **own: Any,
    ) -> Maker:
        """Build a masker that cuts off the end of texts that grow beyond ``length`` tokens."""
        masking = masking or cls.own_masking(own)
        shown = masking.corruption
        if isinstance(shown, Insert) and shown.cut is None:
            masking = replace(masking, corruption=replace(shown, cut=length))
        return super().maker(tokenizer, seed=seed, masking=masking)


class DeletedTokenDetection(Detection):
    """Detect where tokens were deleted. Each token is deleted with probability 0.15.

    The label of a token is 1 if the token directly before it was deleted. The [SEP] after the text
    is also a target, because tokens at the end of the text may be deleted.
    """

    masking = {**Detection.masking, "corruption": "delete(target='detect')"}


class ReplacedTokenDetection(Objective):
    """ELECTRA: a small generator fills the masks, and the model detects the replaced tokens.

    Formula: Σ over masked tokens of −log p_G(x_i) + weight · (masked / content) · Σ over content
        tokens of the binary loss. Masked and content are numbers of tokens. The training loop
        divides the sum by the number of masked tokens. Both terms are then means over their tokens,
        as in the paper.
    Inputs: a ``MaskedBatch`` in which every masked token has a label. Every selected token is
        replaced by a token that the generator samples, even if the corruption ``bert`` left the
        token unchanged. (The released code keeps 15 % of the selected tokens.) A masked token
        without a label would be treated as original text, so ``predict`` must be 1.
    Requirements: an encoder with embeddings. The generator has the same architecture, with layers
        that are ``share`` times as wide. Checkpoints of the model do not include the generator,
        which is saved with the heads. No gradient flows through the sampled tokens.
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
        # Build the generator after the head. Both draw initial weights from torch's random
        # generator, so another order would change them.
        self.generator = build_model(smaller(model.config, share))

    @classmethod
    def check(cls, masking: Masking) -> None:
        check_all_asked("rtd", masking)

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(vocabulary) + self.weight * math.log(2)

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch: the model and the head on all tokens, and the generator."""
        head = multiplied_weights(self.head)
        generator = MaskedLanguageModelling(self.generator).work(tokens, targets)
        return Work(encoder_weights(self.model) * tokens, head * tokens + generator.all)

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications in the attention of the model and of the generator."""
        generator = encoder_attention(self.generator.config, lengths.read)
        return super().attention(lengths).plus(Work(head=generator))

    def forward(self, batch: MaskedBatch) -> Loss:
        labels = batch["labels"]
        where = target_places(batch)
        at = where.unbind(1)
        inputs = model_inputs(self.generator, batch)
        losses, drawn = read_at(self.generator, where, labels, inputs, losses_and_samples)
        ids = batch["input_ids"].clone()
        ids[at] = drawn
        replaced = torch.zeros_like(ids, dtype=torch.bool)
        replaced[at] = ids[at] != labels[at]
        text = torch.from_numpy(np.flatnonzero(batch.line.predicted))
        on_device = moved(text, labels.device)
        shown = {**model_inputs(self.model, batch), "input_ids": ids}
        score = self.head(encoded(self.model, shown).flatten(0, 1)[on_device]).float().squeeze(-1)
        detected = binary_cross_entropy_with_logits(
            score, replaced.flatten()[on_device].float(), reduction="sum"
        )
        # The training loop divides the loss by the number of masked tokens. With this factor, the
        # second term then is a mean over the text.
        share = len(where) / max(1, len(text))
        total = losses.sum() + self.weight * share * detected
        return Loss.of(losses, where)._replace(total=total)


def losses_and_samples(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each target, and an id drawn from its distribution, both (M,)."""
    logits = logits.float()
    # As in the paper, no gradient flows through the sampled tokens.
    with torch.no_grad():
        drawn = sampled(logits)
    return token_losses(logits, truth), drawn


def sampled(logits: Tensor) -> Tensor:
    """(M,) int64: one id drawn from each of the M distributions with logits (M, V)."""
    # If e has an exponential distribution, p / e is largest at token i with probability p_i (the
    # Gumbel trick). torch.multinomial would check its input, and the host would have to wait.
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


def smaller(config: PreTrainedConfig, share: float) -> PreTrainedConfig:
    """Return a configuration ``share`` times as wide, with fewer heads of the same width."""
    config = copy.deepcopy(config)
    width = config.hidden_size
    before = config.num_attention_heads
    head = width // before
    heads = max(1, round(before * share))
    for name in ("dim", "hidden_dim", "hidden_size", "intermediate_size"):
        value = vars(config).get(name)
        if value is not None:
            # The hidden size must be a multiple of the number of heads.
            narrow = heads * head if value == width else max(head, round(value * share))
            setattr(config, name, narrow)
    config.num_attention_heads = heads
    groups = vars(config).get("num_key_value_heads")
    if groups is not None:
        # Every key head must serve the same number of query heads. If each query head has its own
        # key head (ESMC), keep it so.
        config.num_key_value_heads = heads if groups == before else math.gcd(heads, groups)
    return config


# Sentences
# -------------------------------------------------------------------------------------------


class Twins:
    """Makes unmasked batches in which every row has a *twin*, a second copy of the row.

    The rows 0, 2, 4, … are used, and the other rows are not. (If the first half of the rows were
    used, the texts would depend on the number of ranks.) The label of a row is the index of its
    twin.
    """

    values: ClassVar[type[Masking]] = Masking

    def __init__(self, tokenizer: Tokenizer):
        self.vocabulary = Vocabulary.of(tokenizer)

    @classmethod
    def of(cls, tokenizer: Tokenizer, masking: Masking, *, seed: int = 0) -> Twins:
        """As ``Masker.of``. Twins are not masked, so the settings are not read."""
        return cls(tokenizer)

    def __call__(self, rows: UserRows | Line, **when: object) -> MaskedBatch:
        """Make a batch of twins from rows 0, 2, 4, ….

        Raises:
            MaskwiseError: the number of rows is odd or below four, or the rows are packed.
        """
        every = gather(rows, self.vocabulary)
        size = every.shape[0]
        if size % 2 or size < 4:
            raise MaskwiseError(
                "objective cse reads half of the rows of a batch twice",
                got=f"{size} rows",
                allowed="an even number ≥ 4",
            )
        if every.packed:
            raise MaskwiseError(
                "objective cse needs one text per row",
                got="packed rows",
                do="use the layout 'document'",
            )
        # Rows 0, 2, 4, …, and then the same rows again.
        pair = 2 * (np.arange(size) % (size // 2))

        def twice(values: Array) -> Array:
            return values.reshape(every.shape)[pair].reshape(-1)

        line = replace(
            every,
            input_ids=twice(every.input_ids),
            content=twice(every.content),
            eligible=twice(every.eligible),
            attention_mask=None if every.attention_mask is None else twice(every.attention_mask),
            example_id=every.example_id[pair],
            # Nothing reads layers, because no masking policy is used.
            layers={},
            silent=None,
            extras={name: twice(extra) for name, extra in every.extras.items()},
        )
        twin = (torch.arange(size) + size // 2) % size
        return MaskedBatch.unmasked(line, twin, size).to(device_of(rows))


class ContrastiveSentences(Objective):
    """Cross-entropy of finding the second copy of a text among all texts of a batch (SimCSE).

    The second copy of a row is called its twin, and is read with other dropout.

    Formula: sum over rows i of −log softmax_j≠i(cos(z_i, z_j) / temperature) at j = the twin of i,
        where z = tanh(Linear(H → H)([CLS])). On several ranks, each row is compared with the rows
        of all ranks, and gradients flow to all ranks.
    Inputs: a batch from ``Twins`` with labels (B,).
    Requirements: an encoder with dropout layers. If all dropout rates are 0 (ModernBERT), the rate
        ``dropout`` is used in the forward passes of this objective.
    Source: Gao et al. 2021 (SimCSE, arXiv 2104.08821); Wu et al. 2022 for the head.
    """

    layout = "document"
    inherits = False
    masks = False
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
                "objective cse needs dropout, because the two copies of a text would be equal",
                got=type(model).__name__,
                do="use an encoder with dropout layers",
            )

    def _dropouts(self) -> list[nn.Dropout]:
        """Return the encoder's dropout layers, without those of LoRA, which starts at 0."""
        layers = []
        for name, layer in encoder_of(self.model).named_modules():
            if isinstance(layer, nn.Dropout) and "lora_dropout" not in name:
                layers.append(layer)
        return layers

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(max(2, rows - 1))

    def forward(self, batch: MaskedBatch) -> Loss:
        labels = batch["labels"]
        with self.some_dropout():
            first_BH = encoded(self.model, batch)[:, 0]
        mine = normalize(torch.tanh(self.head(first_BH)).float(), dim=1)
        every, offset = rows_of_all_ranks(mine)
        # Turn autocast off, because similarities near 1 would all be equal in bf16.
        with precise(mine.device.type):
            similar = mine @ every.T / self.temperature
        place = torch.arange(len(mine), device=mine.device)
        # Exclude each row's similarity with itself, which is always 1.
        itself = torch.zeros_like(similar, dtype=torch.bool)
        itself[place, place + offset] = True
        others = similar.masked_fill(itself, -torch.inf)
        return Loss.of(cross_entropy(others, labels + offset, reduction="none"))

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """A context without dropout. Twins are then equal, as in the probes of MOMETAS's code."""
        with patched(self):
            self.drops = False
            yield

    @contextmanager
    def some_dropout(self) -> Iterator[None]:
        """A context with dropout at the encoder's rates, or at ``dropout`` if all rates are 0.

        Dropout is active even in evaluation mode, because probes need it.
        """
        if not self.drops:
            yield
            return
        encoder = encoder_of(self.model)
        layers = self._dropouts()
        with patched(encoder):
            # Set the whole encoder to training mode, because attention modules also use dropout.
            encoder.train()
            if not any(layer.p for layer in layers):
                for layer in layers:
                    layer.p = self.dropout
            yield


def rows_of_all_ranks(mine: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all ranks, with gradient, and the index of this rank's first row."""
    if not dist.is_initialized():
        return mine, 0
    return torch.cat(all_gather(mine)), dist.get_rank() * len(mine)
