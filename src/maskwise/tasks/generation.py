"""Tasks whose answers are written by an encoder–decoder: questions without a context, summaries,
any text to any text.

A row is a text and all its right answers. In every epoch the model learns to write one of them,
which a hash of (seed, epoch, row) chooses; scores take all of them. It answers by beam search, the
same for every checkpoint: what a checkpoint's own ``generation_config`` says is not used. Rows are
written in batches of similar length.

Beside what is written, every right answer is also *read*: the mean nats of its tokens (the first
answer's, its end included) says what a model knows long before it is the likeliest thing to say, so
small models are compared by it.

Cost: beam search, one pass of the decoder for each token of the longest answer of a batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.constants import NATS
from maskwise.errors import MaskwiseError
from maskwise.families import check_room, require_kind, start_token
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Denoising
from maskwise.objectives.denoising import generated
from maskwise.tasks.columns import NO_TEXT, Columns, UsualColumns, label_of, require_text
from maskwise.tasks.metrics import ITEMS, nats_per_token
from maskwise.tasks.questions import (
    NO_ANSWER,
    any_answer,
    choices_of,
    commonest_answers,
    relation_of,
    right_choice,
)
from maskwise.tasks.task import Answers, Row, Task, Tuned
from maskwise.tasks.tensors import EVAL_TOKENS, Cutter, Data, Flat, count_cut, edges
from maskwise.text.labelled import Record
from maskwise.training.data import by_width

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TEXT = ("input", "source", "question", "article", "document", "dialogue", "text", "claim", "query")
_ANSWERS = (
    "output",
    "target",
    "answer",
    "answers",
    "highlights",
    "summary",
    "summary1",
    "label",
    "response",
    "title",
)
_TOGETHER = (
    ("input", "output"),
    ("source", "target"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("dialogue", "summary1"),
    ("question", "answer"),
    ("question", "answers"),
)
"""Columns that show by themselves that an answer is to be written."""
_INSIDE = ("answer", "text", "string", "value", "Value", "aliases", "Aliases")
"""Where an answer stands in an object: KILT's, SQuAD's, QED's and TriviaQA's."""


@dataclass(frozen=True)
class WrittenRow(Row):
    """A text, and all its right answers."""

    shown = ("text",)

    text: str
    answers: list[str]
    group: str | None = None
    """Rows with the same stay on the same side of a cut: those of a context, say."""
    relation: str = ""  # type: ignore[misc]  # of this row, not of the class

    @property
    def rights(self) -> Sequence[str]:
        return self.answers

    @property
    def content(self) -> Mapping[str, object]:
        # Rows once had patterns of answers, too: fingerprints of tasks stay as they were.
        return {**super().content, "patterns": []}

    @property
    def key(self) -> str:
        return self.group or self.text


class Answer(NamedTuple):
    """What a model wrote, and the nats and the number of the tokens of the first right answer,
    read.
    """

    text: str
    nats: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Generation(Tuned[WrittenRow]):
    """What to write for a text.

    Tuned by the cross-entropy of every token of the answer. Majority: as for cloze-qa; in nats, the
    word frequencies of train's answers. Source: Raffel et al. 2020; Roberts et al. 2020 (questions
    without a context).

    Attributes:
        beams: of the search. length_penalty: the power of the length by which a beam's score is
            divided.
        max_target: tokens; longer targets are cut, and no answer is longer.

    Raises:
        MaskwiseError: a setting that makes no search.
    """

    name = "generation"
    head, objective = "seq2seq", Denoising
    family, pretrained_head = "encoder-decoder", True
    metrics = (*ITEMS, NATS)
    columns = UsualColumns(_TEXT, (), _ANSWERS)

    beams: int = 4
    max_target: int = 32
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise MaskwiseError("beams of a task", got=self.beams, allowed="≥ 1")
        if self.max_target < 3:
            raise MaskwiseError(
                "max_target of a task leaves no room for an answer",
                got=self.max_target,
                allowed="≥ 3",
            )
        if not math.isfinite(self.length_penalty):
            raise MaskwiseError(
                "length_penalty of a task", got=self.length_penalty, allowed="a number"
            )

    @property
    def settings(self) -> Mapping[str, object]:
        return {**super().settings, "patterns": False}  # as in ``WrittenRow.content``

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Two columns of which one is written for the other."""
        names = set(records[0])
        return not (given.text or given.label) and any({*both} <= names for both in _TOGETHER)

    def row(self, record: Record, columns: Columns, where: str) -> WrittenRow | str:
        if columns.text not in record:
            raise MaskwiseError(
                f"{where} has no column {columns.text!r}", got=", ".join(record) or "no columns"
            )
        text = require_text(_joined(record[columns.text]), "text", where)
        rights = list(self._rights(record, columns, where))
        if not text.strip():
            return NO_TEXT
        group = None if (value := record.get(columns.pair or "")) is None else str(value)
        return WrittenRow(text, rights, group, relation_of(record)) if rights else NO_ANSWER

    def _rights(self, record: Record, columns: Columns, where: str) -> Iterable[str]:
        """All right answers, each once: of one column, of numbered ones (summary1, summary2, …), or
        a choice's text.
        """
        stem = re.sub(r"(?<=\D)1$", "", columns.label or "")
        alike = re.escape(stem) + ("" if stem.isdecimal() else r"\d*")
        values = [record[name] for name in record if re.fullmatch(alike, name)]
        texts = [text for value in values for text in _texts(value, where)]
        names, choices = choices_of(record)
        place = (
            right_choice(texts[0], names, choices, may_be_text=True)
            if choices and len(texts) == 1
            else None
        )
        if place is not None:
            texts = [str(choices[place])]
        return dict.fromkeys(texts)

    def gold(self, task: Task[WrittenRow], split: str) -> list[list[str]]:
        """All right answers of every row."""
        return [row.answers for row in task.splits[split]]

    def score(self, task: Task[WrittenRow], split: str, answers: Answers, metric: str) -> float:
        written = cast(Sequence[Answer], answers)
        if metric == NATS:
            return nats_per_token([a.nats for a in written], [a.tokens for a in written])
        return float(np.mean(self._each(task, split, written, metric)))

    def item_scores(
        self, task: Task[WrittenRow], split: str, answers: Answers
    ) -> NDArray[np.float64]:
        """The score of every row by the task's metric. Of nats per token, which is no mean over
        rows, the row's part in
        it: the mean over rows is the score, and their spread is that of the ratio."""
        written = cast(Sequence[Answer], answers)
        if task.metric != NATS:
            return self._each(task, split, written, task.metric)
        nats, tokens = (
            np.array(column, dtype=np.float64)
            for column in ([a.nats for a in written], [a.tokens for a in written])
        )
        ratio = nats.sum() / tokens.sum()
        return ratio + (nats - ratio * tokens) / tokens.mean()

    def _each(
        self, task: Task[WrittenRow], split: str, answers: Sequence[Answer], metric: str
    ) -> NDArray[np.float64]:
        if metric == NATS:
            return np.array([a.nats / max(1, a.tokens) for a in answers])
        return np.array(
            [
                ITEMS[metric](right, a.text)
                for right, a in zip(self.gold(task, split), answers, strict=True)
            ]
        )

    def predictions(
        self, task: Task[WrittenRow], split: str, answers: Answers
    ) -> list[dict[str, object]]:
        """What the model wrote for every row, with the row's score by the task's metric."""
        written = cast(Sequence[Answer], answers)
        each = self._each(task, split, written, task.metric).tolist()
        return [
            {
                "input": row.text,
                "gold": right,
                "answer": a.text,
                "score": score,
                "nats": a.nats / max(1, a.tokens),
            }
            for row, right, a, score in zip(
                task.splits[split], self.gold(task, split), written, each, strict=True
            )
        ]

    def majority(self, task: Task[WrittenRow]) -> float | None:
        """As of other answers in words; None for nats, which depend on the tokenizer: see
        ``chance``.
        """
        if task.metric == NATS:
            return None
        guessed = [
            task.score("test", [Answer(text) for text in guesses])
            for guesses in commonest_answers(task)
        ]
        return max(*guessed, any_answer(task))

    def chance(self, task: Task[WrittenRow], data: Mapping[str, Data]) -> float | None:
        if task.metric != NATS:
            return task.majority
        return cast(Written, data["test"]).nats_of_frequencies(cast(Written, data["train"]))

    def check_model(self, config: PreTrainedConfig) -> None:
        require_kind(config, self.family, use="a task whose answers are written")
        start_token(config)
        check_room(config, self.max_target, what="max_target of a task")

    def encode(self, task: Task[WrittenRow], split: str, cutter: Cutter) -> Written:
        rows, backend = task.splits[split], cutter.backend
        inputs = backend.encode_batch([row.text for row in rows])
        backend.enable_truncation(self.max_target)
        taken = [row.answers if split == "train" else row.answers[:1] for row in rows]
        answers = [answer for some in taken for answer in some]
        targets = backend.encode_batch(answers)
        cut = [
            (f"texts cut at {cutter.max_length} tokens", inputs, count_cut(inputs)),
            (f"answers cut at {self.max_target} tokens", targets, count_cut(targets)),
        ]
        if task.metric in ("accuracy", "exact-match"):
            back = backend.decode_batch([target.ids for target in targets])
            lost = [
                not target.overflowing and not ITEMS[task.metric]([answer], text)
                for answer, target, text in zip(answers, targets, back, strict=True)
            ]
            what = "answers that the tokenizer cannot write (case, accents, unknown characters)"
            cut.append((what, targets, sum(lost)))
        notes = [f"{what}: {count} of {len(whole)}" for what, whole, count in cut if count]
        framed = bool(targets and targets[0].special_tokens_mask[:1] == [1])
        flat, first = Flat.of(targets, cutter.pad), edges([len(some) for some in taken])
        return Written(Flat.of(inputs, cutter.pad), flat, first, framed, backend, self, notes)


# Records


def _joined(value: object) -> object:
    """What a cell holds; of a list of sentences one text."""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    return value


def _texts(value: object, where: str) -> Iterable[str]:
    """The right answers in a cell: a text or a number, a list of such, or objects that hold them."""
    if isinstance(value, Mapping):
        value = [value[name] for name in _INSIDE if name in value]
    if isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, where)
    elif value is None or isinstance(value, str | int | float):
        if (text := label_of(value)) is not None:
            yield text
    else:
        raise MaskwiseError(
            f"{where}: cannot read the answers", got=value, allowed="texts, or KILT's objects"
        )


# Tensors


@dataclass(frozen=True, eq=False)
class Written(Data[Denoising]):
    """N texts with their right answers: in train all of them, in dev and test the first of each.

    Attributes:
        targets: the answers of all texts, with the tokenizer's special tokens.
        first: (N + 1,) where the answers of each text begin.
        framed: whether answers begin with a special token, which is always the same and so is not
            counted in nats.
        backend: turns tokens into text.
        kind: the settings of the search.
        cut: what was cut, and how often.
    """

    targets: Flat
    first: Tensor
    framed: bool
    backend: Tokenizer
    kind: Generation
    cut: list[str]

    def notes(self) -> list[str]:
        return self.cut

    @property
    def lengths(self) -> Tensor:
        return self.flat.lengths + self.targets.lengths[self.first[:-1]]

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """(B, L) input_ids and attention_mask, (B, L') labels: the first answer of each text."""
        return self._batch(rows, self.first[rows])

    def training_batch(self, rows: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """The same with one of the answers of each text, as the draws say."""
        return self._batch(rows, self.first[rows] + draws % self.first.diff()[rows])

    def _batch(self, rows: Tensor, answers: Tensor) -> dict[str, Tensor]:
        at, real = self.targets.at(answers)
        inputs = {
            name: value for name, value in self.flat.batch(rows).items() if name != "token_type_ids"
        }
        return {**inputs, "labels": torch.where(real, self.targets.ids[at], IGNORE)}

    def answers(self, objective: Denoising, device: torch.device) -> list[Answer]:
        answers: list[Answer] = [Answer("")] * len(self)
        for rows in by_width(self.lengths, EVAL_TOKENS // self.kind.beams):
            batch = {name: value.to(device) for name, value in self.batch(rows).items()}
            losses, where = objective.token_losses(batch)
            row, counted = where[:, 0], (where[:, 1] >= self.framed).float()
            nats, tokens = (
                torch.zeros(len(rows), device=device).index_add_(0, row, each).tolist()
                for each in (losses.float() * counted, counted)
            )
            del batch["labels"]
            ids = generated(
                objective.model,
                batch,
                most=self.kind.max_target,
                beams=self.kind.beams,
                length_penalty=self.kind.length_penalty,
            )
            texts = self.backend.decode_batch(ids, skip_special_tokens=True)
            for place, *answer in zip(rows.tolist(), texts, nats, tokens, strict=True):
                answers[place] = Answer(answer[0].strip(), answer[1], int(answer[2]))
        return answers

    def nats_of_frequencies(self, train: Written) -> float:
        """Mean nats of the first answers' tokens by their frequencies in those of train, each count
        plus one.
        """
        known, asked = train._counted(), self._counted()
        counts = torch.bincount(known, minlength=self.backend.get_vocab_size()).double() + 1
        return float((counts.sum().log() - counts.log())[asked].mean())

    def _counted(self) -> Tensor:
        """(T,) the tokens of first answers that count in nats."""
        at, real = self.targets.at(self.first[:-1])
        return self.targets.ids[at[:, self.framed :]][real[:, self.framed :]]
