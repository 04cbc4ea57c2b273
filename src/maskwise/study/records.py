"""From the results of stages to ``records.jsonl``: every number measured, in a fixed order, without timings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskwise.study.plan import Run

KEPT = {
    "score": ("task", "metric", "score", "fine_tuning", "dev"),
    "cost": ("steps", "tokens", "targets", "flops"),
}


def collect(
    runs: Iterable[Run], stages: Path, errors: Mapping[str, str], *, more: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The records of runs, and ``more`` of the study itself, sorted.

    Args:
        runs: those to be reported.
        stages: the folder of all stages.
        errors: why stages failed, by name.
    """
    records, overlaps = list(more), dict[str, dict[str, Any]]()
    for run in runs:
        results = {stage.name: stage.result(stages) for stage in run.stages}
        for stage in run.overlaps:  # of texts and tasks: once, however many runs share them
            if found := results.pop(stage.name):
                overlaps[stage.name] = found["record"]
        failed = next((name for name, result in results.items() if result is None), None)
        if failed:
            error = errors.get(failed, "not finished")
            records.append({"kind": "failure", **run.who, "stage": failed, "error": error})
        done = [result for stage in run.trainings if (result := results[stage.name])]
        if done and len(done) == len(run.trainings):
            spent: dict[str, Any] = {key: sum(result[key] for result in done) for key in KEPT["cost"]}
            if any("objectives" in result for result in done):
                spent["probe_flops"] = sum(result.get("probe_flops", 0) for result in done)
                spent["objectives"] = _steps_by_objective(done)
            records.append({"kind": "cost", **run.who, **spent})
        evaluated = results[run.evaluated.name] if run.evaluated else None
        judged = {run.evaluated.name: evaluated["records"]} if run.evaluated and evaluated else {}
        for stage in run.tasks.values():
            if found := results[stage.name]:
                judged[stage.name] = [{"kind": "score", **{key: found[key] for key in KEPT["score"]}}]
        for name, lines in judged.items():
            sound = [line for line in lines if _finite(line)]
            records += [{"kind": line["kind"], **run.who, **line} for line in sound]
            if len(sound) < len(lines):
                error = "a score or loss is not a finite number: the training or fine-tuning diverged"
                records.append({"kind": "failure", **run.who, "stage": name, "error": error})
    return sorted([*records, *overlaps.values()], key=_place)


def _finite(record: Mapping[str, Any]) -> bool:
    """Whether all that was measured is a number, also of each fine-tuning."""
    single = (record.get(key) for key in ("score", "loss", "value"))
    values = [*single, *record.get("fine_tuning", ()), *record.get("dev", ())]
    return all(math.isfinite(value) for value in values if value is not None)


def _steps_by_objective(done: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Over the trainings of a run that chose among objectives."""
    steps: Counter[str] = Counter()
    for result in done:
        for name, mine in result.get("objectives", {}).items():
            steps[name] += mine["steps"]
    return dict(steps)


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    what = record.get("task") or record.get("masks") or record.get("name") or ""
    detail = record.get("metric", ""), record.get("ratio", 0.0), record.get("corpus", "")
    who = record.get("arm", ""), record.get("seed", -1), -record.get("fraction", 1.0)
    return record["kind"], *who, what, *detail
