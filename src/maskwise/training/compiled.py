"""Compiled blocks, and forms of two layers from which the compiler makes faster kernels.

On a GPU, the time of a block that is not spent in matrix products and attention is spent moving
memory. Two of ModernBERT's layers move more than they need, and ``rearrange`` computes the same
formulas in another order (measured on an H200, per layer and step of 65,536 tokens):

- The gradients of the halves of a gated layer are concatenated. The compiled kernel computes both
  halves at every place and then selects one. With a matrix product for each half, it takes 198 µs
  instead of 545.
- Rotary embeddings are computed in the order (B, H, L, D), and then copied for attention, which
  reads (B, L, H, D). The copies took 98 µs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from inspect import unwrap
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from maskwise.base.errors import MaskwiseError
from maskwise.models.attention import DocumentIds, MaskKey, calls, with_globals

Forward = Callable[..., Any]

_last_model: list[str] = []
"""What the code that the compiler keeps depends on; empty before the first compilation."""

GATED = ("ModernBertMLP", "ModernBertDecoderMLP")
"""Layers Wo(act(a) · b), in which one matrix, ``Wi``, computes a and b side by side."""

ROTARY = (
    "ModernBertAttention",
    "ModernBertDecoderAttention",
    "EuroBertAttention",
    "NomicBertAttention",
)
"""Attention layers that call ``apply_rotary_pos_emb``."""


def compiled_block(block: nn.Module, forward: Forward) -> Forward:
    """Return the forward method of a block, compiled for training.

    All blocks of the same class share their compiled code. Torch keeps at most eight versions of
    the code, and raises an error if more are needed (see ``forget_other_models``). To avoid new
    versions, lengths are dynamic, evaluation is not compiled, and blocks get masks that are already
    computed. Different kinds of layers still need different versions; ModernBERT has three kinds.
    """
    fast = torch.compile(forward, dynamic=True, fullgraph=True)
    masked_by: list[tuple[MaskKey, ...]] = []

    def fast_in_training(*inputs: object, **options: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        documents: DocumentIds | None = options.get("documents")
        if documents is None:
            return fast(*inputs, **options)
        if masked_by:
            options["documents"] = documents.with_masks(masked_by[0])
            return fast(*inputs, **options)
        # The first pass is not compiled. It records which masks this block needs.
        options["documents"] = documents.with_masks(())
        output = forward(*inputs, **options)
        masked_by.append(options["documents"].masked_by)
        return output

    return fast_in_training


def forget_other_models(model: nn.Module, settings: Mapping[str, object]) -> None:
    """Let the compiler forget what it has compiled, if the model is not like the last one.

    The blocks of all models of a process share the eight versions of their code. A process that
    trains models of several sizes, such as a worker of a study, would soon need more.

    Args:
        model: the model that is compiled next.
        settings: what the compiled code depends on beside the model.
    """
    configs = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}
    like = [str(model), *map(str, configs.values()), str(settings)]
    if _last_model and _last_model != like:
        torch.compiler.reset()
    _last_model[:] = like


def require_compiler(device: torch.device) -> None:
    """Raise ``MaskwiseError`` if the compiler that ``torch.compile`` needs is not installed."""
    program = os.environ.get("CXX") or "g++"
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        program = "triton"
    elif shutil.which(program):
        return
    raise MaskwiseError(
        f"training.compile needs {program}, which is not installed",
        do="install it, or set training.compile: false",
    )


# Rearranged layers


def rearrange(blocks: Iterable[nn.Module]) -> None:
    """Replace the forward methods of gated layers and of attention with rotary embeddings.

    The results are the same up to rounding. ``families.patched`` undoes the change.
    """
    for block in blocks:
        for layer in block.modules():
            # A wrapped matrix, such as LoRA's, must run as it is.
            if type(layer).__name__ in GATED and type(layer.Wi) is nn.Linear:
                layer.forward = MethodType(_gated, layer)
            elif type(layer).__name__ in ROTARY and calls(
                unwrap(type(layer).forward), "apply_rotary_pos_emb"
            ):
                kind: Any = type(layer)
                rotating = _rotating_in_place(kind)
                layer.forward = MethodType(rotating, layer)


def _gated(layer: Any, states: Tensor) -> Tensor:
    """The forward pass of a gated layer, with one product for each half of its first matrix.

    The gradients of the halves are then separate tensors, and are never concatenated.
    """
    weights = layer.Wi.weight.chunk(2)
    biases = (None, None) if layer.Wi.bias is None else layer.Wi.bias.chunk(2)
    passed, gate = (linear(states, *half) for half in zip(weights, biases, strict=True))
    out: Tensor = layer.Wo(layer.drop(layer.act(passed) * gate))
    return out


@cache
def _rotating_in_place(kind: Any) -> FunctionType:
    """Return the forward method of a class of attention that rotates tokens as they lie in memory.

    All layers of a class get the same function, because the compiler tells blocks apart by it.
    """
    forward = unwrap(kind.forward)
    rotate = unwrap(forward.__globals__["apply_rotary_pos_emb"])

    def rotated(
        query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        # Attention reads tokens in the order (B, L, H, D), so other orders would be copied.
        rows = query.transpose(1, 2), key.transpose(1, 2)
        query, key = rotate(*rows, cos, sin, unsqueeze_dim=2)
        return query.transpose(1, 2), key.transpose(1, 2)

    return with_globals(forward, apply_rotary_pos_emb=rotated)
