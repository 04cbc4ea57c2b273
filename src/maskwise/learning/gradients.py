"""Meta-gradients: the derivative of a loss after steps of training by the masks of these steps.

    θ₁ = θ₀ − α₁·∇L₁(θ₀; m₁),   θ₂ = θ₁ − α₂·∇L₂(θ₁),   …,   J = outer(θ_K);   wanted: ∂J/∂m

The mask is differentiated, not the policy: a policy's own backward pass runs once, on the gradient
of its mask, and whatever made the mask is differentiated exactly. Two back-ends give the same
numbers (``BACKENDS``):

``exact``
    Autograd through the gradients. It holds the graph of every step, and attention must be the
    plain one (``MATH``), because fused attention has no second derivative.
``finite-difference``
    With v = ∇outer(θ_K), and backwards over the steps: ∂J/∂m = −α·[∂ₘL(θ+εv) − ∂ₘL(θ−εv)] / 2ε and
    v ← v − α·[∇L(θ+εv) − ∇L(θ−εv)] / 2ε, with ε = .01/‖v‖. No graph outlives its step: memory is
    that of training, and time two more passes for each step. To leave out the second update is a
    mistake wherever a step follows the masked one; the cosine to the right gradient was .74 at a
    rate of 1 (tests/test_gradients.py).

Tests compare both with the gradient over all hard choices, by enumeration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskwise.learning.relaxation import RelaxedDenoising
from maskwise.objectives import Objective

Parameters: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[Parameters, Tensor | None], Tensor]
"""From parameters and a mask, for losses that have one, to a scalar."""
Agree: TypeAlias = Callable[[Iterable[Tensor]], None]
"""Adds up gradients of all ranks, in place."""
BACKENDS = ("exact", "finite-difference")


def alone(tensors: Iterable[Tensor]) -> None:
    """Nothing to add up: there is one rank."""


@dataclass(frozen=True)
class InnerStep:
    """One step of plain gradient descent, θ ← θ − rate·∇loss(θ, mask).

    Attributes:
        loss: gives a scalar; see ``Losses``.
        rate: its size.
        mask: (B, L) of the policy; None for losses without one.
    """

    loss: Loss
    rate: float
    mask: Tensor | None = None


@dataclass(frozen=True)
class MetaGradient:
    """The result of a back-end.

    Attributes:
        outer: the outer loss after all steps.
        inner: the loss of each step, before it is made.
        masks: ∂outer/∂mask of each step; None if it has no mask.
        rates: ∂outer/∂rate of each step.
    """

    outer: float
    inner: list[float]
    masks: list[Tensor | None]
    rates: list[float]

    def backward(self, steps: Sequence[InnerStep], *, retain_graph: bool = False) -> None:
        """Backpropagate from the masks of the steps to ``grad`` of the policy's parameters."""
        masks = [step.mask for step in steps if step.mask is not None]
        gradients = [gradient for gradient in self.masks if gradient is not None]
        torch.autograd.backward(masks, gradients, retain_graph=retain_graph)


class Losses(nn.Module):
    """The two losses of one model, of predicting masked tokens and of a task. Both are means.

    Attributes:
        denoising: its loss is called with (inputs, mask, budget).
        task: an objective over the same model, or one that shares its encoder; called with a batch.
    """

    def __init__(self, denoising: RelaxedDenoising, task: Objective):
        super().__init__()
        self.denoising = denoising
        self.task = task

    def forward(self, batch: Any, mask: Tensor | None, budget: Tensor | None) -> Tensor:
        """A scalar; the task's if there is no mask."""
        if mask is not None:
            loss: Tensor = self.denoising(batch, mask, budget)
            return loss
        outcome = self.task(batch)
        return outcome.loss / (outcome.targets if budget is None else budget)

    def parameters_now(self) -> Parameters:
        """Copies of the parameters by name, tied ones once: where the inner steps begin."""
        return {name: value.detach().clone() for name, value in self.named_parameters()}

    @cached_property
    def _places(self) -> dict[str, str]:
        """Every place of a parameter, and its name.

        A tied parameter has several places, but a module that both losses share has one here:
        ``functional_call`` does not restore what it replaced twice.
        """
        names = {id(value): name for name, value in self.named_parameters()}
        places = {}
        for path, module in self.named_modules():
            own = module.named_parameters(path, recurse=False, remove_duplicate=False)
            places.update({place: names[id(value)] for place, value in own})
        return places

    def of(self, batch: Any, budget: Tensor | None = None) -> Loss:
        """The loss of a batch as a function of parameters and mask.

        Args:
            budget: divides the sum of the losses; None: the targets of a batch without a mask. On
                several ranks it must be the sum over all of them.
        """

        def loss(theta: Parameters, mask: Tensor | None) -> Tensor:
            values = {place: theta[name] for place, name in self._places.items()}
            scalar: Tensor = functional_call(self, values, (batch, mask, budget), tie_weights=False)
            return scalar

        return loss


def meta_gradient(
    theta: Parameters,
    steps: Sequence[InnerStep],
    outer: Loss,
    *,
    backend: str = "finite-difference",
    epsilon: float | None = None,
    agree: Agree = alone,
) -> MetaGradient:
    """The derivative of the outer loss after inner steps, by their masks and rates.

    Args:
        theta: parameters by name; they are not changed.
        outer: called with the parameters after the last step, and None.
        backend: one of ``BACKENDS``.
        epsilon: length of the perturbation of a finite difference, in the space of the parameters.
            None: .01 in single precision, as in DARTS (Liu et al. 2019, arXiv 1806.09055); .001 in
            double, where rounding allows it.
        agree: adds up gradients over ranks, each with a part of the batch; ``exact`` works on one.

    >>> theta = {"x": torch.tensor(1.0, dtype=torch.float64)}
    >>> mask = torch.tensor(1.0, dtype=torch.float64)
    >>> step = InnerStep(lambda theta, mask: mask * theta["x"] ** 2, rate=0.25, mask=mask)
    >>> for backend in BACKENDS:  # x − 2·rate·mask·x = .5; its square has −2·.5·2·rate and −2·.5·2
    ...     made = meta_gradient(theta, [step], lambda theta, _: theta["x"] ** 2, backend=backend)
    ...     print(made.outer, round(float(made.masks[0]), 9), round(made.rates[0], 9))
    0.25 -0.5 -2.0
    0.25 -0.5 -2.0
    """
    some = next(iter(theta.values()))
    with torch.autocast(some.device.type, enabled=False):
        if backend == "exact":
            with sdpa_kernel(SDPBackend.MATH):
                return _exact(theta, steps, outer)
        length = epsilon or (0.001 if some.dtype == torch.float64 else 0.01)
        return _finite_difference(theta, steps, outer, length, agree)


def _exact(theta: Parameters, steps: Sequence[InnerStep], outer: Loss) -> MetaGradient:
    now = {name: value.detach().requires_grad_() for name, value in theta.items()}
    some = next(iter(now.values()))
    masks = [None if step.mask is None else step.mask.detach().requires_grad_() for step in steps]
    rates = [some.new_tensor(step.rate).requires_grad_() for step in steps]
    inner = []
    for step, mask, rate in zip(steps, masks, rates, strict=True):
        loss = step.loss(now, mask)
        inner.append(float(loss.detach()))
        slope = _grad(loss, list(now.values()), create_graph=True)
        now = {name: value - rate * g for (name, value), g in zip(now.items(), slope, strict=True)}
    value = outer(now, None)
    wanted = [mask for mask in masks if mask is not None]
    gradient = iter(_grad(value, [*wanted, *rates]))
    by_mask = [None if mask is None else next(gradient) for mask in masks]
    return MetaGradient(float(value.detach()), inner, by_mask, [float(g) for g in gradient])


def _finite_difference(
    theta: Parameters, steps: Sequence[InnerStep], outer: Loss, epsilon: float, agree: Agree
) -> MetaGradient:
    now = theta
    visited, slopes, inner = list[Parameters](), list[Parameters](), list[float]()
    for step in steps:
        loss, slope, _ = slope_of(step.loss, now, step.mask, agree)
        visited.append(now)
        slopes.append(slope)
        inner.append(loss)
        now = moved(now, slope, -step.rate)
    value, v, _ = slope_of(outer, now, None, agree)
    by_mask = [None if step.mask is None else torch.zeros_like(step.mask) for step in steps]
    by_rate = [0.0] * len(steps)
    for number in reversed(range(len(steps))):
        step = steps[number]
        norm = _dot(v, v) ** 0.5
        if not norm > 0:
            break
        by_rate[number] = -_dot(v, slopes[number])
        later = number > 0  # the derivative by the first parameters is not needed
        if step.mask is None and not later:
            break
        factor = -step.rate / (2 * (epsilon / norm))
        sides = []
        for aside in (epsilon / norm, -epsilon / norm):
            place = moved(visited[number], v, aside)
            sides.append(slope_of(step.loss, place, step.mask, agree, of_theta=later))
        (_, ahead, mask_ahead), (_, back, mask_back) = sides
        if step.mask is not None:
            by_mask[number] = factor * (mask_ahead - mask_back)
        if later:
            v = moved(v, moved(ahead, back, -1), factor)
    return MetaGradient(value, inner, by_mask, by_rate)


def slope_of(
    loss: Loss,
    theta: Parameters,
    mask: Tensor | None,
    agree: Agree = alone,
    *,
    of_theta: bool = True,
) -> tuple[float, Parameters, Tensor]:
    """A loss, its gradient by the parameters (of all ranks), and by the mask (of own rows)."""
    leaves = {name: value.detach().requires_grad_(of_theta) for name, value in theta.items()}
    leaf = None if mask is None else mask.detach().requires_grad_()
    value = loss(leaves, leaf)
    wanted = list(leaves.values()) if of_theta else []
    if leaf is not None:
        wanted.append(leaf)
    gradient = _grad(value, wanted)
    slope = dict(zip(leaves, gradient, strict=False)) if of_theta else {}
    total = value.detach().clone()
    agree([total, *slope.values()])
    return float(total), slope, gradient[-1]


def _grad(value: Tensor, wanted: list[Tensor], *, create_graph: bool = False) -> Sequence[Tensor]:
    """The gradients of a scalar, 0 for what it does not depend on."""
    return torch.autograd.grad(
        value, wanted, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def moved(theta: Parameters, direction: Mapping[str, Tensor], factor: float) -> Parameters:
    """The parameters moved by ``factor`` times a direction."""
    return {name: value + factor * direction[name] for name, value in theta.items()}


def _dot(a: Parameters, b: Parameters) -> float:
    parts = [(wide(a[name]) * wide(b[name])).sum() for name in a]
    return float(torch.stack(parts).sum())


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the widest float type of its device: Apple's GPUs have no float64."""
    return tensor.double() if tensor.device.type in ("cpu", "cuda") else tensor.float()
