"""Kinds that answer questions: by marking a span of a context, or by taking one of several choices.

Both are published in half a dozen layouts; a row has one:

- ``MarkedRow``: SQuAD's, its JSON or the hub's columns. A start that is a little off is mended (the
  nearest place in the context counts); an answer that is nowhere is refused, for it can be neither
  learned nor given;
- ``ChoiceRow``: choices as a list, as the hub's {"label", "text"}, or in numbered columns (ending0,
  ending1, …). The right one may be named by its place from 0, by a letter, or by its text; where a
  text and a place could both be meant, the text counts.

A context that does not fit is cut into windows that share a quarter of their room with the next, so
that an answer of up to so many tokens stands whole in one of them. Training marks the answer where
it stands whole and [CLS] elsewhere; at the end the best-scored span of all windows of a question is
its answer.

Cost: the Rust tokenizer's, once. The best of all spans of a batch is one max over (B, L, 30) sums.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.objectives import Classification, SpanQuestionAnswering
from maskwise.objectives import MultipleChoice as ChoiceLoss
from maskwise.tasks.columns import NO_LABEL, Columns, UsualColumns, label_of, require_text
from maskwise.tasks.metrics import ITEMS, normalise
from maskwise.tasks.task import Answers, R, Row, Task, Tuned
from maskwise.tasks.tensors import Cutter, Data, Flat, batches, edges, places_of
from maskwise.text.labelled import Record

NO_ANSWER = "no answer"
MAX_ANSWER_TOKENS = 30
MAX_QUESTION_TOKENS = 64
"""Both as in BERT's SQuAD code; of short windows a question gets at most half."""

CHOICES = ("choices", "options", "endings")
RELATIONS = ("relation", "predicate_id", "predicate", "pred", "property")
"""Columns that say what a question asks for, as LAMA and others publish them."""
_NUMBERED = re.compile(r"(ending|choice|option)_?\d+")


@dataclass(frozen=True)
class MarkedRow(Row):
    """A question, and all its right answers with the characters where they begin in the context."""

    shown = ("context", "question")

    context: str
    question: str
    answers: list[str]
    starts: list[int]

    @property
    def rights(self) -> Sequence[str]:
        return self.answers


@dataclass(frozen=True)
class ChoiceRow(Row):
    """A question with its choices; ``label`` is the place of the right one."""

    shown = ("context", "question")

    context: str | None
    question: str
    choices: list[str]
    label: int


class Answered(Tuned[R]):
    """Kinds whose rows have answers as texts, each of which is right."""

    def gold(self, task: Task[R], split: str) -> list[Sequence[str]]:
        """All right answers of every question."""
        return [row.rights for row in task.splits[split]]

    def majority(self, task: Task[R]) -> float:
        always = max(task.score("test", guesses) for guesses in commonest_answers(task))
        return max(always, any_answer(task))


def relation_of(record: Record) -> str:
    """What a question asks for, if a column says so."""
    return next((value for name in RELATIONS if isinstance(value := record.get(name), str)), "")


def commonest_answers(task: Task[Any]) -> list[list[str]]:
    """Guesses for every test row: the commonest answer of train, and that to the relation which the
    row asks for.
    """
    by_relation: dict[str, Counter[str]] = {}
    for row in task.splits["train"]:
        by_relation.setdefault(row.relation, Counter())[row.rights[0]] += 1
    overall: Counter[str] = sum(by_relation.values(), Counter())
    most = overall.most_common(1)[0][0]
    commonest = {name: known.most_common(1)[0][0] for name, known in by_relation.items()}
    rows = task.splits["test"]
    return [[most] * len(rows), [commonest.get(row.relation, most) for row in rows]]


def any_answer(task: Task[Any]) -> float:
    """The share of test rows that are right if any answer which train has to their relation is
    equally likely.
    """
    known: dict[str, set[str]] = {}
    for row in task.splits["train"]:
        known.setdefault(row.relation, set()).update(map(normalise, row.rights))
    shares = []
    for row in task.splits["test"]:
        possible = known.get(row.relation, set())
        right = possible.intersection(map(normalise, row.rights))
        shares.append(len(right) / max(1, len(possible)))
    return float(np.mean(shares))


class QuestionAnswering(Answered[MarkedRow]):
    """Which span of a context answers a question.

    Tuned with a start and an end score for every token. Majority: the commonest answer of train.
    Source: Rajpurkar et al. 2016; Devlin et al. 2019, section 4.2.
    """

    name = "question-answering"
    windows = True
    head, objective = "question-answering", SpanQuestionAnswering
    metrics = ("f1", "exact-match")
    columns = UsualColumns(
        ("context", "paragraph", "passage"), ("question",), ("answers", "answer"), needs_pair=True
    )

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """A context, a question and answers."""
        names = set(records[0])
        return (
            {"context", "question"} <= names
            and bool({"answers", "answer"} & names)
            and not given.label
        )

    def row(self, record: Record, columns: Columns, where: str) -> MarkedRow | str:
        context, question, answers = (record.get(column or "") for column in columns)
        context = require_text(context, "context", where, filled=True)
        question = require_text(question, "question", where, filled=True)
        pairs = [(text, start) for text, start in read_answers(answers, where) if text.strip()]
        if not pairs:
            return NO_ANSWER
        starts = [_start(context, text, start, where) for text, start in pairs]
        return MarkedRow(context, question, [text for text, _ in pairs], starts)

    def row_counts(
        self, task: Task[MarkedRow], split: str, answers: Answers
    ) -> NDArray[np.float64]:
        item, texts = ITEMS[task.metric], np.asarray(answers, dtype=object).tolist()
        return np.array(
            [
                [item(row.answers, text), 1]
                for row, text in zip(task.splits[split], texts, strict=True)
            ]
        )

    def least_tokens(self, task: Task[MarkedRow]) -> tuple[bool, int]:
        # a quarter of the room is shared by neighbouring windows, and must be a token
        return True, 8

    def config(self, task: Task[MarkedRow]) -> dict[str, object]:
        return {"num_labels": 2}

    def encode(self, task: Task[MarkedRow], split: str, cutter: Cutter) -> Windows:
        rows, backend, max_length = task.splits[split], cutter.backend, cutter.max_length
        room = max_length - backend.num_special_tokens_to_add(is_pair=True)
        backend.no_truncation()
        questions = _cut(
            [row.question for row in rows], backend, min(MAX_QUESTION_TOKENS, room // 2)
        )
        backend.enable_truncation(max_length, stride=room // 4, strategy="only_second")
        first = backend.encode_batch(
            [(question, row.context) for question, row in zip(questions, rows, strict=True)]
        )
        by_row = [[encoding, *encoding.overflowing] for encoding in first]
        encodings = list(chain.from_iterable(by_row))
        flat = Flat.of(encodings, cutter.pad)
        question = torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(w) for w in by_row])
        )
        offsets = np.concatenate([np.array(e.offsets, dtype=np.int64) for e in encodings])
        sequence = np.concatenate([np.array(e.sequence_ids, dtype=np.float64) for e in encodings])
        # Special tokens belong to no sequence, which numpy reads as nan; 1 is the context.
        begin, end = (
            torch.from_numpy(np.where(sequence == 1, offsets[:, side], -1)) for side in (0, 1)
        )
        return Windows(flat, _targets(rows, flat, question, begin, end), question, begin, end, rows)


class MultipleChoice(Tuned[ChoiceRow]):
    """Which of several choices answers a question.

    Tuned with one score for every choice, read with its question, and a softmax over the choices.
    Majority: a choice at random. Source: Radford et al. 2018, section 3.3; Devlin et al. 2019,
        section 4.4 (SWAG).
    """

    name = "multiple-choice"
    head, objective = "multiple-choice", ChoiceLoss
    metrics = ("accuracy",)
    columns = UsualColumns(
        ("question", "premise", "sentence", "text", "startphrase"),
        ("context", "passage", "article"),
        ("answer", "label", "answerKey", "gold", "correct"),
    )

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Choices, in one column or in numbered ones."""
        record = records[0]
        return any(isinstance(record.get(name), list | dict) for name in CHOICES) or bool(
            _numbered(record)
        )

    def row(self, record: Record, columns: Columns, where: str) -> ChoiceRow | str:
        question, context, answer = (record.get(column or "") for column in columns)
        names, texts = choices_of(record)
        if context is not None:
            require_text(context, "context", where)
        require_text(question, "question", where)
        for text in texts:
            require_text(text, "choice", where)
        if len(texts) < 2:
            raise MaskwiseError(f"{where}: a question needs at least two choices", got=len(texts))
        said = label_of(answer)
        if said is None:
            return NO_LABEL
        right = right_choice(said, names, texts, may_be_text=isinstance(answer, str))
        if right is None:
            what = f"{where}: the answer is none of {len(texts)} choices"
            allowed = "a place from 0, a letter from A, or the text of a choice"
            do = f"if it stands for no answer, say so: missing={said!r}"
            raise MaskwiseError(what, got=answer, allowed=allowed, do=do)
        return ChoiceRow(context or None, str(question), texts, right)

    def gold(self, task: Task[ChoiceRow], split: str) -> NDArray[np.int64]:
        return np.array([row.label for row in task.splits[split]], dtype=np.int64)

    def majority(self, task: Task[ChoiceRow]) -> float:
        return float(np.mean([1 / len(row.choices) for row in task.splits["test"]]))

    def least_tokens(self, task: Task[ChoiceRow]) -> tuple[bool, int]:
        return True, 2

    def encode(self, task: Task[ChoiceRow], split: str, cutter: Cutter) -> Choices:
        """One sequence a choice: [context and question, choice]. Of longer pairs the longer text is
        cut first.
        """
        rows = task.splits[split]
        flat = cutter.flat(
            [(" ".join(row.texts), choice) for row in rows for choice in row.choices]
        )
        gold = torch.from_numpy(self.gold(task, split))
        return Choices(flat, edges([len(row.choices) for row in rows]), gold)


# Records


def read_answers(value: object, where: str) -> list[tuple[str, int | None]]:
    """(text, start or None) of {"text": […], "answer_start": […]}, of a list of such for one, or of
    plain texts.
    """
    pairs: list[tuple[Any, Any]]  # checked below
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts or ()
        starts = [starts] if isinstance(starts, int) else starts or [None] * len(texts)
        pairs = list(zip(texts, starts))
    else:
        each = value if isinstance(value, list | tuple) else [] if value is None else [value]
        pairs = [
            (x.get("text"), x.get("answer_start")) if isinstance(x, Mapping) else (x, None)
            for x in each
        ]
    for text, start in pairs:
        if not isinstance(text, str) or not isinstance(start, int | None):
            allowed = '{"text": […], "answer_start": […]}, or texts'
            raise MaskwiseError(f"{where}: cannot read the answers", got=value, allowed=allowed)
    return pairs


def _start(context: str, text: str, start: int | None, where: str) -> int:
    """Where an answer begins: as given, or else at the nearest place where it stands."""
    if start is not None and context[start : start + len(text)] == text and start >= 0:
        return start
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    if not places:
        do = "mend or remove the row"
        raise MaskwiseError(f"{where}: the answer is not in the context", got=text[:60], do=do)
    return min(places, key=lambda place: abs(place - (start or 0)))


def choices_of(record: Record) -> tuple[list[str], list[Any]]:
    """Names of the choices (may be none) and their texts."""
    value = next(
        (record[name] for name in CHOICES if isinstance(record.get(name), list | dict)), None
    )
    if isinstance(value, dict):
        return [str(name) for name in value.get("label") or ()], list(value.get("text") or ())
    # AI2's files
    if isinstance(value, list) and value and all(isinstance(choice, dict) for choice in value):
        return [str(choice.get("label")) for choice in value], [
            choice.get("text") for choice in value
        ]
    return [], value if value is not None else [record[name] for name in _numbered(record)]


def _numbered(record: Record) -> list[str]:
    names = [name for name in record if _NUMBERED.fullmatch(str(name))]
    return sorted(names, key=lambda name: int(re.findall(r"\d+", name)[0]))


def right_choice(said: str, names: list[str], texts: list[str], *, may_be_text: bool) -> int | None:
    """The place of the right choice; None if the answer names no choice."""
    for known in (names, [str(text).strip() for text in texts] if may_be_text else []):
        if said in known:
            return known.index(said)
    letter = len(said) == 1 and said.isalpha()
    place = ord(said.upper()) - ord("A") if letter else int(said) if said.isdecimal() else -1
    return place if 0 <= place < len(texts) else None


# Tensors


@dataclass(frozen=True, eq=False)
class Windows(Data[Classification]):
    """Q questions in N windows of T tokens in all.

    Attributes:
        targets: (N, 2) places of the first and last token of the answer; (0, 0) where it is not.
        question: (N,) whose window it is.
        begin, end: (T,) the characters of the context that a token covers; −1 outside of the
            context.
        rows: the questions.
    """

    targets: Tensor
    question: Tensor
    begin: Tensor
    end: Tensor
    rows: Sequence[MarkedRow]

    @property
    def lost(self) -> int:
        """Questions whose answer is marked in none of their windows."""
        marked = torch.zeros(len(self.rows), dtype=torch.bool)
        marked[self.question[self.targets.any(1)]] = True
        return int((~marked).sum())

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives, and labels (B, 2)."""
        return {**self.flat.batch(rows), "labels": self.targets[rows]}

    def answers(self, objective: Classification, device: torch.device) -> list[str]:
        """The text of the best span of every question, over all of its windows."""
        best, first, last = (
            torch.full((len(self),), -math.inf),
            *torch.zeros(2, len(self), dtype=torch.long),
        )
        for rows, batch in batches(self, device):
            at, real = self.flat.at(rows)
            context = (real & (self.begin[at] >= 0)).to(device)
            logits = objective.logits(batch).float().masked_fill(~context.unsqueeze(-1), -math.inf)
            value, start, end = best_spans(*logits.unbind(-1))
            best[rows] = value.cpu()
            first[rows], last[rows] = (
                self.flat.starts[rows] + place.cpu() for place in (start, end)
            )
        # By question, the best window first: then the first of every question is its answer.
        order = np.lexsort((-best.numpy(), self.question.numpy()))
        chosen = torch.from_numpy(
            order[np.unique(self.question.numpy()[order], return_index=True)[1]]
        )
        places = zip(self.rows, self.begin[first[chosen]].tolist(), self.end[last[chosen]].tolist())
        return [row.context[max(0, begin) : max(0, end)].strip() for row, begin, end in places]


def best_spans(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and last place (B,) of the span with the greatest start + end (B, L), of up to
    30 tokens.
    """
    reach = torch.nn.functional.pad(end, (0, MAX_ANSWER_TOKENS - 1), value=-math.inf)
    sums = start.unsqueeze(-1) + reach.unfold(1, MAX_ANSWER_TOKENS, 1)
    value, place = sums.flatten(1).max(1)
    first = place // MAX_ANSWER_TOKENS
    return value, first, first + place % MAX_ANSWER_TOKENS


def _cut(questions: list[str], backend: Tokenizer, limit: int) -> list[str]:
    """Questions of at most so many tokens."""
    encodings = backend.encode_batch(questions, add_special_tokens=False)
    return [
        text[: e.offsets[limit - 1][1]] if len(e) > limit else text
        for text, e in zip(questions, encodings)
    ]


def _targets(
    rows: Sequence[MarkedRow], flat: Flat, question_N: Tensor, begin_T: Tensor, end_T: Tensor
) -> Tensor:
    """(N, 2) where a window has as much of the first right answer as any window of its question
    has.
    """
    windows, tokens = len(question_N), len(begin_T)
    window_T = torch.repeat_interleave(torch.arange(windows), flat.lengths)
    starts = torch.tensor([row.starts[0] for row in rows])
    ends = starts + torch.tensor([len(row.answers[0]) for row in rows])
    question_T = question_N[window_T]
    inside_T = (begin_T >= 0) & (begin_T < ends[question_T]) & (end_T > starts[question_T])
    count_N = torch.zeros(windows, dtype=torch.long).index_add_(0, window_T, inside_T.long())
    most_Q = torch.zeros(len(rows), dtype=torch.long).scatter_reduce_(
        0, question_N, count_N, "amax"
    )
    whole_N = (count_N > 0) & (count_N == most_Q[question_N])
    column_T = torch.arange(tokens) - flat.starts[window_T]
    # Tokens of an answer are neighbours: the first is where counting begins, the last so many
    # later.
    far_T = torch.where(inside_T, column_T, tokens)
    first_N = torch.full((windows,), tokens).scatter_reduce_(0, window_T, far_T, "amin")
    both = torch.stack([first_N, first_N + count_N - 1], dim=1)
    return torch.where(whole_N.unsqueeze(1), both, 0)


@dataclass(frozen=True, eq=False)
class Choices(Data[Classification]):
    """N questions, S sequences in all.

    Attributes:
        starts: (N + 1,) where each question begins among the sequences; its choices lie behind one
            another.
        gold: (N,) which choice is right.
    """

    starts: Tensor
    gold: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.flat.starts[self.starts].diff()

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives of all choices; ``choices`` (B, C) their places in it, −1 for
        none; labels.
        """
        at, real = places_of(self.starts, rows)
        sequences, places = at[real], torch.full(real.shape, -1)
        places[real] = torch.arange(len(sequences))
        return {**self.flat.batch(sequences), "choices": places, "labels": self.gold[rows]}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """(N,) the best-scored choice."""
        answers = torch.empty(len(self), dtype=torch.long)
        for rows, batch in batches(self, device):
            answers[rows] = objective.logits(batch).argmax(-1).cpu()
        return answers
