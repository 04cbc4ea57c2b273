"""What is put around a model while it trains: activations that are computed twice, compiled blocks,
shards.

All three work on the *blocks* of a model, in which most of its weights and activations are. None of
them changes what is computed, but for the last bits, and none is left on the model when the
training has ended, except that sharded weights stay sharded: ``gathered`` makes whole tensors of
them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskwise.attention import quicken, restore, separate
from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of
from maskwise.objectives import Objective
from maskwise.objectives.base import Precision
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.training.settings import TrainingSettings

if TYPE_CHECKING:  # seconds to import: the functions below import them where they need them
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_meshes: list[DeviceMesh] = []
Result = TypeVar("Result")
Forward = Callable[..., Any]

ACCELERATE = "ACCELERATE_USE_FSDP"
"""The variable by which ``accelerate launch --use_fsdp`` says that weights shall be sharded."""


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of all encoders and decoders in a module: the members of the outermost lists of
    modules in them.
    """
    from transformers import PreTrainedModel

    models = [m for m in module.modules() if isinstance(m, PreTrainedModel)]
    lists = {id(m): m for model in models for m in model.modules() if isinstance(m, nn.ModuleList)}
    inside = {id(m) for members in lists.values() for block in members for m in block.modules()}
    blocks = {id(b): b for key, members in lists.items() if key not in inside for b in members}
    return list(blocks.values())


# Blocks that are computed in another way
# ------------------------------------------------------------------------


def wrap(objective: Objective, settings: TrainingSettings, precision: Precision) -> None:
    """Compile the blocks and the head, and compute activations twice, as the settings say; let
    nothing take longer than it must on this device, and judge at the ``precision`` of training.
    ``unwrap`` undoes it.

    Raises:
        MaskwiseError: there is no compiler; a model without blocks.
    """
    from transformers import PreTrainedModel

    for part in objective.modules():
        if isinstance(part, Objective):
            part.precision = precision
        if isinstance(part, PreTrainedModel) and adapter_of(part.config).separates:
            separate(part)  # makes masks without a look, and has its own attention on a CPU
    if next(objective.parameters()).device.type == "cpu" and not settings.compile:
        quicken(objective)
    if not (settings.compile or settings.activation_checkpointing):
        return
    blocks = blocks_of(objective)
    if not blocks:
        got = type(getattr(objective, "model", objective)).__name__
        what = (
            "compile and activation_checkpointing work on the blocks of a model, and there are none"
        )
        raise MaskwiseError(what, got=got, do="set both to false")
    if settings.compile:
        require_compiler(next(objective.parameters()).device)
    for block in blocks:
        forward: Forward = block.forward
        if settings.compile:
            forward = torch.compile(forward)
        if settings.activation_checkpointing:
            forward = _recomputed(block, forward)
        block.forward = forward
    for part in objective.modules() if settings.compile else ():
        if isinstance(part, MaskedLanguageModelling):
            part.compile_head()


def unwrap(objective: nn.Module) -> None:
    """Leave the model as it was before ``wrap``."""
    restore(objective)
    # The forward passes of the objective itself are Accelerate's, which casts inside it and never
    # takes it off.
    for part in (objective, *blocks_of(objective)):
        part.__dict__.pop("forward", None)
        part.__dict__.pop("_original_forward", None)
    for part in objective.modules():
        for name in ("compiled", "precision"):
            part.__dict__.pop(name, None)


def _recomputed(block: nn.Module, forward: Forward) -> Forward:
    """A forward pass that keeps its inputs alone, and is computed again in the backward pass, with
    the same dropout.
    """

    def twice(*inputs: Any, **options: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False, **options)
        return forward(*inputs, **options)

    return twice


def require_compiler(device: torch.device) -> None:
    """
    Raises:
        MaskwiseError: what ``torch.compile`` needs for this device is not installed.
    """
    program = os.environ.get("CXX") or "g++"
    if device.type != "cpu" and importlib.util.find_spec("triton") is None:
        program = "triton"
    elif shutil.which(program):
        return
    what = f"training.compile needs {program}, which is not installed"
    raise MaskwiseError(what, do="install it, or set training.compile: false")


# Shards
# ----------------------------------------------------------------------------------------------------------


class Sharded(nn.Module):
    """An objective whose weights, gradients and optimiser states are shared out among the ranks
    (FSDP2).

    A block's weights are gathered before it computes and let go afterwards, forwards and backwards.
    What is not in a block (embeddings, heads) is one more part, gathered for as long as a step
    takes.

    Args:
        objective: on its device, not yet with optimisers: its parameters are replaced.

    Raises:
        MaskwiseError: the weights are still whole on every rank.
    """

    def __init__(self, objective: nn.Module, device: torch.device, ranks: int):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().__init__()
        self.objective = objective
        mesh = init_device_mesh(device.type, (ranks,))
        _meshes.append(mesh)
        for block in blocks_of(objective):
            fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        register_fsdp_forward_method(self, "within")
        here = sum(local(p).numel() for p in self.parameters())
        whole = sum(p.numel() for p in self.parameters())
        if ranks > 1 and here > whole / 2 + whole / ranks:
            raise MaskwiseError(
                "the weights were not sharded", got=f"{here:,} of {whole:,} on one rank"
            )

    def forward(self, batch: Any) -> Any:
        return self.objective(batch)

    def within(self, function: Callable[[], Result]) -> Result:
        """Call a function that computes with the model, and does not train it."""
        return function()


def forget_meshes() -> None:
    """Let go of the process groups that sharded models used: torch's caches keep the meshes, and
    these the groups.
    """
    while _meshes:
        getattr(_meshes.pop(), "_pg_registry", {}).clear()


def asked_to_shard(settings: TrainingSettings, ranks: int) -> bool:
    """Whether weights shall be shared out: ``training.shard``, or ``accelerate launch --use_fsdp``."""
    return ranks > 1 and (settings.shard or os.environ.get(ACCELERATE, "").lower() == "true")


@contextmanager
def without_fsdp_of_accelerate() -> Iterator[None]:
    """Accelerate shards on accelerators alone, and on CPUs it says nothing and copies: here
    ``Sharded`` does it.
    """
    before = os.environ.pop(ACCELERATE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[ACCELERATE] = before


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is shared out among ranks."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor this rank has."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank calls this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors; every rank calls this, in the same order.

    Args:
        keep: whether this rank wants them. The others get none, so that one tensor at a time is
            whole on them.
    """
    found = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if is_sharded(tensor) else tensor
        if keep:
            found[name] = value.detach()
    return found


def laid_out_as(value: Tensor, other: Tensor) -> Tensor:
    """A tensor that every rank has, shared out as another of its shape."""
    if not is_sharded(other) or is_sharded(value) or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def distinct(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module by name, tied weights once: safetensors stores no tensor under two
    names.
    """
    seen: set[int] = set()
    kept = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor.detach()
    return kept


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a module, sharded or not; second names of tied weights need not be
    there.
    """
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in weights.items():
            state[name].copy_(laid_out_as(value, state[name]))
