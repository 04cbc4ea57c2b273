"""Muon with one iteration for all matrices of one shape: torch's own goes matrix by matrix, and always in bfloat16."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from maskwise.training.wrapping import laid_out_as, whole


class BatchedMuon(torch.optim.Muon):
    """torch.optim.Muon, faster: the matrices of one shape are orthogonalised together, on a CPU in single precision.

    Arguments and state are those of ``torch.optim.Muon``, so that either loads what the other saved; there is no
    closure. Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
        >>> weight.grad = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> BatchedMuon([weight], lr=1.0).step()  # a step changes all directions about as much
        >>> torch.allclose(weight.detach().abs().sum(1), torch.ones(2), atol=0.35)
        True
    """

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, weights, grads, momenta)
            if not weights:
                continue
            skipped = getattr(self, "found_inf", None)  # a scalar: 1 where nothing may change, as for torch's AdamW
            before = [] if skipped is None else [tensor.clone() for tensor in (*weights, *momenta)]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for indices in of_one_shape(weights):
                self._update([weights[i] for i in indices], [updates[i] for i in indices], group)
            for tensor, old in zip((*weights, *momenta), before):
                assert skipped is not None
                tensor.copy_(torch.where(skipped > 0, old, tensor))

    def _update(self, weights: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        # Where matrices are shared out among ranks, each rank needs all of a matrix and makes its part of the update.
        wide = [u if u.shape[0] <= u.shape[1] else u.T for u in map(whole, updates)]
        steps, coefficients, eps = group["ns_steps"], group["ns_coefficients"], group["eps"]
        for weight, update in zip(weights, orthogonal(torch.stack(wide), coefficients, steps, eps), strict=True):
            rows, columns = weight.shape
            scale = max(1.0, rows / columns) ** 0.5
            if group["adjust_lr_fn"] == "match_rms_adamw":
                scale = 0.2 * max(rows, columns) ** 0.5
            turned = update if rows <= columns else update.T
            weight.add_(laid_out_as(turned.to(weight.dtype), weight), alpha=-group["lr"] * scale)


def of_one_shape(matrices: list[Tensor]) -> list[list[int]]:
    """Groups of matrices, by their index, that can be stacked; a matrix and another's transpose are of one shape."""
    groups = defaultdict(list)
    for index, matrix in enumerate(matrices):
        groups[(*sorted(matrix.shape), matrix.device, matrix.dtype)].append(index)
    return list(groups.values())


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrices, roughly: every singular value is brought near 1 (between .7 and 1.2).

    Args:
        matrices: [count, n, m], n ≤ m.
        coefficients: of x, x³ and x⁵ in the quintic that is iterated.
        steps: how often.
        eps: the least norm that is divided by.
    """
    # bfloat16 matrix products are emulated on most CPUs: single precision took a quarter of their time.
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
