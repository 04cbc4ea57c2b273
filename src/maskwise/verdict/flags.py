"""Flags on comparisons: one table with their tests, sentences and advice.

A flag is raised if its test returns facts, which fill its sentence and are written to summary.json.
An invalid flag makes a verdict *not comparable*, a cap makes it at most *open*, and a note does not
change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np

from maskwise.base.constants import (
    CORRELATIONS,
    COSTS,
    NATS,
    OVERLAP_ADVICE,
    PLATEAU_NATS,
    overlap_matters,
    overlap_words,
)
from maskwise.base.errors import in_percent
from maskwise.results.estimates import in_decimals, items_ends, with_minus
from maskwise.results.files import Effect, Estimate, ItemsInterval
from maskwise.verdict.comparison import Comparison
from maskwise.verdict.failures import collapses_of
from maskwise.verdict.outcomes import TOLERANCE, Outcomes, finite_pairs, finite_runs, is_loss
from maskwise.verdict.statistics import best_guess, can_decide, sign_flip_interval

FlagFacts: TypeAlias = dict[str, object]
Test: TypeAlias = Callable[[Comparison, Outcomes], FlagFacts | None]


@dataclass(frozen=True)
class Flag:
    """A remark on a comparison.

    Attributes:
        test: a function that returns facts if the flag is raised, and None otherwise. The fact
            ``arms`` lists names of arms. If the fact ``minor`` is true, the advice is omitted.
        sentence: a format string with the facts as fields.
        significant: whether the flag is raised only against a significant difference.
    """

    code: str
    effect: Effect
    test: Test
    sentence: str
    advice: str = ""
    significant: bool = False


class Raised(NamedTuple):
    """A flag that is raised, and the facts that its test found."""

    flag: Flag
    facts: FlagFacts

    @property
    def code(self) -> str:
        return self.flag.code

    @property
    def effect(self) -> Effect:
        return self.flag.effect

    @property
    def advisable(self) -> bool:
        """Whether the flag calls for advice."""
        return not self.facts.get("minor")


def raised(one: Comparison, table: Outcomes, *, significant: bool = False) -> tuple[Raised, ...]:
    """Return the flags on a comparison, in the order of ``FLAGS``.

    Args:
        one: the comparison.
        table: the outcomes that it is made of.
        significant: whether a test found the difference significant.
    """
    found = []
    for flag in FLAGS:
        if significant or not flag.significant:
            facts = flag.test(one, table)
            if facts is not None:
                found.append(Raised(flag, facts))
    return tuple(found)


# Flags that invalidate a comparison


def _closed(*, follow_up: bool) -> Test:
    """Return a test for contrasts that a gate closed.

    If the gate is itself a contrast of the study, it is a first question about its arm, and other
    contrasts of this arm are a ``follow_up``. Any other gate is a positive control, also one at
    default settings beside a search.
    """

    def test(one: Comparison, table: Outcomes) -> FlagFacts | None:
        if one.closed_by is None:
            return None
        asked = [*one.closed_by] in [[*pair] for pair in table.study["contrasts"]]
        same_arm = one.arm == one.closed_by[0]
        if (asked and same_arm and not table.study.get("search")) != follow_up:
            return None
        oracle, beaten = one.closed_by
        later = any(look > len(table.study["seeds"]) for look in table.study.get("looks") or ())
        how = "has not passed at this look" if later else "failed"
        return {"oracle": oracle, "beaten": beaten, "how": how}

    return test


def _no_pairs(one: Comparison, table: Outcomes) -> FlagFacts | None:
    lost = one.n == 0 or (one.n == 1 and _has_failures(one, table))
    return {} if lost else None


def _differs(what: str) -> Test:
    """Return a test for one reason why losses are not comparable."""

    def test(one: Comparison, table: Outcomes) -> FlagFacts | None:
        return {} if table.incomparable(*one.pair, one.outcome) == what else None

    return test


def _at_floor(*, answer: bool) -> Test:
    """Return a test for arms at the floor, whose held-out loss shows no learning.

    With ``answer``, test for the valid case: one side is at the floor and started there. Otherwise,
    test for the invalid cases: both sides are at the floor, or a side fell back to the floor.
    """

    def test(one: Comparison, table: Outcomes) -> FlagFacts | None:
        if not is_loss(one.outcome):
            return None
        gaps = {}
        fallen = {}
        sides = set()
        for side in one.pair:
            for arm in table.trained(side) or [side]:
                gap = table.gap_nats(arm)
                if gap is not None and gap < PLATEAU_NATS:
                    sides.add(side)
                    gaps[arm] = gap
                    start = table.gap_nats(arm, of=table.start) if table.start else None
                    if (start or 0) >= PLATEAU_NATS:
                        fallen[arm] = gap
        # For an untrained model at the floor, a remark about training length makes no sense.
        if answer and (fallen or len(sides) == 2 or table.start in gaps):
            return None
        if len(sides) == 1 and not answer:
            gaps = fallen
        if not gaps:
            return None
        rounded = [round(gap, 3) for gap in gaps.values()]
        words = with_minus(" and ".join(map("{:+.3f}".format, rounded)))
        steps = table.mean("cost:steps", next(iter(gaps)))
        when = "at this length"
        if steps:
            when = f"after {steps:,.0f} steps"
        facts = {"arms": list(gaps), "gaps": rounded, "words": words, "floor": PLATEAU_NATS}
        return {**facts, "when": when}

    return test


def _at_chance(one: Comparison, table: Outcomes) -> FlagFacts | None:
    arms = one.pair
    for outcome, arm in product(table.measured(one.outcome), arms):
        if not _guesses(table, outcome, arm):
            return None
    return {"arms": list(arms)}


def guessed_tasks(verdicts: Iterable[Comparison], table: Outcomes) -> list[str]:
    """Return the tasks on which no arm, nor the start, is shown to score better than guessing.

    Args:
        verdicts: the primary verdicts. Tasks that the flag ``chance`` says this of are left out.
        table: the outcomes.
    """
    said = set[str]()
    for one in verdicts:
        if _at_chance(one, table):
            said.update(table.measured(one.outcome))
    arms = [*table.study["arms"], *table.study.get("untrained", {})]
    measured = {
        task: [arm for arm in arms if table.mean(task, arm) is not None] for task in table.tasks
    }
    return [
        task
        for task, known in measured.items()
        if task not in said and known and all(_guesses(table, task, arm) for arm in known)
    ]


def _at_ceiling(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the tasks on which both arms score within one test item of 1, the best score."""
    measured = table.measured(one.outcome)
    full = [
        outcome
        for outcome in measured
        if all(_nearly_all_right(table, outcome, arm) for arm in one.pair)
    ]
    if not full:
        return None
    return {"tasks": full, "names": ", ".join(full), "minor": len(full) < len(measured)}


def _nearly_all_right(table: Outcomes, outcome: str, arm: str) -> bool:
    """Return whether a score is 1, but for less than one test item in a run, if they are known."""
    scale = table.scales[outcome]
    mean = table.mean(outcome, arm)
    if mean is None or scale.unit != "score" or not scale.higher_is_better:
        return False
    # Rounded, because the mean of equal scores may differ from them in the last digit.
    missed = round((1 - mean) / table.one_item(outcome), 6)
    return 0 <= missed < 1 if scale.items else missed == 0


def _guesses(table: Outcomes, outcome: str, arm: str) -> bool:
    """Return whether a score is below chance + 2 standard errors, or a loss above chance."""
    scale = table.scales[outcome]
    mean = table.mean(outcome, arm)
    chance = scale.chance
    if chance is None or mean is None:
        return False
    if not scale.higher_is_better:
        return mean >= chance
    return mean <= best_guess(chance, scale.items, share=scale.metric not in CORRELATIONS)


# Flags that cap a verdict at open


def _looked_before(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the facts of an earlier, unplanned verdict on other runs or settings."""
    looks = table.study.get("looks")
    seeds = table.study["seeds"]
    for look in table.study.get("looked") or ():
        seen = set(look["seeds"])
        planned = looks is not None and look["looks"] == looks and seen <= {*seeds}
        what = ""
        if look.get("settings_changed"):
            what = "contrasts or the verdict rules were"
        elif not planned and seen != {*seeds}:
            what = "runs were"
        # A look with too few runs to decide spent no error rate. A gate alone has no contrasts.
        if what and can_decide(look["runs"], max(1, look["contrasts"])):
            return {"what": what, "runs": look["runs"]}
    return None


def _settings_differ(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return arms with different settings, if one search served all seeds."""
    arms = []
    settings = set()
    for line in table.searches(*one.pair):
        if line.get("seed") is None and line["chosen"]:
            arms.append(line["arm"])
            settings.add(str(sorted(line["chosen"].items())))
    return {"arms": arms} if len(settings) > 1 else None


def _may_fail(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the failures of an arm whose verdict could be due to failures that were not seen."""
    break_even = one.break_even
    failures = one.failures["arm" if one.ahead else "baseline"]
    may_fail = failures["learned"] or failures["failed"] > 0
    if not may_fail or break_even is None or break_even >= failures["high"]:
        return None
    return {
        "arms": [one.sides[0]],
        "failed": failures["failed"],
        "runs": failures["runs"],
        "most": rate(failures["high"]),
        "enough": rate(break_even),
        "high": failures["high"],
        "break_even": break_even,
    }


def _tasks_disagree(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the plain mean over tasks if it is on the other side than the estimate of the test.

    The test weighs tasks by their precision, so a small and steady gain on one task can exceed a
    larger, uneven loss on another. Which of them matters more is not for statistics to say.
    """
    if one.outcome != "tasks" or one.mean is None:
        return None
    if one.natural is not None and one.natural["mean"] is not None:
        plain = one.natural["mean"]
        amount = f"{in_decimals(100 * abs(plain), 1)} points"
        if one.scale.metric == NATS:
            amount = f"{in_decimals(abs(plain), 3)} nats"
    else:
        plain = float(finite_pairs(one.differences).mean())
        amount = f"{abs(plain):.1f} standard deviations of runs"
    if plain * one.mean > 0:
        return None
    ahead, behind = one.sides
    return {"plain": plain, "ahead": ahead, "behind": behind, "amount": amount}


# Notes that leave the verdict as it is


def _task_against(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the tasks on which the side that the test favours is behind by their own interval."""
    tasks = table.measured(one.outcome)
    against = []
    for task in tasks:
        leads = finite_runs(table.gains(task, *one.sides))
        ends = sign_flip_interval(leads, scores=table.largest(task, *one.pair))
        if len(tasks) > 1 and ends is not None and ends[1] < 0:
            against.append(task)
    if not against:
        return None
    ahead, behind = one.sides
    return {"tasks": against, "names": ", ".join(against), "ahead": ahead, "behind": behind}


def _without_margin(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the margin of a study that this outcome cannot have."""
    margin = table.study.get("margin")
    if margin is None or not one.primary or one.in_margin_units:
        return None
    why = "the tasks have different units" if one.outcome == "tasks" else f"it is {one.scale.unit}"
    return {"margin": margin, "why": why}


def _collapsed(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the runs at the floor of the side behind, which may be the whole difference."""
    ahead, behind = one.sides
    if one.n < 2 or not one.mean:
        return None
    collapsed, lead = collapses_of(table, one.outcome, ahead, behind)
    if not collapsed:
        return None
    runs = one.failures["baseline" if one.ahead else "arm"]["runs"]
    leads = f"{ahead} is still ahead" if lead > 0 else f"{ahead} is not ahead"
    return {"arms": [behind], "collapsed": collapsed, "runs": runs, "lead": lead, "leads": leads}


def _missing_runs(one: Comparison, table: Outcomes) -> FlagFacts | None:
    planned = len(table.study["seeds"])
    missing = planned - one.n
    # Without any pair, the flag "no-pairs" is raised instead.
    if not 0 < missing < planned or not _has_failures(one, table):
        return None
    return {"missing": missing, "planned": planned}


def _unmatched_compute(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return the quantities of compute in which the two sides differ by more than 5 %."""
    # The reference arm was not trained.
    if table.start in one.pair:
        return None
    by = one.compute["by"]
    ratios = one.compute["ratios"]
    if not ratios:
        return {"told": "the compute of the arms was not recorded", "ratios": {}, "minor": True}
    off = {}
    spent = []
    for key, ratio in ratios.items():
        if abs(ratio - 1) > TOLERANCE:
            off[key] = ratio
            # Format with two significant digits and without an exponent.
            spent.append(f"{float(f'{ratio:.2g}'):g} times the {COSTS[key]}")
    if not off:
        return None
    lead = ""
    if by in off:
        lead = f"not matched by {COSTS[by]}: "
    elif by:
        lead = f"at equal {COSTS[by]}, "
    told = f"{lead}{one.arm} used {' and '.join(spent)} of {one.baseline}"
    return {"told": told, "ratios": off}


def _untuned(one: Comparison, table: Outcomes) -> FlagFacts | None:
    trained = table.trained(*one.pair)
    # A gate compares default settings by design.
    if not trained or one.gate or table.searches(*one.pair):
        return None
    return {"arms": trained}


def _item_noise(one: Comparison, table: Outcomes) -> FlagFacts | None:
    """Return how uncertain a difference is if other test items could reverse it.

    If the runs show a difference, the question is whether it stands if the items vary as well. If
    they show none, it is whether more runs could, on these items.
    """
    items = one.items
    estimate = one.natural or one.estimate
    if not items or not one.mean or estimate["mean"] is None:
        return None
    assumed = ", on the assumption that the arms' answers correlate at .5"
    if items.get("paired"):
        assumed = ""
    facts: FlagFacts = {**items, "assumed": assumed}
    scale = one.scale
    if abs(estimate["mean"]) <= items["alone"]:
        half = items["alone"]
        said = f"{half:.2f} nats" if scale.metric == NATS else f"{100 * half:.1f} points"
        why = f"the choice of items alone makes the difference uncertain by {said}"
    elif _excludes_0(estimate) and not _excludes_0(items):
        ends = items_ends(items, scale.unit, scale.metric, higher=scale.higher_is_better)
        why = f"if runs and test items vary together, the 95 % interval is {ends}"
    else:
        return None
    facts["why"] = why
    # The advice says that more runs do not help. They do if each brings its own items.
    if all(map(table.has_items_per_run, table.measured(one.outcome))):
        facts["minor"] = True
    return facts


def _excludes_0(ends: Estimate | ItemsInterval) -> bool:
    low, high = ends["low"], ends["high"]
    return low is not None and high is not None and not low <= 0 <= high


def _identical(one: Comparison, table: Outcomes) -> FlagFacts | None:
    pairs = finite_pairs(one.differences)
    if one.n < 2 or pairs.any():
        return None
    # Scores at a floor or a ceiling are equal in all runs.
    return {"arms": [*one.pair]} if _varies(one.arm, one, table) else None


def _copies(one: Comparison, table: Outcomes) -> FlagFacts | None:
    pairs = finite_pairs(one.differences)
    if one.n < 2 or not pairs.any():
        return None
    if any(_varies(side, one, table) for side in one.pair):
        return None
    return {"arms": [*one.pair], "runs": one.n}


def _varies(arm: str, one: Comparison, table: Outcomes) -> bool:
    """Return whether runs of an arm differ in an outcome of the comparison."""
    return any(
        np.ptp(finite_runs(table.runs(outcome, arm))) > 0 for outcome in table.measured(one.outcome)
    )


def _overlap(one: Comparison, table: Outcomes) -> FlagFacts | None:
    outcomes = table.measured(one.outcome)
    tasks = []
    words = []
    minor = True
    for line in table.lines["overlap"]:
        if line["task"] in outcomes and line["overlapping"]:
            tasks.append(line["task"])
            words.append(overlap_words(line))
            minor = minor and not overlap_matters(line)
    # Two corpora may share a text.
    overlaps = "; ".join(dict.fromkeys(words))
    return {"overlaps": overlaps, "tasks": tasks, "minor": minor} if tasks else None


# Helpers for the tests


def rate(share: float) -> str:
    """Format a rate as a percentage with two significant digits, without an exponent."""
    return f"{in_percent(share, 2)} %"


def _has_failures(one: Comparison, table: Outcomes) -> bool:
    arms = {*table.trained(*one.pair), *one.pair}
    return not arms.isdisjoint(arm for arm, _ in table.failed_for(one.outcome))


FLAGS = (
    Flag(
        "gate-closed",
        "invalid",
        _closed(follow_up=False),
        "the positive control {how} ({oracle} was not shown to beat {beaten}), so this study "
        "cannot detect smaller differences",
        "Fix the positive control first, with more runs, longer training or easier tasks. Until "
        "the control passes, the contrasts that depend on it have no verdict.",
    ),
    Flag(
        "not-asked",
        "invalid",
        _closed(follow_up=True),
        "they are compared only if {oracle} is shown to beat {beaten}, and it is not",
    ),
    Flag(
        "no-pairs",
        "invalid",
        _no_pairs,
        "too few runs finished",
        "Fix the errors and run the same command again: finished stages are not repeated.",
    ),
    Flag(
        "different-tokenizers",
        "invalid",
        _differs("different-tokenizers"),
        "the arms have different tokenizers, and a loss per token depends on the tokenizer",
    ),
    Flag(
        "different-formats",
        "invalid",
        _differs("different-formats"),
        "the arms learned different output formats, and the loss depends on the format",
    ),
    Flag(
        "different-units",
        "invalid",
        _differs("different-units"),
        "the arms mask different things, such as tokens and words, so the loss favours the arm "
        "that was trained with the masks of the evaluation",
    ),
    Flag(
        "floor",
        "invalid",
        _at_floor(answer=False),
        "{arms} predicted held-out text hardly better than word frequencies ({words} nats; less "
        "than {floor} shows no learning)",
        "Train longer or mask more. If the loss is higher than the loss of word frequencies, use "
        "more text or fewer steps.",
    ),
    Flag(
        "chance",
        "invalid",
        _at_chance,
        "neither arm is shown to score better than guessing",
        "Use easier tasks or train longer: scores at chance cannot show a difference.",
    ),
    Flag(
        "identical",
        "caps",
        _identical,
        "both arms have the same result in every run, so they may be one: what differs between "
        "them may have no effect here",
        "Make sure that arms with the same results are not one: compare what made them.",
    ),
    Flag(
        "copies",
        "caps",
        _copies,
        "all {runs} runs of {arms} have the same scores, so each is one run {runs} times, and "
        "their test means nothing",
        "Compare models that are trained, or tasks that train them: copies of a run are no "
        "evidence.",
    ),
    Flag(
        "looked-before",
        "caps",
        _looked_before,
        "the {what} changed after a verdict on {runs} runs, and study.interim_looks did not plan "
        "this",
        "Start a new study with new seeds, or plan interim analyses with study.interim_looks: "
        "testing again inflates the error rate.",
    ),
    Flag(
        "settings-differ",
        "caps",
        _settings_differ,
        "one search served all seeds and chose different settings for {arms}, so the difference "
        "may be due to the settings",
        "Run the study again: a search now chooses settings for every seed (study.search).",
    ),
    Flag(
        "may-fail",
        "caps",
        _may_fail,
        "{arms} may fail in some runs: {failed} of {runs} failed here, which allows up to {most}, "
        "and failures in {enough} would cancel the lead",
        "Compare an arm that learns its masks or shares, or that failed once, in a new study with "
        "more runs, or where its lead is larger.",
        significant=True,
    ),
    Flag(
        "tasks-disagree",
        "caps",
        _tasks_disagree,
        "the tasks disagree: weighted by their precision, as in the test, they favour {ahead}, but "
        "their plain mean favours {behind} by {amount}",
        "Look at each task. A new study can name the one that matters (study.outcome).",
        significant=True,
    ),
    Flag(
        "task-against",
        "notes",
        _task_against,
        "on {names} alone, {ahead} is behind {behind} by the 95 % interval",
        "Look at each task. A new study can name the one that matters (study.outcome).",
        significant=True,
    ),
    Flag(
        "no-margin",
        "notes",
        _without_margin,
        "the outcome is not in scores or nats ({why}), so the margin of {margin:g} has no effect",
        "For a margin, decide by tasks in one unit (study.secondary names the others).",
    ),
    Flag(
        "collapsed",
        "notes",
        _collapsed,
        "{collapsed} of {runs} runs of {arms} learned nothing, and without their pairs {leads}",
        "Report the share of such runs beside the mean: the two are different questions.",
    ),
    Flag(
        "near-floor",
        "notes",
        _at_floor(answer=True),
        "{when}, {arms} predicted held-out text hardly better than word frequencies; longer "
        "training may change the result",
        "Train longer (training.steps) to find out whether the difference remains.",
    ),
    Flag(
        "missing-runs",
        "notes",
        _missing_runs,
        "{missing} of {planned} pairs of runs are missing, perhaps not at random",
        "Fix the errors and run the same command again: finished stages are not repeated.",
    ),
    Flag(
        "compute",
        "notes",
        _unmatched_compute,
        "{told}",
        "Compare the arms also at equal targets or FLOPs (study.equal_by).",
    ),
    Flag(
        "untuned",
        "notes",
        _untuned,
        "no settings were tuned, and at other learning rates the order of the arms may change",
        "Tune every arm over the same small grid of learning rates (study.search).",
    ),
    Flag(
        "ceiling",
        "notes",
        _at_ceiling,
        "on {names}, both arms miss less than one test item in a run, so hardly anything is left "
        "to gain",
        "Use harder or more test items, or another task: where both arms answer all of them, "
        "neither can show a gain.",
    ),
    Flag(
        "items",
        "notes",
        _item_noise,
        "other test items could reverse the result: {why}{assumed}",
        "Use a larger test set or more tasks: more runs decide for these test items only.",
    ),
    Flag(
        "overlap",
        "notes",
        _overlap,
        "{overlaps}",
        OVERLAP_ADVICE.format(examples="examples in records.jsonl"),
    ),
)
