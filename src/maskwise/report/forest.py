"""The contrasts as a forest plot: for every row an interval on a common scale, right of zero = the arm is
better.

Plain numbers in per cent of the plot's width; the template draws them as SVG, so they print, scale and need
no script.
"""

from __future__ import annotations

from typing import Any

from maskwise.report.drawing import SLATE

TITLES = {
    "tasks": ("On the tasks", "All tasks together, in spreads between seeds. The verdict rests here."),
    "task": ("Task by task", "In points of the task's measure. These explain a verdict, they make none."),
    "evaluation": (
        "Without fine-tuning",
        "Cloze facts and minimal pairs, in points of their measure. No fine-tuning seed adds its noise here.",
    ),
    "perplexity": (
        "Pseudo-perplexity",
        "Turned so that right is better; only between arms with equal units.",
    ),
    "heldout": (
        "Held-out loss",
        "In nats, turned so that right is better; only between arms with equal units.",
    ),
}
UNITS = {"tasks": "spreads between seeds", "heldout": "nats", "perplexity": "perplexity"}


def kind_of(row: dict[str, Any]) -> str:
    """Rows of one kind share an axis."""
    outcome = str(row.get("outcome"))
    if outcome == "tasks":
        return "tasks"
    if outcome.startswith("heldout:"):
        return "heldout"
    if outcome.startswith("evaluation:"):
        return "evaluation" if row.get("unit") == "score" else "perplexity"
    return "task"


def outcome_label(outcome: str) -> str:
    """What stands beside the name of the arm: "token masks, 15 %", "facts (hits@1)"."""
    kind, _, rest = outcome.partition(":")
    if kind == "heldout":
        masks, _, ratio = rest.partition("@")
        return f"{masks} masks" + (f", {100 * float(ratio):g} %" if ratio else "")
    if kind == "evaluation":
        name, _, metric = rest.rpartition(":")
        return f"{name} ({metric})"
    return outcome


def forest_groups(contrasts: list[dict[str, Any]], colours: dict[str, str]) -> list[dict[str, Any]]:
    """[{"kind", "title", "note", "rows", "unit", "primary"}]: numbers of different units share no axis."""
    common = common_notes(contrasts)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in contrasts:
        groups.setdefault(kind_of(row), []).append(row)
    found = [
        _group(kind, sorted(groups[kind], key=lambda row: row.get("verdict") == "void"), colours)
        for kind in TITLES
        if kind in groups
    ]
    for line in (line for group in found for line in group["rows"]):
        line["notes"] = [note for note in line["notes"] if note not in common]
    return sorted(found, key=lambda group: not group["primary"])


def _group(kind: str, rows: list[dict[str, Any]], colours: dict[str, str]) -> dict[str, Any]:
    points = any(row.get("unit") == "score" for row in rows) or kind == "task"
    scale = 100 if points else 1
    higher = all(row.get("higher_is_better", kind not in ("heldout", "perplexity")) for row in rows)
    sign = scale if higher else -scale
    drawn = [row for row in rows if row.get("mean") is not None and row.get("verdict") != "void"]
    # With two runs an interval can be a hundred times the effect: such ends are cut, and marked as cut.
    means = [abs(row["mean"]) for row in drawn]
    ends = [abs(row[end]) for row in drawn for end in ("low", "high") if row.get(end) is not None]
    reach = (
        scale * max(min(max(ends, default=0), 4 * max(means, default=0)), max(means, default=0), 1e-9) * 1.1
    )
    unit = "points" if points else UNITS[kind]

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, sign * value / reach)), 2)

    lines = []
    for row in rows:
        line = {
            "row": row,
            "label": outcome_label(str(row.get("outcome"))),
            "notes": _notes(row),
            "colour": colours.get(row.get("arm", ""), SLATE),
            "drawn": row in drawn,
        }
        if line["drawn"]:
            line["at"] = place(row["mean"])
            line["figure"] = f"{sign * row['mean']:+.2f}".replace("-", "−")
            if row.get("low") is not None:
                low, high = sorted((sign * row["low"], sign * row["high"]))
                line |= {"from": place(low / sign), "to": place(high / sign)}
                line |= {"cut_left": low < -reach, "cut_right": high > reach}
                line["interval"] = f"{low:.2f} to {high:.2f}".replace("-", "−")
        lines.append(line)
    title, note = TITLES[kind]
    primary = any(row.get("primary", kind == "tasks") for row in rows)
    if primary and kind != "tasks":
        note += " The verdict rests here."
    return {
        "primary": primary,
        "kind": kind,
        "title": title,
        "note": note,
        "rows": lines,
        "unit": unit,
        "reach": f"{reach:.2g}" if drawn else None,
    }


def _notes(row: dict[str, Any]) -> list[str]:
    """Reasons that a reader must know beside the sentence; those of a void stand in it, an overlap on top."""
    reasons = [r for r in row.get("reasons") or [] if r.get("code") != "overlap"]
    found = [r["sentence"] for r in reasons if r.get("effect") in ("caps", "said")]
    return [text[:1].upper() + text[1:] + "." for text in found] if row.get("primary") else []


def common_notes(contrasts: list[dict[str, Any]]) -> list[str]:
    """What is to be known of every primary contrast: said once, in the plain words."""
    rows = [row for row in contrasts if row.get("primary") and row.get("verdict") != "void"]
    shared = [note for note in _notes(rows[0]) if all(note in _notes(row) for row in rows)] if rows else []
    return shared if len(rows) > 1 else []
