"""Choose and measure devices, and copy tensors without blocking the device or the host.

A copy waits for all earlier work on its stream, which can be a whole training step. Batches are
therefore copied on a separate stream (``Lane``), and sums are copied to pinned memory and read a
step later (``coming_back``). Masking imports this module, so torch is imported only where it is
used.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Result = TypeVar("Result")

Tensors: TypeAlias = "Mapping[str, Tensor]"
TensorDict: TypeAlias = "dict[str, Tensor]"

PINNING = ("cuda",)
"""Device types to which copies from pinned memory do not block the host."""


def widest(values: Tensor) -> Tensor:
    """Convert to float64 on a CPU, and to float32 elsewhere, because Apple's GPUs lack float64."""
    return values.double() if values.is_cpu else values.float()


def copies_aside(device: torch.device | str) -> bool:
    """Return whether a device can copy from pinned memory while it computes."""
    return str(device).split(":")[0] in PINNING


def moved(value: Any, device: torch.device | str) -> Any:
    """Copy a tensor, or a tuple or dict of tensors, to a device; None stays None."""
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if value is None:
        return None
    # CUDA copies without making the host wait only if the memory is pinned.
    if copies_aside(device) and value.is_cpu:
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


# Copies
# -------------------------------------------------------------------------------------------


class Lane:
    """A stream for copies to a device, separate from the stream on which the device computes."""

    def __init__(self, device: torch.device | str):
        import torch

        self.cuda: Any = torch.cuda
        self.stream = self.cuda.Stream(device)

    def send(self, make: Callable[[], Result]) -> tuple[Result, object]:
        """Call a function that copies on this stream; return its result and an event at its end."""
        with self.cuda.stream(self.stream):
            result = make()
            return result, self.stream.record_event()

    def receive(self, sent: object, mark: Any) -> None:
        """Make later work on the device wait for a copy; the host does not wait."""
        current = self.cuda.current_stream()
        current.wait_event(mark)
        for tensor in tensors_of(sent):
            # Otherwise the memory could be reused while the device still reads it.
            tensor.record_stream(current)


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested batches, lists, tuples and dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)
    elif hasattr(value, "labels"):  # a MaskedBatch
        yield from tensors_of(vars(value))


def coming_back(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the host; return a function that waits for the copy."""
    if not copies_aside(tensor.device):
        here = tensor.cpu()
        return lambda: here
    there = tensor.new_empty(tensor.shape, device="cpu", pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    wait = new_event()

    def arrived() -> Tensor:
        wait()
        return there

    return arrived


def new_event() -> Callable[[], None]:
    """Record an event after all work so far, and return a function that waits for it."""
    import torch

    event = torch.cuda.Event()
    event.record()
    wait: Callable[[], None] = event.synchronize
    return wait


# Speed and memory
# -------------------------------------------------------------------------------------------

MEASURE_SECONDS = 0.3
SIZES = {"cpu": 1024}
"""The number of rows and columns of the measured matrices; 8,192 on other kinds of device."""


def best_device() -> torch.device:
    """Return the device to train on: the accelerator if there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def fast_bf16() -> bool:
    """Return whether the hardware trains faster in bf16 than in float32.

    Among CPUs, only those with AMX do. With AVX-512's bf16 it depends on the processor and the
    model: a step of a small encoder took 1.6 times as long as in float32 on one processor
    (``benchmarks/quick_step.py``), and MiniLM trained faster on another.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def peak_memory(device: torch.device) -> int:
    """Return this process's peak memory in bytes, on its GPU or in RAM; 0 if it is unknown."""
    import torch

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
    """Return FLOPs per second in a large square matrix product, measured once per process."""
    import torch

    return measured_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate within ``MEASURE_SECONDS``; other work can only lower the rate."""
    import torch

    size = SIZES.get(device.type, 8192)
    matrix = torch.randn(size, size, device=device).to(dtype)
    products = 10 if device.type == "cuda" else 1
    times: list[float] = []
    end = time.perf_counter() + MEASURE_SECONDS
    while len(times) < 3 or time.perf_counter() < end:  # the first products warm up
        began = time.perf_counter()
        for _ in range(products):
            product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return products * 2 * size**3 / min(times)


def cache_folder() -> Path:
    """Return the folder for measurements, in ``$XDG_CACHE_HOME`` or else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskwise"


def cpu_name() -> str:
    """Return the processor's model name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
