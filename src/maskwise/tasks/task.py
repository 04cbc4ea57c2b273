"""The nouns of the room: a row, a kind of task, a task.

A *kind* says how records become rows, which answer is right, how answers are scored, and how a
checkpoint gives them. It is one class, and a line in ``loading.KINDS``. Everything else in this
room (loading, cutting into splits, fine-tuning, records) asks the kind and knows no kind by name.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.constants import LOWER_IS_BETTER, NATS
from maskwise.errors import MaskwiseError, counted
from maskwise.files import TaskFacts
from maskwise.tasks.columns import Columns, UsualColumns
from maskwise.tasks.metrics import METRICS
from maskwise.text.labelled import Record

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from maskwise.families import Kind as Family
    from maskwise.objectives import Objective
    from maskwise.tasks.tensors import Cutter, Data

SPLITS = ("train", "dev", "test")
Answers: TypeAlias = ArrayLike | Sequence[object]
"""One for every item: classes, numbers or texts in an array or a list, or what a kind makes of
them.
"""


class Row(ABC):
    """One labelled example. The kinds' rows are frozen dataclasses; their fields are what a
    fingerprint hashes.
    """

    shown: ClassVar[tuple[str, ...]]
    """The fields that a model is shown; one that is None is left out."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that a model is shown, for those who look for them in a corpus."""
        fields = (getattr(self, name) for name in self.shown)
        return tuple(text for text in fields if text is not None)

    @property
    def rights(self) -> Sequence[str]:
        """The right answers, where they are texts."""
        return ()

    @property
    def items(self) -> int:
        """How many things of this row are scored: one, or the words of a sentence."""
        return 1

    relation: ClassVar[str] = ""
    """What is asked for, such as a birthplace; "" where that is not known. Only guessing depends on
    it.
    """

    @property
    def content(self) -> Mapping[str, object]:
        """What a score depends on, for fingerprints."""
        return {name: value for name, value in vars(self).items() if name != "relation"}

    @property
    def key(self) -> str:
        """Equal keys stay on the same side of a cut."""
        return self.texts[0]


R = TypeVar("R", bound=Row)


class Kind(ABC, Generic[R]):
    """A kind of task. Subclass ``Tuned`` (a head is trained) or ``Frozen`` (the encoder stays as it
    is), not this.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Names in ``metrics.METRICS``; the first is the usual one."""
    columns: ClassVar[UsualColumns]
    head: ClassVar[str]
    """What is put on the encoder: a key of ``models.TASK_MODELS``."""
    suffix: ClassVar[str] = ""
    """What stands behind the name of a task, for kinds that judge the same rows in another way."""
    frozen: ClassVar[bool] = False
    """Whether the encoder stays as it is. Then nothing is random, and one run says all."""
    needs_train: ClassVar[bool] = True
    """Whether anything is learned from train."""
    every_label: ClassVar[bool] = False
    """Whether labels that train lacks are among the answers, so that they count as missed."""
    words: ClassVar[bool] = False
    """Whether texts come as lists of words."""
    windows: ClassVar[bool] = False
    """Whether a text that is too long is read in several windows, not cut."""

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Whether columns show by themselves that they are of this kind. Kinds are asked in the
        table's order.

        Args:
            records: at least one; the first has every column that occurs.
            given: the columns that the user names.
        """
        return False

    @abstractmethod
    def row(self, record: Record, columns: Columns, where: str) -> R | str:
        """The row of a record, or why it is skipped (``NO_LABEL``, ``NO_TEXT``).

        Raises:
            MaskwiseError: the record is damaged; ``where`` names its place in the file.
        """

    def labels(self, rows: Sequence[R], where: str, skipped: Mapping[str, int]) -> tuple[str, ...]:
        """The classes of the rows that are learned from, sorted; none where answers are no classes.

        Raises:
            MaskwiseError: there is nothing to tell apart.
        """
        return ()

    @abstractmethod
    def gold(self, task: Task[R], split: str) -> ArrayLike:
        """The right answers of a split."""

    @abstractmethod
    def majority(self, task: Task[R]) -> float | None:
        """The score on test of the best guess that ignores the text; None where it depends on the
        tokenizer.

        Always the commonest class, or answer to the relation that is asked for; or each one of them
        equally often, which is better where classes are balanced, for then the commonest of train
        are rare in test.
        """

    @property
    def settings(self) -> Mapping[str, object]:
        """What a task may set for its kind, which changes what a score means. They are the fields
        of a kind that is a frozen dataclass, and further arguments of ``load_task``."""
        return vars(self)

    def usual_metric(self, labels: tuple[str, ...]) -> str:
        """The metric where the user names none."""
        return self.metrics[0]

    def check_metric(self, metric: str, labels: tuple[str, ...]) -> None:
        """
        Raises:
            MaskwiseError: this kind, or a task with these classes, is not scored so.
        """
        if metric not in self.metrics:
            raise MaskwiseError(
                f"no metric for {self.name}", got=metric, allowed=", ".join(self.metrics)
            )

    def score(self, task: Task[R], split: str, answers: Answers, metric: str) -> float:
        """A metric of the answers to a split."""
        return METRICS[metric](self.gold(task, split), answers)

    def further(self, task: Task[R]) -> Sequence[str]:
        """The metrics of test that are recorded beside the task's own. ROUGE takes some
        milliseconds a row, and is left out where it says little beside the task's own metric."""
        rouge = {"f1": {"rouge-l"}, NATS: {"rouge-1", "rouge-2", "rouge-l"}}.get(task.metric, set())
        of_rouge = task.metric.startswith("rouge")
        others = []
        for name in self.metrics:
            if name in (task.metric, "entity-f1"):
                continue
            if name == NATS or name in rouge or name.startswith("rouge") == of_rouge:
                others.append(name)
        return others

    def item_scores(
        self, task: Task[R], split: str, answers: Answers
    ) -> NDArray[np.float64] | None:
        """The score of every item by the task's metric, whose mean is the score; None where nothing
        needs them.
        """
        return None

    def row_counts(self, task: Task[R], split: str, answers: Answers) -> NDArray[np.float64] | None:
        """(N, 2) what every row adds above and below the line of the score; None where it is no
        quotient of sums.
        """
        if (scores := self.item_scores(task, split, answers)) is not None:
            return np.column_stack([scores, np.ones(len(scores))])
        if task.metric != "accuracy":
            return None
        right = np.asarray(self.gold(task, split)) == np.asarray(answers)
        items = np.array([row.items for row in task.splits[split]])
        return np.column_stack(
            [np.bincount(np.repeat(np.arange(len(items)), items), right, len(items)), items]
        )

    def predictions(
        self, task: Task[R], split: str, answers: Answers
    ) -> Sequence[Mapping[str, object]]:
        """A line for every item with input, gold, answer and score, for people to read; none where
        there is nothing to read."""
        return []

    def group(self, row: R) -> str:
        """Rows of each group are taken equally often where few are wanted: the class of a row, if
        it has one.
        """
        return ""

    def least_tokens(self, task: Task[R]) -> tuple[bool, int]:
        """Whether rows are pairs of texts, and how many tokens (without special ones) they need at
        the least.
        """
        paired = any(len(row.texts) > 1 for row in task.splits["train"])
        return paired, 1 + paired


class Tuned(Kind[R]):
    """A kind that trains a head, and the encoder with it."""

    objective: ClassVar[type[Objective]]
    """The loss over such a model. The answers of the tensors (``Data.answers``) are read off it."""
    family: ClassVar[Family] = "encoder"
    """The kind of model that can learn such tasks."""
    pretrained_head: ClassVar[bool] = False
    """Whether it answers with the head of its pre-training, not with a new one."""

    def config(self, task: Task[R]) -> dict[str, object]:
        """What the model's configuration must say: its classes, if it has some."""
        names = dict(enumerate(task.labels))
        numbers = {name: number for number, name in names.items()}
        return {"num_labels": len(names), "id2label": names, "label2id": numbers} if names else {}

    def check_model(self, config: PreTrainedConfig) -> None:
        """
        Raises:
            MaskwiseError: a model of this configuration cannot learn such tasks.
        """

    def chance(self, task: Task[R], data: Mapping[str, Data]) -> float | None:
        """As ``majority``, once the tokenizer is known: ``data`` has the tensors of every split."""
        return task.majority

    @abstractmethod
    def encode(self, task: Task[R], split: str, cutter: Cutter) -> Data:
        """A split as tensors. The cutter is this call's own, to be changed at will."""


class Frozen(Kind[R]):
    """A kind that reads embeddings off an encoder without a head."""

    frozen, head = True, "embedding"

    def least_tokens(self, task: Task[R]) -> tuple[bool, int]:
        return False, 1  # every text is embedded alone

    @abstractmethod
    def answers(self, task: Task[R], vectors: Mapping[str, Tensor]) -> Mapping[str, ArrayLike]:
        """The answers on test, and on dev where there is one.

        Args:
            vectors: (N, H) the embeddings of the texts of every split that has rows; of pairs two
                behind one another.
        """


@dataclass(frozen=True, eq=False)
class Task(Generic[R]):
    """What a checkpoint is judged by.

    Two tasks are equal if the same answers get the same score, whatever they are called.

    Attributes:
        name: for records and reports.
        kind: how it is read, answered and scored.
        metric: a name in ``metrics.METRICS``.
        labels: the classes of train, sorted; a class is its place here.
        splits: train, dev and test.
        skipped: "split: reason" → rows left out.
        notes: what was guessed of the columns and labels, and how the splits were made.
        pooling: what stands for a sentence, in frozen kinds: "mean", "cls", or "dev": whichever of
            them is better on dev, since objectives differ in which of the two they train.

    >>> from maskwise.tasks import load_task
    >>> task = load_task("ud-pos(train_rows=40)")
    >>> task.kind.name, task.metric, len(task.splits["train"]), task.test_items
    ('token-classification', 'accuracy', 40, 8016)
    >>> round(task.majority, 3)
    0.162
    """

    name: str
    kind: Kind[R]
    metric: str
    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[R]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pooling: str = "mean"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that a score depends on: kind, metric, classes and rows."""
        rows = [list(self.splits[split]) for split in SPLITS]
        content: list[object] = [self.kind.name, self.metric, self.labels, rows]
        content += [self.pooling] if self.frozen else []
        content += [dict(self.kind.settings)] if self.kind.settings else []
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, default=lambda row: row.content).encode()
        ).hexdigest()[:16]

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is, so that nothing is trained and nothing random."""
        return self.kind.frozen

    @property
    def poolings(self) -> tuple[str, ...]:
        """What is tried to stand for a sentence, in frozen kinds."""
        return ("mean", "cls") if self.pooling == "dev" else (self.pooling,)

    @property
    def test_items(self) -> int:
        """How many things the score is over: rows, or words."""
        return sum(row.items for row in self.splits["test"])

    @cached_property
    def majority(self) -> float | None:
        """The score on test of an answer that ignores the text: see the kind's own documentation."""
        return self.kind.majority(self)

    @property
    def remarks(self) -> list[str]:
        """The notes, and how many rows were left out."""
        left_out = [f"left out: {counted(self.skipped)}"] if self.skipped else []
        return [*self.notes, *left_out]

    def score(self, split: str, answers: Answers, metric: str | None = None) -> float:
        """The task's metric (or another of its kind) of the answers to a split."""
        return self.kind.score(self, split, answers, metric or self.metric)

    def texts(self) -> list[tuple[str, ...]]:
        """The texts of every test row."""
        return [row.texts for row in self.splits["test"]]

    def rights(self) -> list[Sequence[str]]:
        """The right answers of every test row whose answers are texts."""
        return [row.rights for row in self.splits["test"] if row.rights]

    def facts(self) -> TaskFacts:
        """What study.json says of the task; ``notes`` and ``skipped`` only where there are some."""
        facts: TaskFacts = {
            "metric": self.metric,
            "kind": self.kind.name,
            "classes": len(self.labels),
            "test_items": self.test_items,
        }
        texts = json.dumps(self.texts()).encode()
        facts["test_texts"] = hashlib.blake2b(texts, digest_size=4).hexdigest()
        if self.notes:
            facts["notes"] = list(self.notes)
        if self.skipped:
            facts["skipped"] = dict(self.skipped)
        if self.metric in LOWER_IS_BETTER:
            facts["higher_is_better"] = False
        return facts

    def with_train_rows(self, count: int | None) -> Task[R]:
        """The same task with at most ``count`` rows to learn from; dev and test stay.

        Where a random start does as well with all rows, few of them show what pre-training is
        worth. Classes of rows get equally many, and which ones is decided by the hash of the text,
        so that fewer rows are always a part of more.

        Raises:
            MaskwiseError: fewer rows than classes.
        """
        rows = self.splits["train"]
        if count is None or count >= len(rows):
            return self
        least = len({self.kind.group(row) for row in rows})
        if count < least:
            raise MaskwiseError(
                "train_rows is too small", got=count, allowed=f"≥ {least}, one for each class"
            )
        seen: Counter[str] = Counter()
        ranked = []
        for place, row in enumerate(sorted(rows, key=lambda row: place_of(row.key))):
            group = self.kind.group(row)
            seen[group] += 1
            ranked.append((seen[group], place, row))
        chosen = [row for _, _, row in sorted(ranked, key=lambda item: item[:2])[:count]]
        return replace(self, splits={**self.splits, "train": tuple(chosen)})


def place_of(key: str) -> float:
    """A number in [0, 1) that is a function of the text: where the row with this key stands in a
    cut.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48
