"""The tables of the page: means by task, every score, what needs no fine-tuning, and what searches
chose from.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import stdev

from maskwise.constants import LOWER_IS_BETTER, REFERENCE, accuracy_misleads
from maskwise.files import Record
from maskwise.report.charts import mean
from maskwise.report.drawing import View
from maskwise.report.reading import Folder

COMMONEST = "commonest answer"


def task_table(folder: Folder) -> View | None:
    """Means over runs and their SD by arm and task, with the reference and the commonest answer.

    Scores in 0 to 1 are written in per cent; fewer than two runs have no SD.
    """
    columns: dict[str, tuple[str, dict[str, list[float]]]] = {}
    further: dict[str, tuple[str, dict[str, list[float]]]] = {}
    macro = folder.numbers("score", "macro-f1")
    for measure, by_arm in folder.numbers("score").items():
        task = measure[0]
        facts = folder.study["tasks"].get(task, {})
        metric, majority = facts.get("metric"), facts.get("majority")
        runs = {arm: list(by_seed.values()) for arm, by_seed in by_arm.items()}
        if majority is not None:
            runs[COMMONEST] = [majority]
        columns[task] = metric or "score", runs
        beside = macro.get(measure)
        if beside and accuracy_misleads(metric, majority):
            further[f"{task} "] = (
                "macro-f1",
                {arm: list(by_seed.values()) for arm, by_seed in beside.items()},
            )
    columns |= further
    rows = []
    for arm in (*folder.arms, REFERENCE, COMMONEST):
        cells = {
            name: _cell(runs.get(arm, []), percent=_percent(*columns[name]))
            for name, (_, runs) in columns.items()
        }
        if any(arm in runs for _, runs in columns.values()):
            rows.append({"arm": folder.reference if arm == REFERENCE else arm, "cells": cells})
    return (
        {"tasks": {name: metric for name, (metric, _) in columns.items()}, "rows": rows}
        if columns
        else None
    )


def _percent(metric: str, runs: Mapping[str, list[float]]) -> bool:
    """Whether the scores of a task are shares."""
    return metric not in LOWER_IS_BETTER and all(
        abs(x) <= 1 for scores in runs.values() for x in scores
    )


def _cell(values: list[float], *, percent: bool) -> dict[str, str]:
    scale, digits = (100, 1) if percent else (1, 2)
    middle = f"{scale * (mean(values) or 0):.{digits}f}" if values else "–"
    return {"mean": middle, "sd": f"{scale * stdev(values):.{digits}f}" if len(values) > 1 else ""}


def score_table(folder: Folder) -> list[View]:
    """Every number behind the dots: by task and arm the runs by seed, and their mean."""
    return [
        {"task": task, "arm": arm, "runs": by_arm[arm], "mean": mean([*by_arm[arm].values()])}
        for (task, _), by_arm in folder.numbers("score").items()
        for arm in (*folder.arms, REFERENCE)
        if arm in by_arm
    ]


def evaluation_table(folder: Folder) -> View:
    """What needs no fine-tuning, by measure: means over runs, chance, items, and whether lower is
    better.
    """
    numbers = folder.numbers("evaluation")
    first: dict[tuple[str, str], Record] = {}
    for record in folder.whole:
        if record["kind"] == "evaluation":
            first.setdefault((record["name"], record["metric"]), record)
    rows: list[View] = []
    for (name, metric), by_arm in numbers.items():
        facts = first[name, metric]
        rows.append(
            {
                "name": name,
                "metric": metric,
                "chance": facts.get("chance"),
                "items": facts.get("items"),
                "lower": not facts.get("higher_is_better", True),
                "means": {arm: mean([*by_seed.values()]) for arm, by_seed in by_arm.items()},
            }
        )
    arms = [
        arm
        for arm in (*folder.arms, REFERENCE)
        if any(arm in by_arm for by_arm in numbers.values())
    ]
    return {"arms": arms, "rows": rows}


def choices(folder: Folder) -> list[list[View]]:
    """What searches chose for each arm, and what from; arms that had the same to choose from
    together.

    One search for each replicate, or, in older studies, one for all of them.
    """
    tables: dict[tuple[str, ...], list[View]] = {}
    lines = [record for record in folder.records if record["kind"] == "selection"]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = [line for line in lines if line["arm"] == arm]
        points = [_setting(point["setting"]) for point in own[0]["candidates"]]
        chosen = [_setting(line["chosen"]) for line in own if line["chosen"]]
        candidates: list[View] = []
        for place, setting in enumerate(points):
            scores = [
                line["candidates"][place].get("score", line["candidates"][place].get("mean"))
                for line in own
            ]
            known = [score for score in scores if score is not None]
            candidates.append(
                {"setting": setting, "mean": mean(known), "chosen": chosen.count(setting)}
            )
        view: View = {
            "arm": arm,
            "by": own[0]["by"],
            "searches": len(own),
            "candidates": candidates,
        }
        tables.setdefault(tuple(points), []).append(view)
    return list(tables.values())


def _setting(setting: Mapping[str, object]) -> str:
    """training.learning_rate: 0.006 → "learning_rate 0.006"."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in setting.items())
