"""The cost of a sampler that learns: the time of a probe relative to the steps between two probes.

    python benchmarks/samplers.py > samplers.json

A sampler chooses the objective (arm) of each training step. At a probe, it evaluates every arm on
half a batch of held-out rows. One model has MiniLM's size, the other is tiny. The text is the
bundled Wikipedia. sampler_regret.py measures the benefit of samplers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from command import run
from timing import sample_text

from maskwise.bench import Figures, surroundings
from maskwise.models import new_config, new_model
from maskwise.objectives import objective, objective_class
from maskwise.samplers import sampler
from maskwise.text import split
from maskwise.training import MaskedSource, TrainingSettings
from maskwise.training.arms import Arms, ArmsSource, Probe

ARMS = {"mlm": {}, "mlm-40": {"ratio": 0.4}, "atd": {}, "dtd": {}, "cse": {}}
SIZES = {
    "tiny (2 x 128)": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 336,
    },
    "MiniLM's (6 x 384)": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
EVERY = 100  # Training steps between two probes.
BATCH_SIZE, LENGTH = 16, 128


class Data:
    """The bundled Wikipedia as rows for training and for probes, and the maskers of all arms."""

    def __init__(self) -> None:
        self.tokenizer, pieces = sample_text(600, vocabulary=2048, length=LENGTH)
        self.training, self.held_out = split(pieces, held_out=0.2, layout="document")

    def maker(self, arm: str) -> Any:
        kind = objective_class(arm.partition("-")[0])
        settings = kind.settings({}, ARMS.get(arm, {}))
        return kind.maker(self.tokenizer, seed=0, length=LENGTH, **settings)


def overhead(size: str, data: Data, steps: int) -> Figures:
    """Return the time of a probe relative to the training steps between two probes.

    Args:
        size: the size of the model.
        data: the rows.
        steps: the number of timed training steps per arm, and of timed probes.
    """
    settings = TrainingSettings(steps=steps * len(ARMS), batch_size=BATCH_SIZE)
    model = new_model(new_config("bert", data.tokenizer, LENGTH, **SIZES[size]), seed=0)
    arms = Arms({name: objective(name.partition("-")[0], model) for name in ARMS})
    sources = {name: MaskedSource(data.training, data.maker(name), settings) for name in ARMS}
    source = ArmsSource(sources, sampler("sequential", list(ARMS)), settings)
    optimizer = torch.optim.AdamW(arms.parameters(), lr=1e-4)

    def train(step: int) -> None:
        (batch,) = source.batches(step, rank=0, ranks=1)
        loss, targets, *_ = arms(batch)
        (loss / targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    probe = Probe(
        arms,
        source,
        dict.fromkeys(ARMS, data.held_out),
        sizes=dict.fromkeys(ARMS, BATCH_SIZE // 2),
        skip={},
    )
    arms.train()
    for step in range(len(ARMS)):  # Each arm trains once untimed, to warm up.
        train(step)
    step_seconds = seconds_of(train, settings.steps)
    probe_seconds = seconds_of(lambda number: probe(0), steps)
    return {
        "model": size,
        "batch": f"{BATCH_SIZE} x {LENGTH}",
        "arms": len(ARMS),
        "every": EVERY,
        "step_ms": round(1000 * step_seconds, 2),
        "probe_ms": round(1000 * probe_seconds, 2),
        "overhead": round(probe_seconds / (EVERY * step_seconds), 5),
    }


def seconds_of(call: Callable[[int], object], times: int) -> float:
    """Return the mean processor seconds of a call."""
    began = time.process_time()
    for number in range(times):
        call(number)
    return (time.process_time() - began) / times


def main(steps: int = 12) -> Figures:
    torch.set_num_threads(1)
    data = Data()
    return {
        "overhead": [overhead(size, data, steps) for size in SIZES],
        "hardware": surroundings(["torch", "transformers"]),
    }


if __name__ == "__main__":
    run(main, __doc__)
