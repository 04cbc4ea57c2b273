"""Cards of published tasks (cards.yaml), and the records of their files as one row of columns.

A card is data: what is read, how it is shown to a model, how answers are scored, whose it is. Its
loader is ``loading.load_task``, whose arguments it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired, TypedDict

import yaml

from maskwise.errors import unknown_name
from maskwise.tasks.classes import may_be_number
from maskwise.tasks.columns import Columns, UsualColumns, first_in
from maskwise.tasks.questions import CHOICES, choices_of
from maskwise.text.documents import inside
from maskwise.text.labelled import Record
from maskwise.text.tables import refuse_rows_as_names


class Card(TypedDict):
    """A published task: see cards.yaml."""

    title: str
    source: str
    licence: str
    options: dict[str, Any]
    hub: NotRequired[str]
    files: NotRequired[dict[str, str]]


CARDS: Mapping[str, Card] = yaml.safe_load(
    Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8")
)
"""Published tasks by name: what their files look like, and how they are answered and scored."""
GONE = {
    "curated-trec": "its answers are regular expressions; give kind=generation a column of "
    "written answers"
}
"""Cards that were there, and what to do instead."""
TEMPLATE_TEXT = "text of the template"
_PLACE = re.compile(r"\{([^{}]+)\}")


def first_of(names: str, record: Record) -> str | None:
    """The first of "a|b" that is a column of a record."""
    return first_in(names.split("|"), record)


def with_text(record: Record, template: str, place: str) -> Record:
    """The record with a template's text: a column's text, its list of sentences, or its choices as
    (A) … (B) ….

    Raises:
        MaskwiseError: a column that is not there.
    """

    def value(match: re.Match[str]) -> str:
        column = first_of(match[1], record)
        if column is None:
            raise unknown_name(f"column of {place}", match[1], map(str, record))
        inside = choices_of(record)[1] if column in CHOICES else record[column]
        if column in CHOICES:
            inside = [
                f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(inside)
            ]
        return " ".join(map(str, inside)) if isinstance(inside, list | tuple) else str(inside)

    return {**record, TEMPLATE_TEXT: _PLACE.sub(value, template).strip()}


def flat(record: Record) -> Iterable[Record]:
    """The records in a record. A question that is an object, as AI2 publishes them, becomes the
    columns in it, and its text is its stem. A meeting of QMSum becomes a record for each query,
    with the turns that the query is about.
    """
    inside = record.get("question")
    if "meeting_transcripts" in record:
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in record["meeting_transcripts"]]
        for asked in [
            *record.get("general_query_list", []),
            *record.get("specific_query_list", []),
        ]:
            spans = asked.get("relevant_text_span", [(0, len(turns) - 1)])
            said = [turn for first, last in spans for turn in turns[int(first) : int(last) + 1]]
            # its name, for queries of one meeting stay on one side of a cut
            meeting = "\n".join(turns[:9])
            yield {
                "meeting": meeting,
                "query": asked["query"],
                "turns": said,
                "answer": asked["answer"],
            }
    else:
        yield (
            {**inside, **record, "question": inside.get("stem", "")}
            if isinstance(inside, dict)
            else record
        )


def with_inside(record: Record, given: Columns) -> Record:
    """The record with the columns that are given as paths into nested objects, such as
    "review.text".
    """
    paths = [name for name in given if name and "." in name and name not in record]
    return {
        **record,
        **{name: value for name in paths if (value := inside(record, name)) is not None},
    }


LEAST_WORDS, LEAST_LETTERS = 3, 30
"""Words that a column of texts has in the mean at least, for it to be taken for the text unasked;
or how many letters, where it holds nothing else, as proteins do."""
AMONG_OTHERS = ", the only one whose values come again or are measured"
"""How the note ends on a label that was guessed among several columns: such a file may be a text as
well.
"""


def guess_columns(
    records: Sequence[Record],
    given: Columns,
    usual: Sequence[UsualColumns],
    where: str = "the table",
) -> tuple[Columns, tuple[str, ...]]:
    """The text and the label of a table whose columns have names of their own, where only one
    reading is likely.

    The text is the column with the longest texts. The label is the only other column, or the only
    one of them whose values come again or are measured (``_may_be_label``), if no other is a second
    text. Notes say what was guessed.

    Args:
        usual: the names that kinds of tasks look for, of the kind that reads the table last. Where
            one of its names is there, that is not guessed; where only names of other kinds are
            there, both columns must be plain.
        where: what the message calls a table whose first row is data.

    >>> guess_columns([{"Kommentar": "ein schöner langer Tag", "Note": "2"}], Columns(), [])[0]
    Columns(text='Kommentar', pair=None, label='Note')
    """
    names = [str(name) for name in (records[0] if records else ()) if name not in ("id", "split")]
    plain = usual[-1] if usual else UsualColumns((), (), ())
    strange = chain.from_iterable((*each.text, *each.pair, *chain(*each.pairs)) for each in usual)
    size, may_be_label = cache(partial(_size_of, records)), cache(partial(_may_be_label, records))
    notes = []
    if (
        given.text is None
        and not {*plain.text} & {*names}
        and not any({*both} <= {*names} for both in plain.pairs)
    ):
        longest = max(names, key=size, default=None)
        rest = [name for name in names if name != longest]
        clear = len(rest) == 1 and may_be_label(rest[0])
        if (
            longest is not None
            and size(longest) >= LEAST_WORDS
            and (clear or not {*strange} & {*names})
        ):
            refuse_rows_as_names(records, longest, where)
            given = given._replace(text=longest)
            notes.append(f"the text is column {longest!r}")
    text = given.text or first_in(plain.text, names)
    rest = [name for name in names if name != text]
    if text is not None and given.label is None and not {*plain.label} & {*rest}:
        likely = rest if len(rest) == 1 else [name for name in rest if may_be_label(name)]
        if len(likely) == 1 and all(size(name) < LEAST_WORDS for name in {*rest} - {*likely}):
            given = given._replace(label=likely[0])
            notes.append(
                f"the label is column {likely[0]!r}{AMONG_OTHERS if len(rest) > 1 else ''}"
            )
    return given, tuple(notes)


def _size_of(records: Sequence[Record], name: str) -> float:
    """Words of a column in the mean; of long words of letters alone, such as proteins, what makes a
    text of them.
    """
    texts = [str(record.get(name) or "") for record in records]
    letters = fmean(len(text) for text in texts) if all(text.isalpha() for text in texts) else 0.0
    return max(fmean(len(text.split()) for text in texts), letters * LEAST_WORDS / LEAST_LETTERS)


def _may_be_label(records: Sequence[Record], name: str) -> bool:
    """Whether the values of a column come again, twice in the mean, or are measured; row numbers
    are neither.
    """
    values = [str(value) for record in records if (value := record.get(name)) not in (None, "")]
    different = {*values}
    if len(different) < 2:
        return False
    measured = all(map(may_be_number, different)) and not all(map(str.isdigit, different))
    return measured or len(different) <= len(values) / 2
