"""The tables of the page: means by task, all scores, evaluations, and the choices of searches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import chain
from statistics import fmean, stdev

from maskwise.constants import LOWER_IS_BETTER, REFERENCE, accuracy_misleads
from maskwise.report.charts import mean
from maskwise.report.drawing import View
from maskwise.report.reading import Folder, Line

COMMONEST = "commonest answer"


def task_table(folder: Folder) -> View | None:
    """Return mean and SD over runs by arm and task, with the reference and the commonest answer.

    Scores in 0 to 1 are written in per cent; fewer than two runs have no SD.
    """
    columns: dict[str, str] = {}
    macro_columns: dict[str, str] = {}
    cells: dict[str, dict[str, dict[str, str]]] = {}
    macro = folder.numbers("score", "macro-f1")
    for measure, by_arm in folder.numbers("score").items():
        task, _ = measure
        facts = folder.study["tasks"].get(task, {})
        metric = facts.get("metric") or "score"
        majority = facts.get("majority")
        runs = {arm: list(by_seed.values()) for arm, by_seed in by_arm.items()}
        if majority is not None:
            runs[COMMONEST] = [majority]
        columns[task] = metric
        cells[task] = _cells(runs, metric)
        if macro.get(measure) and accuracy_misleads(metric, majority):
            # The same task twice: a key with a space cannot clash with the name of another task.
            runs = {arm: list(by_seed.values()) for arm, by_seed in macro[measure].items()}
            macro_columns[f"{task} "] = "macro-f1"
            cells[f"{task} "] = _cells(runs, "macro-f1")
    if not columns:
        return None
    missing = {"mean": "–", "sd": ""}
    rows = []
    for arm in (*folder.arms, REFERENCE, COMMONEST):
        if any(arm in column for column in cells.values()):
            row = {task: column.get(arm, missing) for task, column in cells.items()}
            rows.append({"arm": folder.label(arm), "cells": row})
    return {"tasks": columns | macro_columns, "rows": rows}


def _cells(runs: Mapping[str, list[float]], metric: str) -> dict[str, dict[str, str]]:
    scale = 1
    digits = 2
    is_share = all(abs(score) <= 1 for score in chain.from_iterable(runs.values()))
    if is_share and metric not in LOWER_IS_BETTER:
        scale = 100
        digits = 1
    cells = {}
    for arm, scores in runs.items():
        sd = ""
        if len(scores) > 1:
            sd = f"{scale * stdev(scores):.{digits}f}"
        cells[arm] = {"mean": f"{scale * fmean(scores):.{digits}f}", "sd": sd}
    return cells


def score_table(folder: Folder) -> list[View]:
    """Return the numbers of the dot charts: runs by seed and their mean, by task and arm."""
    rows: list[View] = []
    for (task, _), by_arm in folder.numbers("score").items():
        for arm in (*folder.arms, REFERENCE):
            if arm in by_arm:
                runs = by_arm[arm]
                rows.append({"task": task, "arm": arm, "runs": runs, "mean": fmean(runs.values())})
    return rows


def evaluation_table(folder: Folder) -> View:
    """Return the means over runs of every measure that needs no fine-tuning."""
    rows: list[View] = []
    known: set[str] = set()
    facts_of: dict[tuple[str, str], Line] = {}
    for line in folder.of_kind("evaluation"):
        facts_of.setdefault((line["name"], line["metric"]), line)
    for measure, by_arm in folder.numbers("evaluation").items():
        facts = facts_of[measure]
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
    """Return what searches chose for each arm; arms with the same grid share a table.

    There is a search per seed; in older studies there is one for all seeds.
    """
    searches: dict[str, list[Line]] = defaultdict(list)
    for line in folder.records:
        if line["kind"] == "selection":
            searches[line["arm"]].append(line)
    tables: dict[tuple[str, ...], list[View]] = defaultdict(list)
    for arm, lines in searches.items():
        scores: dict[str, list[float]] = {}
        times_chosen: Counter[str] = Counter()
        for line in lines:
            if line["chosen"]:
                times_chosen[_setting(line["chosen"])] += 1
            for point in line["candidates"]:
                known = scores.setdefault(_setting(point["setting"]), [])
                # Older searches have means over seeds.
                score = point.get("score", point.get("mean"))
                if score is not None:
                    known.append(score)
        candidates = [
            {"setting": setting, "mean": mean(known), "chosen": times_chosen[setting]}
            for setting, known in scores.items()
        ]
        view: View = {"arm": arm, "by": lines[0]["by"], "searches": len(lines)}
        tables[tuple(scores)].append({**view, "candidates": candidates})
    return list(tables.values())


def _setting(setting: Mapping[str, object]) -> str:
    """Write a setting as "learning_rate 0.006", without the section of the recipe."""
    parts = []
    for key, value in setting.items():
        _, _, name = key.rpartition(".")
        parts.append(f"{name} {value}")
    return ", ".join(parts)
