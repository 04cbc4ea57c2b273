"""What a policy should find in a text, as a task tells it: answers, words of the target, words that
decide a class.

The question is unseen. An answer is labelled wherever it stands in its context as whole words;
answers that do not stand there are counted. Of summaries and other free answers, the content words
that stand in the source are labelled; where hardly any does, labels teach nothing and the
meta-gradient is the only way. Of a classification task, a word is labelled if a classifier is less
sure of the right class without it.

Source: Ye et al. 2021 (arXiv 2104.08840) for answers; Gu et al. 2020 (arXiv 2004.09733) for the
    classifier, who add
words one by one where we leave one out: what a word does then depends on no order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.learning.examples import find_contexts, occurrences, rights_of
from maskwise.tasks import load_task
from maskwise.tasks.classes import TextRow
from maskwise.tasks.files import ANSWERS, CONTEXT, read_splits, shared_names, shared_text, splits_of
from maskwise.tasks.questions import read_answers
from maskwise.tasks.task import SPLITS, Row, Task
from maskwise.text.words import classify, word_starts

Place: TypeAlias = tuple[int, int]
"""(start, end) in characters."""

NOT_THERE = "answers that do not stand in their context"
NO_WORD = "targets of which no content word stands in the source"
NOT_TOLD = "questions of which no text tells an answer"
LEAST_TARGETS = 0.1
"""Labels of targets teach something if so many sources have one at least."""
LEAST_TOLD = 0.01
"""Rows without contexts are questions, and no summaries, if the corpus tells so many of their
answers at least.
"""

_FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been before being below between
both but by can could did do does doing down during each few for from further had has have having he her here
hers him his how i if in into is it its itself just may me might more most must my no nor not now of off on
once one only or other our out over own same shall she should so some such than that the their them then there
these they this those through to too under until up upon us very was we were what when where which while who
whom whose why will with would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say little by themselves."""


@dataclass(frozen=True)
class Marked:
    """A text and what a policy should find in it.

    Attributes:
        spans: (start, end) in characters, in their order; they may repeat or overlap.
        questions: the right answers of each question about the text that stand in it; none where
            words are labelled.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    questions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Labels:
    """Texts with their labels, by split.

    Attributes:
        kind: "answers", "target-words" or "classifier".
        splits: train, dev and test.
        counts: what could not be labelled, by its reason.
    """

    kind: str
    splits: dict[str, list[Marked]]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def head(self) -> Any:
        """What a policy of such labels scores."""
        return "spans" if self.kind == "answers" else "tokens"

    def marked(self, *splits: str) -> list[Marked]:
        """The texts that have a label, of the first of these splits that has some."""
        for split in splits:
            kept = [each for each in self.splits[split] if each.spans]
            if kept:
                return kept
        return []


def answer_labels(pairs: Iterable[tuple[str, Sequence[str]]], counts: Counter[str]) -> list[Marked]:
    """(context, right answers of one question) pairs → each context once, with all occurrences of
    all its answers.

    >>> counts = Counter()
    >>> pairs = [("Ada met Bo. Bo left.", ["Bo"]), ("Ada met Bo. Bo left.", ["Eve"])]
    >>> answer_labels(pairs, counts)[0].spans, counts[NOT_THERE]
    (((8, 10), (12, 14)), 1)
    """
    found: dict[str, tuple[list[Place], list[tuple[str, ...]]]] = {}
    for context, answers in pairs:
        there = []
        places = set[Place]()
        for answer in dict.fromkeys(answers):
            spans = occurrences(answer, context)
            if spans:
                there.append(answer)
                places.update(spans)
        if not there:
            counts[NOT_THERE] += 1
            continue
        every, questions = found.setdefault(context, ([], []))
        every += places
        questions.append(tuple(there))
    return [
        Marked(text, tuple(sorted(every)), tuple(asked)) for text, (every, asked) in found.items()
    ]


def target_labels(pairs: Iterable[tuple[str, Sequence[str]]], counts: Counter[str]) -> list[Marked]:
    """(source, targets) pairs → the content words of the targets, wherever they stand in the
    source.

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
    begin = np.flatnonzero(word_starts(classify(text))).tolist()
    words = []
    for start, end in pairwise([*begin, len(text)]):
        word = text[start:end].rstrip()
        words.append((word, (start, start + len(word))))
    return words


Confidence = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""From texts and their classes to the probabilities (N,) that a classifier gives these classes."""


def classifier_labels(
    rows: Sequence[tuple[str, int]], confidence: Confidence, *, drop: float
) -> list[Marked]:
    """(text, class) rows → the words without which the classifier is less sure of the class, by
    ``drop`` at least.
    """
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
        marked.append(
            Marked(text, tuple(place for _, place in words_of(text) if whole - next(sure) >= drop))
        )
    return marked


# From a task
# --------------------------------------------------------------------------------------------------------


def labels_of(
    spec: str,
    *,
    kind: str | None = None,
    texts: Sequence[str] = (),
    drop: float = 0.05,
    classifier: Callable[[Task], Confidence] | None = None,
) -> Labels:
    """What a task tells a policy to find.

    Args:
        spec: of the task, as for ``load_task``.
        kind: "answers", "target-words" or "classifier"; None: what the task's rows have.
        texts: a corpus, where the contexts of questions that stand alone are looked for.
        drop: for ``classifier``.
        classifier: trains one on a task; only asked for where labels are a classifier's.

    Raises:
        MaskwiseError: nothing to label, or a task that tells nothing: answers of which none stands
            in its context, a classification task of one class, targets that share no word with
            their sources.
    """
    records = _with_contexts(spec) if kind in (None, "answers") else None
    if records:
        return _checked(_answers(records, spec), spec)
    task = load_task(spec)
    rows = {split: task.splits[split] for split in SPLITS}
    first = next(chain.from_iterable(rows.values()))
    if kind in (None, "classifier") and isinstance(first, TextRow):
        return _checked(_by_classifier(task, classifier, drop), spec)
    if kind == "classifier" or not rights_of(first):
        what = f"task {task.name} gives no labels of this kind"
        do = "take learning.method: meta, which needs none"
        raise MaskwiseError(what, got=f"labels {kind}, kind of task {task.kind.name}", do=do)
    has_context = bool(getattr(first, "context", None))
    if kind != "target-words" and (texts or has_context):
        labels = Labels("answers", {})
        for split, part in rows.items():
            labels.splits[split] = answer_labels(_told(part, texts, labels.counts), labels.counts)
        told = sum(len(each.questions) for each in labels.splits["train"])
        if kind or has_context or told >= LEAST_TOLD * len(rows["train"]):
            return _checked(labels, spec)
    labels = Labels("target-words", {})
    for split, part in rows.items():
        pairs = [(row.texts[0], rights_of(row)) for row in part]
        labels.splits[split] = target_labels(pairs, labels.counts)
    return _checked(labels, spec)


def _checked(labels: Labels, spec: str) -> Labels:
    """Refuse labels that teach nothing."""
    if labels.kind == "target-words":
        marked = list(chain.from_iterable(labels.splits.values()))
        share = sum(bool(each.spans) for each in marked) / max(1, len(marked))
        if share < LEAST_TARGETS:
            what = (
                f"the targets of task {spec} share hardly a word with their sources: labels "
                f"would teach nothing"
            )
            do = "take learning.method: meta, which learns from what masking does to the task"
            raise MaskwiseError(what, got=f"{share:.0%} of the sources have a label", do=do)
    if not any(each.spans for each in labels.splits["train"]):
        got = (
            ", ".join(f"{count} {reason}" for reason, count in (+labels.counts).items())
            or "no label"
        )
        do = (
            "give contexts that hold their answers, set learning.supervised.labels, or take "
            "learning.method: meta"
        )
        raise MaskwiseError(
            f"nothing in the training texts of task {spec} is to be found", got=got, do=do
        )
    return labels


def _with_contexts(spec: str) -> dict[str, list[Mapping[str, Any]]] | None:
    """Raw records by split, if they have contexts and answers."""
    if "(" in spec and not spec.startswith("hf:"):
        return None
    records = read_splits(spec)
    first = next((part[0] for part in records.values() if part), {})
    if first.keys().isdisjoint(CONTEXT) or first.keys().isdisjoint(ANSWERS):
        return None
    return {split: list(part) for split, part in records.items()}


def _answers(records: Mapping[str, Sequence[Mapping[str, Any]]], spec: str) -> Labels:
    """Cut as ``load_task`` cuts the same file, so that no policy learns from what a task is tested
    by.
    """
    labels = Labels("answers", {})
    keyed: dict[str, list[tuple[str, tuple[str, list[str]]]]] = {}
    for split, part in records.items():
        names = shared_names(part)
        keyed[split] = []
        for number, record in enumerate(part, start=1):
            context = next(
                (record[name] for name in CONTEXT if isinstance(record.get(name), str)), ""
            )
            value = next((record[name] for name in ANSWERS if name in record), None)
            answers = [
                text for text, _ in read_answers(value, f"row {number} of {split}") if text.strip()
            ]
            if answers:
                keyed[split].append((shared_text(record, names), (context, answers)))
            else:
                labels.counts["questions without an answer"] += 1
    pairs, _ = splits_of(keyed, f"task {spec!r}")
    for split, told in pairs.items():
        labels.splits[split] = answer_labels(told, labels.counts)
    return labels


def _told(
    rows: Sequence[Row], texts: Sequence[str], counts: Counter[str]
) -> list[tuple[str, Sequence[str]]]:
    """(context, answers) pairs: the contexts of rows or, of questions that stand alone, texts that
    tell an answer.
    """
    own = [getattr(row, "context", None) for row in rows]
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
    rows: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for split, part in rows.items():
        for row in task.splits[split]:
            if not isinstance(row, TextRow) or row.label not in number:
                continue
            if row.pair is not None:
                what = f"labels of a classifier are for single texts, and {task.name} has pairs"
                raise MaskwiseError(what, do="take learning.method: meta")
            part.append((row.text, number[row.label]))
    assert classifier is not None, "labels of a classifier need one"
    confidence = classifier(task)
    labels = Labels("classifier", {})
    for split, part in rows.items():
        labels.splits[split] = classifier_labels(part, confidence, drop=drop)
    return labels
