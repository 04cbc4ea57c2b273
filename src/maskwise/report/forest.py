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
    "heldout": (
        "Held-out loss",
        "In nats, turned so that right is better; only between arms with equal units.",
    ),
}


def forest_groups(contrasts: list[dict[str, Any]], colours: dict[str, str]) -> list[dict[str, Any]]:
    """[{"kind", "title", "note", "rows", "unit"}]: numbers of different units share no axis."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in contrasts:
        outcome = str(row.get("outcome"))
        kind = "tasks" if outcome == "tasks" else "heldout" if outcome.startswith("heldout:") else "task"
        groups.setdefault(kind, []).append(row)
    return [
        _group(kind, sorted(groups[kind], key=lambda row: row.get("verdict") == "void"), colours)
        for kind in ("tasks", "task", "heldout")
        if kind in groups
    ]


def _group(kind: str, rows: list[dict[str, Any]], colours: dict[str, str]) -> dict[str, Any]:
    scale = 100 if any(row.get("unit") == "score" for row in rows) or kind == "task" else 1
    sign = -scale if kind == "heldout" else scale
    drawn = [row for row in rows if row.get("mean") is not None and row.get("verdict") != "void"]
    # With two runs an interval can be a hundred times the effect: such ends are cut, and marked as cut.
    means = [abs(row["mean"]) for row in drawn]
    ends = [abs(row[end]) for row in drawn for end in ("low", "high") if row.get(end) is not None]
    reach = (
        scale * max(min(max(ends, default=0), 4 * max(means, default=0)), max(means, default=0), 1e-9) * 1.1
    )
    unit = {"tasks": "spreads between seeds", "task": "points", "heldout": "nats"}[kind]
    if kind == "tasks" and scale == 100:
        unit = "points"

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, sign * value / reach)), 2)

    lines = []
    for row in rows:
        line = {"row": row, "colour": colours.get(row.get("arm", ""), SLATE), "drawn": row in drawn}
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
    return {
        "kind": kind,
        "title": title,
        "note": note,
        "rows": lines,
        "unit": unit,
        "reach": f"{reach:.2g}" if drawn else None,
    }
