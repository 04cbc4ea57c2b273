"""Rewrite the recorded studies in benchmarks/results to today's format of study.json and
records.jsonl. Run once; numbers stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskwise.constants import HELPS
from maskwise.folders import read_lines, write_json, write_lines

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
# In the order of ``study.records.describe``.
KEYS: dict[str, Any] = {
    "name": "",
    "description": "",
    "maskwise": "",
    "started": "",
    "versions": {},
    "hardware": {},
    "recipe": {},
    "recipe_yaml": "",
    "baseline": "",
    "reference": None,
    "seeds": [],
    "arms": {},
    "seconds": None,
    "contrasts": [],
    "outcome": None,
    "match": None,
    "companions": [],
    "margin": None,
    "looks": None,
    "helps": HELPS,
    "share": None,
    "gate": None,
    "search": None,
    "tasks": {},
    "inputs": "",
    "pending": [],
}
OPTIONAL = ("learned", "looked", "earlier_hardware", "compared")


def main() -> None:
    for path in sorted(RESULTS.glob("*/study.json")):
        study = migrated(json.loads(path.read_bytes()))
        write_json(path, study)
        records = path.with_name("records.jsonl")
        lines = list(read_lines(records))
        new = [selection(line) if line["kind"] == "selection" else line for line in lines]
        if new != lines:
            write_lines(records, new)


def migrated(study: dict[str, Any]) -> dict[str, Any]:
    known = {*KEYS, *OPTIONAL, "stopping"}
    assert study.keys() <= known, study.keys() - known
    new = {key: study.get(key, usual) for key, usual in KEYS.items()}
    new |= {key: study[key] for key in OPTIONAL if key in study}
    for arm in new["arms"].values():
        # The selection records have it.
        arm.pop("setting", None)
    gate = new["gate"]
    if isinstance(gate, list):
        closes = [pair for pair in study["contrasts"] if pair != gate]
        new["gate"] = {"contrast": gate, "closes": closes}
        # With a search, a gate that is also a contrast would be tested twice.
        if new["search"]:
            new["contrasts"] = closes
    if new["search"]:
        new["search"] = {key: new["search"].get(key) for key in ("grid", "own", "by")}
    return new


def selection(line: dict[str, Any]) -> dict[str, Any]:
    """One search for all seeds gets the keys of a search for each seed, and no seed."""
    if "seed" in line:
        return line
    candidates = []
    for point in line["candidates"]:
        scores = point["scores"]
        if scores is not None:
            scores = {name: mean(values) for name, values in scores.items()}
        candidates.append({"setting": point["setting"], "score": point["mean"], "scores": scores})
    means = {point["score"] for point in candidates}
    return {
        "kind": "selection",
        "arm": line["arm"],
        "seed": None,
        "search_seed": None,
        "seeds": line["seeds"],
        "by": line["by"],
        "candidates": candidates,
        "chosen": line["chosen"],
        "tied": len(means) == 1 and means != {None},
    }


def mean(values: Any) -> float | None:
    if not isinstance(values, list):
        return values
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    main()
