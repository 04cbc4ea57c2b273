"""Run a study: do the stages that are left, then write records, verdicts and the report.

After an interruption the same command resumes. A run that fails is reported, and the others go on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from maskwise.errors import MaskwiseError
from maskwise.files import Record
from maskwise.folders import claim, read_json, write_json, write_lines
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
    failure_of,
    others_of,
    pending,
    require_same_recipe,
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
    """Run every arm and seed of a recipe, compare them, and write the report.

    Args:
        recipe: a recipe with arms.
        out: the study's folder; a study that is there is resumed.
        jobs: stages at once; None: as many as there are GPUs here, or else cores.
        quiet: show no live table.
        engine: where stages run: local or ray.
        retries: how often a stage is retried if its failure may pass.
        cache: a folder of stages that is shared with other studies.
        seeds: run only this block of ``study.seeds``, and keep the records of other seeds that are
            in ``out``. There are no verdicts before all seeds of the study have run.

    Returns:
        summary.json as a dict, with ``seconds``, ``report`` and ``failures`` (records of runs that
        failed).

    Raises:
        MaskwiseError: bad input, before anything is written.
    """
    # Imported here because workers import this module and need neither scipy nor altair.
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
    # A block of another recipe, or a contrast that cannot be made, is refused before any work.
    if seeds is not None:
        require_same_recipe(out, read_json(out / "study.json"), study)
    primary_pairs(study)
    if not quiet:
        say([*notes, *prospect_lines(prospects_of(recipe, out))])
    errors: dict[str, str] = {}
    worked = False
    with claim(stages, "another study is running in", lock=LOCK):
        # Read under the lock: another block may have finished while this one waited.
        before = read_json(out / "study.json") or {}
        others = Others()
        if seeds is not None:
            require_same_recipe(out, before, study)
            others = others_of(out, before, design)
            # Arms are described by the settings that all seeds chose.
            for line in others.records:
                if line["kind"] == "selection" and line["chosen"]:
                    design.chosen[line["arm"], line["search_seed"]] = line["chosen"]
        known = so_far(out, before, study)
        if seeds is not None:
            known["pending"] = pending(study, others.records)
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
                    texts = [stage for stage in todo if stage.kind == "prepare"]
                    say(notes_of_texts(texts, stages))
        # A text cannot be prepared. A new folder without any finished stage is removed again.
        except MaskwiseError:
            if new and not any(stages.glob(f"*/{DONE}")):
                shutil.rmtree(out)
            raise
        finally:
            if out.exists():
                seconds = known["seconds"] or 0.0
                # Reading a finished study again adds nothing to its time.
                if worked:
                    seconds += time.perf_counter() - began
                known["seconds"] = round(seconds, 1)
                write_json(out / "study.json", study | known)
        compared = [run for run in design.runs if run.compared]
        # Masks are shown for the study's first seed only, whichever block runs first.
        shown = []
        if recipe.study.seed_list[0] in block:
            shown = compared
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
        # Only generation tasks have written answers.
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
    """List the failed searches for test items, which do not make a comparison invalid."""
    failed: dict[str, Record] = {}
    for run in design.runs:
        for stage in run.overlaps:
            if stage.result(stages) is None:
                failed[stage.name] = failure_of(run, stage, errors)
    return list(failed.values())


def unfinished(plan: Plan, stages: Path) -> list[Stage]:
    """List the stages without a result, and those whose files are needed and damaged."""
    everything = plan.stages()
    todo: set[str] = set()
    needed: set[str] = set()
    # Stages come after the stages they need, so in reverse order a stage's needs are known.
    for stage in reversed(everything):
        missing = stage.result(stages) is None
        # Texts are always needed, for the samples on the page.
        wanted = stage.kind == "prepare" or stage.name in needed
        if not missing and wanted and stage.damage(stages):
            (stage.folder(stages) / DONE).unlink()
            missing = True
        if missing:
            todo.add(stage.name)
            needed.update(stage.needs)
    return [stage for stage in everything if stage.name in todo]


def link_shared(wanted: Sequence[Stage], stages: Path, shared: Path) -> None:
    """Link the shared folders of stages into the study, except stages that are already there."""
    for stage in wanted:
        own = stage.folder(stages)
        if not own.is_dir():
            stage.folder(shared).mkdir(parents=True, exist_ok=True)
            # A link to a shared folder that was removed is replaced.
            own.unlink(missing_ok=True)
            own.symlink_to(stage.folder(shared), target_is_directory=True)
