"""Run the fast tests with the lowest versions of libraries that pyproject.toml allows.

    make test-floor

The versions are listed in tests/floor.txt. Tests with the marker ``pinned`` are left out: they
compare random draws and names with those of the versions in constraints.txt, or test features that
maskwise refuses with older versions. The result is written to benchmarks/results/floor.json: for
each run its versions and commit, the numbers of tests, and those that failed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
FLOOR = ROOT / "tests" / "floor.txt"
RESULT = ROOT / "benchmarks" / "results" / "floor.json"


def main(*arguments: str) -> int:
    """Run the tests, record the result, and return the exit code of pytest.

    Args:
        arguments: further arguments of pytest, such as --lf. The result is then added to that of
            the last run of all tests.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # The code may change while the tests run.
    commit = git("rev-parse", "--short=10", "HEAD")
    changed_files = git("status", "--porcelain", "--untracked-files=no").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n2", "--dist=loadfile"]
        command += [
            "-m",
            "not slow and not script and not pinned",
            f"--junitxml={report}",
            *arguments,
        ]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if not report.is_file():
            return done.returncode
        suite = ElementTree.parse(report).getroot()[0]
    failed = []
    skipped = 0
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        skipped += case.find("skipped") is not None
    tests = int(suite.get("tests", 0))
    found = {
        "date": date,
        "arguments": arguments,
        "commit": commit,
        "changed_files": changed_files,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names()},
        "seconds": round(float(suite.get("time", 0))),
        "passed": tests - len(failed) - skipped,
        "skipped": skipped,
        "failed": failed,
    }
    runs = json.loads(RESULT.read_text(encoding="utf-8")) if arguments else []
    RESULT.write_text(json.dumps([*runs, found], indent=1) + "\n", encoding="utf-8")
    return done.returncode


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


def names() -> list[str]:
    """Return the libraries in tests/floor.txt."""
    lines = FLOOR.read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if not line.startswith("#")]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
