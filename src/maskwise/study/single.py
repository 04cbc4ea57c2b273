"""Commands for single runs: ``maskwise pretrain``, ``finetune`` and ``learn``.

Each command does the work of one or more stages of a study, but for a single model. After an
interruption, the same command resumes the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from maskwise import __version__
from maskwise.constants import rank_here
from maskwise.errors import MaskwiseError, option
from maskwise.folders import (
    claim_run,
    read_json,
    read_lines,
    require_own,
    write_json,
    write_lines,
    write_whole,
)
from maskwise.jobs import ThisProcess, require_one_process
from maskwise.printing import note
from maskwise.recipe import Recipe, explain, read_recipe
from maskwise.recipe.applies import without_effect
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.layers import parse_overrides
from maskwise.recipe.yamls import Plain
from maskwise.specs import different_settings
from maskwise.study.checks import (
    check_inputs,
    check_tokenizer,
    notes_of_texts,
    require_alone,
    tokenizer_and_config,
)
from maskwise.study.inputs import OWN_ROWS
from maskwise.study.plan import Plan, Run
from maskwise.study.run import unfinished
from maskwise.study.scheduler import execute
from maskwise.study.stages import (
    CHECKPOINT,
    DONE,
    KINDS,
    POLICY,
    STAGE,
    STAGE_FORMAT,
    Stage,
    finetune_alone,
    json_hash,
    learn_stage,
    prepare_stage,
    pretrain_stage,
)
from maskwise.study.store import StageStore
from maskwise.study.work import TaskRuns, fine_tuned
from maskwise.tasks import FinetuneSettings, Task, TaskRecord
from maskwise.tasks.finetuning import (
    TRIAL_SEED,
    idle_settings,
    search_rate,
    searches_rate,
    settings_for,
    tasks_of,
    trial_name,
    trials_of,
)
from maskwise.torchrun import ranks_together
from maskwise.training.engine import FREE

PHASE = "phase-"
"""A run may train in several phases. This is the prefix of the folders of all phases but the last,
which are numbered from 0. The last phase writes to the run's folder itself."""
ANOTHER_FOLDER = "give a new folder"
RECORDS = "records.jsonl"
FINETUNE = "finetune.json"
"""The file that says which version wrote the records of ``maskwise finetune``."""
METRICS = "metrics.jsonl"


def with_own_seed(recipe: Recipe) -> Recipe:
    """Replace ``{seed}`` in paths by ``training.seed``, as a study does for its runs."""
    if "{seed}" not in recipe.to_yaml():
        return recipe
    single = recipe.model_copy(update={"study": StudySettings(arms={"run": {}})})
    return single.arm("run", seed=recipe.training.seed)


def _claimed(out: Path, what: str, *, lock: str) -> AbstractContextManager[None]:
    """Lock a run's folder. Under torchrun, the process with rank 0 locks it for all processes."""
    if not _is_first():
        return nullcontext()
    return claim_run(out, what, lock=lock, work=[f"**/{METRICS}", "**/resume/*/*"])


def _is_first() -> bool:
    return rank_here() == 0


# maskwise pretrain
# ---------------------------------------------------------------------------------------------


def run_pretrain(recipe: Recipe, out: Path) -> Plain:
    """Pre-train one model and save the checkpoint in a folder.

    If the run in the folder is finished, its result is returned. If the run was interrupted, it is
    resumed. If it failed before the first state was saved, it starts again with this recipe. The
    arms of a study's recipe are ignored. Under torchrun every process calls this function; only the
    process with rank 0 prepares texts and writes files.

    Args:
        recipe: the recipe of the run.
        out: the folder for ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml`` and ``done.json``.

    Returns:
        The content of ``done.json``, with the ``seconds`` of all phases, and the path of the
        ``checkpoint`` folder.

    Raises:
        MaskwiseError: the input is invalid; or the folder contains other files, a run of a
            different recipe, or a run that another process is training.
    """
    recipe = with_own_seed(recipe.model_copy(update={"study": StudySettings(), "tasks": ()}))
    if _is_first():
        require_own(out, "recipe.yaml", OWN_ROWS, what="a run of this recipe")
    notes = check_inputs(recipe)
    if _is_first():
        note(notes)
    require_alone(recipe.links())
    texts, trainings = stages_of_training(recipe)
    # The last phase is in the run's folder itself.
    folders = [*(out / f"{PHASE}{number}" for number in range(len(trainings) - 1)), out]
    places = {stage.name: folder for stage, folder in zip(trainings, folders)}
    store = StageStore(out / "stages", places=places)
    planned = dict(zip(folders, trainings))
    if _is_first():
        _require_same_run(out, recipe, planned)
    # A finished run is not claimed, because its folder may be an archive.
    results = _finished(trainings, store)
    if not results:
        with _claimed(out, "another run is training in", lock="stages/.training.lock"):
            if _is_first():
                # Another run may have ended while this one waited.
                _require_same_run(out, recipe, planned)
                _begin(out, recipe, texts, folders)
            plan = Plan((Run(recipe.name, recipe.training.seed, recipe, (*texts, *trainings)),))
            todo = _todo(plan, store)
            do = partial(execute, store=store, plan=plan, engine=ThisProcess())
            do([stage for stage in todo if stage in texts])
            if _is_first():
                note(notes_of_texts(texts, store))
            do([stage for stage in todo if stage in trainings])
        results = _finished(trainings, store)
    seconds = round(sum(result["seconds"] for result in results), 1)
    return results[-1] | {"seconds": seconds, "checkpoint": str(out / "checkpoint")}


def _finished(stages: Sequence[Stage], store: StageStore) -> list[Plain]:
    """Return the results of stages; an empty list if one of them is not finished."""
    results = []
    for stage in stages:
        result = store.result(stage)
        if result is None:
            return []
        if _is_first():
            # A process that was killed may have left them.
            KINDS[stage.kind].forget(store.folder(stage))
        results.append(result)
    return results


def _todo(plan: Plan, store: StageStore) -> list[Stage]:
    """List the stages to execute. Under torchrun, the first rank decides which are finished."""
    return unfinished(plan, store) if _is_first() else plan.stages()


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


def _begin(out: Path, recipe: Recipe, texts: list[Stage], folders: list[Path]) -> None:
    """Write the recipe. Remove what a run left that failed before its first state was saved.

    The texts that this run reads, too, stay.
    """
    if not any(map(_is_begun, folders)):
        names = [text.name for text in texts]
        stale = [path for path in (out / "stages").glob("prepare-*") if path.name not in names]
        for folder in (*stale, *out.glob(f"{PHASE}*")):
            shutil.rmtree(folder, ignore_errors=True)
    write_whole(out / "recipe.yaml", recipe.to_yaml())


def _is_begun(folder: Path) -> bool:
    """Return whether a training in a folder has a result, a checkpoint or a resumable state."""
    return any(any(folder.glob(mark)) for mark in (DONE, CHECKPOINT, "resume/step-*"))


def _require_same_run(out: Path, recipe: Recipe, trainings: Mapping[Path, Stage]) -> None:
    """Raise an error if the folder contains another run, which would be lost."""
    others = []
    for folder, training in trainings.items():
        if not _is_begun(folder):
            continue
        before = read_json(folder / STAGE, least=STAGE_FORMAT) or {}
        if _made_of(before) != _made_of(training.as_dict()):
            others.append(before)
    # A run may have had more phases.
    more = [path for path in out.glob(f"{PHASE}*") if path not in trainings and _is_begun(path)]
    if not others and not more:
        return
    free = {"training": FREE}
    before = read_recipe(out / "recipe.yaml").model_dump(mode="json", exclude=free)
    changed = different_settings(before, recipe.model_dump(mode="json", exclude=free))
    if changed:
        raise MaskwiseError(
            f"{option('out', out)} contains a run of a different recipe",
            got=f"other values of {', '.join(changed)}",
            do=ANOTHER_FOLDER,
        )
    raise MaskwiseError(
        f"{option('out', out)} contains a run on a different text: the corpus, another file or the "
        "installed versions have changed",
        do=ANOTHER_FOLDER,
    )


def _made_of(stage: Plain) -> Plain:
    """Return the inputs of a training, without those that may change when it is resumed."""
    # The folder may be that of another command.
    if stage.get("kind") != "pretrain":
        return {"kind": stage.get("kind")}
    what = stage["what"]
    training = {key: value for key, value in what["training"].items() if key not in FREE}
    return {
        "what": what | {"training": training},
        "evaluation": stage["how"]["evaluation"],
        # The name of an earlier phase contains the settings that may change.
        "text": stage["needs"][0],
    }


# maskwise finetune
# ---------------------------------------------------------------------------------------------


def run_finetune(
    model: str,
    tasks: list[str],
    overrides: Iterable[str],
    *,
    seeds: int | None = None,
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
        out: the folder for ``TASK/seed-N/checkpoint``, and for ``records.jsonl`` with a record for
            each task, over the seeds that are finished.

    Returns:
        The records of these tasks and seeds.

    Raises:
        MaskwiseError: a setting is unknown or has no effect; the checkpoint or a task does not
            exist, two tasks have the same name, or the model cannot learn a task; or ``out`` has
            scores of another model, or scores of a task with other rows, settings or versions; or
            torchrun has started several processes that ``led`` does not lead.
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
    require_own(out, RECORDS, OWN_ROWS, what="an earlier finetune")
    # Before tasks and models are read, which takes seconds.
    _scores_in(out, model)
    found, _ = tasks_of(model, tasks, settings)
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
    # A probe of a frozen encoder writes no metrics.
    work = [f"**/{METRICS}", f"*/*/{DONE}"]
    with claim_run(out, "another process fine-tunes in", lock=".finetune.lock", work=work):
        # Again under the lock, because another process may have just written records.
        lines = _scores_in(out, model)
        for name, stage in stages.items():
            if name in lines and lines[name].get("made_of") != stage.name:
                raise MaskwiseError(
                    f"{option('out', out)} contains scores of task {name} with other settings, "
                    "rows, weights or versions",
                    do='give a new folder, or another name to the task: …(name="…")',
                )
        # A later call recognises the folder by this file, even if training is interrupted.
        write_lines(out / RECORDS, lines.values())
        write_json(out / FINETUNE, {"maskwise": __version__})

        results: dict[str, TaskRecord] = {}

        def keep(record: TaskRecord, stage: Stage) -> None:
            """Write a record, unless the file has one of more seeds."""
            record = {**record, "made_of": stage.name, "model": model}
            results[record["task"]] = record
            before = lines.get(record["task"])
            if before is None or len(before["dev"]) <= len(record["dev"]):
                lines[record["task"]] = record
                write_lines(out / RECORDS, lines.values())

        runs = {
            name: TaskRuns(stage, StageStore(out), out / name, do=_do_here)
            for name, stage in stages.items()
        }
        if ranks_together() > 1:
            loaded = {name: task for name, (task, _) in found.items()}
            _fine_tune_on_ranks(model, runs, loaded, settings, out)
        for name, stage in stages.items():
            fine_tuned(runs[name], seeds=settings.seeds, keep=partial(keep, stage=stage))
    return [*results.values()]


def _do_here(stage: Stage, store: StageStore) -> Plain:
    """Execute a run in this process, unless it is finished."""
    plan = Plan((Run(stage.kind, stage.what["seed"], Recipe(), (stage,)),))
    execute(unfinished(plan, store), store, plan, engine=ThisProcess())
    result = store.result(stage)
    assert result is not None, "what a stage raises in this process ends the call"
    return result


def _fine_tune_on_ranks(
    model: str,
    runs: Mapping[str, TaskRuns],
    tasks: Mapping[str, Task],
    settings: FinetuneSettings,
    out: Path,
) -> None:
    """Do all runs on the processes of torchrun, side by side. Records are then made of the results.

    Args:
        model: the checkpoint.
        runs: the runs of each task, keyed by the name of the task.
        tasks: the tasks, keyed in the same way.
        settings: the settings, before a search for the learning rate.
        out: the folder of the command.

    Raises:
        MaskwiseError: a run failed.
    """
    chosen = {name: settings_for(task, settings, model) for name, task in tasks.items()}
    searched = {name: task for name, task in tasks.items() if searches_rate(task, chosen[name])}
    trials = []
    for name, task in searched.items():
        for rate, trial in trials_of(task, chosen[name]).items():
            trials.append((name, trial, TRIAL_SEED, trial_name(rate)))
    # A rate may diverge. Whether it did, or the trial failed for another reason, the search finds.
    if trials:
        _do_on_ranks(runs, trials, out)
    for name, task in searched.items():
        chosen[name], _, _ = search_rate(task, chosen[name], runs[name])
    final = []
    for name, task in tasks.items():
        # A frozen encoder gives the same score for every seed.
        for seed in range(1 if task.frozen else settings.seeds):
            final.append((name, chosen[name], seed, f"seed-{seed}"))
    errors = _do_on_ranks(runs, final, out)
    for title, error in errors.items():
        raise MaskwiseError(f"{title}: {error}")


def _do_on_ranks(
    runs: Mapping[str, TaskRuns],
    wanted: Sequence[tuple[str, FinetuneSettings, int, str]],
    out: Path,
) -> dict[str, str]:
    """Execute runs, and return the errors of those that failed, keyed by task and seed.

    Args:
        runs: the runs of each task.
        wanted: for each run, the name of its task, the settings, the seed, and the folder's name.
        out: the folder of the command.
    """
    places = {}
    planned = []
    for task, settings, seed, name in wanted:
        stage, place = runs[task].placed(settings, seed, name)
        places[stage.name] = place
        planned.append(Run(task, seed, Recipe(), (stage,)))
    plan = Plan((*planned,))
    store = StageStore(out, places=places)
    errors = execute(unfinished(plan, store), store, plan)
    titles = {stage.name: run.title for run in planned for stage in run.stages}
    return {titles[name]: error for name, error in errors.items()}


def _scores_in(out: Path, model: str) -> dict[str, TaskRecord]:
    """Read the records of ``maskwise finetune`` in a folder, keyed by task.

    Raises:
        MaskwiseError: they are of another model.
    """
    lines = {}
    for line in read_lines(out / RECORDS):
        before = str(line.get("model"))
        if _place_of(before) != _place_of(model):
            raise MaskwiseError(
                f"{option('out', out)} contains the scores of another model",
                got=before,
                allowed=model,
                do=ANOTHER_FOLDER,
            )
        lines[str(line.get("task"))] = cast(TaskRecord, line)
    return lines


def _place_of(model: str) -> str:
    """Return the path of a local model, or its name on the hub."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


# maskwise learn
# ---------------------------------------------------------------------------------------------


def run_learn(recipe: Recipe, out: Path) -> Plain:
    """Learn a masking policy and save it in a folder.

    The folder contains the files of ``learning.lesson``, and ``recipe.yaml``, ``stage.json`` (all
    inputs of the policy), ``done.json`` and ``report.html``. Under torchrun every process calls
    this function; only the process with rank 0 writes files.

    Returns:
        The content of ``done.json``.

    Raises:
        MaskwiseError: the input is invalid; or the folder contains other files, or a policy that
            was learned with a different recipe or other data.
    """
    recipe = with_own_seed(recipe)
    if _is_first():
        require_own(out, "recipe.yaml", OWN_ROWS, what="a policy of this recipe")
    text, stage = _learning(recipe)
    if _is_first():
        _require_same_policy(out, recipe)
    store = StageStore(out / "stages", places={stage.name: out})
    results = _finished([stage], store)
    if not results:
        notes = [*check_tokenizer(recipe, tokenizer_and_config(recipe)[0])]
        if _is_first():
            note(notes)
        with _claimed(out, "another process is learning in", lock=".learning.lock"):
            if _is_first():
                # As in ``run_pretrain``.
                _require_same_policy(out, recipe)
                _begin(out, recipe, [text], [out])
            plan = Plan((Run(recipe.name, recipe.training.seed, recipe, (text, stage)),))
            execute(_todo(plan, store), store, plan, engine=ThisProcess())
        results = _finished([stage], store)
    page = out / "report.html"
    if _is_first() and not page.exists():
        # Imported here because pandas, which only the page needs, takes half a second.
        from maskwise.report.page import write_policy_page

        write_policy_page(out, title=recipe.name, measures=results[0])
    return results[0] | {"report": str(page)}


def _require_same_policy(out: Path, recipe: Recipe) -> None:
    """Raise an error if the folder contains another policy, which would be lost."""
    # A learning that took no step, but kept its text, has nothing that would be lost.
    kept = (out / "stages").is_dir()
    if kept and not _is_begun(out) and not (out / POLICY).exists():
        return
    before = read_json(out / STAGE, least=STAGE_FORMAT)
    saved = out / "recipe.yaml"
    # If stage.json is damaged, the inputs of the policy are computed from its recipe.
    if not before and saved.is_file():
        # The recipe of another command may learn no policy.
        with suppress(MaskwiseError):
            before = inputs_of_policy(read_recipe(saved))
    # The inputs include hashes of files, which may change while the recipe stays the same.
    now = inputs_of_policy(recipe)
    # Settings of logs and speed may change, as when a training is resumed.
    for stage in filter(None, (before, now)):
        stage.pop("how", None)
    if json_hash(before) != json_hash(now) and (before or saved.is_file()):
        raise MaskwiseError(
            f"{option('out', out)} has results of a different recipe or of other data: a setting, "
            "a file, a library or the machine has changed",
            do=ANOTHER_FOLDER,
        )


def _learning(recipe: Recipe) -> tuple[Stage, Stage]:
    """Return the stage that prepares the text, and the stage that learns the policy."""
    # A policy scores the words of texts, so a model with new tokens can use it, too.
    link = recipe.links()[0].without_new_tokens()
    text = prepare_stage(link.unlearned())
    return text, learn_stage(link, recipe.learned_task, text)


def inputs_of_policy(recipe: Recipe) -> Plain:
    """Return all inputs of a masking policy, in the format of stage.json."""
    _, stage = _learning(recipe)
    return json.loads(json.dumps(stage.as_dict()))
