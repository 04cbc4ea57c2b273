"""Checks of measures, and of the rows that they return: a study reads them as its own results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.base.plugins import is_foreign, require_call
from maskwise.evaluation.measure import Measure, TextMeasure, json_of
from maskwise.evaluation.scoring import DAMAGED
from maskwise.results.measurements import Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_measure(measure: Measure, spec: object) -> None:
    """Raise ``PlugInError`` unless a measure has a name, and the arguments of ``Measure``."""
    name = getattr(measure, "name", None)
    if not isinstance(name, str) or not name:
        raise PlugInError(
            f"the measure {spec} has no name", got=repr(name), do="set its attribute name to a text"
        )
    what = f"the measure {spec}: measure"
    require_call(what, measure.measure, "model", "tokenizer", seed=0, folder=None)


def numbers_of(
    measure: Measure,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path | None = None,
) -> list[Measurement]:
    """Take a measure, and check its rows.

    Raises:
        PlugInError: a measure of another package returns anything else than rows for the table of a
            study, or it changes the model.
        MaskwiseError: a number of one of maskwise's own measures is not finite.
    """
    if not is_foreign(measure):
        rows = measure.measure(model, tokenizer, folder=folder)
        for row in rows:
            # A NaN must not reach a record, because every comparison with NaN is silently false.
            if not math.isfinite(row.value):
                what = f"the measure {row.measure}: a value is not a finite number"
                raise MaskwiseError(what, got=row.value, do=DAMAGED)
        return rows
    before = _versions(model)
    found = measure.measure(model, tokenizer, folder=folder)
    who = f"the measure {measure.name}"
    if _versions(model) != before:
        raise PlugInError(
            f"{who} changed the weights of the model", do="change a copy (copy.deepcopy(model))"
        )
    if not isinstance(found, Iterable):
        raise PlugInError(f"{who} does not return a list of Measurement", got=repr(found))
    rows = []
    for row in found:
        if not isinstance(row, Measurement):
            raise PlugInError(f"{who} does not return a list of Measurement", got=f"[{row!r}, …]")
        value = _number(f"the measure {row.measure}", "value", row.value)
        rows.append(replace(row, value=value))
        _check_columns(who, rows[-1])
    # A text may have no row that can be measured.
    if not rows and not isinstance(measure, TextMeasure):
        raise PlugInError(f"{who} returns no numbers")
    return rows


def require_distinct(rows: Iterable[Measurement]) -> None:
    """Raise ``PlugInError`` if two rows are of one outcome. A study would read only one of them."""
    found: dict[str, Measurement] = {}
    for row in rows:
        other = found.setdefault(row.outcome, row)
        if other is not row:
            raise PlugInError(
                f"the measure {row.measure} returns several numbers for one outcome",
                got=f"{row.outcome}: {other.value:g} and {row.value:g}",
                do="give each row its own metric, and each measure its own name",
            )


def _check_columns(who: str, row: Measurement) -> None:
    """Check what a row says of its number."""
    if row.kind != "evaluation" and (row.kind != "heldout" or row.ratio is None):
        raise PlugInError(
            f"{who}: its rows have another kind",
            got=repr(row.kind),
            allowed="evaluation (the default)",
        )
    if row.kind == "evaluation" and not isinstance(row.metric, str):
        raise PlugInError(
            f"{who}: a row has no metric",
            got=repr(row.metric),
            do="give each Measurement a metric, such as metric='accuracy'",
        )
    for name in ("ratio", "item_error", "chance", "items"):
        if getattr(row, name) is not None:
            _number(who, name, getattr(row, name))
    taken = set(vars(row)) & set(row.facts)
    if taken:
        raise PlugInError(f"{who}: facts have the names of columns", got=", ".join(sorted(taken)))
    json_of(f"{who}: the facts of a row", row.facts, do="use texts, numbers and lists of them")


def _number(who: str, column: str, value: object) -> float:
    """Return a number of a row as Python's own."""
    # Numbers of numpy and of torch know their value, but records cannot store them.
    item = getattr(value, "item", None)
    try:
        number = item() if callable(item) else value
    except (RuntimeError, ValueError):
        number = None
    if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
        raise PlugInError(f"{who}: a {column} is not a finite number", got=repr(value))
    return number


def _versions(model: Any) -> list[int]:
    """Return how often each weight was changed in place."""
    # Tensors that were made in inference mode do not count.
    return [each._version for each in model.parameters() if not each.is_inference()]
