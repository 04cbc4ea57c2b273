"""Derive labels for a policy from a task: which words or spans of a text it should find.

- Questions: an answer is labelled wherever it occurs in the context as whole words. The policy does
  not see the question.
- Summaries and other targets: their content words are labelled in the source. If hardly any source
  contains one, labels teach nothing, and only the meta-gradient is left.
- Classification: a word is labelled if a classifier is less sure of the right class without it.

Source: Ye et al. 2021 (arXiv 2104.08840) for answers; Gu et al. 2020 (arXiv 2004.09733) for the
    classifier. They add words one by one; we leave one out, which does not depend on an order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError, counted
from maskwise.learning.examples import contexts_of, given_context, occurrences
from maskwise.learning.scorer import Head
from maskwise.tasks import load_task
from maskwise.tasks.classes import TextRow
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
from maskwise.text.words import classify, words_in

Place: TypeAlias = tuple[int, int]
"""(start, end) in characters."""
Pair: TypeAlias = tuple[str, Sequence[str]]
"""A text with the right answers or targets of one row."""
Pairs: TypeAlias = Iterable[Pair]

NOT_IN_CONTEXT = "answers that are not in their context"
NO_SHARED_WORD = "targets without a content word of their source"
IN_NO_TEXT = "questions without an answer in any text"
NO_ANSWER = "questions without an answer"
LEAST_LABELLED = 0.1
"""Labels of targets are refused if a smaller share of the sources has a label."""
LEAST_ANSWERED = 0.01
"""Rows without contexts count as questions, not summaries, if texts answer this share of them."""

_FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been before being
below between both but by can could did do does doing down during each few for from further had
has have having he her here hers him his how i if in into is it its itself just may me might more
most must my no nor not now of off on once one only or other our out over own same shall she
should so some such than that the their them then there these they this those through to too under
until up upon us very was we were what when where which while who whom whose why will with would
you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words without content: they are never labels of targets."""


@dataclass(frozen=True)
class Marked:
    """A text and its labels.

    Attributes:
        spans: (start, end) in characters, sorted; they may repeat or overlap.
        questions: for each question about the text, the right answers that it contains; empty if
            the labels are words.
    """

    text: str
    spans: tuple[Place, ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """Labelled texts by split.

    Attributes:
        splits: train, dev and test.
        counts: rows without a label, by reason.
    """

    kind: Literal["answers", "target-words", "classifier"]
    splits: dict[str, list[Marked]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def head(self) -> Head:
        """The head of a policy that can learn these labels."""
        if self.kind == "answers":
            return "spans"
        return "tokens"

    def marked(self, *splits: str) -> list[Marked]:
        """Return the labelled texts of the first of these splits that has some."""
        for split in splits:
            labelled = [each for each in self.splits[split] if each.spans]
            if labelled:
                return labelled
        return []

    def texts(self) -> list[str]:
        """Return the labelled texts of test, or else of dev or train."""
        return [each.text for each in self.marked("test", "dev", "train")]


def answer_labels(pairs: Pairs, counts: Counter[str]) -> list[Marked]:
    """Label answers: (context, right answers) of questions → each context with all its answers.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_IN_CONTEXT]
    (((8, 10), (12, 14)), 1)
    """
    spans: dict[str, list[Place]] = {}
    questions: dict[str, list[tuple[str, ...]]] = {}
    for context, answers in pairs:
        present = []
        # A set: two answers may differ in case alone, but one question counts a place once.
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


def target_labels(pairs: Pairs, counts: Counter[str]) -> list[Marked]:
    """Label content words of targets: (source, targets) pairs → the sources with these words.

    >>> target_labels([("Owls hunt mice at night.", ["Mice fear the owls."])], Counter())[0].spans
    ((0, 4), (10, 14))
    """
    marked = []
    for source, targets in pairs:
        wanted = set[str]()
        for target in targets:
            for word, _ in placed_words(target):
                wanted.add(word.casefold())
        wanted -= FUNCTION_WORDS
        spans = []
        for word, place in placed_words(source):
            # Punctuation marks are words too, and every text contains the same ones.
            is_sign = not any(map(str.isalnum, word))
            if word.casefold() in wanted and not is_sign:
                spans.append(place)
        if not spans:
            counts[NO_SHARED_WORD] += 1
        marked.append(Marked(source, tuple(spans)))
    return marked


def placed_words(text: str) -> list[tuple[str, Place]]:
    """Split a text into words, each with its (start, end)."""
    words = []
    start, end = words_in(classify(text))
    for first, last in zip(start.tolist(), end.tolist()):
        words.append((text[first:last], (first, last)))
    return words


Confidence = Callable[[Sequence[str], Sequence[int]], NDArray[np.float64]]
"""(texts, their classes) → (N,) a classifier's probabilities of these classes."""
TrainClassifier: TypeAlias = Callable[[Task], Confidence]
"""Trains a classifier on a task."""


def classifier_labels(
    rows: Sequence[tuple[str, int]], confidence: Confidence, *, drop: float
) -> list[Marked]:
    """Label words of (text, class) rows if the class is less probable without them by ``drop``."""
    shown = []
    classes = []
    places = []
    for text, label in rows:
        # The whole text first: (0, 0) drops nothing.
        for _, (start, end) in [("", (0, 0)), *placed_words(text)]:
            shown.append(text[:start] + text[end:])
            classes.append(label)
            places.append((start, end))
    # One call for all texts: the classifier batches them by length.
    probabilities = confidence(shown, classes).tolist()
    spans: list[list[Place]] = []
    whole = 0.0
    for place, probability in zip(places, probabilities, strict=True):
        if place == (0, 0):
            whole = probability
            spans.append([])
        elif whole - probability >= drop:
            spans[-1].append(place)
    marked = []
    for (text, _), found in zip(rows, spans, strict=True):
        marked.append(Marked(text, tuple(found)))
    return marked


# From a task
# -------------------------------------------------------------------------------------------


def labels_of(
    spec: str,
    *,
    kind: str | None = None,
    texts: Sequence[str] = (),
    drop: float = 0.05,
    classifier: TrainClassifier | None = None,
) -> Labels:
    """Derive the labels of a task.

    Args:
        spec: the task, as for ``load_task``.
        kind: "answers", "target-words" or "classifier"; None: chosen from the task's rows.
        texts: a corpus, searched for contexts of questions without one.
        drop: see ``classifier_labels``.
        classifier: trains a classifier on a task.

    Raises:
        MaskwiseError: nothing to label, or labels that teach nothing: answers that are in no
            context, a single class, targets that share no word with their sources.
    """
    labels = None
    # Raw records first: a task of another kind may leave the contexts of its records out.
    if kind in (None, "answers"):
        labels = _answers_of_file(spec)
    if labels is None:
        labels = _of_task(load_task(spec), kind, texts, drop, classifier)
    if labels.kind == "target-words":
        total = sum(map(len, labels.splits.values()))
        share = (total - labels.counts[NO_SHARED_WORD]) / total
        if share < LEAST_LABELLED:
            raise MaskwiseError(
                f"hardly any target of task {spec} shares a word with its source: labels would "
                "teach nothing",
                got=f"{share:.0%} of the sources have a label",
                do="use learning.method: meta, which learns from the effect of masking",
            )
    if not labels.marked("train"):
        raise MaskwiseError(
            f"nothing in the training texts of task {spec} can be labelled",
            got=counted(+labels.counts) or "no label",
            do="give contexts that contain their answers, set learning.supervised.labels, or use "
            "learning.method: meta",
        )
    return labels


def _of_task(
    task: Task,
    kind: str | None,
    texts: Sequence[str],
    drop: float,
    classifier: TrainClassifier | None,
) -> Labels:
    rows = {split: task.splits[split] for split in SPLITS}
    first = next(chain.from_iterable(rows.values()))
    if kind in (None, "classifier") and isinstance(first, TextRow):
        return _by_classifier(task, classifier, drop)
    if kind == "classifier" or not first.rights:
        raise MaskwiseError(
            f"task {task.name} has no labels of this kind",
            got=f"labels {kind}, kind of task {task.kind.name}",
            do="use learning.method: meta, which needs none",
        )
    has_context = bool(given_context(first))
    if kind != "target-words" and (texts or has_context):
        labels = Labels("answers")
        for split, part in rows.items():
            pairs = _answer_pairs(part, texts, labels.counts)
            labels.splits[split] = answer_labels(pairs, labels.counts)
        answered = 0
        for each in labels.splits["train"]:
            answered += len(each.questions)
        # Without a context a row may be a summary; hardly any text of a corpus contains one.
        if kind or has_context or answered >= LEAST_ANSWERED * len(rows["train"]):
            return labels
    labels = Labels("target-words")
    for split, part in rows.items():
        sources = []
        for row in part:
            sources.append((row.texts[0], row.rights))
        labels.splits[split] = target_labels(sources, labels.counts)
    return labels


def _answer_pairs(rows: Sequence[Row], texts: Sequence[str], counts: Counter[str]) -> Pairs:
    """Pair the contexts of each row with its right answers."""
    pairs = []
    places, contexts = contexts_of(rows, texts)
    for row, found in zip(rows, places, strict=True):
        if not found:
            counts[IN_NO_TEXT] += 1
        for place in found:
            pairs.append((contexts[place], row.rights))
    return pairs


def _answers_of_file(spec: str) -> Labels | None:
    """Label the answers of raw records; None if they have no contexts or answers."""
    # Arguments and cards may choose other columns, which only ``load_task`` knows.
    if "(" in spec or spec in CARDS:
        return None
    records = read_splits(spec)
    first = next(chain.from_iterable(records.values()), {})
    if first.keys().isdisjoint(CONTEXT) or first.keys().isdisjoint(ANSWERS):
        return None
    labels = Labels("answers")
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
    # Split as ``load_task`` splits them, so that no policy learns from a task's test rows.
    splits, _ = splits_of(keyed, f"task {spec!r}")
    for split, pairs in splits.items():
        labels.splits[split] = answer_labels(pairs, labels.counts)
    return labels


def _by_classifier(task: Task, classifier: TrainClassifier | None, drop: float) -> Labels:
    """Label the words of single texts with a classifier that is trained on the same task."""
    number = dict(zip(task.labels, range(len(task.labels))))
    rows: dict[str, list[tuple[str, int]]] = {}
    for split in SPLITS:
        rows[split] = []
        for row in task.splits[split]:
            assert isinstance(row, TextRow)
            if row.pair is not None:
                raise MaskwiseError(
                    f"labels of a classifier need single texts, and {task.name} has pairs",
                    do="use learning.method: meta",
                )
            # The classifier has no output for a class that is missing from train.
            if row.label in number:
                rows[split].append((row.text, number[row.label]))
    assert classifier is not None, "labels of a classifier need one"
    confidence = classifier(task)
    labels = Labels("classifier")
    for split, part in rows.items():
        labels.splits[split] = classifier_labels(part, confidence, drop=drop)
    return labels
