"""Print what each file of maskwise is about: the first paragraph of its docstring.

    python scripts/outline.py
    python scripts/outline.py tasks/

The second command prints the files whose path begins with ``tasks/``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

SOURCE = Path(__file__).parents[1] / "src" / "maskwise"


def outline(start: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each file below ``src/maskwise``, and what the file is about."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(start):
            continue
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first, _, _ = about.partition("\n\n")
        yield name, " ".join(first.split())


def main(start: Annotated[str, typer.Argument()] = "") -> None:
    """Print a line for each file."""
    for name, about in outline(start):
        print(f"{name:36} {about}")


if __name__ == "__main__":
    typer.run(main)
