"""A ratio for each row, drawn by the hash: uniform (masked diffusion), Beta, a mixture of denoisers."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking.schedules.base import Distribution, straight


def uniform(low: float = 0.0, high: float = 1.0, inverse_weight: bool = False) -> Distribution:
    """Each row's ratio is uniform; with ``inverse_weight`` over (0, 1) this is masked diffusion."""
    name = f"uniform({low}, {high}{', inverse_weight=True' if inverse_weight else ''})"
    mean = (low + high) / 2
    return Distribution(
        name, partial(straight, mean, mean), False, partial(_between, low, high), inverse_weight
    )


def beta(a: float, b: float) -> Distribution:
    """Each row's ratio is Beta(a, b)."""
    from scipy.special import betaincinv

    if not (a > 0 and b > 0):
        raise MaskwiseError("beta: both parameters must be positive", got=(a, b))
    grid, mean = torch.from_numpy(betaincinv(a, b, np.linspace(0, 1, 4097))), a / (a + b)
    return Distribution(f"beta({a}, {b})", partial(straight, mean, mean), False, partial(_on_grid, grid))


def mixture(*parts: float) -> Distribution:
    """Each row's ratio is one of several: ``mixture(0.15, 0.5, 0.5, 0.5)`` is (ratio, share) in turn."""
    ratios, shares = parts[::2], parts[1::2]
    if len(parts) % 2 or not parts or not all(0 <= r <= 1 for r in ratios):
        raise MaskwiseError("mixture takes pairs of ratio (0 to 1) and share", got=parts)
    if not min(shares) >= 0 or not 0 < sum(shares) < math.inf:
        raise MaskwiseError("mixture: shares are numbers ≥ 0, one of them above", got=shares)
    mean = sum(r * s for r, s in zip(ratios, shares)) / sum(shares)
    edges = torch.tensor(shares, dtype=torch.float64).cumsum(0) / sum(shares)
    quantile = partial(_choice, torch.tensor(ratios, dtype=torch.float64), edges[:-1])
    return Distribution(
        f"mixture({', '.join(map(str, parts))})", partial(straight, mean, mean), False, quantile
    )


def _between(low: float, high: float, f: float, draw_B: Tensor) -> Tensor:
    return low + (high - low) * draw_B


def _on_grid(grid: Tensor, f: float, draw_B: Tensor) -> Tensor:
    grid, place = grid.to(draw_B.device), draw_B * (len(grid) - 1)
    left = place.floor().long()
    return torch.lerp(grid[left], grid[left + 1], place - left)


def _choice(ratios: Tensor, edges: Tensor, f: float, draw_B: Tensor) -> Tensor:
    index = torch.searchsorted(edges.to(draw_B.device), draw_B, right=True)
    return ratios.to(draw_B.device)[index]
