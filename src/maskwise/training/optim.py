"""Optimisers. ``rates`` has the learning rate.

``BatchedMuon`` updates all matrices of the same shape together. torch.optim.Muon updates
one matrix after another, in bfloat16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.models.families import encoder_of, output_layer
from maskwise.models.weights import blocks_of, parts
from maskwise.training.ranks import laid_out_as, local, whole
from maskwise.training.rates import rate_factor
from maskwise.training.settings import TrainingSettings


class Optimizers:
    """The optimisers of a run: AdamW, or AdamW and Muon for different parameters.

    Args:
        module: the objective, whose trainable parameters are updated.
        settings: the training settings, for the rates, betas and weight decay.
        rank, ranks: the rank of this process, and the number of ranks, which share Muon's work.
        end: the number of steps after which the rate has fallen; None for all steps.

    Attributes:
        members: the optimisers.

    Raises:
        MaskwiseError: Muon is chosen, but the model's layers have no trainable matrices.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: TrainingSettings,
        *,
        rank: int = 0,
        ranks: int = 1,
        end: int | None = None,
    ):
        self.settings = settings
        self.end = end
        matrices: list[Tensor] = []
        if settings.optimizer == "muon":
            matrices = hidden_matrices(module)
            if not matrices:
                raise MaskwiseError(
                    "optimizer muon needs trainable matrices in the model's layers",
                    got=type(model_of(module)).__name__,
                    do="use optimizer: adamw",
                )
        by_muon = set(matrices)
        decayed = []
        plain = []
        for parameter in module.parameters():
            if not parameter.requires_grad or parameter in by_muon:
                continue
            if parameter.ndim > 1:
                decayed.append(parameter)
            else:
                plain.append(parameter)
        # Weight decay would change the rows that ``old-rows`` freezes.
        decay = 0.0 if settings.freeze == "old-rows" else settings.weight_decay
        groups = [
            {"params": decayed, "weight_decay": decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        self.members: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            muon = BatchedMuon(
                matrices,
                compiled=settings.compile,
                rank=rank,
                ranks=ranks,
                lr=settings.muon_learning_rate,
                weight_decay=settings.weight_decay,
            )
            self.members.append(muon)

    def set_rate(self, step: int) -> float:
        """Set the learning rates for ``step``, and return the rate of AdamW."""
        s = self.settings
        factor = rate_factor(
            step,
            s.steps,
            warmup=s.warmup,
            decay=s.decay,
            decay_share=s.decay_share,
            end=self.end,
        )
        for member in self.members:
            for group in member.param_groups:
                # ``defaults`` has the highest rate, with which the optimiser was built.
                group["lr"] = member.defaults["lr"] * factor
        return s.learning_rate * factor

    def step(self, sound: Tensor | None = None) -> None:
        """Update the weights.

        Args:
            sound: a bool on the device. If False, no weight changes. The host does not wait for
                this value.
        """
        # Fused AdamW reads the attribute ``found_inf`` on the device. (torch's gradient scaler sets
        # the same attribute.)
        skipped = None if sound is None else (~sound).float()
        for member in self.members:
            member.found_inf = skipped  # type: ignore[attr-defined]
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)


def state_of(members: Sequence[torch.optim.Optimizer]) -> TensorDict:
    """Return the state of the optimisers as a flat dict of tensors, for saving without pickle."""
    flat = {}
    for number, member in enumerate(members):
        for index, entry in member.state_dict()["state"].items():
            for name, value in entry.items():
                flat[f"{number}/{index}/{name}"] = torch.as_tensor(value)
    return flat


def load_state(members: Sequence[torch.optim.Optimizer], flat: Tensors) -> None:
    """Load a state that ``state_of`` returned."""
    for m, member in enumerate(members):
        state: dict[int, TensorDict] = {}
        parameters: list[Tensor] = []
        for group in member.param_groups:
            parameters += group["params"]
        for key, value in flat.items():
            number, index, name = key.split("/", 2)
            if int(number) == m:
                state.setdefault(int(index), {})[name] = laid_out_as(value, parameters[int(index)])
        member.load_state_dict(
            {"state": state, "param_groups": member.state_dict()["param_groups"]}
        )


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Return the matrices that Muon trains: weights that map hidden states to hidden states.

    These are the linear layers in the encoder's blocks, and those in the prediction head of a
    language model, except for the output layer. (When AdamW trained those in the head, tiny models
    learned only the token frequencies, see docs/decisions/0004-laboratory.md.) AdamW trains
    embeddings and their projection, the output layer, poolers and classifiers.
    """
    # The shape of a matrix cannot decide this. For example, a hidden size may equal the number of
    # positions, or be smaller than the number of classes.
    linear = []
    for block in blocks_of(module):
        linear += parts(block, nn.Linear)
    model: Any = model_of(module)
    output = output_layer(model) if hasattr(model, "get_output_embeddings") else None
    if output is not None:
        known = {output, *encoder_of(model).modules()}
        linear += [layer for layer in parts(model, nn.Linear) if layer not in known]
    # AdamW trains linear layers that are also embeddings (tied weights). It also trains the two
    # factors of LoRA, because only their product maps hidden states to hidden states.
    others = {layer.weight for layer in parts(module, nn.Embedding)}
    others |= {weight for name, weight in module.named_parameters() if ".lora_" in name}
    matrices: dict[Tensor, None] = {}
    for layer in linear:
        if layer.weight.requires_grad and layer.weight not in others:
            matrices[layer.weight] = None
    return list(matrices)


def model_of(module: nn.Module) -> nn.Module:
    """Return the transformers model of an objective, or the module if it has no such model."""
    if hasattr(module, "config") or not hasattr(module, "model"):
        return module
    return module.model  # type: ignore[return-value]


class BatchedMuon(torch.optim.Muon):
    """A faster torch.optim.Muon, with the same state.

    Matrices of the same shape are updated together, and in single precision on a CPU. Of several
    ranks, each orthogonalises a share of the matrices and sends it to all others.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> weight.grad = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> BatchedMuon([weight], lr=1.0).step()  # a step changes all directions about as much
        >>> torch.allclose(weight.detach().abs().sum(1), torch.ones(2), atol=0.35)
        True
    """

    found_inf: Tensor | None = None
    """A scalar on the device, which ``Optimizers.step`` sets. If it is 1, the update is skipped."""

    turn: Callable[..., Tensor]
    """The function ``orthogonal``, compiled if requested."""

    def __init__(
        self,
        matrices: Sequence[Tensor],
        *,
        compiled: bool = False,
        rank: int = 0,
        ranks: int = 1,
        **options: Any,
    ):
        super().__init__(matrices, **options)
        self.rank = rank
        self.ranks = ranks
        self.turn = torch.compile(orthogonal, dynamic=False) if compiled else orthogonal

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, weights, grads, momenta)
            if not weights:
                # No matrix has a gradient, and torch's ``foreach`` functions refuse empty lists.
                continue
            momentum = group["momentum"]
            kept: float | Tensor = 1 - group["lr"] * group["weight_decay"]
            sound = None if self.found_inf is None else self.found_inf == 0
            if sound is not None:
                # To skip the update, the host would have to wait for ``sound``. Instead, make an
                # update that changes nothing: replace the gradient by the momentum, multiply the
                # weights by 1, and (in ``_update``) set the change to 0.
                for mean, grad in zip(
                    map(local, momenta),
                    map(local, grads),
                    strict=True,
                ):
                    torch.where(sound, grad, mean, out=grad)
                kept = torch.where(sound, kept, 1.0)
            torch._foreach_lerp_(momenta, grads, 1 - momentum)
            torch._foreach_mul_([*map(local, weights)], kept)
            updates = torch._foreach_lerp(grads, momenta, momentum)  # Nesterov's
            # Group matrices of the same shape. A matrix and a transposed one share a group.
            shapes = defaultdict(list)
            for weight, update in zip(weights, updates):
                shapes[tuple(sorted(weight.shape))].append((weight, update))
            for pairs in shapes.values():
                self._update(pairs, group, sound)

    def _update(
        self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any], sound: Tensor | None
    ) -> None:
        # If a matrix is sharded, every rank needs its whole update, and applies its own part.
        updates = [whole(update) for _, update in pairs]
        wide = torch.stack([u if u.shape[0] <= u.shape[1] else u.T for u in updates])
        # One batched product is much faster than many products of single matrices.
        for (weight, _), update in zip(pairs, self._turned(wide, group)):
            rows, columns = weight.shape
            if rows > columns:
                update = update.T
            scale = max(1.0, rows / columns) ** 0.5
            part = local(laid_out_as(update.to(weight.dtype), weight))
            if sound is not None:
                part.masked_fill_(~sound, 0.0)
            local(weight).add_(part, alpha=-group["lr"] * scale)

    def _turned(self, wide: Tensor, group: dict[str, Any]) -> Tensor:
        """Orthogonalise (N, n, m) matrices, which are the same on all ranks."""
        options = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if self.ranks == 1:
            return self.turn(wide, *options)
        share = -(-len(wide) // self.ranks)
        mine = wide[self.rank * share : (self.rank + 1) * share]
        # All ranks must send equally many matrices.
        mine = pad(mine, (0, 0, 0, 0, 0, share - len(mine)))
        turned = self.turn(mine, *options)
        gathered = turned.new_empty(self.ranks * share, *turned.shape[1:])
        dist.all_gather(list(gathered.split(share)), turned.contiguous())
        return gathered[: len(wide)]


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return roughly the nearest orthogonal matrices. Their singular values are from .7 to 1.2.

    Args:
        matrices: (N, n, m), N matrices with n ≤ m.
        coefficients: the coefficients of x, x³ and x⁵ in the Newton–Schulz polynomial.
        steps: the number of iterations.
        eps: the smallest norm by which a matrix is divided.
    """
    # Most CPUs emulate products in bfloat16, which take four times as long as in single precision.
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(
            x,
            torch.baddbmm(gram, gram, gram, beta=b, alpha=c),
            x,
            beta=a,
        )
    return x
