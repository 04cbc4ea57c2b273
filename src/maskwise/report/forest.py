"""The contrasts of a study as forest plots.

The template draws them as SVG, so they print and need no script.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from maskwise.estimates import Shown, outcome_label, shown
from maskwise.files import Contrast
from maskwise.report.drawing import SLATE, Colours, View

VOID = "#a5a29b"
FORESTS = {
    "tasks": ("On the tasks", "The mean over all tasks."),
    "task": (
        "Task by task",
        "In points of the task's measure. These rows explain a verdict and are not tested.",
    ),
    "left-out": (
        "Tasks that cannot tell",
        "Pre-training does not help on them often enough. The primary outcome leaves them "
        "out, unless no task is left.",
    ),
    "task-nats": (
        "Task by task, in nats",
        "For each token of the right answers, reversed so that right is better.",
    ),
    "evaluation": (
        "Without fine-tuning",
        "Cloze facts and minimal pairs, in points of their measure. No fine-tuning seed adds "
        "its noise here.",
    ),
    "perplexity": (
        "Pseudo-perplexity",
        "Reversed so that right is better; only between arms with equal units.",
    ),
    "bound": (
        "The bound of masked diffusion",
        "Reversed so that right is better; only between arms with equal tokens.",
    ),
    "heldout": (
        "Held-out loss",
        "In nats, reversed so that right is better; only between arms with equal units.",
    ),
}
NOT_COMPARABLE = ("not comparable", "void")
"""Verdicts of rows without an answer; "void" is the word of earlier rules."""


def forest_groups(contrasts: Sequence[Contrast], colours: Colours) -> list[View]:
    """Group contrasts by kind and unit, which share no axis; primary rows come first."""
    common = common_notes(contrasts)
    groups: dict[tuple[str, str], list[Contrast]] = defaultdict(list)
    for row in contrasts:
        groups[_kind_of(row), shown(row).unit].append(row)
    views: list[View] = []
    for wanted in FORESTS:
        for (kind, _), rows in groups.items():
            if kind == wanted:
                views.append(_forest(kind, rows, colours, common))
    # The question comes first, its gate second, and what explains them last.
    return sorted(views, key=lambda view: (not view["asked"], not view["primary"]))


def _kind_of(row: Contrast) -> str:
    kind, _, _ = row["outcome"].partition(":")
    if kind == "evaluation":
        if row["unit"] == "score":
            return "evaluation"
        return "perplexity" if row["unit"] == "perplexity" else "bound"
    if kind in ("tasks", "heldout"):
        return kind
    if any(flag["code"] == "no-help" for flag in row["flags"]):
        return "left-out"
    return "task-nats" if row["unit"] == "nats" else "task"


def _forest(kind: str, contrasts: list[Contrast], colours: Colours, common: Sequence[str]) -> View:
    comparable = [row for row in contrasts if row["verdict"] not in NOT_COMPARABLE]
    others = [row for row in contrasts if row["verdict"] in NOT_COMPARABLE]
    # Rows without an answer must not stretch the axis of the others.
    amounts = [shown(row) for row in comparable or others]
    means = [abs(amount.mean) for amount in amounts if amount.mean is not None]
    ends = [0.0]
    for amount in amounts:
        ends += [abs(end) for end in (amount.low, amount.high) if end is not None]
    # With few runs an interval can be a hundred times the effect, and its ends are cut off.
    largest = max(means, default=0.0)
    widest = min(max(ends), 4 * largest)
    reach = 1.1 * max(widest, largest, 1e-9)
    lines: list[View] = []
    for row in comparable + others:
        line: View = {
            "row": row,
            "label": outcome_label(row["outcome"]),
            "colour": VOID if row in others else colours.get(row["arm"], SLATE),
            "notes": [note for note in _notes(row) if note not in common],
        }
        lines.append({**line, **_places(shown(row), reach)})
    title, note = FORESTS[kind]
    primary = any(row["primary"] for row in contrasts)
    if primary:
        note += " The verdict rests here."
    return {
        "kind": kind,
        "title": title,
        "note": note,
        "primary": primary,
        "asked": any(row["primary"] and "gate" not in row for row in contrasts),
        "rows": lines,
        "unit": amounts[0].unit,
        "reach": f"{reach:.2g}" if means else None,
    }


def _places(amount: Shown, reach: float) -> View:
    """Return where the mean and the ends lie, in per cent of a plot from -reach to reach."""
    places: View = {"drawn": amount.mean is not None}
    ends = {"at": amount.mean, "from": amount.low, "to": amount.high}
    for name, value in ends.items():
        if value is not None:
            part = max(-1.0, min(1.0, value / reach))
            places[name] = round(50 + 50 * part, 2)
            places[f"{name}_cut"] = abs(value) > reach
    places["figure"] = amount.figure()
    if amount.low is not None:
        places["interval"] = amount.ends()
    return places


def _notes(row: Contrast) -> list[str]:
    """Return the notes on a primary row as sentences."""
    if not row["primary"]:
        return []
    notes = []
    for flag in row["flags"]:
        # Invalid rows say why in their sentence, and the page warns of overlap at its top.
        if flag["effect"] == "notes" and flag["code"] != "overlap":
            text = flag["sentence"]
            notes.append(f"{text[:1].upper()}{text[1:]}.")
    return notes


def common_notes(contrasts: Sequence[Contrast]) -> list[str]:
    """Return the notes that all primary contrasts share; the story mentions them once."""
    rows = [row for row in contrasts if row["primary"] and row["verdict"] not in NOT_COMPARABLE]
    if len(rows) < 2:
        return []
    first, *others = [_notes(row) for row in rows]
    return [note for note in first if all(note in notes for notes in others)]
