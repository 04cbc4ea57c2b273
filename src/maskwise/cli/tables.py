"""What ``maskwise study`` prints: verdicts with their reasons, or the plan of a dry run."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from maskwise.cli.terminal import escape, out_console

COLOURS = {"decided": "bold green", "suggests": "yellow", "undecided": "white", "void": "red"}
"""Of the verdicts."""


def print_verdicts(result: dict[str, Any]) -> None:
    """The primary contrasts, what they say in a sentence, why no more, and what to do."""
    out_console.print(_contrasts(result))
    out_console.print(f"[bold]{escape(result['headline'])}[/bold]", highlight=False)
    why: dict[str, list[str]] = {}
    for row in result["contrasts"]:
        for reason in row["reasons"] if row["primary"] else ():
            if reason["effect"] in ("voids", "caps") or reason["code"] in ("unmatched-compute", "overlap"):
                why.setdefault(reason["sentence"], []).append(row["arm"])
    rows = sum(row["primary"] for row in result["contrasts"])
    for told, arms in why.items():
        known = len(arms) == rows or any(arm in told for arm in arms)
        who = "" if known else f"{', '.join(dict.fromkeys(arms))}: "
        out_console.print(f"  · {escape(who + told)}", highlight=False, style="dim")
    for told in result["advice"]:
        out_console.print(f"  → {escape(told)}", highlight=False)
    out_console.print()


def _contrasts(result: dict[str, Any]) -> Table:
    """The primary contrasts, a line each: in points of a score, or nats; and the numbers the verdict rests on."""
    rows = [row for row in result["contrasts"] if row["primary"]]
    by = "all tasks" if any(row["outcome"] == "tasks" for row in rows) else "held-out loss"
    spread = (
        "in spreads between seeds, 95 %" if any(row["unit"] == "SDs" for row in rows) else "95 % interval"
    )
    bases = dict.fromkeys(row["baseline"] for row in rows)
    named = len(bases) > 1
    heads = ("arm", "against", by) if named else ("arm", f"{by}, against {next(iter(bases), '')}")
    table = Table(*heads, spread, "verdict", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        natural = row.get("natural") or row
        scale, unit, digits = (1, "nats", 3) if row["unit"] == "nats" else (100, "points", 1)
        mean = "" if natural["mean"] is None else f"{_signed(scale * natural['mean'], digits)} {unit}"
        if row["low"] is None:
            interval = "one run: none"
        elif row["unit"] == "SDs":
            interval = f"{_signed(row['mean'], 1)} ({_signed(row['low'], 1)} to {_signed(row['high'], 1)})"
        else:
            low, high = (_signed(scale * row[end], digits) for end in ("low", "high"))
            interval = f"{low} to {high}"
        which = {"arm": " better", "baseline": " worse"}.get(row["better"], "")
        verdict = f"[{COLOURS[row['verdict']]}]{row['verdict']}{which}[/] ({row['reason'].replace('-', ' ')})"
        who = [escape(row["arm"]), escape(row["baseline"])][: 1 + named]
        table.add_row(*who, mean, interval, verdict)
    return table


def print_plan(found: dict[str, Any]) -> None:
    """A dry run: stages by kind, and the time until the end as far as it is known."""
    table = Table("stages", "done", "to do", "minutes of work", box=None, padding=(0, 2, 0, 0))
    for kind, facts in found["stages"].items():
        work = "unknown" if facts["seconds"] is None else f"{facts['seconds'] / 60:.1f}"
        table.add_row(kind, str(facts["done"]), str(facts["to_do"]), work)
    out_console.print(table)
    phases = ", ".join(f"{line['phase']} ({line['runs']} runs)" for line in found["phases"])
    out_console.print(f"Phases: {phases}", highlight=False, soft_wrap=True)
    for note in found["notes"]:
        out_console.print(f"Note: {note}", highlight=False, soft_wrap=True)
    if found["seconds"] is None:
        kinds = ", ".join(found["unknown"])
        left = f"time unknown: no like stage was timed here yet ({kinds})"
    else:
        left = f"about {found['seconds'] / 60:.0f} min"
    out_console.print(
        f"With {found['jobs']} at once: {left}. Nothing was written.", highlight=False, soft_wrap=True
    )


def _signed(number: float, digits: int) -> str:
    return f"{number:+.{digits}f}".replace("-", "−")
