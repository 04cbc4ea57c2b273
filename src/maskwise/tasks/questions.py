"""Records of questions → rows: an answer to mark in a context, or a choice to take.

Both are published in half a dozen layouts; from here on there is one of each:

- {"context", "question", "answers": texts, "starts": characters}: SQuAD's, its JSON or the hub's columns. A start
  that is a little off is mended (the nearest place in the context counts); an answer that is nowhere is refused,
  for it can be neither learned nor found;
- {"context" or None, "question", "choices": texts, "label": place}: choices as a list, as the hub's
  {"label", "text"}, or in numbered columns (ending0, ending1, …). The right one may be named by its place from 0,
  by a letter, or by its text; where a text and a place could both be meant, the text counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from maskwise.errors import MaskwiseError

CHOICES = ("choices", "options", "endings")
_NUMBERED = re.compile(r"(ending|choice|option)_?\d+")
NO_ANSWER, UNLABELLED = "no answer", "no label"


def has_choices(record: Mapping[str, Any]) -> bool:
    """Whether a record is a question with choices."""
    return any(isinstance(record.get(name), list | dict) for name in CHOICES) or bool(_numbered(record))


def marked_row(context: Any, question: Any, answers: Any, where: str) -> Any:
    """The row of a question whose answer stands in a context, or why it is skipped.

    Raises:
        MaskwiseError: a context or question that is no text, an answer that is not in the context.
    """
    for name, value in (("context", context), ("question", question)):
        if not isinstance(value, str) or not value.strip():
            raise MaskwiseError(f"{where}: the {name} is no text", got=repr(value), allowed="a string")
    found = [(text, start) for text, start in _answers(answers, where) if text.strip()]
    if not found:
        return NO_ANSWER
    starts = [_place(context, text, start, where) for text, start in found]
    return {
        "context": context,
        "question": question,
        "answers": [text for text, _ in found],
        "starts": starts,
    }


def _answers(value: Any, where: str) -> list[tuple[str, int | None]]:
    """(text, start or None) of {"text": […], "answer_start": […]}, of a list of such for one, or of plain texts."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
        pairs = list(zip(texts or (), starts if starts else [None] * len(texts or ())))
    else:
        each = value if isinstance(value, list | tuple) else [value] if value is not None else []
        pairs = [
            (x.get("text"), x.get("answer_start")) if isinstance(x, Mapping) else (x, None) for x in each
        ]
    for text, start in pairs:
        if not isinstance(text, str) or not isinstance(start, int | None):
            allowed = '{"text": […], "answer_start": […]}, or texts'
            raise MaskwiseError(f"{where}: cannot read the answers", got=value, allowed=allowed)
    return pairs


def _place(context: str, text: str, start: int | None, where: str) -> int:
    """Where an answer begins: as said, or else at the nearest place where it stands."""
    if start is not None and context[start : start + len(text)] == text and start >= 0:
        return start
    places = [found.start() for found in re.finditer(re.escape(text), context)]
    if not places:
        do = "mend or remove the row"
        raise MaskwiseError(f"{where}: the answer is not in the context", got=text[:60], do=do)
    return min(places, key=lambda place: abs(place - (start or 0)))


def choice_row(record: Mapping[str, Any], question: Any, context: Any, answer: Any, where: str) -> Any:
    """The row of a question with choices, or why it is skipped.

    Raises:
        MaskwiseError: no text, fewer than two choices, an answer that is none of them.
    """
    names, texts = _choices(record)
    for name, value in (("question", question), ("context", context), *(("choice", text) for text in texts)):
        if not isinstance(value, str) and (name != "context" or value is not None):
            raise MaskwiseError(f"{where}: the {name} is no text", got=repr(value), allowed="a string")
    if len(texts) < 2:
        raise MaskwiseError(f"{where}: a question needs at least two choices", got=len(texts))
    if answer is None or str(answer).strip() in ("", "-1"):
        return UNLABELLED
    right = _right(answer, names, texts)
    if right is None:
        allowed = "a place from 0, a letter from A, or the text of a choice"
        raise MaskwiseError(
            f"{where}: the answer is none of {len(texts)} choices", got=answer, allowed=allowed
        )
    return {"context": context or None, "question": question, "choices": texts, "label": right}


def _choices(record: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Names of the choices (may be none) and their texts."""
    value = next((record[name] for name in CHOICES if isinstance(record.get(name), list | dict)), None)
    if isinstance(value, dict):
        return [str(name) for name in value.get("label") or ()], list(value.get("text") or ())
    return [], value if value is not None else [record[name] for name in _numbered(record)]


def _numbered(record: Mapping[str, Any]) -> list[str]:
    found = [name for name in record if _NUMBERED.fullmatch(str(name))]
    return sorted(found, key=lambda name: int(re.findall(r"\d+", name)[0]))


def _right(answer: Any, names: list[str], texts: list[str]) -> int | None:
    """The place of the right choice."""
    said = str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer).strip()
    stripped = [text.strip() for text in texts]
    for known in (names, stripped if isinstance(answer, str) else []):
        if said in known:
            return known.index(said)
    letter = len(said) == 1 and said.isalpha()
    place = ord(said.upper()) - ord("A") if letter else int(said) if said.isdecimal() else -1
    return place if 0 <= place < len(texts) else None
