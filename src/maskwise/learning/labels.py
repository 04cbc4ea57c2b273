"""What a policy should find in a text, derived from a task: answers, words of a target or a class.

The question is unseen. An answer is labelled wherever it occurs in its context as whole words. Of
summaries and other free answers, the content words that occur in the source are labelled; if hardly
any does, labels teach nothing, and the meta-gradient is the only way. Of a classification task, a
word is labelled if a classifier is less sure of the right class without it.

Source: Ye et al. 2021 (arXiv 2104.08840) for answers; Gu et al. 2020 (arXiv 2004.09733) for the
    classifier, who add words one by one; we leave one out, which depends on no order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError, counted
from maskwise.learning.examples import find_contexts, given_context, occurrences, rights_of
from maskwise.tasks import load_task
from maskwise.tasks.classes import TextRow
from maskwise.tasks.files import ANSWERS, CONTEXT, read_splits, shared_names, shared_text, splits_of
from maskwise.tasks.questions import read_answers
from maskwise.tasks.task import SPLITS, Row, Task
from maskwise.text.words import classify, words_in

Place: TypeAlias = tuple[int, int]
"""(start, end) in characters."""

NOT_THERE = "answers that do not stand in their context"
NO_WORD = "targets of which no content word stands in the source"
NOT_TOLD = "questions of which no text tells an answer"
LEAST_TARGETS = 0.1
"""Labels of targets teach something if at least this share of the sources has one."""
LEAST_TOLD = 0.01
"""Rows without contexts are questions, not summaries, if the corpus has this share of the answers.
"""

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
"""Words that say little by themselves."""


@dataclass(frozen=True)
class Marked:
    """A text and what a policy should find in it.

    Attributes:
        spans: (start, end) in characters, in order; they may repeat or overlap.
        questions: the right answers in the text of each question about it; empty if words are
            labelled.
    """

    text: str
    spans: tuple[Place, ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """Texts with their labels, by split.

    Attributes:
        splits: train, dev and test.
        counts: what could not be labelled, by reason.
    """

    kind: Literal["answers", "target-words", "classifier"]
    splits: dict[str, list[Marked]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def head(self) -> Any:
        """The head of a policy that learns them."""
        return "spans" if self.kind == "answers" else "tokens"

    def marked(self, *splits: str) -> list[Marked]:
        """The texts with a label, of the first of these splits that has some."""
        for split in splits:
            kept = [each for each in self.splits[split] if each.spans]
            if kept:
                return kept
        return []


def answer_labels(pairs: Iterable[tuple[str, Sequence[str]]], counts: Counter[str]) -> list[Marked]:
    """(context, right answers) of questions → each context once, with all its answers.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_THERE]
    (((8, 10), (12, 14)), 1)
    """
    spans: dict[str, list[Place]] = {}
    questions: dict[str, list[tuple[str, ...]]] = {}
    for context, answers in pairs:
        found = {answer: occurrences(answer, context) for answer in answers}
        there = tuple(answer for answer, places in found.items() if places)
        if not there:
            counts[NOT_THERE] += 1
            continue
        spans.setdefault(context, []).extend(set(chain.from_iterable(found.values())))
        questions.setdefault(context, []).append(there)
    return [
        Marked(context, tuple(sorted(spans[context])), tuple(asked))
        for context, asked in questions.items()
    ]


def target_labels(pairs: Iterable[tuple[str, Sequence[str]]], counts: Counter[str]) -> list[Marked]:
    """(source, targets) pairs → the content words of the targets, wherever the source has them.

    >>> target_labels([("Owls hunt mice at night.", ["Mice fear the owls."])], Counter())[0].spans
    ((0, 4), (10, 14))
    """
    marked = []
    for source, targets in pairs:
        wanted = set[str]()
        for target in targets:
            wanted.update(word.casefold() for word, _ in words_of(target))
        wanted -= FUNCTION_WORDS
        spans = []
        for word, place in words_of(source):
            if word.casefold() in wanted and any(map(str.isalnum, word)):
                spans.append(place)
        counts[NO_WORD] += not spans
        marked.append(Marked(source, tuple(spans)))
    return marked


def words_of(text: str) -> list[tuple[str, Place]]:
    """The words of a text, each with its characters."""
    start, end = words_in(classify(text))
    places = zip(start.tolist(), end.tolist())
    return [(text[first:last], (first, last)) for first, last in places]


Confidence = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""From texts and their classes to a classifier's probabilities (N,) of these classes."""


def classifier_labels(
    rows: Sequence[tuple[str, int]], confidence: Confidence, *, drop: float
) -> list[Marked]:
    """(text, class) rows → the words without which the class is less sure, by at least ``drop``."""
    shown: list[str] = []
    classes: list[int] = []
    for text, label in rows:
        without = [text[:start] + text[end:] for _, (start, end) in words_of(text)]
        shown += [text, *without]
        classes += [label] * (1 + len(without))
    sure = iter(confidence(shown, classes).tolist())
    marked = []
    for text, _ in rows:
        whole = next(sure)
        spans = [place for _, place in words_of(text) if whole - next(sure) >= drop]
        marked.append(Marked(text, tuple(spans)))
    return marked


# From a task
# -------------------------------------------------------------------------------------------


def labels_of(
    spec: str,
    *,
    kind: str | None = None,
    texts: Sequence[str] = (),
    drop: float = 0.05,
    classifier: Callable[[Task], Confidence] | None = None,
) -> Labels:
    """The labels of a task.

    Args:
        spec: of the task, as for ``load_task``.
        kind: "answers", "target-words" or "classifier"; None: by the task's rows.
        texts: a corpus, searched for contexts of questions without one.
        drop: for ``classifier_labels``.
        classifier: trains one on a task.

    Raises:
        MaskwiseError: nothing to label, or labels that teach nothing: answers that are in no
            context, a single class, targets that share no word with their sources.
    """
    labels = None
    if kind in (None, "answers"):
        labels = _answers_of_file(spec)
    if labels is None:
        labels = _of_task(load_task(spec), kind, texts, drop, classifier)
    if labels.kind == "target-words":
        marked = list(chain.from_iterable(labels.splits.values()))
        share = sum(bool(each.spans) for each in marked) / max(1, len(marked))
        if share < LEAST_TARGETS:
            raise MaskwiseError(
                f"the targets of task {spec} share hardly a word with their sources: labels would "
                "teach nothing",
                got=f"{share:.0%} of the sources have a label",
                do="take learning.method: meta, which learns from the effect of masking",
            )
    if not labels.marked("train"):
        raise MaskwiseError(
            f"nothing in the training texts of task {spec} can be labelled",
            got=counted(+labels.counts) or "no label",
            do="give contexts that hold their answers, set learning.supervised.labels, or take "
            "learning.method: meta",
        )
    return labels


def _of_task(
    task: Task,
    kind: str | None,
    texts: Sequence[str],
    drop: float,
    classifier: Callable[[Task], Confidence] | None,
) -> Labels:
    rows = {split: task.splits[split] for split in SPLITS}
    first = next(chain.from_iterable(rows.values()))
    if kind in (None, "classifier") and isinstance(first, TextRow):
        return _by_classifier(task, classifier, drop)
    if kind == "classifier" or not rights_of(first):
        what = f"task {task.name} gives no labels of this kind"
        got = f"labels {kind}, kind of task {task.kind.name}"
        raise MaskwiseError(what, got=got, do="take learning.method: meta, which needs none")
    has_context = bool(given_context(first))
    if kind != "target-words" and (texts or has_context):
        labels = Labels("answers")
        for split, part in rows.items():
            labels.splits[split] = answer_labels(_told(part, texts, labels.counts), labels.counts)
        told = sum(len(each.questions) for each in labels.splits["train"])
        if kind or has_context or told >= LEAST_TOLD * len(rows["train"]):
            return labels
    labels = Labels("target-words")
    for split, part in rows.items():
        pairs = [(row.texts[0], rights_of(row)) for row in part]
        labels.splits[split] = target_labels(pairs, labels.counts)
    return labels


def _answers_of_file(spec: str) -> Labels | None:
    """The answers in the contexts of raw records; None if they have no contexts or answers.

    Records are split as ``load_task`` does, so that no policy learns from a task's test rows.
    """
    if "(" in spec and not spec.startswith("hf:"):
        return None
    records = read_splits(spec)
    first = next((part[0] for part in records.values() if part), {})
    if first.keys().isdisjoint(CONTEXT) or first.keys().isdisjoint(ANSWERS):
        return None
    labels = Labels("answers")
    keyed: dict[str, list[tuple[str, tuple[str, list[str]]]]] = {}
    for split, part in records.items():
        names = shared_names(part)
        keyed[split] = []
        for number, record in enumerate(part, start=1):
            contexts = [record[name] for name in CONTEXT if isinstance(record.get(name), str)]
            values = [record[name] for name in ANSWERS if name in record]
            given = read_answers(next(iter(values), None), f"row {number} of {split}")
            answers = [text for text, _ in given if text.strip()]
            if not answers:
                labels.counts["questions without an answer"] += 1
                continue
            context = next(iter(contexts), "")
            keyed[split].append((shared_text(record, names), (context, answers)))
    pairs, _ = splits_of(keyed, f"task {spec!r}")
    for split, told in pairs.items():
        labels.splits[split] = answer_labels(told, labels.counts)
    return labels


def _told(
    rows: Sequence[Row], texts: Sequence[str], counts: Counter[str]
) -> list[tuple[str, Sequence[str]]]:
    """(context, answers) of rows; of questions without a context, texts with an answer."""
    own = [given_context(row) for row in rows]
    if all(own):
        return [(str(context), rights_of(row)) for context, row in zip(own, rows)]
    places = find_contexts([row.texts[0] for row in rows], [rights_of(row) for row in rows], texts)
    counts[NOT_TOLD] += places.count([])
    pairs = []
    for row, found in zip(rows, places, strict=True):
        pairs += [(texts[place], rights_of(row)) for place in found]
    return pairs


def _by_classifier(
    task: Task, classifier: Callable[[Task], Confidence] | None, drop: float
) -> Labels:
    number = {label: place for place, label in enumerate(task.labels)}
    rows: dict[str, list[tuple[str, int]]] = {}
    for split in SPLITS:
        known = [row for row in task.splits[split] if isinstance(row, TextRow)]
        if any(row.pair is not None for row in known):
            what = f"labels of a classifier are for single texts, and {task.name} has pairs"
            raise MaskwiseError(what, do="take learning.method: meta")
        rows[split] = [(row.text, number[row.label]) for row in known if row.label in number]
    assert classifier is not None, "labels of a classifier need one"
    confidence = classifier(task)
    labels = Labels("classifier")
    for split, part in rows.items():
        labels.splits[split] = classifier_labels(part, confidence, drop=drop)
    return labels
