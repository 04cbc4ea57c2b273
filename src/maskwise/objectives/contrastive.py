"""Sentence embeddings by contrast: each text is read twice, and dropout makes the pair."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy, normalize

from maskwise.errors import MaskwiseError
from maskwise.families import encoder_of, width_of
from maskwise.keys import Array
from maskwise.masking import MaskedBatch, Vocabulary
from maskwise.masking.gather import Rows, device_of, gather
from maskwise.objectives.base import Maker, Masking, Objective, Outcome, counted, encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Twins:
    """Every other row twice, unmasked; the label of a row is the number of its twin.

    Every other one and not the first half, so that it is the same texts however a batch is cut into
    ranks.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def __call__(
        self, rows: Rows, *, step: int = 0, total_steps: int | None = None, epoch: int | None = None
    ) -> MaskedBatch:
        """
        Raises:
            MaskwiseError: an odd number of rows, fewer than four (one text has nobody to be told
                from), or packed ones.
        """
        every, device = gather(rows, self.vocabulary), device_of(rows)
        size = every.shape[0]
        if size % 2 or size < 4:
            raise MaskwiseError(
                "cse reads half of the rows twice", got=f"{size} rows", allowed="an even number ≥ 4"
            )
        if every.packed:
            raise MaskwiseError(
                "cse wants one text a row", got="packed rows", do="use the layout 'document'"
            )
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
            layers={name: twice(layer) for name, layer in every.layers.items()},
            extras={name: twice(extra) for name, extra in every.extras.items()},
        )
        made = MaskedBatch.unmasked(batch, (torch.arange(size) + size // 2) % size, size)
        return made if device is None else made.to(device)


class ContrastiveSentences(Objective):
    """Find the twin among the texts of the batch.

    Formula: sum over rows i of −log softmax_j≠i(cos(z_i, z_j) / temperature) at j = the twin of i,
        z = tanh(Linear(H → H)([CLS])).
    Inputs: what ``Twins`` makes; labels (B,).
    Requirements: an encoder with dropout: without it twins are equal and there is nothing to learn.
        Where all rates are 0 (ModernBERT), this objective's own passes use ``dropout``; an encoder
        without any dropout layer is refused. Over several ranks embeddings are gathered, with
        gradient.
    Source: Gao et al. 2021 (SimCSE, arXiv 2104.08821), as in Wu et al. 2022.
    """

    layout, inherits, twins = "document", False, True

    def __init__(self, model: PreTrainedModel, *, temperature: float = 0.05, dropout: float = 0.1):
        super().__init__()
        size = width_of(model)
        self.model, self.head = model, nn.Linear(size, size)
        self.temperature, self.dropout, self.drops = temperature, dropout, True
        if not temperature > 0 or not 0 < dropout < 1:
            got = f"temperature {temperature}, dropout {dropout}"
            raise MaskwiseError(
                "objective cse", got=got, allowed="temperature > 0, 0 < dropout < 1"
            )
        if not any(isinstance(m, nn.Dropout) for m in encoder_of(model).modules()):
            raise MaskwiseError(
                "objective cse needs dropout: it tells the twins apart",
                got=type(model).__name__,
                do="take an encoder with dropout layers",
            )

    @classmethod
    def check(cls, masking: Masking) -> None:
        """Nothing is masked."""
        if masking:
            raise MaskwiseError(
                "objective cse masks nothing", got=", ".join(masking), do="leave masking out"
            )

    @classmethod
    def maker(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        length: int | None = None,
        **masking: Any,
    ) -> Maker:
        """Twins; nothing is masked."""
        cls.check(masking)
        return Twins(tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer))

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(max(2, rows - 1))

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        with self.some_dropout():
            first_BH = encoded(self.model, batch)[:, 0]
        mine = normalize(torch.tanh(self.head(first_BH)).float(), dim=1)
        every, offset = gathered(mine)
        device = mine.device.type
        exact = (
            torch.autocast(device, enabled=False)
            if torch.amp.is_autocast_available(device)
            else nullcontext()
        )
        with exact:  # twins are near to each other: bf16 cannot tell how near
            similar = mine @ every.T / self.temperature
        place = torch.arange(len(mine), device=mine.device)
        itself = torch.zeros_like(similar, dtype=torch.bool)
        itself[place, place + offset] = True
        losses = cross_entropy(
            similar.masked_fill(itself, -torch.inf), labels + offset, reduction="none"
        )
        return Outcome(losses.sum(), counted(len(labels), labels))

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """The released code probes in evaluation mode, where twins are the same."""
        self.drops = False
        try:
            yield
        finally:
            self.drops = True

    @contextmanager
    def some_dropout(self) -> Iterator[None]:
        """The encoder's own dropout, or ours in its layers if it has none; on in evaluation too,
        for probes.
        """
        if not self.drops:
            yield
            return
        encoder = list(encoder_of(self.model).modules())
        layers = [m for m in encoder if isinstance(m, nn.Dropout)]
        modes, rates = [m.training for m in encoder], [layer.p for layer in layers]
        for module in encoder:  # not the layers alone: attention drops by its own mode
            module.training = True
        for layer in layers:
            layer.p = layer.p if any(rates) else self.dropout
        try:
            yield
        finally:
            for module, mode in zip(encoder, modes, strict=True):
                module.training = mode
            for layer, rate in zip(layers, rates, strict=True):
                layer.p = rate


def gathered(mine: Tensor) -> tuple[Tensor, int]:
    """The rows (B, H) of all ranks, with gradient, and where this rank's begin."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mine, 0
    return torch.cat(all_gather(mine)), dist.get_rank() * len(mine)
