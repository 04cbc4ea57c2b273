"""How fast a training is: tokens per second, and what share of the hardware's multiplications it
uses (MFU).

    MFU = FLOPs of the model per second / FLOPs per second of a large matrix product on the same
    device

The FLOPs of the model are those of useful work alone: weights outside the embeddings for every
token of the text, heads for every target (``Objective.work``), and attention within documents (Σ
length², ``families.attention_work``). Padding, attention across documents, heads where there is no
target and what is computed twice count as waste. The denominator is measured and not read from a
data sheet: once in a process for each device and precision, in under a second. On a busy machine it
comes out low.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from maskwise.families import attention_work
from maskwise.objectives import Objective
from maskwise.objectives.base import Work, trained
from maskwise.training.arms import Arms
from maskwise.training.data import Step

MEASURE_SECONDS = 0.3
SIZES = {"cpu": 1024}
"""Rows and columns of the matrices that are multiplied, by kind of device; 8,192 on accelerators.
"""


class Meter:
    """Measures a training between two lines of metrics.

    Args:
        objective: what is trained.
        device: of this process. precision: "bf16" or "no". ranks: processes in all.
        frozen: whether the encoder is not trained.
        known: whether the rate of matrix products shall be known; measuring it takes a moment.
    """

    def __init__(
        self,
        objective: Objective,
        device: torch.device,
        precision: str,
        *,
        ranks: int,
        frozen: bool,
        known: bool,
    ):
        self.objective, self.device, self.ranks, self.frozen = objective, device, ranks, frozen
        # An objective over something else than a transformers model says nothing of its work.
        counted = known and hasattr(objective, "model")
        self.rate = matmul_rate(device, precision) if counted else None
        self._works: dict[str, tuple[Work, Work]] = {}
        self._start()

    def _start(self) -> None:
        self.tokens = self.flops = 0.0
        self.steps, self.began = 0, time.perf_counter()

    def add(self, step: Step) -> None:
        """Count a step, as this rank saw it."""
        self.steps += 1
        self.tokens += step.facts.get("tokens", 0.0)
        self.flops += self._flops(step)

    def _flops(self, step: Step) -> float:
        if self.rate is None:
            return 0.0
        arm = step.batches[0].arm if isinstance(self.objective, Arms) else ""
        if arm not in self._works:  # counting weights takes as long as a small step
            one = self.objective.arm(arm) if isinstance(self.objective, Arms) else self.objective
            self._works[arm] = one.work(1, 0), one.work(0, 1)
        read, written = (trained(work, frozen=self.frozen) for work in self._works[arm])
        tokens, squares = step.facts.get("tokens", 0.0), step.facts.get("squares", 0.0)
        attention = Work(attention_work(self.objective.model.config, tokens, squares))
        return read * tokens + written * step.targets + trained(attention, frozen=self.frozen)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens in this context."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def read(self, *, left: int) -> dict[str, float]:
        """The figures since the last reading, where the host has just waited for the device.

        Args:
            left: steps that are still to be done.

        Returns:
            ``tokens_per_second`` over all ranks, ``mfu`` (0 to 1; where the rate is known),
            ``memory_gib`` (the peak of this process, on its accelerator if it has one) and
            ``seconds_left`` (without evaluations).
        """
        seconds = time.perf_counter() - self.began
        figures = {"tokens_per_second": round(self.ranks * self.tokens / seconds, 1)}
        if self.rate:
            figures["mfu"] = round(self.flops / seconds / self.rate, 4)
        figures["memory_gib"] = round(peak_memory(self.device) / 2**30, 3)
        figures["seconds_left"] = round(seconds / max(1, self.steps) * left, 1)
        self._start()
        return figures


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has had allocated on its accelerator; without one, in
    memory; 0: not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOPs per second of a large square matrix product, measured once in a process."""
    return measured_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def measured_rate(
    device: torch.device, dtype: torch.dtype, seconds: float = MEASURE_SECONDS
) -> float:
    """The best of the products that are made in so many seconds: other work on the machine only
    makes them slower.
    """
    size = SIZES.get(device.type, 8192)
    one = torch.randn(size, size, device=device).to(dtype)
    once = 10 if device.type == "cuda" else 1
    best, end, turns = float("inf"), time.perf_counter() + seconds, 0
    while turns < 3 or time.perf_counter() < end:  # the first ones warm up
        began = time.perf_counter()
        for _ in range(once):
            product = one @ one
        product[0, 0].item()  # waits for the device
        best, turns = min(best, time.perf_counter() - began), turns + 1
    return once * 2 * size**3 / best


def cache_folder() -> Path:
    """Where what is measured once is kept: ``$XDG_CACHE_HOME/maskwise``, else
    ``~/.cache/maskwise``.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskwise"


def cpu_name() -> str:
    """The model of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
