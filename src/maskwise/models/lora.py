"""LoRA, by the library peft: low-rank updates are trained instead of the weights.

A linear layer W in a block becomes W + (alpha / rank) · B A, and only A, B and the heads are
trained. Gradients and optimiser states are much smaller, so that a large encoder fits on a small
GPU. Forward passes cost the same. Checkpoints contain the sum, so that a checkpoint can be loaded
without peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maskwise.base.errors import MaskwiseError, require_library, whole_number
from maskwise.base.specs import build
from maskwise.masking.draws import fold
from maskwise.models.families import encoder_of, require_kind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LORA_NAME = "default"
"""The name of the updates in peft, which is peft's default."""


@dataclass(frozen=True)
class Lora:
    """The LoRA settings, written as ``lora(…)`` (Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        rank: the rank of the updates.
        alpha: updates are multiplied by alpha / rank.
        dropout: the dropout rate of the inputs of the updates.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        whole_number("lora: rank", self.rank, least=1)
        whole_number("lora: alpha", self.alpha, least=1)
        if not 0 <= self.dropout < 1:
            raise MaskwiseError(
                "lora: dropout is not valid", got=self.dropout, allowed="at least 0, below 1"
            )

    def check(self, config: PreTrainedConfig) -> None:
        """Raise ``MaskwiseError`` unless the model is an encoder and peft is installed."""
        do = "leave out model.adapter: LoRA is supported for encoders only"
        require_kind(config, "encoder", use="model.adapter", do=do)
        require_library("peft", use="model.adapter")

    def add(self, model: PreTrainedModel, *, seed: int) -> None:
        """Add updates to the linear layers of the encoder's blocks, and freeze all its weights.

        Args:
            model: the model, which is changed in place.
            seed: the seed for A. B starts at 0, so the model's outputs do not change at first.
        """
        self.check(model.config)
        # The import of peft takes seconds, and few recipes need it.
        from peft import LoraConfig, inject_adapter_in_model

        encoder = encoder_of(model)
        # Layers outside blocks are left out, because some, such as ESM's contact head, may not
        # affect the loss.
        targets = []
        for name, part in encoder.named_modules():
            in_block = any(step.isdigit() for step in name.split("."))
            if in_block and isinstance(part, nn.Linear):
                targets.append(name)
        if not targets:
            raise MaskwiseError(
                "this model has no linear layers in its blocks, to which model.adapter adds",
                got=model.config.model_type,
                do="leave out model.adapter",
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
        )
        with torch.random.fork_rng():
            torch.manual_seed(fold(seed, 0x10A))
            inject_adapter_in_model(config, encoder, LORA_NAME)


def lora(spec: str) -> Lora:
    """Parse a setting such as ``lora(rank=8, dropout=0.1)``.

    >>> lora("lora(rank=8)")
    Lora(rank=8, alpha=32, dropout=0.0)
    """
    return build("adapter", spec, {"lora": Lora})


def merged_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the same model without LoRA: the updates are added to the weights."""
    whole = dict(state)
    for name, part in model.named_modules():
        if not hasattr(part, "base_layer"):
            continue
        down = whole.pop(f"{name}.lora_A.{LORA_NAME}.weight")
        up = whole.pop(f"{name}.lora_B.{LORA_NAME}.weight")
        weight = whole.pop(f"{name}.base_layer.weight")
        whole[f"{name}.weight"] = weight + part.scaling[LORA_NAME] * (up @ down)
        if part.base_layer.bias is not None:
            whole[f"{name}.bias"] = whole.pop(f"{name}.base_layer.bias")
    return whole
