"""Execute stages, the pieces of work of a study. Each kind of stage is one `StageKind` below."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from maskwise.annotate.kept import Store
from maskwise.annotate.run import Live, annotate_corpus
from maskwise.base.constants import rank_here, ranks_here
from maskwise.base.devices import best_device, hardware, versions
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import (
    finite,
    read_json,
    read_lines,
    require_file,
    sweep,
    write_json,
    write_lines,
    write_whole,
)
from maskwise.base.specs import Call
from maskwise.changes import change_of, changed_tokens
from maskwise.evaluation.evaluate import evaluate, load_measures, reads_documents
from maskwise.evaluation.measures.overlap import overlap_record
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.jobs.pools import many_threads
from maskwise.masking.policies.given import LearnedPolicy
from maskwise.models.loading import load_config, load_model, with_fields
from maskwise.objectives import objective_class
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.studies.pretraining import pretrain
from maskwise.studies.stages import (
    CHECKPOINT,
    DONE,
    KINDS,
    POLICY,
    STAGE,
    TEXT,
    Stage,
    StageKind,
    add_kind,
    changed_since,
    kind_of,
    recipe_of,
    require_same_text,
    tune_stage,
)
from maskwise.studies.store import StageStore
from maskwise.tasks import finetuning
from maskwise.tasks.finetuning import Score, TaskRecord, TaskStart
from maskwise.tasks.loading import load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.tasks.task import Task
from maskwise.text import Document, Prepared, Stream, load_tokenizer, require_documents, tokenise
from maskwise.text.changed import Origins
from maskwise.text.documents import Documents, first_characters
from maskwise.text.new_words import saved_share
from maskwise.text.pieces import UNKNOWN, unknown_share
from maskwise.text.rows import dev_and_verdict, is_dev
from maskwise.text.settings import CorpusSettings, TokenizerSettings, read_origins
from maskwise.text.stream import COUNTED_CHARACTERS
from maskwise.text.tokenizers import SAMPLE_CHARACTERS
from maskwise.training.best import Lowest
from maskwise.training.building import changed_config
from maskwise.training.checkpoint import forget_states
from maskwise.training.parts import STATE_FOLDER, TrainingPart, link
from maskwise.training.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

    from maskwise.learning.lesson import Lesson


def run_stage(stage: Stage, store: StageStore) -> Plain:
    """Execute a stage, unless it has a result already.

    If the stage fails, the traceback is written to ``error.txt``. Under torchrun, every process
    calls this function; only the process with rank 0 writes files.

    Args:
        stage: the stage. The stages that it needs must be finished.
        store: the folders of stages.

    Returns:
        The content of ``done.json``.

    Raises:
        MaskwiseError: the input is invalid, or the folder cannot be written.
    """
    kind = KINDS[stage.kind]
    folder = store.folder(stage)
    first = rank_here() == 0
    if not first:
        awaited = [*stage.needs] if kind.on_ranks else [stage.name]
        for name in awaited:
            require_file(store.folder(name) / DONE)
    done = store.result(stage)
    if done is not None and (not first or not store.damage(stage)):
        if first:
            kind.forget(folder)
        return done
    if first:
        # Remove temporary files of a process that was killed.
        sweep(folder)
        # The name of the folder is a hash, so this file states the settings: for users, and for the
        # code that predicts run times.
        write_json(folder / STAGE, stage.as_dict())
    began = time.perf_counter()
    try:
        require_same_text(stage.what)
        result = kind.run(stage, store)
    except Exception:
        # If the disk is full, this write fails, too. Its error must not hide the first error.
        with suppress(MaskwiseError):
            if first:
                write_whole(folder / "error.txt", traceback.format_exc())
        raise
    # A resumed training stage reports its own seconds, which include earlier, interrupted calls.
    result.setdefault("seconds", round(time.perf_counter() - began, 3))
    result = finite(result | {"versions": versions(), "hardware": hardware()})
    if kind.on_ranks and ranks_here() > 1:
        result["processes"] = ranks_here()
    if first:
        (folder / "error.txt").unlink(missing_ok=True)
        write_json(folder / DONE, result)
        kind.forget(folder)
    return result


def tokenizer_folder(stage: Stage, store: StageStore) -> str:
    """Return the folder of the tokenizer of the text that a stage reads."""
    return str(store.output(stage.needs[0]) / "tokenizer")


def checkpoint_of(stage: Stage, store: StageStore) -> Path | None:
    """Return the checkpoint that a stage starts from; None without an earlier training stage."""
    trained = [name for name in stage.needs if kind_of(name).output == CHECKPOINT]
    return store.output(trained[0]) if trained else None


def starting_from(checkpoint: Path | None, recipe: Recipe) -> Recipe:
    """Replace the model of a recipe with a checkpoint, if one is given."""
    if checkpoint is None:
        return recipe
    # In checkpoints, adapters are merged into the weights, so every phase adds a new adapter.
    model = ModelSettings(pretrained=str(checkpoint), adapter=recipe.model.adapter)
    return recipe.model_copy(update={"model": model})


# Texts
# ---------------------------------------------------------------------------------------------


def prepare(stage: Stage, store: StageStore) -> Plain:
    """Prepare the rows and the tokenizer of a text.

    Raises:
        MaskwiseError: the corpus cannot be read or contains no text, or the tokenizer does not know
            most of its tokens.
    """
    corpus = CorpusSettings(**stage.what["corpus"])
    folder = store.folder(stage)
    # If there is a second need, this stage has learned a masking policy, which scores the text.
    if len(stage.needs) > 1:
        corpus = scored_by(store.output(stage.needs[1]), corpus)
    documents = corpus.documents()
    require_documents(documents)
    origins: Sequence[Origins] = ()
    extension: Plain = {}
    if stage.needs:
        tokenizer = load_tokenizer(
            tokenizer_folder(stage, store), needs_mask=False, needs_words=False
        )
        origins = read_origins(store.output(stage.needs[0]))
    else:
        settings = TokenizerSettings(**stage.what["tokenizer"])
        # Every source of a stream contributes the same number of characters, whatever its weight.
        most = stage.what.get("characters", SAMPLE_CHARACTERS)
        first = documents.beginning(most) if corpus.stream else documents
        tokenizer = settings.tokenizer(first)
        if changes := stage.what.get("changes"):
            read = partial(training_text, corpus)
            made = changed_tokens(tokenizer, map(change_of, changes), read)
            origins = [vocabulary.rows for vocabulary in made]
            held_out = [*first_characters(corpus.held_out_documents(), SAMPLE_CHARACTERS)]
            extension["changes"] = []
            for spec, vocabulary in zip(changes, made, strict=True):
                share = saved_share(held_out, tokenizer, vocabulary.tokenizer)
                extension["changes"].append({"change": spec, **vocabulary.facts, "saved": share})
                tokenizer = vocabulary.tokenizer
    if corpus.stream:
        live = Live(corpus.layers) if corpus.layers else None
        facts = Prepared.begin(
            folder / TEXT,
            corpus,
            tokenizer,
            layers=live,
            origins=origins,
            counted=stage.what.get("characters", COUNTED_CHARACTERS),
        )
        require_same_text(stage.what)
        return {**facts, "stream": True, "vocabulary": len(tokenizer), **extension}
    stored = annotated(documents, corpus, folder / "layers")
    with many_threads():
        data = write_rows(
            folder / TEXT, documents, tokenizer, corpus, layers=stored, origins=origins
        )
    assert not isinstance(data.training, Stream)
    # The text may have changed while it was read.
    require_same_text(stage.what)
    counts = data.training.pieces.counts
    require_known_tokens(counts, corpus.title)
    return {
        "documents": documents.read,
        "skipped": dict(documents.skipped),
        "rows": len(data.training),
        "tokens": data.training.tokens,
        "held_out_rows": len(data.held_out),
        "vocabulary": len(tokenizer),
        "counts": dict(counts),
        **extension,
    }


def training_text(corpus: CorpusSettings) -> Iterable[Document]:
    """Return the documents that are not held out, for changes of the tokenizer."""
    read = corpus.training_documents()
    # The beginning of a stream is enough, as for a new tokenizer.
    return first_characters(read, SAMPLE_CHARACTERS) if corpus.stream else read


def write_rows(
    folder: Path,
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    corpus: CorpusSettings,
    *,
    layers: Store | None,
    origins: Sequence[Origins] = (),
) -> Prepared:
    """Write the training and held-out rows of documents, as the settings of a corpus say."""
    return Prepared.make(
        folder,
        tokenise(documents, tokenizer, layers=layers, words=corpus.words),
        tokenizer,
        length=corpus.length,
        layout=corpus.row_layout,
        held_out=corpus.held_out,
        origins=origins,
    )


def require_known_tokens(counts: Mapping[str, int], title: str) -> None:
    """Refuse a text that the tokenizer can hardly read.

    Raises:
        MaskwiseError: more than half of the tokens are unknown.
    """
    share = unknown_share(counts)
    if share > 0.5:
        raise MaskwiseError(
            f"{share:.0%} of the tokens of {title} are unknown to the tokenizer",
            got=f"{counts[UNKNOWN]:,} × [UNK]",
            allowed="at most half",
            do="use a tokenizer that covers the letters of this text, or train a new tokenizer: "
            "tokenizer.kind=letter or tokenizer.kind=bpe",
        )


def open_prepared(folder: Path) -> Prepared:
    """Open the text that a stage has prepared in its folder.

    Raises:
        MaskwiseError: the text is damaged, or files of a stream are missing.
    """
    return Prepared.open(folder / TEXT, live=Live)


def scored_by(policy: Path, corpus: CorpusSettings) -> CorpusSettings:
    """Write the folder of the learned policy into ``corpus.layers``, in place of ``learned``."""
    own = str(Call("learned", (str(policy),), {"layer": LearnedPolicy().layer}))
    layers = tuple(own if spec in LearnedPolicy().annotators() else spec for spec in corpus.layers)
    return corpus.model_copy(update={"layers": layers})


def annotated(documents: Documents, corpus: CorpusSettings, folder: Path) -> Store | None:
    """Annotate documents of a corpus, if it has layers.

    Only this process works, because the study uses the other cores for other stages.
    """
    if not corpus.layers:
        return None
    # The documents are as many as ``corpus.limit`` allows from each source.
    report = annotate_corpus(documents, corpus.layers, folder, text_field=corpus.text_field, jobs=1)
    for spec, entry in report["annotators"].items():
        # A notice means that the layer is empty or nearly useless. The masks would be wrong.
        if entry["notice"]:
            raise MaskwiseError(f"corpus.layers: {spec}: {entry['notice']}")
    return Store(folder).latest()


# Policies, checkpoints and scores
# ---------------------------------------------------------------------------------------------


def _learn(stage: Stage, store: StageStore) -> Plain:
    what = stage.what
    _loaded(what["task"], what["task_content"])
    more: Plain = {}
    # Learning uses no corruption. But an encoder-decoder recipe is valid only with a corruption
    # that makes targets for its decoder.
    if objective_class(what["objective"]).kind == "encoder-decoder":
        more["masking"] = {"corruption": "t5"}
    # Only the meta-gradient reads rows of the task as fine-tuning does.
    if "max_length" in what:
        more["finetune"] = {"max_length": what["max_length"]}
    recipe = recipe_of(
        stage,
        tasks=(what["task"],),
        tokenizer={"name": tokenizer_folder(stage, store)},
        **more,
    )
    recipe = starting_from(checkpoint_of(stage, store), recipe)
    return lesson_of(recipe, store.folder(stage)).learn()


def lesson_of(recipe: Recipe, folder: Path) -> Lesson:
    """Build the ``Lesson`` that learns the masking policy of a recipe.

    Args:
        recipe: the recipe of one run.
        folder: the output folder.

    Raises:
        MaskwiseError: the recipe learns no policy.
    """
    # Imported here because most studies learn no policy.
    from maskwise.learning.lesson import Lesson

    task = recipe.learned_task
    assert recipe.learning is not None, "a recipe with a learned_task has learning settings"
    return Lesson(
        learning=recipe.learning,
        task=task,
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer.model_copy(update={"name": recipe.tokenizer_name}),
        model=recipe.model,
        kind=recipe.kind,
        training=recipe.training,
        finetune=recipe.finetune,
        folder=folder,
    )


def _pretrain(stage: Stage, store: StageStore) -> Plain:
    part = TrainingPart(**stage.what["part"]) if stage.what.get("part") else None
    state = None
    if part is not None and part.begin:
        state = store.folder(stage.needs[1]) / STATE_FOLDER
    data = open_prepared(store.folder(stage.needs[0]))
    if isinstance(data.training, Stream):
        # A stream is read while the model trains.
        require_same_text(_recorded(stage.needs[0], store).what)
    return pretrain(
        data,
        starting_from(checkpoint_of(stage, store), recipe_of(stage)),
        folder=store.folder(stage),
        facts=stage.how.get("card", {"stage": stage.name}),
        part=part,
        state=state,
    )


def _choose(stage: Stage, store: StageStore) -> Plain:
    """Keep the checkpoint of the length with the lowest loss on dev documents.

    Of lengths with equal losses, the shortest is kept. The states that parts have begun with are
    removed, because they are three times as large as a checkpoint.
    """
    lowest = Lowest()
    found: dict[int, Plain] = {}
    lines: dict[int, list[Stage]] = {}
    for name in stage.needs[1:]:
        parts = _parts_until(name, store)
        end = TrainingPart(**parts[-1].what["part"]).end
        found[end] = store.result(name) or {}
        lines[end] = parts
        lowest.compare(end, found[end]["dev_loss"])
    if not lowest.step:
        raise MaskwiseError("no length has a finite loss", got=str([*found]))
    folder = store.folder(stage)
    best = lines[lowest.step]
    link(store.output(best[-1]), folder / CHECKPOINT)
    metrics: list[Plain] = []
    for part in best:
        metrics += read_lines(store.folder(part) / "metrics.jsonl")
    write_lines(folder / "metrics.jsonl", metrics)
    for part in chain.from_iterable(lines.values()):
        if not TrainingPart(**part.what["part"]).falls:
            for kept in (CHECKPOINT, STATE_FOLDER):
                shutil.rmtree(store.folder(part) / kept, ignore_errors=True)
    return {
        "heldout": found[lowest.step]["heldout"],
        "best_step": lowest.step,
        "planned_steps": stage.what["steps"],
        "dev_loss": lowest.loss,
        "lengths": {str(end): result["dev_loss"] for end, result in found.items()},
    }


def _parts_until(name: str, store: StageStore) -> list[Stage]:
    """List the parts of a training up to one of its lengths, in the order in which they ran."""
    stage = _recorded(name, store)
    if not stage.what["part"]["begin"]:
        return [stage]
    return [*_parts_until(stage.needs[1], store), stage]


def _recorded(name: str, store: StageStore) -> Stage:
    """Read a stage from its folder."""
    return Stage.from_dict(read_json(store.folder(name) / STAGE) or {})


def _evaluate(stage: Stage, store: StageStore) -> Plain:
    measures = load_measures(EvaluationSettings(**stage.what["evaluation"]))
    for name, measure in measures.items():
        if measure.content() != stage.what["content"][name]:
            raise changed_since(f"the content of {name}")
    # A rehearsal takes some items of each measure.
    for name, count in stage.what.get("items", {}).items():
        measures[name] = measures[name].part(count)
    data = open_prepared(store.folder(stage.needs[0]))
    texts: Iterable[str] = ()
    apart = stage.what.get("documents") == "verdict"
    if apart:
        _, verdict = dev_and_verdict(data.held_out)
        data = replace(data, held_out=verdict)
    if reads_documents(measures.values()):
        require_same_text(stage.how)
        corpus = CorpusSettings(**stage.how["corpus"])
        documents = corpus.held_out_documents()
        if apart:
            documents = (document for document in documents if not is_dev(document.place))
        texts = (document.text for document in documents)
    checkpoint = checkpoint_of(stage, store)
    start: Path | PreTrainedModel
    if checkpoint is not None:
        start = checkpoint
    else:
        # The reference arm is the pre-trained model itself, with the settings of the recipe.
        model = ModelSettings.from_name(stage.what["model"])
        assert model.pretrained is not None, "a new model without training is not evaluated"
        config = with_fields(load_config(model.pretrained, kind=None), model.settings)
        start = load_model(model.pretrained, kind=None, config=config, causal=True)
        torch.nn.Module.to(start, best_device())
    rows = evaluate(start, data, measures.values(), texts=texts, folder=store.folder(stage))
    return {"measurements": [row.line() for row in rows]}


def _overlap(stage: Stage, store: StageStore) -> Plain:
    corpus = CorpusSettings(**stage.what["corpus"])
    task = _loaded(stage.what["task"], stage.what["task_content"])
    title = corpus.title
    # Documents that are held out are not trained on, so their texts are no leak.
    documents = corpus.training_documents()
    record = overlap_record(documents, task, corpus=title)
    require_same_text(stage.what)
    return {"record": record}


def _finetune(stage: Stage, store: StageStore) -> Plain:
    folder = store.folder(stage)
    began = time.perf_counter()
    # The runs that an interrupted call has finished.
    earlier = [read_json(path) or {} for path in folder.glob(f"*/{DONE}")]
    task = _task_of(stage)
    start, _ = start_of_task(stage, store)
    runs = runs_of_task(stage, task, FinetuneSettings(**stage.what["finetune"]), start)
    places = {run.name: folder / name for name, run in runs.items()}
    store = replace(store, places={**store.places, **places})
    # Not by ``execute``: this stage is locked and planned already.
    for run in runs.values():
        run_stage(run, store)
    record = record_of_runs(task, runs.values(), store)
    assert record is not None, "all runs are finished"
    seconds = time.perf_counter() - began
    seconds += sum(score.get("seconds", 0.0) for score in earlier)
    told = ("notes", "lost_words", "tried")
    about = {key: value for key, value in record.items() if key in told}
    lines = [row.line() for row in finetuning.rows_of(record)]
    return {"measurements": lines, **about, "seconds": round(seconds, 3)}


def runs_of_task(
    stage: Stage, task: Task, settings: FinetuneSettings, start: TaskStart
) -> dict[str, Stage]:
    """Return the runs of a stage of kind "finetune", keyed by the names of their folders.

    A search for the learning rate begins with a run for each rate, which all others need.
    """
    settings = finetuning.settings_for(task, settings, start)
    trials = {
        f"rate-{rate:g}": tune_stage(stage, trial, finetuning.TRIAL_SEED)
        for rate, trial in finetuning.trials_of(task, settings).items()
    }
    if trials:
        settings = settings.model_copy(update={"learning_rate": None})
    first = 1000 * stage.what.get("seed", 0)
    seeds = finetuning.scored_seeds(range(first, first + settings.seeds), task, start)
    return trials | {
        f"seed-{seed}": tune_stage(stage, settings, seed, trials=trials.values()) for seed in seeds
    }


def record_of_runs(task: Task, runs: Iterable[Stage], store: StageStore) -> TaskRecord | None:
    """Return the record of a task over the runs that are finished; None if no seed is."""
    tried, scores = {}, []
    for run in runs:
        score = cast("Score | None", store.result(run))
        if score and run.what["seed"] == finetuning.TRIAL_SEED:
            tried[run.what["finetune"]["learning_rate"]] = score
        elif score:
            scores.append(score)
    return finetuning.record_of(task, scores, tried) if scores else None


def _task_of(stage: Stage) -> Task:
    """Return the task of a stage, of which a rehearsal reads some ``rows``."""
    task = _loaded(stage.setting("task"), stage.what["task_content"])
    if "rows" not in stage.what:
        return task
    few = stage.what["rows"]
    # Every class needs some rows to train on.
    some = {"train": 4 * few, "dev": few, "test": few}
    return replace(task, splits={name: task.splits[name][:count] for name, count in some.items()})


@lru_cache(maxsize=1)
def _loaded(spec: str, content: str) -> Task:
    """Load a task whose rows have a hash. Its runs, one after another, read it once.

    Raises:
        MaskwiseError: the task has changed since the stage was planned.
    """
    task = load_task(spec)
    if task.fingerprint != content:
        raise changed_since(f"task {spec}")
    return task


def start_of_task(stage: Stage, store: StageStore) -> tuple[TaskStart, PreTrainedTokenizerBase]:
    """Return the model that a stage fine-tunes, and its tokenizer."""
    what = stage.what
    if "checkpoint" in stage.how:
        checkpoint = stage.how["checkpoint"]
        return TaskStart(checkpoint), load_tokenizer(checkpoint, needs_mask=False)
    tokenizer = load_tokenizer(tokenizer_folder(stage, store), needs_mask=False)
    trained = checkpoint_of(stage, store)
    if trained is not None:
        return TaskStart(trained), tokenizer
    # The reference arm is the pre-trained model itself, or a new model with random weights.
    model = ModelSettings.from_name(what["model"])
    # The checkpoints of all arms have the changed rates of dropout in their configurations.
    config = changed_config(model, tokenizer, what["length"], kind=what["kind"])
    return TaskStart(model.pretrained, config), tokenizer


def _tune(stage: Stage, store: StageStore) -> Plain:
    start, tokenizer = start_of_task(stage, store)
    task = _task_of(stage)
    trials = [_recorded(name, store) for name in stage.needs if kind_of(name) == KINDS["tune"]]
    rates = {trial.what["finetune"]["learning_rate"]: trial for trial in trials}
    tried = {rate: cast("Score", store.result(trial)) for rate, trial in rates.items()}
    made = rates[finetuning.best_rate(task, tried)] if tried else stage
    score = finetuning.tune(
        start,
        task,
        tokenizer=tokenizer,
        settings=FinetuneSettings(**made.what["finetune"]),
        seed=stage.what["seed"],
        folder=store.folder(stage),
        checkpoints=stage.how.get("checkpoints", False),
    )
    return {**score}


# Kinds of stages
# ---------------------------------------------------------------------------------------------


def _learned(result: Plain) -> list[Plain]:
    """Return the record of a learned masking policy.

    It contains the share of masking weight that the policy gives to answers in held-out texts.
    """
    learning = ("method", "gain", "best_step", "stopped", "overshoot", "tries")
    kept = (*learning, "weight_on_labels", "labelled_words")
    facts = result | (result.get("held_out") or {})
    record = {key: facts[key] for key in kept if facts.get(key) is not None}
    return [{"kind": "policy", **record}]


def _overlaps(result: Plain) -> list[Plain]:
    return [result["record"]]


def forget_learning(folder: Path) -> None:
    """Remove the files that only a learning in progress needs."""
    # Imported here for the same reason as in ``lesson_of``.
    from maskwise.learning.lesson import SHARED_TOKENIZER

    forget_states(folder)
    shutil.rmtree(folder / SHARED_TOKENIZER, ignore_errors=True)


def _forget_runs(folder: Path) -> None:
    for stage in folder.glob(f"*/{STAGE}"):
        run = stage.parent
        for name in (DONE, "error.txt", STAGE):
            (run / name).unlink(missing_ok=True)
        # The folder of a trial of a learning rate has no other file.
        with suppress(OSError):
            run.rmdir()


for _kind in (
    StageKind("prepare", prepare, output=TEXT),
    StageKind(
        "learn",
        _learn,
        output=POLICY,
        facts=_learned,
        forget=forget_learning,
        size=("learning.supervised.training.steps", "learning.meta.steps"),
        judged=("learning.supervised.training.eval_every", "learning.meta.eval_every"),
        depends=("learning", "objective", "task_content", "max_length"),
        on_ranks=True,
        title="learning of policies",
    ),
    StageKind(
        "pretrain",
        _pretrain,
        output=CHECKPOINT,
        forget=forget_states,
        size=("part.steps", "training.steps"),
        judged=("eval_every", "chosen.eval_every"),
        # The corruption decides what a decoder writes: the full text takes longer than the spans.
        depends=(
            *("objective", "objectives", "sampler", "masking.corruption"),
            *("evaluation.rows", "workers"),
        ),
        on_ranks=True,
        title="training",
    ),
    StageKind("choose", _choose, output=CHECKPOINT, depends=(), title="choice of a length"),
    StageKind(
        "evaluate",
        _evaluate,
        measures=True,
        depends=("evaluation", "content", "documents"),
    ),
    StageKind(
        "finetune",
        _finetune,
        measures=True,
        forget=_forget_runs,
        depends=("task_content", "finetune"),
        # Fine-tuning reads the rows of a task.
        reads_rows=False,
        title="fine-tuning on {task}",
    ),
    StageKind(
        "tune",
        _tune,
        forget=forget_states,
        depends=("task_content", "finetune"),
        reads_rows=False,
    ),
    StageKind("overlap", _overlap, facts=_overlaps, of_run=False),
):
    add_kind(_kind)
