"""Kinds of tasks that answer a question with a span of its context, or with one of its choices.

In a ``MarkedRow``, the answers are spans of the context, read from SQuAD's JSON or from the hub's
columns. If the start of an answer in the file is wrong, the nearest occurrence of the answer in the
context is used. An answer that does not occur in the context is an error. In a ``ChoiceRow``, one
choice is correct, which the file identifies by its text, a letter, or its number. Whether numbers
begin at 0 or at 1 follows from all of them (``with_first``). A number that is also the text of a
choice means this choice, not its place.

A long context is split into windows. Neighbouring windows overlap by a quarter of their tokens, not
counting special tokens. An answer that is no longer than the overlap is therefore complete in at
least one window. The training target is the answer in the windows that contain the most of it, and
[CLS] in all other windows. The model's answer is the best span over all windows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from maskwise.base.errors import MaskwiseError, refuse_version
from maskwise.masking.line import Names
from maskwise.objectives.base import Classification, MultipleChoice, SpanQuestionAnswering
from maskwise.tasks.columns import (
    NO_ANSWER,
    NO_LABEL,
    ColumnNames,
    UsualColumns,
    choices_of,
    label_of,
    numbered_choices,
    read_answers,
    require_text,
    right_choice,
)
from maskwise.tasks.metrics import normalise
from maskwise.tasks.splits import ANSWERS, CONTEXT
from maskwise.tasks.task import MakeRow, Row, Task, TaskKind, TaskRows
from maskwise.tasks.tensors import (
    Cutter,
    Data,
    Flat,
    TaskBatch,
    batches_by_length,
    edges,
    note_of_cuts,
    places_of,
)
from maskwise.text.tables import FieldValues

# The limits in BERT's SQuAD code. A question never gets more than half of the tokens of a window.
MAX_ANSWER_TOKENS, MAX_QUESTION_TOKENS = 30, 64
LabelledRecords: TypeAlias = Iterable[tuple[FieldValues, ColumnNames]]

# Answers in words


def relation_of(record: FieldValues) -> str:
    """Return the relation that a question asks for, from LAMA's columns; "" if there is none."""
    for name in ("relation", "predicate_id", "predicate", "pred", "property"):
        value = record.get(name)
        if isinstance(value, str):
            return value
    return ""


def passage_of(record: FieldValues) -> str:
    """Return the text about a question, from the column for contexts; "" if there is none."""
    for name in CONTEXT:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return ""


def gold_texts(task: Task, split: str) -> list[Sequence[str]]:
    """Return all correct answers for each row."""
    return [row.rights for row in task.splits[split]]


def answer_baseline(task: Task) -> float:
    """Return the best test score of three guesses that ignore the text.

    The guesses are train's most frequent answer, the most frequent answer for the question's
    relation, and a random training answer for this relation.
    """
    by_relation: dict[str, Counter[str]] = {}
    for row in task.splits["train"]:
        by_relation.setdefault(row.relation, Counter())[row.rights[0]] += 1
    overall: Counter[str] = sum(by_relation.values(), Counter())
    most, _ = overall.most_common(1)[0]
    frequent = {}
    for relation, answers in by_relation.items():
        frequent[relation], _ = answers.most_common(1)[0]
    rows = task.splits["test"]
    always = task.score("test", [most] * len(rows))
    by_row = task.score("test", [frequent.get(row.relation, most) for row in rows])
    return max(always, by_row, _any_answer(task))


def _any_answer(task: Task) -> float:
    """Return the expected score of a random training answer for the question's relation."""
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
    """A question, its context, and the correct answers with their offsets in the context."""

    shown = ("context", "question")

    context: str
    question: str
    answers: list[str]
    starts: list[int]


def _marked_row(record: FieldValues, columns: ColumnNames, where: str) -> MarkedRow | str:
    context, question, cell = columns.cells(record)
    require_text(context, "context", where, filled=True)
    require_text(question, "question", where, filled=True)
    answers = []
    starts = []
    for text, start in read_answers(cell, where):
        answers.append(text)
        starts.append(_start(context, text, start, where))
    if not answers:
        return NO_ANSWER
    return MarkedRow(context, question, answers, starts)


def _start(context: str, text: str, start: int | None, where: str) -> int:
    """Return the offset of the answer: the occurrence nearest to ``start``, or the first."""
    # The lookahead also finds overlapping occurrences: "anan" occurs twice in "ananan".
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if not places:
        raise MaskwiseError(
            f"{where}: the answer is not in the context", got=text[:60], do="fix or remove the row"
        )
    return min(places, key=lambda place: abs(place - (start or 0)))


def _encode_windows(task: Task, split: str, cutter: Cutter) -> Windows:
    rows = task.splits[split]
    backend = cutter.backend
    room = cutter.max_length - backend.num_special_tokens_to_add(is_pair=True)
    backend.no_truncation()
    texts = [row.question for row in rows]
    limit = min(MAX_QUESTION_TOKENS, room // 2)
    questions = _cut(texts, backend, limit)
    cut = sum(question != text for question, text in zip(questions, texts))
    backend.enable_truncation(cutter.max_length, stride=room // 4, strategy="only_second")
    pairs = [(question, row.context) for question, row in zip(questions, rows, strict=True)]
    encodings: list[Encoding] = []
    targets: list[tuple[int, int]] = []
    question = []
    spans = []
    encoded = backend.encode_batch(pairs)
    if any(len(encoding) >= cutter.max_length for encoding in encoded):
        # These versions leave out windows.
        use = f"task {task.name}, whose contexts are split into windows,"
        refuse_version("tokenizers", ("0.23.1", "0.23.2"), fixed="0.23.3", use=use)
    for number, encoding in enumerate(encoded):
        windows = [encoding, *encoding.overflowing]
        encodings += windows
        question += [number] * len(windows)
        spans_of_windows = [_context_spans(window) for window in windows]
        spans += spans_of_windows
        targets += _targets(rows[number], spans_of_windows)
    target_N = torch.tensor(targets)
    question_N = torch.tensor(question)
    # A question whose answer is in no window counts as lost.
    marked = question_N[target_N.any(1)].unique()
    return Windows(
        flat=Flat.of(encodings, cutter.pad),
        targets=target_N,
        question=question_N,
        span=torch.from_numpy(np.concatenate(spans)),
        rows=rows,
        cut=note_of_cuts("questions", cut, len(rows), limit),
        lost=len(rows) - len(marked),
    )


def _cut(questions: list[str], backend: Tokenizer, limit: int) -> list[str]:
    """Cut questions to at most ``limit`` tokens."""
    cut = []
    for text, encoding in zip(questions, backend.encode_batch(questions, add_special_tokens=False)):
        if len(encoding) > limit:
            _, end = encoding.offsets[limit - 1]
            text = text[:end]
        cut.append(text)
    return cut


def _context_spans(window: Encoding) -> NDArray[np.int64]:
    """Return the offsets (L, 2) of each token in the context; −1 for tokens of the question."""
    # The context is sequence 1. Special tokens have the sequence None, which becomes NaN in numpy.
    sequence = np.array(window.sequence_ids, dtype=np.float64)
    offsets = np.array(window.offsets, dtype=np.int64)
    return np.where(sequence[:, None] == 1, offsets, -1)


def _targets(row: MarkedRow, windows: Sequence[NDArray[np.int64]]) -> list[tuple[int, int]]:
    """Return the first and last token of the first correct answer in each window, or (0, 0).

    The answer is a target only in the windows that contain the most of it. In the other windows,
    (0, 0) is the target.
    """
    first = row.starts[0]
    last = first + len(row.answers[0])
    inside = []
    for span in windows:
        begin, end = span.T
        inside.append(np.flatnonzero((begin < last) & (end > first)))
    most = max(map(len, inside))
    targets = []
    for columns in inside:
        target = (0, 0)
        if most and len(columns) == most:
            target = (int(columns[0]), int(columns[-1]))
        targets.append(target)
    return targets


@dataclass(frozen=True, eq=False)
class Windows(Data):
    """Q questions in N windows.

    Attributes:
        targets: (N, 2) the positions of the answer's first and last token; (0, 0) if the window has
            no answer.
        question: (N,) the index of each window's question.
        span: (T, 2) the offsets of each token in the context; −1 for tokens of the question.
        rows: the questions.
        cut: a note if many questions were cut.
    """

    targets: Tensor
    question: Tensor
    span: Tensor
    rows: TaskRows
    cut: list[str]

    def notes(self) -> list[str]:
        return self.cut

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the inputs from ``Flat.batch``, and labels (B, 2)."""
        return {**self.flat.batch(rows), "labels": self.targets[rows]}

    def first_of(self, questions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first window of each question with the answer, or else its first window."""
        # Within a question, windows with the answer come first.
        order = np.lexsort([~self.targets.any(1), self.question])
        return order[np.searchsorted(self.question, questions)]

    def answers(self, objective: Classification, device: torch.device) -> list[str]:
        """Return the best span of each question, as a text. All windows of the question compete."""
        best = [-math.inf] * len(self.rows)
        answers = [""] * len(self.rows)
        for rows, batch in batches_by_length(self, device):
            at, real = self.flat.at(rows)
            context = (real & (self.span[at, 0] >= 0)).to(device)
            # Tokens outside the context have no answer text, so their scores become −∞.
            logits = objective.logits(batch).float().masked_fill(~context.unsqueeze(1), -math.inf)
            values, first, last = best_spans(*logits.unbind(1))
            offset = self.flat.starts[rows]
            begins = self.span[offset + first.cpu(), 0].tolist()
            ends = self.span[offset + last.cpu(), 1].tolist()
            questions = self.question[rows].tolist()
            for question, value, begin, end in zip(questions, values.tolist(), begins, ends):
                if value > best[question]:
                    best[question] = value
                    answers[question] = self.rows[question].context[begin:end].strip()
        return answers


def best_spans(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the span of up to ``MAX_ANSWER_TOKENS`` tokens with the largest start + end score.

    Returns:
        The score, the first token and the last token of the best span in each row, all (B,).
    """
    # (B, L, M): for each token, the end scores of this token and the next M − 1 tokens.
    padded = torch.nn.functional.pad(end, (0, MAX_ANSWER_TOKENS - 1), value=-math.inf)
    reach = padded.unfold(1, MAX_ANSWER_TOKENS, 1)
    sums = start.unsqueeze(-1) + reach
    value, place = sums.flatten(1).max(1)
    first = place // MAX_ANSWER_TOKENS
    return value, first, first + place % MAX_ANSWER_TOKENS


# A linear layer scores each token as the start and the end of the answer: Rajpurkar et al. 2016;
# Devlin et al. 2019, section 4.2.
QUESTION_ANSWERING = TaskKind(
    name="question-answering",
    metrics=("f1", "exact-match"),
    columns=UsualColumns(CONTEXT, ("question",), ANSWERS, needs_pair=True),
    row=_marked_row,
    gold=gold_texts,
    baseline=answer_baseline,
    head="question-answering",
    objective=SpanQuestionAnswering,
    encode=_encode_windows,
    config={"num_labels": 2},
    windows=True,
    # The overlap of windows is a quarter of their tokens, and must be at least one token.
    least_tokens=(True, 8),
)

# Choices


@dataclass(frozen=True)
class ChoiceRow(Row):
    """A question with its choices. ``label`` is the index, from 0, of the correct choice."""

    shown = ("context", "question")

    context: str | None
    question: str
    choices: list[str]
    label: int


def with_first(make: Callable[..., Row | str], records: LabelledRecords) -> tuple[MakeRow, Names]:
    """Decide from all answers whether choices are numbered from 0 or from 1.

    They are numbered from 1 if no answer is 0, and either an answer is the number of choices, or
    the choices are in columns that are numbered from 1.

    Args:
        make: makes a row; its argument ``first`` is the number of the first choice.
        records: all labelled records of the task.

    Returns:
        The function that makes rows, and a note if choices have numbers and none is 0.
    """
    numbers: set[int] = set()
    reaches = False
    from_columns = True
    for record, columns in records:
        answer = record.get(columns.label or "")
        label = label_of(answer) if isinstance(answer, str | int | float) else None
        names, texts = choices_of(record)
        # Names and texts of choices come before their numbers.
        is_text = isinstance(answer, str) and label in [str(text).strip() for text in texts]
        named = is_text or any(map(str.isdecimal, names))
        if texts and label and label.isdecimal() and not named:
            numbers.add(int(label))
            reaches = reaches or int(label) == len(texts)
            from_columns = from_columns and [n for n, _ in numbered_choices(record)][:1] == [1]
    if not numbers or 0 in numbers:
        return make, ()
    first = int(reaches or from_columns)
    note = f"the answers are whole numbers from {min(numbers)} to {max(numbers)}, and none is 0, "
    note += f"so the first choice has number {first}; if this is wrong, write letters from A"
    return partial(make, first=first), (note,)


def _choice_row(
    record: FieldValues, columns: ColumnNames, where: str, *, first: int = 0
) -> ChoiceRow | str:
    question, context, answer = columns.cells(record)
    require_text(question, "question", where)
    if context is not None:
        require_text(context, "context", where)
    names, choices = choices_of(record)
    texts = [require_text(choice, "choice", where) for choice in choices]
    if len(texts) < 2:
        raise MaskwiseError(f"{where}: a question needs at least two choices", got=len(texts))
    label = label_of(answer)
    if label is None:
        return NO_LABEL
    may_be_text = isinstance(answer, str)
    right = right_choice(label, names, texts, may_be_text=may_be_text, first=first)
    if right is None:
        do = f"if this label means a missing answer, give missing={label!r}"
        if label.isdecimal():
            do = "correct the row; choices are numbered from 1 only if no answer in the task is 0"
        raise MaskwiseError(
            f"{where}: the answer is not among the {len(texts)} choices",
            got=answer,
            allowed=f"a number from {first}, a letter from A, or the text of a choice",
            do=do,
        )
    return ChoiceRow(context or None, question, texts, right)


def _gold_choices(task: Task, split: str) -> NDArray[np.int64]:
    return np.array([row.label for row in task.splits[split]], dtype=np.int64)


def _choice_baseline(task: Task) -> float:
    """Return the expected score of random guessing."""
    return float(np.mean([1 / len(row.choices) for row in task.splits["test"]]))


def _encode_choices(task: Task, split: str, cutter: Cutter) -> Choices:
    """Encode each choice as the pair (context and question, choice)."""
    rows = task.splits[split]
    pairs = []
    counts = []
    for row in rows:
        asked = " ".join(row.texts)
        pairs += [(asked, choice) for choice in row.choices]
        counts.append(len(row.choices))
    return Choices(cutter.flat(pairs), edges(counts), torch.from_numpy(task.gold(split)))


@dataclass(frozen=True, eq=False)
class Choices(Data):
    """N questions with S choices in total. Each choice is a sequence.

    Attributes:
        starts: (N + 1,) the index of each question's first choice, and S.
        gold: (N,) the index of the correct choice within each question.
    """

    starts: Tensor
    gold: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.flat.starts[self.starts].diff()

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the inputs from ``Flat.batch`` for all choices, and labels (B,).

        ``choices`` (B, C) holds the row of each choice in these inputs. It is padded with −1 for
        questions with fewer than C choices.
        """
        at, real = places_of(self.starts, rows)
        sequences = at[real]
        places = torch.full(real.shape, -1)
        places[real] = torch.arange(len(sequences))
        return {**self.flat.batch(sequences), "choices": places, "labels": self.gold[rows]}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """Return (N,) the index of the choice with the highest score for each question."""
        answers = torch.empty(len(self), dtype=torch.long)
        for rows, batch in batches_by_length(self, device):
            answers[rows] = objective.logits(batch).argmax(-1).cpu()
        return answers


# A linear layer scores each choice, and the loss is a softmax over choices: Radford et al. 2018,
# section 3.3; Devlin et al. 2019, section 4.4 (SWAG).
MULTIPLE_CHOICE = TaskKind(
    name="multiple-choice",
    metrics=("accuracy",),
    columns=UsualColumns(
        ("question", "premise", "sentence", "text", "startphrase"),
        ("context", "passage", "article"),
        ("answer", "label", "answerKey", "gold", "correct"),
    ),
    row=_choice_row,
    row_for=partial(with_first, _choice_row),
    gold=_gold_choices,
    baseline=_choice_baseline,
    head="multiple-choice",
    objective=MultipleChoice,
    encode=_encode_choices,
    least_tokens=(True, 2),
)
