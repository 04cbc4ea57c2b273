"""Choose the columns of a labelled file, and read its cells as texts, labels and numbers.

A row whose label cell is empty has no label. Labels such as −1 or "NA" are ordinary classes, unless
the user declares them as missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeAlias

from maskwise.base.errors import MaskwiseError, unknown_name
from maskwise.masking.line import Names
from maskwise.text.source import inside, paths
from maskwise.text.tables import FieldValues

ABOUT_TEXTS = ("title", "source", "url", "date", "time", "year", "author", "language", "name")
"""Columns of corpora that describe a text, in lower case."""

Records: TypeAlias = Sequence[FieldValues]
# Reasons for skipping a row. Skipped rows are counted for each reason.
NO_LABEL, NO_TEXT, NO_ANSWER = "no label", "no text", "no answer"
# Columns with all choices of a multiple-choice question. Other files have one column per choice.
CHOICES = ("choices", "options", "endings")
_NUMBERED_CHOICE = re.compile(r"(?:ending|choice|option)_?(\d+)")


class ColumnNames(NamedTuple):
    """Column names, given by the user or chosen for a file.

    For extractive questions ``text`` is the context, ``pair`` the question and ``label`` the
    answers. For multiple choice ``text`` is the question, ``pair`` an optional context and
    ``label`` the correct choice.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    def cells(self, record: FieldValues) -> list[Any]:
        """Return the cells (text, pair, label) of a record; None if a column is missing."""
        return [record.get(column or "") for column in self]


class UsualColumns(NamedTuple):
    """Column names of published data sets for each role, sorted by decreasing likelihood.

    ``pairs`` lists columns that belong together as text and pair, such as ("question", "sentence").
    They are tried first. If ``needs_pair`` is true, a file without a pair column is an error.
    """

    text: Sequence[str]
    pair: Sequence[str] = ()
    label: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()
    needs_pair: bool = False


def first_in(names: Iterable[str], record: Iterable[str]) -> str | None:
    """Return the first name that is a column of the record, or None."""
    for name in names:
        if name in record:
            return name
    return None


def find_columns(
    usual: UsualColumns,
    record: FieldValues,
    given: ColumnNames,
    where: str,
    argument: Callable[[str, str], str],
) -> ColumnNames:
    """Choose the columns of a record: the given columns, or else the usual columns.

    Args:
        usual: the usual columns of a kind of task.
        record: the record, or all columns of a file with a value of each.
        given: the columns that the user names.
        where: the task, for the error message.
        argument: returns the argument with which a role, such as label, has a column.

    Raises:
        MaskwiseError: the record lacks a given column, or a role (text, pair or label) has no
            column.
    """
    for role, column in zip(ColumnNames._fields, given):
        if column is not None and column not in record:
            raise unknown_name(f"{role} column of {where}:", column, paths(record))
    text, pair = pair_in(record, given, usual.pairs)
    text = text or first_in(usual.text, record)
    # A column gets only one role: "question" may be the text or the pair, but not both.
    pair = pair or first_in(usual.pair, record.keys() - {text})
    label = given.label or first_in(usual.label, record.keys() - {text, pair})
    found = ColumnNames(text, pair, label)
    needed = {"text": usual.text, "label": usual.label}
    if usual.needs_pair:
        needed["pair"] = usual.pair
    for role, names in needed.items():
        if names and getattr(found, role) is None:
            free = [path for path in paths(record) if path not in found]
            # What describes a text is the last guess.
            free.sort(key=lambda path: path.lower() not in ABOUT_TEXTS)
            do = f"name it, such as {argument(role, free[-1])}" if free else "add a column for it"
            raise MaskwiseError(
                f"{where} has no {role} column",
                got=", ".join(paths(record)),
                do=f"{do}; looked for columns named {', '.join(names)}",
            )
    return found


def pair_in(
    record: Collection[str], given: ColumnNames, pairs: Sequence[tuple[str, str]]
) -> tuple[str | None, str | None]:
    """Return the columns of a pair of texts: the given columns, or the first pair in the record."""
    if given.text or given.pair:
        return given.text, given.pair
    for first, second in pairs:
        if first in record and second in record:
            return first, second
    return None, None


def require_text(value: object, what: str, where: str, *, filled: bool = False) -> str:
    """Return a cell after a check that it is a string.

    Args:
        value: the cell.
        what: the role of the text, for the error message.
        where: the row, for the error message.
        filled: whether an empty or blank string is an error, too.

    Raises:
        MaskwiseError: the cell is not a string, or is blank although it must be filled.
    """
    if not isinstance(value, str) or (filled and not value.strip()):
        raise MaskwiseError(
            f"{where}: the {what} is not text",
            got=repr(value),
            allowed="a string that is not blank",
        )
    return value


# Labels

# Unlike ``list | tuple | set``, this is not made anew for each of many cells.
LISTS = (list, tuple, set)

# GLUE and other benchmarks publish this label for test rows, whose correct labels are secret.
HIDDEN = "-1"
# Labels, in lower case, that mean "missing" in some files. They are read as classes, but the task
# gets a note.
DOUBTFUL = frozenset((HIDDEN, "nan", "na", "n/a", "#n/a", "<na>", "null"))


def is_missing(value: object) -> bool:
    """Return whether a cell has no value. Parquet readers may return NaN for such a cell."""
    # Only NaN is not equal to itself.
    return value is None or value != value


EMPTY = ""
"""What ``missing`` names if it names empty texts."""


def is_empty(value: object) -> bool:
    """Return whether a cell is a text without a character, such as an empty cell of a CSV file."""
    return isinstance(value, str) and not value.strip()


def label_of(value: object) -> str | None:
    """Return a label as text, or None for an empty cell.

    3, "3", 3.0 and "3.0" are the same class, because pandas and Parquet readers make a column of
    whole numbers with an empty cell a column of floats.
    """
    # Tags of a corpus are a hundred thousand labels, and hardly any is a number.
    if not isinstance(value, str):
        if is_missing(value):
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
    text = str(value).strip()
    if text.endswith((".0", "00")):
        text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return text or None


def labels_in(value: object) -> list[str]:
    """Return the labels in a cell, which may be a nested list."""
    found: list[str] = []
    for part in value if isinstance(value, LISTS) else [value]:
        if isinstance(part, LISTS):
            found += labels_in(part)
        elif (label := label_of(part)) is not None:
            found.append(label)
    return found


def without(value: Any, missing: Collection[str]) -> Any:
    """Return a cell, or a whole record, in which None replaces each label listed in ``missing``."""
    if not missing:
        return value
    if isinstance(value, Mapping):
        return {name: without(part, missing) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without(part, missing) for part in value]
    if is_empty(value):
        return None if EMPTY in missing else value
    return None if label_of(value) in missing else value


def distinct_labels(labels: Iterable[str], what: str, where: str) -> Names:
    """Return the distinct labels, sorted.

    Raises:
        MaskwiseError: there are fewer than two distinct labels.
    """
    found = tuple(sorted(set(labels)))
    if len(found) < 2:
        only = repr(found[0]) if found else "empty cells"
        raise MaskwiseError(
            f"{where} needs at least two {what}",
            got=f"only {only}",
            do="check the label column, or give more rows",
        )
    return found


# Keys under which KILT, SQuAD, QED and TriviaQA store an answer.
ANSWER_KEYS = ("answer", "text", "string", "value", "Value", "aliases", "Aliases")


def read_answers(value: object, where: str) -> Iterator[tuple[str, int | None]]:
    """Yield (answer, start) for each answer in a cell.

    A cell is a text or a number, or a list or object of them, possibly nested. ``start`` is the
    offset, in characters, of the answer in its context (SQuAD's ``answer_start``), or None if the
    cell does not give it.
    """
    if isinstance(value, Mapping):
        starts = value.get("answer_start")
        if starts and "text" in value:
            texts = value["text"] or ()
            if isinstance(texts, str):
                texts = [texts]
            if not isinstance(starts, list | tuple):
                starts = [starts]
            # An answer without a start is sought in the context.
            for text, start in zip_longest(texts, starts):
                if not isinstance(start, int | None):
                    what = f"{where}: cannot read the answers"
                    raise MaskwiseError(what, got=value, allowed="whole numbers as answer_start")
                for answer, _ in read_answers(text, where):
                    yield answer, start
            return
        value = [value[name] for name in ANSWER_KEYS if name in value]
    if isinstance(value, list | tuple):
        for part in value:
            yield from read_answers(part, where)
    elif value is None or isinstance(value, str | int | float):
        text = label_of(value)
        if text is not None:
            # Texts are not stripped, because an answer's offset may include a leading space.
            yield value if isinstance(value, str) else text, None
    else:
        raise MaskwiseError(f"{where}: cannot read the answers", got=value, allowed="texts")


# Numbers

# "3,5" is read as 3.5. "1,200" is refused, because its comma may separate thousands.
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?!\d{3}$)\d+")
_WRITTEN_FOR_PEOPLE = re.compile(r"[-+]?[$€£¥]?\s*[-+]?\d+([.,]\d{3})*([.,]\d+)?\s*[$€£¥%]?")


def number_of(label: object) -> float | None:
    """Convert a label with a decimal point or comma to a number; return None for other labels.

    >>> number_of("3,5"), number_of("-2"), number_of("1,200"), number_of("18 €"), number_of("good")
    (3.5, -2.0, None, None, None)
    """
    text = str(label).strip()
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def may_be_number(label: object) -> bool:
    """Return whether a label is a number, possibly with a currency, percent or thousands sign."""
    written = _WRITTEN_FOR_PEOPLE.fullmatch(str(label).strip())
    return number_of(label) is not None or written is not None


def require_number(label: object, where: str) -> float:
    """Return a label as a number.

    Raises:
        MaskwiseError: the label is not a number, or has a currency, percent or thousands sign.
    """
    value = number_of(label)
    if value is not None:
        return value
    what = f"{where}: the score is not a number"
    classes = "choose kind='sequence-classification'"
    do = f"check the label column; if this label means a missing score, give missing={label!r}; "
    do += f"if the labels are classes, {classes}"
    if may_be_number(label):
        what = f"{where}: the label is not a plain number"
        do = f"write plain numbers, such as 1200.50, or {classes}"
    raise MaskwiseError(what, got=label, do=do)


# Records


def choices_of(record: FieldValues) -> tuple[list[str], list[object]]:
    """Return the names of the choices in a record, and their texts.

    The list of names is empty in most formats. In some, the names are letters such as "A".
    """
    for name in CHOICES:
        value = record.get(name)
        # The hub stores choices as an object of two lists; AI2's files store a list of objects.
        if isinstance(value, dict):
            names = value.get("label") or ()
            texts = value.get("text") or ()
            return list(map(str, names)), list(texts)
        if isinstance(value, list):
            if value and all(isinstance(choice, dict) for choice in value):
                names = [str(choice.get("label")) for choice in value]
                return names, [choice.get("text") for choice in value]
            return [], value
    return [], [text for _, text in numbered_choices(record)]


def numbered_choices(record: FieldValues) -> list[tuple[int, object]]:
    """Return the numbers and the texts of choices that have a column each, such as "option1"."""
    numbered = []
    for column, text in record.items():
        match = _NUMBERED_CHOICE.fullmatch(str(column))
        if match:
            numbered.append((int(match[1]), text))
    numbered.sort(key=lambda item: item[0])
    return numbered


def right_choice(
    answer: str, names: list[str], texts: Sequence[object], *, may_be_text: bool, first: int = 0
) -> int | None:
    """Find the correct choice, which a file identifies by its name, text, letter or number.

    Args:
        answer: the cell that identifies the correct choice.
        names: the names of the choices; empty if they have no names.
        texts: the texts of the choices.
        may_be_text: whether the answer may be the text of a choice. If so, an answer such as "3" is
            compared with the texts before it is used as a number.
        first: the number of the first choice.

    Returns:
        The index of the choice from 0, or None if no choice matches.
    """
    if answer in names:
        return names.index(answer)
    if may_be_text:
        for number, text in enumerate(texts):
            if answer == str(text).strip():
                return number
    index = -1
    if len(answer) == 1 and answer.isascii() and answer.isalpha():
        index = ord(answer.upper()) - ord("A")
    elif answer.isdecimal():
        index = int(answer) - first
    return index if 0 <= index < len(texts) else None


def flat(record: FieldValues, given: ColumnNames) -> FieldValues:
    """Add a column for each given name that is a path into nested objects, such as "review.text".

    In AI2's files, "question" may be an object. The fields of this object become columns, too.
    """
    question = record.get("question")
    if isinstance(question, dict):
        record = {**question, **record, "question": question.get("stem", "")}
    added = {}
    for name in chain.from_iterable(name.split("|") for name in given if name):
        if "." in name and name not in record:
            value = inside(record, name)
            if value is not None:
                added[name] = value
    return record | added if added else record


def has_field(record: FieldValues, field: str) -> bool:
    """Return whether a record has a field, or a path into nested objects, even if it is empty."""
    return field in record or ("." in field and field in paths(record))


# The name of the column with filled templates.
TEMPLATE_TEXT = "text of the template"


def with_text(record: FieldValues, template: str, place: str) -> FieldValues:
    """Fill a template, such as "{question} {context}", and add it as column ``TEMPLATE_TEXT``.

    A list of sentences is joined by spaces. Choices are written as (A) … (B) ….

    Raises:
        MaskwiseError: the record lacks a column that the template names.
    """

    def fill(match: re.Match[str]) -> str:
        column = next((name for name in match[1].split("|") if has_field(record, name)), None)
        if column is None:
            raise unknown_name(f"column of {place}:", match[1], paths(record))
        value = inside(record, column)
        if column in CHOICES:
            value = []
            for number, choice in enumerate(choices_of(record)[1]):
                letter = chr(ord("A") + number)
                value.append(f"({letter}) {choice}")
        if not isinstance(value, list | tuple):
            value = [value]
        return " ".join(map(str, filter(label_of, value)))

    text = re.sub(r"\{([^{}]+)\}", fill, template).strip()
    return {**record, TEMPLATE_TEXT: text}
