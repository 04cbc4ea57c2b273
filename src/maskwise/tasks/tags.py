"""The class of every word.

Words are those of the *data*, given to the tokenizer one by one; the tag stands on the
first piece of each. A word whose first piece was cut off, or that has no piece at all, cannot be
answered: it is counted in ``lost`` and scored as wrong, for leaving it out would reward short rows
    and coarse tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Classification
from maskwise.tasks.classes import CLASS_METRICS, Classes, ClassRow
from maskwise.tasks.columns import NO_LABEL, NO_TEXT, Columns, UsualColumns, label_of
from maskwise.tasks.metrics import METRICS, UNSEEN, entity_counts, entity_f1
from maskwise.tasks.task import Answers, Task, Tuned
from maskwise.tasks.tensors import Cutter, Encoded, Flat, edges
from maskwise.text.labelled import Record

_BIO = re.compile(r"O$|[BIES]-.")


@dataclass(frozen=True)
class TaggedRow(ClassRow):
    """Words, and a tag for each."""

    tokens: list[str]
    tags: list[str]

    @property
    def texts(self) -> tuple[str, ...]:
        return (" ".join(self.tokens),)

    @property
    def classes(self) -> Sequence[str]:
        return self.tags

    @property
    def key(self) -> str:
        return "\t".join(self.tokens)


class TokenClassification(Classes[TaggedRow], Tuned[TaggedRow]):
    """The class of every word.

    Tuned with a linear layer over every token and cross-entropy at the first piece of each word.
    Majority: the commonest tag of train. Source: Devlin et al. 2019, section 5.3.
    """

    name = "token-classification"
    head, objective = "token-classification", Classification
    metrics = (*CLASS_METRICS, "entity-f1")
    columns = UsualColumns(
        ("tokens", "words"), (), ("tags", "upos", "pos_tags", "ner_tags", "labels", "label")
    )
    words = True

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """A list of words."""
        names = (given.text,) if given.text else self.columns.text
        return any(isinstance(records[0].get(name), list) for name in names)

    def row(self, record: Record, columns: Columns, where: str) -> TaggedRow | str:
        tokens, tags = record.get(columns.text or ""), record.get(columns.label or "")
        if tags is None:
            return NO_LABEL
        if not isinstance(tokens, list) or not isinstance(tags, list):
            got = f"{type(tokens).__name__} and {type(tags).__name__}"
            raise MaskwiseError(f"{where}: tokens and tags must be lists", got=got)
        if not all(isinstance(token, str) for token in tokens):
            raise MaskwiseError(f"{where}: a token is no text", got=tokens)
        if len(tokens) != len(tags):
            got = f"{len(tokens)} and {len(tags)}"
            raise MaskwiseError(f"{where}: tokens and tags differ in number", got=got)
        names = [label_of(tag) for tag in tags]
        if not tokens:
            return NO_TEXT
        labelled = [name for name in names if name is not None]
        return TaggedRow(tokens, labelled) if len(labelled) == len(names) else NO_LABEL

    def usual_metric(self, labels: tuple[str, ...]) -> str:
        return "entity-f1" if all(_BIO.match(label) for label in labels) else "accuracy"

    def check_metric(self, metric: str, labels: tuple[str, ...]) -> None:
        super().check_metric(metric, labels)
        if metric == "entity-f1" and self.usual_metric(labels) != metric:
            raise MaskwiseError(
                "entity-f1 needs tags such as O, B-x, I-x", got=", ".join(labels[:5])
            )

    def score(self, task: Task[TaggedRow], split: str, answers: Answers, metric: str) -> float:
        gold, answered = self.gold(task, split), np.asarray(answers)
        if metric != "entity-f1":
            return METRICS[metric](gold, answered)
        return entity_f1(*self._tagged(task, split, answered))

    def row_counts(
        self, task: Task[TaggedRow], split: str, answers: Answers
    ) -> NDArray[np.float64] | None:
        if task.metric != "entity-f1":
            return super().row_counts(task, split, answers)
        return entity_counts(*self._tagged(task, split, np.asarray(answers)))

    def _tagged(
        self, task: Task[TaggedRow], split: str, answered: NDArray[np.int64]
    ) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.int64]]:
        """The right tags, the answered ones, and where sentences begin."""
        # −2, an answer that could not be given, is O; −1, a tag that train does not have, is an
        # entity of its own.
        names = np.array([*task.labels, "O", "B-unseen by train"])
        starts = edges([len(row.tags) for row in task.splits[split]])[:-1].numpy()
        return names[self.gold(task, split)], names[answered], starts

    def encode(self, task: Task[TaggedRow], split: str, cutter: Cutter) -> Encoded:
        rows, gold = task.splits[split], torch.from_numpy(self.gold(task, split))
        encodings = cutter.backend.encode_batch([row.tokens for row in rows], is_pretokenized=True)
        flat = Flat.of(encodings, cutter.pad)
        # Words are numbered in their row; special tokens have none, which numpy reads as nan.
        word = np.array(list(chain.from_iterable(e.word_ids for e in encodings)), dtype=np.float64)
        is_word_T = torch.from_numpy(~np.isnan(word))
        word_T = torch.from_numpy(np.nan_to_num(word, nan=-1)).long()
        row_T = torch.repeat_interleave(torch.arange(len(rows)), flat.lengths)
        running_T = torch.where(
            is_word_T, edges([len(row.tokens) for row in rows])[row_T] + word_T, -1
        )
        is_first_T = is_word_T & (running_T != running_T.roll(1))
        is_first_T[0] = is_word_T[0]
        first = is_first_T.nonzero().flatten()
        place = torch.full((len(gold),), -1)
        place[running_T[first]] = first
        targets = torch.full((len(flat.ids),), IGNORE)
        targets[first] = torch.where(gold == UNSEEN, IGNORE, gold)[running_T[first]]
        return Encoded(flat, targets, place)
