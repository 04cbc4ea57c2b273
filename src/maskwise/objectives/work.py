"""How much work an objective is: weights, times the tokens that each of them works for.

The currency of ``study.costs``, which makes FLOPs of it. Every objective says its own in ``Objective.work``, so that
a cheap one (two classes a token) and a dear one (a generator beside the model) are not taken for the same. Left out:
what is looked up and not multiplied (embeddings), attention scores, activations, norms of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Work:
    """Weight uses of a forward pass.

    Attributes:
        body: of the encoder.
        head: of heads that are trained also where the encoder is frozen.
        tied: of a vocabulary matrix that is the encoder's embeddings, used as a head.
    """

    body: float
    head: float = 0
    tied: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.body + other.body, self.head + other.head, self.tied + other.tied)

    @property
    def all(self) -> float:
        return self.body + self.head + self.tied


def encoder_weights(model: Any) -> int:
    """Weights that work for every token: the encoder's, without its embeddings."""
    return _working(model.base_model)


def vocabulary_head(model: Any) -> tuple[int, int]:
    """(own, tied) weights that work for every target of a masked language model."""
    of_body = {id(p) for p in model.base_model.parameters()}
    out = model.get_output_embeddings()
    tied = out.weight.numel() if out is not None and id(out.weight) in of_body else 0
    return sum(p.numel() for p in model.parameters() if id(p) not in of_body), tied


def own_weights(objective: nn.Module, model: nn.Module) -> int:
    """Weights of an objective beside its model's."""
    return _working(objective) - _working(model)


def _working(module: nn.Module) -> int:
    tables = (m for m in module.modules() if isinstance(m, nn.Embedding))
    looked_up = {id(p): p.numel() for m in tables for p in m.parameters()}
    return sum(p.numel() for p in module.parameters()) - sum(looked_up.values())
