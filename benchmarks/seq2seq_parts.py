"""The time of each part of an encoder–decoder training step, in maskwise and in transformers.

    python benchmarks/seq2seq_parts.py [--model bart] > parts.json

The contestants are those of ``seq2seq.py``. Figures are milliseconds of processor time per step,
averaged over all epochs except the first. Hooks mark the end of each part in the training thread:

- *encoder* and *decoder*: forward and backward passes;
- *head and loss*: from the end of the decoder to the beginning of the decoder's backward pass;
- *optimiser*: only the optimiser step. Gradient clipping is part of the encoder's backward pass;
- *batches and loop*: everything else, including masking and padding;
- *other threads*: the time of the process outside the training thread.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from itertools import product
from typing import Any

import torch
from command import run
from rich.console import Console
from rich.progress import track
from seq2seq import FORMATS, LAYOUTS, Contest, Family
from timing import Clock
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from maskwise.bench import Figures, Noise, surroundings

EPOCHS = 4
PARTS = (
    "batches and loop",
    "encoder, forward",
    "decoder, forward",
    "head and loss",
    "decoder, backward",
    "encoder, backward",
    "optimiser",
    "other threads",
)


class Marks(Clock):
    """A clock that sums the thread's processor time between marks, keyed by part."""

    def __init__(self, warm: int, last: int):
        super().__init__(warm, last)
        self.seconds = defaultdict(float)
        self.mark = 0.0

    def end_of(self, part: str, *_: object) -> None:
        now = time.thread_time()
        self.seconds[part] += now - self.mark
        self.mark = now

    def tick(self, done: int) -> None:
        self.end_of("batches and loop")
        super().tick(done)
        if done == self.warm:
            self.seconds.clear()

    def attach(self, network: Any) -> None:
        """Register hooks before and after the encoder and the decoder, in both passes."""
        for half, ends in (("encoder", "decoder, backward"), ("decoder", "head and loss")):
            module = getattr(network, f"get_{half}")()
            module.register_forward_pre_hook(partial(self.end_of, "batches and loop"))
            module.register_forward_hook(partial(self._after, f"{half}, forward", ends))

    def _after(self, part: str, ends: str, _module: Any, _inputs: Any, output: Any) -> None:
        self.end_of(part)
        # An output has its gradient as soon as the backward pass of all later parts has ended.
        output.last_hidden_state.register_hook(partial(self.end_of, ends))


def parts_of(family: str, wanted: str, who: str) -> Figures:
    """Return the milliseconds of each part of a step, for one contestant and format."""
    contest = Contest(family, wanted)
    network = contest.model()
    epoch = contest.epoch(who)
    marks = Marks(epoch, EPOCHS * epoch)
    marks.attach(network)
    hooks = [
        register_optimizer_step_pre_hook(partial(marks.end_of, "encoder, backward")),
        register_optimizer_step_post_hook(partial(marks.end_of, "optimiser")),
    ]
    try:
        contest.train(who, network, marks)
    finally:
        for hook in hooks:
            hook.remove()
    marks.seconds["other threads"] = marks.processor - sum(marks.seconds.values())
    steps = marks.last - marks.warm
    figures = {part: round(1000 * marks.seconds[part] / steps, 2) for part in PARTS}
    total = round(1000 * marks.processor / steps, 2)
    return {"format": wanted, "name": who, **figures, "sum": total}


def main(model: Family = "bart") -> Figures:
    torch.set_num_threads(1)
    noise = Noise()
    lines = []
    turns = list(product(FORMATS, LAYOUTS))
    for wanted, who in track(turns, "timing parts", console=Console(stderr=True)):
        noise.probe()
        lines.append(parts_of(model, wanted, who))
    noise.probe()
    return {
        "model": model,
        "milliseconds_per_step": lines,
        "noise": noise.report(),
        "hardware": surroundings(["torch", "transformers", "accelerate"]),
    }


if __name__ == "__main__":
    run(main, __doc__)
