"""One row per pair of arms and outcome: the paired differences, their interval, the test, the verdict.

Verdict words follow from the number of runs: below 6 no p value and at most "suggests"; from 6 on "decided" needs
Holm's adjusted sign-flip p below alpha *and* an interval without zero, and no reason that caps it. Comparisons
that cannot tell anything are "void". Only one outcome of a pair is *primary*: that is where the test is spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.study.power import (
    P_FROM_RUNS,
    attainable_level,
    detectable_difference,
    fewest_runs,
    runs_to_decide,
)
from maskwise.study.statistics import (
    holm,
    interval_by_rule,
    paired_differences,
    sign_flip_test,
    standardised_effect,
)
from maskwise.study.verdict.measures import BySeed
from maskwise.study.verdict.table import REFERENCE, TOLERANCE, Table

if TYPE_CHECKING:
    from maskwise.study.verdict.reasons import Reasons

MOST_PRIMARY = 6  # more, and Holm leaves nothing that ten runs could decide
MOST_MORE_RUNS = 50  # more than this is no advice: the difference is too small to matter
SHARES = {
    "accuracy",
    "exact-match",
    "exact_match",
}  # metrics that are a share of items, as binomial noise wants


def primary_contrasts(
    study: Mapping[str, Any], contrasts: Sequence[Any] | None = None
) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs a page is about. Call it before a study starts: it refuses unknown arms, and
    more than 6 pairs."""
    base = study["baseline"]
    if base not in study["arms"]:
        raise unknown_name("baseline", base, study["arms"])
    chosen = study.get("contrasts") if contrasts is None else contrasts
    if chosen is None:
        pairs = [(arm, base) for arm in study["arms"] if arm != base]
    else:
        pairs = [(c["arm"], c.get("baseline", base)) if isinstance(c, Mapping) else tuple(c) for c in chosen]
    known = [*study["arms"], *([REFERENCE] if study.get("tasks") or study.get("reference") else [])]
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise MaskwiseError("a contrast names two different arms", got=pair, allowed="[arm, baseline]")
        for arm in pair:
            if arm not in known:
                raise unknown_name("arm in contrasts", arm, known)
    if len(set(pairs)) > MOST_PRIMARY:
        raise MaskwiseError(
            "too many primary contrasts for one page",
            got=len(set(pairs)),
            allowed=f"at most {MOST_PRIMARY}",
            do="name the ones that matter in contrasts",
        )
    return list(dict.fromkeys(pairs))


def contrast_rows(table: Table, arm: str, baseline: str) -> list[dict[str, Any]]:
    """The rows of one pair: tasks first, each task, each held-out loss, each evaluation. Not judged yet.

    An arm whose objective has no held-out loss, and the reference, are compared by what both have. Without
    tasks the primary row is the held-out loss on the arm's own kind of mask (the mean over its ratios); for
    arms with different units or tokenizers, which no held-out loss can compare, the first evaluation that has a
    chance level.
    """
    both = [
        name
        for name in (*table.heldout, *table.evaluations)
        if all(table.outcomes[name].get(side) for side in (arm, baseline))
    ]
    own = [name for name in table.own_heldout(arm) if name in both]
    facts = [name for name in both if name in table.evaluations and _unit(table, name) == "score"]
    order = [*facts, *own] if table.incomparable(arm, baseline) else [*own, *facts]
    primary = next(iter(["tasks"] if table.tasks else order), None)
    outcomes = [*(["tasks"] if table.tasks else []), *table.tasks, *both]
    return [_row(table, arm, baseline, name, primary=name == primary) for name in outcomes]


def _row(table: Table, arm: str, baseline: str, outcome: str, *, primary: bool) -> dict[str, Any]:
    sides = _paired(table, arm, baseline, outcome)
    d = paired_differences(*sides)
    row: dict[str, Any] = {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "primary": primary,
        "n": len(d),
    }
    row |= {
        "higher_is_better": table.higher_is_better(outcome),
        "unit": _unit(table, outcome),
        **_estimate(d),
    }
    row |= {"p": None, "p_adjusted": None, "metric": _metric(table, outcome), "differences": d.tolist()}
    plain = d
    if outcome == "tasks":  # the same in natural units: the mean over tasks of plain score differences
        plain = paired_differences(*({s: table.natural[a][s] for s in sides[0]} for a in (arm, baseline)))
        estimate = _estimate(plain)
        row["natural"] = {key: estimate[key] for key in ("mean", "low", "high")}
    row["plain"] = plain.tolist()
    row["compute"] = _matched(table, arm, baseline)
    row["items"] = _items_interval(table, row, float(plain.mean()) if len(plain) else 0.0)
    return row


def _unit(table: Table, outcome: str) -> str:
    if outcome.startswith("heldout:"):
        return "nats"
    if outcome.startswith("evaluation:"):
        known = table.chance(outcome)[0] is not None and table.higher_is_better(outcome)
        return (
            "score"
            if known
            else "perplexity"
            if "perplexity" in outcome
            else _metric(table, outcome) or "score"
        )
    return table.unit if outcome == "tasks" else "score"


def _metric(table: Table, outcome: str) -> str | None:
    if outcome.startswith("heldout:"):
        return None
    if outcome in table.evaluation_facts:
        return table.evaluation_facts[outcome].get("metric")
    names = table.tasks if outcome == "tasks" else [outcome]
    metrics = {table.task_facts(name).get("metric") for name in names}
    return metrics.pop() if len(metrics) == 1 else None


def _paired(table: Table, arm: str, baseline: str, outcome: str) -> tuple[BySeed, BySeed]:
    """Both sides on the seeds they share."""
    sides = [dict(table.outcomes[outcome].get(name, {})) for name in (arm, baseline)]
    for mine, other, name in ((0, 1, arm), (1, 0, baseline)):
        lost = [s for s in sorted(sides[other].keys() - sides[mine].keys()) if not table.excused(name, s)]
        if lost and name != REFERENCE:
            raise MaskwiseError(
                f"arm {name!r} lacks seeds that its partner has ({outcome})",
                got=f"no seed {', '.join(map(str, lost))}",
                do="run the study to its end, or drop those seeds",
            )
    shared = sorted(sides[0].keys() & sides[1].keys())
    return {s: sides[0][s] for s in shared}, {s: sides[1][s] for s in shared}


def _estimate(d: np.ndarray) -> dict[str, float | None]:
    low, high = interval_by_rule(d)[:2] if len(d) > 1 else (None, None)
    effect = standardised_effect(d) if len(d) else math.nan
    return {
        "mean": float(d.mean()) if len(d) else None,
        "low": low,
        "high": high,
        "standardised": None if math.isnan(effect) else effect,
    }


def _matched(table: Table, arm: str, baseline: str) -> dict[str, Any]:
    """What was matched, whether it is (to 5 %), and the arm's share of the baseline's compute by quantity."""
    mine, other = table.compute(arm), table.compute(baseline)
    ratios = {key: mine[key] / other[key] for key in mine if key in other}
    by = table.matched_by
    matched = by in ratios and abs(ratios[by] - 1) <= TOLERANCE
    return {"by": by, "matched": matched, "ratios": ratios}


def _items_interval(table: Table, row: Mapping[str, Any], mean: float) -> dict[str, float] | None:
    """The other interval: what other test items could have said, in natural units; never mixed with the first.

    Binomial, for metrics that are a share of items. Both arms answer the same items, and records do not say
    which: the answers are taken to correlate one half, so that a difference is as uncertain as one share.
    """
    names = table.tasks if row["outcome"] == "tasks" else [row["outcome"]]
    variance = 0.0
    for name in names:
        items = table.chance(name)[1]
        scores = [x for a in (row["arm"], row["baseline"]) for x in table.outcomes[name].get(a, {}).values()]
        if _metric(table, name) not in SHARES or not items or not scores:
            return None
        share = min(max(float(np.mean(scores)), 0.0), 1.0)
        variance += share * (1 - share) / items
    half = 1.96 * math.sqrt(variance) / len(names)
    return {"low": mean - half, "high": mean + half}


def decide(rows: list[dict[str, Any]], reasons: Reasons, *, tasks: int, alpha: float) -> None:
    """Writes p, p_adjusted, verdict, reason, reasons, better and the advice; Holm runs over the primary rows."""
    voids = {id(row): reasons.void(row) for row in rows}
    family = [row for row in rows if row["primary"] and not voids[id(row)]]
    for row in family:
        if row["n"] >= P_FROM_RUNS:
            row["p"] = sign_flip_test(row["differences"])
    # Those with too few runs for a p keep their place in the family, as p = 1.
    adjusted = holm([1.0 if row["p"] is None else row["p"] for row in family])
    for row, p in zip(family, adjusted):
        row["p_adjusted"] = p if row["p"] is not None else None
    by_pair = {(row["arm"], row["baseline"]): row for row in family}
    for row in rows:
        if tasks == 1 and row["outcome"] in reasons.table.tasks:
            twin = by_pair.get((row["arm"], row["baseline"]))  # one task: the same test in other units
            row |= {key: twin[key] for key in ("p", "p_adjusted")} if twin else {}
        d, plain = np.array(row.pop("differences")), np.array(row.pop("plain"))
        row |= _judged(row, voids[id(row)], reasons, alpha=alpha)
        row |= {"more_runs": None, "detectable": None}
        doubted = row["reason"] in ("few-runs", "not-significant", "interval-holds-zero")
        if row["primary"] and doubted and len(d) > 1:
            row |= _plan(d, plain, alpha=alpha / max(len(family), 1))


def _judged(
    row: Mapping[str, Any], void: list[dict[str, Any]], reasons: Reasons, *, alpha: float
) -> dict[str, Any]:
    """verdict, better, reason (the one that made the verdict) and all reasons."""
    if void:
        return {"verdict": "void", "better": None, "reason": void[0]["code"], "reasons": void}
    apart = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    tested = reasons.tested(row, apart=apart, alpha=alpha)
    caps = reasons.caps(row)
    verdict = "suggests" if apart else "undecided"
    if apart and tested["code"] == "significant" and not caps:
        verdict = "decided"
    first = caps[0] if caps and tested["code"] == "significant" else tested
    better = None
    if verdict in ("decided", "suggests"):
        better = "arm" if (row["mean"] > 0) == row["higher_is_better"] else "baseline"
    found = [first, *(r for r in (tested, *caps) if r is not first), *reasons.said(row)]
    return {"verdict": verdict, "better": better, "reason": first["code"], "reasons": found}


def _plan(d: np.ndarray, plain: np.ndarray, *, alpha: float) -> dict[str, Any]:
    """more_runs: how many more runs per arm would decide, at power .8, were the difference as large as it looks;
    None above 50, where detectable says what an able number of runs would see, in the unit and in plain."""
    sd = float(d.std(ddof=1))
    needed = runs_to_decide(sd, float(d.mean()), alpha=alpha)
    more = None if needed is None else max(needed - len(d), 1)
    runs = max(len(d), fewest_runs(alpha))
    level = attainable_level(runs, alpha)
    seen = {"runs": runs, "difference": detectable_difference(sd, runs, alpha=level)}
    seen["natural"] = detectable_difference(float(plain.std(ddof=1)), runs, alpha=level)
    return {"more_runs": more if more is not None and more <= MOST_MORE_RUNS else None, "detectable": seen}
