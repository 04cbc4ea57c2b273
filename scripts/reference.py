"""Write three pages of docs/ from the source code.

    python scripts/reference.py [FOLDER]

``recipe.md`` lists every key of a recipe, ``commands.md`` every option, and ``names.md`` every
policy, schedule, corruption, objective, sampler, annotator and segmenter. They are committed, so
that they can be read without building the site; if they differ from the source, a test fails.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import typer

from maskwise.cli import app
from maskwise.cli.views import describe_table, internal_of, names_in
from maskwise.recipe.described import recipe_keys

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLES = (
    *("policies", "schedules", "corruptions", "objectives", "samplers", "annotators"),
    "segmenters",
)


def pages() -> dict[str, str]:
    """Return the text of each page, keyed by the name of its file."""
    made = {"recipe.md": recipe_page(), "commands.md": commands_page(), "names.md": names_page()}
    return {
        name: "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        for name, text in made.items()
    }


CHANGES = """The last column says what a key changes. *weights*: a change trains anew. *rounding*:
speed or memory use, and weights by rounding; a change trains anew, too. *speed*, *judgement* (runs,
measurements and conclusions) and *nothing* (logs, saved states): finished trainings are used
again."""


def recipe_page() -> str:
    """Return the page with a table of keys for each section of a recipe."""
    sections = {"": []}
    for key in recipe_keys().values():
        section, dot, _ = key.name.partition(".")
        sections.setdefault(section if dot else "", []).append(key)
    lines = [
        "# Recipe keys",
        "",
        "All keys are optional, but a section `study.search` needs `grid`, "
        "and `study.gate` needs `contrast`. `null` means no value.",
        "`maskwise list keys` prints the same.",
        "",
        CHANGES,
    ]
    for section, keys in sections.items():
        lines += ["", f"## {section or 'Recipe'}", ""]
        lines += ["| key | meaning | default | allowed | changes |", "|---|---|---|---|---|"]
        for key in keys:
            default = f"`{key.default}`" if key.default else ""
            what = key.what.replace("None:", "null:")
            lines.append(_row(f"`{key.name}`", what, default, key.allowed, key.changes))
    return "\n".join(lines)


def commands_page() -> str:
    """Return the page with a description and a table of options for each command."""
    lines = ["# Commands", "", "`maskwise COMMAND --help` shows the same."]
    for name, command in typer.main.get_command(app).commands.items():
        lines += [
            "",
            f"## {name}",
            "",
            command.help,
            "",
            "| option | meaning | default |",
            "|---|---|---|",
        ]
        for option in command.params:
            shown = (
                ", ".join(option.opts) if option.opts[0].startswith("-") else option.name.upper()
            )
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
