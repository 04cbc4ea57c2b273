"""One row per pair of arms and outcome: the paired differences, their interval, the test, and the
verdict.

One outcome of each pair is *primary*: there the test is spent, the exact sign-flip test with Holm's
correction over all primary contrasts, and there a verdict stands: ``decided``, ``no difference that
matters``, ``open`` or ``not comparable``. The other rows have a mean and an interval, and no p.
``flags`` finds what makes a row not comparable, and what caps a verdict.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import NATS, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Compute, Contrast, Detectable, Ends, Equivalence, Study
from maskwise.study.outcomes import BySeed
from maskwise.study.power import (
    P_FROM_RUNS,
    detectable_difference,
    fewest_runs,
    look_weight,
    look_weights,
    runs_to_decide,
)
from maskwise.study.statistics import (
    estimated,
    holm,
    paired_differences,
    sign_flip_interval,
    sign_flip_test,
)
from maskwise.study.verdict.flags import FIXED, raised, scope_of
from maskwise.study.verdict.table import TOLERANCE, Table

ALPHA = 0.05
# a longer way to a decision is no advice: the difference is too small to matter
MOST_MORE_RUNS = 50


@dataclass
class Comparison:
    """A row of summary.json, not judged at first, and the differences by seed that it is judged by.

    Attributes:
        plain: the same differences in plain scores, where ``differences`` are standardised.
        seeds: those of the differences.
    """

    row: Contrast
    differences: NDArray[np.float64]
    plain: NDArray[np.float64]
    seeds: list[int]
    table: Table


def primary_pairs(study: Study) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs that the page is about, as the recipe named them; that of a gate
    first.

    Raises:
        MaskwiseError: a contrast with the reference, of which nothing would be measured.
    """
    pairs = list(dict.fromkeys((arm, baseline) for arm, baseline in study["contrasts"]))
    gate = gate_of(study)
    if gate is not None:
        # With a search the gate has runs of its own, and its pair may also be compared with each
        # arm at its best.
        own_runs = isinstance(study.get("gate"), dict) and study.get("search")
        pairs = [gate, *(pair for pair in pairs if own_runs or pair != gate)]
    if (
        not study["tasks"]
        and not study.get("reference")
        and any(REFERENCE in pair for pair in pairs)
    ):
        raise MaskwiseError(
            f"a contrast names {REFERENCE}, and nothing is measured of it",
            allowed=", ".join(study["arms"]),
            do="name tasks, or leave that contrast out",
        )
    return pairs


def gate_of(study: Study) -> tuple[str, str] | None:
    """The contrast that is tested first, if the study has a gate."""
    gate = study.get("gate")
    if not gate:
        return None
    arm, baseline = gate["contrast"] if isinstance(gate, dict) else gate
    return arm, baseline


def closes(study: Study) -> list[tuple[str, str]]:
    """The contrasts that have no answer unless the gate passes: all of them, in studies that do not
    name them.
    """
    gate = study.get("gate")
    if isinstance(gate, dict):
        return [(arm, baseline) for arm, baseline in gate["closes"]]
    return [
        (arm, baseline) for arm, baseline in study["contrasts"] if (arm, baseline) != gate_of(study)
    ]


def compare(table: Table, arm: str, baseline: str) -> list[Comparison]:
    """The rows of one pair: all tasks first, then each task, each held-out loss, each evaluation.

    An arm whose objective has no held-out loss, and the reference, are compared by what both have.
    Without tasks the primary row is the held-out loss on the arm's own kind of mask (the mean over
    its ratios); for arms with different units or tokenizers, which no held-out loss can compare, it
    is the first evaluation that has a chance level.
    """
    both = [
        name
        for name in (*table.heldout, *table.evaluations)
        if table.values(name, arm) and table.values(name, baseline)
    ]
    own = [name for name in table.own_heldout(arm) if name in both]
    with_chance = [
        name for name in both if name in table.evaluations and _unit(table, name) == "score"
    ]
    apart = table.incomparable(arm, baseline, next(iter(own), ""))
    order = [*with_chance, *own] if apart else [*own, *with_chance]
    primary = next(iter(["tasks"] if table.tasks else order), None)
    outcomes = [*(["tasks"] if table.tasks else []), *table.tasks, *both]
    return [_comparison(table, arm, baseline, name, primary=name == primary) for name in outcomes]


def _comparison(
    table: Table, arm: str, baseline: str, outcome: str, *, primary: bool
) -> Comparison:
    mine, other = _paired(table, arm, baseline, outcome)
    differences = paired_differences(mine, other)
    plain = differences
    row: Contrast = {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "primary": primary,
        "n": len(differences),
        "higher_is_better": table.higher_is_better(outcome),
        "unit": _unit(table, outcome),
        **estimated(differences),
        "p": None,
        "p_adjusted": None,
        "metric": _metric(table, outcome, arm, baseline),
        "compute": _matched(table, arm, baseline),
        "items": None,
        "verdict": None,
        "better": None,
        "scope": FIXED,
        "flags": [],
        "runs_to_decide": None,
        "detectable": None,
        "brief": "",
        "sentence": "",
    }
    if outcome == "tasks":
        name = f"plain:{table.judged_by(outcome, arm, baseline)}"
        sides = [table.values(name, each) for each in (arm, baseline)]
        plain = paired_differences(*({seed: side[seed] for seed in mine} for side in sides))
        units = {_unit(table, task) for task in table.measured(outcome, arm, baseline)}
        if len(units) == 1:  # nats and points have no mean
            row["natural"] = estimated(plain)
    row["items"] = _items_interval(table, row, float(plain.mean()) if len(plain) else 0.0)
    return Comparison(row, differences, plain, sorted(mine), table)


def _unit(table: Table, outcome: str) -> str:
    if outcome.startswith("heldout:"):
        return NATS
    if not outcome.startswith("evaluation:"):
        unit = NATS if _metric(table, outcome) == NATS else "score"
        return table.unit if outcome == "tasks" and table.unit == "SDs" else unit
    if table.chance(outcome)[0] is not None and table.higher_is_better(outcome):
        return "score"
    return "perplexity" if "perplexity" in outcome else _metric(table, outcome) or "score"


def _metric(table: Table, outcome: str, *pair: str) -> str | None:
    if outcome.startswith("heldout:"):
        return None
    if outcome in table.evaluation_facts:
        return table.evaluation_facts[outcome]["metric"]
    metrics = {table.task_facts(name).get("metric") for name in table.measured(outcome, *pair)}
    return metrics.pop() if len(metrics) == 1 else None


def _paired(table: Table, arm: str, baseline: str, outcome: str) -> tuple[BySeed, BySeed]:
    """Both sides on the seeds they share."""
    mine, other = (
        table.values(table.judged_by(outcome, arm, baseline), each) for each in (arm, baseline)
    )
    for name, lost in ((arm, other.keys() - mine.keys()), (baseline, mine.keys() - other.keys())):
        missing = sorted(lost - table.failed.get(name, set()))
        if missing and name != REFERENCE:
            raise MaskwiseError(
                f"arm {name!r} lacks seeds that its partner has ({outcome})",
                got=f"no seed {', '.join(map(str, missing))}",
                do="run the study to its end, or drop those seeds",
            )
    shared = sorted(mine.keys() & other.keys())
    return {seed: mine[seed] for seed in shared}, {seed: other[seed] for seed in shared}


def _matched(table: Table, arm: str, baseline: str) -> Compute:
    mine, other = table.compute(arm), table.compute(baseline)
    ratios = {key: mine[key] / other[key] for key in mine if key in other}
    by = table.matched_by
    return {
        "by": by,
        "matched": by in ratios and abs(ratios[by] - 1) <= TOLERANCE,
        "ratios": ratios,
    }


def _items_interval(table: Table, row: Contrast, mean: float) -> Ends | None:
    """The other interval: what other test items could have said, in natural units; never mixed with
    the first.

    From resampled sentences and documents, where records have that, else from the spread of the
    items' scores, else binomial, for metrics that are a share of items. Both arms answer the same
    items, and records do not say which: the answers are taken to correlate one half, so that a
    difference is as uncertain as one share. Tasks on the same texts are taken to be lucky together,
    others independently.
    """
    names = table.measured(row["outcome"], row["arm"], row["baseline"])
    errors: dict[str, float] = defaultdict(float)
    for name in names:
        variance = table.noise_of_items(name, (row["arm"], row["baseline"]))
        if variance is None or (row["outcome"] == "tasks" and "natural" not in row):
            return None
        errors[table.task_facts(name).get("test_texts", name)] += math.sqrt(variance)
    if not errors:
        return None
    variance = sum(error**2 for error in errors.values())
    half = 1.96 * math.sqrt(variance) / len(names)
    return {"low": mean - half, "high": mean + half}


# Verdicts
# --------------------------------------------------------------------------------------------


def decide(
    gate: Sequence[Comparison], others: Sequence[Comparison], table: Table, names: Mapping[str, str]
) -> None:
    """Write p, p_adjusted, verdict, better, scope, flags, runs_to_decide and detectable into the
    rows.

    The gate is tested first, at the full level. The contrasts that it closes are tested only if it
    passes, so neither costs the other anything (a serial gatekeeper; Maurer, Hothorn and Lehmacher
    1995).
    """
    _judge(gate, names)
    for one in gate:
        if one.row["primary"] and not _passes(one.row):
            table.failed_gate = one.row
            table.closed = dict.fromkeys(closes(table.study), one.row)
    _judge(others, names)


def _passes(row: Contrast) -> bool:
    """Whether a gate's arm beats its baseline.

    In older studies one search served all seeds, and the two sides of a gate may have other
    settings. That leaves the row open; it passes all the same, because it asks whether the study
    sees a difference, and not where that is from.
    """
    doubts = [flag["code"] for flag in row["flags"] if flag["effect"] != "notes"]
    if row["p_adjusted"] is None or row["p_adjusted"] >= ALPHA or set(doubts) - {"settings-differ"}:
        return False
    return _is_ahead(row)


def _is_ahead(row: Contrast) -> bool:
    return ((row["mean"] or 0) > 0) == row["higher_is_better"]


def _judge(comparisons: Sequence[Comparison], names: Mapping[str, str]) -> None:
    for one in comparisons:
        one.row["flags"] = raised(one.row, one.table, names)
        one.row["scope"] = scope_of(one.row, one.table)
        if any(flag["effect"] == "invalid" for flag in one.row["flags"]) or one.row["mean"] is None:
            one.row["verdict"] = "not comparable"
    primaries = [one for one in comparisons if one.row["primary"]]
    tested = [one for one in primaries if one.row["verdict"] is None]
    for one in tested:
        if one.row["n"] >= P_FROM_RUNS:
            one.row["p"] = _p_value(one)
    # Contrasts without a p keep their place in the family, as p = 1: it was planned, and is not
    # chosen by what came.
    adjusted = holm([1.0 if one.row["p"] is None else one.row["p"] for one in primaries])
    for one, p in zip(primaries, adjusted):
        one.row["p_adjusted"] = None if one.row["p"] is None else p
    for one in tested:
        _conclude(one, family=len(primaries))


def _p_value(one: Comparison) -> float:
    """That of the sign-flip test; with planned looks, of all looks so far together."""
    study = one.table.study
    looks = study.get("looks")
    if not looks:
        return sign_flip_test(one.differences)
    p_values = [1.0]
    for runs, weight in zip(looks, look_weights(looks)):
        seen = np.isin(one.seeds, study["seeds"][:runs])
        if runs <= len(study["seeds"]) and seen.any():  # all runs of a look may have failed
            p_values.append(sign_flip_test(one.differences[seen]) / weight)
    return min(p_values)


def _conclude(one: Comparison, *, family: int) -> None:
    """The verdict of a primary row that can be compared."""
    row = one.row
    capped = any(flag["effect"] == "caps" for flag in row["flags"])
    p = row["p_adjusted"]
    inside = _within_margin(one, family=family)
    if p is not None and p < ALPHA and not capped:
        row["verdict"] = "decided"
        row["better"] = "arm" if _is_ahead(row) else "baseline"
    elif inside is not None and not capped:
        row["verdict"] = "no difference that matters"
        row["equivalence"] = inside
    else:
        row["verdict"] = "open"
        if row["n"] > 1 and not capped:
            row["runs_to_decide"], row["detectable"] = _plan(one, alpha=ALPHA / family)


def _within_margin(one: Comparison, *, family: int) -> Equivalence | None:
    """The interval that lies within the margin of the study, in plain scores or nats; None where it
    does not.

    The inverted test at 1 − alpha / the number of contrasts, shared with planned looks, so that
    arms which differ by the whole margin are called equal in at most 5 % of studies. So few runs
    may have no interval at this level.
    """
    row, study = one.row, one.table.study
    margin = study.get("margin")
    measured = "natural" in row or row["unit"] in ("score", NATS)
    if margin is None or not measured:
        return None
    weight = look_weight(study.get("looks"), len(study["seeds"]))
    confidence = 1 - ALPHA * weight / family
    interval = sign_flip_interval(one.plain, confidence=confidence)
    if interval is None or interval[0] < -margin or interval[1] > margin:
        return None
    return {"margin": margin, "confidence": confidence, "low": interval[0], "high": interval[1]}


def _plan(one: Comparison, *, alpha: float) -> tuple[int | None, Detectable]:
    """How many runs of each arm would decide, and what a number of runs that can decide would see.

    The number is that for a power of .8, were the difference as large as it looks; None for more
    than ``MOST_MORE_RUNS`` further ones.
    """
    n = len(one.differences)
    needed = runs_to_decide(
        float(one.differences.std(ddof=1)), float(one.differences.mean()), alpha=alpha
    )
    if needed is not None and needed > n + MOST_MORE_RUNS:
        needed = None
    runs = max(n, fewest_runs(alpha))
    seen = detectable_difference(float(one.plain.std(ddof=1)), runs, alpha=alpha)
    return None if needed is None else max(needed, n + 1), {"runs": runs, "difference": seen}
