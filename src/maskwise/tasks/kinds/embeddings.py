"""Kinds of tasks that evaluate the embeddings of a frozen encoder. Nothing is fine-tuned or random.

``sentence-embedding`` trains a logistic regression on the embeddings. ``zero-shot-similarity``
correlates the cosines of pairs of texts with human scores. ``retrieval`` ranks texts by their
similarity to a title.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from maskwise.tasks.columns import NO_TEXT, ColumnNames, UsualColumns, require_text
from maskwise.tasks.kinds.classes import SEQUENCE_CLASSIFICATION, SIMILARITY
from maskwise.tasks.task import Row, Task, TaskKind, TaskRows
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
        first: (P,) the first row of each distinct text.
        own: (N,) the number of each row's correct text.
        wrong: (N, P) whether a text is a wrong answer: no row with this query has it.
    """

    first: list[int]
    own: Tensor
    wrong: Tensor

    @classmethod
    def of(cls, rows: TaskRows) -> Candidates:
        first: dict[str, int] = {}
        for number, row in enumerate(rows):
            first.setdefault(row.passage, number)
        places = {passage: place for place, passage in enumerate(first)}
        own = [places[row.passage] for row in rows]
        right: dict[str, list[int]] = {}
        for row, place in zip(rows, own):
            right.setdefault(row.query, []).append(place)
        wrong = torch.ones(len(rows), len(first), dtype=torch.bool)
        for number, row in enumerate(rows):
            wrong[number, right[row.query]] = False
        return cls([*first.values()], torch.tensor(own), wrong)


def _rank_baseline(task: Task) -> float:
    """Return the expected score of a random ranking."""
    most = 1 if task.metric == "recall-at-1" else 10
    scores = []
    for wrong in Candidates.of(task.splits["test"]).wrong.sum(1).tolist():
        ranks = wrong + 1
        scores.append(sum(1 / rank for rank in range(1, min(ranks, most) + 1)) / ranks)
    return fmean(scores)


def _ranks(task: Task, vectors: ByText) -> ByAnswer:
    """Return the rank, from 1, of each correct text among the wrong texts of the split.

    A text that several rows have is one candidate, and of the correct texts of a query that several
    rows have, none is ranked before another. Among texts with equal cosines, the correct text is
    ranked last. A model that gives all texts the same embedding therefore gets no credit.
    """
    ranks = {}
    for split, both in vectors.items():
        texts = Candidates.of(task.splits[split])
        unit = normalize(both.double(), dim=1)
        cosine = unit[::2] @ unit[1::2][texts.first].T
        right = cosine.gather(1, texts.own.unsqueeze(1))
        ranks[split] = (1 + ((cosine >= right) & texts.wrong).sum(1)).numpy()
    return ranks


# The mean reciprocal rank, in which ranks above 10 count as 0: Craswell 2009.
RETRIEVAL = TaskKind(
    name="retrieval",
    suffix="-retrieval",
    metrics=("mrr", "recall-at-1"),
    columns=UsualColumns(
        ("query", "title"), ("passage", "text"), (), (("query", "passage"), ("title", "text"))
    ),
    row=_paired_row,
    unread=("label",),
    gold=lambda task, split: np.ones(len(task.splits[split])),
    baseline=_rank_baseline,
    answers=_ranks,
    needs_train=False,
    least_tokens=(False, 1),
)
