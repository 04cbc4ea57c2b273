"""The weights of a model: checks of their number and values, counts for FLOPs, and LoRA."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError, require_library, whole_number
from maskwise.families import adapter_of, encoder_of, require_kind, window_of
from maskwise.keys import fold
from maskwise.specs import build

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

QUIET = 0.1
"""The initial weight of a new head's layer norm. At 1, the noise of a random head made the loss of
a sentence encoder 0.4 nats worse than word frequencies (benchmarks/recipes/continual-minilm.yaml).
"""

CROSSED = re.compile(r"(encoder_attn|EncDecAttention|cross_attn)\.[kv](_proj)?\.")
"""The keys' and values' parameters in cross-attention, as BART, T5 and T5Gemma name them."""

PARTS = (
    *("labels", "layers", "experts", "groups", "group_num"),
    *("blocks", "block_sizes", "block_repeats", "networks", "ngram"),
)
"""Suffixes of configuration fields that count parts of a model; their upper limits are below."""
MOST_PARTS = 10_000
MOST_LABELS = 1_000_000

Part = TypeVar("Part", bound=nn.Module)


def memory() -> int | None:
    """The size of this machine's memory in bytes; None if it is unknown, as on Windows."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_counts(fields: Mapping[str, Any]) -> None:
    """Raise if a configuration, or a configuration in it, has more parts than ``MOST_PARTS``.

    Transformers would build all parts before any other check, and a billion layers take forever.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            check_counts(value)
        if not name.endswith(PARTS):
            continue
        most = MOST_LABELS if name.endswith("labels") else MOST_PARTS
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > most:
                raise MaskwiseError(
                    f"a model cannot have this {name}", got=value, allowed=f"≤ {most:,}"
                )


def check_size(model: PreTrainedModel) -> None:
    """Raise if a model's float32 weights exceed this machine's memory."""
    weights = model.num_parameters()
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    size = 4 * weights + buffers
    here = memory()
    if here is not None and size > here:
        raise MaskwiseError(
            "the model does not fit into memory",
            got=f"{weights:,} weights, {size / 1e9:,.0f} GB",
            allowed=f"{here / 1e9:,.0f} GB",
            do="make it smaller",
        )


def check_finite(weights: Mapping[str, Tensor], name: object) -> None:
    """Raise if weights are NaN or infinite, as after divergence; takes 0.1 s per gigabyte."""
    for key, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # The extremes suffice. A sum may overflow, and a mask of all weights would need memory.
        extremes = torch.stack(tensor.aminmax())
        if not extremes.isfinite().all():
            raise MaskwiseError(
                f"the weights of {str(name)!r} are not finite",
                got=key,
                do="use a different checkpoint, because the training of this checkpoint diverged",
            )


def quieten(model: PreTrainedModel, new: list[str]) -> None:
    """Set the layer norms among new weights to ``QUIET``, so a new head begins near its bias."""
    with torch.no_grad():
        for name in new:
            if name.endswith("weight") and model.get_parameter(name).ndim == 1:
                model.get_parameter(name).fill_(QUIET)


def parts(module: nn.Module, kind: type[Part]) -> list[Part]:
    """All modules of one kind within a module; the module itself counts too."""
    return [part for part in module.modules() if isinstance(part, kind)]


def multiplied_weights(module: nn.Module, *, held: bool = False) -> int:
    """The number of weights in a module, except embeddings, which are looked up.

    Args:
        held: whether to count only weights that are not trained.
    """
    tables = {part.weight for part in parts(module, nn.Embedding)}
    count = 0
    for weight in module.parameters():
        left_out = weight in tables or (held and weight.requires_grad)
        if not left_out:
            count += weight.numel()
    return count


def encoder_weights(model: PreTrainedModel) -> int:
    """The number of weights that multiply each token: the encoder's, except embeddings."""
    return multiplied_weights(encoder_of(model))


def held_share(model: PreTrainedModel) -> float:
    """The share of ``encoder_weights`` that LoRA does not train; 0 without LoRA."""
    encoder = encoder_of(model)
    return multiplied_weights(encoder, held=True) / max(1, multiplied_weights(encoder))


def head_weights(model: PreTrainedModel) -> tuple[int, int]:
    """How many weights multiply each target: (weights of the head, weights tied to embeddings)."""
    # A tensor's hash is its identity.
    inside = set(encoder_of(model).parameters())
    if adapter_of(model.config).kind == "encoder-decoder":
        inside.update(model.get_decoder().parameters())
    head = 0
    for weight in model.parameters():
        if weight not in inside:
            head += weight.numel()
    output = model.get_output_embeddings()
    if output is None or output.weight not in inside:
        return head, 0
    return head, output.weight.numel()


def decoder_weights(model: PreTrainedModel) -> tuple[int, int]:
    """The numbers of a decoder's weights that multiply (each target, each token read).

    Embeddings are not counted. The second number counts the weights that compute the keys and
    values of cross-attention.
    """
    decoder = model.get_decoder()
    crossed = 0
    for name, weight in decoder.named_parameters():
        if CROSSED.search(name):
            crossed += weight.numel()
    return multiplied_weights(decoder) - crossed, crossed


def attention_work(config: PreTrainedConfig, tokens: float, squares: float) -> float:
    """The number of multiplications in an encoder's attention within documents, per forward pass.

    Each layer needs 2 · H multiplications for each pair of tokens that attend to each other, for
    the scores and the weighted sums. In a sliding layer, a token attends at most to its window; for
    documents of mixed lengths this gives a slight overestimate.

    Args:
        tokens: the number of tokens that are read.
        squares: Σ length² over their documents.
    """
    if "encoder" in config.sub_configs:  # T5Gemma configures its encoder separately
        config = config.encoder
    pairs = config.num_hidden_layers * squares
    # ModernBERT and T5Gemma alternate full and sliding attention.
    window, sliding = window_of(config)
    near = min(squares, tokens * (2 * window + 1))
    pairs += sliding * (near - squares)
    return 2.0 * config.hidden_size * pairs


# LoRA, from the library peft, trains low-rank updates in place of the weights. A linear layer W of
# a block becomes W + (alpha / rank) · B A, and only A, B and the heads are trained. Gradients and
# optimiser states become much smaller, so a large encoder fits on a small GPU; forward passes cost
# as much as before. Checkpoints contain the sum, so loading a checkpoint does not need peft.

LORA_NAME = "default"
"""Peft's default name for an adapter."""


@dataclass(frozen=True)
class Lora:
    """The setting ``lora(…)`` (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: the rank of the updates, which is the width between A and B.
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
            raise MaskwiseError(
                "lora: dropout is not valid", got=self.dropout, allowed="at least 0, below 1"
            )

    def check(self, config: PreTrainedConfig) -> None:
        """Raise unless updates can be added to a model with this configuration."""
        do = "leave out model.adapter: LoRA is supported for encoders only"
        require_kind(config, "encoder", use="model.adapter", do=do)
        require_library("peft", use="model.adapter")

    def add(self, model: PreTrainedModel, *, seed: int) -> None:
        """Replace the linear layers in the encoder's blocks, and freeze the rest of the encoder.

        Args:
            model: the model, which is changed in place; its class and head stay the same.
            seed: the seed for A; B starts at 0, so the model's outputs do not change at first.
        """
        self.check(model.config)
        # Imported here, because importing peft takes seconds and few recipes need peft.
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
            inject_adapter_in_model(config, encoder, LORA_NAME)


def lora(spec: str) -> Lora:
    """Read a setting such as ``lora(rank=8, dropout=0.1)``.

    >>> lora("lora(rank=8)")
    Lora(rank=8, alpha=32, dropout=0.0)
    """
    return build("adapter", spec, {"lora": Lora})


def merged(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the updates in a model's state to its weights; names are as in a model without LoRA."""
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
