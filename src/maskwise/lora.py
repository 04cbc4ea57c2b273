"""LoRA: train low-rank updates of an encoder's weights in place of the weights, by peft.

A linear layer W of a block becomes W + (alpha / rank) · B A, of which only A and B are trained,
besides the heads. Optimiser states and gradients shrink with them, which is what fits a large
encoder on a small card; forward passes do not. Checkpoints have the sum, so peft reads none.
Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError, require_library, whole_number
from maskwise.families import encoder_of, require_kind
from maskwise.keys import fold
from maskwise.specs import build

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "default"
"""Peft's own name for the only adapter of a model."""


@dataclass(frozen=True)
class Lora:
    """The setting ``lora(…)``.

    Attributes:
        rank: of the updates: the width between A and B.
        alpha: the updates are scaled by alpha / rank.
        dropout: the rate at which inputs of the updates are dropped.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        whole_number("lora: rank", self.rank, least=1)
        whole_number("lora: alpha", self.alpha, least=1)
        if not 0 <= self.dropout < 1:
            raise MaskwiseError("lora: dropout", got=self.dropout, allowed="from 0 to 1, not 1")

    def check(self, config: PreTrainedConfig) -> None:
        """Raise unless such updates can be added to a model of this configuration."""
        do = "leave out model.adapter: LoRA is for encoders here"
        require_kind(config, "encoder", use="model.adapter", do=do)
        require_library("peft", use="model.adapter")

    def add(self, model: PreTrainedModel, *, seed: int) -> None:
        """Replace the linear layers in the blocks of a model's encoder, and freeze the rest of it.

        Args:
            model: changed in place; its own class, names and head stay.
            seed: of A. B starts at 0, so that the model is the same until it is trained.
        """
        self.check(model.config)
        # Imported here, because it takes seconds and few recipes need it.
        from peft import LoraConfig, inject_adapter_in_model

        encoder = encoder_of(model)
        # Layers outside of blocks, such as ESM's contact head, may have no part in the loss.
        targets = []
        for name, part in encoder.named_modules():
            in_block = any(step.isdigit() for step in name.split("."))
            if in_block and isinstance(part, nn.Linear):
                targets.append(name)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
        )
        with torch.random.fork_rng():
            torch.manual_seed(fold(seed, 0x10A))
            inject_adapter_in_model(config, encoder, NAME)


def lora(spec: str) -> Lora:
    """Read a setting such as ``lora(rank=8, dropout=0.1)``.

    >>> lora("lora(rank=8)")
    Lora(rank=8, alpha=32, dropout=0.0)
    """
    return build("adapter", spec, {"lora": Lora})


def merged(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model with its updates added to the weights, by the model's own names."""
    whole = dict(state)
    for name, part in model.named_modules():
        if not hasattr(part, "base_layer"):
            continue
        down = whole.pop(f"{name}.lora_A.{NAME}.weight")
        up = whole.pop(f"{name}.lora_B.{NAME}.weight")
        weight = whole.pop(f"{name}.base_layer.weight")
        whole[f"{name}.weight"] = weight + part.scaling[NAME] * (up @ down)
        if part.base_layer.bias is not None:
            whole[f"{name}.bias"] = whole.pop(f"{name}.base_layer.bias")
    return whole
