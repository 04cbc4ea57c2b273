"""What a study can decide, before it runs.

A study that can never decide is not refused, because it may be meant as a pilot. How noisy paired
differences are comes from ``study.noise``, or from the records of an earlier study in the same
folder. Cost: a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from maskwise.constants import NATS
from maskwise.errors import MaskwiseError
from maskwise.files import Record, Study
from maskwise.folders import read_json, read_lines
from maskwise.recipe import Recipe
from maskwise.study.outcomes import Outcomes
from maskwise.study.statistics import (
    detectable_difference,
    fewest_runs,
    look_weight,
    power_of,
    runs_to_decide,
)
from maskwise.study.verdict.contrasts import compare, primary_pairs


class Noise(TypedDict):
    """The standard deviation of the paired differences, in ``unit``; None where it is not known."""

    noise: float | None
    noise_from: str | None
    unit: str


class Prospect(Noise):
    """What a study can say of one primary contrast."""

    arm: str
    baseline: str
    runs: int
    decidable: bool
    fewest_runs: int
    """With fewer of each arm nothing can be decided."""
    power: dict[str, float]
    """The probability of deciding a true difference of 1 and of 1.5 spreads between paired runs."""
    detectable: float
    """The smallest difference that ``max(runs, fewest_runs)`` would decide with probability .8, in
    ``unit``.
    """
    margin_runs: int | None
    """The runs that decide a difference of ``study.margin`` with probability .8; None without
    margin or noise.
    """


UNKNOWN: Noise = {"noise": None, "noise_from": None, "unit": "spreads"}


def prospects_of(recipe: Recipe, folder: Path | None = None) -> list[Prospect]:
    """What each primary contrast of a recipe can decide, that of a gate first.

    Args:
        folder: where an earlier study may have measured the noise.

    Raises:
        MaskwiseError: ``study.noise`` names a folder without a study.

    >>> from maskwise.recipe import read_recipe
    >>> [prospect] = prospects_of(read_recipe("quick-start"))
    >>> prospect["runs"], prospect["decidable"], prospect["fewest_runs"]
    (6, True, 6)
    """
    study = recipe.study
    known = _known_noise(recipe, folder)
    runs = len(study.seed_list)
    spent = 0.05 * look_weight(study.looks, runs)
    prospects: list[Prospect] = []
    for number, (arm, baseline) in enumerate(study.pairs):
        # The gate is tested first, at the full level, and costs the others nothing.
        gated = study.gate is not None
        alpha = spent if gated and number == 0 else spent / (len(study.pairs) - gated)
        noise = known.get((arm, baseline), UNKNOWN)
        sd = noise["noise"] or 1.0
        fewest = fewest_runs(alpha)
        margin_runs = None
        if noise["noise"] and study.margin:
            margin = study.margin * (100 if noise["unit"] == "points" else 1)
            margin_runs = runs_to_decide(sd, margin, alpha=alpha)
        power = {effect: power_of(1.0, float(effect), runs, alpha=alpha) for effect in ("1", "1.5")}
        prospects.append(
            {
                "arm": arm,
                "baseline": baseline,
                "runs": runs,
                "decidable": runs >= fewest,
                "fewest_runs": fewest,
                "power": {effect: round(share, 2) for effect, share in power.items()},
                **noise,
                "detectable": detectable_difference(sd, max(runs, fewest), alpha=alpha),
                "margin_runs": margin_runs,
            }
        )
    return prospects


def _known_noise(recipe: Recipe, folder: Path | None) -> dict[tuple[str, str], Noise]:
    """By contrast, from the recipe or an earlier study."""
    given = recipe.study.noise
    pairs = recipe.study.pairs
    if isinstance(given, float):
        scale, unit = (100, "points") if recipe.tasks else (1, NATS)
        noise: Noise = {"noise": scale * given, "noise_from": "study.noise", "unit": unit}
        return dict.fromkeys(pairs, noise)
    if given is not None:
        return _measured(Path(given), pairs)
    # A folder without a study, or with a damaged one, has no pilot.
    with suppress(MaskwiseError):
        return _measured(folder, pairs) if folder else {}
    return {}


def _measured(folder: Path, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Noise]:
    """The noise in a study's records; the mean of its contrasts where it did not compare a pair.

    Raises:
        MaskwiseError: no study with records is there.
    """
    study = cast(Study, read_json(folder / "study.json"))
    lines = cast(list[Record], list(read_lines(folder / "records.jsonl")))
    records = [line for line in lines if "role" not in line]
    if not study or not records:
        raise MaskwiseError(
            "study.noise names a folder without a study",
            got=str(folder),
            do="give the folder of a finished study, or a standard deviation",
        )
    table = Outcomes(records, study)
    known: dict[tuple[str, str], Noise] = {}
    for pair in primary_pairs(study):
        for one in compare(table, *pair):
            plain = one.plain[np.isfinite(one.plain)]
            if not one.row["primary"] or len(plain) < 3 or not plain.std():
                continue
            points = one.row["unit"] in ("SDs", "score") and one.row["metric"] != NATS
            scale, unit = (100, "points") if points else (1, NATS)
            source = f"{folder}, {len(plain)} runs"
            sd = scale * float(plain.std(ddof=1))
            known[pair] = {"noise": sd, "noise_from": source, "unit": unit}
    if not known:
        return {}
    variances = [(noise["noise"] or 0.0) ** 2 for noise in known.values()]
    common = {**next(iter(known.values())), "noise": float(np.sqrt(np.mean(variances)))}
    return {pair: known.get(pair, cast(Noise, common)) for pair in pairs}


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """The same in words; what holds for several contrasts is said once."""
    pairs_of: dict[str, list[str]] = {}
    for prospect in prospects:
        pair = f"{prospect['arm']} against {prospect['baseline']}"
        for line in _lines(prospect):
            pairs_of.setdefault(line, []).append(pair)
    lines = []
    for line, pairs in pairs_of.items():
        which = "every contrast" if len(pairs) == len(prospects) > 1 else ", ".join(pairs)
        lines.append(f"{which}: {line}")
    return lines


def _lines(prospect: Prospect) -> list[str]:
    runs = prospect["runs"]
    fewest = prospect["fewest_runs"]
    margin_runs = prospect["margin_runs"]
    lines = []
    power = ""
    if not prospect["decidable"]:
        are = "1 run is" if runs == 1 else f"{runs} runs are"
        lines.append(f"{are} too few for a verdict; use study.seeds={fewest}")
    else:
        shares = [f"{share:.2f} at {effect} SD" for effect, share in prospect["power"].items()]
        power = f" (power {', '.join(shares)})"
    seen = f"{prospect['detectable']:.1f} SD or more{power}; set study.noise to see this in points"
    if prospect["noise"] is not None:
        noise = f"(noise {prospect['noise']:.2g}, {prospect['noise_from']})"
        seen = f"{prospect['detectable']:.2g} {prospect['unit']} or more {noise}"
    lines.append(f"{max(runs, fewest)} runs detect differences of {seen}")
    if margin_runs is not None and margin_runs != runs:
        lines.append(f"{margin_runs:,} runs detect a difference of study.margin")
    return lines
