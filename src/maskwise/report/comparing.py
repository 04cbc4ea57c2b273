"""Two studies side by side: ``maskwise report DIR DIR2``.

Runs of different studies are no pairs, so nothing is tested across them: means and spreads stand
beside one another, with what differs between the two set-ups, for a reader to judge by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.folders import write_whole
from maskwise.report.page import environment
from maskwise.report.reading import Folder, read_folder


class Cell(TypedDict):
    """What an arm of a study has in an outcome: its runs, their mean and standard deviation (None
    for one run).
    """

    runs: int
    mean: float
    sd: float | None


class Comparison(TypedDict):
    """Two studies: what each says, what differs in how they were made, and all outcomes by arm."""

    studies: list[dict[str, object]]
    differences: list[dict[str, object]]
    outcomes: list[dict[str, object]]


MOST_DIFFERENCES = 60


def compare_studies(first: Path, second: Path) -> Comparison:
    """What two studies have in common, and what not.

    Raises:
        MaskwiseError: a folder that holds no study.
    """
    folders = [read_folder(Path(path)) for path in (first, second)]
    for path, folder in zip((first, second), folders):
        if folder.kind != "study":
            raise MaskwiseError("two studies are compared, and this is one run", got=str(path))
    recipes = [dict(_leaves(folder.study["recipe"])) for folder in folders]
    changed = [
        key
        for key in dict.fromkeys([*recipes[0], *recipes[1]])
        if recipes[0].get(key) != recipes[1].get(key)
    ]
    outcomes = [_outcomes(folder) for folder in folders]
    names = dict.fromkeys([*outcomes[0], *outcomes[1]])
    rows: list[dict[str, object]] = []
    for outcome, arm in names:
        cells = [part.get((outcome, arm)) for part in outcomes]
        both = all(cell is not None for cell in cells)
        change = cells[1]["mean"] - cells[0]["mean"] if both and cells[0] and cells[1] else None
        rows.append({"outcome": outcome, "arm": arm, "studies": cells, "change": change})
    return {
        "studies": [_about(path, folder) for path, folder in zip((first, second), folders)],
        "differences": [
            {"setting": key, "values": [recipe.get(key) for recipe in recipes]}
            for key in changed[:MOST_DIFFERENCES]
        ],
        "outcomes": sorted(rows, key=lambda row: row["change"] is None),
    }


def write_comparison(first: Path, second: Path, html: Path | None = None) -> Path:
    """Write the page of ``compare_studies``; into the second folder if it is not said where.

    Raises:
        MaskwiseError: a folder that holds no study, or a page that cannot be written.
    """
    target = Path(html) if html is not None else Path(second) / "compared.html"
    write_whole(
        target,
        environment().get_template("compared.html.j2").render(**compare_studies(first, second)),
    )
    return target


def _about(path: Path, folder: Folder) -> dict[str, object]:
    summary = folder.summary
    missing = [
        name
        for name, there in (
            ("records.jsonl", folder.records),
            ("summary.json", summary["headline"]),
        )
        if not there
    ]
    return {
        "folder": str(path),
        "name": folder.name,
        "headline": summary["headline"] or "No verdict yet.",
        "verdict": summary["verdict"],
        "runs": len(folder.study["seeds"]),
        "arms": folder.arms,
        "seconds": folder.seconds,
        "maskwise": folder.study["maskwise"],
        "missing": missing,
    }


def _outcomes(folder: Folder) -> dict[tuple[str, str], Cell]:
    """Means over whole runs by (outcome, arm)."""
    cells: dict[tuple[str, str], Cell] = {}
    for kind in ("evaluation", "heldout", "score"):
        for (name, detail), by_arm in folder.numbers(kind).items():
            outcome = f"{name} ({detail or 'score'})"
            if kind == "heldout":
                outcome = f"held-out loss, {name} masks {100 * detail:g} %"
            for arm, by_seed in by_arm.items():
                cells[outcome, folder.reference if arm == REFERENCE else arm] = _cell(
                    [*by_seed.values()]
                )
    return cells


def _cell(runs: Sequence[float]) -> Cell:
    return {"runs": len(runs), "mean": fmean(runs), "sd": stdev(runs) if len(runs) > 1 else None}


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Settings by dotted name, without the arms: these are compared by what came of them."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name != "study.arms":
            yield from _leaves(value, f"{name}.")
        elif name not in ("study.arms", "name", "description"):
            yield name, value
