"""Measurements of runs, as one long table: a row for each number that was measured.

Scores on tasks, held-out losses, other evaluations and costs differ only in the columns that they
use. A line of records.jsonl is such a row (``Measurement.line``), and so is a row of the data frame
(``table_of``); only the costs of a run share a line. The names of outcomes in summary.json are made
of the columns (``Measurement.outcome``).

>>> line = {"kind": "heldout", "arm": "a", "seed": 0, "measure": "token", "ratio": 0.15, "value": 2}
>>> [row.outcome for row in measurements([line])]
['heldout:token@0.15']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maskwise.base.constants import LOWER_IS_BETTER, NATS
from maskwise.base.errors import MaskwiseError

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

    @property
    def margin_unit(self) -> str:
        """The unit of a margin, nats or plain scores, if there can be one."""
        return NATS if NATS in (self.unit, self.metric) else "score"


@dataclass(frozen=True, kw_only=True)
class Measurement(Scale):
    """A number that was measured, and its scale.

    Attributes:
        arm, seed: the run; "" and −1 for a model that is no run of a study.
        kind: "task", "heldout", "evaluation" or "cost".
        measure: what was measured: a task, a kind of masks, a set of items, or a quantity.
        value: the number. Files are edited by hand, so it need not be finite.
        split: "test"; "dev" for the score on the development set; "unigram" for the loss of a model
            that knows only word frequencies, on the same masks; "further" for a score in another
            metric than that of the task.
        ratio: the masking ratio of a held-out loss.
        item_error: the standard error of the value over test items.
        role: "gate" for the runs of a gate; otherwise "".
        facts: what else is known of the number, such as the score of every fine-tuning seed. Facts
            are in the line of records.jsonl, and are no columns of the table.
    """

    arm: str = ""
    seed: int = -1
    kind: str = "evaluation"
    measure: str
    value: float
    split: str = "test"
    ratio: float | None = None
    item_error: float | None = None
    role: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, line: RecordLine) -> Measurement:
        """Return the measurement in a line of records.jsonl."""
        columns = {name: value for name, value in line.items() if name in _NAMES}
        facts = {name: value for name, value in line.items() if name not in _NAMES}
        return cls(**columns, facts=facts)

    def line(self) -> dict[str, Any]:
        """Return the line of records.jsonl. Columns that say nothing are left out."""
        columns = {name: getattr(self, name) for name in _FIELDS}
        said = {name: value for name, value in columns.items() if value != _UNSAID.get(name)}
        return {**said, **self.facts}

    @property
    def outcome(self) -> str:
        """The name of the outcome in summary.json."""
        if self.kind == "task" and self.split == "further":
            return f"further:{self.measure}:{self.metric}"
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
    *("ratio", "chance", "items", "item_error", "role", "outcome"),
)
"""The columns of the table: the attributes of a measurement, and the name of its outcome."""

RecordLine = Mapping[str, Any]
"""A line of records.jsonl."""


_FIELDS = [
    *("kind", "arm", "seed", "measure", "value", "metric", "unit", "higher_is_better", "split"),
    *("ratio", "chance", "items", "item_error", "role"),
]
_NAMES = frozenset(_FIELDS)
_UNSAID = {"role": "", "arm": "", "seed": -1}
"""Values that are left out of lines; None is left out of any other column."""
KINDS = ("task", "heldout", "evaluation")
"""Kinds of lines in records.jsonl that are measurements. A line of kind "cost" has a quantity in
each key; other lines are facts about runs."""
SPLITS = ("test", "dev", "unigram", "further")
"""The values of ``split``, in the order of records.jsonl."""


def measurements(
    records: Iterable[RecordLine], tasks: Mapping[str, RecordLine] | None = None
) -> list[Measurement]:
    """Return the measurements in the lines of records.jsonl. Other lines are left out.

    Args:
        records: the lines.
        tasks: the facts of each task in study.json: its metric, chance level and test items, which
            lines that were written by hand may lack.

    Raises:
        MaskwiseError: the lines have the format of an earlier version.
    """
    found: list[Measurement] = []
    for line in records:
        refuse_earlier(line)
        kind = line["kind"]
        if kind == "cost":
            found += _of_cost(line)
        elif kind == "task" and line.get("split") != "further":
            described = _described(line, (tasks or {}).get(line["measure"], {}))
            found.append(Measurement.of(described))
        elif kind in KINDS:
            found.append(Measurement.of(line))
    return found


def refuse_earlier(line: RecordLine) -> None:
    """Raise `MaskwiseError` for a line of an earlier version, which had no key ``measure``."""
    kind = line.get("kind")
    if kind == "score" or (kind in KINDS and "measure" not in line):
        raise MaskwiseError(
            "records.jsonl has the format of an earlier version of maskwise",
            got=f"a line of kind {kind!r} without a measure",
            do="repeat the maskwise study command, which writes the file anew",
        )


def _described(line: RecordLine, facts: RecordLine) -> RecordLine:
    """Fill in what study.json says of a task."""
    metric = facts.get("metric") or line.get("metric")
    # For some tasks the chance level depends on the tokenizer, and is only in the line.
    chance = facts.get("majority")
    items = line.get("items")
    if line.get("split", "test") == "test":
        items = facts.get("test_items", items)
    return {
        **line,
        "metric": metric,
        "unit": unit_of(metric),
        "higher_is_better": metric not in LOWER_IS_BETTER,
        "chance": line.get("chance") if chance is None else chance,
        "items": items,
    }


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
        # a role belong to other runs, such as those of the gate.
        if "role" not in record:
            done.add(record.get("seed"))
    return [seed for seed in study["seeds"] if seed not in done]


def unit_of(metric: str | None) -> str:
    """Return the unit of scores in a metric."""
    return NATS if metric == NATS else "score"


def _of_cost(line: RecordLine) -> Iterator[Measurement]:
    """Yield a row for each quantity of a cost.

    In records.jsonl, the quantities share a line: no measure took them, they are the sum over the
    trainings of a run, and the other keys of the line (``best_step``, ``probe_flops``, the steps of
    each objective) are about the same trainings.
    """
    for quantity in QUANTITIES:
        # A quantity that could not be measured is 0 or null.
        if line.get(quantity):
            yield Measurement(
                arm=line["arm"],
                seed=line["seed"],
                role=line.get("role", ""),
                kind="cost",
                measure=quantity,
                value=line[quantity],
                metric=quantity,
                unit=quantity,
                higher_is_better=False,
            )
