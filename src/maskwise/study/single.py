"""Commands for single runs: ``maskwise pretrain``, ``finetune`` and ``learn``.

Each command does the work of one or more stages of a study, but for a single model. After an
interruption, the same command resumes the run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from maskwise.constants import rank_here
from maskwise.devices import hardware, versions
from maskwise.errors import MaskwiseError
from maskwise.folders import (
    claim_run,
    finite,
    read_json,
    require_file,
    require_own,
    write_json,
    write_whole,
)
from maskwise.printing import print_notes
from maskwise.recipe import Recipe, explain, read_recipe
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.overrides import Plain, parse_override
from maskwise.recipe.unused import refuse_unused
from maskwise.specs import different_settings
from maskwise.study.checks import check_inputs, notes_of_texts, require_policy
from maskwise.study.inputs import DATA
from maskwise.study.pretraining import pretrain
from maskwise.study.stages import DONE, STAGE, Stage, learn_stage, prepare_stage
from maskwise.study.store import StageStore
from maskwise.study.work import forget_learning, lesson_of, open_text, run_stage, starting_from
from maskwise.tasks import FinetuneSettings, TaskRecord, evaluate_tasks
from maskwise.training.checkpoint import forget_states
from maskwise.training.engine import FREE

PHASE = "phase-"
"""A run may train in several phases. This is the prefix of the folders of all phases but the last,
which are numbered from 0. The last phase writes to the run's folder itself."""
ANOTHER_FOLDER = "give a new folder"


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
    return claim_run(out, what, lock=lock, work="**/metrics.jsonl")


def _is_first() -> bool:
    return rank_here() == 0


# maskwise pretrain
# ---------------------------------------------------------------------------------------------


def run_pretrain(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """Pre-train one model and save the checkpoint in a folder.

    If the run in the folder is finished, its result is returned. If the run was interrupted, it is
    resumed. If it failed before the first state was saved, it starts again with this recipe. The
    arms of a study's recipe are ignored. Under torchrun every process calls this function; only the
    process with rank 0 prepares texts and writes files.

    Args:
        recipe: the recipe of the run.
        out: the folder for ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml`` and ``done.json``.
        quiet: whether to hide progress.

    Returns:
        The content of ``done.json``, and the path of the ``checkpoint`` folder.

    Raises:
        MaskwiseError: the input is invalid; or the folder contains other files, a run of a
            different recipe, or a run that another process is training.
    """
    recipe = with_own_seed(recipe.model_copy(update={"study": StudySettings(), "tasks": ()}))
    if _is_first():
        _require_same_run(out, recipe)
    links = recipe.links()
    require_policy(links)
    notes = check_inputs(recipe)
    if _is_first() and not quiet:
        print_notes(notes)
    first = prepare_stage(links[0])
    texts = [first, *(prepare_stage(link, after=first) for link in links[1:])]
    if _is_first():
        _require_same_texts(out, texts)
    checkpoint = {"checkpoint": str(out / "checkpoint")}
    result = read_json(out / DONE)
    # A file from an older version, or a damaged file, may lack these keys. The run then continues
    # from its last saved state.
    if result and {"heldout", "seconds"} <= result.keys():
        if _is_first():
            forget_states(out)
        return result | checkpoint
    began = time.perf_counter()
    store = StageStore(out / "stages")
    with _claimed(out, "another run is training in", lock="stages/.training.lock"):
        if _is_first():
            _prepare(recipe, texts, out)
            if not quiet:
                print_notes(notes_of_texts(texts, store))
        result = {}
        before: Path | None = None
        facts = {"recipe": recipe.name, "corpus": recipe.corpus.title}
        folders = [out / f"{PHASE}{number}" for number in range(len(links) - 1)]
        for link, text, folder in zip(links, texts, [*folders, out]):
            require_file(store.folder(text) / DONE)
            # A phase other than the last is finished if it has a checkpoint.
            if folder == out or not (folder / "checkpoint").is_dir():
                data = open_text(store.folder(text))
                start = starting_from(before, link)
                result = pretrain(data, start, folder=folder, quiet=quiet, facts=facts)
            before = folder / "checkpoint"
            require_file(before / "config.json")
            if _is_first() and folder != out:
                forget_states(folder)
        seconds = round(time.perf_counter() - began, 1)
        result |= {"seconds": seconds, "versions": versions(), "hardware": hardware()}
        if _is_first():
            write_json(out / DONE, result)
            forget_states(out)
    return result | checkpoint


def _prepare(recipe: Recipe, texts: list[Stage], out: Path) -> None:
    """Write the recipe and prepare the texts.

    If a run in the folder failed before its first state was saved, its folders are removed.
    """
    if not _begun(out):
        names = [text.name for text in texts]
        stale = [path for path in (out / "stages").glob("prepare-*") if path.name not in names]
        for folder in (*stale, *_earlier(out)):
            shutil.rmtree(folder, ignore_errors=True)
    write_whole(out / "recipe.yaml", recipe.to_yaml())
    for text in texts:
        run_stage(text, StageStore(out / "stages"))


def _require_same_texts(out: Path, texts: list[Stage]) -> None:
    """Raise an error if the folder contains a run on a different text."""
    before = [path.name for path in (out / "stages").glob("prepare-*")]
    new = [text.name for text in texts if text.name not in before]
    if before and new and _begun(out):
        raise MaskwiseError(
            f"--out {out} contains a run on a different text: the corpus or the installed versions "
            "have changed",
            got=new[0],
            allowed=before[0],
            do=ANOTHER_FOLDER,
        )


def _require_same_run(out: Path, recipe: Recipe) -> None:
    """Raise an error if the folder contains other files, or a run of a different recipe."""
    require_own(out, "recipe.yaml", what="a run of this recipe")
    if not _begun(out):
        return
    free = {"training": FREE}
    before = read_recipe(out / "recipe.yaml").model_dump(mode="json", exclude=free)
    changed = different_settings(before, recipe.model_dump(mode="json", exclude=free))
    if changed:
        raise MaskwiseError(
            f"--out {out} contains a run of a different recipe",
            got=f"other values of {', '.join(changed)}",
            do=ANOTHER_FOLDER,
        )


def _begun(out: Path) -> bool:
    """Return whether the folder has a result, a checkpoint or a resumable state."""
    marks = product((out, *_earlier(out)), (DONE, "checkpoint", "resume/step-*"))
    return any(any(folder.glob(mark)) for folder, mark in marks)


def _earlier(out: Path) -> list[Path]:
    """List the folders of all phases except the last."""
    return list(out.glob(f"{PHASE}*"))


# maskwise finetune
# ---------------------------------------------------------------------------------------------


def run_finetune(
    model: str,
    tasks: list[str],
    overrides: Iterable[str],
    *,
    seeds: int,
    out: Path,
    quiet: bool = False,
) -> list[TaskRecord]:
    """Fine-tune and evaluate a checkpoint on each task.

    Args:
        model: a checkpoint folder or a model name.
        tasks: the task specs.
        overrides: fine-tuning settings as ``key=value``. The key may be that of a recipe, such as
            ``finetune.max_length``.
        seeds: the number of fine-tuning runs per task.
        out: the folder for ``TASK/seed-N/checkpoint`` and ``records.jsonl``.
        quiet: whether to hide progress.

    Raises:
        MaskwiseError: a setting is unknown or has no effect, or ``tasks.evaluate_tasks`` raises an
            error.
    """
    changes = {}
    for key, value in map(parse_override, overrides):
        changes[key.removeprefix("finetune.")] = value
    if "seeds" in changes:
        raise MaskwiseError("finetune has an option for seeds", do="use --runs")
    try:
        settings = FinetuneSettings(seeds=seeds, **changes)
    except ValidationError as error:
        raise explain(error, FinetuneSettings, origin="") from None
    whole = {"finetune": settings.model_dump(mode="json"), "tasks": [*tasks]}
    given = {f"finetune.{name}": value for name, value in changes.items()}
    refuse_unused(given, [whole], {"finetune": FinetuneSettings().model_dump(mode="json")})
    return evaluate_tasks(model, tasks, settings=settings, out=out, quiet=quiet)


# maskwise learn
# ---------------------------------------------------------------------------------------------


def run_learn(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """Learn a masking policy and save it in a folder.

    The folder contains the files of ``learning.run``, and ``recipe.yaml``, ``stage.json`` (all
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
        require_own(out, "recipe.yaml", f"{DATA}/*.jsonl", what="a policy of this recipe")
    stage = learned_from(recipe)
    before = read_json(out / STAGE)
    saved = out / "recipe.yaml"
    # If stage.json is damaged, the inputs of the policy are computed from its recipe.
    if not before and saved.is_file():
        # The recipe of another command may learn no policy.
        with suppress(MaskwiseError):
            before = learned_from(read_recipe(saved))
    # The inputs include hashes of files, which may change while the recipe stays the same.
    if before != stage and (before or saved.is_file()):
        raise MaskwiseError(
            f"--out {out} has results of a different recipe or of other data: a setting, a file, a "
            "library or the machine has changed",
            do=ANOTHER_FOLDER,
        )
    done = read_json(out / DONE)
    if done:
        if _is_first():
            forget_learning(out)
        return done
    with _claimed(out, "another process is learning in", lock=".learning.lock"):
        if _is_first():
            write_whole(saved, recipe.to_yaml())
            write_json(out / STAGE, stage)
        began = time.perf_counter()
        result = lesson_of(recipe, out, quiet=quiet).learn()
        result = finite({**result, "seconds": round(time.perf_counter() - began, 1)})
        if _is_first():
            # Imported here because importing altair takes a second.
            from maskwise.report.page import write_policy_page

            result["report"] = str(write_policy_page(out, title=recipe.name, measures=result))
            write_json(out / DONE, result)
            forget_learning(out)
    return result


def learned_from(recipe: Recipe) -> Plain:
    """Return all inputs of a masking policy, in the format of stage.json."""
    link = recipe.links()[0]
    stage = learn_stage(link, recipe.learned_task, prepare_stage(link))
    return json.loads(json.dumps(stage.as_dict()))
