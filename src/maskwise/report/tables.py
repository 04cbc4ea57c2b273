"""The tables and forest plots of the page, and the page that compares two studies.

The template draws forest plots as SVG, which can be printed and needs no script. Runs of different
studies are not paired, so nothing is tested across studies: the page of two studies (``maskwise
report DIR DIR2``) lists means, standard deviations and the settings that differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pandas import DataFrame, concat

from maskwise.constants import LOWER_IS_BETTER, REFERENCE, accuracy_misleads
from maskwise.errors import MaskwiseError
from maskwise.estimates import Shown, outcome_labels, shown
from maskwise.files import Contrast
from maskwise.folders import write_page
from maskwise.report.drawing import FILTERS, SLATE, Colours, View
from maskwise.report.reading import Folder, mean, read_folder
from maskwise.specs import leaves

COMMONEST = "commonest answer"


def task_table(folder: Folder) -> View | None:
    """Return mean and SD over runs for each arm and task, for the reference, and for always giving
    the commonest answer.

    Scores from 0 to 1 are written in per cent; a single run has no SD.
    """
    metrics = {}
    macro_metrics = {}
    cells = {}
    macro = folder.numbers("score", "macro-f1")
    for measure, runs in folder.numbers("score").items():
        task, _ = measure
        facts = folder.task(task)
        metric = facts.get("metric") or "score"
        majority = facts.get("majority")
        if majority is not None:
            runs = concat([runs, DataFrame([{"arm": COMMONEST, "value": majority}])])
        metrics[task] = metric
        cells[task] = _cells(runs, metric)
        if measure in macro and accuracy_misleads(metric, majority):
            # The same task a second time; with a space, the key cannot clash with a task's name.
            macro_metrics[f"{task} "] = "macro-f1"
            cells[f"{task} "] = _cells(macro[measure], "macro-f1")
    if not metrics:
        return None
    metrics |= macro_metrics
    missing = {"mean": "–", "sd": ""}
    rows = []
    for arm in (*folder.arms, REFERENCE, COMMONEST):
        row = {task: cells[task].get(arm, missing) for task in metrics}
        if any(cell != missing for cell in row.values()):
            rows.append({"arm": folder.label(arm), "cells": row})
    return {"tasks": metrics, "rows": rows}


def _cells(runs: DataFrame, metric: str) -> dict[str, dict[str, str]]:
    scale = 1
    digits = 2
    is_share = (runs.value.abs() <= 1).all()
    if is_share and metric not in LOWER_IS_BETTER:
        scale = 100
        digits = 1
    cells = {}
    for arm, mean_, sd in _spread(runs):
        deviation = ""
        if sd is not None:
            deviation = f"{scale * sd:.{digits}f}"
        cells[arm] = {"mean": f"{scale * mean_:.{digits}f}", "sd": deviation}
    return cells


def _spread(runs: DataFrame) -> Iterator[tuple[str, float, float | None]]:
    """Yield each arm with the mean and SD of its runs; a single run has no SD."""
    for arm, values in runs.groupby("arm", sort=False).value:
        sd = None
        if len(values) > 1:
            sd = values.std()
        yield arm, values.mean(), sd


def score_table(folder: Folder) -> list[View]:
    """Return the numbers in the dot charts: for each task and arm, its runs and their mean."""
    rows = []
    for (task, _), runs in folder.numbers("score").items():
        for arm in (*folder.arms, REFERENCE):
            values = runs[runs.arm == arm].set_index("seed").value
            if len(values):
                rows.append({"task": task, "arm": arm, "runs": values, "mean": values.mean()})
    return rows


def evaluation_table(folder: Folder) -> View:
    """Return the mean over runs for every measure that needs no fine-tuning."""
    rows = []
    facts_of = {(line["name"], line["metric"]): line for line in folder.of_kind("evaluation")}
    for measure, runs in folder.numbers("evaluation").items():
        facts = facts_of[measure]
        rows.append(
            {
                "name": facts["name"],
                "metric": facts["metric"],
                "chance": facts.get("chance"),
                "items": facts.get("items"),
                "lower": not facts.get("higher_is_better", True),
                "means": runs.groupby("arm").value.mean().to_dict(),
            }
        )
    known = set().union(*(row["means"] for row in rows))
    arms = [arm for arm in (*folder.arms, REFERENCE) if arm in known]
    return {"arms": arms, "rows": rows}


def choices(folder: Folder) -> list[list[View]]:
    """Return what searches chose for each arm; arms with the same grid share a table.

    Each seed has its own search; in older studies, one search serves all seeds.
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
                # Older searches have means over seeds instead of scores.
                score = point.get("score", point.get("mean"))
                scores[_setting(point["setting"])].append(score)
        candidates = []
        for setting, known in scores.items():
            found = [score for score in known if score is not None]
            candidates.append({"setting": setting, "mean": mean(found), "chosen": chosen[setting]})
        row = {"arm": arm, "by": lines[0]["by"], "searches": len(lines), "candidates": candidates}
        tables[tuple(scores)].append(row)
    return list(tables.values())


def _setting(setting: Mapping[str, object]) -> str:
    """Write a setting as "learning_rate 0.006", without its section in the recipe."""
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
        "Tasks that do not count",
        "Pre-training does not help on these tasks often enough. The primary outcome leaves "
        "them out, unless no task would be left.",
    ),
    "task-nats": (
        "Task by task, in nats",
        "Per token of the correct answers; reversed, so that better is to the right.",
    ),
    "evaluation": (
        "Without fine-tuning",
        "Cloze facts and minimal pairs, in points of their measure. They have no noise from "
        "fine-tuning seeds.",
    ),
    "perplexity": (
        "Pseudo-perplexity",
        "Reversed, so that better is to the right; only between arms with the same units.",
    ),
    "bound": (
        "The bound of masked diffusion",
        "Reversed, so that better is to the right; only between arms with the same tokens.",
    ),
    "heldout": (
        "Held-out loss",
        "In nats; reversed, so that better is to the right; only between arms with the same units.",
    ),
}
NOT_COMPARABLE = ("not comparable", "void")
"""The verdicts of rows without an answer; "void" is the word that earlier rules used."""


def forest_groups(contrasts: Sequence[Contrast], colours: Colours) -> list[View]:
    """Group contrasts by kind and unit; different groups share no axis. Primary rows come first."""
    groups = defaultdict(list)
    for row in contrasts:
        unit = shown(row).unit
        groups[_kind_of(row), unit].append(row)
    views = []
    for wanted in FORESTS:
        for (kind, unit), rows in groups.items():
            if kind == wanted:
                views.append({**_forest(kind, rows, colours), "unit": unit})
    # The study's question comes first, its gate second, and secondary rows come last.
    return sorted(views, key=lambda view: (not view["asked"], not view["primary"]))


def _kind_of(row: Contrast) -> str:
    kind, _, _ = row["outcome"].partition(":")
    unit = row["unit"]
    if kind == "evaluation":
        return {"score": "evaluation", "perplexity": "perplexity"}.get(unit, "bound")
    if kind in ("tasks", "heldout"):
        return kind
    if any(flag["code"] == "no-help" for flag in row["flags"]):
        return "left-out"
    return "task-nats" if unit == "nats" else "task"


def _forest(kind: str, contrasts: list[Contrast], colours: Colours) -> View:
    comparable = [row for row in contrasts if row["verdict"] not in NOT_COMPARABLE]
    others = [row for row in contrasts if row["verdict"] in NOT_COMPARABLE]
    # Rows without an answer must not stretch the axis for the other rows.
    amounts = [shown(row) for row in comparable or others]
    largest = max(abs(amount.mean or 0.0) for amount in amounts)
    widest = 0.0
    for amount in amounts:
        widest = max(widest, abs(amount.low or 0.0), abs(amount.high or 0.0))
    # With few runs, an interval can be a hundred times the effect; its ends are then cut off.
    widest = min(widest, 4 * largest)
    reach = 1.1 * max(widest, largest, 1e-9)
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
    title, note = FORESTS[kind]
    primary = any(row["primary"] for row in contrasts)
    if primary:
        note += " The verdict rests on these rows."
    is_known = any(amount.mean is not None for amount in amounts)
    return {
        "kind": kind,
        "title": title,
        "note": note,
        "primary": primary,
        "asked": any(row["primary"] and "gate" not in row for row in contrasts),
        "rows": lines,
        "reach": f"{reach:.2g}" if is_known else None,
    }


def _places(amount: Shown, reach: float) -> View:
    """Return the positions of the mean and of the interval's ends, in per cent of the plot's width.

    The plot extends from -reach to reach.
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
        # An invalid row's sentence gives its reason, and the top of the page warns of overlap.
        is_note = flag["effect"] == "notes" and flag["code"] != "overlap"
        if row["primary"] and is_note:
            text = flag["sentence"]
            notes.append(f"{text[:1].upper()}{text[1:]}.")
    return notes


MOST_DIFFERENCES = 60


def compare_studies(first: Path, second: Path) -> View:
    """Compare the settings and outcomes of two studies.

    Returns:
        ``studies``: their headlines; ``differences``: the settings that differ; ``outcomes``: for
        each outcome and arm, the mean and standard deviation over runs.

    Raises:
        MaskwiseError: a folder does not hold a study.
    """
    paths = (Path(first), Path(second))
    folders = [read_folder(path) for path in paths]
    for path, folder in zip(paths, folders):
        if folder.kind != "study":
            raise MaskwiseError("only studies can be compared, but this is a run", got=str(path))
    before, after = map(_settings, folders)
    differences = []
    for key in dict.fromkeys([*before, *after]):
        values = [before.get(key), after.get(key)]
        if values[0] != values[1]:
            differences.append({"setting": key, "values": values})
    old, new = map(_means, folders)
    outcomes = []
    for outcome, arm in dict.fromkeys([*old, *new]):
        one = old.get((outcome, arm))
        other = new.get((outcome, arm))
        change = None
        if one and other:
            change = other["mean"] - one["mean"]
        studies = [one, other]
        outcomes.append({"outcome": outcome, "arm": arm, "studies": studies, "change": change})
    # Outcomes that only one study has come last.
    outcomes.sort(key=lambda row: row["change"] is None)
    return {
        "studies": [_about(path, folder) for path, folder in zip(paths, folders)],
        "differences": differences[:MOST_DIFFERENCES],
        "outcomes": outcomes,
    }


def write_comparison(first: Path, second: Path, html: Path | None = None) -> Path:
    """Write the page of ``compare_studies``, by default into the second folder.

    Raises:
        MaskwiseError: a folder does not hold a study, or the page cannot be written.
    """
    target = Path(html) if html is not None else Path(second) / "compared.html"
    write_page(target, "compared.html.j2", FILTERS, **compare_studies(first, second))
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


def _means(folder: Folder) -> dict[tuple[str, str], View]:
    """Return means over full runs, keyed by (outcome, arm)."""
    cells = {}
    for kind in ("evaluation", "heldout", "score"):
        for (name, detail), runs in folder.numbers(kind).items():
            outcome = f"{name} ({detail or 'score'})"
            if kind == "heldout":
                outcome = f"held-out loss, {name} masks {100 * detail:g} %"
            counts = runs.arm.value_counts()
            for arm, mean_, sd in _spread(runs):
                cell = {"runs": int(counts[arm]), "mean": mean_, "sd": sd}
                cells[outcome, folder.label(arm)] = cell
    return cells


def _settings(folder: Folder) -> dict[str, object]:
    """Return a study's settings, keyed by dotted name, without its name, description and arms.

    Arms are compared by their outcomes; names and descriptions always differ.
    """
    recipe: View = {**folder.study["recipe"], "name": None, "description": None}
    study: View = {**(recipe.get("study") or {}), "arms": None}
    return dict(leaves({**recipe, "study": study}))
