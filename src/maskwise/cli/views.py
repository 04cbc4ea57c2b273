"""The commands that look, and write at most a page: evaluate, generate, inspect, report, bench,
list.
"""

from __future__ import annotations

import importlib
import inspect as python_inspect
import re
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.padding import Padding
from rich.text import Text

from maskwise.cli.terminal import (
    Json,
    columns,
    err_console,
    escape,
    has_colours,
    out_console,
    print_json,
    say,
)
from maskwise.errors import MaskwiseError, unknown_name


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder or hub id of a masked language model.")
    ],
    measures: Annotated[
        str,
        typer.Option(
            "--with",
            help="pairs:FILE, cloze:FILE (options behind: cloze:FILE(items=500)), "
            "pseudo-perplexity[:ROWS], "
            "bound[:DRAWS] (of masked diffusion), heldout; separated by commas. "
            "pairs:bundled:pairs comes along.",
        ),
    ] = "",
    text: Annotated[
        str | None,
        typer.Option(help="Text it was not trained on, for held-out loss and pseudo-perplexity."),
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Where the text is, in files with fields.")
    ] = "text",
    as_json: Json = False,
) -> None:
    """Judge a checkpoint without fine-tuning: held-out loss, bound, pseudo-perplexity, cloze facts,
    minimal pairs.
    """
    from maskwise.evaluation import evaluate_checkpoint
    from maskwise.specs import split_calls

    records = evaluate_checkpoint(model, split_calls(measures), text=text, text_field=text_field)
    if as_json:
        print_json(records)
        return
    table = columns("measure", "value", "chance", "items", "left out")
    for record in records:
        if record["kind"] == "heldout":
            name = f"held-out loss, {record['masks']} masks {record['ratio']:.0%}"
            error = record.get("error")
            value, chance, items, left_out = (
                record["loss"],
                record["unigram"],
                record["targets"],
                "",
            )
        else:
            name, error = f"{record['name']} {record['metric']}", record.get("error")
            value, chance, items = record["value"], record["chance"], record["items"]
            left_out = "; ".join(
                f"{count} {reason}" for reason, count in record.get("skipped", {}).items()
            )
        known = "" if chance is None else f"{chance:.3f}"
        spread = "" if error is None else f" ± {error:.3f}"
        table.add_row(escape(name), f"{value:.3f}{spread}", known, str(items), left_out)
    out_console.print(table)


def generate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder or hub id of a masked language model.")
    ],
    prompt: Annotated[
        str,
        typer.Option(
            help="What stays as it is. [MASK] and [MASK*5] are gaps of one and five tokens."
        ),
    ] = "",
    length: Annotated[
        int, typer.Option(min=0, help="Tokens to write behind a prompt without gaps.")
    ] = 32,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps; as many as tokens to write if not said.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="Which gaps go first: confidence, random or block.")
    ] = "confidence",
    temperature: Annotated[
        float, typer.Option(help="Above 1 bolder, below 1 surer, 0 always the likeliest token.")
    ] = 1.0,
    block: Annotated[int, typer.Option(min=1, help="Tokens of a block, for the order block.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the tokens that are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Write text by masked diffusion: the model fills gaps step by step, and the terminal shows
    how.

    It takes models that objective diffusion has trained, and any other encoder with a
    masked-language-model head.
    """
    from rich.live import Live
    from transformers.utils import logging

    from maskwise.evaluation.generate import Writer

    logging.disable_progress_bar()
    writer = Writer(model)
    stages = writer.write(
        prompt,
        length=length,
        steps=steps,
        order=order,
        temperature=temperature,
        block=block,
        seed=seed,
    )
    if as_json:
        history = [stage.text for stage in stages]
        made = {
            "text": history[-1],
            "order": order,
            "steps": len(history) - 1,
            "seed": seed,
            "history": history,
        }
        print_json(made)
        return
    if not out_console.is_terminal:
        *_, last = stages
        say(last.text)
        return
    with Live(console=out_console, refresh_per_second=12) as live:
        for stage in stages:
            live.update(Text(stage.text))


def inspect(
    text: Annotated[
        str,
        typer.Argument(help="A text, or a file of texts. Spans may be marked: [[Marie Curie]]."),
    ],
    policy: Annotated[
        str, typer.Option(help="One or more policies, separated by commas.")
    ] = "token,whole-word",
    ratio: Annotated[
        str, typer.Option(help="A number, or a schedule such as linear(0.3, 0.15).")
    ] = "0.15",
    budget: Annotated[str, typer.Option(help="expected, exact or bernoulli.")] = "expected",
    corruption: Annotated[
        str | None,
        typer.Option(
            help="How chosen tokens are shown; bert if not said, or what suits the model."
        ),
    ] = None,
    fill: Annotated[str, typer.Option(help="none, random or skip-row.")] = "none",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="A folder or hub id; the model's, or a small one of our own, if not said."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A checkpoint of an encoder–decoder, to see what it writes."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    step: Annotated[int, typer.Option(help="Where the schedule stands.")] = 0,
    total_steps: Annotated[int, typer.Option(help="How long the schedule is.")] = 1000,
    html: Annotated[Path | None, typer.Option(help="Also write a page.")] = None,
    as_json: Json = False,
) -> None:
    """See the masks: the same text under one or more policies."""
    from maskwise.inspection import inspect_text, render_masks, write_masks

    settings = {
        "ratio": ratio,
        "budget": budget,
        "corruption": corruption,
        "fill": fill,
        "seed": seed,
    }
    inspected = inspect_text(
        text, policy, settings, tokenizer=tokenizer, model=model, step=step, total_steps=total_steps
    )
    if html is not None:
        write_masks(inspected, html)
        say(f"wrote {html}", to=err_console)
    if as_json:
        print_json([entry.as_dict() for entry in inspected])
    else:
        out_console.print(render_masks(inspected, colours=has_colours()))


def report(
    folder: Annotated[Path, typer.Argument(help="A study or pre-training folder.")],
    other: Annotated[
        Path | None, typer.Argument(help="Another study: both are compared, side by side.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Where to write the page; FOLDER/report.html if not said.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the page of a study (or of one run) anew, from its files.

    --json prints its verdicts with all reasons instead; with --html there are both. Of two studies,
    DIR DIR2, what differs between them and what came of their arms; the page is DIR2/compared.html.
    """
    from maskwise.report import compare_studies, summary_of, write_comparison, write_report

    if other is not None:
        if as_json:
            print_json(compare_studies(folder, other))
        if html is not None or not as_json:
            say(f"wrote {write_comparison(folder, other, html)}", to=err_console)
        return
    if as_json:
        summary = summary_of(folder)
        if html is not None:
            say(f"wrote {write_report(folder, html)}", to=err_console)
        print_json(summary)
        return
    say(str(write_report(folder, html)))


def bench(
    name: Annotated[str, typer.Argument(help="mask.")] = "mask", as_json: Json = False
) -> None:
    """Measure the speed of masking beside transformers' collator, in one run on this machine."""
    if name == "train":
        do = "in a checkout of the project: python benchmarks/train.py"
        raise MaskwiseError("bench train is not part of the package any more", do=do)
    if name != "mask":
        raise unknown_name("bench", name, ["mask"])
    from maskwise.bench import bench_mask, render_mask

    result = {"bench": name} | bench_mask()
    if as_json:
        print_json(result)
    else:
        out_console.print(render_mask(result))


TABLES = {
    "policies": "maskwise.masking:POLICIES",
    "annotators": "maskwise.annotate.registry:ANNOTATORS",
    "schedules": "maskwise.masking:SCHEDULES",
    "corruptions": "maskwise.masking:CORRUPTIONS",
    "objectives": "maskwise.objectives:OBJECTIVES",
    "samplers": "maskwise.samplers:SAMPLERS",
    "tasks": "maskwise.tasks:BUNDLED_TASKS",
    "cards": "maskwise.tasks:CARDS",
    "recipes": "maskwise.folders:shipped",
}
"""Where the names of each list stand."""


EXAMPLES = {
    "policies": """maskwise inspect "born in [[Warsaw]]" --policy "{call}\"""",
    "annotators": """maskwise annotate my_texts.jsonl --with "{call}\"""",
    "schedules": """maskwise pretrain quick-start masking.ratio="{call}\"""",
    "corruptions": """maskwise inspect "born in Warsaw" --corruption "{call}\"""",
    "objectives": "objectives: {{{call}: }}",
    "samplers": "sampler: {call}",
    "tasks": "maskwise finetune runs/one/checkpoint --task {call}",
    "cards": "tasks: [\"my_copy(card='{call}')\"]",
    "recipes": "maskwise study {call} --out runs/{call}",
}
"""How a member of each list is used; {call} is its name, with what it cannot do without."""

NEEDED = {
    "start": "0.3",
    "end": "0.15",
    "p": "0.15",
    "ratio": "0.15",
    "low": "0.1",
    "high": "0.5",
    "a": "2",
    "b": "2",
    "centre": "0.3",
    "width": "0.1",
    "points": "0, 0.3, 1, 0.15",
    "parts": "0.15, 0.5, 0.5, 0.5",
    "schedule": "linear(0.3, 0.15)",
    "inner": "linear(0.3, 0.15)",
    "first": "0.3",
    "second": "linear(0.3, 0.15)",
    "at": "0.5",
    "factor": "0.5",
    "layer": "pos",
    "policies": "token, span",
    "members": "token, span",
    "folder": "'FOLDER'",
    "file": "'my_spans.jsonl'",
    "sizes": "2, 1",
    "shares": "2, 1",
    "until": "'?'",
}
"""What an example writes for an argument that has no default."""

INTERNAL = ("model", "arms", "seed", "chance", "kwargs")
"""Arguments that a study gives, and nobody writes."""


def list_names(
    what: Annotated[str, typer.Argument(help=f"{', '.join([*TABLES][:-1])} or {[*TABLES][-1]}")],
    as_json: Json = False,
) -> None:
    """List what there is: names, a sentence on each, and an example."""
    if what not in TABLES:
        raise unknown_name("list", what, TABLES)
    rows = describe_table(what)
    if as_json:
        names = ("name", "arguments", "what", "example")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    for name, arguments, line, example in rows:
        out_console.print(
            Text.assemble((name, "bold"), (f"({arguments})" if arguments else "", "dim")),
            soft_wrap=True,
        )
        out_console.print(Padding(Text(line), (0, 0, 0, 4)))
        say(f"    {example}", "cyan")


def names_in(what: str) -> dict[str, Any]:
    """The members of a list, by name."""
    module, _, name = TABLES[what].partition(":")
    table = getattr(importlib.import_module(module), name)
    return dict(table() if callable(table) else table)


def describe_table(what: str) -> list[tuple[str, str, str, str]]:
    """(name, arguments, first sentence of the documentation, an example) of every member."""
    rows = []
    for name, member in names_in(what).items():
        arguments, line, call = _describe(name, member, what)
        rows.append((name, arguments, line, EXAMPLES[what].format(call=call)))
    return rows


def _describe(name: str, member: Any, what: str) -> tuple[str, str, str]:
    if what == "tasks":
        from maskwise.tasks import load_task

        task = load_task(name)
        rows = (
            f"{len(task.splits['train']):,} rows to learn from, {task.test_items:,} items to test"
        )
        return "", f"{task.kind.name}, {len(task.labels)} classes, {rows}", name
    if what == "cards":
        return "", f"{member['title']}; {member['source']}; {member['licence']}", name
    if isinstance(member, Path):
        return "", _sentence(_opening(member.read_text(encoding="utf-8"))), name
    from maskwise.specs import arguments_of

    parameters = python_inspect.signature(member).parameters.values()
    needed = [
        NEEDED.get(one.name, "…")
        for one in parameters
        if one.default is one.empty and one.name not in INTERNAL and one.kind is not one.VAR_KEYWORD
    ]
    call = f"{name}({', '.join(needed)})" if needed else name
    return (
        arguments_of(member, without=INTERNAL),
        _sentence(python_inspect.getdoc(member) or ""),
        call,
    )


def _opening(recipe: str) -> str:
    """The comment with which a recipe begins; where there is none, its description."""
    lines = recipe.splitlines()
    comment = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    if comment:
        return " ".join(comment)
    return str((yaml.safe_load(recipe) or {}).get("description", ""))


def _sentence(text: str) -> str:
    """The first sentence of a text."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", paragraph)[0]
