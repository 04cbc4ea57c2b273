"""The tables of the page: means by task, every score, evaluations, and the choices of searches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from statistics import fmean, stdev

from maskwise.constants import LOWER_IS_BETTER, REFERENCE, accuracy_misleads
from maskwise.report.drawing import View
from maskwise.report.reading import Folder

COMMONEST = "commonest answer"


def task_table(folder: Folder) -> View | None:
    """Means over runs and their SD by arm and task, with the reference and the commonest answer.

    Scores in 0 to 1 are written in per cent; fewer than two runs have no SD.
    """
    columns: dict[str, str] = {}
    further: dict[str, str] = {}
    cells: dict[str, dict[str, dict[str, str]]] = {}
    macro = folder.numbers("score", "macro-f1")
    for measure, by_arm in folder.numbers("score").items():
        task = measure[0]
        facts = folder.study["tasks"].get(task, {})
        columns[task] = facts.get("metric") or "score"
        majority = facts.get("majority")
        runs = {arm: list(by_seed.values()) for arm, by_seed in by_arm.items()}
        if majority is not None:
            runs[COMMONEST] = [majority]
        cells[task] = _cells(runs, columns[task])
        if macro.get(measure) and accuracy_misleads(columns[task], majority):
            further[f"{task} "] = "macro-f1"
            others = {arm: list(by_seed.values()) for arm, by_seed in macro[measure].items()}
            cells[f"{task} "] = _cells(others, "macro-f1")
    if not columns:
        return None
    missing = {"mean": "–", "sd": ""}
    rows = []
    for arm in (*folder.arms, REFERENCE, COMMONEST):
        if any(arm in column for column in cells.values()):
            name = folder.reference if arm == REFERENCE else arm
            row = {task: column.get(arm, missing) for task, column in cells.items()}
            rows.append({"arm": name, "cells": row})
    return {"tasks": columns | further, "rows": rows}


def _cells(runs: Mapping[str, list[float]], metric: str) -> dict[str, dict[str, str]]:
    scores = chain.from_iterable(runs.values())
    percent = metric not in LOWER_IS_BETTER and all(abs(score) <= 1 for score in scores)
    scale, digits = (100, 1) if percent else (1, 2)
    cells = {}
    for arm, own in runs.items():
        sd = f"{scale * stdev(own):.{digits}f}" if len(own) > 1 else ""
        cells[arm] = {"mean": f"{scale * fmean(own):.{digits}f}", "sd": sd}
    return cells


def score_table(folder: Folder) -> list[View]:
    """Every number of the dot charts: by task and arm the runs by seed, and their mean."""
    return [
        {"task": task, "arm": arm, "runs": by_arm[arm], "mean": fmean(by_arm[arm].values())}
        for (task, _), by_arm in folder.numbers("score").items()
        for arm in (*folder.arms, REFERENCE)
        if arm in by_arm
    ]


def evaluation_table(folder: Folder) -> View:
    """By measure that needs no fine-tuning: means over runs, chance, items and direction."""
    rows: list[View] = []
    known: set[str] = set()
    first = {(line["name"], line["metric"]): line for line in folder.of_kind("evaluation")[::-1]}
    for measure, by_arm in folder.numbers("evaluation").items():
        facts = first[measure]
        known |= by_arm.keys()
        rows.append(
            {
                "name": facts["name"],
                "metric": facts["metric"],
                "chance": facts.get("chance"),
                "items": facts.get("items"),
                "lower": not facts.get("higher_is_better", True),
                "means": {arm: fmean(by_seed.values()) for arm, by_seed in by_arm.items()},
            }
        )
    return {"arms": [arm for arm in (*folder.arms, REFERENCE) if arm in known], "rows": rows}


def choices(folder: Folder) -> list[list[View]]:
    """What searches chose for each arm; arms with the same grid share a table.

    There is one search for each seed, or, in older studies, one for all of them.
    """
    tables: dict[tuple[str, ...], list[View]] = {}
    lines = [line for line in folder.records if line["kind"] == "selection"]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = [line for line in lines if line["arm"] == arm]
        scores: dict[str, list[float]] = {}
        for line in own:
            for point in line["candidates"]:
                score = point.get("score", point.get("mean"))
                known = scores.setdefault(_setting(point["setting"]), [])
                known += [] if score is None else [score]
        chosen = [_setting(line["chosen"]) for line in own if line["chosen"]]
        candidates = [
            {
                "setting": setting,
                "mean": fmean(known) if known else None,
                "chosen": chosen.count(setting),
            }
            for setting, known in scores.items()
        ]
        view: View = {"arm": arm, "by": own[0]["by"], "searches": len(own)}
        tables.setdefault(tuple(scores), []).append({**view, "candidates": candidates})
    return list(tables.values())


def _setting(setting: Mapping[str, object]) -> str:
    """training.learning_rate: 0.006 → "learning_rate 0.006"."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in setting.items())
