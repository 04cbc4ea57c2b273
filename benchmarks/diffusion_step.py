"""What masked diffusion costs beside masked language modelling: a step with as many targets, and
its masks.

    python benchmarks/diffusion_step.py [--rounds N]

All take turns in one process with one thread, and figures are processor time, so that neighbours on
the machine hit all alike. A step is one of the quick start (12 × 64 tokens), with the making of its
batch: rates from U(0, 1) mask half of the tokens on average, and masked language modelling masks
    half of each row. Masks are those of 32 × 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

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


def steps() -> dict[str, Callable[[], int]]:
    """By objective: one more step, which gives the number of its targets."""
    recipe = read_recipe("quick-start")
    documents = list(read_documents(recipe.corpus.source, limit=400))
    tokenizer = train_tokenizer((d.text for d in documents), vocab_size=recipe.tokenizer.vocab_size)
    pieces = read_pieces(
        tokenise(documents, tokenizer), tokenizer=tokenizer, length=recipe.corpus.length
    )
    config = new_config(
        recipe.model.architecture, tokenizer, recipe.corpus.length, **recipe.model.settings
    )
    maskers: dict[str, Any] = {
        "mlm": Masker(tokenizer, ratio=0.5, corruption="mask-only"),
        "diffusion": Noising(tokenizer),
    }

    def step(name: str) -> Callable[[], int]:
        source = MaskedSource(Rows.of(pieces, "packed"), maskers[name], recipe.training)
        engine = Engine(objective(name, new_model(config, seed=0)), recipe.training)
        number = iter(range(recipe.training.steps))

        def more() -> int:
            now = next(number)
            [batches] = look_ahead(source, range(now, now + 1))
            return int(engine.update(batches, lambda *_: None).targets)

        return more

    return {name: step(name) for name in maskers}


def masks() -> dict[str, Callable[[], int]]:
    """By masker: the masks of one more batch."""
    sample = Sample(8192)
    batches = sample.batches(32, 512, "documents")
    vocabulary = Vocabulary.of(sample.tokenizer)
    maskers = {"token": Masker(vocabulary, policy="token", ratio=0.15)}
    maskers |= {name: Noising(vocabulary, **how) for name, how in DIFFUSION.items()}

    def mask(masker: Masker) -> Callable[[], int]:
        number = iter(range(10**6))

        def more() -> int:
            now = next(number)
            return masker(batches[now % len(batches)], epoch=now).targets

        return more

    return {name: mask(masker) for name, masker in maskers.items()}


def contest(
    sides: dict[str, Callable[[], int]], rounds: int, against: str
) -> dict[str, dict[str, float]]:
    """Milliseconds of each side, and the median over rounds of its ratio to ``against``."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    targets = dict.fromkeys(sides, 0)
    for number in range(rounds + 3):
        for name, more in sides.items():
            began = time.process_time()
            count = more()
            if number >= 3:  # the first ones warm up
                spent[name].append(time.process_time() - began)
                targets[name] += count
    return {
        name: {
            "milliseconds": round(1e3 * median(seconds), 3),
            "times_as_long": round(
                median(a / b for a, b in zip(seconds, spent[against], strict=True)), 3
            ),
            "targets": round(targets[name] / rounds, 1),
        }
        for name, seconds in spent.items()
    }


def main() -> None:
    """Run the bench, and print its figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    result = {
        "steps": contest(steps(), rounds, "mlm"),
        "masks": contest(masks(), rounds, "token"),
        "hardware": surroundings(("torch", "numpy", "maskwise")),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
