"""The work of stages: prepare a corpus, pre-train, evaluate, fine-tune. ``maskwise pretrain`` is
one of them.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import yaml
from torch import Tensor

from maskwise import __version__
from maskwise.constants import rank_here, ranks_here
from maskwise.errors import MaskwiseError
from maskwise.evaluation import (
    EvaluationSettings,
    HeldOut,
    coverage_record,
    evaluate,
    fixed_maskers,
    overlap_record,
)
from maskwise.evaluation.bound import diffusion_bound, spread
from maskwise.evaluation.evaluate import documents_alone
from maskwise.folders import finite, sweep, write_json, write_whole
from maskwise.keys import fold
from maskwise.masking import Masker
from maskwise.models import ModelSettings
from maskwise.objectives import Objective, objective, objective_class, predicting
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.samplers import LossProportional
from maskwise.samplers import sampler as read_sampler
from maskwise.study.checks import require_targets
from maskwise.study.costs import flops, flops_of_arms
from maskwise.study.policies import lesson_of
from maskwise.study.stages import DONE, STAGE, Stage, trained_recipe
from maskwise.study.texts import open_text, prepare
from maskwise.tasks import FinetuneSettings, load_task, task_record
from maskwise.text import Prepared, Rows, Stream, load_tokenizer
from maskwise.text.settings import CorpusSettings
from maskwise.training import MaskedSource, Source, log_frequencies, train
from maskwise.training.arms import Arms, ArmsSource, Probe, SamplerLearner, check_enough, probe_rows
from maskwise.training.checkpoint import Best, save_checkpoint
from maskwise.training.learners import Learner
from maskwise.training.loop import Training
from maskwise.training.stream import StreamedRows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Text = TypeVar("Text", Rows, Stream, Rows | Stream)


def run_stage(stage: Stage, stages: Path, *, quiet: bool = True) -> Plain:
    """Do the work unless it is done; returns the stage's result. A failure leaves ``error.txt``.

    Raises:
        MaskwiseError: bad input, or a folder that cannot be written.
    """
    done = stage.result(stages)
    if done is not None and not stage.damage(stages):
        return done
    folder = stage.folder(stages)
    sweep(folder)
    write_json(folder / STAGE, stage.as_dict())
    began = time.perf_counter()
    try:
        result = RUNNERS[stage.kind](stage, stages, quiet)
    except Exception:
        with suppress(MaskwiseError):  # the disk may be full, and what failed first is what counts
            write_whole(folder / "error.txt", traceback.format_exc())
        raise
    # trainings count those before a stop
    result.setdefault("seconds", round(time.perf_counter() - began, 3))
    (folder / "error.txt").unlink(missing_ok=True)
    result = finite(result)
    write_json(folder / DONE, result)
    return result


# Learning a policy
# ---------------------------------------------------------------------------------------------


def _learn(stage: Stage, stages: Path, quiet: bool) -> Plain:
    what = stage.what
    parts: Plain = {
        key: what[key]
        for key in ("learning", "objective", "training", "corpus", "model")
        if key in what
    }
    # How a text is masked afterwards is no part of a learning: any corruption will do that fits the
    # objective.
    if objective_class(what["objective"]).kind == "encoder-decoder":
        parts["masking"] = {"corruption": "t5"}
    recipe = Recipe.model_validate(
        {
            **parts,
            "tasks": (what["task"],),
            "finetune": {"max_length": what["max_length"]},
            "tokenizer": {"name": str(stages / stage.needs[0] / "data" / "tokenizer")},
        }
    )
    if len(stage.needs) > 1:  # the policy is to help a checkpoint
        recipe = starting_from(stages / stage.needs[1] / "checkpoint", recipe)
    return lesson_of(recipe, stage.folder(stages), quiet=quiet).learn()


# Training
# ------------------------------------------------------------------------------------------------------


def _pretrain(stage: Stage, stages: Path, quiet: bool) -> Plain:
    recipe = trained_recipe(stage)
    if len(stage.needs) > 1:  # a second stage of training starts from the checkpoint of the first
        recipe = starting_from(stages / stage.needs[1] / "checkpoint", recipe)
    data, folder = open_text(stages / stage.needs[0]), stage.folder(stages)
    return pretrain(data, recipe, folder=folder, quiet=quiet, facts={"stage": stage.name})


def starting_from(checkpoint: Path, recipe: Recipe) -> Recipe:
    """The recipe of a training that goes on from a checkpoint."""
    return recipe.model_copy(update={"model": ModelSettings(pretrained=str(checkpoint))})


def pretrain(
    data: Prepared,
    recipe: Recipe,
    *,
    folder: Path,
    quiet: bool = False,
    facts: Mapping[str, str] | None = None,
) -> Plain:
    """Pre-train one model into ``folder``: metrics, states to resume from, and at the end the
    checkpoint.

    Args:
        data: the text.
        recipe: the recipe of one run; its model, masking, objectives, sampler, training and
            evaluation are used.
        facts: what else the model card says of the run.

    Raises:
        MaskwiseError: nothing in this text can be learnt from, or the loss is not finite.
    """
    training, evaluation = recipe.training, recipe.evaluation
    log_unigram = log_frequencies(
        torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
    )
    network = recipe.model.model(
        data.tokenizer,
        data.training.length,
        kind=recipe.kind,
        seed=training.seed,
        log_unigram=log_unigram,
    )
    made = learning(network, data, recipe)
    for source in getattr(made.source, "sources", {"": made.source}).values():
        if isinstance(source, MaskedSource) and isinstance(source.masker, Masker):
            require_targets(source, data.held_out, source.masker)
    judged = predicting(network)
    rows = laid_out(data.held_out, judged, network.config)
    maskers = fixed_maskers(
        data.tokenizer,
        masks=evaluation.masks,
        ratio=evaluation.ratios[0],
        kind=judged.kind,
        length=rows.length,
    )
    bound = diffusion_bound(
        evaluation.masks, rows, data.tokenizer, rows=evaluation.rows, log_unigram=log_unigram
    )
    held_out = HeldOut(rows, maskers, log_unigram, rows=evaluation.rows, bound=bound)
    losses: list[Plain] = []

    def save(target: Path) -> None:
        card = model_card(
            recipe, {**made.words, **(facts or {})}, losses, text=_size(data.training)
        )
        save_checkpoint(target, network, data.tokenizer, card=card, heads=made.heads())

    best = Best(folder, save) if training.keep_best else None

    def curve(step: int) -> list[Plain]:
        losses[:] = [dict(line) for line in held_out(judged)]
        if best:
            best.offer(step, losses)
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
        what = (
            "not one target in the whole training: this checkpoint has learnt nothing, and is "
            "not kept"
        )
        raise MaskwiseError(what, got=made.title, do="look at the masks: maskwise inspect")
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


def _size(text: Rows | Stream) -> str:
    """What a model card says of the size of a text."""
    return "a stream" if isinstance(text, Stream) else f"{len(text):,} rows"


def _flops(made: Learning, done: Training, *, frozen: bool) -> Plain:
    """``flops`` of a training; with a sampler also ``objectives`` (what each was given) and
    ``probe_flops``.
    """
    spent = made.spent()
    if spent is None:
        return {"flops": flops(done["tokens"], done["targets"], made.objective, frozen=frozen)}
    assert isinstance(made.objective, Arms)
    steps, probes = flops_of_arms(made.objective, spent, frozen=frozen)
    return {"flops": steps + probes, "probe_flops": probes, "objectives": spent}


def model_card(
    recipe: Recipe, choices: Mapping[str, object], losses: list[Plain], *, text: str
) -> str:
    """The model card of a checkpoint, in the hub's format: its choices, seeds, data and held-out
    losses.

    Args:
        choices: what was masked and how, and facts of the run, by name.
        losses: the last evaluation.
        text: how large the training text is.
    """
    front = yaml.safe_dump(
        {"library_name": "transformers", "tags": ["fill-mask", "maskwise"]}, sort_keys=False
    )
    table = "\n".join(f"| {name} | `{value}` |" for name, value in choices.items())
    measured = "\n".join(
        f"- {line['masks']} masks at {line['ratio']:.0%}: {line['loss']:.3f} nats a target "
        f"(word frequencies alone: {line['unigram']:.3f})"
        for line in losses
    )
    training = recipe.training
    return f"""---
{front}---

# A masked language model made with maskwise {__version__}

| choice | value |
|---|---|
{table}

Trained for {training.steps} steps of {training.batch_size} rows on {text} (seed {training.seed}).
It loads with `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained`, without maskwise.

## Loss on held-out text, fixed masks

{measured or "not measured"}

## Training settings

```yaml
{yaml.safe_dump(training.model_dump(mode="json"), sort_keys=False)}```
"""


# What is learnt
# ------------------------------------------------------------------------------------------------


class Learning(NamedTuple):
    """The arguments of ``training.train``, and what a card says of them."""

    objective: Objective
    source: Source
    learners: dict[str, Learner]
    title: str
    words: Mapping[str, object]

    def spent(self) -> dict[str, Plain] | None:
        """By arm, what a training spent (``SamplerLearner.spent``); None without a sampler."""
        chooser = self.learners.get("sampler")
        return chooser.spent() if isinstance(chooser, SamplerLearner) else None

    def close(self) -> None:
        """End the processes that read a stream."""
        for learner in self.learners.values():
            if isinstance(learner, StreamedRows):
                learner.close()

    def heads(self) -> dict[str, Tensor]:
        """What is trained beside the model, by arm: what drops out when the checkpoint becomes an
        encoder.
        """
        return self.objective.heads() if isinstance(self.objective, Arms) else {}


def learning(network: PreTrainedModel, data: Prepared, recipe: Recipe) -> Learning:
    """What a recipe trains: masked language modelling of the corpus's rows, or several objectives.

    A recipe that names ``objectives`` gets an arm for each: its objective, and the recipe's masking
    with the arm's own changes. Each reads the rows it wants: those of the corpus as they are
    packed, or the same pieces a row each.
    """
    if recipe.objectives:
        return _several_objectives(network, data, recipe)
    source = masked_source(data, recipe, network.config)
    assert isinstance(source.masker, Masker)
    masks = objective_class(recipe.objective).inherits
    title = f"{recipe.masking.policy} {recipe.masking.ratio}" if masks else recipe.objective
    words = {"objective": recipe.objective, **source.masker.describe()}
    learners = source.learners() | source.places()
    return Learning(objective(recipe.objective, network), source, learners, title, words)


def masked_source(data: Prepared, recipe: Recipe, config: PreTrainedConfig) -> MaskedSource:
    """The batches of a recipe that trains one objective; ``config`` of its model."""
    kind, length = objective_class(recipe.objective), data.training.length
    own = kind.settings(recipe.masking.model_dump(), {})
    masker = kind.maker(data.tokenizer, seed=recipe.training.seed, length=length, **own)
    rows = laid_out(data.training, kind, config)
    return MaskedSource(_drawn(rows, recipe), masker, recipe.training, shares=_shares(rows, recipe))


def _drawn(rows: Rows | Stream, recipe: Recipe) -> Rows | StreamedRows:
    """The rows as they are drawn; those of a stream step by step."""
    if isinstance(rows, Rows):
        return rows
    return StreamedRows(rows, recipe.training, shares=_shares(rows, recipe))


def _shares(rows: Rows | Stream, recipe: Recipe) -> dict[str, float]:
    """The shares of the sources of a mix, by name; none where there is one source, or a stream of
    several.
    """
    corpus = recipe.corpus
    if isinstance(rows, Stream):
        return corpus.shares(()) if isinstance(corpus.source, dict) else {}
    return corpus.shares(rows.by_source(len(corpus.sources))) if len(corpus.sources) > 1 else {}


def _several_objectives(network: PreTrainedModel, data: Prepared, recipe: Recipe) -> Learning:
    """An arm for each objective over one encoder, with the recipe's sampler over them."""
    training, by = recipe.training, recipe.sampler
    common, objectives = recipe.masking.model_dump(), recipe.objectives
    classes = {name: arm.kind for name, arm in objectives.items()}
    rows = {name: laid_out(data.training, kind, network.config) for name, kind in classes.items()}
    held_out = {
        name: laid_out(data.held_out, kind, network.config) for name, kind in classes.items()
    }
    # A stream is read once for all arms that read the same rows.
    drawn = {text.layout: _drawn(text, recipe) for text in rows.values()}
    # new heads, also of a model that was only loaded
    torch.manual_seed(fold(training.seed, 0x4EAD))
    joined = Arms({name: objective(arm.objective, network) for name, arm in objectives.items()})
    # of the phase before
    if (heads := Path(recipe.model.pretrained or "") / "heads.safetensors").is_file():
        joined.go_on(heads)
    sources = {}
    for name, kind in classes.items():
        own = kind.settings(common, objectives[name].masking)
        maker = kind.maker(data.tokenizer, seed=training.seed, length=data.training.length, **own)
        shares = _shares(rows[name], recipe)
        sources[name] = MaskedSource(drawn[rows[name].layout], maker, training, shares=shares)
    chooser = read_sampler(by, list(objectives), seed=training.seed, steps=training.steps)
    source = ArmsSource(sources, chooser, training)
    judging = judging_rows(network, data, recipe)
    taken = {
        name: sorted({row for judged, count in judging for row in rows_with(blocks, judged, count)})
        for name, blocks in held_out.items()
    }
    rank, ranks = rank_here(), ranks_here()
    sizes = {
        name: probe_rows(chooser.probed_rows(twins=kind.twins), ranks=ranks, twins=kind.twins)
        for name, kind in classes.items()
    }
    # the losses that it divides are those of half a probe
    if isinstance(chooser, LossProportional):
        chance = {
            name: joined.arm(name).chance(len(data.tokenizer), sizes[name] // 2)
            for name in objectives
        }
        chooser.chance = chooser.vector(chance)
    free = {name: len(held_out[name]) - len(rows) for name, rows in taken.items()}
    enough = all(free[name] >= size for name, size in sizes.items())
    # now, and not when training has begun
    for name, size in sizes.items() if chooser.every else ():
        check_enough(name, free[name], of=len(held_out[name]), size=size)
    fresh = getattr(chooser, "faithful", False)

    def probe() -> Probe:
        return Probe(
            joined,
            sources,
            held_out,
            sizes=sizes,
            skip=taken,
            total_steps=training.steps,
            seed=training.seed,
            fresh=fresh,
            rank=rank,
            ranks=ranks,
            maskers=None if fresh else source.untaught,
        )

    # A rule is only watched: no run of it fails for want of text to watch it on.
    watched = SamplerLearner(
        chooser, probe if chooser.every or enough else None, watched_every=training.eval_every
    )
    learners = {**source.learners(), **source.places(), "sampler": watched}
    words = {
        "sampler": by,
        "objectives": ", ".join(f"{n}: {a.objective}" for n, a in objectives.items()),
    }
    return Learning(joined, source, learners, f"{by} over {', '.join(objectives)}", words)


def judging_rows(
    network: PreTrainedModel, data: Prepared, recipe: Recipe
) -> list[tuple[Rows, int]]:
    """The rows that a model is judged by, as evaluation lays them out, and how many of them are."""
    settings, rows = recipe.evaluation, laid_out(data.held_out, predicting(network), network.config)
    judged = [(rows, settings.rows), (documents_alone(data.held_out), settings.pseudo_perplexity)]
    return [(rows, count) for rows, count in judged if count]


def rows_with(rows: Rows, judged: Rows, count: int) -> list[int]:
    """The rows of ``rows`` that hold a piece of the ``count`` rows of ``judged`` by which a model
    is judged.

    Both are the same pieces, perhaps in two layouts.
    """
    return rows.holding(judged.batch(spread(count, of=len(judged))).example_ids).tolist()


def laid_out(rows: Text, objective: type[Objective] | Objective, config: PreTrainedConfig) -> Text:
    """The rows as an objective reads them with a model of this configuration."""
    return rows.laid(objective.reads(rows.layout, config))


# Judging
# -------------------------------------------------------------------------------------------------------


def _evaluate(stage: Stage, stages: Path, quiet: bool) -> Plain:
    data = open_text(stages / stage.needs[0])
    trained = len(stage.needs) > 1
    checkpoint = (
        stages / stage.needs[1] / "checkpoint" if trained else stage.what["model"]["pretrained"]
    )
    return {"records": evaluate(checkpoint, data, EvaluationSettings(**stage.what["evaluation"]))}


def _overlap(stage: Stage, stages: Path, quiet: bool) -> Plain:
    corpus = CorpusSettings(**stage.what["corpus"])
    task = load_task(stage.what["task"])
    record: Plain = {"record": overlap_record(corpus.documents(), task, corpus=corpus.title)}
    if rights := task.rights():
        record["coverage"] = coverage_record(
            corpus.documents(), rights, task=task.name, corpus=corpus.title
        )
    return record


def _finetune(stage: Stage, stages: Path, quiet: bool) -> Plain:
    what = stage.what
    settings, task = FinetuneSettings(**what["finetune"]), load_task(what["task"])
    tokenizer = load_tokenizer(str(stages / stage.needs[0] / "data" / "tokenizer"))
    checkpoint: str | Path | None = None
    config = None
    if len(stage.needs) > 1:
        checkpoint = stages / stage.needs[1] / "checkpoint"
    else:
        model = ModelSettings(**what["model"])
        checkpoint = model.pretrained  # no further training
        config = None if checkpoint else model.config(tokenizer, what["length"], kind=what["kind"])
    first = what.get("seed", 0) * 1000  # random starts differ between runs as pre-trained ones do
    record = task_record(
        checkpoint,
        task,
        tokenizer=tokenizer,
        settings=settings,
        seeds=range(first, first + settings.seeds),
        config=config,
        folder=stage.folder(stages),
        checkpoints=False,
        quiet=quiet,
    )
    return dict(record)


RUNNERS: dict[str, Callable[[Stage, Path, bool], Plain]] = {
    "prepare": prepare,
    "learn": _learn,
    "pretrain": _pretrain,
    "evaluate": _evaluate,
    "finetune": _finetune,
    "overlap": _overlap,
}
