"""Why a verdict is what it is: each reason has a code, what it does (its effect), and a sentence for people.

| effect   | codes |
|----------|-------|
| "voids"  | gate-closed, missing-runs (no pair is left), different-units, different-tokenizers, plateau, chance-level |
| "tests"  | significant, not-significant, interval-holds-zero, few-runs, secondary, within-margin |
| "caps"   | no-dev-selection: at most "suggests" |
| "said"   | no-worse, unmatched-compute, grid-border, item-noise, overlap, missing-runs (some pairs are left) |

few-runs and secondary cap as well: no test is made, so nothing can be decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskwise.constants import NATS, PLATEAU_NATS, REFERENCE
from maskwise.files import Candidate, Contrast, Reason
from maskwise.study.power import P_FROM_RUNS
from maskwise.study.verdict.table import TOLERANCE, Table

COSTS = {
    "steps": "steps",
    "tokens": "tokens read",
    "targets": "targets (tokens to predict)",
    "flops": "FLOPs",
    "seconds": "seconds",
}
INCOMPARABLE = {
    "different-units": "the arms mask different units, so the result would depend on the mask of the evaluation",
    "different-tokenizers": "the arms have different tokenizers, so a figure per token measures different things",
}

MOST_TIMES = 10
"""No number of further steps is named that would be more than so many times those that were taken."""


class Reasons:
    """Finds the reasons of rows. ``names`` are the arms in words.

    Attributes:
        closed: the primary row of a gate that did not open; None where there is no gate, or it is open.
    """

    def __init__(self, table: Table, names: Mapping[str, str]):
        self.table, self.names = table, names
        self.closed: Contrast | None = None

    def _named(self, arms: Sequence[str]) -> str:
        return " and ".join(self.names.get(arm, arm) for arm in arms)

    def void(self, row: Contrast) -> list[Reason]:
        """Reasons for which nothing can be said."""
        table, pair, outcome = self.table, (row["arm"], row["baseline"]), row["outcome"]
        reasons: list[Reason] = []
        if self.closed:
            oracle, beaten = (self._named([self.closed[side]]) for side in ("arm", "baseline"))
            sentence = f"the positive control failed: it is not decided that {oracle} beats {beaten}"
            sentence += ", so this study could not have seen a smaller difference either"
            reasons.append({"code": "gate-closed", "effect": "voids", "sentence": sentence})
        lost = any(table.failed.get(arm) for arm in pair)
        if row["n"] == 0 or (row["n"] == 1 and lost):
            sentence = "too few runs finished"
            reasons.append(
                {"code": "missing-runs", "effect": "voids", "sentence": sentence, "runs": row["n"]}
            )
        masked = outcome.startswith("heldout:") or "perplexity" in outcome
        by_token = masked or ":open-" in outcome
        why = table.incomparable(*pair, outcome)
        if why and ((masked and why == "different-units") or (by_token and why == "different-tokenizers")):
            reasons.append({"code": why, "effect": "voids", "sentence": INCOMPARABLE[why]})
        if stuck := [arm for arm in pair if arm != REFERENCE and table.on_plateau(arm)]:
            sentence = (
                f"{self._named(stuck)} learnt little more than word frequencies (the plateau: a loss less than"
                f" {PLATEAU_NATS} nats below that of word frequencies; {self._short(stuck)}); train longer"
            )
            reasons.append({"code": "plateau", "effect": "voids", "sentence": sentence, "arms": stuck})
        if all(table.at_chance(name, arm) for name in table.measured(outcome) for arm in pair):
            sentence = "neither arm scores better than guessing (chance level)"
            reasons.append({"code": "chance-level", "effect": "voids", "sentence": sentence})
        return reasons

    def _short(self, stuck: Sequence[str]) -> str:
        """How much is missing to leave the plateau, and after how many more steps it may be there at this rate."""
        told = []
        for arm in stuck:
            gap, steps = self.table.gap_nats(arm) or 0.0, self.table.compute(arm).get("steps")
            part = f"{PLATEAU_NATS - gap:.2f} nats short"
            if steps and gap > PLATEAU_NATS / MOST_TIMES:
                more = steps * (PLATEAU_NATS - gap) / gap
                part += f", about {float(f'{more:.1g}'):,.0f} more steps at this rate"
            told.append(part)
        return "; ".join(dict.fromkeys(told))

    def tested(self, row: Contrast, *, apart: bool, alpha: float) -> Reason:
        """What the test says, or why there is none; ``apart``: the interval does not hold zero."""
        n, p = row["n"], row["p_adjusted"]
        if n < P_FROM_RUNS:
            runs = "one run of each arm" if n == 1 else f"only {n} runs of each arm"
            sentence = f"{runs}: with fewer than {P_FROM_RUNS}, the exact test cannot give p < .05"
            return {"code": "few-runs", "effect": "tests", "sentence": sentence, "runs": n}
        if p is None:
            sentence = (
                "this is not the primary outcome: it helps to explain the result, and no test was spent on it"
            )
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

    def within_margin(self, row: Contrast) -> list[Reason]:
        """That the interval lies within the margin of the study, in points of a score; from 6 pairs on."""
        margin, low, high = self._ends(row)
        if margin is None or low is None or high is None:
            return []
        ends = f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "−")
        sentence = f"the 95 % interval, {ends} points, lies within ±{100 * margin:g} points"
        inside = -margin <= low and high <= margin
        return [{"code": "within-margin", "effect": "tests", "sentence": sentence}] if inside else []

    def _ends(self, row: Contrast) -> tuple[float | None, float | None, float | None]:
        """The margin of the study and the ends of the interval in scores; Nones where a margin says nothing."""
        margin, plain = self.table.study.get("margin"), row.get("natural", row)
        scores = "natural" in row or row["unit"] == "score"
        if not margin or not scores or row["n"] < P_FROM_RUNS:
            return None, None, None
        return margin, plain["low"], plain["high"]

    def no_worse(self, row: Contrast) -> list[Reason]:
        """That the arm is not decided to be better, and is worse by less than the margin of the study."""
        margin, low, high = self._ends(row)
        if margin is None or low is None or high is None or not -margin < low <= 0 or high <= margin:
            return []
        sentence = f"no worse by {100 * margin:g} points: the 95 % interval begins at {100 * low:.1f}"
        return [{"code": "no-worse", "effect": "said", "sentence": sentence.replace("-", "−")}]

    def caps(self, row: Contrast) -> list[Reason]:
        """Reasons for which a verdict is at most "suggests".

        A gate has none: it asks whether the study, set as it is, sees a difference that was built into it.
        """
        reasons: list[Reason] = []
        if "gate" in row:
            return reasons
        arms = [arm for arm in (row["arm"], row["baseline"]) if arm != REFERENCE]
        if cause := self._unselected(arms):
            why, sentence = cause
            reasons.append({"code": "no-dev-selection", "effect": "caps", "sentence": sentence, "why": why})
        return reasons

    def _unselected(self, arms: list[str]) -> tuple[str, str] | None:
        """Whether settings were chosen alike: on dev data, on dev seeds, and from the same grid for every arm."""
        search = self.table.study.get("search")
        if not search:
            return (
                "no-search",
                "no settings were searched for each arm: with another learning rate the order might change",
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
        reasons += self._unmatched(row)
        if edge := [arm for arm in pair if arm in table.selection and table.selection[arm]["border"]]:
            sentence = f"the best setting of {self._named(edge)} is at the edge of the grid"
            sentence += ": a better one may lie outside"
            reasons.append({"code": "grid-border", "effect": "said", "sentence": sentence, "arms": edge})
        items = row["items"]
        if items and items["low"] <= 0 <= items["high"] and row["mean"]:
            half = 100 * (items["high"] - items["low"]) / 2
            amount = f"{half / 100:.2f} nats" if row["metric"] == NATS else f"{half:.1f} points"
            sentence = "other test items could reverse the result: the choice of items alone makes the"
            sentence += f" difference uncertain by about {amount}"
            reasons.append({"code": "item-noise", "effect": "said", "sentence": sentence, "points": half})
        for line in table.overlap:
            if line["task"] in table.measured(row["outcome"]) and line["overlapping"]:
                task, items_shared = line["task"], line["overlapping"]
                sentence = (
                    f"{items_shared:,} of {line['items']:,} test items of {task} also occur in the corpus"
                )
                overlap: Reason = {"code": "overlap", "effect": "said", "sentence": sentence, "task": task}
                reasons.append(overlap | {"items": line["items"], "overlapping": items_shared})
        return reasons

    def _unmatched(self, row: Contrast) -> list[Reason]:
        """Quantities by which the two differ by more than 5 %; the one that was to be matched first."""
        if REFERENCE in (row["arm"], row["baseline"]):
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


def _grid(candidates: Sequence[Candidate]) -> list[str]:
    """The settings that were tried, without what they scored."""
    return sorted(str(candidate["setting"]) for candidate in candidates)
