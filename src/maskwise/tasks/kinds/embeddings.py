"""Kinds of tasks that evaluate the embeddings of an encoder.

``sentence-embedding`` trains a logistic regression on the embeddings. ``zero-shot-similarity``
correlates the cosines of pairs of texts with human scores. ``retrieval`` ranks texts by their
similarity to a query. The encoder is frozen, so nothing is random; only ``retrieval`` can fine-tune
it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from maskwise.base.errors import MaskwiseError, finite_number
from maskwise.objectives.base import InBatchNegatives
from maskwise.tasks.columns import NO_TEXT, ColumnNames, UsualColumns, require_text
from maskwise.tasks.kinds.classes import SEQUENCE_CLASSIFICATION, SIMILARITY
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.task import CORPUS, Row, Task, TaskKind, TaskRows
from maskwise.tasks.tensors import Cutter, Data, Flat, TaskBatch, embed
from maskwise.text import read_documents
from maskwise.text.tables import FieldValues

# The embeddings (N, H) of all texts of each split. The two texts of a pair are adjacent rows.
ByText = Mapping[str, Tensor]
ByAnswer = Mapping[str, ArrayLike]
# SentEval's grid of C, the inverse of the penalty.
PENALTIES = tuple(2.0**power for power in range(-2, 4))


def _classified(task: Task, vectors: ByText) -> ByAnswer:
    """Classify embeddings by logistic regression, with the penalty that scores best on dev."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features = {split: _features(task, split, each) for split, each in vectors.items()}
    best_score = -np.inf
    # The strongest penalty is tried first, so it wins ties.
    for penalty in PENALTIES:
        classifier = LogisticRegression(C=penalty, max_iter=300)
        with warnings.catch_warnings():
            # Unscaled embeddings may need over 300 steps, but more steps do not change the score.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(features["train"], task.gold("train"))
        score = task.score("dev", classifier.predict(features["dev"]))
        if score > best_score:
            best_score = score
            best = classifier
    return {split: best.predict(features[split]) for split in ("dev", "test")}


def _features(task: Task, split: str, vectors: Tensor) -> ArrayLike:
    """Return the features of a split: embeddings (N, H), or [|u − v|, u · v] (N, 2 H) for pairs.

    The features of a pair are those of SentEval, from the embeddings u and v of its two texts.
    """
    if any(row.pair is not None for row in task.splits[split]):
        u = vectors[::2]
        v = vectors[1::2]
        vectors = torch.cat([(u - v).abs(), u * v], dim=1)
    return vectors.double().numpy()


# The fields that turn a kind with fine-tuning into a kind with a frozen encoder.
FROZEN: dict[str, Any] = {
    "head": "embedding",
    "objective": None,
    "encode": None,
    "least_tokens": (False, 1),
}
# Conneau & Kiela 2018 (SentEval), section 3, but with one fixed split instead of ten folds.
SENTENCE_EMBEDDING = replace(
    SEQUENCE_CLASSIFICATION,
    **FROZEN,
    name="sentence-embedding",
    suffix="-embedding",
    answers=_classified,
    library="sklearn",
)


def _cosines(task: Task, vectors: ByText) -> ByAnswer:
    cosines = {}
    for split, both in vectors.items():
        cosines[split] = torch.cosine_similarity(both[::2], both[1::2]).double().numpy()
    return cosines


# The correlation of cosines with human similarity scores (STS).
ZERO_SHOT_SIMILARITY = replace(
    SIMILARITY,
    **FROZEN,
    name="zero-shot-similarity",
    suffix="-zero-shot",
    answers=_cosines,
    needs_train=False,
)


QUERY, PASSAGE = ("query", "anchor", "title"), ("passage", "positive", "text")
PAIRS = (
    *(("query", "passage"), ("query", "positive"), ("anchor", "positive")),
    *(("query", "text"), ("title", "text")),
)


@dataclass(frozen=True)
class PairedRow(Row):
    """A query, such as a title or question, and its correct text."""

    shown = ("query", "passage")

    query: str
    passage: str


def _paired_row(record: FieldValues, columns: ColumnNames, where: str) -> PairedRow | str:
    query, passage, _ = columns.cells(record)
    require_text(query, "title", where)
    require_text(passage, "text", where)
    if not (query.strip() and passage.strip()):
        return NO_TEXT
    return PairedRow(query, passage)


class Candidates(NamedTuple):
    """The distinct texts that are ranked for each of N queries.

    Attributes:
        first: the first row of each distinct text of the rows.
        more: the places, in the corpus of the task, of further texts, which no row has.
        own: (N,) the number of each row's correct text.
        wrong: (N, P) whether a text is a wrong answer: no row with this query has it.
    """

    first: list[int]
    more: list[int]
    own: Tensor
    wrong: Tensor

    @classmethod
    def of(cls, rows: TaskRows, corpus: Sequence[str] = ()) -> Candidates:
        first: dict[str, int] = {}
        for number, row in enumerate(rows):
            first.setdefault(row.passage, number)
        places = {passage: place for place, passage in enumerate(first)}
        own = [places[row.passage] for row in rows]
        right: dict[str, list[int]] = {}
        for row, place in zip(rows, own):
            right.setdefault(row.query, []).append(place)
        more = [place for place, text in enumerate(corpus) if text not in first]
        wrong = torch.ones(len(rows), len(first) + len(more), dtype=torch.bool)
        for number, row in enumerate(rows):
            wrong[number, right[row.query]] = False
        return cls([*first.values()], more, torch.tensor(own), wrong)


def _rank_baseline(task: Task) -> float:
    """Return the expected score of a random ranking."""
    score = METRICS[task.metric]
    texts = Candidates.of(task.splits["test"], task.kind.corpus)
    total = 0.0
    # Most queries have as many wrong texts.
    for wrong, queries in Counter(texts.wrong.sum(1).tolist()).items():
        ranks = np.arange(1, wrong + 2)
        total += queries * score(np.ones(len(ranks)), ranks)
    return total / len(texts.own)


def _ranks(task: Task, vectors: ByText) -> ByAnswer:
    """Return the ranks of the correct texts of each split, see ``ranks_of``."""
    ranks = {}
    for split in vectors.keys() & {"dev", "test"}:
        both = vectors[split]
        texts = Candidates.of(task.splits[split], task.kind.corpus)
        passages = both[1::2][texts.first]
        if texts.more:
            passages = torch.cat([passages, vectors[CORPUS][texts.more]])
        ranks[split] = ranks_of(both[::2], passages, texts)
    return ranks


def ranks_of(queries: Tensor, passages: Tensor, texts: Candidates) -> ArrayLike:
    """(N,): the rank, from 1, of each correct text among the wrong texts of the split.

    A text that several rows have is one candidate, and of the correct texts of a query that several
    rows have, none is ranked before another. Among texts with equal cosines, the correct text is
    ranked last. A model that gives all texts the same embedding therefore gets no credit.

    Args:
        queries: (N, H) the embeddings of the queries.
        passages: (P, H) those of the candidates.
        texts: the candidates.
    """
    cosine = normalize(queries.double(), dim=1) @ normalize(passages.double(), dim=1).T
    right = cosine.gather(1, texts.own.unsqueeze(1))
    ranks: ArrayLike = (1 + ((cosine >= right) & texts.wrong).sum(1)).numpy()
    return ranks


@dataclass(frozen=True, eq=False)
class Queries(Data):
    """N queries (``flat``) and the P texts among which the correct ones are.

    Attributes:
        passages: the texts.
        texts: which of them are correct.
    """

    passages: Flat
    texts: Candidates

    @property
    def lengths(self) -> Tensor:
        return self.flat.lengths + self.passages.lengths[self.texts.own]

    def notes(self) -> list[str]:
        return [*self.flat.notes("queries"), *self.passages.notes("texts")]

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the inputs of queries and of their texts, and the texts that are wrong (B, B)."""
        own = self.texts.own[rows]
        inputs = {f"query_{name}": value for name, value in self.flat.batch(rows).items()}
        wrong = self.texts.wrong[rows][:, own]
        labels = torch.arange(len(rows))
        return {**self.passages.batch(own), **inputs, "wrong": wrong, "labels": labels}

    def answers(self, objective: InBatchNegatives, device: torch.device) -> ArrayLike:
        """(N,): the rank of each correct text."""
        embedded = partial(embed, objective.model, pooling=objective.pooling)
        return ranks_of(embedded(self.flat), embedded(self.passages), self.texts)


def _encode_queries(task: Task, split: str, cutter: Cutter) -> Queries:
    rows = task.splits[split]
    # Training reads the texts of a batch alone.
    corpus = () if split == "train" else task.kind.corpus
    texts = Candidates.of(rows, corpus)
    passages = [rows[first].passage for first in texts.first]
    passages += [corpus[place] for place in texts.more]
    return Queries(
        flat=cutter.flat([row.query for row in rows]),
        passages=cutter.flat(passages),
        texts=texts,
    )


TEMPERATURE = 0.05
"""The usual number by which cosines are divided: the scale 20 of sentence-transformers."""


def retrieval(
    fine_tuned: bool = False, temperature: float = TEMPERATURE, corpus: str | None = None
) -> TaskKind:
    """Find the text of a query, by a frozen or a fine-tuned encoder.

    Args:
        corpus: further texts among which those of dev and test are found, as for
            ``read_documents``.
        fine_tuned: whether the encoder learns from the training rows, with the texts of the other
            rows of a batch as wrong answers.
        temperature: the number by which cosines are divided in this training.

    Raises:
        MaskwiseError: the temperature is not positive, or is given although nothing is trained.
    """
    finite_number("temperature of a task", temperature, least=0.001)
    settings: dict[str, object] = {}
    texts: tuple[str, ...] = ()
    if corpus is not None:
        texts = tuple(document.text for document in read_documents(corpus))
        settings["corpus"] = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    # The mean reciprocal rank, in which ranks above 10 count as 0: Craswell 2009.
    frozen = TaskKind(
        name="retrieval",
        suffix="-retrieval",
        metrics=("mrr", "recall-at-1", "ndcg-at-10"),
        columns=UsualColumns(QUERY, PASSAGE, (), PAIRS),
        row=_paired_row,
        unread=("label",),
        gold=lambda task, split: np.ones(len(task.splits[split])),
        baseline=_rank_baseline,
        answers=_ranks,
        needs_train=False,
        least_tokens=(False, 1),
        corpus=texts,
        settings=settings,
        make=retrieval,
    )
    if not fine_tuned:
        if temperature != TEMPERATURE:
            raise MaskwiseError(
                "temperature of a task has no effect, because retrieval trains nothing",
                got=temperature,
                do="leave temperature out, or give fine_tuned=true",
            )
        return frozen
    return replace(
        frozen,
        suffix="-fine-tuned-retrieval",
        objective=partial(InBatchNegatives, temperature=temperature),
        pools=True,
        encode=_encode_queries,
        answers=None,
        needs_train=True,
        settings={"fine_tuned": True, "temperature": temperature, **settings},
    )


RETRIEVAL = retrieval()
