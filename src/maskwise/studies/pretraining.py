"""Pre-train a model from a recipe, with one objective or with several.

With several objectives, a sampler chooses the objective of every step. A sampler may test the
objectives on held-out rows; such a test is a probe. Both the pretrain stages of studies and the
command ``maskwise pretrain`` call ``pretrain``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import yaml
from torch import Tensor

from maskwise.base.constants import WRITES_END, rank_here, ranks_here
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import credit
from maskwise.evaluation.scoring import HeldOut, diffusion_bound, fixed_maskers, predictable
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.masking import Masker
from maskwise.masking.draws import fold
from maskwise.models.cards import front_matter
from maskwise.models.flops import FORMULA
from maskwise.models.loading import TASK_MODELS, language_head
from maskwise.objectives import ObjectiveSettings, objective
from maskwise.objectives.base import Objective
from maskwise.objectives.denoising import predicting
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.results.estimates import outcome_label
from maskwise.samplers import LossProportional, Mometas
from maskwise.samplers import sampler as read_sampler
from maskwise.studies.checks import require_targets
from maskwise.studies.probed import laid_out, probed_rows
from maskwise.text import Prepared, Rows, Stream
from maskwise.text.changed import new_ids
from maskwise.text.rows import dev_and_verdict
from maskwise.training.best import Best
from maskwise.training.building import model_from
from maskwise.training.checkpoint import State, save_checkpoint
from maskwise.training.data import MaskedSource, Source, log_frequencies
from maskwise.training.learners import Learner
from maskwise.training.log import Evaluate, NeverFinite
from maskwise.training.loop import Training, train
from maskwise.training.parts import TrainingPart, begin_with, leave_state
from maskwise.training.ranks import Ranks
from maskwise.training.several import Probe, SamplerLearner, SeveralObjectives, SeveralSources
from maskwise.training.stream import StreamedRows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CARDS = {
    "masked-lm": ("A masked language model", "fill-mask"),
    "seq2seq": ("An encoder–decoder", "text2text-generation"),
    "causal-lm": ("A language model", "text-generation"),
}
"""What cards call models, and their tags, by head."""

Text = TypeVar("Text", Rows, Stream, Rows | Stream)


def pretrain(
    data: Prepared,
    recipe: Recipe,
    *,
    folder: Path,
    facts: Mapping[str, str] | None = None,
    part: TrainingPart | None = None,
    state: Path | None = None,
) -> Plain:
    """Pre-train one model and save the checkpoint in a folder.

    The training states stay in the folder. The caller removes them when it has written the result
    (``forget_states``).

    Args:
        data: the prepared text.
        recipe: the recipe of one run. Its model, masking, objectives, sampler, training and
            evaluation settings are used.
        folder: the folder for metrics, resumable states and the final checkpoint.
        facts: additional rows for the table in the model card.
        part: the part of the training that is run, with ``training.lengths``; None for all of it.
        state: the folder of the state that the part begins with; None for a new run.

    Returns:
        The result of a pretrain stage: held-out losses, counts, FLOPs, training loss and seconds.
        With ``training.patience``, also ``best_step`` and ``dev_loss``; the held-out losses are
        then those of this step, on documents that did not choose it. A part at whose end the
        learning rate has fallen has ``dev_loss``, too. Costs of a part are its own.

    Raises:
        MaskwiseError: no token of this text can be masked, or the loss is not finite.
    """
    training = recipe.training
    evaluation = recipe.evaluation
    # Log frequencies of tokens are the initial bias of a new head. Held-out losses are compared
    # with the loss of these frequencies.
    counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
    log_unigram = log_frequencies(counts)
    network = network_of(recipe, data, log_unigram)
    if training.steps and any(each.ends != "none" for _, each in recipe.masked.values()):
        setattr(network.config, WRITES_END, True)
    made = learning(network, data, recipe)
    sources: Iterable[Source] = [made.source]
    if isinstance(made.source, SeveralSources):
        sources = made.source.sources.values()
    if not training.steps:
        sources = ()
    for source in sources:
        # Objectives that mask nothing, such as sentence contrast, have no masker.
        if isinstance(source, MaskedSource) and isinstance(source.masker, Masker):
            require_targets(source, data.held_out, source.masker)
    judged = predicting(network)
    # Evaluations during training use the masks of the study's final evaluation, and its rows unless
    # they choose the best state.
    best = None
    if training.patience is not None and training.steps:
        best = Best(training.patience, every=training.eval_every)
    loss_on = partial(
        held_out_loss,
        tokenizer=data.tokenizer,
        objective=judged,
        settings=evaluation,
        log_unigram=log_unigram,
    )
    if training.chooses:
        dev, verdict = dev_and_verdict(data.held_out)
        held_out = loss_on(dev)
        of_verdict = loss_on(verdict)
    else:
        held_out = loss_on(data.held_out)
    losses: list[Plain] = []
    chosen: Plain = {}

    # The model card shows the latest held-out losses, so every checkpoint gets a new card.
    def save(target: Path) -> None:
        choices = {**made.words, **(facts or {})}
        if recipe.model.adapter:
            choices["adapter"] = recipe.model.adapter
        if recipe.model.changes:
            choices["changes"] = ", ".join(recipe.model.changes)
        step = None if best is None else best.step
        card = model_card(
            recipe,
            choices,
            losses,
            head=language_head(network.config),
            text=data.training,
            best_step=step,
            part=part,
            read_by=getattr(network.config, "read_by", ""),
        )
        save_checkpoint(target, network, data.tokenizer, card=card, heads=made.heads())

    def curve(step: int, ranks: Ranks) -> list[Plain]:
        losses[:] = [dict(line) for line in held_out(judged, ranks)]
        return losses

    def choose(step: int, ranks: Ranks) -> list[Plain]:
        assert best is not None
        lines = [dict(line) for line in held_out(judged, ranks)]
        loss = own_loss(lines, recipe)
        # A signal may end this evaluation, which must then begin again from the same state.
        if loss < best.loss:
            best.lines = [dict(line) for line in of_verdict(judged, ranks)]
        best.compare(step, loss)
        facts: Plain = {"documents": "dev", "best_step": best.step}
        if best.is_enough(step):
            facts["enough"] = True
        return [line | facts for line in lines]

    def at_its_end(step: int, ranks: Ranks) -> list[Plain]:
        assert part is not None
        lines = [dict(line) for line in held_out(judged, ranks)]
        if part.falls and step == part.end:
            chosen["dev_loss"] = own_loss(lines, recipe)
            losses[:] = [dict(line) for line in of_verdict(judged, ranks)]
        return [line | {"documents": "dev"} for line in lines]

    evaluate: Evaluate = curve if best is None else choose
    before = None
    if part is not None:
        evaluate = at_its_end
        if state is not None:
            before = begin_with(state, folder, step=part.begin)
    learners = dict(made.learners)
    if best is not None:
        learners["best"] = best
    with closing(made):
        done = train(
            made.objective,
            made.source,
            training,
            folder=folder,
            learners=learners,
            streams=made.streams,
            evaluate=evaluate,
            part=part,
            title=made.title,
        )
    if done["skipped"] and done["skipped"] == done["steps"]:
        raise NeverFinite(
            f"the loss or the gradient is not finite in all of {done['steps']} steps",
            got=made.title,
            do="look at the objective, the checkpoint and the learning rate",
        )
    if training.steps and not done["targets"]:
        raise MaskwiseError(
            "no token was masked during training; the checkpoint was not saved",
            got=made.title,
            do="see what the policy masks: maskwise inspect",
        )
    if before is not None:
        done = since(before, done)
    if part is not None and not part.falls:
        leave_state(folder, part.end)
    if best is not None:
        best.load_best()
        losses[:] = best.lines
        chosen |= {
            "best_step": best.step,
            "planned_steps": training.steps,
            "dev_loss": best.loss,
        }
    save(folder / "checkpoint")
    return {
        "heldout": losses,
        **{key: done[key] for key in ("steps", "tokens", "targets")},
        **chosen,
        **_flops(made, done),
        "loss": done["loss"],
        "seconds": round(done["seconds"], 3),
    }


def since(before: State, done: Training) -> Training:
    """Return the summary of a part of a training, which began with a state."""
    spent: Training = {**done}
    spent["steps"] -= before.step
    spent["tokens"] -= before.tokens
    spent["targets"] -= before.targets
    spent["flops"] -= before.flops
    spent["seconds"] -= before.seconds
    return spent


def held_out_loss(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    objective: MaskedLanguageModelling,
    settings: EvaluationSettings,
    log_unigram: Tensor,
) -> HeldOut:
    """Return the loss on held-out rows with the fixed masks of the first ratio.

    Args:
        rows: held-out rows, in the layout of the prepared text.
        tokenizer: their tokenizer.
        objective: the objective that predicts the masked tokens.
        settings: the masks, the ratio and the number of rows.
        log_unigram: (vocabulary,) log frequencies of the tokens.
    """
    config = objective.model.config
    rows = laid_out(rows, objective, config)
    masks = predictable(settings.masks, config, setting="evaluation.masks")
    maskers = fixed_maskers(
        tokenizer,
        masks=masks,
        ratio=settings.ratios[0],
        kind=objective.kind,
        length=rows.length,
    )
    most = settings.rows
    bound = diffusion_bound(masks, rows, tokenizer, rows=most, log_unigram=log_unigram)
    return HeldOut(rows, maskers, log_unigram, rows=most, bound=bound)


def own_loss(lines: Iterable[Plain], recipe: Recipe) -> float:
    """Return the mean loss over the kinds of masks that a recipe trains with.

    If none of them is measured, the mean is over all kinds.

    Raises:
        MaskwiseError: no kind of masks has a target.
    """
    losses = {line["masks"]: line["loss"] for line in lines}
    own = [losses[kind] for kind in recipe.judged_on() if kind in losses] or [*losses.values()]
    if not own:
        raise MaskwiseError(
            "no token of the dev documents, which choose, is masked",
            do="hold out more text (corpus.held_out), or remove training.patience and "
            "training.lengths",
        )
    return math.fsum(own) / len(own)


def network_of(recipe: Recipe, data: Prepared, log_unigram: Tensor) -> PreTrainedModel:
    """Build or load the model that a recipe trains.

    Args:
        recipe: the recipe of one run.
        data: the prepared text; only its tokenizer and row length are used.
        log_unigram: (vocabulary,) log frequencies of the tokens, the initial bias of a new head.
    """
    network = model_from(
        recipe.model,
        data.tokenizer,
        data.training.length,
        kind=recipe.kind,
        seed=recipe.training.seed,
        log_unigram=log_unigram,
        # A checkpoint of an earlier phase is changed already.
        origins=data.origins if recipe.model.changes else (),
        causal=recipe.causal,
    )
    # For ``training.freeze: old-rows``.
    network.new_rows = new_ids(data.origins)  # type: ignore[assignment]
    return network


def _flops(made: Learning, done: Training) -> Plain:
    """Return ``flops``; with a sampler, also ``probe_flops`` and the counts of each objective."""
    counted: Plain = {"flops": done["flops"], "flops_formula": FORMULA}
    chooser = made.learners.get("sampler")
    if isinstance(chooser, SamplerLearner):
        probes = int(chooser.probe_flops)
        counted["flops"] += probes
        counted |= {"probe_flops": probes, "objectives": chooser.spent()}
    return counted


def model_card(
    recipe: Recipe,
    choices: Mapping[str, object],
    losses: list[Plain],
    *,
    head: str,
    text: Rows | Stream,
    best_step: int | None = None,
    part: TrainingPart | None = None,
    read_by: str = "",
) -> str:
    """Return the model card of a checkpoint in the format of the Hugging Face hub.

    Args:
        recipe: the recipe of the run.
        choices: rows of the card's table: masking settings and facts about the run.
        losses: the held-out losses of the last evaluation.
        head: the head of the model, a key of ``CARDS``.
        text: the training text.
        best_step: the step whose weights were kept; None for the last.
        part: the part of the training that was run; None for all of it.
        read_by: the versions of transformers that read the model, if not all do.
    """
    what, tag = CARDS[head]
    front = front_matter(
        recipe.model.pretrained,
        recipe.corpus.sources,
        library_name="transformers",
        tags=[tag],
    )
    table = "\n".join(f"| {name} | `{value}` |" for name, value in choices.items())
    measured = []
    for line in losses:
        label = outcome_label(f"heldout:{line['masks']}@{line['ratio']:g}")
        loss = f"{label}: {line['loss']:.3f} nats a target"
        measured.append(f"- {loss} (word frequencies alone: {line['unigram']:.3f})")
    heldout = "\n".join(measured) or "not measured"
    training = recipe.training
    settings = yaml.safe_dump(training.model_dump(mode="json"), sort_keys=False)
    size = "a stream" if isinstance(text, Stream) else f"{len(text):,} rows"
    trained = f"Trained for {training.steps} steps"
    if part is not None:
        trained = f"Trained for {part.end} steps (of at most {training.steps})"
    if best_step is not None:
        trained = f"The best state, at step {best_step}, of a training of {training.steps} steps"
    needed = f" (needs {read_by})" if read_by else ""
    return f"""{front}
# {what} made with {credit()}

| choice | value |
|---|---|
{table}

{trained} of {training.batch_size} rows on {size} (seed {training.seed}).
It loads with `{TASK_MODELS[head]}.from_pretrained` and `AutoTokenizer.from_pretrained`, \
without maskwise{needed}.

## Loss on held-out text, fixed masks

{heldout}

## Training settings

```yaml
{settings}```
"""


# Objectives and their batches
# ------------------------------------------------------------------------------------------------


class Learning(NamedTuple):
    """Arguments of ``training.train``, and what the model card says of the masking (``words``)."""

    objective: Objective
    source: Source
    learners: dict[str, Learner]
    streams: dict[str, StreamedRows]
    title: str
    words: Mapping[str, object]

    def close(self) -> None:
        """Stop the processes that read a stream."""
        for stream in self.streams.values():
            stream.close()

    def heads(self) -> dict[str, Tensor]:
        """Return the weights of the heads of several objectives, saved next to the encoder."""
        if isinstance(self.objective, SeveralObjectives):
            return self.objective.heads()
        return {}


def learning(network: PreTrainedModel, data: Prepared, recipe: Recipe) -> Learning:
    """Build the objective, batches and learners of a recipe.

    With several objectives, each of them masks with the recipe's masking settings and its own
    changes. Depending on the objective, it reads rows in which documents are packed, or the same
    parts of documents (pieces) with one piece per row.
    """
    if recipe.objectives:
        return _several_objectives(network, data, recipe)
    source = masked_source(data, recipe, network.config)
    assert isinstance(source.masker, Masker)
    title = recipe.only.objective
    # The title states the masking policy and ratio only if the objective uses them.
    if recipe.only.kind.inherits:
        title = f"{recipe.masking.policy} {recipe.masking.ratio}"
    words = {"objective": recipe.only.objective, **source.masker.describe()}
    trainee = objective(recipe.only.call, network)
    return Learning(trainee, source, source.learners(), source.streams(), title, words)


def masked_source(
    data: Prepared, recipe: Recipe, config: PreTrainedConfig, *, arm: str | None = None
) -> MaskedSource:
    """Build the source of masked batches for one objective.

    Args:
        data: the prepared text.
        recipe: the recipe of one run.
        config: the configuration of the model.
        arm: the name of one of several objectives; None for a recipe with one objective.
    """
    chosen = recipe.only if arm is None else recipe.objectives[arm]
    rows = laid_out(data.training, chosen.kind, config)
    return _source(data, recipe, chosen, _drawn(rows, recipe))


def _source(
    data: Prepared,
    recipe: Recipe,
    chosen: ObjectiveSettings,
    rows: Rows | StreamedRows,
) -> MaskedSource:
    """Build the source of masked batches for one objective.

    Args:
        chosen: the settings of the objective.
        rows: the training rows in the layout of this objective.
    """
    kind = chosen.kind
    masking = kind.value_of(recipe.masking_of(chosen))
    seed = recipe.training.seed
    length = data.training.length
    maker = kind.maker(data.tokenizer, seed=seed, length=length, masking=masking)
    corpus = recipe.corpus
    shares = {}
    # A stream already draws from its sources by their sampling shares.
    if isinstance(rows, Rows) and len(corpus.sources) > 1:
        shares = corpus.shares(rows.by_source(len(corpus.sources)))
    return MaskedSource(rows, maker, recipe.training, shares=shares)


def _drawn(rows: Rows | Stream, recipe: Recipe) -> Rows | StreamedRows:
    """Wrap a stream in a ``StreamedRows``; return stored rows unchanged."""
    if isinstance(rows, Rows):
        return rows
    corpus = recipe.corpus
    shares = {}
    # Without weights in the recipe, shares would depend on the size of each source, which is
    # unknown for a stream.
    if isinstance(corpus.source, dict):
        shares = corpus.shares(())
    return StreamedRows(rows, recipe.training, shares=shares)


def _several_objectives(network: PreTrainedModel, data: Prepared, recipe: Recipe) -> Learning:
    """Build all objectives on one encoder, and the sampler that chooses among them.

    The objectives are called arms, as in the literature on bandits.
    """
    training = recipe.training
    arms = recipe.objectives
    # Set a seed for the weights of new heads, because loading a pre-trained model sets none.
    torch.manual_seed(fold(training.seed, 0x4EAD))
    joined = SeveralObjectives({name: objective(arm.call, network) for name, arm in arms.items()})
    heads = Path(recipe.model.pretrained or "") / "heads.safetensors"
    # A checkpoint of an earlier phase contains trained heads.
    if heads.is_file():
        joined.load_heads(heads)
    chooser = read_sampler(recipe.sampling, list(arms), seed=training.seed, steps=training.steps)
    rank = rank_here()
    ranks = ranks_here()
    # Raise an error now if there are too few rows; otherwise training would fail at a probe.
    probed = probed_rows(recipe, data.held_out, network.config, chooser)
    sizes = probed.sizes
    drawn: dict[str, Rows | StreamedRows] = {}
    sources = {}
    for name, arm in arms.items():
        kind = arm.kind
        rows = laid_out(data.training, kind, network.config)
        # Arms that read rows of the same layout share one reader, because a stream is read once.
        if rows.layout not in drawn:
            drawn[rows.layout] = _drawn(rows, recipe)
        sources[name] = _source(data, recipe, arm, drawn[rows.layout])
    source = SeveralSources(sources, chooser, training)
    # This sampler divides losses by the loss at chance. For some objectives, the loss at chance
    # depends on the batch size. A probe consists of two batches.
    if isinstance(chooser, LossProportional):
        vocabulary = len(data.tokenizer)
        chances = {name: joined.named(name).chance(vocabulary, sizes[name] // 2) for name in arms}
        chooser.chance = chooser.vector(chances)
    # The faithful variant of Mometas draws new rows for every probe, as in the paper.
    fresh = isinstance(chooser, Mometas) and chooser.faithful

    def probe() -> Probe:
        return Probe(
            joined,
            source,
            probed.held_out,
            sizes=sizes,
            skip=probed.taken,
            fresh=fresh,
            rank=rank,
            ranks=ranks,
        )

    # A sampler that does not learn makes probes only for the report, so it can run without them if
    # there are too few rows.
    watched = SamplerLearner(
        chooser, probe if probed.enough else None, watched_every=training.eval_every
    )
    listed = ", ".join(f"{name}: {arm.objective}" for name, arm in arms.items())
    return Learning(
        joined,
        source,
        learners={**source.learners(), "sampler": watched},
        streams=source.streams(),
        title=f"{recipe.sampler} over {', '.join(arms)}",
        words={"sampler": recipe.sampler, "objectives": listed},
    )
