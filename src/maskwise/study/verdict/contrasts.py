"""One row per pair of arms and outcome: the paired differences, their interval, the test, and the verdict.

The verdict follows from the number of runs: below 6 there is no p value and it is at most "suggests"; from 6 on
"decided" needs Holm's adjusted sign-flip p below alpha *and* an interval without zero, and no reason that caps it.
"equal" is what is not decided and has an interval of at least 6 pairs within the margin that the recipe states.
A comparison that cannot tell anything is "void". One outcome of each pair is *primary*: there the test is spent. The
others are at most "suggests", and only those that a false discovery rate of alpha leaves.
``reasons`` finds the reasons that every verdict has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import NATS, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import Compute, Contrast, Detectable, Ends, GainShare, Reason, Study, Verdict
from maskwise.study.power import (
    P_FROM_RUNS,
    attainable_level,
    detectable_difference,
    fewest_runs,
    look_weights,
    runs_to_decide,
)
from maskwise.study.statistics import (
    benjamini_hochberg,
    estimated,
    holm,
    paired_differences,
    paired_t_test,
    ratio_interval,
    sign_flip_test,
    standardised_effect,
)
from maskwise.study.verdict.reasons import Reasons
from maskwise.study.verdict.table import TOLERANCE, BySeed, Table
from maskwise.study.verdict.words import ahead, outcome_words

MOST_MORE_RUNS = 50  # a longer way to a decision is no advice: the difference is too small to matter


@dataclass
class Comparison:
    """A row of summary.json, not judged at first, and the differences by seed that it is judged by."""

    row: Contrast
    differences: NDArray[np.float64]
    plain: NDArray[np.float64]
    """The same differences in plain scores, where ``differences`` are standardised."""
    seeds: list[int]
    """The seeds of the differences."""


def primary_pairs(study: Study) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs that the page is about, as the recipe named them.

    Raises:
        MaskwiseError: a contrast with the reference, of which nothing would be measured.
    """
    pairs = list(dict.fromkeys((arm, baseline) for arm, baseline in study["contrasts"]))
    if not study["tasks"] and not study.get("reference") and any(REFERENCE in pair for pair in pairs):
        raise MaskwiseError(
            f"a contrast names {REFERENCE}, and nothing is measured of it",
            allowed=", ".join(study["arms"]),
            do="name tasks, or leave that contrast out",
        )
    return pairs


def compare(table: Table, arm: str, baseline: str) -> list[Comparison]:
    """The rows of one pair: all tasks first, then each task, each held-out loss, each evaluation.

    An arm whose objective has no held-out loss, and the reference, are compared by what both have. Without tasks the
    primary row is the held-out loss on the arm's own kind of mask (the mean over its ratios); for arms with different
    units or tokenizers, which no held-out loss can compare, it is the first evaluation that has a chance level.
    """
    both = [
        name
        for name in (*table.heldout, *table.evaluations)
        if table.values(name, arm) and table.values(name, baseline)
    ]
    own = [name for name in table.own_heldout(arm) if name in both]
    with_chance = [name for name in both if name in table.evaluations and _unit(table, name) == "score"]
    apart = table.incomparable(arm, baseline, next(iter(own), ""))
    order = [*with_chance, *own] if apart else [*own, *with_chance]
    primary = next(iter(["tasks"] if table.tasks else order), None)
    outcomes = [*(["tasks"] if table.tasks else []), *table.tasks, *both]
    comparisons = [_comparison(table, arm, baseline, name, primary=name == primary) for name in outcomes]
    for one in comparisons if table.is_gate(arm, baseline) else ():
        one.row["gate"] = True
    return comparisons


def _comparison(table: Table, arm: str, baseline: str, outcome: str, *, primary: bool) -> Comparison:
    mine, other = _paired(table, arm, baseline, outcome)
    differences = plain = paired_differences(mine, other)
    estimate = estimated(differences)
    effect = standardised_effect(differences) if len(differences) else math.nan
    row: Contrast = {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "primary": primary,
        "n": len(differences),
        "higher_is_better": table.higher_is_better(outcome),
        "unit": _unit(table, outcome),
        **estimate,
        "standardised": None if math.isnan(effect) else effect,
        "p": None,
        "p_adjusted": None,
        "metric": _metric(table, outcome, arm, baseline),
        "compute": _matched(table, arm, baseline),
        "items": None,
        "verdict": "void", "better": None, "reason": "", "reasons": [],
        "more_runs": None, "detectable": None, "brief": "", "sentence": "",
    }  # fmt: skip
    if outcome == "tasks":
        natural = table.natural[table.judged_by(outcome, arm, baseline)]
        plain = paired_differences(*({seed: natural[a][seed] for seed in mine} for a in (arm, baseline)))
        if (
            len({_unit(table, task) for task in table.measured(outcome, arm, baseline)}) == 1
        ):  # nats and points have no mean
            row["natural"] = estimated(plain)
    row["items"] = _items_interval(table, row, float(plain.mean()) if len(plain) else 0.0)
    return Comparison(row, differences, plain, sorted(mine))


def _unit(table: Table, outcome: str) -> str:
    if outcome.startswith("heldout:"):
        return "nats"
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
    mine, other = (table.values(table.judged_by(outcome, arm, baseline), each) for each in (arm, baseline))
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
    return {"by": by, "matched": by in ratios and abs(ratios[by] - 1) <= TOLERANCE, "ratios": ratios}


def _items_interval(table: Table, row: Contrast, mean: float) -> Ends | None:
    """The other interval: what other test items could have said, in natural units; never mixed with the first.

    From resampled sentences and documents, where records have that, else from the spread of the items' scores, else
    binomial, for metrics that are a share of items. Both arms answer the same items, and records do not say which: the
    answers are taken to correlate one half, so that a difference is as uncertain as one share. Tasks on the same texts
    are taken to be lucky together, others independently.
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


# Verdicts --------------------------------------------------------------------------------------------


def decide(comparisons: Sequence[Comparison], reasons: Reasons, *, alpha: float) -> None:
    """Write p, p_adjusted, verdict, reason, reasons, better, more_runs and detectable into the rows.

    A gate is judged first, at the full level: nothing else is tested unless it opens, so it costs the others nothing
    (a serial gatekeeper; Maurer, Hothorn and Lehmacher 1995).
    """
    gate = [one for one in comparisons if "gate" in one.row]
    _decide(gate, reasons, alpha=alpha)
    reasons.closed = next((one.row for one in gate if one.row["primary"] and not _opens(one.row)), None)
    _decide([one for one in comparisons if "gate" not in one.row], reasons, alpha=alpha)


def _opens(row: Contrast) -> bool:
    return row["verdict"] == "decided" and row["better"] == "arm"


def _decide(comparisons: Sequence[Comparison], reasons: Reasons, *, alpha: float) -> None:
    """Holm's correction runs over the primary rows that are not void, Benjamini and Hochberg's over the others."""
    voids = [reasons.void(comparison.row) for comparison in comparisons]
    family = [one for one, void in zip(comparisons, voids) if one.row["primary"] and not void]
    reasons.family = len(family)
    for one in family:
        if one.row["n"] >= P_FROM_RUNS:
            one.row["p"] = _p_value(one, reasons.table.study)
    others = [one for one, void in zip(comparisons, voids) if not one.row["primary"] and not void and one.row["n"] > 1]
    for one, rate in zip(others, benjamini_hochberg([paired_t_test(one.differences) for one in others])):
        one.row["q"] = rate
    # Rows with too few runs for a p keep their place in the family, as p = 1.
    adjusted = holm([1.0 if one.row["p"] is None else one.row["p"] for one in family])
    for one, p in zip(family, adjusted):
        one.row["p_adjusted"] = p if one.row["p"] is not None else None
    by_pair = {(one.row["arm"], one.row["baseline"]): one.row for one in family}
    tasks = reasons.table.tasks
    for one, void in zip(comparisons, voids):
        row = one.row
        if len(tasks) == 1 and row["outcome"] in tasks:  # the only task: the same test in other units
            twin = by_pair.get((row["arm"], row["baseline"]), row)
            row["p"], row["p_adjusted"] = twin["p"], twin["p_adjusted"]
            row.pop("q", None)
        _judge(one, void, reasons, alpha=alpha)
        doubted = row["reason"] in ("few-runs", "not-significant", "interval-holds-zero")
        if row["primary"] and doubted and row["n"] > 1:
            row["more_runs"], row["detectable"] = _plan(one, alpha=alpha / max(len(family), 1))


def _p_value(one: Comparison, study: Study) -> float:
    """That of the sign-flip test; with planned looks, of all looks so far together."""
    looks = study.get("looks")
    if not looks:
        return sign_flip_test(one.differences)
    tests = [
        sign_flip_test(one.differences[np.isin(one.seeds, study["seeds"][:runs])]) / weight
        for runs, weight in zip(looks, look_weights(looks))
        if runs <= len(study["seeds"]) and np.isin(one.seeds, study["seeds"][:runs]).any()  # all may have failed
    ]
    return min(1.0, *tests)


def _judge(one: Comparison, void: list[Reason], reasons: Reasons, *, alpha: float) -> None:
    """Write verdict, better, all reasons, and the reason that made the verdict, which is the first."""
    row = one.row
    within = reasons.within_margin(row, one.plain, alpha=alpha)
    if void or row["mean"] is None:
        # Arms at chance are not called equal, but that an interval is narrow can be said.
        for reason in within:
            reason["effect"] = "said"
        row["reason"], row["reasons"] = void[0]["code"], [*void, *within]
        return
    apart = row["low"] is not None and row["high"] is not None and (row["low"] > 0 or row["high"] < 0)
    tested = reasons.tested(row, apart=apart, alpha=alpha)
    caps = reasons.caps(row)
    significant = tested["code"] == "significant"
    apart = apart and tested["code"] != "false-discovery"
    verdict: Verdict = "suggests" if apart else "undecided"
    row["verdict"] = "decided" if apart and significant and not caps else verdict
    first = caps[0] if caps and significant else tested
    if within and row["primary"] and row["verdict"] != "decided" and not caps:
        row["verdict"], first = "equal", within[0]
    row["reason"] = first["code"]
    row["reasons"] = [
        first,
        *(reason for reason in (tested, *within, *caps) if reason is not first),
        *reasons.said(row),
    ]
    if apart and row["verdict"] != "equal":
        row["better"] = "arm" if ahead(row) else "baseline"


def _plan(comparison: Comparison, *, alpha: float) -> tuple[int | None, Detectable]:
    """How many more runs of each arm would decide, and what a number of runs that can decide would see.

    The number is that for a power of .8, were the difference as large as it looks; None above ``MOST_MORE_RUNS``.
    """
    differences = comparison.differences
    sd = float(differences.std(ddof=1))
    needed = runs_to_decide(sd, float(differences.mean()), alpha=alpha)
    more = None if needed is None else max(needed - len(differences), 1)
    runs = max(len(differences), fewest_runs(alpha))
    level = attainable_level(runs, alpha)
    seen: Detectable = {
        "runs": runs,
        "difference": detectable_difference(sd, runs, alpha=level),
        "natural": detectable_difference(float(comparison.plain.std(ddof=1)), runs, alpha=level),
    }
    return more if more is not None and more <= MOST_MORE_RUNS else None, seen


# Shares of a gain ------------------------------------------------------------------------------------


def gain_shares(reasons: Reasons, best: str, baseline: str) -> list[GainShare]:
    """For every other arm: the share of what ``best`` adds to ``baseline`` that it adds too, on every task, or in
    held-out loss where there is none.

    The share is that of the mean gains over the seeds that all three have; its interval is Fieller's, over the same
    pairs of runs as a contrast. There is none where two of them cannot be compared, or a gate is closed.

    Args:
        reasons: those by which the contrasts were judged.
    """
    arms = [arm for arm in reasons.table.study["arms"] if arm not in (best, baseline)]
    outcomes = reasons.table.tasks or reasons.table.heldout
    return [_gain_share(reasons, arm, best, baseline, outcome) for outcome in outcomes for arm in arms]


def _gain_share(reasons: Reasons, arm: str, best: str, baseline: str, outcome: str) -> GainShare:
    table, names = reasons.table, reasons.names
    why = reasons.no_share([(arm, baseline), (best, baseline)], outcome)
    scores = [table.values(outcome, each) for each in (arm, best, baseline)]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in scores)))
    mine, most, base = (np.array([by_seed[seed] for seed in seeds]) for by_seed in scores)
    gain, whole = mine - base, most - base
    sign = 1 if table.higher_is_better(outcome) else -1
    share = low = high = None
    where = outcome_words(outcome)
    if len(seeds) and sign * whole.mean() > 0 and why is None:
        share = float(gain.mean() / whole.mean())
        low, high = ratio_interval(gain, whole) if len(seeds) > 1 else (None, None)
    arm_words, best_words, base_words = (names.get(name, name) for name in (arm, best, baseline))
    if why is not None:
        sentence = f"No share of {arm_words} {where}: {why}."
    elif share is None:
        sentence = f"{best_words} adds nothing to {base_words} {where}, so there is nothing to have a share of."
    else:
        pairs = f"{len(seeds)} run{'' if len(seeds) == 1 else 's'} each"
        sure = "no interval" if low is None or high is None else f"95 % {_percent(low)} to {_percent(high)}"
        sentence = f"{arm_words} has {_percent(share)} of what {best_words} adds to {base_words} {where}"
        sentence = f"{sentence} ({sure}; {pairs})."
    sentence = sentence[0].upper() + sentence[1:]
    return {
        "arm": arm, "best": best, "baseline": baseline, "n": len(seeds),
        "task": outcome if outcome in table.tasks else where.removeprefix("in "),
        "share": share, "low": low, "high": high, "sentence": sentence,
    }  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")
