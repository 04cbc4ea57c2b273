"""The commands that write a folder: study, pretrain, finetune, learn, annotate. Each goes on where
it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from maskwise.cli.begin import write_new_recipe
from maskwise.cli.plans import print_plan
from maskwise.cli.terminal import (
    Json,
    Out,
    Overrides,
    columns,
    err_console,
    escape,
    has_colours,
    out_console,
    print_json,
    say,
)
from maskwise.constants import GAIN, accuracy_misleads, rank_here
from maskwise.errors import MaskwiseError
from maskwise.estimates import shown
from maskwise.files import Contrast
from maskwise.folders import recipe_path


def study(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")] = "quick-start",
    overrides: Overrides = None,
    out: Out = Path("runs/study"),
    new: Annotated[
        bool,
        typer.Option(
            "--new",
            help="Run nothing: write a recipe for a file of texts and files of labels, FILE "
            "[LABELS …].",
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Where stages run: local, or ray (a cluster).")
    ] = "local",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Stages at once; as many as cores (GPUs on Ray) if not said."),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            min=0, help="How often to try again what may pass: a lost worker, node or file."
        ),
    ] = 2,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Only these of study.seeds, such as 100-105 or 100,103; verdicts wait for all."
        ),
    ] = None,
    stages: Annotated[
        Path | None,
        typer.Option(help="Folder of stages shared between studies: common parts run once."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would run and how long it may take; write nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare masking choices: arms x seeds x tasks, with verdicts and a report.

    The same command goes on where an interrupted study stopped, and runs nothing twice. Exit code 1
    says that a run failed.
    """
    if new:
        _refuse_options_of_a_run(context)
        write_new_recipe(recipe, overrides or [])
        return
    recipe, overrides = _recipe_or_override(recipe, overrides)
    recipe_path(recipe)  # a typo is told before anything large is imported
    from maskwise import study as room
    from maskwise.recipe import read_recipe

    whole = read_recipe(recipe, overrides)
    where: dict[str, Any] = {
        "jobs": jobs,
        "engine": engine,
        "cache": stages,
        "seeds": _numbers(seeds),
    }
    if dry_run:
        plan = room.dry_run(whole, out, **where)
        print_json(plan) if as_json else print_plan(plan)
        return
    result = room.run_study(whole, out, quiet=as_json, retries=retries, **where)
    if as_json:
        print_json(result)
        raise typer.Exit(bool(result["failures"]))
    print_verdicts(result)
    for record in result["failures"]:
        who = f"failed: {record['arm']}, seed {record['seed']}: {record['error']}"
        say(who, "red", to=err_console)
    say(f"Report: {result['report']}  ({result['seconds']:.0f} s)")
    raise typer.Exit(bool(result["failures"]))


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Overrides = None,
    out: Out = Path("runs/pretrain"),
    as_json: Json = False,
) -> None:
    """Pre-train one model. Also under torchrun, one process per device. The checkpoint is a plain
    folder.
    """
    recipe_path(recipe)
    from maskwise.recipe import read_recipe
    from maskwise.study.single import run_pretrain
    from maskwise.training import leave

    result = run_pretrain(read_recipe(recipe, overrides or []), out, quiet=as_json)
    leave()
    if rank_here():
        return
    if as_json:
        print_json(result)
        return
    table = columns("held-out masks", "loss (nats)", "word frequencies alone", "targets")
    for line in result["heldout"]:
        losses = (f"{line[key]:.3f}" for key in ("loss", "unigram"))
        table.add_row(f"{line['masks']} {line['ratio']:.0%}", *losses, str(line["targets"]))
    out_console.print(table)
    say(f"Checkpoint: {result['checkpoint']}  ({result['seconds']:.0f} s)")


def finetune(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    task: Annotated[
        list[str],
        typer.Option("--task", help="A bundled task, a file, a folder, or hf:ID. Repeatable."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, such as learning_rate=1e-3 epochs=3")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fine-tunings per task.")] = 3,
    out: Out = Path("runs/finetune"),
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint on tasks and score it on their test sets, several seeds each."""
    from maskwise.study.single import run_finetune

    results = run_finetune(model, task, overrides or [], seeds=seeds, out=out, quiet=as_json)
    if as_json:
        print_json(results)
        return
    table = columns("task", "metric", "mean", "every seed", "majority", "test items")
    for line in results:
        each = " ".join(f"{score:.3f}" for score in line["fine_tuning"])
        majority = "–" if line["majority"] is None else f"{line['majority']:.3f}"
        scores = f"{line['score']:.3f}", each, majority
        table.add_row(escape(line["task"]), line["metric"], *scores, str(line["test_items"]))
        macro = line["others"].get("macro-f1")
        if macro is not None and accuracy_misleads(line["metric"], line["majority"]):
            table.add_row("", "macro-f1", f"{macro:.3f}", "", "", "")
    out_console.print(table)
    for line in results:
        for note in line["notes"]:
            say(f"{line['task']}: {note}")


def learn(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe or a YAML file, with a part learning.")
    ],
    overrides: Overrides = None,
    out: Out = Path("runs/learn"),
    as_json: Json = False,
) -> None:
    """Learn what to mask from a task, also under torchrun. OUT/policy is the policy:
    masking.policy: learned("OUT/policy")."""
    recipe_path(recipe)
    from maskwise.recipe import read_recipe
    from maskwise.study.policies import run_learn
    from maskwise.training import leave

    result = run_learn(read_recipe(recipe, overrides or []), out, quiet=as_json)
    leave()
    if rank_here():
        return
    if as_json:
        print_json(result)
        return
    held_out = result.get("held_out") or {}
    salient = held_out.get("salient", {})
    table = columns("on texts that it has not learned from", "policy", "salient spans")
    for name, value in {**held_out, GAIN: result.get("gain")}.items():
        cells = (
            f"{n:.4g}" if isinstance(n, float) else str(n) for n in (value, salient.get(name, ""))
        )
        if isinstance(value, int | float):
            table.add_row(name.replace("_", " "), *cells)
    out_console.print(table)
    remarks = [f"{count} {reason}" for reason, count in result.get("left_out", {}).items()]
    if result.get("gain", 1) <= 0 or held_out.get("weight_on_labels", 1) <= held_out.get(
        "labelled_words", 0
    ):
        remarks.append(
            "by these figures the policy is no better than even weights: it may have learned "
            "nothing"
        )
    if result.get("stopped"):
        remarks.append(
            f"the learning {result['stopped']}; the policy of step {result['best_step']} is kept"
        )
    if result.get("overshoot"):
        remarks.append(
            f"{result['overshoot']}: lower it under learning.meta, or the policy may learn "
            f"something else"
        )
    for remark in remarks:
        say(remark, "yellow", to=err_console)
    line = f"Policy: {result['policy']}   Page: {result['report']}  ({result['seconds']:.0f} s)"
    say(line)


def annotate(
    corpus: Annotated[
        str,
        typer.Argument(
            help="A file or folder (.txt, .jsonl, .parquet, …), hf:NAME, or bundled:wikipedia."
        ),
    ],
    wanted: Annotated[
        str,
        typer.Option(
            "--with", help="Annotators, separated by commas; maskwise list annotators has them."
        ),
    ] = "words,pos,salient,phrases",
    out: Out = Path("runs/annotate"),
    engine: Annotated[str, typer.Option(help="Where: local, or ray (a cluster).")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; as many as pay if not said.")
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Where the text is, in files with fields.")
    ] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents.")] = None,
    function: Annotated[
        list[str] | None,
        typer.Option(
            help="Run code of yours: module:function, or module:function(kind='weight'). "
            "Repeatable."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page of what was found.")] = None,
    as_json: Json = False,
) -> None:
    """Find words, parts of speech, names, phrases, … in a corpus, once: layers that policies read.

    The same command goes on where an interrupted run stopped, and does nothing twice.
    """
    from maskwise.annotate.run import annotate_corpus, open_corpus
    from maskwise.annotate.store import Store
    from maskwise.inspection import examples, render_layers, write_layers
    from maskwise.specs import split_calls

    summary = annotate_corpus(
        corpus,
        split_calls(wanted),
        out,
        text_field=text_field,
        limit=limit,
        engine=engine,
        jobs=jobs,
        functions=function or (),
        quiet=as_json,
    )
    layers = [name for entry in summary["annotators"].values() for name in entry["layers"]]
    shown = examples(Store(out, layers), open_corpus(corpus, text_field=text_field, limit=limit))
    if html is not None:
        write_layers(summary, shown, html)
        say(f"wrote {html}", to=err_console)
    if as_json:
        print_json(summary)
        return
    out_console.print(render_layers(summary, shown, colours=has_colours()))
    for spec, entry in summary["annotators"].items():
        if entry["notice"]:
            line = f"{spec}: {entry['notice']}"
            say(line, "yellow", to=err_console)
        for error, count in entry["failures"].items():
            line = f"{spec} failed on {count} texts, which have no layers of it: {error}"
            say(line, "red", to=err_console)
    skipped = "".join(
        f", skipped {count} × {reason}" for reason, count in summary["skipped"].items()
    )
    line = f"{out}: {summary['documents']:,} documents, {summary['words']:,} words{skipped}"
    say(line)


def _refuse_options_of_a_run(context: typer.Context) -> None:
    """Refuse every option beside ``--new``, which runs nothing."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in ("recipe", "overrides", "new"):
            do = "give it to the study afterwards"
            raise MaskwiseError(
                "study --new writes a recipe and runs nothing", got=parameter.opts[0], do=do
            )


def _numbers(text: str | None) -> list[int] | None:
    """Seeds from 100-103,107."""
    from maskwise.recipe.comparison import MOST_SEEDS

    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        ends = [int(end) if end.isdecimal() else -1 for end in part.strip().split("-")]
        more = ends[-1] - ends[0]
        if len(ends) > 2 or -1 in ends or not 0 <= more < MOST_SEEDS:
            raise MaskwiseError("--seeds", got=text, allowed="such as 100-105, or 100,103")
        numbers += range(ends[0], ends[-1] + 1)
    return numbers


def _recipe_or_override(recipe: str, overrides: list[str] | None) -> tuple[str, list[str]]:
    """``maskwise study training.steps=10`` means the quick start with an override."""
    if "=" in recipe and not Path(recipe).exists():
        return "quick-start", [recipe, *(overrides or [])]
    return recipe, overrides or []


# What a study prints
# --------------------------------------------------------------------------------------

COLOURS = {
    "decided": "bold green",
    "no difference that matters": "green",
    "open": "yellow",
    "not comparable": "red",
}
"""The colours of the verdicts."""


def print_verdicts(result: dict[str, Any]) -> None:
    """The primary contrasts, the headline, the flags that a reader must know, and what to do."""
    rows = [row for row in result["contrasts"] if row["primary"]]
    if rows:
        out_console.print(_contrasts(rows))
    out_console.print(f"[bold]{escape(result['headline'])}[/bold]", highlight=False)
    arms_of: dict[str, list[str]] = {}
    for row in rows:
        for flag in row["flags"]:
            if flag["code"] != "items":
                arms_of.setdefault(flag["sentence"], []).append(row["arm"])
    for sentence, arms in arms_of.items():
        known = len(arms) == len(rows) or any(arm in sentence for arm in arms)
        who = "" if known else f"{', '.join(dict.fromkeys(arms))}: "
        out_console.print(f"  · {escape(who + sentence)}", highlight=False, style="dim")
    for sentence in result["advice"]:
        out_console.print(f"  → {escape(sentence)}", highlight=False)
    out_console.print()


def _contrasts(rows: list[dict[str, Any]]) -> Table:
    """The primary contrasts, a line each: in points of a score, or nats; and the numbers the
    verdict rests on.
    """
    from maskwise.study.verdict.words import outcome_words

    # without "on" or "in"
    outcomes = dict.fromkeys(outcome_words(row["outcome"]).partition(" ")[2] for row in rows)
    bases = dict.fromkeys(row["baseline"] for row in rows)
    named = len(bases) > 1
    where = " or ".join(outcomes)
    heads = (
        ("arm", "against", where) if named else ("arm", f"{where}, against {next(iter(bases), '')}")
    )
    scopes = {row["scope"] for row in rows if row["verdict"] != "not comparable"}
    scope = f"verdict, {scopes.pop()}" if len(scopes) == 1 else "verdict"
    table = columns(*heads, "95 % interval", "p", scope)
    for row in rows:
        amount = shown(cast(Contrast, row))
        unit = "points" if amount.unit.endswith("points") else amount.unit
        mean = "" if amount.mean is None else f"{_signed(amount.mean, amount.digits)} {unit}"
        interval = "needs 6 runs"
        if amount.low is not None and amount.high is not None:
            interval = (
                f"{_signed(amount.low, amount.digits)} to {_signed(amount.high, amount.digits)}"
            )
        p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}"
        who = [escape(row["arm"]), escape(row["baseline"])][: 1 + named]
        table.add_row(
            *who, mean, interval, p, _verdict(row, scope="" if scope != "verdict" else row["scope"])
        )
    return table


def _verdict(row: dict[str, Any], scope: str) -> str:
    """ "better (decided)", coloured; with a scope where rows differ in it."""
    word = row["verdict"]
    side = {"arm": "better", "baseline": "worse"}.get(row["better"])
    text = f"{side} ({word})" if side else word
    told = f", {scope}" if scope and word != "not comparable" else ""
    return f"[{COLOURS[word]}]{text}[/]{told}"


def _signed(number: float, digits: int) -> str:
    return f"{number:+.{digits}f}".replace("-", "−")
