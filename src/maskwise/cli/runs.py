"""Commands that write a folder and can be resumed: study, adapt, pretrain, learn and others."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from maskwise.base.constants import MOST_SEEDS, NEXT_TOKEN, accuracy_misleads, rank_here
from maskwise.base.errors import MaskwiseError, Truncated, counted, in_percent, plural, shell_words
from maskwise.base.folders import recipe_path, refuse_missing, shipped
from maskwise.base.printing import err_console, out_console, print_json, say, warn
from maskwise.base.specs import is_path
from maskwise.cli.terminal import (
    DryRun,
    Engine,
    Jobs,
    Json,
    Out,
    Overrides,
    Page,
    Processes,
    RecipeName,
    TextField,
    Timing,
    Words,
    adapt_lines,
    figure,
    has_colours,
    last_ones_said,
    out_folder,
    print_check,
    print_policy,
    print_table,
    print_verdicts,
    seeds_of,
    settings_and_files,
)
from maskwise.results.estimates import failure_lines
from maskwise.results.usual import ARMS, STEPS, USUAL_ARM


def study(
    context: typer.Context,
    recipe: RecipeName = "quick-start",
    overrides: Overrides = None,
    out: Out = None,
    engine: Engine = "local",
    jobs: Jobs = None,
    processes: Processes = 1,
    retries: Annotated[
        int, typer.Option(min=0, help="Retries after a worker, node or file is lost.")
    ] = 2,
    only_seeds: Annotated[
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
    # `maskwise study training.steps=10` means the quick start with an override.
    if "=" in recipe and not is_path(recipe):
        changes = [recipe, *changes]
        recipe = "quick-start"
    # Check the name of the recipe, and then its settings, before slow imports.
    recipe_path(recipe)
    from maskwise.recipe import read_recipe

    read = partial(read_recipe, recipe)
    whole = read(changes)
    from maskwise.studies import check, run_study
    from maskwise.studies.unread import read_by_study, refuse_unread

    refuse_unread(whole, changes, read=read, content=read_by_study, command="study")
    out = out_folder(out, recipe)
    where: dict[str, Any] = {
        "jobs": jobs,
        "engine": engine,
        "processes": processes,
        "cache": stages,
        "seeds": None if only_seeds is None else seeds_of(only_seeds, "--only-seeds"),
    }
    if dry_run:
        print_check(lambda tell: check(whole, out=out, tell=tell, **where), as_json=as_json)
        return
    result = run_study(whole, out, retries=retries, **where)
    if as_json:
        print_json(result)
    else:
        print_verdicts(result)
        if "best" in result:
            from maskwise.training.best import best_at

            for arm, chosen in result["best"].items():
                say(f"{arm}: {best_at(**chosen)}")
        for line in failure_lines(result["failures"]):
            warn(line, "red")
        say(f"Report: {result['report']}  ({result['seconds']:.0f} s)")
    raise typer.Exit(bool(result["failures"]))


def new(
    texts: Annotated[str, typer.Argument(help="Your text, or a file with labels.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES] [KEY=VALUE]",
            help="Files with labels, or bundled tasks. Settings that the recipe shall have, such "
            "as corpus.group_field=author.",
            callback=last_ones_said(),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write. Default: the name of the text, with .yaml."),
    ] = None,
) -> None:
    """Write a recipe with comments for your files, and explain it. Nothing is trained.

    The recipe is a first study: two masking ratios, six runs of each.
    """
    overrides, tasks = settings_and_files(more or ())
    if texts in shipped() and not is_path(texts):
        raise MaskwiseError(
            "new needs a file with texts",
            got=f"the recipe {texts}",
            do="maskwise new my_texts.txt my_labels.csv",
        )
    from maskwise.models.starts import is_model

    if is_model(texts):
        instead = shell_words(["maskwise", "adapt", texts, *tasks[:1]])
        raise MaskwiseError(
            "new needs a file with texts",
            got=f"the model {texts}",
            do=f"for further training of a model: {instead}",
        )
    refuse_missing(texts, *tasks)
    from maskwise.studies.from_files import new_recipe

    for line in new_recipe(texts, tasks, overrides, target=out):
        say(line)


def adapt(
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
        str,
        typer.Option(help=f"Any of {', '.join(ARMS)}, separated by commas."),
    ] = USUAL_ARM,
    policy: Annotated[
        str | None,
        typer.Option(help="A policy from maskwise learn, for an additional arm."),
    ] = None,
    new_words: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Words of your text that become tokens, in one more arm (docs/adapt.md).",
        ),
    ] = None,
    trim_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep only so many tokens, the most frequent of your text: what does it cost, and "
            "does training make up for it (docs/change.md)?",
        ),
    ] = None,
    student_layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Layers of a smaller model that learns from yours, in one more arm.",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="Other text, for one more arm: is it your text that helps?"),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="General text: how much of it is forgotten? none: do not measure.",
            show_default="bundled:wikipedia for English text",
        ),
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(help="Share of the general text in training, such as 0.2, for one more arm."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of further training.")] = STEPS,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="End a run after so many evaluations (of 20) without a lower loss, and keep its "
            "best state.",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Shares of the steps after which a run also ends, such as 0.25,0.5,1: it keeps "
            "the length with the lowest loss (docs/adapt.md).",
        ),
    ] = None,
    head_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Steps that train a new head, once for all runs. Default: ≤ {STEPS}."
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_SEEDS,
            help="Runs of each arm. Default: 6, the least that can decide; more with more "
            "questions.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="The seeds of the runs, such as 6-35, in place of --runs."),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="Time limit: 2h, 90m or 1h30m; 90 is 90 minutes.",
        ),
    ] = None,
    out: Out = None,
    jobs: Jobs = None,
    processes: Processes = 1,
    dry_run: DryRun = False,
    timing: Timing = True,
    as_json: Json = False,
) -> None:
    """Train an encoder further on your text, and test whether this helps, and at what cost.

    OUT/adapt.yaml is the recipe that is run. The same command resumes an interrupted run.
    OUT/model is a folder for transformers, and OUT/sentence-model for sentence-transformers.
    """
    from maskwise.studies.adapt import Adaptation, Request, refuse_both
    from maskwise.studies.forecast import time_words

    refuse_both(runs, seeds)
    of_runs: int | tuple[int, ...] = runs or 0
    if seeds is not None:
        of_runs = (*seeds_of(seeds, "--seeds"),)
    request = Request(
        model=model,
        texts=texts,
        out=out_folder(out, texts, command="adapt"),
        tasks=(*(task or ()),),
        arms=(*map(str.strip, arms.split(",")),),
        policy=policy,
        new_words=new_words,
        trim_tokens=trim_tokens,
        student_layers=student_layers,
        control=control,
        keep=keep,
        replay=replay,
        steps=steps,
        patience=patience,
        lengths=None if lengths is None else _shares(lengths),
        head_steps=head_steps,
        seeds=of_runs,
        overrides=(*(overrides or ()),),
        time=limit,
        jobs=jobs,
        processes=processes,
    )
    with Adaptation(request, dry_run=dry_run) as adaptation:
        if dry_run:
            # The plan is the result of a dry run, so it is printed to stdout.
            plan = print_check(partial(adaptation.plan, timing=timing), as_json=as_json)
            over = adaptation.over_time(plan)
            if over and not as_json:
                say(f"{over}.")
            return
        if limit is not None or not as_json:
            plan = adaptation.plan(timing=timing)
            for line in (f"Time: {time_words(plan)}.", *adapt_lines(plan)):
                say(line, to=err_console)
            if over := adaptation.over_time(plan):
                raise over
        result = adaptation.run()
    if as_json:
        print_json(result)
    else:
        say(result["answer"], "bold")
        say(f"{result['kept']} Page: {result['report']}")
        say(f"Next: {result['next']['advice']}")
        if result["next"]["command"]:
            say(f"  {result['next']['command']}")
    raise typer.Exit(bool(result["failures"]))


def _shares(lengths: str) -> tuple[float, ...]:
    """Read the option ``--lengths``."""
    try:
        return (*map(float, lengths.split(",")),)
    except ValueError:
        raise MaskwiseError(
            "--lengths are shares of the steps", got=lengths, allowed="such as 0.25,0.5,1"
        ) from None


def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    processes: Processes = 1,
    as_json: Json = False,
) -> None:
    """Pre-train one model, also with torchrun. The checkpoint is a folder for transformers."""
    changes = overrides or []
    # In the same order as in ``study``.
    recipe_path(recipe)
    from maskwise.recipe import read_recipe

    out = out_folder(out, recipe, command="pretrain")
    read = partial(read_recipe, recipe)
    whole = read(changes)
    from maskwise.studies.single import run_pretrain
    from maskwise.studies.unread import read_by_pretraining, refuse_unread
    from maskwise.training.engine import leave

    refuse_unread(whole, changes, read=read, content=read_by_pretraining, command="pretrain")
    result = run_pretrain(whole, out, processes=processes)
    leave()
    if rank_here():  # only rank 0 prints
        return
    if as_json:
        print_json(result)
        return
    rows = []
    for line in result["heldout"]:
        masks = f"{line['masks']} {in_percent(line['ratio'])} %"
        if line["masks"] == NEXT_TOKEN:
            masks = line["masks"]
        rows.append((masks, figure(line["loss"]), figure(line["unigram"]), str(line["targets"])))
    print_table(("held-out masks", "loss (nats)", "word frequencies alone", "targets"), rows)
    known = [line for line in result["heldout"] if line["unigram"] is not None]
    if known and all(line["loss"] >= line["unigram"] for line in known):
        warn(
            "the model predicts no better than word frequencies: it has not learned from context "
            "yet; raise training.steps, or try other values of training.learning_rate"
        )
    if "best_step" in result:
        from maskwise.training.best import best_at

        said = best_at([result["best_step"]], result["planned_steps"])
        if result["steps"] < result["planned_steps"]:
            said += f", ended after {result['steps']:,}"
        say(f"{said.capitalize()}; the loss on dev documents chose")
    say(f"Checkpoint: {result['checkpoint']}  ({result['seconds']:.0f} s)")


def finetune(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    task: Annotated[
        list[str],
        typer.Option("--task", help="A bundled task, file, folder, or hf:ID. May be repeated."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings, such as learning_rate=1e-3 epochs=3",
            callback=last_ones_said("finetune"),
        ),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Fine-tuning runs per task. Default: 3.")
    ] = None,
    out: Out = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Runs that are fine-tuned at once, each in one process. In other commands, "
            "processes train one model together.",
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Fine-tune a checkpoint on tasks with several seeds, and evaluate it on the test sets."""
    from maskwise.studies.single import run_finetune

    out = out_folder(out, model, command="finetune")
    with warnings.catch_warnings():
        # The notes on the results say the same.
        warnings.simplefilter("ignore", Truncated)
        results = run_finetune(
            model, task, overrides or [], seeds=runs, processes=processes, out=out
        )
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
    processes: Processes = 1,
    as_json: Json = False,
) -> None:
    """Learn from a task what to mask, also with torchrun. To use the policy, set
    masking.policy: learned("OUT/policy") in a recipe.
    """
    changes = overrides or []
    # In the same order as in ``study``.
    recipe_path(recipe)
    from maskwise.recipe import read_recipe

    out = out_folder(out, recipe, command="learn")
    read = partial(read_recipe, recipe)
    whole = read(changes)
    from maskwise.studies.single import inputs_of_policy, run_learn, with_own_seed
    from maskwise.studies.unread import refuse_unread
    from maskwise.training.engine import leave

    refuse_unread(
        whole,
        changes,
        read=read,
        content=lambda each: inputs_of_policy(with_own_seed(each)),
        command="learn",
    )
    result = run_learn(whole, out, processes=processes)
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
    from maskwise.annotate.kept import Store
    from maskwise.annotate.run import annotate_corpus, open_corpus
    from maskwise.base.specs import split_calls
    from maskwise.masks.show import examples, render_layers, write_layers

    out = out_folder(out, corpus, command="annotate")
    documents = open_corpus(corpus, text_field=text_field, text_per=text_per, limit=limit)
    summary = annotate_corpus(
        documents,
        split_calls(wanted),
        out,
        engine=engine,
        jobs=jobs,
        functions=function or (),
    )
    if as_json:
        print_json(summary)
        if html is None:
            return
    layers: list[str] = []
    for entry in summary["annotators"].values():
        layers += entry["layers"]
    samples = examples(Store(out, layers).latest(), documents)
    if html is not None:
        write_layers(summary, samples, html)
        say(f"wrote {html}", to=err_console)
    if as_json:
        return
    out_console.print(render_layers(summary, samples, colours=has_colours()))
    for spec, entry in summary["annotators"].items():
        if message := entry["notice"] or entry["doubt"]:
            warn(f"{spec}: {message}")
        for error, count in entry["failures"].items():
            warn(f"{spec} failed on {count} texts, so these texts lack its layers: {error}", "red")
    say(f"{out}: {summary['documents']:,} documents, {summary['words']:,} words")
    if summary["skipped"]:
        say(f"skipped {counted(summary['skipped'])}")


def export(
    texts: Annotated[str, typer.Argument(help="Your text: a file, a folder, or hf:NAME.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of masking, such as policy=whole-word ratio=0.3",
            callback=last_ones_said("masking"),
        ),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(help="The tokenizer of the model that you will train.", show_default=False),
    ] = "",
    epochs: Annotated[str, typer.Option(help="Epochs, such as 0-2 or 0,3.")] = "0",
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in a row. Default: the tokenizer's maximum."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the masks.")] = 0,
    step: Annotated[
        int | None, typer.Option(min=0, help="Step in the schedule, if the masking has one.")
    ] = None,
    total_steps: Annotated[
        int | None, typer.Option(min=1, help="Length of the schedule in steps.")
    ] = None,
    wanted: Annotated[
        str,
        typer.Option(
            "--with",
            help="Annotators of layers that the policy reads, separated by commas. Those that need "
            "only the text are added.",
        ),
    ] = "",
    words: Words = "auto",
    form: Annotated[
        str, typer.Option("--format", help="parquet, or datasets (folders of datasets).")
    ] = "parquet",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the masks. Epochs of the same masks that are there are kept. Default: "
            "a folder in runs/ that is named after the text.",
        ),
    ] = None,
    text_field: TextField = "text",
    text_per: Annotated[
        str, typer.Option(help="What a document of a .txt file is: line, block or auto.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of documents.")] = None,
    as_json: Json = False,
) -> None:
    """Write the masks of named epochs to files, for any trainer."""
    if not tokenizer:
        raise MaskwiseError(
            "masks are of tokens, and no tokenizer is given",
            do="--tokenizer bert-base-uncased, or a folder: the tokenizer of the model that you "
            "will train",
        )
    refuse_missing(texts)
    from maskwise.base.specs import split_calls
    from maskwise.masking.settings import Masking
    from maskwise.masks.export import export_masks
    from maskwise.recipe.setting_layers import parse_overrides

    out = out_folder(out, texts, command="export")
    facts = export_masks(
        texts,
        out,
        tokenizer=tokenizer,
        masking=Masking.of(**parse_overrides(settings or [], section="masking")),
        epochs=seeds_of(epochs, "--epochs"),
        seed=seed,
        step=step,
        total_steps=total_steps,
        max_length=max_length,
        layers=split_calls(wanted),
        words=words,
        form=form,
        text_field=text_field,
        text_per=text_per,
        limit=limit,
    )
    if as_json:
        print_json(facts)
        return
    rows = []
    for epoch, line in facts["epochs"].items():
        share = line["targets"] / max(1, line["tokens"])
        rows.append(
            (epoch, line["file"], f"{line['tokens']:,}", f"{line['targets']:,}", f"{share:.1%}")
        )
    print_table(("epoch", "file", "tokens", "targets", "of all tokens"), rows)
    if not all(line["targets"] for line in facts["epochs"].values()):
        warn("an epoch has no targets, so it trains nothing: raise ratio, or use another policy")
    if facts["skipped"]:
        say(f"skipped {counted(facts['skipped'])}")
    say(
        f"{out}: {facts['documents']:,} documents in {facts['rows']:,} rows of ≤ "
        f"{facts['max_length']} tokens; masks.json says how they were made"
    )


def convert(
    old: Annotated[str, typer.Argument(help="A folder or hub id with pytorch_model.bin.")],
    new: Annotated[Path, typer.Argument(help="The folder to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer, if the old folder has none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an older checkpoint again, with safetensors, so that maskwise and others can load it.

    No code of the checkpoint is run: a file with anything but weights is refused.
    """
    from maskwise.models.convert import convert as write_again

    facts = write_again(old, new, tokenizer=tokenizer)
    for note in facts["warnings"]:
        warn(note)
    if as_json:
        print_json(facts)
        return
    head = "with a head for masked tokens"
    if not facts["head"]:
        head = "without a head for masked tokens; train one first: training.freeze=encoder"
    say(f"{new}: {facts['weights']:,} weights from {plural(facts['files'], 'file')}, {head}")


def change(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or a bundled model.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    wanted: Annotated[
        list[str],
        typer.Option(
            "--with",
            help="A change, such as \"trim-tokens('my_texts.txt')\". May be repeated.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Change a model that exists, such as to fewer tokens, and write it to a folder.

    transformers and sentence-transformers load the folder without maskwise.
    """
    from transformers.utils import logging

    from maskwise.changes import change as change_model

    logging.disable_progress_bar()
    facts = change_model(model, out, wanted)
    for note in facts["warnings"]:
        warn(note)
    if as_json:
        print_json(facts)
        return
    before, after = facts["megabytes"]
    for spec, did in facts["changes"].items():
        say(f"{spec}: {did['what']}")
    more = "more" if after > before else "less"
    share = f"{abs(after / before - 1):.1%} {more}"
    say(
        f"{out}: {after:,.1f} MB of weights in {facts['precision']}, {before:,.1f} before ({share})"
    )
