"""Where the time of an encoder–decoder's training step goes, in our loop and in transformers'.

    python benchmarks/seq2seq_parts.py [--model bart] > parts.json

The contests are those of ``seq2seq.py``. Figures are milliseconds of processor time of one core,
means of a step over the epochs after the first. Hooks between the parts take the time, so a part
is what the thread that trains did from one mark to the next:

- *encoder* and *decoder*, forward and backward;
- *head and loss*, from the end of the decoder to the beginning of its backward pass;
- *optimiser*: its step alone; clipping counts as backward pass of the encoder;
- *batches and loop*: everything else, masking and padding among it;
- *other threads*: what the process spent outside this thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from seq2seq import CONTESTANTS, FORMATS, PEER, TINY, Contest, Noise, Runner
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from maskwise.bench import surroundings

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


class Marks:
    """Sums of the thread's processor time between marks, by the part that ends there."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.last = time.thread_time()

    def end_of(self, part: str) -> None:
        now = time.thread_time()
        self.seconds[part] += now - self.last
        self.last = now

    def attach(self, network: Any) -> None:
        """Set the hooks of a model: marks before and after each half, in both directions."""
        for half, after_backward in (("encoder", "decoder"), ("decoder", None)):
            module = getattr(network, f"get_{half}")()

            def before(*_: object) -> None:
                self.end_of("batches and loop")

            def after(
                _module: object,
                _inputs: object,
                output: Any,
                half: str = half,
                after_backward: str | None = after_backward,
            ) -> None:
                self.end_of(f"{half}, forward")
                # The gradient of an output is complete when what reads it has gone backward.
                ends = f"{after_backward}, backward" if after_backward else "head and loss"
                output.last_hidden_state.register_hook(lambda gradient: self.end_of(ends))

            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)


class PartsRunner(Runner):
    """Takes no turns: empties the sums once the first epoch is over.

    Args:
        marks: whose sums are kept.
    """

    def __init__(self, marks: Marks):
        self.marks = marks
        self.line = self
        self.per_epoch = 0
        self.calls = 0
        self.began = 0.0

    def send(self, per_epoch: int) -> None:
        """Called with the number of steps of an epoch before the training starts."""
        self.per_epoch = per_epoch

    def step_done(self, tokens: int) -> None:
        # The first call precedes the first step.
        if self.calls == self.per_epoch:
            self.marks.seconds.clear()
            self.marks.last = time.thread_time()
            self.began = time.process_time()
        self.calls += 1


class MarkedContest(Contest):
    """A contest whose models have the hooks of ``marks``."""

    marks: Marks

    def model(self) -> Any:
        network = super().model()
        self.marks.attach(network)
        return network


def parts_of(family: str, wanted: str, who: str) -> dict[str, Any]:
    """Milliseconds of a step by part, for one contestant and format."""
    contest = MarkedContest(family, wanted, EPOCHS)
    marks = contest.marks = Marks()
    runner = PartsRunner(marks)
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: marks.end_of("encoder, backward")),
        register_optimizer_step_post_hook(lambda *_: marks.end_of("optimiser")),
    ]
    try:
        if who == PEER:
            contest.peer(runner)
        else:
            contest.ours(who, runner)
    finally:
        for hook in hooks:
            hook.remove()
    spent = time.process_time() - runner.began
    marks.end_of("batches and loop")
    marks.seconds["other threads"] = spent - sum(marks.seconds.values())
    steps = (EPOCHS - 1) * runner.per_epoch
    figures = {part: round(1000 * marks.seconds[part] / steps, 2) for part in PARTS}
    return {"format": wanted, "name": who, **figures, "sum": round(1000 * spent / steps, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=TINY, default="bart")
    given = parser.parse_args()
    torch.set_num_threads(1)
    noise = Noise()
    turns = [(wanted, who) for wanted in FORMATS for who in CONTESTANTS]
    lines = []
    for wanted, who in track(turns, "timing parts", console=Console(stderr=True)):
        noise.probe()
        lines.append(parts_of(given.model, wanted, who))
    noise.probe()
    result = {
        "model": given.model,
        "milliseconds_per_step": lines,
        "noise": noise.report(),
        "hardware": surroundings(["torch", "transformers", "accelerate"]),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
