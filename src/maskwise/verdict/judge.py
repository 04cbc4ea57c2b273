"""Judge comparisons: flags, tests and decisions.

``judge`` is a pure function from outcomes to frozen verdicts, one for every pair of arms and
outcome. The exact sign-flip test, with Holm's correction, and a decision exist only for the primary
outcome of a pair. The other verdicts explain it: they have a mean and an interval, but no p value.
A verdict holds codes and numbers; ``words`` puts them into sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from maskwise.base.constants import ASSUMED_MARGINS
from maskwise.results.files import Decision, Detectable, Effect, Equivalence, Study, Worth
from maskwise.verdict.comparison import Comparison, compared, primary_pairs
from maskwise.verdict.flags import Raised, raised
from maskwise.verdict.outcomes import Outcomes, Pair, finite_pairs, finite_runs
from maskwise.verdict.statistics import (
    ALPHA,
    P_FROM_RUNS,
    detectable_difference,
    fewest_runs,
    holm,
    look_weight,
    look_weights,
    rounding_of,
    runs_to_decide,
    sample_sd,
    sign_flip_interval,
    sign_flip_test,
    upper_sd,
)


@dataclass(frozen=True, kw_only=True)
class Verdict(Comparison):
    """A comparison, and what is concluded from it.

    Attributes:
        flags: the problems and remarks, in the order of ``flags.FLAGS``.
        p, p_adjusted: the p value of the test, and that with Holm's correction; None if not tested.
        decision: None for secondary outcomes, unless they are not comparable.
        better: which side is better, if the verdict is "decided".
        worth: whether the lead is a reason to use the better side, if the verdict is "decided".
        equivalence: the interval, if it is within the margin of the study. A difference that is
            decided may be too small to matter.
        runs_to_decide: the number of runs that would decide a true difference as large as the
            margin, for an open contrast; None without a margin, or if it is above ``MOST_RUNS``.
        detectable: the smallest difference that its runs detect.
    """

    flags: tuple[Raised, ...]
    p: float | None
    p_adjusted: float | None
    decision: Decision | None
    better: Literal["arm", "baseline"] | None
    worth: Worth | None
    equivalence: Equivalence | None
    runs_to_decide: int | None
    detectable: Detectable | None

    def has(self, effect: Effect) -> list[Raised]:
        """List the flags with an effect."""
        return [flag for flag in self.flags if flag.effect == effect]

    def raises(self, code: str) -> bool:
        """Return whether a flag is raised."""
        return any(flag.code == code for flag in self.flags)


def judge(table: Outcomes, gate: Outcomes) -> list[Verdict]:
    """Return the verdicts on the contrasts of a study, with those on the gate first.

    The gate is tested first, at the full level. The contrasts that it closes are tested only if the
    gate passes, so both tests can use the full error rate (a serial gatekeeper; Maurer, Hothorn and
    Lehmacher 1995).

    Args:
        table: the outcomes of the compared runs, and the study with its question. If there are
            ``pending`` seeds, nothing is judged: an earlier verdict would be an unplanned look.
        gate: the outcomes of the runs of the gate; the same table without runs of its own.
    """
    study = table.study
    pairs = [] if study.get("pending") else primary_pairs(study)
    control = study.get("gate")
    if not pairs or not control:
        return _judged(table, pairs)
    first = _judged(gate, pairs[:1], gate=True)
    closed = [] if passed(first) else [(arm, other) for arm, other in control["closes"]]
    return first + _judged(table, pairs[1:], closed=dict.fromkeys(closed, pairs[0]))


def passed(verdicts: Iterable[Verdict]) -> bool:
    """Return whether the arm of a gate beats its baseline, so that other contrasts are tested.

    If one search served all seeds, the two sides may have different settings. Such a gate is open,
    and so is one whose arm may fail. But it passes, because it asks whether the study can detect
    any difference. If all runs of the gate failed, there may be no verdict on it.
    """
    for verdict in verdicts:
        doubts = {flag.code for flag in verdict.flags if flag.effect != "notes"}
        is_sound = doubts <= {"settings-differ", "may-fail"}
        is_control = verdict.gate and verdict.primary
        if is_control and is_sound and _rejects(verdict.p_adjusted) and verdict.ahead:
            return True
    return False


def _rejects(p: float | None) -> bool:
    return p is not None and p < ALPHA


def _judged(
    table: Outcomes,
    pairs: Iterable[Pair],
    *,
    gate: bool = False,
    closed: Mapping[Pair, Pair] | None = None,
) -> list[Verdict]:
    """Judge pairs whose primary contrasts are one family, which shares the error rate."""
    comparisons: list[Comparison] = []
    for pair in pairs:
        comparisons += compared(table, pair, gate=gate, closed_by=(closed or {}).get(pair))
    flags = [raised(one, table) for one in comparisons]
    primaries = [place for place, one in enumerate(comparisons) if one.primary]
    p_values: dict[int, float] = {}
    for place in primaries:
        is_valid = all(flag.effect != "invalid" for flag in flags[place])
        if is_valid and comparisons[place].n >= P_FROM_RUNS:
            p_values[place] = _p_value(comparisons[place], table.study)
    # Planned contrasts without a p value are part of the family, with p = 1.
    adjusted = dict(zip(primaries, holm([p_values.get(place, 1.0) for place in primaries])))
    verdicts = []
    for place, one in enumerate(comparisons):
        p = p_values.get(place)
        p_adjusted = None if p is None else adjusted[place]
        if _rejects(p_adjusted):
            flags[place] = raised(one, table, significant=True)
        verdicts.append(
            _concluded(one, table, flags[place], (p, p_adjusted), family=len(primaries))
        )
    return verdicts


def _p_value(one: Comparison, study: Study) -> float:
    """Return the p value of the sign-flip test, combined over the planned looks so far."""
    looks = study.get("looks")
    least_sds = one.least_sds
    scores = one.scores
    if not looks:
        seen = finite_pairs(one.differences)
        return sign_flip_test(seen, least_sds=least_sds, scores=scores)
    p_values = [1.0]
    for runs, weight in zip(looks, look_weights(looks)):
        seen = finite_pairs(one.differences[:, :runs])
        # Skip looks in the future, and early looks whose runs all failed.
        if runs <= len(study["seeds"]) and seen.size:
            p = sign_flip_test(seen, least_sds=least_sds, scores=scores)
            p_values.append(p / weight)
    return min(p_values)


def _concluded(
    one: Comparison,
    table: Outcomes,
    flags: tuple[Raised, ...],
    p_values: tuple[float | None, float | None],
    *,
    family: int,
) -> Verdict:
    """Return the verdict on a comparison.

    Args:
        one: the comparison.
        table: the outcomes, and the study with its margin and looks.
        flags: its flags.
        p_values: the p value, and that with Holm's correction; None if it was not tested.
        family: the number of contrasts that share the error rate.
    """
    study = table.study
    p, p_adjusted = p_values
    effects = {flag.effect for flag in flags}
    decision: Decision | None = None
    better: Literal["arm", "baseline"] | None = None
    worth = equivalence = needed = detectable = None
    if "invalid" in effects:
        decision = "not comparable"
    elif one.primary:
        decision = "open"
        # The share of the error rate that each contrast of the family may spend at this look.
        alpha = ALPHA * look_weight(study.get("looks"), len(study["seeds"])) / family
        equivalence = _within_margin(one, study.get("margin"), alpha=alpha)
        if "caps" in effects:
            equivalence = None
        elif _rejects(p_adjusted):
            decision = "decided"
            better = "arm" if one.ahead else "baseline"
            worth = _worth(one, table)
        elif equivalence is not None:
            decision = "no difference that matters"
        elif one.n > 1:
            needed, detectable = _needed(one, study.get("margin"), alpha=alpha)
    return Verdict(
        **vars(one),
        flags=flags,
        p=p,
        p_adjusted=p_adjusted,
        decision=decision,
        better=better,
        worth=worth,
        equivalence=equivalence,
        runs_to_decide=needed,
        detectable=detectable,
    )


def _within_margin(one: Comparison, margin: float | None, *, alpha: float) -> Equivalence | None:
    """Return the interval of the difference if it is within the study's margin; otherwise None.

    The unit is plain scores or nats. The confidence, 1 − ``alpha``, is corrected for the number of
    contrasts and planned looks, as in the test. If the true difference equals the margin, at most
    5 % of studies report no difference that matters.
    """
    if margin is None or not one.in_margin_units:
        return None
    confidence = 1 - alpha
    interval = sign_flip_interval(finite_runs(one.plain), confidence=confidence, scores=one.largest)
    if interval is None:
        return None
    low, high = interval
    # An end that is equal to the margin but for rounding errors is within it.
    if max(-low, high) > margin + rounding_of(one.largest):
        return None
    return {"margin": margin, "confidence": confidence, "low": low, "high": high}


def _worth(one: Comparison, table: Outcomes) -> Worth:
    """Return whether the whole interval of a lead is above the margin, and the tasks against it.

    A margin of the study is in the unit of its outcome. Another one is assumed for other units, and
    where the study has none.
    """
    given = table.study.get("margin")
    unit = one.scale.margin_unit
    margins = {**ASSUMED_MARGINS, unit: ASSUMED_MARGINS[unit] if given is None else given}
    ahead, behind = one.sides
    against = []
    for task in table.tasks:
        gain = table.mean_gain(task, ahead, behind) or 0.0
        is_behind = gain < -margins[table.scales[task].margin_unit]
        if is_behind and not table.incomparable(ahead, behind, task):
            against.append(task)
    worth: Worth = {"above": False, "margin": None, "assumed": given is None, "against": against}
    ends = one.natural or one.estimate
    low, high = ends["low"], ends["high"]
    if one.in_margin_units and low is not None and high is not None:
        # Both ends are on the side of the leader, if the difference is clear in this unit.
        nearest = min(abs(low), abs(high)) if low * high > 0 else 0.0
        worth["margin"] = margins[unit]
        worth["above"] = bool(nearest > margins[unit] + rounding_of(one.largest))
    return worth


def _needed(
    one: Comparison, margin: float | None, *, alpha: float
) -> tuple[int | None, Detectable | None]:
    """Return the number of runs that would decide a difference as large as the margin, and the
    difference that the present number detects; both for the upper limit of the SD.

    The measured difference is not used: numbers of runs that follow from it have too little power.
    """
    runs = max(one.n, fewest_runs(alpha))
    plain = finite_runs(one.plain)
    # A mean over tasks with different units has no plain differences.
    if len(plain) < 2:
        return None, {"runs": runs, "difference": None}
    # With several tasks, the power is that of their average.
    sd = upper_sd(sample_sd(plain, scores=one.largest), len(plain))
    # If all differences are equal, the detectable difference is 0, which is not credible.
    if not sd:
        return None, None
    needed = None
    if margin is not None and one.in_margin_units:
        needed = runs_to_decide(sd, margin, alpha=alpha)
    if needed is not None:
        # By the formula the present runs may be enough, but they did not decide.
        needed = max(needed, one.n + 1)
    difference = detectable_difference(sd, runs, alpha=alpha)
    return needed, {"runs": runs, "difference": difference}


# What the headline adds: did training help at all?
# ---------------------------------------------------------------------------------------------


def worse_than_reference(verdict: Verdict, table: Outcomes) -> list[str]:
    """List the arms with a worse mean than the reference model on the outcome of a verdict.

    A contrast between two trained arms does not show whether training helped at all.
    """
    outcome = verdict.outcome
    # If all compared runs failed, the gate's runs may have an outcome that the table lacks.
    if outcome not in table.scales or verdict.decision == "not comparable" or not table.start:
        return []
    worse = []
    for arm in table.study["arms"]:
        gain = table.mean_gain(outcome, arm, table.start) or 0.0
        if gain < 0 and not table.incomparable(arm, table.start, outcome):
            worse.append(arm)
    return worse


def gained_nothing(verdict: Verdict, table: Outcomes) -> bool:
    """Return whether no arm has gained over the reference model on the tasks.

    This is asked of studies that are decided by something else than tasks, such as a held-out loss,
    or in which nothing can be compared. In other studies, ``worse_than_reference`` says it.
    """
    on_tasks = verdict.outcome in ("tasks", *table.tasks)
    if "tasks" not in table.scales or (on_tasks and verdict.decision != "not comparable"):
        return False
    if table.start is None:
        return False
    gains = [table.mean_gain("tasks", arm, table.start) for arm in table.study["arms"]]
    # Without runs of the reference model or of an arm, nothing is known.
    return all(gain is not None and gain <= 0 for gain in gains)
