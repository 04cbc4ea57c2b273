"""Sentences about verdicts, from their codes and numbers; written when something is shown.

Differences are given in score points first and in SDs of runs within an arm second, because people
think in points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from maskwise.base.constants import FIXED
from maskwise.base.errors import plural
from maskwise.results.estimates import SPREADS, Shown, decimals, outcome_words, shown_in
from maskwise.results.files import Decision, Effect, Estimate, Study, Worth
from maskwise.verdict.flags import FLAGS, Raised, rate
from maskwise.verdict.judge import Verdict
from maskwise.verdict.outcomes import finite_pairs
from maskwise.verdict.statistics import ALPHA, MOST_RUNS, POWER, fewest_runs

ShownNames: TypeAlias = Mapping[str, str]
"""The names of arms in sentences, keyed by arm (``names_of``)."""

NO_DIFFERENCE: Decision = "no difference that matters"
SENTENCES: dict[str, str] = {
    "decided": "{first} beats {second} {where} by {amount}{small} ({facts}).",
    NO_DIFFERENCE: "no difference that matters between {arm} and {baseline} {where}:"
    " {inside} ({facts}).",
    "not comparable": "{arm} and {baseline} are not comparable {where}: {because}.",
    "ahead": "{first} is {amount} ahead of {second} {where} ({facts}).",
    "equal": "{arm} and {baseline} are equal {where} ({facts}).",
}
HEADLINES: dict[str, str] = {
    "decided": "{first} is {amount} better than {second} {where}{small} (decided; {ends}).",
    NO_DIFFERENCE: "no difference that matters between {arm} and {baseline} {where}.",
    "not comparable": "not comparable: {because}.",
}
OPEN = {
    "capped": "no verdict on {arm} and {baseline} {where}, because {because} ({facts}).",
    "undecided": "these runs do not decide between {arm} and {baseline} {where} ({facts}).",
    "equal": "{arm} and {baseline} have the same result {where} in every run.",
}
"""What is said first of an open contrast. It names no leader and no amount, which readers of one
line would take away."""
KEEP = "keep {baseline}: every other arm is worse (decided)."
SCOPES = {FIXED: "valid only at these settings"}
"""Phrases for scopes; other scopes are phrases already."""
ITEMS = "items"
REPLICATES = {
    "pretraining": "Pairs are runs of pre-training.",
    "finetuning": "Pairs are fine-tunings of one checkpoint of each arm: this is about these "
    "checkpoints, and not about how they were pre-trained.",
    ITEMS: "Pairs are test items of one run of each arm: this is about these two checkpoints on "
    "items like these, and nothing is decided about how they were trained.",
}
"""What a pair of scores from elsewhere repeats, and what is said about such pairs
(``scores``)."""
LEARNED_MORE = (
    "{first} learned more than {second}: its held-out loss is {amount} lower{small} (decided; "
    "{ends})."
)
"""Headline of a contrast that is decided by loss, if one of the two arms learned little more than
word frequencies."""


OF_RECIPES = frozenset(
    (
        *("next-look", "looked-before", "settings-differ", "tasks-disagree", "compute", "untuned"),
        "no-margin",
        "task-against",
    )
)
"""Codes of advice to look at a recipe or change it, which helps nobody who has none."""


class Adding(NamedTuple):
    """How runs are added to a comparison, in words."""

    few: str
    """Where too few runs are no look at the results."""
    decided: str
    """Where runs that are added would test again."""
    number: str
    """How a number of runs is found."""


TO_STUDY = Adding(
    "Add seeds (study.seeds)",
    "Do not add seeds to this study: testing again inflates the error rate. Start a new study with "
    "different seeds, or plan interim analyses before (study.interim_looks)",
    "maskwise check with --spread (this folder) and --detect (the smallest difference that matters "
    "to you) says how many runs it needs",
)
TO_TABLE = Adding(
    "Add the scores of further seeds to the table",
    "Do not add runs to this table: testing again inflates the error rate. Give runs with new "
    "seeds as a new table",
    "with --margin (in Python margin=), the smallest difference that matters to you, compare says "
    "how many it needs",
)


def names_of(study: Study) -> dict[str, str]:
    """Return how sentences call arms: by name; the reference arm gets words."""
    return {**{arm: arm for arm in study["arms"]}, **study.get("untrained", {})}


# A verdict


def sentence_of(verdict: Verdict, names: ShownNames, *, brief: bool = False) -> str:
    """Return a sentence with the leading arm, the difference and its certainty.

    Args:
        verdict: the verdict.
        names: the names of arms in sentences.
        brief: whether to omit details.
    """
    kind: str = verdict.decision or ""
    template = SENTENCES.get(kind, SENTENCES["ahead" if verdict.mean else "equal"])
    facts = _facts(verdict, names, brief=brief)
    if kind == "open" and brief:
        # It is printed next to the verdict, and does not repeat it.
        template = OPEN[_why_open(verdict)]
    sentence = _fill(template, verdict, names, facts, brief=brief)
    if kind == "open" and not brief:
        return f"Open: {sentence} {outlook_of(verdict, names)}".rstrip()
    return _capital(sentence, verdict)


def flag_sentence(flag: Raised, names: ShownNames) -> str:
    """Return the sentence of a flag."""
    arms = flag.facts.get("arms", ())
    assert isinstance(arms, list | tuple)
    # The sentence names arms in words; the facts keep the names of study.json.
    words = {"arms": " and ".join(names[arm] for arm in arms)}
    for role in ("oracle", "beaten"):
        if role in flag.facts:
            words[role] = names[str(flag.facts[role])]
    return flag.flag.sentence.format(**{**flag.facts, **words})


def _reasons(verdict: Verdict, effect: Effect, names: ShownNames) -> list[str]:
    """Return the sentences of the flags on a verdict that have this effect."""
    return [flag_sentence(flag, names) for flag in verdict.flags if flag.effect == effect]


def _fill(
    template: str, verdict: Verdict, names: ShownNames, facts: str, *, brief: bool = True
) -> str:
    first, second = (names[side] for side in verdict.sides)
    reasons = _reasons(verdict, "invalid", names) or _reasons(verdict, "caps", names)
    if brief:
        reasons = reasons[:1]
    p = verdict.p_adjusted
    amount = verdict.shown
    return template.format(
        arm=names[verdict.arm],
        baseline=names[verdict.baseline],
        first=first,
        second=second,
        where=outcome_words(verdict.outcome),
        amount=amount.size(),
        because="; ".join(reasons),
        facts=facts,
        inside=_inside(verdict),
        small=", which is too small to matter" if verdict.equivalence else "",
        ends="" if p is None else f"95 % interval {amount.ends(ahead=True)}, p = {p:.2g}",
    )


def _facts(verdict: Verdict, names: ShownNames, *, brief: bool) -> str:
    """Return the number of runs, interval, p value and scope of a verdict."""
    ahead = names[verdict.sides[0]]
    amount = verdict.shown
    runs = f"{plural(verdict.n, 'run')} each"
    if verdict.compute["matched"]:
        runs += f", equal {verdict.compute['by']}"
    facts = [runs]
    # A lead without its interval says more than is known.
    if verdict.mean is not None and (not brief or verdict.decision != NO_DIFFERENCE):
        facts.append(_interval(verdict, names, neutral=brief and verdict.decision == "open"))
    if not brief:
        if verdict.scale.unit == "SDs" and amount.unit != SPREADS and verdict.mean:
            digits = decimals(1, verdict.estimate["low"], verdict.estimate["high"])
            lead = f"{abs(verdict.mean):.{digits}f}"
            times = f"the lead is {lead} times the SD of runs within an arm"
            if verdict.least_sd:
                times += " (or one test item, if that is more)"
            facts.append(times)
        if verdict.decision == "decided" and verdict.equivalence:
            facts.append(_inside(verdict))
        facts += _failures(verdict, ahead)
    if verdict.p_adjusted is not None:
        p = f"p = {verdict.p_adjusted:.2g}"
        # A gate, or a contrast alone, needs no correction.
        if not brief and verdict.p_adjusted != verdict.p:
            p += " after Holm's correction"
        facts.append(p)
    if verdict.decision is not None:
        facts.append(SCOPES.get(verdict.scope, verdict.scope))
    return "; ".join(facts)


def _interval(verdict: Verdict, names: ShownNames, *, neutral: bool) -> str:
    """Return a phrase with the interval of the lead.

    Args:
        verdict: the verdict.
        names: the names of arms in sentences.
        neutral: whether it is the lead of the arm, as in tables, whichever side is ahead.
    """
    amount = verdict.shown
    if amount.low is None:
        return f"no interval: it takes {fewest_runs(ALPHA)} runs of each arm"
    side = names[verdict.arm if neutral else verdict.sides[0]]
    ends = amount.ends(ahead=not neutral)
    # Elsewhere, the amount before it has the unit.
    if neutral or (verdict.equivalence is not None and amount.unit == SPREADS):
        ends += f" {amount.unit}"
    return f"95 % interval of {side}'s lead: {ends}"


def _failures(verdict: Verdict, ahead: str) -> list[str]:
    """Return a phrase with the failures of the leading arm of a primary verdict, as a list."""
    break_even = verdict.break_even
    if not verdict.primary or not verdict.mean or break_even is None:
        return []
    # One run says nothing, and the untrained model cannot fail.
    if verdict.n < 2 or verdict.sides[0] == verdict.untrained:
        return []
    # This flag says the same.
    if verdict.raises("may-fail"):
        return []
    failures = verdict.failures["arm" if verdict.ahead else "baseline"]
    seen = f"{failures['failed']} of {failures['runs']} runs of {ahead} failed"
    allowed = f"so at most {rate(failures['high'])} do (95 % confidence)"
    return [f"{seen}, {allowed}; failures in {rate(break_even)} would cancel the lead"]


def _inside(verdict: Verdict) -> str:
    """Return a phrase that says the interval of the lead is within the margin; "" if it is not."""
    inside = verdict.equivalence
    if inside is None:
        return ""
    bounds: Estimate = {"mean": None, "low": inside["low"], "high": inside["high"]}
    amount = _in_margin_units(verdict, bounds)
    # As in the other interval, the lead is that of the side that is ahead in the verdict.
    ends = replace(amount, mean=verdict.shown.mean).ends(ahead=True)
    interval = f"the {100 * inside['confidence']:.3g} % interval, {ends} {amount.unit}"
    return f"{interval}, lies within ±{amount.scale * inside['margin']:g}"


def _in_margin_units(verdict: Verdict, bounds: Estimate) -> Shown:
    """Return bounds in plain scores or nats, also where the estimate is shown in SDs."""
    scale = verdict.scale
    unit = "score" if scale.unit == "SDs" else scale.unit
    return shown_in(unit, scale.metric, bounds, None, higher=scale.higher_is_better)


def outlook_of(verdict: Verdict, names: ShownNames, *, brief: bool = False) -> str:
    """Return a sentence about what keeps an open verdict open, or what would decide it.

    Args:
        verdict: the verdict; the result is "" if it is not open.
        names: the names of arms in sentences.
        brief: whether it follows a brief sentence, which says what keeps it open.
    """
    if verdict.decision != "open" or (brief and _why_open(verdict) == "capped"):
        return ""
    caps = _reasons(verdict, "caps", names)
    if caps:
        return _capital("; ".join(caps), verdict) + "."
    if verdict.n == 1:
        return "One run says nothing about run-to-run variance."
    if verdict.runs_to_decide is not None:
        runs = f"{verdict.runs_to_decide} runs of each arm would decide a difference"
        return f"{runs} as large as the margin with probability {POWER:g}."
    seen = verdict.detectable
    if seen is None:
        return ""
    amount = verdict.shown
    runs = f"{seen['runs']} runs of each arm"
    # Tasks with different units have no common unit for the detectable difference.
    difference = seen["difference"]
    if amount.unit == SPREADS or difference is None:
        return ""
    size = amount.scale * difference
    # Two digits, as "1.0 points": .2g writes 1, and 1.2e+02.
    form = ".2g" if size < 0.95 else ".1f" if size < 9.95 else ".0f"
    return f"{runs} reliably detect only differences of at least {size:{form}} {amount.unit}."


# A study


def headline_verdict(verdicts: Sequence[Verdict], baseline: str) -> Verdict | None:
    """Return the primary verdict that the headline is about; None without verdicts.

    With one baseline, it is the largest gain that is decided in favour of an arm. With several
    baselines, it is the largest decided difference. Verdicts whose winner is behind no other arm
    are preferred, and then those whose loser is the study's baseline. If nothing is decided, it is
    the one with the highest gain.
    """
    judged = [each for each in verdicts if each.decision != "not comparable"]
    if not judged:
        return verdicts[0] if verdicts else None
    sides = ["arm"]
    if len({each.baseline for each in judged}) > 1:
        sides.append("baseline")
    worse = {each.sides[1] for each in judged if each.mean}

    def preference(verdict: Verdict) -> tuple[bool, bool, float]:
        winner, loser = verdict.pair
        if verdict.better == "baseline":
            winner, loser = loser, winner
        return winner not in worse, loser == baseline, abs(verdict.mean or 0)

    won = [each for each in judged if each.better in sides]
    if won:
        return max(won, key=preference)

    def gain(verdict: Verdict) -> float:
        return verdict.scale.sign * (verdict.mean or 0)

    return max(judged, key=gain)


def headline_sentence(
    verdict: Verdict | None,
    verdicts: Sequence[Verdict],
    names: ShownNames,
    study: Study,
    *,
    failed: int = 0,
) -> str:
    """Return a sentence that summarises the study.

    Args:
        verdict: the one that ``headline_verdict`` chose.
        verdicts: the primary verdicts.
        names: the names of arms in sentences.
        study: the content of study.json.
        failed: the number of failed runs.
    """
    if verdict is None:
        if len(study["arms"]) == 1:
            return f"There is only one arm ({study['baseline']}), so there is nothing to compare."
        if not study["contrasts"]:
            return "No arms are compared, because study.contrasts is empty."
        why = "The arms cannot be compared: no outcome was measured in both arms of a contrast"
        if failed:
            again = "Fix the errors and run it again: finished stages are not repeated."
            return f"{why}, and {plural(failed, 'run')} failed. {again}"
        return f"{why}. Add tasks or held-out masks."
    base = verdict.baseline
    worse = set()
    for other in verdicts:
        too_small = other.equivalence is not None
        if other.baseline == base and other.better == "baseline" and not too_small:
            worse.add(other.arm)
    reach = _reach(verdict, names)
    if verdict.decision == "open":
        interval = _interval(verdict, names, neutral=True)
        return f"Open: {_fill(OPEN[_why_open(verdict)], verdict, names, interval)}{reach}"
    template = HEADLINES[str(verdict.decision)]
    if verdict.decision == "decided" and reach:
        template = LEARNED_MORE
    elif verdict.decision == "decided" and base != verdict.untrained:
        # The advice to keep an arm needs a baseline that is a trained arm.
        template = KEEP if worse == study["arms"].keys() - {base} else template
    return _capital(_fill(template, verdict, names, ""), verdict) + reach


def _why_open(verdict: Verdict) -> str:
    """Return the key of what is said first of an open contrast."""
    if not finite_pairs(verdict.differences).any():
        return "equal"
    return "capped" if verdict.has("caps") else "undecided"


def behind_reference(
    verdict: Verdict, worse: Sequence[str], names: ShownNames, study: Study
) -> str:
    """Return a sentence that names arms with a worse mean than the reference model.

    The result is "" unless the leading arm or all arms are worse.

    Args:
        verdict: the headline's.
        worse: the arms, from ``judge.worse_than_reference``.
        names: the names of arms in sentences.
        study: the content of study.json.
    """
    # The open verdict on the reference model says more.
    if verdict.untrained and verdict.decision == "open":
        return ""
    who = " and ".join(worse)
    if len(worse) == len(study["arms"]) > 1:
        who = "All arms"
    elif verdict.sides[0] not in worse:
        return ""
    verb = "have"
    if len(worse) == 1:
        verb = "has"
    where = outcome_words(verdict.outcome)
    return f" {who} {verb} a worse mean than {_start(names, study)} {where}."


def no_gain(names: ShownNames, study: Study) -> str:
    """Return a sentence that says no arm has gained on the tasks (``judge.gained_nothing``)."""
    arms = list(study["arms"])
    who = "No arm has" if len(arms) > 1 else f"{arms[0]} has not"
    return f" {who} gained on the tasks over {_start(names, study)}."


def guessed_sentence(tasks: Sequence[str]) -> str:
    """Return a sentence that says which tasks show nothing (``flags.guessed_tasks``); "" if none.

    >>> guessed_sentence(["ner"])
    ' No arm is shown to score better than guessing on ner, which therefore shows nothing.'
    """
    if not tasks:
        return ""
    verb = "shows" if len(tasks) == 1 else "show"
    on = " and ".join(filter(None, (", ".join(tasks[:-1]), tasks[-1])))
    said = f"No arm is shown to score better than guessing on {on}"
    return f" {said}, which therefore {verb} nothing."


def _start(names: ShownNames, study: Study) -> str:
    """Return how sentences call the model before training."""
    return next(names[arm] for arm in study["untrained"])


def _reach(verdict: Verdict, names: ShownNames) -> str:
    """Return the sentence of the flag "near-floor"; "" if the flag is not raised."""
    for flag in verdict.flags:
        if flag.code == "near-floor":
            return f" {_capital(flag_sentence(flag, names), verdict)}."
    return ""


def advice_of(
    verdicts: Sequence[Verdict],
    names: ShownNames,
    study: Study,
    steps: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Return advice on the next step as sentences keyed by code, the most useful first.

    Args:
        verdicts: the primary verdicts.
        names: the names of arms in sentences.
        study: the content of study.json.
        steps: the mean number of training steps of each arm, as far as known.
    """
    advice = _choices(verdicts, names, steps or {})
    looks = [look for look in study.get("looks") or () if look > len(study["seeds"])]
    if looks and any(each.decision == "open" or each.closed_by for each in verdicts):
        # What this look did not decide, a later one may: nothing else is to be done before it.
        at = f"{looks[0]} runs of each arm (study.seeds)"
        return advice | {"next-look": f"Continue to the next planned look: {at}."}
    adding = _more_runs(verdicts, names, study)
    advice |= adding
    codes = set()
    for each in verdicts:
        codes |= _advisable(each)
    matched = {each.arm for each in verdicts if not each.gate and "compute" not in _advisable(each)}
    if all(each.arm in matched for each in verdicts if "compute" in _advisable(each)):
        # The arm was also compared at equal compute, with another baseline.
        codes.discard("compute")
    for flag in FLAGS:
        if flag.code in codes and flag.advice:
            advice[flag.code] = flag.advice
    if "items" in codes and adding.keys() & {"add-seeds", "new-study"}:
        # The usual sentence says that more runs do not help, which would contradict the advice to
        # add runs.
        advice["items"] = (
            "More runs decide only for these test items. For a result that holds for other items, "
            "also use a larger test set or more tasks."
        )
    return advice


def _choices(
    verdicts: Sequence[Verdict], names: ShownNames, steps: Mapping[str, float]
) -> dict[str, str]:
    """Return advice on which arm to use, for every baseline with a decided contrast."""
    advice = {}
    decided = defaultdict[str, list[Verdict]](list)
    for each in verdicts:
        found = decided[each.baseline]
        # A difference within the margin is no reason to use either arm.
        if each.better and not each.equivalence:
            found.append(each)
    # Without this remark, the reader may think that the arm beat all other arms.
    apart = ""
    if all(each.baseline == each.untrained for each in verdicts) and len(verdicts) > 1:
        apart = "; the arms were not compared with each other"
    for baseline, found in decided.items():
        base = names[baseline]
        winners = [each for each in found if each.better == "arm"]
        if winners:
            # A lead that is large enough is a better reason than a larger one that may not be.
            best = max(winners, key=lambda each: (is_reason(each.worth), abs(each.mean or 0)))
            arm = names[best.arm]
            code, advised = "weigh", f"Weigh {arm} against {base}"
            if is_reason(best.worth):
                code, advised = "use", f"Use {arm} rather than {base}"
            end = f"{worth_words(best)}.{_more_used(best, names)}{_reach(best, names)}"
            advice[f"{code} {arm} {base}"] = f"{advised}{apart}{_length(best, steps)}: {end}"
        elif found:
            worse = f"{len(found)} arms are"
            if len(found) == 1:
                worse = f"{names[found[0].arm]} is"
            advice[f"keep {base}"] = (
                f"Keep {base}: {worse} worse than {base} (decided), and none is decided to be "
                "better."
            )
    return advice


def _advisable(verdict: Verdict) -> set[str]:
    """Return the codes of the flags on a verdict that call for advice."""
    return {flag.code for flag in verdict.flags if flag.advisable}


def is_reason(worth: Worth | None) -> bool:
    """Return whether a lead is a reason to use the better side, without weighing it."""
    return worth is not None and worth["above"] and not worth["against"]


def worth_words(verdict: Verdict) -> str:
    """Return why a decided lead is a reason to use the better side, or may be none."""
    worth = verdict.worth
    assert worth is not None
    against = ""
    if worth["against"]:
        tasks = " and ".join(worth["against"])
        against = f", but on {tasks} its mean is worse, by more than does not matter"
    if worth["margin"] is None:
        return f"its lead is in {verdict.shown.unit}, so no margin says whether it matters{against}"
    amount = _in_margin_units(verdict, {"mean": None, "low": None, "high": None})
    margin = f"{amount.scale * worth['margin']:g} {amount.unit}"
    if worth["assumed"]:
        margin += " (more is assumed to matter: no margin is set)"
    lead = "the whole 95 % interval of its lead is above"
    if not worth["above"]:
        lead = "its lead may be below"
    return f"{lead} {margin}{against}"


def _length(verdict: Verdict, steps: Mapping[str, float]) -> str:
    """Return a phrase with the length of the arm's training; "" if it is unknown."""
    count = steps.get(verdict.arm)
    return f" for training of {count:,.0f} steps" if count else ""


def _more_used(verdict: Verdict, names: ShownNames) -> str:
    """Return a sentence about what the arm used more of; "" if nothing."""
    for flag in verdict.flags:
        if flag.code == "compute" and flag.advisable:
            return f" {_capital(flag_sentence(flag, names), verdict)}."
    return ""


def _more_runs(verdicts: Sequence[Verdict], names: ShownNames, study: Study) -> dict[str, str]:
    """Return advice on how to add runs for open contrasts without inflating the error rate.

    A number of runs is said only for a difference that the user named, the margin: the measured
    difference is a poor guess of the true one.
    """
    # Equal results in all runs are no question of their number.
    undecided = [
        each
        for each in verdicts
        if each.decision == "open" and not each.has("caps") and (each.detectable or each.mean)
    ]
    hopeless = []
    if study.get("margin") is not None:
        hopeless = [each for each in undecided if each.detectable and each.in_margin_units]
        hopeless = [each for each in hopeless if each.runs_to_decide is None]
    advice = {}
    if hopeless:
        arms = ", ".join(dict.fromkeys(names[each.arm] for each in hopeless))
        why = f"a difference as large as the margin takes more than {MOST_RUNS} runs of each arm"
        advice["no-more-seeds"] = f"Do not add runs for {arms}: {why}."
    if len(hopeless) == len(undecided):
        return advice
    adding = TO_TABLE if "compared" in study else TO_STUDY
    # A gate is tested at the full level, and does not lower that of the contrasts behind it.
    fewest = fewest_runs(ALPHA / max(sum(not each.gate for each in verdicts), 1))
    wanted = [each.runs_to_decide for each in undecided if each.runs_to_decide is not None]
    needed = ""
    if wanted:
        low, high = max(min(wanted), fewest), max(*wanted, fewest)
        needed = f"{low} runs" if low == high else f"{low} to {high} runs"
        needed += f" of each arm find a difference as large as the margin with probability {POWER}"
    runs = max(each.n for each in verdicts)
    # Too few runs for a decision spend no error rate, so runs may be added.
    if runs < fewest:
        # A gate needs fewer runs, and may be decided already.
        gated = any(each.gate for each in verdicts)
        what = "a contrast behind the gate" if gated else "anything here"
        few = f"{plural(runs, 'run')} of each arm cannot decide {what}: it takes at least {fewest}"
        needed = needed and f"; {needed}"
        return advice | {"add-seeds": f"{adding.few}: {few}{needed}."}
    return advice | {"new-study": f"{adding.decided}; {needed or adding.number}."}


def _capital(text: str, verdict: Verdict) -> str:
    """Capitalise a sentence, unless it starts with the name of an arm."""
    named = text.startswith((f"{verdict.arm} ", f"{verdict.baseline} "))
    return text if named else text[0].upper() + text[1:]
