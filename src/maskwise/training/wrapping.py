"""Changes of models for training: activation checkpointing, compilation, a stream in bf16.

All of them change the *blocks* of a model, which are its repeated layers. The blocks have most of
the weights and activations. The changes affect results at most by rounding, and last as long as the
context ``wrapped``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from maskwise.base.errors import MaskwiseError
from maskwise.models.attention import quicken
from maskwise.models.families import encoder_of, patched, separate_all
from maskwise.models.loading import vocabulary_tables
from maskwise.models.weights import blocks_of, parts
from maskwise.objectives.base import Objective, Precision
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.training.compiled import (
    compiled_block,
    forget_other_models,
    rearrange,
    require_compiler,
)
from maskwise.training.settings import TrainingSettings

Forward = Callable[..., Any]


# Blocks


@contextmanager
def wrapped(
    objective: Objective, settings: TrainingSettings, precision: Precision, *, bf16: bool = False
) -> Iterator[None]:
    """A context in which an objective is prepared for training. Afterwards it is as before.

    Depending on the settings, the blocks and the head are compiled, and activations are
    checkpointed. Attention and dropout are replaced by faster versions for the device.

    Args:
        objective: the objective, which is changed in place.
        settings: the training settings.
        precision: the precision of training, which evaluations shall use too.
        bf16: whether this precision is bf16 autocast.

    Raises:
        MaskwiseError: there is no compiler, the model has no blocks, or nothing is left to train.
    """
    duck_shapes = symbolic_shapes.use_duck_shape
    hooks: list[RemovableHandle] = []
    with patched(objective):
        try:
            if settings.freeze == "encoder":
                freeze_encoder(objective)
            if settings.freeze == "old-rows":
                hooks = freeze_old_rows(objective)
            _wrap(objective, settings, precision, bf16=bf16)
            yield
        finally:
            symbolic_shapes.use_duck_shape = duck_shapes
            for hook in hooks:
                hook.remove()


def _wrap(
    objective: Objective, settings: TrainingSettings, precision: Precision, *, bf16: bool
) -> None:
    """Change an objective as ``wrapped`` describes."""
    for part in objective.modules():
        if isinstance(part, Objective):
            part.precision = precision
    # With the attention of maskwise, the host does not wait for masks. It is also faster on a CPU.
    separate_all(objective)
    if next(objective.parameters()).device.type == "cpu" and not settings.compile:
        quicken(objective)
    halved = settings.residual == "bf16" and bf16
    if not (halved or settings.compile or settings.activation_checkpointing):
        return
    blocks = blocks_of(objective)
    if not blocks:
        raise MaskwiseError(
            "residual, compile and activation_checkpointing need a model with a list of layers",
            got=type(getattr(objective, "model", objective)).__name__,
            do="remove these settings of training",
        )
    if halved:
        halve_residual(objective, blocks)
    if settings.compile:
        device = next(objective.parameters()).device
        require_compiler(device)
        also = settings.model_dump(include={"freeze", "residual", "activation_checkpointing"})
        forget_other_models(objective, {"device": device, "bf16": bf16, **also})
        if device.type == "cuda":
            rearrange(blocks)
        # With duck shapes, torch assumes that two sizes that are equal once are always equal. If a
        # row were as long as the hidden size once, its length would not be dynamic.
        symbolic_shapes.use_duck_shape = False
    for block in blocks if settings.compile or settings.activation_checkpointing else ():
        # Compile first, so that checkpointing repeats the compiled forward pass.
        forward: Forward = block.forward
        if settings.compile:
            forward = compiled_block(block, forward)
        if settings.activation_checkpointing:
            forward = _recomputed(block, forward)
        block.forward = forward
    for head in parts(objective, MaskedLanguageModelling) if settings.compile else ():
        head.compile_head()


def halve_residual(objective: Objective, blocks: Iterable[nn.Module]) -> None:
    """Keep the states between blocks, and the results of norms, in bf16 under bf16 autocast.

    Autocast lets norms return float32, and therefore all sums of the residual stream are float32.
    The kernels of norms also accept bf16, and compute means and variances in float32.
    """
    from transformers import PreTrainedModel

    inside: dict[nn.Module, None] = {}
    for model in parts(objective, PreTrainedModel):
        inside |= dict.fromkeys(encoder_of(model).modules())
    for block in blocks:
        inside |= dict.fromkeys(block.modules())
        # Without a norm after the embeddings, the stream would begin in float32.
        block.forward = MethodType(_reading_bf16(block.forward), block)
    for part in inside:
        if isinstance(part, nn.LayerNorm):
            part.forward = MethodType(_norm_in_bf16, part)  # type: ignore[method-assign]
        elif type(part).__name__.endswith("Norm"):
            # Families have RMS norms of their own, which compute in float32.
            part.forward = MethodType(_returning_bf16(part.forward), part)


def _reading_bf16(forward: Forward) -> Forward:
    def read(block: nn.Module, states: Tensor, *inputs: object, **options: object) -> Any:
        return forward(states.bfloat16(), *inputs, **options)

    return read


def _returning_bf16(forward: Forward) -> Forward:
    def compute(norm: nn.Module, states: Tensor) -> Tensor:
        result: Tensor = forward(states)
        return result.bfloat16()

    return compute


def _norm_in_bf16(norm: nn.LayerNorm, states: Tensor) -> Tensor:
    """The forward pass of a norm, with input and output in bf16."""
    weight, bias = (None if part is None else part.bfloat16() for part in (norm.weight, norm.bias))
    with torch.autocast(states.device.type, enabled=False):
        return layer_norm(states.bfloat16(), norm.normalized_shape, weight, bias, norm.eps)


def freeze_encoder(objective: Objective) -> None:
    """Freeze the encoder. If the output matrix is tied to the embeddings, it is frozen too.

    Raises:
        MaskwiseError: nothing is left to train.
    """
    for parameter in encoder_of(objective.model).parameters():
        parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        raise MaskwiseError(
            "nothing is left to train",
            got=type(objective.model).__name__,
            do="set training.freeze: none",
        )


def freeze_old_rows(objective: Objective) -> list[RemovableHandle]:
    """Freeze all weights but the rows of new tokens, whose ids are in ``model.new_rows``.

    Returns:
        The hooks that set the gradients of the other rows to 0. AdamW does not change a row whose
        gradient is always 0, if there is no weight decay.

    Raises:
        MaskwiseError: the model has no new tokens.
    """
    model: Any = objective.model
    new = getattr(model, "new_rows", [])
    if not new:
        raise MaskwiseError(
            "training.freeze=old-rows trains rows of new tokens, and this model has none",
            do="add new-tokens(500) to model.changes, or set another value of training.freeze",
        )
    for parameter in objective.parameters():
        parameter.requires_grad = False

    def only_new(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[new] = gradient[new]
        return kept

    hooks = []
    for table in vocabulary_tables(model):
        table.requires_grad = True
        hooks.append(table.register_hook(only_new))
    return hooks


def _recomputed(block: nn.Module, forward: Forward) -> Forward:
    """Return a forward method that stores only its inputs, and runs again in the backward pass."""

    def twice(*inputs: object, **options: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False, **options)
        return forward(*inputs, **options)

    return twice
