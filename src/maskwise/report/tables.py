"""Tables and forest plots of the page, and the page that compares two studies.

The template draws forest plots as SVG, which can be printed and needs no script. The page of two
studies (``maskwise report DIR DIR2``) lists means, standard deviations and different settings. It
has no tests, because runs of different studies are not paired.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import median_low

import numpy as np

from maskwise.base.constants import BY_LENGTH, DIFFUSION, NATS, accuracy_misleads
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import write_page
from maskwise.base.specs import leaves
from maskwise.report.drawing import FILTERS, SLATE, Colours, View
from maskwise.report.reading import Folder, LogLine, in_points, mean, read_folder, values_by_arm
from maskwise.results.estimates import (
    Shown,
    has_gated_rows,
    in_decimals,
    items_words,
    outcome_label,
    outcome_labels,
    shown,
)
from maskwise.results.files import Contrast

COMMONEST = "commonest answer"
COMPARED = "compared.html"
"""The page of two studies, in the folder of the second."""


def task_table(folder: Folder) -> View | None:
    """Return a table with the mean and SD of scores for every arm and task.

    Further rows are the reference model and the score of the most frequent answer. Scores from 0 to
    1 are in per cent. The result is None without scores.
    """
    metrics = {}
    macro_metrics = {}
    cells = {}
    further = folder.numbers("task", split="further")
    for (task, _), runs in folder.numbers("task").items():
        facts = folder.task(task)
        metric = facts.get("metric") or "score"
        majority = facts.get("majority")
        values = values_by_arm(runs)
        if majority is not None:
            values[COMMONEST] = [majority]
        metrics[task] = metric
        cells[task] = _cells(values, metric)
        macro = further.get((task, "macro-f1"))
        if macro is not None and accuracy_misleads(metric, majority):
            # This is a second column for the same task. The space makes the key unique.
            macro_metrics[f"{task} "] = "macro-f1"
            cells[f"{task} "] = _cells(values_by_arm(macro), "macro-f1")
    if not metrics:
        return None
    metrics |= macro_metrics
    missing = {"mean": "–", "sd": ""}
    rows = []
    for arm in (*folder.arms, *folder.untrained, COMMONEST):
        row = {task: cells[task].get(arm, missing) for task in metrics}
        if any(cell != missing for cell in row.values()):
            rows.append({"arm": folder.label(arm), "cells": row})
    return {"tasks": metrics, "rows": rows}


def _cells(values: Mapping[str, Sequence[float]], metric: str) -> dict[str, dict[str, str]]:
    """Return the mean and SD of every arm as texts."""
    scale = 1
    digits = 2
    if in_points(chain.from_iterable(values.values()), metric):
        scale = 100
        digits = 1
    cells = {}
    for arm, runs in values.items():
        mean_, sd = _mean_and_sd(runs)
        deviation = ""
        if sd is not None:
            deviation = in_decimals(scale * sd, digits)
        cells[arm] = {"mean": in_decimals(scale * mean_, digits), "sd": deviation}
    return cells


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and SD of an arm's runs; the SD of a single run is None."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), sd


def score_table(folder: Folder) -> list[View]:
    """Return a table of the values in the dot charts, with a row for every task and arm."""
    rows = []
    for (task, _), runs in folder.numbers("task").items():
        seeds = sorted({row.seed for row in runs})
        for arm in (*folder.arms, *folder.untrained):
            values: list[float | None] = []
            known = [row for row in runs if row.arm == arm]
            for seed in seeds:
                # None keeps the place of a run that failed or is to come.
                values += [row.value for row in known if row.seed == seed] or [None]
            if known:
                mean_ = float(np.mean([row.value for row in known]))
                rows.append({"task": task, "arm": arm, "values": values, "mean": mean_})
    return rows


def evaluation_table(folder: Folder) -> View:
    """Return a table of means over runs for measures without fine-tuning."""
    rows = []
    known = set[str]()
    found = [row for row in folder.measured if row.kind == "evaluation"]
    facts_of = {(row.measure, row.metric): row for row in found}
    for measure, runs in folder.numbers("evaluation").items():
        facts = facts_of[measure]
        values = values_by_arm(runs)
        known.update(values)
        rows.append(
            {
                "name": facts.measure,
                "metric": facts.metric,
                "chance": facts.chance,
                "items": facts.items,
                "lower": not facts.higher_is_better,
                "means": {arm: float(np.mean(of_arm)) for arm, of_arm in values.items()},
            }
        )
    arms = [arm for arm in (*folder.arms, *folder.untrained) if arm in known]
    return {"arms": arms, "rows": rows}


def choices(folder: Folder) -> list[list[View]]:
    """Return tables of search scores and chosen settings; arms with the same grid share a table.

    There is one search for every seed, or one for all seeds.
    """
    searches = defaultdict(list)
    for line in folder.records:
        if line["kind"] == "selection":
            searches[line["arm"]].append(line)
    tables = defaultdict(list)
    for arm, lines in searches.items():
        scores = defaultdict(list)
        chosen = Counter(_setting(line["chosen"] or {}) for line in lines)
        for line in lines:
            for point in line["candidates"]:
                scores[_setting(point["setting"])].append(point["score"])
        candidates = []
        for setting, known in scores.items():
            found = [score for score in known if score is not None]
            candidates.append({"setting": setting, "mean": mean(found), "chosen": chosen[setting]})
        row = {"arm": arm, "by": lines[0]["by"], "searches": len(lines), "candidates": candidates}
        tables[tuple(scores)].append(row)
    return list(tables.values())


def best_steps(folder: Folder) -> View | None:
    """Return a table of the steps whose weights were kept, for every arm and seed.

    The result is None if no run chose its weights (``training.patience``, ``training.lengths``).
    """
    rows = defaultdict[str, dict[int, LogLine]](dict)
    for line in folder.of_kind("cost"):
        if "best_step" in line and "planned_steps" in line:
            rows[line["arm"]][line["seed"]] = line
    if not rows:
        return None
    seeds = sorted(set(chain.from_iterable(rows.values())))
    table = []
    for arm, runs in rows.items():
        # None keeps the place of a run that failed or is to come.
        steps = [runs[seed]["best_step"] if seed in runs else None for seed in seeds]
        planned = max(line["planned_steps"] for line in runs.values())
        table.append({"arm": arm, "steps": steps, "planned": planned})
    return {"seeds": seeds, "rows": table}


def _setting(setting: Mapping[str, object]) -> str:
    """Format a setting without its section in the recipe, such as "learning_rate 0.006"."""
    parts = []
    for key, value in setting.items():
        name = key.rpartition(".")[2]
        parts.append(f"{name} {value}")
    return ", ".join(parts)


VOID = "#a5a29b"
FORESTS = {
    "tasks": ("On the tasks", "The mean over the tasks that are not secondary."),
    "task": ("Task by task", "The sign of losses is reversed, so better is to the right."),
    "evaluation": (
        "Without fine-tuning",
        "Cloze facts and minimal pairs, in points of their measure. These scores have no noise "
        "from fine-tuning.",
    ),
    "perplexity": (
        "Pseudo-perplexity",
        "The sign is reversed, so better is to the right. Only arms with the same tokenizer that "
        "mask the same kind of unit (tokens, words or spans) are comparable.",
    ),
    "loss": (
        "Loss on other text",
        "In nats. The sign is reversed, so better is to the right: a value on the left shows what "
        "was forgotten. Only arms with the same tokenizer are comparable.",
    ),
    "words": (
        "Loss of words",
        "The loss of the same words for every tokenizer, so arms with different tokenizers are "
        "comparable. The sign is reversed, so better is to the right.",
    ),
    BY_LENGTH: (
        "Loss of the same tokens in longer rows",
        "In nats. The sign is reversed, so better is to the right. Only arms with the same "
        "tokenizer are comparable.",
    ),
    "measure": (
        "Other measures",
        "Signs are such that better is to the right.",
    ),
    "bound": (
        "The bound of masked diffusion",
        "The sign is reversed, so better is to the right. Only arms with the same tokenizer are "
        "comparable.",
    ),
    "heldout": (
        "Held-out loss",
        "In nats. The sign is reversed, so better is to the right. Only arms with the same "
        "tokenizer that mask the same kind of unit (tokens, words or spans) are comparable.",
    ),
}


OWN_FORESTS = ("bound", "words", BY_LENGTH)
"""Measures without fine-tuning that have a group of their own, by the same name."""
WEIGHTED = "The mean over the tasks, each in SDs of its runs and weighted by how certain it is."
"""The note on rows whose plain mean in points or nats does not agree with the test."""


def forest_groups(contrasts: Sequence[Contrast], colours: Colours) -> list[View]:
    """Group contrasts by kind and unit. A group has one axis, and primary rows come first."""
    groups = defaultdict(list)
    for row in contrasts:
        unit = shown(row).unit
        groups[_kind_of(row), unit].append(row)
    views = []
    gated = has_gated_rows(contrasts)
    for wanted in FORESTS:
        for (kind, unit), rows in groups.items():
            if kind == wanted:
                views.append({**_forest(kind, rows, colours), "unit": unit, "gated": gated})
    # Order: contrasts of the study, the gate, secondary rows.
    return sorted(views, key=lambda view: (not view["asked"], not view["primary"]))


MOST_EXPLAINING = 3
"""More rows without a verdict are folded if their group has rows with one."""

ROUNDING = 1e-9
EQUAL_REACH = 0.01
"""The end of the axis if all differences are at most ``ROUNDING``: a point, or .01 nats."""


def _kind_of(row: Contrast) -> str:
    kind = row["outcome"].partition(":")[0]
    if kind == "evaluation":
        kinds = {"score": "evaluation", "perplexity": "perplexity", NATS: "loss"}
        measure = row["outcome"].split(":")[1]
        return measure if measure in OWN_FORESTS else kinds.get(row["unit"], "measure")
    if kind in ("tasks", "heldout"):
        return kind
    return "task"


def _forest(kind: str, contrasts: list[Contrast], colours: Colours) -> View:
    comparable = [row for row in contrasts if row["verdict"] != "not comparable"]
    others = [row for row in contrasts if row["verdict"] == "not comparable"]
    # The axis is scaled to comparable rows only.
    amounts = [shown(row) for row in comparable or others]
    largest = max(abs(amount.mean or 0.0) for amount in amounts)
    widest = 0.0
    for amount in amounts:
        widest = max(widest, abs(amount.low or 0.0), abs(amount.high or 0.0))
    # One interval can be 100 times as wide as the others. Its ends are then cut off, but not those
    # of an interval around a difference near 0, which are what a null result says.
    extents = [
        max(abs(amount.low), abs(amount.high))
        for amount in amounts
        if amount.low is not None and amount.high is not None
    ]
    usual = median_low(extents) if extents else 0.0
    widest = min(widest, 4 * max(largest, usual))
    reach = 1.1 * max(widest, largest)
    # If all arms are equal, the axis has a range that is small, but not that of rounding errors.
    if reach < ROUNDING:
        reach = EQUAL_REACH * amounts[0].scale
    # The axis ends at the number that is written, which has two digits.
    digits = 1 - math.floor(math.log10(reach))
    reach = round(math.ceil(round(reach * 10**digits, 6)) / 10**digits, digits)
    labels = outcome_labels(row["outcome"] for row in contrasts)
    lines = []
    for row in comparable + others:
        lines.append(
            {
                "row": row,
                "label": labels[row["outcome"]],
                "colour": VOID if row in others else colours.get(row["arm"], SLATE),
                "notes": _notes(row),
                **_places(shown(row), reach),
            }
        )
    asked = [line for line in lines if line["row"]["primary"]]
    explaining = [line for line in lines if not line["row"]["primary"]]
    folds = bool(asked) and len(explaining) > MOST_EXPLAINING
    title, note = FORESTS[kind]
    if kind == "tasks" and amounts[0].unit.startswith("SDs"):
        note = WEIGHTED
    primary = any(row["primary"] for row in contrasts)
    if all(row["primary"] for row in contrasts):
        note += " The verdict rests on these rows."
    elif primary:
        note += " The verdict rests on the rows that have one; the others explain it."
    elif kind == "task":
        note += " These rows explain a verdict and are not tested."
    is_known = any(amount.mean is not None for amount in amounts)
    return {
        "kind": kind,
        "title": title,
        "note": note,
        "primary": primary,
        "asked": any(row["primary"] and "gate" not in row for row in contrasts),
        "rows": asked if folds else asked + explaining,
        "folded": explaining if folds else [],
        "reach": np.format_float_positional(reach, trim="-") if is_known else None,
    }


def _places(amount: Shown, reach: float) -> View:
    """Return the positions of the mean and the interval, in per cent of the plot's width.

    Args:
        amount: the mean and the interval.
        reach: the plot extends from −reach to reach.
    """
    places = {"drawn": amount.mean is not None, "figure": amount.figure()}
    ends = {"at": amount.mean, "from": amount.low, "to": amount.high}
    for name, value in ends.items():
        if value is not None:
            within = max(-1.0, min(1.0, value / reach))
            places[name] = round(50 + 50 * within, 2)
            places[f"{name}_cut"] = abs(value) > reach
    if amount.low is not None:
        places["interval"] = amount.ends()
    return places


def _notes(row: Contrast) -> list[str]:
    """Return the notes on a primary row as sentences."""
    notes = []
    for flag in row["flags"]:
        # Sentences of invalid rows contain the reason, and overlap has a warning on top of the
        # page.
        is_note = flag["effect"] == "notes" and flag["code"] != "overlap"
        if row["primary"] and is_note:
            text = flag["sentence"]
            notes.append(f"{text[:1].upper()}{text[1:]}.")
    items = items_words(row)
    if row["primary"] and items:
        notes.append(f"{items[:1].upper()}{items[1:]}.")
    return notes


def compare_studies(first: Path, second: Path) -> View:
    """Compare the settings and outcomes of two studies.

    Args:
        first, second: the folders of the studies.

    Returns:
        A dict with ``studies`` (headlines and facts), ``differences`` (settings that differ) and
        ``outcomes`` (means and standard deviations over runs for every outcome and arm).

    Raises:
        MaskwiseError: a folder holds no study.
    """
    paths = (Path(first), Path(second))
    folders = [read_folder(path) for path in paths]
    for path, folder in zip(paths, folders):
        if folder.kind != "study":
            raise MaskwiseError(
                "this folder holds a run, but only studies can be compared", got=str(path)
            )
    before, after = map(_settings, folders)
    differences = []
    for key in before | after:
        values = [before.get(key), after.get(key)]
        if values[0] != values[1]:
            differences.append({"setting": key, "values": values})
    old, new = map(_means, folders)
    outcomes = []
    for outcome, arm in old | new:
        one = old.get((outcome, arm))
        other = new.get((outcome, arm))
        change = None
        if one and other:
            change = other["mean"] - one["mean"]
        studies = [one, other]
        outcomes.append({"outcome": outcome, "arm": arm, "studies": studies, "change": change})
    # Outcomes that only one study measured come last.
    outcomes.sort(key=lambda row: row["change"] is None)
    return {
        "studies": [_about(path, folder) for path, folder in zip(paths, folders)],
        "differences": differences,
        "outcomes": outcomes,
    }


def write_comparison(first: Path, second: Path, html: Path | None = None) -> Path:
    """Write the page that compares two studies.

    Args:
        first, second: the folders of the studies.
        html: the path of the page; None for ``second``/compared.html.

    Returns:
        The path of the page.

    Raises:
        MaskwiseError: a folder holds no study, or the page cannot be written.
    """
    target = Path(html or Path(second) / COMPARED)
    compared = compare_studies(first, second)
    write_page(target, "compared.html.j2", FILTERS, **compared)
    return target


def _about(path: Path, folder: Folder) -> View:
    summary = folder.summary
    files = {"records.jsonl": folder.records}
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


def _means(folder: Folder) -> dict[tuple[str, str], View]:
    """Return means and SDs over full runs, keyed by (outcome, arm)."""
    cells = {}
    for kind in ("evaluation", "heldout", "task"):
        for (name, detail), runs in folder.numbers(kind).items():
            outcome = f"{name} ({detail or 'score'})"
            if kind == "heldout":
                outcome = outcome_label(f"heldout:{name}@{detail}")
                if name != DIFFUSION:
                    outcome = f"held-out loss, {outcome}"
            for arm, values in values_by_arm(runs).items():
                mean_, sd = _mean_and_sd(values)
                cells[outcome, folder.label(arm)] = {"runs": len(values), "mean": mean_, "sd": sd}
    return cells


def _settings(folder: Folder) -> dict[str, object]:
    """Return the settings of a study, keyed by dotted name.

    Names and descriptions are left out, because they always differ. Arms are left out, because the
    page compares them by their outcomes.
    """
    recipe: View = {**folder.study["recipe"], "name": None, "description": None}
    study: View = {**(recipe.get("study") or {}), "arms": None}
    return dict(leaves({**recipe, "study": study}))
