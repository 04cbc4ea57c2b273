"""Evaluators of sentence-transformers as tasks (``pip install sentence-transformers``).

In a recipe a file with usual columns is enough, ``FILE(kind='evaluator', evaluator='triplet')``; in Python any
evaluator object will do (``evaluator_task``). An evaluator asks a model for the vectors of its texts. Here the encoder
has embedded them before, as for every frozen kind, and what the evaluator takes for a model only looks them up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.tasks.columns import NO_TEXT, Columns, UsualColumns
from maskwise.tasks.scores import number_of
from maskwise.tasks.task import Answers, Frozen, Row, Task
from maskwise.text.labelled import Record

_PAIR = {"sentence1": "sentences1", "sentence2": "sentences2"}
EVALUATORS = {
    "similarity": ("EmbeddingSimilarityEvaluator", {**_PAIR, "score": "scores"}),
    "binary": ("BinaryClassificationEvaluator", {**_PAIR, "label": "labels"}),
    "triplet": ("TripletEvaluator", {"anchor": "anchors", "positive": "positives", "negative": "negatives"}),
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
    """What an evaluator takes for a SentenceTransformer: it notes the texts asked for, and gives the vectors it has."""

    similarity_fn_name, model_card_data = (
        "cosine",
        SimpleNamespace(set_evaluation_metrics=lambda *_, **__: None),
    )

    def __init__(self, vectors: Mapping[str, Tensor] | None = None):
        self.vectors, self.asked = vectors, dict[str, None]()

    def encode(self, texts: Any, *, convert_to_numpy: bool = True, **_: object) -> Any:
        wanted = [texts] if isinstance(texts, str) else list(texts)
        self.asked.update(dict.fromkeys(wanted))
        each = torch.stack([self.vectors[text] if self.vectors else torch.randn(8) for text in wanted])
        each = each[0] if isinstance(texts, str) else each
        return each.numpy() if convert_to_numpy else each

    encode_query = encode_document = encode

    def similarity(self, first: Any, second: Any) -> Tensor:
        return normalize(torch.as_tensor(first), dim=-1) @ normalize(torch.as_tensor(second), dim=-1).T


@dataclass(frozen=True)
class Evaluator(Frozen[EvaluatedRow]):
    """The primary metric of an evaluator of sentence-transformers on the embeddings. Nothing is learned from train.

    Attributes:
        evaluator: a name in ``EVALUATORS``, or an evaluator object.
    """

    evaluator: Any = "triplet"
    name, suffix, needs_train, metrics = "evaluator", "-evaluator", False, ("evaluator",)
    columns = UsualColumns(("anchor", "sentence1"), (), ())

    @property
    def settings(self) -> Mapping[str, object]:
        kind = self.evaluator
        return {"evaluator": kind if isinstance(kind, str) else [type(kind).__name__, kind.get_config_dict()]}

    def __post_init__(self) -> None:
        if isinstance(self.evaluator, str) and self.evaluator not in EVALUATORS:
            raise unknown_name("evaluator", self.evaluator, EVALUATORS)

    def labels(self, rows: Sequence[EvaluatedRow], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
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

    def answers(self, task: Task[EvaluatedRow], vectors: Mapping[str, Tensor]) -> Mapping[str, ArrayLike]:
        scores: dict[str, ArrayLike] = {}
        for split, each in vectors.items():
            rows = task.splits[split]
            known = dict(zip((text for row in rows for text in row.texts), each, strict=True))
            evaluator = self.evaluator
            if isinstance(evaluator, str):
                name, columns = EVALUATORS[evaluator]
                arguments = zip(columns.values(), zip(*(row.cells for row in rows)), strict=True)
                evaluator = getattr(_room(), name)(**{name: list(cells) for name, cells in arguments})
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
        raise MaskwiseError("tasks of kind evaluator need sentence-transformers", got=str(error), do=do) from error
