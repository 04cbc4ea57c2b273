"""Sentences for people: what a row says, the headline, and what to do next.

Points of a score stand before spreads between seeds, because people think in points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from maskwise.constants import DIFFUSION, REFERENCE
from maskwise.estimates import shown, with_minus
from maskwise.files import Contrast, Study
from maskwise.study.statistics import P_FROM_RUNS, can_decide
from maskwise.study.verdict.flags import FLAGS

Names: TypeAlias = Mapping[str, str]
"""What arms that the study did not train are called; the others go by their names."""

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


def outcome_words(outcome: str) -> str:
    """Where two arms were compared, as it stands in a sentence: "on the tasks"."""
    kind, _, rest = outcome.partition(":")
    if outcome == "tasks":
        return "on the tasks"
    if outcome == f"heldout:{DIFFUSION}":
        return "in the bound of masked diffusion"
    if kind == "heldout":
        masks, _, ratio = rest.partition("@")
        at = f", {100 * float(ratio):g} %" if ratio else ""
        return f"in held-out loss ({masks} masks{at})"
    if kind == "evaluation":
        name, _, metric = rest.rpartition(":")
        return f"on {name} ({metric})"
    return f"on {outcome}"


# A row


def row_sentence(row: Contrast, names: Names, *, brief: bool = False) -> str:
    """One row in plain English: who, by how much, how sure; ``brief`` without the details."""
    sentence = _fill(SENTENCES, row, names, brief=brief)
    if row["verdict"] != "open":
        return _capital(sentence, row)
    sentence = _capital(sentence, row) if brief else f"Open: {sentence}"
    return f"{sentence} {_outlook(row)}".rstrip()


def _fill(templates: Mapping[str, str], row: Contrast, names: Names, *, brief: bool) -> str:
    template = "ahead" if row["mean"] else "equal"
    if row["verdict"] in templates:
        template = str(row["verdict"])
    arm, baseline = (names.get(name, name) for name in (row["arm"], row["baseline"]))
    first, second = (arm, baseline) if is_ahead(row) else (baseline, arm)
    reasons = [flag["sentence"] for flag in row["flags"] if flag["effect"] == "invalid"]
    p = row["p_adjusted"]
    return templates[template].format(
        arm=arm,
        baseline=baseline,
        first=first,
        second=second,
        where=outcome_words(row["outcome"]),
        amount=shown(row).size(),
        because="; ".join(reasons[:1] if brief else reasons),
        facts=_facts(row, brief=brief),
        inside=_inside(row),
        p="" if p is None else f"{p:.2g}",
    )


def _facts(row: Contrast, *, brief: bool) -> str:
    """The numbers of a row: runs, intervals, p, and what the verdict holds for."""
    amount = shown(row)
    runs = f"{_count(row['n'], 'run')} each"
    facts = [f"{runs}, equal {row['compute']['by']}" if row["compute"]["matched"] else runs]
    if amount.low is not None and not brief:
        facts.append(f"95 % interval {amount.ends(ahead=True)}")
    plain = row["unit"] == "SDs" and amount.unit != "spreads between seeds"
    if plain and row["mean"] and not brief:
        facts.append(f"{abs(row['mean']):.1f} times the spread between seeds")
    if row["p_adjusted"] is not None:
        corrected = "" if brief or row.get("gate") else " after Holm's correction"
        facts.append(f"p = {row['p_adjusted']:.2g}{corrected}")
    if row["verdict"] is not None:
        facts.append(row["scope"])
    return "; ".join(facts)


def _inside(row: Contrast) -> str:
    """That an interval lies within the margin."""
    inside = row.get("equivalence")
    if inside is None:
        return ""
    amount = shown(row)
    low, high = (f"{amount.scale * inside[end]:.{amount.digits}f}" for end in ("low", "high"))
    ends = with_minus(f"{low} to {high} {amount.unit}")
    interval = f"the {100 * inside['confidence']:.3g} % interval, {ends}"
    return f"{interval}, lies within ±{amount.scale * inside['margin']:g}"


def _outlook(row: Contrast) -> str:
    """What would decide an open row, or what keeps it open."""
    caps = [flag["sentence"] for flag in row["flags"] if flag["effect"] == "caps"]
    seen = row["detectable"]
    if caps:
        return _capital("; ".join(caps), row) + "."
    if row["n"] == 1:
        return "One run says nothing about run-to-run variance."
    if row["runs_to_decide"] is not None:
        runs = f"About {row['runs_to_decide']} runs of each arm would decide"
        return f"{runs}, if the difference is as large as it looks."
    if seen is None or not seen["difference"]:
        return ""
    amount = shown(row)
    size = f"{amount.scale * seen['difference']:.2g} {amount.unit}"
    if amount.unit == "spreads between seeds":  # the difference is one of plain scores
        size = "larger differences"
    return f"{seen['runs']} runs of each arm detect {size} or more."


def is_ahead(row: Contrast) -> bool:
    """Whether the arm of a row is the better one so far, decided or not."""
    return ((row["mean"] or 0) > 0) == row["higher_is_better"]


# The page


def headline_row(rows: Sequence[Contrast], baseline: str) -> Contrast | None:
    """The primary row that a page is headed by.

    The surest gain; with several baselines, the surest difference, and of equally sure ones that of
    an arm which is behind no other, and the one from the study's ``baseline``. If nothing is
    decided: the arm nearest to its baseline.
    """
    judged = [row for row in rows if row["verdict"] != "not comparable"]
    if not judged:
        return rows[0] if rows else None
    sides = ("arm", "baseline") if len({row["baseline"] for row in judged}) > 1 else ("arm",)
    behind = {row["baseline" if is_ahead(row) else "arm"] for row in judged if row["mean"]}

    def sureness(row: Contrast) -> tuple[bool, bool, float]:
        winner = row["arm"]
        loser = row["baseline"]
        if row["better"] == "baseline":
            winner, loser = loser, winner
        return winner not in behind, loser == baseline, abs(row["mean"] or 0)

    won = [row for row in judged if row["better"] in sides]
    if won:
        return max(won, key=sureness)
    return max(judged, key=lambda row: (row["mean"] or 0) * (1 if row["higher_is_better"] else -1))


def headline_sentence(rows: Sequence[Contrast], names: Names, study: Study) -> str:
    """The page in one short sentence, from the primary rows."""
    row = headline_row(rows, study["baseline"])
    if row is None and len(study["arms"]) > 1:
        missing = "no outcome was measured that suits both; add tasks, or held-out masks"
        return f"The arms cannot be compared: {missing}."
    if row is None:
        return f"There is only one arm ({study['baseline']}), and nothing to compare it with."
    judged = [other for other in rows if other["verdict"] != "not comparable"]
    kept = [other for other in judged if other["better"] == "baseline"]
    templates = dict(HEADLINES)
    if judged == kept and {other["baseline"] for other in kept} == {row["baseline"]} - {REFERENCE}:
        templates["decided"] = "keep {baseline}: every other arm is worse (decided)."
    return _capital(_fill(templates, row, names, brief=True), row)


def advice_of(
    rows: Sequence[Contrast], names: Names, looks: Sequence[int] = ()
) -> list[tuple[str, str]]:
    """What to do next, from the primary rows, as (code, sentence); the most useful first.

    Args:
        looks: the numbers of runs at which the study may be looked at, if that was planned.
    """
    advice = _choices(rows, names)
    wanted = [row["runs_to_decide"] for row in rows if row["runs_to_decide"] is not None]
    if wanted:
        advice.append(_more_runs(wanted, rows, looks))
    elif any(row["n"] == 1 for row in rows):
        runs = f"a verdict needs {P_FROM_RUNS} runs of each arm (study.seeds)"
        advice.append(("add-seeds", f"Add seeds: {runs}."))
    # Fewer runs than a test needs cannot tell how small a difference is.
    small = [row for row in rows if row["detectable"] and row["n"] >= P_FROM_RUNS]
    arms = [names.get(row["arm"], row["arm"]) for row in small if row["runs_to_decide"] is None]
    if arms:
        why = "the difference is too small to detect with this much noise"
        advice.append(("no-more-seeds", f"Do not add runs for {', '.join(arms)}: {why}."))
    codes = set[str]()
    for row in rows:
        codes |= {flag["code"] for flag in row["flags"] if not flag["facts"].get("minor")}
    advice += [(flag.code, flag.advice) for flag in FLAGS if flag.code in codes and flag.advice]
    return advice


def _choices(rows: Sequence[Contrast], names: Names) -> list[tuple[str, str]]:
    """Which arm to use, for each baseline with a decided contrast."""
    advice = []
    apart = ""
    if all(row["baseline"] == REFERENCE for row in rows):
        apart = "; the arms were not compared with each other"
    for baseline in dict.fromkeys(row["baseline"] for row in rows):
        decided = [row for row in rows if row["baseline"] == baseline and row["better"]]
        winners = [row for row in decided if row["better"] == "arm"]
        base = names.get(baseline, baseline)
        if winners:
            arm = max(winners, key=lambda row: abs(row["mean"] or 0))["arm"]
            advice.append(("use", f"Use {names.get(arm, arm)} rather than {base}{apart}."))
        elif decided:
            worse = f"{_count(len(decided), 'arm')} {'is' if len(decided) == 1 else 'are'}"
            advice.append(("keep", f"Keep {base}: {worse} decided to be worse, and none better."))
    return advice


def _more_runs(
    wanted: Sequence[int], rows: Sequence[Contrast], looks: Sequence[int]
) -> tuple[str, str]:
    """How to get more runs without more errors."""
    runs = max(row["n"] for row in rows)
    needed = f"{min(wanted)}" if len(set(wanted)) == 1 else f"{min(wanted)} to {max(wanted)}"
    following = [look for look in looks if look > runs]
    if following:
        look = f"{following[0]} runs of each arm (study.seeds)"
        return "next-look", f"Continue to the next planned look: {look}."
    if not looks and not can_decide(runs, len(rows)):
        few = f"{_count(runs, 'run')} of each arm can decide nothing here"
        enough = f"{needed} would, if the difference is as large as it looks (study.seeds)"
        return "add-seeds", f"Add seeds: {few}; {enough}."
    return "new-study", (
        "Do not add seeds to this study: testing again inflates the error rate. Start a new study "
        f"with different seeds and {needed} runs of each arm, or plan interim analyses with "
        "study.looks."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _capital(text: str, row: Contrast) -> str:
    """With a capital letter, unless it begins with the name of an arm."""
    named = text.startswith((f"{row['arm']} ", f"{row['baseline']} "))
    return text if named else text[0].upper() + text[1:]
