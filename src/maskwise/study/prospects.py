"""What a study can decide, before it runs: for every contrast whether so many runs can decide it,
the smallest difference that they detect, and how many runs it takes.

A study that can never decide is not refused, because it may be meant as a pilot. How noisy paired
differences are comes from ``study.noise``, or from the records of an earlier study in the same
folder. Cost: a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from maskwise.constants import NATS
from maskwise.errors import MaskwiseError
from maskwise.files import Record, Study
from maskwise.folders import read_json, read_lines
from maskwise.recipe import Recipe
from maskwise.study.power import (
    P_FROM_RUNS,
    detectable_difference,
    fewest_runs,
    look_weight,
    power_of,
    runs_to_decide,
)
from maskwise.study.verdict.contrasts import compare, primary_pairs
from maskwise.study.verdict.table import Table

POWER = 0.8
"""The probability with which a difference is to be seen."""


class Prospect(TypedDict):
    """What a study can say of one primary contrast."""

    arm: str
    baseline: str
    runs: int
    smallest_p: float | None
    """The smallest p that the exact test of so many runs can give, after Holm's correction; None
    where none is made.
    """
    decidable: bool
    fewest_runs: int
    """With fewer of each arm nothing can be decided."""
    power: dict[str, float]
    """The probability of deciding a true difference of 1 and of 1.5 spreads between paired runs."""
    noise: float | None
    """The standard deviation of the paired differences, in ``unit``."""
    noise_from: str | None
    unit: str
    """Points or nats; spreads between paired runs where the noise is not known."""
    detectable: float
    """The smallest difference that ``max(runs, fewest_runs)`` would decide with probability .8, in
    ``unit``.
    """
    margin_runs: int | None
    """The runs that decide a difference of ``study.margin`` with probability .8; None without
    margin or noise.
    """


class Noise(TypedDict):
    """How noisy the paired differences of a contrast are."""

    sd: float
    unit: str
    source: str


def prospects_of(recipe: Recipe, folder: Path | None = None) -> list[Prospect]:
    """What the study of a recipe can say, by primary contrast.

    >>> from maskwise.recipe import read_recipe
    >>> [(p["runs"], p["decidable"], p["fewest_runs"]) for p in prospects_of(read_recipe("quick-start"))]
    [(6, True, 6)]

    Args:
        folder: where an earlier study may be, whose records tell the noise.

    Raises:
        MaskwiseError: ``study.noise`` names a folder without a study.
    """
    study = recipe.study
    noise = _noise(recipe, folder)
    runs = len(study.seed_list)
    weight = look_weight(study.looks, runs)
    gates = 0 if study.gate is None else 1
    family = len(study.pairs) - gates
    prospects = []
    for number, pair in enumerate(study.pairs):
        tests = (1 if number < gates else family) / weight
        prospects.append(_prospect(recipe, pair, runs=runs, tests=tests, noise=noise.get(pair)))
    return prospects


def _prospect(
    recipe: Recipe, pair: tuple[str, str], *, runs: int, tests: float, noise: Noise | None
) -> Prospect:
    """Args:
    tests: how many tests share the error: contrasts, times what planned looks leave for others.
    """
    alpha, study = 0.05 / tests, recipe.study
    fewest = fewest_runs(alpha)
    enough = max(runs, fewest)
    scale = 1.0 if noise is None else noise["sd"]
    margin_runs = None
    if noise and study.margin:
        margin = study.margin * (100 if noise["unit"] == "points" else 1)
        margin_runs = runs_to_decide(noise["sd"], margin, power=POWER, alpha=alpha)
    return {
        "arm": pair[0],
        "baseline": pair[1],
        "runs": runs,
        "smallest_p": min(1.0, 2.0 ** (1 - runs) * tests) if runs >= P_FROM_RUNS else None,
        "decidable": runs >= fewest,
        "fewest_runs": fewest,
        "power": {
            f"{effect:g}": round(power_of(1.0, effect, runs, alpha=alpha), 2) for effect in (1, 1.5)
        },
        "noise": noise and noise["sd"],
        "noise_from": noise and noise["source"],
        "unit": "spreads" if noise is None else noise["unit"],
        "detectable": detectable_difference(scale, enough, POWER, alpha),
        "margin_runs": margin_runs,
    }


# Noise
# -----------------------------------------------------------------------------------------------------------


def _noise(recipe: Recipe, folder: Path | None) -> dict[tuple[str, str], Noise]:
    """The noise of every contrast of which it is known."""
    given = recipe.study.noise
    if isinstance(given, float):
        unit = "points" if recipe.tasks else NATS
        sd = given * (100 if unit == "points" else 1)
        return {
            pair: {"sd": sd, "unit": unit, "source": "study.noise"} for pair in recipe.study.pairs
        }
    if given is not None:
        return _measured(Path(given), recipe.study.pairs)
    # what lies there is no study, or a damaged one: there is no pilot
    with suppress(MaskwiseError):
        return _measured(folder, recipe.study.pairs) if folder else {}
    return {}


def _measured(folder: Path, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Noise]:
    """The noise in the records of a study; where it did not compare a pair, the mean noise of those
    that it did.

    Raises:
        MaskwiseError: no study with records is there.
    """
    study = read_json(folder / "study.json")
    records = [line for line in read_lines(folder / "records.jsonl") if "role" not in line]
    if not study or not records:
        do = "give the folder of a finished study, or a standard deviation"
        raise MaskwiseError("study.noise names a folder without a study", got=str(folder), do=do)
    described = cast(Study, study)
    table, known = Table(cast(list[Record], records), described), dict[tuple[str, str], Noise]()
    for pair in primary_pairs(described):
        for one in compare(table, *pair):
            if (
                one.row["primary"]
                and len(one.plain) > 2
                and (sd := float(one.plain.std(ddof=1))) > 0
            ):
                points = one.row["unit"] in ("SDs", "score") and one.row["metric"] != NATS
                scale, unit = (100, "points") if points else (1, NATS)
                known[pair] = {
                    "sd": scale * sd,
                    "unit": unit,
                    "source": f"{folder}, {len(one.plain)} runs",
                }
    if not known:
        return {}
    common = next(iter(known.values()))
    mean = float(np.sqrt(np.mean([noise["sd"] ** 2 for noise in known.values()])))
    return {pair: known.get(pair, {**common, "sd": mean}) for pair in pairs}


# Words
# -----------------------------------------------------------------------------------------------------------


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """The same in words; what holds for several contrasts is said once."""
    pairs_of: dict[str, list[str]] = {}
    for prospect in prospects:
        for line in _lines(prospect):
            pairs_of.setdefault(line, []).append(
                f"{prospect['arm']} against {prospect['baseline']}"
            )
    lines = []
    for line, pairs in pairs_of.items():
        which = "every contrast" if len(pairs) == len(prospects) > 1 else ", ".join(pairs)
        lines.append(f"{which}: {line}")
    return lines


def _lines(prospect: Prospect) -> Iterator[str]:
    runs, fewest = prospect["runs"], prospect["fewest_runs"]
    enough = max(runs, fewest)
    if not prospect["decidable"]:
        are = "1 run is" if runs == 1 else f"{runs} runs are"
        yield f"{are} too few for a verdict; use study.seeds={fewest}"
    if prospect["noise"] is None:
        power = ", ".join(
            f"{power:.2f} at {effect} SD" for effect, power in prospect["power"].items()
        )
        seen = f" (power {power})" if prospect["decidable"] else ""
        what = (
            f"differences of {prospect['detectable']:.1f} SD or more{seen}; set study.noise "
            f"to see this in points"
        )
    else:
        noise = f"noise {prospect['noise']:.2g}, {prospect['noise_from']}"
        what = f"differences of {prospect['detectable']:.2g} {prospect['unit']} or more ({noise})"
    yield f"{enough} runs detect {what}"
    if prospect["margin_runs"] is not None and prospect["margin_runs"] != runs:
        yield f"{prospect['margin_runs']:,} runs detect a difference of study.margin"
