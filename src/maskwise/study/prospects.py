"""Compute, before a study runs, which differences it can decide.

A study that is too small to decide is not refused, because it may be a pilot. The noise of paired
differences comes from ``study.noise``: a number, or the folder of an earlier study.
Cost: a second.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from maskwise.constants import NATS, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.recipe import Recipe
from maskwise.study.outcomes import finite_runs, read_outcomes
from maskwise.study.statistics import (
    ALPHA,
    detectable_difference,
    fewest_runs,
    look_weight,
    powers,
    runs_to_decide,
)
from maskwise.study.verdict.contrasts import compare, primary_pairs


class Noise(TypedDict):
    """The standard deviation of the paired differences, in ``unit``; None if unknown."""

    noise: float | None
    noise_from: str | None
    unit: str


class Prospect(Noise):
    """What a study can decide about one primary contrast."""

    arm: str
    baseline: str
    runs: int
    decidable: bool
    fewest_runs: int
    """The fewest runs of each arm that can decide anything."""
    power: dict[str, float]
    """The probability of deciding a true difference of 1 and of 1.5 SDs of paired differences."""
    detectable: float
    """The smallest difference, in ``unit``, that ``max(runs, fewest_runs)`` runs decide with
    probability .8."""
    margin_runs: int | None
    """The number of runs that decide a difference of ``study.margin`` with probability .8; None
    without a margin or noise."""


UNKNOWN: Noise = {"noise": None, "noise_from": None, "unit": "spreads"}


def prospects_of(recipe: Recipe) -> list[Prospect]:
    """Compute what each primary contrast of a recipe can decide, the gate's first.

    Raises:
        MaskwiseError: ``study.noise`` names a folder without a study.

    >>> from maskwise.recipe import read_recipe
    >>> gate, prospect = prospects_of(read_recipe("quick-start"))
    >>> prospect["runs"], prospect["decidable"], prospect["fewest_runs"]
    (6, True, 6)
    """
    study = recipe.study
    known = _known_noise(recipe)
    # An untrained model has no held-out loss, so contrasts with it are judged by the tasks.
    on_tasks = bool(study.outcome and recipe.tasks and recipe.model.pretrained is None)
    runs = len(study.seed_list)
    spent = ALPHA * look_weight(study.looks, runs)
    tested = len(study.pairs)
    if study.gate:
        tested -= 1
    prospects: list[Prospect] = []
    for number, (arm, baseline) in enumerate(study.pairs):
        # The gate comes first and is tested at the full level; the other contrasts share a level.
        alpha = spent
        if number or not study.gate:
            alpha /= tested
        noise = known
        if on_tasks and REFERENCE in (arm, baseline):
            noise = UNKNOWN
        # If the noise is unknown, everything is given in units of the noise.
        sd = noise["noise"] or 1.0
        fewest = fewest_runs(alpha)
        margin_runs = None
        if noise["noise"] and study.margin:
            scale = 100 if noise["unit"] == "points" else 1
            margin_runs = runs_to_decide(sd, scale * study.margin, alpha=alpha)
        prospects.append(
            {
                "arm": arm,
                "baseline": baseline,
                "runs": runs,
                "decidable": runs >= fewest,
                "fewest_runs": fewest,
                "power": powers(runs, alpha=alpha),
                **noise,
                "detectable": detectable_difference(sd, max(runs, fewest), alpha=alpha),
                "margin_runs": margin_runs,
            }
        )
    return prospects


def _known_noise(recipe: Recipe) -> Noise:
    """Find the noise of paired differences: ``study.noise``, or the noise in the study it names."""
    given = recipe.study.noise
    if given is None:
        return UNKNOWN
    if isinstance(given, float):
        points = bool(recipe.tasks) and not recipe.study.outcome
        return _noise(given, "study.noise", points=points)
    return _measured(Path(given))


def _noise(sd: float, source: str, *, points: bool) -> Noise:
    """Return the noise in points of 100, as scores are printed, or in nats."""
    if points:
        return {"noise": 100 * sd, "noise_from": source, "unit": "points"}
    return {"noise": sd, "noise_from": source, "unit": NATS}


def _measured(folder: Path) -> Noise:
    """Measure the noise in a study's records: the mean variance over its contrasts.

    Raises:
        MaskwiseError: the folder has no study with records.
    """
    table = read_outcomes(folder)
    if table is None:
        raise MaskwiseError(
            "study.noise names a folder without a study",
            got=str(folder),
            do="give the folder of a finished study, or a standard deviation",
        )
    # Differences in points and in nats do not mix.
    variances = defaultdict(list)
    for pair in primary_pairs(table.study):
        for one in compare(table, *pair):
            plain = finite_runs(one.plain)
            # Two differences estimate an SD too poorly, and equal differences give no SD.
            if one.row["primary"] and len(plain) > 2 and plain.std():
                points = one.row["unit"] in ("SDs", "score") and one.row["metric"] != NATS
                variances[points].append(float(plain.var(ddof=1)))
    if not variances:
        return UNKNOWN
    points, found = next(iter(variances.items()))
    source = f"{folder}, {len(table.study['seeds'])} runs"
    return _noise(math.sqrt(np.mean(found)), source, points=points)


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """Put prospects into words; a line that holds for several contrasts is printed once."""
    pairs_of: dict[str, list[str]] = {}
    for prospect in prospects:
        pair = f"{prospect['arm']} against {prospect['baseline']}"
        for line in _lines(prospect):
            pairs_of.setdefault(line, []).append(pair)
    lines = []
    for line, pairs in pairs_of.items():
        which = ", ".join(pairs)
        if len(pairs) == len(prospects) > 1:
            which = "every contrast"
        lines.append(f"{which}: {line}")
    return lines


def _lines(prospect: Prospect) -> list[str]:
    runs = prospect["runs"]
    fewest = prospect["fewest_runs"]
    margin_runs = prospect["margin_runs"]
    lines = []
    power = ""
    if prospect["decidable"]:
        shares = [f"{share:.2f} at {effect} SD" for effect, share in prospect["power"].items()]
        power = f" (power {', '.join(shares)})"
    else:
        are = "1 run is" if runs == 1 else f"{runs} runs are"
        lines.append(f"{are} too few for a verdict; use study.seeds={fewest}")
    detectable = prospect["detectable"]
    if prospect["noise"] is None:
        seen = f"{detectable:.1f} SD or more{power}; set study.noise to see this in points"
    else:
        noise = f"(noise {prospect['noise']:.2g}, {prospect['noise_from']})"
        seen = f"{detectable:.2g} {prospect['unit']} or more {noise}"
    lines.append(f"{max(runs, fewest)} runs detect differences of {seen}")
    if margin_runs is not None and margin_runs != runs:
        lines.append(f"{margin_runs:,} runs detect a difference of study.margin")
    return lines
