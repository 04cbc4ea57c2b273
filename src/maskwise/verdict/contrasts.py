"""Contrasts between two arms: paired differences, intervals, tests and verdicts.

There is one row for every pair of arms and outcome, and one *primary* outcome for every pair. The
exact sign-flip test, with Holm's correction, and a verdict exist only for primary rows. Other rows
have a mean and an interval, but no p value.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from maskwise.constants import FIXED, NATS, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Compute, Contrast, Equivalence, ItemsInterval, Study
from maskwise.verdict.failures import failures_of
from maskwise.verdict.flags import is_ahead, scope_of
from maskwise.verdict.items import paired_item_error
from maskwise.verdict.outcomes import (
    ALL_TASKS,
    TOLERANCE,
    Numbers,
    Outcomes,
    Pair,
    finite_pairs,
    finite_runs,
)
from maskwise.verdict.statistics import (
    ALPHA,
    P_FROM_RUNS,
    detectable_difference,
    estimated,
    fewest_runs,
    holm,
    look_weight,
    look_weights,
    runs_to_decide,
    sign_flip_interval,
    sign_flip_test,
)
from maskwise.verdict.words import raised, sentences_of

MOST_MORE_RUNS = 50
"""Maximum number of additional runs that advice recommends. A difference that needs more runs is
too small to matter."""
SHARES = ("accuracy", "exact-match", "exact_match")
"""Metrics that are a share of correct items and have binomial noise."""


@dataclass
class Comparison:
    """A row of summary.json, with the differences that its verdict is computed from.

    Attributes:
        row: the row.
        differences: (tasks, seeds) paired differences of every task that the outcome averages, or
            of the outcome itself in one row; NaN for a seed without a pair of runs.
        least_sds: (tasks,) the smallest SDs of differences that count in the test.
        plain: (seeds,) the differences of the outcome without standardising.
        table: the outcomes of the compared runs.
    """

    row: Contrast
    differences: Numbers
    least_sds: Numbers
    plain: Numbers
    table: Outcomes


def matched_by(study: Study) -> str | None:
    """Return the quantity by which arms are matched; None if the file does not record it."""
    match = study.get("match")
    return match["by"] if match else None


def primary_pairs(study: Study) -> list[Pair]:
    """List the (arm, baseline) pairs of the recipe's contrasts, with the gate first.

    Raises:
        MaskwiseError: a contrast names the reference arm, which is not measured.
    """
    # JSON contains lists, which are not hashable.
    contrasts = [(arm, baseline) for arm, baseline in study["contrasts"]]
    pairs = list(dict.fromkeys(contrasts))
    gate = study.get("gate")
    if gate:
        arm, baseline = gate["contrast"]
        # With a search, the gate has separate runs at default settings, and the same pair may also
        # be a contrast at tuned settings.
        if not study.get("search"):
            pairs = [pair for pair in pairs if pair != (arm, baseline)]
        pairs = [(arm, baseline), *pairs]
    measured = study["tasks"] or study.get("reference")
    if not measured and any(REFERENCE in pair for pair in pairs):
        raise MaskwiseError(
            f"a contrast names {REFERENCE}, which has no measured outcome",
            allowed=", ".join(study["arms"]),
            do="name tasks, or remove this contrast",
        )
    return pairs


def compare(table: Outcomes, arm: str, baseline: str) -> list[Comparison]:
    """Return the rows of a pair: the mean over tasks, single tasks, held-out losses, evaluations.

    The primary outcome is ``study.outcome``, if both sides have it. Otherwise it is the mean over
    tasks. Without tasks, it is the held-out loss on the arm's own kind of mask, or, if this loss
    is not comparable, the first evaluation with a chance level.
    """
    both = []
    for name in (*table.heldout, *table.evaluations):
        if None not in (table.mean(name, arm), table.mean(name, baseline)):
            both.append(name)
    tasks = ["tasks", *table.tasks] if table.tasks else []
    own = [name for name in table.own_heldout(arm) if name in both]
    scores = [name for name in both if table.scales[name].unit == "score"]
    candidates = [*tasks, *own, *scores]
    if own and table.incomparable(arm, baseline, own[0]):
        candidates = [*tasks, *scores, *own]
    failures = max(table.failures[arm], table.failures[baseline])
    if not candidates and failures == len(table.study["seeds"]):
        # All runs of a side failed. A row without pairs keeps the contrast in its family.
        measured = [*table.own_heldout(arm), *table.evaluations]
        candidates = [name for name in measured if name in table.scales][:1]
        both += candidates
    primary = table.study.get("outcome")
    # With a single ratio, the name of the outcome contains no ratio.
    if primary and primary not in table.scales:
        primary = primary.partition("@")[0]
    if primary not in tasks + both:
        primary = next(iter(candidates), None)
    compute = _compute(table, arm, baseline)
    rows = []
    for name in tasks + both:
        rows.append(_compared(table, arm, baseline, name, compute, primary=name == primary))
    return rows


def _compute(table: Outcomes, arm: str, baseline: str) -> Compute:
    reference = table.compute(baseline)
    ratios = {}
    for key, spent in table.compute(arm).items():
        if key in reference:
            ratios[key] = spent / reference[key]
    by = matched_by(table.study)
    matched = by in ratios and abs(ratios[by] - 1) <= TOLERANCE
    return {"by": by, "matched": matched, "ratios": ratios}


def _compared(
    table: Outcomes, arm: str, baseline: str, outcome: str, compute: Compute, *, primary: bool
) -> Comparison:
    # Tasks count if arms beat the reference on dev rows. A contrast with the reference would be
    # biased by this selection, so it uses all tasks.
    name = ALL_TASKS if outcome == "tasks" and REFERENCE in (arm, baseline) else outcome
    averaged = _paired(table, name, arm, baseline)
    differences, least_sds = table.differences(name, arm, baseline)
    scale = table.scales[name]
    row: Contrast = {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "primary": primary,
        "n": int(np.isfinite(averaged).sum()),
        "higher_is_better": scale.higher_is_better,
        "unit": scale.unit,
        **estimated(finite_pairs(differences), least_sds=least_sds),
        "p": None,
        "p_adjusted": None,
        "metric": scale.metric,
        "compute": compute,
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
    plain = averaged
    if outcome == "tasks":
        plain = _paired(table, f"plain:{name}", arm, baseline)
        if f"plain:{name}" in table.scales:
            row["natural"] = estimated(finite_runs(plain))
        if any(map(table.has_least_sd, table.measured(name, arm, baseline))):
            row["least_sd"] = True
    row["failures"], row["break_even"] = failures_of(
        table, name, arm, baseline, leads=is_ahead(row)
    )
    row["items"] = _items_interval(table, row)
    return Comparison(row, differences, least_sds, plain, table)


def _paired(table: Outcomes, outcome: str, arm: str, baseline: str) -> Numbers:
    """Return the paired differences; NaN for seeds for which a run failed.

    Raises:
        MaskwiseError: a run is missing and is not recorded as failed.
    """
    runs = {side: table.runs(outcome, side) for side in (arm, baseline)}
    differences = runs[arm] - runs[baseline]
    for place in np.flatnonzero(np.isnan(differences)):
        seed = table.study["seeds"][place]
        lacking = [side for side in runs if np.isnan(runs[side][place])]
        # If both runs of a seed are missing, the pair is simply absent.
        if len(lacking) == 2 or lacking == [REFERENCE]:
            continue
        (side,) = lacking
        if table.failed.isdisjoint(product(table.trained(side), [seed])):
            raise MaskwiseError(
                f"arm {side!r} lacks a seed that the other arm has ({outcome})",
                got=f"no seed {seed}",
                do="run the study to the end, or remove this seed",
            )
    return differences


def _items_interval(table: Outcomes, row: Contrast) -> ItemsInterval | None:
    """Return the 95 % interval of a difference over the choice of test items, in natural units.

    The uncertainty from a limited number of runs is not included. The interval is computed from the
    differences between the two arms in the scores of the same items. If records do not contain
    sums of items, the answers of the two arms are assumed to correlate at .5.
    The difference then has the same standard error as one score. Errors of tasks on the same texts
    are then assumed to be fully correlated, and errors of other tasks independent.
    """
    mean = row["mean"]
    if row["outcome"] == "tasks":
        mean = row["natural"]["mean"] if "natural" in row else None
    if mean is None:
        return None
    pair = row["arm"], row["baseline"]
    names = table.measured(row["outcome"], *pair)
    if set(names) <= set(table.tasks):
        error = paired_item_error(table, names, pair)
        if error is not None:
            return {"low": mean - 1.96 * error, "high": mean + 1.96 * error, "paired": True}
    errors = defaultdict[str, float](float)
    for name in names:
        error = _item_error(table, name, pair)
        if error is None:
            return None
        facts = table.study["tasks"].get(name, {})
        errors[facts.get("test_texts", name)] += error
    half = 1.96 * math.hypot(*errors.values()) / len(names)
    return {"low": mean - half, "high": mean + half}


def _item_error(table: Outcomes, outcome: str, pair: Pair) -> float | None:
    """Return the standard error of a score over test items; None if it is unknown.

    The error comes from the first available source: the recorded error over resampled sentences
    or documents, the recorded SD of item scores, or the binomial formula.
    """
    lines = [line for line in table.lines["score"] if line["task"] == outcome]
    errors = [line["item_error"] for line in lines if line.get("item_error") is not None]
    if errors:
        return math.sqrt(np.mean(np.square(errors)))
    scale = table.scales[outcome]
    scores = np.concatenate([table.runs(outcome, arm) for arm in pair])
    if not scale.items or np.isnan(scores).all():
        return None
    spreads = [line["item_sd"] for line in lines if line.get("item_sd") is not None]
    if spreads:
        variance = np.mean(np.square(spreads))
    elif scale.metric in SHARES:
        share = np.clip(np.nanmean(scores), 0.0, 1.0)
        variance = share * (1 - share)
    else:
        return None
    return math.sqrt(variance / scale.items)


# Verdicts


def decide(gate: Sequence[Comparison], others: Sequence[Comparison], table: Outcomes) -> None:
    """Set verdicts, p values, flags and the number of needed runs in all rows.

    The gate is tested first, at the full level. The contrasts that it closes are tested only if the
    gate passes, so both tests can use the full error rate (a serial gatekeeper; Maurer, Hothorn and
    Lehmacher 1995).
    """
    _test(gate)
    closing = table.study.get("gate")
    # If all runs of the gate failed, it may have no row.
    passed = False
    for comparison in gate:
        passed |= comparison.row["primary"] and _passes(comparison.row)
    if closing and not passed:
        table.gate = primary_pairs(table.study)[0]
        table.closed = [(arm, baseline) for arm, baseline in closing["closes"]]
    _test(others)


def _passes(row: Contrast) -> bool:
    """Return whether the arm of a gate beats the baseline.

    If one search served all seeds, the two sides may have different settings. Such a row is open,
    and so is one whose arm may fail. But the gate passes, because it asks whether the study can
    detect any difference.
    """
    doubts = {flag["code"] for flag in row["flags"] if flag["effect"] != "notes"}
    p = row["p_adjusted"]
    return (
        p is not None and p < ALPHA and doubts <= {"settings-differ", "may-fail"} and is_ahead(row)
    )


def _test(comparisons: Sequence[Comparison]) -> None:
    """Set the flags of all rows, and test the primary rows as one family."""
    for comparison in comparisons:
        row = comparison.row
        row["flags"] = raised(row, comparison.table)
        row["scope"] = scope_of(row, comparison.table)
        if sentences_of(row, "invalid") or not row["n"]:
            row["verdict"] = "not comparable"
    primaries = [comparison for comparison in comparisons if comparison.row["primary"]]
    # Planned contrasts without a p value are part of the family, with p = 1.
    p_values = [1.0] * len(primaries)
    for place, comparison in enumerate(primaries):
        row = comparison.row
        if row["verdict"] is None and row["n"] >= P_FROM_RUNS:
            row["p"] = p_values[place] = _p_value(comparison)
    for comparison, p in zip(primaries, holm(p_values)):
        row = comparison.row
        if row["p"] is not None:
            row["p_adjusted"] = p
            # The flag "may-fail" is raised only against a verdict in favour of an arm.
            row["flags"] = raised(row, comparison.table)
        if row["verdict"] is None:
            _conclude(comparison, family=len(primaries))


def _p_value(comparison: Comparison) -> float:
    """Return the p value of the sign-flip test, combined over the planned looks so far."""
    study = comparison.table.study
    looks = study.get("looks")
    least_sds = comparison.least_sds
    if not looks:
        return sign_flip_test(finite_pairs(comparison.differences), least_sds=least_sds)
    p_values = [1.0]
    for runs, weight in zip(looks, look_weights(looks)):
        seen = finite_pairs(comparison.differences[:, :runs])
        # Skip looks in the future, and early looks whose runs all failed.
        if runs <= len(study["seeds"]) and seen.size:
            p_values.append(sign_flip_test(seen, least_sds=least_sds) / weight)
    return min(p_values)


def _conclude(comparison: Comparison, *, family: int) -> None:
    """Set the verdict of a comparable primary row.

    Args:
        comparison: the row and its differences.
        family: the number of contrasts that share the error rate.
    """
    row = comparison.row
    row["verdict"] = "open"
    if sentences_of(row, "caps"):
        return
    inside = _within_margin(comparison, family=family)
    if row["p_adjusted"] is not None and row["p_adjusted"] < ALPHA:
        row["verdict"] = "decided"
        row["better"] = "arm" if is_ahead(row) else "baseline"
    elif inside is not None:
        row["verdict"] = "no difference that matters"
        row["equivalence"] = inside
    elif row["n"] > 1:
        _plan(comparison, alpha=ALPHA / family)


def _within_margin(comparison: Comparison, *, family: int) -> Equivalence | None:
    """Return the interval of the difference if it is within the study's margin; otherwise None.

    The unit is plain scores or nats. The confidence is corrected for the number of contrasts and
    planned looks, as in the test. If the true difference equals the margin, at most 5 % of studies
    report no difference that matters.
    """
    row = comparison.row
    study = comparison.table.study
    margin = study.get("margin")
    has_unit = "natural" in row or row["unit"] in ("score", NATS)
    if margin is None or not has_unit:
        return None
    weight = look_weight(study.get("looks"), len(study["seeds"]))
    confidence = 1 - ALPHA * weight / family
    interval = sign_flip_interval(finite_runs(comparison.plain), confidence=confidence)
    if interval is None:
        return None
    low, high = interval
    if low < -margin or high > margin:
        return None
    return {"margin": margin, "confidence": confidence, "low": low, "high": high}


def _plan(comparison: Comparison, *, alpha: float) -> None:
    """Set the number of runs that would decide a contrast, and the detectable difference."""
    row = comparison.row
    # With several tasks, the power is that of their average.
    differences = finite_pairs(comparison.differences).mean(axis=0)
    sd = float(differences.std(ddof=1))
    needed = runs_to_decide(sd, float(differences.mean()), alpha=alpha)
    if needed is not None and needed <= row["n"] + MOST_MORE_RUNS:
        # By the formula the present runs may be enough, but they did not decide.
        row["runs_to_decide"] = max(needed, row["n"] + 1)
    runs = max(row["n"], fewest_runs(alpha))
    plain_sd = float(finite_runs(comparison.plain).std(ddof=1))
    difference = detectable_difference(plain_sd, runs, alpha=alpha)
    # If all differences are equal, the detectable difference is 0, which is not credible.
    if difference:
        row["detectable"] = {"runs": runs, "difference": difference}
