"""Compare two arms on one outcome: paired differences, their mean and interval, and what bears on
them (costs, test items, failures). Nothing is tested here; ``judge`` does that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from maskwise.base.constants import FIXED, NATS, TUNED
from maskwise.base.errors import MaskwiseError
from maskwise.results.estimates import Shown, shown_in
from maskwise.results.files import Compute, Estimate, Failures, ItemsInterval, Study
from maskwise.results.measurements import Scale
from maskwise.verdict.failures import failures_of
from maskwise.verdict.items import paired_item_errors, together
from maskwise.verdict.outcomes import (
    TOLERANCE,
    Numbers,
    Outcomes,
    Pair,
    finite_pairs,
    finite_runs,
    subtracted,
)
from maskwise.verdict.statistics import estimated

SHARES = ("accuracy", "exact-match", "exact_match")
"""Metrics that are a share of correct items and have binomial noise."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences of two arms on one outcome.

    Attributes:
        arm, baseline: the two sides.
        outcome: what they are compared on. The mean over tasks is "tasks".
        untrained: the side that is not trained; None if both are.
        primary: whether the verdict on the two arms rests on this outcome.
        gate: whether other contrasts are tested only after this one is decided.
        closed_by: the gate that had to be decided before this pair is tested, and was not.
        scale: what the values of the outcome mean.
        differences: (tasks, seeds) paired differences of every task that the outcome averages, or
            of the outcome itself in one row; NaN for a seed without a pair of runs.
        least_sds: (tasks,) the smallest SDs of differences that count in the test.
        scores: (tasks,) the largest absolute scores, in the units of ``differences``.
        plain: (seeds,) the differences of the outcome without standardising.
        largest: the largest absolute score, in the unit of ``plain``.
        estimate: the mean and interval in the unit of ``scale``.
        natural: those of a mean over tasks in plain scores; None for other outcomes.
        least_sd: whether a task's runs vary by less than one test item, which then counts as SD.
        compute: the training costs.
        items: what the choice of test items adds to the uncertainty.
        failures: the failures of the two sides, keyed by "arm" and "baseline".
        break_even: the share of runs of the leading side whose failure would cancel its lead.
        scope: ``TUNED`` if every seed tuned the arms, and ``FIXED`` otherwise.
    """

    arm: str
    baseline: str
    outcome: str
    untrained: str | None
    primary: bool
    gate: bool
    closed_by: Pair | None
    scale: Scale
    differences: Numbers
    least_sds: Numbers
    scores: Numbers
    plain: Numbers
    largest: float
    estimate: Estimate
    natural: Estimate | None
    least_sd: bool
    compute: Compute
    items: ItemsInterval | None
    failures: dict[str, Failures]
    break_even: float | None
    scope: str

    @property
    def pair(self) -> Pair:
        """The names of the two sides."""
        return self.arm, self.baseline

    @property
    def n(self) -> int:
        """The number of pairs of runs."""
        return finite_pairs(self.differences).shape[1]

    @property
    def mean(self) -> float | None:
        """The mean difference, in the unit of ``scale``."""
        return self.estimate["mean"]

    @property
    def in_margin_units(self) -> bool:
        """Whether ``plain`` is in plain scores or nats, the units of a margin.

        It is neither for a mean over tasks with different units, and for a perplexity.
        """
        return self.natural is not None or self.scale.unit in ("score", NATS)

    @property
    def ahead(self) -> bool:
        """Whether the arm has a better mean than the baseline."""
        return is_ahead(self.estimate, self.scale)

    @property
    def sides(self) -> Pair:
        """The leading side, and the other one."""
        return self.pair if self.ahead else (self.baseline, self.arm)

    @property
    def shown(self) -> Shown:
        """The estimate in the unit that is displayed."""
        scale = self.scale
        higher = scale.higher_is_better
        return shown_in(scale.unit, scale.metric, self.estimate, self.natural, higher=higher)


def is_ahead(estimate: Estimate, scale: Scale) -> bool:
    """Return whether a mean difference is in favour of the arm."""
    return ((estimate["mean"] or 0) > 0) == scale.higher_is_better


def matched_by(study: Study) -> str | None:
    """Return the quantity by which arms are matched; None if the file does not record it."""
    match = study.get("match")
    return match["by"] if match else None


def primary_pairs(study: Study) -> list[Pair]:
    """List the (arm, baseline) pairs of the recipe's contrasts, with the gate first.

    Raises:
        MaskwiseError: a contrast names an arm that is not measured.
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
    known = [*study["arms"], *study.get("untrained", {})]
    for name in chain.from_iterable(pairs):
        if name not in known:
            of_gate = gate is not None and name in gate["contrast"]
            where = "study.gate" if of_gate else "a contrast"
            raise MaskwiseError(
                f"{where} names {name}, which has no measured outcome",
                allowed=", ".join(study["arms"]),
                do=f"name tasks, or {'set study.gate=null' if of_gate else 'remove this contrast'}",
            )
    return pairs


def compared(
    table: Outcomes, pair: Pair, *, gate: bool = False, closed_by: Pair | None = None
) -> list[Comparison]:
    """Compare a pair on the mean over tasks, single tasks, held-out losses and evaluations.

    The primary outcome is ``study.outcome``. Without it, or if a side is the untrained model and
    has no such outcome, it is the mean over tasks. Without tasks, it is the held-out loss on the
    arm's own kind of mask, or, if this loss is not comparable, the first evaluation with a chance
    level, or the first one that is comparable, such as the loss of words.

    Args:
        table: the outcomes of the compared runs.
        pair: the names of the arm and the baseline.
        gate, closed_by: see ``Comparison``.
    """
    arm, baseline = pair
    both = []
    for name in (*table.heldout, *table.evaluations):
        if None not in (table.mean(name, arm), table.mean(name, baseline)):
            both.append(name)
    tasks = ["tasks", *table.tasks] if "tasks" in table.scales else [*table.tasks]
    own = [name for name in table.own_heldout(arm) if name in both]
    scores = [name for name in both if table.scales[name].unit == "score"]
    candidates = [*tasks, *own, *scores]
    if own and table.incomparable(arm, baseline, own[0]):
        others = [name for name in both if not table.incomparable(arm, baseline, name)]
        candidates = [*tasks, *scores, *others, *own]
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
        # The untrained model has no held-out loss. An arm whose evaluations failed should have one:
        # no other outcome decides instead, and a row without pairs says so.
        planned = primary is not None and primary != "tasks" and table.start not in pair
        if planned and primary in table.scales:
            both.append(primary)
        elif planned:
            primary = None
        else:
            primary = next(iter(candidates), None)
    compute = _compute(table, arm, baseline)
    found = []
    for outcome in tasks + both:
        one = _comparison(
            table,
            pair,
            outcome,
            compute,
            primary=outcome == primary,
            gate=gate,
            closed_by=closed_by,
        )
        found.append(one)
    return found


def _compute(table: Outcomes, arm: str, baseline: str) -> Compute:
    reference = table.compute(baseline)
    ratios = {}
    for key, spent in table.compute(arm).items():
        if key in reference:
            ratios[key] = spent / reference[key]
    by = matched_by(table.study)
    matched = by in ratios and abs(ratios[by] - 1) <= TOLERANCE
    return {"by": by, "matched": matched, "ratios": ratios}


def _comparison(
    table: Outcomes,
    pair: Pair,
    outcome: str,
    compute: Compute,
    *,
    primary: bool,
    gate: bool,
    closed_by: Pair | None,
) -> Comparison:
    scale = table.scales[outcome]
    differences, least_sds, scores = table.differences(outcome, *pair)
    estimate = estimated(finite_pairs(differences), least_sds=least_sds, scores=scores)
    natural = None
    least_sd = False
    plain_name = "plain:tasks" if outcome == "tasks" else outcome
    plain = _paired(table, plain_name, pair)
    largest = table.largest(plain_name, *pair)
    if outcome == "tasks":
        if plain_name in table.scales:
            natural = estimated(finite_runs(plain), scores=largest)
        least_sd = any(map(table.has_least_sd, table.measured(outcome)))
    in_units = natural if outcome == "tasks" else estimate
    failures, break_even = failures_of(table, outcome, *pair, leads=is_ahead(estimate, scale))
    tuned = any(line.get("seed") is not None for line in table.searches(*pair))
    return Comparison(
        arm=pair[0],
        baseline=pair[1],
        outcome=outcome,
        untrained=table.start if table.start in pair else None,
        primary=primary,
        gate=gate,
        closed_by=closed_by,
        scale=scale,
        differences=differences,
        least_sds=least_sds,
        scores=scores,
        plain=plain,
        largest=largest,
        estimate=estimate,
        natural=natural,
        least_sd=least_sd,
        compute=compute,
        items=_items_interval(table, pair, outcome, in_units, plain),
        failures=failures,
        break_even=break_even,
        scope=TUNED if tuned else FIXED,
    )


def _paired(table: Outcomes, outcome: str, pair: Pair) -> Numbers:
    """Return the paired differences; NaN for seeds for which a run failed.

    Raises:
        MaskwiseError: a run is missing and is not recorded as failed.
    """
    runs = {side: table.runs(outcome, side) for side in pair}
    differences = subtracted(runs[pair[0]], runs[pair[1]])
    for place in np.flatnonzero(np.isnan(differences)):
        seed = table.study["seeds"][place]
        lacking = [side for side in runs if np.isnan(runs[side][place])]
        # If both runs of a seed are missing, the pair is simply absent.
        if len(lacking) == 2 or lacking == [table.start]:
            continue
        (side,) = lacking
        if table.failed.isdisjoint(product(table.trained(side), [seed])):
            raise MaskwiseError(
                f"arm {side!r} lacks a seed that the other arm has ({outcome})",
                got=f"no seed {seed}",
                do="run the study to the end, or remove this seed",
            )
    return differences


def _items_interval(
    table: Outcomes, pair: Pair, outcome: str, estimate: Estimate | None, plain: Numbers
) -> ItemsInterval | None:
    """Return the interval of a difference if runs and test items vary together.

    It is computed from the differences between the two arms in the scores of the same items. If
    records do not contain sums of items, the answers of the two arms are assumed to correlate at
    .5. The difference then has the same standard error as one score, or as the mean of one score
    per run if each run has its own test items, whose noise is then in that over runs. Errors of
    tasks on the same texts are then assumed to be fully correlated, and errors of other tasks
    independent.

    Args:
        table: the outcomes of the compared runs.
        pair: the names of the two arms.
        outcome: what they are compared on.
        estimate: the mean and the interval of the test, in natural units; None without such units.
        plain: (seeds,) the paired differences in these units.
    """
    if estimate is None or estimate["mean"] is None:
        return None
    names = table.measured(outcome)
    found = None
    if set(names) <= set(table.tasks):
        found = paired_item_errors(table, names, pair)
    error, single = found or _assumed_errors(table, names, pair) or (None, 0.0)
    if error is None:
        return None
    low, high = together(estimate, finite_runs(plain), error=error, single=single) or (None, None)
    items: ItemsInterval = {"low": low, "high": high, "alone": 1.96 * error}
    if found:
        items["paired"] = True
    return items


def _assumed_errors(
    table: Outcomes, names: Sequence[str], pair: Pair
) -> tuple[float, float] | None:
    """Return the errors of ``paired_item_errors`` by the assumption; None if they are unknown."""
    errors = defaultdict[str, float](float)
    single = defaultdict[str, float](float)
    for name in names:
        error = _item_error(table, name, pair)
        if error is None:
            return None
        rows = table.study["tasks"].get(name, {}).get("test_texts", name)
        if table.has_items_per_run(name):
            error /= math.sqrt(len(table.paired_seeds(name, *pair)))
            single[rows] += error
        errors[rows] += error
    return math.hypot(*errors.values()) / len(names), math.hypot(*single.values()) / len(names)


def _item_error(table: Outcomes, outcome: str, pair: Pair) -> float | None:
    """Return the standard error of a score over test items; None if it is unknown.

    The error comes from the first available source: the recorded error over resampled sentences
    or documents, the recorded SD of item scores, or the binomial formula.
    """
    rows = table.scores.get(outcome, [])
    errors = [row.item_error for row in rows if row.item_error is not None]
    if errors:
        return math.sqrt(np.mean(np.square(errors)))
    scale = table.scales[outcome]
    scores = np.concatenate([table.runs(outcome, arm) for arm in pair])
    if not scale.items or np.isnan(scores).all():
        return None
    spreads = [row.facts["item_sd"] for row in rows if row.facts.get("item_sd") is not None]
    if spreads:
        variance = np.mean(np.square(spreads))
    elif scale.metric in SHARES:
        share = np.clip(np.nanmean(scores), 0.0, 1.0)
        variance = share * (1 - share)
    else:
        return None
    return math.sqrt(variance / scale.items)
