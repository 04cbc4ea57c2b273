"""What a training stage trains: one masked language model, or several objectives with a sampler over them.

A recipe that names ``objectives`` gets an arm for each: its objective, and the recipe's masking with the arm's own
changes. Each reads the rows it wants: those of the corpus as they are packed, or the same pieces a row each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskwise.constants import rank_here, ranks_here
from maskwise.evaluation.scoring import spread
from maskwise.keys import fold
from maskwise.objectives import Arms, MaskedLanguageModelling, Objective, objective
from maskwise.recipe import Recipe
from maskwise.samplers import sampler as read_sampler
from maskwise.text import Prepared, Rows
from maskwise.training import MaskedSource, Source
from maskwise.training.arms import ArmsSource, Probe, SamplerLearner, check_enough, probe_rows
from maskwise.training.learners import Learner


class Learning(NamedTuple):
    """The arguments of ``training.train``, and what a card says of them."""

    objective: Objective
    source: Source
    learners: dict[str, Learner]
    title: str
    words: dict[str, Any]

    def spent(self) -> dict[str, dict[str, Any]] | None:
        """By arm, what a training spent (``SamplerLearner.spent``); None without a sampler."""
        chooser = self.learners.get("sampler")
        return chooser.spent() if isinstance(chooser, SamplerLearner) else None

    def heads(self) -> dict[str, Tensor]:
        """What is trained beside the model, by arm: what drops out when the checkpoint becomes an encoder."""
        return self.objective.heads() if isinstance(self.objective, Arms) else {}


def learning(network: Any, data: Prepared, recipe: Recipe) -> Learning:
    """What a recipe trains: masked language modelling of the corpus's rows, or several objectives."""
    if recipe.objectives:
        return several_objectives(network, data, recipe)
    masker = recipe.masking.masker(data.tokenizer, seed=recipe.training.seed)
    source = MaskedSource(data.training, masker, recipe.training)
    title = f"{recipe.masking.policy} {masker.ratio}"
    return Learning(MaskedLanguageModelling(network), source, source.learners(), title, masker.describe())


def several_objectives(network: Any, data: Prepared, recipe: Recipe) -> Learning:
    """An arm for each objective over one encoder, with the recipe's sampler over them."""
    training, by = recipe.training, recipe.sampler
    common, objectives = recipe.masking.model_dump(), recipe.objectives
    classes = {name: arm.kind for name, arm in objectives.items()}
    rows = {name: _laid_out(data.training, kind) for name, kind in classes.items()}
    held_out = {name: _laid_out(data.held_out, kind) for name, kind in classes.items()}
    torch.manual_seed(fold(training.seed, 0x4EAD))  # new heads, also of a model that was only loaded
    joined = Arms({name: objective(arm.objective, network) for name, arm in objectives.items()})
    sources = {}
    for name, kind in classes.items():
        own = kind.settings(common, objectives[name].masking)
        maker = kind.maker(data.tokenizer, seed=training.seed, length=data.training.length, **own)
        sources[name] = MaskedSource(rows[name], maker, training)
    chance = {name: joined.arm(name).chance(len(data.tokenizer), training.batch_size) for name in objectives}
    chooser = read_sampler(by, list(objectives), seed=training.seed, chance=chance)
    source = ArmsSource(sources, chooser, training)
    taken = {
        name: rows_with(blocks, data.held_out, recipe.evaluation.rows) for name, blocks in held_out.items()
    }
    rank, ranks = rank_here(), ranks_here()
    twins = any(kind.twins for kind in classes.values())
    size = probe_rows(training.batch_size, ranks=ranks, twins=twins)
    free = {name: len(held_out[name]) - len(rows) for name, rows in taken.items()}
    enough = size >= 4 and min(free.values()) >= size
    for name, rows_left in free.items() if chooser.every else ():  # now, and not when training has begun
        check_enough(name, rows_left, of=len(held_out[name]), size=size)
    fresh = getattr(chooser, "faithful", False)

    def probe() -> Probe:
        return Probe(
            joined, sources, held_out, size=size, skip=taken, total_steps=training.steps, fresh=fresh,
            rank=rank, ranks=ranks, maskers=None if fresh else source.untaught,
        )  # fmt: skip

    # A rule is only watched: no run of it fails for want of text to watch it on.
    watched = SamplerLearner(
        chooser, probe if chooser.every or enough else None, watched_every=training.eval_every
    )
    learners = {**source.learners(), "sampler": watched}
    words = {"sampler": by, "objectives": ", ".join(f"{n}: {a.objective}" for n, a in objectives.items())}
    return Learning(joined, source, learners, f"{by} over {', '.join(objectives)}", words)


def rows_with(rows: Rows, judged: Rows, count: int) -> list[int]:
    """The rows of ``rows`` that hold a piece of the ``count`` rows of ``judged`` by which a model is judged.

    Both are the same pieces, perhaps in two layouts.
    """
    return rows.holding(judged.batch(spread(count, of=len(judged))).example_ids).tolist()


def _laid_out(rows: Rows, kind: type[Objective]) -> Rows:
    return rows if kind.layout == "any" else rows.laid(kind.layout)
