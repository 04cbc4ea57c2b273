"""Describe and measure the machine, and copy tensors without blocking the device or the host.

A copy waits for all earlier work on its CUDA stream, which can be a whole training step. Batches
are therefore copied to the device on a separate stream (``Lane``). Results, such as the loss of a
step, are copied to pinned memory on the host and read one step later (``coming_back``). Torch is
imported inside functions, because masking imports this module and must load fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
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
"""Device types that copy from pinned memory while the host continues."""


def widest(values: Tensor) -> Tensor:
    """Convert to float64 on a CPU and to float32 on other devices."""
    # Apple's GPUs have no float64.
    return values.double() if values.is_cpu else values.float()


def copies_aside(device: torch.device | str) -> bool:
    """Return whether a device can copy from pinned memory while it computes."""
    return str(device).split(":")[0] in PINNING


def moved(value: Any, device: torch.device | str) -> Any:
    """Copy a tensor, or a tuple or dict of tensors, to a device. None is returned unchanged."""
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if value is None:
        return None
    # The host waits for a copy to CUDA unless the memory is pinned.
    if copies_aside(device) and value.is_cpu:
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


# Copies
# -------------------------------------------------------------------------------------------


class Lane:
    """A stream for copies to a device, separate from the stream for computations."""

    def __init__(self, device: torch.device | str):
        import torch

        self.cuda: Any = torch.cuda
        self.stream = self.cuda.Stream(device)

    def send(self, make: Callable[[], Result]) -> tuple[Result, object]:
        """Call ``make``, whose copies run on this stream.

        Returns:
            The result of ``make``, and an event that occurs when its copies are complete.
        """
        with self.cuda.stream(self.stream):
            result = make()
            return result, self.stream.record_event()

    def receive(self, sent: object, mark: Any) -> None:
        """Make later work on the device wait for the event ``mark``. The host continues."""
        current = self.cuda.current_stream()
        current.wait_event(mark)
        for tensor in tensors_of(sent):
            # Otherwise, torch could reuse the memory while the device still reads it.
            tensor.record_stream(current)


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield all tensors in ``value``: a tensor, a batch, or nested lists, tuples and dicts."""
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
    """Start a copy to the host. The returned function waits for the copy and returns it."""
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
    """Return a function that waits for all work that the GPU has been given until now."""
    import torch

    event = torch.cuda.Event()
    event.record()
    return event.synchronize


# Speed and memory
# -------------------------------------------------------------------------------------------

MEASURE_SECONDS = 0.3
SLOWER = 2.0
"""With bf16, processors that emulate it are slower than in float32 by more than this factor."""
WORTHWHILE = 1.5
"""With AVX-512, ``auto`` means bf16 if matrix products gain at least this factor. The rest of a
step gains nothing."""
WIDE = 192
"""On CPUs, narrower models are faster in float32: converting their weights takes longer than their
bf16 products save (float32 took .87 of the time at width 128, 1.02 at 192, 1.32 at 256)."""
SIZES = {"cpu": 1024}
"""Number of rows (and columns) of the matrices in ``measured_rate``, by device type. Other devices
use 8,192."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""Errors of a measurement's file that is missing, damaged or of another kind."""


def best_device() -> torch.device:
    """Return the device to train on: the accelerator if there is one, otherwise the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def fast_bf16(width: int | None = None) -> bool:
    """Return whether training on this machine is faster in bf16 than in float32.

    On a CPU, the answer is true with AMX. CPUs with only AVX-512 also compute in bf16, but some of
    them more slowly than in float32, so that the speed is measured (``bf16_gain``).

    Args:
        width: the number of values in a state of the model; None for any wide model.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if width is not None and width < WIDE:
        return False
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and bf16_gain() >= WORTHWHILE


@cache
def bf16_gain() -> float:
    """Return how many times as fast as in float32 matrix products are in bf16 on this CPU.

    The number is measured once per machine and version of torch, in .6 s (``remembered``). Without
    a file, the answer is 1.
    """
    import torch

    def measure() -> float:
        cpu = torch.device("cpu")
        gain = measured_rate(cpu, torch.bfloat16) / measured_rate(cpu, torch.float32)
        return round(gain, 2)

    machine = f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}"
    gain, kept = remembered("bf16-gain", machine, measure)
    return gain if kept else 1.0


def remembered(what: str, about: object, measure: Callable[[], Result]) -> tuple[Result, bool]:
    """Return a measurement that is taken once on this machine and kept in a file.

    All runs on a machine, and all ranks of a run, must decide alike: if several processes measure
    at the same time, the first one decides for all.

    Args:
        what: what is measured; the name of the file begins with it.
        about: all that the measurement depends on, as a JSON value.
        measure: takes the measurement, a JSON value.

    Returns:
        The measurement, and whether it is kept, which needs a folder that can be written.
    """
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    folder = cache_folder()
    if folder is None:
        return measure(), False
    file = folder / f"{what}-{name}.json"
    with suppress(*UNREADABLE):
        return _measured(file), True
    measured = measure()
    with suppress(*UNREADABLE):
        file.parent.mkdir(parents=True, exist_ok=True)
        mine = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        mine.write_text(json.dumps({"about": about, "measured": measured}))
        try:
            # Unlike ``rename``, this does not replace the file of another process.
            os.link(mine, file)
        except FileExistsError:
            try:
                _measured(file)
            except UNREADABLE:
                # After a loss of power, a file may be empty.
                os.replace(mine, file)
        finally:
            mine.unlink(missing_ok=True)
        return _measured(file), True
    return measured, False


def _measured(file: Path) -> Any:
    return json.loads(file.read_bytes())["measured"]


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes, on a GPU or in RAM. 0 means unknown."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux's `ru_maxrss` begins with the peak of the process that started this one (vfork(2)).
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def begin_peak_memory(device: torch.device) -> None:
    """Let ``peak_memory`` begin anew, if the system can."""
    import torch

    if device.type == "cuda":
        # Before the first use of the GPU, there is no peak.
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)
        return
    # Only Linux has this file (proc_pid_clear_refs(5)).
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """Return the FLOPs per second of a large matrix product, measured once per process."""
    import torch

    return measured_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)


PEAKS = {
    "A100": 312e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Dense bfloat16 FLOP/s of GPUs by their data sheets, by words of the GPU's name. The first entry
whose words are all in the name counts."""


def peak_rate(device: torch.device, precision: str) -> float | None:
    """Return the FLOP/s of a GPU by its data sheet, in bf16 or TF32; None if they are not known."""
    if device.type != "cuda":
        return None
    import torch

    words = set(re.split(r"\W+", torch.cuda.get_device_name(device)))
    if "MIG" in words:
        # A part of a card has a part of its rate.
        return None
    for name, rate in PEAKS.items():
        if words.issuperset(name.split()):
            # In float32, GPUs multiply in TF32, at half the rate of bf16.
            return rate if precision == "bf16" else rate / 2
    return None


def bf16_note() -> str | None:
    """Return a warning if training is on a CPU that is much slower in bf16 than in float32."""
    device = best_device()
    # To measure a GPU here would take its memory in a process that does not train.
    if device.type == "cpu":
        times = matmul_rate(device, "no") / matmul_rate(device, "bf16")
        if times > SLOWER:
            return (
                f"training.precision=bf16: here a matrix product takes {times:.0f} times as long "
                "as in float32; use auto"
            )
    return None


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure matrix products for ``MEASURE_SECONDS``; return the highest rate in FLOPs per second.

    Other work on the machine can only lower the rate, so the highest rate is the best estimate.
    """
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


def cache_folder() -> Path | None:
    """Return the folder for cached measurements, in ``$XDG_CACHE_HOME`` or ``~/.cache``; None
    for a user without a home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskwise"
    except RuntimeError:
        return None


def cpu_name() -> str:
    """Return the processor's model name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def memory() -> int | None:
    """Return the memory of this machine in bytes, or None if unknown (on Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def hardware() -> dict[str, object]:
    """Return the processor, cores, memory, accelerator and fast precision of this machine."""
    import torch

    held = memory()
    accelerator = None
    if torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": held and round(held / 2**30, 1),
        "accelerator": accelerator,
        "precision": "bf16" if fast_bf16() else "fp32",
    }


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results."""
    from importlib.metadata import version

    libraries = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
