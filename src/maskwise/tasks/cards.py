"""Cards of published tasks (cards.yaml), and the records of their files as one row of columns.

A card is data: what is read, how it is shown to a model, how answers are scored, whose it is. Its loader is
``loading.load_task``, whose arguments it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired, TypedDict

import yaml

from maskwise.errors import unknown_name
from maskwise.tasks.questions import CHOICES, choices_of
from maskwise.tasks.task import Columns, UsualColumns
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


CARDS: Mapping[str, Card] = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8"))
"""Published tasks by name: what their files look like, and how they are answered and scored."""
TEMPLATE_TEXT = "text of the template"
_PLACE = re.compile(r"\{([^{}]+)\}")


def first_of(names: str, record: Record) -> str | None:
    """The first of "a|b" that is a column of a record."""
    return next((name for name in names.split("|") if name in record), None)


def with_text(record: Record, template: str, place: str) -> Record:
    """The record with a template's text: a column's text, its list of sentences, or its choices as (A) … (B) ….

    Raises:
        MaskwiseError: a column that is not there.
    """

    def value(match: re.Match[str]) -> str:
        column = first_of(match[1], record)
        if column is None:
            raise unknown_name(f"column of {place}", match[1], map(str, record))
        inside = choices_of(record)[1] if column in CHOICES else record[column]
        if column in CHOICES:
            inside = [f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(inside)]
        return " ".join(map(str, inside)) if isinstance(inside, list | tuple) else str(inside)

    return {**record, TEMPLATE_TEXT: _PLACE.sub(value, template).strip()}


def flat(record: Record) -> Iterable[Record]:
    """The records in a record. A question that is an object, as AI2 publishes them, becomes the columns in it, and its
    text is its stem. A meeting of QMSum becomes a record for each query, with the turns that the query is about."""
    inside = record.get("question")
    if "meeting_transcripts" in record:
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in record["meeting_transcripts"]]
        for asked in [*record.get("general_query_list", []), *record.get("specific_query_list", [])]:
            spans = asked.get("relevant_text_span", [(0, len(turns) - 1)])
            said = [turn for first, last in spans for turn in turns[int(first) : int(last) + 1]]
            meeting = "\n".join(turns[:9])  # its name, for queries of one meeting stay on one side of a cut
            yield {"meeting": meeting, "query": asked["query"], "turns": said, "answer": asked["answer"]}
    else:
        yield {**inside, **record, "question": inside.get("stem", "")} if isinstance(inside, dict) else record


def with_inside(record: Record, given: Columns) -> Record:
    """The record with the columns that are given as paths into nested objects, such as "review.text"."""
    paths = [name for name in given if name and "." in name and name not in record]
    return {**record, **{name: value for name in paths if (value := inside(record, name)) is not None}}


LEAST_WORDS = 3
"""Words that a column of texts has in the mean at least, for it to be taken for the text unasked."""


def guess_columns(
    records: Sequence[Record], given: Columns, usual: Sequence[UsualColumns], where: str = "the table"
) -> tuple[Columns, tuple[str, ...]]:
    """The text and the label of a table whose columns have names of their own, where only one reading is likely.

    The text is the column with the longest texts, the label the only other column. What was guessed is said in notes.

    Args:
        usual: the names that kinds of tasks look for; where one of them is there, the text is not guessed. The label is
            not where there is one that the last of these kinds looks for.
        where: what the message calls a table whose first row is data.

    >>> guess_columns([{"Kommentar": "ein schöner langer Tag", "Note": "2"}], Columns(), [])[0]
    Columns(text='Kommentar', pair=None, label='Note')
    """
    names = [str(name) for name in (records[0] if records else ()) if name not in ("id", "split")]
    text_known = {
        name for each in usual for name in (*each.text, *each.pair, *chain.from_iterable(each.pairs))
    }
    label_known = set(usual[-1].label) if usual else set[str]()
    notes = []
    if given.text is None and not text_known & {*names}:
        words = {
            name: fmean(len(str(record.get(name) or "").split()) for record in records) for name in names
        }
        longest = max(words, key=words.__getitem__, default=None)
        if longest is not None and words[longest] >= LEAST_WORDS:
            refuse_rows_as_names(records, longest, where)
            given = given._replace(text=longest)
            notes.append(f"the text is column {longest!r}")
    text = given.text or next((name for name in names if name in text_known), None)
    rest = [name for name in names if name != text]
    if text is not None and given.label is None and not label_known & {*rest} and len(rest) == 1:
        given = given._replace(label=rest[0])
        notes.append(f"the label is column {rest[0]!r}")
    return given, tuple(notes)
