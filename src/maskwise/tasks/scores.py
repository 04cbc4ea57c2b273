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
from maskwise.tasks.columns import Columns, UsualColumns, label_of, pair_in, require_two
from maskwise.tasks.labels import PAIRS, SECOND, TEXT, TextRow, one_or_two, text_label
from maskwise.tasks.task import Frozen, Kind, Row, Task, Tuned
from maskwise.tasks.tensors import Cutter, Encoded
from maskwise.text.labelled import Record

SCORE_COLUMNS = ("score", "similarity_score", "relatedness_score", "similarity")
NUMBER_COLUMNS = ("score", "rating", "value", "target", "number", "y")
MOST_CLASSES, MOST_NUMBERED_CLASSES, ROWS_A_CLASS = 20, 1000, 5
"""Whole numbers are classes where there are so few of them, or somewhat more that are numbered without gaps and have
so many training rows each on average."""
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?!\d{3}$)\d+")
"""But for three digits behind the comma, which may be thousands."""
_WRITTEN_FOR_PEOPLE = re.compile(r"[-+]?[$€£¥]?\s*[-+]?\d+([.,]\d{3})*([.,]\d+)?\s*[$€£¥%]?")


def number_of(label: object) -> float | None:
    """A label as a number, with a decimal point or comma; None where it is none.

    >>> number_of("3,5"), number_of("-2"), number_of("1,200"), number_of("18 €"), number_of("good")
    (3.5, -2.0, None, None, None)
    """
    text = str(label).strip()
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def may_be_number(label: object) -> bool:
    """Whether a label is a number, or one with a currency, a percent sign or commas that nothing reads as a number."""
    return number_of(label) is not None or bool(_WRITTEN_FOR_PEOPLE.fullmatch(str(label).strip()))


def no_number(label: object, where: str) -> MaskwiseError:
    """The error for a label that is not read as a number."""
    if may_be_number(label):
        do = "write numbers alone, such as 1200.50; if they are classes, say kind='sequence-classification'"
        return MaskwiseError(f"{where}: the label is not written as a number", got=label, do=do)
    do = f"check the label column; if it stands for no score, say so: missing={label!r}"
    return MaskwiseError(f"{where}: the score is no number", got=label, do=do)


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
        """A pair of texts with a score, or with labels that are quantities (``_are_quantities``)."""
        record = records[0] if records else {}
        _, pair = pair_in(record, given, PAIRS)
        if not pair or pair not in record:
            return False
        usual = [name for name in ("label", *SCORE_COLUMNS) if name in record]
        label = given.label or next(iter(usual), None)
        if label in SCORE_COLUMNS:
            return True
        return _are_quantities([r.get(label or "") for r in records], f"column {label!r}")

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
        """One text, and labels that are quantities (``_are_quantities``)."""
        record = records[0] if records else {}
        if pair_in(record, given, PAIRS)[1] in record or not any(name in record for name in (given.text, *TEXT)):
            return False
        names = (given.label,) if given.label else self.columns.label
        label = next((name for name in names if name in record), "")
        return _are_quantities([r.get(label) for r in records], f"column {label!r}")


def _are_quantities(labels: Sequence[object], where: str) -> bool:
    """Whether all labels are numbers, with fractions or with more values than ``MOST_CLASSES``.

    Raises:
        MaskwiseError: numbers with currencies, percent signs or commas between thousands; ``where`` names the column.
    """
    known = {str(label) for label in labels if label_of(label) is not None}
    if not all(map(may_be_number, known)):
        return False
    values = set()
    for label in sorted(known):
        value = number_of(label)
        if value is None:
            raise no_number(label, where)
        values.add(value)
    fractions = any(not value.is_integer() for value in values)
    return fractions or len(values) > MOST_CLASSES


def are_numbered(splits: Mapping[str, Sequence[Row]]) -> bool:
    """Whether the scores of all splits are names of classes: see ``MOST_CLASSES``."""
    values = {row.score for rows in splits.values() for row in rows if isinstance(row, ScoredRow)}
    whole = all(value.is_integer() for value in values)
    first, last = min(values), max(values)
    without_gaps = first in (0, 1) and last - first == len(values) - 1
    most = min(MOST_NUMBERED_CLASSES, len(splits["train"]) / ROWS_A_CLASS)
    return whole and without_gaps and len(values) <= most


def with_classes(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Scored rows as rows of classes, whose names are the scores."""
    return {
        split: [TextRow(row.text, row.pair, f"{row.score:.0f}") for row in rows if isinstance(row, ScoredRow)]
        for split, rows in splits.items()
    }


class ZeroShotSimilarity(Scores, Frozen[ScoredRow]):
    """The cosine of two sentences' embeddings against people's scores (STS). Nothing is learned from train."""

    name = "zero-shot-similarity"
    suffix = "-zero-shot"
    needs_train = False

    def answers(self, task: Task[ScoredRow], vectors: Mapping[str, Tensor]) -> Mapping[str, ArrayLike]:
        return {
            split: torch.cosine_similarity(both[::2], both[1::2]).double().numpy() for split, both in vectors.items()
        }
