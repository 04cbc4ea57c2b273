"""Run a study: do the stages that are not done, then write records, verdicts and the page.

Interrupt it however you like; the same command goes on. One failing run is reported and takes no other down.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

from maskwise.errors import MaskwiseError
from maskwise.files import Record, Study
from maskwise.jobs import require_engine
from maskwise.report import write_report
from maskwise.study.checks import check_folder, check_inputs, only_one, say
from maskwise.study.facts import describe, samples, timings
from maskwise.study.phases import Design
from maskwise.study.records import collect
from maskwise.study.scheduler import RETRIES, execute
from maskwise.study.stages import Stage, write_json, write_lines
from maskwise.study.verdict import primary_pairs, summarise

RESULTS = ("records.jsonl", "timings.jsonl", "samples.json", "summary.json", "report.html")


def run_study(
    recipe: Any,
    out: Path,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    engine: str = "local",
    retries: int = RETRIES,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Run every arm and seed of a recipe, compare them, write the report.

    Args:
        recipe: a ``Recipe`` with arms.
        out: the study's folder; one that holds a study goes on.
        jobs: stages at once; as many as cores if not said.
        quiet: no live table.
        engine: where stages run: local or ray.
        retries: how often a stage is tried again whose failure may pass.
        cache: a folder where stages are shared with other studies.

    Returns:
        summary.json as a dict, with ``seconds``, ``report`` and ``failures`` (records of runs that failed).

    Raises:
        MaskwiseError: bad input, before anything is written.
    """
    began = time.perf_counter()
    require_engine(engine)
    check_folder(out)
    notes = check_inputs(recipe)
    stages, new = out / "stages", not out.is_dir() or not any(out.iterdir())
    shared = shared_folder(recipe, cache)
    design = Design(recipe, stages)
    study = describe(recipe, design)
    primary_pairs(cast(Study, study))
    say(() if quiet else notes)
    errors: dict[str, str] = {}
    with only_one(out):
        before = {"started": study["started"], "seconds": None} | _so_far(out, study)
        worked = False
        try:
            for plan in design.phases():
                link_shared(plan.stages(), stages, shared)
                todo = [stage for stage in plan.stages() if stage.result(stages) is None]
                worked = worked or bool(todo)
                study = describe(recipe, design) | before
                write_json(out / "study.json", study)
                at_once = 1 if plan.alone else jobs
                errors |= execute(
                    todo, stages, plan, jobs=at_once, quiet=quiet, engine=engine, retries=retries
                )
        except MaskwiseError:  # a text cannot be prepared
            if new and not any(stages.glob("*/done.json")):  # and there is nothing worth keeping
                shutil.rmtree(out)
            raise
        finally:
            if out.exists():
                spent = time.perf_counter() - began if worked else 0.0  # all may be there already
                before["seconds"] = round((before["seconds"] or 0.0) + spent, 1)
                write_json(out / "study.json", study | before)
        design.plan_costs()
        study = describe(recipe, design) | before
        write_json(out / "study.json", study)
        records = collect(design.runs, stages, errors, more=design.choices)
        write_lines(out / "records.jsonl", records)
        write_lines(out / "timings.jsonl", timings(design, stages))
        write_json(out / "samples.json", samples(recipe, design.runs, stages))
        summary = summarise(cast(list[Record], records), cast(Study, study))
        write_json(out / "summary.json", summary)
        report = write_report(out)
    failed = [record for record in records if record["kind"] == "failure"]
    return {**summary, "seconds": study["seconds"], "report": str(report), "failures": failed}


def shared_folder(recipe: Any, cache: Path | None) -> Path | None:
    """Where stages are shared with other studies: the option, the recipe, the environment, or nowhere."""
    said = cache or recipe.study.cache or os.environ.get("MASKWISE_STAGES")
    if not said:
        return None
    folder = Path(said).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise MaskwiseError("the folder of shared stages is a file", got=str(folder), do="give a folder")
    return folder


def link_shared(wanted: list[Stage], stages: Path, shared: Path | None) -> None:
    """Put links to the shared folders of stages into the study's own. A stage that is here already stays here."""
    for stage in wanted if shared else ():
        assert shared is not None
        if not stage.folder(stages).is_dir():
            stage.folder(shared).mkdir(parents=True, exist_ok=True)
            stage.folder(stages).unlink(missing_ok=True)  # a link to nowhere
            stage.folder(stages).symlink_to(stage.folder(shared), target_is_directory=True)


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
