"""First steps: the screen of a bare ``maskwise``, check, adapt, and the recipe of study --new."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from maskwise import __version__
from maskwise.cli.terminal import (
    DryRun,
    Jobs,
    Json,
    Out,
    Overrides,
    command_of,
    err_console,
    out_console,
    print_json,
    print_plan,
    print_table,
    say,
)
from maskwise.errors import MaskwiseError
from maskwise.folders import recipe_path, refuse_missing, shipped, write_whole
from maskwise.specs import split_options

if TYPE_CHECKING:
    from maskwise.recipe import Recipe
    from maskwise.recipe.overrides import Plain

FIRST_STEPS = {
    'maskwise inspect "Marie Curie was born in Warsaw in 1867."': "see what is masked, before any "
    "training",
    "maskwise check my_texts.txt": "what would be trained on your text, how long it takes, what "
    "is doubtful",
    "maskwise study --new my_texts.txt my_labels.csv": "write a recipe for your own text and "
    "labels",
    "maskwise study my_texts.yaml --out runs/mine": "compare ways to mask; ends with a verdict "
    "and a page",
    "maskwise adapt bundled:encoder my_texts.txt --task my_labels.csv": "does further training "
    "of a model help?",
    "maskwise list recipes": "list recipes; or policies, schedules, objectives, tasks, …",
}


def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Pre-train masked language models well: choose what to mask, and learn which choice is worth
    it.
    """
    if version:
        out_console.print(f"maskwise {__version__}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    say("maskwise compares ways to mask text, in pre-training and in further training.\n")
    say("Where to begin", "bold")
    for command, purpose in FIRST_STEPS.items():
        say(f"  {command}", "cyan")
        out_console.print(Padding(Text(purpose, "dim"), (0, 0, 0, 6)))
    # typer declares the context of any command, which may have no subcommands.
    names = ", ".join(context.command.list_commands(context))  # type: ignore[attr-defined]
    say(f"\nCommands: {names}. Each of them has --help.")


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
        typer.Option(help="Time a few real steps, unless similar ones were timed here before."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Say what a recipe would train, how long it takes, and what is doubtful. Nothing is written.

    A file of texts or of labels is checked with the recipe that `maskwise study --new` would write
    for it.
    """
    if not (Path(split_options(subject)[0]).exists() or subject.startswith(("hf:", "bundled:"))):
        # Refuse a typo before the slow imports.
        recipe_path(subject)
    from maskwise.study.outlook import outlook_of

    facts = outlook_of(subject, overrides or [], timing=timing)
    if as_json:
        print_json(facts)
    else:
        print_outlook(facts)


def time_limit(text: str) -> float:
    """Seconds of a duration such as 2h, 90m or 1h30m; a number alone means minutes."""
    import pandas as pd

    try:
        seconds = pd.Timedelta(f"{text}m" if text.isdecimal() else text).total_seconds()
    except ValueError:
        seconds = 0.0
    # NaT is no number, and so no time either.
    if not seconds >= 60:
        allowed = "a minute or more, as 2h, 90m or 1h30m"
        raise MaskwiseError("--time is no duration", got=repr(text), allowed=allowed)
    return seconds


def adapt(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="An encoder: a folder, a hub id, bundled:encoder or package:NAME.")
    ],
    texts: Annotated[str, typer.Argument(help="Your text: a file, a folder, or hf:NAME.")],
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="A file of labels to fine-tune on. Repeatable."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Some of words-30, token-15, token-30, tsdae, by commas.")
    ] = "words-30",
    policy: Annotated[
        str | None,
        typer.Option(help="A folder of maskwise learn: one more arm masks by it."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the further training.")] = 600,
    head_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of a new head, once for all runs; at most 600 by default."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each arm; six pairs are the fewest that decide.")
    ] = 6,
    limit: Annotated[
        str,
        typer.Option("--time", help="2h, 90m, 1h30m; if more is needed, a smaller plan is named."),
    ] = "2h",
    out: Out = Path("runs/adapt"),
    jobs: Jobs = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a real encoder further on your own text: does it help, by how much, at what cost?

    The same command resumes an interrupted one. OUT/model is a folder for transformers, and
    OUT/sentence-model one for sentence-transformers.
    """
    from maskwise import study as room
    from maskwise.study import adapt as steps_of
    from maskwise.study.timing import PROBE_SECONDS, Samples, time_stages

    given = overrides or []
    limit_seconds = time_limit(limit)

    def command(*changes: str, **options: object) -> str:
        return command_of(context, overrides=[*given, *changes], **options)

    # A dry run must not overwrite the pairs of an earlier study.
    with tempfile.TemporaryDirectory() as aside:

        def recipe_with(changes: list[str], steps: int) -> Recipe:
            return steps_of.adapt_recipe(
                model,
                texts,
                task or (),
                arms=arms.split(","),
                policy=policy,
                steps=steps,
                head_steps=head_steps,
                seeds=seeds,
                pairs=out.parent / f"{out.name}-pairs.jsonl",
                aside=Path(aside) if dry_run else None,
                overrides=[*given, *changes],
            )

        def seconds_of(changes: list[str], steps: int) -> float:
            changed = recipe_with(changes, steps)
            return room.dry_run(changed, out, jobs=jobs, probe=probe)["seconds"] or math.inf

        recipe = recipe_with([], steps)
        if dry_run or not as_json:
            first = recipe.arm(recipe.baseline or "", seed=0).links()[0]
            samples = Samples(first, Path(aside))
            probe = partial(time_stages, samples=samples, most_seconds=PROBE_SECONDS)
            plan = room.dry_run(recipe, out, jobs=jobs, probe=probe)
            plan["max_length"] = recipe.finetune.max_length
            plan["cut"] = steps_of.cut_rows(recipe)
            if (plan["seconds"] or 0.0) > limit_seconds:
                smaller = steps_of.smaller_plan(recipe, seconds_of, limit_seconds)
                plan["smaller"] = smaller
                if smaller:
                    smaller["command"] = command(*smaller["overrides"], steps=smaller["steps"])
    if dry_run and as_json:
        print_json(plan)
        return
    if dry_run:
        print_plan(plan)
    # Of a dry run the plan is the result.
    console = err_console
    if dry_run:
        console = out_console
    if not as_json:
        for line in plan_lines(plan, limit):
            say(line, to=console)
    if dry_run:
        return
    result = room.run_study(recipe, out, jobs=jobs, quiet=as_json)
    best = steps_of.best_arm(out)
    folders = steps_of.save_adapted(out, best) if best else ()
    answer = steps_of.answer_of(result, recipe)

    next_step = steps_of.next_of(result, recipe, task or (), out, command)
    if as_json:
        saved = [str(folder) for folder in folders]
        facts = {"answer": answer, "next": next_step, "best": best, "folders": saved}
        print_json({**result, **facts})
    else:
        say(answer, "bold")
        kept = steps_of.kept_of(best, folders, helps=steps_of.arm_that_helps(result))
        say(f"{kept} Page: {result['report']}")
        say(next_step)
    raise typer.Exit(bool(result["failures"]))


def plan_lines(plan: Plain, limit: str) -> list[str]:
    """Put the plan of adapt into words: its time, its memory, cut rows, and a smaller plan."""
    if plan["seconds"] is None:
        return [f"Time unknown: {', '.join(plan['unknown'])} could not be timed."]
    minutes = math.ceil(plan["seconds"] / 60)
    total = f"about {minutes} min in all, {plan['jobs']} stages at once"
    lines = [f"Time: {total}; memory: {plan['memory_gib'] or 0.0:.1f} GiB for each."]
    for task, share in plan["cut"].items():
        if share:
            rows = f"{share:.1%} of the rows of {task}"
            lines.append(f"{rows} have more than {plan['max_length']} tokens and are cut.")
    if "smaller" not in plan:
        return lines
    over = f"That is more than --time {limit}"
    smaller = plan["smaller"]
    if smaller is None:
        do = "Use fewer labelled rows: --task 'FILE(train_rows=100)'."
        return [*lines, f"{over}, and nothing smaller fits. {do}"]
    minutes = math.ceil(smaller["seconds"] / 60)
    return [*lines, f"{over}. This takes about {minutes} min:", smaller["command"]]


def print_outlook(facts: dict[str, Any]) -> None:
    """Print the text, the tasks, the model, the targets of each arm, the time, and the doubts."""
    print_table(("", ""), ((Text(name, "bold"), line) for name, line in facts["lines"]))
    if facts["arms"]:
        say("")
        rows = []
        for name, arm in facts["arms"].items():
            size = arm["tokens_per_unit"]
            unit = ""
            if size is not None:
                unit = f"{size:.2f}"
            targets = f"{arm['targets_per_step']:,.0f}"
            rows.append((name, arm["masks"], targets, f"{arm['share']:.1%}", unit))
        print_table(("arm", "masks", "targets a step", "share", "tokens a unit"), rows)
    for doubt in facts["doubts"]:
        say(f"\n? {doubt['what']}", "yellow")
        if doubt["do"]:
            say(f"  → {doubt['do']}")
    if not facts["doubts"]:
        say("\nNothing is doubtful.")


def write_new_recipe(texts: str, tasks: list[str]) -> None:
    """Write the recipe of ``maskwise study --new``, named after the file of texts.

    Raises:
        MaskwiseError: a file that cannot be read, or an existing recipe of that name.
    """
    if texts in shipped() and not Path(texts).exists():
        do = "maskwise study --new my_texts.txt my_labels.csv"
        raise MaskwiseError("--new wants a file of texts", got=f"the recipe {texts}", do=do)
    refuse_missing(texts, *tasks)
    from maskwise.study.starter import name_of, starter

    # The working folder, where commands and editors find it.
    target = Path(f"{name_of(texts)}.yaml")
    if target.exists():
        raise MaskwiseError(f"{target} exists already", do="move it away, or change it by hand")
    write_whole(target, starter(texts, tasks))
    # A name may contain spaces and brackets.
    recipe = quote(str(target))
    say(f"wrote {target}")
    say(f"next: maskwise check {recipe}")
    say(f"then: maskwise study {recipe} --out {quote(f'runs/{target.stem}')}")
