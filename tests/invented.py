"""Invented worlds, written to files by scripts/worlds.py."""

from __future__ import annotations

import atexit
import json
import re
import runpy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from maskwise.base.folders import read_lines
from maskwise.base.specs import with_options

SCRIPT = Path(__file__).parent.parent / "scripts" / "worlds.py"


@cache
def script() -> dict[str, Any]:
    """The names that the script defines."""
    return runpy.run_path(str(SCRIPT))


@dataclass(frozen=True)
class World:
    """The files of a world: of one seed, or of the seed of each run."""

    folder: Path
    seed: int | str = "{seed}"

    def of(self, seed: int) -> World:
        return World(self.folder, seed)

    def file(self, name: str) -> str:
        return f"{self.folder}/{self.seed}/{name}.jsonl"

    @property
    def source(self) -> str:
        return self.file("corpus")

    @property
    def layers(self) -> list[str]:
        """The annotators of what is marked in the texts."""
        return [f"spans('{self.source}', field='{n}', layer='{n}')" for n in ("salient", "asked")]

    @property
    def settings(self) -> list[str]:
        """Overrides of a recipe: the text is that of the world."""
        return [f"corpus.source={self.source}", f"corpus.layers={json.dumps(self.layers)}"]

    def task(self, kind: str = "cloze-qa", name: str = "factworld", **options: object) -> str:
        return with_options(self.file("questions"), kind=kind, name=name, **options)

    @property
    def texts(self) -> list[str]:
        return [record["text"] for record in read_lines(Path(self.source))]


@cache
def world(spec: str, *seeds: int) -> World:
    """Write a world such as ``factworld(people=20)`` for some seeds, by default for seed 0."""
    folder = Path(tempfile.mkdtemp(prefix="worlds-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    main: Callable[[list[str]], None] = script()["main"]
    main([str(folder), spec, "--seeds", *map(str, seeds or (0,))])
    return World(folder, "{seed}" if seeds else 0)


COMMAND = re.compile(r'^#   python scripts/worlds.py (\S+) "(.+)" --seeds', re.MULTILINE)
"""The command, at the top of a recipe, that writes its worlds."""


def write_worlds(folder: Path, recipe: Path, *seeds: int) -> None:
    """Write the worlds of a recipe and of those that it extends, with its own commands."""
    text = recipe.read_text()
    for out, spec in COMMAND.findall(text):
        shutil.copytree(world(spec, *seeds).folder, folder / out, dirs_exist_ok=True)
    base = re.search(r"^extends: (\S+)$", text, re.MULTILINE)
    # Shipped recipes, which have no ending here, read bundled worlds.
    if base and (recipe.parent / base[1]).is_file():
        write_worlds(folder, recipe.parent / base[1], *seeds)
