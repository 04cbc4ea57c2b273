"""The section on trainings with several objectives: their shares, losses and costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from statistics import fmean

from maskwise.errors import plural
from maskwise.report.charts import mean, thin
from maskwise.report.drawing import GROUPS, Colours, View, line_chart
from maskwise.report.reading import Folder, Line

MOST_SMALL = 60
"""The most points of a line in a small chart."""
MOST_NOTES = 5
"""The most notes of a sampler that are listed."""
RELIABLE = 0.5
"""The reliability below which most of a sampler's reward is noise."""


def objectives_view(folder: Folder, colours: Colours) -> View | None:
    """Return the content of the section; None if no run chose among objectives."""
    by_arm: dict[str, list[Line]] = {}
    names: dict[str, None] = {}
    for arm in colours:
        lines = [line for line in folder.curves if line["arm"] == arm and "arm_steps" in line]
        if lines:
            by_arm[arm] = lines
    # In the order of the curves, so that colours do not depend on the order of arms.
    for line in folder.curves:
        if line["arm"] in by_arm:
            names |= dict.fromkeys(line.get("arm_steps", ()))
    if not names:
        return None
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
