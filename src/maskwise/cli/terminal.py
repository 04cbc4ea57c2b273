"""What the commands share: consoles, options, tables, JSON, and how plans and verdicts are
printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskwise.errors import duration

out_console = Console()
err_console = Console(stderr=True)

Out = Annotated[
    Path, typer.Option("--out", help="Folder for all results; the same folder resumes a run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, such as training.steps=500 masking.ratio=0.3"),
]
RecipeName = Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Processes at once; all cores (GPUs on Ray) by default.")
]
Engine = Annotated[str, typer.Option(help="Where work runs: local, or ray (a cluster).")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would run and how long; write nothing.")
]
Page = Annotated[Path | None, typer.Option("--html", help="Also write a page.")]
TextField = Annotated[str, typer.Option(help="The field with the text, in files with fields.")]


def print_json(value: object) -> None:
    # not by rich, which would break and colour lines
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def say(text: str, style: str = "", *, to: Console | None = None) -> None:
    """Print a line as it is: without markup, coloured figures or breaks."""
    (to or out_console).print(Text(text, style), soft_wrap=True)


def warn(text: str, style: str = "yellow") -> None:
    say(text, style, to=err_console)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table without lines; cells are no markup."""
    table = Table(*heads, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    out_console.print(table)


def has_colours() -> bool:
    return bool(out_console.color_system and not out_console.no_color)


def print_plan(plan: dict[str, Any]) -> None:
    """A dry run: stages by kind, the cost of each phase of training, and the time until the end."""
    from maskwise.study.prospects import prospect_lines

    print_table(
        ("stages", "done", "to do", "time of work"),
        (
            (kind, str(facts["done"]), str(facts["to_do"]), duration(facts["seconds"]))
            for kind, facts in plan["stages"].items()
        ),
    )
    print_table(
        ("phase", "arms", "runs", "steps", "rows × length", "tokens", "FLOPs", "time"),
        (
            (
                str(line["phase"]),
                ", ".join(line["arms"]),
                f"{line['runs']}",
                f"{line['steps']:,}",
                f"{line['batch_size']} × {line['length']}",
                short(line["tokens"]),
                "" if line["flops"] is None else short(line["flops"]),
                duration(line["seconds"]),
            )
            for line in plan["phases"]
        ),
    )
    runs = ", ".join(f"{line['runs']} runs ({line['purpose']})" for line in plan["plans"])
    say(f"Runs: {runs}")
    for line in prospect_lines(plan["contrasts"]):
        say(line)
    for note in plan["notes"]:
        say(f"Note: {note}")
    left = f"about {duration(plan['seconds'])}"
    if plan["seconds"] is None:
        kinds = ", ".join(plan["unknown"])
        left = f"time unknown: nothing like {kinds} was timed here yet; maskwise check times it"
    say(f"With {plan['jobs']} at once: {left}. Nothing was written.")


COLOURS = {
    "decided": "bold green",
    "no difference that matters": "green",
    "open": "yellow",
    "not comparable": "red",
}


def print_verdicts(summary: dict[str, Any]) -> None:
    """The primary contrasts, the headline, the flags that matter, and what to do."""
    rows = [row for row in summary["contrasts"] if row["primary"]]
    if rows:
        heads = ("arm", "against", "outcome", "difference", "95 % interval", "p", "verdict")
        print_table(heads, map(_cells, rows))
    say(summary["headline"], "bold")
    # A flag that several rows raise is printed once, with its arms.
    arms_of: dict[str, dict[str, None]] = {}
    for row in rows:
        for flag in row["flags"]:
            # every task has few items: the page says so, with numbers
            if flag["code"] != "items":
                arms_of.setdefault(flag["sentence"], {})[row["arm"]] = None
    all_arms = {row["arm"] for row in rows}
    for sentence, arms in arms_of.items():
        named = arms.keys() == all_arms or any(arm in sentence for arm in arms)
        say(f"  · {sentence}" if named else f"  · {', '.join(arms)}: {sentence}", "dim")
    for sentence in summary["advice"]:
        say(f"  → {sentence}")
    say("")


def _cells(row: Any) -> list[str | Text]:
    from maskwise.estimates import shown
    from maskwise.study.verdict.words import outcome_words

    # the same units as on the page
    amount = shown(row)
    mean, low, high = (
        "" if x is None else f"{x:+.{amount.digits}f}".replace("-", "−")
        for x in (amount.mean, amount.low, amount.high)
    )
    unit = "points" if amount.unit.endswith("points") else amount.unit
    p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}"
    verdict = row["verdict"]
    if row["better"]:
        verdict = f"{'better' if row['better'] == 'arm' else 'worse'} ({verdict})"
    if row["verdict"] != "not comparable":
        verdict += f", {row['scope']}"
    return [
        row["arm"],
        row["baseline"],
        outcome_words(row["outcome"]).partition(" ")[2],  # without "on" or "in"
        mean and f"{mean} {unit}",
        f"{low} to {high}" if low else "needs 6 runs",
        p,
        Text(verdict, COLOURS[row["verdict"]]),
    ]


def short(number: float) -> str:
    """Format a count with three digits.

    >>> short(538_000), short(1.72e12), short(12)
    ('538 k', '1.72 T', '12')
    """
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:g}"
