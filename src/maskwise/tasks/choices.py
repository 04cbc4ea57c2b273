"""Questions with choices as tensors: one sequence a choice, [context and question, choice]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.tasks.rows import Row
from maskwise.tasks.tensors import Flat, batches, edges, flat


@dataclass(frozen=True, eq=False)
class Choices:
    """N questions, S sequences in all.

    Attributes:
        flat: the sequences, those of one question behind one another.
        starts: (N + 1,) where each question begins among them.
        gold: (N,) which choice is right.
    """

    flat: Flat
    starts: Tensor
    gold: Tensor

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def lengths(self) -> Tensor:
        return self.flat.starts[self.starts].diff()

    @property
    def lost(self) -> int:
        return 0

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives of all choices; ``choices`` (B, C) their places in it, −1 for none; labels."""
        count = self.starts.diff()[rows]
        column = torch.arange(int(count.max()))
        real = column < count.unsqueeze(1)
        sequences = (self.starts[rows].unsqueeze(1) + column)[real]
        places = torch.full(real.shape, -1)
        places[real] = torch.arange(len(sequences))
        return {**self.flat.batch(sequences), "choices": places, "labels": self.gold[rows]}

    def answers(self, objective: Any, device: torch.device) -> Tensor:
        """(N,) the best-scored choice."""
        out = torch.empty(len(self), dtype=torch.long)
        for rows, batch in batches(self, device):
            out[rows] = objective.logits(batch).argmax(-1).cpu()
        return out


def encode_choices(rows: list[Row], backend: Tokenizer, pad: int) -> Choices:
    """Longer pairs are cut by the backend's truncation, the longer text first."""
    texts = [
        (f"{row['context']} {row['question']}" if row["context"] else row["question"], choice)
        for row in rows for choice in row["choices"]
    ]  # fmt: skip
    starts = edges([len(row["choices"]) for row in rows])
    return Choices(
        flat(backend.encode_batch(texts), pad), starts, torch.tensor([row["label"] for row in rows])
    )
