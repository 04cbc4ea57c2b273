"""Sentences for people: what an arm does, what a row says, what to do next.

Points of a score stand before spreads between seeds, because people think in points. A number of
runs is only named where somebody might start them (at most 50 more); beyond, the sentence says what
could be seen instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from maskwise.constants import DIFFUSION, OTHER_TASKS, OWN_TASK, REFERENCE
from maskwise.estimates import shown
from maskwise.files import ArmFacts, Contrast
from maskwise.study.power import P_FROM_RUNS, can_decide

Names: TypeAlias = Mapping[str, str]
"""The arms in words."""


# Arms and outcomes
# -----------------------------------------------------------------------------------


def describe_arms(arms: Mapping[str, ArmFacts]) -> dict[str, str]:
    """What each arm does, in words ("masking 30 % of the tokens"); its name where words fail, or
    would not differ.

    >>> arms = {"a": {"policy": "token", "ratio": "constant(0.3)", "overrides": {}},
    ...     "b": {"policy": "type-weighted", "ratio": "linear(0.3, 0.1)", "overrides": {}}}
    >>> describe_arms(arms)
    {'a': 'masking 30 % of the tokens', 'b': 'masking by type-weighted (30 % falling to 10 %)'}
    """
    words = {name: _describe(facts) or name for name, facts in arms.items()}
    return {
        name: text if list(words.values()).count(text) == 1 else name
        for name, text in words.items()
    }


def _describe(facts: ArmFacts) -> str | None:
    settings = _leaves(facts["overrides"])
    if "sampler" in facts or not all(
        re.search("policy|ratio|schedule|budget", path) for path in settings
    ):
        return None  # it trains on more than masked words, or differs in something else too
    shape = re.fullmatch(r"\s*(constant|linear)\(([^()]*)\)\s*", facts["ratio"])
    try:
        shares = (
            [100 * float(argument.split("=")[-1]) for argument in shape[2].split(",")]
            if shape
            else []
        )
    except ValueError:
        return None
    if shape and shape[1] == "constant" and len(shares) == 1:
        share = f"{shares[0]:g} %"
    elif shape and shape[1] == "linear" and len(shares) == 2:
        share = (
            f"{shares[0]:g} % {'falling' if shares[0] > shares[1] else 'rising'} to {shares[1]:g} %"
        )
    else:
        return None
    if facts["policy"] == "token":
        return f"masking {share} of the tokens"
    what = "whole words" if facts["policy"] == "whole-word" else f"by {facts['policy']}"
    return f"masking {what} ({share})"


def _leaves(tree: object, path: str = "") -> list[str]:
    if isinstance(tree, Mapping):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}")]
    return [path]


def outcome_words(outcome: str) -> str:
    """Where two arms were compared, as it stands in a sentence: "on the tasks"."""
    if outcome == "tasks":
        return "on the tasks"
    if outcome.startswith("heldout:"):
        masks, _, ratio = outcome[8:].partition("@")
        if masks == DIFFUSION:
            return "in the bound of masked diffusion"
        return f"in held-out loss ({masks} masks{f', {100 * float(ratio):g} %' if ratio else ''})"
    if outcome.startswith("evaluation:"):
        name, _, metric = outcome[11:].rpartition(":")
        return f"on {name} ({metric})"
    return f"on {outcome}"


# A row
# -----------------------------------------------------------------------------------------------


def row_sentence(row: Contrast, names: Names, *, brief: bool = False) -> str:
    """One row in plain English: who, by how much, how sure, what would settle it; ``brief`` without
    the details.
    """
    arm, baseline = (names.get(name, name) for name in (row["arm"], row["baseline"]))
    where = outcome_words(row["outcome"])
    raw = (row["arm"], row["baseline"])
    if row["verdict"] == "not comparable":
        invalid = [flag["sentence"] for flag in row["flags"] if flag["effect"] == "invalid"]
        because = "; ".join(invalid[: 1 if brief else None]) or "nothing was measured"
        return capital(f"{arm} and {baseline} are not comparable {where}: {because}.", *raw)
    facts = "; ".join(_facts(row, brief=brief))
    if row["verdict"] == "no difference that matters":
        inside = _inside(row)
        return capital(
            f"no difference that matters between {arm} and {baseline} {where}: {inside} ({facts}).",
            *raw,
        )
    first, second = (arm, baseline) if ahead(row) else (baseline, arm)
    amount = shown(row)
    if row["verdict"] == "decided":
        return capital(f"{first} beats {second} {where} by {amount.size()} ({facts}).", *raw)
    if row["mean"] == 0:
        sentence = f"{arm} and {baseline} are equal {where} ({facts})."
    else:
        sentence = f"{first} is {amount.size()} ahead of {second} {where} ({facts})."
    if row["verdict"] is None:
        return capital(sentence, *raw)
    outlook = _outlook(row)
    if brief:  # it stands beside the word
        return f"{capital(sentence, *raw)} {outlook}".rstrip()
    return f"Open: {sentence} {outlook}".rstrip()


def _facts(row: Contrast, *, brief: bool) -> list[str]:
    runs = f"{_count(row['n'], 'run')} each"
    by = row["compute"]["by"]
    facts = [f"{runs}, equal {by}" if row["compute"]["matched"] else runs]
    amount = shown(row)
    if amount.low is not None and not brief:
        facts.append(f"95 % interval {amount.ends()}")
    if (
        row["unit"] == "SDs"
        and amount.unit != "spreads between seeds"
        and row["mean"]
        and not brief
    ):
        facts.append(f"{abs(row['mean']):.1f} times the spread between seeds")
    if row["p_adjusted"] is not None:
        corrected = "" if brief or row.get("gate") else " after Holm's correction"
        facts.append(f"p = {row['p_adjusted']:.2g}{corrected}")
    if row["verdict"] is not None:
        facts.append(row["scope"])
    return facts


def _inside(row: Contrast) -> str:
    """That an interval lies within the margin."""
    inside, amount = row["equivalence"], shown(row)
    low, high = (amount.scale * inside[end] for end in ("low", "high"))
    ends = minus(f"{low:.{amount.digits}f} to {high:.{amount.digits}f}")
    margin = f"±{amount.scale * inside['margin']:g}"
    return (
        f"the {100 * inside['confidence']:.3g} % interval, {ends} {amount.unit}, lies within "
        f"{margin}"
    )


def _outlook(row: Contrast) -> str:
    """What would decide an open row, or what keeps it open."""
    caps = [flag["sentence"] for flag in row["flags"] if flag["effect"] == "caps"]
    if caps:
        return capital("; ".join(caps)) + "."
    if row["n"] == 1:
        return "One run says nothing about run-to-run variance."
    if row["runs_to_decide"] is not None:
        runs = f"About {row['runs_to_decide']} runs of each arm would decide"
        return f"{runs}, if the difference is as large as it looks."
    if row["detectable"] is not None and row["detectable"]["difference"] > 0:
        return f"{row['detectable']['runs']} runs of each arm detect {detected(row)} or more."
    return ""


def detected(row: Contrast) -> str:
    """The difference that so many runs detect, in points, nats or spreads."""
    assert row["detectable"] is not None
    amount = shown(row)
    plain = amount.unit != "spreads between seeds" and row["unit"] == "SDs"
    size = row["detectable"]["difference"] if plain or row["unit"] != "SDs" else None
    return "larger differences" if size is None else f"{amount.scale * size:.2g} {amount.unit}"


def ahead(row: Contrast) -> bool:
    """Whether the arm of a row is the better one so far, decided or not."""
    return ((row["mean"] or 0) > 0) == row["higher_is_better"]


# The page
# --------------------------------------------------------------------------------------------

MOST_WORDS = 20
"""How long a headline may be."""


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
    behind = {row["baseline"] if ahead(row) else row["arm"] for row in judged if row["mean"]}

    def sureness(row: Contrast) -> tuple[bool, bool, float]:
        first, second = (
            (row["arm"], row["baseline"])
            if row["better"] == "arm"
            else (row["baseline"], row["arm"])
        )
        return first not in behind, second == baseline, abs(row["mean"] or 0)

    won = [row for row in judged if row["better"] in sides]
    if won:
        return max(won, key=sureness)
    return max(judged, key=lambda row: (row["mean"] or 0) * (1 if row["higher_is_better"] else -1))


def headline_sentence(rows: Sequence[Contrast], names: Names, baseline: str) -> str:
    """The page in one short sentence, from the primary rows: what is better, by how much, how sure."""
    row = headline_row(rows, baseline)
    if row is None and len(names) > 1:
        return (
            "The arms cannot be compared: no outcome was measured that suits both; add tasks, "
            "or held-out masks."
        )
    if row is None:
        return (
            f"There is only one arm ({names.get(baseline, baseline)}), and nothing to compare "
            f"it with."
        )
    judged = [row for row in rows if row["verdict"] != "not comparable"]
    keeps = bool(judged) and all(
        (r["better"], r["baseline"]) == ("baseline", row["baseline"]) for r in judged
    )
    raw = (row["arm"], row["baseline"])
    in_words = capital(_headline(row, names, keeps=keeps), *raw)
    # Arms go by their names where words would be too long; what is no arm of its own has words
    # alone.
    made = {
        name: words for name, words in names.items() if name in (REFERENCE, OWN_TASK, OTHER_TASKS)
    }
    return (
        in_words
        if len(in_words.split()) <= MOST_WORDS
        else capital(_headline(row, made, keeps=keeps), *raw)
    )


def _headline(row: Contrast, names: Names, *, keeps: bool) -> str:
    arm, baseline = (names.get(name, name) for name in (row["arm"], row["baseline"]))
    where = outcome_words(row["outcome"])
    if row["verdict"] == "not comparable":
        return (
            f"not comparable: "
            f"{row['flags'][0]['sentence'] if row['flags'] else 'nothing was measured'}."
        )
    if row["verdict"] == "no difference that matters":
        return f"no difference that matters between {arm} and {baseline} {where}."
    first, second = (arm, baseline) if ahead(row) else (baseline, arm)
    amount = shown(row).size()
    if keeps and row["baseline"] != REFERENCE:
        return f"keep {baseline}: every other arm is worse (decided)."
    if row["verdict"] == "decided":
        return (
            f"{first} is {amount} better than {second} {where} (decided, p = "
            f"{row['p_adjusted']:.2g})."
        )
    if not row["mean"]:
        return f"open: {arm} and {baseline} are equal {where}."
    return f"open: {first} is {amount} ahead of {second} {where}."


def advice_of(
    rows: Sequence[Contrast], names: Names, looks: Sequence[int] | None = None
) -> list[tuple[str, str]]:
    """What to do next, from the primary rows, as (code, sentence); the most useful first, each
    thing once.

    Args:
        looks: the numbers of runs at which the study may be looked at, if that was planned.
    """
    from maskwise.study.verdict.flags import ADVICE

    advice = _choices(rows, names)
    wanted = [row["runs_to_decide"] for row in rows if row["runs_to_decide"] is not None]
    if wanted:
        advice.append(_more_runs(wanted, rows, looks or ()))
    elif any(row["n"] == 1 for row in rows):
        advice.append(
            (
                "add-seeds",
                f"Add seeds: a verdict needs {P_FROM_RUNS} runs of each arm (study.seeds).",
            )
        )
    # Fewer runs than a test needs cannot tell how small a difference is.
    small = [
        row
        for row in rows
        if row["detectable"] and row["runs_to_decide"] is None and row["n"] >= P_FROM_RUNS
    ]
    if small:
        which = ", ".join(names.get(row["arm"], row["arm"]) for row in small)
        sentence = (
            f"Do not add runs for {which}: the difference is too small to detect with "
            f"this much noise."
        )
        advice.append(("no-more-seeds", sentence))
    codes = {
        flag["code"] for row in rows for flag in row["flags"] if not flag["facts"].get("minor")
    }
    return advice + [(code, sentence) for code, sentence in ADVICE.items() if code in codes]


def _choices(rows: Sequence[Contrast], names: Names) -> list[tuple[str, str]]:
    """Which arm to use, for each baseline with a decided contrast."""
    advice = []
    for baseline in dict.fromkeys(row["baseline"] for row in rows):
        decided = [
            row for row in rows if row["baseline"] == baseline and row["verdict"] == "decided"
        ]
        winners = [row for row in decided if row["better"] == "arm"]
        base = names.get(baseline, baseline)
        if winners:
            arm = max(winners, key=lambda row: abs(row["mean"] or 0))["arm"]
            best = names.get(arm, arm)
            sentence = f"Use {best} rather than {base}."
            if all(row["baseline"] == REFERENCE for row in rows):
                sentence = (
                    f"Use {best} rather than {base}; the arms were not compared with each other."
                )
            advice.append(("use", sentence))
        elif decided:
            worse = _count(len(decided), "arm")
            verb = "is" if len(decided) == 1 else "are"
            advice.append(
                ("keep", f"Keep {base}: {worse} {verb} decided to be worse, and none better.")
            )
    return advice


def _more_runs(
    wanted: Sequence[int], rows: Sequence[Contrast], looks: Sequence[int]
) -> tuple[str, str]:
    """How to get more runs without more errors: at a planned look; where no test was made yet; or
    in a new study.
    """
    runs = max(row["n"] for row in rows)
    at = f"{min(wanted)}" if len(set(wanted)) == 1 else f"{min(wanted)} to {max(wanted)}"
    following = [look for look in looks if look > runs]
    if following:
        sentence = (
            f"Continue to the next planned look: {following[0]} runs of each arm (study.seeds)."
        )
        return "next-look", sentence
    if not looks and not can_decide(runs, len(rows)):
        few = f"{_count(runs, 'run')} of each arm can decide nothing here"
        return (
            "add-seeds",
            f"Add seeds: {few}; {at} would, if the difference is as large as it looks "
            f"(study.seeds).",
        )
    sentence = (
        "Do not add seeds to this study: testing again inflates the error rate. Start a new "
        "study with different"
        f" seeds and {at} runs of each arm, or plan interim analyses with study.looks."
    )
    return "new-study", sentence


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def minus(text: str) -> str:
    """With the sign of minus in place of the hyphen before a number."""
    return re.sub(r"-(?=[\d.])", "−", text)


def capital(text: str, *arms: str) -> str:
    """With a capital letter, unless it begins with the name of an arm."""
    named = text.startswith(tuple(f"{arm} " for arm in arms))
    return text if named else text[0].upper() + text[1:]
