"""Kinds that judge the embeddings of an encoder as it is: nothing is fine-tuned, nothing is random.

The class of a text by a regression of scikit-learn's, the similarity of two texts by their cosine,
the text that belongs to a title, and evaluators of sentence-transformers (``pip install
sentence-transformers``).

In a recipe a file with usual columns is enough, ``FILE(kind='evaluator', evaluator='triplet')``; in
Python any evaluator object will do (``evaluator_task``). An evaluator asks a model for the vectors
of its texts. Here the encoder has embedded them before, as for every frozen kind, and what the
evaluator takes for a model only looks them up.

Cost: one forward pass over every text.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import normalize

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.tasks.classes import ScoredRow, Scores, TextClasses, TextRow, number_of
from maskwise.tasks.columns import NO_TEXT, Columns, UsualColumns, require_text
from maskwise.tasks.task import Answers, Frozen, Row, Task
from maskwise.text.labelled import Record

PENALTIES = tuple(2.0**power for power in range(-2, 4))
"""SentEval's grid of C, the inverse of the penalty."""


class SentenceEmbedding(TextClasses, Frozen[TextRow]):
    """The class of a text (or of two) by logistic regression on embeddings.

    The strength of the penalty is chosen on dev, on SentEval's grid; of equally good ones the
    strongest. (SentEval itself cuts MR, CR, SUBJ and MPQA into ten folds; here they are cut once,
    by hash.) Majority: the commonest class of train. Source: Conneau & Kiela 2018 (SentEval),
    section 3.
    """

    name = "sentence-embedding"
    suffix = "-embedding"

    def answers(
        self, task: Task[TextRow], vectors: Mapping[str, Tensor]
    ) -> Mapping[str, ArrayLike]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        features = {
            split: _features(task, split, each).double().numpy() for split, each in vectors.items()
        }
        tried = []
        for penalty in PENALTIES:
            with warnings.catch_warnings():
                # An embedding that is not scaled may need more steps; the score moves no more by
                # then.
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted = LogisticRegression(C=penalty, max_iter=300)
                fitted.fit(features["train"], self.gold(task, "train"))
            tried.append((task.score("dev", fitted.predict(features["dev"])), fitted))
        best = max(tried, key=lambda pair: pair[0])[1]
        return {split: best.predict(features[split]) for split in ("dev", "test")}


def _features(task: Task[TextRow], split: str, vectors: Tensor) -> Tensor:
    """(N, H) of texts; of pairs u and v (N, 2 H) [|u − v|, u · v], as SentEval has it."""
    if all(row.pair is None for row in task.splits[split]):
        return vectors
    u, v = vectors[::2], vectors[1::2]
    return torch.cat([(u - v).abs(), u * v], dim=1)


class ZeroShotSimilarity(Scores, Frozen[ScoredRow]):
    """The cosine of two sentences' embeddings against people's scores (STS). Nothing is learned
    from train.
    """

    name = "zero-shot-similarity"
    suffix = "-zero-shot"
    needs_train = False

    def answers(
        self, task: Task[ScoredRow], vectors: Mapping[str, Tensor]
    ) -> Mapping[str, ArrayLike]:
        return {
            split: torch.cosine_similarity(both[::2], both[1::2]).double().numpy()
            for split, both in vectors.items()
        }


@dataclass(frozen=True)
class PairedRow(Row):
    """A title (a question, a first sentence), and the text that belongs to it."""

    shown = ("query", "passage")

    query: str
    passage: str


class Retrieval(Frozen[PairedRow]):
    """The text of a title among all texts of the split, by the cosine of embeddings. Nothing is
    learned from train.

    ``mrr``: the mean of 1 / rank of the right text, 0 beyond rank 10; ``recall-at-1``: how often it
        is first.
    Majority: the expected score of a random order. Source: Craswell 2009 (mean reciprocal rank).
    """

    name = "retrieval"
    suffix = "-retrieval"
    needs_train = False
    metrics = ("mrr", "recall-at-1")
    columns = UsualColumns(
        ("query", "title"), ("passage", "text"), (), (("query", "passage"), ("title", "text"))
    )

    def row(self, record: Record, columns: Columns, where: str) -> PairedRow | str:
        query = require_text(record.get(columns.text or ""), "title", where)
        passage = require_text(record.get(columns.pair or ""), "text", where)
        return PairedRow(query, passage) if query.strip() and passage.strip() else NO_TEXT

    def gold(self, task: Task[PairedRow], split: str) -> NDArray[np.int64]:
        return np.ones(len(task.splits[split]), dtype=np.int64)

    def majority(self, task: Task[PairedRow]) -> float:
        count = len(task.splits["test"])
        if task.metric == "recall-at-1":
            return 1 / count
        return sum(1 / rank for rank in range(1, min(count, 10) + 1)) / count

    def answers(
        self, task: Task[PairedRow], vectors: Mapping[str, Tensor]
    ) -> Mapping[str, ArrayLike]:
        """The rank of the right text, from 1; texts that are as near count as nearer."""
        ranks = {}
        for split, both in vectors.items():
            unit = normalize(both.double(), dim=1)
            likeness = unit[::2] @ unit[1::2].T
            ranks[split] = (likeness >= likeness.diagonal().unsqueeze(1)).sum(1).numpy()
        return ranks


# Evaluators of sentence-transformers

_PAIR = {"sentence1": "sentences1", "sentence2": "sentences2"}
EVALUATORS = {
    "similarity": ("EmbeddingSimilarityEvaluator", {**_PAIR, "score": "scores"}),
    "binary": ("BinaryClassificationEvaluator", {**_PAIR, "label": "labels"}),
    "triplet": (
        "TripletEvaluator",
        {"anchor": "anchors", "positive": "positives", "negative": "negatives"},
    ),
}
"""What a recipe can name: the class, and which of its arguments takes which column of a file."""


@dataclass(frozen=True)
class EvaluatedRow(Row):
    """The cells of one row of a file, in the order of the evaluator's arguments."""

    cells: tuple[str | float, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(cell for cell in self.cells if isinstance(cell, str))


class _Model:
    """What an evaluator takes for a SentenceTransformer: it notes the texts asked for, and gives
    the vectors it has.
    """

    similarity_fn_name, model_card_data = (
        "cosine",
        SimpleNamespace(set_evaluation_metrics=lambda *_, **__: None),
    )

    def __init__(self, vectors: Mapping[str, Tensor] | None = None):
        self.vectors, self.asked = vectors, dict[str, None]()

    def encode(self, texts: Any, *, convert_to_numpy: bool = True, **_: object) -> Any:
        wanted = [texts] if isinstance(texts, str) else list(texts)
        self.asked.update(dict.fromkeys(wanted))
        each = torch.stack(
            [self.vectors[text] if self.vectors else torch.randn(8) for text in wanted]
        )
        each = each[0] if isinstance(texts, str) else each
        return each.numpy() if convert_to_numpy else each

    encode_query = encode_document = encode

    def similarity(self, first: Any, second: Any) -> Tensor:
        return (
            normalize(torch.as_tensor(first), dim=-1) @ normalize(torch.as_tensor(second), dim=-1).T
        )


@dataclass(frozen=True)
class Evaluator(Frozen[EvaluatedRow]):
    """The primary metric of an evaluator of sentence-transformers on the embeddings. Nothing is
    learned from train.

    Attributes:
        evaluator: a name in ``EVALUATORS``, or an evaluator object.
    """

    evaluator: Any = "triplet"
    name, suffix, needs_train, metrics = "evaluator", "-evaluator", False, ("evaluator",)
    columns = UsualColumns(("anchor", "sentence1"), (), ())

    @property
    def settings(self) -> Mapping[str, object]:
        kind = self.evaluator
        return {
            "evaluator": kind
            if isinstance(kind, str)
            else [type(kind).__name__, kind.get_config_dict()]
        }

    def __post_init__(self) -> None:
        if isinstance(self.evaluator, str) and self.evaluator not in EVALUATORS:
            raise unknown_name("evaluator", self.evaluator, EVALUATORS)

    def labels(
        self, rows: Sequence[EvaluatedRow], where: str, skipped: Mapping[str, int]
    ) -> tuple[str, ...]:
        _room()  # when the task is loaded, not when a model is trained
        return ()

    def row(self, record: Record, columns: Columns, where: str) -> EvaluatedRow | str:
        cells: list[str | float] = []
        for name in EVALUATORS[self.evaluator][1]:
            if name not in record:
                raise unknown_name(f"column of {where}", name, map(str, record))
            number = number_of(record[name]) if name in ("score", "label") else None
            cells.append(str(record[name] or "").strip() if number is None else number)
        return EvaluatedRow(tuple(cells)) if "" not in cells else NO_TEXT

    def gold(self, task: Task[EvaluatedRow], split: str) -> ArrayLike:
        return []

    def majority(self, task: Task[EvaluatedRow]) -> None:
        return None

    def score(self, task: Task[EvaluatedRow], split: str, answers: Answers, metric: str) -> float:
        return float(np.asarray(answers)[0])

    def answers(
        self, task: Task[EvaluatedRow], vectors: Mapping[str, Tensor]
    ) -> Mapping[str, ArrayLike]:
        scores: dict[str, ArrayLike] = {}
        for split, each in vectors.items():
            rows = task.splits[split]
            known = dict(zip((text for row in rows for text in row.texts), each, strict=True))
            evaluator = self.evaluator
            if isinstance(evaluator, str):
                name, columns = EVALUATORS[evaluator]
                arguments = zip(columns.values(), zip(*(row.cells for row in rows)), strict=True)
                evaluator = getattr(_room(), name)(
                    **{name: list(cells) for name, cells in arguments}
                )
            scores[split] = [_primary(evaluator, _Model(known))]
        return scores


def evaluator_task(evaluator: Any, name: str = "evaluator") -> Task[EvaluatedRow]:
    """A task from an evaluator object of sentence-transformers, for ``evaluate_tasks``.

    It is called once with vectors of chance, which shows what texts it asks for.
    """
    probe = _Model()
    _primary(evaluator, probe)
    rows = [EvaluatedRow((text,)) for text in probe.asked]
    return Task(name, Evaluator(evaluator), "evaluator", (), {"train": [], "dev": [], "test": rows})


def _primary(evaluator: Any, model: _Model) -> float:
    result = evaluator(model)
    return float(result[evaluator.primary_metric] if isinstance(result, dict) else result)


def _room() -> Any:
    try:
        return import_module("sentence_transformers.evaluation")
    except ImportError as error:
        do = "pip install sentence-transformers"
        raise MaskwiseError(
            "tasks of kind evaluator need sentence-transformers", got=str(error), do=do
        ) from error
