"""Trainings on several objectives: which of them had the steps, what became of each, what choosing cost.

All of it is read from the metrics of the runs and the records of their cost. Two kinds of small charts: shares of the
steps, one for each arm whose sampler moves them; losses on the probe, one for each objective. The rest is one table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from maskwise.report.charts import thin, whole_runs
from maskwise.report.drawing import BROWN, OKABE_ITO, SLATE
from maskwise.report.reading import Folder, finite
from maskwise.report.small import probe_chart, share_chart

MOST_SMALL = 60
"""Points of a run in a small chart."""

MOST_NOTES = 5
"""Of a sampler, the most frequent first."""

STARVED = " is starved"
"""In the notes of samplers (``samplers.mometas``), behind the name of an arm."""

EVEN_STEPS, STARVED_SHARE = 5, 0.25
"""Who is called starved: an even share would have been so many steps, and it had less than this share of it. (Of five
objectives drawn evenly, 25 steps leave a given one below that with probability .03, any of them .13.)"""

Runs = dict[str, dict[int, list[dict[str, Any]]]]


def objectives_view(folder: Folder, colours: dict[str, str]) -> dict[str, Any] | None:
    """``objectives``, ``shares``, ``probes``, ``table``, ``notes``; None where no run chose among objectives."""
    runs: Runs = {}
    for line in folder.curves:
        if isinstance(line.get("arm_steps"), dict) and finite(line.get("step")):
            runs.setdefault(line["arm"], {}).setdefault(line.get("seed", 0), []).append(line)
    names = list(dict.fromkeys(str(name) for lines in _flat(runs) for name in lines["arm_steps"]))
    if not names:
        return None
    palette = [*OKABE_ITO[:6], SLATE, BROWN]
    painted = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    mine = {arm: colour for arm, colour in colours.items() if arm in runs}
    return {
        "objectives": [{"name": name, "colour": colour} for name, colour in painted.items()],
        "watched": [{"name": arm, "colour": mine[arm]} for arm in mine if _is_watched(runs[arm])],
        "shares": [
            {"arm": arm, "spec": share_chart(rows, painted)} for arm in mine if (rows := _shares(runs[arm]))
        ],
        "probes": [
            {"name": name, "spec": probe_chart(rows, mine)} for name in names if (rows := _probes(runs, name))
        ],
        "table": [_row(folder, arm, runs[arm], names) for arm in mine],
        "notes": {arm: told for arm in mine if (told := _notes(runs[arm]))},
    }


def _shares(runs: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Probabilities over the steps. None of a rule whose shares stand still, or that takes one objective at a time:
    the table says all of it."""
    lines = [line for run in runs.values() for line in run if isinstance(line.get("probabilities"), dict)]
    if len({tuple(line["probabilities"].values()) for line in lines}) < 2:
        return []
    if all(max(line["probabilities"].values(), default=1) == 1 for line in lines):
        return []
    return [
        {"name": str(name), "seed": line.get("seed", 0), "step": line["step"], "value": value}
        for line in thin(lines, MOST_SMALL)
        for name, value in line["probabilities"].items()
        if finite(value)
    ]


def _probes(runs: Runs, name: str) -> list[dict[str, Any]]:
    """The loss of an objective on the probe, once for every measurement."""
    found = {}
    for line in thin(_flat(runs), MOST_SMALL):
        value = (line.get("probe_losses") or {}).get(name)
        if finite(value):
            step = line.get("probe_step", line["step"])
            place = line["arm"], line.get("seed", 0), step
            found[place] = {"arm": place[0], "seed": place[1], "step": step, "value": value}
    return list(found.values())


def _row(folder: Folder, arm: str, runs: dict[int, list[dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """Means over the runs of an arm: share of the steps by objective, steps, seconds and those of probes, FLOPs."""
    steps: Counter[str] = Counter()
    for line in (line for run in runs.values() for line in run):
        steps.update({str(name): n for name, n in line["arm_steps"].items() if finite(n)})
    total = sum(steps.values())
    ends = [run[-1] for run in runs.values()]
    seconds = _sum(ends, "seconds")
    probing = _sum(ends, "probe_seconds") if any("probe_seconds" in end for end in ends) else None
    costs = [r for r in whole_runs(folder) if r["kind"] == "cost" and r["arm"] == arm]
    setting = (folder.study.get("arms") or {}).get(arm, {}).get("overrides") or {}
    return {
        "arm": arm,
        "sampler": setting.get("sampler") or (folder.study.get("recipe") or {}).get("sampler") or "",
        "shares": {name: steps[name] / total if total else None for name in names},
        "steps": total / len(runs),
        "seconds": seconds / len(runs),
        "probing": probing / seconds if probing is not None and seconds else None,
        "flops": _sum(costs, "flops") / len(costs) if costs else None,
        "probing_flops": _sum(costs, "probe_flops") / (_sum(costs, "flops") or 1)
        if probing is not None
        else None,
    }


def _notes(runs: dict[int, list[dict[str, Any]]]) -> list[str]:
    """What a sampler noticed, and how often; told alike up to the first colon, comma or semicolon, it is one thing.

    A sampler says of one rollout that an arm is starved, which in a short one is chance: see ``_starved``.
    """
    told: Counter[str] = Counter()
    for run in runs.values():
        starved = _starved(run)
        told.update(
            re.split(r"[,;]|: never", note)[0]
            for _, note in _noted(run)
            if STARVED not in note or note.startswith(starved)
        )
    return [
        f"{note} ({times} time{'s' if times > 1 else ''})" for note, times in told.most_common(MOST_NOTES)
    ]


def _starved(run: list[dict[str, Any]]) -> tuple[str, ...]:
    """How the notes begin on objectives that a run did starve.

    From the line that says so first to the end of the run, an even share would have been at least ``EVEN_STEPS``
    steps, and the objective had less than ``STARVED_SHARE`` of that. So one that is drawn again later is not named.
    """
    found = []
    for name in run[0]["arm_steps"]:
        begins = f"{name}{STARVED}"
        first = next((at for at, note in _noted(run) if note.startswith(begins)), len(run))
        given: Counter[str] = Counter()
        for line in run[first:]:
            given.update({other: n for other, n in line["arm_steps"].items() if finite(n)})
        even = sum(given.values()) / len(run[0]["arm_steps"])
        if even >= EVEN_STEPS and given[name] < STARVED_SHARE * even:
            found.append(begins)
    return tuple(found)


def _noted(run: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(number of the line, note) of all that a sampler noticed."""
    return [(at, str(note)) for at, line in enumerate(run) for note in line.get("notes") or []]


def _is_watched(runs: dict[int, list[dict[str, Any]]]) -> bool:
    return any(line.get("probe_losses") for run in runs.values() for line in run)


def _flat(runs: Runs) -> list[dict[str, Any]]:
    return [line for by_seed in runs.values() for run in by_seed.values() for line in run]


def _sum(lines: Iterable[dict[str, Any]], key: str) -> float:
    return float(sum(line[key] for line in lines if finite(line.get(key))))
