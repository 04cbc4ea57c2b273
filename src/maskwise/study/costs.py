"""What training spends, by a stated formula: the common scale of arms that differ in ratio, length,
model or objective.

    FLOPs = 6 · body · tokens + 6 · head · targets

Two FLOPs for every weight and token forward, four backward: two for the gradient of the input, two
for that of the weight. A frozen encoder runs forward only, and a vocabulary matrix that is tied to
it costs 4 a target. ``body``: weights of the encoder without its embeddings, which are looked up.
``head``: weights of the prediction head with its vocabulary matrix, also where that is tied to the
embeddings; it runs on gathered targets only, so a higher ratio costs more. Each objective says
which weights work for which of its tokens (``Objective.work``: sentence contrast reads a text
twice, replaced-token detection runs a generator too), and every step counts for the objective that
was drawn. Probes that teach a sampler cost 2 instead of 6. Left out: attention scores (2·L·H a
token and layer, some per cent at the lengths used here), padding, the optimiser, evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from maskwise.masking import MaskedBatch
from maskwise.masking.schedules import schedule
from maskwise.objectives import Objective, objective, objective_class
from maskwise.objectives.base import trained
from maskwise.recipe import Recipe
from maskwise.training import MaskedSource
from maskwise.training.arms import Arms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED_STEPS = 32
"""Steps, evenly over a run, whose batches are masked to see what a run will spend."""


def flops(tokens: float, targets: float, one: Objective, *, frozen: bool = False) -> int:
    """FLOPs of training an objective on some tokens and targets; ``frozen``: training its heads
    alone.
    """
    return trained(one.work(tokens, targets), frozen=frozen)


def without_weights(spec: str, network: PreTrainedModel) -> Objective:
    """An objective whose own heads take no memory, to count the work of."""
    with torch.device("meta"):
        return objective(spec, network)


def flops_of_arms(
    arms: Arms, spent: Mapping[str, Mapping[str, float]], *, frozen: bool = False
) -> tuple[int, int]:
    """(FLOPs of the steps, FLOPs of the probes), over all arms; ``spent`` as
    ``SamplerLearner.spent`` has it.
    """
    # Each arm counts with the weights that worked for it.
    steps = probes = 0
    for name, counts in spent.items():
        work = arms.arm(name).work
        steps += trained(work(counts["tokens"], counts["targets"]), frozen=frozen)
        probes += int(2 * work(counts["probe_tokens"], counts["probe_targets"]).all)
    return steps, probes


def over_a_run(steps: int, most: int) -> list[int]:
    """The numbers of at most so many steps, evenly over a run."""
    count = min(steps, most)
    return [(2 * number + 1) * steps // (2 * count) for number in range(count)]


def expected(recipe: Recipe, network: PreTrainedModel) -> dict[str, float | None]:
    """What a training spends if its rows are full, from its settings alone: ``tokens``, and
    ``flops`` where known.

    Which of several objectives is drawn is not known before, and neither is how much a decoder will
    write.

    Args:
        network: the model, or an empty one.
    """
    how = recipe.training
    # Padding is not known before the text is cut into rows.
    tokens = how.steps * how.batch_size * recipe.corpus.length
    if recipe.objectives or recipe.kind != "encoder":
        return {"tokens": tokens, "flops": None}
    mean = 1.0  # next tokens are all targets
    if objective_class(recipe.objective).inherits:
        ratio = schedule(recipe.masking.ratio)
        numbers = over_a_run(how.steps, SAMPLED_STEPS)
        mean = sum(ratio(step, how.steps) for step in numbers) / len(numbers)
    one = without_weights(recipe.objective, network)
    return {
        "tokens": tokens,
        "flops": flops(tokens, mean * tokens, one, frozen=how.freeze == "encoder"),
    }


class Counts(NamedTuple):
    """Sums over batches: tokens read, targets, pieces, units and the tokens in units."""

    tokens: int = 0
    targets: int = 0
    pieces: int = 0
    units: int = 0
    eligible: int = 0


def counts_of(steps: Iterable[Iterable[MaskedBatch]]) -> Counts:
    """Count what is in the batches of some steps."""
    total = Counts()
    for batches in steps:
        for batch in batches:
            units = batch.choice.units.length if batch.choice else ()
            found = (batch.tokens, batch.targets, len(batch.ratio), len(units), sum(units))
            total = Counts(*(int(a + b) for a, b in zip(total, found)))
    return total


def per_step(source: MaskedSource, one: Objective) -> dict[str, float]:
    """Means over a run of what a step spends: ``steps`` (one), ``tokens``, ``targets``, ``flops``.

    Args:
        source: the very batches that steps will have, masked at their ratio.
        one: the objective; its weights may be empty.
    """
    # The schedule of the ratio and the lengths of rows change over a run.
    steps = over_a_run(source.settings.steps, SAMPLED_STEPS)
    counts = counts_of(source.batches(step, rank=0, ranks=1) for step in steps)
    tokens = counts.tokens / len(steps)
    targets = counts.targets / len(steps)
    spent = flops(tokens, targets, one, frozen=source.settings.freeze == "encoder")
    return {"steps": 1, "tokens": tokens, "targets": targets, "flops": spent}
