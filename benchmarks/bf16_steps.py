"""How much faster a processor trains in bf16 than in float32: matrix products, and whole steps.

    OMP_NUM_THREADS=1 python benchmarks/bf16_steps.py [--rounds N]

``training.precision: auto`` measures matrix products, and uses bf16 where they gain a factor of
``devices.WORTHWHILE``. This shows what that is worth for a step of two BERTs. Steps in the two
precisions alternate. The figure is the processor time of the fastest step, which a busy machine
affects least.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Annotated, Any

import torch
import typer
from command import run
from figures import surroundings
from transformers import BertConfig, BertForMaskedLM

from maskwise.base.devices import WORTHWHILE, measured_rate

SIZES = {"2 × 128, 12 × 64 tokens": (2, 128, 12, 64), "4 × 512, 16 × 128 tokens": (4, 512, 16, 128)}
"""Layers and width of the model, rows and columns of a batch."""


def gains(rounds: Annotated[int, typer.Option(min=2)] = 12) -> dict[str, Any]:
    """Measure products and steps in both precisions."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    product = measured_rate(cpu, torch.bfloat16) / measured_rate(cpu, torch.float32)
    steps = {name: gain_of(*size, rounds=rounds) for name, size in SIZES.items()}
    load = round(os.getloadavg()[0], 1)
    found = {"product_gain": round(product, 2), "threshold": WORTHWHILE, "steps": steps}
    return {**surroundings(), "load": load, **found}


def gain_of(layers: int, width: int, rows: int, columns: int, *, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of processor time of a step in float32 and in bf16, and their ratio.

    The steps are forward, backward and AdamW, on tokens drawn at random.
    """
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        vocab_size=8192,
    )
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, config.vocab_size, (rows, columns))
    seconds: dict[str, list[float]] = {"float32": [], "bf16": []}
    for _ in range(rounds):
        for precision, taken in seconds.items():
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.process_time() - began)
    fastest = {name: round(1e3 * min(taken), 1) for name, taken in seconds.items()}
    ratios = [whole / half for whole, half in zip(*seconds.values())]
    gain = fastest["float32"] / fastest["bf16"]
    return {"ms": fastest, "gain": round(gain, 2), "median_gain": round(median(ratios), 2)}


if __name__ == "__main__":
    run(gains, __doc__)
