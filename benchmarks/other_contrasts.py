"""Estimate contrasts of a recorded study that were not its primary ones.

    python benchmarks/other_contrasts.py FOLDER ARM,BASELINE [ARM,BASELINE …] [--task TASK …]

The rows have the difference of two arms in points or nats, its interval, and the p value of the
sign-flip test, by the rules of the package and over the tasks that count. The p values are adjusted
for the contrasts of this call. The contrasts were not planned, so they have no verdict. With
``--task``, the difference is also given for single tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from command import run

from maskwise.folders import read_json, read_lines
from maskwise.verdict import summarise

Row = dict[str, object]


def estimates(folder: Path, pairs: list[tuple[str, str]], tasks: tuple[str, ...] = ()) -> list[Row]:
    """Return a row for each pair of arms, and for each of them and each of ``tasks``."""
    study: Any = read_json(folder / "study.json")
    records = list(read_lines(folder / "records.jsonl"))
    summary = summarise(records, {**study, "contrasts": [[*pair] for pair in pairs], "gate": None})
    rows: list[Row] = []
    for row in summary["contrasts"]:
        if not row["primary"] and row["outcome"] not in tasks:
            continue
        shown: Any = row.get("natural") or row
        rows.append(
            {
                "arm": row["arm"],
                "baseline": row["baseline"],
                "outcome": row["outcome"],
                "n": row["n"],
                "mean": shown["mean"],
                "low": shown["low"],
                "high": shown["high"],
                "p": row["p_adjusted"],
                "flags": [flag["code"] for flag in row["flags"]],
            }
        )
    return rows


def main(
    folder: Path,
    pairs: Annotated[list[str], typer.Argument()],
    task: Annotated[list[str] | None, typer.Option()] = None,
) -> list[Row]:
    """Estimate the difference of each pair of arms."""
    split = [pair.split(",") for pair in pairs]
    return estimates(folder, [(arm, baseline) for arm, baseline in split], tuple(task or ()))


if __name__ == "__main__":
    run(main, __doc__)
