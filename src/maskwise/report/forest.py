"""The contrasts of a study as forest plots, which the template draws as SVG: they print, scale and
need no script.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from maskwise.constants import DIFFUSION
from maskwise.estimates import Shown, shown, with_minus
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
"""Verdicts of rows without an answer; the second is that of earlier rules."""


def forest_groups(contrasts: Sequence[Contrast], colours: Colours) -> list[View]:
    """The contrasts by kind and unit, which share no axis; the kind with primary rows first."""
    common = common_notes(contrasts)
    groups: dict[tuple[str, str], list[Contrast]] = defaultdict(list)
    for row in contrasts:
        groups[_kind_of(row), shown(row).unit].append(row)
    order = sorted(groups, key=lambda group: [*FORESTS].index(group[0]))
    views = [_forest(kind, groups[kind, unit], colours, common) for kind, unit in order]
    return sorted(views, key=lambda view: not view["primary"])


def _kind_of(row: Contrast) -> str:
    kind, _, _ = row["outcome"].partition(":")
    if kind == "evaluation":
        return {"score": "evaluation", "perplexity": "perplexity"}.get(row["unit"], "bound")
    if kind in ("tasks", "heldout"):
        return kind
    if any(flag["code"] == "no-help" for flag in row["flags"]):
        return "left-out"
    return "task-nats" if row["unit"] == "nats" else "task"


def _forest(kind: str, contrasts: list[Contrast], colours: Colours, common: Sequence[str]) -> View:
    rows = sorted(contrasts, key=lambda row: row["verdict"] in NOT_COMPARABLE)
    comparable = [shown(row) for row in rows if row["verdict"] not in NOT_COMPARABLE]
    amounts = comparable or [shown(row) for row in rows]
    means = [abs(amount.mean) for amount in amounts if amount.mean is not None]
    ends = [abs(end) for amount in amounts for end in (amount.low, amount.high) if end is not None]
    # With few runs an interval can be a hundred times the effect: such ends are cut.
    largest = max(means, default=0.0)
    reach = 1.1 * max(min(max(ends, default=0.0), 4 * largest), largest, 1e-9)
    lines: list[View] = []
    for row in rows:
        colour = VOID if row["verdict"] in NOT_COMPARABLE else colours.get(row["arm"], SLATE)
        notes = [note for note in _notes(row) if note not in common]
        line = {
            "row": row,
            "label": outcome_label(row["outcome"]),
            "colour": colour,
            "notes": notes,
        }
        lines.append({**line, **_places(shown(row), reach)})
    title, note = FORESTS[kind]
    primary = any(row["primary"] for row in rows)
    return {
        "kind": kind,
        "title": title,
        "note": f"{note} The verdict rests here." if primary else note,
        "primary": primary,
        "rows": lines,
        "unit": amounts[0].unit,
        "reach": f"{reach:.2g}" if means else None,
    }


def _places(amount: Shown, reach: float) -> View:
    """Where the mean and the ends lie, in per cent of a plot from -reach to reach."""
    places: View = {"drawn": amount.mean is not None}
    ends = {"at": amount.mean, "from": amount.low, "to": amount.high}
    for name, value in ends.items():
        if value is not None:
            places[name] = round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2)
            places[f"{name}_cut"] = abs(value) > reach
    if amount.mean is not None:
        places["figure"] = with_minus(f"{amount.mean:+.{amount.digits}f}")
    if amount.low is not None:
        places["interval"] = amount.ends()
    return places


def _notes(row: Contrast) -> list[str]:
    """The notes on a primary row; the flags that void a row are in its sentence."""
    notes = [flag for flag in row["flags"] if flag["effect"] == "notes"]
    texts = [flag["sentence"] for flag in notes if flag["code"] != "overlap"]
    return [f"{text[:1].upper()}{text[1:]}." for text in texts] if row["primary"] else []


def common_notes(contrasts: Sequence[Contrast]) -> list[str]:
    """The notes on every primary contrast, which the plain words say once."""
    rows = [row for row in contrasts if row["primary"] and row["verdict"] not in NOT_COMPARABLE]
    if len(rows) < 2:
        return []
    common = set(_notes(rows[0])).intersection(*map(_notes, rows))
    return [note for note in _notes(rows[0]) if note in common]


def outcome_label(outcome: str) -> str:
    """An outcome next to the name of an arm: "token masks, 15 %", "facts (hits@1)"."""
    kind, _, rest = outcome.partition(":")
    if kind == "evaluation":
        name, _, metric = rest.rpartition(":")
        return f"{name} ({metric})"
    if kind != "heldout":
        return outcome
    masks, _, ratio = rest.partition("@")
    if masks == DIFFUSION:
        return "bound of masked diffusion"
    return f"{masks} masks" + (f", {100 * float(ratio):g} %" if ratio else "")
