"""Kinds of tasks whose answers are written without a context to mark them in.

``cloze-qa``: an encoder with the head of its pre-training reads ``question QUESTION answer [MASK]
…`` and answers at the masks: as many as the longest answer of train has tokens, with separators
after a shorter answer, so that the number of masks tells nothing.

``generation``: an encoder–decoder writes any text for any text, by beam search with the settings of
the task, not of the checkpoint. In every epoch it learns one of the right answers; scores accept
all of them. The nats of the first one compare models that are too small to write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.constants import NATS
from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.families import check_room, masked_logits, require_kind, start_token
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Denoising, MaskedLanguageModelling
from maskwise.objectives.denoising import generated
from maskwise.tasks.columns import (
    NO_ANSWER,
    NO_TEXT,
    Columns,
    Records,
    UsualColumns,
    choices_of,
    label_of,
    require_text,
    right_choice,
)
from maskwise.tasks.metrics import ITEMS
from maskwise.tasks.questions import answer_baseline, gold_texts, read_answers, relation_of
from maskwise.tasks.task import Row, Settings, Task, TaskKind
from maskwise.tasks.tensors import EVAL_TOKENS, Batch, Cutter, Data, Flat, batches, count_cut, edges
from maskwise.text.labelled import Record
from maskwise.training.data import by_width

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Answers at masks


@dataclass(frozen=True)
class QARow(Row):
    """A question without a context, and all right answers."""

    shown = ("question",)

    question: str
    answers: list[str]
    relation: str = ""

    @property
    def rights(self) -> Sequence[str]:
        return self.answers


def _question_row(record: Record, columns: Columns, where: str) -> QARow | str:
    question = require_text(record.get(columns.text or ""), "question", where, filled=True)
    answers = [text for text, _ in read_answers(record.get(columns.label or ""), where)]
    return QARow(question, answers, relation_of(record)) if answers else NO_ANSWER


PROMPT = ("question", " answer")  # the words before and after a question
LEAST_ROOM = 8  # tokens for the prompt and some words of the question


def _encode_slots(task: Task, split: str, cutter: Cutter) -> Slots:
    backend = cutter.backend
    rows = task.splits[split]
    mask = _special_token(backend, "[MASK]", "<mask>")
    end = _special_token(backend, "[SEP]", "</s>")
    slots = max(map(len, _answer_ids(task, "train", backend)))
    room = cutter.max_length - backend.num_special_tokens_to_add(is_pair=False) - slots
    if room < LEAST_ROOM:
        got = f"{cutter.max_length} for answers of up to {slots} tokens"
        raise MaskwiseError("max_length leaves no room for the question", got=got)
    backend.no_truncation()
    frame = backend.encode("").ids
    tail = backend.encode(PROMPT[1], add_special_tokens=False).ids
    # A long question is cut at its end, before the words that announce the answer.
    backend.enable_truncation(room - len(tail))
    texts = [f"{PROMPT[0]} {row.question}" for row in rows]
    questions = backend.encode_batch(texts, add_special_tokens=False)
    backend.no_truncation()
    tail += [mask] * slots
    sequences = [[*frame[:1], *question.ids, *tail, *frame[1:]] for question in questions]
    ids = torch.tensor(list(chain.from_iterable(sequences)))
    starts = edges([len(sequence) for sequence in sequences])
    flat = Flat(ids, torch.zeros_like(ids), starts, cutter.pad, count_cut(questions))
    targets = torch.full((len(rows), slots), end)
    answers = _answer_ids(task, split, backend)
    for row, answer in enumerate(answers):
        targets[row, : len(answer)] = torch.tensor(answer[:slots])
    too_long = sum(len(answer) > slots for answer in answers)
    return Slots(flat, targets, len(frame) - 1, end, too_long, backend)


def _answer_ids(task: Task, split: str, backend: Tokenizer) -> list[list[int]]:
    """The tokens of the first answer of every question."""
    backend.no_truncation()
    texts = [f" {row.answers[0]}" for row in task.splits[split]]
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


def _special_token(backend: Tokenizer, *names: str) -> int:
    """The id of a special token that has one of these names."""
    for name in names:
        token = backend.token_to_id(name)
        if token is not None:
            return token
    what = "cloze-qa needs a tokenizer with masks and separators"
    raise MaskwiseError(what, got=f"no {names[0]}", do="use the tokenizer of an encoder")


@dataclass(frozen=True, eq=False)
class Slots(Data):
    """N questions, each followed by S masks.

    Attributes:
        targets: (N, S) the tokens of the answer, then separators.
        after: special tokens that follow the masks.
        end: the separator.
        too_long: questions whose answer is longer than S tokens.
        backend: turns tokens into text.
    """

    targets: Tensor
    after: int
    end: int
    too_long: int
    backend: Tokenizer

    @property
    def lost(self) -> int:
        """Questions whose answer has more tokens than there are masks."""
        return self.too_long

    def columns(self, rows: Tensor) -> Tensor:
        """(B, S) the columns of the masks."""
        slots = self.targets.shape[1]
        first = self.flat.lengths[rows] - self.after - slots
        return first.unsqueeze(1) + torch.arange(slots)

    def batch(self, rows: Tensor) -> Batch:
        """The inputs of ``Flat.batch``, and labels (B, L): the answers at the masks, else −100."""
        inputs = self.flat.batch(rows)
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        return {**inputs, "labels": labels.scatter_(1, self.columns(rows), self.targets[rows])}

    def answers(self, objective: MaskedLanguageModelling, device: torch.device) -> list[str]:
        """The text of the likeliest tokens at the masks, up to the first separator."""
        best = torch.empty_like(self.targets)
        for rows, batch in batches(self, device):
            column = self.columns(rows).to(device)
            row = torch.arange(len(rows), device=device).unsqueeze(1).expand_as(column)
            del batch["labels"]
            logits = masked_logits(objective.model, batch, row.flatten(), column.flatten())
            best[rows] = logits.argmax(-1).view_as(column).cpu()
        before_end = (best == self.end).cumsum(1) == 0
        ids = [row[real].tolist() for row, real in zip(best, before_end)]
        return self.backend.decode_batch(ids, skip_special_tokens=False)


CLOZE_QA = TaskKind(
    # The closed-book set-up of Roberts et al. 2020 (arXiv 2002.08910), for encoders
    name="cloze-qa",
    metrics=("exact-match", "f1"),
    columns=UsualColumns(("question", "input", "query"), (), ("answers", "answer", "output")),
    row=_question_row,
    gold=gold_texts,
    baseline=answer_baseline,
    head="masked-lm",
    objective=MaskedLanguageModelling,
    encode=_encode_slots,
    pretrained_head=True,
    least_tokens=(False, LEAST_ROOM),
    item_error=False,
)

# Answers of an encoder–decoder

_TEXT = ("input", "source", "question", "article", "document", "dialogue", "text", "claim", "query")
_ANSWERS = (
    *("output", "target", "answer", "answers", "highlights"),
    *("summary", "summary1", "label", "response", "title"),
)
# Pairs of columns that identify such a task.
_TOGETHER = (
    *(("input", "output"), ("source", "target"), ("article", "highlights")),
    *(("document", "summary"), ("dialogue", "summary"), ("dialogue", "summary1")),
    *(("question", "answer"), ("question", "answers")),
)
# Keys of answers in the objects of KILT, SQuAD, QED and TriviaQA.
_INSIDE = ("answer", "text", "string", "value", "Value", "aliases", "Aliases")


@dataclass(frozen=True)
class WrittenRow(Row):
    """A text, and all right answers."""

    shown = ("text",)

    text: str
    answers: list[str]
    group: str | None = None
    """Rows of one group, such as a context, stay on the same side of a cut."""
    relation: str = ""

    @property
    def rights(self) -> Sequence[str]:
        return self.answers

    @property
    def content(self) -> Mapping[str, object]:
        # As in the settings of ``generation``: fingerprints of recorded tasks must not change.
        return {**super().content, "patterns": []}

    @property
    def key(self) -> str:
        return self.group or self.text


def _has_two_texts(records: Records, given: Columns) -> bool:
    names = set(records[0])
    return not (given.text or given.label) and any({*pair} <= names for pair in _TOGETHER)


def _written_row(record: Record, columns: Columns, where: str) -> WrittenRow | str:
    if columns.text not in record:
        got = ", ".join(record) or "no columns"
        raise MaskwiseError(f"{where} has no column {columns.text!r}", got=got)
    text = record[columns.text]
    if isinstance(text, list | tuple) and all(isinstance(part, str) for part in text):
        text = " ".join(text)  # sentences
    text = require_text(text, "text", where)
    rights = _right_texts(record, columns.label or "", where)
    if not (text.strip() and rights):
        return NO_ANSWER if text.strip() else NO_TEXT
    group = record.get(columns.pair or "")
    return WrittenRow(text, rights, None if group is None else str(group), relation_of(record))


def _right_texts(record: Record, column: str, where: str) -> list[str]:
    """All different right answers: of one column or of numbered ones, or the text of a choice."""
    stem = re.sub(r"(?<=\D)1$", "", column)
    alike = re.escape(stem) + ("" if stem.isdecimal() else r"\d*")
    texts: list[str] = []
    for name, value in record.items():
        if re.fullmatch(alike, name):
            texts += _texts(value, where)
    names, choices = choices_of(record)
    if choices and len(texts) == 1:
        place = right_choice(texts[0], names, choices, may_be_text=True)
        if place is not None:
            return [str(choices[place])]
    return list(dict.fromkeys(texts))


def _texts(value: object, where: str) -> Iterator[str]:
    """The right answers in a cell: a text or a number, a list of these, or objects around them."""
    if isinstance(value, Mapping):
        value = [value[name] for name in _INSIDE if name in value]
    if isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, where)
    elif value is None or isinstance(value, str | int | float):
        text = label_of(value)
        if text is not None:
            yield text
    else:
        allowed = "texts, or KILT's objects"
        raise MaskwiseError(f"{where}: cannot read the answers", got=value, allowed=allowed)


class Answer(str):
    """A written text, and the nats and the number of tokens of the first right answer."""

    nats: float
    tokens: int

    def __new__(cls, text: str, nats: float = 0.0, tokens: int = 0) -> Answer:
        answer = super().__new__(cls, text)
        answer.nats = nats
        answer.tokens = tokens
        return answer


def generation(beams: int = 4, max_target: int = 32, length_penalty: float = 1.0) -> TaskKind:
    """The kind ``generation``: what to write for a text.

    Trained by the cross-entropy of every token of the answer. The baseline in nats is by the
    frequencies of tokens. Source: Raffel et al. 2020; Roberts et al. 2020 (without a context).

    Args:
        beams: hypotheses of beam search.
        max_target: tokens; longer targets are cut, and no answer is longer.
        length_penalty: the power of the length by which the score of a hypothesis is divided.

    Raises:
        MaskwiseError: fewer than one beam, no room for an answer, or a penalty that is no number.
    """
    whole_number("beams of a task", beams, least=1)
    whole_number("max_target of a task", max_target, least=3)
    finite_number("length_penalty of a task", length_penalty)
    search = {"beams": beams, "max_target": max_target, "length_penalty": length_penalty}
    return TaskKind(
        name="generation",
        metrics=(*ITEMS, NATS),
        columns=UsualColumns(_TEXT, (), _ANSWERS),
        row=_written_row,
        gold=gold_texts,
        baseline=lambda task: None if task.metric == NATS else answer_baseline(task),
        recognises=_has_two_texts,
        head="seq2seq",
        objective=Denoising,
        encode=_encode_written,
        check_model=partial(_check_writer, max_target),
        family="encoder-decoder",
        pretrained_head=True,
        item_interval=True,
        # Rows once had patterns too. Fingerprints of recorded tasks must not change.
        settings={**search, "patterns": False},
        make=generation,
    )


def _check_writer(max_target: int, config: PreTrainedConfig) -> None:
    require_kind(config, "encoder-decoder", use="a task whose answers are written")
    start_token(config)
    check_room(config, max_target, what="max_target of a task")


def _encode_written(task: Task, split: str, cutter: Cutter) -> Written:
    rows = task.splits[split]
    backend = cutter.backend
    search = task.kind.settings
    inputs = backend.encode_batch([row.text for row in rows])
    longest = search["max_target"]
    backend.enable_truncation(longest)
    by_row = [row.answers if split == "train" else row.answers[:1] for row in rows]
    answers = list(chain.from_iterable(by_row))
    targets = backend.encode_batch(answers)
    counts = {
        f"texts cut at {cutter.max_length} tokens": (count_cut(inputs), len(inputs)),
        f"answers cut at {longest} tokens": (count_cut(targets), len(targets)),
    }
    if task.metric in ("accuracy", "exact-match"):
        decoded = backend.decode_batch([target.ids for target in targets])
        lost = 0
        for answer, target, text in zip(answers, targets, decoded, strict=True):
            lost += not target.overflowing and not ITEMS[task.metric]([answer], text)
        what = "answers that the tokenizer cannot write (case, accents, unknown characters)"
        counts[what] = (lost, len(targets))
    notes = [f"{what}: {count} of {size}" for what, (count, size) in counts.items() if count]
    framed = bool(targets and targets[0].special_tokens_mask[:1] == [1])
    first = edges([len(several) for several in by_row])
    answers_flat = Flat.of(targets, cutter.pad)
    texts_flat = Flat.of(inputs, cutter.pad)
    return Written(texts_flat, answers_flat, first, framed, backend, search, notes)


@dataclass(frozen=True, eq=False)
class Written(Data):
    """N texts with their right answers: all of them in train, the first one in dev and test.

    Attributes:
        targets: the answers of all texts, with special tokens.
        first: (N + 1,) where the answers of each text begin.
        framed: whether answers begin with a special token, which does not count in nats.
        backend: turns tokens into text.
        search: the settings of beam search.
        cut: notes on what was cut.
    """

    targets: Flat
    first: Tensor
    framed: bool
    backend: Tokenizer
    search: Settings
    cut: list[str]

    def notes(self) -> list[str]:
        return self.cut

    @property
    def lengths(self) -> Tensor:
        return self.flat.lengths + self.targets.lengths[self.first[:-1]]

    def batch(self, rows: Tensor) -> Batch:
        """(B, L) input_ids and attention_mask, (B, L') labels: the first answer of each text."""
        return self._batch(rows, self.first[rows])

    def training_batch(self, rows: Tensor, draws: Tensor) -> Batch:
        """The same with one answer of each text, chosen by the draws."""
        return self._batch(rows, self.first[rows] + draws % self.first.diff()[rows])

    def _batch(self, rows: Tensor, answers: Tensor) -> Batch:
        at, real = self.targets.at(answers)
        inputs = self.flat.batch(rows)
        inputs.pop("token_type_ids", None)
        return {**inputs, "labels": torch.where(real, self.targets.ids[at], IGNORE)}

    def answers(self, objective: Denoising, device: torch.device) -> list[Answer]:
        answers = [Answer("")] * len(self)
        for rows in by_width(self.lengths, EVAL_TOKENS // self.search["beams"]):
            batch = {name: value.to(device) for name, value in self.batch(rows).items()}
            losses, where = objective.token_losses(batch)
            row = where[:, 0]
            counted = (where[:, 1] >= self.framed).float()
            zeros = torch.zeros(len(rows), device=device)
            nats = zeros.index_add(0, row, losses.float() * counted)
            tokens = zeros.index_add(0, row, counted)
            del batch["labels"]
            ids = generated(
                objective.model,
                batch,
                most=self.search["max_target"],
                beams=self.search["beams"],
                length_penalty=self.search["length_penalty"],
            )
            texts = self.backend.decode_batch(ids, skip_special_tokens=True)
            for number, place in enumerate(rows.tolist()):
                text = texts[number].strip()
                answers[place] = Answer(text, float(nats[number]), int(tokens[number]))
        return answers

    def chance(self, train: Data) -> float:
        """Mean nats of first answers by the frequencies of tokens in train, each count plus one."""
        assert isinstance(train, Written)
        vocabulary = self.backend.get_vocab_size()
        counts = torch.bincount(train._first_answers(), minlength=vocabulary).double() + 1
        return float((counts.sum().log() - counts.log())[self._first_answers()].mean())

    def _first_answers(self) -> Tensor:
        """(T,) the tokens of first answers that count in nats."""
        at, real = self.targets.at(self.first[:-1])
        return self.targets.ids[at[:, self.framed :]][real[:, self.framed :]]
