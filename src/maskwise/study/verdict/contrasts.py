"""One row per pair of arms and outcome: the paired differences, their interval, the test, and the
verdict.

One outcome of each pair is *primary*. Only there the exact sign-flip test is made, with Holm's
correction over all primary contrasts, and only there stands a verdict. The other rows have a mean
and an interval, and no p.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskwise.constants import NATS, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Compute, Contrast, Ends, Equivalence, Gate, Study
from maskwise.study.outcomes import ALL_TASKS, TOLERANCE, Numbers, Outcomes
from maskwise.study.statistics import (
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
from maskwise.study.verdict.flags import FIXED, raised, scope_of
from maskwise.study.verdict.words import is_ahead

ALPHA = 0.05
MOST_MORE_RUNS = 50
"""Runs that would decide are not advised beyond this: the difference is too small to matter."""
SHARES = ("accuracy", "exact-match", "exact_match")
"""Metrics that are a share of the items, with binomial noise."""


@dataclass
class Comparison:
    """A row of summary.json, and the differences by seed that it is judged by (NaN: no pair).

    ``plain`` are the same differences in plain scores, where ``differences`` are standardised.
    """

    row: Contrast
    differences: Numbers
    plain: Numbers
    table: Outcomes


def gate_of(study: Study) -> Gate | None:
    """The gate; older files name its pair alone, and it closes all other contrasts."""
    gate = study.get("gate")
    if not gate or isinstance(gate, dict):
        return gate or None
    arm, baseline = gate
    closes = [pair for pair in study["contrasts"] if [*pair] != [arm, baseline]]
    return {"contrast": (arm, baseline), "closes": closes}


def primary_pairs(study: Study) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs that the recipe names, that of a gate first.

    Raises:
        MaskwiseError: a contrast with the reference, where nothing is measured of it.
    """
    pairs = list(dict.fromkeys((arm, baseline) for arm, baseline in study["contrasts"]))
    gate = gate_of(study)
    if gate:
        arm, baseline = gate["contrast"]
        # With a search the gate has runs of its own, and its pair may also be compared with each
        # arm at its best.
        if not (isinstance(study["gate"], dict) and study.get("search")):
            pairs = [pair for pair in pairs if pair != (arm, baseline)]
        pairs = [(arm, baseline), *pairs]
    measured = study["tasks"] or study.get("reference")
    if not measured and any(REFERENCE in pair for pair in pairs):
        raise MaskwiseError(
            f"a contrast names {REFERENCE}, and nothing is measured of it",
            allowed=", ".join(study["arms"]),
            do="name tasks, or leave that contrast out",
        )
    return pairs


def compare(table: Outcomes, arm: str, baseline: str) -> list[Comparison]:
    """The rows of one pair: all tasks first, then each task, held-out loss and evaluation.

    Without tasks the primary row is the held-out loss on the arm's own kind of mask; for arms that
    no held-out loss can compare, it is the first evaluation with a chance level.
    """
    both = [
        name
        for name in (*table.heldout, *table.evaluations)
        if table.mean(name, arm) is not None and table.mean(name, baseline) is not None
    ]
    own = [name for name in table.own_heldout(arm) if name in both]
    scores = [name for name in both if table.measures[name].unit == "score"]
    order = [*own, *scores]
    if own and table.incomparable(arm, baseline, own[0]):
        order = [*scores, *own]
    tasks = ["tasks", *table.tasks] if table.tasks else []
    primary = [*tasks, *order][:1]
    return [_compared(table, arm, baseline, name, name in primary) for name in [*tasks, *both]]


def _compared(table: Outcomes, arm: str, baseline: str, outcome: str, primary: bool) -> Comparison:
    # Against the start every task counts: otherwise tasks would be chosen by what is tested.
    name = ALL_TASKS if outcome == "tasks" and REFERENCE in (arm, baseline) else outcome
    differences = _paired(table, name, arm, baseline)
    measure = table.measures[name]
    spent = table.compute(arm)
    other = table.compute(baseline)
    ratios = {key: spent[key] / other[key] for key in spent if key in other}
    match = table.study.get("match")
    by = match["by"] if match else None
    compute: Compute = {
        "by": by,
        "matched": by in ratios and abs(ratios[by] - 1) <= TOLERANCE,
        "ratios": ratios,
    }
    row: Contrast = {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "primary": primary,
        "n": int(np.isfinite(differences).sum()),
        "higher_is_better": measure.higher_is_better,
        "unit": measure.unit,
        **estimated(_finite(differences)),
        "p": None,
        "p_adjusted": None,
        "metric": measure.metric,
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
    plain = differences
    if outcome == "tasks":
        plain = _paired(table, f"plain:{name}", arm, baseline)
        if f"plain:{name}" in table.measures:
            row["natural"] = estimated(_finite(plain))
    row["items"] = _items_interval(table, row)
    return Comparison(row, differences, plain, table)


def _paired(table: Outcomes, outcome: str, arm: str, baseline: str) -> Numbers:
    """The differences by seed; NaN where a run of either side failed."""
    runs = {side: table.runs(outcome, side) for side in (arm, baseline)}
    differences = runs[arm] - runs[baseline]
    for place in np.flatnonzero(np.isnan(differences)):
        seed = table.study["seeds"][place]
        lacking = [side for side in runs if np.isnan(runs[side][place])]
        if len(lacking) == 1 and lacking != [REFERENCE] and not table.is_lost(lacking[0], seed):
            raise MaskwiseError(
                f"arm {lacking[0]!r} lacks seeds that its partner has ({outcome})",
                got=f"no seed {seed}",
                do="run the study to its end, or drop that seed",
            )
    return differences


def _items_interval(table: Outcomes, row: Contrast) -> Ends | None:
    """The interval over test items, in natural units, which is never mixed with that over runs.

    Both arms answer the same items, and records do not say which: their answers are taken to
    correlate one half, so that a difference is as uncertain as one score. Tasks on the same texts
    are taken to be lucky together, others independently.
    """
    mean = row["natural"]["mean"] if "natural" in row else row["mean"]
    if mean is None or (row["outcome"] == "tasks" and "natural" not in row):
        return None
    names = table.measured(row["outcome"], row["arm"], row["baseline"])
    errors: dict[str, float] = defaultdict(float)
    for name in names:
        error = _item_error(table, name, (row["arm"], row["baseline"]))
        if error is None:
            return None
        facts = table.study["tasks"].get(name, {})
        errors[facts.get("test_texts", name)] += error
    half = 1.96 * math.hypot(*errors.values()) / len(names)
    return {"low": mean - half, "high": mean + half}


def _item_error(table: Outcomes, outcome: str, pair: tuple[str, str]) -> float | None:
    """The standard error of a score over test items.

    From resampled sentences and documents where records have that, else from the spread of the
    items' scores, else binomial; None where none of these is known.
    """
    lines = [line for line in table.lines["score"] if line["task"] == outcome]
    errors = [line["item_error"] for line in lines if line.get("item_error") is not None]
    if errors:
        return math.sqrt(np.mean(np.square(errors)))
    measure = table.measures[outcome]
    scores = np.concatenate([table.runs(outcome, arm) for arm in pair])
    if not measure.items or np.isnan(scores).all():
        return None
    spreads = [line["item_sd"] for line in lines if line.get("item_sd") is not None]
    if spreads:
        return math.sqrt(np.mean(np.square(spreads)) / measure.items)
    share = np.clip(np.nanmean(scores), 0.0, 1.0)
    return math.sqrt(share * (1 - share) / measure.items) if measure.metric in SHARES else None


# Verdicts


def decide(
    gate: Sequence[Comparison],
    others: Sequence[Comparison],
    table: Outcomes,
    names: Mapping[str, str],
) -> None:
    """Write p, verdict, flags and what goes with them into the rows.

    The gate is tested first, at the full level. The contrasts that it closes are tested only if it
    passes, so neither costs the other anything (a serial gatekeeper; Maurer, Hothorn and Lehmacher
    1995).
    """
    _judge(gate, names)
    closing = gate_of(table.study)
    for one in gate:
        if closing and one.row["primary"] and not _passes(one.row):
            table.gate = one.row
            table.closed = [(arm, baseline) for arm, baseline in closing["closes"]]
    _judge(others, names)


def _passes(row: Contrast) -> bool:
    """Whether a gate's arm beats its baseline.

    In older studies one search served all seeds, and the two sides of a gate may have other
    settings. That leaves the row open; it passes all the same, because it asks whether the study
    sees a difference, and not where that is from.
    """
    doubts = {flag["code"] for flag in row["flags"] if flag["effect"] != "notes"}
    p = row["p_adjusted"]
    return p is not None and p < ALPHA and doubts <= {"settings-differ"} and is_ahead(row)


def _judge(comparisons: Sequence[Comparison], names: Mapping[str, str]) -> None:
    for one in comparisons:
        row = one.row
        row["flags"] = raised(row, one.table, names)
        row["scope"] = scope_of(row, one.table)
        if not row["n"] or any(flag["effect"] == "invalid" for flag in row["flags"]):
            row["verdict"] = "not comparable"
    primaries = [one for one in comparisons if one.row["primary"]]
    for one in primaries:
        if one.row["verdict"] is None and one.row["n"] >= P_FROM_RUNS:
            one.row["p"] = _p_value(one)
    # Contrasts without a p keep their place in the family, as p = 1: it was planned before.
    adjusted = holm([1.0 if one.row["p"] is None else one.row["p"] for one in primaries])
    for one, p in zip(primaries, adjusted):
        if one.row["p"] is not None:
            one.row["p_adjusted"] = p
        if one.row["verdict"] is None:
            _conclude(one, family=len(primaries))


def _p_value(one: Comparison) -> float:
    """The p value of the sign-flip test; with planned looks, of all looks so far together."""
    study = one.table.study
    looks = study.get("looks")
    weights = look_weights(looks) if looks else [1.0]
    p_values = [1.0]
    for runs, weight in zip(looks or [len(study["seeds"])], weights):
        seen = _finite(one.differences[:runs])
        if runs <= len(study["seeds"]) and len(seen):  # all runs of a look may have failed
            p_values.append(sign_flip_test(seen) / weight)
    return min(p_values)


def _conclude(one: Comparison, *, family: int) -> None:
    """Write the verdict of a primary row that can be compared.

    Args:
        family: the number of contrasts that share the error.
    """
    row = one.row
    if any(flag["effect"] == "caps" for flag in row["flags"]):
        row["verdict"] = "open"
        return
    inside = _within_margin(one, family=family)
    if row["p_adjusted"] is not None and row["p_adjusted"] < ALPHA:
        row["verdict"] = "decided"
        row["better"] = "arm" if is_ahead(row) else "baseline"
    elif inside is not None:
        row["verdict"] = "no difference that matters"
        row["equivalence"] = inside
    else:
        row["verdict"] = "open"
        if row["n"] > 1:
            _plan(one, alpha=ALPHA / family)


def _within_margin(one: Comparison, *, family: int) -> Equivalence | None:
    """The interval within the margin of the study, in plain scores or nats; None where it is not.

    The inverted test at 1 - alpha / the number of contrasts, shared with planned looks, so that
    arms which differ by the whole margin are called equal in at most 5 % of studies.
    """
    study = one.table.study
    margin = study.get("margin")
    if margin is None or not ("natural" in one.row or one.row["unit"] in ("score", NATS)):
        return None
    weight = look_weight(study.get("looks"), len(study["seeds"]))
    confidence = 1 - ALPHA * weight / family
    interval = sign_flip_interval(_finite(one.plain), confidence=confidence)
    if interval is None or interval[0] < -margin or interval[1] > margin:
        return None
    return {"margin": margin, "confidence": confidence, "low": interval[0], "high": interval[1]}


def _plan(one: Comparison, *, alpha: float) -> None:
    """Write how many runs would decide, and what a number of runs that can decide would see."""
    row = one.row
    differences = _finite(one.differences)
    sd = differences.std(ddof=1)
    mean = differences.mean()
    needed = runs_to_decide(float(sd), float(mean), alpha=alpha)
    if needed is not None and needed <= row["n"] + MOST_MORE_RUNS:
        row["runs_to_decide"] = max(needed, row["n"] + 1)
    runs = max(row["n"], fewest_runs(alpha))
    plain = float(_finite(one.plain).std(ddof=1))
    seen = detectable_difference(plain, runs, alpha=alpha)
    row["detectable"] = {"runs": runs, "difference": seen}


def _finite(differences: Numbers) -> Numbers:
    return differences[np.isfinite(differences)]
