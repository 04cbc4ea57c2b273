"""The ledger: a line for each primary contrast (comparison of two arms) of every recorded study.

    python benchmarks/ledger.py   # adds missing lines, and prints how often each verdict occurs
    python benchmarks/ledger.py --rejudge  # judges all lines again, after a change of the rules

A single verdict is weak evidence: of twenty studies without a true difference, one is expected to
be *decided*. The ledger therefore lists every recorded study, judged by the current rules. If a
line is missing, `tests/test_ledger.py` fails. A line whose contrast maskwise no longer computes
stays, with the version of the rules that judged it: these are two lines of `transfer-2026-11-22`,
whose numbers `own_and_other_tasks.py` computes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from command import run

from maskwise.base.folders import read_json, read_lines, write_lines
from maskwise.results.files import RULES, Study
from maskwise.verdict import summarise

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LEDGER = RESULTS / "ledger.jsonl"
RECIPES = ("src/maskwise/recipes", "benchmarks/recipes")
KEY = ("record", "arm", "baseline", "outcome", "gate")

Line = dict[str, object]


def recorded() -> list[Path]:
    """Return the folders of recorded studies."""
    return sorted(path.parent for path in RESULTS.glob("*/study.json"))


def recipe_hash(study: Study) -> str:
    """Return the first 12 hex digits of the SHA-256 of the complete recipe."""
    text = json.dumps(study["recipe"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit_of_plan(study: Study) -> str | None:
    """Return the last commit of the recipe's file before the study began; None if there is none."""
    # `maskwise adapt` writes a recipe of its own, with the name of the shipped one.
    if study["name"] == "adapt":
        return None
    files = [f"{folder}/{study['name']}.yaml" for folder in RECIPES]
    command = ["git", "log", "-1", "--format=%h", f"--before={study['started']}", "--", *files]
    return subprocess.check_output(command, cwd=ROOT, text=True).strip() or None


def lines_of(folder: Path) -> list[Line]:
    """Return the ledger lines of one recorded study, without the commit of the recipe."""
    study = read_json(folder / "study.json")
    summary = summarise(read_lines(folder / "records.jsonl"), study)
    return [
        {
            "record": folder.name,
            "recipe": recipe_hash(study),
            "arm": row["arm"],
            "baseline": row["baseline"],
            "outcome": row["outcome"],
            "gate": bool(row.get("gate")),
            "n": row["n"],
            "verdict": row["verdict"],
            "scope": row["scope"],
            "unit": row["unit"],
            "higher_is_better": row["higher_is_better"],
            "difference": _rounded(row["mean"]),
            "low": _rounded(row["low"]),
            "high": _rounded(row["high"]),
            "p": _rounded(row["p_adjusted"]),
            "flags": [flag["code"] for flag in row["flags"]],
            "rules": RULES,
        }
        for row in summary["contrasts"]
        if row["primary"]
    ]


def _rounded(value: float | None) -> float | None:
    """Round to six significant digits. Different processors then write the same line."""
    return None if value is None else float(f"{value:.6g}")


def key_of(line: Mapping[str, object]) -> tuple[object, ...]:
    """Return the key of a ledger line."""
    return tuple(line[name] for name in KEY)


def read_ledger() -> dict[tuple[object, ...], Line]:
    """Return the lines of the ledger, keyed by ``key``."""
    return {key_of(line): line for line in read_lines(LEDGER)}


def main(rejudge: bool = False) -> None:
    """Add missing lines to the ledger, or judge all lines again."""
    known = read_ledger()
    lines = []
    for folder in recorded():
        commit = commit_of_plan(read_json(folder / "study.json"))
        for line in lines_of(folder):
            earlier = known.get(key_of(line))
            # The plan of a recorded study does not change with the rules.
            new = {"plan": earlier["plan"] if earlier else commit} | line
            lines.append(new if rejudge or not earlier else earlier)
    written = {key_of(line) for line in lines}
    lines += [line for key, line in known.items() if key not in written]
    write_lines(LEDGER, sorted(lines, key=lambda line: str(line["record"])))
    counts = Counter(str(line["verdict"]) for line in lines)
    sys.stdout.write(f"{len(lines)} lines: {dict(counts)}\n")


if __name__ == "__main__":
    run(main, __doc__)
