"""Changes of models for training: activation checkpointing, compilation and sharding.

All three change the *blocks* of a model, which are its repeated layers. The blocks have most of the
weights and activations. The changes affect results at most by rounding. Activation checkpointing
and compilation last as long as the context ``wrapped``. Sharded weights stay sharded, but
``gathered`` returns whole tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint

from maskwise.attention import quicken
from maskwise.devices import TensorDict, Tensors
from maskwise.errors import MaskwiseError
from maskwise.families import encoder_of, patched, separate_all
from maskwise.objectives import Loss, Objective
from maskwise.objectives.base import Precision
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.training.compiled import compiled_block, rearrange, require_compiler
from maskwise.training.settings import TrainingSettings
from maskwise.weights import parts

# These imports take seconds, so functions import them on use.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_meshes: list[DeviceMesh] = []
Result = TypeVar("Result")
Forward = Callable[..., Any]

ACCELERATE = "ACCELERATE_USE_FSDP"
"""The environment variable that ``accelerate launch --use_fsdp`` sets."""


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of all models in a module: the layers in each outermost ``ModuleList``."""
    from transformers import PreTrainedModel

    blocks = chain.from_iterable(map(_listed, parts(module, PreTrainedModel)))
    return list(dict.fromkeys(blocks))


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _listed(child)


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
    with patched(objective):
        try:
            if settings.freeze == "encoder":
                freeze_encoder(objective)
            _wrap(objective, settings, precision, bf16=bf16)
            yield
        finally:
            symbolic_shapes.use_duck_shape = duck_shapes


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


def _recomputed(block: nn.Module, forward: Forward) -> Forward:
    """Return a forward method that stores only its inputs, and runs again in the backward pass."""

    def twice(*inputs: object, **options: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False, **options)
        return forward(*inputs, **options)

    return twice


# Copies


class Replicated(nn.Module):
    """An objective with a copy of its weights on every rank, to be wrapped for DDP.

    DDP averages gradients during the backward pass, but needs one of every weight that it knows.
    Otherwise it must search for unused weights in every step, which costs a walk over the graph, an
    exchange, and a wait for the device. Every step uses all weights of the blocks, but not all
    others: an objective may not use the head of the model, or the heads of other objectives.
    Therefore DDP knows only the blocks, and ``average`` averages the other gradients after the
    backward pass. Little overlap is lost, because those of the embeddings are complete only then.

    Args:
        objective: the objective, already on its device. All ranks get the weights and buffers of
            the first rank.
        ranks: the number of ranks.
    """

    def __init__(self, objective: Objective, ranks: int):
        super().__init__()
        self.ranks = ranks
        # A bound method is not a module, so this module has only the weights of the blocks.
        self.run = objective.__call__
        self.blocks = nn.ModuleList(blocks_of(getattr(objective, "model", objective)))
        inside = set(self.parameters())
        self.others = [weight for weight in objective.parameters() if weight not in inside]
        # DDP would copy only the weights that it knows.
        for tensor in (*objective.parameters(), *objective.buffers()):
            first = tensor.detach().contiguous()
            dist.broadcast(first, 0)
            tensor.detach().copy_(first)

    @property
    def overlaps(self) -> bool:
        """Whether the blocks are trained. DDP refuses modules without trainable weights."""
        return any(weight.requires_grad for weight in self.parameters())

    def forward(self, batch: object) -> Loss:
        return self.run(batch)

    def average(self) -> None:
        """Average the gradients of all weights outside the blocks over ranks.

        Weights without a gradient keep none, so optimisers skip them. All ranks have gradients of
        the same weights, because all of them use the same objective in a step.
        """
        gradients = [weight.grad for weight in self.others if weight.grad is not None]
        if not gradients:
            return
        line = torch.cat([gradient.flatten() for gradient in gradients])
        line /= self.ranks
        dist.all_reduce(line)
        parts = line.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


# Shards


class Sharded(nn.Module):
    """An objective with weights, gradients and optimiser states sharded over ranks (FSDP2).

    In the forward and in the backward pass, the weights of a block are gathered before the block
    runs and released afterwards. Weights outside the blocks (embeddings, heads) are gathered once
    per step, in single precision.

    Args:
        objective: the objective, already on its device. Build optimisers only afterwards, because
            sharding replaces the parameters.
        device: the device of this process.
        ranks: the number of ranks.
        bf16: whether training computes in bfloat16. If True, weights are gathered in bfloat16,
            which halves the traffic. Gradients are always summed in single precision.
    """

    def __init__(self, objective: nn.Module, device: torch.device, ranks: int, *, bf16: bool):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        super().__init__()
        self.objective = objective
        mesh = init_device_mesh(device.type, (ranks,))
        _meshes.append(mesh)
        policy = MixedPrecisionPolicy()
        if bf16:
            # FSDP2 then converts the inputs of blocks too, because a norm needs inputs and weights
            # of the same precision.
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in blocks_of(objective):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self, mesh=mesh)
        register_fsdp_forward_method(self, "within")

    def forward(self, batch: object) -> Loss:
        return self.objective(batch)

    def within(self, function: Callable[[], Result]) -> Result:
        """Call a function that evaluates the model. FSDP2 gathers the weights before the call."""
        return function()


def forget_meshes() -> None:
    """Release the process groups of sharded models. torch would keep them."""
    while _meshes:
        getattr(_meshes.pop(), "_pg_registry", {}).clear()


def asked_to_shard(settings: TrainingSettings, ranks: int) -> bool:
    """Return whether the user asked for sharding, by ``training.shard`` or by ``--use_fsdp``."""
    return ranks > 1 and (settings.shard or os.environ.get(ACCELERATE, "").lower() == "true")


@contextmanager
def without_fsdp_of_accelerate() -> Iterator[None]:
    """A context without the environment variable of ``--use_fsdp``.

    Accelerate must not see this variable, because its FSDP silently does not shard on CPUs.
    """
    before = os.environ.pop(ACCELERATE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[ACCELERATE] = before


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is sharded over ranks."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor. Every rank must call this function."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered(tensors: Tensors, *, keep: bool) -> TensorDict:
    """Gather whole tensors. Every rank must call this function with the same names in order.

    Args:
        tensors: the tensors, sharded or not.
        keep: whether to return the tensors. If False, the result is empty, and this rank never
            needs memory for more than one whole tensor.
    """
    found = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if is_sharded(tensor) else tensor
        if keep:
            found[name] = value.detach()
    return found


def laid_out_as(value: Tensor, other: Tensor) -> Tensor:
    """Shard a whole tensor in the same way as ``other``. Every rank must have the whole tensor.

    The tensor is returned unchanged if ``other`` is not sharded or has a different shape.
    """
    if not is_sharded(other) or is_sharded(value) or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def distinct(module: nn.Module) -> TensorDict:
    """Return the tensors of a module by name. Tied weights have one name, as safetensors needs."""
    names: dict[Tensor, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(tensor, name)
    return {name: tensor.detach() for tensor, name in names.items()}


def load_weights(module: nn.Module, weights: Tensors) -> None:
    """Copy whole tensors into a module, sharded or not. One name is enough for tied weights."""
    # With ``keep_vars``, the state has the parameters themselves, so copying changes the module.
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in weights.items():
            state[name].copy_(laid_out_as(value, state[name]))
