"""Contrastive sentence embeddings: each text is read twice with different dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

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
from maskwise.masking.gather import Pieces, Rows, device_of, gather
from maskwise.masking.vocabulary import Tokenizer
from maskwise.objectives.base import Masking, Objective, Outcome, encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Twins:
    """Every other row twice, unmasked; the label of a row is the index of its twin.

    Every other row and not the first half, so that the texts do not depend on the number of ranks.
    """

    def __init__(self, tokenizer: Tokenizer, **masking: object):
        del masking["seed"]
        ContrastiveSentences.check(masking)
        self.vocabulary = Vocabulary.of(tokenizer)

    def __call__(self, rows: Rows | Pieces, **when: object) -> MaskedBatch:
        """
        Raises:
            MaskwiseError: an odd number of rows, fewer than four, or packed ones.
        """
        every = gather(rows, self.vocabulary)
        size = every.shape[0]
        if size % 2 or size < 4:
            what = "cse reads half of the rows twice"
            raise MaskwiseError(what, got=f"{size} rows", allowed="an even number ≥ 4")
        if every.packed:
            do = "use the layout 'document'"
            raise MaskwiseError("cse needs one text a row", got="packed rows", do=do)
        # Rows 0, 2, 4, …, and then the same again.
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
        twin = (torch.arange(size) + size // 2) % size
        return MaskedBatch.unmasked(batch, twin, size).to(device_of(rows) or "cpu")


class ContrastiveSentences(Objective):
    """Cross-entropy of a row's twin among the texts of the batch.

    Formula: sum over rows i of −log softmax_j≠i(cos(z_i, z_j) / temperature) at j = the twin of i,
        z = tanh(Linear(H → H)([CLS])).
    Inputs: what ``Twins`` makes; labels (B,).
    Requirements: an encoder with dropout layers. Where all rates are 0 (ModernBERT), this
        objective's passes use ``dropout``. Over several ranks embeddings are gathered, with
        gradient.
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
            got = f"temperature {temperature}, dropout {dropout}"
            allowed = "temperature > 0, 0 < dropout < 1"
            raise MaskwiseError("objective cse", got=got, allowed=allowed)
        if not self._dropouts():
            what = "objective cse needs dropout: twins differ by nothing else"
            do = "take an encoder with dropout layers"
            raise MaskwiseError(what, got=type(model).__name__, do=do)

    def _dropouts(self) -> list[nn.Dropout]:
        return [m for m in encoder_of(self.model).modules() if isinstance(m, nn.Dropout)]

    @classmethod
    def check(cls, masking: Masking) -> None:
        if masking:
            got = ", ".join(masking)
            raise MaskwiseError("objective cse does not mask", got=got, do="leave masking out")

    def chance(self, vocabulary: int, rows: int) -> float:
        return math.log(max(2, rows - 1))

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        with self.some_dropout():
            first_BH = encoded(self.model, batch)[:, 0]
        mine = normalize(torch.tanh(self.head(first_BH)).float(), dim=1)
        every, offset = gathered(mine)
        # bf16 cannot resolve the similarity of twins. Multiplied outside of autocast, therefore.
        with precise(mine.device.type):
            similar = mine @ every.T / self.temperature
        place = torch.arange(len(mine), device=mine.device)
        # A row is not compared with itself, whose similarity is always 1.
        itself = torch.zeros_like(similar, dtype=torch.bool)
        itself[place, place + offset] = True
        others = similar.masked_fill(itself, -torch.inf)
        return Outcome.of(cross_entropy(others, labels + offset, reduction="none"))

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """The released code probes in evaluation mode, where twins are equal."""
        self.drops = False
        yield
        self.drops = True

    @contextmanager
    def some_dropout(self) -> Iterator[None]:
        """The encoder's own dropout, or ours if it has none; in evaluation too, for probes."""
        if not self.drops:
            yield
            return
        modes = {module: module.training for module in encoder_of(self.model).modules()}
        rates = {layer: layer.p for layer in self._dropouts()}
        for module in modes:  # not only the dropout layers: attention drops by its own mode
            module.training = True
        if not any(rates.values()):
            for layer in rates:
                layer.p = self.dropout
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for layer, rate in rates.items():
                layer.p = rate


def precise(device: str) -> AbstractContextManager[object]:
    """A context without autocast."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def gathered(mine: Tensor) -> tuple[Tensor, int]:
    """The rows (B, H) of all ranks, with gradient, and the index of this rank's first."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mine, 0
    return torch.cat(all_gather(mine)), dist.get_rank() * len(mine)
