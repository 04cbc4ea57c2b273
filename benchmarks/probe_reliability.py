"""The reliability of a sampler's reward, by the size of the probe and the formula for gains.

A sampler draws one of several objectives (its arms) for each training step. Its reward is the gain,
over some steps (a rollout), in the losses on held-out rows (the probe).

    python benchmarks/probe_reliability.py [--seeds 2] > reliability.json

This is a short version of the recipe ``mometas``. A small encoder first trains on masked words, and
then on five objectives, which are drawn uniformly. Every ten steps, all objectives are evaluated on
disjoint sets of held-out rows. There are twenty sets of 6 rows (3 pairs for cse), the size of
probes until November 2026, and four sets of 64 rows (48 pairs). The reliability of the reward is
the mean correlation between the rewards from two sets, over all rollouts after the first quarter.
``split-half`` is the estimate of the reliability in the log of a run whose probe has two sets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import torch
from command import run
from figures import Figures, surroundings
from torch import Tensor

from maskwise.recipe import read_recipe
from maskwise.samplers.base import reliability
from maskwise.samplers.mometas import LEAST, gains
from maskwise.studies.pretraining import laid_out, learning
from maskwise.studies.probed import rows_with
from maskwise.studies.single import run_pretrain
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import open_prepared, run_stage, starting_from
from maskwise.training import train
from maskwise.training.building import model_from
from maskwise.training.learners import Learner, Progress
from maskwise.training.several import Probe, SeveralObjectives, SeveralSources

EVERY = 10
SETS = {6: 20, 64: 4}
"""Number of rows in a set → number of sets. For cse, sets of 64 rows have 96 rows."""


class Watch(Learner):
    """A learner that only evaluates the arms on all sets."""

    def __init__(self, probes: Mapping[int, list[Probe]]):
        self.probes = probes
        self.losses = {rows: [] for rows in probes}

    def after(self, now: Progress) -> None:
        if now.done % EVERY == 0:
            for rows, probes in self.probes.items():
                halves = torch.cat([probe(0) for probe in probes])  # (sets, 3, K)
                self.losses[rows].append(halves[:, 0] / halves[:, 1].clamp(min=1))


def measure(seed: int, *, first: int, steps: int, folder: Path) -> dict[int, Tensor]:
    """Return the losses (T, sets, K) of a run, keyed by the number of rows in a set.

    The run has ``first`` steps on masked words alone, then ``steps`` steps on all objectives.
    """
    over = [
        "tasks=[]",
        # The arms of the study would change phases.
        *("study.arms={uniform: {}}", "study.contrasts=null", "study.gate=null"),
        "corpus.held_out=0.1",
        f"training.steps={first}",
        "training.save_every=0",
        "evaluation.rows=64",
        f"training.seed={seed}",
    ]
    start = run_pretrain(read_recipe("mometas", [*over, "phases=null"]), folder / "start")
    recipe = read_recipe("mometas", [*over, f"phases.1.training.steps={steps}"]).links()[1]
    text = prepare_stage(recipe)
    run_stage(text, StageStore(folder))
    data = open_prepared(folder / text.name)
    recipe = starting_from(Path(start["checkpoint"]), recipe)
    network = model_from(
        recipe.model,
        data.tokenizer,
        data.training.length,
        kind="encoder",
        seed=seed,
        log_unigram=None,
    )
    made = learning(network, data, recipe)
    joined, source = made.objective, made.source
    assert isinstance(joined, SeveralObjectives) and isinstance(source, SeveralSources)
    kinds = {name: arm.kind for name, arm in recipe.objectives.items()}
    held_out = {name: laid_out(data.held_out, kind, network.config) for name, kind in kinds.items()}
    taken = {name: rows_with(rows, data.held_out, 64) for name, rows in held_out.items()}
    probes = {rows: [] for rows in SETS}
    for rows, sets in SETS.items():
        # Each probe has two sets. Probes do not share rows.
        skip = {name: set(numbers) for name, numbers in taken.items()}
        sizes = dict.fromkeys(skip, 2 * rows)
        if rows > 6:
            # cse needs more rows for the same number of examples, which are pairs of sentences.
            sizes["cse"] = 3 * rows
        for _ in range(sets // 2):
            probe = Probe(
                joined,
                source,
                held_out,
                sizes=sizes,
                skip=skip,
            )
            probes[rows].append(probe)
            for name, size in sizes.items():
                skip[name] = skip[name] | set(probe.rows[name][:size].tolist())
    watch = Watch(probes)
    learners = {name: one for name, one in made.learners.items() if name != "sampler"}
    train(joined, source, recipe.training, learners={**learners, "sets": watch})
    return {rows: torch.stack(losses) for rows, losses in watch.losses.items()}


def summarise(losses: Tensor, *, every: int, least: float) -> Figures:
    """Return the mean correlation between the rewards of two sets, the mean split-half reliability
    over pairs of sets, and the standard deviation of the reward over sets.
    """
    # Losses exist every ``EVERY`` steps. Rewards (T, sets) are for rollouts of ``every`` steps.
    some = losses[:: every // EVERY]
    rewards = torch.stack([gains(a, b, least=least).sum(-1) for a, b in pairwise(some)])
    late = rewards[len(rewards) // 4 :].numpy()
    correlations = np.corrcoef(late.T)
    pairs = combinations(range(late.shape[1]), 2)
    halves = [reliability(rewards[:, [2 * i, 2 * i + 1]]) for i in range(late.shape[1] // 2)]
    known = [half for half in halves if half is not None]
    return {
        "between_sets": round(float(np.nanmean([correlations[i, j] for i, j in pairs])), 3),
        "split_half_of_two_sets": round(float(np.mean(known)), 3),
        "noise": round(float(late.std(axis=1, ddof=1).mean()), 4),
    }


def main(seeds: int = 2, first: int = 300, steps: int = 300) -> Figures:
    """Measure the reliability for each seed, probe size, rollout length and formula for gains.

    Args:
        seeds: the number of seeds.
        first: the number of steps on masked words alone.
        steps: the number of steps on five objectives.
    """
    torch.set_num_threads(1)
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            losses = measure(seed, first=first, steps=steps, folder=Path(folder))
        ways = product(losses, (10, 20), (("published", 0.0), ("mometas-plus", LEAST)))
        for size, every, (name, least) in ways:
            figures = summarise(losses[size], every=every, least=least)
            rows.append({"seed": seed, "rows": size, "every": every, "gains": name, **figures})
    return {
        "bench": "probe_reliability",
        "first": first,
        "steps": steps,
        "rows": rows,
        "hardware": surroundings(),
    }


if __name__ == "__main__":
    run(main, __doc__)
