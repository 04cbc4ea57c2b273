"""Run a study: do the stages that are not done, then write records, verdicts and the page.

Interrupt it however you like; the same command goes on. One failing run is reported and takes no other down.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.report import write_report
from maskwise.study.checks import LOCK, check_folder, check_inputs
from maskwise.study.engines import RETRIES, execute
from maskwise.study.facts import describe, samples, timings
from maskwise.study.plan import Plan, make_plan
from maskwise.study.stages import write_json, write_lines
from maskwise.study.verdict import primary_contrasts, summarise

RESULTS = ("records.jsonl", "timings.jsonl", "samples.json", "summary.json", "report.html")


def run_study(
    recipe: Any,
    out: Path,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    engine: str = "local",
    retries: int = RETRIES,
) -> dict[str, Any]:
    """Run every arm and seed of a recipe, compare them, write the report.

    Args:
        recipe: a ``Recipe`` with arms.
        out: the study's folder; one that holds a study goes on.
        jobs: stages at once; as many as cores if not said.
        quiet: no live table.
        engine: where stages run: local or ray.
        retries: how often a stage is tried again whose failure may pass.

    Returns:
        summary.json as a dict, with ``seconds``, ``report`` and ``failures`` (records of runs that failed).

    Raises:
        MaskwiseError: bad input, before anything is written.
    """
    began = time.perf_counter()
    check_folder(out)
    check_inputs(recipe)
    plan = make_plan(recipe)
    study = describe(recipe, plan)
    primary_contrasts(study)
    stages, new = out / "stages", not out.is_dir() or not any(out.iterdir())
    with only_one(out):
        study |= _so_far(out, study)
        write_json(out / "study.json", study)
        todo = [stage for stage in plan.stages() if stage.result(stages) is None]
        try:
            failures = execute(todo, stages, plan, jobs=jobs, quiet=quiet, engine=engine, retries=retries)
        except MaskwiseError:  # the text cannot be prepared: there is nothing worth keeping
            if new:
                shutil.rmtree(out)
            raise
        finally:
            if todo and out.exists():
                study["seconds"] = round((study["seconds"] or 0.0) + time.perf_counter() - began, 1)
                write_json(out / "study.json", study)
        records = collect(plan, stages, failures)
        write_lines(out / "records.jsonl", records)
        write_lines(out / "timings.jsonl", timings(plan, stages))
        write_json(out / "samples.json", samples(recipe, plan, stages))
        summary = summarise(records, study)
        write_json(out / "summary.json", summary)
        report = write_report(out)
    failed = [record for record in records if record["kind"] == "failure"]
    return {**summary, "seconds": study["seconds"], "report": str(report), "failures": failed}


def _so_far(out: Path, study: dict[str, Any]) -> dict[str, Any]:
    """When this very study began, and how long it has run. Another one's results are removed."""
    try:
        before = json.loads((out / "study.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if before["recipe"] == study["recipe"]:
        return {key: before[key] for key in ("started", "seconds")}
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
    return {}


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Two studies must not write into one folder at once."""
    (out / "stages").mkdir(parents=True, exist_ok=True)
    with (out / "stages" / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MaskwiseError(
                f"another study is running in {out}", do="wait for it, or give another folder"
            ) from None
        yield


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
