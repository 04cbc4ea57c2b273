"""Sentences for people: what an arm does, what a contrast says, what to do next.

Points of a score stand before spreads between seeds, because people think in points. A number of further runs
is only named where somebody might start them (at most 50); beyond, the sentence says what could be seen instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maskwise.study.power import P_FROM_RUNS


def describe_arms(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each arm does, in words ("masking 30 % of the tokens"); its name where words fail."""
    words = {name: _describe(facts) or name for name, facts in arms.items()}
    return {name: text if list(words.values()).count(text) == 1 else name for name, text in words.items()}


def _describe(facts: Mapping[str, Any]) -> str | None:
    paths = _leaves(facts.get("overrides") or {})
    if "sampler" in facts or not all(re.search("policy|ratio|schedule|budget", path) for path in paths):
        return None  # it trains on more than masked words, or differs in something else too
    shape = re.fullmatch(r"\s*(\w+)\(([^()]*)\)\s*", str(facts.get("ratio", "")))
    try:
        shares = [f"{100 * float(x.split('=')[-1]):g} %" for x in shape[2].split(",")] if shape else []
    except ValueError:
        return None
    policy = str(facts.get("policy"))
    what = {"token": "tokens", "whole-word": "whole words"}.get(policy, f"{policy} units")
    if shape and shape[1] == "constant" and len(shares) == 1:
        return f"masking {shares[0]} of the tokens" if policy == "token" else f"masking {what} ({shares[0]})"
    if shape and shape[1] == "linear" and len(shares) == 2:
        way = "falling" if float(shares[0][:-2]) > float(shares[1][:-2]) else "rising"
        share = f"{shares[0]} {way} to {shares[1]}"
        return f"masking {share} of the tokens" if policy == "token" else f"masking {what} ({share})"
    return None


def _leaves(tree: Any, path: str = "") -> list[str]:
    if isinstance(tree, Mapping):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}")]
    return [path]


def contrast_sentence(row: Mapping[str, Any], names: Mapping[str, str], *, brief: bool = False) -> str:
    """One row in plain English: who, by how much, how sure, what would settle it; `brief` for a headline."""
    arm, baseline = (names.get(row[side], row[side]) for side in ("arm", "baseline"))
    where = outcome_words(row["outcome"])
    if row["verdict"] == "void":
        because = "; ".join(reason["sentence"] for reason in row["reasons"][: 1 if brief else None])
        return _sentence(f"no verdict on {arm} against {baseline} {where}: {because}.")
    first, second = (arm, baseline) if (row["mean"] > 0) == row["higher_is_better"] else (baseline, arm)
    facts, amount = "; ".join(_facts(row, brief=brief)), _amount(row, brief=brief)
    if row["verdict"] == "decided":
        return _sentence(f"{first} beats {second} {where} by {amount} ({facts}).")
    more = _further(row)
    if row["verdict"] == "suggests":
        doubt = {
            "secondary": "suggests; not a primary test",
            "no-dev-selection": "suggests, not proof, because settings were not chosen for each arm alike",
            "stopped-early": "suggests, not proof, because an arm was stopped early",
        }.get(row["reason"], "suggests, not proof")
        told = f"{first} did better than {second} {where} by {amount} ({facts}: {doubt})."
        return _sentence(told + (f" About {more} would decide." if more else ""))
    if row["mean"] == 0:
        return _sentence(f"not decided: {arm} and {baseline} came out equal {where} ({facts}).")
    told = f"not decided: {first} is ahead of {second} {where} by {amount} ({facts})."
    if more:
        told += f" About {more} would decide, if the difference is as large as it looks."
    elif row["n"] == 1 and row["primary"]:
        told += " One run says nothing about the next: start with three seeds."
    elif row["detectable"]:
        told += f" If the difference is as small as it looks, it is too small to matter at this noise: {_seen(row)}."
    return _sentence(told)


def headline_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The primary row that a page is headed by: the surest gain; else the nearest to the one baseline, or, where
    there are several, the surest difference."""
    judged = [row for row in rows if row["verdict"] != "void"]
    if not judged:
        return rows[0] if rows else None
    sure = {"decided": 2, "suggests": 1}
    several = len({row["baseline"] for row in judged}) > 1
    for sides in (("arm",), ("arm", "baseline") if several else ()):
        if found := [row for row in judged if row["better"] in sides]:
            return max(found, key=lambda row: (sure[row["verdict"]], abs(row["mean"])))
    return max(judged, key=lambda row: row["mean"] if row["higher_is_better"] else -row["mean"])


def headline_sentence(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], baseline: str) -> str:
    """The page in a sentence or two, from the primary rows: the best choice, by how much, how sure."""
    base, row = names.get(baseline, baseline), headline_row(rows)
    if row is None:
        if len(names) > 1:
            return _sentence(
                "nothing was measured that the arms could be compared by: name tasks, or held-out masks."
            )
        return _sentence(f"one arm only ({base}): there is nothing to compare yet.")
    told = contrast_sentence(row, names, brief=True)
    judged = [row for row in rows if row["verdict"] != "void"]
    if judged and all((r["better"], r["baseline"]) == ("baseline", row["baseline"]) for r in judged):
        kept = names.get(row["baseline"], row["baseline"])
        return _sentence(f"keep {kept}: nothing that was tried did better. {told}")
    return told


def advice_of(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """What to do next, from the primary rows; the most useful first, each thing once."""
    found: list[str] = []
    for baseline in dict.fromkeys(row["baseline"] for row in rows):
        mine = [row for row in rows if row["baseline"] == baseline and row["verdict"] == "decided"]
        base = names.get(baseline, baseline)
        if winners := [row for row in mine if row["better"] == "arm"]:
            best = max(winners, key=lambda row: abs(row["mean"]))["arm"]
            found.append(f"Use {names.get(best, best)} rather than {base}.")
        elif mine:
            found.append(f"Keep {base}: nothing here is shown to be better, and {_count(mine)} to be worse.")
    runs = [row["n"] + row["more_runs"] for row in rows if row["more_runs"]]
    if runs:
        at = f"{min(runs)}" if len(set(runs)) == 1 else f"{min(runs)} to {max(runs)}"
        found.append(
            f"Add seeds: {at} runs of each arm would decide what looks different here (study.seeds)."
        )
    if any(row["n"] == 1 for row in rows):
        found.append("Start with three seeds: one run says nothing about the next.")
    # Fewer runs than a test needs cannot tell how small a difference is.
    sure = [row for row in rows if row["detectable"] and not row["more_runs"] and row["n"] >= P_FROM_RUNS]
    if small := [row for row in sure if row["mean"]]:
        several = len({row["baseline"] for row in rows}) > 1
        pairs = ([names.get(row[side], row[side]) for side in ("arm", "baseline")] for row in small)
        hopeless = ", ".join(f"{arm} against {base}" if several else arm for arm, base in pairs)
        found.append(f"Do not add runs for {hopeless}: at this noise the difference is too small to matter.")
    codes = {r["code"] for row in rows for r in row["reasons"] if r.get("ratios") != {}}
    for code, told in ADVICE.items():
        if code in codes:
            found.append(told)
    return found


def _count(rows: Sequence[Any]) -> str:
    return f"{len(rows)} choice{'s are' if len(rows) > 1 else ' is'} shown"


ADVICE = {
    "plateau": "Train longer, or at a higher ratio: a model that knows word frequencies only cannot be compared.",
    "chance-level": "Take easier tasks, or train longer: at chance level no choice can show.",
    "no-dev-selection": "Give every arm the same small grid of learning rates on dev seeds (study.search).",
    "stopped-early": "Run stopped arms to their end before anything about them is printed.",
    "missing-runs": "Mend what failed and give the same command: it goes on where it stopped.",
    "unmatched-compute": "Mind the compute: look at the views by targets, FLOPs and seconds too (study.match).",
    "grid-border": "Widen the grid: an arm's best setting lies at its border (study.search.grid).",
    "item-noise": "Take a larger test set, or more tasks: further runs cannot make few items say more.",
    "overlap": "Take test items out of the corpus, or leave that task out: it rewards remembering.",
}


def outcome_words(outcome: str) -> str:
    if outcome == "tasks":
        return "on the tasks"
    if outcome.startswith("heldout:"):
        masks, _, ratio = outcome[8:].partition("@")
        return f"in held-out loss ({masks} masks{f', {100 * float(ratio):g} %' if ratio else ''})"
    if outcome.startswith("evaluation:"):
        name, _, metric = outcome[11:].rpartition(":")
        return f"on {name} ({metric})"
    return f"on {outcome}"


def _facts(row: Mapping[str, Any], *, brief: bool) -> list[str]:
    equal = row["compute"]["by"] if row["compute"]["matched"] else None
    facts = [f"{row['n']} run{'s' if row['n'] != 1 else ''} each" + (f", equal {equal}" if equal else "")]
    if row["low"] is not None and not brief:
        scale, unit = (100, "points") if row["unit"] == "score" else (1, row["unit"])
        ends = sorted((1 if row["mean"] > 0 else -1) * scale * row[end] for end in ("low", "high"))
        facts.append(f"95 % interval {ends[0]:.2g} to {ends[1]:.2g} {unit}".replace("-", "−"))
    if row["p_adjusted"] is not None:
        facts.append(f"p = {row['p_adjusted']:.2g}" + ("" if brief else " after Holm's correction"))
    return facts


def _further(row: Mapping[str, Any]) -> str | None:
    more = row["more_runs"]
    return f"{more} more run{'s' if more > 1 else ''} of each" if more else None


def _seen(row: Mapping[str, Any]) -> str:
    """What a number of runs that can decide would see."""
    seen = row["detectable"]
    if row["unit"] == "nats":
        least = f"{seen['difference']:.2g} nats"
    elif row["unit"] in ("SDs", "score"):
        least = f"{100 * seen['natural']:.2g} points"
    else:
        least = f"{seen['difference']:.2g}"
    return f"{seen['runs']} runs of each find {least} or more"


def _amount(row: Mapping[str, Any], *, brief: bool) -> str:
    if row["unit"] == "nats":
        return f"{abs(row['mean']):.2f} nats"
    if row["unit"] not in ("SDs", "score"):
        return f"{abs(row['mean']):.3g} ({row['unit']})"
    plain = row["natural"]["mean"] if "natural" in row else row["mean"]
    points = f"{100 * abs(plain):.1f} {row['metric'] + ' ' if row['metric'] else ''}points"
    spread = f"{abs(row['mean']):.1f} times the spread between seeds"
    # tasks of different scale: plain points may point elsewhere
    if row["unit"] == "SDs" and plain * row["mean"] <= 0:
        return spread
    return points if row["unit"] != "SDs" or brief else f"{points}, or {spread}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
