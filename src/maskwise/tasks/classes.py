"""Kinds of tasks whose answer is a class of a text or of every word, several labels, or a number.

Numbers are standardised by those of train, so that one learning rate fits every scale.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

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
    Names,
    Records,
    UsualColumns,
    distinct,
    first_in,
    label_of,
    labels_in,
    may_be_number,
    number_of,
    pair_in,
    require_number,
    require_text,
)
from maskwise.tasks.metrics import ENTITY_F1, UNSEEN, any_class
from maskwise.tasks.task import Row, Rows, Task, TaskKind
from maskwise.tasks.tensors import Cutter, Encoded, Flat
from maskwise.text.labelled import Record

CLASS_METRICS = ("accuracy", "macro-f1", "matthews")
TEXT = ("text", "sentence", "sentence1", "premise", "question1", "question", "utterance", "content")
SECOND = ("text_pair", "sentence2", "hypothesis", "question2")
LABEL = ("label", "labels", "category", "intent", "class", "gold_label", "is_duplicate", "Quality")
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage"), ("sentence_A", "sentence_B")),
    *(("s1", "s2"), ("text_a", "text_b"), ("#1 String", "#2 String")),
)

# Classes of texts


@dataclass(frozen=True)
class TextRow(Row):
    """A text, or two, and its class."""

    shown = ("text", "pair")

    text: str
    pair: str | None
    label: str

    @property
    def classes(self) -> Sequence[str]:
        return (self.label,)

    @property
    def stratum(self) -> str:
        return self.label


def text_row(record: Record, columns: Columns, where: str) -> TextRow | str:
    """The row of a record with one or two texts and one label."""
    text = require_text(record.get(columns.text or ""), "text", where)
    pair = None
    if columns.pair:
        pair = require_text(record.get(columns.pair), "second text", where)
    label = record.get(columns.label or "")
    if isinstance(label, list | dict):
        do = "name kind='multi-label', or another column"
        raise MaskwiseError(f"{where}: a row has one label", got=label, do=do)
    name = label_of(label)
    if name is None:
        return NO_LABEL
    if not text.strip():
        return NO_TEXT
    return TextRow(text, pair, name)


def classes_of(rows: Rows, where: str) -> Names:
    return distinct(chain.from_iterable(row.classes for row in rows), "classes", where)


def text_classes(rows: Rows, where: str) -> Names:
    """The different classes of texts; an error where nearly every row has a class of its own."""
    labels = classes_of(rows, where)
    if len(labels) > max(20, len(rows) // 2):
        got = f"{len(labels)} different labels in {len(rows)} rows"
        what = f"the labels of {where} are no classes"
        raise MaskwiseError(what, got=got, do="check the label column")
    return labels


def gold_classes(task: Task, split: str) -> NDArray[np.int64]:
    """Classes as numbers; −1 (``UNSEEN``) for a class that train lacks."""
    code = {label: number for number, label in enumerate(task.labels)}
    names = chain.from_iterable(row.classes for row in task.splits[split])
    return np.array([code.get(name, UNSEEN) for name in names], dtype=np.int64)


def class_baseline(task: Task) -> float:
    """The score of the most frequent class of train, or of classes at random if that is better."""
    known = Counter(chain.from_iterable(row.classes for row in task.splits["train"]))
    most = task.labels.index(known.most_common(1)[0][0])
    always = task.score("test", np.full(task.test_items, most))
    return max(always, any_class(task.gold("test"), len(task.labels), task.metric))


def _encode_classes(task: Task, split: str, cutter: Cutter) -> Encoded:
    gold = torch.from_numpy(task.gold(split))
    return Encoded(cutter.rows(task.splits[split]), torch.where(gold == UNSEEN, IGNORE, gold))


SEQUENCE_CLASSIFICATION = TaskKind(
    # A linear layer over the pooled row. Devlin et al. 2019, section 4.1
    name="sequence-classification",
    metrics=CLASS_METRICS,
    columns=UsualColumns(TEXT, SECOND, LABEL, PAIRS),
    row=text_row,
    labels=text_classes,
    gold=gold_classes,
    baseline=class_baseline,
    head="sequence-classification",
    objective=Classification,
    encode=_encode_classes,
)

# Several labels

_BETWEEN_LABELS = re.compile(r"\s*[|;]\s*")
MOST_LABELS = 200  # a column with more different parts between bars holds no labels


@dataclass(frozen=True)
class LabelledRow(Row):
    """A text and its labels, any number of them."""

    shown = ("text",)

    text: str
    names: Names

    @property
    def stratum(self) -> str:
        return next(iter(self.names), "")


SEVERAL_COLUMNS = UsualColumns(TEXT, (), (*LABEL, "tags", "categories", "genres"))


def _has_several(records: Records, given: Columns) -> bool:
    """Lists of labels and a text, or texts made of few labels between bars or semicolons."""
    names = [given.label] if given.label else SEVERAL_COLUMNS.label
    label = first_in(names, records[0])
    text = first_in(TEXT, records[0]) or given.text or ""
    if label is None or not all(isinstance(r.get(text), str) for r in records[1:2]):
        return False
    values = [record.get(label) for record in records]
    if any(isinstance(value, list) for value in values):
        return True
    whole = {value for value in values if isinstance(value, str)}
    parts = set(chain.from_iterable(map(_BETWEEN_LABELS.split, whole)))
    return any(map(_BETWEEN_LABELS.search, whole)) and len(parts) <= min(MOST_LABELS, len(whole))


def _several_row(record: Record, columns: Columns, where: str) -> LabelledRow | str:
    text = require_text(record.get(columns.text or ""), "text", where)
    value = record.get(columns.label or "")
    if isinstance(value, str):
        value = _BETWEEN_LABELS.split(value)  # an empty text is a row without any label
    elif not isinstance(value, list) and label_of(value) is None:
        return NO_LABEL
    if not text.strip():
        return NO_TEXT
    return LabelledRow(text, tuple(dict.fromkeys(labels_in(value))))


def _several_labels(rows: Rows, where: str) -> Names:
    return distinct(chain.from_iterable(row.names for row in rows), "labels", where)


def _gold_several(task: Task, split: str) -> NDArray[np.int64]:
    """(N, K) ones and zeros."""
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(classes=task.labels)
    return binarizer.fit_transform([row.names for row in task.splits[split]]).astype(np.int64)


def _several_baseline(task: Task) -> float:
    """The score of the labels that more than half of train has, or of the most frequent one."""
    share = task.gold("train").mean(0)
    answer = (share > 0.5) | (share == share.max())
    return task.score("test", np.tile(answer, (task.test_items, 1)))


def _encode_several(task: Task, split: str, cutter: Cutter) -> Encoded:
    targets = torch.from_numpy(task.gold(split)).float()
    return Encoded(cutter.rows(task.splits[split]), targets)


MULTI_LABEL = TaskKind(
    # Binary cross-entropy of every label
    name="multi-label",
    metrics=("label-micro-f1", "label-macro-f1"),
    columns=SEVERAL_COLUMNS,
    row=_several_row,
    labels=_several_labels,
    gold=_gold_several,
    baseline=_several_baseline,
    recognises=_has_several,
    head="sequence-classification",
    objective=MultiLabel,
    encode=_encode_several,
    config={"problem_type": "multi_label_classification"},
    every_label=True,
)

# Numbers

SCORE_COLUMNS = ("score", "similarity_score", "relatedness_score", "similarity")
NUMBER_COLUMNS = ("score", "rating", "value", "target", "number", "y", "label", "labels")
# Whole numbers are classes if there are so few of them, or somewhat more that are numbered
# without gaps and have so many training rows each on average.
MOST_CLASSES, MOST_NUMBERED_CLASSES, ROWS_A_CLASS = 20, 1000, 5


@dataclass(frozen=True)
class ScoredRow(Row):
    """A text, or two, and its number, such as a similarity."""

    shown = ("text", "pair")

    text: str
    pair: str | None
    score: float


def _scored_row(record: Record, columns: Columns, where: str) -> ScoredRow | str:
    row = text_row(record, columns, where)
    if isinstance(row, str):
        return row
    return ScoredRow(row.text, row.pair, require_number(row.label, where))


def _require_scores(rows: Rows, where: str) -> Names:
    distinct((str(row.score) for row in rows), "different scores", where)
    return ()


def gold_scores(task: Task, split: str) -> NDArray[np.float64]:
    """The scores of rows."""
    return np.array([row.score for row in task.splits[split]], dtype=np.float64)


def _encode_scores(task: Task, split: str, cutter: Cutter) -> Encoded:
    train = torch.from_numpy(task.gold("train"))
    targets = (torch.from_numpy(task.gold(split)) - train.mean()) / train.std(correction=0)
    return Encoded(cutter.rows(task.splits[split]), targets.float())


def _is_similarity(records: Records, given: Columns) -> bool:
    """A pair of texts with a score, or with labels that are quantities."""
    _, pair = pair_in(records[0], given, PAIRS)
    if not pair or pair not in records[0]:
        return False
    label = given.label or first_in(("label", *SCORE_COLUMNS), records[0])
    return label in SCORE_COLUMNS or _are_quantities(records, label)


def _is_regression(records: Records, given: Columns) -> bool:
    """One text with labels that are quantities."""
    _, pair = pair_in(records[0], given, PAIRS)
    if pair in records[0] or first_in((given.text or "", *TEXT), records[0]) is None:
        return False
    names = [given.label] if given.label else NUMBER_COLUMNS
    return _are_quantities(records, first_in(names, records[0]))


def _are_quantities(records: Records, column: str | None) -> bool:
    """Whether all labels are numbers, with fractions or with more values than ``MOST_CLASSES``.

    Raises:
        MaskwiseError: numbers with currencies, percent signs or commas between thousands.
    """
    labels = [record.get(column or "") for record in records]
    known = sorted({str(label) for label in labels if label_of(label) is not None})
    if not all(map(may_be_number, known)):
        return False
    values = {require_number(label, f"column {column!r}") for label in known}
    return len(values) > MOST_CLASSES or not all(value.is_integer() for value in values)


SIMILARITY = TaskKind(
    # Squared error of standardised scores. Devlin et al. 2019, appendix B.1 (STS-B)
    name="similarity",
    metrics=("spearman", "pearson"),
    columns=UsualColumns(TEXT, SECOND, (*SCORE_COLUMNS, "label"), PAIRS, needs_pair=True),
    row=_scored_row,
    labels=_require_scores,
    gold=gold_scores,
    baseline=lambda task: 0.0,  # a constant has no correlation
    recognises=_is_similarity,
    head="sequence-classification",
    objective=Regression,
    encode=_encode_scores,
    config={"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"},
)
REGRESSION = replace(
    # A rating, a price, a measurement
    SIMILARITY,
    name="regression",
    columns=UsualColumns(TEXT, (), NUMBER_COLUMNS),
    recognises=_is_regression,
)


def are_numbered(splits: Mapping[str, Rows]) -> bool:
    """Whether scores are the numbers of classes: see ``MOST_NUMBERED_CLASSES``."""
    values = {row.score for row in chain.from_iterable(splits.values())}
    first = min(values)
    without_gaps = first in (0, 1) and max(values) - first == len(values) - 1
    most = min(MOST_NUMBERED_CLASSES, len(splits["train"]) / ROWS_A_CLASS)
    return without_gaps and len(values) <= most and all(value.is_integer() for value in values)


def with_classes(splits: Mapping[str, Rows]) -> dict[str, Rows]:
    """Scored rows as rows of classes, whose names are the scores."""
    classes: dict[str, Rows] = {}
    for split, rows in splits.items():
        classes[split] = [TextRow(row.text, row.pair, f"{row.score:.0f}") for row in rows]
    return classes


def note_on_numbers(rows: Rows) -> list[str]:
    """A note on how whole numbers were read, which may be classes or quantities."""
    if not isinstance(rows[0], TextRow | ScoredRow):
        return []
    scored = isinstance(rows[0], ScoredRow)
    values = {row.score if scored else number_of(row.label) for row in rows}
    if len(values) < 3 or not all(value is not None and value.is_integer() for value in values):
        return []
    how = f"quantities; as classes with kind={SEQUENCE_CLASSIFICATION.name!r}"
    if not scored:
        kind = SIMILARITY if rows[0].pair else REGRESSION
        how = f"classes; as quantities with kind={kind.name!r}"
    return [f"the labels are {len(values)} whole numbers, read as {how}"]


# Classes of words


@dataclass(frozen=True)
class TaggedRow(Row):
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


WORDS = ("tokens", "words")


def _has_words(records: Records, given: Columns) -> bool:
    names = [given.text] if given.text else WORDS
    return any(isinstance(records[0].get(name), list) for name in names)


def _tagged_row(record: Record, columns: Columns, where: str) -> TaggedRow | str:
    tokens = record.get(columns.text or "")
    tags = record.get(columns.label or "")
    if tags is None:
        return NO_LABEL
    if not isinstance(tokens, list) or not isinstance(tags, list):
        got = f"{type(tokens).__name__} and {type(tags).__name__}"
        raise MaskwiseError(f"{where}: tokens and tags must be lists", got=got)
    for token in tokens:
        require_text(token, "token", where)
    if len(tokens) != len(tags):
        got = f"{len(tokens)} and {len(tags)}"
        raise MaskwiseError(f"{where}: tokens and tags differ in number", got=got)
    if not tokens:
        return NO_TEXT
    names = list(labels_in(tags))
    return TaggedRow(tokens, names) if len(names) == len(tags) else NO_LABEL


def _encode_tags(task: Task, split: str, cutter: Cutter) -> Encoded:
    """The tag of a word is the target of its first piece, as words are those of the data.

    A word without any piece, or whose first piece is cut off, cannot be answered. It is counted
    as lost and scored as wrong: leaving it out would reward short rows and coarse tokenizers.
    """
    rows = task.splits[split]
    encodings = cutter.backend.encode_batch([row.tokens for row in rows], is_pretokenized=True)
    flat = Flat.of(encodings, cutter.pad)
    place = []
    for row, encoding, start in zip(rows, encodings, flat.starts.tolist()):
        first: dict[int | None, int] = {}
        for column, word in enumerate(encoding.word_ids):  # None for special tokens
            first.setdefault(word, start + column)
        place += [first.get(word, -1) for word in range(len(row.tokens))]
    place_W = torch.tensor(place)
    gold_W = torch.from_numpy(task.gold(split))
    known_W = (place_W >= 0) & (gold_W != UNSEEN)
    targets = torch.full((len(flat.ids),), IGNORE)
    targets[place_W[known_W]] = gold_W[known_W]
    return Encoded(flat, targets, place_W)


TOKEN_CLASSIFICATION = TaskKind(
    # A linear layer over every token. Devlin et al. 2019, section 5.3
    name="token-classification",
    metrics=(*CLASS_METRICS, ENTITY_F1),
    columns=UsualColumns(WORDS, (), ("tags", "upos", "pos_tags", "ner_tags", "labels", "label")),
    row=_tagged_row,
    labels=classes_of,
    gold=gold_classes,
    baseline=class_baseline,
    recognises=_has_words,
    head="token-classification",
    objective=Classification,
    encode=_encode_tags,
    words=True,
)
