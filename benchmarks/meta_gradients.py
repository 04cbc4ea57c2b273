"""Time and memory of a meta-gradient, compared with ordinary training steps on the same rows.

A meta-gradient is the gradient of a task loss with respect to the masking policy, through the
training steps on the masked text.

    python benchmarks/meta_gradients.py [--rows 32] [--rounds 3]

The benchmark uses one thread, single precision, and random contexts of 64 tokens with one question
each. Each figure is measured in a new process. Processor time is the median over the rounds. Memory
is the peak of the process minus its memory before the first round, when the model is already
loaded.
"""

from __future__ import annotations

import multiprocessing
import time
from itertools import product
from statistics import median

import torch
from command import memory, run
from figures import Figures, surroundings
from torch import Tensor
from transformers import ModernBertConfig

from maskwise.learning.gradients import InnerStep, Losses, meta_gradient, values_of
from maskwise.learning.relaxation import RelaxedDenoising
from maskwise.models.loading import new_model
from maskwise.objectives import MaskedLanguageModelling

WHAT = ("training steps", "meta-gradient")
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
    """Return contexts, a mask of 15 % of their tokens, and questions with one answer each."""
    ids = torch.randint(5, VOCABULARY, (rows, LENGTH))
    question = torch.randint(5, VOCABULARY, (rows, QUESTION))
    labels = torch.full_like(question, -100)
    labels[:, -2], question[:, -2] = question[:, -2], MASK
    asked = {"input_ids": question, "attention_mask": torch.ones_like(question), "labels": labels}
    mask = (torch.rand(rows, LENGTH) < 0.15).float()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, mask, asked


def work(what: str, losses: Losses, rows: int, inner: int) -> None:
    """Compute a meta-gradient, or the gradients of the same number of ordinary steps.

    The ordinary steps alternate between masked text and the task.
    """
    text, mask, asked = rows_of(rows)
    steps = [
        InnerStep(losses.of(text, mask.sum()), 0.5, mask),
        InnerStep(losses.of(asked), 0.1),
    ] * inner
    theta = values_of(losses)
    if what == "meta-gradient":
        meta_gradient(theta, steps, losses.of(asked))
        return
    leaves = {name: value.requires_grad_() for name, value in theta.items()}
    for step in steps:
        torch.autograd.grad(step.loss(leaves, step.mask), list(leaves.values()), allow_unused=True)


def measure(what: str, size: str, rows: int, inner: int, rounds: int) -> Figures:
    losses = model_of(*SIZES[size])
    before = memory("VmRSS")
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        work(what, losses, rows, inner)
        seconds.append(time.process_time() - began)
    return {
        "what": what,
        "model": size,
        "rows": rows,
        "inner_steps": inner,
        "seconds": round(median(seconds), 3),
        "peak_megabytes": round(memory("VmHWM") - before),
    }


def main(rows: int = 32, rounds: int = 3) -> Figures:
    torch.set_num_threads(1)
    results = []
    for size, inner, what in product(SIZES, (1, 3), WHAT):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            results.append(pool.apply(measure, (what, size, rows, inner, rounds)))
    return {**surroundings(), "results": results}


if __name__ == "__main__":
    run(main, __doc__)
