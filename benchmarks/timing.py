"""Helpers to time training: rounds in which all contestants train, a clock inside a run, and
transformers' ``Trainer``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from figures import Figures, noise_of, probe
from rich.console import Console
from rich.progress import track
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from maskwise.base.devices import best_device
from maskwise.text import read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training.learners import Learner, Progress


def sample_text(limit: int, *, vocabulary: int, length: int) -> tuple[Any, Any]:
    """Return a tokenizer trained on the first articles of the bundled Wikipedia, and the pieces of
    these articles.
    """
    documents = list(read_documents("bundled:wikipedia", limit=limit))
    texts = (document.text for document in documents)
    tokenizer = train_tokenizer(texts, vocab_size=vocabulary)
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
    return tokenizer, pieces


def in_rounds(turns: Sequence[Callable[[], object]], rounds: int) -> Figures:
    """Call each contestant once in each round.

    Returns:
        The times of a fixed piece of work (``figures.noise_of``).
    """
    probes = []
    for _ in track(range(rounds), "timing rounds", console=Console(stderr=True)):
        probes.append(probe())
        for turn in turns:
            turn()
    probes.append(probe())
    return noise_of(probes)


def relative(rates: Sequence[float], to: Sequence[float]) -> tuple[float, list[float]]:
    """Return the median and the range, over rounds, of the ratio of two contestants' rates.

    >>> relative([2.0, 3.0, 3.0], [1.0, 1.0, 2.0])
    (2.0, [1.5, 3.0])
    """
    ratios = [round(rate / other, 3) for rate, other in zip(rates, to, strict=True)]
    return median(ratios), [min(ratios), max(ratios)]


class Clock(Learner, TrainerCallback):
    """A clock for the steps of a training run: a learner of maskwise and a callback of ``Trainer``.

    Args:
        warm, last: the numbers of completed updates at which the clock starts and stops.

    Attributes:
        device: the device, which is synchronised at the start and the stop.
        wall, processor: the wall and processor seconds between the start and the stop.
    """

    def __init__(self, warm: int, last: int):
        self.warm = warm
        self.last = last
        self.device = best_device()
        self.wall = self.processor = 0.0

    def tick(self, done: int) -> None:
        """Start or stop the clock if ``done`` is one of the two numbers of updates."""
        if done not in (self.warm, self.last):
            return
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        # At the start, this stores the time; at the stop, it subtracts the start from the time.
        self.wall = time.perf_counter() - self.wall
        self.processor = time.process_time() - self.processor

    def after(self, now: Progress) -> None:
        self.tick(now.done)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.tick(state.global_step)

    @property
    def seconds_per_step(self) -> float:
        return self.wall / (self.last - self.warm)


def time_trainer(
    clock: Clock,
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Figures]], Any],
    *,
    batch_size: int,
    loop: type[Trainer] = Trainer,
    settings: type[TrainingArguments] = TrainingArguments,
    **arguments: Any,
) -> float:
    """Train with transformers' ``Trainer`` for ``clock.last`` updates.

    Args:
        clock: the clock, added as a callback.
        model: the model to train.
        rows: the training data.
        collator: a collator for the rows.
        batch_size: the number of rows in a batch.
        loop, settings: the classes of the trainer and of its arguments.
        arguments: further ``TrainingArguments``. Fused AdamW, no logging and no checkpoints are
            already set.

    Returns:
        The mean training loss.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings(
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
        trainer = loop(model, chosen, data_collator=collator, train_dataset=rows)
        trainer.pop_callback(PrinterCallback)
        trainer.add_callback(clock)
        return float(trainer.train().training_loss)
