"""The tables of the page: means by task, all scores, evaluations, and the choices of searches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean, stdev

from maskwise.constants import LOWER_IS_BETTER, REFERENCE, accuracy_misleads
from maskwise.estimates import Shown, outcome_label, shown
from maskwise.files import Contrast
from maskwise.report.charts import mean
from maskwise.report.drawing import SLATE, Colours, View
from maskwise.report.reading import Folder, Line

COMMONEST = "commonest answer"


def task_table(folder: Folder) -> View | None:
    """Return mean and SD over runs by arm and task, with the reference and the commonest answer.

    Scores in 0 to 1 are written in per cent; fewer than two runs have no SD.
    """
    columns: dict[str, tuple[str, Mapping[str, Mapping[int, float]]]] = {}
    macro_columns = columns.copy()
    macro = folder.numbers("score", "macro-f1")
    for measure, by_arm in folder.numbers("score").items():
        task, _ = measure
        facts = folder.study["tasks"].get(task, {})
        metric = facts.get("metric") or "score"
        majority = facts.get("majority")
        if majority is not None:
            by_arm[COMMONEST] = {0: majority}
        columns[task] = metric, by_arm
        if macro.get(measure) and accuracy_misleads(metric, majority):
            # The same task twice: a key with a space cannot clash with the name of another task.
            macro_columns[f"{task} "] = "macro-f1", macro[measure]
    if not columns:
        return None
    columns |= macro_columns
    cells = {task: _cells(by_arm, metric) for task, (metric, by_arm) in columns.items()}
    missing = {"mean": "–", "sd": ""}
    rows = []
    for arm in (*folder.arms, REFERENCE, COMMONEST):
        if any(arm in column for column in cells.values()):
            row = {task: column.get(arm, missing) for task, column in cells.items()}
            rows.append({"arm": folder.label(arm), "cells": row})
    return {"tasks": {task: metric for task, (metric, _) in columns.items()}, "rows": rows}


def _cells(by_arm: Mapping[str, Mapping[int, float]], metric: str) -> dict[str, dict[str, str]]:
    runs = {arm: list(by_seed.values()) for arm, by_seed in by_arm.items()}
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


VOID = "#a5a29b"
FORESTS = {
    "tasks": ("On the tasks", "The mean over all tasks."),
    "task": (
        "Task by task",
        "In points of the task's measure. These rows explain a verdict and are not tested.",
    ),
    "left-out": (
        "Tasks that cannot tell",
        "Pre-training does not help on them often enough. The primary outcome leaves them "
        "out, unless no task is left.",
    ),
    "task-nats": (
        "Task by task, in nats",
        "For each token of the right answers, reversed so that right is better.",
    ),
    "evaluation": (
        "Without fine-tuning",
        "Cloze facts and minimal pairs, in points of their measure. No fine-tuning seed adds "
        "its noise here.",
    ),
    "perplexity": (
        "Pseudo-perplexity",
        "Reversed so that right is better; only between arms with equal units.",
    ),
    "bound": (
        "The bound of masked diffusion",
        "Reversed so that right is better; only between arms with equal tokens.",
    ),
    "heldout": (
        "Held-out loss",
        "In nats, reversed so that right is better; only between arms with equal units.",
    ),
}
NOT_COMPARABLE = ("not comparable", "void")
"""Verdicts of rows without an answer; "void" is the word of earlier rules."""


def forest_groups(contrasts: Sequence[Contrast], colours: Colours) -> list[View]:
    """Group contrasts by kind and unit, which share no axis; primary rows come first."""
    common = common_notes(contrasts)
    groups: dict[tuple[str, str], list[Contrast]] = defaultdict(list)
    for row in contrasts:
        groups[_kind_of(row), shown(row).unit].append(row)
    views: list[View] = []
    for wanted in FORESTS:
        for (kind, _), rows in groups.items():
            if kind == wanted:
                views.append(_forest(kind, rows, colours, common))
    # The question comes first, its gate second, and what explains them last.
    return sorted(views, key=lambda view: (not view["asked"], not view["primary"]))


def _kind_of(row: Contrast) -> str:
    kind, _, _ = row["outcome"].partition(":")
    if kind == "evaluation":
        if row["unit"] == "score":
            return "evaluation"
        return "perplexity" if row["unit"] == "perplexity" else "bound"
    if kind in ("tasks", "heldout"):
        return kind
    if any(flag["code"] == "no-help" for flag in row["flags"]):
        return "left-out"
    return "task-nats" if row["unit"] == "nats" else "task"


def _forest(kind: str, contrasts: list[Contrast], colours: Colours, common: Sequence[str]) -> View:
    comparable = [row for row in contrasts if row["verdict"] not in NOT_COMPARABLE]
    others = [row for row in contrasts if row["verdict"] in NOT_COMPARABLE]
    # Rows without an answer must not stretch the axis of the others.
    amounts = [shown(row) for row in comparable or others]
    means = [abs(amount.mean) for amount in amounts if amount.mean is not None]
    ends = [0.0]
    for amount in amounts:
        ends += [abs(end) for end in (amount.low, amount.high) if end is not None]
    # With few runs an interval can be a hundred times the effect, and its ends are cut off.
    largest = max(means, default=0.0)
    widest = min(max(ends), 4 * largest)
    reach = 1.1 * max(widest, largest, 1e-9)
    lines: list[View] = []
    for row in comparable + others:
        line: View = {
            "row": row,
            "label": outcome_label(row["outcome"]),
            "colour": VOID if row in others else colours.get(row["arm"], SLATE),
            "notes": [note for note in _notes(row) if note not in common],
        }
        lines.append({**line, **_places(shown(row), reach)})
    title, note = FORESTS[kind]
    primary = any(row["primary"] for row in contrasts)
    if primary:
        note += " The verdict rests here."
    return {
        "kind": kind,
        "title": title,
        "note": note,
        "primary": primary,
        "asked": any(row["primary"] and "gate" not in row for row in contrasts),
        "rows": lines,
        "unit": amounts[0].unit,
        "reach": f"{reach:.2g}" if means else None,
    }


def _places(amount: Shown, reach: float) -> View:
    """Return where the mean and the ends lie, in per cent of a plot from -reach to reach."""
    places: View = {"drawn": amount.mean is not None}
    ends = {"at": amount.mean, "from": amount.low, "to": amount.high}
    for name, value in ends.items():
        if value is not None:
            part = max(-1.0, min(1.0, value / reach))
            places[name] = round(50 + 50 * part, 2)
            places[f"{name}_cut"] = abs(value) > reach
    places["figure"] = amount.figure()
    if amount.low is not None:
        places["interval"] = amount.ends()
    return places


def _notes(row: Contrast) -> list[str]:
    """Return the notes on a primary row as sentences."""
    if not row["primary"]:
        return []
    notes = []
    for flag in row["flags"]:
        # Invalid rows say why in their sentence, and the page warns of overlap at its top.
        if flag["effect"] == "notes" and flag["code"] != "overlap":
            text = flag["sentence"]
            notes.append(f"{text[:1].upper()}{text[1:]}.")
    return notes


def common_notes(contrasts: Sequence[Contrast]) -> list[str]:
    """Return the notes that all primary contrasts share; the story mentions them once."""
    rows = [row for row in contrasts if row["primary"] and row["verdict"] not in NOT_COMPARABLE]
    if len(rows) < 2:
        return []
    first, *others = [_notes(row) for row in rows]
    return [note for note in first if all(note in notes for notes in others)]
