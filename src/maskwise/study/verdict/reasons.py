"""Why a verdict is what it is: machine codes, each with a sentence and with what it does to the verdict.

| effect   | codes |
|----------|-------|
| "voids"  | missing-runs (no pair is left), different-units, different-tokenizers, plateau, chance-level |
| "tests"  | significant, not-significant, interval-holds-zero, few-runs, secondary |
| "caps"   | no-dev-selection, stopped-early: at most "suggests" |
| "said"   | unmatched-compute, grid-border, item-noise, overlap, missing-runs (some pairs are left): it stands |

few-runs and secondary cap as well: no test is made, so nothing can be decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskwise.study.power import P_FROM_RUNS
from maskwise.study.verdict.table import PLATEAU_NATS, REFERENCE, TOLERANCE, Table

COSTS = {
    "steps": "steps",
    "tokens": "tokens read",
    "targets": "targets (tokens to predict)",
    "flops": "FLOPs",
    "seconds": "seconds",
}


INCOMPARABLE = {
    "different-units": "the arms mask different units, and the evaluation's mask would decide",
    "different-tokenizers": "the arms have different tokenizers, and what is asked for each token is another thing",
}


class Reasons:
    """Finds the reasons of rows. `names` are the arms in words."""

    def __init__(self, table: Table, names: Mapping[str, str]):
        self.table, self.names = table, names

    def name(self, arm: str) -> str:
        return self.names.get(arm, arm)

    def void(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Reasons for which nothing can be said."""
        table, pair = self.table, (row["arm"], row["baseline"])
        found = []
        lost = any(table.failed.get(arm) or arm in table.stopped for arm in pair)
        if row["n"] == 0 or (row["n"] == 1 and lost):
            found.append(_reason("missing-runs", "voids", "too few runs were finished"))
        masked = row["outcome"].startswith("heldout:") or "perplexity" in row["outcome"]
        why = table.incomparable(*pair)
        by_token = masked or ":open-" in row["outcome"]
        if (masked and why == "different-units") or (by_token and why == "different-tokenizers"):
            found.append(_reason(why, "voids", INCOMPARABLE[why]))
        if stuck := [arm for arm in pair if arm != REFERENCE and table.on_plateau(arm)]:
            who = " and ".join(map(self.name, stuck))
            told = f"{who} learnt hardly more than word frequencies (the plateau: less than {PLATEAU_NATS} nats below"
            found.append(_reason("plateau", "voids", told + " their loss); train longer", arms=stuck))
        measured = table.tasks if row["outcome"] == "tasks" else [row["outcome"]]
        if all(table.at_chance(name, arm) for name in measured for arm in pair):
            told = "both are no better than who knows nothing (chance level)"
            found.append(_reason("chance-level", "voids", told))
        return found

    def tested(self, row: Mapping[str, Any], *, apart: bool, alpha: float) -> dict[str, Any]:
        """What the test says, or why there is none."""
        n, p = row["n"], row["p_adjusted"]
        if n < P_FROM_RUNS:
            runs = "one run of each arm" if n == 1 else f"only {n} runs of each arm"
            told = f"{runs}: below {P_FROM_RUNS} no exact test can be below .05"
            return _reason("few-runs", "tests", told, runs=n)
        if p is None:
            told = "not a primary outcome: it explains, and no test was spent on it"
            return _reason("secondary", "tests", told)
        if p >= alpha:
            return _reason("not-significant", "tests", f"the exact sign-flip test gives p = {p:.2g}", p=p)
        if not apart:
            told = f"the test gives p = {p:.2g}, but the 95 % interval holds zero"
            return _reason("interval-holds-zero", "tests", told, p=p)
        told = f"the exact sign-flip test gives p = {p:.2g}, and the 95 % interval is clear of zero"
        return _reason("significant", "tests", told, p=p)

    def caps(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Reasons for which a verdict is at most "suggests"."""
        table, found = self.table, []
        arms = [arm for arm in (row["arm"], row["baseline"]) if arm != REFERENCE]
        if told := self._unselected(arms):
            found.append(_reason("no-dev-selection", "caps", told))
        if early := [arm for arm in arms if arm in table.stopped]:
            who = " and ".join(map(self.name, early))
            told = (
                f"{who} was stopped early, because it looked hopeless: a run of bad luck stops an arm and stays in"
                " its mean, so the difference looks larger than it is"
            )
            found.append(_reason("stopped-early", "caps", told, arms=early))
        return found

    def _unselected(self, arms: list[str]) -> str | None:
        """Selection on dev data and dev seeds only; every arm gets the same small grid (methods, section 5)."""
        search = self.table.study.get("search")
        if not search:
            return "no setting was searched for each arm: with another learning rate the order may turn"
        shared = sorted(set(search.get("seeds") or ()) & set(self.table.study["seeds"]))
        if shared:
            return f"settings were chosen on seeds that are also compared ({', '.join(map(str, shared))})"
        if lost := [arm for arm in arms if self.table.selection.get(arm, {}).get("chosen") is None]:
            return f"the search left no choice for {' and '.join(map(self.name, lost))}"
        grids = [_grid(self.table.selection[arm].get("candidates")) for arm in arms]
        return (
            None if all(grid == grids[0] for grid in grids) else "the arms were searched over different grids"
        )

    def said(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What must be said, and leaves the verdict as it is."""
        table, found, pair = self.table, [], (row["arm"], row["baseline"])
        planned = len(table.study["seeds"])
        if row["n"] < planned and any(table.failed.get(arm) for arm in pair):
            told = f"{planned - row['n']} of {planned} pairs are missing: runs that fail may not be a random choice"
            found.append(_reason("missing-runs", "said", told))
        found += self._compute(row)
        if edge := [arm for arm in pair if table.selection.get(arm, {}).get("border")]:
            who = " and ".join(map(self.name, edge))
            told = f"the best setting of {who} lies at the border of the grid: a better one may lie outside"
            found.append(_reason("grid-border", "said", told, arms=edge))
        items = row["items"]
        if items and items["low"] <= 0 <= items["high"] and row["mean"]:
            half = 100 * (items["high"] - items["low"]) / 2
            told = f"other test items could turn it: they alone make a difference uncertain by about {half:.1f} points"
            found.append(_reason("item-noise", "said", told))
        tasks = table.tasks if row["outcome"] == "tasks" else [row["outcome"]]
        for line in table.overlap:
            if line.get("task") in tasks and line.get("overlapping"):
                told = f"{line['overlapping']:,} of {line['items']:,} test items of {line['task']} stand in the corpus"
                found.append(_reason("overlap", "said", told))
        return found

    def _compute(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Quantities by which the two differ by more than 5 %; the one that was to be matched first."""
        if REFERENCE in (row["arm"], row["baseline"]):
            return []
        arm, baseline = self.name(row["arm"]), self.name(row["baseline"])
        by, ratios = row["compute"]["by"], row["compute"]["ratios"]
        if not ratios:
            return [_reason("unmatched-compute", "said", "what the arms cost was not recorded", ratios={})]
        off = {key: ratio for key, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE}
        if not off:
            return []
        others = ", ".join(f"{ratio:.2g} times the {COSTS[key]}" for key, ratio in off.items() if key != by)
        if by in off:
            told = f"not matched: {arm} had {off[by]:.2g} times the {COSTS[by]} of {baseline}"
            told += f"; {others}" if others else ""
        else:
            told = (f"at equal {COSTS[by]} " if by else "") + f"{arm} had {others} of {baseline}"
        return [_reason("unmatched-compute", "said", told, ratios=off)]


def _grid(candidates: Any) -> Any:
    """The settings that were tried, without what they scored."""
    if not isinstance(candidates, list):
        return candidates
    return sorted(str(one.get("setting") if isinstance(one, Mapping) else one) for one in candidates)


def _reason(code: str, effect: str, sentence: str, **numbers: Any) -> dict[str, Any]:
    return {"code": code, "effect": effect, "sentence": sentence, **numbers}
