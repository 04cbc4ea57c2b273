"""Kinds whose answer is a class: of a text, of a pair of texts, of every word; or several classes of a text.

Words of token classification are the words of the *data*, given to the tokenizer one by one; the tag stands on the
first piece of each. A word whose first piece was cut off, or that has no piece at all, cannot be answered: it is
counted in ``lost`` and scored as wrong, for leaving it out would reward short rows and coarse tokenizers.

The last kind judges sentence embeddings by the same rows. It costs one forward pass over every text; the regression is
scikit-learn's.
"""

from __future__ import annotations

import re
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Classification, MultiLabel
from maskwise.tasks.columns import NO_LABEL, NO_TEXT, Columns, UsualColumns, label_of, labels_in, require_two
from maskwise.tasks.metrics import METRICS, UNSEEN, any_class, entity_counts, entity_f1
from maskwise.tasks.task import Answers, Frozen, Kind, Row, Task, Tuned
from maskwise.tasks.tensors import Cutter, Encoded, Flat, edges
from maskwise.text.labelled import Record

CLASS_METRICS = ("accuracy", "macro-f1", "matthews")
TEXT = ("text", "sentence", "sentence1", "premise", "question1", "question", "utterance", "content")
SECOND = ("text_pair", "sentence2", "hypothesis", "question2")
LABEL = ("label", "labels", "category", "intent", "class", "gold_label", "is_duplicate", "Quality")
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("sentence_A", "sentence_B"), ("s1", "s2"), ("text_a", "text_b"),
    ("#1 String", "#2 String"),
)  # fmt: skip
_BIO = re.compile(r"O$|[BIES]-.")
PENALTIES = tuple(2.0**power for power in range(-2, 4))
"""SentEval's grid of C, the inverse of the penalty."""


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

    text: str
    pair: str | None
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def classes(self) -> Sequence[str]:
        return (self.label,)


@dataclass(frozen=True)
class TaggedRow(ClassRow):
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


def text_label(record: Record, columns: Columns, where: str) -> tuple[str, str | None, str] | str:
    """Text, second text and label of a record, or why it is skipped.

    Raises:
        MaskwiseError: a text that is no text, or several labels.
    """
    text, pair, label = (record.get(column) if column else None for column in columns)
    for value in (text, pair) if columns.pair else (text,):
        if not isinstance(value, str):
            raise MaskwiseError(f"{where}: the text is no text", got=type(value).__name__, allowed="a string")
    if isinstance(label, list | dict):
        do = "name kind='multi-label', or another column"
        raise MaskwiseError(f"{where}: a row has one label", got=label, do=do)
    name = label_of(label)
    if name is None:
        return NO_LABEL
    return (str(text), pair, name) if str(text).strip() else NO_TEXT


class Classes(Kind[C]):
    """What all kinds whose answers are classes share."""

    metrics: ClassVar[tuple[str, ...]] = CLASS_METRICS

    def labels(self, rows: Sequence[C], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
        labels = sorted({name for row in rows for name in row.classes})
        require_two(labels, "classes", where, skipped)
        return tuple(labels)

    def gold(self, task: Task[C], split: str) -> NDArray[np.int64]:
        """Classes as numbers; −1 (``UNSEEN``) for one that train does not have."""
        code = {label: number for number, label in enumerate(task.labels)}
        names = (name for row in task.splits[split] for name in row.classes)
        return np.array([code.get(name, UNSEEN) for name in names], dtype=np.int64)

    def majority(self, task: Task[C]) -> float:
        """Always the commonest class of train (of equally common ones the first met), or each class equally often."""
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

    def labels(self, rows: Sequence[TextRow], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
        labels = super().labels(rows, where, skipped)
        if len(labels) > max(20, len(rows) // 2):
            got = f"{len(labels)} different labels in {len(rows)} rows"
            raise MaskwiseError(f"the labels of {where} are no classes", got=got, do="check the label column")
        return labels

    def group(self, row: TextRow) -> str:
        return row.label


class SequenceClassification(TextClasses, Tuned[TextRow]):
    """The class of a text, or of two.

    Tuned with a linear layer over the pooled row and cross-entropy. Majority: the commonest class of train.
    Source: Devlin et al. 2019, section 4.1.
    """

    name = "sequence-classification"
    head, objective = "sequence-classification", Classification

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Whatever nothing else recognises."""
        return True

    def encode(self, task: Task[TextRow], split: str, cutter: Cutter) -> Encoded:
        gold = torch.from_numpy(self.gold(task, split))
        return Encoded(cutter.flat(one_or_two(task.splits[split])), torch.where(gold == UNSEEN, IGNORE, gold))


SEVERAL = ("label-micro-f1", "label-macro-f1")
_BETWEEN = re.compile(r"\s*[|;]\s*")
MOST_LABELS = 200
"""Different labels above which a column of texts with bars in it holds no labels."""


@dataclass(frozen=True)
class LabelledRow(Row):
    """A text, and the labels that it has: any number of them."""

    text: str
    names: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


class SeveralLabels(Tuned[LabelledRow]):
    """Which of several labels a text has: any number of them, in a list or with "|" or ";" between them.

    Tuned with a linear layer over the pooled row and binary cross-entropy for each label. Majority: every row has the
    labels that more than half of train has, or the commonest one. Source: as for classification, Devlin et al. 2019.
    """

    name = "multi-label"
    head, objective = "sequence-classification", MultiLabel
    metrics = SEVERAL
    every_label = True
    columns = UsualColumns(TEXT, (), (*LABEL, "tags", "categories", "genres"))

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Lists of labels beside a text, or texts that few labels with bars or semicolons between them make up."""
        names = (given.label,) if given.label else self.columns.label
        label = next((name for name in names if records and name in records[0]), None)
        text = next((name for name in self.columns.text if records and name in records[0]), given.text)
        if label is None or not all(isinstance(record.get(text or ""), str) for record in records[1:2]):
            return False
        values = [record.get(label) for record in records]
        if any(isinstance(value, list) for value in values):
            return True
        whole = {value for value in values if isinstance(value, str)}
        parts = {part for value in whole for part in _BETWEEN.split(value)}
        return any(_BETWEEN.search(value) for value in whole) and len(parts) <= min(MOST_LABELS, len(whole))

    def row(self, record: Record, columns: Columns, where: str) -> LabelledRow | str:
        text, value = record.get(columns.text or ""), record.get(columns.label or "")
        if not isinstance(text, str):
            raise MaskwiseError(f"{where}: the text is no text", got=type(text).__name__, allowed="a string")
        if isinstance(value, str):
            value = _BETWEEN.split(value)  # an empty text is a row that has none of the labels
        elif not isinstance(value, list) and label_of(value) is None:
            return NO_LABEL
        names = dict.fromkeys(labels_in(value))
        return LabelledRow(text, tuple(names)) if text.strip() else NO_TEXT

    def labels(self, rows: Sequence[LabelledRow], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
        labels = sorted({name for row in rows for name in row.names})
        require_two(labels, "labels", where, skipped)
        return tuple(labels)

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
        return Encoded(cutter.flat(one_or_two(task.splits[split])), torch.from_numpy(self.gold(task, split)).float())

    def group(self, row: LabelledRow) -> str:
        return row.names[0] if row.names else ""


class TokenClassification(Classes[TaggedRow], Tuned[TaggedRow]):
    """The class of every word.

    Tuned with a linear layer over every token and cross-entropy at the first piece of each word. Majority: the
    commonest tag of train. Source: Devlin et al. 2019, section 5.3.
    """

    name = "token-classification"
    head, objective = "token-classification", Classification
    metrics = (*CLASS_METRICS, "entity-f1")
    columns = UsualColumns(("tokens", "words"), (), ("tags", "upos", "pos_tags", "ner_tags", "labels", "label"))
    words = True

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """A list of words."""
        names = (given.text,) if given.text else self.columns.text
        return any(isinstance(records[0].get(name), list) for name in names) if records else False

    def row(self, record: Record, columns: Columns, where: str) -> TaggedRow | str:
        tokens, tags = record.get(columns.text or ""), record.get(columns.label or "")
        if tags is None:
            return NO_LABEL
        if not isinstance(tokens, list) or not isinstance(tags, list):
            got = f"{type(tokens).__name__} and {type(tags).__name__}"
            raise MaskwiseError(f"{where}: tokens and tags must be lists", got=got)
        if not all(isinstance(token, str) for token in tokens):
            raise MaskwiseError(f"{where}: a token is no text", got=tokens)
        if len(tokens) != len(tags):
            got = f"{len(tokens)} and {len(tags)}"
            raise MaskwiseError(f"{where}: tokens and tags differ in number", got=got)
        names = [label_of(tag) for tag in tags]
        if not tokens:
            return NO_TEXT
        labelled = [name for name in names if name is not None]
        return TaggedRow(tokens, labelled) if len(labelled) == len(names) else NO_LABEL

    def usual_metric(self, labels: tuple[str, ...]) -> str:
        return "entity-f1" if all(_BIO.match(label) for label in labels) else "accuracy"

    def check_metric(self, metric: str, labels: tuple[str, ...]) -> None:
        super().check_metric(metric, labels)
        if metric == "entity-f1" and self.usual_metric(labels) != metric:
            raise MaskwiseError("entity-f1 needs tags such as O, B-x, I-x", got=", ".join(labels[:5]))

    def score(self, task: Task[TaggedRow], split: str, answers: Answers, metric: str) -> float:
        gold, answered = self.gold(task, split), np.asarray(answers)
        if metric != "entity-f1":
            return METRICS[metric](gold, answered)
        return entity_f1(*self._tagged(task, split, answered))

    def row_counts(self, task: Task[TaggedRow], split: str, answers: Answers) -> NDArray[np.float64] | None:
        if task.metric != "entity-f1":
            return super().row_counts(task, split, answers)
        return entity_counts(*self._tagged(task, split, np.asarray(answers)))

    def _tagged(
        self, task: Task[TaggedRow], split: str, answered: NDArray[np.int64]
    ) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.int64]]:
        """The right tags, the answered ones, and where sentences begin."""
        # −2, an answer that could not be given, is O; −1, a tag that train does not have, is an entity of its own.
        names = np.array([*task.labels, "O", "B-unseen by train"])
        starts = edges([len(row.tags) for row in task.splits[split]])[:-1].numpy()
        return names[self.gold(task, split)], names[answered], starts

    def encode(self, task: Task[TaggedRow], split: str, cutter: Cutter) -> Encoded:
        rows, gold = task.splits[split], torch.from_numpy(self.gold(task, split))
        encodings = cutter.backend.encode_batch([row.tokens for row in rows], is_pretokenized=True)
        flat = Flat.of(encodings, cutter.pad)
        # Words are numbered in their row; special tokens have none, which numpy reads as nan.
        word = np.array(list(chain.from_iterable(e.word_ids for e in encodings)), dtype=np.float64)
        is_word_T = torch.from_numpy(~np.isnan(word))
        word_T = torch.from_numpy(np.nan_to_num(word, nan=-1)).long()
        row_T = torch.repeat_interleave(torch.arange(len(rows)), flat.lengths)
        running_T = torch.where(is_word_T, edges([len(row.tokens) for row in rows])[row_T] + word_T, -1)
        is_first_T = is_word_T & (running_T != running_T.roll(1))
        is_first_T[0] = is_word_T[0]
        first = is_first_T.nonzero().flatten()
        place = torch.full((len(gold),), -1)
        place[running_T[first]] = first
        targets = torch.full((len(flat.ids),), IGNORE)
        targets[first] = torch.where(gold == UNSEEN, IGNORE, gold)[running_T[first]]
        return Encoded(flat, targets, place)


def one_or_two(rows: Sequence[Row]) -> list[str | tuple[str, ...]]:
    """The texts of rows as a tokenizer takes them: a text, or a pair."""
    return [row.texts if len(row.texts) > 1 else row.texts[0] for row in rows]


# Judged by embeddings: nothing is fine-tuned, nothing is random


class SentenceEmbedding(TextClasses, Frozen[TextRow]):
    """The class of a text (or of two) by logistic regression on embeddings.

    The strength of the penalty is chosen on dev, on SentEval's grid; of equally good ones the strongest. (SentEval
    itself cuts MR, CR, SUBJ and MPQA into ten folds; here they are cut once, by hash.) Majority: the commonest class
    of train. Source: Conneau & Kiela 2018 (SentEval), section 3.
    """

    name = "sentence-embedding"
    suffix = "-embedding"

    def answers(self, task: Task[TextRow], vectors: Mapping[str, Tensor]) -> Mapping[str, ArrayLike]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        features = {split: _features(task, split, each).double().numpy() for split, each in vectors.items()}
        tried = []
        for penalty in PENALTIES:
            with warnings.catch_warnings():
                # An embedding that is not scaled may need more steps; the score moves no more by then.
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
