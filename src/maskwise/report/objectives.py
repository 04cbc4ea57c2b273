"""The section on trainings with several objectives: which had the steps, what became of each, and
what choosing cost.
"""

from __future__ import annotations

import re
from collections import Counter
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
    lines = [line for line in folder.curves if "arm_steps" in line and line["arm"] in colours]
    if not lines:
        return None
    names = list(dict.fromkeys(name for line in lines for name in line["arm_steps"]))
    painted = {name: GROUPS[place % len(GROUPS)] for place, name in enumerate(names)}
    by_arm = {arm: [line for line in lines if line["arm"] == arm] for arm in colours}
    by_arm = {arm: own for arm, own in by_arm.items() if own}
    mine = {arm: colours[arm] for arm in by_arm}
    shares = {arm: _shares(own) for arm, own in by_arm.items()}
    probes = {name: _probes(lines, name) for name in names}
    notes = {arm: _notes(own) for arm, own in by_arm.items()}
    recipe = folder.study["recipe"]
    even = 1 / len(names)
    return {
        "objectives": painted,
        "watched": {
            arm: mine[arm] for arm, own in by_arm.items() if any("probe_losses" in x for x in own)
        },
        "shares": [
            {
                "name": arm,
                "spec": line_chart(
                    points,
                    painted,
                    title=None,
                    percent=True,
                    zero=True,
                    means=True,
                    rule=even,
                    height=150,
                ),
            }
            for arm, points in shares.items()
            if points
        ],
        "probes": [
            {
                "name": name,
                "spec": line_chart(points, mine, title=None, means=True, runs=False, height=150),
            }
            for name, points in probes.items()
            if points
        ],
        "table": [_row(folder, arm, own, names) for arm, own in by_arm.items()],
        "wanted": RELIABLE,
        "phases": bool(recipe.get("phases") or recipe.get("intermediate")),
        "notes": {arm: found for arm, found in notes.items() if found},
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


def _probes(lines: list[Line], name: str) -> list[Line]:
    """The loss of an objective on the probe, once for every measurement."""
    points: dict[tuple[str, int, int], Line] = {}
    for line in thin(lines, MOST_SMALL):
        value = line.get("probe_losses", {}).get(name)
        if value is not None:
            point = {"arm": line["arm"], "seed": line["seed"], "value": value}
            point["step"] = line.get("probe_step", line["step"])
            points[point["arm"], point["seed"], point["step"]] = point
    return list(points.values())


def _row(folder: Folder, arm: str, lines: list[Line], names: list[str]) -> View:
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
    notes = [note for line in lines for note in line.get("notes", ()) if " is starved" not in note]
    counts = Counter(re.split(r"[,;]|: never", note)[0] for note in notes)
    top = counts.most_common(MOST_NOTES)
    return [f"{note} ({times} time{'s' if times > 1 else ''})" for note, times in top]
