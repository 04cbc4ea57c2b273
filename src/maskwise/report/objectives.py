"""The section on trainings with several objectives: which had the steps, what became of each, and
what choosing cost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from statistics import fmean

from maskwise.report.charts import mean, thin
from maskwise.report.drawing import GROUPS, Colours, View, line_chart
from maskwise.report.reading import Folder, Line

MOST_SMALL = 60
"""Points of a line in a small chart."""
MOST_NOTES = 5
"""Of a sampler, the most frequent first."""
RELIABLE = 0.5
"""Below this, more of a sampler's reward is chance than is not."""


def objectives_view(folder: Folder, colours: Colours) -> View | None:
    """None where no run chose among objectives."""
    by_arm: dict[str, list[Line]] = {arm: [] for arm in colours}
    names: dict[str, None] = {}
    for line in folder.curves:
        if "arm_steps" in line and line["arm"] in colours:
            by_arm[line["arm"]].append(line)
            names |= dict.fromkeys(line["arm_steps"])
    if not names:
        return None
    by_arm = {arm: own for arm, own in by_arm.items() if own}
    painted = {name: GROUPS[place % len(GROUPS)] for place, name in enumerate(names)}
    shares: list[View] = []
    notes: dict[str, list[str]] = {}
    watched: dict[str, str] = {}
    for arm, own in by_arm.items():
        points = _shares(own)
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
        found = _notes(own)
        if found:
            notes[arm] = found
        if any("probe_losses" in line for line in own):
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
        "table": [_row(folder, arm, own, names) for arm, own in by_arm.items()],
        "wanted": RELIABLE,
        "phases": bool(recipe.get("phases") or recipe.get("intermediate")),
        "notes": notes,
    }


def _shares(lines: list[Line]) -> list[Line]:
    """Probabilities over the steps, of a rule that moves them and mixes objectives."""
    known = [line for line in lines if "probabilities" in line]
    different = {tuple(line["probabilities"].values()) for line in known}
    mixed = any(max(probabilities, default=1) < 1 for probabilities in different)
    if len(different) < 2 or not mixed:
        return []
    return [
        {"arm": name, "seed": line["seed"], "step": line["step"], "value": share}
        for line in thin(known, MOST_SMALL)
        for name, share in line["probabilities"].items()
    ]


def _probes(lines: Iterable[Line], name: str) -> list[Line]:
    """The loss of an objective on the probe, once for every measurement."""
    points: dict[tuple[str, int, int], Line] = {}
    for line in thin(lines, MOST_SMALL):
        value = line.get("probe_losses", {}).get(name)
        if value is not None:
            point = {"arm": line["arm"], "seed": line["seed"], "value": value}
            point["step"] = line.get("probe_step", line["step"])
            points[point["arm"], point["seed"], point["step"]] = point
    return list(points.values())


def _row(folder: Folder, arm: str, lines: list[Line], names: Iterable[str]) -> View:
    steps: Counter[str] = Counter()
    for line in lines:
        steps.update(line["arm_steps"])
    ends = {line["seed"]: line for line in lines}.values()
    seconds = fmean(end.get("seconds", 0.0) for end in ends)
    probing = [end["probe_seconds"] for end in ends if "probe_seconds" in end]
    costs = [cost for cost in folder.of_kind("cost") if cost["arm"] == arm]
    facts = folder.study["arms"].get(arm)
    sampler = folder.study["recipe"].get("sampler")
    if facts:
        sampler = facts.get("sampler") or facts["overrides"].get("sampler") or sampler
    return {
        "arm": arm,
        "sampler": str(sampler or ""),
        "shares": {name: steps[name] / max(steps.total(), 1) for name in names},
        "steps": steps.total() / len(ends),
        "seconds": seconds,
        "probing": fmean(probing) / seconds if probing and seconds else None,
        "reliability": mean([end["reliability"] for end in ends if "reliability" in end]),
        "flops": mean([cost["flops"] for cost in costs if "flops" in cost]),
    }


def _notes(lines: list[Line]) -> list[str]:
    """What samplers noted, and how often; notes that are alike up to the first comma are one.

    That an objective is starved is left out: a sampler says it of one rollout, where it may be
    chance, and the table has the shares of the whole run.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        notes = [note for note in line.get("notes", ()) if " is starved" not in note]
        counts.update(re.split(r"[,;]|: never", note)[0] for note in notes)
    top = counts.most_common(MOST_NOTES)
    return [f"{note} ({times} time{'s' if times > 1 else ''})" for note, times in top]
