"""What keeps a row from an answer, caps its verdict, or must be known beside it: one table of
flags.

A flag is raised where its test gives facts. The same facts fill its sentence and stand beside it in
summary.json, so that the page, the terminal, a notebook and a script say the same.

| effect | what it does |
|---|---|
| invalid | the row is *not comparable* |
| caps | the verdict is at most *open* |
| notes | nothing: a reader should know it |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from maskwise.constants import (
    NATS,
    OTHER_TASKS,
    OWN_TASK,
    PLATEAU_NATS,
    REFERENCE,
    overlap_matters,
    overlap_words,
)
from maskwise.files import Contrast, Effect, RaisedFlag, Record
from maskwise.study.power import can_decide
from maskwise.study.verdict.table import TOLERANCE, Table, is_loss

Facts: TypeAlias = dict[str, object]
Test: TypeAlias = Callable[[Contrast, Table], Facts | None]

FIXED, TUNED = "at these settings", "each arm tuned"
"""The scope of a verdict: what it says nothing beyond."""

COSTS = {
    "steps": "steps",
    "tokens": "tokens read",
    "targets": "targets (tokens to predict)",
    "flops": "FLOPs",
}


@dataclass(frozen=True)
class Flag:
    """A remark on a row.

    Attributes:
        test: the facts of the sentence, or None where the flag is not raised. ``arms`` are names of
            arms.
        sentence: a template over the facts.
        advice: what to do about it; nothing where it is empty, or where the facts have ``minor``.
    """

    code: str
    effect: Effect
    test: Test
    sentence: str
    advice: str = ""


def raised(row: Contrast, table: Table, names: Mapping[str, str]) -> list[RaisedFlag]:
    """The flags of a row, in the order of the table.

    Args:
        names: the arms in words.
    """
    found: list[RaisedFlag] = []
    for flag in FLAGS:
        facts = flag.test(row, table)
        if facts is None:
            continue
        arms = facts.get("arms", ())
        assert isinstance(arms, list | tuple)
        words = " and ".join(names.get(arm, arm) for arm in arms)
        sentence = flag.sentence.format(**{**facts, "arms": words})
        found.append(
            {"code": flag.code, "effect": flag.effect, "sentence": sentence, "facts": facts}
        )
    return found


def scope_of(row: Contrast, table: Table) -> str:
    """Whether each arm was tuned inside every replicate, or the verdict holds at these settings
    alone.
    """
    return TUNED if any("seed" in line for line in _choices(row, table)) else FIXED


# Nothing can be said
# ---------------------------------------------------------------------------------


def _gate_closed(row: Contrast, table: Table) -> Facts | None:
    gate = table.closed.get((row["arm"], row["baseline"]))
    return {"oracle": gate["arm"], "beaten": gate["baseline"]} if gate else None


def _no_pairs(row: Contrast, table: Table) -> Facts | None:
    lost = any(table.failed.get(arm) for arm in _pair(row))
    return {"runs": row["n"]} if row["n"] == 0 or (row["n"] == 1 and lost) else None


def _differs(what: str) -> Test:
    """Whether the two sides differ in what a loss per token is measured in."""

    def test(row: Contrast, table: Table) -> Facts | None:
        return {} if table.incomparable(*_pair(row), row["outcome"]) == what else None

    return test


def _at_floor(row: Contrast, table: Table) -> Facts | None:
    """Held-out outcomes only. One side above the floor and one at it is an answer, unless that one
    fell back to it.
    """
    if not is_loss(row["outcome"]):
        return None
    sides = [table.behind(name) or [name] for name in _pair(row)]
    low = [[arm for arm in side if table.at_floor(arm)] for side in sides]
    arms = low[0] + low[1]
    if not all(low):
        arms = [arm for arm in arms if table.fell_back(arm)]
    if not arms:
        return None
    gaps = [round(table.gap_nats(arm) or 0.0, 3) for arm in arms]
    told = " and ".join(f"{gap:+.2f}".replace("-", "−") for gap in gaps)
    return {"arms": arms, "gaps": gaps, "told": told, "floor": PLATEAU_NATS}


def _at_chance(row: Contrast, table: Table) -> Facts | None:
    outcomes = table.measured(row["outcome"], *_pair(row))
    guessing = all(table.at_chance(name, arm) for name in outcomes for arm in _pair(row))
    return {"arms": list(_pair(row))} if guessing else None


# At most open
# ----------------------------------------------------------------------------------------


def _looked_before(row: Contrast, table: Table) -> Facts | None:
    """An earlier verdict on other runs, that could have decided and was not planned."""
    study = table.study
    now = study["seeds"]
    for look in study.get("looked") or ():
        then = look.get("seeds", now[: look["runs"]])
        planned = (
            bool(study.get("looks")) and look["looks"] == study.get("looks") and {*then} <= {*now}
        )
        changed = (look["runs"], {*then}) != (len(now), {*now})
        if changed and not planned and can_decide(look["runs"], look.get("contrasts", 1)):
            return {"runs": look["runs"]}
    return None


def _settings_differ(row: Contrast, table: Table) -> Facts | None:
    """One search served all seeds, as in older studies, and what it chose by luck differs."""
    lines = [line for line in _choices(row, table) if "seed" not in line and line["chosen"]]
    chosen = {str(sorted((line["chosen"] or {}).items())) for line in lines}
    return {"arms": [line["arm"] for line in lines]} if len(chosen) > 1 else None


# Notes
# -----------------------------------------------------------------------------------------------


def _missing_runs(row: Contrast, table: Table) -> Facts | None:
    planned = len(table.study["seeds"])
    missing = planned - row["n"]
    lost = any(table.failed.get(arm) for arm in _pair(row))
    return {"missing": missing, "planned": planned} if 0 < missing < planned and lost else None


def _unmatched_compute(row: Contrast, table: Table) -> Facts | None:
    """Quantities by which the two differ by more than 5 %; the one that was to be matched first."""
    if {*_pair(row)} & {REFERENCE, OWN_TASK, OTHER_TASKS}:  # several arms, or none that was trained
        return None
    by, ratios = row["compute"]["by"], row["compute"]["ratios"]
    if not ratios:
        return {"told": "the compute of the arms was not recorded", "ratios": {}, "minor": True}
    off = {key: ratio for key, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE}
    if not off:
        return None
    listed = ", ".join(f"{ratio:.2g} times the {COSTS[key]}" for key, ratio in off.items())
    matched = (
        f"not matched by {COSTS[by]}: " if by in off else f"at equal {COSTS[by]}, " if by else ""
    )
    return {"told": f"{matched}{row['arm']} used {listed} of {row['baseline']}", "ratios": off}


def _untuned(row: Contrast, table: Table) -> Facts | None:
    trained = [arm for arm in _trained(row, table) if arm in table.study["arms"]]
    return (
        {"arms": trained} if trained and not row.get("gate") and not _choices(row, table) else None
    )


def _tied_grid(row: Contrast, table: Table) -> Facts | None:
    tied = [line["arm"] for line in _choices(row, table) if _is_tied(line)]
    if not tied:
        return None
    return {
        "arms": list(dict.fromkeys(tied)),
        "searches": len(tied),
        "all": len(_choices(row, table)),
    }


def _grids_differ(row: Contrast, table: Table) -> Facts | None:
    """Also where an arm that was trained has no grid; the model as it is has nothing to tune."""
    lines = [table.selection[arm] for arm in _trained(row, table)]
    grids = {
        str(sorted(str(point["setting"]) for point in of[0]["candidates"])) if of else ""
        for of in lines
    }
    return {} if len(grids) > 1 else None


def _without_help(row: Contrast, table: Table) -> Facts | None:
    """The tasks that the primary outcome leaves out; for the row of such a task, itself."""
    left = [task for task in table.tasks if task not in table.counted]
    if row["outcome"] != "tasks":
        left = [task for task in left if task == row["outcome"]]
    if not left or REFERENCE in _pair(row):  # against the start all tasks count
        return None
    why = "pre-training helps there too seldom (study.helps)"
    if not table.counted:
        return {
            "tasks": left,
            "told": "pre-training helps too seldom on every task (study.helps); all count",
        }
    told = (
        f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} not part of the primary "
        f"outcome: {why}"
    )
    return {"tasks": left, "told": told}


def _item_noise(row: Contrast, table: Table) -> Facts | None:
    items = row["items"]
    if not items or not row["mean"] or not items["low"] <= 0 <= items["high"]:
        return None
    half = (items["high"] - items["low"]) / 2
    amount = f"{half:.2f} nats" if row["metric"] == NATS else f"{100 * half:.1f} points"
    return {"half": half, "amount": amount}


def _overlap(row: Contrast, table: Table) -> Facts | None:
    names = table.measured(row["outcome"], *_pair(row))
    lines = [line for line in table.overlap if line["task"] in names and line["overlapping"]]
    if not lines:
        return None
    told = "; ".join(
        overlap_words(line["overlapping"], line["items"], line["task"]) for line in lines
    )
    matters = any(overlap_matters(line["overlapping"], line["items"]) for line in lines)
    return {"told": told, "tasks": [line["task"] for line in lines], "minor": not matters}


# What the tests share
# --------------------------------------------------------------------------------


def _pair(row: Contrast) -> tuple[str, str]:
    return row["arm"], row["baseline"]


def _trained(row: Contrast, table: Table) -> list[str]:
    """The arms behind both sides, each once."""
    return list(dict.fromkeys(arm for side in _pair(row) for arm in table.behind(side)))


def _choices(row: Contrast, table: Table) -> list[Record]:
    """What searches chose for the arms of a row."""
    return [line for arm in _trained(row, table) for line in table.selection.get(arm, ())]


def _is_tied(line: Record) -> bool:
    """Whether all points of a grid have the same score; older records do not say so."""
    means = [point.get("mean") for point in line["candidates"]]
    old = "seed" not in line and len(means) > 1 and means[0] is not None and len({*means}) == 1
    return bool(line.get("tied")) or old


FLAGS = (
    Flag(
        "gate-closed",
        "invalid",
        _gate_closed,
        "the positive control failed: {oracle} is not shown to beat {beaten},"
        " so this study could not have seen a smaller difference either",
        "Fix the positive control first (more runs, longer training, or easier tasks): until "
        "it passes, the contrasts"
        " that it gates have no answer.",
    ),
    Flag(
        "no-pairs",
        "invalid",
        _no_pairs,
        "too few runs finished",
        "Repair what failed and give the same command again: finished stages are not repeated.",
    ),
    Flag(
        "different-tokenizers",
        "invalid",
        _differs("different-tokenizers"),
        "the arms have different tokenizers, so a loss per token measures different things",
    ),
    Flag(
        "different-formats",
        "invalid",
        _differs("different-formats"),
        "the arms learned to write different output formats, and each has the lower loss in "
        "its own",
    ),
    Flag(
        "different-units",
        "invalid",
        _differs("different-units"),
        "the arms mask different units, so the loss depends on the masks of the evaluation",
    ),
    Flag(
        "floor",
        "invalid",
        _at_floor,
        "{arms} predicted held-out text hardly better than word frequencies ({told} nats; "
        "{floor} is the least that"
        " shows learning)",
        "Train longer or mask more; where the loss is worse than that of word frequencies, "
        "use more text or fewer"
        " steps.",
    ),
    Flag(
        "chance",
        "invalid",
        _at_chance,
        "neither side scores better than guessing",
        "Use easier tasks, or train longer: at chance no choice makes a difference.",
    ),
    Flag(
        "looked-before",
        "caps",
        _looked_before,
        "the runs were changed after a verdict on {runs} runs, without a plan (study.looks)",
        "Start a new study with other seeds, or plan interim analyses with study.looks: "
        "testing again inflates the"
        " error rate.",
    ),
    Flag(
        "settings-differ",
        "caps",
        _settings_differ,
        "one search served all seeds and chose different settings for {arms}, so the "
        "difference may be one of settings",
        "Run the study again: every seed now chooses its own settings (study.search).",
    ),
    Flag(
        "missing-runs",
        "notes",
        _missing_runs,
        "{missing} of {planned} pairs of runs are missing, and runs that fail may not be a "
        "random sample",
        "Repair what failed and give the same command again: finished stages are not repeated.",
    ),
    Flag(
        "compute",
        "notes",
        _unmatched_compute,
        "{told}",
        "Compare quality by targets and FLOPs, too (study.match).",
    ),
    Flag(
        "untuned",
        "notes",
        _untuned,
        "no settings were tuned: with another learning rate the order may change",
        "Tune every arm over the same small grid of learning rates (study.search).",
    ),
    Flag(
        "tied-grid",
        "notes",
        _tied_grid,
        "in {searches} of {all} searches ({arms}) all settings scored the same, so the "
        "choice there is arbitrary",
        "Use dev rows, or settings, that tell the points of the grid apart.",
    ),
    Flag("grids-differ", "notes", _grids_differ, "the two sides were not tuned over the same grid"),
    Flag("no-help", "notes", _without_help, "{told}"),
    Flag(
        "items",
        "notes",
        _item_noise,
        "other test items could reverse the result: the choice of items alone makes the "
        "difference uncertain by"
        " {amount}",
        "Use a larger test set, or more tasks: more runs cannot make up for few test items.",
    ),
    Flag(
        "overlap",
        "notes",
        _overlap,
        "{told}",
        "Remove the test items from the corpus, or leave that task out: its score rewards memory.",
    ),
)
ADVICE = {flag.code: flag.advice for flag in FLAGS if flag.advice}
