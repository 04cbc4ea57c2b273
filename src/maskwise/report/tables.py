"""The tables and forest plots of the page, and the page that compares two studies.

The template draws forest plots as SVG, so they print and need no script. Runs of different studies
are not paired, so nothing is tested across them: their page (``maskwise report DIR DIR2``) lists
means and spreads, and the settings that differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from maskwise.constants import LOWER_IS_BETTER, REFERENCE, accuracy_misleads
from maskwise.errors import MaskwiseError
from maskwise.estimates import Shown, outcome_label, shown
from maskwise.files import Contrast
from maskwise.folders import write_whole
from maskwise.report.charts import mean
from maskwise.report.drawing import SLATE, Colours, View, environment
from maskwise.report.reading import Folder, Line, read_folder

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
        tables[tuple(scores)].append(
            {
                "arm": arm,
                "by": lines[0]["by"],
                "searches": len(lines),
                "candidates": candidates,
            }
        )
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
        lines.append(
            {
                "row": row,
                "label": outcome_label(row["outcome"]),
                "colour": VOID if row in others else colours.get(row["arm"], SLATE),
                "notes": [note for note in _notes(row) if note not in common],
                **_places(shown(row), reach),
            }
        )
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
            places[name] = round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2)
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


MOST_DIFFERENCES = 60


class Cell(TypedDict):
    """The runs of an arm in an outcome, their mean and standard deviation (None for one run)."""

    runs: int
    mean: float
    sd: float | None


class Comparison(TypedDict):
    """Two studies: their headlines, the settings that differ, and all outcomes by arm."""

    studies: list[View]
    differences: list[View]
    outcomes: list[View]


def compare_studies(first: Path, second: Path) -> Comparison:
    """Compare the settings and outcomes of two studies.

    Raises:
        MaskwiseError: a folder that holds no study.
    """
    folders = {path: read_folder(Path(path)) for path in (first, second)}
    for path, folder in folders.items():
        if folder.kind != "study":
            raise MaskwiseError("two studies are compared, and this is one run", got=str(path))
    one = folders[first]
    other = folders[second]
    settings = dict(_leaves(one.study["recipe"]))
    other_settings = dict(_leaves(other.study["recipe"]))
    differences: list[View] = []
    for key in settings | other_settings:
        values = [settings.get(key), other_settings.get(key)]
        if values[0] != values[1]:
            differences.append({"setting": key, "values": values})
    cells = _means(one)
    other_cells = _means(other)
    outcomes: list[View] = []
    for pair in cells | other_cells:
        outcome, arm = pair
        cell = cells.get(pair)
        other_cell = other_cells.get(pair)
        row: View = {"outcome": outcome, "arm": arm, "studies": [cell, other_cell], "change": None}
        if cell and other_cell:
            row["change"] = other_cell["mean"] - cell["mean"]
        outcomes.append(row)
    # Outcomes of one study alone come last.
    outcomes.sort(key=lambda row: row["change"] is None)
    return {
        "studies": [_about(path, folders[path]) for path in (first, second)],
        "differences": differences[:MOST_DIFFERENCES],
        "outcomes": outcomes,
    }


def write_comparison(first: Path, second: Path, html: Path | None = None) -> Path:
    """Write the page of ``compare_studies``, by default into the second folder.

    Raises:
        MaskwiseError: a folder that holds no study, or a page that cannot be written.
    """
    target = Path(html) if html is not None else Path(second) / "compared.html"
    template = environment().get_template("compared.html.j2")
    write_whole(target, template.render(**compare_studies(first, second)))
    return target


def _about(path: Path, folder: Folder) -> View:
    summary = folder.summary
    files = {"records.jsonl": folder.records, "summary.json": summary["headline"]}
    return {
        "folder": str(path),
        "name": folder.name,
        "headline": summary["headline"] or "No verdict yet.",
        "verdict": summary["verdict"],
        "runs": len(folder.study["seeds"]),
        "arms": folder.arms,
        "seconds": folder.study["seconds"],
        "maskwise": folder.study["maskwise"],
        "missing": [name for name, content in files.items() if not content],
    }


def _means(folder: Folder) -> dict[tuple[str, str], Cell]:
    """Return means over full runs by (outcome, arm)."""
    cells: dict[tuple[str, str], Cell] = {}
    for kind in ("evaluation", "heldout", "score"):
        for (name, detail), by_arm in folder.numbers(kind).items():
            outcome = f"{name} ({detail or 'score'})"
            if kind == "heldout":
                outcome = f"held-out loss, {name} masks {100 * detail:g} %"
            for arm, by_seed in by_arm.items():
                runs = list(by_seed.values())
                sd = stdev(runs) if len(runs) > 1 else None
                cell: Cell = {"runs": len(runs), "mean": fmean(runs), "sd": sd}
                cells[outcome, folder.label(arm)] = cell
    return cells


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Return settings by dotted name."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        # Arms are compared by their outcomes; names and descriptions always differ.
        if name in ("study.arms", "name", "description"):
            continue
        # An empty mapping is a setting, too.
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
