"""The charts of a page: collects their points from a folder's records and curves.

A chart without points is left out of the page.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean, median

from maskwise.constants import BLUE, CORRELATIONS, LOWER_IS_BETTER, ORANGE, REFERENCE, shade
from maskwise.errors import plural
from maskwise.estimates import outcome_label
from maskwise.report.drawing import (
    GROUPS,
    MUTED,
    Colours,
    View,
    choice_chart,
    dot_chart,
    gain_chart,
    line_chart,
    vega_code,
)
from maskwise.report.reading import Folder, Line

MOST_POINTS = 200
"""The most points of a line; more could not be seen."""
QUANTITIES = ("steps", "tokens", "targets", "flops", "seconds")


def score_charts(folder: Folder, colours: Colours) -> list[View]:
    """Return a dot chart per task."""
    charts: list[View] = []
    majorities = folder.numbers("score", "majority")
    for measure, by_arm in folder.numbers("score").items():
        task, _ = measure
        facts = folder.study["tasks"].get(task, {})
        metric = facts.get("metric", "score")
        lower = metric in LOWER_IS_BETTER
        # Correlations are drawn times 100, and the axis of shares is in per cent.
        scale = 100 if metric in CORRELATIONS else 1
        points = _points(by_arm, colours, scale=scale)
        if not points:
            continue
        majority = facts.get("majority") or mean(_values(majorities[measure]))
        scratch = mean([scale * score for score in by_arm.get(REFERENCE, {}).values()])
        shares = all(0 <= score <= 1 for score in _values(by_arm))
        percent = shares and not lower and scale == 1
        side = "left" if lower else "right"
        spec = dot_chart(
            points,
            colours,
            title=f"{metric} ({side} is better)",
            references={"commonest answer": majority, folder.reference: scratch},
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
    """Return a dot chart per kind of mask and ratio, with the loss of word frequencies."""
    charts: list[View] = []
    unigrams = folder.numbers("heldout", "unigram")
    for (masks, ratio), by_arm in folder.numbers("heldout").items():
        points = _points(by_arm, colours)
        if not points:
            continue
        trained = {arm: runs for arm, runs in unigrams[masks, ratio].items() if arm in colours}
        unigram = mean(_values(trained))
        # Untrained models hardly differ between seeds, so any of them is drawn.
        start = next(iter(by_arm.get(REFERENCE, {}).values()), None)
        spec = dot_chart(
            points,
            colours,
            title="loss in nats (left is better)",
            plateau=unigram,
            references={folder.reference: start},
        )
        charts.append(
            {"masks": masks, "ratio": ratio, "unigram": unigram, "start": start, "spec": spec}
        )
    return charts


def coverage_view(folder: Folder, colours: Colours) -> View | None:
    """Return how many right answers are in the corpus and masked, and the gain, by task and arm.

    The gain is over the reference, which has no such training. None if no task has texts that hold
    its answers.
    """
    rows: list[View] = []
    points: list[Line] = []
    lines = folder.of_kind("coverage")
    corpora = [line for line in lines if "standing" in line]
    scores = {task: by_arm for (task, _), by_arm in folder.numbers("score").items()}
    for line in lines:
        if "arm" not in line:
            continue
        task = line["task"]
        arm = line["arm"]
        texts = [other for other in corpora if other["task"] == task]
        # Fact worlds have a corpus per run; other studies have one for all.
        texts = [other for other in texts if other["corpus"] == line["corpus"]] or texts
        by_arm = scores.get(task, {})
        gain = None
        if by_arm.get(arm) and by_arm.get(REFERENCE):
            gain = fmean(by_arm[arm].values()) - fmean(by_arm[REFERENCE].values())
            if folder.study["tasks"].get(task, {}).get("metric") in LOWER_IS_BETTER:
                gain = -gain
        masked = None
        part = None
        if line["occurrences"]:
            masked = line["whole"] / line["occurrences"]
            part = line["part"] / line["occurrences"]
        if gain is not None and masked is not None:
            points.append({"arm": arm, "x": masked, "value": gain})
        standing = mean([other["standing"] / other["items"] for other in texts])
        rows.append({**line, "masked": masked, "part": part, "gain": gain, "standing": standing})
    if not rows:
        return None
    spec = gain_chart(points, colours, over=folder.reference) if points and vega_code() else None
    return {"rows": rows, "spec": spec}


def transfer_view(folder: Folder) -> View | None:
    """Return the gain of every learned policy on every task: blue is better, orange worse.

    None unless the study is one of transfer.
    """
    cells = folder.summary.get("transfer", [])
    if not cells:
        return None
    # The largest effect has the full colour.
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
    """Return training loss, realised ratio and held-out losses over the steps, where logged."""
    charts: View = {}
    train = [line for line in folder.curves if line["kind"] == "train"]
    losses = thin(line for line in train if "loss" in line)
    if losses:
        # Tokens compare arms with different batches, but not every log has them.
        x = "tokens" if all("tokens" in line for line in losses) else "step"
        points = [_point(line, line["loss"], x) for line in losses]
        charts["train"] = line_chart(points, colours, x=x, title="training loss, nats")
    ratios = thin(line for line in train if "ratio" in line)
    if ratios:
        points = []
        for line in ratios:
            point = _point(line, line["ratio"])
            if "scheduled_ratio" in line:
                point["scheduled"] = line["scheduled_ratio"]
            points.append(point)
        charts["ratio"] = line_chart(points, colours, title="masked", percent=True, zero=True)
    evaluated: dict[tuple[str, float], list[Line]] = defaultdict(list)
    for line in folder.curves:
        if line["kind"] == "eval" and "loss" in line:
            evaluated[line["masks"], line["ratio"]].append(line)
    views: list[View] = []
    for (masks, ratio), lines in evaluated.items():
        unigrams = [line["unigram"] for line in lines if line.get("unigram") is not None]
        spec = line_chart(
            [_point(line, line["loss"]) for line in thin(lines)],
            colours,
            title="held-out loss, nats",
            dots=True,
            rule=mean(unigrams),
            label="word frequencies",
        )
        views.append({"masks": masks, "ratio": ratio, "spec": spec})
    return {**charts, "eval": views}


def weight_charts(folder: Folder) -> list[View]:
    """Return a chart of learned group weights for each arm and objective."""
    charts: dict[str, list[Line]] = defaultdict(list)
    for line in thin(folder.curves):
        for key, weights in line.items():
            # The key is "weights", or "OBJECTIVE weights" with several objectives.
            *objective, what = key.split(" ")
            if what != "weights" or not isinstance(weights, dict):
                continue
            name = " ".join([line["arm"], *objective])
            for group, weight in weights.items():
                # A line per group: the chart knows only arms.
                charts[name].append(_point({**line, "arm": group}, weight))
    views: list[View] = []
    palette = [*GROUPS, *MUTED]
    for name, points in charts.items():
        last = max(point["step"] for point in points)
        final: dict[str, list[float]] = {point["arm"]: [] for point in points}
        for point in points:
            if point["step"] == last:
                final[point["arm"]].append(point["value"])
        # The legend lists groups by their final weight, as the lines end.
        means = {group: mean(weights) or 0.0 for group, weights in final.items()}
        order = sorted(means, key=lambda group: (-means[group], group))
        colours = {group: palette[place % len(palette)] for place, group in enumerate(order)}
        spec = line_chart(
            points, colours, title="weight", zero=True, means=True, legend=True, height=300
        )
        views.append({"name": name, "spec": spec})
    return views


def compute_view(folder: Folder, colours: Colours) -> View | None:
    """Return the points of quality against compute; None if no cost was recorded."""
    # A run may consist of several trainings.
    seconds: Counter[tuple[str, int, float]] = Counter()
    for line in folder.timings:
        if line["kind"] == "pretrain" and line["purpose"] == "main":
            seconds[line["arm"], line["seed"], line["fraction"]] += line["seconds"]
    points: list[Line] = []
    for run in folder.summary["efficiency"]["points"]:
        if run["arm"] not in colours:
            continue
        place: Line = {**run}
        spent = seconds[run["arm"], run["seed"], run["fraction"]]
        if spent:
            place["seconds"] = spent
        for name, value in place.pop("values").items():
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
        # A seed that never crosses is later than all others: a median of infinity is no crossing.
        shares = [math.inf if share is None else share for share in row["shares"].values()]
        middle = median(shares)
        crossings.append({**row, "median": middle if math.isfinite(middle) else None})
    return {
        "spec": choice_chart(points, colours, measures=measures, quantities=quantities),
        "companions": any(point["fraction"] < 1 for point in points),
        "crossings": crossings,
    }


def thin(lines: Iterable[Line], most: int = MOST_POINTS) -> list[Line]:
    """Keep every k-th line of each run, so that no run has more than ``most``."""
    runs: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in lines:
        runs[line["arm"], line["seed"]].append(line)
    thinned = []
    for run in runs.values():
        stride = math.ceil(len(run) / most)
        thinned += run[::stride]
    return thinned


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _values(by_arm: Mapping[str, Mapping[int, float]]) -> list[float]:
    return list(chain.from_iterable(by_seed.values() for by_seed in by_arm.values()))


def _points(
    by_arm: Mapping[str, Mapping[int, float]], colours: Colours, *, scale: float = 1
) -> list[Line]:
    """Return a point for every run of the arms that have a colour."""
    points: list[Line] = []
    for arm, by_seed in by_arm.items():
        # The untrained models are drawn as a reference line.
        if arm in colours:
            for seed, value in by_seed.items():
                points.append({"arm": arm, "seed": seed, "value": scale * value})
    return points


def _point(line: Line, value: float, x: str = "step") -> Line:
    return {"arm": line["arm"], "seed": line["seed"], "value": value, x: line[x]}


MOST_SMALL = 60
"""The most points of a line in a small chart."""
MOST_NOTES = 5
"""The most notes of a sampler that are listed."""
RELIABLE = 0.5
"""The reliability below which most of a sampler's reward is noise."""


def objectives_view(folder: Folder, colours: Colours) -> View | None:
    """Return the content of the section; None if no run chose among objectives."""
    by_arm: dict[str, list[Line]] = {arm: [] for arm in colours}
    names: dict[str, None] = {}
    # In the order of the curves, so that colours do not depend on the order of arms.
    for line in folder.curves:
        if line["arm"] in by_arm and "arm_steps" in line:
            by_arm[line["arm"]].append(line)
            names |= dict.fromkeys(line["arm_steps"])
    if not names:
        return None
    by_arm = {arm: lines for arm, lines in by_arm.items() if lines}
    painted = {name: GROUPS[place % len(GROUPS)] for place, name in enumerate(names)}
    shares: list[View] = []
    notes: dict[str, list[str]] = {}
    watched: dict[str, str] = {}
    for arm, lines in by_arm.items():
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
                height=150,
            )
            shares.append({"name": arm, "spec": spec})
        found = _notes(lines)
        if found:
            notes[arm] = found
        if any("probe_losses" in line for line in lines):
            watched[arm] = colours[arm]
    probes: list[View] = []
    for name in names:
        points = _probes(chain.from_iterable(by_arm.values()), name)
        if points:
            spec = line_chart(points, watched, title=None, means=True, runs=False, height=150)
            probes.append({"name": name, "spec": spec})
    recipe = folder.study["recipe"]
    return {
        "objectives": painted,
        "watched": watched,
        "shares": shares,
        "probes": probes,
        "table": [_row(folder, arm, lines, names) for arm, lines in by_arm.items()],
        "wanted": RELIABLE,
        "phases": bool(recipe.get("phases") or recipe.get("intermediate")),
        "notes": notes,
    }


def _shares(lines: list[Line]) -> list[Line]:
    """Return the probabilities over the steps, if the rule changes them and mixes objectives."""
    known = [line for line in lines if "probabilities" in line]
    different = {tuple(line["probabilities"].values()) for line in known}
    # A rule that always gives one objective the whole weight only switches between them.
    mixed = any(max(probabilities, default=1) < 1 for probabilities in different)
    if len(different) < 2 or not mixed:
        return []
    return [
        {"arm": name, "seed": line["seed"], "step": line["step"], "value": share}
        for line in thin(known, MOST_SMALL)
        for name, share in line["probabilities"].items()
    ]


def _probes(lines: Iterable[Line], name: str) -> list[Line]:
    """Return the loss of an objective on the probe, once per measurement."""
    points: dict[tuple[object, ...], Line] = {}
    for line in thin(lines, MOST_SMALL):
        value = line.get("probe_losses", {}).get(name)
        if value is not None:
            # Every line repeats the last measurement, so later lines replace it by itself.
            step = line.get("probe_step", line["step"])
            run = line["arm"], line["seed"]
            points[*run, step] = {"arm": run[0], "seed": run[1], "value": value, "step": step}
    return list(points.values())


def _row(folder: Folder, arm: str, lines: list[Line], names: Iterable[str]) -> View:
    steps: Counter[str] = Counter()
    for line in lines:
        steps.update(line["arm_steps"])
    # The last line of each run has its totals.
    ends = {line["seed"]: line for line in lines}.values()
    seconds = fmean(end.get("seconds", 0.0) for end in ends)
    probe_seconds = [end["probe_seconds"] for end in ends if "probe_seconds" in end]
    probing = None
    if probe_seconds and seconds:
        probing = fmean(probe_seconds) / seconds
    costs = [cost for cost in folder.of_kind("cost") if cost["arm"] == arm]
    sampler = folder.study["recipe"].get("sampler")
    facts = folder.study["arms"].get(arm)
    if facts:
        sampler = facts.get("sampler") or facts["overrides"].get("sampler") or sampler
    return {
        "arm": arm,
        "sampler": str(sampler or ""),
        "shares": {name: steps[name] / max(steps.total(), 1) for name in names},
        "steps": steps.total() / len(ends),
        "seconds": seconds,
        "probing": probing,
        "reliability": mean([end["reliability"] for end in ends if "reliability" in end]),
        "flops": mean([cost["flops"] for cost in costs if "flops" in cost]),
    }


def _notes(lines: list[Line]) -> list[str]:
    """Return the most frequent notes of samplers, with their counts."""
    counts: Counter[str] = Counter()
    for line in lines:
        for note in line.get("notes", ()):
            # A starved objective in a single rollout may be chance; the table has the shares of
            # the full run.
            if " is starved" in note:
                continue
            # Notes that differ only in the figures at their end are counted together.
            beginning, *_ = re.split(r"[,;]|: never", note)
            counts[beginning] += 1
    return [f"{note} ({plural(times, 'time')})" for note, times in counts.most_common(MOST_NOTES)]
