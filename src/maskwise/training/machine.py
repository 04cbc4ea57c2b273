"""What the loop runs on: processes, device, precision and trackers, by way of Accelerate."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.training.settings import TrainingSettings


def new_accelerator(settings: TrainingSettings, folder: Path | None, *, partial: bool = False) -> Accelerator:
    """An ``Accelerator`` for one run, with its trackers started.

    Args:
        partial: a batch may use only a part of the parameters (one of several heads).

    Raises:
        MaskwiseError: a tracker that is unknown, not installed, or has no folder to write to; processes
            without a launcher.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16() else "no"
    trackers = list(settings.trackers)
    for name in trackers:
        if name not in LoggerType.list():
            raise unknown_name("tracker", name, set(LoggerType.list()) - {"all"})
    if trackers and folder is None:
        raise MaskwiseError("trackers need a folder to write to", got=", ".join(trackers), do="give a folder")
    # Accelerate keeps one state per process and refuses another precision; here each run has its own.
    AcceleratorState._reset_state()
    # Not told so, Accelerate does not distribute on CPUs: every rank would train alone, unnoticed.
    cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(
        mixed_precision=precision, cpu=cpu, log_with=trackers or None, project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)] if partial else None,
    )  # fmt: skip
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        got = f"WORLD_SIZE={world}, {accelerator.num_processes} connected"
        raise MaskwiseError("the processes do not know each other", got=got, do="start them with torchrun")
    lacking = set(trackers) - {"all"} - {getattr(t, "value", str(t)) for t in accelerator.log_with}
    if lacking:
        name = min(lacking)
        raise MaskwiseError(
            f"tracker {name!r} is not installed", do=f"install {name}, or leave it out of trackers"
        )
    if trackers:
        accelerator.init_trackers("maskwise", config={k: str(v) for k, v in settings.model_dump().items()})
    return accelerator


def best_device() -> torch.device:
    """Where a training would run: the accelerator, if there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def fast_bf16() -> bool:
    """Does the hardware multiply bf16 natively? (Emulated, it is slower than float32.)"""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()


def reduced(accelerator: Accelerator, sums: dict[str, float]) -> dict[str, float]:
    """Sums added up over all ranks, in float64."""
    if accelerator.num_processes == 1:
        return dict(sums)
    names = sorted(sums)
    tensor = torch.tensor([sums[n] for n in names], dtype=torch.float64, device=accelerator.device)
    return dict(zip(names, accelerator.reduce(tensor).tolist(), strict=True))


def leave() -> None:
    """End a program that trained on several ranks; otherwise gloo can abort at exit, after correct results.

    A barrier lets the last messages arrive. A model that is still wrapped in DDP keeps the group's threads
    beyond the group, and they race with the interpreter's end: let go of it first (``del trainer``).
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
