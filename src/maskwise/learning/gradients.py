"""Meta-gradients: the derivative of a loss after some training steps, with respect to the masks
that these training steps used.

    θ₁ = θ₀ − α₁·∇L₁(θ₀; m₁),   θ₂ = θ₁ − α₂·∇L₂(θ₁),   …,   J = outer(θ_K)

The inner steps change the model's parameters θ. Each inner step has a loss L, a step size α and, if
it is a step of masked pre-training, a mask m. J is the outer loss: the task loss after all K inner
steps. ``meta_gradient`` computes ∂J/∂m for each mask. A backward pass from the masks through the
masking policy then computes the gradient of the policy's parameters.

The algorithm starts with v = ∇outer(θ_K) and goes through the inner steps in reverse order. For
each step, it computes ∂J/∂m = −α·[∂ₘL(θ+εv) − ∂ₘL(θ−εv)] / 2ε, and then replaces v by
v − α·[∇L(θ+εv) − ∇L(θ−εv)] / 2ε, with ε = .01/‖v‖. The graph of a step is freed after the step.
Therefore the memory does not grow with the number of steps. Each step needs two more passes. If
another step follows a masked step, v must be updated: without the update, the cosine between the
result and the exact gradient was .74 at a step size of 1 (tests/test_gradients.py).

Tests compare the result with second-order autograd. They also compare it with the exact gradient,
for which all hard choices are enumerated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from maskwise.base.devices import TensorDict, Tensors
from maskwise.learning.relaxation import RelaxedDenoising
from maskwise.objectives.base import Objective

Parameters: TypeAlias = TensorDict
LossFunction: TypeAlias = Callable[[Parameters, Tensor | None], Tensor]
"""A function that maps (parameters, mask or None) to a scalar loss."""
SumInPlace: TypeAlias = Callable[[Iterable[Tensor]], None]
"""A function that sums tensors over all ranks, in place."""


def already_summed(tensors: Iterable[Tensor]) -> None:
    """Do nothing. On a single rank, tensors already equal their sum over all ranks."""


@dataclass(frozen=True)
class InnerStep:
    """A step of plain gradient descent, θ ← θ − rate·∇loss(θ, mask).

    Attributes:
        loss: the loss as a function of the parameters and the mask; see ``Losses.of``.
        rate: the step size.
        mask: (B, L) the mask from the policy; None if the loss has no mask.
    """

    loss: LossFunction
    rate: float
    mask: Tensor | None = None


@dataclass(frozen=True)
class MetaGradient:
    """The outer loss and its derivatives.

    Attributes:
        outer: the outer loss after all inner steps.
        inner: the loss of each inner step, before this step changes the parameters.
        masks: ∂outer/∂mask (B, L) for each inner step; None for a step without a mask.
    """

    outer: float
    inner: list[float]
    masks: list[Tensor | None]

    def surrogate(self, steps: Sequence[InnerStep]) -> Tensor:
        """Return Σ mask·∂outer/∂mask, whose gradient is the one of the outer loss; a scalar."""
        terms = []
        for step, gradient in zip(steps, self.masks, strict=True):
            if step.mask is not None and gradient is not None:
                terms.append((step.mask * gradient).sum())
        return torch.stack(terms).sum()


class Losses(nn.Module):
    """A model with two mean losses: the loss of masked tokens, and the loss of a task.

    Attributes:
        denoising: the loss of masked tokens, a module with ``forward(inputs, mask, budget)``.
        task: the loss of the task, for the same model or for a model that shares its encoder.
    """

    def __init__(self, denoising: RelaxedDenoising, task: Objective):
        super().__init__()
        self.denoising = denoising
        self.task = task

    def forward(self, batch: Tensors, mask: Tensor | None, budget: Tensor | None) -> Tensor:
        """Return the mean loss of masked tokens if there is a mask, else the mean task loss."""
        if mask is not None:
            return self.denoising(batch, mask, budget)
        loss = self.task(batch)
        if budget is None:
            budget = loss.divisor
        return loss.total / budget

    @cached_property
    def _names(self) -> dict[str, str]:
        """The name of each parameter in ``named_parameters``, keyed by its path in the module tree.

        A tied parameter (one tensor in several modules) has several paths, and all of them are
        keys. If both losses share a module, a parameter of this module has only one of its paths as
        a key, because ``functional_call`` does not restore a tensor that it has replaced twice.
        """
        names = {id(value): name for name, value in self.named_parameters()}
        paths = {}
        for prefix, module in self.named_modules():
            # ``named_modules`` visits a shared module only once, under its first path.
            parameters = module.named_parameters(prefix, recurse=False, remove_duplicate=False)
            for path, value in parameters:
                paths[path] = names[id(value)]
        return paths

    def of(self, batch: Tensors, budget: Tensor | None = None) -> LossFunction:
        """Return the loss on a batch as a function of the parameters and the mask.

        Args:
            batch: the inputs of the loss of masked tokens, or a batch of the task.
            budget: the number by which the summed loss is divided: the number of targets on all
                ranks. If None, the task loss is divided by the number of targets on this rank. The
                loss of masked tokens needs a budget.
        """

        def loss(theta: Parameters, mask: Tensor | None) -> Tensor:
            values = {path: theta[name] for path, name in self._names.items()}
            # ``values`` holds tied weights under every path, so torch must not tie them again.
            return functional_call(self, values, (batch, mask, budget), tie_weights=False)

        return loss


def meta_gradient(
    theta: Parameters,
    steps: Sequence[InnerStep],
    outer: LossFunction,
    *,
    agree: SumInPlace = already_summed,
) -> MetaGradient:
    """Differentiate the outer loss after all inner steps with respect to the masks of the steps.

    Args:
        theta: the initial parameters, keyed by name. They are not modified.
        steps: the inner steps, in order.
        outer: the outer loss. It is called with the parameters after all steps and without a mask.
        agree: a function that sums gradients over all ranks. It is needed only if each rank has a
            part of the batch.

    >>> theta = {"x": torch.tensor(1.0, dtype=torch.float64)}
    >>> mask = torch.tensor(1.0, dtype=torch.float64)
    >>> step = InnerStep(lambda theta, mask: mask * theta["x"] ** 2, rate=0.25, mask=mask)
    >>> # x − 2·rate·mask·x = .5; its square has the slope −2·.5·2·rate
    >>> made = meta_gradient(theta, [step], lambda theta, _: theta["x"] ** 2)
    >>> made.outer, round(float(made.masks[0]), 9)
    (0.25, -0.5)
    """
    # The length of a perturbation is as in DARTS (Liu et al. 2019, arXiv 1806.09055). A shorter
    # perturbation is more exact, but rounding errors grow as 1/ε. Only double precision is fine
    # enough for a shorter perturbation.
    double = next(iter(theta.values())).dtype == torch.float64
    epsilon = 0.001 if double else 0.01
    now = theta
    visited = []
    inner = []
    for step in steps:
        loss, slope, _ = slope_of(step.loss, now, step.mask, agree)
        visited.append(now)
        inner.append(loss)
        now = shifted(now, slope, -step.rate)
    value, v, _ = slope_of(outer, now, None, agree)
    of_masks: list[Tensor | None] = []
    for step in steps:
        of_masks.append(None if step.mask is None else torch.zeros_like(step.mask))
    for number in reversed(range(len(steps))):
        step = steps[number]
        norm = _norm(v)
        # If the norm is 0, all remaining gradients are 0. The condition is also true for NaN and
        # infinity.
        if not 0 < norm < math.inf:
            break
        # At step 0, the new v would be ∂J/∂θ₀, which is not needed.
        needs_v = number > 0
        if step.mask is None and not needs_v:
            break
        shift = epsilon / norm
        ahead = shifted(visited[number], v, shift)
        _, slope_ahead, mask_ahead = slope_of(step.loss, ahead, step.mask, agree, of_theta=needs_v)
        back = shifted(visited[number], v, -shift)
        _, slope_back, mask_back = slope_of(step.loss, back, step.mask, agree, of_theta=needs_v)
        factor = -step.rate / (2 * shift)
        if step.mask is not None:
            of_masks[number] = factor * (mask_ahead - mask_back)
        if needs_v:
            v = shifted(v, shifted(slope_ahead, slope_back, -1), factor)
    return MetaGradient(value, inner, of_masks)


def slope_of(
    loss: LossFunction,
    theta: Parameters,
    mask: Tensor | None,
    agree: SumInPlace = already_summed,
    *,
    of_theta: bool = True,
) -> tuple[float, Parameters, Tensor]:
    """Evaluate a loss and its gradients.

    Args:
        of_theta: whether the gradient with respect to the parameters is needed.

    Returns:
        The loss, summed over all ranks; its gradient with respect to the parameters, summed over
        all ranks (empty without ``of_theta``); and its gradient with respect to this rank's mask (a
        meaningless tensor if there is no mask).
    """
    leaves = {}
    for name, parameter in theta.items():
        leaves[name] = parameter.detach().requires_grad_(of_theta)
    if mask is not None:
        # Detached from the policy's graph, the mask is a leaf at which gradients stop.
        mask = mask.detach().requires_grad_()
    wanted: list[Tensor] = []
    if of_theta:
        wanted += leaves.values()
    if mask is not None:
        wanted.append(mask)
    # An evaluation turns gradients off.
    with exactly(next(iter(theta.values())).device), torch.enable_grad():
        value = loss(leaves, mask)
        # With ``materialize_grads``, a tensor that does not affect the loss has the gradient 0
        # instead of None.
        gradients = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
    slope = {}
    if of_theta:
        slope = dict(zip(leaves, gradients))
    total = value.detach().clone()
    agree([total, *slope.values()])
    return float(total), slope, gradients[-1]


@torch.no_grad()
def value_of(loss: LossFunction, theta: Parameters, mask: Tensor | None = None) -> float:
    """Return a loss on this rank."""
    with exactly(next(iter(theta.values())).device):
        return float(loss(theta, mask))


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """A context without bfloat16 and TF32, which would hide the difference of two gradients."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def descended(theta: Parameters, step: InnerStep) -> tuple[Parameters, float]:
    """Return the parameters after an inner step on this rank, and the loss before the step."""
    loss, slope, _ = slope_of(step.loss, theta, step.mask)
    return shifted(theta, slope, -step.rate), loss


def values_of(module: nn.Module) -> Parameters:
    """Return copies of a module's parameters, keyed by name; tied parameters appear once."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def shifted(theta: Parameters, direction: Tensors, factor: float) -> Parameters:
    """Return θ + factor·direction."""
    return {name: value + factor * direction[name] for name, value in theta.items()}


def _norm(tensors: Tensors) -> float:
    squares = [wide(tensor).square().sum() for tensor in tensors.values()]
    return float(torch.stack(squares).sum()) ** 0.5


def wide(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64, or to float32 on Apple's GPUs, which have no float64."""
    if tensor.device.type in ("cpu", "cuda"):
        return tensor.double()
    return tensor.float()
