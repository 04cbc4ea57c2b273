"""The speed of a training: tokens per second and model FLOPs utilisation (MFU).

    MFU = FLOPs of the model per second / FLOPs per second of a large matrix product

The FLOPs are those of useful work: weights outside the embeddings for every token of the text,
heads for every target (``Objective.work``), and attention within documents (Σ length²). Padding and
recomputation count as waste. The denominator is measured on the device, once a process for each
precision; on a busy machine it comes out low.
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

from maskwise.objectives import Objective
from maskwise.objectives.base import Work, trained
from maskwise.training.arms import Arms
from maskwise.training.data import Step
from maskwise.weights import attention_work, held_share

MEASURE_SECONDS = 0.3
SIZES = {"cpu": 1024}
"""Rows and columns of the measured matrices, by kind of device; 8,192 on accelerators."""


class Meter:
    """Measures a training between two lines of metrics.

    Args:
        objective: what is trained.
        device: of this process.
        precision: "bf16" or "no".
        ranks: processes in all.
        frozen: whether the encoder is not trained.
        known: whether to measure the rate of matrix products, which takes a moment.
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
        self.objective = objective
        self.device = device
        self.ranks = ranks
        self.frozen = frozen
        # The work of an objective without a transformers model is not known.
        counted = known and hasattr(objective, "model")
        self.rate = matmul_rate(device, precision) if counted else None
        self.held = held_share(objective.model) if counted else 0.0
        self.per_arm: dict[str, tuple[int, int]] = {}
        self._start()

    def _start(self) -> None:
        self.tokens = self.flops = 0.0
        self.steps = 0
        self.began = time.perf_counter()

    def add(self, step: Step) -> None:
        """Count a step, as this rank saw it."""
        self.steps += 1
        tokens = step.facts.get("tokens", 0.0)
        self.tokens += tokens
        if self.rate is None:
            return
        arm = ""
        objective = self.objective
        if isinstance(objective, Arms):
            arm = step.batches[0].arm
            objective = objective.arm(arm)
        # Counting weights takes as long as a small step.
        if arm not in self.per_arm:
            per_token = self._trained(objective.work(1, 0), held=self.held)
            per_target = self._trained(objective.work(0, 1), held=self.held)
            self.per_arm[arm] = per_token, per_target
        per_token, per_target = self.per_arm[arm]
        config = self.objective.model.config
        attention = Work(attention_work(config, tokens, step.facts.get("squares", 0.0)))
        self.flops += per_token * tokens + per_target * step.targets + self._trained(attention)

    def _trained(self, work: Work, *, held: float = 0.0) -> int:
        return trained(work, frozen=self.frozen, held=held)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude what happens in this context."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def read(self, *, left: int) -> dict[str, float]:
        """The figures since the last reading, after the host has waited for the device.

        Args:
            left: remaining steps.

        Returns:
            ``tokens_per_second`` over all ranks, ``mfu`` (0 to 1, if known), ``memory_gib`` (peak
            of this process, on its accelerator if it has one) and ``seconds_left`` (without
            evaluations).
        """
        # The host has just read the losses, so all steps are finished.
        seconds = time.perf_counter() - self.began
        figures = {"tokens_per_second": round(self.ranks * self.tokens / seconds, 1)}
        if self.rate:
            figures["mfu"] = round(self.flops / seconds / self.rate, 4)
        figures["memory_gib"] = round(peak_memory(self.device) / 2**30, 3)
        figures["seconds_left"] = round(seconds / max(1, self.steps) * left, 1)
        self._start()
        return figures


def peak_memory(device: torch.device) -> int:
    """Bytes: this process's peak memory on its accelerator, else in RAM; 0: unknown."""
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


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate within ``MEASURE_SECONDS``, because other work only slows products down."""
    size = SIZES.get(device.type, 8192)
    matrix = torch.randn(size, size, device=device).to(dtype)
    products = 10 if device.type == "cuda" else 1
    times: list[float] = []
    end = time.perf_counter() + MEASURE_SECONDS
    while len(times) < 3 or time.perf_counter() < end:  # the first ones warm up
        began = time.perf_counter()
        for _ in range(products):
            product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return products * 2 * size**3 / min(times)


def cache_folder() -> Path:
    """The folder of measurements: ``$XDG_CACHE_HOME/maskwise``, else ``~/.cache/maskwise``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskwise"


def cpu_name() -> str:
    """The model of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
