"""The page of a learned policy: the same sentences before and after, what it masks, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from maskwise.folders import read_json, write_whole

NAMES = {
    "exact_match": "its best span is an answer", "f1": "F1 of its best span", "recall": "an answer is among its spans",
    "covered": "an answer lies wholly in its spans",
    "covered_in_as_many_words": "the same in as many words as the salient spans hold",
    "weight_on_labels": "share of its weight on labelled words",
    "labelled_words": "share of the words that are labelled", "spans": "spans a text", "words": "words in them, a text",
}  # fmt: skip
FULL_WEIGHT = 6.0
"""A word of so many times the mean weight has the full colour."""


def write_policy_page(folder: Path, *, title: str, measures: Mapping[str, Any]) -> Path:
    """Draw ``report.html`` of a folder of ``maskwise learn`` from its ``shown.json``; every text is escaped.

    Args:
        measures: what was measured, as ``done.json`` has it.
    """
    shown = read_json(folder / "shown.json") or {}
    held_out = measures.get("held_out") or {}
    salient = held_out.get("salient", {})
    rows = [(NAMES[key], held_out[key], salient.get(key)) for key in NAMES if held_out.get(key) is not None]
    examples = [
        [[(word, pair[side], _shade(pair[side])) for word, *pair in words] for side in (0, 1)]
        for words in shown.get("examples", [])
    ]
    environment = Environment(loader=PackageLoader("maskwise", "report"), autoescape=True)
    page = environment.get_template("policy.html.j2").render(
        title=title, measures=measures, rows=rows, examples=examples, words=shown.get("words", {}),
        tags=shown.get("tags", {}),
    )  # fmt: skip
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def _shade(weight: float) -> str:
    """From white to orange."""
    share = min(1.0, max(0.0, weight) / FULL_WEIGHT)
    red, green, blue = (round(255 - share * (255 - full)) for full in (0xE6, 0x9F, 0x00))
    return f"#{red:02x}{green:02x}{blue:02x}"
