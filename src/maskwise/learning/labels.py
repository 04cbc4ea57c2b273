"""Derive labels for a masking policy from a task: the answers that it should find in a text.

The context of a question is the text in which its answer is searched: the paragraph of the
question, or texts from a corpus. Every occurrence of an answer in its context is labelled if it
consists of whole words. The policy sees the text, but not the question. A task without answers has
no labels. From such a task, a policy can be learned only by the meta-gradient (``meta``).

Source: Ye et al. 2021 (arXiv 2104.08840).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from maskwise.base.errors import MaskwiseError, counted
from maskwise.learning.examples import contexts_of, occurrences
from maskwise.tasks.loading import load_task
from maskwise.tasks.splits import CONTEXT, SPLITS
from maskwise.tasks.task import Task

CharRange: TypeAlias = tuple[int, int]
"""(start, end) character offsets."""
Answered: TypeAlias = tuple[str, Sequence[str]]
"""(A context, the correct answers of one row of the task)."""

NOT_IN_CONTEXT = "answers that do not occur in their context"
IN_NO_TEXT = "questions without an answer in any text"


@dataclass(frozen=True)
class Marked:
    """A text and its labels.

    Attributes:
        text: the text.
        spans: the sorted character offsets of the labelled spans. Spans may repeat or overlap.
        questions: for each question about the text, the correct answers that occur in the text.
    """

    text: str
    spans: tuple[CharRange, ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """The labelled texts of each split.

    Attributes:
        splits: the labelled texts, keyed by split (train, dev, test).
        counts: the number of rows of the task without a label, keyed by reason.
    """

    splits: dict[str, list[Marked]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def marked(self, *splits: str) -> list[Marked]:
        """Return the labelled texts of the first of these splits that has labelled texts."""
        for split in splits:
            labelled = [each for each in self.splits[split] if each.spans]
            if labelled:
                return labelled
        return []

    def texts(self) -> list[str]:
        """Return the labelled texts of test. If test has none, use dev, and then train."""
        return [each.text for each in self.marked("test", "dev", "train")]


def answer_labels(pairs: Iterable[Answered], counts: Counter[str]) -> list[Marked]:
    """Label the correct answers in contexts. Pairs with the same context become one labelled text.

    Args:
        pairs: contexts and their answers.
        counts: a counter, to which the number of pairs without a label is added.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_IN_CONTEXT]
    (((8, 10), (12, 14)), 1)
    """
    spans: dict[str, list[CharRange]] = {}
    questions: dict[str, list[tuple[str, ...]]] = {}
    for context, answers in pairs:
        present = []
        # Two answers that differ only in case occur at the same places. The set keeps each place
        # once.
        places = set[CharRange]()
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
        spec: the task, as a string for ``load_task``.
        texts: the texts of a corpus, which are searched for contexts if questions have none.

    Raises:
        MaskwiseError: the task has no answers, or no answer occurs in its context.
    """
    labels = _of_task(_load_answers(spec), texts)
    if not labels.marked("train"):
        raise MaskwiseError(
            f"nothing in the training texts of task {spec} can be labelled",
            got=counted(+labels.counts) or "no label",
            do="give texts that contain the answers, or use learning.method: meta",
        )
    return labels


def _load_answers(spec: str) -> Task:
    """Load a task whose rows have answers.

    Raises:
        MaskwiseError: the rows have no answers.
    """
    try:
        task = load_task(spec)
        if task.splits["train"][0].rights:
            return task
        problem = MaskwiseError(
            f"task {task.name} has no answers to learn from",
            got=task.kind.name,
            do="use learning.method: meta, which needs no labels",
        )
    except MaskwiseError as error:
        problem = error
    # Labels need contexts and answers, but no questions. Unlike the kind question-answering, they
    # do not need all answers to be in their contexts: other answers are counted.
    try:
        return load_task(spec, kind="generation", text="|".join(CONTEXT))
    except MaskwiseError:
        raise problem from None


def _of_task(task: Task, texts: Sequence[str]) -> Labels:
    labels = Labels()
    for where, number in task.skipped.items():
        split, _, reason = where.partition(": ")
        labels.counts[reason] += number
    for split in SPLITS:
        rows = task.splits[split]
        places, contexts = contexts_of(rows, texts)
        # Pair each context of each row with the correct answers of the row.
        pairs = []
        for row, found in zip(rows, places, strict=True):
            if not found:
                labels.counts[IN_NO_TEXT] += 1
            for place in found:
                pairs.append((contexts[place], row.rights))
        labels.splits[split] = answer_labels(pairs, labels.counts)
    return labels
