"""The page of a learned policy: sentences before, during and after learning, and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from maskwise.constants import shade
from maskwise.folders import read_json, read_lines, write_page
from maskwise.report.drawing import View
from maskwise.report.reading import Line

NAMES = {
    "exact_match": "its best span is an answer",
    "f1": "F1 of its best span",
    "recall": "an answer is among its spans",
    "covered": "an answer lies wholly in its spans",
    "covered_in_as_many_words": "the same in as many words as the salient spans hold",
    "weight_on_labels": "share of its weight on labelled words",
    "labelled_words": "share of the words that are labelled",
    "spans": "spans a text",
    "words": "words in them, a text",
}
CURVES = (
    ("meta", "outer", "the task's loss after the inner steps, nats"),
    ("dev", "gain", "better for dev than random masks, nats"),
    ("meta", "answers", "share of the weight on right answers"),
    ("meta", "entropy", "entropy of the weights, nats"),
    ("meta", "grad_norm", "norm of the policy's gradient"),
    (
        "dev",
        "agreement",
        "agreement of the gradients (1: all point one way; 1 / their number: noise)",
    ),
    ("train", "loss", "loss on the labels of train, nats"),
    ("eval", "loss", "loss on the labels of dev, nats"),
    ("train", "grad_norm", "norm of the policy's gradient"),
)
"""The curves of metrics.jsonl: kind of line, key, and title."""
BETWEEN = 3
"""The number of states between the beginning and the end that are shown."""
FULL = 6.0
"""The multiple of the mean weight at which a word has the full colour."""


def write_policy_page(folder: Path, *, title: str, measures: Mapping[str, object]) -> Path:
    """Draw ``report.html`` of a folder of ``maskwise learn``; every text is escaped.

    Args:
        measures: the content of ``done.json``.
    """
    shown = read_json(folder / "shown.json") or {}
    lines = [*read_lines(folder / "metrics.jsonl")]
    curves = [_curve(lines, kind, key, name) for kind, key, name in CURVES]
    write_page(
        folder / "report.html",
        "policy.html.j2",
        title=title,
        measures=measures,
        names=NAMES,
        examples=_examples(shown.get("examples", []), lines),
        words=shown.get("words", {}),
        tags=shown.get("tags", {}),
        curves=[curve for curve in curves if curve],
    )
    return folder / "report.html"


def _examples(texts: list[list[Line]], lines: list[Line]) -> list[list[View]]:
    """Return the words of each text with their weights before, during and after learning."""
    logged = [line for line in lines if len(line.get("weights", ())) == len(texts)]
    # The last evaluation is the state "after".
    logged = logged[:-1]
    places = np.linspace(0, len(logged) - 1, min(len(logged), BETWEEN))
    between = [logged[place] for place in places.round().astype(int)]
    examples: list[list[View]] = []
    for number, text in enumerate(texts):
        words, before, after = zip(*text)
        states = [("before", before)]
        for line in between:
            states.append((f"after {line['step']} steps", line["weights"][number]))
        states.append(("after", after))
        examples.append(
            [{"when": when, "words": _coloured(words, state)} for when, state in states]
        )
    return examples


def _coloured(words: Iterable[str], weights: Iterable[float]) -> list[tuple[str, float, str]]:
    return [(word, weight, shade(weight / FULL)) for word, weight in zip(words, weights)]


def _curve(lines: list[Line], kind: str, key: str, name: str) -> View | None:
    """Return a quantity over the steps as an SVG polyline with its box; None below two points."""
    points = [(line["step"], line[key]) for line in lines if line["kind"] == kind and key in line]
    if len(points) < 2:
        return None
    steps, values = np.array(points, dtype=float).T
    low = values.min()
    high = values.max()
    # A box without height would not be drawn.
    height = (high - low) or 1.0
    return {
        "name": name,
        # In SVG y grows downwards, so values change their sign.
        "points": " ".join(f"{step:g},{-value:.6g}" for step, value in points),
        "box": f"{steps[0]:g} {-high:.6g} {steps[-1] - steps[0]:g} {height:.6g}",
        "steps": (int(steps[0]), int(steps[-1])),
        "first": values[0],
        "last": values[-1],
        "low": low,
        "high": high,
        "mean": values.mean(),
        "sd": values.std(ddof=1),
    }
