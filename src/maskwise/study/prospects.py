"""The power of a planned study: what the runs of a recipe can decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from maskwise.estimates import detected_words
from maskwise.verdict.statistics import ALPHA, detectable_sds, fewest_runs, look_weight, powers

if TYPE_CHECKING:
    from maskwise.recipe import Recipe


class Prospect(TypedDict):
    """The power of a study for one primary contrast."""

    arm: str
    baseline: str
    runs: int
    decidable: bool
    fewest_runs: int
    """Minimum number of runs of both arms for a decision."""
    power: dict[str, float]
    """Power for true differences of 1 and 1.5 SDs of paired differences."""
    detectable: float
    """Smallest true difference, in SDs of paired differences, that ``max(runs, fewest_runs)`` runs
    decide with power .8."""


def prospects_of(recipe: Recipe) -> list[Prospect]:
    """Compute the power for every primary contrast of a recipe, with the gate first.

    The gate is the contrast that must be decided before the others are tested. Studies that are too
    small for a decision are allowed, because they may be pilots.

    >>> from maskwise.recipe import read_recipe
    >>> gate, *prospects = prospects_of(read_recipe("quick-start"))
    >>> gate["runs"], gate["decidable"], gate["fewest_runs"]
    (7, True, 6)
    >>> [(prospect["decidable"], prospect["fewest_runs"]) for prospect in prospects]
    [(True, 7), (True, 7)]
    """
    study = recipe.study
    runs = len(study.seed_list)
    spent = ALPHA * look_weight(study.looks, runs)
    tested = len(study.pairs) - bool(study.gate)
    prospects: list[Prospect] = []
    for number, (arm, baseline) in enumerate(study.pairs):
        # The gate is tested at the full significance level. The other contrasts divide it.
        alpha = spent
        if number or not study.gate:
            alpha /= tested
        fewest = fewest_runs(alpha)
        prospects.append(
            {
                "arm": arm,
                "baseline": baseline,
                "runs": runs,
                "decidable": runs >= fewest,
                "fewest_runs": fewest,
                "power": powers(runs, alpha=alpha),
                "detectable": detectable_sds(runs, alpha=alpha),
            }
        )
    return prospects


def prospect_lines(prospects: Sequence[Prospect]) -> list[str]:
    """State prospects in sentences. A sentence that is true of several contrasts is one line."""
    pairs_of: dict[str, list[str]] = {}
    for prospect in prospects:
        for line in _lines(prospect):
            pair = f"{prospect['arm']} against {prospect['baseline']}"
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
    lines = []
    if not prospect["decidable"]:
        are = "1 run is" if runs == 1 else f"{runs} runs are"
        lines.append(f"{are} too few for a verdict, which needs at least {fewest}")
    detected = detected_words(prospect["detectable"])
    return [*lines, f"with {max(runs, fewest)} pairs of runs, {detected}"]
