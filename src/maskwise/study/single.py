"""The single-run commands, ``maskwise pretrain``, ``finetune`` and ``learn``. The work is that of a
study's stages. After an interruption the same command resumes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import yaml
from pydantic import ValidationError

from maskwise.constants import rank_here
from maskwise.errors import MaskwiseError
from maskwise.folders import (
    claim,
    finite,
    read_json,
    require_file,
    require_own,
    write_json,
    write_whole,
)
from maskwise.recipe import Recipe, explain, validate
from maskwise.recipe.comparison import StudySettings
from maskwise.recipe.overrides import Plain, parse_override, read_yaml
from maskwise.study.checks import check_inputs, notes_of_texts, say
from maskwise.study.pretraining import pretrain
from maskwise.study.records import hardware, versions
from maskwise.study.stages import DONE, STAGE, Stage, learn_stage, prepare_stage
from maskwise.study.work import lesson_of, open_text, run_stage, starting_from
from maskwise.tasks import FinetuneSettings, TaskRecord, evaluate_tasks
from maskwise.training.engine import FREE

FIRST, PHASE = "first", "phase-{}"
"""Folders inside a run's: the first training of two, and of a recipe with ``phases`` each but the
last, from 0.
"""
ANOTHER_FOLDER = "give a new folder"


@contextmanager
def _claimed(out: Path, what: str, *, lock: str) -> Iterator[None]:
    """Claim a run's folder on rank 0, and remove it if a new run fails before its first step."""
    new = not out.is_dir() or not any(out.iterdir())
    with claim((out / lock).parent, what, lock=Path(lock).name) if _is_first() else nullcontext():
        try:
            yield
        except MaskwiseError:
            if _is_first() and new and not any(out.rglob("metrics.jsonl")):
                shutil.rmtree(out)
            raise


def _is_first() -> bool:
    return rank_here() == 0


# maskwise pretrain
# ---------------------------------------------------------------------------------------------


def run_pretrain(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """Pre-train one model into ``out``: ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml``,
    ``done.json``.

    Under torchrun every process calls this; rank 0 prepares and writes. A finished run is returned
    as it is, an interrupted one is resumed, and a run that failed before its first state starts
    anew, with this recipe. A study's recipe is read without its arms.

    Raises:
        MaskwiseError: bad input; a folder that holds something else, another recipe's run, or one
            that is running.
    """
    # Neither arms nor tasks matter for one training.
    recipe = recipe.model_copy(update={"study": StudySettings(), "tasks": ()})
    if _is_first():
        _require_same_run(out, recipe)
    notes = check_inputs(recipe)
    if _is_first() and not quiet:
        say(notes)
    links = recipe.links()
    if any(link.learns for link in links):
        raise MaskwiseError(
            "a single training learns no policy",
            do="run maskwise learn first, and name its folder: learned('OUT/policy')",
        )
    first = prepare_stage(links[0])
    texts = [first, *(prepare_stage(link, after=first) for link in links[1:])]
    if _is_first():
        _require_same_texts(out, texts)
    checkpoint = {"checkpoint": str(out / "checkpoint")}
    result = read_json(out / DONE)
    # An older or damaged file lacks these, and the run is finished again.
    if result and {"heldout", "seconds"} <= result.keys():
        return result | checkpoint
    began = time.perf_counter()
    stages = out / "stages"
    with _claimed(out, "another run trains into", lock="stages/.training.lock"):
        if _is_first():
            _prepare(recipe, texts, out)
            if not quiet:
                say(notes_of_texts(texts, stages))
        result = {}
        before: Path | None = None
        facts = {"recipe": recipe.name, "corpus": recipe.corpus.title}
        for link, text, folder in zip(links, texts, _folders(recipe, out)):
            require_file(text.folder(stages) / DONE)
            # A phase that is done is not done again.
            if folder == out or not (folder / "checkpoint").is_dir():
                data, start = open_text(text.folder(stages)), starting_from(before, link)
                result = pretrain(data, start, folder=folder, quiet=quiet, facts=facts)
            before = folder / "checkpoint"
            require_file(before / "config.json")
        seconds = round(time.perf_counter() - began, 1)
        result |= {"seconds": seconds, "versions": versions(), "hardware": hardware()}
        if _is_first():
            write_json(out / DONE, result)
    return result | checkpoint


def _prepare(recipe: Recipe, texts: list[Stage], out: Path) -> None:
    """Write the recipe and the texts, and remove an earlier try that failed before its first
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


def _require_same_texts(out: Path, texts: list[Stage]) -> None:
    """Refuse another text under the same name."""
    before = [path.name for path in (out / "stages").glob("prepare-*")]
    new = [text.name for text in texts if text.name not in before]
    if before and new and _begun(out):
        raise MaskwiseError(
            f"--out {out} holds a run on another text: the corpus, or the installed versions, "
            "changed",
            got=new[0],
            allowed=before[0],
            do=ANOTHER_FOLDER,
        )


def _require_same_run(out: Path, recipe: Recipe) -> None:
    """Refuse a folder with something else in it, or with another recipe's run."""
    require_own(out, "recipe.yaml", what="a run of this recipe")
    if not _begun(out):
        return
    path = out / "recipe.yaml"
    settings = None
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        settings = read_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise MaskwiseError(f"{path} is damaged: no recipe can be read from it", do=ANOTHER_FOLDER)
    # Validated, so that settings that are new in this version have their defaults.
    free = {"training": FREE}
    before = validate(settings, origin=str(path)).model_dump(mode="json", exclude=free)
    # The recipe file holds every default, so nothing else can have changed.
    now = recipe.model_dump(mode="json", exclude=free)
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        raise MaskwiseError(
            f"--out {out} holds a run of another recipe",
            got=f"a change in {', '.join(changed)}",
            do=ANOTHER_FOLDER,
        )


def _begun(out: Path) -> bool:
    """Whether a run is there that another recipe must not replace: its result, or a state to
    resume from.
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
    """Evaluate a checkpoint on each task, into ``out/TASK/seed-N/checkpoint`` and
    ``out/records.jsonl``.

    Raises:
        MaskwiseError: an unknown setting, and see ``tasks.evaluate_tasks``.
    """
    try:
        settings = FinetuneSettings(**{"seeds": seeds} | dict(map(parse_override, overrides)))
    except ValidationError as error:
        raise explain(error, FinetuneSettings, origin="") from None
    return evaluate_tasks(model, tasks, settings=settings, out=out, quiet=quiet)


# maskwise learn
# ---------------------------------------------------------------------------------------------


def run_learn(recipe: Recipe, out: Path, *, quiet: bool = False) -> Plain:
    """``maskwise learn``: learn a policy in a folder of its own, which is finished once.

    Beside what ``learning.run`` writes, the folder gets ``recipe.yaml``, ``stage.json`` (what the
    policy depends on), ``done.json`` and ``report.html``. Under torchrun every process calls this;
    rank 0 writes.

    Raises:
        MaskwiseError: bad input; a folder that holds something else, or the policy of another
            recipe or of other data.
    """
    if _is_first():
        require_own(out, "recipe.yaml", what="a policy of this recipe")
    text = recipe.to_yaml()
    done, kept = read_json(out / DONE), out / "recipe.yaml"
    if kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") != text:
        raise MaskwiseError(f"--out {out} holds the policy of another recipe", do=ANOTHER_FOLDER)
    link = recipe.links()[0]
    stage = learn_stage(link, recipe.learned_task, prepare_stage(link)).as_dict()
    before = read_json(out / STAGE)
    # The recipe is the same, and the files that it names are not.
    if before and before != json.loads(json.dumps(stage)):
        raise MaskwiseError(
            f"--out {out} holds a policy learned from other data: a file, a library or the "
            "machine changed",
            do=ANOTHER_FOLDER,
        )
    if done:
        return done
    with _claimed(out, "another process learns in", lock=".learning.lock"):
        if _is_first():
            write_whole(kept, text)
            write_json(out / STAGE, stage)
        began = time.perf_counter()
        result = lesson_of(recipe, out, quiet=quiet).learn()
        result = finite({**result, "seconds": round(time.perf_counter() - began, 1)})
        if _is_first():
            from maskwise.report.policy import write_policy_page  # altair takes a second

            result["report"] = str(write_policy_page(out, title=recipe.name, measures=result))
            write_json(out / DONE, result)
    return result
