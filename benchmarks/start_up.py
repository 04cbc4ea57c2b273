"""How long every command takes until it answers: wall and processor time, the middle of some
starts, as JSON.

    python benchmarks/start_up.py [NAME=SOURCE_FOLDER …] > start-up.json

Without arguments this checkout is timed; with them several, in turn, such as ``before=/tmp/old/src
after=src``.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
STARTS = int(os.environ.get("STARTS", "3"))
SENTENCE = "Marie Curie was born in Warsaw in 1867."
COMMANDS = {
    "(bare)": [],
    "--version": ["--version"],
    "--help": ["--help"],
    "study --help": ["study", "--help"],
    "list policies": ["list", "policies"],
    "list recipes": ["list", "recipes"],
    "list tasks": ["list", "tasks"],
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
    "check without timing": ["check", "quick-start", "--no-timing"],
    "report of no study": ["report", "OUT"],
}


def seconds(source: Path, arguments: list[str]) -> tuple[float, float, int]:
    """Wall and processor time of one start, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        given = [folder + "/out" if word == "OUT" else word for word in arguments]
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        code = "import sys; from maskwise.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *given], env=environment, capture_output=True, cwd=folder
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        wall,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        done.returncode,
    )


def main(*sources: str) -> None:
    named = dict(each.split("=", 1) for each in sources) or {"now": str(ROOT / "src")}
    table = {name: {} for name in COMMANDS}
    for name, arguments in COMMANDS.items():
        for label, source in named.items():
            starts = [seconds(Path(source).resolve(), arguments) for _ in range(STARTS)]
            wall, work = (round(median(start[at] for start in starts), 2) for at in (0, 1))
            table[name][label] = {"wall": wall, "processor": work, "code": starts[0][2]}
            sys.stderr.write(
                f"{name}: {label} {wall} s, processor {work} s, exit code {starts[0][2]}\n"
            )
    facts = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    sys.stdout.write(json.dumps({**facts, "starts": STARTS, "seconds": table}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
