"""Pre-train by a recipe, with one objective, or with several objectives and a sampler over them.

The pretrain stages of a study and ``maskwise pretrain`` call ``pretrain``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import yaml
from torch import Tensor

from maskwise import __version__
from maskwise.constants import rank_here, ranks_here
from maskwise.errors import MaskwiseError
from maskwise.evaluation import HeldOut, fixed_maskers
from maskwise.evaluation.evaluate import documents_alone
from maskwise.evaluation.scoring import diffusion_bound, spread
from maskwise.keys import fold
from maskwise.masking import Masker
from maskwise.masking.policies.base import Learner
from maskwise.objectives import Objective, objective, objective_class, predicting
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.samplers import LossProportional, Mometas
from maskwise.samplers import sampler as read_sampler
from maskwise.study.checks import require_targets
from maskwise.study.costs import flops, flops_of_arms
from maskwise.text import Prepared, Rows, Stream
from maskwise.training import MaskedSource, Source, log_frequencies, train
from maskwise.training.arms import Arms, ArmsSource, Probe, SamplerLearner, check_enough, probe_rows
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.loop import Training
from maskwise.training.stream import StreamedRows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Text = TypeVar("Text", Rows, Stream, Rows | Stream)


def pretrain(
    data: Prepared,
    recipe: Recipe,
    *,
    folder: Path,
    quiet: bool = False,
    facts: Mapping[str, str] | None = None,
) -> Plain:
    """Pre-train one model into a folder.

    Args:
        data: the text.
        recipe: the recipe of one run; its model, masking, objectives, sampler, training and
            evaluation are used.
        folder: the folder for metrics, states to resume from, and finally the checkpoint.
        facts: further facts for the model card.

    Returns:
        The result of a pretrain stage: held-out losses, counts, FLOPs, the loss and ``seconds``.

    Raises:
        MaskwiseError: no token of this text can be masked, or the loss is not finite.
    """
    training = recipe.training
    evaluation = recipe.evaluation
    # Word frequencies initialise the bias of a new head, and are the baseline for held-out losses.
    counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
    log_unigram = log_frequencies(counts)
    network = network_of(recipe, data, log_unigram)
    made = learning(network, data, recipe)
    sources: Iterable[Source] = [made.source]
    if isinstance(made.source, ArmsSource):
        sources = made.source.sources.values()
    for source in sources:
        # Objectives that choose no tokens, such as sentence contrast, have no masker.
        if isinstance(source, MaskedSource) and isinstance(source.masker, Masker):
            require_targets(source, data.held_out, source.masker)
    judged = predicting(network)
    # Evaluations during training use the same rows and masks as the study afterwards.
    rows = laid_out(data.held_out, judged, network.config)
    masks = evaluation.masks
    most = evaluation.rows
    maskers = fixed_maskers(
        data.tokenizer,
        masks=masks,
        ratio=evaluation.ratios[0],
        kind=judged.kind,
        length=rows.length,
    )
    bound = diffusion_bound(masks, rows, data.tokenizer, rows=most, log_unigram=log_unigram)
    held_out = HeldOut(rows, maskers, log_unigram, rows=most, bound=bound)
    losses: list[Plain] = []

    # The card contains the latest held-out losses, so it is written with every checkpoint.
    def save(target: Path) -> None:
        choices = {**made.words, **(facts or {})}
        if recipe.model.adapter:
            choices["adapter"] = recipe.model.adapter
        card = model_card(recipe, choices, losses, text=data.training)
        save_checkpoint(target, network, data.tokenizer, card=card, heads=made.heads())

    def curve(step: int) -> list[Plain]:
        losses[:] = [dict(line) for line in held_out(judged)]
        return losses

    with closing(made):
        done = train(
            made.objective,
            made.source,
            training,
            folder=folder,
            learners=made.learners,
            evaluate=curve,
            title=made.title,
            quiet=quiet,
        )
    if not done["targets"]:
        raise MaskwiseError(
            "no token was masked during training; the checkpoint was not saved",
            got=made.title,
            do="look at the masks: maskwise inspect",
        )
    save(folder / "checkpoint")
    if rank_here() == 0:
        shutil.rmtree(folder / "resume", ignore_errors=True)
    return {
        "heldout": losses,
        **{key: done[key] for key in ("steps", "tokens", "targets")},
        **_flops(made, done, frozen=training.freeze == "encoder"),
        "loss": done["loss"],
        "seconds": round(done["seconds"], 3),
    }


def network_of(recipe: Recipe, data: Prepared, log_unigram: Tensor) -> PreTrainedModel:
    """Build or load the model that a recipe trains.

    Args:
        log_unigram: the logarithms of token frequencies, for the bias of a new head.
    """
    return recipe.model.model(
        data.tokenizer,
        data.training.length,
        kind=recipe.kind,
        seed=recipe.training.seed,
        log_unigram=log_unigram,
    )


def _flops(made: Learning, done: Training, *, frozen: bool) -> Plain:
    """Count ``flops``; with a sampler also ``probe_flops`` and the counts of each objective."""
    chooser = made.learners.get("sampler")
    if not isinstance(chooser, SamplerLearner):
        return {"flops": flops(done["tokens"], done["targets"], made.objective, frozen=frozen)}
    assert isinstance(made.objective, Arms)
    spent = chooser.spent()
    steps, probes = flops_of_arms(made.objective, spent, frozen=frozen)
    return {"flops": steps + probes, "probe_flops": probes, "objectives": spent}


def model_card(
    recipe: Recipe, choices: Mapping[str, object], losses: list[Plain], *, text: Rows | Stream
) -> str:
    """Write the model card of a checkpoint in the hub's format.

    Args:
        choices: masking settings and facts about the run, keyed by name.
        losses: the records of the last evaluation.
        text: the training text.
    """
    front = {"library_name": "transformers", "tags": ["fill-mask", "maskwise"]}
    table = "\n".join(f"| {name} | `{value}` |" for name, value in choices.items())
    measured = []
    for line in losses:
        loss = f"{line['masks']} masks at {line['ratio']:.0%}: {line['loss']:.3f} nats a target"
        measured.append(f"- {loss} (word frequencies alone: {line['unigram']:.3f})")
    heldout = "\n".join(measured) or "not measured"
    training = recipe.training
    settings = yaml.safe_dump(training.model_dump(mode="json"), sort_keys=False)
    size = "a stream" if isinstance(text, Stream) else f"{len(text):,} rows"
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# A masked language model made with maskwise {__version__}

| choice | value |
|---|---|
{table}

Trained for {training.steps} steps of {training.batch_size} rows on {size} (seed {training.seed}).
It loads with `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained`, \
without maskwise.

## Loss on held-out text, fixed masks

{heldout}

## Training settings

```yaml
{settings}```
"""


# Objectives and their batches
# ------------------------------------------------------------------------------------------------


class Learning(NamedTuple):
    """The arguments of ``training.train``, and ``words`` for the model card."""

    objective: Objective
    source: Source
    learners: dict[str, Learner]
    title: str
    words: Mapping[str, object]

    def close(self) -> None:
        """End the processes that read a stream."""
        # Streams are among the learners because their position is saved with the other states.
        for learner in self.learners.values():
            if isinstance(learner, StreamedRows):
                learner.close()

    def heads(self) -> dict[str, Tensor]:
        """The heads of several objectives, which are saved next to the encoder, keyed by name."""
        if isinstance(self.objective, Arms):
            return self.objective.heads()
        return {}


def learning(network: PreTrainedModel, data: Prepared, recipe: Recipe) -> Learning:
    """Build the objective, batches and learners of a recipe.

    A recipe that names ``objectives`` gets an arm for each of them: the objective, and the recipe's
    masking with the changes of the arm. Arms read the rows of the corpus as they are packed, or the
    same pieces with one piece in each row.
    """
    if recipe.objectives:
        return _several_objectives(network, data, recipe)
    source = masked_source(data, recipe, network.config)
    assert isinstance(source.masker, Masker)
    title = recipe.objective
    # Other objectives ignore the policy and ratio of the recipe.
    if objective_class(recipe.objective).inherits:
        title = f"{recipe.masking.policy} {recipe.masking.ratio}"
    words = {"objective": recipe.objective, **source.masker.describe()}
    learners = source.learners() | source.places()
    return Learning(objective(recipe.objective, network), source, learners, title, words)


def masked_source(data: Prepared, recipe: Recipe, config: PreTrainedConfig) -> MaskedSource:
    """Build the batches of a recipe with one objective.

    Args:
        config: the configuration of the model.
    """
    kind = objective_class(recipe.objective)
    rows = laid_out(data.training, kind, config)
    return _source(data, recipe, kind, _drawn(rows, recipe))


def _source(
    data: Prepared,
    recipe: Recipe,
    kind: type[Objective],
    rows: Rows | StreamedRows,
    changes: Mapping[str, object] | None = None,
) -> MaskedSource:
    """Build the batches of one objective.

    Args:
        rows: the training rows, as they are drawn.
        changes: changes to the recipe's masking.
    """
    settings = kind.settings(recipe.masking.model_dump(), changes or {})
    seed = recipe.training.seed
    length = data.training.length
    maker = kind.maker(data.tokenizer, seed=seed, length=length, **settings)
    corpus = recipe.corpus
    shares = {}
    # A stream has its own shares.
    if isinstance(rows, Rows) and len(corpus.sources) > 1:
        shares = corpus.shares(rows.by_source(len(corpus.sources)))
    return MaskedSource(rows, maker, recipe.training, shares=shares)


def _drawn(rows: Rows | Stream, recipe: Recipe) -> Rows | StreamedRows:
    """Let the rows of a stream be drawn step by step; other rows are returned as they are."""
    if isinstance(rows, Rows):
        return rows
    corpus = recipe.corpus
    shares = {}
    # A stream cannot count its rows, so only sources with given weights have shares.
    if isinstance(corpus.source, dict):
        shares = corpus.shares(())
    return StreamedRows(rows, recipe.training, shares=shares)


def _several_objectives(network: PreTrainedModel, data: Prepared, recipe: Recipe) -> Learning:
    """Build an arm for each objective on one encoder, with the recipe's sampler over them."""
    training = recipe.training
    arms = recipe.objectives
    # Loading a pretrained model seeds nothing, so the new heads are seeded here.
    torch.manual_seed(fold(training.seed, 0x4EAD))
    joined = Arms({name: objective(arm.objective, network) for name, arm in arms.items()})
    heads = Path(recipe.model.pretrained or "") / "heads.safetensors"
    # The checkpoint of an earlier phase has trained heads.
    if heads.is_file():
        joined.load_heads(heads)
    chooser = read_sampler(recipe.sampler, list(arms), seed=training.seed, steps=training.steps)
    rank = rank_here()
    ranks = ranks_here()
    judging = judging_rows(network, data, recipe)
    drawn: dict[str, Rows | StreamedRows] = {}
    sources = {}
    held_out = {}
    taken = {}
    sizes = {}
    enough = True
    for name, arm in arms.items():
        kind = arm.kind
        rows = laid_out(data.training, kind, network.config)
        # A stream is read once for all arms that read the same rows.
        if rows.layout not in drawn:
            drawn[rows.layout] = _drawn(rows, recipe)
        sources[name] = _source(data, recipe, kind, drawn[rows.layout], arm.masking)
        blocks = laid_out(data.held_out, kind, network.config)
        held_out[name] = blocks
        evaluated = [rows_with(blocks, some, count) for some, count in judging]
        taken[name] = sorted(set().union(*evaluated))
        probed = chooser.probed_rows(twins=kind.twins)
        sizes[name] = probe_rows(probed, ranks=ranks, twins=kind.twins)
        free = len(blocks) - len(taken[name])
        enough = enough and free >= sizes[name]
        # The first probe is drawn only after a few steps, so its size is checked here.
        if chooser.every:
            check_enough(name, free, of=len(blocks), size=sizes[name])
    source = ArmsSource(sources, chooser, training)
    # This sampler divides losses by the loss at chance, which depends on the batch for some
    # objectives. A probe has two halves.
    if isinstance(chooser, LossProportional):
        vocabulary = len(data.tokenizer)
        chances = {name: joined.arm(name).chance(vocabulary, sizes[name] // 2) for name in arms}
        chooser.chance = chooser.vector(chances)
    # As in its paper, the faithful variant of Mometas learns from new probe rows each time.
    fresh = isinstance(chooser, Mometas) and chooser.faithful

    def probe() -> Probe:
        return Probe(
            joined,
            source,
            held_out,
            sizes=sizes,
            skip=taken,
            fresh=fresh,
            rank=rank,
            ranks=ranks,
        )

    # Samplers that do not learn are probed for the report only, so too little text is no error.
    watched = SamplerLearner(chooser, probe if enough else None, watched_every=training.eval_every)
    listed = ", ".join(f"{name}: {arm.objective}" for name, arm in arms.items())
    return Learning(
        joined,
        source,
        learners={**source.learners(), **source.places(), "sampler": watched},
        title=f"{recipe.sampler} over {', '.join(arms)}",
        words={"sampler": recipe.sampler, "objectives": listed},
    )


def judging_rows(
    network: PreTrainedModel, data: Prepared, recipe: Recipe
) -> list[tuple[Rows, int]]:
    """List the held-out rows of the evaluations, and how many rows each of them reads."""
    settings = recipe.evaluation
    judged = []
    if settings.rows:
        rows = laid_out(data.held_out, predicting(network), network.config)
        judged.append((rows, settings.rows))
    if settings.pseudo_perplexity:
        judged.append((documents_alone(data.held_out), settings.pseudo_perplexity))
    return judged


def rows_with(rows: Rows, judged: Rows, count: int) -> list[int]:
    """Find the rows that share a piece with the ``count`` evaluated rows of ``judged``.

    Both sets of rows hold the same pieces, perhaps in different layouts.
    """
    return rows.holding(judged.batch(spread(count, of=len(judged))).example_ids).tolist()


def laid_out(rows: Text, objective: type[Objective] | Objective, config: PreTrainedConfig) -> Text:
    """Convert rows to the layout in which an objective reads them with this model."""
    return rows.laid(objective.reads(rows.layout, config))
