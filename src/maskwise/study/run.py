"""Run a study: do the stages that are not done, then write records, verdicts and the page.

Interrupt it however you like; the same command goes on. One failing run is reported and takes no
other down.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.files import Record
from maskwise.folders import claim, read_lines, write_json, write_lines
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import LOCK, check_study, notes_of_texts, say, shared_folder
from maskwise.study.description import (
    Others,
    describe,
    others_of,
    pending,
    require_same_recipe,
    so_far,
    with_runs_of,
)
from maskwise.study.design import Design
from maskwise.study.plan import Plan, Run
from maskwise.study.scheduler import RETRIES, execute
from maskwise.study.shown import masked_records, samples
from maskwise.study.stages import DONE, Stage
from maskwise.tasks.judge import PREDICTIONS


class Result(dict[str, Any]):
    """summary.json of a study with ``seconds``, ``report`` and ``failures``; a notebook shows its
    verdicts.
    """

    def _repr_html_(self) -> str:
        rows = [row for row in self["contrasts"] if row["primary"]]
        found = "".join(
            f"<li><b>{escape(row['verdict'])}</b> {escape(row['brief'])}</li>" for row in rows
        )
        page = f"<p>The page: <code>{escape(self['report'])}</code></p>"
        return f"<div><p><b>{escape(self['headline'])}</b></p><ul>{found}</ul>{page}</div>"


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
) -> Result:
    """Run every arm and seed of a recipe, compare them, write the report.

    Args:
        recipe: one with arms.
        out: the study's folder; a study that is there is resumed.
        jobs: stages at once; None: as many as there are cores.
        quiet: no live table.
        engine: where stages run: local or ray.
        retries: how often a stage is tried again whose failure may pass.
        cache: a folder where stages are shared with other studies.
        seeds: run only these of ``study.seeds``, and keep the records of others that are in
            ``out``. There are no verdicts before all seeds of the study have run.

    Returns:
        summary.json as a dict, with ``seconds``, ``report`` and ``failures`` (records of runs that
        failed).

    Raises:
        MaskwiseError: bad input, before anything is written.
    """
    # Imported here because workers import this module too, and need neither scipy nor altair: 1.5 s
    # each.
    from maskwise.report import write_report
    from maskwise.study.prospects import prospect_lines, prospects_of
    from maskwise.study.verdict import primary_pairs, summarise

    began = time.perf_counter()
    block, notes = check_study(recipe, out, engine=engine, seeds=seeds)
    stages, new = out / "stages", not out.is_dir() or not any(out.iterdir())
    shared = shared_folder(recipe, cache)
    design = Design(recipe, stages, seeds=block)
    study = describe(recipe, design)
    if seeds is not None:
        require_same_recipe(out, study)
    primary_pairs(study)
    say(() if quiet else [*notes, *prospect_lines(prospects_of(recipe, out))])
    errors: dict[str, str] = {}
    with claim(stages, "another study is running in", lock=LOCK):
        before = so_far(out, study)
        others = Others()
        if seeds is not None:
            others = others_of(out, design)
            before["pending"] = pending(study, others.records)
            for line in others.records:  # arms are described by what all seeds chose
                if line["kind"] == "selection" and line["chosen"]:
                    design.chosen[line["arm"], line["search_seed"]] = line["chosen"]
        worked = False
        try:
            for plan in design.plans():
                link_shared(plan.stages(), stages, shared)
                todo = unfinished(plan, stages)
                worked = worked or bool(todo)
                study = with_runs_of(others, describe(recipe, design) | before)
                write_json(out / "study.json", study)
                errors |= execute(
                    todo, stages, plan, jobs=jobs, quiet=quiet, engine=engine, retries=retries
                )
                say(
                    ()
                    if quiet
                    else notes_of_texts((s for s in todo if s.kind == "prepare"), stages)
                )
        except MaskwiseError:  # a text cannot be prepared
            if new and not any(stages.glob(f"*/{DONE}")):  # and there is nothing worth keeping
                shutil.rmtree(out)
            raise
        finally:
            if out.exists():
                # everything may have been done before
                spent = time.perf_counter() - began if worked else 0.0
                before["seconds"] = round((before["seconds"] or 0.0) + spent, 1)
                write_json(out / "study.json", study | before)
        design.plan_costs()
        # Masks are shown and counted with the study's first seed, whichever block of seeds runs
        # first.
        compared = [run for run in design.runs if run.compared]
        shown = compared if recipe.study.seed_list[0] in block else []
        of_study = [*others.records, *design.choices, *failed_searches(design, errors)]
        of_study += masked_records(recipe, shown, stages)
        records = collect(design.runs, stages, errors, more=of_study)
        study = with_runs_of(others, describe(recipe, design) | before)
        study["pending"] = pending(study, records)
        if not study["pending"]:
            del study["pending"]
        write_json(out / "study.json", study)
        write_lines(out / "records.jsonl", records)
        write_lines(out / "timings.jsonl", [*others.timings, *timings(design, stages)])
        answered = answers(compared, stages, others.answers)
        if answered:
            write_lines(out / PREDICTIONS, answered)
        if shown or not (out / "samples.json").is_file():
            write_json(out / "samples.json", samples(shown, stages))
        summary = summarise(records, study)
        write_json(out / "summary.json", summary)
        report = write_report(out)
    failed = [record for record in records if record["kind"] == "failure"]
    searched = {stage.name: (stage, run.who) for run in design.runs for stage in run.overlaps}
    for name, (stage, who) in searched.items():
        if stage.result(stages) is None:  # which voids no comparison, and so is no record
            failed.append(
                {"kind": "failure", **who, "stage": name, "error": errors.get(name, "not finished")}
            )
    return Result(
        {**summary, "seconds": study["seconds"], "report": str(report), "failures": failed}
    )


def unfinished(plan: Plan, stages: Path) -> list[Stage]:
    """The stages to do: those without a result, and those whose kept files are needed and damaged.

    Texts are always needed, for the samples of the page; checkpoints are by stages that are still
    to do.
    """
    everything = plan.stages()
    todo = {stage.name for stage in everything if stage.result(stages) is None}
    needed = {need for stage in everything if stage.name in todo for need in stage.needs}
    for stage in reversed(everything):  # those that need others come behind them
        wanted = stage.kind == "prepare" or stage.name in needed
        if stage.name not in todo and wanted and stage.damage(stages):
            (stage.folder(stages) / DONE).unlink()
            todo.add(stage.name)
            needed |= set(stage.needs)
    return [stage for stage in everything if stage.name in todo]


def link_shared(wanted: Iterable[Stage], stages: Path, shared: Path | None) -> None:
    """Put links to the shared folders of stages into the study's own. A stage that is here already
    stays here.
    """
    for stage in wanted if shared else ():
        assert shared is not None
        if not stage.folder(stages).is_dir():
            stage.folder(shared).mkdir(parents=True, exist_ok=True)
            stage.folder(stages).unlink(missing_ok=True)  # a link to nowhere
            stage.folder(stages).symlink_to(stage.folder(shared), target_is_directory=True)


# Records
# -------------------------------------------------------------------------------------------------------


def collect(
    runs: Iterable[Run], stages: Path, errors: Mapping[str, str], *, more: Iterable[Record] = ()
) -> list[Record]:
    """From the results of stages to records: every number measured, in a fixed order, without
    timings.

    Args:
        runs: those to be reported.
        stages: the folder of all stages.
        errors: why stages failed, by name.
        more: records of the study itself.
    """
    records, overlaps = list(more), dict[str, Record]()
    for run in runs:
        results = {stage.name: stage.result(stages) for stage in run.stages}
        for stage in run.overlaps:  # a text and a task are one record, however many runs share them
            if result := results.pop(stage.name):
                overlaps[stage.name] = result["record"]
                if "coverage" in result:
                    overlaps[f"{stage.name} coverage"] = result["coverage"]
        failed = next((name for name, result in results.items() if result is None), None)
        if failed:
            error = errors.get(failed, "not finished")
            records.append({"kind": "failure", **run.who, "stage": failed, "error": error})
        done = [result for stage in run.trainings if (result := results[stage.name])]
        if done and len(done) == len(run.trainings):
            records.append({"kind": "cost", **run.who, **_spent(done)})
        learned = [
            result
            for stage in run.stages
            if stage.kind == "learn" and (result := results[stage.name])
        ]
        records += [{"kind": "policy", **run.who, **_learned(result)} for result in learned]
        judged: dict[str, list[Record]] = {}
        if run.evaluated and (result := results[run.evaluated.name]):
            judged[run.evaluated.name] = result["records"]
        for stage in run.tasks.values():
            if result := results[stage.name]:
                kept = ["task", "metric", "score", "fine_tuning", "dev", "others"]
                if "item_sd" in result:
                    kept += ["majority", "interval", "item_sd"]
                kept.append("item_error")
                score: Any = {
                    "kind": "score",
                    **{key: result[key] for key in kept if key in result},
                }
                judged[stage.name] = [score]
        for name, lines in judged.items():
            sound = [line for line in lines if _finite(line)]
            records += [{"kind": line["kind"], **run.who, **line} for line in sound]
            if len(sound) < len(lines):
                error = (
                    "a score or loss is not a finite number: the training or fine-tuning diverged"
                )
                records.append({"kind": "failure", **run.who, "stage": name, "error": error})
    # A text that runs of another block share has its records from there already.
    each = {json.dumps(record, sort_keys=True): record for record in [*records, *overlaps.values()]}
    return [each[text] for text in sorted(each, key=lambda text: (_place(each[text]), text))]


def failed_searches(design: Design, errors: Mapping[str, str]) -> list[Record]:
    """The runs that are missing because every point of their search failed."""
    records: list[Record] = []
    for (arm, seed), trials in design.failed.items():
        names = [stage.name for run in trials for stage in run.stages]
        reasons = [errors[name] for name in names if name in errors]
        error = f"no point of its search succeeded: {reasons[0] if reasons else 'no finite score'}"
        judged = design.recipe.study.judged_seeds[seed]
        records.append(
            {"kind": "failure", "arm": arm, "seed": judged, "stage": "search", "error": error}
        )
    return records


def _finite(record: Record) -> bool:
    """Whether all that was measured is a number; None stands for one that was not
    (``work.finite``).

    A dev score may be None: a task without dev rows has none.
    """
    measured: list[float | None] = [
        record[key] for key in ("score", "loss", "value") if key in record
    ]
    measured += record.get("fine_tuning", [])
    measured += [value for value in record.get("dev", []) if value is not None]
    return all(value is not None and math.isfinite(value) for value in measured)


def _learned(result: Plain) -> Record:
    """How the learning of a policy went, and how much of its weight lies on answers, in texts not
    learned from.
    """
    kept = ("method", "gain", "best_step", "stopped", "overshoot", "tries")
    found = result.get("held_out") or {}
    facts: Any = {key: result[key] for key in kept if result.get(key) is not None}
    return facts | {
        key: found[key] for key in ("weight_on_labels", "labelled_words") if key in found
    }


def _spent(done: Iterable[Plain]) -> Record:
    """What the trainings of a run spent together."""
    spent: Counter[str] = Counter()
    objectives: Counter[str] = Counter()
    for result in done:
        spent.update({key: result[key] for key in ("steps", "tokens", "targets", "flops")})
        if "objectives" in result:
            spent["probe_flops"] += result["probe_flops"]
            objectives.update(
                {name: facts["steps"] for name, facts in result["objectives"].items()}
            )
    total: Any = {**spent, **({"objectives": dict(objectives)} if objectives else {})}
    return total


def _place(record: Record) -> tuple[str | float, ...]:
    what = record.get("task") or record.get("masks") or record.get("name") or ""
    detail = record.get("metric", ""), record.get("ratio", 0.0), record.get("corpus", "")
    who = record.get("arm", ""), record.get("seed", -1), -record.get("fraction", 1.0)
    return record["kind"], *who, what, *detail


def answers(runs: Iterable[Run], stages: Path, before: Iterable[Plain] = ()) -> list[Plain]:
    """What was written for every test row of the tasks whose answers are written, side by side: by
    arm and seed, of the first fine-tuning.

    Args:
        before: the rows of other seeds.
    """
    rows: dict[tuple[str, str, str], Plain] = {}
    for row in before:
        rows[row["task"], row["input"], str(row["gold"])] = row
    for run in runs:
        for stage in run.tasks.values():
            task = (stage.result(stages) or {}).get("task", "")
            file = min(stage.folder(stages).glob(f"seed-*/{PREDICTIONS}"), default=None)
            for line in read_lines(file) if file else ():
                row = {"task": task, "input": line["input"], "gold": line["gold"], "answers": {}}
                row = rows.setdefault((task, line["input"], str(line["gold"])), row)
                row["answers"].setdefault(run.arm, {})[str(run.seed)] = line["answer"]
    return list(rows.values())


def timings(design: Design, stages: Path) -> list[Plain]:
    """Seconds of every stage, once for every run that stands on it."""
    lines = []
    for purpose, runs in (("main", design.runs), ("choice", design.others)):
        for run in runs:
            for stage in run.stages:
                if result := stage.result(stages):
                    facts = {"purpose": purpose, "kind": stage.kind, "stage": stage.name}
                    lines.append(
                        {**run.who, "fraction": run.fraction, **facts, "seconds": result["seconds"]}
                    )
    return lines
