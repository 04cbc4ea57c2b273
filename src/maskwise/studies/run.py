"""Run a study: execute its unfinished stages, then judge the results and write the report.

A stage is one piece of work with its own folder: prepare a text, pre-train, evaluate, or fine-tune.
After an interruption, the same command resumes the study. If a run fails, the study reports it and
continues with the other runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from maskwise.base.folders import (
    OutputFolder,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_whole,
)
from maskwise.base.printing import note
from maskwise.jobs.pools import Executor, engine_of
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.results.files import Record
from maskwise.results.measurements import Measurement
from maskwise.studies.checks import check_study, folder_of_study, notes_of_texts
from maskwise.studies.design import Design
from maskwise.studies.inputs import read_as, with_settled_tasks
from maskwise.studies.plan import Plan, Run
from maskwise.studies.records import (
    StudyFiles,
    chosen_steps,
    collect,
    describe,
    failed_searches,
    failure_of,
    require_same_inputs,
    require_same_study,
)
from maskwise.studies.samples import samples
from maskwise.studies.scheduler import RETRIES, execute
from maskwise.studies.stages import KINDS, TEXT, Stage
from maskwise.studies.store import StageStore
from maskwise.tasks.finetuning import PREDICTIONS
from maskwise.training.tracking import track_scores


def run_study(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    engine: str = "local",
    executor: Executor | None = None,
    retries: int = RETRIES,
    processes: int = 1,
    cache: Path | None = None,
    seeds: Sequence[int] | None = None,
    files: Mapping[str, str] | None = None,
    call: str = "",
) -> Plain:
    """Run every arm and seed of a recipe, compare them, and write the report.

    Args:
        recipe: a recipe with arms.
        out: the study's folder. A study in this folder is resumed. Several processes, also on
            several machines, may run the same study at the same time; each of them takes stages
            that no other process runs, and all have the same results.
        jobs: the number of stages that run in parallel; None for the number of GPUs of this
            machine, or of cores if it has no GPU, divided by ``processes``.
        engine: where stages run: "local" or "ray".
        executor: what runs the stages instead; the caller closes it.
        retries: the maximum number of retries of a stage after a failure that may be temporary.
        processes: the number of processes that train each model together, on a GPU or a core each.
        cache: a folder of stages that several studies share.
        seeds: the part ("block") of ``study.seeds`` to run; None for all. Records of other seeds in
            ``out`` are preserved. There are no verdicts until all seeds of the study have run.
        files: texts of files to write into ``out`` when the work begins, keyed by name.
        call: the call, as ``OutputFolder`` names it.

    Returns:
        The content of summary.json, and ``seconds``, ``report`` (the path of the page) and
        ``failures`` (records of failed runs). If runs choose their weights (``training.patience``,
        ``training.lengths``), also ``best``: the steps of the best states, by arm.

    Raises:
        MaskwiseError: the input is invalid, or the folder has results of a different study.
            Nothing has been written or removed then.
    """
    # Imported here because workers import this module but not scipy.
    from maskwise.studies.prospects import incomparable_pairs, prospect_lines, prospects_of
    from maskwise.verdict import primary_pairs

    began = time.perf_counter()
    where = engine_of(engine, executor)
    asked = recipe.tasks
    recipe = with_settled_tasks(recipe, out)
    block, notes = check_study(recipe, out, engine=where, seeds=seeds, processes=processes)
    notes += read_as(asked, recipe.tasks)
    store = StageStore.of_study(recipe, out, cache)
    design = Design(recipe, store, seeds=block)
    # Raise an error before any work is done if a contrast names an arm that is not measured.
    study = describe(recipe, design)
    notes += incomparable_pairs(recipe, study, primary_pairs(study))
    errors: dict[str, str] = {}
    worked = set[Stage]()
    folder = folder_of_study(out, call or f"maskwise study {recipe.name}", block=seeds is not None)

    def begin(users: list[str]) -> StudyFiles:
        _require_same_study(out, recipe, design, users, block=seeds is not None)
        for name, text in (files or {}).items():
            write_whole(out / name, text)
        own = StudyFiles(recipe, design, out, block=seeds is not None)
        own.write_study([])
        if users:
            notes.append(f"this study is also run by {' and '.join(users)}")
        return own

    with folder.used({"study": True}, begin, together=True) as own:
        note([*notes, *prospect_lines(prospects_of(recipe))])
        try:
            for plan in design.plans():
                todo = unfinished(plan, store)
                worked.update(todo)
                own.add(plan)
                # Write study.json before the work, because reports of unfinished studies read it.
                with folder.alone():
                    own.write_study([])
                errors |= execute(
                    todo,
                    store,
                    plan,
                    jobs=jobs,
                    engine=where,
                    retries=retries,
                    processes=processes,
                )
                texts = [stage for stage in todo if KINDS[stage.kind].output == TEXT]
                note(notes_of_texts(texts, store))
            own.planned_all = True
        finally:
            seconds = own.seconds or 0.0
            # Do not add the time of a repeated command on a finished study.
            if worked:
                seconds += time.perf_counter() - began
            own.seconds = round(seconds, 1)
            with folder.alone():
                own.write_study([])
        result = _judged(folder, own, design, store, errors)
        _track_scores([run for run in design.runs if worked & {*run.stages}], store)
        return result


def _track_scores(runs: Iterable[Run], store: StageStore) -> None:
    """Send what was measured of runs to the trackers of their last phases."""
    for run in runs:
        training = run.recipe.links()[-1].training
        numbers = {}
        for stage in run.stages:
            result = store.result(stage)
            if result and KINDS[stage.kind].measures:
                for row in map(Measurement.of, result["measurements"]):
                    # Some trackers accept no other characters in names.
                    place = re.sub(r"[^\w. -]+", "/", row.outcome)
                    numbers[f"score/{place}"] = row.value
        if training.trackers and numbers:
            last = next(reversed(run.tracked_stages), None)
            told = run.tracked(store.own.parent, last)
            step = training.steps + 1
            track_scores(training.trackers, told, numbers, step, new=last is None)


def _require_same_study(
    out: Path, recipe: Recipe, design: Design, users: Sequence[str], *, block: bool
) -> None:
    """Raise an error if the folder has another study, or other processes run another one in it."""
    before = read_json(out / "study.json") or {}
    study = describe(recipe, design)
    if users:
        require_same_inputs(out, before, study, users)
    require_same_study(out, before, study, block=block)


def _judged(
    folder: OutputFolder,
    own: StudyFiles,
    design: Design,
    store: StageStore,
    errors: Mapping[str, str],
) -> Plain:
    """Collect the results of all stages, judge them, and write the files of results and the page.

    Returns:
        The result of ``run_study``.
    """
    from maskwise.report import write_report
    from maskwise.verdict import summarise

    out = folder.out
    recipe = design.recipe
    compared = [run for run in design.runs if run.compared]
    # The page shows masks of the study's first seed only. Other blocks must not replace them.
    shown = compared if recipe.study.first_seed in design.seeds else []
    # A policy that failed in training would fail here, too.
    masked = samples([run for run in shown if _pretrained(run, store)], store)
    of_study = [*design.choices, *failed_searches(design, errors)]
    with folder.alone():
        others = own.others()
        records = collect(design.runs, store, errors, more=[*others.records, *of_study])
        study = own.write_study(records)
        write_lines(out / "records.jsonl", records)
        write_lines(out / "timings.jsonl", [*others.timings, *_timings(design, store)])
        # Only generation tasks produce answers in words.
        answered = _answers(compared, store, others.answers)
        if answered:
            write_lines(out / PREDICTIONS, answered)
        if shown or not (out / "samples.json").is_file():
            write_json(out / "samples.json", masked)
        summary = summarise(records, study)
        write_json(out / "summary.json", summary)
        report = write_report(out, summary=summary)
    failed = [record for record in records if record["kind"] == "failure"]
    failed += _failed_overlaps(design, store, errors)
    result = {**summary, "seconds": study["seconds"], "report": str(report), "failures": failed}
    best = chosen_steps(records)
    return result | {"best": best} if best else result


def _pretrained(run: Run, store: StageStore) -> bool:
    return run.pretrained is not None and store.result(run.pretrained) is not None


def _failed_overlaps(design: Design, store: StageStore, errors: Mapping[str, str]) -> list[Record]:
    """List failures of the stages that look for test items in the training text.

    Such a failure does not invalidate a comparison.
    """
    failed = {}
    for run in design.runs:
        for stage in run.overlaps:
            if store.result(stage) is None:
                failed[stage.name] = failure_of(run, stage, errors)
    return list(failed.values())


def unfinished(plan: Plan, store: StageStore) -> list[Stage]:
    """List the stages of a plan that have no result, or whose damaged files are needed."""
    everything = plan.stages()
    todo = set[str]()
    needed = set[str]()
    # In reverse topological order, a stage is visited before the stages that it needs.
    for stage in reversed(everything):
        missing = store.result(stage) is None
        # Texts are always needed, because the page shows samples of them.
        wanted = KINDS[stage.kind].output == TEXT or stage.name in needed
        if not missing and wanted and store.damage(stage):
            store.unmake(stage)
            missing = True
        if missing:
            todo.add(stage.name)
            needed.update(stage.needs)
    return [stage for stage in everything if stage.name in todo]


def _answers(runs: Iterable[Run], store: StageStore, before: Iterable[Plain]) -> list[Plain]:
    """Collect the answers to the test rows of generation tasks, keyed by arm and seed.

    The answers are only examples for the page, so one fine-tuning run of every checkpoint is read.

    Args:
        before: rows with the answers of other blocks of seeds.
    """
    rows = {_row_key(row): row for row in before}
    for run in runs:
        for stage in run.tasks.values():
            files = sorted(store.folder(stage).glob(f"seed-*/{PREDICTIONS}"))
            if not files:
                continue
            # A stage that failed has answers, but no result.
            measured = (store.result(stage) or {}).get("measurements")
            task = measured[0]["measure"] if measured else ""
            for line in read_lines(files[0]):
                row = {"task": task, "input": line["input"], "gold": line["gold"]}
                row = rows.setdefault(_row_key(row), row | {"answers": {}})
                row["answers"].setdefault(run.arm, {})[str(run.seed)] = line["answer"]
    return list(rows.values())


def _row_key(row: Plain) -> tuple[str, str, str]:
    return row["task"], row["input"], str(row["gold"])


def _timings(design: Design, store: StageStore) -> Iterator[Plain]:
    """Yield the seconds of every finished stage of every run; shared stages are repeated."""
    for purpose, runs in (("main", design.runs), ("choice", design.others)):
        for run in runs:
            for stage in run.stages:
                result = store.result(stage)
                if result:
                    yield {
                        **run.who,
                        "purpose": purpose,
                        "kind": stage.kind,
                        "stage": stage.name,
                        "seconds": result["seconds"],
                    }
