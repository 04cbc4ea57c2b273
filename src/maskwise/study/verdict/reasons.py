"""Why a verdict is what it is: each reason has a code, what it does (its effect), and a sentence for people.

| effect   | codes |
|----------|-------|
| "voids"  | gate-closed, no-task-tells, missing-runs (no pair is left), plateau, forgotten, by-heart, chance-level |
| "voids"  | different-units, different-tokenizers, different-formats |
| "tests"  | significant, not-significant, interval-holds-zero, few-runs, secondary, false-discovery, within-margin |
| "caps"   | runs-added, no-dev-selection, grid-border: at most "suggests" |
| "said"   | no-worse, unmatched-compute, item-noise, overlap, no-help, missing-runs (some pairs are left) |

few-runs and secondary cap as well: no test is made, so nothing can be decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import (
    FEWEST_DEV_SEEDS,
    NATS,
    OTHER_TASKS,
    OWN_TASK,
    PLATEAU_NATS,
    REFERENCE,
    overlap_words,
)
from maskwise.files import Candidate, Contrast, Reason
from maskwise.study.power import P_FROM_RUNS, can_decide, look_weight
from maskwise.study.statistics import interval_by_rule
from maskwise.study.verdict.table import TOLERANCE, Table

COSTS = {
    "steps": "steps",
    "tokens": "tokens read",
    "targets": "targets (tokens to predict)",
    "flops": "FLOPs",
}
INCOMPARABLE = {
    "different-units": "the arms mask different units, so the result would depend on the mask of the evaluation",
    "different-tokenizers": "the arms have different tokenizers, so a figure per token measures different things",
    "different-formats": "the arms learnt to write in different formats, and each is better in its own",
}
SHORT = f"a loss less than {PLATEAU_NATS} nats below that of word frequencies"
STUCK = {
    "by-heart": "predicted held-out text worse than word frequencies do ({}): the text was learnt by heart,"
    " or other masks alone, or the training diverged",
    "forgotten": f"lost on these held-out masks what the start knew ({SHORT}; {{}}): only other masks were"
    " learnt, or the training diverged",
    "plateau": f"learnt little more than word frequencies (the plateau: {SHORT}; {{}}); train longer",
}
"""Why a model cannot be compared (``Table.why_stuck``)."""

MOST_TIMES = 10
"""No number of further steps is named that would be more than so many times those that were taken."""


class Reasons:
    """Finds the reasons of rows. ``names`` are the arms in words.

    Attributes:
        closed: the primary row of a gate that did not open; None where there is no gate, or it is open.
        family: how many tests share the error.
    """

    def __init__(self, table: Table, names: Mapping[str, str]):
        self.table, self.names = table, names
        self.closed: Contrast | None = None
        self.family = 1

    def _named(self, arms: Sequence[str]) -> str:
        return " and ".join(self.names.get(arm, arm) for arm in arms)

    def void(self, row: Contrast) -> list[Reason]:
        """Reasons for which nothing can be said."""
        table, pair, outcome = self.table, (row["arm"], row["baseline"]), row["outcome"]
        reasons = self._gated()
        names = table.measured(outcome, *pair)
        lost = any(table.failed.get(arm) for arm in pair)
        if row["n"] == 0 or (row["n"] == 1 and lost):
            sentence = "too few runs finished"
            reasons.append({"code": "missing-runs", "effect": "voids", "sentence": sentence, "runs": row["n"]})
        reasons += self._incomparable(pair, outcome)
        trained = [arm for side in pair for arm in table.behind(side)]
        for code, told in STUCK.items():
            if stuck := [arm for arm in dict.fromkeys(trained) if table.why_stuck(arm) == code]:
                sentence = f"{self._named(stuck)} {told.format(self._short(stuck, code))}"
                reasons.append({"code": code, "effect": "voids", "sentence": sentence, "arms": stuck})
        if all(table.at_chance(name, arm) for name in names for arm in pair):
            sentence = "neither arm scores better than guessing (chance level)"
            reasons.append({"code": "chance-level", "effect": "voids", "sentence": sentence})
        if outcome == "tasks" and REFERENCE not in pair and not table.counted:
            least = f"{100 * table.study.get('helps', 0):g} %"
            sentence = f"pre-training helps in under {least} of the runs on each task, so none tells the arms apart"
            reasons.append({"code": "no-task-tells", "effect": "voids", "sentence": sentence})
        return reasons

    def _gated(self) -> list[Reason]:
        """That the gate of the study is closed."""
        if self.closed is None:
            return []
        oracle, beaten = (self._named([self.closed[side]]) for side in ("arm", "baseline"))
        sentence = f"the positive control failed: it is not decided that {oracle} beats {beaten}"
        sentence += ", so this study could not have seen a smaller difference either"
        return [{"code": "gate-closed", "effect": "voids", "sentence": sentence}]

    def _incomparable(self, pair: tuple[str, str], outcome: str) -> list[Reason]:
        """That a figure measures different things in two arms."""
        table, why = self.table, self.table.incomparable(*pair, outcome)
        masked = outcome.startswith("heldout:") or "perplexity" in outcome
        nats = any(table.task_facts(name).get("metric") == NATS for name in table.measured(outcome, *pair))
        by_token = masked or nats or ":open-" in outcome or "per token" in outcome
        if why is None or not (masked or (by_token and why == "different-tokenizers")):
            return []
        return [{"code": why, "effect": "voids", "sentence": INCOMPARABLE[why]}]

    def no_share(self, pairs: Sequence[tuple[str, str]], outcome: str) -> str | None:
        """Why no share of a gain can be told, in words; None where one can."""
        whys = [*self._gated(), *(reason for pair in pairs for reason in self._incomparable(pair, outcome))]
        return whys[0]["sentence"] if whys else None

    def _short(self, stuck: Sequence[str], code: str) -> str:
        """How much is missing to leave the plateau, and after how many more steps it may be there at this rate."""
        told = []
        for arm in stuck:
            gap, steps = self.table.gap_nats(arm) or 0.0, self.table.compute(arm).get("steps")
            part = f"{-gap:.2f} nats" if code == "by-heart" else f"{PLATEAU_NATS - gap:.2f} nats short"
            if steps and gap > PLATEAU_NATS / MOST_TIMES and code == "plateau":
                more = steps * (PLATEAU_NATS - gap) / gap
                part += f", about {float(f'{more:.1g}'):,.0f} more steps at this rate"
            told.append(part)
        return "; ".join(dict.fromkeys(told))

    def tested(self, row: Contrast, *, apart: bool, alpha: float) -> Reason:
        """What the test says, or why there is none; ``apart``: the interval does not hold zero."""
        n, p, rate = row["n"], row["p_adjusted"], row.get("q")
        if apart and rate is not None and rate >= alpha:
            sentence = "the 95 % interval excludes zero, as those of some rows beside the primary ones do by chance:"
            sentence += f" among all of this page, the false discovery rate here is {rate:.2g}"
            return {"code": "false-discovery", "effect": "tests", "sentence": sentence}
        if n < P_FROM_RUNS:
            runs = "one run of each arm" if n == 1 else f"only {n} runs of each arm"
            sentence = f"{runs}: with fewer than {P_FROM_RUNS}, the exact test cannot give p < .05"
            return {"code": "few-runs", "effect": "tests", "sentence": sentence, "runs": n}
        if p is None:
            sentence = "this is not the primary outcome: it helps to explain the result, and no test was spent on it"
            return {"code": "secondary", "effect": "tests", "sentence": sentence}
        code, sentence = "not-significant", f"the exact sign-flip test gives p = {p:.2g}"
        if p < alpha and apart:
            code, sentence = "significant", f"{sentence}, and the 95 % interval excludes zero"
        elif p < alpha:
            code, sentence = (
                "interval-holds-zero",
                f"{sentence}, but the 95 % interval includes zero",
            )
        return {"code": code, "effect": "tests", "sentence": sentence, "p": p}

    def within_margin(self, row: Contrast, plain: NDArray[np.float64], *, alpha: float) -> list[Reason]:
        """That the interval lies within the margin of the study; from 6 pairs on.

        Two one-sided tests (Schuirmann 1987), each at alpha over the number of tests that share the error, and at
        no more than half of alpha, so that the interval of 95 % that is printed suffices for two contrasts.

        Args:
            plain: the differences in scores or nats.
        """
        margin = self._margin(row)
        if margin is None:
            return []
        study = self.table.study
        weight = look_weight(study.get("looks"), len(study["seeds"]))
        confidence = 1 - alpha * min(1.0, 2 * weight / max(1, self.family))
        low, high = interval_by_rule(plain, confidence=confidence)[:2]
        if low < -margin or high > margin:
            return []
        scale, unit = _printed(row)
        ends = f"{scale * low:.{1 if scale > 1 else 2}f} to {scale * high:.{1 if scale > 1 else 2}f}".replace("-", "−")
        sentence = f"the {100 * confidence:.3g} % interval, {ends} {unit}, lies within ±{scale * margin:g} {unit}"
        return [{"code": "within-margin", "effect": "tests", "sentence": sentence}]

    def _margin(self, row: Contrast) -> float | None:
        """The margin of the study, in scores or nats; None where it says nothing of the row."""
        measured = "natural" in row or row["unit"] in ("score", "nats")
        return self.table.study.get("margin") if measured and row["n"] >= P_FROM_RUNS else None

    def no_worse(self, row: Contrast) -> list[Reason]:
        """That the arm is not decided to be better, and is worse by less than the margin of the study."""
        margin, plain = self._margin(row), row.get("natural", row)
        low, high = plain["low"], plain["high"]
        if margin is None or low is None or high is None:
            return []
        if not row["higher_is_better"]:
            low, high = -high, -low
        if not -margin < low <= 0 or high <= margin:
            return []
        scale, unit = _printed(row)
        begins = f"{scale * low:.{1 if scale > 1 else 2}f}"
        sentence = f"no worse by {scale * margin:g} {unit}: the 95 % interval begins at {begins}"
        return [{"code": "no-worse", "effect": "said", "sentence": sentence.replace("-", "−")}]

    def caps(self, row: Contrast) -> list[Reason]:
        """Reasons for which a verdict is at most "suggests".

        A gate has none: it asks whether the study, set as it is, sees a difference that was built into it.
        """
        reasons: list[Reason] = []
        if again := self._looked_before():
            sentence = f"the runs were changed after a verdict on {again} runs, without a plan (study.looks):"
            sentence += " each look has its own chance of an error, and together they have more than 5 %"
            reasons.append({"code": "runs-added", "effect": "caps", "sentence": sentence, "runs": again})
        if "gate" in row:
            return reasons
        arms = [*dict.fromkeys(arm for side in (row["arm"], row["baseline"]) for arm in self.table.behind(side))]
        if cause := self._unselected(arms):
            why, sentence = cause
            reasons.append({"code": "no-dev-selection", "effect": "caps", "sentence": sentence, "why": why})
        if edge := [arm for arm in arms if self.table.selection.get(arm, {}).get("border")]:
            sentence = f"the best setting of {self._named(edge)} is at the edge of the grid"
            sentence += ": a better one may lie outside"
            reasons.append({"code": "grid-border", "effect": "caps", "sentence": sentence, "arms": edge})
        return reasons

    def _looked_before(self) -> int | None:
        """The runs of an earlier verdict that could have decided, and was not planned; None without one."""
        study = self.table.study
        now = study["seeds"]
        for look in study.get("looked") or ():
            then = look.get("seeds", now[: look["runs"]])
            planned = bool(study.get("looks")) and look["looks"] == study.get("looks") and {*then} <= {*now}
            changed = (look["runs"], {*then}) != (len(now), {*now})
            if changed and not planned and can_decide(look["runs"], look.get("contrasts", 1)):
                return look["runs"]
        return None

    def _unselected(self, arms: list[str]) -> tuple[str, str] | None:
        """Whether settings were chosen alike: on dev data, on dev seeds, and from the same grid for every arm."""
        search = self.table.study.get("search")
        if not search:
            return (
                "no-search",
                "no settings were searched for each arm: with another learning rate the order might change",
            )
        if len(search["seeds"]) < FEWEST_DEV_SEEDS:
            return (
                "one-dev-seed",
                "settings were chosen on one dev seed: on another, others might have been chosen",
            )
        if shared := sorted(set(search["seeds"]) & set(self.table.study["seeds"])):
            seeds = ", ".join(map(str, shared))
            return "shared-seeds", f"settings were chosen on seeds that are also compared ({seeds})"
        selections = [self.table.selection.get(arm) for arm in arms]
        if lost := [arm for arm, line in zip(arms, selections) if line is None or line["chosen"] is None]:
            return "no-choice", f"the search chose no setting for {self._named(lost)}"
        grids = [_grid(line["candidates"]) for line in selections if line]
        if any(grid != grids[0] for grid in grids):
            return "different-grids", "the arms were searched over different grids"
        return None

    def said(self, row: Contrast) -> list[Reason]:
        """What a reader must know, and what leaves the verdict as it is."""
        table, pair = self.table, (row["arm"], row["baseline"])
        reasons = self.no_worse(row) if row["primary"] else []
        planned = len(table.study["seeds"])
        if row["n"] < planned and any(table.failed.get(arm) for arm in pair):
            missing = planned - row["n"]
            sentence = f"{missing} of {planned} pairs of runs {'is' if missing == 1 else 'are'} missing"
            sentence += ": runs that fail may not be a random sample"
            counts: Reason = {
                "code": "missing-runs",
                "effect": "said",
                "sentence": sentence,
                "missing": missing,
            }
            reasons.append(counts | {"planned": planned})
        reasons += self._without_help(row)
        reasons += self._unmatched(row)
        items = row["items"]
        if items and items["low"] <= 0 <= items["high"] and row["mean"]:
            half = 100 * (items["high"] - items["low"]) / 2
            amount = f"{half / 100:.2f} nats" if row["metric"] == NATS else f"{half:.1f} points"
            sentence = "other test items could reverse the result: the choice of items alone makes the"
            sentence += f" difference uncertain by about {amount}"
            reasons.append({"code": "item-noise", "effect": "said", "sentence": sentence, "points": half})
        for line in table.overlap:
            if line["task"] in table.measured(row["outcome"], *pair) and line["overlapping"]:
                task, items_shared = line["task"], line["overlapping"]
                sentence = overlap_words(items_shared, line["items"], task)
                overlap: Reason = {"code": "overlap", "effect": "said", "sentence": sentence, "task": task}
                reasons.append(overlap | {"items": line["items"], "overlapping": items_shared})
        return reasons

    def _without_help(self, row: Contrast) -> list[Reason]:
        """The tasks that the primary outcome leaves out; of a row of such a task, that it is one."""
        table, least = self.table, f"{100 * self.table.study.get('helps', 0):g} %"
        rule = f"pre-training helps there in less than {least} of the runs, on dev rows (study.helps)"
        mine = table.measured(row["outcome"], row["arm"], row["baseline"])
        left = [task for task in table.tasks if task not in table.counted]
        if row["outcome"] in left:
            sentence = f"{row['outcome']} is not part of the primary outcome: {rule}"
        elif row["outcome"] == "tasks" and (left := [task for task in left if task not in mine]):
            sentence = f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} left out: {rule}"
        else:
            return []
        return [{"code": "no-help", "effect": "said", "sentence": sentence}]

    def _unmatched(self, row: Contrast) -> list[Reason]:
        """Quantities by which the two differ by more than 5 %; the one that was to be matched first."""
        if {row["arm"], row["baseline"]} & {REFERENCE, OWN_TASK, OTHER_TASKS}:  # several arms, or none that was trained
            return []
        arm, baseline = self._named([row["arm"]]), self._named([row["baseline"]])
        by, ratios = row["compute"]["by"], row["compute"]["ratios"]
        off = {key: ratio for key, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE}
        others = ", ".join(f"{ratio:.2g} times the {COSTS[key]}" for key, ratio in off.items() if key != by)
        if not ratios:
            sentence = "the compute of the arms was not recorded"
        elif not off:
            return []
        elif by and by in off:
            sentence = f"not matched: {arm} used {off[by]:.2g} times the {COSTS[by]} of {baseline}"
            sentence += f"; {others}" if others else ""
        else:
            sentence = (f"at equal {COSTS[by]} " if by else "") + f"{arm} used {others} of {baseline}"
        return [{"code": "unmatched-compute", "effect": "said", "sentence": sentence, "ratios": off}]


def _printed(row: Contrast) -> tuple[float, str]:
    """What the figures of a row are multiplied by for people, and their unit."""
    return (1, NATS) if NATS in (row["metric"], row["unit"]) else (100, "points")


def _grid(candidates: Sequence[Candidate]) -> list[str]:
    """The settings that were tried, without what they scored."""
    return sorted(str(candidate["setting"]) for candidate in candidates)
