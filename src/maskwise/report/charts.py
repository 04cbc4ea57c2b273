"""Which charts a page has: picks the points out of a folder's records and curves.

A chart without points is left out of the page.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean, median

from maskwise.constants import BLUE, CORRELATIONS, LOWER_IS_BETTER, ORANGE, REFERENCE, shade
from maskwise.report.drawing import (
    GROUPS,
    MUTED,
    Colours,
    View,
    choice_chart,
    dot_chart,
    gain_chart,
    line_chart,
)
from maskwise.report.forest import outcome_label
from maskwise.report.reading import Folder, Line

MOST_POINTS = 200
"""Of a line: more is not seen."""
QUANTITIES = ("steps", "tokens", "targets", "flops", "seconds")


def score_charts(folder: Folder, colours: Colours) -> list[View]:
    """One dot chart per task."""
    charts: list[View] = []
    majorities = folder.numbers("score", "majority")
    for (task, detail), by_arm in folder.numbers("score").items():
        facts = folder.study["tasks"].get(task, {})
        metric = facts.get("metric", "score")
        lower = metric in LOWER_IS_BETTER
        scale = 100 if metric in CORRELATIONS else 1
        points = _points(by_arm, colours, scale=scale)
        if not points:
            continue
        majority = facts.get("majority") or mean(_values(majorities[task, detail]))
        scratch = mean([scale * score for score in by_arm.get(REFERENCE, {}).values()])
        shares = all(0 <= score <= 1 for score in _values(by_arm))
        percent = shares and not lower and scale == 1
        references = {"commonest answer": majority, folder.reference: scratch}
        spec = dot_chart(
            points,
            colours,
            title=f"{metric} ({'left' if lower else 'right'} is better)",
            references={label: at for label, at in references.items() if at is not None},
            percent=percent,
        )
        charts.append(
            {
                "name": task,
                "metric": metric,
                "spec": spec,
                "percent": percent,
                "scratch": scratch,
                "majority": majority,
                "classes": facts.get("classes"),
                "test_items": facts.get("test_items"),
            }
        )
    return charts


def heldout_charts(folder: Folder, colours: Colours) -> list[View]:
    """One dot chart per kind of mask and ratio, with the loss of word frequencies."""
    charts: list[View] = []
    unigrams = folder.numbers("heldout", "unigram")
    for (masks, ratio), by_arm in folder.numbers("heldout").items():
        points = _points(by_arm, colours)
        if not points:
            continue
        trained = {arm: runs for arm, runs in unigrams[masks, ratio].items() if arm in colours}
        unigram = mean(_values(trained))
        start = next(iter(by_arm.get(REFERENCE, {}).values()), None)  # of any seed
        spec = dot_chart(
            points,
            colours,
            title="loss in nats (left is better)",
            plateau=unigram,
            references={} if start is None else {folder.reference: start},
        )
        charts.append(
            {"masks": masks, "ratio": ratio, "unigram": unigram, "start": start, "spec": spec}
        )
    return charts


def coverage_view(folder: Folder, colours: Colours) -> View | None:
    """By task and arm, how many right answers stand in the corpus and are masked, and the gain.

    The gain is that over the reference, which has no such training. None where no task has texts
    for answers.
    """
    rows: list[View] = []
    points: list[Line] = []
    lines = folder.of_kind("coverage")
    scores = {task: by_arm for (task, _), by_arm in folder.numbers("score").items()}
    for line in (line for line in lines if "arm" in line):
        task = line["task"]
        arm = line["arm"]
        occurrences = line["occurrences"]
        texts = [other for other in lines if other["task"] == task and "standing" in other]
        # Worlds have a corpus for each run.
        texts = [other for other in texts if other["corpus"] == line["corpus"]] or texts
        by_arm = scores.get(task, {})
        gain = None
        if by_arm.get(arm) and by_arm.get(REFERENCE):
            gain = fmean(by_arm[arm].values()) - fmean(by_arm[REFERENCE].values())
            if folder.study["tasks"].get(task, {}).get("metric") in LOWER_IS_BETTER:
                gain = -gain
        masked = line["whole"] / occurrences if occurrences else None
        if gain is not None and masked is not None:
            points.append({"arm": arm, "x": masked, "value": gain})
        rows.append(
            {
                "task": task,
                "arm": arm,
                "corpus": line["corpus"],
                "masked": masked,
                "gain": gain,
                "part": line["part"] / occurrences if occurrences else None,
                "occurrences": occurrences,
                "standing": mean([other["standing"] / other["items"] for other in texts]),
            }
        )
    if not rows:
        return None
    spec = gain_chart(points, colours, over=folder.reference) if points else None
    return {"rows": rows, "spec": spec}


def transfer_view(folder: Folder) -> View | None:
    """What every learned policy adds on every task: blue where it helps, orange where not.

    None in other studies than those of transfer.
    """
    cells = folder.summary.get("transfer", [])
    if not cells:
        return None
    reach = max(abs(cell["mean"] or 0.0) for cell in cells) or 1.0
    by_arm: dict[str, list[View]] = defaultdict(list)
    for cell in cells:
        nats = folder.study["tasks"].get(cell["task"], {}).get("metric") in LOWER_IS_BETTER
        gain = cell["mean"] or 0.0
        by_arm[cell["arm"]].append(
            {
                **cell,
                "own": cell["task"] == cell["learned_from"],
                "scale": 1 if nats else 100,
                "digits": 2 if nats else 1,
                "shade": shade(abs(gain) / reach, BLUE if gain > 0 else ORANGE),
            }
        )
    rows = [{"arm": arm, "cells": line} for arm, line in by_arm.items()]
    return {"tasks": list(dict.fromkeys(cell["task"] for cell in cells)), "rows": rows}


def curve_charts(folder: Folder, colours: Colours) -> View:
    """Training loss, realised ratio and held-out losses over the steps, as far as logged."""
    charts: View = {}
    train = [line for line in folder.curves if line["kind"] == "train"]
    losses = thin(line for line in train if "loss" in line)
    if losses:
        x = "tokens" if all("tokens" in line for line in losses) else "step"
        points = [_point(line, line["loss"], x) for line in losses]
        charts["train"] = line_chart(points, colours, x=x, title="training loss, nats")
    ratios = thin(line for line in train if "ratio" in line)
    if ratios:
        points = [_point(line, line["ratio"]) for line in ratios]
        for point, line in zip(points, ratios):
            if "scheduled_ratio" in line:
                point["scheduled"] = line["scheduled_ratio"]
        charts["ratio"] = line_chart(points, colours, title="masked", percent=True, zero=True)
    evaluated: dict[tuple[str, float], list[Line]] = defaultdict(list)
    for line in folder.curves:
        if line["kind"] == "eval" and "loss" in line:
            evaluated[line["masks"], line["ratio"]].append(line)
    views: list[View] = []
    for (masks, ratio), lines in evaluated.items():
        spec = line_chart(
            [_point(line, line["loss"]) for line in thin(lines)],
            colours,
            title="held-out loss, nats",
            dots=True,
            rule=mean([line["unigram"] for line in lines if line.get("unigram") is not None]),
            label="word frequencies",
        )
        views.append({"masks": masks, "ratio": ratio, "spec": spec})
    return {**charts, "eval": views}


def weight_charts(folder: Folder) -> list[View]:
    """The weights of groups that policies learned: a chart per arm, and per objective of it."""
    charts: dict[str, list[Line]] = defaultdict(list)
    for line in thin(folder.curves):
        for key, weights in line.items():
            *objective, what = key.split(" ")
            if what != "weights" or not isinstance(weights, dict):
                continue
            name = " ".join([line["arm"], *objective])
            for group, weight in weights.items():
                charts[name].append(_point({**line, "arm": group}, weight))
    views: list[View] = []
    palette = [*GROUPS, *MUTED]
    for name, points in charts.items():
        last = max(point["step"] for point in points)
        ends: dict[str, list[float]] = {point["arm"]: [] for point in points}
        for point in points:
            if point["step"] == last:
                ends[point["arm"]].append(point["value"])
        order = sorted(ends, key=lambda group: (-(mean(ends[group]) or 0.0), group))
        colours = {group: palette[place % len(palette)] for place, group in enumerate(order)}
        spec = line_chart(
            points, colours, title="weight", zero=True, means=True, legend=True, height=300
        )
        views.append({"name": name, "spec": spec})
    return views


def compute_view(folder: Folder, colours: Colours) -> View | None:
    """None where no cost was recorded."""
    seconds: Counter[tuple[str, int, float]] = Counter()
    for line in folder.timings:  # a run may have several trainings
        if line["kind"] == "pretrain" and line["purpose"] == "main":
            seconds[line["arm"], line["seed"], line["fraction"]] += line["seconds"]
    points: list[Line] = []
    for run in folder.summary["efficiency"]["points"]:
        if run["arm"] not in colours:
            continue
        spent = seconds[run["arm"], run["seed"], run["fraction"]]
        place = {key: value for key, value in run.items() if key != "values"}
        if spent:
            place["seconds"] = spent
        for name, value in run["values"].items():
            measure = outcome_label(name)
            if name.startswith("heldout:"):
                measure = f"{measure} loss"
            points.append({**place, "measure": measure, "value": value})
    found = set().union(*points)
    quantities = [name for name in QUANTITIES if name in found]
    if not quantities:
        return None
    measures = list(dict.fromkeys(point["measure"] for point in points))
    crossings: list[View] = []
    for row in folder.summary["efficiency"]["crossings"]:
        shares = [math.inf if share is None else share for share in row["shares"].values()]
        # None where half of the seeds or more never cross.
        middle = median(shares)
        crossings.append({**row, "median": middle if math.isfinite(middle) else None})
    return {
        "spec": choice_chart(points, colours, measures=measures, quantities=quantities),
        "companions": any(point["fraction"] < 1 for point in points),
        "crossings": crossings,
    }


def thin(lines: Iterable[Line], most: int = MOST_POINTS) -> list[Line]:
    """Every k-th line of each run, so that no run has more than ``most``."""
    runs: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in lines:
        runs[line["arm"], line["seed"]].append(line)
    return [line for run in runs.values() for line in run[:: math.ceil(len(run) / most)]]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _values(by_arm: Mapping[str, Mapping[int, float]]) -> list[float]:
    return list(chain.from_iterable(by_seed.values() for by_seed in by_arm.values()))


def _points(
    by_arm: Mapping[str, Mapping[int, float]], colours: Colours, *, scale: float = 1
) -> list[Line]:
    """A point for every run of the arms."""
    return [
        {"arm": arm, "seed": seed, "value": scale * value}
        for arm, by_seed in by_arm.items()
        if arm in colours
        for seed, value in by_seed.items()
    ]


def _point(line: Line, value: float, x: str = "step") -> Line:
    return {"arm": line["arm"], "seed": line["seed"], "value": value, x: line[x]}
