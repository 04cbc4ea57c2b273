"""Commands for single runs: ``maskwise pretrain``, ``finetune`` and ``learn``.

They do the same work as the stages of a study. After an interruption the same command resumes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from maskwise.constants import rank_here
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
from maskwise.recipe import Recipe, explain, read_recipe
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.overrides import Plain, parse_override
from maskwise.study.checks import check_inputs, notes_of_texts, say
from maskwise.study.pretraining import pretrain
from maskwise.study.records import hardware, versions
from maskwise.study.stages import DONE, STAGE, Stage, learn_stage, prepare_stage
from maskwise.study.work import lesson_of, open_text, run_stage, starting_from
from maskwise.tasks import FinetuneSettings, TaskRecord, evaluate_tasks
from maskwise.training.engine import FREE

PHASE = "phase-"
"""The folders of the earlier phases in a run's folder begin with this and are numbered from 0. The
last phase writes into the run's folder itself."""
ANOTHER_FOLDER = "give a new folder"


def with_own_seed(recipe: Recipe) -> Recipe:
    """Put ``training.seed`` into paths with ``{seed}``, as a study does for each of its runs."""
    if "{seed}" not in recipe.to_yaml():
        return recipe
    single = recipe.model_copy(update={"study": StudySettings(arms={"run": {}})})
    return single.arm("run", seed=recipe.training.seed)


def _claimed(out: Path, what: str, *, lock: str) -> AbstractContextManager[None]:
    """Claim a run's folder on rank 0 for all processes of torchrun."""
    if not _is_first():
        return nullcontext()
    return claim_run(out, what, lock=lock, work="**/metrics.jsonl")


def _is_first() -> bool:
    return rank_here() == 0


# maskwise pretrain
# ---------------------------------------------------------------------------------------------


def run_pretrain(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """Pre-train one model into a folder.

    For a finished run the result is returned, an interrupted run is resumed, and a run that failed
    before its first state starts again with this recipe. The arms of a study's recipe are ignored.
    Under torchrun every process calls this; rank 0 prepares and writes.

    Args:
        out: the folder for ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml`` and ``done.json``.

    Returns:
        The content of ``done.json``, and ``checkpoint``, its folder.

    Raises:
        MaskwiseError: bad input; a folder with other content, with a run of a different recipe, or
            with a run that another process is training.
    """
    recipe = with_own_seed(recipe.model_copy(update={"study": StudySettings(), "tasks": ()}))
    if _is_first():
        _require_same_run(out, recipe)
    notes = check_inputs(recipe)
    if _is_first() and not quiet:
        say(notes)
    links = recipe.links()
    if any(link.learns for link in links):
        raise MaskwiseError(
            "a single training run cannot learn a policy",
            do="run maskwise learn first and name its folder: learned('OUT/policy')",
        )
    first = prepare_stage(links[0])
    texts = [first, *(prepare_stage(link, after=first) for link in links[1:])]
    if _is_first():
        _require_same_texts(out, texts)
    checkpoint = {"checkpoint": str(out / "checkpoint")}
    result = read_json(out / DONE)
    # If an older or damaged file lacks these keys, the run is finished again.
    if result and {"heldout", "seconds"} <= result.keys():
        return result | checkpoint
    began = time.perf_counter()
    stages = out / "stages"
    with _claimed(out, "another run is training in", lock="stages/.training.lock"):
        if _is_first():
            _prepare(recipe, texts, out)
            if not quiet:
                say(notes_of_texts(texts, stages))
        result = {}
        before: Path | None = None
        facts = {"recipe": recipe.name, "corpus": recipe.corpus.title}
        folders = [out / f"{PHASE}{number}" for number in range(len(links) - 1)]
        for link, text, folder in zip(links, texts, [*folders, out]):
            require_file(text.folder(stages) / DONE)
            # An earlier phase with a checkpoint is finished.
            if folder == out or not (folder / "checkpoint").is_dir():
                data = open_text(text.folder(stages))
                start = starting_from(before, link)
                result = pretrain(data, start, folder=folder, quiet=quiet, facts=facts)
            before = folder / "checkpoint"
            require_file(before / "config.json")
        seconds = round(time.perf_counter() - began, 1)
        result |= {"seconds": seconds, "versions": versions(), "hardware": hardware()}
        if _is_first():
            write_json(out / DONE, result)
    return result | checkpoint


def _prepare(recipe: Recipe, texts: list[Stage], out: Path) -> None:
    """Write the recipe and prepare the texts.

    A run in the folder that failed before its first state is removed.
    """
    if not _begun(out):
        names = [text.name for text in texts]
        stale = [path for path in (out / "stages").glob("prepare-*") if path.name not in names]
        for folder in (*stale, *_earlier(out)):
            shutil.rmtree(folder, ignore_errors=True)
    write_whole(out / "recipe.yaml", recipe.to_yaml())
    for text in texts:
        run_stage(text, out / "stages")


def _require_same_texts(out: Path, texts: list[Stage]) -> None:
    """Refuse to resume a run whose text has changed."""
    before = [path.name for path in (out / "stages").glob("prepare-*")]
    new = [text.name for text in texts if text.name not in before]
    if before and new and _begun(out):
        raise MaskwiseError(
            f"--out {out} holds a run on a different text: the corpus, or the installed versions, "
            "have changed",
            got=new[0],
            allowed=before[0],
            do=ANOTHER_FOLDER,
        )


def _require_same_run(out: Path, recipe: Recipe) -> None:
    """Refuse a folder with other content, or with a run of a different recipe."""
    require_own(out, "recipe.yaml", what="a run of this recipe")
    if not _begun(out):
        return
    free = {"training": FREE}
    before = read_recipe(out / "recipe.yaml").model_dump(mode="json", exclude=free)
    # Both recipes have every default filled in, so the comparison covers all settings.
    now = recipe.model_dump(mode="json", exclude=free)
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        raise MaskwiseError(
            f"--out {out} holds a run of a different recipe",
            got=f"a change in {', '.join(changed)}",
            do=ANOTHER_FOLDER,
        )


def _begun(out: Path) -> bool:
    """Return whether the folder has a result or state to resume from, which must be kept."""
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
        overrides: fine-tuning settings as ``key=value``.
        out: the folder for ``TASK/seed-N/checkpoint`` and ``records.jsonl``.

    Raises:
        MaskwiseError: an unknown setting; for other errors see ``tasks.evaluate_tasks``.
    """
    changes = dict(parse_override(override) for override in overrides)
    try:
        settings = FinetuneSettings(**{"seeds": seeds} | changes)
    except ValidationError as error:
        raise explain(error, FinetuneSettings, origin="") from None
    return evaluate_tasks(model, tasks, settings=settings, out=out, quiet=quiet)


# maskwise learn
# ---------------------------------------------------------------------------------------------


def run_learn(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """Learn a policy into a folder.

    In addition to the files of ``learning.run``, the folder gets ``recipe.yaml``, ``stage.json``
    (everything the policy depends on), ``done.json`` and ``report.html``. Under torchrun every
    process calls this; rank 0 writes.

    Raises:
        MaskwiseError: bad input; a folder with other content, or with a policy that was learned by
            a different recipe or from other data.
    """
    recipe = with_own_seed(recipe)
    if _is_first():
        require_own(out, "recipe.yaml", what="a policy of this recipe")
    stage = _learned_from(recipe)
    before = read_json(out / STAGE)
    # If stage.json is damaged, the recipe still tells how the policy was learned.
    if not before and (out / "recipe.yaml").is_file():
        before = _learned_from(read_recipe(out / "recipe.yaml"))
    # The files that a recipe names may have changed, too.
    if before and before != stage:
        raise MaskwiseError(
            f"--out {out} holds the policy of a different recipe, or one learned from other data: "
            "a file, a library or the machine has changed",
            do=ANOTHER_FOLDER,
        )
    done = read_json(out / DONE)
    if done:
        return done
    with _claimed(out, "another process is learning in", lock=".learning.lock"):
        if _is_first():
            write_whole(out / "recipe.yaml", recipe.to_yaml())
            write_json(out / STAGE, stage)
        began = time.perf_counter()
        result = lesson_of(recipe, out, quiet=quiet).learn()
        result = finite({**result, "seconds": round(time.perf_counter() - began, 1)})
        if _is_first():
            # Imported here because altair takes a second.
            from maskwise.report.page import write_policy_page

            result["report"] = str(write_policy_page(out, title=recipe.name, measures=result))
            write_json(out / DONE, result)
    return result


def _learned_from(recipe: Recipe) -> Plain:
    """Return everything that a policy depends on, as stage.json holds it."""
    link = recipe.links()[0]
    stage = learn_stage(link, recipe.learned_task, prepare_stage(link))
    plain: Plain = json.loads(json.dumps(stage.as_dict()))
    return plain
