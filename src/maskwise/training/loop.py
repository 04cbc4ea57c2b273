"""The loop. Pre-training, intermediate pre-training and fine-tuning are this function with another objective.

    for step in range(steps):
        batches = source.batches(step)                   # masked one step ahead, in a thread (data.py)
        targets = all ranks' number of labels            # before any backward: every target weighs the same
        for batch in batches: (objective(batch).loss / targets).backward()
        clip, set the learning rate, update
        what learns from the losses (a policy's weights, a sampler) learns, on all ranks alike

Everything random is a function of (seed, step, rank), so a run that was stopped goes on bit for bit.
Distribution, precision and trackers are Accelerate's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.models import encoder_of, freeze_encoder
from maskwise.objectives import Arms, Objective, Outcome
from maskwise.training.checkpoints import load_state, save_state
from maskwise.training.data import Source, look_ahead
from maskwise.training.learners import Learner, agreement, restore, states
from maskwise.training.machine import new_accelerator, reduced
from maskwise.training.metrics import Metrics
from maskwise.training.optim import Optimizers
from maskwise.training.progress import Progress
from maskwise.training.settings import TrainingSettings

Evaluate = Callable[[int], list[dict[str, Any]]]


def train(
    objective: Objective,
    source: Source,
    settings: TrainingSettings,
    *,
    folder: Path | None = None,
    learners: Mapping[str, Learner] = MappingProxyType({}),
    evaluate: Evaluate | None = None,
    title: str = "training",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train an objective; call it again with the same arguments, and it goes on where it was stopped.

    Args:
        objective: a module that turns a batch into (sum of losses, number of targets).
        source: gives the batches of a step.
        settings: see ``TrainingSettings``.
        folder: where ``metrics.jsonl`` and states to resume from go; None keeps nothing.
        learners: by name, what learns from the losses.
        evaluate: called with the number of updates done; its dicts become lines of metrics.
        title: what the progress bar says.
        quiet: no progress bar.

    Returns:
        ``steps``, ``seconds``, ``tokens``, ``targets``, ``resumed_at``, ``loss`` (mean of the last window).

    Raises:
        MaskwiseError: a batch size that ranks and micro-batches do not divide; a loss or gradient that is not
            finite; a folder with states of another run.
    """
    accelerator = new_accelerator(settings, folder, partial=isinstance(objective, Arms))
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if settings.batch_size % (settings.accumulate * ranks):
        raise MaskwiseError(
            "batch_size must be a multiple of accumulate × processes",
            got=f"{settings.batch_size} for {settings.accumulate} × {ranks}",
        )
    objective.to(device)
    _freeze(objective, settings)
    optimizers = Optimizers(objective, settings)
    run = _Run(objective, settings, accelerator)
    start: int = 0
    before: dict[str, Any] = {}
    if folder and settings.save_every:
        start, before, learned = load_state(
            folder / "resume", objective, optimizers, say=run.say, check=run.check
        )
        if start:
            restore(learners, learned)
    wrapped, agree = accelerator.prepare(objective), agreement(accelerator)
    metrics = Metrics(folder / "metrics.jsonl" if folder and run.first else None, keep_until=start)
    window = {"loss": 0.0, "targets": 0.0}
    total = {"tokens": before.get("tokens", 0), "targets": before.get("targets", 0)}
    began = time.perf_counter() - before.get("seconds", 0.0)
    last_loss: float | None = before.get("loss")
    for learner in learners.values() if not start else ():
        learner.after(0, settings.steps, agree)
    try:
        with Progress(title, settings.steps, start, hidden=quiet or not run.first) as progress:
            steps = look_ahead(source, range(start, settings.steps), rank=rank, ranks=ranks, device=device)
            for step, batches, labels, facts in steps:
                torch.manual_seed(fold(settings.seed, step, rank, 0xD0))
                _training_mode(objective, settings)
                targets = reduced(accelerator, {"targets": float(labels)})["targets"]
                rate = optimizers.set_rate(step)
                loss = _backward(accelerator, wrapped, batches, targets, learners)
                norm = float(accelerator.clip_grad_norm_(objective.parameters(), settings.clip or math.inf))
                # A step without any target counts as a step and changes nothing.
                if targets > 0:
                    optimizers.step()
                optimizers.zero_grad()
                done = step + 1
                for learner in learners.values():
                    learner.after(done, settings.steps, agree)
                _add(window, {"loss": loss, "targets": labels, **facts})
                if done % settings.log_every == 0 or done == settings.steps:
                    sums = reduced(accelerator, window)
                    window = dict.fromkeys(window, 0.0)
                    # Where the ratio has fallen to 0 there may be nothing to predict: no loss, which is not 0.
                    mean = sums["loss"] / sums["targets"] if sums["targets"] else None
                    last_loss = last_loss if mean is None else mean
                    for name, value in (("loss", sums["loss"]), ("gradient", norm)):
                        if not math.isfinite(value):
                            what = f"the {name} is not finite at step {done}"
                            raise MaskwiseError(what, got=value, do="lower the learning rate")
                    line = {"loss": mean, "targets": int(sums["targets"]), **source.summarise(sums)}
                    total["tokens"] += line.get("tokens", 0)
                    total["targets"] += line["targets"]
                    line |= {"tokens": total["tokens"], "lr": rate, "grad_norm": norm}
                    seconds = round(time.perf_counter() - began, 3)
                    taught = {k: v for learner in learners.values() for k, v in learner.facts().items()}
                    metrics.write({"kind": "train", "step": done, **line, **taught, "seconds": seconds})
                    tracked = {f"train/{k}": v for k, v in line.items() if v is not None}
                    accelerator.log(tracked, step=done)
                    progress.note(loss=last_loss, ratio=line.get("ratio"))
                if evaluate and (done == settings.steps or _due(done, settings.eval_every)):
                    _evaluate(evaluate, objective, done, metrics, accelerator)
                if folder and _due(done, settings.save_every) and done < settings.steps:
                    if run.first:
                        seconds = time.perf_counter() - began
                        state = {**run.facts, **total, "loss": last_loss, "seconds": seconds}
                        save_state(folder / "resume", done, objective, optimizers, state, states(learners))
                    accelerator.wait_for_everyone()
                progress.advance()
    finally:
        metrics.close()
    seconds = time.perf_counter() - began
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return {"steps": settings.steps, "seconds": seconds, "loss": last_loss, "resumed_at": start, **total}


class _Run:
    """What a state must share with the run that resumes from it."""

    free = {"log_every", "eval_every", "save_every", "trackers", "accumulate", "precision"}
    """Settings that change no result, or its last bits only."""

    def __init__(self, objective: Objective, settings: TrainingSettings, accelerator: Accelerator):
        self.first = accelerator.is_main_process
        config = getattr(getattr(objective, "model", None), "config", None)
        bits = {
            "threads": torch.get_num_threads(), "processes": accelerator.num_processes,
            "accumulate": settings.accumulate, "precision": accelerator.mixed_precision,
            "device": accelerator.device.type, "attention": getattr(config, "_attn_implementation", None),
            "torch": torch.__version__,
        }  # fmt: skip
        self.facts = {"settings": settings.model_dump(mode="json", exclude=self.free), "bits": bits}

    def say(self, text: str) -> None:
        """A line on stderr, once for all ranks."""
        if self.first:
            Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)

    def check(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Refuse a state of another run; say so where it is the same in all but the last bits."""
        # A setting that an older state does not know had its default.
        before = {**TrainingSettings().model_dump(mode="json"), **facts.get("settings", {})}
        changed = _changes(before, self.facts["settings"])
        if changed:
            raise MaskwiseError(
                f"{folder} is of a run with other settings", got=changed, do="give a new folder"
            )
        changed = _changes(facts.get("bits", {}), self.facts["bits"])
        if changed:
            self.say(f"resuming from {folder} with {changed}: the same run but for rounding and dropout")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v} (was {before.get(k)})" for k, v in now.items() if before.get(k) != v)


def _backward(
    accelerator: Accelerator,
    wrapped: Any,
    batches: list[Any],
    targets: float,
    learners: Mapping[str, Learner],
) -> float:
    """Gradients of (losses of all ranks and micro-batches) / (number of targets); returns this rank's sum."""
    total = 0.0
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            with accelerator.autocast():
                outcome: Outcome = wrapped(batch)
            # DDP averages gradients over ranks, so a rank's sum is multiplied by their number first.
            accelerator.backward(outcome.loss * (accelerator.num_processes / max(1.0, targets)))
        for learner in learners.values():
            learner.observe(batch, outcome)
        total += float(outcome.loss.detach())
    return total


def _freeze(objective: Objective, settings: TrainingSettings) -> None:
    """Before there are optimisers: what is frozen has no gradient, no state and no weight decay."""
    if settings.freeze == "encoder":
        freeze_encoder(objective.model)
        if not any(parameter.requires_grad for parameter in objective.parameters()):
            got = type(objective.model).__name__
            raise MaskwiseError("nothing is left to train", got=got, do="set training.freeze: none")


def _training_mode(objective: Objective, settings: TrainingSettings) -> None:
    """Dropout on, but in a frozen encoder: there it protects no weight from anything,
    and the head would learn to read states that it never sees again."""
    objective.train()
    if settings.freeze == "encoder":
        encoder_of(objective.model).eval()


def _evaluate(
    evaluate: Evaluate, objective: Objective, step: int, metrics: Metrics, accelerator: Accelerator
) -> None:
    objective.eval()
    with torch.no_grad(), accelerator.autocast():
        for line in evaluate(step):
            metrics.write({"kind": "eval", "step": step, **line})
            accelerator.log({f"eval/{line.get('masks', 'task')}/{k}": v for k, v in line.items()}, step=step)
    objective.train()


def _due(done: int, every: int) -> bool:
    return bool(every) and done % every == 0


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value
