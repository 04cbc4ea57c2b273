"""The power of a planned study: what the runs of a recipe can decide.

Differences are counted in standard deviations (SDs) of the paired differences. If this spread is
known, from a pilot study or from the user, they are also counted in points or nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from maskwise.base.errors import MaskwiseError, option
from maskwise.evaluation.measures.heldout import BOUND
from maskwise.evaluation.scoring import PSEUDO_PERPLEXITY
from maskwise.report.reading import read_outcomes
from maskwise.results.estimates import SPREADS, detected_words
from maskwise.studies.records import has_results
from maskwise.verdict.comparison import compared
from maskwise.verdict.flags import FLAGS
from maskwise.verdict.outcomes import Outcomes, Pair, finite_pairs, finite_runs
from maskwise.verdict.statistics import (
    ALPHA,
    MOST_RUNS,
    detectable_difference,
    detectable_sds,
    fewest_runs,
    look_weight,
    powers,
    runs_to_decide,
    sample_sd,
    upper_sd,
)

if TYPE_CHECKING:
    from maskwise.recipe import Recipe
    from maskwise.results.files import Study


class Spread(TypedDict):
    """The SD of the paired differences of a contrast.

    ``pairs`` is the number of pairs of runs from which it is estimated, and ``folder`` that of
    their study; both are None if the user gave the SD. ``unit`` is that of the page: points, nats,
    or SDs of runs within an arm; "" if the user gave the SD. ``upper`` is the limit by which runs
    are planned: the upper 80 % confidence limit of an estimated SD, and a given SD itself.
    """

    sd: float
    upper: float
    unit: str
    pairs: int | None
    folder: str | None


class RunsNeeded(TypedDict):
    """The number of runs that detects a difference; None if it is more than ``MOST_RUNS``."""

    difference: float
    runs: int | None


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
    spread: NotRequired[Spread]
    """The SD of paired differences, if it is known."""
    detectable_difference: NotRequired[float]
    """``detectable`` in the unit of ``spread``."""
    detect: NotRequired[RunsNeeded]
    """The runs that detect the difference for which the user asks."""


def prospects_of(
    recipe: Recipe, spreads: Mapping[Pair, Spread] | None = None, *, detect: float | None = None
) -> list[Prospect]:
    """Compute the power for every primary contrast of a recipe, with the gate first.

    The gate is the contrast that must be decided before the others are tested. Studies that are too
    small for a decision are allowed, because they may be pilots.

    >>> from maskwise.recipe import read_recipe
    >>> gate, *prospects = prospects_of(read_recipe("decay"))
    >>> gate["runs"], gate["decidable"], gate["fewest_runs"]
    (10, True, 6)
    >>> [(prospect["decidable"], prospect["fewest_runs"]) for prospect in prospects]
    [(True, 7), (True, 7)]

    Args:
        spreads: the SDs of the paired differences, as far as they are known (``spreads_of``).
        detect: a difference in the unit of the spreads, for which the number of runs is computed.

    Raises:
        MaskwiseError: ``detect`` is given and no spread is known.
    """
    spreads = spreads or {}
    if detect is not None and not 0 < detect < math.inf:
        raise MaskwiseError(
            "a difference to detect must be above 0",
            got=option("detect", float(f"{detect:g}")),
            allowed="a number, such as 0.5",
        )
    if detect is not None and not spreads:
        raise MaskwiseError(
            "the runs that detect a difference follow from the SD of paired differences, which is "
            "unknown here",
            got=option("detect", float(f"{detect:g}")),
            do=f"give {option('spread')}: an SD, or the folder of a finished study with the same "
            "arms (a pilot of four runs: study.seeds=4)",
        )
    study = recipe.study
    runs = len(study.seed_list)
    spent = ALPHA * look_weight(study.interim_looks, runs)
    tested = len(study.pairs) - bool(study.gate)
    prospects: list[Prospect] = []
    for number, (arm, baseline) in enumerate(study.pairs):
        # The gate is tested at the full significance level. The other contrasts divide it.
        alpha = spent
        if number or not study.gate:
            alpha /= tested
        fewest = fewest_runs(alpha)
        prospect: Prospect = {
            "arm": arm,
            "baseline": baseline,
            "runs": runs,
            "decidable": runs >= fewest,
            "fewest_runs": fewest,
            "power": powers(runs, alpha=alpha),
            "detectable": detectable_sds(runs, alpha=alpha),
        }
        spread = spreads.get((arm, baseline))
        if spread:
            sd = spread["upper"]
            prospect["spread"] = spread
            prospect["detectable_difference"] = detectable_difference(
                sd, max(runs, fewest), alpha=alpha
            )
            if detect is not None:
                needed = runs_to_decide(sd, detect, alpha=alpha)
                prospect["detect"] = {"difference": detect, "runs": needed}
        prospects.append(prospect)
    return prospects


def spreads_of(recipe: Recipe, out: Path, given: str | float | None) -> dict[Pair, Spread]:
    """Return the SDs of paired differences for the contrasts of a recipe, as far as known.

    Args:
        out: the folder of the study, which may have results.
        given: an SD, or the folder of a finished study; None to read ``out``.

    Raises:
        MaskwiseError: ``given`` is neither, or the study in this folder has no such pairs of runs.
    """
    pairs = recipe.study.pairs
    if given is None:
        # A study that is not finished may lack runs of one side.
        with suppress(MaskwiseError):
            return recorded_spreads(out, pairs) if has_results(out) else {}
        return {}
    sd = _number(given)
    if sd is not None and not 0 < sd < math.inf:
        what = f"{option('spread')} must be above 0"
        raise MaskwiseError(what, got=given, allowed="an SD, or a folder")
    if sd is not None:
        given_sd: Spread = {"sd": sd, "upper": sd, "unit": "", "pairs": None, "folder": None}
        return dict.fromkeys(pairs, given_sd)
    folder = Path(str(given))
    if not has_results(folder):
        raise MaskwiseError(
            f"{option('spread')} is the SD of paired differences, or the folder of a finished "
            "study",
            got=str(given),
            allowed="a number above 0, in points or nats, or a folder with records.jsonl",
        )
    found = dict(_recorded(folder, pairs))
    known = {pair: spread for pair, spread in found.items() if spread["sd"]}
    if found and not known:
        raise MaskwiseError(
            f"in {folder}, the differences of all pairs of runs are equal, so their SD is 0",
            got=", ".join(f"{arm} against {baseline}" for arm, baseline in found),
            do="name a study whose differences vary, or give a number above 0",
        )
    if not known:
        raise MaskwiseError(
            f"{folder} has no two pairs of finished runs for any contrast of this recipe",
            got=", ".join(f"{arm} against {baseline}" for arm, baseline in pairs),
            do="name a study of the same arms with at least two runs of each, or give a number",
        )
    return known


def _number(given: str | float) -> float | None:
    try:
        return float(given)
    except ValueError:
        return None


def recorded_spreads(folder: Path, pairs: Sequence[Pair]) -> dict[Pair, Spread]:
    """Return the SDs of the paired differences of a study, in the units of its page.

    Contrasts with fewer than two pairs of finished runs, or without a difference between them, are
    left out.
    """
    return {pair: spread for pair, spread in _recorded(folder, pairs) if spread["sd"]}


def _recorded(folder: Path, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Spread]]:
    table = read_outcomes(folder)
    for arm, baseline in pairs:
        if table is None or not {arm, baseline} <= {*table.arms}:
            continue
        for comparison in compared(table, (arm, baseline)):
            if not comparison.primary or comparison.n < 2:
                continue
            amount = comparison.shown
            differences = finite_runs(comparison.plain)
            largest = comparison.largest
            # Tasks without a common unit have no plain differences.
            if amount.unit == SPREADS:
                differences = finite_pairs(comparison.differences).mean(axis=0)
                largest = float(comparison.scores.max())
            sd = amount.scale * sample_sd(differences, scores=largest)
            yield (
                (arm, baseline),
                {
                    "sd": sd,
                    "upper": upper_sd(sd, comparison.n),
                    "unit": amount.unit,
                    "pairs": comparison.n,
                    "folder": str(folder),
                },
            )


def incomparable_pairs(recipe: Recipe, study: Study, pairs: Iterable[Pair]) -> Iterator[str]:
    """Yield why contrasts will have no verdict, if they are judged only by losses on masked text.

    Args:
        recipe: the recipe of the study.
        study: the description of the study (``records.describe``).
        pairs: the primary contrasts.
    """
    others = recipe.evaluation.named - {BOUND, PSEUDO_PERPLEXITY}
    if recipe.tasks or recipe.study.outcome or others:
        return
    table = Outcomes([], study)
    sentences = {flag.code: flag.sentence for flag in FLAGS}
    for arm, baseline in pairs:
        code = table.incomparable(arm, baseline, table.own_heldout(arm)[0])
        if code:
            yield f"{arm} against {baseline} will not be comparable: {sentences[code]}"


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
            which = f"each of the {len(pairs)} contrasts ({which})"
        lines.append(f"{which}: {line}")
    return lines


def _lines(prospect: Prospect) -> list[str]:
    runs = prospect["runs"]
    fewest = prospect["fewest_runs"]
    lines = []
    if not prospect["decidable"]:
        are = "1 run is" if runs == 1 else f"{runs} runs are"
        lines.append(f"{are} too few for a verdict, which needs at least {fewest}")
    pairs = f"with {max(runs, fewest)} pairs of runs"
    lines.append(f"{pairs}, {detected_words(prospect['detectable'])}")
    spread = prospect.get("spread")
    if spread is None:
        return lines
    unit = f" {spread['unit']}".rstrip()
    source = "as given"
    if spread["folder"] is not None:
        seen = f"{spread['pairs']} pairs of runs in {spread['folder']}"
        source = f"the upper 80 % limit of {spread['sd']:.2g}, from {seen}"
    size = f"{prospect['detectable_difference']:.2g}{unit}"
    lines.append(f"{pairs}, this is {size}, for an SD of {spread['upper']:.2g}{unit} ({source})")
    asked = prospect.get("detect")
    if asked:
        needed = f"more than {MOST_RUNS}" if asked["runs"] is None else asked["runs"]
        lines.append(
            f"a difference of {asked['difference']:g}{unit} needs {needed} runs of each arm, to be "
            "detected with probability 0.8"
        )
    return lines
