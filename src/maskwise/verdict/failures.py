"""Runs that fail: how many did, how many may, and how many would cancel a lead.

A run of an arm has failed if one of its stages failed, or if it ends at the untrained floor
(``at_floor``) although other runs of the arm do not. If an arm fails seldom, few runs often show no
failure. The arm then seems better than it is, and no test of means can see this. A row therefore
compares two rates:

    the largest rate of failures that k failures in n runs allow (an exact upper bound of 95 %)
    the break-even rate: lead / distance to the floor, at which failures would cancel the lead
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

from maskwise.base.specs import Call, parse_call
from maskwise.results.files import ArmFacts, Failures
from maskwise.verdict.outcomes import Numbers, Outcomes, finite_runs
from maskwise.verdict.statistics import binomial_upper_bound, without_rounding

FAILED = 0.1
"""A run at the floor gains at most this fraction of what the better half of its arm gains."""
APART = 3.0
"""It is below the better half by more than this number of times the range of the better half."""
ADAPTIVE = frozenset(
    (
        "learned",
        "group-weighted",
        "pos-weighted",
        "type-weighted",
        "entropy-weighted",
        "mometas",
        "mometas-plus",
        "loss-proportional",
    )
)
"""Policies and samplers that each run learns anew. (``entropy-weighted`` is only in recorded
studies.)"""


def learned_in_run(facts: ArmFacts) -> bool:
    """Return whether each run of an arm learns its policy or its sampler.

    study.json says so (``learns``). In older files, the names of policies and samplers do.

    >>> learned_in_run({"policy": "mixture(learned(take='spans'), span)", "ratio": ""})
    True
    >>> learned_in_run({"policy": "learned('policies/trivia')", "ratio": ""})
    False
    """
    if facts.get("learns"):
        return True
    # A search may choose one of several policies, which are joined by "or".
    specs = [*facts.get("policy", "").split(" or "), *facts.get("sampler", "").split(" or ")]
    return any(_names_a_learner(parse_call(spec)) for spec in specs if spec)


def _names_a_learner(call: object) -> bool:
    if isinstance(call, tuple):
        return any(map(_names_a_learner, call))
    if not isinstance(call, Call):
        return False
    if call.name == "learned":
        # A policy from a given folder was learned before the study, once for all runs.
        folder = call.kwargs.get("folder", call.args[0] if call.args else "")
        return not folder
    return call.name in ADAPTIVE or _names_a_learner((*call.args, *call.kwargs.values()))


def at_floor(gains: Numbers) -> NDArray[np.bool_]:
    """Return which runs end at the floor although other runs of the arm do not.

    A run is at the floor if it gains at most a tenth of what the better half of the arm's runs
    gains on average. Both the run and the floor must also be further below the better half than
    three times the range of the better half, because all runs of an arm that hardly gains anything
    are near the floor.

    >>> at_floor(np.array([0.01, 0.6, 0.62, 0.58, 0.61, 0.6])).tolist()
    [True, False, False, False, False, False]
    >>> at_floor(np.array([0.01, 0.03, 0.02, -0.01, 0.02, 0.04])).tolist()
    [False, False, False, False, False, False]

    Args:
        gains: (runs,) gains over the floor; NaN for missing runs.
    """
    known = np.sort(finite_runs(gains))
    if len(known) < 2:
        return np.zeros(len(gains), dtype=bool)
    better = known[len(known) // 2 :]
    apart = better[0] - APART * (better[-1] - better[0])
    # A comparison with NaN is false.
    failed: NDArray[np.bool_] = (gains <= FAILED * better.mean()) & (gains < apart)
    return failed & (apart > 0)


def floor_of(table: Outcomes, outcome: str) -> Numbers | None:
    """Return the outcome of a model that learned nothing, (seeds,); None if it is unknown.

    For scores, it is that of the untrained model with the same seed. If training starts from a
    pre-trained model, it is the score of the best answer that is the same for all texts. For losses
    on masked text, it is the loss of word frequencies.

    Args:
        table: the outcomes of the compared runs.
        outcome: a task, a mean over tasks, a held-out loss or an evaluation.
    """
    if outcome.startswith("heldout:"):
        floors = []
        for part in table.parts.get(outcome, [outcome]):
            unigram = table.values.get(part.replace("heldout:", "unigram:", 1))
            if unigram is None:
                return None
            # The masks, and so this loss, are the same for all arms. Where no arm has a run, no
            # floor is needed.
            counts = np.isfinite(unigram).sum(axis=0)
            sums = np.nansum(unigram, axis=0)
            floors.append(np.where(counts, sums / np.maximum(counts, 1), np.nan))
        mean: Numbers = np.mean(floors, axis=0)
        return mean
    tasks = table.measured(outcome)
    if tasks == [outcome]:
        return table.floor(outcome)
    signed = []
    for task in tasks:
        floor = table.floor(task)
        if floor is None:
            return None
        sd = table.sds[task] if table.scales[outcome].unit == "SDs" else 1.0
        signed.append(table.scales[task].sign * floor / sd)
    average: Numbers = np.mean(signed, axis=0)
    return average


def failures_of(
    table: Outcomes, outcome: str, arm: str, baseline: str, *, leads: bool
) -> tuple[dict[str, Failures], float | None]:
    """Return the failures of both arms of a row, and the break-even rate of the leading arm.

    Args:
        table: the outcomes of the compared runs.
        outcome: the outcome of the row, or the mean over all tasks.
        arm: the arm of the row.
        baseline: the baseline of the row.
        leads: whether the arm, and not the baseline, is ahead.

    Returns:
        failures: keyed by "arm" and "baseline".
        break_even: the share of the leading arm's runs, between 0 and 1, whose failure would cancel
            its lead; 0 if all of them failed; None if the floor is unknown or no pair is left.
    """
    floor = floor_of(table, outcome)
    failures = {}
    gains = {}
    for key, side in (("arm", arm), ("baseline", baseline)):
        runs = table.runs(outcome, side)
        failed = _failed_stages(table, outcome, side)
        gains[key] = np.where(failed, np.nan, runs)
        if floor is not None:
            gains[key] = _gains(table, outcome, gains[key], floor)
            collapsed = at_floor(gains[key])
            failed |= collapsed
            gains[key][collapsed] = np.nan
        measured = int((np.isfinite(runs) | failed).sum())
        count = int(failed.sum())
        facts = [table.study["arms"][name] for name in table.trained(side)]
        failures[key] = Failures(
            runs=measured,
            failed=count,
            high=binomial_upper_bound(count, measured),
            learned=any(map(learned_in_run, facts)),
        )
    ahead, behind = ("arm", "baseline") if leads else ("baseline", "arm")
    lead = _mean(gains[ahead] - gains[behind])
    distance = _mean(gains[ahead])
    leading = failures[ahead]
    has_runs = bool(np.isfinite(table.runs(outcome, arm if leads else baseline)).any())
    if has_runs and leading["failed"] == leading["runs"]:
        # Each run has this outcome, but another of its stages failed.
        return failures, 0.0
    if floor is None or math.isnan(lead):
        return failures, None
    # If the leading arm is below the floor, its failures do not lower its mean.
    if distance <= 0:
        return failures, 1.0
    return failures, min(max(lead / distance, 0.0), 1.0)


def collapses_of(table: Outcomes, outcome: str, ahead: str, behind: str) -> tuple[int, float]:
    """Return how many runs of the side behind end at the floor, and the lead without their pairs.

    A few such runs can be the whole difference of two means.

    Args:
        table: the outcomes of the compared runs.
        outcome: the outcome of a row, or the mean over all tasks.
        ahead, behind: the arms of the row.

    Returns:
        collapsed: the number of runs at the floor (``at_floor``); 0 if the floor is unknown.
        lead: the mean lead of ``ahead`` over the other pairs; NaN if there is none.
    """
    floor = floor_of(table, outcome)
    if floor is None:
        return 0, math.nan
    first, second = (
        _gains(table, outcome, table.runs(outcome, side), floor) for side in (ahead, behind)
    )
    collapsed = at_floor(second)
    lead = without_rounding(
        _mean((first - second)[~collapsed]), table.largest(outcome, ahead, behind)
    )
    return int(collapsed.sum()), float(lead)


def _gains(table: Outcomes, outcome: str, runs: Numbers, floor: Numbers) -> Numbers:
    """Return by how much runs are better than a model that learned nothing."""
    gains: Numbers = table.scales[outcome].sign * (runs - floor)
    return gains


def _failed_stages(table: Outcomes, outcome: str, side: str) -> NDArray[np.bool_]:
    """Return for every seed whether a stage of the side's runs failed that bears on an outcome."""
    runs = table.failed_for(outcome)
    failed = np.zeros(len(table.study["seeds"]), dtype=bool)
    for (place, seed), arm in product(enumerate(table.study["seeds"]), table.trained(side)):
        failed[place] |= (arm, seed) in runs
    # A failed run of the reference model counts as well.
    if side == table.start:
        failed = np.array([(side, seed) in runs for seed in table.study["seeds"]])
    return failed


def _mean(runs: Numbers) -> float:
    known = finite_runs(runs.ravel())
    return float(known.mean()) if len(known) else math.nan
