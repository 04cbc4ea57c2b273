"""Check recipes, folders and texts before the work of a study starts, to report mistakes early.

A study compares arms, which are ways to pre-train. An arm may train in several phases.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from maskwise.annotate.registry import annotator, annotators
from maskwise.annotate.run import require_live
from maskwise.base.constants import POLICY_TAGGERS
from maskwise.base.devices import bf16_note, fast_bf16
from maskwise.base.errors import MaskwiseError, in_percent, option, plural, require_known, shortened
from maskwise.base.folders import OutputFolder
from maskwise.base.specs import of_run
from maskwise.evaluation.evaluate import CLOZE, PAIRS, load_measures, measure_of, require_measurable
from maskwise.evaluation.scoring import evenly_spaced, predictable
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.jobs.pools import Where, require_cards, require_engine, require_one_process
from maskwise.masking import Masker
from maskwise.masking.policies import UnitKind
from maskwise.models.decoders import is_causal, is_decoder
from maskwise.models.families import adapter_of, check_room, most_tokens, require_kind
from maskwise.models.loading import NO_HEAD, check_start, empty_model, has_head, load_config
from maskwise.objectives import objective as build_objective
from maskwise.objectives.base import NO_DOCUMENTS, require_fitting_head
from maskwise.recipe import Recipe
from maskwise.recipe.comparison import SearchSettings
from maskwise.recipe.setting_layers import blamed
from maskwise.results.measurements import unit_of
from maskwise.samplers import sampler
from maskwise.studies.costs import counts_of, counts_over, over_a_run
from maskwise.studies.probed import probed_rows
from maskwise.studies.stages import Stage, prepare_stage, tokenizer_of
from maskwise.studies.store import StageStore
from maskwise.studies.trial import check_step
from maskwise.tasks.finetuning import idle_settings
from maskwise.tasks.loading import load_task
from maskwise.tasks.task import Task
from maskwise.text import Rows, load_tokenizer, require_documents
from maskwise.text.documents import field_note, first_characters, folder_note, lines_note
from maskwise.text.groups import check_groups, share_that_fits
from maskwise.text.layers import token_layers
from maskwise.text.own_tokenizer import other_ids, other_reading, own_tokenizer
from maskwise.text.pieces import SPECIAL, read_pieces, tokenise, unknown_share
from maskwise.text.rows import held_out_below, holds_out
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.text.source import source_path
from maskwise.text.token_rows import TokenRows
from maskwise.text.tokenizers import SAMPLE_CHARACTERS, dna_note, require_mask
from maskwise.text.words import require_offsets
from maskwise.training.building import config_from
from maskwise.training.data import MaskedSource
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows
from maskwise.training.tracking import require_trackers
from maskwise.verdict.outcomes import require_task_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

FEW_STEPS = 8
"""Before training, the batches of this many steps are masked, to check that there are targets
(masked tokens)."""
FEW_DOCUMENTS = 8
"""Number of documents in which letters that are not nucleotides are looked for."""
ENOUGH_CHARACTERS = 2_000_000
"""Held-out text of this size has enough rows for the probes of any sampler."""
MEASURED_ROWS = 1000
"""The maximum number of rows of a split (train or test) whose tokens are counted."""
MOST_UNKNOWN = 0.01
"""Share of unknown tokens above which a warning is shown. Unknown tokens are never masked."""
FEW_HELD_OUT = 32
"""Number of held-out rows below which a warning says that the held-out loss is inexact."""
MANY_TEXTS, LARGE_PART = 20, 0.2
"""A text is named if it is at least this share of a corpus of at least so many texts."""
UNKNOWN_ADVICE = (
    "use a tokenizer that covers the characters of the text: tokenizer.kind=bpe, or a larger "
    "tokenizer.vocab_size"
)


def folder_of_study(out: Path, call: str = "", *, block: bool = False) -> OutputFolder:
    """Return the folder of a study.

    Args:
        call: as for ``OutputFolder``.
        block: whether this call runs a part of the seeds. Machines may then share the work, and the
            files of the study may have been copied here from another machine without its stages.
    """
    return OutputFolder(out, "study", call, known=block and (out / "study.json").is_file())


def check_study(
    recipe: Recipe, out: Path, *, engine: Where, seeds: Sequence[int] | None, processes: int = 1
) -> tuple[tuple[int, ...], list[str]]:
    """Check the inputs of a study.

    Args:
        recipe: the recipe of the study.
        out: the folder of the study.
        engine: where stages run (``maskwise.jobs.pools``): a name or an executor.
        seeds: the seeds to run; None for all seeds of the study.
        processes: the number of processes that train each model together.

    Returns:
        The seeds to run, in the order of ``study.seeds``, and the warnings.

    Raises:
        MaskwiseError: the engine or a seed is unknown, the recipe has a seed of one training, the
            folder contains other files than those of a study, torchrun has started several
            processes, there are fewer GPUs than processes, or ``check_inputs`` raises an error.
    """
    require_one_process()
    require_engine(engine)
    if engine == "local":
        require_cards(processes)
    planned = recipe.study.seed_list
    first = recipe.training.seed
    if first:
        others = [first + number for number in range(len(planned))]
        raise MaskwiseError(
            "training.seed has no effect in a study, because its runs have the seeds of "
            "study.seeds",
            got=first,
            do=f"remove training.seed; for other seeds, set study.seeds={others}",
        )
    folder_of_study(out, block=seeds is not None).require()
    if seeds is None:
        seeds = planned
    foreign = [seed for seed in seeds if seed not in planned]
    if foreign or not seeds:
        raise MaskwiseError(
            "the seeds to run must be among those of study.seeds",
            got=foreign,
            allowed=f"any of {', '.join(map(str, planned))}",
            do=f"for {foreign[0]} runs, set study.seeds={foreign[0]}" if len(seeds) == 1 else None,
        )
    block = tuple(seed for seed in planned if seed in seeds)
    return block, check_inputs(recipe, processes)


def check_inputs(recipe: Recipe, processes: int = 1) -> list[str]:
    """Check texts, tokenizers, models and tasks of every arm without preparing or training.

    Args:
        recipe: a recipe.
        processes: the number of processes that train each model together.

    Returns:
        Warnings of one line each.

    Raises:
        MaskwiseError: a text, tokenizer, model or task cannot be read, or does not fit the others.
    """
    study = recipe.study
    seed = study.first_seed
    tasks = {spec: load_task(of_run(spec, seed)) for spec in recipe.tasks}
    by_arm = {}
    arms = []
    for name in study.arms:
        by_arm[name] = [recipe.arm(name, seed=seed, more=point) for point in study.points_of(name)]
        for more in study.settings_used(name):
            arms.append(recipe.arm(name, seed=seed, more=more))
            _check_split(arms[-1], name, recipe)
    arms = arms or [recipe]
    notes: list[str] = []
    held_out = _HeldOutRows()
    for arm in arms:
        notes += _check_arm(arm, tasks.values(), held_out, processes)
        for link in arm.links():
            with blamed("training.trackers"):
                require_trackers(link.training.trackers)
        if study.equal_by != "steps" and any(link.corpus.stream for link in arm.links()):
            raise MaskwiseError(
                "arms that read a stream can be matched by steps only, because the cost of a step "
                "is unknown in advance",
                got=f"study.equal_by={study.equal_by}",
                do="remove study.equal_by",
            )
    notes += _equal_arms(by_arm)
    # Load the evaluation files only to raise an error if they are damaged.
    load_measures(recipe.evaluation)
    search = study.search
    if search and (search.by == "dev" or (tasks and not search.by)):
        for spec, task in tasks.items():
            if not task.splits["dev"] and task.name not in study.secondary:
                raise MaskwiseError(
                    f"study.search compares dev scores, but task {spec} has no dev rows",
                    do="add a dev split, or set study.search.by=held-out",
                )
    elif search:
        _check_losses(recipe, search, by_arm)
    specs: dict[str, str] = {}
    for spec, task in tasks.items():
        if task.name in specs:
            raise MaskwiseError(
                f"two tasks are called {task.name!r}",
                got=f"{specs[task.name]} and {spec}",
                do=f'rename one of them: {spec.partition("(")[0]}(…, name="…")',
            )
        do = f'give it another one: {spec.partition("(")[0]}(…, name="…")'
        require_task_name(task.name, do=do)
        specs[task.name] = spec
    for name in study.secondary:
        require_known("task in study.secondary", name, specs)
    if specs and set(specs) <= {*study.secondary}:
        raise MaskwiseError(
            "all tasks are secondary, so none is left to decide by",
            got=", ".join(study.secondary),
            do="remove a task from study.secondary",
        )
    deciding = [task for task in tasks.values() if task.name not in study.secondary]
    of_unit = {unit_of(task.metric): task.name for task in deciding}
    if study.margin is not None and study.outcome in (None, "tasks") and len(of_unit) > 1:
        units = " and ".join(f"{unit} ({name})" for unit, name in of_unit.items())
        notes.append(
            f"study.margin has no effect if tasks with different units decide: {units}; name "
            "those of one unit in study.secondary"
        )
    if tasks:
        for name in idle_settings(recipe.finetune, tasks.values()):
            notes.append(
                f"finetune.{name} has no effect here, because the encoder stays frozen in all tasks"
            )
    if recipe.learning and not any(link.learns for arm in arms for link in arm.links()):
        notes.append(
            "the settings of learning have no effect here, because no arm has "
            "masking.policy=learned; maskwise learn uses them"
        )
    return list(dict.fromkeys(notes))


def _equal_arms(by_arm: Mapping[str, list[Recipe]]) -> Iterator[str]:
    """Yield a warning for each arm that has the same settings as an arm before it."""
    first: list[tuple[str, list[object]]] = []
    for name, recipes in by_arm.items():
        meant: list[object] = [_meant(link) for recipe in recipes for link in recipe.links()]
        for other, others in first:
            if meant == others:
                yield (
                    f"arms {other} and {name} have equal settings, so every difference between "
                    "them is chance; give one of them another setting, unless this is the question"
                )
                break
        else:
            first.append((name, meant))


def _meant(link: Recipe) -> tuple[object, ...]:
    """Return the settings of a training phase, with masks as they are meant and not as written.

    "constant(0.15)" and 0.15 are the same ratio.
    """
    return link.model_dump(exclude={"masking", "phases"}), link.masking.values


def _check_split(arm: Recipe, name: str, recipe: Recipe) -> None:
    """Check that an arm does not train on the documents that judge all arms.

    All arms are evaluated on held-out documents of the last phase of the recipe (``make_run``). A
    phase of an arm that reads the same source must hold out these documents, too.

    Args:
        arm: the recipe of a run of the arm.
        name: the name of the arm.
        recipe: the recipe of the study.
    """
    judging = of_run(recipe.links()[-1].corpus.model_dump(), arm.training.seed)
    common = CorpusSettings(**judging)
    judged = {_place(source) for source in common.sources}
    for number, link in enumerate(arm.links()):
        corpus = link.corpus
        shared = [source for source in corpus.sources if _place(source) in judged]
        # A larger share has all documents of a smaller one (``rows.holds_out``).
        differing = ["held_out"] if corpus.held_out < common.held_out else []
        # Which documents there are, and what decides the side of each.
        for setting in ("group_field", "text_per"):
            if getattr(corpus, setting) != getattr(common, setting):
                differing.append(setting)
        for setting in differing if shared else ():
            key = arm.settings_of(f"corpus.{setting}")[number]
            own, wanted = (json.dumps(getattr(each, setting)) for each in (corpus, common))
            raise MaskwiseError(
                f"arm {name!r} would train on documents of {shared[0]} that judge all arms, "
                f"because its {key} differs from that of the text that judges",
                got=own,
                allowed=f"{wanted} or more" if setting == "held_out" else wanted,
                do=f"set it once for the whole recipe (corpus.{setting}), or train on another text",
            )


def _place(source: str) -> str:
    """Return the name of a source; for a file or folder, its path without links."""
    path = source_path(source)
    return str(path.resolve()) if path.exists() else source


def require_alone(links: Iterable[Recipe]) -> None:
    """Raise an error if ``maskwise pretrain`` would need other stages than texts and trainings."""
    links = [*links]
    if any(link.learns for link in links):
        raise MaskwiseError(
            "maskwise pretrain cannot learn a masking policy",
            do="run maskwise learn first, then set masking.policy to learned('OUT/policy')",
        )
    if any(link.training.lengths is not None for link in links):
        raise MaskwiseError(
            "maskwise pretrain trains one length, and training.lengths are for studies",
            do="remove training.lengths, or run maskwise study with an arm",
        )


def tokenizer_and_config(arm: Recipe) -> tuple[PreTrainedTokenizerFast, PreTrainedConfig]:
    """Load an arm's tokenizer and model configuration.

    A tokenizer that is not trained yet is replaced by a placeholder.
    """
    given = arm.tokenizer_name
    masks = arm.kind == "encoder" and not all(link.causal for link in arm.links())
    # For the model configuration, only the tokenizer's size and special tokens are needed.
    tokenizer = cast("PreTrainedTokenizerFast", _Untrained(arm.tokenizer))
    if given:
        # Character offsets are needed to find the positions of test items and labels in a text.
        needs_offsets = bool(arm.tasks or arm.evaluation.named & {CLOZE, PAIRS})
        # Changes may give a mask token. Without one, a decoder is told what its head can learn.
        start = arm.model.pretrained
        later = bool(arm.model.changes) or (
            start is not None and is_decoder(load_config(start, kind=None))
        )
        tokenizer = load_tokenizer(given, needs_mask=masks and not later, needs_words=needs_offsets)
    config = config_from(arm.model, tokenizer, arm.links()[0].corpus.length, kind=arm.kind)
    for change in arm.model.steps:
        config = change.check(config, tokenizer)
    require_kind(config, arm.kind, use="training")
    for link in arm.links():
        for objective in link.trained_by.values():
            require_fitting_head(objective.kind, config)
    if given and masks:
        require_mask(tokenizer, given)
    return tokenizer, config


def check_tokenizer(
    arm: Recipe, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] = ()
) -> Iterator[str]:
    """Check that a pre-trained model gets a tokenizer that belongs to it.

    Yields:
        A warning, if the recipe says that another tokenizer is meant (``tokenizer.replaces``).

    Raises:
        MaskwiseError: the model has another tokenizer, in its folder or in the hub's cache.
    """
    start = arm.model.pretrained
    own = own_tokenizer(start) if start and arm.tokenizer_name != start else None
    if own is None:
        return
    differing = other_ids(tokenizer.get_vocab(), own.get_vocab())
    differing = differing or other_reading(tokenizer, own, texts)
    if differing is None:
        return
    if arm.tokenizer.replaces:
        yield f"the embeddings of {start} belong to other tokens: {differing}"
        return
    raise MaskwiseError(
        f"tokenizer.name={arm.tokenizer_name} is not the tokenizer of {start}, whose embeddings "
        "belong to other tokens",
        got=differing,
        do="remove tokenizer.name, so that the model's own is read; or, if the model shall learn "
        "other tokens, set tokenizer.replaces=true",
    )


def check_names(recipe: Recipe, tasks: Sequence[Task] = ()) -> None:
    """Check models, tokenizers, annotators and evaluation files of every arm; read no text.

    Args:
        recipe: a recipe.
        tasks: its tasks, where they are known.

    Raises:
        MaskwiseError: one of them cannot be read, or does not fit the others.
    """
    for name in recipe.study.arms:
        for more in recipe.study.settings_used(name):
            arm = recipe.arm(name, seed=recipe.study.first_seed, more=more)
            tokenizer, config = tokenizer_and_config(arm)
            # The warnings are those of ``check_inputs``, which gives them.
            [*_check_model(arm, tasks, tokenizer, config)]
            [*check_tokenizer(arm, tokenizer)]
            for link in arm.links():
                _check_layers(link)
                _check_rows(link, 1)
    load_measures(recipe.evaluation)


def _check_arm(
    arm: Recipe, tasks: Iterable[Task], held_out: _HeldOutRows, processes: int
) -> Iterator[str]:
    """Check that the model, tokenizer and texts of an arm fit each other; yield warnings."""
    tokenizer, config = tokenizer_and_config(arm)
    yield from _check_model(arm, tasks, tokenizer, config)
    texts = (document.text for link in arm.links() for document in link.corpus.documents())
    yield from check_tokenizer(arm, tokenizer, texts)
    check_step(config, max(link.corpus.length for link in arm.links()))
    for link in arm.links():
        yield from _check_text(link)
        if arm.tokenizer_name:
            _check_words(link, tokenizer)
            some = map(attrgetter("text"), link.corpus.documents())
            note = dna_note(tokenizer, islice(some, FEW_DOCUMENTS))
            if note:
                yield f"{link.corpus.title}: {note}"
        _check_rows(link, processes)
        _check_probes(link, tokenizer if arm.tokenizer_name else None, config, held_out)
        yield from link.remarks()
        if link.training.precision == "bf16":
            yield from filter(None, [bf16_note()])
        yield from _idle_here(link.training, config, processes)
        if link.corpus.row_layout == "packed" and not adapter_of(config).separates:
            note = f"{config.model_type}: {NO_DOCUMENTS}, so it reads one document per row"
            if arm.kind == "encoder":
                note += "; with corpus.attention=row it reads packed rows as one text"
            yield note


def _check_measures(evaluation: EvaluationSettings, config: PreTrainedConfig) -> None:
    """Raise ``MaskwiseError`` if a model cannot predict what shall be measured."""
    predictable(evaluation.masks, config, setting="evaluation.masks")
    if evaluation.measures and is_causal(config):
        raise MaskwiseError(
            f"a decoder that reads earlier tokens only fills no masks ({config.model_type})",
            got=f"evaluation.measures={list(map(str, evaluation.measures))}",
            do="set evaluation.measures=[], and tasks that judge the model",
        )
    for measure in map(measure_of, evaluation.measures):
        require_measurable(measure, config)


def _idle_here(
    training: TrainingSettings, config: PreTrainedConfig, processes: int
) -> Iterator[str]:
    """Yield a note for each setting without effect on this machine, or with so many processes.

    A recipe may be for a larger machine, so such a setting is not refused.
    """
    if training.shard and processes == 1:
        yield (
            "training.shard has no effect here, because one process trains each model; "
            f"{option('processes', 8)} starts 8 (docs/scaling.md)"
        )
    by_itself = training.precision == "auto"
    if training.residual == "bf16" and by_itself and not fast_bf16(config.hidden_size):
        yield (
            "training.residual=bf16 has no effect here, because training.precision=auto computes "
            "this model in float32 on this machine"
        )


def _check_model(
    arm: Recipe,
    tasks: Iterable[Task],
    tokenizer: PreTrainedTokenizerFast,
    config: PreTrainedConfig,
) -> Iterator[str]:
    """Check that the model of an arm fits its tokenizer, tasks and settings; yield warnings."""
    links = arm.links()
    start = arm.model.pretrained
    adds = any(change.adds_tokens for change in arm.model.steps)
    if not adds and any(link.training.freeze == "old-rows" for link in links):
        raise MaskwiseError(
            "training.freeze=old-rows trains rows of new tokens, and this model has none",
            do="add new-tokens(500) to model.changes, or set another value of training.freeze",
        )
    if any(change.changes_tokens for change in arm.model.steps):
        if any(link.corpus.tokens for link in links):
            raise MaskwiseError(
                "model.changes of tokens need texts, and this corpus has token ids",
                got=f"corpus.tokens={links[0].corpus.tokens}",
                do="give the texts, or leave out model.changes",
            )
        if any(link.learns for link in links):
            raise MaskwiseError(
                "model.changes of tokens and masking.policy=learned cannot be combined",
                do="learn the policy first (maskwise learn), or leave out model.changes",
            )
    check_start(config, len(tokenizer), loaded=bool(start))
    if arm.model.lora:
        arm.model.lora.check(config)
        if all(link.training.freeze == "encoder" for link in links):
            raise MaskwiseError("training.freeze=encoder freezes model.adapter", do="remove one")
    for task in tasks:
        if task.kind.check_model:
            task.kind.check_model(config)
    for setting, link in zip(arm.settings_of("corpus.length"), links):
        check_room(config, link.corpus.length, what=setting)
        for objective in link.trained_by.values():
            for given in objective.starts:
                teacher = load_config(given)
                _check_teacher(given, arm, tokenizer)
                check_room(teacher, link.corpus.length, what=f"{setting}, for {given},")
                layout = objective.kind.reads(link.corpus.row_layout, config)
                _check_apart(given, teacher, layout)
                # The objective refuses what does not fit; here, without weights.
                with torch.device("meta"):
                    build_objective(objective.call, empty_model(config))
        _check_measures(link.evaluation, config)
    if start and not arm.model.unigram_bias and has_head(start):
        yield f"model.unigram_bias has no effect, because {start} has a head, which is kept"
    heads = start is None or is_decoder(config) or has_head(start)
    if links[0].training.freeze == "none" and not heads:
        yield f"{start}: {NO_HEAD}"
    if arm.tasks and (start or arm.has_new_positions):
        length = arm.finetune.max_length
        do = f"set finetune.max_length={most_tokens(config)}"
        if arm.has_new_positions:
            do += ", or give the new model more positions (model.settings.max_position_embeddings)"
        check_room(config, length, what="finetune.max_length", do=do)


def _check_teacher(start: str, arm: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an error if a model that an objective names has other tokens than the trained one."""
    own = own_tokenizer(start)
    differing = None
    if not arm.tokenizer_name:
        differing = "a tokenizer that is trained on the text"
    elif any(change.changes_tokens for change in arm.model.steps):
        differing = "model.changes of tokens"
    elif own is not None:
        differing = other_ids(tokenizer.get_vocab(), own.get_vocab())
    if differing is not None:
        raise MaskwiseError(
            f"the model that is trained and {start}, from which it learns, have other tokens",
            got=differing,
            do="give both the tokens of the teacher (tokenizer.name), or name another teacher",
        )


def _check_apart(start: str, teacher: PreTrainedConfig, layout: str) -> None:
    """Raise an error if a model that an objective names reads the documents of a row as one text.

    Args:
        start: the name of this model.
        teacher: its configuration.
        layout: the layout in which the trained model reads rows.
    """
    if layout == "packed" and not adapter_of(teacher).separates:
        raise MaskwiseError(
            f"{start}, from which a model learns, would read the documents of a row as one text: "
            f"{NO_DOCUMENTS}",
            got=f"{teacher.model_type}, corpus.layout={layout}",
            do="set corpus.layout=document",
        )


def _check_losses(
    recipe: Recipe, search: SearchSettings, by_arm: Mapping[str, list[Recipe]]
) -> None:
    """Check that a search can compare the held-out losses of the settings in its grid."""
    do = "add tasks and set study.search.by=dev"
    for name, points in by_arm.items():
        tokenizers = set()
        for point in points:
            links = point.links()
            tokenizers.add(tokenizer_of(prepare_stage(links[0])))
            if not links[-1].judged_on():
                raise MaskwiseError(
                    f"study.search by held-out loss needs held-out losses of arm {name!r}",
                    got="an arm that masks nothing",
                    do=do,
                )
        if len(tokenizers) > 1:
            raise MaskwiseError(
                "study.search by held-out loss cannot choose between tokenizers: losses per "
                "token are not comparable between vocabularies",
                got=f"a grid of {', '.join(search.points[0])}",
                do=f"{do}, or define an arm for every tokenizer",
            )
        # All points are compared on the kinds of masks of the arm itself.
        own = recipe.arm(name, seed=recipe.study.first_seed).links()[-1]
        ends = [own, *(point.links()[-1] for point in points)]
        kinds = chain.from_iterable(end.judged_on() for end in ends)
        formats = {kind.partition(" ")[2] for kind in kinds}
        if len(formats) > 1:
            raise MaskwiseError(
                f"study.search by held-out loss cannot choose between the output formats of arm "
                f"{name!r}: their losses are not comparable",
                got=", ".join(sorted(formats)),
                do=f"{do}, or define an arm for every format",
            )
        measured = {kind.split()[0] for kind in own.judged_on()}
        if measured.isdisjoint(own.evaluation.masks):
            raise MaskwiseError(
                f"study.search by held-out loss needs held-out losses of arm {name!r} on its own "
                "kind of masks, which evaluation.masks lacks",
                got=list(own.evaluation.masks),
                allowed=" or ".join(sorted(measured)),
                do="add it to evaluation.masks, or set study.search.by=dev",
            )


def large_part(longest: tuple[int, str], documents: int, characters: int) -> str | None:
    """Return a sentence about a text that is a large part of its corpus; None if none is.

    Args:
        longest: the characters and the name of the longest text.
        documents, characters: the size of the corpus.

    >>> large_part((4500, "titin"), 100, 10_000), large_part((4500, "a"), 3, 10_000)
    ('one text (titin) is 45 % of the corpus', None)
    """
    share = longest[0] / max(1, characters)
    if documents < MANY_TEXTS or share < LARGE_PART:
        return None
    return f"one text ({shortened(longest[1], 60)}) is {in_percent(share, 2)} % of the corpus"


def _check_text(link: Recipe) -> Iterator[str]:
    """Check the corpus of a phase and its annotation layers; yield warnings."""
    corpus = link.corpus
    for part in corpus.parts():
        yield from field_note(require_documents(part), corpus.text_field)
    if corpus.group_field and not corpus.stream:
        yield groups_note(corpus, corpus.group_field)
    for source in corpus.sources:
        note = folder_note(source, tokens=bool(corpus.tokens))
        if note:
            yield note
    if corpus.text_per == "auto":
        yield from filter(None, map(lines_note, corpus.sources))
    # A stream is annotated while it is read. Annotators that need the whole corpus raise an error.
    if corpus.stream:
        for spec in corpus.layers:
            require_live(spec, annotator(spec))
        if link.learns:
            raise MaskwiseError(
                "a masking policy cannot be learned from a stream",
                do=(
                    "learn the policy from a part of the text first (maskwise learn), then set "
                    "masking.policy to its folder: learned('OUT/policy')"
                ),
            )
    _check_layers(link)


def groups_note(corpus: CorpusSettings, field: str) -> str:
    """Say which share of a text is held out by groups. The text is read once.

    Raises:
        MaskwiseError: there are few groups, or the share differs much from ``corpus.held_out``.
    """
    # The size of each group, and of each document without one, keyed by place.
    sizes = Counter[int]()
    groups = set[int]()
    alone = 0
    documents = corpus.documents()
    for document in documents:
        sizes[document.place] += len(document.text)
        if document.group:
            groups.add(document.place)
        else:
            alone += 1
    what = f"corpus.group_field={field}"
    if not groups:
        raise MaskwiseError(
            f"{what}: no document of {corpus.title} has this field",
            do="name the field with the group of each document",
        )
    wanted = corpus.held_out
    held_out = {place for place in sizes if place < held_out_below(wanted)}
    share = sum(sizes[place] for place in held_out) / sum(sizes.values())
    fitting = share_that_fits([*sizes], [*sizes.values()], wanted)
    check_groups(
        len(sizes),
        share,
        wanted=wanted,
        what=f"{what}: {corpus.title}",
        part=f"of the text is held out with corpus.held_out={wanted:g}",
        noun="field",
        setting="corpus.group_field",
        do=f"set corpus.held_out={fitting:g}" if fitting else None,
    )
    said = (
        f"{corpus.title}: {len(held_out & groups):,} of {len(groups):,} groups by {field} are "
        f"held out, {share:.1%} of the text"
    )
    if alone:
        said += f"; {plural(alone, 'document')} without a value in {field}"
    if documents.regrouped:
        number = len(documents.regrouped)
        said += f"; {plural(number, 'text')} in several groups, of which the first decides"
    return said


def _check_layers(link: Recipe) -> None:
    """Check that the corpus of a phase has the annotation layers that masking needs.

    An annotation layer has one value for each token, such as the number of its word. If a policy is
    learned, annotators measure it, too.
    """
    if link.learns:
        annotators(POLICY_TAGGERS)
    layers = ["word_ids"]
    for spec in link.corpus.layers:
        layers += token_layers(annotator(spec).layers)
    for who, names in link.layers_read.items():
        for layer in names:
            if layer not in layers:
                raise MaskwiseError(
                    f"{who} the annotation layer {layer!r}, which this corpus does not have",
                    got=f"layers {', '.join(layers)}",
                    do="add its annotator to corpus.layers (maskwise list annotators)",
                )


def _check_words(link: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise an error if words are needed and the tokenizer gives no character offsets.

    Tokenizers written in Python ("slow") give no offsets. With ``corpus.words=token`` every token
    is a word, and with other rules such a tokenizer reads each word alone.
    """
    corpus = link.corpus
    if corpus.tokens:
        TokenRows(corpus.tokens).require(tokenizer)
    require_offsets(tokenizer, layers=bool(corpus.layers), words=corpus.words)
    if tokenizer.is_fast or corpus.words != "auto":
        return
    used = {"masking.policy": link.policies, "evaluation.masks": link.evaluation.policies}
    for setting, policies in used.items():
        for name, policy in policies.items():
            if "word_ids" in policy.layers():
                raise MaskwiseError(
                    f"{setting} {name} needs words, which a slow tokenizer cannot find without "
                    "character offsets",
                    got=type(tokenizer).__name__,
                    do=(
                        f"set {setting} to token; set corpus.words to token, spaces or a "
                        "segmenter; or convert the tokenizer to a tokenizer.json"
                    ),
                )


def _check_rows(link: Recipe, processes: int) -> None:
    """Check that micro-batches have enough rows for ``cse`` (contrast of sentence embeddings)."""
    rows = link.training.micro_rows(processes)
    for name, arm in link.objectives.items():
        if arm.kind.twins and (rows % 2 or rows < 4):
            why = "cse reads half of the rows twice, so training.batch_size must be even and large"
            got = f"{rows} rows per micro-batch"
            allowed = "an even number of 4 or more"
            raise MaskwiseError(f"objective {name!r}: {why}", got=got, allowed=allowed)


class _HeldOutRows:
    """Prepares the held-out rows of training phases, once for all phases with the same text."""

    def __init__(self) -> None:
        self.prepared: dict[tuple[object, ...], Rows | None] = {}

    def of(self, link: Recipe, tokenizer: PreTrainedTokenizerFast | None) -> Rows | None:
        """Return the held-out rows of a phase; None if its text is so long that it has enough.

        Args:
            link: the recipe of one training phase.
            tokenizer: its tokenizer; None if it will be trained on the text.
        """
        key = text_of(link)
        if key not in self.prepared:
            self.prepared[key] = self._rows(link, tokenizer)
        return self.prepared[key]

    def _rows(self, link: Recipe, tokenizer: PreTrainedTokenizerFast | None) -> Rows | None:
        corpus = link.corpus
        if tokenizer is None:
            # To train a tokenizer on a long text takes too long here.
            documents = corpus.documents().beginning(SAMPLE_CHARACTERS)
            some = [*documents]
            if not documents.whole:
                return None
            tokenizer = link.tokenizer.tokenizer(some)
        held_out = (each for each in corpus.documents() if holds_out(each, corpus.held_out))
        some = [*first_characters(held_out, ENOUGH_CHARACTERS)]
        if sum(len(document.text) for document in some) >= ENOUGH_CHARACTERS:
            return None
        tokens = tokenise(some, tokenizer, words=corpus.words)
        pieces = read_pieces(tokens, tokenizer=tokenizer, length=corpus.length)
        return Rows.of(pieces, corpus.row_layout)


def text_of(link: Recipe) -> tuple[object, ...]:
    """Return the settings on which the rows of a training phase depend."""
    tokenizer = link.tokenizer_name or link.tokenizer
    return link.corpus.model_dump_json(), tokenizer, link.model.changes


def _check_probes(
    link: Recipe,
    tokenizer: PreTrainedTokenizerFast | None,
    config: PreTrainedConfig,
    held_out: _HeldOutRows,
) -> None:
    """Check that there are enough held-out rows for a sampler that learns from them.

    Args:
        link: the recipe of one training phase.
        tokenizer: its tokenizer; None if it will be trained on the text.
        config: the configuration of the model.
        held_out: the rows that were prepared for other phases.
    """
    if not link.objectives or link.corpus.stream:
        return
    chooser = sampler(link.sampling, list(link.objectives), seed=0, steps=link.training.steps)
    if not chooser.every:
        return
    rows = held_out.of(link, tokenizer)
    if rows is not None:
        probed_rows(link, rows, config, chooser)


def require_targets(source: MaskedSource, held_out: Rows, masker: Masker) -> None:
    """Raise an error if a masking policy finds nothing to mask, or no words.

    A policy divides each piece (a row's part of one document) into units, which are masked whole.

    Args:
        source: the training batches.
        held_out: the held-out rows, which are checked in place of the rows of a stream.
        masker: the masker of ``source``.

    Raises:
        MaskwiseError: a few batches of the run have no targets, or a policy that masks whole words
            takes a whole text for one word.
    """
    # Reading a stream would advance it, so its held-out rows are checked instead.
    if isinstance(source.rows, StreamedRows):
        how = source.settings
        rows = held_out.laid(source.rows.layout)
        some = rows.tensors(evenly_spaced(how.batch_size, of=len(rows)))
        steps = over_a_run(how.steps, FEW_STEPS)
        counts = counts_of(
            [masker(some, step=step, total_steps=how.steps, epoch=0)] for step in steps
        )
    else:
        counts = counts_over(source, FEW_STEPS)
    name = masker.policy
    if masker.masking.keep and not counts.eligible:
        raise MaskwiseError(
            f"the layer {masker.masking.keep!r} keeps every token visible",
            got=f"nothing to mask in {counts.steps} batches",
            do="mark only the tokens that must stay visible, such as prompts",
        )
    # In a text without spaces, a whole piece counts as one word, and such a word is longer than the
    # number of tokens to mask.
    whole = name.unit_kind in (UnitKind.WORD, UnitKind.SPAN)
    if whole and counts.eligible >= 8 * counts.pieces and counts.units <= 1.2 * counts.pieces:
        raise MaskwiseError(
            f"policy {name} finds no words in this text: {counts.units} units in "
            f"{counts.pieces} texts",
            got=f"{counts.eligible / max(1, counts.units):.0f} tokens per unit",
            do="set masking.policy to token or span(over='token'), or set corpus.words to token, "
            "regex:… or a segmenter such as jieba",
        )
    if not counts.targets:
        raise MaskwiseError(
            f"policy {name} masks nothing in this text: it finds no units (such as words), or all "
            "units are longer than the number of tokens to mask",
            got=f"no target in {counts.steps} batches",
            do="set masking.policy=token, or use a text with spaces (maskwise inspect shows masks)",
        )


def notes_of_texts(texts: Iterable[Stage], store: StageStore) -> Iterator[str]:
    """Yield a warning for prepared texts with many unknown tokens or names of special tokens."""
    for stage in texts:
        counts = (store.result(stage) or {}).get("counts", {})
        source = CorpusSettings(**stage.what["corpus"]).title
        if counts.get(SPECIAL):
            yield f"{source}: {counts[SPECIAL]:,} {SPECIAL}"
        for did in (store.result(stage) or {}).get("changes", ()):
            yield change_note(source, did)
        share = unknown_share(counts)
        if share > MOST_UNKNOWN:
            yield (
                f"{share:.1%} of the tokens of {source} are unknown to the tokenizer and are "
                f"never masked: {UNKNOWN_ADVICE}"
            )


def change_note(source: str, did: Mapping[str, Any]) -> str:
    """Return a note about a change of the tokens, from the result of a prepare stage."""
    share = did["saved"]
    how = "fewer" if share >= 0 else "more"
    return f"{source}: {did['what']}; held-out text has {abs(share):.1%} {how} tokens"


def row_sizes(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Count the tokens of each row in a sample of a task's rows.

    The list is empty for tasks that read long rows in several windows, because they truncate none.
    """
    if task.kind.windows:
        return []
    texts = []
    for split in ("train", "test"):
        rows = task.splits.get(split, ())
        # Take rows from all parts of the file, because files may be sorted.
        every = -(-len(rows) // MEASURED_ROWS) or 1
        texts += [row.texts for row in rows[::every]]
    # Texts that become vectors are read one by one.
    if task.frozen or task.kind.pools:
        texts = [(text,) for text in chain.from_iterable(texts)]
    sizes: list[int] = []
    for number in (1, 2):
        rows = [parts for parts in texts if len(parts) == number]
        if rows:
            # ``verbose=False`` turns off the tokenizer's warning about long rows.
            columns = map(list, zip(*rows))
            encoded = tokenizer(*columns, verbose=False, split_special_tokens=True)
            sizes += map(len, encoded["input_ids"])
    return sizes


def cut_share(sizes: Sequence[int], most_tokens: int) -> float:
    """Return the share of rows with more tokens than a model reads."""
    return sum(size > most_tokens for size in sizes) / max(1, len(sizes))


class _Untrained:
    """Stands in for a tokenizer that is not trained yet, to build a model configuration."""

    pad_token_id = 0
    cls_token_id = 2
    sep_token_id = 3
    mask_token_id = 4
    bos_token_id = eos_token_id = None

    def __init__(self, settings: TokenizerSettings):
        self.size = settings.vocab_size + settings.sentinels

    def __len__(self) -> int:
        return self.size
