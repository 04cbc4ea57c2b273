"""What masked diffusion costs beside masked language modelling: a step with as many targets, and
its masks.

    python benchmarks/diffusion_step.py [--rounds N]

All take turns in one process with one thread, and figures are processor time, so that neighbours on
the machine hit all alike. A step is one of the quick start (12 × 64 tokens), with the making of its
batch: rates from U(0, 1) mask half of the tokens on average, and masked language modelling masks
    half of each row. Masks are those of 32 × 512 tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from command import run
from timing import relative

from maskwise.bench import DIFFUSION, Sample, surroundings
from maskwise.masking import Masker, Vocabulary
from maskwise.masking.diffusion import Noising
from maskwise.models import new_config, new_model
from maskwise.objectives import objective
from maskwise.recipe import read_recipe
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource
from maskwise.training.data import look_ahead
from maskwise.training.engine import Engine

WARM = 3
"""Rounds that do not count."""


def steps() -> dict[str, Callable[[int], int]]:
    """By objective: the step of a number, which returns the number of its targets."""
    recipe = read_recipe("quick-start")
    documents = list(read_documents(recipe.corpus.source, limit=400))
    texts = (document.text for document in documents)
    tokenizer = train_tokenizer(texts, vocab_size=recipe.tokenizer.vocab_size)
    length = recipe.corpus.length
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
    config = new_config(recipe.model.architecture, tokenizer, length, **recipe.model.settings)
    maskers = {
        "mlm": Masker(tokenizer, ratio=0.5, corruption="mask-only"),
        "diffusion": Noising(tokenizer),
    }

    def step(source: MaskedSource, engine: Engine, number: int) -> int:
        [batches] = look_ahead(source, range(number, number + 1))
        return int(engine.update(batches, lambda *_: None).targets)

    found = {}
    for name, masker in maskers.items():
        source = MaskedSource(Rows.of(pieces, "packed"), masker, recipe.training)
        engine = Engine(objective(name, new_model(config, seed=0)), recipe.training)
        found[name] = partial(step, source, engine)
    return found


def masks() -> dict[str, Callable[[int], int]]:
    """By masker: the masks of the batch of a number."""
    sample = Sample(8192)
    batches = sample.batches(32, 512, "documents")
    vocabulary = Vocabulary.of(sample.tokenizer)
    maskers = {"token": Masker(vocabulary, policy="token", ratio=0.15)}
    maskers |= {name: Noising(vocabulary, **how) for name, how in DIFFUSION.items()}

    def mask(masker: Masker, number: int) -> int:
        return masker(batches[number % len(batches)], epoch=number).targets

    return {name: partial(mask, masker) for name, masker in maskers.items()}


def contest(
    sides: dict[str, Callable[[int], int]], rounds: int, against: str
) -> dict[str, dict[str, float]]:
    """Milliseconds of each side, and the median over rounds of its ratio to ``against``."""
    spent = {name: [] for name in sides}
    targets = {name: [] for name in sides}
    for number in range(WARM + rounds):
        for name, side in sides.items():
            began = time.process_time()
            targets[name].append(side(number))
            spent[name].append(time.process_time() - began)
    found = {}
    for name, seconds in spent.items():
        ratio, _ = relative(seconds[WARM:], spent[against][WARM:])
        found[name] = {
            "milliseconds": round(1e3 * median(seconds[WARM:]), 3),
            "times_as_long": ratio,
            "targets": round(mean(targets[name][WARM:]), 1),
        }
    return found


def main(rounds: int = 60) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "steps": contest(steps(), rounds, "mlm"),
        "masks": contest(masks(), rounds, "token"),
        "hardware": surroundings(("torch", "numpy", "maskwise")),
    }


if __name__ == "__main__":
    run(main, __doc__)
