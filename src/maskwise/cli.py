"""The command line. Commands take plain words, and turn bad input into one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise.errors import MaskwiseError, unknown_name

app = typer.Typer(
    name="maskwise",
    help="Pre-train masked language models well: choose what to mask, and learn which choice is worth it.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
out_console, err_console = Console(), Console(stderr=True)

# Typer brings its own copy of click, or click itself, by its version; both have this base of errors.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

COLOURS = {"decided": "bold green", "suggests": "yellow", "undecided": "white", "void": "red"}
"""Of the verdicts."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

Out = Annotated[
    Path, typer.Option("--out", help="Folder for everything that is written; the same folder goes on.")
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, such as training.steps=500 masking.ratio=0.3")
]


@app.command()
def study(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")] = "quick-start",
    overrides: Overrides = None,
    out: Out = Path("runs/study"),
    engine: Annotated[str, typer.Option(help="Where stages run: local, or ray (a cluster).")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stages at once; as many as cores (GPUs on Ray) if not said.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to try again what may pass: a lost worker, node or file.")
    ] = 2,
    stages: Annotated[
        Path | None, typer.Option(help="Folder of stages shared between studies: common parts run once.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and how long it may take; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare masking choices: arms x seeds x tasks, with verdicts and a report.

    The same command goes on where an interrupted study stopped, and runs nothing twice. Exit code 1 says
    that a run failed.
    """
    from maskwise import study as room
    from maskwise.recipe import read_recipe

    recipe, overrides = _recipe_or_override(recipe, overrides)
    whole = read_recipe(recipe, overrides)
    if dry_run:
        found = room.dry_run(whole, out, jobs=jobs, engine=engine, cache=stages)
        _print_json(found) if as_json else _print_plan(found)
        return
    result = room.run_study(
        whole, out, jobs=jobs, quiet=as_json, engine=engine, retries=retries, cache=stages
    )
    if as_json:
        _print_json(result)
        raise typer.Exit(bool(result["failures"]))
    _print_verdicts(result)
    for record in result["failures"]:
        who = f"failed: {record['arm']}, seed {record['seed']}: {record['error']}"
        err_console.print(who, style="red", markup=False, highlight=False, soft_wrap=True)
    out_console.print(
        f"Report: {result['report']}  ({result['seconds']:.0f} s)", highlight=False, soft_wrap=True
    )
    raise typer.Exit(bool(result["failures"]))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    out: Out = Path("runs/pretrain"),
    as_json: Json = False,
) -> None:
    """Pre-train one model. Also under torchrun, one process per device. The checkpoint is a plain folder."""
    from maskwise.pretrain import run_pretrain
    from maskwise.recipe import read_recipe
    from maskwise.training import leave

    result = run_pretrain(read_recipe(recipe, overrides or []), out, quiet=as_json)
    leave()
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        _print_json(result)
        return
    table = Table("held-out masks", "loss (nats)", "word frequencies alone", "targets", box=None)
    for line in result["heldout"]:
        losses = (f"{line[key]:.3f}" for key in ("loss", "unigram"))
        table.add_row(f"{line['masks']} {line['ratio']:.0%}", *losses, str(line["targets"]))
    out_console.print(table)
    out_console.print(
        f"Checkpoint: {result['checkpoint']}  ({result['seconds']:.0f} s)", highlight=False, soft_wrap=True
    )


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    task: Annotated[
        list[str], typer.Option("--task", help="A bundled task, a file, a folder, or hf:ID. Repeatable.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, such as learning_rate=1e-3 epochs=3")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fine-tunings per task.")] = 3,
    out: Out = Path("runs/finetune"),
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint on tasks and score it on their test sets, several seeds each."""
    from maskwise.pretrain import run_finetune

    results = run_finetune(model, task, overrides or [], seeds=seeds, out=out, quiet=as_json)
    if as_json:
        _print_json(results)
        return
    table = Table("task", "metric", "mean", "every seed", "majority", "test items", box=None)
    for line in results:
        each = " ".join(f"{score:.3f}" for score in line["fine_tuning"])
        scores = f"{line['score']:.3f}", each, f"{line['majority']:.3f}"
        table.add_row(_escape(line["task"]), line["metric"], *scores, str(line["test_items"]))
    out_console.print(table)


@app.command()
def annotate(
    corpus: Annotated[
        str,
        typer.Argument(help="A file or folder (.txt, .jsonl, .parquet, …), hf:NAME, or bundled:wikipedia."),
    ],
    wanted: Annotated[
        str,
        typer.Option("--with", help="Annotators, separated by commas; maskwise list annotators has them."),
    ] = "words,pos,salient,phrases",
    out: Out = Path("runs/annotate"),
    engine: Annotated[str, typer.Option(help="Where: local, or ray (a cluster).")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; as many as pay if not said.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Where the text is, in files with fields.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents.")] = None,
    function: Annotated[
        list[str] | None,
        typer.Option(
            help="Run code of yours: module:function, or module:function(kind='weight'). Repeatable."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page of what was found.")] = None,
    as_json: Json = False,
) -> None:
    """Find words, parts of speech, names, phrases, … in a corpus, once: layers that policies read.

    The same command goes on where an interrupted run stopped, and does nothing twice.
    """
    from maskwise.annotate.run import annotate_corpus, open_corpus
    from maskwise.annotate.show import examples, render_html, render_terminal
    from maskwise.annotate.store import Store
    from maskwise.specs import split_calls

    found = annotate_corpus(
        corpus, split_calls(wanted), out, text_field=text_field, limit=limit, engine=engine, jobs=jobs,
        functions=function or (), quiet=as_json,
    )  # fmt: skip
    layers = [name for entry in found["annotators"].values() for name in entry["layers"]]
    shown = examples(Store(out, layers), open_corpus(corpus, text_field=text_field, limit=limit))
    if html is not None:
        render_html(found, shown, html)
        err_console.print(f"wrote {html}", highlight=False, soft_wrap=True)
    if as_json:
        _print_json(found)
        return
    colours = bool(out_console.color_system and not out_console.no_color)
    out_console.print(render_terminal(found, shown, colours=colours))
    for spec, entry in found["annotators"].items():
        if entry["notice"]:
            line = f"{spec}: {entry['notice']}"
            err_console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        for error, count in entry["failures"].items():
            line = f"{spec} failed on {count} texts, which have no layers of it: {error}"
            err_console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    skipped = "".join(f", skipped {count} × {reason}" for reason, count in found["skipped"].items())
    line = f"{out}: {found['documents']:,} documents, {found['words']:,} words{skipped}"
    out_console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id of a masked language model.")],
    measures: Annotated[
        str,
        typer.Option(
            "--with",
            help="pairs:FILE, cloze:FILE (options behind: cloze:FILE(items=500)), pseudo-perplexity[:ROWS], "
            "heldout; separated by commas. pairs:bundled:pairs comes with maskwise.",
        ),
    ] = "",
    text: Annotated[
        str | None, typer.Option(help="Text it was not trained on, for held-out loss and pseudo-perplexity.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Where the text is, in files with fields.")] = "text",
    as_json: Json = False,
) -> None:
    """Judge a checkpoint without fine-tuning: held-out loss, pseudo-perplexity, cloze facts, minimal pairs."""
    from maskwise.evaluation import evaluate_checkpoint
    from maskwise.specs import split_calls

    records = evaluate_checkpoint(model, split_calls(measures), text=text, text_field=text_field)
    if as_json:
        _print_json(records)
        return
    table = Table("measure", "value", "chance", "items", "left out", box=None, padding=(0, 2, 0, 0))
    for line in records:
        if line["kind"] == "heldout":
            name = f"held-out loss, {line['masks']} masks {line['ratio']:.0%}"
            line = {"value": line["loss"], "chance": line["unigram"], "items": line["targets"]}
        else:
            name = f"{line['name']} {line['metric']}"
        chance = "" if line["chance"] is None else f"{line['chance']:.3f}"
        left_out = "; ".join(f"{count} {reason}" for reason, count in line.get("skipped", {}).items())
        table.add_row(_escape(name), f"{line['value']:.3f}", chance, str(line["items"]), left_out)
    out_console.print(table)


@app.command()
def inspect(
    text: Annotated[
        str, typer.Argument(help="A text, or a file of texts. Spans may be marked: [[Marie Curie]].")
    ],
    policy: Annotated[
        str, typer.Option(help="One or more policies, separated by commas.")
    ] = "token,whole-word",
    ratio: Annotated[str, typer.Option(help="A number, or a schedule such as linear(0.3, 0.15).")] = "0.15",
    budget: Annotated[str, typer.Option(help="exact, expected or bernoulli.")] = "exact",
    corruption: Annotated[str, typer.Option(help="How chosen tokens are shown.")] = "bert",
    fill: Annotated[str, typer.Option(help="none, random or skip-row.")] = "none",
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or hub id; a small one of our own if not said.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    step: Annotated[int, typer.Option(help="Where the schedule stands.")] = 0,
    total_steps: Annotated[int, typer.Option(help="How long the schedule is.")] = 1000,
    html: Annotated[Path | None, typer.Option(help="Also write a page.")] = None,
    as_json: Json = False,
) -> None:
    """See the masks: the same text under one or more policies."""
    from maskwise.inspection import inspect_text, render_html, render_terminal

    settings = {"ratio": ratio, "budget": budget, "corruption": corruption, "fill": fill, "seed": seed}
    found = inspect_text(text, policy, settings, tokenizer=tokenizer, step=step, total_steps=total_steps)
    if html is not None:
        render_html(found, html)
        err_console.print(f"wrote {html}", highlight=False, soft_wrap=True)
    if as_json:
        _print_json([entry.as_dict() for entry in found])
    else:
        out_console.print(
            render_terminal(found, colours=bool(out_console.color_system and not out_console.no_color))
        )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A study or pre-training folder.")],
    html: Annotated[
        Path | None, typer.Option(help="Where to write the page; FOLDER/report.html if not said.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the page of a study (or of one run) anew, from its files.

    --json prints its verdicts with all reasons instead; with --html there are both.
    """
    from maskwise.report import summary_of, write_report

    if as_json:
        found = summary_of(folder)
        if html is not None:
            err_console.print(f"wrote {write_report(folder, html)}", highlight=False, soft_wrap=True)
        _print_json(found)
        return
    out_console.print(str(write_report(folder, html)), highlight=False, soft_wrap=True)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="mask or annotate.")] = "mask",
    data: Annotated[
        Path | None, typer.Option(help="annotate: folder of gold sets, if not ../shared/data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure speed (and accuracy) beside the peers, in one run on this machine."""
    from maskwise.bench import render, run

    if data is not None and (name != "annotate" or not data.is_dir()):
        raise MaskwiseError("--data is a folder, for bench annotate", got=f"{data} for {name}")
    result = run(name, **({} if data is None else {"data": data}))
    if as_json:
        _print_json(result)
    else:
        out_console.print(render(result))


@app.command("list")
def list_names(
    what: Annotated[
        str,
        typer.Argument(
            help="policies, annotators, schedules, corruptions, objectives, samplers, tasks or recipes"
        ),
    ],
    as_json: Json = False,
) -> None:
    """List what there is, with a line on each."""
    from maskwise.inspection import TABLES, describe_table

    if what not in TABLES:
        raise unknown_name("list", what, TABLES)
    rows = describe_table(what)
    if as_json:
        _print_json([{"name": name, "arguments": arguments, "what": line} for name, arguments, line in rows])
        return
    for name, arguments, line in rows:
        out_console.print(Text.assemble((name, "bold"), (f"({arguments})" if arguments else "", "dim")))
        out_console.print(Padding(line, (0, 0, 0, 4)), markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit code 2 and one line for bad input, 130 after Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # or each vain attempt is a line before ours
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # with some versions of typer; others return it
    except MaskwiseError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    if code == INTERRUPTED:
        err_console.print("\ninterrupted; the same command goes on where it stopped")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str) -> NoReturn:
    if int(os.environ.get("RANK", "0")):  # under torchrun one process speaks for all
        sys.exit(2)
    err_console.print(
        f"maskwise: {' '.join(line.split())}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    sys.exit(2)


def _recipe_or_override(recipe: str, overrides: list[str] | None) -> tuple[str, list[str]]:
    """``maskwise study training.steps=10`` means the quick start with an override."""
    if "=" in recipe and not Path(recipe).exists():
        return "quick-start", [recipe, *(overrides or [])]
    return recipe, overrides or []


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def _print_verdicts(result: dict[str, Any]) -> None:
    """The primary contrasts, what they say in a sentence, why no more, and what to do."""
    out_console.print(_contrasts(result))
    out_console.print(f"[bold]{_escape(result['headline'])}[/bold]", highlight=False)
    why: dict[str, list[str]] = {}
    for row in result["contrasts"]:
        for reason in row["reasons"] if row["primary"] else ():
            if reason["effect"] in ("voids", "caps") or reason["code"] in ("unmatched-compute", "overlap"):
                why.setdefault(reason["sentence"], []).append(row["arm"])
    rows = sum(row["primary"] for row in result["contrasts"])
    for told, arms in why.items():
        who = "" if len(arms) == rows else f"{', '.join(arms)}: "
        out_console.print(f"  · {_escape(who + told)}", highlight=False, style="dim")
    for told in result["advice"]:
        out_console.print(f"  → {_escape(told)}", highlight=False)
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
        who = [_escape(row["arm"]), _escape(row["baseline"])][: 1 + named]
        table.add_row(*who, mean, interval, verdict)
    return table


def _print_plan(found: dict[str, Any]) -> None:
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


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
