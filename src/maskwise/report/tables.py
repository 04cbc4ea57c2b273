"""The tables of the page that are no charts: evaluations, choices, compute, warnings. Plain data for the template."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from maskwise.report.charts import whole_runs
from maskwise.report.drawing import choice_chart
from maskwise.report.forest import outcome_label
from maskwise.report.reading import REFERENCE, Folder, finite

QUANTITIES = ("steps", "tokens", "targets", "flops", "seconds")


def evaluation_table(folder: Folder) -> dict[str, Any]:
    """{"arms", "rows": [{"name", "metric", "chance", "items", "lower", "values": by arm}]}: means over runs."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in whole_runs(folder):
        if record["kind"] == "evaluation" and finite(record.get("value")):
            key = str(record.get("name")), str(record.get("metric"))
            lower = not record.get("higher_is_better", True)
            facts = {"chance": record.get("chance"), "items": record.get("items"), "lower": lower}
            row = found.setdefault(key, {"name": key[0], "metric": key[1], **facts, "runs": {}})
            row["runs"].setdefault(record["arm"], []).append(record["value"])
    rows = [
        row | {"values": {arm: sum(values) / len(values) for arm, values in row["runs"].items()}}
        for row in found.values()
    ]
    arms = [arm for arm in (*folder.arms, REFERENCE) if any(arm in row["values"] for row in rows)]
    return {"arms": arms, "rows": rows}


def task_table(folder: Folder) -> dict[str, Any] | None:
    """{"tasks": metrics by name, "rows": [{"arm", "cells": by task}]}; cells: {"mean", "sd"}.

    Scores in 0 to 1 are written in per cent; `sd` is that of the runs, empty for fewer than two.
    """
    runs: dict[str, dict[str, list[float]]] = {}
    for r in whole_runs(folder):
        if r["kind"] == "score" and finite(r.get("score")):
            runs.setdefault(str(r["arm"]), {}).setdefault(str(r.get("task")), []).append(r["score"])
    tasks = list(dict.fromkeys(task for mine in runs.values() for task in mine))
    known, facts = folder.summary.get("references") or {}, folder.study.get("tasks") or {}
    commonest = {t: (known.get(t) or {}).get("majority", (facts.get(t) or {}).get("majority")) for t in tasks}
    lines = {
        folder.reference if arm == REFERENCE else arm: runs.get(arm) for arm in (*folder.arms, REFERENCE)
    }
    lines["commonest answer"] = {
        t: [float(value)] for t, value in commonest.items() if value is not None and finite(value)
    }
    top = {t: max(abs(x) for mine in runs.values() for x in mine.get(t, [0])) for t in tasks}
    rows = [
        {
            "arm": arm,
            "cells": {t: _cell(mine.get(t, []), percent=top[t] <= 1) for t in tasks},
        }
        for arm, mine in lines.items()
        if mine
    ]
    metrics = {t: str((facts.get(t) or {}).get("metric") or "score") for t in tasks}
    return {"tasks": metrics, "rows": rows} if tasks else None


def _cell(values: list[float], *, percent: bool) -> dict[str, str]:
    scale, digits = (100, 1) if percent else (1, 2)
    middle = f"{scale * mean(values):.{digits}f}" if values else "–"
    return {"mean": middle, "sd": f"{scale * stdev(values):.{digits}f}" if len(values) > 1 else ""}


def choices(folder: Folder) -> list[dict[str, Any]]:
    """What the search chose for each arm, and what it chose from."""
    found = []
    for record in folder.records:
        if record["kind"] == "selection":
            candidates = [
                {
                    "setting": setting_words(one.get("setting")),
                    "mean": one.get("mean"),
                    "chosen": one.get("setting") == record.get("chosen"),
                }
                for one in record.get("candidates") or []
                if isinstance(one, dict)
            ]
            line = {
                "arm": record["arm"],
                "chosen": setting_words(record.get("chosen")),
                "candidates": candidates,
            }
            line |= {
                "border": record.get("border"),
                "by": record.get("by"),
                "seeds": record.get("seeds") or [],
            }
            found.append(line)
    return found


def setting_words(setting: Any) -> str | None:
    """training.learning_rate: 0.006 → "learning_rate 0.006"."""
    if not isinstance(setting, dict):
        return None
    return ", ".join(f"{str(key).rsplit('.', 1)[-1]} {value}" for key, value in setting.items())


def warnings(folder: Folder) -> list[str]:
    """Overlaps with test sets, and arms that were stopped with the bias that this brings."""
    found = []
    for record in folder.records:
        if record["kind"] == "overlap" and record.get("overlapping"):
            found.append(
                f"{record['overlapping']:,} of {record.get('items', 0):,} test items of {record.get('task')} stand in"
                f" the corpus ({record.get('corpus')}): their scores may be memory."
            )
        elif record["kind"] == "stopped":
            found.append(_stopped(record))
    stopped = any(record["kind"] == "stopped" for record in folder.records)
    return found + ([str(folder.study["stopping"])] if stopped and folder.study.get("stopping") else [])


def _stopped(record: dict[str, Any]) -> str:
    """Who was dropped, after how many runs, and how far behind whom it was."""
    told = f"{record['arm']} was dropped after {record.get('runs')} runs"
    if finite(record.get("mean")):
        told += f": {abs(record['mean']):.1f} spreads between runs behind {record.get('best')}"
    return told + "."


def compute_view(folder: Folder, colours: dict[str, str]) -> dict[str, Any] | None:
    """The chart of quality against compute, and the rows of time-to-quality; None where no cost was recorded."""
    known = folder.summary.get("efficiency") or {}
    seconds = _seconds(folder)
    rows, measures = [], {}
    for point in known.get("points") or []:
        place = {key: point[key] for key in ("arm", "seed", "fraction", *QUANTITIES) if key in point}
        spent = seconds.get((point["arm"], point["seed"], point["fraction"]))
        place |= {"seconds": spent} if spent else {}
        for name, value in point["values"].items():
            label = outcome_label(name) + (" loss" if name.startswith("heldout:") else "")
            measures[label] = True
            if point["arm"] in colours and finite(value):
                rows.append(place | {"measure": label, "value": value})
    quantities = [name for name in QUANTITIES if any(name in row for row in rows)]
    if not rows or not quantities:
        return None
    spec = choice_chart(rows, colours, measures=list(measures), quantities=quantities)
    found = {"spec": spec, "companions": any(row["fraction"] < 1 for row in rows), "times": _times(known)}
    alone = {outcome_label(r["outcome"]): r["by_itself"] for r in known.get("time_to_quality") or []}
    return found | {"alone": alone}


def _times(known: dict[str, Any]) -> list[dict[str, Any]]:
    """One line per pair and outcome; by quantity the share, its interval and what was not reached."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in known.get("time_to_quality") or []:
        key = row["arm"], row["baseline"], row["outcome"]
        line = lines.setdefault(
            key, {"arm": key[0], "baseline": key[1], "outcome": outcome_label(key[2]), "by": {}}
        )
        line["by"][row["by"]] = row
        if row["by"] == "steps":
            line["sentence"] = row["sentence"]
    return list(lines.values())


def _seconds(folder: Folder) -> dict[tuple[str, int, float], float]:
    """Of pre-training, by arm, seed and length: every training stage of the run."""
    found: dict[tuple[str, int, float], float] = {}
    for line in folder.timings:
        if (
            line.get("kind") == "pretrain"
            and line.get("phase", "main") == "main"
            and finite(line.get("seconds"))
        ):
            key = str(line.get("arm")), int(line.get("seed", 0)), float(line.get("fraction", 1.0))
            found[key] = found.get(key, 0.0) + line["seconds"]
    return found
