"""The single-run commands, ``maskwise pretrain`` and ``finetune``. The work is that of a study's stages."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.recipe import Recipe, explain, parse_value, validate
from maskwise.study.checks import check_inputs, only_one, say
from maskwise.study.facts import hardware, versions
from maskwise.study.stages import Stage, prepare_stage, write_json
from maskwise.study.work import Prepared, pretrain, run_stage
from maskwise.tasks import FinetuneSettings, TaskRecord, evaluate_tasks


def run_pretrain(recipe: Recipe, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Pre-train one model into ``out``: ``checkpoint/``, ``metrics.jsonl``, ``recipe.yaml``, ``done.json``.

    Under torchrun every process calls this; rank 0 prepares and writes. A finished run is returned as it is;
    an interrupted one goes on; what failed before there was anything to go on from begins anew, with this recipe.
    A study's recipe is read without its arms.

    Raises:
        MaskwiseError: bad input; a folder that holds something else, another recipe's run, or one that is running.
    """
    rank = int(os.environ.get("RANK", "0"))
    recipe = recipe.model_copy(update={"study": type(recipe.study)(), "tasks": ()})
    if rank == 0:
        _check_folder(out, recipe)
    notes = check_inputs(recipe)
    say(() if quiet or rank else notes)
    first, *further = recipe.links()
    texts = [prepare_stage(first)]
    texts += [prepare_stage(link, after=texts[0]) for link in further]
    if rank == 0:
        _check_corpus(out, texts[0])
    if (out / "done.json").is_file():
        return {**json.loads((out / "done.json").read_text()), "checkpoint": str(out / "checkpoint")}
    began = time.perf_counter()
    new = not out.is_dir() or not any(out.iterdir())
    # A run that has not saved a state yet may still be going on.
    ours = only_one(out, "another run trains into", name=".training.lock") if rank == 0 else nullcontext()
    with ours:
        if rank == 0:
            _prepare(recipe, texts, out, new=new)
        result = _train(recipe, texts, out, quiet=quiet)
        result |= {
            "seconds": round(time.perf_counter() - began, 1),
            "versions": versions(),
            "hardware": hardware(),
        }
        if rank == 0:
            write_json(out / "done.json", result)
    return {**result, "checkpoint": str(out / "checkpoint")}


def _prepare(recipe: Recipe, texts: list[Stage], out: Path, *, new: bool) -> None:
    """The recipe and the texts are in the folder, and nothing of an earlier try that came to nothing."""
    if not _begun(out):
        names = [text.name for text in texts]
        stale = [path for path in (out / "stages").glob("prepare-*") if path.name not in names]
        for left in (*stale, out / "first"):
            shutil.rmtree(left, ignore_errors=True)
    (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    try:
        for text in texts:
            run_stage(text, out / "stages")
    except MaskwiseError:
        if new:
            shutil.rmtree(out)
        raise


def _train(recipe: Recipe, texts: list[Stage], out: Path, *, quiet: bool) -> dict[str, Any]:
    """One training after the other; the result of the last."""
    first, *further = recipe.links()
    facts = {"recipe": recipe.name, "corpus": recipe.corpus.source}
    before: dict[str, Any] = {}
    for link, text in zip((first, *further), texts):
        _wait_for(text.folder(out / "stages") / "done.json")
        folder = out / "first" if further and link is first else out
        # A first stage that is done is not done again.
        if folder == out or not (folder / "checkpoint").is_dir():
            parts = {"model", "masking", "objectives", "sampler", "evaluation"}
            plain = link.model_dump(mode="json", include=parts) | before
            data = Prepared.open(text.folder(out / "stages") / "data")
            result = pretrain(data, **plain, training=link.training, folder=folder, quiet=quiet, facts=facts)
        _wait_for(folder / "checkpoint" / "config.json")
        before = {"model": {"pretrained": str(folder / "checkpoint")}}
    return result


def run_finetune(
    model: str, tasks: list[str], overrides: Iterable[str], *, seeds: int, out: Path, quiet: bool = False
) -> list[TaskRecord]:
    """Judge a checkpoint by each task, into ``out/TASK/seed-N/checkpoint`` and ``out/records.jsonl``.

    Raises:
        MaskwiseError: an unknown setting, and see ``tasks.evaluate_tasks``.
    """
    settings = _finetune_settings(overrides, seeds)
    return evaluate_tasks(model, tasks, settings=settings, out=out, quiet=quiet)


def _finetune_settings(overrides: Iterable[str], seeds: int) -> FinetuneSettings:
    raw: dict[str, Any] = {"seeds": seeds}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise MaskwiseError("a setting is key=value", got=override, do="for example learning_rate=1e-3")
        if key not in FinetuneSettings.model_fields:
            raise unknown_name("fine-tuning setting", key, FinetuneSettings.model_fields)
        raw[key] = parse_value(text)
    try:
        return FinetuneSettings(**raw)
    except ValidationError as error:
        raise explain(error, FinetuneSettings, origin="") from None


def _check_corpus(out: Path, prepared: Stage) -> None:
    """The recipe may be the same and the text that it names another."""
    before = [path.name for path in (out / "stages").glob("prepare-*")]
    if before and prepared.name not in before and _begun(out):
        what = f"--out {out} holds a run on another text: the corpus, or the installed versions, changed"
        raise MaskwiseError(what, got=prepared.name, allowed=before[0], do="give a new folder")


def _check_folder(out: Path, recipe: Recipe) -> None:
    if out.exists() and not out.is_dir():
        raise MaskwiseError("--out is a file", got=str(out), do="give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    known = out / "recipe.yaml"
    if not known.is_file():
        found = ", ".join(sorted(p.name for p in out.iterdir())[:3])
        raise MaskwiseError(f"--out {out} holds something else", got=found, do="give a new folder")
    if not _begun(out):
        return
    before, now = yaml.safe_load(known.read_text(encoding="utf-8")), recipe.model_dump(mode="json")
    before = validate(before, origin=str(known)).model_dump(mode="json")  # with what a newer version can set
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        what = f"a change in {', '.join(changed)}"
        raise MaskwiseError(f"--out {out} holds a run of another recipe", got=what, do="give a new folder")


def _begun(out: Path) -> bool:
    """Whether a run is there that another recipe must not replace: its result, or a state to go on from."""
    kept = ("done.json", "checkpoint", "resume/step-*")
    return any(any(folder.glob(name)) for folder in (out, out / "first") for name in kept)


def _wait_for(path: Path, seconds: float = 3600.0) -> None:
    """Other ranks wait for rank 0's file: preparing can outlast a collective's time limit."""
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise MaskwiseError(f"{path} did not appear", do="is the folder shared by all processes?")
        time.sleep(0.2)
