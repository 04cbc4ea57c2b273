"""Kinds whose answer is a number: of a text, or of two.

Scores are standardised by those of train before anything is learned, so that one learning rate serves every scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.objectives import Regression
from maskwise.tasks.labels import PAIRS, SECOND, TEXT, one_or_two, text_label
from maskwise.tasks.task import (
    Columns,
    Frozen,
    Kind,
    Row,
    Task,
    Tuned,
    UsualColumns,
    label_of,
    pair_in,
    require_two,
)
from maskwise.tasks.tensors import Cutter, Encoded
from maskwise.text.labelled import Record

SCORE_COLUMNS = ("score", "similarity_score", "relatedness_score", "similarity")
NUMBER_COLUMNS = ("score", "rating", "value", "target", "number", "y")
LEAST_VALUES = 20
"""Different whole numbers from which on labels of single texts are taken for numbers to predict, not for classes."""
_UNITS = "$€£¥%"
_COMMA = re.compile(r"[-+]?\d+,\d+")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
_EITHER = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")


def number_of(label: object) -> float | None:
    """A label as a number, with a decimal point or comma, and with or without a sign of money; None where it is none.

    Commas before three digits are those of thousands where a sign stands first, or where there are several.

    >>> number_of("3,5"), number_of("-2"), number_of("18,30 €"), number_of("$1,200"), number_of("good")
    (3.5, -2.0, 18.3, 1200.0, None)
    """
    if is_either(label):
        return None
    text = _without_sign(label)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        value = float(text.replace(",", ".") if _COMMA.fullmatch(text) else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_either(label: object) -> bool:
    """Whether a label may be thousands, or have three digits behind a decimal comma: no sign of money stands first."""
    return str(label).strip()[:1] not in _UNITS and bool(_EITHER.fullmatch(_without_sign(label)))


def _without_sign(label: object) -> str:
    return str(label).strip().strip(_UNITS).strip()


def no_number(label: object, where: str) -> MaskwiseError:
    """The error for a label that is not read as a number."""
    if is_either(label):
        do = "write thousands without a comma, or decimals with a point"
        return MaskwiseError(f"{where}: a comma before three digits may mean thousands or decimals", got=label, do=do)
    return MaskwiseError(f"{where}: the score is no number", got=label, do="check the label column")


@dataclass(frozen=True)
class ScoredRow(Row):
    """A text, or two, and its number: how similar they are, for instance."""

    text: str
    pair: str | None
    score: float

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)


class Scores(Kind[ScoredRow]):
    """What all kinds share whose answer is a number."""

    metrics = ("spearman", "pearson")
    columns = UsualColumns(TEXT, SECOND, (*SCORE_COLUMNS, "label"), PAIRS, needs_pair=True)

    def row(self, record: Record, columns: Columns, where: str) -> ScoredRow | str:
        parts = text_label(record, columns, where)
        if isinstance(parts, str):
            return parts
        text, pair, label = parts
        score = number_of(label)
        if score is None:
            raise no_number(label, where)
        return ScoredRow(text, pair, score)

    def labels(self, rows: Sequence[ScoredRow], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
        require_two(sorted({str(row.score) for row in rows}), "different scores", where, skipped)
        return ()

    def gold(self, task: Task[ScoredRow], split: str) -> NDArray[np.float64]:
        return np.array([row.score for row in task.splits[split]], dtype=np.float64)

    def majority(self, task: Task[ScoredRow]) -> float:
        """A constant has no correlation."""
        return 0.0


class Similarity(Scores, Tuned[ScoredRow]):
    """How similar two texts are, as a number.

    Tuned by squared error on scores that are standardised by those of train.
    Source: Devlin et al. 2019, appendix B.1 (STS-B).
    """

    name = "similarity"
    head, objective = "sequence-classification", Regression

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """A pair of texts with a score, or with labels of which some are fractions."""
        record = records[0] if records else {}
        _, pair = pair_in(record, given, PAIRS)
        if not pair or pair not in record:
            return False
        usual = [name for name in ("label", *SCORE_COLUMNS) if name in record]
        label = given.label or next(iter(usual), None)
        values = [r.get(label) for r in records if label_of(r.get(label)) is not None] if label in record else []
        numbers = [number_of(value) for value in values]  # cells of tables are texts
        fractions = [number for number in numbers if number is not None and not number.is_integer()]
        return label in SCORE_COLUMNS or (bool(fractions) and None not in numbers)

    def config(self, task: Task[ScoredRow]) -> dict[str, object]:
        return {"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"}

    def encode(self, task: Task[ScoredRow], split: str, cutter: Cutter) -> Encoded:
        known, gold = (torch.from_numpy(self.gold(task, name)) for name in ("train", split))
        targets = (gold - known.mean()) / known.std(correction=0)
        return Encoded(cutter.flat(one_or_two(task.splits[split])), targets.float())


class TextRegression(Similarity):
    """A number for a text: a rating, a price, a value that was measured.

    Tuned by squared error on scores that are standardised by those of train. Source: as for similarity.
    """

    name = "regression"
    columns = UsualColumns(TEXT, (), (*NUMBER_COLUMNS, "label", "labels"))

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """One text, and labels that are numbers: some with fractions, or more than ``LEAST_VALUES`` different ones."""
        record = records[0] if records else {}
        if pair_in(record, given, PAIRS)[1] in record or not any(name in record for name in (given.text, *TEXT)):
            return False
        names = (given.label,) if given.label else self.columns.label
        label = next((name for name in names if name in record), None)
        values = [r.get(label) for r in records if label_of(r.get(label)) is not None] if label else []
        numbers = [number_of(value) for value in values]
        if not numbers or any(number is None for number in numbers):
            doubtful = [value for value, number in zip(values, numbers) if number is None]
            if doubtful and all(map(is_either, doubtful)):
                raise no_number(doubtful[0], f"column {label!r}")
            return False
        return len(set(numbers)) > LEAST_VALUES or any(not number.is_integer() for number in numbers if number)


class ZeroShotSimilarity(Scores, Frozen[ScoredRow]):
    """The cosine of two sentences' embeddings against people's scores (STS). Nothing is learned from train."""

    name = "zero-shot-similarity"
    suffix = "-zero-shot"
    needs_train = False

    def answers(self, task: Task[ScoredRow], vectors: Mapping[str, Tensor]) -> Mapping[str, ArrayLike]:
        return {
            split: torch.cosine_similarity(both[::2], both[1::2]).double().numpy() for split, both in vectors.items()
        }
