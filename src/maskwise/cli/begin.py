"""What a newcomer meets first: the screen of a bare ``maskwise``, and check, which says what a
recipe would do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise import __version__
from maskwise.cli.plans import print_plan
from maskwise.cli.terminal import (
    Json,
    Out,
    Overrides,
    columns,
    escape,
    out_console,
    print_json,
    say,
)
from maskwise.errors import MaskwiseError
from maskwise.folders import recipe_path

FIRST_STEPS = {
    'maskwise inspect "Marie Curie was born in Warsaw in '
    '1867."': "see what is masked, before anything is trained",
    "maskwise check my_texts.txt": "what would be trained on your text, how long it takes, what "
    "is doubtful",
    "maskwise study --new my_texts.txt "
    "my_labels.csv": "write a recipe for your own text and labels",
    "maskwise study my_texts.yaml --out runs/mine": "compare ways to mask; ends with a verdict "
    "and a page",
    "maskwise adapt bundled:encoder my_texts.txt --task "
    "my_labels.csv": "does it help to go on with a model?",
    "maskwise list recipes": "what else there is: recipes, policies, schedules, objectives, tasks",
}
"""Commands for a beginning, and what each is for."""


def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Pre-train masked language models well: choose what to mask, and learn which choice is worth
    it.
    """
    if version:
        out_console.print(f"maskwise {__version__}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    out_console.print(
        "maskwise compares ways to mask text, in pre-training and in further training.\n"
    )
    out_console.print("Where to begin", style="bold")
    for command, purpose in FIRST_STEPS.items():
        say(f"  {command}", "cyan")
        out_console.print(Padding(Text(purpose, "dim"), (0, 0, 0, 6)))
    names = ", ".join(context.command.list_commands(context))  # type: ignore[attr-defined]  # a group has them
    out_console.print(
        f"\nCommands: {names}. Each of them has --help.", markup=False, highlight=False
    )


def check(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FILE", help="A recipe, a file or folder of texts, or a file of labels."
        ),
    ],
    overrides: Overrides = None,
    timing: Annotated[
        bool,
        typer.Option(help="Time a few real steps, where none like them were timed here before."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Say what a recipe would train, how long it takes, and what is doubtful. Nothing is written.

    A file of texts or of labels is checked with the recipe that `maskwise study --new` would write
    for it.
    """
    if not (Path(subject).exists() or subject.startswith(("hf:", "bundled:"))):
        recipe_path(subject)  # a typo is told before anything large is imported
    from maskwise.study.outlook import outlook_of

    facts = outlook_of(subject, overrides or [], timing=timing)
    if as_json:
        print_json(facts)
    else:
        print_outlook(facts)


def adapt(
    model: Annotated[
        str, typer.Argument(help="An encoder: a folder, a hub id, bundled:encoder or package:NAME.")
    ],
    texts: Annotated[str, typer.Argument(help="Your text: a file, a folder, or hf:NAME.")],
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="A file of labels to judge by. Repeatable."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="A folder that maskwise learn made: one more arm masks by it."),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=1, help="Of the further training, and at most 600 of a new head before it."
        ),
    ] = 600,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each arm; six pairs are the fewest that decide.")
    ] = 6,
    out: Out = Path("runs/adapt"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stages at once; as many as cores if not said.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go on with a real encoder on your own text: does it help, by how much, at what cost?

    The same command goes on where an interrupted one stopped. OUT/model is a folder for
    transformers, and OUT/sentence-model one for sentence-transformers.
    """
    from maskwise import study as room
    from maskwise.study.adapt import (
        adapt_recipe,
        answer_of,
        arm_that_helps,
        best_arm,
        kept_of,
        save_adapted,
    )

    # a dry run writes nothing over an earlier study's pairs
    with tempfile.TemporaryDirectory() as aside:
        recipe = adapt_recipe(
            model,
            texts,
            task or (),
            policy=policy,
            steps=steps,
            seeds=seeds,
            pairs=out.parent / f"{out.name}-pairs.jsonl",
            aside=Path(aside) if dry_run else None,
            overrides=overrides or (),
        )
        if dry_run:
            plan = room.dry_run(recipe, out, jobs=jobs)
            print_json(plan) if as_json else print_plan(plan)
            return
    result = room.run_study(recipe, out, jobs=jobs, quiet=as_json)
    best = best_arm(out)
    folders = save_adapted(out, best) if best else ()
    answer = answer_of(result, recipe)
    if as_json:
        print_json(
            {
                **result,
                "answer": answer,
                "best": best,
                "folders": [str(folder) for folder in folders],
            }
        )
    else:
        say(answer, "bold")
        kept = kept_of(best, folders, helps=arm_that_helps(result))
        say(f"{kept} Page: {result['report']}")
    raise typer.Exit(bool(result["failures"]))


def print_outlook(facts: dict[str, Any]) -> None:
    """The text, the tasks, the model, what each arm trains on, the time, and the doubts."""
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, line in facts["lines"]:
        table.add_row(Text(name, "bold"), Text(line))
    out_console.print(table)
    arms = columns("arm", "masks", "targets a step", "share", "tokens a unit")
    for name, arm in facts["arms"].items():
        unit = "" if arm["tokens_per_unit"] is None else f"{arm['tokens_per_unit']:.2f}"
        arms.add_row(
            escape(name),
            escape(arm["masks"]),
            f"{arm['targets_per_step']:,.0f}",
            f"{arm['share']:.1%}",
            unit,
        )
    if facts["arms"]:
        out_console.print(Padding(arms, (1, 0, 0, 0)))
    for doubt in facts["doubts"]:
        out_console.print()
        say(f"? {doubt['what']}", "yellow")
        if doubt["do"]:
            out_console.print(Padding(Text(f"→ {doubt['do']}"), (0, 0, 0, 2)), soft_wrap=True)
    if not facts["doubts"]:
        out_console.print("\nNothing is doubtful.")


def write_new_recipe(texts: str, tasks: list[str]) -> None:
    """Write the recipe of ``maskwise study --new``, named after the file of texts, and say what to
    do with it.

    Raises:
        MaskwiseError: a file that cannot be read, or a recipe of that name that is there already.
    """
    from maskwise.folders import refuse_missing, shipped, write_whole

    if texts in shipped() and not Path(texts).exists():
        do = "maskwise study --new my_texts.txt my_labels.csv"
        raise MaskwiseError("--new wants a file of texts", got=f"the recipe {texts}", do=do)
    refuse_missing(texts, *tasks)
    from maskwise.study.starter import name_of, starter

    target = Path(f"{name_of(texts)}.yaml")
    if target.exists():
        raise MaskwiseError(f"{target} is there already", do="move it away, or change it by hand")
    write_whole(target, starter(texts, tasks))
    recipe = quote(str(target))  # a name may hold spaces and brackets
    out = quote(f"runs/{target.stem}")
    said = (
        f"wrote {target}",
        f"next: maskwise check {recipe}",
        f"then: maskwise study {recipe} --out {out}",
    )
    for line in said:
        say(line)
