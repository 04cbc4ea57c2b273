"""Forecast a study: the stages it runs, the time it takes, and its likely problems.

A study compares arms (ways to pre-train) and consists of stages, such as pre-training. ``dry_run``
plans a study. ``check`` also counts the tokens and targets of a sample of the text. It makes the
record that ``maskwise check`` and the option ``--dry-run`` of other commands print. Both functions
write nothing except the cache of measured times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from maskwise.base.constants import (
    CORRELATIONS,
    NATS,
    OVERLAP_ADVICE,
    accuracy_misleads,
    cards_here,
    jobs_here,
    overlap_matters,
    overlap_words,
)
from maskwise.base.devices import memory
from maskwise.base.errors import MaskwiseError, counted, duration, option, plural, shortened
from maskwise.base.folders import read_json
from maskwise.base.signals import temporary_folder
from maskwise.base.specs import of_run
from maskwise.evaluation.measures.copies import SIMILAR, near_copies
from maskwise.evaluation.measures.overlap import overlap_record
from maskwise.models.families import most_tokens
from maskwise.models.loading import weights_of
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.samplers import sampler
from maskwise.studies.checks import (
    FEW_HELD_OUT,
    MOST_UNKNOWN,
    UNKNOWN_ADVICE,
    check_study,
    cut_share,
    large_part,
    require_alone,
    row_sizes,
    tokenizer_and_config,
)
from maskwise.studies.costs import (
    LEAST_VOCABULARY,
    Forecast,
    at_once,
    counts_over,
    phases_of,
    plateau_targets,
    summary,
)
from maskwise.studies.design import Design
from maskwise.studies.estimate import estimates
from maskwise.studies.from_files import reader_for
from maskwise.studies.inputs import with_settled_tasks
from maskwise.studies.plan import stages_of
from maskwise.studies.pretraining import masked_source
from maskwise.studies.records import describe, require_same_study
from maskwise.studies.rehearsal import Rehearsal
from maskwise.studies.rehearsal import rehearse as rehearse_stages
from maskwise.studies.single import with_own_seed
from maskwise.studies.stages import named
from maskwise.studies.store import StageStore
from maskwise.studies.text_sample import Samples, TextSample
from maskwise.studies.unread import read_by_pretraining, read_by_study, refuse_unread
from maskwise.tasks.loading import load_task
from maskwise.tasks.splits import dropped
from maskwise.tasks.task import Task, all_classes
from maskwise.tasks.tensors import MOST_CUT
from maskwise.text.documents import first_characters
from maskwise.text.pieces import UNKNOWN
from maskwise.text.rows import holds_out
from maskwise.text.segmenters import segmenter_advice, unspaced
from maskwise.text.settings import CorpusSettings, Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

COUNTED_STEPS = 4
"""To count the targets (masked tokens) of a run, the batches of this many steps are masked."""
FEW_TARGETS = 32
"""Below this number of targets the gradient of a step is mostly noise."""
FEW_TEST_ITEMS = 200
SCRIPT_CHARACTERS = 200_000
"""The number of characters from which the scripts of a text are known."""
OVERLAP_CHARACTERS = 1 << 22
"""The number of characters in which test items are looked for, which takes about a second."""
MOST_PASSES = 8
"""Above this number of passes over a text, overfitting is likely."""
SAFE_TIMES = 1.5
"""Factor between the predicted and the recommended number of steps. The prediction is inexact."""

FOR = {"main": "", "search": " to choose settings", "texts": " to read the texts"}
"""What the runs of a plan are for, by its purpose."""

Doubt: TypeAlias = dict[str, str]
"""A warning: ``what`` is doubtful, and what to ``do`` ("" if nothing can be done)."""


# A dry run
# ------------------------------------------------------------------------------------------------


class StudyPlan:
    """What ``run_study`` with the same arguments would do, without training or writing.

    Two decisions are not known yet. In place of the settings that a search (``study.search``) will
    choose, the forecast uses the first settings of the grid. In place of the numbers of steps that
    ``study.equal_by`` will compute, it uses ``training.steps`` of the recipe.

    Args:
        rehearsal: counts the texts of the estimate, and rehearses stages.
        spread, detect: as for ``check``.

    Raises:
        MaskwiseError: input that ``run_study`` rejects.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        rehearsal: Rehearsal,
        *,
        jobs: int | None = None,
        engine: str = "local",
        processes: int = 1,
        cache: Path | None = None,
        seeds: Sequence[int] | None = None,
        spread: str | float | None = None,
        detect: float | None = None,
    ):
        # Imported here because workers import this module, and scipy takes a second to import.
        from maskwise.studies.prospects import incomparable_pairs, prospects_of, spreads_of
        from maskwise.verdict import primary_pairs

        recipe = with_settled_tasks(recipe, out)
        block, notes = check_study(recipe, out, engine=engine, seeds=seeds, processes=processes)
        # Before stages are timed, because an argument may be wrong.
        contrasts = prospects_of(recipe, spreads_of(recipe, out, spread), detect=detect)
        self.jobs = jobs or jobs_here(processes)
        self.here = engine == "local"
        store = StageStore.of_study(recipe, out, cache)
        design = Design(recipe, store, seeds=block, forecast=True)
        study = describe(recipe, design)
        doubts: list[Doubt] = [{"what": note, "do": ""} for note in notes]
        for what in incomparable_pairs(recipe, study, primary_pairs(study)):
            doubts.append({"what": what, "do": _what_compares(recipe)})
        require_same_study(out, read_json(out / "study.json") or {}, study, block=seeds is not None)
        self.plans = list(design.plans())
        self.runs = design.runs
        self.planned = stages_of(self.plans)
        # Stages of other recipes in these folders may have the same work, so their times are known.
        self.forecast = Forecast(named(store.stages()) | self.planned, store, here=self.here)
        self.todo = [name for name in self.planned if name not in self.forecast.finished]
        self.rehearsal = rehearsal
        self.ranges = estimates(self.plans, rehearsal.counts_of) if self.unknown else {}
        self.untimed: dict[str, str] = {}
        self.facts: Plain = {
            "name": recipe.name,
            "out": str(out),
            "jobs": self.jobs,
            "processes": processes,
            "contrasts": contrasts,
            "doubts": doubts,
            "notes": list(design.open_questions()),
        }

    @property
    def unknown(self) -> bool:
        """Whether the time of some stage is not known on this machine."""
        return None in map(self.forecast.known, self.todo)

    def rehearse(self, *, every: bool = False) -> None:
        """Rehearse the stages whose time is not known, or all."""
        self.untimed = rehearse_stages(self.plans, self.forecast, self.rehearsal, every=every)

    def times(self) -> Plain:
        """Return the part of the record that depends on times."""
        left = {name: self.forecast.seconds(name) for name in self.todo}
        listed = []
        parts = []
        new = set(left)
        # A stage that several plans need is counted for the first of these plans, which runs it.
        for plan in self.plans:
            own = new.intersection(named(plan.stages()))
            listed.append({"purpose": plan.purpose, "runs": len(plan.runs), "to_do": len(own)})
            parts.append(own)
            new -= own
        at = at_once(self.jobs) if self.here else self.jobs
        estimated = {name: self.ranges[name] for name in left if left[name] is None}
        return {
            "plans": listed,
            "phases": list(phases_of(self.runs, left)),
            **summary(self.planned, left, at, parts, estimated),
            "untimed": self.untimed,
            "memory_gib": self.forecast.memory_gib(self.todo),
        }

    def memory_doubts(self) -> Iterator[Doubt]:
        """Warn if stages that run at once need more memory than this machine has."""
        if self.here:
            memory_gib = self.forecast.memory_gib(self.todo)
            yield from _memory_doubts(memory_gib, min(self.jobs, len(self.todo)))


def dry_run(recipe: Recipe, out: Path, **asked: Any) -> Plain:
    """Return the record of what ``run_study`` with the same arguments would do; rehearse nothing.

    Args:
        asked: further arguments of ``StudyPlan``.

    Returns:
        ``jobs``: the number of stages that run at once. ``processes``: the number of processes that
        train each model together. Times are those of one process. ``plans``: for each plan its
        purpose, its number of runs, and its number of unfinished stages. ``phases``: the cost of
        each training phase (``costs.phases_of``). ``stages``, ``unknown``, ``seconds``,
        ``least_seconds`` and ``most_seconds``: see ``costs.summary``. ``untimed``: why stages could
        not be rehearsed, keyed by kind. ``memory_gib``: the peak memory of one process, or None if
        it is unknown. ``contrasts``: for each contrast, what the planned runs can decide
        (``prospects_of``). ``doubts``: warnings about the recipe and its files, as
        {"what": text, "do": advice}. ``notes``: what is not known before the study runs.

    Raises:
        MaskwiseError: input that ``run_study`` rejects.
    """
    # Nothing is rehearsed, so nothing is written there.
    planned = StudyPlan(recipe, out, Rehearsal(out), **asked)
    facts = planned.facts
    doubts = [*facts["doubts"], *planned.memory_doubts()]
    return {**facts, **planned.times(), "doubts": doubts}


def _memory_doubts(one: float | None, stages: int) -> Iterator[Doubt]:
    """Yield the warning of ``StudyPlan.memory_doubts``.

    Args:
        one: the memory of a stage in GiB; None if it is unknown.
        stages: the number of stages that run at once.
    """
    held = memory()
    # On a GPU, the memory of a stage is that of the GPU.
    if one is None or held is None or cards_here():
        return
    gib = held / 2**30
    if stages > 1 and stages * one > gib:
        yield {
            "what": f"{stages} stages at once need about {stages * one:,.0f} GiB of memory, and "
            f"this machine has {gib:,.0f}",
            "do": f"run fewer at once: {option('jobs', max(1, int(gib / one)))}",
        }


# maskwise check
# ------------------------------------------------------------------------------------------------


def check(
    subject: str | Recipe,
    overrides: Sequence[str] = (),
    *,
    tasks: Sequence[str] = (),
    out: Path | None = None,
    jobs: int | None = None,
    engine: str = "local",
    processes: int = 1,
    cache: Path | None = None,
    seeds: Sequence[int] | None = None,
    timing: bool = True,
    rehearse: bool = False,
    limit: float = math.inf,
    samples: Samples | None = None,
    spread: str | float | None = None,
    detect: float | None = None,
    tell: Callable[[Plain], object] = lambda record: None,
) -> Plain:
    """Report what a recipe would train, how long this takes, and what it can decide.

    Args:
        subject: a recipe; its name or file; or a corpus or a file of labels, for which
            ``from_files.draft_of`` makes a recipe.
        overrides: ``key=value`` settings, if ``subject`` is no ``Recipe``.
        tasks: files with labels, if ``subject`` is a corpus.
        out: the folder of the study, whose finished stages count; None for a new folder.
        jobs, engine, processes, cache, seeds: as for ``run_study``.
        timing: whether to rehearse the stages whose time is unknown.
        rehearse: whether to rehearse all stages, and to raise the first error.
        limit: seconds; a study whose estimate exceeds them is not rehearsed.
        samples: samples of the text, which several checks may share.
        spread: the standard deviation of paired differences, in points or nats, or the folder of a
            finished study with the same arms. By default, it is that of the study in ``out``.
        detect: a difference in points or nats. The number of runs that detects it is reported.
        tell: called with the record before stages are rehearsed, if some are; its time is then a
            range.

    Returns:
        The record of ``dry_run``, and more about the text, of which a sample is read: ``recipe``
        (YAML with all defaults), ``corpus``, ``model``, ``training``, ``arms`` and ``tasks``.
        ``time`` sums up when the work ends. ``doubts`` are all warnings. ``forecast.lines_of``
        says the facts in words.

    Raises:
        MaskwiseError: input that ``run_study`` or ``run_pretrain`` rejects; or no arm can be
            trained. If only some cannot, each is a doubt.
    """
    if rehearse and not timing:
        # In Python, the arguments have the names of the options.
        raise MaskwiseError(
            "a rehearsal of every stage times them",
            got="--rehearse and --no-timing",
            do="leave out one of them (in Python: rehearse=True, timing=False)",
        )
    recipe = subject if isinstance(subject, Recipe) else _read(subject, overrides, tasks)
    alone = not recipe.study.arms
    study = recipe
    for name, given in {"spread": spread, "detect": detect}.items():
        if given is not None and not recipe.study.pairs:
            raise MaskwiseError(
                f"{option(name)} has no effect, because the recipe compares nothing",
                got=given,
                do=f"leave {option(name)} out, or check a recipe with study.contrasts",
            )
    if alone:
        require_alone(recipe.links())
        recipe = with_own_seed(recipe)
        # One training is planned as a study with one run.
        single = recipe.study.model_copy(update={"arms": {recipe.name: {}}, "seeds": 1})
        study = recipe.seeded(0).model_copy(update={"study": single})
    first = first_of(recipe)
    with temporary_folder() as folder:
        samples = samples or Samples(first, folder)
        planned = StudyPlan(
            study,
            out or folder / "study",
            samples.rehearsal,
            jobs=jobs,
            engine=engine,
            processes=processes,
            cache=cache,
            seeds=seeds,
            spread=spread,
            detect=detect,
        )
        sample = samples.first
        corpus = _corpus_facts(first, sample)
        config, model = _model_facts(first, sample)
        facts: Plain = {
            "recipe": recipe.to_yaml(),
            "corpus": corpus,
            "model": model,
            "arms": _arm_facts(recipe, samples, config),
            "tasks": {},
        }
        facts["training"] = _training_facts(first, corpus, facts["arms"])
        for spec in of_run(recipe.tasks, recipe.study.first_seed):
            task = load_task(spec)
            of_task = _task_facts(task, first, sample.data.tokenizer, most_tokens(config))
            facts["tasks"][task.name] = of_task
            read = first_characters(first.corpus.training_documents(), OVERLAP_CHARACTERS)
            overlap = overlap_record(read, task, corpus=first.corpus.title)
            facts["tasks"][task.name]["overlap"] = overlap
        record = planned.facts | _times(planned, alone=alone) | facts
        if alone:
            record["contrasts"] = []
        record["doubts"] = record["doubts"] + doubts_of(record)
        if out is None:
            del record["out"]
        in_time = record["least_seconds"] <= limit
        if rehearse or (timing and planned.unknown and in_time):
            tell(record)
            planned.rehearse(every=rehearse)
            record |= _times(planned, alone=alone)
    record["doubts"] += planned.memory_doubts()
    return record


def _times(planned: StudyPlan, *, alone: bool) -> Plain:
    """Return what a check says of times; ``time`` sums up when the work ends."""
    record = planned.times()
    runs = {line["purpose"]: line["runs"] for line in record["plans"]}
    keys = ("unknown", "untimed", "seconds", "least_seconds", "most_seconds", "memory_gib")
    found = planned.facts | record
    kept = {key: found[key] for key in ("jobs", "processes", *keys)}
    return record | {"time": {"runs": {} if alone else runs, **kept}}


def first_of(recipe: Recipe) -> Recipe:
    """Return the recipe of the training whose text, model and steps are reported.

    It is the last phase of the first arm.
    """
    for name in recipe.study.arms:
        return recipe.arm(name, seed=recipe.study.first_seed).links()[-1]
    return recipe.links()[-1]


def _read(subject: str, overrides: Sequence[str], tasks: Sequence[str]) -> Recipe:
    """Read a recipe for ``check``, and refuse overrides that no command would use."""
    read = reader_for(subject, overrides, tasks=tasks)
    recipe = read(overrides)
    alone = not recipe.study.arms
    refuse_unread(
        recipe,
        overrides,
        read=read,
        content=read_by_pretraining if alone else read_by_study,
        command="pretrain" if alone else "study",
    )
    return recipe


def _corpus_facts(first: Recipe, sample: TextSample) -> Plain:
    """Count documents, rows, tokens and unknown tokens."""
    corpus = first.corpus
    documents = corpus.documents().beginning(SCRIPT_CHARACTERS)
    beginning = [each.text for each in documents]
    counts = sample.rows.pieces.counts
    tokens = max(1, counts.get("tokens", sample.rows.tokens))
    # Counts of the sample are scaled to the whole text.
    held_out = sample.held_out_rows
    part = sample.part
    rows = part.times * (len(sample.rows) + len(sample.data.held_out))
    return {
        "title": corpus.title,
        "text_field": documents.fields.text,
        "documents": part.counts.documents,
        "characters": part.counts.characters,
        "longest": part.counts.longest,
        "whole": part.counts.whole,
        "stream": corpus.stream,
        "skipped": dict(part.counts.skipped),
        "rows": round(rows - held_out),
        "held_out_rows": held_out,
        "length": corpus.length,
        "tokens": round(tokens * part.times),
        "unknown": counts.get(UNKNOWN, 0) / tokens,
        "unspaced": unspaced(beginning),
        "k_mers": _k_mers(beginning),
        "words": corpus.words,
        "copies": _copies(corpus),
        "vocabulary": len(sample.data.tokenizer),
    }


def _k_mers(texts: Iterable[str]) -> int:
    """Return k if most words of texts are overlapping k-mers, of a word and the next; else 0.

    >>> _k_mers(["ACG CGT GTT", "TTA TAC"]), _k_mers(["ACG TTA CGT"]), _k_mers(["a a a"])
    (3, 0, 0)
    """
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    lengths = [len(one) for one, other in pairs if len(one) > 1 and one[1:] == other[:-1]]
    return max(lengths) if 2 * len(lengths) > len(pairs) else 0


def _copies(corpus: CorpusSettings) -> Plain:
    """Count near copies across the split."""
    found = near_copies(corpus.documents(), lambda document: holds_out(document, corpus.held_out))
    return found.as_dict()


def _model_facts(first: Recipe, sample: TextSample) -> tuple[PreTrainedConfig, Plain]:
    """Return the configuration of the model, and facts about it."""
    start = first.model.pretrained
    _, config = tokenizer_and_config(first)
    # A newly trained tokenizer may have fewer tokens than requested, such as the letters only.
    if start is None:
        config.vocab_size = len(sample.data.tokenizer)
    return config, {
        "start": start,
        "type": config.model_type,
        "weights": weights_of(config),
        "vocabulary": config.vocab_size,
        "encoder": first.kind == "encoder",
    }


def require_trainable_arm(recipe: Recipe, samples: Samples) -> None:
    """Raise ``MaskwiseError`` if no arm of a recipe can be trained on the sampled text."""
    first = first_of(recipe)
    config, _ = _model_facts(first, samples.first)
    _arm_facts(recipe, samples, config)


def _arm_facts(recipe: Recipe, samples: Samples, config: PreTrainedConfig) -> dict[str, Plain]:
    """Count the targets of each arm. The key ``error`` says why an arm cannot be trained.

    Raises:
        MaskwiseError: no arm can be trained.
    """
    first = first_of(recipe)
    seed = recipe.study.first_seed
    arms = {name: recipe.arm(name, seed=seed).links()[-1] for name in recipe.study.arms}
    arms = arms or {recipe.name: first}
    facts = {}
    errors = []
    for name, link in arms.items():
        try:
            # Arms may have a text of their own, or rows of another length.
            facts[name] = _targets(link, samples.of(link).data, config)
        # An arm cannot be trained if, for example, the text has fewer rows than a batch.
        except MaskwiseError as error:
            errors.append(str(error))
            facts[name] = {**_unknown_targets(link, "it cannot be trained"), "error": str(error)}
    # A part of a text may have too few rows for a batch although the whole text has enough.
    texts = [samples.of(link).part.counts for link in arms.values()]
    if len(errors) == len(arms) and all(text.whole for text in texts):
        raise MaskwiseError(f"no arm can be trained: {', '.join(arms)}: {errors[0]}")
    return facts


def _what_compares(recipe: Recipe) -> str:
    """Advise what compares arms whose losses on masked text do not."""
    first = recipe.study.first_seed
    arms = (recipe.arm(name, seed=first) for name in recipe.study.arms)
    # Words are masked, which encoders alone can fill.
    if all(arm.kind == "encoder" and not arm.causal for arm in arms):
        return "add tasks, or a measure that compares them: evaluation.measures=word-loss(100)"
    return "add tasks"


def _training_facts(first: Recipe, corpus: Plain, arms: Mapping[str, Plain]) -> Plain:
    """Count passes over the text, and the steps until the loss leaves its plateau."""
    how = first.training
    facts: Plain = {"steps": how.steps, "passes": None, "plateau_steps": None}
    if corpus["whole"] or not corpus["stream"]:
        facts["passes"] = how.steps * how.batch_size / max(1, corpus["rows"])
    known = [arm["targets_per_step"] for arm in arms.values()]
    fewest = min((targets for targets in known if targets is not None), default=0)
    vocabulary = corpus["vocabulary"]
    # How long a model learns only word frequencies (the plateau) was measured only for new encoders
    # with word pieces.
    new = first.model.pretrained is None and first.kind == "encoder"
    if new and vocabulary >= LEAST_VOCABULARY and fewest > 0:
        facts["plateau_steps"] = round(plateau_targets(vocabulary) / fewest)
    return facts


# What the facts mean, in words
# ------------------------------------------------------------------------------------------------


def lines_of(record: Plain) -> Iterator[tuple[str, str]]:
    """Yield the facts of a check in words, as pairs of a name and a text; the time is the last."""
    corpus = record["corpus"]
    size = "{documents:,} documents, {characters:,} characters"
    if not corpus["whole"]:
        size = f"at least {size}"
    where = "{title}" if corpus["text_field"] == "text" else "{title}, field {text_field!r}"
    yield "text", f"{where}: {size}".format(**corpus)
    rows = "about {rows:,} training and {held_out_rows:,} held-out rows of {length} tokens; "
    yield "rows", (rows + "{tokens:,} tokens; {unknown:.1%} [UNK]").format(**corpus)
    for name, task in record["tasks"].items():
        parts = [f"{count:,} {split}" for split, count in task["rows"].items()]
        if task["found"] != task["rows"]["train"]:
            parts[0] += f" of {task['found']:,} (train_rows)"
        line = f"{task['kind']}: {', '.join(parts)}"
        if task["classes"]:
            line += f", {task['classes']} labels"
        if task["most"]:
            line += f", the most frequent {task['most']:.1%}"
        if task["majority"] is not None:
            line += f"; guessing gives {task['majority']:.3f} {task['metric']}"
        yield f"task {name}", line
    model = record["model"]
    kind = f"continued from {model['start']}" if model["start"] else "new"
    weights = f"{model['weights'] / 1e6:.1f} M weights, vocabulary {model['vocabulary']:,}"
    yield "model", f"{model['type']}, {kind}: {weights}"
    training = record["training"]
    line = f"{training['steps']:,} steps, "
    if training["passes"] is None:
        line += "on a stream, whose number of rows is unknown"
    else:
        passes = training["passes"]
        line += f"{passes:{'.1f' if passes >= 1 else '.2g'}} passes over the text"
    if training["plateau_steps"] is not None:
        steps = f"{training['plateau_steps']:,}"
        line += f"; about {steps} until the loss is below that of word frequencies"
    yield "training", line
    # Imported here for the same reason as in ``dry_run``.
    from maskwise.studies.prospects import prospect_lines

    for line in prospect_lines(record["contrasts"]):
        yield "contrasts", line
    runs = [f"{plural(count, 'run')}{FOR[kind]}" for kind, count in record["time"]["runs"].items()]
    yield "time", ", ".join([*runs, time_words(record)])


def range_words(plan: Plain) -> str:
    """State how long a study takes, as precisely as is known."""
    least = duration(plan["least_seconds"])
    if not plan["unknown"]:
        return least
    most = plan["most_seconds"]
    return f"at least {least}" if most is None else f"{least} to {duration(most)}"


def time_words(plan: Plain) -> str:
    """State how long a study takes and how much memory a stage needs, as a dry run predicts."""
    about = "" if plan["unknown"] else "about "
    words = f"{about}{range_words(plan)} with {plural(plan['jobs'], 'stage')} at once"
    if plan["untimed"]:
        why = [f"{kind} ({error})" for kind, error in plan["untimed"].items()]
        words += f"; not rehearsed: {', '.join(why)}"
    if plan["memory_gib"] is not None:
        words += f", {plan['memory_gib']:.1f} GiB of memory for each"
    if plan["processes"] > 1:
        words += f"; this is if one process trains each model: {plan['processes']} that train it "
        words += "together were not timed"
    return words


def problems_and_notes(record: Plain) -> tuple[list[Doubt], list[str]]:
    """Divide the warnings of a check into problems, which name what to do, and other notes."""
    problems = [doubt for doubt in record["doubts"] if doubt["do"]]
    notes = [doubt["what"] for doubt in record["doubts"] if not doubt["do"]]
    return problems, [*notes, *record["notes"]]


def doubts_of(record: Plain) -> list[Doubt]:
    """Return the warnings that follow from the facts of a check."""
    doubts: list[Doubt] = []

    def doubt(what: str, do: str = "") -> None:
        doubts.append({"what": what, "do": do})

    corpus = record["corpus"]
    if corpus["unknown"] > MOST_UNKNOWN:
        share = f"{corpus['unknown']:.1%} of the tokens"
        doubt(f"{share} are unknown to the tokenizer, and are never masked", UNKNOWN_ADVICE)
    if corpus["held_out_rows"] < FEW_HELD_OUT and not corpus["stream"]:
        doubt(
            f"with {corpus['held_out_rows']} held-out rows, the held-out loss is inexact",
            "use more text, or raise corpus.held_out",
        )
    large = large_part(corpus["longest"], corpus["documents"], corpus["characters"])
    if large:
        doubt(large, "shorten it or leave it out, unless the model shall learn mainly from it")
    copies = corpus["copies"]
    if copies["near"]:
        share = copies["near"] / copies["held_out"]
        pairs = " and ".join(f"{held} of {trained}" for held, trained in copies["examples"])
        doubt(
            f"{'about' if copies['whole'] else 'at least'} {share:.1%} of the held-out documents "
            f"have a near copy (Jaccard ≥ {SIMILAR}) in training, such as {pairs}",
            "remove copies, or hold out by group (corpus.group_field), or the loss is too low",
        )
    if corpus["skipped"]:
        left_out = counted(corpus["skipped"])
        doubt(
            f"{corpus['documents']:,} documents were kept, and these were left out: {left_out}",
        )
    if corpus["words"] in ("auto", "spaces"):
        for script, share in corpus["unspaced"].items():
            doubt(
                f"{share:.0%} of the letters are {script}, which has no spaces between words, so "
                "masks of whole words do not follow its words",
                segmenter_advice(script),
            )
    k = corpus["k_mers"]
    short_units = [
        name
        for name, arm in record["arms"].items()
        if arm["tokens_per_unit"] is not None and arm["tokens_per_unit"] < k
    ]
    if short_units:
        doubt(
            f"the words are overlapping {k}-mers, and {', '.join(short_units)} can read most "
            "masked ones off their neighbours",
            f"mask spans of {k} words or more: masking.policy=span(min_words={k})",
        )
    for name, arm in record["arms"].items():
        if "error" in arm:
            doubt(
                f"arm {name} cannot be trained: {arm['error']}",
                f"change its settings, or leave it out: study.arms.{name}=null",
            )
            continue
        targets = arm["targets_per_step"]
        if targets is not None and targets < FEW_TARGETS:
            doubt(
                f"arm {name} has {targets:.0f} targets per step",
                "raise training.batch_size, corpus.length or the ratio",
            )
    training = record["training"]
    if (training["passes"] or 0) > MOST_PASSES:
        doubt(
            f"training makes {training['passes']:.0f} passes over the text, and may overfit",
            "use more text, or lower training.steps",
        )
    plateau = training["plateau_steps"] or 0
    if training["steps"] < SAFE_TIMES * plateau:
        safe = 10 * math.ceil(SAFE_TIMES * plateau / 10)
        doubt(
            f"{training['steps']} steps may be too few: about the first {plateau} steps teach a "
            "new model little more than word frequencies",
            f"set training.steps={safe} to be safe, or use a pretrained model (model.pretrained)",
        )
    for name, task in record["tasks"].items():
        _doubt_task(name, task, doubt)
    short = [prospect for prospect in record["contrasts"] if not prospect["decidable"]]
    if short:
        fewest = max(prospect["fewest_runs"] for prospect in short)
        contrasts = plural(len(short), "contrast")
        doubt(
            f"{plural(short[0]['runs'], 'run')} of each arm cannot decide {contrasts}",
            f"set study.seeds={fewest} (of adapt: {option('runs', fewest)}), or list fewer "
            "study.contrasts",
        )
    return doubts


def too_many_cut(task: Plain) -> bool:
    """Return whether a check warns that rows of a task are truncated.

    Args:
        task: the facts about the task, from ``record["tasks"]``.
    """
    return task["cut"] > MOST_CUT


def _doubt_task(name: str, task: Plain, doubt: Callable[[str, str], None]) -> None:
    if accuracy_misleads(task["metric"], task["most"]):
        rows = f"{task['most']:.1%} of the rows of {name}"
        doubt(
            f"{rows} have the same label, so accuracy says little",
            "the page also shows macro F1; to decide by it, set metric='macro-f1'",
        )
    items = task["test_items"]
    if items < FEW_TEST_ITEMS and task["metric"] != NATS:
        # In points, the standard error of a share of 1/2 is 50 / √n, and that of a correlation of 0
        # is 100 / √n.
        error = (100 if task["metric"] in CORRELATIONS else 50) / items**0.5
        doubt(
            f"{name} has only {items} test items, which makes a score uncertain by "
            f"±{error:.0f} points",
            "use a larger test set, or ignore small differences",
        )
    if too_many_cut(task):
        rows = f"{task['cut']:.0%} of the rows of {name}"
        longest = f"the longest row has {task['longest']:,} tokens"
        do = f"the model has no more positions ({longest}); a model for longer rows reads all"
        if task["max_length"] < task["positions"]:
            most = min(task["longest"], task["positions"])
            do = f"raise finetune.max_length, to at most {most:,}: {longest}"
        doubt(f"{rows} are longer than {task['max_length']} tokens and are truncated", do)
    overlap = task["overlap"]
    if overlap["overlapping"]:
        # The records, which have more examples, are written by the study.
        examples = f"such as “{shortened(overlap['examples'][0], 100)}”"
        doubt(
            f"as far as the plan read ({overlap['documents']:,} training documents), "
            f"{overlap_words(overlap)}",
            OVERLAP_ADVICE.format(examples=examples) if overlap_matters(overlap) else "",
        )
    if task["skipped"]:
        left_out = dropped(task["skipped"])
        doubt(f"left out of {name}: {left_out}", "")
    for note in task.get("notes", []):
        doubt(f"{name}: {note}", "")


# Facts of arms and tasks
# ------------------------------------------------------------------------------------------------


def _targets(link: Recipe, data: Prepared, config: PreTrainedConfig) -> Plain:
    """Count the mean targets and tokens of a training step.

    The counts are None, and ``why`` is the reason, if the objective changes between steps, or if a
    masking policy is learned first.
    """
    only = None
    if not link.training.steps:
        return _unknown_targets(link, "it is not trained")
    if link.learns:
        return _unknown_targets(link, "its policy is learned first")
    if link.objectives:
        steps = link.training.steps
        only = sampler(link.sampling, list(link.objectives), steps=steps).only()
        if only is None:
            return _unknown_targets(link, "its sampler chooses an objective at each step")
    counts = counts_over(masked_source(data, link, config, arm=only), COUNTED_STEPS)
    return {
        "masks": _masks(link),
        "targets_per_step": counts.targets / counts.steps,
        "tokens_per_step": counts.tokens / counts.steps,
        "share": counts.targets / max(1, counts.tokens),
        "tokens_per_unit": counts.eligible / counts.units if counts.units else None,
    }


def _unknown_targets(link: Recipe, why: str) -> Plain:
    keys = ("targets_per_step", "tokens_per_step", "share", "tokens_per_unit")
    return {"masks": _masks(link), **dict.fromkeys(keys), "why": why}


def _masks(link: Recipe) -> str:
    if link.objectives:
        return link.sampler
    return f"{link.masking.policy} {link.masking.ratio}"


def _task_facts(
    task: Task, link: Recipe, tokenizer: PreTrainedTokenizerBase, positions: int
) -> Plain:
    max_length = link.finetune.max_length
    labels = Counter(all_classes(task.splits["train"]))
    sizes = row_sizes(task, tokenizer)
    return {
        **task.facts(),
        "rows": {split: len(rows) for split, rows in task.splits.items()},
        "found": task.found or len(task.splits["train"]),
        "labels": dict(labels.most_common(12)),
        "most": max(labels.values(), default=0) / max(1, labels.total()),
        "majority": task.majority,
        "skipped": dict(task.skipped),
        "cut": cut_share(sizes, max_length),
        "longest": max(sizes, default=0),
        "max_length": max_length,
        "positions": positions,
    }
