"""Commands that write a folder and can be resumed: study, adapt, pretrain, learn and others."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskwise.cli.terminal import (
    DryRun,
    Engine,
    Facts,
    Jobs,
    Json,
    Out,
    Overrides,
    Page,
    RecipeName,
    TextField,
    command_of,
    figure,
    has_colours,
    out_folder,
    plan_lines,
    print_plan,
    print_policy,
    print_table,
    print_verdicts,
    require_time,
    seeds_of,
    seeds_words,
    time_limit,
    was_given,
)
from maskwise.constants import MOST_SEEDS, accuracy_misleads, rank_here
from maskwise.errors import MaskwiseError, counted, whole_number
from maskwise.folders import recipe_path, refuse_missing, require_own, shipped, write_whole
from maskwise.printing import err_console, out_console, print_json, say, warn

if TYPE_CHECKING:
    from maskwise.recipe import Recipe


def study(
    context: typer.Context,
    recipe: RecipeName = "quick-start",
    overrides: Overrides = None,
    out: Out = None,
    new: Annotated[
        bool,
        typer.Option(
            "--new",
            help="Only write a recipe for a file with texts and files with labels: FILE "
            "[LABELS …].",
        ),
    ] = False,
    engine: Engine = "local",
    jobs: Jobs = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Retries after a worker, node or file is lost.")
    ] = 2,
    seeds: Annotated[
        str | None,
        typer.Option(help="Run only some seeds: 100-105 or 100,103. Verdicts need all seeds."),
    ] = None,
    stages: Annotated[
        Path | None,
        typer.Option(help="Folder of stages that studies share, to run common parts once."),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare ways to mask: run all arms with all seeds, and write verdicts and a report.

    The same command resumes an interrupted study. The exit code is 1 if a run failed.
    """
    changes = overrides or []
    # Options for running a study have no effect with --new, so they are errors.
    if new:
        _refuse_options_of_a_run(context)
        write_new_recipe(recipe, changes)
        return
    # `maskwise study training.steps=10` means the quick start with an override.
    if "=" in recipe and not Path(recipe).exists():
        changes = [recipe, *changes]
        recipe = "quick-start"
    # Check the name of the recipe before slow imports.
    recipe_path(recipe)
    from maskwise import study as studies
    from maskwise.recipe import read_recipe
    from maskwise.study.unread import names_in_study, read_used

    read = partial(read_recipe, recipe)
    whole = read_used(read, changes, names=names_in_study, command="study")
    out = out_folder(out, recipe)
    where: dict[str, Any] = {
        "jobs": jobs,
        "engine": engine,
        "cache": stages,
        "seeds": None if seeds is None else seeds_of(seeds),
    }
    if dry_run:
        from maskwise.study.timing import samples_of

        with tempfile.TemporaryDirectory() as folder:
            plan = studies.dry_run(whole, out, samples=samples_of(whole, Path(folder)), **where)
        print_json(plan) if as_json else print_plan(plan)
        return
    result = studies.run_study(whole, out, retries=retries, **where)
    if as_json:
        print_json(result)
    else:
        print_verdicts(result)
        for record in result["failures"]:
            warn(f"failed: {record['arm']}, seed {record['seed']}: {record['error']}", "red")
        say(f"Report: {result['report']}  ({result['seconds']:.0f} s)")
    raise typer.Exit(bool(result["failures"]))


def write_new_recipe(texts: str, tasks: list[str]) -> None:
    """Write the recipe of ``maskwise study --new``, named after the file with texts.

    Raises:
        MaskwiseError: a file cannot be read, or a recipe with this name exists already.
    """
    if texts in shipped() and not Path(texts).exists():
        raise MaskwiseError(
            "--new needs a file with texts",
            got=f"the recipe {texts}",
            do="maskwise study --new my_texts.txt my_labels.csv",
        )
    refuse_missing(texts, *tasks)
    from maskwise.study.starter import name_of, starter

    target = Path(f"{name_of(texts)}.yaml")
    if target.exists():
        raise MaskwiseError(f"{target} exists already", do="move this file, or edit it by hand")
    write_whole(target, starter(texts, tasks))
    # The name may contain spaces and brackets.
    recipe = quote(str(target))
    say(f"wrote {target}")
    say(f"next: maskwise check {recipe}")
    say(f"then: maskwise study {recipe} --out {quote(f'runs/{target.stem}')}")


def adapt(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="An encoder: a folder, a hub id, bundled:encoder or package:NAME.")
    ],
    texts: Annotated[str, typer.Argument(help="Your text: a file, a folder, or hf:NAME.")],
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="A file with labels to fine-tune on. May be repeated."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Any of words-30, token-15, token-30, tsdae, separated by commas.")
    ] = "words-30",
    policy: Annotated[
        str | None,
        typer.Option(help="A policy from maskwise learn, for an additional arm."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of further training.")] = 600,
    head_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps that train a new head, once for all runs. Default: ≤ 600."),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            help="Runs of each arm (at least 6 to decide), or their seeds, such as 100-105."
        ),
    ] = "6",
    limit: Annotated[str, typer.Option("--time", help="Time limit: 2h, 90m or 1h30m.")] = "2h",
    out: Out = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train an encoder further on your text, and test whether this helps, and at what cost.

    The same command resumes an interrupted run. OUT/model is a folder for transformers, and
    OUT/sentence-model is a folder for sentence-transformers.
    """
    from maskwise import study as studies
    from maskwise.report import write_report
    from maskwise.study import adapt as steps_of
    from maskwise.study.checks import LOCK
    from maskwise.study.records import has_results
    from maskwise.study.timing import samples_of

    given = overrides or []
    out = out_folder(out, texts, command="adapt")
    require_own(out, f"stages/{LOCK}", what="a study")
    runs: int | list[int]
    if seeds.isdecimal():
        runs = whole_number("--seeds", int(seeds), least=1, most=MOST_SEEDS)
    else:
        runs = seeds_of(seeds)
    limit_seconds = time_limit(limit)
    # Nothing is run if the study takes longer than the user's own limit, unlike the default.
    own_limit = was_given(context, "limit")
    plan: Facts = {}

    def command(*changes: str, **options: object) -> str:
        return command_of(context, overrides=[*given, *changes], **options)

    # A study in the folder may need its own pairs, so others are written to a temporary folder.
    used = has_results(out)
    read = steps_of.Texts(texts)
    with tempfile.TemporaryDirectory() as aside:

        def recipe_with(size: steps_of.Size) -> Recipe:
            return steps_of.adapt_recipe(
                model,
                read,
                size.tasks,
                arms=[*map(str.strip, arms.split(","))],
                policy=policy,
                steps=size.steps,
                head_steps=head_steps,
                seeds=size.seeds if isinstance(size.seeds, int) else [*size.seeds],
                pairs=out.parent / f"{out.name}-pairs.jsonl",
                aside=Path(aside) if dry_run or used else None,
                overrides=[*given, *size.overrides],
            )

        plans: dict[steps_of.Size, Facts] = {}

        def seconds_of(size: steps_of.Size) -> float:
            if size not in plans:
                changed = recipe_with(size)
                plans[size] = studies.dry_run(changed, smaller_out, jobs=jobs, samples=samples)
            return plans[size]["seconds"] or math.inf

        # A smaller plan is a different study, which needs a folder of its own.
        smaller_out = out.with_name(f"{out.name}-smaller") if used else out

        size = steps_of.Size(
            steps, runs if isinstance(runs, int) else tuple(runs), tuple(task or ())
        )
        recipe = recipe_with(size)
        if dry_run or own_limit or not as_json:
            samples = samples_of(recipe, Path(aside))
            plan = studies.dry_run(recipe, out, jobs=jobs, samples=samples)
            plan["max_length"] = recipe.finetune.max_length
            plan["cut"] = steps_of.cut_rows(recipe)
            plan["held_out"] = recipe.corpus.held_out
            plan["made_task"] = None if task else steps_of.PAIRS
            if (plan["seconds"] or 0.0) > limit_seconds:
                if not as_json:
                    say("Looking for a smaller plan …", to=err_console)
                smaller, fits = steps_of.smaller_plan(recipe, size, seconds_of, limit_seconds)
                options: Facts = {"steps": smaller.steps, "task": smaller.tasks}
                if smaller.seeds != size.seeds:
                    options["seeds"] = seeds_words(smaller.seeds)
                if not fits:
                    minutes = math.ceil(seconds_of(smaller) / 60) + 1
                    options["limit"] = f"{minutes}m"
                if used:
                    options["out"] = smaller_out
                plan["smaller"] = {
                    **asdict(smaller),
                    "seconds": seconds_of(smaller),
                    "fits": fits,
                    "contrasts": plans[smaller]["contrasts"],
                    "command": command(*smaller.overrides, **options),
                }
    if as_json and dry_run:
        print_json(plan)
    elif dry_run:
        # The plan is the result of a dry run, so it is printed to stdout.
        print_plan(plan, limit)
    elif plan:
        for line in plan_lines(plan, limit):
            say(line, to=err_console)
    if dry_run:
        return
    if own_limit:
        require_time(plan, limit)
    result = studies.run_study(recipe, out, jobs=jobs)
    next_step = steps_of.next_of(result, recipe, task or (), out, command)
    saved = None
    kept = "No run has finished, so there is no adapted model."
    try:
        saved = steps_of.save_best(out, result, next_step=next_step)
    except MaskwiseError as error:
        # The user may have deleted the checkpoints. The answer does not need them.
        kept = f"There is no adapted model: {error}."
    if saved:
        kept = saved["sentence"]
    # The page names the folders of the adapted model and the next step, so it is written again.
    write_report(out)
    answer = steps_of.answer_of(result, recipe)
    if as_json:
        found: Facts = {"answer": answer, "next": next_step, "adapted": saved}
        found["helps"] = steps_of.arm_that_helps(result)
        found["folders"] = saved["folders"] if saved else []
        found["kept"] = kept
        found["held_out"] = recipe.corpus.held_out
        print_json(result | found)
    else:
        say(answer, "bold")
        say(f"{kept} Page: {result['report']}")
        say(next_step)
    raise typer.Exit(bool(result["failures"]))


def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Pre-train one model, also with torchrun. The checkpoint is a folder for transformers."""
    recipe_path(recipe)
    from maskwise.recipe import read_recipe
    from maskwise.study.single import run_pretrain
    from maskwise.study.unread import names_in_pretraining, read_used
    from maskwise.training import leave

    out = out_folder(out, recipe, command="pretrain")
    read = partial(read_recipe, recipe)
    whole = read_used(read, overrides or [], names=names_in_pretraining, command="pretrain")
    result = run_pretrain(whole, out)
    leave()
    if rank_here():  # only rank 0 prints
        return
    if as_json:
        print_json(result)
        return
    rows = []
    for line in result["heldout"]:
        masks = f"{line['masks']} {line['ratio']:.0%}"
        rows.append((masks, figure(line["loss"]), figure(line["unigram"]), str(line["targets"])))
    print_table(("held-out masks", "loss (nats)", "word frequencies alone", "targets"), rows)
    known = [line for line in result["heldout"] if line["unigram"] is not None]
    if known and all(line["loss"] >= line["unigram"] for line in known):
        warn(
            "the model predicts no better than word frequencies: it has not learned from context "
            "yet; raise training.steps, or try other values of training.learning_rate"
        )
    say(f"Checkpoint: {result['checkpoint']}  ({result['seconds']:.0f} s)")


def finetune(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    task: Annotated[
        list[str],
        typer.Option("--task", help="A bundled task, file, folder, or hf:ID. May be repeated."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, such as learning_rate=1e-3 epochs=3")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fine-tuning runs per task.")] = 3,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint on tasks with several seeds, and evaluate it on the test sets."""
    from maskwise.study.single import run_finetune

    out = out_folder(out, model, command="finetune")
    results = run_finetune(model, task, overrides or [], seeds=seeds, out=out, quiet=False)
    if as_json:
        # Sums of single test items are for comparisons, and are in records.jsonl.
        hidden = ("item_sums", "item_sizes")
        print_json([{k: v for k, v in line.items() if k not in hidden} for line in results])
        return
    rows = []
    for line in results:
        metric = line["metric"]
        majority = line["majority"]
        scores = " ".join(map(figure, line["fine_tuning"]))
        chance = figure(majority) or "–"
        items = str(line["test_items"])
        rows.append((line["task"], metric, figure(line["score"]), scores, chance, items))
        # If one label is frequent, accuracy is high without any learning.
        macro = line["others"].get("macro-f1")
        if macro is not None and accuracy_misleads(metric, majority):
            rows.append(("", "macro-f1", figure(macro), "", "", ""))
    print_table(("task", "metric", "mean", "every seed", "majority", "test items"), rows)
    for line in results:
        for note in line["notes"]:
            say(f"{line['task']}: {note}")


def learn(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe or a YAML file with a learning section.")
    ],
    overrides: Overrides = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Learn from a task what to mask, also with torchrun. To use the policy, set
    masking.policy: learned("OUT/policy") in a recipe.
    """
    recipe_path(recipe)
    from maskwise.recipe import read_recipe
    from maskwise.study.single import learned_from, run_learn, with_own_seed
    from maskwise.study.unread import read_used
    from maskwise.training import leave

    out = out_folder(out, recipe, command="learn")
    read = partial(read_recipe, recipe)
    whole = read_used(
        read,
        overrides or [],
        names=lambda each: learned_from(with_own_seed(each)),
        command="learn",
    )
    result = run_learn(whole, out)
    leave()
    if rank_here():
        return
    if as_json:
        print_json(result)
    else:
        print_policy(result)


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
    out: Out = None,
    engine: Engine = "local",
    jobs: Jobs = None,
    text_field: TextField = "text",
    text_per: Annotated[
        str, typer.Option(help="What a document of a .txt file is: line, block or auto.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of documents.")] = None,
    function: Annotated[
        list[str] | None,
        typer.Option(
            help="Annotate with your code: module:function, or module:function(kind='weight'). "
            "May be repeated."
        ),
    ] = None,
    html: Page = None,
    as_json: Json = False,
) -> None:
    """Annotate a corpus with words, parts of speech, names, phrases, …, which policies can use.

    The same command resumes an interrupted run.
    """
    # With ``learning``, the annotator ``learned`` is known.
    import maskwise.learning  # noqa: F401
    from maskwise.annotate.run import annotate_corpus, open_corpus
    from maskwise.annotate.store import Store
    from maskwise.show import examples, render_layers, write_layers
    from maskwise.specs import split_calls

    out = out_folder(out, corpus, command="annotate")
    documents = open_corpus(corpus, text_field=text_field, text_per=text_per, limit=limit)
    summary = annotate_corpus(
        documents,
        split_calls(wanted),
        out,
        engine=engine,
        jobs=jobs,
        functions=function or (),
        quiet=False,
    )
    if as_json:
        print_json(summary)
        if html is None:
            return
    layers: list[str] = []
    for entry in summary["annotators"].values():
        layers += entry["layers"]
    samples = examples(Store(out, layers), documents)
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
            warn(f"{spec} failed on {count} texts, so these texts lack its layers: {error}", "red")
    say(f"{out}: {summary['documents']:,} documents, {summary['words']:,} words")
    if summary["skipped"]:
        say(f"skipped {counted(summary['skipped'])}")


def _refuse_options_of_a_run(context: typer.Context) -> None:
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in ("recipe", "overrides", "new") and was_given(context, name):
            raise MaskwiseError(
                "study --new writes a recipe and runs nothing",
                got=parameter.opts[0],
                do="use this option when you run the study",
            )
