"""What benches of trainings share: contestants that take turns, the clock inside a training, and
transformers' ``Trainer`` as a contestant.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
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

from maskwise.bench import Figures, Noise
from maskwise.devices import best_device
from maskwise.masking.policies.base import Learner, Point
from maskwise.text import read_documents, read_pieces, tokenise, train_tokenizer


def sample_text(limit: int, *, vocabulary: int, length: int) -> tuple[Any, Any]:
    """Return a tokenizer trained on the first articles of the bundled Wikipedia, and their
    pieces.
    """
    documents = list(read_documents("bundled:wikipedia", limit=limit))
    texts = (document.text for document in documents)
    tokenizer = train_tokenizer(texts, vocab_size=vocabulary)
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
    return tokenizer, pieces


def in_rounds(turns: Sequence[Callable[[], object]], rounds: int) -> Figures:
    """Call every contestant once in each round.

    Returns:
        how busy the machine was meanwhile (``maskwise.bench.Noise``).
    """
    noise = Noise()
    for _ in track(range(rounds), "timing rounds", console=Console(stderr=True)):
        noise.probe()
        for turn in turns:
            turn()
    noise.probe()
    return noise.report()


def relative(rates: Sequence[float], to: Sequence[float]) -> tuple[float, list[float]]:
    """Return the median over rounds of one contestant's rate relative to another's, and its range.

    >>> relative([2.0, 3.0, 3.0], [1.0, 1.0, 2.0])
    (2.0, [1.5, 3.0])
    """
    ratios = [round(rate / other, 3) for rate, other in zip(rates, to, strict=True)]
    return median(ratios), [min(ratios), max(ratios)]


class Clock(Learner, TrainerCallback):
    """Takes the time of the steps of a training, as a learner of our loop or a callback of
    ``Trainer``.

    Args:
        warm, last: the numbers of completed updates between which the time is taken.

    Attributes:
        device: the device that is waited for at both.
        wall, processor: wall-clock and this process's processor seconds between both.
    """

    def __init__(self, warm: int, last: int):
        self.warm = warm
        self.last = last
        self.device = best_device()
        self.wall = self.processor = 0.0

    def tick(self, done: int) -> None:
        """Note the time, if it is one of the two."""
        if done not in (self.warm, self.last):
            return
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        # The time at the first of them is subtracted from that at the second.
        self.wall = time.perf_counter() - self.wall
        self.processor = time.process_time() - self.processor

    def after(self, now: Point) -> None:
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
    """Let transformers' ``Trainer`` make ``clock.last`` updates.

    Args:
        clock: takes the time.
        loop, settings: the class of the loop, and that of its arguments.
        arguments: of ``TrainingArguments``, beyond those that every bench sets: fused AdamW, no
            logging, no checkpoints.

    Returns:
        The mean loss of its steps.
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
