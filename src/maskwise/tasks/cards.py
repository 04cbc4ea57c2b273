"""Cards of published tasks (cards.yaml), and the records of their files as one row of columns.

A card is data: what is read, how it is shown to a model, how answers are scored, whose it is. Its loader is
``loading.load_task``, whose arguments it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml

from maskwise.errors import unknown_name
from maskwise.tasks.questions import CHOICES, choices_of
from maskwise.text.labelled import Record


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


def flat(record: Record) -> Record:
    """A question that is an object, as AI2 publishes them, as the columns in it; its text is its stem."""
    inside = record.get("question")
    return {**inside, **record, "question": inside.get("stem", "")} if isinstance(inside, dict) else record
