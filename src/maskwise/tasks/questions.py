"""Kinds of tasks that answer questions by a span of a context, or by one of several choices.

Published data has half a dozen layouts. Answers of ``MarkedRow`` are those of SQuAD's JSON or of
the hub's columns: a start that is slightly off is moved to the nearest occurrence, and an answer
that does not occur is refused. The right choice of ``ChoiceRow`` is named by its text, its place
from 0, or a letter; a text counts before a place.

A context that does not fit is cut into windows that share a quarter of their room with the next
one, so that an answer up to that length is whole in one of them. Training marks the answer where
it is whole and [CLS] elsewhere; the best span of all windows of a question is its answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.objectives import Classification, MultipleChoice, SpanQuestionAnswering
from maskwise.tasks.columns import (
    NO_ANSWER,
    NO_LABEL,
    Columns,
    Records,
    UsualColumns,
    choices_of,
    label_of,
    require_text,
    right_choice,
)
from maskwise.tasks.metrics import normalise
from maskwise.tasks.task import Row, Rows, Task, TaskKind
from maskwise.tasks.tensors import Batch, Cutter, Data, Flat, batches, edges, places_of
from maskwise.text.labelled import Record

MAX_ANSWER_TOKENS = 30
# Both as in BERT's SQuAD code; in short windows a question gets at most half of the room.
MAX_QUESTION_TOKENS = 64

# Answers in words


def read_answers(value: object, where: str) -> list[tuple[str, int | None]]:
    """(text, start or None) of {"text": […], "answer_start": […]}, of a list of single such
    objects, or of plain texts. Blank answers are left out.
    """
    pairs: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts or ()
        starts = [starts] if isinstance(starts, int) else starts or [None] * len(texts)
        pairs += zip(texts, starts)
    else:
        for answer in value if isinstance(value, list | tuple) else [value]:
            if isinstance(answer, Mapping):
                pairs.append((answer.get("text"), answer.get("answer_start")))
            elif answer is not None:
                pairs.append((answer, None))
    answers = []
    for text, start in pairs:
        if not isinstance(text, str) or not isinstance(start, int | None):
            allowed = '{"text": […], "answer_start": […]}, or texts'
            raise MaskwiseError(f"{where}: cannot read the answers", got=value, allowed=allowed)
        if text.strip():
            answers.append((text, start))
    return answers


def relation_of(record: Record) -> str:
    """What a question asks for, if a column such as LAMA's says so."""
    for name in ("relation", "predicate_id", "predicate", "pred", "property"):
        if isinstance(record.get(name), str):
            return str(record[name])
    return ""


def gold_texts(task: Task, split: str) -> list[Sequence[str]]:
    """All right answers of every row."""
    return [row.rights for row in task.splits[split]]


def answer_baseline(task: Task) -> float:
    """The best score of three guesses: the most frequent answer of train, the one to the same
    relation, or any answer of train to the relation.
    """
    by_relation: dict[str, Counter[str]] = {}
    for row in task.splits["train"]:
        by_relation.setdefault(row.relation, Counter())[row.rights[0]] += 1
    overall: Counter[str] = sum(by_relation.values(), Counter())
    most = overall.most_common(1)[0][0]
    frequent = {name: known.most_common(1)[0][0] for name, known in by_relation.items()}
    rows = task.splits["test"]
    always = task.score("test", [most] * len(rows))
    by_row = task.score("test", [frequent.get(row.relation, most) for row in rows])
    return max(always, by_row, _any_answer(task))


def _any_answer(task: Task) -> float:
    """Share of test rows answered correctly by a random answer of train to the same relation."""
    known: dict[str, set[str]] = {}
    for row in task.splits["train"]:
        known.setdefault(row.relation, set()).update(map(normalise, row.rights))
    shares = []
    for row in task.splits["test"]:
        possible = known.get(row.relation, set())
        right = possible.intersection(map(normalise, row.rights))
        shares.append(len(right) / max(1, len(possible)))
    return float(np.mean(shares))


# Spans


@dataclass(frozen=True)
class MarkedRow(Row):
    """A question, and all right answers with the characters where they begin in the context."""

    shown = ("context", "question")

    context: str
    question: str
    answers: list[str]
    starts: list[int]

    @property
    def rights(self) -> Sequence[str]:
        return self.answers


def _has_context(records: Records, given: Columns) -> bool:
    names = set(records[0])
    has_answers = bool({"answers", "answer"} & names)
    return {"context", "question"} <= names and has_answers and not given.label


def _marked_row(record: Record, columns: Columns, where: str) -> MarkedRow | str:
    context, question, answers = (record.get(column or "") for column in columns)
    context = require_text(context, "context", where, filled=True)
    question = require_text(question, "question", where, filled=True)
    pairs = read_answers(answers, where)
    if not pairs:
        return NO_ANSWER
    starts = [_start(context, text, start, where) for text, start in pairs]
    return MarkedRow(context, question, [text for text, _ in pairs], starts)


def _start(context: str, text: str, start: int | None, where: str) -> int:
    """Where an answer begins: the occurrence nearest to the given start, or the first one."""
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if not places:
        do = "mend or remove the row"
        raise MaskwiseError(f"{where}: the answer is not in the context", got=text[:60], do=do)
    return min(places, key=lambda place: abs(place - (start or 0)))


def _encode_windows(task: Task, split: str, cutter: Cutter) -> Windows:
    rows = task.splits[split]
    backend = cutter.backend
    room = cutter.max_length - backend.num_special_tokens_to_add(is_pair=True)
    backend.no_truncation()
    texts = [row.question for row in rows]
    questions = _cut(texts, backend, min(MAX_QUESTION_TOKENS, room // 2))
    backend.enable_truncation(cutter.max_length, stride=room // 4, strategy="only_second")
    pairs = [(question, row.context) for question, row in zip(questions, rows, strict=True)]
    encodings: list[Encoding] = []
    targets: list[tuple[int, int]] = []
    question = []
    for number, first in enumerate(backend.encode_batch(pairs)):
        windows = [first, *first.overflowing]
        encodings += windows
        targets += _targets(rows[number], windows)
        question += [number] * len(windows)
    flat = Flat.of(encodings, cutter.pad)
    offsets = np.concatenate([np.array(e.offsets, dtype=np.int64) for e in encodings])
    # The context is sequence 1; special tokens have none, which numpy reads as nan.
    sequence = np.concatenate([np.array(e.sequence_ids, dtype=np.float64) for e in encodings])
    span = torch.from_numpy(np.where(sequence[:, None] == 1, offsets, -1))
    return Windows(flat, torch.tensor(targets), torch.tensor(question), span, rows)


def _cut(questions: list[str], backend: Tokenizer, limit: int) -> list[str]:
    """Questions of at most ``limit`` tokens."""
    encodings = backend.encode_batch(questions, add_special_tokens=False)
    return [
        text[: e.offsets[limit - 1][1]] if len(e) > limit else text
        for text, e in zip(questions, encodings)
    ]


def _targets(row: MarkedRow, windows: Sequence[Encoding]) -> list[tuple[int, int]]:
    """First and last token of the first right answer in every window that holds as much of it as
    any window does; (0, 0) for the others.
    """
    first = row.starts[0]
    last = first + len(row.answers[0])
    inside = []
    for window in windows:
        spans = zip(window.sequence_ids, window.offsets)
        # The context is sequence 1.
        inside.append(
            [
                column
                for column, (sequence, (begin, end)) in enumerate(spans)
                if sequence == 1 and begin < last and end > first
            ]
        )
    most = max(map(len, inside))
    return [
        (columns[0], columns[-1]) if columns and len(columns) == most else (0, 0)
        for columns in inside
    ]


@dataclass(frozen=True, eq=False)
class Windows(Data):
    """Q questions in N windows.

    Attributes:
        targets: (N, 2) places of the first and last token of the answer; (0, 0) without one.
        question: (N,) the question of every window.
        span: (T, 2) first and last character of the context in every token; −1 outside of it.
        rows: the questions.
    """

    targets: Tensor
    question: Tensor
    span: Tensor
    rows: Rows

    @property
    def lost(self) -> int:
        """Questions whose answer is marked in none of their windows."""
        marked = self.question[self.targets.any(1)]
        return len(self.rows) - len(marked.unique())

    def batch(self, rows: Tensor) -> Batch:
        """The inputs of ``Flat.batch``, and labels (B, 2)."""
        return {**self.flat.batch(rows), "labels": self.targets[rows]}

    def answers(self, objective: Classification, device: torch.device) -> list[str]:
        """The text of the best span of every question, over all of its windows."""
        best = [-math.inf] * len(self.rows)
        answers = [""] * len(self.rows)
        for rows, batch in batches(self, device):
            at, real = self.flat.at(rows)
            context = (real & (self.span[at, 0] >= 0)).to(device)
            logits = objective.logits(batch).float().masked_fill(~context.unsqueeze(-1), -math.inf)
            values, first, last = best_spans(*logits.unbind(-1))
            start = self.flat.starts[rows]
            begin = self.span[start + first.cpu(), 0].tolist()
            end = self.span[start + last.cpu(), 1].tolist()
            questions = self.question[rows].tolist()
            for question, value, *span in zip(questions, values.tolist(), begin, end):
                if value > best[question]:
                    best[question] = value
                    answers[question] = self.rows[question].context[slice(*span)].strip()
        return answers


def best_spans(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and last place (B,) of the span with the greatest start + end (B, L), of up to
    ``MAX_ANSWER_TOKENS`` tokens.
    """
    reach = torch.nn.functional.pad(end, (0, MAX_ANSWER_TOKENS - 1), value=-math.inf)
    sums = start.unsqueeze(-1) + reach.unfold(1, MAX_ANSWER_TOKENS, 1)
    value, place = sums.flatten(1).max(1)
    first = place // MAX_ANSWER_TOKENS
    return value, first, first + place % MAX_ANSWER_TOKENS


QUESTION_ANSWERING = TaskKind(
    # A start and an end score of every token.
    # Rajpurkar et al. 2016; Devlin et al. 2019, section 4.2
    name="question-answering",
    metrics=("f1", "exact-match"),
    columns=UsualColumns(
        ("context", "paragraph", "passage"), ("question",), ("answers", "answer"), needs_pair=True
    ),
    row=_marked_row,
    gold=gold_texts,
    baseline=answer_baseline,
    recognises=_has_context,
    head="question-answering",
    objective=SpanQuestionAnswering,
    encode=_encode_windows,
    config={"num_labels": 2},
    windows=True,
    least_tokens=(True, 8),  # windows share a quarter of their room, which must be a token
)

# Choices


@dataclass(frozen=True)
class ChoiceRow(Row):
    """A question with its choices; ``label`` is the place of the right one."""

    shown = ("context", "question")

    context: str | None
    question: str
    choices: list[str]
    label: int


def _has_choices(records: Records, given: Columns) -> bool:
    return bool(choices_of(records[0])[1])


def _choice_row(record: Record, columns: Columns, where: str) -> ChoiceRow | str:
    question = require_text(record.get(columns.text or ""), "question", where)
    context = record.get(columns.pair or "")
    if context is not None:
        require_text(context, "context", where)
    answer = record.get(columns.label or "")
    names, choices = choices_of(record)
    texts = [require_text(choice, "choice", where) for choice in choices]
    if len(texts) < 2:
        raise MaskwiseError(f"{where}: a question needs at least two choices", got=len(texts))
    label = label_of(answer)
    if label is None:
        return NO_LABEL
    right = right_choice(label, names, texts, may_be_text=isinstance(answer, str))
    if right is None:
        what = f"{where}: the answer is none of {len(texts)} choices"
        allowed = "a place from 0, a letter from A, or the text of a choice"
        do = f"if it stands for no answer, say so: missing={label!r}"
        raise MaskwiseError(what, got=answer, allowed=allowed, do=do)
    return ChoiceRow(context or None, question, texts, right)


def _gold_choices(task: Task, split: str) -> NDArray[np.int64]:
    return np.array([row.label for row in task.splits[split]], dtype=np.int64)


def _choice_baseline(task: Task) -> float:
    """The score of random choices."""
    return float(np.mean([1 / len(row.choices) for row in task.splits["test"]]))


def _encode_choices(task: Task, split: str, cutter: Cutter) -> Choices:
    """One sequence a choice: [context and question, choice]. The longer text is cut first."""
    rows = task.splits[split]
    pairs = [(" ".join(row.texts), choice) for row in rows for choice in row.choices]
    starts = edges([len(row.choices) for row in rows])
    return Choices(cutter.flat(pairs), starts, torch.from_numpy(task.gold(split)))


@dataclass(frozen=True, eq=False)
class Choices(Data):
    """N questions, S sequences in all.

    Attributes:
        starts: (N + 1,) the sequences of the first choice of each question.
        gold: (N,) the right choice.
    """

    starts: Tensor
    gold: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.flat.starts[self.starts].diff()

    def batch(self, rows: Tensor) -> Batch:
        """The inputs of ``Flat.batch`` for all choices; ``choices`` (B, C), their places in it, −1
        for none; labels (B,).
        """
        at, real = places_of(self.starts, rows)
        sequences = at[real]
        places = torch.full(real.shape, -1)
        places[real] = torch.arange(len(sequences))
        return {**self.flat.batch(sequences), "choices": places, "labels": self.gold[rows]}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """(N,) the choice with the best score."""
        answers = torch.empty(len(self), dtype=torch.long)
        for rows, batch in batches(self, device):
            answers[rows] = objective.logits(batch).argmax(-1).cpu()
        return answers


MULTIPLE_CHOICE = TaskKind(
    # A score of every choice, read with its question, and a softmax over choices.
    # Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4 (SWAG)
    name="multiple-choice",
    metrics=("accuracy",),
    columns=UsualColumns(
        ("question", "premise", "sentence", "text", "startphrase"),
        ("context", "passage", "article"),
        ("answer", "label", "answerKey", "gold", "correct"),
    ),
    row=_choice_row,
    gold=_gold_choices,
    baseline=_choice_baseline,
    recognises=_has_choices,
    head="multiple-choice",
    objective=MultipleChoice,
    encode=_encode_choices,
    least_tokens=(True, 2),
)
