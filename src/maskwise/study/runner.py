"""Run a study: do the stages that are not done, then write records, verdicts and the page.

Interrupt it however you like; the same command goes on. One failing run is reported and takes no other down.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskwise import __version__
from maskwise.corpus import read_documents, require_documents
from maskwise.errors import MaskwiseError
from maskwise.masking.policies import policy
from maskwise.report import write_report
from maskwise.show import show_masks
from maskwise.study.plan import REFERENCE, Plan, Run, make_plan
from maskwise.study.pool import Pool
from maskwise.study.stages import Prepared, Stage, make_masker, run_stage, write_json
from maskwise.study.table import LiveTable
from maskwise.study.verdict import primary_contrasts, summarise
from maskwise.tasks import load_task
from maskwise.tasks.finetune import majority_score

SAMPLES = 6
"""Held-out documents whose beginnings are shown in the report."""


def run_study(recipe: Any, out: Path, *, jobs: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Run every arm and seed of a recipe, compare them, write the report.

    Args:
        recipe: a ``Recipe`` with arms.
        out: the study's folder; one that holds a study goes on.
        jobs: worker processes; as many as cores if not said.
        quiet: no live table.

    Returns:
        summary.json as a dict, with ``seconds``, ``report`` and ``failures``.

    Raises:
        MaskwiseError: bad input, before anything is written.
    """
    began = time.perf_counter()
    plan = make_plan(recipe)
    study = describe(recipe)
    primary_contrasts(study)
    check_inputs(recipe)
    check_folder(out)
    stages = out / "stages"
    with only_one(out):
        todo = [stage for stage in plan.stages() if stage.result(stages) is None]
        failures = execute(todo, stages, plan, jobs=jobs or os.cpu_count() or 1, quiet=quiet)
        study = describe(recipe, plan=plan, began=began)
        records = collect(plan, stages, failures)
        write_lines(out / "records.jsonl", records)
        write_lines(out / "timings.jsonl", timings(plan, stages))
        write_json(out / "study.json", study)
        write_json(out / "samples.json", samples(recipe, plan, stages))
        summary = summarise(records, study)
        write_json(out / "summary.json", summary)
        report = write_report(out)
    failed = sum(record["kind"] == "failure" for record in records)
    return {**summary, "seconds": study["seconds"], "report": str(report), "failures": failed}


def check_inputs(recipe: Any) -> None:
    """Fail now, in one line, rather than in an hour: read the start of the corpus and all of the tasks."""
    corpus = recipe.corpus
    require_documents(read_documents(corpus.source, text_field=corpus.text_field, limit=corpus.limit))
    for task in recipe.tasks:
        load_task(task)


def check_folder(out: Path) -> None:
    """A new folder, an empty one, or one that holds a study; anything else is refused."""
    if out.exists() and not out.is_dir():
        raise MaskwiseError("--out is a file", got=str(out), do="give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "stages").is_dir():
        found = ", ".join(sorted(p.name for p in out.iterdir())[:3])
        raise MaskwiseError(f"--out {out} holds something else", got=found, do="give a new folder, or that of a study")


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Two studies must not write into one folder at once."""
    (out / "stages").mkdir(parents=True, exist_ok=True)
    with (out / "stages" / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MaskwiseError(f"another study is running in {out}", do="wait for it, or give another folder") from None
        yield


def execute(todo: list[Stage], stages: Path, plan: Plan, *, jobs: int, quiet: bool) -> dict[str, str]:
    """Do stages as soon as what they need is done. Returns the errors by stage name.

    Raises:
        MaskwiseError: when a stage fails on which every run depends.
    """
    errors: dict[str, str] = {}
    waiting = list(todo)
    if not waiting:
        return errors
    missing = {stage.name for stage in waiting}
    everyone = set.intersection(*({stage.name for stage in run.stages} for run in plan.runs))
    table = LiveTable(plan, stages, quiet=quiet)
    pool = Pool(partial(_work, stages=str(stages)), jobs=min(jobs, len(waiting)))
    running: set[str] = set()
    try:
        with table:
            while waiting or running:
                for stage in list(waiting):
                    broken = next((name for name in stage.needs if name in errors), None)
                    if broken:
                        waiting.remove(stage)
                        errors[stage.name] = errors[broken]
                    elif pool.idle and not missing.intersection(stage.needs):
                        waiting.remove(stage)
                        running.add(stage.name)
                        pool.start(stage.as_dict())
                for task, _, error in pool.finished(timeout=0.5):
                    stage = Stage(**task)
                    running.discard(stage.name)
                    missing.discard(stage.name)
                    if error:
                        errors[stage.name] = error
                        missing.add(stage.name)
                        table.say(f"{stage.name} failed: {error}")
                        if stage.name in everyone:
                            raise MaskwiseError(error)
                table.update(running, errors)
    finally:
        pool.close()
    return errors


def _work(task: dict[str, Any], *, stages: str) -> dict[str, Any]:
    return run_stage(Stage(**{**task, "needs": tuple(task["needs"])}), Path(stages))


def collect(plan: Plan, stages: Path, errors: dict[str, str]) -> list[dict[str, Any]]:
    """Every number measured, as records in a fixed order, without timings."""
    records: list[dict[str, Any]] = []
    for run in plan.runs:
        who = {"arm": run.arm, "seed": run.seed}
        failed = [stage for stage in run.stages if stage.result(stages) is None]
        if failed:
            error = errors.get(failed[0].name, "not finished")
            records.append({"kind": "failure", **who, "stage": failed[0].name, "error": error})
        pretrained = run.pretrained.result(stages) if run.pretrained else None
        for line in pretrained["heldout"] if pretrained else ():
            records.append({"kind": "heldout", **who, **line})
        for stage in run.tasks.values():
            found = stage.result(stages)
            if found:
                kept = {key: found[key] for key in ("task", "metric", "score", "fine_tuning")}
                records.append({"kind": "score", **who, **kept})
    return sorted(records, key=lambda r: (r["kind"], r["arm"], r["seed"], r.get("task", r.get("masks", ""))))


def timings(plan: Plan, stages: Path) -> list[dict[str, Any]]:
    found = ((stage, stage.result(stages)) for stage in plan.stages())
    return [{"stage": stage.name, "seconds": result["seconds"]} for stage, result in found if result]


def describe(recipe: Any, *, plan: Plan | None = None, began: float | None = None) -> dict[str, Any]:
    """study.json."""
    arms = {}
    for name, overrides in recipe.study.arms.items():
        masking = recipe.arm(name, seed=0).masking
        runs = {str(r.seed): f"stages/{r.pretrained.name}" for r in plan.runs if r.arm == name and r.pretrained} if plan else {}
        arms[name] = {
            "policy": masking.policy, "ratio": str(masking.ratio), "units": policy(masking.policy).units_name,
            "overrides": overrides, "runs": runs,
        }  # fmt: skip
    tasks = {}
    for spec in recipe.tasks:
        task = load_task(spec)
        tasks[task.name] = {
            "metric": task.metric, "kind": task.kind, "classes": len(task.labels), "test_items": task.test_items,
            "majority": majority_score(task),
        }  # fmt: skip
    return {
        "name": recipe.name, "description": recipe.description, "maskwise": __version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions(), "hardware": hardware(),
        "recipe": recipe.model_dump(mode="json"), "recipe_yaml": recipe.to_yaml(), "baseline": recipe.baseline,
        "seeds": list(recipe.study.seed_list), "arms": arms, "tasks": tasks,
        "seconds": round(time.perf_counter() - began, 1) if began is not None else None,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """What numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine, in a few words."""
    import torch

    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "memory_gib": round(memory[0] / 2**20, 1) if memory else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def samples(recipe: Any, plan: Plan, stages: Path) -> dict[str, Any]:
    """Beginnings of held-out documents with what each arm masks in the middle of training (seed of the first run)."""
    first: dict[str, Run] = {}
    for run in plan.runs:
        if run.arm != REFERENCE and run.prepared.result(stages):
            first.setdefault(run.arm, run)
    shown: dict[str, Any] = {}
    texts: dict[str, list[tuple[str, str]]] = {}
    for arm, run in first.items():
        one = recipe.arm(arm, seed=run.seed)
        data = Prepared.load(run.prepared.folder(stages))
        if run.prepared.name not in texts:
            texts[run.prepared.name] = _beginnings(one)
        masker = make_masker(one.masking.model_dump(), data.tokenizer, seed=run.seed)
        total = one.training.steps
        rows = []
        for document, text in texts[run.prepared.name]:
            found = show_masks(masker, data.tokenizer, text, step=total // 2, total_steps=total, max_length=one.corpus.length)
            rows.append({"document": document, "pieces": [piece.as_dict() for piece in found.pieces]})
        shown[arm] = rows
    return shown


def _beginnings(recipe: Any) -> list[tuple[str, str]]:
    corpus, found = recipe.corpus, []
    for document in read_documents(corpus.source, text_field=corpus.text_field, limit=corpus.limit):
        text = " ".join(document.text.split())[:240].rsplit(" ", 1)[0]
        if len(text) > 100:
            found.append((document.id, text))
        if len(found) == SAMPLES:
            break
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)
