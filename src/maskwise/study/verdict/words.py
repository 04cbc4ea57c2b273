"""Sentences for people: rows, headline and advice.

Differences are given in score points first and in spreads between seeds second, because people
think in points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from maskwise.constants import DIFFUSION, REFERENCE
from maskwise.errors import plural
from maskwise.estimates import SPREADS, outcome_label, shown, with_minus
from maskwise.files import Contrast, Effect, RaisedFlag, Study
from maskwise.study.outcomes import ALL_TASKS, Outcomes, finite_runs
from maskwise.study.statistics import P_FROM_RUNS, can_decide
from maskwise.study.verdict.flags import FLAGS

Names: TypeAlias = Mapping[str, str]
"""What sentences call each arm (``Outcomes.names``)."""

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
LEARNED_MORE = "{first} learned more than {second}: {amount} of held-out loss (decided, p = {p})."
"""The headline of a contrast that is decided by loss, if one side learned little more than word
frequencies."""


def outcome_words(outcome: str) -> str:
    """Return the phrase that names an outcome in a sentence: "on the tasks"."""
    label = outcome_label(outcome)
    if outcome == "tasks":
        return "on the tasks"
    if outcome == f"heldout:{DIFFUSION}":
        return f"in the {label}"
    if outcome.startswith("heldout:"):
        return f"in held-out loss ({label})"
    return f"on {label}"


# A row


def row_sentence(row: Contrast, names: Names, *, brief: bool = False) -> str:
    """Say who is ahead, by how much and how sure that is; ``brief`` leaves out the details."""
    sentence = _fill(SENTENCES, row, names, brief=brief)
    if row["verdict"] == "open":
        # A brief sentence is printed next to its verdict.
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
        facts=_facts(row, brief=brief),
        inside=_inside(row),
        p="" if p is None else f"{p:.2g}",
    )


def _facts(row: Contrast, *, brief: bool) -> str:
    """Return a row's number of runs, interval and p, and the scope of its verdict."""
    amount = shown(row)
    runs = f"{plural(row['n'], 'run')} each"
    if row["compute"]["matched"]:
        runs += f", equal {row['compute']['by']}"
    facts = [runs]
    if not brief:
        if amount.low is not None:
            facts.append(f"95 % interval {amount.ends(ahead=True)}")
        if row["unit"] == "SDs" and amount.unit != SPREADS and row["mean"]:
            facts.append(f"{abs(row['mean']):.1f} times the spread between seeds")
    if row["p_adjusted"] is not None:
        p = f"p = {row['p_adjusted']:.2g}"
        # A gate is tested first and alone.
        if not brief and not row.get("gate"):
            p += " after Holm's correction"
        facts.append(p)
    if row["verdict"] is not None:
        facts.append(row["scope"])
    return "; ".join(facts)


def _inside(row: Contrast) -> str:
    """Say that the interval lies within the margin; "" if it does not."""
    inside = row.get("equivalence")
    if inside is None:
        return ""
    amount = shown(row)
    low = f"{amount.scale * inside['low']:.{amount.digits}f}"
    high = f"{amount.scale * inside['high']:.{amount.digits}f}"
    ends = with_minus(f"{low} to {high} {amount.unit}")
    interval = f"the {100 * inside['confidence']:.3g} % interval, {ends}"
    return f"{interval}, lies within ±{amount.scale * inside['margin']:g}"


def _outlook(row: Contrast) -> str:
    """Say what would decide an open row, or what keeps it open."""
    caps = sentences_of(row, "caps")
    if caps:
        return _capital("; ".join(caps), row) + "."
    if row["n"] == 1:
        return "One run says nothing about run-to-run variance."
    if row["runs_to_decide"] is not None:
        runs = f"About {row['runs_to_decide']} runs of each arm would decide"
        return f"{runs}, if the difference is as large as it looks."
    seen = row["detectable"]
    # Runs without any spread would detect everything, which is not credible.
    if seen is None or not seen["difference"]:
        return ""
    amount = shown(row)
    size = f"{amount.scale * seen['difference']:.2g} {amount.unit}"
    # The detectable difference is in plain scores, which have no common unit here.
    if amount.unit == SPREADS:
        size = "not known in points"
    return f"{seen['runs']} runs of each arm detect only larger differences (minimum: {size})."


def sentences_of(row: Contrast, effect: Effect) -> list[str]:
    """Return the sentences of the flags on a row that have this effect."""
    return [flag["sentence"] for flag in row["flags"] if flag["effect"] == effect]


def is_ahead(row: Contrast) -> bool:
    """Return whether the arm of a row is better so far, decided or not."""
    return ((row["mean"] or 0) > 0) == row["higher_is_better"]


# A study


def headline_row(rows: Sequence[Contrast], baseline: str) -> Contrast | None:
    """Return the primary row that the headline is about; None without rows.

    With one baseline, it is the largest gain that is decided in favour of an arm. With several
    baselines, it is the largest decided difference, preferably with a winner that is not behind any
    other arm, and then with the study's ``baseline`` as the loser. Without such a row, it is the
    row whose arm gains most or loses least.
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
    """Sum up the study in one short sentence.

    Args:
        row: the ``headline_row``.
        rows: the primary rows.
    """
    if row is None and len(study["arms"]) > 1:
        missing = "no measured outcome suits both sides; add tasks or held-out masks"
        return f"The arms cannot be compared: {missing}."
    if row is None:
        return f"There is only one arm ({study['baseline']}), so there is nothing to compare."
    templates = HEADLINES
    better = set()
    baselines = set()
    for other in rows:
        if other["verdict"] != "not comparable":
            better.add(other["better"])
            baselines.add(other["baseline"])
    # With several baselines, or with the unchanged model as the baseline, there is no arm to keep.
    if better == {"baseline"} and baselines == {row["baseline"]} - {REFERENCE}:
        templates = {**HEADLINES, "decided": "keep {baseline}: every other arm is worse (decided)."}
    reach = _reach(row)
    if reach:
        templates = {**templates, "decided": LEARNED_MORE}
    return _capital(_fill(templates, row, names, brief=True), row) + reach


def behind_reference(row: Contrast | None, table: Outcomes) -> str:
    """Name the arms whose mean is worse than the start's, if they include the leading arm or all.

    A contrast between two trained arms does not show this. "" if there is nothing to report.

    Args:
        row: the headline row.
    """
    if row is None or row["verdict"] == "not comparable":
        return ""
    outcome = row["outcome"]
    measured = outcome
    # Tasks that pre-training did not help count here, too.
    if outcome == "tasks":
        measured = ALL_TASKS
    # If every compared run failed, only the gate's own runs have this outcome.
    if measured not in table.measures:
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


def _reach(row: Contrast) -> str:
    """Return what remains open if a side hardly improved on word frequencies; "" otherwise."""
    for flag in row["flags"]:
        if flag["code"] == "near-floor":
            return f" {_capital(flag['sentence'], row)}."
    return ""


def advice_of(rows: Sequence[Contrast], names: Names, looks: Sequence[int] = ()) -> dict[str, str]:
    """Return sentences that say what to do next, keyed by code; the most useful comes first.

    Args:
        rows: the primary rows.
        names: what sentences call each arm.
        looks: the number of runs at each planned interim analysis.
    """
    advice = _choices(rows, names)
    wanted = [row["runs_to_decide"] for row in rows if row["runs_to_decide"] is not None]
    if wanted:
        advice |= _more_runs(wanted, rows, looks)
    elif any(row["n"] == 1 for row in rows):
        runs = f"a verdict needs {P_FROM_RUNS} runs of each arm (study.seeds)"
        advice["add-seeds"] = f"Add seeds: {runs}."
    # A dictionary, because two arms may have the same name.
    hopeless: dict[str, None] = {}
    raised = set()
    for row in rows:
        # Fewer runs than a test needs cannot show how small a difference is.
        planned = row["detectable"] and row["n"] >= P_FROM_RUNS
        if planned and row["runs_to_decide"] is None:
            hopeless[names[row["arm"]]] = None
        raised |= {flag["code"] for flag in row["flags"] if not flag["facts"].get("minor")}
    if hopeless:
        why = "the difference is too small to detect with this much noise"
        advice["no-more-seeds"] = f"Do not add runs for {', '.join(hopeless)}: {why}."
    for flag in FLAGS:
        if flag.code in raised and flag.advice:
            advice[flag.code] = flag.advice
    return advice


def _choices(rows: Sequence[Contrast], names: Names) -> dict[str, str]:
    """Return which arm to use, for each baseline with a decided contrast."""
    advice = {}
    decided: dict[str, list[Contrast]] = defaultdict(list)
    for row in rows:
        found = decided[row["baseline"]]
        if row["better"]:
            found.append(row)
    # Without this, "use A rather than the untrained model" reads as if A beat the other arms.
    apart = "; the arms were not compared with each other" if set(decided) == {REFERENCE} else ""
    for baseline, found in decided.items():
        base = names[baseline]
        winners = [row for row in found if row["better"] == "arm"]
        if winners:
            best = max(winners, key=lambda row: abs(row["mean"] or 0))
            arm = names[best["arm"]]
            advice[f"use {arm} {base}"] = f"Use {arm} rather than {base}{apart}.{_reach(best)}"
        elif found:
            worse = "1 arm is" if len(found) == 1 else f"{len(found)} arms are"
            advice[f"keep {base}"] = (
                f"Keep {base}: {worse} decided to be worse, and none is decided to be better."
            )
    return advice


def _more_runs(
    wanted: Sequence[int], rows: Sequence[Contrast], looks: Sequence[int]
) -> dict[str, str]:
    """Return how to get more runs without inflating the error rate."""
    runs = max(row["n"] for row in rows)
    needed = f"{min(wanted)}"
    if max(wanted) > min(wanted):
        needed = f"{min(wanted)} to {max(wanted)}"
    for look in looks:
        if look > runs:
            at = f"{look} runs of each arm (study.seeds)"
            return {"next-look": f"Continue to the next planned look: {at}."}
    # Runs that could decide nothing have spent none of the error rate, so more may be added.
    if not looks and not can_decide(runs, len(rows)):
        few = f"{plural(runs, 'run')} of each arm cannot decide anything here"
        enough = f"{needed} would, if the difference is as large as it looks (study.seeds)"
        return {"add-seeds": f"Add seeds: {few}; {enough}."}
    again = (
        "Do not add seeds to this study: testing again inflates the error rate. Start a new study "
        f"with different seeds and {needed} runs of each arm, or plan interim analyses with "
        "study.looks."
    )
    return {"new-study": again}


def _capital(text: str, row: Contrast) -> str:
    """Capitalise a sentence, unless it begins with the name of an arm."""
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
