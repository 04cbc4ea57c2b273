"""Which charts a page has: picks the points out of a folder's records and curves, and has them
drawn.

A chart without points is left out of the page. Trainings on several objectives have a section of
their own: which objective had the steps, what became of each, what choosing cost.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import median

from maskwise.constants import BLUE, CORRELATIONS, LOWER_IS_BETTER, ORANGE, REFERENCE, shade
from maskwise.files import Crossing
from maskwise.report.drawing import (
    GROUPS,
    Colours,
    Point,
    View,
    choice_chart,
    dot_chart,
    gain_chart,
    group_chart,
    line_chart,
    outcome_label,
    probe_chart,
    share_chart,
)
from maskwise.report.reading import Folder, Line

MOST_POINTS = 200  # per line: more is not seen
MOST_SMALL = 60  # per line of a small chart
MOST_NOTES = 5  # of a sampler, the most frequent first
RELIABLE = 0.5
"""Below this, more of a sampler's reward is chance than is not."""
# in the notes of samplers (``samplers.mometas``), behind the name of an objective
STARVED = " is starved"
# An objective is called starved if an even share would have been so many steps, and it had less
# than this share of it. (Of five objectives drawn evenly, 25 steps leave a given one below that
# with probability .03, any of them .13.)
EVEN_STEPS, STARVED_SHARE = 5, 0.25
QUANTITIES = ("steps", "tokens", "targets", "flops", "seconds")

Runs = dict[int, list[Line]]
"""The curves of an arm, by seed."""


def score_charts(folder: Folder, colours: Colours) -> list[View]:
    """One dot chart per task."""
    charts: list[View] = []
    majorities = folder.numbers("score", "majority")
    for measure, by_arm in folder.numbers("score").items():
        facts = folder.study["tasks"].get(measure[0], {})
        metric = facts.get("metric", "score")
        scale = 100 if metric in CORRELATIONS else 1
        points = _points(by_arm, colours, scale=scale)
        if not points:
            continue
        majority = facts.get("majority") or mean(_values(majorities[measure]))
        scratch = mean([scale * score for score in by_arm.get(REFERENCE, {}).values()])
        references = {"commonest answer": majority, folder.reference: scratch}
        lower = metric in LOWER_IS_BETTER
        percent = not lower and scale == 1 and all(0 <= point["value"] <= 1 for point in points)
        spec = dot_chart(
            points,
            colours,
            title=f"{metric} ({'left' if lower else 'right'} is better)",
            references={label: at for label, at in references.items() if at is not None},
            percent=percent,
        )
        charts.append(
            {
                "name": measure[0],
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


def coverage_view(folder: Folder, colours: Colours) -> View | None:
    """By task and arm: the share of right answers that stand in its corpus, the share of those that
    it masks whole, and what it gained over the reference, which has no such training. None where no
    task has texts for answers.
    """
    lines = [record for record in folder.records if record["kind"] == "coverage"]
    scores = {task: by_arm for (task, _), by_arm in folder.numbers("score").items()}
    rows: list[View] = []
    points: list[Point] = []
    for line in (line for line in lines if "arm" in line):
        task, arm = line["task"], line["arm"]
        texts = [other for other in lines if other["task"] == task and "standing" in other]
        # a world for each run
        texts = [other for other in texts if other["corpus"] == line["corpus"]] or texts
        score, start = (
            mean([*scores.get(task, {}).get(name, {}).values()]) for name in (arm, REFERENCE)
        )
        gain = None if score is None or start is None else score - start
        if (
            gain is not None
            and folder.study["tasks"].get(task, {}).get("metric") in LOWER_IS_BETTER
        ):
            gain = -gain
        places = line["occurrences"]
        masked = line["whole"] / places if places else None
        if gain is not None and masked is not None:
            points.append({"arm": arm, "x": masked, "value": gain})
        rows.append(
            {
                "task": task,
                "arm": arm,
                "corpus": line["corpus"],
                "masked": masked,
                "gain": gain,
                "part": line["part"] / places if places else None,
                "occurrences": places,
                "standing": mean([other["standing"] / other["items"] for other in texts]),
            }
        )
    if not rows:
        return None
    return {
        "rows": rows,
        "spec": gain_chart(points, colours, over=folder.reference) if points else None,
    }


def transfer_view(folder: Folder) -> View | None:
    """What every learned policy adds on every task: rows of cells, blue where it helps and orange
    where it harms.

    None where no study of transfer was made.
    """
    cells = folder.summary.get("transfer", [])
    if not cells:
        return None
    reach = max((abs(cell["mean"]) for cell in cells if cell["mean"] is not None), default=0) or 1.0
    by_arm: dict[str, list[View]] = defaultdict(list)
    for cell in cells:
        nats = folder.study["tasks"].get(cell["task"], {}).get("metric") in LOWER_IS_BETTER
        points = [
            None if x is None else x * (1 if nats else 100)
            for x in (cell["mean"], cell["low"], cell["high"])
        ]
        gain = cell["mean"] or 0.0
        by_arm[cell["arm"]].append(
            {
                "mean": points[0],
                "low": points[1],
                "high": points[2],
                "own": cell["task"] == cell["learned_from"],
                "digits": 2 if nats else 1,
                "shade": shade(abs(gain) / reach, BLUE if gain > 0 else ORANGE),
            }
        )
    rows = [{"arm": arm, "cells": line} for arm, line in by_arm.items()]
    return {"tasks": list(dict.fromkeys(cell["task"] for cell in cells)), "rows": rows}


def heldout_charts(folder: Folder, colours: Colours) -> list[View]:
    """One dot chart per kind of mask and ratio, with the unigram line and the plateau beside it."""
    charts: list[View] = []
    unigrams = folder.numbers("heldout", "unigram")
    for measure, by_arm in folder.numbers("heldout").items():
        points = _points(by_arm, colours)
        if not points:
            continue
        unigram = mean(_values({arm: x for arm, x in unigrams[measure].items() if arm in colours}))
        start = next(iter(by_arm.get(REFERENCE, {}).values()), None)  # of any seed
        lines = {} if start is None else {folder.reference: start}
        title = "loss in nats (left is better)"
        spec = dot_chart(points, colours, title=title, plateau=unigram, references=lines)
        masks, ratio = measure
        charts.append(
            {"masks": masks, "ratio": ratio, "unigram": unigram, "start": start, "spec": spec}
        )
    return charts


def curve_charts(folder: Folder, colours: Colours) -> View:
    """Training loss, realised ratio and held-out losses over the steps, as far as they were logged."""
    charts: View = {}
    train = [line for line in folder.curves if line["kind"] == "train"]
    if losses := thin([line for line in train if "loss" in line]):
        by_tokens = all("tokens" in line for line in losses)
        x, title = ("tokens", "tokens read") if by_tokens else ("step", "step")
        points = [_point(line, line["loss"], x) for line in losses]
        charts["train"] = line_chart(
            points, colours, x=x, x_title=title, y_title="training loss, nats"
        )
    if ratios := thin([line for line in train if "ratio" in line]):
        points = [_point(line, line["ratio"]) for line in ratios]
        for point, line in zip(points, ratios):
            if "scheduled_ratio" in line:
                point["scheduled"] = line["scheduled_ratio"]
        charts["ratio"] = line_chart(
            points, colours, x="step", x_title="step", y_title="masked", percent=True
        )
    evaluated: dict[tuple[str, float], list[Line]] = defaultdict(list)
    for line in folder.curves:
        if line["kind"] == "eval" and "loss" in line:
            evaluated[line["masks"], line["ratio"]].append(line)
    views = []
    for (masks, ratio), same in evaluated.items():
        points = [_point(line, line["loss"]) for line in thin(same)]
        unigram = mean([line["unigram"] for line in same if line.get("unigram") is not None])
        y = "held-out loss, nats"
        spec = line_chart(
            points, colours, x="step", x_title="step", y_title=y, unigram=unigram, dots=True
        )
        views.append({"masks": masks, "ratio": ratio, "spec": spec})
    return {**charts, "eval": views}


def weight_charts(folder: Folder) -> list[View]:
    """The weights of groups that policies learnt, over the steps: one chart per arm, and per
    objective of an arm.
    """
    charts: list[View] = []
    for arm, runs in folder.runs().items():
        lines = thin(chain.from_iterable(runs.values()))
        for key in dict.fromkeys(
            key for line in lines for key in line if key.split(" ")[-1] == "weights"
        ):
            points: list[Point] = []
            for line in lines:
                weights = line.get(key)
                for group, weight in weights.items() if isinstance(weights, dict) else ():
                    points.append(
                        {"arm": group, "seed": line["seed"], "step": line["step"], "value": weight}
                    )
            if not points:  # no group was seen yet
                continue
            last = max(point["step"] for point in points)
            ends = [point for point in points if point["step"] == last]
            final = {
                p["arm"]: mean([end["value"] for end in ends if end["arm"] == p["arm"]]) or 0.0
                for p in points
            }
            order = sorted(sorted(final), key=lambda group: -final[group])
            title = " ".join([arm, *key.split(" ")[:-1]])
            charts.append({"name": title, "spec": group_chart(points, order, "weight")})
    return charts


# Several objectives
# ----------------------------------------------------------------------------------


def objectives_view(folder: Folder, colours: Colours) -> View | None:
    """None where no run chose among objectives."""
    arms: dict[str, Runs] = {}
    for arm, runs in folder.runs().items():
        choosing = {
            seed: [line for line in lines if "arm_steps" in line] for seed, lines in runs.items()
        }
        if arm in colours and any(choosing.values()):
            arms[arm] = {seed: lines for seed, lines in choosing.items() if lines}
    every = [line for runs in arms.values() for line in chain.from_iterable(runs.values())]
    names = list(dict.fromkeys(name for line in every for name in line["arm_steps"]))
    if not names:
        return None
    painted = {name: GROUPS[i % len(GROUPS)] for i, name in enumerate(names)}
    mine = {arm: colour for arm, colour in colours.items() if arm in arms}
    watched = {line["arm"] for line in every if line.get("probe_losses")}
    shares, probes = (
        {arm: _shares(arms[arm]) for arm in mine},
        {name: _probes(every, name) for name in names},
    )
    return {
        "objectives": painted,
        "watched": {arm: colour for arm, colour in mine.items() if arm in watched},
        "shares": [
            {"name": arm, "spec": share_chart(points, painted)}
            for arm, points in shares.items()
            if points
        ],
        "probes": [
            {"name": name, "spec": probe_chart(points, mine)}
            for name, points in probes.items()
            if points
        ],
        "table": [_objective_row(folder, arm, arms[arm], names) for arm in mine],
        "wanted": RELIABLE,
        "phases": bool(
            folder.study["recipe"].get("phases") or folder.study["recipe"].get("intermediate")
        ),
        "notes": {arm: notes for arm in mine if (notes := _notes(arms[arm]))},
    }


def _shares(runs: Runs) -> list[Point]:
    """Probabilities over the steps; none of a rule whose shares stand still, or that takes one
    objective at a time: the table says all of it."""
    lines = [line for run in runs.values() for line in run if "probabilities" in line]
    if len({tuple(line["probabilities"].values()) for line in lines}) < 2:
        return []
    if all(max(line["probabilities"].values(), default=1) == 1 for line in lines):
        return []
    return [
        {"arm": name, "seed": line["seed"], "step": line["step"], "value": share}
        for line in thin(lines, MOST_SMALL)
        for name, share in line["probabilities"].items()
    ]


def _probes(lines: list[Line], name: str) -> list[Point]:
    """The loss of an objective on the probe, once for every measurement."""
    points: dict[tuple[str, int, int], Point] = {}
    for line in thin(lines, MOST_SMALL):
        if name in (losses := line.get("probe_losses", {})):
            arm, seed, step = line["arm"], line["seed"], line.get("probe_step", line["step"])
            points[arm, seed, step] = {
                "arm": arm,
                "seed": seed,
                "step": step,
                "value": losses[name],
            }
    return list(points.values())


def _objective_row(folder: Folder, arm: str, runs: Runs, names: list[str]) -> View:
    steps: Counter[str] = Counter()
    for line in chain.from_iterable(runs.values()):
        steps.update(line["arm_steps"])
    ends = [run[-1] for run in runs.values()]
    seconds = sum(end.get("seconds", 0.0) for end in ends)
    probing = [end["probe_seconds"] for end in ends if "probe_seconds" in end]
    costs = [r for r in folder.whole if r["kind"] == "cost" and r["arm"] == arm]
    flops = sum(cost.get("flops", 0.0) for cost in costs)
    facts = folder.study["arms"].get(arm)
    own = facts.get("sampler") or facts["overrides"].get("sampler") if facts else None
    sampler = own or folder.study["recipe"].get("sampler")
    return {
        "arm": arm,
        "sampler": str(sampler or ""),
        "shares": {name: steps[name] / max(steps.total(), 1) for name in names},
        "steps": steps.total() / len(runs),
        "seconds": seconds / len(runs),
        "probing": sum(probing) / seconds if probing and seconds else None,
        "reliability": mean([end["reliability"] for end in ends if "reliability" in end]),
        "flops": flops / len(costs) if costs else None,
        "probing_flops": sum(c.get("probe_flops", 0.0) for c in costs) / flops
        if probing and flops
        else None,
    }


def _notes(runs: Runs) -> list[str]:
    """What a sampler noted, and how often; notes that are alike up to the first colon, comma or
    semicolon are one.

    A sampler says of one rollout that an objective is starved, which in a short one is chance: see
    ``_starved``.
    """
    counts: Counter[str] = Counter()
    for run in runs.values():
        starved = _starved(run)
        for _, note in _numbered_notes(run):
            if STARVED not in note or note.startswith(starved):
                counts[re.split(r"[,;]|: never", note)[0]] += 1
    top = counts.most_common(MOST_NOTES)
    return [f"{note} ({times} time{'s' if times > 1 else ''})" for note, times in top]


def _starved(run: list[Line]) -> tuple[str, ...]:
    """How the notes begin on objectives that a run did starve.

    From the line that says so first to the end of the run, an even share would have been at least
    ``EVEN_STEPS`` steps, and the objective had less than ``STARVED_SHARE`` of that. So one that is
    drawn again later is not named.
    """
    beginnings = []
    for name in run[0]["arm_steps"]:
        begins = f"{name}{STARVED}"
        first = next((at for at, note in _numbered_notes(run) if note.startswith(begins)), len(run))
        steps: Counter[str] = Counter()
        for line in run[first:]:
            steps.update(line["arm_steps"])
        even = steps.total() / len(run[0]["arm_steps"])
        if even >= EVEN_STEPS and steps[name] < STARVED_SHARE * even:
            beginnings.append(begins)
    return tuple(beginnings)


def _numbered_notes(run: list[Line]) -> list[tuple[int, str]]:
    """(number of the line, note) of all that a sampler noted."""
    return [(at, note) for at, line in enumerate(run) for note in line.get("notes", [])]


# Compute
# ---------------------------------------------------------------------------------------------


def compute_view(folder: Folder, colours: Colours) -> View | None:
    """None where no cost was recorded."""
    known = folder.summary["efficiency"]
    seconds: Counter[tuple[str, int, float]] = Counter()
    for line in folder.timings:  # every training stage of the run
        if line["kind"] == "pretrain" and line["purpose"] == "main":
            seconds[line["arm"], line["seed"], line["fraction"]] += line["seconds"]  # type: ignore[assignment]
    points: list[Point] = []
    for run in known["points"]:
        spent = seconds[run["arm"], run["seed"], run["fraction"]]
        place = {key: value for key, value in run.items() if key != "values"} | (
            {"seconds": spent} if spent else {}
        )
        for name, value in run["values"].items():
            measure = outcome_label(name) + (" loss" if name.startswith("heldout:") else "")
            if run["arm"] in colours:
                points.append({**place, "measure": measure, "value": value})  # type: ignore[typeddict-item]
    quantities = [name for name in QUANTITIES if any(name in point for point in points)]
    if not points or not quantities:
        return None
    measures = list(dict.fromkeys(point["measure"] for point in points))
    return {
        "spec": choice_chart(points, colours, measures=measures, quantities=quantities),
        "companions": any(point["fraction"] < 1 for point in points),
        "crossings": [_crossing(row) for row in known["crossings"]],
    }


def _crossing(row: Crossing) -> View:
    """The median over seeds, which is None where half of them or more never cross."""
    shares = [math.inf if share is None else share for share in row["shares"].values()]
    middle = median(shares)
    return {**row, "median": middle if math.isfinite(middle) else None}


# What charts share
# ------------------------------------------------------------------------------------


def thin(lines: Iterable[Line], most: int = MOST_POINTS) -> list[Line]:
    """Every k-th line of each run, so that no run has more than ``most``."""
    runs: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        runs.setdefault((line["arm"], line["seed"]), []).append(line)
    return [line for run in runs.values() for line in run[:: -(-len(run) // most)]]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _values(by_arm: Mapping[str, Mapping[int, float]]) -> list[float]:
    return [value for by_seed in by_arm.values() for value in by_seed.values()]


def _points(
    by_arm: Mapping[str, Mapping[int, float]], colours: Colours, *, scale: float = 1
) -> list[Point]:
    """A point for every run of the arms."""
    return [
        {"arm": arm, "seed": seed, "value": scale * value}
        for arm, by_seed in by_arm.items()
        if arm in colours
        for seed, value in by_seed.items()
    ]


def _point(line: Line, value: float, x: str = "step") -> Point:
    point: Point = {"arm": line["arm"], "seed": line["seed"], "value": value}
    if x == "step":
        point["step"] = line["step"]
    else:
        point["tokens"] = line["tokens"]
    return point
