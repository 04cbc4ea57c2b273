"""Estimate contrasts of a recorded study that were not its primary ones.

    python benchmarks/other_contrasts.py FOLDER ARM,BASELINE [ARM,BASELINE …] [--task TASK …]

The rows have the difference of two arms in points or nats, its interval, and the p value of the
sign-flip test, by the rules of the package and over all tasks that are not secondary. The p
values are adjusted for the contrasts of this call. The contrasts were not planned, so they have no
verdict. With ``--task``, the difference is also given for single tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from command import run

from maskwise.base.errors import MaskwiseError, require_known
from maskwise.base.folders import read_json, read_lines
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


def pairs_of(texts: list[str], study: Any) -> list[tuple[str, str]]:
    """Return the pairs of arms from texts of the form ARM,BASELINE.

    Raises:
        MaskwiseError: a text is no pair, or an arm is not in the study.
    """
    known = [*study["arms"], *study.get("untrained", {})]
    pairs = []
    for text in texts:
        arm, comma, baseline = text.partition(",")
        if not comma or "," in baseline or arm == baseline:
            raise MaskwiseError("a contrast has two arms", got=text, allowed="ARM,BASELINE")
        for name in (arm, baseline):
            require_known("arm", name, known)
        pairs.append((arm, baseline))
    return pairs


def main(
    folder: Path,
    pairs: Annotated[list[str], typer.Argument()],
    task: Annotated[list[str] | None, typer.Option()] = None,
) -> list[Row]:
    """Estimate the difference of each pair of arms."""
    study: Any = read_json(folder / "study.json")
    if study is None:
        raise MaskwiseError("there is no readable study.json", got=folder)
    for name in task or ():
        require_known("task", name, [*study["tasks"]])
    return estimates(folder, pairs_of(pairs, study), tuple(task or ()))


if __name__ == "__main__":
    run(main, __doc__)
