"""The cost of masked diffusion relative to masked language modelling: training steps and masking.

    python benchmarks/diffusion_step.py [--rounds N]

Both objectives are timed in turn, in one process with one thread. Figures are processor time,
because other processes on the machine affect it least. A step is a training step of the quick start
(12 × 64 tokens), and includes masking the batch. Diffusion draws its masking rates from U(0, 1),
and masks half of the tokens on average. Masked language modelling therefore masks half of each row.
Masking alone is timed on batches of 32 × 512 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
from command import run
from figures import Figures, in_turn, surroundings
from mask import Sample
from timing import sample_text

from maskwise.masking import Masker, Vocabulary
from maskwise.masking.diffusion import Noising
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import objective
from maskwise.recipe import read_recipe
from maskwise.text import Rows
from maskwise.training import MaskedSource
from maskwise.training.data import look_ahead
from maskwise.training.engine import Engine

DIFFUSION: dict[str, Figures] = {
    "diffusion": {},
    "diffusion, bernoulli": {"budget": "bernoulli"},
    "diffusion, weighted": {"policy": "weighted(units='token')", "budget": "bernoulli"},
    "diffusion, salient first": {"policy": "salient", "fill": "random", "budget": "bernoulli"},
}


def steps() -> dict[str, Callable[[int], int]]:
    """Return a function for each objective, which trains step n and returns its targets."""
    recipe = read_recipe("quick-start")
    length = recipe.corpus.length
    tokenizer, pieces = sample_text(400, vocabulary=recipe.tokenizer.vocab_size, length=length)
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
    """Return, for each masker, a function that masks batch n and returns its number of targets."""
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
) -> dict[str, Figures]:
    """Return each side's milliseconds, their ratio to those of ``against``, and the targets."""
    seconds = in_turn(sides, batches=rounds)
    found = {}
    for name, spent in seconds.items():
        found[name] = {
            "milliseconds": round(1e3 * spent, 3),
            "times_as_long": round(spent / seconds[against], 3),
            "targets": round(mean(map(sides[name], range(rounds))), 1),
        }
    return found


def main(rounds: int = 60) -> Figures:
    torch.set_num_threads(1)
    return {
        "steps": contest(steps(), rounds, "mlm"),
        "masks": contest(masks(), rounds, "token"),
        "hardware": surroundings(),
    }


if __name__ == "__main__":
    run(main, __doc__)
