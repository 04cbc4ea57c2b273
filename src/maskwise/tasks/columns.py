"""Columns and cells of labelled files: which column is the text, the label, …, and what a cell says
of the label.

A missing label is an empty cell, and nothing else unless the user says so: −1 and "NA" are classes
of many files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from maskwise.errors import MaskwiseError, counted, unknown_name
from maskwise.text.documents import paths
from maskwise.text.labelled import Record

NO_LABEL, NO_TEXT = "no label", "no text"
"""Why a row is skipped. It is counted under this name."""


class Columns(NamedTuple):
    """Names of columns: those that the user gives, or those that were chosen for a file.

    Where an answer is marked in a context, ``text`` is the context, ``pair`` the question and
    ``label`` the answers. Where one of several choices is right, ``text`` is the question, ``pair``
    the context, if there is one, and ``label`` says which choice is right.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None


class UsualColumns(NamedTuple):
    """Names under which data sets publish the text, the second text and the label; the first that
    is there counts.

    ``pairs`` are texts that belong together; they are looked for before single ones.
    """

    text: Sequence[str]
    pair: Sequence[str]
    label: Sequence[str]
    pairs: Sequence[tuple[str, str]] = ()
    needs_pair: bool = False


def first_in(names: Iterable[str], record: Iterable[str]) -> str | None:
    """The first of these names that is a column of a record."""
    return next((name for name in names if name in record), None)


def require_text(value: object, what: str, where: str, *, filled: bool = False) -> str:
    """A cell that holds a text.

    Args:
        what: what the text is, for the error.
        filled: a text of white space alone is none.

    Raises:
        MaskwiseError: it is no text; ``where`` names the row.
    """
    if not isinstance(value, str) or (filled and not value.strip()):
        raise MaskwiseError(f"{where}: the {what} is no text", got=repr(value), allowed="a string")
    return value


def find_columns(usual: UsualColumns, record: Record, given: Columns, where: str) -> Columns:
    """The columns of records like this one: given, two that belong together, or usual ones.

    Raises:
        MaskwiseError: a given column is not there, or none of the usual ones is.
    """
    known = pair_in(record, given, usual.pairs)
    text = _pick("text", given.text or known[0], usual.text, record, where)
    pair = _pick(
        "pair", given.pair or known[1], [name for name in usual.pair if name != text], record, where
    )
    label = _pick(
        "label", given.label, [n for n in usual.label if n not in (text, pair)], record, where
    )
    needed = [("text", text, usual.text), *([("label", label, usual.label)] if usual.label else [])]
    for what, column, names in (
        [*needed, ("pair", pair, usual.pair)] if usual.needs_pair else needed
    ):
        if column is None:
            do = f"name it with {what}=…; looked for {', '.join(names)}"
            raise MaskwiseError(
                f"{where} has no {what} column", got=", ".join(paths(record)), do=do
            )
    return Columns(text, pair, label)


def _pick(
    what: str, given: str | None, usual: Iterable[str], record: Record, where: str
) -> str | None:
    if given is not None and given not in record:
        raise unknown_name(f"{what} column of {where}", given, paths(record))
    return given or first_in(usual, record)


def pair_in(
    record: Record, given: Columns, pairs: Sequence[tuple[str, str]]
) -> tuple[str | None, str | None]:
    """The columns of a pair of texts: given, or two that are known to belong together."""
    if given.text or given.pair or not pairs:
        return given.text, given.pair
    return next(((a, b) for a, b in pairs if a in record and b in record), (None, None))


HIDDEN = "-1"
"""How benchmarks publish the labels of a split that they hide. Beside other labels it is one of
them.
"""
DOUBTFUL = frozenset((HIDDEN, "nan", "na", "n/a", "#n/a", "<na>", "null"))
"""Labels, in lower case, that some files use for a missing one. They are kept, and a note says so.
"""


def label_of(value: object) -> str | None:
    """A label as text; None where the cell is empty, which Parquet's readers may give as NaN.

    3, "3" and 3.0 (as Parquet makes of integers beside missing ones) are one class.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def labels_in(value: object) -> Iterator[str]:
    """The labels of a cell: its own, or those of a list in it."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from labels_in(part)
    elif (label := label_of(value)) is not None:
        yield label


def without(value: Any, missing: Collection[str]) -> Any:
    """A cell, or a whole record, with None in place of each label that stands for a missing one."""
    if isinstance(value, Mapping):
        return {name: without(part, missing) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without(part, missing) for part in value]
    return None if label_of(value) in missing else value


def require_two(labels: Sequence[str], what: str, where: str, skipped: Mapping[str, int]) -> None:
    """
    Raises:
        MaskwiseError: one label for all, so that nothing can be learned or measured.
    """
    if len(labels) < 2:
        got = (f"only {labels[0]!r}" if labels else "none") + (
            f", skipped {counted(skipped)}" if skipped else ""
        )
        do = "check the label column"
        raise MaskwiseError(f"{where} needs at least two {what}", got=got, do=do)
