"""Records → rows: what kind of task they are, which columns hold the text and the label, what counts as
unlabelled, what is no row at all.

Labels are text from here on: 3, "3" and 3.0 (as Parquet makes of integers beside missing ones) are one class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.tasks.questions import UNLABELLED, choice_row, has_choices, marked_row
from maskwise.tasks.readers import Record

Kind = Literal[
    "sequence-classification", "token-classification", "similarity", "question-answering", "multiple-choice",
    "zero-shot-similarity", "sentence-embedding",
]  # fmt: skip
Row = dict[str, Any]

KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = ("sequence-classification", "sentence-embedding")
SCORES = ("similarity", "zero-shot-similarity")
FROZEN = ("zero-shot-similarity", "sentence-embedding")
"""Kinds that leave the encoder as it is: nothing is fine-tuned, and nothing is random."""

_CLASSES = ("accuracy", "macro-f1", "matthews")
METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "sequence-classification": _CLASSES,
    "token-classification": (*_CLASSES, "entity-f1"),
    "similarity": ("spearman", "pearson"),
    "question-answering": ("f1", "exact-match"),
    "multiple-choice": ("accuracy",),
    "zero-shot-similarity": ("spearman", "pearson"),
    "sentence-embedding": _CLASSES,
}
"""The metrics of every kind; the first is the usual one."""

TEXT_FIELDS = ("text", "sentence", "sentence1", "premise", "question1", "question", "utterance", "content")
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("sentence_A", "sentence_B"), ("s1", "s2"), ("text_a", "text_b"),
    ("#1 String", "#2 String"),
)  # fmt: skip
PAIR_FIELDS = ("text_pair", "sentence2", "hypothesis", "question2")
LABEL_FIELDS = ("label", "labels", "category", "intent", "class", "gold_label", "is_duplicate", "Quality")
SCORE_FIELDS = ("score", "similarity_score", "relatedness_score", "similarity")
TOKEN_FIELDS = ("tokens", "words")
TAG_FIELDS = ("tags", "upos", "pos_tags", "ner_tags", "labels", "label")
EMPTY = "no text"


class Fields(NamedTuple):
    """Names of columns; those that the user does not give are looked for among the usual ones.

    Of questions about a context, ``text`` is the context, ``pair`` the question and ``label`` the answers; of
    questions with choices, ``text`` is the question, ``pair`` the context, if there is one, and ``label`` says
    which choice is right.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None


class _Usual(NamedTuple):
    """Columns to look for, and whether there must be a second text."""

    text: Sequence[str]
    pair: Sequence[str]
    label: Sequence[str]
    needs_pair: bool = False


_USUAL: Mapping[str, _Usual] = {
    "token-classification": _Usual(TOKEN_FIELDS, (), TAG_FIELDS),
    **dict.fromkeys(CLASSES, _Usual(TEXT_FIELDS, PAIR_FIELDS, LABEL_FIELDS)),
    **dict.fromkeys(SCORES, _Usual(TEXT_FIELDS, PAIR_FIELDS, (*SCORE_FIELDS, "label"), needs_pair=True)),
    "question-answering": _Usual(
        ("context", "paragraph", "passage"), ("question",), ("answers", "answer"), needs_pair=True
    ),
    "multiple-choice": _Usual(
        ("question", "premise", "sentence", "text", "startphrase"), ("context", "passage", "article"),
        ("answer", "label", "answerKey", "gold", "correct"),
    ),
}  # fmt: skip


def kind_of(records: Sequence[Record], given: Fields) -> Kind:
    """The kind that columns show by themselves: lists of tokens, choices, answers to a context, scores of pairs."""
    record = records[0] if records else {}
    names = (given.text,) if given.text else TOKEN_FIELDS
    if any(isinstance(record.get(name), list) for name in names):
        return "token-classification"
    if has_choices(record):
        return "multiple-choice"
    if {"context", "question"} <= set(record) and {"answers", "answer"} & set(record) and not given.label:
        return "question-answering"
    _, pair = _texts(record, given)
    if pair and pair in record:
        usual = [name for name in ("label", *SCORE_FIELDS) if name in record]
        label = given.label or next(iter(usual), None)
        if label in SCORE_FIELDS or (label in record and any(_is_fraction(r.get(label)) for r in records)):
            return "similarity"
    return "sequence-classification"


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and not value.is_integer()


def _texts(record: Mapping[str, Any], given: Fields) -> tuple[str | None, str | None]:
    """The columns of a pair of texts: given, or two that are known to belong together."""
    if given.text or given.pair:
        return given.text, given.pair
    return next(((a, b) for a, b in PAIRS if a in record and b in record), (None, None))


def find_fields(kind: Kind, record: Record, given: Fields, where: str) -> Fields:
    """The columns of records like this one.

    Raises:
        MaskwiseError: a given column is not there, or none of the usual ones is.
    """
    usual = _USUAL[kind]
    known = _texts(record, given) if usual.text is TEXT_FIELDS else (None, None)
    text = _pick("text", given.text or known[0], usual.text, record, where)
    pair = _pick("pair", given.pair or known[1], [name for name in usual.pair if name != text], record, where)
    label = _pick("label", given.label, [n for n in usual.label if n not in (text, pair)], record, where)
    wanted = [("text", text, usual.text), ("label", label, usual.label)]
    for what, column, names in [*wanted, ("pair", pair, usual.pair)] if usual.needs_pair else wanted:
        if column is None:
            do = f"name it with {what}=…; looked for {', '.join(names)}"
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
    if kind == "token-classification":
        return _token_row(record, fields, where)
    text, pair, label = (record.get(column) if column else None for column in fields)
    if kind == "question-answering":
        return marked_row(text, pair, label, where)
    if kind == "multiple-choice":
        return choice_row(record, text, pair, label, where)
    return _text_row(record, fields, where, scores=kind in SCORES)


def _text_row(record: Record, fields: Fields, where: str, *, scores: bool) -> Row | str:
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
    if not str(text).strip():
        return EMPTY
    return {"text": text, "pair": pair, **({"score": _number(name, where)} if scores else {"label": name})}


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MaskwiseError(f"{where}: the score is no number", got=text, do="check the label column")
    return value


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
    """The classes of the training rows, sorted; none where answers are no classes.

    Raises:
        MaskwiseError: fewer than two, or so many that they cannot be classes; scores that are all equal.
    """
    if kind in ("question-answering", "multiple-choice"):
        return ()
    if kind == "token-classification":
        labels = sorted({tag for row in rows for tag in row["tags"]})
    else:
        labels = sorted({str(row["score"] if kind in SCORES else row["label"]) for row in rows})
        if len(labels) > max(20, len(rows) // 2) and kind not in SCORES:
            got = f"{len(labels)} different labels in {len(rows)} rows"
            raise MaskwiseError(f"the labels of {where} are no classes", got=got, do="check the label column")
    if len(labels) < 2:
        got = f"only {labels[0]!r}" + (f", skipped {counted(skipped)}" if skipped else "")
        do = "check the label column (empty and −1 mean: not labelled)"
        many = "different scores" if kind in SCORES else "classes"
        raise MaskwiseError(f"{where} needs at least two {many}", got=got, do=do)
    return () if kind in SCORES else tuple(labels)


def texts_of(row: Row) -> tuple[str, ...]:
    """The texts that a row shows to a model, for those who look for them elsewhere."""
    if "tokens" in row:
        return (" ".join(row["tokens"]),)
    names = ("context", "question") if "question" in row else ("text", "pair")
    return tuple(row[name] for name in names if row[name] is not None)


def counted(skipped: Mapping[str, int]) -> str:
    """ "3 × test: no label, …" """
    return ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
