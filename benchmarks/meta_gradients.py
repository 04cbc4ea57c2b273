"""What a meta-gradient costs: time and memory of both back-ends, beside an ordinary training step
on the same rows.

One thread, single precision, invented contexts of 64 tokens, one question a context. Each figure is
taken in a process of its own: processor time is the median over the rounds, memory the peak above
what the process held before (model, parameters and inputs not counted).

    python benchmarks/meta_gradients.py [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import ModernBertConfig

from maskwise.bench import surroundings
from maskwise.learning.gradients import BACKENDS, InnerStep, Losses, meta_gradient, values_of
from maskwise.learning.relaxation import RelaxedDenoising
from maskwise.models import new_model
from maskwise.objectives import MaskedLanguageModelling

SIZES = {"2 × 128": (128, 2), "6 × 384": (384, 6)}
VOCABULARY, LENGTH, QUESTION, MASK = 2048, 64, 16, 4


def model_of(width: int, layers: int) -> Losses:
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=int(2.625 * width),
        layer_types=["full_attention"] * layers,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    model = new_model(config, seed=0).eval()
    return Losses(RelaxedDenoising(model, MASK), MaskedLanguageModelling(model))


def rows_of(rows: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Contexts, a mask of 15 % of their tokens, and questions with one answer each."""
    ids = torch.randint(5, VOCABULARY, (rows, LENGTH))
    question = torch.randint(5, VOCABULARY, (rows, QUESTION))
    labels = torch.full_like(question, -100)
    labels[:, -2], question[:, -2] = question[:, -2], MASK
    asked = {"input_ids": question, "attention_mask": torch.ones_like(question), "labels": labels}
    mask = (torch.rand(rows, LENGTH) < 0.15).float()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, mask, asked


def work(what: str, losses: Losses, rows: int, inner: int) -> None:
    """A meta-gradient by a back-end, or the gradients of as many ordinary steps: masked text and
    task in turn.
    """
    text, mask, asked = rows_of(rows)
    budget, theta = mask.sum(), values_of(losses)
    steps = [
        step
        for _ in range(inner)
        for step in (
            InnerStep(losses.of(text, budget), 0.5, mask),
            InnerStep(losses.of(asked), 0.1),
        )
    ]
    if what in BACKENDS:
        meta_gradient(theta, steps, losses.of(asked), backend=what)
        return
    leaves = {name: value.requires_grad_() for name, value in theta.items()}
    for step in steps:
        torch.autograd.grad(step.loss(leaves, step.mask), list(leaves.values()), allow_unused=True)


def measure(what: str, size: str, rows: int, inner: int, rounds: int) -> dict[str, Any]:
    losses = model_of(*SIZES[size])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, seconds = _megabytes("VmRSS"), []
    for _ in range(rounds):
        begin = time.process_time()
        work(what, losses, rows, inner)
        seconds.append(time.process_time() - begin)
    peak = _megabytes("VmHWM") - before
    return {
        "what": what,
        "model": size,
        "rows": rows,
        "inner_steps": inner,
        "seconds": round(median(seconds), 3),
        "peak_megabytes": round(peak),
    }


def _megabytes(name: str) -> float:
    line = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line
    return int(line[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for size in SIZES:
        for inner in (1, 3):
            for what in ("training steps", *BACKENDS):
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    results.append(
                        pool.apply(measure, (what, size, arguments.rows, inner, arguments.rounds))
                    )
                if not arguments.json:
                    line = (
                        "{what:18} {model:8} inner steps {inner_steps}: {seconds:7.3f} s "
                        "{peak_megabytes:6} MB"
                    )
                    Console(highlight=False).print(line.format(**results[-1]))
    if arguments.json:
        facts = surroundings(["torch", "transformers"])
        Console().print_json(json.dumps({**facts, "results": results}))


if __name__ == "__main__":
    main()
