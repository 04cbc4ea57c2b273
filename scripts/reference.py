"""Write four pages of docs/ from the source code.

    python scripts/reference.py [FOLDER]

``recipe.md`` lists every key of a recipe, ``commands.md`` every option, and ``names.md`` every
policy, schedule, corruption, objective, sampler, annotator and segmenter. ``settings.md`` has what
``new`` and ``adapt`` set, with the numbers of recorded studies. They are committed, so that they
can be read without building the site; if they differ from the source or a record, a test fails.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path

import typer

from maskwise.cli import app
from maskwise.cli.views import describe_table, internal_of, names_in
from maskwise.recipe.described import recipe_keys
from maskwise.results.estimates import shown
from maskwise.results.files import Contrast
from maskwise.results.usual import CHOICES, Evidence
from maskwise.studies.result import StudyResult

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS.parent / "benchmarks" / "results"
TABLES = (
    *("policies", "schedules", "corruptions", "objectives", "samplers", "annotators"),
    "segmenters",
    "changes",
)


def pages() -> dict[str, str]:
    """Return the text of each page, keyed by the name of its file."""
    made = {"recipe.md": recipe_page(), "commands.md": commands_page(), "names.md": names_page()}
    made["settings.md"] = settings_page()
    return {
        name: "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        for name, text in made.items()
    }


CHANGES = """The last line of a key says its default, the values that are allowed, and what a change
of it affects. *weights*: a change trains anew. *rounding*: speed or memory use, and weights by
rounding; a change trains anew, too. *speed*, *judgement* (runs, measurements and conclusions) and
*nothing* (logs, saved states): finished trainings are used again."""


def recipe_page() -> str:
    """Return the page with the keys of a recipe: a heading and two lines each, for phones, too."""
    sections = {"": []}
    for key in recipe_keys().values():
        section, dot, _ = key.name.partition(".")
        sections.setdefault(section if dot else "", []).append(key)
    lines = [
        "# Recipe keys",
        "",
        "All keys are optional, but a section `study.search` needs `grid`, "
        "and `study.gate` needs `contrast`. `null` means no value.",
        "`maskwise list keys` prints the same. On the command line, write `key=value`.",
        "",
        CHANGES,
    ]
    for section, keys in sections.items():
        lines += ["", f"## {section or 'Recipe'}"]
        for key in keys:
            facts = [f"default `{key.default}`" if key.default else "", key.allowed]
            facts.append(f"changes *{key.changes}*" if key.changes else "")
            what = key.what.replace("None:", "null:")
            lines += ["", f"### {key.name}", "", what]
            if any(facts):
                lines += ["", " · ".join(filter(None, facts))]
    return "\n".join(lines)


EXAMPLES = (
    'maskwise inspect "Marie Curie was born in Warsaw in 1867." --policy token,whole-word',
    "maskwise check my_texts.txt my_labels.csv",
    "maskwise adapt bundled:encoder my_texts.txt --task my_labels.csv",
    "maskwise new my_texts.txt my_labels.csv",
    "maskwise study my_texts.yaml --out runs/mine",
    "maskwise status runs/mine",
    'maskwise pretrain quick-start masking.ratio="linear(0.45, 0.15)" --out runs/one',
    "maskwise finetune runs/one/checkpoint --task banking77 --runs 3 --out runs/scores",
    "maskwise evaluate runs/one/checkpoint --with \"pairs('bundled:pairs')\"",
    'maskwise generate runs/one/checkpoint --prompt "the city of [MASK*4]"',
    "maskwise annotate my_texts.jsonl --with pos,salient --out layers",
    "maskwise learn learn-supervised --out runs/policy",
    "maskwise compare SCORES.csv --baseline bert --replicate finetuning",
    "maskwise export my_texts.txt --tokenizer bert-base-uncased --epochs 0-2 --out masks",
    "maskwise convert my_old_model my_model",
    "maskwise change bert-base-multilingual-cased my_model --with \"trim-tokens('my_texts.txt')\"",
    "maskwise report runs/mine runs/other",
    "maskwise list policies",
)
"""One of each command."""


def commands_page() -> str:
    """Return the page with an example, a description and a table of options for each command."""
    made = typer.main.get_command(app).commands
    commands = {name: command for name, command in made.items() if not command.hidden}
    examples = {example.split()[1]: example for example in EXAMPLES}
    lines = ["# Commands", "", "`maskwise COMMAND --help` shows the same.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    for name, command in commands.items():
        lines.append(_row(f"[{name}](#{name})", command.help.partition("\n\n")[0]))
    for name, command in commands.items():
        lines += ["", f"## {name}", "", "```bash", examples[name], "```", "", command.help, ""]
        lines += ["| option | meaning | default |", "|---|---|---|"]
        for option in command.params:
            # Of a switch that is on by default, that which turns it off is of use.
            opts = [*option.opts, *option.secondary_opts]
            shown = ", ".join(opts) if opts[0].startswith("-") else option.name.upper()
            default = "required" if option.required else str(option.default)
            if default in ("None", "False"):
                default = ""
            lines.append(_row(f"`{shown}`", option.help or "", default))
    return "\n".join(lines)


def names_page() -> str:
    """Return the page with the docstring of every name that a recipe may use."""
    lines = [
        "# Names",
        "",
        "Recipes, options and Python accept these names, with arguments as in `span(p=0.2)`.",
        "`maskwise list policies` (or `schedules`, …) prints the same.",
    ]
    for table in TABLES:
        lines += ["", f"## {table.capitalize()}"]
        members = names_in(table)
        for row in describe_table(table):
            arguments = f"({row['arguments']})" if row["arguments"] else ""
            lines += ["", f"### {row['name']}", ""]
            if arguments:
                lines += [f"`{row['name']}{arguments}`", ""]
            described = inspect.getdoc(members[row["name"]]) or ""
            lines.append(_markdown(described, without=internal_of(table)))
    return "\n".join(lines)


SETTINGS = """Find what you have, and set what stands there. `maskwise adapt` does so for an encoder
that exists, but `--lengths`, `--replay`, `--student-layers` and `--arms tsdae` are yours to give;
`maskwise new` writes a recipe that compares 15 % with 30 or 40 % on your text. All of this was
measured with small models, so each line says how far it goes.
To know it for your text, compare two arms: [Studies](studies.md).

A figure is the lead of what is named first (a higher score, or a lower loss), with its 95 %
interval over pairs of runs and its [verdict](evidence.md). Verdicts are corrected for all questions
of a study and intervals are not, so a figure may be *open* although its interval leaves out 0.
*Not known* means that no recorded study compared it by a test."""


def settings_page() -> str:
    """Return the page of what is usually set, with the contrasts of the records behind it."""
    lines = ["# What should I set?", "", SETTINGS]
    for case, choices in CHOICES.items():
        lines += ["", f"## {case}"]
        for choice in choices:
            lines += ["", f"### {choice.question}", "", f"**Set** {choice.value}.", ""]
            lines += [f"- {_found(each)}" for each in choice.found] or ["- *Not known.*"]
            lines += ["", choice.reach]
    return "\n".join(lines)


@cache
def _primary(record: str) -> list[Contrast]:
    """Return the primary contrasts of a record, which takes most of the time of the page."""
    contrasts = StudyResult.read(RESULTS / record).contrasts
    return [row for row in contrasts if row["primary"]]


def _found(found: Evidence) -> str:
    """Return what was compared, the lead, its interval, its verdict and a link to the record."""
    pair = (found.arm, found.baseline)
    [row] = [row for row in _primary(found.record) if (row["arm"], row["baseline"]) == pair]
    lead = shown(row)
    figure = f"{lead.figure()} {'points' if lead.unit.endswith('points') else lead.unit}"
    worse = ": worse" if row["better"] == "baseline" else ""
    verdict = f"[*{row['verdict']}*{worse}](../benchmarks/results/{found.record})"
    # What may turn a *decided* verdict, in the first words of its flags.
    codes = ("items", "compute") if row["verdict"] == "decided" else ()
    flags = [flag["sentence"].partition(":")[0] for flag in row["flags"] if flag["code"] in codes]
    limits = "; ".join(["", *flags])
    return f"{found.said}: {figure} ({lead.ends()}; {row['n']} pairs), {verdict}{limits}"


def _markdown(docstring: str, *, without: tuple[str, ...]) -> str:
    """Return a docstring as Markdown, without examples and errors, with arguments as a list."""
    text = re.sub(r"^>>> .*?(?:\n\n|\Z)", "", docstring, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^Raises:\n(?:    .*\n?)+", "", text, flags=re.MULTILINE)
    text = re.sub(
        rf"^    (?:{'|'.join(without)}): .*(?:\n {{8}}.*)*\n?", "", text, flags=re.MULTILINE
    )
    text = re.sub(r"^(?:Args|Attributes):\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    return re.sub(r"^([A-Z]\w+): ", r"- *\1:* ", text, flags=re.MULTILINE)


def _row(*cells: str) -> str:
    """Return a row of a Markdown table, with each cell on one line."""
    plain = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(plain)} |"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
