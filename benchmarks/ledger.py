"""The ledger: one line for each primary contrast of every recorded study, judged by the rules of
today.

    python benchmarks/ledger.py   # adds missing lines, and prints how often each verdict occurs
    python benchmarks/ledger.py --rejudge  # judges all lines anew, after the rules have changed

A verdict counts for little by itself: of twenty studies without a difference, one is decided. So
nothing that was run is left out. `tests/test_ledger.py` fails where a record lacks its line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from maskwise.files import RULES, Study
from maskwise.study.verdict import summarise

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LEDGER = RESULTS / "ledger.jsonl"
KEY = ("record", "arm", "baseline", "outcome")

Line: TypeAlias = dict[str, object]


def recorded() -> list[Path]:
    """The folders of recorded studies."""
    return sorted(path.parent for path in RESULTS.glob("*/study.json"))


def recipe_hash(study: Study) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the recipe as it was filled in."""
    text = json.dumps(study["recipe"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit_of_plan(study: Study) -> str | None:
    """The last commit of the recipe's file before the study began; None where its recipe was never
    committed.
    """
    files = f"src/maskwise/recipes/{study['name']}.yaml", f"benchmarks/recipes/{study['name']}.yaml"
    command = ["git", "log", "-1", "--format=%h", f"--before={study['started']}", "--", *files]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return found or None


def lines_of(folder: Path) -> list[Line]:
    """The lines of one recorded study, without the commit of its plan."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    records = [
        json.loads(line)
        for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = []
    for row in summarise(records, study)["contrasts"]:
        if not row["primary"]:
            continue
        lines.append(
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
                "difference": _rounded(row["mean"]),
                "low": _rounded(row["low"]),
                "high": _rounded(row["high"]),
                "p": _rounded(row["p_adjusted"]),
                "flags": [flag["code"] for flag in row["flags"]],
                "rules": RULES,
            }
        )
    return lines


def _rounded(value: float | None) -> float | None:
    """Six significant digits, so that two processors write the same line."""
    return None if value is None else float(f"{value:.6g}")


def key_of(line: Mapping[str, object]) -> tuple[object, ...]:
    """What names a line."""
    return tuple(line[name] for name in KEY)


def read_ledger() -> dict[tuple[object, ...], Line]:
    """The lines by their names; nothing where there is no ledger."""
    if not LEDGER.exists():
        return {}
    lines = [json.loads(text) for text in LEDGER.read_text(encoding="utf-8").splitlines()]
    return {key_of(line): line for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rejudge", action="store_true", help="judge all lines anew")
    arguments = parser.parse_args()
    known = read_ledger()
    lines = []
    for folder in recorded():
        study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        commit = commit_of_plan(study)
        for line in lines_of(folder):
            old = known.get(key_of(line))
            if old is not None and not arguments.rejudge:
                lines.append(old)
            else:
                lines.append({"plan": commit} | line)
    LEDGER.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    counts = Counter(str(line["verdict"]) for line in lines)
    sys.stdout.write(f"{len(lines)} lines: {dict(counts)}\n")


if __name__ == "__main__":
    main()
