"""The time of short commands: the median wall and processor time of several calls, as JSON.

    python benchmarks/start_up.py [NAME=SOURCE_FOLDER …] [--only "--help,inspect"] > start-up.json

Without arguments, this checkout is timed. With arguments, several source folders are timed in turn,
such as ``before=/tmp/old/src after=src``.

Before the starts that are timed, each command is called once, so that Python has bytecode, as in an
installation, and the rates of this machine are known.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from command import run, worked
from figures import surroundings

from maskwise.base.errors import MaskwiseError, require_known

ROOT = Path(__file__).resolve().parent.parent
STARTS = int(os.environ.get("STARTS", "3"))
SENTENCE = "Marie Curie was born in Warsaw in 1867."
FIRST_MASK = """
import maskwise as mw
model, tokenizer = mw.load("bundled:encoder")
rows = mw.encode(tokenizer, ["Marie Curie was born in Warsaw in 1867."])
mw.Masker(tokenizer, policy="whole-word")(rows, epoch=0)
"""
COMMANDS: dict[str, str | list[str]] = {
    "import maskwise": "import maskwise",
    "first mask": FIRST_MASK,
    "(bare)": [],
    "--version": ["--version"],
    "--help": ["--help"],
    "study --help": ["study", "--help"],
    "list policies": ["list", "policies"],
    "list recipes": ["list", "recipes"],
    "list tasks": ["list", "tasks"],
    "list keys": ["list", "keys"],
    "inspect": ["inspect", SENTENCE],
    "inspect, four policies": [
        "inspect",
        SENTENCE,
        "--policy",
        "token,whole-word,span,pos-weighted",
    ],
    "an unknown recipe": ["study", "quikc-start"],
    "an unknown setting": ["study", "quick-start", "training.stesp=3"],
    "an unknown policy": ["inspect", SENTENCE, "--policy", "tokne"],
    "a missing file": ["check", "nowhere.txt"],
    "study --dry-run": ["study", "quick-start", "--dry-run", "--out", "OUT"],
    "study --dry-run, no rates known": ["study", "quick-start", "--dry-run", "--out", "OUT"],
    "check without timing": ["check", "quick-start", "--no-timing"],
    "report of no study": ["report", "OUT"],
}


def line_of(starts: list[tuple[float, float, int]]) -> dict[str, object]:
    """Return the median wall and processor time of several starts, and their exit code: a list, if
    they ended differently.
    """
    walls, works, codes = zip(*starts)
    ends = [*dict.fromkeys(codes)]
    return {
        "wall": round(median(walls), 2),
        "processor": round(median(works), 2),
        "code": ends[0] if len(ends) == 1 else ends,
    }


def start(source: Path, arguments: str | list[str], cache: str) -> tuple[float, float, int]:
    """Run a command or a Python program once; return wall time, processor time and exit code."""
    own = {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    own |= {"PYTHONDONTWRITEBYTECODE": "", "XDG_CACHE_HOME": cache}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c"]
        if isinstance(arguments, str):
            command.append(arguments)
        else:
            given = [folder + "/out" if word == "OUT" else word for word in arguments]
            command += ["from maskwise.cli import main; main()", *given]
        spent = worked()
        began = time.perf_counter()
        done = subprocess.run(command, env=os.environ | own, capture_output=True, cwd=folder)
        return time.perf_counter() - began, worked() - spent, done.returncode


def folders_of(sources: list[str]) -> dict[str, Path]:
    """Return the source folders by their names, from texts of the form NAME=SOURCE_FOLDER.

    Raises:
        MaskwiseError: a text has another form, or a folder has no package maskwise. Python would
            then start the installed one.
    """
    named = {}
    for each in sources:
        name, equals, folder = each.partition("=")
        source = Path(folder).resolve()
        if not equals or name in named or not (source / "maskwise" / "__init__.py").is_file():
            raise MaskwiseError(
                "a source is a new name and a folder with the package maskwise",
                got=each,
                allowed="NAME=SOURCE_FOLDER, such as before=/tmp/old/src",
            )
        named[name] = source
    return named


def slowest(source: Path, program: str) -> dict[str, int]:
    """Return the milliseconds that the imports of a program spend in the six slowest packages."""
    own = {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    spent = Counter[str]()
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and line.count("|") == 2:
            own_time, _, module = line.removeprefix("import time:").split("|")
            if own_time.strip().isdecimal():
                spent[module.strip().partition(".")[0]] += int(own_time)
    return {package: round(each / 1000) for package, each in spent.most_common(6)}


def main(
    sources: Annotated[list[str] | None, typer.Argument()] = None,
    only: Annotated[str, typer.Option(help="names of COMMANDS, with commas")] = "",
) -> dict[str, object]:
    named = folders_of(sources or [f"now={ROOT / 'src'}"])
    chosen = only.split(",") if only else [*COMMANDS]
    table = {}
    for name in chosen:
        require_known("command", name, [*COMMANDS])
        arguments = COMMANDS[name]
        table[name] = {}
        for label, source in named.items():
            with tempfile.TemporaryDirectory() as cache:
                call = partial(start, source, arguments)
                call(cache)
                known = not name.endswith("no rates known")
                starts = [call(cache if known else f"{cache}/{n}") for n in range(STARTS)]
            table[name][label] = line = line_of(starts)
            sys.stderr.write(f"{name}: {label} {line}\n")
    return {
        **surroundings(),
        "load": os.getloadavg()[0],
        "starts": STARTS,
        "seconds": table,
        "milliseconds_of_imports": {
            name: slowest([*named.values()][-1], program)
            for name in chosen
            if isinstance(program := COMMANDS[name], str)
        },
    }


if __name__ == "__main__":
    run(main, __doc__)
