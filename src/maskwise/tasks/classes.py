"""Kinds whose answer is a class, several labels, or a number: of a text, or of a pair of texts.

Scores are standardised by those of train before anything is learned, so that one learning rate
serves every scale.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Classification, MultiLabel, Regression
from maskwise.tasks.columns import (
    NO_LABEL,
    NO_TEXT,
    Columns,
    UsualColumns,
    first_in,
    label_of,
    labels_in,
    pair_in,
    require_text,
    require_two,
)
from maskwise.tasks.metrics import UNSEEN, any_class
from maskwise.tasks.task import Kind, Row, Task, Tuned
from maskwise.tasks.tensors import Cutter, Encoded
from maskwise.text.labelled import Record

CLASS_METRICS = ("accuracy", "macro-f1", "matthews")
TEXT = ("text", "sentence", "sentence1", "premise", "question1", "question", "utterance", "content")
SECOND = ("text_pair", "sentence2", "hypothesis", "question2")
LABEL = ("label", "labels", "category", "intent", "class", "gold_label", "is_duplicate", "Quality")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("sentence_A", "sentence_B"),
    ("s1", "s2"),
    ("text_a", "text_b"),
    ("#1 String", "#2 String"),
)


class ClassRow(Row):
    """An example with a class for each thing that is scored."""

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """The right classes."""

    @property
    def items(self) -> int:
        return len(self.classes)


C = TypeVar("C", bound=ClassRow)


@dataclass(frozen=True)
class TextRow(ClassRow):
    """A text, or two, and its class."""

    shown = ("text", "pair")

    text: str
    pair: str | None
    label: str

    @property
    def classes(self) -> Sequence[str]:
        return (self.label,)


def text_label(record: Record, columns: Columns, where: str) -> tuple[str, str | None, str] | str:
    """Text, second text and label of a record, or why it is skipped.

    Raises:
        MaskwiseError: a text that is no text, or several labels.
    """
    text, pair, label = (record.get(column) if column else None for column in columns)
    text = require_text(text, "text", where)
    if columns.pair:
        pair = require_text(pair, "second text", where)
    if isinstance(label, list | dict):
        do = "name kind='multi-label', or another column"
        raise MaskwiseError(f"{where}: a row has one label", got=label, do=do)
    name = label_of(label)
    if name is None:
        return NO_LABEL
    return (text, pair, name) if text.strip() else NO_TEXT


def sorted_labels(
    by_row: Iterable[Sequence[str]], what: str, where: str, skipped: Mapping[str, int]
) -> tuple[str, ...]:
    """All labels that rows have; at least two."""
    labels = sorted(set(chain.from_iterable(by_row)))
    require_two(labels, what, where, skipped)
    return tuple(labels)


class Classes(Kind[C]):
    """What all kinds whose answers are classes share."""

    metrics: ClassVar[tuple[str, ...]] = CLASS_METRICS

    def labels(self, rows: Sequence[C], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
        return sorted_labels((row.classes for row in rows), "classes", where, skipped)

    def gold(self, task: Task[C], split: str) -> NDArray[np.int64]:
        """Classes as numbers; −1 (``UNSEEN``) for one that train does not have."""
        code = {label: number for number, label in enumerate(task.labels)}
        names = (name for row in task.splits[split] for name in row.classes)
        return np.array([code.get(name, UNSEEN) for name in names], dtype=np.int64)

    def majority(self, task: Task[C]) -> float:
        """Always the commonest class of train (of equally common ones the first met), or each class
        equally often.
        """
        known = Counter(name for row in task.splits["train"] for name in row.classes)
        most = task.labels.index(known.most_common(1)[0][0])
        always = task.score("test", np.full(task.test_items, most))
        return max(always, any_class(self.gold(task, "test"), len(task.labels), task.metric))


class TextClasses(Classes[TextRow]):
    """What fine-tuned and frozen classification of texts share."""

    columns = UsualColumns(TEXT, SECOND, LABEL, PAIRS)

    def row(self, record: Record, columns: Columns, where: str) -> TextRow | str:
        parts = text_label(record, columns, where)
        return parts if isinstance(parts, str) else TextRow(*parts)

    def labels(
        self, rows: Sequence[TextRow], where: str, skipped: Mapping[str, int]
    ) -> tuple[str, ...]:
        labels = super().labels(rows, where, skipped)
        if len(labels) > max(20, len(rows) // 2):
            got = f"{len(labels)} different labels in {len(rows)} rows"
            raise MaskwiseError(
                f"the labels of {where} are no classes", got=got, do="check the label column"
            )
        return labels

    def group(self, row: TextRow) -> str:
        return row.label


class SequenceClassification(TextClasses, Tuned[TextRow]):
    """The class of a text, or of two.

    Tuned with a linear layer over the pooled row and cross-entropy. Majority: the commonest class
    of train.
    Source: Devlin et al. 2019, section 4.1.
    """

    name = "sequence-classification"
    head, objective = "sequence-classification", Classification

    def encode(self, task: Task[TextRow], split: str, cutter: Cutter) -> Encoded:
        gold = torch.from_numpy(self.gold(task, split))
        return Encoded(
            cutter.flat(one_or_two(task.splits[split])), torch.where(gold == UNSEEN, IGNORE, gold)
        )


SEVERAL = ("label-micro-f1", "label-macro-f1")
_BETWEEN = re.compile(r"\s*[|;]\s*")
MOST_LABELS = 200
"""Different labels above which a column of texts with bars in it holds no labels."""


@dataclass(frozen=True)
class LabelledRow(Row):
    """A text, and the labels that it has: any number of them."""

    shown = ("text",)

    text: str
    names: tuple[str, ...]


class SeveralLabels(Tuned[LabelledRow]):
    """Which of several labels a text has: any number of them, in a list or with "|" or ";" between
    them.

    Tuned with a linear layer over the pooled row and binary cross-entropy for each label. Majority:
    every row has the labels that more than half of train has, or the commonest one. Source: as for
    classification, Devlin et al. 2019.
    """

    name = "multi-label"
    head, objective = "sequence-classification", MultiLabel
    metrics = SEVERAL
    every_label = True
    columns = UsualColumns(TEXT, (), (*LABEL, "tags", "categories", "genres"))

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Lists of labels beside a text, or texts that few labels with bars or semicolons between
        them make up.
        """
        names = (given.label,) if given.label else self.columns.label
        label = first_in(names, records[0])
        text = first_in(self.columns.text, records[0]) or given.text
        if label is None or not all(
            isinstance(record.get(text or ""), str) for record in records[1:2]
        ):
            return False
        values = [record.get(label) for record in records]
        if any(isinstance(value, list) for value in values):
            return True
        whole = {value for value in values if isinstance(value, str)}
        parts = {part for value in whole for part in _BETWEEN.split(value)}
        return any(_BETWEEN.search(value) for value in whole) and len(parts) <= min(
            MOST_LABELS, len(whole)
        )

    def row(self, record: Record, columns: Columns, where: str) -> LabelledRow | str:
        text = require_text(record.get(columns.text or ""), "text", where)
        value = record.get(columns.label or "")
        if isinstance(value, str):
            value = _BETWEEN.split(value)  # an empty text is a row that has none of the labels
        elif not isinstance(value, list) and label_of(value) is None:
            return NO_LABEL
        names = dict.fromkeys(labels_in(value))
        return LabelledRow(text, tuple(names)) if text.strip() else NO_TEXT

    def labels(
        self, rows: Sequence[LabelledRow], where: str, skipped: Mapping[str, int]
    ) -> tuple[str, ...]:
        return sorted_labels((row.names for row in rows), "labels", where, skipped)

    def gold(self, task: Task[LabelledRow], split: str) -> NDArray[np.int64]:
        """(N, K) ones and zeros."""
        place = {label: number for number, label in enumerate(task.labels)}
        gold = np.zeros((len(task.splits[split]), len(place)), dtype=np.int64)
        for number, row in enumerate(task.splits[split]):
            gold[number, [place[name] for name in row.names]] = 1
        return gold

    def majority(self, task: Task[LabelledRow]) -> float:
        share = self.gold(task, "train").mean(0)
        answer = (share > 0.5) | (share == share.max())
        return task.score("test", np.tile(answer, (task.test_items, 1)))

    def config(self, task: Task[LabelledRow]) -> dict[str, object]:
        return {**super().config(task), "problem_type": "multi_label_classification"}

    def encode(self, task: Task[LabelledRow], split: str, cutter: Cutter) -> Encoded:
        return Encoded(
            cutter.flat(one_or_two(task.splits[split])),
            torch.from_numpy(self.gold(task, split)).float(),
        )

    def group(self, row: LabelledRow) -> str:
        return row.names[0] if row.names else ""


def one_or_two(rows: Sequence[Row]) -> list[str | tuple[str, ...]]:
    """The texts of rows as a tokenizer takes them: a text, or a pair."""
    return [row.texts if len(row.texts) > 1 else row.texts[0] for row in rows]


# Numbers

SCORE_COLUMNS = ("score", "similarity_score", "relatedness_score", "similarity")
NUMBER_COLUMNS = ("score", "rating", "value", "target", "number", "y")
MOST_CLASSES, MOST_NUMBERED_CLASSES, ROWS_A_CLASS = 20, 1000, 5
"""Whole numbers are classes where there are so few of them, or somewhat more that are numbered
without gaps and have so many training rows each on average."""
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
    """Whether a label is a number, or one with a currency, a percent sign or commas that nothing
    reads as a number.
    """
    return number_of(label) is not None or bool(_WRITTEN_FOR_PEOPLE.fullmatch(str(label).strip()))


def no_number(label: object, where: str) -> MaskwiseError:
    """The error for a label that is not read as a number."""
    if may_be_number(label):
        do = (
            "write numbers alone, such as 1200.50; if they are classes, say "
            "kind='sequence-classification'"
        )
        return MaskwiseError(f"{where}: the label is not written as a number", got=label, do=do)
    do = f"check the label column; if it stands for no score, say so: missing={label!r}"
    return MaskwiseError(f"{where}: the score is no number", got=label, do=do)


@dataclass(frozen=True)
class ScoredRow(Row):
    """A text, or two, and its number: how similar they are, for instance."""

    shown = ("text", "pair")

    text: str
    pair: str | None
    score: float


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

    def labels(
        self, rows: Sequence[ScoredRow], where: str, skipped: Mapping[str, int]
    ) -> tuple[str, ...]:
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
        record = records[0]
        _, pair = pair_in(record, given, PAIRS)
        if not pair or pair not in record:
            return False
        label = given.label or first_in(("label", *SCORE_COLUMNS), record)
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

    Tuned by squared error on scores that are standardised by those of train. Source: as for
    similarity.
    """

    name = "regression"
    columns = UsualColumns(TEXT, (), (*NUMBER_COLUMNS, "label", "labels"))

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """One text, and labels that are quantities (``_are_quantities``)."""
        record = records[0]
        if pair_in(record, given, PAIRS)[1] in record or not any(
            name in record for name in (given.text, *TEXT)
        ):
            return False
        names = (given.label,) if given.label else self.columns.label
        label = first_in(names, record) or ""
        return _are_quantities([r.get(label) for r in records], f"column {label!r}")


def _are_quantities(labels: Sequence[object], where: str) -> bool:
    """Whether all labels are numbers, with fractions or with more values than ``MOST_CLASSES``.

    Raises:
        MaskwiseError: numbers with currencies, percent signs or commas between thousands; ``where``
            names the column.
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
        split: [
            TextRow(row.text, row.pair, f"{row.score:.0f}")
            for row in rows
            if isinstance(row, ScoredRow)
        ]
        for split, rows in splits.items()
    }
