"""What a newcomer meets first: the screen of a bare ``maskwise``, and check, which says what a recipe would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise import __version__
from maskwise.cli.terminal import Json, Overrides, escape, out_console, print_json
from maskwise.errors import MaskwiseError

FIRST_STEPS = {
    'maskwise inspect "Marie Curie was born in Warsaw in 1867."': "see what is masked, before anything is trained",
    "maskwise check my_texts.txt": "what would be trained on your text, how long it takes, what is doubtful",
    "maskwise study --new my_texts.txt my_labels.csv": "write a recipe for your own text and labels",
    "maskwise study my_texts.yaml --out runs/mine": "compare ways to mask; ends with a verdict and a page",
    "maskwise list recipes": "what else there is: recipes, policies, schedules, objectives, tasks",
}
"""Commands for a beginning, and what each is for."""


def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Pre-train masked language models well: choose what to mask, and learn which choice is worth it."""
    if version:
        out_console.print(f"maskwise {__version__}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    out_console.print("maskwise compares ways to mask text, in pre-training and in further training.\n")
    out_console.print("Where to begin", style="bold")
    for command, purpose in FIRST_STEPS.items():
        out_console.print(Text(f"  {command}", "cyan"), highlight=False, soft_wrap=True)
        out_console.print(Padding(Text(purpose, "dim"), (0, 0, 0, 6)))
    names = ", ".join(context.command.list_commands(context))  # type: ignore[attr-defined]  # a group has them
    out_console.print(f"\nCommands: {names}. Each of them has --help.", markup=False, highlight=False)


def check(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FILE", help="A recipe, a file or folder of texts, or a file of labels."
        ),
    ],
    overrides: Overrides = None,
    timing: Annotated[
        bool, typer.Option(help="Time a few real steps, where none like them were timed here before.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say what a recipe would train, how long it takes, and what is doubtful. Nothing is written.

    A file of texts or of labels is checked with the recipe that `maskwise study --new` would write for it.
    """
    from maskwise.study.outlook import outlook_of

    facts = outlook_of(subject, overrides or [], timing=timing)
    if as_json:
        print_json(facts)
    else:
        print_outlook(facts)


def print_outlook(facts: dict[str, Any]) -> None:
    """The text, the tasks, the model, what each arm trains on, the time, and the doubts."""
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, line in facts["lines"]:
        table.add_row(Text(name, "bold"), Text(line))
    out_console.print(table)
    arms = Table("arm", "masks", "targets a step", "share", "tokens a unit", box=None, padding=(0, 2, 0, 0))
    for name, arm in facts["arms"].items():
        unit = "" if arm["tokens_per_unit"] is None else f"{arm['tokens_per_unit']:.2f}"
        arms.add_row(
            escape(name), escape(arm["masks"]), f"{arm['targets_per_step']:,.0f}", f"{arm['share']:.1%}", unit
        )
    if facts["arms"]:
        out_console.print(Padding(arms, (1, 0, 0, 0)))
    for doubt in facts["doubts"]:
        out_console.print()
        out_console.print(Text(f"? {doubt['what']}", "yellow"), soft_wrap=True)
        if doubt["do"]:
            out_console.print(Padding(Text(f"→ {doubt['do']}"), (0, 0, 0, 2)), soft_wrap=True)
    if not facts["doubts"]:
        out_console.print("\nNothing is doubtful.")


def write_new_recipe(texts: str, tasks: list[str]) -> None:
    """Write the recipe of ``maskwise study --new``, named after the file of texts, and say what to do with it.

    Raises:
        MaskwiseError: a file that cannot be read, or a recipe of that name that is there already.
    """
    from maskwise.folders import write_whole
    from maskwise.study.starter import starter

    target = Path(f"{Path(texts).name.split('.')[0] or 'mine'}.yaml")
    if target.exists():
        raise MaskwiseError(f"{target} is there already", do="move it away, or change it by hand")
    write_whole(target, starter(texts, tasks))
    said = (
        f"wrote {target}",
        f"next: maskwise check {target}",
        f"then: maskwise study {target} --out runs/{target.stem}",
    )
    for line in said:
        out_console.print(line, markup=False, highlight=False, soft_wrap=True)
