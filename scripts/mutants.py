"""Run mutation tests.

    python scripts/mutants.py [PART OF A FILE'S NAME …]

``tests/mutants.json`` lists the mutants, which are errors added to the source on purpose. In a copy
of the package, the text ``new`` replaces the text ``old``, which must occur once in ``file`` (in
``src/maskwise``). Then ``test`` must fail. One line is printed for each mutant: ``killed`` if the
test fails, ``SURVIVED`` if it passes, or ``stale`` if ``old`` is not in the file. Update a stale
mutant so that it changes the same behaviour. All tests are first run without a mutant, because one
that fails anyway would kill every mutant. The exit code is 1 if a mutant survived or is stale, or
if a test fails without one. A mutant takes only two or three seconds on one core, because it runs
in a fork of a process that has already imported the libraries. Windows is not supported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ("-q", "-x", "-p", "no:cacheprovider")
LIBRARIES = ("hypothesis", "pyarrow.parquet", "pytest", "scipy.stats", "torch", "transformers")


def main(wanted: list[str]) -> int:
    mutants = json.loads((ROOT / "tests" / "mutants.json").read_text(encoding="utf-8"))
    chosen = [
        mutant for mutant in mutants if not wanted or any(name in mutant["file"] for name in wanted)
    ]
    if not chosen:
        print(f"no mutant is in a file named {' or '.join(wanted)}")
        return 1
    for name in LIBRARIES:
        import_module(name)
    bad = 0
    with TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        tests = sorted({mutant["test"] for mutant in chosen})
        if outcome_of(tests, source) not in (0, 4, 5):
            print("a test fails without a mutant; run: pytest " + " ".join(tests))
            return 1
        for mutant in chosen:
            result = tried(mutant, source)
            bad += result != "killed"
            change = " ".join(mutant["new"].split())
            print(f"{result:8}  {mutant['file']}: {change}  ({mutant['test']})", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} killed")
    return 1 if bad else 0


def tried(mutant: dict[str, str], source: Path) -> str:
    """Run one mutant; return killed, SURVIVED or stale."""
    file = source / "maskwise" / mutant["file"]
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.count(mutant["old"]) != 1:
        return "stale"
    file.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    code = outcome_of([mutant["test"]], source)
    file.write_text(text, encoding="utf-8")
    if code in (4, 5):  # pytest found no such test.
        return "stale"
    return "SURVIVED" if code == 0 else "killed"


def outcome_of(tests: list[str], source: Path) -> int:
    """Return the exit code of pytest for tests on the package ``source``, in a new process."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    sys.path.insert(0, str(source))
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code = 3
    try:
        code = int(import_module("pytest").main([*PYTEST, *tests]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
