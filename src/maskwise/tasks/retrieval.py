"""Which text belongs to a title? What a corpus itself can judge sentence embeddings by, without any label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import normalize

from maskwise.errors import MaskwiseError
from maskwise.tasks.columns import NO_TEXT, Columns, UsualColumns
from maskwise.tasks.task import Frozen, Row, Task
from maskwise.text.labelled import Record


@dataclass(frozen=True)
class PairedRow(Row):
    """A title (a question, a first sentence), and the text that belongs to it."""

    query: str
    passage: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.query, self.passage)


class Retrieval(Frozen[PairedRow]):
    """The text of a title among all texts of the split, by the cosine of embeddings. Nothing is learned from train.

    ``mrr``: the mean of 1 / rank of the right text, 0 beyond rank 10; ``recall-at-1``: how often it is first.
    Majority: the expected score of a random order. Source: Craswell 2009 (mean reciprocal rank).
    """

    name = "retrieval"
    suffix = "-retrieval"
    needs_train = False
    metrics = ("mrr", "recall-at-1")
    columns = UsualColumns(("query", "title"), ("passage", "text"), (), (("query", "passage"), ("title", "text")))

    def row(self, record: Record, columns: Columns, where: str) -> PairedRow | str:
        query, passage = record.get(columns.text or ""), record.get(columns.pair or "")
        if not isinstance(query, str) or not isinstance(passage, str):
            got = f"{type(query).__name__} and {type(passage).__name__}"
            raise MaskwiseError(f"{where}: a title and a text are texts", got=got)
        return PairedRow(query, passage) if query.strip() and passage.strip() else NO_TEXT

    def gold(self, task: Task[PairedRow], split: str) -> NDArray[np.int64]:
        return np.ones(len(task.splits[split]), dtype=np.int64)

    def majority(self, task: Task[PairedRow]) -> float:
        count = len(task.splits["test"])
        if task.metric == "recall-at-1":
            return 1 / count
        return sum(1 / rank for rank in range(1, min(count, 10) + 1)) / count

    def answers(self, task: Task[PairedRow], vectors: Mapping[str, Tensor]) -> Mapping[str, ArrayLike]:
        """The rank of the right text, from 1; texts that are as near count as nearer."""
        ranks = {}
        for split, both in vectors.items():
            unit = normalize(both.double(), dim=1)
            likeness = unit[::2] @ unit[1::2].T
            ranks[split] = (likeness >= likeness.diagonal().unsqueeze(1)).sum(1).numpy()
        return ranks
