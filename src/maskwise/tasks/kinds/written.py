"""Kinds of tasks in which the model writes the answer.

``cloze-qa``: an encoder with its pre-trained head reads ``question QUESTION answer [MASK] …`` and
predicts the answer at the masks. Every question has as many masks as the longest answer in train
has tokens. Shorter answers are padded with separators. The number of masks therefore does not
reveal the length of the answer.

``generation``: an encoder–decoder reads a text and writes a text by beam search. The settings of
the beam search come from the task, not from the checkpoint. If a row has several correct answers,
training draws one of them in each epoch, and the score accepts all of them. For models that are too
small to write answers, the metric ``nats`` is the mean −log p of the tokens of the first correct
answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.base.constants import NATS
from maskwise.base.errors import MaskwiseError, finite_number, whole_number
from maskwise.masking.batch import IGNORE, moved
from maskwise.models.families import check_room, masked_logits, require_kind, start_token
from maskwise.objectives.base import target_places
from maskwise.objectives.denoising import Denoising, generated
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.tasks import tensors
from maskwise.tasks.columns import (
    NO_ANSWER,
    NO_TEXT,
    ColumnNames,
    UsualColumns,
    choices_of,
    read_answers,
    require_text,
    right_choice,
)
from maskwise.tasks.kinds.questions import (
    answer_baseline,
    gold_texts,
    passage_of,
    relation_of,
    with_first,
)
from maskwise.tasks.metrics import ITEMS, Answer
from maskwise.tasks.task import KindSettings, Row, Task, TaskKind
from maskwise.tasks.tensors import (
    EVAL_TOKENS,
    Cutter,
    Data,
    Flat,
    TaskBatch,
    batches_by_length,
    edges,
    were_cut,
)
from maskwise.text.tables import FieldValues
from maskwise.training.data import by_width

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Answers at masks


@dataclass(frozen=True)
class QARow(Row):
    """A question without a context, and its correct answers."""

    shown = ("question",)

    question: str
    answers: list[str]
    relation: str = ""
    passage: str = ""


def _question_row(record: FieldValues, columns: ColumnNames, where: str) -> QARow | str:
    question, _, cell = columns.cells(record)
    require_text(question, "question", where, filled=True)
    answers = [text for text, _ in read_answers(cell, where)]
    if not answers:
        return NO_ANSWER
    return QARow(question, answers, relation_of(record), passage_of(record))


# The prompt before and after a question.
PROMPT = ("question", " answer")
# The minimum number of tokens for the prompt and the question.
LEAST_ROOM = 8


def _encode_slots(task: Task, split: str, cutter: Cutter) -> Slots:
    backend = cutter.backend
    rows = task.splits[split]
    mask = _special_token(backend, "[MASK]", "<mask>")
    end = _special_token(backend, "[SEP]", "</s>")
    slots = max(map(len, _answer_ids(task, "train", backend)))
    room = cutter.max_length - backend.num_special_tokens_to_add(is_pair=False) - slots
    if room < LEAST_ROOM:
        raise MaskwiseError(
            "max_length leaves no room for the question",
            got=f"{cutter.max_length}, with answers of up to {slots} tokens",
            do="raise max_length",
        )
    backend.no_truncation()
    frame = backend.encode("").ids
    tail = backend.encode(PROMPT[1], add_special_tokens=False).ids
    # A long question is cut before the second part of the prompt, which introduces the answer.
    backend.enable_truncation(room - len(tail))
    texts = [f"{PROMPT[0]} {row.question}" for row in rows]
    questions = backend.encode_batch(texts, add_special_tokens=False)
    cut = sum(were_cut(backend, texts, questions, add_special_tokens=False))
    backend.no_truncation()
    ids: list[int] = []
    targets: list[int] = []
    lengths = []
    # The model cannot write an answer that has more tokens than there are masks.
    lost = 0
    for question, answer in zip(questions, _answer_ids(task, split, backend), strict=True):
        before = [*frame[:1], *question.ids, *tail]
        padded = [*answer[:slots], *[end] * (slots - len(answer))]
        sequence = [*before, *[mask] * slots, *frame[1:]]
        ids += sequence
        targets += [*[IGNORE] * len(before), *padded, *[IGNORE] * len(frame[1:])]
        lengths.append(len(sequence))
        lost += len(answer) > slots
    tokens = torch.tensor(ids)
    flat = Flat(tokens, torch.zeros_like(tokens), edges(lengths), cutter.pad, cut)
    return Slots(flat, torch.tensor(targets), end, backend, lost=lost)


def _answer_ids(task: Task, split: str, backend: Tokenizer) -> list[list[int]]:
    """Tokenise the first answer of each question."""
    backend.no_truncation()
    # In the input, a space precedes the answer, and many tokenizers encode a word differently after
    # a space.
    texts = [f" {row.answers[0]}" for row in task.splits[split]]
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


def _special_token(backend: Tokenizer, *names: str) -> int:
    """Return the id of the first of these tokens that the tokenizer has."""
    for name in names:
        token = backend.token_to_id(name)
        if token is not None:
            return token
    raise MaskwiseError(
        "cloze-qa needs a tokenizer with masks and separators",
        got=f"no {names[0]}",
        do="use the tokenizer of an encoder",
    )


@dataclass(frozen=True, eq=False)
class Slots(Data):
    """N questions, each followed by S masks.

    Attributes:
        targets: (T,) at the masks, the answer's tokens followed by separators; −100 elsewhere.
        end: the id of the separator.
        backend: the tokenizer that decodes answers.
    """

    targets: Tensor
    end: int
    backend: Tokenizer

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the inputs from ``Flat.batch``, and labels (B, L)."""
        at, real = self.flat.at(rows)
        labels = torch.where(real, self.targets[at], IGNORE)
        return {**self.flat.batch(rows), "labels": labels}

    def answers(self, objective: MaskedLanguageModelling, device: torch.device) -> list[str]:
        """Decode the likeliest token at each mask, up to the first separator."""
        best = self.targets[self.targets != IGNORE].view(len(self), -1)
        for rows, batch in batches_by_length(self, device):
            row, column = target_places(batch).unbind(1)
            del batch["labels"]
            logits = masked_logits(objective.model, batch, row, column)
            best[rows] = logits.argmax(-1).view(len(rows), -1).cpu()
        before_end = (best == self.end).cumsum(1) == 0
        ids = [row[real].tolist() for row, real in zip(best, before_end)]
        return self.backend.decode_batch(ids, skip_special_tokens=False)


# The closed-book setting of Roberts et al. 2020 (arXiv 2002.08910), adapted to encoders.
CLOZE_QA = TaskKind(
    name="cloze-qa",
    metrics=("exact-match", "f1"),
    columns=UsualColumns(("question", "input", "query"), (), ("answers", "answer", "output")),
    row=_question_row,
    unread=("pair",),
    gold=gold_texts,
    baseline=answer_baseline,
    head="masked-lm",
    objective=MaskedLanguageModelling,
    encode=_encode_slots,
    pretrained_head=True,
    least_tokens=(False, LEAST_ROOM),
    item_error=False,
)

# Answers from an encoder–decoder

_TEXT = ("input", "source", "question", "article", "document", "dialogue", "text", "claim", "query")
_ANSWERS = (
    *("output", "target", "answer", "answers", "highlights"),
    *("summary", "summary1", "label", "response", "title"),
)


@dataclass(frozen=True)
class WrittenRow(Row):
    """A text, and its correct answers."""

    shown = ("text",)

    text: str
    answers: list[str]
    group: str | None = None
    """Rows with equal groups, such as questions about one context, are in the same split."""
    relation: str = ""
    passage: str = ""

    @property
    def content(self) -> Mapping[str, object]:
        # Former versions had a field "patterns". Fingerprints in records must not change, so it is
        # still hashed.
        return {**super().content, "patterns": []}

    @property
    def key(self) -> str:
        return self.group or super().key


def _written_row(
    record: FieldValues, columns: ColumnNames, where: str, *, first: int = 0
) -> WrittenRow | str:
    if columns.text not in record:
        raise MaskwiseError(
            f"{where} has no column {columns.text!r}", got=", ".join(record) or "no columns"
        )
    text, group, _ = columns.cells(record)
    # A list of texts is a document that is split into sentences.
    if isinstance(text, list | tuple) and all(isinstance(part, str) for part in text):
        text = " ".join(text)
    require_text(text, "text", where)
    rights = _right_texts(record, columns.label or "", where, first=first)
    if not text.strip():
        return NO_TEXT
    if not rights:
        return NO_ANSWER
    return WrittenRow(
        text,
        rights,
        group=None if group is None else str(group),
        relation=relation_of(record),
        passage=passage_of(record),
    )


def _right_texts(record: FieldValues, column: str, where: str, *, first: int) -> list[str]:
    """Return the correct answers of a record.

    The answers are in one column or in numbered columns (summary1, summary2, …). If the record has
    choices, the column identifies the correct choice; ``first`` is the number of the first one.
    """
    # "summary1" means all of summary1, summary2, …. In a table without a header, "1" means only
    # column 1.
    stem = re.sub(r"(?<=\D)1$", "", column)
    pattern = re.escape(stem) + ("" if stem.isdecimal() else r"\d*")
    texts: list[str] = []
    for name, value in record.items():
        if re.fullmatch(pattern, name):
            texts += [text.strip() for text, _ in read_answers(value, where)]
    names, choices = choices_of(record)
    if choices and len(texts) == 1:
        may_be_text = not isinstance(record.get(column), int | float)
        place = right_choice(texts[0], names, choices, may_be_text=may_be_text, first=first)
        if place is not None:
            return [str(choices[place])]
    return list(dict.fromkeys(texts))


def generation(beams: int = 4, max_target: int = 32, length_penalty: float = 1.0) -> TaskKind:
    """Build the kind ``generation``: the model reads a text and writes a text.

    The loss is the cross-entropy of the answer's tokens. The baseline of the metric ``nats``
    predicts each token from the token frequencies in train.

    Source: Raffel et al. 2020; for questions without a context, Roberts et al. 2020.

    Args:
        beams: the number of hypotheses in beam search.
        max_target: the maximum number of tokens in an answer; longer targets are cut.
        length_penalty: the exponent p. The score of a hypothesis is divided by length ** p.

    Raises:
        MaskwiseError: ``beams`` is below 1, ``max_target`` leaves no room for an answer, or
            ``length_penalty`` is not finite.
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
        row_for=partial(with_first, _written_row),
        gold=gold_texts,
        baseline=lambda task: None if task.metric == NATS else answer_baseline(task),
        head="seq2seq",
        objective=Denoising,
        encode=_encode_written,
        check_model=partial(_check_writer, max_target),
        family="encoder-decoder",
        pretrained_head=True,
        item_interval=True,
        # "patterns" is part of recorded fingerprints: see ``WrittenRow.content``.
        settings={**search, "patterns": False},
        make=generation,
    )


def _check_writer(max_target: int, config: PreTrainedConfig) -> None:
    require_kind(config, "encoder-decoder", use="a task whose answers are written")
    start_token(config)
    check_room(config, max_target, what="max_target of a task", written=True)


def _encode_written(task: Task, split: str, cutter: Cutter) -> Written:
    rows = task.splits[split]
    backend = cutter.backend
    search = task.kind.settings
    texts = [row.text for row in rows]
    inputs = backend.encode_batch(texts)
    cut_inputs = were_cut(backend, texts, inputs)
    longest = search["max_target"]
    # The tokenizer of Gemma writes no token after a text. Without one, a model would learn no end.
    open_ended = cutter.last is not None and backend.encode("a").special_tokens_mask[-1:] != [1]
    backend.enable_truncation(longest - open_ended)
    answers: list[str] = []
    counts = []
    for row in rows:
        # Training draws one of all answers. On dev and test, ``nats`` uses only the first answer.
        learned = row.answers if split == "train" else row.answers[:1]
        answers += learned
        counts.append(len(learned))
    targets = backend.encode_batch(answers)
    cut_targets = were_cut(backend, answers, targets)
    notes = []
    limits = (("texts", cut_inputs, cutter.max_length), ("answers", cut_targets, longest))
    for what, cut, most in limits:
        if any(cut):
            notes.append(f"{what} cut at {most} tokens: {sum(cut)} of {len(cut)}")
    if task.metric in ("accuracy", "exact-match"):
        decoded = backend.decode_batch([target.ids for target in targets])
        lost = 0
        for answer, was_cut, text in zip(answers, cut_targets, decoded, strict=True):
            lost += not was_cut and not ITEMS[task.metric]([answer], text)
        if lost:
            what = "answers that the tokenizer cannot write (case, accents, unknown characters)"
            notes.append(f"{what}: {lost} of {len(targets)}")
    framed = bool(targets and targets[0].special_tokens_mask[:1] == [1])
    flat = Flat.of(targets, cutter.pad)
    if open_ended:
        assert cutter.last is not None
        flat = flat.closed(cutter.last)
    return Written(
        flat=Flat.of(inputs, cutter.pad),
        targets=flat,
        first=edges(counts),
        framed=framed,
        backend=backend,
        search=search,
        cut=notes,
    )


@dataclass(frozen=True, eq=False)
class Written(Data):
    """N texts with correct answers: all answers in train, only the first answer in dev and test.

    Attributes:
        targets: the A answers to all texts, with special tokens.
        first: (N + 1,) the index of each text's first answer, and A.
        framed: whether answers begin with a special token, which is not counted in nats.
        backend: the tokenizer that decodes answers.
        search: the beam-search settings: ``beams``, ``max_target`` and ``length_penalty``.
        cut: notes on the number of texts and answers that were cut.
    """

    targets: Flat
    first: Tensor
    framed: bool
    backend: Tokenizer
    search: KindSettings
    cut: list[str]

    def notes(self) -> list[str]:
        return self.cut

    @property
    def lengths(self) -> Tensor:
        return self.flat.lengths + self.targets.lengths[self.first[:-1]]

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return input_ids and attention_mask (B, L), and labels (B, L') from the first answers."""
        return self._batch(rows, self.first[rows])

    def training_batch(self, planned: Tensor, seed: int) -> TaskBatch:
        """Return a batch; each text's label is a correct answer, drawn anew in every epoch."""
        rows = planned[:, 0]
        chosen = tensors.draws_of(planned, seed) % self.first.diff()[rows]
        return self._batch(rows, self.first[rows] + chosen)

    def _batch(self, rows: Tensor, answers: Tensor) -> TaskBatch:
        at, real = self.targets.at(answers)
        inputs = self.flat.batch(rows)
        inputs.pop("token_type_ids", None)
        return {**inputs, "labels": torch.where(real, self.targets.ids[at], IGNORE)}

    def answers(self, objective: Denoising, device: torch.device) -> list[Answer]:
        answers = [Answer("")] * len(self)
        # Beam search expands each text to ``beams`` rows. The batches are smaller by this factor.
        for rows in by_width(self.lengths, EVAL_TOKENS // self.search["beams"]):
            batch = moved(self.batch(rows), device)
            losses, where = objective.token_losses(batch)
            row, place = where.unbind(1)
            counted = (place >= self.framed).float()
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
            numbers = zip(rows.tolist(), texts, nats.tolist(), tokens.tolist(), strict=True)
            for number, text, nats_of_first, count in numbers:
                answers[number] = Answer(text.strip(), nats_of_first, int(count))
        return answers

    def chance(self, train: Data) -> float:
        """Return the mean nats of first answers under the token frequencies in train."""
        assert isinstance(train, Written)
        vocabulary = self.backend.get_vocab_size()
        # One is added to each count. Otherwise a token that does not occur in train would have
        # infinite nats.
        counts = torch.bincount(train._first_answers(), minlength=vocabulary).double() + 1
        nats = counts.sum().log() - counts.log()
        return float(nats[self._first_answers()].mean())

    def _first_answers(self) -> Tensor:
        """Return (T,) the tokens of first answers, without an initial special token."""
        at, real = self.targets.at(self.first[:-1])
        real[:, : self.framed] = False
        return self.targets.ids[at[real]]


GENERATION = generation()
