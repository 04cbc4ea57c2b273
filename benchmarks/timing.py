"""Clocks for the benches in this folder: seconds of a step without start-up, of whole runs and
inside a training. How noisy the machine was is said by ``maskwise.bench.Noise``: call ``probe()``
between repetitions, and keep ``report()`` and ``spread(…)`` with the figures.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from maskwise.bench import Noise
from maskwise.devices import best_device
from maskwise.masking.policies.base import Learner, Point

Result = TypeVar("Result")


def seconds_per_step(
    contestants: Mapping[str, Callable[[int], Result]],
    *,
    steps: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[dict[str, float], dict[str, Result]]:
    """Median seconds of a step of each contestant, and what its last run gave.

    A step is the difference between a run of twice as many steps and one of ``steps``, so that
    start-up does not count.

    Args:
        contestants: what to call with a number of steps, by name; they take turns.
        clock: by default the processor's time.
    """
    seconds, results = repeated_steps(contestants, steps=steps, rounds=rounds, clock=clock)
    return {name: median(values) for name, values in seconds.items()}, results


def repeated_steps(
    contestants: Mapping[str, Callable[[int], Result]],
    *,
    steps: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    noise: Noise | None = None,
) -> tuple[dict[str, list[float]], dict[str, Result]]:
    """Like ``seconds_per_step``, with the seconds of every round.

    Args:
        noise: is probed before each round and after the last.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results: dict[str, Result] = {}
    for _ in range(rounds):
        if noise:
            noise.probe()
        for name, call in contestants.items():
            spent = []
            for count in (steps, 2 * steps):
                gc.collect()
                start = clock()
                results[name] = call(count)
                spent.append(clock() - start)
            seconds[name].append((spent[1] - spent[0]) / steps)
    if noise:
        noise.probe()
    return seconds, results


class Clock(Learner):
    """The time of a step inside a training: a learner of our loop, and with ``PeerClock`` a
    callback of ``Trainer``.

    Args:
        warm, last: numbers of updates done, between which the time is taken.

    Attributes:
        device: that is waited for at both.
        times, spent: wall-clock and this process's processor seconds at both.
    """

    def __init__(self, warm: int, last: int):
        self.warm, self.last, self.device = warm, last, best_device()
        self.times: dict[int, float] = {}
        self.spent: dict[int, float] = {}

    def tick(self, done: int) -> None:
        """Note the time, if it is one of the two."""
        if done in (self.warm, self.last):
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            self.times[done] = time.perf_counter()
            self.spent[done] = time.process_time()

    @property
    def seconds_per_step(self) -> float:
        return (self.times[self.last] - self.times[self.warm]) / (self.last - self.warm)

    def after(self, now: Point) -> None:
        self.tick(now.done)


class PeerClock(TrainerCallback):
    """A ``Clock`` for ``Trainer``."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.clock.tick(state.global_step)


def time_trainer(
    clock: Clock,
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    **arguments: Any,
) -> float:
    """Let transformers' ``Trainer`` make ``clock.last`` updates.

    Args:
        clock: takes the time.
        arguments: of ``TrainingArguments``, beyond those that every bench sets: fused AdamW, no
            logging, no checkpoints.

    Returns:
        The mean loss of its steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = TrainingArguments(
            folder,
            max_steps=clock.last,
            per_device_train_batch_size=batch_size,
            optim="adamw_torch_fused",
            logging_steps=clock.last,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **arguments,
        )
        trainer = Trainer(model, chosen, data_collator=collator, train_dataset=rows)
        trainer.pop_callback(PrinterCallback)
        trainer.add_callback(PeerClock(clock))
        return float(trainer.train().training_loss)


def processor_seconds(call: Callable[[], object]) -> float:
    """What one call costs this process."""
    began = time.process_time()
    call()
    return time.process_time() - began
