"""Charts of the page, from the records and curves of a folder. Charts without points are left
out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain, cycle

from maskwise.base.constants import BY_LENGTH, CORRELATIONS, MEAN_OVER_TASKS
from maskwise.report.drawing import (
    GROUPS,
    MUTED,
    REFERENCE_GREY,
    ChartSpec,
    Colours,
    View,
    choice_chart,
    dot_chart,
    line_chart,
)
from maskwise.report.reading import Folder, LogLine, in_points, mean
from maskwise.results.estimates import outcome_labels
from maskwise.results.measurements import Measurement

MOST_POINTS = 200
"""Maximum number of points on a line. More points would be indistinguishable."""


def score_charts(folder: Folder, colours: Colours) -> list[View]:
    """Return a dot chart of scores for every task."""
    charts = []
    colours = _compared(folder, colours)
    for (task, _), runs in folder.numbers("task").items():
        facts = folder.task(task)
        metric = facts.get("metric") or "score"
        lower = folder.lower_is_better(task)
        points = _points(folder, runs, colours)
        if not points:
            continue
        majority = mean([row.chance for row in runs if row.chance is not None])
        scratch = mean([row.value for row in runs if row.arm in folder.untrained])
        percent = in_points([row.value for row in runs], metric)
        scaled = metric
        if percent and metric in CORRELATIONS:
            # A correlation is no share.
            percent = False
            scaled = f"{metric} × 100"
            points = [{**point, "value": 100 * point["value"]} for point in points]
            majority, scratch = (x if x is None else 100 * x for x in (majority, scratch))
        side = "left" if lower else "right"
        spec = dot_chart(
            points,
            colours,
            title=f"{scaled} ({side} is better)",
            percent=percent,
        )
        charts.append(
            {
                "name": task,
                "metric": scaled,
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
    """Return a dot chart of losses for every kind of mask and ratio."""
    charts = []
    colours = _compared(folder, colours)
    unigrams = folder.numbers("heldout", split="unigram")
    for measure, runs in folder.numbers("heldout").items():
        points = _points(folder, runs, colours)
        if not points:
            continue
        masks, ratio = measure
        unigram = mean([row.value for row in unigrams.get(measure, ()) if row.arm in colours])
        spec = dot_chart(
            points,
            colours,
            title="loss in nats (left is better)",
            plateau=unigram,
        )
        charts.append({"masks": masks, "ratio": ratio, "unigram": unigram, "spec": spec})
    return charts


ROW_TOKENS = "tokens in a row"
"""The axis of losses by the length of rows."""


def length_chart(folder: Folder, colours: Colours) -> ChartSpec | None:
    """Return a chart of the loss of the same tokens by the length of rows, if it was measured."""
    # What a model gains from its longest rows is seen against the unchanged model.
    colours = {**colours, folder.reference: REFERENCE_GREY}
    points = []
    for (measure, metric), runs in folder.numbers("evaluation").items():
        if measure == BY_LENGTH:
            length = int(metric.rpartition(" ")[2])
            points += [{**point, ROW_TOKENS: length} for point in _points(folder, runs, colours)]
    if not points:
        return None
    points.sort(key=lambda point: point[ROW_TOKENS])
    return line_chart(points, colours, x=ROW_TOKENS, title="loss, nats", means=True)


def _compared(folder: Folder, colours: Colours) -> Colours:
    """Add the reference to the colours of arms, if a contrast compares an arm with it."""
    gate = folder.study.get("gate")
    pairs = [*folder.study["contrasts"], *([gate["contrast"]] if gate else [])]
    asked = folder.untrained.keys() & chain.from_iterable(pairs)
    return {**colours, folder.reference: REFERENCE_GREY} if asked else colours


def _points(folder: Folder, runs: Iterable[Measurement], colours: Colours) -> list[LogLine]:
    """Return the runs of what has a colour."""
    points = []
    for row in runs:
        name = folder.label(row.arm)
        if name in colours:
            points.append({"arm": name, "seed": row.seed, "value": row.value})
    return points


def curve_charts(folder: Folder, colours: Colours) -> View:
    """Return charts of training loss, realised ratio and held-out losses, if logged."""
    charts: View = {"eval": []}
    lines_of: dict[str, list[LogLine]] = {"loss": [], "ratio": []}
    evaluated = defaultdict(list)
    for line in folder.curves:
        if line["kind"] == "eval" and "loss" in line:
            # Arms that choose their best state are evaluated on some of the documents.
            masks = line["masks"]
            if "documents" in line:
                masks = f"{masks} ({line['documents']})"
            evaluated[masks, line["ratio"]].append(line)
        elif line["kind"] == "train":
            for key, lines in lines_of.items():
                if key in line:
                    lines.append(line)
    losses = lines_of["loss"]
    if losses:
        # Tokens are a fair axis for arms with different batch sizes.
        points = _curve(losses, "loss", "tokens")
        charts["train"] = line_chart(points, colours, x="tokens", title="training loss, nats")
    points = _curve(lines_of["ratio"], "ratio")
    if points:
        charts["ratio"] = line_chart(
            points, colours, title="tokens masked", percent=True, zero=True
        )
    for (masks, ratio), lines in evaluated.items():
        # With one evaluation in each run, there is no curve.
        if thin(lines, most=1) == lines:
            continue
        unigrams = [line["unigram"] for line in lines if line.get("unigram") is not None]
        spec = line_chart(
            _curve(lines, "loss"), colours, title="held-out loss, nats", rule=mean(unigrams)
        )
        charts["eval"].append({"masks": masks, "ratio": ratio, "spec": spec})
    return charts


def _curve(lines: Iterable[LogLine], key: str, x: str = "step") -> list[LogLine]:
    """Return thinned points of a logged quantity over steps or tokens."""
    points = []
    for line in thin(lines):
        point = {"arm": line["arm"], "seed": line["seed"], "value": line[key], x: line[x]}
        if key == "ratio" and "scheduled_ratio" in line:
            point["scheduled"] = line["scheduled_ratio"]
        points.append(point)
    return points


def weight_charts(folder: Folder) -> list[View]:
    """Return a chart of learned group weights for every arm and objective."""
    charts = defaultdict(list)
    # Losses on held-out text are lines of their own, between those with weights.
    learned = [
        line for line in folder.curves if any(key.split(" ")[-1] == "weights" for key in line)
    ]
    for line in thin(learned):
        for key, weights in line.items():
            # The key is "weights", or "OBJECTIVE weights" with several objectives.
            *objective, what = key.split(" ")
            if what == "weights" and isinstance(weights, dict):
                name = " ".join([line["arm"], *objective])
                point = {"seed": line["seed"], "step": line["step"]}
                for group, weight in weights.items():
                    # ``line_chart`` draws a line for every arm; here, arms are groups.
                    charts[name].append({**point, "arm": group, "value": weight})
    views = []
    palette = [*GROUPS, *MUTED]
    for name, points in charts.items():
        groups = dict.fromkeys(point["arm"] for point in points)
        colours = dict(zip(groups, cycle(palette)))
        spec = line_chart(points, colours, title="weight", zero=True, means=True)
        views.append({"name": name, "colours": colours, "spec": spec})
    return views


def compute_view(folder: Folder, colours: Colours) -> View | None:
    """Return a chart of quality by FLOPs or steps; None if no cost was recorded."""
    runs = [run for run in folder.summary["efficiency"]["points"] if run["arm"] in colours]
    # If the FLOPs of a run could not be measured, all runs are drawn by steps.
    quantity = "flops" if all("flops" in run for run in runs) else "steps"
    points = []
    names = _measures_of(folder, dict.fromkeys(chain.from_iterable(run["values"] for run in runs)))
    labels = outcome_labels(names)
    for name in names:
        measure = labels[name]
        if name.startswith("heldout:"):
            measure = f"loss on {measure}"
        tasks = folder.study["tasks"] if name == MEAN_OVER_TASKS else [name]
        if any(map(folder.lower_is_better, tasks)):
            measure += " (lower is better)"
        for run in runs:
            if name in run["values"]:
                place = {"arm": run["arm"], "seed": run["seed"]}
                value = {"measure": measure, "value": run["values"][name]}
                points.append({**place, "x": run.get(quantity), **value})
    if not any(point["x"] for point in points):
        return None
    return {"spec": choice_chart(points, colours, quantity=quantity)}


def _measures_of(folder: Folder, names: Iterable[str]) -> list[str]:
    """Sort measures: the primary outcome first, which the chart shows until another is chosen."""
    primary = set()
    for row in folder.summary["contrasts"]:
        if row["primary"] and "gate" not in row:
            outcome = row["outcome"]
            primary.add(MEAN_OVER_TASKS if outcome == "tasks" else outcome)
    return sorted(names, key=lambda name: name not in primary)


def thin(lines: Iterable[LogLine], most: int = MOST_POINTS) -> list[LogLine]:
    """Keep every k-th line of a run and its last, so that no run has more than ``most`` lines."""
    runs = defaultdict(list)
    for line in lines:
        runs[line["arm"], line["seed"]].append(line)
    thinned = []
    for run in runs.values():
        stride = math.ceil(len(run) / most)
        thinned += run[::-stride][::-1]
    return thinned


MOST_SMALL = 60
"""Maximum number of points on a line in a small chart."""
RELIABLE = 0.5
"""Reliability of a sampler's reward below which most of its variance is noise."""


def objectives_view(folder: Folder, colours: Colours) -> View | None:
    """Return the data of the section on objectives; None if no run has several objectives."""
    lines_of = defaultdict(list)
    names: dict[str, None] = {}
    for line in folder.curves:
        if line["arm"] in colours and "objective_steps" in line:
            lines_of[line["arm"]].append(line)
            names |= dict.fromkeys(line["objective_steps"])
    if not names:
        return None
    painted = dict(zip(names, cycle(GROUPS)))
    shares = []
    for arm, lines in lines_of.items():
        points = _shares(lines)
        if points:
            spec = line_chart(
                points,
                painted,
                title=None,
                percent=True,
                zero=True,
                means=True,
                rule=1 / len(names),
            )
            shares.append({"name": arm, "spec": spec})
    recipe = folder.study["recipe"]
    return {
        "objectives": painted,
        "shares": shares,
        "table": [_row(folder, arm, lines, names) for arm, lines in lines_of.items()],
        "wanted": RELIABLE,
        # Fifteen recorded studies have the phases of their recipe under the former key.
        "phases": bool(recipe.get("phases") or recipe.get("intermediate")),
    }


def _shares(lines: list[LogLine]) -> list[LogLine]:
    """Return points of the sampling probabilities, if they change and mix objectives."""
    known = [line for line in lines if "probabilities" in line]
    different = defaultdict[int, set[tuple[float, ...]]](set)
    for line in known:
        different[line["seed"]].add(tuple(line["probabilities"].values()))
    # Every run may have constant shares of its own.
    change = any(len(of_run) > 1 for of_run in different.values())
    # If one objective always has probability 1, the rule does not mix objectives.
    mixed = any(max(shares, default=1) < 1 for shares in chain.from_iterable(different.values()))
    points: list[LogLine] = []
    if not change or not mixed:
        return points
    for line in thin(known, MOST_SMALL):
        place = {"seed": line["seed"], "step": line["step"]}
        for name, share in line["probabilities"].items():
            points.append({**place, "arm": name, "value": share})
    return points


def _row(folder: Folder, arm: str, lines: list[LogLine], names: Iterable[str]) -> View:
    steps = Counter[str]()
    # The last line of a run contains totals.
    ends = {}
    for line in lines:
        steps.update(line["objective_steps"])
        ends[line["seed"]] = line
    seconds = mean([line.get("seconds") or 0.0 for line in ends.values()])
    probing = None
    if seconds:
        probes = [line["probe_seconds"] for line in ends.values() if "probe_seconds" in line]
        probing = mean([each / seconds for each in probes])
    costs = [cost for cost in folder.of_kind("cost") if cost["arm"] == arm]
    usual = folder.study["recipe"].get("sampler", "")
    facts: Mapping[str, object] = folder.study["arms"].get(arm, {})
    return {
        "arm": arm,
        "sampler": facts.get("sampler", usual),
        "shares": {name: steps[name] / max(steps.total(), 1) for name in names},
        "steps": steps.total() / len(ends),
        "seconds": seconds,
        "probing": probing,
        # Runs of earlier versions have no such field.
        "updates": mean([line["updates"] for line in ends.values() if "updates" in line]),
        "reliability": mean(
            [line["reliability"] for line in ends.values() if "reliability" in line]
        ),
        "flops": mean([cost["flops"] for cost in costs if "flops" in cost]),
    }
