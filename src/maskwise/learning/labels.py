"""Derive labels for a policy from a task: the answers in a text that it should find.

An answer is labelled wherever it occurs in its context as whole words. The policy does not see the
question. Tasks without answers have no labels; the meta-gradient needs none.

Source: Ye et al. 2021 (arXiv 2104.08840).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

from maskwise.errors import MaskwiseError, counted
from maskwise.learning.examples import contexts_of, occurrences
from maskwise.tasks import load_task
from maskwise.tasks.columns import read_answers
from maskwise.tasks.files import (
    ANSWERS,
    CARDS,
    CONTEXT,
    read_splits,
    shared_names,
    shared_text,
    splits_of,
)
from maskwise.tasks.task import SPLITS, Row, Task

Place: TypeAlias = tuple[int, int]
"""(start, end) in characters."""
Pair: TypeAlias = tuple[str, Sequence[str]]
"""A text with the correct answers or targets from one row."""
Pairs: TypeAlias = Iterable[Pair]

NOT_IN_CONTEXT = "answers that are not in their context"
IN_NO_TEXT = "questions without an answer in any text"
NO_ANSWER = "questions without an answer"


@dataclass(frozen=True)
class Marked:
    """A text and its labels.

    Attributes:
        spans: the labelled spans, (start, end) in characters, sorted; they may repeat or overlap.
        questions: for each question about the text, the correct answers that the text contains.
    """

    text: str
    spans: tuple[Place, ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """The labelled texts of each split.

    Attributes:
        splits: the labelled texts of train, dev and test.
        counts: the number of rows without a label, for each reason.
    """

    splits: dict[str, list[Marked]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def marked(self, *splits: str) -> list[Marked]:
        """Return the labelled texts of the first of these splits that has any."""
        for split in splits:
            labelled = [each for each in self.splits[split] if each.spans]
            if labelled:
                return labelled
        return []

    def texts(self) -> list[str]:
        """Return the labelled texts of test, or else those of dev or train."""
        return [each.text for each in self.marked("test", "dev", "train")]


def answer_labels(pairs: Pairs, counts: Counter[str]) -> list[Marked]:
    """Label answers: turn (context, correct answers) pairs into contexts, each with all its
    answers.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_IN_CONTEXT]
    (((8, 10), (12, 14)), 1)
    """
    spans: dict[str, list[Place]] = {}
    questions: dict[str, list[tuple[str, ...]]] = {}
    for context, answers in pairs:
        present = []
        # A set, because two answers may differ only in case, but a question counts a place once.
        places = set[Place]()
        for answer in dict.fromkeys(answers):
            found = occurrences(answer, context)
            if found:
                present.append(answer)
                places.update(found)
        if not present:
            counts[NOT_IN_CONTEXT] += 1
            continue
        spans.setdefault(context, []).extend(places)
        questions.setdefault(context, []).append(tuple(present))
    marked = []
    for context, asked in questions.items():
        spans[context].sort()
        marked.append(Marked(context, tuple(spans[context]), tuple(asked)))
    return marked


# From a task
# -------------------------------------------------------------------------------------------


def labels_of(spec: str, *, texts: Sequence[str] = ()) -> Labels:
    """Derive the labels from a task.

    Args:
        spec: the task, as for ``load_task``.
        texts: a corpus that is searched for contexts, for questions without a context.

    Raises:
        MaskwiseError: the task has no answers, or no answer is in its context.
    """
    # Try raw records first: a task of a different kind may leave out its records' contexts.
    labels = _answers_of_file(spec) or _of_task(load_task(spec), texts)
    if not labels.marked("train"):
        raise MaskwiseError(
            f"nothing in the training texts of task {spec} can be labelled",
            got=counted(+labels.counts) or "no label",
            do="give contexts that contain their answers, or use learning.method: meta",
        )
    return labels


def _of_task(task: Task, texts: Sequence[str]) -> Labels:
    if not task.splits["train"][0].rights:
        raise MaskwiseError(
            f"task {task.name} has no answers to learn from",
            got=task.kind.name,
            do="use learning.method: meta, which needs no labels",
        )
    labels = Labels()
    for split in SPLITS:
        pairs = _answer_pairs(task.splits[split], texts, labels.counts)
        labels.splits[split] = answer_labels(pairs, labels.counts)
    return labels


def _answer_pairs(rows: Sequence[Row], texts: Sequence[str], counts: Counter[str]) -> Pairs:
    """Pair the contexts of each row with the row's correct answers."""
    pairs = []
    places, contexts = contexts_of(rows, texts)
    for row, found in zip(rows, places, strict=True):
        if not found:
            counts[IN_NO_TEXT] += 1
        for place in found:
            pairs.append((contexts[place], row.rights))
    return pairs


def _answers_of_file(spec: str) -> Labels | None:
    """Label the answers in raw records; return None if the records have no contexts or answers."""
    # Arguments and cards may choose other columns, which only ``load_task`` can find.
    if "(" in spec or spec in CARDS:
        return None
    records = read_splits(spec)
    first = next(chain.from_iterable(records.values()), {})
    if first.keys().isdisjoint(CONTEXT) or first.keys().isdisjoint(ANSWERS):
        return None
    labels = Labels()
    keyed: dict[str, list[tuple[str, Pair]]] = {}
    for split, part in records.items():
        names = shared_names(part)
        keyed[split] = []
        for number, record in enumerate(part, start=1):
            value = next((record[name] for name in ANSWERS if name in record), None)
            answers = [text for text, _ in read_answers(value, f"row {number} of {split}")]
            if not answers:
                labels.counts[NO_ANSWER] += 1
                continue
            contexts = map(record.get, CONTEXT)
            context = next((text for text in contexts if isinstance(text, str)), "")
            keyed[split].append((shared_text(record, names), (context, answers)))
    # Use the same splits as ``load_task``, so that no policy learns from a task's test rows.
    splits, _ = splits_of(keyed, f"task {spec!r}")
    for split, pairs in splits.items():
        labels.splits[split] = answer_labels(pairs, labels.counts)
    return labels
