"""The weights of a model: whether they fit and are finite, and how many multiply each token.

The work of a training follows from the latter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of, encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

QUIET = 0.1
"""Initial weight of a new head's layer norm. At 1 the noise of a random head costs 0.4 nats more
than word frequencies on a sentence encoder (benchmarks/recipes/continual-minilm.yaml)."""

CROSSED = re.compile(r"(encoder_attn|EncDecAttention|cross_attn)\.[kv](_proj)?\.")
"""Parameters that make keys and values of cross-attention: BART's, T5's and T5Gemma's names."""


def memory() -> int | None:
    """Bytes of this machine's memory; None: unknown, as on Windows."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_size(model: PreTrainedModel) -> None:
    """Raise if a model's float32 weights exceed this machine's memory."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    size = 4 * weights + buffers
    here = memory()
    if here is not None and size > here:
        what = "the model does not fit into memory"
        got = f"{weights:,} weights, {size / 1e9:,.0f} GB"
        raise MaskwiseError(what, got=got, allowed=f"{here / 1e9:,.0f} GB", do="make it smaller")


def check_finite(weights: Mapping[str, Tensor], name: object) -> None:
    """Raise if weights are NaN or infinite, as after divergence; takes .1 s for a gigabyte."""
    for key, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # The extremes tell: a sum may overflow, and a mask of all weights takes memory.
        extremes = torch.stack(tensor.aminmax())
        if not extremes.isfinite().all():
            what = f"the weights of {str(name)!r} are not finite"
            do = "take another checkpoint: the training of this one diverged"
            raise MaskwiseError(what, got=key, do=do)


def quieten(model: PreTrainedModel, new: list[str]) -> None:
    """Scale the norms among new weights to ``QUIET``, so that a head begins near its bias."""
    with torch.no_grad():
        for name in new:
            if name.endswith("weight") and model.get_parameter(name).ndim == 1:
                model.get_parameter(name).fill_(QUIET)


def multiplied_weights(module: nn.Module, *, held: bool = False) -> int:
    """Weights of a module without its embeddings, which are looked up.

    Args:
        held: count only those that are not trained.
    """
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    count = 0
    for weight in module.parameters():
        left_out = id(weight) in tables or (held and weight.requires_grad)
        if not left_out:
            count += weight.numel()
    return count


def encoder_weights(model: PreTrainedModel) -> int:
    """Weights that multiply each token: the encoder's, without its embeddings."""
    return multiplied_weights(encoder_of(model))


def held_share(model: PreTrainedModel) -> float:
    """The share of ``encoder_weights`` that LoRA leaves as they are; 0 without it."""
    encoder = encoder_of(model)
    return multiplied_weights(encoder, held=True) / max(1, multiplied_weights(encoder))


def head_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights that multiply each target: the prediction head's, and those tied to embeddings."""
    body = list(encoder_of(model).parameters())
    if adapter_of(model.config).kind == "encoder-decoder":
        body += model.get_decoder().parameters()
    inside = {id(weight) for weight in body}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    own = sum(weight.numel() for weight in outside)
    output = model.get_output_embeddings()
    if output is None or id(output.weight) not in inside:
        return own, 0
    return own, output.weight.numel()


def decoder_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights of a decoder, without embeddings, that multiply (each target, each token read).

    The latter make the keys and values of cross-attention.
    """
    decoder = model.get_decoder()
    crossed = 0
    for name, weight in decoder.named_parameters():
        if CROSSED.search(name):
            crossed += weight.numel()
    return multiplied_weights(decoder) - crossed, crossed


def attention_work(config: PreTrainedConfig, tokens: float, squares: float) -> float:
    """Multiplications of an encoder's attention within documents, in a forward pass.

    2 · H for each layer and each pair of tokens that attend to each other: the scores, and the
    weighted sums. In a sliding layer a token attends to at most its window; for documents of mixed
    lengths this is a slight overestimate.

    Args:
        tokens: that are read.
        squares: Σ length² over their documents.
    """
    if "encoder" in config.sub_configs:  # T5Gemma describes its encoder apart
        config = config.encoder
    pairs = config.num_hidden_layers * squares
    # ModernBERT and T5Gemma alternate full and sliding attention; most families name no layers.
    sliding = (getattr(config, "layer_types", None) or []).count("sliding_attention")
    if sliding:
        width = 2 * (config.sliding_window or 0) + 1
        pairs += sliding * (min(squares, tokens * width) - squares)
    return 2.0 * config.hidden_size * pairs
