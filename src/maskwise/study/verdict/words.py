"""Sentences for people: what an arm does, what a contrast says, what to do next.

Points of a score stand before spreads between seeds, because people think in points. A number of further runs is only
named where somebody might start them (at most 50); beyond, the sentence says what could be seen instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from maskwise.constants import DIFFUSION, NATS, overlap_matters
from maskwise.files import ArmFacts, Contrast, Reason
from maskwise.study.power import P_FROM_RUNS, can_decide

Names = Mapping[str, str]
"""The arms in words."""

DOUBTS = {
    "secondary": "a suggestion, because this is not a primary test",
    "no-dev-selection": "a suggestion, not proof, because settings were not chosen in the same way for each arm",
    "grid-border": "a suggestion, not proof, because a best setting is at the edge of what was tried",
    "runs-added": "a suggestion, not proof, because the runs were changed after a verdict, without a plan",
}
ADVICE = {
    "gate-closed": "First make the gate's arm win, by more runs, longer training or other tasks: nothing else counts.",
    "plateau": "Train longer, or at a higher ratio: a model that knows only word frequencies cannot be compared.",
    "forgotten": "Measure the masks that the arm learns from, too (evaluation.masks), or take a lower rate.",
    "by-heart": "Give more text, or take fewer steps: a text that is read too often is learnt by heart.",
    "chance-level": "Use easier tasks, or train longer: at chance level no choice can make a difference.",
    "no-task-tells": "Use tasks on which pre-training helps, or train longer: no other task can tell the arms apart.",
    "no-dev-selection": "Search the same small grid of learning rates for every arm, on two dev seeds (study.search).",
    "missing-runs": "Repair what failed and give the same command again: it goes on where it stopped.",
    "unmatched-compute": "Consider the compute, too: look at quality by targets and FLOPs (study.match).",
    "grid-border": "Widen the grid: the best setting of an arm is at its edge (study.search.grid).",
    "item-noise": "Use a larger test set, or more tasks: more runs cannot make up for few test items.",
    "overlap": "Remove the test items from the corpus, or leave that task out: its score rewards memory.",
}


# Arms and outcomes -----------------------------------------------------------------------------------


def describe_arms(arms: Mapping[str, ArmFacts]) -> dict[str, str]:
    """What each arm does, in words ("masking 30 % of the tokens"); its name where words fail, or would not differ.

    >>> arms = {"a": {"policy": "token", "ratio": "constant(0.3)", "overrides": {}},
    ...     "b": {"policy": "type-weighted", "ratio": "linear(0.3, 0.1)", "overrides": {}}}
    >>> describe_arms(arms)
    {'a': 'masking 30 % of the tokens', 'b': 'masking by type-weighted (30 % falling to 10 %)'}
    """
    words = {name: _describe(facts) or name for name, facts in arms.items()}
    return {name: text if list(words.values()).count(text) == 1 else name for name, text in words.items()}


def _describe(facts: ArmFacts) -> str | None:
    settings = _leaves(facts["overrides"])
    if "sampler" in facts or not all(re.search("policy|ratio|schedule|budget", path) for path in settings):
        return None  # it trains on more than masked words, or differs in something else too
    shape = re.fullmatch(r"\s*(constant|linear)\(([^()]*)\)\s*", facts["ratio"])
    try:
        shares = [100 * float(argument.split("=")[-1]) for argument in shape[2].split(",")] if shape else []
    except ValueError:
        return None
    if shape and shape[1] == "constant" and len(shares) == 1:
        share = f"{shares[0]:g} %"
    elif shape and shape[1] == "linear" and len(shares) == 2:
        share = f"{shares[0]:g} % {'falling' if shares[0] > shares[1] else 'rising'} to {shares[1]:g} %"
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


# A contrast ------------------------------------------------------------------------------------------


def contrast_sentence(row: Contrast, names: Names, *, brief: bool = False) -> str:
    """One row in plain English: who, by how much, how sure, what would settle it; ``brief`` for a headline."""
    return _capital(_contrast(row, names, brief=brief))


def _contrast(row: Contrast, names: Names, *, brief: bool) -> str:
    arm, baseline = (names.get(name, name) for name in (row["arm"], row["baseline"]))
    where, mean = outcome_words(row["outcome"]), row["mean"]
    if row["verdict"] == "void" or mean is None:
        because = "; ".join(reason["sentence"] for reason in row["reasons"][: 1 if brief else None])
        return f"no verdict on {arm} against {baseline} {where}: {because}."
    first, second = (arm, baseline) if ahead(row) else (baseline, arm)
    facts, amount = "; ".join(_facts(row, mean, brief=brief)), _amount(row, mean, brief=brief)
    more = f"About {row['n'] + row['more_runs']} runs of each arm would be enough to decide" if row["more_runs"] else ""
    if row["verdict"] == "decided":
        return f"{first} beats {second} {where} by {amount} ({facts})."
    if row["verdict"] == "equal":
        inside = row["reasons"][0]["sentence"]
        both = f"no difference that matters between {arm} and {baseline} {where}"
        return f"{both}: {inside} ({facts.partition('; ')[0]})."
    if row["verdict"] == "suggests":
        doubt = DOUBTS.get(row["reason"], "a suggestion, not proof")
        sentence = f"{first} did better than {second} {where} by {amount} ({facts}: {doubt})."
        return f"{sentence} {more}." if more else sentence
    if mean == 0:
        return f"not decided: {arm} and {baseline} were equal {where} ({facts})."
    sentence = f"not decided: {first} is ahead of {second} {where} by {amount} ({facts})."
    if more:
        sentence += f" {more}, if the difference is as large as it looks."
    elif row["n"] == 1 and row["primary"]:
        sentence += " A single run cannot show what the next one would do: start with three seeds."
    elif row["detectable"]:
        sentence += " If the difference is as small as it looks, it is too small to detect with this much noise:"
        sentence += f" {_seen(row)}."
    return sentence


def _facts(row: Contrast, mean: float, *, brief: bool) -> Iterator[str]:
    runs, by = f"{_count(row['n'], 'run')} each", row["compute"]["by"]
    yield f"{runs}, equal {by}" if row["compute"]["matched"] else runs
    if row["low"] is not None and row["high"] is not None and not brief:
        scale, unit = (100, "points") if row["unit"] == "score" else (1, row["unit"])
        low, high = sorted((1 if mean > 0 else -1) * scale * end for end in (row["low"], row["high"]))
        yield f"95 % interval {low:.2g} to {high:.2g} {unit}".replace("-", "−")
    if row["p_adjusted"] is not None:
        yield f"p = {row['p_adjusted']:.2g}" + ("" if brief or "gate" in row else " after Holm's correction")


def _amount(row: Contrast, mean: float, *, brief: bool) -> str:
    if row["unit"] == "nats":
        return f"{abs(mean):.2f} nats"
    if row["unit"] not in ("SDs", "score"):
        return f"{abs(mean):.3g} ({row['unit']})"
    plain = row["natural"]["mean"] or 0.0 if "natural" in row else mean
    points = f"{100 * abs(plain):.1f} {row['metric'] + ' ' if row['metric'] else ''}points"
    if row["metric"] == NATS:
        points = f"{abs(plain):.2f} nats"
    spread = f"{abs(mean):.1f} times the spread between seeds"
    # Tasks of different scale or unit: plain points may point elsewhere, or there are none.
    if row["unit"] == "SDs" and ("natural" not in row or plain * mean <= 0):
        return spread
    return points if row["unit"] != "SDs" or brief else f"{points}, or {spread}"


def _seen(row: Contrast) -> str:
    """What a number of runs that can decide would see."""
    seen = row["detectable"]
    assert seen is not None
    if row["unit"] == "SDs" and "natural" not in row:
        least = f"{seen['difference']:.2g} times the spread between seeds"
    elif row["unit"] == "SDs" and row["metric"] == NATS:
        least = f"{seen['natural']:.2g} nats"
    elif row["unit"] in ("SDs", "score"):
        least = f"{100 * seen['natural']:.2g} points"
    else:
        least = f"{seen['difference']:.2g}" + (" nats" if row["unit"] == "nats" else "")
    return f"{seen['runs']} runs of each arm would detect {least} or more"


# The page --------------------------------------------------------------------------------------------


def headline_row(rows: Sequence[Contrast], baseline: str) -> Contrast | None:
    """The primary row that a page is headed by.

    The surest gain; with several baselines, the surest difference, and of equally sure ones that of an arm which is
    behind no other, and the one from the study's ``baseline``. If nothing wins: the arm nearest to its baseline.
    """
    judged = [row for row in rows if row["verdict"] != "void"]
    if not judged:
        return rows[0] if rows else None
    sides = ("arm", "baseline") if len({row["baseline"] for row in judged}) > 1 else ("arm",)
    behind = {row["baseline"] if ahead(row) else row["arm"] for row in judged if row["mean"]}

    def sureness(row: Contrast) -> tuple[bool, bool, bool, float]:
        first, second = (row["arm"], row["baseline"]) if row["better"] == "arm" else (row["baseline"], row["arm"])
        return row["verdict"] == "decided", first not in behind, second == baseline, abs(row["mean"] or 0)

    if won := [row for row in judged if row["better"] in sides]:
        return max(won, key=sureness)
    return max(judged, key=lambda row: (row["mean"] or 0) * (1 if row["higher_is_better"] else -1))


def ahead(row: Contrast) -> bool:
    """Whether the arm of a row is the better one so far, decided or not."""
    return ((row["mean"] or 0) > 0) == row["higher_is_better"]


MOST_WORDS = 20
"""How long a headline may be."""


def headline_sentence(rows: Sequence[Contrast], names: Names, baseline: str) -> str:
    """The page in one short sentence, from the primary rows: what to use, by how much, how sure."""
    row = headline_row(rows, baseline)
    if row is None and len(names) > 1:
        why = "nothing was measured that suits both: name tasks, or held-out masks"
        return f"The arms cannot be compared, because {why}."
    if row is None:
        return f"There is only one arm ({names.get(baseline, baseline)}), and nothing to compare it with."
    judged = [row for row in rows if row["verdict"] != "void"]
    keeps = all((r["better"], r["baseline"]) == ("baseline", row["baseline"]) for r in judged) and bool(judged)
    sentence = ""
    for known in (names, {}):  # the arms in words, and by their names where that would be too long
        sentence = _capital(_headline(row, known, keeps=keeps))
        if len(sentence.split()) <= MOST_WORDS:
            break
    return sentence


def _headline(row: Contrast, names: Names, *, keeps: bool) -> str:
    """What to use, by how much, how sure."""
    arm, baseline = (names.get(name, name) for name in (row["arm"], row["baseline"]))
    where, mean = outcome_words(row["outcome"]), row["mean"]
    if row["verdict"] == "void" or mean is None:
        reason = row["reasons"][0] if row["reasons"] else None
        stuck = " and ".join(names.get(name, name) for name in reason.get("arms", ())) if reason else ""
        why = {
            "plateau": f"{stuck} learnt little more than word frequencies",
            "forgotten": f"{stuck} lost on held-out text what the start knew",
            "by-heart": f"{stuck} predicted held-out text worse than word frequencies do",
            "chance-level": "neither arm scores better than guessing",
            "missing-runs": "too few runs finished",
            "gate-closed": "the positive control failed, so this study could not have seen a difference",
        }
        told = why.get(reason["code"], reason["sentence"]) if reason else "nothing was measured"
        return f"no verdict: {told}."
    if keeps:
        return f"keep {baseline}: nothing that was tried did better."
    if row["verdict"] == "equal":
        return f"use either: no difference that matters between {arm} and {baseline} {where}."
    if not mean:
        return f"not decided: {arm} and {baseline} were equal {where}."
    first, second = (arm, baseline) if ahead(row) else (baseline, arm)
    amount = _amount(row, mean, brief=True)
    if row["verdict"] == "decided":
        p = "" if row["p_adjusted"] is None else f" (p = {row['p_adjusted']:.2g})"
        return f"use {first}: {amount} better than {second} {where}{p}."
    if row["verdict"] == "suggests":
        return f"perhaps {first}: {amount} better than {second} {where}, which {row['n']} runs suggest."
    return f"not decided: {first} is {amount} ahead of {second} {where}."


def advice_of(rows: Sequence[Contrast], names: Names, looks: Sequence[int] | None = None) -> list[tuple[str, str]]:
    """What to do next, from the primary rows, as (code, sentence); the most useful first, each thing once.

    Args:
        looks: the numbers of runs at which the study may be looked at, if that was planned.
    """
    advice: list[tuple[str, str]] = []
    baselines = dict.fromkeys(row["baseline"] for row in rows)
    for baseline in baselines:
        decided = [row for row in rows if row["baseline"] == baseline and row["verdict"] == "decided"]
        base = names.get(baseline, baseline)
        if winners := [row for row in decided if row["better"] == "arm"]:
            best = max(winners, key=lambda row: abs(row["mean"] or 0))["arm"]
            advice.append(("use", f"Use {names.get(best, best)} rather than {base}."))
        elif decided:
            worse = f"{len(decided)} {'are' if len(decided) > 1 else 'is'} shown to be worse"
            advice.append(("keep", f"Keep {base}: no arm is shown to be better, and {worse}."))
    if runs := [row["n"] + row["more_runs"] for row in rows if row["more_runs"]]:
        at = f"{min(runs)}" if len(set(runs)) == 1 else f"{min(runs)} to {max(runs)}"
        advice.append(_more_runs(at, rows, looks or ()))
    if any(row["n"] == 1 for row in rows):
        advice.append(("three-seeds", "Start with three seeds: a single run cannot show what the next one would do."))
    # Fewer runs than a test needs cannot tell how small a difference is.
    settled = [row for row in rows if row["detectable"] and not row["more_runs"] and row["n"] >= P_FROM_RUNS]
    if small := [row for row in settled if row["mean"]]:
        pairs = ([names.get(name, name) for name in (row["arm"], row["baseline"])] for row in small)
        which = ", ".join(f"{arm} against {base}" if len(baselines) > 1 else arm for arm, base in pairs)
        sentence = f"Do not add runs for {which}: the difference is too small to detect with this much noise."
        advice.append(("no-more-seeds", sentence))
    codes = {reason["code"] for row in rows for reason in row["reasons"] if _matters(reason)}
    return advice + [(code, sentence) for code, sentence in ADVICE.items() if code in codes]


def _matters(reason: Reason) -> bool:
    """Whether something should be done: not where no ratio is unmatched, or where hardly an item is in the corpus."""
    few = reason["code"] == "overlap" and not overlap_matters(reason["overlapping"], reason["items"])
    return not few and reason.get("ratios") != {}


def _more_runs(enough: str, rows: Sequence[Contrast], looks: Sequence[int]) -> tuple[str, str]:
    """How to get more runs without more errors: at a planned look; where no test was made yet; or in a new study."""
    runs, family = max(row["n"] for row in rows), sum(row["verdict"] != "void" for row in rows)
    if following := [look for look in looks if look > runs]:
        sentence = f"Go on to the next look, as planned: {following[0]} runs of each arm (study.seeds)."
        return "next-look", sentence
    if not looks and not can_decide(runs, family):
        decides = f"{enough} runs of each arm would be enough to decide what looks different here"
        return "add-seeds", f"Add seeds: {decides}, and {_count(runs, 'run')} could not have (study.seeds)."
    sentence = "Add no runs to this study, because each look at more of them is one more chance of an error. A new one"
    sentence += f" with other seeds and {enough} runs of each arm would be enough to decide. It may plan its looks"
    sentence += " (study.looks)."
    return "new-study", sentence


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
