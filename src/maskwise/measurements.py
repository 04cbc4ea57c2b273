"""Measurements of runs, as one long table: a row for each number that was measured.

Scores on tasks, held-out losses, other evaluations and costs differ only in the columns that they
use. Verdicts and pages read these rows, and not the three kinds of lines in records.jsonl. The
names of outcomes in summary.json are made of the columns (``Measurement.outcome``).

>>> line = {"kind": "heldout", "arm": "a", "seed": 0, "masks": "token", "ratio": 0.15, "loss": 2.0}
>>> [row.outcome for row in measurements([line])]
['heldout:token@0.15']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.constants import LOWER_IS_BETTER, NATS

if TYPE_CHECKING:
    from pandas import DataFrame

QUANTITIES = ("steps", "tokens", "targets", "flops")
"""What the cost of a run is measured in."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the values of an outcome mean.

    Attributes:
        metric: the metric of a task or an evaluation.
        unit: "score", "nats", "SDs", "perplexity", or the name of a metric.
        higher_is_better: the direction.
        chance: the score of guessing.
        items: the number of test items.
    """

    metric: str | None = None
    unit: str = "score"
    higher_is_better: bool = True
    chance: float | None = None
    items: int | None = None

    @property
    def sign(self) -> int:
        """The factor that makes higher values better."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True, kw_only=True)
class Measurement(Scale):
    """A number that was measured for one run, and its scale.

    Attributes:
        arm, seed: the run.
        kind: "task", "heldout", "evaluation" or "cost".
        measure: what was measured: a task, a kind of masks, a set of items, or a quantity.
        value: the number. Files are edited by hand, so it need not be finite.
        split: "test"; "dev" for the score on the development set; "unigram" for the loss of a model
            that knows only word frequencies, on the same masks; "further" for a score in another
            metric than that of the task.
        ratio: the masking ratio of a held-out loss.
        item_error: the standard error of the value over test items.
        length: the length of the run, as a share of the full steps (``study.companions``).
        role: "gate" for the runs of a gate; otherwise "".
    """

    arm: str
    seed: int
    kind: str
    measure: str
    value: float
    split: str = "test"
    ratio: float | None = None
    item_error: float | None = None
    length: float = 1.0
    role: str = ""

    @property
    def outcome(self) -> str:
        """The name of the outcome in summary.json."""
        if self.kind == "task":
            return self.measure if self.split == "test" else f"{self.split}:{self.measure}"
        if self.kind == "heldout":
            of = "heldout" if self.split == "test" else self.split
            return f"{of}:{self.measure}@{self.ratio:g}"
        if self.kind == "evaluation":
            return f"evaluation:{self.measure}:{self.metric}"
        return f"cost:{self.measure}"


COLUMNS = (
    *("arm", "seed", "kind", "measure", "value", "metric", "unit", "higher_is_better", "split"),
    *("ratio", "chance", "items", "item_error", "length", "role", "outcome"),
)
"""The columns of the table: the attributes of a measurement, and the name of its outcome."""

RecordLine = Mapping[str, Any]
"""A line of records.jsonl."""


def measurements(
    records: Iterable[RecordLine], tasks: Mapping[str, RecordLine] | None = None
) -> list[Measurement]:
    """Return the measurements in the lines of records.jsonl. Other lines are left out.

    Args:
        records: the lines.
        tasks: the facts of each task in study.json, such as its chance level.
    """
    found: list[Measurement] = []
    for line in records:
        if line["kind"] == "score":
            found += _of_task(line, (tasks or {}).get(line["task"], {}))
        elif line["kind"] == "heldout":
            found += _of_heldout(line)
        elif line["kind"] == "evaluation":
            found.append(_of_evaluation(line))
        elif line["kind"] == "cost":
            found += _of_cost(line)
    return found


def table_of(found: Iterable[Measurement]) -> DataFrame:
    """Return measurements as a data frame with a column for each attribute, and ``outcome``."""
    from pandas import DataFrame

    rows = [{**vars(row), "outcome": row.outcome} for row in found]
    return DataFrame(rows, columns=COLUMNS)


def pending_seeds(study: RecordLine, records: Iterable[RecordLine]) -> list[int]:
    """List the seeds of compared runs that have no record yet."""
    done = set()
    for record in records:
        # Failure records count as records, so a seed with a failed run is not pending. Records with
        # these keys belong to runs of the gate and to companions (shorter runs).
        if not {"role", "fraction"} & record.keys():
            done.add(record.get("seed"))
    return [seed for seed in study["seeds"] if seed not in done]


def _run(line: RecordLine) -> dict[str, Any]:
    return {
        "arm": line["arm"],
        "seed": line["seed"],
        "length": line.get("fraction", 1.0),
        "role": line.get("role", ""),
    }


def unit_of(metric: str | None) -> str:
    """Return the unit of scores in a metric."""
    return NATS if metric == NATS else "score"


def _of_task(line: RecordLine, facts: RecordLine) -> Iterator[Measurement]:
    metric = facts.get("metric", line.get("metric"))
    # For some tasks the chance level depends on the tokenizer, and is only in the records.
    chance = facts.get("majority")
    if chance is None:
        chance = line.get("majority")
    score = Measurement(
        **_run(line),
        kind="task",
        measure=line["task"],
        value=line["score"],
        metric=metric,
        unit=unit_of(metric),
        higher_is_better=metric not in LOWER_IS_BETTER,
        chance=chance,
        items=facts.get("test_items"),
        item_error=line.get("item_error"),
    )
    yield score
    dev = [each for each in line.get("dev") or () if each is not None]
    if dev:
        yield replace(score, split="dev", value=float(np.mean(dev)), item_error=None)
    for name, value in (line.get("others") or {}).items():
        yield replace(score, split="further", metric=name, value=value, item_error=None)


def _of_heldout(line: RecordLine) -> Iterator[Measurement]:
    loss = Measurement(
        **_run(line),
        kind="heldout",
        measure=line["masks"],
        value=line["loss"],
        metric=NATS,
        unit=NATS,
        higher_is_better=False,
        ratio=line["ratio"],
    )
    yield loss
    if line.get("unigram") is not None:
        yield replace(loss, split="unigram", value=line["unigram"])


def _of_evaluation(line: RecordLine) -> Measurement:
    metric = line["metric"]
    higher = line.get("higher_is_better", True)
    chance = line.get("chance")
    unit = metric
    if chance is not None and higher:
        unit = "score"
    elif line["name"] == "pseudo-perplexity":
        unit = "perplexity"
    return Measurement(
        **_run(line),
        kind="evaluation",
        measure=line["name"],
        value=line["value"],
        metric=metric,
        unit=unit,
        higher_is_better=higher,
        chance=chance,
        items=line.get("items"),
    )


def _of_cost(line: RecordLine) -> Iterator[Measurement]:
    for quantity in QUANTITIES:
        # A quantity that could not be measured is 0 or null.
        if line.get(quantity):
            yield Measurement(
                **_run(line),
                kind="cost",
                measure=quantity,
                value=line[quantity],
                metric=quantity,
                unit=quantity,
                higher_is_better=False,
            )
