"""A dry run for people: what a study would do, and how long that may take."""

from __future__ import annotations

from typing import Any

from maskwise.cli.terminal import columns, escape, out_console, say
from maskwise.errors import duration


def print_plan(plan: dict[str, Any]) -> None:
    """A dry run: stages by kind, what each phase of training costs, and the time until the end, if
    it is known.
    """
    from maskwise.study.prospects import prospect_lines

    table = columns("stages", "done", "to do", "time of work")
    for kind, facts in plan["stages"].items():
        table.add_row(kind, str(facts["done"]), str(facts["to_do"]), duration(facts["seconds"]))
    out_console.print(table)
    trainings = columns(
        "phase", "arms", "runs", "steps", "rows × length", "tokens", "FLOPs", "time"
    )
    for line in plan["phases"]:
        spent = "" if line["flops"] is None else f"{line['flops']:.1e}"
        trainings.add_row(
            str(line["phase"]),
            escape(", ".join(line["arms"])),
            f"{line['runs']}",
            f"{line['steps']:,}",
            f"{line['batch_size']} × {line['length']}",
            _short(line["tokens"]),
            spent,
            duration(line["seconds"]),
        )
    out_console.print(trainings)
    say(f"Runs: {_runs(plan)}")
    for line in prospect_lines(plan["contrasts"]):
        say(line)
    for note in plan["notes"]:
        say(f"Note: {note}")
    if plan["seconds"] is None:
        kinds = ", ".join(plan["unknown"])
        left = f"time unknown: nothing like {kinds} was timed here yet; maskwise check times it"
    else:
        left = f"about {duration(plan['seconds'])}"
    say(f"With {plan['jobs']} at once: {left}. Nothing was written.")


def _runs(plan: dict[str, Any]) -> str:
    """300 runs (search), 60 runs (main)."""
    return ", ".join(f"{line['runs']} runs ({line['purpose']})" for line in plan["plans"])


def _short(number: float) -> str:
    """A count in three digits: 230 k, 1.72 T."""
    sizes = ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)
    return next(
        (f"{number / size:.3g} {letter}" for letter, size in sizes if number >= size), f"{number:g}"
    )
