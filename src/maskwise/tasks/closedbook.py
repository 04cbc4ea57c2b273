"""Questions without a context, answered by an encoder with the head that it was pre-trained with:
closed-book as cloze.

The row is ``question QUESTION answer [MASK] …``, and the answer is read off the masks. There are as
many masks as the longest answer of train has tokens; a shorter answer is followed by the separator.
So the number of masks tells nothing of the answer, and with answers of one token there is one mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.families import masked_logits
from maskwise.masking.batch import IGNORE
from maskwise.objectives import MaskedLanguageModelling
from maskwise.tasks.columns import Columns, UsualColumns, require_text
from maskwise.tasks.questions import NO_ANSWER, Answered, read_answers, relation_of
from maskwise.tasks.task import Row, Task
from maskwise.tasks.tensors import Cutter, Data, Flat, batches, count_cut, edges
from maskwise.text.labelled import Record


@dataclass(frozen=True)
class QARow(Row):
    """A question that stands alone, and all its right answers."""

    shown = ("question",)

    question: str
    answers: list[str]
    relation: str = ""  # type: ignore[misc]  # of this row, not of the class

    @property
    def rights(self) -> Sequence[str]:
        return self.answers


class ClozeAnswers(Answered[QARow]):
    """Which tokens stand at the masks behind a question; the loss is that of masked language
    modelling.

    Majority: the commonest answer of train to the relation that is asked for
        (``questions.RELATIONS``), or any of its
    answers. Source: the closed-book set-up of Roberts et al. 2020 (arXiv 2002.08910),
    for encoders.
    """

    name = "cloze-qa"
    head, objective = "masked-lm", MaskedLanguageModelling
    pretrained_head = True
    metrics = ("exact-match", "f1")
    columns = UsualColumns(("question", "input", "query"), (), ("answers", "answer", "output"))

    def row(self, record: Record, columns: Columns, where: str) -> QARow | str:
        question = require_text(record.get(columns.text or ""), "question", where, filled=True)
        answers = [
            text for text, _ in read_answers(record.get(columns.label or ""), where) if text.strip()
        ]
        return QARow(question, answers, relation_of(record)) if answers else NO_ANSWER

    def least_tokens(self, task: Task[QARow]) -> tuple[bool, int]:
        return False, 8  # the prompt, some words of the question, a mask

    def encode(self, task: Task[QARow], split: str, cutter: Cutter) -> Slots:
        backend = cutter.backend
        mask, end = (_token(backend, names) for names in (("[MASK]", "<mask>"), ("[SEP]", "</s>")))
        slots = max(len(answer) for answer in _answer_ids(task, "train", backend))
        room = cutter.max_length - backend.num_special_tokens_to_add(is_pair=False) - slots
        if room < 8:
            got = f"{cutter.max_length} for answers of up to {slots} tokens"
            raise MaskwiseError("max_length leaves no room for the question", got=got)
        rows = task.splits[split]
        # A long question is cut at its end, before the words that say where the answer stands.
        backend.no_truncation()
        tail = backend.encode(PROMPT[1], add_special_tokens=False).ids
        backend.enable_truncation(room - len(tail))
        cut = backend.encode_batch(
            [f"{PROMPT[0]} {row.question}" for row in rows], add_special_tokens=False
        )
        tail += [mask] * slots
        backend.no_truncation()
        frame = backend.encode("")
        sequences = [[*frame.ids[:1], *encoding.ids, *tail, *frame.ids[1:]] for encoding in cut]
        flat = Flat(
            torch.tensor([token for ids in sequences for token in ids]),
            torch.zeros(sum(map(len, sequences)), dtype=torch.long),
            edges([len(ids) for ids in sequences]),
            cutter.pad,
            count_cut(cut),
        )
        targets = torch.full((len(rows), slots), end)
        answers = _answer_ids(task, split, backend)
        for row, answer in enumerate(answers):
            targets[row, : len(answer)] = torch.tensor(answer[:slots])
        lost = sum(len(answer) > slots for answer in answers)
        return Slots(flat, targets, len(frame.ids) - 1, end, lost, backend)


PROMPT = ("question", " answer")
"""The words before and behind a question."""


@dataclass(frozen=True, eq=False)
class Slots(Data[MaskedLanguageModelling]):
    """N questions, each with S masks behind it.

    Attributes:
        targets: (N, S) the tokens of the answer, then separators.
        behind: special tokens that follow the masks.
        end: the separator.
        too_long: questions whose answer is longer than S tokens.
        backend: what turns tokens into text.
    """

    targets: Tensor
    behind: int
    end: int
    too_long: int
    backend: Tokenizer

    @property
    def lost(self) -> int:
        """Questions whose answer has more tokens than there are masks."""
        return self.too_long

    def places(self, rows: Tensor) -> Tensor:
        """(B, S) the columns of the masks."""
        slots = self.targets.shape[1]
        return (self.flat.lengths[rows] - self.behind - slots).unsqueeze(1) + torch.arange(slots)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives, and labels (B, L): the answers at the masks, −100 elsewhere."""
        inputs = self.flat.batch(rows)
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        return {**inputs, "labels": labels.scatter_(1, self.places(rows), self.targets[rows])}

    def answers(self, objective: MaskedLanguageModelling, device: torch.device) -> list[str]:
        """The text of the likeliest token at every mask, up to the first separator."""
        best = torch.empty_like(self.targets)
        for rows, batch in batches(self, device):
            column = self.places(rows).to(device)
            row = torch.arange(len(rows), device=device).unsqueeze(1).expand_as(column)
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = masked_logits(objective.model, inputs, row.flatten(), column.flatten())
            best[rows] = logits.argmax(-1).view_as(column).cpu()
        until = (best == self.end).cumsum(1) > 0
        return self.backend.decode_batch(
            [ids[~stop].tolist() for ids, stop in zip(best, until)], skip_special_tokens=False
        )


def _answer_ids(task: Task[QARow], split: str, backend: Tokenizer) -> list[list[int]]:
    """The tokens of the first answer of every question."""
    backend.no_truncation()
    texts = [f" {row.answers[0]}" for row in task.splits[split]]
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


def _token(backend: Tokenizer, names: Sequence[str]) -> int:
    """The id of a special token, under whichever of its names the tokenizer has it."""
    token = next(
        (backend.token_to_id(name) for name in names if backend.token_to_id(name) is not None), None
    )
    if token is None:
        what, got = "cloze-qa needs a tokenizer with masks and separators", f"no {names[0]}"
        raise MaskwiseError(what, got=got, do="take the tokenizer of an encoder")
    return token
