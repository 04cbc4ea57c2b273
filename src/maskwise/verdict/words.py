"""Sentences for rows, headlines and advice.

Differences are given in score points first and in SDs of runs within an arm second, because people
think in points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from maskwise.constants import FIXED, REFERENCE
from maskwise.errors import plural
from maskwise.estimates import SPREADS, outcome_words, shown
from maskwise.files import Contrast, Effect, RaisedFlag, Study
from maskwise.verdict.flags import FLAGS, is_ahead, rate
from maskwise.verdict.outcomes import ALL_TASKS, Outcomes, finite_runs
from maskwise.verdict.statistics import ALPHA, P_FROM_RUNS, fewest_runs

Names: TypeAlias = Mapping[str, str]
"""The names of arms in sentences, keyed by arm (``Outcomes.names``)."""

SENTENCES = {
    "decided": "{first} beats {second} {where} by {amount} ({facts}).",
    "no difference that matters": "no difference that matters between {arm} and {baseline} {where}:"
    " {inside} ({facts}).",
    "not comparable": "{arm} and {baseline} are not comparable {where}: {because}.",
    "ahead": "{first} is {amount} ahead of {second} {where} ({facts}).",
    "equal": "{arm} and {baseline} are equal {where} ({facts}).",
}
HEADLINES = {
    "decided": "{first} is {amount} better than {second} {where} (decided, p = {p}).",
    "no difference that matters": "no difference that matters between {arm} and {baseline} "
    "{where}.",
    "not comparable": "not comparable: {because}.",
    "ahead": "open: {first} is {amount} ahead of {second} {where}.",
    "equal": "open: {arm} and {baseline} are equal {where}.",
}
SCOPES = {FIXED: "valid only at these settings"}
"""Phrases for scopes; other scopes are phrases already."""
LEARNED_MORE = (
    "{first} learned more than {second}: its held-out loss is {amount} lower (decided, p = {p})."
)
"""Headline of a contrast that is decided by loss, if one of the two arms learned little more than
word frequencies."""


# A row


def row_sentence(row: Contrast, names: Names, *, brief: bool = False) -> str:
    """Return a sentence with the leading arm, the difference and its certainty.

    Args:
        row: a row of the summary.
        names: the names of arms in sentences.
        brief: whether to omit details.
    """
    sentence = _fill(SENTENCES, row, names, brief=brief)
    if row["verdict"] == "open":
        # A brief sentence is printed next to the verdict and does not repeat it.
        sentence = _capital(sentence, row) if brief else f"Open: {sentence}"
        return f"{sentence} {_outlook(row)}".rstrip()
    return _capital(sentence, row)


def _fill(templates: Mapping[str, str], row: Contrast, names: Names, *, brief: bool) -> str:
    kind: str = row["verdict"] or ""
    if kind not in templates:
        kind = "ahead" if row["mean"] else "equal"
    arm = names[row["arm"]]
    baseline = names[row["baseline"]]
    first, second = baseline, arm
    if is_ahead(row):
        first, second = arm, baseline
    reasons = sentences_of(row, "invalid")
    if brief:
        reasons = reasons[:1]
    p = row["p_adjusted"]
    return templates[kind].format(
        arm=arm,
        baseline=baseline,
        first=first,
        second=second,
        where=outcome_words(row["outcome"]),
        amount=shown(row).size(),
        because="; ".join(reasons),
        facts=_facts(row, first, brief=brief),
        inside=_inside(row),
        p="" if p is None else f"{p:.2g}",
    )


def _facts(row: Contrast, ahead: str, *, brief: bool) -> str:
    """Return the number of runs, interval, p value and scope of a row; ``ahead`` leads."""
    amount = shown(row)
    runs = f"{plural(row['n'], 'run')} each"
    if row["compute"]["matched"]:
        runs += f", equal {row['compute']['by']}"
    facts = [runs]
    if not brief:
        if amount.low is not None:
            facts.append(f"95 % interval of {ahead}'s lead: {amount.ends(ahead=True)}")
        if row["unit"] == "SDs" and amount.unit != SPREADS and row["mean"]:
            times = f"the lead is {abs(row['mean']):.1f} times the SD of runs within an arm"
            if row.get("least_sd"):
                times += " (or one test item, if that is more)"
            facts.append(times)
        facts += _failures(row, ahead)
    if row["p_adjusted"] is not None:
        p = f"p = {row['p_adjusted']:.2g}"
        # Gates are tested separately, without Holm's correction.
        if not brief and not row.get("gate"):
            p += " after Holm's correction"
        facts.append(p)
    if row["verdict"] is not None:
        facts.append(SCOPES.get(row["scope"], row["scope"]))
    return "; ".join(facts)


def _failures(row: Contrast, ahead: str) -> list[str]:
    """Return a phrase with the failures of the leading arm in a primary row, as a list."""
    break_even = row.get("break_even")
    side = "arm" if is_ahead(row) else "baseline"
    trained = row["arm"] if is_ahead(row) else row["baseline"]
    if not row["primary"] or not row["mean"] or break_even is None:
        return []
    # One run says nothing, and the untrained model cannot fail.
    if row["n"] < 2 or trained == REFERENCE:
        return []
    # This flag says the same.
    if any(flag["code"] == "may-fail" for flag in row["flags"]):
        return []
    failures = row["failures"][side]
    seen = f"{failures['failed']} of {failures['runs']} runs of {ahead} failed"
    allowed = f"so at most {rate(failures['high'])} do (95 % confidence)"
    return [f"{seen}, {allowed}; failures in {rate(break_even)} would cancel the lead"]


def _inside(row: Contrast) -> str:
    """Return a phrase that says the interval of the lead is within the margin; "" if it is not."""
    inside = row.get("equivalence")
    if inside is None:
        return ""
    amount = shown(row)
    factor = amount.scale if row["higher_is_better"] else -amount.scale
    low, high = sorted([factor * inside["low"], factor * inside["high"]])
    ends = replace(amount, low=low, high=high).ends(ahead=True)
    interval = f"the {100 * inside['confidence']:.3g} % interval, {ends} {amount.unit}"
    return f"{interval}, lies within ±{amount.scale * inside['margin']:g}"


def _outlook(row: Contrast) -> str:
    """Return a sentence about what keeps an open row open, or what would decide it."""
    caps = sentences_of(row, "caps")
    if caps:
        return _capital("; ".join(caps), row) + "."
    if row["n"] == 1:
        return "One run says nothing about run-to-run variance."
    if row["runs_to_decide"] is not None:
        runs = f"About {row['runs_to_decide']} runs of each arm would decide"
        return f"{runs}, if the true difference is as large as the measured one."
    seen = row["detectable"]
    if seen is None:
        return ""
    amount = shown(row)
    runs = f"{seen['runs']} runs of each arm"
    # Tasks with different units have no common unit for the detectable difference.
    if amount.unit == SPREADS:
        return f"{runs} are too few to detect a difference of this size."
    size = f"{amount.scale * seen['difference']:.2g} {amount.unit}"
    return f"{runs} reliably detect only differences of at least {size}."


def sentences_of(row: Contrast, effect: Effect) -> list[str]:
    """Return the sentences of the flags on a row that have this effect."""
    return [flag["sentence"] for flag in row["flags"] if flag["effect"] == effect]


# A study


def headline_row(rows: Sequence[Contrast], baseline: str) -> Contrast | None:
    """Return the primary row that the headline is about; None without rows.

    With one baseline, the row is the largest gain that is decided in favour of an arm. With several
    baselines, it is the largest decided difference. Rows whose winner is behind no other arm are
    preferred, and then rows whose loser is the study's baseline. If no row is decided, it is the
    row with the highest gain.
    """
    judged = [row for row in rows if row["verdict"] != "not comparable"]
    if not judged:
        return rows[0] if rows else None
    sides = ["arm"]
    if len({row["baseline"] for row in judged}) > 1:
        sides.append("baseline")
    worse = {row["baseline" if is_ahead(row) else "arm"] for row in judged if row["mean"]}

    def preference(row: Contrast) -> tuple[bool, bool, float]:
        winner = row["arm"]
        loser = row["baseline"]
        if row["better"] == "baseline":
            winner, loser = loser, winner
        return winner not in worse, loser == baseline, abs(row["mean"] or 0)

    won = [row for row in judged if row["better"] in sides]
    if won:
        return max(won, key=preference)

    def gain(row: Contrast) -> float:
        mean = row["mean"] or 0
        return mean if row["higher_is_better"] else -mean

    return max(judged, key=gain)


def headline_sentence(
    row: Contrast | None, rows: Sequence[Contrast], names: Names, study: Study
) -> str:
    """Return a sentence that summarises the study.

    Args:
        row: the row that ``headline_row`` chose.
        rows: the primary rows.
        names: the names of arms in sentences.
        study: the content of study.json.
    """
    if row is None:
        if len(study["arms"]) == 1:
            return f"There is only one arm ({study['baseline']}), so there is nothing to compare."
        if not study["contrasts"]:
            return "No arms are compared, because study.contrasts is empty."
        return (
            "The arms cannot be compared: no outcome was measured in both arms of a contrast. Add "
            "tasks or held-out masks, unless runs failed."
        )
    templates = HEADLINES
    base = row["baseline"]
    worse = set()
    for other in rows:
        if other["baseline"] == base and other["better"] == "baseline":
            worse.add(other["arm"])
    # The advice to keep an arm needs a baseline that is a trained arm.
    if base != REFERENCE and worse == study["arms"].keys() - {base}:
        templates = {**HEADLINES, "decided": "keep {baseline}: every other arm is worse (decided)."}
    reach = _reach(row)
    if reach:
        templates = {**templates, "decided": LEARNED_MORE}
    return _capital(_fill(templates, row, names, brief=True), row) + reach


def behind_reference(row: Contrast | None, table: Outcomes) -> str:
    """Return a sentence that names arms with a worse mean than the reference model.

    A contrast between two trained arms does not show whether training helped at all. The result is
    "" unless the leading arm or all arms are worse.

    Args:
        row: the headline row.
        table: the outcomes of the compared runs.
    """
    if row is None or row["verdict"] == "not comparable":
        return ""
    outcome = row["outcome"]
    measured = outcome
    # A comparison with the reference uses all tasks.
    if outcome == "tasks":
        measured = ALL_TASKS
    # If all compared runs failed, the gate's runs may have an outcome that the table lacks.
    if measured not in table.scales:
        return ""
    arms = list(table.study["arms"])
    worse = []
    for arm in arms:
        gains = finite_runs(table.gains(measured, arm, REFERENCE))
        if gains.sum() < 0 and not table.incomparable(arm, REFERENCE, outcome):
            worse.append(arm)
    leading = row["baseline"]
    if is_ahead(row):
        leading = row["arm"]
    who = " and ".join(worse)
    if len(worse) == len(arms) > 1:
        who = "All arms"
    elif leading not in worse:
        return ""
    verb = "have"
    if len(worse) == 1:
        verb = "has"
    return f" {who} {verb} a worse mean than {table.names[REFERENCE]} {outcome_words(outcome)}."


def no_gain(row: Contrast | None, table: Outcomes) -> str:
    """Return a sentence if no arm has gained over the reference model on the tasks.

    It is about studies that are decided by something else than tasks, such as a held-out loss, or
    in which nothing can be compared. In other studies, ``behind_reference`` says it; the result is
    then "".
    """
    if row is None or ALL_TASKS not in table.scales:
        return ""
    if row["verdict"] != "not comparable" and row["outcome"] in ("tasks", *table.tasks):
        return ""
    arms = list(table.study["arms"])
    gains = []
    for arm in arms:
        gains.append(finite_runs(table.gains(ALL_TASKS, arm, REFERENCE)))
    # Without runs of the reference model or of an arm, nothing is known.
    if any(not len(runs) or runs.mean() > 0 for runs in gains):
        return ""
    who = "No arm has" if len(arms) > 1 else f"{arms[0]} has not"
    return f" {who} gained on the tasks over {table.names[REFERENCE]}."


def _reach(row: Contrast) -> str:
    """Return the sentence of the flag "near-floor"; "" if the flag is not raised."""
    for flag in row["flags"]:
        if flag["code"] == "near-floor":
            return f" {_capital(flag['sentence'], row)}."
    return ""


def advice_of(
    rows: Sequence[Contrast],
    names: Names,
    looks: Sequence[int] = (),
    steps: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Return advice on the next step as sentences keyed by code, the most useful first.

    Args:
        rows: the primary rows.
        names: the names of arms in sentences.
        looks: the numbers of runs at the planned interim analyses that are still to come.
        steps: the mean number of training steps of each arm, as far as known.
    """
    advice = _choices(rows, names, steps or {})
    # A gate is tested at the full level, and does not lower that of the contrasts behind it.
    tested = sum(not row.get("gate") for row in rows)
    fewest = fewest_runs(ALPHA / max(tested, 1))
    wanted = [row["runs_to_decide"] for row in rows if row["runs_to_decide"] is not None]
    if wanted:
        advice |= _more_runs(wanted, rows, looks, fewest)
    elif any(row["n"] == 1 for row in rows):
        runs = f"a verdict needs {fewest} runs of each arm (study.seeds)"
        advice["add-seeds"] = f"Add seeds: {runs}."
    # A dict preserves the order and removes repeated names.
    hopeless: dict[str, None] = {}
    raised = set()
    for row in rows:
        # With fewer runs than a test needs, the size of a difference is unknown.
        planned = row["detectable"] and row["n"] >= P_FROM_RUNS
        if planned and row["runs_to_decide"] is None:
            hopeless[names[row["arm"]]] = None
        raised |= _advisable(row)
    matched = {
        row["arm"] for row in rows if not row.get("gate") and "compute" not in _advisable(row)
    }
    if all(row["arm"] in matched for row in rows if "compute" in _advisable(row)):
        # The arm was also compared at equal compute, with another baseline.
        raised.discard("compute")
    if hopeless:
        why = "the difference is too small to detect with this much noise"
        advice["no-more-seeds"] = f"Do not add runs for {', '.join(hopeless)}: {why}."
    for flag in FLAGS:
        if flag.code in raised and flag.advice:
            advice[flag.code] = flag.advice
    if "items" in raised and wanted:
        # The usual sentence says that more runs do not help, which would contradict the advice to
        # add runs.
        advice["items"] = (
            "More runs decide only for these test items. For a result that holds for other items, "
            "also use a larger test set or more tasks."
        )
    return advice


def _choices(rows: Sequence[Contrast], names: Names, steps: Mapping[str, float]) -> dict[str, str]:
    """Return advice on which arm to use, for every baseline with a decided contrast."""
    advice = {}
    decided = defaultdict[str, list[Contrast]](list)
    for row in rows:
        found = decided[row["baseline"]]
        if row["better"]:
            found.append(row)
    # Without this remark, the reader may think that the arm beat all other arms.
    apart = ""
    if set(decided) == {REFERENCE} and len(rows) > 1:
        apart = "; the arms were not compared with each other"
    for baseline, found in decided.items():
        base = names[baseline]
        winners = [row for row in found if row["better"] == "arm"]
        if winners:
            best = max(winners, key=lambda row: abs(row["mean"] or 0))
            arm = names[best["arm"]]
            reach = _conditions(best, steps) + _reach(best)
            advice[f"use {arm} {base}"] = f"Use {arm} rather than {base}{apart}{reach or '.'}"
        elif found:
            worse = "1 arm is" if len(found) == 1 else f"{len(found)} arms are"
            advice[f"keep {base}"] = (
                f"Keep {base}: {worse} worse (decided), and no arm is decided to be better."
            )
    return advice


def _advisable(row: Contrast) -> set[str]:
    """Return the codes of the flags of a row that call for advice."""
    return {flag["code"] for flag in row["flags"] if not flag["facts"].get("minor")}


def _conditions(row: Contrast, steps: Mapping[str, float]) -> str:
    """Return the end of a sentence: the length of training, and what the arm used more of."""
    count = steps.get(row["arm"])
    end = "."
    if count:
        end = f" for training of {count:,.0f} steps."
    for flag in row["flags"]:
        if flag["code"] == "compute" and not flag["facts"].get("minor"):
            end += f" {_capital(flag['sentence'], row)}."
    return end


def _more_runs(
    wanted: Sequence[int], rows: Sequence[Contrast], looks: Sequence[int], fewest: int
) -> dict[str, str]:
    """Return advice on how to add runs without inflating the error rate.

    ``fewest`` is the number of runs without which no contrast behind the gate can be decided.
    """
    runs = max(row["n"] for row in rows)
    low, high = max(min(wanted), fewest), max(*wanted, fewest)
    needed = f"{low}"
    if high > low:
        needed = f"{low} to {high}"
    if looks:
        at = f"{looks[0]} runs of each arm (study.seeds)"
        return {"next-look": f"Continue to the next planned look: {at}."}
    # Too few runs for a decision spend no error rate, so runs may be added.
    if runs < fewest:
        # A gate needs fewer runs, and may be decided already.
        gated = any(row.get("gate") for row in rows)
        what = "a contrast behind the gate" if gated else "anything here"
        few = f"{plural(runs, 'run')} of each arm cannot decide {what}"
        enough = f"{needed} would, if the true difference is as large as the measured one"
        return {"add-seeds": f"Add seeds (study.seeds): {few}; {enough}."}
    again = (
        "Do not add seeds to this study: testing again inflates the error rate. Start a new study "
        f"with different seeds and {needed} runs of each arm, or plan interim analyses with "
        "study.looks."
    )
    return {"new-study": again}


def _capital(text: str, row: Contrast) -> str:
    """Capitalise a sentence, unless it starts with the name of an arm."""
    named = text.startswith((f"{row['arm']} ", f"{row['baseline']} "))
    return text if named else text[0].upper() + text[1:]


def raised(row: Contrast, table: Outcomes) -> list[RaisedFlag]:
    """Return the flags of a row, in the order of ``FLAGS``."""
    found = []
    for flag in FLAGS:
        facts = flag.test(row, table)
        if facts is None:
            continue
        arms = facts.get("arms", ())
        assert isinstance(arms, list | tuple)
        # The sentence names arms in words; the facts keep the names of study.json.
        words = " and ".join(table.names[arm] for arm in arms)
        sentence = flag.sentence.format(**{**facts, "arms": words})
        found.append(RaisedFlag(code=flag.code, effect=flag.effect, sentence=sentence, facts=facts))
    return found
