"""Commands for single runs: ``maskwise pretrain``, ``finetune`` and ``learn``.

Each command does the work of one or more stages of a study, but for a single model. After an
interruption, the same command resumes the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from maskwise import __version__
from maskwise.base.constants import rank_here, ranks_here
from maskwise.base.errors import MaskwiseError, option
from maskwise.base.folders import (
    OutputFolder,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_whole,
)
from maskwise.base.printing import note
from maskwise.base.signals import remove
from maskwise.jobs.pools import ThisProcess, require_cards, require_one_process
from maskwise.recipe import Recipe, explain
from maskwise.recipe.applies import without_effect
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.setting_layers import parse_overrides
from maskwise.recipe.yamls import Plain
from maskwise.studies.checks import (
    check_inputs,
    check_tokenizer,
    notes_of_texts,
    require_alone,
    tokenizer_and_config,
)
from maskwise.studies.inputs import read_as, settled, tasks_before
from maskwise.studies.plan import Plan, Run
from maskwise.studies.run import unfinished
from maskwise.studies.scheduler import execute
from maskwise.studies.stages import (
    DONE,
    KINDS,
    STAGE,
    Stage,
    content_of_model,
    finetune_alone,
    learn_stage,
    numerics,
    prepare_stage,
    pretrain_stage,
    without_places,
)
from maskwise.studies.store import StageStore
from maskwise.studies.work import record_of_runs, runs_of_task
from maskwise.tasks.finetuning import (
    TRIAL_SEED,
    TaskRecord,
    TaskStart,
    idle_settings,
    tasks_of,
)
from maskwise.tasks.settings import FinetuneSettings
from maskwise.training.checkpoint import forget_states
from maskwise.training.engine import FREE

PHASE = "phase-"
"""A run may train in several phases. This is the prefix of the folders of all phases but the last,
which are numbered from 0. The last phase writes to the run's folder itself."""
ANOTHER_FOLDER = "give a new folder"
RECORDS = "records.jsonl"
FINETUNE = "finetune.json"
"""The file that says which version wrote the records of ``maskwise finetune``, and how it read the
tasks."""
METRICS = "metrics.jsonl"


def with_own_seed(recipe: Recipe) -> Recipe:
    """Replace ``{seed}`` in paths by ``training.seed``, as a study does for its runs."""
    if "{seed}" not in recipe.to_yaml():
        return recipe
    single = recipe.model_copy(update={"study": StudySettings(arms={"run": {}})})
    return single.arm("run", seed=recipe.training.seed)


def _is_first() -> bool:
    return rank_here() == 0


def _processes(asked: int) -> int:
    """Return how many processes train a model: those of torchrun, or those that are asked for.

    Raises:
        MaskwiseError: there are fewer GPUs, or torchrun has started processes already.
    """
    if asked == 1:
        return ranks_here()
    if ranks_here() > 1:
        raise MaskwiseError(
            "torchrun has started the processes that train the model",
            got=f"{option('processes', asked)}, WORLD_SIZE={ranks_here()}",
            do=f"leave out {option('processes')}, or run it without torchrun",
        )
    require_cards(asked)
    return asked


# maskwise pretrain
# ---------------------------------------------------------------------------------------------


def run_pretrain(recipe: Recipe, out: Path, *, processes: int = 1) -> Plain:
    """Pre-train one model and save the checkpoint in a folder.

    If the run in the folder is finished, its result is returned. If the run was interrupted, it is
    resumed. If it failed before it trained, nothing is left of it. The
    arms of a study's recipe are ignored. Under torchrun every process calls this function; only the
    process with rank 0 prepares texts and writes files.

    Args:
        recipe: the recipe of the run.
        out: the folder for ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml`` and ``done.json``.
        processes: the number of processes to start that train the model together.

    Returns:
        The content of ``done.json``, with the ``seconds`` of all phases, and the path of the
        ``checkpoint`` folder.

    Raises:
        MaskwiseError: the input is invalid; or the folder contains other files, a run of a
            different recipe, or a run that another process is training.
    """
    count = _processes(processes)
    recipe = with_own_seed(recipe.model_copy(update={"study": StudySettings(), "tasks": ()}))
    folder = OutputFolder(out, "pretrain", f"maskwise pretrain {recipe.name}")
    if _is_first():
        folder.require()
    notes = check_inputs(recipe, count)
    if _is_first():
        note(notes)
    require_alone(recipe.links())
    texts, trainings = stages_of_training(recipe)
    # The last phase is in the run's folder itself.
    folders = [*(out / f"{PHASE}{number}" for number in range(len(trainings) - 1)), out]
    places = {stage.name: folder for stage, folder in zip(trainings, folders)}
    of, *more = map(_made_of, texts, trainings)
    if more:
        of = {"phases": {str(number): each for number, each in enumerate((of, *more))}}
    run = Run(recipe.name, recipe.training.seed, recipe, (*texts, *trainings))
    results = _results(run, folder, of, places, processes)
    seconds = round(sum(result["seconds"] for result in results), 1)
    return results[-1] | {"seconds": seconds, "checkpoint": str(out / "checkpoint")}


def _results(
    run: Run, folder: OutputFolder, of: Plain, places: Mapping[str, Path], processes: int
) -> list[Plain]:
    """Do what is unfinished of a run, and return the results of all of its stages but texts.

    Args:
        run: the run.
        folder: its folder, which has the texts in ``stages``.
        of: what decides the results.
        places: the folders of all other stages, keyed by name.
        processes: the number of processes to start that train a model together.
    """
    store = StageStore(folder.out / "stages", places=places)
    texts = [stage for stage in run.stages if stage.name not in places]
    stages = [stage for stage in run.stages if stage.name in places]
    first = _is_first()
    if first:
        folder.require(of)
    results = [store.result(stage) for stage in stages]
    # A finished run is not claimed, because its folder may be an archive. A process may have been
    # killed after its result.
    if None in results or folder.work.exists():
        # Under torchrun, the process with rank 0 uses the folder for all processes.
        with folder.used(of) if first else nullcontext():
            if first:
                # What a failed call has prepared, and this one does not read.
                for left in {*store.own.glob("prepare-*")} - {*map(store.folder, texts)}:
                    remove(left)
                write_whole(folder.out / "recipe.yaml", run.recipe.to_yaml())
            _do([replace(run, chain=tuple(texts))], store)
            if first:
                note(notes_of_texts(texts, store))
            _do([replace(run, chain=tuple(stages))], store, processes=processes)
        results = [store.result(stage) for stage in stages]
    if first:
        # A process that was killed may have left them.
        for stage in stages:
            KINDS[stage.kind].forget(store.folder(stage))
    return [result for result in results if result is not None]


def _do(runs: Iterable[Run], store: StageStore, **where: Any) -> dict[str, str]:
    """Do the unfinished stages of runs, in this process if ``where`` does not say another place.

    Args:
        runs: the runs.
        store: the folders of stages.
        where: further arguments of ``execute``.

    Returns:
        The errors of stages that failed, keyed by name.
    """
    plan = Plan((*runs,))
    # Under torchrun, the first rank decides which are finished.
    todo = unfinished(plan, store) if _is_first() else plan.stages()
    return execute(todo, store, plan, **{"engine": ThisProcess(), **where})


def stages_of_training(recipe: Recipe) -> tuple[list[Stage], list[Stage]]:
    """Return the text and the training of each phase of a recipe."""
    links = recipe.links()
    first = prepare_stage(links[0])
    texts = [first, *(prepare_stage(link, after=first) for link in links[1:])]
    trainings: list[Stage] = []
    before: Stage | None = None
    for link, text in zip(links, texts):
        before = pretrain_stage(link, text, after=before)
        card = {"recipe": recipe.name, "corpus": recipe.corpus.title}
        trainings.append(replace(before, how=before.how | {"card": card}))
    return texts, trainings


def _made_of(text: Stage, training: Stage) -> Plain:
    """Return what decides the result of a training, without what may change when it is resumed."""
    what = text.what | training.what
    what["corpus"] = text.what["corpus"] | training.what.get("corpus", {})
    training_of = what["training"].items()
    what["training"] = {key: value for key, value in training_of if key not in FREE}
    if "evaluation" in training.how:
        what["evaluation"] = training.how["evaluation"]
    made: Plain = json.loads(without_places(json.dumps(what | {"versions": numerics()})))
    return made


# maskwise finetune
# ---------------------------------------------------------------------------------------------


def run_finetune(
    model: str,
    tasks: list[str],
    overrides: Iterable[str],
    *,
    seeds: int | None = None,
    processes: int = 1,
    out: Path,
) -> list[TaskRecord]:
    """Fine-tune and evaluate a checkpoint on each task.

    Each run is a stage. A run that is finished is not repeated, so the same call resumes an
    interrupted one, and a call with more seeds adds to those that are there.

    Args:
        model: a checkpoint folder or a model name.
        tasks: the task specs. All tasks are loaded and checked before any training starts.
        overrides: fine-tuning settings as ``key=value``. The key may be that of a recipe, such as
            ``finetune.max_length``.
        seeds: the number of fine-tuning runs per task; None for the default of
            ``FinetuneSettings``.
        processes: the number of runs that are trained side by side, each in a process of its own.
        out: the folder for ``TASK/seed-N/checkpoint``, and for ``records.jsonl`` with a record for
            each task, over the seeds that are finished.

    Returns:
        The records of these tasks and seeds.

    Raises:
        MaskwiseError: a setting is unknown or has no effect; the checkpoint or a task does not
            exist, two tasks have the same name, or the model cannot learn a task; or ``out`` has
            scores of another model, or scores of a task with other rows, settings or versions; or
            torchrun has started several processes.
    """
    require_one_process()
    changes = parse_overrides(overrides, section="finetune")
    if "seeds" in changes:
        raise MaskwiseError("finetune has an option for seeds", do=f"use {option('runs')}")
    try:
        settings = FinetuneSettings(**changes, **({} if seeds is None else {"seeds": seeds}))
    except ValidationError as error:
        raise explain(error, FinetuneSettings, origin="") from None
    for name, reason in without_effect(settings).items():
        if changes.get(name) is not None:
            raise MaskwiseError(f"{name} {reason.why}", got=changes[name], do=f"remove {name}")
    folder = OutputFolder(out, "finetune", f"maskwise finetune {model}")
    of = {"model": content_of_model(model)}
    # Before tasks and models are read, which takes seconds.
    folder.require(of)
    specs = settled(tasks, out)
    found, _ = tasks_of(model, specs, settings)
    given = {**changes, "runs": seeds}
    for name in idle_settings(settings, [task for task, _ in found.values()], runs=seeds):
        raise MaskwiseError(
            f"{name} has no effect, because the encoder stays frozen in all of these tasks",
            got=given[name],
            do=f"remove {name}",
        )
    stages = {
        name: finetune_alone(model, task, spec, settings) for name, (task, spec) in found.items()
    }
    loaded = {name: task for name, (task, _) in found.items()}
    runs = {
        name: runs_of_task(stage, loaded[name], settings, TaskStart(model))
        for name, stage in stages.items()
    }
    with folder.used(of):
        read = cast("Iterable[TaskRecord]", read_lines(out / RECORDS))
        lines = {line["task"]: line for line in read}
        for name, stage in stages.items():
            if name in lines and lines[name].get("made_of") != stage.name:
                raise MaskwiseError(
                    f"{option('out', out)} contains scores of task {name} with other settings, "
                    "rows or versions",
                    do='give a new folder, or another name to the task: …(name="…")',
                )
        note(read_as(tasks, specs))
        known = sorted({*tasks_before(out), *specs})
        write_json(out / FINETUNE, {"maskwise": __version__, "recipe": {"tasks": known}})

        planned: dict[str, Run] = {}
        places: dict[str, Path] = {}
        for name, of_task in runs.items():
            for place, run in of_task.items():
                planned[run.name] = Run(name, run.what["seed"], Recipe(), (run,))
                places[run.name] = out / name / place
                _make_way(run, places[run.name])
        store = StageStore(out, places=places)

        def record_of(name: str) -> TaskRecord | None:
            """Return the record of a task so far, and write it, unless the file has more seeds."""
            record = record_of_runs(loaded[name], runs[name].values(), store)
            if record is not None:
                record |= {"made_of": stages[name].name, "model": model}
                before = lines.get(name)
                if before is None or len(before["dev"]) <= len(record["dev"]):
                    lines[name] = record
                    write_lines(out / RECORDS, lines.values())
            return record

        where: Plain = {"engine": "local", "jobs": processes} if processes > 1 else {}
        errors = _do(
            planned.values(), store, finished=lambda run: record_of(planned[run.name].arm), **where
        )
        # If a trial failed, so did the runs that need it.
        failed = [run for name, run in planned.items() if name in errors and run.seed != TRIAL_SEED]
        for each in failed:
            raise MaskwiseError(f"{each.title}: {errors[each.chain[0].name]}")
        records = map(record_of, runs)
    return [record for record in records if record is not None]


def _make_way(run: Stage, place: Path) -> None:
    """Remove the result and the states of a run with other settings from a folder of the user."""
    before = read_json(place / STAGE)
    if not before or Stage.from_dict(before).name != run.name:
        (place / DONE).unlink(missing_ok=True)
        forget_states(place)


# maskwise learn
# ---------------------------------------------------------------------------------------------


def run_learn(recipe: Recipe, out: Path, *, processes: int = 1) -> Plain:
    """Learn a masking policy and save it in a folder.

    The folder contains the files of ``learning.lesson``, and ``recipe.yaml``, ``stage.json`` (all
    inputs of the policy), ``done.json`` and ``report.html``. Under torchrun every process calls
    this function; only the process with rank 0 writes files.

    Args:
        recipe: a recipe with a section ``learning``.
        out: the folder.
        processes: the number of processes to start that learn the policy together.

    Returns:
        The content of ``done.json``.

    Raises:
        MaskwiseError: the input is invalid; or the folder contains other files, or a policy that
            was learned with a different recipe or other data.
    """
    _processes(processes)
    recipe = with_own_seed(recipe)
    folder = OutputFolder(out, "learn", f"maskwise learn {recipe.name}")
    text, stage = _learning(recipe)
    if _is_first():
        note(check_tokenizer(recipe, tokenizer_and_config(recipe)[0]))
    run = Run(recipe.name, recipe.training.seed, recipe, (text, stage))
    [result] = _results(run, folder, _made_of(text, stage), {stage.name: out}, processes)
    page = out / "report.html"
    if _is_first() and not page.exists():
        # Imported here because pandas, which only the page needs, takes half a second.
        from maskwise.report.page import write_policy_page

        write_policy_page(out, title=recipe.name, measures=result)
    return result | {"report": str(page)}


def _learning(recipe: Recipe) -> tuple[Stage, Stage]:
    """Return the stage that prepares the text, and the stage that learns the policy."""
    # A policy scores the words of texts, so a model with new tokens can use it, too.
    link = recipe.links()[0].unchanged()
    text = prepare_stage(link.unlearned())
    return text, learn_stage(link, recipe.learned_task, text)


def inputs_of_policy(recipe: Recipe) -> Plain:
    """Return all inputs of a masking policy, in the format of stage.json."""
    _, stage = _learning(recipe)
    return json.loads(json.dumps(stage.as_dict()))
