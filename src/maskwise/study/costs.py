"""Count the compute of a training run by one formula, so that arms with different ratios, lengths,
models or objectives can be compared.

    FLOPs = 6 · body · tokens + 6 · head · targets

Each weight takes 2 FLOPs per token in the forward pass and 4 in the backward pass: 2 for the
gradient of its input and 2 for the gradient of the weight. A frozen encoder runs forward only.
Weights that are not updated but pass gradients on cost 4 instead of 6: a vocabulary matrix tied to
a frozen encoder, and the weights that LoRA leaves unchanged. ``body`` counts the weights of the
encoder without its embeddings, which are looked up. ``head`` counts the prediction head with its
vocabulary matrix, even if it is tied to the embeddings; the head runs on gathered targets only, so
a higher ratio costs more. ``Objective.work`` defines which weights are applied to which tokens
(sentence contrast reads a text twice, replaced-token detection also runs a generator), and each
step is counted for the objective that was drawn. A sampler's probes cost 2 instead of 6. Not
counted: attention scores (2·L·H per token and layer, a few per cent at the lengths used here),
padding, the optimiser, evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from maskwise.masking import MaskedBatch
from maskwise.objectives import Objective, objective
from maskwise.objectives.base import trained
from maskwise.training import MaskedSource
from maskwise.training.arms import Arms
from maskwise.weights import held_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED_STEPS = 32
"""The number of steps, spread evenly over a run, whose batches are masked to estimate its costs."""


def flops(tokens: float, targets: float, one: Objective, *, frozen: bool = False) -> int:
    """Count the FLOPs of training an objective.

    Args:
        tokens: the number of tokens that the objective reads.
        targets: the number of tokens that the objective predicts.
        frozen: whether only the heads are trained.
    """
    return trained(one.work(tokens, targets), frozen=frozen, held=held_share(one.model))


def without_weights(spec: str, network: PreTrainedModel) -> Objective:
    """Build an objective whose heads take no memory, for counting only."""
    with torch.device("meta"):
        return objective(spec, network)


def flops_of_arms(
    arms: Arms, spent: Mapping[str, Mapping[str, float]], *, frozen: bool
) -> tuple[int, int]:
    """Return (FLOPs of the steps, FLOPs of the probes), summed over arms.

    Args:
        spent: the counts that ``SamplerLearner.spent`` returns.
        frozen: whether only the heads are trained.
    """
    steps = probes = 0
    held = held_share(arms.model)
    for name, counts in spent.items():
        work = arms.arm(name).work
        steps += trained(work(counts["tokens"], counts["targets"]), frozen=frozen, held=held)
        # Probes run forward only.
        probes += int(2 * work(counts["probe_tokens"], counts["probe_targets"]).all)
    return steps, probes


def over_a_run(steps: int, most: int) -> list[int]:
    """Choose at most ``most`` steps, spread evenly over a run."""
    count = min(steps, most)
    return [(2 * number + 1) * steps // (2 * count) for number in range(count)]


class Counts(NamedTuple):
    """Sums over batches: steps, tokens read, targets, pieces, units and the tokens in units."""

    steps: int = 0
    tokens: int = 0
    targets: int = 0
    pieces: int = 0
    units: int = 0
    eligible: int = 0


def counts_of(steps: Iterable[Iterable[MaskedBatch]]) -> Counts:
    """Count the tokens, targets, pieces and units in the batches of the given steps."""
    counted = tokens = targets = pieces = units = eligible = 0
    for batches in steps:
        counted += 1
        for batch in batches:
            tokens += batch.tokens
            targets += batch.targets
            pieces += len(batch.ratio)
            # A corruption without a policy, such as next-token prediction, chooses no units.
            if batch.choice:
                units += len(batch.choice.units.length)
                eligible += int(batch.choice.units.length.sum())
    return Counts(counted, tokens, targets, pieces, units, eligible)


def counts_over(source: MaskedSource, most: int) -> Counts:
    """Count in at most ``most`` steps, spread evenly because ratios and row lengths change."""
    steps = over_a_run(source.settings.steps, most)
    return counts_of(source.batches(step, rank=0, ranks=1) for step in steps)


def per_step(source: MaskedSource, one: Objective) -> dict[str, float]:
    """Measure the mean costs of a step: ``steps`` (1), ``tokens``, ``targets`` and ``flops``.

    Args:
        source: the batches of the training run, masked at their ratios.
        one: the objective; its weights may be empty.
    """
    counts = counts_over(source, SAMPLED_STEPS)
    tokens = counts.tokens / counts.steps
    targets = counts.targets / counts.steps
    spent = flops(tokens, targets, one, frozen=source.settings.freeze == "encoder")
    return {"steps": 1, "tokens": tokens, "targets": targets, "flops": spent}
