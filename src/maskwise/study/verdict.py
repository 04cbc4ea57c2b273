"""From records to a verdict: ``summarise`` makes ``summary.json`` (docs/files.md) of a study's numbers.

The rules (methods, section 5). The replicate is the pre-training run, paired by seed. Fine-tuning seeds are
already averaged inside a score; tasks are standardised and averaged inside the run; only then comes any
statistic, so that seeds × tasks are never pooled. Verdict words follow from the number of runs: below 6 no p
value and at most "suggests"; from 6 on "decided" needs Holm's adjusted sign-flip p below alpha *and* an
interval without zero. Comparisons that cannot tell anything (plateau, chance, different units, missing runs)
are "void", with the reason.

Why data and not prose: the report, the command line and the tests read the same dictionary. Cost:
milliseconds.

Standardising: a task's scores are divided by its pooled SD, over the runs of all arms about their own arm's
mean ("how much do runs differ that differ in nothing but the seed"), never less than one test item. With one
run per arm there is no such SD and scores stay as they are (unit "score").
"""

from __future__ import annotations

import math
import numbers
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.study.statistics import (
    holm,
    interval_by_rule,
    paired_differences,
    runs_needed,
    sign_flip_test,
    standardised_effect,
)

BySeed: TypeAlias = dict[int, float]
REFERENCE = "no-pretraining"
MOST_PRIMARY = 6  # more, and Holm leaves nothing that ten runs could decide
P_FROM_RUNS = 6  # the smallest p at 5 runs is .0625
PLATEAU_NATS = 0.3  # a mean held-out loss less than this below unigram: the model has learnt word frequencies
WORD_UNITS = {
    "whole-word",
    "word",
    "words",
    "span",
    "spans",
    "salient",
    "salient-span",
    "phrase",
    "phrases",
    "pmi",
}


def summarise(
    records: Iterable[Mapping[str, Any]],
    study: Mapping[str, Any],
    *,
    contrasts: Sequence[Any] | None = None,
    alpha: float = 0.05,
) -> dict[str, Any]:
    """summary.json from the lines of records.jsonl and study.json.

    `contrasts` are the primary ones, (arm, baseline) pairs or {"arm", "baseline"} dicts, at most 6; by
    default every arm against study["baseline"]. A task may carry "majority" (the score of always giving the
    commonest answer) and "test_items"; an arm may carry "units" (by default its policy). Raises MaskwiseError
    for records that cannot be compared: unpaired seeds, an arm without runs, scores that are not numbers, a
    task measured in some runs only.
    """
    records = list(records)
    pairs = primary_contrasts(study, contrasts)
    table = _Table(records, study)
    known = [*study["arms"], *([REFERENCE] if REFERENCE in table.arms else [])]
    for arm in (name for pair in pairs for name in pair):
        if arm not in known:
            raise unknown_name("arm in contrasts", arm, known)
    rows = [row for arm, baseline in pairs for row in _contrasts_of(table, arm, baseline)]
    _decide(rows, tasks=len(table.tasks), alpha=alpha)
    names = describe_arms(study["arms"])
    arms = {arm: table.describe(arm) for arm in study["arms"]}
    for arm, facts in arms.items():
        facts["words"] = names[arm]
    plateau = [arm for arm, facts in arms.items() if facts["plateau"]]
    for row in rows:
        row["sentence"] = contrast_sentence(row, names, plateau=plateau)
    return {
        "baseline": study["baseline"],
        "replicates": len(study["seeds"]),
        "references": table.references(),
        "arms": arms,
        "contrasts": rows,
        "headline": headline_sentence([row for row in rows if row["primary"]], names, study["baseline"]),
    }


def primary_contrasts(
    study: Mapping[str, Any], contrasts: Sequence[Any] | None = None
) -> list[tuple[str, str]]:
    """The (arm, baseline) pairs a page is about. Call it before a study starts: it refuses more than 6."""
    base = study["baseline"]
    if base not in study["arms"]:
        raise unknown_name("baseline", base, study["arms"])
    if contrasts is None:
        pairs = [(arm, base) for arm in study["arms"] if arm != base]
    else:
        pairs = [
            (c["arm"], c.get("baseline", base)) if isinstance(c, Mapping) else tuple(c) for c in contrasts
        ]
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise MaskwiseError("a contrast names two different arms", got=pair, allowed="[arm, baseline]")
    if len(set(pairs)) > MOST_PRIMARY:
        raise MaskwiseError(
            "too many primary contrasts for one page",
            got=len(set(pairs)),
            allowed=f"at most {MOST_PRIMARY}",
            do="name the ones that matter in contrasts",
        )
    return list(dict.fromkeys(pairs))


class _Table:
    """The records by outcome, arm and seed, checked; and what is known of every arm and task."""

    def __init__(self, records: list[Mapping[str, Any]], study: Mapping[str, Any]):
        self.study = study
        self.failed: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self.outcomes: dict[str, dict[str, BySeed]] = defaultdict(lambda: defaultdict(dict))
        self.unigram: dict[str, dict[str, BySeed]] = defaultdict(lambda: defaultdict(dict))
        lowest: dict[
            str, float
        ] = {}  # several ratios may be evaluated: the lowest one carries the plain name
        for record in records:
            if record["kind"] == "heldout":
                masks, ratio = record["masks"], record.get("ratio", 0.15)
                lowest[masks] = min(lowest.get(masks, ratio), ratio)
        for record in records:
            arm, seed = record["arm"], record["seed"]
            if arm not in study["arms"] and arm != REFERENCE:
                raise unknown_name("arm in records", arm, [*study["arms"], REFERENCE])
            if record["kind"] == "failure":
                self.failed[arm].append(record)
            elif record["kind"] == "score":
                self._put(self.outcomes[record["task"]][arm], seed, record["score"], record)
            elif record["kind"] == "heldout":
                name = f"heldout:{record['masks']}"
                if record.get("ratio", 0.15) != lowest[record["masks"]]:
                    name += f"@{record['ratio']:g}"
                self._put(self.outcomes[name][arm], seed, record["loss"], record)
                self._put(self.unigram[name][arm], seed, record["unigram"], record)
        self.tasks = [name for name in self.outcomes if not name.startswith("heldout:")]
        self.heldout = sorted(name for name in self.outcomes if name.startswith("heldout:"))
        self.arms = {arm for by_arm in self.outcomes.values() for arm in by_arm}
        for arm in study["arms"]:
            if arm not in self.arms and arm not in self.failed:
                raise MaskwiseError(
                    "an arm has no runs", got=arm, do="run the study to its end, or drop the arm"
                )
        self._check_tasks()
        self.scale = {task: self._pooled_sd(task) for task in self.tasks}
        self.unit = "SDs" if all(self.scale.values()) else "score"
        if self.tasks:
            self.outcomes["tasks"] = self._standardised(self.scale if self.unit == "SDs" else {})
            self.natural = self._standardised({})

    @staticmethod
    def _put(place: BySeed, seed: int, value: Any, record: Mapping[str, Any]) -> None:
        where = f"arm {record['arm']!r}, seed {seed}, {record.get('task') or record.get('masks')}"
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise MaskwiseError(
                f"a record is not a finite number ({where})", got=repr(value), do="rerun that stage"
            )
        if seed in place:
            raise MaskwiseError(f"measured twice ({where})", do="keep one line of records.jsonl")
        place[seed] = float(value)

    def failed_seeds(self, arm: str) -> set[int]:
        return {record["seed"] for record in self.failed.get(arm, [])}

    def _check_tasks(self) -> None:
        """Every run has every task. A run that failed half-way is left out of the tasks, whole."""
        for arm in self.arms:
            seeds = {seed for task in self.tasks for seed in self.outcomes[task].get(arm, {})}
            for seed in seeds:
                missing = [task for task in self.tasks if seed not in self.outcomes[task].get(arm, {})]
                if missing and seed not in self.failed_seeds(arm):
                    raise MaskwiseError(
                        "a task was measured in some runs only",
                        got=f"no {', '.join(missing)} for arm {arm!r}, seed {seed}",
                        do="run the study to its end",
                    )
                for task in self.tasks if missing else []:
                    self.outcomes[task].get(arm, {}).pop(seed, None)

    def _pooled_sd(self, task: str) -> float | None:
        """SD over runs about their arm's mean, at least one test item; None without two runs of an arm."""
        runs = [
            np.array(list(s.values())) for arm, s in self.outcomes[task].items() if arm != REFERENCE and s
        ]
        freedom = sum(len(x) - 1 for x in runs)
        if freedom == 0:
            return None
        items = self.study.get("tasks", {}).get(task, {}).get("test_items")
        sd = math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in runs) / freedom)
        return max(sd, 1 / items if items else 1e-3)

    def _standardised(self, scale: Mapping[str, float | None]) -> dict[str, BySeed]:
        return {
            arm: {
                seed: float(np.mean([self.outcomes[t][arm][seed] / (scale.get(t) or 1) for t in self.tasks]))
                for seed in self.outcomes[self.tasks[0]].get(arm, {})
            }
            for arm in self.arms
        }

    def units(self, arm: str) -> str:
        facts = self.study["arms"].get(arm, {})
        return str(facts.get("units") or facts.get("policy") or "token")

    def own_heldout(self, arm: str) -> list[str]:
        """A loss on the other kind of mask may lie above unigram for a good model (methods, section 3.3)."""
        facts = self.study["arms"].get(arm, {})
        default = ["whole-word" if self.units(arm) in WORD_UNITS else "token"]
        return [f"heldout:{kind}" for kind in facts.get("judged_on") or default]

    def gap_nats(self, arm: str) -> float | None:
        """Mean of unigram − loss on the arm's own kind of mask (the best of several); None if not measured."""
        gaps = []
        for own in self.own_heldout(arm):
            losses, unigram = self.outcomes.get(own, {}).get(arm, {}), self.unigram.get(own, {}).get(arm, {})
            gaps += [float(np.mean([unigram[s] - losses[s] for s in losses]))] if losses else []
        return max(gaps, default=None)

    def on_plateau(self, arm: str) -> bool:
        gap = self.gap_nats(arm)
        return gap is not None and gap < PLATEAU_NATS

    def at_chance(self, task: str, arm: str) -> bool:
        """Mean score ≤ majority (or 1/classes) + 2 standard errors of that share on the test items.

        Without test_items the margin is .02; without majority and classes nothing is called chance.
        """
        facts, scores = self.study.get("tasks", {}).get(task, {}), self.outcomes[task].get(arm, {})
        chance = facts.get("majority")
        if chance is None and facts.get("classes"):
            chance = 1 / facts["classes"]
        if chance is None or not scores:
            return False
        items = facts.get("test_items")
        margin = 2 * math.sqrt(max(chance * (1 - chance), 0) / items) if items else 0.02
        return float(np.mean(list(scores.values()))) <= chance + margin

    def describe(self, arm: str) -> dict[str, Any]:
        seeds = self.study["seeds"]
        gap = self.gap_nats(arm)
        return {
            "units": self.units(arm),
            "plateau": self.on_plateau(arm),
            "gap_nats": gap,
            "failures": len(self.failed.get(arm, [])),
            "scores": {  # by seed, in the order of study["seeds"]; null where the run failed
                name: [self.outcomes[name][arm].get(seed) for seed in seeds]
                for name in [*self.tasks, *self.heldout]
                if self.outcomes[name].get(arm)
            },
        }

    def references(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in self.tasks:
            facts, scores = self.study.get("tasks", {}).get(task, {}), self.outcomes[task].get(REFERENCE, {})
            found[task] = {REFERENCE: [scores[seed] for seed in sorted(scores)]}
            if facts.get("majority") is not None:
                found[task]["majority"] = facts["majority"]
        for name in self.heldout:
            values = [x for by_seed in self.unigram[name].values() for x in by_seed.values()]
            found[name] = {"unigram": float(np.mean(values))}
        return found


def _contrasts_of(table: _Table, arm: str, baseline: str) -> list[dict[str, Any]]:
    """The rows of one pair: tasks first (the primary one), each task, each held-out loss. Not judged yet.

    An arm whose objective has no held-out loss, and the reference, are compared on tasks alone. In a study
    without tasks the primary row is the held-out loss on the arm's own kind of mask.
    """
    heldout = [name for name in table.heldout if all(table.outcomes[name].get(a) for a in (arm, baseline))]
    outcomes = [*(["tasks"] if table.tasks else []), *table.tasks, *heldout]
    own = next((name for name in table.own_heldout(arm) if name in heldout), None)
    primary = "tasks" if table.tasks else own
    return [_contrast(table, arm, baseline, name, primary=name == primary) for name in outcomes]


def _contrast(table: _Table, arm: str, baseline: str, outcome: str, *, primary: bool) -> dict[str, Any]:
    sides = _paired(table, arm, baseline, outcome)
    d = paired_differences(*sides)
    heldout = outcome.startswith("heldout:")
    unit = "nats" if heldout else table.unit if outcome == "tasks" else "score"
    row: dict[str, Any] = {
        "arm": arm,
        "baseline": baseline,
        "outcome": outcome,
        "primary": primary,
        "n": len(d),
    }
    row |= {"unit": unit, **_estimate(d), "p": None, "p_adjusted": None}
    metrics = {facts.get("metric") for facts in table.study.get("tasks", {}).values()}
    row["metric"] = None if heldout or len(metrics) != 1 else metrics.pop()
    if outcome == "tasks":  # the same in natural units: the mean over tasks of plain score differences
        plain = paired_differences(*({s: table.natural[a][s] for s in sides[0]} for a in (arm, baseline)))
        estimate = _estimate(plain)
        row["natural"] = {key: estimate[key] for key in ("mean", "low", "high")}
    row["void"] = _why_void(table, arm, baseline, outcome, runs=len(d))
    row["differences"] = d.tolist()
    return row


def _paired(table: _Table, arm: str, baseline: str, outcome: str) -> tuple[BySeed, BySeed]:
    """Both sides on the seeds they share. Only a recorded failure excuses a missing seed."""
    sides = [dict(table.outcomes[outcome].get(name, {})) for name in (arm, baseline)]
    for mine, other, name in ((0, 1, arm), (1, 0, baseline)):
        lost = sorted(sides[other].keys() - sides[mine].keys() - table.failed_seeds(name))
        if lost and name != REFERENCE:
            raise MaskwiseError(
                f"arm {name!r} lacks seeds that its partner has ({outcome})",
                got=f"no seed {', '.join(map(str, lost))}",
                do="run the study to its end, or drop those seeds",
            )
    shared = sorted(sides[0].keys() & sides[1].keys())
    return {s: sides[0][s] for s in shared}, {s: sides[1][s] for s in shared}


def _estimate(d: np.ndarray) -> dict[str, float | None]:
    low, high = interval_by_rule(d)[:2] if len(d) > 1 else (None, None)
    effect = standardised_effect(d) if len(d) else math.nan
    return {
        "mean": float(d.mean()) if len(d) else None,
        "low": low,
        "high": high,
        "standardised": None if math.isnan(effect) else effect,
    }


def _why_void(table: _Table, arm: str, baseline: str, outcome: str, *, runs: int) -> str | None:
    pair = (arm, baseline)
    if runs == 0 or (runs == 1 and any(table.failed_seeds(name) for name in pair)):
        return "missing-runs"
    if outcome.startswith("heldout:") and table.units(arm) != table.units(baseline):
        return "different-units"
    if any(table.on_plateau(name) for name in pair if name != REFERENCE):
        return "plateau"
    tasks = table.tasks if outcome == "tasks" else [outcome] if outcome in table.tasks else []
    if tasks and all(table.at_chance(task, name) for task in tasks for name in pair):
        return "chance-level"
    return None


def _decide(rows: list[dict[str, Any]], *, tasks: int, alpha: float) -> None:
    """Writes p, p_adjusted, verdict, reason, better and more_runs; Holm runs over the primary rows."""
    family = [row for row in rows if row["primary"] and not row["void"]]
    tested = [row for row in family if row["n"] >= P_FROM_RUNS]
    for row in tested:
        row["p"] = sign_flip_test(row["differences"])
    # Those with too few runs for a p keep their place in the family, as p = 1.
    adjusted = holm([1.0 if row["p"] is None else row["p"] for row in family])
    for row, p in zip(family, adjusted):
        row["p_adjusted"] = p if row["p"] is not None else None
    by_pair = {(row["arm"], row["baseline"]): row for row in family}
    for row in rows:
        if tasks == 1 and row["outcome"] != "tasks" and not row["outcome"].startswith("heldout:"):
            twin = by_pair.get((row["arm"], row["baseline"]))  # one task: the same test in other units
            row |= {key: twin[key] for key in ("p", "p_adjusted")} if twin else {}
        _judge(row, alpha=alpha, family=max(len(family), 1))


def _judge(row: dict[str, Any], *, alpha: float, family: int) -> None:
    d = np.array(row.pop("differences"))
    void = row.pop("void")
    apart = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    if void:
        verdict, reason = "void", void
    elif row["n"] < P_FROM_RUNS:
        verdict, reason = ("suggests" if apart else "undecided"), "few-runs"
    elif row["p_adjusted"] is None:  # a secondary outcome: no test was spent on it
        verdict, reason = ("suggests" if apart else "undecided"), "secondary"
    elif row["p_adjusted"] < alpha and apart:
        verdict, reason = "decided", "significant"
    else:
        verdict, reason = ("suggests" if apart else "undecided"), "not-significant"
    better = None
    if verdict in ("decided", "suggests"):
        better = "arm" if (row["mean"] > 0) != row["outcome"].startswith("heldout:") else "baseline"
    more = None
    if row["primary"] and verdict in ("undecided", "suggests") and len(d) > 1:
        more = _more_runs(d, alpha=alpha / family)
    row |= {"verdict": verdict, "reason": reason, "better": better, "more_runs": more}


def _more_runs(d: np.ndarray, *, alpha: float) -> int | None:
    """How many more runs per arm would decide, at power .8, were the difference as large as it looks."""
    needed = runs_needed(float(d.std(ddof=1)), float(d.mean()), alpha=alpha, most=10_000)
    if needed is None:
        return None
    smallest = math.floor(1 - math.log2(alpha)) + 1  # fewer, and no sign-flip p can be below alpha
    return max(max(needed, smallest, P_FROM_RUNS) - len(d), 1)


# Words -----------------------------------------------------------------------------------------------


def describe_arms(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each arm does, in words ("masking 30 % of the tokens"); its name where words fail."""
    words = {name: _describe(facts) or name for name, facts in arms.items()}
    return {name: text if list(words.values()).count(text) == 1 else name for name, text in words.items()}


def _describe(facts: Mapping[str, Any]) -> str | None:
    paths = _leaves(facts.get("overrides") or {})
    if not all(re.search("policy|ratio|schedule|budget", path) for path in paths):
        return None  # it differs in something else too
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


def contrast_sentence(
    row: Mapping[str, Any], names: Mapping[str, str], *, plateau: Collection[str] = (), brief: bool = False
) -> str:
    """One row in plain English: who, by how much, how sure, what would settle it; `brief` for a headline."""
    arm, baseline = (names.get(row[side], row[side]) for side in ("arm", "baseline"))
    where = _where(row["outcome"])
    if row["verdict"] == "void":
        guilty = " and ".join(names.get(a, a) for a in (row["arm"], row["baseline"]) if a in plateau)
        because = {
            "missing-runs": "too few runs were finished",
            "different-units": "the arms mask different units, and the evaluation's mask would decide",
            "plateau": f"{guilty} learnt hardly more than word frequencies (the plateau); train longer",
            "chance-level": "both are no better than always giving the commonest answer",
        }[row["reason"]]
        return _sentence(f"no verdict on {arm} against {baseline} {where}: {because}.")
    heldout = row["outcome"].startswith("heldout:")
    ahead = (row["mean"] > 0) != heldout
    first, second = (arm, baseline) if ahead else (baseline, arm)
    facts = [f"{row['n']} run{'s' if row['n'] != 1 else ''} each"]
    if row["low"] is not None and not brief:
        scale, unit = (100, "points") if row["unit"] == "score" else (1, row["unit"])
        ends = sorted((1 if row["mean"] > 0 else -1) * scale * row[end] for end in ("low", "high"))
        facts.append(f"95 % interval {ends[0]:.2g} to {ends[1]:.2g} {unit}".replace("-", "−"))
    if row["p_adjusted"] is not None:
        facts.append(f"p = {row['p_adjusted']:.2g}" + ("" if brief else " after Holm's correction"))
    runs, amount = "; ".join(facts), _amount(row, brief=brief)
    more = ""
    if row["more_runs"]:
        more = f" About {row['more_runs']} more run{'s' if row['more_runs'] > 1 else ''} of each would decide"
    if row["verdict"] == "decided":
        return _sentence(f"{first} beats {second} {where} by {amount} ({runs}).")
    if row["verdict"] == "suggests":
        doubt = "suggests, not proof" if row["reason"] != "secondary" else "suggests; not a primary test"
        told = f"{first} did better than {second} {where} by {amount} ({runs}: {doubt})."
        return _sentence(told + (f"{more}." if more else ""))
    if row["mean"] == 0:
        return _sentence(f"not decided: {arm} and {baseline} came out equal {where} ({runs}).")
    if more:
        more += ", if the difference is as large as it looks."
    elif row["n"] == 1 and row["primary"]:
        more = " One run says nothing about the next: start with three seeds."
    return _sentence(f"not decided: {first} is ahead of {second} {where} by {amount} ({runs}).{more}")


def headline_sentence(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], baseline: str) -> str:
    """The page in a sentence or two, from the primary rows: the best choice, by how much, how sure."""
    base = names.get(baseline, baseline)
    sure = {"decided": 2, "suggests": 1}
    judged = [row for row in rows if row["verdict"] != "void"]
    if not rows:
        if len(names) > 1:
            return _sentence(
                "nothing was measured that the arms could be compared by: name tasks, or held-out masks."
            )
        return _sentence(f"one arm only ({base}): there is nothing to compare yet.")
    if not judged:
        return rows[0]["sentence"]
    if winners := [row for row in judged if row["better"] == "arm"]:
        best = max(winners, key=lambda row: (sure[row["verdict"]], abs(row["mean"])))
        return contrast_sentence(best, names, brief=True)
    nearest = max(judged, key=lambda row: row["mean"] * (-1 if row["unit"] == "nats" else 1))
    told = contrast_sentence(nearest, names, brief=True)
    keep = (
        all(row["better"] == "baseline" for row in judged) and len({row["baseline"] for row in judged}) == 1
    )
    return _sentence(f"keep {base}: nothing that was tried did better. {told}") if keep else told


def _where(outcome: str) -> str:
    if outcome == "tasks":
        return "on the tasks"
    return f"in held-out loss ({outcome[8:]} masks)" if outcome.startswith("heldout:") else f"on {outcome}"


def _amount(row: Mapping[str, Any], *, brief: bool) -> str:
    if row["unit"] == "nats":
        return f"{abs(row['mean']):.2f} nats"
    plain = row["natural"]["mean"] if "natural" in row else row["mean"]
    points = f"{100 * abs(plain):.1f} {row['metric'] + ' ' if row['metric'] else ''}points"
    spread = f"{abs(row['mean']):.1f} times the spread between seeds"
    if (
        row["unit"] == "SDs" and plain * row["mean"] <= 0
    ):  # tasks of different scale: plain points point elsewhere
        return spread
    return points if row["unit"] != "SDs" or brief else f"{points}, or {spread}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
