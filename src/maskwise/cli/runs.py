"""The commands that write a folder: study, pretrain, finetune, learn, annotate. Each resumes an
interrupted run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from maskwise.cli.begin import write_new_recipe
from maskwise.cli.terminal import (
    DryRun,
    Engine,
    Jobs,
    Json,
    Out,
    Overrides,
    Page,
    RecipeName,
    TextField,
    err_console,
    has_colours,
    out_console,
    print_json,
    print_plan,
    print_table,
    print_verdicts,
    say,
    warn,
)
from maskwise.constants import GAIN, accuracy_misleads, rank_here
from maskwise.errors import MaskwiseError
from maskwise.folders import recipe_path

MOST_SEEDS = 1000


def study(
    context: typer.Context,
    recipe: RecipeName = "quick-start",
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
    engine: Engine = "local",
    jobs: Jobs = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Retries after a lost worker, node or file.")
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
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare masking choices: arms x seeds x tasks, with verdicts and a report.

    The same command resumes an interrupted study and repeats nothing. The exit code is 1 if
    any run failed.
    """
    # An option of a run would be ignored without a message.
    if new:
        _refuse_options_of_a_run(context)
        write_new_recipe(recipe, overrides or [])
        return
    changes = overrides or []
    # `maskwise study training.steps=10` is the quick start with an override.
    if "=" in recipe and not Path(recipe).exists():
        changes = [recipe, *changes]
        recipe = "quick-start"
    # Refuse a typo before the slow imports.
    recipe_path(recipe)
    from maskwise import study as room
    from maskwise.recipe import read_recipe

    whole = read_recipe(recipe, changes)
    where: dict[str, Any] = {
        "jobs": jobs,
        "engine": engine,
        "cache": stages,
        "seeds": None if seeds is None else _seeds(seeds),
    }
    if dry_run:
        plan = room.dry_run(whole, out, **where)
        print_json(plan) if as_json else print_plan(plan)
        return
    result = room.run_study(whole, out, quiet=as_json, retries=retries, **where)
    if as_json:
        print_json(result)
    else:
        print_verdicts(result)
        for record in result["failures"]:
            warn(f"failed: {record['arm']}, seed {record['seed']}: {record['error']}", "red")
        say(f"Report: {result['report']}  ({result['seconds']:.0f} s)")
    raise typer.Exit(bool(result["failures"]))


def pretrain(
    recipe: RecipeName,
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
    if rank_here():  # rank 0 prints for all
        return
    if as_json:
        print_json(result)
        return
    rows = []
    for line in result["heldout"]:
        masks = f"{line['masks']} {line['ratio']:.0%}"
        rows.append((masks, f"{line['loss']:.3f}", f"{line['unigram']:.3f}", str(line["targets"])))
    print_table(("held-out masks", "loss (nats)", "word frequencies alone", "targets"), rows)
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
    rows = []
    for line in results:
        metric, majority = line["metric"], line["majority"]
        scores = " ".join(f"{score:.3f}" for score in line["fine_tuning"])
        chance = "–"
        if majority is not None:
            chance = f"{majority:.3f}"
        items = str(line["test_items"])
        rows.append((line["task"], metric, f"{line['score']:.3f}", scores, chance, items))
        # Accuracy is high without any learning if one label is frequent.
        macro = line["others"].get("macro-f1")
        if macro is not None and accuracy_misleads(metric, majority):
            rows.append(("", "macro-f1", f"{macro:.3f}", "", "", ""))
    print_table(("task", "metric", "mean", "every seed", "majority", "test items"), rows)
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
    from maskwise.study.single import run_learn
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
    figures = {**held_out, GAIN: result.get("gain")}
    rows = []
    for name, value in figures.items():
        if isinstance(value, int | float):
            other = ""
            if name in salient:
                other = f"{salient[name]:.4g}"
            rows.append((name.replace("_", " "), f"{value:.4g}", other))
    print_table(("on texts that it has not learned from", "policy", "salient spans"), rows)
    for reason, count in result.get("left_out", {}).items():
        warn(f"{count} {reason}")
    # A policy that puts less weight on answers than chance has learned nothing.
    weight, even = (held_out.get(name) for name in ("weight_on_labels", "labelled_words"))
    if result.get("gain", 1) <= 0 or (weight is not None and weight <= even):
        warn("these figures are no better than those of even weights: the policy may be useless")
    if result.get("stopped"):
        kept = f"the policy of step {result['best_step']} is kept"
        warn(f"learning stopped early: {result['stopped']}; {kept}")
    if result.get("overshoot"):
        do = "lower it under learning.meta, or the policy may learn something else"
        warn(f"{result['overshoot']}: {do}")
    say(f"Policy: {result['policy']}   Page: {result['report']}  ({result['seconds']:.0f} s)")


def annotate(
    corpus: Annotated[
        str,
        typer.Argument(
            help="A file or folder (.txt, .jsonl, .parquet, …), hf:NAME, or bundled:wikipedia."
        ),
    ],
    wanted: Annotated[
        str,
        typer.Option("--with", help="Annotators (maskwise list annotators), separated by commas."),
    ] = "words,pos,salient,phrases",
    out: Out = Path("runs/annotate"),
    engine: Engine = "local",
    jobs: Jobs = None,
    text_field: TextField = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of documents.")] = None,
    function: Annotated[
        list[str] | None,
        typer.Option(
            help="Run your own code: module:function, or module:function(kind='weight'). "
            "Repeatable."
        ),
    ] = None,
    html: Page = None,
    as_json: Json = False,
) -> None:
    """Find words, parts of speech, names, phrases, … in a corpus, once: layers that policies read.

    The same command resumes an interrupted run and repeats nothing.
    """
    from maskwise.annotate.run import annotate_corpus, open_corpus
    from maskwise.annotate.store import Store
    from maskwise.show import examples, render_layers, write_layers
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
    if as_json:
        print_json(summary)
        if html is None:
            return
    layers: list[str] = []
    for entry in summary["annotators"].values():
        layers += entry["layers"]
    samples = examples(Store(out, layers), open_corpus(corpus, text_field=text_field, limit=limit))
    if html is not None:
        write_layers(summary, samples, html)
        say(f"wrote {html}", to=err_console)
    if as_json:
        return
    out_console.print(render_layers(summary, samples, colours=has_colours()))
    for spec, entry in summary["annotators"].items():
        if entry["notice"]:
            warn(f"{spec}: {entry['notice']}")
        for error, count in entry["failures"].items():
            warn(f"{spec} failed on {count} texts, which have none of its layers: {error}", "red")
    skipped = [f", skipped {count} × {reason}" for reason, count in summary["skipped"].items()]
    counts = f"{summary['documents']:,} documents, {summary['words']:,} words"
    say(f"{out}: {counts}{''.join(skipped)}")


def _refuse_options_of_a_run(context: typer.Context) -> None:
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in ("recipe", "overrides", "new"):
            what = "study --new writes a recipe and runs nothing"
            raise MaskwiseError(what, got=parameter.opts[0], do="give it to the study afterwards")


def _seeds(text: str) -> list[int]:
    """Return the seeds of a list such as 100-103,107."""
    seeds: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        span = range(0)
        if ends:
            first = int(ends[1])
            last = int(ends[2] or ends[1])
            span = range(first, last + 1)
        # No study needs more seeds, and a longer range would fill the memory.
        if not 0 < len(span) <= MOST_SEEDS - len(seeds):
            raise MaskwiseError("--seeds", got=text, allowed="such as 100-105, or 100,103")
        seeds += span
    return sorted({*seeds})
