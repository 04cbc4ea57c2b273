"""The page of a learned policy: the same sentences before, while and after it learned, and how good
it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskwise.constants import shade
from maskwise.folders import read_json, read_lines, write_page

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
"""What is drawn of metrics.jsonl: the kind of line, its key, and what people read."""
WIDTH, HEIGHT = 220, 60
BETWEEN = 3
"""So many states of a policy are shown between its beginning and its end."""
FULL = 6.0
"""A word of so many times the mean weight has the full colour."""


def write_policy_page(folder: Path, *, title: str, measures: Mapping[str, Any]) -> Path:
    """Draw ``report.html`` of a folder of ``maskwise learn`` from its ``shown.json`` and
    ``metrics.jsonl``.

    Every text is escaped.

    Args:
        measures: what was measured, as ``done.json`` has it.
    """
    shown, lines = read_json(folder / "shown.json") or {}, [*read_lines(folder / "metrics.jsonl")]
    held_out = measures.get("held_out") or {}
    salient = held_out.get("salient", {})
    rows = [
        (NAMES[key], held_out[key], salient.get(key))
        for key in NAMES
        if held_out.get(key) is not None
    ]
    write_page(
        page := folder / "report.html",
        "policy.html.j2",
        title=title,
        measures=measures,
        rows=rows,
        examples=_examples(shown.get("examples", []), lines),
        words=shown.get("words", {}),
        tags=shown.get("tags", {}),
        curves=[curve for kind, key, name in CURVES if (curve := _curve(lines, kind, key, name))],
    )
    return page


def _examples(
    texts: list[list[Any]], lines: list[dict[str, Any]]
) -> list[list[tuple[str, list[Any]]]]:
    """Each text before the learning, at some judgements, and after it: words with their weights and
    colours.
    """
    told = [line for line in lines if len(line.get("weights", ())) == len(texts)][:-1]
    between = [
        told[round(place)] for place in np.linspace(0, len(told) - 1, min(len(told), BETWEEN))
    ]
    examples = []
    for number, words in enumerate(texts):
        versions = [("before", [old for _, old, _ in words])]
        versions += [(f"after {line['step']} steps", line["weights"][number]) for line in between]
        versions += [("after", [new for *_, new in words])]
        names = [word for word, *_ in words]
        examples.append(
            [
                (when, [(w, x, shade(x / FULL)) for w, x in zip(names, own)])
                for when, own in versions
            ]
        )
    return examples


def _curve(lines: list[dict[str, Any]], kind: str, key: str, name: str) -> dict[str, Any] | None:
    """One quantity over the steps as the points of a small drawing, with its mean and spread; None
    with too few.
    """
    points = [(line["step"], line[key]) for line in lines if line["kind"] == kind and key in line]
    if len(points) < 2:
        return None
    steps, values = np.array(points, dtype=float).T
    low, high = float(values.min()), float(values.max())
    x = WIDTH * (steps - steps[0]) / (steps[-1] - steps[0])
    y = HEIGHT * (1 - (values - low) / ((high - low) or 1.0))
    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
    return {
        "name": name,
        "points": drawn,
        "low": low,
        "high": high,
        "first": values[0],
        "last": values[-1],
        "mean": values.mean(),
        "sd": values.std(ddof=1),
        "steps": (int(steps[0]), int(steps[-1])),
    }
