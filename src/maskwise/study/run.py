"""Run a study: do the stages that are not done, then write records, verdicts and the page.

After any interruption the same command resumes. A run that fails is reported and takes no other
down.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from maskwise.errors import MaskwiseError
from maskwise.files import Record
from maskwise.folders import claim, write_json, write_lines
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import LOCK, check_study, notes_of_texts, say, shared_folder
from maskwise.study.design import Design
from maskwise.study.plan import Plan
from maskwise.study.records import (
    Others,
    answers,
    collect,
    describe,
    failed_searches,
    others_of,
    pending,
    so_far,
    timings,
)
from maskwise.study.scheduler import RETRIES, execute
from maskwise.study.shown import masked_records, samples
from maskwise.study.stages import DONE, Stage
from maskwise.tasks.judge import PREDICTIONS


def run_study(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    engine: str = "local",
    retries: int = RETRIES,
    cache: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> Plain:
    """Run every arm and seed of a recipe, compare them, write the report.

    Args:
        recipe: one with arms.
        out: the study's folder; a study that is there is resumed.
        jobs: stages at once; None: as many as there are cores.
        quiet: no live table.
        engine: where stages run: local or ray.
        retries: how often a stage is retried whose failure may pass.
        cache: a folder where stages are shared with other studies.
        seeds: run only these of ``study.seeds``, and keep the records of others that are in
            ``out``. There are no verdicts before all seeds of the study have run.

    Returns:
        summary.json as a dict, with ``seconds``, ``report`` and ``failures`` (records of runs that
        failed).

    Raises:
        MaskwiseError: bad input, before anything is written.
    """
    # Imported here because workers import this module too, and need neither scipy nor altair.
    from maskwise.report import write_report
    from maskwise.study.prospects import prospect_lines, prospects_of
    from maskwise.study.verdict import primary_pairs, summarise

    began = time.perf_counter()
    block, notes = check_study(recipe, out, engine=engine, seeds=seeds)
    stages = out / "stages"
    new = not out.is_dir() or not any(out.iterdir())
    shared = shared_folder(recipe, cache)
    design = Design(recipe, stages, seeds=block)
    study = describe(recipe, design)
    others = Others() if seeds is None else others_of(out, study, design)
    # A contrast that cannot be made is refused before any work.
    primary_pairs(study)
    if not quiet:
        say([*notes, *prospect_lines(prospects_of(recipe, out))])
    errors: dict[str, str] = {}
    worked = False
    with claim(stages, "another study is running in", lock=LOCK):
        known = so_far(out, study)
        if seeds is not None:
            # Another block may have finished since the first look.
            others = others_of(out, study, design)
            known["pending"] = pending(study, others.records)
            for line in others.records:  # arms are described by what all seeds chose
                if line["kind"] == "selection" and line["chosen"]:
                    design.chosen[line["arm"], line["search_seed"]] = line["chosen"]
        try:
            for plan in design.plans():
                if shared:
                    link_shared(plan.stages(), stages, shared)
                todo = unfinished(plan, stages)
                worked = worked or bool(todo)
                # Written before the work, so that a report can be made of an unfinished study.
                study = others.added_to(describe(recipe, design) | known)
                write_json(out / "study.json", study)
                errors |= execute(
                    todo, stages, plan, jobs=jobs, quiet=quiet, engine=engine, retries=retries
                )
                if not quiet:
                    say(notes_of_texts((s for s in todo if s.kind == "prepare"), stages))
        except MaskwiseError:  # a text cannot be prepared
            # Nothing that is worth keeping was done in a new folder.
            if new and not any(stages.glob(f"*/{DONE}")):
                shutil.rmtree(out)
            raise
        finally:
            if out.exists():
                spent = time.perf_counter() - began if worked else 0.0
                known["seconds"] = round((known["seconds"] or 0.0) + spent, 1)
                write_json(out / "study.json", study | known)
        # Masks are shown and counted with the study's first seed, whichever block runs first.
        compared = [run for run in design.runs if run.compared]
        shown = compared if recipe.study.seed_list[0] in block else []
        of_study = [*others.records, *design.choices, *failed_searches(design, errors)]
        of_study += masked_records(recipe, shown, stages)
        records = collect(design.runs, stages, errors, more=of_study)
        known.pop("pending", None)
        study = others.added_to(describe(recipe, design) | known)
        left = pending(study, records)
        if left:
            study["pending"] = left
        write_json(out / "study.json", study)
        write_lines(out / "records.jsonl", records)
        write_lines(out / "timings.jsonl", [*others.timings, *timings(design, stages)])
        # Only tasks with written answers have any.
        answered = answers(compared, stages, others.answers)
        if answered:
            write_lines(out / PREDICTIONS, answered)
        if shown or not (out / "samples.json").is_file():
            write_json(out / "samples.json", samples(shown, stages))
        summary = summarise(records, study)
        write_json(out / "summary.json", summary)
        report = write_report(out)
    failed = [record for record in records if record["kind"] == "failure"]
    failed += _failed_overlaps(design, stages, errors)
    return {**summary, "seconds": study["seconds"], "report": str(report), "failures": failed}


def _failed_overlaps(design: Design, stages: Path, errors: dict[str, str]) -> list[Record]:
    """Searches for test items that failed: they are reported and make no comparison invalid."""
    failed: dict[str, Record] = {}
    for run in design.runs:
        for stage in run.overlaps:
            if stage.result(stages) is None:
                error = errors.get(stage.name, "not finished")
                record = {"kind": "failure", **run.who, "stage": stage.name, "error": error}
                failed[stage.name] = record  # type: ignore[assignment]
    return list(failed.values())


def unfinished(plan: Plan, stages: Path) -> list[Stage]:
    """The stages to do: those without a result, and those whose files are needed and damaged.

    Texts are always needed, for the samples of the page; checkpoints by stages that are to do.
    """
    everything = plan.stages()
    missing = [stage for stage in everything if stage.result(stages) is None]
    todo = {stage.name for stage in missing}
    needed = set(chain.from_iterable(stage.needs for stage in missing))
    for stage in reversed(everything):  # stages come after those they need
        wanted = stage.kind == "prepare" or stage.name in needed
        if stage.name not in todo and wanted and stage.damage(stages):
            (stage.folder(stages) / DONE).unlink()
            todo.add(stage.name)
            needed |= set(stage.needs)
    return [stage for stage in everything if stage.name in todo]


def link_shared(wanted: Sequence[Stage], stages: Path, shared: Path) -> None:
    """Put links to the shared folders of stages into the study's own. A stage that is here already
    stays here.
    """
    for stage in wanted:
        own = stage.folder(stages)
        if not own.is_dir():
            stage.folder(shared).mkdir(parents=True, exist_ok=True)
            own.unlink(missing_ok=True)  # a link to nowhere
            own.symlink_to(stage.folder(shared), target_is_directory=True)
