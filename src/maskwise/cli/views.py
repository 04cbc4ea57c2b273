"""Commands that only read, and write at most a page that is asked for: check, evaluate, generate,
inspect, report, list.
"""

from __future__ import annotations

import inspect as python_inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.padding import Padding
from rich.text import Text

from maskwise.base.constants import NEXT_TOKEN
from maskwise.base.errors import MaskwiseError, in_percent, require_known, unknown_name
from maskwise.base.folders import recipe_path, shipped
from maskwise.base.plugins import Table
from maskwise.base.printing import err_console, out_console, print_json, say, warn
from maskwise.base.specs import arguments_of, is_path, split_options, user_path
from maskwise.cli.terminal import (
    Json,
    JsonObject,
    Page,
    TextField,
    Timing,
    Words,
    complete_policy,
    complete_recipe,
    complete_setting,
    figure,
    has_colours,
    last_ones_said,
    out_folder,
    print_check,
    print_table,
    print_verdicts,
    settings_and_files,
)


def check(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|TEXTS|MODEL",
            autocompletion=complete_recipe,
            help="A recipe; your text, or a file with labels; or a model, followed by your text.",
        ),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES] [KEY=VALUE]",
            autocompletion=complete_setting,
            help="After a text: files with labels. After a model: a text, and files with labels. "
            "Settings to change, such as training.steps=500.",
            callback=last_ones_said(),
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="A file with labels, as for adapt. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of the study. Its finished stages count."),
    ] = None,
    spread: Annotated[
        str | None,
        typer.Option(
            help="The SD of paired differences, or the folder of a study from which it is taken. "
            "Default: that of the study in --out."
        ),
    ] = None,
    detect: Annotated[
        float | None,
        typer.Option(help="A difference in points or nats: how many runs detect it?"),
    ] = None,
    timing: Timing = True,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Run every stage so, and end with the first that fails."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what would be trained, how long it takes, and what it can decide. Nothing is written.

    For files, the command checks the recipe that `maskwise new` would write for them; for a model
    and files, that of `maskwise adapt`. `study --dry-run` and `adapt --dry-run` show the same.
    """
    overrides, files = settings_and_files(more or ())
    labels = [*(task or ())]
    file = user_path(split_options(subject)[0])
    if not files and not (is_path(file) or subject.startswith(("hf:", "bundled:", "package:"))):
        # Check the name of the recipe before slow imports.
        recipe_path(subject)
    from maskwise.models.starts import is_model
    from maskwise.studies.adapt import Adaptation, Request
    from maskwise.studies.forecast import check as checked

    asked: JsonObject = {"spread": spread, "detect": detect}
    asked |= {"timing": timing, "rehearse": rehearse}
    # A text has an ending, or is a folder; the id of a model on the hub has neither.
    on_hub = bool(files) and "/" in subject and not is_path(file) and not file.suffix
    if is_model(subject) or (on_hub and not subject.startswith("hf:")):
        if not files:
            raise MaskwiseError(
                "a model is checked with a text",
                got=subject,
                do=f"maskwise check {subject} TEXTS [LABELS …]",
            )
        texts, *tasks = files
        request = Request(
            model=subject,
            texts=texts,
            out=out_folder(out, texts, command="adapt"),
            tasks=(*tasks, *labels),
            overrides=(*overrides,),
        )
        with Adaptation(request, dry_run=True) as adaptation:
            print_check(partial(adaptation.plan, **asked), as_json=as_json)
    else:
        labelled = [*files, *labels]
        asked |= {"tasks": labelled, "out": out}
        print_check(lambda tell: checked(subject, overrides, tell=tell, **asked), as_json=as_json)


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder or hub id of a masked language model.")
    ],
    measures: Annotated[
        str,
        typer.Option(
            "--with",
            help="Measures, separated by commas, such as pairs('bundled:pairs'), "
            "cloze('FILE', items=500) and pseudo-perplexity; maskwise list measures shows all.",
        ),
    ] = "",
    text: Annotated[
        str | None,
        typer.Option(help="Text not seen in training, for held-out loss and pseudo-perplexity."),
    ] = None,
    text_field: TextField = "text",
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint without fine-tuning: held-out loss, bound, pseudo-perplexity, cloze
    facts, minimal pairs.
    """
    from maskwise.base.specs import split_calls
    from maskwise.evaluation.evaluate import evaluate_checkpoint

    found = evaluate_checkpoint(model, split_calls(measures), text=text, text_field=text_field)
    if as_json:
        print_json([row.line() for row in found])
        return
    by_frequency = {row.outcome: row.value for row in found if row.split == "unigram"}
    rows = []
    for row in found:
        if row.split == "unigram":
            continue
        name = f"{row.measure} {row.metric}"
        chance = row.chance
        if row.kind == "heldout" and row.ratio is not None:
            name = f"held-out loss, {row.measure} masks {in_percent(row.ratio)} %"
            if row.measure == NEXT_TOKEN:
                name = f"held-out loss, {row.measure}"
            chance = by_frequency.get(row.outcome.replace("heldout:", "unigram:", 1))
        skipped = [f"{count} {reason}" for reason, count in row.facts.get("skipped", {}).items()]
        shown = figure(row.value)
        # Some measures have no standard error.
        if row.item_error is not None:
            shown += f" ± {row.item_error:.3f}"
        rows.append((name, shown, figure(chance), str(row.items), "; ".join(skipped)))
    print_table(("measure", "value", "chance", "items", "left out"), rows)
    if by_frequency:
        say("The chance of a loss is that of predicting by the word frequencies of this text.")


def generate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint folder or hub id of a masked language model.")
    ],
    prompt: Annotated[
        str,
        typer.Option(help="Text to keep. [MASK] and [MASK*5] are gaps of one and five tokens."),
    ] = "",
    length: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens to write after a prompt without gaps. Default: 32."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps. Default: one per token to write.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="Order in which gaps are filled: confidence, random or block.")
    ] = "confidence",
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 for the most likely token.")
    ] = 1.0,
    block: Annotated[
        int | None, typer.Option(min=1, help="Tokens per block, for --order block. Default: 8.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for sampling tokens. Default: 0.")] = None,
    as_json: Json = False,
) -> None:
    """Write text by masked diffusion. The model fills gaps step by step, and the terminal shows
    every step.

    The model may be trained with the diffusion objective, or may be any other encoder with a
    masked-language-model head.
    """
    from rich.live import Live
    from transformers.utils import logging

    from maskwise.masks.generate import Writer

    logging.disable_progress_bar()
    stages = Writer(model).write(
        prompt,
        length=length,
        steps=steps,
        order=order,
        temperature=temperature,
        block=block,
        seed=seed,
    )
    # In a pipe, only the final text is useful.
    if out_console.is_terminal and not as_json:
        with Live(console=out_console, refresh_per_second=12) as live:
            for stage in stages:
                live.update(Text(stage.text))
        return
    history = [stage.text for stage in stages]
    if as_json:
        how = {"order": order, "steps": len(history) - 1, "seed": seed or 0}
        print_json({"text": history[-1], **how, "history": history})
    else:
        say(history[-1])


def inspect(
    text: Annotated[
        str,
        typer.Argument(
            help="A text, or a file, of whose first texts 600 characters each are shown. Spans may "
            "be marked: [[Marie Curie]]."
        ),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_policy,
            help="One or more policies, separated by commas. Default: token,whole-word; for "
            "sequences token,span(over='token').",
        ),
    ] = None,
    ratio: Annotated[
        str, typer.Option(help="A number, or a schedule such as linear(0.3, 0.15).")
    ] = "0.15",
    budget: Annotated[
        str, typer.Option(help="Budget of masked tokens: expected, exact or bernoulli.")
    ] = "expected",
    corruption: Annotated[str, typer.Option(help="How selected tokens are replaced.")] = "bert",
    fill: Annotated[
        str, typer.Option(help="Use of a budget that units leave: none, random or skip-row.")
    ] = "none",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A folder or hub id. Default: a small bundled tokenizer."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the masks.")] = 0,
    step: Annotated[
        int | None, typer.Option(min=0, help="Step in the schedule. Default: 0.")
    ] = None,
    total_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Length of the schedule in steps. Default: 1000."),
    ] = None,
    words: Words = "auto",
    texts: Annotated[
        int | None,
        typer.Option(min=1, help="Number of texts of a file that are shown. Default: 5."),
    ] = None,
    html: Page = None,
    as_json: Json = False,
) -> None:
    """Show how one or more policies mask a text."""
    from maskwise.masks.inspection import inspect_text, render_masks, write_masks
    from maskwise.text.tokenizers import LETTERS, usual_tokenizer

    if policy is None:
        policy = "token,whole-word"
        if usual_tokenizer(text) == LETTERS:
            policy = "token,span(over='token')"
    settings = {
        "ratio": ratio,
        "budget": budget,
        "corruption": corruption,
        "fill": fill,
        "seed": seed,
    }
    inspected = inspect_text(
        text,
        policy,
        settings,
        tokenizer=tokenizer,
        step=step,
        total_steps=total_steps,
        words=words,
        texts=texts,
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
        Path | None, typer.Argument(help="Another study to compare with the first one.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Path of the page. Default: FOLDER/report.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a study or a run again, from the files in its folder.

    The verdicts are computed from records.jsonl by the rules of this version, and compared with
    summary.json. No file other than the page is written.

    --json prints the verdicts with all reasons and writes no page; --json with --html does both.
    With two studies, the page OTHER/compared.html shows differences in their recipes and results.
    """
    from maskwise.report import (
        changes_of,
        compare_studies,
        summary_of,
        write_comparison,
        write_report,
    )

    for study in filter(None, (folder, other)):
        for line in changes_of(study):
            warn(line)
    if other is not None:
        if as_json:
            print_json(compare_studies(folder, other))
        if html is not None or not as_json:
            say(f"wrote {write_comparison(folder, other, html)}", to=err_console)
        return
    if not as_json:
        say(str(write_report(folder, html)))
        return
    print_json(summary_of(folder))
    if html is not None:
        say(f"wrote {write_report(folder, html)}", to=err_console)


def compare(
    scores: Annotated[
        list[Path],
        typer.Argument(
            help="A table of scores, or one for each arm, which is named after its file; or a "
            "folder ARM/SEED/all_results.json."
        ),
    ],
    baseline: Annotated[str, typer.Option(help="The arm that others are compared with.")],
    replicate: Annotated[
        str, typer.Option(help="What a row repeats: pretraining, finetuning or items.")
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(help="The name of a column, such as seed=run; keys: arm, seed, task, score."),
    ] = None,
    contrast: Annotated[
        list[str] | None, typer.Option(help="A primary contrast ARM:BASELINE. Repeat the option.")
    ] = None,
    lower: Annotated[
        list[str] | None, typer.Option(help="A task whose scores are losses in nats.")
    ] = None,
    chance: Annotated[
        list[str] | None, typer.Option(help="The score of guessing, such as sst2=0.5.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="The largest difference that does not matter; 0.01: one point."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the page and the verdicts.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge scores that were measured elsewhere: is the difference real?

    The table has the columns arm, seed, task and score, or a column of scores for each task. Rows
    of two arms with the same seed are a pair. A decision needs at least six pairs.
    """
    from maskwise.scores.compared import compare as judge

    guessing = {task: _number(value) for task, value in _named(chance, "chance").items()}
    pairs = _split(contrast, ":", "contrast")
    result = judge(
        scores[0] if len(scores) == 1 else scores,
        replicate=replicate,
        baseline=baseline,
        contrasts=pairs,
        columns=_named(column, "column"),
        lower=lower or (),
        chance=guessing,
        margin=margin,
    )
    page = result.save(out) if out else None
    if as_json:
        print_json({**result.summary, "notes": result.notes})
        return
    print_verdicts(cast(JsonObject, result.summary))
    for note in result.notes:
        say(f"  {note}", "dim")
    if page:
        say(f"\nThe page: {page}")


def _split(texts: Sequence[str] | None, sign: str, option: str) -> list[tuple[str, str]]:
    """Split the values of an option that is repeated, such as ``seed=run``."""
    parts = []
    for text in texts or ():
        before, found, after = text.rpartition(sign)
        if not (before and found and after):
            raise MaskwiseError(f"--{option} needs two names", got=text, allowed=f"ONE{sign}OTHER")
        parts.append((before, after))
    return parts


def _named(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return the values of an option such as ``seed=run``, by name."""
    found: dict[str, str] = {}
    for name, value in _split(texts, "=", option):
        if name in found:
            raise MaskwiseError(
                f"--{option} {name} is given twice", got=f"{found[name]} and {value}", do="give one"
            )
        found[name] = value
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MaskwiseError(
            "--chance needs a number after the task",
            got=text,
            allowed="the score of guessing",
            do="for example, --chance sst2=0.5",
        ) from None


# Some modules of the lists take seconds to import. Only the module of the wanted list is imported.


def _policies() -> Mapping[str, Any]:
    from maskwise.masking import POLICIES

    return POLICIES


def _segmenters() -> Mapping[str, Any]:
    from maskwise.text.segmenters import SEGMENTERS

    return SEGMENTERS


def _annotators() -> Mapping[str, Any]:
    # With ``learning``, the annotator ``learned`` is known.
    import maskwise.learning  # noqa: F401
    from maskwise.annotate.registry import ANNOTATORS

    return ANNOTATORS


def _schedules() -> Mapping[str, Any]:
    from maskwise.masking import SCHEDULES

    return SCHEDULES


def _corruptions() -> Mapping[str, Any]:
    from maskwise.masking import CORRUPTIONS

    return CORRUPTIONS


def _objectives() -> Mapping[str, Any]:
    from maskwise.objectives import OBJECTIVES

    return OBJECTIVES


def _samplers() -> Mapping[str, Any]:
    from maskwise.samplers import SAMPLERS

    return SAMPLERS


def _tasks() -> Mapping[str, Any]:
    from maskwise.tasks.reading import WHAT_THEY_ARE

    return WHAT_THEY_ARE


def _cards() -> Mapping[str, Any]:
    from maskwise.tasks.reading import CARDS

    return CARDS


def _kinds() -> Mapping[str, Any]:
    from maskwise.tasks.loading import KINDS

    return KINDS


def _metrics() -> Mapping[str, Any]:
    from maskwise.tasks.metrics import METRICS

    return METRICS


def _changes() -> Mapping[str, Any]:
    from maskwise.changes import CHANGES

    return CHANGES


def _measures() -> Mapping[str, Any]:
    from maskwise.evaluation.evaluate import MEASURES

    return MEASURES


def _keys() -> Mapping[str, Any]:
    from maskwise.recipe.described import recipe_keys

    return recipe_keys()


TABLES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "policies": _policies,
    "annotators": _annotators,
    "schedules": _schedules,
    "corruptions": _corruptions,
    "objectives": _objectives,
    "samplers": _samplers,
    "segmenters": _segmenters,
    "changes": _changes,
    "tasks": _tasks,
    "cards": _cards,
    "kinds": _kinds,
    "metrics": _metrics,
    "measures": _measures,
    "recipes": shipped,
    "keys": _keys,
}
"""The members of every list, by name."""


EXAMPLES = {
    "policies": 'maskwise inspect "Curie was born in [[Warsaw]] in 1867." --ratio 0.3 '
    '--policy "{call}"',
    "annotators": """maskwise annotate my_texts.jsonl --with "{call}\"""",
    "segmenters": "maskwise pretrain quick-start corpus.source=my_texts.txt corpus.words={call} "
    "masking.policy=whole-word tokenizer.kind=bpe",
    "schedules": """maskwise pretrain quick-start masking.ratio="{call}\"""",
    "corruptions": """maskwise inspect "born in Warsaw" --corruption "{call}\"""",
    "objectives": "objective: {{{call}: }}",
    "samplers": "sampler: {call}",
    "changes": 'maskwise change runs/one/checkpoint changed --with "{call}"',
    "tasks": "maskwise finetune runs/one/checkpoint --task {call}",
    "cards": "tasks: [\"my_copy(card='{call}')\"]",
    "kinds": "maskwise finetune runs/one/checkpoint --task \"my_labels.csv(kind='{call}')\"",
    "metrics": "maskwise finetune runs/one/checkpoint --task "
    "\"my_labels.csv(kind='{command}', metric='{call}')\"",
    "measures": 'maskwise evaluate runs/one/checkpoint --with "{call}"{command}',
    "recipes": "maskwise {command} {call}",
    "keys": "{call}",
}
"""Usage examples for every list; {call} is a name with its required arguments. {command} is the
command that a recipe is for, the kind of task that has a metric, or the option that a measure
needs.
"""

REQUIRED = {
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
    "text": "'my_texts.txt'",
}
"""Values of required arguments in examples. An argument that is not listed is shown by its name in
capital letters."""

OF_MEMBERS = {
    "gold": "'my_texts.conllu'",
    "pairs": "'bundled:pairs'",
    "cloze": "'my_facts.jsonl'",
    "text-loss": "'my_texts.txt'",
}
"""All arguments in the examples of members for which ``REQUIRED`` says too little."""

SCHEMA = "schema"
"""What prints the JSON Schema of recipes."""

INTERNAL = ("model", "objectives", "seed", "chance", "kwargs")
"""Arguments that the package passes itself, and that recipes cannot set."""


def internal_of(what: str) -> tuple[str, ...]:
    """Return those arguments of the members of a list. The model of an annotator is the user's."""
    return tuple(name for name in INTERNAL if (what, name) != ("annotators", "model"))


def list_names(
    what: Annotated[
        str, typer.Argument(help=f"{', '.join(TABLES)}, {SCHEMA}", show_default=False)
    ] = "",
    name: Annotated[
        str, typer.Argument(help="Only this name, or the keys of a section.", show_default=False)
    ] = "",
    as_json: Json = False,
) -> None:
    """List names, each with a description and an example; or print the JSON Schema of recipes."""
    if not what:
        raise MaskwiseError(
            "list what?", allowed=f"{', '.join(TABLES)}, {SCHEMA}", do="try: maskwise list recipes"
        )
    if what == SCHEMA and not name:
        from maskwise.recipe.described import recipe_schema

        print_json(recipe_schema())
        return
    require_known("list", what, TABLES)
    rows = describe_table(what)
    if name:
        known = [row["name"] for row in rows]
        rows = [row for row in rows if f"{row['name']}.".startswith(f"{name}.")]
        if not rows:
            raise unknown_name(f"name in the list of {what}", name, known)
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(f"No package has added {what} (docs/plug-ins.md).")
    for row in rows:
        arguments = row["arguments"]
        if arguments:
            arguments = f"({arguments})"
        out_console.print(Text.assemble((row["name"], "bold"), (arguments, "dim")), soft_wrap=True)
        out_console.print(Padding(Text(row["what"]), (0, 0, 0, 4)))
        say(f"    {row['example']}", "cyan")


def names_in(what: str) -> dict[str, Any]:
    """Return the members of a list, keyed by name. Warn of plug-ins that cannot be used."""
    table = TABLES[what]()
    if not isinstance(table, Table):
        return dict(table)
    members, faults = table.usable()
    for fault in faults:
        warn(fault)
    return members


def describe_table(what: str) -> list[dict[str, str]]:
    """Return name, arguments, description and example of every member of a list."""
    rows = []
    kinds = names_in("kinds") if what == "metrics" else {}
    for name, member in names_in(what).items():
        call = name
        command = ""
        arguments = ""
        if what == "tasks":
            line = member
        elif what == "cards":
            line = f"{member['title']}; {member['source']}; {member['licence']}"
        elif what == "kinds":
            line = f"Metrics: {', '.join(member.metrics)}."
        elif what == "metrics":
            command = next((kind for kind, of in kinds.items() if name in of.metrics), "KIND")
            line = _sentence(python_inspect.getdoc(member) or "")
        elif what == "keys":
            line = " ".join(member.what.split())
            if member.allowed:
                line += f" Allowed: {member.allowed}."
            if member.changes:
                line += f" Changes: {member.changes}."
            call = name
            if member.default:
                call += f"={member.default}"
        elif what == "recipes":
            # Recipes begin with a comment that describes them.
            lines = member.read_text(encoding="utf-8").splitlines()
            comment = takewhile(lambda line: line.startswith("#"), lines)
            line = _sentence(" ".join(text.lstrip("# ") for text in comment))
            command = _command_for(member)
        else:
            line = _sentence(python_inspect.getdoc(member) or "")
            command = _text_option(member) if what == "measures" else ""
            internal = internal_of(what)
            arguments = arguments_of(member, without=internal)
            parameters = python_inspect.signature(member).parameters.values()
            required = []
            for parameter in parameters:
                # An empty default means that another place, such as a study, gives the value.
                no_default = parameter.default in (parameter.empty, "")
                if no_default and parameter.name not in internal:
                    required.append(REQUIRED.get(parameter.name, parameter.name.upper()))
            if name in OF_MEMBERS:
                call = f"{name}({OF_MEMBERS[name]})"
            elif required:
                call = f"{name}({', '.join(required)})"
        example = EXAMPLES[what].format(call=call, command=command)
        rows.append({"name": name, "arguments": arguments, "what": line, "example": example})
    return rows


def _command_for(recipe: Path) -> str:
    """Return the command that a shipped recipe is for.

    A study compares at least two arms, or one arm with the model before training. Other recipes
    train one model.
    """
    import yaml

    # To read a recipe as a command does would import pydantic, which is slow.
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    study = settings.get("study") or {}
    if "arms" not in study and "extends" in settings:
        return _command_for(recipe.with_name(f"{settings['extends']}.yaml"))
    return "study" if len(study.get("arms", ())) > 1 or study.get("contrasts") else "pretrain"


def _text_option(measure: object) -> str:
    """Return the option with which a measure of held-out text is named."""
    from maskwise.evaluation.measure import TextMeasure

    of_text = isinstance(measure, type) and issubclass(measure, TextMeasure)
    return " --text my_texts.txt" if of_text else ""


def _sentence(text: str) -> str:
    """Return the first sentence of a text."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", paragraph)[0]
