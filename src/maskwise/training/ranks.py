"""The ranks of a run: how they share weights, gradients and the work of an evaluation.

A rank is one of several processes that train one model. With DDP, each rank has a copy of all
weights (``Replicated``); with FSDP2, a shard (``Sharded``), and ``gathered`` returns whole tensors.
Gradients are averaged during the backward pass. ``Ranks`` divides evaluations and streams.

Elsewhere: the rows of a step are divided by ``MaskedSource.batches``, and sums of all ranks are
added by ``Engine.summed`` (counts) and ``loop.Exchange`` (what learners offer). Which rank this
process has is read by ``constants.rank_here``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskwise.base.constants import rank_here, ranks_here
from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.signals import leave_if_asked
from maskwise.masking.draws import Array
from maskwise.models.weights import blocks_of
from maskwise.objectives.base import Loss, Objective
from maskwise.training.settings import TrainingSettings

# These imports take seconds, so functions import them on use.
if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

Result = TypeVar("Result")

ACCELERATE = "ACCELERATE_USE_FSDP"
"""The environment variable that ``accelerate launch --use_fsdp`` sets."""

_meshes: list[DeviceMesh] = []


# Work that ranks divide


class Added(Protocol):
    """A function that sums numbers over ranks, in float64 (``Engine.added``)."""

    def __call__(self, numbers: Sequence[float], error: Exception | None, /) -> list[float]: ...


def numbers_of_one_rank(numbers: Sequence[float], error: Exception | None, /) -> list[float]:
    """Return the numbers of a single rank, or raise its error."""
    if error:
        raise error
    return [*numbers]


def kept(value: object, owner: int, /) -> Any:
    """Return the value of a single rank."""
    return value


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, as one of them sees them. By default, there is only one.

    Attributes:
        rank: this rank.
        count: the number of ranks.
        added: a function that sums numbers over ranks.
        sent: a function that returns, on every rank, the value of one rank (``Engine.sent``).

    >>> Ranks().divided([1, 2], lambda part: [float(part)] * (part + 1))
    [array([0.]), array([1., 1.])]
    """

    rank: int = 0
    count: int = 1
    added: Added = numbers_of_one_rank
    sent: Callable[[object, int], Any] = kept

    def divided(
        self, sizes: Sequence[int], work: Callable[[int], Sequence[float] | Array]
    ) -> list[Array]:
        """Do the parts of a work, each on one rank, and return the results of all parts.

        The results do not depend on the number of ranks: each number is sent by one rank, and all
        others add 0 to it. Every rank does equally many parts, because with FSDP2 all ranks must
        take part in each forward pass. Therefore the last part may be repeated, without effect.

        Args:
            sizes: how many numbers each part gives.
            work: a function that does the part with this index, and returns its numbers.

        Raises:
            Exception: ``work`` failed on a rank; see ``Engine.added``.
            AskedToLeave: a signal asks this process to end. Several ranks finish the work.
        """
        found = [np.zeros(size) for size in sizes]
        failure = None
        try:
            for first in range(0, len(sizes), self.count):
                if self.count == 1:
                    leave_if_asked()
                part = first + self.rank
                numbers = work(min(part, len(sizes) - 1))
                if part < len(sizes):
                    found[part][:] = numbers
        except Exception as error:
            failure = error
        flat = np.concatenate([np.zeros(0), *found]).tolist()
        together = np.array(self.added(flat, failure))
        ends = np.cumsum([0, *sizes])
        return [together[start:end] for start, end in pairwise(ends)]

    def made_by(self, owner: int, work: Callable[[], Result]) -> Result:
        """Call ``work`` on every rank, and return what it returns on the rank ``owner``.

        Raises:
            Exception: ``work`` failed on a rank; see ``Engine.added``.
        """
        if self.count == 1:
            return work()
        result = failure = None
        try:
            result = work()
        except Exception as error:
            failure = error
        self.added([], failure)
        received: Result = self.sent(result, owner)
        return received


ALONE = Ranks()


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


def copied(tensors: Tensors) -> TensorDict:
    """Copy tensors to the memory of the host."""
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return copies


def load_from_first(module: nn.Module, weights: Tensors) -> None:
    """Copy whole tensors of the first rank into a module on all ranks, sharded or not.

    Every rank must call this function. The other ranks may have no tensors.
    """
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in distinct(module):
            target = state[name]
            if rank_here():
                value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            else:
                value = weights[name].to(target.device)
            if ranks_here() > 1:
                dist.broadcast(value, 0)
            target.copy_(laid_out_as(value, target))


def load_weights(module: nn.Module, weights: Tensors) -> None:
    """Copy whole tensors into a module, sharded or not. One name is enough for tied weights."""
    # With ``keep_vars``, the state has the parameters themselves, so copying changes the module.
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in weights.items():
            state[name].copy_(laid_out_as(value, state[name]))
