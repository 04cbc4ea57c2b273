"""The single-run commands, ``maskwise pretrain`` and ``finetune``. The work is that of a study's
stages.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import yaml
from pydantic import ValidationError

from maskwise.constants import rank_here
from maskwise.errors import MaskwiseError
from maskwise.folders import claim, read_json, require_file, require_own, write_json, write_whole
from maskwise.recipe import Recipe, explain, validate
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.overrides import Plain, parse_override, read_yaml
from maskwise.study.checks import check_inputs, notes_of_texts, say
from maskwise.study.records import hardware, versions
from maskwise.study.stages import DONE, Stage, prepare_stage
from maskwise.study.texts import open_text
from maskwise.study.work import pretrain, run_stage, starting_from
from maskwise.tasks import FinetuneSettings, TaskRecord, evaluate_tasks
from maskwise.training.engine import FREE

FIRST, PHASE = "first", "phase-{}"
"""Folders inside a run's: the first training of two, and of a recipe with ``phases`` each but the
last, from 0.
"""


def run_pretrain(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """Pre-train one model into ``out``: ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml``,
    ``done.json``.

    Under torchrun every process calls this; rank 0 prepares and writes. A finished run is returned
    as it is; an interrupted one goes on; what failed before there was anything to go on from begins
    anew, with this recipe. A study's recipe is read without its arms.

    Raises:
        MaskwiseError: bad input; a folder that holds something else, another recipe's run, or one
            that is running.
    """
    rank = rank_here()
    recipe = recipe.model_copy(update={"study": StudySettings(), "tasks": ()})
    if rank == 0:
        _require_same_run(out, recipe)
    notes = check_inputs(recipe)
    say(() if quiet or rank else notes)
    first, *further = recipe.links()
    if first.learns or any(link.learns for link in further):
        do = "run maskwise learn first, and name its folder: learned('OUT/policy')"
        raise MaskwiseError("a single training learns no policy", do=do)
    texts = [prepare_stage(first)]
    texts += [prepare_stage(link, after=texts[0]) for link in further]
    if rank == 0:
        for text in texts:
            _require_same_text(out, text)
    checkpoint = {"checkpoint": str(out / "checkpoint")}
    result = read_json(out / DONE)
    if result and {"heldout", "seconds"} <= result.keys():
        return result | checkpoint
    began = time.perf_counter()
    new = not out.is_dir() or not any(out.iterdir())
    # A run that has not saved a state yet may still be going on.
    stages, lock = out / "stages", ".training.lock"
    with claim(stages, "another run trains into", lock=lock) if rank == 0 else nullcontext():
        try:
            if rank == 0:
                _prepare(recipe, texts, out)
                say(() if quiet else notes_of_texts(texts, out / "stages"))
            result = _train(recipe, texts, out, quiet=quiet)
        except MaskwiseError:  # nothing is left behind by a run that never took a step
            if rank == 0 and new and not any(out.rglob("metrics.jsonl")):
                shutil.rmtree(out)
            raise
        seconds = round(time.perf_counter() - began, 1)
        result |= {"seconds": seconds, "versions": versions(), "hardware": hardware()}
        if rank == 0:
            write_json(out / DONE, result)
    return result | checkpoint


def _prepare(recipe: Recipe, texts: list[Stage], out: Path) -> None:
    """Write the recipe and the texts; nothing stays of an earlier try that failed before its first
    state.
    """
    if not _begun(out):
        names = [text.name for text in texts]
        stale = [path for path in (out / "stages").glob("prepare-*") if path.name not in names]
        for left in (*stale, *_earlier(out)):
            shutil.rmtree(left, ignore_errors=True)
        (out / "best.json").unlink(missing_ok=True)  # else its loss would be the one to beat
    write_whole(out / "recipe.yaml", recipe.to_yaml())
    for text in texts:
        run_stage(text, out / "stages")


def _train(recipe: Recipe, texts: list[Stage], out: Path, *, quiet: bool) -> Plain:
    """One phase after the other; the result of the last."""
    links = recipe.links()
    facts = {"recipe": recipe.name, "corpus": recipe.corpus.title}
    result: Plain = {}
    before: Path | None = None
    for link, text, folder in zip(links, texts, _folders(recipe, out)):
        require_file(text.folder(out / "stages") / DONE)
        # A phase that is done is not done again.
        if folder == out or not (folder / "checkpoint").is_dir():
            data = open_text(text.folder(out / "stages"))
            start = starting_from(before, link) if before else link
            result = pretrain(data, start, folder=folder, quiet=quiet, facts=facts)
        before = folder / "checkpoint"
        require_file(before / "config.json")
    return result


def run_finetune(
    model: str,
    tasks: list[str],
    overrides: Iterable[str],
    *,
    seeds: int,
    out: Path,
    quiet: bool = False,
) -> list[TaskRecord]:
    """Judge a checkpoint by each task, into ``out/TASK/seed-N/checkpoint`` and
    ``out/records.jsonl``.

    Raises:
        MaskwiseError: an unknown setting, and see ``tasks.evaluate_tasks``.
    """
    settings = _finetune_settings(overrides, seeds)
    return evaluate_tasks(model, tasks, settings=settings, out=out, quiet=quiet)


def _finetune_settings(overrides: Iterable[str], seeds: int) -> FinetuneSettings:
    try:
        return FinetuneSettings(**{"seeds": seeds} | dict(map(parse_override, overrides)))
    except ValidationError as error:
        raise explain(error, FinetuneSettings, origin="") from None


def _require_same_text(out: Path, prepared: Stage) -> None:
    """The recipe may be the same and the text that it names another."""
    before = [path.name for path in (out / "stages").glob("prepare-*")]
    if before and prepared.name not in before and _begun(out):
        what = (
            f"--out {out} holds a run on another text: the corpus, or the installed versions, "
            f"changed"
        )
        raise MaskwiseError(what, got=prepared.name, allowed=before[0], do="give a new folder")


def _require_same_run(out: Path, recipe: Recipe) -> None:
    """Refuse a folder with something else in it, or with another recipe's run."""
    require_own(out, "recipe.yaml", what="a run of this recipe")
    if not _begun(out):
        return
    free = {"training": FREE}  # a run goes on with another of these
    # with what is new in this version
    before = _recipe_in(out / "recipe.yaml").model_dump(mode="json", exclude=free)
    now = recipe.model_dump(mode="json", exclude=free)
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        what = f"a change in {', '.join(changed)}"
        raise MaskwiseError(
            f"--out {out} holds a run of another recipe", got=what, do="give a new folder"
        )


def _recipe_in(path: Path) -> Recipe:
    """The recipe of an earlier run.

    Raises:
        MaskwiseError: its file is damaged, so that nobody knows what the run was.
    """
    try:
        settings = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict):
        raise MaskwiseError(
            f"{path} is damaged: no recipe can be read from it", do="give a new folder"
        )
    return validate(settings, origin=str(path))


def _begun(out: Path) -> bool:
    """Whether a run is there that another recipe must not replace: its result, or a state to go on
    from.
    """
    kept = (DONE, "checkpoint", "resume/step-*")
    return any(any(folder.glob(name)) for folder in (out, *_earlier(out)) for name in kept)


def _earlier(out: Path) -> list[Path]:
    """The folders of all trainings but the last."""
    return [*out.glob(FIRST), *out.glob(PHASE.format("*"))]


def _folders(recipe: Recipe, out: Path) -> list[Path]:
    """Where each training of a run writes: the last one into the run's own folder."""
    before = len(recipe.links()) - 1
    names = [FIRST] if recipe.intermediate is not None else [PHASE.format(n) for n in range(before)]
    return [*(out / name for name in names), out]
