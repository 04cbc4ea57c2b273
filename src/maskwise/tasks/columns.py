"""Columns and cells of labelled files: which column holds the text or the label, what a cell says.

Only an empty cell is a missing label, unless the user names others: −1 and "NA" are classes of
many files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.text.documents import inside, paths
from maskwise.text.labelled import Record
from maskwise.text.tables import refuse_rows_as_names

Records: TypeAlias = Sequence[Record]
Names: TypeAlias = tuple[str, ...]
# Reasons to skip a row. Skipped rows are counted by reason.
NO_LABEL, NO_TEXT, NO_ANSWER = "no label", "no text", "no answer"
CHOICES = ("choices", "options", "endings")
_NUMBERED_CHOICE = re.compile(r"(ending|choice|option)_?\d+")


class Columns(NamedTuple):
    """Names of columns: given by the user, or chosen for a file.

    For extractive questions ``text`` is the context, ``pair`` the question and ``label`` the
    answers. For multiple choice ``text`` is the question, ``pair`` an optional context, and
    ``label`` says which choice is right.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None


class UsualColumns(NamedTuple):
    """Column names that data sets use, the most likely first.

    ``pairs`` are texts that belong together; they are looked for before single columns.
    """

    text: Sequence[str]
    pair: Sequence[str] = ()
    label: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()
    needs_pair: bool = False


def first_in(names: Iterable[str], record: Iterable[str]) -> str | None:
    """The first of these names that is a column of a record."""
    return next((name for name in names if name in record), None)


def find_columns(usual: UsualColumns, record: Record, given: Columns, where: str) -> Columns:
    """The columns of records like this one: the given ones, or the usual ones that are present.

    Raises:
        MaskwiseError: a given column is not there, or none of the usual ones is.
    """
    for role, column in zip(Columns._fields, given):
        if column is not None and column not in record:
            raise unknown_name(f"{role} column of {where}", column, paths(record))
    text, pair = pair_in(record, given, usual.pairs)
    text = text or first_in(usual.text, record)
    pair = pair or first_in([name for name in usual.pair if name != text], record)
    label = given.label or first_in([n for n in usual.label if n not in (text, pair)], record)
    found = {"text": text, "label": label, "pair": pair}
    needed = {"text": usual.text, "label": usual.label}
    if usual.needs_pair:
        needed["pair"] = usual.pair
    for role, names in needed.items():
        if names and found[role] is None:
            do = f"name it with {role}=…; looked for {', '.join(names)}"
            got = ", ".join(paths(record))
            raise MaskwiseError(f"{where} has no {role} column", got=got, do=do)
    return Columns(text, pair, label)


def pair_in(
    record: Record, given: Columns, pairs: Sequence[tuple[str, str]]
) -> tuple[str | None, str | None]:
    """The columns of a pair of texts: given, or two that are known to belong together."""
    if not (given.text or given.pair):
        for first, second in pairs:
            if first in record and second in record:
                return first, second
    return given.text, given.pair


def require_text(value: object, what: str, where: str, *, filled: bool = False) -> str:
    """The text in a cell.

    Args:
        what: the role of the text, for the error.
        filled: refuse white space alone.

    Raises:
        MaskwiseError: not a text; ``where`` names the row.
    """
    if not isinstance(value, str) or (filled and not value.strip()):
        raise MaskwiseError(f"{where}: the {what} is no text", got=repr(value), allowed="a string")
    return value


# Labels

# The label under which benchmarks publish a split whose labels they hide.
HIDDEN = "-1"
# Labels, in lower case, that mean a missing one in some files. They are kept, with a note.
DOUBTFUL = frozenset((HIDDEN, "nan", "na", "n/a", "#n/a", "<na>", "null"))


def label_of(value: object) -> str | None:
    """A label as text; None for an empty cell, which Parquet readers may give as NaN.

    3, "3" and 3.0 (as Parquet stores integers next to missing values) are one class.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def labels_in(value: object) -> Iterator[str]:
    """The labels in a cell, or in the lists that it holds."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from labels_in(part)
    elif (label := label_of(value)) is not None:
        yield label


def without(value: Any, missing: Collection[str]) -> Any:
    """A cell, or a whole record, with None in place of every label that means a missing one."""
    if isinstance(value, Mapping):
        return {name: without(part, missing) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without(part, missing) for part in value]
    return None if label_of(value) in missing else value


def distinct(labels: Iterable[str], what: str, where: str) -> Names:
    """The different labels, sorted.

    Raises:
        MaskwiseError: fewer than two, so that nothing can be learned or measured.
    """
    found = tuple(sorted(set(labels)))
    if len(found) < 2:
        got = f"only {', '.join(map(repr, found)) or 'empty cells'}"
        do = "check the label column"
        raise MaskwiseError(f"{where} needs at least two {what}", got=got, do=do)
    return found


# Numbers

# Three digits after the comma may be thousands, so such a label is not read as a number.
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?!\d{3}$)\d+")
_WRITTEN_FOR_PEOPLE = re.compile(r"[-+]?[$€£¥]?\s*[-+]?\d+([.,]\d{3})*([.,]\d+)?\s*[$€£¥%]?")


def number_of(label: object) -> float | None:
    """A label as a number, with a decimal point or comma; None if it is not a number.

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
    """Whether a label is a number, possibly one with a currency, a percent sign or thousands."""
    return number_of(label) is not None or bool(_WRITTEN_FOR_PEOPLE.fullmatch(str(label).strip()))


def require_number(label: object, where: str) -> float:
    """A label as a number.

    Raises:
        MaskwiseError: not a number, or one with a currency, a percent sign or thousands.
    """
    value = number_of(label)
    if value is not None:
        return value
    what = f"{where}: the score is no number"
    do = f"check the label column; if it stands for no score, say so: missing={label!r}"
    if may_be_number(label):
        what = f"{where}: the label is not written as a number"
        do = "write numbers alone, such as 1200.50, or choose kind='sequence-classification'"
    raise MaskwiseError(what, got=label, do=do)


# Records


def choices_of(record: Record) -> tuple[list[str], list[object]]:
    """Names (often none) and texts of the choices in a record."""
    for name in CHOICES:
        value = record.get(name)
        if isinstance(value, dict):  # the hub's
            return [str(label) for label in value.get("label") or ()], list(value.get("text") or ())
        if isinstance(value, list):
            if value and all(isinstance(choice, dict) for choice in value):  # AI2's files
                names = [str(choice.get("label")) for choice in value]
                return names, [choice.get("text") for choice in value]
            return [], value
    numbered = [name for name in record if _NUMBERED_CHOICE.fullmatch(str(name))]
    numbered.sort(key=lambda name: int(re.findall(r"\d+", name)[0]))
    return [], [record[name] for name in numbered]


def right_choice(
    answer: str, names: list[str], texts: Sequence[object], *, may_be_text: bool
) -> int | None:
    """The place of the right choice, named by its text, letter or place; None for none of them."""
    known = [names]
    if may_be_text:
        known.append([str(text).strip() for text in texts])
    for each in known:
        if answer in each:
            return each.index(answer)
    place = -1
    if len(answer) == 1 and answer.isalpha():
        place = ord(answer.upper()) - ord("A")
    elif answer.isdecimal():
        place = int(answer)
    return place if 0 <= place < len(texts) else None


def flat(record: Record) -> Iterator[Record]:
    """The records in a record: questions that are objects (AI2), and the queries of a meeting
    (QMSum) with the turns that each is about.
    """
    question = record.get("question")
    if "meeting_transcripts" in record:
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in record["meeting_transcripts"]]
        # Queries of one meeting share this, and so stay on one side of a cut.
        meeting = "\n".join(turns[:9])
        for name in ("general_query_list", "specific_query_list"):
            for asked in record.get(name, []):
                spans = asked.get("relevant_text_span", [(0, len(turns) - 1)])
                relevant = [turns[int(first) : int(last) + 1] for first, last in spans]
                yield {
                    "meeting": meeting,
                    "query": asked["query"],
                    "turns": list(chain.from_iterable(relevant)),
                    "answer": asked["answer"],
                }
    elif isinstance(question, dict):
        yield {**question, **record, "question": question.get("stem", "")}
    else:
        yield record


def with_inside(record: Record, given: Columns) -> Record:
    """The record with columns for given paths into nested objects, such as "review.text"."""
    nested = [name for name in given if name and "." in name and name not in record]
    found = {name: inside(record, name) for name in nested}
    return record | {name: value for name, value in found.items() if value is not None}


TEMPLATE_TEXT = "text of the template"


def with_text(record: Record, template: str, place: str) -> Record:
    """The record with a filled template, such as "{question} {context}", under ``TEMPLATE_TEXT``.

    A list of sentences is joined; choices are written as (A) … (B) ….

    Raises:
        MaskwiseError: a column that is not there.
    """

    def fill(match: re.Match[str]) -> str:
        column = first_in(match[1].split("|"), record)
        if column is None:
            raise unknown_name(f"column of {place}", match[1], map(str, record))
        value = record[column]
        if column in CHOICES:
            texts = choices_of(record)[1]
            value = [f"({chr(ord('A') + n)}) {choice}" for n, choice in enumerate(texts)]
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return {**record, TEMPLATE_TEXT: re.sub(r"\{([^{}]+)\}", fill, template).strip()}


# Guessing

# Mean words of a column that is taken for the text unasked; or letters, where the column holds
# nothing else, as proteins do.
LEAST_WORDS, LEAST_LETTERS = 3, 30
# The end of the note on a label that was guessed among several columns, as in a file of texts.
AMONG_OTHERS = ", the only one whose values come again or are measured"


def guess_columns(
    records: Records,
    given: Columns,
    usual: UsualColumns,
    others: Collection[str] = (),
    where: str = "the table",
) -> tuple[Columns, Names]:
    """The text and the label of a table with unusual column names, if only one reading is likely.

    The text is the column with the longest texts. The label is the only other column, or the only
    other one whose values repeat or are measured, provided that no column is a second text. Notes
    say what was guessed.

    Args:
        usual: the names that the reading kind of task looks for; these are never guessed.
        others: text columns of other kinds. Where one is present, both columns must be plain.
        where: the table's name in an error.

    >>> table = [{"Kommentar": "ein schöner langer Tag", "Note": "2"}]
    >>> guess_columns(table, Columns(), UsualColumns(()))[0]
    Columns(text='Kommentar', pair=None, label='Note')
    """
    names = [str(name) for name in (records[0] if records else ()) if name not in ("id", "split")]
    words = {name: _mean_words(records, name) for name in names}
    notes = []
    known_pair = pair_in(dict.fromkeys(names), given, usual.pairs)[0]
    if names and not given.text and not known_pair and not first_in(usual.text, names):
        longest = max(names, key=words.__getitem__)
        rest = [name for name in names if name != longest]
        clear = len(rest) == 1 and _may_be_label(records, rest[0])
        if words[longest] >= LEAST_WORDS and (clear or not first_in(others, names)):
            refuse_rows_as_names(records, longest, where)
            given = given._replace(text=longest)
            notes.append(f"the text is column {longest!r}")
    text = given.text or first_in(usual.text, names)
    rest = [name for name in names if name != text]
    if text is not None and given.label is None and not first_in(usual.label, rest):
        likely = [name for name in rest if len(rest) == 1 or _may_be_label(records, name)]
        second_text = any(words[name] >= LEAST_WORDS for name in rest if name not in likely)
        if len(likely) == 1 and not second_text:
            given = given._replace(label=likely[0])
            among = AMONG_OTHERS if len(rest) > 1 else ""
            notes.append(f"the label is column {likely[0]!r}{among}")
    return given, tuple(notes)


def _mean_words(records: Records, name: str) -> float:
    """Mean words of a column; unbroken letters, such as proteins, count by their length."""
    texts = [str(record.get(name) or "") for record in records]
    words = fmean(len(text.split()) for text in texts)
    if all(text.isalpha() for text in texts):
        letters = fmean(map(len, texts))
        return max(words, letters * LEAST_WORDS / LEAST_LETTERS)
    return words


def _may_be_label(records: Records, name: str) -> bool:
    """Whether values occur twice on average or are measured. Row numbers do neither."""
    values = [str(record[name]) for record in records if record.get(name) not in (None, "")]
    different = set(values)
    if len(different) < 2:
        return False
    measured = all(map(may_be_number, different)) and not all(map(str.isdigit, different))
    return measured or len(different) <= len(values) / 2
