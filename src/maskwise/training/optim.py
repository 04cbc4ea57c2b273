"""Optimisers and the learning rate. The rate is a pure function of (step, steps): nothing of it needs saving."""

from __future__ import annotations

import math

import torch
from torch import nn

from maskwise.training.settings import TrainingSettings


def rate_factor(step: int, steps: int, *, warmup: float, decay: str) -> float:
    """The share of the peak learning rate in force at ``step`` of ``steps``; above 0 at every step.

    Args:
        warmup: share of the steps over which it rises.
        decay: linear, cosine or constant.
    """
    rise = warmup * steps
    up = min(1.0, (step + 1) / rise) if rise else 1.0
    rest = 1 - step / steps
    return up * {"linear": rest, "cosine": (1 - math.cos(math.pi * rest)) / 2, "constant": 1.0}[decay]


class Optimizers:
    """One or two torch optimisers, stepped together; the rate is set anew at every step.

    Args:
        module: whose parameters to train.
        settings: rates, betas, decay.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings):
        self.settings = settings
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = hidden_matrices(module) if settings.optimizer == "muon" else []
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        decayed = [p for p in rest if p.ndim > 1]
        plain = [p for p in rest if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.members: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=settings.betas, fused=True)
        ]
        self.peaks = [settings.learning_rate]
        if matrices:
            rate = settings.muon_learning_rate
            self.members.append(torch.optim.Muon(matrices, lr=rate, weight_decay=settings.weight_decay))
            self.peaks.append(rate)

    def set_rate(self, step: int) -> float:
        """Set the rates for ``step``; returns AdamW's."""
        s = self.settings
        factor = rate_factor(step, s.steps, warmup=s.warmup, decay=s.decay)
        for member, peak in zip(self.members, self.peaks, strict=True):
            for group in member.param_groups:
                group["lr"] = peak * factor
        return self.peaks[0] * factor

    def step(self) -> None:
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """All state as flat names and tensors, so that it can be saved without pickle."""
        return {
            f"{m}/{index}/{name}": torch.as_tensor(value)
            for m, member in enumerate(self.members)
            for index, entry in member.state_dict()["state"].items()
            for name, value in entry.items()
        }

    def load_state(self, flat: dict[str, torch.Tensor]) -> None:
        """The inverse of ``state``."""
        for m, member in enumerate(self.members):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in flat.items():
                number, index, name = key.split("/", 2)
                if int(number) == m:
                    state.setdefault(int(index), {})[name] = value
            member.load_state_dict({"state": state, "param_groups": member.state_dict()["param_groups"]})


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights that map hidden states to hidden states: what Muon is for. No embeddings, no output layers.

    An output layer is told by its width: a vocabulary (its weight is often the embedding's), or a few labels.
    """
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    sizes = {m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)}
    linear = [m for m in module.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    narrowest = min((m.in_features for m in linear), default=0)
    return [
        m.weight
        for m in linear
        if id(m.weight) not in looked_up and m.out_features not in sizes and m.out_features >= narrowest
    ]
