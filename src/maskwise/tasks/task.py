"""Labelled data on which checkpoints are evaluated: the classes ``Row``, ``TaskKind`` and ``Task``.

A ``TaskKind`` defines how the records of a file become rows, which answers are correct, and how a
model answers. To add a kind, create a ``TaskKind`` and add it to ``loading.KINDS``. Fine-tuning and
scoring use only the fields of the kind, never its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.base.constants import LOWER_IS_BETTER, NATS
from maskwise.base.errors import MaskwiseError, install_command, require_library, whole_number
from maskwise.masking.line import Names
from maskwise.results.files import TaskFacts
from maskwise.tasks.columns import ColumnNames, UsualColumns
from maskwise.tasks.metrics import (
    ENTITY_F1,
    ITEMS,
    METRICS,
    computed,
    entity_counts,
    entity_f1,
    is_entity_tags,
    nats_of_items,
)
from maskwise.tasks.splits import SPLITS, dropped, place_in_splits
from maskwise.text.tables import FieldValues

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from maskwise.base.constants import Kind as Family
    from maskwise.objectives.base import Objective
    from maskwise.tasks.tensors import Cutter, Data

# The number of parts of the test set that are left out, one at a time, to compute a standard error.
JACKKNIFE_GROUPS = 200
# The answers for a split, one per item: classes, numbers or texts.
Answers: TypeAlias = ArrayLike | Sequence[object]
# The rows of one kind of task.
TaskRows: TypeAlias = Sequence[Any]
KindSettings: TypeAlias = Mapping[str, Any]
Floats: TypeAlias = NDArray[np.float64]
CORPUS = "corpus"
"""The name of texts that are in no split (``TaskKind.corpus``)."""
# Fields of rows that no model reads and no score depends on.
_UNREAD = ("relation", "passage")


class Row:
    """One labelled example. Subclasses are frozen dataclasses."""

    shown: ClassVar[Names] = ()
    """Names of the fields whose texts the model reads. The value of such a field may be None."""
    relation: str = ""
    """The relation that a question asks for, such as a birthplace. Only baselines use it."""
    passage: str = ""
    """The text about a question that its file gives, for kinds whose models do not read it. Only
    masking policies that are learned from the task use it."""

    @property
    def texts(self) -> Names:
        """The texts that the model reads."""
        texts = map(vars(self).get, self.shown)
        return tuple(text for text in texts if text is not None)

    @property
    def rights(self) -> Sequence[str]:
        """All correct answers, if answers are texts (the field ``answers``); otherwise empty."""
        return vars(self).get("answers", ())

    @property
    def classes(self) -> Sequence[str]:
        """The class of the row, or the class of each word. Empty if answers are not classes."""
        return ()

    @property
    def items(self) -> int:
        """The number of scored items: 1, or the number of words in a sentence."""
        return len(self.classes) or 1

    @property
    def stratum(self) -> str:
        """The row's class, or "". ``with_train_rows`` keeps the same number of rows per class."""
        return ""

    @property
    def content(self) -> Mapping[str, object]:
        """All fields that affect a score. The task's fingerprint hashes them."""
        return {name: value for name, value in vars(self).items() if name not in _UNREAD}

    @property
    def key(self) -> str:
        """The text whose hash decides the split. Rows with equal keys are in the same split."""
        # Most tokenizers read texts that differ only in white space as the same tokens.
        return " ".join(self.texts[0].split())


MakeRow: TypeAlias = Callable[[FieldValues, ColumnNames, str], Row | str]


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A kind of task: how data is read, how a model answers, and how answers are scored.

    A kind without an ``objective`` keeps the encoder frozen: ``answers`` computes answers from the
    encoder's embeddings. Nothing is random, so one run is enough.
    """

    name: str
    metrics: Names
    """Names in ``metrics.METRICS``; the first is the default."""
    columns: UsualColumns

    row: MakeRow
    """Maps (record, columns, location) to a row, or to a reason for skipping the record."""
    gold: Callable[[Task, str], Any]
    """Returns the correct answers of a split: an array, or for each row a list of correct texts."""
    baseline: Callable[[Task], float | None]
    """Returns the test score of the best guess without the text; None if it needs a tokenizer."""
    labels: Callable[[TaskRows, str], Names] = lambda rows, where: ()
    """Returns the sorted classes of the rows; raises an error if there is only one class."""
    row_for: Callable[[Iterable[tuple[FieldValues, ColumnNames]]], tuple[MakeRow, Names]] | None = (
        None
    )
    """Returns what takes the place of ``row`` because of all records of the task, and notes."""

    head: str = "embedding"
    """The head on the encoder: a key in ``models.TASK_MODELS``."""
    objective: Callable[..., Objective] | None = None
    """The training loss: a function of the model."""
    pools: bool = False
    """Whether the objective makes one vector of the states of a text, so that it takes an argument
    ``pooling``."""
    encode: Callable[[Task, str, Cutter], Data] | None = None
    """Converts a split to tensors with the tokenizer of the cutter. Every call gets a new cutter,
    so the function may change the tokenizer's truncation."""
    answers: Callable[[Task, Mapping[str, Tensor]], Mapping[str, ArrayLike]] | None = None
    """For frozen kinds: maps the embeddings (N, H) of each split to answers for dev and test."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Fields for the model's configuration, in addition to the classes."""
    check_model: Callable[[PreTrainedConfig], None] | None = None
    """Raises an error if a model with this configuration cannot learn such tasks."""

    unread: Names = ()
    """The roles of columns (``ColumnNames``) that rows of this kind do not read."""
    library: str | None = None
    """An optional dependency of this kind: a key in ``errors.EXTRAS``."""
    suffix: str = ""
    """A suffix for the names of tasks. It is needed if another kind reads the same data."""
    needs_train: bool = True
    """Whether the kind needs training rows."""
    every_label: bool = False
    """Whether labels that occur only in dev or test are classes, too."""
    words: bool = False
    """Whether each text is a list of words."""
    windows: bool = False
    """Whether a long text is split into several windows instead of cut."""
    item_error: bool = True
    """Whether records include the standard error of the score over test items."""
    item_interval: bool = False
    """Whether records include an interval over test items, and predictions are written."""
    family: Family = "encoder"
    """The architecture of models for this kind."""
    pretrained_head: bool = False
    """Whether the model keeps its pre-trained head instead of a new head."""
    least_tokens: tuple[bool, int] | None = None
    """(Whether a row is a pair, the least number of tokens in a row without special tokens). By
    default, there is at least one token for each text of a row."""
    corpus: Names = field(default=(), repr=False)
    """Further texts that are embedded; their vectors have the key ``CORPUS``."""
    settings: KindSettings = field(default_factory=dict)
    """Settings of the kind that affect scores."""
    make: Callable[..., TaskKind] | None = None
    """Builds this kind with other settings. ``load_task`` accepts the settings as arguments."""

    @property
    def frozen(self) -> bool:
        """Whether the encoder's weights never change."""
        return self.objective is None

    def metric_for(self, labels: Names, metric: str | None) -> str:
        """Return the given metric after a check, or the default metric for these classes.

        Raises:
            MaskwiseError: the metric is unknown, or does not suit this kind or these classes.
        """
        marks_entities = ENTITY_F1 in self.metrics and is_entity_tags(labels)
        if metric is None:
            return ENTITY_F1 if marks_entities else self.metrics[0]
        if metric not in self.metrics:
            raise MaskwiseError(
                f"unknown metric for {self.name}", got=metric, allowed=", ".join(self.metrics)
            )
        if metric == ENTITY_F1 and not marks_entities:
            raise MaskwiseError(
                "entity-f1 needs tags such as O, B-x, I-x, or O, B, I", got=", ".join(labels[:5])
            )
        return metric


@dataclass(frozen=True, eq=False)
class Task:
    """Data and a metric for evaluating checkpoints.

    Two tasks are equal if the same answers get the same score, even if the tasks' names differ.

    Attributes:
        name: the name in records and reports.
        kind: how data is read, answered and scored.
        metric: a name in ``metrics.METRICS``.
        labels: the classes in train (or in all splits: ``TaskKind.every_label``), sorted.
        splits: the rows of train, dev and test.
        found: the number of training rows in the data, if only some of them are used; else 0.
        columns: the columns that were read, keyed by role: text, pair, label.
        suggested: the arguments of ``load_task`` that nobody gave and that were found in the file:
            kind, columns, metric and number of classes. Nothing is guessed if they are given; {} if
            the kind was given, or if the rows never change.
        skipped: the number of dropped rows, keyed by "split: reason".
        notes: notes on columns and labels, and on the origin of the splits.
        pooling: how token vectors become the vector of a text, if the kind needs one: "mean",
            "cls", "last", or, with a frozen encoder, "dev" to use whichever of the first two scores
            better on dev.

    >>> from maskwise.tasks.loading import load_task
    >>> task = load_task("ud-pos(train_rows=40)")
    >>> task.kind.name, task.metric, len(task.splits["train"]), task.test_items
    ('token-classification', 'accuracy', 40, 8016)
    >>> round(task.majority, 3)
    0.162
    """

    name: str
    kind: TaskKind
    metric: str
    labels: Names
    splits: Mapping[str, TaskRows]
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: Names = ()
    pooling: str = "mean"
    found: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    suggested: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A missing library is reported here, before any training starts.
        if self.kind.library:
            require_library(self.kind.library, use=f"task {self.name}")
        if self.metric.startswith("rouge"):
            require_library("rouge_score", use=self.metric)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that a score depends on: kind, metric, classes and rows."""
        rows = [list(self.splits[split]) for split in SPLITS]
        content: list[object] = [self.kind.name, self.metric, self.labels, rows]
        # Recorded fingerprints must not change, so these fields are added only if they are used.
        if self.frozen or self.kind.pools:
            content.append(self.pooling)
        if self.kind.settings:
            content.append(dict(self.kind.settings))
        text = json.dumps(content, sort_keys=True, default=lambda row: row.content)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each class, keyed by its name."""
        return {name: number for number, name in enumerate(self.labels)}

    @property
    def frozen(self) -> bool:
        """Whether the encoder's weights never change. If so, nothing is trained or random."""
        return self.kind.frozen

    @property
    def poolings(self) -> Names:
        """The poolings to try with a frozen encoder."""
        return ("mean", "cls") if self.pooling == "dev" else (self.pooling,)

    @property
    def test_items(self) -> int:
        """The number of scored items in test, which are rows or words."""
        return sum(self._items("test"))

    @cached_property
    def majority(self) -> float | None:
        """The test score of the best guess that ignores the text; None if it needs a tokenizer.
        For classes, it is the better of two guesses: the most frequent class (of tags of entities
        without types, the best tag) or a random class."""
        return self.kind.baseline(self)

    @property
    def remarks(self) -> list[str]:
        """What was found, the notes, and the number of dropped rows."""
        remarks = list(self.notes)
        if self.suggested:
            found = ", ".join(f"{name}={value!r}" for name, value in self.suggested.items())
            remarks.insert(0, f"found {found}; name these to read the file in another way")
        if self.skipped:
            remarks.append(f"left out: {dropped(self.skipped)}")
        return remarks

    def texts(self) -> list[Names]:
        """Return the texts of each test row."""
        return [row.texts for row in self.splits["test"]]

    def rights(self) -> list[Sequence[str]]:
        """Return the correct answers for each test row that has texts as answers."""
        return [row.rights for row in self.splits["test"] if row.rights]

    def config(self) -> dict[str, object]:
        """Return the fields that this task sets in a model's configuration."""
        if self.frozen:
            return {}
        fields: dict[str, object] = {}
        if self.labels:
            fields["num_labels"] = len(self.labels)
            fields["id2label"] = dict(enumerate(self.labels))
            fields["label2id"] = dict(self.numbers)
        return {**fields, **self.kind.config}

    def objective(self, network: PreTrainedModel) -> Any:
        """Return the training loss of a model."""
        assert self.kind.objective is not None
        more = {"pooling": self.pooling} if self.kind.pools else {}
        return self.kind.objective(network, **more)

    # Scores

    def gold(self, split: str) -> Any:
        """Return the correct answers for a split."""
        return self.kind.gold(self, split)

    def score(self, split: str, answers: Answers, metric: str | None = None) -> float:
        """Score the answers for a split with the task's metric, or with a different metric."""
        metric = metric or self.metric
        if metric == ENTITY_F1:
            return entity_f1(*self._tags(split, answers))
        gold = self.gold(split)
        if metric in ITEMS and isinstance(gold, list):
            return float(np.mean(self.text_scores(split, answers, metric)))
        return computed(metric, gold, answers)

    def finite_score(self, split: str, answers: Answers, metric: str | None = None) -> float:
        """Return ``score``, or raise an error if it is not finite."""
        metric = metric or self.metric
        score = self.score(split, answers, metric)
        if not math.isfinite(score):
            raise MaskwiseError(
                f"the {metric} of task {self.name!r} on {split} is not a number",
                got=f"{score}: the model's answers are not finite",
                do="check whether the checkpoint is damaged",
            )
        return score

    def text_scores(self, split: str, answers: Answers, metric: str) -> Floats:
        """Return (N,) the score of each written answer."""
        pairs = zip(self.gold(split), np.asarray(answers, dtype=object), strict=True)
        return np.array([ITEMS[metric](rights, text) for rights, text in pairs])

    def row_counts(self, split: str, answers: Answers) -> Floats | None:
        """Return (N, 2), each row's contribution to the numerator and denominator of the score.

        None if the metric is not a ratio of sums, or if the kind records no error over items.
        """
        return self._ratio_parts(split, answers) if self.kind.item_error else None

    def item_sums(self, split: str, answers: Answers) -> Floats:
        """Return (G, 2), the contributions of G groups of rows to the score.

        Rows with the same text are in one group, so groups are independent of each other. The score
        is the sum of the first column divided by the sum of the second. For a metric that is not a
        ratio of sums, such as a correlation or macro-F1, the first column holds the pseudo-values
        of a jackknife over at most ``JACKKNIFE_GROUPS`` groups, and the second holds ones: their
        mean is the score up to a bias of order 1/G, and their standard error is that of the score.

        The order of groups depends only on the rows, so groups of two models can be compared.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.
        """
        keys = [row.key for row in self.splits[split]]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        group_N = np.array([numbers[key] for key in keys])
        counts = self._ratio_parts(split, answers)
        if counts is not None:
            sums = np.zeros((len(numbers), 2))
            np.add.at(sums, group_N, counts)
            return sums
        group_N %= JACKKNIFE_GROUPS
        gold = np.asarray(self.gold(split))
        given = np.asarray(answers)
        # Of a sentence, every word is an item.
        owners = group_N if len(gold) == len(keys) else np.repeat(group_N, self._items(split))
        groups = int(group_N.max()) + 1
        score = METRICS[self.metric](gold, given)
        if groups < 2:
            return np.array([[score, 1.0]])
        without = []
        for group in range(groups):
            others = owners != group
            without.append(METRICS[self.metric](gold[others], given[others]))
        values = groups * score - (groups - 1) * np.array(without)
        return np.column_stack([values, np.ones(groups)])

    def _ratio_parts(self, split: str, answers: Answers) -> Floats | None:
        """Return (N, 2), each row's contribution to the numerator and denominator of the score.

        A written answer contributes its score and 1. None if the metric is not a ratio of sums.
        """
        rows = self.splits[split]
        gold = self.gold(split)
        if self.metric == ENTITY_F1:
            return entity_counts(*self._tags(split, answers))
        if isinstance(gold, list):
            if self.metric == NATS:
                scores = nats_of_items(np.asarray(answers, dtype=object))
            else:
                scores = self.text_scores(split, answers, self.metric)
            return np.column_stack([scores, np.ones(len(rows))])
        if self.metric != "accuracy":
            return None
        items = self._items(split)
        owner = np.repeat(np.arange(len(rows)), items)
        right = np.bincount(owner, gold == np.asarray(answers), len(rows))
        return np.column_stack([right, items])

    def _items(self, split: str) -> list[int]:
        """Return the number of scored items in each row, such as its words."""
        return [row.items for row in self.splits[split]]

    def _tags(self, split: str, answers: Answers) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """Return the correct tags, the predicted tags, and the first word of each sentence."""
        # Correct tags may be unknown to train. Index −2 (``LOST``) means O; no answer is −1.
        names = np.array([*self.labels, "O", ""])
        starts = np.cumsum([0, *self._items(split)])[:-1]
        return all_classes(self.splits[split]), names[np.asarray(answers)], starts

    def other_metrics(self) -> list[str]:
        """Return the names of further metrics for the record."""
        # ROUGE takes milliseconds per row. It is skipped where it adds little information, or where
        # its library is missing: a task with another metric does not need it.
        rouge = {"f1": ["rouge-l"], NATS: ["rouge-1", "rouge-2", "rouge-l"]}.get(self.metric, [])
        if install_command("rouge_score"):
            rouge = []
        of_rouge = self.metric.startswith("rouge")
        others = []
        for name in self.kind.metrics:
            wanted = name == NATS or name in rouge or name.startswith("rouge") == of_rouge
            if wanted and name not in (self.metric, ENTITY_F1):
                others.append(name)
        return others

    def predictions(self, split: str, answers: Answers) -> list[dict[str, object]]:
        """Return one record per row: input, correct answers, written answer and score."""
        lines = []
        for row, answer in zip(self.splits[split], np.asarray(answers, dtype=object), strict=True):
            nats = answer.nats / max(1, answer.tokens)
            score = nats
            if self.metric != NATS:
                score = ITEMS[self.metric](row.answers, answer)
            line = {"input": row.text, "gold": row.answers, "answer": str(answer), "score": score}
            lines.append({**line, "nats": nats})
        return lines

    def facts(self) -> TaskFacts:
        """Return the task's entry in study.json."""
        texts = json.dumps(self.texts()).encode()
        facts: TaskFacts = {
            "metric": self.metric,
            "kind": self.kind.name,
            "classes": len(self.labels),
            "test_items": self.test_items,
            "test_texts": hashlib.blake2b(texts, digest_size=4).hexdigest(),
        }
        if self.notes:
            facts["notes"] = list(self.notes)
        if self.skipped:
            facts["skipped"] = dict(self.skipped)
        if self.metric in LOWER_IS_BETTER:
            facts["higher_is_better"] = False
        return facts

    def with_train_rows(self, count: int | None) -> Task:
        """Return the task with at most ``count`` training rows, and the same dev and test rows.

        Pre-training often matters only if there are few rows. Each class keeps the same number of
        rows, chosen by a hash of the text. Smaller sets are therefore subsets of larger sets.

        Raises:
            MaskwiseError: ``count`` is below the number of classes, or all scores of the rows are
                equal.
        """
        rows = self.splits["train"]
        if count is None or whole_number("train_rows", count, least=1) >= len(rows):
            return self
        least = len({row.stratum for row in rows})
        if count < least:
            raise MaskwiseError(
                "train_rows is too small", got=count, allowed=f"≥ {least}, one row for each class"
            )
        seen = Counter[str]()
        ranked = []
        for row in sorted(rows, key=lambda row: place_in_splits(row.key)):
            seen[row.stratum] += 1
            ranked.append((seen[row.stratum], row))
        # The first row of every class comes before all second rows. The sort is stable, so rows of
        # one rank keep their order by hash.
        ranked.sort(key=lambda item: item[0])
        kept = tuple(row for _, row in ranked[:count])
        # Rows of a kind with classes have every class.
        if not self.labels:
            self.kind.labels(kept, f"task {self.name!r} with train_rows={count}")
        return replace(self, splits={**self.splits, "train": kept}, found=self.found or len(rows))

    def with_test_rows(self, count: int | None) -> Task:
        """Return the task with at most ``count`` test rows and as many dev rows, and a note.

        Rows are chosen by a hash of the text, so smaller sets are subsets of larger sets, and
        classes keep about their shares.

        Raises:
            MaskwiseError: ``count`` is not a positive number.
        """
        if count is None:
            return self
        whole_number("test_rows", count, least=1)
        splits = dict(self.splits)
        notes = []
        for name in ("dev", "test"):
            rows = splits[name]
            if len(rows) > count:
                splits[name] = tuple(sorted(rows, key=lambda row: place_in_splits(row.key))[:count])
                notes.append(f"{name} is {count:,} of {len(rows):,} rows")
        return replace(self, splits=splits, notes=(*self.notes, *notes))


def all_classes(rows: TaskRows) -> list[str]:
    """Return the classes of all items in the rows."""
    return list(chain.from_iterable(row.classes for row in rows))
