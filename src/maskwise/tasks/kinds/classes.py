"""Kinds of tasks: classify texts, classify words, predict several labels, or predict a number.

Target numbers are standardised with the mean and standard deviation of the training rows. The same
learning rate then works on every scale.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from maskwise.base.errors import MaskwiseError
from maskwise.masking.batch import IGNORE
from maskwise.masking.line import Names
from maskwise.objectives.base import Classification, MultiLabel, Regression
from maskwise.tasks.columns import (
    NO_LABEL,
    NO_TEXT,
    ColumnNames,
    UsualColumns,
    distinct_labels,
    is_missing,
    label_of,
    labels_in,
    require_number,
    require_text,
)
from maskwise.tasks.metrics import ENTITY_F1, UNSEEN, any_class
from maskwise.tasks.task import Row, Task, TaskKind, TaskRows, all_classes
from maskwise.tasks.tensors import Cutter, Encoded, Flat, were_cut
from maskwise.text.tables import FieldValues

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
    """A text or a pair of texts, with its class."""

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


def text_row(record: FieldValues, columns: ColumnNames, where: str) -> TextRow | str:
    """Convert a record to a row, or return the reason for skipping the record."""
    text, pair, label = columns.cells(record)
    texts = {"text": text}
    if columns.pair:
        texts["second text"] = pair
    for role, value in texts.items():
        if not is_missing(value):
            require_text(value, role, where)
    if isinstance(label, list | dict):
        do = "give kind='multi-label', or name a different label column"
        if isinstance(label, dict) and label:
            do = f"name a field in it, such as label='{columns.label}.{next(iter(label))}'"
        raise MaskwiseError(f"{where}: a row must have one label", got=label, do=do)
    name = label_of(label)
    if name is None:
        return NO_LABEL
    if any(map(is_missing, texts.values())) or not text.strip():
        return NO_TEXT
    return TextRow(text, pair, name)


def text_classes(rows: TaskRows, where: str) -> Names:
    """Return the distinct classes of the texts.

    Raises:
        MaskwiseError: there is only one class, or there are more than 20 classes and fewer than
            two rows per class on average.
    """
    labels = distinct_labels(all_classes(rows), "classes", where)
    most = max(20, len(rows) // 2)
    if len(labels) > most:
        raise MaskwiseError(
            f"the labels of {where} do not look like classes",
            got=f"{len(labels)} different labels in {len(rows)} rows",
            allowed=f"at most {most} different labels",
            do="check the label column",
        )
    return labels


def gold_classes(task: Task, split: str) -> NDArray[np.int64]:
    """Return the index of each item's class, or −1 (``UNSEEN``) if the class is not in train."""
    classes = all_classes(task.splits[split])
    return np.array([task.numbers.get(name, UNSEEN) for name in classes], dtype=np.int64)


def class_baseline(task: Task) -> float:
    """Return the test score of the better guess: train's most frequent class, or a random class.

    For tags of entities without types, the best tag takes the place of the most frequent one.
    """
    counts = Counter(all_classes(task.splits["train"]))
    (frequent, _), *others = counts.most_common()
    guesses = [frequent]
    # The most frequent tag, O, has no entities. Without types, another tag may have many hits.
    if task.metric == ENTITY_F1 and not any("-" in name for name in task.labels):
        guesses += [name for name, _ in others]
    scores = [
        task.score("test", np.full(task.test_items, task.numbers[guess])) for guess in guesses
    ]
    always = max(scores)
    # On balanced classes, random answers have a higher macro-F1 than any constant answer.
    by_chance = any_class(task.gold("test"), len(task.labels), task.metric)
    return max(always, by_chance)


def _encode_classes(task: Task, split: str, cutter: Cutter) -> Encoded:
    gold = torch.from_numpy(task.gold(split))
    # The head has no output for a class that is not in train, so its items have no loss.
    targets = torch.where(gold == UNSEEN, IGNORE, gold)
    return Encoded(cutter.rows(task.splits[split]), targets)


# A linear layer on the pooled output: Devlin et al. 2019, section 4.1.
SEQUENCE_CLASSIFICATION = TaskKind(
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

BETWEEN_LABELS = re.compile(r"\s*[|;]\s*")


@dataclass(frozen=True)
class LabelledRow(Row):
    """A text with any number of labels."""

    shown = ("text",)

    text: str
    names: Names

    @property
    def stratum(self) -> str:
        return self.names[0] if self.names else ""


SEVERAL_COLUMNS = UsualColumns(TEXT, (), (*LABEL, "tags", "categories", "genres"))


def _several_row(record: FieldValues, columns: ColumnNames, where: str) -> LabelledRow | str:
    text, _, value = columns.cells(record)
    if not is_missing(text):
        require_text(text, "text", where)
    for label in value if isinstance(value, list) else [value]:
        if isinstance(label, list | dict):
            raise MaskwiseError(
                f"{where}: a label must be a text or a number",
                got=label,
                do="name the column of the labels (label=…); labels of words or of spans are read "
                "from two lists, tokens and tags",
            )
    if isinstance(value, list) and len({*value}) < len(value) and {*value} <= {0, 1}:
        raise MaskwiseError(
            f"{where}: these are ones and zeros, one for each of {len(value)} labels",
            got=value,
            do="give the labels that apply, such as ['urgent', 'billing']",
        )
    # A missing value means "not labelled", as in every kind, and so does a list of missing labels.
    # An empty list, or an empty text, means that no label applies.
    if is_missing(value) or (value and not isinstance(value, str) and not labels_in(value)):
        return NO_LABEL
    if isinstance(value, str):
        value = BETWEEN_LABELS.split(value)
    if is_missing(text) or not text.strip():
        return NO_TEXT
    return LabelledRow(text, tuple(dict.fromkeys(labels_in(value))))


def _gold_several(task: Task, split: str) -> NDArray[np.int64]:
    """Return the labels (N, K) as ones and zeros. Labels that are not in the task are ignored."""
    rows = task.splits[split]
    gold = np.zeros((len(rows), len(task.labels)), dtype=np.int64)
    for place, row in enumerate(rows):
        for name in row.names:
            if name in task.numbers:
                gold[place, task.numbers[name]] = 1
    return gold


def _several_baseline(task: Task) -> float:
    """Score the best answer for all rows: every label that at least a share of train's rows has.

    In macro-F1, every label that is given adds to the mean. In micro-F1, the share is that with
    the best score on train.
    """
    share_K = task.gold("train").mean(0)
    answer_K = share_K > 0
    if task.metric == "label-micro-f1":
        # With the m most frequent labels, F1 is 2 × the sum of their shares / (the sum of all + m).
        falling = np.sort(share_K)[::-1]
        f1 = falling.cumsum() / (falling.sum() + np.arange(1, len(falling) + 1))
        answer_K = share_K >= falling[f1.argmax()]
    return task.score("test", np.tile(answer_K, (task.test_items, 1)))


def _encode_several(task: Task, split: str, cutter: Cutter) -> Encoded:
    return Encoded(cutter.rows(task.splits[split]), torch.from_numpy(task.gold(split)).float())


# Binary cross-entropy for each label.
MULTI_LABEL = TaskKind(
    name="multi-label",
    metrics=("label-micro-f1", "label-macro-f1"),
    columns=SEVERAL_COLUMNS,
    row=_several_row,
    unread=("pair",),
    labels=lambda rows, where: distinct_labels(
        chain.from_iterable(row.names for row in rows), "labels", where
    ),
    gold=_gold_several,
    baseline=_several_baseline,
    head="sequence-classification",
    objective=MultiLabel,
    encode=_encode_several,
    config={"problem_type": "multi_label_classification"},
    every_label=True,
)

# Numbers

SCORE_COLUMNS = ("score", "similarity_score", "relatedness_score", "similarity")
NUMBER_COLUMNS = ("score", "rating", "value", "target", "number", "y", "label", "labels")


@dataclass(frozen=True)
class ScoredRow(Row):
    """A text or a pair of texts, with a number such as a similarity."""

    shown = ("text", "pair")

    text: str
    pair: str | None
    score: float


def _scored_row(record: FieldValues, columns: ColumnNames, where: str) -> ScoredRow | str:
    row = text_row(record, columns, where)
    if isinstance(row, str):
        return row
    return ScoredRow(row.text, row.pair, require_number(row.label, where))


def _require_scores(rows: TaskRows, where: str) -> Names:
    distinct_labels((str(row.score) for row in rows), "different scores", where)
    return ()


def gold_scores(task: Task, split: str) -> NDArray[np.float64]:
    """Return the scores of the rows of a split."""
    return np.array([row.score for row in task.splits[split]], dtype=np.float64)


def _encode_scores(task: Task, split: str, cutter: Cutter) -> Encoded:
    train = torch.from_numpy(task.gold("train"))
    targets = (torch.from_numpy(task.gold(split)) - train.mean()) / train.std(correction=0)
    return Encoded(cutter.rows(task.splits[split]), targets.float())


# The squared error of standardised scores: Devlin et al. 2019, appendix B.1 (STS-B).
SIMILARITY = TaskKind(
    name="similarity",
    metrics=("spearman", "pearson"),
    columns=UsualColumns(TEXT, SECOND, (*SCORE_COLUMNS, "label"), PAIRS, needs_pair=True),
    row=_scored_row,
    labels=_require_scores,
    gold=gold_scores,
    # The correlation of a constant answer is 0.
    baseline=lambda task: 0.0,
    head="sequence-classification",
    objective=Regression,
    encode=_encode_scores,
    config={"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"},
)
# Regression on single texts: the number is a rating, price or measurement.
REGRESSION = replace(
    SIMILARITY,
    name="regression",
    columns=UsualColumns(TEXT, (), NUMBER_COLUMNS),
)

# Classes of words


@dataclass(frozen=True)
class TaggedRow(Row):
    """The words of a text, with a tag for each word."""

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


def _tagged_row(record: FieldValues, columns: ColumnNames, where: str) -> TaggedRow | str:
    tokens, _, tags = columns.cells(record)
    if tags is None:
        return NO_LABEL
    if not isinstance(tokens, list) or not isinstance(tags, list):
        raise MaskwiseError(
            f"{where}: tokens and tags must be lists",
            got=f"{type(tokens).__name__} and {type(tags).__name__}",
        )
    for token in tokens:
        require_text(token, "token", where)
    if len(tokens) != len(tags):
        raise MaskwiseError(
            f"{where}: tokens and tags differ in number", got=f"{len(tokens)} and {len(tags)}"
        )
    if not tokens:
        return NO_TEXT
    if any(isinstance(tag, list | dict) for tag in tags):
        raise MaskwiseError(f"{where}: a word must have one tag", got=tags)
    names = labels_in(tags)
    # The sentence is skipped. Without its untagged word, it would be a different sentence.
    if len(names) < len(tags):
        return NO_LABEL
    return TaggedRow(tokens, names)


def _encode_tags(task: Task, split: str, cutter: Cutter) -> Encoded:
    """Predict the tag of each word at its first token.

    A word counts as wrong ("lost") if it has no tokens or if its first token is cut off. Dropping
    such words would reward a small ``max_length`` and tokenizers that drop characters.
    """
    rows = task.splits[split]
    words = [row.tokens for row in rows]
    encodings = cutter.backend.encode_batch(words, is_pretokenized=True)
    cut = sum(were_cut(cutter.backend, words, encodings, is_pretokenized=True))
    flat = replace(Flat.of(encodings, cutter.pad), cut=cut)
    place = []
    for row, encoding, start in zip(rows, encodings, flat.starts.tolist()):
        for word in range(len(row.tokens)):
            tokens = encoding.word_to_tokens(word)
            place.append(start + tokens[0] if tokens else -1)
    place_W = torch.tensor(place)
    gold_W = torch.from_numpy(task.gold(split))
    known_W = (place_W >= 0) & (gold_W != UNSEEN)
    targets = torch.full((len(flat.ids),), IGNORE)
    targets[place_W[known_W]] = gold_W[known_W]
    return Encoded(flat, targets, place_W, lost=int((place_W < 0).sum()))


# A linear layer on every token: Devlin et al. 2019, section 5.3.
TOKEN_CLASSIFICATION = TaskKind(
    name="token-classification",
    metrics=(*CLASS_METRICS, ENTITY_F1),
    columns=UsualColumns(WORDS, (), ("tags", "upos", "pos_tags", "ner_tags", "labels", "label")),
    row=_tagged_row,
    unread=("pair",),
    labels=lambda rows, where: distinct_labels(all_classes(rows), "classes", where),
    gold=gold_classes,
    baseline=class_baseline,
    head="token-classification",
    objective=Classification,
    encode=_encode_tags,
    words=True,
)
