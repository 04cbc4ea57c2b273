"""Options and output that several commands share: tables, plans and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.measure import measure_renderables
from rich.table import Table
from rich.text import Text

from maskwise.base.constants import GAIN, MOST_SEEDS
from maskwise.base.errors import MaskwiseError, duration, visible
from maskwise.base.folders import require_page, results_folder, shipped
from maskwise.base.printing import Terminal, err_console, note, out_console, print_json, say, warn
from maskwise.base.specs import is_path, split_options

T = TypeVar("T")
JsonObject: TypeAlias = dict[str, Any]
"""The result of a command, as JSON values."""
PIPE_WIDTH = 10_000
"""Width in characters of tables in pipes and files."""
SPACE = 2
"""Spaces between columns."""
LONGEST_WORD = 24
"""Characters of a word, such as a path, above which it may be broken in a column."""
LONGEST_NAME = 40
"""Characters of a name with spaces, such as that of an arm, above which it may be broken."""

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for all results. Use the same folder to resume. Default: a folder in runs/ "
        "that is named after the recipe, the model or the text.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]


def settings_and_files(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments of a command into settings and files.

    >>> settings_and_files(["training.steps=5", "labels.csv", "ud-pos(train_rows=200)"])
    (['training.steps=5'], ['labels.csv', 'ud-pos(train_rows=200)'])
    """
    settings: list[str] = []
    files: list[str] = []
    for word in words:
        name, _ = split_options(word)
        (settings if "=" in name and not is_path(name) else files).append(word)
    return settings, files


def last_ones_said(
    section: str = "",
) -> Callable[[typer.Context, list[str] | None], list[str] | None]:
    """Return a callback that says which of two values of a ``key=value`` setting counts.

    It refuses files among the settings of a command that reads files by an option.

    Args:
        section: a section of a recipe, whose name may stand before a setting or be left out.
    """

    def say(context: typer.Context, settings: list[str] | None) -> list[str] | None:
        values: dict[str, str] = {}
        # The files of ``check`` are arguments, too.
        labelled = {"overrides", "task"} <= {each.name for each in context.command.params}
        for text in settings or ():
            key, sign, value = text.partition("=")
            if not sign and labelled and is_path(split_options(text)[0]):
                raise MaskwiseError(
                    "this is a file, and settings have the form key=value",
                    got=text,
                    do=f"give a file with labels as --task {text}",
                )
            key = key.removeprefix(f"{section}.")
            if sign and values.get(key, value) != value:
                note([f"{key} is given twice, and the last value counts: {value}"])
            values[key] = value
        return settings

    return say


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names of recipes that begin so, for the shell."""
    return [name for name in shipped() if name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Return the names of settings that begin so, for the shell."""
    from maskwise.recipe.described import recipe_keys

    return [f"{key}=" for key in recipe_keys() if key.startswith(incomplete)]


def complete_policy(incomplete: str) -> list[str]:
    """Return the names of policies that begin so, for the shell."""
    from maskwise.masking.policies import POLICIES

    return [name for name in POLICIES if name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=complete_setting,
        help="Settings to change, such as training.batch_size=32 masking.ratio=0.3",
        callback=last_ones_said(),
    ),
]
RecipeName = Annotated[
    str, typer.Argument(autocompletion=complete_recipe, help="A shipped recipe or a YAML file.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Parallel processes. Default: one per core or GPU; small models can share a GPU.",
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes that train each model together, each on a GPU or core of its own "
        "(docs/scaling.md).",
    ),
]
Engine = Annotated[str, typer.Option(help="Where to run: local, or ray (on a cluster).")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would run and how long; write nothing.")
]
Timing = Annotated[
    bool,
    typer.Option(help="Run stages with little text and few steps, unless their time is known."),
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--html",
        help="Also write a page.",
        # Before the work, whose page this is.
        callback=lambda path: path and require_page(path),
    ),
]
Words = Annotated[
    str,
    typer.Option(
        help="What a word is: auto, spaces, token, regex:PATTERN, or a segmenter such as jieba."
    ),
]
TextField = Annotated[str, typer.Option(help="The field that contains the text.")]


def out_folder(out: Path | None, source: str, *, command: str = "") -> Path:
    """Return the folder for results: the given one, or ``folders.results_folder``."""
    if out is not None:
        return out
    return results_folder(source, command)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table without borders. No cell is cut.

    On a terminal that is too narrow for whole words, and for whole names in the first column and in
    "against", there is a line for every field of a row.
    """
    # rich counts control characters as 0 wide, but a terminal gets a dot for each of them.
    cells = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    # A file or a pipe has no width.
    console = out_console
    if not console.is_terminal:
        console = Terminal(width=PIPE_WIDTH)
    table = Table(box=None, padding=(0, SPACE, 0, 0), show_header=any(heads))
    widths = _widths(
        console, [[head, *column] for head, *column in zip(heads, *cells, strict=True)]
    )
    if widths is None:
        longest = max(map(len, heads))
        for row in cells:
            for head, cell in zip(heads, row):
                if cell:
                    name = f"{head:{longest}}  " if head else ""
                    console.print(Text.assemble(name, cell), soft_wrap=True)
            console.print("")
        return
    for head, width in zip(heads, widths):
        table.add_column(head, width=width, overflow="fold")
    for row in cells:
        table.add_row(*row)
    if console is out_console:
        console.print(table)
        return
    # In a file, the blanks that fill a line up are noise.
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        out_console.print(Text(line.rstrip()), soft_wrap=True)


def _widths(console: Console, columns: Iterable[Sequence[str | Text]]) -> list[int] | None:
    """Return widths at which only words above ``LONGEST_WORD`` and names above ``LONGEST_NAME`` are
    broken; None if there are none.

    Args:
        columns: the cells of every column, with its head.
    """
    least = []
    widths = []
    for number, column in enumerate(columns):
        needed = measure_renderables(console, console.options, column)
        smallest = min(needed.minimum, LONGEST_WORD)
        # A name in two lines looks like two names.
        if number == 0 or column[0] == "against":
            smallest = max(smallest, min(needed.maximum, LONGEST_NAME))
        least.append(smallest)
        widths.append(needed.maximum)
    room = console.width - SPACE * len(widths)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        wrapping = [n for n, width in enumerate(widths) if width > least[n]]
        widths[max(wrapping, key=widths.__getitem__)] -= 1
    return widths


def figure(value: float | None, form: str = ".3f") -> str:
    """Format a value; "" for None."""
    if value is None:
        return ""
    return format(value, form)


def has_colours() -> bool:
    return bool(out_console.color_system and not out_console.no_color)


COLOURS = {
    "decided": "bold green",
    "no difference that matters": "green",
    "open": "yellow",
    "not comparable": "red",
}


def print_verdicts(summary: JsonObject) -> None:
    """Print the primary contrasts, headline, flags, advice and held-out losses of a summary."""
    from maskwise.results.estimates import contrast_table, loss_table, reasons

    rows = [row for row in summary["contrasts"] if row["primary"]]
    if rows:
        heads, *lines = contrast_table(rows)
        cells: list[list[str | Text]] = []
        for row, (*others, verdict) in zip(rows, lines, strict=True):
            cells.append([*others, Text(verdict, COLOURS[str(row["verdict"])])])
        print_table(heads, cells)
    say(summary["headline"], "bold")
    for sentence in reasons(rows):
        say(f"  · {sentence}", "dim")
    for sentence in summary["advice"]:
        say(f"  → {sentence}")
    say("")
    if summary["losses"]:
        names, *lines = loss_table(summary["losses"])
        print_table(names, lines)
        say("")


def short(number: float) -> str:
    """Format a count with three significant digits.

    >>> short(538_000), short(1.72e12), short(12)
    ('538 k', '1.72 T', '12')
    """
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:g}"


def seeds_of(text: str, option: str) -> list[int]:
    """Return the seeds or epochs of a list such as 100-103,107, which is the value of an option."""
    seeds = set[int]()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            if not dash:
                last = first
            span = range(int(first), int(last) + 1)
            # No study needs more seeds, and a very long range would exhaust the memory.
            if not 0 < len(span) <= MOST_SEEDS - len(seeds):
                raise ValueError
            seeds.update(span)
    except (ValueError, OverflowError):
        allowed = "numbers, such as 100-105, or 100,103, …"
        raise MaskwiseError(f"bad {option}", got=repr(text), allowed=allowed) from None
    return sorted(seeds)


def adapt_lines(plan: JsonObject, *, warned: Container[str] = ()) -> list[str]:
    """Return sentences about a plan of adapt: held-out documents and cut rows.

    Args:
        warned: tasks of which a printed warning says already that rows are truncated.
    """
    lines = []
    if "held_out" in plan:
        held_out = f"{plan['held_out']:.1%} of the documents are held out from training"
        if plan["made_task"]:
            held_out += f"; the task {plan['made_task']} is made of them"
        lines.append(f"{held_out}.")
    for task, share in plan.get("cut", {}).items():
        if share and task not in warned:
            rows = f"{share:.1%} of the rows of {task}"
            lines.append(f"{rows} have more than {plan['max_length']} tokens and are truncated.")
    return lines


def print_check(
    check: Callable[[Callable[[JsonObject], object]], JsonObject], *, as_json: bool
) -> JsonObject:
    """Print a check: all but the times before stages are timed, and the times when they are.

    Args:
        check: a function that returns the record of ``forecast.check``, whose argument ``tell`` it
            gets.

    Returns:
        The record.
    """
    printed: int | None = None

    def tell(record: JsonObject) -> None:
        nonlocal printed
        printed = len(record["doubts"])
        print_plan(record)
        say("")
        print_time(record)
        say("Rehearsing each stage with little text; Ctrl-C keeps this plan …", to=err_console)

    if as_json:
        record = check(lambda record: None)
        print_json(record)
        return record
    record = check(tell)
    if printed is None:
        print_plan(record)
        printed = len(record["doubts"])
    print_times(record, record["doubts"][printed:])
    return record


def print_plan(record: JsonObject) -> None:
    """Print facts of text, tasks and model, a table of arms, and warnings."""
    from maskwise.studies.forecast import lines_of

    *facts, _ = lines_of(record)
    print_table(("", ""), ((Text(name, "bold"), line) for name, line in facts))
    say("")
    rows = []
    for name, arm in record["arms"].items():
        if arm["targets_per_step"] is None:
            rows.append((name, arm["masks"], f"unknown: {arm['why']}", "", ""))
            continue
        targets = f"{arm['targets_per_step']:,.0f}"
        size = figure(arm["tokens_per_unit"], ".2f")
        rows.append((name, arm["masks"], targets, f"{arm['share']:.1%}", size))
    print_table(("arm", "masks", "targets per step", "share", "tokens per unit"), rows)
    _print_doubts(record)
    if not any(doubt["do"] for doubt in record["doubts"]):
        say("\nThere are no warnings.")


def _print_doubts(record: JsonObject) -> None:
    from maskwise.studies.forecast import problems_and_notes

    problems, notes = problems_and_notes(record)
    for doubt in problems:
        say(f"\n? {doubt['what']}", "yellow")
        say(f"  → {doubt['do']}")
    for each in notes:
        say(f"· {each}")


def print_times(record: JsonObject, doubts: list[JsonObject]) -> None:
    """Print tables of stages and phases, the time, and ``doubts`` that follow from times."""
    from maskwise.studies.forecast import too_many_cut

    say("")
    stages = []
    for kind, facts in record["stages"].items():
        done = str(facts["done"])
        stages.append((kind, done, str(facts["to_do"]), duration(facts["seconds"])))
    print_table(("stages", "done", "to do", "work time"), stages)
    phases = []
    for line in record["phases"]:
        phases.append(
            (
                str(line["phase"]),
                ", ".join(line["arms"]),
                str(line["runs"]),
                f"{line['steps']:,}",
                f"{line['batch_size']} × {line['length']}",
                short(line["tokens"]),
                duration(line["seconds"]),
            )
        )
    say("")
    heads = ("phase", "arms", "runs", "steps", "rows × length", "tokens", "time")
    print_table(heads, phases)
    say("")
    print_time(record)
    _print_doubts({"doubts": doubts, "notes": []})
    say("Nothing was written.")
    warned = [name for name, task in record["tasks"].items() if too_many_cut(task)]
    for each in adapt_lines(record, warned=warned):
        say(each)


def print_time(record: JsonObject) -> None:
    """Print when the work of a plan ends."""
    from maskwise.studies.forecast import lines_of

    *_, (name, time) = lines_of(record)
    print_table(("", ""), [(Text(name, "bold"), time)])


HARDLY_MORE = 1.1
"""A warning is printed if the weight of labelled words is at most this multiple of their share."""


def print_policy(result: JsonObject) -> None:
    """Print the measures of a learned policy, and warnings."""
    held_out = result.get("held_out") or {}
    salient = held_out.get("salient", {})
    figures = {**held_out, GAIN: result.get("gain")}
    rows = []
    for name, value in figures.items():
        if isinstance(value, int | float):
            baseline = figure(salient.get(name), ".4g")
            rows.append((name.replace("_", " "), f"{value:.4g}", baseline))
    print_table(("on held-out texts", "policy", "salient spans"), rows)
    for reason, count in result.get("left_out", {}).items():
        warn(f"{count} {reason}")
    # A policy with nearly equal weights has learned nothing.
    weight = held_out.get("weight_on_labels", 1.0)
    even = held_out.get("labelled_words", 0.0)
    if result.get("gain", 1) <= 0 or weight <= HARDLY_MORE * even:
        warn("the policy is hardly better than equal weights and may be useless")
    if result.get("stopped"):
        kept = f"the saved policy is from step {result['best_step']}"
        warn(f"learning stopped early: {result['stopped']}; {kept}")
    if result.get("overshoot"):
        do = "lower this rate in learning.meta; otherwise the policy may not learn the task"
        warn(f"{result['overshoot']}: {do}")
    say(f"Policy: {result['policy']}   Page: {result['report']}  ({result['seconds']:.0f} s)")
