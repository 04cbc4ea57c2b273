"""The held-out rows on which a sampler measures losses, apart from those that evaluations read.

A sampler that learns tests its objectives on held-out rows (a probe). Evaluations read other rows,
because a sampler would otherwise choose by the rows that judge it. The rows are counted twice: when
a recipe is checked, and when training begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from maskwise.base.constants import ranks_here
from maskwise.evaluation import load_measures
from maskwise.evaluation.measures.heldout import documents_alone
from maskwise.evaluation.scoring import PSEUDO_PERPLEXITY, evenly_spaced
from maskwise.models.families import adapter_of
from maskwise.objectives.base import Objective
from maskwise.objectives.denoising import Denoising
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.recipe import Recipe
from maskwise.samplers.base import Sampler
from maskwise.text import Rows, Stream
from maskwise.text.rows import dev_and_verdict
from maskwise.training.several import check_enough, probe_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Text = TypeVar("Text", Rows, Stream, Rows | Stream)


class Probed(NamedTuple):
    """The held-out rows of each objective, by its name.

    Attributes:
        held_out: the rows, in the layout of the objective.
        taken: the indices of rows that have text in common with an evaluated row.
        sizes: the number of rows in a probe.
        enough: whether there are enough other rows for all probes.
    """

    held_out: dict[str, Rows]
    taken: dict[str, list[int]]
    sizes: dict[str, int]
    enough: bool


def probed_rows(
    recipe: Recipe, held_out: Rows, config: PreTrainedConfig, chooser: Sampler
) -> Probed:
    """Reserve the held-out rows for the probes of a sampler.

    Args:
        recipe: the recipe of one run, which has several objectives.
        held_out: the held-out rows of its text.
        config: the configuration of the model.
        chooser: the sampler.

    Raises:
        MaskwiseError: the sampler needs probes, and there are too few rows.
    """
    judging = judged_rows(recipe, held_out, config)
    found = Probed({}, {}, {}, True)
    enough = True
    for name, arm in recipe.objectives.items():
        rows = laid_out(held_out, arm.kind, config)
        taken = {number for some, count in judging for number in rows_with(rows, some, count)}
        wanted = chooser.probed_rows(twins=arm.kind.twins)
        size = probe_rows(wanted, ranks=ranks_here(), twins=arm.kind.twins)
        free = len(rows) - len(taken)
        enough = enough and free >= size
        if chooser.every:
            check_enough(name, free, of=len(rows), size=size)
        found.held_out[name] = rows
        found.taken[name] = sorted(taken)
        found.sizes[name] = size
    return found._replace(enough=enough)


def judged_rows(recipe: Recipe, held_out: Rows, config: PreTrainedConfig) -> list[tuple[Rows, int]]:
    """List, for every evaluation, the held-out rows and the number of rows that are read."""
    settings = recipe.evaluation
    # Evaluations during training read other documents than the last one.
    parts = dev_and_verdict(held_out) if recipe.training.chooses else (held_out,)
    judge: type[Objective] = MaskedLanguageModelling
    if adapter_of(config).kind == "encoder-decoder":
        judge = Denoising
    scored = load_measures(settings).get(PSEUDO_PERPLEXITY)
    judged = []
    for part in parts:
        if settings.rows:
            judged.append((laid_out(part, judge, config), settings.rows))
        if scored is not None:
            judged.append((documents_alone(part), scored.size()))
    return judged


def rows_with(rows: Rows, judged: Rows, count: int) -> list[int]:
    """Return the indices of ``rows`` that have text in common with an evaluated row.

    Args:
        rows: rows in the layout of an objective.
        judged: the same text in the layout of the evaluation.
        count: the number of rows of ``judged`` that the evaluation reads.
    """
    return rows.holding(judged.example_ids(evenly_spaced(count, of=len(judged)))).tolist()


def laid_out(rows: Text, objective: type[Objective] | Objective, config: PreTrainedConfig) -> Text:
    """Return rows in the layout in which an objective reads them with this model."""
    return rows.laid(objective.reads(rows.layout, config))
