"""Rewrite records.jsonl of studies in the format with one line a measurement.

    PYTHONPATH=src .venv/bin/python scripts/migrate_records.py benchmarks/results/*/records.jsonl

Lines that have the new format already stay, so a file may be rewritten again after an older version
of maskwise has added lines. study.json beside the file gives chance levels and numbers of items.
"""

import json
import sys
from pathlib import Path

from maskwise.folders import read_lines, write_lines
from maskwise.measurements import of_evaluation, of_heldout, of_score


def new_lines(line, tasks):
    line = dict(line)
    if "fraction" in line:
        line["length"] = line.pop("fraction")
    if line["kind"] not in ("score", "heldout", "evaluation") or "measure" in line:
        return [line]
    run = {key: line.pop(key) for key in ("arm", "seed", "length", "role") if key in line}
    kind = line.pop("kind")
    if kind == "heldout":
        return [row.line() for row in of_heldout(run, line)]
    if kind == "evaluation":
        return [of_evaluation(run, line).line()]
    facts = tasks.get(line["task"], {})
    score = {"others": {}, "dev": [], "fine_tuning": [], **line}
    score["others"] = score["others"] or {}
    score["metric"] = facts.get("metric", line.get("metric"))
    if facts.get("majority") is not None:
        score["majority"] = facts["majority"]
    if "test_items" in facts:
        score["test_items"] = facts["test_items"]
    return [row.line() for row in of_score(run, score)]


for name in sys.argv[1:]:
    path = Path(name)
    tasks = json.loads((path.parent / "study.json").read_text())["tasks"]
    old = list(read_lines(path))
    new = [made for line in old for made in new_lines(line, tasks)]
    write_lines(path, new)
    print(path.parent.name, len(old), len(new))
