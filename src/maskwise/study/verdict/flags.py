"""What keeps a row from an answer, caps its verdict, or a reader must know: one table of flags.

A flag is raised where its test returns facts. The same facts fill its sentence and stand beside it
in summary.json, so that the page, the terminal, a notebook and a script say the same.

| effect | what it does |
|---|---|
| invalid | the row is *not comparable* |
| caps | the verdict is at most *open* |
| notes | nothing: a reader should know it |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from maskwise.constants import (
    CORRELATIONS,
    NATS,
    OTHER_TASKS,
    OWN_TASK,
    PLATEAU_NATS,
    REFERENCE,
    overlap_matters,
    overlap_words,
)
from maskwise.files import Contrast, Effect, RaisedFlag, Record
from maskwise.study.outcomes import TOLERANCE, Outcomes, is_loss
from maskwise.study.statistics import can_decide

Facts: TypeAlias = dict[str, object]
Test: TypeAlias = Callable[[Contrast, Outcomes], Facts | None]

FIXED = "at these settings"
TUNED = "each arm tuned"
"""The scope of a verdict."""
CHANCE_MARGIN = 0.02
"""How far above chance a score may lie by luck, where the number of items is not known."""
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
            arms; ``minor`` facts call for no advice.
        sentence: a template over the facts.
        advice: what to do about it; nothing where it is empty.
    """

    code: str
    effect: Effect
    test: Test
    sentence: str
    advice: str = ""


def raised(row: Contrast, table: Outcomes, names: Mapping[str, str]) -> list[RaisedFlag]:
    """The flags of a row, in the order of the table; ``names`` are the arms in words."""
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


def scope_of(row: Contrast, table: Outcomes) -> str:
    """Whether every seed tuned each arm, or the verdict holds at these settings alone."""
    return TUNED if any("seed" in line for line in _choices(row, table)) else FIXED


# Nothing can be said


def _gate_closed(row: Contrast, table: Outcomes) -> Facts | None:
    if table.gate is None or _pair(row) not in table.closed:
        return None
    return {"oracle": table.gate["arm"], "beaten": table.gate["baseline"]}


def _no_pairs(row: Contrast, table: Outcomes) -> Facts | None:
    lost = row["n"] == 0 or (row["n"] == 1 and _has_failures(row, table))
    return {} if lost else None


def _differs(what: str) -> Test:
    """Whether the two sides differ in what a loss per token is measured in."""

    def test(row: Contrast, table: Outcomes) -> Facts | None:
        return {} if table.incomparable(*_pair(row), row["outcome"]) == what else None

    return test


def _at_floor(row: Contrast, table: Outcomes) -> Facts | None:
    """Held-out outcomes only.

    One side above the floor and one at it is an answer, unless that one fell back to it.
    """
    if not is_loss(row["outcome"]):
        return None
    gaps: dict[str, float] = {}
    sides_at_floor = 0
    for side in _pair(row):
        low = dict[str, float]()
        for arm in table.trained(side) or [side]:
            gap = table.gap_nats(arm)
            if gap is not None and gap < PLATEAU_NATS:
                low[arm] = gap
        sides_at_floor += bool(low)
        gaps |= low
    if sides_at_floor == 1:
        starts = {arm: table.gap_nats(arm, of=REFERENCE) for arm in gaps}
        gaps = {arm: gap for arm, gap in gaps.items() if (starts[arm] or 0) >= PLATEAU_NATS}
    if not gaps:
        return None
    rounded = [round(gap, 3) for gap in gaps.values()]
    words = " and ".join(f"{gap:+.2f}".replace("-", "−") for gap in rounded)
    return {"arms": list(gaps), "gaps": rounded, "words": words, "floor": PLATEAU_NATS}


def _at_chance(row: Contrast, table: Outcomes) -> Facts | None:
    outcomes = table.measured(row["outcome"], *_pair(row))
    guessing = all(_guesses(table, name, arm) for name in outcomes for arm in _pair(row))
    return {"arms": list(_pair(row))} if guessing else None


def _guesses(table: Outcomes, outcome: str, arm: str) -> bool:
    """Whether a mean score is at most chance + 2 standard errors of the items.

    Where chance is not known, nothing is at chance.
    """
    measure = table.measures[outcome]
    mean = table.mean(outcome, arm)
    chance = measure.chance
    if chance is None or mean is None:
        return False
    if not measure.higher_is_better:
        return mean >= chance
    if not measure.items:
        return mean <= chance + CHANCE_MARGIN
    # A correlation of n independent pairs has a variance of about 1 / n.
    variance = 1.0 if measure.metric in CORRELATIONS else max(chance * (1 - chance), 0.0)
    return mean <= chance + 2 * math.sqrt(variance / measure.items)


# At most open


def _looked_before(row: Contrast, table: Outcomes) -> Facts | None:
    """An earlier verdict that could have decided.

    It was on other runs and not planned, or under other settings.
    """
    looks = table.study.get("looks")
    seeds = {*table.study["seeds"]}
    for look in table.study.get("looked") or ():
        then = {*look.get("seeds", table.study["seeds"][: look["runs"]])}
        planned = looks is not None and look["looks"] == looks and then <= seeds
        what = ""
        if look.get("settings_changed"):
            what = "margin, gate, search or matching was"
        elif not planned and (look["runs"], then) != (len(seeds), seeds):
            what = "runs were"
        if what and can_decide(look["runs"], look.get("contrasts", 1)):
            return {"what": what, "runs": look["runs"]}
    return None


def _settings_differ(row: Contrast, table: Outcomes) -> Facts | None:
    """One search served all seeds, as in older studies, and what it chose by luck differs."""
    lines = [line for line in _choices(row, table) if "seed" not in line and line["chosen"]]
    chosen = {str(sorted((line["chosen"] or {}).items())) for line in lines}
    return {"arms": [line["arm"] for line in lines]} if len(chosen) > 1 else None


# Notes


def _missing_runs(row: Contrast, table: Outcomes) -> Facts | None:
    planned = len(table.study["seeds"])
    missing = planned - row["n"]
    if not 0 < missing < planned or not _has_failures(row, table):
        return None
    return {"missing": missing, "planned": planned}


def _unmatched_compute(row: Contrast, table: Outcomes) -> Facts | None:
    """The quantities by which the two differ by more than 5 %."""
    if {*_pair(row)} & {REFERENCE, OWN_TASK, OTHER_TASKS}:  # several arms, or none was trained
        return None
    by = row["compute"]["by"]
    ratios = row["compute"]["ratios"]
    if not ratios:
        return {"told": "the compute of the arms was not recorded", "ratios": {}, "minor": True}
    off = {key: ratio for key, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE}
    if not off:
        return None
    spent = ", ".join(f"{ratio:.2g} times the {COSTS[key]}" for key, ratio in off.items())
    lead = f"at equal {COSTS[by]}, " if by else ""
    if by in off:
        lead = f"not matched by {COSTS[by]}: "
    return {"told": f"{lead}{row['arm']} used {spent} of {row['baseline']}", "ratios": off}


def _untuned(row: Contrast, table: Outcomes) -> Facts | None:
    trained = _trained(row, table)
    if not trained or row.get("gate") or _choices(row, table):
        return None
    return {"arms": trained}


def _tied_grid(row: Contrast, table: Outcomes) -> Facts | None:
    choices = _choices(row, table)
    tied = [line["arm"] for line in choices if _is_tied(line)]
    if not tied:
        return None
    return {"arms": list(dict.fromkeys(tied)), "searches": len(tied), "all": len(choices)}


def _grids_differ(row: Contrast, table: Outcomes) -> Facts | None:
    """Also where an arm that was trained has no grid; the model as it is has nothing to tune."""
    grids = dict.fromkeys(_trained(row, table), "")
    for line in _choices(row, table):
        grids[line["arm"]] = str(sorted(str(point["setting"]) for point in line["candidates"]))
    return {} if len({*grids.values()}) > 1 else None


def _without_help(row: Contrast, table: Outcomes) -> Facts | None:
    """The tasks that the primary outcome leaves out; for the row of such a task, itself."""
    left = [task for task in table.tasks if task not in table.counted]
    if row["outcome"] != "tasks":
        left = [task for task in left if task == row["outcome"]]
    if not left or REFERENCE in _pair(row):  # against the start all tasks count
        return None
    effect = "left out of the primary outcome" if table.counted else "counted, as no task is left"
    return {"tasks": left, "names": ", ".join(left), "effect": effect}


def _item_noise(row: Contrast, table: Outcomes) -> Facts | None:
    items = row["items"]
    if not items or not row["mean"] or not items["low"] <= 0 <= items["high"]:
        return None
    half = (items["high"] - items["low"]) / 2
    amount = f"{half:.2f} nats" if row["metric"] == NATS else f"{100 * half:.1f} points"
    return {"half": half, "amount": amount}


def _overlap(row: Contrast, table: Outcomes) -> Facts | None:
    tasks = table.measured(row["outcome"], *_pair(row))
    lines = [line for line in table.lines["overlap"] if line["task"] in tasks]
    counts = [(line["overlapping"], line["items"]) for line in lines if line["overlapping"]]
    if not counts:
        return None
    tasks = [line["task"] for line in lines if line["overlapping"]]
    words = [overlap_words(*count, task) for count, task in zip(counts, tasks)]
    minor = not any(overlap_matters(*count) for count in counts)
    return {"overlaps": "; ".join(words), "tasks": tasks, "minor": minor}


# What the tests share


def _pair(row: Contrast) -> tuple[str, str]:
    return row["arm"], row["baseline"]


def _trained(row: Contrast, table: Outcomes) -> list[str]:
    """The arms that were trained for both sides, each once."""
    arms = table.trained(row["arm"]) + table.trained(row["baseline"])
    return list(dict.fromkeys(arms))


def _has_failures(row: Contrast, table: Outcomes) -> bool:
    arms = {*_trained(row, table), *_pair(row)}
    return any(arm in arms for arm, _ in table.failed)


def _choices(row: Contrast, table: Outcomes) -> list[Record]:
    """What searches chose for the arms of a row: a record per seed, or one in older studies."""
    trained = _trained(row, table)
    return [line for line in table.lines["selection"] if line["arm"] in trained]


def _is_tied(line: Record) -> bool:
    """Whether all points of a grid have the same score; older records have their means alone."""
    means = {point.get("mean") for point in line["candidates"]}
    return line.get("tied", "seed" not in line and len(means) == 1 and means != {None})


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
        "{arms} predicted held-out text hardly better than word frequencies ({words} nats; "
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
        "the {what} changed after a verdict on {runs} runs, without a plan (study.looks)",
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
    Flag(
        "no-help",
        "notes",
        _without_help,
        "pre-training helps too seldom on {names} (study.helps): {effect}",
    ),
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
        "{overlaps}",
        "Remove the test items from the corpus, or leave that task out: its score rewards memory.",
    ),
)
ADVICE = {flag.code: flag.advice for flag in FLAGS if flag.advice}
