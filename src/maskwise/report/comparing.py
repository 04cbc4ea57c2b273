"""Two studies side by side: ``maskwise report DIR DIR2``.

Runs of different studies are no pairs, so nothing is tested across them: means and spreads stand
next to each other, with what differs between the two set-ups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.folders import write_whole
from maskwise.report.page import environment
from maskwise.report.reading import Folder, read_folder

MOST_DIFFERENCES = 60


class Cell(TypedDict):
    """The runs of an arm in an outcome, their mean and standard deviation (None for one run)."""

    runs: int
    mean: float
    sd: float | None


class Comparison(TypedDict):
    """Two studies: what each says, what differs in how they were made, and all outcomes by arm."""

    studies: list[dict[str, object]]
    differences: list[dict[str, object]]
    outcomes: list[dict[str, object]]


def compare_studies(first: Path, second: Path) -> Comparison:
    """What two studies have in common, and what not.

    Raises:
        MaskwiseError: a folder that holds no study.
    """
    folders = {path: read_folder(Path(path)) for path in (first, second)}
    for path, folder in folders.items():
        if folder.kind != "study":
            raise MaskwiseError("two studies are compared, and this is one run", got=str(path))
    one = folders[first]
    other = folders[second]
    settings = dict(_leaves(one.study["recipe"]))
    others = dict(_leaves(other.study["recipe"]))
    changed = [key for key in settings | others if settings.get(key) != others.get(key)]
    cells = _cells(one)
    other_cells = _cells(other)
    outcomes: list[dict[str, object]] = []
    for outcome, arm in cells | other_cells:
        cell = cells.get((outcome, arm))
        other_cell = other_cells.get((outcome, arm))
        change = other_cell["mean"] - cell["mean"] if cell and other_cell else None
        outcomes.append(
            {"outcome": outcome, "arm": arm, "studies": [cell, other_cell], "change": change}
        )
    return {
        "studies": [_about(path, folders[path]) for path in (first, second)],
        "differences": [
            {"setting": key, "values": [settings.get(key), others.get(key)]}
            for key in changed[:MOST_DIFFERENCES]
        ],
        "outcomes": sorted(outcomes, key=lambda row: row["change"] is None),
    }


def write_comparison(first: Path, second: Path, html: Path | None = None) -> Path:
    """Write the page of ``compare_studies``, by default into the second folder.

    Raises:
        MaskwiseError: a folder that holds no study, or a page that cannot be written.
    """
    target = Path(html) if html is not None else Path(second) / "compared.html"
    template = environment().get_template("compared.html.j2")
    write_whole(target, template.render(**compare_studies(first, second)))
    return target


def _about(path: Path, folder: Folder) -> dict[str, object]:
    summary = folder.summary
    files = {"records.jsonl": folder.records, "summary.json": summary["headline"]}
    return {
        "folder": str(path),
        "name": folder.name,
        "headline": summary["headline"] or "No verdict yet.",
        "verdict": summary["verdict"],
        "runs": len(folder.study["seeds"]),
        "arms": folder.arms,
        "seconds": folder.seconds,
        "maskwise": folder.study["maskwise"],
        "missing": [name for name, content in files.items() if not content],
    }


def _cells(folder: Folder) -> dict[tuple[str, str], Cell]:
    """Means over whole runs by (outcome, arm)."""
    cells: dict[tuple[str, str], Cell] = {}
    for kind in ("evaluation", "heldout", "score"):
        for (name, detail), by_arm in folder.numbers(kind).items():
            outcome = f"{name} ({detail or 'score'})"
            if kind == "heldout":
                outcome = f"held-out loss, {name} masks {100 * detail:g} %"
            for arm, by_seed in by_arm.items():
                runs = list(by_seed.values())
                label = folder.reference if arm == REFERENCE else arm
                sd = stdev(runs) if len(runs) > 1 else None
                cells[outcome, label] = {"runs": len(runs), "mean": fmean(runs), "sd": sd}
    return cells


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Settings by dotted name, without the arms: these are compared by their outcomes."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in ("study.arms", "name", "description"):
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
