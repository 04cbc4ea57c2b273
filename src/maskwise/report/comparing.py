"""Two studies side by side: ``maskwise report DIR DIR2``.

Runs of different studies are not paired, so nothing is tested across them: the page lists means and
spreads, and the settings that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from maskwise.errors import MaskwiseError
from maskwise.folders import write_whole
from maskwise.report.drawing import View
from maskwise.report.page import environment
from maskwise.report.reading import Folder, read_folder

MOST_DIFFERENCES = 60


class Cell(TypedDict):
    """The runs of an arm in an outcome, their mean and standard deviation (None for one run)."""

    runs: int
    mean: float
    sd: float | None


class Comparison(TypedDict):
    """Two studies: their headlines, the settings that differ, and all outcomes by arm."""

    studies: list[View]
    differences: list[View]
    outcomes: list[View]


def compare_studies(first: Path, second: Path) -> Comparison:
    """Compare the settings and outcomes of two studies.

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
    other_settings = dict(_leaves(other.study["recipe"]))
    differences: list[View] = []
    for key in settings | other_settings:
        values = [settings.get(key), other_settings.get(key)]
        if values[0] != values[1]:
            differences.append({"setting": key, "values": values})
    cells = _cells(one)
    other_cells = _cells(other)
    outcomes: list[View] = []
    for pair in cells | other_cells:
        outcome, arm = pair
        cell = cells.get(pair)
        other_cell = other_cells.get(pair)
        row: View = {"outcome": outcome, "arm": arm, "studies": [cell, other_cell], "change": None}
        if cell and other_cell:
            row["change"] = other_cell["mean"] - cell["mean"]
        outcomes.append(row)
    # Outcomes of one study alone come last.
    outcomes.sort(key=lambda row: row["change"] is None)
    return {
        "studies": [_about(path, folders[path]) for path in (first, second)],
        "differences": differences[:MOST_DIFFERENCES],
        "outcomes": outcomes,
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


def _about(path: Path, folder: Folder) -> View:
    summary = folder.summary
    files = {"records.jsonl": folder.records, "summary.json": summary["headline"]}
    return {
        "folder": str(path),
        "name": folder.name,
        "headline": summary["headline"] or "No verdict yet.",
        "verdict": summary["verdict"],
        "runs": len(folder.study["seeds"]),
        "arms": folder.arms,
        "seconds": folder.study["seconds"],
        "maskwise": folder.study["maskwise"],
        "missing": [name for name, content in files.items() if not content],
    }


def _cells(folder: Folder) -> dict[tuple[str, str], Cell]:
    """Return means over full runs by (outcome, arm)."""
    cells: dict[tuple[str, str], Cell] = {}
    for kind in ("evaluation", "heldout", "score"):
        for (name, detail), by_arm in folder.numbers(kind).items():
            outcome = f"{name} ({detail or 'score'})"
            if kind == "heldout":
                outcome = f"held-out loss, {name} masks {100 * detail:g} %"
            for arm, by_seed in by_arm.items():
                runs = list(by_seed.values())
                sd = stdev(runs) if len(runs) > 1 else None
                cell: Cell = {"runs": len(runs), "mean": fmean(runs), "sd": sd}
                cells[outcome, folder.label(arm)] = cell
    return cells


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Return settings by dotted name."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        # Arms are compared by their outcomes; names and descriptions always differ.
        if name in ("study.arms", "name", "description"):
            continue
        # An empty mapping is a setting, too.
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
