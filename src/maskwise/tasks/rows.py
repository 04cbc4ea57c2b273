"""Records → rows: which columns hold the text and the label, what counts as unlabelled, what is no row at
all.

Labels are text from here on: 3, "3" and 3.0 (as Parquet makes of integers beside missing ones) are one class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.tasks.readers import Record

Kind = Literal["sequence-classification", "token-classification"]
Row = dict[str, Any]

KINDS = ("sequence-classification", "token-classification")
TEXT_FIELDS = ("text", "sentence", "sentence1", "premise", "question1", "question", "utterance", "content")
PAIR_FIELDS = ("text_pair", "sentence2", "hypothesis", "question2")
LABEL_FIELDS = ("label", "labels", "category", "intent", "class")
TOKEN_FIELDS = ("tokens", "words")
TAG_FIELDS = ("tags", "upos", "pos_tags", "ner_tags", "labels", "label")
UNLABELLED, EMPTY = "no label", "no text"


class Fields(NamedTuple):
    """Names of columns; those that the user does not give are looked for among the usual ones."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


def kind_of(record: Record, given: Fields) -> Kind:
    """Token classification where there is a list of tokens, else sequence classification."""
    names = (given.text,) if given.text else TOKEN_FIELDS
    tokens = any(isinstance(record.get(name), list) for name in names)
    return "token-classification" if tokens else "sequence-classification"


def find_fields(kind: Kind, record: Record, given: Fields, where: str) -> Fields:
    """The columns of records like this one.

    Raises:
        MaskwiseError: a given column is not there, or none of the usual ones is.
    """
    token = kind == "token-classification"
    texts, labels = (TOKEN_FIELDS, TAG_FIELDS) if token else (TEXT_FIELDS, LABEL_FIELDS)
    text = _pick("text", given.text, texts, record, where)
    pair = None if token else _pick("pair", given.pair, PAIR_FIELDS, record, where)
    label = _pick("label", given.label, [name for name in labels if name != text], record, where)
    for what, column, usual in (("text", text, texts), ("label", label, labels)):
        if column is None:
            do = f"name it with {what}_field; looked for {', '.join(usual)}"
            raise MaskwiseError(f"{where} has no {what} column", got=", ".join(map(str, record)), do=do)
    return Fields(text, pair, label)


def _pick(what: str, given: str | None, usual: Iterable[str], record: Record, where: str) -> str | None:
    if given is not None and given not in record:
        raise unknown_name(f"{what} column of {where}", given, map(str, record))
    return given or next((name for name in usual if name in record), None)


def make_row(kind: Kind, record: Record, fields: Fields, where: str) -> Row | str:
    """The row of a record, or why it is skipped (``UNLABELLED``, ``EMPTY``).

    Raises:
        MaskwiseError: text that is no text, several labels, or tokens and tags that differ in number.
    """
    make = _token_row if kind == "token-classification" else _text_row
    return make(record, fields, where)


def _text_row(record: Record, fields: Fields, where: str) -> Row | str:
    text, label = record.get(fields.text or ""), record.get(fields.label or "")
    pair = record.get(fields.pair) if fields.pair else None
    for value in (text, pair) if fields.pair else (text,):
        if not isinstance(value, str):
            raise MaskwiseError(f"{where}: the text is no text", got=type(value).__name__, allowed="a string")
    if isinstance(label, list | dict):
        do = "tasks with several labels a row are not supported"
        raise MaskwiseError(f"{where}: a row has one label", got=label, do=do)
    name = _class_name(label)
    if name is None:
        return UNLABELLED
    return {"text": text, "pair": pair, "label": name} if str(text).strip() else EMPTY


def _token_row(record: Record, fields: Fields, where: str) -> Row | str:
    tokens, tags = record.get(fields.text or ""), record.get(fields.label or "")
    if tags is None:
        return UNLABELLED
    if not isinstance(tokens, list) or not isinstance(tags, list):
        got = f"{type(tokens).__name__} and {type(tags).__name__}"
        raise MaskwiseError(f"{where}: tokens and tags must be lists", got=got)
    if not all(isinstance(token, str) for token in tokens):
        raise MaskwiseError(f"{where}: a token is no text", got=tokens)
    if len(tokens) != len(tags):
        raise MaskwiseError(
            f"{where}: tokens and tags differ in number", got=f"{len(tokens)} and {len(tags)}"
        )
    names = [_class_name(tag) for tag in tags]
    if not tokens:
        return EMPTY
    return UNLABELLED if None in names else {"tokens": tokens, "tags": names}


def _class_name(value: Any) -> str | None:
    """A class as text; None for "not labelled": empty, or −1, which is how hidden labels are published."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    return None if text in ("", "-1", "nan") else text


def class_names(kind: Kind, rows: list[Row], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
    """The classes of the training rows, sorted.

    Raises:
        MaskwiseError: fewer than two, or so many that they cannot be classes.
    """
    if kind == "token-classification":
        labels = sorted({tag for row in rows for tag in row["tags"]})
    else:
        labels = sorted({row["label"] for row in rows})
        if len(labels) > max(20, len(rows) // 2):
            got = f"{len(labels)} different labels in {len(rows)} rows"
            raise MaskwiseError(f"the labels of {where} are no classes", got=got, do="check the label column")
    if len(labels) < 2:
        got = f"only {labels[0]!r}" + (f", skipped {counted(skipped)}" if skipped else "")
        do = "check the label column (empty and −1 mean: not labelled)"
        raise MaskwiseError(f"{where} needs at least two classes", got=got, do=do)
    return tuple(labels)


def counted(skipped: Mapping[str, int]) -> str:
    """ "3 × test: no label, …" """
    return ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
