"""What the commands share: the two consoles, options that several have, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

out_console, err_console = Console(), Console(stderr=True)

Out = Annotated[
    Path,
    typer.Option("--out", help="Folder for everything that is written; the same folder goes on."),
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, such as training.steps=500 masking.ratio=0.3"),
]


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def say(text: str, style: str = "", *, to: Console = out_console) -> None:
    """Print a line as it is: without markup, coloured figures or breaks."""
    to.print(Text(text, style), soft_wrap=True)


def columns(*heads: str) -> Table:
    """A table without lines."""
    return Table(*heads, box=None, padding=(0, 2, 0, 0))


def has_colours() -> bool:
    return bool(out_console.color_system and not out_console.no_color)


def escape(text: str) -> str:
    return text.replace("[", r"\[")
