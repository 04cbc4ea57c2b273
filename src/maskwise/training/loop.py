"""The loop. Pre-training, intermediate pre-training and fine-tuning are this one function with another objective.

    for step in range(steps):
        batches = source.batches(step)                      # masked here, on the device, for this very step
        targets = all ranks' number of labels               # before any backward: every target weighs the same
        for batch in batches: (objective(batch).sum / targets).backward()
        clip, set the learning rate, update

Everything random is a function of (seed, step, rank), so a run that was stopped goes on bit for bit. Distribution,
precision and trackers are Accelerate's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.masking.masked import IGNORE
from maskwise.objectives.base import Objective
from maskwise.training.checkpoints import load_state, save_state
from maskwise.training.optim import Optimizers
from maskwise.training.progress import Progress
from maskwise.training.settings import TrainingSettings

Evaluate = Callable[[int], list[dict[str, Any]]]


class Source(Protocol):
    """Where batches come from."""

    def batches(self, step: int, *, rank: int, ranks: int, device: torch.device) -> list[Any]:
        """The micro-batches of one update for one rank: mappings with ``labels``, −100 where nothing is to predict."""

    def facts(self, batches: list[Any]) -> dict[str, float]:
        """What to log of these batches: sums, added up between two lines of metrics (see ``summarise``)."""

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Metrics from the sums since the last line."""


def train(
    objective: Objective,
    source: Source,
    settings: TrainingSettings,
    *,
    folder: Path | None = None,
    evaluate: Evaluate | None = None,
    title: str = "training",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train an objective.

    Args:
        objective: a module that turns a batch into (sum of losses, number of targets).
        source: gives the batches of a step.
        settings: see ``TrainingSettings``.
        folder: where ``metrics.jsonl`` and states to resume from go; None keeps nothing.
        evaluate: called with the number of updates done; its dicts become lines of metrics.
        title: what the progress bar says.
        quiet: no progress bar.

    Returns:
        ``steps``, ``seconds``, ``tokens``, ``targets``, ``resumed_at`` and ``loss`` (mean of the last log window).

    Raises:
        MaskwiseError: a batch size that ranks and micro-batches do not divide; a loss that is not finite.
    """
    accelerator = _accelerator(settings, folder)
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if settings.batch_size % (settings.accumulate * ranks):
        raise MaskwiseError(
            "batch_size must be a multiple of accumulate × processes",
            got=f"{settings.batch_size} for {settings.accumulate} × {ranks}",
        )
    objective.to(device)
    optimizers = Optimizers(objective, settings)
    facts = {"threads": torch.get_num_threads(), "ranks": ranks}
    start, before = 0, {}
    if folder and settings.save_every:
        start, before = load_state(folder / "resume", objective, optimizers, accelerator.print)
    for name, value in facts.items():
        if start and before.get(name) != value:
            accelerator.print(f"resuming with {name} {value}, was {before.get(name)}: equal in law, not bit for bit")
    wrapped = accelerator.prepare(objective)
    metrics = _Metrics(folder / "metrics.jsonl" if folder and accelerator.is_main_process else None, keep_until=start)
    window: dict[str, float] = {"loss": 0.0, "targets": 0.0, "steps": 0.0}
    total = {"tokens": before.get("tokens", 0), "targets": before.get("targets", 0)}
    began, last_loss = time.perf_counter() - before.get("seconds", 0.0), math.nan
    objective.train()
    try:
        with Progress(title, settings.steps, start, hidden=quiet or not accelerator.is_main_process) as progress:
            for step in range(start, settings.steps):
                torch.manual_seed(fold(settings.seed, step, rank, 0xD0) )
                batches = source.batches(step, rank=rank, ranks=ranks, device=device)
                targets = torch.tensor(float(sum(int((b["labels"] != IGNORE).sum()) for b in batches)), device=device)
                targets = accelerator.reduce(targets)
                rate = optimizers.set_rate(step)
                loss = _backward(accelerator, wrapped, batches, targets)
                norm = accelerator.clip_grad_norm_(objective.parameters(), settings.clip or math.inf)
                # A step without any target counts as a step and changes nothing.
                if targets > 0:
                    optimizers.step()
                optimizers.zero_grad()
                _add(window, {"loss": loss, "targets": float(targets), "steps": 1.0, **source.facts(batches)})
                done = step + 1
                if done % settings.log_every == 0 or done == settings.steps:
                    shared = _reduced(accelerator, window)
                    shared["targets"] /= ranks
                    last_loss = shared["loss"] / max(1.0, shared["targets"])
                    if not math.isfinite(last_loss):
                        raise MaskwiseError(
                            f"the loss is not finite at step {done}", got=last_loss, do="lower the learning rate"
                        )
                    line = {"loss": last_loss, "targets": int(shared["targets"]), **source.summarise(shared)}
                    total["tokens"] += int(line.get("tokens", 0))
                    total["targets"] += line["targets"]
                    line |= {"tokens": total["tokens"], "lr": rate, "grad_norm": float(norm)}
                    seconds = round(time.perf_counter() - began, 3)
                    metrics.write({"kind": "train", "step": done, **line, "seconds": seconds})
                    accelerator.log({f"train/{k}": v for k, v in line.items()}, step=done)
                    window = dict.fromkeys(window, 0.0)
                    progress.note(loss=last_loss, **{k: v for k, v in line.items() if k == "ratio"})
                if evaluate and (done == settings.steps or (settings.eval_every and done % settings.eval_every == 0)):
                    _evaluate(evaluate, objective, done, metrics, accelerator)
                if folder and settings.save_every and done % settings.save_every == 0 and done < settings.steps:
                    state = {**facts, **total, "seconds": time.perf_counter() - began}
                    if accelerator.is_main_process:
                        save_state(folder / "resume", done, objective, optimizers, state)
                    accelerator.wait_for_everyone()
                progress.advance()
    finally:
        metrics.close()
    seconds = time.perf_counter() - began
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return {"steps": settings.steps, "seconds": seconds, "loss": last_loss, "resumed_at": start, **total}


def leave() -> None:
    """End a program that trained: without a barrier before it, gloo can abort at exit after correct results."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _accelerator(settings: TrainingSettings, folder: Path | None) -> Accelerator:
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if _fast_bf16() else "no"
    trackers = list(settings.trackers)
    # Accelerate keeps one state per process and refuses another precision; runs in one process may differ in it.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, log_with=trackers or None, project_dir=folder)
    if trackers:
        accelerator.init_trackers("maskwise", config={k: str(v) for k, v in settings.model_dump().items()})
    return accelerator


def _fast_bf16() -> bool:
    """Does the hardware multiply bf16 natively? (Emulated, it is slower than float32.)"""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()


def _backward(accelerator: Accelerator, wrapped: Any, batches: list[Any], targets: Tensor) -> float:
    """Gradients of (sum of losses over all ranks and micro-batches) / (number of targets). Returns this rank's sum."""
    total = 0.0
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        # DDP averages gradients over ranks, so the sum of a rank is multiplied by their number first.
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            with accelerator.autocast():
                loss, _ = wrapped(batch)
            accelerator.backward(loss * (accelerator.num_processes / targets.clamp(min=1)))
        total += float(loss.detach())
    return total


def _evaluate(evaluate: Evaluate, objective: Objective, step: int, metrics: _Metrics, accelerator: Accelerator) -> None:
    objective.eval()
    with torch.no_grad(), accelerator.autocast():
        for line in evaluate(step):
            metrics.write({"kind": "eval", "step": step, **line})
            accelerator.log({f"eval/{line.get('masks', 'task')}/{k}": v for k, v in line.items()}, step=step)
    objective.train()


def _reduced(accelerator: Accelerator, sums: dict[str, float]) -> dict[str, float]:
    """Add sums up over ranks, in float64."""
    names = sorted(sums)
    tensor = torch.tensor([sums[n] for n in names], dtype=torch.float64, device=accelerator.device)
    return dict(zip(names, accelerator.reduce(tensor).tolist(), strict=True))


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


class _Metrics:
    """Lines of JSON; on resuming, lines after the state that is resumed from are dropped first."""

    def __init__(self, path: Path | None, *, keep_until: int):
        self.file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(path) if line.get("step", 0) <= keep_until] if keep_until else []
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.rename(path)
        self.file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
