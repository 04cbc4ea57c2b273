"""The time of a head and its loss on a processor: written over the logits, or by ``cross_entropy``.

    OMP_NUM_THREADS=1 python benchmarks/loss.py [--rounds N]

``objectives.chunks.token_losses`` writes losses and gradients over the logits. Both ways run in
turn, forward and backward, on the same hidden states. The figures are the processor time of the
fastest pass, which a busy machine affects least, and the ratio within each pair of passes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Annotated, Any

import torch
import typer
from command import run
from figures import surroundings
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from maskwise.objectives.chunks import token_losses

SIZES = ((614, 8_192, 128), (614, 30_522, 128), (4_096, 8_192, 128), (614, 30_522, 512))
"""Targets, words of the vocabulary, and width: 614 targets are 15 % of 32 × 128 tokens."""


def losses(rounds: Annotated[int, typer.Option(min=2)] = 12) -> dict[str, Any]:
    """Time both ways on all ``SIZES``."""
    torch.set_num_threads(1)
    sizes = [both(*size, rounds=rounds) for size in SIZES]
    return {**surroundings(), "load": round(os.getloadavg()[0], 1), "sizes": sizes}


def both(targets: int, vocabulary: int, width: int, *, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of both ways, and the median and the range of their ratio."""
    torch.manual_seed(0)
    states = torch.randn(targets, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    truth = torch.randint(0, vocabulary, (targets,))
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "cross_entropy": partial(cross_entropy, reduction="none"),
        "in_place": token_losses,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            states.grad = weight.grad = None
            began = time.process_time()
            way(linear(states, weight), truth).sum().backward()
            seconds[name].append(time.process_time() - began)
    # Kernels are chosen, and memory is allocated, in the first pass.
    seconds = {name: taken[1:] for name, taken in seconds.items()}
    ratios = [now / before for before, now in zip(*seconds.values(), strict=True)]
    return {
        "targets": targets,
        "vocabulary": vocabulary,
        "width": width,
        "ms": {name: round(1e3 * min(taken), 1) for name, taken in seconds.items()},
        "ratio": round(median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


if __name__ == "__main__":
    run(losses, __doc__)
